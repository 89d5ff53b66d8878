//! Everything that an index leads to: its manifests, and those of the indexes within it.
//!
//! An entry inherits the platform and the annotations of the entries above it, where it has none
//! of its own. What is wrong with one entry is told of that entry; its neighbours stay usable.

use futures_util::StreamExt;

use crate::oci::manifest::{self, IndexEntry, MAX_DOCUMENT_BYTES};
use crate::oci::{Descriptor, Digest, Document, Index, Manifest};
use crate::ops::{Context, OpsError};
use crate::source::{RawDocument, Source, SourceError, Wanted};
use crate::store::{Store, StoreError};

/// How many indexes may lie within each other, the outermost among them.
pub(super) const MAX_DEPTH: usize = 4;
/// How many documents an index may lead to.
pub(super) const MAX_DOCUMENTS: usize = 512;
/// How many bytes of documents, or of configs, an index may lead to.
pub(super) const MAX_TOTAL_BYTES: u64 = 64 << 20;
/// How many annotations an entry inherits.
const MAX_WORDS: usize = 64;
/// How many bytes an annotation that is inherited has, with its key.
const MAX_WORD_BYTES: usize = 1 << 10;
/// How many documents are read at the same time.
const AT_ONCE: usize = 4;

/// An entry of an index, or of an index within it, and what it leads to.
#[derive(Debug)]
pub(super) struct Node {
    /// The entry.
    pub place: Place,
    /// What it leads to.
    pub found: Found,
}

/// Where a document is named.
#[derive(Debug)]
pub(super) struct Place {
    /// The document's descriptor as its index has it.
    pub descriptor: Descriptor,
    /// The entry, with what it inherits from those above.
    pub entry: IndexEntry,
    /// The indexes on the way to it, the outermost first.
    pub indexes: Vec<Digest>,
}

/// What an entry leads to.
#[derive(Debug)]
pub(super) enum Found {
    /// A manifest, with its bytes.
    Manifest(Vec<u8>, Manifest),
    /// An index, by its bytes; its entries are nodes of their own.
    Index(Vec<u8>),
    /// Something that was not read, for this reason.
    PassedOver(String),
    /// Something that can not be used, through no fault of the source.
    Broken(OpsError),
}

/// Reads everything that `index`, whose digest is `top`, leads to; each index comes before what
/// it lists.
///
/// Entries for which `fits` has a reason against them are not read. Errors if the source fails, or
/// if there is more than any image has.
pub(super) async fn walk(
    context: &Context<'_>,
    source: &dyn Source,
    top: Digest,
    index: &Index,
    fits: impl Fn(&IndexEntry) -> Result<(), String>,
) -> Result<Vec<Node>, OpsError> {
    let mut nodes = Vec::new();
    let mut level = places(index, &[top], None);
    let (mut documents, mut total_bytes) = (0, 0_u64);
    while !level.is_empty() {
        let mut wanted = Vec::new();
        for place in level {
            let found = match (fits(&place.entry), place.check_cycle()) {
                (Err(reason), _) => Found::PassedOver(reason),
                (Ok(()), Err(error)) => Found::Broken(error),
                (Ok(()), Ok(())) => {
                    wanted.push(place);
                    continue;
                }
            };
            nodes.push(Node { place, found });
        }
        documents += wanted.len();
        if documents > MAX_DOCUMENTS {
            return Err(OpsError::TooManyDocuments { index: top });
        }
        level = Vec::new();
        let mut answers = futures_util::stream::iter(wanted)
            .map(|place| async move {
                let answer = read(context, source, &place.descriptor).await;
                (place, answer)
            })
            .buffered(AT_ONCE);
        while let Some((place, answer)) = answers.next().await {
            if let Ok((bytes, _)) = &answer {
                total_bytes += bytes.len() as u64;
                if total_bytes > MAX_TOTAL_BYTES {
                    return Err(OpsError::TooManyDocuments { index: top });
                }
            }
            let found = match answer {
                Ok((bytes, Document::Manifest(manifest))) => Found::Manifest(bytes, manifest),
                Ok((bytes, Document::Index(inner))) => match place.enter(&inner) {
                    Ok(inside) if level.len() + inside.len() > MAX_DOCUMENTS => {
                        return Err(OpsError::TooManyDocuments { index: top });
                    }
                    Ok(inside) => {
                        level.extend(inside);
                        Found::Index(bytes)
                    }
                    Err(error) => Found::Broken(error),
                },
                // One broken entry does not make its neighbours unusable; a source that fails does.
                Err(error) if is_entrys_fault(&error) => Found::Broken(error),
                Err(error) => return Err(error),
            };
            nodes.push(Node { place, found });
        }
    }
    Ok(nodes)
}

fn places(index: &Index, indexes: &[Digest], outer: Option<&IndexEntry>) -> Vec<Place> {
    let entries = index.entries.iter();
    entries
        .map(|entry| Place {
            descriptor: entry.descriptor.clone(),
            entry: inherit(entry.clone(), outer),
            indexes: indexes.to_vec(),
        })
        .collect()
}

/// Gives `entry` what the entry of its index has and it has not; long texts are no words of ours.
fn inherit(mut entry: IndexEntry, outer: Option<&IndexEntry>) -> IndexEntry {
    let Some(outer) = outer else {
        return entry;
    };
    entry.platform = entry.platform.or_else(|| outer.platform.clone());
    let annotations = &mut entry.descriptor.annotations;
    let words = outer.descriptor.annotations.iter();
    let words = words.filter(|(key, value)| key.len() + value.len() <= MAX_WORD_BYTES);
    for (key, value) in words.take(MAX_WORDS) {
        annotations
            .entry(key.clone())
            .or_insert_with(|| value.clone());
    }
    entry
}

