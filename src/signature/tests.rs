//! The room as a whole: files and signatures in, verdicts out.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::policy::tests::parse;
use super::signer::{IN_TOTO, Signer, payload, statement};
use super::*;
use crate::oci::Descriptor;

const OS: &str = "reg.example/ns/os:1";

fn digest() -> Digest {
    Digest::of(b"an index")
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

/// Parses a policy without key files; what is wrong with it, as a person would see it.
fn signed_by(signers: &[&Signer], identity: &Value) -> Value {
    let keys = signers.iter().map(|signer| STANDARD.encode(signer.pem()));
    let keys: Vec<String> = keys.collect();
    json!({"type": "sigstoreSigned", "keyDatas": keys, "signedIdentity": identity})
}

/// A policy that asks this of everything.
fn all(requirements: &[Value]) -> Policy {
    parse(&json!({ "default": requirements }).to_string()).unwrap()
}

fn repository() -> Value {
    json!({"type": "matchRepository"})
}

fn simple(signer: &Signer, payload: &str) -> Signature {
    Signature::Simple {
        payload: payload.to_owned(),
        signature: signer.simple(payload),
        by_certificate: false,
    }
}

fn bundle(json: &Value) -> Signature {
    Signature::Bundle {
        bundle: json.to_string(),
    }
}

fn judged(policy: &Policy, signatures: &[Signature]) -> Result<Verdict, Distrust> {
    let os = reference(OS);
    evaluate(&policy.rules_for(&os), &os, &[digest()], signatures)
}

/// Why the only signature does not count.
#[track_caller]
fn refusal(policy: &Policy, signature: Signature) -> String {
    let distrust = judged(policy, &[signature]).unwrap_err();
    let [refusal] = distrust.refusals() else {
        panic!("{distrust}");
    };
    refusal.to_string()
}

#[test]
fn a_signature_of_each_kind_and_form_counts() {
    let digest = digest().to_string();
    for signer in [
        Signer::p256(),
        Signer::p384(),
        Signer::ed25519(),
        Signer::ed25519ph(),
    ] {
        let policy = all(&[signed_by(&[&Signer::p256(), &signer], &repository())]);
        let key = PublicKey::parse(signer.pem().as_bytes()).unwrap().id();
        let simple = simple(&signer, &payload(&digest, "reg.example/ns/os"));
        let bundle = bundle(&signer.bundle(&statement(&digest)));
        for (signature, form, identity) in [
            (simple, Form::SimpleSigning, Some("reg.example/ns/os")),
            (bundle, Form::Bundle, None),
        ] {
            let other = Signature::Bundle {
                bundle: "{}".to_owned(),
            };
            let verdict = judged(&policy, &[other, signature]).unwrap();
            let expected = Signed {
                key,
                form,
                covers: self::digest(),
                identity: identity.map(str::to_owned),
                asked: "matchRepository",
                place: 1,
            };
            assert_eq!(verdict.met, [Met::Signed(expected)]);
            assert_eq!(verdict.signatures().collect::<Vec<_>>(), [1]);
        }
    }
}

/// What `openssl dgst -sha256` wrote, as ring signs hashes of SHA-384 alone.
#[test]
fn a_key_of_p384_may_sign_a_hash_of_sha256() {
    let key = "-----BEGIN PUBLIC KEY-----\n\
        MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAESo1j2WjYaHfvawQntZOpiJ10aHutVRnb\n\
        IFQXLC1DuGeM+ixSWgCEzhtX3unQDuN8yvbD6JLoRgGvEuU/gX3AXvb+2qQBCgNb\n\
        9eoYmSZqjci0X/xj/uJSIXe430KVdb9w\n\
        -----END PUBLIC KEY-----\n";
    let signature = "MGQCME8JzXNje9QCiG4AZBaIpXOFSM2AgoOsjVEsdZQ3sXgc410S10b2AxpGgx+pfkbk\
                     DgIwPskYrrDZ+Kl1Biz3EVyyiK2gEK9UbVY2uofcUi/bKsalB0F9C+3Xd5VUjRwltZ/k";
    let signature = STANDARD.decode(signature).unwrap();
    let key = PublicKey::parse(key.as_bytes()).unwrap();
    assert!(key.has_signed(b"a message", &signature));
    assert!(!key.has_signed(b"another", &signature));
}

/// What cosign 3.1.3 wrote into a registry, by `cosign sign --key`, in its two forms.
#[test]
fn what_cosign_writes_is_read() {
    let key = "-----BEGIN PUBLIC KEY-----\n\
        MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEuzOIGff/KaZPTOimkZfS6A0Rw/Hn\n\
        iH3hueHKU74GanEe2by63XN7so/+2u09NE9mrlS3jyfMqylZsrRcTUFK/Q==\n\
        -----END PUBLIC KEY-----\n";
    let image = "sha256:d2e5b10a045a19dacab3a729eeec8bbfde9074478cfef265ce991fffa408fb37";
    let simple = Signature::Simple {
        payload: format!(
            "{{\"critical\":{{\"identity\":{{\"docker-reference\":\"127.0.0.1:43927/os\"}},\
             \"image\":{{\"docker-manifest-digest\":\"{image}\"}},\
             \"type\":\"cosign container image signature\"}},\"optional\":null}}"
        ),
        signature: "MEUCIFqHgYEMgaXGmJMp26SXaq5kFMoOJMTsc5JI6d3TGUOQAiEAv7J2vuPcstbtmDQbk/\
                    TyMBKwzIP6hv3WZm6z0UskuvI="
            .to_owned(),
        by_certificate: false,
    };
    let body = format!(
        "{{\"_type\":\"https://in-toto.io/Statement/v1\", \"subject\":[{{\"digest\":\
         {{\"sha256\":\"{}\"}}, \"annotations\":{{}}}}], \"predicateType\":\
         \"https://sigstore.dev/cosign/sign/v1\", \"predicate\":{{}}}}",
        &image["sha256:".len()..]
    );
    let bundle = bundle(&json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "publicKey": {"hint": "owaaPnKdAgC17FG0e1tAOyVU9OuNGNrRO0pTSYeGMaA="},
        },
        "dsseEnvelope": {
            "payload": STANDARD.encode(body),
            "payloadType": "application/vnd.in-toto+json",
            "signatures": [{"sig": "MEYCIQCgpDSVncPbLjuQpnzxY7qTFmv8GrELqWGEiveU4AfqkwIhALi37bQu5\
                                    bry/zVUOFfyuFGqA2pgM8ECSgLLGkvf64JQ"}],
        },
    }));
    let requirement = json!({
        "type": "sigstoreSigned",
        "keyData": STANDARD.encode(key),
        "signedIdentity": repository(),
    });
    let policy = all(&[requirement]);
    let os = reference("127.0.0.1:43927/os:1");
    for signature in [simple, bundle] {
        let rules = policy.rules_for(&os);
        let digests = [image.parse().unwrap()];
        assert!(evaluate(&rules, &os, &digests, std::slice::from_ref(&signature)).is_ok());
        // The same of anything else does not count.
        assert!(evaluate(&rules, &os, &[digest()], &[signature]).is_err());
    }
}

