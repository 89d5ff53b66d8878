//! The words of a VM's description: names, sizes, ports.

#![no_main]

use ironboot::domain::{
    DomainName, Forward, FwCfgName, MAX_DISK_BYTES, Memory, OemString, parse_disk_size,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<DomainName>() {
        assert!(name.as_str().len() <= 64 && !name.as_str().starts_with(['-', '.']));
        assert!(!name.as_str().contains(['/', ',', '\0', '\n', '<', '\'']));
    }
    if let Ok(name) = text.parse::<FwCfgName>() {
        assert!(!name.as_str().contains([',', '=', '\0', '\n']));
    }
    if let Ok(string) = text.parse::<OemString>() {
        assert!(!string.as_str().contains(['\0', '\n']));
    }
    if let Ok(bytes) = parse_disk_size(text) {
        assert!((1..=MAX_DISK_BYTES).contains(&bytes));
    }
    if let Ok(memory) = text.parse::<Memory>() {
        assert!(memory.mib() > 0);
    }
    text.parse::<Forward>().map(drop).unwrap_or_default();
});
