//! References and digests: what is understood is written so that it is understood the same again,
//! and no digest is anything but letters and figures in a file name.

#![no_main]

use ironboot::oci::{Digest, Reference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let written = reference.to_string();
        assert_eq!(written.parse::<Reference>().as_ref(), Ok(&reference));
        if let Reference::Registry(reference) = &reference {
            assert!(
                !reference
                    .repository()
                    .split('/')
                    .any(|part| part == ".." || part == ".")
            );
            assert!(!written.contains(char::is_whitespace) && !written.contains(char::is_control));
        }
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(digest.hex().bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
});
