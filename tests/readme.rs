//! Every command of the README and of the examples for CI, run as it stands there, with a real image
//! and real services.
//!
//! Runs under `scripts/with-services`, with `IRONBOOT_TEST_GUEST` as `scripts/test` sets it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use tempfile::TempDir;

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

/// Where commands are run: an empty directory, with the program, an image in the registry, and a store.
struct Shell {
    directory: TempDir,
    variables: Vec<(&'static str, OsString)>,
}

impl Shell {
    /// The image has `name` in the registry, both architectures, and what `direct` and `disk` need.
    fn new(name: &str) -> Self {
        let guests = PathBuf::from(required("IRONBOOT_TEST_GUEST"));
        let registry = required("IRONBOOT_TEST_REGISTRY");
        let program = Path::new(env!("CARGO_BIN_EXE_ironboot"));
        // libvirt's QEMU user must be able to pass through, which a temporary directory does not let.
        let directory = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o711))
            .tempdir()
            .unwrap();
        let mut path = OsString::from(program.parent().unwrap());
        path.push(":");
        path.push(env::var_os("PATH").unwrap());
        let variables = vec![
            ("PATH", path),
            ("IRONBOOT_STORE", directory.path().join("store").into()),
            ("IMAGE", format!("{registry}/{name}/os:1").into()),
            ("GUEST", guests.join("amd64").into()),
            ("REGISTRY", registry.into()),
        ];
        let shell = Self {
            directory,
            variables,
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
        shell.does(&format!(
            "ironboot image build --output oci:made:os {manifests}"
        ));
        shell.does("ironboot image push oci:made:os \"$IMAGE\"");
        shell
    }

    /// Runs a command; returns what it prints, and its exit status.
    fn tries(&self, command: &str) -> (String, Option<i32>) {
        let output = Command::new("bash")
            .args(["-euo", "pipefail", "-c", command])
            .current_dir(&self.directory)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let words = format!(
            "$ {command}\n{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        (words, output.status.code())
    }

    /// Runs a command, which must succeed.
    fn does(&self, command: &str) -> String {
        let (words, code) = self.tries(command);
        assert_eq!(code, Some(0), "{words}");
        words
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.path().join(file)).unwrap()
    }
}

#[test]
fn every_command_of_the_readme_works() {
    let shell = Shell::new("readme");
    fs::write(
        shell.directory.path().join("config.ign"),
        r#"{"ignition":{"version":"3.0.0"}}"#,
    )
    .unwrap();

    let commands = commands();
    assert!(commands.len() > 20, "the README has lost its commands");
    for command in &commands {
        if command == "scripts/demo" {
            let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
            assert!(ci.contains("\nscripts/demo\n"), "CI runs the demo");
            continue;
        }
        let words = shell.does(command);
        let is_run = command.starts_with("ironboot run");
        let boots = is_run && !command.contains("--d") && !command.contains("--print");
        if boots {
            assert!(words.contains("IRONBOOT-OK"), "{words}");
        }
    }
}

/// The steps of the example for GitHub that run something, by name.
fn steps() -> Vec<(String, String)> {
    let json = Command::new("/usr/bin/python3")
        .args([
            "-c",
            "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin), sys.stdout)",
        ])
        .stdin(fs::File::open(root().join("fixtures/ci/github.yml")).unwrap())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&json.stderr);
    assert!(json.status.success(), "{words}");
    let workflow: Value = serde_json::from_slice(&json.stdout).unwrap();
    let steps = workflow["jobs"]["boot"]["steps"].as_array().unwrap().iter();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    steps
        .filter(|step| step["run"].is_string())
        .map(|step| (text(&step["name"]), text(&step["run"])))
        .collect()
}

#[test]
fn the_workflow_for_github_boots_an_image_in_four_ways() {
    let mut shell = Shell::new("github");
    shell.variables.extend([
        ("GITHUB_ACTIONS", "true".into()),
        ("GITHUB_OUTPUT", "outputs".into()),
        ("GITHUB_STEP_SUMMARY", "summary".into()),
        ("EXPECT", "^IRONBOOT-OK".into()),
    ]);
    let mut ran = Vec::new();
    for (name, command) in steps() {
        // What installs or logs in is for the runner alone.
        let is_ours = ["ironboot ", "echo \"digest="];
        if is_ours.iter().any(|start| command.starts_with(start)) {
            shell.does(&command);
            ran.push(name);
        }
    }
    assert_eq!(
        ran,
        [
            "Show what this runner can do",
            "Ask where the tag leads",
            "Boot it",
            "Keep what the cache must hold"
        ]
    );
    let outputs = shell.read("outputs");
    assert!(outputs.starts_with("digest=sha256:"), "{outputs}");
    let results = shell.read("boot.xml");
    assert_eq!(results.matches("<testcase ").count(), 4, "{results}");
    assert!(!results.contains("<failure"), "{results}");
}

#[test]
fn the_script_for_any_ci_tells_an_image_that_comes_up_from_one_that_does_not() {
    let shell = Shell::new("any-ci");
    let script = root().join("fixtures/ci/boot.sh");
    let script = script.display();
    let (words, code) = shell.tries(&format!("{script} \"$IMAGE\" --expect ^IRONBOOT-OK"));
    assert_eq!(code, Some(0), "{words}");
    let results = shell.read("results/boot.xml");
    assert!(!results.contains("<failure"), "{results}");

    let (words, code) = shell.tries(&format!("{script} \"$IMAGE\" --expect login:"));
    assert_eq!(code, Some(1), "{words}");
    let results = shell.read("results/boot.xml");
    assert!(
        results.contains("<failure type=\"guest-exit\""),
        "{results}"
    );
    let consoles = shell.does("cat results/failures/*/console.log");
    assert!(consoles.contains("IRONBOOT-OK"), "{consoles}");

    let (_, code) = shell.tries(&script.to_string());
    assert_eq!(code, Some(2));
}
