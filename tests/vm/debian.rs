//! A real Debian, of `scripts/make-debian`: that it comes up through `test`, and what `test` says of it where
//! it is broken. It is of this machine's architecture, which installs it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::Value;
use tempfile::TempDir;

use crate::bench::Bench;
use crate::guest::files;
use crate::session::Ended;

/// This machine's architecture, and one that it is not.
const OWN: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};
const FOREIGN: &str = if cfg!(target_arch = "aarch64") {
    "amd64"
} else {
    "arm64"
};
/// Where `scripts/make-debian` puts the root file system into the disk, in bytes.
const ROOT_OFFSET: u64 = 97 << 20;

/// An OCI layout directory with Debian as it is, and broken in several ways; the disk is in it twice.
struct Images {
    directory: TempDir,
    /// Held while an image is built.
    building: Mutex<()>,
}

/// A store, and those images.
struct Debian {
    bench: Bench,
    images: Arc<Images>,
}

impl Images {
    /// Those that another test uses, or new ones.
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Images>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let images = Arc::new(Self {
                directory: tempfile::tempdir().unwrap(),
                building: Mutex::new(()),
            });
            *shared = Arc::downgrade(&images);
            images
        })
    }

    fn name(&self, image: &str) -> String {
        format!("oci:{}:{image}", self.directory.path().display())
    }

    /// Where a test makes the file that it has instead of Debian's.
    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl Debian {
    fn new() -> Self {
        Self {
            bench: Bench::new(),
            images: Images::shared(),
        }
    }

    /// What `test` says, in JSON, of Debian with another file in one role.
    #[track_caller]
    fn test(&self, changed: Option<(&str, PathBuf)>, options: &[&str]) -> (Ended, Value) {
        let mut manifest = format!("arch={OWN}");
        for (role, file) in [
            ("kernel", "vmlinuz"),
            ("initramfs", "initramfs"),
            ("cmdline", "cmdline"),
            ("disk", "disk.img"),
        ] {
            let file = match &changed {
                Some((of, file)) if *of == role => file.clone(),
                _ => its(file),
            };
            manifest.push_str(&format!(",{role}={}", file.display()));
        }
        let name = changed.map_or("whole", |(role, _)| role);
        let image = self.images.name(name);
        let one = self.images.building.lock();
        let one = one.unwrap_or_else(PoisonError::into_inner);
        self.bench
            .does_alone(&["image", "build", "-o", &image, "-m", &manifest]);
        drop(one);
        let mut arguments = vec!["test", "--json", "--accel=tcg", "--memory=512M", &image];
        arguments.extend(options);
        let ended = self.bench.tries(&arguments);
        self.bench.is_clean();
        let test = ended.json()["tests"][0].clone();
        assert_ne!(test, Value::Null, "{ended}");
        (ended, test)
    }
}

/// A file of Debian's.
fn its(file: &str) -> PathBuf {
    files("debian").join(file)
}

/// Fails as `kind`, long before the time is up.
#[track_caller]
fn fails_early(test: &Value, kind: &str) {
    assert_eq!(test["reason"]["kind"], kind, "{test:#}");
    let [decided, limit] = ["decided_at_seconds", "timeout_seconds"].map(|key| {
        let seconds = test[key].as_f64();
        seconds.unwrap_or_else(|| panic!("no {key}: {test:#}"))
    });
    assert!(decided < limit / 2.0, "{test:#}");
}

/// Root's way in, and what it finds: all units started, a network, its own words. The kernel may say
/// something behind a prompt at any time, so none is awaited at the end of a line.
const LOGIN: [&str; 8] = [
    "--expect=debian login:",
    "--send=root",
    "--expect=root@debian:~#",
    "--send=systemctl is-system-running --wait",
    "--expect=^running$",
    "--send=networkctl --no-legend; echo $((6 * 7))",
    "--expect=ether *routable",
    "--expect=^42$",
];

fn stages(test: &Value) -> Vec<&str> {
    let stages = test["stages"].as_array().unwrap().iter();
    stages
        .map(|stage| stage["stage"].as_str().unwrap())
        .collect()
}

