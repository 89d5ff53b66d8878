//! The program: argv, environment, default paths, standard streams, exit codes. Nothing else
//! touches these.
//!
//! `run` parses (args, help), looks up (environment), makes requests of it (request), dispatches (verbs,
//! image_verbs, doctor, test, completion, man) and reports (report); what a person sees is made in text,
//! progress and terminal, what a program sees in output.

mod args;
mod help;
mod manual;
mod completion;
mod man;
mod environment;
mod request;
mod verbs;
mod image_verbs;
mod doctor;
mod output;
mod text;
mod script;
mod test;
mod progress;
mod terminal;
mod ssh;
mod report;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::report::Report;
use crate::hypervisor::qemu::{self, Qemu};
use crate::hypervisor::{Hypervisor, HypervisorError};

/// How long what nobody waits for any more may hold up the end: a question to libvirt, on whose
/// thread libvirt's libraries must not be while the program ends; not somebody else's lock.
const LAST_CALLS: Duration = Duration::from_millis(500);

/// What a verb prints on standard output.
#[derive(Debug)]
enum Output {
    /// Data, as text and as JSON.
    Both {
        /// For people; ends with a line break if it is not empty.
        text: String,
        /// For programs: the fields of the object.
        json: Value,
    },
    /// What was printed while it ran is all.
    Nothing,
}

/// How a verb ended that did not fail.
#[derive(Debug)]
struct Ended {
    output: Output,
    exit_code: u8,
    /// What is wrong with what is in the output, or missing from it.
    reports: Vec<Report>,
}

impl Ended {
    /// Ended well, and everything is printed.
    fn silently() -> Self {
        Self {
            output: Output::Nothing,
            exit_code: 0,
            reports: Vec::new(),
        }
    }

    /// Ended by a signal, with the exit status that shells give to that.
    fn by_signal(number: u8) -> Self {
        Self {
            output: Output::Nothing,
            exit_code: 128 + number,
            reports: Vec::new(),
        }
    }

    /// Ended well, with `text` or the fields of `json`.
    fn with(text: String, json: Value) -> Self {
        Self {
            output: Output::Both { text, json },
            exit_code: 0,
            reports: Vec::new(),
        }
    }

    /// Something went wrong besides. An exit status that tells of more stays.
    fn say_as_well(&mut self, report: Report) {
        if let Output::Both { json, .. } = &mut self.output {
            json["error"] = report.to_json()["error"].take();
        }
        if self.exit_code == 0 {
            self.exit_code = report.kind.exit_code();
        }
        self.reports.push(report);
    }

    /// Ended with `text` or the fields of `json`, which tell of something that is wrong.
    fn wrong(text: String, mut json: Value, report: Report) -> Self {
        json["error"] = report.to_json()["error"].take();
        Self {
            output: Output::Both { text, json },
            exit_code: report.kind.exit_code(),
            reports: vec![report],
        }
    }

    /// Ended with `text` or the fields of `json` for what has worked, and `first` and `others` for what
    /// has not.
    fn partly(text: String, mut json: Value, first: Report, others: Vec<Report>) -> Self {
        let mut errors: Vec<Value> = Vec::new();
        for report in std::iter::once(&first).chain(&others) {
            errors.push(report.to_json()["error"].take());
        }
        json["errors"] = Value::from(errors);
        let mut ended = Self::wrong(text, json, first);
        ended.reports.extend(others);
        ended
    }
}

/// Runs the program with the given arguments, the program's name first.
#[must_use]
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let cli = match help::parse(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error, arguments.iter().any(|word| word == "--json")),
    };
    let json = cli.global.json;
    // What blocks has threads of its own, so one is enough for the rest, and each costs memory.
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| {
            runtime.block_on(async { outlive_file_limits() })?;
            Ok(runtime)
        })
        .map_err(|error| Report::usage(format!("can not start: {error}")))
        .and_then(|runtime| {
            let result = runtime.block_on(verbs::execute(cli));
            runtime.shutdown_timeout(LAST_CALLS);
            result
        });
    match result {
        Ok(ended) => {
            let exit_code = ended.exit_code;
            match print(ended.output, json) {
                Ok(()) => {
                    // Under --json they are in the one object.
                    for report in ended.reports.iter().filter(|_| !json) {
                        fail(report, json);
                    }
                    ExitCode::from(exit_code)
                }
                // Whoever read our output has seen enough.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                    ExitCode::from(exit_code)
                }
                Err(error) => {
                    let text = format!("error: can not write to standard output: {error}\n");
                    // There is nowhere left to say that this is closed as well.
                    drop(io::stderr().write_all(text.as_bytes()));
                    ExitCode::from(125)
                }
            }
        }
        Err(report) => fail(&report, json),
    }
}

/// Makes a write beyond the limit of a file's size an error, as a full disk is; unasked, the kernel
/// ends the process instead. The programs that we start are not concerned.
fn outlive_file_limits() -> io::Result<()> {
    let exceeded = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
    // What catches it stays when nobody listens any more.
    signal(exceeded).map(drop)
}

fn print(output: Output, json: bool) -> io::Result<()> {
    match output {
        Output::Nothing => Ok(()),
        Output::Both { json: fields, .. } if json => {
            writeln!(io::stdout(), "{}", output::object(fields))
        }
        Output::Both { text, .. } => write!(io::stdout(), "{text}"),
    }
}

/// Shows an error: on standard error, or under `--json` as the one object on standard output.
fn fail(report: &Report, json: bool) -> ExitCode {
    let written = if json {
        writeln!(io::stdout(), "{}", report.to_json())
    } else {
        let colour = environment::may_colour(io::stderr().is_terminal());
        let text = report.to_text();
        let text = match text.strip_prefix("error:") {
            Some(rest) if colour => format!("\x1b[1;31merror:\x1b[0m{rest}"),
            _ => text,
        };
        write!(io::stderr(), "{text}")
    };
    // There is nowhere left to say that the streams are closed.
    drop(written);
    ExitCode::from(report.kind.exit_code())
}

/// Shows clap's help, version or error.
fn usage(error: &clap::Error, json: bool) -> ExitCode {
    let asked_for = matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    );
    if asked_for || !json {
        drop(error.print());
        return ExitCode::from(if asked_for { 0 } else { 2 });
    }
    let text = error.to_string();
    // What is wrong may take several lines; after an empty one comes advice on how to type it.
    let lines = text.lines().take_while(|line| !line.is_empty());
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    let message = words.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    fail(&Report::usage(message.to_owned()), true)
}

/// Opens the hypervisor that a record names.
fn open_hypervisor(name: &str) -> Result<Box<dyn Hypervisor>, HypervisorError> {
    if name == qemu::NAME {
        return Ok(Box::new(Qemu));
    }
    open_libvirt(name)
}

#[cfg(feature = "libvirt")]
fn open_libvirt(uri: &str) -> Result<Box<dyn Hypervisor>, HypervisorError> {
    Ok(Box::new(crate::hypervisor::libvirt::Libvirt::open(uri)?))
}

#[cfg(not(feature = "libvirt"))]
fn open_libvirt(uri: &str) -> Result<Box<dyn Hypervisor>, HypervisorError> {
    Err(HypervisorError::NoLibvirt {
        uri: uri.to_owned(),
    })
}
