//! `--bind`: directories of the host's that a guest mounts.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::bench::{Bench, MACHINE};
use crate::session::{Ended, Session, wait_until};

fn ssh(bench: &Bench, line: &str) -> Ended {
    bench.tries(&["ssh", "vm", "--", line])
}

/// Whether a process has `word` among its arguments.
fn somebody_has(word: &str) -> bool {
    let has = |process: &Path| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line)
            .split('\0')
            .any(|argument| argument.contains(word))
    };
    let mut processes = fs::read_dir("/proc").unwrap();
    processes.any(|entry| has(&entry.unwrap().path()))
}

#[test]
fn a_guest_mounts_directories_and_writes_where_it_may() {
    let bench = Bench::new();
    let [shared, kept] = ["shared", "kept"].map(|name| bench.root().join(name));
    for directory in [&shared, &kept] {
        fs::create_dir(directory).unwrap();
        fs::write(directory.join("word"), "from the host\n").unwrap();
    }
    let mut command = bench.command(&["run", &bench.image_named("more")]);
    command
        .args(MACHINE)
        .args(["--name", "vm", "--detach", "--bind"]);
    command.arg(&shared).arg("--bind-ro");
    command.arg(format!("{}:ro", kept.display()));
    let run = Session::start(command).ends().with_code(0);
    let told = "mount -t virtiofs shared /mnt";
    assert!(run.stderr.contains(told), "{run}");

    let mount = "mkdir -p /mnt/a /mnt/b; mount -t virtiofs shared /mnt/a && \
                 mount -t virtiofs ro /mnt/b && cat /mnt/a/word /mnt/b/word";
    let mounted = ssh(&bench, mount).with_code(0);
    assert_eq!(mounted.stdout, "from the host\nfrom the host\n");
    ssh(&bench, "echo from the guest >/mnt/a/answer").with_code(0);
    let answer = fs::read_to_string(shared.join("answer")).unwrap();
    assert_eq!(answer, "from the guest\n");
    let refused = ssh(&bench, "echo x >/mnt/b/answer || rm /mnt/b/word").with_code(1);
    assert!(
        refused.stderr.contains("Read-only file system"),
        "{refused}"
    );
    assert_eq!(fs::read_dir(&kept).unwrap().count(), 1);

    // Whatever served them ends with QEMU, and comes again with it.
    let root = bench.root().display().to_string();
    assert!(somebody_has(&format!("{root}/shared")));
    bench.does(&["stop", "--force", "vm"]);
    wait_until("nobody serves the directory", || {
        !somebody_has(&format!("{root}/shared"))
    });
    bench.does(&["start", "vm"]);
    ssh(&bench, mount).with_code(0);
    bench.does(&["rm", "--force", "vm"]);
    bench.is_clean();
}

#[test]
fn a_vm_that_does_not_start_leaves_nobody_who_serves_its_directories() {
    let bench = Bench::new();
    let shared = bench.root().join("shared");
    fs::create_dir(&shared).unwrap();
    let bind = shared.display().to_string();
    let options = ["--bind", &bind, "--", "-device", "no-such-device"];
    bench.start("run", &options).ends().with_code(125);
    assert!(!somebody_has(&bind));
    bench.is_clean();
}

#[test]
fn a_start_that_is_killed_before_qemu_runs_leaves_nobody_who_serves_its_directories() {
    let bench = Bench::new();
    let shared = bench.root().join("shared");
    fs::create_dir(&shared).unwrap();
    let bind = shared.display().to_string();
    bench
        .start("run", &["--name", "vm", "--detach", "--bind", &bind])
        .ends()
        .with_code(0);
    bench.does(&["stop", "--force", "vm"]);
    // In QEMU's place one that ends whoever starts the VM, and itself.
    let programs = bench.root().join("programs");
    fs::create_dir(&programs).unwrap();
    let script = "#!/bin/sh\ncase \"$*\" in *vhost-user-fs*) kill -KILL $PPID; exit 1 ;; esac\n\
                  exec /usr/bin/qemu-system-x86_64 \"$@\"\n";
    let qemu = programs.join("qemu-system-x86_64");
    fs::write(&qemu, script).unwrap();
    fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).unwrap();
    let mut start = bench.command(&["start", "vm"]);
    let path = std::env::var("PATH").unwrap();
    start.env("PATH", format!("{}:{path}", programs.display()));
    Session::start(start).ends().with_code(128 + 9);
    wait_until("nobody serves the directory", || !somebody_has(&bind));
    bench.does(&["rm", "vm"]);
    bench.is_clean();
}
