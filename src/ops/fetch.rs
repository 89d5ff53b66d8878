//! Blobs from a source into the store: several at once, each hashed and written on a thread of its
//! own while the next bytes arrive, resumed where a connection broke.

use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryFutureExt};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::oci::{Descriptor, Digest, Reference};
use crate::ops::{Context, OpsError, Progress, blocking};
use crate::source::{BlobStream, Source, SourceError, Unavailability};
use crate::store::{Claim, Ingest, Lease, StoreError};

/// Blobs that are fetched at the same time; each has some 6 MiB of memory.
const PARALLEL: usize = 4;
/// The same of all images that one process pulls.
static AT_ONCE: Semaphore = Semaphore::const_new(PARALLEL);
/// Pieces of a stream that may wait for the disk.
const QUEUE: usize = 4;
/// Breaks of a connection that are mended without progress between them.
const MAX_BREAKS: u32 = 4;
/// Bytes between two breaks that count as progress.
const PROGRESS_BYTES: u64 = 64 << 10;
/// Somebody who is waited for so long is told of.
const LONG: Duration = Duration::from_secs(2);
/// How long a claim that is not wanted any more is waited for.
const MOMENT: Duration = Duration::from_millis(500);
/// First pause after a break; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// A blob to fetch and what it is for.
#[derive(Debug, Clone)]
pub(super) struct Item {
    /// What it must turn out to be.
    pub descriptor: Descriptor,
    /// What it is for, for people.
    pub label: String,
}

/// Fetches what the store lacks of `items`. Returns the digests that are new.
///
/// If one of them fails, the others are stopped and waited for, so that whoever cleans up
/// afterwards finds no fetch that still writes.
pub(super) async fn fetch(
    context: &Context<'_>,
    reference: &Reference,
    source: &dyn Source,
    lease: &Arc<Lease>,
    items: Vec<Item>,
) -> Result<Vec<Digest>, OpsError> {
    let (stop, stopped) = watch::channel(false);
    let mut answers = futures_util::stream::iter(items)
        .map(|item| {
            let label = item.label.clone();
            fetch_one(context, source, lease, item, stopped.clone()).map_err(|source| {
                OpsError::Fetch {
                    label,
                    reference: reference.to_string(),
                    source: Box::new(source),
                }
            })
        })
        .buffer_unordered(PARALLEL);
    let mut new = Vec::new();
    let mut failed = None;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(digest) => new.extend(digest),
            Err(error) => {
                stop.send_replace(true);
                failed.get_or_insert(error);
            }
        }
    }
    failed.map_or(Ok(new), Err)
}

/// Fetches a blob. Returns its digest if it is new, and nothing if it was there or was stopped.
async fn fetch_one(
    context: &Context<'_>,
    source: &dyn Source,
    lease: &Arc<Lease>,
    item: Item,
    mut stopped: watch::Receiver<bool>,
) -> Result<Option<Digest>, OpsError> {
    let digest = item.descriptor.digest;
    // Before the blob is claimed: whoever has one is not kept waiting for a turn.
    let Some(turn) = unless_stopped(&mut stopped, AT_ONCE.acquire()).await else {
        return Ok(None);
    };
    let _turn = turn.expect("it is never closed");
    // A partial that an earlier fetch left may be wrong, and so may be what a mirror sent: then
    // everything is fetched anew, once, and once for each mirror.
    let mut is_anew = false;
    loop {
        if *stopped.borrow() {
            return Ok(None);
        }
        let mut claiming = pin!(claim(context, lease, &item));
        let Some(claimed) = unless_stopped(&mut stopped, &mut claiming).await else {
            // What is just being made for it goes again; whoever waits for another process has made
            // nothing.
            if let Ok(Ok(Some(ingest))) = tokio::time::timeout(MOMENT, claiming).await {
                blocking(move || ingest.abandon()).await?;
            }
            return Ok(None);
        };
        let Some(mut ingest) = claimed? else {
            return Ok(None);
        };
        if is_anew {
            ingest = blocking(move || ingest.restart().map(|()| ingest)).await?;
        }
        let resumed = ingest.is_resumed();
        (context.report)(Progress::BlobStart {
            blob: digest,
            label: item.label.clone(),
            size_bytes: item.descriptor.size,
            offset_bytes: ingest.offset(),
        });
        let Some(ingest) = receive(context, source, ingest, &mut stopped).await? else {
            return Ok(None);
        };
        match blocking(move || ingest.commit()).await {
            Ok(_) => {
                (context.report)(Progress::BlobDone { blob: digest });
                return Ok(Some(digest));
            }
            Err(OpsError::Store(StoreError::Content { .. })) if source.distrust(&digest) => {
                let reason = "what a mirror sent was wrong".to_owned();
                (context.report)(Progress::BlobRetry {
                    blob: digest,
                    reason,
                });
            }
            Err(OpsError::Store(StoreError::Content { .. })) if resumed && !is_anew => {
                let reason = "what an earlier fetch left was wrong".to_owned();
                (context.report)(Progress::BlobRetry {
                    blob: digest,
                    reason,
                });
            }
            Err(error) => return Err(error),
        }
        is_anew = true;
    }
}

