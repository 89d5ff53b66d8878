//! The verb `doctor`: what this host has for each machine, and its libvirt, judged, with a hint for
//! what can be mended. The exit status is 0 whatever is found; programs read the levels.

mod libvirt;

use std::error::Error;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::Ended;
use crate::cli::doctor::libvirt::Libvirt;
use crate::cli::report::Report;
use crate::domain::{Accelerator, Machine};
use crate::firmware::{FirmwareChoice, FirmwareError, Unfit};
use crate::host::AcceleratorChoice;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::qemu::version::VersionError;
use crate::ops::Context;
use crate::ops::doctor::{self, DescriptorFacts, MachineFacts};

/// How bad it is. The words are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// As it should be.
    Ok,
    /// It works less well, or not everybody needs it.
    Warn,
    /// It does not work.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug)]
struct Finding {
    level: Level,
    message: String,
    hint: Option<String>,
}

/// A firmware descriptor that was looked at.
#[derive(Debug)]
struct Descriptor<'a> {
    facts: &'a DescriptorFacts,
    level: Level,
    hint: Option<String>,
}

/// What was found for one machine.
#[derive(Debug)]
struct Findings<'a> {
    facts: &'a MachineFacts,
    qemu: Finding,
    accelerator: Finding,
    plain: Finding,
    secure: Finding,
    descriptors: Vec<Descriptor<'a>>,
}

/// Executes the verb.
pub(super) async fn execute(context: &Context<'_>) -> Ended {
    let machines = doctor::examine(context).await;
    let findings: Vec<Findings<'_>> = machines
        .iter()
        .map(|facts| Findings::of(facts, &context.firmware_directories))
        .collect();
    let libvirts = doctor::libvirts(context).await;
    let libvirts: Vec<Libvirt<'_>> = libvirts
        .iter()
        .map(|facts| Libvirt::of(facts, context.store.root()))
        .collect();
    let texts = findings.iter().map(Findings::text);
    let texts: Vec<String> = texts.chain(libvirts.iter().map(Libvirt::text)).collect();
    let objects: Vec<Value> = findings.iter().map(Findings::json).collect();
    let worst = findings.iter().map(Findings::worst);
    let worst = worst.chain(libvirts.iter().map(Libvirt::worst)).max();
    Ended::with(
        texts.join("\n"),
        json!({
            "level": worst.unwrap_or(Level::Ok).as_str(),
            "host": context.host.architecture.as_str(),
            "machines": objects,
            "libvirt": libvirts.iter().map(Libvirt::json).collect::<Vec<_>>(),
        }),
    )
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    /// The level of what is missing for a machine: of those of other hosts not everybody has need.
    fn of_missing(is_native: bool) -> Self {
        if is_native { Self::Fail } else { Self::Warn }
    }
}

impl<'a> Findings<'a> {
    fn of(facts: &'a MachineFacts, directories: &[PathBuf]) -> Self {
        let is_native = facts.is_native;
        let missing = Level::of_missing(is_native);
        let (plain, secure, descriptors) = match &facts.firmware {
            Ok(firmware) => (
                uefi(&firmware.plain, missing, facts.machine),
                uefi(&firmware.secure, Level::Warn, facts.machine),
                firmware.descriptors.as_slice(),
            ),
            Err(error) => {
                let unknown = || Finding {
                    level: missing,
                    message: with_source(error),
                    hint: None,
                };
                (unknown(), unknown(), [].as_slice())
            }
        };
        Self {
            qemu: qemu(facts.program, &facts.version, missing),
            accelerator: accelerator(&facts.accelerator, is_native),
            plain,
            secure,
            descriptors: descriptors
                .iter()
                .map(|facts| Descriptor::of(facts, directories))
                .collect(),
            facts,
        }
    }

