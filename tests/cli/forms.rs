//! The forms of the specification and of today's `ironcore-image`: what is chosen of each, and how
//! it boots.

use serde_json::Value;

use crate::image::{ARTIFACTS, Image, OCI_MANIFEST, annotated, disk, entry, manifest};
use crate::publishers::{combined, docker_list, seed, specification, today};
use crate::registry::{Access, DockerRegistry};
use crate::sandbox::{Sandbox, check};

/// What was chosen, in one line: manifest, architecture and variant with who says them, boot
/// method, what is needed.
pub(crate) fn choice(sandbox: &Sandbox, options: &str, reference: &str) -> String {
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
        "{} {} by {}, {} by {}: {} ({} by {}) of {}\n",
        word(&plan["image"]["manifest_digest"]).replace("sha256:", ""),
        word(&plan["image"]["architecture"]),
        word(&plan["image"]["architecture_from"]),
        word(&plan["image"]["variant"]),
        word(&plan["image"]["variant_from"]),
        word(&plan["boot"]["method"]),
        word(&plan["boot"]["command_line"]),
        word(&plan["boot"]["command_line_from"]),
        needed.join(" "),
    )
}

/// The part of a plan under the heading `name`.
pub(crate) fn section(plan: &str, name: &str) -> String {
    let mut sections = plan.split("\n\n");
    let section = sections.find(|section| section.starts_with(name));
    let section = section.unwrap_or_else(|| panic!("no {name} in {plan}"));
    format!("{}\n", section.trim_end())
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

/// What each asker gets of [`specification`].
const FOUR: &str = r#"
    <virtualization-amd64> amd64 by platform, virtualization by annotation: direct (console=ttyS0 root=LABEL=ROOT ro by cmdline-layer) of <disk-amd64> <kernel-amd64> <initramfs> <squashfs> <cmdline>
    <virtualization-arm64> arm64 by platform, virtualization by annotation: direct (console=ttyS0 root=LABEL=ROOT ro by cmdline-layer) of <disk-arm64> <kernel-arm64> <initramfs> <squashfs> <cmdline>
    <metal-amd64> amd64 by platform, metal by annotation: direct (console=ttyS0 root=LABEL=ROOT ro by cmdline-layer) of <kernel-amd64> <initramfs> <squashfs> <cmdline>
    <metal-arm64> arm64 by platform, metal by annotation: direct (console=ttyS0 root=LABEL=ROOT ro by cmdline-layer) of <kernel-arm64> <initramfs> <squashfs> <cmdline>
    "#;

#[test]
fn the_specifications_form_is_read_from_a_layout() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&seed());
    check(&choices(&sandbox, &image), FOUR);
    let plan = sandbox.run(format!("plan --arch amd64 {image}"));
    check(
        &plan.text(),
        r#"
        image  oci:$LAYOUT:1
        manifest  sha256:<virtualization-amd64>
        selection  the one of 4 entries for virtualization on linux/amd64
        architecture  amd64 (by platform)
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
          uki  possible  comes later in the order
          disk  possible  comes later in the order
          iso  possible  comes later in the order

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
    let (_server, reference) = sandbox.serve(&specification(ARTIFACTS, OCI_MANIFEST));
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
        specification(ARTIFACTS, OCI_MANIFEST),
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
    let layout = sandbox.layout(&seed());
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

/// N11: an `&` that Go has escaped, and a newline at the end.
#[test]
fn todays_form_boots_its_disk_or_by_the_command_line_in_its_config() {
    let sandbox = Sandbox::new();
    let line = "console=tty0 a=1&b ro\n";
    let image = sandbox.layout(&today(line, &["rootfs"]));
    check(
        &choices(&sandbox, &image),
        r#"
        <manifest-amd64> amd64 by platform, virtualization by layers: disk (- by -) of <rootfs-amd64>
        <manifest-arm64> arm64 by platform, virtualization by layers: disk (- by -) of <rootfs-arm64>
        {"error":{"causes":["it has sha256:<manifest-arm64> linux/arm64: for arm64, not amd64","it has sha256:<manifest-amd64> linux/amd64, virtualization (by layers), disk: virtualization by its layers"],"hint":"pass `--arch arm64` or `--variant virtualization` for what it has; `ironboot image inspect IMAGE` shows all","kind":"no-match","message":"image oci:$LAYOUT:1 has no metal manifest for linux/amd64","retryable":false},"schema_version":1}
        [exit status: 125]
        {"error":{"causes":["it has sha256:<manifest-amd64> linux/amd64: for amd64, not arm64","it has sha256:<manifest-arm64> linux/arm64, virtualization (by layers), disk: virtualization by its layers"],"hint":"pass `--arch amd64` or `--variant virtualization` for what it has; `ironboot image inspect IMAGE` shows all","kind":"no-match","message":"image oci:$LAYOUT:1 has no metal manifest for linux/arm64","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
    let image = sandbox.layout(&today(line, &["rootfs", "kernel", "initramfs"]));
    check(
        &choices(&sandbox, &image),
        r#"
        <manifest-amd64> amd64 by platform, virtualization by layers: direct (console=tty0 a=1&b ro by config) of <rootfs-amd64> <kernel-amd64> <initramfs-amd64>
        <manifest-arm64> arm64 by platform, virtualization by layers: direct (console=tty0 a=1&b ro by config) of <rootfs-arm64> <kernel-arm64> <initramfs-amd64>
        {"error":{"causes":["it has sha256:<manifest-arm64> linux/arm64: for arm64, not amd64","it has sha256:<manifest-amd64> linux/amd64, virtualization (by layers), disk,kernel,initramfs: virtualization by its layers"],"hint":"pass `--arch arm64` or `--variant virtualization` for what it has; `ironboot image inspect IMAGE` shows all","kind":"no-match","message":"image oci:$LAYOUT:1 has no metal manifest for linux/amd64","retryable":false},"schema_version":1}
        [exit status: 125]
        {"error":{"causes":["it has sha256:<manifest-amd64> linux/amd64: for amd64, not arm64","it has sha256:<manifest-arm64> linux/arm64, virtualization (by layers), disk,kernel,initramfs: virtualization by its layers"],"hint":"pass `--arch amd64` or `--variant virtualization` for what it has; `ironboot image inspect IMAGE` shows all","kind":"no-match","message":"image oci:$LAYOUT:1 has no metal manifest for linux/arm64","retryable":false},"schema_version":1}
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
        {"error":{"causes":[],"hint":"`ironboot image inspect IMAGE` shows what its layers are","kind":"unbootable","message":"image sha256:<manifest-amd64> can not be booted by any method: direct: the image has no command line for its kernel; uki: the image has no uki layer; disk: the image has no disk layer; iso: the image has no iso layer","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
    let direct = "--arch amd64 --boot direct --append console=ttyS0";
    check(
        &choice(&sandbox, direct, &reference),
        r#"
        <manifest-amd64> amd64 by platform, - by -: direct (console=ttyS0 by none) of <initramfs-amd64> <kernel-amd64> <squashfs-amd64>
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
        {"error":{"causes":["it has sha256:<manifest-arm64> linux/arm64: for arm64, not amd64","it has sha256:<manifest-amd64> linux/amd64, metal (by tag), kernel,initramfs,squashfs: metal by its tag"],"hint":"pass `--arch arm64` or `--variant metal` for what it has; `ironboot image inspect IMAGE` shows all","kind":"no-match","message":"image oci:$TMP/metal:1.2-metal has no virtualization manifest for linux/amd64","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
    let asked = "--arch amd64 --variant metal --cmdline ro";
    check(
        &choice(&sandbox, asked, &metal),
        r#"
        <manifest-amd64> amd64 by platform, metal by tag: direct (ro by option) of <initramfs-amd64> <kernel-amd64> <squashfs-amd64>
        "#,
    );
}

#[test]
fn a_registry_takes_todays_text_of_the_specification_as_it_is() {
    let sandbox = Sandbox::new();
    let (_server, reference) = sandbox.serve(&specification(OCI_MANIFEST, OCI_MANIFEST));
    check(&choices(&sandbox, &reference), FOUR);
}

#[test]
fn what_dockers_tools_pushed_again_is_read_as_it_was() {
    let sandbox = Sandbox::new();
    let kinds = ["rootfs", "kernel", "initramfs"];
    let (_server, before) = sandbox.serve(&today("console=ttyS0", &kinds));
    let expected = choices(&sandbox, &before);
    let (_server, reference) = sandbox.serve(&docker_list("console=ttyS0", &kinds));
    assert_eq!(choices(&sandbox, &reference), expected);
    assert!(
        expected.starts_with("<manifest-amd64> amd64 by platform"),
        "{expected}"
    );
}

/// N4.
#[test]
fn the_disk_is_the_disk_whatever_comes_after_it() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&today("console=ttyS0", &["rootfs", "squashfs"]));
    check(
        &choice(&sandbox, "--arch amd64", &image),
        r#"
        <manifest-amd64> amd64 by platform, virtualization by layers: disk (- by -) of <rootfs-amd64>
        "#,
    );
}

/// N5.
#[test]
fn todays_word_for_a_layer_is_taken_before_yesterdays() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let layers = [
        image.layer("old", "rootfs.v1alpha1.rootfs", &disk("old")),
        image.layer("new", "rootfs", &disk("new")),
    ];
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest(&config, &layers));
    let (server, reference) = sandbox.serve(&image.clone().index(&[entry(manifest, "amd64")]));
    let plan = sandbox.run(format!("plan --arch amd64 {reference}"));
    check(
        &section(&plan.stdout, "layers"),
        r#"
        layers:
          disk  64.00 KiB  <old>  another form is taken  application/vnd.ironcore.image.rootfs.v1alpha1.rootfs
          disk  64.00 KiB  <new>  to be fetched  application/vnd.ironcore.image.rootfs
        "#,
    );
    let pull = format!("pull -q --arch amd64 {reference}");
    assert_eq!(sandbox.run(pull).text(), "sha256:<manifest>\n");
    assert_eq!(server.count(&image.blob_path("old")), 0);
}

/// N7.
#[test]
fn the_title_of_a_layer_is_never_a_path() {
    let sandbox = Sandbox::new();
    let names = |directory: &str| {
        let entries = std::fs::read_dir(sandbox.path(directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let absolute = sandbox.path("home/escaped").display().to_string();
    for title in ["../../../escaped", "kvm-amd64/kvm.raw", "..", &absolute] {
        let mut image = Image::default();
        let config = image.config("config", "{}");
        let disk = image.layer("disk", "rootfs", &disk("amd64"));
        let disk = annotated(disk, &[("org.opencontainers.image.title", title)]);
        let image = image.top(OCI_MANIFEST, &manifest(&config, &[disk]));
        let (_server, reference) = sandbox.serve(&image);
        let before = (names("."), names("home"));
        let prepare = format!("prepare -q --json --name vm --arch amd64 --accel tcg {reference}");
        let staged = sandbox.run(prepare).json()["staged"].take();
        assert_eq!(
            staged["disks"][0]["backing_file"],
            "$TMP/store/blobs/sha256/<disk>"
        );
        assert_eq!(
            sandbox.names("instances/vm"),
            ["disk-0.qcow2", "record.json", "vars.fd"]
        );
        std::fs::remove_dir_all(sandbox.store()).unwrap();
        assert_eq!((names("."), names("home")), before, "{title}");
    }
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
        selection  the only entry of its index
        architecture  amd64 (by platform)
        variant  virtualization (by layers)
        boot  disk (first possible of direct, uki, disk, iso)
        firmware  $TMP/firmware/code.fd (the first without enrolled keys that needs no SMM)

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
