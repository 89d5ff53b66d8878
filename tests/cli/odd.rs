//! Documents that are odd and yet no error, or an error of their own kind: what is taken from them,
//! and that nobody else is asked for anything.

use serde_json::{Value, json};

use crate::hostile::{Hostile, Reply};
use crate::image::{
    Image, OCI_INDEX, OCI_MANIFEST, annotated, disk, disk_only, entry, initramfs, manifest, single,
};
use crate::refusal::refused;
use crate::sandbox::{Sandbox, check};

/// One manifest of a disk, whose descriptor has the fields of `extra` as well.
fn with_layer(extra: &Value) -> Image {
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let mut layer = image.layer("disk", "rootfs", &disk("amd64"));
    for (key, value) in extra.as_object().unwrap() {
        layer[key] = value.clone();
    }
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest(&config, &[layer]));
    image.index(&[entry(manifest, "amd64")])
}

#[test]
fn where_a_layer_says_that_it_lies_elsewhere_nobody_goes() {
    let sandbox = Sandbox::new();
    let elsewhere = Hostile::start(|_, _| Reply::ok(&disk("amd64")));
    let urls = json!({"urls": [format!("http://{}/disk", elsewhere.address())]});
    let (server, reference) = sandbox.serve(&with_layer(&urls));
    refused(
        &sandbox,
        &reference,
        "invalid-image",
        r#"
        ------- stderr -------
        error: sha256:<manifest> names a blob with its own urls, which are never followed: sha256:<disk>
        [exit status: 125]
        "#,
    );
    assert_eq!(elsewhere.requests(), []);
    assert!(server.requests().len() > 1);
}

#[test]
fn what_a_descriptor_holds_itself_is_not_taken_for_its_blob() {
    let sandbox = Sandbox::new();
    let image = with_layer(&json!({"data": "bm90IHRoZSBkaXNr"}));
    let (server, reference) = sandbox.serve(&image);
    let pulled = sandbox.run(format!("pull -q --arch amd64 {reference}"));
    check(&pulled.text(), "sha256:<manifest>");
    assert_eq!(server.count(&image.blob_path("disk")), 1);
}

#[test]
fn a_layer_that_may_not_be_distributed_is_one_that_nobody_knows() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let layers = [
        image.layer("disk", "rootfs", &disk("amd64")),
        image.blob(
            "foreign",
            "application/vnd.oci.image.layer.nondistributable.v1.tar",
            b"foreign",
        ),
    ];
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest(&config, &layers));
    let image = image.index(&[entry(manifest, "amd64")]);
    let (server, reference) = sandbox.serve(&image);
    let pulled = sandbox.run(format!("pull -q --arch amd64 {reference}"));
    check(&pulled.text(), "sha256:<manifest>");
    assert_eq!(server.count(&image.blob_path("foreign")), 0);
}

#[test]
fn an_annotation_may_be_long_and_is_not_printed_whole() {
    let sandbox = Sandbox::new();
    let long = "\u{1b}[31m".to_owned() + &"x".repeat(3 << 20);
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let layers = [image.layer("disk", "rootfs", &disk("amd64"))];
    let manifest = annotated(manifest(&config, &layers), &[("note", &long)]);
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest);
    let (_server, reference) = sandbox.serve(&image.index(&[entry(manifest, "amd64")]));
    let pulled = sandbox.run(format!("pull -q --arch amd64 {reference}"));
    check(&pulled.text(), "sha256:<manifest>");
    let inspected = sandbox.run(format!("image inspect {reference}"));
    assert_eq!(inspected.status, 0);
    assert!(!inspected.stdout.contains('\u{1b}') && inspected.stdout.len() < 10_000);
}

#[test]
fn an_image_that_says_metal_is_not_taken_for_a_vm_because_of_its_disk() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let layers = [image.layer("disk", "rootfs", &disk("amd64"))];
    let manifest = annotated(manifest(&config, &layers), &[("variant", "metal")]);
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest);
    let (_server, reference) = sandbox.serve(&image.index(&[entry(manifest, "amd64")]));
    let pulled = sandbox.run(format!("pull -q --json --arch amd64 {reference}"));
    assert_eq!(
        pulled.json()["error"]["kind"],
        "no-match",
        "{}",
        pulled.text()
    );
    let pulled = sandbox.run(format!("pull -q --variant metal --arch amd64 {reference}"));
    check(&pulled.text(), "sha256:<manifest>");
}

#[test]
fn an_initramfs_without_a_kernel_boots_nothing() {
    let sandbox = Sandbox::new();
    let image = single("{}", &[("initramfs", "initramfs", &initramfs())]);
    let (_server, reference) = sandbox.serve(&image);
    let pulled = sandbox.run(format!("pull -q --json --arch amd64 {reference}"));
    assert_eq!(pulled.status, 125);
    assert_eq!(
        pulled.json()["error"]["kind"],
        "unbootable",
        "{}",
        pulled.text()
    );
    assert_eq!(sandbox.names("blobs/sha256"), Vec::<String>::new());
}

#[test]
fn a_document_of_a_type_that_no_document_has_is_refused() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let bytes = image.bytes("top").to_vec();
    let server = image.serve_except(move |request, _| {
        let html = || Reply::ok(&bytes).header("Content-Type", "text/html; charset=utf-8");
        (request.path == "/v2/os/manifests/1").then(html)
    });
    let (_server, reference) = sandbox.at(&image, server);
    refused(
        &sandbox,
        &reference,
        "invalid-image",
        r#"
        ------- stderr -------
        error: sha256:<top> is an index by its content, but what refers to it says: text/html
        [exit status: 125]
        "#,
    );
}

/// What a head says is a hint: what is stored under the tag is what was sent and hashed.
#[test]
fn a_tag_that_moves_while_it_is_asked_for_is_stored_as_what_came() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let other = format!("sha256:{}", "0".repeat(64));
    let announced = other.clone();
    let server = image.serve_except(move |request, _| {
        let moved = Reply::status(200)
            .header("Content-Type", OCI_INDEX)
            .header("Docker-Content-Digest", &announced);
        (request.method == "HEAD").then_some(moved)
    });
    let (_server, reference) = sandbox.at(&image, server);
    let pull = format!("pull -q --arch amd64 {reference}");
    for _ in 0..2 {
        check(&sandbox.run(&pull).text(), "sha256:<manifest>");
    }
    let inspected = sandbox.run(format!("image inspect --json {reference}"));
    assert!(
        inspected.stdout.contains("sha256:<top>"),
        "{}",
        inspected.text()
    );
    assert!(!inspected.stdout.contains(&other), "{}", inspected.text());
}
