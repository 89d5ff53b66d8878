//! `qemu:///system` as a member of group libvirt, who can give nothing away: libvirt lends QEMU's user
//! the VM's own files, and must not touch the store's.
//!
//! Whether members of the group are let in is the host's affair, so there is a libvirt here that lets
//! them in: in a mount namespace of its own, where it finds nothing of the machine's and nobody finds
//! it.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::bench::{Bench, MACHINE};
use crate::session::{Ended, Session, markers, wait_until};

/// A user of every Debian, who owns nothing.
const USER: &str = "nobody";
const GROUP: &str = "nogroup";

/// What starts the daemons. `tini` takes in the QEMUs that libvirtd detaches, and ends with it.
const DAEMONS: &str = r#"
set -e
for directory in /run/libvirt /etc/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
    mkdir -p $directory
    mount -t tmpfs -o mode=755 tmpfs $directory
done
cat >/etc/libvirt/libvirtd.conf <<END
unix_sock_group = "libvirt"
unix_sock_rw_perms = "0770"
auth_unix_ro = "none"
auth_unix_rw = "none"
END
setpriv --pdeathsig TERM virtlogd --pid-file /run/libvirt/own-virtlogd.pid &
exec tini -s -- libvirtd --pid-file /run/libvirt/own-libvirtd.pid
"#;

/// A member of the group with a store, and the libvirt that lets him in.
struct Member {
    bench: Bench,
    daemons: Child,
    /// The user's, with the program, which others may not reach where it was built.
    home: PathBuf,
}

impl Member {
    fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the system's libvirt wants root"
        );
        let bench = Bench::new();
        let home = bench.root().to_owned();
        // A child writes it: nobody else may hold a program open for writing when it is started.
        let copied = Command::new("cp")
            .args([Path::new(env!("CARGO_BIN_EXE_ironboot")), &home])
            .status();
        assert!(copied.unwrap().success());
        chown(&home, Some(number("-u", USER)), Some(number("-g", USER))).unwrap();

        let path = std::env::var("PATH").unwrap() + ":/usr/sbin:/sbin";
        let log = fs::File::create(home.join("libvirtd.log")).unwrap();
        let daemons = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--"])
            // Should this process be killed, so are the daemons.
            .args(["setpriv", "--pdeathsig", "TERM", "sh", "-c", DAEMONS])
            .env("PATH", path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let member = Self {
            bench,
            daemons,
            home,
        };
        wait_until("libvirtd lets the member in", || {
            let mut uri = member.as_user(Path::new("virsh"));
            uri.args(["-c", "qemu:///system", "uri"]);
            uri.output().unwrap().status.success()
        });
        member
    }

    /// A program as the user, where the daemons are.
    fn as_user(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--mount", "--target", &self.daemons.id().to_string()])
            .args(["setpriv", "--reuid", USER, "--regid", GROUP])
            .args(["--groups", "libvirt", "--"])
            .arg(program)
            .env("HOME", &self.home)
            .env("XDG_CONFIG_HOME", self.home.join("config"))
            // No daemon of the user's own is started here.
            .env("LIBVIRT_AUTOSTART", "0")
            .env("XDG_RUNTIME_DIR", self.home.join("none"))
            .env("LIBVIRT_DEFAULT_URI", "qemu:///system")
            .current_dir("/");
        command
    }

    /// The program on the user's store.
    fn tries(&self, arguments: &[&str]) -> Ended {
        let mut command = self.as_user(&self.home.join("ironboot"));
        command.arg("--store").arg(self.bench.store());
        Session::start({
            command.args(arguments);
            command
        })
        .ends()
    }

    #[track_caller]
    fn does(&self, arguments: &[&str]) -> Ended {
        self.tries(arguments).with_code(0)
    }

    #[track_caller]
    fn defines(&self, image: &str, options: &str) -> Value {
        let image = self.bench.image_named(image);
        let mut arguments = vec!["define", &image, "--json", "--name", "vm", "--start"];
        arguments.extend(MACHINE);
        arguments.extend(options.split_ascii_whitespace());
        self.does(&arguments).json()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        // One that runs has none but these daemons to end it; only a test that failed has left it.
        self.tries(&["rm", "--force", "vm"]);
        if let Some(daemons) = i32::try_from(self.daemons.id())
            .ok()
            .and_then(Pid::from_raw)
        {
            kill_process(daemons, Signal::TERM).ok();
        }
        self.daemons.wait().ok();
    }
}

