//! The accelerator that heals itself: KVM where it seems of use, watched at the first real boot,
//! and QEMU's own translator where no guest gets going under it.
//!
//! There are hosts on which `/dev/kvm` opens, VMs are created, and every guest hangs or stops at
//! its first odd instruction; nothing short of a real boot tells. What a boot has told is kept in
//! the store, for as long as kernel, CPU, KVM's modules and QEMU stay what they were:
//!
//! ```text
//! <store>/accelerator.json
//! ```

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::domain::{Accelerator, Boot, DomainSpec, Firmware, Machine};
use crate::host::AcceleratorChoice;
use crate::hypervisor::qemu::{self, version::version};
use crate::hypervisor::{DomainState, Hypervisor, HypervisorError, Stop, Trouble};
use crate::instance::Record;
use crate::ops::{Context, OpsError, Progress};
use crate::store::Store;

/// How often a VM is looked at while it is watched.
const POLL: Duration = Duration::from_millis(50);
/// How long a kernel that has a serial console may stay silent; under KVM it takes a second.
const KERNEL_PATIENCE: Duration = Duration::from_secs(15);
/// How long UEFI firmware may stay silent, which prints on the serial port before it boots.
const FIRMWARE_PATIENCE: Duration = Duration::from_secs(30);
/// How long what may be silent for good is watched for trouble.
const SILENT_PATIENCE: Duration = Duration::from_secs(3);

/// How long QEMU may take to say its version.
const VERSION_PATIENCE: Duration = Duration::from_secs(5);

/// What accelerator the caller asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AcceleratorWish {
    /// KVM where it seems of use, and QEMU's translator otherwise or if no guest gets going.
    #[default]
    Auto,
    /// The same, but KVM even where it seems of no use.
    TryKvm,
    /// This one, whatever comes of it.
    Only(Accelerator),
}

/// What a boot under KVM has told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The machine that was booted.
    pub machine: Machine,
    /// The state of the host at that time: kernel, CPU, KVM's modules, QEMU.
    pub host: String,
    /// Whether a guest got going.
    pub works: bool,
    /// What was seen.
    pub reason: String,
    /// When, in seconds since 1970.
    pub decided_at: u64,
}

/// How a watch ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Watched {
    /// The guest has printed something.
    Lives,
    /// Nothing was seen that tells whether it was the accelerator.
    Unknown,
    /// It does not get going.
    Broken(String),
}

/// Chooses the accelerator for `machine`, by what was asked for, what the host has, and what
/// earlier boots have told.
pub async fn choose(
    context: &Context<'_>,
    machine: Machine,
    wish: AcceleratorWish,
) -> Result<AcceleratorChoice, OpsError> {
    let host = &context.host;
    let choice = match wish {
        AcceleratorWish::Only(accelerator) => {
            return host
                .accelerator(machine, Some(accelerator))
                .map_err(|reason| OpsError::NoKvm { reason });
        }
        AcceleratorWish::TryKvm if host.is_native(machine) => AcceleratorChoice {
            accelerator: Accelerator::Kvm,
            reason: "to be tried, as was asked for".to_owned(),
        },
        AcceleratorWish::Auto | AcceleratorWish::TryKvm => host
            .accelerator(machine, None)
            .map_err(|reason| OpsError::NoKvm { reason })?,
    };
    if choice.accelerator == Accelerator::Tcg {
        return Ok(choice);
    }
    Ok(match verdict(context, machine).await {
        Some(Verdict {
            works: false,
            reason,
            ..
        }) => AcceleratorChoice {
            accelerator: Accelerator::Tcg,
            reason: format!("KVM failed on this host before: {reason}"),
        },
        _ => choice,
    })
}

/// Starts a VM that is defined. Where KVM was taken without being asked for, the boot is watched;
/// if no guest gets going, the VM is started again, once, by QEMU's translator, and `record` says
/// so, here and on disk. The caller holds the name's lock.
pub async fn start(
    context: &Context<'_>,
    hypervisor: &dyn Hypervisor,
    record: &mut Record,
) -> Result<(), OpsError> {
    match begin(context, hypervisor, record).await? {
        Begun::Settled => Ok(()),
        Begun::ToBeWatched => {
            let broken = watch(hypervisor, &record.spec).await?;
            settle(context, hypervisor, record, broken).await
        }
    }
}

