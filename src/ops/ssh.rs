//! A guest's SSH server, as its user reaches it: by a port of this host's loopback, which QEMU leads
//! to the guest's, and with the store's [`key`], which the guest was offered when it was made.
//!
//! The port is one that was free when QEMU started, so no two VMs want the same; QEMU is asked for it.

pub mod key;

use std::io;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::domain::{DomainName, DomainSpec, Forward, Nic};
use crate::hypervisor::qemu;
use crate::oci::Printable;
use crate::ops::OpsError;

use key::Offer;

/// Where SSH servers listen.
pub const PORT: NonZeroU16 = NonZeroU16::new(22).expect("22 is not 0");

/// How long a server may take for its first words at first; a slow guest's takes more, and gets twice
/// as long each time.
const FIRST_ATTEMPT: Duration = Duration::from_secs(1);
/// The most that it gets.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(30);
/// How long to wait after an attempt that failed.
const PAUSE: Duration = Duration::from_millis(200);
/// Bytes that a server may say before it says what it is.
///
/// Source: RFC 4253, section 4.2, which has no limit.
const MAX_GREETING_BYTES: u64 = 8 << 10;

/// Why a guest's SSH server can not be reached.
#[derive(Debug, Error)]
pub enum SshError {
    /// No port of this host leads to the guest's.
    #[error("no port of this host leads to the SSH server of {name}")]
    NoPort {
        /// The VM.
        name: DomainName,
    },
    /// Nobody has the port that led to it.
    #[error("nothing listens on 127.0.0.1:{port}, which led to the guest: the VM has ended")]
    Closed {
        /// The port.
        port: u16,
    },
    /// Nothing in the guest has said that it is an SSH server.
    #[error("no SSH server has answered on 127.0.0.1:{port} within {seconds} s")]
    Silent {
        /// The port.
        port: u16,
        /// How long was waited.
        seconds: u64,
    },
    /// A program of OpenSSH's can not be started.
    #[error("can not start {program}")]
    Program {
        /// Which one.
        program: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// How to log in to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The port of this host's loopback.
    pub port: u16,
    /// The user in the guest.
    pub user: String,
    /// The VM's own directory, in a store.
    pub directory: PathBuf,
    /// By which ways the guest was offered the store's key; without any, the user's own are tried.
    pub offers: Vec<Offer>,
    /// Whether there is somebody who can be asked for a password.
    pub asks: Asks,
}

/// Whether `ssh` may ask for what it lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// It may.
    Somebody,
    /// It fails instead.
    Nobody,
}

/// The port of this host's loopback that leads to the SSH server of a VM that runs; none if there is
/// none.
pub async fn port(spec: &DomainSpec) -> Result<Option<u16>, OpsError> {
    let Some(Nic::User { forwards }) = &spec.nic else {
        return Ok(None);
    };
    match forwards.iter().find(|forward| forward.guest == PORT) {
        None => Ok(None),
        Some(Forward {
            host: Some(host), ..
        }) => Ok(Some(host.get())),
        Some(Forward { host: None, .. }) => Ok(qemu::forwarded_port(spec, PORT).await?),
    }
}

/// Waits until the server says what it is, and returns that: `SSH-2.0-…`.
///
/// A guest that boots may take the connection and say nothing, or end it, so it is asked again until
/// `deadline`.
pub async fn wait_for_banner(port: u16, deadline: Instant) -> Result<String, SshError> {
    let began = Instant::now();
    let mut patience = FIRST_ATTEMPT;
    loop {
        let until = deadline.min(Instant::now() + patience);
        match timeout_at(until, banner(port)).await {
            Ok(Ok(banner)) => return Ok(banner),
            // QEMU has the port for as long as it lives.
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                return Err(SshError::Closed { port });
            }
            Ok(Err(_)) => {}
            Err(_) => patience = LONGEST_ATTEMPT.min(2 * patience),
        }
        if Instant::now() + PAUSE > deadline {
            let seconds = began.elapsed().as_secs();
            return Err(SshError::Silent { port, seconds });
        }
        sleep(PAUSE).await;
    }
}

