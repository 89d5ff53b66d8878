//! The content-addressed directory: what is in it under a digest is whole and is that digest.
//!
//! ```text
//! <store>/oci-layout, index.json     an export of refs/, so that other tools read the store
//!         blobs/sha256/<hex>   0444  only complete, verified, synced files ever appear here
//!         ingest/sha256-<hex>/       lock, data: one unfinished blob, resumed by whoever comes next
//!         derived/sha256-<hex>/      raw, record.json: what was made of that blob here, and goes
//!                                    with it
//!         refs/<reference>.json      reference → documents, blobs, and the signatures that counted;
//!                                    replaced atomically; the file's time is when the reference
//!                                    was used last
//!         pins/<name>.json           blobs that an instance needs
//!         leases/<id>                blobs that a process needs while it holds the file's lock
//!         damaged/             0700  what a repair has taken out of its place, until it is mended;
//!                                    what could not be, or was left by a kill, stays
//!         tmp/                       unfinished files, and blobs on their way out
//!         instances/<name>/          one VM (room `instance`)
//!         ssh/                 0700  the key for `ironboot ssh` (`ops::ssh`)
//!         accelerator.json           how KVM did on this host (`ops::accelerator`)
//!         gc.lock                    exclusive while blobs are taken out; shared while a lease
//!                                    is written
//!         refs.lock                  exclusive while references and their export are written;
//!                                    shared while one is found to be as it was
//!         repair.lock                exclusive while somebody mends the store
//! ```
//!
//! A kill at any instant leaves a valid store: data is synced before it is renamed into place, a
//! directory after, children before parents and the reference last. Locks are file locks, so the
//! kernel drops them with their process. Nothing is deleted that a reference, a pin, an instance's
//! record, a domain of libvirt's or a live lease names; a lease is written before the existence of
//! a blob is looked at.
//!
//! Locks are waited for in this order: `repair.lock`, an ingest's lock, `gc.lock` (shared while a
//! lease's file is written and locked, which nobody else waits for: others only try it). `refs.lock`
//! and `gc.lock` are never held together.

mod derived;
mod gc;
mod ingest;
mod lease;
mod names;
mod prune;
mod refs;
mod repair;
mod signatures;
mod uses;
mod verify;

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::files::{self, FileError, Way};
use crate::oci::{Descriptor, Digest, Reference};

pub use derived::{MakeRaw, RawClaim, RawDraft, RawRecord};
pub use gc::Removed;
pub use ingest::{Claim, Ingest};
pub use lease::Lease;
pub use prune::{Act, Item, ItemKind, Policy, Pruned};
pub use refs::{StoredImage, StoredReference};
pub use repair::{MovedOut, Place};
pub use uses::{Use, User};
pub use verify::{Expected, Finding, Look, Problem};

/// The content-addressed directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A blob that is in the store, whole; made only by looking through a [`Lease`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    digest: Digest,
    path: PathBuf,
    size_bytes: u64,
}

/// What went wrong in the store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// More bytes than the descriptor says.
    #[error("blob {blob} has more than the {size_bytes} bytes that its descriptor says")]
    TooLong {
        /// The blob.
        blob: Digest,
        /// The descriptor's size.
        size_bytes: u64,
    },
    /// Another number of bytes than the descriptor says.
    #[error("blob {blob} has {actual_bytes} bytes, its descriptor says {expected_bytes}")]
    TooShort {
        /// The blob.
        blob: Digest,
        /// The descriptor's size.
        expected_bytes: u64,
        /// Bytes that came.
        actual_bytes: u64,
    },
    /// Other bytes than the digest says.
    #[error("blob {expected} has other content: {actual}")]
    Content {
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of what came.
        actual: Digest,
    },
    /// A blob in the store that is not what it should be.
    #[error("blob {blob} in the store is {what}: {path}")]
    Damaged {
        /// The blob.
        blob: Digest,
        /// What it is instead.
        what: &'static str,
        /// Where it is.
        path: PathBuf,
    },
    /// A directory of the store's that is none of ours alone.
    #[error("the store's directory {directory} is {what}")]
    Foreign {
        /// The directory.
        directory: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// A directory on the way to the store in which everybody may rename and replace.
    #[error("the store can be replaced by everybody who may write to {directory}")]
    Exposed {
        /// The directory.
        directory: PathBuf,
    },
    /// A record of our own that can not be read.
    #[error("record is damaged: {path}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        #[source]
        source: serde_json::Error,
    },
    /// A directory that is not there, or is not a store.
    #[error("there is no store at {root}")]
    None {
        /// The directory.
        root: PathBuf,
    },
    /// A reference that is not in the store.
    #[error("image is not in the store: {reference}")]
    NoReference {
        /// The reference.
        reference: Reference,
    },
    /// A reference that something still needs.
    #[error("image {reference} is used by {}", list(users))]
    InUse {
        /// The reference.
        reference: Reference,
        /// Who needs it.
        users: Vec<User>,
    },
}

