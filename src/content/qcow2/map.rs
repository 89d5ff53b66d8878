//! The tables of a qcow2 image, read once: where the bytes of the disk are.

use crate::content::Piece;
use crate::content::qcow2::header::Header;
use crate::content::qcow2::{Compression, refusal};
use crate::content::{ContentError, Sample};
use crate::oci::Digest;

/// Most pieces that a disk may lie in, which is 32 MiB of them here. A compressed cluster is one,
/// and so is a run of plain ones: at 64 KiB, this is 128 GiB of compressed data.
const MAX_EXTENTS: usize = 2 << 20;
/// Most clusters of a file, which is 8 MiB of bits here: 4 TiB of clusters of 64 KiB.
const MAX_FILE_CLUSTERS: u64 = 64 << 20;
/// Bytes of a table that are read at a time.
const TABLE_PIECE_BYTES: u64 = 1 << 20;

/// Bits 9 to 55 of an entry: where the cluster is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 0 of an L2 entry: the cluster reads as zeros, whether or not it has a place.
const READS_AS_ZEROS: u64 = 1;
/// Bit 62 of an L2 entry.
const COMPRESSED: u64 = 1 << 62;
/// Bit 63: nobody else refers to the cluster.
const SOLE: u64 = 1 << 63;

/// Where the bytes of a disk are in its qcow2 image; made only by [`super::read`], so that it leads
/// nowhere but into the image's own data, and to each of them once. What it does not name is zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Map {
    pub(super) blob: Digest,
    pub(super) cluster_bits: u32,
    pub(super) compression: Compression,
    pub(super) size_bytes: u64,
    pub(super) file_bytes: u64,
    /// In the order of the guest's clusters.
    pub(super) extents: Vec<Extent>,
}

/// Clusters of the guest that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    /// The first of them.
    pub(super) first: u32,
    /// How many; compressed ones are alone.
    pub(super) count: u32,
    /// The first one's entry.
    entry: u64,
}

/// Where the clusters of an extent are in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// As they are, one after the other, from this offset on.
    Plain(u64),
    /// Packed, in this piece or less of it.
    Packed(Piece),
}

impl Extent {
    pub(super) fn place(self, cluster_bits: u32) -> Place {
        if self.entry & COMPRESSED == 0 {
            Place::Plain(self.entry & OFFSET)
        } else {
            Place::Packed(packed_piece(self.entry, cluster_bits))
        }
    }
}

/// Where a compressed cluster is: up to the end of its last sector, which it may share.
fn packed_piece(entry: u64, cluster_bits: u32) -> Piece {
    let sectors_at = 62 - (cluster_bits - 8);
    let offset = entry & ((1 << sectors_at) - 1);
    let more_sectors = (entry & !(SOLE | COMPRESSED)) >> sectors_at;
    Piece {
        offset,
        size_bytes: 512 - offset % 512 + 512 * more_sectors,
    }
}

impl Map {
    /// Size of the disk as a guest sees it, in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// The most that the disk takes where zeros take nothing, in bytes.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        let clusters: u64 = self
            .extents
            .iter()
            .map(|extent| u64::from(extent.count))
            .sum();
        (clusters << self.cluster_bits).min(self.size_bytes)
    }

    /// Reads the tables that `header` names, each once.
    pub(super) fn read<E: From<ContentError>>(
        sample: &Sample,
        header: &Header,
        read: &mut dyn FnMut(Piece) -> Result<Vec<u8>, E>,
    ) -> Result<Self, E> {
        let mut tables = Tables {
            header,
            blob: sample.digest,
            used: Used::new(sample, header.cluster_bits)?,
            packed: false,
            map: Self {
                blob: sample.digest,
                cluster_bits: header.cluster_bits,
                compression: header.compression,
                size_bytes: header.size_bytes,
                file_bytes: sample.size_bytes,
                extents: Vec::new(),
            },
        };
        tables.read(read)?;
        Ok(tables.map)
    }
}

/// The clusters of the file that have a use.
struct Used {
    bits: Vec<u64>,
    cluster_bits: u32,
    file_bytes: u64,
}

