//! VMs with a name: their console, log, start and stop, and what stays on their disks.

use std::fs;

use rustix::process::Signal;

use crate::bench::Bench;
use crate::session::{Session, Terminal, markers, wait_until};

/// The options of a guest that ends as `end` says, under `name`.
fn named<'a>(name: &'a str, end: &'a str) -> [&'a str; 4] {
    ["--name", name, "--append", end]
}

/// What a guest with `ironboot.end=write` says of this boot and the one before.
fn notes(printed: &str) -> Vec<&str> {
    let is_note = |line: &&str| line.contains("NOTE") || line.contains("WRITE");
    markers(printed).into_iter().filter(is_note).collect()
}

#[test]
fn a_detached_vm_is_listed_typed_to_stopped_started_and_removed() {
    let bench = Bench::new();
    let name = "typed";
    let mut options = named(name, "ironboot.end=shell").to_vec();
    options.push("--detach");
    let run = bench.start("run", &options).ends().with_code(0);
    assert_eq!(run.stdout, "typed\n");
    assert_eq!(bench.states(), [(name.to_owned(), "running".to_owned())]);
    let blobs = bench.blobs();

    // In a terminal: the guest's echo and answers come back, and Ctrl-] leaves the VM running.
    let terminal = Terminal::open();
    let modes = terminal.modes();
    let mut console = Session::start_in(&terminal, bench.command(&["console", name]));
    console.prints("guest# ");
    assert_ne!(terminal.modes(), modes);
    // What Ctrl-C does is the guest's to say, once the terminal is raw.
    console.types("rubbish\x03echo $((6 * 7))-by-hand\r");
    console.prints("42-by-hand");
    console.types("\x1d");
    console.ends().with_code(0);
    assert_eq!(terminal.modes(), modes);
    assert_eq!(bench.state(name).unwrap(), "running");

    let logs = bench.does(&["logs", name]);
    assert!(logs.stdout.contains("42-by-hand"), "{logs}");
    let removed = bench.tries(&["rm", "--json", name]).with_code(125);
    assert_eq!(removed.error().0, "conflict");
    let again = bench.start("run", &options).ends().with_code(125);
    assert!(again.stderr.contains("running"), "{again}");

    // This guest has no ear for its power button.
    let stop = bench.tries(&["stop", "--json", "--timeout", "1", name]);
    assert_eq!(stop.with_code(124).error().0, "timeout");
    assert_eq!(bench.state(name).unwrap(), "running");
    for _ in 0..2 {
        assert_eq!(bench.does(&["stop", "--force", name]).stdout, "typed\n");
        assert_eq!(bench.state(name).unwrap(), "stopped");
    }
    assert_eq!(bench.processes(), []);
    let console = bench.tries(&["console", "--json", name]).with_code(125);
    assert_eq!(console.error().0, "conflict");

    // The second boot's console has nothing of the first's, and ends with the VM.
    for _ in 0..2 {
        bench.does(&["start", name]);
        assert_eq!(bench.state(name).unwrap(), "running");
    }
    let mut console = Session::start_to_type(bench.command(&["console", name]));
    console.prints("guest# ");
    console.types("poweroff -f\n");
    let console = console.ends().with_code(0);
    assert!(!console.stdout.contains("42-by-hand"), "{console}");
    assert_eq!(bench.state(name).unwrap(), "stopped");
    let mut attached = Session::start_in(&terminal, bench.command(&["start", "-a", name]));
    attached.prints("guest# ");
    attached.types("\x1d");
    let attached = attached.ends().with_code(0);
    assert!(
        attached.stderr.contains("Ctrl-] leaves the console"),
        "{attached}"
    );
    assert_eq!(terminal.modes(), modes);
    assert_eq!(bench.state(name).unwrap(), "running");
    bench.does(&["stop", "--force", name]);

    assert_eq!(bench.blobs(), blobs);
    bench.does(&["rm", name]);
    bench.is_clean();
    let removed = bench.tries(&["rm", "--json", name]).with_code(125);
    assert_eq!(removed.error().0, "not-found");
}

#[test]
fn a_vm_that_is_started_again_has_the_disk_of_its_first_boot() {
    let bench = Bench::new();
    bench.does(&["pull", &bench.image()]);
    let blobs = bench.blobs();
    let mut options = named("kept", "ironboot.end=write").to_vec();
    options.push("--detach");
    bench.start("run", &options).ends().with_code(0);
    let first = bench.does(&["logs", "--follow", "kept"]);
    assert_eq!(notes(&first.stdout), ["IRONBOOT-WRITE-OK"]);
    wait_until("it has stopped", || {
        bench.state("kept").unwrap() == "stopped"
    });

    bench.does(&["start", "kept"]);
    let second = bench.does(&["logs", "--follow", "kept"]);
    assert_eq!(
        notes(&second.stdout),
        ["IRONBOOT-NOTE boot 1", "IRONBOOT-WRITE-OK"]
    );
    assert_eq!(bench.blobs(), blobs);
    bench.does(&["rm", "--force", "kept"]);
    bench.is_clean();
}

