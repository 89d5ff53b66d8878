//! Rows 73 and 124 to 132 of the hostile table, where what was done to the store meets whoever uses
//! it: told, and nobody boots it. What `image verify` finds and mends is in `damage`.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::image::{direct, disk, disk_only, kernel, single};
use crate::sandbox::{Sandbox, check};
use crate::ukis::uki;

/// Longer than a refusal takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Rows 124, 126 to 128 and 132: who makes a VM of a blob looks at it before.
#[test]
fn a_vm_is_not_made_of_a_blob_that_was_changed() {
    type Damage = (&'static str, fn(&Path));
    let mut damages: Vec<Damage> = vec![
        ("not a plain file", |path| {
            fs::remove_file(path).unwrap();
            symlink("/etc/passwd", path).unwrap();
        }),
        ("not a plain file", |path| {
            fs::remove_file(path).unwrap();
            mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o444), 0).unwrap();
        }),
        ("not a plain file", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
        ("writable", |path| {
            fs::set_permissions(path, Permissions::from_mode(0o666)).unwrap();
        }),
        ("not of its size", |path| {
            fs::remove_file(path).unwrap();
            fs::write(path, "short").unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
        }),
    ];
    if rustix::process::geteuid().is_root() {
        damages.push(("somebody else's", |path| {
            std::os::unix::fs::chown(path, Some(64055), None).unwrap();
        }));
    }
    let sandbox = Sandbox::new();
    let image = direct();
    let reference = sandbox.layout(&image);
    for name in ["disk", "kernel", "initramfs", "squashfs"] {
        for (what, damage) in &damages {
            let pulled = sandbox.run(format!("pull -q --arch amd64 {reference}"));
            assert_eq!(pulled.status, 0, "{}", pulled.text());
            let digest = image.digest(name).strip_prefix("sha256:").unwrap();
            damage(&sandbox.store().join("blobs/sha256").join(digest));
            let options = "-q --arch amd64 --accel tcg --name vm --pull never";
            let begun = Instant::now();
            let refused = sandbox.run(format!("prepare --json {options} {reference}"));
            assert!(begun.elapsed() < PATIENCE);
            let text = refused.text();
            assert_eq!(refused.status, 125, "{name}: {text}");
            assert_eq!(refused.json()["error"]["kind"], "store", "{name}: {text}");
            assert!(
                text.contains(&format!("in the store is {what}: ")),
                "{name}: {text}"
            );
            assert!(text.contains("image verify --repair"), "{name}: {text}");
            assert_eq!(sandbox.names("instances"), Vec::<String>::new());
            let mended = sandbox.run("image verify -q --repair");
            assert_eq!(mended.status, 0, "{name}: {}", mended.text());
        }
    }
    let made = sandbox.run(format!(
        "prepare -q --arch amd64 --accel tcg --name vm {reference}"
    ));
    assert_eq!(made.status, 0, "{}", made.text());
}

/// Row 73: no more bytes under the name of a blob, but others. Its hash is looked at where it is
/// verified; a record that is unlike it, never taken for it.
#[test]
fn a_blob_that_was_put_there_before_is_taken_by_its_digest_alone() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("1"));
    let reference = sandbox.layout(&image);
    let blobs = sandbox.store().join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let path = blobs.join(image.digest("disk").strip_prefix("sha256:").unwrap());
    fs::write(&path, disk("2")).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o444)).unwrap();
    let pulled = sandbox.run(format!("pull -q --arch amd64 {reference}"));
    assert_eq!(pulled.status, 0, "{}", pulled.text());
    assert_eq!(sandbox.run("image verify -q").status, 125);
    assert_eq!(sandbox.run("image verify -q --repair").status, 0);
    assert_eq!(fs::read(&path).unwrap(), disk("1"));
}

/// Row 129.
#[test]
fn a_record_of_garbage_costs_no_blob() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("1"));
    let reference = sandbox.layout(&image);
    assert_eq!(
        sandbox
            .run(format!("pull -q --arch amd64 {reference}"))
            .status,
        0
    );
    let record = sandbox.store().join("refs").join(&sandbox.names("refs")[0]);
    let blobs = sandbox.names("blobs/sha256");
    let whole = fs::read_to_string(&record).unwrap();
    let twice = whole.replacen('{', r#"{"reference": "r.example/os:1", "#, 1);
    for damaged in ["{", "", "[]", "\u{feff}{}", &twice] {
        fs::write(&record, damaged).unwrap();
        for line in ["image prune -q", "image list"] {
            sandbox.run(line);
        }
        assert_eq!(sandbox.names("blobs/sha256"), blobs, "{damaged}");
        let listed = sandbox.run("image list --json");
        assert_eq!(listed.status, 125, "{damaged}: {}", listed.text());
        assert_eq!(listed.json()["error"]["kind"], "store", "{}", listed.text());
    }
    fs::write(&record, whole).unwrap();
    assert_eq!(sandbox.run("image verify -q").status, 0);
}

