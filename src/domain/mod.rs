//! What a machine is told: the complete description of one VM, in file paths, for every renderer.
//!
//! Serializable because an instance's record keeps it: what was defined once is started as it was,
//! whatever becomes of the image's tag.

mod words;

pub use words::{
    DomainName, FwCfgName, LinkName, MAX_DISK_BYTES, Memory, OemString, Serial, Tag, Uuid,
    WordError, parse_disk_size, parse_size,
};

use std::num::{NonZeroU16, NonZeroU32};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::boot::CommandLine;
use crate::oci::{Architecture, Digest, Printable};

/// One VM, complete.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DomainSpec {
    /// Its name on this host.
    pub name: DomainName,
    /// libvirt's identifier of it; the same at every define.
    pub uuid: Uuid,
    /// The machine.
    pub machine: Machine,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// Number of virtual CPUs.
    pub cpus: NonZeroU32,
    /// Guest memory.
    pub memory: Memory,
    /// What it boots.
    pub boot: Boot,
    /// Its disks; the place among those of one bus is the place on it (`vda`, `vdb`, …).
    pub disks: Vec<Disk>,
    /// Its network card, if it has one.
    pub nic: Option<Nic>,
    /// Files that the guest reads through QEMU's `fw_cfg` device.
    pub fw_cfg: Vec<FwCfg>,
    /// Strings that the guest reads in its SMBIOS tables (type 11); only firmware makes those.
    pub oem_strings: Vec<OemString>,
    /// Whether what firmware and guest tell besides their console is kept: see
    /// [`DomainSpec::firmware_log`] and [`DomainSpec::notices`].
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_observed: bool,
    /// The VM's own directory, absolute; sockets and logs are made in it.
    pub directory: PathBuf,
    /// What it was made from.
    pub provenance: Provenance,
    /// Directories of the host that the guest may mount.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub binds: Vec<Bind>,
    /// Words for QEMU's command line that nobody here has judged; they come last.
    ///
    /// Not written where there are none: a VM of before them has the digest that it had.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub qemu_arguments: Vec<String>,
}

impl DomainSpec {
    /// The file that keeps what the VM prints on its first serial port, from its last start on.
    #[must_use]
    pub fn console_log(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// The file that keeps what the firmware of an observed VM tells on its debug port; x86's alone
    /// have one, and many a release prints nothing there.
    #[must_use]
    pub fn firmware_log(&self) -> PathBuf {
        self.directory.join("firmware.log")
    }

    /// The file that keeps what an observed guest writes to [`NOTICE_PORT`].
    #[must_use]
    pub fn notices(&self) -> PathBuf {
        self.directory.join("notices")
    }

    /// The digest of everything that decides the VM: two that have the same are the same.
    ///
    /// It is of the canonical JSON, whose keys are sorted and which has no spaces. Errors if a path
    /// is not UTF-8.
    pub fn plan_digest(&self) -> Result<Digest, serde_json::Error> {
        let canonical = serde_json::to_value(self)?.to_string();
        Ok(Digest::of(canonical.as_bytes()))
    }
}

/// The virtio port on which an observed guest tells that it is ready, in the words of sd_notify(3):
/// `/dev/virtio-ports/io.ironboot.notify`.
pub const NOTICE_PORT: &str = "io.ironboot.notify";

// By reference, as serde asks for it.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(value: &bool) -> bool {
    !value
}

/// What a VM was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The image reference as it was asked for.
    pub reference: String,
    /// Digest of the index, if there was one.
    pub index_digest: Option<Digest>,
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// The boot method's name.
    pub method: String,
}

/// What the machine boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Boot {
    /// The hypervisor loads a kernel, which starts without firmware of the VM's own.
    Kernel {
        /// The kernel's file.
        kernel: PathBuf,
        /// The initramfs's file.
        initramfs: Option<PathBuf>,
        /// The kernel's command line.
        command_line: CommandLine,
    },
    /// UEFI firmware starts a unified kernel image that the hypervisor hands to it.
    Uki {
        /// The firmware.
        firmware: Uefi,
        /// The image's file.
        uki: PathBuf,
        /// Replaces the command line in the image, which firmware that checks signatures ignores.
        command_line: Option<CommandLine>,
    },
    /// Firmware boots the disk that [`Disk::boots`].
    Disk(Firmware),
}

/// What starts the machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Firmware {
    /// The board's own BIOS; x86 only.
    Bios,
    /// UEFI.
    Uefi(Uefi),
}

/// UEFI firmware: where it lies, and whether it checks signatures.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uefi {
    /// Where it lies.
    pub image: UefiImage,
    /// Whether it starts signed programs only: its variables hold keys (Secure Boot).
    pub secure_boot: bool,
    /// Whether it needs x86's system management mode, in which alone its variables are written.
    pub smm: bool,
}

