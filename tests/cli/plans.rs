//! `plan` and `pull`: what is chosen, and what is fetched for it.

use crate::hostile::Hostile;
use crate::image::{direct, disk, disk_only};
use crate::sandbox::{Sandbox, check, check_json};

/// What a server was asked for, `/v2/` left out.
fn asked_for(server: &Hostile, sandbox: &Sandbox) -> String {
    let mut lines: Vec<String> = server
        .requests()
        .iter()
        .map(|request| format!("{} {}\n", request.method, sandbox.shown(&request.path)))
        .collect();
    // Blobs are fetched at the same time.
    lines.sort();
    lines.concat()
}

#[test]
fn a_plan_tells_what_boots_and_why_and_what_does_not() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let plan = sandbox.run(format!("plan --arch amd64 {image}"));
    check(
        &plan.text(),
        r#"
        image  oci:$LAYOUT:1
        manifest  sha256:<manifest>
        selection  the only entry of its index
        architecture  amd64 (by platform)
        variant  virtualization (by layers)
        boot  direct (first possible of direct, uki, disk, iso)
        command line  console=ttyS0 root=LABEL=ROOT ro (from config)

        layers:
          disk  64.00 KiB  <disk>  to be fetched  application/vnd.ironcore.image.rootfs
          kernel  4.00 KiB  <kernel>  to be fetched  application/vnd.ironcore.image.kernel
          initramfs  3.00 KiB  <initramfs>  to be fetched  application/vnd.ironcore.image.initramfs
          squashfs  2.00 KiB  <squashfs>  to be fetched  application/vnd.ironcore.image.squashfs

        other methods:
          uki  not possible  the image has no uki layer
          disk  possible  comes later in the order
          iso  not possible  the image has no iso layer
        "#,
    );
    let plan = sandbox.run(format!("plan --arch amd64 --json {image}"));
    check_json(
        &plan.json(),
        r#"
        {
          "alternatives": [
            {
              "method": "uki",
              "possible": false,
              "reason": "the image has no uki layer"
            },
            {
              "method": "disk",
              "possible": true,
              "reason": "comes later in the order"
            },
            {
              "method": "iso",
              "possible": false,
              "reason": "the image has no iso layer"
            }
          ],
          "boot": {
            "command_line": "console=ttyS0 root=LABEL=ROOT ro",
            "command_line_from": "config",
            "firmware": null,
            "method": "direct",
            "notes": [],
            "reason": "first possible of direct, uki, disk, iso"
          },
          "download": {
            "missing_bytes": 74752,
            "total_bytes": 74752
          },
          "image": {
            "architecture": "amd64",
            "architecture_from": "platform",
            "index_digest": "sha256:<top>",
            "manifest_digest": "sha256:<manifest>",
            "os": "linux",
            "reference": "oci:$LAYOUT:1",
            "variant": "virtualization",
            "variant_from": "layers"
          },
          "layers": [
            {
              "digest": "sha256:<disk>",
              "media_type": "application/vnd.ironcore.image.rootfs",
              "needed": true,
              "role": "disk",
              "size": 65536
            },
            {
              "digest": "sha256:<kernel>",
              "media_type": "application/vnd.ironcore.image.kernel",
              "needed": true,
              "role": "kernel",
              "size": 4096
            },
            {
              "digest": "sha256:<initramfs>",
              "media_type": "application/vnd.ironcore.image.initramfs",
              "needed": true,
              "role": "initramfs",
              "size": 3072
            },
            {
              "digest": "sha256:<squashfs>",
              "media_type": "application/vnd.ironcore.image.squashfs",
              "needed": true,
              "role": "squashfs",
              "size": 2048
            }
          ],
          "passed_over": [],
          "schema_version": 1,
          "selection": {
            "reason": "the only entry of its index",
            "through": []
          }
        }
        "#,
    );
    let forced = format!("plan --arch amd64 --boot disk {image}");
    check(
        &sandbox.run(&forced).text(),
        r#"
        image  oci:$LAYOUT:1
        manifest  sha256:<manifest>
        selection  the only entry of its index
        architecture  amd64 (by platform)
        variant  virtualization (by layers)
        boot  disk (--boot disk)
        firmware  $TMP/firmware/code.fd (the first without enrolled keys that needs no SMM)

        layers:
          disk  64.00 KiB  <disk>  to be fetched  application/vnd.ironcore.image.rootfs
          kernel  4.00 KiB  <kernel>  not needed  application/vnd.ironcore.image.kernel
          initramfs  3.00 KiB  <initramfs>  not needed  application/vnd.ironcore.image.initramfs
          squashfs  2.00 KiB  <squashfs>  not needed  application/vnd.ironcore.image.squashfs

        other methods:
          direct  possible  --boot disk was given
          uki  not possible  the image has no uki layer
          iso  not possible  the image has no iso layer
        "#,
    );
}

#[test]
fn the_command_line_is_replaced_and_added_to() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let boot = |option: &str, words: &str| {
        let line = format!("plan --json --arch amd64 {image} {option}");
        sandbox.run_with(line, words).json()["boot"].take()
    };
    check_json(
        &boot("--append x=1 --append", "quiet splash"),
        r#"
        {
          "command_line": "console=ttyS0 root=LABEL=ROOT ro x=1 quiet splash",
          "command_line_from": "config",
          "firmware": null,
          "method": "direct",
          "notes": [],
          "reason": "first possible of direct, uki, disk, iso"
        }
        "#,
    );
    check_json(
        &boot("--cmdline", "root=/dev/vda1 ro"),
        r#"
        {
          "command_line": "root=/dev/vda1 ro",
          "command_line_from": "option",
          "firmware": null,
          "method": "direct",
          "notes": [],
          "reason": "first possible of direct, uki, disk, iso"
        }
        "#,
    );
}

