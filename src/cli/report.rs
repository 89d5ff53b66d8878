//! An error for whoever called: heading, causes, one hint, exit code, and the same as JSON.

mod guests;
mod images;

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use serde_json::{Value, json};

use crate::cli::report::images::{source, untrusted};
use crate::cli::script::quoted;
use crate::files::FileError;
use crate::firmware::FirmwareError;
use crate::hypervisor::HypervisorError;
use crate::image::SelectError;
use crate::instance::InstanceError;
use crate::oci::{Printable, Reference};
use crate::ops::OpsError;
use crate::ops::reach::{By, Closed, Unreachable};
use crate::source::SourceError;
use crate::stage::StageError;
use crate::store::{StoreError, User};

/// Signatures of which it is told why they do not count.
const MAX_REFUSALS: usize = 8;

/// What to do for want of the program that shares directories.
pub(super) const NO_VIRTIOFSD: &str =
    "install virtiofsd; on Debian 12 `apt-get install qemu-system-common` has it";

/// What kind of error it is, for programs. The words are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Usage,
    NotFound,
    Unauthorized,
    Unavailable,
    NoMatch,
    Ambiguous,
    Integrity,
    InvalidImage,
    UnsafeImage,
    Unbootable,
    NoSpace,
    Store,
    Host,
    Hypervisor,
    Conflict,
    Timeout,
    Untrusted,
}

/// An error, ready to be shown.
#[derive(Debug)]
pub(super) struct Report {
    pub kind: Kind,
    pub message: String,
    pub causes: Vec<String>,
    pub hint: Option<String>,
    pub retryable: bool,
}

impl Kind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Usage => "usage",
            Self::NotFound => "not-found",
            Self::Unauthorized => "unauthorized",
            Self::Unavailable => "unavailable",
            Self::NoMatch => "no-match",
            Self::Ambiguous => "ambiguous",
            Self::Integrity => "integrity",
            Self::InvalidImage => "invalid-image",
            Self::UnsafeImage => "unsafe-image",
            Self::Unbootable => "unbootable",
            Self::NoSpace => "no-space",
            Self::Store => "store",
            Self::Host => "host",
            Self::Hypervisor => "hypervisor",
            Self::Conflict => "conflict",
            Self::Timeout => "timeout",
            Self::Untrusted => "untrusted",
        }
    }

    /// The exit status: 2 usage, 69 the host cannot run it, 124 timeout, 125 the rest.
    pub(super) fn exit_code(self) -> u8 {
        match self {
            Self::Usage => 2,
            Self::Host => 69,
            Self::Timeout => 124,
            _ => 125,
        }
    }
}

impl Report {
    /// An error in what was typed.
    pub(super) fn usage(message: String) -> Self {
        Self {
            kind: Kind::Usage,
            message,
            causes: Vec::new(),
            hint: None,
            retryable: false,
        }
    }

    /// The error as one JSON object.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "schema_version": 1,
            "error": {
                "kind": self.kind.as_str(),
                "message": self.message,
                "causes": self.causes,
                "hint": self.hint,
                "retryable": self.retryable,
            },
        })
    }

    /// The error as text.
    pub(super) fn to_text(&self) -> String {
        let mut text = format!("error: {}\n", self.message);
        for cause in &self.causes {
            text.push_str(&format!("  caused by: {cause}\n"));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("hint: {hint}\n"));
        }
        text
    }
}

impl<E> From<E> for Report
where
    OpsError: From<E>,
{
    fn from(error: E) -> Self {
        let error = OpsError::from(error);
        let (kind, hint) = classify(&error);
        Self {
            kind,
            message: error.to_string(),
            causes: causes(&error),
            hint,
            retryable: error.is_retryable(),
        }
    }
}

/// The chain below an error, and what an image offers where it did not fit.
fn causes(error: &OpsError) -> Vec<String> {
    let mut causes = Vec::new();
    if let OpsError::Select(
        SelectError::NoMatch { offers, .. } | SelectError::Ambiguous { offers, .. },
    ) = error
    {
        causes.extend(offers.iter().map(|offer| format!("it has {offer}")));
        if offers.is_empty() {
            causes.push("its index has no entries".to_owned());
        }
    }
    let mut source = error.source();
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    if let OpsError::Untrusted { source, .. } = error {
        let refusals = source.refusals().iter();
        let mut told: Vec<String> = refusals
            .map(|refusal| format!("a signature: {refusal}"))
            .collect();
        // Many that are alike are told once, and of many that are not, some.
        told.dedup();
        let others = told.len().saturating_sub(MAX_REFUSALS);
        causes.extend(told.into_iter().take(MAX_REFUSALS));
        if others > 0 {
            causes.push(format!("and {others} others"));
        }
    }
    causes.extend(error.mirrors().iter().map(ToString::to_string));
    causes
}

