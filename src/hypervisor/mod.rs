//! What runs VMs: libvirt, or QEMU as a child of our own. Knows [`DomainSpec`] and nothing of
//! images and stores.
//!
//! ```text
//!   unknown ──define──▶ stopped ──start──▶ running ──stop, guest powers off──▶ stopped
//!      ▲                   │                  (paused: libvirt only, on an error of QEMU's)
//!      └─────undefine──────┘
//! ```
//!
//! Everything a VM prints on its first serial port is in [`DomainSpec::console_log`] under both,
//! so reading a console is reading that file; only typing differs.

#[cfg(feature = "libvirt")]
pub mod libvirt;
pub mod qemu;
#[cfg(test)]
pub(crate) mod samples;

use std::fmt;
use std::panic::resume_unwind;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::domain::{Boot, DomainName, DomainSpec, Firmware, Uuid};
use crate::oci::Digest;

/// Something that runs VMs.
#[async_trait]
pub trait Hypervisor: fmt::Debug + Send + Sync {
    /// Its name in records and JSON: a libvirt URI, or `qemu`.
    fn name(&self) -> String;

    /// Tells who QEMU runs as, and how a VM's files become that user's.
    async fn runs_as(&self) -> Result<RunsAs, HypervisorError>;

    /// Makes the VM known, as the spec has it. The same spec again writes nothing; one that runs as
    /// another spec has it is an error.
    async fn define(&self, spec: &DomainSpec) -> Result<Defined, HypervisorError>;

    /// Starts a VM that is known and stopped; one that runs is an error.
    async fn start(&self, spec: &DomainSpec) -> Result<(), HypervisorError>;

    /// Tells what the VM does now.
    async fn state(&self, spec: &DomainSpec) -> Result<DomainState, HypervisorError>;

    /// Tells what keeps a VM that was started from running; nothing does if it runs, has ended or
    /// is held by somebody.
    ///
    /// None is no proof of health: a guest may hang without its hypervisor knowing.
    async fn trouble(&self, spec: &DomainSpec) -> Result<Option<Trouble>, HypervisorError>;

    /// Stops the VM and waits until it has stopped; one that does not run is no error.
    async fn stop(&self, spec: &DomainSpec, how: Stop) -> Result<(), HypervisorError>;

    /// Forgets a stopped VM and what it had outside of its directory; one that is not known is
    /// no error.
    async fn undefine(&self, spec: &DomainSpec) -> Result<(), HypervisorError>;

    /// The VMs that are known to it, whoever made them, and what each does, by one connection; none
    /// to a hypervisor that keeps no list.
    async fn known(&self) -> Result<Vec<Known>, HypervisorError>;

    /// Forgets a VM of which nothing else is left than what [`Hypervisor::known`] told, with its
    /// firmware's variables; one that is not known any more is no error. `name` is for errors.
    async fn evict(
        &self,
        name: &DomainName,
        uuid: &str,
        if_running: IfRunning,
    ) -> Result<(), HypervisorError>;

    /// Opens the console of a running VM for typing.
    async fn console(&self, spec: &DomainSpec) -> Result<Console, HypervisorError>;
}

/// Bytes for a VM's first serial port.
pub type ConsoleInput = mpsc::Sender<Vec<u8>>;

/// The console of a running VM, open for typing.
#[derive(Debug)]
pub struct Console {
    /// Takes what is typed; closed when the VM has stopped.
    pub input: ConsoleInput,
    /// Dropped to end what serves the console.
    open: Option<oneshot::Sender<()>>,
    /// What serves it, if that is not the runtime's.
    threads: Vec<JoinHandle<()>>,
}

impl Console {
    /// One that ends with its last input.
    fn of(input: ConsoleInput) -> Self {
        Self {
            input,
            open: None,
            threads: Vec::new(),
        }
    }

    /// Passes on what was typed and closes the console; what served it has ended when this returns,
    /// or hangs in a call that its hypervisor does not answer.
    pub async fn close(self) {
        drop(self.open);
        drop(self.input);
        let deadline = Instant::now() + CLOSE_PATIENCE;
        while self.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            sleep(CLOSE_POLL).await;
        }
        for thread in self.threads {
            if thread.is_finished() {
                thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            }
        }
    }
}

