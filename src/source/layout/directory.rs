//! The files of a layout's directory, opened in a way that cannot leave it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::source::SourceError;
use crate::source::layout::place::{OpenFile, io_error};

/// The directory of a layout, held open.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    handle: OwnedFd,
}

impl Directory {
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let opened = rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        );
        let handle = opened.map_err(|error| io_error("open", path, error.into()))?;
        Ok(Self {
            path: path.to_owned(),
            handle,
        })
    }

    /// Opens a file below the directory, one name after the other, through no link.
    pub(super) fn file(&self, names: &[&str]) -> Result<OpenFile, SourceError> {
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
        OpenFile::regular(path, handle)
    }
}
