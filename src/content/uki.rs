//! What is in a unified kernel image: a kernel, its initramfs and its command line, as sections of
//! an EFI program whose own code is a stub.
//!
//! Specifications: UAPI.5 *Unified Kernel Image*, and systemd-stub(7).

use crate::content::pe::{self, Pe, Section};
use crate::content::{ContentError, Piece, Sample, initramfs, kernel};
use crate::oci::{Architecture, Digest, Printable};

const ROLE: &str = "uki";
const KIND: &str = "a unified kernel image";
/// Most bytes of a section of text.
const MAX_TEXT_BYTES: u64 = 64 << 10;
/// Bytes of the kernel that are looked at.
const KERNEL_HEAD_BYTES: u64 = 64 << 10;

/// What is in a unified kernel image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UkiContent {
    /// The kernel.
    pub linux: Piece,
    /// Whether the kernel boots without firmware as well.
    pub boots_directly: bool,
    /// Microcode and initramfs in the order in which the kernel is given them; may be empty.
    pub initramfs: Vec<Piece>,
    /// The command line as it is in the file.
    pub command_line: Option<Vec<u8>>,
    /// The operating system's name for people, fit to print.
    pub os_name: Option<String>,
    /// The kernel's release as `uname -r` prints it, fit to print.
    pub kernel_release: Option<String>,
    /// Major version of systemd-stub; none if the stub is another one.
    pub stub_version: Option<u32>,
    /// Whether there is a signature in the file; whose, and whether it holds, is not looked at.
    pub is_signed: bool,
}

/// Reads what is in a unified kernel image. `read_at` returns the bytes of a part of the blob, of
/// 64 KiB at most.
///
/// Errors if it is none, if it is not for `architecture`, or if its kernel is not.
pub fn read<E: From<ContentError>>(
    sample: &Sample,
    architecture: &Architecture,
    read_at: &mut dyn FnMut(Piece) -> Result<Vec<u8>, E>,
) -> Result<UkiContent, E> {
    let blob = sample.digest;
    let uki = Uki::open(sample, architecture)?;
    let mut read_whole = |piece: Piece| -> Result<Vec<u8>, E> {
        let bytes = read_at(piece)?;
        if u64::try_from(bytes.len()) == Ok(piece.size_bytes) {
            return Ok(bytes);
        }
        let what = "a section that ends early";
        Err(ContentError::BadProgram { blob, what }.into())
    };

    let linux = uki
        .section(".linux")?
        .ok_or_else(|| sample.mismatch(ROLE, KIND))?;
    let head = Piece {
        size_bytes: linux.size_bytes.min(KERNEL_HEAD_BYTES),
        ..linux
    };
    let kernel = Sample {
        digest: blob,
        head: read_whole(head)?,
        tail: Vec::new(),
        size_bytes: linux.size_bytes,
    };
    let boots_directly = kernel::check_in_uki(&kernel, architecture)?;

    if let Some(initrd) = uki.section(".initrd")? {
        let head = Piece {
            size_bytes: initrd.size_bytes.min(KERNEL_HEAD_BYTES),
            ..initrd
        };
        let initramfs = Sample {
            digest: blob,
            head: read_whole(head)?,
            tail: Vec::new(),
            size_bytes: initrd.size_bytes,
        };
        initramfs::check_as("initramfs in uki", &initramfs)?;
    }

    let mut text = |name| match uki.text(name)? {
        Some(piece) => read_whole(piece).map(Some),
        None => Ok(None),
    };
    Ok(UkiContent {
        linux,
        boots_directly,
        initramfs: [uki.section(".ucode")?, uki.section(".initrd")?]
            .into_iter()
            .flatten()
            .collect(),
        command_line: text(".cmdline")?,
        os_name: text(".osrel")?.as_deref().and_then(pretty_name),
        kernel_release: text(".uname")?.as_deref().and_then(printable),
        stub_version: text(".sdmagic")?.as_deref().and_then(stub_version),
        is_signed: uki.is_signed,
    })
}

