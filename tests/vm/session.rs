//! One run of the program: what it prints while it lives, what is typed, how it ends.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Termios, Winsize, tcgetattr, tcsetwinsize};
use serde_json::Value;

use crate::guest::PATIENCE;

/// How often a process or a file is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(20);

/// A program that runs.
pub(crate) struct Session {
    child: Child,
    keyboard: Box<dyn Write + Send>,
    stdout: Stream,
    stderr: Stream,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Ended {
    status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A terminal that programs are given, one after the other.
pub(crate) struct Terminal {
    controller: OwnedFd,
}

/// What has come out of a pipe so far.
#[derive(Clone, Default)]
struct Stream(Arc<(Mutex<Arrived>, Condvar)>);

#[derive(Default)]
struct Arrived {
    bytes: Vec<u8>,
    ended: bool,
}

impl Session {
    /// Starts `command` with nothing on its standard input.
    pub(crate) fn start(command: Command) -> Self {
        Self::with_input(command, Stdio::null())
    }

    /// Starts `command` with a pipe as its standard input.
    pub(crate) fn start_to_type(command: Command) -> Self {
        Self::with_input(command, Stdio::piped())
    }

    /// Starts `command` in `terminal`; its standard error stays apart.
    pub(crate) fn start_in(terminal: &Terminal, mut command: Command) -> Self {
        let user = || {
            let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
            Stdio::from(ioctl_tiocgptpeer(&terminal.controller, flags).unwrap())
        };
        command.stdin(user()).stdout(user()).stderr(Stdio::piped());
        let mut session = Self::of(command);
        session.keyboard = Box::new(File::from(terminal.controller.try_clone().unwrap()));
        session.stdout = Stream::of(File::from(terminal.controller.try_clone().unwrap()));
        session
    }

    fn with_input(mut command: Command, stdin: Stdio) -> Self {
        command
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self::of(command)
    }

    /// The command is dropped here, and with it our copies of the program's streams.
    fn of(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        Self {
            keyboard: match child.stdin.take() {
                Some(pipe) => Box::new(pipe),
                None => Box::new(std::io::sink()),
            },
            stdout: child.stdout.take().map_or_else(Stream::default, Stream::of),
            stderr: child.stderr.take().map_or_else(Stream::default, Stream::of),
            child,
        }
    }

    /// Waits until `text` is on standard output.
    pub(crate) fn prints(&self, text: &str) {
        let has_it = |arrived: &Arrived| String::from_utf8_lossy(&arrived.bytes).contains(text);
        if !self.stdout.wait_until(has_it) {
            let (printed, errors) = (self.stdout.text(), self.stderr.text());
            panic!("{text:?} was not printed, but:\n{printed}\nand:\n{errors}");
        }
    }

    /// Types `text`.
    pub(crate) fn types(&mut self, text: &str) {
        self.keyboard.write_all(text.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(id.unwrap(), signal).unwrap();
    }

    /// Waits until the program has ended, and with it everything that has its pipes.
    pub(crate) fn ends(mut self) -> Ended {
        let mut status = None;
        wait_until("the program has ended", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        for stream in [&self.stdout, &self.stderr] {
            if !stream.wait_until(|arrived| arrived.ended) {
                panic!(
                    "somebody still has its streams, which had:\n{}",
                    stream.text()
                );
            }
        }
        Ended {
            status: status.unwrap(),
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A test that failed has not waited for it; one that has ended can not be killed.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Ended {
    /// The exit status as a shell gives it: 128 and the signal's number for one that was killed.
    pub(crate) fn code(&self) -> i32 {
        let signal = self.status.signal().map(|number| 128 + number);
        self.status.code().or(signal).unwrap()
    }

    /// The same, where only an end with `code` lets the test go on.
    #[track_caller]
    pub(crate) fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code(), code, "{self}");
        self
    }

    /// The object that `--json` prints.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// Kind and message of the error that `--json` prints.
    #[track_caller]
    pub(crate) fn error(&self) -> (String, String) {
        let error = &self.json()["error"];
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        (text("kind"), text("message"))
    }

    /// What the guest says of its machine, without what differs at every boot.
    pub(crate) fn markers(&self) -> Vec<&str> {
        markers(&self.stdout)
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            status,
            stdout,
            stderr,
        } = self;
        write!(f, "{status}; it printed:\n{stdout}\nand:\n{stderr}")
    }
}

impl Terminal {
    pub(crate) fn open() -> Self {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let controller = openpt(flags).unwrap();
        grantpt(&controller).unwrap();
        unlockpt(&controller).unwrap();
        Self { controller }
    }

    /// Makes it so large, and known to be.
    pub(crate) fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.controller, size).unwrap();
    }

    /// Its modes, as text to be compared.
    pub(crate) fn modes(&self) -> String {
        let Termios {
            input_modes,
            output_modes,
            control_modes,
            local_modes,
            ..
        } = tcgetattr(&self.controller).unwrap();
        format!("{input_modes:?} {output_modes:?} {control_modes:?} {local_modes:?}")
    }
}

impl Stream {
    /// Reads `pipe` to its end, on a thread of its own.
    fn of(mut pipe: impl Read + Send + 'static) -> Self {
        let stream = Self::default();
        let writer = stream.clone();
        thread::spawn(move || {
            let (arrived, changed) = &*writer.0;
            let mut block = vec![0; 64 << 10];
            loop {
                // A terminal that no program has any more reads as an error.
                let count = pipe.read(&mut block).unwrap_or(0);
                let mut arrived = arrived.lock().unwrap();
                arrived.bytes.extend_from_slice(&block[..count]);
                arrived.ended = count == 0;
                changed.notify_all();
                if arrived.ended {
                    break;
                }
            }
        });
        stream
    }

    /// Waits until `condition` holds; false if it does not in time, or never will.
    fn wait_until(&self, condition: impl Fn(&Arrived) -> bool) -> bool {
        let (arrived, changed) = &*self.0;
        let waiting = |arrived: &mut Arrived| !condition(arrived) && !arrived.ended;
        let (arrived, _) = changed
            .wait_timeout_while(arrived.lock().unwrap(), PATIENCE, waiting)
            .unwrap();
        condition(&arrived)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().bytes).into_owned()
    }
}

/// The lines of the test guest's that are the same at every boot of the same machine.
pub(crate) fn markers(printed: &str) -> Vec<&str> {
    printed
        .lines()
        .map(|line| line.trim_end_matches('\r'))
        .filter(|line| line.starts_with("IRONBOOT-") && !line.starts_with("IRONBOOT-OK "))
        // The store's own key, which is another one in each store.
        .filter(|line| !line.contains("/ssh.authorized_keys.root "))
        // The kernel's version is Debian's affair.
        .map(|line| match line.strip_prefix("IRONBOOT-MACHINE ") {
            Some(_) => line.rsplit_once(' ').map_or(line, |(machine, _)| machine),
            None => line,
        })
        .collect()
}

/// Waits until `condition` holds; fails if that takes too long.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(POLL);
    }
}
