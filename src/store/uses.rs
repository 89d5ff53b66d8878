//! Who needs blobs beside the references: instances, and domains of libvirt's.
//!
//! An instance is known by its pin and by its record, each of which counts without the other. Of
//! domains the store knows nothing; whoever asks libvirt tells it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::files;
use crate::oci::{Digest, Printable};
use crate::store::{MAX_RECORD_BYTES, Store, StoreError, StoredReference};

/// Somebody who needs blobs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    /// An instance, by its name.
    Instance(String),
    /// A domain of libvirt's that no instance is known of.
    Domain {
        /// Its name.
        name: String,
        /// The libvirt that has it.
        uri: String,
    },
}

/// What somebody needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Use {
    /// Who.
    pub user: User,
    /// What it was made from: manifests and blobs, which other images may share.
    pub named: BTreeSet<Digest>,
    /// What it opens, though nothing says from which image that came.
    pub opened: BTreeSet<Digest>,
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Instance(name) => Printable(name).fmt(f),
            Self::Domain { name, uri } => write!(f, "domain {} of {uri}", Printable(name)),
        }
    }
}

impl Use {
    /// Everything that it needs.
    pub fn digests(&self) -> impl Iterator<Item = Digest> {
        self.named.iter().chain(&self.opened).copied()
    }
}

/// What images are held by others, so that it shows what one reference alone holds.
#[derive(Debug, Default)]
pub(super) struct Held {
    manifests: BTreeMap<Digest, usize>,
    blobs: BTreeMap<Digest, usize>,
}

impl Held {
    /// Counts what the images of `references` are made of.
    pub(super) fn by<'a>(references: impl IntoIterator<Item = &'a StoredReference>) -> Self {
        let mut held = Self::default();
        for reference in references {
            let (manifests, blobs) = made_of(reference);
            for digest in manifests {
                *held.manifests.entry(digest).or_default() += 1;
            }
            for digest in blobs {
                *held.blobs.entry(digest).or_default() += 1;
            }
        }
        held
    }

    /// Takes out what `reference` holds.
    pub(super) fn forget(&mut self, reference: &StoredReference) {
        let (manifests, blobs) = made_of(reference);
        for (counts, digests) in [(&mut self.manifests, manifests), (&mut self.blobs, blobs)] {
            for digest in digests {
                if let Some(count) = counts.get_mut(&digest) {
                    *count = count.saturating_sub(1);
                }
            }
        }
    }

    /// Who needs an image that `reference`, which is counted, alone holds.
    ///
    /// An instance uses an image if it was made from its manifest; single blobs, such as an empty
    /// config, are shared by images that have nothing to do with each other. Of a domain nothing
    /// may be known but the blobs that it opens.
    pub(super) fn users(&self, reference: &StoredReference, uses: &[Use]) -> Vec<User> {
        let (manifests, blobs) = made_of(reference);
        let alone = |counts: &BTreeMap<Digest, usize>, own: BTreeSet<Digest>| -> BTreeSet<Digest> {
            let is_alone = |digest: &Digest| counts.get(digest).is_none_or(|count| *count <= 1);
            own.into_iter().filter(is_alone).collect()
        };
        let manifests = alone(&self.manifests, manifests);
        let blobs = alone(&self.blobs, blobs);
        let users = uses
            .iter()
            .filter(|one| !manifests.is_disjoint(&one.named) || !blobs.is_disjoint(&one.opened));
        let users: BTreeSet<&User> = users.map(|one| &one.user).collect();
        users.into_iter().cloned().collect()
    }
}

/// The manifests of a reference, and the blobs of its images.
fn made_of(reference: &StoredReference) -> (BTreeSet<Digest>, BTreeSet<Digest>) {
    let images = &reference.images;
    let blobs = images.iter().flat_map(|image| &image.blobs);
    (
        images.iter().map(|image| image.manifest.digest).collect(),
        blobs.map(|blob| blob.digest).collect(),
    )
}

impl Store {
    /// What each instance needs by its pin and by its record, sorted by their names.
    pub fn instance_uses(&self) -> Result<Vec<Use>, StoreError> {
        let mut needed: BTreeMap<String, BTreeSet<Digest>> = self.pins()?.into_iter().collect();
        for name in self.instance_names()? {
            let named = self.record_digests(&name)?;
            needed.entry(name).or_default().extend(named);
        }
        let uses = needed.into_iter().map(|(name, named)| Use {
            user: User::Instance(name),
            named,
            opened: BTreeSet::new(),
        });
        Ok(uses.collect())
    }

