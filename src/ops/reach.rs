//! Whether a user of this host may open a file, by what the kernel goes by: owner, group, mode and
//! access list of the file and of every directory on the way to it.
//!
//! No capability is reckoned with: libvirt takes those of root from its QEMU as well.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::getxattr;
use rustix::io::Errno;
use thiserror::Error;

use crate::files::{self, FileError};

/// Where Linux keeps a file's access list (acl(5)).
const ACCESS_LIST: &str = "system.posix_acl_access";
/// Longest attribute that Linux knows, in bytes.
const MAX_LIST_BYTES: usize = 64 << 10;
/// Largest file of users or groups that is read, in bytes.
const MAX_USERS_BYTES: u64 = 16 << 20;

/// A user of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    uid: u32,
    groups: BTreeSet<u32>,
}

/// What a user may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lacks {
    /// Pass through a directory.
    Pass,
    /// Read a file.
    Read,
    /// Read and write a file.
    Write,
}

/// By which of its permissions a file is closed to a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum By {
    /// Those of its owner.
    Owner,
    /// Those of its group.
    Group,
    /// Those of all others.
    Others,
    /// Its access list.
    List,
}

/// A file or directory that is closed to a user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Closed {
    /// What may not be done.
    pub lacks: Lacks,
    /// By what it is closed.
    pub by: By,
    /// The file or directory.
    pub path: PathBuf,
}

/// A user can not reach what he needs.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("QEMU runs as user {uid}, who {}", words(closed))]
pub struct Unreachable {
    /// The user.
    pub uid: u32,
    /// All that keeps him from it.
    pub closed: Vec<Closed>,
}

impl User {
    /// The user `uid` with its group `gid` and those that the host's files say it is in.
    pub fn of(uid: u32, gid: u32) -> Result<Self, FileError> {
        let read = |path| {
            let bytes = files::read_small(Path::new(path), MAX_USERS_BYTES)?;
            let bytes = bytes.unwrap_or_default();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let (users, groups) = (read("/etc/passwd")?, read("/etc/group")?);
        let mut user = Self {
            uid,
            groups: groups_of(uid, &users, &groups),
        };
        user.groups.insert(gid);
        Ok(user)
    }

    /// Whoever calls us.
    pub fn caller() -> Result<Self, FileError> {
        let groups = rustix::process::getgroups();
        let groups = groups.map_err(io::Error::from);
        let groups = groups.map_err(FileError::of("read", Path::new("/proc/self/status")))?;
        let own = rustix::process::getegid().as_raw();
        Ok(Self {
            uid: rustix::process::geteuid().as_raw(),
            groups: groups
                .into_iter()
                .map(rustix::process::Gid::as_raw)
                .chain([own])
                .collect(),
        })
    }

    /// Adds each directory from the root to `directory` that the user may not pass through, where
    /// links lead as well. One that is not there yet is none.
    pub fn passes(&self, directory: &Path, closed: &mut Vec<Closed>) -> Result<(), FileError> {
        let real = match fs::canonicalize(directory) {
            Ok(real) => real,
            Err(error) if error.kind() == io::ErrorKind::NotFound => directory.to_owned(),
            // Closed to us too, as the way through the names shows.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => directory.to_owned(),
            Err(error) => return Err(FileError::of("find", directory)(error)),
        };
        for way in [directory, &real] {
            let mut ancestors: Vec<&Path> = way.ancestors().collect();
            ancestors.reverse();
            for ancestor in ancestors {
                self.looks_at(ancestor, Lacks::Pass, closed)?;
            }
        }
        Ok(())
    }

    /// Adds the file if the user may not open it.
    pub fn opens(
        &self,
        file: &Path,
        lacks: Lacks,
        closed: &mut Vec<Closed>,
    ) -> Result<(), FileError> {
        if let Some(parent) = fs::canonicalize(file)
            .ok()
            .as_deref()
            .and_then(Path::parent)
        {
            self.passes(parent, closed)?;
        }
        self.looks_at(file, lacks, closed)
    }

    /// An error if anything is closed.
    pub fn finds(&self, closed: Vec<Closed>) -> Result<(), Unreachable> {
        match closed.is_empty() {
            true => Ok(()),
            false => Err(Unreachable {
                uid: self.uid,
                closed,
            }),
        }
    }

    fn looks_at(
        &self,
        path: &Path,
        lacks: Lacks,
        closed: &mut Vec<Closed>,
    ) -> Result<(), FileError> {
        if closed.iter().any(|closed| closed.path == path) {
            return Ok(());
        }
        let of_path = FileError::of("look at", path);
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // A directory that is yet to be made.
            Err(error) if error.kind() == io::ErrorKind::NotFound && lacks == Lacks::Pass => {
                return Ok(());
            }
            // What closes it to us is found on the way to it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            Err(error) => return Err(of_path(error)),
        };
        let list = access_list(path)?;
        let permissions = Permissions {
            uid: metadata.uid(),
            gid: metadata.gid(),
            mode: metadata.mode(),
            list: list.as_deref().map(entries).unwrap_or_default(),
        };
        if let Some(by) = self.is_kept_out(&permissions, lacks) {
            closed.push(Closed {
                lacks,
                by,
                path: path.to_owned(),
            });
        }
        Ok(())
    }

