//! Images of which no manifest, or no single one, or no readable one is meant.

use serde_json::{Value, json};

use crate::forms::section;
use crate::image::{
    Image, OCI_INDEX, OCI_MANIFEST, disk, disk_only, entry, initramfs, kernel, manifest, single,
};
use crate::refusal::{refused, refused_with};
use crate::sandbox::{Sandbox, check};

/// An index of manifests: name, architecture, variant, media type of the only layer.
fn index(manifests: &[(&str, &str, &str, &str)]) -> Image {
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let entries: Vec<Value> = manifests
        .iter()
        .map(|(name, architecture, variant, kind)| {
            let layer = image.layer(&format!("{name}-layer"), kind, &disk(name));
            let mut manifest = manifest(&config, &[layer]);
            manifest["annotations"] = json!({"variant": variant});
            entry(image.document(name, OCI_MANIFEST, &manifest), architecture)
        })
        .collect();
    image.index(&entries)
}

/// N10.
#[test]
fn where_nothing_fits_the_error_lists_what_there_is() {
    let sandbox = Sandbox::new();
    let image = index(&[
        ("metal", "amd64", "metal", "kernel"),
        ("arm", "arm64", "virtualization", "rootfs"),
        ("ibm", "s390x", "virtualization", "rootfs"),
    ]);
    let image = sandbox.layout(&image);
    refused(
        &sandbox,
        &image,
        "no-match",
        r#"
        ------- stderr -------
        error: image oci:$LAYOUT:1 has no virtualization manifest for linux/amd64
          caused by: it has sha256:<arm> linux/arm64: for arm64, not amd64
          caused by: it has sha256:<ibm> linux/s390x: for s390x, not amd64
          caused by: it has sha256:<metal> linux/amd64, metal (by annotation), kernel: metal by its annotation
        hint: pass `--arch arm64` or `--variant metal` for what it has; `ironboot image inspect IMAGE` shows all
        [exit status: 125]
        "#,
    );
    refused_with(
        &sandbox,
        "--arch arm64 --variant metal",
        &image,
        "no-match",
        r#"
        ------- stderr -------
        error: image oci:$LAYOUT:1 has no metal manifest for linux/arm64
          caused by: it has sha256:<metal> linux/amd64: for amd64, not arm64
          caused by: it has sha256:<ibm> linux/s390x: for s390x, not arm64
          caused by: it has sha256:<arm> linux/arm64, virtualization (by annotation), disk: virtualization by its annotation
        hint: pass `--arch amd64` or `--variant virtualization` for what it has; `ironboot image inspect IMAGE` shows all
        [exit status: 125]
        "#,
    );
    let image = sandbox.layout(&index(&[]));
    refused(
        &sandbox,
        &image,
        "no-match",
        r#"
        ------- stderr -------
        error: image oci:$LAYOUT:1 has no virtualization manifest for linux/amd64
          caused by: its index has no entries
        hint: `ironboot image inspect IMAGE` shows all that it has
        [exit status: 125]
        "#,
    );
}

/// N1.
#[test]
fn where_several_fit_the_error_lists_their_digests() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&index(&[
        ("one", "amd64", "virtualization", "rootfs"),
        ("metal", "amd64", "metal", "kernel"),
        ("two", "amd64", "kvm", "rootfs"),
    ]));
    refused(
        &sandbox,
        &image,
        "ambiguous",
        r#"
        ------- stderr -------
        error: image oci:$LAYOUT:1 has 2 virtualization manifests for linux/amd64
          caused by: it has sha256:<one> linux/amd64, virtualization (by annotation), disk: fits
          caused by: it has sha256:<two> linux/amd64, virtualization (by annotation), disk: fits
        hint: name one of them by its digest: IMAGE@sha256:…
        [exit status: 125]
        "#,
    );
}

#[test]
fn one_of_several_is_pulled_by_its_digest() {
    let sandbox = Sandbox::new();
    let image = index(&[
        ("one", "amd64", "virtualization", "rootfs"),
        ("two", "amd64", "virtualization", "rootfs"),
    ]);
    let (_server, reference) = sandbox.serve(&image);
    let name = reference.strip_suffix(":1").unwrap();
    let pull = format!("pull -q --arch amd64 {name}@{}", image.digest("two"));
    assert_eq!(sandbox.run(pull).text(), "sha256:<two>\n");
}

