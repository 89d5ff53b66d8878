//! `image verify`: what may have happened to a store, and how it becomes right again.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ironboot::oci::Digest;
use ironboot::store::Store;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

use crate::hostile::Reply;
use crate::image::{Image, disk, disk_only};
use crate::sandbox::{Output, Sandbox, check};

#[track_caller]
fn done(sandbox: &Sandbox, line: &str) -> Output {
    let output = sandbox.run(line);
    assert_eq!(output.status, 0, "{line}: {}", output.text());
    output
}

fn blob(sandbox: &Sandbox, image: &Image, name: &str) -> PathBuf {
    let digest = image.digest(name).replace(':', "/");
    sandbox.store().join("blobs").join(digest)
}

/// Problem, and whether it was repaired, of each finding.
fn findings(output: &Output) -> Vec<(String, bool)> {
    let json = output.json();
    let findings = json["findings"].as_array().unwrap().iter();
    findings
        .map(|finding| {
            let problem = finding["problem"].as_str().unwrap().to_owned();
            (problem, finding["repaired"] == true)
        })
        .collect()
}

#[track_caller]
fn assert_clean(sandbox: &Sandbox) {
    let output = done(sandbox, "image verify -q --json");
    assert_eq!(findings(&output), [], "{}", output.text());
}

/// Changes the bytes of a read-only file in place.
fn write(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn a_store_that_is_not_there_is_not_told_to_be_well() {
    let sandbox = Sandbox::new();
    let expected = r#"
        ------- stderr -------
        error: there is no store at $TMP/store
        hint: check --store and IRONBOOT_STORE; the first `ironboot pull` makes one
        [exit status: 125]
        "#;
    let verbs = [
        "image verify",
        "image verify --repair",
        "image verify r.example/os:1",
    ];
    for line in verbs {
        check(&sandbox.run(line).text(), expected);
    }
    // Nothing is removed of what never was, and nothing is wrong with that.
    check(
        &done(&sandbox, "image prune").text(),
        "nothing freed: there is no store at $TMP/store",
    );
    check(
        &done(&sandbox, "image list").text(),
        "IMAGE  DIGEST  SIZE  FOR",
    );
    assert!(!sandbox.store().exists());
    // A directory of something else is none either.
    fs::create_dir_all(sandbox.store().join("other")).unwrap();
    for line in verbs {
        check(&sandbox.run(line).text(), expected);
    }
    let json = sandbox.run("image verify --json").json();
    assert_eq!(json["error"]["kind"], "not-found");
    assert_eq!(sandbox.tree().len(), 1);
}

#[test]
fn a_store_that_is_as_it_should_be_is_told_in_one_line() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&disk_only(&disk("1")));
    done(&sandbox, &format!("pull -q --arch amd64 {image}"));
    let tree = sandbox.tree();
    for line in ["image verify", &format!("image verify {image}")] {
        let text = done(&sandbox, line).text();
        let start = "all is as it should be: 4 blobs, 64.67 KiB at ";
        assert!(text.starts_with(start), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
    }
    let json = done(&sandbox, "image verify --json").json();
    assert_eq!(
        (&json["checked"], &json["bytes"]),
        (&4.into(), &66227.into())
    );
    assert_eq!(sandbox.tree(), tree);
    let other = format!("{image}-other");
    let error = sandbox.run(format!("image verify --json {other}")).json();
    assert_eq!(error["error"]["kind"], "not-found");
}

