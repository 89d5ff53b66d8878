//! The header rules of a qcow2 image that is accepted from outside.
//!
//! A qcow2 header can name other files of the host, and QEMU opens them: a backing file, and an
//! external data file even where the caller says that there is no backing file. So the header is
//! judged here, before any other reader sees the image.
//!
//! Format: QEMU's docs/interop/qcow2.txt; all numbers are big endian.

use crate::content::{ContentError, Sample};
use crate::domain::MAX_DISK_BYTES;

/// First bytes of every version.
pub const MAGIC: &[u8] = b"QFI\xfb";

/// Bytes of the fixed part of a version 3 header.
const HEADER_BYTES: u64 = 104;

/// Incompatible feature bit 3: the compression type is not zlib.
const COMPRESSION_TYPE: u64 = 1 << 3;

/// Checks the header of a qcow2 image. Returns the disk's size as a guest sees it, in bytes.
pub fn check_header(sample: &Sample) -> Result<u64, ContentError> {
    let refuse = |what: String| ContentError::UnsafeQcow2 {
        blob: sample.digest,
        what,
    };
    let header = Header(&sample.head);
    header
        .rules(sample.size_bytes)
        .ok_or_else(|| refuse("a header that is cut short".to_owned()))?
        .map_err(refuse)
}

struct Header<'a>(&'a [u8]);

