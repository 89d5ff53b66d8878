//! Power cuts: a file system of the test's own ends at any instant, with all that it had not
//! written, and is mounted anew.

use std::thread;
use std::time::Duration;

use crate::desk::{Desk, Dice, finish, rounds};
use crate::judge::judge;
use crate::mounts::Mounts;
use crate::shop::{Pace, Shop, digest_of};
use crate::stock::{self, pull};

/// Ends a file system as a power cut does: what is in memory only is lost, the journal too.
/// This is `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`.
const CUT: &str = r#"perl -e 'open my $d, "<", $ARGV[0] or die $!; my $how = pack "L", 2; ioctl $d, 0x8004587d, $how or die $!'"#;

#[test]
fn a_power_cut_at_any_instant_leaves_a_right_store_and_whatever_was_said_to_be_done() {
    let shop = Shop::open();
    let image = stock::direct(&shop, 1, 12 << 20, 8 << 20, 4 << 20);
    shop.tag("1", &image.index);
    let pull = pull(&shop, "1");
    let remove = format!("image rm {}", shop.reference("1"));
    let place = tempfile::tempdir().unwrap();
    let (device, disk) = (place.path().join("device"), place.path().join("disk"));
    let (device, disk_name) = (device.display(), disk.display());
    let mut mounts = Mounts::new();
    mounts.run(&format!(
        "mkdir {disk_name} && truncate -s 256M {device} && mkfs.ext4 -q -F {device}"
    ));
    let mut dice = Dice::of("power cuts");
    for round in 0..rounds(8) {
        // The second is what is more careless with what was not synced.
        let mode = ["ordered", "writeback"][round % 2];
        let mount = format!("mount -o loop,data={mode} {device} {disk_name}");
        mounts.run(&mount);
        let desk = Desk::with_store(mounts.path(&disk).join("store"));
        shop.set(Pace {
            bytes_per_second: Some(20 << 20),
            ..Pace::default()
        });
        // 12 MiB take 0.6 s, and then there is more to do.
        let after = match round {
            0 => Duration::from_millis(200),
            _ => dice.instant(Duration::from_millis(1000)),
        };
        let when = format!("round {round}, data={mode}, cut after {after:?}");
        let child = desk.start(&pull);
        thread::sleep(after);
        mounts.run(&format!("{CUT} {disk_name}"));
        let output = finish(child);
        let is_done = output.status == Some(0);
        assert!(!is_done || round > 0, "{when}: nothing was cut");
        assert!(is_done || output.status == Some(125), "{when}: {output:#?}");
        mounts.run(&format!("umount {disk_name}"));
        mounts.run(&mount);
        let found = judge(desk.store(), &when);
        if is_done {
            let (_, leads_to) = found.references.first().expect(&when);
            assert_eq!(leads_to, digest_of(&image.index), "{when}");
        }
        shop.set(Pace::default());
        desk.done(&pull);
        desk.at_rest(&when);
        if dice.below(4) > 0 {
            desk.done(&remove);
        }
        mounts.run(&format!("umount {disk_name}"));
    }
}
