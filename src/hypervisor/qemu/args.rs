//! The QEMU command line of a VM: a pure function of its spec.
//!
//! Values never become option syntax: block devices are JSON, other options go through
//! `Options`, which doubles the commas, and the command line is an argument of its own.

use std::ffi::OsString;
use std::path::Path;

use serde_json::json;

use crate::domain::{
    Accelerator, Boot, DiskFormat, DomainSpec, Firmware, FwCfg, Machine, Nic, Uefi, UefiImage,
};
use crate::hypervisor::qemu::devices;
use crate::hypervisor::qemu::options::{Arguments, Options, text};
use crate::hypervisor::{HypervisorError, without_network_boot};

/// Names of files in QEMU's working directory, which is the VM's own. They are relative because the
/// path of a socket has at most 107 bytes.
pub const MONITOR: &str = "qmp.sock";
/// See [`MONITOR`].
pub const PID_FILE: &str = "qemu.pid";
/// The file descriptor of an inherited monitor: the first that no process has for itself.
pub const MONITOR_DESCRIPTOR: i32 = 3;

/// Where QEMU has the socket of its monitor from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MonitorSocket {
    /// It makes it as [`MONITOR`]: in a command that somebody types.
    Named,
    /// It is there already, as [`MONITOR_DESCRIPTOR`]: nobody waits for it to be made, and nothing
    /// else can have its place.
    Inherited,
}

/// The command that runs a VM, to be started in the VM's directory.
///
/// The first serial port is QEMU's standard input and output; what it prints is also kept in
/// [`DomainSpec::console_log`]. QEMU ends when its guest powers off.
///
/// Errors if a path is relative or no text, and if the spec asks for what QEMU has not.
pub fn command(
    spec: &DomainSpec,
    monitor: MonitorSocket,
) -> Result<Vec<OsString>, HypervisorError> {
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
        oem_strings,
        is_observed,
        directory: _,
        provenance: _,
        binds,
        qemu_arguments,
    } = spec;
    let mut args = Arguments::of(program(*machine));
    args.add("-name", Options::of("guest", name.as_str()));
    args.add("-uuid", uuid.as_str());
    args.flag("-no-user-config");
    args.flag("-nodefaults");
    if let Some(sandbox) = sandbox(nic.as_ref()) {
        args.add("-sandbox", sandbox);
    }
    args.add("-display", "none");
    let mut board = machine_options(*machine, *accelerator, boot);
    if !binds.is_empty() {
        // What serves a directory reads and writes the guest's memory.
        let memory = json!({
            "qom-type": "memory-backend-memfd",
            "id": "memory",
            "size": memory.mib() << 20,
            "share": true,
        });
        args.add("-object", memory.to_string());
        board = board.with("memory-backend", "memory");
    }
    args.add("-machine", board);
    args.add("-accel", accelerator_options(*accelerator));
    args.add("-cpu", cpu(*machine, *accelerator));
    args.add("-smp", cpus.to_string());
    args.add("-m", format!("{}M", memory.mib()));
    args.add("-pidfile", PID_FILE);
    let socket = Options::new("socket").with("id", "monitor");
    let of_monitor = match monitor {
        MonitorSocket::Named => socket.with("path", MONITOR),
        MonitorSocket::Inherited => socket.with("fd", &MONITOR_DESCRIPTOR.to_string()),
    };
    let of_monitor = of_monitor.with("server", "on").with("wait", "off");
    args.add("-chardev", of_monitor);
    args.add("-mon", "chardev=monitor,mode=control");
    let console = Options::new("stdio")
        .with("id", "console")
        .with("signal", "off")
        .with("logfile", &text(&spec.console_log())?);
    args.add("-chardev", console);
    args.add("-serial", "chardev:console");
    let source = json!({"qom-type": "rng-random", "id": "rng", "filename": "/dev/urandom"});
    args.add("-object", source.to_string());
    let rng = json!({"driver": "virtio-rng-pci", "rng": "rng"});
    args.add("-device", rng.to_string());
    if let Some(firmware) = boot.uefi() {
        add_firmware(&mut args, *machine, firmware)?;
    }
    add_boot(&mut args, spec)?;
    devices::disks(&mut args, disks)?;
    devices::nic(&mut args, spec)?;
    for FwCfg { name, file } in fw_cfg {
        let options = Options::of("name", name.as_str()).with("file", &text(file)?);
        args.add("-fw_cfg", options);
    }
    for name in without_network_boot(spec) {
        let options = Options::of("name", name).with("string", "n");
        args.add("-fw_cfg", options);
    }
    for string in oem_strings {
        let options = Options::of("type", "11").with("value", string.as_str());
        args.add("-smbios", options);
    }
    if *is_observed {
        devices::observers(&mut args, spec)?;
    }
    devices::binds(&mut args, binds, monitor);
    // Last, as the later of two words is the one that counts for much of what QEMU takes.
    for argument in qemu_arguments {
        args.flag(argument);
    }
    Ok(args.into_command())
}

