//! Consoles: in any pieces they tell the same, nothing that a terminal would obey is left in a line, and
//! memory stays bounded.

#![no_main]

use ironboot::expect::{Event, Matcher, Script};
use libfuzzer_sys::fuzz_target;

/// The first byte says how large the pieces are, the rest is printed.
fuzz_target!(|bytes: &[u8]| {
    let Some((size, console)) = bytes.split_first() else {
        return;
    };
    let whole = told(console, console.len().max(1));
    assert_eq!(told(console, usize::from(*size).max(1)), whole);
    let (events, lines) = whole;
    assert!(lines.len() <= 40);
    for line in &lines {
        assert!(line.len() <= 3 * (16 << 10));
        assert!(!line.chars().any(|c| c.is_ascii_control() && c != '\t'));
    }
    let fails = |event: &Event| matches!(event, Event::Failed { .. });
    let end = events.iter().position(fails);
    assert!(end.is_none_or(|end| end == events.len() - 1));
});

fn told(console: &[u8], size: usize) -> (Vec<Event>, Vec<String>) {
    let mut matcher = Matcher::new(Script::until_up());
    let mut events = Vec::new();
    for piece in console.chunks(size) {
        events.extend(matcher.read(piece));
    }
    events.extend(matcher.quiet());
    let lines = matcher.lines().map(str::to_owned).collect();
    (events, lines)
}
