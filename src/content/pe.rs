//! The sections of an EFI program: a small reader of PE32+ that believes nothing.
//!
//! Firmware finds sections by where they lie in memory, this reader by where they lie in the file.
//! So both must be free of overlaps, or the two could see different programs.
//!
//! Format: Microsoft's PE/COFF specification; all numbers are little endian.

use std::ops::Range;

use crate::content::{ContentError, Sample};
use crate::oci::Architecture;

/// The specification's own limit for an image.
const MAX_SECTIONS: u16 = 96;
/// `IMAGE_SUBSYSTEM_EFI_APPLICATION`.
const EFI_APPLICATION: u16 = 10;
/// Bytes of the COFF header with its signature.
const COFF_BYTES: usize = 24;
/// Bytes of an optional header of PE32+ up to its data directories.
const OPTIONAL_BYTES: usize = 112;
/// Bytes of an entry in the section table.
const SECTION_BYTES: usize = 40;

/// What a program says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pe {
    /// The machine that it runs on.
    pub machine: PeMachine,
    /// Who starts it: 10 is an EFI application.
    pub subsystem: u16,
    /// Its sections in the order of the file's table.
    pub sections: Vec<Section>,
    /// Whether there is a signature in the file; whose, and whether it holds, is not looked at.
    pub is_signed: bool,
}

/// A machine by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeMachine {
    /// 64-bit x86.
    Amd64,
    /// 64-bit Arm.
    Arm64,
    /// Any other.
    Other(u16),
}

/// A section that lies in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// Its name, at most 8 bytes.
    pub name: String,
    /// Where its bytes are in the file.
    pub offset: u64,
    /// How many of them firmware loads; the file has padding after them.
    pub size_bytes: u64,
}

impl Pe {
    /// Tells whether UEFI firmware starts it.
    #[must_use]
    pub fn is_efi_application(&self) -> bool {
        self.subsystem == EFI_APPLICATION
    }

    /// Tells whether it has a section of that name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.sections.iter().any(|section| section.name == name)
    }
}

impl From<PeMachine> for Architecture {
    fn from(machine: PeMachine) -> Self {
        match machine {
            PeMachine::Amd64 => Self::Amd64,
            PeMachine::Arm64 => Self::Arm64,
            PeMachine::Other(0x14c) => Self::Other("386".to_owned()),
            PeMachine::Other(0x1c0 | 0x1c2 | 0x1c4) => Self::Other("arm".to_owned()),
            PeMachine::Other(0x5064) => Self::Other("riscv64".to_owned()),
            PeMachine::Other(0x6264) => Self::Other("loong64".to_owned()),
            PeMachine::Other(number) => Self::Other(format!("machine {number:#x}")),
        }
    }
}

/// Reads the headers of a program, which must be in the sample's head. Errors if one of them
/// contradicts the file, or another.
pub fn parse(sample: &Sample) -> Result<Pe, ContentError> {
    let blob = sample.digest;
    headers(sample).map_err(|what| ContentError::BadProgram { blob, what })
}

fn headers(sample: &Sample) -> Result<Pe, &'static str> {
    let cut = "a header that is cut short";
    if !sample.has(0, b"MZ") {
        return Err("no MZ header");
    }
    let coff = usize::try_from(sample.u32(0x3c).ok_or(cut)?).map_err(|_| cut)?;
    // Linux has aligned this header to no more than 2 bytes.
    if coff < 0x40 || coff % 2 != 0 || !sample.has(coff, b"PE\0\0") {
        return Err("no PE header");
    }
    let machine = match sample.u16(coff + 4).ok_or(cut)? {
        0x8664 => PeMachine::Amd64,
        0xaa64 => PeMachine::Arm64,
        number => PeMachine::Other(number),
    };
    let count = sample.u16(coff + 6).ok_or(cut)?;
    let optional_bytes = usize::from(sample.u16(coff + 20).ok_or(cut)?);
    let optional = coff + COFF_BYTES;
    match sample.u16(optional).ok_or(cut)? {
        0x20b if optional_bytes >= OPTIONAL_BYTES => {}
        0x10b => return Err("a header for 32-bit machines"),
        _ => return Err("no PE32+ header"),
    }
    let subsystem = sample.u16(optional + 68).ok_or(cut)?;
    let directories = sample.u32(optional + 108).ok_or(cut)?;
    let room = (optional_bytes - OPTIONAL_BYTES) / 8;
    if usize::try_from(directories).map_or(true, |directories| directories > room) {
        return Err("more data directories than its header has room for");
    }
    if count > MAX_SECTIONS {
        return Err("more than 96 sections");
    }
    let table = optional + optional_bytes;
    let table_end = table + SECTION_BYTES * usize::from(count);
    let headers_end = u64::try_from(table_end).map_err(|_| cut)?;
    let sections = sections(sample, table..table_end, headers_end)?;
    let is_signed = directories > 4 && {
        let at = optional + OPTIONAL_BYTES + 4 * 8;
        let offset = u64::from(sample.u32(at).ok_or(cut)?);
        let length = u64::from(sample.u32(at + 4).ok_or(cut)?);
        // Firmware starts nothing whose signatures it can not read, not even where it checks none.
        if length > 0 && offset + length > sample.size_bytes {
            return Err("a signature outside of the file");
        }
        // Eight bytes are the header of a signature.
        length >= 8 && offset >= headers_end
    };
    Ok(Pe {
        machine,
        subsystem,
        sections,
        is_signed,
    })
}