#[test]
fn every_requirement_must_be_met_and_each_may_be_by_another_signature() {
    let (one, two) = (Signer::p256(), Signer::ed25519());
    let requirements = [
        signed_by(&[&one], &repository()),
        json!({"type": "insecureAcceptAnything"}),
        signed_by(&[&two], &repository()),
    ];
    let policy = all(&requirements);
    let digest = digest().to_string();
    let payload = payload(&digest, "reg.example/ns/os");
    let (by_one, by_two) = (simple(&one, &payload), simple(&two, &payload));
    let verdict = judged(&policy, &[by_two.clone(), by_one.clone()]).unwrap();
    assert_eq!(verdict.signatures().collect::<Vec<_>>(), [1, 0]);
    for some in [vec![by_one], vec![by_two], vec![]] {
        assert!(judged(&policy, &some).is_err());
    }
    let [first, ..] = requirements;
    let rejecting = all(&[first, json!({"type": "reject"})]);
    assert!(matches!(
        judged(&rejecting, &[simple(&one, &payload)]),
        Err(Distrust::Rejected { .. })
    ));
}

#[test]
fn signatures_that_do_not_count_say_why() {
    let signer = Signer::p256();
    let policy = all(&[signed_by(&[&signer], &repository())]);
    let digest = digest().to_string();
    let good = payload(&digest, "reg.example/ns/os");
    let other = Digest::of(b"other").to_string();
    let by_none = "it is by none of the policy's keys, or of something else";
    let with = |payload: &str, signature: String, by_certificate| Signature::Simple {
        payload: payload.to_owned(),
        signature,
        by_certificate,
    };
    let raw = |bytes: &[u8]| with(&good, STANDARD.encode(bytes), false);
    let signed = |text: &str| simple(&signer, text);
    let zeros = b"\x30\x06\x02\x01\x00\x02\x01\x00";
    for (signature, expected) in [
        (simple(&Signer::p256(), &good), by_none),
        // Numbers of no use, no number, nothing, something after the end.
        (raw(zeros), by_none),
        (raw(b"\x30\x80\xff\xff\xff\xff\xff\xff"), by_none),
        (raw(b""), by_none),
        (
            raw(&[signer.sign(good.as_bytes()), vec![0]].concat()),
            by_none,
        ),
        (
            with(&good, "none".repeat(9) + "!", false),
            "it can not be read as base64",
        ),
        (
            with(&format!("{good} "), signer.simple(&good), false),
            by_none,
        ),
        (
            with(&good, Signer::p256().simple(&good), true),
            "it is by a certificate, and only keys are supported",
        ),
        (
            signed(&payload(&other, "reg.example/ns/os")),
            &format!("it is of another image: {other}"),
        ),
        (
            signed(&payload(&digest, "reg.example/ns/debug")),
            "it is of reg.example/ns/debug, which matchRepository does not let in",
        ),
        (
            signed(&payload(&digest, "\u{1b}[2Jos")),
            "it is of \\u{1b}[2Jos, which matchRepository does not let in",
        ),
        (
            signed(&good.replace("cosign container", "atomic container")),
            "its type is atomic container image signature, which is not supported",
        ),
        (
            signed(&good.replace("\"type\":", "\"type\":\"a\",\"type\":")),
            "it can not be read as a simple signing payload",
        ),
        (
            signed(&good.replace("\"type\":", "\"more\":1,\"type\":")),
            "it can not be read as a simple signing payload",
        ),
        (
            signed(&payload("sha256:../../etc", "reg.example/ns/os")),
            "it can not be read as a simple signing payload",
        ),
        (
            signed("[]"),
            "it can not be read as a simple signing payload",
        ),
        (
            signed(&"[".repeat(100_000)),
            "it can not be read as a simple signing payload",
        ),
    ] {
        assert_eq!(refusal(&policy, signature), expected);
    }
}

