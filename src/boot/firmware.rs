//! Firmware as a plan sees it: what was asked for, and what the host has.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// What firmware the caller asks for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FirmwareWish {
    /// Whatever the image's boot needs.
    #[default]
    Auto,
    /// UEFI that starts whatever it finds.
    Uefi,
    /// UEFI with enrolled Secure Boot keys, which starts signed programs only.
    UefiSecure,
    /// The board's BIOS.
    Bios,
    /// UEFI in this file, or as this descriptor file says.
    File(PathBuf),
}

/// What the host has to start a machine with, under what was asked for. Direct kernel boot needs
/// none of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFirmware {
    /// UEFI; the reason if there is none.
    pub uefi: Result<UefiKind, String>,
    /// A BIOS; the reason if there is none.
    pub bios: Result<(), String>,
    /// What was asked for by name.
    pub asked: Option<FirmwareWish>,
}

/// What UEFI firmware starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UefiKind {
    /// Whatever it finds.
    Open,
    /// What is signed by the keys that it holds (Secure Boot).
    Secure,
}

impl FromStr for FirmwareWish {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "auto" => Ok(Self::Auto),
            "uefi" => Ok(Self::Uefi),
            "uefi-secure" => Ok(Self::UefiSecure),
            "bios" => Ok(Self::Bios),
            path if path.contains('/') => Ok(Self::File(path.into())),
            _ => Err("not auto, uefi, uefi-secure, bios or a path with a slash".to_owned()),
        }
    }
}

impl fmt::Display for FirmwareWish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Uefi => f.write_str("uefi"),
            Self::UefiSecure => f.write_str("uefi-secure"),
            Self::Bios => f.write_str("bios"),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_read_back() {
        for word in ["auto", "uefi", "uefi-secure", "bios", "/a/CODE.fd", "./x"] {
            let wish: FirmwareWish = word.parse().unwrap();
            assert_eq!(wish.to_string(), word);
        }
        for word in ["", "efi", "UEFI", "CODE.fd"] {
            assert!(word.parse::<FirmwareWish>().is_err(), "{word}");
        }
    }
}
