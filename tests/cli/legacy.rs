//! The forms of other publishers, and those of times past: what is chosen of each, and what its
//! layers are taken for.

use serde_json::Value;

use crate::forms::{choice, section};
use crate::image::{Image, OCI_MANIFEST, annotated, disk, kernel, manifest};
use crate::publishers::{combined, feos, garden_linux, metal_spellings, onmetal, zero_kernel};
use crate::sandbox::{Sandbox, check, check_json};

/// What was chosen and what each of its layers is taken for, whether or not it boots.
fn roles(sandbox: &Sandbox, options: &str, reference: &str) -> String {
    let pulled = sandbox.run(format!("pull -q --all --json {options} {reference}"));
    if pulled.status != 0 {
        return pulled.text();
    }
    let image = pulled.json();
    let word = |value: &Value| value.as_str().unwrap_or("-").replace("sha256:", "");
    let layers: Vec<String> = image["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| format!("{}={}", word(&layer["role"]), word(&layer["digest"])))
        .collect();
    let image = &image["image"];
    format!(
        "{} {} by {}, {} by {}: {}\n",
        word(&image["manifest_digest"]),
        word(&image["architecture"]),
        word(&image["architecture_from"]),
        word(&image["variant"]),
        word(&image["variant_from"]),
        layers.join(" "),
    )
}

#[test]
fn a_legacy_combined_image_boots_its_disk_and_not_the_kernel_for_network_boot() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&combined(r#"{"commandLine":"quiet ro","arch":"amd64"}"#));
    check(
        &choice(&sandbox, "--arch amd64", &image),
        r#"
        <top> amd64 by config, virtualization by layers: disk (- by -) of <disk>
        "#,
    );
    check(
        &choice(&sandbox, "--arch amd64 --boot direct", &image),
        r#"
        <top> amd64 by config, virtualization by layers: direct (quiet ro by config) of <disk> <squashfs> <initramfs> <kernel>
        "#,
    );
}

#[test]
fn text_after_the_configs_json_is_skipped() {
    let sandbox = Sandbox::new();
    let config = r#"{"commandLine": "", "os-release": "1592.3"}, "arch": "amd64""#;
    let image = sandbox.layout(&combined(&format!("{config}\n")));
    // That it is for amd64 stands in what is skipped.
    check(
        &choice(&sandbox, "--arch amd64", &image),
        r#"
        <top> - by -, virtualization by layers: disk (- by -) of <disk>
        "#,
    );
    let pull = format!("pull --arch amd64 {image}");
    check(
        &sandbox.run(pull).text(),
        r#"
        sha256:<top>
        ------- stderr -------
        warning: what comes after the JSON of config sha256:<config> is not read
        fetching 64.00 KiB
        "#,
    );
}

#[test]
fn layers_for_metal_have_their_roles_and_do_not_boot_the_disk_beside_them() {
    let sandbox = Sandbox::new();
    let config = r#"{"commandLine":"quiet ro","arch":"amd64"}"#;
    let image = sandbox.layout(&metal_spellings(config));
    check(
        &roles(&sandbox, "--arch amd64", &image),
        r#"
        <top> amd64 by config, virtualization by layers: disk=<disk> squashfs=<squashfs> initramfs=<initramfs> kernel=<kernel>
        "#,
    );
    check(
        &choice(&sandbox, "--arch amd64", &image),
        r#"
        <top> amd64 by config, virtualization by layers: disk (- by -) of <disk>
        "#,
    );
}

#[test]
fn layers_for_metal_yield_to_plain_ones() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.layer("config", "config.v1alpha1+json", br#"{"arch":"amd64"}"#);
    let layers = [
        image.layer("metal", "metal.vmlinuz.v1alpha1.vmlinuz", &[b'm'; 4096]),
        image.layer("kernel", "vmlinuz.v1alpha1.vmlinuz", &kernel("amd64")),
        image.layer("disk", "rootfs.v1alpha1.rootfs", &disk("amd64")),
    ];
    let image = sandbox.layout(&image.top(OCI_MANIFEST, &manifest(&config, &layers)));
    check(
        &roles(&sandbox, "--arch amd64", &image),
        r#"
        <top> amd64 by config, virtualization by layers: -=<metal> kernel=<kernel> disk=<disk>
        "#,
    );
}

#[test]
fn zeros_in_the_place_of_a_kernel_do_not_keep_the_disk_from_booting() {
    let sandbox = Sandbox::new();
    let config = r#"{"commandLine":"quiet ro","arch":"amd64"}"#;
    let image = sandbox.layout(&zero_kernel(config));
    check(
        &choice(&sandbox, "--arch amd64", &image),
        r#"
        <top> amd64 by config, virtualization by layers: disk (- by -) of <disk>
        "#,
    );
    let pull = format!("pull -q --arch amd64 {image}");
    assert_eq!(sandbox.run(pull).text(), "sha256:<top>\n");
}

#[test]
fn an_onmetal_image_has_a_kernel_that_boots_its_disk() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&onmetal("root=LABEL=ROOT ro console=ttyS0"));
    check(
        &choice(&sandbox, "--arch amd64", &image),
        r#"
        <top> - by -, virtualization by layers: direct (root=LABEL=ROOT ro console=ttyS0 by config) of <disk> <initramfs> <kernel>
        "#,
    );
}

