//! The key of a store's, by which its VMs let their user in.
//!
//! ```text
//! <store>/ssh/   0700   id_ed25519, id_ed25519.pub: made once, by `ssh-keygen`
//! ```
//!
//! A guest is offered it in ways that do no harm to one that does not know them: as the credential that
//! systemd's own tmpfiles.d writes to root's `authorized_keys`, and, where the image starts Ignition and
//! has no config of the user's, in a config that does the same. Whether it takes it nobody is told.

use std::io;
use std::process::Stdio;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::json;

use crate::boot::{BootMethod, BootPlan, CommandLine};
use crate::domain::{DomainSpec, FwCfg};
use crate::files::{self, FileError};
use crate::ops::ssh::SshError;
use crate::ops::{Context, OpsError, Progress};
use crate::stage::{GuestFile, Inspected};
use crate::store::Store;

/// The directory of both halves, in a store.
const DIRECTORY: &str = "ssh";
/// The private key as seen from the directory of an instance.
pub(super) const FROM_INSTANCE: &str = "../../ssh/id_ed25519";
/// The credential by which systemd takes keys of root's (252 and later; systemd's provision.conf).
pub const CREDENTIAL: &str = "opt/io.systemd.credentials/ssh.authorized_keys.root";
/// The key by which Ignition finds its config under QEMU.
pub const IGNITION: &str = "opt/com.coreos/config";
/// Bytes of a public key that are read at most; one of this kind has about 90.
const MAX_BYTES: u64 = 1 << 10;

/// The public half, as it stands in `authorized_keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key(String);

/// A way by which a guest was offered the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// As [`CREDENTIAL`].
    Credential,
    /// In an Ignition config.
    Ignition,
}

impl Offer {
    /// What it is called.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Credential => "the systemd credential ssh.authorized_keys.root",
            Self::Ignition => "an Ignition config",
        }
    }
}

/// The key, if the store has one.
pub fn find(store: &Store) -> Result<Option<Key>, OpsError> {
    let path = store.root().join(DIRECTORY).join("id_ed25519.pub");
    let text = files::read_small(&path, MAX_BYTES)?;
    let text = text.map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
    // It goes to guests as it stands, so what is not one line of a key is none.
    Ok(text
        .filter(|text| text.starts_with("ssh-ed25519 ") && !text.contains(char::is_control))
        .map(Key))
}

/// The key; makes it if there is none yet. Where that can not be done, it is told, and there is none.
pub(in crate::ops) async fn make(context: &Context<'_>) -> Result<Option<Key>, OpsError> {
    let directory = context.store.root().join(DIRECTORY);
    // It gets there whole, so what is there now has the key, if any.
    let is_there = directory.exists();
    if let Some(key) = find(&context.store)? {
        return Ok(Some(key));
    }
    if is_there {
        (context.report)(Progress::BrokenSshKey(directory));
        return Ok(None);
    }
    match generate(&context.store).await {
        Ok(()) => {}
        Err(error) => (context.report)(Progress::NoSshKey {
            reason: reason(&error),
        }),
    }
    find(&context.store)
}

