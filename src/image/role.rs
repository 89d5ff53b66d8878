//! Layer roles, and the one table of the media types that stand for them.

use std::fmt;

/// What a layer is for. The order is the specification's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerRole {
    /// A whole disk or a file system; the specification's `disk.img`, the field's `rootfs`.
    Disk,
    /// A Linux kernel.
    Kernel,
    /// The kernel's initial file system.
    Initramfs,
    /// A read-only root file system.
    Squashfs,
    /// The kernel's command line as a file.
    CommandLine,
    /// A unified kernel image.
    Uki,
    /// A bootable ISO 9660 image.
    Iso,
}

/// Whose spelling it is; in one manifest, the smaller value wins.
///
/// What one publisher ships in two forms has two generations, so that the second form yields to
/// the first instead of contradicting it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Generation {
    /// The specification's types and those that `ironcore-image` writes today.
    Current,
    /// IronCore's `v1alpha1` types.
    V1Alpha1,
    /// `v1alpha1` types with `metal` in their names: network boot beside the disk of a VM.
    V1Alpha1Metal,
    /// The types of onmetal, which became IronCore.
    Onmetal,
    /// Garden Linux's types.
    GardenLinux,
    /// Garden Linux's second form: qcow2 beside raw, `efi` beside `uki`.
    GardenLinuxSecond,
    /// The kernels of kbake.
    Kbake,
}

/// Every media type that has a role: the only such table.
#[rustfmt::skip]
const MEDIA_TYPES: &[(&str, LayerRole, Generation)] = &[
    ("application/vnd.ironcore.image.disk.img", LayerRole::Disk, Generation::Current),
    ("application/vnd.ironcore.image.rootfs", LayerRole::Disk, Generation::Current),
    ("application/vnd.ironcore.image.kernel", LayerRole::Kernel, Generation::Current),
    ("application/vnd.ironcore.image.initramfs", LayerRole::Initramfs, Generation::Current),
    ("application/vnd.ironcore.image.squashfs", LayerRole::Squashfs, Generation::Current),
    ("application/vnd.ironcore.image.cmdline", LayerRole::CommandLine, Generation::Current),
    ("application/vnd.ironcore.image.uki", LayerRole::Uki, Generation::Current),
    ("application/vnd.ironcore.image.iso", LayerRole::Iso, Generation::Current),

    ("application/vnd.ironcore.image.rootfs.v1alpha1.rootfs", LayerRole::Disk, Generation::V1Alpha1),
    ("application/vnd.ironcore.image.vmlinuz.v1alpha1.vmlinuz", LayerRole::Kernel, Generation::V1Alpha1),
    ("application/vnd.ironcore.image.initramfs.v1alpha1.initramfs", LayerRole::Initramfs, Generation::V1Alpha1),
    ("application/vnd.ironcore.image.squashfs.v1alpha1.squashfs", LayerRole::Squashfs, Generation::V1Alpha1),

    ("application/vnd.ironcore.image.metal.vmlinuz.v1alpha1.vmlinuz", LayerRole::Kernel, Generation::V1Alpha1Metal),
    ("application/vnd.ironcore.image.metal.initramfs.v1alpha1.initramfs", LayerRole::Initramfs, Generation::V1Alpha1Metal),
    ("application/vnd.ironcore.image.metal.squashfs.v1alpha1.squashfs", LayerRole::Squashfs, Generation::V1Alpha1Metal),

    ("application/vnd.onmetal.image.rootfs.v1alpha1.rootfs", LayerRole::Disk, Generation::Onmetal),
    ("application/vnd.onmetal.image.vmlinuz.v1alpha1.vmlinuz", LayerRole::Kernel, Generation::Onmetal),
    ("application/vnd.onmetal.image.initramfs.v1alpha1.initramfs", LayerRole::Initramfs, Generation::Onmetal),

    ("application/io.gardenlinux.image.archive.format.raw", LayerRole::Disk, Generation::GardenLinux),
    ("application/io.gardenlinux.kernel", LayerRole::Kernel, Generation::GardenLinux),
    ("application/io.gardenlinux.initrd", LayerRole::Initramfs, Generation::GardenLinux),
    ("application/io.gardenlinux.squashfs", LayerRole::Squashfs, Generation::GardenLinux),
    ("application/io.gardenlinux.cmdline", LayerRole::CommandLine, Generation::GardenLinux),
    ("application/io.gardenlinux.uki", LayerRole::Uki, Generation::GardenLinux),
    ("application/io.gardenlinux.image.archive.format.iso", LayerRole::Iso, Generation::GardenLinux),

    ("application/io.gardenlinux.image.format.qcow2", LayerRole::Disk, Generation::GardenLinuxSecond),
    ("application/io.gardenlinux.efi", LayerRole::Uki, Generation::GardenLinuxSecond),

    ("application/vnd.ironcore.kernel.v1", LayerRole::Kernel, Generation::Kbake),
];

/// Returns the role that `media_type` stands for, and whose spelling it is.
#[must_use]
pub fn of_media_type(media_type: &str) -> Option<(LayerRole, Generation)> {
    MEDIA_TYPES
        .iter()
        .find(|(known, ..)| *known == media_type)
        .map(|(_, role, generation)| (*role, *generation))
}

impl LayerRole {
    /// All roles in the specification's order.
    pub const ALL: [Self; 7] = [
        Self::Disk,
        Self::Kernel,
        Self::Initramfs,
        Self::Squashfs,
        Self::CommandLine,
        Self::Uki,
        Self::Iso,
    ];

    /// The word in JSON, in options and in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Squashfs => "squashfs",
            Self::CommandLine => "cmdline",
            Self::Uki => "uki",
            Self::Iso => "iso",
        }
    }

    /// The media type that ironboot writes: the specification's.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        MEDIA_TYPES
            .iter()
            .find(|(_, role, _)| *role == self)
            .map(|(media_type, ..)| *media_type)
            .expect("every role has a row in the table above")
    }
}

impl fmt::Display for LayerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_as_the_same_role() {
        for role in LayerRole::ALL {
            let expected = Some((role, Generation::Current));
            assert_eq!(of_media_type(role.media_type()), expected);
        }
    }

    #[test]
    fn layers_of_no_use_to_a_boot_have_no_role() {
        for media_type in [
            "application/io.gardenlinux.log",
            "application/io.gardenlinux.image.archive.format.tar",
            "application/io.gardenlinux.image.archive.format.pxe.tar.gz",
            "application/io.gardenlinux.image.format.vmdk",
            "application/vnd.ironcore.kernel.modules.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.ironcore.image.Kernel",
            "application/vnd.ironcore.image",
        ] {
            assert_eq!(of_media_type(media_type), None, "{media_type}");
        }
    }

    #[test]
    fn no_spelling_stands_twice_in_the_table() {
        let mut names: Vec<_> = MEDIA_TYPES.iter().map(|(name, ..)| name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), MEDIA_TYPES.len());
    }
}