/// The program that emulates `machine`.
#[must_use]
pub fn program(machine: Machine) -> &'static str {
    match machine {
        Machine::Amd64 => "qemu-system-x86_64",
        Machine::Arm64 => "qemu-system-aarch64",
    }
}

/// What QEMU is forbidden once it reads its options, as libvirt forbids it.
fn sandbox(nic: Option<&Nic>) -> Option<&'static str> {
    match nic {
        // A bridge is joined by a helper, which QEMU must spawn; and a process in any sandbox at
        // all can not become root by that helper's set-user-ID bit.
        Some(Nic::Bridge(_)) => None,
        Some(Nic::User { .. } | Nic::Network(_)) | None => {
            Some("on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny")
        }
    }
}

fn machine_options(machine: Machine, accelerator: Accelerator, boot: &Boot) -> Options {
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
    if let Some(firmware) = boot.uefi() {
        if firmware.smm && machine == Machine::Amd64 {
            options = options.with("smm", "on");
        }
        for (unit, flash) in flash(&firmware.image).iter().enumerate() {
            options = options.with(&format!("pflash{unit}"), flash.node);
        }
    }
    options
}

fn accelerator_options(accelerator: Accelerator) -> &'static str {
    match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "tcg,thread=multi",
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

/// A flash image of the firmware's.
struct Flash<'spec> {
    /// The name of its block node.
    node: &'static str,
    file: &'spec Path,
    format: DiskFormat,
    read_only: bool,
}

/// The flash images in the order in which the machine maps them.
fn flash(image: &UefiImage) -> Vec<Flash<'_>> {
    let flash = |node, file, format, read_only| Flash {
        node,
        file,
        format,
        read_only,
    };
    match image {
        UefiImage::Split {
            code,
            vars,
            vars_template: _,
            format,
        } => vec![
            flash("firmware-code", code, *format, true),
            flash("firmware-vars", vars, *format, false),
        ],
        UefiImage::Stateless { code, format } => vec![flash("firmware-code", code, *format, true)],
        UefiImage::Combined {
            file,
            template: _,
            format,
        } => vec![flash("firmware", file, *format, false)],
        UefiImage::Memory { rom: _ } => Vec::new(),
    }
}

fn add_firmware(
    args: &mut Arguments,
    machine: Machine,
    firmware: &Uefi,
) -> Result<(), HypervisorError> {
    let Uefi {
        image,
        // Its variables tell it, or its code.
        secure_boot: _,
        smm,
    } = firmware;
    let flash = flash(image);
    if *smm && machine == Machine::Amd64 {
        if !flash.is_empty() {
            // The guest's kernel can then not write variables past the firmware.
            args.add("-global", "driver=cfi.pflash01,property=secure,value=on");
        }
        // Such firmware does not come back from suspend.
        args.add("-global", "ICH9-LPC.disable_s3=1");
    }
    for Flash {
        node,
        file,
        format,
        read_only,
    } in flash
    {
        let node = devices::plain_node(node, file, format, read_only)?;
        args.add("-blockdev", node.to_string());
    }
    if let UefiImage::Memory { rom } = image {
        args.add("-bios", text(rom)?);
    }
    // Without this the firmware of `virt` waits 5 s for a key.
    args.add("-boot", "menu=on,splash-time=0");
    Ok(())
}

