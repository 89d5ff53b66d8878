//! Disks that a hostile image may hold, rows 76 to 109 of `tests/rows.md`, and honest ones, row 110.
//!
//! Each is made here, byte by byte, the honest ones by `qemu-img`; none is in the repository.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use ironboot::content::Piece;
use ironboot::content::disk::{DiskContent, probe};
use ironboot::content::{ContentError, HEAD_BYTES, Sample, TAIL_BYTES};
use ironboot::oci::Digest;

#[path = "honest.rs"]
pub(crate) mod honest;

/// A disk that must be refused.
#[derive(Debug)]
pub(crate) struct Hostile {
    pub(crate) row: u32,
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
    /// How the error ends.
    pub(crate) words: String,
}

/// What the gate makes of the file `path`: header, tables, and every byte of the disk.
pub(crate) fn judge(path: &Path) -> Result<DiskContent, ContentError> {
    look(path).and_then(|content| unpack_all(path, content))
}

/// The first half of it: header and tables.
pub(crate) fn look(path: &Path) -> Result<DiskContent, ContentError> {
    let file = File::open(path).unwrap();
    let size_bytes = file.metadata().unwrap().len();
    let tail = size_bytes.min(TAIL_BYTES);
    let piece = |offset, size_bytes| Piece { offset, size_bytes };
    let sample = Sample {
        digest: Digest::of(b"not looked at"),
        head: read_at(&file, piece(0, size_bytes.min(HEAD_BYTES)))?,
        tail: read_at(&file, piece(size_bytes - tail, tail))?,
        size_bytes,
    };
    probe(&sample, &mut |piece| read_at(&file, piece))
}

/// The second: every byte.
pub(crate) fn unpack_all(path: &Path, content: DiskContent) -> Result<DiskContent, ContentError> {
    if let Some(map) = &content.qcow2 {
        let file = File::open(path).unwrap();
        let mut read = |piece| read_at(&file, piece);
        map.unpack(0..map.size_bytes(), &mut read, &mut |_, _| Ok(()))?;
    }
    Ok(content)
}

pub(crate) fn read_at(file: &File, piece: Piece) -> Result<Vec<u8>, ContentError> {
    let mut bytes = vec![0; usize::try_from(piece.size_bytes).unwrap()];
    file.read_exact_at(&mut bytes, piece.offset).unwrap();
    Ok(bytes)
}

/// Where the tables of [`plain`] are, and its clusters of data.
const REFCOUNTS: u64 = 0x1_0000;
const L1: u64 = 0x3_0000;
const L2: u64 = 0x4_0000;
const DATA: u64 = 0x5_0000;
const END: u64 = 0x8_0000;
const SOLE: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

type Patch<'a> = (u64, &'a [u8]);

