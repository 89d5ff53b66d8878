//! How far a boot has come, and what may become of it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How far a boot has come; a later stage is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// UEFI or BIOS speaks.
    Firmware,
    /// A boot loader or the kernel's EFI stub.
    Loader,
    /// The kernel.
    Kernel,
    /// The first file system's programs.
    Initramfs,
    /// The init of the real root.
    Userspace,
}

/// Why a boot has failed.
///
/// Those up to [`Failure::IgnitionFailed`] are found on the console; the others are for whoever runs
/// the machine to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Failure {
    /// `kernel-panic`
    KernelPanic,
    /// `kernel-oops`
    KernelOops,
    /// `out-of-memory`
    OutOfMemory,
    /// `root-not-found`
    RootNotFound,
    /// `initramfs-shell`
    InitramfsShell,
    /// `emergency-mode`
    EmergencyMode,
    /// `security-violation`
    SecurityViolation,
    /// `efi-shell`
    EfiShell,
    /// `no-bootable-device`
    NoBootableDevice,
    /// `network-boot`
    NetworkBoot,
    /// `boot-loader`
    BootLoader,
    /// `ignition-failed`
    IgnitionFailed,
    /// `fail-on`: one of [`fail_on`](crate::expect::Script::fail_on).
    FailOn,
    /// `guest-exit`
    GuestExit,
    /// `reboot-loop`
    RebootLoop,
    /// `hypervisor-error`
    HypervisorError,
    /// `console-flood`
    ConsoleFlood,
    /// `timeout`
    Timeout,
    /// `too-slow`
    TooSlow,
    /// `slower`
    Slower,
    /// `not-ready`
    NotReady,
    /// `command-failed`
    CommandFailed,
}

/// A word that names no failure.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("no failure has this name: {0}")]
pub struct UnknownFailure(String);

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 5] = [
        Self::Firmware,
        Self::Loader,
        Self::Kernel,
        Self::Initramfs,
        Self::Userspace,
    ];

    /// The stage's name: `firmware`, `loader`, `kernel`, `initramfs`, `userspace`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firmware => "firmware",
            Self::Loader => "loader",
            Self::Kernel => "kernel",
            Self::Initramfs => "initramfs",
            Self::Userspace => "userspace",
        }
    }
}

