//! From a reference to a plan, reading manifests and the small blobs that they are made with.

use futures_util::StreamExt;

use crate::boot::plan::Metadata;
use crate::boot::{BootOptions, BootPlan, PlanError, plan};
use crate::image::config::{ImageConfig, MAX_CONFIG_BYTES};
use crate::image::select::{Candidate, Dropped, Offer, SelectError, Wanted, may_fit, select};
use crate::image::{LayerRole, Selected};
use crate::oci::manifest::{IndexEntry, MAX_DOCUMENT_BYTES};
use crate::oci::{Architecture, Descriptor, Digest, Document, Index, Reference, manifest};
use crate::ops::{Context, OpsError, Progress};
use crate::source::{self, RawDocument, Source, SourceError, Wanted as Which};
use crate::store::{Store, StoreError};

/// Largest command line layer that is read, in bytes; what is longer no kernel takes.
const MAX_COMMAND_LINE_LAYER_BYTES: u64 = 64 << 10;

/// Which image is meant, and how it is to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRequest {
    /// Where it is to be had.
    pub reference: Reference,
    /// Architecture and variant.
    pub wanted: Wanted,
    /// What the caller asks of the boot.
    pub boot: BootOptions,
}

/// What a reference led to.
#[derive(Debug)]
pub struct Resolved {
    /// The source, for the blobs.
    pub source: Box<dyn Source>,
    /// The chosen image and what was passed over.
    pub selected: Selected,
    /// The document that the reference names.
    pub top: Descriptor,
    /// Every document on the way, top first, with its bytes.
    pub documents: Vec<(Descriptor, Vec<u8>)>,
    /// The index, if there is one.
    pub index: Option<Index>,
    /// How it boots, or why it does not.
    pub plan: Result<BootPlan, PlanError>,
}

/// Resolves, selects and plans. Fetches no layer but the command line's.
pub async fn resolve(context: &Context<'_>, request: &ImageRequest) -> Result<Resolved, OpsError> {
    let reference = &request.reference;
    (context.report)(Progress::Resolving(reference.clone()));
    let source = source::open(reference, &context.sources)?;
    let raw = match stored_top(&context.store, reference)? {
        Some(raw) => raw,
        None => source.document(Which::Reference).await?,
    };
    let document = Document::parse(&raw.bytes, raw.digest, raw.media_type.as_deref())?;
    let top = describe(&raw, &document);
    let mut documents = vec![(top.clone(), raw.bytes)];
    let mut broken = None;
    let mut whole_index = None;
    let (candidates, dropped, index_digest) = match document {
        Document::Manifest(manifest) => {
            let candidate = Candidate {
                digest: top.digest,
                entry: None,
                manifest,
            };
            (vec![candidate], Vec::new(), None)
        }
        Document::Index(index) => {
            let read =
                read_entries(context, &*source, &index, &request.wanted.architecture).await?;
            documents.extend(read.documents);
            broken = read.broken;
            whole_index = Some(index);
            (read.candidates, read.dropped, Some(top.digest))
        }
    };
    let selected = select(
        reference,
        index_digest,
        candidates,
        dropped,
        &request.wanted,
    );
    let selected = match (selected, broken) {
        // What was looked for may be the very entry that is broken.
        (Err(SelectError::NoMatch { .. }), Some(broken)) => return Err(broken),
        (selected, _) => selected?,
    };
    let chosen = selected.image.manifest_digest;
    documents.retain(|(descriptor, _)| [top.digest, chosen].contains(&descriptor.digest));
    let metadata = read_metadata(context, &*source, &selected).await?;
    check_architecture(&selected, &metadata.config, request)?;
    let plan = plan(&selected.image, &metadata, &request.boot);
    Ok(Resolved {
        source,
        selected,
        top,
        documents,
        index: whole_index,
        plan,
    })
}

/// The descriptor of a document as it came.
fn describe(raw: &RawDocument, document: &Document) -> Descriptor {
    let by_shape = match document {
        Document::Index(_) => manifest::OCI_INDEX,
        Document::Manifest(_) => manifest::OCI_MANIFEST,
    };
    Descriptor::of(raw.media_type.as_deref().unwrap_or(by_shape), &raw.bytes)
}

#[derive(Default)]
struct ReadEntries {
    candidates: Vec<Candidate>,
    dropped: Vec<Dropped>,
    documents: Vec<(Descriptor, Vec<u8>)>,
    /// Why the first of the broken entries could not be read.
    broken: Option<OpsError>,
}