    /// The names of the instances that have a record.
    pub(super) fn instance_names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = files::names(&self.instances())?;
        // What is being made is leased, and what is being removed is not needed.
        names.retain(|name| {
            let record = fs::symlink_metadata(self.instance_record(name));
            !name.starts_with('.') && record.is_ok_and(|metadata| metadata.is_file())
        });
        Ok(names)
    }

    /// What the record of an instance names. It is not parsed, so that one that is damaged still
    /// keeps what it names.
    pub(super) fn record_digests(&self, name: &str) -> Result<BTreeSet<Digest>, StoreError> {
        let record = files::read_plain(&self.instance_record(name), MAX_RECORD_BYTES)?;
        Ok(digests_in(&record.unwrap_or_default()).collect())
    }

    /// The blobs of which the instance `name` opens what was made of them.
    pub(super) fn raws_of_instance(&self, name: &str) -> Result<BTreeSet<Digest>, StoreError> {
        let record = files::read_plain(&self.instance_record(name), MAX_RECORD_BYTES)?;
        let record = record.unwrap_or_default();
        let text = String::from_utf8_lossy(&record);
        let parts = text.split("/derived/").skip(1);
        let names = parts.filter_map(|rest| rest.split('/').next());
        Ok(names
            .filter_map(|name| name.replacen('-', ":", 1).parse().ok())
            .collect())
    }

    fn instance_record(&self, name: &str) -> PathBuf {
        self.instances().join(name).join("record.json")
    }

    /// The blobs of the store that `text` names by their paths, be it a path or have one in it;
    /// nothing if it names neither a blob nor an instance of the store.
    ///
    /// The store is recognized by whatever path leads to it.
    #[must_use]
    pub fn named_in(&self, text: &str) -> Option<BTreeSet<Digest>> {
        let mut named = None;
        for (at, directory) in text.match_indices("/blobs/") {
            let rest = text[at + directory.len()..].split_once('/');
            let digest = rest.and_then(|(algorithm, rest)| {
                let end = rest.find(|c: char| !c.is_ascii_hexdigit());
                let hex = &rest[..end.unwrap_or(rest.len())];
                format!("{algorithm}:{hex}").parse::<Digest>().ok()
            });
            if let Some(digest) = digest.filter(|_| self.ends(&text[..at])) {
                named.get_or_insert_with(BTreeSet::new).insert(digest);
            }
        }
        for (at, directory) in text.match_indices("/derived/") {
            let name = text[at + directory.len()..].split('/').next();
            let digest = name.and_then(|name| name.replacen('-', ":", 1).parse().ok());
            if let Some(digest) = digest.filter(|_| self.ends(&text[..at])) {
                named.get_or_insert_with(BTreeSet::new).insert(digest);
            }
        }
        let mut instances = text.match_indices("/instances/");
        if instances.any(|(at, _)| self.ends(&text[..at])) {
            named.get_or_insert_with(BTreeSet::new);
        }
        named
    }

    /// Tells whether `text` ends with a path of the store's directory.
    fn ends(&self, text: &str) -> bool {
        let identity = |path: &Path| {
            let metadata = fs::metadata(path).ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        let own = identity(&self.root);
        let mut starts = text.match_indices('/');
        own.is_some() && starts.any(|(start, _)| identity(Path::new(&text[start..])) == own)
    }
}

/// Everything in `text` that has the form of a digest's digits.
fn digests_in(text: &[u8]) -> impl Iterator<Item = Digest> {
    let runs = text.split(|byte| !matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    runs.filter_map(|run| {
        let hex = std::str::from_utf8(run).ok()?;
        match hex.len() {
            64 => format!("sha256:{hex}").parse().ok(),
            128 => format!("sha512:{hex}").parse().ok(),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_whose_pin_has_vanished_still_keeps_what_it_names_and_even_a_damaged_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path().to_owned());
        store.create().unwrap();
        let [pinned, named, opened] = [&b"1"[..], b"2", b"3"].map(Digest::of);
        store.pin("vm", BTreeSet::from([pinned])).unwrap();
        for name in ["vm", ".gone-x", "other"] {
            fs::create_dir(store.instances().join(name)).unwrap();
        }
        let text = format!(
            "{{\"a\":\"{named}\", \"b\":\"/s/blobs/sha256/{}",
            opened.hex()
        );
        for name in ["vm", ".gone-x"] {
            fs::write(store.instances().join(name).join("record.json"), &text).unwrap();
        }
        let expected = Use {
            user: User::Instance("vm".to_owned()),
            named: BTreeSet::from([pinned, named, opened]),
            opened: BTreeSet::new(),
        };
        assert_eq!(store.instance_uses().unwrap(), [expected]);
        store.unpin("vm").unwrap();
        let uses = store.instance_uses().unwrap();
        assert_eq!(uses[0].named, BTreeSet::from([named, opened]));
    }

    #[test]
    fn the_store_is_recognized_by_any_path_that_leads_to_it_and_no_other_is() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("sto,re");
        let other = directory.path().join("other");
        for store in [&root, &other] {
            Store::at(store.clone()).create().unwrap();
        }
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&root, &link).unwrap();
        let store = Store::at(root.clone());
        let digest = Digest::of(b"x");
        let blob = |root: &Path| format!("{}/blobs/sha256/{}", root.display(), digest.hex());
        let found = Some(BTreeSet::from([digest]));
        for (text, expected) in [
            (blob(&root), found.clone()),
            (blob(&link), found.clone()),
            (format!("file={},format=raw", blob(&root)), found),
            (
                format!("{}/instances/vm/disk", link.display()),
                Some(BTreeSet::new()),
            ),
            (blob(&other), None),
            (format!("{}/blobs/sha256/abc", root.display()), None),
            (format!("{}/blobs/", root.display()), None),
            (root.display().to_string(), None),
            ("/blobs//instances/".to_owned(), None),
        ] {
            assert_eq!(store.named_in(&text), expected, "{text}");
        }
    }
}
