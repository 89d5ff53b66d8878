//! The verbs by which the program tells of itself.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ItselfVerb {
    /// Print a script that completes what is typed in a shell
    ///
    /// It completes verbs, options and their values, and from the store the images and the names of
    /// instances. No registry is asked.
    Completion {
        /// The shell
        #[arg(value_enum)]
        shell: ShellWord,
    },
    /// Print the manual page, or write all of them into a directory
    Man {
        /// Where to write a page for each verb; it must be there
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Print what the last word may become, for the scripts of `completion`
    #[command(hide = true)]
    Complete {
        /// The words so far, the program's name first
        #[arg(last = true)]
        words: Vec<OsString>,
    },
}

/// Shells that can be told how to complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum ShellWord {
    Bash,
    Zsh,
    Fish,
}