/// Reads the manifest of every entry that may be for `architecture`.
async fn read_entries(
    context: &Context<'_>,
    source: &dyn Source,
    index: &Index,
    architecture: &Architecture,
) -> Result<ReadEntries, OpsError> {
    let mut read = ReadEntries::default();
    let mut fitting = Vec::new();
    for entry in &index.entries {
        match may_fit(entry, architecture) {
            Ok(()) => fitting.push(entry),
            Err(dropped) => read.dropped.push(dropped),
        }
    }
    let mut answers = futures_util::stream::iter(fitting)
        .map(|entry| async move { (entry, read_entry(context, source, entry).await) })
        .buffered(4);
    while let Some((entry, answer)) = answers.next().await {
        match answer {
            Ok((bytes, manifest)) => {
                read.documents.push((entry.descriptor.clone(), bytes));
                read.candidates.push(Candidate {
                    digest: entry.descriptor.digest,
                    entry: Some(entry.clone()),
                    manifest,
                });
            }
            // One broken entry does not make its neighbours unusable; a source that fails does.
            Err(error) if is_entrys_fault(&error) => {
                read.dropped.push(Dropped::unread(entry, error.to_string()));
                read.broken.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Reads the manifest of an index entry, from the store if it is there.
pub(super) async fn read_entry(
    context: &Context<'_>,
    source: &dyn Source,
    entry: &IndexEntry,
) -> Result<(Vec<u8>, manifest::Manifest), OpsError> {
    let descriptor = &entry.descriptor;
    let raw = match stored(&context.store, descriptor, MAX_DOCUMENT_BYTES)? {
        Some(bytes) => RawDocument {
            bytes,
            digest: descriptor.digest,
            media_type: None,
        },
        None => source.document(Which::Entry(descriptor)).await?,
    };
    let says = Some(entry.descriptor.media_type.as_str())
        .filter(|says| manifest::DOCUMENT_TYPES.contains(says));
    match Document::parse(&raw.bytes, raw.digest, says)? {
        Document::Manifest(manifest) => Ok((raw.bytes, manifest)),
        Document::Index(_) => Err(OpsError::NestedIndex { index: raw.digest }),
    }
}

/// Tells whether an entry could not be read because of what it is.
fn is_entrys_fault(error: &OpsError) -> bool {
    match error {
        OpsError::Document(_) | OpsError::NestedIndex { .. } => true,
        OpsError::Source(error) => {
            error.is_not_found()
                || matches!(
                    error,
                    SourceError::DigestMismatch { .. }
                        | SourceError::SizeMismatch { .. }
                        | SourceError::TooLarge { .. }
                )
        }
        _ => false,
    }
}

/// Fetches the config and the command line layer.
async fn read_metadata(
    context: &Context<'_>,
    source: &dyn Source,
    selected: &Selected,
) -> Result<Metadata, OpsError> {
    let image = &selected.image;
    let config = &image.manifest.config;
    let parsed = if config.digest == Digest::of(b"{}") {
        ImageConfig::default()
    } else {
        let bytes = fetch_small(context, source, config, MAX_CONFIG_BYTES, "config").await?;
        match ImageConfig::parse(&bytes, config.digest) {
            // It would only be asked for the kernel's command line.
            Err(_) if image.roles.get(LayerRole::Kernel).is_none() => ImageConfig::default(),
            parsed => parsed?,
        }
    };
    let command_line_layer = match image.roles.get(LayerRole::CommandLine) {
        Some(layer) => Some(
            fetch_small(
                context,
                source,
                layer,
                MAX_COMMAND_LINE_LAYER_BYTES,
                "command line",
            )
            .await?,
        ),
        None => None,
    };
    Ok(Metadata {
        config: parsed,
        command_line_layer,
    })
}

/// The document that a reference names by digest, if the store has it: then nobody is asked.
fn stored_top(store: &Store, reference: &Reference) -> Result<Option<RawDocument>, StoreError> {
    let Some(digest) = reference.digest() else {
        return Ok(None);
    };
    let Some(descriptor) = store.document(digest)? else {
        return Ok(None);
    };
    let bytes = stored(store, &descriptor, MAX_DOCUMENT_BYTES)?;
    Ok(bytes.map(|bytes| RawDocument {
        bytes,
        digest: *digest,
        media_type: Some(descriptor.media_type),
    }))
}

/// Reads a small blob that the store has; nothing if it has it not, or if it is damaged there.
fn stored(
    store: &Store,
    blob: &Descriptor,
    limit_bytes: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let Ok(Some(found)) = store.peek(blob) else {
        return Ok(None);
    };
    let content = found.head(limit_bytes)?;
    let mut hasher = blob.digest.hasher();
    hasher.update(&content);
    Ok((hasher.finish() == blob.digest).then_some(content))
}

/// Reads a small blob into memory, from the store or from the source, and verifies it.
async fn fetch_small(
    context: &Context<'_>,
    source: &dyn Source,
    blob: &Descriptor,
    limit_bytes: u64,
    role: &'static str,
) -> Result<Vec<u8>, OpsError> {
    if blob.size > limit_bytes {
        return Err(OpsError::MetadataTooLarge {
            blob: blob.digest,
            role,
            size_bytes: blob.size,
            limit_bytes,
        });
    }
    if let Some(content) = stored(&context.store, blob, limit_bytes)? {
        return Ok(content);
    }
    let mut stream = source.blob(blob, 0).await?.bytes;
    let mut content = Vec::new();
    while let Some(bytes) = stream.next().await {
        content.extend_from_slice(&bytes?);
    }
    if content.len() as u64 != blob.size {
        return Err(StoreError::TooShort {
            blob: blob.digest,
            expected_bytes: blob.size,
            actual_bytes: content.len() as u64,
        }
        .into());
    }
    let mut hasher = blob.digest.hasher();
    hasher.update(&content);
    match hasher.finish() {
        actual if actual == blob.digest => Ok(content),
        actual => Err(StoreError::Content {
            expected: blob.digest,
            actual,
        }
        .into()),
    }
}

/// Checks an image of which only the config says the architecture.
fn check_architecture(
    selected: &Selected,
    config: &ImageConfig,
    request: &ImageRequest,
) -> Result<(), SelectError> {
    let image = &selected.image;
    match (&image.architecture, &config.architecture) {
        (None, Some(says)) if *says != request.wanted.architecture => Err(SelectError::NoMatch {
            reference: image.reference.clone(),
            wanted: request.wanted.clone(),
            offers: vec![Dropped {
                digest: image.manifest_digest,
                offer: Offer {
                    platform: format!("linux/{says}"),
                    variant: image.variant,
                    roles: String::new(),
                },
                reason: format!("for {says} by its config"),
            }],
        }),
        _ => Ok(()),
    }
}
