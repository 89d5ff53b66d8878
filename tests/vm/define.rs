//! libvirt through the program: its system daemon, as root, whose QEMU is another user.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use rustix::process::Signal;
use serde_json::Value;

use crate::bench::Bench;
use crate::boots::Given;
use crate::libvirt::virsh;
use crate::session::{Ended, Session, markers, wait_until};

/// A domain's name, and a store for its instance.
pub(crate) struct Defined {
    pub(crate) bench: Bench,
    pub(crate) name: String,
}

impl Defined {
    /// `name` is a test's own; other runs of these tests share the daemon.
    pub(crate) fn new(name: &str) -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "the system's libvirt wants root"
        );
        Self {
            bench: Bench::new(),
            name: format!("ironboot-cli-{name}-{}", std::process::id()),
        }
    }

    /// Starts `define` of the tests' image and machine under the name.
    pub(crate) fn define(&self, options: &[&str]) -> Session {
        let mut all = vec!["--json", "--name", &self.name];
        all.extend(options);
        self.bench.start("define", &all)
    }

    /// Executes it; it must succeed. Gives what it says.
    #[track_caller]
    pub(crate) fn defines(&self, options: &[&str]) -> Value {
        self.define(options).ends().with_code(0).json()
    }

    /// Executes `verb` on the instance, which must succeed.
    #[track_caller]
    pub(crate) fn does(&self, verb: &str, options: &[&str]) -> Ended {
        let mut all = vec![verb, &self.name];
        all.extend(options);
        self.bench.does(&all)
    }

    #[track_caller]
    fn state(&self) -> Option<String> {
        self.bench.state(&self.name)
    }

    #[track_caller]
    pub(crate) fn reaches(&self, state: &str) {
        wait_until(state, || self.state().as_deref() == Some(state));
    }

    fn uuid(&self) -> Option<String> {
        virsh(&["domuuid", &self.name])
    }

    /// Removes it; fails unless nothing is left, here and at libvirt.
    #[track_caller]
    pub(crate) fn is_removed(&self, options: &[&str]) {
        self.does("rm", options);
        self.is_gone();
    }

    /// Fails unless nothing is left, here and at libvirt.
    #[track_caller]
    pub(crate) fn is_gone(&self) {
        self.bench.is_clean();
        let names = virsh(&["list", "--all", "--name"]).unwrap();
        assert!(!names.lines().any(|name| name == self.name), "{names}");
        for directory in ["/var/lib/libvirt/qemu/nvram", "/etc/libvirt/qemu"] {
            assert_eq!(names_with(Path::new(directory), &self.name), [""; 0]);
        }
    }
}

impl Defined {
    /// Kills `verb` at some moments of its time; after each kill `repeat` shows that it is completed,
    /// and `reset` makes what it begins with.
    #[track_caller]
    pub(crate) fn at_any_moment(
        &self,
        verb: &str,
        options: &[&str],
        reset: &dyn Fn(),
        repeat: &dyn Fn(&str),
    ) {
        const MOMENTS: u32 = 10;
        let begun = Instant::now();
        self.does(verb, options);
        let whole = begun.elapsed();
        let mut all = vec![verb, &self.name];
        all.extend(options);
        for moment in 0..MOMENTS {
            reset();
            let killed = Session::start(self.bench.command(&all));
            // Moments are all this sleep is for; nothing depends on where they fall.
            thread::sleep(whole * moment / MOMENTS);
            killed.signal(Signal::KILL);
            killed.ends();
            repeat(&format!("moment {moment} of {MOMENTS}"));
        }
        reset();
    }
}

impl Drop for Defined {
    fn drop(&mut self) {
        // Only a test that failed has left it.
        virsh(&["destroy", &self.name]);
        virsh(&["undefine", "--nvram", &self.name]);
    }
}

/// The names in `directory`, if there is one, that begin with `start`.
fn names_with(directory: &Path, start: &str) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with(start))
        .collect()
}

