//! The disk in a qcow2 image, as raw bytes in the store.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::content::qcow2::Map;
use crate::files::FileError;
use crate::oci::{Descriptor, Digest};
use crate::ops::{Context, OpsError, Progress, blocking};
use crate::stage;
use crate::store::{Lease, MakeRaw};

/// Makes the raw bytes of the blob `source` again. If it is no image that they can be made of, what
/// is in their place goes. The caller holds the lock of repairs.
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
    match content.qcow2 {
        Some(map) => unpack(context, &disk, map, &lease, MakeRaw::Anew).await,
        None => {
            let store = context.store.clone();
            blocking(move || store.remove_raw(&source)).await
        }
    }
}

/// Unpacks `disk`, an image that `map` was read from, if it is to be made.
pub(super) async fn unpack(
    context: &Context<'_>,
    disk: &Descriptor,
    map: Arc<Map>,
    lease: &Arc<Lease>,
    when: MakeRaw,
) -> Result<(), OpsError> {
    let blob = disk.digest;
    // It is looked at once more by whoever unpacks.
    let is_news = when == MakeRaw::Anew || !context.store.seems_to_have_raw(&blob);
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
        stage::unpack(&disk, &map, &lease, when, &mut |count| {
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