/// Whether a VM that was started is to be watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    Settled,
    ToBeWatched,
}

/// What a watch has found, for whoever acts on it.
#[derive(Debug)]
pub struct Found(Watched);

/// Starts a VM. One that KVM refuses is started by QEMU's translator, if KVM was not asked for. The
/// caller holds the name's lock.
pub(super) async fn begin(
    context: &Context<'_>,
    hypervisor: &dyn Hypervisor,
    record: &mut Record,
) -> Result<Begun, OpsError> {
    let started = hypervisor.start(&record.spec).await;
    let is_free = record.spec.accelerator == Accelerator::Kvm && !record.accelerator_asked;
    if !is_free {
        return Ok(started.map(|()| Begun::Settled)?);
    }
    match started {
        Ok(()) => {
            let verdict = verdict(context, record.spec.machine).await;
            Ok(match verdict {
                Some(Verdict { works: true, .. }) => Begun::Settled,
                _ => Begun::ToBeWatched,
            })
        }
        Err(error @ (HypervisorError::QemuStart { .. } | HypervisorError::Libvirt { .. })) => {
            let found = Found(Watched::Broken(error.to_string()));
            settle(context, hypervisor, record, found).await?;
            Ok(Begun::Settled)
        }
        Err(error) => Err(error.into()),
    }
}

/// Watches a VM that was just started until it prints something, fails, or has had its time.
pub(super) async fn watch(
    hypervisor: &dyn Hypervisor,
    spec: &DomainSpec,
) -> Result<Found, HypervisorError> {
    let (patience, silence_tells) = match &spec.boot {
        Boot::Kernel { command_line, .. } => {
            let serial = spec.machine.serial_console();
            // The kernel prints on all that it is given, not only on the last.
            let mut consoles = command_line.values("console");
            if consoles.any(|console| console.starts_with(serial)) {
                (KERNEL_PATIENCE, true)
            } else {
                (SILENT_PATIENCE, false)
            }
        }
        Boot::Uki { .. } | Boot::Disk(Firmware::Uefi(_)) => (FIRMWARE_PATIENCE, true),
        // A BIOS prints on the screen, and so may what it boots.
        Boot::Disk(Firmware::Bios) => (SILENT_PATIENCE, false),
    };
    let log = spec.console_log();
    let deadline = Instant::now() + patience;
    loop {
        match hypervisor.trouble(spec).await? {
            Some(Trouble::Internal(words)) => return Ok(Found(Watched::Broken(words))),
            // Whoever looks at the console is told.
            Some(Trouble::OfTheVm(_)) => return Ok(Found(Watched::Unknown)),
            None => {}
        }
        // The state is asked for before the log is looked at, so that no last word is missed.
        let has_ended = matches!(
            hypervisor.state(spec).await?,
            DomainState::Stopped | DomainState::Unknown
        );
        if fs::metadata(&log).is_ok_and(|log| log.len() > 0) {
            return Ok(Found(Watched::Lives));
        }
        if has_ended {
            // Maybe by itself, and maybe by somebody who would not wait for one that hangs.
            return Ok(Found(Watched::Unknown));
        }
        if Instant::now() >= deadline {
            let seconds = patience.as_secs();
            return Ok(Found(if silence_tells {
                Watched::Broken(format!("the guest printed nothing within {seconds} s"))
            } else {
                Watched::Unknown
            }));
        }
        sleep(POLL).await;
    }
}

