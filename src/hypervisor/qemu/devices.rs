//! The block devices, the network card and what observes on QEMU's command line.

use std::num::NonZeroU16;
use std::path::Path;

use serde_json::{Value, json};

use crate::domain::{
    Bind, Disk, DiskBus, DiskFormat, DomainSpec, Forward, Machine, NOTICE_PORT, Nic,
};
use crate::hypervisor::qemu::args::MonitorSocket;
use crate::hypervisor::qemu::options::{Arguments, Options, text};
use crate::hypervisor::qemu::virtiofs;
use crate::hypervisor::{HypervisorError, mac_address};

/// Name of the controller that CD drives are on.
const CONTROLLER: &str = "scsi";

/// Adds the disks, each a block node and the device that shows it to the guest.
pub(super) fn disks(args: &mut Arguments, disks: &[Disk]) -> Result<(), HypervisorError> {
    if disks.iter().any(|disk| disk.bus == DiskBus::Cdrom) {
        let controller = json!({"driver": "virtio-scsi-pci", "id": CONTROLLER});
        args.add("-device", controller.to_string());
    }
    for (index, disk) in disks.iter().enumerate() {
        let name = format!("disk-{index}");
        args.add("-blockdev", node(&name, disk)?.to_string());
        args.add("-device", device(&name, disk).to_string());
    }
    Ok(())
}

/// A block node of a file that is not a disk of the guest's, such as flash.
pub(super) fn plain_node(
    name: &str,
    file: &Path,
    format: DiskFormat,
    read_only: bool,
) -> Result<Value, HypervisorError> {
    Ok(without_backing(json!({
        "node-name": name,
        "driver": format.as_str(),
        "read-only": read_only,
        "file": {"driver": "file", "filename": text(file)?},
    })))
}

fn node(name: &str, disk: &Disk) -> Result<Value, HypervisorError> {
    let Disk {
        file: path,
        format,
        backing,
        virtual_size_bytes: _,
        read_only,
        // In `device`.
        serial: _,
        bus: _,
        boots: _,
    } = disk;
    let file = |file: &Path, read_only: bool| -> Result<Value, HypervisorError> {
        // What is not written is shared by VMs, so it is not locked either.
        let locking = if read_only { "off" } else { "auto" };
        Ok(json!({"driver": "file", "filename": text(file)?, "locking": locking}))
    };
    let mut node = without_backing(json!({
        "node-name": name,
        "driver": format.as_str(),
        "read-only": read_only,
        "discard": "unmap",
        "file": file(path, *read_only)?,
    }));
    if let Some(backing) = backing {
        node["backing"] = without_backing(json!({
            "driver": backing.format.as_str(),
            "read-only": true,
            "file": file(&backing.file, true)?,
        }));
    }
    Ok(node)
}

/// Keeps QEMU from opening what the header of an image names.
fn without_backing(mut node: Value) -> Value {
    if node["driver"] == DiskFormat::Qcow2.as_str() {
        node["backing"] = Value::Null;
    }
    node
}

fn device(name: &str, disk: &Disk) -> Value {
    let mut device = match disk.bus {
        DiskBus::Virtio => json!({"driver": "virtio-blk-pci", "drive": name}),
        // The one device that QEMU does not make without a serial number.
        DiskBus::Nvme => json!({"driver": "nvme", "drive": name, "serial": name}),
        DiskBus::Cdrom => {
            json!({"driver": "scsi-cd", "drive": name, "bus": format!("{CONTROLLER}.0")})
        }
    };
    if let Some(serial) = &disk.serial {
        device["serial"] = json!(serial.as_str());
    }
    if disk.boots {
        device["bootindex"] = json!(1);
    }
    device
}

/// Adds the directories that the guest may mount, each served by a daemon on a socket; QEMU has the
/// connections to them as it has its monitor.
pub(super) fn binds(args: &mut Arguments, binds: &[Bind], monitor: MonitorSocket) {
    for (number, bind) in binds.iter().enumerate() {
        let Bind {
            // In the daemon.
            directory: _,
            tag,
            read_only: _,
        } = bind;
        let name = format!("bind-{number}");
        let socket = Options::new("socket").with("id", &name);
        let socket = match monitor {
            MonitorSocket::Named => socket.with("path", &virtiofs::socket(number)),
            MonitorSocket::Inherited => socket.with("fd", &virtiofs::connection(number)),
        };
        args.add("-chardev", socket);
        let device = json!({"driver": "vhost-user-fs-pci", "chardev": name, "tag": tag.as_str()});
        args.add("-device", device.to_string());
    }
}

/// Adds the network card, if the VM has one, and what it is connected to.
pub(super) fn nic(args: &mut Arguments, spec: &DomainSpec) -> Result<(), HypervisorError> {
    let link = match &spec.nic {
        None => return Ok(()),
        Some(Nic::User { forwards }) => user_network(forwards),
        Some(Nic::Bridge(name)) => Options::new("bridge")
            .with("id", "net0")
            .with("br", name.as_str()),
        Some(Nic::Network(_)) => {
            let what = "a network of libvirt's";
            return Err(HypervisorError::unsupported("QEMU", spec, what));
        }
    };
    args.add("-netdev", link);
    // Without its boot ROM: a network boot is never wanted, and takes minutes to fail.
    let device = json!({
        "driver": "virtio-net-pci",
        "netdev": "net0",
        "mac": mac_address(&spec.uuid),
        "romfile": "",
    });
    args.add("-device", device.to_string());
    Ok(())
}

fn user_network(forwards: &[Forward]) -> Options {
    let mut options = Options::new("user").with("id", "net0");
    for Forward { host, guest } in forwards {
        let host = host.map_or(0, NonZeroU16::get);
        options = options.with("hostfwd", &format!("tcp:127.0.0.1:{host}-:{guest}"));
    }
    options
}

/// Adds what keeps the words that are not for the console: the debug port of x86's firmware, and the
/// port on which a guest tells that it is ready. They come last, so that no other device has
/// another place for them.
pub(super) fn observers(args: &mut Arguments, spec: &DomainSpec) -> Result<(), HypervisorError> {
    let file = |id: &str, path: &Path| -> Result<Options, HypervisorError> {
        let options = Options::new("file").with("id", id);
        Ok(options.with("path", &text(path)?))
    };
    if spec.machine == Machine::Amd64 {
        args.add("-chardev", file("firmware-log", &spec.firmware_log())?);
        // OVMF's and SeaBIOS's.
        let port = json!({"driver": "isa-debugcon", "iobase": 0x402, "chardev": "firmware-log"});
        args.add("-device", port.to_string());
    }
    args.add("-chardev", file("notices", &spec.notices())?);
    let bus = json!({"driver": "virtio-serial-pci", "id": "ports"});
    args.add("-device", bus.to_string());
    let port = json!({"driver": "virtserialport", "chardev": "notices", "name": NOTICE_PORT});
    args.add("-device", port.to_string());
    Ok(())
}
