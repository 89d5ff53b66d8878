//! The unit for systemd in `scripts/`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::image::{disk, disk_only};
use crate::sandbox::Sandbox;

fn unit() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/ironboot-pull@.service")
}

/// The value of `key` in the unit.
fn value(key: &str) -> String {
    let unit = fs::read_to_string(unit()).unwrap();
    let mut lines = unit.lines();
    let line = lines.find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    line.unwrap().to_owned()
}

#[test]
fn systemd_finds_the_service_little_exposed() {
    let output = Command::new("systemd-analyze")
        // Tenths: 2.0, of 10 for what may do everything.
        .args(["security", "--offline=true", "--threshold=20", "--no-pager"])
        .arg(unit())
        .output()
        .expect("systemd-analyze is installed, of systemd");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn what_the_service_runs_makes_a_store_that_other_users_may_pass_through() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("of a service"));
    let reference = sandbox.layout(&image);
    fs::write(sandbox.path("registry-auth"), "{}").unwrap();

    let credentials = sandbox.path("").display().to_string();
    let line = value("ExecStart")
        .replace(
            "${CREDENTIALS_DIRECTORY}",
            credentials.trim_end_matches('/'),
        )
        .replace("%I", &reference);
    let arguments = line.strip_prefix("/usr/bin/ironboot ").unwrap();
    let program = sandbox.command(arguments);
    let mut masked = Command::new("sh");
    let script = format!("umask {} && exec \"$@\"", value("UMask"));
    masked.args(["-c", &script, "sh"]);
    let output = sandbox.under(masked, &program).output().unwrap();
    assert!(output.status.success(), "{output:?}");

    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let blobs = sandbox.store().join("blobs/sha256");
    for directory in [
        sandbox.store(),
        sandbox.store().join("blobs"),
        blobs.clone(),
    ] {
        assert_eq!(mode(&directory) & 0o011, 0o011, "{}", directory.display());
    }
    for blob in fs::read_dir(blobs).unwrap() {
        assert_eq!(mode(&blob.unwrap().path()), 0o444);
    }
}