#[test]
fn a_plan_reads_manifests_only_and_makes_no_store() {
    let sandbox = Sandbox::new();
    let image = direct();
    let (server, reference) = sandbox.serve(&image);
    let plan = sandbox.run(format!("plan --arch amd64 {reference}"));
    assert_eq!(plan.status, 0, "{}", plan.text());
    check(
        &asked_for(&server, &sandbox),
        r#"
        GET /v2/os/blobs/sha256:<config>
        GET /v2/os/manifests/1
        GET /v2/os/manifests/sha256:<manifest>
        "#,
    );
    assert!(!sandbox.store().exists());
}

#[test]
fn a_pull_fetches_what_the_boot_needs_and_a_second_one_no_layer() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let (server, reference) = sandbox.serve(&image);
    let pull = format!("pull --arch amd64 {reference}");
    check(
        &sandbox.run(&pull).text(),
        r#"
        sha256:<manifest>
        ------- stderr -------
        fetching 64.00 KiB
        "#,
    );
    check(
        &asked_for(&server, &sandbox),
        r#"
        GET /v2/os/blobs/sha256:<config>
        GET /v2/os/blobs/sha256:<disk>
        GET /v2/os/manifests/1
        GET /v2/os/manifests/sha256:<manifest>
        "#,
    );
    let tree = sandbox.tree();
    let before = server.requests().len();
    let again = sandbox.run(format!("pull --json --arch amd64 {reference}"));
    check_json(
        &again.json()["download"],
        r#"
        {
          "fetched_bytes": 0,
          "missing_bytes": 0,
          "total_bytes": 65536
        }
        "#,
    );
    assert_eq!(again.stderr, "");
    assert_eq!(sandbox.tree(), tree);
    let again = &server.requests()[before..];
    let blobs = again
        .iter()
        .filter(|request| request.path.contains("/blobs/"));
    assert_eq!(blobs.count(), 0, "{again:?}");
}

#[test]
fn a_pull_of_all_fetches_what_the_boot_does_not_need_too() {
    let sandbox = Sandbox::new();
    let image = direct();
    let (_server, reference) = sandbox.serve(&image);
    let missing = |image: &str| {
        let plan = format!("plan --arch amd64 --boot direct --json {image}");
        sandbox.run(&plan).json()["download"].take()
    };
    let disk = format!("pull --arch amd64 --boot disk {reference}");
    check(
        &sandbox.run(&disk).text(),
        r#"
        sha256:<manifest>
        ------- stderr -------
        fetching 64.00 KiB
        "#,
    );
    check_json(
        &missing(&reference),
        r#"
        {
          "missing_bytes": 9216,
          "total_bytes": 74752
        }
        "#,
    );
    let all = format!("pull --arch amd64 --boot disk --all {reference}");
    check(
        &sandbox.run(&all).text(),
        r#"
        sha256:<manifest>
        ------- stderr -------
        fetching 9.00 KiB
        "#,
    );
    check_json(
        &missing(&reference),
        r#"
        {
          "missing_bytes": 0,
          "total_bytes": 74752
        }
        "#,
    );
}

#[test]
fn several_images_are_pulled_at_once_and_told_in_order() {
    let sandbox = Sandbox::new();
    let (one, two) = (direct(), disk_only(&disk("other")));
    let (one, two) = (sandbox.layout(&one), sandbox.layout(&two));
    let pull = format!("pull -q --arch amd64 --json {one} {two}");
    let pulled = sandbox.run(&pull).json();
    let digests: Vec<&str> = pulled["images"]
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["image"]["manifest_digest"].as_str().unwrap())
        .collect();
    // Both are called so in their own images.
    assert_eq!(digests, ["sha256:<manifest>", "sha256:<manifest>"]);
    assert_eq!(sandbox.names("refs").len(), 2);
}

#[test]
fn verbose_tells_each_step_and_quiet_none() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&disk_only(&disk("amd64")));
    let pull = |word| {
        sandbox
            .run(format!("pull {word} --arch amd64 {image}"))
            .text()
    };
    check(
        &pull("--quiet"),
        r#"
        sha256:<manifest>
        "#,
    );
    check(
        &pull("--verbose"),
        r#"
        sha256:<manifest>
        ------- stderr -------
        reading the manifests of oci:$LAYOUT:1
        everything is in the store
        "#,
    );
}

#[test]
fn a_reference_may_have_a_transport_and_a_digest_and_a_tag_beside_it() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let (server, reference) = sandbox.serve(&image);
    let (top, name) = (image.digest("top"), reference.strip_suffix(":1").unwrap());
    for asked in [
        format!("docker://{reference}"),
        format!("{name}@{top}"),
        // The digest decides; nobody asks where the tag leads.
        format!("{name}:moved@{top}"),
        format!("{name}@{}", image.digest("manifest")),
    ] {
        let plan = sandbox
            .run(format!("plan --json --arch amd64 {asked}"))
            .json();
        let expected = sandbox.shown(asked.trim_start_matches("docker://"));
        assert_eq!(plan["image"]["reference"], expected);
        assert_eq!(plan["image"]["manifest_digest"], "sha256:<manifest>");
    }
    assert_eq!(server.count("/v2/os/manifests/moved"), 0);
}

#[test]
fn a_layout_that_is_not_there_is_not_found() {
    let sandbox = Sandbox::new();
    check(
        &sandbox.run("plan oci:none").text(),
        r#"
        ------- stderr -------
        error: cannot open $TMP/home/none
          caused by: No such file or directory (os error 2)
        hint: check the path
        [exit status: 125]
        "#,
    );
}
