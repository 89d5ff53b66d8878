//! From a reference to a plan, reading manifests and the small blobs that they are made with.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use futures_util::StreamExt;

use crate::boot::BootOptions;
use crate::boot::plan::Metadata;
use crate::image::config::{ImageConfig, MAX_CONFIG_BYTES, Rest};
use crate::image::select::{Candidate, SelectError, Wanted, may_fit, select};
use crate::image::{Dropped, LayerRole, Roles, Selected, architecture};
use crate::oci::manifest::MAX_DOCUMENT_BYTES;
use crate::oci::{
    Architecture, Descriptor, Digest, Document, Index, LayoutReference, Reference, manifest,
};
use crate::ops::planner::Planner;
use crate::ops::tree::{self, Found, MAX_TOTAL_BYTES, Node, is_entrys_fault, stored};
use crate::ops::trust::{Judge, Trust};
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
    /// When the place that it is to be had from is asked.
    pub pull: PullPolicy,
}

/// When the place that has an image is asked for it.
///
/// The words are podman's and docker's. What a digest names does not change, so whoever has it
/// asks nobody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPolicy {
    /// Each time: where a tag leads by now, and for what the store lacks of that.
    #[default]
    Always,
    /// Only for what the store lacks: a tag leads to where it led before.
    Missing,
    /// Not at all: everything must be in the store.
    Never,
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
    /// Every document on the way, with its bytes: the one that the reference names first, the
    /// chosen manifest last, and in between the indexes within the index.
    pub documents: Vec<(Descriptor, Vec<u8>)>,
    /// The index, if there is one.
    pub index: Option<Index>,
    /// The small blobs that were read to plan with, with their bytes.
    pub small: Vec<(Descriptor, Vec<u8>)>,
    /// Says how it boots.
    pub planner: Planner,
    /// Why the image is trusted; none where no policy asks.
    pub trust: Option<Trust>,
}

/// Resolves, selects and plans. Fetches no layer but the command line's, and no blob of an image
/// that the policy does not let in.
pub async fn resolve(context: &Context<'_>, request: &ImageRequest) -> Result<Resolved, OpsError> {
    let reference = &request.reference;
    let mut judge = Judge::open(context, reference)?;
    (context.report)(Progress::Resolving(reference.clone()));
    let (source, raw) = open(context, reference, request.pull).await?;
    let document = Document::parse(&raw.bytes, raw.digest, raw.media_type.as_deref())?;
    let top = describe(&raw, &document);
    let mut read = ReadEntries::default();
    let mut whole_index = None;
    match document {
        Document::Manifest(manifest) => read.candidates.push(Candidate {
            digest: top.digest,
            entry: None,
            indexes: Vec::new(),
            manifest,
            config_architecture: None,
        }),
        Document::Index(index) => {
            let architecture = &request.wanted.architecture;
            read = read_entries(context, &*source, top.digest, &index, architecture).await?;
            whole_index = Some(index);
        }
    }
    // A signature may be of the index or of the manifest, which the configs have no part in yet:
    // they are blobs of the image.
    let mut digests = vec![top.digest];
    if judge.has_policy() {
        digests.extend(likely(reference, &read, &request.wanted));
        digests.dedup();
    }
    let trust = judge.judge(context, &*source, &digests).await?;
    let mut small = Vec::new();
    let candidates = &mut read.candidates;
    let configs = ask_configs(context, &*source, top.digest, candidates, &mut small).await?;
    let selected = select(reference, read.candidates, read.dropped, &request.wanted);
    let selected = match (selected, read.broken) {
        // What was looked for may be the very entry that is broken.
        (Err(SelectError::NoMatch { .. }), Some(broken)) => return Err(broken),
        (selected, _) => selected?,
    };
    judge.confirm(
        trust.as_ref(),
        &[top.digest, selected.image.manifest_digest],
    )?;
    let mut documents = vec![(top.clone(), raw.bytes)];
    let inner = selected.through.iter();
    for digest in inner.chain([&selected.image.manifest_digest]) {
        documents.extend(read.documents.remove(digest));
    }
    let metadata = read_metadata(context, &*source, &selected, configs, &mut small).await?;
    let planner = Planner::new(
        context,
        &selected.image,
        metadata,
        &request.boot,
        &request.wanted.architecture,
    )?;
    Ok(Resolved {
        source,
        selected,
        top,
        documents,
        index: whole_index,
        small,
        planner,
        trust,
    })
}