/// Rows 124 to 128 and 132.
#[test]
fn whatever_was_done_to_a_blob_is_found_and_mended() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("1"));
    let layout = sandbox.layout(&image);
    let (server, registry) = sandbox.serve(&image);
    let other = sandbox.path("other");
    fs::write(&other, "what is not ours").unwrap();
    let disk = image.bytes("disk").to_vec();
    let mut flipped = disk.clone();
    flipped[40_000] ^= 1;
    let longer = [&disk[..], b"x"].concat();
    let path = blob(&sandbox, &image, "disk");
    type Damage<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let put = |make: fn(&Path, &Path)| {
        let (path, other) = (path.clone(), other.clone());
        Box::new(move || {
            fs::remove_file(&path).unwrap();
            make(&path, &other);
        })
    };
    let mut damages: Vec<Damage<'_>> = vec![
        ("has other content", Box::new(|| write(&path, &flipped))),
        (
            "has 65535 bytes, and should have 65536",
            Box::new(|| write(&path, &disk[1..])),
        ),
        (
            "has 65537 bytes, and should have 65536",
            Box::new(|| write(&path, &longer)),
        ),
        ("is missing", put(|_, _| ())),
        (
            "is a symbolic link",
            put(|path, other| symlink(other, path).unwrap()),
        ),
        (
            "is a pipe",
            put(|path, _| {
                mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o444), 0).unwrap();
            }),
        ),
        (
            "is a directory",
            put(|path, _| fs::create_dir_all(path.join("in it")).unwrap()),
        ),
        (
            "has mode 0666, and should have 0444",
            Box::new(|| fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap()),
        ),
        (
            "has 2 names",
            Box::new(|| {
                let link = sandbox.path("link");
                drop(fs::remove_file(&link));
                fs::hard_link(&path, link).unwrap();
            }),
        ),
    ];
    if rustix::process::geteuid().is_root() {
        damages.push((
            "belongs to user 64055",
            Box::new(|| chown(&path, Some(64055), None).unwrap()),
        ));
    }
    for reference in [layout, registry] {
        done(&sandbox, &format!("pull -q --arch amd64 {reference}"));
        let own = fs::metadata(&path).unwrap().uid();
        for (problem, damage) in &damages {
            damage();
            let found = sandbox.run("image verify -q --json");
            assert_eq!(found.status, 125);
            assert_eq!(findings(&found), [((*problem).to_owned(), false)]);
            let error = &found.json()["error"];
            assert_eq!(error["kind"], "integrity");
            let hint = "`ironboot image verify --repair` mends the store";
            assert_eq!(error["hint"], hint);

            let before = server.requests().len();
            let mended = done(&sandbox, "image verify -q --repair --json");
            assert_eq!(findings(&mended), [((*problem).to_owned(), true)]);
            assert_clean(&sandbox);
            let metadata = fs::symlink_metadata(&path).unwrap();
            assert_eq!((metadata.mode() & 0o7777, metadata.uid()), (0o444, own));
            assert_eq!(fs::read(&path).unwrap(), disk);
            // What is only in the wrong file is copied.
            let is_copied = ["has mode", "has 2", "belongs"];
            let is_copied = is_copied.iter().any(|start| problem.starts_with(start));
            let is_asked = server.requests().len() > before;
            let is_of_registry = !reference.starts_with("oci:");
            assert_eq!(is_asked, is_of_registry && !is_copied, "{problem}");
        }
        done(&sandbox, &format!("image rm {reference}"));
    }
    assert_eq!(fs::read(&other).unwrap(), b"what is not ours");
    assert_eq!(sandbox.names("tmp"), Vec::<String>::new());
    assert_eq!(sandbox.names("damaged"), Vec::<String>::new());
}

#[test]
fn documents_are_mended_though_their_tag_has_moved_on() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("1"));
    let is_gone = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&is_gone);
    let server = image.serve_except(move |request, _| {
        let is_tag = request.path == "/v2/os/manifests/1";
        (is_tag && gone.load(Ordering::SeqCst)).then(|| Reply::status(404))
    });
    let (_server, reference) = sandbox.at(&image, server);
    done(&sandbox, &format!("pull -q --arch amd64 {reference}"));
    is_gone.store(true, Ordering::SeqCst);
    for name in ["top", "manifest", "config"] {
        write(&blob(&sandbox, &image, name), b"x");
    }
    let mended = done(&sandbox, "image verify -q --repair --json");
    assert_eq!(findings(&mended).len(), 3);
    assert_clean(&sandbox);
}

#[test]
fn a_wrong_blob_that_nobody_needs_is_only_removed() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&disk_only(&disk("1")));
    done(&sandbox, &format!("pull -q --arch amd64 {image}"));
    let orphan = sandbox.store().join("blobs/sha256").join("e".repeat(64));
    fs::write(&orphan, "x").unwrap();
    sandbox.mask(&"e".repeat(64), "<orphan>");
    sandbox.mask(&"e".repeat(12), "<orphan>");
    let text = sandbox.run("image verify").text();
    let (table, summary) = text.split_once("1 not as it should be").unwrap();
    check(
        table,
        r#"
        BLOB  PROBLEM  REPAIRED  PATH
        <orphan>  has other content  no  $TMP/store/blobs/sha256/<orphan>
        "#,
    );
    let (_, error) = summary.split_once("stderr -------\n").unwrap();
    check(
        error,
        r#"
        error: not all in the store is as it should be: 1 thing is not
        hint: `ironboot image verify --repair` mends the store
        [exit status: 125]
        "#,
    );
    done(&sandbox, "image verify -q --repair");
    assert!(!orphan.exists());
    assert_clean(&sandbox);
}

