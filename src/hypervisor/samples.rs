//! VMs for the golden tests of both renderers.

use std::num::NonZeroU32;

use crate::boot::CommandLine;
use crate::domain::{
    Accelerator, Backing, Boot, Disk, DiskFormat, DomainSpec, Firmware, FwCfg, Machine, Nic,
    Provenance, Uuid,
};
use crate::oci::Digest;

/// Every sample with the name of its golden files.
pub(crate) fn all() -> Vec<(&'static str, DomainSpec)> {
    vec![
        ("direct-amd64", direct(Machine::Amd64)),
        ("direct-amd64-without-disk", without_disk()),
        ("direct-arm64", direct(Machine::Arm64)),
        ("direct-arm64-kvm", under_kvm(direct(Machine::Arm64))),
        ("disk-amd64", firmware(Machine::Amd64)),
        ("disk-arm64", firmware(Machine::Arm64)),
        ("fw-cfg", with_guest_files()),
        ("hostile", hostile()),
    ]
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
            },
            Disk {
                file: "/srv/store/squashfs".into(),
                format: DiskFormat::Raw,
                backing: None,
                virtual_size_bytes: 1 << 20,
                read_only: true,
                serial: Some("machineboot".parse().unwrap()),
            },
        ],
        nic: Some(Nic::default()),
        fw_cfg: Vec::new(),
        directory: "/srv/vms/web".into(),
        provenance: Provenance {
            reference: "registry.example/os/web:1".into(),
            index_digest: Some(Digest::of(b"index")),
            manifest_digest: Digest::of(b"manifest"),
            method: "direct".into(),
        },
    }
}

/// A disk and a squashfs under firmware, by translation.
pub(crate) fn firmware(machine: Machine) -> DomainSpec {
    DomainSpec {
        boot: Boot::Firmware(Firmware {
            code: "/usr/share/firmware/CODE.fd".into(),
            format: DiskFormat::Raw,
            vars: "/srv/vms/web/vars.fd".into(),
            vars_template: "/usr/share/firmware/VARS.fd".into(),
        }),
        nic: None,
        ..direct(machine)
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
        }],
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
