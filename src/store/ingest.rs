//! The one way into the store: bytes are hashed as they come and appear under their digest only
//! when they are all there, right, and on the disk.
//!
//! Whoever calls [`Ingest::write`] hashes; `writer` brings the blocks to the disk meanwhile.

pub(super) mod writer;

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::files::{self, FileError, Lock, Wait};
use crate::oci::{Descriptor, Digest, Hasher};
use crate::store::{Act, Blob, Store, StoreError};

use writer::{BLOCK_BYTES, Block, Writer};

/// Whether a blob has to be fetched.
#[derive(Debug)]
pub enum Claim {
    /// It is there.
    Present(Blob),
    /// It is not, and whoever has this is the only one on the host to fetch it.
    Missing(Box<Ingest>),
}

/// A blob on its way in. Dropped before [`Ingest::commit`], it leaves at most a partial that the
/// next one resumes.
pub struct Ingest {
    store: Store,
    expected: Descriptor,
    directory: PathBuf,
    data: PathBuf,
    file: Arc<File>,
    writer: Writer,
    hasher: Hasher,
    /// Bytes hashed and handed to the writer.
    written: u64,
    block: Block,
    /// Whether some of the bytes were left by an earlier fetch.
    resumed: bool,
    /// Held until the end: one fetch per blob and host.
    _lock: Lock,
}

impl Ingest {
    /// Waits until nobody else fetches `expected`, then tells whether it is there by now.
    pub(super) fn claim(store: &Store, expected: &Descriptor) -> Result<Claim, StoreError> {
        if let Some(blob) = Blob::look(store, expected)? {
            return Ok(Claim::Present(blob));
        }
        let digest = expected.digest;
        let directory = store.ingest_directory(&digest);
        let lock = store.lock_ingest(&directory)?;
        if let Some(blob) = Blob::look(store, expected)? {
            store.remove_ingest(&directory)?;
            return Ok(Claim::Present(blob));
        }
        let data = directory.join("data");
        let file = Arc::new(open_partial(&data)?);
        let mut ingest = Self {
            store: store.clone(),
            expected: expected.clone(),
            directory,
            data,
            writer: Writer::new(Arc::clone(&file), 0),
            file,
            hasher: digest.hasher(),
            written: 0,
            block: Block::new(),
            resumed: false,
            _lock: lock,
        };
        ingest.resume()?;
        Ok(Claim::Missing(Box::new(ingest)))
    }

    /// Hashes what an earlier fetch left, up to its last full block.
    fn resume(&mut self) -> Result<(), StoreError> {
        let failed = |error| FileError::of("read", &self.data)(error);
        let length = self.file.metadata().map_err(failed)?.len();
        if length > self.expected.size {
            return self.restart();
        }
        let mut left = File::open(&self.data).map_err(failed)?;
        let mut block = vec![0; BLOCK_BYTES];
        while length - self.written >= BLOCK_BYTES as u64 {
            left.read_exact(&mut block).map_err(failed)?;
            self.hasher.update(&block);
            self.written += BLOCK_BYTES as u64;
        }
        // What comes next leaves out its zeros: nothing may be there already.
        self.file
            .set_len(self.written)
            .map_err(FileError::of("shorten", &self.data))?;
        self.writer = Writer::new(Arc::clone(&self.file), self.written);
        self.resumed = self.written > 0;
        Ok(())
    }

    /// The descriptor that the bytes must turn out to fit.
    #[must_use]
    pub fn expected(&self) -> &Descriptor {
        &self.expected
    }

