//! How an image boots: what it offers, what was chosen of it, and why.
//!
//! This is the image's side, in digests; what a machine is told, in file paths, is
//! [`crate::domain::Boot`].

pub mod command_line;
pub mod firmware;
mod offer;
pub mod plan;
pub mod uki;

pub use command_line::{CommandLine, CommandLineError};
pub use firmware::{FirmwareWish, HostFirmware, UefiKind};
pub use plan::{BootOptions, BootPlan, PlanError, Rejected, plan};
pub use uki::{UkiBoot, UkiStart, UkiStartName};

use std::fmt;
use std::str::FromStr;

use crate::oci::Descriptor;

/// What the image offers for one way of booting: exactly what that way needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BootMethod {
    /// The hypervisor loads the kernel.
    Direct(DirectBoot),
    /// A unified kernel image is started.
    Uki(UkiBoot),
    /// Firmware boots the disk.
    Disk {
        /// The disk.
        disk: Descriptor,
    },
    /// Firmware boots the ISO from a CD drive.
    Iso {
        /// The ISO.
        iso: Descriptor,
    },
}

/// The parts of direct kernel boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectBoot {
    /// The kernel.
    pub kernel: Descriptor,
    /// The initial file system; without it the kernel must find its root on the disk by itself.
    pub initramfs: Option<Descriptor>,
    /// The kernel's command line.
    pub command_line: CommandLine,
    /// Who said it.
    pub command_line_from: CommandLineSource,
    /// Whether a console was added to it.
    pub console_added: bool,
    /// The image's disk, attached writable through an overlay.
    pub disk: Option<Descriptor>,
    /// A root file system, attached read-only with serial `machineboot`.
    pub squashfs: Option<Descriptor>,
}

/// Where a command line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandLineSource {
    /// `--cmdline`.
    Option,
    /// The image's `cmdline` layer.
    Layer,
    /// `commandLine` in the image's config.
    Config,
    /// Nobody; it is empty.
    Nobody,
}

/// The name of a way of booting, as typed and as shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MethodName {
    /// Direct kernel boot.
    Direct,
    /// A unified kernel image through firmware.
    Uki,
    /// A disk through firmware.
    Disk,
    /// An ISO through firmware.
    Iso,
}

impl BootMethod {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> MethodName {
        match self {
            Self::Direct(_) => MethodName::Direct,
            Self::Uki(_) => MethodName::Uki,
            Self::Disk { .. } => MethodName::Disk,
            Self::Iso { .. } => MethodName::Iso,
        }
    }

    /// The blobs that it needs, in the order in which they are worth fetching.
    #[must_use]
    pub fn blobs(&self) -> Vec<&Descriptor> {
        match self {
            Self::Direct(direct) => std::iter::once(&direct.kernel)
                .chain(&direct.initramfs)
                .chain(&direct.squashfs)
                .chain(&direct.disk)
                .collect(),
            Self::Uki(uki) => std::iter::once(&uki.uki).chain(&uki.disk).collect(),
            Self::Disk { disk } => vec![disk],
            Self::Iso { iso } => vec![iso],
        }
    }

    /// Whether firmware starts it, as it does all but a kernel that is booted directly.
    #[must_use]
    pub fn is_started_by_firmware(&self) -> bool {
        match self {
            Self::Direct(_) => false,
            Self::Uki(uki) => uki.start.uefi().is_some(),
            Self::Disk { .. } | Self::Iso { .. } => true,
        }
    }

    /// The image's disk, if the VM has it.
    #[must_use]
    pub fn disk(&self) -> Option<&Descriptor> {
        match self {
            Self::Direct(direct) => direct.disk.as_ref(),
            Self::Uki(uki) => uki.disk.as_ref(),
            Self::Disk { disk } => Some(disk),
            Self::Iso { .. } => None,
        }
    }
}

impl CommandLineSource {
    /// The word in JSON and in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Option => "option",
            Self::Layer => "cmdline-layer",
            Self::Config => "config",
            Self::Nobody => "none",
        }
    }
}

impl MethodName {
    /// All of them, in the order in which `auto` tries them.
    pub const ALL: [Self; 4] = [Self::Direct, Self::Uki, Self::Disk, Self::Iso];

    /// The word in options, in JSON and in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Uki => "uki",
            Self::Disk => "disk",
            Self::Iso => "iso",
        }
    }
}

impl FromStr for MethodName {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        Self::ALL
            .into_iter()
            .find(|name| name.as_str() == word)
            .ok_or(())
    }
}

impl fmt::Display for MethodName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