    /// By what the user is kept out, if he is. The algorithm is that of acl(5), and Linux's where
    /// it does not even look at a list whose mask is empty (fs/namei.c, `acl_permission_check`).
    fn is_kept_out(&self, permissions: &Permissions, lacks: Lacks) -> Option<By> {
        let Permissions {
            uid,
            gid,
            mode,
            list,
        } = permissions;
        let grants = |bits: u32| bits & lacks.bits() == lacks.bits();
        let unless = |granted: bool, by| (!granted).then_some(by);
        if *uid == self.uid {
            return unless(grants(mode >> 6), By::Owner);
        }
        if list.is_empty() || mode & 0o070 == 0 {
            return match self.groups.contains(gid) {
                true => unless(grants(mode >> 3), By::Group),
                false => unless(grants(*mode), By::Others),
            };
        }
        // With a list, the group's bits of the mode are its mask.
        let masked = |bits: u32| grants(bits & (mode >> 3));
        let of_user = list
            .iter()
            .find(|entry| entry.whose == Whose::User(self.uid));
        if let Some(entry) = of_user {
            return unless(masked(entry.bits), By::List);
        }
        let mut of_groups = list.iter().filter(|entry| match entry.whose {
            Whose::OwningGroup => self.groups.contains(gid),
            Whose::Group(gid) => self.groups.contains(&gid),
            Whose::User(_) => false,
        });
        match of_groups.next() {
            Some(first) => {
                let granted = masked(first.bits) || of_groups.any(|entry| masked(entry.bits));
                unless(granted, By::List)
            }
            None => unless(grants(*mode), By::Others),
        }
    }
}

impl Lacks {
    /// In the bits of a mode: 4 to read, 2 to write, 1 to pass.
    fn bits(self) -> u32 {
        match self {
            Self::Pass => 1,
            Self::Read => 4,
            Self::Write => 6,
        }
    }

    /// In the letters of chmod and setfacl.
    #[must_use]
    pub fn letters(self) -> &'static str {
        match self {
            Self::Pass => "x",
            Self::Read => "r",
            Self::Write => "rw",
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.lacks {
            Lacks::Pass => "pass through",
            Lacks::Read => "read",
            Lacks::Write => "write to",
        };
        write!(f, "{what} {}", self.path.display())
    }
}

fn words(closed: &[Closed]) -> String {
    let closed: Vec<String> = closed.iter().map(Closed::to_string).collect();
    format!("may not {}", closed.join(", nor "))
}

/// What the kernel goes by.
struct Permissions {
    uid: u32,
    gid: u32,
    mode: u32,
    list: Vec<Entry>,
}

/// An entry of an access list that the mode does not say as well.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    whose: Whose,
    bits: u32,
}

