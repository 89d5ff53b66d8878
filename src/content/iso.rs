//! What an ISO layer really is, and whether firmware finds something to boot on it.
//!
//! Formats: ECMA-119 (ISO 9660), and "El Torito" Bootable CD-ROM Format Specification 1.0.

use crate::content::{ContentError, Sample, disk, partitions};

/// The words for one.
pub(super) const WHAT: &str = "an ISO 9660 image";

/// Where the volume descriptors start; the 16 sectors before them are the system's.
const DESCRIPTORS: usize = 0x8000;
const SECTOR_BYTES: usize = 2048;
/// Type of the descriptor that ends the set.
const TERMINATOR: u8 = 255;

/// Tells whether there is a volume descriptor where the first one must be.
pub(super) fn is_iso(sample: &Sample) -> bool {
    sample.has(DESCRIPTORS + 1, b"CD001")
}

/// Checks that an ISO is one, nothing else besides, and bootable.
///
/// The area before the descriptors is free for any use, so a file can be an ISO and a qcow2 image.
pub fn check(sample: &Sample) -> Result<(), ContentError> {
    let role = "iso";
    let blob = sample.digest;
    sample.refuse_zeros(role)?;
    match (disk::format_name(sample), is_iso(sample)) {
        (Some(second), true) => Err(ContentError::TwoFormats {
            role,
            blob,
            first: "ISO 9660",
            second,
        }),
        (Some(format), false) => Err(ContentError::ForeignFormat { role, blob, format }),
        (None, false) => Err(sample.mismatch(role, WHAT)),
        (None, true) if is_bootable(sample) => expect_whole(sample),
        (None, true) => Err(ContentError::IsoNotBootable { blob }),
    }
}

/// Errors if the file is shorter than its primary volume, ECMA-119 8.4.8 and 8.4.12.
fn expect_whole(sample: &Sample) -> Result<(), ContentError> {
    let number = |at: usize| sample.u32(DESCRIPTORS + at).map(u64::from);
    let is_primary = sample.has(DESCRIPTORS, &[1]);
    let (Some(blocks), Some(block_bytes)) = (number(80), number(128)) else {
        return Ok(());
    };
    // The block size has 16 bits, and the same again in the other byte order.
    let expected_bytes = blocks * (block_bytes & 0xffff);
    if is_primary && expected_bytes > sample.size_bytes {
        return Err(ContentError::IsoCutShort {
            blob: sample.digest,
            expected_bytes,
            actual_bytes: sample.size_bytes,
        });
    }
    Ok(())
}

fn is_bootable(sample: &Sample) -> bool {
    has_boot_record(sample) || partitions::read(sample).is_some_and(|table| table.uefi)
}

/// Tells whether one of the volume descriptors, as far as the sample reaches, is El Torito's.
pub(super) fn has_boot_record(sample: &Sample) -> bool {
    let (descriptors, _) = sample
        .head
        .get(DESCRIPTORS..)
        .unwrap_or_default()
        .as_chunks::<SECTOR_BYTES>();
    descriptors
        .iter()
        .take_while(|descriptor| {
            descriptor[0] != TERMINATOR && descriptor[1..].starts_with(b"CD001")
        })
        .any(|descriptor| {
            descriptor[0] == 0 && descriptor[7..].starts_with(b"EL TORITO SPECIFICATION")
        })
}

#[cfg(test)]
mod tests {
    use super::{ContentError, check};
    use crate::content::samples::{gpt, iso, mbr, patch, sample};

    const BOOT_RECORD: (u8, &str) = (0, "EL TORITO SPECIFICATION");
    const FILES: (u8, &str) = (1, "\0LINUX");

    #[test]
    fn an_iso_that_is_something_else_besides_is_unsafe() {
        let content = iso(&[FILES, BOOT_RECORD]);
        let last = content.len() - 512;
        let cases: [(usize, &[u8], &str); 5] = [
            (0, b"QFI\xfb\0\0\0\x03", "qcow2"),
            (0, b"KDMV", "VMDK"),
            (0, b"# Disk DescriptorFile\nversion=1\n", "VMDK"),
            (0x40, &[0x7f, 0x10, 0xda, 0xbe], "VDI"),
            (last, b"conectix", "VHD"),
        ];
        for (offset, magic, second) in cases {
            let sample = sample(&patch(content.clone(), &[(offset, magic)]));
            let error = check(&sample).unwrap_err();
            assert!(error.is_unsafe());
            let expected = ContentError::TwoFormats {
                role: "iso",
                blob: sample.digest,
                first: "ISO 9660",
                second,
            };
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn what_is_no_bootable_iso_is_refused() {
        let qcow2 = [b"QFI\xfb".as_slice(), &[1; 600]].concat();
        let late = iso(&[FILES, (255, ""), BOOT_RECORD]);
        let other = iso(&[FILES, (0, "SOME OTHER SYSTEM")]);
        let no_iso = "iso X is not bootable: no El Torito boot record, no EFI system partition";
        for (content, expected) in [
            (vec![0; 1 << 20], "iso X is all zeros"),
            (qcow2, "iso X is in a format that is refused: qcow2"),
            (
                gpt(512, &[]),
                "iso X is not an ISO 9660 image but a GPT disk",
            ),
            (iso(&[FILES]), no_iso),
            (iso(&[FILES])[..0x8006].to_vec(), no_iso),
            (late, no_iso),
            (other, no_iso),
        ] {
            let sample = sample(&content);
            let error = check(&sample).unwrap_err().to_string();
            assert_eq!(error.replace(&sample.digest.to_string(), "X"), expected);
        }
    }

    #[test]
    fn a_boot_record_or_an_efi_system_partition_makes_an_iso_bootable() {
        let table = mbr(&[(0, 0xef, 16)])[..512].to_vec();
        for content in [
            iso(&[FILES, BOOT_RECORD, (255, "")]),
            iso(&[BOOT_RECORD, FILES]),
            patch(iso(&[FILES, (255, "")]), &[(0, &table)]),
        ] {
            assert_eq!(check(&sample(&content)), Ok(()));
        }
    }
}
