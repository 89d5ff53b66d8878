//! What a store must be, whatever has happened to it. Nothing here is ironboot's own code.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use sha2::{Digest as _, Sha256, Sha512};

/// What was found in a store that is right.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Digests of the blobs.
    pub(crate) blobs: BTreeSet<String>,
    /// Digests of the blobs that were begun, and how many bytes of them there are.
    pub(crate) partials: Vec<(String, u64)>,
    /// Each reference and the digest that it leads to.
    pub(crate) references: Vec<(String, String)>,
}

/// Judges a store in which anything may have been interrupted at any instant.
#[track_caller]
pub(crate) fn judge(store: &Path, when: &str) -> Found {
    let mut wrong = Vec::new();
    let found = look(store, &mut wrong);
    assert!(wrong.is_empty(), "{when}:\n{}", wrong.join("\n"));
    found
}

/// Judges a store in which nothing is going on and whose last pull or collection has ended well:
/// nothing unfinished is left then, and what others read of it is the same.
#[track_caller]
pub(crate) fn judge_at_rest(store: &Path, when: &str) -> Found {
    let mut wrong = Vec::new();
    let found = look(store, &mut wrong);
    for directory in ["ingest", "tmp", "leases"] {
        for name in names(&store.join(directory)) {
            wrong.push(format!("{directory}/{name} was left"));
        }
    }
    for (reference, digest) in &found.references {
        let output = inspect(store, reference);
        let raw = format!("sha256:{}", hex::encode(Sha256::digest(&output.stdout)));
        if !output.status.success() || raw != *digest {
            let said = String::from_utf8_lossy(&output.stderr);
            wrong.push(format!(
                "skopeo finds {raw} as {reference}, not {digest}: {said}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{when}:\n{}", wrong.join("\n"));
    found
}

/// What skopeo finds as `reference`. It follows every link by itself, and so has to be where the
/// store is: in the mount namespace of the process in `/proc/PID/root/…`.
fn inspect(store: &Path, reference: &str) -> Output {
    let name = store.display().to_string();
    let parts = name.strip_prefix("/proc/");
    let (mut command, place) = match parts.and_then(|parts| parts.split_once("/root/")) {
        Some((pid, place)) => {
            let mut command = Command::new("nsenter");
            command.args(["--target", pid, "--mount", "skopeo"]);
            (command, format!("/{place}"))
        }
        None => (Command::new("skopeo"), name),
    };
    command.args(["inspect", "--raw", &format!("oci:{place}:{reference}")]);
    let output = command.output();
    output.expect("these tests need `skopeo` and `nsenter`")
}

fn look(store: &Path, wrong: &mut Vec<String>) -> Found {
    let mut found = Found::default();
    // What is named comes first: others may be pulling, and what they name is there before.
    let mut named = Vec::new();
    for name in names(&store.join("refs")) {
        let who = format!("refs/{name}");
        let Some(record) = read(store, &who, wrong) else {
            continue;
        };
        let is_top = record["top"]["digest"].is_string();
        if !is_top || record["images"].as_array().is_none_or(Vec::is_empty) {
            wrong.push(format!("{who} leads nowhere"));
        }
        let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let leads_to = (word(&record["reference"]), word(&record["top"]["digest"]));
        found.references.push(leads_to);
        named.push((who, record));
    }
    if store.join("index.json").exists() {
        let who = "index.json".to_owned();
        named.extend(read(store, &who, wrong).map(|index| (who, index)));
    }
    for algorithm in names(&store.join("blobs")) {
        for name in names(&store.join("blobs").join(&algorithm)) {
            let path = store.join("blobs").join(&algorithm).join(&name);
            match blob(&path, &algorithm) {
                Ok(actual) if actual == name => {
                    found.blobs.insert(format!("{algorithm}:{name}"));
                }
                Ok(actual) => wrong.push(format!("blob {name} has the digest {actual}")),
                Err(what) => wrong.push(format!("blob {name} {what}")),
            }
        }
    }
    for (who, record) in &named {
        let mut blobs = Vec::new();
        descriptors(record, &mut blobs);
        for (digest, size) in blobs {
            check_blob(store, &found, who, &digest, size, wrong);
        }
    }
    for name in names(&store.join("ingest")) {
        let directory = store.join("ingest").join(&name);
        let digest = name.replacen('-', ":", 1);
        for file in names(&directory) {
            match file.as_str() {
                // It may have got its name meanwhile.
                "data" => {
                    let data = fs::symlink_metadata(directory.join(file));
                    let size = data.ok().map(|data| (digest.clone(), data.len()));
                    found.partials.extend(size);
                }
                "lock" => {}
                // A disk that is being unpacked, of which nobody knows yet.
                "made" if name.starts_with("raw-") => {}
                _ => wrong.push(format!("ingest/{name} has {file}")),
            }
        }
    }
    found
}

/// Reads a JSON file of the store.
fn read(store: &Path, name: &str, wrong: &mut Vec<String>) -> Option<Value> {
    let record = serde_json::from_slice(&fs::read(store.join(name)).unwrap());
    let record = record.map_err(|error| wrong.push(format!("{name} can not be read: {error}")));
    record.ok()
}

fn check_blob(
    store: &Path,
    found: &Found,
    who: &str,
    digest: &str,
    size: u64,
    wrong: &mut Vec<String>,
) {
    let path = store.join("blobs").join(digest.replace(':', "/"));
    let actual = fs::symlink_metadata(path).map(|metadata| metadata.len());
    match actual {
        Ok(actual) if actual == size && found.blobs.contains(digest) => {}
        Ok(actual) => wrong.push(format!(
            "{who} names {digest}, {size} bytes: it has {actual}"
        )),
        Err(error) => wrong.push(format!("{who} names {digest}: {error}")),
    }
}

/// The digest of a file that is as blobs are.
fn blob(path: &Path, algorithm: &str) -> Result<String, String> {
    let metadata = fs::symlink_metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("is no plain file".to_owned());
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode != 0o444 || metadata.nlink() != 1 {
        return Err(format!("has mode {mode:o} and {} links", metadata.nlink()));
    }
    match algorithm {
        "sha256" => digest::<Sha256>(path),
        "sha512" => digest::<Sha512>(path),
        _ => Err("is of no known algorithm".to_owned()),
    }
}

fn digest<D: sha2::Digest>(path: &Path) -> Result<String, String> {
    let mut file = fs::File::open(path).map_err(|error| error.to_string())?;
    let mut hasher = D::new();
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).map_err(|error| error.to_string())? {
            0 => return Ok(hex::encode(hasher.finalize())),
            count => hasher.update(&block[..count]),
        }
    }
}

/// Every descriptor in `value`: digest and size.
fn descriptors(value: &Value, found: &mut Vec<(String, u64)>) {
    if let (Some(digest), Some(size)) = (value["digest"].as_str(), value["size"].as_u64()) {
        found.push((digest.to_owned(), size));
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|value| descriptors(value, found)),
        Value::Array(values) => values.iter().for_each(|value| descriptors(value, found)),
        _ => {}
    }
}

/// The names in a directory, sorted; none if it is not there.
pub(crate) fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The unfinished file of the blob `digest`.
pub(crate) fn partial(store: &Path, digest: &str) -> PathBuf {
    let name = digest.replacen(':', "-", 1);
    store.join("ingest").join(name).join("data")
}
