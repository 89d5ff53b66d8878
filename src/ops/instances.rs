//! The instances: list, start, stop, remove.

use crate::domain::DomainName;
use crate::files::Wait;
use crate::hypervisor::{DomainState, Hypervisor, HypervisorError, Stop, qemu};
use crate::instance::{InstanceError, Record};
use crate::ops::{Context, OpsError, Progress, accelerator, blocking, trust, users};

/// An instance and what it does.
#[derive(Debug)]
pub struct Listed {
    /// What it is.
    pub record: Record,
    /// What it does; the reason where that can not be told.
    pub state: Result<DomainState, HypervisorError>,
}

/// What to do with an instance that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfRunning {
    /// Leave it, and fail.
    Fail,
    /// Pull its plug.
    Stop,
}

/// All instances.
pub async fn list(context: &Context<'_>) -> Result<Vec<Listed>, OpsError> {
    let mut listed = Vec::new();
    for name in context.instances.names()? {
        // It may have been removed since.
        if let Some(record) = context.instances.find(&name)? {
            let state = state(context, &record).await;
            listed.push(Listed { record, state });
        }
    }
    Ok(listed)
}

async fn state(context: &Context<'_>, record: &Record) -> Result<DomainState, HypervisorError> {
    match &record.hypervisor {
        Some(name) => (context.open_hypervisor)(name)?.state(&record.spec).await,
        None => Ok(DomainState::Unknown),
    }
}

/// The instance `name` and the hypervisor that runs it.
pub fn find(
    context: &Context<'_>,
    name: &DomainName,
) -> Result<(Record, Box<dyn Hypervisor>), OpsError> {
    let record = context.instances.get(name)?;
    let Some(hypervisor) = &record.hypervisor else {
        let name = name.clone();
        return Err(OpsError::NoHypervisor { name });
    };
    let hypervisor = (context.open_hypervisor)(hypervisor)?;
    Ok((record, hypervisor))
}

/// Starts an instance; one that runs already is left alone.
pub async fn start(context: &Context<'_>, name: &DomainName) -> Result<Record, OpsError> {
    let (instances, locked) = (context.instances.clone(), name.clone());
    let _lock = blocking(move || instances.lock(&locked, Wait::ForEver)).await?;
    let (mut record, hypervisor) = find(context, name)?;
    // A crash may have come between the instance and its definition.
    if hypervisor.state(&record.spec).await? == DomainState::Unknown {
        hypervisor.define(&record.spec).await?;
    }
    if hypervisor.state(&record.spec).await? != DomainState::Running {
        trust::judge_instance(context, &record)?;
        accelerator::start(context, &*hypervisor, &mut record).await?;
        (context.report)(Progress::Started(name.clone()));
    }
    Ok(record)
}

/// Stops an instance; one that does not run is left alone.
pub async fn stop(context: &Context<'_>, name: &DomainName, how: Stop) -> Result<Record, OpsError> {
    let (record, hypervisor) = find(context, name)?;
    hypervisor.stop(&record.spec, how).await?;
    Ok(record)
}

/// Removes an instance: domain, directory, pin. Whatever a crash left of it is removed as well.
pub async fn remove(
    context: &Context<'_>,
    name: &DomainName,
    if_running: IfRunning,
) -> Result<(), OpsError> {
    let (instances, locked) = (context.instances.clone(), name.clone());
    let _lock = blocking(move || instances.lock(&locked, Wait::ForEver)).await?;
    let Some(record) = context.instances.find(name)? else {
        let pins = context.store.pins()?;
        // Somebody else's directory of the name, as the script of a dry run makes it, would be in
        // the way of an instance.
        if context.instances.directory(name).exists()
            || pins.iter().any(|(pinned, _)| pinned == name.as_str())
        {
            return forget(context, name).await;
        }
        return Err(InstanceError::None { name: name.clone() }.into());
    };
    remove_locked(context, &record, if_running).await
}

/// Removes an instance whose name is locked.
pub(super) async fn remove_locked(
    context: &Context<'_>,
    record: &Record,
    if_running: IfRunning,
) -> Result<(), OpsError> {
    let name = &record.spec.name;
    if let Some(hypervisor) = &record.hypervisor {
        let hypervisor = (context.open_hypervisor)(hypervisor)?;
        let state = hypervisor.state(&record.spec).await?;
        match (state, if_running) {
            (DomainState::Unknown | DomainState::Stopped, _) => {}
            (_, IfRunning::Fail) => {
                return Err(OpsError::StillRunning { name: name.clone() });
            }
            (_, IfRunning::Stop) => hypervisor.stop(&record.spec, Stop::Force).await?,
        }
        hypervisor.undefine(&record.spec).await?;
    }
    forget(context, name).await
}

/// Removes the ephemeral instances whose `run` was killed and whose VM has stopped since, and the
/// pins of those that were killed before there was an instance.
///
/// Housekeeping of other people's instances, which come and go meanwhile: what can not be removed
/// now is left for the next time, and reported by whoever asks for it by name.
pub(super) async fn sweep(context: &Context<'_>) {
    let instances = context.instances.names().unwrap_or_default();
    let pins = context.store.pins().unwrap_or_default();
    let pinned = pins.iter().filter_map(|(name, _)| name.parse().ok());
    for name in instances.into_iter().chain(pinned) {
        sweep_one(context, &name).await.unwrap_or_default();
    }
}

async fn sweep_one(context: &Context<'_>, name: &DomainName) -> Result<(), OpsError> {
    let is_swept =
        |record: &Record| record.ephemeral && record.hypervisor.as_deref() == Some(qemu::NAME);
    // Looked at without the lock first, so that nobody's name is locked for nothing.
    if context
        .instances
        .find(name)?
        .is_some_and(|record| !is_swept(&record))
    {
        return Ok(());
    }
    // A pin is made under the lock of its name, and so is an instance.
    let _lock = context.instances.lock(name, Wait::No)?;
    let Some(record) = context.instances.find(name)? else {
        // Somebody's directory without a record is none of ours; a pin without anything is.
        if !context.instances.directory(name).exists() {
            unpin(context, name).await?;
        }
        return Ok(());
    };
    let Some(_run) = context.instances.lock_run(name)? else {
        return Ok(());
    };
    if is_swept(&record) && qemu::Qemu.state(&record.spec).await? == DomainState::Stopped {
        forget(context, name).await?;
    }
    Ok(())
}

/// Removes an instance that does not run; its name is locked.
pub(super) async fn forget(context: &Context<'_>, name: &DomainName) -> Result<(), OpsError> {
    context.instances.remove(name)?;
    unpin(context, name).await
}

/// Drops the pin of a name that has no instance, and removes what only it kept.
pub(super) async fn unpin(context: &Context<'_>, name: &DomainName) -> Result<(), OpsError> {
    let kept = context.store.unpin(name.as_str())?;
    users::release(context, kept).await?;
    Ok(())
}
