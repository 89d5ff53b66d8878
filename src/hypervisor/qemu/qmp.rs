//! One command to QEMU's monitor.
//!
//! Protocol: QEMU's docs/interop/qmp-spec.txt: a greeting, capabilities, then commands; one line
//! of JSON each, with events between.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::domain::DomainSpec;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::qemu::args;

/// How long the monitor may take; it serves one client at a time, each for an instant.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that are read of one answer at most.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// Makes the socket of a monitor for QEMU to inherit; another in its place is gone.
pub(super) fn listen(directory: &Path) -> Result<UnixListener, HypervisorError> {
    listen_at(directory, args::MONITOR)
}

/// Makes a socket of this name, which nothing else has.
pub(super) fn listen_at(directory: &Path, name: &str) -> Result<UnixListener, HypervisorError> {
    let failed = |source| HypervisorError::Io {
        path: directory.join(name),
        source,
    };
    let (_open, path) = path_in(directory, name).map_err(failed)?;
    let listen = || {
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    listen().map_err(failed)
}

/// Connects to the socket of this name.
pub(super) fn connect_at(
    directory: &Path,
    name: &str,
) -> Result<std::os::unix::net::UnixStream, HypervisorError> {
    let connect = || {
        let (_open, path) = path_in(directory, name)?;
        std::os::unix::net::UnixStream::connect(path)
    };
    connect().map_err(|source| HypervisorError::Io {
        path: directory.join(name),
        source,
    })
}

/// A socket's path by way of the directory's descriptor, for as long as that is open: a socket's
/// own path may have 107 bytes only.
fn path_in(directory: &Path, name: &str) -> io::Result<(File, String)> {
    let directory = File::open(directory)?;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    Ok((directory, path))
}

/// Executes `command`, which takes no arguments, and returns what it answers.
pub(super) async fn execute(spec: &DomainSpec, command: &str) -> Result<Value, HypervisorError> {
    execute_within(spec, command, TIMEOUT).await
}

/// Executes `command` with these arguments, an object.
pub(super) async fn execute_with(
    spec: &DomainSpec,
    command: &str,
    arguments: Value,
) -> Result<Value, HypervisorError> {
    let request = json!({"execute": command, "arguments": arguments});
    request_within(spec, request, TIMEOUT).await
}

/// Executes `command` where the monitor may take so long.
pub(super) async fn execute_within(
    spec: &DomainSpec,
    command: &str,
    patience: Duration,
) -> Result<Value, HypervisorError> {
    request_within(spec, json!({"execute": command}), patience).await
}

async fn request_within(
    spec: &DomainSpec,
    request: Value,
    patience: Duration,
) -> Result<Value, HypervisorError> {
    match timeout(patience, converse(spec, request)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(failed(spec, source.to_string())),
        Err(_) => Err(unanswered(spec, patience)),
    }
}

pub(super) fn failed(spec: &DomainSpec, message: String) -> HypervisorError {
    HypervisorError::Monitor {
        domain: spec.name.clone(),
        message,
    }
}

pub(super) fn unanswered(spec: &DomainSpec, patience: Duration) -> HypervisorError {
    failed(spec, format!("no answer within {} s", patience.as_secs()))
}

pub(super) async fn connect(directory: &Path) -> io::Result<UnixStream> {
    let (_open, path) = path_in(directory, args::MONITOR)?;
    UnixStream::connect(path).await
}

async fn converse(spec: &DomainSpec, request: Value) -> io::Result<Value> {
    let (reader, mut writer) = connect(&spec.directory).await?.into_split();
    let mut lines = BufReader::new(reader.take(MAX_ANSWER_BYTES)).lines();
    let mut next = async || -> io::Result<Value> {
        let line = lines.next_line().await?;
        let line = line.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(serde_json::from_str(&line)?)
    };
    next().await?;
    let mut value = Value::Null;
    let is_quit = request["execute"] == "quit";
    for request in [json!({"execute": "qmp_capabilities"}), request] {
        writer.write_all(format!("{request}\n").as_bytes()).await?;
        loop {
            match next().await {
                Ok(mut answer) => {
                    if let Some(answered) = answer.get_mut("return") {
                        value = answered.take();
                        break;
                    }
                    if let Some(error) = answer.get("error") {
                        return Err(io::Error::other(error["desc"].to_string()));
                    }
                }
                // It may end before it has answered that it will.
                Err(_) if is_quit => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(value)
}
