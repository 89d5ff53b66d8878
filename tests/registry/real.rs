use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ironboot::oci::manifest::{IRONCORE_ARTIFACTS, OCI_INDEX, OCI_MANIFEST};
use ironboot::oci::{Descriptor, Digest};
use ironboot::source::registry::Registry;
use ironboot::source::{Source, SourceError, SourceOptions, TlsPolicy, Wanted};
use oci_client::secrets::RegistryAuth;
use serde_json::json;

use crate::hostile::{Hostile, Reply};
use crate::registry::{Access, DockerRegistry, PASSWORD, USER};
use crate::{login, open, read, told};

fn content() -> Vec<u8> {
    (0..3_000_000_u32).map(|n| (n % 251) as u8).collect()
}

/// A file of `bytes` whose cursor is at its end.
fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file
}

async fn push_blob(registry: &Registry, bytes: &[u8]) -> Result<Descriptor, SourceError> {
    let blob = Descriptor::of("application/octet-stream", bytes);
    registry.upload_blob(&blob, file(bytes), |_| {}).await?;
    Ok(blob)
}

/// A manifest whose config and only layer are as given.
fn manifest(media_type: &str, config: &Descriptor, layer: &Descriptor) -> Vec<u8> {
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": config,
        "layers": [layer],
    });
    manifest.to_string().into_bytes()
}

fn index(entry: &Descriptor) -> Vec<u8> {
    let index = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [entry],
    });
    index.to_string().into_bytes()
}

/// Pushes an image of one manifest as tag 1 and reads all of it back.
pub(crate) async fn round_trip(registry: &Registry) -> Result<(), SourceError> {
    let config = push_blob(registry, b"{}").await?;
    let layer = push_blob(registry, &content()).await?;
    let manifest = manifest(OCI_MANIFEST, &config, &layer);
    registry
        .upload_document(None, &manifest, OCI_MANIFEST)
        .await?;
    let entry = Descriptor::of(OCI_MANIFEST, &manifest);
    let index = index(&entry);
    let digest = registry
        .upload_document(Some("1"), &index, OCI_INDEX)
        .await?;
    assert_eq!(digest, Digest::of(&index));

    let document = registry.document(Wanted::Reference).await?;
    assert_eq!((document.bytes, document.digest), (index, digest));
    assert_eq!(document.media_type.as_deref(), Some(OCI_INDEX));
    let document = registry.document(Wanted::Entry(&entry)).await?;
    assert_eq!((document.bytes, document.digest), (manifest, entry.digest));
    for offset in [0, 2_000_000] {
        let (start, bytes, result) = read(registry, &layer, offset).await;
        result?;
        assert_eq!(start, offset);
        let from = usize::try_from(offset).unwrap();
        assert!(bytes == content()[from..]);
    }
    Ok(())
}

#[tokio::test]
async fn what_is_pushed_is_read_back() {
    let server = DockerRegistry::start(Access::Open);
    let options = SourceOptions::default();
    let registry = open(server.address(), ":1", &options);
    round_trip(&registry).await.unwrap();

    // By somebody else's client too.
    let config = oci_client::client::ClientConfig {
        protocol: oci_client::client::ClientProtocol::Http,
        ..Default::default()
    };
    let client = oci_client::Client::try_from(config).unwrap();
    let image = format!("{}/os:1", server.address()).parse().unwrap();
    let mut bytes = Vec::new();
    let auth = RegistryAuth::Anonymous;
    client.store_auth_if_needed(server.address(), &auth).await;
    let layer = Digest::of(&content()).to_string();
    client
        .pull_blob(&image, layer.as_str(), &mut bytes)
        .await
        .unwrap();
    assert!(bytes == content());
}

#[tokio::test]
async fn an_upload_tells_how_far_it_is_and_is_not_needed_twice() {
    let server = DockerRegistry::start(Access::Open);
    let registry = open(server.address(), ":1", &SourceOptions::default());
    let blob = Descriptor::of("x/y", &content());
    assert!(!registry.has_blob(&blob.digest).await.unwrap());
    let told = Arc::new(AtomicU64::new(0));
    let progress = Arc::clone(&told);
    registry
        .upload_blob(&blob, file(&content()), move |bytes| {
            assert!(progress.swap(bytes, Ordering::SeqCst) < bytes);
        })
        .await
        .unwrap();
    assert_eq!(told.load(Ordering::SeqCst), blob.size);
    assert!(registry.has_blob(&blob.digest).await.unwrap());
    let empty = push_blob(&registry, b"").await.unwrap();
    assert!(registry.has_blob(&empty.digest).await.unwrap());
}

