//! Typing on a domain's console.

use std::io;
use std::thread;

use tokio::runtime::Handle;
use tokio::select;
use tokio::sync::{mpsc, oneshot};
use virt::domain::Domain;
use virt::error::Error as VirtError;
use virt::stream::Stream;

use crate::hypervisor::libvirt::connection::Attempt;
use crate::hypervisor::{ConsoleInput, HypervisorError};

/// Chunks of input that wait for the guest before the one who types has to.
const CHUNKS: usize = 64;

/// Opens the console of a domain that runs, and starts the threads that serve it.
///
/// They end when all senders are dropped or when the domain stops; the channel is closed then.
/// They are no tasks of the runtime's, which would wait for them at the end of the program.
pub(super) fn open(attempt: &Attempt, domain: &Domain) -> Result<ConsoleInput, HypervisorError> {
    let stream = attempt.done(Stream::new(&attempt.connection.handle, 0))?;
    attempt.done(domain.open_console(None, &stream, 0))?;
    let (sender, input) = mpsc::channel(CHUNKS);
    let (open, closed) = oneshot::channel();

    let output = stream.clone();
    spawn(move || discard(&output, open)).map_err(|error| attempt.refused(error.to_string()))?;
    let runtime = Handle::current();
    spawn(move || forward(&runtime, input, closed, stream))
        .map_err(|error| attempt.refused(error.to_string()))?;
    Ok(sender)
}

/// Throws away what the guest prints, which is in the log as well: unread, it would hold up the
/// guest. Drops `open` when the stream ends.
fn discard(stream: &Stream, open: oneshot::Sender<()>) {
    let mut printed = vec![0; 64 << 10];
    while stream.recv(&mut printed).is_ok_and(|length| length > 0) {}
    drop(open);
}

/// Passes on what is typed, until nobody can type any more or the stream has ended.
fn forward(
    runtime: &Handle,
    mut input: mpsc::Receiver<Vec<u8>>,
    mut closed: oneshot::Receiver<()>,
    stream: Stream,
) {
    let mut next = || {
        runtime.block_on(async {
            select! {
                chunk = input.recv() => chunk,
                _ = &mut closed => None,
            }
        })
    };
    while let Some(chunk) = next() {
        if send(&stream, &chunk).is_err() {
            break;
        }
    }
    // Waits until all has arrived. It fails if the domain has stopped; the closed channel tells.
    drop(stream.finish());
}

fn send(stream: &Stream, mut chunk: &[u8]) -> Result<(), VirtError> {
    while !chunk.is_empty() {
        let length = stream.send(chunk)?;
        chunk = &chunk[length.unsigned_abs()..];
    }
    Ok(())
}

fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    thread::Builder::new()
        .name("libvirt-console".to_owned())
        .spawn(work)?;
    Ok(())
}
