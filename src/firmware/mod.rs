//! UEFI firmware: what is installed, what of it a machine can use, and which one is meant.
//!
//! ```text
//! directories ──survey──▶ Survey (every descriptor, with why it can not be used)
//!                           │ choose (UefiRequest)      │ explain (UefiRequest)
//!                           ▼                           ▼
//!                      FirmwareChoice             a reason for each of them
//! ```
//!
//! Distributions ship descriptors whose files are elsewhere, and name a build first that boots
//! signed programs only. So every file is looked at here, and nothing is taken unsaid.
//!
//! Format: QEMU's docs/interop/firmware.json. A file in an earlier directory masks the files of
//! the same name in later ones (an empty one, or a link to `/dev/null`, just masks); their names
//! give the order.

mod choose;
mod descriptor;
mod image;
#[cfg(test)]
mod samples;
mod unfit;

pub use unfit::Unfit;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::domain::{DiskFormat, Machine};
use crate::files::{self, FileError};
use crate::firmware::descriptor::Descriptor;
use crate::firmware::unfit::shown;

/// Largest descriptor file that is read, in bytes.
const MAX_DESCRIPTOR_BYTES: u64 = 64 << 10;

/// Which firmware is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UefiRequest {
    /// One that starts unsigned programs: without enrolled keys.
    Plain,
    /// One that starts signed programs only: Secure Boot, with enrolled keys.
    Secure,
    /// This one, an absolute path: a descriptor (`.json`), a file that a descriptor names, or an
    /// image that none names.
    File(PathBuf),
}

/// The files of a firmware, by how they are mapped into the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirmwareFiles {
    /// Two flash images of one build.
    Split {
        /// The code.
        code: PathBuf,
        /// What every VM's variable store starts as.
        vars_template: PathBuf,
        /// Format of both.
        format: DiskFormat,
    },
    /// One flash image that is never written.
    Stateless {
        /// The image.
        code: PathBuf,
        /// Its format.
        format: DiskFormat,
    },
    /// One flash image with code and variables, of which every VM has a copy.
    Combined {
        /// What the copy is made of.
        template: PathBuf,
        /// Its format.
        format: DiskFormat,
    },
    /// An image that is loaded into memory, as a ROM.
    Memory {
        /// The image.
        rom: PathBuf,
    },
}

impl FirmwareFiles {
    /// The file with the code.
    #[must_use]
    pub fn code(&self) -> &Path {
        match self {
            Self::Split { code, .. }
            | Self::Stateless { code, .. }
            | Self::Combined { template: code, .. }
            | Self::Memory { rom: code } => code,
        }
    }

    /// All files, the code first.
    #[must_use]
    pub fn paths(&self) -> Vec<&Path> {
        let mut paths = vec![self.code()];
        if let Self::Split { vars_template, .. } = self {
            paths.push(vars_template);
        }
        paths
    }
}

/// The firmware that is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareChoice {
    /// Its files, which are there and fit the machine.
    pub files: FirmwareFiles,
    /// Whether it checks signatures: Secure Boot, with enrolled keys.
    pub secure_boot: bool,
    /// Whether it needs x86's system management mode.
    pub smm: bool,
    /// The descriptor that told of it; none told of an image that is loaded as it is.
    pub descriptor: Option<PathBuf>,
    /// Why this one, in one line for people.
    pub reason: String,
}

/// A descriptor that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Considered {
    /// The descriptor's file; the directory, if that can not be read.
    pub descriptor: PathBuf,
    /// What it says of itself, printable.
    pub description: String,
    /// The features that it names, printable.
    pub features: Vec<String>,
    /// The files that it names, whether they are there or not; none if it names none that are of
    /// use to us.
    pub files: Option<FirmwareFiles>,
    /// Why it can not be used for the machine, whatever is asked for.
    pub verdict: Result<(), Unfit>,
}

/// Every descriptor of the host, judged for one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// The machine.
    pub machine: Machine,
    /// The descriptors in their order; those that are masked come after what masks them.
    pub considered: Vec<Considered>,
}

/// Why there is no firmware.
#[derive(Debug, Error)]
pub enum FirmwareError {
    /// None of the descriptors is what is wanted.
    #[error(
        "no UEFI firmware {}for {} is installed{}",
        if *secure_boot { "with enrolled Secure Boot keys " } else { "" },
        machine.isa(),
        list(considered)
    )]
    None {
        /// The machine.
        machine: Machine,
        /// Whether Secure Boot was asked for.
        secure_boot: bool,
        /// Every descriptor with the reason why it was not taken.
        considered: Vec<(PathBuf, String)>,
    },
    /// The one that was named can not be used.
    #[error("firmware {} can not be used for {}: {reason}", shown(path), machine.isa())]
    Named {
        /// What was named.
        path: PathBuf,
        /// The machine.
        machine: Machine,
        /// Why not.
        reason: Unfit,
    },
    /// A directory that can not be listed, for a reason that says nothing of firmware.
    #[error(transparent)]
    File(#[from] FileError),
}