/// How long a console may take to close.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked at meanwhile.
const CLOSE_POLL: Duration = Duration::from_millis(2);

/// What was done to make a VM known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Defined {
    /// It was defined now, or again.
    Now,
    /// It was there, and the same.
    Already,
}

/// What to do with a VM that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfRunning {
    /// Leave it, and fail.
    Fail,
    /// Pull its plug.
    Stop,
}

/// A VM that a hypervisor knows, whoever made it, and what it names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Its identifier.
    pub uuid: String,
    /// What it does.
    pub state: DomainState,
    /// Every text in its description that may have a path in it.
    pub texts: Vec<String>,
    /// What ironboot has noted in it, if ironboot made it.
    pub notes: Option<Notes>,
}

/// What ironboot notes in a VM that it makes; what somebody has taken out again is empty.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Notes {
    /// The image reference as it was asked for.
    pub reference: String,
    /// The documents that it was made from.
    pub documents: Vec<Digest>,
    /// The boot method's name.
    pub method: String,
    /// What it is, by [`DomainSpec::plan_digest`].
    pub plan_digest: Option<Digest>,
}

/// A user and group of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Who QEMU runs as, and how a VM's files become that user's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunsAs {
    /// Whoever calls us: the VM's files are the caller's and stay it.
    Caller,
    /// Another user, to whom we give the VM's own files. Nobody else changes owners.
    Given(Owner),
    /// Another user, whom libvirt makes the owner of a VM's files while it runs, of all but those
    /// that it is told to leave alone; which it can not be told of a kernel. None if libvirt does
    /// not tell the user.
    Lent(Option<Owner>),
}

/// What a VM does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainState {
    /// The hypervisor does not know it.
    Unknown,
    /// It does not run.
    Stopped,
    /// It runs.
    Running,
    /// It is held, by an error or by somebody.
    Paused,
}

/// What keeps a VM from running, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// An error inside of QEMU or KVM.
    Internal(String),
    /// What no other accelerator would mend: an error of its disk, or of its own system.
    OfTheVm(&'static str),
}

/// How to stop a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Press its power button and wait so long for the guest to obey.
    Graceful(Duration),
    /// Pull its plug.
    Force,
}

impl RunsAs {
    /// Who must own the files that a VM writes, if it is not whoever calls us.
    #[must_use]
    pub fn file_owner(self) -> Option<Owner> {
        match self {
            Self::Given(owner) => Some(owner),
            Self::Caller | Self::Lent(_) => None,
        }
    }

    /// The user, if it is another one and is known.
    #[must_use]
    pub fn other_user(self) -> Option<Owner> {
        match self {
            Self::Given(owner) => Some(owner),
            Self::Caller => None,
            Self::Lent(owner) => owner,
        }
    }
}

impl DomainState {
    /// The word in JSON and in tables.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Paused => "paused",
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Internal(words) => f.write_str(words),
            Self::OfTheVm(words) => f.write_str(words),
        }
    }
}

/// The address of the VM's network card: in QEMU's range, and the same whoever runs the VM.
fn mac_address(uuid: &Uuid) -> String {
    let uuid = uuid.as_str();
    format!(
        "52:54:00:{}:{}:{}",
        &uuid[30..32],
        &uuid[32..34],
        &uuid[34..]
    )
}

/// Files of `fw_cfg` by which a firmware that has nothing else to boot is told not to try the
/// network, one way after the other, for minutes; each is to say `n`. That the card has no boot ROM
/// does not keep it from that: it has drivers of its own. Arm's of 2022 heeds neither.
///
/// Source: edk2's OvmfPkg/RUNTIME_CONFIG.md.
fn without_network_boot(spec: &DomainSpec) -> impl Iterator<Item = &'static str> {
    let would_try = matches!(spec.boot, Boot::Disk(Firmware::Uefi(_)))
        && spec.nic.is_some()
        && !spec.disks.iter().any(|disk| disk.boots);
    let names = [
        "opt/org.tianocore/IPv4Support",
        "opt/org.tianocore/IPv6Support",
    ];
    names.into_iter().filter(move |name| {
        // Whoever asks for such a file himself has it as he likes.
        would_try && spec.fw_cfg.iter().all(|file| file.name.as_str() != *name)
    })
}

