//! What is attached to an image in its repository, and which of it are signatures.
//!
//! ```text
//! tag sha256-<hex>.sig     a manifest; each layer is a payload, its signature an annotation
//! referrers of <digest>    an index of manifests, whose layers are bundles
//! tag sha256-<hex>         the same, where a registry can not list what refers to a digest
//! ```

use serde::{Deserialize, Serialize};
use serde_json::{Error, Value};

use crate::oci::object::Object;
use crate::oci::{Descriptor, Digest, Manifest};
use crate::signature::{MAX_SIGNATURE_BYTES, MAX_SIGNATURES};

/// Media type of a bundle.
pub(super) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
/// Longest tag that there is.
const MAX_TAG_BYTES: usize = 128;
/// What some registries say of an artifact whose type they do not know: that of its config.
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

/// Where signatures of an image are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the manifest of the tag `<algorithm>-<hex>.sig`.
    Tag,
    /// Among the manifests that refer to the image, as the registry lists them.
    Referrers,
    /// Among the same, as whoever wrote them lists them under the tag `<algorithm>-<hex>`.
    ReferrersTag,
}

impl Place {
    /// All of them, in the order in which they are asked.
    pub const ALL: [Self; 3] = [Self::Tag, Self::Referrers, Self::ReferrersTag];

    /// The tag that the place has for `digest`; none if it is no tag, or would be longer than tags
    /// are.
    #[must_use]
    pub fn tag(self, digest: &Digest) -> Option<String> {
        let (algorithm, hex) = (digest.algorithm(), digest.hex());
        let tag = match self {
            Self::Tag => format!("{algorithm}-{hex}.sig"),
            Self::Referrers => return None,
            Self::ReferrersTag => format!("{algorithm}-{hex}"),
        };
        (tag.len() <= MAX_TAG_BYTES).then_some(tag)
    }

    /// The type of artifact that is asked for among referrers.
    pub const ARTIFACT_TYPE: &str = BUNDLE;
}

/// A signature as it came, not verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "form", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Signature {
    /// A payload, and its signature.
    Simple {
        /// What is signed.
        payload: String,
        /// The signature in base64.
        signature: String,
        /// Whether a certificate came with it.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        by_certificate: bool,
    },
    /// A bundle of version 0.3.
    Bundle {
        /// The bundle's JSON.
        bundle: String,
    },
}

impl Signature {
    /// Makes one of a layer and its content; none if the layer is none, or its content no text.
    #[must_use]
    pub fn of_layer(layer: &Descriptor, content: Vec<u8>) -> Option<Self> {
        let text = String::from_utf8(content).ok()?;
        match layer.media_type.as_str() {
            BUNDLE => Some(Self::Bundle { bundle: text }),
            SIMPLE_SIGNING => Some(Self::Simple {
                payload: text,
                signature: layer.annotations.get(SIGNATURE)?.clone(),
                by_certificate: layer.annotations.contains_key(CERTIFICATE),
            }),
            _ => None,
        }
    }
}

/// The layers of a manifest that are signatures and not too large, and not too many.
pub fn layers(manifest: &Manifest) -> impl Iterator<Item = &Descriptor> {
    let is_signature = |layer: &&Descriptor| match layer.media_type.as_str() {
        BUNDLE => true,
        SIMPLE_SIGNING => layer.annotations.contains_key(SIGNATURE),
        _ => false,
    };
    let layers = manifest.layers.iter().filter(is_signature);
    layers
        .filter(|layer| layer.size <= MAX_SIGNATURE_BYTES)
        .take(MAX_SIGNATURES)
}

/// The manifests of an index of referrers that may be signatures, not too large, and not too many:
/// what the registry was asked to leave out it need not have left out. What can not be read or is too
/// large is left out, and hides nothing that is beside it.
pub fn referrers(index: &[u8]) -> Result<Vec<Descriptor>, Error> {
    let Object(WireReferrers { manifests }) = serde_json::from_slice(index)?;
    let read = |entry| serde_json::from_value::<Object<WireReferrer>>(entry).ok();
    let is_wanted = |entry: &WireReferrer| match entry.artifact_type.as_deref() {
        Some(artifact_type) => [BUNDLE, EMPTY].contains(&artifact_type),
        None => true,
    };
    let entries = manifests.into_iter().filter_map(read);
    let wanted = entries.map(|Object(entry)| entry).filter(is_wanted);
    Ok(wanted
        .map(|entry| entry.descriptor)
        .filter(|descriptor| descriptor.size <= MAX_SIGNATURE_BYTES)
        .take(MAX_SIGNATURES)
        .collect())
}

#[derive(Deserialize)]
struct WireReferrers {
    manifests: Vec<Value>,
}

#[derive(Deserialize)]
struct WireReferrer {
    #[serde(flatten)]
    descriptor: Descriptor,
    #[serde(rename = "artifactType")]
    artifact_type: Option<String>,
}
