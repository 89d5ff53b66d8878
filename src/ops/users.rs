//! Removing what nobody needs. Nobody is neither a reference, a pin, an instance or a lease, which
//! the store knows, nor a domain of libvirt's, which is asked here.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::timeout;

use crate::hypervisor::{HypervisorError, Known, qemu};
use crate::instance::Record;
use crate::oci::Digest;
use crate::ops::{Context, OpsError, Progress, blocking};
use crate::store::{Removed, Store, Use, User};

/// The domains that use the store.
#[derive(Debug, Default)]
pub(super) struct Domains {
    /// What they need.
    pub uses: Vec<Use>,
    /// Whether a libvirt that has domains of the store's could not be asked, so that there may be
    /// others.
    pub is_incomplete: bool,
}

/// Asks each libvirt that an instance belongs to, and the caller's own, for domains that use the
/// store.
///
/// The caller's own need not be there. Where another is not, that is reported.
pub(super) async fn domains(context: &Context<'_>) -> Result<Domains, OpsError> {
    let mut instances = BTreeSet::new();
    let mut records = Vec::new();
    for name in context.instances.names()? {
        // A record that can not be read keeps what it names all the same.
        records.extend(context.instances.find(&name).ok().flatten());
        instances.insert(name.to_string());
    }
    let mut domains = Domains::default();
    for (uri, has_instances) in libvirts(context, &records) {
        match ask(context, &uri).await {
            Ok(known) => {
                let uses = known.into_iter();
                let uses = uses.filter_map(|known| use_of(&context.store, &uri, &instances, known));
                domains.uses.extend(uses);
            }
            Err(error @ HypervisorError::Listing { .. }) => {
                domains.is_incomplete = true;
                (context.report)(Progress::DomainsUnknown(error.to_string()));
            }
            Err(error) if has_instances => {
                domains.is_incomplete = true;
                (context.report)(Progress::DomainsUnknown(error.to_string()));
            }
            Err(_) => {}
        }
    }
    Ok(domains)
}

/// Each libvirt that one of `records` belongs to, and the caller's own; by its URI, and whether there
/// is such a record.
pub(super) fn libvirts(context: &Context<'_>, records: &[Record]) -> BTreeMap<String, bool> {
    let own = context.libvirt.iter().map(|uri| (uri.clone(), false));
    let hypervisors = records
        .iter()
        .filter_map(|record| record.hypervisor.clone());
    let theirs = hypervisors.filter(|name| name != qemu::NAME);
    own.chain(theirs.map(|uri| (uri, true))).collect()
}

/// How long a libvirt may take to tell of all its domains; a hundred take a fifth of a second.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks a libvirt for all its domains. One that hangs holds nobody up for ever.
pub(super) async fn ask(context: &Context<'_>, uri: &str) -> Result<Vec<Known>, HypervisorError> {
    let hypervisor = (context.open_hypervisor)(uri)?;
    timeout(PATIENCE, hypervisor.known())
        .await
        .unwrap_or_else(|_| {
            Err(HypervisorError::Listing {
                uri: uri.to_owned(),
                message: format!("it does not answer within {} s", PATIENCE.as_secs()),
                is_lost: true,
            })
        })
}

/// What a domain needs of the store; nothing if it does not use it.
fn use_of(store: &Store, uri: &str, instances: &BTreeSet<String>, known: Known) -> Option<Use> {
    let Known {
        name, texts, notes, ..
    } = known;
    let in_store: Vec<BTreeSet<Digest>> = texts
        .iter()
        .filter_map(|text| store.named_in(text))
        .collect();
    if in_store.is_empty() {
        return None;
    }
    let mut opened: BTreeSet<Digest> = in_store.into_iter().flatten().collect();
    let mut named: BTreeSet<Digest> = notes.unwrap_or_default().documents.into_iter().collect();
    // Of an instance it is known what it was made from.
    let user = if instances.contains(&name) {
        named.append(&mut opened);
        User::Instance(name)
    } else {
        let uri = uri.to_owned();
        User::Domain { name, uri }
    };
    Some(Use {
        user,
        named,
        opened,
    })
}

/// Removes those of `digests` that nobody needs. Libvirt is asked only if there are any.
pub(super) async fn release(
    context: &Context<'_>,
    digests: BTreeSet<Digest>,
) -> Result<Vec<Removed>, OpsError> {
    let store = context.store.clone();
    let unneeded = blocking(move || store.unneeded(digests)).await?;
    if unneeded.is_empty() {
        return Ok(Vec::new());
    }
    let domains = domains(context).await?;
    release_from(context, unneeded, domains).await
}

/// Removes those of `digests` that nobody needs, `domains` neither.
pub(super) async fn release_from(
    context: &Context<'_>,
    digests: BTreeSet<Digest>,
    domains: Domains,
) -> Result<Vec<Removed>, OpsError> {
    if domains.is_incomplete {
        return Ok(Vec::new());
    }
    let store = context.store.clone();
    blocking(move || store.remove_unneeded(digests, &domains.uses)).await
}
