//! An image into the store: only what its boot needs, checked before it gets a name there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::boot::{BootPlan, Rejected};
use crate::image::{Image, LayerRole, Roles, Selected, Variant, architecture};
use crate::oci::{Architecture, Descriptor, Digest, Index};
use crate::ops::fetch::{self, Item};
use crate::ops::planner::Planner;
use crate::ops::resolve::{ImageRequest, Resolved, resolve};
use crate::ops::tree::{self, Found, Node};
use crate::ops::trust::{Judge, Trust};
use crate::ops::{Context, OpsError, Progress, blocking, space, trust, unpack, users};
use crate::source::Source;
use crate::stage::{self, Inspected, StageError};
use crate::store::{Lease, MakeRaw, StoredImage};

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
    /// Says how it boots.
    pub planner: Planner,
    /// How it boots, and what its blobs are; an error only with [`Extent::All`].
    pub plan: Result<(BootPlan, Inspected), OpsError>,
    /// What the reference led to.
    pub top: Descriptor,
    /// Why it is trusted; none where no policy asks.
    pub trust: Option<Trust>,
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
///
/// Where the method was left to the image and a blob is not what its layer says, the next method
/// is tried.
pub async fn pull_resolved(
    context: &Context<'_>,
    resolved: Resolved,
    architecture: &Architecture,
    extent: Extent,
) -> Result<Pulled, OpsError> {
    let image = &resolved.selected.image;
    let mut trust = resolved.trust;
    if extent == Extent::All {
        // What is signed is one of its manifests, perhaps, and not the others.
        let mut judge = Judge::open(context, &image.reference)?;
        let top = [resolved.top.digest];
        trust = judge.judge(context, &*resolved.source, &top).await?;
    }
    let documents = resolved.documents.iter();
    let mut on_the_way: Vec<Descriptor> = documents.map(|(document, _)| document.clone()).collect();
    let manifest = on_the_way
        .pop()
        .expect("the chosen manifest is the last of what was read");
    let mut wish = Wish {
        documents: resolved.documents,
        images: Vec::new(),
        small: resolved.small,
    };
    if let (Extent::All, Some(index)) = (extent, &resolved.index) {
        wish.add_others(context, &*resolved.source, &resolved.top, index)
            .await?;
    }
    let mut attempt = Attempt {
        context,
        source: &*resolved.source,
        planner: &resolved.planner,
        image,
        manifest,
        indexes: on_the_way.into_iter().skip(1).collect(),
        architecture,
        extent,
        wish,
        leased: BTreeSet::new(),
        fetched_bytes: 0,
    };
    let pulled = attempt.pull(&resolved.top).await;
    let (leased, fetched_bytes) = (attempt.leased, attempt.fetched_bytes);
    match pulled {
        Ok((plan, lease)) => {
            let signatures = trust::kept(trust.as_ref());
            if !signatures.is_empty() {
                let reference = &resolved.selected.image.reference;
                let (store, top) = (&context.store, &resolved.top.digest);
                store.put_signatures(reference, top, signatures)?;
            }
            Ok(Pulled {
                selected: resolved.selected,
                planner: resolved.planner,
                plan,
                top: resolved.top,
                trust,
                fetched_bytes,
                lease,
            })
        }
        Err(error) => {
            if !error.may_be_mended() && !leased.is_empty() {
                clear(context, leased).await?;
            }
            Err(error)
        }
    }
}

/// Removes what an attempt has fetched and nobody needs.
async fn clear(context: &Context<'_>, leased: BTreeSet<Digest>) -> Result<(), OpsError> {
    let (store, digests) = (context.store.clone(), leased.clone());
    blocking(move || store.remove_partials(digests)).await?;
    users::release(context, leased).await?;
    Ok(())
}

