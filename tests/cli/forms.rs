//! Every form in which images are published: what is chosen of it, and how it boots.
//!
//! The forms are those of the specification, of today's `ironcore-image`, of both mixed, and of
//! the `v1alpha1` images that are still in registries.

use serde_json::{Value, json};

use crate::image::{
    ARTIFACTS, Image, OCI_MANIFEST, disk, entry, initramfs, kernel, manifest, squashfs,
};
use crate::registry::{Access, DockerRegistry};
use crate::sandbox::{Sandbox, check};

const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];

/// The layers of one manifest in the specification's words.
fn layers(image: &mut Image, variant: &str, architecture: &str) -> Vec<Value> {
    let name = |role: &str| format!("{role}-{architecture}");
    let mut layers = vec![
        image.layer(&name("kernel"), "kernel", &kernel(architecture)),
        image.layer("initramfs", "initramfs", &initramfs()),
        image.layer("squashfs", "squashfs", &squashfs()),
        image.layer("cmdline", "cmdline", b"console=ttyS0 root=LABEL=ROOT ro\n"),
        image.layer("uki", "uki", b"MZ, and the rest of a unified kernel image"),
        image.layer("iso", "iso", &[b'-'; 0x9000]),
    ];
    if variant == "virtualization" {
        layers.insert(
            0,
            image.layer(&name("disk"), "disk.img", &disk(architecture)),
        );
    }
    layers
}

/// Two variants for two architectures, metal first, as the specification writes them: `body` is
/// the media type in the manifests, and nothing in the index tells the variants apart.
fn four(body: &str) -> Image {
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let mut entries = Vec::new();
    for architecture in ARCHITECTURES {
        for variant in ["metal", "virtualization"] {
            let layers = layers(&mut image, variant, architecture);
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": body,
                "config": config,
                "layers": layers,
                "annotations": {"variant": variant, "architecture": architecture},
            });
            let name = format!("{variant}-{architecture}");
            let descriptor = image.document(&name, ARTIFACTS, &manifest);
            entries.push(entry(descriptor, architecture));
        }
    }
    image.index(&entries)
}

/// What `ironcore-image` writes today: no media type, no annotation, the command line in the
/// config; `kinds` are the layers' media types.
fn today(command_line: &str, kinds: &[&str]) -> Image {
    let mut image = Image::default();
    let mut entries = Vec::new();
    for architecture in ARCHITECTURES {
        let config = json!({"commandLine": command_line, "for": architecture}).to_string();
        let config = image.config(&format!("config-{architecture}"), &config);
        let layers: Vec<Value> = kinds
            .iter()
            .map(|kind| {
                let bytes = match *kind {
                    "rootfs" => disk(architecture),
                    "kernel" => kernel(architecture),
                    "initramfs" => initramfs(),
                    _ => squashfs(),
                };
                image.layer(&format!("{kind}-{architecture}"), kind, &bytes)
            })
            .collect();
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
        let name = format!("manifest-{architecture}");
        let descriptor = image.document(&name, OCI_MANIFEST, &manifest);
        entries.push(entry(descriptor, architecture));
    }
    image.index(&entries)
}

/// One `v1alpha1` manifest with a VM's disk and, unrelated to it, what boots by network.
fn combined(config: &str) -> Image {
    let mut image = Image::default();
    let config = image.layer("config", "config.v1alpha1+json", config.as_bytes());
    let mut disk = image.layer("disk", "rootfs.v1alpha1.rootfs", &disk("amd64"));
    disk["annotations"] = json!({"org.opencontainers.image.title": "kvm-amd64/../kvm-amd64.raw"});
    let layers = [
        disk,
        image.layer("squashfs", "squashfs.v1alpha1.squashfs", &squashfs()),
        image.layer("initramfs", "initramfs.v1alpha1.initramfs", &initramfs()),
        image.layer("kernel", "vmlinuz.v1alpha1.vmlinuz", &kernel("amd64")),
    ];
    let manifest = manifest(&config, &layers);
    image.top(OCI_MANIFEST, &manifest)
}

