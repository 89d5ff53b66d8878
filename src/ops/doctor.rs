//! What this host has for each machine: QEMU, an accelerator, firmware; and its libvirt. Judges
//! nothing.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::domain::Machine;
use crate::firmware::{self, Considered, FirmwareChoice, FirmwareError, Survey, UefiRequest};
use crate::host::AcceleratorChoice;
use crate::hypervisor::qemu::args::program;
use crate::hypervisor::qemu::version::{VersionError, version};
use crate::hypervisor::{HypervisorError, RunsAs};
use crate::ops::accelerator::{self, AcceleratorWish};
use crate::ops::{Context, OpsError, preflight};

/// Where libvirt's logger listens, which writes down what guests print.
const LOGGER: &str = "/run/libvirt/virtlogd-sock";

/// How long QEMU may take to tell its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

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
    let mut facts = vec![libvirt(context, "qemu:///system").await];
    if !rustix::process::geteuid().is_root() {
        facts.push(libvirt(context, "qemu:///session").await);
    }
    facts
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
        firmware: firmware::survey(&context.firmware_directories, machine).map(firmware_facts),
    }
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
