//! VMs as domains of libvirt's QEMU driver, found by their UUID: a domain that somebody else made
//! is never touched, whatever its name.
//!
//! Every call has a connection of its own. One costs a millisecond on a local socket, none is ever
//! stale, and nobody has to drive libvirt's event loop. All of it is on blocking threads.

mod capabilities;
mod connection;
mod console;
mod devices;
mod element;
mod known;
mod os;
pub mod xml;
#[cfg(test)]
mod properties;

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use virt::domain::{
    Domain, DomainPausedReason, DomainState as VirtState, DomainStateReason, DomainStateReasonEnum,
};
use virt::enumutil::Enum;
use virt::error::Error as VirtError;

use crate::domain::{DomainName, DomainSpec};
use crate::hypervisor::libvirt::connection::{Attempt, Connection, Uri};
use crate::hypervisor::{
    Console, Defined, DomainState, Hypervisor, HypervisorError, IfRunning, Known, RunsAs, Stop,
    Trouble,
};
use crate::oci::Printable;

/// Time between two looks at a VM that is to stop.
const STOP_POLL: Duration = Duration::from_millis(100);

/// libvirt on this host.
#[derive(Debug, Clone, Copy)]
pub struct Libvirt {
    uri: Uri,
}

impl Libvirt {
    /// Takes `qemu:///system` or `qemu:///session`; connects when first asked for something.
    pub fn open(uri: &str) -> Result<Self, HypervisorError> {
        [Uri::System, Uri::Session]
            .into_iter()
            .find(|known| known.as_str() == uri)
            .map(|uri| Self { uri })
            .ok_or_else(|| HypervisorError::Uri {
                uri: Printable(uri).to_string(),
            })
    }

    /// The XML document that [`Hypervisor::define`] would define.
    pub async fn xml(&self, spec: &DomainSpec) -> Result<String, HypervisorError> {
        xml::render(spec, self.runs_as().await?)
    }

    /// The version of the daemon that answers.
    pub async fn version(&self) -> Result<String, HypervisorError> {
        let version = |connection: Connection| {
            let version = connection.handle.lib_version();
            version.map_err(|error| connection.lost(&error))
        };
        let version = self.connected(version).await?;
        let (major, minor, release) = (version / 1_000_000, version / 1000 % 1000, version % 1000);
        Ok(format!("{major}.{minor}.{release}"))
    }

    /// Runs `work` with a connection, on a thread of its own that has ended when this returns.
    ///
    /// What libvirt's libraries keep for a thread is freed at the thread's end. On one of the
    /// runtime's that may be while the program ends and the same libraries free all they have,
    /// which crashed one of some hundred programs.
    async fn connected<T: Send + 'static>(
        &self,
        work: impl FnOnce(Connection) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let uri = self.uri;
        let runtime = Handle::current();
        let on_own_thread = move || {
            let work = move || {
                let _entered = runtime.enter();
                work(Connection::open(uri)?)
            };
            let thread = thread::Builder::new()
                .name("libvirt".to_owned())
                .spawn(work);
            let thread = thread.map_err(|error| uri.lacking(&error))?;
            thread.join().unwrap_or_else(|panic| resume_unwind(panic))
        };
        spawn_blocking(on_own_thread)
            .await
            // Nobody cancels it, so it panicked.
            .unwrap_or_else(|error| resume_unwind(error.into_panic()))
    }

    /// Runs `work`, which is to `action` the VM, with its domain if there is one.
    async fn with_domain<T: Send + 'static>(
        &self,
        spec: &DomainSpec,
        action: &'static str,
        work: impl FnOnce(&Attempt, Option<Domain>) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        self.with_uuid((&spec.name, spec.uuid.as_str()), action, work)
            .await
    }

    /// The same, for a VM of which only name and identifier are known.
    async fn with_uuid<T: Send + 'static>(
        &self,
        (name, uuid): (&DomainName, &str),
        action: &'static str,
        work: impl FnOnce(&Attempt, Option<Domain>) -> Result<T, HypervisorError> + Send + 'static,
    ) -> Result<T, HypervisorError> {
        let (name, uuid) = (name.clone(), uuid.to_owned());
        self.connected(move |connection| {
            let attempt = Attempt {
                connection,
                action,
                name,
            };
            let found = attempt
                .connection
                .handle
                .lookup_domain_by_uuid_string(&uuid);
            let domain = attempt.known(found)?;
            work(&attempt, domain)
        })
        .await
    }
}

