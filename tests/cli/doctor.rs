//! `doctor`: what the host has for each machine, and what it lacks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use ironboot::domain::{Accelerator, Machine};
use ironboot::host::Host;
use serde_json::{Value, json};

use crate::sandbox::{Output, Sandbox, check, has_libvirt, mask_firmware};

const MACHINES: [Machine; 2] = [Machine::Amd64, Machine::Arm64];
const SLOW: &str =
    "guests run, slowly; KVM needs a /dev/kvm that you may write, and vmx or svm on x86";

/// Makes a program that prints `words`. A child writes it: nobody else may hold a program open for
/// writing when it is started.
fn program(sandbox: &Sandbox, name: &str, words: &str) {
    let path = sandbox.path("bin").join(name);
    let script = format!("#!/bin/sh\necho '{words}'\n");
    let status = Command::new("sh")
        .args(["-c", "printf %s \"$1\" >\"$0\" && chmod +x \"$0\""])
        .arg(path)
        .arg(script)
        .status();
    assert!(status.unwrap().success());
}

/// The program with no other programs than those that the sandbox has.
fn doctor(sandbox: &Sandbox, line: &str) -> Output {
    let mut command = sandbox.command(line);
    command.env("PATH", sandbox.path("bin"));
    sandbox.finish(command)
}

/// What is said of the machines, without the BIOS, which is the machine's own.
fn machines(output: &Output) -> String {
    let (_, machines) = output.stdout.split_once("\nx86_64").unwrap();
    let (machines, _) = machines.split_once("\nlibvirt at ").unwrap();
    let lines = machines.split_inclusive('\n');
    let lines = lines.filter(|line| !line.contains("  bios  "));
    format!("x86_64{}", lines.collect::<String>())
}

fn is_native(machine: Machine) -> bool {
    Machine::try_from(&Host::probe().architecture) == Ok(machine)
}

/// `title` of the machine's part, and what is said of its accelerator.
fn head(machine: Machine) -> (String, String) {
    let choice = Host::probe().accelerator(machine, None).unwrap();
    let is_slow = is_native(machine) && choice.accelerator == Accelerator::Tcg;
    let (level, hint) = match is_slow {
        true => ("warn", format!("\n        hint: {SLOW}")),
        false => ("ok", String::new()),
    };
    let (word, reason) = (choice.accelerator.as_str(), choice.reason);
    let own = if is_native(machine) {
        ", as this host"
    } else {
        ""
    };
    (
        format!("{}{own}", machine.isa()),
        format!("{level}  accelerator  {word}: {reason}{hint}"),
    )
}

/// What is said of each descriptor that the machine has: all are masked.
fn masked(sandbox: &Sandbox) -> String {
    mask_firmware(sandbox)
        .iter()
        .map(|(name, path)| {
            let mask = format!("$TMP/config/qemu/firmware/{name}");
            format!("  ok  {path}\n        masked by {mask}, which is empty\n")
        })
        .collect()
}

