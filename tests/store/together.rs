//! Many processes at once on one store: each byte comes once, and nothing that somebody needs goes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Child;
use std::thread;

use crate::desk::{Desk, finish, rounds, wait_until};
use crate::judge::partial;
use crate::shop::{Pace, Shop, digest_of};
use crate::stock::{self, Stocked, pull};

const MANY: usize = 16;
/// Bytes that may be lost with a process that is killed.
const CHUNK: u64 = 8 << 20;

#[track_caller]
fn all_succeed(children: Vec<Child>) {
    for child in children {
        let output = finish(child);
        assert_eq!(output.status, Some(0), "{output:#?}");
    }
}

/// The process that fetches the blob `digest`: it holds the lock.
fn holder(desk: &Desk, digest: &str) -> Option<u32> {
    let lock = partial(desk.store(), digest).with_file_name("lock");
    let inode = fs::metadata(lock).ok()?.ino().to_string();
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().find_map(|line| {
        // 1: FLOCK  ADVISORY  WRITE 123 fe:00:456 0 EOF
        let words: Vec<&str> = line.split_whitespace().collect();
        let is_held = words.get(1) == Some(&"FLOCK");
        let (_, of) = words.get(5)?.rsplit_once(':')?;
        (is_held && of == inode).then(|| words[4].parse().ok())?
    })
}

#[test]
fn sixteen_pulls_of_one_image_ask_for_each_blob_once() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let image = stock::direct(&shop, 1, 12 << 20, 8 << 20, 4 << 20);
    shop.tag("1", &image.index);
    // Nobody is done before everybody has begun.
    shop.set(Pace {
        stops_at: Some(1 << 20),
        ..Pace::default()
    });
    let pull = pull(&shop, "1");
    let children: Vec<Child> = (0..MANY).map(|_| desk.start(&pull)).collect();
    wait_until("all have begun", || {
        crate::judge::names(&desk.store().join("leases")).len() == MANY
    });
    shop.set(Pace::default());
    all_succeed(children);
    assert_eq!(image.requests(&shop), [1, 1, 1]);
    assert_eq!(image.served(&shop), image.size());
    desk.at_rest("after all");
}

#[test]
fn when_the_one_that_fetches_is_killed_another_goes_on_where_it_stopped() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let image = stock::direct(&shop, 1, 20 << 20, 64 << 10, 64 << 10);
    shop.tag("1", &image.index);
    let disk = &image.digests()[0];
    let half = 10 << 20;
    shop.set(Pace {
        stops_at: Some(half),
        ..Pace::default()
    });
    let pull = pull(&shop, "1");
    let mut children: Vec<Child> = (0..MANY).map(|_| desk.start(&pull)).collect();
    let data = partial(desk.store(), disk);
    wait_until("half of the disk is there", || {
        let length = fs::metadata(&data).map_or(0, |data| data.len());
        length + CHUNK / 2 >= half && shop.bytes(disk) >= half
    });
    let holder = holder(&desk, disk).expect("somebody fetches it");
    let victim = children.iter().position(|child| child.id() == holder);
    let mut victim = children.swap_remove(victim.expect("it is one of ours"));
    victim.kill().unwrap();
    victim.wait().unwrap();
    shop.set(Pace::default());
    all_succeed(children);
    assert_eq!(shop.requests(disk), 2);
    let served = image.served(&shop);
    assert!(
        served <= image.size() + CHUNK,
        "{served} bytes of {}",
        image.size()
    );
    // The lease of the one that was killed is left to the next.
    desk.done(&pull);
    desk.at_rest("after all");
}

/// Each of eight keeps pulling and removing an image of its own, all of which share layers.
#[test]
fn removals_take_nothing_from_pulls_of_images_that_share_layers() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let bases = [1, 2].map(|seed| stock::direct(&shop, seed, 2 << 20, 1 << 20, 64 << 10));
    let images: Vec<(String, Stocked)> = (0..8)
        .map(|number| {
            // Two and two have the same disk; all of a base have the same kernel.
            let disk = stock::direct(&shop, 10 + number / 2, 2 << 20, 64 << 10, 64 << 10);
            let base = &bases[usize::try_from(number % 2).unwrap()];
            let image = base.with_disk(disk.layers[0].clone(), &shop);
            let tag = format!("of-{number}");
            shop.tag(&tag, &image.index);
            (tag, image)
        })
        .collect();
    let remove = |tag: &str| format!("image rm {}", shop.reference(tag));
    thread::scope(|scope| {
        for (tag, image) in &images {
            let (shop, desk) = (&shop, &desk);
            scope.spawn(move || {
                for round in 0..rounds(2) {
                    desk.done(&pull(shop, tag));
                    for descriptor in image.layers.iter().chain([&image.index]) {
                        let blob = digest_of(descriptor).replace(':', "/");
                        let blob = desk.store().join("blobs").join(blob);
                        let size = fs::metadata(&blob).map(|blob| blob.len()).ok();
                        assert_eq!(size, descriptor["size"].as_u64(), "{tag}, round {round}");
                    }
                    desk.done(&remove(tag));
                }
            });
        }
    });
    for (tag, _) in &images {
        desk.done(&pull(&shop, tag));
    }
    let found = desk.at_rest("with all images");
    assert_eq!(found.references.len(), images.len());
    for (tag, _) in &images {
        desk.done(&remove(tag));
    }
    let found = desk.at_rest("with none");
    assert!(found.blobs.is_empty(), "{found:?}");
}