fn list(considered: &[(PathBuf, String)]) -> String {
    considered
        .iter()
        .map(|(path, reason)| format!("; {}: {reason}", shown(path)))
        .collect()
}

/// Looks at every descriptor in `directories`, the strongest first, and at the files that they
/// name. One that is bad hides no other: it is in the survey, with the reason.
///
/// Errors if the host can not even list a directory; one that is not there, is closed to us or is
/// none at all is no error.
pub fn survey(directories: &[PathBuf], machine: Machine) -> Result<Survey, FirmwareError> {
    let mut considered = Vec::new();
    let mut by_name: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for directory in directories {
        let names = match files::names(directory) {
            Err(error) if is_closed(&error.source) => {
                let reason = Unfit::Unreadable {
                    path: directory.clone(),
                    reason: error.source.to_string(),
                };
                considered.push(Considered::unfit(directory.clone(), reason));
                continue;
            }
            names => names?,
        };
        for name in names {
            let path = directory.join(&name);
            if path.extension().is_some_and(|word| word == "json") {
                let paths = by_name.entry(name).or_default();
                // A directory that is named twice does not mask itself.
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
        }
    }
    for paths in by_name.into_values() {
        let mut paths = paths.into_iter();
        let Some(strongest) = paths.next() else {
            continue;
        };
        let effective = Considered::read(&strongest, machine);
        let by_nothing = effective.is_none();
        considered.extend(effective);
        considered.extend(paths.map(|path| {
            let by = strongest.clone();
            Considered::unfit(path, Unfit::Masked { by, by_nothing })
        }));
    }
    Ok(Survey {
        machine,
        considered,
    })
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::PermissionDenied | io::ErrorKind::NotADirectory
    )
}

impl Considered {
    /// Reads a descriptor and looks at its files; none if it is empty, and just masks.
    fn read(path: &Path, machine: Machine) -> Option<Self> {
        let json = match read(path) {
            Ok(json) => json,
            Err(unfit) => return Some(Self::unfit(path.to_owned(), unfit)),
        };
        if json.trim_ascii().is_empty() {
            return None;
        }
        let descriptor = match Descriptor::parse(&json) {
            Ok(descriptor) => descriptor,
            Err(unfit) => return Some(Self::unfit(path.to_owned(), unfit)),
        };
        let verdict = descriptor.suits(machine).and_then(|()| {
            let files = descriptor.files.as_ref().map_err(Clone::clone)?;
            image::check(files, machine)
        });
        Some(Self {
            descriptor: path.to_owned(),
            description: descriptor.description,
            features: descriptor.features,
            files: descriptor.files.ok(),
            verdict,
        })
    }

    /// One of which no more is known than that it can not be used.
    fn unfit(descriptor: PathBuf, unfit: Unfit) -> Self {
        Self {
            descriptor,
            description: String::new(),
            features: Vec::new(),
            files: None,
            verdict: Err(unfit),
        }
    }
}