/// The manifest that will be chosen, as far as the documents alone say; none if they do not.
fn likely(reference: &Reference, read: &ReadEntries, wanted: &Wanted) -> Option<Digest> {
    let (candidates, dropped) = (read.candidates.clone(), read.dropped.clone());
    match candidates.as_slice() {
        [only] => Some(only.digest),
        _ => {
            let selected = select(reference, candidates, dropped, wanted).ok()?;
            Some(selected.image.manifest_digest)
        }
    }
}

/// The descriptor of a document as it came.
pub(super) fn describe(raw: &RawDocument, document: &Document) -> Descriptor {
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
    /// The manifests, and the indexes within the index.
    documents: BTreeMap<Digest, (Descriptor, Vec<u8>)>,
    /// Why the first of the broken entries could not be read.
    broken: Option<OpsError>,
}

/// Reads the manifest of every entry that may be for `architecture`.
async fn read_entries(
    context: &Context<'_>,
    source: &dyn Source,
    top: Digest,
    index: &Index,
    architecture: &Architecture,
) -> Result<ReadEntries, OpsError> {
    let fits = |entry: &_| may_fit(entry, architecture);
    let mut read = ReadEntries::default();
    for Node { place, found } in tree::walk(context, source, top, index, fits).await? {
        let digest = place.descriptor.digest;
        match found {
            Found::Manifest(bytes, manifest) => {
                read.documents.insert(digest, (place.descriptor, bytes));
                read.candidates.push(Candidate {
                    digest,
                    entry: Some(place.entry),
                    indexes: place.indexes,
                    manifest,
                    config_architecture: None,
                });
            }
            Found::Index(bytes) => {
                read.documents.insert(digest, (place.descriptor, bytes));
            }
            Found::PassedOver(reason) => {
                let dropped = Dropped::unread(&place.entry, &place.indexes, reason);
                read.dropped.push(dropped);
            }
            Found::Broken(error) => {
                let dropped = Dropped::unread(&place.entry, &place.indexes, error.to_string());
                read.dropped.push(dropped);
                read.broken.get_or_insert(error);
            }
        }
    }
    Ok(read)
}

/// Asks the configs of those candidates of whose architecture no document tells. Returns the
/// configs by their digests.
///
/// One that can not be read says nothing; should its manifest be chosen, it is read again, and what
/// is wrong with it is told then.
async fn ask_configs(
    context: &Context<'_>,
    source: &dyn Source,
    top: Digest,
    candidates: &mut [Candidate],
    small: &mut Vec<(Descriptor, Vec<u8>)>,
) -> Result<BTreeMap<Digest, ImageConfig>, OpsError> {
    let mut configs = BTreeMap::new();
    let mut total_bytes: u64 = 0;
    for candidate in candidates {
        let Candidate {
            digest,
            entry,
            manifest,
            ..
        } = &*candidate;
        let is_said = architecture::of_documents(manifest, entry.as_ref()).is_some();
        if is_said || Roles::of(manifest, *digest).is_err() {
            continue;
        }
        let config = &manifest.config;
        if let Entry::Vacant(place) = configs.entry(config.digest) {
            total_bytes = total_bytes.saturating_add(config.size.min(MAX_CONFIG_BYTES));
            if total_bytes > MAX_TOTAL_BYTES {
                return Err(OpsError::TooManyDocuments { index: top });
            }
            match read_config(context, source, config, small).await {
                Ok(config) => {
                    place.insert(config);
                }
                Err(error) if is_entrys_fault(&error) => {}
                Err(error) => return Err(error),
            }
        }
        candidate.config_architecture = configs
            .get(&config.digest)
            .and_then(|config: &ImageConfig| config.architecture.clone());
    }
    Ok(configs)
}

