//! A pulled image into an instance: the files that a VM opens, under a name.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use crate::boot::{BootMethod, BootPlan, PlanError};
use crate::domain::{Accelerator, DomainName, DomainSpec, Machine, Memory, Nic, Provenance, Uuid};
use crate::files::{FileError, Wait};
use crate::firmware::{self, FirmwareChoice, UefiRequest};
use crate::hypervisor::{Hypervisor, Owner};
use crate::image::Selected;
use crate::instance::{InstanceError, NameLock, Record};
use crate::oci::{Descriptor, Digest};
use crate::ops::instances::{self, IfRunning};
use crate::ops::pull::{self, Extent};
use crate::ops::resolve::{ImageRequest, Resolved, resolve};
use crate::ops::{Context, OpsError, Progress, blocking};
use crate::stage::{self, GuestFile, Inspected, Parts, StagedBoot};

/// The machine that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRequest {
    /// Number of virtual CPUs.
    pub cpus: NonZeroU32,
    /// Guest memory.
    pub memory: Memory,
    /// Size of the disk in bytes, if it is to be larger than the image's.
    pub disk_size_bytes: Option<u64>,
    /// KVM or TCG; none leaves the choice to the host.
    pub accelerator: Option<Accelerator>,
    /// The network card.
    pub nic: Option<Nic>,
    /// What the guest is given.
    pub guest_files: Vec<GuestFile>,
    /// Whether a command line without `console=` gets one for the serial port.
    pub ensure_console: bool,
}

/// What to make of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceRequest {
    /// The name.
    pub name: DomainName,
    /// The image.
    pub image: ImageRequest,
    /// The machine.
    pub machine: MachineRequest,
    /// Whether it goes away with the `run` that made it.
    pub ephemeral: bool,
}

/// An instance that is ready.
#[derive(Debug)]
pub struct Prepared {
    /// What it is.
    pub record: Record,
    /// How it boots.
    pub plan: BootPlan,
    /// The image and what was passed over for it.
    pub selected: Selected,
    /// Bytes that were fetched for it.
    pub fetched_bytes: u64,
    /// Whether it was made now, or was there.
    pub is_new: bool,
    /// Held against everybody else who would make or remove it.
    pub lock: NameLock,
}

/// What to do with an instance of the same name that is different.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfDifferent {
    /// Leave it, and fail.
    Fail,
    /// Remove it if it does not run, once everything for the new one is there.
    Replace,
}

/// Pulls the image and makes the instance; one that is there and the same is left as it is.
pub async fn prepare(
    context: &Context<'_>,
    request: &InstanceRequest,
    hypervisor: Option<&dyn Hypervisor>,
    if_different: IfDifferent,
) -> Result<Prepared, OpsError> {
    let (instances, name) = (context.instances.clone(), request.name.clone());
    let lock = blocking(move || {
        instances.clear()?;
        instances.lock(&name, Wait::ForEver)
    })
    .await?;
    let (machine, resolved) = resolve_for(context, request).await?;
    let architecture = &request.image.wanted.architecture;
    let pulled = pull::pull_resolved(context, resolved, architecture, Extent::Needed).await?;
    let plan = pulled.plan?;
    let spec = specify(context, request, &plan, &pulled.inspected, machine)?;
    let record = Record {
        schema_version: 1,
        spec,
        hypervisor: hypervisor.map(Hypervisor::name),
        ephemeral: request.ephemeral,
    };
    let mut present = context.instances.find(&request.name)?;
    let difference = present
        .as_ref()
        .and_then(|present| difference(present, &record));
    match (difference, &present, if_different) {
        (Some(_), Some(old), IfDifferent::Replace) => {
            instances::remove_locked(context, old, IfRunning::Fail).await?;
            present = None;
        }
        (Some(difference), ..) => {
            let name = request.name.clone();
            return Err(InstanceError::Different { name, difference }.into());
        }
        (None, ..) => {}
    }
    let is_new = present.is_none();
    // The one that is there stays what it is: a `run` that goes away does not take with it what it
    // did not make.
    let record = present.unwrap_or(record);
    if is_new {
        let owner = match hypervisor {
            Some(hypervisor) => hypervisor.file_owner().await?,
            None => None,
        };
        let digests = pinned(&pulled.top.digest, &plan);
        make(
            context,
            &record,
            &request.machine.guest_files,
            owner,
            digests,
        )?;
    }
    Ok(Prepared {
        record,
        plan,
        selected: pulled.selected,
        fetched_bytes: pulled.fetched_bytes,
        is_new,
        lock,
    })
}

/// Says what [`prepare`] would make, without making it.
pub async fn describe(
    context: &Context<'_>,
    request: &InstanceRequest,
) -> Result<(BootPlan, DomainSpec), OpsError> {
    let (machine, resolved) = resolve_for(context, request).await?;
    let plan = resolved.plan?;
    let inspected = look(context, &plan, request)?;
    let spec = specify(context, request, &plan, &inspected, machine)?;
    Ok((plan, spec))
}

/// Resolves the image for the machine that is asked for.
async fn resolve_for(
    context: &Context<'_>,
    request: &InstanceRequest,
) -> Result<(Machine, Resolved), OpsError> {
    let machine = Machine::try_from(&request.image.wanted.architecture)?;
    let mut resolved = resolve(context, &request.image).await?;
    if request.machine.ensure_console {
        add_console(context, &mut resolved.plan, machine)?;
    }
    Ok((machine, resolved))
}

