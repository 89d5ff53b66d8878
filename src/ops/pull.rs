//! An image into the store: only what its boot needs, checked before it gets a name there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::boot::{BootPlan, PlanError};
use crate::image::{Image, LayerRole, Roles, Selected, Variant, architecture};
use crate::oci::{Architecture, Descriptor, Digest, Index};
use crate::ops::fetch::{self, Item};
use crate::ops::resolve::{ImageRequest, Resolved, resolve};
use crate::ops::tree::{self, Found, Node};
use crate::ops::{Context, OpsError, Progress, blocking};
use crate::source::Source;
use crate::stage::{self, Inspected};
use crate::store::{Lease, StoredImage};

/// How much of an image is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What the boot method needs.
    Needed,
    /// Everything: every manifest of the index and all their layers, those among them that nobody
    /// knows, even of an image that can not be booted.
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
    let (selected, top) = (resolved.selected, resolved.top);
    let mut wish = Wish {
        documents: resolved.documents,
        images: Vec::new(),
    };
    let needed = plan
        .as_ref()
        .map(|plan| plan.method.blobs())
        .unwrap_or_default();
    wish.images
        .push(chosen(&wish, &selected.image, &needed, extent));
    if let (Extent::All, Some(index)) = (extent, &resolved.index) {
        wish.add_others(context, &*resolved.source, &top, index)
            .await?;
    }
    let leased = wish.digests();
    let (store, digests) = (context.store.clone(), leased.clone());
    let lease = Arc::new(blocking(move || store.lease(digests)).await?);
    let filled = fill(context, &*resolved.source, &selected.image, &wish, &lease).await;
    let result = filled.and_then(|fetched_bytes| {
        let inspected = match &plan {
            Ok(plan) => stage::inspect(plan, architecture, &|blob| lease.blob(blob))?,
            Err(_) => Inspected::default(),
        };
        let reference = &selected.image.reference;
        let store = &context.store;
        let dropped = store.put_reference(reference, &top, wish.images, context.now)?;
        // What the tag led to before is of no use to anybody else.
        store.remove_unneeded(dropped)?;
        Ok((fetched_bytes, inspected))
    });
    match result {
        Ok((fetched_bytes, inspected)) => Ok(Pulled {
            selected,
            plan,
            inspected,
            top,
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

/// What is to be in the store.
struct Wish {
    /// Index and manifests, each before those that it names.
    documents: Vec<(Descriptor, Vec<u8>)>,
    /// The images with the blobs that are wanted of them.
    images: Vec<StoredImage>,
}

/// The chosen image: its config and command line always, and the layers that are wanted.
fn chosen(wish: &Wish, image: &Image, needed: &[&Descriptor], extent: Extent) -> StoredImage {
    let command_line = image.roles.get(LayerRole::CommandLine);
    let blobs = image.manifest.blobs().into_iter().filter(|blob| {
        extent == Extent::All
            || **blob == image.manifest.config
            || Some(*blob) == command_line
            || needed.contains(blob)
    });
    let mut on_the_way = wish.documents.iter().map(|(document, _)| document.clone());
    let manifest = on_the_way.next_back();
    StoredImage {
        manifest: manifest.expect("the chosen manifest is the last of what was read"),
        indexes: on_the_way.skip(1).collect(),
        architecture: image.architecture.clone().map(|(word, _)| word),
        variant: image.variant.map(|(variant, _)| variant.to_string()),
        blobs: blobs.cloned().collect(),
    }
}

impl Wish {
    /// Adds the other manifests of the index, those of indexes within it too, whole.
    async fn add_others(
        &mut self,
        context: &Context<'_>,
        source: &dyn Source,
        top: &Descriptor,
        index: &Index,
    ) -> Result<(), OpsError> {
        let known = self.documents.iter().map(|(known, _)| known.digest);
        let mut known: BTreeSet<Digest> = known.collect();
        let mut inner = BTreeMap::new();
        for Node { place, found } in
            tree::walk(context, source, top.digest, index, |_| Ok(())).await?
        {
            let digest = place.descriptor.digest;
            let (bytes, manifest) = match found {
                Found::Manifest(bytes, manifest) => (bytes, manifest),
                Found::Index(bytes) => {
                    inner.insert(digest, place.descriptor.clone());
                    if known.insert(digest) {
                        self.documents.push((place.descriptor, bytes));
                    }
                    continue;
                }
                Found::Broken(error) => return Err(error),
                Found::PassedOver(_) => continue,
            };
            if !known.insert(digest) {
                continue;
            }
            let entry = &place.entry;
            let architecture = architecture::of_manifest(&manifest, Some(entry), None);
            let roles = Roles::of(&manifest, digest).ok();
            let variant = roles
                .and_then(|roles| Variant::of(&manifest, Some(&entry.descriptor), &roles, None));
            let indexes = place.indexes.iter();
            self.images.push(StoredImage {
                manifest: place.descriptor.clone(),
                indexes: indexes
                    .filter_map(|index| inner.get(index))
                    .cloned()
                    .collect(),
                architecture: architecture.map(|(word, _)| word),
                variant: variant.map(|(variant, _)| variant.to_string()),
                blobs: manifest.blobs().into_iter().cloned().collect(),
            });
            self.documents.push((place.descriptor, bytes));
        }
        Ok(())
    }

    fn digests(&self) -> BTreeSet<Digest> {
        let documents = self.documents.iter().map(|(document, _)| document.digest);
        documents
            .chain(self.blobs().map(|blob| blob.digest))
            .collect()
    }

    fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.images.iter().flat_map(|image| &image.blobs)
    }
}

/// Puts documents and blobs into the store. Returns the number of bytes that were fetched.
async fn fill(
    context: &Context<'_>,
    source: &dyn Source,
    image: &Image,
    wish: &Wish,
    lease: &Arc<Lease>,
) -> Result<u64, OpsError> {
    let mut seen = BTreeSet::new();
    let missing: Vec<Item> = wish
        .blobs()
        .filter(|blob| seen.insert(blob.digest) && !context.store.seems_to_have(blob))
        .map(|blob| Item {
            descriptor: blob.clone(),
            label: label(image, blob),
        })
        .collect();
    let missing_bytes = missing.iter().map(|item| item.descriptor.size).sum();
    let free_bytes = context.store.free_bytes()?;
    if missing_bytes > free_bytes {
        return Err(OpsError::NoSpace {
            path: context.store.root().to_owned(),
            needed_bytes: missing_bytes,
            free_bytes,
        });
    }
    (context.report)(Progress::Fetching { missing_bytes });
    let sizes: BTreeMap<Digest, u64> = missing
        .iter()
        .map(|item| (item.descriptor.digest, item.descriptor.size))
        .collect();
    let fetched = fetch::fetch(context, &image.reference, source, lease, missing).await?;
    // Parents after their children, so that a crash leaves no document without its blobs.
    for (descriptor, bytes) in wish.documents.iter().rev() {
        let (lease, descriptor) = (Arc::clone(lease), descriptor.clone());
        let bytes = bytes.clone();
        blocking(move || lease.put(&descriptor, &bytes)).await?;
    }
    Ok(fetched.iter().filter_map(|digest| sizes.get(digest)).sum())
}

/// What a blob is for, for people.
fn label(image: &Image, blob: &Descriptor) -> String {
    match image.role_of(blob) {
        Some(role) => role.to_string(),
        None if *blob == image.manifest.config => "config".to_owned(),
        None => "layer".to_owned(),
    }
}
