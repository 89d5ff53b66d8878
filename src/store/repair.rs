//! Mending what [`super::verify`] has found, as far as it takes nothing from outside.
//!
//! ```text
//! <store>/repair.lock  held by whoever mends: no two do at the same time
//!         damaged/     what is wrong, out of the way; nothing here reads or collects it. A blob that
//!                      could be had again is deleted once it is in its place; what a kill or a
//!                      failed fetch leaves stays
//! ```
//!
//! What was found may be long ago when it is mended, so it is looked at again first.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FlockOperation, RenameFlags, flock, renameat_with};
use rustix::io::{Errno, retry_on_intr};

use crate::files::{self, FileError, Lock, Wait};
use crate::oci::{Digest, Hasher};
use crate::store::{Expected, Finding, Lease, Problem, Store, StoreError};

/// Bytes of zeros that are left out of a copy.
const HOLE_BYTES: usize = 64 << 10;

/// The place of a blob, once its file was mended.
#[derive(Debug)]
pub enum Place {
    /// The blob is there, and as it should be.
    Right,
    /// It is empty, and what was there has wrong content, if there was anything.
    Empty(Option<MovedOut>),
}

/// A blob that was moved to `damaged/`, where it stays unless it is deleted.
#[derive(Debug)]
pub struct MovedOut {
    path: PathBuf,
}

impl Store {
    /// Waits until no other process mends the store, and keeps others from it.
    pub fn lock_repairs(&self) -> Result<Lock, StoreError> {
        self.create()?;
        let path = self.path("repair.lock");
        let lock =
            Lock::exclusive(&path, Wait::ForEver)?.expect("a lock that is waited for is taken");
        self.give_to_owner(lock.file(), &path)?;
        Ok(lock)
    }

