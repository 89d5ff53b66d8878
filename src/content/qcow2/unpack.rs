//! The bytes of the disk in a qcow2 image.

use std::io::Read;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

use crate::content::ContentError;
use crate::content::Piece;
use crate::content::qcow2::map::{Extent, Map, Place};
use crate::content::qcow2::{Compression, refusal};

/// Bytes of plain clusters that are read at a time.
const PIECE_BYTES: u64 = 1 << 20;
/// Largest window that a zstd frame may ask for; four of the largest cluster.
const MAX_WINDOW_BYTES: u64 = 8 << 20;

impl Map {
    /// Calls `write` with the bytes of the disk's `range` and where they belong, in their order;
    /// what is left out is zeros. Errors if a compressed cluster does not unpack.
    pub fn unpack<E: From<ContentError>>(
        &self,
        range: Range<u64>,
        read: &mut impl FnMut(Piece) -> Result<Vec<u8>, E>,
        write: &mut impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let range = range.start..range.end.min(self.size_bytes);
        let mut unpacker = Unpacker::new(1 << self.cluster_bits);
        let before = |extent: &Extent| self.span(extent).end <= range.start;
        let first = self.extents.partition_point(before);
        for extent in &self.extents[first..] {
            let whole = self.span(extent);
            let part = whole.start.max(range.start)..whole.end.min(range.end);
            if part.is_empty() {
                break;
            }
            match extent.place(self.cluster_bits) {
                Place::Plain(offset) => {
                    let mut at = part.start;
                    while at < part.end {
                        let offset = offset + (at - whole.start);
                        // The last cluster of a file may be cut off where it is zeros.
                        let there = self.file_bytes.saturating_sub(offset);
                        let size_bytes = (part.end - at).min(PIECE_BYTES);
                        let piece = Piece {
                            offset,
                            size_bytes: size_bytes.min(there),
                        };
                        if piece.size_bytes > 0 {
                            write(at, &read(piece)?)?;
                        }
                        at += size_bytes;
                    }
                }
                Place::Packed(Piece { offset, size_bytes }) => {
                    let size_bytes = size_bytes.min(self.file_bytes - offset);
                    let packed = read(Piece { offset, size_bytes })?;
                    let [start, end] = [part.start, part.end].map(|at| {
                        usize::try_from(at - whole.start).expect("a cluster has 2 MiB at most")
                    });
                    let bytes = unpacker.unpack(self.compression, &packed, end);
                    let bytes = bytes.ok_or_else(|| {
                        let what = format!("a compressed cluster at {offset} that does not unpack");
                        refusal(self.blob, what)
                    })?;
                    write(part.start, &bytes[start..])?;
                }
            }
        }
        Ok(())
    }

    /// The guest's bytes that an extent holds.
    fn span(&self, extent: &Extent) -> Range<u64> {
        let start = u64::from(extent.first) << self.cluster_bits;
        start..start + (u64::from(extent.count) << self.cluster_bits)
    }
}

/// Unpacks clusters, in the same memory one after the other.
struct Unpacker {
    cluster: Vec<u8>,
    deflate: Box<DecompressorOxide>,
    zstd: FrameDecoder,
}

impl Unpacker {
    fn new(cluster_bytes: usize) -> Self {
        Self {
            cluster: vec![0; cluster_bytes],
            deflate: Box::default(),
            zstd: FrameDecoder::new(),
        }
    }

    /// Unpacks the first `count` bytes of a cluster; none if `packed` does not begin with them.
    fn unpack(&mut self, compression: Compression, packed: &[u8], count: usize) -> Option<&[u8]> {
        // Whatever is wrong with what it is given, a decoder of somebody else's must not end us.
        let unpacked = catch_unwind(AssertUnwindSafe(|| match compression {
            Compression::Deflate => self.inflate(packed, count),
            Compression::Zstd => self.decode(packed, count),
        }));
        unpacked.ok().flatten().map(|()| &self.cluster[..count])
    }

    /// Format: RFC 1951, without a header. What comes behind a whole cluster is another's.
    fn inflate(&mut self, packed: &[u8], count: usize) -> Option<()> {
        self.deflate.init();
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let wanted = &mut self.cluster[..count];
        let (status, _, done) = decompress(&mut self.deflate, packed, wanted, 0, flags);
        let is_sound = matches!(status, TINFLStatus::Done | TINFLStatus::HasMoreOutput);
        (is_sound && done == count).then_some(())
    }

    /// Format: RFC 8878, one frame.
    fn decode(&mut self, mut packed: &[u8], count: usize) -> Option<()> {
        // The decoder takes the memory that the frame asks for.
        if window_bytes(packed)? > MAX_WINDOW_BYTES.max(self.cluster.len() as u64) {
            return None;
        }
        self.zstd.reset(&mut packed).ok()?;
        let mut done = 0;
        while done < count {
            let wanted = BlockDecodingStrategy::UptoBytes(self.cluster.len());
            self.zstd.decode_blocks(&mut packed, wanted).ok()?;
            let now = self.zstd.read(&mut self.cluster[done..count]).ok()?;
            if now == 0 && self.zstd.is_finished() {
                return None;
            }
            done += now;
        }
        Some(())
    }
}

/// The window that the header of a zstd frame asks for; none if it is none, or needs a dictionary.
/// Format: RFC 8878, 3.1.1.1.
fn window_bytes(packed: &[u8]) -> Option<u64> {
    let rest = packed.strip_prefix(b"\x28\xb5\x2f\xfd")?;
    let (descriptor, rest) = rest.split_first()?;
    if descriptor & 3 != 0 {
        return None;
    }
    if descriptor & 0x20 == 0 {
        let (exponent, mantissa) = (rest.first()? >> 3, rest.first()? & 7);
        let base = 1_u64 << (10 + exponent);
        return Some(base + base / 8 * u64::from(mantissa));
    }
    // A single segment, as large as its content.
    Some(match descriptor >> 6 {
        0 => u64::from(*rest.first()?),
        1 => u64::from(u16::from_le_bytes(*rest.first_chunk()?)) + 256,
        2 => u64::from(u32::from_le_bytes(*rest.first_chunk()?)),
        _ => u64::from_le_bytes(*rest.first_chunk()?),
    })
}
