//! A pulled image into an instance: the files that a VM opens, under a name.

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use crate::boot::{BootPlan, Rejected};
use crate::domain::{
    Accelerator, Bind, DomainName, DomainSpec, Forward, Machine, Memory, Nic, OemString,
    Provenance, Uuid,
};
use crate::files::{FileError, Wait};
use crate::firmware::FirmwareChoice;
use crate::host::AcceleratorChoice;
use crate::hypervisor::{Hypervisor, IfRunning, Owner, RunsAs, qemu};
use crate::image::Selected;
use crate::instance::{Draft, InstanceError, Instances, NameLock, Reach, Record};
use crate::oci::{Descriptor, Digest};
use crate::ops::accelerator::{self, AcceleratorWish};
use crate::ops::instances;
use crate::ops::planner::Planner;
use crate::ops::preflight;
use crate::ops::pull::{self, Extent};
use crate::ops::resolve::{ImageRequest, Resolved, resolve};
use crate::ops::ssh::{self, key, key::Key};
use crate::ops::{Context, OpsError, Progress, blocking, trust};
use crate::stage::{self, GuestFile, Inspected, Loaded, OwnFile, Parts, StagedBoot};

/// The machine that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineRequest {
    /// Number of virtual CPUs.
    pub cpus: NonZeroU32,
    /// Guest memory.
    pub memory: Memory,
    /// Size of the disk in bytes, if it is to be larger than the image's.
    pub disk_size_bytes: Option<u64>,
    /// KVM or TCG.
    pub accelerator: AcceleratorWish,
    /// The network card.
    pub nic: Option<Nic>,
    /// What the guest is given.
    pub guest_files: Vec<GuestFile>,
    /// What the guest reads in its SMBIOS tables.
    pub oem_strings: Vec<OemString>,
    /// Whether what firmware and guest tell besides their console is kept; under QEMU only.
    pub is_observed: bool,
    /// Whether a port of the host's leads to the guest's SSH server, and the guest is offered the
    /// store's key; it takes QEMU's own network.
    pub offers_ssh: bool,
    /// Directories of the host that the guest may mount.
    pub binds: Vec<Bind>,
    /// Words for QEMU's command line, as they are.
    pub qemu_arguments: Vec<String>,
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
    /// What its blobs are.
    pub inspected: Inspected,
    /// The UEFI firmware that a boot by firmware has.
    pub firmware: Option<FirmwareChoice>,
    /// The image and what was passed over for it.
    pub selected: Selected,
    /// Bytes that were fetched for it.
    pub fetched_bytes: u64,
    /// Whether it was made now, or was there.
    pub is_new: bool,
}

/// What to do with an instance of the same name that is different.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfDifferent {
    /// Leave it, and fail.
    Fail,
    /// Remove it if it does not run, once everything for the new one is there.
    Replace,
}

