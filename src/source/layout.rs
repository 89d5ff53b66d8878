//! An OCI layout directory, read without ever leaving it; `writer` makes one.
//!
//! ```text
//! oci-layout                 says that it is one
//! index.json                 the entries, by annotation org.opencontainers.image.ref.name
//! blobs/<algorithm>/<hex>    the content
//! ```
//!
//! No symbolic link below the directory is followed, and what is not a regular file is not read.
//!
//! Format: OCI image-spec v1.1, image-layout.md.

mod writer;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, stream};
use rustix::fs::{FileType, Mode, OFlags};
use serde::Deserialize;

use crate::oci::manifest::MAX_DOCUMENT_BYTES;
use crate::oci::reference::LayoutEntry;
use crate::oci::{Descriptor, Digest, LayoutReference, Printable};
use crate::source::{BlobStream, RawDocument, Source, SourceError, Wanted};

pub use writer::Writer;

/// The annotation that gives an entry of `index.json` its name.
const NAME: &str = "org.opencontainers.image.ref.name";
/// Bytes read from a blob at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// An OCI layout directory.
#[derive(Debug, Clone)]
pub struct Layout {
    reference: LayoutReference,
}

impl Layout {
    /// Opens a layout; touches nothing yet.
    #[must_use]
    pub fn open(reference: LayoutReference) -> Self {
        Self { reference }
    }

    fn named_document(&self) -> Result<RawDocument, SourceError> {
        let directory = Directory::open(&self.reference.directory)?;
        let entries = directory.entries()?;
        let (digest, entry) = match &self.reference.entry {
            // Any document of the layout may be named by digest, those inside an index too.
            LayoutEntry::Digest(digest) => {
                let entry = entries.into_iter().find(|entry| entry.digest == *digest);
                (*digest, entry)
            }
            LayoutEntry::Only => {
                let entry = self.only(entries)?;
                (entry.digest, Some(entry))
            }
            LayoutEntry::Name(name) => {
                let entry = self.named(name, entries)?;
                (entry.digest, Some(entry))
            }
        };
        let image = || SourceError::ImageNotFound {
            image: self.reference.to_string(),
        };
        let file = directory.blob(&digest)?.ok_or_else(image)?;
        self.read_document(&file, &digest, entry.as_ref())
    }

    fn document_of(&self, entry: &Descriptor) -> Result<RawDocument, SourceError> {
        let directory = Directory::open(&self.reference.directory)?;
        let file = directory.blob(&entry.digest)?;
        let file = file.ok_or_else(|| self.blob_not_found(&entry.digest))?;
        self.read_document(&file, &entry.digest, Some(entry))
    }

    fn read_document(
        &self,
        file: &OpenFile,
        digest: &Digest,
        entry: Option<&Descriptor>,
    ) -> Result<RawDocument, SourceError> {
        if let Some(entry) = entry {
            file.check_size(entry)?;
        }
        let bytes = file.read(MAX_DOCUMENT_BYTES)?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        let actual = hasher.finish();
        if actual != *digest {
            return Err(SourceError::DigestMismatch {
                image: self.reference.to_string(),
                expected: Box::new(*digest),
                actual: Box::new(actual),
            });
        }
        Ok(RawDocument {
            bytes,
            digest: *digest,
            media_type: entry.map(|entry| entry.media_type.clone()),
        })
    }

    fn open_blob(&self, blob: &Descriptor) -> Result<OpenFile, SourceError> {
        let directory = Directory::open(&self.reference.directory)?;
        let file = directory.blob(&blob.digest)?;
        let file = file.ok_or_else(|| self.blob_not_found(&blob.digest))?;
        file.check_size(blob)?;
        Ok(file)
    }

    fn only(&self, entries: Vec<Descriptor>) -> Result<Descriptor, SourceError> {
        self.unambiguous(entries)?
            .ok_or_else(|| SourceError::ImageNotFound {
                image: self.reference.to_string(),
            })
    }

