//! What is on a disk: its format (raw, or a safe qcow2; everything else is refused by name, and so
//! is what could be two things), and whether firmware would find something to boot.
//!
//! QEMU is always told the format. This probe exists so that a blob which QEMU or another tool
//! would take for something else never gets that far.

use std::sync::Arc;

use crate::content::Piece;
use crate::content::initramfs::Compression;
use crate::content::{
    ContentError, HEAD_BYTES, Sample, TAIL_BYTES, identify, iso, partitions, qcow2,
};
use crate::oci::{Architecture, Digest};

const ROLE: &str = "disk";
const QCOW2: &str = "qcow2";

/// A disk whose format is known and safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskContent {
    /// Where its bytes are in the qcow2 image that it is in; none if it is raw.
    pub qcow2: Option<Arc<qcow2::Map>>,
    /// Its size as a guest sees it, in bytes.
    pub virtual_size_bytes: u64,
    /// What is on it.
    pub layout: DiskLayout,
}

/// What is on a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DiskLayout {
    /// A partition table, or the boot record of an ISO.
    Partitioned {
        /// Whether UEFI firmware finds a partition to boot from: an EFI system partition, or where
        /// nothing else boots, a partition of a FAT type, an ISO's boot record, or a table that
        /// the sample cuts off.
        uefi: bool,
        /// Whether a BIOS finds boot code, and that what it needs: a BIOS boot partition, an active
        /// one, one with GPT's legacy attribute, or an ISO.
        bios: bool,
        /// The architecture that root and /usr partitions are for, if they are for one.
        architecture: Option<Architecture>,
    },
    /// One file system, in the words of messages ("an ext4 file system").
    FileSystem(&'static str),
    /// Nothing that is known here.
    Unknown,
}

/// Image formats that are refused: offset of the magic number, the number, name, words.
const FOREIGN: &[(usize, &[u8], &str, &str)] = &[
    (0, b"QFI\xfb\0\0\0\x01", "qcow1", "a qcow1 image"),
    (0, b"OOOM\0\0\0\x02", "COW", "a COW image"),
    (0, b"QED\0", "QED", "a QED image"),
    (0, b"KDMV", "VMDK", "a VMDK image"),
    (0, b"COWD", "VMDK", "a VMDK image"),
    (0, b"vhdxfile", "VHDX", "a VHDX image"),
    (0, b"conectix", "VHD", "a VHD image"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "VDI", "a VDI image"),
    (0, b"LUKS\xba\xbe", "LUKS", "a LUKS volume"),
    (0, b"SKUL\xba\xbe", "LUKS", "a LUKS volume"),
    (0, b"WithoutFreeSpace", "Parallels", "a Parallels image"),
    (0, b"WithouFreSpacExt", "Parallels", "a Parallels image"),
    (
        0,
        b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop",
        "cloop",
        "a cloop image",
    ),
    (0, b"Bochs Virtual HD Image", "Bochs", "a Bochs image"),
    (
        0,
        b"\x3a\xff\x26\xed",
        "Android sparse",
        "an Android sparse image",
    ),
];

/// Magic numbers at the start of the last 512 bytes.
const FOREIGN_TAIL: &[(&[u8], &str, &str)] = &[
    (b"conectix", "VHD", "a VHD image"),
    (b"koly", "DMG", "a DMG image"),
];

/// Tells the format of a disk and what is on it. Errors if the format is a foreign one, an unsafe
/// qcow2, or two at once.
///
/// `read` reads a piece that is inside of the file, of at most 4 MiB; a raw disk needs none. What is
/// in a qcow2 image is judged as a raw disk is.
pub fn probe<E: From<ContentError>>(
    sample: &Sample,
    read: &mut impl FnMut(Piece) -> Result<Vec<u8>, E>,
) -> Result<DiskContent, E> {
    let (role, blob) = (ROLE, sample.digest);
    match *claims(sample) {
        [] if sample.size_bytes.is_multiple_of(512) => Ok(DiskContent {
            qcow2: None,
            virtual_size_bytes: sample.size_bytes,
            layout: layout(sample),
        }),
        [] => Err(ContentError::Unaligned {
            blob,
            size_bytes: sample.size_bytes,
        }
        .into()),
        [QCOW2] => {
            let map = qcow2::read(sample, read)?;
            let inside = inside(blob, &map, read)?;
            if let Some(format) = claims(&inside).first() {
                let what = format!("another image in it: {format}");
                return Err(ContentError::UnsafeQcow2 { blob, what }.into());
            }
            Ok(DiskContent {
                virtual_size_bytes: map.size_bytes(),
                layout: layout(&inside),
                qcow2: Some(Arc::new(map)),
            })
        }
        [format] => Err(ContentError::ForeignFormat { role, blob, format }.into()),
        [first, second, ..] => Err(ContentError::TwoFormats {
            role,
            blob,
            first,
            second,
        }
        .into()),
    }
}