impl Used {
    fn new(sample: &Sample, cluster_bits: u32) -> Result<Self, ContentError> {
        let clusters = sample.size_bytes.div_ceil(1 << cluster_bits);
        let words = usize::try_from(clusters.div_ceil(64)).unwrap_or(usize::MAX);
        if clusters > MAX_FILE_CLUSTERS {
            let what = format!("{clusters} clusters; {MAX_FILE_CLUSTERS} are the most");
            return Err(refusal(sample.digest, what));
        }
        Ok(Self {
            bits: vec![0; words],
            cluster_bits,
            file_bytes: sample.size_bytes,
        })
    }

    /// Takes the clusters of `length` bytes from `offset` on. Errors if one of them begins beyond
    /// the file, or has a use already.
    fn take(&mut self, offset: u64, length: u64) -> Result<(), &'static str> {
        if !offset.is_multiple_of(1 << self.cluster_bits) {
            return Err("that is not at the start of one");
        }
        for cluster in 0..length.div_ceil(1 << self.cluster_bits) {
            let start = offset.saturating_add(cluster << self.cluster_bits);
            if start >= self.file_bytes {
                return Err("beyond the end of the file");
            }
            let (word, bit) = self.bit(start);
            if self.bits[word] & bit != 0 {
                return Err("that has another use");
            }
            self.bits[word] |= bit;
        }
        Ok(())
    }

    fn is_taken(&self, offset: u64) -> bool {
        let (word, bit) = self.bit(offset);
        self.bits.get(word).is_some_and(|bits| bits & bit != 0)
    }

    fn bit(&self, offset: u64) -> (usize, u64) {
        let cluster = offset >> self.cluster_bits;
        let word = usize::try_from(cluster / 64).unwrap_or(usize::MAX);
        (word, 1 << (cluster % 64))
    }
}

/// The pass over the tables.
struct Tables<'a> {
    header: &'a Header,
    blob: Digest,
    used: Used,
    /// Whether any cluster is compressed.
    packed: bool,
    map: Map,
}