impl Header<'_> {
    fn u32(&self, offset: usize) -> Option<u64> {
        let bytes = self.0.get(offset..offset.checked_add(4)?)?;
        Some(u64::from(u32::from_be_bytes(bytes.try_into().ok()?)))
    }

    fn u64(&self, offset: usize) -> Option<u64> {
        let bytes = self.0.get(offset..offset.checked_add(8)?)?;
        Some(u64::from_be_bytes(bytes.try_into().ok()?))
    }

    /// The rules in the order of the fields; none if the header ends too early.
    fn rules(&self, file_size: u64) -> Option<Result<u64, String>> {
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
        let cluster_bits = self.u32(20)?;
        if !(9..=21).contains(&cluster_bits) {
            return Some(Err(format!("clusters of 2^{cluster_bits} bytes")));
        }
        let cluster = 1_u64 << cluster_bits;
        let size = self.u64(24)?;
        if size == 0 || size % 512 != 0 || size > MAX_DISK_BYTES {
            return Some(Err(format!("a disk of {size} bytes")));
        }
        let l1_entries = self.u32(36)?;
        let needed = size.div_ceil(cluster * (cluster / 8));
        if l1_entries < needed || l1_entries > (2 * needed).max(cluster / 8) {
            return Some(Err(format!(
                "an L1 table of {l1_entries} entries where {needed} are needed"
            )));
        }
        let inside = |offset: u64, length: u64| {
            offset.is_multiple_of(cluster)
                && offset >= cluster
                && offset
                    .checked_add(length)
                    .is_some_and(|end| end <= file_size)
        };
        if !inside(self.u64(40)?, 8 * l1_entries) {
            return Some(Err("an L1 table outside of the file".to_owned()));
        }
        let refcount_clusters = self.u32(56)?;
        let most = (8 << 20) / cluster;
        if !(1..=most).contains(&refcount_clusters)
            || !inside(self.u64(48)?, refcount_clusters * cluster)
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
        if length < HEADER_BYTES || length > cluster || length % 8 != 0 {
            return Some(Err(format!("a header of {length} bytes")));
        }
        let compression = if length > HEADER_BYTES {
            u64::from(*self.0.get(104)?)
        } else {
            0
        };
        let expected = u64::from(incompatible & COMPRESSION_TYPE != 0);
        if compression != expected {
            return Some(Err(format!("compression type {compression}")));
        }
        Some(
            self.extensions(length, cluster.min(file_size))?
                .map(|()| size),
        )
    }

    /// Walks the header extensions from `offset` to their end, which must come before `end`.
    fn extensions(&self, mut offset: u64, end: u64) -> Option<Result<(), String>> {
        loop {
            let at = usize::try_from(offset).ok()?;
            let (kind, length) = (self.u32(at)?, self.u32(at.checked_add(4)?)?);
            match kind {
                0 => return Some(Ok(())),
                // The names of the feature bits.
                0x6803_F857 => {}
                0x4441_5441 => return Some(Err("an external data file".to_owned())),
                0xE279_2ACA => return Some(Err("the format of a backing file".to_owned())),
                0x0537_BE77 => return Some(Err("an encryption header".to_owned())),
                0x2385_2875 => return Some(Err("persistent bitmaps".to_owned())),
                other => return Some(Err(format!("unknown header extension {other:#x}"))),
            }
            offset = offset + 8 + length.next_multiple_of(8);
            if offset + 8 > end {
                return Some(Err("header extensions without an end".to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::samples::{qcow2 as image, sample};

    fn check(patches: &[(usize, &[u8])]) -> Result<u64, ContentError> {
        check_header(&sample(&image(patches)))
    }

    #[test]
    fn plain_images_are_accepted() {
        let feature_names: &[u8] = &[0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 48];
        let cases: [&[(usize, &[u8])]; 4] = [
            &[],
            &[(112, feature_names)],
            &[(100, &104_u32.to_be_bytes())],
            &[(79, &[8]), (104, &[1])],
        ];
        for patches in cases {
            assert_eq!(check(patches), Ok(1 << 20));
        }
    }

    #[test]
    fn headers_that_name_files_or_cannot_be_are_refused() {
        let extension =
            |kind: u32| -> Vec<u8> { [kind.to_be_bytes(), 8_u32.to_be_bytes()].concat() };
        let (data, backing, crypto, bitmaps, unknown, endless) = (
            extension(0x4441_5441),
            extension(0xE279_2ACA),
            extension(0x0537_BE77),
            extension(0x2385_2875),
            extension(0x1234_5678),
            [0x6803_F857_u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat(),
        );
        let cases: &[&[(usize, &[u8])]] = &[
            &[(8, &1_u64.to_be_bytes())],
            &[(16, &9_u32.to_be_bytes())],
            &[(79, &[1])],
            &[(79, &[2])],
            &[(79, &[4])],
            &[(79, &[8])],
            &[(79, &[16])],
            &[(72, &[0x80])],
            &[(87, &[2])],
            &[(95, &[1])],
            &[(35, &[1])],
            &[(35, &[2])],
            &[(20, &0_u32.to_be_bytes())],
            &[(20, &8_u32.to_be_bytes())],
            &[(20, &22_u32.to_be_bytes())],
            &[(20, &64_u32.to_be_bytes())],
            &[(20, &255_u32.to_be_bytes())],
            &[(24, &0_u64.to_be_bytes())],
            &[(24, &513_u64.to_be_bytes())],
            &[(24, &(1_u64 << 50).to_be_bytes())],
            &[(24, &u64::MAX.to_be_bytes())],
            &[(36, &0_u32.to_be_bytes())],
            &[(36, &u32::MAX.to_be_bytes())],
            &[(40, &0_u64.to_be_bytes())],
            &[(40, &1_u64.to_be_bytes())],
            &[(40, &(u64::MAX << 16).to_be_bytes())],
            &[(48, &0_u64.to_be_bytes())],
            &[(56, &0_u32.to_be_bytes())],
            &[(56, &u32::MAX.to_be_bytes())],
            &[(60, &1_u32.to_be_bytes())],
            &[(64, &1_u64.to_be_bytes())],
            &[(96, &7_u32.to_be_bytes())],
            &[(100, &0_u32.to_be_bytes())],
            &[(100, &103_u32.to_be_bytes())],
            &[(100, &u32::MAX.to_be_bytes())],
            &[(104, &[7])],
            &[(4, &0_u32.to_be_bytes())],
            &[(4, &1_u32.to_be_bytes())],
            &[(4, &2_u32.to_be_bytes())],
            &[(4, &4_u32.to_be_bytes())],
            &[(112, &data)],
            &[(112, &backing)],
            &[(112, &crypto)],
            &[(112, &bitmaps)],
            &[(112, &unknown)],
            &[(112, &endless)],
        ];
        for patches in cases {
            let result = check(patches);
            assert!(
                matches!(result, Err(ContentError::UnsafeQcow2 { .. })),
                "{patches:?}"
            );
        }
    }

    #[test]
    fn a_file_that_ends_within_its_header_is_refused() {
        let content = image(&[]);
        for length in [4, 72, 100, 111] {
            assert!(
                check_header(&sample(&content[..length])).is_err(),
                "{length}"
            );
        }
    }
}
