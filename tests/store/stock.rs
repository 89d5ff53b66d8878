//! The images that the shop has.

use serde_json::{Value, json};

use crate::image::{self, OCI_INDEX, OCI_MANIFEST, entry, manifest};
use crate::shop::{Content, Shop, digest_of};

const PREFIX: &str = "application/vnd.ironcore.image";

/// An image in a shop.
#[derive(Debug, Clone)]
pub(crate) struct Stocked {
    /// Descriptors of the layers.
    pub(crate) layers: Vec<Value>,
    /// Descriptor of the index.
    pub(crate) index: Value,
}

/// An amd64 image of a disk, an initramfs and a kernel that nothing can tell from real ones before
/// it boots them. No two seeds have a layer in common.
pub(crate) fn direct(shop: &Shop, seed: u64, disk: u64, initramfs: u64, kernel: u64) -> Stocked {
    let layer = |kind: &str, head: &[u8], number: u64, size| {
        let content = Content::noise(seed * 3 + number, size).with_head(head);
        shop.blob(&format!("{PREFIX}.{kind}"), content)
    };
    let layers = vec![
        layer("rootfs", &image::disk("amd64"), 0, disk),
        layer("initramfs", &image::initramfs(), 1, initramfs),
        layer("kernel", &image::kernel("amd64"), 2, kernel),
    ];
    of_layers(shop, layers)
}

/// Puts an amd64 image of `layers`, which are there, into the shop.
fn of_layers(shop: &Shop, layers: Vec<Value>) -> Stocked {
    let config = Content::bytes(br#"{"commandLine":"console=ttyS0 root=LABEL=ROOT ro"}"#);
    let config = shop.blob(&format!("{PREFIX}.config.v1+json"), config);
    let manifest = shop.document(OCI_MANIFEST, &manifest(&config, &layers));
    let entries = [entry(manifest, "amd64")];
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let index = shop.document(OCI_INDEX, &index);
    Stocked { layers, index }
}

/// Pulls the image `tag` of `shop`.
pub(crate) fn pull(shop: &Shop, tag: &str) -> String {
    let reference = shop.reference(tag);
    format!("pull -q --json --arch amd64 --boot direct {reference}")
}

impl Stocked {
    /// The same image with another disk, which is in the shop.
    pub(crate) fn with_disk(&self, disk: Value, shop: &Shop) -> Self {
        let mut layers = self.layers.clone();
        layers[0] = disk;
        of_layers(shop, layers)
    }

    /// Bytes of all layers.
    pub(crate) fn size(&self) -> u64 {
        let sizes = self.layers.iter().map(|layer| layer["size"].as_u64());
        sizes.map(Option::unwrap).sum()
    }

    /// Digests of the layers.
    pub(crate) fn digests(&self) -> Vec<String> {
        let digests = self.layers.iter().map(digest_of);
        digests.map(str::to_owned).collect()
    }

    /// How many requests there were for each layer.
    pub(crate) fn requests(&self, shop: &Shop) -> Vec<u64> {
        let digests = self.layers.iter().map(digest_of);
        digests.map(|digest| shop.requests(digest)).collect()
    }

    /// How many bytes of the layers were served.
    pub(crate) fn served(&self, shop: &Shop) -> u64 {
        let digests = self.layers.iter().map(digest_of);
        digests.map(|digest| shop.bytes(digest)).sum()
    }
}