fn sections(
    sample: &Sample,
    table: Range<usize>,
    headers_end: u64,
) -> Result<Vec<Section>, &'static str> {
    let table = sample
        .head
        .get(table)
        .ok_or("a section table that is cut short")?;
    let mut sections = Vec::new();
    let mut in_file = Vec::new();
    let mut in_memory = Vec::new();
    let (entries, _) = table.as_chunks::<SECTION_BYTES>();
    for entry in entries {
        let (name, rest) = entry
            .split_first_chunk::<8>()
            .ok_or("a section without a name")?;
        let (numbers, _) = rest.as_chunks::<4>();
        let &[memory_size, address, file_size, offset, ..] = numbers else {
            return Err("a section without numbers");
        };
        let [memory_size, address, file_size, offset] = [memory_size, address, file_size, offset]
            .map(|bytes| u64::from(u32::from_le_bytes(bytes)));
        // Some linkers leave the size in memory out.
        let memory_size = if memory_size == 0 {
            file_size
        } else {
            memory_size
        };
        if address + memory_size > 1 << 32 {
            return Err("a section that ends beyond 4 GiB");
        }
        if memory_size > 0 {
            in_memory.push(address..address + memory_size);
        }
        if file_size == 0 {
            continue;
        }
        if offset < headers_end || offset + file_size > sample.size_bytes {
            return Err("a section outside of the file");
        }
        in_file.push(offset..offset + file_size);
        let length = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        sections.push(Section {
            name: String::from_utf8_lossy(&name[..length]).into_owned(),
            offset,
            size_bytes: memory_size.min(file_size),
        });
    }
    if overlap(in_file) || overlap(in_memory) {
        return Err("sections that overlap");
    }
    Ok(sections)
}

fn overlap(mut ranges: Vec<Range<u64>>) -> bool {
    ranges.sort_by_key(|range| range.start);
    ranges.windows(2).any(|pair| pair[0].end > pair[1].start)
}

#[cfg(test)]
mod tests {
    use super::{ContentError, Pe, PeMachine, Section, parse};
    use crate::content::samples::{Patches, patch, sample, uki};

    /// Where the headers of a sample are: COFF, optional, section table.
    const COFF: usize = 0x80;
    const OPTIONAL: usize = COFF + 24;
    const TABLE: usize = OPTIONAL + 240;

    fn program() -> Vec<u8> {
        uki(&[(".one", &[1; 700]), (".two", &[2; 100])])
    }

