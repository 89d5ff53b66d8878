//! The choice of a boot method, made as often as a blob turns out not to be what its layer says.

use crate::boot::plan::Metadata;
use crate::boot::{
    BootOptions, BootPlan, FirmwareWish, HostFirmware, PlanError, Rejected, UefiKind, plan,
};
use crate::domain::Machine;
use crate::firmware::{self, FirmwareChoice, FirmwareError, UefiRequest};
use crate::image::Image;
use crate::oci::Architecture;
use crate::ops::{Context, OpsError};

/// What plans for one image are made from.
#[derive(Debug)]
pub struct Planner {
    image: Image,
    metadata: Metadata,
    options: BootOptions,
    host: HostFirmware,
    choice: Option<FirmwareChoice>,
}

impl Planner {
    /// Looks at what the host has to start a machine of `architecture` with.
    ///
    /// Errors if firmware was asked for by name that the host does not have.
    pub fn new(
        context: &Context<'_>,
        image: &Image,
        metadata: Metadata,
        options: &BootOptions,
        architecture: &Architecture,
    ) -> Result<Self, OpsError> {
        let (host, choice) = look(context, architecture, &options.firmware)?;
        Ok(Self {
            image: image.clone(),
            metadata,
            options: options.clone(),
            host,
            choice,
        })
    }

    /// Chooses the boot method; `rejected` are passed over.
    pub fn plan(&self, rejected: &[Rejected]) -> Result<BootPlan, PlanError> {
        plan(
            &self.image,
            &self.metadata,
            &self.options,
            &self.host,
            rejected,
        )
    }

    /// Whether the method was left to the image, so that another may be tried.
    #[must_use]
    pub fn is_free(&self) -> bool {
        self.options.method.is_none()
    }

    /// What the host has to start a machine with.
    #[must_use]
    pub fn host(&self) -> &HostFirmware {
        &self.host
    }

    /// The UEFI firmware that would be taken.
    #[must_use]
    pub fn firmware(&self) -> Option<&FirmwareChoice> {
        self.choice.as_ref()
    }
}

/// What the host has to start a machine with, under `wish`.
fn look(
    context: &Context<'_>,
    architecture: &Architecture,
    wish: &FirmwareWish,
) -> Result<(HostFirmware, Option<FirmwareChoice>), OpsError> {
    let machine = match Machine::try_from(architecture) {
        Ok(machine) => machine,
        // Such an image can be looked at and pulled, and not be booted.
        Err(error) => {
            let reason = error.to_string();
            let host = HostFirmware {
                uefi: Err(reason.clone()),
                bios: Err(reason),
                asked: None,
            };
            return Ok((host, None));
        }
    };
    let asked = (*wish != FirmwareWish::Auto).then(|| wish.clone());
    let ruled_out = || format!("--firmware {wish} was given");
    let bios = match (wish, machine) {
        (FirmwareWish::Auto | FirmwareWish::Bios, Machine::Amd64) => Ok(()),
        (FirmwareWish::Auto | FirmwareWish::Bios, Machine::Arm64) => {
            Err("arm64 machines have no BIOS".to_owned())
        }
        _ => Err(ruled_out()),
    };
    let request = match wish {
        FirmwareWish::Auto | FirmwareWish::Uefi => UefiRequest::Plain,
        FirmwareWish::UefiSecure => UefiRequest::Secure,
        FirmwareWish::File(path) => UefiRequest::File(path.clone()),
        FirmwareWish::Bios => {
            let uefi = Err(ruled_out());
            return Ok((HostFirmware { uefi, bios, asked }, None));
        }
    };
    let survey = firmware::survey(&context.firmware_directories, machine)?;
    match survey.choose(&request) {
        Ok(choice) => {
            let kind = if choice.secure_boot {
                UefiKind::Secure
            } else {
                UefiKind::Open
            };
            let uefi = Ok(kind);
            Ok((HostFirmware { uefi, bios, asked }, Some(choice)))
        }
        // Only what needs it is out of the question.
        Err(FirmwareError::None { .. }) if asked.is_none() => {
            let isa = machine.isa();
            let uefi = Err(format!("no UEFI firmware for {isa} is installed"));
            Ok((HostFirmware { uefi, bios, asked }, None))
        }
        Err(error) => Err(error.into()),
    }
}
