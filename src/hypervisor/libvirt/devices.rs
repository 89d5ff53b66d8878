//! The devices in domain XML.

use crate::domain::{Backing, Disk, DiskBus, DomainSpec, Nic};
use crate::hypervisor::libvirt::element::{Element, path_text};
use crate::hypervisor::{HypervisorError, RunsAs, mac_address};

/// Returns the VM's disks, network card and serial port, and a source of randomness.
pub(super) fn devices(spec: &DomainSpec, runs_as: RunsAs) -> Result<Element, HypervisorError> {
    let unsupported = |what| Err(HypervisorError::unsupported("libvirt", spec, what));
    let mut disks = Vec::new();
    for (index, disk) in spec.disks.iter().enumerate() {
        let others = spec.disks[..index].iter();
        let position = others.filter(|other| other.bus == disk.bus).count();
        let (device, bus, prefix) = match disk.bus {
            DiskBus::Virtio => ("disk", "virtio", "vd"),
            DiskBus::Cdrom => ("cdrom", "scsi", "sd"),
            // It passes NVMe devices of the host's through, and makes none of a file.
            DiskBus::Nvme => return unsupported("an NVMe disk"),
        };
        let target = Element::new("target")
            .with("dev", disk_name(prefix, position))
            .with("bus", bus);
        disks.push(self::disk(disk, device, target, runs_as)?);
    }
    let has_cd = spec.disks.iter().any(|disk| disk.bus == DiskBus::Cdrom);
    // The one that libvirt would add is another.
    let controller = has_cd.then(|| {
        Element::new("controller")
            .with("type", "scsi")
            .with("model", "virtio-scsi")
    });
    let nic = match &spec.nic {
        Some(Nic::User { forwards }) if !forwards.is_empty() => {
            return unsupported("forwarded ports");
        }
        nic => nic
            .as_ref()
            .map(|nic| interface(nic, &mac_address(&spec.uuid))),
    };
    Ok(Element::new("devices")
        .holding(controller)
        .holding(disks)
        .holding(nic)
        .holding(serial_console(&path_text(&spec.console_log())?))
        .holding([
            Element::new("rng")
                .with("model", "virtio")
                .holding([Element::of_text("backend", "/dev/urandom").with("model", "random")]),
            Element::new("memballoon").with("model", "none"),
        ]))
}

fn disk(
    disk: &Disk,
    device: &'static str,
    target: Element,
    runs_as: RunsAs,
) -> Result<Element, HypervisorError> {
    let Disk {
        file,
        format,
        backing,
        virtual_size_bytes: _,
        read_only,
        serial,
        // In `devices`.
        bus: _,
        boots,
    } = disk;
    let file_source = Element::new("source").with("file", path_text(file)?);
    let file_source = if *read_only {
        file_source.holding(shared_label(runs_as))
    } else {
        file_source
    };
    // An empty element ends the chain: QEMU then opens no file that a header names.
    let end = Element::new("backingStore");
    let chain = match backing {
        None => end,
        Some(Backing { file, format }) => {
            Element::new("backingStore").with("type", "file").holding([
                Element::new("format").with("type", format.as_str()),
                Element::new("source")
                    .with("file", path_text(file)?)
                    .holding(shared_label(runs_as)),
                end,
            ])
        }
    };
    Ok(Element::new("disk")
        .with("type", "file")
        .with("device", device)
        .holding([
            Element::new("driver")
                .with("name", "qemu")
                .with("type", format.as_str()),
            file_source,
            chain,
            target,
        ])
        .holding(read_only.then(|| Element::new("readonly")))
        .holding(
            serial
                .as_ref()
                .map(|serial| Element::of_text("serial", serial.as_str())),
        )
        .holding(boots.then(|| Element::new("boot").with("order", "1"))))
}

/// Returns `vda`, …, `vdz`, `vdaa`, …: bijective base 26.
fn disk_name(prefix: &str, position: usize) -> String {
    let letter = char::from(b"abcdefghijklmnopqrstuvwxyz"[position % 26]);
    match position / 26 {
        0 => format!("{prefix}{letter}"),
        rest => format!("{}{letter}", disk_name(prefix, rest - 1)),
    }
}

fn interface(nic: &Nic, mac_address: &str) -> Element {
    let (kind, source) = match nic {
        Nic::User { forwards: _ } => ("user", None),
        Nic::Network(name) => (
            "network",
            Some(Element::new("source").with("network", name.as_str())),
        ),
        Nic::Bridge(name) => (
            "bridge",
            Some(Element::new("source").with("bridge", name.as_str())),
        ),
    };
    Element::new("interface")
        .with("type", kind)
        // libvirt would draw another one at every define.
        .holding([Element::new("mac").with("address", mac_address)])
        .holding(source)
        .holding([
            Element::new("model").with("type", "virtio"),
            // A network boot is never wanted, and takes minutes to fail.
            Element::new("rom").with("enabled", "no"),
        ])
}

/// A terminal that can be typed on, and a file that has what was printed when nobody looked.
///
/// libvirt's logger appends to the file: it would replace one that it starts anew with a file that
/// only root can read.
fn serial_console(log: &str) -> [Element; 2] {
    [
        Element::new("serial").with("type", "pty").holding([
            Element::new("log").with("file", log).with("append", "on"),
            Element::new("target").with("port", "0"),
        ]),
        Element::new("console")
            .with("type", "pty")
            .holding([Element::new("target")
                .with("type", "serial")
                .with("port", "0")]),
    ]
}

/// Keeps a file's owner as it is where libvirt changes owners: it gives back kernels and writable
/// disks when a VM stops, but never read-only disks and backing files. Where it changes none it
/// refuses to be told so again.
fn shared_label(runs_as: RunsAs) -> Option<Element> {
    match runs_as {
        RunsAs::Lent(_) => Some(
            Element::new("seclabel")
                .with("model", "dac")
                .with("relabel", "no"),
        ),
        RunsAs::Given(_) | RunsAs::Caller => None,
    }
}

#[cfg(test)]
mod tests {
    use super::disk_name;

    #[test]
    fn disks_are_named_as_linux_names_them() {
        let names: Vec<_> = [0, 1, 25, 26, 51, 52, 701, 702]
            .into_iter()
            .map(|position| disk_name("vd", position))
            .collect();
        assert_eq!(
            names,
            ["vda", "vdb", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa"]
        );
    }
}
