//! References and pins: the durable roots, and the export of the references as an OCI layout.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::files::{self, Lock, Wait};
use crate::oci::{Architecture, Descriptor, Digest, Reference, manifest};
use crate::store::{Store, StoreError};

/// What the store knows of one reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredReference {
    /// The reference as it was asked for.
    pub reference: String,
    /// The document that it led to: the index, or the manifest where there is none.
    pub top: Descriptor,
    /// When it led there, in seconds since 1970.
    pub resolved_at: u64,
    /// The images of the index that were pulled.
    pub images: Vec<StoredImage>,
}

/// One image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredImage {
    /// Its manifest.
    pub manifest: Descriptor,
    /// The indexes within the top index that lead to it, the outer one first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub indexes: Vec<Descriptor>,
    /// Its architecture, if anything said it.
    pub architecture: Option<Architecture>,
    /// Its IronCore variant, if anything said it.
    pub variant: Option<String>,
    /// The blobs of it that were pulled, its config among them.
    pub blobs: Vec<Descriptor>,
}

/// The blobs that one instance needs.
#[derive(Debug, Serialize, Deserialize)]
struct Pin {
    name: String,
    digests: BTreeSet<Digest>,
}

impl StoredReference {
    /// Every blob that the reference needs.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.documents()
            .chain(self.images.iter().flat_map(|image| &image.blobs))
            .map(|blob| blob.digest)
    }

    /// The documents that the reference needs: its top, and the indexes and manifests below it.
    pub fn documents(&self) -> impl Iterator<Item = &Descriptor> {
        let below = self.images.iter();
        let below = below.flat_map(|image| image.indexes.iter().chain([&image.manifest]));
        std::iter::once(&self.top).chain(below)
    }
}

impl Store {
    /// Records that `reference` led to `top` and that `new` images of it are in the store. The
    /// images that were pulled before stay as long as `reference` still leads to the same document.
    ///
    /// Returns what the record named before and names no more.
    pub fn put_reference(
        &self,
        reference: &Reference,
        top: &Descriptor,
        new: Vec<StoredImage>,
        resolved_at: u64,
    ) -> Result<BTreeSet<Digest>, StoreError> {
        let _lock = self.lock_references()?;
        let path = self.reference_path(reference);
        let before: Option<StoredReference> = Self::read_record(&path)?;
        let mut dropped: BTreeSet<Digest> =
            before.iter().flat_map(StoredReference::digests).collect();
        let mut images: Vec<StoredImage> = before
            .filter(|before| before.top.digest == top.digest)
            .map_or_else(Vec::new, |before| before.images);
        for mut image in new {
            let same = |present: &StoredImage| present.manifest.digest == image.manifest.digest;
            if let Some(place) = images.iter().position(same) {
                let present = images.remove(place);
                let named: BTreeSet<Digest> = image.blobs.iter().map(|blob| blob.digest).collect();
                let kept = present.blobs.into_iter();
                image
                    .blobs
                    .extend(kept.filter(|blob| !named.contains(&blob.digest)));
            }
            images.push(image);
        }
        let record = StoredReference {
            reference: reference.to_string(),
            top: top.clone(),
            resolved_at,
            images,
        };
        self.write_record(&path, &record)?;
        self.export()?;
        for digest in record.digests() {
            dropped.remove(&digest);
        }
        Ok(dropped)
    }

    /// The record of `reference`; none if it was never pulled.
    pub fn reference(&self, reference: &Reference) -> Result<Option<StoredReference>, StoreError> {
        Self::read_record(&self.reference_path(reference))
    }

    /// The descriptor of the document `digest`, if one of the references leads to it.
    pub fn document(&self, digest: &Digest) -> Result<Option<Descriptor>, StoreError> {
        let references = self.references()?;
        let mut documents = references.iter().flat_map(StoredReference::documents);
        Ok(documents
            .find(|document| document.digest == *digest)
            .cloned())
    }

    /// All references, sorted.
    pub fn references(&self) -> Result<Vec<StoredReference>, StoreError> {
        let directory = self.path("refs");
        let mut references = Vec::new();
        for name in files::names(&directory)? {
            references.extend(Self::read_record::<StoredReference>(&directory.join(name))?);
        }
        references.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(references)
    }

