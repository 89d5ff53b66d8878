//! The verbs by which the program tells of itself.

use std::path::PathBuf;

use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ItselfVerb {
    /// Print the manual page, or write all of them into a directory
    Man {
        /// Where to write a page for each verb; it must be there
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}
