//! Taking blobs out that nobody needs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::files::{self, FileError, Lock, Wait};
use crate::oci::Digest;
use crate::store::prune::allocated;
use crate::store::{Store, StoreError, Use, is_gone};

/// A blob that was taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removed {
    /// The blob.
    pub digest: Digest,
    /// Its size in bytes, and what else was made of it took.
    pub size_bytes: u64,
    /// What it took of the disk, in bytes: holes take nothing.
    pub freed_bytes: u64,
}

/// What the names in `tmp/` begin with of what is on its way out: it gets there whole, by one
/// rename, and anybody may delete it.
pub(super) const ON_ITS_WAY_OUT: &str = "removed-";

impl Store {
    /// Those of `digests` that are here and that no reference, pin, instance or live lease names
    /// now: an estimate, which costs nobody anything.
    pub fn unneeded(
        &self,
        digests: impl IntoIterator<Item = Digest>,
    ) -> Result<BTreeSet<Digest>, StoreError> {
        let mut unneeded = self.present(digests);
        if !unneeded.is_empty() {
            let needed = self.needed(&self.live_leases()?, &[])?;
            unneeded.retain(|digest| !needed.contains(digest));
        }
        Ok(unneeded)
    }

    /// Removes those of `digests` that no reference, pin, instance or live lease names, and none of
    /// `others` needs.
    ///
    /// Others are held up only while the roots are read and the victims renamed; the files
    /// themselves, which may take long to free, are deleted after that.
    pub fn remove_unneeded(
        &self,
        digests: impl IntoIterator<Item = Digest>,
        others: &[Use],
    ) -> Result<Vec<Removed>, StoreError> {
        // Mostly there is nothing, and then nobody is held up and no record is read. What comes
        // meanwhile is somebody's who wants it.
        let digests = self.present(digests);
        if digests.is_empty() {
            return Ok(Vec::new());
        }
        self.create()?;
        let mut removed = Vec::new();
        let mut trash: Vec<PathBuf> = Vec::new();
        {
            let _collecting = Lock::exclusive(&self.path("gc.lock"), Wait::ForEver)?;
            let needed = self.needed(&self.leased()?, others)?;
            // What one that was killed here had already taken out.
            for name in files::names(&self.path("tmp"))? {
                if name.starts_with(ON_ITS_WAY_OUT) {
                    trash.push(self.path("tmp").join(name));
                }
            }
            for digest in digests {
                if needed.contains(&digest) {
                    continue;
                }
                let mut gone = Removed {
                    digest,
                    size_bytes: 0,
                    freed_bytes: 0,
                };
                // What was made of it goes first: without its source it could not be made again.
                for (path, is_blob) in [
                    (self.derived_path(&digest), false),
                    (self.blob_path(&digest), true),
                ] {
                    let metadata = match fs::symlink_metadata(&path) {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                        result => result.map_err(FileError::of("look at", &path))?,
                    };
                    let bytes = allocated(&path)?;
                    gone.freed_bytes += bytes;
                    gone.size_bytes += if is_blob { metadata.len() } else { bytes };
                    trash.extend(self.take_out(&path)?);
                }
                removed.push(gone);
            }
        }
        for victim in trash {
            if victim.is_dir() {
                files::remove_tree(&victim)?;
            } else {
                files::remove(&victim)?;
            }
        }
        Ok(removed)
    }

    /// Moves something to `tmp/`, from where anybody may delete it, under a name that nothing there
    /// has: what another left who was killed may be there yet. Returns its new path; nothing if it
    /// is gone.
    pub(super) fn take_out(&self, path: &Path) -> Result<Option<PathBuf>, StoreError> {
        let taken = tempfile::Builder::new()
            .prefix(ON_ITS_WAY_OUT)
            .make_in(self.path("tmp"), |gone| {
                Ok(renameat_with(CWD, path, CWD, gone, RenameFlags::NOREPLACE)?)
            })
            .and_then(|taken| Ok(taken.into_temp_path().keep()?));
        match taken {
            Ok(gone) => Ok(Some(gone)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_gone(path)? => Ok(None),
            Err(error) => Err(FileError::of("remove", path)(error).into()),
        }
    }

    fn present(&self, digests: impl IntoIterator<Item = Digest>) -> BTreeSet<Digest> {
        let is_here = |digest: &Digest| {
            [self.blob_path(digest), self.derived_path(digest)]
                .iter()
                .any(|path| fs::symlink_metadata(path).is_ok())
        };
        digests.into_iter().filter(is_here).collect()
    }

    /// Everything that a reference, a pin, an instance's record, one of `others` or a lease names.
    ///
    /// `leased` is read before the rest: who ends a lease meanwhile has by then written down what
    /// of it is needed for longer.
    pub(super) fn needed(
        &self,
        leased: &BTreeSet<Digest>,
        others: &[Use],
    ) -> Result<BTreeSet<Digest>, StoreError> {
        let mut needed = leased.clone();
        for reference in self.references()? {
            needed.extend(reference.digests());
        }
        let instances = self.instance_uses()?;
        needed.extend(instances.iter().chain(others).flat_map(Use::digests));
        Ok(needed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Descriptor;

    #[test]
    fn only_what_nobody_needs_is_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        let blobs: Vec<Descriptor> = (0..3_u8).map(|i| Descriptor::of("x", &[i])).collect();
        let all = || blobs.iter().map(|blob| blob.digest);
        let lease = store.lease(all()).unwrap();
        for (i, blob) in (0..3_u8).zip(&blobs) {
            lease.put(blob, &[i]).unwrap();
        }
        assert_eq!(store.remove_unneeded(all(), &[]).unwrap(), []);
        drop(lease);
        let lease = store.lease([blobs[0].digest]).unwrap();
        store.pin("vm", BTreeSet::from([blobs[1].digest])).unwrap();
        let removed = store.remove_unneeded(all(), &[]).unwrap();
        assert_eq!(removed.len(), 1);
        assert_eq!(removed[0].digest, blobs[2].digest);
        assert!(lease.blob(&blobs[0]).unwrap().is_some());
        assert_eq!(
            files::names(&store.path("tmp")).unwrap(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_another_left_on_its_way_out_is_in_nobodys_way() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        let digest = Digest::of(b"x");
        store.create().unwrap();
        let derived = store.derived_path(&digest);
        let make = || {
            fs::create_dir(&derived).unwrap();
            fs::write(derived.join("raw"), "x").unwrap();
        };
        // As two leave it that are killed before they delete what they took out.
        for _ in 0..2 {
            make();
            store.take_out(&derived).unwrap().unwrap();
        }
        make();
        let old_name = format!("{ON_ITS_WAY_OUT}{}.derived", digest.hex());
        fs::create_dir_all(store.path("tmp").join(old_name).join("raw")).unwrap();
        assert_eq!(store.remove_unneeded([digest], &[]).unwrap().len(), 1);
        assert!(!derived.exists());
        let left = files::names(&store.path("tmp")).unwrap();
        assert_eq!(left, Vec::<String>::new());
    }

    #[test]
    fn a_lease_ends_with_its_holder() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        let blob = Descriptor::of("x", b"x");
        let lease = store.lease([blob.digest]).unwrap();
        lease.put(&blob, b"x").unwrap();
        // As after a kill: the file stays, its lock does not.
        let file = files::names(&store.path("leases")).unwrap();
        let left = store.path("leases").join(&file[0]);
        let text = fs::read(&left).unwrap();
        drop(lease);
        fs::write(&left, text).unwrap();
        assert_eq!(store.remove_unneeded([blob.digest], &[]).unwrap().len(), 1);
        assert!(!left.exists());
    }
}
