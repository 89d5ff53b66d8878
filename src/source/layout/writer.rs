//! Writing an OCI layout directory.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde_json::{Value, json};
use tempfile::NamedTempFile;

use crate::oci::manifest::OCI_INDEX;
use crate::oci::{Descriptor, Hasher};
use crate::source::SourceError;
use crate::source::layout::NAME;
use crate::source::layout::place::io_error;

/// Bytes copied at a time.
const PIECE_BYTES: usize = 1 << 20;

/// Writes an image into a layout directory: blobs, then documents, then its entry.
///
/// Every file gets its name only when it is complete and on disk. Blocks; not for async tasks.
#[derive(Debug)]
pub struct Writer {
    directory: PathBuf,
}

impl Writer {
    /// Makes the directory a layout, unless it is one.
    pub fn create(directory: &Path) -> Result<Self, SourceError> {
        let blobs = directory.join("blobs/sha256");
        fs::create_dir_all(&blobs).map_err(|error| io_error("create", &blobs, error))?;
        let writer = Self {
            directory: directory.to_owned(),
        };
        let marker = directory.join("oci-layout");
        if !marker.exists() {
            let mut file = writer.temporary(directory)?;
            file.write_all(br#"{"imageLayoutVersion":"1.0.0"}"#)
                .map_err(|error| io_error("write", &marker, error))?;
            persist(file, &marker)?;
        }
        Ok(writer)
    }

    /// Copies a blob in, to the end of `content`.
    pub fn blob(
        &self,
        media_type: &str,
        content: &mut dyn Read,
    ) -> Result<Descriptor, SourceError> {
        let blobs = self.directory.join("blobs/sha256");
        let mut file = self.temporary(&blobs)?;
        let mut hasher = Hasher::Sha256(Default::default());
        let mut size = 0;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let count = match content.read(&mut piece) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(io_error("read the content of a blob for", &blobs, error));
                }
            };
            hasher.update(&piece[..count]);
            file.write_all(&piece[..count])
                .map_err(|error| io_error("write", file.path(), error))?;
            size += count as u64;
        }
        let digest = hasher.finish();
        persist(file, &blobs.join(digest.hex()))?;
        Ok(Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: Default::default(),
        })
    }

    /// Copies the file at `path` in as a blob.
    pub fn blob_from(&self, media_type: &str, path: &Path) -> Result<Descriptor, SourceError> {
        let mut file = File::open(path).map_err(|error| io_error("open", path, error))?;
        self.blob(media_type, &mut file)
    }

    /// Writes an index or manifest.
    pub fn document(&self, media_type: &str, bytes: &[u8]) -> Result<Descriptor, SourceError> {
        self.blob(media_type, &mut { bytes })
    }

    /// Gives `document` the name `name` in `index.json`, in the place of whatever had it.
    pub fn finish(self, document: &Descriptor, name: &str) -> Result<(), SourceError> {
        let path = self.directory.join("index.json");
        let handle = File::open(&self.directory);
        let handle = handle.map_err(|error| io_error("open", &self.directory, error))?;
        // Others who finish at the same time must not lose each other's entries. The lock ends
        // with the handle.
        rustix::fs::flock(&handle, FlockOperation::LockExclusive)
            .map_err(|error| io_error("lock", &self.directory, error.into()))?;
        let index = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => json!({
                "schemaVersion": 2,
                "mediaType": OCI_INDEX,
                "manifests": [],
            })
            .to_string()
            .into_bytes(),
            Err(error) => return Err(io_error("read", &path, error)),
        };
        let unreadable = |source| SourceError::LayoutJson {
            path: path.clone(),
            source,
        };
        let index = entered(&index, document, name).map_err(unreadable)?;
        let mut file = self.temporary(&self.directory)?;
        file.write_all(&index)
            .map_err(|error| io_error("write", &path, error))?;
        persist(file, &path)
    }

    fn temporary(&self, directory: &Path) -> Result<NamedTempFile, SourceError> {
        NamedTempFile::new_in(directory)
            .map_err(|error| io_error("create a file in", directory, error))
    }
}

