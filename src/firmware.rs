//! UEFI firmware, found by QEMU's firmware descriptor files.
//!
//! Format: QEMU's docs/interop/firmware.json. A file in an earlier directory masks the files of
//! the same name in later ones (an empty one just masks); otherwise their names give the order.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use crate::domain::{DiskFormat, Machine};
use crate::files::{self, FileError};

/// Largest descriptor file that is read, in bytes.
const MAX_DESCRIPTOR_BYTES: u64 = 64 << 10;

/// A pair of flash images that fit a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FirmwareFiles {
    /// The code.
    pub code: PathBuf,
    /// What every VM's variable store starts as.
    pub vars_template: PathBuf,
    /// Format of both.
    pub format: DiskFormat,
    /// The descriptor that named them.
    pub descriptor: PathBuf,
}

/// Why there is no firmware.
#[derive(Debug, Error)]
pub enum FirmwareError {
    /// None of the descriptors fits.
    #[error("no UEFI firmware for {} is installed{}", machine.isa(), list(considered))]
    None {
        /// The machine.
        machine: Machine,
        /// Every descriptor with the reason why it was not taken.
        considered: Vec<(PathBuf, String)>,
    },
    /// A directory that can not be read.
    #[error(transparent)]
    File(#[from] FileError),
}

fn list(considered: &[(PathBuf, String)]) -> String {
    considered
        .iter()
        .map(|(path, reason)| format!("; {}: {reason}", path.display()))
        .collect()
}

/// Finds the firmware for `machine` in `directories`, the strongest first: the first descriptor
/// of UEFI in flash without enrolled Secure Boot keys whose files exist.
pub fn find(directories: &[PathBuf], machine: Machine) -> Result<FirmwareFiles, FirmwareError> {
    let mut by_name: BTreeMap<String, PathBuf> = BTreeMap::new();
    for directory in directories {
        for name in files::names(directory)? {
            if Path::new(&name)
                .extension()
                .is_some_and(|extension| extension == "json")
            {
                let path = directory.join(&name);
                by_name.entry(name).or_insert(path);
            }
        }
    }
    let mut considered = Vec::new();
    for path in by_name.into_values() {
        let Some(json) = files::read_small(&path, MAX_DESCRIPTOR_BYTES)? else {
            continue;
        };
        if json.trim_ascii().is_empty() {
            continue;
        }
        match fitting(&json, &path, machine) {
            Ok(firmware) => return Ok(firmware),
            Err(reason) => considered.push((path, reason)),
        }
    }
    Err(FirmwareError::None {
        machine,
        considered,
    })
}

/// Reads one descriptor; errors with the reason why it does not fit.
fn fitting(json: &[u8], path: &Path, machine: Machine) -> Result<FirmwareFiles, String> {
    let descriptor: Descriptor =
        serde_json::from_slice(json).map_err(|error| format!("not readable: {error}"))?;
    let fits = |target: &Target| {
        target.architecture == machine.isa()
            && target
                .machines
                .iter()
                .any(|pattern| matches_machine(pattern, machine))
    };
    if !descriptor.targets.iter().any(fits) {
        return Err("for another machine".to_owned());
    }
    if !descriptor.interface_types.iter().any(|kind| kind == "uefi") {
        return Err("not UEFI".to_owned());
    }
    for feature in ["enrolled-keys", "requires-smm"] {
        if descriptor.features.iter().any(|has| has == feature) {
            return Err(format!("has {feature}, and Secure Boot was not asked for"));
        }
    }
    let mapping = descriptor.mapping;
    let mode = mapping.mode.as_deref().unwrap_or("split");
    if mapping.device != "flash" || mode != "split" {
        return Err(format!("mapped to {} ({mode})", mapping.device));
    }
    let (Some(code), Some(vars)) = (mapping.executable, mapping.nvram_template) else {
        return Err("has no pair of code and variables".to_owned());
    };
    if code.format != vars.format {
        return Err("has code and variables of two formats".to_owned());
    }
    for file in [&code.filename, &vars.filename] {
        if !file.is_file() {
            return Err(format!(
                "names a file that is not there: {}",
                file.display()
            ));
        }
    }
    Ok(FirmwareFiles {
        code: code.filename,
        vars_template: vars.filename,
        format: code.format,
        descriptor: path.to_owned(),
    })
}

/// Tells whether a pattern such as `pc-q35-*` covers the machine type that we use.
fn matches_machine(pattern: &str, machine: Machine) -> bool {
    let pattern = pattern.trim_end_matches('*').trim_end_matches('-');
    match machine {
        Machine::Amd64 => ["pc-q35", "q35", ""].contains(&pattern),
        Machine::Arm64 => ["virt", ""].contains(&pattern),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Descriptor {
    #[serde(default)]
    interface_types: Vec<String>,
    mapping: Mapping,
    #[serde(default)]
    targets: Vec<Target>,
    #[serde(default)]
    features: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mapping {
    device: String,
    mode: Option<String>,
    executable: Option<FlashFile>,
    nvram_template: Option<FlashFile>,
}

#[derive(Deserialize)]
struct FlashFile {
    filename: PathBuf,
    format: DiskFormat,
}

#[derive(Deserialize)]
struct Target {
    architecture: String,
    #[serde(default)]
    machines: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A directory with descriptors: name, features, and whether the files that it names exist.
    fn directory(descriptors: &[(&str, &str, bool)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, features, exists) in descriptors {
            let file = |kind: &str| directory.path().join(format!("{name}.{kind}"));
            if *exists {
                fs::write(file("code"), b"c").unwrap();
                fs::write(file("vars"), b"v").unwrap();
            }
            let json = serde_json::json!({
                "interface-types": ["uefi"],
                "mapping": {
                    "device": "flash",
                    "executable": {"filename": file("code"), "format": "raw"},
                    "nvram-template": {"filename": file("vars"), "format": "raw"},
                },
                "targets": [{"architecture": "x86_64", "machines": ["pc-q35-*"]}],
                "features": features.split_ascii_whitespace().collect::<Vec<_>>(),
            });
            fs::write(
                directory.path().join(format!("{name}.json")),
                json.to_string(),
            )
            .unwrap();
        }
        directory
    }

    fn found(directories: &[&tempfile::TempDir]) -> Option<String> {
        let paths: Vec<PathBuf> = directories.iter().map(|d| d.path().to_owned()).collect();
        let firmware = find(&paths, Machine::Amd64).ok()?;
        let name = firmware.descriptor.file_stem()?.to_str()?;
        Some(name.to_owned())
    }

    #[test]
    fn the_first_usable_firmware_without_secure_boot_is_taken() {
        let directory = directory(&[
            (
                "40-enrolled",
                "secure-boot enrolled-keys requires-smm",
                true,
            ),
            ("50-dangling", "", false),
            ("60-plain", "", true),
            ("70-plain", "", true),
        ]);
        assert_eq!(found(&[&directory]).as_deref(), Some("60-plain"));
    }

    #[test]
    fn an_earlier_directory_masks_a_later_one() {
        let system = directory(&[("50-a", "", true), ("60-b", "", true)]);
        let mask = directory(&[]);
        fs::write(mask.path().join("50-a.json"), b"").unwrap();
        assert_eq!(found(&[&mask, &system]).as_deref(), Some("60-b"));
    }

    #[test]
    fn the_error_says_why_each_descriptor_was_not_taken() {
        let directory = directory(&[
            ("40-enrolled", "enrolled-keys", true),
            ("50-gone", "", false),
        ]);
        let error = find(&[directory.path().to_owned()], Machine::Amd64).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("has enrolled-keys"), "{text}");
        assert!(text.contains("is not there"), "{text}");
        let error = find(&[directory.path().to_owned()], Machine::Arm64).unwrap_err();
        assert!(error.to_string().contains("for another machine"), "{error}");
    }
}
