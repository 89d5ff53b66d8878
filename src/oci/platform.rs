//! The machine that an image is for.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A CPU architecture in OCI's words.
///
/// Source: OCI image-spec v1.1, image-index.md, `platform.architecture` (Go's GOARCH values).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub enum Architecture {
    /// 64-bit x86; `x86_64` is read as the same.
    Amd64,
    /// 64-bit Arm; `aarch64` is read as the same.
    Arm64,
    /// Any other word; such an entry is listed but never booted.
    Other(String),
}

impl Architecture {
    /// Returns OCI's word.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
            Self::Other(word) => word,
        }
    }
}

impl From<String> for Architecture {
    fn from(word: String) -> Self {
        match word.as_str() {
            "amd64" | "x86_64" | "x86-64" => Self::Amd64,
            "arm64" | "aarch64" => Self::Arm64,
            _ => Self::Other(word),
        }
    }
}

impl From<Architecture> for String {
    fn from(architecture: Architecture) -> Self {
        architecture.as_str().to_owned()
    }
}

impl FromStr for Architecture {
    type Err = Infallible;

    fn from_str(word: &str) -> Result<Self, Infallible> {
        Ok(Self::from(word.to_owned()))
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", crate::oci::Printable(self.as_str()))
    }
}

/// Operating system and architecture of an index entry.
///
/// OCI's `platform.variant` (a CPU variant such as `v8`) is not kept: IronCore's word *variant*
/// means something else, and nothing here decides by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    /// `linux`, or `gardenlinux` on Garden Linux's own entries; empty where the entry has none.
    pub os: String,
    /// CPU architecture.
    pub architecture: Architecture,
}

impl Platform {
    /// Tells whether a VM could run it at all: buildkit's attestations are `unknown/unknown`.
    #[must_use]
    pub fn is_bootable_os(&self) -> bool {
        matches!(self.os.as_str(), "" | "linux" | "gardenlinux")
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { os, architecture } = self;
        if !os.is_empty() {
            write!(f, "{}/", crate::oci::Printable(os))?;
        }
        write!(f, "{architecture}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Architecture, Platform};

    #[test]
    fn machine_names_are_read_as_oci_words() {
        for (word, expected) in [
            ("amd64", Architecture::Amd64),
            ("x86_64", Architecture::Amd64),
            ("aarch64", Architecture::Arm64),
            ("arm64", Architecture::Arm64),
            ("riscv64", Architecture::Other("riscv64".to_owned())),
        ] {
            assert_eq!(word.parse(), Ok(expected));
        }
    }

    #[test]
    fn a_platform_boots_unless_it_says_another_system() {
        for (os, shown, boots) in [
            ("linux", "linux/amd64", true),
            ("gardenlinux", "gardenlinux/amd64", true),
            ("", "amd64", true),
            ("unknown", "unknown/amd64", false),
            ("windows", "windows/amd64", false),
        ] {
            let platform = Platform {
                os: os.to_owned(),
                architecture: Architecture::Amd64,
            };
            assert_eq!(platform.to_string(), shown);
            assert_eq!(platform.is_bootable_os(), boots, "{os}");
        }
    }
}
