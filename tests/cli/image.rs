//! Images as bytes: payloads, manifests, indexes, and the ways to serve them.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ironboot::oci::Digest;
use serde_json::{Value, json};
use sha2::Digest as _;

use crate::hostile::{Hostile, Reply, Request};

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const ARTIFACTS: &str = "application/vnd.ironcore.image.artifacts.v1+json";
const PREFIX: &str = "application/vnd.ironcore.image";

/// Blobs and documents by digest; `top` is what its reference names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Image {
    blobs: BTreeMap<String, Vec<u8>>,
    types: BTreeMap<String, String>,
    /// Digest and name of each blob.
    pub(crate) names: Vec<(String, String)>,
    top: Value,
    /// Whether what is added is named by sha512 instead of sha256.
    is_by_sha512: bool,
}

impl Image {
    /// An image without anything, of which all that is added is named by sha512.
    pub(crate) fn by_sha512() -> Self {
        Self {
            is_by_sha512: true,
            ..Self::default()
        }
    }

    /// Adds a blob called `name` and returns its descriptor.
    pub(crate) fn blob(&mut self, name: &str, media_type: &str, bytes: &[u8]) -> Value {
        let digest = if self.is_by_sha512 {
            format!("sha512:{}", hex::encode(sha2::Sha512::digest(bytes)))
        } else {
            Digest::of(bytes).to_string()
        };
        if !self.names.iter().any(|(known, _)| *known == digest) {
            self.names.push((digest.clone(), name.to_owned()));
        }
        self.types.insert(digest.clone(), media_type.to_owned());
        self.blobs.insert(digest.clone(), bytes.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": bytes.len()})
    }

    /// Adds a layer of a media type of IronCore's and returns its descriptor.
    pub(crate) fn layer(&mut self, name: &str, kind: &str, bytes: &[u8]) -> Value {
        self.blob(name, &format!("{PREFIX}.{kind}"), bytes)
    }

    /// Adds the config blob that `ironcore-image` writes.
    pub(crate) fn config(&mut self, name: &str, json: &str) -> Value {
        self.layer(name, "config.v1+json", json.as_bytes())
    }

    /// Adds a document and returns its descriptor.
    pub(crate) fn document(&mut self, name: &str, media_type: &str, json: &Value) -> Value {
        self.blob(name, media_type, json.to_string().as_bytes())
    }

    /// Adds an index of `entries` as the top.
    pub(crate) fn index(mut self, entries: &[Value]) -> Self {
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
        self.top = self.document("top", OCI_INDEX, &index);
        self
    }

    /// Adds a document as the top.
    pub(crate) fn top(mut self, media_type: &str, json: &Value) -> Self {
        self.top = self.document("top", media_type, json);
        self
    }

    /// The digest of what is called `name`.
    pub(crate) fn digest(&self, name: &str) -> &str {
        let mut names = self.names.iter();
        let found = names.find(|(_, known)| known == name);
        found
            .map(|(digest, _)| digest)
            .unwrap_or_else(|| panic!("no {name} in {:?}", self.names))
    }

    /// The content of what is called `name`.
    pub(crate) fn bytes(&self, name: &str) -> &[u8] {
        &self.blobs[self.digest(name)]
    }

    /// The size of what is called `name`.
    pub(crate) fn size(&self, name: &str) -> usize {
        self.blobs[self.digest(name)].len()
    }

    /// Calls what was called `from` otherwise.
    pub(crate) fn rename(&mut self, from: &str, to: &str) {
        let mut names = self.names.iter_mut();
        let (_, name) = names.find(|(_, name)| name == from).unwrap();
        to.clone_into(name);
    }

    /// The path by which a registry is asked for the blob called `name`.
    pub(crate) fn blob_path(&self, name: &str) -> String {
        format!("/v2/os/blobs/{}", self.digest(name))
    }

    /// Writes the image under the name `1` into an OCI layout directory.
    pub(crate) fn write_layout(&self, directory: &Path) {
        for algorithm in ["sha256", "sha512"] {
            fs::create_dir_all(directory.join("blobs").join(algorithm)).unwrap();
        }
        for (digest, bytes) in &self.blobs {
            fs::write(
                directory.join("blobs").join(digest.replace(':', "/")),
                bytes,
            )
            .unwrap();
        }
        let mut entry = self.top.clone();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": "1"});
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        fs::write(directory.join("index.json"), index.to_string()).unwrap();
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        fs::write(directory.join("oci-layout"), layout.to_string()).unwrap();
    }

    /// Serves the image as `os:1` and records the requests.
    pub(crate) fn serve(&self) -> Hostile {
        self.serve_except(|_, _| None)
    }

    /// Serves the image as `os:1`, except where `other` has an answer of its own.
    pub(crate) fn serve_except(
        &self,
        other: impl Fn(&Request, usize) -> Option<Reply> + Send + Sync + 'static,
    ) -> Hostile {
        let image = self.clone();
        Hostile::start(move |request, before| {
            other(request, before).unwrap_or_else(|| image.answer(request))
        })
    }

    /// What a registry answers who asks for the top.
    pub(crate) fn top_reply(&self) -> Reply {
        let digest = self.digest("top");
        Reply::ok(&self.blobs[digest]).header("Content-Type", &self.types[digest])
    }

    /// What an honest registry answers.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        self.answer_to(&request.path, request)
    }