fn list(users: &[User]) -> String {
    let words: Vec<String> = users.iter().map(ToString::to_string).collect();
    words.join(", ")
}

/// Largest record of our own that is read, in bytes.
const MAX_RECORD_BYTES: u64 = 4 << 20;

/// What is in the store's directory, each before what is in it.
const DIRECTORIES: [&str; 10] = [
    "blobs",
    "blobs/sha256",
    "blobs/sha512",
    "derived",
    "ingest",
    "refs",
    "pins",
    "leases",
    "tmp",
    "instances",
];

impl Store {
    /// Names the store at `root`, an absolute path; touches nothing.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Tells whether there is a store: its directory alone does not make one.
    pub fn is_there(&self) -> Result<bool, StoreError> {
        for directory in ["refs", "blobs"] {
            let path = self.root.join(directory);
            if path
                .try_exists()
                .map_err(FileError::of("look for", &path))?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The directory of the instances.
    #[must_use]
    pub fn instances(&self) -> PathBuf {
        self.root.join("instances")
    }

    /// The directory of what is half made: see [`files::scratch_dir`].
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.path("tmp")
    }

    /// Creates what is missing of the directory tree. Directories are 0711: a hypervisor that
    /// runs as another user may reach what it is told of, and list nothing.
    pub fn create(&self) -> Result<(), StoreError> {
        files::create_dir(&self.root, 0o711)?;
        self.refuse_exposed()?;
        for directory in DIRECTORIES {
            let directory = self.root.join(directory);
            files::create_dir(&directory, 0o711)?;
            self.refuse_others(&directory)?;
        }
        Ok(())
    }

    /// Tells whether the store has a file of `blob`'s digest and size. For estimates only: without
    /// a [`Lease`] the answer may be old by the time it is read.
    #[must_use]
    pub fn seems_to_have(&self, blob: &Descriptor) -> bool {
        fs::symlink_metadata(self.blob_path(&blob.digest))
            .is_ok_and(|metadata| metadata.is_file() && metadata.len() == blob.size)
    }

    /// Looks at a blob without a [`Lease`]: for a description of what would be. It may be gone by
    /// the time it is opened.
    pub fn peek(&self, blob: &Descriptor) -> Result<Option<Blob>, StoreError> {
        Blob::look(self, blob)
    }

    /// Bytes that are free on the store's disk for whoever we are.
    pub fn free_bytes(&self) -> Result<u64, StoreError> {
        let status = rustix::fs::statvfs(&self.root)
            .map_err(|error| FileError::of("look at", &self.root)(error.into()))?;
        Ok(status.f_bavail.saturating_mul(status.f_frsize))
    }

    /// Path of a blob's file, whether or not it is there.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.algorithm())
            .join(digest.hex())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Tells whether a file of the store's belongs to somebody who is neither us nor the store's
    /// owner: libvirt gives a disk to QEMU's user where a domain's XML does not forbid it.
    fn is_strangers(&self, metadata: &Metadata) -> Result<bool, FileError> {
        if metadata.uid() == rustix::process::geteuid().as_raw() {
            return Ok(false);
        }
        let store = fs::metadata(&self.root).map_err(FileError::of("look at", &self.root))?;
        Ok(metadata.uid() != store.uid())
    }

    /// Errors if a directory of the store's is another by now, or if others could put other files in
    /// the place of those in it.
    fn refuse_others(&self, directory: &Path) -> Result<(), StoreError> {
        let of_directory = FileError::of("look at", directory);
        let metadata = fs::symlink_metadata(directory).map_err(of_directory)?;
        let what = match &metadata {
            _ if !metadata.is_dir() => "not a directory",
            _ if metadata.mode() & 0o022 != 0 => "one that others may write to",
            _ if self.is_strangers(&metadata)? => "somebody else's",
            _ => return Ok(()),
        };
        let directory = directory.to_owned();
        Err(StoreError::Foreign { directory, what })
    }

    /// Errors if everybody could put other files in the place of the store's: some directory on the
    /// way to it, or its own, may be written to by all.
    fn refuse_exposed(&self) -> Result<(), StoreError> {
        match files::way_to(&self.root).map_err(FileError::of("look at", &self.root))? {
            Way::Exposed(directory) => Err(StoreError::Exposed { directory }),
            Way::Clear | Way::Nowhere => Ok(()),
        }
    }

    /// Writes a record of our own into the store, or into one of its directories.
    pub(crate) fn write_record<T: serde::Serialize>(
        &self,
        path: &Path,
        record: &T,
    ) -> Result<(), StoreError> {
        let json = serde_json::to_vec_pretty(record).map_err(|source| StoreError::Record {
            path: path.to_owned(),
            source,
        })?;
        Ok(files::replace(path, &json, &self.path("tmp"))?)
    }

    /// Reads a record of our own; none if there is none.
    pub(crate) fn read_record<T: serde::de::DeserializeOwned>(
        path: &Path,
    ) -> Result<Option<T>, StoreError> {
        files::read_plain(path, MAX_RECORD_BYTES)?
            .map(|bytes| {
                serde_json::from_slice(&bytes).map_err(|source| StoreError::Record {
                    path: path.to_owned(),
                    source,
                })
            })
            .transpose()
    }
}

/// Tells whether nothing is at `path`: a rename that finds something missing may miss its target.
fn is_gone(path: &Path) -> Result<bool, FileError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(FileError::of("look at", path)(error)),
    }
}

