//! What is fetched again after a kill, and partials that are not what they were.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use crate::desk::{Desk, wait_until};
use crate::image::disk;
use crate::judge::{judge, partial};
use crate::shop::{Content, Pace, Shop, digest_of};
use crate::stock::{self, Stocked, pull};

/// Bytes of the disk: more than twice what may be lost at a kill, and too few for several
/// connections, which would be more requests.
const DISK: u64 = 20 << 20;
/// What may be fetched again after a kill.
const CHUNK: u64 = 8 << 20;

/// An image whose disk a pull has half of, and was killed then.
struct Half {
    shop: Shop,
    desk: Desk,
    image: Stocked,
    /// Digest of the disk.
    disk: String,
    pull: String,
}

impl Half {
    fn new() -> Self {
        let (shop, desk) = (Shop::open(), Desk::new());
        let image = stock::direct(&shop, 1, DISK, 64 << 10, 64 << 10);
        shop.tag("1", &image.index);
        let disk = image.digests().swap_remove(0);
        let half = Self {
            pull: pull(&shop, "1"),
            shop,
            desk,
            image,
            disk,
        };
        half.kill_at(DISK / 2);
        half
    }

    /// Pulls until `offset` of the disk has been served and written, and kills the pull.
    fn kill_at(&self, offset: u64) {
        self.shop.set(Pace {
            stops_at: Some(offset),
            ..Pace::default()
        });
        let mut child = self.desk.start(&self.pull);
        wait_until("half of the disk is there", || {
            let length = fs::metadata(self.data()).map_or(0, |data| data.len());
            length + CHUNK / 2 >= offset && self.shop.bytes(&self.disk) >= offset
        });
        child.kill().unwrap();
        child.wait().unwrap();
        self.shop.set(Pace::default());
        judge(self.desk.store(), "after the kill");
    }

    fn data(&self) -> PathBuf {
        partial(self.desk.store(), &self.disk)
    }

    fn open(&self) -> fs::File {
        let data = OpenOptions::new().write(true).open(self.data());
        data.unwrap()
    }

    /// Pulls to the end. Returns how many requests for the disk and how many of its bytes it took.
    #[track_caller]
    fn finish(&self) -> (u64, u64) {
        self.shop.forget();
        self.desk.done(&self.pull);
        let found = self.desk.at_rest("after the next pull");
        assert_eq!(found.references.len(), 1);
        assert!(
            self.image
                .digests()
                .iter()
                .all(|layer| found.blobs.contains(layer))
        );
        (self.shop.requests(&self.disk), self.shop.bytes(&self.disk))
    }
}

#[test]
fn a_pull_killed_at_half_fetches_the_other_half() {
    let half = Half::new();
    let (requests, bytes) = half.finish();
    assert_eq!(requests, 1);
    assert!(bytes <= DISK / 2 + CHUNK, "{bytes} bytes of {DISK}");
}

#[test]
fn a_pull_killed_before_its_last_byte_fetches_next_to_nothing() {
    let half = Half::new();
    half.kill_at(DISK - 1);
    let (_, bytes) = half.finish();
    assert!(bytes <= CHUNK, "{bytes} bytes of {DISK}");
}

#[test]
fn a_registry_that_knows_no_ranges_is_asked_once_for_everything() {
    let half = Half::new();
    half.shop.set(Pace {
        ignores_ranges: true,
        ..Pace::default()
    });
    assert_eq!(half.finish(), (1, DISK));
}

#[test]
fn a_partial_of_which_a_bit_is_wrong_is_fetched_anew_once() {
    let half = Half::new();
    let length = half.data().metadata().unwrap().len();
    let mut byte = [0];
    let data = fs::File::open(half.data()).unwrap();
    data.read_exact_at(&mut byte, length / 2).unwrap();
    half.open()
        .write_all_at(&[byte[0] ^ 1], length / 2)
        .unwrap();
    let (requests, bytes) = half.finish();
    // The other half, and then everything.
    assert_eq!(requests, 2);
    assert!(bytes <= DISK / 2 + CHUNK + DISK, "{bytes} bytes of {DISK}");
}

/// What a power cut may leave of a file whose blocks had not been written: its length, and zeros.
#[test]
fn a_partial_that_a_power_cut_has_emptied_is_fetched_anew_once() {
    let half = Half::new();
    let length = half.data().metadata().unwrap().len();
    let data = half.open();
    data.set_len(length / 2).unwrap();
    data.set_len(length).unwrap();
    assert_eq!(half.finish().0, 2);
}

#[test]
fn a_whole_partial_of_zeros_is_fetched_anew_once() {
    let half = Half::new();
    let data = half.open();
    data.set_len(0).unwrap();
    data.set_len(DISK).unwrap();
    assert_eq!(half.finish(), (1, DISK));
}

#[test]
fn a_whole_partial_that_is_right_is_not_fetched_at_all() {
    let half = Half::new();
    // As one that was killed between its last byte and the rename.
    half.desk.done(&half.pull);
    let blob = half.disk.replace(':', "/");
    let blob = half.desk.store().join("blobs").join(blob);
    fs::create_dir(half.data().parent().unwrap()).unwrap();
    fs::rename(blob, half.data()).unwrap();
    assert_eq!(half.finish(), (0, 0));
}

/// Zeros are not written but left out; what was there before must not show in their place.
#[test]
fn noise_at_the_end_of_a_partial_does_not_show_where_zeros_belong() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let image = stock::direct(&shop, 1, 64 << 10, 64 << 10, 64 << 10);
    let disk = Content::noise(7, 8 << 20)
        .sparse(64)
        .with_head(&disk("amd64"));
    let mut left = vec![0; 3 << 20];
    disk.read(0, &mut left);
    left.extend_from_slice(&[0xff; 300_000]);
    let disk = shop.blob(image.layers[0]["mediaType"].as_str().unwrap(), disk);
    let data = partial(desk.store(), digest_of(&disk));
    shop.tag("1", &image.with_disk(disk, &shop).index);
    fs::create_dir_all(data.parent().unwrap()).unwrap();
    fs::write(data, left).unwrap();
    desk.done(&pull(&shop, "1"));
    desk.at_rest("after the pull");
}

#[test]
fn a_partial_longer_than_its_blob_is_fetched_anew_once() {
    let half = Half::new();
    half.open().set_len(DISK + 1).unwrap();
    assert_eq!(half.finish(), (1, DISK));
}

/// A commit makes its file read-only before it gives it its name. Whoever is killed in between leaves
/// a file that only root may open for writing as it is.
#[test]
fn a_partial_that_is_read_only_already_is_finished_without_root() {
    let (shop, desk) = (Shop::open(), Desk::for_nobody());
    let image = stock::direct(&shop, 1, 2 << 20, 64 << 10, 64 << 10);
    shop.tag("1", &image.index);
    let pull = pull(&shop, "1");
    let path = partial(desk.store(), &image.digests()[0]);
    let path = path.display().to_string();
    let kill = ["strace", "-f", "-qq", "-o", "/dev/null", "-P", &path, "-e"];
    let at_rename = ["trace=renameat2", "-e", "inject=renameat2:signal=KILL"];
    let output = desk.run_as_nobody(&[&kill[..], &at_rename].concat(), &pull);
    assert_eq!(output.signal, Some(9), "{output:#?}");
    judge(desk.store(), "after the kill");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o444);
    shop.forget();
    let output = desk.run_as_nobody(&[], &pull);
    assert_eq!(output.status, Some(0), "{output:#?}");
    desk.at_rest("after the next pull");
    assert_eq!(image.requests(&shop)[0], 0);
}