/// Row 130: whoever may write to the store swaps a blob for a link to a secret, and back. What is
/// copied out of it is the blob's or nothing.
#[test]
fn a_blob_that_is_swapped_for_a_link_while_it_is_copied_gives_nothing_away() {
    let sandbox = Sandbox::new();
    let content = uki(
        "amd64",
        &[(".linux", &kernel("amd64")), (".cmdline", b"quiet")],
    );
    let image = single("{}", &[("uki", "uki", &content)]);
    let reference = sandbox.layout(&image);
    assert_eq!(
        sandbox
            .run(format!("pull -q --arch amd64 {reference}"))
            .status,
        0
    );
    let secret = sandbox.path("secret");
    fs::write(&secret, vec![b'!'; content.len()]).unwrap();
    let digest = image.digest("uki").strip_prefix("sha256:").unwrap();
    let blob = sandbox.store().join("blobs/sha256").join(digest);
    let (link, kept) = (sandbox.path("link"), sandbox.path("kept"));
    fs::copy(&blob, &kept).unwrap();
    let is_done = AtomicBool::new(false);
    let mut made = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rounds = 0_u64;
            while !is_done.load(Ordering::Relaxed) {
                symlink(&secret, &link).unwrap();
                fs::rename(&link, &blob).unwrap();
                fs::copy(&kept, &link).unwrap();
                fs::set_permissions(&link, Permissions::from_mode(0o444)).unwrap();
                fs::rename(&link, &blob).unwrap();
                // Mostly it is what it should be, or nobody would get far enough.
                rounds += 1;
                thread::sleep(Duration::from_micros(200 * (rounds % 20)));
            }
        });
        for number in 0..60 {
            let options = "-q --arch amd64 --accel tcg --uki extract --pull never";
            let output = sandbox.run(format!("prepare {options} --name vm{number} {reference}"));
            let kernel = sandbox.store().join(format!("instances/vm{number}/kernel"));
            if output.status == 0 {
                made += 1;
                let kernel = fs::read(kernel).unwrap();
                assert!(kernel.starts_with(b"kkkk") && !kernel.contains(&b'!'));
            } else {
                assert!(!kernel.exists());
                assert_eq!(output.status, 125, "{}", output.text());
            }
        }
        is_done.store(true, Ordering::Relaxed);
    });
    assert!(made > 0);
    assert_eq!(fs::read(&secret).unwrap(), vec![b'!'; content.len()]);
}

/// Row 131.
#[test]
fn a_store_that_everybody_can_replace_is_not_used() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("1"));
    let reference = sandbox.layout(&image);
    let open = sandbox.path("open");
    fs::create_dir_all(open.join("mine")).unwrap();
    let store = open.join("mine/store");
    let pull = || {
        let mut command = sandbox.command(format!("pull -q --arch amd64 {reference}"));
        command.env("IRONBOOT_STORE", &store);
        sandbox.finish(command)
    };
    for mode in [0o777, 0o757] {
        fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
        check(
            &pull().text(),
            r#"
            ------- stderr -------
            error: the store can be replaced by everybody who may write to $TMP/open
            hint: close it with `chmod o-w $TMP/open`, or choose another place with --store
            [exit status: 125]
            "#,
        );
        assert!(!store.join("blobs").exists());
    }
    // As /tmp is; and a group's is that group's own affair.
    for mode in [0o1777, 0o775] {
        fs::set_permissions(&open, Permissions::from_mode(mode)).unwrap();
        assert_eq!(pull().status, 0, "{mode:o}");
    }
}

/// Rows 124 and 131, for the store's own directories.
#[test]
fn a_directory_of_the_stores_that_is_no_longer_its_own_is_not_used() {
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(&disk_only(&disk("1")));
    let pull = || sandbox.run(format!("pull -q --json --arch amd64 {reference}"));
    assert_eq!(pull().status, 0);
    let elsewhere = sandbox.path("elsewhere");
    for name in ["blobs", "blobs/sha256", "derived", "refs", "instances"] {
        let directory = sandbox.store().join(name);
        let refused = |what: &str| {
            let output = pull();
            assert_eq!(output.status, 125, "{name}: {}", output.text());
            let error = &output.json()["error"];
            assert_eq!(error["kind"], "store");
            let expected = format!("the store's directory $TMP/store/{name} is {what}");
            assert_eq!(error["message"], expected);
        };
        for mode in [0o777, 0o731] {
            fs::set_permissions(&directory, Permissions::from_mode(mode)).unwrap();
            refused("one that others may write to");
        }
        fs::set_permissions(&directory, Permissions::from_mode(0o711)).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&directory, Some(64055), None).unwrap();
            refused("somebody else's");
            std::os::unix::fs::chown(&directory, Some(0), None).unwrap();
        }
        fs::rename(&directory, &elsewhere).unwrap();
        symlink(&elsewhere, &directory).unwrap();
        refused("not a directory");
        fs::remove_file(&directory).unwrap();
        fs::rename(&elsewhere, &directory).unwrap();
        assert_eq!(pull().status, 0);
    }
}