/// Inspects the blobs if they are all here, and presumes what they are if not.
fn look(
    context: &Context<'_>,
    plan: &BootPlan,
    request: &InstanceRequest,
) -> Result<Inspected, OpsError> {
    let blobs = plan.method.blobs();
    if !blobs.iter().all(|blob| context.store.seems_to_have(blob)) {
        return Ok(stage::presume(plan));
    }
    let architecture = &request.image.wanted.architecture;
    let find = |blob: &Descriptor| context.store.peek(blob);
    Ok(stage::inspect(plan, architecture, &find)?)
}

/// Adds a `console=` for the serial port where the command line of direct boot has none.
fn add_console(
    context: &Context<'_>,
    plan: &mut Result<BootPlan, PlanError>,
    machine: Machine,
) -> Result<(), PlanError> {
    if let Ok(plan) = plan
        && let BootMethod::Direct(direct) = &mut plan.method
        && !direct.command_line.has_parameter("console")
    {
        let parameter = format!("console={}", machine.serial_console());
        let words = parameter.parse().map_err(PlanError::Append)?;
        direct.command_line = direct
            .command_line
            .append(&words)
            .map_err(PlanError::Append)?;
        (context.report)(Progress::ConsoleAdded { parameter });
    }
    Ok(())
}

fn find_firmware(
    context: &Context<'_>,
    plan: &BootPlan,
    machine: Machine,
) -> Result<Option<FirmwareChoice>, OpsError> {
    match plan.method {
        BootMethod::Direct(_) => Ok(None),
        BootMethod::Disk { .. } => {
            let survey = firmware::survey(&context.firmware_directories, machine)?;
            Ok(Some(survey.choose(&UefiRequest::Plain)?))
        }
    }
}

/// The complete VM.
fn specify(
    context: &Context<'_>,
    request: &InstanceRequest,
    plan: &BootPlan,
    inspected: &Inspected,
    machine: Machine,
) -> Result<DomainSpec, OpsError> {
    let firmware = find_firmware(context, plan, machine)?;
    let parts = Parts {
        plan,
        inspected,
        firmware: firmware.as_ref(),
        disk_size_bytes: request.machine.disk_size_bytes,
        guest_files: &request.machine.guest_files,
    };
    let name = request.name.clone();
    let directory = context.instances.directory(&name);
    let staged = stage::describe(&parts, &context.store, &directory)?;
    let StagedBoot {
        boot,
        disks,
        fw_cfg,
    } = staged;
    let choice = context
        .host
        .accelerator(machine, request.machine.accelerator)
        .map_err(|reason| OpsError::NoKvm { reason })?;
    (context.report)(Progress::Accelerator(choice.clone()));
    let image = &plan.image;
    Ok(DomainSpec {
        uuid: Uuid::of(&format!("ironboot {}", directory.display())),
        name,
        machine,
        accelerator: choice.accelerator,
        cpus: request.machine.cpus,
        memory: request.machine.memory,
        boot,
        disks,
        nic: request.machine.nic.clone(),
        fw_cfg,
        oem_strings: Vec::new(),
        directory,
        provenance: Provenance {
            reference: image.reference.to_string(),
            index_digest: image.index_digest,
            manifest_digest: image.manifest_digest,
            method: plan.method.name().to_string(),
        },
    })
}

/// What an instance keeps in the store: the documents and every blob that it boots with.
fn pinned(top: &Digest, plan: &BootPlan) -> BTreeSet<Digest> {
    plan.method
        .blobs()
        .iter()
        .map(|blob| blob.digest)
        .chain([
            *top,
            plan.image.manifest_digest,
            plan.image.manifest.config.digest,
        ])
        .collect()
}

/// In what an instance that is there differs from the one that is wanted.
fn difference(present: &Record, wanted: &Record) -> Option<&'static str> {
    let (was, is) = (&present.spec, &wanted.spec);
    if was == is && present.hypervisor == wanted.hypervisor {
        return None;
    }
    let differences = [
        (
            was.provenance.manifest_digest != is.provenance.manifest_digest,
            "it was made from another image",
        ),
        (
            present.hypervisor != wanted.hypervisor,
            "it belongs to another hypervisor",
        ),
        (was.boot != is.boot, "it boots otherwise"),
        (was.disks != is.disks, "it has other disks"),
        (was.cpus != is.cpus, "it has another number of CPUs"),
        (was.memory != is.memory, "it has another amount of memory"),
        (
            was.accelerator != is.accelerator,
            "it has another accelerator",
        ),
        (was.nic != is.nic, "it has another network card"),
        (was.fw_cfg != is.fw_cfg, "its guest is given other files"),
        (true, "it is another machine"),
    ];
    differences
        .iter()
        .find(|(differs, _)| *differs)
        .map(|(_, word)| *word)
}

/// Makes the instance: the pin first, so that its blobs stay, its directory last and in one step.
fn make(
    context: &Context<'_>,
    record: &Record,
    guest_files: &[GuestFile],
    owner: Option<Owner>,
    digests: BTreeSet<Digest>,
) -> Result<(), OpsError> {
    let name = &record.spec.name;
    context.store.pin(name.as_str(), digests)?;
    let result = (|| {
        let draft = context.instances.draft()?;
        let own = stage::create(&record.spec, guest_files, draft.path())?;
        if let Some(Owner { uid, gid }) = owner {
            for path in own {
                std::os::unix::fs::chown(&path, Some(uid), Some(gid))
                    .map_err(FileError::of("change the owner of", &path))?;
            }
        }
        draft.commit(&context.instances, record)?;
        Ok(())
    })();
    if result.is_err() {
        context.store.unpin(name.as_str())?;
    }
    result
}