fn reason(error: &OpsError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// Makes the directory with both halves, in one step; whoever comes second leaves that of the first.
async fn generate(store: &Store) -> Result<(), OpsError> {
    let (draft, _lock) = files::scratch_dir(&store.scratch())?;
    let program = "ssh-keygen";
    let made = tokio::process::Command::new(program)
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "ironboot", "-f"])
        .arg(draft.path().join("id_ed25519"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .status()
        .await;
    let failed = |source| SshError::Program { program, source };
    let status = made.map_err(failed)?;
    if !status.success() {
        return Err(failed(io::Error::other(status.to_string())).into());
    }
    files::sync_dir(draft.path())?;
    let directory = store.root().join(DIRECTORY);
    match renameat_with(CWD, draft.path(), CWD, &directory, RenameFlags::NOREPLACE) {
        // Renamed away, so there is nothing left to delete under the old name.
        Ok(()) => drop(draft.keep()),
        Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(FileError::of("create", &directory)(error.into()).into()),
    }
    Ok(files::sync_dir(store.root())?)
}

/// By which ways the guest of `spec` was offered the store's key.
pub fn offers(store: &Store, spec: &DomainSpec) -> Result<Vec<Offer>, OpsError> {
    let Some(key) = find(store)? else {
        return Ok(Vec::new());
    };
    let mut offers = Vec::new();
    for FwCfg { name, file } in &spec.fw_cfg {
        let (offer, content) = match name.as_str() {
            CREDENTIAL => (Offer::Credential, key.0.clone()),
            IGNITION => (Offer::Ignition, key.config()),
            _ => continue,
        };
        // One of the user's own has other content.
        let limit = content.len() as u64;
        let is_ours = files::read_small(file, limit)
            .is_ok_and(|there| there.is_some_and(|bytes| bytes == content.as_bytes()));
        offers.extend(is_ours.then_some(offer));
    }
    Ok(offers)
}

impl Key {
    /// What offers it to a guest that boots as `plan` says and is given `others` already.
    pub(in crate::ops) fn files(
        &self,
        (plan, inspected): (&BootPlan, &Inspected),
        others: &[GuestFile],
    ) -> Vec<GuestFile> {
        let line = match &plan.method {
            BootMethod::Direct(direct) => Some(&direct.command_line),
            BootMethod::Uki(_) => inspected.uki.as_ref().map(|uki| &uki.command_line),
            BootMethod::Disk { .. } | BootMethod::Iso { .. } => None,
        };
        let mut files = vec![(CREDENTIAL, self.0.clone())];
        if line.is_some_and(starts_ignition) {
            files.push((IGNITION, self.config()));
        }
        files.retain(|(name, _)| others.iter().all(|other| other.name.as_str() != *name));
        let files = files.into_iter().map(|(name, content)| GuestFile {
            name: name.parse().expect("both names are of fw_cfg's letters"),
            content: content.into_bytes(),
        });
        files.collect()
    }

    /// The smallest Ignition config that has it.
    ///
    /// Format: Ignition's docs/configuration-v3_3.md.
    fn config(&self) -> String {
        let root = json!({"name": "root", "sshAuthorizedKeys": [self.0]});
        json!({"ignition": {"version": "3.3.0"}, "passwd": {"users": [root]}}).to_string()
    }
}

/// Whether an image with this command line reads an Ignition config from QEMU at its first boot.
fn starts_ignition(line: &CommandLine) -> bool {
    line.parameter("ignition.platform.id") == Some("qemu")
        || line.has_parameter("ignition.firstboot")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignition_is_told_by_the_command_line() {
        for (line, expected) in [
            ("ro ignition.platform.id=qemu", true),
            ("ignition.firstboot ignition.platform.id=metal", true),
            ("ignition.firstboot=1", true),
            ("ignition.platform.id=metal", false),
            ("\"x ignition.firstboot\"", false),
            ("ro", false),
        ] {
            assert_eq!(starts_ignition(&line.parse().unwrap()), expected, "{line}");
        }
    }

    #[test]
    fn a_config_for_ignition_is_json_whatever_the_key_says() {
        let key = Key("ssh-ed25519 AAAA it's \"mine\"".to_owned());
        let config: serde_json::Value = serde_json::from_str(&key.config()).unwrap();
        assert_eq!(config["passwd"]["users"][0]["sshAuthorizedKeys"][0], key.0);
    }

    #[test]
    fn what_is_no_key_is_not_given_to_anybody() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        assert_eq!(find(&store).unwrap(), None);
        std::fs::create_dir(directory.path().join("ssh")).unwrap();
        let check = |text: &str, expected: Option<&str>| {
            std::fs::write(directory.path().join("ssh/id_ed25519.pub"), text).unwrap();
            let key = find(&store).unwrap();
            assert_eq!(key.map(|key| key.0).as_deref(), expected, "{text:?}");
        };
        check(
            "ssh-ed25519 AAAA ironboot\n",
            Some("ssh-ed25519 AAAA ironboot"),
        );
        check("ssh-ed25519 AAAA x\ncommand=\"y\" ssh-rsa z\n", None);
        check("", None);
        check("-----BEGIN OPENSSH PRIVATE KEY-----\n", None);
    }
}
