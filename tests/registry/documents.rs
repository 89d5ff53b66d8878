use ironboot::oci::manifest::{IRONCORE_ARTIFACTS, MAX_DOCUMENT_BYTES, OCI_INDEX, OCI_MANIFEST};
use ironboot::oci::{Descriptor, Digest};
use ironboot::source::{RawDocument, Source, SourceError, SourceOptions, Violation, Wanted};

use crate::hostile::Reply;
use crate::{INDEX, image, open, serve, told};

#[tokio::test]
async fn a_tag_leads_to_a_document_and_its_digest() {
    let server = serve(|path, _, _| match path {
        "manifests/1" => Reply::ok(INDEX)
            .header("Content-Type", OCI_INDEX)
            .header("Docker-Content-Digest", &Digest::of(INDEX).to_string()),
        _ => Reply::status(404),
    });
    let document = image(&server).document(Wanted::Reference).await.unwrap();
    let expected = RawDocument {
        bytes: INDEX.to_vec(),
        digest: Digest::of(INDEX),
        media_type: Some(OCI_INDEX.to_owned()),
    };
    assert_eq!(document, expected);
    let request = &server.requests()[0];
    let accept = request.header("accept").unwrap();
    assert!(accept.contains(OCI_INDEX) && accept.contains(IRONCORE_ARTIFACTS));
    assert_eq!(request.header("accept-encoding"), Some("identity"));
    assert_eq!(request.header("authorization"), None);
}

#[tokio::test]
async fn a_digest_decides_and_the_tag_beside_it_is_not_sent() {
    let server = serve(|path, _, _| match path {
        path if path.starts_with("manifests/sha256:") => Reply::ok(INDEX),
        _ => Reply::status(404),
    });
    let digest = Digest::of(INDEX);
    let image = open(
        &server.address(),
        &format!(":1@{digest}"),
        &SourceOptions::default(),
    );
    let document = image.document(Wanted::Reference).await.unwrap();
    assert_eq!((document.digest, document.media_type), (digest, None));
    assert_eq!(server.count("/v2/os/manifests/1"), 0);
}

#[tokio::test]
async fn content_that_is_not_of_the_digest_that_was_asked_for_is_refused() {
    let server = serve(|_, _, _| Reply::ok(b"{}"));
    for expected in [
        Digest::of(INDEX),
        format!("sha512:{}", "0".repeat(128)).parse().unwrap(),
    ] {
        let rest = format!("@{expected}");
        let image = open(&server.address(), &rest, &SourceOptions::default());
        let error = image.document(Wanted::Reference).await.unwrap_err();
        assert!(
            matches!(&error, SourceError::DigestMismatch { expected: e, actual, .. }
                if **e == expected && **actual != expected),
            "{error}"
        );
        assert!(!error.is_retryable());
    }
}

/// What comes of a document by tag whose registry says that it has this digest.
async fn claimed(digest: String) -> Result<RawDocument, SourceError> {
    let server = serve(move |_, _, _| Reply::ok(INDEX).header("Docker-Content-Digest", &digest));
    image(&server).document(Wanted::Reference).await
}

#[tokio::test]
async fn a_digest_header_is_checked_if_it_can_be_and_never_trusted() {
    use sha2::Digest as _;
    let sha512 = sha2::Sha512::digest(INDEX);
    let sha512: String = sha512.iter().map(|byte| format!("{byte:02x}")).collect();
    for good in [
        Digest::of(INDEX).to_string(),
        format!("sha512:{sha512}"),
        "md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
        "nonsense".to_owned(),
    ] {
        let document = claimed(good.clone()).await.unwrap();
        assert_eq!(document.digest, Digest::of(INDEX), "{good}");
    }
    for lie in [
        Digest::of(b"other").to_string(),
        format!("sha512:{}", "0".repeat(128)),
    ] {
        let error = claimed(lie.clone()).await.unwrap_err();
        assert!(
            matches!(error, SourceError::DigestMismatch { .. }),
            "{lie}: {error}"
        );
    }
}

#[tokio::test]
async fn a_document_ends_at_the_limit_however_it_comes() {
    let huge = vec![b' '; usize::try_from(MAX_DOCUMENT_BYTES).unwrap() + 1];
    let announced = huge.len();
    for (what, reply) in [
        ("endless", Reply::status(200).endless()),
        ("one byte too long", Reply::status(200).chunked(&huge)),
        (
            "announced as too long",
            Reply::status(200).cut(b"", announced),
        ),
    ] {
        let server = serve(move |_, _, _| reply.clone());
        let error = image(&server)
            .document(Wanted::Reference)
            .await
            .unwrap_err();
        assert!(
            matches!(error, SourceError::TooLarge { limit, .. } if limit == MAX_DOCUMENT_BYTES),
            "{what}: {error}"
        );
        assert_eq!(server.count("/v2/os/manifests/1"), 1, "{what}");
    }
}