#[derive(Debug, PartialEq, Eq)]
enum Whose {
    User(u32),
    OwningGroup,
    Group(u32),
}

/// The bytes of a file's access list; none if it has none, or its file system knows none.
fn access_list(path: &Path) -> Result<Option<Vec<u8>>, FileError> {
    let mut list = vec![0; MAX_LIST_BYTES];
    match getxattr(path, ACCESS_LIST, &mut list) {
        Ok(length) => {
            list.truncate(length);
            Ok(Some(list))
        }
        Err(Errno::NODATA | Errno::NOTSUP | Errno::NOENT | Errno::ACCESS | Errno::NOSYS) => {
            Ok(None)
        }
        Err(error) => Err(FileError::of("read the access list of", path)(error.into())),
    }
}

/// Reads an access list: a version, then entries of tag, bits and id, all little endian.
///
/// Format: Linux's include/uapi/linux/posix_acl_xattr.h.
fn entries(list: &[u8]) -> Vec<Entry> {
    let Some((_version, entries)) = list.split_first_chunk::<4>() else {
        return Vec::new();
    };
    let (entries, _) = entries.as_chunks::<8>();
    let entries = entries.iter().filter_map(|&[a, b, c, d, e, f, g, h]| {
        let id = u32::from_le_bytes([e, f, g, h]);
        let whose = match u16::from_le_bytes([a, b]) {
            0x02 => Whose::User(id),
            0x04 => Whose::OwningGroup,
            0x08 => Whose::Group(id),
            // Owner, mask and others, which the mode has.
            _ => return None,
        };
        let bits = u16::from_le_bytes([c, d]).into();
        Some(Entry { whose, bits })
    });
    entries.collect()
}