#[test]
fn an_image_of_which_nothing_is_known_is_refused() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
    let layers = [image.blob("layer", tar, b"layer")];
    let container = image.document("manifest", OCI_MANIFEST, &manifest(&config, &layers));
    let image = sandbox.layout(&image.index(&[entry(container, "amd64")]));
    refused(
        &sandbox,
        &image,
        "invalid-image",
        r#"
        ------- stderr -------
        error: manifest sha256:<manifest> is not an IronCore image; its layers are: application/vnd.oci.image.layer.v1.tar+gzip
        [exit status: 125]
        "#,
    );
}

/// N5.
#[test]
fn two_layers_of_one_role_and_layers_without_content_are_refused() {
    let sandbox = Sandbox::new();
    let image = single(
        "{}",
        &[
            ("one", "rootfs", &disk("1")),
            ("two", "disk.img", &disk("2")),
        ],
    );
    refused(
        &sandbox,
        &sandbox.layout(&image),
        "invalid-image",
        r#"
        ------- stderr -------
        error: manifest sha256:<manifest> has two different disk layers: sha256:<one> and sha256:<two>
        [exit status: 125]
        "#,
    );
    let image = single(
        "{}",
        &[("disk", "rootfs", &disk("1")), ("nothing", "kernel", b"")],
    );
    refused(
        &sandbox,
        &sandbox.layout(&image),
        "invalid-image",
        r#"
        ------- stderr -------
        error: manifest sha256:<manifest> has an empty kernel layer
        [exit status: 125]
        "#,
    );
}

#[test]
fn documents_that_are_not_what_they_say_are_refused() {
    let sandbox = Sandbox::new();
    let config = json!({"mediaType": "x/y", "digest": sha256('a'), "size": 2});
    let both = json!({"manifests": [], "config": config, "layers": []});
    for (media_type, document, expected) in [
        (
            OCI_INDEX,
            json!({"mediaType": OCI_MANIFEST, "manifests": []}),
            r#"
                ------- stderr -------
                error: sha256:<top> is an index by its content, but its mediaType says: application/vnd.oci.image.manifest.v1+json
                [exit status: 125]
                "#,
        ),
        (
            OCI_MANIFEST,
            json!({"mediaType": OCI_INDEX, "config": config, "layers": []}),
            r#"
                ------- stderr -------
                error: sha256:<top> is a manifest by its content, but its mediaType says: application/vnd.oci.image.index.v1+json
                [exit status: 125]
                "#,
        ),
        (
            OCI_INDEX,
            json!({"config": config, "layers": []}),
            r#"
                ------- stderr -------
                error: sha256:<top> is a manifest by its content, but what refers to it says: application/vnd.oci.image.index.v1+json
                [exit status: 125]
                "#,
        ),
        (
            OCI_INDEX,
            both,
            r#"
                ------- stderr -------
                error: sha256:<top> has `manifests` beside `config` or `layers`: it is neither an index nor a manifest
                [exit status: 125]
                "#,
        ),
        (
            OCI_INDEX,
            json!({"schemaVersion": 2}),
            r#"
                ------- stderr -------
                error: sha256:<top> has neither `manifests` nor `layers`: it is neither an index nor a manifest
                [exit status: 125]
                "#,
        ),
        (
            OCI_MANIFEST,
            json!({"schemaVersion": 1, "fsLayers": []}),
            r#"
                ------- stderr -------
                error: sha256:<top> has `fsLayers` (docker's schema 1): it is neither an index nor a manifest
                [exit status: 125]
                "#,
        ),
        (
            OCI_INDEX,
            json!("an index"),
            r#"
                ------- stderr -------
                error: sha256:<top> is not a readable index or manifest
                  caused by: invalid type: string "an index", expected an object at line 1 column 10
                [exit status: 125]
                "#,
        ),
    ] {
        let image = Image::default().top(media_type, &document);
        let reference = sandbox.layout(&image);
        refused(&sandbox, &reference, "invalid-image", expected);
    }
}

fn sha256(digit: char) -> String {
    format!("sha256:{}", digit.to_string().repeat(64))
}

/// What buildkit, cosign and `oras` put beside an image, and what is broken there.
#[test]
fn what_is_no_image_in_an_index_is_passed_over_with_its_reason() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let empty = image.blob("empty", "application/vnd.oci.empty.v1+json", b"{} ");
    let signature = image.blob(
        "payload",
        "application/vnd.dev.cosign.simplesigning.v1+json",
        b"s",
    );
    let disk = image.layer("disk", "rootfs", &disk("amd64"));
    let mut artifact = |name: &str, layers: &[Value]| {
        let mut document = manifest(&empty, layers);
        document["artifactType"] = json!(format!("application/vnd.example.{name}"));
        image.document(name, OCI_MANIFEST, &document)
    };
    let signature = [signature];
    let mut attestation = entry(artifact("attestation", &signature), "unknown");
    attestation["platform"]["os"] = json!("unknown");
    let signed = artifact("signature", &signature);
    let bare = artifact("bare", &[]);
    let missing = json!({"mediaType": OCI_MANIFEST, "digest": sha256('c'), "size": 7});
    let text = image.document("text", OCI_MANIFEST, &json!("text"));
    let os = image.document("os", OCI_MANIFEST, &manifest(&config, &[disk]));
    let image = image.index(&[
        attestation,
        signed,
        bare,
        missing,
        entry(text, "amd64"),
        entry(os, "amd64"),
    ]);
    let plan = sandbox.run(format!("plan --arch amd64 {}", sandbox.layout(&image)));
    check(
        &section(&plan.stdout, "other manifests"),
        r#"
        other manifests:
          sha256:<attestation> unknown/unknown: not for linux
          sha256:$OTHER no platform: oci:$LAYOUT:1 has no sha256:$OTHER
          sha256:<text> linux/amd64: sha256:<text> is not a readable index or manifest
          sha256:<signature> no platform: manifest sha256:<signature> is not an IronCore image; its layers are: application/vnd.dev.cosign.simplesigning.v1+json
          sha256:<bare> no platform: manifest sha256:<bare> is not an IronCore image; its layers are: none
        "#,
    );
}

