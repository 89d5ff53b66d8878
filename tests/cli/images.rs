//! `image list|inspect|rm|build|push`.

use std::fs;

use serde_json::json;

use crate::image::{direct, disk, disk_only, initramfs, kernel};
use crate::registry::{Access, DockerRegistry};
use crate::sandbox::{Sandbox, check, check_json};

#[test]
fn images_are_listed_and_removed_with_the_blobs_that_nothing_else_needs() {
    let sandbox = Sandbox::new();
    check(
        &sandbox.run("image list").text(),
        r#"
        IMAGE  DIGEST  SIZE  FOR
        "#,
    );
    let (one, two) = (disk_only(&disk("amd64")), direct());
    let (_server, one) = sandbox.serve(&one);
    let two = sandbox.layout(&two);
    assert_eq!(
        sandbox
            .run(format!("pull -q --arch amd64 {one} {two}"))
            .status,
        0
    );
    check(
        &sandbox.run("image list").text(),
        r#"
        IMAGE  DIGEST  SIZE  FOR
        $REGISTRY/os:1  <top>  64.67 KiB  amd64 virtualization
        oci:$LAYOUT:1  <top>  74.16 KiB  amd64 virtualization
        "#,
    );
    let mut listed = sandbox.run("image list --json").json();
    let image = &mut listed["images"][0];
    for time in ["pulled_at", "used_at"] {
        assert!(image[time].take().as_u64().unwrap() > 1_700_000_000);
    }
    check_json(
        image,
        r#"
        {
          "digest": "sha256:<top>",
          "manifests": [
            {
              "architecture": "amd64",
              "manifest_digest": "sha256:<manifest>",
              "variant": "virtualization"
            }
          ],
          "pulled_at": null,
          "reference": "$REGISTRY/os:1",
          "size_bytes": 66227,
          "used_at": null
        }
        "#,
    );
    check(
        &sandbox.run(format!("image rm {two}")).text(),
        r#"
        oci:$LAYOUT:1
        "#,
    );
    // The disk is in both.
    check(
        &sandbox.run(format!("image rm --json {one}")).text(),
        r#"
        {"removed":[{"freed_bytes":66227,"reference":"$REGISTRY/os:1"}],"schema_version":1}
        "#,
    );
    assert_eq!(sandbox.names("blobs/sha256"), Vec::<String>::new());
    check(
        &sandbox.run(format!("image rm {one}")).text(),
        r#"
        ------- stderr -------
        error: image is not in the store: $REGISTRY/os:1
        hint: `ironboot image list` shows what there is
        [exit status: 125]
        "#,
    );
}

#[test]
fn an_image_that_an_instance_needs_is_not_removed() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&disk_only(&disk("amd64")));
    sandbox.run(format!(
        "prepare -q --name vm --arch amd64 --accel tcg {image}"
    ));
    let tree = sandbox.tree();
    check(
        &sandbox.run(format!("image rm {image}")).text(),
        r#"
        ------- stderr -------
        error: image oci:$LAYOUT:1 is used by vm
        hint: remove the instance first: `ironboot rm vm`
        [exit status: 125]
        "#,
    );
    assert_eq!(sandbox.tree(), tree);
    sandbox.run("rm vm");
    assert_eq!(sandbox.run(format!("image rm {image}")).status, 0);
}

#[test]
fn an_instance_whose_pin_has_vanished_keeps_its_image_by_its_record() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&disk_only(&disk("amd64")));
    sandbox.run(format!(
        "prepare -q --name vm --arch amd64 --accel tcg {image}"
    ));
    fs::remove_file(sandbox.store().join("pins/vm.json")).unwrap();
    let output = sandbox.run(format!("image rm --json {image}"));
    assert_eq!(output.status, 125);
    let error = &output.json()["error"];
    assert_eq!(error["kind"], "conflict");
    assert_eq!(
        error["message"], "image oci:$LAYOUT:1 is used by vm",
        "{error}"
    );
}

