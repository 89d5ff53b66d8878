//! What `doctor` says of the host itself, of the store, and of what is said of registries.

use std::io;
use std::path::Path;

use indicatif::HumanBytes;

use crate::cli::doctor::{Finding, Level, Section, ok, with_source};
use crate::cli::report::NO_VIRTIOFSD;
use crate::cli::script::quoted;
use crate::domain::Accelerator;
use crate::files::Way;
use crate::hypervisor::qemu::trial::Trial;
use crate::ops::doctor::{HereFacts, RegistryFacts, StoreFacts};
use crate::source::SourceError;

/// With less than this of the disk left, the next image may not fit.
const FEW_BYTES: u64 = 4 << 30;
/// With less than this nothing fits.
const NO_BYTES: u64 = 64 << 20;
/// A VM's files are about ten.
const FEW_FILES: u64 = 1000;

/// `command` for Debian and what is made of it.
fn install(package: &str) -> Option<String> {
    Some(format!("on Debian: `apt-get install {package}`"))
}

fn warn(message: String, hint: Option<String>) -> Finding {
    Finding {
        level: Level::Warn,
        message,
        hint,
    }
}

fn fail(message: String, hint: Option<String>) -> Finding {
    Finding {
        level: Level::Fail,
        message,
        hint,
    }
}

/// The host itself, and how firmware did in a trial.
pub(super) fn host(facts: &HereFacts, trials: &[(Accelerator, Trial)]) -> Section {
    let mut section = Section::of("host", "this host");
    match &facts.cpu {
        Some(Ok(flag)) => section.add("CPU", ok(format!("runs guests: {flag}"))),
        Some(Err(vendor)) => section.add(
            "CPU",
            warn(
                format!("{vendor} without vmx or svm, so that guests run slowly"),
                Some(
                    "enable virtualization in the host's firmware; in a VM, nested virtualization \
                     on its host"
                        .to_owned(),
                ),
            ),
        ),
        None => {}
    }
    let module = match &facts.cpu {
        Some(Err(vendor)) if vendor == "AuthenticAMD" => "kvm_amd",
        Some(Ok("svm")) => "kvm_amd",
        Some(_) => "kvm_intel",
        None => "kvm",
    };
    let group = facts.kvm_group.as_deref();
    section.add("KVM", device("/dev/kvm", &facts.kvm, module, group));
    match &facts.verdict {
        Some(verdict) if verdict.works => {
            section.add("KVM's guests", ok(format!("run: {}", verdict.reason)));
        }
        Some(verdict) => section.add(
            "KVM's guests",
            warn(
                format!("do not run: {}; they run under tcg, slowly", verdict.reason),
                Some("`ironboot doctor --boot` tries again".to_owned()),
            ),
        ),
        None => {}
    }
    for (accelerator, trial) in trials {
        section.add(
            match accelerator {
                Accelerator::Kvm => "boot by kvm",
                Accelerator::Tcg => "boot by tcg",
            },
            tried(*accelerator, trial),
        );
    }
    for (name, path) in &facts.programs {
        let finding = match (path, *name) {
            (Some(path), _) => ok(path.display().to_string()),
            (None, "virtiofsd") => warn(
                "is not installed; directories of the host are shared by it".to_owned(),
                Some(NO_VIRTIOFSD.to_owned()),
            ),
            (None, _) => warn(
                "is not installed; SSH into guests needs it".to_owned(),
                install("openssh-client"),
            ),
        };
        section.add(name, finding);
    }
    section
}

/// A device that guests are faster with.
fn device(path: &str, opens: &Result<(), io::Error>, module: &str, group: Option<&str>) -> Finding {
    let Err(error) = opens else {
        return ok(format!("{path} opens"));
    };
    match (error.kind(), group) {
        (io::ErrorKind::NotFound, _) => warn(
            format!("there is no {path}"),
            Some(format!("`sudo modprobe {module}`")),
        ),
        (io::ErrorKind::PermissionDenied, Some(group)) if group != "root" => warn(
            format!("you may not open {path}; group {group} may"),
            Some(format!(
                "`sudo usermod -aG {group} \"$USER\"`, then log in again"
            )),
        ),
        (io::ErrorKind::PermissionDenied, _) => warn(
            format!("you may not open {path}"),
            Some(format!("`sudo setfacl -m u:\"$USER\":rw {path}`")),
        ),
        _ => warn(
            format!("{path} does not open: {error}"),
            Some(format!("`sudo modprobe {module}`")),
        ),
    }
}

