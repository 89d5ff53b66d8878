//! A persistent libvirt domain of an image.

use crate::hypervisor::{Defined, DomainState, Hypervisor};
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

/// A domain that is defined.
#[derive(Debug)]
pub struct Outcome {
    /// The instance.
    pub prepared: Prepared,
    /// What it does.
    pub state: DomainState,
    /// Whether anything was written; nothing is where the same is defined already.
    pub is_changed: bool,
}

/// Makes the instance and defines its domain. The same again changes nothing; after a crash
/// between any two steps, or where the domain is another than the record says, repeating it
/// completes the rest.
pub async fn define(
    context: &Context<'_>,
    request: &InstanceRequest,
    hypervisor: &dyn Hypervisor,
    if_different: IfDifferent,
    then: Then,
) -> Result<Outcome, OpsError> {
    let (mut prepared, _lock) = prepare(context, request, Some(hypervisor), if_different).await?;
    let spec = &prepared.record.spec;
    let defined = match preflight::machine(spec, hypervisor).await {
        Ok(()) => hypervisor.define(spec).await.map_err(OpsError::from),
        Err(error) => Err(error),
    };
    let defined = match defined {
        Ok(defined) => defined,
        Err(error) => {
            if prepared.is_new {
                context.instances.remove(&spec.name)?;
                instances::unpin(context, &spec.name).await?;
            }
            return Err(error);
        }
    };
    let is_changed = prepared.is_new || defined == Defined::Now;
    if !is_changed {
        (context.report)(Progress::DefinedAlready(request.name.clone()));
    }
    let mut state = hypervisor.state(spec).await?;
    if then == Then::Start && state != DomainState::Running {
        accelerator::start(context, hypervisor, &mut prepared.record).await?;
        (context.report)(Progress::Started(request.name.clone()));
        state = hypervisor.state(&prepared.record.spec).await?;
    }
    Ok(Outcome {
        prepared,
        state,
        is_changed,
    })
}
