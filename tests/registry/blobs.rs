use ironboot::oci::Descriptor;
use ironboot::source::{SourceError, Unavailability, Violation};

use crate::hostile::{Hostile, Reply};
use crate::{image, read, serve, told};

fn content() -> Vec<u8> {
    (0..300_000_u32).map(|n| (n % 251) as u8).collect()
}

fn blob() -> Descriptor {
    Descriptor::of("x/y", &content())
}

/// A server that answers every blob with `reply`.
fn answering(reply: Reply) -> Hostile {
    serve(move |_, _, _| reply.clone())
}

#[tokio::test]
async fn a_blob_comes_whole_or_from_an_offset() {
    let server = serve(|_, request, _| match request.header("range") {
        None => Reply::ok(&content()),
        Some("bytes=5000-") => Reply::status(206)
            .header("Content-Range", "bytes 5000-299999/300000")
            .bytes(&content()[5000..]),
        Some(range) => panic!("{range}"),
    });
    let source = image(&server);
    let (offset, bytes, result) = read(&source, &blob(), 0).await;
    result.unwrap();
    assert_eq!((offset, bytes), (0, content()));
    let (offset, bytes, result) = read(&source, &blob(), 5000).await;
    result.unwrap();
    assert_eq!((offset, bytes), (5000, content()[5000..].to_vec()));
}

/// N13.
#[tokio::test]
async fn a_sender_that_cannot_resume_starts_at_the_beginning() {
    let server = answering(Reply::ok(&content()));
    let (offset, bytes, result) = read(&image(&server), &blob(), 5000).await;
    result.unwrap();
    assert_eq!((offset, bytes), (0, content()));
}

/// N13.
#[tokio::test]
async fn a_part_that_was_not_asked_for_is_refused() {
    let part = |range: &str| {
        Reply::status(206)
            .header("Content-Range", range)
            .bytes(&content()[..10])
    };
    let server = answering(part("bytes 0-299999/300000"));
    let (_, bytes, result) = read(&image(&server), &blob(), 0).await;
    let error = result.unwrap_err();
    assert!(bytes.is_empty());
    assert!(matches!(
        error,
        SourceError::Protocol {
            violation: Violation::UnaskedPart,
            ..
        }
    ));
    for range in [
        "bytes 0-294999/300000",
        "bytes 5000-5009/10",
        "bytes 5000-999999/300000",
        "nonsense",
    ] {
        let server = answering(part(range));
        let (_, bytes, result) = read(&image(&server), &blob(), 5000).await;
        let error = result.unwrap_err();
        assert!(bytes.is_empty());
        assert!(
            matches!(&error, SourceError::Protocol { violation: Violation::WrongPart { offset: 5000, got, .. }, .. }
                if got == range),
            "{range}: {}",
            told(&error)
        );
    }
}

#[tokio::test]
async fn a_blob_that_is_announced_with_another_size_is_not_even_begun() {
    for announced in [10, 299_999, 300_001, 200_000_000] {
        let server = answering(Reply::status(200).cut(b"x", announced));
        let (_, bytes, result) = read(&image(&server), &blob(), 0).await;
        let error = result.unwrap_err();
        assert!(bytes.is_empty());
        assert!(
            matches!(error, SourceError::SizeMismatch { expected: 300_000, actual, .. }
                if actual == announced as u64),
            "{announced}: {error}"
        );
    }
}

#[tokio::test]
async fn a_blob_ends_at_its_size_however_much_comes() {
    let one_more = [content(), vec![0]].concat();
    for reply in [
        Reply::status(200).chunked(&one_more),
        Reply::status(200).endless(),
    ] {
        let server = answering(reply);
        let (_, bytes, result) = read(&image(&server), &blob(), 0).await;
        let error = result.unwrap_err();
        assert!(bytes.len() <= 300_000);
        assert!(
            matches!(error, SourceError::TooLarge { limit: 300_000, .. }),
            "{error}"
        );
        assert!(!error.is_retryable());
    }
    let small = Descriptor { size: 10, ..blob() };
    let server = answering(Reply::status(200).endless());
    let (_, bytes, result) = read(&image(&server), &small, 0).await;
    assert!(bytes.is_empty() && matches!(result, Err(SourceError::TooLarge { .. })));
}

#[tokio::test]
async fn a_blob_that_is_shorter_without_saying_so_just_ends() {
    let server = answering(Reply::status(200).chunked(&content()[..1000]));
    let (_, bytes, result) = read(&image(&server), &blob(), 0).await;
    result.unwrap();
    assert_eq!(bytes, content()[..1000]);
}

#[tokio::test]
async fn a_blob_that_breaks_off_can_be_resumed_by_whoever_reads_it() {
    let server = answering(Reply::status(200).cut(&content()[..100_000], 300_000));
    let (_, bytes, result) = read(&image(&server), &blob(), 0).await;
    let error = result.unwrap_err();
    assert_eq!(bytes, content()[..100_000]);
    assert!(error.is_retryable(), "{}", told(&error));
    // Not tried again behind the reader's back.
    let path = format!("/v2/os/blobs/{}", blob().digest);
    assert_eq!(server.count(&path), 1);
}

#[tokio::test]
async fn a_blob_that_stalls_is_given_up() {
    let server = answering(Reply::status(200).stalled(&content()[..1000], 300_000));
    let (_, bytes, result) = read(&image(&server), &blob(), 0).await;
    let error = result.unwrap_err();
    assert_eq!(bytes, content()[..1000]);
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
    assert!(error.is_retryable());
}

#[tokio::test]
async fn a_blob_that_is_packed_is_refused() {
    for encoding in ["gzip", "deflate", "br", "zstd", "identity, gzip"] {
        let reply = Reply::ok(&content()).header("Content-Encoding", encoding);
        let server = answering(reply);
        let (_, bytes, result) = read(&image(&server), &blob(), 0).await;
        let error = result.unwrap_err();
        assert!(bytes.is_empty());
        assert!(
            matches!(
                error,
                SourceError::Protocol {
                    violation: Violation::Encoded(_),
                    ..
                }
            ),
            "{encoding}"
        );
    }
}

#[tokio::test]
async fn an_empty_blob_is_read_as_one() {
    let server = answering(Reply::ok(b""));
    let empty = Descriptor::of("x/y", b"");
    let (_, bytes, result) = read(&image(&server), &empty, 0).await;
    result.unwrap();
    assert!(bytes.is_empty());
}

#[tokio::test]
async fn a_blob_that_is_missing_is_named() {
    let server = answering(Reply::status(404));
    let (_, _, result) = read(&image(&server), &blob(), 0).await;
    let expected = format!("{}/os:1 has no {}", server.address(), blob().digest);
    assert_eq!(result.unwrap_err().to_string(), expected);
}

#[tokio::test]
async fn a_part_longer_than_any_number_is_refused() {
    let content = content();
    let size = content.len();
    let server = serve(move |_, _, _| {
        Reply::status(206)
            .header("Content-Range", &format!("bytes 5-{}/{size}", size - 1))
            .cut(b"x", usize::MAX - 2)
    });
    let (_, bytes, result) = read(&image(&server), &blob(), 5).await;
    let error = result.unwrap_err();
    assert!(matches!(error, SourceError::SizeMismatch { .. }), "{error}");
    assert_eq!(bytes, b"");
}
