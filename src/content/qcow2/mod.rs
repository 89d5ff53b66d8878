//! A qcow2 image that is accepted from outside: header and tables judged in one pass, and the bytes
//! of the disk.
//!
//! A qcow2 header can name other files of the host, and QEMU opens them: a backing file, and an
//! external data file even where the caller says that there is no backing file. Its tables can show
//! the guest the image's own metadata, or one compressed cluster a thousand times. So both are
//! judged here before any other reader sees the image, and what the judge has read is the [`Map`]
//! that the disk is unpacked by: no second reader could understand the image otherwise, and QEMU
//! sees raw bytes only (`stage::unpack`).
//!
//! That is why no other crate reads images here. `qcow2-rs` (0.1.6) refuses every incompatible
//! feature, so all images packed by zstd, opens what the image names by itself, and panics on
//! headers that lie; behind this judge it would be a second parser of the same tables. `imago`
//! (0.2.6) ignores encryption and snapshots. What was missing besides the map is the unpacking of a
//! cluster: `miniz_oxide` and `ruzstd`, both without C. Tests compare the bytes with those of
//! `qemu-img convert`; overlays of our own are laid out by `qcow2-rs`, in `stage`.
//!
//! Memory is bounded by constants: 32 MiB for the map, half as much where all is compressed, 8 MiB
//! for the clusters in use; time by what the tables take.
//!
//! Format: QEMU's docs/interop/qcow2.txt; all numbers are big endian.

mod header;
mod map;
mod unpack;

use crate::content::Piece;
use crate::content::{ContentError, Sample};
use crate::oci::Digest;

pub use map::Map;

use header::Header;

/// First bytes of every version.
pub const MAGIC: &[u8] = b"QFI\xfb";

/// How clusters are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// RFC 1951, without a header.
    Deflate,
    /// Zstandard, RFC 8878.
    Zstd,
}

/// Judges the header and every table of a qcow2 image, and tells where the disk's bytes are.
///
/// `read` reads a piece that is inside of the file, of at most 1 MiB.
pub fn read<E: From<ContentError>>(
    sample: &Sample,
    read: &mut impl FnMut(Piece) -> Result<Vec<u8>, E>,
) -> Result<Map, E> {
    let header = Header::parse(&sample.head, sample.size_bytes)
        .map_err(|what| refusal(sample.digest, what))?;
    Map::read(sample, &header, read)
}

fn refusal(blob: Digest, what: String) -> ContentError {
    ContentError::UnsafeQcow2 { blob, what }
}

#[cfg(test)]
mod tests;
