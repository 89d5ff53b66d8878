//! Where a test works: the program in an environment of its own, processes, and chance.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::geteuid;
use serde_json::Value;
use tempfile::TempDir;

use crate::judge::{Found, judge_at_rest};

/// The user of [`Desk::for_nobody`] where we are root.
const NOBODY: u32 = 65534;

/// A home and a store that only this test sees.
#[derive(Debug)]
pub(crate) struct Desk {
    directory: TempDir,
    store: PathBuf,
    program: PathBuf,
}

/// What the program printed and how it ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// None if a signal ended it.
    pub(crate) status: Option<i32>,
    pub(crate) signal: Option<i32>,
}

impl Desk {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("home")).unwrap();
        let store = directory.path().join("store");
        Self {
            directory,
            store,
            program: env!("CARGO_BIN_EXE_ironboot").into(),
        }
    }

    /// Of a user who may do nothing but what anybody may; of whoever we are, unless we are root.
    pub(crate) fn for_nobody() -> Self {
        let mut desk = Self::new();
        // Where it is built, nobody may be allowed to go.
        let program = desk.path("ironboot");
        fs::copy(&desk.program, &program).unwrap();
        desk.program = program;
        if geteuid().is_root() {
            for path in [desk.directory.path().to_owned(), desk.path("home")] {
                chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        desk
    }

    /// Runs the program as the user of [`Desk::for_nobody`].
    pub(crate) fn run_as_nobody(&self, wrapper: &[&str], line: &str) -> Output {
        let id = NOBODY.to_string();
        let become_nobody = ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"];
        match geteuid().is_root() {
            true => self.run_under(&[&become_nobody, wrapper].concat(), line),
            false => self.run_under(wrapper, line),
        }
    }

    /// With the store elsewhere.
    pub(crate) fn with_store(store: PathBuf) -> Self {
        Self {
            store,
            ..Self::new()
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn store(&self) -> &Path {
        &self.store
    }

    /// The program with the words of `line`.
    pub(crate) fn command(&self, line: &str) -> Command {
        self.under(&[], line)
    }

    /// The program with the words of `line`, started by the program of the words `wrapper`.
    pub(crate) fn under(&self, wrapper: &[&str], line: &str) -> Command {
        let mut words = wrapper
            .iter()
            .map(OsStr::new)
            .chain([self.program.as_os_str()])
            .chain(line.split(' ').map(OsStr::new));
        let mut command = Command::new(words.next().expect("the program is one of the words"));
        command
            .args(words)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path("home"))
            .env("IRONBOOT_STORE", &self.store)
            .env("NO_COLOR", "1")
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn start(&self, line: &str) -> Child {
        self.command(line).spawn().unwrap()
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        finish(self.start(line))
    }

    pub(crate) fn run_under(&self, wrapper: &[&str], line: &str) -> Output {
        let child = self.under(wrapper, line).spawn();
        let child = child.unwrap_or_else(|error| panic!("can not run {wrapper:?}: {error}"));
        finish(child)
    }

    /// Judges the store when nothing goes on in it, after a pull or a removal that ended well, and
    /// when what others left has been collected.
    #[track_caller]
    pub(crate) fn at_rest(&self, when: &str) -> Found {
        self.done("image prune");
        judge_at_rest(&self.store, when)
    }

    /// Runs the program, which must succeed.
    #[track_caller]
    pub(crate) fn done(&self, line: &str) -> Output {
        let output = self.run(line);
        assert_eq!(output.status, Some(0), "{line}: {output:#?}");
        output
    }
}

/// Waits for a process that [`Desk::start`] has started. Whatever it met, it must not panic.
#[track_caller]
pub(crate) fn finish(child: Child) -> Output {
    let output = child.wait_with_output().unwrap();
    let output = Output {
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
        status: output.status.code(),
        signal: output.status.signal(),
    };
    assert!(!output.stderr.contains("panicked at"), "{output:#?}");
    output
}

impl Output {
    /// The kind of the error that `--json` tells.
    #[track_caller]
    pub(crate) fn kind(&self) -> String {
        let json: Value = serde_json::from_str(&self.stdout)
            .unwrap_or_else(|_| panic!("no JSON on standard output: {self:#?}"));
        json["error"]["kind"].as_str().unwrap_or("none").to_owned()
    }
}

/// Waits until something has happened in another process.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !happened() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Whether everything is tried, rather than a sample: under `scripts/torture`.
pub(crate) fn is_torture() -> bool {
    std::env::var_os("IRONBOOT_TORTURE_ROUNDS").is_some()
}

/// How often something is tried that chance decides: `sample` times, or as often as
/// `IRONBOOT_TORTURE_ROUNDS` says.
pub(crate) fn rounds(sample: usize) -> usize {
    match std::env::var("IRONBOOT_TORTURE_ROUNDS") {
        Err(_) => sample,
        Ok(rounds) => rounds.parse().expect("IRONBOOT_TORTURE_ROUNDS is a number"),
    }
}

/// Chance that can be repeated.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Seeded by the clock or by `IRONBOOT_TORTURE_SEED`; says so, for whoever wants to repeat it.
    #[allow(
        clippy::print_stderr,
        reason = "shown by the test harness on a failure"
    )]
    pub(crate) fn of(test: &str) -> Self {
        let seed = match std::env::var("IRONBOOT_TORTURE_SEED") {
            Ok(seed) => seed.parse().expect("IRONBOOT_TORTURE_SEED is a number"),
            Err(_) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
                u64::from(now.unwrap().subsec_nanos())
            }
        };
        eprintln!("{test}: IRONBOOT_TORTURE_SEED={seed}");
        Self(seed)
    }

    /// One of the numbers below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut number = self.0;
        number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (number ^ (number >> 31)) % limit
    }

    /// An instant of `duration` or of the tenth after it.
    pub(crate) fn instant(&mut self, duration: Duration) -> Duration {
        let micros = u64::try_from(duration.as_micros()).unwrap();
        Duration::from_micros(self.below(micros * 11 / 10 + 1))
    }
}
