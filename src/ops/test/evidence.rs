//! What is left of a VM that was tested, for whoever looks for the cause.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};

use crate::domain::DomainSpec;
use crate::files::FileError;
use crate::ops::test::course::Heard;

/// The VM's files that are kept, under their names.
const FILES: [&str; 4] = ["console.log", "firmware.log", "notices", "qemu.log"];

/// What QEMU told, one JSON object a line.
const EVENTS: &str = "events.jsonl";

/// The VM as it was described to QEMU.
const SPEC: &str = "domain.json";

/// Copies what is there into `directory`, which is there.
pub(super) fn keep(spec: &DomainSpec, events: &[Heard], directory: &Path) -> Result<(), FileError> {
    for name in FILES {
        let copy = directory.join(name);
        match fs::copy(spec.directory.join(name), &copy) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            copied => drop(copied.map_err(FileError::of("write", &copy))?),
        }
    }
    let events: String = events
        .iter()
        .map(|heard| {
            let at = heard.after.as_secs_f64();
            json!({"at_seconds": at, "message": heard.message}).to_string() + "\n"
        })
        .collect();
    write(directory, EVENTS, &events)?;
    let spec = serde_json::to_value(spec).unwrap_or(Value::Null);
    write(directory, SPEC, &format!("{spec:#}\n"))
}

fn write(directory: &Path, name: &str, text: &str) -> Result<(), FileError> {
    let path = directory.join(name);
    fs::write(&path, text).map_err(FileError::of("write", &path))
}
