//! An OCI layout, read in its directory or in its archive; `writer` makes a directory.
//!
//! ```text
//! oci-layout                 says that it is one
//! index.json                 the entries, by annotation org.opencontainers.image.ref.name
//! blobs/<algorithm>/<hex>    the content
//! ```
//!
//! A directory is never left: no symbolic link below it is followed. An archive is never unpacked:
//! its files are read where they lie in it. In both, what is not a regular file is not read, and
//! what has another name than these may be there and is passed over.
//!
//! Format: OCI image-spec v1.1, image-layout.md.

mod archive;
mod directory;
mod place;
mod writer;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{Stream, stream};
use tokio::sync::OnceCell;

use crate::oci::manifest::MAX_DOCUMENT_BYTES;
use crate::oci::reference::{LayoutEntry, tag_of_name};
use crate::oci::{Descriptor, Digest, LayoutReference, Printable};
use crate::source::{BlobStream, RawDocument, Source, SourceError, Wanted};

use place::{OpenFile, Place};
pub use writer::Writer;

/// The annotation that gives an entry of `index.json` its name.
const NAME: &str = "org.opencontainers.image.ref.name";
/// Bytes read from a blob at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// An OCI layout, opened once for all that is read of it.
#[derive(Debug, Clone)]
pub struct Layout {
    reference: LayoutReference,
    place: Arc<OnceCell<Arc<Place>>>,
}

impl Layout {
    /// Opens a layout; touches nothing yet.
    #[must_use]
    pub fn open(reference: LayoutReference) -> Self {
        Self {
            reference,
            place: Arc::new(OnceCell::new()),
        }
    }

    /// The bytes of a blob from `offset` on; fewer if its file is cut in the meantime.
    ///
    /// Errors if there is none, or if it has another size.
    pub async fn pieces(
        &self,
        blob: &Descriptor,
        offset: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, SourceError>> + Send + use<>, SourceError> {
        let wanted = blob.clone();
        let file = self
            .within(move |layout, place| layout.open_blob(place, &wanted))
            .await?;
        Ok(pieces(file, blob.size, offset))
    }

    /// Does file work in the layout, where it may block.
    async fn within<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self, &Place) -> Result<T, SourceError> + Send + 'static,
    ) -> Result<T, SourceError> {
        let (form, path) = (self.reference.form, self.reference.path.clone());
        let opening = || blocking(move || Place::open(form, &path).map(Arc::new));
        let place = Arc::clone(self.place.get_or_try_init(opening).await?);
        let layout = self.clone();
        blocking(move || work(&layout, &place)).await
    }

    fn named_document(&self, place: &Place) -> Result<RawDocument, SourceError> {
        let entries = place.entries()?;
        let (digest, entry) = match &self.reference.entry {
            // Any document of the layout may be named by digest, those inside an index too.
            LayoutEntry::Digest(digest) => {
                let entry = entries.into_iter().find(|entry| entry.digest == *digest);
                (*digest, entry)
            }
            LayoutEntry::Only => {
                let entry = self.only(entries)?;
                (entry.digest, Some(entry))
            }
            LayoutEntry::Name(name) => {
                let entry = self.named(name, entries)?;
                (entry.digest, Some(entry))
            }
        };
        let image = || SourceError::ImageNotFound {
            image: self.reference.to_string(),
        };
        let file = place.blob(&digest)?.ok_or_else(image)?;
        self.read_document(&file, &digest, entry.as_ref())
    }

    fn document_of(&self, place: &Place, entry: &Descriptor) -> Result<RawDocument, SourceError> {
        let file = place.blob(&entry.digest)?;
        let file = file.ok_or_else(|| self.blob_not_found(&entry.digest))?;
        self.read_document(&file, &entry.digest, Some(entry))
    }

    fn read_document(
        &self,
        file: &OpenFile,
        digest: &Digest,
        entry: Option<&Descriptor>,
    ) -> Result<RawDocument, SourceError> {
        if let Some(entry) = entry {
            file.check_size(entry)?;
        }
        let bytes = file.read(MAX_DOCUMENT_BYTES)?;
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        let actual = hasher.finish();
        if actual != *digest {
            return Err(SourceError::DigestMismatch {
                image: self.reference.to_string(),
                expected: Box::new(*digest),
                actual: Box::new(actual),
            });
        }
        Ok(RawDocument {
            bytes,
            digest: *digest,
            media_type: entry.map(|entry| entry.media_type.clone()),
        })
    }

    fn open_blob(&self, place: &Place, blob: &Descriptor) -> Result<OpenFile, SourceError> {
        let file = place.blob(&blob.digest)?;
        let file = file.ok_or_else(|| self.blob_not_found(&blob.digest))?;
        file.check_size(blob)?;
        Ok(file)
    }

    fn only(&self, entries: Vec<Descriptor>) -> Result<Descriptor, SourceError> {
        self.unambiguous(entries)?
            .ok_or_else(|| SourceError::ImageNotFound {
                image: self.reference.to_string(),
            })
    }

    /// Finds the entry of a name; else the one whose name is a reference with that tag, which is
    /// how stores of several repositories name their entries.
    fn named(&self, name: &str, entries: Vec<Descriptor>) -> Result<Descriptor, SourceError> {
        let names = entries.iter().map(shown).collect();
        let (exact, others): (Vec<_>, Vec<_>) = entries
            .into_iter()
            .partition(|entry| entry.annotations.get(NAME).is_some_and(|has| has == name));
        let exact = self.unambiguous(exact)?;
        let found = match exact {
            Some(entry) => Some(entry),
            None => {
                let tagged = others.into_iter().filter(|entry| {
                    let tag = entry
                        .annotations
                        .get(NAME)
                        .and_then(|name| tag_of_name(name));
                    tag == Some(name)
                });
                self.unambiguous(tagged.collect())?
            }
        };
        found.ok_or_else(|| SourceError::LayoutEntryNotFound {
            layout: self.reference.path.clone(),
            name: Printable(name).to_string(),
            names,
        })
    }

    /// The one entry, if all are of one document; none of none.
    fn unambiguous(&self, entries: Vec<Descriptor>) -> Result<Option<Descriptor>, SourceError> {
        let Some(first) = entries.first() else {
            return Ok(None);
        };
        if entries.iter().any(|entry| entry.digest != first.digest) {
            return Err(SourceError::LayoutAmbiguous {
                layout: self.reference.path.clone(),
                names: entries.iter().map(shown).collect(),
            });
        }
        Ok(entries.into_iter().next())
    }

    fn blob_not_found(&self, digest: &Digest) -> SourceError {
        SourceError::BlobNotFound {
            image: self.reference.to_string(),
            digest: Box::new(*digest),
        }
    }
}

