//! The kernel's command line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Largest command line in bytes: `COMMAND_LINE_SIZE` of x86 and arm64 less the closing NUL.
pub const MAX_COMMAND_LINE_BYTES: usize = 2047;

/// A kernel command line: printable ASCII, blanks and tabs, at most 2047 bytes; may be empty.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CommandLine(String);

/// What is wrong with a command line.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum CommandLineError {
    /// A byte that would end it, start a second line, or that the kernel does not read.
    #[error("command line has byte {byte:#04x} at position {position}")]
    Byte {
        /// The byte.
        byte: u8,
        /// Its position, from 0.
        position: usize,
    },
    /// Longer than a kernel reads.
    #[error("command line has {0} bytes, more than {MAX_COMMAND_LINE_BYTES}")]
    TooLong(usize),
}

impl CommandLine {
    /// Parses the content of a command line layer or file: white space and NULs at its end are
    /// dropped (publishers write files with a final newline), anything of the kind inside is an
    /// error.
    pub fn parse(bytes: &[u8]) -> Result<Self, CommandLineError> {
        let end = bytes
            .iter()
            .rposition(|byte| !byte.is_ascii_whitespace() && *byte != 0)
            .map_or(0, |last| last + 1);
        let bytes = &bytes[..end];
        let text: String = bytes
            .iter()
            .enumerate()
            .map(|(position, &byte)| match byte {
                b'\t' | b' '..=b'~' => Ok(char::from(byte)),
                _ => Err(CommandLineError::Byte { byte, position }),
            })
            .collect::<Result<_, _>>()?;
        if text.len() > MAX_COMMAND_LINE_BYTES {
            return Err(CommandLineError::TooLong(text.len()));
        }
        Ok(Self(text))
    }

    /// Returns this line with `words` after it.
    pub fn append(&self, words: &Self) -> Result<Self, CommandLineError> {
        match (self.0.is_empty(), words.0.is_empty()) {
            (_, true) => Ok(self.clone()),
            (true, _) => Ok(words.clone()),
            _ => Self::parse(format!("{} {}", self.0, words.0).as_bytes()),
        }
    }

    /// Tells whether the line has the parameter `name` or `name=…`, as the kernel splits it: at
    /// white space outside double quotes.
    #[must_use]
    pub fn has_parameter(&self, name: &str) -> bool {
        self.words().any(|(word, _)| word == name)
    }

    /// The value of the last parameter `name=…`, which is the one that the kernel goes by.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.values(name).last()
    }

    /// The values of all parameters `name=…`, for those of which the kernel goes by each.
    pub fn values(&self, name: &str) -> impl Iterator<Item = &str> {
        self.words()
            .filter(move |(word, _)| *word == name)
            .filter_map(|(_, value)| value)
    }

    /// The parameters, each with its value if it has one, split as the kernel splits them.
    fn words(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        let mut quoted = false;
        self.0
            .split(move |c| {
                quoted ^= c == '"';
                !quoted && (c == ' ' || c == '\t')
            })
            .map(|word| match word.trim_matches('"').split_once('=') {
                Some((name, value)) => (name, Some(value.trim_matches('"'))),
                None => (word.trim_matches('"'), None),
            })
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CommandLine {
    type Err = CommandLineError;

    fn from_str(text: &str) -> Result<Self, CommandLineError> {
        Self::parse(text.as_bytes())
    }
}

impl TryFrom<String> for CommandLine {
    type Error = CommandLineError;

    fn try_from(text: String) -> Result<Self, CommandLineError> {
        text.parse()
    }
}

impl From<CommandLine> for String {
    fn from(line: CommandLine) -> Self {
        line.0
    }
}

impl fmt::Display for CommandLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_and_nuls_at_the_end_are_dropped() {
        for bytes in [
            &b"quiet ro"[..],
            b"quiet ro\n",
            b"quiet ro \r\n\0\0",
            b"quiet ro\0",
        ] {
            assert_eq!(CommandLine::parse(bytes).unwrap().as_str(), "quiet ro");
        }
        assert_eq!(CommandLine::parse(b"\n").unwrap().as_str(), "");
    }

    #[test]
    fn bytes_that_mean_something_else_are_refused() {
        for (bytes, byte, position) in [
            (&b"a\nb"[..], b'\n', 1),
            (b"a\0b", 0, 1),
            (b"\x1b[31m", 0x1b, 0),
            ("é".as_bytes(), 0xc3, 0),
            (b"a\x7fb", 0x7f, 1),
        ] {
            let expected = CommandLineError::Byte { byte, position };
            assert_eq!(CommandLine::parse(bytes), Err(expected));
        }
    }

    #[test]
    fn the_length_is_the_kernels() {
        let longest = "x".repeat(MAX_COMMAND_LINE_BYTES);
        let line: CommandLine = longest.parse().unwrap();
        let more = "y".parse().unwrap();
        assert_eq!(line.append(&more), Err(CommandLineError::TooLong(2049)));
        let over = format!("{longest}x");
        assert_eq!(
            over.parse::<CommandLine>(),
            Err(CommandLineError::TooLong(2048))
        );
    }

    #[test]
    fn parameters_are_found_as_the_kernel_splits_them() {
        let line: CommandLine = "root=/dev/vda2 x=\"a console=b\"\tro".parse().unwrap();
        assert!(line.has_parameter("root"));
        assert!(line.has_parameter("ro"));
        assert!(!line.has_parameter("console"));
        assert!(!line.has_parameter("oot"));
        assert_eq!(line.parameter("root"), Some("/dev/vda2"));
        assert_eq!(line.parameter("x"), Some("a console=b"));
        assert_eq!(line.parameter("ro"), None);
        let twice: CommandLine = "root=/dev/a \"root=/dev/b\"".parse().unwrap();
        assert_eq!(twice.parameter("root"), Some("/dev/b"));
        let values: Vec<&str> = twice.values("root").collect();
        assert_eq!(values, ["/dev/a", "/dev/b"]);
    }
}
