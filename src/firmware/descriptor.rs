//! What one descriptor says: JSON in, meaning out. Touches none of the files that it names.
//!
//! Format: QEMU's docs/interop/firmware.json. Words that are not known there do no harm where they
//! only praise (features, tags), and are told where we would have to obey them (device, mode).

use std::path::PathBuf;

use serde::Deserialize;

use crate::domain::{DiskFormat, Machine};
use crate::firmware::{FirmwareFiles, Unfit};
use crate::oci::Printable;
use crate::oci::object::Object;

/// What a descriptor says, fit to print.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub description: String,
    pub features: Vec<String>,
    /// The files, if they are mapped in a way that is ours.
    pub files: Result<FirmwareFiles, Unfit>,
    interfaces: Vec<String>,
    targets: Vec<Target>,
}

/// The keys of Secure Boot are in its variables, and it checks signatures.
pub(super) const ENROLLED_KEYS: &str = "enrolled-keys";
/// It can check signatures.
pub(super) const SECURE_BOOT: &str = "secure-boot";
/// It needs x86's system management mode.
pub(super) const REQUIRES_SMM: &str = "requires-smm";

impl Descriptor {
    /// Reads a descriptor.
    pub(super) fn parse(json: &[u8]) -> Result<Self, Unfit> {
        let Object(json): Object<Json> =
            serde_json::from_slice(json).map_err(|error| Unfit::Malformed {
                reason: printable(&error.to_string()),
            })?;
        Ok(Self {
            description: printable(&json.description),
            features: json.features.iter().map(|word| printable(word)).collect(),
            files: json.mapping.0.files(),
            interfaces: json.interface_types,
            targets: json.targets,
        })
    }

    /// Errors if it is not meant for `machine`, or needs what nobody gives it there.
    pub(super) fn suits(&self, machine: Machine) -> Result<(), Unfit> {
        if !self.targets.iter().any(|target| target.covers(machine)) {
            let targets: Vec<String> = self.targets.iter().map(Target::words).collect();
            return Err(Unfit::OtherMachine {
                targets: match targets.as_slice() {
                    [] => "no machine".to_owned(),
                    targets => printable(&targets.join(", ")),
                },
            });
        }
        if !self.interfaces.iter().any(|word| word == "uefi") {
            return Err(Unfit::NotUefi {
                interfaces: match self.interfaces.as_slice() {
                    [] => "nothing that it names".to_owned(),
                    interfaces => printable(&interfaces.join(", ")),
                },
            });
        }
        if self.has("host-uefi-vars") {
            return Err(Unfit::HostVariables);
        }
        if machine == Machine::Arm64 && self.has(REQUIRES_SMM) {
            let isa = machine.isa();
            return Err(Unfit::NoSmm { isa });
        }
        Ok(())
    }

    fn has(&self, feature: &str) -> bool {
        self.features.iter().any(|word| word == feature)
    }
}

