//! An image from a layout, or from the store, to a registry: blobs, manifests, index, tag, in this
//! order, so that whoever reads meanwhile never meets a name without its content.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt;
use tokio::sync::mpsc;

use crate::oci::{
    Descriptor, Digest, Document, LayoutReference, Manifest, Reference, RegistryReference, manifest,
};
use crate::ops::tree::{self, Found, Node};
use crate::ops::{Context, OpsError, Progress};
use crate::source::layout::Layout;
use crate::source::registry::{Registry, UploadEvent, Uploaded};
use crate::source::{Source, Wanted};

/// Blobs that are sent at the same time.
const PARALLEL: usize = 3;

/// Repositories that are named to the service that grants leave to mount from them.
const MAX_NEIGHBOURS: usize = 8;

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The document that the destination now leads to.
    pub top: Descriptor,
    /// Bytes of blobs that were sent.
    pub sent_bytes: u64,
    /// Bytes of blobs that the registry had already, in this or in another repository.
    pub present_bytes: u64,
}

/// Copies the image `from` to `to`. What the registry has already is not sent.
pub async fn push(
    context: &Context<'_>,
    from: &Reference,
    to: &RegistryReference,
) -> Result<Pushed, OpsError> {
    let source = Layout::open(locate(context, from)?);
    let registry = Registry::open(to.clone(), &context.sources)?;
    let raw = source.document(Wanted::Reference).await?;
    let says = raw.media_type.as_deref();
    let (children, manifests, top_type) = match Document::parse(&raw.bytes, raw.digest, says)? {
        Document::Manifest(manifest) => (Vec::new(), vec![manifest], manifest::OCI_MANIFEST),
        Document::Index(index) => {
            let mut children = Vec::new();
            let mut manifests = Vec::new();
            let nodes = tree::walk(context, &source, raw.digest, &index, |_| Ok(())).await?;
            for Node { place, found } in nodes {
                match found {
                    Found::Manifest(bytes, manifest) => {
                        children.push((own_media_type(&bytes, manifest::OCI_MANIFEST), bytes));
                        manifests.push(manifest);
                    }
                    Found::Index(bytes) => {
                        children.push((own_media_type(&bytes, manifest::OCI_INDEX), bytes));
                    }
                    Found::Broken(OpsError::Source(error)) if error.is_not_found() => {
                        return Err(OpsError::NotWhole {
                            reference: from.clone(),
                            missing: place.descriptor.digest,
                        });
                    }
                    Found::Broken(error) => return Err(error),
                    Found::PassedOver(_) => {}
                }
            }
            (children, manifests, manifest::OCI_INDEX)
        }
    };
    let top_type = own_media_type(&raw.bytes, top_type);
    let types = children.iter().map(|(media_type, _)| media_type);
    if types
        .chain([&top_type])
        .any(|media_type| media_type == manifest::IRONCORE_ARTIFACTS)
    {
        return Err(OpsError::NotPushable {
            reference: from.clone(),
        });
    }
    let mut pushed = Pushed {
        top: Descriptor::of(&top_type, &raw.bytes),
        sent_bytes: 0,
        present_bytes: 0,
    };
    let mut seen = BTreeSet::new();
    let blobs = manifests.iter().flat_map(Manifest::blobs);
    let blobs: Vec<&Descriptor> = blobs.filter(|blob| seen.insert(blob.digest)).collect();
    // Better before anything is sent than after most of it.
    for blob in &blobs {
        if let Err(error) = source.blob(blob, 0).await {
            return Err(match error.is_not_found() {
                true => OpsError::NotWhole {
                    reference: from.clone(),
                    missing: blob.digest,
                },
                false => error.into(),
            });
        }
    }
    let mut neighbours = neighbours(context, to)?;
    neighbours.retain(|digest, _| seen.contains(digest));
    let repositories: BTreeSet<String> = neighbours.values().cloned().collect();
    registry.will_mount_from(repositories.into_iter().take(MAX_NEIGHBOURS).collect())?;
    let mut done = futures_util::stream::iter(blobs)
        .map(|blob| async {
            let neighbour = neighbours.get(&blob.digest).map(String::as_str);
            let is_sent = send(context, &registry, &source, blob, neighbour).await?;
            Ok::<_, OpsError>((blob.size, is_sent))
        })
        .buffer_unordered(PARALLEL);
    while let Some(result) = done.next().await {
        match result? {
            (size, true) => pushed.sent_bytes += size,
            (size, false) => pushed.present_bytes += size,
        }
    }
    // Registries refuse an index before what it lists, which comes after it in the list.
    for (media_type, bytes) in children.into_iter().rev() {
        registry.upload_document(None, &bytes, &media_type).await?;
    }
    let media_type = pushed.top.media_type.clone();
    registry
        .upload_document(to.tag(), &raw.bytes, &media_type)
        .await?;
    Ok(pushed)
}

