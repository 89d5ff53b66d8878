//! Every boot method, for both architectures, by QEMU and by libvirt: from the image to userspace.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::bench::{Bench, MACHINE};
use crate::guest::files;
use crate::session::{Ended, Session};

/// An image, how it is booted, and what its guest then says.
pub(crate) struct Case {
    /// The image's name in the tests' layout directory.
    pub(crate) image: &'static str,
    pub(crate) options: Vec<String>,
    pub(crate) expected: Vec<String>,
}

/// What an architecture calls its things.
pub(crate) struct Words {
    pub(crate) architecture: &'static str,
    pub(crate) machine: &'static str,
    pub(crate) console: &'static str,
}

pub(crate) const AMD64: Words = Words {
    architecture: "amd64",
    machine: "x86_64",
    console: "ttyS0",
};
pub(crate) const ARM64: Words = Words {
    architecture: "arm64",
    machine: "aarch64",
    console: "ttyAMA0",
};

impl Words {
    /// Size of a file of the guest's.
    fn bytes(&self, file: &str) -> u32 {
        let metadata = fs::metadata(files(self.architecture).join(file)).unwrap();
        metadata.len().try_into().unwrap()
    }

    fn command_line(&self, rest: &str) -> String {
        format!("IRONBOOT-CMDLINE console={} panic=-1 {rest}", self.console)
    }

    fn disk(&self, name: &str, file: &str, tail: &str) -> String {
        format!(
            "IRONBOOT-DISK /dev/{name} size={} {tail}",
            self.bytes(file) / 512
        )
    }

    fn case(&self, image: &'static str, options: &str, expected: &[&str]) -> Case {
        let options = options.split_ascii_whitespace().map(str::to_owned);
        let [first, rest @ ..] = expected else {
            panic!("a guest says its command line first");
        };
        let machine = format!("IRONBOOT-MACHINE {}", self.machine);
        let rest = rest.iter().map(|line| (*line).to_owned());
        Case {
            image,
            options: options
                .chain(["--arch".to_owned(), self.architecture.to_owned()])
                .collect(),
            expected: [(*first).to_owned(), machine]
                .into_iter()
                .chain(rest)
                .collect(),
        }
    }

    /// Every method that both hypervisors have.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let own = self.command_line("ironboot.from=uki");
        let vda = self.disk("vda", "disk.img", "ro=0 serial=");
        let esp = ironboot::stage::esp_bytes(self.bytes("uki.efi")) + (2 << 20);
        let esp = format!("IRONBOOT-DISK /dev/vdb size={} ro=0 serial=", esp / 512);
        let by_firmware = "IRONBOOT-EFI yes";
        let directly = "IRONBOOT-EFI no";
        let silent = "IRONBOOT-CMDLINE panic=-1 ironboot.from=uki-silent";
        let live = self.command_line("gl.url=/dev/disk/by-id/virtio-machineboot gl.live=1");
        let squashfs = self.disk("vda", "root.squashfs", "ro=1 serial=machineboot");
        let root = self.command_line("ironboot.root=/dev/vda");
        let root_disk = self.disk("vda", "root.ext4", "ro=0 serial=");
        let iso = self.command_line("ironboot.from=iso");
        let cd = self.disk("sr0", "boot.iso", "ro=1 serial=");
        let mut cases = vec![
            // UKI: the kernel's own line; with words; on a partition of its own; taken apart.
            self.case("uki", "", &[&own, &vda, by_firmware]),
            self.case(
                "uki",
                "--append a=1",
                &[&format!("{own} a=1"), &vda, by_firmware],
            ),
            self.case("uki", "--uki esp", &[&own, &vda, &esp, by_firmware]),
            self.case("uki", "--uki extract", &[&own, &vda, directly]),
            self.case(
                "silent",
                "--uki extract --append quiet",
                &[
                    &format!("{silent} quiet console={}", self.console),
                    directly,
                ],
            ),
            // A kernel of zeros beside it: passed over.
            self.case("zeros", "", &[&own, by_firmware]),
            // Direct: a squashfs as root, and a disk that is a file system.
            self.case(
                "live",
                "",
                &[&live, &squashfs, directly, "IRONBOOT-ROOT-OK"],
            ),
            self.case(
                "root",
                "",
                &[&root, &root_disk, directly, "IRONBOOT-ROOT-OK"],
            ),
            self.case("iso", "", &[&iso, &cd, by_firmware]),
        ];
        if self.architecture == "amd64" {
            let bios = format!(
                "IRONBOOT-CMDLINE BOOT_IMAGE=/vmlinuz console={} panic=-1 ironboot.from=bios",
                self.console
            );
            let disk = self.disk("vda", "bios.img", "ro=0 serial=");
            cases.push(self.case("bios", "", &[&bios, &disk, directly]));
            cases.push(self.case(
                "iso",
                "--firmware bios",
                &[
                    &iso.replace("CMDLINE ", "CMDLINE BOOT_IMAGE=/vmlinuz "),
                    &cd,
                    directly,
                ],
            ));
        }
        cases
    }

    /// Secure Boot: the firmware's keys are Debian's for tests, by which the UKI is signed.
    pub(crate) fn secure_case(&self, options: &str) -> Case {
        let own = self.command_line("ironboot.from=uki");
        let expected = [own.as_str(), "IRONBOOT-EFI yes", "IRONBOOT-SECUREBOOT 1"];
        let options = format!("--firmware uefi-secure {options}");
        let mut case = self.case("signed", &options, &expected);
        if !options.contains("loader") {
            let esp = ironboot::stage::esp_bytes(self.bytes("uki-signed.efi")) + (2 << 20);
            let esp = format!("IRONBOOT-DISK /dev/vda size={} ro=0 serial=", esp / 512);
            case.expected.insert(2, esp);
        }
        case
    }
}