#[test]
fn descriptors_that_no_honest_image_has_are_refused_without_a_request_for_them() {
    let sandbox = Sandbox::new();
    let layer = |digest: &str, extra: Value| {
        let mut layer = json!({
            "mediaType": "application/vnd.ironcore.image.rootfs", "digest": digest, "size": 7,
        });
        for (key, value) in extra.as_object().unwrap() {
            layer[key] = value.clone();
        }
        layer
    };
    let blob = sha256('b');
    for (layers, expected) in [
        (
            vec![layer("sha256:../../../../etc/passwd", json!({}))],
            r#"
                ------- stderr -------
                error: sha256:<top> is not a readable index or manifest
                  caused by: digest is not 64 lower-case hex digits: sha256:../../../../etc/passwd at line 1 column 215
                [exit status: 125]
                "#,
        ),
        (
            vec![layer(&blob, json!({"urls": ["http://127.0.0.1/x"]}))],
            r#"
                ------- stderr -------
                error: sha256:<top> names a blob with its own urls, which are never followed: sha256:$OTHER
                [exit status: 125]
                "#,
        ),
        (
            vec![layer(&blob, json!({"size": -1}))],
            r#"
                ------- stderr -------
                error: sha256:<top> is not a readable index or manifest
                  caused by: invalid value: integer `-1`, expected u64 at line 1 column 319
                [exit status: 125]
                "#,
        ),
        (
            vec![layer(&blob, json!({})), layer(&blob, json!({"size": 8}))],
            r#"
                ------- stderr -------
                error: sha256:<top> names one blob with two different sizes: sha256:$OTHER
                [exit status: 125]
                "#,
        ),
        (
            vec![layer(&blob, json!({"size": u64::MAX}))],
            r#"
                ------- stderr -------
                error: sha256:<top> has layers of more than 2^63 bytes
                [exit status: 125]
                "#,
        ),
    ] {
        let mut image = Image::default();
        let config = image.config("config", "{}");
        let image = image.top(OCI_MANIFEST, &manifest(&config, &layers));
        let (server, reference) = sandbox.serve(&image);
        refused(&sandbox, &reference, "invalid-image", expected);
        let mut paths: Vec<String> = server.requests().into_iter().map(|r| r.path).collect();
        paths.sort();
        paths.dedup();
        assert_eq!(paths, ["/v2/os/manifests/1"]);
    }
}