/// Why a hypervisor did not do what was asked.
#[derive(Debug, Error)]
pub enum HypervisorError {
    /// A program that is needed is not installed.
    #[error("program is not installed: {program}")]
    NoProgram {
        /// Its name.
        program: String,
    },
    /// This build has no support for libvirt.
    #[error("this ironboot was built without libvirt, so it can not reach {uri}")]
    NoLibvirt {
        /// The URI that was asked for.
        uri: String,
    },
    /// A libvirt URI that leads to another host, or to something that is not QEMU.
    #[error("only qemu:///system and qemu:///session are supported, not: {uri}")]
    Uri {
        /// The URI.
        uri: String,
    },
    /// libvirt can not be reached.
    #[error("can not connect to libvirt at {uri}: {message}")]
    Connect {
        /// The URI.
        uri: String,
        /// libvirt's words.
        message: String,
    },
    /// libvirt can be reached, and does not tell of all its domains.
    #[error("libvirt at {uri} does not tell of all its domains: {message}")]
    Listing {
        /// The URI.
        uri: String,
        /// libvirt's words.
        message: String,
        /// Whether it is gone, and may come back.
        is_lost: bool,
    },
    /// libvirt refused.
    #[error("libvirt could not {action} {domain}: {message}")]
    Libvirt {
        /// What was being done.
        action: &'static str,
        /// To which domain.
        domain: DomainName,
        /// libvirt's words.
        message: String,
    },
    /// Another domain has the name.
    #[error("libvirt has a domain {domain} that ironboot did not define")]
    ForeignDomain {
        /// The name.
        domain: DomainName,
    },
    /// QEMU ended before its guest ran.
    #[error("QEMU could not start {domain}: {message}")]
    QemuStart {
        /// The VM.
        domain: DomainName,
        /// What QEMU said.
        message: String,
    },
    /// QEMU does not answer on its monitor.
    #[error("QEMU's monitor of {domain} does not answer: {message}")]
    Monitor {
        /// The VM.
        domain: DomainName,
        /// What happened.
        message: String,
    },
    /// It was started, and something keeps it from running.
    #[error("{domain} was started and does not run: {message}")]
    Trouble {
        /// The VM.
        domain: DomainName,
        /// What keeps it.
        message: String,
    },
    /// It runs already.
    #[error("{domain} is running already")]
    Running {
        /// The VM.
        domain: DomainName,
    },
    /// It runs, and was started as another spec has it.
    #[error("{domain} is running, and not as it is to be defined")]
    RunsOtherwise {
        /// The VM.
        domain: DomainName,
    },
    /// It does not run.
    #[error("{domain} is not running")]
    NotRunning {
        /// The VM.
        domain: DomainName,
    },
    /// The guest did not stop in time.
    #[error("{domain} did not stop within {seconds} s")]
    StopTimeout {
        /// The VM.
        domain: DomainName,
        /// How long was waited.
        seconds: u64,
    },
    /// A directory of the host can not be shared with the guest.
    #[error("can not share {directory} with {domain}: {message}")]
    Share {
        /// The VM.
        domain: DomainName,
        /// The directory.
        directory: PathBuf,
        /// What the daemon that shares it said.
        message: String,
    },
    /// The hypervisor can not do what the spec asks.
    #[error("{hypervisor} can not give {domain} {what}")]
    Unsupported {
        /// Which one.
        hypervisor: &'static str,
        /// The VM.
        domain: DomainName,
        /// What.
        what: &'static str,
    },
    /// A path that can not be written into an XML document or an option.
    #[error("path is not text that a hypervisor takes: {path}")]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// A text that can not be written into an XML document.
    #[error("{place} has a character that XML has not: {text}")]
    Text {
        /// The element or attribute that was to have it.
        place: &'static str,
        /// The text, printable.
        text: String,
    },
    /// A file of the VM's could not be used.
    #[error("can not use {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl HypervisorError {
    fn unsupported(hypervisor: &'static str, spec: &DomainSpec, what: &'static str) -> Self {
        Self::Unsupported {
            hypervisor,
            domain: spec.name.clone(),
            what,
        }
    }
}
