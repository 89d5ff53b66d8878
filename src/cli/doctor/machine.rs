//! What `doctor` says of one machine: its QEMU, accelerator and firmware.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::cli::doctor::{Bootable, Finding, Level, Section, ok, with_source};
use crate::cli::report::Report;
use crate::domain::{Accelerator, Machine};
use crate::firmware::{FirmwareChoice, FirmwareError, Unfit};
use crate::host::AcceleratorChoice;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::qemu::version::VersionError;
use crate::ops::doctor::{DescriptorFacts, MachineFacts};

/// The oldest QEMU that ironboot is tried with: major and minor number.
const OLDEST_QEMU: (u32, u32) = (7, 2);

/// A firmware descriptor that was looked at.
#[derive(Debug)]
struct Descriptor<'a> {
    facts: &'a DescriptorFacts,
    level: Level,
    hint: Option<String>,
}

/// What was found for one machine.
#[derive(Debug)]
pub(super) struct Findings<'a> {
    facts: &'a MachineFacts,
    qemu: Finding,
    accelerator: Finding,
    plain: Finding,
    secure: Finding,
    descriptors: Vec<Descriptor<'a>>,
}

impl<'a> Findings<'a> {
    pub(super) fn of(facts: &'a MachineFacts, directories: &[PathBuf]) -> Self {
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

    pub(super) fn is_native(&self) -> bool {
        self.facts.is_native
    }

    pub(super) fn machine(&self) -> Machine {
        self.facts.machine
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

    pub(super) fn worst(&self) -> Level {
        let descriptors = self.descriptors.iter().map(|descriptor| descriptor.level);
        let named = self.named().map(|(_, finding)| finding.level);
        named
            .into_iter()
            .chain(descriptors)
            .max()
            .unwrap_or(Level::Ok)
    }

    /// The code of the UEFI firmware that starts unsigned programs.
    pub(super) fn plain_code(&self) -> Option<&Path> {
        let firmware = self.facts.firmware.as_ref().ok()?;
        let plain = firmware.plain.as_ref().ok()?;
        Some(plain.files.code())
    }

    /// Whether it can be booted: there is QEMU for it.
    pub(super) fn boots(&self) -> Option<Bootable> {
        self.facts.version.as_ref().ok()?;
        let choice = self.facts.accelerator.as_ref().ok()?;
        Some(Bootable(self.facts.machine, choice.accelerator))
    }

    /// All of it; of descriptors those that are broken, or `all` as a list.
    pub(super) fn section(&self, all: bool) -> Section {
        let machine = self.facts.machine;
        let own = if self.facts.is_native {
            ", as this host"
        } else {
            ""
        };
        let mut section = Section::of(machine.isa(), format!("{}{own}", machine.isa()));
        for (name, finding) in self.named() {
            section.add(name, finding.clone());
        }
        if let Some(bios) = &self.facts.bios {
            section.add("bios", bios_finding(bios.as_deref()));
        }
        let broken = self.descriptors.iter();
        let broken = broken.filter(|descriptor| descriptor.level != Level::Ok);
        for descriptor in broken {
            section.add("descriptor", descriptor.finding());
        }
        if all {
            section.more = self.descriptor_list();
        }
        section
    }

    fn descriptor_list(&self) -> String {
        let mut text = "  firmware descriptors, in their order:\n".to_owned();
        if self.descriptors.is_empty() {
            text += "        none\n";
        }
        for descriptor in &self.descriptors {
            let level = descriptor.level.as_str();
            text += &format!("  {level:<4}  {}\n", descriptor.path().display());
            for line in descriptor.lines() {
                text += &format!("        {line}\n");
            }
        }
        text
    }

    pub(super) fn json(&self) -> Value {
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

    /// What is wrong with it.
    fn finding(&self) -> Finding {
        Finding {
            level: self.level,
            message: format!("{}: {}", self.path().display(), self.lines().join("; ")),
            hint: self.hint.clone(),
        }
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
        Ok(version) if is_old(version) => {
            let (major, minor) = OLDEST_QEMU;
            Finding {
                level: Level::Warn,
                message: format!("{program} {version}, older than {major}.{minor}"),
                hint: Some(format!(
                    "nobody has tried it: install {major}.{minor} or later"
                )),
            }
        }
        Ok(version) => ok(format!("{program} {version}")),
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

/// Whether a version is older than any that was tried; one that is not understood is not.
fn is_old(version: &str) -> bool {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next()?.parse::<u32>().ok();
    let (Some(major), Some(minor)) = (number(), number()) else {
        return false;
    };
    (major, minor) < OLDEST_QEMU
}

fn bios_finding(path: Option<&Path>) -> Finding {
    match path {
        Some(path) => ok(path.display().to_string()),
        None => Finding {
            level: Level::Warn,
            message: "bios-256k.bin is nowhere; disks without UEFI need it".to_owned(),
            hint: Some("on Debian: `apt-get install seabios`".to_owned()),
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
            bios: None,
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
            findings.section(true).text(),
            "\
x86_64, as this host
  fail  QEMU          program is not installed: qemu-system-x86_64
        hint: on Debian: `apt-get install qemu-system-x86`
  warn  accelerator   tcg: there is no /dev/kvm
        hint: guests run, slowly; KVM needs a /dev/kvm that you may write, and vmx or svm on x86
  fail  uefi          no descriptor is one of this kind and can be used
        hint: on Debian: `apt-get install ovmf`
  warn  uefi-secure   no descriptor is one of this kind and can be used
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
