//! The verb `man`: manual pages, from the same definitions as the help texts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};
use serde_json::json;

use crate::cli::report::Report;
use crate::cli::{Ended, help, manual};

/// The page of the program itself.
pub(super) fn page() -> Result<Ended, Report> {
    let page = render(&built(), "").map_err(|error| failed(Path::new("-"), &error))?;
    let json = json!({"page": page});
    Ok(Ended::with(page, json))
}

/// Writes the pages of the program and of all its verbs into a directory.
pub(super) fn pages(directory: &Path) -> Result<Ended, Report> {
    let mut written = Vec::new();
    write(directory, &built(), "", &mut written)?;
    let lines = written.iter().map(|path| format!("{}\n", path.display()));
    Ok(Ended::with(lines.collect(), json!({"pages": written})))
}

fn write(
    directory: &Path,
    command: &Command,
    path: &str,
    written: &mut Vec<PathBuf>,
) -> Result<(), Report> {
    let file = directory.join(format!("{}.1", name(path)));
    let page = render(command, path).map_err(|error| failed(&file, &error))?;
    fs::write(&file, page).map_err(|error| failed(&file, &error))?;
    written.push(file);
    for verb in verbs(command) {
        let path = format!("{path} {}", verb.get_name());
        write(directory, verb, path.trim_start(), written)?;
    }
    Ok(())
}

fn failed(path: &Path, error: &io::Error) -> Report {
    Report::usage(format!("can not write {}: {error}", path.display()))
}

fn built() -> Command {
    let mut command = help::command();
    command.build();
    command
}

fn verbs(command: &Command) -> impl Iterator<Item = &Command> {
    let verbs = command.get_subcommands();
    verbs.filter(|verb| !verb.is_hide_set() && verb.get_name() != "help")
}

/// The name of a verb's page.
fn name(path: &str) -> String {
    format!("ironboot {path}").trim_end().replace(' ', "-")
}

fn render(command: &Command, path: &str) -> io::Result<String> {
    let version = format!("ironboot {}", env!("CARGO_PKG_VERSION"));
    let own = as_page(command, path);
    let man = Man::new(own.clone())
        .title(name(path).to_uppercase())
        .date(manual::DATE)
        .source(version)
        .manual("ironboot");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    if command.has_subcommands() {
        entries("VERBS", &verb_list(command, path)).to_writer(&mut page)?;
    }
    man.render_options_section(&mut page)?;
    sections(command, path).to_writer(&mut page)?;
    let page = String::from_utf8(page);
    page.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// The command as its page has it: the options of all verbs are on the program's own page only.
fn as_page(command: &Command, path: &str) -> Command {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.strip_prefix("Usage: ").unwrap_or(&usage).to_owned();
    let command = command.clone().override_usage(usage);
    let command = command.mut_args(|arg| {
        let is_of_all = arg.is_global_set() && !path.is_empty();
        let is_hidden = is_of_all || arg.is_hide_set();
        arg.hide(is_hidden).hide_short_help(false)
    });
    command.display_name(name(path)).disable_version_flag(true)
}

type Entry = (Vec<Inline>, String);

fn verb_list(command: &Command, path: &str) -> Vec<Entry> {
    let entry = |verb: &Command| {
        let path = format!("{path} {}", verb.get_name());
        let about = verb.get_about().map(ToString::to_string);
        let about = about.unwrap_or_default();
        (page_name(path.trim_start()), format!("{about}."))
    };
    verbs(command).map(entry).collect()
}

fn page_name(path: &str) -> Vec<Inline> {
    vec![bold(name(path)), roman("(1)")]
}

fn entries(heading: &str, entries: &[Entry]) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", [heading]);
    for (term, text) in entries {
        roff.control("TP", []);
        roff.text(term.clone());
        roff.text([roman(text.as_str())]);
    }
    roff
}

/// What `--help` does not have.
fn sections(command: &Command, path: &str) -> Roff {
    let mut roff = Roff::new();
    if !path.is_empty() {
        roff.control("SH", ["GLOBAL OPTIONS"]);
        roff.text([roman("Those of all verbs are in ironboot(1).")]);
    }
    let list = |table: &[(&str, &str)], style: fn(String) -> Inline| -> Vec<Entry> {
        let entries = table.iter();
        let entries =
            entries.map(|(term, text)| (vec![style((*term).to_owned())], (*text).to_owned()));
        entries.collect()
    };
    roff.extend([entries("EXIT STATUS", &list(manual::EXIT_STATUSES, bold))]);
    if path.is_empty() {
        roff.extend([entries("ENVIRONMENT", &list(manual::ENVIRONMENT, bold))]);
        roff.extend([entries("FILES", &list(manual::FILES, italic))]);
    } else {
        roff.control("SH", ["ENVIRONMENT AND FILES"]);
        roff.text([roman("Those of all verbs are in ironboot(1).")]);
    }
    let examples: Vec<_> = manual::examples(path).collect();
    if !examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
    }
    for (place, (does, line)) in examples.into_iter().enumerate() {
        if place > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(format!("{does}:"))]);
        roff.control("PP", []);
        roff.control("RS", ["4"]);
        roff.control("nf", []);
        roff.text([roman(line)]);
        roff.control("fi", []);
        roff.control("RE", []);
    }
    roff.control("SH", ["SEE ALSO"]);
    let mut others = see_also(command, path);
    others.extend(
        [
            "qemu(1)",
            "virsh(1)",
            "podman-login(1)",
            "containers-policy.json(5)",
        ]
        .map(String::from),
    );
    roff.text([roman(others.join(", "))]);
    roff
}

/// The page above, or those below.
fn see_also(command: &Command, path: &str) -> Vec<String> {
    let above = path.rsplit_once(' ').map(|(above, _)| above);
    let mut others = Vec::new();
    if !path.is_empty() {
        others.push("ironboot(1)".to_owned());
    }
    others.extend(above.map(|above| format!("{}(1)", name(above))));
    others.extend(verbs(command).map(|verb| {
        let path = format!("{path} {}", verb.get_name());
        format!("{}(1)", name(path.trim_start()))
    }));
    others
}
