//! What `test` takes: the images, what they must show, how long they may take, what comes of it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, ValueEnum};

use super::values::{duration, percent, reference, typed};
use super::{AccelWord, BootWord, ChoiceArgs, MachineArgs, UkiWord};
use crate::boot::FirmwareWish;
use crate::domain::Memory;
use crate::expect::{Failure, Pattern, Script, Step};
use crate::oci::{Architecture, Reference};
use crate::ops::test::Ready;

#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct TestArgs {
    /// Images, as HOST[:PORT]/REPOSITORY[:TAG][@DIGEST], oci:DIR[:NAME] or oci-archive:FILE[:NAME]
    #[arg(value_name = "IMAGE", value_parser = reference, required_unless_present = "reproduce")]
    pub images: Vec<Reference>,
    #[command(flatten)]
    pub choice: ChoiceArgs,
    #[command(flatten)]
    pub machine: MachineArgs,
    #[command(flatten)]
    pub pass: PassArgs,
    /// Test it each way: arch=, boot=, firmware=, uki= or accel= with values between commas; given
    /// several times, each with each
    #[arg(long, value_name = "KEY=VALUE,…", help_heading = "Several tests")]
    pub matrix: Vec<Axis>,
    /// Tests at the same time [default: what this host's CPUs can run]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024),
          help_heading = "Several tests")]
    pub jobs: Option<u16>,
    /// Memory that all guests together may have [default: four fifths of what is available]
    #[arg(long, value_name = "SIZE", help_heading = "Several tests")]
    pub memory_budget: Option<Memory>,
    #[command(flatten)]
    pub results: ResultArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What passes and what fails")]
pub(in crate::cli) struct PassArgs {
    #[command(flatten)]
    pub dialogue: Dialogue,
    /// Fail as soon as the console shows a line with this regular expression
    #[arg(long, value_name = "REGEX")]
    pub fail_on: Vec<Pattern>,
    /// Do not fail because of this, as in kernel-oops or emergency-mode
    #[arg(long, value_name = "FAILURE", value_parser = tolerable())]
    pub tolerate: Vec<Failure>,
    /// What besides must tell that the guest is ready
    #[arg(long, value_enum, value_name = "HOW")]
    pub ready: Option<ReadyWord>,
    /// Execute this in the guest by SSH, as root and with a key that systemd or Ignition is given for
    /// it; fail if its exit status is not 0
    #[arg(long, value_name = "COMMAND")]
    pub exec: Option<String>,
    /// How long a boot may take under KVM, as in 90s or 5m; five times as long by QEMU's translator
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = duration)]
    pub timeout: Duration,
    /// Fail what passes later than this, as in 20s, whatever the accelerator
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max_boot_time: Option<Duration>,
    /// Fail what passes later than in this file, which `test --json` has written; only what ran on
    /// the same accelerator, CPUs and memory is compared
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// How much later that is
    #[arg(long, value_name = "PERCENT", default_value = "20%", value_parser = percent)]
    pub max_regression: u32,
}

/// What a test that was kept says itself.
const KEPT: [&str; 25] = [
    "images",
    "matrix",
    "expect",
    "send",
    "fail_on",
    "tolerate",
    "ready",
    "exec",
    "timeout",
    "max_boot_time",
    "baseline",
    "arch",
    "variant",
    "boot",
    "cmdline",
    "append",
    "firmware",
    "uki",
    "cpus",
    "memory",
    "disk_size",
    "smbios",
    "hostname",
    "accel",
    "network",
];

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "What comes of it")]
pub(in crate::cli) struct ResultArgs {
    /// Write the results as JUnit XML
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Keep console, command, plan, events and verdict of what does not pass, each test in a
    /// directory of its own
    #[arg(long, value_name = "DIR")]
    pub artifacts: Option<PathBuf>,
    /// Test again what is in a directory that --artifacts has made, as it was; credentials and an
    /// Ignition config are not in it, and are given again
    #[arg(long, value_name = "DIR", conflicts_with_all = KEPT)]
    pub reproduce: Option<PathBuf>,
}

/// What is waited for and what is typed, in the order in which it was given.
#[derive(Debug, Clone, Default)]
pub(in crate::cli) struct Dialogue(pub Vec<Step>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(in crate::cli) enum ReadyWord {
    /// READY=1 on the guest's port /dev/virtio-ports/io.ironboot.notify; EXIT_STATUS=N there fails it
    Notify,
    /// The first words of its SSH server
    Ssh,
}

/// In what the tests of one call differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::cli) enum Axis {
    Arch(Vec<Architecture>),
    Boot(Vec<BootWord>),
    Firmware(Vec<FirmwareWish>),
    Uki(Vec<UkiWord>),
    Accel(Vec<AccelWord>),
}

