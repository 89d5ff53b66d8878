//! Leases: a process's word that it needs blobs, good for as long as the process holds it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::retry_on_intr;

use crate::files::{FileError, Lock, Wait};
use crate::oci::{Descriptor, Digest};
use crate::store::{Blob, Claim, Ingest, Store, StoreError};

/// A process's word that it needs some blobs. Nothing that it names is deleted while it lives; it
/// dies with its process. Blobs are reached only through it.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    digests: BTreeSet<Digest>,
    path: PathBuf,
    /// Held, and locked, until the end.
    _file: File,
}

impl Store {
    /// Takes a lease of `digests`, creating the store where it is missing.
    pub fn lease(&self, digests: impl IntoIterator<Item = Digest>) -> Result<Lease, StoreError> {
        self.create()?;
        // Nobody claims a blob that is there, so nobody else would come upon them.
        self.remove_finished_ingests()?;
        let digests: BTreeSet<Digest> = digests.into_iter().collect();
        let directory = self.path("leases");
        let _collecting = Lock::shared(&self.path("gc.lock"), Wait::ForEver)?;
        let (mut file, path) = tempfile::Builder::new()
            .prefix("lease-")
            .tempfile_in(&directory)
            .and_then(|file| file.keep().map_err(|error| error.error))
            .map_err(FileError::of("create a file in", &directory))?;
        let text: String = digests.iter().map(|digest| format!("{digest}\n")).collect();
        // Nobody else locks it, but may just try whether it is locked.
        retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))
            .map_err(io::Error::from)
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(FileError::of("write", &path))?;
        Ok(Lease {
            store: self.clone(),
            digests,
            path,
            _file: file,
        })
    }

    /// What the live leases name, as far as they are written.
    pub(super) fn live_leases(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let directory = self.path("leases");
        let mut leased = BTreeSet::new();
        for name in crate::files::names(&directory)? {
            let path = directory.join(name);
            if crate::files::is_held(&path)? {
                leased.extend(named_in(&path)?);
            }
        }
        Ok(leased)
    }

    /// What the live leases name. Files that nobody holds any more are removed.
    ///
    /// Call only with `gc.lock` held exclusively, when no lease is half written.
    pub(super) fn leased(&self) -> Result<BTreeSet<Digest>, StoreError> {
        let directory = self.path("leases");
        let mut leased = BTreeSet::new();
        for name in crate::files::names(&directory)? {
            let path = directory.join(name);
            if Lock::shared(&path, Wait::No)?.is_some() {
                crate::files::remove(&path)?;
                continue;
            }
            leased.extend(named_in(&path)?);
        }
        Ok(leased)
    }
}

/// The digests that a lease names; none if it has just ended.
fn named_in(path: &Path) -> Result<Vec<Digest>, FileError> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(FileError::of("read", path))?,
    };
    let lines = text.lines();
    Ok(lines.filter_map(|line| line.parse().ok()).collect())
}

impl Lease {
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Looks for a blob; none if the store has it not.
    pub fn blob(&self, blob: &Descriptor) -> Result<Option<Blob>, StoreError> {
        self.check(blob.digest);
        Blob::look(&self.store, blob)
    }

    /// Tells whether `blob` has to be fetched; waits while another process fetches it.
    pub fn claim(&self, blob: &Descriptor) -> Result<Claim, StoreError> {
        self.check(blob.digest);
        Ingest::claim(&self.store, blob)
    }

    /// Puts a small blob, such as a manifest, into the store.
    pub fn put(&self, blob: &Descriptor, content: &[u8]) -> Result<Blob, StoreError> {
        match self.claim(blob)? {
            Claim::Present(blob) => Ok(blob),
            Claim::Missing(mut ingest) => {
                if let Err(error) = ingest.restart().and_then(|()| ingest.write(content)) {
                    ingest.discard()?;
                    return Err(error);
                }
                ingest.commit()
            }
        }
    }

    /// A blob that the lease does not name could be deleted under its user.
    pub(super) fn check(&self, blob: Digest) {
        assert!(
            self.digests.contains(&blob),
            "blob {blob} is used without a lease"
        );
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // A file that stays is no harm: the next collection finds it unlocked and removes it.
        drop(fs::remove_file(&self.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_that_can_not_be_read_is_not_one_of_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        let blob = Descriptor::of("x", b"x");
        let lease = store.lease([blob.digest]).unwrap();
        lease.put(&blob, b"x").unwrap();
        // No text, so that reading it fails as on a bad disk.
        fs::write(&lease.path, [0xff]).unwrap();
        assert!(store.remove_unneeded([blob.digest], &[]).is_err());
        assert!(store.unneeded([blob.digest]).is_err());
        assert!(lease.blob(&blob).unwrap().is_some());
    }

    #[test]
    fn a_small_blob_that_is_too_long_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        let blob = Descriptor::of("x", b"x");
        let lease = store.lease([blob.digest]).unwrap();
        assert!(lease.put(&blob, b"xx").is_err());
        let left = crate::files::names(&store.path("ingest")).unwrap();
        assert_eq!(left, Vec::<String>::new());
    }
}
