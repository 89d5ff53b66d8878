//! Looking whether everything in the store is what it should be. Nothing is changed, followed or
//! waited for.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::thread;

use serde::de::DeserializeOwned;

use crate::files::{self, FileError};
use crate::oci::{Digest, Hasher, Reference};
use crate::store::refs::{Pin, file_name};
use crate::store::{Store, StoreError, StoredReference};

/// Largest `index.json` that is read, in bytes; that of a thousand references has a quarter of a MiB.
const MAX_INDEX_BYTES: u64 = 64 << 20;
/// Bytes that are hashed at a time.
const BLOCK_BYTES: usize = 1 << 20;

/// Something in the store that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The blob, if it is one.
    pub digest: Option<Digest>,
    /// Where it is, or should be.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Something needs it, and it is not there.
    Missing,
    /// It is this, and no file.
    NotAFile(&'static str),
    /// Other bytes than its digest says.
    Content,
    /// Other bytes, and another number of them.
    Size {
        /// As many should be there.
        expected_bytes: u64,
        /// As many are.
        actual_bytes: u64,
    },
    /// It can not be read.
    Unreadable(String),
    /// It belongs to somebody else.
    Owner(u32),
    /// It may be written to, or may not be read.
    Mode(u32),
    /// It has other names, by which others may write to it.
    Links(u64),
    /// Its name is no digest.
    Stranger,
    /// No directory is where one should be.
    Directory,
    /// A record that can not be understood.
    Record(String),
    /// An instance that has no pin.
    Unpinned,
    /// An export that does not say what the references say.
    Export,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("is missing"),
            Self::NotAFile(kind) => write!(f, "is {kind}"),
            Self::Content => f.write_str("has other content"),
            Self::Size {
                expected_bytes,
                actual_bytes,
            } => write!(
                f,
                "has {actual_bytes} bytes, and should have {expected_bytes}"
            ),
            Self::Unreadable(reason) => write!(f, "can not be read: {reason}"),
            Self::Owner(uid) => write!(f, "belongs to user {uid}"),
            Self::Mode(mode) => write!(f, "has mode {mode:04o}, and should have 0444"),
            Self::Links(links) => write!(f, "has {links} names"),
            Self::Stranger => f.write_str("has a name that is no digest"),
            Self::Directory => f.write_str("is no directory"),
            Self::Record(reason) => write!(f, "is damaged: {reason}"),
            Self::Unpinned => f.write_str("is missing, its instance is there"),
            Self::Export => f.write_str("does not say what the references say"),
        }
    }
}

impl Problem {
    /// Whether a blob's content is right, and only its file is not.
    #[must_use]
    pub fn is_of_the_file(&self) -> bool {
        matches!(self, Self::Owner(_) | Self::Mode(_) | Self::Links(_))
    }
}

/// A blob that is to be looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expected {
    /// Its size in bytes, if a descriptor says it.
    pub size_bytes: Option<u64>,
    /// Whether something needs it, so that it must be there.
    pub is_needed: bool,
}

/// What happens while blobs are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// There are so many blobs, of so many bytes in all.
    All(usize, u64),
    /// A blob of so many bytes is being hashed.
    Start(Digest, u64),
    /// So many bytes more of it are.
    Bytes(Digest, u64),
    /// It was looked at.
    Done(Digest),
}

/// The records of a directory that can be read, and what is wrong with the others.
type Records<T> = (Vec<T>, Vec<(PathBuf, Problem)>);

impl Store {
    /// Every blob that is here, and every one that a reference or a pin names; the records of those
    /// that can not be read are left out.
    pub fn expected(&self) -> Result<BTreeMap<Digest, Expected>, StoreError> {
        let mut expected: BTreeMap<Digest, Expected> = BTreeMap::new();
        for digest in self.blobs()?.into_keys() {
            expected.insert(digest, Expected::default());
        }
        for reference in self.readable_references()? {
            expect(&mut expected, &reference);
        }
        for pin in self.readable::<Pin>("pins")?.0 {
            for digest in pin.digests {
                expected.entry(digest).or_default().is_needed = true;
            }
        }
        Ok(expected)
    }

    /// The references whose records can be read.
    pub fn readable_references(&self) -> Result<Vec<StoredReference>, StoreError> {
        Ok(self.readable("refs")?.0)
    }