impl Failure {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::KernelPanic,
        Self::KernelOops,
        Self::OutOfMemory,
        Self::RootNotFound,
        Self::InitramfsShell,
        Self::EmergencyMode,
        Self::SecurityViolation,
        Self::EfiShell,
        Self::NoBootableDevice,
        Self::NetworkBoot,
        Self::BootLoader,
        Self::IgnitionFailed,
        Self::FailOn,
        Self::GuestExit,
        Self::RebootLoop,
        Self::HypervisorError,
        Self::ConsoleFlood,
        Self::Timeout,
        Self::TooSlow,
        Self::Slower,
        Self::NotReady,
        Self::CommandFailed,
    ];

    /// Whether the console tells it, by a line that always means this; only these can be tolerated.
    #[must_use]
    pub fn is_on_console(self) -> bool {
        self <= Self::IgnitionFailed
    }

    /// The failure's name: its variant's in kebab-case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.texts().0
    }

    /// What it means, as one clause for people.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        self.texts().1
    }

    /// What to look at or to try, as one clause for people.
    #[must_use]
    pub fn hint(self) -> &'static str {
        self.texts().2
    }

    /// Name, meaning, hint.
    fn texts(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::KernelPanic => (
                "kernel-panic",
                "the kernel gave up",
                "the lines before the panic say why; one without root or init wants another `root=` or `init=`, or has an initramfs that is not whole",
            ),
            Self::KernelOops => (
                "kernel-oops",
                "the kernel ran into a bug of its own",
                "look at the trace on the console; try another kernel, or `--tolerate kernel-oops`",
            ),
            Self::OutOfMemory => (
                "out-of-memory",
                "the guest ran out of memory",
                "give it more with `--memory`",
            ),
            Self::RootNotFound => (
                "root-not-found",
                "the root file system was not found",
                "compare `root=` on the command line with the disks of the image, and the initramfs' drivers with virtio",
            ),
            Self::InitramfsShell => (
                "initramfs-shell",
                "the initramfs could not go on and opened a shell",
                "the lines before the shell say what was missing, mostly the root device or a driver",
            ),
            Self::EmergencyMode => (
                "emergency-mode",
                "systemd went into emergency or rescue mode",
                "look for the unit that failed first, mostly a mount of /etc/fstab",
            ),
            Self::SecurityViolation => (
                "security-violation",
                "Secure Boot refused a program",
                "sign it with a key that the firmware has, or leave Secure Boot off",
            ),
            Self::EfiShell => (
                "efi-shell",
                "the firmware found nothing to boot and opened its shell",
                "see whether the disk has an EFI system partition with a boot loader for this architecture",
            ),
            Self::NoBootableDevice => (
                "no-bootable-device",
                "the firmware found nothing to boot",
                "see whether the disk is for this firmware: UEFI wants an EFI system partition, BIOS a boot sector",
            ),
            Self::NetworkBoot => (
                "network-boot",
                "the firmware found nothing to boot on the disks and turned to the network",
                "see whether the disk is for this firmware: UEFI wants an EFI system partition, BIOS a boot sector",
            ),
            Self::BootLoader => (
                "boot-loader",
                "the boot loader could not load the kernel",
                "look at the loader's configuration, and whether what it names is on the disk",
            ),
            Self::IgnitionFailed => (
                "ignition-failed",
                "Ignition could not apply its configuration",
                "check the configuration, as with `ignition-validate`",
            ),
            Self::FailOn => (
                "fail-on",
                "the console showed what must not come",
                "the pattern is one of `--fail-on`",
            ),
            Self::GuestExit => (
                "guest-exit",
                "the guest ended before the verdict",
                "the last lines of the console say why it powered off or reset",
            ),
            Self::RebootLoop => (
                "reboot-loop",
                "the guest starts again and again",
                "the last lines before each reset say why",
            ),
            Self::HypervisorError => (
                "hypervisor-error",
                "the hypervisor could not run the guest",
                "`ironboot doctor` says what this host can do",
            ),
            Self::ConsoleFlood => (
                "console-flood",
                "the guest printed more than is read",
                "see what it repeats on the console",
            ),
            Self::Timeout => (
                "timeout",
                "what was waited for did not come in time",
                "compare the last line with what is waited for; give more time with `--timeout`",
            ),
            Self::TooSlow => (
                "too-slow",
                "the boot took longer than it may",
                "the times of the stages say where the time went",
            ),
            Self::Slower => (
                "slower",
                "the boot took longer than the earlier one",
                "compare the times of the stages with the earlier ones",
            ),
            Self::NotReady => (
                "not-ready",
                "the guest did not say that it is ready",
                "see whether the image has what tells, and whether its service was started",
            ),
            Self::CommandFailed => (
                "command-failed",
                "the command in the guest failed",
                "the command's own output says why",
            ),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Failure {
    type Err = UnknownFailure;

    fn from_str(word: &str) -> Result<Self, UnknownFailure> {
        Self::ALL
            .into_iter()
            .find(|failure| failure.as_str() == word)
            .ok_or_else(|| UnknownFailure(word.escape_debug().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_failure_has_its_own_name_and_is_found_by_it() {
        for failure in Failure::ALL {
            assert_eq!(failure.as_str().parse(), Ok(failure));
            assert!(!failure.meaning().ends_with('.') && !failure.hint().ends_with('.'));
        }
        let error = "kernel\u{1b}".parse::<Failure>().unwrap_err().to_string();
        assert_eq!(error, "no failure has this name: kernel\\u{1b}");
    }

    #[test]
    fn only_what_is_told_by_the_console_can_be_tolerated() {
        let others = Failure::ALL.into_iter().filter(|one| !one.is_on_console());
        assert_eq!(others.count(), 10);
        assert!(Failure::KernelPanic.is_on_console() && !Failure::FailOn.is_on_console());
    }

    #[test]
    fn a_later_stage_is_greater() {
        assert!(Stage::ALL.is_sorted());
        assert_eq!(
            Stage::ALL.map(Stage::as_str).concat(),
            "firmwareloaderkernelinitramfsuserspace"
        );
    }
}