/// What the probes look at of the disk in a qcow2 image.
fn inside<E: From<ContentError>>(
    blob: Digest,
    map: &qcow2::Map,
    read: &mut impl FnMut(Piece) -> Result<Vec<u8>, E>,
) -> Result<Sample, E> {
    let size_bytes = map.size_bytes();
    let mut part = |start: u64, end: u64| -> Result<Vec<u8>, E> {
        let place = |at| usize::try_from(at - start).expect("128 KiB are looked at");
        let mut bytes = vec![0; place(end)];
        map.unpack(start..end, read, &mut |at, content| {
            bytes[place(at)..][..content.len()].copy_from_slice(content);
            Ok(())
        })?;
        Ok(bytes)
    };
    Ok(Sample {
        digest: blob,
        head: part(0, size_bytes.min(HEAD_BYTES))?,
        tail: part(size_bytes.saturating_sub(TAIL_BYTES), size_bytes)?,
        size_bytes,
    })
}

/// Checks that firmware of a machine would find something to boot on a disk, as far as that can be
/// told.
pub fn check_bootable(
    content: &DiskContent,
    blob: Digest,
    architecture: &Architecture,
) -> Result<(), ContentError> {
    match &content.layout {
        DiskLayout::FileSystem(identify::FAT) => Ok(()),
        DiskLayout::FileSystem(what) => Err(ContentError::WholeFileSystem { blob, what }),
        DiskLayout::Unknown => Err(ContentError::NoPartitionTable { blob }),
        DiskLayout::Partitioned {
            architecture: Some(actual),
            ..
        } if actual != architecture => Err(ContentError::WrongArchitecture {
            role: ROLE,
            blob,
            expected: architecture.clone(),
            actual: actual.clone(),
        }),
        // Only x86 has a BIOS.
        DiskLayout::Partitioned { uefi, bios, .. }
            if *uefi || (*bios && *architecture == Architecture::Amd64) =>
        {
            Ok(())
        }
        DiskLayout::Partitioned { .. } => Err(ContentError::NoLoader {
            blob,
            architecture: architecture.clone(),
        }),
    }
}

fn layout(sample: &Sample) -> DiskLayout {
    if let Some(table) = partitions::read(sample) {
        return DiskLayout::Partitioned {
            uefi: table.uefi,
            bios: table.bios,
            architecture: table.architecture,
        };
    }
    identify::file_system(sample).map_or(DiskLayout::Unknown, DiskLayout::FileSystem)
}

/// The words for an image format, whether it is refused or not.
pub(super) fn image_format(sample: &Sample) -> Option<&'static str> {
    let is_vmdk = || is_vmdk_descriptor(&sample.head) == Some(true);
    foreign(sample)
        .next()
        .map(|(_, what)| what)
        .or_else(|| sample.has(0, qcow2::MAGIC).then_some("a qcow2 image"))
        .or_else(|| is_vmdk().then_some("a VMDK image"))
}

/// The name of an image format or a compression, qcow2 among them.
pub(super) fn format_name(sample: &Sample) -> Option<&'static str> {
    formats(sample).first().copied()
}

