//! The disk gate: rows 76 to 110 of `tests/rows.md`, by the library; by the program they are in
//! `tests/cli/disks.rs`. `scripts/bench disk-gate` measures the same files.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "../support/corpus.rs"]
#[allow(
    dead_code,
    reason = "shared with the other tests, which use more of it"
)]
mod corpus;
mod gate;
mod peers;
