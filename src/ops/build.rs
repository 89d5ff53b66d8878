//! An image from files, written as an OCI layout directory.
//!
//! Of the forms that are read, one is written: OCI manifests with the specification's layer types
//! and annotations, under an index whose entries carry platform and variant. `compat` writes the
//! one that today's `ironcore-image` reads instead; it refuses the specification's `disk.img` and
//! `cmdline` layers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use serde_json::{Value, json};
use thiserror::Error;

use crate::boot::CommandLine;
use crate::files::{self, FileError};
use crate::image::{LayerRole, Variant};
use crate::oci::{Architecture, Descriptor, Printable, manifest};
use crate::ops::OpsError;
use crate::source::layout::Writer;

/// Media type of the config blob.
const CONFIG: &str = "application/vnd.ironcore.image.config.v1+json";
/// The disk's media type in the form that `ironcore-image` reads.
const ROOTFS: &str = "application/vnd.ironcore.image.rootfs";
/// Largest command line file that is read, in bytes.
const MAX_COMMAND_LINE_FILE_BYTES: u64 = 64 << 10;

/// One manifest to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ManifestRequest {
    /// Architecture.
    pub architecture: Architecture,
    /// Variant.
    pub variant: Variant,
    /// The file of each layer.
    pub layers: BTreeMap<LayerRole, PathBuf>,
}

/// What is wrong with the text of a [`ManifestRequest`].
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ManifestRequestError {
    /// A part that is not `key=value`.
    #[error("not KEY=VALUE: {0}")]
    NoValue(String),
    /// A key that means nothing.
    #[error("key is not arch, variant or a layer's role: {0}")]
    Key(String),
    /// A key that stands twice.
    #[error("key stands twice: {0}")]
    Twice(String),
    /// A variant that is none.
    #[error("variant is neither virtualization nor metal: {0}")]
    Variant(String),
    /// `arch=` is missing.
    #[error("arch= is missing")]
    NoArchitecture,
    /// There is no layer.
    #[error("there is no layer")]
    NoLayer,
}

/// Form of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The specification's.
    Specification,
    /// The one that `ironcore-image` reads.
    Compat,
}

impl FromStr for ManifestRequest {
    type Err = ManifestRequestError;

    fn from_str(text: &str) -> Result<Self, ManifestRequestError> {
        use ManifestRequestError as Error;
        let shown = |text: &str| Printable(text).to_string();
        let mut architecture = None;
        let mut variant = None;
        let mut layers = BTreeMap::new();
        for part in text.split(',') {
            let (key, value) = part
                .split_once('=')
                .filter(|(_, value)| !value.is_empty())
                .ok_or_else(|| Error::NoValue(shown(part)))?;
            let twice = match key {
                "arch" => architecture
                    .replace(Architecture::from(value.to_owned()))
                    .is_some(),
                "variant" => {
                    let word = value.parse().map_err(|_| Error::Variant(shown(value)))?;
                    variant.replace(word).is_some()
                }
                _ => {
                    let role = LayerRole::ALL
                        .into_iter()
                        .find(|role| role.as_str() == key)
                        .ok_or_else(|| Error::Key(shown(key)))?;
                    layers.insert(role, PathBuf::from(value)).is_some()
                }
            };
            if twice {
                return Err(Error::Twice(key.to_owned()));
            }
        }
        if layers.is_empty() {
            return Err(Error::NoLayer);
        }
        Ok(Self {
            architecture: architecture.ok_or(Error::NoArchitecture)?,
            variant: variant.unwrap_or(Variant::Virtualization),
            layers,
        })
    }
}

/// Writes the image under `name` into the layout directory `directory`, which is created, or
/// added to. Returns the index's descriptor.
pub fn build(
    directory: &std::path::Path,
    name: &str,
    requests: &[ManifestRequest],
    form: Form,
) -> Result<Descriptor, OpsError> {
    let mut writer = Writer::create(directory)?;
    let mut entries = Vec::new();
    for request in requests {
        let manifest = manifest_of(&mut writer, request, form)?;
        let bytes = manifest.to_string().into_bytes();
        let descriptor = writer.document(manifest::OCI_MANIFEST, &bytes)?;
        entries.push(json!({
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
            "platform": {"os": "linux", "architecture": request.architecture.as_str()},
            "annotations": {"variant": request.variant.as_str()},
        }));
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": manifest::OCI_INDEX,
        "manifests": entries,
    });
    let descriptor = writer.document(manifest::OCI_INDEX, &index.to_string().into_bytes())?;
    writer.finish(&descriptor, name)?;
    Ok(descriptor)
}

fn manifest_of(
    writer: &mut Writer,
    request: &ManifestRequest,
    form: Form,
) -> Result<Value, OpsError> {
    let mut layers = Vec::new();
    let mut config = json!({});
    for (role, path) in &request.layers {
        let media_type = match (role, form) {
            (LayerRole::CommandLine, _) => {
                let line = read_command_line(path)?;
                if form == Form::Compat {
                    config = json!({"commandLine": line.as_str()});
                    continue;
                }
                role.media_type()
            }
            (LayerRole::Disk, Form::Compat) => ROOTFS,
            _ => role.media_type(),
        };
        layers.push(writer.blob_from(media_type, path)?);
    }
    let config = writer.document(CONFIG, &config.to_string().into_bytes())?;
    let (architecture, variant) = (request.architecture.as_str(), request.variant.as_str());
    Ok(json!({
        "schemaVersion": 2,
        "mediaType": manifest::OCI_MANIFEST,
        "config": config,
        "layers": layers,
        "annotations": {"architecture": architecture, "variant": variant},
    }))
}

/// Reads a command line file, so that one that no kernel takes is not published.
fn read_command_line(path: &std::path::Path) -> Result<CommandLine, OpsError> {
    let bytes = files::read_small(path, MAX_COMMAND_LINE_FILE_BYTES)?.ok_or_else(|| {
        FileError::of("open", path)(std::io::Error::from(std::io::ErrorKind::NotFound))
    })?;
    CommandLine::parse(&bytes).map_err(|source| OpsError::CommandLineFile {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_is_read_from_its_text() {
        let request: ManifestRequest = "arch=x86_64,variant=metal,kernel=k,disk=d".parse().unwrap();
        assert_eq!(request.architecture, Architecture::Amd64);
        assert_eq!(request.variant, Variant::Metal);
        assert_eq!(request.layers.len(), 2);
        for text in [
            "",
            "arch=amd64",
            "kernel=k",
            "arch=amd64,kernel",
            "arch=amd64,kernel=",
            "arch=amd64,kernel=a,kernel=b",
            "arch=amd64,rootfs=a",
            "arch=amd64,variant=v8,kernel=k",
        ] {
            assert!(text.parse::<ManifestRequest>().is_err(), "{text}");
        }
    }
}
