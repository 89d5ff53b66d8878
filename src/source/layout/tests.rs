use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use futures_util::TryStreamExt;
use rustix::fs::{FileType, Mode};
use tempfile::{NamedTempFile, TempDir};

use super::*;
use crate::oci::LayoutForm;
use crate::oci::manifest::{OCI_INDEX, OCI_MANIFEST};

const DOCUMENT: &[u8] = br#"{"manifests":[]}"#;

/// A layout that has `DOCUMENT` under each of `names`, and each with its own if `distinct`.
fn layout(names: &[&str]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in names {
        let writer = Writer::create(directory.path()).unwrap();
        let text = format!(r#"{{"manifests":[],"for":"{name}"}}"#);
        let document = writer.document(OCI_INDEX, text.as_bytes()).unwrap();
        writer.finish(&document, name).unwrap();
    }
    directory
}

fn open(directory: &Path, entry: LayoutEntry) -> Layout {
    Layout::open(LayoutReference {
        form: LayoutForm::Directory,
        path: directory.to_owned(),
        entry,
    })
}

/// The layout in `directory` as a tar archive.
fn archived(directory: &Path) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    let mut archive = tar::Builder::new(file.as_file());
    archive.append_dir_all(".", directory).unwrap();
    archive.into_inner().unwrap();
    file
}

fn open_archive(path: &Path, entry: LayoutEntry) -> Layout {
    Layout::open(LayoutReference {
        form: LayoutForm::Archive,
        path: path.to_owned(),
        entry,
    })
}

/// The name for which the document was written that `entry` leads to.
async fn resolve(directory: &Path, entry: LayoutEntry) -> Result<String, SourceError> {
    let document = open(directory, entry).document(Wanted::Reference).await?;
    assert_eq!(document.digest, Digest::of(&document.bytes));
    assert_eq!(document.media_type.as_deref(), Some(OCI_INDEX));
    let json: serde_json::Value = serde_json::from_slice(&document.bytes).unwrap();
    Ok(json["for"].as_str().unwrap().to_owned())
}

fn name(name: &str) -> LayoutEntry {
    LayoutEntry::Name(name.to_owned())
}

async fn read(layout: &Layout, blob: &Descriptor, offset: u64) -> Result<Vec<u8>, SourceError> {
    let stream = layout.blob(blob, offset).await?;
    assert_eq!(stream.offset, offset);
    let pieces: Vec<Bytes> = stream.bytes.try_collect().await?;
    Ok(pieces.concat())
}

