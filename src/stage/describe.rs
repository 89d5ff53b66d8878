//! Which files a VM has, and what makes those that are its own. Touches nothing.

use std::path::{Path, PathBuf};

use crate::boot::uki::Words;
use crate::boot::{BootMethod, BootPlan, CommandLine, DirectBoot, UkiBoot, UkiStart};
use crate::content::Piece;
use crate::domain::{
    Backing, Boot, Disk, DiskBus, DiskFormat, Firmware, FwCfg, Machine, OemString, Serial, Uefi,
    UefiImage,
};
use crate::firmware::{FirmwareChoice, FirmwareFiles};
use crate::oci::{Descriptor, Digest};
use crate::stage::{GuestFile, Inspected, OwnContent, OwnFile, StageError, StagedBoot, Starter};
use crate::store::Store;

/// The SMBIOS string from which systemd's stub takes words for the kernel (systemd-stub(7)).
const STUB_WORDS: &str = "io.systemd.stub.kernel-cmdline-extra=";

/// Which files of the image's the hypervisor loads for the machine: kernel, initramfs, UKI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loaded {
    /// The store's, which all VMs share.
    Shared,
    /// Copies of the VM's own, for a hypervisor that changes the owners of what it loads.
    Copied,
}

/// What a VM's files are made of.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// The plan.
    pub plan: &'a BootPlan,
    /// What its blobs are.
    pub inspected: &'a Inspected,
    /// The machine.
    pub machine: Machine,
    /// UEFI firmware, if the host has what was asked for.
    pub firmware: Option<&'a FirmwareChoice>,
    /// Size of the VM's disk in bytes, if it is to be larger than the image's.
    pub disk_size_bytes: Option<u64>,
    /// What the guest is given.
    pub guest_files: &'a [GuestFile],
    /// What the guest reads in its SMBIOS tables.
    pub oem_strings: &'a [OemString],
    /// What the hypervisor loads.
    pub loaded: Loaded,
}

/// Says which files the VM in `directory` has. Touches nothing.
pub fn describe(
    parts: &Parts<'_>,
    store: &Store,
    directory: &Path,
) -> Result<StagedBoot, StageError> {
    let mut stage = Stage {
        parts,
        store,
        directory,
        disks: Vec::new(),
        oem_strings: parts.oem_strings.to_vec(),
        own: Vec::new(),
        console_added: false,
        left_out: None,
    };
    let boot = match &parts.plan.method {
        BootMethod::Direct(direct) => stage.direct(direct)?,
        BootMethod::Uki(uki) => stage.uki(uki)?,
        BootMethod::Disk { disk } => {
            let mut disk = stage.overlay(disk)?;
            disk.boots = true;
            stage.disks.push(disk);
            Boot::Disk(stage.firmware()?)
        }
        BootMethod::Iso { iso } => {
            let file = stage.blob(iso);
            stage.disks.push(Disk {
                bus: DiskBus::Cdrom,
                boots: true,
                ..shared_disk(file, iso)
            });
            Boot::Disk(stage.firmware()?)
        }
    };
    if parts.disk_size_bytes.is_some() && parts.plan.method.disk().is_none() {
        return Err(StageError::NoDisk);
    }
    let has_smbios = !matches!(
        (&boot, parts.machine),
        (Boot::Kernel { .. }, Machine::Arm64)
    );
    if !has_smbios && !parts.oem_strings.is_empty() {
        return Err(StageError::NoSmbios);
    }
    let fw_cfg = stage.guest_files();
    let Stage {
        parts: _,
        store: _,
        directory: _,
        disks,
        oem_strings,
        own,
        console_added,
        left_out,
    } = stage;
    Ok(StagedBoot {
        boot,
        disks,
        fw_cfg,
        oem_strings,
        own,
        console_added,
        left_out,
    })
}

/// A VM's files as they come together.
struct Stage<'a> {
    parts: &'a Parts<'a>,
    store: &'a Store,
    directory: &'a Path,
    disks: Vec<Disk>,
    oem_strings: Vec<OemString>,
    own: Vec<OwnFile>,
    console_added: bool,
    left_out: Option<CommandLine>,
}

