//! What is kept of a test that did not pass, and the same test from it again.
//!
//! ```text
//! <artifacts>/<test>/test.json      the test as it was asked for: `--reproduce` reads this alone
//!                    verdict.json   what `test --json` says of it
//!                    command.sh     QEMU's command line
//!                    versions.json  ironboot, QEMU, kernel and CPU of the host
//!                    console.log, firmware.log, notices, qemu.log, events.jsonl, domain.json
//! ```
//!
//! What a guest is given as a credential or as an Ignition config is not kept; what is typed, added to
//! its command line or put into its SMBIOS tables is.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::cli::args::TestArgs;
use crate::cli::report::Report;
use crate::cli::script::quote;
use crate::files::{self, FileError};
use crate::hypervisor::qemu::args::{self, MonitorSocket};
use crate::hypervisor::qemu::version::version;
use crate::ops::Context;

use super::words::Words;
use super::{Judged, unwritable, words};

/// The file that describes the test.
const TEST: &str = "test.json";
/// Largest description of a test that is read, in bytes.
const MAX_TEST_BYTES: u64 = 1 << 20;
/// Words that one may have.
const MAX_WORDS: usize = 4096;
/// How long QEMU may take to say its version.
const VERSION_PATIENCE: Duration = Duration::from_secs(5);

/// The directory of artifacts.
#[derive(Debug)]
pub(super) struct Shelf(PathBuf);

impl Shelf {
    pub(super) fn at(directory: &Path) -> Result<Self, Report> {
        fs::create_dir_all(directory).map_err(unwritable(directory))?;
        Ok(Self(directory.to_owned()))
    }

    /// A place for what is kept of a test, gone again if nothing is.
    pub(super) fn place(&self) -> Result<TempDir, Report> {
        let place = tempfile::Builder::new().prefix(".new-").tempdir_in(&self.0);
        place.map_err(unwritable(&self.0))
    }

    /// Keeps what is in `place` under the test's name, instead of what an earlier call has kept of the
    /// same test there. Another test that comes to the same name gets a number.
    pub(super) fn keep(&self, place: TempDir, name: &str) -> Result<PathBuf, Report> {
        let mut number = 0;
        let path = loop {
            let path = self.0.join(directory_name(name, number));
            match files::read_small(&path.join(TEST), MAX_TEST_BYTES) {
                Ok(Some(json)) if is_of(&json, name) => {
                    fs::remove_dir_all(&path).map_err(FileError::of("remove", &path))?;
                    break path;
                }
                _ if !path.exists() => break path,
                _ => number += 1,
            }
        };
        fs::rename(place.path(), &path).map_err(FileError::of("create", &path))?;
        drop(place.keep());
        Ok(path)
    }
}

/// Whether what was kept is of the test of this name.
fn is_of(json: &[u8], name: &str) -> bool {
    serde_json::from_slice::<Value>(json).is_ok_and(|test| test["name"] == name)
}

/// The name of a test as that of a directory.
fn directory_name(name: &str, number: usize) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let plain = name.chars().map(|c| if is_plain(c) { c } else { '_' });
    // Its end says how it was tested.
    let plain: Vec<char> = plain.collect();
    let end: String = plain[plain.len().saturating_sub(160)..].iter().collect();
    let end = end.trim_start_matches(['.', '-']);
    match number {
        0 => end.to_owned(),
        number => format!("{end}_{number}"),
    }
}

/// Writes what is known of the test beside what was left of its VM.
pub(super) async fn write(
    context: &Context<'_>,
    directory: &Path,
    judged: &Judged,
    args: &TestArgs,
    verdict: &Value,
) -> Result<(), Report> {
    let Words {
        words,
        withheld,
        withholds_ignition,
    } = words::of(judged, args);
    let test = json!({
        "schema_version": 1,
        "name": judged.case.name,
        "words": words,
        "withheld": withheld,
        "withholds_ignition": withholds_ignition,
        "outcome": outcome(verdict),
    });
    write_json(directory, TEST, &test)?;
    write_json(directory, "verdict.json", verdict)?;
    let mut versions = json!({
        "ironboot": env!("CARGO_PKG_VERSION"),
        "host": context.host.kvm_state,
    });
    if let Ok(tested) = &judged.result {
        let spec = &tested.prepared.record.spec;
        let program = args::program(spec.machine);
        versions["qemu"] = json!(version(program, VERSION_PATIENCE).await.ok());
        let command = args::command(spec, MonitorSocket::Named)?;
        let command = command.iter().map(|word| quote(&word.to_string_lossy()));
        let command = command.collect::<Vec<_>>().join(" \\\n    ");
        write_text(directory, "command.sh", &format!("{command}\n"))?;
    }
    write_json(directory, "versions.json", &versions)
}

