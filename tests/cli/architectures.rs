//! Images of which the index does not say what machine they are for.

use serde_json::{Value, json};

use crate::forms::choice;
use crate::image::{Image, OCI_MANIFEST, annotated, disk, entry, manifest};
use crate::publishers::{ARCHITECTURES, combined, today, today_without_platforms};
use crate::refusal::refused_with;
use crate::sandbox::{Sandbox, check};

/// Where the manifests of [`two`] say what they are for.
#[derive(Clone, Copy)]
enum Says {
    Annotation,
    OciAnnotation,
    IndexAnnotation,
    Config,
    Cname,
}

/// An index of a disk for each architecture, without platforms.
fn two(says: Says) -> Image {
    let mut image = Image::default();
    let entries = ARCHITECTURES.map(|architecture| {
        let cname = format!("kvm-gardener_prod-{architecture}-1592.3-8bb2da7d");
        let config = match says {
            Says::Config => json!({"arch": architecture}).to_string(),
            _ => "{}".to_owned(),
        };
        let config = image.config(&format!("config-{architecture}"), &config);
        let disk = image.layer(
            &format!("disk-{architecture}"),
            "rootfs",
            &disk(architecture),
        );
        let mut manifest = manifest(&config, &[disk]);
        manifest = match says {
            Says::Annotation => annotated(manifest, &[("architecture", architecture)]),
            Says::OciAnnotation => {
                let key = "org.opencontainers.image.architecture";
                annotated(manifest, &[(key, architecture)])
            }
            Says::Cname => annotated(manifest, &[("cname", &cname)]),
            Says::IndexAnnotation | Says::Config => manifest,
        };
        let descriptor = image.document(architecture, OCI_MANIFEST, &manifest);
        match says {
            Says::IndexAnnotation => annotated(descriptor, &[("architecture", architecture)]),
            _ => descriptor,
        }
    });
    image.index(&entries)
}

/// N2.
#[test]
fn without_a_platform_the_manifest_or_its_entry_or_its_config_tells() {
    let sandbox = Sandbox::new();
    let mut told = String::new();
    for says in [
        Says::Annotation,
        Says::OciAnnotation,
        Says::IndexAnnotation,
        Says::Config,
        Says::Cname,
    ] {
        let image = sandbox.layout(&two(says));
        for architecture in ARCHITECTURES {
            told += &choice(&sandbox, &format!("--arch {architecture}"), &image);
        }
    }
    check(
        &told,
        r#"
        <amd64> amd64 by annotation, virtualization by layers: disk (- by -) of <disk-amd64>
        <arm64> arm64 by annotation, virtualization by layers: disk (- by -) of <disk-arm64>
        <amd64> amd64 by annotation, virtualization by layers: disk (- by -) of <disk-amd64>
        <arm64> arm64 by annotation, virtualization by layers: disk (- by -) of <disk-arm64>
        <amd64> amd64 by index-annotation, virtualization by layers: disk (- by -) of <disk-amd64>
        <arm64> arm64 by index-annotation, virtualization by layers: disk (- by -) of <disk-arm64>
        <amd64> amd64 by config, virtualization by layers: disk (- by -) of <disk-amd64>
        <arm64> arm64 by config, virtualization by layers: disk (- by -) of <disk-arm64>
        <amd64> amd64 by cname, virtualization by cname: disk (- by -) of <disk-amd64>
        <arm64> arm64 by cname, virtualization by cname: disk (- by -) of <disk-arm64>
        "#,
    );
}

