//! What the blobs of a plan really are, and whether they can boot here.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::boot::firmware::UefiKind;
use crate::boot::{
    BootMethod, BootPlan, CommandLine, FirmwareWish, HostFirmware, UkiBoot, UkiStart,
};
use crate::content::disk::{DiskContent, DiskLayout};
use crate::content::uki::{self, UkiContent};
use crate::content::{self, Piece, Sample};
use crate::files::FileError;
use crate::oci::{Architecture, Descriptor, Digest};
use crate::stage::StageError;
use crate::store::{Blob, StoreError};

/// What [`inspect`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspected {
    /// The image's disk, if the plan uses it.
    pub disk: Option<DiskContent>,
    /// The UKI, if the plan boots it.
    pub uki: Option<InspectedUki>,
    /// What starts the disk or the ISO, if the plan boots one.
    pub starter: Option<Starter>,
}

/// A UKI that was looked into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InspectedUki {
    /// What is in it; none if that can not be known yet.
    pub content: Option<UkiContent>,
    /// The command line in it; empty if there is none.
    pub command_line: CommandLine,
}

/// What starts a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Starter {
    /// UEFI firmware.
    Uefi,
    /// The board's BIOS.
    Bios,
}

/// Finds a blob of the plan.
pub type Find<'a> = &'a dyn Fn(&Descriptor) -> Result<Option<Blob>, StoreError>;

/// Looks into the blobs of a plan, as `find` finds them. Errors if one of them could not work on
/// this host, or would do harm.
pub fn inspect(
    plan: &BootPlan,
    architecture: &Architecture,
    firmware: &HostFirmware,
    find: Find<'_>,
) -> Result<Inspected, StageError> {
    let mut inspected = Inspected::default();
    match &plan.method {
        BootMethod::Direct(direct) => {
            content::kernel::check(&sample(find, &direct.kernel)?, architecture)?;
            if let Some(initramfs) = &direct.initramfs {
                content::initramfs::check(&sample(find, initramfs)?)?;
            }
            if let Some(squashfs) = &direct.squashfs {
                content::check_squashfs(&sample(find, squashfs)?)?;
            }
        }
        BootMethod::Uki(boot) => inspected.uki = Some(inspect_uki(boot, architecture, find)?),
        BootMethod::Disk { disk } => {
            sample(find, disk)?.refuse_zeros("disk")?;
            let content = self::disk(disk, find)?;
            content::disk::check_bootable(&content, disk.digest, architecture)?;
            inspected.starter = Some(starter(disk.digest, &content.layout, firmware)?);
            inspected.disk = Some(content);
        }
        BootMethod::Iso { iso } => {
            content::iso::check(&sample(find, iso)?)?;
            // Most boot by either; which it is, only its boot catalogue tells.
            inspected.starter = Some(match firmware.uefi {
                Ok(_) => Starter::Uefi,
                Err(_) => Starter::Bios,
            });
        }
    }
    if let (Some(disk), None) = (plan.method.disk(), &inspected.disk) {
        inspected.disk = Some(self::disk(disk, find)?);
    }
    Ok(inspected)
}

/// Looks into a disk. Errors if it would do harm.
pub fn disk(disk: &Descriptor, find: Find<'_>) -> Result<DiskContent, StageError> {
    let sample = sample(find, disk)?;
    let (found, file) = open(find, disk)?;
    content::disk::probe(&sample, &mut |piece| read_at(&found, &file, piece))
}

/// What [`inspect`] would find if the blobs are what most are: for a dry run before the pull.
#[must_use]
pub fn presume(plan: &BootPlan, firmware: &HostFirmware) -> Inspected {
    Inspected {
        disk: plan.method.disk().map(|disk| DiskContent {
            qcow2: None,
            virtual_size_bytes: disk.size,
            layout: DiskLayout::Unknown,
        }),
        uki: match &plan.method {
            BootMethod::Uki(_) => Some(InspectedUki {
                content: None,
                command_line: CommandLine::default(),
            }),
            _ => None,
        },
        starter: match &plan.method {
            BootMethod::Disk { .. } | BootMethod::Iso { .. } if firmware.uefi.is_ok() => {
                Some(Starter::Uefi)
            }
            BootMethod::Disk { .. } | BootMethod::Iso { .. } => Some(Starter::Bios),
            BootMethod::Direct(_) | BootMethod::Uki(_) => None,
        },
    }
}

fn open(find: Find<'_>, descriptor: &Descriptor) -> Result<(Blob, File), StageError> {
    let blob = descriptor.digest;
    let found = find(descriptor)?.ok_or(StageError::Missing { blob })?;
    let file = found.open()?;
    Ok((found, file))
}

