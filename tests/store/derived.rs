//! SIGKILL and a full disk while a disk is unpacked, at every call that touches what becomes of it.

use std::fs;

use crate::corpus::honest::{controls, gpt_disk};
use crate::desk::{Desk, Output};
use crate::image::{direct, single};
use crate::judge::judge;

const CALLS: [&str; 10] = [
    "openat",
    "mkdir",
    "flock",
    "pwrite64",
    "ftruncate",
    "fchmod",
    "fsync",
    "rename",
    "renameat2",
    "unlinkat",
];
const SIGKILL: i32 = 9;

/// A layout of an image with a qcow2 disk, and what is made of that.
struct Case {
    desk: Desk,
    pull: String,
    name: String,
}

impl Case {
    fn new() -> Self {
        let desk = Desk::new();
        let made = desk.path("made");
        fs::create_dir(&made).unwrap();
        let disks = controls(&made);
        let (_, path, _) = disks.iter().find(|(name, ..)| name == "q-ok-v3").unwrap();
        let payloads = direct();
        let image = single(
            r#"{"commandLine":"quiet"}"#,
            &[
                ("disk", "rootfs", &fs::read(path).unwrap()),
                ("kernel", "kernel", payloads.bytes("kernel")),
                ("initramfs", "initramfs", payloads.bytes("initramfs")),
            ],
        );
        fs::remove_dir_all(made).unwrap();
        let layout = desk.path("layout");
        image.write_layout(&layout);
        let pull = format!("pull -q --json --arch amd64 oci:{}:1", layout.display());
        let name = image.digest("disk").replace(':', "-");
        Self { desk, pull, name }
    }

    /// Pulls, and `what` happens at the first call called `call` of `path`. Tells whether it did.
    fn injected(&self, call: &str, path: &str, what: &str) -> (Output, bool) {
        self.injected_into(&self.pull, call, path, what)
    }

    /// The same in `line`.
    fn injected_into(&self, line: &str, call: &str, path: &str, what: &str) -> (Output, bool) {
        let store = self.desk.store();
        let log = self.desk.path("log").display().to_string();
        let path = store.join(path).display().to_string();
        let trace = format!("trace={call}");
        let inject = format!("inject={call}:{what}:when=1");
        let words = [
            "strace", "-f", "-y", "-qq", "-s", "0", "-o", &log, "-P", &path, "-e", &trace, "-e",
            &inject,
        ];
        let output = self.desk.run_under(&words, line);
        let is_hit = match what {
            "signal=KILL" => output.signal == Some(SIGKILL),
            _ => fs::read_to_string(log).unwrap().contains("(INJECTED)"),
        };
        (output, is_hit)
    }

    /// The store must be right, and the next pull succeed and leave nothing behind.
    #[track_caller]
    fn mended(&self, when: &str) {
        let store = self.desk.store();
        judge(store, when);
        let raw = store.join("derived").join(&self.name).join("raw");
        if raw.exists() {
            assert!(
                fs::read(&raw).unwrap() == gpt_disk(),
                "{when}: half of it appeared"
            );
        }
        self.desk.done(&self.pull);
        assert!(fs::read(&raw).unwrap() == gpt_disk(), "{when}");
        self.desk.done("image prune -q");
        self.desk.done("image verify -q");
        for directory in ["ingest", "tmp", "leases"] {
            let left = fs::read_dir(store.join(directory)).unwrap().count();
            assert_eq!(left, 0, "{when}: {directory}");
        }
    }

    /// Everything that comes and goes where it is unpacked.
    fn paths(&self) -> [String; 7] {
        let draft = format!("ingest/raw-{}", self.name);
        [
            format!("{draft}/lock"),
            format!("{draft}/made/raw"),
            format!("{draft}/made/record.json"),
            format!("{draft}/made"),
            draft,
            format!("derived/{}", self.name),
            "derived".to_owned(),
        ]
    }
}

#[test]
fn a_kill_at_any_call_of_the_unpacking_leaves_a_right_store() {
    let mut hits = 0;
    let case = Case::new();
    for path in case.paths() {
        for call in CALLS {
            let when = format!("a kill at {call} of {path}");
            if case.desk.store().exists() {
                fs::remove_dir_all(case.desk.store()).unwrap();
            }
            let (_, is_hit) = case.injected(call, &path, "signal=KILL");
            if is_hit {
                hits += 1;
                case.mended(&when);
            }
        }
    }
    assert!(hits >= 12, "only {hits} calls were hit");
}

#[test]
fn a_kill_while_it_is_removed_blocks_no_later_removal() {
    let case = Case::new();
    let remove = format!("image rm oci:{}:1", case.desk.path("layout").display());
    let store = case.desk.store();
    // What was made of it is on its way out when the blob follows, and is deleted after that.
    let blob = format!("blobs/{}", case.name.replace('-', "/"));
    let mut hits = 0;
    for path in [format!("derived/{}", case.name), blob] {
        for call in ["rename", "renameat2"] {
            let when = format!("a kill at {call} of {path}");
            case.desk.done(&case.pull);
            let (_, is_hit) = case.injected_into(&remove, call, &path, "signal=KILL");
            hits += usize::from(is_hit);
            judge(store, &when);
            case.desk.done(&case.pull);
            case.desk.done(&remove);
            for directory in ["derived", "tmp", "leases"] {
                let left = fs::read_dir(store.join(directory)).unwrap().count();
                assert_eq!(left, 0, "{when}: {directory}");
            }
        }
    }
    assert_eq!(hits, 2);
}

#[test]
fn a_disk_that_is_full_while_a_disk_is_unpacked_is_told() {
    let mut hits = 0;
    let case = Case::new();
    for path in case.paths() {
        for call in [
            "openat",
            "mkdir",
            "pwrite64",
            "ftruncate",
            "fsync",
            "renameat2",
        ] {
            let when = format!("a full disk at {call} of {path}");
            if case.desk.store().exists() {
                fs::remove_dir_all(case.desk.store()).unwrap();
            }
            let (output, is_hit) = case.injected(call, &path, "error=ENOSPC");
            if is_hit {
                hits += 1;
                assert_eq!(output.status, Some(125), "{when}: {output:#?}");
                assert_eq!(output.kind(), "no-space", "{when}: {output:#?}");
                case.mended(&when);
            }
        }
    }
    assert!(hits >= 6, "only {hits} calls were hit");
}

#[test]
fn of_many_who_need_a_disk_one_unpacks_it() {
    let case = Case::new();
    let pulls: Vec<_> = (0..8).map(|_| case.desk.start(&case.pull)).collect();
    for pull in pulls {
        let output = crate::desk::finish(pull);
        assert_eq!(output.status, Some(0), "{output:#?}");
    }
    case.mended("eight pulls at once");
}
