//! What is made of a blob here: the disk in an image as raw bytes, kept for as long as the blob.
//!
//! ```text
//! <store>/derived/<algorithm>-<hex>/     of the blob with that digest
//!         raw             0444  the bytes; zeros are holes
//!         record.json           source, form, size and digest; both appear by one rename
//!         ingest/raw-<algorithm>-<hex>/
//!         lock                  held by who makes it
//!         made/                 unfinished; whoever comes next begins anew
//! ```
//!
//! Its place is named by its source, so that whoever needs the source keeps it, and nobody has to
//! be told that it is there. Its digest is for [`super::verify`] alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};

use crate::files::{self, FileError, Lock, Wait};
use crate::oci::{Digest, Hasher};
use crate::store::ingest::writer::{BLOCK_BYTES, Block, Writer};
use crate::store::{Expected, Finding, Lease, Problem, Store, StoreError};

/// Zeros are left out of the file, and of the digest, by so many bytes.
const PIECE_BYTES: usize = 64 << 10;
static ZEROS: [u8; PIECE_BYTES] = [0; PIECE_BYTES];

/// What is known of the raw bytes of a blob.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawRecord {
    /// Version of the record's form.
    pub schema_version: u32,
    /// The blob that it was made of.
    pub source: Digest,
    /// What was made: `raw`.
    pub form: String,
    /// Its size in bytes, holes and all.
    pub size_bytes: u64,
    /// SHA-256 over each piece of 64 KiB that is not all zeros, in their order, with its offset as
    /// eight bytes, the least significant one first, before it. So a disk of 16 TiB with nothing on
    /// it is hashed in no time.
    pub digest: Digest,
}

/// The version of the form of [`RawRecord`]. What has an older one is made again: in version 1 the
/// last piece could be hashed without the hole behind it.
const VERSION: u32 = 2;
/// The form of [`RawRecord::form`].
const FORM: &str = "raw";

/// Why a record is not of the raw bytes of a blob as they are made now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Source,
    Form,
    Older,
    Newer,
}

impl RawRecord {
    fn fault(&self, source: &Digest) -> Option<Fault> {
        match self {
            _ if self.source != *source => Some(Fault::Source),
            _ if self.form != FORM => Some(Fault::Form),
            _ if self.schema_version < VERSION => Some(Fault::Older),
            _ if self.schema_version > VERSION => Some(Fault::Newer),
            _ => None,
        }
    }
}

impl Fault {
    fn words(self) -> &'static str {
        match self {
            Self::Source => "its record is of another blob",
            Self::Form => "its record is of another form",
            Self::Older => "its record is of an older version",
            Self::Newer => "its record is of a newer version",
        }
    }
}

/// When raw bytes are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MakeRaw {
    /// Where they are not there.
    IfMissing,
    /// Whatever is there, which stays until these can have its place.
    Anew,
}

/// Whether the raw bytes of a blob have to be made.
#[derive(Debug)]
pub enum RawClaim {
    /// They are there.
    Present,
    /// They are not, and whoever has this is the only one on the host to make them.
    Missing(Box<RawDraft>),
}

/// Raw bytes that are being made. Dropped before [`RawDraft::commit`], it leaves at most something
/// unfinished that nobody reads.
pub struct RawDraft {
    store: Store,
    source: Digest,
    directory: PathBuf,
    file: Arc<File>,
    writer: Writer,
    hasher: SparseHasher,
    block: Block,
    /// Where the bytes of the block begin.
    offset: u64,
    _lock: Lock,
}

impl std::fmt::Debug for RawDraft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RawDraft of {} at {}", self.source, self.offset)
    }
}

impl Store {
    /// Path of the raw bytes of the blob `source`, whether or not they are there.
    #[must_use]
    pub fn raw_path(&self, source: &Digest) -> PathBuf {
        self.derived_path(source).join("raw")
    }

    pub(super) fn derived_path(&self, source: &Digest) -> PathBuf {
        self.path("derived").join(file_name(source))
    }

    /// Tells whether the raw bytes of `source` are there, for estimates only.
    #[must_use]
    pub fn seems_to_have_raw(&self, source: &Digest) -> bool {
        fs::symlink_metadata(self.raw_path(source)).is_ok_and(|metadata| metadata.is_file())
    }