#[test]
fn a_host_that_has_all_is_told_with_every_descriptor() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("bin")).unwrap();
    let banner = "QEMU emulator version 10.1.0 (made by a test)";
    program(&sandbox, "qemu-system-x86_64", banner);
    program(&sandbox, "qemu-system-aarch64", banner);
    let descriptors = sandbox.path("config/qemu/firmware");
    let plain = fs::read_to_string(descriptors.join("00-x86_64.json")).unwrap();
    let mut secure: Value = serde_json::from_str(&plain).unwrap();
    secure["features"] = json!(["enrolled-keys", "requires-smm", "secure-boot"]);
    fs::write(descriptors.join("01-secure.json"), secure.to_string()).unwrap();
    let gone = plain.replace("code.fd", "gone.fd");
    fs::write(descriptors.join("02-gone.json"), gone).unwrap();
    let masked = masked(&sandbox);

    let output = doctor(&sandbox, "doctor --verbose");
    let [(amd64, amd64_accelerator), (arm64, arm64_accelerator)] = MACHINES.map(head);
    let code = "$TMP/firmware/code.fd";
    let directory = "$TMP/config/qemu/firmware";
    assert_eq!(output.status, 0);
    assert_eq!(
        machines(&output),
        format!(
            "\
{amd64}
  ok  QEMU  qemu-system-x86_64 10.1.0 (made by a test)
  {amd64_accelerator}
  ok  uefi  {code}
  ok  uefi-secure  {code}
  warn  descriptor  {directory}/02-gone.json: no such file: $TMP/firmware/gone.fd
        hint: mend it, or remove it
  firmware descriptors, in their order:
  ok  {directory}/00-aarch64.json
        for aarch64 (virt-*)
  ok  {directory}/00-x86_64.json
        uefi: chosen
        uefi-secure: has no Secure Boot
  ok  {directory}/01-secure.json
        uefi: has enrolled keys, so it starts signed programs only
        uefi-secure: chosen
  warn  {directory}/02-gone.json
        no such file: $TMP/firmware/gone.fd
{masked}
{arm64}
  ok  QEMU  qemu-system-aarch64 10.1.0 (made by a test)
  {arm64_accelerator}
  ok  uefi  $TMP/firmware/aarch64-code.fd
  warn  uefi-secure  no descriptor is one of this kind and can be used
        hint: on Debian: `apt-get install qemu-efi-aarch64`
  firmware descriptors, in their order:
  ok  {directory}/00-aarch64.json
        uefi: chosen
        uefi-secure: has no Secure Boot
  ok  {directory}/00-x86_64.json
        for x86_64 (pc-q35-*)
  ok  {directory}/01-secure.json
        for x86_64 (pc-q35-*)
  ok  {directory}/02-gone.json
        for x86_64 (pc-q35-*)
{masked}"
        )
    );
    assert!(!sandbox.store().exists());

    let object = doctor(&sandbox, "doctor --json").json();
    assert_eq!(object["schema_version"], 1);
    let machine = &object["machines"][0];
    assert_eq!(
        machine["qemu"],
        json!({
            "level": "ok",
            "message": "qemu-system-x86_64 10.1.0 (made by a test)",
            "hint": null,
            "program": "qemu-system-x86_64",
            "version": "10.1.0 (made by a test)",
        })
    );
    assert_eq!(
        machine["uefi_secure"],
        json!({
            "level": "ok",
            "message": code,
            "hint": null,
            "reason": "the first with Secure Boot and enrolled keys",
            "descriptor": format!("{directory}/01-secure.json"),
            "files": [code, "$TMP/firmware/vars.fd"],
        })
    );
    assert_eq!(
        machine["descriptors"][3],
        json!({
            "path": format!("{directory}/02-gone.json"),
            "description": "UEFI of the sandbox for x86_64",
            "features": [],
            "files": ["$TMP/firmware/gone.fd", "$TMP/firmware/vars.fd"],
            "level": "warn",
            "uefi": "no such file: $TMP/firmware/gone.fd",
            "uefi_secure": "no such file: $TMP/firmware/gone.fd",
            "hint": "mend it, or remove it",
        })
    );
    let keys: Vec<_> = machine.as_object().unwrap().keys().collect();
    assert_eq!(
        keys,
        [
            "accelerator",
            "architecture",
            "descriptors",
            "level",
            "native",
            "qemu",
            "uefi",
            "uefi_secure",
        ]
    );
}

#[test]
fn a_host_that_lacks_all_is_told_what_to_install() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("bin")).unwrap();
    program(&sandbox, "qemu-system-aarch64", "busybox");
    for name in ["00-x86_64.json", "00-aarch64.json"] {
        fs::remove_file(sandbox.path("config/qemu/firmware").join(name)).unwrap();
    }
    let masked = match masked(&sandbox) {
        none if none.is_empty() => "        none\n".to_owned(),
        masked => masked,
    };
    let missing = |machine| if is_native(machine) { "fail" } else { "warn" };
    let [(amd64, amd64_accelerator), (arm64, arm64_accelerator)] = MACHINES.map(head);
    let [on_amd64, on_arm64] = MACHINES.map(missing);
    let output = doctor(&sandbox, "doctor --verbose");
    let last = output.stdout.lines().last().unwrap();
    assert!(
        last.ends_with(" fail: this host can boot nothing"),
        "{last}"
    );
    assert_eq!((output.status, output.stderr.as_str()), (69, ""));
    check(
        &machines(&output),
        &format!(
            "\
{amd64}
  {on_amd64}  QEMU  program is not installed: qemu-system-x86_64
        hint: on Debian: `apt-get install qemu-system-x86`
  {amd64_accelerator}
  {on_amd64}  uefi  no descriptor is one of this kind and can be used
        hint: on Debian: `apt-get install ovmf`
  warn  uefi-secure  no descriptor is one of this kind and can be used
        hint: on Debian: `apt-get install ovmf`
  firmware descriptors, in their order:
{masked}
{arm64}
  {on_arm64}  QEMU  qemu-system-aarch64 is not QEMU, for it says: busybox
  {arm64_accelerator}
  {on_arm64}  uefi  no descriptor is one of this kind and can be used
        hint: on Debian: `apt-get install qemu-efi-aarch64`
  warn  uefi-secure  no descriptor is one of this kind and can be used
        hint: on Debian: `apt-get install qemu-efi-aarch64`
  firmware descriptors, in their order:
{masked}"
        ),
    );
    let object = doctor(&sandbox, "doctor --json").json();
    assert_eq!(object["level"], "fail");
    assert_eq!(object["bootable"], json!([]));
    assert_eq!(object["host"], Host::probe().architecture.as_str());
    for (place, machine) in MACHINES.into_iter().enumerate() {
        let found = &object["machines"][place];
        assert_eq!(found["level"], missing(machine));
        assert_eq!(found["native"], is_native(machine));
        assert_eq!(found["qemu"]["version"], Value::Null);
        assert_eq!(found["uefi"]["files"], Value::Null);
    }
}