fn tried(accelerator: Accelerator, trial: &Trial) -> Finding {
    let message = match trial {
        Trial::Lives(after) => {
            return ok(format!(
                "firmware printed after {:.1} s",
                after.as_secs_f64()
            ));
        }
        Trial::Silent(limit) => format!("firmware stayed silent for {} s", limit.as_secs()),
        Trial::Ended(words) => format!("QEMU ended: {words}"),
        Trial::NotStarted(error) => format!("QEMU can not be started: {error}"),
    };
    match accelerator {
        Accelerator::Kvm => warn(
            message,
            Some("guests run by tcg, slowly; another kernel or QEMU may mend it".to_owned()),
        ),
        Accelerator::Tcg => fail(message, Some("install QEMU again".to_owned())),
    }
}

/// Where the store is, and on what.
pub(super) fn store(facts: &StoreFacts, root: &Path) -> Section {
    let mut section = Section::of("store", "the store");
    section.add("directory", directory(facts, root));
    section.add(
        "space",
        match &facts.free {
            Ok((bytes, files)) => space(*bytes, *files),
            Err(error) => fail(error.to_string(), None),
        },
    );
    let kind = facts.file_system.as_deref().unwrap_or("unknown");
    let elsewhere = Some("`export IRONBOOT_STORE=DIR`, where DIR is on a disk".to_owned());
    let finding = match kind {
        "btrfs" | "bcachefs" => ok(format!("{kind}: reflinks and direct I/O")),
        "xfs" => ok("xfs: direct I/O, and reflinks unless made without".to_owned()),
        "tmpfs" | "ramfs" => warn(format!("{kind}: images take memory"), elsewhere),
        "nfs" | "nfs4" | "cifs" | "9p" | "fuse.sshfs" => warn(
            format!("{kind}: locks and owners are what the other side makes of them"),
            elsewhere,
        ),
        "ext4" | "ext3" | "f2fs" => ok(format!("{kind}: direct I/O, no reflinks")),
        other => ok(other.to_owned()),
    };
    section.add("file system", finding);
    section
}

fn directory(facts: &StoreFacts, root: &Path) -> Finding {
    let (shown, nearest) = (root.display(), facts.nearest.display());
    let elsewhere = "`export IRONBOOT_STORE=DIR`, where DIR is a directory of yours".to_owned();
    match &facts.way {
        Err(error) => return fail(format!("{shown}: {error}"), Some(elsewhere)),
        Ok(Way::Exposed(open)) => {
            let message = format!(
                "{shown} can be replaced by everybody who may write to {}",
                open.display()
            );
            let hint = format!("`chmod o-w {}`, or {elsewhere}", quoted(open));
            return fail(message, Some(hint));
        }
        Ok(Way::Clear | Way::Nowhere) => {}
    }
    if !facts.is_writable {
        return fail(
            format!("{shown}: you may not write to {nearest}"),
            Some(elsewhere),
        );
    }
    let caller = rustix::process::geteuid().as_raw();
    match facts.owner {
        _ if facts.nearest != root => ok(format!("{shown}, which the first pull makes")),
        Some(owner) if owner != caller => warn(
            format!("{shown} belongs to user {owner}, you are {caller}"),
            Some(elsewhere),
        ),
        _ => ok(format!("{shown}, yours")),
    }
}

fn space(bytes: u64, files: Option<u64>) -> Finding {
    let message = match files {
        Some(files) => format!("{} and {files} files are free", HumanBytes(bytes)),
        None => format!("{} are free", HumanBytes(bytes)),
    };
    let hint = Some("`ironboot image prune --older-than 30d`".to_owned());
    if bytes < NO_BYTES || files == Some(0) {
        fail(message, hint)
    } else if bytes < FEW_BYTES || files.is_some_and(|files| files < FEW_FILES) {
        warn(message, hint)
    } else {
        ok(message)
    }
}

