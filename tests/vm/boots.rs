//! `run`: every boot method and architecture, and what the guest finds.

use std::fs;
use std::process::Command;

use ironboot::oci::Digest;

use crate::bench::{Bench, COMPAT_COMMAND_LINE, MACHINE};
use crate::guest::files;
use crate::session::Session;

/// Size of a file of the guest's, in sectors.
fn sectors(architecture: &str, file: &str) -> u64 {
    fs::metadata(files(architecture).join(file)).unwrap().len() / 512
}

/// What the guest says after a direct boot with `command_line`.
fn direct(architecture: &str, machine: &str, command_line: &str) -> Vec<String> {
    let (disk, squashfs) = (
        sectors(architecture, "disk.img"),
        sectors(architecture, "root.squashfs"),
    );
    vec![
        format!("IRONBOOT-CMDLINE {command_line}"),
        format!("IRONBOOT-MACHINE {machine}"),
        format!("IRONBOOT-DISK /dev/vda size={disk} ro=0 serial="),
        format!("IRONBOOT-DISK /dev/vdb size={squashfs} ro=1 serial=machineboot"),
        "IRONBOOT-EFI no".to_owned(),
    ]
}

/// What the guest says after firmware has booted its disk.
fn from_disk(architecture: &str, machine: &str, console: &str) -> Vec<String> {
    let disk = sectors(architecture, "disk.img");
    vec![
        format!(
            "IRONBOOT-CMDLINE initrd=\\initramfs console={console} panic=-1 ironboot.root=/dev/vda2"
        ),
        format!("IRONBOOT-MACHINE {machine}"),
        format!("IRONBOOT-DISK /dev/vda size={disk} ro=0 serial="),
        "IRONBOOT-EFI yes".to_owned(),
        "IRONBOOT-ROOT-OK".to_owned(),
    ]
}

