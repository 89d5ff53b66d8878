//! What is waited for on a console, and what is answered.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use regex::{Regex, RegexBuilder};
use thiserror::Error;

use crate::expect::Failure;

/// Bytes that a compiled pattern may take; one of more is refused.
const SIZE_LIMIT: usize = 1 << 20;

/// What tells that a system is up, whichever it is: a login prompt, systemd's last targets or its
/// closing words, busybox' offer of a console.
const UP: &str = r"(?x)^(?:
    [^\ ]+\ login:\ *(?:\[|$)
    | (?:\[\ *[0-9.]+\]\ )?(?:systemd\[1\]:|\[\ *OK\ *\])\x20
        (?:Startup\ finished\ in\ |Reached\ target\ .*(?:Multi-User|Graphical|multi-user\.target|graphical\.target))
    | Please\ press\ Enter\ to\ activate\ this\ console
)";

/// A regular expression, looked for in one line at a time; it takes time linear in the line's length.
#[derive(Debug, Clone)]
pub struct Pattern {
    regex: Regex,
    /// What it stands for, if it is one of ours.
    meaning: Option<&'static str>,
}

/// What a script does next.
#[derive(Debug, Clone)]
pub enum Step {
    /// Waits for a line with this.
    Expect(Pattern),
    /// Types these bytes.
    Send(Vec<u8>),
}

/// What is waited for, and what ends the waiting.
#[derive(Debug, Clone, Default)]
pub struct Script {
    /// One after the other; passes behind the last one. Without any, only failures are looked for.
    pub steps: Vec<Step>,
    /// What must not come before that, at any time.
    pub fail_on: Vec<Pattern>,
    /// What the console tells and is no failure here.
    pub tolerated: BTreeSet<Failure>,
}

/// What is wrong with a string that should be a pattern.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PatternError {
    /// Nothing there; it would match each line.
    #[error("pattern is empty")]
    Empty,
    /// Not a regular expression.
    #[error("pattern is not a regular expression, {reason}: {pattern}")]
    Syntax {
        /// The pattern.
        pattern: String,
        /// What its parser says.
        reason: String,
    },
    /// Too large once it is compiled, as `(.{9999}){9999}` is.
    #[error("pattern takes more than 1 MiB: {0}")]
    TooLarge(String),
}

impl Script {
    /// A script that passes once the system is up, whichever it is.
    #[must_use]
    pub fn until_up() -> Self {
        let up: Pattern = UP.parse().expect("a test parses this constant");
        let up = Pattern {
            meaning: Some("a sign that the system is up"),
            ..up
        };
        Self {
            steps: vec![Step::Expect(up)],
            ..Self::default()
        }
    }
}

impl Pattern {
    /// The expression, as typed.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.regex.as_str()
    }

    /// What it stands for, if it is one of ours; whoever wrote his own reads it as he wrote it.
    #[must_use]
    pub fn meaning(&self) -> Option<&'static str> {
        self.meaning
    }

    /// Where the first match at or behind `from` ends, if there is one.
    pub(super) fn end_of_match(&self, line: &str, from: usize) -> Option<usize> {
        self.regex.find_at(line, from).map(|found| found.end())
    }
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(pattern: &str) -> Result<Self, PatternError> {
        if pattern.is_empty() {
            return Err(PatternError::Empty);
        }
        let escaped = || pattern.escape_debug().to_string();
        RegexBuilder::new(pattern)
            .size_limit(SIZE_LIMIT)
            .dfa_size_limit(SIZE_LIMIT)
            .build()
            .map(|regex| Self {
                regex,
                meaning: None,
            })
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => PatternError::TooLarge(escaped()),
                other => {
                    // The text is a drawing of several lines that ends with the reason.
                    let text = other.to_string();
                    let reason = text.rsplit("error: ").next().unwrap_or_default();
                    PatternError::Syntax {
                        pattern: escaped(),
                        reason: reason.trim().to_owned(),
                    }
                }
            })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pattern_is_refused_with_its_reason() {
        let check = |text: &str, expected: &str| {
            assert_eq!(text.parse::<Pattern>().unwrap_err().to_string(), expected);
        };
        check("", "pattern is empty");
        check(
            "a(b",
            "pattern is not a regular expression, unclosed group: a(b",
        );
        check(
            "a\n[",
            "pattern is not a regular expression, unclosed character class: a\\n[",
        );
        check(
            "(.{9999}){9999}",
            "pattern takes more than 1 MiB: (.{9999}){9999}",
        );
    }

    #[test]
    fn a_system_is_up_by_its_last_words_and_not_by_others() {
        let up: Pattern = UP.parse().unwrap();
        for line in [
            "debian login: ",
            "debian login:",
            "debian login: [   12.345678] random: crng init done",
            "[  OK  ] Reached target multi-user.target - Multi-User System.",
            "[  OK  ] Reached target Graphical Interface.",
            "[    9.876543] systemd[1]: Reached target Multi-User System.",
            "[    9.876543] systemd[1]: Startup finished in 3.1s (kernel) + 5.2s (userspace) = 8.3s.",
            "Please press Enter to activate this console.",
        ] {
            assert!(up.end_of_match(line, 0).is_some(), "{line}");
        }
        for line in [
            "[  OK  ] Reached target getty.target - Login Prompts.",
            "[  OK  ] Started systemd-logind.service - User Login Management.",
            "[  OK  ] Reached target sysinit.target - System Initialization.",
            "debian login: root",
            "root login: refused on tty1",
        ] {
            assert!(up.end_of_match(line, 0).is_none(), "{line}");
        }
    }
}