/// Pulls the image and makes the instance; one that is there and the same is left as it is. While
/// the lock is held, nobody else makes or removes it.
pub async fn prepare(
    context: &Context<'_>,
    request: &InstanceRequest,
    hypervisor: Option<&dyn Hypervisor>,
    if_different: IfDifferent,
) -> Result<(Prepared, NameLock), OpsError> {
    let (instances, name) = (context.instances.clone(), request.name.clone());
    // Asked before anything is fetched for it.
    let runs_as = runs_as(hypervisor).await?;
    preflight::store(context, runs_as)?;
    let lock = blocking(move || {
        instances.clear()?;
        instances.lock(&name, Wait::ForEver)
    })
    .await?;
    let (machine, resolved) = resolve_for(context, request).await?;
    let architecture = &request.image.wanted.architecture;
    let pulled = pull::pull_resolved(context, resolved, architecture, Extent::Needed).await?;
    let (plan, inspected) = pulled.plan?;
    let choice = accelerator(context, request, machine).await?;
    let key = match request.machine.offers_ssh {
        true => key::make(context).await?,
        false => None,
    };
    let (spec, own) = specify(
        context,
        request,
        (&plan, &inspected),
        &pulled.planner,
        (machine, choice.accelerator),
        runs_as,
        key.as_ref(),
    )?;
    let accelerator_asked = matches!(request.machine.accelerator, AcceleratorWish::Only(_));
    let record = Record {
        schema_version: 1,
        spec,
        hypervisor: hypervisor.map(Hypervisor::name),
        ephemeral: request.ephemeral,
        accelerator_asked,
        accelerator_reason: choice.reason.clone(),
        signatures: trust::kept(pulled.trust.as_ref()).to_vec(),
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
    let signatures = record.signatures.clone();
    let mut record = present.unwrap_or(record);
    if !is_new && !signatures.is_empty() && record.signatures != signatures {
        record.signatures = signatures;
        context.instances.update(&record)?;
    }
    if accelerator_asked && !record.accelerator_asked {
        // It has the one that is asked for, and keeps it from now on.
        record.accelerator_asked = true;
        record.accelerator_reason = choice.reason;
        context.instances.update(&record)?;
    }
    if is_new {
        let digests = pinned(&pulled.top.digest, &pulled.selected, &plan);
        make(context, &record, &own, runs_as.file_owner(), digests)?;
    }
    let prepared = Prepared {
        record,
        plan,
        inspected,
        firmware: pulled.planner.firmware().cloned(),
        selected: pulled.selected,
        fetched_bytes: pulled.fetched_bytes,
        is_new,
    };
    Ok((prepared, lock))
}

/// Says what [`prepare`] would make, without making it: the plan, the VM, and its own files.
pub async fn describe(
    context: &Context<'_>,
    request: &InstanceRequest,
    hypervisor: Option<&dyn Hypervisor>,
) -> Result<(BootPlan, DomainSpec, Vec<OwnFile>), OpsError> {
    let runs_as = runs_as(hypervisor).await?;
    let (machine, resolved) = resolve_for(context, request).await?;
    let planner = &resolved.planner;
    let (plan, inspected) = look(context, planner, request)?;
    let machine = (
        machine,
        accelerator(context, request, machine).await?.accelerator,
    );
    let inspected = (&plan, &inspected);
    let key = match request.machine.offers_ssh {
        true => key::find(&context.store)?,
        false => None,
    };
    let key = key.as_ref();
    let (spec, own) = specify(context, request, inspected, planner, machine, runs_as, key)?;
    Ok((plan, spec, own))
}

/// Who QEMU runs as; whoever prepares a VM for a hypervisor of his own runs it himself.
async fn runs_as(hypervisor: Option<&dyn Hypervisor>) -> Result<RunsAs, OpsError> {
    match hypervisor {
        Some(hypervisor) => Ok(hypervisor.runs_as().await?),
        None => Ok(RunsAs::Caller),
    }
}

/// Chooses the accelerator, and tells.
async fn accelerator(
    context: &Context<'_>,
    request: &InstanceRequest,
    machine: Machine,
) -> Result<AcceleratorChoice, OpsError> {
    let choice = accelerator::choose(context, machine, request.machine.accelerator).await?;
    (context.report)(Progress::Accelerator(choice.clone()));
    Ok(choice)
}

/// Resolves the image for the machine that is asked for.
async fn resolve_for(
    context: &Context<'_>,
    request: &InstanceRequest,
) -> Result<(Machine, Resolved), OpsError> {
    let machine = Machine::try_from(&request.image.wanted.architecture)?;
    let mut image = request.image.clone();
    if request.machine.ensure_console {
        let console = format!("console={}", machine.serial_console());
        image.boot.console = Some(console.parse().expect("a device's name is a command line"));
    }
    Ok((machine, resolve(context, &image).await?))
}

/// Plans, and inspects the blobs if they are all here; presumes what they are if not.
fn look(
    context: &Context<'_>,
    planner: &Planner,
    request: &InstanceRequest,
) -> Result<(BootPlan, Inspected), OpsError> {
    let mut rejected: Vec<Rejected> = Vec::new();
    loop {
        let plan = planner.plan(&rejected)?;
        let blobs = plan.method.blobs();
        if !blobs.iter().all(|blob| context.store.seems_to_have(blob)) {
            let inspected = stage::presume(&plan, planner.host());
            return Ok((plan, inspected));
        }
        let architecture = &request.image.wanted.architecture;
        let find = |blob: &Descriptor| context.store.peek(blob);
        match stage::inspect(&plan, architecture, planner.host(), &find) {
            Ok(inspected) => return Ok((plan, inspected)),
            Err(error) if error.rules_out_the_method() && planner.is_free() => {
                let (method, reason) = (plan.method.name(), error.to_string());
                rejected.push(Rejected { method, reason });
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// The complete VM.
fn specify(
    context: &Context<'_>,
    request: &InstanceRequest,
    (plan, inspected): (&BootPlan, &Inspected),
    planner: &Planner,
    (machine, accelerator): (Machine, Accelerator),
    runs_as: RunsAs,
    key: Option<&Key>,
) -> Result<(DomainSpec, Vec<OwnFile>), OpsError> {
    let mut guest_files = request.machine.guest_files.clone();
    if let Some(key) = key {
        let offering = key.files((plan, inspected), &guest_files);
        guest_files.extend(offering);
    }
    let parts = Parts {
        plan,
        inspected,
        machine,
        firmware: planner.firmware(),
        disk_size_bytes: request.machine.disk_size_bytes,
        guest_files: &guest_files,
        oem_strings: &request.machine.oem_strings,
        loaded: match runs_as {
            RunsAs::Caller | RunsAs::Given(_) => Loaded::Shared,
            RunsAs::Lent(_) => Loaded::Copied,
        },
    };
    let name = request.name.clone();
    let directory = context.instances.directory(&name);
    let staged = stage::describe(&parts, &context.store, &directory)?;
    let StagedBoot {
        boot,
        disks,
        fw_cfg,
        oem_strings,
        own,
        console_added,
        left_out,
    } = staged;
    if console_added {
        let parameter = format!("console={}", machine.serial_console());
        (context.report)(Progress::ConsoleAdded { parameter });
    }
    if let Some(words) = left_out {
        (context.report)(Progress::WordsLeftOut { words });
    }
    let image = &plan.image;
    let spec = DomainSpec {
        uuid: Uuid::of(&format!("ironboot {}", directory.display())),
        name,
        machine,
        accelerator,
        cpus: request.machine.cpus,
        memory: request.machine.memory,
        boot,
        disks,
        nic: nic(&request.machine),
        fw_cfg,
        oem_strings,
        is_observed: request.machine.is_observed,
        directory,
        provenance: Provenance {
            reference: image.reference.to_string(),
            index_digest: image.index_digest,
            manifest_digest: image.manifest_digest,
            method: plan.method.name().to_string(),
        },
        binds: request.machine.binds.clone(),
        qemu_arguments: request.machine.qemu_arguments.clone(),
    };
    Ok((spec, own))
}

/// The network card, with a way to the guest's SSH server if that is asked for and there is none yet.
fn nic(machine: &MachineRequest) -> Option<Nic> {
    let mut nic = machine.nic.clone();
    if let Some(Nic::User { forwards }) = &mut nic
        && machine.offers_ssh
        && forwards.iter().all(|forward| forward.guest != ssh::PORT)
    {
        forwards.push(Forward {
            host: None,
            guest: ssh::PORT,
        });
    }
    nic
}

/// What an instance keeps in the store: the documents and every blob that it boots with.
fn pinned(top: &Digest, selected: &Selected, plan: &BootPlan) -> BTreeSet<Digest> {
    plan.method
        .blobs()
        .iter()
        .map(|blob| blob.digest)
        .chain(selected.through.iter().copied())
        .chain([
            *top,
            plan.image.manifest_digest,
            plan.image.manifest.config.digest,
        ])
        .collect()
}

/// In what an instance that is there differs from the one that is wanted. Whichever accelerator it
/// has will do, unless one is asked for.
fn difference(present: &Record, wanted: &Record) -> Option<&'static str> {
    let (was, mut is) = (&present.spec, wanted.spec.clone());
    if !wanted.accelerator_asked {
        is.accelerator = was.accelerator;
    }
    if *was == is && present.hypervisor == wanted.hypervisor {
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
        (
            was.oem_strings != is.oem_strings,
            "its guest is given other SMBIOS strings",
        ),
        (was.binds != is.binds, "it shares other directories"),
        (
            was.qemu_arguments != is.qemu_arguments,
            "QEMU is given other arguments",
        ),
        (true, "it is another machine"),
    ];
    differences
        .iter()
        .find(|(differs, _)| *differs)
        .map(|(_, word)| *word)
}

/// Makes the instance: the pin first, so that its blobs stay, its directory last and in one step.
///
/// Never on another thread: whoever is told to end drops the future that waits for it, and a
/// directory half made and a pin would be left.
fn make(
    context: &Context<'_>,
    record: &Record,
    own: &[OwnFile],
    owner: Option<Owner>,
    digests: BTreeSet<Digest>,
) -> Result<(), OpsError> {
    let name = &record.spec.name;
    let reach = match record.hypervisor.as_deref() {
        Some(qemu::NAME) => Reach::Owner,
        _ => Reach::Everybody,
    };
    context.store.pin(name.as_str(), digests)?;
    let draft = draft(&context.instances, own, owner);
    let made = draft.and_then(|draft| Ok(draft.commit(&context.instances, record, reach)?));
    if made.is_err() {
        // The reference keeps what it kept.
        context.store.unpin(name.as_str())?;
    }
    made
}

/// Makes the VM's own files, and gives them to `owner`.
fn draft(instances: &Instances, own: &[OwnFile], owner: Option<Owner>) -> Result<Draft, OpsError> {
    let draft = instances.draft()?;
    let made = stage::create(own, draft.path())?;
    if let Some(Owner { uid, gid }) = owner {
        for path in made {
            std::os::unix::fs::chown(&path, Some(uid), Some(gid))
                .map_err(FileError::of("change the owner of", &path))?;
        }
    }
    Ok(draft)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::samples::direct;

    fn record(accelerator: Accelerator, accelerator_asked: bool) -> Record {
        Record {
            schema_version: 1,
            spec: DomainSpec {
                accelerator,
                ..direct(Machine::Amd64)
            },
            hypervisor: None,
            ephemeral: false,
            accelerator_asked,
            accelerator_reason: String::new(),
            signatures: Vec::new(),
        }
    }

    #[test]
    fn any_accelerator_is_the_same_unless_one_is_asked_for() {
        use Accelerator::{Kvm, Tcg};
        let other = Some("it has another accelerator");
        for (present, wanted, expected) in [
            (record(Tcg, true), record(Kvm, false), None),
            (record(Kvm, false), record(Tcg, false), None),
            (record(Kvm, false), record(Kvm, true), None),
            (record(Kvm, false), record(Tcg, true), other),
        ] {
            assert_eq!(difference(&present, &wanted), expected);
        }
    }
}