#[tokio::test]
async fn what_the_registry_does_not_take_is_told_in_its_words() {
    let server = DockerRegistry::start(Access::Open);
    let registry = open(server.address(), ":1", &SourceOptions::default());
    let wrong = Descriptor::of("x/y", b"other content");
    let error = registry
        .upload_blob(&wrong, file(b"wrong content"), |_| {})
        .await
        .unwrap_err();
    assert!(
        matches!(&error, SourceError::Rejected { status: 400, words, .. }
            if words == "provided digest did not match uploaded content"),
        "{error}"
    );

    let config = push_blob(&registry, b"{}").await.unwrap();
    let own_type = manifest(IRONCORE_ARTIFACTS, &config, &config);
    let error = registry
        .upload_document(Some("1"), &own_type, IRONCORE_ARTIFACTS)
        .await
        .unwrap_err();
    let expected = format!(
        "{}/os:1: the registry does not take manifest 1 (status 400): manifest invalid",
        server.address()
    );
    assert_eq!(told(&error), expected);
}

#[tokio::test]
async fn a_manifest_that_the_registry_holds_only_as_a_blob_is_found() {
    let server = DockerRegistry::start(Access::Open);
    let registry = open(server.address(), ":1", &SourceOptions::default());
    let config = push_blob(&registry, b"{}").await.unwrap();
    let bytes = manifest(IRONCORE_ARTIFACTS, &config, &config);
    push_blob(&registry, &bytes).await.unwrap();
    let entry = Descriptor::of(IRONCORE_ARTIFACTS, &bytes);
    registry
        .upload_document(Some("1"), &index(&entry), OCI_INDEX)
        .await
        .unwrap();
    let document = registry.document(Wanted::Entry(&entry)).await.unwrap();
    assert_eq!(document.bytes, bytes);
    assert_eq!(document.media_type.as_deref(), Some(IRONCORE_ARTIFACTS));
}

#[tokio::test]
async fn what_a_real_registry_has_not_is_not_found() {
    let server = DockerRegistry::start(Access::Open);
    let registry = open(server.address(), ":1", &SourceOptions::default());
    let error = registry.document(Wanted::Reference).await.unwrap_err();
    assert!(
        matches!(error, SourceError::ImageNotFound { .. }),
        "{error}"
    );
    let blob = Descriptor::of("x/y", b"missing");
    for error in [
        registry.document(Wanted::Entry(&blob)).await.unwrap_err(),
        registry.blob(&blob, 0).await.unwrap_err(),
        registry.blob(&blob, 3).await.unwrap_err(),
    ] {
        assert!(matches!(error, SourceError::BlobNotFound { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_password_opens_what_is_closed_to_others() {
    let server = DockerRegistry::start(Access::Password);
    let address = server.address();
    let registry = open(address, ":1", &login(address, USER, PASSWORD));
    round_trip(&registry).await.unwrap();
    for (options, who) in [
        (login(address, USER, "wrong horse"), "user horse"),
        (login(address, "mallory", PASSWORD), "user mallory"),
        (SourceOptions::default(), "anonymous access"),
        (login("other.example", USER, PASSWORD), "anonymous access"),
    ] {
        let registry = open(address, ":1", &options);
        for error in [
            registry.document(Wanted::Reference).await.unwrap_err(),
            push_blob(&registry, b"x").await.unwrap_err(),
        ] {
            let told = told(&error);
            let expected = format!("{address} refuses {who} to os: ");
            assert!(told.starts_with(&expected), "{told}");
            assert!(!told.contains("horse") || !told.contains(PASSWORD));
        }
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_signed_is_taken_only_by_who_asks_for_it() {
    let server = DockerRegistry::start(Access::SelfSigned);
    let registry = open(server.address(), ":1", &SourceOptions::default());
    let error = registry.document(Wanted::Reference).await.unwrap_err();
    let expected = format!(
        "{} cannot be trusted: invalid peer certificate: UnknownIssuer",
        server.address()
    );
    assert_eq!(told(&error), expected);
    assert!(!error.is_retryable());
    let insecure = SourceOptions {
        tls: TlsPolicy::Insecure,
        ..SourceOptions::default()
    };
    round_trip(&open(server.address(), ":1", &insecure))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_upload_that_is_sent_elsewhere_takes_no_credentials_along() {
    let storage = Hostile::start(|_, _| Reply::status(201));
    let elsewhere = format!("http://{}/upload?state=1", storage.address());
    let server = Hostile::start(move |request, _| match request.header("authorization") {
        None => Reply::status(401).header("WWW-Authenticate", "Basic realm=x"),
        Some(_) => Reply::status(202).header("Location", &elsewhere),
    });
    let options = login(&server.address(), "me", "hunter2");
    let registry = open(&server.address(), ":1", &options);
    let blob = push_blob(&registry, b"content").await.unwrap();
    let requests = storage.requests();
    assert_eq!(requests.len(), 1);
    assert_eq!(requests[0].header("authorization"), None);
    let digest = blob.digest.to_string().replace(':', "%3A");
    assert_eq!(requests[0].query, format!("state=1&digest={digest}"));
    assert_eq!(requests[0].header("content-length"), Some("7"));
}