#[test]
fn bundles_that_do_not_count_say_why() {
    let signer = Signer::p256();
    let policy = all(&[signed_by(&[&signer], &repository())]);
    let digest = digest().to_string();
    let good = signer.bundle(&statement(&digest));
    let changed = |path: &str, value: Value| {
        let mut changed = good.clone();
        *changed.pointer_mut(path).unwrap() = value;
        changed
    };
    let stated = |field: &str, value: Value| {
        let mut stated = statement(&digest);
        stated[field] = value;
        signer.bundle(&stated)
    };
    let by_none = "it is by none of the policy's keys, or of something else";
    let shape = "it can not be read as a bundle with a DSSE envelope and a key";
    let certificate = "it is by a certificate, and only keys are supported";
    let body = statement(&digest).to_string();
    let mut both = good.clone();
    both["messageSignature"] = json!({});
    let mut two = good.clone();
    two["dsseEnvelope"]["signatures"] = json!([
        good["dsseEnvelope"]["signatures"][0],
        good["dsseEnvelope"]["signatures"][0]
    ]);
    // What is signed when a length moves the border between type and body.
    let moved = signer.bundle_of(&format!("{IN_TOTO} 2 {{}}"), body.as_bytes());
    let mut moved_back = moved.clone();
    moved_back["dsseEnvelope"]["payloadType"] = json!(IN_TOTO);
    for (bundled, expected) in [
        (Signer::p256().bundle(&statement(&digest)), by_none),
        (moved_back, by_none),
        (
            moved,
            "its payload type is application/vnd.in-toto+json 2 {}, which is not supported",
        ),
        (
            signer.bundle_of("text/plain", body.as_bytes()),
            "its payload type is text/plain, which is not supported",
        ),
        (
            changed("/dsseEnvelope/payloadType", json!("text/plain")),
            "its payload type is text/plain, which is not supported",
        ),
        (
            changed(
                "/dsseEnvelope/payload",
                json!(STANDARD.encode(body.clone() + " ")),
            ),
            by_none,
        ),
        (
            changed("/dsseEnvelope/payload", json!("?")),
            "it can not be read as an envelope in base64",
        ),
        (
            changed("/dsseEnvelope/signatures", json!([])),
            "it can not be read as an envelope with one signature",
        ),
        (two, "it can not be read as an envelope with one signature"),
        (changed("/dsseEnvelope", Value::Null), shape),
        (both, shape),
        (changed("/verificationMaterial", json!({})), shape),
        (
            changed(
                "/verificationMaterial",
                json!({"certificate": {"rawBytes": ""}}),
            ),
            certificate,
        ),
        (
            changed(
                "/verificationMaterial",
                json!({"publicKey": {}, "x509CertificateChain": {}}),
            ),
            certificate,
        ),
        (
            changed(
                "/mediaType",
                json!("application/vnd.dev.sigstore.bundle+json;version=0.2"),
            ),
            "its media type is application/vnd.dev.sigstore.bundle+json;version=0.2, which is not \
             supported",
        ),
        (
            stated("predicateType", json!("https://slsa.dev/provenance/v1")),
            "its predicate type is https://slsa.dev/provenance/v1, which is not supported",
        ),
        (
            stated("_type", json!("https://in-toto.io/Statement/v0.1")),
            "its statement type is https://in-toto.io/Statement/v0.1, which is not supported",
        ),
        (stated("subject", json!([])), "it is of another image: "),
        (
            stated(
                "subject",
                json!([{"digest": {"sha1": "00", "sha256": "../.."}}]),
            ),
            "it is of another image: ",
        ),
        (json!([]), "it can not be read as a bundle"),
    ] {
        assert_eq!(refusal(&policy, bundle(&bundled)), expected, "{bundled}");
    }
    // It names no repository, so that it is only enough where none needs to be signed.
    for identity in [
        json!({"type": "matchRepoDigestOrExact"}),
        json!({"type": "matchExact"}),
        json!({"type": "exactRepository", "dockerRepository": "reg.example/ns/os"}),
    ] {
        let policy = all(&[signed_by(&[&signer], &identity)]);
        let word = identity["type"].as_str().unwrap();
        let expected = format!("it names no repository, which {word} asks for");
        assert_eq!(refusal(&policy, bundle(&good)), expected);
    }
}