/// An EFI program for the right machine; its sections are found, not yet read.
struct Uki {
    blob: Digest,
    /// What all profiles have in common, and what the first profile has instead, which is the one
    /// that boots when nothing asks for another.
    base: Vec<Section>,
    profile: Vec<Section>,
    is_signed: bool,
}

impl Uki {
    fn open(sample: &Sample, architecture: &Architecture) -> Result<Self, ContentError> {
        sample.refuse_zeros(ROLE)?;
        if !sample.has(0, b"MZ") {
            return Err(sample.mismatch(ROLE, KIND));
        }
        if let Some(second) = kernel::other_loader(sample) {
            return Err(ContentError::TwoFormats {
                role: ROLE,
                blob: sample.digest,
                first: KIND,
                second,
            });
        }
        let program = pe::parse(sample)?;
        let actual = Architecture::from(program.machine);
        if actual != *architecture {
            return Err(ContentError::WrongArchitecture {
                role: ROLE,
                blob: sample.digest,
                expected: architecture.clone(),
                actual,
            });
        }
        if !program.is_efi_application() {
            return Err(ContentError::BadProgram {
                blob: sample.digest,
                what: "a subsystem that firmware does not start",
            });
        }
        let Pe {
            sections,
            is_signed,
            ..
        } = program;
        let mut profiles = sections.split(|section| section.name == ".profile");
        Ok(Self {
            blob: sample.digest,
            base: profiles.next().unwrap_or_default().to_vec(),
            profile: profiles.next().unwrap_or_default().to_vec(),
            is_signed,
        })
    }

    /// The one section of a name.
    fn section(&self, name: &'static str) -> Result<Option<Piece>, ContentError> {
        let one_of = |sections: &[Section]| {
            let mut found = sections.iter().filter(|section| section.name == name);
            match (found.next(), found.next()) {
                (Some(_), Some(_)) => Err(ContentError::DuplicateSection {
                    blob: self.blob,
                    section: name,
                }),
                (first, _) => Ok(first.map(|section| Piece {
                    offset: section.offset,
                    size_bytes: section.size_bytes,
                })),
            }
        };
        Ok(one_of(&self.profile)?.or(one_of(&self.base)?))
    }

    /// The same for a section of text.
    fn text(&self, name: &'static str) -> Result<Option<Piece>, ContentError> {
        let piece = self.section(name)?;
        match piece {
            Some(Piece { size_bytes, .. }) if size_bytes > MAX_TEXT_BYTES => {
                Err(ContentError::LongSection {
                    blob: self.blob,
                    section: name,
                    size_bytes,
                    max_bytes: MAX_TEXT_BYTES,
                })
            }
            _ => Ok(piece),
        }
    }
}

/// Text without the NULs and blanks around it, fit to print; none if nothing is left.
fn printable(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let text = text.trim_matches(|c: char| c == '\0' || c.is_whitespace());
    (!text.is_empty()).then(|| Printable(text).to_string())
}

/// The operating system's name for people. Format: os-release(5), shell assignments.
fn pretty_name(os_release: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(os_release);
    let value = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("PRETTY_NAME="))
        .next_back()?;
    let quoted = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    let mut name = String::new();
    let mut escaped = false;
    for c in quoted.unwrap_or(value).chars() {
        escaped = c == '\\' && !escaped;
        if !escaped {
            name.push(c);
        }
    }
    printable(name.as_bytes())
}

