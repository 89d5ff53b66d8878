//! The QEMU command line of a VM: a pure function of its spec.
//!
//! Values never become option syntax: block devices are JSON, other options go through
//! `Options`, which doubles the commas, and the command line is an argument of its own.

use std::ffi::OsString;
use std::path::Path;

use serde_json::json;

use crate::domain::{Accelerator, Boot, Disk, DomainSpec, Firmware, Forward, FwCfg, Machine, Nic};
use crate::hypervisor::HypervisorError;

/// Names of the files that QEMU makes in its working directory, which is the VM's own. They are
/// relative because the path of a socket has at most 107 bytes.
pub const MONITOR: &str = "qmp.sock";
/// See [`MONITOR`].
pub const PID_FILE: &str = "qemu.pid";

/// The command that runs a VM, to be started in the VM's directory.
///
/// The first serial port is QEMU's standard input and output; what it prints is also kept in
/// [`DomainSpec::console_log`]. QEMU ends when its guest powers off.
pub fn command(spec: &DomainSpec) -> Result<Vec<OsString>, HypervisorError> {
    // Every field by name: a new one that is not rendered must not compile.
    let DomainSpec {
        name,
        uuid,
        machine,
        accelerator,
        cpus,
        memory,
        boot,
        disks,
        nic,
        fw_cfg,
        directory: _,
        provenance: _,
    } = spec;
    let mut args: Vec<OsString> = vec![program(*machine).into()];
    let mut add = |option: &str, value: Option<String>| {
        args.push(option.into());
        args.extend(value.map(OsString::from));
    };
    add("-name", Some(Options::new(&format!("guest={name}")).text));
    add("-uuid", Some(uuid.to_string()));
    add("-no-user-config", None);
    add("-nodefaults", None);
    add("-display", Some("none".to_owned()));
    add(
        "-machine",
        Some(machine_options(*machine, *accelerator, boot)),
    );
    add("-accel", Some(accelerator_options(*accelerator)));
    add("-cpu", Some(cpu(*machine, *accelerator).to_owned()));
    add("-smp", Some(cpus.to_string()));
    add("-m", Some(format!("{}M", memory.mib())));
    add("-pidfile", Some(PID_FILE.to_owned()));
    add(
        "-chardev",
        Some(
            Options::new("socket")
                .with("id", "monitor")
                .with("path", MONITOR)
                .with("server", "on")
                .with("wait", "off")
                .text,
        ),
    );
    add("-mon", Some("chardev=monitor,mode=control".to_owned()));
    let log = text(&spec.console_log())?;
    add(
        "-chardev",
        Some(
            Options::new("stdio")
                .with("id", "console")
                .with("signal", "off")
                .with("logfile", &log)
                .text,
        ),
    );
    add("-serial", Some("chardev:console".to_owned()));
    add(
        "-object",
        Some(
            json!({"qom-type": "rng-random", "id": "rng", "filename": "/dev/urandom"}).to_string(),
        ),
    );
    add(
        "-device",
        Some(json!({"driver": "virtio-rng-pci", "rng": "rng"}).to_string()),
    );
    match boot {
        Boot::Kernel {
            kernel,
            initramfs,
            command_line,
        } => {
            add("-kernel", Some(text(kernel)?));
            if let Some(initramfs) = initramfs {
                add("-initrd", Some(text(initramfs)?));
            }
            add("-append", Some(command_line.as_str().to_owned()));
        }
        Boot::Firmware(firmware) => {
            let Firmware {
                code,
                format,
                vars,
                vars_template: _,
            } = firmware;
            for (node, file, read_only) in [("code", code, true), ("vars", vars, false)] {
                let node = json!({
                    "node-name": format!("firmware-{node}"),
                    "driver": format.as_str(),
                    "read-only": read_only,
                    "file": {"driver": "file", "filename": text(file)?},
                });
                add("-blockdev", Some(node.to_string()));
            }
            // Without this the firmware of `virt` waits 5 s for a key.
            add("-boot", Some("menu=on,splash-time=0".to_owned()));
        }
    }
    for (index, disk) in disks.iter().enumerate() {
        let (node, device) = disk_options(index, disk, boot)?;
        add("-blockdev", Some(node));
        add("-device", Some(device));
    }
    if let Some(Nic { forwards }) = nic {
        add("-netdev", Some(network(forwards)));
        // Without its boot ROM: a network boot is never wanted, and takes minutes to fail.
        let device = json!({"driver": "virtio-net-pci", "netdev": "net0", "romfile": ""});
        add("-device", Some(device.to_string()));
    }
    for FwCfg { name, file } in fw_cfg {
        let options = Options::new(&format!("name={name}")).with("file", &text(file)?);
        add("-fw_cfg", Some(options.text));
    }
    Ok(args)
}

/// The program that emulates `machine`.
#[must_use]
pub fn program(machine: Machine) -> &'static str {
    match machine {
        Machine::Amd64 => "qemu-system-x86_64",
        Machine::Arm64 => "qemu-system-aarch64",
    }
}