impl PassArgs {
    /// What besides must tell that the guest is ready.
    pub(in crate::cli) fn ready(&self) -> Option<Ready> {
        self.ready.map(|word| match word {
            ReadyWord::Notify => Ready::Notice,
            ReadyWord::Ssh => Ready::Ssh,
        })
    }

    /// The script. Without anything to wait for, a system that is up passes.
    pub(in crate::cli) fn script(&self) -> Script {
        let mut script = Script {
            steps: self.dialogue.0.clone(),
            ..Script::default()
        };
        if script.steps.is_empty() && self.ready.is_none() && self.exec.is_none() {
            script = Script::until_up();
        }
        script.fail_on = self.fail_on.clone();
        script.tolerated = self.tolerate.iter().copied().collect::<BTreeSet<_>>();
        script
    }
}

fn tolerable() -> impl clap::builder::TypedValueParser<Value = Failure> {
    use clap::builder::TypedValueParser as _;
    let names = Failure::ALL
        .into_iter()
        .filter(|failure| failure.is_on_console());
    PossibleValuesParser::new(names.map(Failure::as_str)).try_map(|name| name.parse::<Failure>())
}

impl std::str::FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        fn values<T>(
            text: &str,
            read: impl Fn(&str) -> Result<T, String>,
        ) -> Result<Vec<T>, String> {
            text.split(',').map(read).collect()
        }
        fn word<T: ValueEnum>(text: &str) -> Result<T, String> {
            T::from_str(text, false).map_err(|_| {
                let words = T::value_variants().iter().filter_map(T::to_possible_value);
                let words: Vec<_> = words.map(|word| word.get_name().to_owned()).collect();
                format!("`{text}` is none of {}", words.join(", "))
            })
        }
        let (key, list) = text.split_once('=').ok_or("not KEY=VALUE,…")?;
        match key {
            "arch" => values(list, |text| {
                text.parse::<Architecture>()
                    .map_err(|error| error.to_string())
            })
            .map(Self::Arch),
            "boot" => values(list, word).map(Self::Boot),
            "firmware" => values(list, |text| {
                text.parse::<FirmwareWish>()
                    .map_err(|error| error.to_string())
            })
            .map(Self::Firmware),
            "uki" => values(list, word).map(Self::Uki),
            "accel" => values(list, word).map(Self::Accel),
            _ => Err(format!(
                "`{key}` is none of arch, boot, firmware, uki, accel"
            )),
        }
    }
}

// By hand, because the order between two options is what counts here.
impl Args for Dialogue {
    fn augment_args(command: Command) -> Command {
        let option = |name: &'static str| {
            Arg::new(name)
                .long(name)
                .action(ArgAction::Append)
                .num_args(1)
        };
        command
            .arg(
                option("expect")
                    .value_name("REGEX")
                    .allow_hyphen_values(true)
                    .value_parser(|text: &str| text.parse::<Pattern>())
                    .help(
                        "Wait for a line of the console with this regular expression; given several \
                         times, one after the other [default: a login prompt, or what else tells \
                         that a system is up]",
                    ),
            )
            .arg(
                option("send")
                    .value_name("TEXT")
                    .allow_hyphen_values(true)
                    .value_parser(typed)
                    .help(
                        "Type this and Enter once all before it on the command line is done; \\n, \
                         \\t, \\e and \\xHH are keys, and \\c at the end types no Enter",
                    ),
            )
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Dialogue {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut steps: Vec<(usize, Step)> = Vec::new();
        let places = |name| matches.indices_of(name).into_iter().flatten();
        let expected = matches.get_many::<Pattern>("expect").into_iter().flatten();
        let expected = expected.cloned().map(Step::Expect);
        steps.extend(places("expect").zip(expected));
        let sent = matches.get_many::<Vec<u8>>("send").into_iter().flatten();
        steps.extend(places("send").zip(sent.cloned().map(Step::Send)));
        steps.sort_by_key(|(place, _)| *place);
        let steps: Vec<Step> = steps.into_iter().map(|(_, step)| step).collect();
        if let Some(Step::Send(_)) = steps.last()
            && !steps.iter().any(|step| matches!(step, Step::Expect(_)))
        {
            let words = "--send needs an --expect: what is typed proves nothing";
            return Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, words));
        }
        Ok(Self(steps))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