#[test]
fn a_domain_is_defined_watched_changed_and_removed() {
    let vm = Defined::new("life");
    vm.bench.does(&["pull", &vm.bench.image()]);
    let blobs = vm.bench.blobs();
    let options = ["--append", "ironboot.end=hang"];

    let mut starting = options.to_vec();
    starting.push("--start");
    let defined = vm.defines(&starting);
    assert_eq!(defined["created"], true);
    assert_eq!(defined["domain"]["state"], "running");
    assert_eq!(defined["domain"]["hypervisor"], "qemu:///system");
    let uuid = vm.uuid().unwrap();

    let console = Session::start(vm.bench.command(&["console", &vm.name]));
    console.prints("IRONBOOT-HANG");
    assert_eq!(vm.bench.blobs(), blobs);
    console.signal(Signal::TERM);
    console.ends().with_code(143);
    assert_eq!(vm.state().unwrap(), "running");
    let logs = vm.does("logs", &[]).stdout;
    assert!(markers(&logs).contains(&"IRONBOOT-HANG"), "{logs}");

    // The same again, while it runs and by whichever words.
    for again in [&options[..], &starting] {
        let defined = vm.defines(again);
        assert_eq!(defined["created"], false);
        assert_eq!(defined["domain"]["state"], "running");
        assert_eq!(vm.uuid().unwrap(), uuid);
    }

    let changed = ["--append", "ironboot.end=shell"];
    let replaced = ["--append", "ironboot.end=shell", "--replace"];
    for options in [&changed[..], &replaced] {
        let refused = vm.define(options).ends().with_code(125);
        assert_eq!(refused.error().0, "conflict");
        assert_eq!(vm.state().unwrap(), "running");
    }
    let stop = ["stop", "--json", "--timeout", "1", &vm.name];
    let stop = vm.bench.tries(&stop).with_code(124);
    assert_eq!(stop.error().0, "timeout");
    let hint = format!("pull its plug: `ironboot stop --force {}`", vm.name);
    assert_eq!(stop.json()["error"]["hint"], hint);
    vm.does("stop", &["--force"]);
    assert_eq!(vm.state().unwrap(), "stopped");
    assert_eq!(vm.bench.blobs(), blobs);

    let refused = vm.define(&changed).ends().with_code(125);
    assert_eq!(refused.error().0, "conflict");
    assert_eq!(vm.defines(&replaced)["created"], true);
    vm.does("start", &[]);
    let mut console = Session::start_to_type(vm.bench.command(&["console", &vm.name]));
    console.prints("guest# ");
    console.types("echo $((6 * 7))-typed; poweroff -f\n");
    console.prints("42-typed");
    console.ends().with_code(0);
    vm.reaches("stopped");
    assert_eq!(vm.bench.blobs(), blobs);
    vm.is_removed(&[]);
}

#[test]
fn a_domain_boots_its_disk_by_firmware_and_leaves_no_variables() {
    let vm = Defined::new("disk");
    vm.defines(&["--boot", "disk", "--start"]);
    let logs = vm.does("logs", &["--follow"]).stdout;
    for marker in ["IRONBOOT-EFI yes", "IRONBOOT-ROOT-OK"] {
        assert!(markers(&logs).contains(&marker), "{logs}");
    }
    vm.reaches("stopped");
    vm.is_removed(&[]);
}

#[test]
fn a_domain_is_connected_to_a_network_of_libvirts_and_to_a_bridge() {
    let vm = Defined::new("network");
    let process = std::process::id();
    // The name of a device has at most 15 characters.
    let (network, bridge) = (format!("ironboot-{process}"), format!("ib{process}"));
    let document = vm.bench.root().join("network.xml");
    let isolated = format!("<network><name>{network}</name><bridge name='{bridge}'/></network>");
    fs::write(&document, isolated).unwrap();
    virsh(&["net-create", document.to_str().unwrap()]).unwrap();
    for connection in [format!("network={network}"), format!("bridge={bridge}")] {
        let report = ["--append", "ironboot.report=more", "--start"];
        let mut options = vec!["--network", &connection];
        options.extend(report);
        vm.defines(&options);
        let logs = vm.does("logs", &["--follow"]).stdout;
        let cards = markers(&logs).into_iter();
        let cards = cards.filter(|line| line.starts_with("IRONBOOT-NIC virtio_net 52:54:00:"));
        assert_eq!(cards.count(), 1, "{logs}");
        vm.is_removed(&["--force"]);
    }
    virsh(&["net-destroy", &network]).unwrap();
}

