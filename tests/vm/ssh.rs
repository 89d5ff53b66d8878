//! `ssh`: a guest that lets its user in, and those that do not.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use crate::bench::{Bench, MACHINE};
use crate::session::{Ended, Session};

/// The guest with an SSH server, in the background as `vm`.
fn run(bench: &Bench, arguments: &[&str]) {
    let mut command = bench.command(&["run", &bench.image_named("more")]);
    command.args(MACHINE).args(["--name", "vm", "--detach"]);
    Session::start({
        command.args(arguments);
        command
    })
    .ends()
    .with_code(0);
}

fn ssh(bench: &Bench, arguments: &[&str]) -> Ended {
    bench.tries(&[&["ssh", "vm"], arguments].concat())
}

#[test]
fn a_command_is_executed_with_the_stores_key_and_ends_as_it_ends() {
    let bench = Bench::new();
    run(&bench, &[]);
    let word = ssh(&bench, &["echo", "$((6 * 7))"]).with_code(0);
    assert_eq!(word.stdout, "42\n", "{word}");
    ssh(&bench, &["--", "exit 7"]).with_code(7);
    for (file, mode) in [("ssh", 0o700), ("ssh/id_ed25519", 0o600)] {
        let metadata = fs::metadata(bench.store().join(file)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{file}");
    }
    // Its server has new keys, as after a reboot of a system that keeps nothing.
    ssh(&bench, &["rm /etc/dropbear/*_host_key"]).with_code(0);
    ssh(&bench, &["true"]).with_code(0);
    // Nobody asks for a password, as there is no terminal.
    let refused = ssh(&bench, &["-l", "nobody", "true"]).with_code(255);
    assert!(refused.stderr.contains("Permission denied"), "{refused}");
    let offered = "offered the store's key as the systemd credential ssh.authorized_keys.root,";
    assert!(refused.stderr.contains(offered), "{refused}");

    // It makes new keys at each boot, and its port is another one.
    bench.does(&["stop", "--force", "vm"]);
    let stopped = ssh(&bench, &["true"]).with_code(125);
    assert!(stopped.stderr.contains("`ironboot start vm`"), "{stopped}");
    bench.does(&["start", "vm"]);
    ssh(&bench, &["-l", "root", "true"]).with_code(0);
    bench.does(&["rm", "--force", "vm"]);
    bench.is_clean();
}

#[test]
fn a_store_whose_key_is_broken_says_so_and_how_it_gets_another() {
    let bench = Bench::new();
    let directory = bench.store().join("ssh");
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("id_ed25519"), "").unwrap();
    let start = || {
        let run = bench.start("run", &["--name", "vm", "--detach"]);
        let run = run.ends().with_code(0);
        bench.does(&["rm", "--force", "vm"]);
        run.stderr
    };
    let told = start();
    let expected = format!(
        "no key for `ironboot ssh`: {0}/id_ed25519.pub is not there or no key of Ed25519; \
         `rm -r {0}`,",
        directory.display()
    );
    assert!(told.contains(&expected), "{told}");
    fs::remove_dir_all(&directory).unwrap();
    let told = start();
    assert!(!told.contains("no key"), "{told}");
    assert!(directory.join("id_ed25519.pub").exists());
    // Where it was made nothing is left of that.
    assert_eq!(fs::read_dir(bench.store().join("tmp")).unwrap().count(), 0);
    bench.is_clean();
}

#[test]
fn a_port_that_is_published_is_the_one_and_a_key_of_the_users_own_is_left_alone() {
    let bench = Bench::new();
    // One that is free now.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let publish = format!("{port}:22");
    let credential = "ssh.authorized_keys.root:ssh-ed25519 AAAA of-mine";
    run(
        &bench,
        &["--publish", &publish, "--set-credential", credential],
    );
    let refused = ssh(&bench, &["true"]).with_code(255);
    let expected = "this guest was not offered the store's key";
    assert!(refused.stderr.contains(expected), "{refused}");
    bench.does(&["rm", "--force", "vm"]);
    bench.is_clean();
}

#[test]
fn a_guest_that_can_not_be_reached_is_told_from_one_that_does_not_answer() {
    let bench = Bench::new();
    let hang = ["--name", "vm", "--detach", "--append", "ironboot.end=hang"];
    bench.start("run", &hang).ends().with_code(0);
    let silent = bench.tries(&["ssh", "vm", "--timeout", "2", "--json"]);
    let (kind, message) = silent.with_code(124).error();
    assert_eq!(kind, "timeout");
    assert!(
        message.starts_with("no SSH server has answered on 127.0.0.1:"),
        "{message}"
    );
    bench.does(&["rm", "--force", "vm"]);

    let no_ssh = [&hang[..], &["--no-ssh"]].concat();
    bench.start("run", &no_ssh).ends().with_code(0);
    let (kind, message) = bench.tries(&["ssh", "vm", "--json"]).with_code(125).error();
    assert_eq!(kind, "conflict");
    assert_eq!(
        message,
        "no port of this host leads to the SSH server of vm"
    );
    bench.does(&["rm", "--force", "vm"]);
    bench.is_clean();
}