#[test]
fn debian_is_logged_in_to_after_a_direct_boot() {
    let debian = Debian::new();
    let (ended, test) = debian.test(None, &[&["--boot=direct"], &LOGIN[..]].concat());
    ended.with_code(0);
    assert_eq!(stages(&test), ["kernel", "initramfs", "userspace"]);
}

#[test]
fn debian_is_logged_in_to_after_firmware_has_booted_its_disk() {
    let debian = Debian::new();
    let (ended, test) = debian.test(None, &[&["--boot=disk"], &LOGIN[..]].concat());
    ended.with_code(0);
    assert_eq!(test["boot"]["method"], "disk");
    let stages = stages(&test);
    assert!(
        stages.ends_with(&["kernel", "initramfs", "userspace"]),
        "{stages:?}"
    );
}

#[test]
fn debian_executes_a_command_for_whoever_started_it() {
    let debian = Debian::new();
    let options = ["--boot=direct", "--exec=test $(id -u) = 0 && exit 7"];
    let (ended, test) = debian.test(None, &options);
    ended.with_code(1);
    assert_eq!(test["reason"]["kind"], "command-failed", "{test:#}");
    let message = test["reason"]["message"].as_str().unwrap();
    assert!(message.contains('7'), "{message}");
}

#[test]
fn debian_without_its_root_fails_with_that() {
    let debian = Debian::new();
    let command_line = fs::read_to_string(its("cmdline")).unwrap();
    let (_, rest) = command_line.split_once(' ').unwrap();
    let file = debian.images.file("cmdline");
    fs::write(&file, format!("root=PARTLABEL=nowhere {rest}")).unwrap();
    let (ended, test) = debian.test(Some(("cmdline", file)), &["--boot=direct"]);
    ended.with_code(1);
    fails_early(&test, "root-not-found");
}

#[test]
fn debian_that_waits_for_a_disk_in_vain_fails_as_an_emergency() {
    let debian = Debian::new();
    let [disk, fstab] = ["disk.img", "fstab"].map(|name| debian.images.file(name));
    let copied = Command::new("cp").args([&its("disk.img"), &disk]).status();
    assert!(copied.unwrap().success());
    let missing = "LABEL=missing /data ext4 x-systemd.device-timeout=3s 0 2\n";
    fs::write(&fstab, missing).unwrap();
    replace(&disk, "/etc/fstab", &fstab);
    let (ended, test) = debian.test(Some(("disk", disk)), &["--boot=direct"]);
    ended.with_code(1);
    fails_early(&test, "emergency-mode");
}

#[test]
fn debian_with_an_initramfs_cut_short_fails_before_the_time_is_up() {
    let debian = Debian::new();
    let file = debian.images.file("initramfs");
    fs::write(&file, &fs::read(its("initramfs")).unwrap()[..64 << 10]).unwrap();
    let (ended, test) = debian.test(Some(("initramfs", file)), &["--boot=direct"]);
    ended.with_code(1);
    fails_early(&test, "kernel-panic");
}

#[test]
fn debian_with_a_kernel_of_another_machine_is_not_started() {
    let debian = Debian::new();
    let kernel = files(FOREIGN).join("vmlinuz");
    let (ended, test) = debian.test(Some(("kernel", kernel)), &["--boot=direct"]);
    ended.with_code(1);
    assert_eq!(test["verdict"], "fail");
    let message = test["reason"]["message"].as_str().unwrap();
    assert!(message.ends_with(&format!("is for {FOREIGN}, not {OWN}")));
}

/// Replaces a file in the root file system of a disk.
fn replace(disk: &Path, path: &str, by: &Path) {
    let mut debugfs = Command::new("/sbin/debugfs");
    let device = format!("{}?offset={ROOT_OFFSET}", disk.display());
    debugfs.args(["-w", "-f", "-", &device]);
    let mut child = debugfs
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("debugfs is installed, of e2fsprogs");
    let orders = format!("rm {path}\nwrite {} {path}\n", by.display());
    let mut input = child.stdin.take().unwrap();
    input.write_all(orders.as_bytes()).unwrap();
    drop(input);
    let said = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(said.contains("Allocated inode"), "{said}");
}
