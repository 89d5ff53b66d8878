//! From a plan and its blobs to files that a VM can open.
//!
//! [`inspect`] looks at the blobs, [`describe`] says which files the VM will have (and touches
//! nothing), [`create`] makes those of them that are the VM's own.

mod overlay;

use std::fs::{self, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::boot::{BootMethod, BootPlan};
use crate::content::disk::{DiskContent, DiskLayout};
use crate::content::{self, ContentError, Sample};
use crate::domain::{
    Backing, Boot, Disk, DiskBus, DiskFormat, DomainSpec, Firmware, FwCfg, FwCfgName, Serial, Uefi,
    UefiImage,
};
use crate::files::{self, FileError};
use crate::firmware::{FirmwareChoice, FirmwareFiles};
use crate::oci::{Architecture, Descriptor, Digest};
use crate::store::{Blob, Store, StoreError};

/// Why a VM's files could not be made.
#[derive(Debug, Error)]
pub enum StageError {
    /// A blob is not what its layer says.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A blob that the plan needs is not in the store.
    #[error("blob is not in the store: {blob}")]
    Missing {
        /// The blob.
        blob: Digest,
    },
    /// A disk can not be made smaller than the image's.
    #[error("--disk-size {asked_bytes} is smaller than the image's disk of {image_bytes} bytes")]
    DiskSize {
        /// What was asked for.
        asked_bytes: u64,
        /// What the image has.
        image_bytes: u64,
    },
    /// `--disk-size` for an image without a disk.
    #[error("--disk-size was given, but the image boots without a disk of its own")]
    NoDisk,
    /// The plan boots a disk, and there is no firmware to do it.
    #[error("disk boot needs firmware")]
    NoFirmware,
    /// An overlay that the format can not express.
    #[error("can not make overlay {path} of {size_bytes} bytes on {base}")]
    Overlay {
        /// The overlay.
        path: PathBuf,
        /// Its base.
        base: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
}

/// What [`inspect`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inspected {
    /// The image's disk, if the plan uses it.
    pub disk: Option<DiskContent>,
}

/// What the guest is given through `fw_cfg`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Its name there.
    pub name: FwCfgName,
    /// Its content.
    pub content: Vec<u8>,
}

/// The files of a VM, as a spec names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedBoot {
    /// What the machine boots.
    pub boot: Boot,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// What the guest is given.
    pub fw_cfg: Vec<FwCfg>,
}

/// What a VM's files are made of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The plan.
    pub plan: &'a BootPlan,
    /// What its blobs are.
    pub inspected: &'a Inspected,
    /// Firmware for disk boot.
    pub firmware: Option<&'a FirmwareChoice>,
    /// Size of the VM's disk in bytes, if it is to be larger than the image's.
    pub disk_size_bytes: Option<u64>,
    /// What the guest is given.
    pub guest_files: &'a [GuestFile],
}

/// Looks into the blobs of a plan, as `find` finds them. Errors if one of them could not work, or would do harm.
pub fn inspect(
    plan: &BootPlan,
    architecture: &Architecture,
    find: &dyn Fn(&Descriptor) -> Result<Option<Blob>, StoreError>,
) -> Result<Inspected, StageError> {
    let sample = |descriptor: &Descriptor| -> Result<Sample, StageError> {
        let blob = descriptor.digest;
        let found = find(descriptor)?.ok_or(StageError::Missing { blob })?;
        sample(&found)
    };
    let mut inspected = Inspected::default();
    match &plan.method {
        BootMethod::Direct(direct) => {
            content::kernel::check(&sample(&direct.kernel)?, architecture)?;
            if let Some(initramfs) = &direct.initramfs {
                sample(initramfs)?.refuse_zeros("initramfs")?;
            }
            if let Some(squashfs) = &direct.squashfs {
                content::check_squashfs(&sample(squashfs)?)?;
            }
            if let Some(disk) = &direct.disk {
                inspected.disk = Some(content::disk::probe(&sample(disk)?)?);
            }
        }
        BootMethod::Disk { disk } => {
            let sample = sample(disk)?;
            sample.refuse_zeros("disk")?;
            inspected.disk = Some(content::disk::probe(&sample)?);
        }
    }
    Ok(inspected)
}

fn sample(blob: &Blob) -> Result<Sample, StageError> {
    let size_bytes = blob.size_bytes();
    let mut file = blob.open()?;
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(
        size_bytes.saturating_sub(content::TAIL_BYTES),
    ))
    .and_then(|_| file.take(content::TAIL_BYTES).read_to_end(&mut tail))
    .map_err(FileError::of("read", blob.path()))?;
    Ok(Sample {
        digest: blob.digest(),
        head: blob.head(content::HEAD_BYTES)?,
        tail,
        size_bytes,
    })
}

/// What [`inspect`] would find if the disk is what most are: raw. For a dry run before the pull.
#[must_use]
pub fn presume(plan: &BootPlan) -> Inspected {
    let disk = match &plan.method {
        BootMethod::Direct(direct) => direct.disk.as_ref(),
        BootMethod::Disk { disk } => Some(disk),
    };
    Inspected {
        disk: disk.map(|disk| DiskContent {
            format: DiskFormat::Raw,
            virtual_size_bytes: disk.size,
            layout: DiskLayout::Unknown,
        }),
    }
}

