//! What is attached to an image in its repository, and policies that ask for it.

use std::collections::BTreeMap;
use std::fs;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ironboot::oci::Digest;
use serde_json::{Value, json};

use crate::hostile::{Hostile, Reply, Request};
use crate::image::{Image, OCI_INDEX, OCI_MANIFEST};
use crate::sandbox::Sandbox;
use crate::signer::{BUNDLE, Signer, payload};

pub(crate) const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";

/// What is attached to an image in its repository, by path, with its type.
#[derive(Debug, Clone, Default)]
pub(crate) struct Attached(BTreeMap<String, (String, Vec<u8>)>);

impl Attached {
    pub(crate) fn add(&mut self, kind: &str, name: &str, media_type: &str, bytes: &[u8]) -> Value {
        let path = format!("/v2/os/{kind}/{name}");
        self.0.insert(path, (media_type.to_owned(), bytes.to_vec()));
        let digest = Digest::of(bytes).to_string();
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes).to_string();
        self.add("blobs", &digest, media_type, bytes)
    }

    pub(crate) fn manifest(&mut self, name: Option<&str>, layers: &[Value]) -> Value {
        let config = self.blob("application/vnd.oci.empty.v1+json", b"{}");
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": BUNDLE,
            "config": config,
            "layers": layers,
        });
        let bytes = manifest.to_string();
        let digest = Digest::of(bytes.as_bytes()).to_string();
        self.add(
            "manifests",
            name.unwrap_or(&digest),
            OCI_MANIFEST,
            bytes.as_bytes(),
        )
    }

    /// Attaches simple signing payloads and their signatures, by the tag of `digest`.
    pub(crate) fn simple(mut self, digest: &str, signed: &[(String, String)]) -> Self {
        let mut layers = Vec::new();
        for (payload, signature) in signed {
            let mut layer = self.blob(SIMPLE_SIGNING, payload.as_bytes());
            layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
            layers.push(layer);
        }
        let tag = format!("{}.sig", digest.replace(':', "-"));
        self.manifest(Some(&tag), &layers);
        self
    }

    /// Attaches bundles as referrers of `digest`; `kind` and `name` are where their index is.
    pub(crate) fn bundles(mut self, (kind, name): (&str, &str), bundles: &[Value]) -> Self {
        let mut entries = Vec::new();
        for bundle in bundles {
            let layer = self.blob(BUNDLE, bundle.to_string().as_bytes());
            let mut entry = self.manifest(None, &[layer]);
            entry["artifactType"] = json!(BUNDLE);
            entries.push(entry);
        }
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        self.add(kind, name, OCI_INDEX, index.to_string().as_bytes());
        self
    }

    pub(crate) fn answer(&self, request: &Request) -> Option<Reply> {
        let (media_type, bytes) = self.0.get(&request.path)?;
        Some(Reply::ok(bytes).header("Content-Type", media_type))
    }

    pub(crate) fn serve(self, image: &Image) -> Hostile {
        image.serve_except(move |request, _| self.answer(request))
    }
}

/// Who asks that images of the sandbox's registries are signed by `signers`, and how.
pub(crate) fn demand(sandbox: &Sandbox, signers: &[&Signer], identity: &str) {
    let keys = signers.iter().map(|signer| STANDARD.encode(signer.pem()));
    let requirement = json!({
        "type": "sigstoreSigned",
        "keyDatas": keys.collect::<Vec<_>>(),
        "signedIdentity": {"type": identity},
    });
    policy(sandbox, &json!({ "default": [requirement] }).to_string());
}

pub(crate) fn policy(sandbox: &Sandbox, text: &str) {
    fs::write(sandbox.path("policy.json"), text).unwrap();
}

/// What the server was asked for of `image`, its documents aside.
pub(crate) fn blobs_asked(server: &Hostile, image: &Image) -> Vec<String> {
    let is_document = |name: &str| ["top", "manifest"].contains(&name);
    let names = image.names.iter();
    let blobs = names.filter(|(_, name)| !is_document(name));
    let paths: Vec<String> = blobs.map(|(_, name)| image.blob_path(name)).collect();
    let requests = server.requests().into_iter();
    requests
        .map(|request| request.path)
        .filter(|path| paths.contains(path))
        .collect()
}

/// Pulls, which must be refused before anything of the image is fetched. Returns what is told.
#[track_caller]
pub(crate) fn untrusted(sandbox: &Sandbox, server: &Hostile, image: &Image) -> String {
    let (before, asked) = (sandbox.tree(), blobs_asked(server, image));
    let reference = format!("{}/os:1", server.address());
    for line in [
        format!("pull -q --arch amd64 {reference}"),
        format!("plan --arch amd64 {reference}"),
        format!("prepare -q --arch amd64 --name vm {reference}"),
    ] {
        let output = sandbox.run(format!("--json {line}"));
        assert_eq!(output.status, 125, "{line}: {}", output.text());
        assert_eq!(output.json()["error"]["kind"], "untrusted", "{line}");
    }
    assert_eq!(blobs_asked(server, image), asked);
    // The locks of names and references are no part of an image.
    let mut after = sandbox.tree();
    after.retain(|path, _| path.contains("blobs/") || path.contains("refs/"));
    let mut before = before;
    before.retain(|path, _| path.contains("blobs/") || path.contains("refs/"));
    assert_eq!(after, before);
    let text = sandbox
        .run(format!("pull -q --arch amd64 {reference}"))
        .text();
    let text = text.replace(&server.address(), "$REGISTRY");
    assert!(text.contains("[exit status: 125]"), "{text}");
    text
}

/// The payload and the signature of `digest` as an image of `reference`.
pub(crate) fn signed(signer: &Signer, digest: &str, reference: &str) -> (String, String) {
    let payload = payload(digest, reference);
    let signature = signer.simple(&payload);
    (payload, signature)
}

/// The repository of a server, which is not known before it serves: what is signed is `os` of a
/// name that the policy puts in its place.
pub(crate) const SIGNED: &str = "reg.example/os";

pub(crate) fn demand_of_repository(sandbox: &Sandbox, signer: &Signer) {
    let requirement = json!({
        "type": "sigstoreSigned",
        "keyData": STANDARD.encode(signer.pem()),
        "signedIdentity": {"type": "exactRepository", "dockerRepository": SIGNED},
    });
    policy(sandbox, &json!({ "default": [requirement] }).to_string());
}