#[async_trait]
impl Source for Layout {
    async fn document(&self, wanted: Wanted<'_>) -> Result<RawDocument, SourceError> {
        match wanted {
            Wanted::Reference => self.within(Self::named_document).await,
            Wanted::Entry(entry) => {
                let entry = entry.clone();
                self.within(move |layout, place| layout.document_of(place, &entry))
                    .await
            }
        }
    }

    async fn current(&self) -> Result<Option<Digest>, SourceError> {
        let document = self.document(Wanted::Reference).await?;
        Ok(Some(document.digest))
    }

    async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream<'_>, SourceError> {
        Ok(BlobStream {
            offset,
            bytes: Box::pin(self.pieces(blob, offset).await?),
        })
    }
}

/// Does file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await, // The runtime is going down, and we with it.
        },
    }
}

/// The bytes of a file from `offset` to `end`; fewer if it has been cut in the meantime.
fn pieces(
    file: OpenFile,
    end: u64,
    offset: u64,
) -> impl Stream<Item = Result<Bytes, SourceError>> + Send {
    stream::try_unfold((Arc::new(file), offset), move |(file, offset)| async move {
        let reader = Arc::clone(&file);
        let length = end.saturating_sub(offset).min(PIECE_BYTES);
        let piece = blocking(move || reader.read_at(offset, length)).await?;
        if piece.is_empty() {
            return Ok(None);
        }
        let offset = offset + piece.len() as u64;
        Ok(Some((Bytes::from(piece), (file, offset))))
    })
}

/// What an entry is called: its name, or else its digest.
fn shown(entry: &Descriptor) -> String {
    match entry.annotations.get(NAME) {
        Some(name) => Printable(name).to_string(),
        None => entry.digest.to_string(),
    }
}

#[cfg(test)]
mod tests;