#[test]
fn a_domain_of_which_nobody_knows_any_more_keeps_what_it_opens() {
    let vm = Defined::new("forgotten");
    let (bench, image) = (&vm.bench, vm.bench.image());
    vm.defines(&[]);
    fs::remove_dir_all(bench.instance(&vm.name)).unwrap();
    fs::remove_file(bench.store().join(format!("pins/{}.json", vm.name))).unwrap();
    let refused = bench.tries(&["image", "rm", "--json", &image]);
    let (kind, message) = refused.with_code(125).error();
    assert_eq!(kind, "conflict");
    let user = format!("is used by domain {} of qemu:///system", vm.name);
    assert!(message.ends_with(&user), "{message}");

    for record in fs::read_dir(bench.store().join("refs")).unwrap() {
        fs::remove_file(record.unwrap().path()).unwrap();
    }
    bench.does(&["image", "prune"]);
    let document = virsh(&["dumpxml", &vm.name]).unwrap();
    let opened = document.split(['\'', '"', '<', '>']);
    let opened: BTreeSet<&Path> = opened
        .filter(|text| text.contains("/blobs/sha256/"))
        .map(Path::new)
        .collect();
    assert!(opened.len() >= 3, "{document}");
    for path in opened {
        assert!(path.exists(), "{}", path.display());
    }
    virsh(&["undefine", "--nvram", &vm.name]).unwrap();
    bench.does(&["image", "prune"]);
    assert_eq!(bench.blobs(), []);
}

#[test]
fn what_qemus_user_can_not_open_is_told_with_the_command_that_opens_it() {
    let vm = Defined::new("closed");
    let bench = &vm.bench;
    let refused = |options: &[&str], closed: &str, command: &str| {
        let refused = vm.define(options).ends().with_code(69);
        let (kind, message) = refused.error();
        assert_eq!(kind, "host", "{refused}");
        assert!(
            message.ends_with(&format!(", who may not {closed}")),
            "{message}"
        );
        let hint = refused.json()["error"]["hint"].take();
        let expected = format!("open it with `{command}`, or pass --store");
        assert_eq!(hint, expected);
        assert_eq!(virsh(&["domuuid", &vm.name]), None);
        let mended = Command::new("sh").args(["-c", command]).status();
        assert!(mended.unwrap().success());
    };
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };

    mode(bench.root(), 0o700);
    let root = bench.root().display();
    let command = format!("chmod o+x {root}");
    refused(&[], &format!("pass through {root}"), &command);
    assert!(
        !bench.store().exists(),
        "it is told before anything is fetched"
    );

    // Behind a link, and of a name that a shell would take for two.
    let hidden = bench.root().join("it's hidden");
    fs::create_dir(&hidden).unwrap();
    let code = hidden.join("code.fd");
    fs::copy("/usr/share/OVMF/OVMF_CODE_4M.fd", &code).unwrap();
    symlink(&code, bench.root().join("code.fd")).unwrap();
    mode(&hidden, 0o700);
    mode(&code, 0o640);
    let link = bench.root().join("code.fd").display().to_string();
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    refused(
        &["--boot", "disk", "--firmware", &link],
        &format!("pass through {}, nor read {link}", hidden.display()),
        &format!("chmod o+r {link} && chmod o+x {}", quoted(&hidden)),
    );
    bench.is_clean();
    vm.defines(&["--boot", "disk", "--firmware", &link]);
    vm.is_removed(&[]);
}

#[test]
fn a_domain_of_another_architecture_boots() {
    let vm = Defined::new("arm64");
    vm.defines(&["--arch", "arm64", "--append", "ironboot.disks=2", "--start"]);
    let logs = vm.does("logs", &["--follow"]).stdout;
    let machine = &"IRONBOOT-MACHINE aarch64";
    assert!(markers(&logs).contains(machine), "{logs}");
    assert!(logs.contains("ro=1 serial=machineboot"), "{logs}");
    vm.is_removed(&["--force"]);
}

