//! The disk in a qcow2 image, as raw bytes in the store.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::content::qcow2::Map;
use crate::files::FileError;
use crate::oci::{Descriptor, Digest};
use crate::ops::{Context, OpsError, Progress, blocking};
use crate::stage;
use crate::store::Lease;

/// Makes the raw bytes of the blob `source` again, if it is an image that they can be made of.
pub(super) async fn again(context: &Context<'_>, source: Digest) -> Result<(), OpsError> {
    let store = context.store.clone();
    let lease = Arc::new(blocking(move || store.lease([source])).await?);
    let path = context.store.blob_path(&source);
    let metadata = std::fs::symlink_metadata(&path).map_err(FileError::of("look at", &path))?;
    let disk = Descriptor {
        digest: source,
        size: metadata.len(),
        ..Descriptor::of("", b"")
    };
    let (described, held) = (disk.clone(), Arc::clone(&lease));
    let content = blocking(move || stage::disk(&described, &|blob| held.blob(blob))).await?;
    if let Some(map) = content.qcow2 {
        unpack(context, &disk, map, &lease).await?;
    }
    Ok(())
}

/// Unpacks `disk`, an image that `map` was read from, unless that was done already.
pub(super) async fn unpack(
    context: &Context<'_>,
    disk: &Descriptor,
    map: Arc<Map>,
    lease: &Arc<Lease>,
) -> Result<(), OpsError> {
    let blob = disk.digest;
    // It is looked at once more by whoever unpacks.
    let is_news = !context.store.seems_to_have_raw(&blob);
    if is_news {
        let (needed_bytes, free_bytes) = (map.data_bytes(), context.store.free_bytes()?);
        if needed_bytes > free_bytes {
            return Err(OpsError::NoSpace {
                path: context.store.root().to_owned(),
                needed_bytes,
                free_bytes,
            });
        }
        (context.report)(Progress::Unpacking {
            size_bytes: needed_bytes,
        });
        (context.report)(Progress::BlobStart {
            blob,
            label: "unpacking".to_owned(),
            size_bytes: needed_bytes,
            offset_bytes: 0,
        });
    }
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let (disk, lease) = (disk.clone(), Arc::clone(lease));
    let unpacking = tokio::task::spawn_blocking(move || {
        stage::unpack(&disk, &map, &lease, &mut |count| {
            // Fails only if nobody waits for the answer any more.
            sender.send(count).unwrap_or_default();
        })
    });
    while let Some(count) = receiver.recv().await {
        (context.report)(Progress::BlobBytes { blob, count });
    }
    unpacking.await??;
    if is_news {
        (context.report)(Progress::BlobDone { blob });
    }
    Ok(())
}
