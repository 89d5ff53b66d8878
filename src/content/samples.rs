//! Blobs for the tests: small, made of parts, valid unless a test breaks them.

use miniz_oxide::deflate::compress_to_vec;

use crate::content::Piece;
use crate::content::disk::{self, DiskContent};
use crate::content::{ContentError, HEAD_BYTES, Sample, TAIL_BYTES, qcow2};
use crate::oci::Digest;

/// Bytes to put into a blob, by where.
pub(super) type Patches<'a> = &'a [(usize, &'a [u8])];

pub(super) fn sample(content: &[u8]) -> Sample {
    sample_of(Digest::of(content), content)
}

/// The same for a blob whose digest does not matter.
pub(super) fn sample_of(digest: Digest, content: &[u8]) -> Sample {
    let head = usize::try_from(HEAD_BYTES).expect("128 KiB fit");
    let tail = usize::try_from(TAIL_BYTES).expect("512 bytes fit");
    Sample {
        digest,
        head: content[..content.len().min(head)].to_vec(),
        tail: content[content.len().saturating_sub(tail)..].to_vec(),
        size_bytes: content.len() as u64,
    }
}

pub(super) fn piece_of(content: &[u8], piece: Piece) -> Vec<u8> {
    let offset = usize::try_from(piece.offset).unwrap();
    content[offset..][..usize::try_from(piece.size_bytes).unwrap()].to_vec()
}

/// Probes a disk as the first boot would.
pub(super) fn probe_disk(content: &[u8]) -> Result<DiskContent, ContentError> {
    disk::probe(&sample(content), &mut |piece| Ok(piece_of(content, piece)))
}

/// `length` zeros with something in them.
pub(super) fn patched(length: usize, patches: Patches<'_>) -> Vec<u8> {
    patch(vec![0; length], patches)
}

pub(super) fn patch(mut content: Vec<u8>, patches: Patches<'_>) -> Vec<u8> {
    for (offset, bytes) in patches {
        content[*offset..*offset + bytes.len()].copy_from_slice(bytes);
    }
    content
}

pub(super) fn x86_kernel() -> Vec<u8> {
    patch(vec![b'k'; 1024], &[(0x1fe, b"\x55\xaa"), (0x202, b"HdrS")])
}

pub(super) fn arm64_kernel() -> Vec<u8> {
    patch(vec![b'k'; 1024], &[(0, b"MZ"), (0x38, b"ARM\x64")])
}

pub(super) fn zboot_kernel() -> Vec<u8> {
    patch(vec![b'k'; 1024], &[(0, b"MZ\0\0zimg"), (0x18, b"gzip\0")])
}

/// A gzip file; `fields` are the flags and what they announce.
pub(super) fn gzip(fields: &[u8], content: &[u8]) -> Vec<u8> {
    let (flags, fields) = fields.split_first().unwrap_or((&0, &[]));
    let fixed = [0x1f, 0x8b, 8, *flags, 0, 0, 0, 0, 0, 3];
    [&fixed, fields, &compress_to_vec(content, 6), &[0; 8]].concat()
}

/// A cpio archive of files by name and content.
pub(super) fn cpio(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        let (size, name_size) = (content.len(), name.len() + 1);
        let header = format!("0707010000000100008180{:08x}{:08x}00000001{:08x}", 0, 0, 0);
        archive.extend(header.bytes());
        archive.extend(format!("{size:08x}{:032x}{name_size:08x}{:08x}", 0, 0).bytes());
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(*content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// A unified kernel image for amd64 of sections by name and content.
pub(super) fn uki(sections: &[(&str, &[u8])]) -> Vec<u8> {
    uki_of(0x8664, sections)
}

/// The same for a machine by its number. COFF header at 0x80, sections from 0x400 on.
pub(super) fn uki_of(machine: u16, sections: &[(&str, &[u8])]) -> Vec<u8> {
    let (coff, optional, table) = (0x80, 0x98, 0x188);
    let count = u16::try_from(sections.len()).unwrap();
    let mut program = patched(
        0x400,
        &[
            (0, b"MZ"),
            (0x3c, &[0x80]),
            (coff, b"PE\0\0"),
            (coff + 4, &machine.to_le_bytes()),
            (coff + 6, &count.to_le_bytes()),
            (coff + 20, &240_u16.to_le_bytes()),
            (optional, &0x20b_u16.to_le_bytes()),
            (optional + 68, &10_u16.to_le_bytes()),
            (optional + 108, &16_u32.to_le_bytes()),
        ],
    );
    let mut address = 0x1000;
    for (index, (name, content)) in sections.iter().enumerate() {
        let offset = program.len();
        program.extend(*content);
        program.resize(program.len().next_multiple_of(0x200), 0);
        let numbers = [content.len(), address, program.len() - offset, offset]
            .map(|number| u32::try_from(number).unwrap().to_le_bytes())
            .concat();
        let header = table + 40 * index;
        program[header..][..name.len()].copy_from_slice(name.as_bytes());
        program[header + 8..][..16].copy_from_slice(&numbers);
        address = (address + content.len()).next_multiple_of(0x1000);
    }
    program
}

/// A disk of 1 MiB with a GPT for `sector` bytes, of partitions by type and attributes.
pub(super) fn gpt(sector: usize, partitions: &[(&str, u64)]) -> Vec<u8> {
    let mut disk = patched(
        1 << 20,
        &[
            (446, b"\0\0\x02\0\xee\xff\xff\xff\x01\0\0\0\xff\xff\xff\xff"),
            (510, b"\x55\xaa"),
            (sector, b"EFI PART\0\0\x01\0\x5c\0\0\0"),
            (sector + 24, &1_u64.to_le_bytes()),
            (sector + 72, &2_u64.to_le_bytes()),
            (sector + 80, &128_u32.to_le_bytes()),
            (sector + 84, &128_u32.to_le_bytes()),
        ],
    );
    for (index, (kind, attributes)) in partitions.iter().enumerate() {
        let entry = 2 * sector + 128 * index;
        let mut guid = hex::decode(kind.replace('-', "")).unwrap();
        for part in [0..4, 4..6, 6..8] {
            guid[part].reverse();
        }
        disk[entry..][..16].copy_from_slice(&guid);
        disk[entry + 16..][..16].copy_from_slice(&[7; 16]);
        disk[entry + 48..][..8].copy_from_slice(&attributes.to_le_bytes());
    }
    disk
}

/// A disk of 1 MiB with a master boot record of partitions by status, type and first sector.
pub(super) fn mbr(partitions: &[(u8, u8, u32)]) -> Vec<u8> {
    let mut disk = patched(1 << 20, &[(510, b"\x55\xaa")]);
    for (index, (status, kind, start)) in partitions.iter().enumerate() {
        let entry = &mut disk[446 + 16 * index..][..16];
        entry[0] = *status;
        entry[4] = *kind;
        entry[8..12].copy_from_slice(&start.to_le_bytes());
        entry[12..16].copy_from_slice(&64_u32.to_le_bytes());
    }
    disk
}

/// An ISO of volume descriptors by type and the text in them.
pub(super) fn iso(descriptors: &[(u8, &str)]) -> Vec<u8> {
    let mut iso = vec![0; 0x8000];
    for (kind, text) in descriptors {
        let start = [&[*kind], b"CD001\x01".as_slice(), text.as_bytes()].concat();
        iso.extend(patched(2048, &[(0, &start)]));
    }
    iso.resize(iso.len() + 4096, 0);
    iso
}

/// An empty qcow2 image of 1 MiB as `qemu-img create` lays it out, with `patches`.
pub(super) fn qcow2(patches: Patches<'_>) -> Vec<u8> {
    let cluster = 0x1_0000_u64;
    let image = patched(
        256 << 10,
        &[
            (0, qcow2::MAGIC),
            (4, &3_u32.to_be_bytes()),
            (20, &16_u32.to_be_bytes()),
            (24, &(1_u64 << 20).to_be_bytes()),
            (36, &1_u32.to_be_bytes()),
            (40, &(3 * cluster).to_be_bytes()),
            (48, &cluster.to_be_bytes()),
            (56, &1_u32.to_be_bytes()),
            (96, &4_u32.to_be_bytes()),
            (100, &112_u32.to_be_bytes()),
        ],
    );
    patch(image, patches)
}

/// A qcow2 image of a disk of at most 1 MiB, in plain clusters.
pub(super) fn qcow2_of(disk: &[u8]) -> Vec<u8> {
    let clusters = disk.len().div_ceil(0x1_0000);
    let mut image = qcow2(&[(0x3_0000, &(0x8000_0000_0004_0000_u64).to_be_bytes())]);
    // One cluster more, which nothing uses.
    image.resize((6 + clusters) << 16, 0);
    for cluster in 0..clusters {
        let entry = (1_u64 << 63) | u64::try_from((5 + cluster) << 16).unwrap();
        image[0x4_0000 + 8 * cluster..][..8].copy_from_slice(&entry.to_be_bytes());
    }
    image[5 << 16..][..disk.len()].copy_from_slice(disk);
    image
}