    /// The four things that a VM needs, by the words that they have in options.
    fn named(&self) -> [(&'static str, &Finding); 4] {
        [
            ("QEMU", &self.qemu),
            ("accelerator", &self.accelerator),
            ("uefi", &self.plain),
            ("uefi-secure", &self.secure),
        ]
    }

    fn worst(&self) -> Level {
        let descriptors = self.descriptors.iter().map(|descriptor| descriptor.level);
        let named = self.named().map(|(_, finding)| finding.level);
        named
            .into_iter()
            .chain(descriptors)
            .max()
            .unwrap_or(Level::Ok)
    }

    fn text(&self) -> String {
        let machine = self.facts.machine;
        let own = if self.facts.is_native {
            ", as this host"
        } else {
            ""
        };
        let mut text = format!("{}{own}\n", machine.isa());
        for (name, finding) in self.named() {
            text += &finding.text(name);
        }
        text += "  firmware descriptors, in their order:\n";
        if self.descriptors.is_empty() {
            text += "        none\n";
        }
        for descriptor in &self.descriptors {
            let level = descriptor.level.as_str();
            text += &format!("  {level:<4}  {}\n", descriptor.path().display());
            for line in descriptor.lines() {
                text += &format!("        {line}\n");
            }
            text += &hint_line(&descriptor.hint);
        }
        text
    }

    fn json(&self) -> Value {
        let facts = self.facts;
        let mut qemu = self.qemu.json();
        qemu["program"] = json!(facts.program);
        qemu["version"] = json!(facts.version.as_ref().ok());
        let mut accelerator = self.accelerator.json();
        let choice = facts.accelerator.as_ref().ok();
        accelerator["accelerator"] = json!(choice.map(|choice| choice.accelerator));
        let firmware = facts.firmware.as_ref().ok();
        let uefi = |finding: &Finding, choice: Option<&FirmwareChoice>| {
            let mut uefi = finding.json();
            uefi["reason"] = json!(choice.map(|choice| &choice.reason));
            uefi["descriptor"] = json!(choice.map(|choice| &choice.descriptor));
            uefi["files"] = json!(choice.map(|choice| choice.files.paths()));
            uefi
        };
        let plain = firmware.and_then(|firmware| firmware.plain.as_ref().ok());
        let secure = firmware.and_then(|firmware| firmware.secure.as_ref().ok());
        json!({
            "architecture": facts.machine,
            "native": facts.is_native,
            "level": self.worst().as_str(),
            "qemu": qemu,
            "accelerator": accelerator,
            "uefi": uefi(&self.plain, plain),
            "uefi_secure": uefi(&self.secure, secure),
            "descriptors": self.descriptors.iter().map(Descriptor::json).collect::<Vec<_>>(),
        })
    }
}

/// The line of a hint, if there is one.
fn hint_line(hint: &Option<String>) -> String {
    let line = |hint: &String| format!("        hint: {hint}\n");
    hint.as_ref().map(line).unwrap_or_default()
}

impl Finding {
    fn text(&self, name: &str) -> String {
        let level = self.level.as_str();
        let message = &self.message;
        format!("  {level:<4}  {name:<11}  {message}\n") + &hint_line(&self.hint)
    }

    fn json(&self) -> Value {
        json!({
            "level": self.level.as_str(),
            "message": self.message,
            "hint": self.hint,
        })
    }
}

impl<'a> Descriptor<'a> {
    fn of(facts: &'a DescriptorFacts, directories: &[PathBuf]) -> Self {
        let verdict = &facts.considered.verdict;
        let is_broken = verdict.as_ref().is_err_and(Unfit::is_broken);
        Self {
            facts,
            level: if is_broken { Level::Warn } else { Level::Ok },
            hint: is_broken.then(|| mend(&facts.considered.descriptor, directories)),
        }
    }

    fn path(&self) -> &Path {
        &self.facts.considered.descriptor
    }

    /// What becomes of it, by what is asked for; one line if that makes no difference.
    fn lines(&self) -> Vec<String> {
        let DescriptorFacts { plain, secure, .. } = self.facts;
        if plain == secure {
            return vec![plain.clone()];
        }
        vec![format!("uefi: {plain}"), format!("uefi-secure: {secure}")]
    }

