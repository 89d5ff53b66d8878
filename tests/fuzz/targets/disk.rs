//! Disks, ISOs, initramfs and squashfs: whatever the blob is, there is an answer.

#![no_main]

use ironboot::content::{self, disk, initramfs, iso};
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
    match disk::probe(&sample) {
        Ok(found) => {
            assert_eq!(found.virtual_size_bytes % 512, 0);
            let blob = sample.digest;
            for architecture in [Architecture::Amd64, Architecture::Arm64] {
                disk::check_bootable(&found, blob, &architecture).unwrap_or_default();
            }
        }
        Err(error) => assert!(!error.to_string().contains(char::is_control)),
    }
});