#[tokio::test]
async fn an_entry_is_found_by_its_name_or_by_its_tag_or_alone() {
    let one = layout(&["reg.example/os:1"]);
    let full = "reg.example/os:1";
    for entry in [LayoutEntry::Only, name(full), name("1")] {
        assert_eq!(resolve(one.path(), entry).await.unwrap(), full);
    }
    let several = layout(&["1", "reg.example:5000/os:1", "reg.example:5000/os:2"]);
    for (wanted, expected) in [
        // The exact name is preferred to the tag of another one.
        ("1", "1"),
        ("2", "reg.example:5000/os:2"),
        ("reg.example:5000/os:1", "reg.example:5000/os:1"),
    ] {
        let found = resolve(several.path(), name(wanted)).await.unwrap();
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn a_name_that_is_missing_or_could_be_several_is_an_error_with_the_names() {
    let several = layout(&["reg.example/a:1", "reg.example/b:1"]);
    let shown = several.path().display();
    for (entry, expected) in [
        (
            name("2"),
            format!("layout {shown} has no entry 2; it has reg.example/a:1, reg.example/b:1"),
        ),
        (
            name("1"),
            format!("layout {shown} has several entries; it has reg.example/a:1, reg.example/b:1"),
        ),
        (
            LayoutEntry::Only,
            format!("layout {shown} has several entries; it has reg.example/a:1, reg.example/b:1"),
        ),
    ] {
        let error = resolve(several.path(), entry).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}

#[tokio::test]
async fn a_document_is_found_by_digest_even_inside_an_index() {
    let directory = layout(&["a"]);
    let writer = Writer::create(directory.path()).unwrap();
    let inner = writer.document(OCI_MANIFEST, DOCUMENT).unwrap();
    let by_digest = open(directory.path(), LayoutEntry::Digest(inner.digest));
    let expected = |media_type: Option<&str>| RawDocument {
        bytes: DOCUMENT.to_vec(),
        digest: inner.digest,
        media_type: media_type.map(str::to_owned),
    };
    let found = by_digest.document(Wanted::Reference).await.unwrap();
    assert_eq!(found, expected(None));
    let found = by_digest.document(Wanted::Entry(&inner)).await.unwrap();
    assert_eq!(found, expected(Some(OCI_MANIFEST)));

    let missing = LayoutEntry::Digest(Digest::of(b"missing"));
    let missing = open(directory.path(), missing);
    let error = missing.document(Wanted::Reference).await.unwrap_err();
    assert!(matches!(error, SourceError::ImageNotFound { .. }));
}

#[tokio::test]
async fn a_blob_is_read_from_any_offset() {
    let directory = layout(&["a"]);
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let writer = Writer::create(directory.path()).unwrap();
    let blob = writer.blob("x/y", &mut content.as_slice()).unwrap();
    let empty = writer.blob("x/y", &mut io::empty()).unwrap();
    let archive = archived(directory.path());
    for layout in [
        open(directory.path(), LayoutEntry::Only),
        open_archive(archive.path(), LayoutEntry::Only),
    ] {
        assert_eq!(read(&layout, &blob, 0).await.unwrap(), content);
        let rest = read(&layout, &blob, 2_500_000).await.unwrap();
        assert_eq!(rest, content[2_500_000..]);
        assert_eq!(read(&layout, &empty, 0).await.unwrap(), b"");
    }
}

#[tokio::test]
async fn an_archive_has_the_entries_and_the_errors_of_its_directory() {
    let directory = layout(&["reg.example:5000/os:1", "2"]);
    let archive = archived(directory.path());
    let in_archive = |entry| open_archive(archive.path(), entry);
    for wanted in ["reg.example:5000/os:1", "1", "2"] {
        let expected = open(directory.path(), name(wanted));
        let expected = expected.document(Wanted::Reference).await.unwrap();
        let layout = in_archive(name(wanted));
        assert_eq!(layout.document(Wanted::Reference).await.unwrap(), expected);
        assert_eq!(layout.current().await.unwrap(), Some(expected.digest));
        let by_digest = in_archive(LayoutEntry::Digest(expected.digest));
        let found = by_digest.document(Wanted::Reference).await.unwrap();
        assert_eq!(found, expected);
    }
    let shown = archive.path().display();
    for (entry, expected) in [
        (
            name("3"),
            format!("layout {shown} has no entry 3; it has reg.example:5000/os:1, 2"),
        ),
        (
            LayoutEntry::Only,
            format!("layout {shown} has several entries; it has reg.example:5000/os:1, 2"),
        ),
    ] {
        let error = in_archive(entry).document(Wanted::Reference).await;
        assert_eq!(error.unwrap_err().to_string(), expected);
    }
    let other = Descriptor::of("x/y", b"missing");
    let error = in_archive(name("2")).blob(&other, 0).await.unwrap_err();
    assert!(matches!(error, SourceError::BlobNotFound { .. }), "{error}");
    let document = in_archive(name("2"))
        .document(Wanted::Reference)
        .await
        .unwrap();
    let longer = Descriptor {
        size: document.bytes.len() as u64 + 1,
        ..Descriptor::of("x/y", &document.bytes)
    };
    let error = in_archive(name("2")).blob(&longer, 0).await.unwrap_err();
    assert!(matches!(error, SourceError::SizeMismatch { .. }), "{error}");
}

/// Its headers are read once, so what is put in its place meanwhile must not be read by them.
#[tokio::test]
async fn an_archive_that_is_replaced_while_it_is_read_is_read_to_its_end() {
    let directory = layout(&["a"]);
    let archive = archived(directory.path());
    let layout = open_archive(archive.path(), LayoutEntry::Only);
    let before = layout.document(Wanted::Reference).await.unwrap();
    let other = NamedTempFile::new().unwrap();
    fs::rename(other.path(), archive.path()).unwrap();
    let entry = Descriptor::of(OCI_INDEX, &before.bytes);
    assert_eq!(read(&layout, &entry, 0).await.unwrap(), before.bytes);
}

#[tokio::test]
async fn content_that_is_not_what_its_descriptor_says_is_refused() {
    let directory = layout(&["a"]);
    let writer = Writer::create(directory.path()).unwrap();
    let document = writer.document(OCI_INDEX, DOCUMENT).unwrap();
    let layout = open(directory.path(), LayoutEntry::Only);
    let path = directory
        .path()
        .join("blobs/sha256")
        .join(document.digest.hex());

    let mut flipped = DOCUMENT.to_vec();
    flipped[0] ^= 1;
    fs::write(&path, &flipped).unwrap();
    let error = layout.document(Wanted::Entry(&document)).await.unwrap_err();
    assert!(matches!(error, SourceError::DigestMismatch { .. }));

    fs::write(&path, [DOCUMENT, b" "].concat()).unwrap();
    let error = layout.document(Wanted::Entry(&document)).await.unwrap_err();
    assert!(matches!(
        error,
        SourceError::SizeMismatch {
            expected: 16,
            actual: 17,
            ..
        }
    ));
    let error = read(&layout, &document, 0).await.unwrap_err();
    assert!(matches!(error, SourceError::SizeMismatch { .. }));

    // Sparse: it takes no space, and must take no memory either.
    let limit = MAX_DOCUMENT_BYTES;
    File::options()
        .write(true)
        .open(&path)
        .and_then(|file| file.set_len(limit + 1))
        .unwrap();
    let huge = Descriptor {
        size: limit + 1,
        ..document.clone()
    };
    let error = layout.document(Wanted::Entry(&huge)).await.unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { limit: l, .. } if l == limit));

    fs::remove_file(&path).unwrap();
    let error = layout.document(Wanted::Entry(&document)).await.unwrap_err();
    assert!(matches!(error, SourceError::BlobNotFound { .. }));
}

#[tokio::test]
async fn nothing_but_regular_files_inside_the_directory_is_read() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret"), DOCUMENT).unwrap();
    let document = Descriptor::of(OCI_INDEX, DOCUMENT);
    let hex = document.digest.hex();
    fs::write(outside.path().join(&hex), DOCUMENT).unwrap();

    type Prepare<'a> = &'a dyn Fn(&Path);
    let prepare: [(&str, Prepare<'_>); 5] = [
        ("a link as blob", &|directory| {
            let blob = directory.join("blobs/sha256").join(&hex);
            symlink(outside.path().join("secret"), blob).unwrap();
        }),
        ("a link as directory of blobs", &|directory| {
            fs::rename(directory.join("blobs/sha256"), directory.join("moved")).unwrap();
            symlink(outside.path(), directory.join("blobs/sha256")).unwrap();
        }),
        ("a pipe as blob", &|directory| {
            let blob = directory.join("blobs/sha256").join(&hex);
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &blob,
                FileType::Fifo,
                Mode::RUSR | Mode::WUSR,
                0,
            )
            .unwrap();
        }),
        ("a directory as blob", &|directory| {
            fs::create_dir(directory.join("blobs/sha256").join(&hex)).unwrap();
        }),
        ("a socket as blob", &|directory| {
            let blob = directory.join("blobs/sha256").join(&hex[..20]);
            std::os::unix::net::UnixListener::bind(&blob).unwrap();
            fs::rename(blob, directory.join("blobs/sha256").join(&hex)).unwrap();
        }),
    ];
    for (what, prepare) in prepare {
        let directory = layout(&["a"]);
        prepare(directory.path());
        let layout = open(directory.path(), LayoutEntry::Only);
        for result in [
            layout.document(Wanted::Entry(&document)).await.map(drop),
            layout.blob(&document, 0).await.map(drop),
        ] {
            let error = result.unwrap_err();
            assert!(
                matches!(error, SourceError::NotAFile { .. }),
                "{what}: {error}"
            );
        }
    }
    let directory = layout(&["a"]);
    let index = directory.path().join("index.json");
    fs::rename(&index, outside.path().join("index.json")).unwrap();
    symlink(outside.path().join("index.json"), &index).unwrap();
    let error = resolve(directory.path(), LayoutEntry::Only)
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::NotAFile { .. }));
}