#[test]
fn a_wrong_blob_that_a_process_needs_is_kept() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&disk_only(&disk("1")));
    done(&sandbox, &format!("pull -q --arch amd64 {image}"));
    let name = "e".repeat(64);
    fs::write(sandbox.store().join("blobs/sha256").join(&name), "x").unwrap();
    let digest: Digest = format!("sha256:{name}").parse().unwrap();
    let lease = Store::at(sandbox.store()).lease([digest]).unwrap();
    let lost = sandbox.run("image verify -q --repair --json");
    assert_eq!(lost.status, 125);
    let problem = "has other content".to_owned();
    assert_eq!(findings(&lost), [(problem, false)]);
    assert_eq!(sandbox.names("damaged"), [name]);
    drop(lease);
}

#[test]
fn a_repair_waits_for_another_and_leaves_what_that_has_mended() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("1"));
    let layout = sandbox.layout(&image);
    done(&sandbox, &format!("pull -q --arch amd64 {layout}"));
    let path = blob(&sandbox, &image, "disk");
    let whole = fs::read(&path).unwrap();
    write(&path, b"x");
    let other = Store::at(sandbox.store()).lock_repairs().unwrap();
    let inode = fs::metadata(sandbox.store().join("repair.lock")).unwrap();
    let inode = format!(":{} ", inode.ino());
    let mut command = sandbox.command("image verify -q --repair --json");
    let mending = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Its line in the kernel's list has an arrow, beside the one of whoever holds the lock.
    let is_waiting = || {
        let locks = fs::read_to_string("/proc/locks").unwrap();
        let mut locks = locks.lines().filter(|line| line.contains(&inode));
        locks.any(|line| line.contains("->"))
    };
    let began = Instant::now();
    while !is_waiting() {
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "it does not wait"
        );
        thread::yield_now();
    }
    write(&path, &whole);
    let before = fs::metadata(&path).unwrap().ino();
    drop(other);
    let mended = sandbox.masked(&mending.wait_with_output().unwrap());
    assert_eq!((mended.status, findings(&mended)), (0, Vec::new()));
    assert_eq!(fs::metadata(&path).unwrap().ino(), before);
}

#[test]
fn a_vm_whose_blob_is_replaced_is_named_and_one_whose_blob_is_lost_too() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("1"));
    let layout = sandbox.layout(&image);
    let line = format!("prepare -q --name vm --arch amd64 --accel tcg {layout}");
    done(&sandbox, &line);
    let path = blob(&sandbox, &image, "disk");
    write(&path, b"x");
    let mended = done(&sandbox, "image verify -q --repair");
    let words = "vm uses blob <disk>, which has changed under it: start it anew";
    assert!(mended.stdout.contains(words), "{}", mended.text());

    // No reference names it any more, but the instance knows where it came from.
    for record in sandbox.names("refs") {
        fs::remove_file(sandbox.store().join("refs").join(record)).unwrap();
    }
    done(&sandbox, "image prune");
    write(&path, b"x");
    let mended = done(&sandbox, "image verify -q --repair --json");
    assert_eq!(mended.json()["findings"][0]["users"][0], "vm");
    assert_clean(&sandbox);

    let directory = layout.strip_prefix("oci:").unwrap();
    fs::remove_dir_all(directory.strip_suffix(":1").unwrap()).unwrap();
    write(&path, b"x");
    let lost = sandbox.run("image verify -q --repair --json");
    assert_eq!(lost.status, 125);
    let json = lost.json();
    let finding = &json["findings"][0];
    assert_eq!(finding["repaired"], false);
    assert_ne!(finding["failure"], Value::Null);
    assert_eq!(json["error"]["hint"], Value::Null);
    // Not in its place, and not gone.
    assert!(!path.exists());
    assert_eq!(sandbox.names("damaged").len(), 1);
    let missing = sandbox.run("image verify -q --json");
    assert_eq!(findings(&missing), [("is missing".to_owned(), false)]);
}

