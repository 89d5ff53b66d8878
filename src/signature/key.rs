//! Public keys: of three kinds, told by the head that each of them has and no other key.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Digest as _, Sha512, VerifyingKey};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    UnparsedPublicKey, VerificationAlgorithm,
};
use thiserror::Error;

use crate::oci::Digest;

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";

/// What a SubjectPublicKeyInfo of each kind begins with, and its whole length in bytes. An
/// uncompressed point follows, or the 32 bytes of Ed25519.
const KINDS: [(Kind, &[u8], usize); 3] = [
    (
        Kind::P256,
        b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
          \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00",
        91,
    ),
    (
        Kind::P384,
        b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
          \x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00",
        120,
    ),
    (
        Kind::Ed25519,
        b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00",
        44,
    ),
];

/// Object identifiers of keys that are well known and not taken.
const OTHERS: [(&[u8], &str); 4] = [
    (b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01", "RSA"),
    (b"\x2b\x81\x04\x00\x23", "P-521"),
    (b"\x2b\x81\x04\x00\x0a", "secp256k1"),
    (b"\x2b\x65\x71", "Ed448"),
];

/// A public key.
#[derive(Debug, Clone)]
pub struct PublicKey {
    kind: Kind,
    /// What follows the head.
    bytes: Vec<u8>,
    id: Digest,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    P256,
    P384,
    Ed25519,
}

/// What is wrong with a public key.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum KeyError {
    /// It is not in the form that cosign and openssl write.
    #[error("it is not one `PUBLIC KEY` in PEM")]
    NotPem,
    /// It is of a kind that is not taken.
    #[error("it is of the kind {0}, and P-256, P-384 and Ed25519 are supported")]
    Kind(&'static str),
    /// It is nothing that is known.
    #[error("it is no key of P-256, P-384 or Ed25519 with an uncompressed point")]
    Unknown,
}

impl PublicKey {
    /// Parses one key in PEM.
    pub fn parse(pem: &[u8]) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(pem).map_err(|_| KeyError::NotPem)?;
        let inside = text.trim().strip_prefix(BEGIN);
        let inside = inside.and_then(|rest| rest.strip_suffix(END));
        let digits: String = inside
            .ok_or(KeyError::NotPem)?
            .split_ascii_whitespace()
            .collect();
        let info = STANDARD.decode(digits).map_err(|_| KeyError::NotPem)?;
        for (kind, head, length) in KINDS {
            if let Some(bytes) = info.strip_prefix(head)
                && info.len() == length
            {
                return Ok(Self {
                    kind,
                    bytes: bytes.to_vec(),
                    id: Digest::of(&info),
                });
            }
        }
        let named = OTHERS.into_iter().find(|(identifier, _)| {
            let mut windows = info.windows(identifier.len()).take(32);
            windows.any(|window| window == *identifier)
        });
        Err(named.map_or(KeyError::Unknown, |(_, name)| KeyError::Kind(name)))
    }

    /// Digest of the key, in the form SubjectPublicKeyInfo.
    #[must_use]
    pub fn id(&self) -> Digest {
        self.id
    }

    /// Tells whether `signature` is this key's, of `message`.
    ///
    /// A key of P-384 signs hashes of SHA-384 by its own standard, and of SHA-256 by cosign's; one of
    /// Ed25519 the message itself, or by cosign its hash (Ed25519ph, which ring has not).
    #[must_use]
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let by = |algorithm: &'static dyn VerificationAlgorithm| {
            let key = UnparsedPublicKey::new(algorithm, &self.bytes);
            key.verify(message, signature).is_ok()
        };
        match self.kind {
            Kind::P256 => by(&ECDSA_P256_SHA256_ASN1),
            Kind::P384 => by(&ECDSA_P384_SHA384_ASN1) || by(&ECDSA_P384_SHA256_ASN1),
            Kind::Ed25519 => by(&ED25519) || self.has_signed_hash(message, signature),
        }
    }

    /// Format: RFC 8032, Ed25519ph, without a context.
    fn has_signed_hash(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = self.bytes.as_slice().try_into();
        let key = key.ok().and_then(|key| VerifyingKey::from_bytes(key).ok());
        let signature = ed25519_dalek::Signature::from_slice(signature).ok();
        let (Some(key), Some(signature)) = (key, signature) else {
            return false;
        };
        let hash = Sha512::new_with_prefix(message);
        key.verify_prehashed_strict(hash, None, &signature).is_ok()
    }
}
