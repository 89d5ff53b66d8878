//! The port of the host that QEMU has chosen for one of the guest's.

use std::num::NonZeroU16;

use serde_json::json;

use crate::domain::DomainSpec;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::qemu::qmp;

/// The TCP port of this host that leads to port `guest` of the VM, which runs; none if none does.
pub async fn forwarded_port(
    spec: &DomainSpec,
    guest: NonZeroU16,
) -> Result<Option<u16>, HypervisorError> {
    // There is no command of the monitor's for programs that tells it.
    let arguments = json!({"command-line": "info usernet"});
    let answer = qmp::execute_with(spec, "human-monitor-command", arguments).await?;
    Ok(port(answer.as_str().unwrap_or_default(), guest))
}

/// Reads the table of `info usernet`: protocol and state, descriptor, address and port of the host,
/// address and port of the guest, and queues.
fn port(table: &str, guest: NonZeroU16) -> Option<u16> {
    table.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words.as_slice() {
            ["TCP[HOST_FORWARD]", _, _, host, _, to, ..] if to.parse() == Ok(guest) => {
                host.parse().ok()
            }
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_the_one_that_leads_to_the_guests() {
        // As QEMU 7.2 prints it, with a connection that is open.
        let table = "Hub -1 (net0):\r
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r
  TCP[ESTABLISHED]   15       127.0.0.1 50000       10.0.2.15    22     0     0\r
  TCP[HOST_FORWARD]   9       127.0.0.1  8080       10.0.2.15    80     0     0\r
  TCP[HOST_FORWARD]   8       127.0.0.1 43787       10.0.2.15    22     0     0\r
  UDP[HOST_FORWARD]   7       127.0.0.1    53       10.0.2.15    53     0     0\r\n";
        for (guest, expected) in [(22, Some(43787)), (80, Some(8080)), (53, None), (1, None)] {
            assert_eq!(port(table, NonZeroU16::new(guest).unwrap()), expected);
        }
        assert_eq!(port("", NonZeroU16::MIN), None);
    }
}
