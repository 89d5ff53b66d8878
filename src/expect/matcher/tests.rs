//! Scripts against what a guest might print.

use crate::expect::{Event, Failure, Matcher, Script, Stage, Step};

fn script(patterns: &[&str]) -> Script {
    Script {
        steps: patterns
            .iter()
            .map(|pattern| Step::Expect(pattern.parse().unwrap()))
            .collect(),
        ..Script::default()
    }
}

fn matched(step: usize, line: &str) -> Event {
    let line = line.to_owned();
    Event::Matched { step, line }
}

fn passed(line: &str) -> Event {
    let line = line.to_owned();
    Event::Passed { line }
}

fn reached(stage: Stage, line: &str) -> Event {
    let line = line.to_owned();
    Event::Reached { stage, line }
}

#[test]
fn patterns_are_met_in_order_and_in_one_line_behind_each_other() {
    let mut matcher = Matcher::new(script(&["a", "a", "b"]));
    let first = [matched(0, "aba"), matched(1, "aba")];
    assert_eq!(matcher.read(b"b\naba\n"), first);
    assert_eq!(matcher.awaited().unwrap().as_str(), "b");
    assert_eq!(matcher.read(b"a b\r\n"), [matched(2, "a b"), passed("a b")]);
    assert!(matcher.awaited().is_none());
    // The rest is for those who wait for more than the console.
    let rest = matcher.read(b"b\nKernel panic - not syncing: x\nKernel panic - not syncing: y\n");
    let panic = "Kernel panic - not syncing: x";
    let failed = Event::Failed {
        failure: Failure::KernelPanic,
        line: panic.to_owned(),
        pattern: None,
    };
    assert_eq!(rest, [reached(Stage::Kernel, panic), failed]);
}

#[test]
fn what_may_tell_the_cause_is_kept_until_the_next_boot() {
    let mut matcher = Matcher::new(script(&["never"]));
    let failed = "[FAILED] Failed to mount /data.";
    matcher.read(b"[    1.0] Initramfs unpacking failed: x\n[  OK  ] fine\n");
    matcher.read(format!("{failed}\n").repeat(9).as_bytes());
    let clues: Vec<&str> = matcher.clues().collect();
    let first = "[    1.0] Initramfs unpacking failed: x";
    assert_eq!(clues, [first, failed, failed, failed, failed]);
    matcher.restarted();
    assert_eq!(matcher.clues().count(), 0);
}

#[test]
fn a_prompt_is_met_once_the_guest_is_quiet_and_its_echo_is_not_taken_for_another() {
    let mut script = script(&["login: $", "login: "]);
    script.steps.insert(1, Step::Send(b"root\n".to_vec()));
    let mut matcher = Matcher::new(script);
    assert_eq!(matcher.read(b"\x1b[1mdebian login: \x1b[0m"), []);
    let prompt = "debian login:";
    let send = Event::Send(b"root\n".to_vec());
    let first = [reached(Stage::Userspace, prompt), matched(0, prompt), send];
    assert_eq!(matcher.quiet(), first);
    assert_eq!(matcher.last_line(), prompt);
    assert_eq!(matcher.lines().collect::<Vec<_>>(), [prompt]);
    assert_eq!(matcher.quiet(), []);
    assert_eq!(matcher.read(b"root\r\n"), []);
    assert_eq!(matcher.read(b"debian login: "), []);
    assert_eq!(matcher.quiet(), [matched(2, prompt), passed(prompt)]);
}

