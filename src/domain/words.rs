//! Words and numbers that are valid by construction.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::domain::Forward;
use crate::oci::{Digest, Printable};

/// Size of guest memory in MiB, from 64 MiB to 16 TiB; QEMU's `-m`, libvirt's
/// `<memory unit='MiB'>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct Memory(u64);

/// A VM's name: 1 to 63 letters, digits, `-`, `_` and `.`, the first a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DomainName(String);

/// A disk's serial number: 1 to 20 letters, digits, `-` and `_` (virtio-blk keeps 20).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(String);

/// A name in `fw_cfg`: `opt/` and at most 51 letters, digits, `.`, `_`, `-` and `/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FwCfgName(String);

/// A string in the SMBIOS tables: 1 to 4096 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct OemString(String);

/// The name of a network of libvirt's or of a bridge: 1 to 50 letters, digits, `-`, `_` and `.`,
/// the first a letter or a digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

/// What a guest calls a directory of the host: 1 to 36 letters, digits, `-`, `_` and `.`, the first a
/// letter or a digit. virtio has room for no more.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// A UUID in its usual form of 36 characters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uuid(String);

/// A word that is not what it should be.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WordError {
    /// Not a VM's name.
    #[error("name is not 1 to 63 letters, digits, `-`, `_` and `.` after a letter or digit: {0}")]
    Name(String),
    /// Not a serial number.
    #[error("serial number is not 1 to 20 letters, digits, `-` and `_`: {0}")]
    Serial(String),
    /// Not a name in `fw_cfg`.
    #[error("fw_cfg name is not opt/ and at most 51 letters, digits, `.`, `_`, `-` and `/`: {0}")]
    FwCfgName(String),
    /// Not a string of SMBIOS.
    #[error("SMBIOS string is not 1 to 4096 bytes without control characters: {0}")]
    OemString(String),
    /// Not a network's or bridge's name.
    #[error("network name is not 1 to 50 letters, digits, `-`, `_` and `.`: {0}")]
    LinkName(String),
    /// Not a tag of virtiofs.
    #[error("tag is not 1 to 36 letters, digits, `-`, `_` and `.`: {0}")]
    Tag(String),
    /// Not a UUID.
    #[error("not a UUID: {0}")]
    Uuid(String),
    /// Not a size of memory.
    #[error("memory is not 64M to 16T, as in 512M or 4G: {0}")]
    Memory(String),
    /// Not a size of a disk.
    #[error("size is not a number of bytes, as in 512M or 10G: {0}")]
    Size(String),
    /// Not a size that a disk can have.
    #[error("size of a disk is not from 1 byte to 16T: {0}")]
    DiskSize(String),
    /// Not a forwarded port.
    #[error("port is not HOST:GUEST with two numbers from 1 to 65535: {0}")]
    Forward(String),
    /// An architecture that there is no machine for.
    #[error("no machine is known for architecture: {0}")]
    Machine(String),
}

/// Largest disk that a VM is given, in bytes: 16 TiB.
pub const MAX_DISK_BYTES: u64 = 16 << 40;

/// Parses a size as [`parse_size`] does, of a disk: at most [`MAX_DISK_BYTES`].
pub fn parse_disk_size(text: &str) -> Result<u64, WordError> {
    match parse_size(text, 1) {
        Ok(0) => Err(WordError::DiskSize(text.to_owned())),
        Ok(bytes) if bytes > MAX_DISK_BYTES => Err(WordError::DiskSize(text.to_owned())),
        result => result,
    }
}

/// Parses `512M`, `4G`, `1T` or a bare number of `unit` bytes into bytes.
pub fn parse_size(text: &str, unit: u64) -> Result<u64, WordError> {
    let error = || WordError::Size(Printable(text).to_string());
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => unit,
        "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        _ => return Err(error()),
    };
    let number: u64 = digits.parse().map_err(|_| error())?;
    number.checked_mul(scale).ok_or_else(error)
}

impl Memory {
    /// The size in MiB.
    #[must_use]
    pub fn mib(self) -> u64 {
        self.0
    }
}

impl TryFrom<u64> for Memory {
    type Error = WordError;

    fn try_from(mib: u64) -> Result<Self, WordError> {
        if !(64..=16 << 20).contains(&mib) {
            return Err(WordError::Memory(format!("{mib}M")));
        }
        Ok(Self(mib))
    }
}

impl From<Memory> for u64 {
    fn from(memory: Memory) -> Self {
        memory.0
    }
}

impl FromStr for Memory {
    type Err = WordError;