fn add_boot(args: &mut Arguments, spec: &DomainSpec) -> Result<(), HypervisorError> {
    match &spec.boot {
        Boot::Kernel {
            kernel,
            initramfs,
            command_line,
        } => {
            args.add("-kernel", text(kernel)?);
            if let Some(initramfs) = initramfs {
                args.add("-initrd", text(initramfs)?);
            }
            args.add("-append", command_line.as_str());
        }
        Boot::Uki {
            firmware: _,
            uki,
            command_line,
        } => {
            args.add("-kernel", text(uki)?);
            if let Some(command_line) = command_line {
                args.add("-append", command_line.as_str());
            }
        }
        Boot::Disk(Firmware::Uefi(_)) => {}
        Boot::Disk(Firmware::Bios) => match spec.machine {
            Machine::Amd64 => {}
            Machine::Arm64 => {
                return Err(HypervisorError::unsupported("QEMU", spec, "a BIOS on Arm"));
            }
        },
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::hypervisor::samples;

    /// The command line, one argument a line.
    fn lines(spec: &DomainSpec) -> String {
        let args = command(spec, MonitorSocket::Named).unwrap();
        let args: Vec<&str> = args.iter().map(|arg| arg.to_str().unwrap()).collect();
        args.join("\n") + "\n"
    }

    #[test]
    fn command_lines_are_as_they_were_agreed_on() {
        for (name, spec) in samples::all() {
            if name == "network" {
                // The one that QEMU has not; see below.
                continue;
            }
            let path = format!("{}/fixtures/argv/{name}.txt", env!("CARGO_MANIFEST_DIR"));
            let actual = lines(&spec);
            if std::env::var_os("IRONBOOT_BLESS").is_some() {
                std::fs::write(&path, &actual).unwrap();
            }
            let expected = std::fs::read_to_string(&path).expect("IRONBOOT_BLESS=1 writes it");
            assert_eq!(actual, expected, "{name}");
        }
    }

    /// An option's parts as QEMU takes them apart: two commas are one.
    fn parts(option: &str) -> Vec<String> {
        let whole = option.replace(",,", "\0");
        whole
            .split(',')
            .map(|part| part.replace('\0', ","))
            .collect()
    }

    /// A VM that has `path` wherever a path may be, and `words` wherever a text may.
    fn full_of(path: &str, words: &str) -> Option<DomainSpec> {
        let (_, mut spec) = samples::all()
            .into_iter()
            .find(|(name, _)| *name == "fw-cfg")?;
        spec.directory = path.into();
        for disk in &mut spec.disks {
            disk.file = path.into();
            if let Some(backing) = &mut disk.backing {
                backing.file = path.into();
            }
        }
        for file in &mut spec.fw_cfg {
            file.file = path.into();
        }
        spec.oem_strings = vec![words.parse().ok()?];
        spec.boot = Boot::Kernel {
            kernel: path.into(),
            initramfs: Some(path.into()),
            command_line: words.parse().ok()?,
        };
        Some(spec)
    }

    proptest! {
        #[test]
        fn whatever_a_value_is_it_stays_one(path in "/[^\0]{0,40}", words in "[!-~][ -~]{0,60}") {
            let plain = command(&full_of("/p", "w").unwrap(), MonitorSocket::Named).unwrap();
            let Some(spec) = full_of(&path, words.trim_end()) else {
                return Ok(());
            };
            let hostile = command(&spec, MonitorSocket::Named).unwrap();
            prop_assert_eq!(hostile.len(), plain.len());
            let log = |directory: &str| Path::new(directory).join("console.log");
            let log = |directory: &str| log(directory).to_str().unwrap().to_owned();
            for (hostile, plain) in hostile.iter().zip(&plain) {
                let (hostile, plain) = (hostile.to_str().unwrap(), plain.to_str().unwrap());
                if plain.starts_with('{') {
                    let read: serde_json::Value = serde_json::from_str(hostile).unwrap();
                    let meant = plain.replace("\"/p\"", &json!(path).to_string());
                    prop_assert_eq!(read, serde_json::from_str::<serde_json::Value>(&meant).unwrap());
                } else if ["/p", "w"].contains(&plain) {
                    let meant = if plain == "w" { words.trim_end() } else { path.as_str() };
                    prop_assert_eq!(hostile, meant);
                } else {
                    let meant = parts(plain).into_iter().map(|part| match part.split_once('=') {
                        Some((key, "/p")) => format!("{key}={path}"),
                        Some((key, "w")) => format!("{key}={}", words.trim_end()),
                        Some((key, text)) if text == log("/p") => format!("{key}={}", log(&path)),
                        _ => part,
                    });
                    prop_assert_eq!(parts(hostile), meant.collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn what_is_inherited_has_the_descriptor_that_it_is_told_by() {
        let samples = samples::all();
        let (_, spec) = samples.iter().find(|(name, _)| *name == "bind").unwrap();
        let args = command(spec, MonitorSocket::Inherited).unwrap();
        let sockets = args.iter().filter_map(|arg| arg.to_str());
        let sockets = sockets.filter(|arg| arg.starts_with("socket,"));
        let expected = [
            "socket,id=monitor,fd=3,server=on,wait=off",
            "socket,id=bind-0,fd=4",
            "socket,id=bind-1,fd=5",
        ];
        assert_eq!(sockets.collect::<Vec<_>>(), expected);
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
    fn arguments_of_the_users_come_last_and_stay_as_they_are() {
        let mut spec = samples::direct(Machine::Amd64);
        let plain = lines(&spec);
        let theirs = ["-device", "qemu-xhci,id=a,,b", "", "-m"];
        spec.qemu_arguments = theirs.map(str::to_owned).to_vec();
        assert_eq!(lines(&spec), plain + &theirs.join("\n") + "\n");
    }

    #[test]
    fn ports_are_forwarded_from_loopback_only() {
        let mut spec = samples::direct(Machine::Amd64);
        spec.nic = Some(Nic::User {
            forwards: vec!["2222:22".parse().unwrap()],
        });
        let text = lines(&spec);
        assert!(
            text.contains("user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22\n"),
            "{text}"
        );
    }

    #[test]
    fn what_qemu_has_not_is_refused() {
        let check = |change: fn(&mut DomainSpec), expected: &str| {
            let mut spec = samples::firmware(Machine::Arm64);
            change(&mut spec);
            let error = command(&spec, MonitorSocket::Named).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(
            |spec| spec.boot = Boot::Disk(Firmware::Bios),
            "QEMU can not give web a BIOS on Arm",
        );
        check(
            |spec| spec.nic = Some(Nic::Network("default".parse().unwrap())),
            "QEMU can not give web a network of libvirt's",
        );
        check(
            |spec| spec.disks[0].file = "nbd:127.0.0.1:1".into(),
            "path is not text that a hypervisor takes: nbd:127.0.0.1:1",
        );
    }

    #[test]
    fn the_network_is_not_tried_unless_somebody_has_said_how() {
        let (_, mut spec) = samples::all()
            .into_iter()
            .find(|(name, _)| *name == "nothing-boots")
            .unwrap();
        assert_eq!(lines(&spec).matches("-fw_cfg\n").count(), 2);
        spec.fw_cfg = vec![FwCfg {
            name: "opt/org.tianocore/IPv4Support".parse().unwrap(),
            file: "/srv/yes".into(),
        }];
        let text = lines(&spec);
        assert_eq!(text.matches("IPv4Support,file=/srv/yes").count(), 1);
        assert_eq!(text.matches("IPv6Support,string=n").count(), 1);
        assert_eq!(text.matches("-fw_cfg\n").count(), 2);
    }
}