impl Place {
    /// Digests are of content, so that no honest index leads back to itself; this is for a source
    /// whose documents are not what their digests say.
    fn check_cycle(&self) -> Result<(), OpsError> {
        let index = self.descriptor.digest;
        if self.indexes.contains(&index) {
            let within = self.indexes.clone();
            return Err(OpsError::IndexCycle { index, within });
        }
        Ok(())
    }

    /// What is listed in the index that was found here.
    fn enter(&self, index: &Index) -> Result<Vec<Self>, OpsError> {
        if self.indexes.len() >= MAX_DEPTH {
            return Err(OpsError::IndexTooDeep {
                index: self.descriptor.digest,
                within: self.indexes.clone(),
            });
        }
        let mut indexes = self.indexes.clone();
        indexes.push(self.descriptor.digest);
        Ok(places(index, &indexes, Some(&self.entry)))
    }
}

/// Reads the document of an index entry, from the store if it is there.
pub(super) async fn read(
    context: &Context<'_>,
    source: &dyn Source,
    descriptor: &Descriptor,
) -> Result<(Vec<u8>, Document), OpsError> {
    let raw = match stored(&context.store, descriptor, MAX_DOCUMENT_BYTES)? {
        Some(bytes) => RawDocument {
            bytes,
            digest: descriptor.digest,
            media_type: None,
        },
        None => source.document(Wanted::Entry(descriptor)).await?,
    };
    let says =
        Some(descriptor.media_type.as_str()).filter(|says| manifest::DOCUMENT_TYPES.contains(says));
    let document = Document::parse(&raw.bytes, raw.digest, says)?;
    Ok((raw.bytes, document))
}

/// Reads a small blob that the store has; nothing if it has it not, or if it is damaged there.
pub(super) fn stored(
    store: &Store,
    blob: &Descriptor,
    limit_bytes: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let Ok(Some(found)) = store.peek(blob) else {
        return Ok(None);
    };
    let content = found.head(limit_bytes)?;
    let mut hasher = blob.digest.hasher();
    hasher.update(&content);
    Ok((hasher.finish() == blob.digest).then_some(content))
}

/// Tells whether a document or small blob could not be read because of what it is.
pub(super) fn is_entrys_fault(error: &OpsError) -> bool {
    match error {
        OpsError::Document(_)
        | OpsError::Config(_)
        | OpsError::MetadataTooLarge { .. }
        | OpsError::Store(StoreError::TooShort { .. } | StoreError::Content { .. }) => true,
        OpsError::Source(error) => {
            error.is_not_found()
                || matches!(
                    error.itself(),
                    SourceError::DigestMismatch { .. }
                        | SourceError::SizeMismatch { .. }
                        | SourceError::TooLarge { .. }
                )
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Platform;

    fn entry(name: &str, architecture: Option<&str>, annotations: &[(&str, &str)]) -> IndexEntry {
        let mut descriptor = Descriptor::of(manifest::OCI_INDEX, name.as_bytes());
        for (key, value) in annotations {
            let annotations = &mut descriptor.annotations;
            annotations.insert((*key).to_owned(), (*value).to_owned());
        }
        IndexEntry {
            descriptor,
            platform: architecture.map(|word| Platform {
                os: "linux".to_owned(),
                architecture: word.to_owned().into(),
            }),
        }
    }

    fn index(entries: &[IndexEntry]) -> Index {
        Index {
            entries: entries.to_vec(),
        }
    }

    #[test]
    fn an_entry_inherits_what_it_does_not_say_itself() {
        let outer = entry(
            "outer",
            Some("arm64"),
            &[("variant", "metal"), ("cname", "metal")],
        );
        let top = Digest::of(b"top");
        let outer = &places(&index(&[outer]), &[top], None)[0];
        let silent = entry("silent", None, &[]);
        let own = entry("own", Some("amd64"), &[("variant", "kvm")]);
        let inside = outer.enter(&index(&[silent.clone(), own.clone()])).unwrap();
        let indexes = [top, outer.descriptor.digest];
        let expected = [
            (silent, "linux/arm64", "metal"),
            (own, "linux/amd64", "kvm"),
        ];
        assert_eq!(inside.len(), expected.len());
        for (place, (entry, platform, variant)) in inside.iter().zip(expected) {
            assert_eq!(place.descriptor, entry.descriptor);
            assert_eq!(place.indexes, indexes);
            let inherited = &place.entry;
            assert_eq!(inherited.platform.as_ref().unwrap().to_string(), platform);
            assert_eq!(inherited.descriptor.annotations["variant"], variant);
            assert_eq!(inherited.descriptor.annotations["cname"], "metal");
        }
    }

    /// N8.
    #[test]
    fn indexes_lie_in_each_other_only_so_deep_and_never_in_themselves() {
        let inner = entry("inner", None, &[]);
        let mut place = places(
            &index(std::slice::from_ref(&inner)),
            &[Digest::of(b"top")],
            None,
        )
        .remove(0);
        for depth in 1..MAX_DEPTH {
            assert_eq!(place.indexes.len(), depth);
            let next = entry(&format!("at {depth}"), None, &[]);
            place = place.enter(&index(&[next])).unwrap().remove(0);
        }
        let Err(OpsError::IndexTooDeep {
            index: deep,
            within,
        }) = place.enter(&index(&[]))
        else {
            panic!("went deeper than {MAX_DEPTH} indexes");
        };
        assert_eq!((deep, within.len()), (place.descriptor.digest, MAX_DEPTH));

        assert!(place.check_cycle().is_ok());
        place.descriptor = inner.descriptor;
        let Err(OpsError::IndexCycle {
            index: itself,
            within,
        }) = place.check_cycle()
        else {
            panic!("went round in a circle");
        };
        assert_eq!(itself, within[1]);
    }
}
