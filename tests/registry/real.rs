use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use ironboot::oci::manifest::{IRONCORE_ARTIFACTS, OCI_INDEX, OCI_MANIFEST};
use ironboot::oci::{Descriptor, Digest};
use ironboot::source::registry::{Registry, UploadEvent, Uploaded};
use ironboot::source::{Source, SourceError, SourceOptions, TlsPolicy, Wanted};
use oci_client::secrets::RegistryAuth;
use serde_json::json;

use crate::hostile::{Hostile, Reply};
use crate::registry::{Access, DockerRegistry, PASSWORD, USER};
use crate::{content_of, login, open, read, told};

fn content() -> Vec<u8> {
    (0..3_000_000_u32).map(|n| (n % 251) as u8).collect()
}

async fn push_blob(registry: &Registry, bytes: &[u8]) -> Result<Descriptor, SourceError> {
    let blob = Descriptor::of("application/octet-stream", bytes);
    let (_directory, layout) = content_of(&blob, bytes);
    let uploaded = registry.upload_blob(&blob, &layout, None, |_| {}).await?;
    assert_eq!(uploaded, Uploaded::Sent);
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
    let (_directory, layout) = content_of(&blob, &content());
    registry
        .upload_blob(&blob, &layout, None, move |event| {
            let UploadEvent::Sent(bytes) = event else {
                panic!("{event:?}");
            };
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
    let (_directory, layout) = content_of(&wrong, b"wrong content");
    let error = registry
        .upload_blob(&wrong, &layout, None, |_| {})
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

/// More than is sent as one request.
fn large_content() -> Vec<u8> {
    content().repeat(6)
}

#[tokio::test]
async fn a_large_blob_is_read_back() {
    let server = DockerRegistry::start(Access::Open);
    let registry = open(server.address(), ":1", &SourceOptions::default());
    let blob = push_blob(&registry, &large_content()).await.unwrap();
    let (_, bytes, result) = read(&registry, &blob, 0).await;
    result.unwrap();
    assert!(bytes == large_content());
}

#[tokio::test]
async fn a_blob_is_mounted_from_where_it_is_and_sent_where_it_is_not() {
    let server = DockerRegistry::start(Access::Open);
    let registry = open(server.address(), ":1", &SourceOptions::default());
    let blob = push_blob(&registry, b"shared").await.unwrap();
    let (_directory, layout) = content_of(&blob, b"shared");
    for (from, expected) in [("none", Uploaded::Sent), ("os", Uploaded::Mounted)] {
        let copy = open(
            server.address(),
            &format!("-{from}:1"),
            &SourceOptions::default(),
        );
        assert!(!copy.has_blob(&blob.digest).await.unwrap());
        let uploaded = copy.upload_blob(&blob, &layout, Some(from), |_| {}).await;
        assert_eq!(uploaded.unwrap(), expected);
        let (_, bytes, result) = read(&copy, &blob, 0).await;
        result.unwrap();
        assert_eq!(bytes, b"shared");
    }
}

/// Leads to `server`, and breaks the connection that is first to carry so many bytes there.
fn breaking_once(server: &str, after: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (server, is_whole) = (server.to_owned(), Arc::new(AtomicBool::new(true)));
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let there = TcpStream::connect(&server).unwrap();
            let (mut up, mut down) = (there.try_clone().unwrap(), client.try_clone().unwrap());
            thread::spawn(move || {
                // Whichever side ends it, the other is told below.
                drop(std::io::copy(&mut &there, &mut down));
                drop(down.shutdown(Shutdown::Both));
            });
            let (mut client, is_whole) = (client, Arc::clone(&is_whole));
            thread::spawn(move || {
                let (mut carried, mut piece) = (0, vec![0; 64 << 10]);
                while let Ok(count @ 1..) = client.read(&mut piece) {
                    carried += count;
                    let breaks = carried > after && is_whole.swap(false, Ordering::SeqCst);
                    if breaks || up.write_all(&piece[..count]).is_err() {
                        break;
                    }
                }
                drop(up.shutdown(Shutdown::Both));
                drop(client.shutdown(Shutdown::Both));
            });
        }
    });
    address
}

/// This registry cannot say how far a broken upload has got, and drops it when asked.
#[tokio::test]
async fn an_upload_that_breaks_on_the_way_to_a_real_registry_arrives() {
    let server = DockerRegistry::start(Access::Open);
    for (content, after) in [(content(), 1 << 20), (large_content(), 8 << 20)] {
        let address = breaking_once(server.address(), after);
        let registry = open(&address, ":1", &SourceOptions::default());
        let blob = Descriptor::of("x/y", &content);
        let (_directory, layout) = content_of(&blob, &content);
        let breaks = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&breaks);
        let uploaded = registry.upload_blob(&blob, &layout, None, move |event| {
            if let UploadEvent::Broken(_) = event {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        uploaded.await.unwrap();
        assert_eq!(breaks.load(Ordering::SeqCst), 1);
        let (_, bytes, result) = read(&registry, &blob, 0).await;
        result.unwrap();
        assert!(bytes == content);
    }
}