/// The text of `index.json` with the entry; whatever else is in it is kept.
fn entered(index: &[u8], document: &Descriptor, name: &str) -> serde_json::Result<Vec<u8>> {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct WireIndex {
        manifests: Vec<Value>,
        #[serde(flatten)]
        rest: serde_json::Map<String, Value>,
    }
    let mut index: WireIndex = serde_json::from_slice(index)?;
    index
        .manifests
        .retain(|entry| entry["annotations"][NAME] != name);
    let mut entry = document.clone();
    entry.annotations.insert(NAME.to_owned(), name.to_owned());
    index.manifests.push(serde_json::to_value(entry)?);
    serde_json::to_vec_pretty(&index)
}

/// Gives a complete file its name: on disk first, or a crash could leave the name with nothing.
fn persist(file: NamedTempFile, path: &Path) -> Result<(), SourceError> {
    let failed = |error| io_error("write", path, error);
    let everyone = fs::Permissions::from_mode(0o644);
    file.as_file().set_permissions(everyone).map_err(failed)?;
    file.as_file().sync_data().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    let parent = path.parent().unwrap_or(path);
    let synced = File::open(parent).and_then(|directory| directory.sync_all());
    synced.map_err(|error| io_error("sync", parent, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    #[test]
    fn an_entry_replaces_the_one_of_its_name_and_no_other() {
        let document = |text: &str| Descriptor::of(OCI_INDEX, text.as_bytes());
        let index = br#"{"schemaVersion":2,"manifests":[],"annotations":{"kept":"yes"}}"#;
        let index = entered(index, &document("a"), "a").unwrap();
        let index = entered(&index, &document("b"), "b").unwrap();
        let index = entered(&index, &document("c"), "a").unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        let entry = |text: &str, name: &str| {
            json!({
                "mediaType": OCI_INDEX,
                "digest": document(text).digest.to_string(),
                "size": 1,
                "annotations": { NAME: name },
            })
        };
        assert_eq!(
            index,
            json!({
                "schemaVersion": 2,
                "manifests": [entry("b", "b"), entry("c", "a")],
                "annotations": { "kept": "yes" },
            })
        );
    }

    #[test]
    fn a_broken_index_is_not_overwritten() {
        let directory = tempfile::tempdir().unwrap();
        let writer = Writer::create(directory.path()).unwrap();
        fs::write(directory.path().join("index.json"), "{").unwrap();
        let error = writer.finish(&Descriptor::of(OCI_INDEX, b""), "a");
        assert!(matches!(error, Err(SourceError::LayoutJson { .. })));
        let kept = fs::read(directory.path().join("index.json")).unwrap();
        assert_eq!(kept, b"{");
    }

    #[test]
    fn a_blob_that_cannot_be_read_to_its_end_leaves_nothing_behind() {
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::Error::other("broken"))
            }
        }
        let directory = tempfile::tempdir().unwrap();
        let writer = Writer::create(directory.path()).unwrap();
        assert!(writer.blob("x/y", &mut Broken).is_err());
        let blobs = fs::read_dir(directory.path().join("blobs/sha256")).unwrap();
        assert_eq!(blobs.count(), 0);
    }

    #[test]
    fn writers_at_the_same_time_lose_no_entry() {
        let directory = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let directory = directory.path();
                scope.spawn(move || {
                    let writer = Writer::create(directory).unwrap();
                    let name = number.to_string();
                    let document = writer.document(OCI_INDEX, name.as_bytes()).unwrap();
                    assert_eq!(document.digest, Digest::of(name.as_bytes()));
                    writer.finish(&document, &name).unwrap();
                });
            }
        });
        let index = fs::read(directory.path().join("index.json")).unwrap();
        let index: Value = serde_json::from_slice(&index).unwrap();
        assert_eq!(index["manifests"].as_array().unwrap().len(), 8);
    }
}