/// Descriptors of firmware that has Debian's test keys, to be found before all others.
pub(crate) fn snakeoil(root: &Path) -> PathBuf {
    let config = root.join("config");
    let directory = config.join("qemu/firmware");
    fs::create_dir_all(&directory).unwrap();
    for (isa, machine, directory_of, suffix, features) in [
        (
            "x86_64",
            "pc-q35-*",
            "/usr/share/OVMF/OVMF",
            "_4M",
            &["secure-boot", "enrolled-keys", "requires-smm"][..],
        ),
        (
            "aarch64",
            "virt-*",
            "/usr/share/AAVMF/AAVMF",
            "",
            &["secure-boot", "enrolled-keys"],
        ),
    ] {
        let file = |kind: &str| {
            let filename = format!("{directory_of}_{kind}{suffix}.snakeoil.fd");
            json!({"filename": filename, "format": "raw"})
        };
        let descriptor = json!({
            "description": "keys for tests",
            "interface-types": ["uefi"],
            "mapping": {
                "device": "flash",
                "executable": file("CODE"),
                "nvram-template": file("VARS"),
            },
            "targets": [{"architecture": isa, "machines": [machine]}],
            "features": features,
            "tags": [],
        });
        let path = directory.join(format!("00-{isa}.json"));
        fs::write(path, descriptor.to_string()).unwrap();
    }
    config
}

/// The machine of these tests: firmware takes more memory than a kernel.
fn machine() -> impl Iterator<Item = &'static str> {
    MACHINE
        .into_iter()
        .map(|word| if word == "256M" { "512M" } else { word })
}

/// `verb` of an image, in an environment that has firmware with test keys.
pub(crate) fn command(bench: &Bench, verb: &str, case: &Case) -> Command {
    let mut command = bench.command(&[verb, &bench.image_named(case.image)]);
    command
        .args(machine())
        .args(&case.options)
        .env("XDG_CONFIG_HOME", snakeoil(bench.root()));
    command
}

fn run(bench: &Bench, case: &Case) -> Ended {
    Session::start(command(bench, "run", case)).ends()
}

#[track_caller]
fn boots(bench: &Bench, case: &Case) -> Ended {
    let ended = run(bench, case).with_code(0);
    let (image, options) = (case.image, case.options.join(" "));
    assert_eq!(ended.markers(), case.expected, "{image} {options}: {ended}");
    ended
}

fn every_method_boots(words: &Words) {
    let bench = Bench::new();
    for case in words.cases() {
        let ended = boots(&bench, &case);
        let is_passed_over = ended
            .stderr
            .contains("passing over direct boot: kernel sha256:");
        assert_eq!(is_passed_over, case.image == "zeros", "{ended}");
    }
    // Without an initramfs: the driver of the disk must be in the kernel, and NVMe's is.
    let line = words.command_line("root=/dev/nvme0n1 rootfstype=ext4 ro");
    let mut case = words.case("bare", "", &[&line, "IRONBOOT-ROOT-OK"]);
    case.expected.remove(1);
    boots(&bench, &case);
    bench.is_clean();
}

