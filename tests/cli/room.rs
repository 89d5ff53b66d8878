//! `image prune`: what goes, what stays, and who may work meanwhile.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use ironboot::oci::Digest;

use crate::image::{Image, disk, disk_only, initramfs, kernel, single};
use crate::sandbox::{Output, Sandbox, check};

#[track_caller]
fn done(sandbox: &Sandbox, line: &str) {
    drop(done_aloud(sandbox, line));
}

#[track_caller]
fn done_aloud(sandbox: &Sandbox, line: &str) -> Output {
    let output = sandbox.run(line);
    assert_eq!(output.status, 0, "{line}: {}", output.text());
    output
}

/// Makes a record look as if it was used last so many days ago.
fn used(path: &Path, days: u64) {
    let file = fs::File::options().append(true).open(path).unwrap();
    let at = SystemTime::now() - Duration::from_secs(days * 24 * 60 * 60);
    file.set_modified(at).unwrap();
}

#[test]
fn a_dry_run_says_what_prune_removes_and_touches_nothing() {
    let sandbox = Sandbox::new();
    check(
        &sandbox.run("image prune --dry-run").text(),
        "nothing freed: there is no store at $TMP/store",
    );
    assert!(!sandbox.store().exists());
    check(
        &sandbox.run("image prune").text(),
        "nothing freed: there is no store at $TMP/store",
    );
    assert!(!sandbox.store().exists());

    let (old, young) = (disk_only(&disk("old")), disk_only(&disk("young")));
    let references = [&old, &young].map(|image| sandbox.layout(image));
    for reference in &references {
        done(&sandbox, &format!("pull -q --arch amd64 {reference}"));
    }
    let records = sandbox.names("refs");
    let of_old = records.iter().find(|name| {
        let record = fs::read_to_string(sandbox.store().join("refs").join(name));
        record.unwrap().contains(&references[0])
    });
    used(&sandbox.store().join("refs").join(of_old.unwrap()), 31);
    let orphan = sandbox.store().join("blobs/sha256").join("e".repeat(64));
    fs::write(&orphan, vec![1; 4096]).unwrap();
    sandbox.mask(&"e".repeat(64), "<orphan>");
    fs::write(sandbox.store().join("tmp/removed-x"), "").unwrap();

    let tree = sandbox.tree();
    let line = "image prune --older-than 30d";
    let said = sandbox.run(format!("{line} --dry-run --json")).json();
    assert_eq!(sandbox.tree(), tree);
    let words = sandbox.run(format!("{line} --dry-run")).text();
    assert_eq!(sandbox.tree(), tree);
    let mut done = sandbox.run(format!("{line} --json")).json();
    assert_eq!(done["dry_run"].take(), false);
    done["dry_run"] = true.into();
    assert_eq!(done, said);

    let removed: BTreeSet<(String, String)> = done["removed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| {
            let word = |key: &str| item[key].as_str().unwrap().to_owned();
            assert!(words.contains(&word("name")), "{words}");
            (word("kind"), word("name"))
        })
        .collect();
    // The two share their config, which stays.
    let expected = [
        ("image", "oci:$LAYOUT:1"),
        ("blob", "sha256:<orphan>"),
        ("blob", "sha256:<top>"),
        ("blob", "sha256:<manifest>"),
        ("blob", "sha256:<disk>"),
        ("leftover", "removed-x"),
    ];
    let expected = expected.map(|(kind, name)| (kind.to_owned(), name.to_owned()));
    assert_eq!(removed, BTreeSet::from(expected));
    let freed = done["removed"].as_array().unwrap().iter();
    let freed: u64 = freed
        .map(|item| item["freed_bytes"].as_u64().unwrap())
        .sum();
    assert_eq!(done["freed_bytes"], freed);
    assert!(!orphan.exists());
    for name in ["top", "manifest", "disk", "config"] {
        assert!(has(&sandbox, &young, name), "{name}");
    }
    assert_eq!(sandbox.names("refs").len(), 1);
    // Used meanwhile, by a pull that finds it all there.
    let record = sandbox.store().join("refs").join(&sandbox.names("refs")[0]);
    used(&record, 31);
    assert_eq!(
        sandbox
            .run(format!("pull -q --arch amd64 {}", references[1]))
            .status,
        0
    );
    let removed = sandbox.run(format!("{line} --json")).json()["removed"].take();
    assert_eq!(removed, serde_json::json!([]));
}

fn has(sandbox: &Sandbox, image: &Image, name: &str) -> bool {
    let digest = image.digest(name).replace(':', "/");
    sandbox.store().join("blobs").join(digest).exists()
}

