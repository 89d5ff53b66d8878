//! Room in the store: what nobody needs is removed.

use crate::ops::{Context, OpsError, blocking, users};
use crate::store::{Act, Policy, Pruned};

/// Removes what nobody needs, and first the images that `policy` names and neither an instance nor
/// a domain of libvirt's needs.
pub async fn prune(context: &Context<'_>, policy: Policy, act: Act) -> Result<Pruned, OpsError> {
    let domains = users::domains(context).await?;
    let (store, now) = (context.store.clone(), context.now);
    blocking(move || {
        let others = (!domains.is_incomplete).then_some(&domains.uses[..]);
        store.prune(&policy, others, now, act)
    })
    .await
}
