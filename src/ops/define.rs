//! A persistent libvirt domain of an image.

use crate::hypervisor::{DomainState, Hypervisor};
use crate::ops::prepare::{IfDifferent, InstanceRequest, Prepared, prepare};
use crate::ops::{Context, OpsError, Progress};
use crate::ops::{accelerator, instances, preflight};

/// Whether to start what was defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Only define it.
    Nothing,
    /// Start it, unless it runs already.
    Start,
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
    let defined = match preflight::machine(spec, hypervisor).await {
        Ok(()) => hypervisor.define(spec).await.map_err(OpsError::from),
        Err(error) => Err(error),
    };
    if let Err(error) = defined {
        if prepared.is_new {
            context.instances.remove(&spec.name)?;
            instances::unpin(context, &spec.name).await?;
        }
        return Err(error);
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