/// What was chosen, in one line: manifest, who says its variant, boot method, what is needed.
fn choice(sandbox: &Sandbox, options: &str, reference: &str) -> String {
    let output = sandbox.run(format!("plan --json {options} {reference}"));
    let plan = output.json();
    if output.status != 0 {
        return output.text();
    }
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let needed: Vec<String> = plan["layers"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|layer| layer["needed"] == true)
        .map(|layer| word(&layer["digest"]).replace("sha256:", ""))
        .collect();
    format!(
        "{} {} by {}: {} ({} by {}) of {}\n",
        word(&plan["image"]["manifest_digest"]).replace("sha256:", ""),
        word(&plan["image"]["variant"]),
        word(&plan["image"]["variant_from"]),
        word(&plan["boot"]["method"]),
        word(&plan["boot"]["command_line"]),
        word(&plan["boot"]["command_line_from"]),
        needed.join(" "),
    )
}

/// The choice for each architecture and variant, and for this host where none is asked for.
fn choices(sandbox: &Sandbox, reference: &str) -> String {
    let host = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    assert_eq!(
        choice(sandbox, "--quiet", reference),
        choice(
            sandbox,
            &format!("--arch {host} --variant virtualization"),
            reference
        ),
    );
    [
        "amd64",
        "arm64",
        "amd64 --variant metal",
        "arm64 --variant metal",
    ]
    .map(|options| choice(sandbox, &format!("--arch {options}"), reference))
    .concat()
}

/// What each asker gets of [`four`].
const FOUR: &str = r#"
    <virtualization-amd64> virtualization by annotation: direct (console=ttyS0 root=LABEL=ROOT ro by cmdline-layer) of <disk-amd64> <kernel-amd64> <initramfs> <squashfs> <cmdline>
    <virtualization-arm64> virtualization by annotation: direct (console=ttyS0 root=LABEL=ROOT ro by cmdline-layer) of <disk-arm64> <kernel-arm64> <initramfs> <squashfs> <cmdline>
    <metal-amd64> metal by annotation: direct (console=ttyS0 root=LABEL=ROOT ro by cmdline-layer) of <kernel-amd64> <initramfs> <squashfs> <cmdline>
    <metal-arm64> metal by annotation: direct (console=ttyS0 root=LABEL=ROOT ro by cmdline-layer) of <kernel-arm64> <initramfs> <squashfs> <cmdline>
    "#;

#[test]
fn the_specifications_form_is_read_from_a_layout() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&four(ARTIFACTS));
    check(&choices(&sandbox, &image), FOUR);
    let plan = sandbox.run(format!("plan --arch amd64 {image}"));
    check(
        &plan.text(),
        r#"
        image  oci:$LAYOUT:1
        manifest  sha256:<virtualization-amd64>
        architecture  amd64
        variant  virtualization (by annotation)
        boot  direct (first possible of direct, uki, disk, iso)
        command line  console=ttyS0 root=LABEL=ROOT ro (from cmdline-layer)

        layers:
          disk  64.00 KiB  <disk-amd64>  to be fetched  application/vnd.ironcore.image.disk.img
          kernel  4.00 KiB  <kernel-amd64>  to be fetched  application/vnd.ironcore.image.kernel
          initramfs  3.00 KiB  <initramfs>  to be fetched  application/vnd.ironcore.image.initramfs
          squashfs  2.00 KiB  <squashfs>  to be fetched  application/vnd.ironcore.image.squashfs
          cmdline  33 B  <cmdline>  read  application/vnd.ironcore.image.cmdline
          uki  42 B  <uki>  not needed  application/vnd.ironcore.image.uki
          iso  36.00 KiB  <iso>  not needed  application/vnd.ironcore.image.iso

        other methods:
          uki  not possible  this version does not boot uki layers yet
          disk  possible  comes later in the order
          iso  not possible  this version does not boot iso layers yet

        other manifests:
          sha256:<metal-arm64> linux/arm64: for arm64, not amd64
          sha256:<virtualization-arm64> linux/arm64: for arm64, not amd64
          sha256:<metal-amd64> linux/amd64, metal (by annotation), kernel,initramfs,squashfs,cmdline,uki,iso: metal by its annotation
        "#,
    );
}

