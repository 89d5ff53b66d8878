//! Making room: what nobody needs goes, and what nobody has used for long if that is asked for.
//!
//! ```text
//! refs/       a reference goes by its age or for want of room, if no instance and no domain needs it
//! blobs/      a blob goes that nothing names
//! derived/    what was made of a blob goes with it
//! ingest/     a partial stays for a day, in case somebody resumes it; one that can not be goes
//! leases/     a lease goes whose process has ended
//! tmp/        what a process has left that was killed
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::files::{self, FileError, Lock, Wait};
use crate::oci::Digest;
use crate::store::gc::ON_ITS_WAY_OUT;
use crate::store::uses::Held;
use crate::store::{Store, StoreError, StoredReference, Use};

/// How long a partial is kept that somebody may resume.
const PARTIAL_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Which references are to be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Those that nobody has used for so long.
    pub older_than: Option<Duration>,
    /// The least recently used ones, until the blobs take no more bytes of the disk than this.
    pub keep_bytes: Option<u64>,
}

/// Whether to do it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Only look what would be done: nothing is written, created or waited for.
    Look,
    /// Do it.
    Remove,
}

/// What was removed, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pruned {
    /// One by one.
    pub removed: Vec<Item>,
    /// What the blobs that are left take of the disk, in bytes.
    pub left_bytes: u64,
}

/// Something that was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// Its name.
    pub name: String,
    /// What it took of the disk, in bytes; of a reference without its blobs.
    pub freed_bytes: u64,
}

/// What kind of thing was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ItemKind {
    /// A reference.
    Image,
    /// A blob.
    Blob,
    /// An unfinished blob.
    Partial,
    /// A lease of a process that has ended.
    Lease,
    /// Something in `tmp/` of a process that was killed.
    Leftover,
}

impl Pruned {
    /// What everything that was removed took of the disk, in bytes.
    #[must_use]
    pub fn freed_bytes(&self) -> u64 {
        self.removed.iter().map(|item| item.freed_bytes).sum()
    }
}

impl ItemKind {
    /// The word in JSON and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Blob => "blob",
            Self::Partial => "partial",
            Self::Lease => "lease",
            Self::Leftover => "leftover",
        }
    }
}

impl Store {
    /// Removes what nobody needs, and first what `policy` says. `others` are those who need blobs
    /// beside the instances; where they are not all known, neither a reference nor a blob goes.
    pub fn prune(
        &self,
        policy: &Policy,
        others: Option<&[Use]>,
        now: u64,
        act: Act,
    ) -> Result<Pruned, StoreError> {
        let mut pruned = Pruned::default();
        if !self.root.exists() {
            return Ok(pruned);
        }
        let now = UNIX_EPOCH + Duration::from_secs(now);
        pruned.removed.extend(self.prune_leftovers(act)?);
        pruned.removed.extend(self.prune_leases(act)?);
        let age = policy.older_than.unwrap_or(PARTIAL_AGE).min(PARTIAL_AGE);
        pruned.removed.extend(self.prune_partials(age, now, act)?);
        let blobs = self.blobs()?;
        if let Some(others) = others {
            let (forgotten, left) = self.forget(policy, &blobs, others, now, act)?;
            pruned.removed.extend(forgotten);
            let gone: Vec<(Digest, u64)> = match act {
                Act::Look => {
                    let is_gone = |(digest, _): &(&Digest, &u64)| !left.contains(*digest);
                    let gone = blobs.iter().filter(is_gone);
                    gone.map(|(digest, bytes)| (*digest, *bytes)).collect()
                }
                Act::Remove => self
                    .remove_unneeded(blobs.keys().copied(), others)?
                    .into_iter()
                    .map(|removed| (removed.digest, removed.freed_bytes))
                    .collect(),
            };
            pruned
                .removed
                .extend(gone.iter().map(|(digest, bytes)| Item {
                    kind: ItemKind::Blob,
                    name: digest.to_string(),
                    freed_bytes: *bytes,
                }));
            pruned.left_bytes = blobs.values().sum::<u64>()
                - gone
                    .iter()
                    .filter_map(|(digest, _)| blobs.get(digest))
                    .sum::<u64>();
        } else {
            pruned.left_bytes = blobs.values().sum();
        }
        Ok(pruned)
    }