#[test]
fn inspect_shows_all_and_says_where_it_was_read() {
    let sandbox = Sandbox::new();
    let (server, image) = sandbox.serve(&direct());
    check(
        &sandbox.run(format!("image inspect {image}")).text(),
        r#"
        $REGISTRY/os:1
        sha256:<top> (read from its source)
        not verified: $TMP/policy.json asks for no signature of everything (its default)

        sha256:<manifest> linux/amd64, virtualization (by layers)
          disk  64.00 KiB  sha256:<disk>  application/vnd.ironcore.image.rootfs
          kernel  4.00 KiB  sha256:<kernel>  application/vnd.ironcore.image.kernel
          initramfs  3.00 KiB  sha256:<initramfs>  application/vnd.ironcore.image.initramfs
          squashfs  2.00 KiB  sha256:<squashfs>  application/vnd.ironcore.image.squashfs
        "#,
    );
    sandbox.run(format!("pull -q --arch amd64 --boot disk {image}"));
    let before = server.requests().len();
    check(
        &sandbox.run(format!("image inspect {image}")).text(),
        r#"
        $REGISTRY/os:1
        sha256:<top> (read from the store)
        not verified: $TMP/policy.json asks for no signature of everything (its default)

        sha256:<manifest> linux/amd64, virtualization (by layers)
          disk  64.00 KiB  sha256:<disk>  application/vnd.ironcore.image.rootfs  in the store
          kernel  4.00 KiB  sha256:<kernel>  application/vnd.ironcore.image.kernel
          initramfs  3.00 KiB  sha256:<initramfs>  application/vnd.ironcore.image.initramfs
          squashfs  2.00 KiB  sha256:<squashfs>  application/vnd.ironcore.image.squashfs
        "#,
    );
    check_json(
        &sandbox.run(format!("image inspect --json {image}")).json(),
        r#"
        {
          "digest": "sha256:<top>",
          "from": "store",
          "manifests": [
            {
              "annotations": {},
              "architecture": "amd64",
              "architecture_from": "platform",
              "config": {
                "digest": "sha256:<config>",
                "mediaType": "application/vnd.ironcore.image.config.v1+json",
                "size": 50
              },
              "digest": "sha256:<manifest>",
              "error": null,
              "index_annotations": {},
              "layers": [
                {
                  "digest": "sha256:<disk>",
                  "media_type": "application/vnd.ironcore.image.rootfs",
                  "role": "disk",
                  "size": 65536,
                  "stored": true
                },
                {
                  "digest": "sha256:<kernel>",
                  "media_type": "application/vnd.ironcore.image.kernel",
                  "role": "kernel",
                  "size": 4096,
                  "stored": false
                },
                {
                  "digest": "sha256:<initramfs>",
                  "media_type": "application/vnd.ironcore.image.initramfs",
                  "role": "initramfs",
                  "size": 3072,
                  "stored": false
                },
                {
                  "digest": "sha256:<squashfs>",
                  "media_type": "application/vnd.ironcore.image.squashfs",
                  "role": "squashfs",
                  "size": 2048,
                  "stored": false
                }
              ],
              "media_type": "application/vnd.oci.image.manifest.v1+json",
              "platform": {
                "architecture": "amd64",
                "os": "linux"
              },
              "variant": "virtualization",
              "variant_from": "layers",
              "within": null
            }
          ],
          "media_type": "application/vnd.oci.image.index.v1+json",
          "reference": "$REGISTRY/os:1",
          "schema_version": 1,
          "trust": {
            "accepted": true,
            "not_checked": [
              "transparency log",
              "certificate",
              "expiry"
            ],
            "policy": "$TMP/policy.json",
            "requirements": [
              {
                "type": "insecureAcceptAnything"
              }
            ],
            "scope": "everything (its default)"
          }
        }
        "#,
    );
    assert_eq!(server.requests().len(), before);
}

#[test]
fn what_is_built_is_planned_pushed_and_pulled() {
    let sandbox = Sandbox::new();
    for (name, bytes) in [
        ("disk", disk("built")),
        ("kernel", kernel("amd64")),
        ("initramfs", initramfs()),
        ("line", b"console=ttyS0 ro\n".to_vec()),
    ] {
        fs::write(sandbox.path("home").join(name), bytes).unwrap();
    }
    let manifest = "arch=amd64,disk=disk,kernel=kernel,initramfs=initramfs,cmdline=line";
    let metal = "arch=amd64,variant=metal,kernel=kernel,initramfs=initramfs,cmdline=line";
    let built = sandbox.run(format!(
        "image build --json -o oci:out:1 -m {metal} -m {manifest}"
    ));
    let built = built.json();
    let digest = built["digest"].as_str().unwrap();
    sandbox.mask(digest, "sha256:<index>");
    let plan = sandbox.run("plan --arch amd64 --json oci:out:1").json();
    check_json(
        &plan["boot"],
        r#"
        {
          "command_line": "console=ttyS0 ro",
          "command_line_from": "cmdline-layer",
          "firmware": null,
          "method": "direct",
          "notes": [],
          "reason": "first possible of direct, uki, disk, iso"
        }
        "#,
    );
    assert_eq!(plan["image"]["variant_from"], "annotation");
    let registry = DockerRegistry::start(Access::Open);
    sandbox.mask(registry.address(), "$REGISTRY");
    let there = format!("{}/os:1", registry.address());
    check(
        &sandbox
            .run(format!("image push --json -q oci:out:1 {there}"))
            .text(),
        r#"
        {"digest":"sha256:$OTHER","present_bytes":0,"reference":"$REGISTRY/os:1","schema_version":1,"sent_bytes":72723}
        "#,
    );
    check(
        &sandbox
            .run(format!("image push --json -q oci:out:1 {there}"))
            .text(),
        r#"
        {"digest":"sha256:$OTHER","present_bytes":72723,"reference":"$REGISTRY/os:1","schema_version":1,"sent_bytes":0}
        "#,
    );
    assert_eq!(
        sandbox.run(format!("pull -q --arch amd64 {there}")).status,
        0
    );
    // The form for the ecosystem's reader: no `disk.img`, the command line in the config.
    let compat = format!("image build --compat -o oci:out:2 -m {manifest}");
    assert_eq!(sandbox.run(compat).status, 0);
    let plan = sandbox.run("plan --arch amd64 --json oci:out:2").json();
    assert_eq!(plan["boot"]["command_line_from"], "config");
    assert_eq!(
        plan["layers"][0]["media_type"],
        "application/vnd.ironcore.image.rootfs"
    );
}