fn number(what: &str, user: &str) -> u32 {
    let output = Command::new("id").args([what, user]).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

/// The files in the instance's directory that belong to `uid`.
fn files_of(directory: &Path, uid: u32) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(Result::unwrap);
    let mut names: Vec<String> = entries
        .filter(|entry| entry.metadata().unwrap().uid() == uid)
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn libvirt_lends_qemu_the_vms_own_files_and_leaves_the_stores() {
    let member = Member::new();
    let bench = &member.bench;
    let doctor = member.does(&["doctor", "--json"]).json();
    let libvirt = &doctor["libvirt"][0];
    assert_eq!(libvirt["level"], "ok", "{libvirt}");
    let qemu = libvirt["qemu_user"]["uid"].as_u64().unwrap();
    let qemu = u32::try_from(qemu).unwrap();
    assert_eq!(doctor["libvirt"][1]["daemon"]["level"], "warn");

    let instance = bench.instance("vm");
    for (image, options, lent) in [
        (
            "guest",
            "--boot direct",
            &["disk-0.qcow2", "initramfs", "kernel"][..],
        ),
        ("live", "", &["initramfs", "kernel"]),
        (
            "uki",
            "--uki loader",
            &["disk-0.qcow2", "uki.efi", "vars.fd"],
        ),
        ("uki", "--uki esp", &["disk-0.qcow2", "esp.img", "vars.fd"]),
        (
            "uki",
            "--uki extract",
            &["disk-0.qcow2", "initramfs", "kernel"],
        ),
        ("guest", "--boot disk", &["disk-0.qcow2", "vars.fd"]),
        ("iso", "", &["vars.fd"]),
        ("bios", "", &["disk-0.qcow2"]),
        ("qcow2", "", &["disk-0.qcow2", "vars.fd"]),
    ] {
        let form = format!("{image} {options}");
        member.does(&["pull", &bench.image_named(image)]);
        let before = bench.blobs();
        let defined = member.defines(image, options);
        assert_eq!(defined["domain"]["state"], "running", "{form}");
        assert_eq!(bench.blobs(), before, "{form}, which runs");
        assert_eq!(files_of(&instance, qemu), lent, "{form}");
        member.does(&["stop", "--force", "vm"]);
        assert_eq!(bench.blobs(), before, "{form}, which has stopped");
        assert_eq!(files_of(&instance, qemu), [""; 0], "{form}");
        member.does(&["rm", "vm"]);
        assert_eq!(bench.blobs(), before, "{form}, which is gone");
        assert!(!instance.exists());
    }

    // And it boots, twice, with a file that the guest is given.
    let secret = member.home.join("config.ign");
    fs::write(&secret, "{}").unwrap();
    let options = format!(
        "--append ironboot.report=more --ignition {}",
        secret.display()
    );
    member.defines("guest", &options);
    for _ in 0..2 {
        let logs = member.does(&["logs", "--follow", "vm"]).stdout;
        assert!(logs.contains("IRONBOOT-OK"), "{logs}");
        assert!(
            markers(&logs).iter().any(|line| line.contains("FWCFG")),
            "{logs}"
        );
        member.does(&["start", "vm"]);
    }
    member.does(&["rm", "--force", "vm"]);
    bench.is_clean();
}

#[test]
fn a_store_that_qemus_user_can_not_reach_is_refused_before_anything_is_fetched() {
    let member = Member::new();
    let bench = &member.bench;
    let home = &member.home;
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let image = bench.image();
    let define = ["define", "--json", "--name", "vm", "--accel", "tcg", &image];
    let refused = |closed: &str, command: &str| {
        let refused = member.tries(&define).with_code(69);
        let (kind, message) = refused.error();
        assert_eq!(kind, "host", "{refused}");
        assert!(
            message.ends_with(&format!(", who may not {closed}")),
            "{message}"
        );
        let hint = refused.json()["error"]["hint"].take();
        let hint = hint.as_str().unwrap();
        assert_eq!(hint, format!("open it with `{command}`, or pass --store"));
        let mended = Command::new("sh").args(["-c", command]).status();
        assert!(mended.unwrap().success());
    };

    mode(home, 0o700);
    let path = home.display();
    refused(
        &format!("pass through {path}"),
        &format!("chmod o+x {path}"),
    );
    assert!(!bench.store().exists());

    // What shows only when the VM's files are known.
    member.does(&["pull", &image]);
    let blobs = bench.store().join("blobs/sha256");
    mode(&blobs, 0o700);
    let path = blobs.display();
    refused(
        &format!("pass through {path}"),
        &format!("chmod o+x {path}"),
    );
    bench.is_clean();
    member.does(&define);
    member.does(&["rm", "vm"]);
    bench.is_clean();
}
