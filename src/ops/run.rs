//! An image booted now, by QEMU, for whoever waits for it.

use std::pin::pin;

use tokio::time::Instant;

use crate::domain::DomainSpec;
use crate::files::{FileError, Lock, Wait};
use crate::hypervisor::qemu::{self, Guard, Qemu};
use crate::hypervisor::{DomainState, Hypervisor, HypervisorError, Stop};
use crate::instance::{NameLock, Record};
use crate::ops::accelerator::{self, Begun, Found};
use crate::ops::prepare::{IfDifferent, InstanceRequest, Prepared, prepare};
use crate::ops::{Context, OpsError, Progress, blocking, instances};

/// A VM that is made and not started.
#[derive(Debug)]
struct Made {
    prepared: Prepared,
    run_lock: Lock,
    /// Nobody else starts it or takes it away before it is started here.
    name_lock: NameLock,
}

/// A VM that runs.
#[derive(Debug)]
pub struct Running {
    /// What it is, and of what.
    pub prepared: Prepared,
    /// When its QEMU was started.
    started: Instant,
    /// Held while the `run` lives, so that its instance is not swept away.
    run_lock: Lock,
    /// Whether it is in doubt that the guest gets going.
    is_watched: bool,
    /// Ends it if this program is killed.
    guard: Guard,
}

impl Running {
    /// The VM.
    #[must_use]
    pub fn spec(&self) -> &DomainSpec {
        &self.prepared.record.spec
    }

    /// When its QEMU was started, the last time if there were several.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }
}

/// What became of a VM that was to be booted.
#[derive(Debug)]
pub enum Booted<T> {
    /// It runs.
    Running(Box<Running>),
    /// `end` came before it did, and nothing is left of it.
    Ended(T),
}

/// Makes the instance and starts it; by QEMU's translator, if it does not get going under KVM.
///
/// Runs to its end: dropped halfway, it would leave a QEMU of which nobody knows. What ends it before
/// its time is `end` alone.
pub async fn boot<T>(
    context: &Context<'_>,
    request: &InstanceRequest,
    end: impl Future<Output = T>,
) -> Result<Booted<T>, OpsError> {
    let mut end = pin!(end);
    let made = tokio::select! {
        made = make(context, request) => made?,
        told = &mut end => return Ok(Booted::Ended(told)),
    };
    let running = start(context, made).await?;
    let watched = tokio::select! {
        found = watch(&running) => found,
        told = &mut end => {
            finish(context, running).await?;
            return Ok(Booted::Ended(told));
        }
    };
    match watched {
        Ok(found) => {
            let running = settle(context, running, found).await?;
            Ok(Booted::Running(Box::new(running)))
        }
        Err(error) => {
            finish(context, running).await?;
            Err(error)
        }
    }
}

/// Makes the instance. It is not there before this returns, so whoever is told to end may drop
/// this future.
async fn make(context: &Context<'_>, request: &InstanceRequest) -> Result<Made, OpsError> {
    instances::sweep(context).await;
    let (prepared, name_lock) = prepare(context, request, Some(&Qemu), IfDifferent::Fail).await?;
    let name = prepared.record.spec.name.clone();
    let Some(run_lock) = context.instances.lock_run(&name)? else {
        return Err(OpsError::StillRunning { name });
    };
    Ok(Made {
        prepared,
        run_lock,
        name_lock,
    })
}

/// Starts the VM. If it does not start, an ephemeral instance is gone again.
///
/// Runs to its end, as [`boot`] does.
async fn start(context: &Context<'_>, made: Made) -> Result<Running, OpsError> {
    let Made {
        prepared,
        run_lock,
        name_lock,
    } = made;
    let spec = &prepared.record.spec;
    let name = spec.name.clone();
    if Qemu.state(spec).await? == DomainState::Running {
        // So it is not ours to end, nor a guard's.
        return Err(HypervisorError::Running { domain: name }.into());
    }
    let mut running = Running {
        guard: Guard::set(spec)?,
        prepared,
        started: Instant::now(),
        run_lock,
        is_watched: false,
    };
    let begun = accelerator::begin(context, &Qemu, &mut running.prepared.record).await;
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
async fn watch(running: &Running) -> Result<Option<Found>, OpsError> {
    if !running.is_watched {
        return Ok(None);
    }
    Ok(Some(accelerator::watch(&Qemu, running.spec()).await?))
}

/// Acts on what [`watch`] found: a VM that does not get going under KVM is started again without.
///
/// Runs to its end, as [`start`] does. If the VM does not start, an ephemeral instance is gone.
async fn settle(
    context: &Context<'_>,
    mut running: Running,
    found: Option<Found>,
) -> Result<Running, OpsError> {
    let Some(found) = found else {
        return Ok(running);
    };
    let (was, now) = (running.spec().accelerator, Instant::now());
    let settled = match lock(context, &running).await {
        Ok(_name_lock) => {
            accelerator::settle(context, &Qemu, &mut running.prepared.record, found).await
        }
        Err(error) => Err(error),
    };
    match settled {
        Ok(()) => {
            if running.spec().accelerator != was {
                running.started = now;
            }
            Ok(running)
        }
        Err(error) => {
            finish(context, running).await?;
            Err(error)
        }
    }
}

/// Takes the lock of the instance's name. Errors if somebody has removed the instance.
async fn lock(context: &Context<'_>, running: &Running) -> Result<NameLock, OpsError> {
    let name = running.spec().name.clone();
    let (instances, locked) = (context.instances.clone(), name.clone());
    let lock = blocking(move || instances.lock(&locked, Wait::ForEver)).await?;
    if !context.instances.is_locked_by(&name, &running.run_lock)? {
        return Err(context.instances.none(&name).into());
    }
    Ok(lock)
}

/// Ends a `run` whose VM goes on.
pub fn leave(running: Running) -> Result<(), OpsError> {
    release(running.guard, &running.prepared.record)
}

fn release(guard: Guard, record: &Record) -> Result<(), OpsError> {
    let released = guard.release();
    Ok(released.map_err(FileError::of("let go of", &record.spec.directory))?)
}

/// Ends a `run`: the VM is stopped, and an ephemeral instance removed; tells what it was. Where
/// somebody has removed the instance already, another that has its name by now is left alone.
pub async fn finish(context: &Context<'_>, running: Running) -> Result<Prepared, OpsError> {
    let spec = running.spec();
    let is_ours = || {
        context
            .instances
            .is_locked_by(&spec.name, &running.run_lock)
    };
    if !is_ours()? {
        release(running.guard, &running.prepared.record)?;
        return Ok(running.prepared);
    }
    Qemu.stop(spec, Stop::Force).await?;
    for line in qemu::words(spec).lines() {
        (context.report)(Progress::HypervisorSaid(line.to_owned()));
    }
    if running.prepared.record.ephemeral {
        // Nobody waits for long: whoever has it sees an instance that is in use.
        let _lock = context.instances.lock(&spec.name, Wait::ForEver)?;
        if is_ours()? {
            instances::forget(context, &spec.name).await?;
        }
    }
    drop(running.run_lock);
    release(running.guard, &running.prepared.record)?;
    Ok(running.prepared)
}
