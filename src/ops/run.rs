//! An image booted now, by QEMU, for whoever waits for it.

use crate::files::{FileError, Lock, Wait};
use crate::hypervisor::qemu::{self, Guard, Qemu};
use crate::hypervisor::{DomainState, Hypervisor, HypervisorError, Stop};
use crate::instance::{InstanceError, NameLock, Record};
use crate::ops::accelerator::{self, Begun, Found};
use crate::ops::prepare::{IfDifferent, InstanceRequest, prepare};
use crate::ops::{Context, OpsError, Progress, blocking, instances};

/// A VM that is made and not started.
#[derive(Debug)]
pub struct Made {
    record: Record,
    run_lock: Lock,
    /// Nobody else starts it or takes it away before it is started here.
    name_lock: NameLock,
}

/// A VM that runs.
#[derive(Debug)]
pub struct Running {
    /// What it is.
    pub record: Record,
    /// Held while the `run` lives, so that its instance is not swept away.
    run_lock: Lock,
    /// Whether it is in doubt that the guest gets going.
    is_watched: bool,
    /// Ends it if this program is killed.
    guard: Guard,
}

/// Makes the instance. It is not there before this returns, so whoever is told to end may drop
/// this future.
pub async fn make(context: &Context<'_>, request: &InstanceRequest) -> Result<Made, OpsError> {
    instances::sweep(context).await;
    let prepared = prepare(context, request, Some(&Qemu), IfDifferent::Fail).await?;
    let (record, name_lock) = (prepared.record, prepared.lock);
    let name = record.spec.name.clone();
    let Some(run_lock) = context.instances.lock_run(&name)? else {
        return Err(OpsError::StillRunning { name });
    };
    Ok(Made {
        record,
        run_lock,
        name_lock,
    })
}

/// Starts the VM. If it does not start, an ephemeral instance is gone again.
///
/// Runs to its end: dropped halfway, it would leave a QEMU of which nobody knows.
pub async fn start(context: &Context<'_>, made: Made) -> Result<Running, OpsError> {
    let Made {
        record,
        run_lock,
        name_lock,
    } = made;
    let name = record.spec.name.clone();
    if Qemu.state(&record.spec).await? == DomainState::Running {
        // So it is not ours to end, nor a guard's.
        return Err(HypervisorError::Running { domain: name }.into());
    }
    let mut running = Running {
        guard: Guard::set(&record.spec)?,
        record,
        run_lock,
        is_watched: false,
    };
    let begun = accelerator::begin(context, &Qemu, &mut running.record).await;
    drop(name_lock);
    match begun {
        Ok(begun) => {
            running.is_watched = begun == Begun::ToBeWatched;
            (context.report)(Progress::Started(name));
            Ok(running)
        }
        Err(error) => {
            finish(context, running).await?;
            Err(error)
        }
    }
}

/// Waits until it shows whether the guest gets going, where that is in doubt. May be dropped.
pub async fn watch(running: &Running) -> Result<Option<Found>, OpsError> {
    if !running.is_watched {
        return Ok(None);
    }
    Ok(Some(accelerator::watch(&Qemu, &running.record.spec).await?))
}

/// Acts on what [`watch`] found: a VM that does not get going under KVM is started again without.
///
/// Runs to its end, as [`start`] does. If the VM does not start, an ephemeral instance is gone.
pub async fn settle(
    context: &Context<'_>,
    mut running: Running,
    found: Option<Found>,
) -> Result<Running, OpsError> {
    let Some(found) = found else {
        return Ok(running);
    };
    let settled = match lock(context, &running).await {
        Ok(_name_lock) => accelerator::settle(context, &Qemu, &mut running.record, found).await,
        Err(error) => Err(error),
    };
    match settled {
        Ok(()) => Ok(running),
        Err(error) => {
            finish(context, running).await?;
            Err(error)
        }
    }
}

/// Takes the lock of the instance's name. Errors if somebody has removed the instance.
async fn lock(context: &Context<'_>, running: &Running) -> Result<NameLock, OpsError> {
    let name = running.record.spec.name.clone();
    let (instances, locked) = (context.instances.clone(), name.clone());
    let lock = blocking(move || instances.lock(&locked, Wait::ForEver)).await?;
    if !context.instances.is_locked_by(&name, &running.run_lock)? {
        return Err(InstanceError::None { name }.into());
    }
    Ok(lock)
}

/// Ends a `run` whose VM goes on.
pub fn leave(running: Running) -> Result<(), OpsError> {
    release(running.guard, &running.record)
}

fn release(guard: Guard, record: &Record) -> Result<(), OpsError> {
    let released = guard.release();
    Ok(released.map_err(FileError::of("let go of", &record.spec.directory))?)
}

/// Ends a `run`: the VM is stopped, and an ephemeral instance removed. Where somebody has removed
/// the instance already, another that has its name by now is left alone.
pub async fn finish(context: &Context<'_>, running: Running) -> Result<(), OpsError> {
    let spec = &running.record.spec;
    let is_ours = || {
        context
            .instances
            .is_locked_by(&spec.name, &running.run_lock)
    };
    if !is_ours()? {
        return release(running.guard, &running.record);
    }
    Qemu.stop(spec, Stop::Force).await?;
    for line in qemu::words(spec).lines() {
        (context.report)(Progress::HypervisorSaid(line.to_owned()));
    }
    if running.record.ephemeral {
        // Nobody waits for long: whoever has it sees an instance that is in use.
        let _lock = context.instances.lock(&spec.name, Wait::ForEver)?;
        if is_ours()? {
            instances::forget(context, &spec.name).await?;
        }
    }
    drop(running.run_lock);
    release(running.guard, &running.record)
}