#[test]
fn a_direct_boot_has_the_plans_command_line_and_disks_and_leaves_nothing() {
    let bench = Bench::new();
    bench.does(&["pull", &bench.image()]);
    let before = bench.blobs();
    let append = ["--append", "ironboot.disks=2"];
    let plan = bench.does(&["plan", "--json", &bench.image(), append[0], append[1]]);
    let command_line = plan.json()["boot"]["command_line"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(
        command_line, "console=ttyS0 panic=-1 ironboot.disks=2",
        "{plan}"
    );

    let run = bench.start("run", &append).ends().with_code(0);
    assert_eq!(run.markers(), direct("amd64", "x86_64", &command_line));
    assert_eq!(bench.blobs(), before);
    bench.is_clean();
}

#[test]
fn firmware_boots_the_disk() {
    let bench = Bench::new();
    let run = bench.start("run", &["--boot", "disk"]).ends().with_code(0);
    assert_eq!(run.markers(), from_disk("amd64", "x86_64", "ttyS0"));
    bench.is_clean();
}

#[test]
fn arm64_boots_directly() {
    let bench = Bench::new();
    let run = bench.start("run", &["--arch", "arm64", "--append", "ironboot.disks=2"]);
    let command_line = "console=ttyAMA0 panic=-1 ironboot.disks=2";
    assert_eq!(
        run.ends().with_code(0).markers(),
        direct("arm64", "aarch64", command_line)
    );
    bench.is_clean();
}

#[test]
fn arm64_firmware_boots_the_disk() {
    let bench = Bench::new();
    let run = bench.start("run", &["--arch", "arm64", "--boot", "disk"]);
    assert_eq!(
        run.ends().with_code(0).markers(),
        from_disk("arm64", "aarch64", "ttyAMA0")
    );
    bench.is_clean();
}

#[test]
fn the_form_of_todays_ironcore_image_boots_from_a_registry() {
    let registry = std::env::var("IRONBOOT_TEST_REGISTRY")
        .expect("IRONBOOT_TEST_REGISTRY is set by scripts/with-services");
    let bench = Bench::new();
    let reference = format!("{registry}/vm/compat:{}", std::process::id());
    bench.does(&["image", "push", &bench.image_named("compat"), &reference]);

    let mut command = bench.command(&["run", &reference]);
    command.args(MACHINE);
    let run = Session::start(command).ends().with_code(0);
    let disk = sectors("amd64", "disk.img");
    assert_eq!(
        run.markers(),
        [
            &format!("IRONBOOT-CMDLINE {COMPAT_COMMAND_LINE}"),
            "IRONBOOT-MACHINE x86_64",
            &format!("IRONBOOT-DISK /dev/vda size={disk} ro=0 serial="),
            "IRONBOOT-EFI no",
        ]
    );
    bench.is_clean();
}

#[test]
fn the_disk_has_the_size_that_was_asked_for() {
    let bench = Bench::new();
    let run = bench.start(
        "run",
        &["--disk-size", "200M", "--append", "ironboot.disks=2"],
    );
    let run = run.ends().with_code(0);
    let disk = format!("IRONBOOT-DISK /dev/vda size={} ro=0 serial=", 200 << 11);
    assert!(run.markers().contains(&disk.as_str()), "{run}");

    let smaller = bench.start("run", &["--json", "--disk-size", "10M"]).ends();
    assert_eq!(smaller.with_code(2).error().0, "usage");
    bench.is_clean();
}

#[test]
fn the_guest_reads_its_ignition_config_and_its_credentials() {
    let bench = Bench::new();
    let given = Given::new(&bench);
    let run = bench.start("run", &given.options()).ends().with_code(0);
    let markers = run.markers();
    let printed: Vec<_> = markers
        .iter()
        .filter(|line| line.contains("FWCFG"))
        .collect();
    assert_eq!(printed, given.markers().iter().collect::<Vec<_>>());

    // Everybody on the host sees the arguments of a process.
    let mut options = given.options().to_vec();
    options.extend(["--dry-run", "--json"]);
    let dry = bench.start("run", &options).ends().with_code(0);
    assert!(!dry.stdout.contains(Given::SECRET), "{dry}");
    bench.is_clean();
}

/// An Ignition config and a credential.
pub(crate) struct Given {
    ignition: String,
}

impl Given {
    pub(crate) const SECRET: &str = "s3cret, with commas,and = signs";
    const CONFIG: &str = r#"{"ignition": {"version": "3.4.0"}}"#;

    pub(crate) fn new(bench: &Bench) -> Self {
        let ignition = bench.root().join("config.ign");
        fs::write(&ignition, Self::CONFIG).unwrap();
        Self {
            ignition: ignition.display().to_string(),
        }
    }

    pub(crate) fn options(&self) -> [&str; 4] {
        [
            "--ignition",
            &self.ignition,
            "--set-credential",
            "ironboot.test:s3cret, with commas,and = signs",
        ]
    }

    /// What the guest says of them.
    pub(crate) fn markers(&self) -> [String; 2] {
        [
            ("com.coreos/config", Self::CONFIG),
            ("io.systemd.credentials/ironboot.test", Self::SECRET),
        ]
        .map(|(name, content)| {
            let (size, sha256) = (content.len(), Digest::of(content.as_bytes()));
            let sha256 = sha256.hex();
            format!("IRONBOOT-FWCFG opt/{name} size={size} sha256={sha256}")
        })
    }
}

#[test]
fn the_guest_has_the_machine_and_reads_the_strings_that_were_asked_for() {
    let bench = Bench::new();
    let file = bench.root().join("secret");
    fs::write(&file, Given::SECRET).unwrap();
    let loaded = format!("ironboot.loaded:{}", file.display());
    let mut command = bench.command(&["run", &bench.image(), "--accel", "tcg"]);
    command.args([
        "--cpus",
        "2",
        "--memory",
        "300M",
        "--hostname",
        "web-1.example",
    ]);
    command.args([
        "--append",
        "ironboot.report=more",
        "--load-credential",
        &loaded,
    ]);
    // What would be another option of QEMU's, and markup.
    let strings = [
        "a,path=/etc/passwd",
        "<b c='d'>&amp;\"",
        "io.systemd.credential:x=y z",
    ];
    for string in strings {
        command.args(["--smbios", string]);
    }
    let run = Session::start(command).ends().with_code(0);
    let markers = run.markers();
    let mut expected = strings
        .map(|string| format!("IRONBOOT-SMBIOS {string}"))
        .to_vec();
    let given = |name: &str, content: &str| {
        let sha256 = Digest::of(content.as_bytes()).hex();
        let size = content.len();
        format!("IRONBOOT-FWCFG opt/io.systemd.credentials/{name} size={size} sha256={sha256}")
    };
    expected.extend([
        "IRONBOOT-CMDLINE console=ttyS0 panic=-1 ironboot.report=more \
         systemd.hostname=web-1.example"
            .to_owned(),
        "IRONBOOT-CPUS 2".to_owned(),
        given("ironboot.loaded", Given::SECRET),
        given("system.hostname", "web-1.example"),
    ]);
    for line in &expected {
        assert!(markers.contains(&line.as_str()), "{line}: {run}");
    }
    let nic = markers
        .iter()
        .filter(|line| line.starts_with("IRONBOOT-NIC virtio_net 52:54:00:"));
    assert_eq!(nic.count(), 1, "{run}");
    bench.is_clean();

    let without = ["--append", "ironboot.report=more", "--network", "none"];
    let run = bench.start("run", &without).ends().with_code(0);
    assert!(!run.stdout.contains("IRONBOOT-NIC"), "{run}");
    // Without firmware there are no SMBIOS tables on Arm.
    let options = ["--json", "--arch", "arm64", "--smbios", "a"];
    let refused = bench.start("run", &options).ends().with_code(2);
    assert_eq!(refused.error().0, "usage");
}

#[test]
fn what_a_uki_takes_is_made_by_the_script_of_a_dry_run() {
    for (image, options) in [
        ("uki", "--uki esp"),
        ("uki", "--uki extract"),
        ("uki", "--uki loader --append by=hand"),
        ("iso", ""),
    ] {
        let bench = Bench::new();
        let image = bench.image_named(image);
        bench.does(&["pull", &image]);
        let mut command = bench.command(&["run", &image, "--dry-run", "--name", "by-hand"]);
        command.args(MACHINE).args(options.split_ascii_whitespace());
        let script = Session::start(command).ends().with_code(0).stdout;
        let script = script.replace("256M", "512M");
        let mut shell = Command::new("bash");
        shell.args(["-euc", &script]);
        let run = Session::start(shell).ends().with_code(0);
        assert!(run.stdout.contains("IRONBOOT-OK"), "{options}: {run}");
        assert_eq!(
            run.stdout.contains("by=hand"),
            options.contains("by=hand"),
            "{run}"
        );
        bench.does(&["rm", "by-hand"]);
    }
}

#[test]
fn the_script_of_a_dry_run_boots_by_hand() {
    for options in [&["--append", "ironboot.disks=2"][..], &["--boot", "disk"]] {
        let bench = Bench::new();
        bench.does(&["pull", &bench.image()]);
        let mut arguments = vec!["--dry-run", "--name", "by-hand"];
        arguments.extend(options);
        let script = bench.start("run", &arguments).ends().with_code(0).stdout;
        // A dry run has touched nothing.
        assert!(!bench.instance("by-hand").exists());
        let before = bench.blobs();

        let mut shell = Command::new("sh");
        shell.args(["-c", &script]);
        let run = Session::start(shell).ends().with_code(0);
        let expected = match options {
            ["--boot", _] => from_disk("amd64", "x86_64", "ttyS0"),
            _ => direct("amd64", "x86_64", "console=ttyS0 panic=-1 ironboot.disks=2"),
        };
        assert_eq!(run.markers(), expected);
        assert_eq!(bench.blobs(), before);
        assert_eq!(bench.processes(), []);

        // What the script has made is in the way of an instance, and is removed like one.
        let run = bench.start("run", &["--json", "--name", "by-hand"]).ends();
        assert_eq!(run.with_code(125).error().0, "conflict");
        bench.does(&["rm", "by-hand"]);
        bench.is_clean();
    }
}

/// Row 147 of the hostile table, by QEMU itself.
#[test]
fn a_store_of_any_name_is_booted_from() {
    let bench = Bench::new();
    let store = bench.root().join("a,file=b:\"c\" 'd' {json:} nbd:<&>");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ironboot"));
    command
        .arg("--store")
        .arg(&store)
        .arg("run")
        .arg(bench.image());
    command.args(MACHINE).args(["--boot", "direct"]);
    let run = Session::start(command);
    run.prints("IRONBOOT-OK");
    run.ends().with_code(0);
    assert!(store.join("blobs").exists());
}
