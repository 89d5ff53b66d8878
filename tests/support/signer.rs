//! Somebody who signs images as cosign does, in both of its forms.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Digest, Sha512, SigningKey};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, Ed25519KeyPair, KeyPair,
};
use serde_json::{Value, json};

pub(crate) const IN_TOTO: &str = "application/vnd.in-toto+json";
pub(crate) const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";

/// A key pair.
#[derive(Debug)]
pub(crate) enum Signer {
    Ecdsa(EcdsaKeyPair, &'static [u8]),
    Ed25519(Ed25519KeyPair),
    /// Of hashes, as cosign does it.
    Ed25519ph(SigningKey),
}

const P256: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
                      \x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
const P384: &[u8] = b"\x30\x76\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\
                      \x06\x05\x2b\x81\x04\x00\x22\x03\x62\x00";
const ED25519: &[u8] = b"\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00";

impl Signer {
    pub(crate) fn p256() -> Self {
        Self::ecdsa(&ECDSA_P256_SHA256_ASN1_SIGNING, P256)
    }

    pub(crate) fn p384() -> Self {
        Self::ecdsa(&ECDSA_P384_SHA384_ASN1_SIGNING, P384)
    }

    fn ecdsa(algorithm: &'static EcdsaSigningAlgorithm, head: &'static [u8]) -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref(), &random).unwrap();
        Self::Ecdsa(pair, head)
    }

    pub(crate) fn ed25519() -> Self {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
        Self::Ed25519(Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap())
    }

    pub(crate) fn ed25519ph() -> Self {
        Self::Ed25519ph(SigningKey::from_bytes(
            b"32 bytes that are nobody's secret"[..32]
                .try_into()
                .unwrap(),
        ))
    }

    /// The public key, as cosign and openssl write it.
    pub(crate) fn pem(&self) -> String {
        let (head, bytes) = match self {
            Self::Ecdsa(pair, head) => (*head, pair.public_key().as_ref()),
            Self::Ed25519(pair) => (ED25519, pair.public_key().as_ref()),
            Self::Ed25519ph(key) => return pem(&[ED25519, key.verifying_key().as_bytes()].concat()),
        };
        pem(&[head, bytes].concat())
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ecdsa(pair, _) => {
                let signature = pair.sign(&SystemRandom::new(), message).unwrap();
                signature.as_ref().to_vec()
            }
            Self::Ed25519(pair) => pair.sign(message).as_ref().to_vec(),
            Self::Ed25519ph(key) => {
                let hash = Sha512::new_with_prefix(message);
                key.sign_prehashed(hash, None).unwrap().to_bytes().to_vec()
            }
        }
    }

    /// The signature of a simple signing payload, in base64.
    pub(crate) fn simple(&self, payload: &str) -> String {
        STANDARD.encode(self.sign(payload.as_bytes()))
    }

    /// A bundle of `statement`.
    pub(crate) fn bundle(&self, statement: &Value) -> Value {
        self.bundle_of(IN_TOTO, statement.to_string().as_bytes())
    }

    /// A bundle of a body of some type.
    pub(crate) fn bundle_of(&self, payload_type: &str, body: &[u8]) -> Value {
        let signed = [
            format!(
                "DSSEv1 {} {payload_type} {} ",
                payload_type.len(),
                body.len()
            )
            .as_bytes(),
            body,
        ]
        .concat();
        json!({
            "mediaType": BUNDLE,
            "verificationMaterial": {"publicKey": {"hint": "of a test"}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": STANDARD.encode(body),
                "payloadType": payload_type,
                "signatures": [{"sig": STANDARD.encode(self.sign(&signed)), "keyid": ""}],
            },
        })
    }
}

/// A public key of these bytes.
pub(crate) fn pem(info: &[u8]) -> String {
    let digits = STANDARD.encode(info);
    let lines: Vec<&str> = digits
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap())
        .collect();
    let lines = lines.join("\n");
    format!("-----BEGIN PUBLIC KEY-----\n{lines}\n-----END PUBLIC KEY-----\n")
}

/// What cosign signs for the document `digest` of `reference`.
pub(crate) fn payload(digest: &str, reference: &str) -> String {
    json!({
        "critical": {
            "identity": {"docker-reference": reference},
            "image": {"docker-manifest-digest": digest},
            "type": "cosign container image signature",
        },
        "optional": null,
    })
    .to_string()
}

/// The statement that cosign signs for the document `digest`.
pub(crate) fn statement(digest: &str) -> Value {
    let (algorithm, hex) = digest.split_once(':').unwrap();
    json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {algorithm: hex}}],
        "predicateType": "https://sigstore.dev/cosign/sign/v1",
        "predicate": {},
    })
}
