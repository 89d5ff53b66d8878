//! What a blob looks like, in words: one order for every probe's messages.
//!
//! From what is most telling to what is least: image formats, whole disks, programs, archives,
//! file systems, text.

use crate::content::initramfs::Compression;
use crate::content::{Sample, disk, iso, kernel, partitions};

/// First bytes of a squashfs file system.
pub(super) const SQUASHFS: &[u8] = b"hsqs";
/// The words for the one file system that firmware boots from without a partition table.
pub(super) const FAT: &str = "a FAT file system";

/// File systems by a magic number that is not in their first sector: offset, bytes, words.
const FILE_SYSTEMS: &[(usize, &[u8], &str)] = &[
    (0x400, b"\xe2\xe1\xf5\xe0", "an EROFS file system"),
    (0x1_0040, b"_BHRfS_M", "a btrfs file system"),
];

/// Archives by their magic number: offset, bytes, words.
const ARCHIVES: &[(usize, &[u8], &str)] = &[
    (0, b"070701", "a cpio archive"),
    (0, b"070702", "a cpio archive"),
    (0, b"070707", "an old cpio archive"),
    (0x101, b"ustar", "a tar archive"),
    (0, b"PK\x03\x04", "a zip archive"),
];

/// Says what a blob looks like, as the end of a sentence: "a GPT disk", "an ELF file".
#[must_use]
pub fn identify(sample: &Sample) -> &'static str {
    if sample.size_bytes == 0 {
        return "an empty file";
    }
    if sample.is_zeros() {
        return "all zeros";
    }
    let archive = || magic(sample, ARCHIVES);
    disk::image_format(sample)
        .or_else(|| iso::is_iso(sample).then_some(iso::WHAT))
        .or_else(|| partitions::gpt(sample).map(|table| table.what))
        .or_else(|| kernel::program(sample))
        .or_else(|| Compression::of(&sample.head).map(Compression::what))
        .or_else(archive)
        .or_else(|| partitions::read(sample).map(|table| table.what))
        .or_else(|| file_system(sample))
        .or_else(|| is_text(sample).then_some("text"))
        .unwrap_or("something unknown")
}

/// The words for a file system that is the whole blob.
pub(super) fn file_system(sample: &Sample) -> Option<&'static str> {
    file_system_in_first_sector(sample)
        .or_else(|| magic(sample, FILE_SYSTEMS))
        .or_else(|| is_ext(sample).then_some("an ext4 file system"))
        .or_else(|| iso::is_iso(sample).then_some(iso::WHAT))
}

/// The same, if the first sector is the file system's and so holds no partition table.
pub(super) fn file_system_in_first_sector(sample: &Sample) -> Option<&'static str> {
    if sample.has(0, SQUASHFS) {
        Some("a squashfs file system")
    } else if sample.has(0, b"XFSB") {
        Some("an XFS file system")
    } else if is_fat(sample) {
        Some(FAT)
    } else {
        None
    }
}

fn magic(sample: &Sample, table: &[(usize, &'static [u8], &'static str)]) -> Option<&'static str> {
    table
        .iter()
        .find(|(offset, magic, _)| sample.has(*offset, magic))
        .map(|(.., what)| *what)
}

/// A FAT boot sector has fields where other boot sectors have code, so the words "FAT" in it are
/// not enough. Source: Microsoft's FAT specification, "BPB".
fn is_fat(sample: &Sample) -> bool {
    let is_jump = sample.has(0, b"\xeb") || sample.has(0, b"\xe9");
    let sector = sample.u16(11).unwrap_or_default();
    let named = sample.has(0x36, b"FAT") || sample.has(0x52, b"FAT32");
    let has_geometry = matches!(sector, 512 | 1024 | 2048 | 4096)
        && sample
            .field(13)
            .is_some_and(|[cluster]| cluster.is_power_of_two())
        && sample.field(16).is_some_and(|[tables]| tables > 0);
    is_jump && has_geometry && named && sample.has(510, b"\x55\xaa")
}