fn put(image: &mut [u8], patches: &[Patch<'_>]) {
    for (offset, bytes) in patches {
        image[usize::try_from(*offset).unwrap()..][..bytes.len()].copy_from_slice(bytes);
    }
}

/// A version 3 image of 1 MiB with three clusters of data.
fn plain() -> Vec<u8> {
    let mut image = vec![0; usize::try_from(END).unwrap()];
    put(
        &mut image,
        &[
            (0, b"QFI\xfb"),
            (4, &3_u32.to_be_bytes()),
            (20, &16_u32.to_be_bytes()),
            (24, &(1_u64 << 20).to_be_bytes()),
            (36, &1_u32.to_be_bytes()),
            (40, &L1.to_be_bytes()),
            (48, &REFCOUNTS.to_be_bytes()),
            (56, &1_u32.to_be_bytes()),
            (96, &4_u32.to_be_bytes()),
            (100, &112_u32.to_be_bytes()),
            (REFCOUNTS, &(REFCOUNTS + 0x1_0000).to_be_bytes()),
            (L1, &(SOLE | L2).to_be_bytes()),
            (L2, &(SOLE | DATA).to_be_bytes()),
            (L2 + 8, &(SOLE | (DATA + 0x1_0000)).to_be_bytes()),
            (L2 + 16, &(SOLE | (DATA + 0x2_0000)).to_be_bytes()),
        ],
    );
    for cluster in 0..8 {
        let offset = 0x2_0000 + 2 * cluster;
        put(&mut image, &[(offset, &1_u16.to_be_bytes())]);
    }
    image[usize::try_from(DATA).unwrap()..].fill(b'd');
    image
}

/// A header extension.
fn extension(kind: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap();
    let mut bytes = [&kind.to_be_bytes(), &length.to_be_bytes(), data].concat();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

const BACKING_FORMAT: u32 = 0xE279_2ACA;
const DATA_FILE: u32 = 0x4441_5441;
const BITMAPS: u32 = 0x2385_2875;

/// The list as it comes together.
#[derive(Default)]
struct List(Vec<Hostile>);

impl List {
    fn add(&mut self, row: u32, name: &str, content: Vec<u8>, words: &str) {
        self.0.push(Hostile {
            row,
            name: name.to_owned(),
            content,
            words: words.to_owned(),
        });
    }

    /// A qcow2 image with something that it must not have.
    fn qcow2(&mut self, row: u32, name: &str, patches: &[Patch<'_>], words: &str) {
        let mut content = plain();
        put(&mut content, patches);
        self.add(
            row,
            name,
            content,
            &format!("is a qcow2 image with {words}"),
        );
    }

    /// The same with a number of four bytes.
    fn u32(&mut self, row: u32, name: &str, offset: u64, value: u32, words: &str) {
        self.qcow2(row, name, &[(offset, &value.to_be_bytes())], words);
    }

    /// The same with a number of eight bytes.
    fn u64(&mut self, row: u32, name: &str, offset: u64, value: u64, words: &str) {
        self.qcow2(row, name, &[(offset, &value.to_be_bytes())], words);
    }

    /// A qcow2 image that names a backing file.
    fn backing(&mut self, row: u32, name: &str, file: &str, format: Option<&str>) {
        let format = format.map(|format| extension(BACKING_FORMAT, format.as_bytes()));
        self.qcow2(
            row,
            name,
            &[
                (8, &0x1000_u64.to_be_bytes()),
                (16, &u32::try_from(file.len()).unwrap().to_be_bytes()),
                (112, &format.unwrap_or_default()),
                (0x1000, file.as_bytes()),
            ],
            "a backing file",
        );
    }

    /// A raw disk of 1 MiB with the sign of another format.
    fn foreign(&mut self, name: &str, offset: u64, magic: &[u8], format: &str) {
        let mut content = vec![0; 1 << 20];
        put(&mut content, &[(offset, magic)]);
        let words = format!("is in a format that is refused: {format}");
        self.add(106, name, content, &words);
    }
}

/// Every disk that must be refused.
pub(crate) fn hostile() -> Vec<Hostile> {
    let mut list = List::default();
    backing_and_data_files(&mut list);
    headers(&mut list);
    tables(&mut list);
    others(&mut list);
    list.0
}

fn backing_and_data_files(list: &mut List) {
    let raw = Some("raw");
    list.backing(76, "backing-abs", "/etc/passwd", raw);
    list.backing(76, "backing-rel", "../../../../etc/passwd", raw);
    list.backing(76, "backing-nofmt", "/etc/passwd", None);
    list.qcow2(
        76,
        "backing-v2",
        &[
            (4, &2_u32.to_be_bytes()),
            (8, &0x1000_u64.to_be_bytes()),
            (16, &11_u32.to_be_bytes()),
            (72, &[0; 40]),
            (0x1000, b"/etc/passwd"),
        ],
        "version 2; only version 3 is accepted",
    );
    let json = r#"json:{"driver":"raw","file":{"driver":"file","filename":"/etc/passwd"}}"#;
    list.backing(77, "backing-json", json, raw);
    list.backing(78, "backing-nbd", "nbd://127.0.0.1:10809/x", raw);
    list.backing(78, "backing-http", "http://127.0.0.1:10809/x", raw);
    list.backing(78, "backing-ssh", "ssh://127.0.0.1:10809/x", raw);
    list.backing(79, "backing-vvfat", "fat:/etc", None);
    list.backing(79, "backing-vvfat-rw", "fat:rw:/etc", None);
    list.backing(80, "backing-fifo", "fifo", raw);
    list.backing(81, "backing-self", "backing-self.img", Some("qcow2"));
    list.u64(82, "backing-off-only", 8, 0x1000, "a backing file");
    list.backing(83, "backing-1024", &"x".repeat(1024), raw);
    let far = [(8, &(1_u64 << 40).to_be_bytes()[..]), (16, &[0, 0, 0, 9])];
    list.qcow2(83, "backing-far", &far, "a backing file");
    let external = "an external data file";
    for (name, file) in [
        ("data-abs", "/etc/passwd"),
        ("data-rel", "../../etc/passwd"),
        ("data-json", json),
        ("data-nbd", "nbd://127.0.0.1:10809/x"),
    ] {
        let file = extension(DATA_FILE, file.as_bytes());
        list.qcow2(84, name, &[(79, &[4]), (112, &file)], external);
    }
    let file = extension(DATA_FILE, b"/etc/passwd");
    list.qcow2(85, "data-bit-only", &[(79, &[4])], external);
    list.qcow2(85, "data-ext-only", &[(112, &file)], external);
    let v2 = "version 2; only version 3 is accepted";
    list.qcow2(85, "data-v2", &[(7, &[2]), (72, &[0; 40]), (72, &file)], v2);
}

fn headers(list: &mut List) {
    for (row, name, bit) in [
        (86, "incompat-5", 5),
        (86, "incompat-31", 31),
        (86, "incompat-63", 63),
        (87, "dirty", 0),
        (87, "corrupt", 1),
        (87, "extl2", 4),
    ] {
        let words = format!("incompatible features {:#x}", 1_u64 << bit);
        list.u64(row, name, 72, 1 << bit, &words);
    }
    for method in 1..=3 {
        let words = format!("encryption method {method}");
        list.u32(88, &format!("crypt-{method}"), 32, method, &words);
    }
    for bits in [0, 8, 22, 31, 63, 64, 255] {
        let words = format!("clusters of 2^{bits} bytes");
        list.u32(89, &format!("cluster-{bits}"), 20, bits, &words);
    }
    for order in [7, 31] {
        let words = "refcounts of more than 64 bits";
        list.u32(90, &format!("rorder-{order}"), 96, order, words);
    }
    for length in [0, 103, 0x1_0008, u32::MAX] {
        let words = format!("a header of {length} bytes");
        list.u32(91, &format!("hlen-{length}"), 100, length, &words);
    }
    let endless = "header extensions without an end";
    list.u32(91, "hlen-cluster", 100, 0x1_0000, endless);
    let padding = "something in the padding of its header";
    list.qcow2(91, "hlen-padding", &[(105, &[1])], padding);
    let max = [0x68, 0x03, 0xf8, 0x57, 0xff, 0xff, 0xff, 0xff];
    list.qcow2(92, "ext-max", &[(112, &max)], endless);
    let to_the_end = extension(0x6803_F857, &[0; 0x1_0000 - 120]);
    list.qcow2(92, "ext-noend", &[(112, &to_the_end)], endless);
    let unknown = extension(0x1234_5678, b"unknown!");
    let words = "unknown header extension 0x12345678";
    list.qcow2(92, "ext-unknown", &[(112, &unknown)], words);
    for (name, size) in [
        ("size-0", 0),
        ("size-2^50", 1 << 50),
        ("size-2^62", 1 << 62),
        ("size-max", u64::MAX),
        ("size-odd", 513),
    ] {
        list.u64(93, name, 24, size, &format!("a disk of {size} bytes"));
    }
    for (name, entries) in [("l1-0", 0), ("l1-32m", 4 << 20), ("l1-max", u32::MAX)] {
        let words = format!("an L1 table of {entries} entries where 1 are needed");
        list.u32(94, name, 36, entries, &words);
    }
    let outside = "an L1 table outside of the file";
    list.u64(94, "l1-unaligned", 40, L1 + 512, outside);
    list.u64(94, "l1-eof", 40, END, outside);
    list.u64(94, "l1-at0", 40, 0, outside);
    let outside = "a refcount table outside of the file";
    list.u64(95, "rc-0", 48, 0, outside);
    list.u32(95, "rc-clusters-0", 56, 0, outside);
    list.u32(95, "rc-clusters-max", 56, u32::MAX, outside);
    for count in [1, 65537] {
        let words = "internal snapshots";
        list.u32(96, &format!("snap-{count}"), 60, count, words);
    }
    for version in [0, 4] {
        let words = format!("version {version}; only version 3 is accepted");
        list.u32(97, &format!("ver-{version}"), 4, version, &words);
    }
    let bitmaps = extension(BITMAPS, &[0; 24]);
    list.qcow2(101, "bitmaps", &[(112, &bitmaps)], "persistent bitmaps");
    for length in [4, 72, 100] {
        let content = plain()[..length].to_vec();
        let words = "is a qcow2 image with a header that is cut short";
        list.add(102, &format!("trunc-{length}"), content, words);
    }
}

fn tables(list: &mut List) {
    let reserved = "reserved bits in an L2 table";
    let used = "a cluster of data in a cluster that has another use";
    let beyond = "a cluster of data in a cluster beyond the end of the file";
    list.u64(98, "l2-out", L2, SOLE | END, beyond);
    list.u64(98, "l2-hdr", L2, SOLE, reserved);
    list.u64(98, "l2-l1", L2, SOLE | L1, used);
    list.u64(98, "l2-itself", L2, SOLE | L2, used);
    list.u64(98, "l2-refcounts", L2, SOLE | REFCOUNTS, used);
    list.u64(98, "l2-block", L2, SOLE | (REFCOUNTS + 0x1_0000), used);
    list.u64(98, "l2-dup", L2 + 8, SOLE | DATA, used);
    list.u64(98, "l2-reserved", L2, SOLE | DATA | 2, reserved);
    let unaligned = "a cluster of data in a cluster that is not at the start of one";
    list.u64(98, "l2-unaligned", L2, SOLE | (DATA + 512), unaligned);
    let beyond = "an L2 table beyond the end of the file";
    list.u64(98, "l1-entry-out", L1, SOLE | END, beyond);
    let used = "an L2 table in a cluster that has another use";
    list.u64(98, "l1-entry-l1", L1, SOLE | L1, used);
    let reserved = "reserved bits in its L1 table";
    list.u64(98, "l1-entry-reserved", L1, SOLE | L2 | 1, reserved);

    let one = (COMPRESSED | DATA).to_be_bytes();
    let reuse = one.repeat(1024);
    let words = "two compressed clusters in one place";
    let size = (1024_u64 << 16).to_be_bytes();
    list.qcow2(99, "comp-reuse", &[(24, &size), (L2, &reuse)], words);
    let words = format!("a compressed cluster at {DATA} that does not unpack");
    let broken: [Patch<'_>; 3] = [(L2, &one), (L2 + 8, &[0; 16]), (DATA, &[0xff; 512])];
    list.qcow2(100, "comp-bad", &broken, &words);
    let zstd: [Patch<'_>; 2] = [(79, &[8]), (104, &[1])];
    list.qcow2(
        100,
        "zstd-bad",
        &[broken, [zstd[0], zstd[1], (DATA, &[0xff; 4])]].concat(),
        &words,
    );
    // A frame that asks for a window of 3.75 TiB.
    let window = (DATA, b"\x28\xb5\x2f\xfd\x00\xff".as_slice());
    list.qcow2(
        100,
        "zstd-window",
        &[broken, [zstd[0], zstd[1], window]].concat(),
        &words,
    );
    list.qcow2(
        100,
        "comp-7",
        &[(79, &[8]), (104, &[7])],
        "compression type 7",
    );
    let without: [Patch<'_>; 2] = [(79, &[8]), (103, &[104])];
    list.qcow2(100, "zstd-bit-nofield", &without, "compression type 0");
}

const DESCRIPTOR: &str = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
    createType=\"monolithicFlat\"\nRW 2048 FLAT \"/etc/passwd\" 0\n";

fn others(list: &mut List) {
    let mut declared_raw = plain();
    put(
        &mut declared_raw,
        &[
            (8, &0x1000_u64.to_be_bytes()),
            (16, &11_u32.to_be_bytes()),
            (0x1000, b"/etc/passwd"),
        ],
    );
    let words = "is a qcow2 image with a backing file";
    list.add(103, "raw-is-qcow2", declared_raw, words);
    let refused = "is in a format that is refused: VMDK";
    let text = |text: String, size: usize| {
        let mut bytes = text.into_bytes();
        bytes.resize(size, b'\n');
        bytes
    };
    list.add(104, "vmdk", text(DESCRIPTOR.to_owned(), 4096), refused);
    let (_, version) = DESCRIPTOR.split_once('\n').unwrap();
    let comments = format!("# a disk\n\n# of mine\n{version}");
    list.add(104, "vmdk-comments", text(comments, 4096), refused);
    let parent = format!("{DESCRIPTOR}parentFileNameHint=\"/etc/passwd\"\n");
    list.add(104, "vmdk-parent", text(parent, 4096), refused);
    list.add(
        105,
        "vmdk-newlines",
        text(DESCRIPTOR.to_owned(), 1 << 20),
        refused,
    );
    let late = format!("{}{DESCRIPTOR}", "\n".repeat(1 << 20));
    list.add(
        105,
        "vmdk-after-newlines",
        text(late, (1 << 20) + 4096),
        refused,
    );
    let tail = (1 << 20) - 512;
    for (name, offset, magic, format) in [
        ("qcow1", 0, &b"QFI\xfb\0\0\0\x01"[..], "qcow1"),
        ("kdmv", 0, b"KDMV", "VMDK"),
        ("cowd", 0, b"COWD", "VMDK"),
        ("qed", 0, b"QED\0", "QED"),
        ("vhdx", 0, b"vhdxfile", "VHDX"),
        ("vpc-head", 0, b"conectix", "VHD"),
        ("vpc-tail", tail, b"conectix", "VHD"),
        ("vdi", 0x40, &[0x7f, 0x10, 0xda, 0xbe], "VDI"),
        ("luks1", 0, b"LUKS\xba\xbe\0\x01", "LUKS"),
        ("luks2", 0, b"LUKS\xba\xbe\0\x02", "LUKS"),
        ("parallels", 0, b"WithoutFreeSpace", "Parallels"),
        ("parallels-ext", 0, b"WithouFreSpacExt", "Parallels"),
        (
            "cloop",
            0,
            b"#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0",
            "cloop",
        ),
        ("dmg", tail, b"koly", "DMG"),
        ("bochs", 0, b"Bochs Virtual HD Image", "Bochs"),
        ("gzip", 0, b"\x1f\x8b\x08", "gzip"),
        ("xz", 0, b"\xfd7zXZ\0", "xz"),
        ("zstd", 0, b"\x28\xb5\x2f\xfd", "zstd"),
    ] {
        list.foreign(name, offset, magic, format);
    }
    // A volume descriptor where the header's cluster ends, and where it is data.
    let two = |name: &str| format!("could be read as qcow2 and as {name}");
    for (row, name, patch, second) in [
        (107, "iso-qcow2", (0x8001, &b"CD001"[..]), "ISO 9660"),
        (108, "qcow2-mbr", (510, b"\x55\xaa"), "MBR"),
        (108, "qcow2-gpt", (510, b"\x55\xaaEFI PART"), "GPT"),
        (108, "qcow2-vhd", (END - 512, b"conectix"), "VHD"),
    ] {
        let mut content = plain();
        put(&mut content, &[patch]);
        list.add(row, name, content, &two(second));
    }
    let mut gpt = honest::gpt_disk();
    put(&mut gpt, &[(0x40, &[0x7f, 0x10, 0xda, 0xbe])]);
    list.add(108, "gpt-vdi", gpt, "could be read as VDI and as GPT");
    let mut gpt = honest::gpt_disk();
    let foot = u64::try_from(gpt.len() - 512).unwrap();
    put(&mut gpt, &[(foot, b"conectix")]);
    list.add(108, "gpt-vhd", gpt, "could be read as VHD and as GPT");
    let odd = "has 1000001 bytes, which is not a multiple of 512";
    list.add(109, "unaligned", vec![0; 1_000_001], odd);
}