#[test]
fn a_domains_guest_reads_its_ignition_config_and_its_credentials() {
    let vm = Defined::new("given");
    let given = Given::new(&vm.bench);
    let mut options = given.options().to_vec();
    options.push("--start");
    vm.defines(&options);
    // Everybody who may look at a domain sees its document.
    let document = virsh(&["dumpxml", "--security-info", &vm.name]).unwrap();
    assert!(!document.contains(Given::SECRET), "{document}");
    let logs = vm.does("logs", &["--follow"]).stdout;
    let markers = markers(&logs);
    let printed: Vec<_> = markers
        .iter()
        .filter(|line| line.contains("FWCFG"))
        .collect();
    assert_eq!(printed, given.markers().iter().collect::<Vec<_>>());
    vm.is_removed(&["--force"]);
}

#[test]
fn a_domain_that_runs_is_removed_by_force_only() {
    let vm = Defined::new("force");
    vm.defines(&["--append", "ironboot.end=hang", "--start"]);
    let refused = vm.bench.tries(&["rm", "--json", &vm.name]).with_code(125);
    assert_eq!(refused.error().0, "conflict");
    assert_eq!(vm.state().unwrap(), "running");
    vm.is_removed(&["--force"]);
}

#[test]
fn a_domain_of_somebody_elses_is_a_conflict_and_stays() {
    let vm = Defined::new("foreign");
    let document = vm.bench.root().join("domain.xml");
    let name = &vm.name;
    let theirs = format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory>\
         <os><type arch='x86_64'>hvm</type></os></domain>"
    );
    fs::write(&document, theirs).unwrap();
    virsh(&["define", document.to_str().unwrap()]).unwrap();
    let before = virsh(&["dumpxml", name]).unwrap();

    for options in [&[][..], &["--start"], &["--replace"]] {
        let refused = vm.define(options).ends().with_code(125);
        assert_eq!(refused.error().0, "conflict", "{refused}");
        vm.bench.is_clean();
        assert_eq!(virsh(&["dumpxml", name]).unwrap(), before);
    }
}

#[test]
fn a_domain_that_vanished_comes_back_by_start_and_by_define() {
    let vm = Defined::new("vanished");
    let options = ["--append", "ironboot.end=hang"];
    vm.defines(&options);
    let uuid = vm.uuid().unwrap();
    let vanish = || {
        virsh(&["destroy", &vm.name]);
        virsh(&["undefine", &vm.name]).unwrap();
        assert_eq!(vm.state().unwrap(), "unknown");
    };

    vanish();
    vm.does("start", &[]);
    assert_eq!(vm.state().unwrap(), "running");
    assert_eq!(vm.uuid().unwrap(), uuid);

    vanish();
    let defined = vm.defines(&options);
    assert_eq!(defined["created"], false);
    assert_eq!(defined["domain"]["state"], "stopped");
    assert_eq!(vm.uuid().unwrap(), uuid);

    // One that runs when it is undefined would be gone for good once it stops.
    vm.does("start", &[]);
    virsh(&["undefine", &vm.name]).unwrap();
    assert_eq!(vm.defines(&options)["domain"]["state"], "running");
    vm.does("stop", &["--force"]);
    assert_eq!(vm.state().unwrap(), "stopped");

    // An instance without a domain is removed as well.
    vanish();
    vm.is_removed(&[]);
}

#[test]
fn a_define_that_was_killed_at_any_moment_is_completed_by_the_next() {
    const MOMENTS: u32 = 10;
    let vm = Defined::new("killed");
    let options = ["--append", "ironboot.end=hang", "--start"];
    vm.bench.does(&["pull", &vm.bench.image()]);
    let begun = Instant::now();
    vm.defines(&options);
    let whole = begun.elapsed();
    vm.is_removed(&["--force"]);

    for moment in 0..MOMENTS {
        let define = vm.define(&options);
        // Moments are all this sleep is for; nothing depends on where they fall.
        thread::sleep(whole * moment / MOMENTS);
        define.signal(Signal::KILL);
        define.ends();

        let defined = vm.defines(&options);
        assert_eq!(defined["domain"]["state"], "running", "moment {moment}");
        vm.is_removed(&["--force"]);
    }
}
