//! The architecture as a test: who may import whom, what a pure room may not touch, and what keeps
//! the tree easy to walk. The page that explains it is `src/lib.rs`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms in reading order, each with the rooms that it may import (besides itself).
const ROOMS: &[(&str, &[&str])] = &[
    ("oci", &[]),
    ("image", &["oci"]),
    ("boot", &["oci", "image"]),
    ("domain", &["oci", "boot"]),
    ("expect", &[]),
    ("content", &["oci", "domain"]),
    ("signature", &["oci"]),
    ("files", &[]),
    ("source", &["oci", "signature", "files"]),
    ("store", &["oci", "signature", "files"]),
    ("host", &["oci", "domain"]),
    ("firmware", &["oci", "domain", "files"]),
    ("instance", &["oci", "domain", "signature", "files"]),
    (
        "stage",
        &[
            "oci", "boot", "content", "domain", "files", "store", "firmware",
        ],
    ),
    ("hypervisor", &["oci", "domain", "files"]),
    (
        "ops",
        &[
            "oci",
            "image",
            "boot",
            "content",
            "domain",
            "expect",
            "signature",
            "files",
            "source",
            "store",
            "host",
            "firmware",
            "instance",
            "stage",
            "hypervisor",
        ],
    ),
    (
        "cli",
        &[
            "oci",
            "image",
            "boot",
            "domain",
            "content",
            "expect",
            "signature",
            "files",
            "source",
            "store",
            "host",
            "firmware",
            "instance",
            "stage",
            "hypervisor",
            "ops",
        ],
    ),
];

/// Rooms of words: values in, values out.
const WORDS: &[&str] = &[
    "oci",
    "image",
    "boot",
    "domain",
    "expect",
    "content",
    "signature",
];

/// What a room of words has no business with.
const OUTSIDE: &[&str] = &[
    "std::fs",
    "std::net",
    "std::process",
    "std::env",
    "std::time::Instant",
    "SystemTime",
    "tokio::",
    "reqwest::",
    "rustix::",
];

/// A longer file wants to be two.
const MAX_LINES: usize = 600;

struct Source {
    path: PathBuf,
    room: String,
    /// The code without comments and without its tests.
    code: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rust_files(directory: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut todo = vec![root().join(directory)];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The code of a file: no comments, and nothing from its `tests` module on.
fn code(text: &str) -> String {
    text.split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default()
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    rust_files("src")
        .into_iter()
        .filter(|path| {
            // Code that is compiled for tests only may use what it likes.
            !["tests.rs", "samples.rs"]
                .iter()
                .any(|name| path.ends_with(name))
        })
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            let inside = path.strip_prefix(&src).unwrap();
            let first = inside.components().next().unwrap().as_os_str();
            Source {
                room: first.to_str().unwrap().trim_end_matches(".rs").to_owned(),
                code: code(&text),
                path,
            }
        })
        .collect()
}

/// The rooms that `code` names by `crate::…`.
fn imports(code: &str) -> BTreeSet<String> {
    code.match_indices("crate::")
        .map(|(at, word)| {
            code[at + word.len()..]
                .chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
                .collect()
        })
        .collect()
}