    /// Forgets `reference`. Errors if there is none, or if an instance needs what no other
    /// reference holds.
    pub fn remove_reference(&self, reference: &Reference) -> Result<StoredReference, StoreError> {
        let _lock = self.lock_references()?;
        let no_reference = || StoreError::NoReference {
            reference: reference.clone(),
        };
        let record = self.reference(reference)?.ok_or_else(no_reference)?;
        // An instance uses an image if it was made from its manifest; single blobs, such as an
        // empty config, are shared by images that have nothing to do with each other.
        let manifests = |record: &StoredReference| -> BTreeSet<Digest> {
            let images = record.images.iter();
            images.map(|image| image.manifest.digest).collect()
        };
        let mut own = manifests(&record);
        for other in self.references()? {
            if other.reference != record.reference {
                own = &own - &manifests(&other);
            }
        }
        let users: Vec<String> = self
            .pins()?
            .into_iter()
            .filter(|(_, digests)| !own.is_disjoint(digests))
            .map(|(name, _)| name)
            .collect();
        if !users.is_empty() {
            return Err(StoreError::InUse {
                reference: reference.clone(),
                users,
            });
        }
        files::remove(&self.reference_path(reference))?;
        self.export()?;
        Ok(record)
    }

    /// Pins `digests` for `name`, an instance's name.
    pub fn pin(&self, name: &str, digests: BTreeSet<Digest>) -> Result<(), StoreError> {
        let path = self.pin_path(name);
        let name = name.to_owned();
        self.write_record(&path, &Pin { name, digests })
    }

    /// Drops the pin of `name`, if there is one, and removes what only it kept.
    pub fn unpin(&self, name: &str) -> Result<(), StoreError> {
        let path = self.pin_path(name);
        let pin: Option<Pin> = Self::read_record(&path)?;
        files::remove(&path)?;
        if let Some(pin) = pin {
            self.remove_unneeded(pin.digests)?;
        }
        Ok(())
    }

    /// All pins by name.
    pub fn pins(&self) -> Result<Vec<(String, BTreeSet<Digest>)>, StoreError> {
        let directory = self.path("pins");
        let mut pins = Vec::new();
        for name in files::names(&directory)? {
            let pin: Option<Pin> = Self::read_record(&directory.join(name))?;
            pins.extend(pin.map(|pin| (pin.name, pin.digests)));
        }
        Ok(pins)
    }

    fn lock_references(&self) -> Result<Lock, StoreError> {
        self.create()?;
        Ok(Lock::exclusive(&self.path("refs.lock"), Wait::ForEver)?
            .expect("a lock that is waited for is taken"))
    }

    fn reference_path(&self, reference: &Reference) -> PathBuf {
        self.path("refs").join(file_name(&reference.to_string()))
    }

    fn pin_path(&self, name: &str) -> PathBuf {
        self.path("pins").join(file_name(name))
    }

    /// Writes `oci-layout` and `index.json`, so that other tools can read the store. Nothing here
    /// reads them.
    fn export(&self) -> Result<(), StoreError> {
        let entries: Vec<serde_json::Value> = self
            .references()?
            .iter()
            .map(|stored| {
                json!({
                    "mediaType": stored.top.media_type,
                    "digest": stored.top.digest,
                    "size": stored.top.size,
                    "annotations": {"org.opencontainers.image.ref.name": stored.reference},
                })
            })
            .collect();
        let index = json!({
            "schemaVersion": 2,
            "mediaType": manifest::OCI_INDEX,
            "manifests": entries,
        });
        self.write_record(&self.path("index.json"), &index)?;
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        let path = self.path("oci-layout");
        if path.exists() {
            return Ok(());
        }
        self.write_record(&path, &layout)
    }
}