#[async_trait]
impl Hypervisor for Libvirt {
    fn name(&self) -> String {
        self.uri.as_str().to_owned()
    }

    async fn runs_as(&self) -> Result<RunsAs, HypervisorError> {
        let is_root = rustix::process::geteuid().is_root();
        // Root's session is the system's daemon.
        if self.uri == Uri::Session && !is_root {
            return Ok(RunsAs::Caller);
        }
        let capabilities = |connection: Connection| {
            let capabilities = connection.handle.capabilities();
            capabilities.map_err(|error| connection.lost(&error))
        };
        let capabilities = self.connected(capabilities).await?;
        Ok(match (capabilities::qemu_user(&capabilities), self.uri) {
            (Some(owner), _) if is_root => RunsAs::Given(owner),
            // Nobody but root can give files away; libvirt can.
            (owner, Uri::System) => RunsAs::Lent(owner),
            (_, Uri::Session) => RunsAs::Caller,
        })
    }

    async fn define(&self, spec: &DomainSpec) -> Result<Defined, HypervisorError> {
        let document = self.xml(spec).await?;
        let uuid = spec.uuid.clone();
        let plan_digest = xml::plan_digest(spec)?;
        self.with_domain(spec, "define", move |attempt, domain| {
            if let Some(domain) = domain {
                let notes = attempt.described(known::notes(&domain))?;
                let is_same = notes.and_then(|notes| notes.plan_digest) == Some(plan_digest);
                // One that libvirt keeps in memory only would be gone when it stops.
                if is_same && attempt.done(domain.is_persistent())? {
                    return Ok(Defined::Already);
                }
                if !is_same && attempt.done(domain.is_active())? {
                    let domain = attempt.name.clone();
                    return Err(HypervisorError::RunsOtherwise { domain });
                }
            }
            let libvirt = &attempt.connection.handle;
            if let Some(domain) =
                attempt.known(libvirt.lookup_domain_by_name(attempt.name.as_str()))?
            {
                let its_uuid = attempt.done(domain.uuid_string())?;
                if !its_uuid.eq_ignore_ascii_case(uuid.as_str()) {
                    return Err(HypervisorError::ForeignDomain {
                        domain: attempt.name.clone(),
                    });
                }
            }
            // Validated, because libvirt ignores what it does not know: a domain without its
            // firmware's format, say, would be defined and hang.
            let flags = virt::sys::VIR_DOMAIN_DEFINE_VALIDATE;
            attempt.done(libvirt.define_domain_xml_flags(&document, flags))?;
            Ok(Defined::Now)
        })
        .await
    }

    async fn start(&self, spec: &DomainSpec) -> Result<(), HypervisorError> {
        let log = spec.console_log();
        self.with_domain(spec, "start", move |attempt, domain| {
            let domain = attempt.required(domain)?;
            let running = || HypervisorError::Running {
                domain: attempt.name.clone(),
            };
            if attempt.done(domain.is_active())? {
                return Err(running());
            }
            begin_log(&log)?;
            domain.create().map_err(|error| {
                // Somebody else was faster.
                if domain.is_active() == Ok(true) {
                    running()
                } else {
                    attempt.failed(&error)
                }
            })
        })
        .await
    }

    async fn state(&self, spec: &DomainSpec) -> Result<DomainState, HypervisorError> {
        self.with_domain(spec, "tell the state of", |attempt, domain| match domain {
            None => Ok(DomainState::Unknown),
            Some(domain) => {
                let state = attempt.known(state_of(&domain))?;
                Ok(state.map_or(DomainState::Unknown, |(state, _)| state))
            }
        })
        .await
    }

    async fn trouble(&self, spec: &DomainSpec) -> Result<Option<Trouble>, HypervisorError> {
        self.with_domain(spec, "tell the state of", |attempt, domain| {
            let Some(domain) = domain else {
                return Ok(None);
            };
            let state = attempt.known(state_of(&domain))?;
            Ok(state.and_then(|(_, reason)| trouble(reason)))
        })
        .await
    }

