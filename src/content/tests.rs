//! No blob makes a probe panic, or promise what is not in the file.

use crate::content::Piece;
use crate::content::samples::{
    arm64_kernel, cpio, gpt, gzip, iso, mbr, patched, piece_of, qcow2_of, sample_of, uki,
    x86_kernel, zboot_kernel,
};
use crate::content::uki::UkiContent;
use crate::content::{
    ContentError, check_squashfs, disk, identify, initramfs, iso as iso_probe, kernel, pe,
    uki as uki_probe,
};
use crate::oci::{Architecture, Digest};

const EFI_SYSTEM: &str = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b";

/// One blob of each kind, as short as it can be.
fn blobs() -> Vec<(&'static str, Vec<u8>)> {
    let uki = uki(&[
        (".sdmagic", b"#### LoaderInfo: systemd-stub 255 ####"),
        (".osrel", b"PRETTY_NAME=\"A \\\"B\\\"\"\n"),
        (".cmdline", b"quiet"),
        (".linux", &x86_kernel()),
        (".initrd", b"070701"),
        (".profile", b"ID=a"),
        (".cmdline", b"quiet"),
    ]);
    let packed = gzip(b"\x18Image\0comment\0", &arm64_kernel());
    let microcode = cpio(&[("early", &[7; 99]), ("TRAILER!!!", b"")]);
    let mut disk = gpt(512, &[(EFI_SYSTEM, 0), (EFI_SYSTEM, 4)]);
    disk.truncate(4096);
    let mut record = mbr(&[(0x80, 0xef, 1), (0, 0x0c, 2)]);
    record.truncate(2048);
    vec![
        ("uki", uki),
        ("x86 kernel", x86_kernel()),
        ("arm64 kernel", arm64_kernel()),
        ("zboot kernel", zboot_kernel()),
        ("gzip", packed.clone()),
        ("initramfs", [microcode, vec![0; 512], packed].concat()),
        ("gpt", disk),
        ("mbr", record),
        ("iso", iso(&[(1, ""), (0, "EL TORITO SPECIFICATION")])),
        ("qcow2", qcow2_of(&[7; 0x1_0000])),
        ("squashfs", patched(1024, &[(0, b"hsqs")])),
        ("text", b"# Disk\n#\nversion".to_vec()),
    ]
}

/// Asks every probe about `content`, and checks what they promise.
fn probe_all(digest: Digest, content: &[u8]) {
    let sample = sample_of(digest, content);
    assert!(!identify::identify(&sample).is_empty());
    let inside = |piece: Piece| piece.offset + piece.size_bytes <= sample.size_bytes;
    if let Ok(program) = pe::parse(&sample) {
        let all = program.sections.iter();
        assert!(all.clone().count() <= 96);
        assert!(all.into_iter().all(|section| inside(Piece {
            offset: section.offset,
            size_bytes: section.size_bytes,
        })));
    }
    for architecture in [Architecture::Amd64, Architecture::Arm64] {
        let mut read_at = |piece: Piece| -> Result<Vec<u8>, ContentError> {
            assert!(inside(piece) && piece.size_bytes <= 64 << 10, "{piece:?}");
            let offset = usize::try_from(piece.offset).unwrap();
            Ok(content[offset..][..usize::try_from(piece.size_bytes).unwrap()].to_vec())
        };
        if let Ok(UkiContent {
            linux, initramfs, ..
        }) = uki_probe::read(&sample, &architecture, &mut read_at)
        {
            assert!(inside(linux) && initramfs.into_iter().all(inside));
        }
        if kernel::check(&sample, &architecture).is_ok() {
            assert!(pe::parse(&sample).map_or(true, |program| !program.has(".linux")));
        }
    }
    if initramfs::check(&sample).is_ok() || iso_probe::check(&sample).is_ok() {
        assert!(sample.size_bytes > 0);
    }
    if check_squashfs(&sample).is_ok() {
        assert_eq!(content[..4], *b"hsqs");
    }
    let mut read_at = |piece: Piece| -> Result<Vec<u8>, ContentError> {
        assert!(inside(piece) && piece.size_bytes <= 4 << 20, "{piece:?}");
        Ok(piece_of(content, piece))
    };
    if let Ok(found) = disk::probe(&sample, &mut read_at) {
        assert_eq!(found.virtual_size_bytes % 512, 0);
        assert_eq!(found.qcow2.is_none(), !content.starts_with(b"QFI\xfb"));
        if disk::check_bootable(&found, digest, &Architecture::Arm64).is_ok() {
            assert_ne!(found.layout, disk::DiskLayout::Unknown);
        }
    }
}

#[test]
fn a_blob_that_is_cut_off_anywhere_is_judged_without_a_panic() {
    let digest = Digest::of(b"");
    for (_, content) in blobs() {
        // The long ones are mostly zeros.
        let step = (content.len() / 400).max(7);
        for length in (0..content.len()).step_by(step) {
            probe_all(digest, &content[..length]);
        }
    }
}

#[test]
fn a_blob_with_any_bytes_changed_is_judged_without_a_panic() {
    let digest = Digest::of(b"");
    // xorshift64: the same blobs at every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = move |limit: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from(state % u64::try_from(limit).unwrap()).unwrap()
    };
    let telling = [0, 1, 0x7f, 0x80, 0xfe, 0xff];
    for (_, content) in blobs() {
        for _ in 0..500 {
            let mut content = content.clone();
            // Half of the changes are where headers are.
            let within = [content.len(), content.len().min(1024)][below(2)];
            for _ in 0..=below(8) {
                let byte = [telling[below(6)], u8::try_from(below(256)).unwrap()][below(2)];
                let at = below(within);
                content[at] = byte;
            }
            probe_all(digest, &content);
        }
    }
}