/// Row 111 of `tests/rows.md`.
#[test]
fn a_guest_that_writes_another_formats_header_has_written_data() {
    let bench = Bench::new();
    let name = "rewritten";
    let mut options = named(name, "ironboot.end=shell").to_vec();
    options.push("--detach");
    bench.start("run", &options).ends().with_code(0);
    let mut console = Session::start_to_type(bench.command(&["console", name]));
    console.prints("guest# ");
    // The start of a qcow2 image whose backing file is a file of the host.
    console.types(
        "printf 'QFI\\373\\0\\0\\0\\3\\0\\0\\0\\0\\0\\0\\1\\0\\0\\0\\0\\013' \
         | dd of=/dev/vda conv=notrunc && printf /etc/passwd \
         | dd of=/dev/vda bs=256 seek=1 conv=notrunc && sync && echo $((6 * 7))-written\n",
    );
    console.prints("42-written");
    console.types("poweroff -f\n");
    console.ends().with_code(0);
    wait_until("it has stopped", || bench.state(name).unwrap() == "stopped");

    assert_eq!(bench.states(), [(name.to_owned(), "stopped".to_owned())]);
    bench.does(&["start", name]);
    let mut console = Session::start_to_type(bench.command(&["console", name]));
    console.prints("guest# ");
    console.types("echo start-$(dd if=/dev/vda bs=3 count=1)-end\n");
    console.prints("start-QFI-end");
    console.types("poweroff -f\n");
    console.ends().with_code(0);
    bench.does(&["rm", "--force", name]);
    bench.is_clean();
}

#[test]
fn a_persistent_run_keeps_its_disk_whoever_runs_it_again() {
    let bench = Bench::new();
    let options = named("kept", "ironboot.end=write");
    let mut persistent = options.to_vec();
    persistent.push("--persistent");
    let first = bench.start("run", &persistent).ends().with_code(0);
    assert_eq!(notes(&first.stdout), ["IRONBOOT-WRITE-OK"]);
    let blobs = bench.blobs();
    let second = bench.start("run", &persistent).ends().with_code(0);
    assert_eq!(
        notes(&second.stdout),
        ["IRONBOOT-NOTE boot 1", "IRONBOOT-WRITE-OK"]
    );

    // A run without --persistent did not make this disk, so it is not its to remove.
    let third = bench.start("run", &options).ends().with_code(0);
    assert_eq!(
        notes(&third.stdout),
        ["IRONBOOT-NOTE boot 2", "IRONBOOT-WRITE-OK"]
    );
    assert_eq!(bench.state("kept").unwrap(), "stopped");

    let other = bench.start("run", &["--json", "--name", "kept"]).ends();
    assert_eq!(other.with_code(125).error().0, "conflict");
    assert_eq!(bench.blobs(), blobs);
    bench.does(&["rm", "kept"]);
    bench.is_clean();
}

#[test]
fn a_run_that_is_left_by_ctrl_right_bracket_goes_on() {
    let bench = Bench::new();
    let terminal = Terminal::open();
    let modes = terminal.modes();
    let command = bench.command_of("run", &named("left", "ironboot.end=hang"));
    let mut run = Session::start_in(&terminal, command);
    run.prints("Linux version");
    run.types("\x1d");
    let run = run.ends().with_code(0);
    assert!(run.stdout.contains("left goes on running"), "{run}");
    assert!(run.stderr.contains("Ctrl-] leaves the console"), "{run}");
    assert_eq!(terminal.modes(), modes);
    assert_eq!(bench.state("left").unwrap(), "running");

    // Following it ends with the follower.
    let logs = Session::start(bench.command(&["logs", "--follow", "left"]));
    logs.prints("IRONBOOT-HANG");
    logs.signal(Signal::TERM);
    logs.ends().with_code(143);
    assert_eq!(bench.state("left").unwrap(), "running");
    bench.does(&["rm", "--force", "left"]);
    bench.is_clean();
}

#[test]
fn a_guest_that_goes_with_its_run_is_told_the_size_of_the_terminal() {
    let bench = Bench::new();
    let terminal = Terminal::open();
    terminal.resize(50, 132);
    let mut command = bench.command_of("run", &named("sized", "ironboot.end=poweroff"));
    command.env("TERM", "xterm-256color");
    let run = Session::start_in(&terminal, command).ends().with_code(0);
    let words = "ironboot.end=poweroff systemd.tty.rows.ttyS0=50 systemd.tty.columns.ttyS0=132 \
                 systemd.tty.term.ttyS0=xterm-256color";
    assert!(run.stdout.contains(words), "{run}");
    // A word that is none stays here, and one that is kept is the same in every terminal.
    let line = |options: &[&str]| {
        let options = [&named("sized", "x"), options, &["--print", "json"]].concat();
        let mut command = bench.command_of("run", &options);
        command.env("TERM", "x y=z");
        let run = Session::start_in(&terminal, command).ends().with_code(0);
        let line = &run.json()["staged"]["command_line"];
        line.as_str().unwrap().to_owned()
    };
    let size = " systemd.tty.rows.ttyS0=50 systemd.tty.columns.ttyS0=132";
    assert_eq!(line(&["--no-ssh"]), line(&["--persistent"]) + size);
    bench.is_clean();
}

#[test]
fn a_vm_does_not_start_again_when_its_image_is_let_in_no_more() {
    let bench = Bench::new();
    let policy = bench.root().join("policy.json");
    let asks = |text: &str| fs::write(&policy, text).unwrap();
    let start = [
        "start",
        "--json",
        "--policy",
        policy.to_str().unwrap(),
        "kept",
    ];
    let mut options = named("kept", "ironboot.end=shell").to_vec();
    options.push("--detach");
    bench.start("run", &options).ends().with_code(0);
    bench.does(&["stop", "--force", "kept"]);
    asks(r#"{"default":[{"type":"reject"}]}"#);
    assert_eq!(bench.tries(&start).with_code(125).error().0, "untrusted");
    assert_eq!(bench.state("kept").unwrap(), "stopped");
    asks(r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
    bench.tries(&start).with_code(0);
    bench.does(&["rm", "--force", "kept"]);
    bench.is_clean();
}
