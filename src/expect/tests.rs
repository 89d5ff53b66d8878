//! Scripts against consoles.

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

#[test]
fn patterns_are_met_in_order_and_in_one_line_behind_each_other() {
    let mut matcher = Matcher::new(script(&["a", "a", "b"]));
    assert_eq!(
        matcher.read(b"b\naba\n"),
        [matched(0, "aba"), matched(1, "aba")]
    );
    assert_eq!(matcher.awaited().unwrap().as_str(), "b");
    assert_eq!(matcher.read(b"ab\r\n"), [matched(2, "ab"), passed("ab")]);
    assert_eq!(matcher.read(b"b\nKernel panic - not syncing: x\n"), []);
}

#[test]
fn a_prompt_is_met_once_the_guest_is_quiet_and_what_was_answered_is_not_taken_for_it() {
    let mut script = script(&["login: $", "login: $"]);
    script.steps.insert(1, Step::Send(b"root\n".to_vec()));
    let mut matcher = Matcher::new(script);
    assert_eq!(matcher.read(b"\x1b[1mdebian login: \x1b[0m"), []);
    let send = Event::Send(b"root\n".to_vec());
    let reached = Event::Reached {
        stage: Stage::Userspace,
        line: "debian login:".to_owned(),
    };
    assert_eq!(
        matcher.quiet(),
        [reached, matched(0, "debian login:"), send]
    );
    assert_eq!(matcher.last_line(), "debian login:");
    assert_eq!(matcher.quiet(), []);
    assert_eq!(matcher.read(b"root\r\n"), []);
    assert_eq!(matcher.read(b"debian login: "), []);
    assert_eq!(matcher.quiet().last(), Some(&passed("debian login:")));
}

#[test]
fn a_panic_before_the_last_pattern_fails_and_a_tolerated_one_does_not() {
    let panic = b"[    1.000000] Kernel panic - not syncing: x\nup\n";
    let reached = Event::Reached {
        stage: Stage::Kernel,
        line: "[    1.000000] Kernel panic - not syncing: x".to_owned(),
    };
    let failed = Event::Failed {
        failure: Failure::KernelPanic,
        line: "[    1.000000] Kernel panic - not syncing: x".to_owned(),
        pattern: None,
    };
    let mut matcher = Matcher::new(script(&["up"]));
    assert_eq!(matcher.read(panic), [reached.clone(), failed]);
    let mut script = script(&["up"]);
    script.tolerated.insert(Failure::KernelPanic);
    let mut matcher = Matcher::new(script);
    assert_eq!(
        matcher.read(panic),
        [reached, matched(0, "up"), passed("up")]
    );
}
