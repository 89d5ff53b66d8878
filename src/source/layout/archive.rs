//! The files of a layout's tar archive, read where they lie in it.
//!
//! Opening it reads the headers and passes over the content. An entry counts only if its name,
//! without a leading `./`, is one that a layout has; all others are passed over, whatever they
//! are: nothing is unpacked, so no name leads anywhere. A name that counts may occur once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::oci::{Digest, Printable};
use crate::source::layout::place::{OpenFile, io_error};
use crate::source::{ArchiveProblem, SourceError};

/// Most bytes of headers that are read, long names among them: 32768 plain entries.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// How files begin that some program has compressed.
const COMPRESSED: &[(&[u8], &str)] = &[
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
    (b"BZh", "bzip2"),
];

/// The archive of a layout, held open.
#[derive(Debug)]
pub(super) struct Archive {
    file: OpenFile,
    members: BTreeMap<String, Member>,
}

/// What the archive has under a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Member {
    /// A regular file.
    File { start: u64, size: u64 },
    /// A link, a device, or whatever else.
    Other,
}

impl Archive {
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        // NONBLOCK, because opening a pipe would wait for somebody to write to it.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let handle = opened.map_err(|error| io_error("open", path, error.into()))?;
        let file = OpenFile::regular(path.to_owned(), handle)?;
        let members = members(&file)?;
        Ok(Self { file, members })
    }

    pub(super) fn file(&self, names: &[&str]) -> Result<OpenFile, SourceError> {
        let name = names.join("/");
        let path = self.file.path().join(&name);
        match self.members.get(&name) {
            Some(Member::File { start, size }) => Ok(self.file.part(path, *start, *size)),
            Some(Member::Other) => Err(SourceError::NotAFile { path }),
            None => Err(io_error("open", &path, Errno::NOENT.into())),
        }
    }
}

/// Reads the headers of an archive.
fn members(file: &OpenFile) -> Result<BTreeMap<String, Member>, SourceError> {
    let refused = |problem| SourceError::Archive {
        path: file.path().to_owned(),
        problem,
    };
    let head = file.read_at(0, 8)?;
    if let Some((_, program)) = COMPRESSED.iter().find(|(magic, _)| head.starts_with(magic)) {
        return Err(refused(ArchiveProblem::Compressed(program)));
    }
    let spent = Cell::new(0);
    let unreadable = |error: io::Error| {
        if spent.get() > MAX_HEADER_BYTES {
            return SourceError::TooLarge {
                what: format!("the list of files in {}", file.path().display()),
                limit: MAX_HEADER_BYTES,
            };
        }
        match error.raw_os_error() {
            Some(_) => io_error("read", file.path(), error),
            None => refused(ArchiveProblem::Unreadable(
                Printable(&error.to_string()).to_string(),
            )),
        }
    };
    let mut archive = tar::Archive::new(Headers {
        file,
        at: 0,
        spent: &spent,
    });
    let mut members = BTreeMap::new();
    for entry in archive.entries_with_seek().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.path_bytes();
        let shown = || Printable(&String::from_utf8_lossy(&name)).to_string();
        let kind = entry.header().entry_type();
        let (start, size) = (entry.raw_file_position(), entry.size());
        // A sparse one is shorter in the archive, and is refused below if it counts.
        let end = start.checked_add(size).filter(|end| *end <= file.size());
        if end.is_none() && !kind.is_gnu_sparse() {
            return Err(refused(ArchiveProblem::Cut(shown())));
        }
        let Some(counted) = counted(&name) else {
            continue;
        };
        let member = match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous => Member::File { start, size },
            tar::EntryType::GNUSparse => return Err(refused(ArchiveProblem::Sparse(shown()))),
            _ => Member::Other,
        };
        if members.insert(counted.to_owned(), member).is_some() {
            return Err(refused(ArchiveProblem::Twice(shown())));
        }
    }
    Ok(members)
}

/// The name as a layout has it, if it is one of those.
fn counted(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok()?;
    let name = name.strip_prefix("./").unwrap_or(name);
    let is_blob = || {
        let (algorithm, hex) = name.strip_prefix("blobs/")?.split_once('/')?;
        format!("{algorithm}:{hex}").parse::<Digest>().ok()
    };
    (["oci-layout", "index.json"].contains(&name) || is_blob().is_some()).then_some(name)
}

/// The archive as its headers are read: no more than [`MAX_HEADER_BYTES`], wherever they are.
struct Headers<'a> {
    file: &'a OpenFile,
    at: u64,
    spent: &'a Cell<u64>,
}

impl Read for Headers<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let piece = self.file.read_at(self.at, into.len() as u64);
        let piece = piece.map_err(|error| match error {
            SourceError::Io { source, .. } => source,
            error => io::Error::other(error),
        })?;
        into[..piece.len()].copy_from_slice(&piece);
        self.at += piece.len() as u64;
        self.spent.set(self.spent.get() + piece.len() as u64);
        if self.spent.get() > MAX_HEADER_BYTES {
            return Err(io::Error::other("too many headers"));
        }
        Ok(piece.len())
    }
}

impl Seek for Headers<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(to) => Some(to),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
            SeekFrom::End(by) => self.file.size().checked_add_signed(by),
        };
        self.at = to.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests;