#[test]
fn a_libvirt_whose_qemu_can_not_reach_the_store_is_told_with_the_command_that_mends_it() {
    let sandbox = Sandbox::new();
    let private = fs::Permissions::from_mode(0o700);
    fs::set_permissions(sandbox.path(""), private).unwrap();
    let found = || sandbox.run("doctor --json").json()["libvirt"][0].take();
    let libvirt = found();
    assert_eq!(libvirt["uri"], "qemu:///system");
    if !has_libvirt() {
        // Whatever this machine has, what it has not is named.
        let (level, hint) = (&libvirt["daemon"]["level"], &libvirt["daemon"]["hint"]);
        assert_eq!(level == "ok", hint.is_null(), "{libvirt}");
        return;
    }
    assert_eq!(libvirt["daemon"]["level"], "ok");
    assert_eq!(libvirt["logger"]["level"], "ok");
    assert!(libvirt["qemu_user"]["uid"].is_u64());
    assert_eq!(libvirt["store"]["level"], "fail");
    assert_eq!(libvirt["level"], "fail");
    let closed = sandbox.path("").display().to_string();
    let closed = closed.trim_end_matches('/');
    let message = libvirt["store"]["message"].as_str().unwrap();
    let expected = format!(", who may not pass through {closed}");
    assert!(message.ends_with(&sandbox.shown(&expected)), "{message}");

    let hint = libvirt["store"]["hint"].as_str().unwrap();
    let command = hint.split('`').nth(1).unwrap().replace("$TMP", closed);
    assert_eq!(command, format!("chmod o+x {closed}"));
    let mended = Command::new("sh").args(["-c", &command]).status();
    assert!(mended.unwrap().success());
    let libvirt = found();
    assert_eq!(libvirt["store"]["level"], "ok");
    assert_eq!(libvirt["level"], "ok");
    assert!(!sandbox.store().exists());
}

/// The check of an area, by its name.
fn check_of(object: &Value, area: &str, name: &str) -> Value {
    let mut checks = object["checks"].as_array().unwrap().iter();
    let found = checks.find(|check| check["area"] == area && check["name"] == name);
    found.cloned().unwrap_or(Value::Null)
}

#[test]
fn every_check_has_a_status_and_what_is_not_well_is_counted_and_mended() {
    let sandbox = Sandbox::new();
    let output = sandbox.run("doctor --json");
    let object = output.json();
    let checks = object["checks"].as_array().unwrap();
    let mut counted = std::collections::BTreeMap::from([("ok", 0), ("warn", 0), ("fail", 0)]);
    for check in checks {
        *counted.get_mut(check["status"].as_str().unwrap()).unwrap() += 1;
        let keys: Vec<_> = check.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["area", "detail", "mend", "name", "status"]);
        assert_eq!(check["mend"].is_null(), check["status"] == "ok", "{check}");
    }
    assert_eq!(object["summary"], json!(counted));
    // The tests have QEMU for both.
    assert_eq!(object["bootable"].as_array().unwrap().len(), 2);
    assert_eq!(output.status, 0);
    for (area, name) in [
        ("host", "KVM"),
        ("host", "ssh"),
        ("x86_64", "QEMU"),
        ("aarch64", "uefi"),
        ("store", "directory"),
        ("store", "space"),
        ("store", "file system"),
        ("registries", "policy"),
        ("registries", "proxies"),
    ] {
        assert!(!check_of(&object, area, name).is_null(), "{area}: {name}");
    }
    assert!(!sandbox.store().exists());
}

