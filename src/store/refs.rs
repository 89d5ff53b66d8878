//! References and pins: the durable roots, and the export of the references as an OCI layout.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::files::{self, FileError, Lock, Wait};
use crate::oci::{Architecture, Descriptor, Digest, Reference, manifest};
use crate::signature::Signature;
use crate::store::uses::Held;
use crate::store::{Store, StoreError, Use};

/// What the store knows of one reference.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredReference {
    /// The reference as it was asked for.
    pub reference: String,
    /// The document that it led to: the index, or the manifest where there is none.
    pub top: Descriptor,
    /// When it was first seen to lead there, in seconds since 1970.
    pub resolved_at: u64,
    /// The images of the index that were pulled.
    pub images: Vec<StoredImage>,
    /// The signatures by which it was trusted, to be judged again by whatever policy there is then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub signatures: Vec<Signature>,
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
pub(super) struct Pin {
    pub(super) name: String,
    pub(super) digests: BTreeSet<Digest>,
}

impl StoredReference {
    /// Every blob that the reference needs.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.documents()
            .chain(self.images.iter().flat_map(|image| &image.blobs))
            .map(|blob| blob.digest)
    }

    /// Tells whether `other` is the same, whenever it was resolved.
    fn is_but_for_the_time(&self, other: &Self) -> bool {
        let Self {
            reference,
            top,
            resolved_at: _,
            images,
            signatures,
        } = self;
        (reference, top, images, signatures)
            == (
                &other.reference,
                &other.top,
                &other.images,
                &other.signatures,
            )
    }

    /// The same without what the image says of its blobs: nobody reads it here, and it may be long.
    fn without_annotations(mut self) -> Self {
        let images = self.images.iter_mut().flat_map(|image| {
            let documents = image.indexes.iter_mut().chain([&mut image.manifest]);
            documents.chain(&mut image.blobs)
        });
        for descriptor in images.chain([&mut self.top]) {
            descriptor.annotations.clear();
        }
        self
    }

    /// The documents that the reference needs: its top, and the indexes and manifests below it.
    pub fn documents(&self) -> impl Iterator<Item = &Descriptor> {
        let below = self.images.iter();
        let below = below.flat_map(|image| image.indexes.iter().chain([&image.manifest]));
        std::iter::once(&self.top).chain(below)
    }
}

/// The images of `before` and the `new` ones, those that are in both with the blobs of both. What
/// was there keeps its place, so that the same again changes nothing.
fn merged(before: Option<&StoredReference>, new: &[StoredImage]) -> Vec<StoredImage> {
    let mut images = before.map_or_else(Vec::new, |before| before.images.clone());
    for image in new {
        let same = |present: &&mut StoredImage| present.manifest.digest == image.manifest.digest;
        let Some(present) = images.iter_mut().find(same) else {
            images.push(image.clone());
            continue;
        };
        let mut blobs = std::mem::take(&mut present.blobs);
        for blob in &image.blobs {
            match blobs.iter_mut().find(|known| known.digest == blob.digest) {
                Some(known) => known.clone_from(blob),
                None => blobs.push(blob.clone()),
            }
        }
        *present = StoredImage {
            blobs,
            ..image.clone()
        };
    }
    images
}

