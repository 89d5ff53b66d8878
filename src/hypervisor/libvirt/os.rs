//! What boots, in domain XML: the firmware, the kernel, and what the firmware is told.

use std::path::Path;

use crate::domain::{Boot, DiskFormat, DomainSpec, Firmware, Machine, OemString, Uefi, UefiImage};
use crate::hypervisor::libvirt::element::{Element, path_text};
use crate::hypervisor::{HypervisorError, RunsAs};

/// Returns the VM's `<os>`.
pub(super) fn os(spec: &DomainSpec, runs_as: RunsAs) -> Result<Element, HypervisorError> {
    let unsupported = |what| Err(HypervisorError::unsupported("libvirt", spec, what));
    let board = match spec.machine {
        Machine::Amd64 => "q35",
        Machine::Arm64 => "virt",
    };
    let mut os = Element::new("os").holding([Element::of_text("type", "hvm")
        .with("arch", spec.machine.isa())
        .with("machine", board)]);
    if let Some(firmware) = spec.boot.uefi() {
        if matches!(firmware.image, UefiImage::Combined { .. })
            && matches!(runs_as, RunsAs::Lent(_))
        {
            // libvirt gives its user the variable store that it is told of, and no code.
            return unsupported("firmware that is one writable file, unless root asks");
        }
        os = os.holding(flash(firmware, spec.machine)?);
    }
    let is_own = |file: &Path| file.starts_with(&spec.directory);
    if matches!(runs_as, RunsAs::Lent(_)) && !spec.boot.loaded().all(is_own) {
        // There is no label for them: it would give them to its user.
        return unsupported("a kernel or initramfs that is not its own, unless root asks");
    }
    os = match &spec.boot {
        Boot::Kernel {
            kernel,
            initramfs,
            command_line,
        } => {
            let initramfs = initramfs.as_deref().map(path_text).transpose()?;
            let command_line = Some(command_line.to_string()).filter(|line| !line.is_empty());
            os.holding([Element::of_text("kernel", path_text(kernel)?)])
                .holding(initramfs.map(|path| Element::of_text("initrd", path)))
                .holding(command_line.map(|line| Element::of_text("cmdline", line)))
        }
        Boot::Uki {
            firmware: _,
            uki,
            command_line,
        } => {
            let command_line = command_line.as_ref().map(ToString::to_string);
            os.holding([Element::of_text("kernel", path_text(uki)?)])
                .holding(command_line.map(|line| Element::of_text("cmdline", line)))
        }
        Boot::Disk(Firmware::Uefi(_)) => os,
        Boot::Disk(Firmware::Bios) => match spec.machine {
            Machine::Amd64 => os,
            Machine::Arm64 => return unsupported("a BIOS on Arm"),
        },
    };
    let menu = spec.boot.uefi().map(|_| {
        // AAVMF waits 5 s for a key unless a boot menu is asked for that waits 0 s.
        Element::new("bootmenu")
            .with("enable", "yes")
            .with("timeout", "0")
    });
    // Without this libvirt drops the strings, and says nothing.
    let smbios =
        (!spec.oem_strings.is_empty()).then(|| Element::new("smbios").with("mode", "sysinfo"));
    Ok(os.holding(menu).holding(smbios))
}

/// Returns the strings of the SMBIOS tables, if there are any.
pub(super) fn oem_strings(strings: &[OemString]) -> Option<Element> {
    if strings.is_empty() {
        return None;
    }
    let entries = strings
        .iter()
        .map(|string| Element::of_text("entry", string.as_str()));
    let strings = Element::new("oemStrings").holding(entries);
    Some(
        Element::new("sysinfo")
            .with("type", "smbios")
            .holding([strings]),
    )
}

/// The firmware is named file by file: libvirt's own choice (`firmware='efi'`) may be a build that
/// boots signed systems only, and would make the variable store outside of the VM's directory.
fn flash(firmware: &Uefi, machine: Machine) -> Result<Vec<Element>, HypervisorError> {
    let Uefi {
        image,
        // Its variables tell it, or its code.
        secure_boot: _,
        smm,
    } = firmware;
    // To libvirt `secure` is flash that only system management mode writes, which Arm has not.
    let secure = *smm && machine == Machine::Amd64;
    let loader = |file: &Path, format: DiskFormat, read_only| {
        let mut loader = Element::of_text("loader", path_text(file)?)
            .with("readonly", read_only)
            .with("type", "pflash");
        if secure {
            loader = loader.with("secure", "yes");
        }
        Ok::<_, HypervisorError>(formatted(loader, format))
    };
    Ok(match image {
        UefiImage::Split {
            code,
            vars,
            // `vars` is a copy of it already, and libvirt makes none of a file that is there.
            vars_template: _,
            format,
        } => {
            let nvram = Element::of_text("nvram", path_text(vars)?);
            vec![loader(code, *format, "yes")?, formatted(nvram, *format)]
        }
        UefiImage::Stateless { code, format } => {
            vec![loader(code, *format, "yes")?.with("stateless", "yes")]
        }
        UefiImage::Combined {
            file,
            template: _,
            format,
        } => vec![loader(file, *format, "no")?],
        UefiImage::Memory { rom } => {
            vec![Element::of_text("loader", path_text(rom)?).with("type", "rom")]
        }
    })
}

fn formatted(element: Element, format: DiskFormat) -> Element {
    match format {
        // The default, and the only format before libvirt 9.2, which had no word for it.
        DiskFormat::Raw => element,
        DiskFormat::Qcow2 => element.with("format", format.as_str()),
    }
}
