//! What QEMU tells of a VM of its own accord, for as long as somebody listens.
//!
//! Its monitor serves one client at a time: whoever listens keeps all others waiting, and must let
//! go before the VM is asked or told anything.
//!
//! Source: QEMU's qapi/run-state.json.

use std::io;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::domain::DomainSpec;
use crate::hypervisor::qemu::qmp;
use crate::hypervisor::{HypervisorError, Trouble};

/// Bytes that one message of the monitor's may have.
const MAX_MESSAGE_BYTES: u64 = 1 << 20;

/// The monitor of a VM, listened to.
#[derive(Debug)]
pub struct Events {
    monitor: BufReader<UnixStream>,
    /// What has come of a message so far.
    part: Vec<u8>,
    spec: DomainSpec,
}

/// Something that QEMU told.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// What it comes to.
    pub happening: Happening,
    /// The message as it came.
    pub message: Value,
}

/// What a message of QEMU's comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Happening {
    /// The guest has reset the machine, which starts again.
    Reset,
    /// Something keeps the VM from running.
    Trouble(Trouble),
    /// Nothing that decides anything.
    Other,
}

impl Events {
    /// Listens to a VM that runs; none if it has ended.
    pub async fn open(spec: &DomainSpec) -> Result<Option<Self>, HypervisorError> {
        match timeout(qmp::TIMEOUT, Self::greet(spec)).await {
            Ok(Ok(events)) => Ok(Some(events)),
            _ if !super::is_running(&spec.directory)? => Ok(None),
            Ok(Err(source)) => Err(qmp::failed(spec, source.to_string())),
            Err(_) => Err(qmp::unanswered(spec, qmp::TIMEOUT)),
        }
    }

    async fn greet(spec: &DomainSpec) -> io::Result<Self> {
        let monitor = BufReader::new(qmp::connect(&spec.directory).await?);
        let mut events = Self {
            monitor,
            part: Vec::new(),
            spec: spec.clone(),
        };
        events.message().await?;
        // From the answer to the first on, it tells; the second's answer comes among the events.
        events.ask("qmp_capabilities").await?;
        events.ask("query-status").await?;
        Ok(events)
    }

    async fn ask(&mut self, command: &str) -> io::Result<()> {
        let line = json!({"execute": command}).to_string() + "\n";
        self.monitor.write_all(line.as_bytes()).await
    }

    /// The next event; none when QEMU has ended. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Event> {
        loop {
            // What ends or babbles tells nothing any more.
            let message = self.message().await.ok()??;
            if message["event"] == "STOP" {
                // Why, the status tells.
                self.ask("query-status").await.ok()?;
            }
            let happening = self.judge(&message);
            if message.get("event").is_some() || happening != Happening::Other {
                return Some(Event { happening, message });
            }
        }
    }

    async fn message(&mut self) -> io::Result<Option<Value>> {
        let left = MAX_MESSAGE_BYTES.saturating_sub(self.part.len() as u64);
        let mut monitor = (&mut self.monitor).take(left);
        // Dropped halfway, what has come is kept for the next time.
        monitor.read_until(b'\n', &mut self.part).await?;
        if !self.part.ends_with(b"\n") {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.part);
        self.part.clear();
        Ok(Some(message?))
    }

    fn judge(&self, message: &Value) -> Happening {
        let trouble = |status: &str| {
            let answer = json!({"status": status});
            super::trouble(&answer, &super::words(&self.spec))
        };
        let found = match message["event"].as_str() {
            Some("RESET") if message["data"]["guest"] == true => return Happening::Reset,
            Some("GUEST_PANICKED") => trouble("guest-panicked"),
            Some("BLOCK_IO_ERROR") if message["data"]["action"] == "stop" => trouble("io-error"),
            Some(_) => None,
            None => message["return"]["status"].as_str().and_then(trouble),
        };
        found.map_or(Happening::Other, Happening::Trouble)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tokio::net::UnixListener;

    use super::*;
    use crate::domain::Machine;
    use crate::files::{Lock, Wait};
    use crate::hypervisor::qemu::args;
    use crate::hypervisor::samples;

    #[tokio::test]
    async fn what_qemu_tells_is_heard_until_it_ends() {
        let directory = tempfile::tempdir().unwrap();
        let spec = DomainSpec {
            directory: directory.path().to_owned(),
            ..samples::direct(Machine::Amd64)
        };
        let log = directory.path().join("qemu.log");
        fs::write(&log, "error: kvm run failed Bad address\n").unwrap();
        let _runs = Lock::exclusive(&log, Wait::No).unwrap();
        let monitor = UnixListener::bind(directory.path().join(args::MONITOR)).unwrap();
        let qemu = async {
            let mut client = BufReader::new(monitor.accept().await.unwrap().0);
            let mut asked = Vec::new();
            for says in [
                json!({"QMP": {}}),
                json!({"return": {}}),
                json!({"return": {"status": "running"}}),
                json!({"event": "RTC_CHANGE", "data": {}}),
                json!({"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}),
                json!({"event": "STOP"}),
                json!({"return": {"status": "internal-error"}}),
                json!({"event": "SHUTDOWN", "data": {"guest": true}}),
            ] {
                if says.get("return").is_some() {
                    let mut line = String::new();
                    client.read_line(&mut line).await.unwrap();
                    asked.push(serde_json::from_str::<Value>(&line).unwrap()["execute"].take());
                }
                let line = says.to_string() + "\r\n";
                client.write_all(line.as_bytes()).await.unwrap();
            }
            asked
        };
        let listener = async {
            let mut events = Events::open(&spec).await.unwrap().unwrap();
            let mut heard = Vec::new();
            while let Some(event) = events.next().await {
                heard.push(event.happening);
            }
            heard
        };
        let (asked, heard) = tokio::join!(qemu, listener);
        let commands = ["qmp_capabilities", "query-status", "query-status"];
        assert_eq!(asked, commands);
        let words = "error: kvm run failed Bad address".to_owned();
        assert_eq!(
            heard,
            [
                Happening::Other,
                Happening::Reset,
                Happening::Other,
                Happening::Trouble(Trouble::Internal(words)),
                Happening::Other,
            ]
        );
    }

    #[tokio::test]
    async fn a_vm_that_has_ended_tells_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let spec = DomainSpec {
            directory: directory.path().to_owned(),
            ..samples::direct(Machine::Amd64)
        };
        assert!(Events::open(&spec).await.unwrap().is_none());
    }
}
