//! What lines tell: two tables, for how far a boot has come and for what always means that it failed.

use std::sync::LazyLock;

use regex::Regex;

use crate::expect::{Failure, Stage};

/// What a line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Stage(Stage),
    /// An initramfs with a systemd of its own is at work.
    SystemdInitramfs,
    /// That one hands over to the root.
    SwitchRoot,
    /// systemd greets: the root's, unless the initramfs' one is at work.
    Greeting,
    Failure(Failure),
    /// Looks like another row's line, and tells nothing.
    Nothing,
}

use Sign::{Failure as Fails, Greeting, Nothing, Stage as Reaches, SwitchRoot, SystemdInitramfs};

/// What a line says, and where its text must be: `*` is any text, the rest must begin at the line's or at
/// a kernel message's begin. The first row that fits counts.
type Row = (Sign, &'static str);

const STAGES: &[Row] = &[
    (Reaches(Stage::Firmware), "BdsDxe: *"),
    (Reaches(Stage::Firmware), "SeaBIOS (version *"),
    (Reaches(Stage::Firmware), "UEFI firmware (version *"),
    (Reaches(Stage::Firmware), "UEFI Interactive Shell v*"),
    (Reaches(Stage::Firmware), "iPXE (http*"),
    (Reaches(Stage::Firmware), "Booting from Hard Disk...*"),
    (Reaches(Stage::Firmware), "Booting from DVD/CD...*"),
    (Reaches(Stage::Firmware), "Booting from ROM...*"),
    (Reaches(Stage::Firmware), ">>Start *"),
    (Reaches(Stage::Loader), "GRUB loading*"),
    (Reaches(Stage::Loader), "Welcome to GRUB!*"),
    (Reaches(Stage::Loader), "*GNU GRUB  version *"),
    (Reaches(Stage::Loader), "Booting `*'"),
    (Reaches(Stage::Loader), "Loading Linux *"),
    (Reaches(Stage::Loader), "Loading initial ramdisk *"),
    (Reaches(Stage::Loader), "EFI stub: *"),
    (Reaches(Stage::Loader), "ISOLINUX *"),
    (Reaches(Stage::Loader), "SYSLINUX *"),
    (Reaches(Stage::Loader), "EXTLINUX *"),
    (Reaches(Stage::Loader), "U-Boot 20*"),
    (Reaches(Stage::Loader), "Decompressing Linux...*"),
    (Reaches(Stage::Kernel), "Linux version *"),
    (Reaches(Stage::Kernel), "Booting Linux on physical CPU*"),
    (Reaches(Stage::Initramfs), "Run /init as init process*"),
    (Reaches(Stage::Userspace), "Run /*as init process*"),
    (Reaches(Stage::Initramfs), "Loading, please wait...*"),
    (Reaches(Stage::Initramfs), "Begin: * ... *"),
    (Reaches(Stage::Initramfs), "dracut: dracut-*"),
    (Reaches(Stage::Initramfs), "dracut-*[*]: *"),
    (Reaches(Stage::Initramfs), ":: running early hook *"),
    (Reaches(Stage::Initramfs), "Alpine Init *"),
    (SystemdInitramfs, "systemd[1]: Running in init*"),
    (Reaches(Stage::Initramfs), "Welcome to *(Initramfs)*!"),
    (SwitchRoot, "systemd[1]: Switching root*"),
    (Greeting, "Welcome to *!"),
    (Greeting, "systemd[1]: Hostname set to *"),
    (
        Reaches(Stage::Userspace),
        "systemd[1]: Startup finished in *",
    ),
    (Reaches(Stage::Userspace), "*Reached target *Multi-User*"),
    (Reaches(Stage::Userspace), "INIT: version *"),
    (Reaches(Stage::Userspace), "OpenRC *is starting up *"),
    (
        Reaches(Stage::Userspace),
        "Please press Enter to activate this console*",
    ),
    (Reaches(Stage::Userspace), "* login:"),
];

const FAILURES: &[Row] = &[
    (
        Fails(Failure::OutOfMemory),
        "Kernel panic - not syncing: Out of memory*",
    ),
    (
        Fails(Failure::OutOfMemory),
        "Kernel panic - not syncing: System is deadlocked on memory*",
    ),
    (
        Fails(Failure::OutOfMemory),
        "Out of memory and no killable processes*",
    ),
    (
        Fails(Failure::OutOfMemory),
        "Out of memory: Killed process 1 (*",
    ),
    (Fails(Failure::KernelPanic), "Kernel panic - not syncing*"),
    (
        Fails(Failure::KernelPanic),
        "---[ end Kernel panic - not syncing*",
    ),
    (
        Fails(Failure::KernelOops),
        "BUG: kernel NULL pointer dereference*",
    ),
    (Fails(Failure::KernelOops), "BUG: unable to handle *"),
    (Fails(Failure::KernelOops), "kernel BUG at *"),
    (Fails(Failure::KernelOops), "Unable to handle kernel *"),
    (Fails(Failure::KernelOops), "Internal error: *[#*"),
    (Fails(Failure::KernelOops), "Oops: *[#*"),
    (Fails(Failure::KernelOops), "Oops - *[#*"),
    (Fails(Failure::KernelOops), "general protection fault*[#*"),
    (Fails(Failure::KernelOops), "invalid opcode: *[#*"),
    (Fails(Failure::KernelOops), "divide error: *[#*"),
    (Fails(Failure::KernelOops), "stack segment: *[#*"),
    (Fails(Failure::KernelOops), "double fault: *[#*"),
    (Nothing, r#"VFS: Cannot open root device "(null)"*"#),
    (Nothing, r#"VFS: Cannot open root device ""*"#),
    (
        Fails(Failure::RootNotFound),
        "VFS: Cannot open root device *",
    ),
    (Fails(Failure::RootNotFound), "ALERT! * does not exist. *"),
    (Fails(Failure::RootNotFound), "Gave up waiting for root *"),
    (
        Fails(Failure::RootNotFound),
        "Failed to mount * as root file system*",
    ),
    (
        Fails(Failure::RootNotFound),
        "dracut*: Warning: Could not boot*",
    ),
    (Fails(Failure::RootNotFound), "dracut*: FATAL: *root=*"),
    (
        Fails(Failure::RootNotFound),
        "ERROR: Unable to find root device *",
    ),
    (
        Fails(Failure::RootNotFound),
        "ERROR: Failed to mount * on real root*",
    ),
    (Fails(Failure::RootNotFound), "Mounting root failed*"),
    (Fails(Failure::InitramfsShell), "(initramfs)*"),
    (Fails(Failure::InitramfsShell), "dracut:/#*"),
    (
        Fails(Failure::InitramfsShell),
        "Entering emergency mode. Exit the shell to continue*",
    ),
    (
        Fails(Failure::InitramfsShell),
        "No init found. Try passing init= bootarg*",
    ),
    (
        Fails(Failure::InitramfsShell),
        "You are now being dropped into an emergency shell*",
    ),
    (
        Fails(Failure::InitramfsShell),
        "initramfs emergency recovery shell launched*",
    ),
    (Fails(Failure::EmergencyMode), "You are in emergency mode*"),
    (Fails(Failure::EmergencyMode), "You are in rescue mode*"),
    (
        Fails(Failure::EmergencyMode),
        "Give root password for maintenance*",
    ),
    (
        Fails(Failure::EmergencyMode),
        "Cannot open access to console, the root account is locked*",
    ),
    (
        Fails(Failure::EmergencyMode),
        "[*OK*] Reached target *Emergency Mode*",
    ),
    (
        Fails(Failure::EmergencyMode),
        "[*OK*] Reached target *Rescue Mode*",
    ),
    (
        Fails(Failure::EmergencyMode),
        "systemd[1]: Reached target *Emergency Mode*",
    ),
    (
        Fails(Failure::EmergencyMode),
        "systemd[1]: Reached target *Rescue Mode*",
    ),
    (Nothing, r#"BdsDxe: failed to *"EFI Internal Shell"*"#),
    (
        Fails(Failure::SecurityViolation),
        "BdsDxe: failed to *: Access Denied",
    ),
    (
        Fails(Failure::SecurityViolation),
        "BdsDxe: failed to *: Security Violation",
    ),
    (
        Fails(Failure::SecurityViolation),
        "Verification failed: *Security Violation*",
    ),
    (
        Fails(Failure::SecurityViolation),
        "Error *: Security violation",
    ),
    (Fails(Failure::SecurityViolation), "Error *: Access denied"),
    (
        Fails(Failure::SecurityViolation),
        "Failed to start image *: Access denied",
    ),
    (
        Fails(Failure::SecurityViolation),
        "error: bad shim signature*",
    ),
    (
        Fails(Failure::SecurityViolation),
        "error: prohibited by secure boot policy*",
    ),
    (Fails(Failure::EfiShell), "UEFI Interactive Shell v*"),
    (Fails(Failure::EfiShell), "Shell>*"),
    (Fails(Failure::NoBootableDevice), "No bootable device*"),
    (
        Fails(Failure::NoBootableDevice),
        "BdsDxe: No bootable option or device was found*",
    ),
    (
        Fails(Failure::NoBootableDevice),
        "BdsDxe: Press any key to enter the Boot Manager Menu*",
    ),
    (Fails(Failure::NetworkBoot), ">>Start PXE over IPv*"),
    (Fails(Failure::NetworkBoot), ">>Start HTTP Boot over IPv*"),
    (Fails(Failure::NetworkBoot), "iPXE initialising devices*"),
    (Fails(Failure::NetworkBoot), "Configuring (net*"),
    (Fails(Failure::BootLoader), "grub rescue>*"),
    (Fails(Failure::BootLoader), "grub>*"),
    (
        Fails(Failure::BootLoader),
        "Minimal BASH-like line editing is supported*",
    ),
    (Fails(Failure::BootLoader), "Entering rescue mode...*"),
    (Fails(Failure::BootLoader), "error: no such partition*"),
    (
        Fails(Failure::BootLoader),
        "error: you need to load the kernel first*",
    ),
    (Fails(Failure::BootLoader), "Failed to load ldlinux.*"),
    (
        Fails(Failure::BootLoader),
        "No DEFAULT or UI configuration directive found*",
    ),
    (Fails(Failure::BootLoader), "Error loading *: Not Found"),
    (
        Fails(Failure::BootLoader),
        "Image type * can't be loaded on *",
    ),
    (
        Fails(Failure::BootLoader),
        "This kernel requires an *CPU, but only detected an *",
    ),
    (Nothing, "EFI stub: ERROR: FIRMWARE BUG: *"),
    (Nothing, "EFI stub: ERROR: *KASLR*"),
    (Fails(Failure::BootLoader), "EFI stub: ERROR: *failed*"),
    (Fails(Failure::BootLoader), "EFI stub: ERROR: Failed *"),
    (Fails(Failure::BootLoader), "EFI stub: ERROR: Unable *"),
    (
        Fails(Failure::IgnitionFailed),
        "ignition[*Ignition failed: *",
    ),
    (Fails(Failure::IgnitionFailed), "Ignition has failed. *"),
];

/// Finds the lines that may be of interest: almost none are.
static SIEVE: LazyLock<Regex> = LazyLock::new(|| {
    let needles: Vec<String> = [STAGES, FAILURES]
        .concat()
        .iter()
        .map(|(_, shape)| regex::escape(needle(shape)))
        .collect();
    Regex::new(&needles.join("|")).expect("escaped texts are a regular expression")
});

/// What `line` tells, if the boot has come to `stage`.
pub(super) fn signs(line: &str, stage: Option<Stage>) -> Vec<Sign> {
    let mut signs = Vec::new();
    let is_early = stage < Some(Stage::Kernel);
    if is_early && message_of_kernel(line).is_some() {
        signs.push(Reaches(Stage::Kernel));
    }
    if !SIEVE.is_match(line) {
        return signs;
    }
    for table in [STAGES, FAILURES] {
        let found = table.iter().find(|(_, shape)| is_of_shape(line, shape));
        signs.extend(found.map(|(sign, _)| *sign).filter(|sign| match sign {
            Fails(failure) => is_early || !is_of_firmware(*failure),
            other => *other != Nothing,
        }));
    }
    signs
}

/// Whether a failure is the firmware's or the loader's: once the kernel runs, its words are only words.
fn is_of_firmware(failure: Failure) -> bool {
    matches!(
        failure,
        Failure::SecurityViolation
            | Failure::EfiShell
            | Failure::NoBootableDevice
            | Failure::NetworkBoot
            | Failure::BootLoader
    )
}

/// The longest text of a shape.
fn needle(shape: &str) -> &str {
    let longest = shape.split('*').max_by_key(|text| text.len());
    longest.unwrap_or_default()
}

/// Whether the line, or a message of the kernel's in it, is of this shape.
fn is_of_shape(line: &str, shape: &str) -> bool {
    let mut rest = line.trim();
    loop {
        if is_whole_of_shape(rest, shape) {
            return true;
        }
        match message_of_kernel(rest) {
            Some(message) => rest = message,
            None => return false,
        }
    }
}

fn is_whole_of_shape(text: &str, shape: &str) -> bool {
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
