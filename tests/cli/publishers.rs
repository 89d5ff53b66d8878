//! Images as each publisher writes them, with payloads of our own.

use serde_json::{Value, json};

use crate::image::{
    ARTIFACTS, DOCKER_LIST, DOCKER_MANIFEST, Image, OCI_MANIFEST, annotated, disk, entry,
    initramfs, kernel, manifest, squashfs,
};

pub(crate) const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
const GARDEN_LINUX: &str = "application/io.gardenlinux";
const ONMETAL: &str = "application/vnd.onmetal.image";

/// A layer of Garden Linux: the end of its title, its media type or the end of that, its content.
type File<'a> = (&'a str, &'a str, &'a [u8]);

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

/// Two variants for two architectures, metal first, as the specification writes them: nothing in
/// the index tells the variants apart. `listed` is the manifests' media type in the index, `body`
/// the one that they give themselves.
///
/// Both are the specification's own type in its first text, and both OCI's in today's; a registry
/// takes the first one in the index only.
pub(crate) fn specification(listed: &str, body: &str) -> Image {
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let mut entries = Vec::new();
    for architecture in ARCHITECTURES {
        for variant in ["metal", "virtualization"] {
            let title = format!("MyOS {variant} ({architecture})");
            let manifest = json!({
                "schemaVersion": 2,
                "mediaType": body,
                "config": config,
                "layers": layers(&mut image, variant, architecture),
                "annotations": {
                    "org.opencontainers.image.title": title,
                    "variant": variant,
                    "architecture": architecture,
                },
            });
            let name = format!("{variant}-{architecture}");
            let descriptor = image.document(&name, listed, &manifest);
            entries.push(entry(descriptor, architecture));
        }
    }
    image.index(&entries)
}

/// The specification's first text, which lives in layouts only.
pub(crate) fn seed() -> Image {
    specification(ARTIFACTS, ARTIFACTS)
}

/// What `ironcore-image` writes today: no media type, no annotation, the command line in the
/// config; `kinds` are the layers' media types.
pub(crate) fn today(command_line: &str, kinds: &[&str]) -> Image {
    let (image, entries) = today_entries(command_line, kinds);
    image.index(&entries)
}

/// The same without platforms in the index, as an index made by hand has it.
pub(crate) fn today_without_platforms(command_line: &str, kinds: &[&str]) -> Image {
    let (image, mut entries) = today_entries(command_line, kinds);
    for entry in &mut entries {
        entry.as_object_mut().unwrap().remove("platform");
    }
    image.index(&entries)
}

/// The same as re-pushed by docker's tools.
pub(crate) fn docker_list(command_line: &str, kinds: &[&str]) -> Image {
    let (mut image, mut entries) = today_entries(command_line, kinds);
    for (entry, architecture) in entries.iter_mut().zip(ARCHITECTURES) {
        let name = format!("manifest-{architecture}");
        let mut manifest: Value = serde_json::from_slice(image.bytes(&name)).unwrap();
        manifest["mediaType"] = json!(DOCKER_MANIFEST);
        image.rename(&name, &format!("undocked-{architecture}"));
        let descriptor = image.document(&name, DOCKER_MANIFEST, &manifest);
        *entry = crate::image::entry(descriptor, architecture);
    }
    let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": entries});
    image.top(DOCKER_LIST, &list)
}

fn today_entries(command_line: &str, kinds: &[&str]) -> (Image, Vec<Value>) {
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
    (image, entries)
}

/// One `v1alpha1` manifest, pushed by `oras`, with a VM's disk and, unrelated to it, what boots by
/// network.
pub(crate) fn combined(config: &str) -> Image {
    v1alpha1(config, "", &kernel("amd64"), &initramfs())
}

/// The same of one day in 2024: what boots by network is called `metal`.
pub(crate) fn metal_spellings(config: &str) -> Image {
    v1alpha1(config, "metal.", &kernel("amd64"), &initramfs())
}

/// The same of early 2024: in the place of kernel and initramfs are zeros.
pub(crate) fn zero_kernel(config: &str) -> Image {
    let zeros = vec![0; 1 << 20];
    v1alpha1(config, "", &zeros, &zeros)
}

fn v1alpha1(config: &str, metal: &str, kernel: &[u8], initramfs: &[u8]) -> Image {
    let mut image = Image::default();
    let config = image.layer("config", "config.v1alpha1+json", config.as_bytes());
    let disk = image.layer("disk", "rootfs.v1alpha1.rootfs", &disk("amd64"));
    let title = "kvm-gardener_prod-amd64/kvm-gardener_prod-amd64.raw";
    let mut layer =
        |name: &str, kind: &str, bytes: &[u8]| image.layer(name, &format!("{metal}{kind}"), bytes);
    let layers = [
        annotated(disk, &[("org.opencontainers.image.title", title)]),
        layer("squashfs", "squashfs.v1alpha1.squashfs", &squashfs()),
        layer("initramfs", "initramfs.v1alpha1.initramfs", initramfs),
        layer("kernel", "vmlinuz.v1alpha1.vmlinuz", kernel),
    ];
    image.top(OCI_MANIFEST, &manifest(&config, &layers))
}