async fn read_config(
    context: &Context<'_>,
    source: &dyn Source,
    config: &Descriptor,
    small: &mut Vec<(Descriptor, Vec<u8>)>,
) -> Result<ImageConfig, OpsError> {
    if config.digest == Digest::of(b"{}") {
        return Ok(ImageConfig::default());
    }
    let bytes = fetch_small(context, source, config, MAX_CONFIG_BYTES, "config").await?;
    small.push((config.clone(), bytes.clone()));
    let (parsed, rest) = ImageConfig::parse(&bytes, config.digest)?;
    if rest == Rest::Skipped {
        let config = config.digest;
        (context.report)(Progress::ConfigSkipped { config });
    }
    Ok(parsed)
}

/// Fetches the config and the command line layer.
async fn read_metadata(
    context: &Context<'_>,
    source: &dyn Source,
    selected: &Selected,
    mut configs: BTreeMap<Digest, ImageConfig>,
    small: &mut Vec<(Descriptor, Vec<u8>)>,
) -> Result<Metadata, OpsError> {
    let image = &selected.image;
    let descriptor = &image.manifest.config;
    let config = match configs.remove(&descriptor.digest) {
        Some(config) => config,
        None => match read_config(context, source, descriptor, small).await {
            // It would only be asked for the kernel's command line.
            Err(OpsError::Config(_)) if image.roles.get(LayerRole::Kernel).is_none() => {
                ImageConfig::default()
            }
            config => config?,
        },
    };
    let command_line_layer = match image.roles.get(LayerRole::CommandLine) {
        Some(layer) => {
            let limit = MAX_COMMAND_LINE_LAYER_BYTES;
            let bytes = fetch_small(context, source, layer, limit, "command line").await?;
            small.push((layer.clone(), bytes.clone()));
            Some(bytes)
        }
        None => None,
    };
    Ok(Metadata {
        config,
        command_line_layer,
    })
}

/// Opens the source of a reference and reads the document that it names, from the store where that
/// is as good.
async fn open(
    context: &Context<'_>,
    reference: &Reference,
    policy: PullPolicy,
) -> Result<(Box<dyn Source>, RawDocument), OpsError> {
    let stored = stored_top(&context.store, reference)?;
    if policy == PullPolicy::Never {
        let Some(raw) = stored else {
            let reference = reference.clone();
            return Err(StoreError::NoReference { reference }.into());
        };
        let layout = Reference::Layout(LayoutReference::document(
            context.store.root().to_owned(),
            raw.digest,
        ));
        return Ok((source::open(&layout, &context.sources)?, raw));
    }
    let source = source::open(reference, &context.sources)?;
    let raw = match stored {
        Some(raw) if policy == PullPolicy::Missing || reference.digest().is_some() => raw,
        Some(raw) if source.current().await? == Some(raw.digest) => raw,
        _ => source.document(Which::Reference).await?,
    };
    Ok((source, raw))
}

/// The document that a reference names, or a tag named when it was last asked for, if the store
/// has it.
fn stored_top(store: &Store, reference: &Reference) -> Result<Option<RawDocument>, StoreError> {
    let descriptor = match (store.reference(reference)?, reference.digest()) {
        (Some(stored), _) => stored.top,
        // It may be part of an image that was pulled by another name.
        (None, Some(digest)) => match store.document(digest)? {
            Some(descriptor) => descriptor,
            None => return Ok(None),
        },
        (None, None) => return Ok(None),
    };
    let bytes = stored(store, &descriptor, MAX_DOCUMENT_BYTES)?;
    Ok(bytes.map(|bytes| RawDocument {
        bytes,
        digest: descriptor.digest,
        media_type: Some(descriptor.media_type),
    }))
}

/// Reads a small blob into memory, from the store or from the source, and verifies it.
pub(super) async fn fetch_small(
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
    loop {
        match receive_small(source, blob).await {
            // Somebody else is asked for it then.
            Err(OpsError::Source(SourceError::Mirror { .. })) => {}
            Err(OpsError::Store(StoreError::Content { .. })) if source.distrust(&blob.digest) => {}
            result => return result,
        }
    }
}

async fn receive_small(source: &dyn Source, blob: &Descriptor) -> Result<Vec<u8>, OpsError> {
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
