//! QEMUs that do not start: what is said, and what is left.

use std::fs;
use std::net::TcpListener;

use ironboot::oci::Digest;

use crate::bench::Bench;
use crate::guest::files;

#[test]
fn a_qemu_that_ends_at_once_is_quoted_and_its_instance_is_gone() {
    let bench = Bench::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let forward = format!("{}:22", taken.local_addr().unwrap().port());
    let run = bench.start(
        "run",
        &["--json", "--name", "forwarded", "--publish", &forward],
    );
    let ended = run.ends().with_code(125);
    assert_eq!(
        ended.json()["error"]["hint"],
        "that port of this host is taken: choose another one, as in `-p 8081:80`"
    );
    let (kind, message) = ended.error();
    assert_eq!(kind, "hypervisor");
    let port = forward.replace(':', "-:");
    assert_eq!(
        message,
        format!(
            "QEMU could not start forwarded: qemu-system-x86_64: -netdev \
             user,id=net0,hostfwd=tcp:127.0.0.1:{port}: \
             Could not set up host forwarding rule 'tcp:127.0.0.1:{port}'"
        )
    );
    bench.is_clean();
}

#[test]
fn a_vm_whose_file_is_broken_stays_and_starts_once_it_is_mended() {
    let bench = Bench::new();
    let options = [
        "--detach",
        "--name",
        "broken",
        "--append",
        "ironboot.end=hang",
    ];
    bench.start("run", &options).ends().with_code(0);
    bench.does(&["stop", "--force", "broken"]);
    let kernel = fs::read(files("amd64").join("vmlinuz")).unwrap();
    let digest = Digest::of(&kernel);
    let blob = bench.store().join("blobs/sha256").join(digest.hex());

    fs::remove_file(&blob).unwrap();
    fs::write(&blob, "no kernel").unwrap();
    let start = bench.tries(&["start", "--json", "broken"]).with_code(125);
    let (kind, message) = start.error();
    assert_eq!(kind, "hypervisor");
    assert_eq!(
        message,
        "QEMU could not start broken: qemu: linux kernel too old to load a ram disk"
    );
    assert_eq!(bench.state("broken").unwrap(), "stopped");
    assert_eq!(bench.processes(), []);

    fs::write(&blob, kernel).unwrap();
    bench.does(&["start", "broken"]);
    assert_eq!(bench.state("broken").unwrap(), "running");
    bench.does(&["rm", "--force", "broken"]);
    bench.is_clean();
}

#[test]
fn a_program_that_is_not_installed_is_named() {
    let bench = Bench::new();
    let mut command = bench.command_of("run", &["--json"]);
    // A directory without any program.
    command.env("PATH", bench.root());
    let run = crate::session::Session::start(command).ends().with_code(69);
    assert_eq!(
        run.error(),
        (
            "host".to_owned(),
            "program is not installed: qemu-system-x86_64".to_owned()
        )
    );
    bench.is_clean();
}