    /// Every blob, and what it takes of the disk in bytes, with what was made of it.
    pub(super) fn blobs(&self) -> Result<BTreeMap<Digest, u64>, StoreError> {
        let mut blobs = BTreeMap::new();
        for algorithm in ["sha256", "sha512"] {
            let directory = self.path("blobs").join(algorithm);
            for name in files::names(&directory)? {
                // What has no digest for a name is no blob, and not ours to remove.
                if let Ok(digest) = format!("{algorithm}:{name}").parse() {
                    blobs.insert(digest, allocated(&directory.join(name))?);
                }
            }
        }
        for digest in self.derived()? {
            *blobs.entry(digest).or_default() += self.raw_allocated_bytes(&digest)?;
        }
        Ok(blobs)
    }

    /// Forgets the references that `policy` names and nobody needs. Returns them, and those of
    /// `blobs` that something still names.
    fn forget(
        &self,
        policy: &Policy,
        blobs: &BTreeMap<Digest, u64>,
        others: &[Use],
        now: SystemTime,
        act: Act,
    ) -> Result<(Vec<Item>, BTreeSet<Digest>), StoreError> {
        // Whoever finds his reference as it was takes it as used under this lock.
        let _lock = match act {
            Act::Look => None,
            Act::Remove => Some(self.lock_references()?),
        };
        let leased = self.live_leases()?;
        let mut references = self.references_by_use()?;
        references.sort_by_key(|(_, used_at)| *used_at);
        let uses = [&self.instance_uses()?, others].concat();
        let mut held = Held::by(references.iter().map(|(reference, _)| reference));
        let needed: BTreeSet<Digest> = uses.iter().flat_map(Use::digests).chain(leased).collect();
        let mut room = Room::of(blobs, needed, &references);
        let mut forgotten = Vec::new();
        for (reference, used_at) in &references {
            let is_old = policy
                .older_than
                .is_some_and(|age| is_older(*used_at, age, now));
            let is_too_much = policy
                .keep_bytes
                .is_some_and(|most| room.taken_bytes > most);
            if !(is_old || is_too_much) || !held.users(reference, &uses).is_empty() {
                continue;
            }
            held.forget(reference);
            room.forget(reference);
            let path = self.named_reference_path(&reference.reference);
            forgotten.push(Item {
                kind: ItemKind::Image,
                name: reference.reference.clone(),
                freed_bytes: 0,
            });
            if act == Act::Remove {
                files::remove(&path)?;
            }
        }
        if act == Act::Remove && !forgotten.is_empty() {
            self.export()?;
        }
        Ok((forgotten, room.left()))
    }

    fn prune_partials(
        &self,
        age: Duration,
        now: SystemTime,
        act: Act,
    ) -> Result<Vec<Item>, StoreError> {
        // Nobody resumes one of these.
        let drafts = self.remove_raw_drafts(|_| true, act)?.into_iter();
        let mut removed: Vec<Item> = drafts
            .map(|(digest, freed_bytes)| Item {
                kind: ItemKind::Partial,
                name: digest.to_string(),
                freed_bytes,
            })
            .collect();
        for name in files::names(&self.path("ingest"))? {
            let directory = self.path("ingest").join(&name);
            let Ok(digest) = name.replacen('-', ":", 1).parse::<Digest>() else {
                continue;
            };
            if files::is_held(&directory.join("lock"))? {
                continue;
            }
            let data = fs::symlink_metadata(directory.join("data")).ok();
            let may_be_resumed = data.as_ref().is_some_and(|data| {
                let is_young = data.modified().is_ok_and(|at| !is_older(at, age, now));
                data.len() > 0 && is_young && !self.blob_path(&digest).exists()
            });
            if may_be_resumed {
                continue;
            }
            if act == Act::Remove {
                self.remove_partials([digest])?;
                if directory.exists() {
                    // Somebody has just begun to fetch it.
                    continue;
                }
            }
            removed.push(Item {
                kind: ItemKind::Partial,
                name: digest.to_string(),
                freed_bytes: data.map_or(0, |data| data.blocks() * 512),
            });
        }
        Ok(removed)
    }