    async fn stop(&self, spec: &DomainSpec, how: Stop) -> Result<(), HypervisorError> {
        self.with_domain(spec, "stop", move |attempt, domain| {
            let Some(domain) = domain else { return Ok(()) };
            if !attempt.done(domain.is_active())? {
                return Ok(());
            }
            let stopped = match how {
                Stop::Graceful(_) => domain.shutdown(),
                Stop::Force => domain.destroy(),
            };
            stopped.or_else(|error| {
                // It may have ended by itself meanwhile.
                if domain.is_active() == Ok(false) {
                    Ok(())
                } else {
                    Err(attempt.failed(&error))
                }
            })
        })
        .await?;
        match how {
            Stop::Force => Ok(()),
            Stop::Graceful(patience) => {
                timeout(patience, self.stopped(spec))
                    .await
                    .unwrap_or_else(|_| {
                        Err(HypervisorError::StopTimeout {
                            domain: spec.name.clone(),
                            seconds: patience.as_secs(),
                        })
                    })
            }
        }
    }

    async fn undefine(&self, spec: &DomainSpec) -> Result<(), HypervisorError> {
        self.with_domain(spec, "undefine", |attempt, domain| {
            let Some(domain) = domain else { return Ok(()) };
            if attempt.done(domain.is_active())? {
                // libvirt would let it run on, as a domain that is gone once it stops.
                return Err(HypervisorError::Running {
                    domain: attempt.name.clone(),
                });
            }
            undefine(attempt, &domain)
        })
        .await
    }

    async fn known(&self) -> Result<Vec<Known>, HypervisorError> {
        self.connected(|connection| known::known(&connection)).await
    }

    async fn evict(
        &self,
        name: &DomainName,
        uuid: &str,
        if_running: IfRunning,
    ) -> Result<(), HypervisorError> {
        self.with_uuid((name, uuid), "undefine", move |attempt, domain| {
            let Some(domain) = domain else { return Ok(()) };
            if attempt.done(domain.is_active())? {
                if if_running == IfRunning::Fail {
                    return Err(HypervisorError::Running {
                        domain: attempt.name.clone(),
                    });
                }
                attempt.done(domain.destroy())?;
            }
            // One that libvirt had in memory only is gone by now.
            undefine(attempt, &domain)
        })
        .await
    }

    async fn console(&self, spec: &DomainSpec) -> Result<Console, HypervisorError> {
        self.with_domain(spec, "open the console of", |attempt, domain| {
            let domain = attempt.required(domain)?;
            if !attempt.done(domain.is_active())? {
                return Err(HypervisorError::NotRunning {
                    domain: attempt.name.clone(),
                });
            }
            console::open(attempt, &domain)
        })
        .await
    }
}

impl Libvirt {
    /// Waits until the VM does not run.
    async fn stopped(&self, spec: &DomainSpec) -> Result<(), HypervisorError> {
        loop {
            match self.state(spec).await? {
                DomainState::Unknown | DomainState::Stopped => return Ok(()),
                DomainState::Running | DomainState::Paused => sleep(STOP_POLL).await,
            }
        }
    }
}

/// Undefines a domain, which may be gone by now, with all that libvirt keeps for it. Its firmware's
/// variables are in the VM's directory, which is the caller's to delete; any other file that an edited
/// document names for them is none of ours.
fn undefine(attempt: &Attempt, domain: &Domain) -> Result<(), HypervisorError> {
    let flags = virt::sys::VIR_DOMAIN_UNDEFINE_KEEP_NVRAM
        | virt::sys::VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
        | virt::sys::VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
        | virt::sys::VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;
    attempt.known(domain.undefine_flags(flags))?;
    Ok(())
}

/// Asks libvirt for the state of a domain, and why it is in it.
fn state_of(domain: &Domain) -> Result<(DomainState, DomainStateReasonEnum), VirtError> {
    let (state, reason) = domain.state()?;
    // The crate drops the call's error and returns a state that there is not.
    let state = state.known().ok_or_else(VirtError::last_error)?;
    let state = match state {
        VirtState::Running | VirtState::Blocked | VirtState::Shutdown => DomainState::Running,
        VirtState::Shutoff | VirtState::Crashed => DomainState::Stopped,
        VirtState::Paused if is_passing(reason) => DomainState::Running,
        VirtState::Paused | VirtState::PMSuspended | VirtState::NoState => DomainState::Paused,
    };
    Ok((state, reason))
}

/// Tells whether libvirt itself has paused the VM, on its way up or down.
fn is_passing(reason: DomainStateReasonEnum) -> bool {
    let Enum::Known(DomainStateReason::Paused(reason)) = reason else {
        return false;
    };
    reason.is(DomainPausedReason::StartingUp) || reason.is(DomainPausedReason::ShuttingDown)
}

