//! Consoles of real boots, whole and in pieces; `fixtures/README.md` says what made each.

use std::collections::BTreeSet;
use std::fs;

use proptest::prelude::*;

use crate::expect::{Event, Matcher, Script};

/// Name, the stages that it tells, and what becomes of waiting until the system is up.
const CONSOLES: &[(&str, &str, &str)] = &[
    ("direct-amd64", "kernel initramfs", "nothing"),
    ("direct-arm64", "kernel initramfs", "nothing"),
    ("direct-quiet-amd64", "kernel", "nothing"),
    ("direct-quiet-arm64", "kernel", "nothing"),
    ("root-disk-amd64", "kernel userspace", "nothing"),
    ("disk-uefi-amd64", "firmware loader kernel", "nothing"),
    (
        "disk-uefi-arm64",
        "firmware loader kernel initramfs",
        "nothing",
    ),
    ("uki-arm64", "firmware loader kernel", "nothing"),
    ("iso-uefi-amd64", "firmware loader kernel", "nothing"),
    ("disk-bios-amd64", "firmware loader kernel", "nothing"),
    ("grub-menu-amd64", "firmware loader kernel", "nothing"),
    ("shell-amd64", "", "nothing"),
    (
        "debian-amd64",
        "kernel initramfs userspace",
        "up: [  OK  ] Reached target multi-user.target - Multi-User System.",
    ),
    ("debian-quiet-amd64", "userspace", "up: debian login:"),
    (
        "dracut-systemd-amd64",
        "kernel initramfs userspace",
        "up: [  OK  ] Reached target multi-user.target - Multi-User System.",
    ),
    (
        "panic-init-ended-amd64",
        "kernel",
        "kernel-panic: [    4.068304] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
    ),
    (
        "panic-init-ended-arm64",
        "kernel initramfs",
        "kernel-panic: [    5.250999] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
    ),
    (
        "panic-sysrq-amd64",
        "kernel",
        "kernel-panic: [    3.098210] Kernel panic - not syncing: sysrq triggered crash",
    ),
    (
        "panic-init-missing-amd64",
        "kernel",
        "kernel-panic: [    2.973959] Kernel panic - not syncing: Requested init /bin/false failed (error -2).",
    ),
    (
        "panic-root-wrong-amd64",
        "kernel",
        "kernel-panic: [    2.358318] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
    ),
    (
        "panic-root-wrong-arm64",
        "kernel",
        "kernel-panic: [    2.291511] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
    ),
    (
        "panic-initramfs-broken-amd64",
        "kernel",
        "kernel-panic: [    2.719710] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
    ),
    (
        "panic-early-amd64",
        "kernel",
        "kernel-panic: [    0.004000] Kernel panic - not syncing: IO-APIC + timer doesn't work!  Boot with apic=debug and send a report.  Then try booting with the 'noapic' option.",
    ),
    (
        "oops-amd64",
        "kernel",
        "kernel-oops: [    6.040187] BUG: kernel NULL pointer dereference, address: 0000000000000010",
    ),
    (
        "oops-arm64",
        "kernel",
        "kernel-oops: [    3.847194] Internal error: Oops: 0000000086000006 [#1] SMP",
    ),
    (
        "memory-full-amd64",
        "kernel",
        "out-of-memory: [    5.376598] Kernel panic - not syncing: System is deadlocked on memory",
    ),
    (
        "memory-small-amd64",
        "kernel",
        "out-of-memory: [    2.619009] Kernel panic - not syncing: System is deadlocked on memory",
    ),
    (
        "root-missing-amd64",
        "initramfs",
        "root-not-found: Gave up waiting for root file system device.  Common problems:",
    ),
    (
        "root-missing-reboot-amd64",
        "initramfs",
        "root-not-found: Gave up waiting for root file system device.  Common problems:",
    ),
    (
        "root-missing-dracut-amd64",
        "initramfs",
        "root-not-found: dracut Warning: Could not boot.",
    ),
    (
        "root-missing-dracut-systemd-amd64",
        "initramfs",
        "root-not-found: [DEPEND] Dependency failed for sysroot.mount - /sysroot.",
    ),
    (
        "initramfs-shell-dracut-amd64",
        "initramfs",
        "initramfs-shell: Dropping to debug shell.",
    ),
    (
        "emergency-fstab-amd64",
        "kernel userspace",
        "emergency-mode: You are in emergency mode. After logging in, type \"journalctl -xb\" to view",
    ),
    (
        "rescue-amd64",
        "userspace",
        "emergency-mode: You are in rescue mode. After logging in, type \"journalctl -xb\" to view",
    ),
    (
        "ignition-failed-amd64",
        "initramfs",
        "ignition-failed: [FAILED] Failed to start ignition-f…ce - Ignition (fetch-offline).",
    ),
    (
        "unsigned-amd64",
        "firmware",
        "security-violation: BdsDxe: failed to load Boot0001 \"UEFI Non-Block Boot Device\" from PciRoot(0x0)/Pci(0x1,0x0): Access Denied",
    ),
    (
        "unsigned-arm64",
        "firmware",
        "security-violation: BdsDxe: failed to load Boot0001 \"UEFI Non-Block Boot Device\" from PciRoot(0x0)/Pci(0x1,0x0): Access Denied",
    ),
    (
        "empty-uefi-amd64",
        "firmware",
        "efi-shell: UEFI Interactive Shell v2.2",
    ),
    (
        "empty-uefi-arm64",
        "firmware",
        "efi-shell: UEFI Interactive Shell v2.2",
    ),
    (
        "empty-secure-boot-amd64",
        "firmware",
        "no-bootable-device: BdsDxe: No bootable option or device was found.",
    ),
    (
        "empty-bios-amd64",
        "firmware",
        "no-bootable-device: No bootable device.",
    ),
    (
        "wrong-architecture-arm64",
        "firmware",
        "efi-shell: UEFI Interactive Shell v2.2",
    ),
    (
        "network-bios-amd64",
        "firmware",
        "network-boot: iPXE 1.0.0+git-20190125.36a4c85-5.1 -- Open Source Network Boot Firmware -- http",
    ),
    (
        "network-ipxe-amd64",
        "firmware",
        "network-boot: iPXE 1.0.0+git-20190125.36a4c85-5.1 -- Open Source Network Boot Firmware -- http://ipxe.org",
    ),
    (
        "network-uefi-arm64",
        "firmware",
        "network-boot: >>Start PXE over IPv4.",
    ),
    (
        "grub-without-config-amd64",
        "firmware loader",
        "boot-loader: Minimal BASH-like line editing is supported. For the first word, TAB",
    ),
    (
        "grub-rescue-amd64",
        "firmware loader",
        "boot-loader: grub rescue>",
    ),
    (
        "grub-kernel-missing-amd64",
        "firmware loader",
        "boot-loader: error: you need to load the kernel first.",
    ),
    (
        "systemd-boot-without-entry-amd64",
        "firmware loader",
        "boot-loader: No loader found. Configuration files in \\loader\\entries\\*.conf are needed.",
    ),
    (
        "systemd-boot-not-a-kernel-amd64",
        "firmware loader",
        "boot-loader: Error loading \\vmlinuz: Unsupported",
    ),
    (
        "systemd-boot-initramfs-missing-amd64",
        "firmware loader",
        "boot-loader: Error preparing initrd: Not Found",
    ),
];

