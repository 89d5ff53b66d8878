//! SIGKILL and errors of the kernel at each system call that touches the store: `strace` has them
//! happen. What calls there are is not written down here but recorded of a pull that succeeds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::thread;

use crate::desk::{Desk, Dice, Output, finish, is_torture, wait_until};
use crate::judge::judge;
use crate::shop::{Pace, Shop};
use crate::stock::{self, Stocked, pull};

/// Calls that change something, and those without which nothing can be changed.
const CALLS: &[&str] = &[
    "openat",
    "mkdir",
    "flock",
    "write",
    "pwrite64",
    "ftruncate",
    "fchmod",
    "sync_file_range",
    "fsync",
    "fdatasync",
    "rename",
    "renameat2",
    "unlink",
    "unlinkat",
];
/// Those of them that may take space.
const TAKES_SPACE: &[&str] = &[
    "openat",
    "mkdir",
    "write",
    "pwrite64",
    "fsync",
    "fdatasync",
    "rename",
    "renameat2",
];

const SIGKILL: i32 = 9;

/// A call that touches the store: its name, and the path within the store.
type Call = (String, String);

/// One case: an empty store, and a shop with a small image.
struct Case {
    desk: Desk,
    pull: String,
}

impl Case {
    fn new(shop: &Shop) -> Self {
        Self {
            desk: Desk::new(),
            pull: pull(shop, "1"),
        }
    }

    /// Pulls under `strace` with `options`. Returns what it did and what was recorded.
    fn traced(&self, options: &[&str]) -> (Output, String) {
        let log = self.desk.path("log");
        let log_name = log.display().to_string();
        let always = ["strace", "-f", "-y", "-qq", "-s", "0", "-o", &log_name];
        let words: Vec<&str> = always.iter().chain(options).copied().collect();
        let output = self.desk.run_under(&words, &self.pull);
        (output, fs::read_to_string(log).unwrap())
    }

    /// Pulls, and `what` happens at `call`, if it comes to it.
    fn injected(&self, (name, path): &Call, what: &str) -> (Output, String) {
        let path = self.desk.store().join(path).display().to_string();
        let trace = format!("trace={name}");
        let inject = format!("inject={name}:{what}:when=1");
        self.traced(&["-P", &path, "-e", &trace, "-e", &inject])
    }

    /// Pulls, and `what` happens at the `nth` call called `name` of whichever thread comes to it.
    fn injected_at(&self, name: &str, nth: usize, what: &str) -> (Output, String) {
        let trace = format!("trace={name}");
        let inject = format!("inject={name}:{what}:when={nth}");
        self.traced(&["-e", &trace, "-e", &inject])
    }

    /// The next pull must succeed, and leave nothing behind.
    #[track_caller]
    fn mended(&self, when: &str) {
        let output = self.desk.run(&self.pull);
        assert_eq!(output.status, Some(0), "after {when}: {output:#?}");
        self.desk.at_rest(when);
    }
}

fn image(shop: &Shop) -> Stocked {
    let image = stock::direct(shop, 1, 2 << 20, 1 << 20, 64 << 10);
    shop.tag("1", &image.index);
    image
}

/// The calls of a pull that touch what has the same name in every run.
fn recorded(shop: &Shop) -> Vec<Call> {
    let case = Case::new(shop);
    let trace = format!("trace={}", CALLS.join(","));
    let (output, log) = case.traced(&["-e", &trace]);
    assert_eq!(output.status, Some(0), "{output:#?}");
    let calls: BTreeSet<Call> = log
        .lines()
        .filter_map(|line| parse(line, case.desk.store()))
        .filter(|(_, path)| {
            !["lease-", "removed-", "unfinished-"]
                .iter()
                .any(|chance| path.contains(chance))
        })
        .collect();
    assert!(calls.len() > 50, "only {} calls: {log}", calls.len());
    calls.into_iter().collect()
}

/// The name of a call and the last path in the store that it names.
fn parse(line: &str, store: &Path) -> Option<Call> {
    let (_, call) = line.split_once(' ')?;
    let (name, arguments) = call.trim_start().split_once('(')?;
    let root = format!("{}/", store.display());
    let (_, path) = arguments.rsplit_once(&root)?;
    let path = path.split(['"', '>']).next()?;
    CALLS
        .contains(&name)
        .then(|| (name.to_owned(), path.to_owned()))
}

/// All of `calls`, or some of each name.
fn sample(calls: Vec<Call>, of_each: usize, dice: &mut Dice) -> Vec<Call> {
    if is_torture() {
        return calls;
    }
    let mut by_name: BTreeMap<String, Vec<Call>> = BTreeMap::new();
    for call in calls {
        by_name.entry(call.0.clone()).or_default().push(call);
    }
    let mut sample = Vec::new();
    for mut calls in by_name.into_values() {
        for _ in 0..of_each.min(calls.len()) {
            let chosen = dice.below(calls.len() as u64);
            sample.push(calls.swap_remove(usize::try_from(chosen).unwrap()));
        }
    }
    sample
}

