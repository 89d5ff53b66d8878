//! The directory of one VM: what it writes, and the record of what it is.
//!
//! ```text
//! <store>/instances/<name>/record.json    what was prepared: complete, or the directory is not there
//!                          disk-0.qcow2   overlay of the image's disk
//!                          vars.fd        copy of the firmware's variable store
//!                          fw_cfg-<hash>  what the guest is given, 0600
//!                          kernel, …      what libvirt may give away while the VM runs: copies
//!                          console.log    what the guest printed since its last start
//!                          console.in     what is typed (QEMU)
//!                          qemu.log, qmp.sock, qemu.pid
//!                          run.lock       held by the `run` whose instance this is, while it lives
//!                  .new-*                 being made, or left by a crash
//!                  .gone-*                being removed, or left by a crash
//!                  .<name>.lock           held by whoever makes or removes the instance
//! <store>/instances.lock                  shared by all who do; exclusive to clear after a crash
//! ```

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::domain::{DomainName, DomainSpec};
use crate::files::{self, FileError, Lock, Wait};
use crate::signature::Signature;

/// The instances of one store.
#[derive(Debug, Clone)]
pub struct Instances {
    root: PathBuf,
}

/// What an instance is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Version of this form: 1.
    pub schema_version: u32,
    /// The VM.
    pub spec: DomainSpec,
    /// The hypervisor that knows it; none if it was only prepared for somebody else's.
    pub hypervisor: Option<String>,
    /// Whether it goes away with the `run` that made it.
    pub ephemeral: bool,
    /// Whether its accelerator was asked for by name, so that no other is tried.
    #[serde(default)]
    pub accelerator_asked: bool,
    /// Why it has the accelerator that it has.
    #[serde(default)]
    pub accelerator_reason: String,
    /// The signatures by which its image was trusted, to be judged again at each start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
}

/// The lock of a name; its file goes with it unless there is an instance.
#[derive(Debug)]
pub struct NameLock {
    _lock: Lock,
    path: PathBuf,
    directory: PathBuf,
}

/// Who may pass through an instance's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Its owner alone: QEMU is a process of his.
    Owner,
    /// Everybody, and nobody may list it: a hypervisor that runs as another user reaches the files
    /// that it is told of, if they are its own.
    Everybody,
}

/// An instance that is being made; dropped before [`Draft::commit`], it leaves nothing.
#[derive(Debug)]
pub struct Draft {
    directory: tempfile::TempDir,
    _busy: Option<Lock>,
}

/// Why an instance could not be made, read or removed.
#[derive(Debug, Error)]
pub enum InstanceError {
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// There is none of that name.
    #[error("there is no instance: {name}")]
    None {
        /// The name.
        name: DomainName,
        /// One that there is and that may be meant.
        close: Option<DomainName>,
    },
    /// There is another one of that name.
    #[error("there is an instance {name} already, and it is different: {difference}")]
    Different {
        /// The name.
        name: DomainName,
        /// In what it is different.
        difference: &'static str,
    },
    /// Something has its directory's place.
    #[error("instance {name} has a directory already, without a record")]
    NoRecord {
        /// The name.
        name: DomainName,
    },
    /// Somebody else is making or removing it.
    #[error("another ironboot is busy with instance {name}")]
    Busy {
        /// The name.
        name: DomainName,
    },
    /// The record is damaged.
    #[error("record is damaged: {path}")]
    Record {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        #[source]
        source: serde_json::Error,
    },
}

/// Largest record that is read, in bytes.
const MAX_RECORD_BYTES: u64 = 1 << 20;

impl Instances {
    /// Names the instances in directory `root`; touches nothing.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// The directory that the instance `name` has or would have.
    #[must_use]
    pub fn directory(&self, name: &DomainName) -> PathBuf {
        self.root.join(name.as_str())
    }

    /// Locks the name against everybody else who would make or remove the instance.
    pub fn lock(&self, name: &DomainName, wait: Wait) -> Result<NameLock, InstanceError> {
        files::create_dir(&self.root, 0o711)?;
        let path = self.root.join(format!(".{name}.lock"));
        let lock = Lock::exclusive(&path, wait)?;
        Ok(NameLock {
            _lock: lock.ok_or_else(|| InstanceError::Busy { name: name.clone() })?,
            path,
            directory: self.directory(name),
        })
    }

