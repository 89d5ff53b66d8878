//! What `doctor` finds of a libvirt of this host.

use std::path::Path;

use serde_json::{Value, json};

use crate::cli::doctor::{Finding, Level, Section, ok, with_source};
use crate::cli::report::mend;
use crate::hypervisor::{HypervisorError, Owner, RunsAs};
use crate::ops::OpsError;
use crate::ops::doctor::LibvirtFacts;

/// What was found of one libvirt; only the daemon where it can not be reached.
pub(super) struct Libvirt<'a> {
    facts: &'a LibvirtFacts,
    daemon: Finding,
    user: Option<Finding>,
    store: Option<Finding>,
    logger: Option<Finding>,
}

impl<'a> Libvirt<'a> {
    pub(super) fn of(facts: &'a LibvirtFacts, store: &Path) -> Self {
        let logger = facts.logger.as_ref();
        Self {
            facts,
            daemon: daemon(&facts.version),
            user: facts.runs_as.map(user),
            store: facts.store.as_ref().map(|found| reached(found, store)),
            logger: logger.map(|answer| match answer {
                Ok(()) => ok("virtlogd answers".to_owned()),
                Err(error) => Finding {
                    level: Level::Fail,
                    message: format!("virtlogd does not answer: {error}"),
                    hint: Some(
                        "no domain starts without it: `systemctl enable --now virtlogd.socket`"
                            .to_owned(),
                    ),
                },
            }),
        }
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, &Finding)> {
        let rest = [
            ("QEMU's user", &self.user),
            ("store", &self.store),
            ("logger", &self.logger),
        ];
        let rest = rest.into_iter();
        let rest = rest.filter_map(|(name, finding)| Some((name, finding.as_ref()?)));
        std::iter::once(("daemon", &self.daemon)).chain(rest)
    }

    pub(super) fn worst(&self) -> Level {
        let levels = self.named().map(|(_, finding)| finding.level);
        levels.max().unwrap_or(Level::Ok)
    }

    pub(super) fn section(&self) -> Section {
        let title = format!("libvirt at {}", self.facts.uri);
        let mut section = Section::of(title.clone(), title);
        for (name, finding) in self.named() {
            section.add(name, finding.clone());
        }
        section
    }

    pub(super) fn json(&self) -> Value {
        let mut daemon = self.daemon.json();
        daemon["version"] = json!(self.facts.version.as_ref().ok());
        let user = self.user.as_ref().map(|finding| {
            let mut user = finding.json();
            let owner = self.facts.runs_as.and_then(RunsAs::other_user);
            user["uid"] = json!(owner.map(|owner| owner.uid));
            user["gid"] = json!(owner.map(|owner| owner.gid));
            user
        });
        json!({
            "uri": self.facts.uri,
            "level": self.worst().as_str(),
            "daemon": daemon,
            "qemu_user": user,
            "store": self.store.as_ref().map(Finding::json),
            "logger": self.logger.as_ref().map(Finding::json),
        })
    }
}

/// Not everybody has need of libvirt: `run` does without.
fn daemon(version: &Result<String, HypervisorError>) -> Finding {
    match version {
        Ok(version) => ok(format!("libvirt {version}")),
        Err(error) => Finding {
            level: Level::Warn,
            message: error.to_string(),
            hint: Some(match error {
                HypervisorError::NoLibvirt { .. } => "build with --features libvirt".to_owned(),
                _ => "start libvirtd; for qemu:///system be root or in group libvirt".to_owned(),
            }),
        },
    }
}

fn user(runs_as: RunsAs) -> Finding {
    let owner = |Owner { uid, gid }| format!("user {uid}, group {gid}");
    match runs_as {
        RunsAs::Caller => ok("whoever calls".to_owned()),
        RunsAs::Given(user) => ok(format!("{}: a VM's own files are given to it", owner(user))),
        RunsAs::Lent(Some(user)) => ok(format!(
            "{}: libvirt lends it a VM's own files",
            owner(user)
        )),
        RunsAs::Lent(None) => Finding {
            level: Level::Warn,
            message: "libvirt does not tell it".to_owned(),
            hint: Some("see user, group and security_driver in /etc/libvirt/qemu.conf".to_owned()),
        },
    }
}