/// How UEFI firmware is mapped into the machine.
///
/// Source: QEMU's docs/interop/firmware.json, `FirmwareMapping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UefiImage {
    /// Two flash images.
    Split {
        /// The code, shared and never written.
        code: PathBuf,
        /// The VM's own copy of the variable store.
        vars: PathBuf,
        /// What `vars` was copied from.
        vars_template: PathBuf,
        /// Format of all three.
        format: DiskFormat,
    },
    /// One flash image, shared and never written: variables are forgotten at every reset.
    Stateless {
        /// The image.
        code: PathBuf,
        /// Its format.
        format: DiskFormat,
    },
    /// One flash image with code and variables, the VM's own copy.
    Combined {
        /// The copy.
        file: PathBuf,
        /// What it was copied from.
        template: PathBuf,
        /// Format of both.
        format: DiskFormat,
    },
    /// An image that is loaded into memory, as a ROM.
    Memory {
        /// The image.
        rom: PathBuf,
    },
}

/// A block device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The file that the VM opens.
    pub file: PathBuf,
    /// Its format; always told, never probed.
    pub format: DiskFormat,
    /// What it is an overlay of.
    pub backing: Option<Backing>,
    /// Size as the guest sees it, in bytes.
    pub virtual_size_bytes: u64,
    /// Whether the guest may write.
    pub read_only: bool,
    /// Serial number that the guest sees.
    pub serial: Option<Serial>,
    /// What it is plugged into.
    pub bus: DiskBus,
    /// Whether firmware boots it; at most one does.
    pub boots: bool,
}

/// What a block device is plugged into, and what the guest sees of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// A `virtio-blk` disk, `/dev/vda`.
    #[default]
    Virtio,
    /// An NVMe disk, `/dev/nvme0n1`: the bus whose driver most kernels have built in.
    Nvme,
    /// A CD drive on `virtio-scsi`, `/dev/sr0`.
    Cdrom,
}

/// The base of an overlay; never written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backing {
    /// The file.
    pub file: PathBuf,
    /// Its format; always told, never probed.
    pub format: DiskFormat,
}

/// Format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The bytes as they are.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// A virtio network card, by what it is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nic {
    /// QEMU's user-mode network.
    User {
        /// TCP ports of the host's loopback that lead to ports of the guest.
        forwards: Vec<Forward>,
    },
    /// A network of libvirt's.
    Network(LinkName),
    /// A bridge of the host's.
    Bridge(LinkName),
}

/// A TCP port of the host's loopback that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// Port on the host; none for one that is free, which the hypervisor chooses at each start.
    pub host: Option<NonZeroU16>,
    /// Port in the guest.
    pub guest: NonZeroU16,
}

/// A directory of the host that the guest may mount, by virtiofs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// The directory.
    pub directory: PathBuf,
    /// What the guest calls it.
    pub tag: Tag,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// A file that the guest reads through QEMU's `fw_cfg` device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FwCfg {
    /// Its name there.
    pub name: FwCfgName,
    /// The file on the host.
    pub file: PathBuf,
}

/// The machine: which board, and what runs on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Machine {
    /// QEMU's `q35`, 64-bit x86.
    Amd64,
    /// QEMU's `virt`, 64-bit Arm.
    Arm64,
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// The host's CPU, by the kernel's KVM.
    Kvm,
    /// QEMU's own translator; many times slower.
    Tcg,
}

impl TryFrom<&Architecture> for Machine {
    type Error = WordError;

    fn try_from(architecture: &Architecture) -> Result<Self, WordError> {
        match architecture {
            Architecture::Amd64 => Ok(Self::Amd64),
            Architecture::Arm64 => Ok(Self::Arm64),
            Architecture::Other(word) => Err(WordError::Machine(Printable(word).to_string())),
        }
    }
}

impl Boot {
    /// The files that the hypervisor loads for the machine: kernel, initramfs, UKI.
    pub fn loaded(&self) -> impl Iterator<Item = &Path> {
        let (first, second) = match self {
            Self::Kernel {
                kernel, initramfs, ..
            } => (Some(kernel), initramfs.as_ref()),
            Self::Uki { uki, .. } => (Some(uki), None),
            Self::Disk(_) => (None, None),
        };
        first.into_iter().chain(second).map(PathBuf::as_path)
    }

    /// The UEFI firmware that it starts with, if any.
    #[must_use]
    pub fn uefi(&self) -> Option<&Uefi> {
        match self {
            Self::Uki { firmware, .. } | Self::Disk(Firmware::Uefi(firmware)) => Some(firmware),
            Self::Kernel { .. } | Self::Disk(Firmware::Bios) => None,
        }
    }
}

impl Machine {
    /// The architecture as the machine world spells it: `x86_64` or `aarch64`.
    #[must_use]
    pub fn isa(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64",
            Self::Arm64 => "aarch64",
        }
    }

    /// The device of the first serial port, as Linux names it.
    #[must_use]
    pub fn serial_console(self) -> &'static str {
        match self {
            Self::Amd64 => "ttyS0",
            Self::Arm64 => "ttyAMA0",
        }
    }
}

impl Accelerator {
    /// The word in options and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl DiskFormat {
    /// QEMU's and libvirt's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}
