//! Why a descriptor can not be used, whatever is asked for.

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::oci::Printable;

/// Why a descriptor can not be used for a machine.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unfit {
    /// A stronger directory has a file of the same name.
    #[error("masked by {}{}", shown(by), if *by_nothing { ", which is empty" } else { "" })]
    Masked {
        /// That file.
        by: PathBuf,
        /// Whether that file has nothing to say but this.
        by_nothing: bool,
    },
    /// It is for other machines.
    #[error("for {targets}")]
    OtherMachine {
        /// Which ones.
        targets: String,
    },
    /// It is not UEFI.
    #[error("not UEFI but {interfaces}")]
    NotUefi {
        /// What it is.
        interfaces: String,
    },
    /// Its variables are kept by a device of QEMU's, without which it does not start.
    #[error("needs host-uefi-vars, which ironboot does not provide")]
    HostVariables,
    /// It needs x86's system management mode on a machine without.
    #[error("needs SMM, which {isa} does not have")]
    NoSmm {
        /// The machine's architecture.
        isa: &'static str,
    },
    /// It is mapped in a way that is not ours.
    #[error("mapped to {device}, which ironboot does not support")]
    Device {
        /// What it is mapped to.
        device: String,
    },
    /// Its flash is mapped in a way that is not known.
    #[error("flash mode is not split, combined or stateless: {mode}")]
    Mode {
        /// The mode.
        mode: String,
    },
    /// A flash image in a format that is not ours.
    #[error("flash format is neither raw nor qcow2: {format}")]
    Format {
        /// The format.
        format: String,
    },
    /// Code and variables in two formats.
    #[error("code and variables are of two formats")]
    TwoFormats,
    /// A part of the mapping is left out.
    #[error("mapping has no {field}")]
    Lacks {
        /// Which one.
        field: &'static str,
    },
    /// It is not JSON of the right shape.
    #[error("not a firmware descriptor: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// It is larger than any descriptor.
    #[error("not a firmware descriptor: more than {}", indicatif::HumanBytes(*limit_bytes))]
    TooLarge {
        /// The limit.
        limit_bytes: u64,
    },
    /// A file is not there.
    #[error("no such file: {}", shown(path))]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A path that depends on where we were called.
    #[error("not an absolute path: {}", shown(path))]
    Relative {
        /// The path.
        path: PathBuf,
    },
    /// A directory, a device, a pipe.
    #[error("not a regular file: {}", shown(path))]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A file or directory that can not be read.
    #[error("can not read {}: {reason}", shown(path))]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A qcow2 image that is none, or that is only a part of one.
    #[error("not a qcow2 image of its own: {}", shown(path))]
    NotQcow2 {
        /// The file.
        path: PathBuf,
    },
    /// A qcow2 image that would be loaded byte by byte.
    #[error("a qcow2 image is no ROM: {}", shown(path))]
    Qcow2Rom {
        /// The file.
        path: PathBuf,
    },
    /// An image of a size that the machine does not take.
    #[error("image has {size_bytes} bytes, not {expected}: {}", shown(path))]
    Size {
        /// The file.
        path: PathBuf,
        /// Its size as the machine sees it.
        size_bytes: u64,
        /// What the machine takes.
        expected: &'static str,
    },
    /// Variables where code should be.
    #[error("holds variables and no code: {}", shown(path))]
    NoCode {
        /// The file.
        path: PathBuf,
    },
    /// Code and variables of two builds.
    #[error(
        "code of {code_bytes} and variables of {vars_bytes} bytes are not of one build, \
         for their sum is no power of two up to 8 MiB"
    )]
    Pair {
        /// Size of the code.
        code_bytes: u64,
        /// Size of the variable store.
        vars_bytes: u64,
    },
}

impl Unfit {
    /// Tells whether it was meant to be used and can not be, where others are meant for something
    /// else.
    #[must_use]
    pub fn is_broken(&self) -> bool {
        match self {
            Self::Masked { .. }
            | Self::OtherMachine { .. }
            | Self::NotUefi { .. }
            | Self::HostVariables
            | Self::Device { .. } => false,
            Self::NoSmm { .. }
            | Self::Mode { .. }
            | Self::Format { .. }
            | Self::TwoFormats
            | Self::Lacks { .. }
            | Self::Malformed { .. }
            | Self::TooLarge { .. }
            | Self::Missing { .. }
            | Self::Relative { .. }
            | Self::NotAFile { .. }
            | Self::Unreadable { .. }
            | Self::NotQcow2 { .. }
            | Self::Qcow2Rom { .. }
            | Self::Size { .. }
            | Self::NoCode { .. }
            | Self::Pair { .. } => true,
        }
    }
}

/// A path as text that a terminal takes.
pub(super) fn shown(path: &Path) -> String {
    Printable(&path.display().to_string()).to_string()
}
