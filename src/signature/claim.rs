//! One signature: who made it, and what it says that it is of.
//!
//! The signature is verified before what it signs is read: only the holder of a key has us parse
//! anything but the envelope.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use thiserror::Error;

use crate::oci::object::Object;
use crate::oci::{Digest, Printable};
use crate::signature::attached::{BUNDLE, Signature};
use crate::signature::key::PublicKey;

/// What cosign calls its signatures of images.
const SIMPLE_SIGNING_TYPE: &str = "cosign container image signature";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// What cosign's statement says of its subject: that it was signed, and no more.
const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// What a signature says, by whoever holds one of the keys.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) key: Digest,
    pub(super) form: Form,
    pub(super) covers: Vec<Digest>,
    pub(super) identity: Option<String>,
}

/// The form of a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Simple signing, as cosign up to version 2 has it: by the tag `sha256-….sig`.
    SimpleSigning,
    /// A bundle of version 0.3, as cosign from version 3 on has it: a referrer of the image.
    Bundle,
}

/// Why a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It is of no form that is known.
    #[error("it can not be read as {what}")]
    Unreadable {
        /// What it should be.
        what: &'static str,
    },
    /// It is by a certificate.
    #[error("it is by a certificate, and only keys are supported")]
    ByCertificate,
    /// It is of a form that is not taken.
    #[error("its {what} is {found}, which is not supported")]
    Unsupported {
        /// Which part of it.
        what: &'static str,
        /// What that is.
        found: String,
    },
    /// None of the keys made it.
    #[error("it is by none of the policy's keys, or of something else")]
    OtherKey,
    /// It is of other images.
    #[error("it is of another image: {}", list(covers))]
    OtherImage {
        /// Those that it is of.
        covers: Vec<Digest>,
    },
    /// It says that it is of an image that was not asked for.
    #[error("it is of {}, which {asked} does not let in", Printable(claimed))]
    OtherIdentity {
        /// What it says.
        claimed: String,
        /// What the policy asks.
        asked: &'static str,
    },
    /// It does not say which image it is of.
    #[error("it names no repository, which {asked} asks for")]
    NoIdentity {
        /// What the policy asks.
        asked: &'static str,
    },
}

fn list(digests: &[Digest]) -> String {
    let words: Vec<String> = digests.iter().take(4).map(ToString::to_string).collect();
    words.join(", ")
}

/// Verifies `signature` by any of `keys`.
pub(super) fn verify(signature: &Signature, keys: &[PublicKey]) -> Result<Claim, Refusal> {
    match signature {
        Signature::Simple {
            payload,
            signature,
            by_certificate,
        } => {
            let signature = decode(signature, "base64")?;
            let key =
                find(keys, payload.as_bytes(), &signature).map_err(
                    |refusal| match by_certificate {
                        true => Refusal::ByCertificate,
                        false => refusal,
                    },
                )?;
            of_payload(payload, key)
        }
        Signature::Bundle { bundle } => of_bundle(bundle, keys),
    }
}

fn decode(text: &str, what: &'static str) -> Result<Vec<u8>, Refusal> {
    let bytes = STANDARD.decode(text);
    bytes.map_err(|_| Refusal::Unreadable { what })
}

fn find(keys: &[PublicKey], message: &[u8], signature: &[u8]) -> Result<Digest, Refusal> {
    let mut keys = keys.iter();
    let key = keys.find(|key| key.has_signed(message, signature));
    key.map(PublicKey::id).ok_or(Refusal::OtherKey)
}

fn is(actual: &str, expected: &str, what: &'static str) -> Result<(), Refusal> {
    if actual == expected {
        return Ok(());
    }
    let found = Printable(actual).to_string();
    Err(Refusal::Unsupported { what, found })
}

fn parse<'a, T: Deserialize<'a>>(text: &'a [u8], what: &'static str) -> Result<T, Refusal> {
    let parsed = serde_json::from_slice(text);
    let Object(value) = parsed.map_err(|_| Refusal::Unreadable { what })?;
    Ok(value)
}

fn of_payload(payload: &str, key: Digest) -> Result<Claim, Refusal> {
    let what = "a simple signing payload";
    let WirePayload { critical, .. } = parse(payload.as_bytes(), what)?;
    let Object(WireCritical {
        r#type,
        image: Object(image),
        identity: Object(identity),
    }) = critical;
    is(&r#type, SIMPLE_SIGNING_TYPE, "type")?;
    Ok(Claim {
        key,
        form: Form::SimpleSigning,
        covers: vec![image.digest],
        identity: Some(identity.reference),
    })
}

fn of_bundle(bundle: &str, keys: &[PublicKey]) -> Result<Claim, Refusal> {
    let wire: WireBundle = parse(bundle.as_bytes(), "a bundle")?;
    is(&wire.media_type, BUNDLE, "media type")?;
    let Object(material) = wire.verification_material;
    if material.certificate.is_some() || material.x509_certificate_chain.is_some() {
        return Err(Refusal::ByCertificate);
    }
    let by_key = material.public_key.is_some();
    let (Some(Object(envelope)), None, true) = (wire.dsse_envelope, wire.message_signature, by_key)
    else {
        let what = "a bundle with a DSSE envelope and a key";
        return Err(Refusal::Unreadable { what });
    };
    is(&envelope.payload_type, IN_TOTO, "payload type")?;
    let body = decode(&envelope.payload, "an envelope in base64")?;
    let [Object(signature)] = envelope.signatures.as_slice() else {
        let what = "an envelope with one signature";
        return Err(Refusal::Unreadable { what });
    };
    let signature = decode(&signature.sig, "a signature in base64")?;
    let key = find(keys, &encode(&envelope.payload_type, &body), &signature)?;
    let statement: WireStatement = parse(&body, "a statement")?;
    is(&statement.r#type, STATEMENT, "statement type")?;
    is(&statement.predicate_type, PREDICATE, "predicate type")?;
    let subjects = statement.subject.iter();
    let digests = subjects.flat_map(|Object(subject)| &subject.digest);
    let covers = digests.filter_map(|(name, hex)| format!("{name}:{hex}").parse().ok());
    Ok(Claim {
        key,
        form: Form::Bundle,
        covers: covers.collect(),
        identity: None,
    })
}

/// What a DSSE envelope signs: its type and its body, each behind its length.
///
/// Format: DSSE v1, protocol.md, "PAE".
pub(super) fn encode(payload_type: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "DSSEv1 {} {payload_type} {} ",
        payload_type.len(),
        body.len()
    );
    [head.as_bytes(), body].concat()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePayload {
    critical: Object<WireCritical>,
    #[serde(rename = "optional")]
    _optional: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireCritical {
    r#type: String,
    image: Object<WireImage>,
    identity: Object<WireIdentity>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireImage {
    #[serde(rename = "docker-manifest-digest")]
    digest: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WireIdentity {
    #[serde(rename = "docker-reference")]
    reference: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireBundle {
    media_type: String,
    verification_material: Object<WireMaterial>,
    dsse_envelope: Option<Object<WireEnvelope>>,
    message_signature: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireMaterial {
    public_key: Option<IgnoredAny>,
    certificate: Option<IgnoredAny>,
    x509_certificate_chain: Option<IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireEnvelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Object<WireSignature>>,
}

#[derive(Deserialize)]
struct WireSignature {
    sig: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireStatement {
    #[serde(rename = "_type")]
    r#type: String,
    predicate_type: String,
    subject: Vec<Object<WireSubject>>,
}

#[derive(Deserialize)]
struct WireSubject {
    digest: BTreeMap<String, String>,
}
