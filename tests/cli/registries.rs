//! Registries that lack, refuse, lie or break: each error by its kind, and nothing stays.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::hostile::{Hostile, Reply, Request};
use crate::image::{Image, disk, disk_only};
use crate::refusal::{assert_empty_store, refused};
use crate::registry::{Access, DockerRegistry};
use crate::sandbox::{Sandbox, check};

/// Refuses the image of `server`, whose disk is answered by `reply`.
#[track_caller]
fn refused_disk(
    kind: &str,
    reply: impl Fn(&Image) -> Reply + Send + Sync + 'static,
    expected: &str,
) {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let (path, copy) = (image.blob_path("disk"), image.clone());
    let server = image.serve_except(move |request, _| (request.path == path).then(|| reply(&copy)));
    let (_server, reference) = sandbox.at(&image, server);
    refused(&sandbox, &reference, kind, expected);
}

#[test]
fn what_a_registry_has_not_is_not_found() {
    let sandbox = Sandbox::new();
    let registry = DockerRegistry::start(Access::Open);
    let layout = sandbox.layout(&disk_only(&disk("amd64")));
    sandbox.mask(registry.address(), "$REGISTRY");
    let there = |name: &str| format!("{}/{name}", registry.address());
    sandbox.run(format!("image push -q {layout} {}", there("os:1")));
    refused(
        &sandbox,
        &there("os:2"),
        "not-found",
        r#"
        ------- stderr -------
        error: no such image: $REGISTRY/os:2
        hint: check the name and the tag
        [exit status: 125]
        "#,
    );
    refused(
        &sandbox,
        &there("other:1"),
        "not-found",
        r#"
        ------- stderr -------
        error: no such image: $REGISTRY/other:1
        hint: check the name and the tag
        [exit status: 125]
        "#,
    );
    let digest = format!("os@sha256:{}", "0".repeat(64));
    refused(
        &sandbox,
        &there(&digest),
        "not-found",
        r#"
        ------- stderr -------
        error: no such image: $REGISTRY/os@sha256:$OTHER
        hint: check the name and the tag
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_layer_that_the_registry_has_not_is_not_found() {
    refused_disk(
        "not-found",
        |_| Reply::status(404),
        r#"
        ------- stderr -------
        error: can not fetch the disk of $REGISTRY/os:1
          caused by: $REGISTRY/os:1 has no sha256:<disk>
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_registry_that_is_down_is_unavailable() {
    let sandbox = Sandbox::new();
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    sandbox.mask(&address, "$REGISTRY");
    refused(
        &sandbox,
        &format!("{address}/os:1"),
        "unavailable",
        r#"
        ------- stderr -------
        error: $REGISTRY is not available
          caused by: connection failed: Connection refused (os error 111)
        hint: check the registry's name and your network, then try again
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_registry_that_fails_is_unavailable() {
    let sandbox = Sandbox::new();
    let server = Hostile::start(|_: &Request, _| Reply::status(503).bytes(b"out of \x1b[31morder"));
    sandbox.mask(&server.address(), "$REGISTRY");
    refused(
        &sandbox,
        &format!("{}/os:1", server.address()),
        "unavailable",
        r#"
        ------- stderr -------
        error: $REGISTRY is not available
          caused by: it answers with status 503: out of \u{1b}[31morder
        hint: check the registry's name and your network, then try again
        [exit status: 125]
        "#,
    );
}

#[test]
fn what_answers_without_being_a_registry_is_told() {
    let sandbox = Sandbox::new();
    let server = Hostile::start(|_: &Request, _| {
        Reply::ok(b"<html>hello</html>").header("Content-Type", "text/html")
    });
    sandbox.mask(&server.address(), "$REGISTRY");
    refused(
        &sandbox,
        &format!("{}/os:1", server.address()),
        "invalid-image",
        r#"
        ------- stderr -------
        error: sha256:$OTHER is not a readable index or manifest
          caused by: expected value at line 1 column 1
        [exit status: 125]
        "#,
    );
}

/// N3.
#[test]
fn a_disk_of_other_content_is_refused() {
    refused_disk(
        "integrity",
        |_| Reply::ok(&disk("arm64")),
        r#"
        ------- stderr -------
        error: can not fetch the disk of $REGISTRY/os:1
          caused by: blob sha256:<disk> has other content: sha256:$OTHER
        [exit status: 125]
        "#,
    );
}

/// N3.
#[test]
fn a_disk_that_came_wrong_once_is_fetched_anew() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let path = image.blob_path("disk");
    let server = image.serve_except(move |request, before| {
        (request.path == path && before == 0).then(|| {
            let mut flipped = disk("amd64");
            flipped[60_000] ^= 1;
            Reply::ok(&flipped)
        })
    });
    let (_server, reference) = sandbox.at(&image, server);
    let pull = format!("pull -q --arch amd64 {reference}");
    assert_eq!(sandbox.run(&pull).status, 125);
    assert_empty_store(&sandbox);
    check(&sandbox.run(&pull).text(), "sha256:<manifest>");
}

/// N3.
#[test]
fn a_disk_that_is_longer_than_its_descriptor_is_refused() {
    let longer = || [disk("amd64"), b"x".to_vec()].concat();
    refused_disk(
        "integrity",
        move |_| Reply::ok(&longer()),
        r#"
        ------- stderr -------
        error: can not fetch the disk of $REGISTRY/os:1
          caused by: sha256:<disk> has 65537 bytes, expected 65536
        [exit status: 125]
        "#,
    );
    // Where no length is announced it shows only at the end.
    refused_disk(
        "integrity",
        move |_| Reply::status(200).chunked(&longer()),
        r#"
        ------- stderr -------
        error: can not fetch the disk of $REGISTRY/os:1
          caused by: $REGISTRY/os:1 (sha256:<disk>) is larger than 64.00 KiB
        [exit status: 125]
        "#,
    );
    refused_disk(
        "integrity",
        |_| Reply::status(200).endless(),
        r#"
        ------- stderr -------
        error: can not fetch the disk of $REGISTRY/os:1
          caused by: $REGISTRY/os:1 (sha256:<disk>) is larger than 64.00 KiB
        [exit status: 125]
        "#,
    );
}

/// N3.
#[test]
fn a_disk_that_is_shorter_than_its_descriptor_is_refused() {
    refused_disk(
        "integrity",
        |_| Reply::ok(&disk("amd64")[1..]),
        r#"
        ------- stderr -------
        error: can not fetch the disk of $REGISTRY/os:1
          caused by: sha256:<disk> has 65535 bytes, expected 65536
        [exit status: 125]
        "#,
    );
}

/// N13.
#[test]
fn a_disk_that_ends_too_early_is_asked_for_again_and_then_refused() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let path = image.blob_path("disk");
    // Where no length is announced, it is told from a broken connection only by trying again.
    let server = image.serve_except(move |request, _| {
        let short = || Reply::status(200).chunked(&disk("amd64")[1..]);
        (request.path == path).then(short)
    });
    let (server, reference) = sandbox.at(&image, server);
    let pulled = sandbox.run(format!("pull -q --arch amd64 {reference}"));
    check(
        &pulled.text(),
        r#"
        ------- stderr -------
        error: can not fetch the disk of $REGISTRY/os:1
          caused by: blob sha256:<disk> has 65535 bytes, its descriptor says 65536
        [exit status: 125]
        "#,
    );
    assert!(server.count(&image.blob_path("disk")) > 1);
    assert_empty_store(&sandbox);
}

/// N13.
#[test]
fn a_body_that_always_breaks_off_is_given_up_and_the_next_pull_goes_on() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let (path, broken) = (image.blob_path("disk"), Arc::new(AtomicBool::new(true)));
    let is_broken = Arc::clone(&broken);
    let server = image.serve_except(move |request, _| {
        let cut = || Reply::status(200).cut(&disk("amd64")[..1000], 64 << 10);
        (request.path == path && is_broken.load(Ordering::SeqCst)).then(cut)
    });
    let (_server, reference) = sandbox.at(&image, server);
    let pull = format!("pull -q --arch amd64 {reference}");
    check(
        &sandbox.run(&pull).text(),
        r#"
        ------- stderr -------
        error: can not fetch the disk of $REGISTRY/os:1
          caused by: $REGISTRY is not available
          caused by: connection failed: end of file before message length reached
        hint: check the registry's name and your network, then try again
        [exit status: 125]
        "#,
    );
    // What was whole may stay for the next pull; no part does that is not worth resuming.
    for directory in ["refs", "pins", "leases", "ingest", "tmp"] {
        assert_eq!(
            sandbox.names(directory),
            Vec::<String>::new(),
            "in {directory}"
        );
    }
    let config = image.digest("config").strip_prefix("sha256:").unwrap();
    assert_eq!(sandbox.names("blobs/sha256"), [config]);
    broken.store(false, Ordering::SeqCst);
    check(&sandbox.run(&pull).text(), "sha256:<manifest>");
}

#[test]
fn a_manifest_of_other_content_or_size_is_refused() {
    for (bytes, expected) in [
        (
            &b"{\"other\":1}"[..],
            r#"
                ------- stderr -------
                error: $REGISTRY/os:1: content has digest sha256:$OTHER, expected sha256:<manifest>
                [exit status: 125]
                "#,
        ),
        (
            b"",
            r#"
                ------- stderr -------
                error: sha256:<manifest> has 0 bytes, expected 400
                [exit status: 125]
                "#,
        ),
    ] {
        let sandbox = Sandbox::new();
        let image = disk_only(&disk("amd64"));
        let path = format!("/v2/os/manifests/{}", image.digest("manifest"));
        let size = image.size("manifest");
        let bytes = match bytes.len() {
            0 => Vec::new(),
            _ => {
                let mut padded = bytes.to_vec();
                padded.resize(size, b' ');
                padded
            }
        };
        let server =
            image.serve_except(move |request, _| (request.path == path).then(|| Reply::ok(&bytes)));
        let (_server, reference) = sandbox.at(&image, server);
        refused(&sandbox, &reference, "integrity", expected);
    }
}

#[test]
fn documents_without_end_are_cut_off() {
    let sandbox = Sandbox::new();
    let server = Hostile::start(|_: &Request, _| Reply::status(200).endless());
    sandbox.mask(&server.address(), "$REGISTRY");
    refused(
        &sandbox,
        &format!("{}/os:1", server.address()),
        "invalid-image",
        r#"
        ------- stderr -------
        error: $REGISTRY/os:1 (manifests/1) is larger than 4.00 MiB
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_layout_with_a_damaged_blob_is_refused() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let reference = sandbox.layout(&image);
    let directory = reference
        .strip_prefix("oci:")
        .unwrap()
        .strip_suffix(":1")
        .unwrap();
    let blob = format!(
        "{directory}/blobs/{}",
        image.digest("disk").replace(':', "/")
    );
    std::fs::write(&blob, disk("arm64")).unwrap();
    refused(
        &sandbox,
        &reference,
        "integrity",
        r#"
        ------- stderr -------
        error: can not fetch the disk of oci:$LAYOUT:1
          caused by: blob sha256:<disk> has other content: sha256:$OTHER
        [exit status: 125]
        "#,
    );
    std::fs::write(&blob, &disk("amd64")[..1024]).unwrap();
    refused(
        &sandbox,
        &reference,
        "integrity",
        r#"
        ------- stderr -------
        error: can not fetch the disk of oci:$LAYOUT:1
          caused by: sha256:<disk> has 1024 bytes, expected 65536
        [exit status: 125]
        "#,
    );
    std::fs::remove_file(&blob).unwrap();
    refused(
        &sandbox,
        &reference,
        "not-found",
        r#"
        ------- stderr -------
        error: can not fetch the disk of oci:$LAYOUT:1
          caused by: oci:$LAYOUT:1 has no sha256:<disk>
        [exit status: 125]
        "#,
    );
    std::os::unix::fs::symlink("/etc/passwd", &blob).unwrap();
    refused(
        &sandbox,
        &reference,
        "invalid-image",
        r#"
        ------- stderr -------
        error: can not fetch the disk of oci:$LAYOUT:1
          caused by: not a regular file: $LAYOUT/blobs/sha256/<disk>
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_layout_that_is_none_or_lacks_the_name_is_told() {
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(&disk_only(&disk("amd64")));
    let none = format!("oci:{}", sandbox.path("home").display());
    refused(
        &sandbox,
        &none,
        "not-found",
        r#"
        ------- stderr -------
        error: not an OCI layout: $TMP/home
          caused by: cannot open $TMP/home/oci-layout
          caused by: No such file or directory (os error 2)
        hint: name a directory or tar archive that holds an `oci-layout` file
        [exit status: 125]
        "#,
    );
    let other = format!("{}:2", reference.strip_suffix(":1").unwrap());
    refused(
        &sandbox,
        &other,
        "not-found",
        r#"
        ------- stderr -------
        error: layout $LAYOUT has no entry 2; it has 1
        [exit status: 125]
        "#,
    );
}
