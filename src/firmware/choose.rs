//! Which of the descriptors is meant.

use std::fs;
use std::path::{Path, PathBuf};

use crate::domain::{DiskFormat, Machine};
use crate::firmware::descriptor::{ENROLLED_KEYS, REQUIRES_SMM, SECURE_BOOT};
use crate::firmware::unfit::shown;
use crate::firmware::{
    Considered, FirmwareChoice, FirmwareError, FirmwareFiles, Survey, UefiRequest, Unfit, image,
};

/// What is asked of a descriptor that nobody named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    None,
    Enrolled,
}

impl Survey {
    /// Chooses the firmware that is meant: the first that is what `request` says, one that needs
    /// no SMM before all that do.
    ///
    /// Errors if there is none, or if the one that is named can not be used.
    pub fn choose(&self, request: &UefiRequest) -> Result<FirmwareChoice, FirmwareError> {
        match request {
            UefiRequest::Plain => self.first(Keys::None),
            UefiRequest::Secure => self.first(Keys::Enrolled),
            UefiRequest::File(path) => self.named(path).map_err(|reason| FirmwareError::Named {
                path: path.clone(),
                machine: self.machine,
                reason,
            }),
        }
    }

    /// Says of every descriptor that it is chosen, or why it is not.
    #[must_use]
    pub fn explain(&self, request: &UefiRequest) -> Vec<(PathBuf, String)> {
        let choice = self.choose(request).ok();
        let keys = match request {
            UefiRequest::Plain => Some(Keys::None),
            UefiRequest::Secure => Some(Keys::Enrolled),
            UefiRequest::File(_) => None,
        };
        self.explained(keys, choice.as_ref())
    }

    fn explained(
        &self,
        keys: Option<Keys>,
        choice: Option<&FirmwareChoice>,
    ) -> Vec<(PathBuf, String)> {
        let chosen = choice.and_then(|choice| choice.descriptor.as_ref());
        let explain = |considered: &Considered| {
            if Some(&considered.descriptor) == chosen {
                return "chosen".to_owned();
            }
            if let Err(unfit) = &considered.verdict {
                return unfit.to_string();
            }
            let objection = keys.and_then(|keys| self.objection(considered, keys));
            match (objection, choice) {
                (Some(objection), _) => objection.to_owned(),
                (None, Some(choice)) if keys.is_some() => considered.comes_after(choice),
                (None, _) => "not named".to_owned(),
            }
        };
        self.considered
            .iter()
            .map(|considered| (considered.descriptor.clone(), explain(considered)))
            .collect()
    }

    fn first(&self, keys: Keys) -> Result<FirmwareChoice, FirmwareError> {
        let candidates = self.considered.iter().filter_map(|considered| {
            let files = considered.files.as_ref()?;
            let is_meant = considered.verdict.is_ok() && self.objection(considered, keys).is_none();
            is_meant.then_some((considered, files))
        });
        // Of those that are alike, this is the first.
        let first = candidates.min_by_key(|(considered, _)| considered.has(REQUIRES_SMM));
        let Some((considered, files)) = first else {
            return Err(FirmwareError::None {
                machine: self.machine,
                secure_boot: keys == Keys::Enrolled,
                considered: self.explained(Some(keys), None),
            });
        };
        let reason = match (keys, considered.has(REQUIRES_SMM)) {
            (Keys::None, false) => "the first without enrolled keys that needs no SMM",
            (Keys::None, true) => "the first without enrolled keys; all of them need SMM",
            (Keys::Enrolled, _) => "the first with Secure Boot and enrolled keys",
        };
        Ok(considered.chosen(files, reason.to_owned()))
    }