#[test]
fn a_panic_before_the_last_pattern_fails_and_a_tolerated_one_does_not() {
    let panic = "[    1.000000] Kernel panic - not syncing: x";
    let printed = format!("{panic}\nup\n");
    let kernel = reached(Stage::Kernel, panic);
    let failed = Event::Failed {
        failure: Failure::KernelPanic,
        line: panic.to_owned(),
        pattern: None,
    };
    let mut matcher = Matcher::new(script(&["up"]));
    assert_eq!(matcher.read(printed.as_bytes()), [kernel.clone(), failed]);
    // What follows is still kept for reports.
    assert_eq!(matcher.last_line(), "up");
    let mut script = script(&["up"]);
    script.tolerated.insert(Failure::KernelPanic);
    let mut matcher = Matcher::new(script);
    let up = [kernel, matched(0, "up"), passed("up")];
    assert_eq!(matcher.read(printed.as_bytes()), up);
}

#[test]
fn any_of_the_patterns_that_must_not_come_fails_even_in_a_prompt() {
    let mut script = script(&["up"]);
    script.fail_on = vec!["no".parse().unwrap(), r"err(or)?\?$".parse().unwrap()];
    let failed = |line: &str, index| Event::Failed {
        failure: Failure::FailOn,
        line: line.to_owned(),
        pattern: Some(index),
    };
    let mut matcher = Matcher::new(script.clone());
    let events = matcher.read(b"err or\nup, no?\nup\n");
    assert_eq!(events, [failed("up, no?", 0)]);
    let mut matcher = Matcher::new(script);
    assert_eq!(matcher.read(b"  what error? "), []);
    assert_eq!(matcher.read(b"\x08"), []);
    assert_eq!(matcher.quiet(), [failed("what error?", 1)]);
}

#[test]
fn what_is_sent_first_comes_at_once_and_a_script_may_end_by_it() {
    let send = |text: &str| Step::Send(text.as_bytes().to_vec());
    let mut script = script(&["a"]);
    script.steps.insert(0, send("x"));
    script.steps.push(send("y"));
    let mut matcher = Matcher::new(script);
    assert_eq!(matcher.read(b""), [Event::Send(b"x".to_vec())]);
    let last = [matched(1, "a"), Event::Send(b"y".to_vec()), passed("a")];
    assert_eq!(matcher.read(b"a\n"), last);
    assert!(matcher.awaited().is_none());
}

#[test]
fn without_steps_nothing_passes() {
    let mut matcher = Matcher::new(Script::default());
    let events = matcher.read(b"debian login: \nup\n");
    assert_eq!(events, [reached(Stage::Userspace, "debian login:")]);
    assert_eq!(matcher.stage(), Some(Stage::Userspace));
}

#[test]
fn a_reset_begins_the_stages_anew_and_goes_on_in_the_script() {
    let mut matcher = Matcher::new(script(&["one", "two"]));
    let (one, two) = ("[    0.000000] one", "[    0.000000] two");
    let first = [reached(Stage::Kernel, one), matched(0, one)];
    assert_eq!(matcher.read(b"[    0.000000] one\n[    0.1"), first);
    matcher.restarted();
    assert_eq!(matcher.stage(), None);
    assert_eq!(matcher.awaited().unwrap().as_str(), "two");
    let second = [reached(Stage::Kernel, two), matched(1, two), passed(two)];
    assert_eq!(matcher.read(b"[    0.000000] two\n"), second);
    assert_eq!(matcher.lines().collect::<Vec<_>>(), [one, "[    0.1", two]);
}

#[test]
fn an_initramfs_that_greets_as_the_root_does_is_not_userspace() {
    let check = |printed: &str, expected: &[Stage]| {
        let mut matcher = Matcher::new(Script::default());
        let events = matcher.read(printed.as_bytes());
        let stages = events.into_iter().map(|event| match event {
            Event::Reached { stage, .. } => stage,
            other => panic!("{other:?}"),
        });
        assert_eq!(stages.collect::<Vec<_>>(), expected, "{printed}");
    };
    let initramfs = "[    1.000000] systemd[1]: Running in initrd.\nWelcome to X!\n";
    let root =
        "[    2.000000] systemd[1]: systemd 252 running in system mode (+X)\nWelcome to X!\n";
    check(initramfs, &[Stage::Kernel, Stage::Initramfs]);
    check(
        &format!("{initramfs}{root}"),
        &[Stage::Kernel, Stage::Initramfs, Stage::Userspace],
    );
    check(
        "Welcome to F 40 dracut-101 (Initramfs)!\n",
        &[Stage::Initramfs],
    );
}