    fn prune_leases(&self, act: Act) -> Result<Vec<Item>, StoreError> {
        let _collecting = match act {
            Act::Look => None,
            // No lease is half written then.
            Act::Remove => Lock::exclusive(&self.path("gc.lock"), Wait::ForEver)?,
        };
        let mut removed = Vec::new();
        for name in files::names(&self.path("leases"))? {
            let path = self.path("leases").join(&name);
            if files::is_held(&path)? {
                continue;
            }
            removed.push(Item {
                kind: ItemKind::Lease,
                freed_bytes: allocated(&path)?,
                name,
            });
            if act == Act::Remove {
                files::remove(&path)?;
            }
        }
        Ok(removed)
    }

    fn prune_leftovers(&self, act: Act) -> Result<Vec<Item>, StoreError> {
        let mut removed = Vec::new();
        for name in files::names(&self.path("tmp"))? {
            let path = self.path("tmp").join(&name);
            let Ok(metadata) = fs::symlink_metadata(&path) else {
                continue;
            };
            let is_left = match () {
                // Half made by somebody who holds it until it has its name: `files::replace`, or
                // `files::scratch_dir`.
                () if name.starts_with(".tmp") => {
                    let is_ours = metadata.is_file() || metadata.is_dir();
                    is_ours && !files::is_held(&path)?
                }
                () => name.starts_with(ON_ITS_WAY_OUT),
            };
            if !is_left {
                continue;
            }
            removed.push(Item {
                kind: ItemKind::Leftover,
                freed_bytes: allocated(&path)?,
                name,
            });
            match act {
                Act::Look => {}
                Act::Remove if metadata.is_dir() => files::remove_tree(&path)?,
                Act::Remove => files::remove(&path)?,
            }
        }
        Ok(removed)
    }
}

/// What blobs take of the disk, as references are forgotten.
struct Room<'a> {
    blobs: &'a BTreeMap<Digest, u64>,
    /// What is needed whichever references there are.
    needed: BTreeSet<Digest>,
    /// How many references name each digest.
    named: BTreeMap<Digest, usize>,
    /// What the blobs take that are needed or named.
    taken_bytes: u64,
}

impl<'a> Room<'a> {
    fn of(
        blobs: &'a BTreeMap<Digest, u64>,
        needed: BTreeSet<Digest>,
        references: &[(StoredReference, SystemTime)],
    ) -> Self {
        let mut named = BTreeMap::new();
        for (reference, _) in references {
            for digest in reference.digests().collect::<BTreeSet<Digest>>() {
                *named.entry(digest).or_default() += 1;
            }
        }
        let mut room = Self {
            blobs,
            needed,
            named,
            taken_bytes: 0,
        };
        let left = room.left();
        let taken = left.iter().filter_map(|digest| blobs.get(digest));
        room.taken_bytes = taken.sum();
        room
    }

    fn forget(&mut self, reference: &StoredReference) {
        for digest in reference.digests().collect::<BTreeSet<Digest>>() {
            let count = self.named.entry(digest).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 && !self.needed.contains(&digest) {
                self.taken_bytes -= self.blobs.get(&digest).copied().unwrap_or(0);
            }
        }
    }

    /// The blobs that are needed or named.
    fn left(&self) -> BTreeSet<Digest> {
        let is_named = |digest: &Digest| self.named.get(digest).is_some_and(|count| *count > 0);
        let blobs = self.blobs.keys().copied();
        blobs
            .filter(|digest| self.needed.contains(digest) || is_named(digest))
            .collect()
    }
}

/// Tells whether `at` is at least `age` before `now`; what is yet to come is not.
fn is_older(at: SystemTime, age: Duration, now: SystemTime) -> bool {
    now.duration_since(at).is_ok_and(|since| since >= age)
}

/// What a file, or a directory with what is in it, takes of the disk in bytes; nothing if it is
/// gone.
pub(super) fn allocated(path: &Path) -> Result<u64, FileError> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        result => result.map_err(FileError::of("look at", path))?,
    };
    let mut bytes = metadata.blocks() * 512;
    if metadata.is_dir() {
        for name in files::names(path)? {
            bytes += allocated(&path.join(name))?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
