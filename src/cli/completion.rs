//! The verb `completion`: a script for a shell; and the hidden verb `complete`, which such a script
//! asks at each press of the key. That one reads the store and nothing else, and is silent whatever
//! is wrong.

use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Arg, Command, ValueHint};
use clap_complete::engine::{
    ArgValueCompleter, CompletionCandidate, PathCompleter, ValueCompleter, complete,
};
use serde_json::json;

use crate::boot::FirmwareWish;
use crate::cli::args::{NetworkWord, ShellWord};
use crate::cli::{Ended, Output, environment, help};
use crate::domain::DomainName;
use crate::image::Variant;
use crate::instance::Instances;
use crate::oci::{Architecture, Reference};
use crate::store::Store;

/// The script that makes `shell` ask us.
pub(super) fn script(shell: ShellWord) -> Ended {
    let script = match shell {
        ShellWord::Bash => include_str!("completion/ironboot.bash"),
        ShellWord::Zsh => include_str!("completion/ironboot.zsh"),
        ShellWord::Fish => include_str!("completion/ironboot.fish"),
    };
    Ended::with(script.to_owned(), json!({"script": script}))
}

/// What the last of `words` may become, the program's name first: one a line, with a tab before what
/// it is for.
pub(super) fn candidates(words: Vec<OsString>) -> Ended {
    let mut ended = Ended::silently();
    let Some(last) = words.last().cloned() else {
        return ended;
    };
    let store = store(&words);
    let mut command = with_values(help::command(), store.as_ref());
    let place = words.len() - 1;
    let directory = environment::current_directory();
    let found = complete(&mut command, words, place, directory.as_deref());
    let mut found = found.unwrap_or_default();
    // Options are many: they are offered where one is begun, or where there is nothing else.
    let is_option = |candidate: &CompletionCandidate| starts_with(candidate.get_value(), "-");
    if last.is_empty() && !found.iter().all(is_option) {
        found.retain(|candidate| !is_option(candidate));
    }
    let lines = found.iter().filter_map(line);
    let text = lines.collect();
    ended.output = Output::Both {
        text,
        json: json!({}),
    };
    ended
}

/// The line of a candidate; none of what a line can not hold.
fn line(candidate: &CompletionCandidate) -> Option<String> {
    let value = candidate.get_value().to_str()?;
    if value.contains(char::is_control) {
        return None;
    }
    let help = candidate.get_help().map(ToString::to_string);
    let help = help.as_ref().and_then(|help| help.lines().next());
    Some(match help {
        Some(help) => format!("{value}\t{help}\n"),
        None => format!("{value}\n"),
    })
}

/// The store that `words` name, or the one that there is otherwise.
fn store(words: &[OsString]) -> Option<Store> {
    // Half a command line is mostly wrong.
    let command = help::command().ignore_errors(true);
    let named = command.try_get_matches_from(words).ok();
    let named = named.and_then(|named| named.get_one::<PathBuf>("store").cloned());
    environment::store(named.as_deref()).ok().map(Store::at)
}

/// The same with what each value may be where clap does not know it: told by the value's type.
fn with_values(command: Command, store: Option<&Store>) -> Command {
    command
        .mut_args(|arg| with_value(arg, store))
        .mut_subcommands(|verb| with_values(verb, store))
}

fn with_value(arg: Arg, store: Option<&Store>) -> Arg {
    let parsed = arg.get_value_parser().type_id();
    if parsed == std::any::TypeId::of::<Reference>() {
        let store = store.cloned();
        return arg.add(ArgValueCompleter::new(move |word: &OsStr| {
            let known = store.as_ref().map(Store::reference_names);
            references(&known.unwrap_or_default(), word)
        }));
    }
    if parsed == std::any::TypeId::of::<DomainName>() && arg.is_positional() {
        let store = store.cloned();
        return arg.add(ArgValueCompleter::new(move |word: &OsStr| {
            beginning(&instances(store.as_ref()), word)
        }));
    }
    let words: &[&str] = if parsed == std::any::TypeId::of::<Architecture>() {
        &["amd64", "arm64"]
    } else if parsed == std::any::TypeId::of::<Variant>() {
        &["virtualization", "metal"]
    } else if parsed == std::any::TypeId::of::<NetworkWord>() {
        &["user", "none", "network=", "bridge="]
    } else if parsed == std::any::TypeId::of::<FirmwareWish>() {
        &["auto", "uefi", "uefi-secure", "bios"]
    } else if arg.get_long().is_some_and(|name| name.ends_with("-dir")) {
        return arg.value_hint(ValueHint::DirPath);
    } else {
        return arg;
    };
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    arg.add(ArgValueCompleter::new(move |word: &OsStr| {
        beginning(&words, word)
    }))
}

fn instances(store: Option<&Store>) -> Vec<String> {
    let instances = store.map(|store| Instances::at(store.instances()));
    let names = instances.and_then(|instances| instances.names().ok());
    let names = names.unwrap_or_default().into_iter();
    names.map(|name| name.to_string()).collect()
}

fn beginning(words: &[String], word: &OsStr) -> Vec<CompletionCandidate> {
    let begun = word.to_string_lossy();
    let words = words.iter().filter(|known| known.starts_with(&*begun));
    words.map(CompletionCandidate::new).collect()
}

/// What is known, and the files after a transport's name.
fn references(known: &[String], word: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = beginning(known, word);
    for (transport, paths) in [
        ("oci:", PathCompleter::dir()),
        ("oci-archive:", PathCompleter::file()),
    ] {
        let text = word.to_string_lossy();
        if let Some(path) = text.strip_prefix(transport) {
            let paths = paths.complete(OsStr::new(path)).into_iter();
            found.extend(paths.map(|path| path.add_prefix(transport)));
        } else if transport.starts_with(&*text) {
            found.push(CompletionCandidate::new(transport));
        }
    }
    found
}

fn starts_with(word: &OsStr, beginning: &str) -> bool {
    word.as_encoded_bytes().starts_with(beginning.as_bytes())
}
