//! An image booted now, by QEMU, for whoever waits for it.

use std::time::Duration;

use crate::domain::{DomainName, DomainSpec};
use crate::files::Lock;
use crate::hypervisor::qemu::Qemu;
use crate::hypervisor::{Hypervisor, Stop};
use crate::ops::prepare::{InstanceRequest, Prepared, prepare};
use crate::ops::{Context, OpsError, Progress, instances};

/// A VM that runs.
#[derive(Debug)]
pub struct Running {
    /// What it is.
    pub prepared: Prepared,
    /// Held while the `run` lives.
    run_lock: Option<Lock>,
}

/// Makes the instance and starts it. If it does not start, an ephemeral instance is gone again.
pub async fn start(context: &Context<'_>, request: &InstanceRequest) -> Result<Running, OpsError> {
    instances::sweep(context).await?;
    let prepared = prepare(context, request, Some(&Qemu)).await?;
    let spec = prepared.record.spec.clone();
    let run_lock = context.instances.lock_run(&spec.name)?;
    if run_lock.is_none() {
        return Err(OpsError::StillRunning { name: spec.name });
    }
    let running = Running { prepared, run_lock };
    match Qemu.start(&spec).await {
        Ok(()) => {
            (context.report)(Progress::Started(spec.name));
            Ok(running)
        }
        Err(error) => {
            finish(context, running).await?;
            Err(error.into())
        }
    }
}

/// Ends a `run`: the VM is stopped, and an ephemeral instance removed.
pub async fn finish(context: &Context<'_>, running: Running) -> Result<(), OpsError> {
    let record = &running.prepared.record;
    Qemu.stop(&record.spec, Stop::Force).await?;
    if record.ephemeral {
        forget(context, &record.spec.name)?;
    }
    drop(running.run_lock);
    Ok(())
}

/// Removes an instance of QEMU's that does not run.
pub(super) fn forget(context: &Context<'_>, name: &DomainName) -> Result<(), OpsError> {
    context.instances.remove(name)?;
    Ok(context.store.unpin(name.as_str())?)
}

/// Waits until the VM has stopped.
pub async fn wait(spec: &DomainSpec) -> Result<(), OpsError> {
    while Qemu.state(spec).await? == crate::hypervisor::DomainState::Running {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