/// The formats that a reader could take a blob for, other than a raw disk; where there is one, a
/// partition table or an ISO's descriptor makes two.
fn claims(sample: &Sample) -> Vec<&'static str> {
    let mut claims = formats(sample);
    if claims.is_empty() {
        return claims;
    }
    if iso::is_iso(sample) {
        claims.push("ISO 9660");
    }
    if sample.has(512, b"EFI PART") {
        claims.push("GPT");
    } else if sample.has(510, b"\x55\xaa") {
        claims.push("MBR");
    }
    claims
}

/// The image formats and compressions that a blob has the signs of, each once.
fn formats(sample: &Sample) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    let mut foreign = foreign(sample).map(|(name, _)| name).peekable();
    // Version 1 is another format, with the same magic number.
    if sample.has(0, qcow2::MAGIC) && foreign.peek() != Some(&"qcow1") {
        names.push(QCOW2);
    }
    names.extend(foreign);
    names.extend(Compression::of(&sample.head).map(Compression::as_str));
    // A text of comments alone, as far as was read, could still be a VMDK; no disk is one.
    if is_vmdk_descriptor(&sample.head) != Some(false) {
        names.push("VMDK");
    }
    names.dedup();
    names
}

/// Names and words of the foreign formats that a blob has the magic number of.
fn foreign(sample: &Sample) -> impl Iterator<Item = (&'static str, &'static str)> {
    let head = FOREIGN
        .iter()
        .filter(|(offset, magic, ..)| sample.has(*offset, magic))
        .map(|(.., name, what)| (*name, *what));
    let tail = FOREIGN_TAIL
        .iter()
        .filter(|(magic, ..)| sample.tail.starts_with(magic))
        .map(|(_, name, what)| (*name, *what));
    head.chain(tail)
}

