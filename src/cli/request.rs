//! From what was typed to the library's requests.

use crate::boot::{BootOptions, CommandLine};
use crate::cli::args::{AccelWord, ChoiceArgs, FirmwareWord, ImageArgs, MachineArgs, NetworkWord};
use crate::cli::environment;
use crate::cli::report::{Kind, Report};
use crate::domain::{Accelerator, DomainName, Forward, FwCfgName, Nic};
use crate::files;
use crate::image::select::Wanted;
use crate::oci::{LayoutReference, Reference};
use crate::ops::Context;
use crate::ops::prepare::{InstanceRequest, MachineRequest};
use crate::ops::resolve::ImageRequest;
use crate::stage::GuestFile;

/// Largest Ignition config that is read, in bytes.
const MAX_IGNITION_BYTES: u64 = 16 << 20;

/// The image that is meant, and how it is to boot.
pub(super) fn image_request(
    context: &Context<'_>,
    reference: Reference,
    choice: &ChoiceArgs,
) -> Result<ImageRequest, Report> {
    let mut append = CommandLine::default();
    for words in &choice.append {
        append = append
            .append(words)
            .map_err(|error| Report::usage(format!("--append: {error}")))?;
    }
    Ok(ImageRequest {
        reference: absolute(reference)?,
        wanted: Wanted {
            architecture: choice
                .arch
                .clone()
                .unwrap_or_else(|| context.host.architecture.clone()),
            variant: choice.variant,
        },
        boot: BootOptions {
            method: choice.boot.method(),
            command_line: choice.cmdline.clone(),
            append,
        },
    })
}

/// A layout's directory is remembered, so it must not depend on where we were called.
pub(super) fn absolute(reference: Reference) -> Result<Reference, Report> {
    Ok(match reference {
        Reference::Layout(layout) => {
            let directory = environment::absolute(&layout.directory)
                .map_err(|error| Report::usage(format!("no directory: {error}")))?;
            Reference::Layout(LayoutReference {
                directory,
                ..layout
            })
        }
        registry @ Reference::Registry(_) => registry,
    })
}

/// The instance that is meant, persistent and without forwarded ports.
pub(super) fn instance_request(
    context: &Context<'_>,
    image: ImageArgs,
    machine: MachineArgs,
    name: DomainName,
) -> Result<InstanceRequest, Report> {
    let image = image_request(context, image.reference, &image.choice)?;
    // Both words mean the one kind of firmware that this version looks for.
    let (FirmwareWord::Auto | FirmwareWord::Uefi) = machine.firmware;
    let mut guest_files = Vec::new();
    if let Some(path) = &machine.ignition {
        let content = files::read_small(path, MAX_IGNITION_BYTES)?
            .ok_or_else(|| Report::usage(format!("no such file: {}", path.display())))?;
        // The key by which Ignition finds its config under QEMU.
        let name = "opt/com.coreos/config";
        let name = name.parse::<FwCfgName>()?;
        guest_files.push(GuestFile { name, content });
    }
    guest_files.extend(machine.set_credential.iter().map(|credential| GuestFile {
        name: credential.name.clone(),
        content: credential.value.clone().into_bytes(),
    }));
    Ok(InstanceRequest {
        name,
        image,
        machine: MachineRequest {
            cpus: machine.cpus,
            memory: machine.memory,
            disk_size_bytes: machine.disk_size,
            accelerator: match machine.accel {
                AccelWord::Auto => None,
                AccelWord::Kvm => Some(Accelerator::Kvm),
                AccelWord::Tcg => Some(Accelerator::Tcg),
            },
            nic: match machine.network {
                NetworkWord::User => Some(Nic::User {
                    forwards: Vec::new(),
                }),
                NetworkWord::None => None,
            },
            guest_files,
            ensure_console: false,
        },
        ephemeral: false,
    })
}

/// Adds forwarded ports to the machine's network card.
pub(super) fn forward(machine: &mut MachineRequest, publish: Vec<Forward>) -> Result<(), Report> {
    match &mut machine.nic {
        Some(Nic::User { forwards }) => *forwards = publish,
        _ if publish.is_empty() => {}
        _ => return Err(Report::usage("--publish needs a network card".to_owned())),
    }
    Ok(())
}

/// A name that no other instance has.
pub(super) fn generated_name() -> Result<DomainName, Report> {
    // The file's name is the only randomness that is needed, and tempfile has it.
    let unique = tempfile::Builder::new()
        .prefix("run-")
        .rand_bytes(6)
        .tempfile()
        .map_err(|error| Report::usage(format!("pass --name: {error}")))?;
    let name = unique.path().file_name().unwrap_or_default();
    name.to_string_lossy().parse().map_err(|_| Report {
        kind: Kind::Host,
        ..Report::usage("can not make up a name; pass --name".to_owned())
    })
}
