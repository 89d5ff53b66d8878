//! VMs for the golden tests of both renderers.

use std::num::{NonZeroU16, NonZeroU32};

use crate::domain::{
    Accelerator, Backing, Boot, Disk, DiskFormat, DomainSpec, Firmware, Forward, FwCfg, Machine,
    Memory, Nic, Provenance, Uuid,
};
use crate::oci::Digest;

/// Every sample with the name of its golden file.
pub(crate) fn all() -> Vec<(&'static str, DomainSpec)> {
    vec![
        ("direct-amd64", direct_amd64()),
        ("direct-arm64", direct_arm64()),
        ("disk-amd64", disk(Machine::Amd64)),
        ("disk-arm64", disk(Machine::Arm64)),
        ("hostile", hostile()),
    ]
}

/// Direct kernel boot with an overlay, a squashfs, a network card and a guest file, under KVM.
pub(crate) fn direct_amd64() -> DomainSpec {
    DomainSpec {
        accelerator: Accelerator::Kvm,
        disks: vec![
            overlay(),
            Disk {
                file: "/store/blobs/sha256/squashfs".into(),
                format: DiskFormat::Raw,
                backing: None,
                virtual_size_bytes: 4096,
                read_only: true,
                serial: Some("machineboot".parse().unwrap()),
            },
        ],
        nic: Some(Nic {
            forwards: Vec::new(),
        }),
        fw_cfg: vec![FwCfg {
            name: "opt/com.coreos/config".parse().unwrap(),
            file: "/store/instances/vm/fw_cfg-0123456789abcdef".into(),
        }],
        ..minimal(Machine::Amd64)
    }
}

/// Direct kernel boot of an initramfs alone, by translation.
pub(crate) fn direct_arm64() -> DomainSpec {
    minimal(Machine::Arm64)
}

/// A disk under firmware, by translation.
pub(crate) fn disk(machine: Machine) -> DomainSpec {
    DomainSpec {
        boot: Boot::Firmware(Firmware {
            code: "/firmware/CODE.fd".into(),
            format: DiskFormat::Raw,
            vars: "/store/instances/vm/vars.fd".into(),
            vars_template: "/firmware/VARS.fd".into(),
        }),
        disks: vec![overlay()],
        ..minimal(machine)
    }
}

/// Values that try to be more than values.
pub(crate) fn hostile() -> DomainSpec {
    let odd = "/a,b'/><source dev=\"/dev/vda\"/>&<target ";
    DomainSpec {
        boot: Boot::Kernel {
            kernel: odd.into(),
            initramfs: Some(odd.into()),
            command_line:
                "a=\"b c\",d -drive file=/etc/passwd quiet</cmdline><loader>/etc/passwd</loader>"
                    .parse()
                    .unwrap(),
        },
        disks: vec![Disk {
            file: odd.into(),
            backing: Some(Backing {
                file: odd.into(),
                format: DiskFormat::Qcow2,
            }),
            ..overlay()
        }],
        provenance: Provenance {
            reference: "reg.io/<a>&\"b'".to_owned(),
            ..minimal(Machine::Amd64).provenance
        },
        ..minimal(Machine::Amd64)
    }
}

/// A VM with forwarded ports, which libvirt can not give.
pub(crate) fn forwarding() -> DomainSpec {
    let port = |number| NonZeroU16::new(number).unwrap();
    DomainSpec {
        nic: Some(Nic {
            forwards: vec![Forward {
                host: port(2222),
                guest: port(22),
            }],
        }),
        ..minimal(Machine::Amd64)
    }
}

fn overlay() -> Disk {
    Disk {
        file: "/store/instances/vm/disk-0.qcow2".into(),
        format: DiskFormat::Qcow2,
        backing: Some(Backing {
            file: "/store/blobs/sha256/disk".into(),
            format: DiskFormat::Raw,
        }),
        virtual_size_bytes: 1 << 30,
        read_only: false,
        serial: None,
    }
}

fn minimal(machine: Machine) -> DomainSpec {
    DomainSpec {
        name: "vm".parse().unwrap(),
        uuid: Uuid::of("vm"),
        machine,
        accelerator: Accelerator::Tcg,
        cpus: NonZeroU32::new(2).unwrap(),
        memory: Memory::try_from(512).unwrap(),
        boot: Boot::Kernel {
            kernel: "/store/blobs/sha256/kernel".into(),
            initramfs: Some("/store/blobs/sha256/initramfs".into()),
            command_line: format!("console={}", machine.serial_console())
                .parse()
                .unwrap(),
        },
        disks: Vec::new(),
        nic: None,
        fw_cfg: Vec::new(),
        directory: "/store/instances/vm".into(),
        provenance: Provenance {
            reference: "reg.io/os:1".to_owned(),
            index_digest: Some(Digest::of(b"index")),
            manifest_digest: Digest::of(b"manifest"),
            method: "direct".to_owned(),
        },
    }
}
