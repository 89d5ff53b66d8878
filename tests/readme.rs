//! Every command of the README, run as it stands there, with a real image and real services.
//!
//! Runs under `scripts/with-services`, with `IRONBOOT_TEST_GUEST` as `scripts/test` sets it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The commands in the README's console blocks, in their order.
fn commands() -> Vec<String> {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let mut inside = false;
    let mut commands = Vec::new();
    for line in readme.lines() {
        match line {
            "```console" => inside = true,
            "```" => inside = false,
            _ if inside => {
                let command = line.strip_prefix("$ ");
                commands.push(
                    command
                        .expect("a console block has commands only")
                        .to_owned(),
                );
            }
            _ => {}
        }
    }
    commands
}

fn required(variable: &str) -> String {
    env::var(variable).unwrap_or_else(|_| panic!("{variable} is not set; run scripts/test"))
}

#[test]
fn every_command_of_the_readme_works() {
    let guests = PathBuf::from(required("IRONBOOT_TEST_GUEST"));
    let registry = required("IRONBOOT_TEST_REGISTRY");
    let program = Path::new(env!("CARGO_BIN_EXE_ironboot"));
    // libvirt's QEMU user must be able to pass through, which a temporary directory does not let.
    let directory = tempfile::Builder::new()
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711))
        .tempdir()
        .unwrap();
    fs::write(
        directory.path().join("config.ign"),
        r#"{"ignition":{"version":"3.0.0"}}"#,
    )
    .unwrap();
    let mut path = OsString::from(program.parent().unwrap());
    path.push(":");
    path.push(env::var_os("PATH").unwrap());
    let image = format!("{registry}/readme/os:1");
    let shell = |command: &str| {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", command])
            .current_dir(directory.path())
            .env("PATH", &path)
            .env("IRONBOOT_STORE", directory.path().join("store"))
            .env("IMAGE", &image)
            .env("GUEST", guests.join("amd64"))
            .env("REGISTRY", &registry)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let words = format!(
            "$ {command}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert!(output.status.success(), "{words}\n{}", output.status);
        words
    };
    let manifests: String = ["amd64", "arm64"]
        .iter()
        .map(|architecture| {
            let guest = guests.join(architecture);
            let guest = guest.display();
            format!(
                " --manifest arch={architecture},kernel={guest}/vmlinuz,initramfs={guest}/initramfs\
                 ,cmdline={guest}/cmdline,disk={guest}/disk.img"
            )
        })
        .collect();
    shell(&format!(
        "ironboot image build --output oci:made:os {manifests}"
    ));
    shell("ironboot image push oci:made:os \"$IMAGE\"");

    let commands = commands();
    assert!(commands.len() > 20, "the README has lost its commands");
    for command in &commands {
        if command == "scripts/demo" {
            let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
            assert!(ci.contains("\nscripts/demo\n"), "CI runs the demo");
            continue;
        }
        let words = shell(command);
        let boots = command.starts_with("ironboot run") && !command.contains("--d");
        if boots {
            assert!(words.contains("IRONBOOT-OK"), "{words}");
        }
    }
}