/// Asks once.
async fn banner(port: u16) -> io::Result<String> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
    let mut lines = BufReader::new(stream.take(MAX_GREETING_BYTES)).split(b'\n');
    while let Some(line) = lines.next_segment().await? {
        if line.starts_with(b"SSH-2.0-") || line.starts_with(b"SSH-1.99-") {
            let line = String::from_utf8_lossy(&line);
            return Ok(Printable(line.trim_end()).to_string());
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

/// The `ssh` that executes `words` in the guest, or a shell if there are none; its exit status is that
/// of the command, or 255 if it could not log in.
///
/// The user's own configuration has no say: it is made for hosts that stay what they are.
#[must_use]
pub fn command(login: &Login, words: &[String]) -> Command {
    let mut ssh = Command::new("ssh");
    // Of what stands in a path, `ssh` would take some for its own signs; so paths are told from here.
    ssh.current_dir(&login.directory);
    ssh.args(["-F", "none", "-p", &login.port.to_string()]);
    if !login.offers.is_empty() {
        ssh.args(["-i", key::FROM_INSTANCE, "-o", "IdentitiesOnly=yes"]);
    }
    if login.asks == Asks::Nobody {
        ssh.args(["-o", "BatchMode=yes"]);
    }
    for option in [
        // A guest that keeps nothing has other keys after each reboot, and nobody to vouch for them. Who
        // is meant is known all the same: the port is one that QEMU has on this host's loopback, for as
        // long as the VM lives.
        "UserKnownHostsFile=/dev/null",
        "GlobalKnownHostsFile=none",
        "StrictHostKeyChecking=no",
        // Or it tells of every new guest that it is new.
        "LogLevel=ERROR",
    ] {
        ssh.args(["-o", option]);
    }
    ssh.args(["-l", &login.user, "--", "127.0.0.1"]);
    ssh.args(words);
    ssh
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection after the other with these words, and then with none.
    async fn server(listener: TcpListener, answers: &[&[u8]]) {
        for words in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(words).await.unwrap();
        }
        let mut open = Vec::new();
        loop {
            open.push(listener.accept().await.unwrap());
        }
    }

    async fn banner_of(answers: &[&[u8]], patience: Duration) -> Result<String, String> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let waiting = wait_for_banner(port, Instant::now() + patience);
        tokio::select! {
            banner = waiting => banner.map_err(|error| error.to_string().replace(&port.to_string(), "PORT")),
            () = server(listener, answers) => unreachable!("it serves for ever"),
        }
    }

    #[tokio::test]
    async fn a_server_is_one_once_it_says_so() {
        let long = Duration::from_secs(60);
        let check = async |answers: &[&[u8]], expected: &str| {
            assert_eq!(banner_of(answers, long).await.unwrap(), expected);
        };
        check(
            &[b"SSH-2.0-dropbear_2022.83\r\n"],
            "SSH-2.0-dropbear_2022.83",
        )
        .await;
        check(&[b"hello\r\n\r\nSSH-2.0-x\r\n"], "SSH-2.0-x").await;
        // A guest that boots ends what it has nobody for.
        check(&[b"", b"HTTP/1.1 400\r\n", b"SSH-1.99-y\n"], "SSH-1.99-y").await;
        check(&[b"SSH-2.0-\x1b[31mred\n"], "SSH-2.0-\\u{1b}[31mred").await;
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_of_itself_is_none() {
        let endless = vec![b'x'; 64 << 10];
        for answers in [&[][..], &[&endless[..], b"SSH-3.0-z\n"]] {
            let error = banner_of(answers, Duration::from_millis(700)).await;
            let expected = "no SSH server has answered on 127.0.0.1:PORT within 0 s";
            assert_eq!(error, Err(expected.to_owned()));
        }
    }

    #[tokio::test]
    async fn a_port_that_nobody_has_is_not_waited_for() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let far = Instant::now() + Duration::from_secs(600);
        let error = wait_for_banner(port, far).await.unwrap_err();
        assert!(matches!(error, SshError::Closed { .. }), "{error}");
    }
}