    /// Offset of the byte that comes next.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.written + self.block.len() as u64
    }

    /// Whether some of the bytes were left by an earlier fetch, and may be wrong for that reason.
    #[must_use]
    pub fn is_resumed(&self) -> bool {
        self.resumed
    }

    /// Forgets all bytes.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.writer
            .wait()
            .and_then(|()| self.file.set_len(0))
            .map_err(FileError::of("empty", &self.data))?;
        self.writer = Writer::new(Arc::clone(&self.file), 0);
        self.hasher = self.expected.digest.hasher();
        self.written = 0;
        self.block.clear();
        self.resumed = false;
        Ok(())
    }

    /// Adds `bytes` at [`Ingest::offset`]. Errors if they are more than the descriptor says.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), StoreError> {
        if self.offset() + bytes.len() as u64 > self.expected.size {
            return Err(StoreError::TooLong {
                blob: self.expected.digest,
                size_bytes: self.expected.size,
            });
        }
        loop {
            bytes = self.block.fill(bytes);
            if !self.block.is_full() {
                return Ok(());
            }
            self.hasher.update(self.block.bytes());
            self.written += self.block.len() as u64;
            let full = std::mem::replace(&mut self.block, Block::empty());
            let (next, written) = match self.writer.write(full) {
                Ok(next) => (next, Ok(())),
                Err(error) => (Block::new(), Err(error)),
            };
            self.block = next;
            written.map_err(FileError::of("write", &self.data))?;
        }
    }

    /// Makes the blob appear. Errors if its size or digest is not what was expected; nothing is
    /// left then.
    pub fn commit(mut self) -> Result<Blob, StoreError> {
        let digest = self.expected.digest;
        self.hasher.update(self.block.bytes());
        let written = self.offset();
        let check = if written == self.expected.size {
            match std::mem::replace(&mut self.hasher, digest.hasher()).finish() {
                actual if actual == digest => Ok(()),
                actual => Err(StoreError::Content {
                    expected: digest,
                    actual,
                }),
            }
        } else {
            Err(StoreError::TooShort {
                blob: digest,
                expected_bytes: self.expected.size,
                actual_bytes: written,
            })
        };
        if let Err(error) = check {
            self.store.remove_ingest(&self.directory)?;
            return Err(error);
        }
        let synced = self
            .writer
            .finish(self.block.bytes())
            .and_then(|()| self.file.set_len(written))
            .and_then(|()| self.file.set_permissions(fs::Permissions::from_mode(0o444)))
            .and_then(|()| self.file.sync_all());
        if let Err(error) = synced {
            // The kernel may have dropped the bytes that it could not write: to whoever resumes
            // they would look right, and the next sync would succeed without them.
            self.store.remove_ingest(&self.directory)?;
            return Err(FileError::of("write", &self.data)(error).into());
        }
        let path = self.store.blob_path(&digest);
        let is_ours = match renameat_with(CWD, &self.data, CWD, &path, RenameFlags::NOREPLACE) {
            Ok(()) => true,
            // Somebody restored it meanwhile; it is as good as ours.
            Err(rustix::io::Errno::EXIST) => false,
            Err(error) => return Err(FileError::of("publish", &path)(error.into()).into()),
        };
        if let Err(error) = path.parent().map_or(Ok(()), files::sync_dir) {
            // A power cut may still undo the rename: nothing may be built on this blob.
            if is_ours {
                files::remove(&path)?;
            }
            self.store.remove_ingest(&self.directory)?;
            return Err(error.into());
        }
        self.store.remove_ingest(&self.directory)?;
        Blob::look(&self.store, &self.expected)?.ok_or(StoreError::Damaged {
            blob: digest,
            what: "gone",
            path,
        })
    }

    /// Gives up after a failed fetch: full blocks stay for whoever resumes, if there are any.
    pub fn abandon(mut self) -> Result<(), StoreError> {
        let written = self.writer.wait();
        // What was written before an error may not be there either; see `commit`.
        if self.written == 0 || written.is_err() {
            self.store.remove_ingest(&self.directory)?;
        }
        Ok(written.map_err(FileError::of("write", &self.data))?)
    }

    /// Gives up after bytes that were wrong: nothing stays.
    pub fn discard(self) -> Result<(), StoreError> {
        self.store.remove_ingest(&self.directory)
    }
}

impl fmt::Debug for Ingest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ingest of {} at {}", self.expected.digest, self.offset())
    }
}