    /// What it answers to a request for `path`.
    pub(crate) fn answer_to(&self, path: &str, request: &Request) -> Reply {
        let rest = path.strip_prefix("/v2/os/");
        let Some((kind, name)) = rest.and_then(|rest| rest.split_once('/')) else {
            return Reply::status(404);
        };
        let top = self.top["digest"].as_str().unwrap();
        let digest = if kind == "manifests" && name == "1" {
            top
        } else {
            name
        };
        let Some(bytes) = self.blobs.get(digest) else {
            return Reply::status(404);
        };
        match request.header("range") {
            _ if kind == "manifests" => Reply::ok(bytes)
                .header("Content-Type", &self.types[digest])
                .header("Docker-Content-Digest", digest),
            None => Reply::ok(bytes),
            Some(range) => {
                let from: usize = range
                    .strip_prefix("bytes=")
                    .unwrap()
                    .trim_end_matches('-')
                    .parse()
                    .unwrap();
                let (last, all) = (bytes.len() - 1, bytes.len());
                Reply::status(206)
                    .header("Content-Range", &format!("bytes {from}-{last}/{all}"))
                    .bytes(&bytes[from..])
            }
        }
    }
}

/// An index entry for `architecture` from a manifest's descriptor.
pub(crate) fn entry(mut descriptor: Value, architecture: &str) -> Value {
    descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
    descriptor
}

/// A descriptor or document with annotations.
pub(crate) fn annotated(mut value: Value, annotations: &[(&str, &str)]) -> Value {
    for (key, text) in annotations {
        value["annotations"][*key] = json!(text);
    }
    value
}

/// A manifest that says what it is.
pub(crate) fn manifest(config: &Value, layers: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers})
}

/// What a kernel for `architecture` begins with, and pages of nothing of interest.
pub(crate) fn kernel(architecture: &str) -> Vec<u8> {
    let mut bytes = vec![b'k'; 4096];
    let mut put = |offset: usize, magic: &[u8]| {
        bytes[offset..offset + magic.len()].copy_from_slice(magic);
    };
    match architecture {
        "amd64" => {
            put(0x1fe, b"\x55\xaa");
            put(0x202, b"HdrS");
        }
        _ => put(0x38, b"ARM\x64"),
    }
    bytes
}

/// The type of an EFI system partition, as a partition table has it.
const EFI_SYSTEM: [u8; 16] = [
    0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9, 0x3b,
];

/// A disk of 64 KiB with an EFI system partition; `name` tells it from others.
pub(crate) fn disk(name: &str) -> Vec<u8> {
    let mut bytes = vec![0; 64 << 10];
    let mut put = |offset: usize, content: &[u8]| {
        bytes[offset..offset + content.len()].copy_from_slice(content);
    };
    put(510, b"\x55\xaa");
    // The table's head: where its entries are, how many, how large.
    put(512, b"EFI PART");
    put(512 + 72, &2_u64.to_le_bytes());
    put(512 + 80, &128_u32.to_le_bytes());
    put(512 + 84, &128_u32.to_le_bytes());
    put(1024, &EFI_SYSTEM);
    put(1024 + 32, &64_u64.to_le_bytes());
    put(1024 + 40, &100_u64.to_le_bytes());
    put(32 << 10, name.as_bytes());
    bytes
}

/// The head of a squashfs.
pub(crate) fn squashfs() -> Vec<u8> {
    [b"hsqs".as_slice(), &[b's'; 2044]].concat()
}

/// The head of a compressed archive.
pub(crate) fn initramfs() -> Vec<u8> {
    [b"\x1f\x8b\x08".as_slice(), &[b'i'; 3069]].concat()
}

/// One amd64 manifest with all that direct boot takes, and a disk.
pub(crate) fn direct() -> Image {
    single(
        r#"{"commandLine":"console=ttyS0 root=LABEL=ROOT ro"}"#,
        &[
            ("disk", "rootfs", &disk("amd64")),
            ("kernel", "kernel", &kernel("amd64")),
            ("initramfs", "initramfs", &initramfs()),
            ("squashfs", "squashfs", &squashfs()),
        ],
    )
}

/// One amd64 manifest of `layers`: name, media type, content.
pub(crate) fn single(config: &str, layers: &[(&str, &str, &[u8])]) -> Image {
    single_in(Image::default(), config, layers)
}

/// The same, in an image that is begun.
pub(crate) fn single_in(mut image: Image, config: &str, layers: &[(&str, &str, &[u8])]) -> Image {
    let config = image.config("config", config);
    let layers: Vec<Value> = layers
        .iter()
        .map(|(name, kind, bytes)| image.layer(name, kind, bytes))
        .collect();
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest(&config, &layers));
    image.index(&[entry(manifest, "amd64")])
}

/// One amd64 manifest of one disk.
pub(crate) fn disk_only(disk: &[u8]) -> Image {
    single("{}", &[("disk", "rootfs", disk)])
}

/// One manifest for `architecture` that is booted by its disk.
pub(crate) fn disk_of(architecture: &str) -> Image {
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let layers = [image.layer("disk", "rootfs", &disk(architecture))];
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest(&config, &layers));
    image.index(&[entry(manifest, architecture)])
}

/// One manifest for `architecture` that is booted by its kernel.
pub(crate) fn kernel_of(architecture: &str) -> Image {
    let mut image = Image::default();
    let config = image.config("config", r#"{"commandLine":"quiet"}"#);
    let layers = [
        image.layer("kernel", "kernel", &kernel(architecture)),
        image.layer("initramfs", "initramfs", &initramfs()),
    ];
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest(&config, &layers));
    image.index(&[entry(manifest, architecture)])
}