    /// The record of `name`; none if there is no such instance.
    pub fn find(&self, name: &DomainName) -> Result<Option<Record>, InstanceError> {
        let path = self.directory(name).join("record.json");
        files::read_small(&path, MAX_RECORD_BYTES)?
            .map(|json| {
                serde_json::from_slice(&json)
                    .map_err(|source| InstanceError::Record { path, source })
            })
            .transpose()
    }

    /// Tells whether the record of `name`, damaged as it may be, has `text` in it.
    pub fn mentions(&self, name: &DomainName, text: &str) -> Result<bool, InstanceError> {
        let path = self.directory(name).join("record.json");
        let record = files::read_small(&path, MAX_RECORD_BYTES)?.unwrap_or_default();
        Ok(String::from_utf8_lossy(&record).contains(text))
    }

    /// The record of `name`. Errors if there is no such instance.
    pub fn get(&self, name: &DomainName) -> Result<Record, InstanceError> {
        self.find(name)?.ok_or_else(|| self.none(name))
    }

    /// The error that there is no `name`.
    #[must_use]
    pub fn none(&self, name: &DomainName) -> InstanceError {
        let distance = |other: &DomainName| strsim::osa_distance(name.as_str(), other.as_str());
        // Names that can not be read are none that could be meant.
        let names = self.names().unwrap_or_default().into_iter();
        let close = names.min_by_key(distance);
        InstanceError::None {
            name: name.clone(),
            // One slip in three letters.
            close: close.filter(|close| distance(close) <= name.as_str().len().div_ceil(3)),
        }
    }

    /// Replaces the record of an instance that is there.
    pub fn update(&self, record: &Record) -> Result<(), InstanceError> {
        let directory = self.directory(&record.spec.name);
        let json = to_json(record, &directory)?;
        Ok(files::replace(
            &directory.join("record.json"),
            &json,
            &directory,
        )?)
    }

