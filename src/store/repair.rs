//! Mending what [`super::verify`] has found, as far as it takes nothing from outside.
//!
//! ```text
//! <store>/damaged/     what can not be mended, out of the way; nothing here reads it
//! ```

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::files::{self, FileError};
use crate::oci::{Descriptor, Digest};
use crate::store::{Claim, Finding, Lease, Problem, Store, StoreError};

/// A blob that was moved out of its place.
#[derive(Debug)]
pub struct MovedOut {
    digest: Digest,
    directory: PathBuf,
}

impl MovedOut {
    fn path(&self) -> PathBuf {
        self.directory.join("blob")
    }
}

impl Store {
    /// Mends a record, or moves it away if nothing else tells what it should be. Tells whether it
    /// could.
    pub fn mend_record(&self, finding: &Finding) -> Result<bool, StoreError> {
        let path = &finding.path;
        match &finding.problem {
            Problem::Directory => return Ok(false),
            Problem::Stranger => self.put_away(path)?,
            _ if path.starts_with(self.path("refs")) => {
                let _lock = self.lock_references()?;
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
                let _lock = self.lock_references()?;
                if fs::symlink_metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
                    self.put_away(path)?;
                }
                self.export()?;
            }
        }
        Ok(true)
    }

    /// Moves the file of a blob out of its place; nothing if there is none.
    pub fn move_out(&self, digest: Digest) -> Result<Option<MovedOut>, StoreError> {
        self.create()?;
        let scratch = self.path("tmp");
        let directory = tempfile::Builder::new()
            .prefix("removed-")
            .tempdir_in(&scratch)
            .map_err(FileError::of("create a directory in", &scratch))?;
        let path = self.blob_path(&digest);
        match fs::rename(&path, directory.path().join("blob")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(FileError::of("move", &path))?,
        }
        let directory = directory.keep();
        Ok(Some(MovedOut { digest, directory }))
    }

    /// Deletes what was moved out.
    pub fn delete(&self, moved: &MovedOut) -> Result<(), StoreError> {
        Ok(files::remove_tree(&moved.directory)?)
    }

    /// Keeps what was moved out, away from all that is used: nobody has anything better.
    pub fn keep_damaged(&self, moved: &MovedOut) -> Result<(), StoreError> {
        let named = moved.directory.join(moved.digest.hex());
        fs::rename(moved.path(), &named).map_err(FileError::of("move", &named))?;
        self.put_away(&named)?;
        self.delete(moved)
    }

    /// Replaces the file of a blob, whose content is right, by a copy of our own, which is hashed
    /// on its way. Whoever has the old one open keeps it.
    ///
    /// Errors if the content is not right; then the file stays where it was moved to, and is
    /// returned to its place.
    pub fn renew(&self, lease: &Lease, digest: Digest) -> Result<(), StoreError> {
        let path = self.blob_path(&digest);
        let file = files::open_plain(&path)?;
        let metadata = file.metadata().map_err(FileError::of("look at", &path))?;
        let blob = Descriptor {
            digest,
            size: metadata.len(),
            ..Descriptor::of("", b"")
        };
        let Some(moved) = self.move_out(digest)? else {
            return Ok(());
        };
        let copied = lease
            .claim(&blob)
            .and_then(|claim| copy(&path, file, claim));
        if let Err(error) = copied {
            let back = moved.path();
            fs::rename(&back, &path).map_err(FileError::of("move back", &back))?;
            return Err(error);
        }
        self.delete(&moved)
    }

    /// Moves something to `damaged/`, under a name that nothing there has.
    fn put_away(&self, path: &Path) -> Result<(), StoreError> {
        let directory = self.path("damaged");
        files::create_dir(&directory, 0o700)?;
        let name = path.file_name().unwrap_or_default().to_os_string();
        let mut target = directory.join(&name);
        let mut number = 1;
        while fs::symlink_metadata(&target).is_ok() {
            let mut name = name.clone();
            name.push(format!(".{number}"));
            target = directory.join(name);
            number += 1;
        }
        match fs::rename(path, &target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => Ok(result.map_err(FileError::of("move", path))?),
        }
    }
}

fn copy(path: &Path, mut file: fs::File, claim: Claim) -> Result<(), StoreError> {
    let mut ingest = match claim {
        // Somebody has fetched it meanwhile.
        Claim::Present(_) => return Ok(()),
        Claim::Missing(ingest) => ingest,
    };
    ingest.restart()?;
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(FileError::of("read", path)) {
            Ok(0) => break,
            Ok(count) => ingest.write(&block[..count])?,
            Err(error) => {
                ingest.discard()?;
                return Err(error.into());
            }
        }
    }
    ingest.commit()?;
    Ok(())
}
