//! What an image and a host offer for each boot method, judged by the manifest.

use crate::boot::firmware::UefiKind;
use crate::boot::{
    BootMethod, BootOptions, CommandLine, CommandLineSource, DirectBoot, FirmwareWish,
    HostFirmware, MethodName, UkiBoot, UkiStart, uki::UkiStartName,
};
use crate::image::role::Generation;
use crate::image::{Image, LayerRole};
use crate::oci::Descriptor;

/// Whether a method can be had from an image.
pub(super) enum Offer {
    /// It can, and `auto` may take it.
    Yes(BootMethod),
    /// It can, but `auto` passes it over, for the reason given.
    OnRequest(BootMethod, String),
    /// It can not.
    No(String),
    /// It could on a host that has firmware.
    NoFirmware(String),
}

/// What every offer is made from.
pub(super) struct Question<'a> {
    pub image: &'a Image,
    pub options: &'a BootOptions,
    pub firmware: &'a HostFirmware,
    /// The command line that direct boot would have, and where it comes from.
    pub line: &'a (CommandLine, CommandLineSource),
}

impl Question<'_> {
    pub(super) fn offer(&self, method: MethodName) -> Offer {
        match method {
            MethodName::Direct => match self.layer(LayerRole::Kernel) {
                Some(kernel) => self.direct(kernel),
                None => lacks(LayerRole::Kernel),
            },
            MethodName::Uki => match self.layer(LayerRole::Uki) {
                Some(uki) => self.uki(uki),
                None => lacks(LayerRole::Uki),
            },
            MethodName::Disk => match self.disk() {
                Some(disk) => self.firmware_boot(BootMethod::Disk { disk }),
                None => lacks(LayerRole::Disk),
            },
            MethodName::Iso => match self.layer(LayerRole::Iso) {
                Some(iso) => self.firmware_boot(BootMethod::Iso { iso }),
                None => lacks(LayerRole::Iso),
            },
        }
    }

    fn layer(&self, role: LayerRole) -> Option<Descriptor> {
        self.image.roles.get(role).cloned()
    }

    /// The disk. FeOS publishes its own as a squashfs layer; whether it is one shows in its bytes.
    fn disk(&self) -> Option<Descriptor> {
        let roles = &self.image.roles;
        let mislabelled = || {
            (roles.generation(LayerRole::Squashfs) == Some(Generation::GardenLinux))
                .then(|| self.layer(LayerRole::Squashfs))?
        };
        self.layer(LayerRole::Disk).or_else(mislabelled)
    }

    fn direct(&self, kernel: Descriptor) -> Offer {
        if let Some(asked) = &self.firmware.asked {
            return Offer::No(format!(
                "it starts without firmware, and --firmware {asked} was given"
            ));
        }
        let (mut command_line, command_line_from) = self.line.clone();
        let console = self.options.console.as_ref();
        let console = console.filter(|_| !command_line.has_parameter("console"));
        // Where there is no room for it, the kernel boots without.
        let with_console = console.and_then(|console| command_line.append(console).ok());
        let console_added = with_console.is_some();
        command_line = with_console.unwrap_or(command_line);
        let parts = DirectBoot {
            kernel,
            initramfs: self.layer(LayerRole::Initramfs),
            command_line,
            command_line_from,
            console_added,
            disk: self.layer(LayerRole::Disk),
            squashfs: self.layer(LayerRole::Squashfs),
        };
        if parts.initramfs.is_none() && parts.disk.is_none() {
            let reason = "the kernel has neither an initramfs nor a disk to find its root on";
            return Offer::No(reason.to_owned());
        }
        let method = BootMethod::Direct(parts);
        if self.image.roles.is_legacy_combined() {
            let reason =
                "the kernel of a legacy combined image is for network boot, not for its disk";
            return Offer::OnRequest(method, reason.to_owned());
        }
        if command_line_from == CommandLineSource::Nobody {
            let reason = "the image has no command line for its kernel";
            return Offer::OnRequest(method, reason.to_owned());
        }
        Offer::Yes(method)
    }

    fn uki(&self, uki: Descriptor) -> Offer {
        let start = match self.uki_start() {
            Ok(start) => start,
            Err(reason) => {
                let lacks = self.firmware.asked.is_none()
                    && self.firmware.uefi.as_ref().err() == Some(&reason);
                return if lacks {
                    Offer::NoFirmware(reason)
                } else {
                    Offer::No(reason)
                };
            }
        };
        let options = self.options;
        if options.command_line.is_some() {
            match start {
                UkiStart::Loader(UefiKind::Secure) | UkiStart::Esp(UefiKind::Secure) => {
                    let reason = "under Secure Boot nobody replaces the command line in a UKI";
                    return Offer::No(reason.to_owned());
                }
                UkiStart::Esp(UefiKind::Open) => {
                    let reason = "on an EFI system partition nobody replaces the command line in \
                                  a UKI; --uki loader can";
                    return Offer::No(reason.to_owned());
                }
                UkiStart::Loader(UefiKind::Open) | UkiStart::Extract => {}
            }
        }
        Offer::Yes(BootMethod::Uki(UkiBoot {
            uki,
            disk: self.layer(LayerRole::Disk),
            start,
            command_line: options.command_line.clone(),
            append: options.append.clone(),
            append_if_possible: options.append_if_possible.clone(),
            console: options.console.clone(),
        }))
    }

    /// How a UKI is started here; the reason if it can not be.
    fn uki_start(&self) -> Result<UkiStart, String> {
        let HostFirmware { uefi, asked, .. } = self.firmware;
        match (self.options.uki, uefi) {
            (Some(UkiStartName::Loader), Ok(kind)) => Ok(UkiStart::Loader(*kind)),
            (Some(UkiStartName::Esp), Ok(kind)) => Ok(UkiStart::Esp(*kind)),
            (Some(UkiStartName::Loader | UkiStartName::Esp), Err(reason)) => Err(reason.clone()),
            (Some(UkiStartName::Extract), _) => match asked {
                Some(asked) => Err(format!(
                    "--uki extract starts it without firmware, and --firmware {asked} was given"
                )),
                None => Ok(UkiStart::Extract),
            },
            (None, Ok(UefiKind::Open)) => Ok(UkiStart::Loader(UefiKind::Open)),
            (None, Ok(UefiKind::Secure)) => Ok(UkiStart::Esp(UefiKind::Secure)),
            // What is in it boots without firmware as well, if none was asked for.
            (None, Err(_)) if asked.is_none() => Ok(UkiStart::Extract),
            (None, Err(reason)) => Err(reason.clone()),
        }
    }

    /// A method that needs UEFI or, at the least, a BIOS; which of them shows in the blob.
    fn firmware_boot(&self, method: BootMethod) -> Offer {
        match (&self.firmware.uefi, &self.firmware.bios) {
            (Ok(_), _) | (_, Ok(())) => Offer::Yes(method),
            (Err(uefi), Err(_)) if self.firmware.asked.is_none() => Offer::NoFirmware(uefi.clone()),
            (Err(_), Err(bios)) if self.firmware.asked == Some(FirmwareWish::Bios) => {
                Offer::No(bios.clone())
            }
            (Err(uefi), Err(_)) => Offer::No(uefi.clone()),
        }
    }
}

fn lacks(role: LayerRole) -> Offer {
    Offer::No(format!("the image has no {role} layer"))
}

/// What is worth saying of a method that was taken.
pub(super) fn notes(question: &Question<'_>, method: &BootMethod) -> Vec<String> {
    let mut notes = Vec::new();
    if let BootMethod::Uki(uki) = method
        && uki.start == UkiStart::Extract
        && question.options.uki.is_none()
        && let Err(reason) = &question.firmware.uefi
    {
        notes.push(format!(
            "{reason}: the kernel in the UKI is booted directly, without firmware"
        ));
    }
    if let (BootMethod::Disk { disk }, None) = (method, question.layer(LayerRole::Disk)) {
        notes.push(format!(
            "the image has no disk layer; its squashfs layer {} is taken for one, since disks are \
             published under that media type too",
            disk.digest
        ));
    }
    if let (Some(FirmwareWish::UefiSecure), BootMethod::Disk { .. } | BootMethod::Iso { .. }) =
        (&question.firmware.asked, method)
    {
        notes.push("what is on it is checked by the firmware, when it starts".to_owned());
    }
    notes
}