/// The magic number has two bytes only, so two more fields of the super block must be possible:
/// block size and revision. Source: Linux Documentation/filesystems/ext4/super.rst.
fn is_ext(sample: &Sample) -> bool {
    sample.has(0x438, b"\x53\xef")
        && sample
            .u32(0x418)
            .is_some_and(|log_block_size| log_block_size <= 6)
        && sample.u32(0x44c).is_some_and(|revision| revision <= 1)
}

fn is_text(sample: &Sample) -> bool {
    let is_control = |byte: &u8| byte.is_ascii_control() && !byte.is_ascii_whitespace();
    let head = sample.head.get(..4096).unwrap_or(&sample.head);
    // The head may end within a character; that error is the one without a length.
    let is_utf8 =
        std::str::from_utf8(head).map_or_else(|error| error.error_len().is_none(), |_| true);
    is_utf8 && !head.iter().any(is_control)
}

#[cfg(test)]
mod tests {
    use super::identify;
    use crate::content::samples::{cpio, patch, patched, sample, uki, x86_kernel};
    use crate::content::{ContentError, check_squashfs};

    #[test]
    fn each_kind_of_blob_has_its_words() {
        let efi_stub = patch(x86_kernel(), &[(0, &uki(&[(".text", b"code")])[..0x1b0])]);
        let lzma = b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff\0";
        for (content, expected) in [
            (Vec::new(), "an empty file"),
            (vec![0; 4096], "all zeros"),
            (patched(4096, &[(2000, b"x")]), "something unknown"),
            ("plain text,\n\tand more: ü".into(), "text"),
            ("cut within ü".as_bytes()[..12].to_vec(), "text"),
            (b"{\"a\": \x1b[31m}".to_vec(), "something unknown"),
            (b"# a script, or is it\n".to_vec(), "text"),
            (b"#!/bin/sh\n".to_vec(), "a script"),
            (b"#!/bin/sh\n# nothing else\n".to_vec(), "a script"),
            (b"# x\nversion=1\n".to_vec(), "a VMDK image"),
            (b"QFI\xfb".to_vec(), "a qcow2 image"),
            (x86_kernel(), "an x86 kernel"),
            (efi_stub, "an x86 kernel"),
            (uki(&[(".text", b"code")]), "an EFI program"),
            (uki(&[(".linux", b"code")]), "a unified kernel image"),
            (
                uki(&[(".linux", b"code")])[..0x600].to_vec(),
                "a unified kernel image",
            ),
            (
                uki(&[(".linux", b"code")])[..0x500].to_vec(),
                "an EFI program",
            ),
            (b"\x89LZO\0\r\n\x1a\n".to_vec(), "an lzop file"),
            (b"\x02\x21\x4c\x18\x01".to_vec(), "an lz4 file"),
            (lzma.to_vec(), "an lzma file"),
            (cpio(&[("a", b"b")]), "a cpio archive"),
            (patched(512, &[(0x101, b"ustar\x0000")]), "a tar archive"),
            (b"PK\x03\x04\x14".to_vec(), "a zip archive"),
            (
                patched(4096, &[(510, b"\x55\xaa"), (512, b"EFI PART")]),
                "a GPT disk",
            ),
            (patched(4096 * 2, &[(4096, b"EFI PART")]), "a GPT disk"),
        ] {
            assert_eq!(identify(&sample(&content)), expected);
        }
    }

    #[test]
    fn a_squashfs_that_is_none_is_named() {
        let gpt = sample(&patched(4096, &[(510, b"\x55\xaa"), (512, b"EFI PART")]));
        let expected = ContentError::Mismatch {
            role: "squashfs",
            blob: gpt.digest,
            expected: "a squashfs file system",
            actual: "a GPT disk",
        };
        assert_eq!(check_squashfs(&gpt), Err(expected));
        let zeros = check_squashfs(&sample(&[0; 4096])).unwrap_err();
        assert!(matches!(
            zeros,
            ContentError::Zeros {
                role: "squashfs",
                ..
            }
        ));
        let squashfs = patched(4096, &[(0, b"hsqs")]);
        assert_eq!(check_squashfs(&sample(&squashfs)), Ok(()));
    }
}
