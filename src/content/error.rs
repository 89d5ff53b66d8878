//! Why a blob can not be what its layer says.

use indicatif::HumanBytes;
use thiserror::Error;

use crate::oci::{Architecture, Digest};

/// Why a blob can not be what its layer says.
///
/// `role` is the layer's word, `kernel in uki` for the kernel inside of a unified kernel image.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ContentError {
    /// A format that would make QEMU read what the image's author wrote about files.
    #[error("{role} {blob} is in a format that is refused: {format}")]
    ForeignFormat {
        /// The layer's role.
        role: &'static str,
        /// The blob.
        blob: Digest,
        /// The format's name.
        format: &'static str,
    },
    /// Two readers would see two disks in it.
    #[error("{role} {blob} could be read as {first} and as {second}")]
    TwoFormats {
        /// The layer's role.
        role: &'static str,
        /// The blob.
        blob: Digest,
        /// One of them.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// A qcow2 header with something that is not safe, or not possible.
    #[error("disk {blob} is a qcow2 image with {what}")]
    UnsafeQcow2 {
        /// The blob.
        blob: Digest,
        /// What is wrong.
        what: String,
    },
    /// A disk with half a sector at its end.
    #[error("disk {blob} has {size_bytes} bytes, which is not a multiple of 512")]
    Unaligned {
        /// The blob.
        blob: Digest,
        /// Its size.
        size_bytes: u64,
    },
    /// Nothing but zeros.
    #[error("{role} {blob} is all zeros")]
    Zeros {
        /// The layer's role.
        role: &'static str,
        /// The blob.
        blob: Digest,
    },
    /// For another machine.
    #[error("{role} {blob} is for {actual}, not {expected}")]
    WrongArchitecture {
        /// The layer's role.
        role: &'static str,
        /// The blob.
        blob: Digest,
        /// What the machine is.
        expected: Architecture,
        /// What the blob is for.
        actual: Architecture,
    },
    /// Something else than the layer says.
    #[error("{role} {blob} is not {expected} but {actual}")]
    Mismatch {
        /// The layer's role.
        role: &'static str,
        /// The blob.
        blob: Digest,
        /// What the layer says.
        expected: &'static str,
        /// What it looks like.
        actual: &'static str,
    },
    /// A program whose header contradicts itself, or the file that it is in.
    #[error("EFI program {blob} has {what}")]
    BadProgram {
        /// The blob.
        blob: Digest,
        /// What is wrong.
        what: &'static str,
    },
    /// A unified kernel image in which two readers could find two things under one name.
    #[error("uki {blob} has more than one section {section}")]
    DuplicateSection {
        /// The blob.
        blob: Digest,
        /// The section's name.
        section: &'static str,
    },
    /// More text than a section of text has.
    #[error("uki {blob} has {size_bytes} bytes in its section {section}; the most is {max_bytes}")]
    LongSection {
        /// The blob.
        blob: Digest,
        /// The section's name.
        section: &'static str,
        /// Its size.
        size_bytes: u64,
        /// What is read at most.
        max_bytes: u64,
    },
    /// An archive that Linux would stop to unpack.
    #[error("{role} {blob} is broken from byte {offset} on")]
    BrokenArchive {
        /// What it is called.
        role: &'static str,
        /// The blob.
        blob: Digest,
        /// Where no part starts, or an entry that does not end within the file.
        offset: u64,
    },
    /// A CD image of which a part is missing.
    #[error(
        "iso {blob} is cut short: of {}, the last {} are missing",
        HumanBytes(*expected_bytes), HumanBytes(expected_bytes.saturating_sub(*actual_bytes))
    )]
    IsoCutShort {
        /// The blob.
        blob: Digest,
        /// Size of its volume.
        expected_bytes: u64,
        /// Its size.
        actual_bytes: u64,
    },
    /// A CD image that only holds files.
    #[error("iso {blob} is not bootable: no El Torito boot record, no EFI system partition")]
    IsoNotBootable {
        /// The blob.
        blob: Digest,
    },
    /// A disk that is one file system, which firmware does not start from.
    #[error("disk {blob} is {what} without a partition table, which firmware does not boot")]
    WholeFileSystem {
        /// The blob.
        blob: Digest,
        /// The file system.
        what: &'static str,
    },
    /// A disk of which firmware would make nothing.
    #[error("disk {blob} has no partition table")]
    NoPartitionTable {
        /// The blob.
        blob: Digest,
    },
    /// Partitions of data only.
    #[error("disk {blob} has partitions, but no boot loader for {architecture}")]
    NoLoader {
        /// The blob.
        blob: Digest,
        /// What the machine is.
        architecture: Architecture,
    },
}

impl ContentError {
    /// Tells whether the content could have done harm, where others just do not work.
    #[must_use]
    pub fn is_unsafe(&self) -> bool {
        matches!(
            self,
            Self::ForeignFormat { .. } | Self::TwoFormats { .. } | Self::UnsafeQcow2 { .. }
        )
    }
}
