//! A persistent libvirt domain of an image.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::domain::DomainSpec;
use crate::hypervisor::{DomainState, Hypervisor, HypervisorError};
use crate::ops::prepare::{IfDifferent, InstanceRequest, Prepared, prepare};
use crate::ops::{Context, OpsError, Progress};
use crate::ops::{accelerator, instances};

/// Whether to start what was defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Only define it.
    Nothing,
    /// Start it, unless it runs already.
    Start,
}

/// Checks that the hypervisor's user can pass through every directory above the VM's files, which
/// otherwise shows only at the start, and in the hypervisor's words.
async fn reachable(spec: &DomainSpec, hypervisor: &dyn Hypervisor) -> Result<(), HypervisorError> {
    let Some(owner) = hypervisor.file_owner().await? else {
        return Ok(());
    };
    for directory in spec.directory.ancestors() {
        let metadata = fs::metadata(directory).map_err(|source| HypervisorError::Io {
            path: directory.to_owned(),
            source,
        })?;
        let mode = metadata.mode();
        let may_pass = match () {
            () if metadata.uid() == owner.uid => mode & 0o100 != 0,
            () if metadata.gid() == owner.gid => mode & 0o010 != 0,
            () => mode & 0o001 != 0,
        };
        if !may_pass {
            return Err(HypervisorError::Unreachable {
                directory: directory.to_owned(),
                uid: owner.uid,
            });
        }
    }
    Ok(())
}

/// Makes the instance and defines its domain. The same again changes nothing; after a crash
/// between any two steps, repeating it completes the rest.
pub async fn define(
    context: &Context<'_>,
    request: &InstanceRequest,
    hypervisor: &dyn Hypervisor,
    if_different: IfDifferent,
    then: Then,
) -> Result<(Prepared, DomainState), OpsError> {
    let mut prepared = prepare(context, request, Some(hypervisor), if_different).await?;
    let spec = &prepared.record.spec;
    let defined = match reachable(spec, hypervisor).await {
        Ok(()) => hypervisor.define(spec).await,
        Err(error) => Err(error),
    };
    if let Err(error) = defined {
        if prepared.is_new {
            context.instances.remove(&spec.name)?;
            instances::unpin(context, &spec.name).await?;
        }
        return Err(error.into());
    }
    let state = hypervisor.state(spec).await?;
    if then == Then::Start && state != DomainState::Running {
        accelerator::start(context, hypervisor, &mut prepared.record).await?;
        (context.report)(Progress::Started(request.name.clone()));
        let state = hypervisor.state(&prepared.record.spec).await?;
        return Ok((prepared, state));
    }
    Ok((prepared, state))
}
