//! Index and manifest: the documents behind a reference, parsed by shape and within limits.
//!
//! A document is judged by what is in it. IronCore's manifests come with the specification's own
//! media type, with OCI's, and with none; what decides is `manifests` (an index) against `config`
//! and `layers` (a manifest). A document that is both, or that says one thing and is the other,
//! is refused: two readers would see two images in it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use thiserror::Error;

use crate::oci::object::Object;
use crate::oci::{Descriptor, Digest, Platform, Printable};

/// Media type of an OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of an OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// The IronCore specification's own media type of a manifest; common registries refuse bodies
/// that carry it, so it is met in layouts and in index entries.
pub const IRONCORE_ARTIFACTS: &str = "application/vnd.ironcore.image.artifacts.v1+json";
/// Docker's word for an index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's word for a manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// Every media type of a document that is accepted, in the order in which they are asked for.
pub const DOCUMENT_TYPES: [&str; 5] = [
    OCI_INDEX,
    OCI_MANIFEST,
    IRONCORE_ARTIFACTS,
    DOCKER_LIST,
    DOCKER_MANIFEST,
];

/// Largest index or manifest that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Largest number of entries in an index, and of layers in a manifest.
pub const MAX_ENTRIES: usize = 256;

/// What a reference leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// A list of manifests.
    Index(Index),
    /// One image.
    Manifest(Manifest),
}

/// A list of manifests, one per architecture and variant.
///
/// Format: OCI image-spec v1.1, image-index.md; IronCore OCI image specification, "Index Manifest".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The entries in their order; the order means nothing.
    pub entries: Vec<IndexEntry>,
}

/// An entry of an index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The manifest's descriptor, with the entry's annotations.
    pub descriptor: Descriptor,
    /// What it is for, if the entry says so.
    pub platform: Option<Platform>,
}

/// One image: a config and layers.
///
/// Format: OCI image-spec v1.1, manifest.md; IronCore specification, "Artifact Manifest".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The config blob.
    pub config: Descriptor,
    /// The layers in their order; the order means nothing.
    pub layers: Vec<Descriptor>,
    /// Annotations of the manifest itself.
    pub annotations: BTreeMap<String, String>,
}

/// What is wrong with a document.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// Not JSON, or a field of the wrong type, twice, or missing.
    #[error("{digest} is not a readable index or manifest")]
    Json {
        /// The document.
        digest: Digest,
        /// Where the parser stopped.
        #[source]
        source: serde_json::Error,
    },
    /// It could be read as an index and as a manifest, or as neither.
    #[error("{digest} has {found}: it is neither an index nor a manifest")]
    Shape {
        /// The document.
        digest: Digest,
        /// Which of the telling fields it has.
        found: &'static str,
    },
    /// It says that it is something else than it is.
    #[error("{digest} is {shape} by its content, but {says} says: {media_type}")]
    MediaType {
        /// The document.
        digest: Digest,
        /// What it is.
        shape: &'static str,
        /// Who says otherwise.
        says: &'static str,
        /// The media type that does not fit.
        media_type: String,
    },
    /// More entries or layers than any image has.
    #[error("{digest} has {count} entries, more than {MAX_ENTRIES}")]
    TooMany {
        /// The document.
        digest: Digest,
        /// How many.
        count: usize,
    },
    /// A descriptor that wants to be fetched from elsewhere.
    #[error("{digest} names a blob with its own urls, which are never followed: {blob}")]
    Urls {
        /// The document.
        digest: Digest,
        /// The blob.
        blob: Digest,
    },
    /// One blob with two sizes.
    #[error("{digest} names one blob with two different sizes: {blob}")]
    TwoSizes {
        /// The document.
        digest: Digest,
        /// The blob.
        blob: Digest,
    },
    /// The sizes do not fit in 64 bits.
    #[error("{digest} has layers of more than 2^63 bytes")]
    TooLarge {
        /// The document.
        digest: Digest,
    },
}

