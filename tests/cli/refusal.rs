//! What every refusal has in common: it is told as text and as JSON, and nothing stays of it.

use serde_json::{Value, json};

use crate::image::{disk, disk_only};
use crate::sandbox::{Sandbox, check};

/// Pulls `image` into a new store, and prepares it in one that holds another image. Both must end
/// in the same error, and leave the stores as they were.
#[track_caller]
pub(crate) fn refused(sandbox: &Sandbox, image: &str, kind: &str, expected: &str) {
    refused_with(sandbox, "--arch amd64", image, kind, expected);
}

/// As [`refused`], with other options.
#[track_caller]
pub(crate) fn refused_with(
    sandbox: &Sandbox,
    options: &str,
    image: &str,
    kind: &str,
    expected: &str,
) {
    let pulled = sandbox.run(format!("pull -q {options} {image}"));
    check(&pulled.text(), expected);
    assert_empty_store(sandbox);

    let seed = sandbox.path("seed");
    disk_only(&disk("seed")).write_layout(&seed);
    let seeded = sandbox.run(format!("pull -q --arch amd64 oci:{}", seed.display()));
    assert_eq!(seeded.status, 0, "{}", seeded.text());
    let before = sandbox.tree();
    let prepare = format!("prepare -q --json --accel tcg --name vm {options} {image}");
    let prepared = sandbox.run(prepare);
    assert_eq!(prepared.status, pulled.status, "{}", prepared.text());
    assert_eq!(prepared.stderr, "");
    assert_eq!(prepared.json(), as_json(kind, &pulled.stderr));
    let after = sandbox.tree();
    let changed: Vec<_> = after
        .iter()
        .filter(|(path, now)| before.get(*path) != Some(*now))
        .collect();
    assert!(
        changed.is_empty() && after.len() == before.len(),
        "{changed:?}"
    );
    std::fs::remove_dir_all(sandbox.store()).unwrap();
}

/// The JSON object of an error that is told as `text`.
pub(crate) fn as_json(kind: &str, text: &str) -> Value {
    let with = |prefix: &str| -> Vec<&str> {
        text.lines()
            .filter_map(|line| line.strip_prefix(prefix))
            .collect()
    };
    json!({
        "schema_version": 1,
        "error": {
            "kind": kind,
            "message": with("error: ").first(),
            "causes": with("  caused by: "),
            "hint": with("hint: ").first(),
            "retryable": kind == "unavailable",
        },
    })
}

/// Fails unless the store holds nothing of any image or instance.
#[track_caller]
pub(crate) fn assert_empty_store(sandbox: &Sandbox) {
    for directory in [
        "blobs/sha256",
        "blobs/sha512",
        "derived",
        "refs",
        "pins",
        "leases",
        "ingest",
        "tmp",
        "instances",
    ] {
        assert_eq!(
            sandbox.names(directory),
            Vec::<String>::new(),
            "in {directory}"
        );
    }
}