/// Has `error` happen at the calls of `names`; each must end the pull with an error of `kind`.
fn check_errors(error: &str, kind: &str, names: &[&str]) {
    let shop = Shop::open();
    let image = image(&shop);
    let mut dice = Dice::of(&format!("{error} at system calls"));
    let mut calls = recorded(&shop);
    calls.retain(|(name, _)| names.contains(&name.as_str()));
    let mut hits = 0;
    for call in sample(calls, 2, &mut dice) {
        let when = format!("{error} at {} of {}", call.0, call.1);
        let case = Case::new(&shop);
        let (output, log) = case.injected(&call, &format!("error={error}"));
        if !log.contains("(INJECTED)") {
            continue;
        }
        hits += 1;
        // What can not be read of the export is written anew.
        let is_derived = ["index.json", "oci-layout"].contains(&call.1.as_str());
        if !(is_derived && call.0 == "openat" && output.status == Some(0)) {
            assert_eq!(output.status, Some(125), "{when}: {output:#?}");
            assert_eq!(output.kind(), kind, "{when}: {output:#?}");
        }
        let found = judge(case.desk.store(), &when);
        if call.1.starts_with("blobs/") || call.1.starts_with("ingest/") {
            assert!(found.references.is_empty(), "{when}: {found:?}");
        }
        if call == ("fsync".to_owned(), "blobs/sha256".to_owned()) {
            // A power cut may undo what put them there.
            assert!(found.blobs.is_empty(), "{when}: {found:?}");
        }
        shop.forget();
        case.mended(&when);
        // The kernel forgets what it could not write: what was not synced is no good any more.
        for layer in image.digests() {
            let data = format!("ingest/{}/data", layer.replacen(':', "-", 1));
            if call == ("fsync".to_owned(), data) {
                let size = image.layers.iter().find(|known| known["digest"] == *layer);
                let size = size.unwrap()["size"].as_u64().unwrap();
                assert_eq!(shop.bytes(&layer), size, "{when}: it was not fetched anew");
            }
        }
    }
    assert!(
        hits >= names.len() / 2,
        "{error}: only {hits} calls were hit"
    );
}

#[test]
fn a_kill_at_any_call_leaves_a_right_store() {
    let shop = Shop::open();
    image(&shop);
    let mut dice = Dice::of("kills at system calls");
    let mut hits = 0;
    for call in sample(recorded(&shop), 2, &mut dice) {
        let when = format!("a kill at {} of {}", call.0, call.1);
        let case = Case::new(&shop);
        let (output, _) = case.injected(&call, "signal=KILL");
        if output.signal != Some(SIGKILL) {
            assert_eq!(output.status, Some(0), "{when}: {output:#?}");
            continue;
        }
        hits += 1;
        judge(case.desk.store(), &when);
        case.mended(&when);
    }
    assert!(hits > 10, "only {hits} calls were hit");
}

/// Names that chance makes are out of reach above. Here every call counts, each thread its own:
/// the nth, for all n, until none is left to be hit.
#[test]
fn a_kill_at_the_nth_call_leaves_a_right_store() {
    let shop = Shop::open();
    image(&shop);
    let mut dice = Dice::of("kills at nth system calls");
    let mut hits = 0;
    for name in [
        "write",
        "flock",
        "fsync",
        "rename",
        "renameat2",
        "unlinkat",
        "openat",
    ] {
        let mut nth = 1;
        loop {
            let when = format!("a kill at {name} number {nth}");
            let case = Case::new(&shop);
            let (output, _) = case.injected_at(name, nth, "signal=KILL");
            if output.signal != Some(SIGKILL) {
                assert_eq!(output.status, Some(0), "{when}: {output:#?}");
                break;
            }
            hits += 1;
            judge(case.desk.store(), &when);
            case.mended(&when);
            nth += match name {
                _ if is_torture() => 1,
                // Most of them are of libraries.
                "openat" => 20 + usize::try_from(dice.below(40)).unwrap(),
                _ => 2 + usize::try_from(dice.below(12)).unwrap(),
            };
        }
    }
    // At the least the first of each.
    assert!(hits >= 6, "only {hits} calls were hit");
}

#[test]
fn an_error_of_the_disk_is_told_and_nothing_is_published() {
    check_errors("EIO", "store", CALLS);
}

#[test]
fn a_disk_that_is_full_at_any_call_is_told() {
    check_errors("ENOSPC", "no-space", TAKES_SPACE);
}

/// The kernel forgets what it could not write, and to read it or to sync it once more succeeds. So
/// whoever has waited for a fetch that ends like that must not go on with what it has left.
#[test]
fn what_one_process_could_not_sync_is_fetched_anew_by_the_one_that_waited() {
    let shop = Shop::open();
    let image = image(&shop);
    let disk = &image.digests()[0];
    let other = stock::direct(&shop, 2, 1 << 20, 1 << 20, 64 << 10);
    let other = image.with_disk(other.layers[0].clone(), &shop);
    shop.tag("other", &other.index);
    let data = format!("ingest/{}/data", disk.replacen(':', "-", 1));
    for path in [data.as_str(), "blobs/sha256"] {
        let case = Case::new(&shop);
        // The disk is all that is left to be fetched then.
        case.desk.done(&pull(&shop, "other"));
        shop.forget();
        shop.set(Pace {
            stops_at: Some(1 << 20),
            ..Pace::default()
        });
        thread::scope(|scope| {
            let call = ("fsync".to_owned(), path.to_owned());
            let case = &case;
            let first = scope.spawn(move || case.injected(&call, "error=EIO"));
            let data = case.desk.store().join(&data);
            wait_until("the first fetches", || data.exists());
            let second = case.desk.start(&case.pull);
            let waits = format!("-> FLOCK  ADVISORY  WRITE {} ", second.id());
            wait_until("the second waits", || {
                fs::read_to_string("/proc/locks").unwrap().contains(&waits)
            });
            shop.set(Pace::default());
            let (output, _) = first.join().unwrap();
            assert_eq!(output.status, Some(125), "{path}: {output:#?}");
            let output = finish(second);
            assert_eq!(output.status, Some(0), "{path}: {output:#?}");
        });
        assert_eq!(shop.requests(disk), 2, "{path}");
        assert_eq!(shop.bytes(disk), 2 * (2 << 20), "{path}");
        case.desk.at_rest(path);
    }
}
