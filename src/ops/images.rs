//! The images of the store: list, inspect, remove.

use std::collections::BTreeSet;

use crate::image::{ImageError, Roles, Variant, VariantSignal};
use crate::oci::manifest::IndexEntry;
use crate::oci::reference::LayoutEntry;
use crate::oci::{Descriptor, Digest, Document, LayoutReference, Manifest, Reference, manifest};
use crate::ops::{Context, OpsError, blocking};
use crate::source::{self, Source, Wanted};
use crate::store::StoredReference;

/// An image of the store and the space that it takes.
#[derive(Debug)]
pub struct ListedImage {
    /// What the store knows of it.
    pub stored: StoredReference,
    /// Sum of the sizes of its blobs, each once.
    pub size_bytes: u64,
}

/// What a reference leads to, in full.
#[derive(Debug)]
pub struct Inspection {
    /// The document that the reference names.
    pub top: Descriptor,
    /// Whether it was read from the store rather than from where it is published.
    pub from_store: bool,
    /// Its manifests.
    pub manifests: Vec<InspectedManifest>,
}

/// One manifest of an image.
#[derive(Debug)]
pub struct InspectedManifest {
    /// Its index entry, or its own descriptor where there is no index.
    pub entry: IndexEntry,
    /// What was found; the reason where it could not be read.
    pub content: Result<ManifestContent, String>,
}

/// What a manifest holds.
#[derive(Debug)]
pub struct ManifestContent {
    /// The manifest.
    pub manifest: Manifest,
    /// Its variant and who says so.
    pub variant: Option<(Variant, VariantSignal)>,
    /// Its layers' roles, or why they have none.
    pub roles: Result<Roles, ImageError>,
}

/// All images of the store.
pub fn list(context: &Context<'_>) -> Result<Vec<ListedImage>, OpsError> {
    let references = context.store.references()?;
    Ok(references
        .into_iter()
        .map(|stored| {
            let mut seen = BTreeSet::new();
            let size_bytes = stored
                .images
                .iter()
                .flat_map(|image| std::iter::once(&image.manifest).chain(&image.blobs))
                .chain([&stored.top])
                .filter(|blob| seen.insert(blob.digest))
                .map(|blob| blob.size)
                .sum();
            ListedImage { stored, size_bytes }
        })
        .collect())
}

/// Reads everything that an image says of itself, from the store if it is there.
pub async fn inspect(context: &Context<'_>, reference: &Reference) -> Result<Inspection, OpsError> {
    let stored = context.store.reference(reference)?;
    let source = match &stored {
        Some(stored) => {
            let layout = Reference::Layout(LayoutReference {
                directory: context.store.root().to_owned(),
                entry: LayoutEntry::Digest(stored.top.digest),
            });
            source::open(&layout, &context.sources)?
        }
        None => source::open(reference, &context.sources)?,
    };
    let raw = source.document(Wanted::Reference).await?;
    let media_type = raw.media_type.as_deref();
    let document = Document::parse(&raw.bytes, raw.digest, media_type)?;
    let of_shape = match document {
        Document::Index(_) => manifest::OCI_INDEX,
        Document::Manifest(_) => manifest::OCI_MANIFEST,
    };
    let top = Descriptor::of(media_type.unwrap_or(of_shape), &raw.bytes);
    let manifests = match document {
        Document::Manifest(manifest) => {
            let entry = IndexEntry {
                descriptor: top.clone(),
                platform: None,
            };
            let content = Ok(content(manifest, &entry, reference.tag()));
            vec![InspectedManifest { entry, content }]
        }
        Document::Index(index) => {
            let tag = reference.tag().filter(|_| index.entries.len() == 1);
            let mut manifests = Vec::new();
            for entry in index.entries {
                let manifest = read(&*source, &entry).await?;
                let content = manifest.map(|manifest| content(manifest, &entry, tag));
                manifests.push(InspectedManifest { entry, content });
            }
            manifests
        }
    };
    Ok(Inspection {
        top,
        from_store: stored.is_some(),
        manifests,
    })
}

async fn read(
    source: &dyn Source,
    entry: &IndexEntry,
) -> Result<Result<Manifest, String>, OpsError> {
    let raw = match source.document(Wanted::Entry(&entry.descriptor)).await {
        Ok(raw) => raw,
        Err(error) if error.is_not_found() => return Ok(Err("not here".to_owned())),
        Err(error) => return Err(error.into()),
    };
    Ok(match Document::parse(&raw.bytes, raw.digest, None) {
        Ok(Document::Manifest(manifest)) => Ok(manifest),
        Ok(Document::Index(_)) => Err("an index within the index".to_owned()),
        Err(error) => Err(error.to_string()),
    })
}

/// Reads what a manifest says; `tag` where it may say something of this very manifest.
fn content(manifest: Manifest, entry: &IndexEntry, tag: Option<&str>) -> ManifestContent {
    let roles = Roles::of(&manifest, entry.descriptor.digest);
    let variant = roles
        .as_ref()
        .ok()
        .and_then(|roles| Variant::of(&manifest, Some(&entry.descriptor), roles, tag));
    ManifestContent {
        manifest,
        variant,
        roles,
    }
}

/// Forgets an image and removes the blobs that nothing else needs. Returns the bytes freed.
pub async fn remove(context: &Context<'_>, reference: &Reference) -> Result<u64, OpsError> {
    let (store, reference) = (context.store.clone(), reference.clone());
    blocking(move || {
        let removed = store.remove_reference(&reference)?;
        let digests: BTreeSet<Digest> = removed.digests().collect();
        let freed = store.remove_unneeded(digests)?;
        Ok::<u64, crate::store::StoreError>(freed.iter().map(|blob| blob.size_bytes).sum())
    })
    .await
}
