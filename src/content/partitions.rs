//! What a disk's partition table says about booting it.
//!
//! Entries are read as far as the sample reaches, checksums are not checked: a table is looked at
//! to tell the user early what firmware would not say at all, not to use the disk.
//!
//! Formats: UEFI specification 2.10, chapter 5; partition types: UAPI.2 *Discoverable Partitions
//! Specification*.

use std::collections::BTreeSet;

use crate::content::{Sample, identify, iso};
use crate::oci::Architecture;

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    /// The words for a disk with such a table.
    pub(super) what: &'static str,
    /// Whether UEFI firmware finds a partition to boot from.
    pub(super) uefi: bool,
    /// Whether a BIOS finds boot code, and that a partition to boot from.
    pub(super) bios: bool,
    /// The one architecture that partitions are for.
    pub(super) architecture: Option<Architecture>,
}

const EFI_SYSTEM: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";
const BIOS_BOOT: &str = "21686148-6449-6e6f-744e-656564454649";
const BASIC_DATA: &str = "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7";
/// Attribute bit 2 of a GPT entry, "legacy BIOS bootable".
const LEGACY_BOOTABLE: u64 = 1 << 2;

/// Partition types of Linux on x86-64: root and /usr, their verity data, the signatures of that.
const AMD64: [&str; 6] = [
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709",
    "8484680c-9521-48c6-9c11-b0720656f69e",
    "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5",
    "77ff5f63-e7b6-4633-acf4-1565b864c0e6",
    "41092b05-9fc8-4523-994f-2def0408b176",
    "e7bb33fb-06cf-4e81-8273-e543b413e2e2",
];
/// The same on 64-bit Arm.
const ARM64: [&str; 6] = [
    "b921b045-1df0-41c3-af44-4c6f280d3fae",
    "b0e01050-ee5f-4390-949a-9101b17104e9",
    "df3300ce-d69f-4c92-978c-9bfb0f38d820",
    "6e11a4e7-fbca-4ded-b9e9-e1a512bb664e",
    "6db69de6-29f4-4758-a7a5-962190f00ce3",
    "c23ce4ff-44bd-4b00-b2d4-b41b3419e02a",
];

/// MBR partition types.
const EFI_SYSTEM_MBR: u8 = 0xef;
const FAT_MBR: [u8; 6] = [0x01, 0x04, 0x06, 0x0b, 0x0c, 0x0e];

/// Reads the partition table of a disk: GPT, else MBR, else the boot record of an ISO, of which
/// UEFI firmware makes partitions on any drive; none if there is none of them.
pub(super) fn read(sample: &Sample) -> Option<Table> {
    let boot_record =
        || iso::has_boot_record(sample).then(|| Found::default().table(sample, iso::WHAT));
    gpt(sample).or_else(|| mbr(sample)).or_else(boot_record)
}

/// What was found in the entries of a table.
#[derive(Default)]
struct Found {
    efi_system: bool,
    /// A FAT file system, or a part of the table that is not in the sample.
    maybe_efi: bool,
    /// A partition that the boot code in the first sector continues from.
    bios: bool,
    architectures: BTreeSet<Architecture>,
}

impl Found {
    fn table(mut self, sample: &Sample, what: &'static str) -> Table {
        let code = sample.head.get(..440).unwrap_or_default();
        // The code in front of an ISO looks for its loader in the ISO.
        let bios = (self.bios || iso::is_iso(sample)) && code.iter().any(|byte| *byte != 0);
        let maybe_efi = self.maybe_efi || iso::has_boot_record(sample);
        let architecture = self.architectures.pop_first();
        Table {
            what,
            // UEFI firmware starts `\EFI\BOOT` of any FAT file system. That counts only where
            // nothing else boots, as most FAT file systems hold no such thing.
            uefi: self.efi_system || (maybe_efi && !bios),
            bios,
            architecture: architecture.filter(|_| self.architectures.is_empty()),
        }
    }

    fn add_mbr(&mut self, entries: &[MbrEntry]) {
        for entry in entries.iter().filter(|entry| entry.sectors > 0) {
            self.efi_system |= entry.kind == EFI_SYSTEM_MBR;
            self.maybe_efi |= FAT_MBR.contains(&entry.kind);
            self.bios |= entry.status == 0x80;
        }
    }

    fn add_gpt(&mut self, kind: &str, attributes: u64) {
        self.efi_system |= kind == EFI_SYSTEM;
        self.maybe_efi |= kind == BASIC_DATA;
        self.bios |= kind == BIOS_BOOT || attributes & LEGACY_BOOTABLE != 0;
        for (kinds, architecture) in [(AMD64, Architecture::Amd64), (ARM64, Architecture::Arm64)] {
            if kinds.contains(&kind) {
                self.architectures.insert(architecture);
            }
        }
    }
}

