use std::net::TcpListener;
use std::time::{Duration, Instant};

use ironboot::source::{
    AddressRefusal, RawDocument, Source, SourceError, SourceOptions, TlsPolicy, Unavailability,
    Violation, Wanted,
};

use crate::hostile::{Hostile, Reply};
use crate::{INDEX, image, open, serve, told};

async fn document(server: &Hostile) -> Result<RawDocument, SourceError> {
    image(server).document(Wanted::Reference).await
}

/// N13.
#[tokio::test]
async fn a_registry_that_is_busy_for_a_moment_is_asked_again() {
    for status in [408, 429, 500, 502, 503, 504] {
        let server = serve(move |_, _, before| match before {
            0 => Reply::status(status),
            _ => Reply::ok(INDEX),
        });
        assert!(document(&server).await.is_ok(), "{status}");
        assert_eq!(server.count("/v2/os/manifests/1"), 2);
    }
}

#[tokio::test]
async fn a_registry_that_stays_busy_is_given_up_with_its_words() {
    let server = serve(|_, _, _| {
        Reply::status(503).bytes(br#"{"errors":[{"code":"BUSY","message":"moving house"}]}"#)
    });
    let error = document(&server).await.unwrap_err();
    let expected = format!(
        "{} is not available: it answers with status 503: moving house",
        server.address()
    );
    assert_eq!(told(&error), expected);
    assert!(error.is_retryable());
    assert_eq!(server.count("/v2/os/manifests/1"), 4);
}

/// N13.
#[tokio::test]
async fn a_wait_that_the_registry_asks_for_is_kept_if_it_is_short() {
    let server = serve(|_, _, before| match before {
        0 => Reply::status(429).header("Retry-After", "1"),
        _ => Reply::ok(INDEX),
    });
    let began = Instant::now();
    assert!(document(&server).await.is_ok());
    assert!(began.elapsed() >= Duration::from_secs(1));

    let far = "Fri, 31 Dec 9999 23:59:59 GMT";
    let server = serve(move |_, _, _| Reply::status(429).header("Retry-After", far));
    let error = document(&server).await.unwrap_err();
    assert!(error.is_retryable(), "{error}");
    assert_eq!(server.count("/v2/os/manifests/1"), 1);

    let server = serve(|_, _, _| Reply::status(429).header("Retry-After", "1000000000"));
    let error = document(&server).await.unwrap_err();
    assert!(matches!(
        error,
        SourceError::Unavailable { cause: Unavailability::Status { status: 429, retry_after, .. }, .. }
            if retry_after == Some(Duration::from_secs(1_000_000_000))
    ));
    assert_eq!(server.count("/v2/os/manifests/1"), 1);
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unavailable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let image = open(&address, ":1", &SourceOptions::default());
    let error = image.document(Wanted::Reference).await.unwrap_err();
    let expected =
        format!("{address} is not available: connection failed: Connection refused (os error 111)");
    assert_eq!(told(&error), expected);
    assert!(error.is_retryable());
}

/// Why a redirect to `location` is not followed, and where it leads.
async fn refusal(location: &str, options: &SourceOptions) -> (String, AddressRefusal) {
    let to = location.to_owned();
    let server = serve(move |_, _, _| Reply::status(307).header("Location", &to));
    let source = open(&server.address(), ":1", options);
    match source.document(Wanted::Reference).await {
        Err(SourceError::RedirectRefused { target, reason, .. }) => {
            // Nothing that another try could mend.
            assert_eq!(server.count("/v2/os/manifests/1"), 1);
            (target, reason)
        }
        other => panic!("{location}: {other:?}"),
    }
}

#[tokio::test]
async fn redirects_to_where_nobody_should_go_are_not_followed() {
    for tls in [TlsPolicy::Verify, TlsPolicy::Insecure] {
        let options = SourceOptions {
            tls,
            ..SourceOptions::default()
        };
        for (location, reason) in [
            ("http://169.254.169.254/latest", AddressRefusal::LinkLocal),
            ("https://169.254.169.254/latest", AddressRefusal::LinkLocal),
            ("http://[fe80::1]/", AddressRefusal::LinkLocal),
            ("ftp://127.0.0.1/x", AddressRefusal::Scheme),
            ("file:///etc/passwd", AddressRefusal::Scheme),
        ] {
            let (target, refused) = refusal(location, &options).await;
            assert_eq!((target.as_str(), refused), (location, reason));
        }
    }
    let options = SourceOptions::default();
    let signed = "http://storage.example/x?signature=secret";
    let (target, reason) = refusal(signed, &options).await;
    assert_eq!(target, "http://storage.example/x");
    assert_eq!(reason, AddressRefusal::PlainHttp);
}

#[tokio::test]
async fn a_redirect_that_never_ends_is_left_after_five() {
    let server =
        serve(|path, _, _| Reply::status(307).header("Location", &format!("/v2/os/{path}")));
    let error = document(&server).await.unwrap_err();
    assert!(
        matches!(
            error,
            SourceError::RedirectRefused {
                reason: AddressRefusal::TooMany(6),
                ..
            }
        ),
        "{}",
        told(&error)
    );
    assert_eq!(server.count("/v2/os/manifests/1"), 6);
}

#[tokio::test]
async fn a_redirect_to_storage_is_followed() {
    let storage = Hostile::start(|_, _| Reply::ok(INDEX));
    let to = format!("http://{}/storage?signature=x", storage.address());
    let server = serve(move |_, _, _| Reply::status(307).header("Location", &to));
    assert_eq!(document(&server).await.unwrap().bytes, INDEX);
    assert_eq!(storage.requests()[0].query, "signature=x");
}

#[tokio::test]
async fn an_answer_of_headers_without_end_is_not_http() {
    let server = serve(|_, _, _| Reply::status(200).header_flood());
    let error = document(&server).await.unwrap_err();
    assert!(
        matches!(
            error,
            SourceError::Protocol {
                violation: Violation::Http(_),
                ..
            }
        ),
        "{}",
        told(&error)
    );
}

#[tokio::test]
async fn the_words_of_an_error_are_cut_and_made_printable() {
    let server = serve(|_, _, _| Reply::status(400).bytes(b"\x1b[31mred\x1b]0;title\x07 \xff"));
    let told_text = told(&document(&server).await.unwrap_err());
    assert!(
        told_text.ends_with("\\u{1b}[31mred\\u{1b}]0;title\\u{7} \u{fffd}"),
        "{told_text}"
    );

    let server = serve(|_, _, _| Reply::status(400).endless());
    let began = Instant::now();
    let told_text = told(&document(&server).await.unwrap_err());
    assert!(
        told_text.ends_with("xx…") && told_text.len() < 500,
        "{told_text}"
    );
    assert!(began.elapsed() < Duration::from_secs(2));

    // Not found is not found, whatever comes with it.
    let server = serve(|_, _, _| Reply::status(404).endless());
    let error = document(&server).await.unwrap_err();
    assert!(matches!(error, SourceError::ImageNotFound { .. }));
}

#[tokio::test]
async fn a_registry_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Its backlog takes connections and nobody answers.
    let timeouts = ironboot::source::registry::Timeouts {
        connect: Duration::from_millis(100),
        read: Duration::from_millis(100),
        ..Default::default()
    };
    let ironboot::oci::Reference::Registry(image) = format!("{address}/os:1").parse().unwrap()
    else {
        panic!("{address} is no registry");
    };
    let options = SourceOptions::default();
    let source =
        ironboot::source::registry::Registry::open_with_timeouts(image, &options, timeouts);
    let error = source
        .unwrap()
        .document(Wanted::Reference)
        .await
        .unwrap_err();
    assert!(
        matches!(
            error,
            SourceError::Unavailable {
                cause: Unavailability::Timeout,
                ..
            }
        ),
        "{}",
        told(&error)
    );
}