fn install_firmware() -> Option<String> {
    hint("install UEFI firmware: on Debian `apt-get install ovmf qemu-efi-aarch64`")
}

fn hint(text: &str) -> Option<String> {
    Some(text.to_owned())
}

fn classify(error: &OpsError) -> (Kind, Option<String>) {
    match error {
        OpsError::Source(error) => source(error),
        OpsError::Document(_)
        | OpsError::Image(_)
        | OpsError::Config(_)
        | OpsError::IndexTooDeep { .. }
        | OpsError::IndexCycle { .. }
        | OpsError::TooManyDocuments { .. }
        | OpsError::MetadataTooLarge { .. } => (Kind::InvalidImage, None),
        OpsError::Select(SelectError::NoMatch { wanted, offers, .. }) => {
            (Kind::NoMatch, images::no_match(wanted, offers))
        }
        OpsError::Select(SelectError::Ambiguous { .. }) => (
            Kind::Ambiguous,
            hint("name one of them by its digest: IMAGE@sha256:…"),
        ),
        OpsError::Select(SelectError::Image(_)) => (Kind::InvalidImage, None),
        OpsError::Plan(error) => plan(error),
        OpsError::Store(error) => store(error),
        OpsError::Stage(error) => stage(error),
        OpsError::Instance(error) => instance(error),
        OpsError::Hypervisor(error) => hypervisor(error),
        OpsError::Unreachable(error) => (Kind::Host, Some(mend(error))),
        OpsError::Firmware(FirmwareError::None { .. }) => (Kind::Host, install_firmware()),
        OpsError::Firmware(FirmwareError::Named { .. }) => (
            Kind::Usage,
            hint("`ironboot doctor` shows the firmware that this host has"),
        ),
        OpsError::Firmware(FirmwareError::File(error)) => file(error, Kind::Host),
        OpsError::File(error) => file(error, Kind::Host),
        OpsError::Ssh(error) => guests::ssh(error),
        OpsError::Word(_) => (Kind::Usage, None),
        OpsError::CommandLineFile { .. } => (Kind::Usage, None),
        OpsError::NoKvm { .. } => (
            Kind::Host,
            hint("leave out --accel kvm, or pass --accel tcg"),
        ),
        OpsError::StillRunning { name } => (
            Kind::Conflict,
            Some(format!(
                "stop it first: `ironboot stop {name}`, or pass --force to rm"
            )),
        ),
        OpsError::NoHypervisor { .. } => (Kind::Conflict, None),
        OpsError::NotWhole {
            reference: Reference::Registry(_),
            ..
        } => (Kind::NotFound, hint("pull it with --all first")),
        OpsError::NotWhole { .. } => (Kind::NotFound, None),
        OpsError::NoOrigin { .. } => (Kind::Integrity, None),
        OpsError::NotAsItShouldBe {
            was_tried: false, ..
        } => (
            Kind::Integrity,
            hint("`ironboot image verify --repair` mends the store"),
        ),
        OpsError::NotAsItShouldBe { .. } => (Kind::Integrity, None),
        OpsError::NotPushable { .. } => (
            Kind::InvalidImage,
            hint("`ironboot image build` writes a form that registries take"),
        ),
        OpsError::NoSpace { .. } => (
            Kind::NoSpace,
            hint("free some space, or pass --store for another disk"),
        ),
        OpsError::Fetch { source, .. } => match &**source {
            // Of a blob, more than its descriptor says.
            OpsError::Source(error) if matches!(error.itself(), SourceError::TooLarge { .. }) => {
                (Kind::Integrity, None)
            }
            other => classify(other),
        },
        OpsError::Output(_) => (Kind::Host, None),
        OpsError::Untrusted { source, .. } => (Kind::Untrusted, untrusted(source)),
        OpsError::Policy { .. } => (
            Kind::Untrusted,
            hint(
                "mend the file, or pass --policy for another; /etc/ironboot/policy.json comes \
                 before podman's",
            ),
        ),
        OpsError::PolicyFile(error) => (
            Kind::Untrusted,
            match error.source.kind() {
                std::io::ErrorKind::NotFound => {
                    hint("there is no such file; see to its path, or pass --policy for another")
                }
                _ => hint(
                    "see to the owner and mode of it and of the directories that it is in, or pass \
                     --policy for another file",
                ),
            },
        ),
        OpsError::Provenance { .. } => (Kind::Store, None),
        OpsError::Task(_) => (
            Kind::Host,
            hint("this is a bug in ironboot; please report it"),
        ),
    }
}

