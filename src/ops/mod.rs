//! The use cases, one file a verb or a step that several verbs share. They join the edges, print
//! nothing, and tell what happens through [`Progress`].

pub mod accelerator;
pub mod build;
pub mod console;
pub mod define;
pub mod doctor;
mod fetch;
pub mod planner;
mod preflight;
pub mod images;
pub mod instances;
pub mod list;
pub mod prepare;
pub mod progress;
pub mod prune;
pub mod pull;
pub mod push;
pub mod reach;
pub mod resolve;
pub mod run;
mod space;
pub mod ssh;
pub mod test;
mod tree;
pub mod trust;
mod unpack;
mod users;
pub mod verify;

use std::path::PathBuf;

use indicatif::HumanBytes;
use thiserror::Error;

use crate::boot::PlanError;
use crate::domain::WordError;
use crate::files::FileError;
use crate::firmware::FirmwareError;
use crate::host::Host;
use crate::hypervisor::{Hypervisor, HypervisorError};
use crate::image::config::ConfigError;
use crate::image::{ImageError, SelectError};
use crate::instance::{InstanceError, Instances};
use crate::oci::{Digest, DocumentError, Reference};
use crate::signature::{Distrust, PolicyError};
use crate::source::{MirrorFailure, SourceError, SourceOptions};
use crate::stage::StageError;
use crate::store::{Store, StoreError};

use trust::PolicyPlace;

pub use progress::Progress;

/// Opens the hypervisor that a record names: `qemu`, or a libvirt URI.
pub type OpenHypervisor<'a> =
    &'a (dyn Fn(&str) -> Result<Box<dyn Hypervisor>, HypervisorError> + Send + Sync);

/// What every use case works with.
pub struct Context<'a> {
    /// The store.
    pub store: Store,
    /// The instances of the store.
    pub instances: Instances,
    /// How sources are reached.
    pub sources: SourceOptions,
    /// Where it is said which images are let in.
    pub policy: PolicyPlace,
    /// Facts of this host.
    pub host: Host,
    /// Where firmware descriptors are, the strongest directory first.
    pub firmware_directories: Vec<PathBuf>,
    /// The time, in seconds since 1970.
    pub now: u64,
    /// The caller's own libvirt, if there is one: its domains may use the store.
    pub libvirt: Option<String>,
    /// Opens hypervisors by name.
    pub open_hypervisor: OpenHypervisor<'a>,
    /// Hears what happens.
    pub report: &'a (dyn Fn(Progress) + Send + Sync),
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context of {}", self.store.root().display())
    }
}