/// What `onmetal-image` wrote: a disk, and the kernel and initramfs that boot it.
pub(crate) fn onmetal(command_line: &str) -> Image {
    let mut image = Image::default();
    let config = json!({"commandLine": command_line}).to_string();
    let media_type = format!("{ONMETAL}.config.v1alpha1+json");
    let config = image.blob("config", &media_type, config.as_bytes());
    let mut layer = |name: &str, kind: &str, bytes: &[u8]| {
        image.blob(name, &format!("{ONMETAL}.{kind}.v1alpha1.{kind}"), bytes)
    };
    let layers = [
        layer("disk", "rootfs", &disk("amd64")),
        layer("initramfs", "initramfs", &initramfs()),
        layer("kernel", "vmlinuz", &kernel("amd64")),
    ];
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    image.top(OCI_MANIFEST, &manifest)
}

/// Garden Linux's index: flavours for containers, clouds, servers and VMs side by side, told apart
/// by the annotation `cname`. The container comes first, and is the only one whose system is
/// `linux`.
pub(crate) fn garden_linux() -> Image {
    let mut image = Image::default();
    let mut entries = Vec::new();
    for architecture in ARCHITECTURES {
        let tar = "application/vnd.oci.image.layer.v1.tar+gzip";
        let flavours: [(&str, &[File]); 5] = [
            ("container", &[("tar", tar, b"gzip")]),
            (
                "aws-gardener_prod",
                &[("raw", "image.archive.format.raw", b"aws")],
            ),
            (
                "kvm-gardener_prod",
                &[
                    ("qcow2", "image.format.qcow2", b"qcow2"),
                    ("raw", "image.archive.format.raw", &disk(architecture)),
                    ("log", "log", b"log"),
                    ("release", "release", b"release"),
                ],
            ),
            (
                "metal-gardener_pxe",
                &[
                    ("tar", "image.archive.format.pxe.tar.gz", b"pxe"),
                    ("kernel", "kernel", &kernel(architecture)),
                    ("initrd", "initrd", &initramfs()),
                    ("squashfs", "squashfs", &squashfs()),
                    ("cmdline", "cmdline", b"gl.live=1 console=ttyS0"),
                    ("efi", "efi", b"MZ efi"),
                    ("uki", "uki", b"MZ uki"),
                ],
            ),
            (
                "openstack-gardener_prod",
                &[("vmdk", "image.format.vmdk", b"vmdk")],
            ),
        ];
        for (flavour, files) in flavours {
            let cname = format!("{flavour}-{architecture}");
            let of = [("cname", cname.as_str()), ("architecture", architecture)];
            let config = image.blob("config", "application/vnd.unknown.config.v1+json", b"{}");
            let config = annotated(config, &of);
            let layers: Vec<Value> = files
                .iter()
                .map(|(name, kind, bytes)| {
                    let media_type = if kind.starts_with("application/") {
                        (*kind).to_owned()
                    } else {
                        format!("{GARDEN_LINUX}.{kind}")
                    };
                    let title = format!("{cname}.{name}");
                    let layer = image.blob(&title, &media_type, bytes);
                    annotated(layer, &[("org.opencontainers.image.title", &title)])
                })
                .collect();
            let manifest = annotated(manifest(&config, &layers), &of);
            let descriptor = image.document(&cname, OCI_MANIFEST, &manifest);
            let system = match flavour {
                "container" => json!({"architecture": architecture, "os": "linux"}),
                _ => json!({
                    "architecture": architecture,
                    "os": "gardenlinux",
                    "os.version": "1592.3",
                }),
            };
            let mut entry = annotated(descriptor, &of);
            entry["platform"] = system;
            entries.push(annotated(entry, &[("feature_set", "base,log,server")]));
        }
    }
    image.index(&entries)
}

/// FeOS: a whole disk under the name of a squashfs, and a config of which the command line got
/// lost.
pub(crate) fn feos() -> Image {
    let mut image = Image::default();
    let config = r#"{"commandLine": "", "os-release": ""}"#;
    let unknown = "application/vnd.unknown.config.v1+json";
    let config = image.blob("config", unknown, config.as_bytes());
    let mut layer = |name: &str, kind: &str, bytes: &[u8]| {
        image.blob(name, &format!("{GARDEN_LINUX}.{kind}"), bytes)
    };
    let layers = [
        layer("disk", "squashfs", &disk("feos")),
        layer("initramfs", "initrd", &initramfs()),
        layer("kernel", "kernel", &kernel("amd64")),
    ];
    image.top(OCI_MANIFEST, &manifest(&config, &layers))
}

/// kbake: a kernel and its modules, which are no image that boots.
pub(crate) fn kbake_manifest(image: &mut Image, architecture: &str) -> Value {
    let kbake = "application/vnd.ironcore.kbake.config.v1+json";
    let config = image.blob("kbake-config", kbake, b"{\"options\":{}}");
    let name = format!("kbake-kernel-{architecture}");
    let layers = [
        image.blob(
            &name,
            "application/vnd.ironcore.kernel.v1",
            &kernel(architecture),
        ),
        image.blob(
            "kbake-modules",
            "application/vnd.ironcore.kernel.modules.v1.tar+gzip",
            b"modules",
        ),
    ];
    let mut manifest = manifest(&config, &layers);
    manifest["artifactType"] = json!("application/vnd.ironcore.kbake.v1+json");
    let name = format!("kbake-{architecture}");
    entry(image.document(&name, OCI_MANIFEST, &manifest), architecture)
}
