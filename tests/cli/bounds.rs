//! Registries that would have us read for ever, or keep it all: each is refused soon, in little
//! memory, and nothing stays.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::hostile::{Hostile, Reply};
use crate::image::{Image, OCI_INDEX, OCI_MANIFEST, disk, disk_only, manifest};
use crate::refusal::assert_empty_store;
use crate::sandbox::Sandbox;

/// All memory that the program may write to.
const MAX_KIBIBYTES: u32 = 128 << 10;
/// Most of it is the time of a busy machine.
const MAX_TIME: Duration = Duration::from_secs(5);

/// Pulls `os:1` from `server`, which must be refused with `kind`. Returns what was told.
#[track_caller]
fn refused_soon(server: &Hostile, kind: &str) -> String {
    let sandbox = Sandbox::new();
    sandbox.mask(&server.address(), "$REGISTRY");
    let pull = format!("pull --json --arch amd64 {}/os:1", server.address());
    let mut limit = Command::new("/bin/sh");
    let script = format!("ulimit -d {MAX_KIBIBYTES} && exec \"$@\"");
    limit.args(["-c", &script, "sh"]);
    let command = sandbox.under(limit, &sandbox.command(pull));
    let began = Instant::now();
    let output = sandbox.finish(command);
    let took = began.elapsed();
    assert_eq!(output.status, 125, "{}", output.text());
    let error = output.json()["error"].take();
    assert_eq!(error["kind"], kind, "{error}");
    assert!(took < MAX_TIME, "{took:?}: {error}");
    assert_empty_store(&sandbox);
    let causes = error["causes"].as_array().unwrap();
    let all = [&error["message"]].into_iter().chain(causes);
    let all: Vec<_> = all.map(|text| text.as_str().unwrap()).collect();
    all.join(": ")
}

fn answering(reply: Reply) -> Hostile {
    Hostile::start(move |_, _| reply.clone())
}

#[test]
fn documents_without_end_cost_their_limit() {
    let told = refused_soon(&answering(Reply::status(200).endless()), "invalid-image");
    assert_eq!(told, "$REGISTRY/os:1 (manifests/1) is larger than 4.00 MiB");
    let told = refused_soon(&answering(Reply::status(404).endless()), "not-found");
    assert_eq!(told, "no such image: $REGISTRY/os:1");
    let told = refused_soon(&answering(Reply::status(400).endless()), "unavailable");
    assert!(told.ends_with("xx…") && told.len() < 500, "{told}");
    let told = refused_soon(&answering(Reply::status(200).header_flood()), "unavailable");
    assert!(
        told.starts_with("$REGISTRY/os:1: the registry breaks the protocol"),
        "{told}"
    );
}

#[test]
fn a_body_that_is_packed_is_not_unpacked() {
    for encoding in ["gzip", "zstd"] {
        let packed = Reply::ok(&[0x1f; 1000]).header("Content-Encoding", encoding);
        let told = refused_soon(&answering(packed), "unavailable");
        assert!(
            told.ends_with(&format!("the body is encoded: {encoding}")),
            "{told}"
        );
    }
}

#[test]
fn a_token_without_end_costs_its_limit() {
    let server = Hostile::start(|request, _| match request.path.as_str() {
        "/token" => Reply::status(200).endless(),
        _ => {
            let realm = format!("http://{}/token", request.header("host").unwrap());
            Reply::status(401).header("WWW-Authenticate", &format!("Bearer realm=\"{realm}\""))
        }
    });
    let told = refused_soon(&server, "invalid-image");
    assert_eq!(
        told,
        "token from http://$REGISTRY/token is larger than 1.00 MiB"
    );
}

#[test]
fn a_layer_without_end_costs_its_size() {
    let image = disk_only(&disk("amd64"));
    let path = image.blob_path("disk");
    let endless = Reply::status(200).endless();
    let server =
        image.serve_except(move |request, _| (request.path == path).then(|| endless.clone()));
    let told = refused_soon(&server, "integrity");
    assert!(told.ends_with("is larger than 64.00 KiB"), "{told}");
}

#[test]
fn json_that_no_image_has_is_refused_soon() {
    let entry = json!({
        "mediaType": OCI_MANIFEST,
        "digest": format!("sha256:{}", "a".repeat(64)),
        "size": 7,
    });
    let entry = entry.to_string();
    let many = (4 << 20) / (entry.len() + 1) - 1;
    let utf16: Vec<u8> = "\u{feff}{\"manifests\":[]}"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let deep = "[".repeat(200_000);
    for bytes in [
        format!("{{\"manifests\":[{}]}}", vec![entry; many].join(",")).into_bytes(),
        format!("{{\"manifests\":{deep}").into_bytes(),
        format!("{{\"manifests\":[],\"x\":{deep}").into_bytes(),
        b"\xef\xbb\xbf{\"manifests\":[]}".to_vec(),
        utf16,
        b"{\"manifests\":[],\"manifests\":[]}".to_vec(),
        b"{\"manifests\":[{\"mediaType\":\"x\",\"digest\":\"x\",\"size\":1e3}]}".to_vec(),
        b"\0".repeat(4 << 20),
        Vec::new(),
    ] {
        let reply = Reply::ok(&bytes).header("Content-Type", OCI_INDEX);
        refused_soon(&answering(reply), "invalid-image");
    }
}

/// The config of a disk is read for what it says of the machine, and need not say anything.
#[test]
fn a_config_that_no_image_has_is_refused_soon() {
    for config in [
        "[".repeat(1 << 20),
        format!("{{\"commandLine\":{}", "[".repeat(500_000)),
        "x".repeat(1 << 20),
    ] {
        let mut image = Image::default();
        let layers: [Value; 3] = [
            image.layer("kernel", "kernel", &crate::image::kernel("amd64")),
            image.layer("initramfs", "initramfs", &crate::image::initramfs()),
            image.layer("disk", "rootfs", &disk("amd64")),
        ];
        let config = image.config("config", &config);
        let image = image.top(OCI_MANIFEST, &manifest(&config, &layers));
        refused_soon(&image.serve(), "invalid-image");
    }
}
