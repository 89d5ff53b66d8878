//! What a kernel layer really is.
//!
//! A zero kernel or one of another machine is taken by QEMU without a word, and then nothing
//! happens for ever. And QEMU has loaders for more than Linux, which would parse in the host's
//! process what the image's author wrote: nothing of theirs gets through here.

use miniz_oxide::inflate::decompress_to_vec_with_limit;

use crate::content::{ContentError, Sample, partitions, pe};
use crate::oci::Architecture;

const GZIP: &[u8] = b"\x1f\x8b";
/// Where an arm64 kernel has its magic number, and the number.
const ARM64_AT: usize = 0x38;
const ARM64: &[u8] = b"ARM\x64";

/// What QEMU looks for before it looks for an arm64 kernel, and a file could be both.
const BEFORE_LINUX: &[(usize, &[u8], &str)] = &[
    (0, b"\x7fELF", "an ELF file"),
    (0, b"\x27\x05\x19\x56", "a U-Boot image"),
    (0, b"#!", "a script"),
    (4, b"zimg", "an EFI zboot kernel"),
    (0, GZIP, "a gzip file"),
];

/// Magic numbers of multiboot's two versions, and how far into a file each may stand.
const MULTIBOOT: &[(&[u8], usize)] = &[
    (b"\x02\xb0\xad\x1b", 8 << 10),
    (b"\xd6\x50\x52\xe8", 32 << 10),
];

/// The words for a program with such a header.
const MULTIBOOT_KERNEL: &str = "a multiboot kernel";

/// Checks that QEMU can load a kernel on `architecture`.
///
/// Formats: Linux Documentation/arch/x86/boot.rst and Documentation/arch/arm64/booting.rst. An
/// arm64 kernel may be compressed by gzip, which QEMU unpacks. EFI zboot kernels are refused: QEMU
/// before 8.0 does not load them.
pub fn check(sample: &Sample, architecture: &Architecture) -> Result<(), ContentError> {
    let actual = if holds_arm64(sample) {
        Some(Architecture::Arm64)
    } else {
        machine(sample)
    };
    verdict("kernel", sample, architecture, actual)
}

/// Checks the start of the kernel in a unified kernel image, whose stub unpacks nothing: it starts
/// the kernel as the EFI program that it is. Tells whether QEMU would load it as well, which it
/// does not where the kernel is packed into an EFI program that unpacks itself (zboot).
pub(super) fn check_in_uki(
    sample: &Sample,
    architecture: &Architecture,
) -> Result<bool, ContentError> {
    let is_zboot = sample.has(0, b"MZ") && sample.has(4, b"zimg");
    let actual = if is_zboot {
        Some(pe::parse(sample)?.machine.into())
    } else {
        machine(sample)
    };
    verdict("kernel in uki", sample, architecture, actual)?;
    Ok(!is_zboot)
}

fn verdict(
    role: &'static str,
    sample: &Sample,
    expected: &Architecture,
    actual: Option<Architecture>,
) -> Result<(), ContentError> {
    sample.refuse_zeros(role)?;
    let Some(actual) = actual else {
        return Err(sample.mismatch(role, "a Linux kernel that can be loaded directly"));
    };
    if actual == *expected {
        return Ok(());
    }
    Err(ContentError::WrongArchitecture {
        role,
        blob: sample.digest,
        expected: expected.clone(),
        actual,
    })
}

/// The words for what QEMU would take an EFI program for, that is handed to it as a kernel.
pub(super) fn other_loader(sample: &Sample) -> Option<&'static str> {
    before_linux(sample).or_else(|| is_multiboot(&sample.head).then_some(MULTIBOOT_KERNEL))
}

/// The words for what QEMU looks for before it looks for an arm64 kernel.
fn before_linux(sample: &Sample) -> Option<&'static str> {
    BEFORE_LINUX
        .iter()
        .find(|(offset, magic, _)| sample.has(*offset, magic))
        .map(|(.., what)| *what)
}

/// The words for a program or a kernel of any kind.
pub(super) fn program(sample: &Sample) -> Option<&'static str> {
    match machine(sample) {
        Some(Architecture::Amd64) => return Some("an x86 kernel"),
        Some(_) => return Some("an arm64 kernel"),
        None => {}
    }
    // Boot loaders in front of the first partition have such a header, too.
    if is_multiboot(&sample.head) && partitions::read(sample).is_none() {
        return Some(MULTIBOOT_KERNEL);
    }
    match before_linux(sample) {
        Some(what) => Some(what),
        None if is_uki(sample) => Some("a unified kernel image"),
        None if sample.has(0, b"MZ") => Some("an EFI program"),
        None => None,
    }
}

/// The machine of a kernel as it would be loaded: not packed, and nothing else before.
fn machine(sample: &Sample) -> Option<Architecture> {
    if before_linux(sample).is_some() || is_uki(sample) {
        None
    } else if sample.has(0x202, b"HdrS") && sample.has(0x1fe, b"\x55\xaa") {
        Some(Architecture::Amd64)
    } else if sample.has(ARM64_AT, ARM64) {
        Some(Architecture::Arm64)
    } else {
        None
    }
}

fn is_uki(sample: &Sample) -> bool {
    sample.has(0, b"MZ") && pe::parse(sample).is_ok_and(|program| program.has(".linux"))
}

/// Tells whether a multiboot header is where one may be; it is aligned to 4 bytes.
fn is_multiboot(head: &[u8]) -> bool {
    MULTIBOOT.iter().any(|(magic, within)| {
        let (words, _) = head.get(..*within).unwrap_or(head).as_chunks::<4>();
        words.iter().any(|word| word == magic)
    })
}