impl Stage<'_> {
    fn blob(&self, descriptor: &Descriptor) -> PathBuf {
        self.store.blob_path(&descriptor.digest)
    }

    /// Adds a file of the VM's own.
    fn own(&mut self, name: &str, content: OwnContent) -> PathBuf {
        let path = self.directory.join(name);
        self.own.push(OwnFile {
            path: path.clone(),
            content,
        });
        path
    }

    /// What the hypervisor loads of the image's; `name` is that of a copy.
    fn loaded(&mut self, name: &str, blob: &Descriptor) -> PathBuf {
        let of = self.blob(blob);
        match self.parts.loaded {
            Loaded::Shared => of,
            Loaded::Copied => {
                let whole = Piece {
                    offset: 0,
                    size_bytes: blob.size,
                };
                let pieces = vec![whole];
                self.own(name, OwnContent::Pieces { of, pieces })
            }
        }
    }

    fn direct(&mut self, direct: &DirectBoot) -> Result<Boot, StageError> {
        self.console_added = direct.console_added;
        if let Some(disk) = &direct.disk {
            let mut disk = self.overlay(disk)?;
            disk.bus = bus_of_root(&direct.command_line);
            self.disks.push(disk);
        }
        if let Some(squashfs) = &direct.squashfs {
            let file = self.blob(squashfs);
            self.disks.push(Disk {
                serial: Some(machineboot()),
                ..shared_disk(file, squashfs)
            });
        }
        let initramfs = direct.initramfs.as_ref();
        Ok(Boot::Kernel {
            kernel: self.loaded("kernel", &direct.kernel),
            initramfs: initramfs.map(|blob| self.loaded("initramfs", blob)),
            command_line: direct.command_line.clone(),
        })
    }

    fn uki(&mut self, boot: &UkiBoot) -> Result<Boot, StageError> {
        let blob = boot.uki.digest;
        let inspected = self.parts.inspected.uki.as_ref();
        let content = inspected.and_then(|uki| uki.content.as_ref());
        let none = CommandLine::default();
        let own_line = inspected.map_or(&none, |uki| &uki.command_line);
        let Words {
            replacement,
            smbios,
            left_out,
            console_added,
        } = boot
            .words(own_line, content.and_then(|content| content.stub_version))
            .map_err(|source| StageError::UkiWords { blob, source })?;
        (self.left_out, self.console_added) = (left_out, console_added);
        if let Some(disk) = &boot.disk {
            let disk = self.overlay(disk)?;
            self.disks.push(disk);
        }
        if let Some(words) = smbios {
            let text = format!("{STUB_WORDS}{words}");
            let string = text
                .parse()
                .expect("a command line has no control characters");
            self.oem_strings.push(string);
        }
        let uki = self.blob(&boot.uki);
        match boot.start {
            UkiStart::Loader(_) => Ok(Boot::Uki {
                firmware: self.uefi()?,
                uki: self.loaded("uki.efi", &boot.uki),
                command_line: replacement,
            }),
            UkiStart::Esp(_) => {
                let size_bytes = boot.uki.size;
                let loader = OwnContent::Esp {
                    loader: uki,
                    loader_bytes: u32::try_from(size_bytes)
                        .map_err(|_| StageError::UkiTooLarge { blob, size_bytes })?,
                    name: loader_name(self.parts.machine),
                };
                let file = self.own("esp.img", loader);
                // After the image's disk, which keeps its name; it is the VM's own to write.
                self.disks.push(Disk {
                    read_only: false,
                    boots: true,
                    ..shared_disk(file, &boot.uki)
                });
                Ok(Boot::Disk(Firmware::Uefi(self.uefi()?)))
            }
            UkiStart::Extract => {
                let pieces = |pieces| OwnContent::Pieces {
                    of: uki.clone(),
                    pieces,
                };
                // In a dry run before the pull, where they lie is not known yet.
                let content = content.ok_or(StageError::Missing { blob })?;
                let kernel = self.own("kernel", pieces(vec![content.linux]));
                let initramfs = Some(&content.initramfs).filter(|pieces| !pieces.is_empty());
                let initramfs =
                    initramfs.map(|initramfs| self.own("initramfs", pieces(initramfs.clone())));
                Ok(Boot::Kernel {
                    kernel,
                    initramfs,
                    command_line: replacement.unwrap_or_default(),
                })
            }
        }
    }

    fn overlay(&mut self, base: &Descriptor) -> Result<Disk, StageError> {
        let content = self.parts.inspected.disk.as_ref();
        let content = content.ok_or(StageError::NoDisk)?;
        let image_bytes = content.virtual_size_bytes;
        let size_bytes = match self.parts.disk_size_bytes {
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
        // The image's own metadata is nothing that a hypervisor gets to read.
        let backing = Backing {
            file: match content.qcow2 {
                Some(_) => self.store.raw_path(&base.digest),
                None => self.blob(base),
            },
            format: DiskFormat::Raw,
        };
        let overlay = OwnContent::Overlay {
            size_bytes,
            backing: backing.clone(),
        };
        Ok(Disk {
            file: self.own("disk-0.qcow2", overlay),
            format: DiskFormat::Qcow2,
            backing: Some(backing),
            virtual_size_bytes: size_bytes,
            read_only: false,
            serial: None,
            bus: DiskBus::Virtio,
            boots: false,
        })
    }

    /// The firmware that starts a disk.
    fn firmware(&mut self) -> Result<Firmware, StageError> {
        match self.parts.inspected.starter {
            Some(Starter::Bios) => Ok(Firmware::Bios),
            Some(Starter::Uefi) | None => self.uefi().map(Firmware::Uefi),
        }
    }

    fn uefi(&mut self) -> Result<Uefi, StageError> {
        let choice = self.parts.firmware.ok_or(StageError::NoFirmware)?;
        let copy = |of: &PathBuf| OwnContent::Copy { of: of.clone() };
        let image = match &choice.files {
            FirmwareFiles::Split {
                code,
                vars_template,
                format,
            } => UefiImage::Split {
                code: code.clone(),
                vars: self.own("vars.fd", copy(vars_template)),
                vars_template: vars_template.clone(),
                format: *format,
            },
            FirmwareFiles::Stateless { code, format } => UefiImage::Stateless {
                code: code.clone(),
                format: *format,
            },
            FirmwareFiles::Combined { template, format } => UefiImage::Combined {
                file: self.own("firmware.fd", copy(template)),
                template: template.clone(),
                format: *format,
            },
            FirmwareFiles::Memory { rom } => UefiImage::Memory { rom: rom.clone() },
        };
        Ok(Uefi {
            image,
            secure_boot: choice.secure_boot,
            smm: choice.smm,
        })
    }

    fn guest_files(&mut self) -> Vec<FwCfg> {
        let parts = self.parts;
        let entries = parts.guest_files.iter().map(|guest_file| {
            // Named by its content, so that a spec with other content is another spec.
            let hash = &Digest::of(&guest_file.content).hex()[..16];
            let content = OwnContent::Bytes(guest_file.content.clone());
            FwCfg {
                name: guest_file.name.clone(),
                file: self.own(&format!("fw_cfg-{hash}"), content),
            }
        });
        entries.collect()
    }
}