#[tokio::test]
async fn a_directory_that_is_no_layout_says_so() {
    let directory = layout(&["a"]);
    let marker = directory.path().join("oci-layout");
    for content in ["", "[]", "{}"] {
        fs::write(&marker, content).unwrap();
        let error = resolve(directory.path(), LayoutEntry::Only)
            .await
            .unwrap_err();
        assert!(matches!(error, SourceError::NotALayout { .. }), "{content}");
    }
    fs::remove_file(&marker).unwrap();
    let error = resolve(directory.path(), LayoutEntry::Only)
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::NotALayout { .. }));
    let missing = resolve(&directory.path().join("none"), LayoutEntry::Only).await;
    assert!(matches!(missing, Err(SourceError::Io { .. })));
}

#[tokio::test]
async fn an_index_json_with_bad_digests_or_nothing_in_it_is_refused() {
    let directory = layout(&["a"]);
    let index = directory.path().join("index.json");
    for entry in [
        r#"{"mediaType":"x","digest":"sha256:../../../../etc/passwd","size":1}"#,
        r#"{"mediaType":"x","digest":"sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709","size":1}"#,
        r#"{"mediaType":"x","size":1}"#,
    ] {
        fs::write(&index, format!(r#"{{"manifests":[{entry}]}}"#)).unwrap();
        let error = resolve(directory.path(), LayoutEntry::Only)
            .await
            .unwrap_err();
        assert!(matches!(error, SourceError::LayoutJson { .. }), "{entry}");
    }
    fs::write(&index, r#"{"manifests":[]}"#).unwrap();
    let error = resolve(directory.path(), LayoutEntry::Only)
        .await
        .unwrap_err();
    assert!(matches!(error, SourceError::ImageNotFound { .. }));
}