    /// Why a descriptor that can be used is not what is asked for.
    fn objection(&self, considered: &Considered, keys: Keys) -> Option<&'static str> {
        let lacks = |feature| !considered.has(feature);
        match keys {
            Keys::None if considered.has(ENROLLED_KEYS) => {
                Some("has enrolled keys, so it starts signed programs only")
            }
            Keys::None => None,
            Keys::Enrolled if lacks(SECURE_BOOT) => Some("has no Secure Boot"),
            Keys::Enrolled if lacks(ENROLLED_KEYS) => Some("has no enrolled keys"),
            // Without it the guest's kernel may write the keys.
            Keys::Enrolled if self.machine == Machine::Amd64 && lacks(REQUIRES_SMM) => {
                Some("does not guard its keys by SMM")
            }
            Keys::Enrolled => None,
        }
    }

    /// The firmware that somebody named by a path.
    fn named(&self, path: &Path) -> Result<FirmwareChoice, Unfit> {
        if path.extension().is_some_and(|word| word == "json") {
            return described(path, self.machine);
        }
        // What is not there is told before anything else of it.
        image::open(path)?;
        let mut naming = self.naming(|file| file == path);
        if naming.is_empty() {
            // Distributions keep links at the places where a file once was.
            let real = fs::canonicalize(path).ok();
            naming = self.naming(|file| real.is_some() && fs::canonicalize(file).ok() == real);
        }
        // Several descriptors may share an image of code and differ in the variables.
        naming.sort_by_key(|(considered, _)| {
            (
                considered.verdict.is_err(),
                considered.has(ENROLLED_KEYS),
                considered.has(REQUIRES_SMM),
            )
        });
        let Some((considered, files)) = naming.first() else {
            return undescribed(path, self.machine);
        };
        considered.verdict.clone()?;
        let reason = format!("{} names this file", considered.name());
        Ok(considered.chosen(files, reason))
    }

    fn naming(&self, is_it: impl Fn(&Path) -> bool) -> Vec<(&Considered, &FirmwareFiles)> {
        self.considered
            .iter()
            .filter_map(|considered| Some((considered, considered.files.as_ref()?)))
            .filter(|(_, files)| is_it(files.code()))
            .collect()
    }
}

/// The firmware of a descriptor that was named, wherever it lies.
fn described(path: &Path, machine: Machine) -> Result<FirmwareChoice, Unfit> {
    let considered = Considered::read(path, machine).ok_or_else(|| Unfit::Malformed {
        reason: "it is empty".to_owned(),
    })?;
    considered.verdict.clone()?;
    let files = considered.files.as_ref().ok_or(Unfit::Lacks {
        field: "files of use to ironboot",
    })?;
    Ok(considered.chosen(files, "this descriptor was named".to_owned()))
}

/// The firmware of an image of which no descriptor tells.
fn undescribed(path: &Path, machine: Machine) -> Result<FirmwareChoice, Unfit> {
    let choice = |files, how: &str| FirmwareChoice {
        files,
        secure_boot: false,
        smm: false,
        descriptor: None,
        reason: format!("no descriptor names it, so it is {how}, which keeps no variables"),
    };
    let rom = FirmwareFiles::Memory {
        rom: path.to_owned(),
    };
    let unfit = match image::check(&rom, machine) {
        Ok(()) => return Ok(choice(rom, "loaded as a ROM")),
        // The larger builds of edk2 have code whose size is not a ROM's.
        Err(unfit @ Unfit::Size { .. }) => unfit,
        Err(unfit) => return Err(unfit),
    };
    let flash = FirmwareFiles::Stateless {
        code: path.to_owned(),
        format: DiskFormat::Raw,
    };
    match image::check(&flash, machine) {
        Ok(()) => Ok(choice(flash, "mapped to read-only flash")),
        Err(Unfit::Size { .. }) => Err(unfit),
        Err(unfit) => Err(unfit),
    }
}