impl Tables<'_> {
    fn read<E: From<ContentError>>(
        &mut self,
        read: &mut dyn FnMut(Piece) -> Result<Vec<u8>, E>,
    ) -> Result<(), E> {
        let header = *self.header;
        let cluster = 1_u64 << header.cluster_bits;
        self.take("its header", 0, cluster)?;
        self.take("its L1 table", header.l1_offset, 8 * header.l1_entries)?;
        let refcounts = header.refcount_clusters * cluster;
        self.take("its refcount table", header.refcount_offset, refcounts)?;
        self.each(
            header.refcount_offset,
            refcounts / 8,
            read,
            |tables, _, entry, _| {
                if entry & 0x1ff != 0 {
                    return Err(tables
                        .refuse("reserved bits in its refcount table".to_owned())
                        .into());
                }
                Ok(tables.take_whole("a refcount block", entry)?)
            },
        )?;
        let per_table = cluster / 8;
        self.each(
            header.l1_offset,
            header.l1_entries,
            read,
            |tables, index, entry, read| {
                if entry & !(OFFSET | SOLE) != 0 || entry & OFFSET == 0 {
                    return Err(tables
                        .refuse("reserved bits in its L1 table".to_owned())
                        .into());
                }
                let table = entry & OFFSET;
                tables.take_whole("an L2 table", table)?;
                tables.each(table, per_table, read, |tables, place, entry, _| {
                    Ok(tables.cluster(index * per_table + place, entry)?)
                })
            },
        )?;
        Ok(self.check_packed()?)
    }

    /// Calls `act` with the number and the value of each entry of a table that is not zero.
    fn each<E: From<ContentError>>(
        &mut self,
        offset: u64,
        entries: u64,
        read: &mut dyn FnMut(Piece) -> Result<Vec<u8>, E>,
        mut act: impl FnMut(
            &mut Self,
            u64,
            u64,
            &mut dyn FnMut(Piece) -> Result<Vec<u8>, E>,
        ) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut done = 0;
        while done < entries {
            let now = (entries - done).min(TABLE_PIECE_BYTES / 8);
            let bytes = read(Piece {
                offset: offset + 8 * done,
                size_bytes: 8 * now,
            })?;
            for (place, entry) in (done..).zip(bytes.as_chunks().0) {
                match u64::from_be_bytes(*entry) {
                    0 => {}
                    entry => act(self, place, entry, read)?,
                }
            }
            done += now;
        }
        Ok(())
    }

    /// Judges the entry of a guest's cluster, and notes where it is.
    fn cluster(&mut self, number: u64, entry: u64) -> Result<(), ContentError> {
        let bits = self.header.cluster_bits;
        let first =
            u32::try_from(number).map_err(|_| self.refuse(format!("a cluster {number}")))?;
        let extent = Extent {
            first,
            count: 1,
            entry,
        };
        // One beyond the disk's end must be right, and is not read.
        let is_inside = number < self.header.size_bytes.div_ceil(1 << bits);
        if entry & COMPRESSED != 0 {
            if entry & SOLE != 0 {
                return Err(self.refuse("reserved bits in an L2 table".to_owned()));
            }
            if packed_piece(entry, bits).offset >= self.map.file_bytes {
                let what = "a compressed cluster beyond the end of the file";
                return Err(self.refuse(what.to_owned()));
            }
            self.packed = true;
            return self.note(extent);
        }
        if entry & !(OFFSET | SOLE | READS_AS_ZEROS) != 0 {
            return Err(self.refuse("reserved bits in an L2 table".to_owned()));
        }
        let offset = entry & OFFSET;
        if offset == 0 {
            return match entry {
                READS_AS_ZEROS => Ok(()),
                _ => Err(self.refuse("reserved bits in an L2 table".to_owned())),
            };
        }
        self.take("a cluster of data", offset, 1)?;
        if entry & READS_AS_ZEROS != 0 || !is_inside {
            return Ok(());
        }
        if let Some(last) = self.map.extents.last_mut()
            && u64::from(last.first) + u64::from(last.count) == number
            && last.entry & COMPRESSED == 0
            && (last.entry & OFFSET) + (u64::from(last.count) << bits) == offset
        {
            last.count += 1;
            return Ok(());
        }
        self.note(extent)
    }

    fn note(&mut self, extent: Extent) -> Result<(), ContentError> {
        if self.map.extents.len() == MAX_EXTENTS {
            return Err(self.refuse(format!("more than {MAX_EXTENTS} pieces of data")));
        }
        self.map.extents.push(extent);
        Ok(())
    }

    /// Checks that compressed clusters lie neither in one another nor in a cluster that has another
    /// use. Two may share a sector: the end of the one and the start of the next.
    fn check_packed(&mut self) -> Result<(), ContentError> {
        if !self.packed {
            return Ok(());
        }
        let bits = self.header.cluster_bits;
        let all = self.map.extents.iter().map(|extent| extent.entry);
        let mut entries: Vec<u64> = all.filter(|entry| entry & COMPRESSED != 0).collect();
        entries.sort_unstable_by_key(|entry| packed_piece(*entry, bits).offset);
        let mut before = None;
        for entry in entries {
            let Piece { offset, size_bytes } = packed_piece(entry, bits);
            if before.is_some_and(|last| offset <= last) {
                return Err(self.refuse("two compressed clusters in one place".to_owned()));
            }
            // Where its last sector starts, in which the next may start.
            let last = (offset + size_bytes - 512).max(offset);
            let mut clusters = (offset >> bits)..=(last.min(self.map.file_bytes - 1) >> bits);
            if clusters.any(|cluster| self.used.is_taken(cluster << bits)) {
                let what = "a compressed cluster in a place that has another use";
                return Err(self.refuse(what.to_owned()));
            }
            before = Some(last);
        }
        // Those beyond the disk's end have been judged, and are not read.
        let clusters = self.header.size_bytes.div_ceil(1 << bits);
        self.map
            .extents
            .retain(|extent| u64::from(extent.first) < clusters);
        Ok(())
    }

    /// Takes one cluster, which must be whole.
    fn take_whole(&mut self, what: &str, offset: u64) -> Result<(), ContentError> {
        let cluster = 1_u64 << self.header.cluster_bits;
        if offset
            .checked_add(cluster)
            .is_none_or(|end| end > self.map.file_bytes)
        {
            return Err(self.refuse(format!("{what} beyond the end of the file")));
        }
        self.take(what, offset, cluster)
    }

    fn take(&mut self, what: &str, offset: u64, length: u64) -> Result<(), ContentError> {
        let taken = self.used.take(offset, length);
        taken.map_err(|problem| self.refuse(format!("{what} in a cluster {problem}")))
    }

    fn refuse(&self, what: String) -> ContentError {
        refusal(self.blob, what)
    }
}
