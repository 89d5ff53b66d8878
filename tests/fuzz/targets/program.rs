//! Kernels and unified kernel images: all that is found of one is inside of it.

#![no_main]

use ironboot::content::Piece;
use ironboot::content::{ContentError, kernel, uki};
use ironboot::oci::Architecture;
use ironboot_fuzz::sample;
use libfuzzer_sys::fuzz_target;

/// The part of `content` that is asked for; less of it where there is less.
fn piece<'a>(content: &'a [u8], piece: &Piece) -> &'a [u8] {
    let at = |offset: u64| {
        usize::try_from(offset)
            .unwrap_or(usize::MAX)
            .min(content.len())
    };
    &content[at(piece.offset)..at(piece.offset.saturating_add(piece.size_bytes))]
}

fuzz_target!(|content: &[u8]| {
    let sample = sample(content);
    for architecture in [Architecture::Amd64, Architecture::Arm64] {
        kernel::check(&sample, &architecture).unwrap_or_default();
        let mut read = |asked: Piece| -> Result<Vec<u8>, ContentError> {
            assert!(asked.size_bytes <= 64 << 10);
            Ok(piece(content, &asked).to_vec())
        };
        let Ok(found) = uki::read(&sample, &architecture, &mut read) else {
            continue;
        };
        for found in found.initramfs.iter().chain([&found.linux]) {
            assert_eq!(piece(content, found).len() as u64, found.size_bytes);
        }
        for words in [found.os_name, found.kernel_release].into_iter().flatten() {
            assert!(!words.contains(char::is_control));
        }
    }
});
