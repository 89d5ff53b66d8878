//! An image into the store: only what its boot needs, checked before it gets a name there.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::boot::{BootPlan, PlanError};
use crate::image::{Image, Selected};
use crate::oci::{Architecture, Descriptor, Digest};
use crate::ops::fetch::{self, Item};
use crate::ops::resolve::{ImageRequest, Resolved, resolve};
use crate::ops::{Context, OpsError, Progress, blocking};
use crate::stage::{self, Inspected};
use crate::store::{Lease, StoredImage};

/// How much of an image is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What the boot method needs.
    Needed,
    /// All layers, those among them that nobody knows, even of an image that can not be booted.
    All,
}

/// An image that is in the store, held there by its lease.
#[derive(Debug)]
pub struct Pulled {
    /// The image and what was passed over for it.
    pub selected: Selected,
    /// How it boots; an error only with [`Extent::All`].
    pub plan: Result<BootPlan, PlanError>,
    /// What its blobs are.
    pub inspected: Inspected,
    /// What the reference led to.
    pub top: Descriptor,
    /// Bytes that were fetched for it.
    pub fetched_bytes: u64,
    /// Keeps its blobs from being deleted.
    pub lease: Arc<Lease>,
}

/// Pulls an image. On an error that no second try can mend, nothing of it stays in the store.
pub async fn pull(
    context: &Context<'_>,
    request: &ImageRequest,
    extent: Extent,
) -> Result<Pulled, OpsError> {
    let resolved = resolve(context, request).await?;
    pull_resolved(context, resolved, &request.wanted.architecture, extent).await
}

/// Pulls what was resolved before.
pub async fn pull_resolved(
    context: &Context<'_>,
    resolved: Resolved,
    architecture: &Architecture,
    extent: Extent,
) -> Result<Pulled, OpsError> {
    let plan = match (resolved.plan, extent) {
        (Err(error), Extent::Needed) => return Err(error.into()),
        (plan, _) => plan,
    };
    let image = resolved.selected.image.clone();
    let blobs = wanted_blobs(&image, plan.as_ref().ok(), extent);
    let leased: BTreeSet<Digest> = blobs
        .iter()
        .chain(resolved.documents.iter().map(|(descriptor, _)| descriptor))
        .map(|blob| blob.digest)
        .collect();
    let store = context.store.clone();
    let digests = leased.clone();
    let lease = Arc::new(blocking(move || store.lease(digests)).await?);
    let manifest = resolved
        .documents
        .last()
        .map_or_else(|| resolved.top.clone(), |(manifest, _)| manifest.clone());
    let (source, documents) = (resolved.source, resolved.documents);
    let filled = fill(context, &*source, documents, &image, &blobs, &lease).await;
    let result = filled.and_then(|fetched_bytes| {
        let inspected = match &plan {
            Ok(plan) => stage::inspect(plan, architecture, &lease)?,
            Err(_) => Inspected::default(),
        };
        let stored = StoredImage {
            manifest,
            architecture: image.architecture.clone(),
            variant: image.variant.map(|(variant, _)| variant.to_string()),
            blobs,
        };
        context
            .store
            .put_reference(&image.reference, &resolved.top, stored, context.now)?;
        Ok((fetched_bytes, inspected))
    });
    match result {
        Ok((fetched_bytes, inspected)) => Ok(Pulled {
            selected: resolved.selected,
            plan,
            inspected,
            top: resolved.top,
            fetched_bytes,
            lease,
        }),
        Err(error) => {
            drop(lease);
            if !error.is_retryable() {
                let store = context.store.clone();
                blocking(move || {
                    store.remove_partials(leased.iter().copied())?;
                    store.remove_unneeded(leased)
                })
                .await?;
            }
            Err(error)
        }
    }
}

/// The blobs to have in the store: the config always, and the layers that are wanted.
fn wanted_blobs(image: &Image, plan: Option<&BootPlan>, extent: Extent) -> Vec<Descriptor> {
    let needed: BTreeSet<Digest> = plan
        .map(|plan| plan.method.blobs().iter().map(|blob| blob.digest).collect())
        .unwrap_or_default();
    let command_line = image.roles.get(crate::image::LayerRole::CommandLine);
    image
        .manifest
        .blobs()
        .into_iter()
        .filter(|blob| {
            extent == Extent::All
                || **blob == image.manifest.config
                || Some(*blob) == command_line
                || needed.contains(&blob.digest)
        })
        .cloned()
        .collect()
}

/// Puts documents and blobs into the store. Returns the number of bytes that were fetched.
async fn fill(
    context: &Context<'_>,
    source: &dyn crate::source::Source,
    documents: Vec<(Descriptor, Vec<u8>)>,
    image: &Image,
    blobs: &[Descriptor],
    lease: &Arc<Lease>,
) -> Result<u64, OpsError> {
    let missing: Vec<Item> = blobs
        .iter()
        .filter(|blob| !context.store.seems_to_have(blob))
        .map(|blob| Item {
            descriptor: blob.clone(),
            label: label(image, blob),
        })
        .collect();
    let missing_bytes = missing.iter().map(|item| item.descriptor.size).sum();
    (context.report)(Progress::Fetching { missing_bytes });
    let fetched = fetch::fetch(context, source, lease, missing).await?;
    let fetched_bytes = blobs
        .iter()
        .filter(|blob| fetched.contains(&blob.digest))
        .map(|blob| blob.size)
        .sum();
    // Parents after their children, so that a crash leaves no document without its blobs.
    let lease = Arc::clone(lease);
    blocking(move || {
        for (descriptor, bytes) in documents.iter().rev() {
            lease.put(descriptor, bytes)?;
        }
        Ok::<(), crate::store::StoreError>(())
    })
    .await?;
    Ok(fetched_bytes)
}

/// What a blob of `image` is for, for people.
fn label(image: &Image, blob: &Descriptor) -> String {
    match image.role_of(blob) {
        Some(role) => role.to_string(),
        None if *blob == image.manifest.config => "config".to_owned(),
        None => "layer".to_owned(),
    }
}
