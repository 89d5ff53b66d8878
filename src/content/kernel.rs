//! What a kernel layer really is.

use crate::content::{ContentError, Sample};
use crate::oci::Architecture;

/// Checks that a kernel can be loaded directly on `architecture`.
///
/// A zero kernel or one of another machine is taken by QEMU without a word, and then nothing
/// happens for ever. Formats: Linux Documentation/arch/x86/boot.rst and
/// Documentation/arch/arm64/booting.rst; PE/COFF for the machine of an EFI stub.
pub fn check(sample: &Sample, architecture: &Architecture) -> Result<(), ContentError> {
    sample.refuse_zeros("kernel")?;
    let blob = sample.digest;
    let actual = if sample.has(0x202, b"HdrS") && sample.has(0x1fe, b"\x55\xaa") {
        "amd64"
    } else if sample.has(0x38, b"ARM\x64") {
        "arm64"
    } else if sample.has(0, b"\x1f\x8b") && *architecture == Architecture::Arm64 {
        // arm64 kernels are also shipped compressed, and QEMU unpacks them.
        "arm64"
    } else {
        let what = if sample.has(0, b"MZ") {
            "an EFI program"
        } else if sample.has(0, b"\x7fELF") {
            "an ELF file"
        } else {
            "something else"
        };
        return Err(ContentError::NotAKernel { blob, what });
    };
    if actual == architecture.as_str() {
        return Ok(());
    }
    Err(ContentError::KernelArchitecture {
        blob,
        expected: architecture.clone(),
        actual,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::content::sample;

    fn kernel(patches: &[(usize, &[u8])]) -> Sample {
        let mut content = vec![1; 4096];
        for (offset, bytes) in patches {
            content[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        sample(&content)
    }

    #[test]
    fn a_kernel_is_accepted_on_its_own_machine_only() {
        let amd64 = kernel(&[(0, b"MZ"), (0x1fe, b"\x55\xaa"), (0x202, b"HdrS")]);
        let arm64 = kernel(&[(0, b"MZ"), (0x38, b"ARM\x64")]);
        let gzip = kernel(&[(0, b"\x1f\x8b")]);
        assert_eq!(check(&amd64, &Architecture::Amd64), Ok(()));
        assert_eq!(check(&arm64, &Architecture::Arm64), Ok(()));
        assert_eq!(check(&gzip, &Architecture::Arm64), Ok(()));
        for (kernel, architecture) in [(amd64, Architecture::Arm64), (arm64, Architecture::Amd64)] {
            assert!(matches!(
                check(&kernel, &architecture),
                Err(ContentError::KernelArchitecture { .. })
            ));
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let multiboot = kernel(&[(0, &0x1BAD_B002_u32.to_le_bytes())]);
        for sample in [kernel(&[(0, b"\x7fELF")]), kernel(&[(0, b"MZ")]), multiboot] {
            assert!(matches!(
                check(&sample, &Architecture::Amd64),
                Err(ContentError::NotAKernel { .. })
            ));
        }
        let zeros = sample(&vec![0; 1 << 20]);
        assert!(matches!(
            check(&zeros, &Architecture::Amd64),
            Err(ContentError::Zeros { .. })
        ));
    }
}