#[test]
fn the_mixed_form_is_read_from_a_registry() {
    let sandbox = Sandbox::new();
    let (_server, reference) = sandbox.serve(&four(OCI_MANIFEST));
    check(&choices(&sandbox, &reference), FOUR);
}

#[test]
fn every_form_that_a_real_registry_takes_comes_back_as_it_was() {
    let sandbox = Sandbox::new();
    let registry = DockerRegistry::start(Access::Open);
    sandbox.mask(registry.address(), "$REGISTRY");
    for (number, image) in [
        today("console=ttyS0", &["rootfs"]),
        today("", &["initramfs", "kernel", "squashfs"]),
        combined(r#"{"commandLine":"quiet","arch":"amd64"}"#),
        four(OCI_MANIFEST),
    ]
    .iter()
    .enumerate()
    {
        let layout = sandbox.layout(image);
        let there = format!("{}/os:v{number}", registry.address());
        let pushed = sandbox.run(format!("image push -q {layout} {there}"));
        assert_eq!(pushed.text(), "sha256:<top>\n");
        let inspected = sandbox.run(format!("image inspect --json {there}")).json();
        assert_eq!(inspected["digest"], "sha256:<top>");
        let expected = choices(&sandbox, &layout).replace("oci:$LAYOUT:1", "image");
        let place = format!("$REGISTRY/os:v{number}");
        assert_eq!(choices(&sandbox, &there).replace(&place, "image"), expected);
    }
    // What the specification says of a manifest's own media type, this registry does not take.
    let layout = sandbox.layout(&four(ARTIFACTS));
    let push = format!("image push -q {layout} {}/os:seed", registry.address());
    check(
        &sandbox.run(push).text(),
        r#"
        ------- stderr -------
        error: image oci:$LAYOUT:1 has manifests that call themselves application/vnd.ironcore.image.artifacts.v1+json, which registries refuse
        hint: `ironboot image build` writes a form that registries take
        [exit status: 125]
        "#,
    );
}

#[test]
fn todays_form_boots_its_disk_or_by_the_command_line_in_its_config() {
    let sandbox = Sandbox::new();
    let line = "console=tty0 a=1&b ro\n";
    let image = sandbox.layout(&today(line, &["rootfs"]));
    check(
        &choices(&sandbox, &image),
        r#"
        <manifest-amd64> virtualization by layers: disk (- by -) of <rootfs-amd64>
        <manifest-arm64> virtualization by layers: disk (- by -) of <rootfs-arm64>
        {"error":{"causes":["it has sha256:<manifest-arm64> linux/arm64: for arm64, not amd64","it has sha256:<manifest-amd64> linux/amd64, virtualization (by layers), disk: virtualization by its layers"],"hint":"pass --arch or --variant for another manifest, or see `ironboot image inspect`","kind":"no-match","message":"image oci:$LAYOUT:1 has no metal manifest for linux/amd64","retryable":false},"schema_version":1}
        [exit status: 125]
        {"error":{"causes":["it has sha256:<manifest-amd64> linux/amd64: for amd64, not arm64","it has sha256:<manifest-arm64> linux/arm64, virtualization (by layers), disk: virtualization by its layers"],"hint":"pass --arch or --variant for another manifest, or see `ironboot image inspect`","kind":"no-match","message":"image oci:$LAYOUT:1 has no metal manifest for linux/arm64","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
    let image = sandbox.layout(&today(line, &["rootfs", "kernel", "initramfs"]));
    check(
        &choices(&sandbox, &image),
        r#"
        <manifest-amd64> virtualization by layers: direct (console=tty0 a=1&b ro by config) of <rootfs-amd64> <kernel-amd64> <initramfs-amd64>
        <manifest-arm64> virtualization by layers: direct (console=tty0 a=1&b ro by config) of <rootfs-arm64> <kernel-arm64> <initramfs-amd64>
        {"error":{"causes":["it has sha256:<manifest-arm64> linux/arm64: for arm64, not amd64","it has sha256:<manifest-amd64> linux/amd64, virtualization (by layers), disk,kernel,initramfs: virtualization by its layers"],"hint":"pass --arch or --variant for another manifest, or see `ironboot image inspect`","kind":"no-match","message":"image oci:$LAYOUT:1 has no metal manifest for linux/amd64","retryable":false},"schema_version":1}
        [exit status: 125]
        {"error":{"causes":["it has sha256:<manifest-amd64> linux/amd64: for amd64, not arm64","it has sha256:<manifest-arm64> linux/arm64, virtualization (by layers), disk,kernel,initramfs: virtualization by its layers"],"hint":"pass --arch or --variant for another manifest, or see `ironboot image inspect`","kind":"no-match","message":"image oci:$LAYOUT:1 has no metal manifest for linux/arm64","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
}

#[test]
fn todays_metal_form_has_no_signal_but_its_tag_and_no_command_line() {
    let sandbox = Sandbox::new();
    let image = today("", &["initramfs", "kernel", "squashfs"]);
    let server = image.serve();
    let (_server, reference) = sandbox.at(&image, server);
    check(
        &choice(&sandbox, "--arch amd64", &reference),
        r#"
        {"error":{"causes":[],"hint":null,"kind":"unbootable","message":"image sha256:<manifest-amd64> can not be booted by any method: direct: the image has no command line for its kernel; uki: the image has no uki layer; disk: the image has no disk layer; iso: the image has no iso layer","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
    let direct = "--arch amd64 --boot direct --append console=ttyS0";
    check(
        &choice(&sandbox, direct, &reference),
        r#"
        <manifest-amd64> - by -: direct (console=ttyS0 by none) of <initramfs-amd64> <kernel-amd64> <squashfs-amd64>
        "#,
    );
    let directory = sandbox.path("metal");
    image.write_layout(&directory);
    let renamed = std::fs::read_to_string(directory.join("index.json")).unwrap();
    let renamed = renamed.replace(r#"ref.name":"1""#, r#"ref.name":"1.2-metal""#);
    std::fs::write(directory.join("index.json"), renamed).unwrap();
    let metal = format!("oci:{}:1.2-metal", directory.display());
    check(
        &choice(&sandbox, "--arch amd64", &metal),
        r#"
        {"error":{"causes":["it has sha256:<manifest-arm64> linux/arm64: for arm64, not amd64","it has sha256:<manifest-amd64> linux/amd64, metal (by tag), kernel,initramfs,squashfs: metal by its tag"],"hint":"pass --arch or --variant for another manifest, or see `ironboot image inspect`","kind":"no-match","message":"image oci:$TMP/metal:1.2-metal has no virtualization manifest for linux/amd64","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
    let asked = "--arch amd64 --variant metal --cmdline ro";
    check(
        &choice(&sandbox, asked, &metal),
        r#"
        <manifest-amd64> metal by tag: direct (ro by option) of <initramfs-amd64> <kernel-amd64> <squashfs-amd64>
        "#,
    );
}

#[test]
fn a_legacy_combined_image_boots_its_disk_and_not_the_kernel_for_network_boot() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&combined(r#"{"commandLine":"quiet ro","arch":"amd64"}"#));
    check(
        &choice(&sandbox, "--arch amd64", &image),
        r#"
        <top> virtualization by layers: disk (- by -) of <disk>
        "#,
    );
    check(
        &choice(&sandbox, "--arch amd64 --boot direct", &image),
        r#"
        <top> virtualization by layers: direct (quiet ro by config) of <disk> <squashfs> <initramfs> <kernel>
        "#,
    );
    check(
        &choice(&sandbox, "--arch arm64", &image),
        r#"
        {"error":{"causes":["it has sha256:<top> linux/amd64, virtualization (by layers): for amd64 by its config"],"hint":"pass --arch or --variant for another manifest, or see `ironboot image inspect`","kind":"no-match","message":"image oci:$LAYOUT:1 has no virtualization manifest for linux/arm64","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
}

#[test]
fn text_after_the_configs_json_is_skipped() {
    let sandbox = Sandbox::new();
    let config = r#"{"commandLine": "", "os-release": "1592.3"}, "arch": "amd64""#;
    let image = sandbox.layout(&combined(&format!("{config}\n")));
    check(
        &choice(&sandbox, "--arch amd64", &image),
        r#"
        <top> virtualization by layers: disk (- by -) of <disk>
        "#,
    );
    let prepared = sandbox.run(format!(
        "prepare -q --name vm --arch amd64 --accel tcg {image}"
    ));
    check(
        &prepared.text(),
        r#"
        instance  vm
        directory  $TMP/store/instances/vm
        firmware  $TMP/firmware/code.fd
        variables  $TMP/store/instances/vm/vars.fd
        disk  $TMP/store/instances/vm/disk-0.qcow2 (qcow2)
        "#,
    );
}

#[test]
fn a_manifest_without_an_index_is_checked_against_the_architecture_in_its_name() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let disk = image.layer("disk", "rootfs", &disk("arm64"));
    let image = image.top(
        OCI_MANIFEST,
        &json!({"schemaVersion": 2, "config": config, "layers": [disk]}),
    );
    let (_server, reference) = sandbox.at(
        &image,
        image.serve_except({
            let image = image.clone();
            // The same manifest under another tag.
            move |request, _| match request.path.as_str() {
                "/v2/os/manifests/1.2-kvm-arm64" => Some(image.top_reply()),
                _ => None,
            }
        }),
    );
    let named = format!("{}:1.2-kvm-arm64", reference.strip_suffix(":1").unwrap());
    check(
        &choice(&sandbox, "--arch amd64", &named),
        r#"
        {"error":{"causes":["it has sha256:<top> no platform, virtualization (by layers), disk: for arm64, not amd64"],"hint":"pass --arch or --variant for another manifest, or see `ironboot image inspect`","kind":"no-match","message":"image $REGISTRY/os:1.2-kvm-arm64 has no virtualization manifest for linux/amd64","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
    check(
        &choice(&sandbox, "--arch arm64", &named),
        r#"
        <top> virtualization by layers: disk (- by -) of <disk>
        "#,
    );
    // Nothing says what it is for: whoever asks must know.
    check(
        &choice(&sandbox, "--arch amd64", &reference),
        r#"
        <top> virtualization by layers: disk (- by -) of <disk>
        "#,
    );
}

#[test]
fn unknown_layers_are_told_and_not_fetched() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let layers = [
        image.blob("log", "application/io.gardenlinux.log", b"log"),
        image.layer("disk", "rootfs", &disk("amd64")),
        image.blob("odd", "application/x-\u{1b}[31m", b"odd"),
    ];
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest(&config, &layers));
    let image = image.index(&[entry(manifest, "amd64")]);
    let (server, reference) = sandbox.serve(&image);
    check(
        &sandbox.run(format!("plan --arch amd64 {reference}")).text(),
        r#"
        image  $REGISTRY/os:1
        manifest  sha256:<manifest>
        architecture  amd64
        variant  virtualization (by layers)
        boot  disk (first possible of direct, uki, disk, iso)

        layers:
          -  3 B  <log>  unknown, not fetched  application/io.gardenlinux.log
          disk  64.00 KiB  <disk>  to be fetched  application/vnd.ironcore.image.rootfs
          -  3 B  <odd>  unknown, not fetched  application/x-\u{1b}[31m

        other methods:
          direct  not possible  the image has no kernel layer
          uki  not possible  the image has no uki layer
          iso  not possible  the image has no iso layer
        "#,
    );
    assert_eq!(
        sandbox.run(format!("pull --arch amd64 {reference}")).status,
        0
    );
    assert_eq!(server.count(&image.blob_path("log")), 0);
    assert_eq!(
        sandbox
            .run(format!("pull --all --arch amd64 {reference}"))
            .status,
        0
    );
    assert_eq!(server.count(&image.blob_path("log")), 1);
}
