//! Probes over bytes: what a blob really is, whatever its media type says.
//!
//! Pure and bounded: a probe sees a [`Sample`], the first [`HEAD_BYTES`] and the last 512 bytes of
//! a blob. Only two ask for more: [`uki::read`] for a few sections of a known size, and
//! [`disk::probe`] for the tables of a qcow2 image, which is also the one thing that is unpacked. No
//! probe follows what it reads out of the blob: a field that contradicts the file is an error.
//!
//! [`identify`] has the words for what a blob looks like; the other modules each answer for one
//! role of a layer.

mod error;
pub mod identify;
pub mod disk;
mod partitions;
pub mod qcow2;
pub mod iso;
pub mod kernel;
pub mod initramfs;
pub mod pe;
pub mod uki;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

pub use error::ContentError;

use crate::oci::Digest;

/// Bytes from the start of a blob that the probes look at; enough for ISO 9660's descriptor.
pub const HEAD_BYTES: u64 = 128 << 10;
/// Bytes from the end of a blob that the probes look at.
pub const TAIL_BYTES: u64 = 512;

/// A part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it starts.
    pub offset: u64,
    /// How long it is.
    pub size_bytes: u64,
}

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

impl Sample {
    /// Errors if what is looked at is nothing but zeros; publishers have shipped such kernels.
    pub fn refuse_zeros(&self, role: &'static str) -> Result<(), ContentError> {
        if self.is_zeros() {
            let blob = self.digest;
            return Err(ContentError::Zeros { role, blob });
        }
        Ok(())
    }

    fn is_zeros(&self) -> bool {
        self.head.iter().chain(&self.tail).all(|byte| *byte == 0)
    }

    /// Tells whether `magic` stands at `offset`.
    fn has(&self, offset: usize, magic: &[u8]) -> bool {
        self.head
            .get(offset..)
            .is_some_and(|rest| rest.starts_with(magic))
    }

    /// The bytes of a field at `offset`, if they are in the head.
    fn field<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.head.get(offset..)?.first_chunk().copied()
    }

    /// The little-endian number at `offset`.
    fn u16(&self, offset: usize) -> Option<u16> {
        self.field(offset).map(u16::from_le_bytes)
    }

    /// The little-endian number at `offset`.
    fn u32(&self, offset: usize) -> Option<u32> {
        self.field(offset).map(u32::from_le_bytes)
    }

    /// The little-endian number at `offset`.
    fn u64(&self, offset: usize) -> Option<u64> {
        self.field(offset).map(u64::from_le_bytes)
    }

    /// The error of a layer that is not `expected`: it says what the blob looks like instead.
    fn mismatch(&self, role: &'static str, expected: &'static str) -> ContentError {
        ContentError::Mismatch {
            role,
            blob: self.digest,
            expected,
            actual: identify::identify(self),
        }
    }
}

/// Checks that a squashfs layer is one: a whole GPT disk has been published under that name.
pub fn check_squashfs(sample: &Sample) -> Result<(), ContentError> {
    sample.refuse_zeros("squashfs")?;
    if sample.has(0, identify::SQUASHFS) {
        return Ok(());
    }
    Err(sample.mismatch("squashfs", "a squashfs file system"))
}