#[test]
fn what_is_said_of_registries_is_told_without_a_secret() {
    let sandbox = Sandbox::new();
    let auth = sandbox.path("auth.json");
    let words = json!({
        "auths": {"a.example": {"auth": "dXNlcjpzM2NyM3Q="}},
        "credHelpers": {"b.example": "nowhere"},
    });
    fs::write(&auth, words.to_string()).unwrap();
    let hosts = sandbox.path("config/ironboot/certs.d");
    for (name, text) in [
        ("m.example", "[host.\"https://cache.example\"]\n"),
        ("n.example_5000_", "server = 1\n"),
    ] {
        fs::create_dir_all(hosts.join(name)).unwrap();
        fs::write(hosts.join(name).join("hosts.toml"), text).unwrap();
    }
    let mut command = sandbox.command("doctor --json");
    command
        .env("REGISTRY_AUTH_FILE", &auth)
        .env("HTTPS_PROXY", "http://me:s3cr3t@proxy.example:3128");
    let output = sandbox.finish(command);
    assert!(!output.stdout.contains("s3cr3t") && !output.stdout.contains("dXNl"));
    let object = output.json();
    let credentials = check_of(&object, "registries", "credentials");
    assert_eq!(credentials["status"], "warn");
    let expected = "$TMP/auth.json asks docker-credential-nowhere, which is not in PATH";
    assert_eq!(credentials["detail"], expected);
    let proxies = check_of(&object, "registries", "proxies");
    assert_eq!(proxies["detail"], "proxy.example");
    let checks = object["checks"].as_array().unwrap().iter();
    let mirrors = checks.filter(|check| check["name"] == "mirrors");
    let mirrors: Vec<_> = mirrors
        .map(|check| {
            (
                check["status"].as_str().unwrap(),
                check["detail"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        mirrors[0],
        ("ok", "m.example: cache.example, then m.example")
    );
    let (status, detail) = mirrors[1];
    assert_eq!(status, "fail");
    assert!(detail.contains("n.example_5000_/hosts.toml"), "{detail}");
}

#[test]
fn settings_that_can_not_be_read_are_a_finding_with_all_the_rest() {
    let sandbox = Sandbox::new();
    let auth = sandbox.path("auth.json");
    fs::write(&auth, "{").unwrap();
    fs::write(sandbox.path("policy.json"), "{").unwrap();
    let line = format!("doctor --json --authfile {}", auth.display());
    let output = sandbox.run(line);
    let object = output.json();
    let settings = check_of(&object, "registries", "settings");
    assert_eq!(settings["status"], "fail", "{}", output.text());
    assert!(
        settings["detail"]
            .as_str()
            .unwrap()
            .contains("$TMP/auth.json")
    );
    assert_eq!(check_of(&object, "registries", "policy")["status"], "fail");
    assert_eq!(check_of(&object, "x86_64", "QEMU")["status"], "ok");
}

#[test]
fn a_store_that_can_not_be_used_boots_nothing() {
    let sandbox = Sandbox::new();
    let open = sandbox.path("open");
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let output = sandbox.run(format!("doctor --json --store {}/store", open.display()));
    assert_eq!(output.status, 69);
    let object = output.json();
    assert_eq!(object["bootable"], json!([]));
    let directory = check_of(&object, "store", "directory");
    assert_eq!(directory["status"], "fail");
    let mend = directory["mend"].as_str().unwrap();
    assert!(mend.starts_with("`chmod o-w $TMP/open`"), "{mend}");
}

#[test]
fn a_trial_runs_firmware_and_tells_how_it_ended() {
    let sandbox = Sandbox::new();
    // The machine's own QEMU, by the one way that works everywhere.
    let object = sandbox.run("doctor --boot --json").json();
    let tried = check_of(&object, "host", "boot by tcg");
    assert_eq!(tried["status"], "ok", "{tried}");

    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("bin")).unwrap();
    let banner = "QEMU emulator version 10.1.0";
    let script = format!(
        "#!/bin/sh\ncase $1 in --version) echo '{banner}';; *) echo 'no such board' >&2; exit 1;; esac\n"
    );
    for name in ["qemu-system-x86_64", "qemu-system-aarch64"] {
        let path = sandbox.path("bin").join(name);
        let write = ["-c", "printf %s \"$1\" >\"$0\" && chmod +x \"$0\""];
        let status = Command::new("sh")
            .args(write)
            .arg(path)
            .arg(&script)
            .status();
        assert!(status.unwrap().success());
    }
    let output = doctor(&sandbox, "doctor --boot --json");
    let tried = check_of(&output.json(), "host", "boot by tcg");
    assert_eq!(tried["status"], "fail");
    assert_eq!(tried["detail"], "QEMU ended: no such board");
    assert_eq!(output.status, 69);
    // What runs nothing at all says nothing of KVM.
    assert!(!sandbox.store().join("accelerator.json").exists());
}