#[tokio::test]
async fn an_entry_ends_at_its_own_size() {
    let server = serve(|_, _, _| Reply::status(200).chunked(INDEX));
    let entry = |size| Descriptor {
        size,
        ..Descriptor::of(OCI_INDEX, INDEX)
    };
    let size = INDEX.len() as u64;
    let source = image(&server);
    let right = entry(size);
    assert!(source.document(Wanted::Entry(&right)).await.is_ok());
    let small = entry(size - 1);
    let error = source.document(Wanted::Entry(&small)).await.unwrap_err();
    assert!(matches!(error, SourceError::TooLarge { limit, .. } if limit == size - 1));
    let large = entry(size + 1);
    let error = source.document(Wanted::Entry(&large)).await.unwrap_err();
    assert!(matches!(error, SourceError::SizeMismatch { .. }), "{error}");
    // Not even asked for.
    let requests = server.requests().len();
    for size in [MAX_DOCUMENT_BYTES + 1, u64::MAX] {
        let huge = entry(size);
        let error = source.document(Wanted::Entry(&huge)).await.unwrap_err();
        assert!(matches!(error, SourceError::TooLarge { .. }), "{error}");
    }
    assert_eq!(server.requests().len(), requests);
}

#[tokio::test]
async fn an_entry_is_looked_for_among_the_blobs_too() {
    // 404 is the specification's answer; 500 is what a common registry says of a blob that it
    // is asked for as a manifest.
    for status in [404, 500] {
        let server = serve(move |path, _, _| match path {
            path if path.starts_with("blobs/") => {
                Reply::ok(INDEX).header("Content-Type", "application/octet-stream")
            }
            _ => Reply::status(status),
        });
        let entry = Descriptor::of(IRONCORE_ARTIFACTS, INDEX);
        let document = image(&server).document(Wanted::Entry(&entry)).await;
        let document = document.unwrap();
        assert_eq!(document.bytes, INDEX);
        assert_eq!(document.media_type.as_deref(), Some(IRONCORE_ARTIFACTS));
    }
}

#[tokio::test]
async fn what_is_nowhere_is_not_found() {
    let server = serve(|_, _, _| Reply::status(404));
    let image = image(&server);
    let error = image.document(Wanted::Reference).await.unwrap_err();
    let expected = format!("no such image: {}/os:1", server.address());
    assert_eq!(error.to_string(), expected);
    let entry = Descriptor::of(OCI_MANIFEST, INDEX);
    let error = image.document(Wanted::Entry(&entry)).await.unwrap_err();
    let expected = format!("{}/os:1 has no {}", server.address(), entry.digest);
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn a_content_type_is_passed_on_for_the_parser_to_judge() {
    let server = serve(|_, _, _| Reply::ok(INDEX).header("Content-Type", "text/html; x=y"));
    let document = image(&server).document(Wanted::Reference).await.unwrap();
    assert_eq!(document.media_type.as_deref(), Some("text/html"));
}

#[tokio::test]
async fn answers_that_no_document_has_are_refused() {
    for (reply, expected) in [
        (Reply::status(206).bytes(INDEX), Violation::UnaskedPart),
        (
            Reply::ok(INDEX).header("Content-Encoding", "gzip"),
            Violation::Encoded("gzip".to_owned()),
        ),
        (
            Reply::status(418).bytes(b"teapot"),
            Violation::Status {
                status: 418,
                words: "teapot".to_owned(),
            },
        ),
    ] {
        let server = serve(move |_, _, _| reply.clone());
        let error = image(&server)
            .document(Wanted::Reference)
            .await
            .unwrap_err();
        assert!(
            matches!(&error, SourceError::Protocol { violation, .. } if *violation == expected),
            "{}",
            told(&error)
        );
    }
}

#[tokio::test]
async fn a_document_that_breaks_off_is_fetched_again() {
    let server = serve(|_, _, before| match before {
        0 => Reply::status(200).cut(&INDEX[..10], INDEX.len()),
        _ => Reply::ok(INDEX),
    });
    let document = image(&server).document(Wanted::Reference).await.unwrap();
    assert_eq!(document.bytes, INDEX);
}
