//! The two tables of [`markers`](super::markers): a new marker is a row here.

use crate::expect::{Failure, Stage};

/// What a line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    Stage(Stage),
    /// A systemd begins: the root's, or that of an initramfs.
    Systemd,
    /// It is that of an initramfs.
    SystemdInitramfs,
    /// systemd greets: the root's, unless the initramfs' one is at work.
    Greeting,
    Failure(Failure),
    /// Looks like another row's line, and tells nothing.
    Nothing,
}

use Sign::{Failure as Fails, Greeting, Nothing, Stage as Reaches, Systemd, SystemdInitramfs};

/// What a line says, and where its text must be: `*` is any text, the rest must begin at the line's or at
/// a kernel message's begin. The first row that fits counts.
pub(super) type Row = (Sign, &'static str);

/// How far a boot has come.
pub(super) const STAGES: &[Row] = &[
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
    (Reaches(Stage::Loader), "GNU GRUB  version *"),
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
    (Systemd, "systemd[1]: systemd * running in system mode *"),
    (SystemdInitramfs, "systemd[1]: Running in init*"),
    (Reaches(Stage::Initramfs), "Welcome to *(Initramfs)*!"),
    (Greeting, "Welcome to *!"),
    (Greeting, "systemd[1]: Hostname set to *"),
    (
        Reaches(Stage::Userspace),
        "systemd[1]: Startup finished in *",
    ),
    (
        Reaches(Stage::Userspace),
        "[*OK*] Reached target *Multi-User*",
    ),
    (
        Reaches(Stage::Userspace),
        "systemd[1]: Reached target *Multi-User*",
    ),
    (Reaches(Stage::Userspace), "INIT: version *"),
    (Reaches(Stage::Userspace), "OpenRC *is starting up *"),
    (
        Reaches(Stage::Userspace),
        "Please press Enter to activate this console*",
    ),
    (Reaches(Stage::Userspace), "* login:"),
];

/// What always means that it has failed.
pub(super) const FAILURES: &[Row] = &[
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
    (Fails(Failure::RootNotFound), "ALERT! * does not exist. *"),
    (Fails(Failure::RootNotFound), "Gave up waiting for root *"),
    (
        Fails(Failure::RootNotFound),
        "Failed to mount * as root file system*",
    ),
    (
        Fails(Failure::RootNotFound),
        "dracut*Warning: Could not boot*",
    ),
    (
        Fails(Failure::RootNotFound),
        "dracut*Warning: /dev/* does not exist*",
    ),
    (
        Fails(Failure::RootNotFound),
        "Warning: /dev/* does not exist*",
    ),
    (
        Fails(Failure::RootNotFound),
        "[DEPEND] Dependency failed for sysroot.mount*",
    ),
    (
        Fails(Failure::RootNotFound),
        "[DEPEND] Dependency failed for /sysroot*",
    ),
    (
        Fails(Failure::RootNotFound),
        "[FAILED] Failed to mount sysroot.mount*",
    ),
    (
        Fails(Failure::RootNotFound),
        "[FAILED] Failed to mount /sysroot*",
    ),
    (
        Fails(Failure::RootNotFound),
        "systemd[1]: Dependency failed for sysroot.mount*",
    ),
    (
        Fails(Failure::RootNotFound),
        "systemd[1]: Failed to mount sysroot.mount*",
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
    (Fails(Failure::InitramfsShell), "Dropping to debug shell*"),
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
        "Press Enter for maintenance*",
    ),
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
    (
        Fails(Failure::NoBootableDevice),
        r#"BdsDxe: starting Boot* "UiApp" *"#,
    ),
    (
        Fails(Failure::BootLoader),
        "No loader found. Configuration files in *",
    ),
    (Fails(Failure::NetworkBoot), ">>Start PXE over IPv*"),
    (Fails(Failure::NetworkBoot), ">>Start HTTP Boot over IPv*"),
    (
        Fails(Failure::NetworkBoot),
        "iPXE * -- Open Source Network Boot Firmware*",
    ),
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
    (Fails(Failure::BootLoader), "Error loading *"),
    (Fails(Failure::BootLoader), "Error preparing initrd: *"),
    (
        Fails(Failure::BootLoader),
        "Failed to boot both default and fallback entries*",
    ),
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
        "[FAILED] Failed to start *Ignition (*",
    ),
    (
        Fails(Failure::IgnitionFailed),
        "systemd[1]: Failed to start *Ignition (*",
    ),
    (
        Fails(Failure::IgnitionFailed),
        "[DEPEND] Dependency failed for *Ignition Complete*",
    ),
    (
        Fails(Failure::IgnitionFailed),
        "ignition[*Ignition failed: *",
    ),
    (Fails(Failure::IgnitionFailed), "Ignition has failed. *"),
];
