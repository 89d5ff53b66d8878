//! What a line tells: it is looked up in two tables.

use std::sync::LazyLock;

use crate::expect::rows::{FAILURES, Row, STAGES, Sign};
use crate::expect::{Failure, Stage};

/// The rows of a table by the first byte of what they fit: each line is looked up, and almost none is one.
struct Table([Vec<Row>; 256]);

static TABLES: LazyLock<[Table; 2]> = LazyLock::new(|| [Table::of(STAGES), Table::of(FAILURES)]);

impl Table {
    fn of(rows: &[Row]) -> Self {
        let begins_with = |byte: usize, shape: &str| {
            shape.starts_with('*') || shape.bytes().next().map(usize::from) == Some(byte)
        };
        Self(std::array::from_fn(|byte| {
            let rows = rows.iter().copied();
            rows.filter(|(_, shape)| begins_with(byte, shape)).collect()
        }))
    }

    /// The sign of the first row that fits the text.
    fn sign(&self, text: &str) -> Option<Sign> {
        let first = text.bytes().next()?;
        let mut rows = self.0[usize::from(first)].iter();
        let row = rows.find(|(_, shape)| is_of_shape(text, shape));
        row.map(|(sign, _)| *sign)
    }
}

/// What `line` tells, if the boot has come to `stage`.
pub(super) fn signs(line: &str, stage: Option<Stage>) -> Vec<Sign> {
    let mut signs = Vec::new();
    let is_early = stage < Some(Stage::Kernel);
    let line = line.trim();
    let message = message_of_kernel(line);
    if is_early && message.is_some() {
        signs.push(Sign::Stage(Stage::Kernel));
    }
    for table in &*TABLES {
        let sign = table.sign(line);
        let sign = sign.or_else(|| table.sign(message?));
        signs.extend(sign.filter(|sign| match sign {
            Sign::Failure(failure) => can_fail(*failure, stage),
            other => *other != Sign::Nothing,
        }));
    }
    signs
}

/// Whether a failure can still come at `stage`: what firmware, loader and initramfs say of theirs are only
/// words once the kernel or the root's init runs.
fn can_fail(failure: Failure, stage: Option<Stage>) -> bool {
    match stage_of(failure) {
        Some(Stage::Firmware | Stage::Loader) => stage < Some(Stage::Kernel),
        Some(Stage::Initramfs) => stage < Some(Stage::Userspace),
        Some(Stage::Kernel | Stage::Userspace) | None => true,
    }
}

/// The stage that a failure on the console is of.
pub(super) fn stage_of(failure: Failure) -> Option<Stage> {
    match failure {
        Failure::SecurityViolation
        | Failure::EfiShell
        | Failure::NoBootableDevice
        | Failure::NetworkBoot => Some(Stage::Firmware),
        Failure::BootLoader => Some(Stage::Loader),
        Failure::KernelPanic | Failure::KernelOops | Failure::OutOfMemory => Some(Stage::Kernel),
        Failure::RootNotFound | Failure::InitramfsShell | Failure::IgnitionFailed => {
            Some(Stage::Initramfs)
        }
        Failure::EmergencyMode => Some(Stage::Userspace),
        _ => None,
    }
}

/// Whether the whole text is of this shape.
fn is_of_shape(text: &str, shape: &str) -> bool {
    let mut texts = shape.split('*');
    let first = texts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else {
        return false;
    };
    let mut texts = texts.peekable();
    while let Some(wanted) = texts.next() {
        if texts.peek().is_none() {
            return rest.ends_with(wanted);
        }
        match rest.split_once(wanted) {
            Some((_, behind)) => rest = behind,
            None => return false,
        }
    }
    rest.is_empty()
}