    /// Mends a record, or moves it away if nothing else tells what it should be; nothing if it is
    /// right by now. Tells whether it could.
    pub fn mend_record(&self, finding: &Finding) -> Result<bool, StoreError> {
        let path = &finding.path;
        // Nobody else writes a reference or the export meanwhile.
        let _lock = self.lock_references()?;
        let again = self.look_at_records()?;
        let Some(finding) = again.iter().find(|again| again.path == *path) else {
            return Ok(true);
        };
        match &finding.problem {
            Problem::Directory => return Ok(false),
            Problem::Stranger => drop(self.put_away(path)?),
            _ if path.starts_with(self.path("refs")) => {
                self.put_away(path)?;
                self.export()?;
            }
            _ if path.starts_with(self.path("pins")) => {
                if finding.problem != Problem::Unpinned {
                    self.put_away(path)?;
                }
                // What its record names is what the instance boots with.
                for name in self.instance_names()? {
                    if self.pin_path(&name) == *path {
                        self.pin(&name, self.record_digests(&name)?)?;
                    }
                }
            }
            _ => {
                if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
                    self.put_away(path)?;
                }
                self.export()?;
            }
        }
        Ok(true)
    }

    /// Looks at a blob again. If its content is right and only its file is not, it is copied; if
    /// its content is not, it is moved out.
    ///
    /// Call only under [`Store::lock_repairs`]: then nobody else touches what is in its place and
    /// leased.
    pub fn mend_file(&self, lease: &Lease, digest: Digest) -> Result<Place, StoreError> {
        lease.check(digest);
        let expected = Expected {
            size_bytes: None,
            is_needed: true,
        };
        match self.look_at(digest, expected, self.owner()?.uid(), &|_| ()) {
            None => Ok(Place::Right),
            Some(problem) if problem.is_of_the_file() => {
                self.renew(digest)?;
                Ok(Place::Right)
            }
            Some(_) => {
                let kept = self.put_away(&self.blob_path(&digest))?;
                Ok(Place::Empty(kept.map(|path| MovedOut { path })))
            }
        }
    }

    /// Ends the mending of a blob that is in its place again, or that nobody needs: what was moved
    /// out is deleted.
    pub fn settle(&self, digest: Digest, moved: Option<MovedOut>) -> Result<(), StoreError> {
        let path = self.blob_path(&digest);
        match files::open_plain(&path) {
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
            file => self.give_to_owner(&file?, &path)?,
        }
        if let Some(MovedOut { path }) = moved {
            if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                files::remove_tree(&path)?;
            } else {
                files::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Replaces the file of a blob, whose content is right, by a copy of our own, which is hashed
    /// on its way. The blob has its name all the while, and whoever has the old file open keeps it.
    ///
    /// Errors if the content is not right; then the file stays as it is.
    fn renew(&self, digest: Digest) -> Result<(), StoreError> {
        let path = self.blob_path(&digest);
        let old = files::open_plain(&path)?;
        let scratch = self.path("tmp");
        let new = tempfile::Builder::new()
            .tempfile_in(&scratch)
            .map_err(FileError::of("create a file in", &scratch))?;
        // So that nobody takes it for what was left by a kill. Whoever did so before it was locked
        // makes the renaming fail, which harms nothing.
        retry_on_intr(|| flock(&new, FlockOperation::LockExclusive))
            .map_err(|error| FileError::of("lock", new.path())(error.into()))?;
        let actual = copy((old, &path), (new.as_file(), new.path()), digest.hasher())?;
        if actual != digest {
            return Err(StoreError::Content {
                expected: digest,
                actual,
            });
        }
        self.give_to_owner(new.as_file(), new.path())?;
        new.as_file()
            .set_permissions(fs::Permissions::from_mode(0o444))
            .and_then(|()| new.as_file().sync_all())
            .map_err(FileError::of("write", new.path()))?;
        new.persist(&path)
            .map_err(|error| FileError::of("replace", &path)(error.error))?;
        Ok(path.parent().map_or(Ok(()), files::sync_dir)?)
    }

    /// Moves something to `damaged/`, under a name that nothing there has. Returns its new path;
    /// nothing if it is gone.
    fn put_away(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let directory = self.path("damaged");
        files::create_dir(&directory, 0o700)?;
        let opened = File::open(&directory).map_err(FileError::of("open", &directory))?;
        self.give_to_owner(&opened, &directory)?;
        let name = path.file_name().unwrap_or_default().to_os_string();
        let mut target = directory.join(&name);
        let mut number = 1;
        loop {
            match renameat_with(CWD, path, CWD, &target, RenameFlags::NOREPLACE) {
                Ok(()) => return Ok(Some(target)),
                Err(Errno::EXIST) => {
                    let mut name = name.clone();
                    name.push(format!(".{number}"));
                    target = directory.join(name);
                    number += 1;
                }
                Err(Errno::NOENT) if super::is_gone(path)? => return Ok(None),
                Err(error) => return Err(FileError::of("move", path)(error.into()).into()),
            }
        }
    }

    /// Gives a file to whom the store belongs, if it is another's: root may mend anybody's store.
    pub(super) fn give_to_owner(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        let owner = self.owner()?;
        let metadata = file.metadata().map_err(FileError::of("look at", path))?;
        if metadata.uid() != owner.uid() {
            fchown(file, Some(owner.uid()), Some(owner.gid()))
                .map_err(FileError::of("give to the store's owner", path))?;
        }
        Ok(())
    }

    fn owner(&self) -> Result<fs::Metadata, StoreError> {
        Ok(fs::metadata(&self.root).map_err(FileError::of("look at", &self.root))?)
    }
}

/// Copies a file into an empty one, with holes for its zeros. Returns the digest of what was read.
fn copy(
    (mut old, old_path): (File, &Path),
    (new, new_path): (&File, &Path),
    mut hasher: Hasher,
) -> Result<Digest, FileError> {
    let mut block = vec![0; 1 << 20];
    let mut offset = 0;
    loop {
        let count = match old.read(&mut block) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FileError::of("read", old_path)(error)),
        };
        hasher.update(&block[..count]);
        for piece in block[..count].chunks(HOLE_BYTES) {
            if piece.iter().any(|byte| *byte != 0) {
                new.write_all_at(piece, offset)
                    .map_err(FileError::of("write", new_path))?;
            }
            offset += piece.len() as u64;
        }
    }
    new.set_len(offset)
        .map_err(FileError::of("write", new_path))?;
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests;
