//! Signatures as cosign attaches them: which count, which do not, and what a hostile registry may say.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ironboot::oci::Digest;
use serde_json::{Value, json};

use crate::attached::{
    Attached, SIGNED, SIMPLE_SIGNING, demand, demand_of_repository, policy, signed, untrusted,
};
use crate::hostile::Reply;
use crate::image::{OCI_INDEX, OCI_MANIFEST, direct, disk, disk_only};
use crate::sandbox::Sandbox;
use crate::signer::{BUNDLE, Signer, payload, pem, statement};

#[test]
fn a_signed_image_is_pulled_wherever_its_signature_is() {
    let image = direct();
    let (top, manifest) = (image.digest("top"), image.digest("manifest"));
    let tag = |digest: &str| digest.replace(':', "-");
    for signer in [
        Signer::p256(),
        Signer::p384(),
        Signer::ed25519(),
        Signer::ed25519ph(),
    ] {
        let simple =
            |digest| Attached::default().simple(digest, &[signed(&signer, digest, SIGNED)]);
        let bundles = |kind, name, digest| {
            let bundle = signer.bundle(&statement(digest));
            Attached::default().bundles((kind, name), &[bundle])
        };
        for (attached, covers, is_bundle) in [
            (simple(top), top, false),
            (simple(manifest), manifest, false),
            (bundles("referrers", top, top), top, true),
            (bundles("manifests", &tag(top), top), top, true),
            (bundles("referrers", manifest, manifest), manifest, true),
        ] {
            let sandbox = Sandbox::new();
            match is_bundle {
                true => demand(&sandbox, &[&signer], "matchRepository"),
                false => demand_of_repository(&sandbox, &signer),
            }
            let (server, reference) = sandbox.at(&image, attached.serve(&image));
            let pull = format!("pull -q --arch amd64 {reference}");
            let output = sandbox.run(&pull);
            assert_eq!(output.status, 0, "{}", output.text());
            // Nobody is asked for a signature that is here.
            let before = server.requests().len();
            assert_eq!(sandbox.run(&pull).status, 0);
            assert_eq!(server.requests().len(), before + 1);
            assert_eq!(sandbox.run(format!("{pull} --pull never")).status, 0);
            // All of an index is let in by a signature of the index.
            let all = sandbox.run(format!("--json {pull} --all"));
            match covers == top {
                true => assert_eq!(all.status, 0, "{}", all.text()),
                false => assert_eq!(all.json()["error"]["kind"], "untrusted"),
            }
        }
    }
}

#[test]
fn an_image_without_the_signature_that_is_asked_for_is_refused_before_its_blobs() {
    let (signer, other) = (Signer::p256(), Signer::p256());
    let image = direct();
    let top = image.digest("top");
    let elsewhere = Digest::of(b"elsewhere").to_string();
    let simple = |signed| Attached::default().simple(top, &[signed]);
    let bundle = |bundle: Value| Attached::default().bundles(("referrers", top), &[bundle]);
    let reason = "  caused by: the policy for everything (its default) asks for another signature \
                  than it has\n  caused by: a signature: ";
    for (attached, expected) in [
        (
            Attached::default(),
            "  caused by: the policy for everything (its default) asks for a signature, and it has \
             none\nhint: have it signed, as by `cosign sign --key`; an image that is here gets its \
             signatures when it is asked for again\n"
                .to_owned(),
        ),
        (
            simple(signed(&other, top, SIGNED)),
            format!("{reason}it is by none of the policy's keys, or of something else\n"),
        ),
        (
            simple(signed(&signer, &elsewhere, SIGNED)),
            format!("{reason}it is of another image: {elsewhere}\n"),
        ),
        (
            simple(signed(&signer, top, "reg.example/debug")),
            format!("{reason}it is of reg.example/debug, which exactRepository does not let in\n"),
        ),
        (
            bundle(other.bundle(&statement(top))),
            format!("{reason}it is by none of the policy's keys, or of something else\n"),
        ),
        (
            bundle(signer.bundle(&statement(&elsewhere))),
            format!("{reason}it is of another image: {elsewhere}\n"),
        ),
        (
            bundle(signer.bundle(&statement(top))),
            format!("{reason}it names no repository, which exactRepository asks for\n"),
        ),
    ] {
        let sandbox = Sandbox::new();
        demand_of_repository(&sandbox, &signer);
        let server = attached.serve(&image);
        let told = untrusted(&sandbox, &server, &image);
        let head = "------- stderr -------\nerror: image $REGISTRY/os:1 is not let in by \
                    $TMP/policy.json\n";
        let told = told.replace("sha256:$OTHER", &elsewhere);
        let hint = if expected.contains("hint: ") {
            ""
        } else {
            "hint: see whether that scope of the file names the right key and identity; `ironboot \
             image inspect IMAGE` shows what decides\n"
        };
        assert_eq!(told, format!("{head}{expected}{hint}[exit status: 125]\n"));
    }
    // A signature of one manifest is none of the others.
    let sandbox = Sandbox::new();
    demand(&sandbox, &[&signer], "matchRepoDigestOrExact");
    let server = simple(signed(&signer, top, SIGNED)).serve(&image);
    let told = untrusted(&sandbox, &server, &image);
    assert!(
        told.contains("which matchRepoDigestOrExact does not let in"),
        "{told}"
    );
    assert!(told.contains("hint: cosign signs no tag"), "{told}");
}

