//! Probes over bytes: what a blob really is, whatever its media type says.
//!
//! Pure and bounded: each probe sees the first [`HEAD_BYTES`] and the last 512 bytes of a blob.

pub mod disk;
pub mod kernel;
pub mod qcow2;

use thiserror::Error;

use crate::oci::{Architecture, Digest};

/// Bytes from the start of a blob that the probes look at; enough for ISO 9660's descriptor.
pub const HEAD_BYTES: u64 = 128 << 10;
/// Bytes from the end of a blob that the probes look at.
pub const TAIL_BYTES: u64 = 512;

/// The parts of a blob that the probes look at.
#[derive(Debug, Clone)]
pub struct Sample {
    /// The blob.
    pub digest: Digest,
    /// Its first bytes, at most [`HEAD_BYTES`].
    pub head: Vec<u8>,
    /// Its last bytes, at most [`TAIL_BYTES`].
    pub tail: Vec<u8>,
    /// Its size in bytes.
    pub size_bytes: u64,
}

/// Why a blob can not be what its layer says.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ContentError {
    /// A disk in a format that would make QEMU read what the image's author wrote about files.
    #[error("disk {blob} is in a format that is refused: {format}")]
    ForeignFormat {
        /// The blob.
        blob: Digest,
        /// The format's name.
        format: &'static str,
    },
    /// Two readers would see two disks in it.
    #[error("disk {blob} could be read as {first} and as {second}")]
    TwoFormats {
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
    /// A kernel for another machine.
    #[error("kernel {blob} is for {actual}, not {expected}")]
    KernelArchitecture {
        /// The blob.
        blob: Digest,
        /// What the machine is.
        expected: Architecture,
        /// What the kernel is for.
        actual: &'static str,
    },
    /// Not a kernel that is loaded directly.
    #[error("kernel {blob} is not a Linux kernel that can be loaded directly but {what}")]
    NotAKernel {
        /// The blob.
        blob: Digest,
        /// What it looks like.
        what: &'static str,
    },
    /// Not a squashfs.
    #[error("squashfs {blob} is not a squashfs file system")]
    NotSquashfs {
        /// The blob.
        blob: Digest,
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

impl Sample {
    /// Tells whether `magic` stands at `offset`.
    fn has(&self, offset: usize, magic: &[u8]) -> bool {
        self.head
            .get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    }

    /// Errors if what is looked at is nothing but zeros; publishers have shipped such kernels.
    pub fn refuse_zeros(&self, role: &'static str) -> Result<(), ContentError> {
        if self.head.iter().chain(&self.tail).all(|byte| *byte == 0) {
            let blob = self.digest;
            return Err(ContentError::Zeros { role, blob });
        }
        Ok(())
    }

    /// Errors if it is not a squashfs file system.
    pub fn expect_squashfs(&self) -> Result<(), ContentError> {
        self.refuse_zeros("squashfs")?;
        if self.has(0, b"hsqs") {
            return Ok(());
        }
        Err(ContentError::NotSquashfs { blob: self.digest })
    }
}

#[cfg(test)]
pub(crate) fn sample(content: &[u8]) -> Sample {
    let head = usize::try_from(HEAD_BYTES).expect("128 KiB fit");
    let tail = usize::try_from(TAIL_BYTES).expect("512 bytes fit");
    Sample {
        digest: Digest::of(content),
        head: content[..content.len().min(head)].to_vec(),
        tail: content[content.len().saturating_sub(tail)..].to_vec(),
        size_bytes: content.len() as u64,
    }
}