/// Row 129.
#[test]
fn damaged_records_are_written_anew_or_moved_away() {
    let sandbox = Sandbox::new();
    let (one, two) = (disk_only(&disk("1")), disk_only(&disk("2")));
    let references = [&one, &two].map(|image| sandbox.layout(image));
    for (number, reference) in references.iter().enumerate() {
        let line = format!("prepare -q --name vm{number} --arch amd64 --accel tcg {reference}");
        done(&sandbox, &line);
    }
    let store = sandbox.store();
    let first = store.join("refs").join(&sandbox.names("refs")[0]);
    let whole = fs::read(&first).unwrap();
    let pipe = |path: &Path| {
        fs::remove_file(path).unwrap();
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    };
    let export = "does not say what the references say";
    type Damage<'a> = (Vec<&'a str>, Box<dyn Fn() + 'a>);
    let damages: Vec<Damage<'_>> = vec![
        (
            vec![export],
            Box::new(|| fs::write(store.join("index.json"), "{}").unwrap()),
        ),
        (
            vec!["is damaged: EOF while parsing an object at line 1 column 1"],
            Box::new(|| fs::write(store.join("index.json"), "{").unwrap()),
        ),
        (
            vec!["is missing", "is a pipe"],
            Box::new(|| {
                fs::remove_file(store.join("oci-layout")).unwrap();
                pipe(&store.join("index.json"));
            }),
        ),
        (
            vec!["is missing, its instance is there"],
            Box::new(|| fs::remove_file(store.join("pins/vm0.json")).unwrap()),
        ),
        (
            vec!["is a pipe", "is damaged: its name is another's"],
            Box::new(|| {
                fs::copy(store.join("pins/vm1.json"), store.join("pins/vm2.json")).unwrap();
                pipe(&store.join("pins/vm0.json"));
            }),
        ),
        (
            vec!["has a name that is no digest"],
            Box::new(|| fs::write(store.join("blobs/sha256/notes"), "").unwrap()),
        ),
        (
            vec!["is damaged: expected value at line 1 column 1", export],
            Box::new(|| fs::write(&first, "garbage").unwrap()),
        ),
    ];
    for (problems, damage) in &damages {
        damage();
        let found = sandbox.run("image verify -q --json");
        assert_eq!(found.status, 125);
        let expected = |is_repaired: bool| -> Vec<(String, bool)> {
            let problems = problems.iter();
            problems
                .map(|problem| ((*problem).to_owned(), is_repaired))
                .collect()
        };
        assert_eq!(findings(&found), expected(false));
        let mended = done(&sandbox, "image verify -q --repair --json");
        assert_eq!(findings(&mended), expected(true));
        assert_clean(&sandbox);
    }
    // Its blobs stay, and so does what is left of it.
    assert!(blob(&sandbox, &one, "disk").exists() && blob(&sandbox, &two, "disk").exists());
    let name = first.file_name().unwrap().to_str().unwrap();
    assert!(sandbox.names("damaged").iter().any(|kept| kept == name));
    fs::write(&first, whole).unwrap();
    for reference in &references {
        done(&sandbox, &format!("pull -q --arch amd64 {reference}"));
    }
    assert_clean(&sandbox);
}

#[test]
fn what_stands_in_a_pulls_way_is_told_with_its_cure() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("1"));
    let reference = sandbox.layout(&image);
    let pull = format!("pull -q --arch amd64 {reference}");
    done(&sandbox, &pull);
    write(&blob(&sandbox, &image, "disk"), b"short");
    check(
        &sandbox.run(&pull).text(),
        r#"
        ------- stderr -------
        error: can not fetch the disk of oci:$LAYOUT:1
          caused by: blob sha256:<disk> in the store is not of its size: $TMP/store/blobs/sha256/<disk>
        hint: `ironboot image verify --repair` mends the store
        [exit status: 125]
        "#,
    );
    done(&sandbox, "image verify -q --repair");
    done(&sandbox, &pull);
    let content = fs::read(blob(&sandbox, &image, "disk")).unwrap();
    assert_eq!(Digest::of(&content).to_string(), image.digest("disk"));
}
