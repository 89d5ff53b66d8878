//! A guest of nothing but firmware, run until it prints its first byte: whether QEMU runs guests at
//! all, and whether they get going under KVM. No image is needed, and no file is made.

use std::ffi::OsString;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::{Instant, timeout};

use crate::domain::{Accelerator, Machine};
use crate::hypervisor::qemu::args::program;
use crate::oci::Printable;

/// Most that is read of what QEMU has to say, in bytes.
const MAX_WORDS_BYTES: u64 = 4096;

/// How a trial ended.
#[derive(Debug)]
pub enum Trial {
    /// The firmware printed something, after so long.
    Lives(Duration),
    /// It printed nothing for so long.
    Silent(Duration),
    /// QEMU ended, with these words.
    Ended(String),
    /// QEMU could not be started.
    NotStarted(io::Error),
}

/// Runs `firmware` for `machine`, or QEMU's own for the BIOS, for as long as `limit`.
pub async fn run(
    machine: Machine,
    accelerator: Accelerator,
    firmware: Option<&Path>,
    limit: Duration,
) -> Trial {
    let mut command = Command::new(program(machine));
    command
        .args(arguments(machine, accelerator, firmware))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let begun = Instant::now();
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Trial::NotStarted(error),
    };
    let (Some(mut console), Some(words)) = (child.stdout.take(), child.stderr.take()) else {
        return Trial::NotStarted(io::ErrorKind::BrokenPipe.into());
    };
    let mut first = [0];
    match timeout(limit, console.read(&mut first)).await {
        Err(_) => Trial::Silent(limit),
        Ok(Ok(1..)) => Trial::Lives(begun.elapsed()),
        Ok(Ok(0)) => {
            let mut said = Vec::new();
            let mut words = words.take(MAX_WORDS_BYTES);
            match timeout(limit, words.read_to_end(&mut said)).await {
                Ok(Err(error)) => Trial::NotStarted(error),
                Err(_) | Ok(Ok(_)) => Trial::Ended(last_line(&said)),
            }
        }
        Ok(Err(error)) => Trial::NotStarted(error),
    }
}

/// The last line says why it ended; those before it mostly warn.
fn last_line(said: &[u8]) -> String {
    let said = String::from_utf8_lossy(said);
    let last = said.lines().rfind(|line| !line.trim().is_empty());
    Printable(last.unwrap_or("it said nothing").trim()).to_string()
}

fn arguments(machine: Machine, accelerator: Accelerator, firmware: Option<&Path>) -> Vec<OsString> {
    let (board, memory) = match machine {
        // Without graphics the BIOS prints on the serial port.
        Machine::Amd64 => ("q35,graphics=off", "128"),
        Machine::Arm64 => ("virt", "256"),
    };
    let cpu = match accelerator {
        Accelerator::Kvm => "host",
        Accelerator::Tcg => "max",
    };
    let mut words: Vec<OsString> = [
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-serial",
        "stdio",
        "-machine",
        board,
        "-accel",
        accelerator.as_str(),
        "-cpu",
        cpu,
        "-m",
        memory,
    ]
    .map(OsString::from)
    .into();
    if let Some(firmware) = firmware {
        words.extend(["-bios".into(), firmware.into()]);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bios_is_told_to_print_and_arm_is_given_its_firmware() {
        let words = |machine, accelerator, firmware| {
            let words = arguments(machine, accelerator, firmware);
            let words: Vec<String> = words
                .iter()
                .map(|word| word.display().to_string())
                .collect();
            words.join(" ")
        };
        let common = "-nodefaults -no-user-config -display none -serial stdio -machine";
        assert_eq!(
            words(Machine::Amd64, Accelerator::Kvm, None),
            format!("{common} q35,graphics=off -accel kvm -cpu host -m 128")
        );
        assert_eq!(
            words(
                Machine::Arm64,
                Accelerator::Tcg,
                Some(Path::new("/f/a,b.fd"))
            ),
            format!("{common} virt -accel tcg -cpu max -m 256 -bios /f/a,b.fd")
        );
    }

    #[test]
    fn the_last_words_are_the_reason() {
        assert_eq!(
            last_line(b"warning: x\nfailed: y\x1b\n\n"),
            "failed: y\\u{1b}"
        );
        assert_eq!(last_line(b""), "it said nothing");
    }
}
