//! The header of a qcow2 image, by the rules for one that comes from outside.

use crate::content::qcow2::Compression;
use crate::domain::MAX_DISK_BYTES;

/// Bytes of the fixed part of a version 3 header.
const FIXED_BYTES: u64 = 104;
/// Incompatible feature bit 3: the compression type is not deflate.
const COMPRESSION_TYPE: u64 = 1 << 3;
/// Most entries of an L1 table, as in QEMU: 32 MiB of them.
const MAX_L1_ENTRIES: u64 = 4 << 20;
/// Most bytes of a refcount table, as in QEMU.
const MAX_REFCOUNT_TABLE_BYTES: u64 = 8 << 20;

/// What a header says, once it has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Size of a cluster as a power of two.
    pub(super) cluster_bits: u32,
    /// Size of the disk as a guest sees it.
    pub(super) size_bytes: u64,
    pub(super) l1_offset: u64,
    pub(super) l1_entries: u64,
    pub(super) refcount_offset: u64,
    pub(super) refcount_clusters: u64,
    /// How its compressed clusters are packed.
    pub(super) compression: Compression,
}

impl Header {
    /// Reads the header at the start of `head`, of a file of `file_bytes`. Errors with what the
    /// image has that it must not have.
    pub(super) fn parse(head: &[u8], file_bytes: u64) -> Result<Self, String> {
        Fields(head)
            .rules(file_bytes)
            .unwrap_or_else(|| Err("a header that is cut short".to_owned()))
    }
}

/// The bytes that are there; a field beyond them is none.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, offset: usize) -> Option<u64> {
        let bytes = self.0.get(offset..)?.first_chunk()?;
        Some(u64::from(u32::from_be_bytes(*bytes)))
    }

    fn u64(&self, offset: usize) -> Option<u64> {
        let bytes = self.0.get(offset..)?.first_chunk()?;
        Some(u64::from_be_bytes(*bytes))
    }

    /// The rules, what is most telling first; none if the header ends too early.
    fn rules(&self, file_bytes: u64) -> Option<Result<Header, String>> {
        self.0.get(..usize::try_from(FIXED_BYTES).ok()?)?;
        let version = self.u32(4)?;
        if version != 3 {
            return Some(Err(format!(
                "version {version}; only version 3 is accepted"
            )));
        }
        if self.u64(8)? != 0 || self.u32(16)? != 0 {
            return Some(Err("a backing file".to_owned()));
        }
        let incompatible = self.u64(72)?;
        if incompatible & (1 << 2) != 0 {
            return Some(Err("an external data file".to_owned()));
        }
        if incompatible & !COMPRESSION_TYPE != 0 {
            return Some(Err(format!("incompatible features {incompatible:#x}")));
        }
        let encryption = self.u32(32)?;
        if encryption != 0 {
            return Some(Err(format!("encryption method {encryption}")));
        }
        let bits = self.u32(20)?;
        let Some(cluster_bits) = u32::try_from(bits).ok().filter(|n| (9..=21).contains(n)) else {
            return Some(Err(format!("clusters of 2^{bits} bytes")));
        };
        let cluster = 1_u64 << cluster_bits;
        let size_bytes = self.u64(24)?;
        if size_bytes == 0 || !size_bytes.is_multiple_of(512) || size_bytes > MAX_DISK_BYTES {
            return Some(Err(format!("a disk of {size_bytes} bytes")));
        }
        let l1_entries = self.u32(36)?;
        let needed = size_bytes.div_ceil(cluster * (cluster / 8));
        let most = (2 * needed).max(cluster / 8).min(MAX_L1_ENTRIES);
        if l1_entries < needed || l1_entries > most {
            return Some(Err(format!(
                "an L1 table of {l1_entries} entries where {needed} are needed"
            )));
        }
        let inside = |offset: u64, length: u64| {
            offset.is_multiple_of(cluster)
                && offset >= cluster
                && offset
                    .checked_add(length)
                    .is_some_and(|end| end <= file_bytes)
        };
        let l1_offset = self.u64(40)?;
        if !inside(l1_offset, 8 * l1_entries) {
            return Some(Err("an L1 table outside of the file".to_owned()));
        }
        let (refcount_offset, refcount_clusters) = (self.u64(48)?, self.u32(56)?);
        if !(1..=MAX_REFCOUNT_TABLE_BYTES / cluster).contains(&refcount_clusters)
            || !inside(refcount_offset, refcount_clusters * cluster)
        {
            return Some(Err("a refcount table outside of the file".to_owned()));
        }
        if self.u32(60)? != 0 || self.u64(64)? != 0 {
            return Some(Err("internal snapshots".to_owned()));
        }
        if self.u64(80)? & !1 != 0 || self.u64(88)? != 0 {
            return Some(Err("unknown compatible or autoclear features".to_owned()));
        }
        if self.u32(96)? > 6 {
            return Some(Err("refcounts of more than 64 bits".to_owned()));
        }
        let length = self.u32(100)?;
        if length < FIXED_BYTES || length > cluster || !length.is_multiple_of(8) {
            return Some(Err(format!("a header of {length} bytes")));
        }
        let end = usize::try_from(length).ok()?;
        let rest = self.0.get(104..end)?;
        let kind = rest.first().copied().unwrap_or_default();
        let compression = match (kind, incompatible & COMPRESSION_TYPE) {
            (0, 0) => Compression::Deflate,
            (1, COMPRESSION_TYPE) => Compression::Zstd,
            _ => return Some(Err(format!("compression type {kind}"))),
        };
        if rest.iter().skip(1).any(|byte| *byte != 0) {
            return Some(Err("something in the padding of its header".to_owned()));
        }
        let header = Header {
            cluster_bits,
            size_bytes,
            l1_offset,
            l1_entries,
            refcount_offset,
            refcount_clusters,
            compression,
        };
        let end = cluster.min(file_bytes);
        Some(self.extensions(length, end)?.map(|()| header))
    }

    /// Walks the header extensions from `offset` to their end, which must come before `end`, as
    /// nothing but zeros must from there on.
    fn extensions(&self, mut offset: u64, end: u64) -> Option<Result<(), String>> {
        loop {
            if offset + 8 > end {
                return Some(Err("header extensions without an end".to_owned()));
            }
            let at = usize::try_from(offset).ok()?;
            let (kind, length) = (self.u32(at)?, self.u32(at.checked_add(4)?)?);
            match kind {
                0 => break,
                // The names of the feature bits.
                0x6803_F857 => {}
                0x4441_5441 => return Some(Err("an external data file".to_owned())),
                0xE279_2ACA => return Some(Err("the format of a backing file".to_owned())),
                0x0537_BE77 => return Some(Err("an encryption header".to_owned())),
                0x2385_2875 => return Some(Err("persistent bitmaps".to_owned())),
                other => return Some(Err(format!("unknown header extension {other:#x}"))),
            }
            offset = offset + 8 + length.next_multiple_of(8);
        }
        let rest = self.0.get(usize::try_from(offset).ok()?..)?;
        // As far as the head reaches: larger clusters are the rest's own matter.
        let rest = rest
            .get(..usize::try_from(end - offset).ok()?)
            .unwrap_or(rest);
        let is_clean = rest.iter().all(|byte| *byte == 0);
        Some(
            is_clean
                .then_some(())
                .ok_or_else(|| "something behind its header".to_owned()),
        )
    }
}
