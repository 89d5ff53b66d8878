//! What format a disk is in: raw, or a safe qcow2; everything else is refused by name.
//!
//! QEMU is always told the format. This probe exists so that a blob which QEMU or another tool
//! would take for something else never gets that far.

use crate::content::{ContentError, Sample, qcow2};
use crate::domain::DiskFormat;

/// A disk whose format is known and safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskContent {
    /// Its format.
    pub format: DiskFormat,
    /// Its size as a guest sees it, in bytes.
    pub virtual_size_bytes: u64,
}

/// Magic numbers of the formats that are refused: offset, bytes, name.
const FOREIGN: &[(usize, &[u8], &str)] = &[
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"conectix", "VHD"),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], "VDI"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop", "cloop"),
    (0, b"Bochs Virtual HD Image", "Bochs"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\xfd7zXZ\0", "xz"),
    (0, b"\x28\xb5\x2f\xfd", "zstd"),
    (0, b"BZh", "bzip2"),
];

/// Magic numbers at the start of the last 512 bytes.
const FOREIGN_TAIL: &[(&[u8], &str)] = &[(b"conectix", "VHD"), (b"koly", "DMG")];

/// Tells the format of a disk. Errors if it is a foreign one, an unsafe qcow2, or two at once.
pub fn probe(sample: &Sample) -> Result<DiskContent, ContentError> {
    let blob = sample.digest;
    let is_qcow2 = sample.has(0, qcow2::MAGIC);
    if let Some(format) = foreign(sample) {
        return Err(if is_qcow2 {
            let (first, second) = ("qcow2", format);
            ContentError::TwoFormats {
                blob,
                first,
                second,
            }
        } else {
            ContentError::ForeignFormat { blob, format }
        });
    }
    if is_qcow2 {
        if sample.has(0x8001, b"CD001") {
            let (first, second) = ("qcow2", "ISO 9660");
            return Err(ContentError::TwoFormats {
                blob,
                first,
                second,
            });
        }
        let virtual_size_bytes = qcow2::check_header(sample)?;
        return Ok(DiskContent {
            format: DiskFormat::Qcow2,
            virtual_size_bytes,
        });
    }
    if !sample.size_bytes.is_multiple_of(512) {
        return Err(ContentError::Unaligned {
            blob,
            size_bytes: sample.size_bytes,
        });
    }
    Ok(DiskContent {
        format: DiskFormat::Raw,
        virtual_size_bytes: sample.size_bytes,
    })
}

fn foreign(sample: &Sample) -> Option<&'static str> {
    FOREIGN
        .iter()
        .find(|(offset, magic, _)| sample.has(*offset, magic))
        .map(|(.., name)| *name)
        .or_else(|| {
            FOREIGN_TAIL
                .iter()
                .find(|(magic, _)| sample.tail.starts_with(magic))
                .map(|(_, name)| *name)
        })
        .or_else(|| is_vmdk_descriptor(&sample.head).then_some("VMDK"))
}

/// Tells whether QEMU would take `head` for the text of a VMDK: blank lines and comments, then
/// `version=`. One pass, so a megabyte of newlines costs nothing.
fn is_vmdk_descriptor(head: &[u8]) -> bool {
    let is_text = |byte: &u8| byte.is_ascii_graphic() || byte.is_ascii_whitespace();
    for line in head.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        if !line.iter().take(64).all(is_text) {
            return false;
        }
        if line
            .to_ascii_lowercase()
            .starts_with(b"# disk descriptorfile")
        {
            return true;
        }
        if !line.is_empty() && !line.starts_with(b"#") {
            return line.to_ascii_lowercase().starts_with(b"version");
        }
    }
    // Nothing but blanks and comments as far as was read: no disk starts like that.
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::sample;

    fn disk(patches: &[(usize, &[u8])]) -> Vec<u8> {
        let mut content = vec![0; 256 << 10];
        for (offset, bytes) in patches {
            content[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        content
    }

    #[test]
    fn a_disk_without_any_magic_number_of_an_image_format_is_raw() {
        let cases: [&[(usize, &[u8])]; 4] = [
            &[],
            &[(510, b"\x55\xaa"), (512, b"EFI PART")],
            &[(0x438, b"\x53\xef")],
            &[(0x8001, b"CD001")],
        ];
        for patches in cases {
            let content = disk(patches);
            let expected = DiskContent {
                format: DiskFormat::Raw,
                virtual_size_bytes: 256 << 10,
            };
            assert_eq!(probe(&sample(&content)), Ok(expected));
        }
    }

    #[test]
    fn every_foreign_format_is_refused_by_name() {
        for (offset, magic, name) in FOREIGN {
            let error = probe(&sample(&disk(&[(*offset, magic)]))).unwrap_err();
            assert!(
                matches!(error, ContentError::ForeignFormat { format, .. } if format == *name),
                "{name}: {error}"
            );
        }
        for (magic, name) in FOREIGN_TAIL {
            let error = probe(&sample(&disk(&[((256 << 10) - 512, magic)]))).unwrap_err();
            assert!(error.to_string().ends_with(name), "{error}");
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
            let error = probe(&sample(text.as_bytes())).unwrap_err();
            assert!(error.to_string().ends_with("VMDK"), "{error}");
        }
    }

    #[test]
    fn half_a_sector_is_refused() {
        let error = probe(&sample(&vec![0; 1_000_001])).unwrap_err();
        assert!(matches!(error, ContentError::Unaligned { .. }));
    }

    #[test]
    fn a_blob_that_is_two_formats_is_refused() {
        let iso = disk(&[(0, b"QFI\xfb\0\0\0\x03"), (0x8001, b"CD001")]);
        let error = probe(&sample(&iso)).unwrap_err();
        assert!(matches!(error, ContentError::TwoFormats { .. }), "{error}");
    }
}
