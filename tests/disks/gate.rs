//! What is refused, in which words, and what is not.

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use ironboot::content::ContentError;

use crate::corpus::honest::controls;
use crate::corpus::{hostile, judge};

#[test]
fn every_hostile_disk_is_refused_for_what_is_wrong_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let mut rows = BTreeSet::new();
    let mut names = BTreeSet::new();
    for disk in hostile() {
        let path = directory.path().join(&disk.name);
        fs::write(&path, &disk.content).unwrap();
        let began = Instant::now();
        let Err(error) = judge(&path) else {
            panic!("{} was accepted", disk.name);
        };
        let took = began.elapsed();
        let words = error.to_string();
        assert!(words.ends_with(&disk.words), "{}: {words}", disk.name);
        // Half a sector can do no harm.
        let is_unaligned = matches!(error, ContentError::Unaligned { .. });
        assert_eq!(error.is_unsafe(), !is_unaligned, "{}", disk.name);
        assert!(took < Duration::from_secs(2), "{}: {took:?}", disk.name);
        rows.insert(disk.row);
        assert!(names.insert(disk.name));
    }
    assert_eq!(rows, (76..=109).collect());
}

#[test]
fn no_honest_disk_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    for (name, path, raw) in controls(directory.path()) {
        let content = judge(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let size_bytes = fs::metadata(raw).unwrap().len();
        assert_eq!(content.virtual_size_bytes, size_bytes, "{name}");
        assert_eq!(content.qcow2.is_some(), name.starts_with('q'), "{name}");
    }
}
