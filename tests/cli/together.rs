//! Many processes at once on one store, and processes that are killed.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use ironboot::oci::Digest;

use crate::hostile::{Hostile, Reply};
use crate::image::{Image, direct, disk, disk_only};
use crate::sandbox::{Output, Sandbox, check};

/// What the first pull gets of the disk, and the disk's size, in bytes.
const FIRST_PART: usize = 6 << 20;
const WHOLE: usize = 9 << 20;

/// Starts `count` processes of `line` and waits for all of them.
fn at_once(sandbox: &Sandbox, count: usize, line: &str) -> Vec<Output> {
    let children: Vec<Child> = (0..count).map(|_| start(sandbox, line)).collect();
    children
        .into_iter()
        .map(|child| finish(sandbox, child))
        .collect()
}

fn start(sandbox: &Sandbox, line: &str) -> Child {
    let mut command = sandbox.command(line);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn finish(sandbox: &Sandbox, child: Child) -> Output {
    sandbox.masked(&child.wait_with_output().unwrap())
}

/// Waits until something has happened in another process.
#[track_caller]
fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !happened() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// A disk that has no runs of zeros, which would be holes, and no two equal parts.
fn large_disk() -> Vec<u8> {
    let mut number = 1_u32;
    let mut bytes = Vec::with_capacity(WHOLE);
    while bytes.len() < WHOLE {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    // What no partition table begins with is not booted.
    bytes[..2048].copy_from_slice(&disk("")[..2048]);
    bytes
}

/// Serves an image of which the first request for the disk gets a part, and then nothing more.
fn stalling(sandbox: &Sandbox) -> (Image, Hostile, String) {
    let disk = large_disk();
    let image = disk_only(&disk);
    let path = image.blob_path("disk");
    let server = image.serve_except(move |request, before| {
        let stalled = || Reply::status(200).stalled(&disk[..FIRST_PART], WHOLE);
        (request.path == path && before == 0).then(stalled)
    });
    let (server, reference) = sandbox.at(&image, server);
    (image, server, reference)
}

/// The unfinished disk in the store.
fn partial(sandbox: &Sandbox, image: &Image) -> PathBuf {
    let name = image.digest("disk").replace(':', "-");
    sandbox.store().join("ingest").join(name).join("data")
}

/// Starts a pull and waits until it has written all that it gets.
fn start_stalled(sandbox: &Sandbox, image: &Image, pull: &str) -> Child {
    let child = start(sandbox, pull);
    let path = partial(sandbox, image);
    let is_written = || fs::metadata(&path).is_ok_and(|data| data.len() == FIRST_PART as u64);
    wait_until("the first part is written", is_written);
    child
}

fn kill(mut child: Child) {
    // SIGKILL: nothing is cleaned up.
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Where each request for the disk began.
fn ranges(image: &Image, server: &Hostile) -> Vec<String> {
    let path = image.blob_path("disk");
    let requests = server.requests().into_iter();
    requests
        .filter(|request| request.path == path)
        .map(|request| request.header("range").unwrap_or("all").to_owned())
        .collect()
}

/// Fails unless every blob in the store is what its name says.
#[track_caller]
fn assert_blobs_are_right(sandbox: &Sandbox) {
    for name in sandbox.names("blobs/sha256") {
        let content = fs::read(sandbox.store().join("blobs/sha256").join(&name)).unwrap();
        assert_eq!(Digest::of(&content).hex(), name);
    }
}

#[test]
fn eight_pulls_of_one_image_fetch_each_layer_once() {
    let sandbox = Sandbox::new();
    let image = direct();
    let gate = Arc::new((Mutex::new(0), Condvar::new()));
    let kernel = image.blob_path("kernel");
    let server = image.serve_except(move |request, _| {
        let (come, changed) = &*gate;
        if request.path == "/v2/os/manifests/1" {
            *come.lock().unwrap() += 1;
            changed.notify_all();
        }
        // Nobody is done before everybody has begun.
        if request.path == kernel {
            let come = come.lock().unwrap();
            drop(changed.wait_while(come, |come| *come < 8).unwrap());
        }
        None
    });
    let (server, reference) = sandbox.at(&image, server);
    for output in at_once(&sandbox, 8, &format!("pull -q --arch amd64 {reference}")) {
        check(&output.text(), "sha256:<manifest>");
    }
    for layer in ["disk", "kernel", "initramfs", "squashfs"] {
        assert_eq!(server.count(&image.blob_path(layer)), 1, "{layer}");
    }
    assert_eq!(sandbox.names("ingest"), Vec::<String>::new());
    assert_eq!(sandbox.names("leases"), Vec::<String>::new());
    assert_blobs_are_right(&sandbox);
}

#[test]
fn four_prepares_of_one_name_make_one_instance() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let prepare = format!("prepare -q --json --name vm --arch amd64 --accel tcg {image}");
    let outputs = at_once(&sandbox, 4, &prepare);
    let mut created = 0;
    for output in &outputs {
        assert_eq!(output.status, 0, "{}", output.text());
        assert_eq!(output.json()["staged"], outputs[0].json()["staged"]);
        created += usize::from(output.json()["created"] == true);
    }
    assert_eq!(created, 1);
    assert_eq!(sandbox.names("instances"), [".vm.lock", "vm"]);
}

#[test]
fn four_prepares_of_different_names_make_four_instances_of_one_pull() {
    let sandbox = Sandbox::new();
    let image = direct();
    let (server, reference) = sandbox.serve(&image);
    let names = ["a", "b", "c", "d"];
    let children = names.map(|name| {
        let prepare = format!("prepare -q --name {name} --arch amd64 --accel tcg {reference}");
        start(&sandbox, &prepare)
    });
    for child in children {
        let output = finish(&sandbox, child);
        assert_eq!(output.status, 0, "{}", output.text());
    }
    assert_eq!(server.count(&image.blob_path("disk")), 1);
    assert_eq!(sandbox.names("pins").len(), 4);
}

#[test]
fn what_a_killed_pull_has_fetched_is_not_fetched_again() {
    let sandbox = Sandbox::new();
    let (image, server, reference) = stalling(&sandbox);
    let pull = format!("pull --arch amd64 {reference}");
    kill(start_stalled(&sandbox, &image, &format!("{pull} -q")));
    assert_blobs_are_right(&sandbox);
    assert_eq!(sandbox.names("refs"), Vec::<String>::new());
    check(
        &sandbox.run(&pull).text(),
        r#"
        sha256:<manifest>
        ------- stderr -------
        fetching 9.00 MiB
        disk: resuming after 6.00 MiB
        disk: 9.00 MiB in $SECONDS s
        "#,
    );
    assert_eq!(ranges(&image, &server), ["all", "bytes=6291456-"]);
    assert_eq!(sandbox.names("ingest"), Vec::<String>::new());
    assert_blobs_are_right(&sandbox);
}

#[test]
fn what_was_damaged_meanwhile_is_fetched_anew() {
    let sandbox = Sandbox::new();
    let (image, server, reference) = stalling(&sandbox);
    let pull = format!("pull --arch amd64 {reference}");
    kill(start_stalled(&sandbox, &image, &format!("{pull} -q")));
    let data = fs::OpenOptions::new()
        .write(true)
        .open(partial(&sandbox, &image))
        .unwrap();
    data.write_all_at(b"damage", 4096).unwrap();
    check(
        &sandbox.run(&pull).text(),
        r#"
        sha256:<manifest>
        ------- stderr -------
        fetching 9.00 MiB
        disk: resuming after 6.00 MiB
        disk: what an earlier fetch left was wrong; trying again
        disk: 9.00 MiB in $SECONDS s
        "#,
    );
    assert_eq!(ranges(&image, &server), ["all", "bytes=6291456-", "all"]);
    assert_blobs_are_right(&sandbox);
}

#[test]
fn a_pull_that_waits_goes_on_where_the_killed_one_stopped() {
    let sandbox = Sandbox::new();
    let (image, server, reference) = stalling(&sandbox);
    let pull = format!("pull -q --arch amd64 {reference}");
    let first = start_stalled(&sandbox, &image, &pull);
    let second = start(&sandbox, &pull);
    wait_until("the second reads the manifest", || {
        server.count("/v2/os/manifests/1") == 2
    });
    assert_eq!(ranges(&image, &server), ["all"]);
    kill(first);
    check(&finish(&sandbox, second).text(), "sha256:<manifest>");
    assert_eq!(ranges(&image, &server), ["all", "bytes=6291456-"]);
    assert_blobs_are_right(&sandbox);
}
