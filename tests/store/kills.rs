//! SIGKILL at any instant: nothing is cleaned up, and nothing is wrong.

use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use crate::desk::{Desk, Dice, finish, rounds};
use crate::judge::{Found, judge};
use crate::shop::{Pace, Shop, digest_of};
use crate::stock::{self, Stocked, pull};

/// So slow that a kill finds all layers on their way.
const SLOW: Pace = Pace {
    bytes_per_second: Some(40 << 20),
    delay: Duration::from_millis(2),
    ignores_ranges: false,
    stops_at: None,
};

/// What the shop may still count for a client that was killed before, and blocks that were not full.
const UNDERWAY: u64 = 6 << 20;

/// An image of three layers of 12, 8 and 4 MiB.
fn image(shop: &Shop, seed: u64) -> Stocked {
    stock::direct(shop, seed, 12 << 20, 8 << 20, 4 << 20)
}

/// How long the program takes for `line`.
fn time(desk: &Desk, line: &str) -> Duration {
    let began = Instant::now();
    desk.done(line);
    began.elapsed()
}

/// Kills a process after a while, in which it may have ended.
fn kill(mut child: Child, after: Duration) {
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Bytes that the store has of `image`, finished or not.
fn kept(found: &Found, image: &Stocked) -> u64 {
    let layers = image.layers.iter().map(|layer| {
        let digest = digest_of(layer);
        let mut partials = found.partials.iter();
        match partials.find(|(partial, _)| partial == digest) {
            _ if found.blobs.contains(digest) => layer["size"].as_u64().unwrap(),
            Some((_, size)) => *size,
            None => 0,
        }
    });
    layers.sum()
}

#[track_caller]
fn assert_leads_to(found: &Found, image: &Stocked, when: &str) {
    let digest = digest_of(&image.index);
    let leads_to: Vec<&str> = found.references.iter().map(|(_, to)| to.as_str()).collect();
    assert_eq!(leads_to, [digest], "{when}");
}

#[test]
fn a_pull_killed_at_any_instant_leaves_a_right_store_and_the_next_goes_on() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let image = image(&shop, 1);
    shop.tag("1", &image.index);
    let (pull, remove) = (
        pull(&shop, "1"),
        format!("image rm {}", shop.reference("1")),
    );
    let mut dice = Dice::of("kills in a pull");
    shop.set(SLOW);
    let duration = time(&desk, &pull);
    desk.done(&remove);
    for round in 0..rounds(25) {
        let after = dice.instant(duration);
        let when = format!("round {round}, killed after {after:?}");
        shop.set(SLOW);
        kill(desk.start(&pull), after);
        let kept = kept(&judge(desk.store(), &when), &image);
        shop.set(Pace::default());
        shop.forget();
        desk.done(&pull);
        assert_leads_to(&desk.at_rest(&when), &image, &when);
        let served = image.served(&shop);
        assert!(
            served <= image.size() - kept + UNDERWAY,
            "{when}: {kept} bytes were there and {served} were fetched"
        );
        desk.done(&remove);
        let found = desk.at_rest(&when);
        assert!(found.blobs.is_empty(), "{when}: {found:?}");
    }
}

#[test]
fn a_pull_killed_again_and_again_comes_to_its_end() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let image = image(&shop, 1);
    shop.tag("1", &image.index);
    let pull = pull(&shop, "1");
    shop.set(SLOW);
    let mut dice = Dice::of("kills again and again");
    let mut duration = time(&Desk::new(), &pull);
    let (mut kills, mut before) = (0, 0);
    loop {
        // Each has time for a part of it only.
        kill(desk.start(&pull), duration / 3 + dice.instant(duration / 3));
        kills += 1;
        let found = judge(desk.store(), "between kills");
        if !found.references.is_empty() {
            break;
        }
        let kept = kept(&found, &image);
        assert!(kept >= before && kills < 100, "{kept} bytes after {before}");
        if kept == before {
            // The machine is busier than it was when this began.
            duration += duration / 10;
        }
        before = kept;
    }
    desk.done(&pull);
    assert_leads_to(&desk.at_rest("at the end"), &image, "at the end");
}

#[test]
fn a_removal_killed_at_any_instant_leaves_a_right_store() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let image = image(&shop, 1);
    shop.tag("1", &image.index);
    let (pull, remove) = (
        pull(&shop, "1"),
        format!("image rm {}", shop.reference("1")),
    );
    let mut dice = Dice::of("kills in a removal");
    desk.done(&pull);
    let duration = time(&desk, &remove);
    for round in 0..rounds(4) {
        desk.done(&pull);
        let after = dice.instant(duration);
        let when = format!("round {round}, killed after {after:?}");
        kill(desk.start(&remove), after);
        judge(desk.store(), &when);
        desk.done(&pull);
        assert_leads_to(&desk.at_rest(&when), &image, &when);
    }
    desk.done(&remove);
    let found = desk.at_rest("at the end");
    assert!(found.blobs.is_empty(), "{found:?}");
}

#[test]
fn a_moved_tag_leads_to_the_old_or_to_the_new_image_whenever_its_pull_is_killed() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let images = [image(&shop, 1), image(&shop, 2)];
    let pull = pull(&shop, "1");
    let mut dice = Dice::of("kills in the pull of a moved tag");
    shop.set(SLOW);
    shop.tag("1", &images[0].index);
    let duration = time(&desk, &pull);
    for round in 0..rounds(4) {
        let [old, new] = [&images[round % 2], &images[(round + 1) % 2]];
        let after = dice.instant(duration);
        let when = format!("round {round}, killed after {after:?}");
        shop.tag("1", &new.index);
        shop.set(SLOW);
        kill(desk.start(&pull), after);
        let found = judge(desk.store(), &when);
        let (_, leads_to) = &found.references[0];
        let may_be = [digest_of(&old.index), digest_of(&new.index)];
        assert!(may_be.contains(&leads_to.as_str()), "{when}: {leads_to}");
        shop.set(Pace::default());
        desk.done(&pull);
        assert_leads_to(&desk.at_rest(&when), new, &when);
    }
}

#[test]
fn of_four_pulls_of_one_image_one_is_killed_and_three_succeed() {
    let (shop, desk) = (Shop::open(), Desk::new());
    let image = image(&shop, 1);
    shop.tag("1", &image.index);
    let (pull, remove) = (
        pull(&shop, "1"),
        format!("image rm {}", shop.reference("1")),
    );
    let mut dice = Dice::of("kills among four");
    shop.set(SLOW);
    let duration = time(&desk, &pull);
    desk.done(&remove);
    for round in 0..rounds(3) {
        shop.forget();
        let mut children: Vec<Child> = (0..4).map(|_| desk.start(&pull)).collect();
        let victim = children.swap_remove(usize::try_from(dice.below(4)).unwrap());
        let after = dice.instant(duration);
        let when = format!("round {round}, one killed after {after:?}");
        kill(victim, after);
        judge(desk.store(), &when);
        for child in children {
            let output = finish(child);
            assert_eq!(output.status, Some(0), "{when}: {output:#?}");
        }
        // Once by the one that was killed, once for the rest: no partial was wrong.
        let requests = image.requests(&shop);
        assert!(
            requests.iter().all(|count| *count <= 2),
            "{when}: {requests:?}"
        );
        // The lease of the one that was killed last is left to the next.
        desk.done(&pull);
        assert_leads_to(&desk.at_rest(&when), &image, &when);
        desk.done(&remove);
    }
}
