//! Disks, ISOs, initramfs and squashfs: whatever the blob is, there is an answer.

#![no_main]

use ironboot::content::Piece;
use ironboot::content::{self, ContentError, disk, initramfs, iso};
use ironboot::oci::Architecture;
use ironboot_fuzz::sample;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|content: &[u8]| {
    let sample = sample(content);
    let of_iso = iso::check(&sample);
    let of_squashfs = content::check_squashfs(&sample);
    let of_initramfs = initramfs::check(&sample);
    let errors = [of_iso.err(), of_squashfs.err(), of_initramfs.err()];
    for error in errors.into_iter().flatten() {
        assert!(!error.to_string().contains(char::is_control));
    }
    let mut read = |piece: Piece| {
        // Whatever is asked for is there, and not much.
        assert!(piece.size_bytes <= 4 << 20);
        let offset = usize::try_from(piece.offset).unwrap();
        let size = usize::try_from(piece.size_bytes).unwrap();
        Ok::<_, ContentError>(content[offset..][..size].to_vec())
    };
    match disk::probe(&sample, &mut read) {
        Ok(found) => {
            if let Some(map) = &found.qcow2 {
                let mut end = 0;
                let unpacked = map.unpack(0..map.size_bytes(), &mut read, &mut |offset, bytes| {
                    assert!(offset >= end && !bytes.is_empty());
                    end = offset + bytes.len() as u64;
                    Ok(())
                });
                assert!(end <= map.size_bytes());
                unpacked.unwrap_or_default();
            }
            assert_eq!(found.virtual_size_bytes % 512, 0);
            let blob = sample.digest;
            for architecture in [Architecture::Amd64, Architecture::Arm64] {
                disk::check_bootable(&found, blob, &architecture).unwrap_or_default();
            }
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
});
