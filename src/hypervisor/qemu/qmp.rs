//! One command to QEMU's monitor.
//!
//! Protocol: QEMU's docs/interop/qmp-spec.txt: a greeting, capabilities, then commands; one line
//! of JSON each, with events between.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::domain::DomainSpec;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::qemu::args;

/// How long the monitor may take; it serves one client at a time, each for an instant.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that are read of one answer at most.
const MAX_ANSWER_BYTES: u64 = 1 << 20;

/// Executes `command`, which takes no arguments, and returns what it answers.
pub(super) async fn execute(spec: &DomainSpec, command: &str) -> Result<Value, HypervisorError> {
    let error = |message: String| HypervisorError::Monitor {
        domain: spec.name.clone(),
        message,
    };
    match timeout(TIMEOUT, converse(spec, command)).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(source)) => Err(error(source.to_string())),
        Err(_) => Err(error(format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

async fn converse(spec: &DomainSpec, command: &str) -> io::Result<Value> {
    // By way of the directory's descriptor: a socket's own path may have 107 bytes only.
    let directory = File::open(&spec.directory)?;
    let path = format!("/proc/self/fd/{}/{}", directory.as_raw_fd(), args::MONITOR);
    let (reader, mut writer) = UnixStream::connect(path).await?.into_split();
    let mut lines = BufReader::new(reader.take(MAX_ANSWER_BYTES)).lines();
    let mut next = async || -> io::Result<Value> {
        let line = lines.next_line().await?;
        let line = line.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(serde_json::from_str(&line)?)
    };
    next().await?;
    let mut value = Value::Null;
    for command in ["qmp_capabilities", command] {
        let request = json!({"execute": command}).to_string() + "\n";
        writer.write_all(request.as_bytes()).await?;
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
                Err(_) if command == "quit" => break,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(value)
}