/// A file name for `text`: what is not a letter, digit, `.`, `_` or `-` is written `%xx`; what
/// would be too long for a file name is hashed.
fn file_name(text: &str) -> String {
    let escaped: String = text
        .bytes()
        .map(|byte| match byte {
            b'.' | b'_' | b'-' => char::from(byte).to_string(),
            _ if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
            _ => format!("%{byte:02x}"),
        })
        .collect();
    if escaped.len() > 200 {
        return format!("sha256-{}.json", Digest::of(text.as_bytes()).hex());
    }
    format!("{escaped}.json")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        (directory, store)
    }

    fn image(name: &str) -> Vec<StoredImage> {
        vec![StoredImage {
            manifest: Descriptor::of("m", name.as_bytes()),
            indexes: Vec::new(),
            architecture: None,
            variant: None,
            blobs: vec![Descriptor::of("l", format!("layer of {name}").as_bytes())],
        }]
    }

    #[test]
    fn a_reference_keeps_its_images_until_it_leads_elsewhere() {
        let (_directory, store) = store();
        let reference: Reference = "reg.io:5000/a/b:1".parse().unwrap();
        let top = Descriptor::of("i", b"one");
        let count = |top: &Descriptor, name: &str| {
            store
                .put_reference(&reference, top, image(name), 1)
                .unwrap();
            store.reference(&reference).unwrap().unwrap().images.len()
        };
        assert_eq!(count(&top, "amd64"), 1);
        assert_eq!(count(&top, "arm64"), 2);
        assert_eq!(count(&top, "amd64"), 2);
        let moved = Descriptor::of("i", b"two");
        let dropped = store
            .put_reference(&reference, &moved, image("amd64"), 2)
            .unwrap();
        let gone = [
            top.digest,
            image("arm64")[0].manifest.digest,
            image("arm64")[0].blobs[0].digest,
        ];
        assert_eq!(dropped, BTreeSet::from(gone));
        assert_eq!(store.references().unwrap().len(), 1);
    }

    #[test]
    fn a_reference_that_an_instance_needs_is_not_removed() {
        let (_directory, store) = store();
        let reference: Reference = "reg.io/a:1".parse().unwrap();
        let top = Descriptor::of("i", b"one");
        store
            .put_reference(&reference, &top, image("x"), 1)
            .unwrap();
        let manifest = image("x")[0].manifest.digest;
        store.pin("vm", BTreeSet::from([manifest])).unwrap();
        let Err(StoreError::InUse { users, .. }) = store.remove_reference(&reference) else {
            panic!("removed what an instance needs");
        };
        assert_eq!(users, ["vm"]);
        // A second reference to the same image keeps it for the instance.
        let second: Reference = "reg.io/a:2".parse().unwrap();
        store.put_reference(&second, &top, image("x"), 1).unwrap();
        store.remove_reference(&reference).unwrap();
        store.unpin("vm").unwrap();
        store.remove_reference(&second).unwrap();
        assert!(matches!(
            store.remove_reference(&second),
            Err(StoreError::NoReference { .. })
        ));
    }

    #[test]
    fn the_indexes_on_the_way_to_a_manifest_are_kept_with_it() {
        let (_directory, store) = store();
        let reference: Reference = "reg.io/a:1".parse().unwrap();
        let top = Descriptor::of("i", b"one");
        let inner = Descriptor::of("i", b"inner");
        let mut images = image("x");
        images[0].indexes = vec![inner.clone()];
        store.put_reference(&reference, &top, images, 1).unwrap();
        let stored = store.reference(&reference).unwrap().unwrap();
        assert!(stored.digests().any(|digest| digest == inner.digest));
        assert_eq!(store.document(&inner.digest).unwrap(), Some(inner.clone()));
    }

    #[test]
    fn records_of_a_time_without_inner_indexes_are_read() {
        let old = serde_json::json!({
            "reference": "reg.io/a:1",
            "top": Descriptor::of("i", b"one"),
            "resolved_at": 1,
            "images": [{
                "manifest": Descriptor::of("m", b"x"),
                "architecture": "amd64",
                "variant": null,
                "blobs": [],
            }],
        });
        let stored: StoredReference = serde_json::from_value(old.clone()).unwrap();
        assert_eq!(stored.images[0].indexes, []);
        assert_eq!(serde_json::to_value(&stored).unwrap(), old);
    }

    #[test]
    fn references_are_safe_and_distinct_file_names() {
        let long = format!("reg.io/{}:1", "n".repeat(250));
        let names: BTreeSet<String> = [
            "reg.io/a:1",
            "reg.io/a_1",
            "reg.io/a%3a1",
            "oci:../x:y",
            &long,
        ]
        .into_iter()
        .map(file_name)
        .collect();
        assert_eq!(names.len(), 5);
        for name in names {
            assert!(!name.contains('/') && name.len() < 255, "{name}");
        }
    }
}