/// The groups of user `uid` by the host's files (passwd(5), group(5)).
fn groups_of(uid: u32, users: &str, groups: &str) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    let mut names = Vec::new();
    for line in users.lines() {
        if let [name, _, id, gid, ..] = line.split(':').collect::<Vec<_>>()[..]
            && id.parse() == Ok(uid)
        {
            names.push(name);
            found.extend(gid.parse::<u32>());
        }
    }
    for line in groups.lines() {
        if let [_, _, gid, members] = line.split(':').collect::<Vec<_>>()[..]
            && members.split(',').any(|member| names.contains(&member))
        {
            found.extend(gid.parse::<u32>());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u32 = 64055;

    fn user() -> User {
        User {
            uid: USER,
            groups: BTreeSet::from([108, 64055]),
        }
    }

    #[test]
    fn one_class_of_permissions_counts_as_the_kernel_has_it() {
        let check = |uid, gid, mode, lacks, expected| {
            let permissions = Permissions {
                uid,
                gid,
                mode,
                list: Vec::new(),
            };
            assert_eq!(
                user().is_kept_out(&permissions, lacks),
                expected,
                "{uid}:{gid} {mode:o}"
            );
        };
        use Lacks::{Pass, Read, Write};
        check(0, 0, 0o711, Pass, None);
        check(0, 0, 0o710, Pass, Some(By::Others));
        check(0, 108, 0o710, Pass, None);
        // Others may, and the group may not: the user is in the group.
        check(0, 108, 0o701, Pass, Some(By::Group));
        check(USER, 0, 0o077, Pass, Some(By::Owner));
        check(0, 0, 0o444, Read, None);
        check(0, 0, 0o440, Read, Some(By::Others));
        check(0, 0, 0o444, Write, Some(By::Others));
        check(0, 0, 0o446, Write, None);
        check(USER, 0, 0o600, Write, None);
        check(USER, 0, 0o400, Write, Some(By::Owner));
    }

    #[test]
    fn an_access_list_counts_with_its_mask() {
        let check = |mode, list: &[(Whose, u32)], expected| {
            let list = list.iter().map(|(whose, bits)| Entry {
                whose: match whose {
                    Whose::User(id) => Whose::User(*id),
                    Whose::OwningGroup => Whose::OwningGroup,
                    Whose::Group(id) => Whose::Group(*id),
                },
                bits: *bits,
            });
            let permissions = Permissions {
                uid: 0,
                gid: 0,
                mode,
                list: list.collect(),
            };
            assert_eq!(user().is_kept_out(&permissions, Lacks::Pass), expected);
        };
        check(0o710, &[(Whose::User(USER), 1)], None);
        check(0o700, &[(Whose::User(USER), 1)], Some(By::Others));
        check(0o740, &[(Whose::User(USER), 1)], Some(By::List));
        check(0o701, &[(Whose::User(USER), 0)], None);
        check(0o711, &[(Whose::User(USER), 6)], Some(By::List));
        check(
            0o710,
            &[(Whose::OwningGroup, 0), (Whose::Group(108), 1)],
            None,
        );
        check(0o711, &[(Whose::Group(108), 0)], Some(By::List));
        check(0o710, &[(Whose::User(1), 1)], Some(By::Others));
        check(0o711, &[(Whose::User(1), 1)], None);
    }

    #[test]
    fn a_list_is_read_as_linux_writes_it() {
        let mut list = vec![2, 0, 0, 0];
        for (tag, bits, id) in [
            (1_u16, 7_u16, u32::MAX),
            (2, 1, USER),
            (4, 5, u32::MAX),
            (8, 4, 108),
            (16, 5, u32::MAX),
            (32, 0, u32::MAX),
        ] {
            list.extend(tag.to_le_bytes());
            list.extend(bits.to_le_bytes());
            list.extend(id.to_le_bytes());
        }
        let expected = [
            (Whose::User(USER), 1),
            (Whose::OwningGroup, 5),
            (Whose::Group(108), 4),
        ];
        let expected = expected.map(|(whose, bits)| Entry { whose, bits });
        assert_eq!(entries(&list), expected);
        for short in [&list[..3], &list[..4], &list[..11], &[]] {
            assert_eq!(entries(short), []);
        }
    }

    #[test]
    fn groups_are_those_of_the_hosts_files() {
        let users = "root:x:0:0:root:/root:/bin/sh\nqemu:x:64055:108:Q:/:/bin/false\nbroken\n";
        let groups = "kvm:x:108:\nqemu:x:64055:other,qemu\ndisk:x:6:qemulike\nx\n";
        assert_eq!(groups_of(USER, users, groups), BTreeSet::from([108, 64055]));
        assert_eq!(groups_of(1, users, groups), BTreeSet::new());
    }

    #[test]
    fn every_closed_directory_on_the_way_is_named_where_links_lead_too() {
        use std::os::unix::fs::{PermissionsExt, symlink};

        let root = tempfile::tempdir().unwrap();
        let root = root.path().canonicalize().unwrap();
        let mode = |name: &str, mode| {
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(root.join("real/c")).unwrap();
        fs::write(root.join("real/c/file"), b"").unwrap();
        symlink(root.join("real/c/file"), root.join("a/b/file")).unwrap();
        mode("", 0o711);
        mode("a", 0o700);
        mode("a/b", 0o755);
        mode("real", 0o700);
        mode("real/c", 0o755);
        mode("real/c/file", 0o600);
        // Nobody else's, whoever runs this.
        let user = User {
            uid: u32::MAX - 1,
            groups: BTreeSet::new(),
        };
        let mut closed = Vec::new();
        user.passes(&root.join("a/b"), &mut closed).unwrap();
        user.passes(&root.join("a/b/none"), &mut closed).unwrap();
        user.opens(&root.join("a/b/file"), Lacks::Read, &mut closed)
            .unwrap();
        let found: Vec<String> = closed
            .iter()
            .filter(|closed| closed.path.starts_with(&root))
            .map(Closed::to_string)
            .collect();
        let root = root.display();
        assert_eq!(
            found,
            [
                format!("pass through {root}/a"),
                format!("pass through {root}/real"),
                format!("read {root}/a/b/file"),
            ]
        );
    }
}