/// What a script until the system is up makes of a console, in pieces.
fn told<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Event> {
    let mut matcher = Matcher::new(Script::until_up());
    let mut events: Vec<Event> = pieces.flat_map(|piece| matcher.read(piece)).collect();
    events.extend(matcher.quiet());
    events
}

/// Stages and verdict as the table has them.
fn summary(events: &[Event]) -> (String, String) {
    let mut stages = Vec::new();
    let mut verdict = "nothing".to_owned();
    for event in events {
        match event {
            Event::Reached { stage, .. } => stages.push(stage.as_str()),
            Event::Failed { failure, line, .. } => verdict = format!("{failure}: {line}"),
            Event::Passed { line } => {
                verdict = format!("up: {line}");
                break;
            }
            Event::Matched { .. } | Event::Send(_) => {}
        }
    }
    (stages.join(" "), verdict)
}

const DIRECTORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/consoles");

fn console(name: &str) -> Vec<u8> {
    fs::read(format!("{DIRECTORY}/{name}.txt")).unwrap()
}

/// The bytes in pieces of these sizes, over and over.
fn pieces<'a>(bytes: &'a [u8], sizes: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let mut rest = bytes;
    let mut sizes = sizes.iter().cycle();
    std::iter::from_fn(move || {
        let size = (*sizes.next()?).min(rest.len());
        let (piece, behind) = rest.split_at(size);
        rest = behind;
        (size > 0).then_some(piece)
    })
}

