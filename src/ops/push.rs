//! An image from a layout directory, or from the store, to a registry: blobs, manifests, index,
//! tag, in this order, so that whoever reads meanwhile never meets a name without its content.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::files::FileError;
use crate::oci::reference::LayoutEntry;
use crate::oci::{
    Descriptor, Digest, Document, LayoutReference, Manifest, Reference, RegistryReference, manifest,
};
use crate::ops::tree::{self, Found, Node};
use crate::ops::{Context, OpsError, Progress};
use crate::source::layout::Layout;
use crate::source::registry::Registry;
use crate::source::{Source, Wanted};

/// What was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The document that the destination now leads to.
    pub top: Descriptor,
    /// Bytes of blobs that were sent.
    pub sent_bytes: u64,
    /// Bytes of blobs that the registry had already.
    pub present_bytes: u64,
}

/// Copies the image `from` to `to`. What the registry has already is not sent.
pub async fn push(
    context: &Context<'_>,
    from: &Reference,
    to: &RegistryReference,
) -> Result<Pushed, OpsError> {
    let layout = locate(context, from)?;
    let directory = layout.directory.clone();
    let source = Layout::open(layout);
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
    for blob in manifests.iter().flat_map(Manifest::blobs) {
        if seen.insert(blob.digest) {
            send(context, &registry, &directory, from, blob, &mut pushed).await?;
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

/// The layout directory that holds `from`: its own, or the store.
fn locate(context: &Context<'_>, from: &Reference) -> Result<LayoutReference, OpsError> {
    match from {
        Reference::Layout(layout) => Ok(layout.clone()),
        Reference::Registry(_) => {
            let stored = context.store.reference(from)?;
            let stored = stored.ok_or_else(|| crate::store::StoreError::NoReference {
                reference: from.clone(),
            })?;
            Ok(LayoutReference {
                directory: context.store.root().to_owned(),
                entry: LayoutEntry::Digest(stored.top.digest),
            })
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

async fn send(
    context: &Context<'_>,
    registry: &Registry,
    directory: &Path,
    from: &Reference,
    blob: &Descriptor,
    pushed: &mut Pushed,
) -> Result<(), OpsError> {
    let path = blob_path(directory, &blob.digest);
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(OpsError::NotWhole {
                reference: from.clone(),
                missing: blob.digest,
            });
        }
        result => result.map_err(FileError::of("open", &path))?,
    };
    if registry.has_blob(&blob.digest).await? {
        pushed.present_bytes += blob.size;
        return Ok(());
    }
    let digest = blob.digest;
    (context.report)(Progress::BlobStart {
        blob: digest,
        label: "blob".to_owned(),
        size_bytes: blob.size,
        offset_bytes: 0,
    });
    let sent = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&sent);
    let upload = registry.upload_blob(blob, file, move |so_far| {
        counter.store(so_far, Ordering::Relaxed);
    });
    tokio::pin!(upload);
    let mut told = 0;
    loop {
        let result = tokio::time::timeout(std::time::Duration::from_millis(100), &mut upload).await;
        let so_far = sent.load(Ordering::Relaxed);
        let count = so_far.saturating_sub(told);
        (context.report)(Progress::BlobBytes {
            blob: digest,
            count,
        });
        told = so_far;
        if let Ok(result) = result {
            result?;
            break;
        }
    }
    (context.report)(Progress::BlobDone { blob: digest });
    pushed.sent_bytes += blob.size;
    Ok(())
}

fn blob_path(directory: &Path, digest: &Digest) -> std::path::PathBuf {
    directory
        .join("blobs")
        .join(digest.algorithm())
        .join(digest.hex())
}
