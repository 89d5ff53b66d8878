//! What a layout is read from, and its files, whichever of the two it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FileType;
use serde::Deserialize;

use crate::oci::manifest::MAX_DOCUMENT_BYTES;
use crate::oci::{Descriptor, Digest, LayoutForm};
use crate::source::SourceError;
use crate::source::layout::archive::Archive;
use crate::source::layout::directory::Directory;

/// The directory or the archive of a layout, held open.
#[derive(Debug)]
pub(super) enum Place {
    Directory(Directory),
    Archive(Archive),
}

/// A regular file, or a part of one.
#[derive(Debug)]
pub(super) struct OpenFile {
    path: PathBuf,
    file: Arc<File>,
    /// Where in `file` it begins.
    start: u64,
    size: u64,
}

impl Place {
    /// Opens what says that it is a layout.
    pub(super) fn open(form: LayoutForm, path: &Path) -> Result<Self, SourceError> {
        let is_other = match form {
            LayoutForm::Directory => path.is_file(),
            LayoutForm::Archive => path.is_dir(),
        };
        if is_other {
            let path = path.to_owned();
            return Err(SourceError::OtherForm { path, form });
        }
        let place = match form {
            LayoutForm::Directory => Self::Directory(Directory::open(path)?),
            LayoutForm::Archive => Self::Archive(Archive::open(path)?),
        };
        let marker = place.file(&["oci-layout"]);
        match marker.and_then(|file| file.parse::<WireMarker>()) {
            Ok(_) => Ok(place),
            Err(source) => Err(SourceError::NotALayout {
                layout: path.to_owned(),
                source: Box::new(source),
            }),
        }
    }

    pub(super) fn entries(&self) -> Result<Vec<Descriptor>, SourceError> {
        let index: WireIndex = self.file(&["index.json"])?.parse()?;
        let entries = index.manifests.into_iter();
        Ok(entries.map(WireEntry::descriptor).collect())
    }

    /// Opens a blob; none if there is none.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Option<OpenFile>, SourceError> {
        match self.file(&["blobs", digest.algorithm(), &digest.hex()]) {
            Err(SourceError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            result => result.map(Some),
        }
    }

    /// Opens the file that is reached by these names, one after the other.
    fn file(&self, names: &[&str]) -> Result<OpenFile, SourceError> {
        match self {
            Self::Directory(directory) => directory.file(names),
            Self::Archive(archive) => archive.file(names),
        }
    }
}

impl OpenFile {
    /// Takes the whole of a file that was opened at `path`, if it is a regular one.
    pub(super) fn regular(path: PathBuf, handle: OwnedFd) -> Result<Self, SourceError> {
        let status = rustix::fs::fstat(&handle);
        let status = status.map_err(|error| io_error("inspect", &path, error.into()))?;
        if FileType::from_raw_mode(status.st_mode) != FileType::RegularFile {
            return Err(SourceError::NotAFile { path });
        }
        Ok(Self {
            path,
            file: Arc::new(File::from(handle)),
            start: 0,
            size: u64::try_from(status.st_size).unwrap_or(0),
        })
    }

    /// The part of it from `start` on that has `size` bytes, which are all there, as the file
    /// at `path`.
    pub(super) fn part(&self, path: PathBuf, start: u64, size: u64) -> Self {
        Self {
            path,
            file: Arc::clone(&self.file),
            start: self.start + start,
            size,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn check_size(&self, expected: &Descriptor) -> Result<(), SourceError> {
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
    pub(super) fn read(&self, limit: u64) -> Result<Vec<u8>, SourceError> {
        if self.size > limit {
            return Err(SourceError::TooLarge {
                what: self.path.display().to_string(),
                limit,
            });
        }
        self.read_at(0, self.size)
    }

    fn parse<T: for<'a> Deserialize<'a>>(&self) -> Result<T, SourceError> {
        let bytes = self.read(MAX_DOCUMENT_BYTES)?;
        serde_json::from_slice(&bytes).map_err(|source| SourceError::LayoutJson {
            path: self.path.clone(),
            source,
        })
    }

    /// Reads up to `length` bytes from `offset` on; none at the end.
    pub(super) fn read_at(&self, offset: u64, length: u64) -> Result<Vec<u8>, SourceError> {
        let length = length.min(self.size.saturating_sub(offset));
        let mut piece = vec![0; usize::try_from(length).unwrap_or(0)];
        let mut filled = 0;
        while filled < piece.len() {
            let at = self.start + offset + filled as u64;
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

pub(super) fn io_error(doing: &'static str, path: &Path, source: io::Error) -> SourceError {
    SourceError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

#[derive(Deserialize)]
struct WireMarker {
    #[serde(rename = "imageLayoutVersion")]
    #[expect(dead_code, reason = "being there makes it a layout")]
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