/// Claims a blob; tells if somebody else has it for long.
async fn claim(
    context: &Context<'_>,
    lease: &Arc<Lease>,
    item: &Item,
) -> Result<Option<Box<Ingest>>, OpsError> {
    let (lease, blob) = (Arc::clone(lease), item.descriptor.clone());
    let claim = blocking(move || lease.claim(&blob));
    tokio::pin!(claim);
    let claim = match tokio::time::timeout(LONG, &mut claim).await {
        Ok(claim) => claim,
        Err(_) => {
            let label = item.label.clone();
            (context.report)(Progress::Waiting { label });
            claim.await
        }
    };
    Ok(match claim? {
        Claim::Present(_) => None,
        Claim::Missing(ingest) => Some(ingest),
    })
}

/// What `work` comes to; nothing if it is stopped before.
async fn unless_stopped<T>(
    stopped: &mut watch::Receiver<bool>,
    work: impl Future<Output = T>,
) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        // The sender lives as long as any fetch does.
        _ = stopped.wait_for(|stop| *stop) => None,
    }
}

/// Receives all bytes of a blob, however often the connection breaks; nothing if it is stopped.
async fn receive(
    context: &Context<'_>,
    source: &dyn Source,
    mut ingest: Box<Ingest>,
    stopped: &mut watch::Receiver<bool>,
) -> Result<Option<Box<Ingest>>, OpsError> {
    let expected = ingest.expected().clone();
    let mut breaks = 0;
    while ingest.offset() < expected.size {
        let before = ingest.offset();
        let asked = unless_stopped(stopped, source.blob(&expected, before)).await;
        let Some(answer) = asked else {
            blocking(move || ingest.abandon()).await?;
            return Ok(None);
        };
        let broken = match answer {
            Err(error) => Some(Received::Source(error)),
            Ok(stream) => {
                if stream.offset != before {
                    ingest = blocking(move || ingest.restart().map(|()| ingest)).await?;
                }
                let (back, result) = write_down(context, stream, ingest, stopped).await?;
                ingest = back;
                result.err()
            }
        };
        let error = match broken {
            Some(Received::Stopped) => {
                blocking(move || ingest.abandon()).await?;
                return Ok(None);
            }
            Some(Received::Source(error)) if error.is_retryable() => OpsError::from(error),
            // Once we are let in again, what is here is as good as before.
            Some(Received::Source(error @ SourceError::Unauthorized { .. })) => {
                blocking(move || ingest.abandon()).await?;
                return Err(error.into());
            }
            // Wrong bytes are not worth a second try.
            Some(Received::Source(error)) => {
                blocking(move || ingest.discard()).await?;
                return Err(error.into());
            }
            Some(Received::Store(error)) => {
                blocking(move || ingest.discard()).await?;
                return Err(error.into());
            }
            None if ingest.offset() == expected.size => break,
            None => OpsError::from(StoreError::TooShort {
                blob: expected.digest,
                expected_bytes: expected.size,
                actual_bytes: ingest.offset(),
            }),
        };
        breaks = match &error {
            // It is not asked again, so there are only so many of these.
            OpsError::Source(SourceError::Mirror { .. }) => breaks,
            // Whoever sends drops would make progress for ever.
            OpsError::Source(SourceError::Unavailable {
                cause: Unavailability::Slow { .. },
                ..
            }) => MAX_BREAKS,
            _ if ingest.offset() >= before + PROGRESS_BYTES => 0,
            _ => breaks + 1,
        };
        if breaks >= MAX_BREAKS {
            blocking(move || ingest.abandon()).await?;
            return Err(error);
        }
        (context.report)(Progress::BlobRetry {
            blob: expected.digest,
            reason: told(&error),
        });
        let pause = tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(breaks));
        if unless_stopped(stopped, pause).await.is_none() {
            blocking(move || ingest.abandon()).await?;
            return Ok(None);
        }
    }
    Ok(Some(ingest))
}

/// An error and its causes in one line.
fn told(error: &OpsError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

/// What ended a stream before its time.
enum Received {
    Source(SourceError),
    Store(StoreError),
    Stopped,
}

/// Hands the stream's bytes to a thread that hashes and writes them. Gives the ingest back in any
/// case.
async fn write_down(
    context: &Context<'_>,
    mut stream: BlobStream<'_>,
    ingest: Box<Ingest>,
    stopped: &mut watch::Receiver<bool>,
) -> Result<(Box<Ingest>, Result<(), Received>), OpsError> {
    let blob = ingest.expected().digest;
    let (sender, mut receiver) = mpsc::channel::<bytes::Bytes>(QUEUE);
    let writer = tokio::task::spawn_blocking(move || {
        let mut ingest = ingest;
        while let Some(bytes) = receiver.blocking_recv() {
            if let Err(error) = ingest.write(&bytes) {
                return (ingest, Err(error));
            }
        }
        (ingest, Ok(()))
    });
    let mut received = Ok(());
    loop {
        match unless_stopped(stopped, stream.bytes.next()).await {
            None => {
                received = Err(Received::Stopped);
                break;
            }
            Some(None) => break,
            Some(Some(Ok(bytes))) => {
                let count = bytes.len() as u64;
                if sender.send(bytes).await.is_err() {
                    break;
                }
                (context.report)(Progress::BlobBytes { blob, count });
            }
            Some(Some(Err(error))) => {
                received = Err(Received::Source(error));
                break;
            }
        }
    }
    drop(sender);
    let (ingest, written) = writer.await?;
    Ok((ingest, written.map_err(Received::Store).and(received)))
}