/// A file that VMs share, as a disk that none of them writes.
fn shared_disk(file: PathBuf, descriptor: &Descriptor) -> Disk {
    Disk {
        file,
        format: DiskFormat::Raw,
        backing: None,
        virtual_size_bytes: descriptor.size,
        read_only: true,
        serial: None,
        bus: DiskBus::Virtio,
        boots: false,
    }
}

/// The bus on which the command line looks for the root. Virtio, unless it names an NVMe disk, as
/// kernels do that boot without an initramfs: that driver is commonly built in.
fn bus_of_root(command_line: &CommandLine) -> DiskBus {
    match command_line.parameter("root") {
        Some(root) if root.starts_with("/dev/nvme") => DiskBus::Nvme,
        _ => DiskBus::Virtio,
    }
}

/// The serial number by which a live system finds its squashfs:
/// `/dev/disk/by-id/virtio-machineboot`, which is what published command lines name.
fn machineboot() -> Serial {
    "machineboot"
        .parse()
        .expect("11 letters are a serial number")
}

/// The name under which firmware looks for a loader on removable media.
///
/// Source: UEFI 2.10, section 3.5.1.1.
fn loader_name(machine: Machine) -> &'static str {
    match machine {
        Machine::Amd64 => "BOOTX64.EFI",
        Machine::Arm64 => "BOOTAA64.EFI",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_is_on_the_bus_where_the_command_line_looks_for_its_root() {
        for (line, bus) in [
            ("root=/dev/vda2 ro", DiskBus::Virtio),
            ("root=/dev/nvme0n1p2 ro", DiskBus::Nvme),
            ("root=LABEL=nvme", DiskBus::Virtio),
            ("quiet", DiskBus::Virtio),
        ] {
            assert_eq!(bus_of_root(&line.parse().unwrap()), bus, "{line}");
        }
    }
}
