//! Booting a unified kernel image: how it is started, and how words reach its kernel.
//!
//! The image's own command line stands in the image. Words can be *added* through SMBIOS, which
//! stubs of systemd 254 and later read, and the whole can be *replaced* by whoever starts the
//! image, unless firmware checks signatures: the stub ignores it then.
//!
//! Source: systemd-stub(7); measured with the stubs of systemd 252 and 257.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::boot::{CommandLine, CommandLineError, UefiKind};
use crate::oci::Descriptor;

/// First version of systemd's stub that reads words from SMBIOS.
pub const FIRST_STUB_WITH_SMBIOS: u32 = 254;

/// The parts of a boot by UKI.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UkiBoot {
    /// The image.
    pub uki: Descriptor,
    /// The image's disk, attached writable through an overlay.
    pub disk: Option<Descriptor>,
    /// How it is started.
    pub start: UkiStart,
    /// Replaces the command line in the image.
    pub command_line: Option<CommandLine>,
    /// Added to it.
    pub append: CommandLine,
    /// Added to it where that can be done, and left out otherwise.
    pub append_if_possible: CommandLine,
    /// Added likewise, if there is no `console=` otherwise.
    pub console: Option<CommandLine>,
}

/// How a UKI is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UkiStart {
    /// The hypervisor hands it to UEFI firmware, as a kernel.
    Loader(UefiKind),
    /// UEFI firmware finds it on a small EFI system partition that is made for the VM: for
    /// hypervisors that load no kernel, and for Secure Boot as hardware has it.
    Esp(UefiKind),
    /// Its kernel and initramfs are taken out and booted directly: no firmware is needed, and no
    /// signature is checked.
    Extract,
}

/// The name of a [`UkiStart`], as typed and as shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UkiStartName {
    /// [`UkiStart::Loader`].
    Loader,
    /// [`UkiStart::Esp`].
    Esp,
    /// [`UkiStart::Extract`].
    Extract,
}

/// How the words reach the kernel in a UKI.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Words {
    /// The command line that whoever starts it passes: it takes the place of the image's own.
    pub replacement: Option<CommandLine>,
    /// What SMBIOS adds.
    pub smbios: Option<CommandLine>,
    /// What was to be added where that can be done, and can not.
    pub left_out: Option<CommandLine>,
    /// Whether a console was among what was added.
    pub console_added: bool,
}

/// Why words can not reach the kernel in a UKI.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum WordsError {
    /// An old stub, and nobody to pass the line to it.
    #[error(
        "words can be added to this UKI by stubs of systemd {FIRST_STUB_WITH_SMBIOS} and later only, and its stub is {}",
        version(*.stub_version)
    )]
    OldStub {
        /// Its version, if it says one.
        stub_version: Option<u32>,
    },
    /// The words do not fit.
    #[error("the command line with what is added to it is not usable")]
    CommandLine(#[from] CommandLineError),
}

fn version(stub_version: Option<u32>) -> String {
    stub_version.map_or_else(|| "unknown".to_owned(), |version| format!("of {version}"))
}

impl UkiBoot {
    /// Says how the words reach the kernel of an image whose own command line is `own` and whose
    /// stub is of `stub_version`.
    pub fn words(&self, own: &CommandLine, stub_version: Option<u32>) -> Result<Words, WordsError> {
        let line = self.command_line.as_ref().unwrap_or(own);
        let mut wished = self.append.append(&self.append_if_possible)?;
        let console = self.console.as_ref().filter(|_| {
            let has_console = |words: &CommandLine| words.has_parameter("console");
            !has_console(line) && !has_console(&wished)
        });
        if let Some(console) = console {
            wished = wished.append(console)?;
        }
        let words = Words {
            console_added: console.is_some(),
            ..Words::default()
        };
        if self.command_line.is_some() || self.start == UkiStart::Extract {
            return Ok(Words {
                replacement: Some(line.append(&wished)?),
                ..words
            });
        }
        if wished.as_str().is_empty() {
            return Ok(words);
        }
        if stub_version.is_some_and(|version| version >= FIRST_STUB_WITH_SMBIOS) {
            return Ok(Words {
                smbios: Some(wished),
                ..words
            });
        }
        if self.start == UkiStart::Loader(UefiKind::Open) {
            return Ok(Words {
                replacement: Some(line.append(&wished)?),
                ..words
            });
        }
        if self.append.as_str().is_empty() {
            return Ok(Words {
                left_out: Some(wished),
                ..Words::default()
            });
        }
        Err(WordsError::OldStub { stub_version })
    }
}

