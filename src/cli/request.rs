//! From what was typed to the library's requests.

use std::path::Path;

use indicatif::HumanBytes;

use crate::boot::{BootOptions, CommandLine, FirmwareWish, MethodName};
use crate::cli::args::{
    AccelWord, BindWord, ChoiceArgs, ImageArgs, MachineArgs, NetworkWord, UkiWord, credential_name,
};
use crate::cli::environment;
use crate::cli::report::{Kind, Report};
use crate::domain::{Accelerator, Bind, DomainName, Forward, FwCfgName, Nic};
use crate::files;
use crate::image::select::Wanted;
use crate::oci::{LayoutReference, Reference};
use crate::ops::Context;
use crate::ops::accelerator::AcceleratorWish;
use crate::ops::prepare::{InstanceRequest, MachineRequest};
use crate::ops::resolve::ImageRequest;
use crate::ops::ssh::key;
use crate::stage::GuestFile;

/// Largest Ignition config that is read, in bytes.
const MAX_IGNITION_BYTES: u64 = 16 << 20;
/// What all credentials of a system may come to, in bytes (systemd's `CREDENTIALS_TOTAL_SIZE_MAX`).
const MAX_CREDENTIALS_BYTES: u64 = 1 << 20;

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
            method: method(choice)?,
            command_line: choice.cmdline.clone(),
            append,
            append_if_possible: CommandLine::default(),
            terminal: CommandLine::default(),
            console: None,
            firmware: firmware(&choice.firmware)?,
            uki: choice.uki.map(UkiWord::name),
        },
        pull: choice.pull.policy(),
    })
}

/// The boot method: `--uki` says how to start a UKI, so it asks for one.
fn method(choice: &ChoiceArgs) -> Result<Option<MethodName>, Report> {
    match (choice.boot.method(), choice.uki) {
        (None, Some(_)) => Ok(Some(MethodName::Uki)),
        (Some(MethodName::Uki) | None, _) | (_, None) => Ok(choice.boot.method()),
        (Some(other), Some(_)) => Err(Report::usage(format!(
            "--uki says how to start a UKI, and --boot {other} was given"
        ))),
    }
}

/// Firmware is remembered, so its file must not depend on where we were called.
fn firmware(wish: &FirmwareWish) -> Result<FirmwareWish, Report> {
    Ok(match wish {
        FirmwareWish::File(path) => FirmwareWish::File(
            environment::absolute(path)
                .map_err(|error| Report::usage(format!("no directory: {error}")))?,
        ),
        word => word.clone(),
    })
}

