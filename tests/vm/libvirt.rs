//! libvirt: its system daemon as root, and one of their own for everybody else.

use std::fs;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ironboot::domain::{Boot, DiskFormat, DomainSpec, Firmware, Nic, Uefi, UefiImage, Uuid};
use ironboot::hypervisor::libvirt::Libvirt;
use ironboot::hypervisor::{DomainState, Hypervisor, HypervisorError, Stop};

use crate::guest::{PATIENCE, Vm, type_line};

pub(crate) fn uri() -> &'static str {
    if rustix::process::geteuid().is_root() {
        "qemu:///system"
    } else {
        "qemu:///session"
    }
}

/// A VM of libvirt's that is gone when the test is, however that ends.
struct Fixture {
    libvirt: Libvirt,
    vm: Vm,
}

impl Fixture {
    /// `name` is a test's own, as all share the daemon.
    async fn new(name: &str, end: &str) -> Self {
        let libvirt = Libvirt::open(uri()).unwrap();
        let owner = libvirt.runs_as().await.unwrap().file_owner();
        assert_eq!(owner.is_some(), uri() == "qemu:///system");
        // The daemon is shared with other runs of these tests as well.
        let name = format!("ironboot-test-{name}-{}", std::process::id());
        let vm = Vm::of_guest(&name, end, owner);
        Self { libvirt, vm }
    }

    async fn started(name: &str, end: &str) -> Self {
        let fixture = Self::new(name, end).await;
        fixture.libvirt.define(fixture.spec()).await.unwrap();
        fixture.libvirt.start(fixture.spec()).await.unwrap();
        fixture
    }

    fn spec(&self) -> &DomainSpec {
        &self.vm.spec
    }

    async fn state(&self) -> DomainState {
        self.libvirt.state(self.spec()).await.unwrap()
    }

