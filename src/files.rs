//! The few file-system steps that must be done right everywhere: durable replacement, directory
//! sync, locks, the look at who may replace a file. Every error names its file.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FlockOperation, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, flock,
    utimensat,
};
use rustix::io::retry_on_intr;
use tempfile::{NamedTempFile, TempDir};
use thiserror::Error;

/// A file or directory that could not be used.
#[derive(Debug, Error)]
#[error("can not {action} {path}")]
pub struct FileError {
    /// What was being done.
    pub action: &'static str,
    /// To which file.
    pub path: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

impl FileError {
    /// Makes a converter of the I/O errors of one action on one path.
    pub fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self {
            action,
            path,
            source,
        }
    }

    /// Tells whether the disk, a quota or a size limit is full.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
        )
    }
}

/// Creates `path` with `mode`, whatever the caller's umask, and its parents with what that leaves of
/// 0755 (and never more), where they are missing.
pub fn create_dir(path: &Path, mode: u32) -> Result<(), FileError> {
    if let Some(parent) = path.parent() {
        let mut parents = fs::DirBuilder::new();
        parents
            .recursive(true)
            .mode(0o755)
            .create(parent)
            .map_err(FileError::of("create", parent))?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // A service with umask 0077 must not close its store to libvirt's user.
        result => result
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
            .map_err(FileError::of("create", path)),
    }
}

/// Makes the entries of directory `path` durable.
pub fn sync_dir(path: &Path) -> Result<(), FileError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(FileError::of("sync", path))
}

/// Replaces the file `path` by `content`, durably, so that a reader and a crash see the old or the
/// new one. `scratch` is a directory of the same file system for the unfinished file.
pub fn replace(path: &Path, content: &[u8], scratch: &Path) -> Result<(), FileError> {
    let mut file = scratch_file(scratch)?;
    file.write_all(content)
        .and_then(|()| file.as_file().sync_all())
        .map_err(FileError::of("write", file.path()))?;
    file.persist(path)
        .map_err(|error| FileError::of("replace", path)(error.error))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// A file that is locked for as long as it is unfinished, so that it shows which ones were left by
/// a kill.
fn scratch_file(scratch: &Path) -> Result<NamedTempFile, FileError> {
    loop {
        let file = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o644))
            .tempfile_in(scratch)
            .map_err(FileError::of("create a file in", scratch))?;
        if is_held_by_us(file.as_file(), file.path())? {
            return Ok(file);
        }
    }
}

/// A directory of our own in `scratch`, locked by what is returned with it, so that it shows which
/// ones were left by a kill.
pub fn scratch_dir(scratch: &Path) -> Result<(TempDir, File), FileError> {
    loop {
        let directory = tempfile::Builder::new()
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(scratch)
            .map_err(FileError::of("create a directory in", scratch))?;
        let path = directory.path();
        let lock = match File::open(path) {
            Err(error) if is_nowhere(&error) => continue,
            result => result.map_err(FileError::of("open", path))?,
        };
        if is_held_by_us(&lock, path)? {
            return Ok((directory, lock));
        }
    }
}

/// Locks what was just made in a scratch directory. It may have been taken for a leftover before that.
fn is_held_by_us(file: &File, path: &Path) -> Result<bool, FileError> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => is_same_file(file, path),
        Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(FileError::of("lock", path)(error.into())),
    }
}

/// Sets the time of a file's last change to now.
pub fn touch(path: &Path) -> Result<(), FileError> {
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_NOW,
        },
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|error| FileError::of("set the time of", path)(error.into()))
}

/// Reads a small file whole; none if there is none. Errors if it is larger than `limit` bytes.
pub fn read_small(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let file = match File::open(path) {
        Err(error) if is_nowhere(&error) => return Ok(None),
        result => result.map_err(FileError::of("open", path))?,
    };
    read_at_most(file, path, limit).map(Some)
}

fn read_at_most(file: File, path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut content = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut content)
        .map_err(FileError::of("read", path))?;
    if content.len() as u64 > limit {
        let error = io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("more than {}", indicatif::HumanBytes(limit)),
        );
        return Err(FileError::of("read", path)(error));
    }
    Ok(content)
}