/// Reads a GPT, for sectors of 512 or of 4096 bytes.
pub(super) fn gpt(sample: &Sample) -> Option<Table> {
    let sector = [512, 4096]
        .into_iter()
        .find(|sector| sample.has(*sector, b"EFI PART"))?;
    let mut found = Found::default();
    found.add_mbr(&mbr_entries(sample).unwrap_or_default());
    for entry in gpt_entries(sample, sector).unwrap_or_default() {
        match entry {
            Some((kind, attributes)) => found.add_gpt(&kind, attributes),
            None => found.maybe_efi = true,
        }
    }
    Some(found.table(sample, "a GPT disk"))
}

/// Type and attributes of each entry that is in use, then one `None` if the table goes on where
/// the sample has ended. No entries if the header says nothing that can be.
fn gpt_entries(sample: &Sample, sector: usize) -> Option<Vec<Option<(String, u64)>>> {
    let table = usize::try_from(sample.u64(sector + 72)?).ok()?;
    let mut offset = table.checked_mul(sector)?;
    let count = sample.u32(sector + 80)?;
    let entry_bytes = usize::try_from(sample.u32(sector + 84)?).ok()?;
    let mut entries = Vec::new();
    // An entry has at least 128 bytes, so the sample's end is soon reached.
    for _ in 0..if entry_bytes < 128 { 0 } else { count } {
        let entry = sample.field(offset);
        let Some((kind, attributes)) =
            entry.and_then(|kind| Some((kind, sample.u64(offset + 48)?)))
        else {
            let is_in_file = u64::try_from(offset).is_ok_and(|offset| offset < sample.size_bytes);
            entries.extend(is_in_file.then_some(None));
            break;
        };
        if kind != [0; 16] {
            entries.push(Some((guid(kind), attributes)));
        }
        offset = offset.checked_add(entry_bytes)?;
    }
    Some(entries)
}

/// A GUID as it is written; three of its parts are stored in little-endian order.
fn guid(bytes: [u8; 16]) -> String {
    let [a, b, c, d, e, f, g, h, rest @ ..] = bytes;
    let first = u32::from_le_bytes([a, b, c, d]);
    let (second, third) = (u16::from_le_bytes([e, f]), u16::from_le_bytes([g, h]));
    let [i, j, rest @ ..] = rest;
    let rest = hex::encode(rest);
    format!("{first:08x}-{second:04x}-{third:04x}-{i:02x}{j:02x}-{rest}")
}

/// An entry of a master boot record's table.
struct MbrEntry {
    /// 0x80 if a BIOS boots it, else 0.
    status: u8,
    kind: u8,
    start: u32,
    sectors: u32,
}

fn mbr_entries(sample: &Sample) -> Option<Vec<MbrEntry>> {
    let (entries, _) = sample.head.get(446..510)?.as_chunks::<16>();
    let read = |&[status, _, _, _, kind, _, _, _, a, b, c, d, e, f, g, h]: &[u8; 16]| MbrEntry {
        status,
        kind,
        start: u32::from_le_bytes([a, b, c, d]),
        sectors: u32::from_le_bytes([e, f, g, h]),
    };
    sample
        .has(510, b"\x55\xaa")
        .then(|| entries.iter().map(read).collect())
}

/// Reads a master boot record. Other boot sectors end with the same two bytes, so its table must
/// be one: every status possible, and one partition on the disk.
fn mbr(sample: &Sample) -> Option<Table> {
    if identify::file_system_in_first_sector(sample).is_some() {
        return None;
    }
    let entries = mbr_entries(sample)?;
    // The partition of a hybrid ISO is all of it, from its first sector on.
    let first = u64::from(!iso::is_iso(sample));
    let is_partition = |entry: &MbrEntry| {
        let start = u64::from(entry.start);
        entry.kind != 0 && entry.sectors > 0 && start >= first && start * 512 < sample.size_bytes
    };
    let is_table = entries.iter().all(|entry| matches!(entry.status, 0 | 0x80));
    if !is_table || !entries.iter().any(is_partition) {
        return None;
    }
    let mut found = Found::default();
    found.add_mbr(&entries);
    Some(found.table(sample, "an MBR disk"))
}

#[cfg(test)]
mod tests {
    use super::{Architecture, BASIC_DATA, BIOS_BOOT, EFI_SYSTEM, read};
    use crate::content::identify::identify;
    use crate::content::samples::{gpt, iso, mbr, patch, sample};

    const LINUX: &str = "0fc63daf-8483-4772-8e79-3d69d8477de4";
    const ROOT_AMD64: &str = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709";
    const USR_VERITY_ARM64: &str = "6e11a4e7-fbca-4ded-b9e9-e1a512bb664e";

    /// `uefi`, `bios` and the architecture of a partitioned disk.
    fn table(content: &[u8]) -> (bool, bool, Option<Architecture>) {
        let table = read(&sample(content)).unwrap();
        (table.uefi, table.bios, table.architecture)
    }