/// The whole of it counts, not only the time between two bytes.
#[tokio::test]
async fn a_document_that_comes_in_drops_is_given_up() {
    let server = serve(|_, _, _| Reply::status(200).dripped(INDEX, Duration::from_millis(100)));
    let timeouts = ironboot::source::registry::Timeouts {
        document: Duration::from_millis(500),
        ..Default::default()
    };
    let source = crate::open_with(&server.address(), ":1", &SourceOptions::default(), timeouts);
    let began = Instant::now();
    let error = source.document(Wanted::Reference).await.unwrap_err();
    let expected = format!(
        "{} is not available: it takes longer than 0.5 s over a document",
        server.address()
    );
    assert_eq!(told(&error), expected);
    assert!(began.elapsed() < Duration::from_secs(2));
    assert_eq!(server.requests().len(), 1);
}

#[tokio::test]
async fn a_blob_that_comes_in_drops_is_given_up() {
    let blob = ironboot::oci::Descriptor::of("x/y", INDEX);
    let server = serve(|_, _, _| Reply::status(200).dripped(INDEX, Duration::from_millis(40)));
    let source = image(&server);
    let (_, bytes, result) = crate::read(&source, &blob, 0).await;
    let error = result.unwrap_err();
    assert!(!bytes.is_empty() && bytes.len() < INDEX.len());
    assert!(
        matches!(
            error,
            SourceError::Unavailable {
                cause: Unavailability::Slow { minimum: 1024 },
                ..
            }
        ),
        "{}",
        told(&error)
    );
}

#[tokio::test]
async fn a_redirect_keeps_the_range_and_drops_who_we_are() {
    let content = b"0123456789";
    let storage = Hostile::start(|_, _| {
        Reply::status(206)
            .header("Content-Range", "bytes 4-9/10")
            .bytes(&content[4..])
    });
    let to = format!("http://{}/storage", storage.address());
    let server = Hostile::start(move |request, _| match request.header("authorization") {
        None => Reply::status(401).header("WWW-Authenticate", "Basic realm=x"),
        Some(_) => Reply::status(307).header("Location", &to),
    });
    let options = crate::login(&server.address(), "me", "hunter2");
    let source = open(&server.address(), ":1", &options);
    let blob = ironboot::oci::Descriptor::of("x/y", content);
    let (offset, bytes, result) = crate::read(&source, &blob, 4).await;
    result.unwrap();
    assert_eq!((offset, bytes.as_slice()), (4, &content[4..]));
    let request = &storage.requests()[0];
    assert_eq!(request.header("range"), Some("bytes=4-"));
    assert_eq!(request.header("authorization"), None);
}