    /// Tells whether the raw bytes of `source` are there, made as they are made now. Errors if what
    /// is there can not be that: whoever can change it may have done so.
    fn has_raw(&self, source: &Digest) -> Result<bool, StoreError> {
        let path = self.raw_path(source);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            result => result.map_err(FileError::of("look at", &path))?,
        };
        let record = self.raw_record(source)?;
        let size_bytes = record.as_ref().map(|record| record.size_bytes);
        let what = match metadata {
            _ if !metadata.is_file() => "not a plain file",
            _ if metadata.mode() & 0o222 != 0 => "writable",
            _ if self.is_strangers(&metadata)? => "somebody else's",
            _ if Some(metadata.len()) != size_bytes => "not of its size",
            _ => match record.as_ref().and_then(|record| record.fault(source)) {
                None => return Ok(true),
                // It is made again.
                Some(Fault::Older) => return Ok(false),
                Some(_) => "not what its record says",
            },
        };
        Err(StoreError::Damaged {
            blob: *source,
            what,
            path,
        })
    }

    /// What the raw bytes of `source` take of the disk, in bytes.
    pub fn raw_allocated_bytes(&self, source: &Digest) -> Result<u64, StoreError> {
        Ok(super::prune::allocated(&self.derived_path(source))?)
    }

    /// The blobs of which something was made that is here.
    pub(super) fn derived(&self) -> Result<Vec<Digest>, StoreError> {
        let names = files::names(&self.path("derived"))?;
        Ok(names.iter().filter_map(|name| digest_of(name)).collect())
    }

    /// The record of the raw bytes of `source`; none if there is none.
    pub fn raw_record(&self, source: &Digest) -> Result<Option<RawRecord>, StoreError> {
        Self::read_record(&self.derived_path(source).join("record.json"))
    }

    /// Looks at what was made of the blobs in `expected`, and at what an instance opens of it. Tells
    /// what is not as it should be, by the blob.
    pub fn look_at_derived(
        &self,
        expected: &BTreeMap<Digest, Expected>,
    ) -> Result<Vec<(Digest, Finding)>, StoreError> {
        let owner = fs::metadata(&self.root).map_err(FileError::of("look at", &self.root))?;
        let mut opened = BTreeSet::new();
        for name in self.instance_names()? {
            opened.extend(self.raws_of_instance(&name)?);
        }
        let sources: BTreeSet<Digest> = self.derived()?.into_iter().chain(opened.clone()).collect();
        let mut found = Vec::new();
        for source in sources.into_iter().filter(|one| expected.contains_key(one)) {
            let path = self.raw_path(&source);
            let problem = match self.look_at_raw(&source, owner.uid()) {
                // One that nobody opens may just have been removed.
                Ok(Some(Problem::Missing)) if !opened.contains(&source) => None,
                Ok(problem) => problem,
                Err(StoreError::Record { source, .. }) => Some(Problem::Record(source.to_string())),
                Err(error) => Some(Problem::Unreadable(error.to_string())),
            };
            found.extend(problem.map(|problem| {
                let digest = None;
                let finding = Finding {
                    digest,
                    path,
                    problem,
                };
                (source, finding)
            }));
        }
        Ok(found)
    }

    fn look_at_raw(&self, source: &Digest, owner: u32) -> Result<Option<Problem>, StoreError> {
        let path = self.raw_path(source);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Some(Problem::Missing));
            }
            result => result.map_err(FileError::of("look at", &path))?,
        };
        if let Some(kind) = files::other_kind(metadata.file_type()) {
            return Ok(Some(Problem::NotAFile(kind)));
        }
        let Some(record) = self.raw_record(source)? else {
            return Ok(Some(Problem::Record("it has no record".to_owned())));
        };
        if let Some(fault) = record.fault(source) {
            return Ok(Some(Problem::Record(fault.words().to_owned())));
        }
        if metadata.len() != record.size_bytes {
            return Ok(Some(Problem::Size {
                expected_bytes: record.size_bytes,
                actual_bytes: metadata.len(),
            }));
        }
        let file = files::open_plain(&path)?;
        let actual = hash_sparse(&file).map_err(FileError::of("read", &path))?;
        Ok(match metadata.mode() & 0o7777 {
            _ if actual != record.digest => Some(Problem::Content),
            _ if metadata.uid() != owner => Some(Problem::Owner(metadata.uid())),
            _ if metadata.nlink() > 1 => Some(Problem::Links(metadata.nlink())),
            0o444 => None,
            mode => Some(Problem::Mode(mode)),
        })
    }

    /// Removes what is in the place of what is made of `source`, of which nothing is made. Call only under [`Store::lock_repairs`] and with a lease of `source`.
    pub fn remove_raw(&self, source: &Digest) -> Result<(), StoreError> {
        let path = self.derived_path(source);
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Ok(metadata) if metadata.is_dir() => self.remove_ingest(&path),
            _ => Ok(files::remove(&path)?),
        }
    }

    fn raw_draft_directory(&self, source: &Digest) -> PathBuf {
        let name = format!("{DRAFT}{}", file_name(source));
        self.path("ingest").join(name)
    }

    /// Removes what those left who made raw bytes and were killed, of the blobs that are `is_wanted`.
    /// Returns what it took of the disk, by the digests.
    pub(super) fn remove_raw_drafts(
        &self,
        is_wanted: impl Fn(&Digest) -> bool,
        act: super::Act,
    ) -> Result<Vec<(Digest, u64)>, StoreError> {
        let mut removed = Vec::new();
        for name in files::names(&self.path("ingest"))? {
            let digest = name.strip_prefix(DRAFT).and_then(digest_of);
            let Some(digest) = digest.filter(&is_wanted) else {
                continue;
            };
            let directory = self.path("ingest").join(&name);
            let lock = directory.join("lock");
            let bytes = super::prune::allocated(&directory)?;
            match act {
                super::Act::Look if files::is_held(&lock)? => continue,
                super::Act::Look => {}
                super::Act::Remove => match Lock::exclusive(&lock, Wait::No) {
                    Ok(Some(_nobody)) => self.remove_ingest(&directory)?,
                    Ok(None) => continue,
                    // Its holder has just removed it.
                    Err(error) if error.source.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error.into()),
                },
            }
            removed.push((digest, bytes));
        }
        Ok(removed)
    }
}

