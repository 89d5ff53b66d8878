//! Policies of signatures, what is attached to an image, and the envelopes of signatures.

#![no_main]

use std::collections::BTreeMap;

use ironboot::oci::{Digest, Reference};
use ironboot::signature::{MAX_SIGNATURES, PolicyFile, Signature, evaluate, referrers};
use libfuzzer_sys::fuzz_target;

/// Asks of everything that it is signed by a key whose other half nobody has.
const POLICY: &str = r#"{"default": [{"type": "sigstoreSigned", "keyData":
    "LS0tLS1CRUdJTiBQVUJMSUMgS0VZLS0tLS0KTUNvd0JRWURLMlZ3QXlFQUVCRVNFeFFWRmhjWUdSb2JIQjBlSHlBaElpTWtKU1luS0NrcUt5d3RMaTg9Ci0tLS0tRU5EIFBVQkxJQyBLRVktLS0tLQo="}]}"#;

fuzz_target!(|bytes: &[u8]| {
    let os: Reference = "reg.example/ns/os:1".parse().expect("it is a reference");
    if let Ok(file) = PolicyFile::parse(bytes)
        && file.key_files().is_empty()
    {
        let policy = file
            .with_keys(&BTreeMap::new())
            .expect("it has all its keys");
        assert!(!policy.rules_for(&os).requirements.is_empty());
    }
    if let Ok(entries) = referrers(bytes) {
        assert!(entries.len() <= MAX_SIGNATURES);
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let policy =
        PolicyFile::parse(POLICY.as_bytes()).and_then(|file| file.with_keys(&BTreeMap::new()));
    let policy = policy.expect("it is a policy");
    let (payload, signature) = text.split_once('\n').unwrap_or((text, ""));
    for signature in [
        Signature::Bundle {
            bundle: text.to_owned(),
        },
        Signature::Simple {
            payload: payload.to_owned(),
            signature: signature.to_owned(),
            by_certificate: false,
        },
    ] {
        let judged = evaluate(
            &policy.rules_for(&os),
            &os,
            &[Digest::of(b"")],
            &[signature],
        );
        assert!(judged.is_err(), "nobody can have signed it");
    }
});
