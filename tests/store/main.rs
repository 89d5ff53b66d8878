//! The store under what happens to stores: kills, errors of the kernel, power cuts, full disks, many
//! processes at once. The real program pulls from a registry in this process, and a judge that
//! shares no code with it looks at what lies there afterwards.
//!
//! `cargo test` takes a sample; `scripts/torture` runs the same with more rounds and with every
//! system call. Each test prints its seed; `IRONBOOT_TORTURE_SEED` repeats it.
//!
//! | file        | what it is about                                                        |
//! |-------------|-------------------------------------------------------------------------|
//! | `judge`     | what a store must be at any instant, and once it is at rest              |
//! | `kills`     | SIGKILL at any instant of a pull, a removal, a moved tag, among many     |
//! | `syscalls`  | SIGKILL and errors at each system call that touches the store            |
//! | `power`     | the file system itself ends at any instant                               |
//! | `limits`    | no space, no inodes, read-only, limits of file size and memory           |
//! | `together`  | many processes at once: one download, nothing lost                       |
//! | `partials`  | what is fetched again after a kill, and partials that are wrong          |
//! | `derived`   | the same while a disk is unpacked                                        |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "../support/hostile.rs"]
#[allow(dead_code, reason = "only the images below need it")]
mod hostile;
#[path = "../cli/image.rs"]
#[allow(dead_code, reason = "shared with tests/cli, which uses more of it")]
mod image;
#[path = "../support/corpus.rs"]
#[allow(
    dead_code,
    reason = "shared with the other tests, which use more of it"
)]
mod corpus;
#[path = "../support/shop.rs"]
#[allow(dead_code, reason = "shared with what measures, which uses more of it")]
mod shop;

mod desk;
mod judge;
mod stock;
mod mounts;

mod kills;
mod syscalls;
mod power;
mod limits;
mod together;
mod partials;
mod derived;