#[test]
fn emergency_mode_of_an_initramfs_is_its_shell() {
    let emergency = "[  OK  ] Reached target emergency.target - Emergency Mode.";
    let failed = |failure| Event::Failed {
        failure,
        line: emergency.to_owned(),
        pattern: None,
    };
    let last = |printed: &str| {
        Matcher::new(Script::default())
            .read(printed.as_bytes())
            .pop()
    };
    let initramfs = format!("[    1.000000] systemd[1]: Running in initrd.\n{emergency}\n");
    assert_eq!(last(&initramfs), Some(failed(Failure::InitramfsShell)));
    let root = format!("{emergency}\n");
    assert_eq!(last(&root), Some(failed(Failure::EmergencyMode)));
}

#[test]
fn a_line_is_what_a_terminal_would_show_in_it() {
    let check = |printed: &str, expected: &[&str]| {
        let mut matcher = Matcher::new(Script::default());
        matcher.read(printed.as_bytes());
        matcher.quiet();
        let lines: Vec<&str> = matcher.lines().collect();
        assert_eq!(lines, expected, "{printed:?}");
    };
    check("a\r\n\r\r\nb\n\n \nc", &["a", "b", "c"]);
    check("\x1b[1;31mred\x1b[0m \x1b(Bplain\x1b=\x1b7", &["red plain"]);
    check("\x1b]0;title\x07text\x1b]8;;x\x1b\\ more", &["text more"]);
    check("\x1bPq#0\x1b\\a\x1b[?2004lb\x1b[>0q\x1b[6n", &["ab"]);
    check("one\rtwo", &["one", "two"]);
    check(
        "\x1b[2J\x1b[01;01Hone\x1b[2;1Htwo\x1b[2;10Hthree",
        &["one", "two three"],
    );
    check("a\x1b[5Cb\x1b[Kc\x1b[10Gd\x1b[Ge", &["a bc d", "e"]);
    check("in 3\x08 \x082\x08 \x081", &["in 1"]);
    check("\u{e4}\u{1f600}\x08\x08b\0\x07", &["b"]);
    check("a\x1b[12\nb\x1b]never ends\nc", &["a", "b", "c"]);
    check("a\x1b[3\x18b", &["ab"]);
    check("tab\tbed", &["tab\tbed"]);
}

#[test]
fn what_is_not_to_be_seen_is_no_line_and_an_unfinished_one_comes_once() {
    let mut matcher = Matcher::new(Script::default());
    matcher.read("one\n\u{a0}\n\u{3000} \ntw".as_bytes());
    assert_eq!(matcher.lines().collect::<Vec<_>>(), ["one"]);
    matcher.quiet();
    matcher.quiet();
    assert_eq!(matcher.lines().collect::<Vec<_>>(), ["one", "tw"]);
    matcher.read(b"o\n");
    assert_eq!(matcher.lines().collect::<Vec<_>>(), ["one", "two"]);
}

#[test]
fn invalid_text_is_replaced() {
    let mut matcher = Matcher::new(script(&["^a.b$"]));
    let line = "a\u{fffd}b";
    assert_eq!(matcher.read(b"a\xffb\n"), [matched(0, line), passed(line)]);
}

#[test]
fn a_line_without_end_is_cut_and_only_the_last_lines_are_kept() {
    let mut matcher = Matcher::new(Script::default());
    for _ in 0..100 {
        matcher.read(&[b'x'; 10_000]);
    }
    matcher.quiet();
    let lines: Vec<usize> = matcher.lines().map(str::len).collect();
    let mut expected = vec![16 << 10; 40];
    expected[39] = 1_000_000 % (16 << 10);
    assert_eq!(lines, expected);
}
