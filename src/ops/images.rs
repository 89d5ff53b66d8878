//! The images of the store: list, inspect, remove.

use std::collections::BTreeSet;
use std::time::UNIX_EPOCH;

use crate::image::{ArchitectureSignal, ImageError, Roles, Variant, VariantSignal, architecture};
use crate::oci::manifest::IndexEntry;
use crate::oci::{
    Architecture, Descriptor, Digest, Document, LayoutReference, Manifest, Reference,
};
use crate::ops::resolve::describe;
use crate::ops::tree::{self, Found, Node};
use crate::ops::trust::{Judge, Judgement};
use crate::ops::{Context, OpsError, blocking, users};
use crate::source::{self, Wanted};
use crate::store::{StoreError, StoredReference};

/// An image of the store and the space that it takes.
#[derive(Debug)]
pub struct ListedImage {
    /// What the store knows of it.
    pub stored: StoredReference,
    /// Sum of the sizes of its blobs, each once, and what the disk takes that was unpacked of one.
    pub size_bytes: u64,
    /// When it was used last, in seconds since 1970.
    pub used_at: u64,
}

/// What a reference leads to, in full.
#[derive(Debug)]
pub struct Inspection {
    /// The document that the reference names.
    pub top: Descriptor,
    /// Whether it was read from the store rather than from where it is published.
    pub from_store: bool,
    /// Whether the policy lets in all of it that is here, and by what; none where there is no policy.
    pub trust: Option<Judgement>,
    /// Its manifests, those of indexes within its index too, and the entries that lead to none.
    pub manifests: Vec<InspectedManifest>,
}

/// One manifest of an image.
#[derive(Debug)]
pub struct InspectedManifest {
    /// The inner index that lists it; none where it stands in the image's own index.
    pub within: Option<Digest>,
    /// Its index entry with what it inherits from the entries above, or its own descriptor where
    /// there is no index.
    pub entry: IndexEntry,
    /// What was found; the reason where it could not be read.
    pub content: Result<ManifestContent, String>,
}

/// What a manifest holds.
#[derive(Debug)]
pub struct ManifestContent {
    /// The manifest.
    pub manifest: Manifest,
    /// Its architecture and who says so; its config is not asked.
    pub architecture: Option<(Architecture, ArchitectureSignal)>,
    /// Its variant and who says so.
    pub variant: Option<(Variant, VariantSignal)>,
    /// Its layers' roles, or why they have none.
    pub roles: Result<Roles, ImageError>,
}

/// All images of the store.
pub fn list(context: &Context<'_>) -> Result<Vec<ListedImage>, OpsError> {
    let references = context.store.references_by_use()?;
    Ok(references
        .into_iter()
        .map(|(stored, used_at)| {
            let mut seen = BTreeSet::new();
            let raw_bytes = |blob: &Descriptor| {
                let bytes = context.store.raw_allocated_bytes(&blob.digest);
                // Gone meanwhile, otherwise.
                bytes.unwrap_or_default()
            };
            let size_bytes = stored
                .documents()
                .chain(stored.images.iter().flat_map(|image| &image.blobs))
                .filter(|blob| seen.insert(blob.digest))
                .map(|blob| blob.size.saturating_add(raw_bytes(blob)))
                .sum();
            let used_at = used_at.duration_since(UNIX_EPOCH);
            ListedImage {
                stored,
                size_bytes,
                used_at: used_at.map_or(0, |since| since.as_secs()),
            }
        })
        .collect())
}

/// Reads everything that an image says of itself, from the store if it is there.
pub async fn inspect(context: &Context<'_>, reference: &Reference) -> Result<Inspection, OpsError> {
    let stored = context.store.reference(reference)?;
    let source = match &stored {
        Some(stored) => {
            let layout = Reference::Layout(LayoutReference::document(
                context.store.root().to_owned(),
                stored.top.digest,
            ));
            source::open(&layout, &context.sources)?
        }
        None => source::open(reference, &context.sources)?,
    };
    let raw = source.document(Wanted::Reference).await?;
    let document = Document::parse(&raw.bytes, raw.digest, raw.media_type.as_deref())?;
    let top = describe(&raw, &document);
    let mut manifests = Vec::new();
    match document {
        Document::Manifest(manifest) => {
            let entry = IndexEntry {
                descriptor: top.clone(),
                platform: None,
            };
            let content = Ok(content(manifest, &entry, Some(reference)));
            manifests.push(InspectedManifest {
                within: None,
                entry,
                content,
            });
        }
        Document::Index(index) => {
            let nodes = tree::walk(context, &*source, top.digest, &index, |_| Ok(())).await?;
            let is_manifest = |node: &&Node| matches!(node.found, Found::Manifest(..));
            let name = Some(reference).filter(|_| nodes.iter().filter(is_manifest).count() == 1);
            for Node { place, found } in nodes {
                let entry = place.entry;
                let content = match found {
                    Found::Manifest(_, manifest) => Ok(content(manifest, &entry, name)),
                    // What it lists is told instead.
                    Found::Index(_) => continue,
                    Found::PassedOver(reason) => Err(reason),
                    Found::Broken(OpsError::Source(error)) if error.is_not_found() => {
                        Err("not here".to_owned())
                    }
                    Found::Broken(error) => Err(error.to_string()),
                };
                manifests.push(InspectedManifest {
                    within: place.indexes.get(1..).and_then(<[_]>::last).copied(),
                    entry,
                    content,
                });
            }
        }
    }
    // Each that would be used, as it would be judged then.
    let mut used: Vec<Vec<Digest>> = match (&stored, manifests.as_slice()) {
        (Some(stored), _) => {
            let manifests = stored.images.iter().map(|image| image.manifest.digest);
            manifests.map(|digest| vec![top.digest, digest]).collect()
        }
        (None, [only]) => vec![vec![top.digest, only.entry.descriptor.digest]],
        (None, _) => Vec::new(),
    };
    if used.is_empty() {
        used.push(vec![top.digest]);
    }
    used.iter_mut().for_each(Vec::dedup);
    let trust = Judge::open(context, reference)?;
    let trust = trust.explain(context, &*source, &used).await?;
    Ok(Inspection {
        top,
        from_store: stored.is_some(),
        trust,
        manifests,
    })
}

/// Reads what a manifest says; `name` where it may say something of this very manifest.
fn content(manifest: Manifest, entry: &IndexEntry, name: Option<&Reference>) -> ManifestContent {
    let roles = Roles::of(&manifest, entry.descriptor.digest);
    let architecture = architecture::of_manifest(&manifest, Some(entry), None)
        .or_else(|| architecture::of_name(name?));
    let tag = name.and_then(Reference::tag);
    let variant = roles
        .as_ref()
        .ok()
        .and_then(|roles| Variant::of(&manifest, Some(&entry.descriptor), roles, tag));
    ManifestContent {
        manifest,
        architecture,
        variant,
        roles,
    }
}

/// Forgets an image and removes the blobs that nobody else needs. Returns the bytes freed.
///
/// Errors if an instance or a domain of libvirt's needs it.
pub async fn remove(context: &Context<'_>, reference: &Reference) -> Result<u64, OpsError> {
    let domains = users::domains(context).await?;
    let (store, reference) = (context.store.clone(), reference.clone());
    let (removed, domains) = blocking(move || {
        let removed = store.remove_reference(&reference, &domains.uses)?;
        Ok::<_, StoreError>((removed, domains))
    })
    .await?;
    let freed = users::release_from(context, removed.digests().collect(), domains).await?;
    Ok(freed.iter().map(|blob| blob.size_bytes).sum())
}
