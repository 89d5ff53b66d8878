//! What an initramfs layer really is: cpio archives, one of them perhaps compressed.
//!
//! Nothing is unpacked. Format: Linux
//! Documentation/driver-api/early-userspace/buffer-format.rst, and the table of lib/decompress.c.

use crate::content::{ContentError, Sample};

/// Bytes of the header of a `newc` or `crc` entry: a magic number and 13 numbers in 8 digits.
const ENTRY_BYTES: usize = 110;

/// How an initramfs, or the archive after its microcode, is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip.
    Gzip,
    /// xz.
    Xz,
    /// Zstandard.
    Zstd,
    /// LZ4 in its legacy frame; the kernel knows no other.
    Lz4,
    /// LZMA alone.
    Lzma,
    /// bzip2.
    Bzip2,
    /// LZO in lzop's frame.
    Lzop,
}

/// Magic numbers that tell a compression alone.
const MAGIC: &[(&[u8], Compression)] = &[
    (b"\x1f\x8b", Compression::Gzip),
    (b"\xfd7zXZ\0", Compression::Xz),
    (b"\x28\xb5\x2f\xfd", Compression::Zstd),
    (b"\x02\x21\x4c\x18", Compression::Lz4),
    (b"BZh", Compression::Bzip2),
    (b"\x89LZO\0\r\n\x1a\n", Compression::Lzop),
];

impl Compression {
    /// The word in messages and in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
            Self::Lzma => "lzma",
            Self::Bzip2 => "bzip2",
            Self::Lzop => "lzop",
        }
    }

    /// The compression that `bytes` start with.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        MAGIC
            .iter()
            .find(|(magic, _)| bytes.starts_with(magic))
            .map(|(_, compression)| *compression)
            .or_else(|| is_lzma(bytes).then_some(Self::Lzma))
    }

    /// The words for such a file.
    pub(super) fn what(self) -> &'static str {
        match self {
            Self::None => "a cpio archive",
            Self::Gzip => "a gzip file",
            Self::Xz => "an xz file",
            Self::Zstd => "a zstd file",
            Self::Lz4 => "an lz4 file",
            Self::Lzma => "an lzma file",
            Self::Bzip2 => "a bzip2 file",
            Self::Lzop => "an lzop file",
        }
    }
}

/// LZMA alone has no magic number: usual properties, and a size that is unknown or below 1 TiB.
/// Format: the LZMA SDK's lzma.txt.
fn is_lzma(bytes: &[u8]) -> bool {
    bytes.starts_with(b"\x5d\0\0")
        && bytes
            .get(5..13)
            .is_some_and(|size| size.iter().all(|byte| *byte == 0xff) || size.ends_with(b"\0\0\0"))
}

/// Checks that Linux can unpack an initramfs. Returns how its last part is compressed, as far as
/// the sample reaches.
///
/// Plain archives are walked entry by entry, since nothing else says where the next part starts:
/// microcode stands in front of what is compressed.
pub fn check(sample: &Sample) -> Result<Compression, ContentError> {
    check_as("initramfs", sample)
}

/// The same, where `role` is what it is called in errors.
pub(super) fn check_as(role: &'static str, sample: &Sample) -> Result<Compression, ContentError> {
    sample.refuse_zeros(role)?;
    let mut offset = 0;
    loop {
        // There may be zeros between two parts. Of what is beyond the sample nothing is known.
        let rest = sample.head.get(offset..).unwrap_or_default();
        let is_first = offset == 0;
        let Some(zeros) = rest.iter().position(|byte| *byte != 0) else {
            return if is_first {
                Err(sample.mismatch(role, "an initramfs"))
            } else {
                Ok(Compression::None)
            };
        };
        let rest = &rest[zeros..];
        offset += zeros;
        if let Some(compression) = Compression::of(rest) {
            return Ok(compression);
        }
        if rest.len() < ENTRY_BYTES && is_cut(sample) {
            return Ok(Compression::None);
        }
        offset = match next_entry(sample, offset, rest) {
            Some(next) => next,
            None if is_first && !is_cpio(rest) => {
                return Err(sample.mismatch(role, "an initramfs"));
            }
            None => {
                return Err(ContentError::BrokenArchive {
                    role,
                    blob: sample.digest,
                    offset: u64::try_from(offset).unwrap_or(u64::MAX),
                });
            }
        };
    }
}

fn is_cut(sample: &Sample) -> bool {
    u64::try_from(sample.head.len()).is_ok_and(|length| length < sample.size_bytes)
}

fn is_cpio(bytes: &[u8]) -> bool {
    bytes.starts_with(b"070701") || bytes.starts_with(b"070702")
}