#[test]
fn a_flood_of_signatures_costs_no_more_than_the_first_of_them() {
    let signer = Signer::p256();
    let image = direct();
    let top = image.digest("top");
    let flood = |count: usize| {
        let strangers = |number: usize| (format!("payload {number}"), "AAAA".to_owned());
        (0..count).map(strangers).collect::<Vec<_>>()
    };
    let bundles: Vec<Value> = (0..10_000)
        .map(|number| json!({ "number": number }))
        .collect();
    let mut long = Attached::default();
    let mut layer = long.blob(SIMPLE_SIGNING, b"long");
    layer["size"] = json!(1 << 30);
    layer["annotations"] = json!({"dev.cosignproject.cosign/signature": "AAAA"});
    long.manifest(Some(&format!("{}.sig", top.replace(':', "-"))), &[layer]);
    for (attached, most) in [
        (Attached::default().simple(top, &flood(200)), 50),
        (Attached::default().simple(top, &flood(10_000)), 0),
        (
            Attached::default().bundles(("referrers", top), &bundles),
            100,
        ),
        (long, 0),
    ] {
        let sandbox = Sandbox::new();
        demand(&sandbox, &[&signer], "matchRepository");
        let server = attached.serve(&image);
        let before = server.requests().len();
        untrusted(&sandbox, &server, &image);
        // Four calls, each with some questions for what is not there.
        let asked = server.requests().len() - before;
        assert!(asked <= 4 * (most + 20), "{asked}");
    }
    // One that counts is found before the others.
    let sandbox = Sandbox::new();
    demand_of_repository(&sandbox, &signer);
    let many = [flood(49), vec![signed(&signer, top, SIGNED)], flood(100)].concat();
    let server = Attached::default().simple(top, &many).serve(&image);
    let pull = format!("pull -q --arch amd64 {}/os:1", server.address());
    assert_eq!(sandbox.run(pull).status, 0);
}

#[test]
fn a_referrer_that_is_of_no_use_hides_none_that_is_beside_it() {
    let signer = Signer::p256();
    let image = direct();
    let top = image.digest("top");
    let odd = |digest: &str, size: u64| {
        let digest = format!("{digest}:{}", "0".repeat(64));
        json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": size})
    };
    for odd in [odd("blake3", 5), odd("sha256", 17 << 20), odd("sha256", 5)] {
        let sandbox = Sandbox::new();
        demand(&sandbox, &[&signer], "matchRepository");
        let mut attached = Attached::default();
        let bundle = signer.bundle(&statement(top)).to_string();
        let layer = attached.blob(BUNDLE, bundle.as_bytes());
        let mut real = attached.manifest(None, &[layer]);
        real["artifactType"] = json!(BUNDLE);
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [odd, real]});
        attached.add("referrers", top, OCI_INDEX, index.to_string().as_bytes());
        let server = attached.serve(&image);
        let pull = sandbox.run(format!("pull -q --arch amd64 {}/os:1", server.address()));
        assert_eq!(pull.status, 0, "{odd}: {}", pull.text());
    }
}

