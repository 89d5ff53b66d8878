//! VMs for the golden tests of both renderers.

use std::num::NonZeroU32;

use crate::boot::CommandLine;
use crate::domain::{
    Accelerator, Backing, Bind, Boot, Disk, DiskBus, DiskFormat, DomainSpec, Firmware, FwCfg,
    Machine, Nic, Provenance, Uefi, UefiImage, Uuid,
};
use crate::oci::Digest;

/// Every sample with the name of its golden files.
pub(crate) fn all() -> Vec<(&'static str, DomainSpec)> {
    use Machine::{Amd64, Arm64};
    vec![
        ("bios-amd64", bios()),
        ("bridge", on(Nic::Bridge("br0".parse().unwrap()))),
        ("cdrom", cdrom()),
        ("combined-amd64", booted_by(Amd64, combined())),
        ("direct-amd64", direct(Amd64)),
        ("direct-amd64-without-disk", without_disk()),
        ("direct-arm64", direct(Arm64)),
        ("direct-arm64-kvm", under_kvm(direct(Arm64))),
        ("disk-amd64", firmware(Amd64)),
        ("disk-arm64", firmware(Arm64)),
        ("fw-cfg", with_guest_files()),
        ("hostile", hostile()),
        ("memory-amd64", booted_by(Amd64, memory())),
        ("memory-arm64", booted_by(Arm64, memory())),
        ("network", on(Nic::Network("default".parse().unwrap()))),
        ("nothing-boots", nothing_boots()),
        ("nvme", nvme()),
        ("bind", with_binds()),
        ("observed-amd64", observed(Amd64)),
        ("observed-arm64", observed(Arm64)),
        ("secure-boot-amd64", booted_by(Amd64, secure())),
        // There is no system management mode to be had on Arm, whoever asks for it.
        ("secure-boot-arm64", booted_by(Arm64, secure())),
        ("stateless-amd64", booted_by(Amd64, stateless())),
        ("uki-amd64", uki(Amd64)),
        ("uki-arm64", uki(Arm64)),
        ("uki-told", uki_told()),
    ]
}

fn with_binds() -> DomainSpec {
    let bind = |directory: &str, tag: &str, read_only| Bind {
        directory: directory.into(),
        tag: tag.parse().unwrap(),
        read_only,
    };
    DomainSpec {
        binds: vec![bind("/srv/a", "a", false), bind("/srv/b,c", "b-c", true)],
        ..direct(Machine::Amd64)
    }
}

fn observed(machine: Machine) -> DomainSpec {
    DomainSpec {
        is_observed: true,
        ..direct(machine)
    }
}

/// Direct kernel boot of an overlay and a squashfs, by translation.
pub(crate) fn direct(machine: Machine) -> DomainSpec {
    DomainSpec {
        name: "web".parse().unwrap(),
        uuid: Uuid::of("web"),
        machine,
        accelerator: Accelerator::Tcg,
        cpus: NonZeroU32::new(2).unwrap(),
        memory: "512M".parse().unwrap(),
        boot: Boot::Kernel {
            kernel: "/srv/store/kernel".into(),
            initramfs: Some("/srv/store/initramfs".into()),
            command_line: "console=ttyS0\tquiet  root=LABEL=\"a b\"".parse().unwrap(),
        },
        disks: vec![
            Disk {
                file: "/srv/vms/web/disk.qcow2".into(),
                format: DiskFormat::Qcow2,
                backing: Some(Backing {
                    file: "/srv/store/disk".into(),
                    format: DiskFormat::Raw,
                }),
                virtual_size_bytes: 1 << 30,
                read_only: false,
                serial: None,
                bus: DiskBus::Virtio,
                boots: false,
            },
            Disk {
                file: "/srv/store/squashfs".into(),
                format: DiskFormat::Raw,
                backing: None,
                virtual_size_bytes: 1 << 20,
                read_only: true,
                serial: Some("machineboot".parse().unwrap()),
                bus: DiskBus::Virtio,
                boots: false,
            },
        ],
        nic: Some(Nic::User {
            forwards: Vec::new(),
        }),
        fw_cfg: Vec::new(),
        oem_strings: Vec::new(),
        is_observed: false,
        directory: "/srv/vms/web".into(),
        provenance: Provenance {
            reference: "registry.example/os/web:1".into(),
            index_digest: Some(Digest::of(b"index")),
            manifest_digest: Digest::of(b"manifest"),
            method: "direct".into(),
        },
        binds: Vec::new(),
        qemu_arguments: Vec::new(),
    }
}

/// A disk and a squashfs under firmware, by translation.
pub(crate) fn firmware(machine: Machine) -> DomainSpec {
    booted_by(machine, Firmware::Uefi(split()))
}

fn booted_by(machine: Machine, firmware: Firmware) -> DomainSpec {
    let mut spec = DomainSpec {
        boot: Boot::Disk(firmware),
        nic: None,
        ..direct(machine)
    };
    spec.disks[0].boots = true;
    spec
}

fn split() -> Uefi {
    uefi(UefiImage::Split {
        code: "/usr/share/firmware/CODE.fd".into(),
        format: DiskFormat::Raw,
        vars: "/srv/vms/web/vars.fd".into(),
        vars_template: "/usr/share/firmware/VARS.fd".into(),
    })
}

fn uefi(image: UefiImage) -> Uefi {
    Uefi {
        image,
        secure_boot: false,
        smm: false,
    }
}

fn secure() -> Firmware {
    Firmware::Uefi(Uefi {
        secure_boot: true,
        smm: true,
        ..split()
    })
}

