//! What is not there: space, inodes, the right to write, the right to large files and to memory.

use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use crate::desk::{Desk, Output, finish, is_torture, wait_until};
use crate::judge::{judge, partial};
use crate::mounts::Mounts;
use crate::shop::{Content, Pace, Shop, digest_of};
use crate::stock::{self, Stocked, pull};

/// A store on a file system of its own.
struct Small {
    mounts: Mounts,
    place: TempDir,
    desk: Desk,
}

impl Small {
    /// With the options of a tmpfs.
    fn new(options: &str) -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut mounts = Mounts::new();
        let name = place.path().display();
        mounts.run(&format!("mount -t tmpfs -o {options} tmpfs {name}"));
        let desk = Desk::with_store(mounts.path(place.path()).join("store"));
        Self {
            mounts,
            place,
            desk,
        }
    }

    /// An ext4 of so many MiB, in which a directory takes space as well.
    fn ext4(mebibytes: u64) -> Self {
        let mut small = Self::new("size=1G");
        let device = small.place.path().join("device");
        let disk = small.place.path().join("disk");
        let (device, name) = (device.display(), disk.display());
        small.mounts.run(&format!(
            "mkdir {name} && truncate -s {mebibytes}M {device} && mkfs.ext4 -q -F {device} && \
             mount -o loop {device} {name}"
        ));
        let store = small.path("disk/store");
        Self {
            desk: Desk::with_store(store),
            ..small
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.mounts.path(self.place.path()).join(name)
    }

    fn remount(&mut self, options: &str) {
        let name = self.place.path().display();
        self.mounts
            .run(&format!("mount -o remount,{options} {name}"));
    }
}

/// An image of three layers of 12, 8 and 4 MiB.
fn image(shop: &Shop) -> (Stocked, String) {
    let image = stock::direct(shop, 1, 12 << 20, 8 << 20, 4 << 20);
    shop.tag("1", &image.index);
    (image, pull(shop, "1"))
}

#[track_caller]
fn assert_no_space(output: &Output) {
    assert_eq!(output.status, Some(125), "{output:#?}");
    assert_eq!(output.kind(), "no-space", "{output:#?}");
}

#[test]
fn what_does_not_fit_is_told_before_a_byte_of_it_is_asked_for() {
    let shop = Shop::open();
    let (image, pull) = image(&shop);
    let mut small = Small::new("size=20M");
    assert_no_space(&small.desk.run(&pull));
    assert_eq!(image.requests(&shop), [0, 0, 0]);
    small.desk.at_rest("when it did not fit");
    small.remount("size=40M");
    small.desk.done(&pull);
    small.desk.at_rest("when it fitted");
}

#[test]
fn space_that_others_take_meanwhile_is_told_and_none_of_it_is_kept() {
    let shop = Shop::open();
    let (image, pull) = image(&shop);
    let small = Small::ext4(64);
    shop.set(Pace {
        stops_at: Some(2 << 20),
        ..Pace::default()
    });
    let child = small.desk.start(&pull);
    let store = small.desk.store();
    wait_until("all layers have begun", || {
        let digests = image.digests();
        let mut partials = digests.iter().map(|digest| partial(store, digest));
        partials.all(|data| data.metadata().is_ok_and(|data| data.len() > 0))
    });
    let filler = small.path("disk/filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    // Until nothing more goes in.
    std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
    shop.set(Pace::default());
    assert_no_space(&finish(child));
    let found = judge(store, "when the disk was full");
    assert_eq!((found.blobs.len(), found.partials), (0, vec![]));
    // It is told again, and again nothing is asked for.
    shop.forget();
    drop(file);
    assert_no_space(&small.desk.run(&pull));
    assert_eq!(image.requests(&shop), [0, 0, 0]);
    std::fs::remove_file(filler).unwrap();
    small.desk.done(&pull);
    small.desk.at_rest("when there was space again");
}

#[test]
fn inodes_that_run_out_at_any_file_are_told() {
    let shop = Shop::open();
    let (_image, pull) = image(&shop);
    let mut inodes = 2;
    loop {
        let mut small = Small::new(&format!("nr_inodes={inodes}"));
        let output = small.desk.run(&pull);
        let when = format!("{inodes} inodes");
        if output.status == Some(0) {
            small.desk.at_rest(&when);
            break;
        }
        assert_no_space(&output);
        let found = judge(small.desk.store(), &when);
        assert_eq!(found.partials, [], "{when}");
        small.remount("nr_inodes=1000");
        small.desk.done(&pull);
        small.desk.at_rest(&when);
        inodes += if is_torture() { 1 } else { 6 };
    }
    assert!(inodes > 10, "{inodes} inodes were enough");
}

#[test]
fn of_a_store_that_is_read_only_what_is_there_is_used() {
    let shop = Shop::open();
    let (image, pull) = image(&shop);
    let mut small = Small::new("size=100M");
    small.desk.done(&pull);
    let other = stock::direct(&shop, 2, 1 << 20, 1 << 20, 64 << 10);
    shop.tag("2", &other.index);
    small.remount("ro");
    let output = small.desk.run(&stock::pull(&shop, "2"));
    assert_eq!(output.status, Some(125), "{output:#?}");
    assert_eq!(output.kind(), "store", "{output:#?}");
    assert!(
        output.stdout.contains("Read-only file system"),
        "{output:#?}"
    );
    assert_eq!(other.requests(&shop), [0, 0, 0]);
    let list = small.desk.done("image list --json");
    assert!(list.stdout.contains(digest_of(&image.index)), "{list:#?}");
    shop.forget();
    let words = format!("--arch amd64 --boot direct {}", shop.reference("1"));
    small.desk.done(&format!("plan {words}"));
    small
        .desk
        .done(&format!("run --dry-run --accel tcg {words}"));
    assert_eq!(image.requests(&shop), [0, 0, 0]);
    judge(small.desk.store(), "read-only");
}

#[test]
fn a_limit_of_file_sizes_is_told_like_a_full_disk() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let (_image, pull) = image(&shop);
    let limit = format!("--fsize={}", 9 << 20);
    assert_no_space(&desk.run_under(&["prlimit", &limit], &pull));
    judge(desk.store(), "with limited files");
    desk.done(&pull);
    desk.at_rest("without limit");
}

#[test]
fn a_blob_larger_than_the_memory_is_pulled() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let image = stock::direct(&shop, 1, 1 << 20, 64 << 10, 64 << 10);
    // Of which 20 MiB are not zeros.
    let disk = Content::noise(9, 5 << 28).sparse(64);
    let disk: Value = shop.blob(image.layers[0]["mediaType"].as_str().unwrap(), disk);
    let image = image.with_disk(disk, &shop);
    shop.tag("1", &image.index);
    let limit = format!("--as={}", 1 << 30);
    let output = desk.run_under(&["prlimit", &limit], &pull(&shop, "1"));
    assert_eq!(output.status, Some(0), "{output:#?}");
    desk.at_rest("with limited memory");
}