impl Store {
    /// Records that `reference` led to `top`, that `new` images of it are in the store, and that
    /// they are used now. The images that were pulled before stay as long as `reference` still
    /// leads to the same document.
    ///
    /// Returns what the record named before, or `held` names, and the record does not name: it may
    /// be needed no more. What is recorded already is not written again; only the time of the
    /// record's file is set, which is when the reference was used last.
    pub fn put_reference(
        &self,
        reference: &Reference,
        top: &Descriptor,
        new: &[StoredImage],
        held: &BTreeSet<Digest>,
        resolved_at: u64,
    ) -> Result<BTreeSet<Digest>, StoreError> {
        self.create()?;
        let path = self.reference_path(reference);
        let record = |before: Option<&StoredReference>| {
            let before = before.filter(|before| before.top.digest == top.digest);
            StoredReference {
                reference: reference.to_string(),
                top: top.clone(),
                resolved_at,
                images: merged(before, new),
                signatures: before.map_or_else(Vec::new, |before| before.signatures.clone()),
            }
            .without_annotations()
        };
        {
            // Shared: beside others who find the same, and not beside one who forgets it.
            let _lock = Lock::shared(&self.references_lock(), Wait::ForEver)?;
            let before: Option<StoredReference> = Self::read_record(&path)?;
            if let Some(before) = &before
                && record(Some(before)).is_but_for_the_time(before)
                && self.is_exported()?
            {
                files::touch(&path)?;
                return Ok(held - &before.digests().collect());
            }
        }
        let _lock = self.lock_references()?;
        let before: Option<StoredReference> = Self::read_record(&path)?;
        let record = record(before.as_ref());
        if !self.path("index.json").exists() {
            // From the first record on there is an export, if not of all of them.
            self.export()?;
        }
        self.write_record(&path, &record)?;
        self.export()?;
        let mut dropped: BTreeSet<Digest> =
            before.iter().flat_map(StoredReference::digests).collect();
        dropped.extend(held);
        Ok(&dropped - &record.digests().collect())
    }

    /// The record of `reference`; none if it was never pulled.
    pub fn reference(&self, reference: &Reference) -> Result<Option<StoredReference>, StoreError> {
        Self::read_record(&self.reference_path(reference))
    }