    /// Parses `4G`, `2048M`, or a bare number of MiB.
    fn from_str(text: &str) -> Result<Self, WordError> {
        let error = || WordError::Memory(Printable(text).to_string());
        let bytes = parse_size(text, 1 << 20).map_err(|_| error())?;
        Self::try_from(bytes >> 20).map_err(|_| error())
    }
}

impl FromStr for Forward {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        let error = || WordError::Forward(Printable(text).to_string());
        let (host, guest) = text.split_once(':').ok_or_else(error)?;
        Ok(Self {
            host: Some(host.parse().map_err(|_| error())?),
            guest: guest.parse().map_err(|_| error())?,
        })
    }
}

impl Uuid {
    /// Makes the UUID that stands for `seed` (version 8, RFC 9562: our own scheme, a hash).
    #[must_use]
    pub fn of(seed: &str) -> Self {
        let mut hex = Digest::of(seed.as_bytes()).hex();
        hex.replace_range(12..13, "8");
        hex.replace_range(16..17, "8");
        Self(format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..32]
        ))
    }
}

/// Gives a checked string type its parsing, its text and its serde form.
macro_rules! word {
    ($type:ident, $error:ident, $is_valid:expr) => {
        impl $type {
            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = WordError;

            fn from_str(text: &str) -> Result<Self, WordError> {
                let is_valid: fn(&str) -> bool = $is_valid;
                if is_valid(text) {
                    Ok(Self(text.to_owned()))
                } else {
                    Err(WordError::$error(Printable(text).to_string()))
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = WordError;

            fn try_from(text: String) -> Result<Self, WordError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(word: $type) -> Self {
                word.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

/// Tells whether `text` has at most `longest` characters, all letters, digits or of `others`.
fn is_word(text: &str, longest: usize, others: &[char]) -> bool {
    (1..=longest).contains(&text.len())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || others.contains(&c))
}

word!(DomainName, Name, |text| {
    is_word(text, 63, &['-', '_', '.']) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
});
word!(Serial, Serial, |text| is_word(text, 20, &['-', '_']));
word!(FwCfgName, FwCfgName, |text| {
    text.strip_prefix("opt/")
        .is_some_and(|rest| is_word(rest, 51, &['-', '_', '.', '/']))
});
word!(OemString, OemString, |text| {
    (1..=4096).contains(&text.len()) && !text.contains(char::is_control)
});
word!(LinkName, LinkName, |text| {
    is_word(text, 50, &['-', '_', '.']) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
});
word!(Tag, Tag, |text| {
    is_word(text, 36, &['-', '_', '.']) && text.starts_with(|c: char| c.is_ascii_alphanumeric())
});
word!(Uuid, Uuid, |text| {
    text.len() == 36
        && text.char_indices().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => c == '-',
            _ => c.is_ascii_hexdigit(),
        })
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_something_to_a_shell_a_path_or_an_option_are_refused() {
        for name in ["a", "os-1.2_x", "0", &"n".repeat(63)] {
            assert!(name.parse::<DomainName>().is_ok(), "{name}");
        }
        let long = "n".repeat(64);
        for name in [
            "", ".", "..", "../x", "a/b", "-x", "a\nb", "a,b", "a b", "ä", &long,
        ] {
            assert!(name.parse::<DomainName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, mib) in [("512M", 512), ("4G", 4096), ("256", 256), ("1gib", 1024)] {
            assert_eq!(text.parse::<Memory>().unwrap().mib(), mib);
        }
        for text in ["", "4X", "-1", "63M", "17T", "99999999999999999999G", "G"] {
            assert!(text.parse::<Memory>().is_err(), "{text:?}");
        }
        assert_eq!(parse_size("10G", 1), Ok(10 << 30));
        assert_eq!(parse_size("4096", 1), Ok(4096));
        assert_eq!(parse_disk_size("16T"), Ok(MAX_DISK_BYTES));
        for text in ["17T", "0", "8000000T", "99999999999999999T"] {
            assert!(parse_disk_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn fw_cfg_names_stay_one_option() {
        assert!("opt/com.coreos/config".parse::<FwCfgName>().is_ok());
        for name in [
            "opt/x,file=/etc/shadow",
            "etc/x",
            "opt/",
            &format!("opt/{}", "n".repeat(52)),
        ] {
            assert!(name.parse::<FwCfgName>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_uuid_is_the_same_for_the_same_seed_only() {
        let uuid = Uuid::of("a");
        assert_eq!(uuid, Uuid::of("a"));
        assert_ne!(uuid, Uuid::of("b"));
        assert_eq!(uuid.as_str().parse(), Ok(uuid));
    }
}
