//! Others' tools: what skopeo and oras write is read here, and skopeo reads the store.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use ironboot::oci::Digest;
use serde_json::{Value, json};

use crate::image::{
    Image, OCI_INDEX, OCI_MANIFEST, direct, disk, disk_of, disk_only, initramfs, kernel,
};
use crate::registry::{Access, DockerRegistry};
use crate::sandbox::Sandbox;

/// What skopeo prints when called with `words`.
#[track_caller]
fn skopeo(words: &[&str]) -> Vec<u8> {
    let output = Command::new("skopeo").args(words).output();
    let output = output.expect("skopeo is installed");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "skopeo {words:?}: {stderr}");
    output.stdout
}

#[track_caller]
fn done(sandbox: &Sandbox, line: &str) {
    let output = sandbox.run(line);
    assert_eq!(output.status, 0, "{line}: {}", output.text());
}

/// Plans and pulls `image`, and returns the digests of its index and its manifest.
#[track_caller]
fn pulled(sandbox: &Sandbox, image: &str) -> (Value, Value) {
    let plan = sandbox.run(format!("plan --json --arch amd64 {image}"));
    assert_eq!(plan.json()["boot"]["method"], "direct", "{}", plan.text());
    done(sandbox, &format!("pull -q --arch amd64 {image}"));
    let mut image = plan.json()["image"].take();
    (
        image["index_digest"].take(),
        image["manifest_digest"].take(),
    )
}

#[test]
fn what_skopeo_writes_is_read() {
    let sandbox = Sandbox::new();
    let layout = sandbox.layout(&direct());
    let at = |name: &str| sandbox.path(name).display().to_string();
    for copy in [
        format!("oci:{}:os:1", at("copy")),
        format!("oci:{}:reg.example:5000/os:1", at("copy")),
        format!("oci:{}", at("unnamed")),
        format!("oci-archive:{}:1", at("copy.tar")),
        format!("oci-archive:{}:reg.example:5000/os:1", at("named.tar")),
        format!("oci-archive:{}", at("unnamed.tar")),
    ] {
        skopeo(&["copy", "-q", "--all", &layout, &copy]);
        let (index, manifest) = pulled(&sandbox, &copy);
        assert_eq!(index, "sha256:<top>", "{copy}");
        assert_eq!(manifest, "sha256:<manifest>", "{copy}");
    }
    // One manifest alone: the entry of `index.json` has no platform, and no index is above it.
    for copy in [
        format!("oci:{}:1", at("single")),
        format!("oci-archive:{}:1", at("single.tar")),
    ] {
        skopeo(&[
            "--override-os",
            "linux",
            "--override-arch",
            "amd64",
            "copy",
            "-q",
            &layout,
            &copy,
        ]);
        let (index, manifest) = pulled(&sandbox, &copy);
        assert_eq!((index, manifest), (Value::Null, json!("sha256:<manifest>")));
    }
}

/// What is in the registry comes by way of a file, as to a host that does not reach it.
#[test]
fn what_skopeo_takes_out_of_a_registry_is_what_was_pushed() {
    let sandbox = Sandbox::new();
    let registry = DockerRegistry::start(Access::Open);
    let there = format!("{}/os:1", registry.address());
    let layout = sandbox.layout(&direct());
    done(&sandbox, &format!("image push -q {layout} {there}"));
    let archive = sandbox.path("os.tar").display().to_string();
    skopeo(&[
        "copy",
        "-q",
        "--all",
        "--src-tls-verify=false",
        &format!("docker://{there}"),
        &format!("oci-archive:{archive}:os"),
    ]);
    let (index, _) = pulled(&sandbox, &format!("oci-archive:{archive}:os"));
    assert_eq!(index, "sha256:<top>");
}

