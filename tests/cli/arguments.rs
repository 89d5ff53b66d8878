//! Rows 147 to 149, 151, 153 and 170 of the hostile table: what is typed or set never becomes an
//! option, a file or a program that was not meant.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::image::{direct, disk, disk_only};
use crate::sandbox::Sandbox;

/// The words of the command that would run a VM of `reference` with `options`, each one whole.
fn argv(sandbox: &Sandbox, reference: &str, options: &[&str]) -> Vec<String> {
    let mut command = sandbox.command("run -q --json --dry-run --accel tcg --arch amd64 --name vm");
    command.args(options).arg(reference);
    let output = sandbox.finish(command);
    assert_eq!(output.status, 0, "{}", output.text());
    let argv = output.json()["argv"].take();
    serde_json::from_value(argv).unwrap()
}

/// The values of `option`.
fn values<'a>(argv: &'a [String], option: &str) -> Vec<&'a str> {
    let places = argv.iter().enumerate().filter(|(_, word)| *word == option);
    places.map(|(at, _)| argv[at + 1].as_str()).collect()
}

/// Rows 147 and 151.
#[test]
fn a_path_is_a_path_whatever_is_in_its_name() {
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(&disk_only(&disk("1")));
    for name in [
        "a,file=b",
        "nbd:127.0.0.1:1",
        "json:{\"driver\":\"nbd\"}",
        "fat:rw:",
        "'\"<&>",
    ] {
        let store = sandbox.path(name);
        let argv = argv(&sandbox, &reference, &["--store", store.to_str().unwrap()]);
        let disks: Vec<Value> = values(&argv, "-blockdev")
            .iter()
            .map(|json| serde_json::from_str(json).unwrap())
            .collect();
        let disk = disks
            .iter()
            .find(|node| node["node-name"] == "disk-0")
            .unwrap();
        let overlay = format!("$TMP/{name}/instances/vm/disk-0.qcow2");
        assert_eq!(disk["file"]["driver"], "file");
        assert_eq!(disk["file"]["filename"], overlay);
        assert_eq!(disk["backing"]["file"]["driver"], "file");
        let doubled = format!("$TMP/{name}/instances/vm/console.log").replace(',', ",,");
        let console = values(&argv, "-chardev");
        let console = console
            .iter()
            .find(|value| value.starts_with("stdio,"))
            .unwrap();
        assert!(
            console.ends_with(&format!(",logfile={doubled}")),
            "{console}"
        );
    }
}

/// Rows 148 and 149.
#[test]
fn a_comma_in_what_the_guest_is_given_starts_no_option() {
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(&disk_only(&disk("1")));
    let argv = argv(&sandbox, &reference, &["--smbios", "x,path=/etc/shadow"]);
    assert_eq!(
        values(&argv, "-smbios"),
        ["type=11,value=x,,path=/etc/shadow"]
    );
    // Credentials go by a file, whose name in the guest is made of theirs.
    for credential in ["x,file=/etc/shadow:y", "../x:y", "x=y:z", "a\nb:z", ":z"] {
        let options = [
            "prepare", "-q", "--json", "--accel", "tcg", "--arch", "amd64",
        ];
        let mut command = sandbox.command(options.join(" "));
        command.args(["--name", "vm", "--set-credential", credential, &reference]);
        let output = sandbox.finish(command);
        assert_eq!(output.status, 2, "{credential}: {}", output.text());
        assert_eq!(output.json()["error"]["kind"], "usage", "{credential}");
    }
    assert_eq!(sandbox.names("instances"), Vec::<String>::new());
}

/// Row 153: no program is run to look at an image, so none can be put in the place of one.
#[test]
fn no_program_of_the_path_is_run_for_an_image() {
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(&direct());
    let programs = sandbox.path("programs");
    fs::create_dir(&programs).unwrap();
    for name in [
        "qemu-img", "qemu-io", "qemu-nbd", "file", "sh", "mount", "gzip", "zstd",
    ] {
        let program = programs.join(name);
        fs::write(
            &program,
            format!("#!/bin/sh\ntouch {}\n", sandbox.path("was-run").display()),
        )
        .unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for verb in ["plan", "pull", "prepare --name vm --accel tcg"] {
        let mut command = sandbox.command(format!("{verb} -q --arch amd64 {reference}"));
        command.current_dir(&programs).env("PATH", ".");
        let output = sandbox.finish(command);
        assert_eq!(output.status, 0, "{}", output.text());
    }
    assert!(!sandbox.path("was-run").exists());
}

/// Row 170: what is secret is in a file of the VM's alone, and goes with it.
#[test]
fn an_ignition_config_is_for_nobody_else_and_goes_with_its_vm() {
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(&disk_only(&disk("1")));
    let config = r#"{"ignition":{"version":"3.0.0"},"secret":"hunter2"}"#;
    fs::write(sandbox.path("home/config.ign"), config).unwrap();
    let options = "-q --arch amd64 --accel tcg --name vm --ignition config.ign";
    let program = sandbox.command(format!("prepare {options} {reference}"));
    let mut open = Command::new("sh");
    open.args(["-c", "umask 0 && exec \"$@\"", "sh"]);
    let output = sandbox.finish(sandbox.under(open, &program));
    assert_eq!(output.status, 0, "{}", output.text());
    let instance = sandbox.store().join("instances/vm");
    let mut kept = 0;
    for entry in fs::read_dir(&instance).unwrap() {
        let path = entry.unwrap().path();
        let content = fs::read(&path).unwrap();
        if String::from_utf8_lossy(&content).contains("hunter2") {
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{}", path.display());
            kept += 1;
        }
    }
    assert_eq!(kept, 1);
    let argv = argv(&sandbox, &reference, &["--ignition", "config.ign"]);
    assert!(!argv.iter().any(|word| word.contains("hunter2")));
    assert_eq!(sandbox.run("rm vm").status, 0);
    assert!(!sandbox.tree().keys().any(|path| path.contains("fw_cfg")));
}