    /// The descriptor of the document `digest`, if one of the references leads to it.
    pub fn document(&self, digest: &Digest) -> Result<Option<Descriptor>, StoreError> {
        // Of what is not here, nobody needs to know what it is called.
        if fs::symlink_metadata(self.blob_path(digest)).is_err() {
            return Ok(None);
        }
        let directory = self.path("refs");
        // Mostly it was pulled by its digest, which is then in the name of the record. Only if not,
        // all records are read.
        let (likely, others): (Vec<String>, Vec<String>) = files::names(&directory)?
            .into_iter()
            .partition(|name| name.contains(&digest.hex()));
        for name in likely.into_iter().chain(others) {
            let stored: Option<StoredReference> = Self::read_record(&directory.join(name))?;
            let mut documents = stored.iter().flat_map(StoredReference::documents);
            if let Some(found) = documents.find(|document| document.digest == *digest) {
                return Ok(Some(found.clone()));
            }
        }
        Ok(None)
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

    /// All references, sorted, and when each was used last: pulled, or found to be as it was.
    pub fn references_by_use(&self) -> Result<Vec<(StoredReference, SystemTime)>, StoreError> {
        let mut used = Vec::new();
        for stored in self.references()? {
            let at = changed_at(&self.named_reference_path(&stored.reference))?;
            // Gone meanwhile, otherwise.
            used.extend(at.map(|at| (stored, at)));
        }
        Ok(used)
    }

    /// Forgets `reference`. Errors if there is none, or if an instance or one of `others` needs
    /// what no other reference holds.
    pub fn remove_reference(
        &self,
        reference: &Reference,
        others: &[Use],
    ) -> Result<StoredReference, StoreError> {
        let _lock = self.lock_references()?;
        let no_reference = || StoreError::NoReference {
            reference: reference.clone(),
        };
        let record = self.reference(reference)?.ok_or_else(no_reference)?;
        let held = Held::by(&self.references()?);
        let uses = [&self.instance_uses()?, others].concat();
        let users = held.users(&record, &uses);
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

    /// Drops the pin of `name`. Returns what it kept, which may be needed no more; nothing if there
    /// is none.
    pub fn unpin(&self, name: &str) -> Result<BTreeSet<Digest>, StoreError> {
        let path = self.pin_path(name);
        let pin: Option<Pin> = Self::read_record(&path)?;
        files::remove(&path)?;
        Ok(pin.map_or_else(BTreeSet::new, |pin| pin.digests))
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

    fn references_lock(&self) -> PathBuf {
        self.path("refs.lock")
    }

    pub(super) fn lock_references(&self) -> Result<Lock, StoreError> {
        self.create()?;
        Ok(Lock::exclusive(&self.references_lock(), Wait::ForEver)?
            .expect("a lock that is waited for is taken"))
    }

    fn reference_path(&self, reference: &Reference) -> PathBuf {
        self.named_reference_path(&reference.to_string())
    }

    /// Path of the record of the reference that is written like this.
    pub(super) fn named_reference_path(&self, reference: &str) -> PathBuf {
        self.path("refs").join(file_name(reference))
    }

    pub(super) fn pin_path(&self, name: &str) -> PathBuf {
        self.path("pins").join(file_name(name))
    }

    /// Tells whether the export is of the references as they are: whoever changes those and is
    /// killed before the export leaves it older than their directory.
    pub(super) fn is_exported(&self) -> Result<bool, StoreError> {
        let index = changed_at(&self.path("index.json"))?;
        Ok(index.is_some() && index >= changed_at(&self.path("refs"))?)
    }

    /// Writes `oci-layout` and `index.json`, so that other tools can read the store. Nothing here
    /// reads them but to see whether they are whole.
    pub(super) fn export(&self) -> Result<(), StoreError> {
        // One that can not be read is nobody else's harm.
        for (name, content) in Self::exported(&self.readable_references()?) {
            let path = self.path(name);
            // One of the two says the same for ever.
            if !Self::read_record(&path).is_ok_and(|present| present.as_ref() == Some(&content)) {
                self.write_record(&path, &content)?;
            }
        }
        // As new as the references, even if it is the same.
        Ok(files::touch(&self.path("index.json"))?)
    }

    /// The files of the export, and what is in them.
    pub(super) fn exported(references: &[StoredReference]) -> [(&'static str, Value); 2] {
        let entries: Vec<Value> = references
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
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        [("oci-layout", layout), ("index.json", index)]
    }
}

/// When the content of a file or directory was changed last; nothing if it is not there.
fn changed_at(path: &Path) -> Result<Option<SystemTime>, FileError> {
    match fs::symlink_metadata(path).and_then(|metadata| metadata.modified()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => Ok(Some(result.map_err(FileError::of("look at", path))?)),
    }
}

/// A file name for `text`: what is not a letter, digit, `.`, `_` or `-` is written `%xx`; what
/// would be too long for a file name is hashed.
pub(super) fn file_name(text: &str) -> String {
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
    use std::os::unix::fs::MetadataExt;
    use std::time::Duration;

    use super::*;
    use crate::store::User;

    fn store() -> (tempfile::TempDir, Store) {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        (directory, store)
    }

    fn put(store: &Store, reference: &Reference, top: &Descriptor, images: &[StoredImage]) {
        let put = store.put_reference(reference, top, images, &BTreeSet::new(), 1);
        assert_eq!(put.unwrap(), BTreeSet::new());
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
                .put_reference(&reference, top, &image(name), &BTreeSet::new(), 1)
                .unwrap();
            store.reference(&reference).unwrap().unwrap().images.len()
        };
        assert_eq!(count(&top, "amd64"), 1);
        assert_eq!(count(&top, "arm64"), 2);
        assert_eq!(count(&top, "amd64"), 2);
        let moved = Descriptor::of("i", b"two");
        let dropped = store
            .put_reference(&reference, &moved, &image("amd64"), &BTreeSet::new(), 2)
            .unwrap();
        let gone = [
            top.digest,
            image("arm64")[0].manifest.digest,
            image("arm64")[0].blobs[0].digest,
        ];
        assert_eq!(dropped, BTreeSet::from(gone));
        assert_eq!(store.references().unwrap().len(), 1);
    }

    /// Identity of the file `name` of the store, and when it was changed.
    fn state(store: &Store, name: &str) -> (u64, SystemTime) {
        let metadata = fs::metadata(store.path(name)).unwrap();
        (metadata.ino(), metadata.modified().unwrap())
    }

    #[test]
    fn the_same_again_writes_nothing_but_the_time_of_its_use() {
        let (_directory, store) = store();
        let reference: Reference = "reg.io/a:1".parse().unwrap();
        let top = Descriptor::of("i", b"one");
        let mut images = image("amd64");
        images.extend(image("arm64"));
        put(&store, &reference, &top, &images);
        let record = store.reference_path(&reference);
        let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        fs::File::options()
            .append(true)
            .open(&record)
            .unwrap()
            .set_modified(long_ago)
            .unwrap();
        let (index, refs) = (state(&store, "index.json"), state(&store, "refs"));
        // One of two images, and with fewer of its blobs: all that is known already.
        let again = [StoredImage {
            blobs: Vec::new(),
            ..images[0].clone()
        }];
        let unknown = Digest::of(b"held for nothing");
        let held = BTreeSet::from([unknown, images[0].blobs[0].digest, top.digest]);
        let dropped = store.put_reference(&reference, &top, &again, &held, 9);
        assert_eq!(dropped.unwrap(), BTreeSet::from([unknown]));
        assert_eq!(state(&store, "index.json"), index);
        assert_eq!(state(&store, "refs"), refs);
        assert!(fs::metadata(&record).unwrap().modified().unwrap() > long_ago);
        let stored = store.reference(&reference).unwrap().unwrap();
        assert_eq!((stored.images, stored.resolved_at), (images, 1));
    }

    #[test]
    fn an_export_that_a_kill_left_behind_is_made_anew_by_the_next_who_comes() {
        let (_directory, store) = store();
        let top = Descriptor::of("i", b"one");
        let [one, two] = ["reg.io/a:1", "reg.io/a:2"].map(|text| text.parse().unwrap());
        put(&store, &one, &top, &image("x"));
        let index = fs::read(store.path("index.json")).unwrap();
        put(&store, &two, &top, &image("x"));
        // As if killed between the second record and its export.
        fs::write(store.path("index.json"), &index).unwrap();
        fs::File::options()
            .append(true)
            .open(store.path("index.json"))
            .unwrap()
            .set_modified(SystemTime::UNIX_EPOCH)
            .unwrap();
        put(&store, &one, &top, &image("x"));
        let exported = fs::read_to_string(store.path("index.json")).unwrap();
        assert!(exported.contains("reg.io/a:2"), "{exported}");
    }

    #[test]
    fn a_reference_that_an_instance_needs_is_not_removed() {
        let (_directory, store) = store();
        let reference: Reference = "reg.io/a:1".parse().unwrap();
        let top = Descriptor::of("i", b"one");
        put(&store, &reference, &top, &image("x"));
        let manifest = image("x")[0].manifest.digest;
        store.pin("vm", BTreeSet::from([manifest])).unwrap();
        let Err(StoreError::InUse { users, .. }) = store.remove_reference(&reference, &[]) else {
            panic!("removed what an instance needs");
        };
        assert_eq!(users, [User::Instance("vm".to_owned())]);
        // Who is known only by a blob that it opens.
        let domain = |opened| Use {
            user: User::Domain {
                name: "web".to_owned(),
                uri: "qemu:///system".to_owned(),
            },
            named: BTreeSet::new(),
            opened: BTreeSet::from([opened]),
        };
        let layer = image("x")[0].blobs[0].digest;
        let Err(error) = store.remove_reference(&reference, &[domain(layer)]) else {
            panic!("removed what an instance and a domain need");
        };
        assert_eq!(
            error.to_string(),
            "image reg.io/a:1 is used by vm, domain web of qemu:///system"
        );
        // A second reference to the same image keeps it for the instance.
        let second: Reference = "reg.io/a:2".parse().unwrap();
        put(&store, &second, &top, &image("x"));
        store
            .remove_reference(&reference, &[domain(layer)])
            .unwrap();
        assert_eq!(store.unpin("vm").unwrap(), BTreeSet::from([manifest]));
        store.remove_reference(&second, &[]).unwrap();
        assert!(matches!(
            store.remove_reference(&second, &[]),
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
        put(&store, &reference, &top, &images);
        let stored = store.reference(&reference).unwrap().unwrap();
        assert!(stored.digests().any(|digest| digest == inner.digest));
        assert_eq!(store.document(&inner.digest).unwrap(), None);
        let lease = store.lease([inner.digest]).unwrap();
        lease.put(&inner, b"inner").unwrap();
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
