//! The devices in domain XML.

use crate::domain::{Backing, Boot, Disk, DomainName, DomainSpec, Nic, Uuid};
use crate::hypervisor::libvirt::element::{Element, path_text};
use crate::hypervisor::{HypervisorError, Owner};

/// What libvirt does to the owners of a VM's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Labels {
    /// Nothing: QEMU runs as this user, who can open all of them already.
    Static(Owner),
    /// It gives them to QEMU's user while the VM runs, except those that are shared.
    Dynamic,
    /// Nothing: QEMU runs as whoever calls.
    None,
}

/// Returns the VM's disks, network card and serial port, and a source of randomness.
pub(super) fn devices(spec: &DomainSpec, labels: Labels) -> Result<Element, HypervisorError> {
    let mut disks = Vec::new();
    for (position, disk) in spec.disks.iter().enumerate() {
        let boots = position == 0 && matches!(spec.boot, Boot::Firmware(_));
        disks.push(self::disk(disk, position, boots, labels)?);
    }
    let nic = spec.nic.as_ref();
    let nic = nic.map(|nic| interface(nic, &spec.name, &spec.uuid));
    Ok(Element::new("devices")
        .holding(disks)
        .holding(nic.transpose()?)
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
    position: usize,
    boots: bool,
    labels: Labels,
) -> Result<Element, HypervisorError> {
    let Disk {
        file,
        format,
        backing,
        virtual_size_bytes: _,
        read_only,
        serial,
    } = disk;
    let file_source = Element::new("source").with("file", path_text(file)?);
    let file_source = if *read_only {
        file_source.holding(shared_label(labels))
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
                    .holding(shared_label(labels)),
                end,
            ])
        }
    };
    Ok(Element::new("disk")
        .with("type", "file")
        .with("device", "disk")
        .holding([
            Element::new("driver")
                .with("name", "qemu")
                .with("type", format.as_str()),
            file_source,
            chain,
            Element::new("target")
                .with("dev", disk_name(position))
                .with("bus", "virtio"),
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
fn disk_name(position: usize) -> String {
    let letter = char::from(b"abcdefghijklmnopqrstuvwxyz"[position % 26]);
    match position / 26 {
        0 => format!("vd{letter}"),
        rest => format!("{}{letter}", disk_name(rest - 1)),
    }
}

fn interface(nic: &Nic, name: &DomainName, uuid: &Uuid) -> Result<Element, HypervisorError> {
    let Nic { forwards } = nic;
    if !forwards.is_empty() {
        return Err(HypervisorError::Unsupported {
            hypervisor: "libvirt",
            domain: name.clone(),
            what: "forwarded ports",
        });
    }
    Ok(Element::new("interface").with("type", "user").holding([
        Element::new("mac").with("address", mac_address(uuid)),
        Element::new("model").with("type", "virtio"),
    ]))
}

/// Returns an address in QEMU's range that stays the same; libvirt would draw another one at
/// every define.
fn mac_address(uuid: &Uuid) -> String {
    let uuid = uuid.as_str();
    format!(
        "52:54:00:{}:{}:{}",
        &uuid[30..32],
        &uuid[32..34],
        &uuid[34..]
    )
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
fn shared_label(labels: Labels) -> Option<Element> {
    match labels {
        Labels::Dynamic => Some(
            Element::new("seclabel")
                .with("model", "dac")
                .with("relabel", "no"),
        ),
        Labels::Static(_) | Labels::None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::disk_name;

    #[test]
    fn disks_are_named_as_linux_names_them() {
        let names: Vec<_> = [0, 1, 25, 26, 51, 52, 701, 702]
            .into_iter()
            .map(disk_name)
            .collect();
        assert_eq!(
            names,
            ["vda", "vdb", "vdz", "vdaa", "vdaz", "vdba", "vdzz", "vdaaa"]
        );
    }
}
