//! The config blob.

#![no_main]

use ironboot::image::ImageConfig;
use ironboot::oci::Digest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok((config, _)) = ImageConfig::parse(bytes, Digest::of(b"a config")) {
        assert!(
            config
                .command_line
                .is_none_or(|line| line.len() <= bytes.len())
        );
    }
});