fn plan(error: &crate::boot::PlanError) -> (Kind, Option<String>) {
    use crate::boot::PlanError;
    match error {
        PlanError::NoMethod { .. } => (
            Kind::Unbootable,
            hint("`ironboot image inspect IMAGE` shows what its layers are"),
        ),
        PlanError::NotPossible { .. } => (
            Kind::Unbootable,
            hint("`ironboot plan IMAGE` shows what is possible"),
        ),
        PlanError::NoFirmware { .. } => (Kind::Host, install_firmware()),
        PlanError::CommandLineIgnored { .. } => (
            Kind::Usage,
            hint("leave them out, or boot the kernel with --boot direct"),
        ),
        PlanError::ImageCommandLine { .. } => (
            Kind::InvalidImage,
            hint("pass --cmdline for another one, or boot without it by --boot disk"),
        ),
        PlanError::Append(_) => (Kind::Usage, None),
    }
}

fn store(error: &StoreError) -> (Kind, Option<String>) {
    match error {
        StoreError::File(error) => file(error, Kind::Store),
        StoreError::TooLong { .. } | StoreError::TooShort { .. } | StoreError::Content { .. } => {
            (Kind::Integrity, None)
        }
        StoreError::Damaged { .. } | StoreError::Record { .. } => (
            Kind::Store,
            hint("`ironboot image verify --repair` mends the store"),
        ),
        StoreError::Foreign { directory, .. } => (
            Kind::Store,
            Some(format!(
                "make {} the store's again with `chown` and `chmod go-w`, or move it away; then \
                 `ironboot image verify --repair`",
                quoted(directory)
            )),
        ),
        StoreError::Exposed { directory } => (
            Kind::Store,
            Some(format!(
                "close it with `chmod o-w {}`, or choose another place with --store",
                directory.display()
            )),
        ),
        StoreError::None { .. } => (
            Kind::NotFound,
            hint("check --store and IRONBOOT_STORE; the first `ironboot pull` makes one"),
        ),
        StoreError::NoReference { .. } => (
            Kind::NotFound,
            hint("`ironboot image list` shows what there is"),
        ),
        StoreError::InUse { users, .. } => (
            Kind::Conflict,
            users.first().map(|user| match user {
                User::Instance(_) => format!("remove the instance first: `ironboot rm {user}`"),
                User::Domain { name, uri } => format!(
                    "undefine the domain first: `virsh --connect {uri} undefine {}`",
                    Printable(name)
                ),
            }),
        ),
    }
}

fn stage(error: &StageError) -> (Kind, Option<String>) {
    match error {
        StageError::Content(error) if error.is_unsafe() => {
            (Kind::UnsafeImage, images::unsafe_content(error))
        }
        StageError::Content(_) => (Kind::InvalidImage, None),
        StageError::Store(error) => store(error),
        StageError::File(error) => file(error, Kind::Store),
        StageError::Missing { .. } => (Kind::Store, hint("`ironboot pull IMAGE` fetches it")),
        StageError::Unsigned { .. } => (
            Kind::Unbootable,
            hint("without Secure Boot it boots unverified: --firmware uefi"),
        ),
        StageError::NotDirect { .. } => (
            Kind::Unbootable,
            hint("start it by UEFI firmware: leave out --uki extract, or install firmware"),
        ),
        StageError::NoStarter {
            is_ruled_out: true, ..
        } => (
            Kind::Unbootable,
            hint("leave out --firmware, or choose another one"),
        ),
        StageError::NoStarter { .. } => (Kind::Host, install_firmware()),
        StageError::UkiCommandLine { .. } => {
            (Kind::InvalidImage, hint("pass --cmdline for another one"))
        }
        StageError::UkiWords { .. } => (
            Kind::Unbootable,
            hint("leave out --append; without Secure Boot, --uki loader takes it"),
        ),
        StageError::UkiTooLarge { .. } => (
            Kind::Unbootable,
            hint("start it with --uki loader or --uki extract"),
        ),
        StageError::DiskSize { .. } | StageError::NoDisk => (Kind::Usage, None),
        StageError::NoSmbios => (
            Kind::Usage,
            hint("boot it through firmware, with --boot uki or --boot disk"),
        ),
        StageError::NoFirmware | StageError::Overlay { .. } => (Kind::Host, None),
    }
}

fn instance(error: &InstanceError) -> (Kind, Option<String>) {
    match error {
        InstanceError::File(error) => file(error, Kind::Store),
        InstanceError::None {
            close: Some(close), ..
        } => (
            Kind::NotFound,
            Some(format!(
                "there is `{close}`; `ironboot list` shows what there is"
            )),
        ),
        InstanceError::None { close: None, .. } => {
            (Kind::NotFound, hint("`ironboot list` shows what there is"))
        }
        InstanceError::Different { name, .. } => (
            Kind::Conflict,
            Some(format!(
                "choose another name, or remove it: `ironboot rm {name}`"
            )),
        ),
        InstanceError::NoRecord { name } => (
            Kind::Conflict,
            Some(format!(
                "choose another name, or remove it: `ironboot rm {name}`"
            )),
        ),
        InstanceError::Busy { .. } => (Kind::Conflict, None),
        InstanceError::Record { path, .. } => {
            let name = path.parent().and_then(Path::file_name);
            let name = name.map(|name| name.to_string_lossy());
            let hint = name.map(|name| format!("remove what is left of it: `ironboot rm {name}`"));
            (Kind::Store, hint)
        }
    }
}

