//! The image's config blob.

use serde::Deserialize;
use thiserror::Error;

use crate::oci::object::Object;
use crate::oci::{Architecture, Digest};

/// Largest config blob that is read, in bytes.
pub const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// What a config blob says of booting.
///
/// Format: the JSON that `ironcore-image build` writes, and its `v1alpha1` forerunner. Publishers
/// have written text after the first JSON value; it is skipped, as the ecosystem's reader does.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct ImageConfig {
    /// The kernel's command line, where the image has no layer for it.
    #[serde(rename = "commandLine")]
    pub command_line: Option<String>,
    /// Architecture, in `v1alpha1` images.
    #[serde(alias = "arch")]
    pub architecture: Option<Architecture>,
}

/// What comes after a config's JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Nothing but white space.
    Nothing,
    /// Text that was not read.
    Skipped,
}

/// A config blob that is not JSON.
#[derive(Debug, Error)]
#[error("config {digest} is not a JSON object of the known form")]
pub struct ConfigError {
    /// The blob.
    digest: Digest,
    /// Where the parser stopped.
    #[source]
    source: serde_json::Error,
}

impl ImageConfig {
    /// Parses the first JSON value of `bytes`, the content of blob `digest`, and tells whether
    /// there is anything after it.
    pub fn parse(bytes: &[u8], digest: Digest) -> Result<(Self, Rest), ConfigError> {
        let mut values = serde_json::Deserializer::from_slice(bytes).into_iter();
        let Object(config) = values
            .next()
            .unwrap_or_else(|| Ok(Object(Self::default())))
            .map_err(|source| ConfigError { digest, source })?;
        let rest = bytes.get(values.byte_offset()..).unwrap_or_default();
        let rest = if rest.trim_ascii().is_empty() {
            Rest::Nothing
        } else {
            Rest::Skipped
        };
        Ok((config, rest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command_line(json: &str) -> Option<String> {
        read(json).0
    }

    fn read(json: &str) -> (Option<String>, Rest) {
        let config = ImageConfig::parse(json.as_bytes(), Digest::of(json.as_bytes()));
        let (config, rest) = config.unwrap();
        (config.command_line, rest)
    }

    #[test]
    fn published_configs_are_read() {
        assert_eq!(command_line("{}"), None);
        assert_eq!(command_line(""), None);
        let escaped = r#"{"commandLine":"a=1\u0026b quiet\n"}"#;
        assert_eq!(command_line(escaped).as_deref(), Some("a=1&b quiet\n"));
        assert_eq!(read("{}\n "), (None, Rest::Nothing));
        let trailing = r#"{"commandLine": "", "os-release": "1592.3"}, "arch": "amd64""#;
        assert_eq!(read(trailing), (Some(String::new()), Rest::Skipped));
        assert_eq!(read("{}x"), (None, Rest::Skipped));
    }

    #[test]
    fn a_config_that_is_no_object_is_an_error() {
        for json in [
            "[\"a\",\"amd64\"]",
            "[]x",
            "nonsense",
            r#"{"commandLine":1}"#,
            "{",
        ] {
            assert!(
                ImageConfig::parse(json.as_bytes(), Digest::of(b"")).is_err(),
                "{json}"
            );
        }
    }
}
