//! What a VM printed and prints: the console log, followed.

use std::fs::{self, File, Metadata};
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

/// How many of these looks in a row must find nothing of a VM that has stopped: libvirt's log daemon
/// writes a VM's last words a moment after QEMU has ended.
const LAST_LOOKS: u32 = 4;

/// Gives what the VM printed since its last start, as far as libvirt's log daemon has kept it.
pub fn read(
    spec: &DomainSpec,
    sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
) -> Result<(), OpsError> {
    let mut follower = Follower::of(spec.console_log());
    while follower.next(sink)? {}
    Ok(())
}

/// Gives what the VM printed since its last start and goes on until it stops. Errors if something
/// keeps it from running, which would hold it for ever.
pub async fn follow(
    spec: &DomainSpec,
    hypervisor: &dyn Hypervisor,
    sink: &mut (dyn FnMut(&[u8]) -> io::Result<()> + Send),
) -> Result<(), OpsError> {
    let mut follower = Follower::of(spec.console_log());
    let mut looks = 0;
    let mut last_looks = 0;
    loop {
        // The state is asked for before the log is read to its end, so that nothing is missed.
        let has_stopped = last_looks > 0
            || looks % LOOKS_PER_STATE == 0
                && matches!(
                    hypervisor.state(spec).await?,
                    DomainState::Stopped | DomainState::Unknown
                );
        let mut came = false;
        while follower.next(sink)? {
            came = true;
        }
        if has_stopped {
            last_looks = if came { 1 } else { last_looks + 1 };
            if last_looks > LAST_LOOKS {
                return Ok(());
            }
        } else if looks % LOOKS_PER_TROUBLE == LOOKS_PER_TROUBLE - 1 {
            // A hypervisor that does not answer now is asked again.
            let trouble = hypervisor.trouble(spec).await.unwrap_or_default();
            if let Some(trouble) = trouble {
                let (domain, message) = (spec.name.clone(), trouble.to_string());
                return Err(HypervisorError::Trouble { domain, message }.into());
            }
        }
        if !came {
            tokio::time::sleep(POLL).await;
            looks += 1;
        }
    }
}

/// The log as one stream, though libvirt's log daemon moves a full one aside: to `console.log.0`, that
/// one to `console.log.1`, and so on, until the oldest is gone.
#[derive(Debug)]
pub(super) struct Follower {
    log: PathBuf,
    /// The piece that is read, whatever its name is by now.
    piece: Option<File>,
    block: Vec<u8>,
}

impl Follower {
    pub(super) fn of(log: PathBuf) -> Self {
        Self {
            log,
            piece: None,
            block: vec![0; 64 << 10],
        }
    }

    /// Gives the next bytes to `sink`; false if there are none now.
    pub(super) fn next(
        &mut self,
        sink: &mut dyn FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<bool, OpsError> {
        if self.give(sink)? {
            return Ok(true);
        }
        let Some(successor) = self.successor()? else {
            return Ok(false);
        };
        // What came between the look at its end and its being moved aside.
        while self.give(sink)? {}
        self.piece = Some(successor);
        Ok(true)
    }

    /// Gives what is left of the piece that is read; false if it is at its end.
    fn give(&mut self, sink: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> Result<bool, OpsError> {
        let Some(piece) = &mut self.piece else {
            return Ok(false);
        };
        let count = piece
            .read(&mut self.block)
            .map_err(FileError::of("read", &self.log))?;
        sink(&self.block[..count]).map_err(OpsError::Output)?;
        Ok(count > 0)
    }

    /// The piece that comes after the one that is read; the oldest after none, or after one that is
    /// not kept any more.
    fn successor(&self) -> Result<Option<File>, OpsError> {
        let identity = |metadata: &Metadata| (metadata.dev(), metadata.ino());
        let in_log = |error| FileError::of("look at", &self.log)(error);
        let mut current = None;
        if let Some(piece) = &self.piece {
            let metadata = piece.metadata().map_err(in_log)?;
            if metadata.nlink() > 0 {
                current = Some(identity(&metadata));
            }
        }
        if let Some(current) = current
            && fs::metadata(&self.log).is_ok_and(|newest| identity(&newest) == current)
        {
            return Ok(None);
        }
        let mut pieces = Vec::new();
        for path in pieces_of(&self.log)? {
            match File::open(&path) {
                // Just about to be moved on.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                result => pieces.push(result.map_err(FileError::of("open", &path))?),
            }
        }
        let Some(current) = current else {
            return Ok(pieces.into_iter().next());
        };
        let mut pieces = pieces.into_iter();
        for piece in pieces.by_ref() {
            if identity(&piece.metadata().map_err(in_log)?) == current {
                return Ok(pieces.next());
            }
        }
        // It has a name, so it is being moved, and is seen at the next look.
        Ok(None)
    }
}

/// The pieces of the log that are there, oldest first.
fn pieces_of(log: &Path) -> Result<Vec<PathBuf>, OpsError> {
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn all(follower: &mut Follower) -> String {
        let mut all = Vec::new();
        let mut sink = |bytes: &[u8]| {
            all.extend_from_slice(bytes);
            Ok(())
        };
        while follower.next(&mut sink).unwrap() {}
        String::from_utf8(all).unwrap()
    }

    #[test]
    fn pieces_are_read_from_the_oldest_on() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        for (name, text) in [("", "c"), (".0", "b"), (".1", "a"), (".x", "no")] {
            fs::write(format!("{}{name}", log.display()), text).unwrap();
        }
        assert_eq!(all(&mut Follower::of(log)), "abc");
    }

    #[test]
    fn a_log_that_is_moved_aside_is_followed_into_all_its_successors() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        let rolled = |number: u32| PathBuf::from(format!("{}.{number}", log.display()));
        // As libvirt's log daemon does it, which keeps three.
        let roll = || {
            for number in [1, 0] {
                if rolled(number).exists() {
                    fs::rename(rolled(number), rolled(number + 1)).unwrap();
                }
            }
            fs::rename(&log, rolled(0)).unwrap();
        };
        let mut follower = Follower::of(log.clone());
        assert_eq!(all(&mut follower), "");
        fs::write(&log, "one ").unwrap();
        assert_eq!(all(&mut follower), "one ");
        // Its last words come after it was read to its end.
        let mut end = File::options().append(true).open(&log).unwrap();
        roll();
        assert_eq!(all(&mut follower), "");
        end.write_all(b"end ").unwrap();
        for text in ["two ", "three "] {
            fs::write(&log, text).unwrap();
            roll();
        }
        fs::write(&log, "four ").unwrap();
        assert_eq!(all(&mut follower), "end two three four ");
        // One that has fallen too far behind goes on with what is left.
        for text in ["a", "b", "c", "d", "e"] {
            roll();
            fs::write(&log, text).unwrap();
        }
        assert_eq!(all(&mut follower), "bcde");
    }
}