fn fail_if_any(breaches: &[String]) {
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn rooms_import_only_what_they_may() {
    let mut breaches = Vec::new();
    for source in sources() {
        if ["lib", "main"].contains(&source.room.as_str()) {
            continue;
        }
        let Some((_, may)) = ROOMS.iter().find(|(room, _)| *room == source.room) else {
            breaches.push(format!(
                "{}: room is not in the table",
                source.path.display()
            ));
            continue;
        };
        for import in imports(&source.code) {
            if import != source.room && !may.contains(&import.as_str()) {
                let path = source.path.display();
                breaches.push(format!("{path}: {} imports {import}", source.room));
            }
        }
    }
    fail_if_any(&breaches);
}

#[test]
fn the_table_has_no_circle_of_edges_and_names_every_room() {
    // Only these two words of one language may know each other's room.
    let mutual: Vec<_> = ROOMS
        .iter()
        .flat_map(|(room, may)| may.iter().map(move |other| (*room, *other)))
        .filter(|(room, other)| {
            ROOMS
                .iter()
                .any(|(name, may)| name == other && may.contains(room))
        })
        .collect();
    assert_eq!(mutual, []);
    let lib = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'))
        .collect();
    let rooms: Vec<&str> = ROOMS.iter().map(|(room, _)| *room).collect();
    assert_eq!(declared, rooms, "src/lib.rs and the table here");
}

#[test]
fn rooms_of_words_touch_nothing_outside() {
    let mut breaches = Vec::new();
    for source in sources() {
        if !WORDS.contains(&source.room.as_str()) {
            continue;
        }
        for outside in OUTSIDE {
            if source.code.contains(outside) {
                breaches.push(format!("{}: {outside}", source.path.display()));
            }
        }
    }
    fail_if_any(&breaches);
}

#[test]
fn one_file_reads_the_environment_and_one_room_owns_the_streams() {
    let mut breaches = Vec::new();
    for source in sources() {
        let path = source.path.display();
        let is_environment = source.path.ends_with("cli/environment.rs");
        for word in ["env::var", "env::vars", "var_os(", "env::home_dir"] {
            if !is_environment && source.code.contains(word) {
                breaches.push(format!("{path}: {word}"));
            }
        }
        for word in ["stdout()", "stderr()", "stdin()", "clap::"] {
            if source.room != "cli" && source.code.contains(word) {
                breaches.push(format!("{path}: {word}"));
            }
        }
        for word in ["println!", "eprintln!", "print!(", "process::exit"] {
            if source.code.contains(word) {
                breaches.push(format!("{path}: {word}"));
            }
        }
    }
    fail_if_any(&breaches);
}

#[test]
fn no_file_is_too_long_and_none_is_left_out() {
    let mut breaches = Vec::new();
    for path in rust_files("src").into_iter().chain(rust_files("tests")) {
        let text = fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        if lines > MAX_LINES {
            breaches.push(format!("{}: {lines} lines", path.display()));
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let is_program = path.parent() == Some(&root().join("tests"));
        if ["lib", "main"].contains(&name) || is_program {
            continue;
        }
        // Declared by the file that owns the directory: mod.rs, main.rs, lib.rs, or the file of
        // the directory's name.
        let directory = path.parent().unwrap();
        let (owner_directory, module) = if name == "mod" {
            let module = directory.file_name().unwrap().to_str().unwrap();
            (directory.parent().unwrap(), module)
        } else {
            (directory, name)
        };
        let owners = ["mod.rs", "main.rs", "lib.rs"]
            .map(|file| owner_directory.join(file))
            .into_iter()
            .chain([owner_directory.with_extension("rs")]);
        let declared = owners.into_iter().any(|owner| {
            fs::read_to_string(owner).is_ok_and(|text| text.contains(&format!("mod {module};")))
        });
        // Those of fuzzing are in a manifest of their own.
        let elsewhere = ["tests/support", "tests/fuzz"];
        let is_elsewhere = elsewhere
            .iter()
            .any(|other| path.starts_with(root().join(other)));
        if !declared && !is_elsewhere {
            breaches.push(format!("{}: no file declares it", path.display()));
        }
    }
    fail_if_any(&breaches);
}

#[test]
fn every_test_program_is_built() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    for entry in fs::read_dir(root().join("tests")).unwrap() {
        let path = entry.unwrap().path();
        let main = if path.is_dir() {
            path.join("main.rs")
        } else {
            path
        };
        if main.is_file() && main.extension().is_some_and(|extension| extension == "rs") {
            let main = main.strip_prefix(root()).unwrap().display().to_string();
            assert!(manifest.contains(&format!("path = \"{main}\"")), "{main}");
        }
    }
}

/// The file that has a test of `path`: `suite::module` below tests, or a module below src.
fn file_of_test(path: &str) -> PathBuf {
    let (module, _) = path.rsplit_once("::").unwrap();
    let file = format!("{}.rs", module.replace("::", "/"));
    let in_tests = root().join("tests").join(&file);
    match in_tests.is_file() {
        true => in_tests,
        false => root().join("src").join(file),
    }
}

#[test]
fn every_row_of_the_hostile_table_names_tests_that_are_there() {
    let table = fs::read_to_string(root().join("tests/rows.md")).unwrap();
    let mut breaches = Vec::new();
    let mut rows = Vec::new();
    for line in table.lines() {
        let cells: Vec<&str> = line.split(" | ").collect();
        let number = cells[0].strip_prefix("| ").map(str::parse::<u32>);
        let Some(Ok(number)) = number else {
            continue;
        };
        rows.push(number);
        let [_, _, _, tests] = cells.as_slice() else {
            breaches.push(format!("row {number} has {} cells", cells.len()));
            continue;
        };
        let tests: Vec<&str> = tests
            .split('`')
            .filter(|test| test.contains("::"))
            .collect();
        if tests.is_empty() {
            breaches.push(format!("row {number} has no test"));
        }
        for test in tests {
            let text = fs::read_to_string(file_of_test(test)).unwrap_or_default();
            let name = test.rsplit("::").next().unwrap();
            let is_test = text.match_indices(&format!("fn {name}(")).any(|(at, _)| {
                let before = text[..at].trim_end_matches("async ").trim_end();
                before.ends_with("#[test]") || before.ends_with("#[tokio::test]")
            });
            if !is_test {
                breaches.push(format!("row {number}: there is no test {test}"));
            }
        }
    }
    let ranges = [1..=168, 170..=170];
    let expected: Vec<u32> = ranges.into_iter().flatten().collect();
    assert_eq!(rows, expected);
    fail_if_any(&breaches);
}
