//! What a console says: a script as data, and a matcher that is fed bytes and tells what happened.
//!
//! ```text
//! bytes ──Lines──▶ lines without escape sequences ──Matcher──▶ Event…
//!                                                    │ markers: Stage, Failure
//!                                                    │ Script: steps in order, fail_on, tolerated
//! ```
//!
//! Pure: there is no clock and no stream here. A line is judged once it is finished, and an unfinished
//! one (a prompt) when the caller says that nothing has come for a while ([`Matcher::quiet`]); so the
//! events depend on what a guest prints, never on the pieces in which it arrives.
//!
//! Memory is bounded whatever a guest prints: a line has at most 16 KiB, and 40 of them are kept.

mod lines;
mod markers;
mod matcher;
mod rows;
mod script;
mod words;

pub use matcher::{Event, Matcher};
pub use script::{Pattern, PatternError, Script, Step};
pub use words::{Failure, Stage, UnknownFailure};

#[cfg(test)]
mod tests;