/// One pull, by as many boot methods as it takes.
struct Attempt<'a> {
    context: &'a Context<'a>,
    source: &'a dyn Source,
    planner: &'a Planner,
    image: &'a Image,
    manifest: Descriptor,
    /// The indexes between the top document and the manifest.
    indexes: Vec<Descriptor>,
    architecture: &'a Architecture,
    extent: Extent,
    wish: Wish,
    /// Everything that a lease was taken of.
    leased: BTreeSet<Digest>,
    fetched_bytes: u64,
}

impl Attempt<'_> {
    async fn pull(
        &mut self,
        top: &Descriptor,
    ) -> Result<(Result<(BootPlan, Inspected), OpsError>, Arc<Lease>), OpsError> {
        let mut rejected: Vec<Rejected> = Vec::new();
        let mut first: Option<OpsError> = None;
        let mut told = 0;
        loop {
            let plan = self.planner.plan(&rejected).map_err(|error| {
                // One method that failed by its content tells more than the list of all.
                match (first.take(), rejected.len()) {
                    (Some(first), 1) => first,
                    _ => error.into(),
                }
            });
            let plan = match plan {
                Err(error) if self.extent == Extent::Needed => return Err(error),
                plan => plan,
            };
            if plan.is_ok() {
                for Rejected { method, reason } in &rejected[told..] {
                    let (method, reason) = (*method, reason.clone());
                    (self.context.report)(Progress::MethodRejected { method, reason });
                }
                told = rejected.len();
            }
            let needed = match &plan {
                Ok(plan) => plan.method.blobs(),
                Err(_) => Vec::new(),
            };
            let (lease, images) = self.fill(self.chosen(&needed)).await?;
            let plan = match plan {
                Ok(plan) => match self.inspect(&plan, &lease).await? {
                    Ok(inspected) => Ok((plan, inspected)),
                    Err(error) if error.rules_out_the_method() && self.planner.is_free() => {
                        let method = plan.method.name();
                        let reason = error.to_string();
                        rejected.push(Rejected { method, reason });
                        first.get_or_insert(error.into());
                        continue;
                    }
                    Err(error) if self.extent == Extent::All => Err(error.into()),
                    Err(error) => return Err(error.into()),
                },
                Err(error) => Err(error),
            };
            if let Ok((plan, inspected)) = &plan
                && let Some(disk) = plan.method.disk()
                && let Some(map) = inspected.disk.as_ref().and_then(|disk| disk.qcow2.clone())
            {
                unpack::unpack(self.context, disk, map, &lease, MakeRaw::IfMissing).await?;
            }
            let reference = &self.image.reference;
            let store = &self.context.store;
            let (held, now) = (&self.leased, self.context.now);
            // What a method needed that was rejected, and what the tag led to before.
            let unneeded = store.put_reference(reference, top, &images, held, now)?;
            // The image is here, whatever is wrong with others.
            if let Err(error) = users::release(self.context, unneeded).await {
                let reason = error.to_string();
                (self.context.report)(Progress::NotRemoved { reason });
            }
            return Ok((plan, lease));
        }
    }

    /// The chosen image: its config and command line always, and the layers that are wanted.
    fn chosen(&self, needed: &[&Descriptor]) -> StoredImage {
        let image = self.image;
        let command_line = image.roles.get(LayerRole::CommandLine);
        let blobs = image.manifest.blobs().into_iter().filter(|blob| {
            self.extent == Extent::All
                || **blob == image.manifest.config
                || Some(*blob) == command_line
                || needed.contains(blob)
        });
        StoredImage {
            manifest: self.manifest.clone(),
            indexes: self.indexes.clone(),
            architecture: image.architecture.clone().map(|(word, _)| word),
            variant: image.variant.map(|(variant, _)| variant.to_string()),
            blobs: blobs.cloned().collect(),
        }
    }

    /// Puts everything that is wished for, and `chosen`, into the store.
    async fn fill(
        &mut self,
        chosen: StoredImage,
    ) -> Result<(Arc<Lease>, Vec<StoredImage>), OpsError> {
        let images: Vec<StoredImage> = std::iter::once(chosen)
            .chain(self.wish.images.iter().cloned())
            .collect();
        let digests = self.wish.digests(&images);
        let (store, leased) = (self.context.store.clone(), digests.clone());
        let lease = Arc::new(blocking(move || store.lease(leased)).await?);
        self.leased.extend(&digests);
        for (descriptor, bytes) in &self.wish.small {
            if digests.contains(&descriptor.digest) && !self.context.store.seems_to_have(descriptor)
            {
                put(&lease, descriptor, bytes).await?;
                self.fetched_bytes += descriptor.size;
            }
        }
        self.fetched_bytes += self.fetch(&images, &lease).await?;
        // Parents after their children, so that a crash leaves no document without its blobs.
        for (descriptor, bytes) in self.wish.documents.iter().rev() {
            put(&lease, descriptor, bytes).await?;
        }
        Ok((lease, images))
    }

    /// Fetches the blobs that are not here. Returns the number of bytes that were fetched.
    async fn fetch(&self, images: &[StoredImage], lease: &Arc<Lease>) -> Result<u64, OpsError> {
        let (context, image) = (self.context, self.image);
        let mut seen = BTreeSet::new();
        let missing: Vec<Item> = images
            .iter()
            .flat_map(|image| &image.blobs)
            .filter(|blob| seen.insert(blob.digest) && !context.store.seems_to_have(blob))
            .map(|blob| Item {
                descriptor: blob.clone(),
                label: label(image, blob),
            })
            .collect();
        let blobs: Vec<&Descriptor> = missing.iter().map(|item| &item.descriptor).collect();
        space::check(context, self.source, &blobs).await?;
        let sizes_bytes = blobs.iter().map(|blob| blob.size);
        let missing_bytes = sizes_bytes.fold(0, u64::saturating_add);
        (context.report)(Progress::Fetching {
            missing_bytes,
            blobs: missing.len(),
        });
        let sizes: BTreeMap<Digest, u64> = missing
            .iter()
            .map(|item| (item.descriptor.digest, item.descriptor.size))
            .collect();
        let fetched = fetch::fetch(context, &image.reference, self.source, lease, missing).await?;
        Ok(fetched.iter().filter_map(|digest| sizes.get(digest)).sum())
    }

    /// Looks into the blobs, of which a disk's tables may be long.
    async fn inspect(
        &self,
        plan: &BootPlan,
        lease: &Arc<Lease>,
    ) -> Result<Result<Inspected, StageError>, OpsError> {
        let (plan, lease) = (plan.clone(), Arc::clone(lease));
        let (architecture, host) = (self.architecture.clone(), self.planner.host().clone());
        blocking(move || {
            let find = |blob: &Descriptor| lease.blob(blob);
            Ok::<_, OpsError>(stage::inspect(&plan, &architecture, &host, &find))
        })
        .await
    }
}

async fn put(lease: &Arc<Lease>, blob: &Descriptor, bytes: &[u8]) -> Result<(), OpsError> {
    let (lease, blob, bytes) = (Arc::clone(lease), blob.clone(), bytes.to_vec());
    blocking(move || lease.put(&blob, &bytes)).await?;
    Ok(())
}

/// What is to be in the store.
struct Wish {
    /// Index and manifests, each before those that it names.
    documents: Vec<(Descriptor, Vec<u8>)>,
    /// The other images, whole.
    images: Vec<StoredImage>,
    /// Blobs of them that were read already.
    small: Vec<(Descriptor, Vec<u8>)>,
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

    fn digests(&self, images: &[StoredImage]) -> BTreeSet<Digest> {
        let documents = self.documents.iter().map(|(document, _)| document.digest);
        let blobs = images.iter().flat_map(|image| &image.blobs);
        documents.chain(blobs.map(|blob| blob.digest)).collect()
    }
}

/// What a blob is for, for people.
fn label(image: &Image, blob: &Descriptor) -> String {
    match image.role_of(blob) {
        Some(role) => role.to_string(),
        None if *blob == image.manifest.config => "config".to_owned(),
        None => "layer".to_owned(),
    }
}
