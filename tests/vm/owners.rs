//! What libvirt leaves behind on the files that VMs share, whatever boots from them: nothing.

use std::path::Path;

use crate::define::Defined;
use crate::guest::{Sealed, sealed_in};
use crate::libvirt::virsh;
use crate::methods::{AMD64, ARM64, Case, Words, command};
use crate::session::Session;

/// Every form that libvirt boots, by what it opens of the store and of the host's firmware.
fn forms(words: &Words) -> Vec<Case> {
    let form = |image, options: &str| Case {
        image,
        options: format!("{options} --arch {}", words.architecture)
            .split_ascii_whitespace()
            .map(str::to_owned)
            .collect(),
        expected: Vec::new(),
    };
    let mut forms = vec![
        form("guest", "--boot direct"),
        form("guest", "--boot disk"),
        form("uki", "--uki loader"),
        form("iso", ""),
        form("qcow2", ""),
    ];
    // The rest differs by nothing that is Arm's, whose firmware is 256 MiB to read each time.
    if words.architecture == "amd64" {
        forms.extend([
            form("live", ""),
            form("uki", "--uki esp"),
            form("uki", "--uki extract"),
            form("signed", "--firmware uefi-secure --uki loader"),
            form("bios", ""),
            form("iso", "--firmware bios"),
        ]);
    }
    forms
}

/// The blobs of the store and the firmware of the host.
fn shared(vm: &Defined, firmware: &Path) -> (Vec<Sealed>, Vec<Sealed>) {
    (vm.bench.blobs(), sealed_in(firmware))
}

fn nothing_changes_hands(words: &Words, firmware: &Path) {
    for case in forms(words) {
        let vm = Defined::new(&format!("owners-{}", words.architecture));
        let form = format!("{} {}", case.image, case.options.join(" "));
        let image = vm.bench.image_named(case.image);
        vm.bench
            .does(&["pull", "--arch", words.architecture, "--all", &image]);
        let before = shared(&vm, firmware);
        assert!(!before.0.is_empty() && !before.1.is_empty());

        let mut define = command(&vm.bench, "define", &case);
        define.args(["--json", "--name", &vm.name, "--start"]);
        let defined = Session::start(define).ends().with_code(0).json();
        assert_eq!(defined["domain"]["state"], "running", "{form}");
        assert_eq!(shared(&vm, firmware), before, "{form}, which runs");
        vm.does("stop", &["--force"]);
        assert_eq!(shared(&vm, firmware), before, "{form}, which has stopped");

        // As somebody else would, with the variables that ironboot keeps to remove itself.
        virsh(&["undefine", "--nvram", &vm.name]).unwrap();
        assert_eq!(shared(&vm, firmware), before, "{form}, which is undefined");
        vm.is_removed(&[]);
        assert_eq!(shared(&vm, firmware), before, "{form}, which is gone");
    }
}

#[test]
fn every_shared_file_keeps_owner_mode_attributes_and_bytes() {
    nothing_changes_hands(&AMD64, Path::new("/usr/share/OVMF"));
}

#[test]
fn every_shared_file_keeps_owner_mode_attributes_and_bytes_on_arm64() {
    nothing_changes_hands(&ARM64, Path::new("/usr/share/AAVMF"));
}
