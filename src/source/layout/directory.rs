//! The files of a layout, opened in a way that cannot leave its directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use serde::Deserialize;

use crate::oci::manifest::MAX_DOCUMENT_BYTES;
use crate::oci::{Descriptor, Digest};
use crate::source::SourceError;

/// The directory of a layout, held open.
pub(super) struct Directory {
    path: PathBuf,
    handle: OwnedFd,
}

/// A regular file, and where it is.
pub(super) struct OpenFile {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Directory {
    /// Opens a directory that says that it is a layout.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
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
    pub(super) fn read_at(&self, offset: u64, length: u64) -> Result<Vec<u8>, SourceError> {
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