/// Opens the file of an unfinished blob, creating it.
fn open_partial(path: &Path) -> Result<File, FileError> {
    let open = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
    };
    let opened = match open() {
        // It was whole, and whoever made it was killed before it had its name.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o600)).and_then(|()| open())
        }
        result => result,
    };
    opened.map_err(FileError::of("open", path))
}

impl Store {
    /// Bytes on the disk of what an unfinished fetch left.
    #[must_use]
    pub fn partial_bytes(&self, digest: &Digest) -> u64 {
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        let data = self.path("ingest").join(name).join("data");
        fs::symlink_metadata(data).map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// Waits until nobody else works in a directory of `ingest/`, which is created.
    pub(super) fn lock_ingest(&self, directory: &Path) -> Result<Lock, StoreError> {
        loop {
            let lock = files::create_dir(directory, 0o700)
                .and_then(|()| Lock::exclusive(&directory.join("lock"), Wait::ForEver));
            match lock {
                Ok(lock) => return Ok(lock.expect("a lock that is waited for is taken")),
                // The one before us has just finished and removed the directory.
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Removes the directory of a fetch, whose lock is held.
    ///
    /// It is renamed first: whoever waits for the lock sees that it guards nothing any more, and
    /// whoever comes new makes a directory of its own.
    pub(super) fn remove_ingest(&self, directory: &Path) -> Result<(), StoreError> {
        // Somebody who collects may already have taken it away.
        if let Some(gone) = self.take_out(directory)? {
            files::remove_tree(&gone)?;
        }
        Ok(())
    }

    /// Removes what unfinished fetches of `digests` left, unless somebody fetches them now.
    pub fn remove_partials(
        &self,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<(), StoreError> {
        let digests: BTreeSet<Digest> = digests.into_iter().collect();
        self.remove_raw_drafts(|source| digests.contains(source), Act::Remove)?;
        for digest in digests {
            let directory = self.ingest_directory(&digest);
            match Lock::exclusive(&directory.join("lock"), Wait::No) {
                Ok(Some(_nobody)) => self.remove_ingest(&directory)?,
                Ok(None) => {}
                // There is none, or its holder has just removed it.
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Removes what those left who were killed after their blob had appeared.
    pub(super) fn remove_finished_ingests(&self) -> Result<(), StoreError> {
        for name in files::names(&self.path("ingest"))? {
            let digest = name.replacen('-', ":", 1).parse();
            if let Ok(digest) = digest
                && self.blob_path(&digest).exists()
            {
                self.remove_partials([digest])?;
            }
        }
        let is_there = |source: &Digest| self.derived_path(source).exists();
        self.remove_raw_drafts(is_there, Act::Remove)?;
        Ok(())
    }

    fn ingest_directory(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        self.path("ingest").join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().join("store"));
        store.create().unwrap();
        (directory, store)
    }

    fn claim(store: &Store, expected: &Descriptor) -> Ingest {
        match Ingest::claim(store, expected).unwrap() {
            Claim::Missing(ingest) => *ingest,
            Claim::Present(blob) => panic!("{blob:?} is there already"),
        }
    }

    /// Everything in the store that is not a directory.
    fn files_of(store: &Store) -> Vec<String> {
        let mut found = Vec::new();
        let mut todo = vec![store.root().to_owned()];
        while let Some(directory) = todo.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let entry = entry.unwrap();
                if entry.file_type().unwrap().is_dir() {
                    todo.push(entry.path());
                } else {
                    found.push(entry.file_name().into_string().unwrap());
                }
            }
        }
        found
    }

    #[test]
    fn a_blob_appears_read_only_under_its_digest() {
        let (_directory, store) = store();
        let expected = Descriptor::of("x", b"content");
        let mut ingest = claim(&store, &expected);
        ingest.write(b"con").unwrap();
        ingest.write(b"tent").unwrap();
        let blob = ingest.commit().unwrap();
        assert_eq!(blob.head(100).unwrap(), b"content");
        let mode = fs::metadata(blob.path()).unwrap().mode();
        assert_eq!(mode & 0o7777, 0o444);
        assert_eq!(files_of(&store), [expected.digest.hex()]);
        assert!(matches!(
            Ingest::claim(&store, &expected).unwrap(),
            Claim::Present(_)
        ));
    }

    #[test]
    fn wrong_content_and_wrong_sizes_leave_nothing_behind() {
        let (_directory, store) = store();
        let expected = Descriptor::of("x", b"content");
        for (bytes, kind) in [(&b"CONTENT"[..], "content"), (b"cont", "short")] {
            let mut ingest = claim(&store, &expected);
            ingest.write(bytes).unwrap();
            let error = ingest.commit().unwrap_err();
            match kind {
                "content" => assert!(matches!(error, StoreError::Content { .. })),
                _ => assert!(matches!(
                    error,
                    StoreError::TooShort {
                        actual_bytes: 4,
                        ..
                    }
                )),
            }
            assert_eq!(files_of(&store), Vec::<String>::new());
        }
        let mut ingest = claim(&store, &expected);
        let error = ingest.write(b"contents").unwrap_err();
        assert!(matches!(error, StoreError::TooLong { size_bytes: 7, .. }));
        ingest.discard().unwrap();
        assert_eq!(files_of(&store), Vec::<String>::new());
    }

    #[test]
    fn an_ingest_that_could_not_be_removed_is_not_taken_for_gone() {
        let (_directory, store) = store();
        let expected = Descriptor::of("x", b"content");
        let ingest = claim(&store, &expected);
        let tmp = store.path("tmp");
        fs::remove_dir(&tmp).unwrap();
        assert!(ingest.discard().is_err());
        fs::create_dir(&tmp).unwrap();
        claim(&store, &expected).discard().unwrap();
        assert_eq!(files_of(&store), Vec::<String>::new());
        assert_eq!(files::names(&tmp).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_dropped_ingest_is_resumed_where_it_stopped() {
        let (_directory, store) = store();
        let content: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
        let expected = Descriptor::of("x", &content);
        let mut ingest = claim(&store, &expected);
        ingest.write(&content[..2_500_000]).unwrap();
        drop(ingest);
        let mut ingest = claim(&store, &expected);
        assert!(ingest.is_resumed());
        // What was in the buffer is lost with the process.
        assert_eq!(ingest.offset(), 2 << 20);
        ingest.write(&content[2 << 20..]).unwrap();
        let blob = ingest.commit().unwrap();
        assert_eq!(blob.digest(), expected.digest);
    }

    #[test]
    fn a_partial_that_is_too_long_is_thrown_away() {
        let (_directory, store) = store();
        let small = Descriptor::of("x", b"small");
        let lie = Descriptor {
            size: 2 << 20,
            ..small.clone()
        };
        let mut ingest = claim(&store, &lie);
        ingest.write(&vec![1; 2 << 20]).unwrap();
        drop(ingest);
        let mut ingest = claim(&store, &small);
        assert_eq!((ingest.offset(), ingest.is_resumed()), (0, false));
        ingest.write(b"small").unwrap();
        ingest.commit().unwrap();
    }

    #[test]
    fn what_a_partial_has_after_its_last_full_block_does_not_show_in_the_holes() {
        let (_directory, store) = store();
        let mut content = vec![0; 3 << 20];
        content[0] = 1;
        let expected = Descriptor::of("x", &content);
        let ingest = claim(&store, &expected);
        // What a power cut may leave of a block that was on its way.
        let left = [&content[..BLOCK_BYTES], &[0xff; BLOCK_BYTES / 2]].concat();
        fs::write(&ingest.data, left).unwrap();
        drop(ingest);
        let mut ingest = claim(&store, &expected);
        assert_eq!(ingest.offset(), 1 << 20);
        ingest.write(&content[BLOCK_BYTES..]).unwrap();
        let blob = ingest.commit().unwrap();
        assert_eq!(Digest::of(&blob.head(u64::MAX).unwrap()), expected.digest);
    }

    #[test]
    fn a_failed_fetch_leaves_only_what_is_worth_resuming() {
        let (_directory, store) = store();
        let content = vec![7; 3 << 20];
        let expected = Descriptor::of("x", &content);
        for (count, kept) in [(1000, 0), (2_000_000, 1 << 20)] {
            let mut ingest = claim(&store, &expected);
            ingest.write(&content[..count]).unwrap();
            ingest.abandon().unwrap();
            assert_eq!(claim(&store, &expected).offset(), kept);
        }
    }

    #[test]
    fn more_blocks_than_there_is_memory_for_are_written_in_their_order() {
        let (_directory, store) = store();
        let content: Vec<u8> = (0..5_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let expected = Descriptor::of("x", &content);
        let mut ingest = claim(&store, &expected);
        for piece in content.chunks(300_001) {
            ingest.write(piece).unwrap();
        }
        let blob = ingest.commit().unwrap();
        assert!(fs::read(blob.path()).unwrap() == content);
    }

    #[test]
    fn a_partial_that_was_to_be_published_can_be_written_again() {
        let (_directory, store) = store();
        let content = vec![7; 3 << 20];
        let expected = Descriptor::of("x", &content);
        let mut ingest = claim(&store, &expected);
        ingest.write(&content[..2 << 20]).unwrap();
        let data = ingest.data.clone();
        drop(ingest);
        fs::set_permissions(&data, fs::Permissions::from_mode(0o444)).unwrap();
        let mut ingest = claim(&store, &expected);
        ingest.write(&content[2 << 20..]).unwrap();
        ingest.commit().unwrap();
    }

    #[test]
    fn runs_of_zeros_become_holes() {
        let (_directory, store) = store();
        let mut content = vec![0; 8 << 20];
        content[5 << 20] = 1;
        let expected = Descriptor::of("x", &content);
        let mut ingest = claim(&store, &expected);
        ingest.write(&content).unwrap();
        let blob = ingest.commit().unwrap();
        let metadata = fs::metadata(blob.path()).unwrap();
        assert_eq!(metadata.len(), 8 << 20);
        assert!(
            metadata.blocks() * 512 <= 128 << 10,
            "{} blocks",
            metadata.blocks()
        );
        assert_eq!(Digest::of(&blob.head(u64::MAX).unwrap()), expected.digest);
    }

    #[test]
    fn a_blob_that_was_tampered_with_is_not_handed_out() {
        let (_directory, store) = store();
        let expected = Descriptor::of("x", b"content");
        let path = store.blob_path(&expected.digest);
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(matches!(
            Ingest::claim(&store, &expected),
            Err(StoreError::Damaged { .. })
        ));
        fs::remove_file(&path).unwrap();
        fs::write(&path, b"short").unwrap();
        assert!(matches!(
            Ingest::claim(&store, &expected),
            Err(StoreError::Damaged { .. })
        ));
    }

    #[test]
    fn what_a_fetch_left_that_was_killed_when_its_blob_was_there_is_removed() {
        let (_directory, store) = store();
        let [done, half] = [b"done", b"half"].map(|content| Descriptor::of("x", content));
        let lease = store.lease([done.digest, half.digest]).unwrap();
        lease.put(&done, b"done").unwrap();
        let ingest = |blob: &Descriptor| format!("sha256-{}", blob.digest.hex());
        let left = || files::names(&store.path("ingest")).unwrap();
        for blob in [&done, &half] {
            let left = store.path("ingest").join(ingest(blob));
            fs::create_dir(&left).unwrap();
            fs::write(left.join("lock"), b"").unwrap();
        }
        let lock = store.path("ingest").join(ingest(&done)).join("lock");
        let held = Lock::exclusive(&lock, Wait::No).unwrap();
        drop(store.lease([]).unwrap());
        assert_eq!(left().len(), 2, "somebody is still at it");
        drop(held);
        drop(store.lease([]).unwrap());
        assert_eq!(left(), [ingest(&half)]);
    }
}