    /// Looks at blobs, on as many threads as there are CPUs. Returns those that are not what they
    /// should be.
    pub fn look_at_blobs(
        &self,
        expected: &BTreeMap<Digest, Expected>,
        tell: &(dyn Fn(Look) + Sync),
    ) -> Result<Vec<Finding>, StoreError> {
        let owner = fs::metadata(&self.root).map_err(FileError::of("look at", &self.root))?;
        let owner = owner.uid();
        let length = |digest: &Digest| {
            fs::symlink_metadata(self.blob_path(digest)).map_or(0, |metadata| metadata.len())
        };
        let mut queue: Vec<(u64, Digest, Expected)> = expected
            .iter()
            .map(|(digest, expected)| (length(digest), *digest, *expected))
            .collect();
        tell(Look::All(
            queue.len(),
            queue.iter().map(|(length, ..)| length).sum(),
        ));
        // The largest are taken first, from the end.
        queue.sort_by_key(|(length, digest, _)| (*length, *digest));
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let threads = threads.min(queue.len());
        let (queue, found) = (Mutex::new(queue), Mutex::new(Vec::new()));
        let take = || {
            let mut queue = queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.pop()
        };
        thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some((_, digest, expected)) = take() {
                        let problem = self.look_at(digest, expected, owner, tell);
                        let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                        found.extend(problem.map(|problem| Finding {
                            digest: Some(digest),
                            path: self.blob_path(&digest),
                            problem,
                        }));
                    }
                });
            }
        });
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.sort_by_key(|finding| finding.digest);
        Ok(found)
    }

    /// Looks at one blob, which should belong to `owner`.
    pub(super) fn look_at(
        &self,
        digest: Digest,
        expected: Expected,
        owner: u32,
        tell: &(dyn Fn(Look) + Sync),
    ) -> Option<Problem> {
        let path = self.blob_path(&digest);
        let metadata = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // One that nothing needs was removed meanwhile.
                return expected.is_needed.then_some(Problem::Missing);
            }
            Err(error) => return Some(Problem::Unreadable(error.to_string())),
            Ok(metadata) => metadata,
        };
        if let Some(kind) = files::other_kind(metadata.file_type()) {
            return Some(Problem::NotAFile(kind));
        }
        tell(Look::Start(digest, metadata.len()));
        let told = |count| tell(Look::Bytes(digest, count));
        let hashed = files::open_plain(&path)
            .map_err(|error| error.source)
            .and_then(|file| hash(file, digest.hasher(), &told));
        tell(Look::Done(digest));
        match hashed {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                expected.is_needed.then_some(Problem::Missing)
            }
            Err(error) => Some(Problem::Unreadable(error.to_string())),
            Ok((actual, actual_bytes)) if actual != digest => Some(match expected.size_bytes {
                Some(expected_bytes) if expected_bytes != actual_bytes => Problem::Size {
                    expected_bytes,
                    actual_bytes,
                },
                _ => Problem::Content,
            }),
            Ok(_) if metadata.uid() != owner => Some(Problem::Owner(metadata.uid())),
            Ok(_) if metadata.nlink() > 1 => Some(Problem::Links(metadata.nlink())),
            Ok(_) if metadata.mode() & 0o7777 != 0o444 => {
                Some(Problem::Mode(metadata.mode() & 0o7777))
            }
            Ok(_) => None,
        }
    }

    /// Looks at everything else: directories, records, the export.
    pub fn look_at_records(&self) -> Result<Vec<Finding>, StoreError> {
        let mut found = Vec::new();
        let mut add = |path: PathBuf, problem| {
            found.push(Finding {
                digest: None,
                path,
                problem,
            });
        };
        for directory in super::DIRECTORIES {
            let path = self.path(directory);
            if fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.is_dir()) {
                add(path, Problem::Directory);
            }
        }
        for algorithm in ["sha256", "sha512"] {
            let directory = self.path("blobs").join(algorithm);
            for name in files::names(&directory)? {
                if format!("{algorithm}:{name}").parse::<Digest>().is_err() {
                    add(directory.join(name), Problem::Stranger);
                }
            }
        }
        let (references, damaged) = self.readable::<StoredReference>("refs")?;
        for (path, problem) in damaged {
            add(path, problem);
        }
        let (pins, damaged) = self.readable::<Pin>("pins")?;
        for (path, problem) in damaged {
            add(path, problem);
        }
        for user in self.instance_names()? {
            let path = self.pin_path(&user);
            if !pins.iter().any(|pin| pin.name == user) && fs::symlink_metadata(&path).is_err() {
                add(path, Problem::Unpinned);
            }
        }
        found.extend(self.look_at_export(&references)?);
        Ok(found)
    }

    /// The records of a directory that can be read, and what is wrong with the others.
    fn readable<T: DeserializeOwned + Named>(
        &self,
        directory: &str,
    ) -> Result<Records<T>, StoreError> {
        let directory = self.path(directory);
        let (mut good, mut bad) = (Vec::new(), Vec::new());
        for name in files::names(&directory)? {
            let path = directory.join(&name);
            match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(FileError::of("look at", &path)(error).into()),
                Ok(metadata) => {
                    if let Some(kind) = files::other_kind(metadata.file_type()) {
                        bad.push((path, Problem::NotAFile(kind)));
                        continue;
                    }
                }
            }
            match Self::read_record::<T>(&path) {
                Ok(None) => {}
                Ok(Some(record)) if !record.is_called(&name) => {
                    let reason = "its name is another's".to_owned();
                    bad.push((path, Problem::Record(reason)));
                }
                Ok(Some(record)) => good.push(record),
                Err(StoreError::Record { source, .. }) => {
                    bad.push((path, Problem::Record(source.to_string())));
                }
                Err(StoreError::File(error)) => {
                    bad.push((path, Problem::Unreadable(error.source.to_string())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok((good, bad))
    }

    /// Compares `oci-layout` and `index.json` with what [`Store::export`] writes of `references`.
    ///
    /// Whoever is killed before his export leaves one that is older than the references, which is
    /// no damage: the next who comes makes it anew.
    fn look_at_export(&self, references: &[StoredReference]) -> Result<Vec<Finding>, StoreError> {
        if references.is_empty() && !self.path("index.json").exists() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for (name, expected) in Self::exported(references) {
            let path = self.path(name);
            let problem = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Some(Problem::Missing),
                Err(error) => Some(Problem::Unreadable(error.to_string())),
                Ok(metadata) => match files::other_kind(metadata.file_type()) {
                    Some(kind) => Some(Problem::NotAFile(kind)),
                    None => self.compare(&path, &expected)?,
                },
            };
            found.extend(problem.map(|problem| Finding {
                digest: None,
                path,
                problem,
            }));
        }
        Ok(found)
    }

    fn compare(
        &self,
        path: &Path,
        expected: &serde_json::Value,
    ) -> Result<Option<Problem>, StoreError> {
        let content = match files::read_plain(path, MAX_INDEX_BYTES) {
            Ok(content) => content.unwrap_or_default(),
            Err(error) => return Ok(Some(Problem::Unreadable(error.source.to_string()))),
        };
        Ok(
            match serde_json::from_slice::<serde_json::Value>(&content) {
                Err(error) => Some(Problem::Record(error.to_string())),
                Ok(actual) if actual == *expected => None,
                Ok(_) if !self.is_exported()? => None,
                Ok(_) => Some(Problem::Export),
            },
        )
    }
}

/// Adds what `reference` names.
fn expect(expected: &mut BTreeMap<Digest, Expected>, reference: &StoredReference) {
    let blobs = reference.images.iter().flat_map(|image| &image.blobs);
    for blob in reference.documents().chain(blobs) {
        let expected = expected.entry(blob.digest).or_default();
        expected.size_bytes = Some(blob.size);
        expected.is_needed = true;
    }
}

impl StoredReference {
    /// What the reference names, to be looked at.
    #[must_use]
    pub fn expected(&self) -> BTreeMap<Digest, Expected> {
        let mut expected = BTreeMap::new();
        expect(&mut expected, self);
        expected
    }
}

/// A record that says what its file is called.
trait Named {
    fn is_called(&self, name: &str) -> bool;
}

impl Named for StoredReference {
    fn is_called(&self, name: &str) -> bool {
        self.reference.parse::<Reference>().is_ok() && file_name(&self.reference) == name
    }
}

impl Named for Pin {
    fn is_called(&self, name: &str) -> bool {
        file_name(&self.name) == name
    }
}

/// Hashes a file. Returns its digest and its size in bytes.
pub(super) fn hash(
    mut file: fs::File,
    mut hasher: Hasher,
    told: &dyn Fn(u64),
) -> io::Result<(Digest, u64)> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut size_bytes = 0;
    loop {
        match file.read(&mut block) {
            Ok(0) => return Ok((hasher.finish(), size_bytes)),
            Ok(count) => {
                hasher.update(&block[..count]);
                size_bytes += count as u64;
                told(count as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
