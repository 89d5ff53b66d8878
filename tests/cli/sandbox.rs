//! An environment of its own for each test, and the comparison of whole outputs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

use ironboot::oci::Digest;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::hostile::Hostile;
use crate::image::Image;

/// A home, a store and firmware that only this test sees.
#[derive(Debug)]
pub(crate) struct Sandbox {
    directory: TempDir,
    /// What is put instead of digests and addresses: text, word.
    masks: Mutex<Vec<(String, String)>>,
}

/// What the program printed and how it ended.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: i32,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        for name in ["home", "config/qemu/firmware", "firmware"] {
            fs::create_dir_all(root.join(name)).unwrap();
        }
        // Of the sizes that the machines take; nothing is in them but their names.
        for (file, size_bytes) in [
            ("code.fd", 3_653_632),
            ("vars.fd", 540_672),
            ("aarch64-code.fd", 64 << 20),
            ("aarch64-vars.fd", 64 << 20),
        ] {
            let path = root.join("firmware").join(file);
            fs::write(&path, file).unwrap();
            let image = fs::OpenOptions::new().write(true).open(path).unwrap();
            image.set_len(size_bytes).unwrap();
        }
        // Whatever the machine's own asks for.
        let policy = json!({"default": [{"type": "insecureAcceptAnything"}]});
        fs::write(root.join("policy.json"), policy.to_string()).unwrap();
        let sandbox = Self {
            masks: Mutex::new(vec![(root.display().to_string(), "$TMP".to_owned())]),
            directory,
        };
        for (isa, machine, prefix) in [
            ("x86_64", "pc-q35-*", ""),
            ("aarch64", "virt-*", "aarch64-"),
        ] {
            let image = |kind: &str| {
                let file = sandbox.path(&format!("firmware/{prefix}{kind}.fd"));
                json!({"filename": file, "format": "raw"})
            };
            let descriptor = json!({
                "description": format!("UEFI of the sandbox for {isa}"),
                "interface-types": ["uefi"],
                "mapping": {
                    "device": "flash",
                    "executable": image("code"),
                    "nvram-template": image("vars"),
                },
                "targets": [{"architecture": isa, "machines": [machine]}],
                "features": [],
            });
            // Its name comes before those of all that the machine has.
            let path = sandbox.path(&format!("config/qemu/firmware/00-{isa}.json"));
            fs::write(path, descriptor.to_string()).unwrap();
        }
        sandbox
    }

    /// A path in the sandbox.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Shows `word` wherever `text` stands in an output.
    pub(crate) fn mask(&self, text: &str, word: &str) {
        let mut masks = self.masks.lock().unwrap();
        masks.push((text.to_owned(), word.to_owned()));
    }

    /// Shows the digests of `image` by the names of its blobs.
    pub(crate) fn name_digests(&self, image: &Image) {
        for (digest, name) in &image.names {
            let (algorithm, hex) = digest.split_once(':').unwrap();
            self.mask(digest, &format!("{algorithm}:<{name}>"));
            self.mask(hex, &format!("<{name}>"));
            // The first digits stand for all of them in tables.
            self.mask(&hex[..12], &format!("<{name}>"));
        }
    }

    /// Writes `image` as an OCI layout and returns its reference.
    pub(crate) fn layout(&self, image: &Image) -> String {
        self.name_digests(image);
        let name = format!("layout-{}", &image.digest("top")["sha256:".len()..][..8]);
        let directory = self.path(&name);
        image.write_layout(&directory);
        self.mask(&directory.display().to_string(), "$LAYOUT");
        format!("oci:{}:1", directory.display())
    }

    /// Serves `image` and returns the server and the image's reference there.
    pub(crate) fn serve(&self, image: &Image) -> (Hostile, String) {
        self.at(image, image.serve())
    }

    /// The reference of `image` at `server`.
    pub(crate) fn at(&self, image: &Image, server: Hostile) -> (Hostile, String) {
        self.name_digests(image);
        self.mask(&server.address(), "$REGISTRY");
        let reference = format!("{}/os:1", server.address());
        (server, reference)
    }

    /// `text` as outputs show it.
    pub(crate) fn shown(&self, text: &str) -> String {
        self.mask_all(text.as_bytes())
    }

    /// The program with the words of `line`, in this environment and no other.
    pub(crate) fn command(&self, line: impl AsRef<str>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ironboot"));
        command
            .args(line.as_ref().split(' '))
            .env_clear()
            .env("HOME", self.path("home"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env("IRONBOOT_STORE", self.store())
            .env("IRONBOOT_POLICY", self.path("policy.json"))
            .env("NO_COLOR", "1")
            .current_dir(self.path("home"))
            .stdin(Stdio::null());
        command
    }

    /// `program` as the last words of `wrapper`, in its environment and no other.
    pub(crate) fn under(&self, mut wrapper: Command, program: &Command) -> Command {
        wrapper
            .arg(program.get_program())
            .args(program.get_args())
            .env_clear()
            .envs(
                program
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .current_dir(self.path("home"));
        wrapper
    }

    /// Runs the program with the words of `line`.
    pub(crate) fn run(&self, line: impl AsRef<str>) -> Output {
        self.finish(self.command(line))
    }

    /// Runs the program with the words of `line` and one more, whatever is in it.
    pub(crate) fn run_with(&self, line: impl AsRef<str>, word: &str) -> Output {
        let mut command = self.command(line);
        command.arg(word);
        self.finish(command)
    }

    /// Runs `command` and masks what it prints.
    pub(crate) fn finish(&self, mut command: Command) -> Output {
        self.masked(&command.output().unwrap())
    }

    pub(crate) fn masked(&self, output: &std::process::Output) -> Output {
        Output {
            stdout: self.mask_all(&output.stdout),
            stderr: self.mask_all(&output.stderr),
            status: output.status.code().unwrap_or(-1),
        }
    }

    fn mask_all(&self, bytes: &[u8]) -> String {
        let mut text = String::from_utf8(bytes.to_vec()).unwrap();
        let mut masks = self.masks.lock().unwrap().clone();
        // The longest first: a layout's directory is within the sandbox's.
        masks.sort_by_key(|(text, _)| std::cmp::Reverse(text.len()));
        for (from, to) in masks {
            text = text.replace(&from, &to);
        }
        text.split_inclusive('\n').map(settled).collect()
    }

    /// Everything in the store: kind, mode, and content of each path.
    pub(crate) fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        if self.store().exists() {
            look(&self.store(), &self.store(), &mut tree);
        }
        tree
    }

    /// The names in a directory of the store; none if it is not there.
    pub(crate) fn names(&self, directory: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.store().join(directory)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn look(root: &Path, directory: &Path, tree: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.strip_prefix(root).unwrap().display().to_string();
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mode = metadata.mode();
        if metadata.is_dir() {
            tree.insert(name, format!("{mode:o}"));
            look(root, &path, tree);
        } else {
            let content = without_time(&fs::read(&path).unwrap());
            let content = Digest::of(&content);
            tree.insert(name, format!("{mode:o} {content}"));
        }
    }
}

/// A record without the line that says when its reference was resolved.
fn without_time(content: &[u8]) -> Vec<u8> {
    let lines = content.split_inclusive(|byte| *byte == b'\n');
    lines
        .filter(|line| !line.starts_with(b"  \"resolved_at\": "))
        .flatten()
        .copied()
        .collect()
}

/// A line without what differs from run to run: columns as wide as what was masked, times, and
/// the numbers that are made of paths.
fn settled(line: &str) -> String {
    let text = line.trim_start_matches(' ');
    let (indent, mut text) = (&line[..line.len() - text.len()], text.to_owned());
    while text.contains("   ") {
        text = text.replace("   ", "  ");
    }
    if let Some((what, time)) = text.rsplit_once(" in ")
        && time.ends_with(" s\n")
        && time.starts_with(|c: char| c.is_ascii_digit())
    {
        text = format!("{what} in $SECONDS s\n");
    }
    let digest = format!("sha256:{}", "x".repeat(64));
    for (shape, word) in [(UUID, "$UUID"), (MAC, "$MAC"), (&digest, "sha256:$OTHER")] {
        while let Some(place) = find_shape(&text, shape) {
            text.replace_range(place..place + shape.len(), word);
        }
    }
    indent.to_owned() + &text
}

/// Where a hexadecimal digit may stand is an `x`.
const UUID: &str = "xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
const MAC: &str = "52:54:00:xx:xx:xx";

fn find_shape(text: &str, shape: &str) -> Option<usize> {
    let is_alike = |(byte, shape): (&u8, u8)| match shape {
        b'x' => byte.is_ascii_hexdigit(),
        _ => *byte == shape,
    };
    let mut windows = text.as_bytes().windows(shape.len());
    windows.position(|window| window.iter().zip(shape.bytes()).all(is_alike))
}

impl Output {
    /// All of it as one text: what success does not need is left out.
    pub(crate) fn text(&self) -> String {
        let mut text = self.stdout.clone();
        if !self.stderr.is_empty() {
            text += &format!("------- stderr -------\n{}", self.stderr);
        }
        if self.status != 0 {
            text += &format!("[exit status: {}]\n", self.status);
        }
        text
    }

    /// The one JSON object on standard output.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }
}

/// Compares a whole text with an expected one, which may be indented.
#[track_caller]
pub(crate) fn check(actual: &str, expected: &str) {
    let expected = unindented(expected);
    assert!(
        actual == expected,
        "--- expected ---\n{expected}--- actual ---\n{actual}--- end ---"
    );
}

/// Compares a JSON value with an expected one.
#[track_caller]
pub(crate) fn check_json(actual: &Value, expected: &str) {
    check(&format!("{actual:#}\n"), expected);
}

fn unindented(text: &str) -> String {
    let text = text.strip_prefix('\n').unwrap_or(text);
    let blank = |line: &str| line.trim().is_empty();
    let lines: Vec<&str> = text.lines().collect();
    let indent = lines
        .iter()
        .filter(|line| !blank(line))
        .map(|line| line.len() - line.trim_start_matches(' ').len())
        .min()
        .unwrap_or(0);
    let end = lines
        .iter()
        .rposition(|line| !blank(line))
        .map_or(0, |last| last + 1);
    lines[..end]
        .iter()
        .map(|line| format!("{}\n", line.get(indent..).unwrap_or("")))
        .collect()
}

/// Whether the tests run under `scripts/with-services` as root, where libvirt answers for certain.
pub(crate) fn has_libvirt() -> bool {
    let services = std::env::var_os("IRONBOOT_TEST_REGISTRY").is_some();
    services && rustix::process::geteuid().is_root()
}

/// Masks the firmware that the machine has by empty files in the sandbox. Returns the names and the
/// paths of what is masked, in their order.
pub(crate) fn mask_firmware(sandbox: &Sandbox) -> Vec<(String, String)> {
    let mut masked = Vec::new();
    for directory in ["/etc/qemu/firmware", "/usr/share/qemu/firmware"] {
        for entry in fs::read_dir(directory).into_iter().flatten() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.ends_with(".json") {
                fs::write(sandbox.path("config/qemu/firmware").join(&name), b"").unwrap();
                masked.push((name.clone(), format!("{directory}/{name}")));
            }
        }
    }
    // Those of one name stay in the order of their directories.
    masked.sort_by(|(left, _), (right, _)| left.cmp(right));
    masked
}
