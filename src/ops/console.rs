//! What a VM printed and prints: the console log, followed.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::domain::DomainSpec;
use crate::files::{self, FileError};
use crate::hypervisor::{DomainState, Hypervisor, HypervisorError};
use crate::ops::OpsError;

/// How often the log is looked at while nothing comes.
const POLL: Duration = Duration::from_millis(15);
/// How often, in looks at the log, the VM's state is asked for.
const LOOKS_PER_STATE: u32 = 4;
/// How often, likewise, it is asked whether something keeps the VM from running.
const LOOKS_PER_TROUBLE: u32 = 200;

/// Gives what the VM printed since its last start, older pieces first (libvirt's log daemon moves
/// a full log aside, to `console.log.0` and on).
pub fn read(
    spec: &DomainSpec,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), OpsError> {
    for path in pieces(&spec.console_log())? {
        let mut follower = Follower::at(path);
        while follower.next(sink)? {}
    }
    Ok(())
}

/// Gives what the VM printed since its last start and goes on until it stops. Errors if something
/// keeps it from running, which would hold it for ever.
pub async fn follow(
    spec: &DomainSpec,
    hypervisor: &dyn Hypervisor,
    sink: &mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
) -> Result<(), OpsError> {
    let log = spec.console_log();
    for path in pieces(&log)?.iter().filter(|path| **path != log) {
        let mut follower = Follower::at(path.clone());
        while follower.next(sink)? {}
    }
    let mut follower = Follower::at(log);
    let mut looks = 0;
    loop {
        // The state is asked for before the log is read to its end, so that nothing is missed.
        let stopped =
            looks % LOOKS_PER_STATE == 0 && hypervisor.state(spec).await? != DomainState::Running;
        let mut came = false;
        while follower.next(sink)? {
            came = true;
        }
        if !stopped && looks % LOOKS_PER_TROUBLE == LOOKS_PER_TROUBLE - 1 {
            // A hypervisor that does not answer now is asked again.
            let trouble = hypervisor.trouble(spec).await.unwrap_or_default();
            if let Some(trouble) = trouble {
                let (domain, message) = (spec.name.clone(), trouble.to_string());
                return Err(HypervisorError::Trouble { domain, message }.into());
            }
        }
        if stopped {
            return Ok(());
        }
        if !came {
            tokio::time::sleep(POLL).await;
            looks += 1;
        }
    }
}

/// The pieces of the log that are there, oldest first.
fn pieces(log: &Path) -> Result<Vec<PathBuf>, OpsError> {
    let directory = log.parent().unwrap_or(Path::new("/"));
    let mut numbered: Vec<(u32, PathBuf)> = files::names(directory)?
        .iter()
        .filter_map(|name| {
            let number = name.strip_prefix("console.log.")?.parse().ok()?;
            Some((number, directory.join(name)))
        })
        .collect();
    numbered.sort_by(|a, b| b.cmp(a));
    let mut paths: Vec<PathBuf> = numbered.into_iter().map(|(_, path)| path).collect();
    paths.push(log.to_owned());
    Ok(paths)
}

/// A file that is read as it grows; when another takes its name, that one is read from its start.
struct Follower {
    path: PathBuf,
    file: Option<File>,
    block: Vec<u8>,
}

impl Follower {
    fn at(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            block: vec![0; 64 << 10],
        }
    }

    /// Gives the next bytes to `sink`; false if there are none now.
    fn next(&mut self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<bool, OpsError> {
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                result => Some(result.map_err(FileError::of("open", &self.path))?),
            };
        }
        let Some(file) = &mut self.file else {
            return Ok(false);
        };
        let count = file
            .read(&mut self.block)
            .map_err(FileError::of("read", &self.path))?;
        if count > 0 {
            sink(&self.block[..count]).map_err(OpsError::Output)?;
            return Ok(true);
        }
        let same = std::fs::metadata(&self.path)
            .and_then(|named| Ok(named.ino() == file.metadata()?.ino()));
        if same.is_ok_and(|same| !same) {
            self.file = None;
            return Ok(true);
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn pieces_are_read_from_the_oldest_on() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        for (name, text) in [("", "c"), (".0", "b"), (".1", "a"), (".x", "no")] {
            fs::write(format!("{}{name}", log.display()), text).unwrap();
        }
        let mut all = Vec::new();
        for path in pieces(&log).unwrap() {
            let mut follower = Follower::at(path);
            let mut sink = |bytes: &[u8]| {
                all.extend_from_slice(bytes);
                Ok(())
            };
            while follower.next(&mut sink).unwrap() {}
        }
        assert_eq!(all, b"abc");
    }

    #[test]
    fn a_log_that_is_moved_aside_is_followed_into_its_successor() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        let mut follower = Follower::at(log.clone());
        let mut all = Vec::new();
        let mut read = |follower: &mut Follower| {
            let mut sink = |bytes: &[u8]| {
                all.extend_from_slice(bytes);
                Ok(())
            };
            while follower.next(&mut sink).unwrap() {}
        };
        read(&mut follower);
        fs::write(&log, "one ").unwrap();
        read(&mut follower);
        fs::rename(&log, directory.path().join("console.log.0")).unwrap();
        fs::write(&log, "two").unwrap();
        read(&mut follower);
        assert_eq!(all, b"one two");
    }
}