#[test]
fn of_garden_linuxs_flavours_the_one_for_vms_is_chosen_by_its_name() {
    let sandbox = Sandbox::new();
    let (server, reference) = sandbox.serve(&garden_linux());
    let kvm = sandbox.run(format!("plan --arch amd64 {reference}")).stdout;
    let lines: Vec<&str> = kvm.lines().take(5).collect();
    check(
        &format!("{}\n", lines.join("\n")),
        r#"
        image  $REGISTRY/os:1
        manifest  sha256:<kvm-gardener_prod-amd64>
        selection  the one of 10 entries for virtualization on linux/amd64
        architecture  amd64 (by platform)
        variant  virtualization (by cname)
        "#,
    );
    check(
        &section(&kvm, "other manifests"),
        r#"
        other manifests:
          sha256:<container-amd64> linux/amd64, cname container-amd64: made for container by its cname
          sha256:<aws-gardener_prod-amd64> gardenlinux/amd64, cname aws-gardener_prod-amd64: made for aws by its cname
          sha256:<openstack-gardener_prod-amd64> gardenlinux/amd64, cname openstack-gardener_prod-amd64: made for openstack by its cname
          sha256:<container-arm64> linux/arm64, cname container-arm64: for arm64, not amd64
          sha256:<aws-gardener_prod-arm64> gardenlinux/arm64, cname aws-gardener_prod-arm64: for arm64, not amd64
          sha256:<kvm-gardener_prod-arm64> gardenlinux/arm64, cname kvm-gardener_prod-arm64: for arm64, not amd64
          sha256:<metal-gardener_pxe-arm64> gardenlinux/arm64, cname metal-gardener_pxe-arm64: for arm64, not amd64
          sha256:<openstack-gardener_prod-arm64> gardenlinux/arm64, cname openstack-gardener_prod-arm64: for arm64, not amd64
          sha256:<metal-gardener_pxe-amd64> gardenlinux/amd64, metal (by cname), kernel,initramfs,squashfs,cmdline,uki, cname metal-gardener_pxe-amd64: metal by its cname
        "#,
    );
    // What is for other machines by its name is not even read.
    let documents = server.requests().into_iter();
    let documents = documents.filter(|request| request.path.contains("/manifests/"));
    assert_eq!(documents.count(), 3);
    check(
        &["amd64", "arm64", "arm64 --variant metal"]
            .map(|options| roles(&sandbox, &format!("--arch {options}"), &reference))
            .concat(),
        r#"
        <kvm-gardener_prod-amd64> amd64 by platform, virtualization by cname: -=<kvm-gardener_prod-amd64.qcow2> disk=<kvm-gardener_prod-amd64.raw> -=<kvm-gardener_prod-amd64.log> -=<kvm-gardener_prod-amd64.release>
        <kvm-gardener_prod-arm64> arm64 by platform, virtualization by cname: -=<kvm-gardener_prod-amd64.qcow2> disk=<kvm-gardener_prod-arm64.raw> -=<kvm-gardener_prod-amd64.log> -=<kvm-gardener_prod-amd64.release>
        <metal-gardener_pxe-arm64> arm64 by platform, metal by cname: -=<metal-gardener_pxe-amd64.tar> kernel=<metal-gardener_pxe-arm64.kernel> initramfs=<metal-gardener_pxe-amd64.initrd> squashfs=<metal-gardener_pxe-amd64.squashfs> cmdline=<metal-gardener_pxe-amd64.cmdline> -=<metal-gardener_pxe-amd64.efi> uki=<metal-gardener_pxe-amd64.uki>
        "#,
    );
    let plan = sandbox.run(format!("plan --arch amd64 --json {reference}"));
    check_json(
        &plan.json()["passed_over"][8],
        r#"
        {
          "architecture": "amd64",
          "architecture_from": "platform",
          "cname": "metal-gardener_pxe-amd64",
          "digest": "sha256:<metal-gardener_pxe-amd64>",
          "platform": "gardenlinux/amd64",
          "reason": "metal by its cname",
          "roles": [
            "kernel",
            "initramfs",
            "squashfs",
            "cmdline",
            "uki"
          ],
          "variant": "metal",
          "variant_from": "cname",
          "within": null
        }
        "#,
    );
}

#[test]
fn a_flavour_for_other_machines_is_taken_where_it_is_named_itself() {
    let sandbox = Sandbox::new();
    let image = garden_linux();
    let (_server, reference) = sandbox.serve(&image);
    let name = reference.strip_suffix(":1").unwrap();
    let aws = format!("{name}@{}", image.digest("aws-gardener_prod-arm64"));
    check(
        &choice(&sandbox, "--arch arm64", &aws),
        r#"
        <aws-gardener_prod-arm64> arm64 by annotation, virtualization by layers: disk (- by -) of <aws-gardener_prod-amd64.raw>
        "#,
    );
}

#[test]
fn what_feos_calls_a_squashfs_is_told_as_one() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&feos());
    check(
        &roles(&sandbox, "--arch amd64", &image),
        r#"
        <top> - by -, - by -: squashfs=<disk> initramfs=<initramfs> kernel=<kernel>
        "#,
    );
}

#[test]
fn a_variant_that_is_annotated_is_stronger_than_a_name() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let layers = [image.layer("disk", "rootfs", &disk("amd64"))];
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest(&config, &layers));
    let entry = annotated(
        crate::image::entry(manifest, "amd64"),
        &[("variant", "qemu"), ("cname", "aws-gardener_prod-amd64")],
    );
    let image = sandbox.layout(&image.index(&[entry]));
    check(
        &choice(&sandbox, "--arch amd64", &image),
        r#"
        <manifest> amd64 by platform, virtualization by index-annotation: disk (- by -) of <disk>
        "#,
    );
}