/// Says which files the VM in `directory` has. Touches nothing.
pub fn describe(
    parts: &Parts<'_>,
    store: &Store,
    directory: &Path,
) -> Result<StagedBoot, StageError> {
    let blob = |descriptor: &Descriptor| store.blob_path(&descriptor.digest);
    let mut disks = Vec::new();
    let boot = match &parts.plan.method {
        BootMethod::Direct(direct) => {
            if let Some(disk) = &direct.disk {
                disks.push(overlay_disk(parts, blob(disk), directory)?);
            }
            if let Some(squashfs) = &direct.squashfs {
                disks.push(Disk {
                    file: blob(squashfs),
                    format: DiskFormat::Raw,
                    backing: None,
                    virtual_size_bytes: squashfs.size,
                    read_only: true,
                    serial: Some(machineboot()),
                    bus: DiskBus::Virtio,
                    boots: false,
                });
            }
            Boot::Kernel {
                kernel: blob(&direct.kernel),
                initramfs: direct.initramfs.as_ref().map(blob),
                command_line: direct.command_line.clone(),
            }
        }
        BootMethod::Disk { disk } => {
            disks.push(overlay_disk(parts, blob(disk), directory)?);
            let choice = parts.firmware.ok_or(StageError::NoFirmware)?;
            disks[0].boots = true;
            Boot::Disk(Firmware::Uefi(Uefi {
                image: uefi_image(&choice.files, directory),
                secure_boot: choice.secure_boot,
                smm: choice.smm,
            }))
        }
    };
    if parts.disk_size_bytes.is_some() && parts.inspected.disk.is_none() {
        return Err(StageError::NoDisk);
    }
    let fw_cfg = parts
        .guest_files
        .iter()
        .map(|guest_file| FwCfg {
            name: guest_file.name.clone(),
            file: guest_file_path(guest_file, directory),
        })
        .collect();
    Ok(StagedBoot {
        boot,
        disks,
        fw_cfg,
    })
}

fn uefi_image(files: &FirmwareFiles, directory: &Path) -> UefiImage {
    match files.clone() {
        FirmwareFiles::Split {
            code,
            vars_template,
            format,
        } => UefiImage::Split {
            code,
            vars: directory.join("vars.fd"),
            vars_template,
            format,
        },
        FirmwareFiles::Stateless { code, format } => UefiImage::Stateless { code, format },
        FirmwareFiles::Combined { template, format } => UefiImage::Combined {
            file: directory.join("vars.fd"),
            template,
            format,
        },
        FirmwareFiles::Memory { rom } => UefiImage::Memory { rom },
    }
}

fn overlay_disk(parts: &Parts<'_>, base: PathBuf, directory: &Path) -> Result<Disk, StageError> {
    let content = parts.inspected.disk.as_ref().ok_or(StageError::NoDisk)?;
    let image_bytes = content.virtual_size_bytes;
    let virtual_size_bytes = match parts.disk_size_bytes {
        Some(asked_bytes) if asked_bytes < image_bytes => {
            return Err(StageError::DiskSize {
                asked_bytes,
                image_bytes,
            });
        }
        // Disks have whole sectors.
        Some(asked_bytes) => asked_bytes.next_multiple_of(512),
        None => image_bytes,
    };
    Ok(Disk {
        file: directory.join("disk-0.qcow2"),
        format: DiskFormat::Qcow2,
        backing: Some(Backing {
            file: base,
            format: content.format,
        }),
        virtual_size_bytes,
        read_only: false,
        serial: None,
        bus: DiskBus::Virtio,
        boots: false,
    })
}

/// The serial number by which a live system finds its squashfs:
/// `/dev/disk/by-id/virtio-machineboot`, which is what published command lines name.
fn machineboot() -> Serial {
    "machineboot"
        .parse()
        .expect("11 letters are a serial number")
}

/// The file is named by its content, so that a spec with other content is another spec.
fn guest_file_path(guest_file: &GuestFile, directory: &Path) -> PathBuf {
    let hash = &Digest::of(&guest_file.content).hex()[..16];
    directory.join(format!("fw_cfg-{hash}"))
}

/// Makes the VM's own files in `draft`, which will be renamed to the spec's directory.
///
/// Returns those that the VM writes or reads as its own, for the hypervisor's user to be given.
pub fn create(
    spec: &DomainSpec,
    guest_files: &[GuestFile],
    draft: &Path,
) -> Result<Vec<PathBuf>, StageError> {
    let in_draft = |path: &Path| draft.join(path.file_name().unwrap_or_default());
    let mut own = Vec::new();
    for disk in &spec.disks {
        if let Some(backing) = &disk.backing {
            let path = in_draft(&disk.file);
            overlay::create(&path, disk.virtual_size_bytes, backing)?;
            own.push(path);
        }
    }
    if let Some(UefiImage::Split {
        vars,
        vars_template: template,
        ..
    }) = spec.boot.uefi().map(|uefi| &uefi.image)
    {
        let path = in_draft(vars);
        let content = fs::read(template).map_err(FileError::of("read", template))?;
        write_private(&path, &content)?;
        own.push(path);
    }
    for guest_file in guest_files {
        let path = guest_file_path(guest_file, draft);
        write_private(&path, &guest_file.content)?;
        own.push(path);
    }
    files::sync_dir(draft)?;
    Ok(own)
}

fn write_private(path: &Path, content: &[u8]) -> Result<(), StageError> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .map_err(FileError::of("write", path))?;
    Ok(())
}