impl Document {
    /// Parses `bytes`, whose digest has been checked to be `digest`.
    ///
    /// `says` is what the descriptor or the registry called it, if anything did.
    pub fn parse(bytes: &[u8], digest: Digest, says: Option<&str>) -> Result<Self, DocumentError> {
        let Object(wire): Object<WireDocument> = serde_json::from_slice(bytes)
            .map_err(|source| DocumentError::Json { digest, source })?;
        let shape_error = |found| DocumentError::Shape { digest, found };
        let media_type = wire.media_type.clone();
        let document = match (wire.manifests, wire.config, wire.layers, wire.fs_layers) {
            (.., Some(_)) => return Err(shape_error("`fsLayers` (docker's schema 1)")),
            (Some(manifests), None, None, None) => Self::Index(index(manifests, digest)?),
            (None, Some(config), Some(layers), None) => {
                Self::Manifest(manifest(config, layers, wire.annotations, digest)?)
            }
            (Some(_), ..) => return Err(shape_error("`manifests` beside `config` or `layers`")),
            (None, Some(_), None, None) => return Err(shape_error("`config` without `layers`")),
            (None, None, Some(_), None) => return Err(shape_error("`layers` without `config`")),
            (None, None, None, None) => {
                return Err(shape_error("neither `manifests` nor `layers`"));
            }
        };
        for (says, media_type) in [
            ("its mediaType", media_type.as_deref()),
            ("what refers to it", says),
        ] {
            let Some(media_type) = media_type else {
                continue;
            };
            if !document.may_be(media_type) {
                return Err(DocumentError::MediaType {
                    digest,
                    shape: document.shape(),
                    says,
                    media_type: Printable(media_type).to_string(),
                });
            }
        }
        Ok(document)
    }

    fn shape(&self) -> &'static str {
        match self {
            Self::Index(_) => "an index",
            Self::Manifest(_) => "a manifest",
        }
    }

    fn may_be(&self, media_type: &str) -> bool {
        match self {
            Self::Index(_) => [OCI_INDEX, DOCKER_LIST].contains(&media_type),
            Self::Manifest(_) => {
                [OCI_MANIFEST, IRONCORE_ARTIFACTS, DOCKER_MANIFEST].contains(&media_type)
            }
        }
    }
}

fn index(entries: Vec<Object<WireDescriptor>>, digest: Digest) -> Result<Index, DocumentError> {
    let entries = checked(entries, digest)?
        .into_iter()
        .map(|(descriptor, platform)| IndexEntry {
            descriptor,
            platform,
        })
        .collect();
    Ok(Index { entries })
}

fn manifest(
    config: Object<WireDescriptor>,
    layers: Vec<Object<WireDescriptor>>,
    annotations: Option<BTreeMap<String, String>>,
    digest: Digest,
) -> Result<Manifest, DocumentError> {
    let mut blobs = checked(std::iter::once(config).chain(layers).collect(), digest)?
        .into_iter()
        .map(|(descriptor, _)| descriptor);
    Ok(Manifest {
        config: blobs
            .next()
            .expect("the config is the first of the list above"),
        layers: blobs.collect(),
        annotations: annotations.unwrap_or_default(),
    })
}

/// Checks what concerns several descriptors of one document.
fn checked(
    wire: Vec<Object<WireDescriptor>>,
    digest: Digest,
) -> Result<Vec<(Descriptor, Option<Platform>)>, DocumentError> {
    if wire.len() > MAX_ENTRIES + 1 {
        let count = wire.len();
        return Err(DocumentError::TooMany { digest, count });
    }
    let mut sizes = BTreeMap::new();
    for Object(entry) in &wire {
        let blob = entry.digest;
        if entry.urls.as_ref().is_some_and(|urls| !urls.is_empty()) {
            return Err(DocumentError::Urls { digest, blob });
        }
        if *sizes.entry(blob).or_insert(entry.size) != entry.size {
            return Err(DocumentError::TwoSizes { digest, blob });
        }
    }
    sizes
        .values()
        .try_fold(0_u64, |sum, size| sum.checked_add(*size))
        .filter(|sum| *sum < 1 << 63)
        .ok_or(DocumentError::TooLarge { digest })?;
    Ok(wire
        .into_iter()
        .map(|Object(entry)| entry.parts())
        .collect())
}

impl Manifest {
    /// Every blob of the image, the config among them, each once.
    #[must_use]
    pub fn blobs(&self) -> Vec<&Descriptor> {
        let mut seen = BTreeSet::new();
        std::iter::once(&self.config)
            .chain(&self.layers)
            .filter(|descriptor| seen.insert(descriptor.digest))
            .collect()
    }
}

/// The JSON of an index or manifest. Unknown fields are skipped, known ones twice are an error.
#[derive(Deserialize)]
struct WireDocument {
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<Vec<Object<WireDescriptor>>>,
    config: Option<Object<WireDescriptor>>,
    layers: Option<Vec<Object<WireDescriptor>>>,
    #[serde(rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct WireDescriptor {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: Digest,
    size: u64,
    urls: Option<Vec<serde::de::IgnoredAny>>,
    annotations: Option<BTreeMap<String, String>>,
    platform: Option<Object<WirePlatform>>,
}