impl Blob {
    /// Its digest.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its file, for a hypervisor to open.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Opens it for reading.
    pub fn open(&self) -> Result<File, StoreError> {
        Ok(files::open_plain(&self.path)?)
    }

    /// Reads at most its first `limit` bytes.
    pub fn head(&self, limit: u64) -> Result<Vec<u8>, StoreError> {
        let mut content = Vec::new();
        self.open()?
            .take(limit)
            .read_to_end(&mut content)
            .map_err(FileError::of("read", &self.path))?;
        Ok(content)
    }

    /// Looks at the file of `digest`: none if there is none.
    ///
    /// Errors if what is there is no plain file or has another size. If it has its digest all the
    /// same, it is the descriptor that is wrong, and otherwise the store is damaged.
    fn look(store: &Store, expected: &Descriptor) -> Result<Option<Self>, StoreError> {
        let digest = expected.digest;
        let path = store.blob_path(&digest);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            result => result.map_err(FileError::of("look at", &path))?,
        };
        let what = match metadata {
            _ if !metadata.is_file() => "not a plain file",
            // Whoever can change it may have done so.
            _ if metadata.mode() & 0o222 != 0 => "writable",
            _ if store.is_strangers(&metadata)? => "somebody else's",
            _ if metadata.len() != expected.size => {
                if Self::has_digest(&path, digest)? {
                    return Err(StoreError::TooShort {
                        blob: digest,
                        expected_bytes: expected.size,
                        actual_bytes: metadata.len(),
                    });
                }
                "not of its size"
            }
            _ => {
                let size_bytes = metadata.len();
                return Ok(Some(Self {
                    digest,
                    path,
                    size_bytes,
                }));
            }
        };
        Err(StoreError::Damaged {
            blob: digest,
            what,
            path,
        })
    }

    /// Hashes the file `path`.
    fn has_digest(path: &Path, digest: Digest) -> Result<bool, StoreError> {
        let hashed = verify::hash(files::open_plain(path)?, digest.hasher(), &|_| ());
        let (actual, _) = hashed.map_err(FileError::of("read", path))?;
        Ok(actual == digest)
    }
}