    fn refusal(patches: Patches<'_>) -> &'static str {
        match parse(&sample(&patch(program(), patches))) {
            Err(ContentError::BadProgram { what, .. }) => what,
            other => panic!("{patches:?}: {other:?}"),
        }
    }

    #[test]
    fn headers_that_contradict_the_file_or_each_other_are_refused() {
        let (no_header, cut) = ("no PE header", "a header that is cut short");
        let overlap = "sections that overlap";
        let outside = "a section outside of the file";
        let beyond = "a section that ends beyond 4 GiB";
        let directories = "more data directories than its header has room for";
        let cases: &[(Patches<'_>, &str)] = &[
            (&[(0, b"ZM")], "no MZ header"),
            (&[(0x3c, &u32::MAX.to_le_bytes())], no_header),
            (&[(0x3c, &(128_u32 << 10).to_le_bytes())], no_header),
            (&[(0x3c, &0x81_u32.to_le_bytes())], no_header),
            (&[(0x3c, &0_u32.to_le_bytes())], no_header),
            (&[(COFF, b"PE\0\x01")], no_header),
            (
                &[(COFF + 6, &u16::MAX.to_le_bytes())],
                "more than 96 sections",
            ),
            (
                &[(COFF + 6, &97_u16.to_le_bytes())],
                "more than 96 sections",
            ),
            (
                &[(COFF + 20, &u16::MAX.to_le_bytes())],
                "a section table that is cut short",
            ),
            (&[(COFF + 20, &111_u16.to_le_bytes())], "no PE32+ header"),
            (
                &[(OPTIONAL, &0x10b_u16.to_le_bytes())],
                "a header for 32-bit machines",
            ),
            (&[(OPTIONAL + 108, &17_u32.to_le_bytes())], directories),
            (&[(OPTIONAL + 108, &u32::MAX.to_le_bytes())], directories),
            // Size and place in memory, size and place in the file.
            (&[(TABLE + 8, &u32::MAX.to_le_bytes())], beyond),
            (&[(TABLE + 12, &u32::MAX.to_le_bytes())], beyond),
            (&[(TABLE + 8, &0x2000_u32.to_le_bytes())], overlap),
            (&[(TABLE + 40 + 12, &0x1000_u32.to_le_bytes())], overlap),
            (
                &[(TABLE + 8, &[0; 4]), (TABLE + 16, &u32::MAX.to_le_bytes())],
                beyond,
            ),
            (&[(TABLE + 16, &u32::MAX.to_le_bytes())], outside),
            (&[(TABLE + 20, &u32::MAX.to_le_bytes())], outside),
            (&[(TABLE + 20, &0x600_u32.to_le_bytes())], overlap),
            (&[(TABLE + 20, &0_u32.to_le_bytes())], outside),
            (&[(TABLE + 16, &0x1000_u32.to_le_bytes())], outside),
        ];
        for (patches, expected) in cases {
            let what = refusal(patches);
            assert_eq!(what, *expected, "{patches:?}");
        }
        let content = program();
        for length in [
            0x3e,
            0x85,
            0x90,
            OPTIONAL + 1,
            OPTIONAL + 60,
            OPTIONAL + 111,
        ] {
            let error = parse(&sample(&content[..length])).unwrap_err();
            assert!(error.to_string().ends_with(cut), "{length}: {error}");
        }
    }

    #[test]
    fn sections_are_found_without_their_padding() {
        let content = program();
        let expected = Pe {
            machine: PeMachine::Amd64,
            subsystem: 10,
            sections: vec![
                Section {
                    name: ".one".to_owned(),
                    offset: 0x400,
                    size_bytes: 700,
                },
                Section {
                    name: ".two".to_owned(),
                    offset: 0x800,
                    size_bytes: 100,
                },
            ],
            is_signed: false,
        };
        assert_eq!(parse(&sample(&content)), Ok(expected));
    }

    #[test]
    fn a_signature_is_one_if_it_is_in_the_file() {
        let content = program();
        let length = u32::try_from(content.len()).unwrap();
        for (offset, size, is_signed) in [
            (length - 200, 200_u32, true),
            (length, 0, false),
            (length - 4, 4, false),
            (0, 200, false),
        ] {
            let directory = [offset.to_le_bytes(), size.to_le_bytes()].concat();
            let content = patch(content.clone(), &[(OPTIONAL + 144, &directory)]);
            let program = parse(&sample(&content)).unwrap();
            assert_eq!(program.is_signed, is_signed, "{offset} {size}");
        }
        for (offset, size) in [(length - 200, 201_u32), (u32::MAX, u32::MAX), (length, 1)] {
            let directory = [offset.to_le_bytes(), size.to_le_bytes()].concat();
            let content = patch(content.clone(), &[(OPTIONAL + 144, &directory)]);
            let error = parse(&sample(&content)).unwrap_err();
            assert!(
                error
                    .to_string()
                    .ends_with("a signature outside of the file"),
                "{error}"
            );
        }
    }
}
