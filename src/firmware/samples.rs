//! Firmware that is not there: descriptors and sparse images in a temporary directory.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::domain::Machine;
use crate::firmware::{Survey, UefiRequest, survey};

pub(super) const MIB: u64 = 1 << 20;
/// Sizes of Debian's builds.
pub(super) const CODE_2M: u64 = 1_966_080;
pub(super) const VARS_2M: u64 = 131_072;
pub(super) const CODE_4M: u64 = 3_653_632;
pub(super) const VARS_4M: u64 = 540_672;
pub(super) const BANK: u64 = 64 * MIB;

/// Directories of descriptors, the strongest first, and the files that they name.
pub(super) struct Host {
    root: TempDir,
}

const DIRECTORIES: [&str; 3] = ["own", "etc", "usr"];

impl Host {
    pub(super) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        for name in ["own", "etc", "usr", "images"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        Self { root }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// Makes an image of nothing.
    pub(super) fn image(&self, name: &str, size_bytes: u64) -> PathBuf {
        let path = self.path("images").join(name);
        fs::File::create(&path)
            .unwrap()
            .set_len(size_bytes)
            .unwrap();
        path
    }

    /// Makes a qcow2 image that is a header.
    pub(super) fn qcow2(
        &self,
        name: &str,
        virtual_bytes: u64,
        backing_file_offset: u64,
    ) -> PathBuf {
        let path = self.path("images").join(name);
        let header = [
            b"QFI\xfb\0\0\0\x03".to_vec(),
            backing_file_offset.to_be_bytes().to_vec(),
            vec![0; 8],
            virtual_bytes.to_be_bytes().to_vec(),
            vec![0; 72],
        ];
        fs::write(&path, header.concat()).unwrap();
        path
    }

    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Writes a descriptor for both machines.
    pub(super) fn describe(&self, name: &str, mapping: &Value, features: &str) {
        let targets = json!([
            {"architecture": "x86_64", "machines": ["pc-q35-*"]},
            {"architecture": "aarch64", "machines": ["virt-*"]},
        ]);
        self.write(name, descriptor(mapping, &targets, features));
    }

    /// The six descriptors of Debian 12, and the files that its packages have.
    pub(super) fn debian() -> Self {
        let host = Self::new();
        for (name, size_bytes) in [
            ("OVMF_CODE_4M.fd", CODE_4M),
            ("OVMF_CODE_4M.secboot.fd", CODE_4M),
            ("OVMF_VARS_4M.fd", VARS_4M),
            ("OVMF_VARS_4M.ms.fd", VARS_4M),
            ("AAVMF_CODE.fd", BANK),
            ("AAVMF_CODE.ms.fd", BANK),
            ("AAVMF_VARS.fd", BANK),
            ("AAVMF_VARS.ms.fd", BANK),
        ] {
            host.image(name, size_bytes);
        }
        let link = host.path("images/OVMF_CODE_4M.ms.fd");
        symlink("OVMF_CODE_4M.secboot.fd", link).unwrap();
        let secure = "acpi-s3 amd-sev requires-smm secure-boot verbose-dynamic";
        for (name, code, vars, features) in [
            (
                "40-edk2-aarch64-secure-enrolled",
                "AAVMF_CODE.ms.fd",
                "AAVMF_VARS.ms.fd",
                "enrolled-keys secure-boot verbose-static",
            ),
            (
                "40-edk2-x86_64-secure-enrolled",
                "OVMF_CODE_4M.ms.fd",
                "OVMF_VARS_4M.ms.fd",
                &format!("enrolled-keys {secure}"),
            ),
            (
                "50-edk2-aarch64-secure",
                "AAVMF_CODE.secboot.fd",
                "AAVMF_VARS.fd",
                "secure-boot verbose-static",
            ),
            (
                "50-edk2-x86_64-secure",
                "OVMF_CODE_4M.secboot.fd",
                "OVMF_VARS_4M.fd",
                secure,
            ),
            (
                "60-edk2-aarch64",
                "AAVMF_CODE.fd",
                "AAVMF_VARS.fd",
                "verbose-static",
            ),
            (
                "60-edk2-x86_64",
                "OVMF_CODE_4M.fd",
                "OVMF_VARS_4M.fd",
                "acpi-s3 amd-sev verbose-dynamic",
            ),
        ] {
            let mapping = host.split(code, vars);
            let targets = if name.contains("aarch64") {
                json!([{"architecture": "aarch64", "machines": ["virt-*"]}])
            } else {
                json!([{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}])
            };
            let json = descriptor(&mapping, &targets, features);
            host.write(&format!("usr/{name}.json"), json);
        }
        host
    }

    /// The mapping of two raw images.
    pub(super) fn split(&self, code: &str, vars: &str) -> Value {
        self.flash("split", "raw", code, Some(vars))
    }

    pub(super) fn flash(&self, mode: &str, format: &str, code: &str, vars: Option<&str>) -> Value {
        let file = |name: &str| {
            json!({
                "filename": self.path("images").join(name),
                "format": format,
            })
        };
        let mut mapping = json!({"device": "flash", "mode": mode, "executable": file(code)});
        if let Some(vars) = vars {
            mapping["nvram-template"] = file(vars);
        }
        mapping
    }

    pub(super) fn memory(&self, rom: &str) -> Value {
        json!({"device": "memory", "filename": self.path("images").join(rom)})
    }

    pub(super) fn survey(&self, machine: Machine) -> Survey {
        let directories = DIRECTORIES.map(|name| self.path(name));
        survey(&directories, machine).unwrap()
    }

    /// `text` without the path of this host's root.
    pub(super) fn short(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.root.path().display()), "")
    }

    /// Every descriptor with what is said of it, a line each.
    pub(super) fn explained(&self, machine: Machine, request: &UefiRequest) -> Vec<String> {
        let lines = self.survey(machine).explain(request).into_iter();
        lines
            .map(|(path, reason)| self.short(&format!("{}: {reason}", path.display())))
            .collect()
    }

    /// The choice as one line: descriptor, kind and code, Secure Boot and SMM, reason.
    pub(super) fn chosen(&self, machine: Machine, request: &UefiRequest) -> Result<String, String> {
        let choice = self.survey(machine).choose(request);
        let choice = choice.map_err(|error| self.short(&error.to_string()))?;
        let descriptor = choice.descriptor.as_deref();
        let name = descriptor.and_then(Path::file_stem).unwrap_or_default();
        let words = [
            name.to_str().unwrap().to_owned(),
            format!("{:?}", choice.files),
            if choice.secure_boot {
                "secure"
            } else {
                "plain"
            }
            .to_owned(),
            if choice.smm { "smm" } else { "-" }.to_owned(),
            choice.reason,
        ];
        Ok(self.short(&words.join(" | ")))
    }

    /// The request for a file of this host.
    pub(super) fn named(&self, name: &str) -> UefiRequest {
        UefiRequest::File(self.path(name))
    }
}

fn descriptor(mapping: &Value, targets: &Value, features: &str) -> String {
    json!({
        "description": "made by a test\u{1b}[31m",
        "interface-types": ["uefi"],
        "mapping": mapping,
        "targets": targets,
        "features": features.split_ascii_whitespace().collect::<Vec<_>>(),
        "tags": [],
    })
    .to_string()
}
