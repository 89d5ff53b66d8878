//! A QEMU that runs in a directory of which nobody can tell what it is, as its record is lost or
//! damaged.

use std::path::Path;

use crate::domain::DomainName;
use crate::hypervisor::qemu::{QUIT_TIMEOUT, ends_within, is_running, kill};
use crate::hypervisor::{DomainState, HypervisorError};

/// Tells whether a QEMU of ours runs in `directory`.
pub fn state(directory: &Path) -> Result<DomainState, HypervisorError> {
    Ok(if is_running(directory)? {
        DomainState::Running
    } else {
        DomainState::Stopped
    })
}

/// Ends the QEMU that runs in `directory`, at once; `name` is for errors.
pub async fn end(name: &DomainName, directory: &Path) -> Result<(), HypervisorError> {
    if !is_running(directory)? {
        return Ok(());
    }
    kill(directory)?;
    if ends_within(directory, QUIT_TIMEOUT).await? {
        return Ok(());
    }
    Err(HypervisorError::StopTimeout {
        domain: name.clone(),
        seconds: QUIT_TIMEOUT.as_secs(),
    })
}
