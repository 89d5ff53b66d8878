//! The definitions of `args` with what only help texts have: the verbs by groups, examples, and where
//! there is more.

use std::ffi::OsString;

use clap::{Args, Command, CommandFactory, FromArgMatches};

use crate::cli::args::{ChoiceArgs, Cli, ConnectArgs, MachineArgs};
use crate::cli::manual;

/// The verbs as people think of them, what they do daily first.
const GROUPS: [(&str, &[&str]); 4] = [
    ("Boot", &["run", "test", "plan", "define", "prepare"]),
    (
        "Instances",
        &["list", "start", "stop", "console", "logs", "ssh", "rm"],
    ),
    ("Images", &["pull", "image"]),
    ("Host", &["doctor", "completion", "man", "help"]),
];

/// Parses what was typed.
pub(super) fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let mut command = command();
    let matches = command.try_get_matches_from_mut(arguments)?;
    Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// The definitions, with their help texts whole.
pub(super) fn command() -> Command {
    let command = with_examples(Cli::command(), "").mut_subcommands(own_first);
    let verbs = verbs(&command);
    command.help_template(format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{verbs}\nOptions:\n{{options}}{{after-help}}"
    ))
}

/// A verb's own options come before those that it shares, whose heading clap would give to them.
fn own_first(verb: Command) -> Command {
    let shared = MachineArgs::augment_args(ConnectArgs::augment_args(ChoiceArgs::augment_args(
        Command::new("shared"),
    )));
    verb.mut_args(|arg| {
        let is_shared = shared
            .get_arguments()
            .any(|other| other.get_id() == arg.get_id());
        match is_shared {
            true => arg,
            false => arg.help_heading(None),
        }
    })
}

fn with_examples(command: Command, path: &str) -> Command {
    let examples = manual::examples(path).map(|(does, line)| format!("  # {does}\n  {line}\n"));
    let examples: Vec<String> = examples.collect();
    let command = match examples.is_empty() {
        true => command,
        false => command.after_long_help(format!("Examples:\n{}", examples.join("\n"))),
    };
    command.mut_subcommands(|verb| {
        let name = verb.get_name().to_owned();
        let path = format!("{path} {name}");
        with_examples(verb, path.trim_start())
    })
}

/// The list of verbs in groups, with what each does.
fn verbs(command: &Command) -> String {
    let mut text = String::new();
    for (group, names) in GROUPS {
        text += &format!("\n{group}:\n");
        for name in names {
            let about = match *name {
                "help" => Some("Print this, or the help of a verb".to_owned()),
                name => command
                    .find_subcommand(name)
                    .and_then(Command::get_about)
                    .map(ToString::to_string),
            };
            if let Some(about) = about {
                text += &format!("  {name:<11} {about}\n");
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command that a person sees, with the words that lead to it.
    fn all(command: &Command, path: &str) -> Vec<(String, Command)> {
        let mut found = vec![(path.to_owned(), command.clone())];
        for verb in command.get_subcommands() {
            if !verb.is_hide_set() && verb.get_name() != "help" {
                let path = format!("{path} {}", verb.get_name());
                found.extend(all(verb, path.trim_start()));
            }
        }
        found
    }

    fn built() -> Command {
        let mut command = command();
        command.build();
        command
    }

    #[test]
    fn every_verb_is_in_one_group() {
        let command = built();
        let verbs = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        for verb in verbs {
            let name = verb.get_name();
            let groups = GROUPS.iter().filter(|(_, names)| names.contains(&name));
            assert_eq!(groups.count(), 1, "{name}");
        }
    }

    #[test]
    fn no_help_is_wider_than_a_terminal() {
        for (path, command) in all(&built(), "") {
            let mut command = command.term_width(80);
            let texts = [command.render_help(), command.render_long_help()];
            for text in texts.map(|text| text.to_string()) {
                for line in text.lines() {
                    assert!(line.chars().count() <= 80, "{path}: {line}");
                }
            }
        }
    }

    #[test]
    fn every_example_can_be_typed() {
        let known: Vec<String> = all(&built(), "")
            .into_iter()
            .map(|(path, _)| path)
            .collect();
        for (path, does, line) in manual::EXAMPLES {
            assert!(known.iter().any(|known| known == path), "{path}");
            assert!(!does.is_empty() && does.len() <= 74, "{does}");
            // What the shell does with its output is no business of ours.
            let (line, _) = line.split_once(" | ").unwrap_or((line, ""));
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert!(
                line.starts_with(format!("ironboot {path}").trim_end()),
                "{line}"
            );
            if let Err(error) = parse(&words) {
                panic!("{line}: {error}");
            }
        }
    }
}