/// The layout that holds `from`: its own, or the store.
fn locate(context: &Context<'_>, from: &Reference) -> Result<LayoutReference, OpsError> {
    match from {
        Reference::Layout(layout) => Ok(layout.clone()),
        Reference::Registry(_) => {
            let stored = context.store.reference(from)?;
            let stored = stored.ok_or_else(|| crate::store::StoreError::NoReference {
                reference: from.clone(),
            })?;
            Ok(LayoutReference::document(
                context.store.root().to_owned(),
                stored.top.digest,
            ))
        }
    }
}

/// What a document says that it is, or what its shape has. Its index entry may say another thing
/// of it: registries take the specification's own media type in an index, and refuse it as the
/// type of a manifest.
fn own_media_type(bytes: &[u8], of_shape: &str) -> String {
    let document: Option<serde_json::Value> = serde_json::from_slice(bytes).ok();
    let says = document
        .as_ref()
        .and_then(|document| document.get("mediaType")?.as_str());
    says.unwrap_or(of_shape).to_owned()
}

/// The blobs that other repositories of the same registry should have, and which: they were pulled
/// from there.
fn neighbours(
    context: &Context<'_>,
    to: &RegistryReference,
) -> Result<BTreeMap<Digest, String>, OpsError> {
    let mut neighbours = BTreeMap::new();
    for stored in context.store.references()? {
        let Ok(Reference::Registry(reference)) = stored.reference.parse() else {
            continue;
        };
        if reference.registry() == to.registry() && reference.repository() != to.repository() {
            for blob in stored.images.iter().flat_map(|image| &image.blobs) {
                neighbours.insert(blob.digest, reference.repository().to_owned());
            }
        }
    }
    Ok(neighbours)
}

/// Sends a blob, unless the registry has it: in the repository, or in its `neighbour`. Tells
/// whether it was sent.
async fn send(
    context: &Context<'_>,
    registry: &Registry,
    source: &Layout,
    blob: &Descriptor,
    neighbour: Option<&str>,
) -> Result<bool, OpsError> {
    if registry.has_blob(&blob.digest).await? {
        return Ok(false);
    }
    let digest = blob.digest;
    let (teller, mut told) = mpsc::unbounded_channel();
    let upload = registry.upload_blob(blob, source, neighbour, move |event| {
        // Whoever listens ends with the upload, which may still be told of.
        drop(teller.send(event));
    });
    tokio::pin!(upload);
    let mut furthest = None;
    let uploaded = loop {
        tokio::select! {
            biased;
            Some(event) = told.recv() => show(context, blob, event, &mut furthest),
            uploaded = &mut upload => break uploaded?,
        }
    };
    if uploaded == Uploaded::Mounted {
        return Ok(false);
    }
    while let Ok(event) = told.try_recv() {
        show(context, blob, event, &mut furthest);
    }
    (context.report)(Progress::BlobDone { blob: digest });
    Ok(true)
}

/// Reports what is told of an upload; `furthest` is how far it has been reported to be.
fn show(context: &Context<'_>, blob: &Descriptor, event: UploadEvent, furthest: &mut Option<u64>) {
    let digest = blob.digest;
    let before = *furthest.get_or_insert_with(|| {
        (context.report)(Progress::BlobStart {
            blob: digest,
            label: "blob".to_owned(),
            size_bytes: blob.size,
            offset_bytes: 0,
        });
        0
    });
    match event {
        UploadEvent::Broken(reason) => {
            (context.report)(Progress::BlobRetry {
                blob: digest,
                reason,
            });
        }
        // What is sent again has been counted.
        UploadEvent::Sent(so_far) if so_far > before => {
            *furthest = Some(so_far);
            let count = so_far - before;
            (context.report)(Progress::BlobBytes {
                blob: digest,
                count,
            });
        }
        UploadEvent::Sent(_) => {}
    }
}