/// Tells what a VM suffers from that neither libvirt nor anybody else has paused on purpose.
fn trouble(reason: DomainStateReasonEnum) -> Option<Trouble> {
    let Enum::Known(DomainStateReason::Paused(Enum::Known(reason))) = reason else {
        return None;
    };
    let words = match reason {
        // What libvirt makes of an error inside of KVM.
        DomainPausedReason::Unknown => {
            let words = "QEMU has stopped it for a reason unknown to libvirt";
            return Some(Trouble::Internal(words.to_owned()));
        }
        DomainPausedReason::IOError => "QEMU has stopped it after an error of its disk",
        DomainPausedReason::Watchdog => "its watchdog has stopped it",
        DomainPausedReason::Crashed => "its system has crashed",
        DomainPausedReason::PostCopyFailed => "its migration has failed",
        DomainPausedReason::APIError => "libvirt has failed to let it go on",
        DomainPausedReason::User
        | DomainPausedReason::Migration
        | DomainPausedReason::Save
        | DomainPausedReason::Dump
        | DomainPausedReason::FromSnapshot
        | DomainPausedReason::ShuttingDown
        | DomainPausedReason::Snapshot
        | DomainPausedReason::StartingUp
        | DomainPausedReason::PostCopy => return None,
    };
    Some(Trouble::OfTheVm(words))
}

/// Removes what earlier starts printed and makes an empty file for the next, ours to read: libvirt's
/// logger would make it root's.
fn begin_log(log: &Path) -> Result<(), HypervisorError> {
    let in_log = |source| HypervisorError::Io {
        path: log.to_owned(),
        source,
    };
    remove(log).map_err(in_log)?;
    // The logger rolls a log of 2 MiB to `console.log.0`, that one to `console.log.1`, and so on.
    for number in 0.. {
        let mut rolled = log.as_os_str().to_owned();
        rolled.push(format!(".{number}"));
        if !remove(Path::new(&rolled)).map_err(in_log)? {
            break;
        }
    }
    fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(log)
        .map_err(in_log)?;
    Ok(())
}

/// Removes a file; tells whether it was there.
fn remove(file: &Path) -> io::Result<bool> {
    match fs::remove_file(file) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_hosts_qemu_is_opened() {
        for uri in ["qemu:///system", "qemu:///session"] {
            assert_eq!(Libvirt::open(uri).unwrap().name(), uri);
        }
        for uri in [
            "",
            "qemu:///",
            "qemu:///system?socket=/tmp/x",
            "qemu+ssh://host/system",
            "qemu+ext:///system?command=/bin/sh",
            "xen:///system",
            "test:///default",
            "QEMU:///system",
        ] {
            let error = Libvirt::open(uri).unwrap_err();
            assert!(matches!(error, HypervisorError::Uri { uri: shown } if shown == uri));
        }
    }

    #[test]
    fn a_pause_is_trouble_unless_somebody_has_asked_for_it() {
        let check = |reason, expected| {
            let reason = Enum::Known(DomainStateReason::Paused(Enum::Known(reason)));
            assert_eq!(trouble(reason), expected);
        };
        let unknown = "QEMU has stopped it for a reason unknown to libvirt";
        check(
            DomainPausedReason::Unknown,
            Some(Trouble::Internal(unknown.to_owned())),
        );
        check(
            DomainPausedReason::IOError,
            Some(Trouble::OfTheVm(
                "QEMU has stopped it after an error of its disk",
            )),
        );
        check(DomainPausedReason::User, None);
        check(DomainPausedReason::StartingUp, None);
        check(DomainPausedReason::ShuttingDown, None);
        check(DomainPausedReason::Migration, None);
        assert_eq!(trouble(Enum::Unknown(77)), None);
        let paused = DomainStateReason::Paused(Enum::Unknown(77));
        assert_eq!(trouble(Enum::Known(paused)), None);
    }

    #[test]
    fn a_new_log_is_empty_and_ours_and_the_rolled_ones_are_gone() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("console.log");
        for name in ["console.log", "console.log.0", "console.log.1", "other.0"] {
            fs::write(directory.path().join(name), "old").unwrap();
        }
        for _ in 0..2 {
            begin_log(&log).unwrap();
            assert_eq!(fs::read(&log).unwrap(), b"");
        }
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["console.log", "other.0"]);
    }
}