/// The form in which oras writes a layout: entries by name and without platform, artifacts with
/// an empty config, an index within the index; and what may lie about in a directory.
#[test]
fn what_oras_writes_is_read() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let mut config = image.blob("config", "application/vnd.oci.empty.v1+json", b"{}");
    config["data"] = json!("e30=");
    let title = |mut layer: Value, title: &str| {
        layer["annotations"] = json!({"org.opencontainers.image.title": title});
        layer
    };
    let layers = [
        title(image.layer("kernel", "kernel", &kernel("amd64")), "vmlinuz"),
        title(
            image.layer("initramfs", "initramfs", &initramfs()),
            "initramfs",
        ),
        title(
            image.layer("cmdline", "cmdline", b"console=ttyS0"),
            "cmdline",
        ),
    ];
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.ironcore.image",
        "config": config,
        "layers": layers,
        "annotations": {"org.opencontainers.image.created": "2026-01-01T00:00:00Z"},
    });
    let mut listed = image.document("manifest", OCI_MANIFEST, &manifest);
    listed["artifactType"] = json!("application/vnd.ironcore.image");
    listed["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let inner = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [listed]});
    let inner = image.document("inner", OCI_INDEX, &inner);
    let outer = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner]});
    let mut outer = image.document("outer", OCI_INDEX, &outer);
    outer["annotations"] = json!({"org.opencontainers.image.ref.name": "nested"});
    let image = image.top(OCI_INDEX, &json!({"manifests": []}));
    sandbox.name_digests(&image);

    // Blobs that are links to those of another copy, as caches of the same disk share them.
    let (original, directory) = (sandbox.path("original"), sandbox.path("oras"));
    image.write_layout(&original);
    fs::create_dir_all(directory.join("blobs/sha256")).unwrap();
    for blob in fs::read_dir(original.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        let link = directory.join("blobs/sha256").join(blob.file_name());
        fs::hard_link(blob.path(), link).unwrap();
    }
    fs::create_dir(directory.join("ingest")).unwrap();
    fs::write(directory.join("ingest/half"), "").unwrap();
    fs::write(directory.join("blobs/sha256/.tmp-1"), "").unwrap();
    fs::write(directory.join("README"), "").unwrap();
    fs::copy(original.join("oci-layout"), directory.join("oci-layout")).unwrap();
    // An entry without a name, for a manifest that only a digest leads to.
    let mut unnamed = listed.clone();
    unnamed.as_object_mut().unwrap().remove("annotations");
    let index = json!({"schemaVersion": 2, "manifests": [listed, outer, unnamed]});
    fs::write(directory.join("index.json"), index.to_string()).unwrap();

    let archive = sandbox.path("oras.tar");
    let mut tar = tar::Builder::new(File::create(&archive).unwrap());
    tar.append_dir_all("", &directory).unwrap();
    tar.finish().unwrap();
    for place in [
        format!("oci:{}", directory.display()),
        format!("oci-archive:{}", archive.display()),
    ] {
        let digest = image.digest("manifest");
        for name in [":v1".to_owned(), format!("@{digest}")] {
            let (index, manifest) = pulled(&sandbox, &format!("{place}{name}"));
            assert_eq!((index, manifest), (Value::Null, json!("sha256:<manifest>")));
        }
        let (index, manifest) = pulled(&sandbox, &format!("{place}:nested"));
        assert_eq!(index, "sha256:<outer>");
        assert_eq!(manifest, "sha256:<manifest>");
        let inspected = sandbox.run(format!("image inspect --json {place}:v1"));
        assert_eq!(inspected.json()["digest"], "sha256:<manifest>");
    }
}

/// The digest of what skopeo reads of the store under the name `reference`.
fn seen(store: &Path, reference: &str) -> String {
    let raw = skopeo(&[
        "inspect",
        "--raw",
        &format!("oci:{}:{reference}", store.display()),
    ]);
    Digest::of(&raw).to_string()
}

#[test]
fn skopeo_reads_the_store_by_whatever_reference_was_pulled() {
    let sandbox = Sandbox::new();
    let registry = DockerRegistry::start(Access::Open);
    let image = direct();
    let top = image.digest("top").to_owned();
    let layout = sandbox.layout(&image);
    let there = format!("{}/team/os", registry.address());
    done(&sandbox, &format!("image push -q {layout} {there}:1"));
    let references = [
        format!("{there}:1"),
        format!("{there}@{top}"),
        format!("{there}:1@{top}"),
    ];
    for reference in &references {
        // Only what one method of booting needs; the names of all lead to the whole index.
        let pull = format!("pull -q --arch amd64 --boot disk {reference}");
        done(&sandbox, &pull);
        assert_eq!(seen(&sandbox.store(), reference), top, "{reference}");
    }
    // Another image is whole, beside those of which only a part is here.
    let whole = format!("{there}-whole:1");
    let other = disk_of("amd64");
    let other_layout = sandbox.layout(&other);
    done(&sandbox, &format!("image push -q {other_layout} {whole}"));
    done(&sandbox, &format!("pull -q --arch amd64 --all {whole}"));
    copies(&sandbox, &whole, &other);
    for reference in &references {
        done(&sandbox, &format!("pull -q --arch amd64 --all {reference}"));
        copies(&sandbox, reference, &image);
    }
}

/// Copies what the store has as `reference`, one manifest and all, and reads it.
#[track_caller]
fn copies(sandbox: &Sandbox, reference: &str, image: &Image) {
    let copy = sandbox.path("copied");
    let from = format!("oci:{}:{reference}", sandbox.store().display());
    let to = format!("oci:{}:x", copy.display());
    skopeo(&["copy", "-q", "--all", &from, &to]);
    assert_eq!(seen(&copy, "x"), image.digest("top"), "{reference}");
    let platform = ["--override-os", "linux", "--override-arch", "amd64"];
    skopeo(&[&platform[..], &["copy", "-q", &from, &to]].concat());
    assert_eq!(seen(&copy, "x"), image.digest("manifest"), "{reference}");
    for (digest, name) in &image.names {
        let blob = copy.join("blobs").join(digest.replace(':', "/"));
        assert!(fs::read(blob).unwrap() == image.bytes(name), "{name}");
    }
    fs::remove_dir_all(copy).unwrap();
}

/// What ironboot reads of its own store, it finds by the same names.
#[test]
fn a_name_with_port_tag_and_digest_is_found_in_the_store_as_a_layout() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let (_server, by_tag) = sandbox.serve(&image);
    let reference = format!("{by_tag}@{}", image.digest("top"));
    done(&sandbox, &format!("pull -q --arch amd64 {reference}"));
    let store = sandbox.store();
    for name in [&reference, "1"] {
        let plan = format!("plan --json --arch amd64 oci:{}:{name}", store.display());
        let plan = sandbox.run(plan);
        assert_eq!(
            plan.json()["image"]["index_digest"],
            "sha256:<top>",
            "{}",
            plan.text()
        );
    }
}
