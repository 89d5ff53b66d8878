//! Which QEMU is installed, by its own words.

use std::io;
use std::process::Stdio;
use std::time::Duration;

use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::oci::Printable;

/// What every version of it begins its answer with.
const WORDS: &str = "QEMU emulator version ";
/// Most that is read of its answer, in bytes.
const MAX_ANSWER_BYTES: u64 = 4096;

/// Why a program is not known to be QEMU.
#[derive(Debug, Error)]
pub enum VersionError {
    /// It is not there.
    #[error("program is not installed: {program}")]
    NotInstalled {
        /// Its name.
        program: String,
    },
    /// It is there and does not run.
    #[error("can not run {program}")]
    NotRunnable {
        /// Its name.
        program: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It does not say its version.
    #[error("{program} did not tell its version within {seconds} s")]
    Timeout {
        /// Its name.
        program: String,
        /// How long was waited.
        seconds: u64,
    },
    /// It says something else.
    #[error("{program} is not QEMU, for it says: {answer}")]
    NotQemu {
        /// Its name.
        program: String,
        /// The first line of what it says, printable.
        answer: String,
    },
}

/// Asks `program` for its version, as in `7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)`. Waits no longer
/// than `limit`.
pub async fn version(program: &str, limit: Duration) -> Result<String, VersionError> {
    let answer = timeout(limit, ask(program)).await;
    let answer = answer.map_err(|_| VersionError::Timeout {
        program: program.to_owned(),
        seconds: limit.as_secs(),
    })?;
    let answer = answer.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => VersionError::NotInstalled {
            program: program.to_owned(),
        },
        _ => VersionError::NotRunnable {
            program: program.to_owned(),
            source,
        },
    })?;
    let line = String::from_utf8_lossy(&answer);
    let line = line.lines().next().unwrap_or_default().trim();
    match line.strip_prefix(WORDS) {
        Some(version) if !version.is_empty() => Ok(Printable(version).to_string()),
        _ => Err(VersionError::NotQemu {
            program: program.to_owned(),
            answer: Printable(line).to_string(),
        }),
    }
}

async fn ask(program: &str) -> io::Result<Vec<u8>> {
    let mut child = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // One that does not answer in time is not left behind.
        .kill_on_drop(true)
        .spawn()?;
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(MAX_ANSWER_BYTES)
            .read_to_end(&mut answer)
            .await?;
    }
    // Its status tells nothing that its words do not.
    child.wait().await?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What `version` makes of a program that is `script`.
    async fn of(script: &str, limit: Duration) -> Result<String, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qemu");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let program = path.to_str().unwrap();
        loop {
            match version(program, limit).await {
                // Another test's fork may still hold the script open for writing.
                Err(VersionError::NotRunnable { source, .. })
                    if source.kind() == io::ErrorKind::ExecutableFileBusy =>
                {
                    tokio::task::yield_now().await;
                }
                version => {
                    return version.map_err(|error| error.to_string().replace(program, "qemu"));
                }
            }
        }
    }

    #[tokio::test]
    async fn the_first_line_tells_the_version() {
        let minute = Duration::from_secs(60);
        let cases = [
            (
                "echo 'QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)'; echo Copyright; exit 3",
                Ok("7.2.22 (Debian 1:7.2+dfsg-7)"),
            ),
            ("echo QEMU emulator version 10.1.0", Ok("10.1.0")),
            (
                "echo bash, version 5",
                Err("qemu is not QEMU, for it says: bash, version 5"),
            ),
            (
                "echo QEMU emulator version",
                Err("qemu is not QEMU, for it says: QEMU emulator version"),
            ),
            (":", Err("qemu is not QEMU, for it says: ")),
            (
                "printf '\\033[31m\\377'",
                Err("qemu is not QEMU, for it says: \\u{1b}[31m\u{fffd}"),
            ),
            // Without end: what is read has one, and then the pipe breaks.
            (
                "while echo yes; do :; done",
                Err("qemu is not QEMU, for it says: yes"),
            ),
        ];
        for (script, expected) in cases {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(of(script, minute).await, expected, "{script}");
        }
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_or_does_not_answer_is_told() {
        let limit = Duration::from_secs(1);
        let error = of("exec tail -f /dev/null", limit).await.unwrap_err();
        assert_eq!(error, "qemu did not tell its version within 1 s");
        let missing = version("ironboot-no-such-program", limit).await;
        assert!(matches!(missing, Err(VersionError::NotInstalled { .. })));
        let directory = version("/", limit).await;
        assert!(matches!(directory, Err(VersionError::NotRunnable { .. })));
    }
}