    /// Finds the entry of a name; else the one whose name is a reference with that tag, which is
    /// how stores of several repositories name their entries.
    fn named(&self, name: &str, entries: Vec<Descriptor>) -> Result<Descriptor, SourceError> {
        let names = entries.iter().map(shown).collect();
        let (exact, others): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|entry| entry.annotations.get(NAME).is_some_and(|has| has == name));
        let exact = self.unambiguous(exact)?;
        let found = match exact {
            Some(entry) => Some(entry),
            None => {
                let tagged = others.into_iter().filter(|entry| {
                    let tag = entry.annotations.get(NAME).and_then(|name| tag(name));
                    tag == Some(name)
                });
                self.unambiguous(tagged.collect())?
            }
        };
        found.ok_or_else(|| SourceError::LayoutEntryNotFound {
            directory: self.reference.directory.clone(),
            name: Printable(name).to_string(),
            names,
        })
    }

    /// The one entry, if all are of one document; none of none.
    fn unambiguous(&self, entries: Vec<Descriptor>) -> Result<Option<Descriptor>, SourceError> {
        let Some(first) = entries.first() else {
            return Ok(None);
        };
        if entries.iter().any(|entry| entry.digest != first.digest) {
            return Err(SourceError::LayoutAmbiguous {
                directory: self.reference.directory.clone(),
                names: entries.iter().map(shown).collect(),
            });
        }
        Ok(entries.into_iter().next())
    }

    fn blob_not_found(&self, digest: &Digest) -> SourceError {
        SourceError::BlobNotFound {
            image: self.reference.to_string(),
            digest: Box::new(*digest),
        }
    }
}

#[async_trait]
impl Source for Layout {
    async fn document(&self, wanted: Wanted<'_>) -> Result<RawDocument, SourceError> {
        let layout = self.clone();
        match wanted {
            Wanted::Reference => blocking(move || layout.named_document()).await,
            Wanted::Entry(entry) => {
                let entry = entry.clone();
                blocking(move || layout.document_of(&entry)).await
            }
        }
    }

    async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream, SourceError> {
        let layout = self.clone();
        let wanted = blob.clone();
        let file = blocking(move || layout.open_blob(&wanted)).await?;
        Ok(BlobStream {
            offset,
            bytes: Box::pin(pieces(file, blob.size, offset)),
        })
    }
}

/// Does file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await, // The runtime is going down, and we with it.
        },
    }
}

/// The bytes of a file from `offset` to `end`; fewer if it has been cut in the meantime.
fn pieces(
    file: OpenFile,
    end: u64,
    offset: u64,
) -> impl Stream<Item = Result<Bytes, SourceError>> + Send {
    stream::try_unfold((Arc::new(file), offset), move |(file, offset)| async move {
        let reader = Arc::clone(&file);
        let length = end.saturating_sub(offset).min(PIECE_BYTES);
        let piece = blocking(move || reader.read_at(offset, length)).await?;
        if piece.is_empty() {
            return Ok(None);
        }
        let offset = offset + piece.len() as u64;
        Ok(Some((Bytes::from(piece), (file, offset))))
    })
}

/// The tag of a name that is a reference; none of a plain name.
fn tag(name: &str) -> Option<&str> {
    name.rsplit_once(':')
        .map(|(_, tag)| tag)
        .filter(|tag| !tag.contains('/'))
}

/// What an entry is called: its name, or else its digest.
fn shown(entry: &Descriptor) -> String {
    match entry.annotations.get(NAME) {
        Some(name) => Printable(name).to_string(),
        None => entry.digest.to_string(),
    }
}

/// The directory of a layout, held open.
struct Directory {
    path: PathBuf,
    handle: OwnedFd,
}

/// A regular file, and where it is.
struct OpenFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Directory {
    /// Opens a directory that says that it is a layout.
    fn open(path: &Path) -> Result<Self, SourceError> {
        let opened = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let handle = opened.map_err(|error| io_error("open", path, error.into()))?;
        let directory = Self {
            path: path.to_owned(),
            handle,
        };
        let marker = directory.file(&["oci-layout"]);
        let marker = marker.and_then(|file| file.parse::<WireMarker>());
        match marker {
            Ok(_) => Ok(directory),
            Err(source) => Err(SourceError::NotALayout {
                directory: path.to_owned(),
                source: Box::new(source),
            }),
        }
    }

    fn entries(&self) -> Result<Vec<Descriptor>, SourceError> {
        let index: WireIndex = self.file(&["index.json"])?.parse()?;
        let entries = index.manifests.into_iter();
        Ok(entries.map(WireEntry::descriptor).collect())
    }

