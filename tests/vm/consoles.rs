//! The console of a domain in a terminal, and its log where libvirt's daemon moves it aside.

use crate::define::Defined;
use crate::session::{Session, Terminal};

#[test]
fn a_domains_console_in_a_terminal_is_left_and_returned_to() {
    const TIMES: u32 = 12;
    let vm = Defined::new("terminal");
    vm.defines(&["--append", "ironboot.end=shell", "--start"]);
    let terminal = Terminal::open();
    let modes = terminal.modes();
    for time in 0..TIMES {
        let mut console = Session::start_in(&terminal, vm.bench.command(&["console", &vm.name]));
        console.prints("guest# ");
        assert_ne!(terminal.modes(), modes);
        console.types(&format!("echo $((6 * 7))-{time}\r"));
        console.prints(&format!("42-{time}"));
        console.types("\x1d");
        let left = console.ends().with_code(0);
        assert_eq!(left.stderr, "");
        assert_eq!(terminal.modes(), modes);
    }
    // With the VM's end it ends by itself.
    let mut console = Session::start_in(&terminal, vm.bench.command(&["console", &vm.name]));
    console.prints("guest# ");
    console.types("poweroff -f\r");
    console.ends().with_code(0);
    assert_eq!(terminal.modes(), modes);
    vm.is_removed(&[]);
}

#[test]
fn a_log_that_is_moved_aside_is_followed_to_the_end_of_the_domain() {
    const LINES: u32 = 360_000;
    let vm = Defined::new("talkative");
    // Or the kernel may print into a line: of a clock that a busy host makes it distrust, say.
    let append = "loglevel=1 ironboot.end=shell";
    vm.defines(&["--append", append, "--start"]);
    let follower = Session::start(vm.bench.command(&["logs", "--follow", &vm.name]));
    follower.prints("guest# ");
    let mut console = Session::start_to_type(vm.bench.command(&["console", &vm.name]));
    console.types(&format!("seq 1 {LINES}; poweroff -f\n"));
    console.ends().with_code(0);
    let followed = follower.ends().with_code(0).stdout;
    let log = vm.bench.instance(&vm.name).join("console.log.0");
    assert!(log.exists(), "libvirt's daemon moves a log of 2 MiB aside");
    let read = vm.does("logs", &[]).stdout;
    for (what, printed) in [("followed", followed), ("read", read)] {
        let mut numbers = printed
            .lines()
            .filter_map(|line| line.trim().parse::<u32>().ok());
        let wrong = (1..=LINES).find(|expected| numbers.next() != Some(*expected));
        assert_eq!(wrong, None, "{what}");
    }
    vm.is_removed(&[]);
}