fn write_json(directory: &Path, name: &str, value: &Value) -> Result<(), Report> {
    write_text(directory, name, &format!("{value:#}\n"))
}

fn write_text(directory: &Path, name: &str, text: &str) -> Result<(), Report> {
    let path = directory.join(name);
    Ok(fs::write(&path, text).map_err(FileError::of("write", &path))?)
}

/// What came of a test, in two words at most: `pass`, `fail: kernel-panic`, `error: not-found`.
pub(super) fn outcome(verdict: &Value) -> String {
    let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kinds = [&verdict["reason"]["kind"], &verdict["error"]["kind"]];
    match kinds.into_iter().find(|kind| kind.is_string()) {
        Some(kind) => format!("{}: {}", word(&verdict["verdict"]), word(kind)),
        None => word(&verdict["verdict"]),
    }
}

/// A test that was kept.
#[derive(Debug)]
pub(super) struct Kept {
    /// How it was asked for.
    pub args: TestArgs,
    /// Its name.
    pub name: String,
    /// What came of it, as [`outcome`] has it.
    pub outcome: String,
}

/// The words of a test, as they are parsed on a command line.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct Line {
    #[command(flatten)]
    args: TestArgs,
}

/// Reads a test that was kept. `asked` is what was asked for now, which has the credentials that are
/// not kept, and says what comes of it.
pub(super) fn read(directory: &Path, asked: &TestArgs) -> Result<Kept, Report> {
    let path = directory.join(TEST);
    let shown = path.display();
    let json = match files::read_small(&path, MAX_TEST_BYTES) {
        Err(error) if error.source.kind() == io::ErrorKind::NotADirectory => None,
        json => json?,
    };
    let json = json.ok_or_else(|| Report::usage(format!("no such file: {shown}")))?;
    let refuse = |why: &str| Report::usage(format!("not a test that was kept, {why}: {shown}"));
    let test: Value = serde_json::from_slice(&json).map_err(|error| refuse(&error.to_string()))?;
    let strings = |key: &str| -> Option<Vec<String>> {
        let values = test[key]
            .as_array()
            .filter(|values| values.len() <= MAX_WORDS)?;
        let strings = values.iter().map(|value| value.as_str().map(str::to_owned));
        strings.collect()
    };
    let words = strings("words").ok_or_else(|| refuse("it has no words"))?;
    let withheld = strings("withheld").ok_or_else(|| refuse("it has nothing withheld"))?;
    let line = Line::try_parse_from(words).map_err(|error| {
        let text = error.to_string();
        refuse(text.lines().next().unwrap_or_default())
    })?;
    let mut args = line.args;
    if args.results.reproduce.is_some() || args.images.len() != 1 || !args.matrix.is_empty() {
        return Err(refuse("it is not of one image"));
    }
    let machine = &args.machine;
    let has_credentials = !machine.set_credential.is_empty() || !machine.load_credential.is_empty();
    if has_credentials || machine.ignition.is_some() {
        return Err(refuse("it names files of this host"));
    }
    let name = test["name"].as_str().unwrap_or_default();
    if name.is_empty() || test["outcome"].as_str().is_none() {
        return Err(refuse("it has no name or outcome"));
    }
    let (set, load) = (
        &asked.machine.set_credential,
        &asked.machine.load_credential,
    );
    args.machine.set_credential.clone_from(set);
    args.machine.load_credential.clone_from(load);
    args.machine.ignition.clone_from(&asked.machine.ignition);
    if test["withholds_ignition"] == true && args.machine.ignition.is_none() {
        let message = "the Ignition config was not kept; pass --ignition FILE";
        return Err(Report::usage(message.to_owned()));
    }
    let set = set.iter().map(|credential| &credential.name);
    let names = set.chain(load.iter().map(|credential| &credential.name));
    let ids: Vec<&str> = names.map(words::credential_id).collect();
    let given = |name: &String| ids.contains(&name.as_str());
    if let Some(name) = withheld.iter().find(|name| !given(name)) {
        return Err(Report::usage(format!(
            "credential {name} was not kept; pass --set-credential {name}:VALUE"
        )));
    }
    args.results.clone_from(&asked.results);
    Ok(Kept {
        args,
        name: name.to_owned(),
        outcome: test["outcome"].as_str().unwrap_or_default().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tests_name_makes_one_directory_below() {
        for (name, number, expected) in [
            ("reg:5000/os:1 amd64 disk", 0, "reg_5000_os_1_amd64_disk"),
            ("../../etc amd64", 0, "_.._etc_amd64"),
            (".new-x", 2, "new-x_2"),
            ("é\n/", 0, "___"),
        ] {
            assert_eq!(directory_name(name, number), expected);
        }
        assert_eq!(directory_name(&"a/".repeat(500), 0).len(), 160);
    }
}
