use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ironboot::oci::manifest::{OCI_INDEX, OCI_MANIFEST};
use ironboot::oci::{Descriptor, Digest};
use ironboot::signature::Place;
use ironboot::source::{
    Mirrors, Source, SourceError, SourceOptions, Unavailability, Violation, Wanted,
};
use tempfile::TempDir;

use crate::hostile::{Hostile, Reply, Request};
use crate::{INDEX, login, open, read, serve, told};

/// A directory in which `text` is about the registry at `address`.
fn hosts(address: &str, text: &str) -> (TempDir, SourceOptions) {
    let directory = tempfile::tempdir().unwrap();
    write(directory.path(), address, text);
    let options = SourceOptions {
        hosts_directories: vec![directory.path().to_owned()],
        ..SourceOptions::default()
    };
    (directory, options)
}

fn write(directory: &Path, address: &str, text: &str) {
    let directory = directory.join(address);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("hosts.toml"), text).unwrap();
}

fn mirror(server: &Hostile) -> String {
    format!("[host.\"http://{}\"]\n", server.address())
}

/// What is right about everything.
fn right(path: &str, request: &Request, _: usize) -> Reply {
    match (path.split_once('/').unwrap().0, request.header("range")) {
        ("manifests", _) => Reply::ok(INDEX).header("Content-Type", OCI_INDEX),
        (_, None) => Reply::ok(BLOB),
        (_, Some(range)) => {
            let from = range.strip_prefix("bytes=").unwrap().trim_end_matches('-');
            let from: usize = from.parse().unwrap();
            let (last, all) = (BLOB.len() - 1, BLOB.len());
            Reply::status(206)
                .header("Content-Range", &format!("bytes {from}-{last}/{all}"))
                .bytes(&BLOB[from..])
        }
    }
}

const BLOB: &[u8] = b"what a blob is made of";

fn blob() -> Descriptor {
    Descriptor::of("x/y", BLOB)
}

fn entry() -> Descriptor {
    Descriptor::of(OCI_INDEX, INDEX)
}

#[tokio::test]
async fn mirrors_are_asked_in_their_order_and_told_for_whom() {
    let upstream = serve(right);
    let (first, second) = (serve(|_, _, _| Reply::status(404)), serve(right));
    let text = mirror(&first) + &mirror(&second);
    let (_directory, options) = hosts(&upstream.address(), &text);
    let source = open(&upstream.address(), ":1", &options);
    source.document(Wanted::Reference).await.unwrap();
    source.document(Wanted::Entry(&entry())).await.unwrap();
    assert_eq!(read(&source, &blob(), 0).await.1, BLOB);
    assert_eq!(upstream.requests(), []);
    // It has failed once, so it is left alone.
    assert_eq!(first.requests().len(), 1);
    let requests = second.requests();
    assert_eq!(requests.len(), 3);
    let namespace = format!("ns={}", upstream.address().replace(':', "%3A"));
    assert!(requests.iter().all(|request| request.query == namespace));
}

#[tokio::test]
async fn whatever_is_wrong_with_a_mirror_the_next_is_asked() {
    let refused = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let bad: Vec<(&str, Reply)> = vec![
        ("404", Reply::status(404)),
        ("500", Reply::status(500)),
        ("503", Reply::status(503)),
        ("429", Reply::status(429).header("Retry-After", "9")),
        ("401", Reply::status(401)),
        ("403", Reply::status(403)),
        ("another status", Reply::status(418)),
        ("an unasked part", Reply::status(206).bytes(BLOB)),
        ("packed", Reply::ok(BLOB).header("Content-Encoding", "gzip")),
        ("too long", Reply::status(200).cut(b"", 1 << 30)),
        ("no HTTP", Reply::status(200).header_flood()),
        (
            "elsewhere",
            Reply::status(307).header("Location", "file:///etc/passwd"),
        ),
        (
            "metadata",
            Reply::status(307).header("Location", "http://169.254.169.254/"),
        ),
    ];
    for (what, reply) in bad {
        let upstream = serve(right);
        let broken = serve(move |_, _, _| reply.clone());
        let (_directory, options) = hosts(&upstream.address(), &mirror(&broken));
        // A document by its digest, by tag, and a blob, each from another process's view.
        let (digest, address) = (format!("@{}", Digest::of(INDEX)), upstream.address());
        let source = open(&address, &digest, &options);
        source.document(Wanted::Reference).await.unwrap();
        let options = SourceOptions {
            mirrors: Mirrors::default(),
            ..options
        };
        let source = open(&address, ":1", &options);
        source.document(Wanted::Reference).await.unwrap();
        let options = SourceOptions {
            mirrors: Mirrors::default(),
            ..options
        };
        let source = open(&address, ":1", &options);
        let (_, bytes, result) = read(&source, &blob(), 0).await;
        result.unwrap();
        assert_eq!(bytes, BLOB, "{what}");
        let asked = broken.requests().len();
        source.document(Wanted::Reference).await.unwrap();
        assert_eq!(broken.requests().len(), asked, "{what}");
    }
    let upstream = serve(right);
    let text = format!("[host.\"http://{refused}\"]");
    let (_directory, options) = hosts(&upstream.address(), &text);
    let source = open(&upstream.address(), ":1", &options);
    source.document(Wanted::Reference).await.unwrap();
}

