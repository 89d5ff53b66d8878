//! A console in this terminal: raw keyboard, detach key, signals.

use std::io::{self, IsTerminal, Read, Write};
use std::thread;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::boot::CommandLine;
use crate::cli::environment;
use crate::domain::{DomainSpec, Machine};
use crate::hypervisor::{ConsoleInput, DomainState, Hypervisor};
use crate::ops::{OpsError, console};

/// Ctrl-], as virsh's.
const DETACH_KEY: u8 = 0x1d;

/// How a console session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Left {
    /// The VM has stopped.
    Stopped,
    /// The detach key was pressed.
    Detached,
    /// A signal came; its number.
    Signal(u8),
}

/// The signals that ask us to end.
#[derive(Debug)]
pub(super) struct Signals {
    interrupt: Option<Signal>,
    terminate: Option<Signal>,
    hangup: Option<Signal>,
}

/// Where the guest's words go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sink {
    /// Standard output.
    Stdout,
    /// Standard error, because standard output is for the JSON object.
    Stderr,
}

impl Sink {
    fn write(self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes)?;
                stdout.flush()
            }
            Self::Stderr => io::stderr().lock().write_all(bytes),
        }
    }
}

/// Tells whether somebody sits at standard input.
pub(super) fn is_attended() -> bool {
    io::stdin().is_terminal()
}

/// What a guest's systemd (254 and later) takes for the size and kind of the terminal at its serial
/// port, which can not tell either; nothing where standard input is no terminal that has a size.
///
/// Source: kernel-command-line(7), `systemd.tty.rows.tty=`.
pub(super) fn words(machine: Machine) -> CommandLine {
    let Some(size) = tcgetwinsize(io::stdin())
        .ok()
        .filter(|size| size.ws_row > 0 && size.ws_col > 0)
    else {
        return CommandLine::default();
    };
    let port = machine.serial_console();
    let mut words = format!(
        "systemd.tty.rows.{port}={} systemd.tty.columns.{port}={}",
        size.ws_row, size.ws_col
    );
    if let Some(kind) = environment::terminal_kind() {
        words.push_str(&format!(" systemd.tty.term.{port}={kind}"));
    }
    words
        .parse()
        .expect("numbers and a word of letters are a command line")
}

/// Shows what the VM prints and types what is typed, until it stops, the detach key or a signal.
pub(super) async fn attach(
    spec: &DomainSpec,
    hypervisor: &dyn Hypervisor,
    sink: Sink,
    signals: &mut Signals,
) -> Result<Left, OpsError> {
    let console = match hypervisor.console(spec).await {
        Ok(console) => Some(console),
        // A guest that has already powered off has no keyboard, but its words are there.
        Err(_) if hypervisor.state(spec).await? != DomainState::Running => None,
        Err(error) => return Err(error.into()),
    };
    let raw = RawMode::enter();
    let detached = read_keyboard(console.as_ref().map(|console| console.input.clone()));
    let mut write = |bytes: &[u8]| sink.write(bytes);
    let follow = console::follow(spec, hypervisor, &mut write);
    let left = tokio::select! {
        result = follow => result.map(|()| Left::Stopped),
        _ = wait(detached) => Ok(Left::Detached),
        number = signals.next() => Ok(Left::Signal(number)),
    };
    drop(raw);
    if let Some(console) = console {
        console.close().await;
    }
    left
}

/// Follows what the VM prints until it stops or a signal comes.
pub(super) async fn follow(
    spec: &DomainSpec,
    hypervisor: &dyn Hypervisor,
) -> Result<Left, OpsError> {
    let mut write = |bytes: &[u8]| Sink::Stdout.write(bytes);
    let mut signals = Signals::listen();
    tokio::select! {
        result = console::follow(spec, hypervisor, &mut write) => result.map(|()| Left::Stopped),
        number = signals.next() => Ok(Left::Signal(number)),
    }
}

/// Prints what the VM has printed.
pub(super) fn print_log(spec: &DomainSpec) -> Result<(), OpsError> {
    console::read(spec, &mut |bytes| Sink::Stdout.write(bytes))
}

/// Waits for the detach key; for ever, if the keyboard ends without it.
async fn wait(detached: oneshot::Receiver<()>) {
    if detached.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Hands what is typed to `input`. The thread is left to its read when the session ends.
fn read_keyboard(input: Option<ConsoleInput>) -> oneshot::Receiver<()> {
    let (detach, detached) = oneshot::channel();
    thread::spawn(move || {
        let mut block = [0; 1024];
        let is_terminal = io::stdin().is_terminal();
        while let Ok(count) = io::stdin().lock().read(&mut block) {
            let mut typed = &block[..count];
            if count == 0 {
                break;
            }
            let end = typed.iter().position(|byte| *byte == DETACH_KEY);
            if let Some(end) = end.filter(|_| is_terminal) {
                typed = &typed[..end];
            }
            if let Some(input) = &input
                && input.blocking_send(typed.to_vec()).is_err()
            {
                break;
            }
            if is_terminal && end.is_some() {
                // The other side may be gone with the VM.
                detach.send(()).unwrap_or_default();
                break;
            }
        }
    });
    detached
}

impl Signals {
    /// The number of what Ctrl-C sends.
    pub(super) const INTERRUPT: u8 = 2;

    /// Listens from now on, instead of being ended by them.
    pub(super) fn listen() -> Self {
        // One that can not be listened to ends us, as it always has.
        let listen = |kind| signal(kind).ok();
        Self {
            interrupt: listen(SignalKind::interrupt()),
            terminate: listen(SignalKind::terminate()),
            hangup: listen(SignalKind::hangup()),
        }
    }

    /// Waits for one that has come since [`Signals::listen`]; its number.
    pub(super) async fn next(&mut self) -> u8 {
        async fn one(signal: &mut Option<Signal>) {
            match signal {
                Some(signal) => drop(signal.recv().await),
                None => std::future::pending().await,
            }
        }
        tokio::select! {
            () = one(&mut self.interrupt) => Self::INTERRUPT,
            () = one(&mut self.terminate) => 15,
            () = one(&mut self.hangup) => 1,
        }
    }
}

/// The terminal without echo, line editing and signals; as it was when dropped.
struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Does nothing where standard input is no terminal.
    fn enter() -> Option<Self> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no mending.
        tcsetattr(io::stdin(), OptionalActions::Now, &self.before).unwrap_or_default();
    }
}