#[test]
fn a_way_to_boot_that_the_image_does_not_offer_is_refused() {
    let sandbox = Sandbox::new();
    let disk = sandbox.layout(&disk_only(&disk("amd64")));
    let uki = sandbox.layout(&single("{}", &[("uki", "uki", b"MZ")]));
    let bare = sandbox.layout(&single(
        "{}",
        &[
            ("kernel", "kernel", &kernel("amd64")),
            ("initramfs", "initramfs", &initramfs()),
        ],
    ));
    refused_with(
        &sandbox,
        "--arch amd64 --boot direct",
        &disk,
        "unbootable",
        r#"
        ------- stderr -------
        error: image sha256:<manifest> can not be booted by direct: the image has no kernel layer
        hint: `ironboot plan IMAGE` shows what is possible
        [exit status: 125]
        "#,
    );
    refused_with(
        &sandbox,
        "--arch amd64 --boot iso",
        &disk,
        "unbootable",
        r#"
        ------- stderr -------
        error: image sha256:<manifest> can not be booted by iso: the image has no iso layer
        hint: `ironboot plan IMAGE` shows what is possible
        [exit status: 125]
        "#,
    );
    refused_with(
        &sandbox,
        "--arch amd64 --append quiet",
        &disk,
        "usage",
        r#"
        ------- stderr -------
        error: disk boot takes its command line from inside the disk: --cmdline and --append have no effect on it
        hint: leave them out, or boot the kernel with --boot direct
        [exit status: 2]
        "#,
    );
    refused(
        &sandbox,
        &uki,
        "invalid-image",
        r#"
        ------- stderr -------
        error: EFI program sha256:<uki> has a header that is cut short
        [exit status: 125]
        "#,
    );
    refused(
        &sandbox,
        &bare,
        "unbootable",
        r#"
        ------- stderr -------
        error: image sha256:<manifest> can not be booted by any method: direct: the image has no command line for its kernel; uki: the image has no uki layer; disk: the image has no disk layer; iso: the image has no iso layer
        hint: `ironboot image inspect IMAGE` shows what its layers are
        [exit status: 125]
        "#,
    );
}

/// N11.
#[test]
fn command_lines_that_no_kernel_takes_are_refused_wherever_they_stand() {
    let sandbox = Sandbox::new();
    let long = "x".repeat(5000);
    for (line, expected) in [
        (
            "console=ttyS0\nroot=/dev/vda",
            r#"
                ------- stderr -------
                error: the command line in blob sha256:<line> is not usable
                  caused by: command line has byte 0x0a at position 13
                hint: pass --cmdline for another one, or boot without it by --boot disk
                [exit status: 125]
                "#,
        ),
        (
            "console=ttyS0\0init=/bin/sh",
            r#"
                ------- stderr -------
                error: the command line in blob sha256:<line> is not usable
                  caused by: command line has byte 0x00 at position 13
                hint: pass --cmdline for another one, or boot without it by --boot disk
                [exit status: 125]
                "#,
        ),
        (
            long.as_str(),
            r#"
                ------- stderr -------
                error: the command line in blob sha256:<line> is not usable
                  caused by: command line has 5000 bytes, more than 2047
                hint: pass --cmdline for another one, or boot without it by --boot disk
                [exit status: 125]
                "#,
        ),
    ] {
        let layers: [(&str, &str, &[u8]); 3] = [
            ("kernel", "kernel", &kernel("amd64")),
            ("initramfs", "initramfs", &initramfs()),
            ("line", "cmdline", line.as_bytes()),
        ];
        let image = sandbox.layout(&single("{}", &layers));
        refused(&sandbox, &image, "invalid-image", expected);
        let config = json!({"commandLine": line}).to_string();
        let image = single(&config, &layers[..2]);
        // In the config it is the same error, of another blob.
        sandbox.mask(image.digest("config"), "sha256:<line>");
        let image = sandbox.layout(&image);
        refused(&sandbox, &image, "invalid-image", expected);
    }
}

#[test]
fn a_config_that_is_no_config_is_refused() {
    let sandbox = Sandbox::new();
    // Only a kernel's command line would be asked of it.
    let image = single(
        r#"{"commandLine": 1}"#,
        &[
            ("disk", "rootfs", &disk("1")),
            ("kernel", "kernel", &kernel("1")),
        ],
    );
    refused(
        &sandbox,
        &sandbox.layout(&image),
        "invalid-image",
        r#"
        ------- stderr -------
        error: config sha256:<config> is not a JSON object of the known form
          caused by: invalid type: integer `1`, expected a string at line 1 column 17
        [exit status: 125]
        "#,
    );
    let long = format!(r#"{{"commandLine": "{}"}}"#, " ".repeat(2 << 20));
    let image = single(&long, &[("disk", "rootfs", &disk("1"))]);
    refused(
        &sandbox,
        &sandbox.layout(&image),
        "invalid-image",
        r#"
        ------- stderr -------
        error: blob sha256:<config> is a config of 2.00 MiB; the most is 1.00 MiB
        [exit status: 125]
        "#,
    );
}