/// Why a use case failed.
#[derive(Debug, Error)]
pub enum OpsError {
    /// The source failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// An index or manifest is not one.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// A manifest is no image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// No single manifest is meant.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// The config is not readable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no way to boot it.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The VM's files could not be made.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The instance could not be made, read or removed.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// The hypervisor failed.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// QEMU's user can not open the VM's files.
    #[error(transparent)]
    Unreachable(#[from] reach::Unreachable),
    /// There is no firmware.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The guest's SSH server can not be reached.
    #[error(transparent)]
    Ssh(#[from] ssh::SshError),
    /// A word is not what it should be.
    #[error(transparent)]
    Word(#[from] WordError),
    /// KVM was asked for and is of no use.
    #[error("KVM can not be used: {reason}")]
    NoKvm {
        /// Why not.
        reason: String,
    },
    /// Indexes that lie too deep within each other.
    #[error(
        "index {index} lies within {} others, more than {}: {}",
        within.len(), tree::MAX_DEPTH - 1, path(within)
    )]
    IndexTooDeep {
        /// The innermost index.
        index: Digest,
        /// Those that it lies within, the outermost first.
        within: Vec<Digest>,
    },
    /// An index that lies within itself.
    #[error("index {index} lies within itself: {}", path(within))]
    IndexCycle {
        /// The index.
        index: Digest,
        /// The indexes on the way from the outermost to it.
        within: Vec<Digest>,
    },
    /// An index with more entries below it than any image has.
    #[error(
        "index {index} leads to more than {} documents, or to too large ones",
        tree::MAX_DOCUMENTS
    )]
    TooManyDocuments {
        /// The outermost index.
        index: Digest,
    },
    /// A config or command line blob that is larger than any.
    #[error(
        "blob {blob} is a {role} of {}; the most is {}",
        HumanBytes(*size_bytes), HumanBytes(*limit_bytes)
    )]
    MetadataTooLarge {
        /// The blob.
        blob: Digest,
        /// What it is for.
        role: &'static str,
        /// Its size.
        size_bytes: u64,
        /// The limit.
        limit_bytes: u64,
    },
    /// An instance that must be stopped first.
    #[error("instance {name} is running")]
    StillRunning {
        /// Its name.
        name: crate::domain::DomainName,
    },
    /// An instance that was only prepared has no hypervisor to start or stop it.
    #[error("instance {name} was prepared for another program, which runs it")]
    NoHypervisor {
        /// Its name.
        name: crate::domain::DomainName,
    },
    /// An image that is to be pushed is not whole.
    #[error("image {reference} is not whole here: {missing} is missing")]
    NotWhole {
        /// The image.
        reference: crate::oci::Reference,
        /// What is missing.
        missing: Digest,
    },
    /// An image in the specification's own form, which registries refuse.
    #[error(
        "image {reference} has manifests that call themselves {}, which registries refuse",
        crate::oci::manifest::IRONCORE_ARTIFACTS
    )]
    NotPushable {
        /// The image.
        reference: crate::oci::Reference,
    },
    /// More than what is left of the disk.
    #[error(
        "{} are needed, and the disk of {path} has {} left",
        HumanBytes(*needed_bytes), HumanBytes(*free_bytes)
    )]
    NoSpace {
        /// The store.
        path: PathBuf,
        /// What is to be fetched, or unpacked.
        needed_bytes: u64,
        /// What there is.
        free_bytes: u64,
    },
    /// A blob that is lost.
    #[error("nothing says where blob {blob} came from")]
    NoOrigin {
        /// The blob.
        blob: Digest,
    },
    /// The store is not as it should be.
    #[error(
        "not all in the store is as it should be: {count} {} not",
        if *count == 1 { "thing is" } else { "things are" }
    )]
    NotAsItShouldBe {
        /// How many things.
        count: usize,
        /// Whether it was tried to mend them.
        was_tried: bool,
    },
    /// A blob that could not be fetched.
    #[error("can not fetch the {label} of {reference}")]
    Fetch {
        /// What the blob is for.
        label: String,
        /// The image.
        reference: String,
        /// Why not.
        #[source]
        source: Box<OpsError>,
    },
    /// Standard output takes no more.
    #[error("can not write what the guest printed")]
    Output(#[source] std::io::Error),
    /// A file with a command line that no kernel takes.
    #[error("the command line in {path} is not usable")]
    CommandLineFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: crate::boot::CommandLineError,
    },
    /// An image that the policy does not let in.
    #[error("image {reference} is not let in by {}", policy.display())]
    Untrusted {
        /// The image.
        reference: Box<Reference>,
        /// The policy's file.
        policy: PathBuf,
        /// Why not.
        #[source]
        source: Distrust,
    },
    /// An instance of which it is not known what image it is of.
    #[error("instance {name} does not say what image it is of")]
    Provenance {
        /// Its name.
        name: crate::domain::DomainName,
        /// What is wrong with what it says.
        #[source]
        source: crate::oci::ReferenceError,
    },
    /// A policy that is not understood or makes no sense.
    #[error("policy {} can not be used", path.display())]
    Policy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: PolicyError,
    },
    /// A file of a policy that is not there, or may not be trusted.
    #[error("the policy of signatures can not be used")]
    PolicyFile(#[source] FileError),
    /// An internal task ended without a result.
    #[error("a task of ironboot's own ended unexpectedly")]
    Task(#[from] tokio::task::JoinError),
}

fn path(indexes: &[Digest]) -> String {
    let words: Vec<String> = indexes.iter().map(ToString::to_string).collect();
    words.join(" > ")
}

impl OpsError {
    /// Tells whether the same call may succeed once somebody has logged in or made room, so that
    /// what was fetched is worth keeping.
    pub(crate) fn may_be_mended(&self) -> bool {
        match self {
            Self::Source(SourceError::Unauthorized { .. }) | Self::NoSpace { .. } => true,
            Self::Fetch { source, .. } => source.may_be_mended(),
            _ => self.is_retryable(),
        }
    }

    /// Tells whether the same call may succeed later, without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Source(error) => error.is_retryable(),
            Self::Fetch { source, .. } => source.is_retryable(),
            Self::Hypervisor(
                HypervisorError::Connect { .. } | HypervisorError::Listing { is_lost: true, .. },
            )
            | Self::Instance(InstanceError::Busy { .. }) => true,
            _ => false,
        }
    }

    /// The mirrors that failed before the registry did.
    #[must_use]
    pub fn mirrors(&self) -> &[MirrorFailure] {
        match self {
            Self::Source(error) => error.mirrors(),
            Self::Fetch { source, .. } => source.mirrors(),
            _ => &[],
        }
    }
}

/// Runs blocking work on a thread of its own.
pub(crate) async fn blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, OpsError>
where
    T: Send + 'static,
    E: Send + 'static,
    OpsError: From<E>,
{
    Ok(tokio::task::spawn_blocking(work).await??)
}