#[test]
fn every_method_boots_by_qemu() {
    every_method_boots(&AMD64);
}

#[test]
fn every_method_boots_by_qemu_on_arm64() {
    every_method_boots(&ARM64);
}

#[test]
fn a_console_is_added_to_a_uki_that_names_none() {
    let bench = Bench::new();
    for (image, own) in [
        ("silent", "panic=-1 ironboot.from=uki-silent "),
        ("lineless", ""),
    ] {
        let line = format!("IRONBOOT-CMDLINE {own}console=ttyS0");
        let ended = boots(&bench, &AMD64.case(image, "", &[&line, "IRONBOOT-EFI yes"]));
        let told = "the image's command line names no console; added console=ttyS0\n";
        assert!(ended.stderr.contains(told), "{ended}");
    }
    let line = "console=ttyS0 panic=-1 another=1";
    let mut case = AMD64.case(
        "lineless",
        "",
        &[&format!("IRONBOOT-CMDLINE {line}"), "IRONBOOT-EFI yes"],
    );
    case.options
        .extend(["--cmdline".to_owned(), line.to_owned()]);
    let ended = boots(&bench, &case);
    assert!(!ended.stderr.contains("names no console"), "{ended}");
    bench.is_clean();
}

#[test]
fn firmware_with_keys_starts_what_is_signed_and_nothing_else_is_tried() {
    let bench = Bench::new();
    for words in [&AMD64, &ARM64] {
        boots(&bench, &words.secure_case(""));
        boots(&bench, &words.secure_case("--uki loader"));

        let mut unsigned = words.secure_case("--json");
        unsigned.image = "uki";
        let refused = run(&bench, &unsigned).with_code(125);
        let (kind, message) = refused.error();
        assert_eq!(kind, "unbootable", "{refused}");
        let told = "is not signed, and firmware with Secure Boot on starts nothing else";
        assert!(message.ends_with(told), "{refused}");
    }
    // Nobody replaces the line of a signed UKI, and nobody boots a kernel past the firmware.
    for options in [
        "--json --cmdline quiet",
        "--json --append quiet",
        "--json --uki extract",
        "--json --boot direct",
    ] {
        let refused = run(&bench, &AMD64.secure_case(options)).with_code(125);
        assert_eq!(refused.error().0, "unbootable", "{options}: {refused}");
    }
    bench.is_clean();
}

#[cfg(feature = "libvirt")]
mod by_libvirt {
    use super::{AMD64, ARM64, Case, Words, command};
    use crate::define::Defined;
    use crate::session::{Session, markers};

    #[track_caller]
    fn boots(name: &str, case: &Case) {
        let vm = Defined::new(name);
        let bench = &vm.bench;
        let mut define = command(bench, "define", case);
        define.args(["--name", &vm.name, "--start"]);
        Session::start(define).ends().with_code(0);
        let blobs = bench.blobs();
        let logs = vm.does("logs", &["--follow"]).stdout;
        let (image, options) = (case.image, case.options.join(" "));
        assert_eq!(markers(&logs), case.expected, "{image} {options}: {logs}");
        vm.reaches("stopped");
        assert_eq!(bench.blobs(), blobs, "{image} {options}");
        vm.is_removed(&[]);
    }

    fn every_method_boots(name: &str, words: &Words) {
        for case in words.cases() {
            // `define` adds no console, so what names none is not heard.
            if case.image != "silent" {
                boots(name, &case);
            }
        }
    }

    #[test]
    fn every_method_boots_by_libvirt() {
        every_method_boots("methods", &AMD64);
    }

    #[test]
    fn every_method_boots_by_libvirt_on_arm64() {
        every_method_boots("methods-arm64", &ARM64);
    }

    #[test]
    fn firmware_with_keys_starts_what_is_signed() {
        for words in [&AMD64, &ARM64] {
            boots("secure", &words.secure_case(""));
            boots("secure", &words.secure_case("--uki loader"));
        }
    }

    #[test]
    fn an_nvme_disk_is_refused_before_a_domain_is_defined() {
        let vm = Defined::new("nvme");
        let case = Case {
            image: "bare",
            options: vec!["--json".to_owned()],
            expected: Vec::new(),
        };
        let mut define = command(&vm.bench, "define", &case);
        define.args(["--name", &vm.name]);
        let refused = Session::start(define).ends().with_code(125);
        assert_eq!(refused.error().0, "hypervisor", "{refused}");
        vm.bench.is_clean();
    }
}