fn file(error: &FileError, kind: Kind) -> (Kind, Option<String>) {
    if error.is_no_space() {
        return (
            Kind::NoSpace,
            hint("free some space, or pass --store for another disk"),
        );
    }
    match error.source.kind() {
        std::io::ErrorKind::PermissionDenied => (
            kind,
            hint("pass --store for a directory that you may write to, or run as its owner"),
        ),
        _ => (kind, None),
    }
}

/// The command that opens to QEMU's user what is closed to it.
pub(super) fn mend(unreachable: &Unreachable) -> String {
    let Unreachable { uid, closed } = unreachable;
    let mut commands: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for Closed { lacks, by, path } in closed {
        let letters = lacks.letters();
        let command = match by {
            By::Owner => format!("chmod u+{letters}"),
            By::Group => format!("chmod g+{letters}"),
            By::Others => format!("chmod o+{letters}"),
            By::List => format!("setfacl -m u:{uid}:{letters}"),
        };
        commands.entry(command).or_default().push(quoted(path));
    }
    let commands: Vec<String> = commands
        .iter()
        .map(|(command, paths)| format!("{command} {}", paths.join(" ")))
        .collect();
    format!("open it with `{}`, or pass --store", commands.join(" && "))
}

fn hypervisor(error: &HypervisorError) -> (Kind, Option<String>) {
    use HypervisorError as Error;
    match error {
        Error::NoProgram { program } => (
            Kind::Host,
            Some(match program.as_str() {
                "virtiofsd" => NO_VIRTIOFSD.to_owned(),
                "qemu-system-aarch64" => "on Debian: `apt-get install qemu-system-arm`".to_owned(),
                _ => "on Debian: `apt-get install qemu-system-x86`".to_owned(),
            }),
        ),
        Error::NoLibvirt { .. } => (
            Kind::Host,
            hint("build with --features libvirt, or use `ironboot run`"),
        ),
        Error::Uri { .. } => (
            Kind::Usage,
            hint(
                "pass --connect for one of them, or set LIBVIRT_DEFAULT_URI; for the VMs of another \
                 host, run ironboot there",
            ),
        ),
        Error::Connect { .. } | Error::Listing { is_lost: true, .. } => (
            Kind::Unavailable,
            hint("start libvirtd, or use `ironboot run`, which needs no daemon"),
        ),
        Error::ForeignDomain { .. } => (Kind::Conflict, hint("choose another name")),
        Error::RunsOtherwise { domain } => (
            Kind::Conflict,
            Some(format!("stop it first: `ironboot stop {domain}`")),
        ),
        Error::Running { .. } | Error::NotRunning { .. } => (Kind::Conflict, None),
        Error::StopTimeout { domain, .. } => (
            Kind::Timeout,
            Some(format!("pull its plug: `ironboot stop --force {domain}`")),
        ),
        Error::Trouble { .. } => (
            Kind::Hypervisor,
            hint(
                "pass --accel tcg if KVM is at fault; `ironboot doctor` shows what it is taken for",
            ),
        ),
        Error::QemuStart { message, .. } if message.contains("host forwarding rule") => (
            Kind::Hypervisor,
            hint("that port of this host is taken: choose another one, as in `-p 8081:80`"),
        ),
        Error::Share { .. } => (
            Kind::Host,
            hint("without root it takes a virtiofsd of version 1 or later"),
        ),
        Error::Unsupported { hypervisor, .. } => (
            Kind::Hypervisor,
            hint(match *hypervisor {
                "QEMU" => "libvirt may have it: `ironboot define`",
                _ => "QEMU may have it: `ironboot run`",
            }),
        ),
        Error::Libvirt { .. }
        | Error::Listing { .. }
        | Error::QemuStart { .. }
        | Error::Monitor { .. }
        | Error::Path { .. }
        | Error::Text { .. }
        | Error::Io { .. } => (Kind::Hypervisor, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_reads_the_same_as_text_and_as_json() {
        let report = Report {
            kind: Kind::NoMatch,
            message: "what happened".to_owned(),
            causes: vec!["why".to_owned()],
            hint: Some("what to do".to_owned()),
            retryable: false,
        };
        assert_eq!(
            report.to_text(),
            "error: what happened\n  caused by: why\nhint: what to do\n"
        );
        assert_eq!(report.to_json()["error"]["kind"], "no-match");
        assert_eq!(report.to_json()["schema_version"], 1);
    }
}