/// Tells whether there is no such file, for want of it or of what it would be in.
fn is_nowhere(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// Reads a small file whole that is [plain](open_plain); none if there is none.
pub fn read_plain(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    match open_plain(path) {
        Err(error) if is_nowhere(&error.source) => Ok(None),
        file => read_at_most(file?, path, limit).map(Some),
    }
}

/// Reads a small file that decides what is trusted: of root's or of whoever runs this, nobody else
/// may write to it, and not everybody to a directory on the [way](way_to) to it; none if there is none.
///
/// A link is followed, as it is the file that counts; one that leads nowhere is an error, since
/// somebody meant something to be there. No pipe is waited for.
pub fn read_trusted(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, FileError> {
    let refuse = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let open = || {
        match way_to(path)? {
            Way::Clear => {}
            Way::Nowhere => return Ok(None),
            Way::Exposed(directory) => {
                let directory = directory.display();
                return Err(refuse(format!("everybody may write to {directory}")));
            }
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)?;
        let metadata = file.metadata()?;
        if let Some(kind) = other_kind(metadata.file_type()) {
            return Err(refuse(format!("it is {kind}")));
        }
        let (owner, caller) = (metadata.uid(), rustix::process::geteuid().as_raw());
        if owner != 0 && owner != caller {
            return Err(refuse(format!(
                "it belongs to user {owner}, neither to root nor to user {caller}"
            )));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(refuse("others than its owner may write to it".to_owned()));
        }
        Ok(Some(file))
    };
    let file = open().map_err(FileError::of("trust", path))?;
    file.map(|file| read_at_most(file, path, limit)).transpose()
}

/// What is on the way to a path.
#[derive(Debug, PartialEq, Eq)]
pub enum Way {
    /// Something is at its end, and on it nothing that everybody may replace.
    Clear,
    /// Nothing is at its end, and on it is nothing that everybody may replace.
    Nowhere,
    /// Everybody may write to this directory, and it is none like `/tmp` where each has what is his.
    Exposed(PathBuf),
}

/// Most links that are followed on one way; the kernel's own limit.
const MAX_LINKS: u32 = 40;

/// Looks at each directory on the way to `path` and on that of each link on it; `path` itself is the
/// last of them if it is a directory.
///
/// Errors if a link leads nowhere.
pub fn way_to(path: &Path) -> io::Result<Way> {
    follow(&std::path::absolute(path)?, &mut { MAX_LINKS })
}

fn follow(path: &Path, links: &mut u32) -> io::Result<Way> {
    let mut parts: Vec<&Path> = path.ancestors().collect();
    parts.reverse();
    for part in parts {
        let metadata = match fs::symlink_metadata(part) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Way::Nowhere),
            metadata => metadata?,
        };
        if metadata.is_symlink() {
            *links = links.checked_sub(1).ok_or(rustix::io::Errno::LOOP)?;
            let target = part.with_file_name("").join(fs::read_link(part)?);
            match follow(&target, links)? {
                Way::Clear => {}
                Way::Nowhere => {
                    let nowhere = format!("{} is a link that leads nowhere", part.display());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, nowhere));
                }
                exposed @ Way::Exposed(_) => return Ok(exposed),
            }
        } else if metadata.is_dir() && metadata.mode() & 0o1002 == 0o002 {
            return Ok(Way::Exposed(part.to_owned()));
        }
    }
    Ok(Way::Clear)
}

/// Opens a file for reading, and nothing else that may have been put in its place: no link is
/// followed, no pipe waited for.
pub fn open_plain(path: &Path) -> Result<File, FileError> {
    let open = || {
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags.bits().cast_signed())
            .open(path)?;
        match other_kind(file.metadata()?.file_type()) {
            Some(kind) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("it is {kind}"),
            )),
            None => Ok(file),
        }
    };
    open().map_err(FileError::of("open", path))
}

/// What something is that is no plain file.
#[must_use]
pub fn other_kind(kind: fs::FileType) -> Option<&'static str> {
    match () {
        () if kind.is_file() => None,
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_symlink() => Some("a symbolic link"),
        () if kind.is_fifo() => Some("a pipe"),
        () if kind.is_socket() => Some("a socket"),
        () => Some("a device"),
    }
}

/// Removes a file; one that is not there is no error.
pub fn remove(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(FileError::of("remove", path)),
    }
}

/// Removes a directory with what is in it; one that is not there is no error.
pub fn remove_tree(path: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(FileError::of("remove", path)),
    }
}

/// The names in directory `path`, sorted; none if it is not there.
pub fn names(path: &Path) -> Result<Vec<String>, FileError> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        result => result.map_err(FileError::of("list", path))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(FileError::of("list", path))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// How long to wait for a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Until it is free.
    ForEver,
    /// Not at all.
    No,
}

/// A file lock, held until it is dropped or its process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

impl Lock {
    /// Locks the file `path`, creating it, against every other holder; none if it is taken and
    /// `wait` is [`Wait::No`].
    pub fn exclusive(path: &Path, wait: Wait) -> Result<Option<Self>, FileError> {
        Self::take(
            path,
            wait,
            FlockOperation::LockExclusive,
            FlockOperation::NonBlockingLockExclusive,
        )
    }

    /// Locks the file `path`, creating it, against exclusive holders.
    pub fn shared(path: &Path, wait: Wait) -> Result<Option<Self>, FileError> {
        Self::take(
            path,
            wait,
            FlockOperation::LockShared,
            FlockOperation::NonBlockingLockShared,
        )
    }

