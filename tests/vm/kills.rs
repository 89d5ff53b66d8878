//! Signals and kills at any moment, and what is left of a `run` after them.

use std::fs;
use std::os::unix::fs::symlink;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};

use crate::bench::{Bench, MACHINE};
use crate::session::wait_until;

const HANG: [&str; 4] = ["--name", "hanging", "--append", "ironboot.end=hang"];

/// Kills every QEMU of the store and waits until none is left.
fn kill_qemus(bench: &Bench) {
    wait_until("QEMU has ended", || {
        for process in bench.processes() {
            // It may end by itself meanwhile.
            kill_process(process, Signal::KILL).ok();
        }
        // Its last thread may live longer than its place in /proc, and one that was just started
        // is not yet in its place.
        bench.states().iter().all(|(_, state)| state == "stopped")
    });
}

#[test]
fn a_signal_to_run_ends_the_guest_and_removes_the_instance() {
    let bench = Bench::new();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130), (Signal::HUP, 129)] {
        let run = bench.start("run", &HANG);
        run.prints("Linux version");
        run.signal(signal);
        run.ends().with_code(code);
        bench.is_clean();
    }
}

#[test]
fn a_signal_at_any_moment_leaves_neither_guest_nor_instance() {
    const MOMENTS: u32 = 12;
    let bench = Bench::new();
    let begun = Instant::now();
    let run = bench.start("run", &HANG);
    run.prints("Linux version");
    let whole = begun.elapsed();
    run.signal(Signal::TERM);
    run.ends().with_code(143);

    for moment in 0..MOMENTS {
        let run = bench.start("run", &HANG);
        // Moments are all this sleep is for; nothing depends on where they fall.
        thread::sleep(whole * moment / MOMENTS);
        run.signal(Signal::TERM);
        run.ends().with_code(143);
        assert_eq!(bench.processes(), [], "moment {moment} of {MOMENTS}");
        bench.is_clean();
    }
}

#[test]
fn a_guest_ends_with_the_run_that_is_killed_and_lives_on_without_one() {
    let bench = Bench::new();
    let run = bench.start("run", &HANG);
    run.prints("IRONBOOT-HANG");
    run.signal(Signal::KILL);
    run.ends().with_code(137);
    wait_until("the guest has ended", || bench.processes().is_empty());

    let detached = ["--detach", "--name", "detached"];
    bench.does(
        &[
            &["run", &bench.image()],
            &MACHINE[..],
            &detached,
            &HANG[2..],
        ]
        .concat(),
    );
    assert_eq!(bench.state("detached").unwrap(), "running");
    // The next run leaves it alone, and clears away what the killed one has left.
    let next = bench.start("run", &["--append", "ironboot.end=poweroff"]);
    next.ends().with_code(0);
    assert_eq!(
        bench.states(),
        [("detached".to_owned(), "running".to_owned())]
    );

    bench.does(&["rm", "--force", "detached"]);
    bench.is_clean();
}

#[test]
fn a_run_whose_instance_was_removed_leaves_the_next_of_that_name_alone() {
    let bench = Bench::new();
    let run = bench.start("run", &HANG);
    run.prints("Linux version");
    // Held, so that it sees nothing of what follows before all of it has happened.
    run.signal(Signal::STOP);
    bench.does(&["rm", "--force", "hanging"]);
    let mut again = HANG.to_vec();
    again.push("--detach");
    bench.start("run", &again).ends().with_code(0);
    run.signal(Signal::TERM);
    run.signal(Signal::CONT);
    run.ends().with_code(143);
    assert_eq!(bench.state("hanging").unwrap(), "running");
    bench.does(&["rm", "--force", "hanging"]);
    bench.is_clean();
}

#[test]
fn an_instance_that_a_killed_run_and_qemu_left_is_swept_by_the_next_run() {
    let bench = Bench::new();
    let run = bench.start("run", &HANG);
    run.prints("Linux version");
    // As if another had been killed between its first step and its second.
    let pins = bench.store().join("pins");
    let pin = fs::read_to_string(pins.join("hanging.json")).unwrap();
    let pin = pin.replace("hanging", "killed-early");
    fs::write(pins.join("killed-early.json"), pin).unwrap();
    run.signal(Signal::KILL);
    run.ends().with_code(137);
    kill_qemus(&bench);
    assert_eq!(bench.state("hanging").unwrap(), "stopped");

    // One that is refused leaves the lock of its name.
    let refused = bench.start("run", &["--variant", "metal"]);
    refused.ends().with_code(125);

    bench.start("run", &[]).ends().with_code(0);
    bench.is_clean();
    let instances = fs::read_dir(bench.store().join("instances")).unwrap();
    assert_eq!(instances.count(), 0);
}

#[test]
fn what_a_kill_at_any_moment_leaves_is_cleared_by_the_next_run() {
    const MOMENTS: u32 = 10;
    let bench = Bench::new();
    let begun = Instant::now();
    let run = bench.start("run", &HANG[2..]);
    run.prints("Linux version");
    let whole = begun.elapsed();
    run.signal(Signal::TERM);
    run.ends().with_code(143);

    for moment in 0..MOMENTS {
        // Without a name: nobody will ever ask for this instance again.
        let run = bench.start("run", &HANG[2..]);
        thread::sleep(whole * moment / MOMENTS);
        run.signal(Signal::KILL);
        run.ends().with_code(137);
        kill_qemus(&bench);
    }
    bench.start("run", &[]).ends().with_code(0);
    bench.is_clean();
}

#[test]
fn a_qemu_that_does_not_answer_is_killed() {
    let bench = Bench::new();
    // By another path than the one that the kernel gives for QEMU's working directory.
    let link = bench.root().join("link");
    symlink(bench.store(), &link).unwrap();
    fs::create_dir(bench.store()).unwrap();
    let link = link.display().to_string();
    let image = bench.image();
    let mut arguments = vec!["--store", &link, "run", &image, "--detach"];
    arguments.extend(MACHINE.iter().chain(&HANG[..2]));
    bench.does_alone(&arguments);
    let processes = bench.processes();
    assert_eq!(processes.len(), 1);
    kill_process(processes[0], Signal::STOP).unwrap();

    let begun = Instant::now();
    bench.does_alone(&["--store", &link, "rm", "--force", "hanging"]);
    assert!(begun.elapsed() < Duration::from_secs(30));
    bench.is_clean();
}
