//! Whether there is room for what is to be fetched, before it is.
//!
//! What a descriptor says is the most that a blob takes: runs of zeros become holes in the store. A
//! large disk that would not fit by its size is therefore looked at in a few places first.

use futures_util::StreamExt;

use crate::oci::Descriptor;
use crate::ops::{Context, OpsError};
use crate::source::{Source, SourceError};

/// A blob of fewer bytes is taken for full.
const LARGE_BYTES: u64 = 64 << 20;
/// How many places of a large blob are looked at.
const PLACES: u64 = 16;
/// How much is read of each; no run of zeros that is shorter becomes a hole.
const PLACE_BYTES: usize = 64 << 10;

/// Errors if the store's disk has no room for `missing`.
pub(super) async fn check(
    context: &Context<'_>,
    source: &dyn Source,
    missing: &[&Descriptor],
) -> Result<(), OpsError> {
    let free_bytes = context.store.free_bytes()?;
    let sum = |sizes: &[u64]| sizes.iter().copied().fold(0, u64::saturating_add);
    let mut sizes: Vec<u64> = missing
        .iter()
        // What an earlier fetch left is on the disk already.
        .map(|blob| {
            blob.size
                .saturating_sub(context.store.partial_bytes(&blob.digest))
        })
        .collect();
    // The sizes of one manifest are known to fit into a number, those of several are not.
    if sum(&sizes) <= free_bytes {
        return Ok(());
    }
    let small = sizes.iter().filter(|size| **size < LARGE_BYTES);
    if small.copied().fold(0, u64::saturating_add) <= free_bytes {
        for (size, blob) in sizes.iter_mut().zip(missing) {
            if *size >= LARGE_BYTES {
                // Who does not send what he says is found out by whoever fetches it.
                *size = estimate(source, blob, *size).await.unwrap_or(*size);
            }
        }
    }
    let needed_bytes = sum(&sizes);
    if needed_bytes <= free_bytes {
        return Ok(());
    }
    Err(OpsError::NoSpace {
        path: context.store.root().to_owned(),
        needed_bytes,
        free_bytes,
    })
}

/// Estimates what of `size` bytes is not zeros; rather too much than too little.
async fn estimate(source: &dyn Source, blob: &Descriptor, size: u64) -> Result<u64, SourceError> {
    let mut full = 0;
    for number in 0..PLACES {
        let place = blob.size / PLACES * number;
        let mut stream = source.blob(blob, place).await?;
        if stream.offset != place {
            // Who can not start there would have to send everything before.
            return Ok(size);
        }
        let mut seen = 0;
        let mut is_zero = true;
        while let Some(bytes) = stream.bytes.next().await {
            let bytes = bytes?;
            let bytes = &bytes[..bytes.len().min(PLACE_BYTES - seen)];
            seen += bytes.len();
            is_zero &= bytes.iter().all(|byte| *byte == 0);
            if seen == PLACE_BYTES || !is_zero {
                break;
            }
        }
        full += u64::from(!is_zero);
    }
    Ok(size / PLACES * full + size / PLACES / 2)
}