    fn take(
        path: &Path,
        wait: Wait,
        blocking: FlockOperation,
        trying: FlockOperation,
    ) -> Result<Option<Self>, FileError> {
        loop {
            let file = OpenOptions::new()
                .read(true)
                .append(true)
                .create(true)
                .mode(0o600)
                .open(path)
                .map_err(FileError::of("open", path))?;
            let operation = match wait {
                Wait::ForEver => blocking,
                Wait::No => trying,
            };
            match flock(&file, operation) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(FileError::of("lock", path)(error.into())),
            }
            // Whoever held it before may have removed the file: then this lock guards nothing.
            if is_same_file(&file, path)? {
                return Ok(Some(Self { file }));
            }
        }
    }

    /// Tells whether `path` still names the locked file: it may have been removed, and another made.
    pub fn is_of(&self, path: &Path) -> Result<bool, FileError> {
        is_same_file(&self.file, path)
    }

    /// The locked file; a child that inherits it holds the lock as well.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

/// Tells whether somebody holds an exclusive lock of the file `path`; nobody does if it is not there.
pub fn is_held(path: &Path) -> Result<bool, FileError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        result => result.map_err(FileError::of("open", path))?,
    };
    match retry_on_intr(|| flock(&file, FlockOperation::NonBlockingLockShared)) {
        Ok(()) => Ok(false),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
        Err(error) => Err(FileError::of("lock", path)(error.into())),
    }
}

fn is_same_file(file: &File, path: &Path) -> Result<bool, FileError> {
    let held = file.metadata().map_err(FileError::of("look at", path))?;
    match fs::metadata(path) {
        Ok(named) => Ok(held.ino() == named.ino() && held.dev() == named.dev()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::of("look at", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_excludes_until_it_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::exclusive(&path, Wait::No).unwrap();
        assert!(held.is_some());
        assert!(Lock::shared(&path, Wait::No).unwrap().is_none());
        drop(held);
        let shared = Lock::shared(&path, Wait::No).unwrap();
        assert!(Lock::shared(&path, Wait::No).unwrap().is_some());
        assert!(Lock::exclusive(&path, Wait::No).unwrap().is_none());
        drop(shared);
    }

    #[test]
    fn a_lock_on_a_file_that_was_removed_is_taken_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lock");
        let held = Lock::exclusive(&path, Wait::No).unwrap();
        remove(&path).unwrap();
        let again = Lock::exclusive(&path, Wait::No).unwrap().unwrap();
        assert!(is_same_file(again.file(), &path).unwrap());
        assert!(!held.unwrap().is_of(&path).unwrap());
        assert!(again.is_of(&path).unwrap());
    }

    #[test]
    fn a_replaced_file_is_whole_and_leaves_no_scratch() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        for content in [&b"one"[..], b"two"] {
            replace(&path, content, directory.path()).unwrap();
            assert_eq!(read_small(&path, 3).unwrap().unwrap(), content);
        }
        assert_eq!(names(directory.path()).unwrap(), ["file"]);
        assert!(read_small(&path, 2).is_err());
    }

    #[test]
    fn what_everybody_may_replace_on_the_way_is_found_through_links_too() {
        use std::os::unix::fs::symlink;

        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        let path = |name: &str| root.join(name);
        for name in ["kept/inner", "open/inner"] {
            fs::create_dir_all(path(name)).unwrap();
            fs::write(path(name).join("file"), "").unwrap();
        }
        let set = |mode| {
            fs::set_permissions(path("open"), Permissions::from_mode(mode)).unwrap();
        };
        // By a link that lies in the open, and by one that leads through it.
        symlink(path("kept/inner"), path("open/link")).unwrap();
        symlink("../open/link", path("kept/twice")).unwrap();
        symlink("nowhere", path("kept/dangling")).unwrap();
        symlink("loop", path("kept/loop")).unwrap();
        let names = [
            "open/inner/file",
            "open/none",
            "open/link/file",
            "kept/twice/file",
        ];
        for (mode, is_exposed) in [
            (0o777, true),
            (0o757, true),
            (0o1777, false),
            (0o775, false),
        ] {
            set(mode);
            for name in names {
                let way = way_to(&path(name)).unwrap();
                let is_found = matches!(&way, Way::Exposed(found) if found.ends_with("open"));
                assert_eq!(is_found, is_exposed, "{name}: {way:?}");
                let read = read_trusted(&path(name), 1);
                assert_eq!(read.is_err(), is_exposed, "{name}: {read:?}");
            }
        }
        assert_eq!(way_to(&path("kept/inner/file")).unwrap(), Way::Clear);
        assert_eq!(way_to(&path("kept/none/file")).unwrap(), Way::Nowhere);
        for name in [
            "kept/dangling/file",
            "kept/loop/file",
            "kept/inner/file/file",
        ] {
            assert!(read_trusted(&path(name), 1).is_err(), "{name}");
        }
    }
}