#[derive(Deserialize)]
struct WirePlatform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
}

impl WireDescriptor {
    fn parts(self) -> (Descriptor, Option<Platform>) {
        let descriptor = Descriptor {
            media_type: self.media_type,
            digest: self.digest,
            size: self.size,
            annotations: self.annotations.unwrap_or_default(),
        };
        let platform = self
            .platform
            .filter(|Object(wire)| !wire.architecture.is_empty())
            .map(|Object(wire)| Platform {
                os: wire.os,
                architecture: wire.architecture.into(),
            });
        (descriptor, platform)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn parse(json: &str, says: Option<&str>) -> Result<Document, DocumentError> {
        Document::parse(json.as_bytes(), Digest::of(json.as_bytes()), says)
    }

    fn descriptor(digest: &str, size: &str) -> String {
        format!(r#"{{"mediaType":"x/y","digest":"{digest}","size":{size}}}"#)
    }

    /// A manifest with one layer and `extra` fields.
    fn manifest_json(layer: &str, extra: &str) -> String {
        let config = descriptor(A, "2");
        format!(r#"{{"schemaVersion":2,{extra}"config":{config},"layers":[{layer}]}}"#)
    }

    #[test]
    fn documents_are_told_apart_by_shape() {
        let layer = descriptor(B, "7");
        for extra in [
            String::new(),
            format!(r#""mediaType":"{OCI_MANIFEST}","#),
            format!(r#""mediaType":"{IRONCORE_ARTIFACTS}","#),
            format!(r#""mediaType":"{DOCKER_MANIFEST}","#),
        ] {
            let Document::Manifest(manifest) =
                parse(&manifest_json(&layer, &extra), Some(IRONCORE_ARTIFACTS)).unwrap()
            else {
                panic!("a manifest was read as an index");
            };
            assert_eq!(manifest.layers[0].size, 7);
        }
        let json = format!(
            r#"{{"manifests":[{{"mediaType":"x","digest":"{A}","size":3,
                "platform":{{"architecture":"x86_64","os":"linux"}}}}]}}"#
        );
        let Document::Index(index) = parse(&json, Some(OCI_INDEX)).unwrap() else {
            panic!("an index was read as a manifest");
        };
        let platform = index.entries[0].platform.as_ref().unwrap();
        assert_eq!(platform.to_string(), "linux/amd64");
    }

    #[test]
    fn documents_that_two_readers_would_read_differently_are_refused() {
        let layer = descriptor(B, "7");
        let index_type = format!(r#""mediaType":"{OCI_INDEX}","#);
        let both = format!(r#""manifests":[{layer}],"#);
        let schema1 = r#""fsLayers":[],"#;
        let twice = r#""layers":[],"#;
        for json in [
            manifest_json(&layer, &both),
            manifest_json(&layer, &index_type),
            manifest_json(&layer, schema1),
            manifest_json(&layer, twice),
            r#"{"schemaVersion":2}"#.to_owned(),
            format!(r#"{{"layers":[{layer}]}}"#),
        ] {
            assert!(parse(&json, None).is_err(), "{json}");
        }
        let manifest = manifest_json(&layer, "");
        assert!(parse(&manifest, Some(OCI_INDEX)).is_err());
        assert!(parse(&manifest, Some("text/html")).is_err());
    }

    #[test]
    fn descriptors_that_cannot_be_right_are_refused() {
        let urls =
            format!(r#"{{"mediaType":"x","digest":"{B}","size":1,"urls":["http://127.0.0.1/"]}}"#);
        let two_sizes = format!("{},{}", descriptor(B, "1"), descriptor(B, "2"));
        let max = u64::MAX.to_string();
        let many = vec![descriptor(B, "1"); MAX_ENTRIES + 1].join(",");
        for layer in [
            descriptor("sha256:../../../../evil?x=1", "1"),
            descriptor(B, "-1"),
            descriptor(B, "1e3"),
            descriptor(B, "\"10\""),
            descriptor(B, &max),
            urls,
            two_sizes,
            many,
        ] {
            assert!(parse(&manifest_json(&layer, ""), None).is_err(), "{layer}");
        }
    }

    #[test]
    fn odd_json_is_an_error_and_not_a_panic() {
        let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
        let hidden = format!(r#"{{"x":{deep}}}"#);
        for json in [
            "",
            "\u{feff}{}",
            "null",
            "[]",
            deep.as_str(),
            hidden.as_str(),
        ] {
            assert!(parse(json, None).is_err());
        }
    }
}