impl UkiStart {
    /// Its name.
    #[must_use]
    pub fn name(self) -> UkiStartName {
        match self {
            Self::Loader(_) => UkiStartName::Loader,
            Self::Esp(_) => UkiStartName::Esp,
            Self::Extract => UkiStartName::Extract,
        }
    }

    /// The firmware that it needs.
    #[must_use]
    pub fn uefi(self) -> Option<UefiKind> {
        match self {
            Self::Loader(kind) | Self::Esp(kind) => Some(kind),
            Self::Extract => None,
        }
    }
}

impl UkiStartName {
    /// The word in options, in JSON and in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Loader => "loader",
            Self::Esp => "esp",
            Self::Extract => "extract",
        }
    }
}

impl FromStr for UkiStartName {
    type Err = ();

    fn from_str(word: &str) -> Result<Self, ()> {
        [Self::Loader, Self::Esp, Self::Extract]
            .into_iter()
            .find(|name| name.as_str() == word)
            .ok_or(())
    }
}

impl fmt::Display for UkiStartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What becomes of `--cmdline`, `--append` and a console that was added, for an image whose
    /// own line is `own`: replacement, SMBIOS, left out.
    fn check(
        start: UkiStart,
        [command_line, append, soft]: [&str; 3],
        stub_version: Option<u32>,
    ) -> Result<[Option<String>; 3], WordsError> {
        let line = |text: &str| -> CommandLine { text.parse().unwrap() };
        let boot = UkiBoot {
            uki: Descriptor::of("u", b"u"),
            disk: None,
            start,
            command_line: (!command_line.is_empty()).then(|| line(command_line)),
            append: line(append),
            append_if_possible: line(soft),
            console: None,
        };
        let words = boot.words(&line("own"), stub_version)?;
        let Words {
            replacement,
            smbios,
            left_out,
            console_added: _,
        } = words;
        Ok([replacement, smbios, left_out].map(|line| line.map(|line| line.to_string())))
    }

    #[test]
    fn words_go_where_this_stub_and_this_firmware_read_them() {
        use UefiKind::{Open, Secure};
        use UkiStart::{Esp, Extract, Loader};
        let replaced = |line: &str| Ok([Some(line.to_owned()), None, None]);
        let smbios = |line: &str| Ok([None, Some(line.to_owned()), None]);
        let left_out = |line: &str| Ok([None, None, Some(line.to_owned())]);
        let nothing = Ok([None, None, None]);
        let (old, new) = (Some(252), Some(254));
        for start in [Loader(Open), Loader(Secure), Esp(Open), Esp(Secure)] {
            assert_eq!(check(start, ["", "", ""], old), nothing);
            assert_eq!(check(start, ["", "a", "s"], new), smbios("a s"));
        }
        for stub in [old, new, None] {
            assert_eq!(
                check(Loader(Open), ["c", "a", "s"], stub),
                replaced("c a s")
            );
            assert_eq!(check(Extract, ["", "a", "s"], stub), replaced("own a s"));
            assert_eq!(check(Extract, ["c", "", ""], stub), replaced("c"));
            assert_eq!(check(Extract, ["", "", ""], stub), replaced("own"));
        }
        for stub in [old, None] {
            assert_eq!(
                check(Loader(Open), ["", "a", "s"], stub),
                replaced("own a s")
            );
            for start in [Loader(Secure), Esp(Open), Esp(Secure)] {
                assert_eq!(check(start, ["", "", "s"], stub), left_out("s"));
                let stub_version = stub;
                let error = Err(WordsError::OldStub { stub_version });
                assert_eq!(check(start, ["", "a", ""], stub), error);
            }
        }
    }

    #[test]
    fn a_console_is_added_where_none_is_named() {
        let line = |text: &str| -> CommandLine { text.parse().unwrap() };
        for (own, append, added) in [
            ("quiet", "", true),
            ("", "", true),
            ("console=tty0", "", false),
            ("quiet", "console=tty0", false),
        ] {
            let boot = UkiBoot {
                uki: Descriptor::of("u", b"u"),
                disk: None,
                start: UkiStart::Extract,
                command_line: None,
                append: line(append),
                append_if_possible: CommandLine::default(),
                console: Some(line("console=ttyS0")),
            };
            let words = boot.words(&line(own), None).unwrap();
            assert_eq!(words.console_added, added);
            let whole = words.replacement.unwrap();
            assert_eq!(whole.as_str().ends_with("console=ttyS0"), added, "{whole}");
        }
    }
}
