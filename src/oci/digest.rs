//! Content digests: an algorithm and exactly the bytes that it gives.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};
use thiserror::Error;

use crate::oci::Printable;

/// A content digest; made only by parsing or by hashing, hence safe as a file name.
///
/// Format: OCI image-spec v1.1, descriptor.md#digests, the two registered algorithms.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Digest {
    /// `sha256:` and 64 lower-case hex digits.
    Sha256([u8; 32]),
    /// `sha512:` and 128 lower-case hex digits.
    Sha512([u8; 64]),
}

/// What is wrong with a string that should be a digest.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum DigestError {
    /// There is no `algorithm:` in front.
    #[error("digest has no algorithm: {0}")]
    NoAlgorithm(String),
    /// The algorithm is not one of those that images may use.
    #[error("digest algorithm is neither sha256 nor sha512: {0}")]
    UnknownAlgorithm(String),
    /// The rest is not the algorithm's number of lower-case hex digits.
    #[error("digest is not {expected} lower-case hex digits: {digest}")]
    NotHex {
        /// Number of hex digits that the algorithm gives.
        expected: usize,
        /// The string as it came, made printable.
        digest: String,
    },
}

impl Digest {
    /// Returns the SHA-256 digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self::Sha256(Sha256::digest(bytes).into())
    }

    /// Returns the algorithm's name as the specification writes it; a safe file name.
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// Returns the lower-case hex digits; a safe file name.
    #[must_use]
    pub fn hex(&self) -> String {
        match self {
            Self::Sha256(bytes) => hex::encode(bytes),
            Self::Sha512(bytes) => hex::encode(bytes),
        }
    }

    /// Starts a hash of this digest's own algorithm, to compare with later.
    #[must_use]
    pub fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Self::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }
}

/// A running hash of one digest algorithm.
#[derive(Debug, Clone)]
pub enum Hasher {
    /// SHA-256.
    Sha256(Sha256),
    /// SHA-512.
    Sha512(Sha512),
}

impl Hasher {
    /// Adds `bytes` to the hash.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hash) => hash.update(bytes),
            Self::Sha512(hash) => hash.update(bytes),
        }
    }

    /// Ends the hash.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hash) => Digest::Sha256(hash.finalize().into()),
            Self::Sha512(hash) => Digest::Sha512(hash.finalize().into()),
        }
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let (algorithm, digits) = text
            .split_once(':')
            .ok_or_else(|| DigestError::NoAlgorithm(Printable(text).to_string()))?;
        match algorithm {
            "sha256" => decode(digits).map(Self::Sha256),
            "sha512" => decode(digits).map(Self::Sha512),
            other => return Err(DigestError::UnknownAlgorithm(Printable(other).to_string())),
        }
        .map_err(|expected| DigestError::NotHex {
            expected,
            digest: Printable(text).to_string(),
        })
    }
}

/// Decodes exactly `2 * N` lower-case hex digits, or says how many there should be.
fn decode<const N: usize>(digits: &str) -> Result<[u8; N], usize> {
    let mut bytes = [0; N];
    if digits.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(2 * N);
    }
    hex::decode_to_slice(digits, &mut bytes).map_err(|_| 2 * N)?;
    Ok(bytes)
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;

    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_displays_as_it_was_parsed() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let digest: Digest = empty.parse().unwrap();
        assert_eq!(digest.to_string(), empty);
        assert_eq!(digest, Digest::of(b""));
        assert_eq!(digest.hasher().finish(), digest);
        let long: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        assert_eq!(long.algorithm(), "sha512");
        assert_ne!(long.hasher().finish(), long);
    }

    #[test]
    fn strings_that_are_no_digest_are_refused() {
        for text in [
            "",
            "sha256",
            "sha256:",
            "sha256:abcd",
            "sha256:../../../../evil?x=1",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "sha256+b64:47DEQpj8HBSa",
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        for text in [
            format!("sha256:{}", "A".repeat(64)),
            format!("sha256:{}", "0".repeat(63)),
            format!("sha256:{}/", "0".repeat(63)),
            format!("sha512:{}", "0".repeat(64)),
            format!("SHA256:{}", "0".repeat(64)),
        ] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }
}
