//! How values get onto QEMU's command line: none ever becomes syntax.

use std::ffi::OsString;
use std::path::Path;

use crate::hypervisor::HypervisorError;

/// A command line under construction.
#[derive(Debug)]
pub(super) struct Arguments(Vec<OsString>);

impl Arguments {
    pub(super) fn of(program: &str) -> Self {
        Self(vec![program.into()])
    }

    /// Adds an option that has no value.
    pub(super) fn flag(&mut self, option: &str) {
        self.0.push(option.into());
    }

    /// Adds an option with its value, an argument of its own whatever is in it.
    pub(super) fn add(&mut self, option: &str, value: impl Into<String>) {
        self.flag(option);
        self.0.push(value.into().into());
    }

    pub(super) fn into_command(self) -> Vec<OsString> {
        self.0
    }
}

/// One option of QEMU's `key=value,…` syntax; commas in values are doubled.
pub(super) struct Options {
    text: String,
}

impl Options {
    pub(super) fn new(first: &str) -> Self {
        Self {
            text: first.replace(',', ",,"),
        }
    }

    /// An option that begins with a key.
    pub(super) fn of(key: &str, value: &str) -> Self {
        Self {
            text: format!("{key}={}", value.replace(',', ",,")),
        }
    }

    pub(super) fn with(mut self, key: &str, value: &str) -> Self {
        self.text
            .push_str(&format!(",{key}={}", value.replace(',', ",,")));
        self
    }
}

impl From<Options> for String {
    fn from(options: Options) -> Self {
        options.text
    }
}

/// The text of a path, as QEMU's options need it.
pub(super) fn text(path: &Path) -> Result<String, HypervisorError> {
    path.to_str()
        .filter(|_| path.is_absolute())
        .map(str::to_owned)
        .ok_or_else(|| HypervisorError::Path {
            path: path.to_owned(),
        })
}