fn stateless() -> Firmware {
    Firmware::Uefi(uefi(UefiImage::Stateless {
        code: "/usr/share/firmware/CODE.fd".into(),
        format: DiskFormat::Raw,
    }))
}

fn combined() -> Firmware {
    Firmware::Uefi(uefi(UefiImage::Combined {
        file: "/srv/vms/web/firmware.fd".into(),
        template: "/usr/share/firmware/BOTH.fd".into(),
        format: DiskFormat::Raw,
    }))
}

fn memory() -> Firmware {
    Firmware::Uefi(uefi(UefiImage::Memory {
        rom: "/usr/share/firmware/ROM.fd".into(),
    }))
}

fn bios() -> DomainSpec {
    booted_by(Machine::Amd64, Firmware::Bios)
}

/// A unified kernel image beside a disk that firmware could boot as well.
fn uki(machine: Machine) -> DomainSpec {
    DomainSpec {
        boot: Boot::Uki {
            firmware: split(),
            uki: "/srv/store/uki".into(),
            command_line: None,
        },
        ..direct(machine)
    }
}

/// The same without a disk, with a command line of ours and strings for its stub.
fn uki_told() -> DomainSpec {
    let strings = [
        "io.systemd.credential:motd=hello, world",
        "x,path=/etc/shadow",
    ];
    DomainSpec {
        boot: Boot::Uki {
            firmware: split(),
            uki: "/srv/store/uki".into(),
            command_line: Some("console=ttyS0,115200 a=\"b c\"".parse().unwrap()),
        },
        disks: Vec::new(),
        oem_strings: strings.map(|string| string.parse().unwrap()).into(),
        ..direct(Machine::Amd64)
    }
}

/// An ISO image before a disk that it is to be installed on, and a second CD.
fn cdrom() -> DomainSpec {
    let mut spec = firmware(Machine::Amd64);
    let cd = |file: &str, boots| Disk {
        file: file.into(),
        serial: None,
        bus: DiskBus::Cdrom,
        boots,
        ..spec.disks[1].clone()
    };
    let (installer, drivers) = (cd("/srv/store/iso", true), cd("/srv/store/drivers", false));
    spec.disks[0].boots = false;
    spec.disks.insert(0, installer);
    spec.disks.push(drivers);
    spec
}

/// Disks on the bus whose driver a kernel has without an initramfs.
fn nvme() -> DomainSpec {
    let mut spec = firmware(Machine::Amd64);
    for disk in &mut spec.disks {
        disk.bus = DiskBus::Nvme;
    }
    spec
}

/// Firmware that finds a network and no disk.
fn nothing_boots() -> DomainSpec {
    let mut spec = firmware(Machine::Amd64);
    spec.disks.clear();
    spec.nic = direct(Machine::Amd64).nic;
    spec
}

fn on(nic: Nic) -> DomainSpec {
    DomainSpec {
        nic: Some(nic),
        ..firmware(Machine::Amd64)
    }
}

/// Values that would be markup, options or other protocols if they were pasted.
pub(crate) fn hostile() -> DomainSpec {
    let path =
        "/srv/x'/><target dev='vdz'/></disk><disk type=\"block\"><source dev='/dev/vda'/>&amp;&<";
    DomainSpec {
        boot: Boot::Kernel {
            kernel: format!("{path}/kernel,a=b").into(),
            initramfs: Some(format!("{path}/]]>").into()),
            command_line: "quiet</cmdline><loader>/etc/passwd</loader>"
                .parse()
                .unwrap(),
        },
        disks: vec![Disk {
            file: format!("{path}/disk,file.filename=/etc/passwd").into(),
            format: DiskFormat::Qcow2,
            backing: Some(Backing {
                file: format!("{path}/json:{{}}").into(),
                format: DiskFormat::Qcow2,
            }),
            virtual_size_bytes: 1 << 30,
            read_only: false,
            serial: None,
            bus: DiskBus::Virtio,
            boots: false,
        }],
        oem_strings: vec![
            "</entry></oemStrings></sysinfo><devices>&amp;"
                .parse()
                .unwrap(),
            "a,path=/etc/shadow,value=b,,c".parse().unwrap(),
        ],
        directory: path.into(),
        provenance: Provenance {
            reference: "a</ironboot:reference>&<b c='d\"'>".into(),
            index_digest: None,
            manifest_digest: Digest::of(b"manifest"),
            method: "<!--".into(),
        },
        ..direct(Machine::Amd64)
    }
}

/// A kernel alone, with nothing that could be left out.
fn without_disk() -> DomainSpec {
    let mut spec = under_kvm(direct(Machine::Amd64));
    spec.disks.clear();
    spec.nic = None;
    spec.provenance.index_digest = None;
    spec.boot = Boot::Kernel {
        kernel: "/srv/store/kernel".into(),
        initramfs: None,
        command_line: CommandLine::default(),
    };
    spec
}

fn under_kvm(spec: DomainSpec) -> DomainSpec {
    DomainSpec {
        accelerator: Accelerator::Kvm,
        ..spec
    }
}

fn with_guest_files() -> DomainSpec {
    let entry = |name: &str, file: &str| FwCfg {
        name: name.parse().unwrap(),
        file: file.into(),
    };
    DomainSpec {
        fw_cfg: vec![
            entry("opt/com.coreos/config", "/srv/vms/web/ignition.json"),
            entry("opt/io.systemd.credentials/motd", "/srv/vms/web/a b=c"),
        ],
        ..direct(Machine::Amd64)
    }
}
