use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt as _;

use tar::{Builder, EntryType, GnuHeader, Header};
use tempfile::NamedTempFile;

use super::*;
use crate::oci::LayoutForm;
use crate::source::layout::place::Place;

const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const INDEX: &[u8] = br#"{"manifests":[]}"#;

/// An archive that is made entry by entry, however wrong.
struct Made(Builder<Vec<u8>>);

impl Made {
    fn nothing() -> Self {
        Self(Builder::new(Vec::new()))
    }

    /// What every layout has.
    fn layout() -> Self {
        Self::nothing()
            .file("oci-layout", MARKER)
            .file("index.json", INDEX)
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(EntryType::Regular, name, "", content)
    }

    fn entry(mut self, kind: EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let header = header(kind, name, link, content.len() as u64);
        self.0.append(&header, content).unwrap();
        self
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

/// A header of a name of at most 100 bytes, whatever is in it.
fn header(kind: EntryType, name: &str, link: &str, size: u64) -> Header {
    let mut header = Header::new_gnu();
    let gnu: &mut GnuHeader = header.as_gnu_mut().unwrap();
    gnu.name[..name.len()].copy_from_slice(name.as_bytes());
    gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_cksum();
    header
}

fn blob_name(content: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(content).hex())
}

fn written(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// Opens an archive of `bytes`, and tells what went wrong with its path left out.
fn open(bytes: &[u8]) -> Result<Place, String> {
    let file = written(bytes);
    let path = file.path().display().to_string();
    Place::open(LayoutForm::Archive, file.path()).map_err(|error| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text.replace(&path, "x.tar")
    })
}

#[track_caller]
fn check_refused(bytes: &[u8], expected: &str) {
    assert_eq!(open(bytes).unwrap_err(), expected);
}

/// The content of a blob; none if it is not there.
fn blob(place: &Place, content: &[u8]) -> Option<Vec<u8>> {
    let file = place.blob(&Digest::of(content)).unwrap()?;
    Some(file.read(1 << 20).unwrap())
}

#[test]
fn files_are_found_by_their_names_in_whatever_order_and_form() {
    let long = Digest::Sha512([0xab; 64]);
    let long_name = format!("blobs/sha512/{}", long.hex());
    let mut made = Made::nothing()
        .entry(EntryType::Directory, "./", "", b"")
        .file(&blob_name(b"plain"), b"plain")
        .entry(EntryType::Directory, "./blobs/", "", b"")
        .file(&format!("./{}", blob_name(b"dotted")), b"dotted")
        .file("manifest.json", b"docker's")
        .file("./index.json", INDEX)
        .file(&blob_name(b""), b"");
    // A name of 141 bytes becomes an entry of its own in front of the file's.
    let mut header = header(EntryType::Regular, "", "", 4);
    made.0
        .append_data(&mut header, &long_name, &b"long"[..])
        .unwrap();
    let place = open(&made.file("oci-layout", MARKER).bytes()).unwrap();
    for content in [&b"plain"[..], b"dotted", b""] {
        assert_eq!(blob(&place, content).as_deref(), Some(content));
    }
    let found = place.blob(&long).unwrap().unwrap();
    assert_eq!(found.read(10).unwrap(), b"long");
    assert_eq!(found.read_at(1, 2).unwrap(), b"on");
    assert_eq!(found.read_at(3, 100).unwrap(), b"g");
    assert_eq!(found.read_at(4, 100).unwrap(), b"");
    assert_eq!(found.read_at(u64::MAX, 1).unwrap(), b"");
    assert!(place.blob(&Digest::of(b"missing")).unwrap().is_none());
    assert_eq!(place.entries().unwrap(), []);
}

/// GNU tar and POSIX have two ways to tell a long name, and POSIX one for a size.
#[test]
fn what_a_posix_extension_says_of_a_file_holds() {
    let name = format!("blobs/sha512/{}", "cd".repeat(64));
    let records: String = [("path", name.as_str()), ("size", "4")]
        .iter()
        .map(|(key, value)| {
            let rest = format!(" {key}={value}\n");
            let length = (1..).find(|n| n.to_string().len() + rest.len() == *n);
            format!("{}{rest}", length.unwrap())
        })
        .collect();
    let mut bytes = Made::layout()
        .entry(EntryType::XHeader, "x", "", records.as_bytes())
        .bytes();
    // Cut the two blocks of zeros that end it, and go on with a header that has no size.
    bytes.truncate(bytes.len() - 1024);
    bytes.extend_from_slice(header(EntryType::Regular, "short", "", 0).as_bytes());
    bytes.extend_from_slice(b"long");
    bytes.resize(bytes.len() + 508 + 1024, 0);
    let place = open(&bytes).unwrap();
    let found = place.blob(&Digest::Sha512([0xcd; 64])).unwrap().unwrap();
    assert_eq!(found.read(10).unwrap(), b"long");
}

#[test]
fn names_that_no_layout_has_are_passed_over() {
    let hex = Digest::of(b"x").hex();
    let mut made = Made::layout();
    for name in [
        format!("/blobs/sha256/{hex}"),
        format!("../blobs/sha256/{hex}"),
        format!("blobs/../blobs/sha256/{hex}"),
        format!("blobs//sha256/{hex}"),
        format!("././blobs/sha256/{hex}"),
        format!("blobs/sha256/{hex}/"),
        format!("blobs/sha256/{}", hex.to_uppercase()),
        format!("blobs/sha256/{}", &hex[1..]),
        format!("blobs/sha1/{}", &hex[..40]),
        "blobs/sha256/../../index.json".to_owned(),
        "/etc/passwd".to_owned(),
        "/oci-layout".to_owned(),
    ] {
        made = made.file(&name, b"x").file(&name, b"x");
    }
    made = made
        .entry(EntryType::Symlink, "a", "/etc/passwd", b"")
        .entry(EntryType::Block, "b", "", b"")
        .entry(EntryType::new(b'?'), "c", "", b"x");
    let place = open(&made.bytes()).unwrap();
    assert!(place.blob(&Digest::of(b"x")).unwrap().is_none());
}

#[test]
fn what_is_no_regular_file_is_not_read() {
    let name = blob_name(b"secret");
    for kind in [
        EntryType::Symlink,
        EntryType::Link,
        EntryType::Fifo,
        EntryType::Char,
        EntryType::Block,
        EntryType::Directory,
    ] {
        let made = Made::layout().entry(kind, &name, "/etc/passwd", b"");
        let place = open(&made.bytes()).unwrap();
        let error = place.blob(&Digest::of(b"secret")).unwrap_err();
        assert!(
            matches!(error, SourceError::NotAFile { .. }),
            "{kind:?}: {error}"
        );
    }
    let link = Made::nothing().entry(EntryType::Symlink, "oci-layout", "index.json", b"");
    check_refused(
        &link.bytes(),
        "not an OCI layout: x.tar: not a regular file: x.tar/oci-layout",
    );
}

#[test]
fn a_name_that_occurs_twice_is_refused() {
    let name = blob_name(b"x");
    for kind in [EntryType::Regular, EntryType::Link] {
        let twice = Made::layout()
            .file(&name, b"x")
            .entry(kind, &format!("./{name}"), &name, b"");
        check_refused(
            &twice.bytes(),
            &format!("cannot use archive x.tar: it has ./{name} twice"),
        );
    }
    let twice = Made::layout().file("index.json", INDEX);
    check_refused(
        &twice.bytes(),
        "cannot use archive x.tar: it has index.json twice",
    );
}

#[test]
fn an_archive_that_is_cut_is_refused_wherever_it_is_cut() {
    let content = [b'x'; 1000];
    let name = blob_name(&content);
    let whole = Made::layout().file(&name, &content).bytes();
    let content_at = whole.len() - 1024 - 1024;
    let cut = format!("cannot use archive x.tar: it ends within {name}");
    for (length, expected) in [
        (content_at + 999, cut.as_str()),
        (content_at, &cut),
        (
            content_at - 1,
            "cannot use archive x.tar: it is not a readable tar archive: failed to read entire block",
        ),
        (
            512 + 10,
            "cannot use archive x.tar: it ends within oci-layout",
        ),
        (
            512 + 512,
            "", // Between two entries, where it can not be told from an archive without the rest.
        ),
        (
            0,
            "not an OCI layout: x.tar: cannot open x.tar/oci-layout: No such file or directory (os error 2)",
        ),
    ] {
        match open(&whole[..length]) {
            Err(error) => assert_eq!(error, expected, "cut after {length}"),
            Ok(place) => {
                assert_eq!(expected, "", "cut after {length}");
                assert!(place.entries().is_err());
                assert!(place.blob(&Digest::of(&content)).unwrap().is_none());
            }
        }
    }
    // The padding after the last file is not missed.
    let place = open(&whole[..content_at + 1000]).unwrap();
    assert_eq!(blob(&place, &content).as_deref(), Some(&content[..]));
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let name = blob_name(b"x");
    for size in [2000, 1 << 40, u64::MAX >> 1, u64::MAX - 600, u64::MAX] {
        let mut bytes = Made::layout().bytes();
        bytes.truncate(bytes.len() - 1024);
        bytes.extend_from_slice(header(EntryType::Regular, &name, "", size).as_bytes());
        bytes.resize(bytes.len() + 1024, 0);
        let error = open(&bytes).unwrap_err();
        assert!(
            error == format!("cannot use archive x.tar: it ends within {name}")
                || error
                    == "cannot use archive x.tar: it is not a readable tar archive: size overflow",
            "{size}: {error}"
        );
    }
}

#[test]
fn what_is_no_tar_archive_is_refused() {
    for (bytes, expected) in [
        (&b"\x1f\x8b\x08rest"[..], "it is compressed by gzip"),
        (b"\x28\xb5\x2f\xfdrest", "it is compressed by zstd"),
        (b"\xfd7zXZ\0rest", "it is compressed by xz"),
        (b"BZh9rest", "it is compressed by bzip2"),
        (
            b"hello",
            "it is not a readable tar archive: failed to read entire block",
        ),
    ] {
        check_refused(bytes, &format!("cannot use archive x.tar: {expected}"));
    }
    let mut wrong = Made::layout().bytes();
    wrong[3] ^= 1;
    check_refused(
        &wrong,
        "cannot use archive x.tar: it is not a readable tar archive: \
         archive header checksum mismatch",
    );
    check_refused(
        &[0; 10240],
        "not an OCI layout: x.tar: cannot open x.tar/oci-layout: No such file or directory (os error 2)",
    );
    let missing = Place::open(LayoutForm::Archive, Path::new("/none/x.tar"));
    assert!(matches!(missing, Err(SourceError::Io { .. })));
    let directory = tempfile::tempdir().unwrap();
    let error = Place::open(LayoutForm::Archive, directory.path()).unwrap_err();
    assert!(matches!(error, SourceError::OtherForm { .. }), "{error}");
    let pipe = directory.path().join("pipe");
    let kind = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let error = Place::open(LayoutForm::Archive, &pipe).unwrap_err();
    assert!(matches!(error, SourceError::NotAFile { .. }), "{error}");
}

#[test]
fn a_sparse_file_that_counts_is_refused() {
    let sparse = |name: &str| {
        let mut header = header(EntryType::GNUSparse, name, "", 512);
        let gnu = header.as_gnu_mut().unwrap();
        gnu.sparse[0].offset[..12].copy_from_slice(b"00004000000\0");
        gnu.sparse[0].numbytes[..12].copy_from_slice(b"00000001000\0");
        gnu.realsize[..12].copy_from_slice(b"00004001000\0");
        header.set_cksum();
        let mut made = Made::layout();
        made.0.append(&header, &[b'x'; 512][..]).unwrap();
        made.bytes()
    };
    let name = blob_name(b"x");
    check_refused(
        &sparse(&name),
        &format!("cannot use archive x.tar: it has {name} as a sparse file"),
    );
    open(&sparse("other")).unwrap();
}

/// A hole takes no space on the disk, and so must take no memory either.
#[test]
fn headers_without_end_are_not_read_to_their_end() {
    let expected = "the list of files in x.tar is larger than 16.00 MiB";
    let file = NamedTempFile::new().unwrap();
    for kind in [
        EntryType::GNULongName,
        EntryType::GNULongLink,
        EntryType::XHeader,
    ] {
        let huge = header(kind, "x", "", 1 << 40);
        file.as_file().write_all_at(huge.as_bytes(), 0).unwrap();
        file.as_file().set_len((1 << 40) + 4096).unwrap();
        let error = Place::open(LayoutForm::Archive, file.path()).unwrap_err();
        let path = file.path().display().to_string();
        assert_eq!(error.to_string().replace(&path, "x.tar"), expected);
    }

    let mut many = File::create(file.path()).unwrap();
    let entries = header(EntryType::Regular, "x", "", 0)
        .as_bytes()
        .repeat(1000);
    for _ in 0..33 {
        many.write_all(&entries).unwrap();
    }
    let bytes = fs::read(file.path()).unwrap();
    check_refused(&bytes, expected);
}

#[test]
fn names_of_other_peoples_choice_are_shown_printably() {
    let mut bytes = Made::nothing().file("\u{1b}[31mred", b"x").bytes();
    bytes.truncate(512);
    check_refused(
        &bytes,
        "cannot use archive x.tar: it ends within \\u{1b}[31mred",
    );
}