fn sample(find: Find<'_>, descriptor: &Descriptor) -> Result<Sample, StageError> {
    let (blob, file) = open(find, descriptor)?;
    let size_bytes = blob.size_bytes();
    let tail_bytes = content::TAIL_BYTES.min(size_bytes);
    Ok(Sample {
        digest: blob.digest(),
        head: blob.head(content::HEAD_BYTES)?,
        tail: read_at(
            &blob,
            &file,
            Piece {
                offset: size_bytes - tail_bytes,
                size_bytes: tail_bytes,
            },
        )?,
        size_bytes,
    })
}

pub(super) fn read_at(blob: &Blob, file: &File, piece: Piece) -> Result<Vec<u8>, StageError> {
    let of_blob = FileError::of("read", blob.path());
    let length = usize::try_from(piece.size_bytes)
        .map_err(|_| FileError::of("read", blob.path())(std::io::ErrorKind::OutOfMemory.into()))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, piece.offset)
        .map_err(of_blob)?;
    Ok(bytes)
}

fn inspect_uki(
    boot: &UkiBoot,
    architecture: &Architecture,
    find: Find<'_>,
) -> Result<InspectedUki, StageError> {
    let sample = sample(find, &boot.uki)?;
    let (found, file) = open(find, &boot.uki)?;
    let mut read = |piece| read_at(&found, &file, piece);
    let content: UkiContent = uki::read::<StageError>(&sample, architecture, &mut read)?;
    let blob = boot.uki.digest;
    if boot.start.uefi() == Some(UefiKind::Secure) && !content.is_signed {
        return Err(StageError::Unsigned { blob });
    }
    if boot.start == UkiStart::Extract && !content.boots_directly {
        return Err(StageError::NotDirect { blob });
    }
    // One that is replaced may be as it likes.
    let own = match boot.command_line {
        Some(_) => &[],
        None => content.command_line.as_deref().unwrap_or_default(),
    };
    let command_line =
        CommandLine::parse(own).map_err(|source| StageError::UkiCommandLine { blob, source })?;
    boot.words(&command_line, content.stub_version)
        .map_err(|source| StageError::UkiWords { blob, source })?;
    Ok(InspectedUki {
        content: Some(content),
        command_line,
    })
}

/// Chooses what starts a disk: UEFI where disk and host have it, else the BIOS.
fn starter(
    blob: Digest,
    layout: &DiskLayout,
    firmware: &HostFirmware,
) -> Result<Starter, StageError> {
    let (by_uefi, by_bios) = match layout {
        DiskLayout::Partitioned { uefi, bios, .. } => (*uefi, *bios),
        // Firmware starts a whole FAT file system as it does a partition.
        DiskLayout::FileSystem(_) => (true, false),
        // Not seen before the pull.
        DiskLayout::Unknown => (true, true),
    };
    let no_starter = |loaders, reason: &String| StageError::NoStarter {
        blob,
        loaders,
        reason: reason.clone(),
        is_ruled_out: firmware.asked.is_some(),
    };
    match (&firmware.uefi, &firmware.bios) {
        (Ok(_), _) if by_uefi => Ok(Starter::Uefi),
        (_, Ok(())) if by_bios => Ok(Starter::Bios),
        (Err(reason), _) if by_uefi => Err(no_starter("an EFI system partition", reason)),
        (_, Err(reason)) => Err(no_starter("a boot loader for a BIOS only", reason)),
        // UEFI asked for by name has ruled the BIOS out.
        (_, Ok(())) => {
            let reason = format!(
                "--firmware {} was given",
                firmware.asked.as_ref().unwrap_or(&FirmwareWish::Auto)
            );
            Err(no_starter("no boot loader for a BIOS", &reason))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_started_by_what_both_it_and_the_host_have() {
        let layout = |uefi, bios| DiskLayout::Partitioned {
            uefi,
            bios,
            architecture: None,
        };
        let has = |there: bool, what: &str| if there { Ok(()) } else { Err(what.to_owned()) };
        let check = |by: (bool, bool), host: (bool, bool)| {
            let firmware = HostFirmware {
                uefi: has(host.0, "no UEFI").map(|()| UefiKind::Open),
                bios: has(host.1, "no BIOS"),
                asked: None,
            };
            let blob = Digest::of(b"disk");
            starter(blob, &layout(by.0, by.1), &firmware).map_err(|error| match error {
                StageError::NoStarter { reason, .. } => reason,
                other => panic!("{other}"),
            })
        };
        let (yes, no) = (true, false);
        for (by, host, expected) in [
            ((yes, yes), (yes, yes), Ok(Starter::Uefi)),
            ((yes, no), (yes, no), Ok(Starter::Uefi)),
            ((no, yes), (yes, yes), Ok(Starter::Bios)),
            ((yes, yes), (no, yes), Ok(Starter::Bios)),
            ((yes, no), (no, yes), Err("no UEFI".to_owned())),
            ((no, yes), (yes, no), Err("no BIOS".to_owned())),
        ] {
            assert_eq!(check(by, host), expected, "{by:?} {host:?}");
        }
    }
}