/// What is said of registries; `trouble` is what keeps that from being used.
pub(super) fn registries(facts: &RegistryFacts, trouble: Option<&SourceError>) -> Section {
    let mut section = Section::of("registries", "registries");
    if let Some(error) = trouble {
        let message = with_source(error);
        section.add(
            "settings",
            fail(message, Some("mend it, or remove it".to_owned())),
        );
    }
    if facts.credentials.is_empty() {
        section.add(
            "credentials",
            ok("none: whatever anybody may pull".to_owned()),
        );
    }
    for file in &facts.credentials {
        let path = file.path.display();
        let missing = file.helpers.iter().find(|(_, is_there)| !is_there);
        let finding = if let Some((program, _)) = missing {
            warn(
                format!("{path} asks {program}, which is not in PATH"),
                Some(format!("install {program}, or `podman login` without it")),
            )
        } else if file.readable_by_others {
            warn(
                format!("{path} can be read by others"),
                Some(format!("`chmod go-rwx {}`", quoted(&file.path))),
            )
        } else {
            let helpers = file.helpers.iter().map(|(program, _)| program.clone());
            let named: Vec<String> = file.registries.iter().cloned().chain(helpers).collect();
            ok(format!("{path}: {}", named.join(", ")))
        };
        section.add("credentials", finding);
    }
    if facts.hosts.is_empty() {
        section.add(
            "mirrors",
            ok("none: each registry is asked itself".to_owned()),
        );
    }
    for told in &facts.hosts {
        let finding = match &told.places {
            Ok(places) => ok(format!("{}: {}", told.registry, places.join(", then "))),
            Err(error) => fail(
                with_source(error),
                Some(format!("mend {}, or remove it", told.directory.display())),
            ),
        };
        section.add("mirrors", finding);
    }
    section.add(
        "policy",
        match &facts.policy {
            Ok(Some(path)) => ok(path.display().to_string()),
            Ok(None) => ok("none: every image is let in".to_owned()),
            Err(error) => fail(
                with_source(error),
                Some("no image is let in until it is mended".to_owned()),
            ),
        },
    );
    section.add(
        "proxies",
        match facts.proxies.as_slice() {
            [] => ok("none".to_owned()),
            hosts => ok(hosts.join(", ")),
        },
    );
    section
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: io::ErrorKind) -> Result<(), io::Error> {
        Err(kind.into())
    }

    #[test]
    fn a_device_that_does_not_open_is_told_with_the_command_that_mends_it() {
        let hint = |result: Result<(), io::Error>, group| {
            let found = device("/dev/kvm", &result, "kvm_amd", group);
            (found.level, found.hint)
        };
        assert_eq!(hint(Ok(()), None), (Level::Ok, None));
        for (kind, group, expected) in [
            (io::ErrorKind::NotFound, None, "`sudo modprobe kvm_amd`"),
            (
                io::ErrorKind::PermissionDenied,
                Some("kvm"),
                "`sudo usermod -aG kvm \"$USER\"`, then log in again",
            ),
            (
                io::ErrorKind::PermissionDenied,
                Some("root"),
                "`sudo setfacl -m u:\"$USER\":rw /dev/kvm`",
            ),
        ] {
            let expected = (Level::Warn, Some(expected.to_owned()));
            assert_eq!(hint(error(kind), group), expected);
        }
    }

    #[test]
    fn a_disk_that_is_nearly_full_is_told_and_one_that_is_full_is_worse() {
        assert_eq!(space(5 << 30, None).level, Level::Ok);
        assert_eq!(space(5 << 30, Some(10)).level, Level::Warn);
        assert_eq!(space(3 << 30, Some(1 << 20)).level, Level::Warn);
        assert_eq!(space(1 << 20, Some(1 << 20)).level, Level::Fail);
        assert_eq!(space(5 << 30, Some(0)).level, Level::Fail);
        let message = space(3 << 30, Some(2000)).message;
        assert_eq!(message, "3.00 GiB and 2000 files are free");
    }

    #[test]
    fn a_store_that_others_can_replace_or_that_is_not_to_be_written_is_of_no_use() {
        let facts = |way, is_writable| StoreFacts {
            nearest: "/s".into(),
            owner: None,
            is_writable,
            way: Ok(way),
            free: Ok((1 << 40, None)),
            file_system: Some("tmpfs".to_owned()),
        };
        let levels = |facts: &StoreFacts, root: &str| {
            let checks = store(facts, Path::new(root)).checks;
            let levels = checks.into_iter().map(|(_, finding)| finding.level);
            levels.collect::<Vec<_>>()
        };
        let rest = [Level::Ok, Level::Warn];
        for (found, root, expected) in [
            (facts(Way::Clear, true), "/s", Level::Ok),
            (facts(Way::Nowhere, true), "/s/t", Level::Ok),
            (facts(Way::Nowhere, false), "/s/t", Level::Fail),
            (facts(Way::Exposed("/".into()), true), "/s", Level::Fail),
        ] {
            assert_eq!(levels(&found, root), [&[expected], &rest[..]].concat());
        }
        // What is to be typed is one word to a shell.
        let exposed = facts(Way::Exposed("/a b".into()), true);
        let hint = directory(&exposed, Path::new("/a b/s")).hint.unwrap();
        assert!(hint.starts_with("`chmod o-w '/a b'`, or "), "{hint}");
    }
}
