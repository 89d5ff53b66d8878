//! What a use case tells while it works. The program draws it; the library prints nothing.

use std::path::PathBuf;
use std::time::Duration;

use crate::boot::{CommandLine, MethodName};
use crate::domain::{DomainName, Tag};
use crate::expect::Stage;
use crate::host::AcceleratorChoice;
use crate::oci::{Digest, Reference};
use crate::ops::ssh::key::Offer;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The index and manifests of an image are being read.
    Resolving(Reference),
    /// There is text after a config's JSON, which is not read.
    ConfigSkipped {
        /// The config.
        config: Digest,
    },
    /// An image was chosen; so many bytes of it are to be fetched.
    Fetching {
        /// Sum of the sizes of the blobs that are not in the store, in bytes.
        missing_bytes: u64,
        /// How many there are.
        blobs: usize,
    },
    /// A blob is not fetched yet: another process has it, or what one left is being read.
    Waiting {
        /// What the blob is for.
        label: String,
    },
    /// A blob is being fetched; the first `offset_bytes` of it were there already.
    BlobStart {
        /// The blob.
        blob: Digest,
        /// What it is for.
        label: String,
        /// Its size.
        size_bytes: u64,
        /// What was there already.
        offset_bytes: u64,
    },
    /// Bytes of a blob arrived, or went.
    BlobBytes {
        /// The blob.
        blob: Digest,
        /// How many since the last time.
        count: u64,
    },
    /// The connection broke; what is missing is asked for again.
    BlobRetry {
        /// The blob.
        blob: Digest,
        /// What broke.
        reason: String,
    },
    /// The disk in a blob is being unpacked; the blob's own events tell how far that is.
    Unpacking {
        /// The most that it will take, in bytes.
        size_bytes: u64,
    },
    /// A blob is complete and verified.
    BlobDone {
        /// The blob.
        blob: Digest,
    },
    /// A boot method was passed over, because a blob is not what its layer says.
    MethodRejected {
        /// The method.
        method: MethodName,
        /// What is wrong.
        reason: String,
    },
    /// Words that could not be added to a command line.
    WordsLeftOut {
        /// The words.
        words: CommandLine,
    },
    /// The command line had no `console=`, so one was added.
    ConsoleAdded {
        /// The parameter that was added.
        parameter: String,
    },
    /// What runs the guest's instructions, and why.
    Accelerator(AcceleratorChoice),
    /// What a boot has told of KVM could not be kept, so that the next one is watched again.
    VerdictLost {
        /// Why not.
        reason: String,
    },
    /// What is no longer needed could not be removed, which `image prune` makes up for.
    NotRemoved {
        /// Why not.
        reason: String,
    },
    /// A line that the hypervisor wrote: an error or a warning.
    HypervisorSaid(String),
    /// So many blobs are being hashed.
    Verifying {
        /// How many.
        blobs: usize,
        /// Sum of their sizes, in bytes.
        size_bytes: u64,
    },
    /// A libvirt can not be asked which of its domains need blobs, for this reason; no blob is
    /// removed.
    DomainsUnknown(String),
    /// A hypervisor can not be asked what its VMs do, for this reason.
    StatesUnknown(String),
    /// A VM is defined as it was asked for already.
    DefinedAlready(DomainName),
    /// One of several tests has its verdict.
    Tested {
        /// What the test is called.
        label: String,
        /// The verdict in one word.
        verdict: &'static str,
    },
    /// What was to be kept of a test that did not pass could not be.
    NotKept {
        /// What the test is called.
        label: String,
        /// Why not.
        reason: String,
    },
    /// The boot of a VM that is tested has come to a stage.
    StageReached {
        /// What the test is called.
        label: String,
        /// The stage.
        stage: Stage,
        /// Since QEMU was started.
        after: Duration,
    },
    /// A VM was started.
    Started(DomainName),
    /// A directory of the host is there for the guest to mount by virtiofs, as this.
    Shared(Tag),
    /// The console is in a terminal, which keeps one key for itself.
    Attached,
    /// There is no key by which a guest could let its user in.
    NoSshKey {
        /// Why not.
        reason: String,
    },
    /// What is in this directory of the store's is no such key, so that no guest is offered one.
    BrokenSshKey(PathBuf),
    /// The SSH server of this VM's guest does not answer yet.
    WaitingForSsh(DomainName),
    /// `ssh` could not log in, or says so; by these ways the guest was offered the store's key.
    SshFailed(Vec<Offer>),
}
