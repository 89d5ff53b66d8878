//! Disks that would harm the host, and what becomes of a qcow2 image that does not: rows 76 to 111
//! of `tests/rows.md` by the program. All files of the table are judged in `tests/disks`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::corpus::honest::{controls, gpt_disk};
use crate::corpus::hostile;
use crate::image::disk_only;
use crate::refusal::{assert_empty_store, refused};
use crate::sandbox::{Output, Sandbox};

#[track_caller]
fn done(sandbox: &Sandbox, line: &str) -> Output {
    let output = sandbox.run(line);
    assert_eq!(output.status, 0, "{line}: {}", output.text());
    output
}

/// Those whose names have one of these beginnings.
fn hostile_of(beginnings: &[&str]) -> Vec<crate::corpus::Hostile> {
    let mut disks = hostile();
    disks.retain(|disk| beginnings.iter().any(|word| disk.name.starts_with(word)));
    assert!(disks.len() >= beginnings.len());
    disks
}

#[test]
fn a_disk_that_would_do_harm_is_unsafe_and_nothing_of_it_stays() {
    for disk in hostile_of(&[
        "backing-abs",
        "data-abs",
        "crypt-2",
        "l2-refcounts",
        "comp-reuse",
        "comp-bad",
        "zstd-window",
        "trunc-4",
        "raw-is-qcow2",
        "vmdk-after-newlines",
        "qcow1",
        "iso-qcow2",
        "qcow2-mbr",
        "gpt-vhd",
    ]) {
        let sandbox = Sandbox::new();
        let hint = if disk.words.starts_with("could be read as") {
            "its publisher has to make one that is one thing only, with zeros where nothing is meant \
             to be"
        } else {
            "its publisher makes a safe disk of it by `qemu-img convert -O raw`, or by `-O qcow2` \
             without options"
        };
        let expected = format!(
            "\n        ------- stderr -------\n        error: disk sha256:<disk> {}\n        \
             hint: {hint}\n        [exit status: 125]\n        ",
            disk.words
        );
        let image = sandbox.layout(&disk_only(&disk.content));
        refused(&sandbox, &image, "unsafe-image", &expected);
    }
}

/// Rows 77 to 81, 84 and 104: what an image names is neither opened nor connected to, nor waited
/// for, and neither is it when the image is looked at once more.
#[test]
fn what_a_disk_names_is_never_opened() {
    let sandbox = Sandbox::new();
    let fifo = sandbox.path("home/fifo");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    for disk in hostile_of(&["backing-", "data-", "vmdk"]) {
        let image = sandbox.layout(&disk_only(&disk.content));
        let log = sandbox.path("strace");
        let mut command = Command::new("strace");
        let program = sandbox.command(format!("pull -q --arch amd64 {image}"));
        command
            .args([
                "-f",
                "-qq",
                "-s",
                "4096",
                "-e",
                "trace=%file,%network",
                "-o",
            ])
            .arg(&log);
        let output = sandbox.finish(sandbox.under(command, &program));
        assert_eq!(output.status, 125, "{}: {}", disk.name, output.text());
        assert_empty_store(&sandbox);
        let calls = fs::read_to_string(&log).unwrap();
        let is_named = |line: &&str| {
            [
                "passwd", "fifo", "fat:", "json:", "10809", "/etc\"", "AF_INET",
            ]
            .iter()
            .any(|word| line.contains(word))
        };
        let named: Vec<&str> = calls.lines().filter(is_named).collect();
        assert_eq!(named, Vec::<&str>::new(), "{}", disk.name);
        fs::remove_dir_all(sandbox.store()).unwrap();
    }
}

/// The raw bytes that were made of the disk of an image.
fn raw(sandbox: &Sandbox) -> PathBuf {
    let names = sandbox.names("derived");
    let [name] = names.as_slice() else {
        panic!("{names:?}");
    };
    sandbox.store().join("derived").join(name).join("raw")
}

fn qcow2_image(sandbox: &Sandbox, name: &str) -> String {
    let made = sandbox.path("made");
    fs::create_dir_all(&made).unwrap();
    let all = controls(&made);
    let (_, path, _) = all.iter().find(|(one, ..)| one == name).unwrap();
    let image = sandbox.layout(&disk_only(&fs::read(path).unwrap()));
    fs::remove_dir_all(made).unwrap();
    image
}