/// N2.
#[test]
fn where_nobody_tells_two_are_ambiguous_whatever_the_name_is() {
    let sandbox = Sandbox::new();
    let image = today_without_platforms("console=ttyS0", &["rootfs"]);
    sandbox.name_digests(&image);
    let directory = sandbox.path("os-amd64");
    image.write_layout(&directory);
    refused_with(
        &sandbox,
        "--arch amd64",
        &format!("oci:{}:1", directory.display()),
        "ambiguous",
        r#"
        ------- stderr -------
        error: image oci:$TMP/os-amd64:1 has 2 virtualization manifests for linux/amd64
          caused by: it has sha256:<manifest-amd64> no platform, virtualization (by layers), disk: fits
          caused by: it has sha256:<manifest-arm64> no platform, virtualization (by layers), disk: fits
        hint: name one of them by its digest: IMAGE@sha256:…
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_config_that_can_not_be_read_tells_nothing() {
    let sandbox = Sandbox::new();
    for (name, config) in [
        ("nonsense", "nonsense".to_owned()),
        ("large", " ".repeat(2 << 20)),
    ] {
        let mut image = Image::default();
        let unreadable = image.config("unreadable", &config);
        let readable = image.config("readable", r#"{"architecture":"aarch64"}"#);
        let entries: Vec<Value> = [("first", unreadable), ("second", readable)]
            .into_iter()
            .map(|(name, config)| {
                let disk = image.layer(&format!("disk-{name}"), "rootfs", &disk(name));
                image.document(name, OCI_MANIFEST, &manifest(&config, &[disk]))
            })
            .collect();
        let image = sandbox.layout(&image.index(&entries));
        let second = choice(&sandbox, "--arch arm64", &image);
        assert!(
            second.starts_with("<second> arm64 by config"),
            "{name}: {second}"
        );
    }
}

/// N9.
#[test]
fn a_manifest_without_an_index_is_checked_against_what_tells_its_architecture() {
    let sandbox = Sandbox::new();
    let mut plain = Image::default();
    let config = plain.config("config", "{}");
    let layers = [plain.layer("disk", "rootfs", &disk("arm64"))];
    let document = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let plain = plain.top(OCI_MANIFEST, &document);
    let (_server, by_nothing) = sandbox.at(
        &plain,
        plain.serve_except({
            let image = plain.clone();
            // The same manifest under another tag.
            move |request, _| match request.path.as_str() {
                "/v2/os/manifests/1.2-kvm-arm64" => Some(image.top_reply()),
                _ => None,
            }
        }),
    );
    let by_tag = format!("{}:1.2-kvm-arm64", by_nothing.strip_suffix(":1").unwrap());
    let directory = sandbox.path("gardenlinux-arm64");
    plain.write_layout(&directory);
    let by_repository = format!("oci:{}:1", directory.display());
    let by_config = sandbox.layout(&combined(r#"{"commandLine":"", "arch":"arm64"}"#));
    let annotated = annotated(document, &[("architecture", "arm64")]);
    let mut by_annotation = plain.clone();
    by_annotation.rename("top", "plain");
    let by_annotation = sandbox.layout(&by_annotation.top(OCI_MANIFEST, &annotated));
    for (reference, by) in [
        (&by_tag, "tag"),
        (&by_repository, "repository"),
        (&by_config, "config"),
        (&by_annotation, "annotation"),
    ] {
        let layers = if by == "config" {
            "disk,kernel,initramfs,squashfs"
        } else {
            "disk"
        };
        let shown = sandbox.shown(reference);
        refused_with(
            &sandbox,
            "--arch amd64",
            reference,
            "no-match",
            &format!(
                "
                ------- stderr -------
                error: image {shown} has no virtualization manifest for linux/amd64
                  caused by: it has sha256:<top> arm64 (by {by}), virtualization (by layers), {layers}: for arm64 by its {by}, not amd64
                hint: pass `--arch arm64` for what it has; `ironboot image inspect IMAGE` shows all
                [exit status: 125]
                "
            ),
        );
        check(
            &choice(&sandbox, "--arch arm64", reference),
            &format!("<top> arm64 by {by}, virtualization by layers: disk (- by -) of <disk>\n"),
        );
    }
    // Nothing says what it is for: whoever asks must know.
    check(
        &choice(&sandbox, "--arch amd64", &by_nothing),
        r#"
        <top> - by -, virtualization by layers: disk (- by -) of <disk>
        "#,
    );
}

#[test]
fn a_manifest_that_contradicts_its_entry_is_refused() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let disk = image.layer("disk", "rootfs", &disk("amd64"));
    let manifest = annotated(manifest(&config, &[disk]), &[("architecture", "arm64")]);
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest);
    let image = sandbox.layout(&image.index(&[entry(manifest, "x86_64")]));
    refused_with(
        &sandbox,
        "--arch amd64",
        &image,
        "no-match",
        r#"
        ------- stderr -------
        error: image oci:$LAYOUT:1 has no virtualization manifest for linux/amd64
          caused by: it has sha256:<manifest> linux/amd64, virtualization (by layers), disk: for arm64 by its annotation, for amd64 by its platform
        hint: `ironboot image inspect IMAGE` shows all that it has
        [exit status: 125]
        "#,
    );
}

#[test]
fn inspect_says_who_tells_an_architecture() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&two(Says::IndexAnnotation));
    let inspected = sandbox.run(format!("image inspect {image}")).stdout;
    let manifests: Vec<&str> = inspected
        .lines()
        .filter(|line| line.contains("variant") || line.contains("virtualization"))
        .collect();
    check(
        &format!("{}\n", manifests.join("\n")),
        r#"
        sha256:<amd64> amd64 (by index-annotation), virtualization (by layers)
        sha256:<arm64> arm64 (by index-annotation), virtualization (by layers)
        "#,
    );
    // An entry that says it by its platform is not asked for more.
    let (server, reference) = sandbox.serve(&today("", &["rootfs"]));
    sandbox.run(format!("image inspect {reference}"));
    let blobs = server.requests().into_iter();
    assert_eq!(blobs.filter(|r| r.path.contains("/blobs/")).count(), 0);
}