impl Lease {
    /// Tells whether the raw bytes of the blob `source` have to be made; waits while another process
    /// makes them.
    pub fn claim_raw(&self, source: Digest, when: MakeRaw) -> Result<RawClaim, StoreError> {
        self.check(source);
        RawDraft::claim(self.store(), source, when)
    }
}

impl RawDraft {
    fn claim(store: &Store, source: Digest, when: MakeRaw) -> Result<RawClaim, StoreError> {
        let is_done = || Ok::<_, StoreError>(when == MakeRaw::IfMissing && store.has_raw(&source)?);
        if is_done()? {
            return Ok(RawClaim::Present);
        }
        let directory = store.raw_draft_directory(&source);
        let lock = store.lock_ingest(&directory)?;
        if is_done()? {
            store.remove_ingest(&directory)?;
            return Ok(RawClaim::Present);
        }
        let made = directory.join("made");
        files::remove_tree(&made)?;
        files::create_dir(&made, 0o711)?;
        let path = made.join("raw");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(FileError::of("create", &path))?;
        let file = Arc::new(file);
        Ok(RawClaim::Missing(Box::new(Self {
            store: store.clone(),
            source,
            directory,
            writer: Writer::new(Arc::clone(&file), 0),
            file,
            hasher: SparseHasher::new(),
            block: Block::new(),
            offset: 0,
            _lock: lock,
        })))
    }

    /// Adds `bytes` at `offset`, not before the end of those before; what is between is zeros.
    pub fn write(&mut self, offset: u64, mut bytes: &[u8]) -> Result<(), StoreError> {
        self.skip_to(offset)?;
        while !bytes.is_empty() {
            bytes = self.block.fill(bytes);
            self.flush_if_full()?;
        }
        Ok(())
    }

    fn end(&self) -> u64 {
        self.offset + self.block.len() as u64
    }

    fn skip_to(&mut self, offset: u64) -> Result<(), StoreError> {
        while self.end() < offset {
            let missing = offset - self.end();
            if self.block.len() == 0 && missing >= BLOCK_BYTES as u64 {
                let whole = missing - missing % BLOCK_BYTES as u64;
                self.writer.skip(whole);
                self.offset += whole;
                continue;
            }
            let some = usize::try_from(missing).unwrap_or(usize::MAX);
            self.block.fill(&ZEROS[..some.min(PIECE_BYTES)]);
            self.flush_if_full()?;
        }
        Ok(())
    }

    fn flush_if_full(&mut self) -> Result<(), StoreError> {
        if !self.block.is_full() {
            return Ok(());
        }
        self.hasher.update(self.offset, self.block.bytes());
        self.offset += self.block.len() as u64;
        let full = std::mem::replace(&mut self.block, Block::empty());
        let written = self.writer.write(full);
        let path = self.directory.join("made/raw");
        self.block = written.map_err(FileError::of("write", &path))?;
        Ok(())
    }