/// Where what follows the entry at `offset` starts; none if this is no entry of the file. Linux
/// takes archives at multiples of 4 only.
fn next_entry(sample: &Sample, offset: usize, rest: &[u8]) -> Option<usize> {
    let header = rest.get(..ENTRY_BYTES)?;
    let digits = header.get(6..)?;
    if !is_cpio(header) || !offset.is_multiple_of(4) || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let number = |index: usize| {
        let digits = digits.get(8 * index..8 * (index + 1))?;
        usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let (content_bytes, name_bytes) = (number(6)?, number(11)?);
    let name = offset.checked_add(ENTRY_BYTES)?;
    let content = name.checked_add(name_bytes)?.checked_next_multiple_of(4)?;
    let end = content.checked_add(content_bytes)?;
    if u64::try_from(end).ok()? > sample.size_bytes {
        return None;
    }
    end.checked_next_multiple_of(4)
}

#[cfg(test)]
mod tests {
    use super::{Compression, check};
    use crate::content::samples::{cpio, patched, sample};
    use crate::content::{ContentError, HEAD_BYTES};

    fn compressed() -> Vec<(Vec<u8>, Compression)> {
        let lzma = b"\x5d\0\0\x80\0\xff\xff\xff\xff\xff\xff\xff\xff";
        [
            (b"\x1f\x8b\x08".as_slice(), Compression::Gzip),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x02\x21\x4c\x18", Compression::Lz4),
            (lzma, Compression::Lzma),
            (b"BZh9", Compression::Bzip2),
            (b"\x89LZO\0\r\n\x1a\n", Compression::Lzop),
        ]
        .map(|(magic, compression)| ([magic, &[0xa5; 300]].concat(), compression))
        .to_vec()
    }

    #[test]
    fn what_linux_does_not_unpack_is_refused_by_name() {
        for (content, actual) in [
            (b"a text".to_vec(), "text"),
            (
                [b"hsqs".as_slice(), &[1; 500]].concat(),
                "a squashfs file system",
            ),
            (b"070707000000".to_vec(), "an old cpio archive"),
            ([b"\x7fELF".as_slice(), &[1; 500]].concat(), "an ELF file"),
            ([[0; 512], [9; 512]].concat(), "something unknown"),
            (
                patched(256 << 10, &[((256 << 10) - 1, &[1])]),
                "something unknown",
            ),
        ] {
            let sample = sample(&content);
            let expected = ContentError::Mismatch {
                role: "initramfs",
                blob: sample.digest,
                expected: "an initramfs",
                actual,
            };
            assert_eq!(check(&sample), Err(expected));
        }
        let zeros = check(&sample(&[0; 512])).unwrap_err();
        assert!(matches!(
            zeros,
            ContentError::Zeros {
                role: "initramfs",
                ..
            }
        ));
    }

    #[test]
    fn a_broken_archive_is_refused_where_it_breaks() {
        let archive = cpio(&[("early", b"12345"), ("TRAILER!!!", b"")]);
        // The second entry's header follows 110 + 6 + 5 bytes, each part padded.
        let mut digits = archive.clone();
        digits[124 + 20] = b'g';
        let mut odd = archive.clone();
        odd.extend(b"\0\0".iter().chain(&archive));
        let cases = [
            ([b"070701".as_slice(), &[b'i'; 3000]].concat(), 0),
            (archive[..100].to_vec(), 0),
            (archive[..118].to_vec(), 0),
            (digits, 124),
            ([archive.as_slice(), b"\0\0\0\0junk"].concat(), 252),
            (odd, 250),
        ];
        for (content, offset) in cases {
            let sample = sample(&content);
            let blob = sample.digest;
            let expected = ContentError::BrokenArchive {
                role: "initramfs",
                blob,
                offset,
            };
            assert_eq!(check(&sample), Err(expected));
        }
    }

    #[test]
    fn every_compression_is_known_with_and_without_microcode() {
        let microcode = cpio(&[
            ("kernel/x86/microcode/AuthenticAMD.bin", &[7; 999]),
            ("TRAILER!!!", b""),
        ]);
        assert_eq!(check(&sample(&microcode)), Ok(Compression::None));
        for (content, compression) in compressed() {
            assert_eq!(check(&sample(&content)), Ok(compression));
            for padding in [0, 4, 512] {
                let both = [microcode.as_slice(), &vec![0; padding], &content].concat();
                assert_eq!(check(&sample(&both)), Ok(compression), "{padding}");
            }
        }
    }

    #[test]
    fn what_ends_beyond_the_sample_is_taken_as_it_begins() {
        let head = usize::try_from(HEAD_BYTES).unwrap();
        // The first file ends beyond the sample, with it, and just before it.
        for length in (head - 300..head + 300).step_by(3) {
            let mut content = cpio(&[("a", &vec![7; length]), ("TRAILER!!!", b"")]);
            content.extend(b"\x1f\x8b");
            let found = check(&sample(&content)).unwrap();
            assert!(matches!(found, Compression::None | Compression::Gzip));
        }
    }
}