/// Tells whether QEMU would take `head` for the text of a VMDK: blank lines and comments, then
/// `version=`; none if there are blanks and comments only. One pass, so a megabyte of newlines
/// costs nothing.
fn is_vmdk_descriptor(head: &[u8]) -> Option<bool> {
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    for line in head.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if !line.iter().take(64).all(is_text) {
            return Some(false);
        }
        // Long lines are not copied: both words are short.
        let start = line.get(..64).unwrap_or(line).to_ascii_lowercase();
        if start.starts_with(b"# disk descriptorfile") {
            return Some(true);
        }
        if !line.is_empty() && !line.starts_with(b"#") {
            return Some(start.starts_with(b"version"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{DiskContent, DiskLayout, FOREIGN, FOREIGN_TAIL, check_bootable};
    use crate::content::identify::identify;
    use crate::content::samples::{Patches, gpt, patched, probe_disk, qcow2, qcow2_of, sample};
    use crate::content::{ContentError, Sample};
    use crate::oci::Architecture;

    const SIZE: usize = 256 << 10;

    fn disk(patches: Patches<'_>) -> (Sample, Result<DiskContent, ContentError>) {
        let content = patched(SIZE, patches);
        (sample(&content), probe_disk(&content))
    }

    fn raw(size_bytes: u64, layout: DiskLayout) -> DiskContent {
        DiskContent {
            qcow2: None,
            virtual_size_bytes: size_bytes,
            layout,
        }
    }

    #[test]
    fn every_foreign_format_is_refused_by_name() {
        let foreign = FOREIGN
            .iter()
            .map(|(offset, magic, name, what)| (*offset, *magic, *name, *what));
        let tail = FOREIGN_TAIL
            .iter()
            .map(|(magic, name, what)| (SIZE - 512, *magic, *name, *what));
        let compressed = [
            (0, b"\x1f\x8b".as_slice(), "gzip", "a gzip file"),
            (0, b"\xfd7zXZ\0", "xz", "an xz file"),
            (0, b"\x28\xb5\x2f\xfd", "zstd", "a zstd file"),
            (0, b"BZh", "bzip2", "a bzip2 file"),
        ];
        for (offset, magic, format, what) in foreign.chain(tail).chain(compressed) {
            let (sample, probed) = disk(&[(offset, magic)]);
            let (role, blob) = ("disk", sample.digest);
            let error = probed.unwrap_err();
            assert!(error.is_unsafe());
            assert_eq!(error, ContentError::ForeignFormat { role, blob, format });
            assert_eq!(identify(&sample), what);
        }
    }

    #[test]
    fn text_that_qemu_takes_for_a_vmdk_is_refused() {
        let newlines = "\n".repeat(100_000);
        for text in [
            "# Disk DescriptorFile\nversion=1\nRW 2048 FLAT \"/etc/shadow\" 0\n",
            "# a comment\n\n# another\nversion=1\n",
            "version=1\nRW 2048 FLAT \"/etc/passwd\" 0\n",
            " \r\nversion=1\n",
            &format!("#{newlines}version=1\n"),
            &format!("#{}", " ".repeat(200_000)),
        ] {
            let error = probe_disk(text.as_bytes()).unwrap_err();
            assert!(error.to_string().ends_with("VMDK"), "{error}");
        }
    }

    #[test]
    fn half_a_sector_is_refused() {
        let half = vec![0; 1_000_001];
        let expected = ContentError::Unaligned {
            blob: sample(&half).digest,
            size_bytes: 1_000_001,
        };
        assert_eq!(probe_disk(&half), Err(expected));
    }

    #[test]
    fn a_blob_that_is_two_formats_is_refused() {
        const QFI: &[u8] = b"QFI\xfb\0\0\0\x03";
        const VDI: &[u8] = &[0x7f, 0x10, 0xda, 0xbe];
        let cases: &[(Patches<'_>, &str, &str)] = &[
            (&[(0, QFI), (0x8001, b"CD001")], "qcow2", "ISO 9660"),
            (&[(0, QFI), (0x40, VDI)], "qcow2", "VDI"),
            (&[(0, QFI), (SIZE - 512, b"conectix")], "qcow2", "VHD"),
            (&[(0, QFI), (510, b"\x55\xaa")], "qcow2", "MBR"),
            (&[(0, QFI), (510, b"\x55\xaaEFI PART")], "qcow2", "GPT"),
            (&[(0x40, VDI), (510, b"\x55\xaaEFI PART")], "VDI", "GPT"),
            (&[(0, b"KDMV"), (SIZE - 512, b"koly")], "VMDK", "DMG"),
        ];
        for (patches, first, second) in cases {
            let (sample, probed) = disk(patches);
            let expected = ContentError::TwoFormats {
                role: "disk",
                blob: sample.digest,
                first,
                second,
            };
            assert_eq!(probed, Err(expected));
        }
        // The head and the foot of one VHD are one format.
        let (_, probed) = disk(&[(0, b"conectix"), (SIZE - 512, b"conectix")]);
        let error = probed.unwrap_err();
        assert!(matches!(
            error,
            ContentError::ForeignFormat { format: "VHD", .. }
        ));
    }

    #[test]
    fn the_size_of_a_raw_disk_is_its_own_and_that_of_a_qcow2_is_in_its_header() {
        let nothing_boots = DiskLayout::Partitioned {
            uefi: false,
            bios: false,
            architecture: None,
        };
        assert_eq!(probe_disk(&gpt(512, &[])), Ok(raw(1 << 20, nothing_boots)));
        let content = probe_disk(&qcow2(&[])).unwrap();
        assert_eq!(content.virtual_size_bytes, 1 << 20);
        assert_eq!(content.qcow2.unwrap().data_bytes(), 0);
        assert_eq!(content.layout, DiskLayout::Unknown);
    }

    #[test]
    fn what_is_in_a_qcow2_is_judged_as_a_raw_disk_is() {
        let in_qcow2 = |inside: &[u8]| probe_disk(&qcow2_of(inside));
        let content = in_qcow2(&gpt(512, &[("c12a7328-f81f-11d2-ba4b-00a0c93ec93b", 0)]));
        let boots = DiskLayout::Partitioned {
            uefi: true,
            bios: false,
            architecture: None,
        };
        assert_eq!(content.unwrap().layout, boots);
        for (inside, name) in [
            (patched(1 << 20, &[(0, b"QFI\xfb\0\0\0\x03")]), "qcow2"),
            (patched(1 << 20, &[(0, b"version=1\n")]), "VMDK"),
            (patched(1 << 20, &[((1 << 20) - 512, b"conectix")]), "VHD"),
        ] {
            let error = in_qcow2(&inside).unwrap_err();
            assert!(error.is_unsafe());
            let expected = format!("is a qcow2 image with another image in it: {name}");
            assert!(error.to_string().ends_with(&expected), "{error}");
        }
    }

    #[test]
    fn a_disk_without_a_partition_table_is_named_and_only_fat_boots() {
        let fat = b"\xeb\x3c\x90mkfs.fat\0\x02\x04\x01\0\x02";
        let fat_table: &[u8] = b"\0\0\0\0\x0c\0\0\0\0\0\0\0\0\x04\0\0";
        let cases: &[(Patches<'_>, DiskLayout)] = &[
            (
                &[(0x438, b"\x53\xef")],
                DiskLayout::FileSystem("an ext4 file system"),
            ),
            (&[(0x438, b"\x53\xef"), (0x44c, &[9])], DiskLayout::Unknown),
            (
                &[(0, b"XFSB")],
                DiskLayout::FileSystem("an XFS file system"),
            ),
            (
                &[(0x1_0040, b"_BHRfS_M")],
                DiskLayout::FileSystem("a btrfs file system"),
            ),
            (
                &[(0x400, b"\xe2\xe1\xf5\xe0")],
                DiskLayout::FileSystem("an EROFS file system"),
            ),
            (
                &[(0, b"hsqs")],
                DiskLayout::FileSystem("a squashfs file system"),
            ),
            (
                &[(0x8001, b"CD001")],
                DiskLayout::FileSystem("an ISO 9660 image"),
            ),
            (
                &[(0, fat), (0x52, b"FAT32   "), (510, b"\x55\xaa")],
                DiskLayout::FileSystem("a FAT file system"),
            ),
            // mkfs.fat writes a partition that starts where the file system does.
            (
                &[
                    (0, fat),
                    (0x36, b"FAT16   "),
                    (446, fat_table),
                    (510, b"\x55\xaa"),
                ],
                DiskLayout::FileSystem("a FAT file system"),
            ),
            (&[(510, b"\x55\xaa")], DiskLayout::Unknown),
            (
                &[(0x36, b"FAT16   "), (510, b"\x55\xaa")],
                DiskLayout::Unknown,
            ),
            (&[(100_000, b"data")], DiskLayout::Unknown),
        ];
        for (patches, layout) in cases {
            let (sample, probed) = disk(patches);
            let blob = sample.digest;
            let content = probed.unwrap();
            assert_eq!(content.layout, *layout, "{patches:?}");
            let expected = match *layout {
                DiskLayout::FileSystem("a FAT file system") => Ok(()),
                DiskLayout::FileSystem(what) => Err(ContentError::WholeFileSystem { blob, what }),
                _ => Err(ContentError::NoPartitionTable { blob }),
            };
            assert_eq!(
                check_bootable(&content, blob, &Architecture::Amd64),
                expected
            );
            if let DiskLayout::FileSystem(what) = *layout {
                assert_eq!(identify(&sample), what);
            }
        }
    }

    #[test]
    fn firmware_needs_a_loader_for_its_own_machine() {
        let (amd64, arm64) = (Architecture::Amd64, Architecture::Arm64);
        let blob = sample(b"").digest;
        let no_loader = |machine: &Architecture| ContentError::NoLoader {
            blob,
            architecture: machine.clone(),
        };
        let wrong = ContentError::WrongArchitecture {
            role: "disk",
            blob,
            expected: arm64.clone(),
            actual: amd64.clone(),
        };
        for (uefi, bios, its, machine, expected) in [
            (true, false, None, &arm64, Ok(())),
            (true, false, Some(&amd64), &amd64, Ok(())),
            (true, true, Some(&amd64), &arm64, Err(wrong)),
            (false, true, None, &amd64, Ok(())),
            (false, true, None, &arm64, Err(no_loader(&arm64))),
            (false, false, None, &amd64, Err(no_loader(&amd64))),
        ] {
            let layout = DiskLayout::Partitioned {
                uefi,
                bios,
                architecture: its.cloned(),
            };
            let content = raw(1 << 20, layout);
            assert_eq!(check_bootable(&content, blob, machine), expected);
        }
    }
}