#[test]
fn an_image_that_an_instance_needs_is_kept_whatever_room_is_wanted() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("needed"));
    let reference = sandbox.layout(&image);
    let other = sandbox.layout(&disk_only(&disk("other")));
    done(
        &sandbox,
        &format!("prepare -q --name vm --arch amd64 --accel tcg {reference}"),
    );
    done(&sandbox, &format!("pull -q --arch amd64 {other}"));
    // Its record alone is enough.
    fs::remove_file(sandbox.store().join("pins/vm.json")).unwrap();
    done(&sandbox, "image prune --older-than 0s --keep-bytes 0");
    assert_eq!(sandbox.names("refs").len(), 1);
    for name in ["top", "manifest", "disk"] {
        assert!(has(&sandbox, &image, name), "{name}");
    }
    done(&sandbox, "rm vm");
    done(&sandbox, "image prune --keep-bytes 0");
    assert_eq!(sandbox.names("refs"), Vec::<String>::new());
    assert_eq!(sandbox.names("blobs/sha256"), Vec::<String>::new());
}

#[test]
fn no_blob_goes_while_a_hypervisor_of_an_instance_can_not_be_asked() {
    let sandbox = Sandbox::new();
    let [needed, other] = ["needed", "other"].map(|name| sandbox.layout(&disk_only(&disk(name))));
    done(
        &sandbox,
        &format!("prepare -q --name vm --arch amd64 --accel tcg {needed}"),
    );
    done(&sandbox, &format!("pull -q --arch amd64 {other}"));
    let record = sandbox.store().join("instances/vm/record.json");
    let text = fs::read_to_string(&record).unwrap();
    let elsewhere = text.replace(r#""hypervisor": null"#, r#""hypervisor": "xen:///gone""#);
    assert_ne!(elsewhere, text);
    fs::write(&record, &elsewhere).unwrap();
    fs::write(sandbox.store().join("tmp/removed-x"), "").unwrap();
    let blobs = sandbox.names("blobs/sha256");
    let warning = "warning: no blob is removed, a domain may need it: only qemu:///system and \
                   qemu:///session are supported, not: xen:///gone\n";
    let pruned = done_aloud(&sandbox, "image prune --keep-bytes 0");
    assert_eq!(pruned.stderr, warning);
    assert_eq!(sandbox.names("tmp"), Vec::<String>::new());
    let removed = done_aloud(&sandbox, &format!("image rm --json {other}"));
    assert_eq!(removed.stderr, warning);
    assert_eq!(removed.json()["removed"][0]["freed_bytes"], 0);
    assert_eq!(sandbox.names("blobs/sha256"), blobs);
    fs::write(&record, &text).unwrap();
    done(&sandbox, "image prune");
    assert!(sandbox.names("blobs/sha256").len() < blobs.len());
}

/// Row 142.
#[test]
fn no_blob_is_lost_beside_a_prune() {
    const ROUNDS: usize = 8;
    let sandbox = Sandbox::new();
    // They share kernel and initramfs: what one frees another has just found.
    let images = ["one", "two", "three"].map(|name| {
        let layers: [(&str, &str, &[u8]); 3] = [
            ("disk", "rootfs", &disk(name)),
            ("kernel", "kernel", &kernel("amd64")),
            ("initramfs", "initramfs", &initramfs()),
        ];
        single(r#"{"commandLine":"quiet"}"#, &layers)
    });
    let references = images.each_ref().map(|image| sandbox.layout(image));
    let busy = AtomicUsize::new(images.len());
    let pruned = AtomicUsize::new(0);
    thread::scope(|scope| {
        for (number, (image, reference)) in images.iter().zip(&references).enumerate() {
            let (sandbox, busy) = (&sandbox, &busy);
            scope.spawn(move || {
                let name = format!("vm-{number}");
                // However it ends, the others are not waited for in vain.
                let _end = Counted(busy);
                for round in 0..ROUNDS {
                    let is_prepared = round % 2 == 1;
                    let verb = if is_prepared {
                        format!("prepare --accel tcg --name {name}")
                    } else {
                        "pull --all".to_owned()
                    };
                    done(sandbox, &format!("{verb} -q --arch amd64 {reference}"));
                    for blob in ["top", "manifest", "config", "kernel", "initramfs"] {
                        assert!(has(sandbox, image, blob), "{blob} in round {round}");
                    }
                    assert!(is_prepared || has(sandbox, image, "disk"), "round {round}");
                    if is_prepared {
                        done(sandbox, &format!("rm {name}"));
                    }
                    done(sandbox, &format!("image rm {reference}"));
                }
            });
        }
        scope.spawn(|| {
            while busy.load(Ordering::SeqCst) > 0 {
                done(&sandbox, "image prune");
                pruned.fetch_add(1, Ordering::SeqCst);
            }
        });
    });
    assert!(pruned.load(Ordering::SeqCst) > 1);
    for name in sandbox.names("blobs/sha256") {
        let content = fs::read(sandbox.store().join("blobs/sha256").join(&name)).unwrap();
        assert_eq!(Digest::of(&content).hex(), name);
    }
    for directory in ["blobs/sha256", "refs", "pins", "leases", "ingest"] {
        assert_eq!(sandbox.names(directory), Vec::<String>::new());
    }
}

/// Counts down when it is dropped.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