/// The major version in `#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####`.
fn stub_version(text: &[u8]) -> Option<u32> {
    let text = String::from_utf8_lossy(text);
    let (_, version) = text.split_once("LoaderInfo: systemd-stub ")?;
    let version = version.trim_start_matches('v');
    let major: String = version.chars().take_while(char::is_ascii_digit).collect();
    major.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{Piece, UkiContent, pretty_name, read, stub_version};
    use crate::content::samples::{arm64_kernel, patch, piece_of, sample, uki, uki_of, x86_kernel};
    use crate::content::{ContentError, HEAD_BYTES};
    use crate::oci::Architecture;

    fn open(content: &[u8], architecture: &Architecture) -> Result<UkiContent, ContentError> {
        let mut read_at = |piece: Piece| Ok(piece_of(content, piece));
        read(&sample(content), architecture, &mut read_at)
    }

    fn refusal(content: &[u8]) -> String {
        let error = open(content, &Architecture::Amd64).unwrap_err();
        let blob = sample(content).digest.to_string();
        error.to_string().replace(&blob, "X")
    }

    #[test]
    fn what_is_no_unified_kernel_image_is_refused() {
        let kernel = x86_kernel();
        let other = arm64_kernel();
        let long = vec![b'x'; (64 << 10) + 1];
        let mut driver = uki(&[(".linux", &kernel)]);
        driver[0x80 + 24 + 68] = 11;
        let nested = uki(&[(".linux", &kernel)]);
        let cases = [
            (vec![0; 4096], "uki X is all zeros"),
            (
                b"#!ipxe".to_vec(),
                "uki X is not a unified kernel image but a script",
            ),
            (
                kernel.clone(),
                "uki X is not a unified kernel image but an x86 kernel",
            ),
            (
                uki(&[]),
                "uki X is not a unified kernel image but an EFI program",
            ),
            (
                driver,
                "EFI program X has a subsystem that firmware does not start",
            ),
            (
                patch(uki(&[(".linux", &kernel)]), &[(4, b"zimg")]),
                "uki X could be read as a unified kernel image and as an EFI zboot kernel",
            ),
            (
                uki(&[(".linux", &kernel), (".text", b"\x02\xb0\xad\x1b")]),
                "uki X could be read as a unified kernel image and as a multiboot kernel",
            ),
            (
                b"MZ".to_vec(),
                "EFI program X has a header that is cut short",
            ),
            (
                uki_of(0xaa64, &[(".linux", &other)]),
                "uki X is for arm64, not amd64",
            ),
            (
                uki_of(0x14c, &[(".linux", &kernel)]),
                "uki X is for 386, not amd64",
            ),
            (
                uki(&[(".linux", &other)]),
                "kernel in uki X is for arm64, not amd64",
            ),
            (
                uki(&[(".linux", &[0; 4096])]),
                "kernel in uki X is all zeros",
            ),
            (
                uki(&[(".linux", &nested)]),
                "kernel in uki X is not a Linux kernel that can be loaded directly but \
                 a unified kernel image",
            ),
            (
                uki(&[(".linux", &kernel), (".linux", &kernel)]),
                "uki X has more than one section .linux",
            ),
            (
                uki(&[(".linux", &kernel), (".cmdline", b"a"), (".cmdline", b"b")]),
                "uki X has more than one section .cmdline",
            ),
            (
                uki(&[(".linux", &kernel), (".cmdline", &long)]),
                "uki X has 65537 bytes in its section .cmdline; the most is 65536",
            ),
            (
                uki(&[(".linux", &kernel), (".initrd", &[0; 4096])]),
                "initramfs in uki X is all zeros",
            ),
        ];
        for (content, expected) in cases {
            assert_eq!(refusal(&content), expected);
        }
    }

    #[test]
    fn all_that_the_stub_reads_is_found() {
        let content = uki(&[
            (
                ".sdmagic",
                b"#### LoaderInfo: systemd-stub 257.13-1~deb13u1 ####\0",
            ),
            (
                ".osrel",
                b"ID=x\nPRETTY_NAME=\"Test OS \\\"1\\\" \x1b[31m\"\n",
            ),
            (".uname", b"6.12.1-amd64\0"),
            (".cmdline", b"console=ttyS0 \0"),
            (".initrd", b"BZh9 initramfs"),
            (".linux", &x86_kernel()),
            (".ucode", b"070701 microcode"),
        ]);
        let found = open(&content, &Architecture::Amd64).unwrap();
        let text = |piece| String::from_utf8(piece_of(&content, piece)).unwrap();
        let initramfs: Vec<String> = found.initramfs.iter().copied().map(text).collect();
        assert_eq!(initramfs, ["070701 microcode", "BZh9 initramfs"]);
        assert_eq!(piece_of(&content, found.linux), x86_kernel());
        let expected = UkiContent {
            linux: found.linux,
            boots_directly: true,
            initramfs: found.initramfs.clone(),
            command_line: Some(b"console=ttyS0 \0".to_vec()),
            os_name: Some("Test OS \"1\" \\u{1b}[31m".to_owned()),
            kernel_release: Some("6.12.1-amd64".to_owned()),
            stub_version: Some(257),
            is_signed: false,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_kernel_that_unpacks_itself_is_for_firmware_only() {
        let mut packed = uki_of(0xaa64, &[(".gzdata", b"packed")]);
        packed[4..8].copy_from_slice(b"zimg");
        let content = uki_of(0xaa64, &[(".linux", &packed)]);
        let found = open(&content, &Architecture::Arm64).unwrap();
        assert!(!found.boots_directly);
        let content = uki_of(0x8664, &[(".linux", &packed)]);
        let error = open(&content, &Architecture::Amd64).unwrap_err();
        assert!(matches!(error, ContentError::WrongArchitecture { .. }));
    }

    #[test]
    fn a_kernel_alone_is_enough() {
        let content = uki_of(0xaa64, &[(".linux", &arm64_kernel())]);
        let found = open(&content, &Architecture::Arm64).unwrap();
        let expected = UkiContent {
            linux: found.linux,
            boots_directly: true,
            initramfs: Vec::new(),
            command_line: None,
            os_name: None,
            kernel_release: None,
            stub_version: None,
            is_signed: false,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_first_profile_stands_for_what_all_have_in_common() {
        let content = uki(&[
            (".linux", &x86_kernel()),
            (".cmdline", b"base"),
            (".uname", b"6"),
            (".profile", b"ID=main"),
            (".cmdline", b"first"),
            (".profile", b"ID=reset"),
            (".cmdline", b"second"),
            (".uname", b"7"),
        ]);
        let found = open(&content, &Architecture::Amd64).unwrap();
        assert_eq!(found.command_line.as_deref(), Some(b"first".as_slice()));
        assert_eq!(found.kernel_release.as_deref(), Some("6"));
    }

    #[test]
    fn no_more_is_asked_for_than_is_needed() {
        let mut kernel = x86_kernel();
        kernel.resize(1 << 20, 7);
        let content = uki(&[(".linux", &kernel), (".cmdline", b"quiet")]);
        let mut asked = Vec::new();
        let mut read_at = |piece: Piece| {
            asked.push(piece.size_bytes);
            Ok::<_, ContentError>(piece_of(&content, piece))
        };
        let found = read(&sample(&content), &Architecture::Amd64, &mut read_at).unwrap();
        assert_eq!(found.linux.size_bytes, 1 << 20);
        assert_eq!(asked, [64 << 10, 5]);
        assert!(sample(&content).size_bytes > HEAD_BYTES);

        let mut short = |piece: Piece| Ok(piece_of(&content, piece)[1..].to_vec());
        let error: ContentError =
            read(&sample(&content), &Architecture::Amd64, &mut short).unwrap_err();
        assert!(error.to_string().ends_with("a section that ends early"));
    }

    #[test]
    fn names_and_versions_are_read_as_they_are_written() {
        for (os_release, expected) in [
            ("PRETTY_NAME=Plain", Some("Plain")),
            (
                "PRETTY_NAME='Garden Linux 1592'\nPRETTY_NAME=\"Later\"",
                Some("Later"),
            ),
            ("PRETTY_NAME=\"a \\\\ b\"", Some("a \\ b")),
            ("PRETTY_NAME=\"\"", None),
            ("PRETTY_NAME=\"", Some("\"")),
            ("NAME=x", None),
        ] {
            assert_eq!(pretty_name(os_release.as_bytes()).as_deref(), expected);
        }
        for (magic, expected) in [
            (
                "#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####",
                Some(252),
            ),
            ("#### LoaderInfo: systemd-stub v254 ####", Some(254)),
            ("#### LoaderInfo: systemd-boot 254 ####", None),
            ("#### LoaderInfo: systemd-stub 99999999999 ####", None),
            ("", None),
        ] {
            assert_eq!(stub_version(magic.as_bytes()), expected, "{magic}");
        }
    }
}
