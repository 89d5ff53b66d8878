//! KVM that is tried, watched, and given up where no guest gets going under it.
//!
//! On a host whose KVM works, the guests of these tests run under it, and that is what they assert
//! then; on one where it hangs or fails, the VM is started again without it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::bench::Bench;
use crate::session::{Ended, Session};

/// How a run under `--accel kvm:tcg` went, by what it says of its VM.
struct Tried {
    accelerator: String,
    reason: String,
    ended: Ended,
}

/// `run` of the tests' image, KVM first, whatever the probe says of it.
fn try_kvm(bench: &Bench, change: impl FnOnce(&mut Command)) -> Tried {
    let mut command = bench.command(&["run", &bench.image(), "--json"]);
    command.args(["--cpus", "1", "--memory", "256M", "--accel", "kvm:tcg"]);
    change(&mut command);
    let ended = Session::start(command).ends().with_code(0);
    assert!(ended.stderr.contains("IRONBOOT-OK"), "{ended}");
    let json = ended.json();
    let word = |key: &str| json[key].as_str().unwrap_or_default().to_owned();
    Tried {
        accelerator: word("accelerator"),
        reason: word("accelerator_reason"),
        ended,
    }
}

/// What the store remembers of KVM.
fn verdicts(bench: &Bench) -> Vec<Value> {
    let file = bench.store().join("accelerator.json");
    let json = fs::read_to_string(file).unwrap_or_else(|_| "[]".to_owned());
    serde_json::from_str(&json).unwrap()
}

#[track_caller]
fn is_remembered(bench: &Bench, first: &Tried) {
    let verdicts = verdicts(bench);
    let [verdict] = &verdicts[..] else {
        panic!("one machine was booted, and remembered are {verdicts:?}");
    };
    assert_eq!(verdict["machine"], "amd64");
    assert_eq!(verdict["works"], first.accelerator == "kvm", "{verdict}");
    let host = verdict["host"].as_str().unwrap();
    assert!(
        host.starts_with("Linux ") && host.contains("QEMU "),
        "{host}"
    );
}

#[test]
fn a_guest_that_kvm_does_not_start_is_started_without_it_and_the_host_remembered() {
    let bench = Bench::new();
    let first = try_kvm(&bench, |_| {});
    is_remembered(&bench, &first);
    let second = try_kvm(&bench, |_| {});
    assert_eq!(second.accelerator, first.accelerator);
    if first.accelerator == "tcg" {
        assert!(first.reason.starts_with("KVM failed: "), "{}", first.reason);
        let again = first
            .reason
            .replace("KVM failed: ", "KVM failed on this host before: ");
        assert_eq!(second.reason, again);
        let told = format!("accelerator tcg: {}", second.reason);
        assert!(second.ended.stderr.contains(&told), "{}", second.ended);
    }

    // Of another kernel, CPU, module or QEMU, the verdict says nothing.
    let file = bench.store().join("accelerator.json");
    let other = fs::read_to_string(&file)
        .unwrap()
        .replace("Linux ", "Linux 1-");
    fs::write(&file, other).unwrap();
    let third = try_kvm(&bench, |_| {});
    assert_eq!(third.accelerator, first.accelerator);
    is_remembered(&bench, &third);
    bench.is_clean();
}

/// QEMU that is told another CPU than ironboot tells it: one under which a broken KVM does not
/// fail at once, so that its guest hangs.
fn with_another_cpu(bench: &Bench, command: &mut Command) {
    let directory = bench.root().join("bin");
    fs::create_dir_all(&directory).unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let script = format!(
        "#!/bin/bash\nPATH={}\nwords=()\nfor word in \"$@\"; do\n\
         [[ $word == host ]] && word=qemu64\nwords+=(\"$word\")\ndone\n\
         exec qemu-system-x86_64 \"${{words[@]}}\"\n",
        path.to_string_lossy()
    );
    let program = directory.join("qemu-system-x86_64");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut first = directory.into_os_string();
    first.push(":");
    first.push(&path);
    command.env("PATH", first);
}

#[test]
fn a_guest_that_hangs_under_kvm_is_started_again_without_it() {
    for boot in ["direct", "disk"] {
        let bench = Bench::new();
        let tried = try_kvm(&bench, |command| {
            with_another_cpu(&bench, command);
            command.args(["--boot", boot]);
        });
        is_remembered(&bench, &tried);
        bench.is_clean();
    }
}

#[test]
fn a_vm_that_starts_neither_way_stays_what_it_was() {
    let bench = Bench::new();
    let mut command = bench.command(&["run", &bench.image(), "--name", "stays", "--persistent"]);
    command.args(["--accel", "kvm:tcg", "--network", "bridge=ironboot-no"]);
    let ended = Session::start(command).ends().with_code(125);
    assert!(ended.stderr.contains("could not start stays"), "{ended}");
    let listed = Session::start(bench.command(&["list", "--json"])).ends();
    let listed = listed.with_code(0).json();
    assert_eq!(listed["instances"][0]["accelerator"], "kvm", "{listed}");
    assert_eq!(verdicts(&bench), [] as [Value; 0]);
}

#[cfg(feature = "libvirt")]
#[test]
fn a_domain_that_kvm_does_not_run_is_defined_and_started_without_it() {
    use crate::define::Defined;

    let vm = Defined::new("accelerator");
    let bench = &vm.bench;
    let define = |more: &[&str]| {
        let mut command = bench.command(&["define", &bench.image(), "--json", "--name", &vm.name]);
        command.args(["--cpus", "1", "--memory", "256M", "--accel", "kvm:tcg"]);
        command.args(more);
        Session::start(command).ends().with_code(0).json()
    };
    let defined = define(&["--append", "ironboot.end=hang", "--start"]);
    let domain = &defined["domain"];
    assert_eq!(domain["state"], "running", "{defined}");
    let console = Session::start(bench.command(&["console", &vm.name]));
    console.prints("IRONBOOT-HANG");
    drop(console);
    let verdicts = verdicts(bench);
    assert_eq!(
        verdicts[0]["works"],
        domain["accelerator"] == "kvm",
        "{verdicts:?}"
    );
    // The same again is the same, though it was asked for as before.
    let again = define(&["--append", "ironboot.end=hang"]);
    assert_eq!(again["created"], false, "{again}");
    assert_eq!(again["domain"]["accelerator"], domain["accelerator"]);
    vm.is_removed(&["--force"]);
}