/// The content of a descriptor's file; nothing, if it is a link to `/dev/null`.
fn read(path: &Path) -> Result<Vec<u8>, Unfit> {
    let file = match image::open(path) {
        Err(Unfit::NotAFile { .. })
            if fs::canonicalize(path).is_ok_and(|target| target == Path::new("/dev/null")) =>
        {
            return Ok(Vec::new());
        }
        opened => opened?.0,
    };
    let mut json = Vec::new();
    file.take(MAX_DESCRIPTOR_BYTES + 1)
        .read_to_end(&mut json)
        .map_err(|error| Unfit::Unreadable {
            path: path.to_owned(),
            reason: error.to_string(),
        })?;
    if json.len() as u64 > MAX_DESCRIPTOR_BYTES {
        let limit_bytes = MAX_DESCRIPTOR_BYTES;
        return Err(Unfit::TooLarge { limit_bytes });
    }
    Ok(json)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use serde_json::json;

    use super::*;
    use crate::firmware::samples::{CODE_2M, Host, VARS_2M};

    #[test]
    fn of_debians_descriptors_those_that_work_are_chosen_and_the_others_are_told() {
        let host = Host::debian();
        let explained = |machine, request| host.explained(machine, &request);
        assert_eq!(
            explained(Machine::Amd64, UefiRequest::Plain),
            [
                "usr/40-edk2-aarch64-secure-enrolled.json: for aarch64 (virt-*)",
                "usr/40-edk2-x86_64-secure-enrolled.json: \
                 has enrolled keys, so it starts signed programs only",
                "usr/50-edk2-aarch64-secure.json: for aarch64 (virt-*)",
                "usr/50-edk2-x86_64-secure.json: needs SMM, and 60-edk2-x86_64.json does not",
                "usr/60-edk2-aarch64.json: for aarch64 (virt-*)",
                "usr/60-edk2-x86_64.json: chosen",
            ]
        );
        assert_eq!(
            explained(Machine::Amd64, UefiRequest::Secure),
            [
                "usr/40-edk2-aarch64-secure-enrolled.json: for aarch64 (virt-*)",
                "usr/40-edk2-x86_64-secure-enrolled.json: chosen",
                "usr/50-edk2-aarch64-secure.json: for aarch64 (virt-*)",
                "usr/50-edk2-x86_64-secure.json: has no enrolled keys",
                "usr/60-edk2-aarch64.json: for aarch64 (virt-*)",
                "usr/60-edk2-x86_64.json: has no Secure Boot",
            ]
        );
        assert_eq!(
            explained(Machine::Arm64, UefiRequest::Plain),
            [
                "usr/40-edk2-aarch64-secure-enrolled.json: \
                 has enrolled keys, so it starts signed programs only",
                "usr/40-edk2-x86_64-secure-enrolled.json: for x86_64 (pc-i440fx-*, pc-q35-*)",
                "usr/50-edk2-aarch64-secure.json: no such file: images/AAVMF_CODE.secboot.fd",
                "usr/50-edk2-x86_64-secure.json: for x86_64 (pc-i440fx-*, pc-q35-*)",
                "usr/60-edk2-aarch64.json: chosen",
                "usr/60-edk2-x86_64.json: for x86_64 (pc-i440fx-*, pc-q35-*)",
            ]
        );
        let survey = host.survey(Machine::Amd64);
        assert_eq!(
            survey.choose(&UefiRequest::Secure).unwrap(),
            FirmwareChoice {
                files: FirmwareFiles::Split {
                    code: host.path("images/OVMF_CODE_4M.ms.fd"),
                    vars_template: host.path("images/OVMF_VARS_4M.ms.fd"),
                    format: DiskFormat::Raw,
                },
                secure_boot: true,
                smm: true,
                descriptor: Some(host.path("usr/40-edk2-x86_64-secure-enrolled.json")),
                reason: "the first with Secure Boot and enrolled keys".to_owned(),
            }
        );
        let broken: Vec<bool> = survey
            .considered
            .iter()
            .map(|considered| considered.verdict.as_ref().is_err_and(Unfit::is_broken))
            .collect();
        assert_eq!(broken, [false; 6]);
        assert_eq!(
            host.survey(Machine::Arm64).considered[2],
            Considered {
                descriptor: host.path("usr/50-edk2-aarch64-secure.json"),
                description: "made by a test\\u{1b}[31m".to_owned(),
                features: vec!["secure-boot".to_owned(), "verbose-static".to_owned()],
                files: Some(FirmwareFiles::Split {
                    code: host.path("images/AAVMF_CODE.secboot.fd"),
                    vars_template: host.path("images/AAVMF_VARS.fd"),
                    format: DiskFormat::Raw,
                }),
                verdict: Err(Unfit::Missing {
                    path: host.path("images/AAVMF_CODE.secboot.fd"),
                }),
            }
        );
    }

    #[test]
    fn an_earlier_directory_masks_a_later_one() {
        let host = Host::debian();
        let name = "60-edk2-x86_64.json";
        host.write(&format!("own/{name}"), "");
        host.write(&format!("etc/{name}"), "{");
        host.image("2M_CODE.fd", CODE_2M);
        host.image("2M_VARS.fd", VARS_2M);
        let other = host.split("2M_CODE.fd", "2M_VARS.fd");
        host.describe("etc/50-edk2-x86_64-secure.json", &other, "");
        symlink(
            "/dev/null",
            host.path("own/40-edk2-x86_64-secure-enrolled.json"),
        )
        .unwrap();
        host.write("own/README", "not a descriptor");
        host.write("own/99-masks-nothing.json", " \n");
        let lines = host.explained(Machine::Amd64, &UefiRequest::Plain);
        let lines: Vec<_> = lines
            .iter()
            .filter(|line| !line.contains("aarch64"))
            .collect();
        assert_eq!(
            lines,
            [
                "usr/40-edk2-x86_64-secure-enrolled.json: \
                 masked by own/40-edk2-x86_64-secure-enrolled.json, which is empty",
                "etc/50-edk2-x86_64-secure.json: chosen",
                "usr/50-edk2-x86_64-secure.json: masked by etc/50-edk2-x86_64-secure.json",
                "etc/60-edk2-x86_64.json: masked by own/60-edk2-x86_64.json, which is empty",
                "usr/60-edk2-x86_64.json: masked by own/60-edk2-x86_64.json, which is empty",
            ]
        );
        let twice = [host.path("usr"), host.path("usr"), host.path("usr")];
        let twice = survey(&twice, Machine::Amd64).unwrap();
        assert_eq!(twice.considered.len(), 6);
    }

    #[test]
    fn one_that_is_bad_hides_no_other() {
        let host = Host::debian();
        let good = host.split("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd");
        host.write("etc/00-json.json", "{");
        host.write("etc/01-huge.json", " ".repeat((64 << 10) + 1));
        fs::create_dir(host.path("etc/02-directory.json")).unwrap();
        symlink("gone", host.path("etc/03-gone.json")).unwrap();
        symlink("04-circle.json", host.path("etc/04-circle.json")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            host.path("etc/05-pipe.json"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        host.describe(
            "etc/06-kernel.json",
            &json!({"device": "kernel", "filename": "/k"}),
            "",
        );
        host.describe(
            "etc/07-relative.json",
            &json!({"device": "memory", "filename": "r"}),
            "",
        );
        host.describe("etc/08-host-vars.json", &good, "host-uefi-vars");
        host.describe("etc/09-good.json", &good, "word-of-tomorrow");
        fs::remove_dir(host.path("own")).unwrap();
        host.write("own", "not a directory");
        let lines = host.explained(Machine::Amd64, &UefiRequest::Plain);
        assert_eq!(
            lines[..11],
            [
                "own: can not read own: Not a directory (os error 20)",
                "etc/00-json.json: not a firmware descriptor: \
                 EOF while parsing an object at line 1 column 1",
                "etc/01-huge.json: not a firmware descriptor: more than 64.00 KiB",
                "etc/02-directory.json: not a regular file: etc/02-directory.json",
                "etc/03-gone.json: no such file: etc/03-gone.json",
                "etc/04-circle.json: can not read etc/04-circle.json: \
                 Too many levels of symbolic links (os error 40)",
                "etc/05-pipe.json: not a regular file: etc/05-pipe.json",
                "etc/06-kernel.json: mapped to kernel, which ironboot does not support",
                "etc/07-relative.json: not an absolute path: r",
                "etc/08-host-vars.json: needs host-uefi-vars, which ironboot does not provide",
                "etc/09-good.json: chosen",
            ]
        );
        let unlistable = [PathBuf::from(format!("/{}", "n".repeat(300)))];
        let error = survey(&unlistable, Machine::Amd64).unwrap_err();
        assert!(matches!(error, FirmwareError::File(_)), "{error}");
    }

    #[test]
    fn what_this_host_has_is_chosen_for_both_machines() {
        let installed = [PathBuf::from("/usr/share/qemu/firmware")];
        for (machine, request, name, secure_boot, smm) in [
            (
                Machine::Amd64,
                UefiRequest::Plain,
                "60-edk2-x86_64.json",
                false,
                false,
            ),
            (
                Machine::Amd64,
                UefiRequest::Secure,
                "40-edk2-x86_64-secure-enrolled.json",
                true,
                true,
            ),
            (
                Machine::Arm64,
                UefiRequest::Plain,
                "60-edk2-aarch64.json",
                false,
                false,
            ),
            (
                Machine::Arm64,
                UefiRequest::Secure,
                "40-edk2-aarch64-secure-enrolled.json",
                true,
                false,
            ),
        ] {
            let survey = survey(&installed, machine).unwrap();
            let choice = survey.choose(&request).unwrap();
            assert_eq!(choice.descriptor, Some(installed[0].join(name)));
            assert_eq!(
                (choice.secure_boot, choice.smm),
                (secure_boot, smm),
                "{name}"
            );
            // Whoever names its code gets the same.
            let code = choice.files.code().to_owned();
            let named = survey.choose(&UefiRequest::File(code)).unwrap();
            assert_eq!(named.files, choice.files);
        }
    }
}