/// What follows the first of the kernel's time stamps, `[    1.234567] ` or `[    1.234567][    T1] `.
fn message_of_kernel(line: &str) -> Option<&str> {
    line.match_indices('[').find_map(|(at, _)| {
        let (time, message) = line[at + 1..].split_once(']')?;
        let (seconds, fraction) = time.trim_start().split_once('.')?;
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if seconds.is_empty() || fraction.len() != 6 || !is_number(seconds) || !is_number(fraction)
        {
            return None;
        }
        let caller = message
            .strip_prefix('[')
            .and_then(|rest| rest.split_once(']'));
        Some(caller.map_or(message, |(_, message)| message).trim_start())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, stage: Option<Stage>, expected: &[Sign]) {
        assert_eq!(signs(line, stage), expected, "{line}");
    }

    fn failure(line: &str) -> Option<Failure> {
        signs(line, None).into_iter().find_map(|sign| match sign {
            Sign::Failure(failure) => Some(failure),
            _ => None,
        })
    }

    /// Lines that no boot of `fixtures/consoles` printed, as their programs' sources have them.
    #[test]
    fn what_always_means_failure_is_told() {
        for (name, line) in [
            (
                "kernel-panic",
                "[    9.123456][    T1] Kernel panic - not syncing: VFS",
            ),
            (
                "kernel-panic",
                "debian login: [    9.123456] Kernel panic - not syncing: x",
            ),
            (
                "kernel-oops",
                "[   12.345678] BUG: unable to handle page fault for address: ffff",
            ),
            ("kernel-oops", "[   12.345678] kernel BUG at mm/slub.c:305!"),
            (
                "kernel-oops",
                "[   12.345678] general protection fault, probably for non-canonical address 0xdead: 0000 [#1] SMP",
            ),
            (
                "kernel-oops",
                "[   12.345678] Internal error: Oops - BUG: 00000000f2000800 [#1] SMP",
            ),
            (
                "out-of-memory",
                "[   12.345678] Out of memory: Killed process 1 (systemd) total-vm:1kB",
            ),
            (
                "root-not-found",
                "dracut: FATAL: Don't know how to handle 'root=vdz'",
            ),
            (
                "root-not-found",
                "ERROR: Unable to find root device '/dev/vdz'.",
            ),
            ("root-not-found", "Mounting root failed."),
            (
                "initramfs-shell",
                "You are now being dropped into an emergency shell.",
            ),
            (
                "initramfs-shell",
                "initramfs emergency recovery shell launched. Type 'exit' to continue boot",
            ),
            (
                "emergency-mode",
                "[  OK  ] Reached target emergency.target - Emergency Mode.",
            ),
            ("emergency-mode", "Give root password for maintenance"),
            (
                "security-violation",
                "Verification failed: (0x1A) Security Violation",
            ),
            ("security-violation", "error: bad shim signature."),
            ("network-boot", ">>Start HTTP Boot over IPv4....."),
            ("boot-loader", "error: no such partition."),
            (
                "boot-loader",
                "This kernel requires an x86-64 CPU, but only detected an i686 CPU.",
            ),
            ("boot-loader", "EFI stub: ERROR: Failed to handle fs_proto"),
            (
                "ignition-failed",
                "[   12.345678] ignition[612]: CRITICAL : Ignition failed: no config",
            ),
            (
                "ignition-failed",
                "Ignition has failed. Please ensure your config is valid. Note that only",
            ),
        ] {
            assert_eq!(failure(line).map(Failure::as_str), Some(name), "{line}");
        }
    }

    #[test]
    fn what_a_healthy_boot_says_is_no_failure() {
        for line in [
            "[    0.000000] ..MP-BIOS bug: 8254 timer not connected to IO-APIC",
            "[    1.234567] watchdog: BUG: soft lockup - CPU#0 stuck for 23s! [swapper/0:1]",
            "[    1.234567] traps: a[12] general protection fault ip:55 sp:7f error:0 in a[55+1]",
            "[    1.234567] WARNING: CPU: 0 PID: 1 at kernel/sched/core.c:1 x+0x1/0x2",
            "[    1.234567] systemd[1]: Set up automount for (initramfs) and Emergency Mode",
            "[    1.234567] systemd[1]: Starting emergency.service - Emergency Shell...",
            "[    1.234567] Command line: panic=-1 note=\"Kernel panic - not syncing\"",
            "[    1.234567] Out of memory: Killed process 812 (stress) total-vm:1kB",
            "[  OK  ] Stopped target initrd-root-fs.target - Initrd Root File System.",
            "[  OK  ] Started dracut-pre-pivot.service - dracut pre-pivot and cleanup hook.",
            "EFI stub: ERROR: FIRMWARE BUG: kernel image not aligned on 64k boundary",
            "EFI stub: ERROR: efi_get_random_bytes() failed (0x8000000000000003), KASLR will be disabled",
            "error: file `/boot/grub/fonts/unicode.pf2' not found.",
            "error: no suitable video mode found.",
            "BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0): Not Found",
            "iPXE (http://ipxe.org) 00:02.0 CA00 PCI2.10 PnP PMM+7FF",
            "Press Ctrl-B to configure iPXE (PCI 00:01.0)...",
            "ignition[612]: Ignition finished successfully",
        ] {
            assert_eq!(failure(line), None, "{line}");
        }
    }

    #[test]
    fn words_of_a_stage_count_as_its_failure_until_a_later_one_only() {
        let violation = "BdsDxe: failed to load Boot0001 \"x\" from y: Access Denied";
        let firmware = Sign::Stage(Stage::Firmware);
        let fails = Sign::Failure(Failure::SecurityViolation);
        check(violation, Some(Stage::Loader), &[firmware, fails]);
        check(violation, Some(Stage::Kernel), &[firmware]);
        check("grub> ls", None, &[Sign::Failure(Failure::BootLoader)]);
        check("grub> ls", Some(Stage::Userspace), &[]);
        let shell = &[Sign::Failure(Failure::InitramfsShell)];
        check("(initramfs)", Some(Stage::Initramfs), shell);
        check("(initramfs)", Some(Stage::Userspace), &[]);
    }

    #[test]
    fn no_row_hides_another() {
        for table in [STAGES, FAILURES] {
            for (index, (_, shape)) in table.iter().enumerate() {
                let line = shape.replace('*', "x");
                let first = table
                    .iter()
                    .position(|(_, shape)| is_of_shape(&line, shape));
                assert_eq!(first, Some(index), "{shape}");
            }
        }
    }

    #[test]
    fn a_shape_is_text_with_gaps() {
        for (text, shape, fits) in [
            ("abc", "abc", true),
            ("abcd", "abc", false),
            ("abcd", "abc*", true),
            ("abc", "abc*", true),
            ("a1b2c", "a*b*c", true),
            ("a1c2b", "a*b*c", false),
            ("x login:", "* login:", true),
            ("x login: y", "* login:", false),
            ("aba", "a*ba*", true),
        ] {
            assert_eq!(is_of_shape(text, shape), fits, "{text} {shape}");
        }
    }
}