    /// The names of all instances, sorted.
    pub fn names(&self) -> Result<Vec<DomainName>, InstanceError> {
        let names = files::names(&self.root)?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Starts making an instance.
    pub fn draft(&self) -> Result<Draft, InstanceError> {
        let _busy = self.busy()?;
        let directory = tempfile::Builder::new()
            .prefix(".new-")
            .tempdir_in(&self.root)
            .map_err(FileError::of("create a directory in", &self.root))?;
        Ok(Draft { directory, _busy })
    }

    /// Says that a directory is being made or removed, so that nobody clears it away.
    fn busy(&self) -> Result<Option<Lock>, InstanceError> {
        files::create_dir(&self.root, 0o711)?;
        Ok(Lock::shared(&self.busy_lock(), Wait::ForEver)?)
    }

    fn busy_lock(&self) -> PathBuf {
        self.root.with_extension("lock")
    }

    /// Removes what crashes and refusals have left: directories half made or half removed, and
    /// locks of names that no instance has.
    pub fn clear(&self) -> Result<(), InstanceError> {
        // Without the lock first: mostly there is nothing, and then nothing is touched.
        if self.left()?.is_empty() {
            return Ok(());
        }
        let Some(_nobody) = Lock::exclusive(&self.busy_lock(), Wait::No)? else {
            return Ok(());
        };
        for name in self.left()? {
            let path = self.root.join(&name);
            if let Some(locked) = locked_name(&name) {
                // Held while it is removed: whoever waits for it takes a new one.
                let lock = Lock::exclusive(&path, Wait::No)?;
                if lock.is_some() && !self.root.join(locked).exists() {
                    files::remove(&path)?;
                }
            } else {
                fs::remove_dir_all(&path).map_err(FileError::of("remove", &path))?;
            }
        }
        Ok(())
    }

    /// What may have been left: every instance has a lock, and the locks of a thousand are not
    /// looked at one by one.
    fn left(&self) -> Result<Vec<String>, FileError> {
        let mut names = files::names(&self.root)?;
        let all: BTreeSet<String> = names.iter().cloned().collect();
        names.retain(|name| match locked_name(name) {
            Some(locked) => !all.contains(locked),
            None => name.starts_with(".new-") || name.starts_with(".gone-"),
        });
        Ok(names)
    }

    /// Takes the lock of the `run` whose instance this is; none if one holds it.
    pub fn lock_run(&self, name: &DomainName) -> Result<Option<Lock>, InstanceError> {
        Ok(Lock::exclusive(&self.run_lock(name), Wait::No)?)
    }

    /// Tells whether `lock`, of [`Instances::lock_run`], is that of the instance that has `name`
    /// now. Somebody may have removed the one it was of, and made another.
    pub fn is_locked_by(&self, name: &DomainName, lock: &Lock) -> Result<bool, InstanceError> {
        Ok(lock.is_of(&self.run_lock(name))?)
    }

    fn run_lock(&self, name: &DomainName) -> PathBuf {
        self.directory(name).join("run.lock")
    }

    /// Removes the instance's directory; the caller holds the name's lock. What is not there is no
    /// error.
    pub fn remove(&self, name: &DomainName) -> Result<(), InstanceError> {
        let _busy = self.busy()?;
        let gone = tempfile::Builder::new()
            .prefix(".gone-")
            .tempdir_in(&self.root)
            .map_err(FileError::of("create a directory in", &self.root))?;
        let directory = self.directory(name);
        // Out of sight in one step, so that a kill leaves an instance whole or not there.
        match fs::rename(&directory, gone.path().join("instance")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(FileError::of("remove", &directory))?,
        }
        files::sync_dir(&self.root)?;
        Ok(files::remove_tree(&gone.keep())?)
    }
}

/// The name that a lock's file is of.
fn locked_name(file: &str) -> Option<&str> {
    file.strip_prefix('.')?.strip_suffix(".lock")
}

impl Drop for NameLock {
    fn drop(&mut self) {
        // Names that no instance has would otherwise leave their files behind for ever. The lock is
        // still held, and whoever waits for it takes a new file; a file that stays does no harm.
        if !self.directory.exists() {
            drop(files::remove(&self.path));
        }
    }
}

impl Draft {
    /// The directory to fill.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Makes the instance appear under its name. Errors if there is one of that name.
    ///
    /// `reach` says who may pass through its directory.
    pub fn commit(
        self,
        instances: &Instances,
        record: &Record,
        reach: Reach,
    ) -> Result<(), InstanceError> {
        let draft = self.path();
        let json = to_json(record, draft)?;
        files::replace(&draft.join("record.json"), &json, draft)?;
        let mode = match reach {
            Reach::Owner => 0o700,
            Reach::Everybody => 0o711,
        };
        fs::set_permissions(draft, fs::Permissions::from_mode(mode))
            .map_err(FileError::of("set the mode of", draft))?;
        let name = &record.spec.name;
        let directory = instances.directory(name);
        match renameat_with(CWD, draft, CWD, &directory, RenameFlags::NOREPLACE) {
            Ok(()) => {}
            Err(rustix::io::Errno::EXIST) => {
                let name = name.clone();
                if instances.find(&name)?.is_none() {
                    return Err(InstanceError::NoRecord { name });
                }
                let difference = "it has just been made";
                return Err(InstanceError::Different { name, difference });
            }
            Err(error) => {
                return Err(FileError::of("create", &directory)(error.into()).into());
            }
        }
        // Renamed away, so there is nothing left to delete under the old name.
        drop(self.directory.keep());
        Ok(files::sync_dir(&instances.root)?)
    }
}

fn to_json(record: &Record, directory: &Path) -> Result<Vec<u8>, InstanceError> {
    serde_json::to_vec_pretty(record).map_err(|source| InstanceError::Record {
        path: directory.join("record.json"),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_crash_left_is_cleared_unless_somebody_is_busy() {
        let directory = tempfile::tempdir().unwrap();
        let instances = Instances::at(directory.path().join("instances"));
        let draft = instances.draft().unwrap();
        let half_removed = directory.path().join("instances/.gone-x");
        fs::create_dir(&half_removed).unwrap();
        instances.clear().unwrap();
        assert!(draft.path().exists() && half_removed.exists());
        drop(draft);
        let [of_none, held, of_one] = ["none", "held", "one"].map(|name| {
            let lock = instances.lock(&name.parse().unwrap(), Wait::No).unwrap();
            (
                directory.path().join(format!("instances/.{name}.lock")),
                lock,
            )
        });
        fs::create_dir(directory.path().join("instances/one")).unwrap();
        drop((of_none.1, of_one.1));
        instances.clear().unwrap();
        assert!(!half_removed.exists());
        assert!(!of_none.0.exists() && held.0.exists() && of_one.0.exists());
        fs::remove_dir(directory.path().join("instances/one")).unwrap();
        assert_eq!(instances.names().unwrap(), []);
    }
}
