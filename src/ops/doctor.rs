//! What this host has: in itself, for each machine (QEMU, an accelerator, firmware), its libvirt, and
//! what is said of registries. Judges nothing.

mod here;
mod registries;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::domain::{Accelerator, Machine};
use crate::firmware::{self, Considered, FirmwareChoice, FirmwareError, Survey, UefiRequest};
use crate::host::AcceleratorChoice;
use crate::hypervisor::qemu::args::program;
use crate::hypervisor::qemu::trial::{self, Trial};
use crate::hypervisor::qemu::version::{VersionError, version};
use crate::hypervisor::{HypervisorError, RunsAs};
use crate::ops::accelerator::{self, AcceleratorWish};
use crate::ops::{Context, OpsError, preflight};

/// Where libvirt's logger listens, which writes down what guests print.
const LOGGER: &str = "/run/libvirt/virtlogd-sock";

/// How long QEMU may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a daemon may take to tell what is asked of it.
const LIBVIRT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long firmware may be silent in a trial.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(20);

pub use here::{HereFacts, StoreFacts, find, here, store};
pub use registries::{RegistryFacts, registries};

/// What this host has for one machine.
#[derive(Debug)]
pub struct MachineFacts {
    /// The machine.
    pub machine: Machine,
    /// Whether this host has a CPU of its architecture.
    pub is_native: bool,
    /// The program that emulates it.
    pub program: &'static str,
    /// That program's version.
    pub version: Result<String, VersionError>,
    /// The accelerator that a VM gets if none is asked for; the reason if it gets none.
    pub accelerator: Result<AcceleratorChoice, String>,
    /// QEMU's BIOS, where it is if anywhere; none for a machine that has none.
    pub bios: Option<Option<PathBuf>>,
    /// The firmware.
    pub firmware: Result<FirmwareFacts, FirmwareError>,
}

/// The firmware of this host for one machine.
#[derive(Debug)]
pub struct FirmwareFacts {
    /// What a VM gets that starts unsigned programs.
    pub plain: Result<FirmwareChoice, FirmwareError>,
    /// What a VM gets that starts signed programs only.
    pub secure: Result<FirmwareChoice, FirmwareError>,
    /// Every descriptor.
    pub descriptors: Vec<DescriptorFacts>,
}

/// A descriptor, and what becomes of it.
#[derive(Debug)]
pub struct DescriptorFacts {
    /// The descriptor.
    pub considered: Considered,
    /// That it is chosen where unsigned programs are started, or why not.
    pub plain: String,
    /// That it is chosen where signed programs only are started, or why not.
    pub secure: String,
}

/// What one libvirt of this host has for the caller's VMs.
#[derive(Debug)]
pub struct LibvirtFacts {
    /// Its URI.
    pub uri: &'static str,
    /// Its version; the reason if it can not be reached, and then nothing else is known.
    pub version: Result<String, HypervisorError>,
    /// Who QEMU runs as.
    pub runs_as: Option<RunsAs>,
    /// Whether that user can pass through to the store.
    pub store: Option<Result<(), OpsError>>,
    /// Whether its logger answers; not asked where libvirt itself starts it.
    pub logger: Option<Result<(), io::Error>>,
}

/// Looks at the libvirts of this host: for root there is one.
pub async fn libvirts(context: &Context<'_>) -> Vec<LibvirtFacts> {
    let mut facts = vec![answering(context, "qemu:///system").await];
    if !rustix::process::geteuid().is_root() {
        facts.push(answering(context, "qemu:///session").await);
    }
    facts
}

/// One that does not answer is one that can not be reached.
async fn answering(context: &Context<'_>, uri: &'static str) -> LibvirtFacts {
    let asked = tokio::time::timeout(LIBVIRT_TIMEOUT, libvirt(context, uri)).await;
    asked.unwrap_or_else(|_| LibvirtFacts {
        uri,
        version: Err(HypervisorError::Connect {
            uri: uri.to_owned(),
            message: format!("it does not answer within {} s", LIBVIRT_TIMEOUT.as_secs()),
        }),
        runs_as: None,
        store: None,
        logger: None,
    })
}