/// Acts on what a watch has found: remembers it, and starts the VM again if it does not get going.
/// The caller holds the name's lock, as the record may be replaced.
///
/// Runs to its end: dropped halfway, it would leave a VM of which nobody knows.
pub(super) async fn settle(
    context: &Context<'_>,
    hypervisor: &dyn Hypervisor,
    record: &mut Record,
    found: Found,
) -> Result<(), OpsError> {
    let machine = record.spec.machine;
    let reason = match found.0 {
        Watched::Unknown => return Ok(()),
        Watched::Lives => {
            let reason = "a guest ran under it".to_owned();
            remember(context, machine, true, reason).await;
            return Ok(());
        }
        Watched::Broken(reason) => reason,
    };
    hypervisor.stop(&record.spec, Stop::Force).await?;
    let choice = AcceleratorChoice {
        accelerator: Accelerator::Tcg,
        reason: format!("KVM failed: {reason}"),
    };
    let mut other = record.clone();
    other.spec.accelerator = choice.accelerator;
    other.accelerator_reason.clone_from(&choice.reason);
    // The record first: it is what is meant, and the next start or define makes the hypervisor agree
    // with it, should we not get that far.
    context.instances.update(&other)?;
    hypervisor.define(&other.spec).await?;
    (context.report)(Progress::Accelerator(choice));
    if let Err(error) = hypervisor.start(&other.spec).await {
        // It was not KVM's fault, so the VM stays what it was.
        context.instances.update(record)?;
        hypervisor.define(&record.spec).await?;
        return Err(error.into());
    }
    *record = other;
    // Only now is it known that it was KVM's fault.
    remember(context, machine, false, reason).await;
    Ok(())
}

fn path(context: &Context<'_>) -> PathBuf {
    context.store.root().join("accelerator.json")
}

/// The verdict on KVM for `machine`, if there is one of this state of the host.
pub async fn verdict(context: &Context<'_>, machine: Machine) -> Option<Verdict> {
    let host = host_state(context, machine).await;
    read(context)
        .into_iter()
        .find(|verdict| verdict.machine == machine && verdict.host == host)
}

/// All verdicts; none from a file that is not there or not readable, which is as good as new.
fn read(context: &Context<'_>) -> Vec<Verdict> {
    let path = path(context);
    // A pipe in its place would be waited for.
    if !fs::symlink_metadata(&path).is_ok_and(|file| file.is_file()) {
        return Vec::new();
    }
    let verdicts = Store::read_record(&path);
    verdicts.ok().flatten().unwrap_or_default()
}

/// Keeps a verdict. Where that can not be done it is told, and the VM goes on.
pub(super) async fn remember(context: &Context<'_>, machine: Machine, works: bool, reason: String) {
    let mut verdicts = read(context);
    // One for each machine: the host is not what it was any more.
    verdicts.retain(|verdict| verdict.machine != machine);
    verdicts.push(Verdict {
        machine,
        host: host_state(context, machine).await,
        works,
        reason,
        decided_at: context.now,
    });
    let kept = context.store.write_record(&path(context), &verdicts);
    if let Err(error) = kept {
        let cause = error.source().map(|source| format!(": {source}"));
        let reason = format!("{error}{}", cause.unwrap_or_default());
        (context.report)(Progress::VerdictLost { reason });
    }
}

/// Everything that a verdict depends on.
async fn host_state(context: &Context<'_>, machine: Machine) -> String {
    let version = version(qemu::args::program(machine), VERSION_PATIENCE).await;
    let version = version.unwrap_or_else(|_| "none".to_owned());
    format!("{}; QEMU {version}", context.host.kvm_state)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::qemu::Qemu;
    use crate::hypervisor::samples::direct;

    #[tokio::test]
    async fn of_a_guest_that_has_ended_only_what_it_printed_tells() {
        let directory = tempfile::tempdir().unwrap();
        let mut spec = direct(Machine::Amd64);
        spec.directory = directory.path().to_owned();
        for (printed, expected) in [
            (None, Watched::Unknown),
            (Some(""), Watched::Unknown),
            (Some("Linux"), Watched::Lives),
        ] {
            if let Some(printed) = printed {
                fs::write(spec.console_log(), printed).unwrap();
            }
            let Found(watched) = watch(&Qemu, &spec).await.unwrap();
            assert_eq!(watched, expected, "{printed:?}");
        }
    }
}