/// A layout's path is remembered, so it must not depend on where we were called.
pub(super) fn absolute(reference: Reference) -> Result<Reference, Report> {
    Ok(match reference {
        Reference::Layout(layout) => {
            let path = environment::absolute(&layout.path)
                .map_err(|error| Report::usage(format!("no directory: {error}")))?;
            Reference::Layout(LayoutReference { path, ..layout })
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
    let mut image = image_request(context, image.reference, &image.choice)?;
    if let Some(name) = &machine.hostname {
        // systemd of 246 and later; those of 254 and later read the credential as well.
        let words = format!("systemd.hostname={name}");
        let words = words.parse::<CommandLine>();
        image.boot.append_if_possible = words.map_err(|error| Report::usage(error.to_string()))?;
    }
    let guest_files = guest_files(&machine)?;
    Ok(InstanceRequest {
        name,
        image,
        machine: MachineRequest {
            cpus: machine.cpus,
            memory: machine.memory,
            disk_size_bytes: machine.disk_size,
            accelerator: match machine.accel {
                AccelWord::Auto => AcceleratorWish::Auto,
                AccelWord::KvmTcg => AcceleratorWish::TryKvm,
                AccelWord::Kvm => AcceleratorWish::Only(Accelerator::Kvm),
                AccelWord::Tcg => AcceleratorWish::Only(Accelerator::Tcg),
            },
            nic: match machine.network {
                NetworkWord::None => None,
                NetworkWord::User => Some(Nic::User {
                    forwards: Vec::new(),
                }),
                NetworkWord::Libvirt(name) => Some(Nic::Network(name)),
                NetworkWord::Bridge(name) => Some(Nic::Bridge(name)),
            },
            guest_files,
            oem_strings: machine.smbios,
            is_observed: false,
            offers_ssh: false,
            binds: Vec::new(),
            qemu_arguments: Vec::new(),
            ensure_console: false,
        },
        ephemeral: false,
    })
}

/// What the guest is given: its Ignition config and its credentials.
fn guest_files(machine: &MachineArgs) -> Result<Vec<GuestFile>, Report> {
    let mut guest_files = Vec::new();
    if let Some(path) = &machine.ignition {
        guest_files.push(GuestFile {
            name: key::IGNITION.parse::<FwCfgName>()?,
            content: read(path, MAX_IGNITION_BYTES)?,
        });
    }
    let mut credentials = Vec::new();
    for credential in &machine.set_credential {
        credentials.push(GuestFile {
            name: credential.name.clone(),
            content: credential.value.clone().into_bytes(),
        });
    }
    for credential in &machine.load_credential {
        credentials.push(GuestFile {
            name: credential.name.clone(),
            content: read(&credential.path, MAX_CREDENTIALS_BYTES)?,
        });
    }
    if let Some(name) = &machine.hostname {
        credentials.push(GuestFile {
            name: credential_name("system.hostname").map_err(Report::usage)?,
            content: name.clone().into_bytes(),
        });
    }
    let total: usize = credentials.iter().map(|file| file.content.len()).sum();
    if total as u64 > MAX_CREDENTIALS_BYTES {
        return Err(Report::usage(format!(
            "credentials have {}, and systemd takes {} of all together",
            HumanBytes(total as u64),
            HumanBytes(MAX_CREDENTIALS_BYTES)
        )));
    }
    for (place, credential) in credentials.iter().enumerate() {
        if credentials[..place]
            .iter()
            .any(|other| other.name == credential.name)
        {
            let name = &credential.name;
            return Err(Report::usage(format!("credential is given twice: {name}")));
        }
    }
    guest_files.extend(credentials);
    Ok(guest_files)
}

/// Reads a file that the user names.
fn read(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, Report> {
    let shown = path.display();
    match files::read_small(path, limit_bytes) {
        Err(error) if error.source.kind() == std::io::ErrorKind::FileTooLarge => {
            Err(Report::usage(format!(
                "file has more than {}: {shown}",
                HumanBytes(limit_bytes)
            )))
        }
        content => content?.ok_or_else(|| Report::usage(format!("no such file: {shown}"))),
    }
}

/// The directories that the guest may mount, `read_write` and `read_only`.
pub(super) fn binds(
    read_write: Vec<BindWord>,
    read_only: Vec<BindWord>,
) -> Result<Vec<Bind>, Report> {
    let all = read_write.into_iter().map(|bind| (bind, false));
    let all = all.chain(read_only.into_iter().map(|bind| (bind, true)));
    let mut binds: Vec<Bind> = Vec::new();
    for (BindWord { directory, tag }, read_only) in all {
        let shown = directory.display().to_string();
        let directory = environment::absolute(&directory)
            .map_err(|error| Report::usage(format!("no directory: {error}")))?;
        if !directory.is_dir() {
            return Err(Report::usage(format!("no such directory: {shown}")));
        }
        let named = || {
            let name = directory.file_name()?.to_str()?;
            name.parse().ok()
        };
        let tag = tag.or_else(named).ok_or_else(|| {
            Report::usage(format!("say what the guest is to call it: {shown}:TAG"))
        })?;
        if binds.iter().any(|other| other.tag == tag) {
            return Err(Report::usage(format!("two directories are called {tag}")));
        }
        binds.push(Bind {
            directory,
            tag,
            read_only,
        });
    }
    Ok(binds)
}

/// Adds forwarded ports to the machine's network card.
pub(super) fn forward(machine: &mut MachineRequest, publish: Vec<Forward>) -> Result<(), Report> {
    match &mut machine.nic {
        Some(Nic::User { forwards }) => *forwards = publish,
        _ if publish.is_empty() => {}
        _ => return Err(Report::usage("--publish needs --network user".to_owned())),
    }
    Ok(())
}

/// A name that no other instance has: `prefix` and some letters.
pub(super) fn generated_name(prefix: &str) -> Result<DomainName, Report> {
    // The file's name is the only randomness that is needed, and tempfile has it.
    let unique = tempfile::Builder::new()
        .prefix(prefix)
        .rand_bytes(6)
        .tempfile()
        .map_err(|error| Report::usage(format!("pass --name: {error}")))?;
    let name = unique.path().file_name().unwrap_or_default();
    name.to_string_lossy().parse().map_err(|_| Report {
        kind: Kind::Host,
        ..Report::usage("can not make up a name; pass --name".to_owned())
    })
}