    /// Opens a blob; none if there is none.
    fn blob(&self, digest: &Digest) -> Result<Option<OpenFile>, SourceError> {
        match self.file(&["blobs", digest.algorithm(), &digest.hex()]) {
            Err(SourceError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Opens a file below the directory, one name after the other, through no link.
    fn file(&self, names: &[&str]) -> Result<OpenFile, SourceError> {
        let mut path = self.path.clone();
        let mut handle: Option<OwnedFd> = None;
        for (place, name) in names.iter().enumerate() {
            path.push(name);
            // NONBLOCK, because opening a pipe would wait for somebody to write to it.
            let mut flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            if place + 1 < names.len() {
                flags |= OFlags::DIRECTORY;
            }
            let at = handle.as_ref().unwrap_or(&self.handle);
            let opened = rustix::fs::openat(at, *name, flags, Mode::empty());
            handle = Some(opened.map_err(|error| match error {
                // A link, or a socket.
                rustix::io::Errno::LOOP | rustix::io::Errno::NXIO => {
                    SourceError::NotAFile { path: path.clone() }
                }
                // With DIRECTORY, Linux says of a link that it is no directory.
                rustix::io::Errno::NOTDIR => SourceError::NotAFile { path: path.clone() },
                error => io_error("open", &path, error.into()),
            })?);
        }
        let handle = handle.expect("every caller has at least one name");
        let status = rustix::fs::fstat(&handle);
        let status = status.map_err(|error| io_error("inspect", &path, error.into()))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(SourceError::NotAFile { path });
        }
        Ok(OpenFile {
            path,
            file: File::from(handle),
            size: u64::try_from(status.st_size).unwrap_or(0),
        })
    }
}

impl OpenFile {
    fn check_size(&self, expected: &Descriptor) -> Result<(), SourceError> {
        if self.size == expected.size {
            return Ok(());
        }
        Err(SourceError::SizeMismatch {
            digest: Box::new(expected.digest),
            expected: expected.size,
            actual: self.size,
        })
    }

    /// Reads the whole file, which has at most `limit` bytes.
    fn read(&self, limit: u64) -> Result<Vec<u8>, SourceError> {
        let mut bytes = Vec::new();
        let read = (&self.file).take(limit + 1).read_to_end(&mut bytes);
        read.map_err(|source| io_error("read", &self.path, source))?;
        if bytes.len() as u64 > limit {
            return Err(SourceError::TooLarge {
                what: self.path.display().to_string(),
                limit,
            });
        }
        Ok(bytes)
    }

    fn parse<T: for<'a> Deserialize<'a>>(&self) -> Result<T, SourceError> {
        let bytes = self.read(MAX_DOCUMENT_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|source| SourceError::LayoutJson {
            path: self.path.clone(),
            source,
        })
    }

    /// Reads up to `length` bytes; none at the end.
    fn read_at(&self, offset: u64, length: u64) -> Result<Vec<u8>, SourceError> {
        let mut piece = vec![0; usize::try_from(length).unwrap_or(0)];
        let mut filled = 0;
        while filled < piece.len() {
            let at = offset + filled as u64;
            match self.file.read_at(&mut piece[filled..], at) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error("read", &self.path, error)),
            }
        }
        piece.truncate(filled);
        Ok(piece)
    }
}

fn io_error(doing: &'static str, path: &Path, source: io::Error) -> SourceError {
    SourceError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[derive(Deserialize)]
struct WireMarker {
    #[serde(rename = "imageLayoutVersion")]
    #[expect(dead_code, reason = "being there makes the directory a layout")]
    version: String,
}

#[derive(Deserialize)]
struct WireIndex {
    manifests: Vec<WireEntry>,
}

/// An entry; unlike a `Descriptor` of a document it may have `"annotations": null`.
#[derive(Deserialize)]
struct WireEntry {
    #[serde(rename = "mediaType")]
    media_type: String,
    digest: Digest,
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
}

impl WireEntry {
    fn descriptor(self) -> Descriptor {
        Descriptor {
            media_type: self.media_type,
            digest: self.digest,
            size: self.size,
            annotations: self.annotations.unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests;