/// Runs firmware under each accelerator that there is for the host's own machine, and remembers how
/// KVM did. `uefi` is firmware for a machine that has none of its own.
pub async fn try_out(
    context: &Context<'_>,
    machine: Machine,
    uefi: Option<&Path>,
) -> Vec<(Accelerator, Trial)> {
    let firmware = match machine {
        Machine::Amd64 => None,
        Machine::Arm64 => uefi,
    };
    let run = |accelerator| trial::run(machine, accelerator, firmware, TRIAL_TIMEOUT);
    let tcg = run(Accelerator::Tcg).await;
    if here::opens("/dev/kvm").is_err() {
        return vec![(Accelerator::Tcg, tcg)];
    }
    let kvm = run(Accelerator::Kvm).await;
    let verdict = match (&kvm, &tcg) {
        (Trial::Lives(_), _) => Some((true, "firmware ran under it".to_owned())),
        // What does not run at all says nothing of KVM.
        (Trial::Silent(_), Trial::Lives(_)) => Some((false, "firmware stayed silent".to_owned())),
        (Trial::Ended(words), Trial::Lives(_)) => Some((false, format!("QEMU ended: {words}"))),
        _ => None,
    };
    // Where no store can be made nothing can be booted either, and that is told.
    if let Some((works, reason)) = verdict
        && context.store.create().is_ok()
    {
        accelerator::remember(context, machine, works, reason).await;
    }
    vec![(Accelerator::Kvm, kvm), (Accelerator::Tcg, tcg)]
}

async fn libvirt(context: &Context<'_>, uri: &'static str) -> LibvirtFacts {
    let mut facts = LibvirtFacts {
        uri,
        version: libvirt_version(uri).await,
        runs_as: None,
        store: None,
        logger: None,
    };
    if facts.version.is_err() {
        return facts;
    }
    match runs_as(context, uri).await {
        Ok(runs_as) => {
            facts.runs_as = Some(runs_as);
            facts.store = Some(preflight::store(context, runs_as));
        }
        // It has gone since.
        Err(error) => facts.version = Err(error),
    }
    if uri == "qemu:///system" {
        facts.logger = Some(match UnixStream::connect(LOGGER) {
            // It is there, and libvirt may speak to it.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            result => result.map(drop),
        });
    }
    facts
}

async fn runs_as(context: &Context<'_>, uri: &str) -> Result<RunsAs, HypervisorError> {
    (context.open_hypervisor)(uri)?.runs_as().await
}

#[cfg(feature = "libvirt")]
async fn libvirt_version(uri: &str) -> Result<String, HypervisorError> {
    crate::hypervisor::libvirt::Libvirt::open(uri)?
        .version()
        .await
}

#[cfg(not(feature = "libvirt"))]
async fn libvirt_version(uri: &str) -> Result<String, HypervisorError> {
    Err(HypervisorError::NoLibvirt {
        uri: uri.to_owned(),
    })
}

/// Looks at what this host has.
pub async fn examine(context: &Context<'_>) -> Vec<MachineFacts> {
    let (amd64, arm64) = tokio::join!(
        facts(context, Machine::Amd64),
        facts(context, Machine::Arm64)
    );
    vec![amd64, arm64]
}

async fn facts(context: &Context<'_>, machine: Machine) -> MachineFacts {
    let program = program(machine);
    MachineFacts {
        machine,
        is_native: context.host.is_native(machine),
        program,
        version: version(program, VERSION_TIMEOUT).await,
        accelerator: accelerator::choose(context, machine, AcceleratorWish::Auto)
            .await
            .map_err(|error| error.to_string()),
        bios: (machine == Machine::Amd64).then(bios),
        firmware: firmware::survey(&context.firmware_directories, machine).map(firmware_facts),
    }
}

/// The BIOS that QEMU takes where it is not told.
fn bios() -> Option<PathBuf> {
    let places = [
        "/usr/share/qemu",
        "/usr/share/seabios",
        "/usr/local/share/qemu",
    ];
    let mut files = places
        .map(|place| Path::new(place).join("bios-256k.bin"))
        .into_iter();
    files.find(|file| file.is_file())
}

fn firmware_facts(survey: Survey) -> FirmwareFacts {
    let (plain, secure) = (&UefiRequest::Plain, &UefiRequest::Secure);
    let said = survey
        .explain(plain)
        .into_iter()
        .zip(survey.explain(secure));
    FirmwareFacts {
        plain: survey.choose(plain),
        secure: survey.choose(secure),
        descriptors: said
            .map(|((_, plain), (_, secure))| (plain, secure))
            .zip(survey.considered.iter().cloned())
            .map(|((plain, secure), considered)| DescriptorFacts {
                considered,
                plain,
                secure,
            })
            .collect(),
    }
}
