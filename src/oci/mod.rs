//! The OCI specifications' vocabulary: digest, reference, descriptor, manifest, platform.
//!
//! Pure: bytes and strings in, values out. Whatever leaves this room is safe to use as a file
//! name (a digest's hex), in a request path (a reference) or as a limit (a descriptor's size).

pub mod descriptor;
pub mod digest;
pub mod manifest;
pub(crate) mod object;
pub mod platform;
pub mod reference;

pub use descriptor::Descriptor;
pub use digest::{Digest, DigestError, Hasher};
pub use manifest::{Document, DocumentError, Index, Manifest};
pub use platform::{Architecture, Platform};
pub use reference::{LayoutForm, LayoutReference, Reference, ReferenceError, RegistryReference};

use std::fmt;

/// Text from outside, made fit to print: control characters (terminal escapes among them) are
/// written as `\u{..}`, and what is longer than 300 characters is cut.
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (count, c) in self.0.chars().enumerate() {
            if count == 300 {
                return write!(f, "…");
            }
            if c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c) {
                write!(f, "{}", c.escape_unicode())?;
            } else {
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Printable;

    #[test]
    fn printable_text_carries_no_escape_sequence() {
        let shown = Printable("a\u{1b}[31mred\n").to_string();
        assert_eq!(shown, "a\\u{1b}[31mred\\u{a}");
        assert_eq!(Printable(&"x".repeat(400)).to_string().chars().count(), 301);
    }
}