    async fn reaches(&self, state: DomainState) {
        let reached = tokio::time::timeout(PATIENCE, async {
            while self.state().await != state {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        reached.await.unwrap();
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // A test that passed has undefined it; virsh needs no runtime, which is ending here.
        let name = self.spec().name.as_str();
        virsh(&["destroy", name]);
        virsh(&["undefine", "--keep-nvram", name]);
    }
}

/// Runs virsh; gives what it printed, if it succeeded.
pub(crate) fn virsh(arguments: &[&str]) -> Option<String> {
    let output = Command::new("virsh")
        .args(["--quiet", "--connect", uri()])
        .args(arguments)
        .output()
        .expect("virsh is installed, of libvirt-clients");
    let printed = String::from_utf8(output.stdout).unwrap();
    output.status.success().then_some(printed)
}

#[tokio::test]
async fn a_vm_is_defined_started_and_forgotten() {
    let fixture = Fixture::new("life", "poweroff").await;
    let (libvirt, spec) = (&fixture.libvirt, fixture.spec());
    assert_eq!(fixture.state().await, DomainState::Unknown);

    libvirt.define(spec).await.unwrap();
    assert_eq!(fixture.state().await, DomainState::Stopped);

    libvirt.start(spec).await.unwrap();
    assert_eq!(fixture.state().await, DomainState::Running);
    assert!(matches!(
        libvirt.start(spec).await,
        Err(HypervisorError::Running { .. })
    ));
    assert!(matches!(
        libvirt.undefine(spec).await,
        Err(HypervisorError::Running { .. })
    ));
    fixture.vm.prints("IRONBOOT-OK").await;
    fixture.reaches(DomainState::Stopped).await;

    let printed = fixture.vm.printed();
    for line in [
        "IRONBOOT-DISK /dev/vda size=135168 ro=0 serial=",
        "IRONBOOT-DISK /dev/vdb",
        "ro=1 serial=machineboot",
        "ironboot.end=poweroff",
    ] {
        assert!(printed.contains(line), "{line} is not in:\n{printed}");
    }

    for _ in 0..2 {
        libvirt.undefine(spec).await.unwrap();
        assert_eq!(fixture.state().await, DomainState::Unknown);
    }
    libvirt.stop(spec, Stop::Force).await.unwrap();
}

#[tokio::test]
async fn shared_files_keep_owner_mode_and_bytes() {
    let fixture = Fixture::new("sealed", "write").await;
    let (libvirt, spec) = (&fixture.libvirt, fixture.spec());
    let before = fixture.vm.sealed();
    libvirt.define(spec).await.unwrap();
    for boot in 1..=2 {
        libvirt.start(spec).await.unwrap();
        assert_eq!(fixture.vm.sealed(), before);
        fixture.vm.prints("IRONBOOT-WRITE-OK").await;
        assert_eq!(fixture.vm.sealed(), before);
        fixture.reaches(DomainState::Stopped).await;
        assert_eq!(fixture.vm.sealed(), before);

        // What the first boot wrote is in the overlay, and its console is not in the second's.
        let printed = fixture.vm.printed();
        assert_eq!(printed.contains("IRONBOOT-NOTE boot 1"), boot == 2);
        assert_eq!(printed.matches("IRONBOOT-OK").count(), 1);
    }
    libvirt.undefine(spec).await.unwrap();
    assert_eq!(fixture.vm.sealed(), before);
}

#[tokio::test]
async fn what_is_typed_arrives_and_the_console_ends_with_the_vm() {
    let fixture = Fixture::started("console", "shell").await;
    let (libvirt, spec) = (&fixture.libvirt, fixture.spec());
    fixture.vm.prints("guest# ").await;

    // Closed and opened again: the first one must be gone for the second to be let in.
    for text in ["first", "second"] {
        let console = libvirt.console(spec).await.unwrap();
        assert!(matches!(
            libvirt.console(spec).await,
            Err(HypervisorError::Libvirt { message, .. }) if message.contains("Active console session")
        ));
        type_line(&console.input, &format!("echo \"$((6 * 7)) {text}\"")).await;
        fixture.vm.prints(&format!("42 {text}")).await;
        console.close().await;
        console_threads_end().await;
    }

    let console = libvirt.console(spec).await.unwrap();
    // More than the terminal and the stream hold at a time, both ways.
    let long = "x".repeat(1000);
    for _ in 0..50 {
        type_line(&console.input, &format!(": {long}")).await;
    }
    type_line(&console.input, "echo \"all of $((50 * 1000))\"").await;
    fixture.vm.prints("all of 50000").await;

    type_line(&console.input, "poweroff -f").await;
    libvirt.stop(spec, Stop::Graceful(PATIENCE)).await.unwrap();
    assert_eq!(fixture.state().await, DomainState::Stopped);
    tokio::time::timeout(PATIENCE, console.input.closed())
        .await
        .unwrap();
    console.close().await;
    console_threads_end().await;
    assert!(matches!(
        libvirt.console(spec).await,
        Err(HypervisorError::NotRunning { .. })
    ));
    libvirt.undefine(spec).await.unwrap();
}

#[tokio::test]
async fn firmware_boots_the_first_disk_and_its_variables_outlive_the_domain() {
    let mut fixture = Fixture::new("firmware", "poweroff").await;
    let template = Path::new("/usr/share/OVMF/OVMF_VARS_4M.fd");
    let vars = fixture.spec().directory.join("vars.fd");
    fs::copy(template, &vars).expect("OVMF is installed");
    if let Some(owner) = fixture.libvirt.runs_as().await.unwrap().file_owner() {
        chown(&vars, Some(owner.uid), Some(owner.gid)).unwrap();
    }
    fixture.vm.spec.boot = Boot::Disk(Firmware::Uefi(Uefi {
        image: UefiImage::Split {
            code: "/usr/share/OVMF/OVMF_CODE_4M.fd".into(),
            format: DiskFormat::Raw,
            vars: vars.clone(),
            vars_template: template.into(),
        },
        secure_boot: false,
        smm: false,
    }));
    fixture.vm.spec.disks[0].boots = true;
    let (libvirt, spec) = (&fixture.libvirt, fixture.spec());
    libvirt.define(spec).await.unwrap();
    libvirt.start(spec).await.unwrap();
    fixture.vm.prints("IRONBOOT-EFI yes").await;
    fixture.reaches(DomainState::Stopped).await;
    libvirt.undefine(spec).await.unwrap();
    assert!(vars.exists());
}

#[tokio::test]
async fn a_guest_that_ignores_the_power_button_is_stopped_by_force_only() {
    let fixture = Fixture::started("stop", "hang").await;
    let (libvirt, spec) = (&fixture.libvirt, fixture.spec());
    fixture.vm.prints("IRONBOOT-HANG").await;
    let graceful = libvirt.stop(spec, Stop::Graceful(Duration::from_secs(2)));
    assert!(matches!(
        graceful.await,
        Err(HypervisorError::StopTimeout { seconds: 2, .. })
    ));
    assert_eq!(fixture.state().await, DomainState::Running);

    virsh(&["suspend", spec.name.as_str()]).unwrap();
    assert_eq!(fixture.state().await, DomainState::Paused);
    // Somebody holds it, so it is in no trouble.
    assert_eq!(libvirt.trouble(spec).await.unwrap(), None);

    for how in [Stop::Force, Stop::Force, Stop::Graceful(PATIENCE)] {
        libvirt.stop(spec, how).await.unwrap();
        assert_eq!(fixture.state().await, DomainState::Stopped);
    }
    libvirt.undefine(spec).await.unwrap();
}

#[tokio::test]
async fn the_same_spec_again_changes_nothing() {
    let mut fixture = Fixture::new("define", "poweroff").await;
    // libvirt would draw another address for the card at every define.
    fixture.vm.spec.nic = Some(Nic::User {
        forwards: Vec::new(),
    });
    let (libvirt, spec) = (&fixture.libvirt, fixture.spec());
    let document = || virsh(&["dumpxml", "--inactive", spec.name.as_str()]).unwrap();

    libvirt.define(spec).await.unwrap();
    let first = document();
    libvirt.define(spec).await.unwrap();
    assert_eq!(document(), first);

    let mut other = spec.clone();
    other.memory = "512M".parse().unwrap();
    libvirt.define(&other).await.unwrap();
    assert_ne!(document(), first);
    libvirt.define(spec).await.unwrap();
    assert_eq!(document(), first);
    libvirt.undefine(spec).await.unwrap();
}

#[tokio::test]
async fn a_domain_that_somebody_else_made_is_left_alone() {
    let fixture = Fixture::new("foreign", "poweroff").await;
    let (libvirt, ours) = (&fixture.libvirt, fixture.spec());
    let mut theirs = ours.clone();
    theirs.uuid = Uuid::of("theirs");
    libvirt.define(&theirs).await.unwrap();
    let before = virsh(&["dumpxml", ours.name.as_str()]).unwrap();

    assert!(matches!(
        libvirt.define(ours).await,
        Err(HypervisorError::ForeignDomain { domain }) if domain == ours.name
    ));
    assert_eq!(fixture.state().await, DomainState::Unknown);
    assert!(libvirt.start(ours).await.is_err());
    libvirt.stop(ours, Stop::Force).await.unwrap();
    libvirt.undefine(ours).await.unwrap();
    assert_eq!(virsh(&["dumpxml", ours.name.as_str()]).unwrap(), before);
    libvirt.undefine(&theirs).await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_not_there_is_named_in_libvirts_words() {
    let fixture = Fixture::new("missing", "poweroff").await;
    let (libvirt, spec) = (&fixture.libvirt, fixture.spec());
    libvirt.define(spec).await.unwrap();
    fs::remove_file(&spec.disks[0].file).unwrap();
    let error = libvirt.start(spec).await.unwrap_err().to_string();
    let file = spec.disks[0].file.to_str().unwrap();
    assert!(
        error.starts_with(&format!("libvirt could not start {}: ", spec.name))
            && error.contains(file),
        "{error}"
    );
    libvirt.undefine(spec).await.unwrap();
}

/// Waits until no thread serves a console; the tests of this file open consoles in one test only.
async fn console_threads_end() {
    let serving = || {
        fs::read_dir("/proc/self/task").unwrap().any(|task| {
            fs::read_to_string(task.unwrap().path().join("comm"))
                .is_ok_and(|name| name.trim() == "libvirt-console")
        })
    };
    let ended = tokio::time::timeout(Duration::from_secs(10), async {
        while serving() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    ended
        .await
        .expect("closing the console ends what served it");
}
