//! A console in this terminal: raw keyboard, detach key, signals.

use std::io::{self, IsTerminal, Read, Write};
use std::thread;

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use crate::domain::DomainSpec;
use crate::hypervisor::{ConsoleInput, Hypervisor};
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

/// Shows what the VM prints and types what is typed, until it stops, the detach key or a signal.
pub(super) async fn attach(
    spec: &DomainSpec,
    hypervisor: &dyn Hypervisor,
    sink: Sink,
) -> Result<Left, OpsError> {
    // A guest that has already powered off has no keyboard, but its words are there.
    let input = hypervisor.console(spec).await.ok();
    let raw = RawMode::enter();
    let detached = read_keyboard(input);
    let mut write = |bytes: &[u8]| sink.write(bytes);
    let follow = console::follow(spec, hypervisor, &mut write);
    let left = tokio::select! {
        result = follow => result.map(|()| Left::Stopped),
        _ = wait(detached) => Ok(Left::Detached),
        number = any_signal() => Ok(Left::Signal(number)),
    };
    drop(raw);
    left
}

/// Follows what the VM prints until it stops or a signal comes.
pub(super) async fn follow(
    spec: &DomainSpec,
    hypervisor: &dyn Hypervisor,
) -> Result<Left, OpsError> {
    let mut write = |bytes: &[u8]| Sink::Stdout.write(bytes);
    tokio::select! {
        result = console::follow(spec, hypervisor, &mut write) => result.map(|()| Left::Stopped),
        number = any_signal() => Ok(Left::Signal(number)),
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

/// Waits for a signal that asks us to end.
pub(super) async fn any_signal() -> u8 {
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = wait(SignalKind::interrupt()) => 2,
        _ = wait(SignalKind::terminate()) => 15,
        _ = wait(SignalKind::hangup()) => 1,
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