#[test]
fn a_build_of_files_that_are_not_there_or_no_good_is_refused() {
    let sandbox = Sandbox::new();
    let line = sandbox.path("home/line");
    fs::write(&line, "console=ttyS0\nro").unwrap();
    let build = |manifest: &str| {
        sandbox
            .run(format!("image build -o oci:out:1 -m {manifest}"))
            .text()
    };
    check(
        &build("arch=amd64,disk=none"),
        r#"
        ------- stderr -------
        error: cannot open none
          caused by: No such file or directory (os error 2)
        hint: check the path
        [exit status: 125]
        "#,
    );
    check(
        &build("arch=amd64,cmdline=line"),
        r#"
        ------- stderr -------
        error: the command line in line is not usable
          caused by: command line has byte 0x0a at position 13
        [exit status: 2]
        "#,
    );
    check(
        &build("arch=amd64,rootfs=line"),
        r#"
        ------- stderr -------
        error: invalid value 'arch=amd64,rootfs=line' for '--manifest <MANIFEST>': key is not arch, variant or a layer's role: rootfs

        For more information, try '--help'.
        [exit status: 2]
        "#,
    );
    check(
        &sandbox
            .run("image build -o r.example/os:1 -m arch=amd64,disk=line")
            .text(),
        r#"
        ------- stderr -------
        error: --output is not oci:DIR:NAME
        [exit status: 2]
        "#,
    );
}

#[test]
fn an_image_of_which_only_a_part_was_pulled_is_not_pushed() {
    let sandbox = Sandbox::new();
    let (server, image) = sandbox.serve(&direct());
    sandbox.run(format!("pull -q --arch amd64 --boot disk {image}"));
    let registry = DockerRegistry::start(Access::Open);
    sandbox.mask(registry.address(), "$OTHER_REGISTRY");
    let there = format!("{}/copy:1", registry.address());
    check(
        &sandbox.run(format!("image push -q {image} {there}")).text(),
        r#"
        ------- stderr -------
        error: image $REGISTRY/os:1 is not whole here: sha256:<kernel> is missing
        hint: pull it with --all first
        [exit status: 125]
        "#,
    );
    sandbox.run(format!("pull -q --arch amd64 --all {image}"));
    check(
        &sandbox.run(format!("image push -q {image} {there}")).text(),
        "sha256:<top>",
    );
    let never = format!("{}/never:1", server.address());
    check(
        &sandbox.run(format!("image push -q {never} {there}")).text(),
        r#"
        ------- stderr -------
        error: image is not in the store: $REGISTRY/never:1
        hint: `ironboot image list` shows what there is
        [exit status: 125]
        "#,
    );
}

#[test]
fn the_store_is_a_layout_that_others_read() {
    let sandbox = Sandbox::new();
    let (_server, image) = sandbox.serve(&direct());
    sandbox.run(format!("pull -q --arch amd64 --all {image}"));
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(sandbox.store().join("index.json")).unwrap()).unwrap();
    let names = &index["manifests"][0]["annotations"];
    assert_eq!(*names, json!({"org.opencontainers.image.ref.name": image}));
    let plan = format!("plan --json --arch amd64 oci:{}", sandbox.store().display());
    assert_eq!(sandbox.run(plan).json()["boot"]["method"], "direct");
}
