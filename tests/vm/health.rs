//! VMs that do not run although they were started. Where KVM is broken, firmware ends in an error
//! inside of it at once, and its QEMU waits for somebody to look.

use std::fs;
use std::os::unix::fs::chown;
use std::time::Duration;

use ironboot::domain::{Accelerator, Boot, DiskFormat, Firmware, Uefi, UefiImage};
use ironboot::hypervisor::qemu::Qemu;
use ironboot::hypervisor::{Hypervisor, HypervisorError, Stop};
use tokio::time::{sleep, timeout};

use crate::guest::{PATIENCE, Vm};

/// What comes of a VM under KVM.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// There is no KVM to be had.
    Refused(String),
    /// It was started, and is in trouble.
    Trouble(String),
    /// It has printed something.
    Prints,
    /// None of it in time.
    Silence,
}

/// A VM of firmware and a disk under KVM.
async fn under_kvm(hypervisor: &dyn Hypervisor, name: &str) -> Vm {
    let owner = hypervisor.runs_as().await.unwrap().file_owner();
    let name = format!("ironboot-test-{name}-{}", std::process::id());
    let mut vm = Vm::of_guest(&name, "poweroff", owner);
    let template = "/usr/share/OVMF/OVMF_VARS_4M.fd";
    let vars = vm.spec.directory.join("vars.fd");
    fs::copy(template, &vars).expect("OVMF is installed");
    if let Some(owner) = owner {
        chown(&vars, Some(owner.uid), Some(owner.gid)).unwrap();
    }
    vm.spec.accelerator = Accelerator::Kvm;
    vm.spec.boot = Boot::Disk(Firmware::Uefi(Uefi {
        image: UefiImage::Split {
            code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            format: DiskFormat::Raw,
            vars,
            vars_template: template.into(),
        },
        secure_boot: false,
        smm: false,
    }));
    vm.spec.disks[0].boots = true;
    vm
}

/// Starts the VM and waits for what comes of it; nothing of it is left.
async fn outcome(hypervisor: &dyn Hypervisor, vm: &Vm) -> Outcome {
    let spec = &vm.spec;
    let started = match hypervisor.define(spec).await {
        Ok(_) => hypervisor.start(spec).await,
        Err(error) => Err(error),
    };
    let outcome = match started {
        Err(
            HypervisorError::QemuStart { message, .. } | HypervisorError::Libvirt { message, .. },
        ) => Outcome::Refused(message),
        Err(error) => panic!("{error}"),
        Ok(()) => timeout(PATIENCE, seen(hypervisor, vm))
            .await
            .unwrap_or(Outcome::Silence),
    };
    hypervisor.stop(spec, Stop::Force).await.unwrap();
    // One that has ended is in no trouble.
    assert_eq!(hypervisor.trouble(spec).await.unwrap(), None);
    hypervisor.undefine(spec).await.unwrap();
    outcome
}

async fn seen(hypervisor: &dyn Hypervisor, vm: &Vm) -> Outcome {
    loop {
        if let Some(trouble) = hypervisor.trouble(&vm.spec).await.unwrap() {
            return Outcome::Trouble(trouble.to_string());
        }
        if !vm.printed().is_empty() {
            return Outcome::Prints;
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// No KVM, one that QEMU does not take, one that is broken, and one that works: all are told apart
/// from a VM that hangs.
#[track_caller]
fn is_told(outcome: Outcome, trouble: &str) {
    match outcome {
        Outcome::Refused(message) => {
            assert!(message.to_lowercase().contains("kvm"), "{message}");
        }
        Outcome::Trouble(told) => assert!(told.contains(trouble), "{told}"),
        outcome => assert_eq!(outcome, Outcome::Prints),
    }
}

#[tokio::test]
async fn qemu_tells_what_comes_of_firmware_under_kvm() {
    let vm = under_kvm(&Qemu, "kvm-qemu").await;
    is_told(outcome(&Qemu, &vm).await, "KVM");
}

#[cfg(feature = "libvirt")]
#[tokio::test]
async fn libvirt_tells_what_comes_of_firmware_under_kvm() {
    let libvirt = ironboot::hypervisor::libvirt::Libvirt::open(crate::libvirt::uri()).unwrap();
    let vm = under_kvm(&libvirt, "kvm-libvirt").await;
    is_told(outcome(&libvirt, &vm).await, "unknown to libvirt");
}