impl Considered {
    fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|word| word == feature)
    }

    fn name(&self) -> String {
        name(&self.descriptor)
    }

    fn chosen(&self, files: &FirmwareFiles, reason: String) -> FirmwareChoice {
        FirmwareChoice {
            files: files.clone(),
            secure_boot: self.has(SECURE_BOOT) && self.has(ENROLLED_KEYS),
            smm: self.has(REQUIRES_SMM),
            descriptor: Some(self.descriptor.clone()),
            reason,
        }
    }

    /// Why it is not the one that was chosen among its like.
    fn comes_after(&self, choice: &FirmwareChoice) -> String {
        let first = choice.descriptor.as_deref().map_or_else(String::new, name);
        if self.has(REQUIRES_SMM) && !choice.smm {
            return format!("needs SMM, and {first} does not");
        }
        format!("comes after {first}")
    }
}

/// The name of a descriptor's file, printable.
fn name(descriptor: &Path) -> String {
    shown(Path::new(descriptor.file_name().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::firmware::samples::{BANK, CODE_4M, Host, MIB, VARS_4M};
    use crate::firmware::survey;

    #[test]
    fn every_way_to_map_firmware_is_chosen_as_what_it_is() {
        let host = Host::new();
        host.image("c4", CODE_4M);
        host.image("4m", 4 * MIB);
        host.qcow2("c4.qcow2", CODE_4M, 0);
        host.qcow2("v4.qcow2", VARS_4M, 0);
        let cases = [
            (
                host.flash("split", "qcow2", "c4.qcow2", Some("v4.qcow2")),
                FirmwareFiles::Split {
                    code: host.path("images/c4.qcow2"),
                    vars_template: host.path("images/v4.qcow2"),
                    format: DiskFormat::Qcow2,
                },
            ),
            (
                host.flash("stateless", "qcow2", "c4.qcow2", None),
                FirmwareFiles::Stateless {
                    code: host.path("images/c4.qcow2"),
                    format: DiskFormat::Qcow2,
                },
            ),
            (
                host.flash("combined", "raw", "4m", None),
                FirmwareFiles::Combined {
                    template: host.path("images/4m"),
                    format: DiskFormat::Raw,
                },
            ),
            (
                host.memory("4m"),
                FirmwareFiles::Memory {
                    rom: host.path("images/4m"),
                },
            ),
        ];
        for (mapping, files) in cases {
            host.describe("usr/50.json", &mapping, "requires-smm secure-boot");
            let choice = host.survey(Machine::Amd64).choose(&UefiRequest::Plain);
            assert_eq!(
                choice.unwrap(),
                FirmwareChoice {
                    files,
                    secure_boot: false,
                    smm: true,
                    descriptor: Some(host.path("usr/50.json")),
                    reason: "the first without enrolled keys; all of them need SMM".to_owned(),
                }
            );
        }
    }

    #[test]
    fn secure_boot_takes_enrolled_keys_that_the_guest_can_not_write() {
        let host = Host::new();
        for (name, size_bytes) in [("c4", CODE_4M), ("v4", VARS_4M), ("bank", BANK)] {
            host.image(name, size_bytes);
        }
        let (amd64, arm64) = (host.split("c4", "v4"), host.split("bank", "bank"));
        host.describe(
            "usr/10-keys-only.json",
            &amd64,
            "enrolled-keys requires-smm",
        );
        host.describe("usr/20-no-smm.json", &amd64, "enrolled-keys secure-boot");
        host.describe("usr/30-plain.json", &amd64, "");
        let error = host.chosen(Machine::Amd64, &UefiRequest::Secure);
        assert_eq!(
            error.unwrap_err(),
            "no UEFI firmware with enrolled Secure Boot keys for x86_64 is installed\
             ; usr/10-keys-only.json: has no Secure Boot\
             ; usr/20-no-smm.json: does not guard its keys by SMM\
             ; usr/30-plain.json: has no Secure Boot"
        );
        let all = "enrolled-keys secure-boot requires-smm";
        host.describe("usr/40-first.json", &amd64, all);
        host.describe("usr/50-second.json", &amd64, all);
        let lines = host.explained(Machine::Amd64, &UefiRequest::Secure);
        assert_eq!(
            lines[3..],
            [
                "usr/40-first.json: chosen",
                "usr/50-second.json: comes after 40-first.json",
            ]
        );
        host.describe("usr/40-first.json", &arm64, all);
        host.describe("usr/50-second.json", &arm64, "enrolled-keys secure-boot");
        let lines = host.explained(Machine::Arm64, &UefiRequest::Secure);
        assert_eq!(
            lines[3..],
            [
                "usr/40-first.json: needs SMM, which aarch64 does not have",
                "usr/50-second.json: chosen",
            ]
        );
    }

    #[test]
    fn without_firmware_every_descriptor_is_told_with_its_reason() {
        let none = survey(&[PathBuf::from("/nowhere")], Machine::Arm64).unwrap();
        let error = none.choose(&UefiRequest::Plain).unwrap_err();
        assert_eq!(
            error.to_string(),
            "no UEFI firmware for aarch64 is installed"
        );
        let host = Host::debian();
        host.write("own/60-edk2-x86_64.json", "");
        fs::remove_file(host.path("images/OVMF_CODE_4M.secboot.fd")).unwrap();
        assert_eq!(
            host.chosen(Machine::Amd64, &UefiRequest::Plain)
                .unwrap_err(),
            "no UEFI firmware for x86_64 is installed\
             ; usr/40-edk2-aarch64-secure-enrolled.json: for aarch64 (virt-*)\
             ; usr/40-edk2-x86_64-secure-enrolled.json: no such file: images/OVMF_CODE_4M.ms.fd\
             ; usr/50-edk2-aarch64-secure.json: for aarch64 (virt-*)\
             ; usr/50-edk2-x86_64-secure.json: no such file: images/OVMF_CODE_4M.secboot.fd\
             ; usr/60-edk2-aarch64.json: for aarch64 (virt-*)\
             ; usr/60-edk2-x86_64.json: masked by own/60-edk2-x86_64.json, which is empty"
        );
    }

    #[test]
    fn a_file_that_is_named_comes_with_what_belongs_to_it() {
        let host = Host::debian();
        symlink("OVMF_CODE_4M.fd", host.path("images/old-name.fd")).unwrap();
        let image = |name: &str| format!("\"images/{name}\"");
        let split = |code: &str, vars: &str| {
            let (code, vars) = (image(code), image(vars));
            format!("Split {{ code: {code}, vars_template: {vars}, format: Raw }}")
        };
        let plain = split("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd");
        let enrolled = split("OVMF_CODE_4M.ms.fd", "OVMF_VARS_4M.ms.fd");
        let secure = split("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd");
        let cases = [
            (
                "usr/40-edk2-x86_64-secure-enrolled.json",
                format!(
                    "40-edk2-x86_64-secure-enrolled | {enrolled} | secure | smm \
                     | this descriptor was named"
                ),
            ),
            (
                "images/OVMF_CODE_4M.ms.fd",
                format!(
                    "40-edk2-x86_64-secure-enrolled | {enrolled} | secure | smm \
                     | 40-edk2-x86_64-secure-enrolled.json names this file"
                ),
            ),
            (
                "images/OVMF_CODE_4M.secboot.fd",
                format!(
                    "50-edk2-x86_64-secure | {secure} | plain | smm \
                     | 50-edk2-x86_64-secure.json names this file"
                ),
            ),
            (
                "images/old-name.fd",
                format!(
                    "60-edk2-x86_64 | {plain} | plain | - | 60-edk2-x86_64.json names this file"
                ),
            ),
        ];
        for (name, expected) in cases {
            let chosen = host.chosen(Machine::Amd64, &host.named(name));
            assert_eq!(chosen, Ok(expected), "{name}");
        }
        let lines = host.explained(Machine::Amd64, &host.named("images/OVMF_CODE_4M.fd"));
        assert_eq!(
            lines[3..],
            [
                "usr/50-edk2-x86_64-secure.json: not named",
                "usr/60-edk2-aarch64.json: for aarch64 (virt-*)",
                "usr/60-edk2-x86_64.json: chosen",
            ]
        );
        // Masked or not, whoever names a descriptor means it.
        host.write("own/60-edk2-x86_64.json", "");
        let named = host.named("usr/60-edk2-x86_64.json");
        assert!(host.chosen(Machine::Amd64, &named).is_ok());
    }

    #[test]
    fn an_image_that_no_descriptor_names_is_loaded_as_it_is() {
        let host = Host::debian();
        host.image("OVMF.fd", 2 * MIB);
        host.image("other_CODE_4M.fd", CODE_4M);
        host.image("QEMU_EFI.fd", 2 * MIB);
        for (machine, name, expected) in [
            (
                Machine::Amd64,
                "OVMF.fd",
                " | Memory { rom: \"images/OVMF.fd\" } | plain | - \
                 | no descriptor names it, so it is loaded as a ROM, which keeps no variables",
            ),
            (
                Machine::Arm64,
                "QEMU_EFI.fd",
                " | Memory { rom: \"images/QEMU_EFI.fd\" } | plain | - \
                 | no descriptor names it, so it is loaded as a ROM, which keeps no variables",
            ),
            (
                Machine::Amd64,
                "other_CODE_4M.fd",
                " | Stateless { code: \"images/other_CODE_4M.fd\", format: Raw } | plain | - \
                 | no descriptor names it, so it is mapped to read-only flash, which keeps no variables",
            ),
        ] {
            let chosen = host.chosen(machine, &host.named(&format!("images/{name}")));
            assert_eq!(chosen, Ok(expected.to_owned()), "{name}");
        }
    }

    #[test]
    fn a_file_that_is_named_and_can_not_be_used_is_refused() {
        let host = Host::debian();
        host.write("usr/empty.json", "");
        host.write("kernel.json", r#"{"mapping": {"device": "kernel"}}"#);
        host.image("odd.fd", 4095);
        host.qcow2("c4.qcow2", CODE_4M, 0);
        for (name, expected) in [
            ("images/gone.fd", "no such file: images/gone.fd"),
            ("usr/gone.json", "no such file: usr/gone.json"),
            ("images", "not a regular file: images"),
            ("usr/empty.json", "not a firmware descriptor: it is empty"),
            ("kernel.json", "for no machine"),
            (
                "usr/50-edk2-aarch64-secure.json",
                "no such file: images/AAVMF_CODE.secboot.fd",
            ),
            (
                "usr/60-edk2-x86_64.json",
                "for x86_64 (pc-i440fx-*, pc-q35-*)",
            ),
            (
                "images/OVMF_CODE_4M.fd",
                "for x86_64 (pc-i440fx-*, pc-q35-*)",
            ),
            (
                "images/c4.qcow2",
                "a qcow2 image is no ROM: images/c4.qcow2",
            ),
        ] {
            let chosen = host.chosen(Machine::Arm64, &host.named(name));
            let expected = format!("firmware {name} can not be used for aarch64: {expected}");
            assert_eq!(chosen, Err(expected));
        }
        assert_eq!(
            host.chosen(Machine::Amd64, &host.named("images/odd.fd")),
            Err(
                "firmware images/odd.fd can not be used for x86_64: image has 4095 bytes, not a \
                 multiple of 64 KiB up to 8 MiB, as a ROM is: images/odd.fd"
                    .to_owned()
            )
        );
        let relative = UefiRequest::File("OVMF.fd".into());
        assert_eq!(
            host.chosen(Machine::Amd64, &relative),
            Err(
                "firmware OVMF.fd can not be used for x86_64: not an absolute path: OVMF.fd"
                    .to_owned()
            )
        );
    }
}
