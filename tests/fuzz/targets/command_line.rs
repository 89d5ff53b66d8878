//! Kernel command lines: what is taken is one line that the kernel takes, and stays itself.

#![no_main]

use ironboot::boot::CommandLine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(line) = CommandLine::parse(bytes) else {
        return;
    };
    let text = line.as_str();
    assert!(text.len() < 2048);
    assert!(!text.contains(['\n', '\0', '\r']));
    assert_eq!(CommandLine::parse(text.as_bytes()).as_ref(), Ok(&line));
    if let Ok(longer) = line.append(&line) {
        assert!(longer.as_str().starts_with(text) && longer.as_str().len() < 2048);
    }
    line.values("console").for_each(drop);
});