#[test]
fn signatures_and_keys_that_are_none_are_refused() {
    let signer = Signer::p256();
    let image = direct();
    let top = image.digest("top");
    let payload = payload(top, SIGNED);
    let zeros = STANDARD.encode(b"\x30\x06\x02\x01\x00\x02\x01\x00");
    for signature in [zeros.as_str(), "", "none", "MAA=", "MIAAAAAA", "\u{1b}"] {
        let sandbox = Sandbox::new();
        demand_of_repository(&sandbox, &signer);
        let signed = [(payload.clone(), signature.to_owned())];
        let server = Attached::default().simple(top, &signed).serve(&image);
        untrusted(&sandbox, &server, &image);
    }
    let rsa = pem(b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00");
    let p521 = pem(b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x23");
    for (key, expected) in [
        (
            rsa,
            "it is of the kind RSA, and P-256, P-384 and Ed25519 are supported",
        ),
        (
            p521,
            "it is of the kind P-521, and P-256, P-384 and Ed25519 are supported",
        ),
        (
            pem(b"none"),
            "it is no key of P-256, P-384 or Ed25519 with an uncompressed point",
        ),
        ("none".to_owned(), "it is not one `PUBLIC KEY` in PEM"),
    ] {
        let sandbox = Sandbox::new();
        fs::write(sandbox.path("key.pub"), key).unwrap();
        let file = sandbox.path("key.pub");
        let requirement = json!({"type": "sigstoreSigned", "keyPath": file});
        policy(&sandbox, &json!({ "default": [requirement] }).to_string());
        let server = image.serve();
        let told = untrusted(&sandbox, &server, &image);
        assert!(told.contains(&format!("caused by: {expected}\n")), "{told}");
        assert_eq!(server.requests(), []);
    }
}

#[test]
fn a_tag_that_moves_after_it_was_verified_moves_nothing() {
    let sandbox = Sandbox::new();
    let signer = Signer::p256();
    demand_of_repository(&sandbox, &signer);
    let (good, evil) = (disk_only(&disk("good")), disk_only(&disk("evil")));
    let attached = Attached::default().simple(
        good.digest("top"),
        &[signed(&signer, good.digest("top"), SIGNED)],
    );
    let moved = Arc::new(AtomicBool::new(false));
    let (now, other) = (Arc::clone(&moved), evil.clone());
    let server = good.serve_except(move |request, _| {
        if let Some(reply) = attached.answer(request) {
            // From here on, the tag is the other's.
            now.store(true, Ordering::SeqCst);
            return Some(reply);
        }
        let is_moved = now.load(Ordering::SeqCst);
        let reply = other.answer(request);
        (is_moved && request.path.ends_with("/manifests/1")).then_some(reply)
    });
    let (server, reference) = sandbox.at(&good, server);
    let pull = format!("pull -q --arch amd64 {reference}");
    let pulled = sandbox.run(&pull);
    assert_eq!(pulled.stdout, "sha256:<manifest>\n", "{}", pulled.text());
    assert!(moved.load(Ordering::SeqCst));
    // The other is not let in, and the one that was verified stays.
    let before = sandbox.tree();
    let again = sandbox.run(format!("--json {pull}"));
    assert_eq!(again.json()["error"]["kind"], "untrusted");
    assert_eq!(sandbox.tree(), before);
    assert_eq!(server.count(&evil.blob_path("disk")), 0);
    assert_eq!(sandbox.run(format!("{pull} --pull missing")).status, 0);
}

#[test]
fn an_envelope_of_another_type_or_predicate_is_refused() {
    let signer = Signer::p256();
    let image = direct();
    let top = image.digest("top");
    let body = statement(top).to_string();
    let mut slsa = statement(top);
    slsa["predicateType"] = json!("https://slsa.dev/provenance/v1");
    let mut retyped = signer.bundle_of("text/plain", body.as_bytes());
    retyped["dsseEnvelope"]["payloadType"] = json!("application/vnd.in-toto+json");
    let mut keyless = signer.bundle(&statement(top));
    keyless["verificationMaterial"] = json!({"certificate": {"rawBytes": "AAAA"}});
    for (bundle, expected) in [
        (
            signer.bundle_of("text/plain", body.as_bytes()),
            "its payload type is text/plain, which is not supported",
        ),
        (
            retyped,
            "it is by none of the policy's keys, or of something else",
        ),
        (
            signer.bundle(&slsa),
            "its predicate type is https://slsa.dev/provenance/v1, which is not supported",
        ),
        (
            keyless,
            "it is by a certificate, and only keys are supported",
        ),
    ] {
        let sandbox = Sandbox::new();
        demand(&sandbox, &[&signer], "matchRepository");
        let server = Attached::default()
            .bundles(("referrers", top), &[bundle])
            .serve(&image);
        let told = untrusted(&sandbox, &server, &image);
        assert!(
            told.contains(&format!("caused by: a signature: {expected}\n")),
            "{told}"
        );
    }
}

#[test]
fn a_registry_that_can_not_list_what_refers_to_an_image_is_asked_for_the_tag() {
    let signer = Signer::p256();
    let image = direct();
    let top = image.digest("top").to_owned();
    let tag = top.replace(':', "-");
    let bundle = signer.bundle(&statement(&top));
    let attached = Attached::default().bundles(("manifests", &tag), &[bundle]);
    for answer in [400, 403, 405, 501] {
        let attached = attached.clone();
        let server = image.serve_except(move |request, _| {
            if request.path.contains("/referrers/") {
                assert_eq!(
                    request.query,
                    format!(
                        "artifactType={}",
                        BUNDLE.replace('/', "%2F").replace('+', "%2B")
                    )
                );
                return Some(Reply::status(answer));
            }
            attached.answer(request)
        });
        let sandbox = Sandbox::new();
        demand(&sandbox, &[&signer], "matchRepository");
        let pull = format!("pull -q --arch amd64 {}/os:1", server.address());
        let output = sandbox.run(pull);
        assert_eq!(output.status, 0, "{answer}: {}", output.text());
    }
    // One that is broken is no registry without signatures.
    let server = image.serve_except(|request, _| {
        let is_attached = request.path.contains(".sig");
        is_attached.then(|| Reply::status(500))
    });
    let sandbox = Sandbox::new();
    demand(&sandbox, &[&signer], "matchRepository");
    let pull = format!("pull -q --json --arch amd64 {}/os:1", server.address());
    assert_eq!(sandbox.run(pull).json()["error"]["kind"], "unavailable");
}
