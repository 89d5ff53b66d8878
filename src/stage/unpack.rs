//! The disk in a qcow2 image as raw bytes in the store, so that QEMU reads no publisher's metadata.

use std::fs::File;

use crate::content::qcow2;
use crate::oci::Descriptor;
use crate::stage::StageError;
use crate::stage::inspect::read_at;
use crate::store::{Lease, MakeRaw, RawClaim};

/// Unpacks `disk`, an image that `map` was read from, into the store, if it is to be made. Waits while another process does it. Tells `told` of the bytes as they come.
pub fn unpack(
    disk: &Descriptor,
    map: &qcow2::Map,
    lease: &Lease,
    when: MakeRaw,
    told: &mut dyn FnMut(u64),
) -> Result<(), StageError> {
    let mut raw = match lease.claim_raw(disk.digest, when)? {
        RawClaim::Present => return Ok(()),
        RawClaim::Missing(raw) => raw,
    };
    let blob = disk.digest;
    let image = lease.blob(disk)?.ok_or(StageError::Missing { blob })?;
    let file: File = image.open()?;
    let unpacked = map.unpack::<StageError>(
        0..map.size_bytes(),
        &mut |piece| read_at(&image, &file, piece),
        &mut |offset, bytes| {
            raw.write(offset, bytes)?;
            told(bytes.len() as u64);
            Ok(())
        },
    );
    match unpacked {
        Ok(()) => Ok(raw.commit(map.size_bytes())?),
        Err(error) => {
            raw.discard()?;
            Err(error)
        }
    }
}
