//! Typing on a domain's console.

use std::thread;

use tokio::runtime::Handle;
use tokio::select;
use tokio::sync::{mpsc, oneshot};
use virt::domain::Domain;
use virt::error::Error as VirtError;
use virt::stream::Stream;

use crate::hypervisor::libvirt::connection::Attempt;
use crate::hypervisor::{Console, HypervisorError};

/// Chunks of input that wait for the guest before the one who types has to.
const CHUNKS: usize = 64;

/// Opens the console of a domain that runs, and starts the threads that serve it.
///
/// They end when the console is closed or when the domain stops; the channel is closed then. They are
/// threads of their own, as `connected` has for all calls: whoever closes the console waits for their
/// end.
pub(super) fn open(attempt: &Attempt, domain: &Domain) -> Result<Console, HypervisorError> {
    let stream = attempt.done(Stream::new(&attempt.connection.handle, 0))?;
    attempt.done(domain.open_console(None, &stream, 0))?;
    let (sender, input) = mpsc::channel(CHUNKS);
    let (running, stopped) = oneshot::channel();
    let (open, closed) = oneshot::channel();
    let runtime = Handle::current();

    let output = stream.clone();
    let work: [Box<dyn FnOnce() + Send>; 2] = [
        Box::new(move || discard(&output, running)),
        Box::new(move || forward(&runtime, input, stopped, closed, stream)),
    ];
    let mut threads = Vec::new();
    for work in work {
        let thread = thread::Builder::new().name("libvirt-console".to_owned());
        let thread = thread.spawn(work);
        threads.push(thread.map_err(|error| attempt.refused(error.to_string()))?);
    }
    Ok(Console {
        input: sender,
        open: Some(open),
        threads,
    })
}

/// Throws away what the guest prints, which is in the log as well: unread, it would hold up the
/// guest. Drops `running` when the stream ends.
fn discard(stream: &Stream, running: oneshot::Sender<()>) {
    let mut printed = vec![0; 64 << 10];
    while stream.recv(&mut printed).is_ok_and(|length| length > 0) {}
    drop(running);
}

/// Passes on what is typed, until nobody can type any more, the console is closed or the stream has
/// ended.
fn forward(
    runtime: &Handle,
    mut input: mpsc::Receiver<Vec<u8>>,
    mut stopped: oneshot::Receiver<()>,
    mut closed: oneshot::Receiver<()>,
    stream: Stream,
) {
    let mut next = || {
        runtime.block_on(async {
            select! {
                // What was typed before the console was closed goes first.
                biased;
                _ = &mut stopped => None,
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