fn printable(text: &str) -> String {
    Printable(text).to_string()
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Json {
    #[serde(default)]
    description: String,
    #[serde(default)]
    interface_types: Vec<String>,
    mapping: Object<Mapping>,
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
    executable: Option<Object<FlashFile>>,
    nvram_template: Option<Object<FlashFile>>,
    filename: Option<PathBuf>,
}

#[derive(Deserialize)]
struct FlashFile {
    filename: PathBuf,
    format: String,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Target {
    architecture: String,
    #[serde(default)]
    machines: Vec<String>,
}

impl Mapping {
    fn files(self) -> Result<FirmwareFiles, Unfit> {
        match self.device.as_str() {
            "flash" => self.flash(),
            "memory" => Ok(FirmwareFiles::Memory {
                rom: self.filename.ok_or(Unfit::Lacks { field: "filename" })?,
            }),
            other => Err(Unfit::Device {
                device: printable(other),
            }),
        }
    }

    fn flash(self) -> Result<FirmwareFiles, Unfit> {
        let Object(code) = self.executable.ok_or(Unfit::Lacks {
            field: "executable",
        })?;
        let format = code.format()?;
        let code = code.filename;
        // Whoever wrote a descriptor before there were modes meant this one.
        match self.mode.as_deref().unwrap_or("split") {
            "split" => {
                let Object(vars) = self.nvram_template.ok_or(Unfit::Lacks {
                    field: "nvram-template",
                })?;
                if vars.format()? != format {
                    return Err(Unfit::TwoFormats);
                }
                Ok(FirmwareFiles::Split {
                    code,
                    vars_template: vars.filename,
                    format,
                })
            }
            "stateless" => Ok(FirmwareFiles::Stateless { code, format }),
            "combined" => Ok(FirmwareFiles::Combined {
                template: code,
                format,
            }),
            other => Err(Unfit::Mode {
                mode: printable(other),
            }),
        }
    }
}

impl FlashFile {
    fn format(&self) -> Result<DiskFormat, Unfit> {
        [DiskFormat::Raw, DiskFormat::Qcow2]
            .into_iter()
            .find(|format| format.as_str() == self.format)
            .ok_or_else(|| Unfit::Format {
                format: printable(&self.format),
            })
    }
}

impl Target {
    fn covers(&self, machine: Machine) -> bool {
        // The alias that we use, and what it stands for. Which version that is, QEMU decides: a
        // pattern for a single one may not cover it.
        let names = match machine {
            Machine::Amd64 => ["q35", "pc-q35-0.0"],
            Machine::Arm64 => ["virt", "virt-0.0"],
        };
        let is_covered = |name: &str| self.machines.iter().any(|pattern| matches(pattern, name));
        self.architecture == machine.isa() && names.into_iter().any(is_covered)
    }

    fn words(&self) -> String {
        format!("{} ({})", self.architecture, self.machines.join(", "))
    }
}

/// Tells whether a glob pattern (`*` and `?`) matches all of `name`.
fn matches(pattern: &str, name: &str) -> bool {
    // Whether the pattern so far matches the first 0, 1, 2, … bytes of the name. No recursion:
    // nobody limits the number of asterisks.
    let mut matched = vec![false; name.len() + 1];
    matched[0] = true;
    for symbol in pattern.bytes() {
        if symbol == b'*' {
            let from = matched.iter().position(|is_matched| *is_matched);
            matched[from.unwrap_or(name.len() + 1)..].fill(true);
            continue;
        }
        let longer = name
            .bytes()
            .zip(&matched)
            .map(|(byte, is_matched)| *is_matched && (symbol == b'?' || symbol == byte));
        matched = std::iter::once(false).chain(longer).collect();
    }
    matched.last() == Some(&true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn patterns_cover_our_machines_and_no_others() {
        let endless = "*".repeat(60_000);
        let cases: &[(&str, bool, bool)] = &[
            ("pc-q35-*", true, false),
            ("pc-*", true, false),
            ("q35", true, false),
            ("*", true, true),
            ("**", true, true),
            (&endless, true, true),
            ("virt-*", false, true),
            ("virt", false, true),
            ("vir?", false, true),
            ("v*t", false, true),
            ("*-q35-*", true, false),
            ("pc-i440fx-*", false, false),
            ("pc-q35-7.2", false, false),
            ("pc-q35", false, false),
            ("microvm", false, false),
            ("virtual", false, false),
            ("?", false, false),
            ("", false, false),
        ];
        for (pattern, amd64, arm64) in cases {
            for (machine, expected) in [(Machine::Amd64, amd64), (Machine::Arm64, arm64)] {
                let target = |architecture: &str| Target {
                    architecture: architecture.to_owned(),
                    machines: vec!["none".to_owned(), (*pattern).to_owned()],
                };
                assert_eq!(
                    target(machine.isa()).covers(machine),
                    *expected,
                    "{pattern}"
                );
                assert!(!target("riscv64").covers(machine), "{pattern}");
            }
        }
    }

    #[test]
    fn every_mapping_is_a_kind_of_files_or_is_told() {
        let file = |name: &str, format: &str| json!({"filename": name, "format": format});
        let cases = [
            (
                json!({"device": "flash", "executable": file("/c", "raw"),
                       "nvram-template": file("/v", "raw")}),
                Ok(FirmwareFiles::Split {
                    code: "/c".into(),
                    vars_template: "/v".into(),
                    format: DiskFormat::Raw,
                }),
            ),
            (
                json!({"device": "flash", "mode": "split", "executable": file("/c", "qcow2"),
                       "nvram-template": file("/v", "qcow2"), "unknown": 1}),
                Ok(FirmwareFiles::Split {
                    code: "/c".into(),
                    vars_template: "/v".into(),
                    format: DiskFormat::Qcow2,
                }),
            ),
            (
                json!({"device": "flash", "mode": "stateless", "executable": file("/c", "raw")}),
                Ok(FirmwareFiles::Stateless {
                    code: "/c".into(),
                    format: DiskFormat::Raw,
                }),
            ),
            (
                json!({"device": "flash", "mode": "combined", "executable": file("/c", "raw")}),
                Ok(FirmwareFiles::Combined {
                    template: "/c".into(),
                    format: DiskFormat::Raw,
                }),
            ),
            (
                json!({"device": "memory", "filename": "/r"}),
                Ok(FirmwareFiles::Memory { rom: "/r".into() }),
            ),
            (json!({"device": "memory"}), Err("mapping has no filename")),
            (
                json!({"device": "kernel", "filename": "/k"}),
                Err("mapped to kernel, which ironboot does not support"),
            ),
            (
                json!({"device": "igvm\u{1b}", "filename": "/k"}),
                Err("mapped to igvm\\u{1b}, which ironboot does not support"),
            ),
            (
                json!({"device": "flash", "mode": "twin", "executable": file("/c", "raw")}),
                Err("flash mode is not split, combined or stateless: twin"),
            ),
            (
                json!({"device": "flash", "executable": file("/c", "raw")}),
                Err("mapping has no nvram-template"),
            ),
            (
                json!({"device": "flash", "nvram-template": file("/v", "raw")}),
                Err("mapping has no executable"),
            ),
            (
                json!({"device": "flash", "executable": file("/c", "vmdk"),
                       "nvram-template": file("/v", "vmdk")}),
                Err("flash format is neither raw nor qcow2: vmdk"),
            ),
            (
                json!({"device": "flash", "executable": file("/c", "qcow2"),
                       "nvram-template": file("/v", "raw")}),
                Err("code and variables are of two formats"),
            ),
        ];
        for (mapping, expected) in cases {
            let descriptor = Descriptor::parse(json!({"mapping": mapping}).to_string().as_bytes());
            let files = descriptor.unwrap().files;
            let files = files.map_err(|unfit| unfit.to_string());
            assert_eq!(files, expected.map_err(str::to_owned), "{mapping}");
        }
    }

    #[test]
    fn what_is_not_meant_for_a_machine_says_for_what_it_is() {
        let descriptor = |interfaces: &[&str], targets: serde_json::Value, features: &[&str]| {
            let json = json!({
                "interface-types": interfaces,
                "mapping": {"device": "memory", "filename": "/r"},
                "targets": targets,
                "features": features,
                "tags": ["-D", "x"],
            });
            Descriptor::parse(json.to_string().as_bytes()).unwrap()
        };
        let ours = json!([
            {"architecture": "x86_64", "machines": ["pc-q35-*"]},
            {"architecture": "aarch64", "machines": ["virt-*"]},
        ]);
        let fits = descriptor(&["bios", "uefi"], ours.clone(), &["new-word"]);
        assert_eq!(fits.suits(Machine::Amd64), Ok(()));
        assert_eq!(fits.suits(Machine::Arm64), Ok(()));
        assert_eq!(fits.features, ["new-word"]);
        let smm = descriptor(&["uefi"], ours.clone(), &["requires-smm"]);
        assert_eq!(smm.suits(Machine::Amd64), Ok(()));
        let others = json!([
            {"architecture": "i386", "machines": ["pc-q35-*"]},
            {"architecture": "x86_64", "machines": ["pc-i440fx-*", "microvm"]},
        ]);
        let cases = [
            (smm, "needs SMM, which aarch64 does not have"),
            (
                descriptor(&["uefi"], others, &[]),
                "for i386 (pc-q35-*), x86_64 (pc-i440fx-*, microvm)",
            ),
            (descriptor(&["uefi"], json!([]), &[]), "for no machine"),
            (
                descriptor(&["bios", "uboot"], ours.clone(), &[]),
                "not UEFI but bios, uboot",
            ),
            (
                descriptor(&[], ours.clone(), &[]),
                "not UEFI but nothing that it names",
            ),
            (
                descriptor(&["uefi"], ours, &["host-uefi-vars"]),
                "needs host-uefi-vars, which ironboot does not provide",
            ),
        ];
        for (descriptor, expected) in cases {
            let unfit = descriptor.suits(Machine::Arm64).unwrap_err();
            assert_eq!(unfit.to_string(), expected);
        }
    }

    #[test]
    fn what_is_no_descriptor_is_refused_with_the_place() {
        let cases = [
            ("{", "EOF while parsing an object at line 1 column 1"),
            (
                "[]",
                "invalid type: sequence, expected an object at line 1 column 0",
            ),
            ("{}", "missing field `mapping` at line 1 column 2"),
            (
                r#"{"mapping": {"device": "flash", "executable": "/c"}}"#,
                "invalid type: string \"/c\", expected an object at line 1 column 50",
            ),
            (
                r#"{"mapping": {"device": "memory"}, "features": "secure-boot"}"#,
                "invalid type: string \"secure-boot\", expected a sequence at line 1 column 59",
            ),
        ];
        for (json, expected) in cases {
            let unfit = Descriptor::parse(json.as_bytes()).unwrap_err();
            let expected = format!("not a firmware descriptor: {expected}");
            assert_eq!(unfit.to_string(), expected, "{json:.60}");
        }
        let deep = format!("{{\"tags\": {}", "[".repeat(60_000));
        assert!(Descriptor::parse(deep.as_bytes()).is_err());
        assert!(Descriptor::parse(b"\xff\xfe").is_err());
    }
}
