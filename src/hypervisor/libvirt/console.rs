//! Typing on a domain's console.

use std::thread;
use std::time::Duration;

use tokio::sync::mpsc::{self, Receiver, error::TryRecvError};
use virt::domain::Domain;
use virt::error::Error as VirtError;
use virt::stream::Stream;

use crate::hypervisor::libvirt::connection::Attempt;
use crate::hypervisor::{ConsoleInput, HypervisorError};

/// Chunks of input that wait for the guest before the one who types has to.
const CHUNKS: usize = 64;

/// Time between two looks at the input and at the stream; nobody notices it when typing.
const TICK: Duration = Duration::from_millis(20);

/// What libvirt returns from a stream that has to wait.
const WOULD_BLOCK: isize = -2;

/// Opens the console of a domain that runs, and starts the thread that serves it.
///
/// The thread ends when all senders are dropped or when the domain stops; the channel is closed
/// then. It is no task of the runtime's, which would wait for it at the end of the program.
pub(super) fn open(attempt: &Attempt, domain: Domain) -> Result<ConsoleInput, HypervisorError> {
    // One thread that never blocks in the stream. With two, one of them receiving, libvirt gives
    // the answer to the other's `finish` to the wrong one.
    let libvirt = &attempt.connection.handle;
    let stream = attempt.done(Stream::new(libvirt, virt::sys::VIR_STREAM_NONBLOCK))?;
    attempt.done(domain.open_console(None, &stream, 0))?;
    let (sender, input) = mpsc::channel(CHUNKS);
    thread::Builder::new()
        .name("libvirt-console".to_owned())
        .spawn(move || {
            // An error is the end of the domain or of libvirt, which the closed channel tells.
            if serve(&domain, &stream, input).is_ok() {
                drop(stream.finish());
            }
        })
        .map_err(|error| attempt.refused(error.to_string()))?;
    Ok(sender)
}

fn serve(domain: &Domain, stream: &Stream, mut input: Receiver<Vec<u8>>) -> Result<(), VirtError> {
    let mut unsent = Vec::new();
    // Without an event loop the client reads its socket only while it waits for an answer, so this
    // question also fetches what the stream has received.
    while domain.is_active()? {
        if !drain(stream)? {
            return Ok(());
        }
        loop {
            if unsent.is_empty() {
                match input.try_recv() {
                    Ok(chunk) => unsent = chunk,
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return Ok(()),
                }
            }
            match stream.send(&unsent)? {
                WOULD_BLOCK => break,
                sent => drop(unsent.drain(..sent.unsigned_abs())),
            }
        }
        thread::sleep(TICK);
    }
    Ok(())
}

/// Throws away what the guest printed, which is in the log as well: unread, it would hold up the
/// guest. Tells whether there may be more.
fn drain(stream: &Stream) -> Result<bool, VirtError> {
    let mut printed = vec![0; 64 << 10];
    loop {
        match stream.recv(&mut printed)? {
            WOULD_BLOCK => return Ok(true),
            0 => return Ok(false),
            _ => {}
        }
    }
}