fn machine_options(machine: Machine, accelerator: Accelerator, boot: &Boot) -> String {
    let mut options = match machine {
        Machine::Amd64 => Options::new("q35"),
        // The interrupt controller of the host under KVM, the fastest one otherwise.
        Machine::Arm64 => Options::new("virt").with(
            "gic-version",
            match accelerator {
                Accelerator::Kvm => "host",
                Accelerator::Tcg => "3",
            },
        ),
    };
    if matches!(boot, Boot::Firmware(_)) {
        options = options
            .with("pflash0", "firmware-code")
            .with("pflash1", "firmware-vars");
    }
    options.text
}

fn accelerator_options(accelerator: Accelerator) -> String {
    match accelerator {
        Accelerator::Kvm => "kvm".to_owned(),
        Accelerator::Tcg => "tcg,thread=multi".to_owned(),
    }
}

fn cpu(machine: Machine, accelerator: Accelerator) -> &'static str {
    match (machine, accelerator) {
        (_, Accelerator::Kvm) => "host",
        (Machine::Amd64, Accelerator::Tcg) => "max",
        // `max` emulates pointer authentication, which is several times slower.
        (Machine::Arm64, Accelerator::Tcg) => "cortex-a57",
    }
}

/// The block node and the device of one disk.
fn disk_options(
    index: usize,
    disk: &Disk,
    boot: &Boot,
) -> Result<(String, String), HypervisorError> {
    let Disk {
        file: path,
        format,
        backing,
        virtual_size_bytes: _,
        read_only,
        serial,
    } = disk;
    let file = |file: &Path, read_only: bool| -> Result<serde_json::Value, HypervisorError> {
        // What is not written is shared by VMs, so it is not locked either.
        let locking = if read_only { "off" } else { "auto" };
        Ok(json!({"driver": "file", "filename": text(file)?, "locking": locking}))
    };
    let name = format!("disk-{index}");
    let mut node = json!({
        "node-name": name,
        "driver": format.as_str(),
        "read-only": read_only,
        "discard": "unmap",
        "file": file(path, *read_only)?,
    });
    if let Some(backing) = backing {
        let mut base = json!({
            "driver": backing.format.as_str(),
            "read-only": true,
            "file": file(&backing.file, true)?,
        });
        if backing.format == crate::domain::DiskFormat::Qcow2 {
            base["backing"] = serde_json::Value::Null;
        }
        node["backing"] = base;
    } else if *format == crate::domain::DiskFormat::Qcow2 {
        node["backing"] = serde_json::Value::Null;
    }
    let mut device = json!({"driver": "virtio-blk-pci", "drive": name});
    if let Some(serial) = serial {
        device["serial"] = json!(serial.as_str());
    }
    if index == 0 && matches!(boot, Boot::Firmware(_)) {
        device["bootindex"] = json!(1);
    }
    Ok((node.to_string(), device.to_string()))
}

fn network(forwards: &[Forward]) -> String {
    let mut options = Options::new("user").with("id", "net0");
    for Forward { host, guest } in forwards {
        options = options.with("hostfwd", &format!("tcp:127.0.0.1:{host}-:{guest}"));
    }
    options.text
}

/// The text of a path, as QEMU's options need it.
fn text(path: &Path) -> Result<String, HypervisorError> {
    path.to_str()
        .filter(|_| path.is_absolute())
        .map(str::to_owned)
        .ok_or_else(|| HypervisorError::Path {
            path: path.to_owned(),
        })
}

/// One option of QEMU's `key=value,…` syntax; commas in values are doubled.
struct Options {
    text: String,
}

impl Options {
    fn new(first: &str) -> Self {
        Self {
            text: first.replace(',', ",,"),
        }
    }

    fn with(mut self, key: &str, value: &str) -> Self {
        self.text
            .push_str(&format!(",{key}={}", value.replace(',', ",,")));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hypervisor::samples;

    /// The command line, one argument a line.
    fn lines(spec: &DomainSpec) -> String {
        let args = command(spec).unwrap();
        let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        args.join("\n") + "\n"
    }

    #[test]
    fn command_lines_are_as_they_were_agreed_on() {
        for (name, spec) in samples::all() {
            let path = format!("{}/fixtures/argv/{name}.txt", env!("CARGO_MANIFEST_DIR"));
            let actual = lines(&spec);
            if std::env::var_os("IRONBOOT_BLESS").is_some() {
                std::fs::write(&path, &actual).unwrap();
            }
            let expected = std::fs::read_to_string(&path).expect("IRONBOOT_BLESS=1 writes it");
            assert_eq!(actual, expected, "{name}");
        }
    }

    #[test]
    fn a_comma_in_a_path_stays_in_the_path() {
        let mut spec = samples::direct(Machine::Amd64);
        spec.directory = "/a,file=/etc/shadow".into();
        let text = lines(&spec);
        assert!(
            text.contains("logfile=/a,,file=/etc/shadow/console.log"),
            "{text}"
        );
    }

    #[test]
    fn ports_are_forwarded_from_loopback_only() {
        let mut spec = samples::direct(Machine::Amd64);
        spec.nic = Some(Nic {
            forwards: vec!["2222:22".parse().unwrap()],
        });
        let text = lines(&spec);
        assert!(
            text.contains("user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22\n"),
            "{text}"
        );
    }

    #[test]
    fn a_relative_path_is_refused() {
        let mut spec = samples::direct(Machine::Amd64);
        spec.disks[0].file = "nbd:127.0.0.1:1".into();
        assert!(matches!(command(&spec), Err(HypervisorError::Path { .. })));
    }
}
