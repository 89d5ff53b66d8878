//! The `source` room against a scripted, hostile registry and against a real one.
//!
//! | file             | what it is about                                                 |
//! |------------------|------------------------------------------------------------------|
//! | `requests`       | how few of them there are                                        |
//! | `documents`      | indexes and manifests: limits, digests, where they are looked for |
//! | `blobs`          | streams: sizes, parts, breaks                                    |
//! | `ranges`         | parts of one blob over several connections                       |
//! | `connections`    | retries, redirects, timeouts, what is said about errors          |
//! | `mirrors`        | other places that a registry's images are to be had at               |
//! | `authentication` | challenges, realms, tokens, and where secrets go                 |
//! | `certificates`   | how a registry proves who it is, and we do                       |
//! | `uploads`        | uploads that break, stall, are lost or mounted                   |
//! | `real`           | Debian's `docker-registry`: push, then read back                 |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "../support/hostile.rs"]
mod hostile;
#[path = "../support/registry.rs"]
mod registry;

mod requests;
mod documents;
mod blobs;
mod ranges;
mod connections;
mod mirrors;
mod authentication;
mod certificates;
mod uploads;
mod real;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use ironboot::oci::{Descriptor, LayoutReference, Reference};
use ironboot::source::layout::{Layout, Writer};
use ironboot::source::registry::{Registry, Timeouts};
use ironboot::source::{Credentials, Source, SourceError, SourceOptions, TlsPolicy};

use tempfile::TempDir;

use hostile::{Hostile, Reply, Request};

/// An index of no entries.
const INDEX: &[u8] = br#"{"schemaVersion":2,"manifests":[]}"#;

/// A server that has `script` below `/v2/os/` and lets everybody in.
fn serve(script: impl Fn(&str, &Request, usize) -> Reply + Send + Sync + 'static) -> Hostile {
    Hostile::start(
        move |request, before| match request.path.strip_prefix("/v2/os/") {
            Some(rest) => script(rest, request, before),
            None => Reply::status(404),
        },
    )
}

/// Opens `os` with `rest` (`:1`, `@sha256:…`) at `address`.
fn open(address: &str, rest: &str, options: &SourceOptions) -> Registry {
    let timeouts = Timeouts {
        connect: Duration::from_secs(5),
        read: Duration::from_millis(500),
        document: Duration::from_secs(10),
    };
    open_with(address, rest, options, timeouts)
}

/// Opens it with another patience.
fn open_with(address: &str, rest: &str, options: &SourceOptions, timeouts: Timeouts) -> Registry {
    let Reference::Registry(image) = format!("{address}/os{rest}").parse().unwrap() else {
        panic!("{address} is no registry");
    };
    Registry::open_with_timeouts(image, options, timeouts).unwrap()
}

/// The image `os:1` of a scripted server.
fn image(server: &Hostile) -> Registry {
    open(&server.address(), ":1", &SourceOptions::default())
}

/// Options of somebody who has a password for `registry`.
fn login(registry: &str, user: &str, password: &str) -> SourceOptions {
    use base64::Engine;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    let directory = tempfile::tempdir().unwrap();
    let file: PathBuf = directory.path().join("auth.json");
    let json = format!(r#"{{"auths":{{"{registry}":{{"auth":"{auth}"}}}}}}"#);
    std::fs::write(&file, json).unwrap();
    SourceOptions {
        tls: TlsPolicy::Verify,
        credentials: Credentials::load(&[file]).unwrap(),
        ..SourceOptions::default()
    }
}

/// A layout directory that has `bytes` as the content of `blob`, whatever its digest is.
fn content_of(blob: &Descriptor, bytes: &[u8]) -> (TempDir, Layout) {
    let directory = tempfile::tempdir().unwrap();
    Writer::create(directory.path()).unwrap();
    let file = format!("blobs/sha256/{}", blob.digest.hex());
    fs::write(directory.path().join(file), bytes).unwrap();
    let reference = LayoutReference::document(directory.path().to_owned(), blob.digest);
    (directory, Layout::open(reference))
}

/// Reads a blob; the bytes that came before an error are returned beside it.
async fn read(
    source: &dyn Source,
    blob: &Descriptor,
    offset: u64,
) -> (u64, Vec<u8>, Result<(), SourceError>) {
    let mut stream = match source.blob(blob, offset).await {
        Ok(stream) => stream,
        Err(error) => return (0, Vec::new(), Err(error)),
    };
    let mut bytes = Vec::new();
    while let Some(piece) = stream.bytes.next().await {
        match piece {
            Ok(piece) => bytes.extend_from_slice(&piece),
            Err(error) => return (stream.offset, bytes, Err(error)),
        }
    }
    (stream.offset, bytes, Ok(()))
}

/// An error and all its causes, as a person would see them.
fn told(error: &SourceError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
