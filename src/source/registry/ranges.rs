//! One blob over several connections, where one is slow.
//!
//! A blob starts as one answer. Where that comes slower than any disk while we only wait for it, the
//! connection is the bottleneck: a window that a long way keeps small, or a limit that a store of
//! objects sets for each. Then parts further on are asked for as well, and taken in their order. If
//! that does not bring more, or the other side has no parts, it is left at one connection, which is
//! what a near and fast registry does best with.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, FuturesOrdered, Stream, StreamExt};
use reqwest::Response;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::oci::Descriptor;
use crate::source::SourceError;
use crate::source::registry::host::Host;
use crate::source::registry::transport::Pace;

/// Bytes of a part; a multiple of what is asked for in one round trip of a long way.
const PART_BYTES: u64 = 4 << 20;
/// Parts of one blob that are under way or wait for those before them.
const PARTS: usize = 4;
/// Parts of all blobs, which bounds the memory for them: 24 MiB.
static ALL_PARTS: Semaphore = Semaphore::const_new(6);
/// What is faster is limited by us, or will be over before anything is gained.
const FAST_BYTES_PER_SECOND: u64 = 200 << 20;
/// Least time of a measurement.
const WINDOW: Duration = Duration::from_secs(1);

/// The bytes of a blob from `start` on, of which `first` is the whole rest.
pub(super) fn read<'a>(
    host: &'a Host,
    blob: &Descriptor,
    first: Response,
    start: u64,
) -> impl Stream<Item = Result<Bytes, SourceError>> + Send + use<'a> {
    let reader = Reader {
        host,
        blob: blob.clone(),
        offset: start,
        whole: Some(Whole {
            response: first,
            pace: host.transport.pace(),
            end: blob.size,
        }),
        parts: FuturesOrdered::new(),
        done: VecDeque::new(),
        width: 0,
        permits: Vec::new(),
        next_part: 0,
        plan: Plan::One(Meter::start()),
    };
    stream::try_unfold(reader, |mut reader| async {
        let piece = reader.next().await?;
        Ok(piece.map(|piece| (piece, reader)))
    })
}

struct Reader<'a> {
    host: &'a Host,
    blob: Descriptor,
    /// Where the next piece that is handed out begins.
    offset: u64,
    /// The answer that is read from its beginning to its end.
    whole: Option<Whole>,
    /// Those further on, in their order.
    parts: FuturesOrdered<BoxFuture<'a, Result<Bytes, NoPart>>>,
    /// Those of them that came before their turn.
    done: VecDeque<Result<Bytes, NoPart>>,
    /// How many of them there are to be.
    width: usize,
    /// What allows for so many.
    permits: Vec<SemaphorePermit<'static>>,
    /// Where the part begins that is asked for next.
    next_part: u64,
    plan: Plan,
}

struct Whole {
    response: Response,
    pace: Pace,
    /// Where it is left: the end of the blob, or where the parts begin.
    end: u64,
}

/// Why a part did not come.
enum NoPart {
    /// The other side does not send parts.
    Ignored,
    Failed(SourceError),
}

/// How many connections there are, and what was measured.
enum Plan {
    /// One so far.
    One(Meter),
    /// Several, on trial against what one brought.
    Trial { one: u64, several: Meter },
    /// It stays as it is.
    Settled,
}

/// Measures what comes.
struct Meter {
    began: Instant,
    bytes: u64,
    waited: Duration,
}

impl Meter {
    fn start() -> Self {
        Self {
            began: Instant::now(),
            bytes: 0,
            waited: Duration::ZERO,
        }
    }

    fn count(&mut self, bytes: usize, waited: Duration) {
        self.bytes += bytes as u64;
        self.waited += waited;
    }

    /// Bytes a second, and whether they were waited for most of the time; none before `window`.
    fn result(&self, elapsed: Duration, window: Duration) -> Option<(u64, bool)> {
        if elapsed < window {
            return None;
        }
        let rate = u128::from(self.bytes) * 1000 / elapsed.as_millis().max(1);
        let rate = u64::try_from(rate).unwrap_or(u64::MAX);
        Some((rate, self.waited * 2 > elapsed))
    }
}