    /// Makes the bytes appear, `size_bytes` of them. Nothing is left of them after an error.
    pub fn commit(mut self, size_bytes: u64) -> Result<(), StoreError> {
        let made = self.directory.join("made");
        let result = self.publish(size_bytes, &made);
        self.store.remove_ingest(&self.directory)?;
        result
    }

    fn publish(&mut self, size_bytes: u64, made: &Path) -> Result<(), StoreError> {
        let path = made.join("raw");
        let size = self.end().max(size_bytes);
        // The last piece is hashed whole, as whoever reads it again does, with the hole behind it.
        let whole = self.end().next_multiple_of(PIECE_BYTES as u64);
        self.skip_to(whole.min(size))?;
        self.hasher.update(self.offset, self.block.bytes());
        self.writer
            .finish(self.block.bytes())
            .and_then(|()| self.file.set_len(size))
            .and_then(|()| self.file.set_permissions(fs::Permissions::from_mode(0o444)))
            .and_then(|()| self.file.sync_all())
            .map_err(FileError::of("write", &path))?;
        let record = RawRecord {
            schema_version: VERSION,
            source: self.source,
            form: FORM.to_owned(),
            size_bytes: size,
            digest: std::mem::replace(&mut self.hasher, SparseHasher::new()).finish(),
        };
        let record_path = made.join("record.json");
        self.store.write_record(&record_path, &record)?;
        for path in [&path, &record_path, &made.to_owned()] {
            let file = File::open(path).map_err(FileError::of("open", path))?;
            self.store.give_to_owner(&file, path)?;
        }
        files::sync_dir(made)?;
        let target = self.store.derived_path(&self.source);
        // What is there already is of an older version, or damaged; it goes with the rest of the
        // draft. Whoever has it open keeps it.
        let flags = if super::is_gone(&target)? {
            RenameFlags::NOREPLACE
        } else {
            RenameFlags::EXCHANGE
        };
        let renamed = renameat_with(CWD, made, CWD, &target, flags);
        renamed.map_err(|error| FileError::of("publish", &target)(error.into()))?;
        Ok(target.parent().map_or(Ok(()), files::sync_dir)?)
    }

    /// Gives up: nothing stays.
    pub fn discard(self) -> Result<(), StoreError> {
        self.store.remove_ingest(&self.directory)
    }
}

/// What the names of those directories in `ingest/` begin with in which raw bytes are made.
const DRAFT: &str = "raw-";

fn file_name(digest: &Digest) -> String {
    format!("{}-{}", digest.algorithm(), digest.hex())
}

fn digest_of(name: &str) -> Option<Digest> {
    name.replacen('-', ":", 1).parse().ok()
}

/// The digest of [`RawRecord::digest`].
struct SparseHasher(Hasher);

impl SparseHasher {
    fn new() -> Self {
        Self(Digest::of(b"").hasher())
    }

    /// Adds `bytes` from `offset` on, a multiple of [`PIECE_BYTES`].
    fn update(&mut self, offset: u64, bytes: &[u8]) {
        for (piece, offset) in bytes
            .chunks(PIECE_BYTES)
            .zip((offset..).step_by(PIECE_BYTES))
        {
            if *piece != ZEROS[..piece.len()] {
                self.0.update(&offset.to_le_bytes());
                self.0.update(piece);
            }
        }
    }

    fn finish(self) -> Digest {
        self.0.finish()
    }
}

/// Hashes raw bytes without reading their holes.
fn hash_sparse(file: &File) -> io::Result<Digest> {
    let length = file.metadata()?.size();
    let mut hasher = SparseHasher::new();
    let mut block = vec![0; BLOCK_BYTES];
    let mut offset = 0;
    while offset < length {
        let data = match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
            Ok(data) => data,
            // Nothing but a hole is left.
            Err(rustix::io::Errno::NXIO) => break,
            // A file system that knows of no holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => offset,
            Err(error) => return Err(error.into()),
        };
        offset = data - data % PIECE_BYTES as u64;
        let count = usize::try_from(length - offset).unwrap_or(usize::MAX);
        let block = &mut block[..count.min(BLOCK_BYTES)];
        file.read_exact_at(block, offset)?;
        hasher.update(offset, block);
        offset += block.len() as u64;
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests;
