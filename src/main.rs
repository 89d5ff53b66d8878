//! The `ironboot` program: everything is in the library's `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ironboot::cli::run(std::env::args_os())
}