impl<'a> Reader<'a> {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let asked = Instant::now();
        let piece = match self.whole.is_some() {
            true => self.read_on().await?,
            false => self.take_part().await?,
        };
        let Some(piece) = piece else {
            return Ok(None);
        };
        self.offset += piece.len() as u64;
        self.adapt(piece.len(), asked.elapsed());
        Ok(Some(piece))
    }

    /// Reads on where everything comes one after the other; the parts go on meanwhile.
    async fn read_on(&mut self) -> Result<Option<Bytes>, SourceError> {
        let Some(whole) = &mut self.whole else {
            return Ok(None);
        };
        let transport = &self.host.transport;
        let chunk = {
            let chunk = transport.chunk(&mut whole.response, &mut whole.pace);
            tokio::pin!(chunk);
            loop {
                tokio::select! {
                    chunk = &mut chunk => break chunk?,
                    Some(part) = self.parts.next() => self.done.push_back(part),
                }
            }
        };
        if self.done.iter().any(Result::is_err) {
            // No parts, or none now: what is open has everything.
            self.stop_parts();
            self.plan = Plan::Settled;
        }
        let Some(whole) = &mut self.whole else {
            return Ok(None);
        };
        let Some(mut chunk) = chunk else {
            return Ok(None);
        };
        if whole.end == self.blob.size {
            // That there is more than there should be is an error, whatever it is.
            return match self.offset + chunk.len() as u64 > whole.end {
                true => Err(self.too_large()),
                false => Ok(Some(chunk)),
            };
        }
        let left = whole.end - self.offset;
        if chunk.len() as u64 >= left {
            chunk.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            self.whole = None;
        }
        Ok(Some(chunk))
    }

    /// Takes the next part; where none is under way any more, one connection goes on.
    async fn take_part(&mut self) -> Result<Option<Bytes>, SourceError> {
        if self.offset == self.blob.size {
            return Ok(None);
        }
        self.ask_for_parts();
        let part = match self.done.pop_front() {
            Some(part) => Some(part),
            None => self.parts.next().await,
        };
        match part {
            Some(Ok(part)) => Ok(Some(part)),
            Some(Err(NoPart::Failed(error))) => Err(error),
            Some(Err(NoPart::Ignored)) | None => {
                self.stop_parts();
                self.plan = Plan::Settled;
                let (host, offset) = (self.host, self.offset);
                let opened = host.patiently_open_blob(&self.blob, offset, None);
                let (response, start) = opened.await?;
                if start != offset {
                    // Whoever resumes starts at the beginning then.
                    return Ok(None);
                }
                self.whole = Some(Whole {
                    response,
                    pace: host.transport.pace(),
                    end: self.blob.size,
                });
                Box::pin(self.read_on()).await
            }
        }
    }

    /// Asks for as many parts as may be under way.
    fn ask_for_parts(&mut self) {
        while self.parts.len() + self.done.len() < self.width && self.next_part < self.blob.size {
            let start = self.next_part;
            let end = self.blob.size.min(start + PART_BYTES);
            self.next_part = end;
            let (host, blob) = (self.host, self.blob.clone());
            let part = Box::pin(part(host, blob, start, end));
            self.parts.push_back(part);
        }
    }

    fn stop_parts(&mut self) {
        self.parts = FuturesOrdered::new();
        self.done.clear();
        self.width = 0;
        self.permits.clear();
        if let Some(whole) = &mut self.whole {
            whole.end = self.blob.size;
        }
    }

    /// Counts a piece, and decides how many connections there are from now on.
    fn adapt(&mut self, bytes: usize, waited: Duration) {
        match &mut self.plan {
            Plan::Settled => {}
            Plan::One(meter) => {
                meter.count(bytes, waited);
                let Some((rate, waiting)) = meter.result(meter.began.elapsed(), WINDOW) else {
                    return;
                };
                if !waiting || rate >= FAST_BYTES_PER_SECOND {
                    *meter = Meter::start();
                    return;
                }
                // What the open answer brings until the first of the parts is here.
                let boundary = (self.offset + rate / 2).next_multiple_of(PART_BYTES);
                if boundary + PARTS as u64 * PART_BYTES >= self.blob.size {
                    self.plan = Plan::Settled;
                    return;
                }
                while self.permits.len() < PARTS {
                    match ALL_PARTS.try_acquire() {
                        Ok(permit) => self.permits.push(permit),
                        Err(_) => break,
                    }
                }
                if self.permits.len() < 2 {
                    self.permits.clear();
                    *meter = Meter::start();
                    return;
                }
                if let Some(whole) = &mut self.whole {
                    whole.end = boundary;
                }
                self.next_part = boundary;
                self.width = self.permits.len();
                self.ask_for_parts();
                self.plan = Plan::Trial {
                    one: rate,
                    several: Meter::start(),
                };
            }
            Plan::Trial { one, several } => {
                // What the first connection still brings says nothing of the others.
                if self.whole.is_some() {
                    *several = Meter::start();
                    return;
                }
                several.count(bytes, waited);
                // Parts are large, so that a few must have come.
                let Some((rate, _)) = several.result(several.began.elapsed(), 2 * WINDOW) else {
                    return;
                };
                if rate < *one + *one / 4 {
                    // Those under way are taken; then one connection goes on.
                    self.width = 0;
                }
                self.plan = Plan::Settled;
            }
        }
    }

    fn too_large(&self) -> SourceError {
        SourceError::TooLarge {
            what: format!("{} ({})", self.host.transport.image, self.blob.digest),
            limit: self.blob.size,
        }
    }
}

/// Fetches the bytes from `start` to `end`.
async fn part(host: &Host, blob: Descriptor, start: u64, end: u64) -> Result<Bytes, NoPart> {
    let opened = host.patiently_open_blob(&blob, start, Some(end)).await;
    let (response, actual) = opened.map_err(NoPart::Failed)?;
    let length = end - start;
    if actual != start || response.content_length() != Some(length) {
        return Err(NoPart::Ignored);
    }
    let what = format!("{} ({})", host.transport.image, blob.digest);
    let bytes = host.transport.read(response, length, &what).await;
    match bytes.map_err(NoPart::Failed)? {
        bytes if bytes.len() as u64 == length => Ok(bytes.into()),
        _ => Err(NoPart::Ignored),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_tells_rate_and_whose_fault_it_is() {
        let mut meter = Meter::start();
        meter.count(3 << 20, Duration::from_millis(900));
        let second = Duration::from_secs(1);
        assert_eq!(meter.result(Duration::from_millis(999), second), None);
        assert_eq!(meter.result(second, second), Some((3 << 20, true)));
        assert_eq!(meter.result(2 * second, second), Some((3 << 19, false)));
    }
}
