//! Rows 15, 71 and 75 of the hostile table: what a digest decides, by either algorithm.

use crate::image::{Image, direct, disk, disk_only, initramfs, kernel, single, single_in};
use crate::refusal::assert_empty_store;
use crate::sandbox::Sandbox;

/// Row 15.
#[test]
fn beside_a_digest_the_tag_is_not_sent() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("1"));
    let (server, tagged) = sandbox.serve(&image);
    let reference = format!("{tagged}@{}", image.digest("top"));
    let output = sandbox.run(format!("pull -q --arch amd64 {reference}"));
    assert_eq!(output.status, 0, "{}", output.text());
    let paths: Vec<String> = server
        .requests()
        .into_iter()
        .map(|request| request.path)
        .collect();
    assert!(
        paths.iter().any(|path| path.ends_with(image.digest("top"))),
        "{paths:?}"
    );
    assert!(
        !paths.iter().any(|path| path.ends_with("/manifests/1")),
        "{paths:?}"
    );
}

/// Row 71.
#[test]
fn an_image_named_by_sha512_throughout_is_an_image() {
    let image = single_in(
        Image::by_sha512(),
        r#"{"commandLine":"console=ttyS0"}"#,
        &[
            ("disk", "rootfs", &disk("1")),
            ("kernel", "kernel", &kernel("amd64")),
            ("initramfs", "initramfs", &initramfs()),
        ],
    );
    assert!(image.digest("disk").starts_with("sha512:"));
    let sandbox = Sandbox::new();
    let (_server, served) = sandbox.serve(&image);
    for (name, reference) in [("one", sandbox.layout(&image)), ("two", served)] {
        let line = format!("prepare -q --json --arch amd64 --accel tcg --name {name} {reference}");
        let output = sandbox.run(line);
        assert_eq!(output.status, 0, "{}", output.text());
        assert_eq!(
            output.json()["staged"]["kernel"],
            "$TMP/store/blobs/sha512/<kernel>"
        );
    }
    // Two documents, the config, and what the kernel boots with.
    assert_eq!(sandbox.names("blobs/sha512").len(), 5);
    // No digest leads to what a registry has under a tag; it is named by our own.
    assert_eq!(sandbox.names("blobs/sha256").len(), 1);
    assert_eq!(sandbox.run("image verify -q").status, 0);
    // And one byte of difference is one.
    let path = image.blob_path("disk");
    let server = image.serve_except(move |request, _| {
        let is_disk = request.path == path;
        is_disk.then(|| crate::hostile::Reply::ok(&disk("2")))
    });
    let other = Sandbox::new();
    let (_server, reference) = other.at(&image, server);
    let output = other.run(format!(
        "pull -q --json --arch amd64 --boot disk {reference}"
    ));
    assert_eq!(
        output.json()["error"]["kind"],
        "integrity",
        "{}",
        output.text()
    );
}

/// Row 75: nothing is unpacked, so a packed layer is one of a type that nobody knows.
#[test]
fn a_packed_layer_is_not_unpacked() {
    let sandbox = Sandbox::new();
    for packed in ["kernel+gzip", "kernel+zstd"] {
        let image = single(
            r#"{"commandLine":"quiet"}"#,
            &[
                ("kernel", packed, &direct().bytes("initramfs")[..100]),
                ("initramfs", "initramfs", &initramfs()),
            ],
        );
        let reference = sandbox.layout(&image);
        let output = sandbox.run(format!("pull -q --json --arch amd64 {reference}"));
        assert_eq!(
            output.json()["error"]["kind"],
            "unbootable",
            "{}",
            output.text()
        );
        assert_empty_store(&sandbox);
    }
}