#[test]
fn each_console_tells_its_stages_and_its_verdict_whole_and_byte_by_byte() {
    for (name, stages, verdict) in CONSOLES {
        let console = console(name);
        let events = told([&*console].into_iter());
        let expected = (stages.to_string(), verdict.to_string());
        assert_eq!(summary(&events), expected, "{name}");
        assert_eq!(told(console.chunks(1)), events, "{name} byte by byte");
    }
}

#[test]
fn nothing_that_a_healthy_boot_says_to_its_end_is_a_failure() {
    for (name, _, verdict) in CONSOLES {
        let is_healthy = *verdict == "nothing" || verdict.starts_with("up: ");
        let events = Matcher::new(Script::default()).read(&console(name));
        let fails = |event: &Event| matches!(event, Event::Failed { .. });
        assert!(
            !(is_healthy && events.iter().any(fails)),
            "{name}: {events:?}"
        );
    }
}

#[test]
fn each_console_is_in_the_table() {
    let files = fs::read_dir(DIRECTORY).unwrap();
    let files = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    let rows = CONSOLES.iter().map(|(name, _, _)| format!("{name}.txt"));
    assert_eq!(files.collect::<BTreeSet<_>>(), rows.collect());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn consoles_in_any_pieces_tell_the_same(
        index in 0..CONSOLES.len(),
        sizes in prop::collection::vec(1_usize..200, 1..20),
    ) {
        let console = console(CONSOLES[index].0);
        let whole = told([&*console].into_iter());
        prop_assert_eq!(told(pieces(&console, &sizes)), whole);
    }

    #[test]
    fn anything_in_any_pieces_gives_the_same_lines(
        words in prop::collection::vec(
            prop::sample::select(vec![
                "a", "b ", "\x1b", "[", "]", "0", ";", "2", "H", "J", "G", "m", "\r", "\n", "\x08",
                "\x07", "\x18", "\\", "\u{e4}", "\u{9b}", "login: ", "[    1.000000] ",
            ]),
            0..200,
        ),
        sizes in prop::collection::vec(1_usize..9, 1..9),
    ) {
        let text = words.concat();
        let lines = |pieces: &mut dyn Iterator<Item = &[u8]>| -> Vec<String> {
            let mut matcher = Matcher::new(Script::default());
            pieces.for_each(|piece| drop(matcher.read(piece)));
            matcher.quiet();
            matcher.lines().map(str::to_owned).collect()
        };
        let whole = lines(&mut [text.as_bytes()].into_iter());
        prop_assert_eq!(&lines(&mut pieces(text.as_bytes(), &sizes)), &whole);
        for line in whole {
            prop_assert!(!line.chars().any(|c| c.is_ascii_control() && c != '\t'), "{:?}", line);
        }
    }
}