/// Tells whether a gzip file starts with an arm64 kernel: its first 64 bytes are unpacked.
fn holds_arm64(sample: &Sample) -> bool {
    let unpack = |deflated: &[u8]| {
        // That there is more is an error to the library; it hands out what it has got.
        decompress_to_vec_with_limit(deflated, ARM64_AT + 8).unwrap_or_else(|error| error.output)
    };
    gzip_body(&sample.head)
        .map(unpack)
        .and_then(|start| start.get(ARM64_AT..).map(|rest| rest.starts_with(ARM64)))
        .unwrap_or(false)
}

/// What follows the header of a gzip file. Format: RFC 1952, section 2.3.
fn gzip_body(head: &[u8]) -> Option<&[u8]> {
    let fixed = head.strip_prefix(GZIP)?;
    let (&[method, flags, ..], mut rest) = fixed.split_first_chunk::<8>()?;
    if method != 8 || flags & 0xe0 != 0 {
        return None;
    }
    if flags & 4 != 0 {
        let (length, extra) = rest.split_first_chunk()?;
        rest = extra.get(usize::from(u16::from_le_bytes(*length))..)?;
    }
    // The file's name and a comment.
    for flag in [8, 16] {
        if flags & flag != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    if flags & 2 != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::{Architecture, check, check_in_uki};
    use crate::content::identify::identify;
    use crate::content::samples::{
        arm64_kernel, gzip, mbr, patch, sample, uki, x86_kernel, zboot_kernel,
    };
    use crate::content::{ContentError, Sample};

    fn with(content: Vec<u8>, patches: &[(usize, &[u8])]) -> Sample {
        sample(&patch(content, patches))
    }

    #[test]
    fn what_is_no_linux_kernel_is_refused_by_name() {
        let blank = || vec![1; 64 << 10];
        let cases = [
            (with(blank(), &[(0, b"\x7fELF")]), "an ELF file"),
            (with(blank(), &[(0, b"MZ")]), "an EFI program"),
            (with(blank(), &[(0, b"#!/bin/sh\n")]), "a script"),
            (
                with(blank(), &[(8188, b"\x02\xb0\xad\x1b")]),
                "a multiboot kernel",
            ),
            (
                with(blank(), &[(32760, b"\xd6\x50\x52\xe8")]),
                "a multiboot kernel",
            ),
            (
                with(blank(), &[(8192, b"\x02\xb0\xad\x1b")]),
                "something unknown",
            ),
            (
                with(blank(), &[(510, b"\x55\xaa"), (512, b"EFI PART")]),
                "a GPT disk",
            ),
            (
                with(mbr(&[(0x80, 0x83, 64)]), &[(4096, b"\x02\xb0\xad\x1b")]),
                "an MBR disk",
            ),
            // Two in one: QEMU would load the first.
            (with(arm64_kernel(), &[(0, b"\x7fELF")]), "an ELF file"),
            (
                with(arm64_kernel(), &[(0, b"\x27\x05\x19\x56")]),
                "a U-Boot image",
            ),
            (with(arm64_kernel(), &[(0, b"\x1f\x8b\x08")]), "a gzip file"),
            (sample(&zboot_kernel()), "an EFI zboot kernel"),
            (sample(&gzip(b"", &x86_kernel())), "a gzip file"),
            (
                sample(&uki(&[(".linux", &x86_kernel())])),
                "a unified kernel image",
            ),
        ];
        for (sample, actual) in cases {
            for architecture in [Architecture::Amd64, Architecture::Arm64] {
                let expected = ContentError::Mismatch {
                    role: "kernel",
                    blob: sample.digest,
                    expected: "a Linux kernel that can be loaded directly",
                    actual,
                };
                assert_eq!(check(&sample, &architecture), Err(expected));
            }
            assert_eq!(identify(&sample), actual);
        }
        for zeros in [sample(&vec![0; 1 << 20]), sample(b"")] {
            let role = "kernel";
            let blob = zeros.digest;
            let expected = ContentError::Zeros { role, blob };
            assert_eq!(check(&zeros, &Architecture::Amd64), Err(expected));
        }
    }

    #[test]
    fn a_kernel_is_accepted_on_its_own_machine_only() {
        let named = [b"\x08".as_slice(), b"Image\0"].concat();
        let all = [
            b"\x1e".as_slice(),
            b"\x03\0abc",
            b"Image\0",
            b"comment\0",
            b"\0\0",
        ]
        .concat();
        let (amd64, arm64) = (Architecture::Amd64, Architecture::Arm64);
        let cases = [
            (x86_kernel(), &amd64),
            (arm64_kernel(), &arm64),
            (gzip(b"", &arm64_kernel()), &arm64),
            (gzip(&named, &arm64_kernel()), &arm64),
            (gzip(&all, &arm64_kernel()), &arm64),
        ];
        for (content, its) in cases {
            let sample = sample(&content);
            for machine in [&amd64, &arm64] {
                let expected = if machine == its {
                    Ok(())
                } else {
                    Err(ContentError::WrongArchitecture {
                        role: "kernel",
                        blob: sample.digest,
                        expected: machine.clone(),
                        actual: its.clone(),
                    })
                };
                assert_eq!(check(&sample, machine), expected);
            }
        }
    }

    #[test]
    fn a_packed_kernel_is_none_for_a_stub() {
        let packed = sample(&gzip(b"", &arm64_kernel()));
        let error = check_in_uki(&packed, &Architecture::Arm64).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "kernel in uki {} is not a Linux kernel that can be loaded directly but a gzip file",
                packed.digest
            )
        );
    }
}