fn reached(found: &Result<(), OpsError>, store: &Path) -> Finding {
    match found {
        Ok(()) => ok(format!("{} can be reached", store.display())),
        Err(OpsError::Unreachable(error)) => Finding {
            level: Level::Fail,
            message: error.to_string(),
            hint: Some(mend(error)),
        },
        Err(error) => Finding {
            level: Level::Fail,
            message: with_source(error),
            hint: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::reach::{By, Closed, Lacks, Unreachable};

    const USER: Owner = Owner {
        uid: 64055,
        gid: 108,
    };

    fn closed(lacks: Lacks, by: By, path: &str) -> Closed {
        let path = path.into();
        Closed { lacks, by, path }
    }

    #[test]
    fn what_keeps_qemus_user_from_the_store_is_told_with_the_command_that_mends_it() {
        let closed = vec![
            closed(Lacks::Pass, By::Others, "/home/a b"),
            closed(Lacks::Pass, By::Others, "/home/a b/x"),
            closed(Lacks::Pass, By::List, "/home/a b/x/y"),
            closed(Lacks::Read, By::Group, "/f"),
        ];
        let facts = LibvirtFacts {
            uri: "qemu:///system",
            version: Ok("9.0.0".to_owned()),
            runs_as: Some(RunsAs::Given(USER)),
            store: Some(Err(Unreachable { uid: 64055, closed }.into())),
            logger: Some(Err(std::io::Error::from(std::io::ErrorKind::NotFound))),
        };
        let found = Libvirt::of(&facts, Path::new("/home/a b/x/y"));
        assert_eq!(
            found.section().text(),
            "\
libvirt at qemu:///system
  ok    daemon        libvirt 9.0.0
  ok    QEMU's user   user 64055, group 108: a VM's own files are given to it
  fail  store         QEMU runs as user 64055, who may not pass through /home/a b, nor pass through \
             /home/a b/x, nor pass through /home/a b/x/y, nor read /f
        hint: open it with `chmod g+r /f && chmod o+x '/home/a b' '/home/a b/x' && \
             setfacl -m u:64055:x '/home/a b/x/y'`, or pass --store
  fail  logger        virtlogd does not answer: entity not found
        hint: no domain starts without it: `systemctl enable --now virtlogd.socket`
"
        );
        assert_eq!(found.worst(), Level::Fail);
        let json = found.json();
        assert_eq!(json["qemu_user"]["uid"], 64055);
        assert_eq!(json["daemon"]["version"], "9.0.0");
        assert_eq!(json["store"]["level"], "fail");
    }

    #[test]
    fn of_one_that_can_not_be_reached_nothing_else_is_told_and_not_everybody_needs_it() {
        let message = "no such socket".to_owned();
        let uri = "qemu:///session".to_owned();
        let facts = LibvirtFacts {
            uri: "qemu:///session",
            version: Err(HypervisorError::Connect { uri, message }),
            runs_as: None,
            store: None,
            logger: None,
        };
        let found = Libvirt::of(&facts, Path::new("/s"));
        assert_eq!(
            found.section().text(),
            "\
libvirt at qemu:///session
  warn  daemon        can not connect to libvirt at qemu:///session: no such socket
        hint: start libvirtd; for qemu:///system be root or in group libvirt
"
        );
        let json = found.json();
        assert_eq!(json["level"], "warn");
        assert_eq!(json["qemu_user"], Value::Null);
    }

    #[test]
    fn a_session_and_a_member_of_the_group_have_their_own_words() {
        assert_eq!(user(RunsAs::Caller).message, "whoever calls");
        let lent = user(RunsAs::Lent(Some(USER)));
        let expected = "user 64055, group 108: libvirt lends it a VM's own files";
        assert_eq!(lent.message, expected);
        assert_eq!(user(RunsAs::Lent(None)).level, Level::Warn);
    }
}