#[test]
fn every_honest_qcow2_becomes_a_raw_base_of_the_same_bytes() {
    let directory = tempfile::tempdir().unwrap();
    for (name, path, expected) in controls(directory.path()) {
        if path == expected || name == "q-ok-sparse" {
            continue;
        }
        let sandbox = Sandbox::new();
        let image = sandbox.layout(&disk_only(&fs::read(path).unwrap()));
        done(&sandbox, &format!("pull -q --arch amd64 {image}"));
        let raw = raw(&sandbox);
        assert!(
            fs::read(&raw).unwrap() == fs::read(expected).unwrap(),
            "{name}"
        );
        done(&sandbox, "image verify -q");
        let metadata = fs::metadata(raw).unwrap();
        assert_eq!(metadata.mode() & 0o7777, 0o444);
        assert!(metadata.blocks() * 512 <= 4 << 20, "{name}: not sparse");
        for directory in ["ingest", "tmp", "leases"] {
            assert_eq!(sandbox.names(directory), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn a_disk_of_a_tebibyte_with_nothing_on_it_takes_no_space_and_little_time() {
    let sandbox = Sandbox::new();
    // It does not boot; it is there beside a kernel.
    let made = sandbox.path("made");
    fs::create_dir_all(&made).unwrap();
    let disks = controls(&made);
    let (_, path, _) = disks
        .iter()
        .find(|(name, ..)| name == "q-ok-sparse")
        .unwrap();
    let mut image = crate::image::direct();
    image = crate::image::single(
        r#"{"commandLine":"quiet"}"#,
        &[
            ("disk", "rootfs", &fs::read(path).unwrap()),
            ("kernel", "kernel", image.bytes("kernel")),
            ("initramfs", "initramfs", image.bytes("initramfs")),
        ],
    );
    let image = sandbox.layout(&image);
    let began = std::time::Instant::now();
    done(&sandbox, &format!("pull -q --arch amd64 {image}"));
    done(&sandbox, "image verify -q");
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
    let metadata = fs::metadata(raw(&sandbox)).unwrap();
    assert_eq!(metadata.len(), 1 << 40);
    assert!(metadata.blocks() * 512 <= 1 << 20);
}

#[test]
fn qemu_is_given_the_raw_bytes_and_never_the_image() {
    let sandbox = Sandbox::new();
    let image = qcow2_image(&sandbox, "q-ok-zstd");
    let prepare = format!("prepare --json -q --name vm --arch amd64 --accel tcg {image}");
    let prepared = done(&sandbox, &prepare).json();
    let disk = &prepared["staged"]["disks"][0];
    let base = sandbox.shown(&raw(&sandbox).display().to_string());
    assert_eq!(disk["backing_file"], base);
    assert_eq!(disk["backing_format"], "raw");
    let overlay = sandbox.store().join("instances/vm/disk-0.qcow2");
    let information = |arguments: &[&str]| {
        let output = Command::new("qemu-img")
            .args(arguments)
            .args(["--output=json", "-f", "qcow2"])
            .arg(&overlay)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let check = information(&["check"]);
    assert_eq!(check["check-errors"], 0, "{check}");
    assert!(check.get("leaks").is_none() && check.get("corruptions").is_none());
    let chain = information(&["info", "--backing-chain"]);
    assert_eq!(chain.as_array().unwrap().len(), 2);
    assert_eq!(chain[0]["backing-filename-format"], "raw");
    assert_eq!(chain[1]["format"], "raw");
    assert_eq!(chain[1]["virtual-size"], 8 << 20);
    // The same again is the same instance.
    assert_eq!(
        done(&sandbox, &prepare).json()["staged"],
        prepared["staged"]
    );
}

#[test]
fn a_dry_run_unpacks_nothing() {
    let sandbox = Sandbox::new();
    let image = qcow2_image(&sandbox, "q-ok-v3");
    for line in [
        "plan -q --arch amd64",
        "run --dry-run -q --arch amd64 --accel tcg",
    ] {
        done(&sandbox, &format!("{line} {image}"));
        assert!(!sandbox.store().join("derived").exists(), "{line}");
    }
    done(&sandbox, &format!("pull -q --arch amd64 {image}"));
    fs::remove_dir_all(raw(&sandbox).parent().unwrap()).unwrap();
    let before = sandbox.tree();
    let run = "run --dry-run -q --arch amd64 --accel tcg";
    let output = done(&sandbox, &format!("{run} {image}"));
    assert!(
        output.stdout.contains("/derived/sha256-<disk>/raw"),
        "{}",
        output.text()
    );
    assert_eq!(sandbox.tree(), before);
}

#[test]
fn what_was_made_of_a_disk_goes_with_it_and_no_sooner() {
    let sandbox = Sandbox::new();
    let image = qcow2_image(&sandbox, "q-ok-v3");
    let pull = format!("pull -q --arch amd64 {image}");
    done(&sandbox, &pull);
    let raw = raw(&sandbox);
    let listed = done(&sandbox, "image list --json").json();
    let bytes = listed["images"][0]["size_bytes"].as_u64().unwrap();
    let own = fs::metadata(&raw).unwrap().blocks() * 512;
    assert!(bytes > own && own > 1 << 20, "{listed}");
    done(
        &sandbox,
        &format!("prepare -q --name vm --arch amd64 --accel tcg {image}"),
    );
    done(&sandbox, "image prune -q");
    assert!(raw.exists());
    done(&sandbox, "rm vm");
    done(&sandbox, "image prune -q");
    assert!(raw.exists(), "its image is still there");
    done(&sandbox, &format!("image rm {image}"));
    assert_empty_store(&sandbox);
    assert_eq!(sandbox.names("derived"), Vec::<String>::new());
    // What somebody left who was killed is nobody's.
    done(&sandbox, &pull);
    let derived = raw.parent().unwrap();
    let left = sandbox.store().join("ingest").join(format!(
        "raw-{}",
        derived.file_name().unwrap().to_str().unwrap()
    ));
    fs::create_dir(&left).unwrap();
    fs::rename(derived, left.join("made")).unwrap();
    fs::write(left.join("lock"), "").unwrap();
    let pruned = done(&sandbox, "image prune --json -q").json();
    assert_eq!(pruned["removed"][0]["kind"], "partial", "{pruned}");
    assert_eq!(sandbox.names("ingest"), Vec::<String>::new());
    done(&sandbox, &pull);
    assert!(raw.exists());
}

#[test]
fn what_was_made_of_a_disk_is_verified_and_made_again() {
    let sandbox = Sandbox::new();
    let image = qcow2_image(&sandbox, "q-ok-deflate");
    done(
        &sandbox,
        &format!("prepare -q --name vm --arch amd64 --accel tcg {image}"),
    );
    let raw = raw(&sandbox);
    let directory = raw.parent().unwrap();
    let expected = fs::read(&raw).unwrap();
    let problem = |output: &Output| {
        let json = output.json();
        let findings = json["findings"].as_array().unwrap().clone();
        assert_eq!(findings.len(), 1, "{json}");
        let word = |key: &str| findings[0][key].to_string();
        (word("problem"), word("repaired"), word("users"))
    };
    let write = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
    };
    let damages: [(&str, &dyn Fn()); 6] = [
        ("has other content", &|| {
            write(&raw, &|bytes| bytes[1 << 20] ^= 1);
        }),
        // Where there was a hole.
        ("has other content", &|| {
            write(&raw, &|bytes| bytes[2 << 20] = 1);
        }),
        ("and should have 8388608", &|| {
            write(&raw, &|bytes| bytes.truncate(1 << 20));
        }),
        ("should have 0444", &|| {
            fs::set_permissions(&raw, fs::Permissions::from_mode(0o666)).unwrap();
        }),
        ("is damaged", &|| {
            fs::remove_file(directory.join("record.json")).unwrap();
        }),
        ("is missing", &|| fs::remove_dir_all(directory).unwrap()),
    ];
    for (words, damage) in damages {
        damage();
        let told = sandbox.run("image verify -q --json");
        let (found, ..) = problem(&told);
        assert!(found.contains(words), "{words}: {found}");
        let repaired = done(&sandbox, "image verify -q --json --repair");
        let (_, repaired, users) = problem(&repaired);
        assert_eq!(repaired, "true", "{words}");
        assert!(users.contains("vm"), "{words}: {users}");
        assert!(fs::read(&raw).unwrap() == expected, "{words}");
        done(&sandbox, "image verify -q");
    }
    // Whoever can change it may have done so: no VM is made of it.
    fs::set_permissions(&raw, fs::Permissions::from_mode(0o666)).unwrap();
    let other = format!("prepare -q --json --name other --arch amd64 --accel tcg {image}");
    let refused = sandbox.run(other);
    assert_eq!(refused.status, 125, "{}", refused.text());
    assert_eq!(refused.json()["error"]["kind"], "store");
    assert!(refused.text().contains("is writable"), "{}", refused.text());
}

/// Row 111: a guest that writes the header of a qcow2 image onto its disk has written data.
#[test]
fn what_a_guest_writes_onto_its_disk_is_no_format() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&disk_only(&gpt_disk()));
    done(
        &sandbox,
        &format!("prepare -q --name vm --arch amd64 --accel tcg {image}"),
    );
    let overlay = sandbox.store().join("instances/vm/disk-0.qcow2");
    let header = hostile_of(&["raw-is-qcow2"]).remove(0).content;
    let written = sandbox.path("written");
    fs::write(&written, &header[..0x1_0000]).unwrap();
    // As the guest does: through the overlay, from its first sector on.
    let output = Command::new("qemu-io")
        .args(["-f", "qcow2", "-c"])
        .arg(format!("write -s {} 0 64k", written.display()))
        .arg(&overlay)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let listed = done(&sandbox, "list --json").json();
    assert_eq!(listed["instances"][0]["name"], "vm", "{listed}");
    let again = format!("prepare -q --json --name vm --arch amd64 --accel tcg {image}");
    let disks = done(&sandbox, &again).json()["staged"]["disks"].clone();
    let formats: BTreeSet<&str> = ["format", "backing_format"]
        .iter()
        .map(|key| disks[0][key].as_str().unwrap())
        .collect();
    assert_eq!(formats, BTreeSet::from(["qcow2", "raw"]));
    let chain = Command::new("qemu-img")
        .args(["info", "--backing-chain", "--output=json", "-f", "qcow2"])
        .arg(&overlay)
        .output()
        .unwrap();
    let chain = String::from_utf8(chain.stdout).unwrap();
    assert!(!chain.contains("passwd"), "{chain}");
}