    fn json(&self) -> Value {
        let considered = &self.facts.considered;
        let files = considered.files.as_ref();
        json!({
            "path": considered.descriptor,
            "description": considered.description,
            "features": considered.features,
            "files": files.map(|files| files.paths()),
            "level": self.level.as_str(),
            "uefi": self.facts.plain,
            "uefi_secure": self.facts.secure,
            "hint": self.hint,
        })
    }
}

fn qemu(program: &str, version: &Result<String, VersionError>, missing: Level) -> Finding {
    match version {
        Ok(version) => Finding {
            level: Level::Ok,
            message: format!("{program} {version}"),
            hint: None,
        },
        Err(error) => Finding {
            level: missing,
            message: with_source(error),
            hint: match error {
                // As it is told where a VM was to be started.
                VersionError::NotInstalled { program } => {
                    let program = program.clone();
                    Report::from(HypervisorError::NoProgram { program }).hint
                }
                VersionError::NotRunnable { .. }
                | VersionError::Timeout { .. }
                | VersionError::NotQemu { .. } => None,
            },
        },
    }
}

fn accelerator(choice: &Result<AcceleratorChoice, String>, is_native: bool) -> Finding {
    let (is_slow, message) = match choice {
        Ok(choice) => {
            let word = choice.accelerator.as_str();
            let is_slow = choice.accelerator == Accelerator::Tcg;
            (is_slow, format!("{word}: {}", choice.reason))
        }
        Err(reason) => (true, format!("none: {reason}")),
    };
    // No host has KVM for the machines of others.
    let is_mendable = is_slow && is_native;
    let hint = "guests run, slowly; KVM needs a /dev/kvm that you may write, and vmx or svm on x86";
    Finding {
        level: if is_mendable { Level::Warn } else { Level::Ok },
        message,
        hint: is_mendable.then(|| hint.to_owned()),
    }
}

fn uefi(
    choice: &Result<FirmwareChoice, FirmwareError>,
    missing: Level,
    machine: Machine,
) -> Finding {
    let package = match machine {
        Machine::Amd64 => "ovmf",
        Machine::Arm64 => "qemu-efi-aarch64",
    };
    match choice {
        Ok(choice) => Finding {
            level: Level::Ok,
            message: choice.files.code().display().to_string(),
            hint: None,
        },
        Err(FirmwareError::None { .. }) => Finding {
            level: missing,
            message: "no descriptor is one of this kind and can be used".to_owned(),
            hint: Some(format!("on Debian: `apt-get install {package}`")),
        },
        Err(error @ (FirmwareError::Named { .. } | FirmwareError::File(_))) => Finding {
            level: missing,
            message: with_source(error),
            hint: None,
        },
    }
}

/// How to be rid of a bad descriptor: what a package has installed is masked, not removed.
fn mend(descriptor: &Path, directories: &[PathBuf]) -> String {
    let own = descriptor.parent();
    let place = directories
        .iter()
        .position(|directory| Some(directory.as_path()) == own);
    let stronger = place
        .and_then(|place| place.checked_sub(1))
        .and_then(|place| directories.get(place));
    match (stronger, descriptor.file_name()) {
        (Some(stronger), Some(name)) => {
            let mask = stronger.join(name);
            format!("mend it, or mask it by an empty {}", mask.display())
        }
        _ => "mend it, or remove it".to_owned(),
    }
}

/// An error and what caused it, in one line.
fn with_source(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firmware::Considered;
    use crate::ops::doctor::FirmwareFacts;

    fn none(secure_boot: bool) -> Result<FirmwareChoice, FirmwareError> {
        Err(FirmwareError::None {
            machine: Machine::Amd64,
            secure_boot,
            considered: Vec::new(),
        })
    }

    fn bare(is_native: bool) -> MachineFacts {
        MachineFacts {
            machine: Machine::Amd64,
            is_native,
            program: "qemu-system-x86_64",
            version: Err(VersionError::NotInstalled {
                program: "qemu-system-x86_64".to_owned(),
            }),
            accelerator: Ok(AcceleratorChoice {
                accelerator: Accelerator::Tcg,
                reason: "there is no /dev/kvm".to_owned(),
            }),
            firmware: Ok(FirmwareFacts {
                plain: none(false),
                secure: none(true),
                descriptors: Vec::new(),
            }),
        }
    }

    #[test]
    fn what_is_missing_is_told_in_columns_with_what_mends_it() {
        let facts = bare(true);
        let findings = Findings::of(&facts, &[]);
        assert_eq!(
            findings.text(),
            "\
x86_64, as this host
  fail  QEMU         program is not installed: qemu-system-x86_64
        hint: on Debian: `apt-get install qemu-system-x86`
  warn  accelerator  tcg: there is no /dev/kvm
        hint: guests run, slowly; KVM needs a /dev/kvm that you may write, and vmx or svm on x86
  fail  uefi         no descriptor is one of this kind and can be used
        hint: on Debian: `apt-get install ovmf`
  warn  uefi-secure  no descriptor is one of this kind and can be used
        hint: on Debian: `apt-get install ovmf`
  firmware descriptors, in their order:
        none
"
        );
        assert_eq!(findings.worst(), Level::Fail);
        let facts = bare(false);
        let findings = Findings::of(&facts, &[]);
        let levels = findings.named().map(|(_, finding)| finding.level);
        assert_eq!(levels, [Level::Warn, Level::Ok, Level::Warn, Level::Warn]);
    }

    #[test]
    fn a_bad_descriptor_is_masked_where_a_stronger_directory_can() {
        let directories = ["/own", "/etc/f", "/usr/f"].map(PathBuf::from);
        for (path, hint) in [
            (
                "/usr/f/50.json",
                "mend it, or mask it by an empty /etc/f/50.json",
            ),
            (
                "/etc/f/50.json",
                "mend it, or mask it by an empty /own/50.json",
            ),
            ("/own/50.json", "mend it, or remove it"),
            // A directory that can not be read stands for what is in it.
            ("/usr/f", "mend it, or remove it"),
        ] {
            let facts = DescriptorFacts {
                considered: Considered {
                    descriptor: path.into(),
                    description: String::new(),
                    features: Vec::new(),
                    files: None,
                    verdict: Err(Unfit::TwoFormats),
                },
                plain: "bad".to_owned(),
                secure: "bad".to_owned(),
            };
            let descriptor = Descriptor::of(&facts, &directories);
            assert_eq!(descriptor.hint.as_deref(), Some(hint));
            assert_eq!(descriptor.level, Level::Warn);
        }
    }

    #[test]
    fn a_host_that_can_not_be_read_is_no_host_without_firmware() {
        let mut facts = bare(true);
        let directory = Path::new("/etc/f");
        let source = std::io::Error::other("input/output error");
        let error = crate::files::FileError::of("list", directory)(source);
        facts.firmware = Err(FirmwareError::File(error));
        let findings = Findings::of(&facts, &[]);
        let message = "can not list /etc/f: input/output error";
        assert_eq!(findings.plain.message, message);
        assert_eq!(findings.secure.message, message);
        assert_eq!(findings.json()["uefi"]["hint"], Value::Null);
    }
}
