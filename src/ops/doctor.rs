//! What this host has for each machine: QEMU, an accelerator, firmware. Judges nothing.

use std::time::Duration;

use crate::domain::Machine;
use crate::firmware::{self, Considered, FirmwareChoice, FirmwareError, Survey, UefiRequest};
use crate::host::AcceleratorChoice;
use crate::hypervisor::qemu::args::program;
use crate::hypervisor::qemu::version::{VersionError, version};
use crate::ops::Context;
use crate::ops::accelerator::{self, AcceleratorWish};

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
