//! The instances: start, stop, remove.

use crate::domain::DomainName;
use crate::files::Wait;
use crate::hypervisor::{DomainState, Hypervisor, IfRunning, Known, Stop, qemu};
use crate::instance::{InstanceError, Record};
use crate::ops::{Context, OpsError, Progress, accelerator, blocking, list, trust, users};

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
    if hypervisor.state(&record.spec).await? != DomainState::Running {
        trust::judge_instance(context, &record)?;
        // A crash may have come between the record and what it is defined as.
        hypervisor.define(&record.spec).await?;
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
    match context.instances.find(name) {
        Ok(Some(record)) => remove_locked(context, &record, if_running).await,
        Ok(None) => remove_rest(context, name, if_running, None).await,
        Err(error) => remove_rest(context, name, if_running, Some(error)).await,
    }
}

/// Removes what there is of an instance that has no record, or one that is `damaged`: a QEMU, a domain
/// that is this store's, the directory, the pin.
async fn remove_rest(
    context: &Context<'_>,
    name: &DomainName,
    if_running: IfRunning,
    damaged: Option<InstanceError>,
) -> Result<(), OpsError> {
    let directory = context.instances.directory(name);
    let domains = domains_of(context, name).await?;
    let runs = qemu::orphan::state(&directory)? == DomainState::Running;
    if runs && if_running == IfRunning::Fail {
        return Err(OpsError::StillRunning { name: name.clone() });
    }
    let is_pinned = || -> Result<bool, OpsError> {
        let pins = context.store.pins()?;
        Ok(pins.iter().any(|(pinned, _)| pinned == name.as_str()))
    };
    // Somebody else's directory of the name, as the script of a dry run makes it, would be in the
    // way of an instance.
    if domains.is_empty() && damaged.is_none() && !directory.exists() && !is_pinned()? {
        return Err(context.instances.none(name).into());
    }
    for (uri, known) in domains {
        let hypervisor = (context.open_hypervisor)(&uri)?;
        hypervisor.evict(name, &known.uuid, if_running).await?;
    }
    qemu::orphan::end(name, &directory).await?;
    forget(context, name).await
}

/// The domains that are of the instance `name`, or of its name and of no instance, of all libvirts.
async fn domains_of(
    context: &Context<'_>,
    name: &DomainName,
) -> Result<Vec<(String, Known)>, OpsError> {
    let mut records = Vec::new();
    for other in context.instances.names()? {
        records.extend(context.instances.find(&other).ok().flatten());
    }
    let mut domains = Vec::new();
    for (uri, has_instances) in users::libvirts(context, &records) {
        let known = match users::ask(context, &uri).await {
            Ok(known) => known,
            // It may be this one's; whatever the record was, it may have said so.
            Err(error) if has_instances || context.instances.mentions(name, &uri)? => {
                return Err(error.into());
            }
            Err(_) => continue,
        };
        let of_others = |known: &Known| {
            let mut others = records.iter().map(|record| record.spec.uuid.as_str());
            others.any(|uuid| known.uuid.eq_ignore_ascii_case(uuid))
        };
        let own = known.into_iter().filter(|known| {
            let is_named = known.name == name.as_str() && list::is_ours(&context.store, known);
            (is_named || list::is_of(&context.store, known, name)) && !of_others(known)
        });
        domains.extend(own.map(|known| (uri.clone(), known)));
    }
    Ok(domains)
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