#[test]
fn of_what_is_attached_only_so_much_is_looked_at() {
    let entry = |artifact_type: Value| {
        let mut entry = json!({"mediaType": "m", "digest": digest(), "size": 1});
        entry["artifactType"] = artifact_type;
        entry
    };
    let ours = || entry(json!(Place::ARTIFACT_TYPE));
    let with = |field: &str, value: Value| {
        let mut entry = ours();
        entry[field] = value;
        entry
    };
    let (blake, large) = (json!(format!("blake3:{}", "0".repeat(64))), json!(17 << 20));
    let many: Vec<Value> = (0..10_000).map(|_| ours()).collect();
    for (entries, expected) in [
        (vec![], 0),
        (
            vec![
                entry(json!("application/spdx+json")),
                ours(),
                entry(Value::Null),
            ],
            2,
        ),
        // Neither what is unknown nor what is too large hides what is behind it.
        (vec![with("digest", blake), with("size", large), ours()], 1),
        (
            vec![json!([]), Value::Null, with("size", json!(-1)), ours()],
            1,
        ),
        (many, MAX_SIGNATURES),
    ] {
        let index = json!({ "manifests": entries }).to_string();
        assert_eq!(referrers(index.as_bytes()).unwrap().len(), expected);
    }
    assert!(referrers(b"[]").is_err());
    let layer = |size: u64| Descriptor {
        media_type: Place::ARTIFACT_TYPE.to_owned(),
        digest: digest(),
        size,
        annotations: BTreeMap::new(),
    };
    let mut manifest = crate::oci::Manifest {
        config: layer(2),
        layers: vec![layer(MAX_SIGNATURE_BYTES), layer(MAX_SIGNATURE_BYTES + 1)],
        annotations: BTreeMap::new(),
    };
    assert_eq!(layers(&manifest).count(), 1);
    manifest.layers = vec![layer(1); 200];
    assert_eq!(layers(&manifest).count(), MAX_SIGNATURES);
}