    #[test]
    fn a_gpt_says_what_boots_from_it() {
        let (amd64, arm64) = (Some(Architecture::Amd64), Some(Architecture::Arm64));
        // Partitions, whether there is boot code, and what is expected.
        let cases: &[(&[(&str, u64)], bool, _)] = &[
            (&[(EFI_SYSTEM, 0), (LINUX, 0)], false, (true, false, None)),
            (
                &[(EFI_SYSTEM, 0), (ROOT_AMD64, 0)],
                false,
                (true, false, amd64.clone()),
            ),
            (
                &[(EFI_SYSTEM, 0), (USR_VERITY_ARM64, 0)],
                false,
                (true, false, arm64),
            ),
            (
                &[(ROOT_AMD64, 0), (USR_VERITY_ARM64, 0), (EFI_SYSTEM, 0)],
                false,
                (true, false, None),
            ),
            (
                &[(BIOS_BOOT, 0), (ROOT_AMD64, 0)],
                true,
                (false, true, amd64),
            ),
            (&[(BIOS_BOOT, 0), (LINUX, 0)], false, (false, false, None)),
            (&[(BIOS_BOOT, 0), (EFI_SYSTEM, 0)], true, (true, true, None)),
            (&[(LINUX, 4)], true, (false, true, None)),
            (&[(LINUX, 0)], true, (false, false, None)),
            (&[(BASIC_DATA, 0)], false, (true, false, None)),
            (&[(BASIC_DATA, 0), (LINUX, 4)], true, (false, true, None)),
        ];
        for (partitions, has_code, expected) in cases {
            for sector in [512, 4096] {
                let mut content = gpt(sector, partitions);
                content[0] = u8::from(*has_code);
                assert_eq!(table(&content), *expected, "{partitions:?}");
                assert_eq!(identify(&sample(&content)), "a GPT disk");
            }
        }
    }

    #[test]
    fn a_gpt_that_the_sample_cuts_off_may_well_boot() {
        let far = |start: u64| patch(gpt(512, &[(LINUX, 0)]), &[(512 + 72, &start.to_le_bytes())]);
        assert_eq!(table(&far(1000)), (true, false, None));
        // Beyond the file, and beyond all numbers.
        assert_eq!(table(&far(1 << 20)), (false, false, None));
        assert_eq!(table(&far(u64::MAX)), (false, false, None));
        let tiny_entries = patch(gpt(512, &[(EFI_SYSTEM, 0)]), &[(512 + 84, &[0])]);
        assert_eq!(table(&tiny_entries), (false, false, None));
        let many = patch(gpt(512, &[(EFI_SYSTEM, 0)]), &[(512 + 80, &[0xff; 4])]);
        assert_eq!(table(&many), (true, false, None));
    }

    #[test]
    fn a_master_boot_record_says_what_boots_from_it() {
        for (partitions, has_code, expected) in [
            (vec![(0, 0xef, 1000)], false, (true, false, None)),
            (vec![(0x80, 0x83, 1000)], true, (false, true, None)),
            (vec![(0x80, 0x83, 1000)], false, (false, false, None)),
            (vec![(0, 0x83, 1000)], true, (false, false, None)),
            (
                vec![(0x80, 0x83, 1), (0, 0xef, 1024)],
                true,
                (true, true, None),
            ),
            (vec![(0, 0x0c, 1)], false, (true, false, None)),
            (vec![(0x80, 0x0c, 1)], true, (false, true, None)),
        ] {
            let mut content = mbr(&partitions);
            content[0] = u8::from(has_code);
            assert_eq!(table(&content), expected, "{partitions:?}");
            assert_eq!(identify(&sample(&content)), "an MBR disk");
        }
        // No status, no type, beyond the disk, from its first sector on.
        for entry in [(1, 0x83, 1), (0, 0, 1), (0, 0x83, 4096), (0, 0x83, 0)] {
            let content = mbr(&[entry]);
            assert_eq!(read(&sample(&content)), None, "{entry:?}");
        }
    }

    #[test]
    fn an_iso_is_a_disk_by_its_partition_table_or_its_boot_record() {
        let plain = patch(iso(&[(1, "")]), &[(0, b"\x33\xed")]);
        assert_eq!(read(&sample(&plain)), None);
        let bootable = iso(&[(1, ""), (0, "EL TORITO SPECIFICATION")]);
        assert_eq!(table(&bootable), (true, false, None));
        let entry = b"\x80\0\0\0\x17\0\0\0\0\0\0\0\xff\0\0\0";
        let hybrid = patch(plain, &[(446, entry), (510, b"\x55\xaa")]);
        assert_eq!(table(&hybrid), (false, true, None));
        assert_eq!(identify(&sample(&hybrid)), "an ISO 9660 image");
        // A protective entry alone: the code in front needs no other.
        let without_active = patch(
            gpt(512, &[(LINUX, 0)]),
            &[(0, b"\x33\xed"), (0x8001, b"CD001")],
        );
        assert_eq!(table(&without_active), (false, true, None));
    }
}