#[tokio::test]
async fn a_document_of_other_content_is_asked_for_elsewhere() {
    let upstream = serve(right);
    let lying = serve(|_, _, _| Reply::ok(b"{}"));
    let short = serve(|_, _, _| Reply::ok(&INDEX[1..]));
    let endless = serve(|_, _, _| Reply::status(200).endless());
    let text = mirror(&lying) + &mirror(&short) + &mirror(&endless);
    let (_directory, options) = hosts(&upstream.address(), &text);
    let source = open(&upstream.address(), ":1", &options);
    let document = source.document(Wanted::Entry(&entry())).await.unwrap();
    assert_eq!(document.bytes, INDEX);
    for server in [&lying, &short, &endless, &upstream] {
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_mirror_that_may_only_be_pulled_from_is_never_asked_for_a_tag() {
    let upstream = serve(right);
    let cache = serve(right);
    let text = mirror(&cache) + "capabilities = [\"pull\"]";
    let (_directory, options) = hosts(&upstream.address(), &text);
    let source = open(&upstream.address(), ":1", &options);
    source.current().await.unwrap();
    source.document(Wanted::Reference).await.unwrap();
    assert_eq!(cache.requests(), []);
    source.document(Wanted::Entry(&entry())).await.unwrap();
    read(&source, &blob(), 0).await.2.unwrap();
    assert_eq!((cache.requests().len(), upstream.requests().len()), (2, 2));
}

#[tokio::test]
async fn where_nobody_may_be_asked_the_file_is_at_fault() {
    let upstream = serve(right);
    let (_directory, options) = hosts(&upstream.address(), "capabilities = [\"pull\"]");
    let source = open(&upstream.address(), ":1", &options);
    let error = source.document(Wanted::Reference).await.unwrap_err();
    let expected = format!(
        "none of the hosts of {} has the capability resolve",
        upstream.address()
    );
    assert_eq!(error.to_string(), expected);
    assert_eq!(upstream.requests(), []);
}

#[tokio::test]
async fn the_error_is_the_registrys_own_with_the_mirrors_beside_it() {
    let upstream = serve(|_, _, _| Reply::status(404));
    let first = serve(|_, _, _| Reply::status(503).bytes(b"moving house"));
    let second = serve(|_, _, _| Reply::status(403).bytes(b"not for you"));
    let text = mirror(&first) + &mirror(&second);
    let (_directory, options) = hosts(&upstream.address(), &text);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let options = SourceOptions {
        mirrors: Mirrors::heard_by(move |failure| hears.lock().unwrap().push(failure.to_string())),
        ..options
    };
    let source = open(&upstream.address(), ":1", &options);
    for _ in 0..2 {
        let error = source.document(Wanted::Reference).await.unwrap_err();
        let expected = format!("no such image: {}/os:1", upstream.address());
        assert_eq!(told(&error), expected);
        assert!(error.is_not_found());
        let mirrors: Vec<_> = error.mirrors().iter().map(ToString::to_string).collect();
        let (first, second) = (first.address(), second.address());
        let expected = [
            format!(
                "mirror {first}: {first} is not available: \
                 it answers with status 503: moving house"
            ),
            format!("mirror {second}: {second} refuses anonymous access to os: not for you"),
        ];
        assert_eq!(mirrors, expected);
        assert_eq!(*heard.lock().unwrap(), expected);
    }
    // Asked once, although it may be better in a moment: there is somebody else.
    assert_eq!((first.requests().len(), second.requests().len()), (1, 1));
}

#[tokio::test]
async fn a_mirror_that_breaks_off_is_gone_on_from_elsewhere() {
    let half = BLOB.len() / 2;
    let broken: Vec<(&str, Reply)> = vec![
        ("cut", Reply::status(200).cut(&BLOB[..half], BLOB.len())),
        ("short", Reply::status(200).chunked(&BLOB[..half])),
        (
            "stalled",
            Reply::status(200).stalled(&BLOB[..half], BLOB.len()),
        ),
        ("long", Reply::status(200).endless()),
    ];
    for (what, reply) in broken {
        let upstream = serve(right);
        let broken = serve(move |_, _, _| reply.clone());
        let (_directory, options) = hosts(&upstream.address(), &mirror(&broken));
        let source = open(&upstream.address(), ":1", &options);
        let (_, bytes, result) = read(&source, &blob(), 0).await;
        let error = result.unwrap_err();
        assert!(
            matches!(&error, SourceError::Mirror { mirror, .. } if *mirror == broken.address()),
            "{what}: {error}"
        );
        assert!(error.is_retryable());
        let from = bytes.len() as u64;
        let (offset, rest, result) = read(&source, &blob(), from).await;
        result.unwrap();
        assert_eq!(
            (offset, [bytes, rest].concat()),
            (from, BLOB.to_vec()),
            "{what}"
        );
        assert_eq!((broken.requests().len(), upstream.requests().len()), (1, 1));
    }
}

#[tokio::test]
async fn a_mirror_whose_blob_was_wrong_is_not_asked_again() {
    let upstream = serve(right);
    let wrong = BLOB.to_ascii_uppercase();
    let lying = serve(move |_, _, _| Reply::ok(&wrong));
    let (_directory, options) = hosts(&upstream.address(), &mirror(&lying));
    let source = open(&upstream.address(), ":1", &options);
    // Nobody to blame yet.
    assert!(!source.distrust(&blob().digest));
    let (_, bytes, result) = read(&source, &blob(), 0).await;
    result.unwrap();
    assert_eq!(bytes, BLOB.to_ascii_uppercase());
    assert!(source.distrust(&blob().digest));
    assert_eq!(read(&source, &blob(), 0).await.1, BLOB);
    // Whoever is the last is not distrusted: there is nobody else.
    assert!(!source.distrust(&blob().digest));
    assert_eq!((lying.requests().len(), upstream.requests().len()), (1, 1));
}

#[tokio::test]
async fn a_mirror_gets_credentials_of_its_own_and_no_others() {
    let upstream = serve(right);
    let closed = Hostile::start(|request, _| match request.header("authorization") {
        None => Reply::status(401).header("WWW-Authenticate", "Basic realm=x"),
        Some(_) => Reply::ok(INDEX),
    });
    let (_directory, options) = hosts(&upstream.address(), &mirror(&closed));
    let with = |registry: &str| SourceOptions {
        hosts_directories: options.hosts_directories.clone(),
        ..login(registry, "me", "hunter2")
    };
    let source = open(&upstream.address(), ":1", &with(&upstream.address()));
    source.document(Wanted::Reference).await.unwrap();
    assert_eq!(upstream.requests().len(), 1);
    assert!(
        closed
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_none())
    );
    let source = open(&upstream.address(), ":1", &with(&closed.address()));
    source.document(Wanted::Reference).await.unwrap();
    assert_eq!(upstream.requests().len(), 1);
    let last = closed.requests().pop().unwrap();
    assert_eq!(last.header("authorization"), Some("Basic bWU6aHVudGVyMg=="));
}

#[tokio::test]
async fn a_server_takes_the_place_of_the_registry() {
    let (upstream, stand_in) = (serve(right), serve(right));
    let text = format!(
        "server = \"http://{}/own\"\noverride_path = true\n[header]\nx-key = \"secret\"\n",
        stand_in.address()
    );
    let (_directory, options) = hosts(&upstream.address(), &text);
    let source = open(&upstream.address(), ":1", &options);
    let error = source.document(Wanted::Reference).await.unwrap_err();
    assert!(error.is_not_found());
    assert_eq!(upstream.requests(), []);
    let request = stand_in.requests().pop().unwrap();
    assert_eq!(request.path, "/own/os/manifests/1");
    assert_eq!(request.header("x-key"), Some("secret"));
    assert!(!format!("{source:?} {error:?}").contains("secret"));
}

#[tokio::test]
async fn the_last_is_asked_as_patiently_as_ever() {
    let upstream = serve(|path, request, before| match before {
        0 => Reply::status(503),
        _ => right(path, request, before),
    });
    let gone = serve(|_, _, _| Reply::status(404));
    let (_directory, options) = hosts(&upstream.address(), &mirror(&gone));
    let source = open(&upstream.address(), ":1", &options);
    source.document(Wanted::Reference).await.unwrap();
    assert_eq!(upstream.requests().len(), 2);
}

#[tokio::test]
async fn a_mirror_is_spoken_to_as_its_address_says() {
    // No plain HTTP where https is spelled, not even on loopback.
    let upstream = serve(right);
    let plain = serve(right);
    let text = format!("[host.\"https://{}\"]\n", plain.address());
    let (_directory, options) = hosts(&upstream.address(), &text);
    let source = open(&upstream.address(), ":1", &options);
    source.document(Wanted::Reference).await.unwrap();
    assert_eq!((plain.requests().len(), upstream.requests().len()), (0, 1));
}

#[tokio::test]
async fn a_mirror_that_is_silent_costs_its_own_time_out_and_that_once() {
    let upstream = serve(right);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap();
    let text = format!("[host.\"http://{address}\"]\ndial_timeout = \"100ms\"\n");
    let (_directory, options) = hosts(&upstream.address(), &text);
    let began = std::time::Instant::now();
    for _ in 0..3 {
        // One memory for all that is opened with these options.
        let source = open(&upstream.address(), ":1", &options);
        source.document(Wanted::Reference).await.unwrap();
    }
    let elapsed = began.elapsed();
    assert!(elapsed.as_millis() < 1400, "{elapsed:?}");
    assert_eq!(upstream.requests().len(), 3);
}

#[tokio::test]
async fn a_mirror_that_breaks_the_protocol_is_told_as_itself() {
    let upstream = serve(|_, _, _| Reply::status(500));
    let broken = serve(|_, _, _| Reply::status(418));
    let (_directory, options) = hosts(&upstream.address(), &mirror(&broken));
    let source = open(&upstream.address(), ":1", &options);
    let error = source.document(Wanted::Reference).await.unwrap_err();
    assert!(
        matches!(
            error.itself(),
            SourceError::Unavailable {
                cause: Unavailability::Status { status: 500, .. },
                ..
            }
        ),
        "{error}"
    );
    let unexpected = Violation::Status {
        status: 418,
        words: "I'm a teapot".to_owned(),
    };
    assert!(error.mirrors()[0].reason.ends_with(&unexpected.to_string()));
}

#[tokio::test]
async fn what_a_mirror_has_no_signature_of_the_registry_may_have() {
    let digest = Digest::of(INDEX);
    let tag = format!("manifests/sha256-{}.sig", digest.hex());
    let signed = tag.clone();
    let upstream = serve(move |path, request, before| match path {
        path if path == signed => Reply::ok(b"{}").header("Content-Type", OCI_MANIFEST),
        path => right(path, request, before),
    });
    let lacking = serve(|path, request, before| match path {
        path if path.ends_with(".sig") => Reply::status(404),
        path => right(path, request, before),
    });
    let text = mirror(&lacking) + "capabilities = [\"pull\", \"resolve\"]\n";
    let (_directory, options) = hosts(&upstream.address(), &text);
    let source = open(&upstream.address(), ":1", &options);
    let found = source.attached(&digest, Place::Tag).await.unwrap().unwrap();
    assert_eq!(found.bytes, b"{}");
    // It is no worse a mirror for that.
    source.document(Wanted::Reference).await.unwrap();
    let path = format!("/v2/os/{tag}");
    for (server, expected) in [
        (
            &lacking,
            vec![path.clone(), "/v2/os/manifests/1".to_owned()],
        ),
        (&upstream, vec![path]),
    ] {
        let requests = server.requests().into_iter().map(|request| request.path);
        assert_eq!(requests.collect::<Vec<_>>(), expected);
    }
    // No tag is as long as this.
    let long: Digest = format!("sha512:{}", "a".repeat(128)).parse().unwrap();
    let before = upstream.requests().len();
    assert_eq!(source.attached(&long, Place::Tag).await.unwrap(), None);
    assert_eq!(upstream.requests().len(), before);
}
