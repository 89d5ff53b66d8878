use std::sync::{Arc, Mutex};

use ironboot::oci::Descriptor;
use ironboot::source::SourceError;
use ironboot::source::registry::{Registry, UploadEvent, Uploaded};

use crate::hostile::{Hostile, Reply, Request};
use crate::{content_of, image, serve, told};

const MIB: usize = 1 << 20;
/// Where the scripts want uploads.
const PLACE: &str = "/v2/os/blobs/uploads/1";

fn small() -> Vec<u8> {
    (0..3_000_000_u32).map(|n| (n % 251) as u8).collect()
}

/// More than is sent as one request.
fn large() -> Vec<u8> {
    small().repeat(6)
}

/// A server that begins every upload, and has `script` for what comes then.
fn serve_uploads(
    script: impl Fn(&str, &Request, usize) -> Reply + Send + Sync + 'static,
) -> Hostile {
    serve(move |path, request, before| match request.method.as_str() {
        "HEAD" => Reply::status(404),
        "POST" => Reply::status(202).header("Location", PLACE),
        method => script(&format!("{method} {path}"), request, before),
    })
}

/// Uploads `content`, and tells what was told.
async fn upload(
    registry: &Registry,
    content: &[u8],
    mount_from: Option<&str>,
) -> (Result<Uploaded, SourceError>, Vec<UploadEvent>) {
    let blob = Descriptor::of("x/y", content);
    let (_directory, layout) = content_of(&blob, content);
    let events = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&events);
    let tell = move |event| listener.lock().unwrap().push(event);
    let result = registry.upload_blob(&blob, &layout, mount_from, tell).await;
    let events = std::mem::take(&mut *events.lock().unwrap());
    (result, events)
}

/// What was asked of the server after its first page: method, path, Content-Range, bytes taken.
fn asked(server: &Hostile) -> Vec<(String, String, usize)> {
    let requests = server.requests().into_iter();
    requests
        .filter(|request| request.path != "/v2/")
        .map(|request| {
            let path = request.path.strip_prefix("/v2/os/blobs/").unwrap();
            let path = if path.starts_with("sha256:") {
                "blob"
            } else {
                path
            };
            let range = request.header("content-range").unwrap_or("").to_owned();
            (
                format!("{} {path}", request.method),
                range,
                request.body.len(),
            )
        })
        .collect()
}

fn is_broken(event: &UploadEvent) -> bool {
    matches!(event, UploadEvent::Broken(_))
}

#[track_caller]
fn check_asked(server: &Hostile, expected: &[(&str, &str, usize)]) {
    let expected: Vec<_> = expected
        .iter()
        .map(|(what, range, bytes)| ((*what).to_owned(), (*range).to_owned(), *bytes))
        .collect();
    assert_eq!(asked(server), expected);
}

#[tokio::test]
async fn a_small_blob_is_one_request_and_a_large_one_a_part_and_its_end() {
    let server = serve_uploads(|what, _, _| match what {
        "PATCH blobs/uploads/1" => Reply::status(202).header("Location", "2?state=x"),
        _ => Reply::status(201),
    });
    let (result, _) = upload(&image(&server), &small(), None).await;
    assert_eq!(result.unwrap(), Uploaded::Sent);
    let (result, events) = upload(&image(&server), &large(), None).await;
    assert_eq!(result.unwrap(), Uploaded::Sent);
    assert_eq!(events.last(), Some(&UploadEvent::Sent(18_000_000)));
    assert!(!events.iter().any(is_broken));
    check_asked(
        &server,
        &[
            ("POST uploads/", "", 0),
            ("PUT uploads/1", "", 3_000_000),
            ("POST uploads/", "", 0),
            ("PATCH uploads/1", "0-17999999", 18_000_000),
            ("PUT uploads/2", "", 0),
        ],
    );
    let requests = server.requests();
    let digest = Descriptor::of("x/y", &large()).digest.to_string();
    let digest = digest.replace(':', "%3A");
    assert_eq!(
        requests.last().unwrap().query,
        format!("state=x&digest={digest}")
    );
}

#[tokio::test]
async fn an_upload_that_breaks_goes_on_where_the_registry_has_got_to() {
    // The registry has put away less than has come; the address changes with what it has.
    let server = serve_uploads(|what, _, before| match (what, before) {
        ("PATCH blobs/uploads/1", 0) => Reply::broken_after(10 * MIB),
        ("GET blobs/uploads/1", _) => Reply::status(204)
            .header("Location", "/v2/os/blobs/uploads/2")
            .header("Range", &format!("0-{}", 8 * MIB - 1)),
        ("PATCH blobs/uploads/2", 0) => Reply::broken_after(4 * MIB),
        ("GET blobs/uploads/2", _) => {
            Reply::status(204).header("Range", &format!("bytes=0-{}", 12 * MIB - 1))
        }
        ("PATCH blobs/uploads/2", _) => Reply::status(202).header("Location", "3"),
        ("PUT blobs/uploads/3", _) => Reply::status(201),
        _ => Reply::status(400),
    });
    let (result, events) = upload(&image(&server), &large(), None).await;
    assert_eq!(result.unwrap(), Uploaded::Sent);
    assert_eq!(events.iter().filter(|event| is_broken(event)).count(), 2);
    assert_eq!(events.last(), Some(&UploadEvent::Sent(18_000_000)));
    check_asked(
        &server,
        &[
            ("POST uploads/", "", 0),
            ("PATCH uploads/1", "0-17999999", 10 * MIB),
            ("HEAD blob", "", 0),
            ("GET uploads/1", "", 0),
            ("PATCH uploads/2", "8388608-17999999", 4 * MIB),
            ("HEAD blob", "", 0),
            ("GET uploads/2", "", 0),
            (
                "PATCH uploads/2",
                "12582912-17999999",
                18_000_000 - 12 * MIB,
            ),
            ("PUT uploads/3", "", 0),
        ],
    );
    let bodies = server.requests();
    let bodies: Vec<&[u8]> = bodies
        .iter()
        .filter(|request| request.method == "PATCH")
        .map(|request| request.body.as_slice())
        .collect();
    let content = large();
    assert!(bodies[0] == &content[..10 * MIB]);
    assert!(bodies[1] == &content[8 * MIB..12 * MIB]);
    assert!(bodies[2] == &content[12 * MIB..]);
}

#[tokio::test]
async fn an_upload_that_the_registry_does_not_know_any_more_starts_over() {
    for forgotten in [
        || Reply::status(404),
        || Reply::status(204),
        || Reply::status(204).header("Range", "0-18000000"),
        || Reply::status(204).header("Range", "lots"),
    ] {
        let server = serve_uploads(move |what, _, before| match (what, before) {
            ("PATCH blobs/uploads/1", 0) => Reply::broken_after(MIB),
            ("GET blobs/uploads/1", _) => forgotten(),
            ("PATCH blobs/uploads/1", _) => Reply::status(202).header("Location", PLACE),
            _ => Reply::status(201),
        });
        let (result, _) = upload(&image(&server), &large(), None).await;
        assert_eq!(result.unwrap(), Uploaded::Sent);
        check_asked(
            &server,
            &[
                ("POST uploads/", "", 0),
                ("PATCH uploads/1", "0-17999999", MIB),
                ("HEAD blob", "", 0),
                ("GET uploads/1", "", 0),
                ("POST uploads/", "", 0),
                ("PATCH uploads/1", "0-17999999", 18_000_000),
                ("PUT uploads/1", "", 0),
            ],
        );
    }
}

#[tokio::test]
async fn a_small_blob_that_breaks_is_sent_again() {
    let server = serve_uploads(|what, _, before| match (what, before) {
        ("PUT blobs/uploads/1", 0) => Reply::broken_after(1000),
        ("PUT blobs/uploads/1", 1) => Reply::status(503),
        ("PUT blobs/uploads/1", _) => Reply::status(201),
        _ => Reply::status(400),
    });
    let (result, events) = upload(&image(&server), &small(), None).await;
    assert_eq!(result.unwrap(), Uploaded::Sent);
    assert_eq!(events.iter().filter(|event| is_broken(event)).count(), 2);
    assert!(server.requests().last().unwrap().body == small());
}

#[tokio::test]
async fn what_arrived_though_its_answer_did_not_is_not_sent_again() {
    let server = serve(|path, request, before| match request.method.as_str() {
        "HEAD" => Reply::status(200),
        "POST" => Reply::status(202).header("Location", PLACE),
        "PUT" if before == 0 => Reply::broken_after(3_000_000),
        _ => panic!("{} {path}", request.method),
    });
    let (result, _) = upload(&image(&server), &small(), None).await;
    assert_eq!(result.unwrap(), Uploaded::Sent);
    check_asked(
        &server,
        &[
            ("POST uploads/", "", 0),
            ("PUT uploads/1", "", 3_000_000),
            ("HEAD blob", "", 0),
        ],
    );
}

#[tokio::test]
async fn an_upload_that_never_gets_further_is_given_up() {
    let server = serve_uploads(|what, _, _| match what {
        "PATCH blobs/uploads/1" => Reply::broken_after(MIB),
        "GET blobs/uploads/1" => Reply::status(204).header("Range", "0-0"),
        _ => Reply::status(400),
    });
    let (result, _) = upload(&image(&server), &large(), None).await;
    let error = result.unwrap_err();
    assert!(matches!(error, SourceError::Unavailable { .. }), "{error}");
    let patches = asked(&server);
    let patches = patches
        .iter()
        .filter(|(what, ..)| what.starts_with("PATCH"));
    assert_eq!(patches.count(), 4);
}

#[tokio::test]
async fn an_upload_may_take_longer_than_an_answer() {
    let server = serve_uploads(|_, _, _| Reply::status(201).taking_slowly(2_000_000));
    let (result, events) = upload(&image(&server), &small(), None).await;
    assert_eq!(result.unwrap(), Uploaded::Sent);
    assert!(!events.iter().any(is_broken), "{events:?}");
}

#[tokio::test]
async fn a_registry_that_takes_nothing_any_more_is_not_waited_for_forever() {
    let server = serve_uploads(|what, _, _| match what {
        "PATCH blobs/uploads/1" => Reply::status(202).taking_slowly(20),
        _ => Reply::status(404),
    });
    let (result, _) = upload(&image(&server), &large(), None).await;
    let expected = format!(
        "{} is not available: it does not answer in time",
        server.address()
    );
    assert_eq!(told(&result.unwrap_err()), expected);
}

#[tokio::test]
async fn what_the_registry_refuses_is_not_sent_again() {
    let server = serve_uploads(|_, _, _| Reply::status(413).bytes(b"too large for us"));
    for content in [small(), large()] {
        let (result, _) = upload(&image(&server), &content, None).await;
        let error = result.unwrap_err();
        assert!(
            matches!(&error, SourceError::Rejected { status: 413, words, .. }
                if words == "too large for us"),
            "{error}"
        );
    }
    assert_eq!(server.count(PLACE), 2);
}

#[tokio::test]
async fn a_blob_is_mounted_or_else_sent() {
    let mounts = |reply: fn() -> Reply| {
        serve(move |path, request, _| match request.method.as_str() {
            "POST" if request.query.contains("mount=") => reply(),
            "POST" => Reply::status(202).header("Location", PLACE),
            "PUT" => Reply::status(201),
            method => panic!("{method} {path}"),
        })
    };
    let server = mounts(|| Reply::status(201).header("Location", "/v2/os/blobs/x"));
    let (result, events) = upload(&image(&server), b"content", Some("team/base")).await;
    assert_eq!(result.unwrap(), Uploaded::Mounted);
    assert_eq!(events, []);
    let digest = Descriptor::of("x/y", b"content").digest;
    let query = format!("mount={digest}&from=team/base");
    let query = query.replace(':', "%3A").replace('/', "%2F");
    assert_eq!(server.requests().last().unwrap().query, query);

    // The upload that was begun instead is used.
    let server = mounts(|| Reply::status(202).header("Location", PLACE));
    let (result, _) = upload(&image(&server), b"content", Some("base")).await;
    assert_eq!(result.unwrap(), Uploaded::Sent);
    check_asked(
        &server,
        &[("POST uploads/", "", 0), ("PUT uploads/1", "", 7)],
    );

    // Another repository may be closed to us though this one is open.
    for refusal in [403, 404, 405] {
        let server = match refusal {
            403 => mounts(|| Reply::status(403)),
            404 => mounts(|| Reply::status(404)),
            _ => mounts(|| Reply::status(405)),
        };
        let (result, _) = upload(&image(&server), b"content", Some("base")).await;
        assert_eq!(result.unwrap(), Uploaded::Sent, "{refusal}");
    }
}

#[tokio::test]
async fn content_that_is_not_there_is_no_fault_of_the_registry() {
    let server = serve_uploads(|_, _, _| Reply::status(201));
    let blob = Descriptor::of("x/y", b"missing");
    let (_directory, layout) = content_of(&Descriptor::of("x/y", b"other"), b"other");
    let registry = image(&server);
    let error = registry.upload_blob(&blob, &layout, None, |_| {}).await;
    let error = error.unwrap_err();
    assert!(matches!(error, SourceError::BlobNotFound { .. }), "{error}");
    let (_directory, layout) = content_of(&blob, b"short");
    let error = registry.upload_blob(&blob, &layout, None, |_| {}).await;
    let error = error.unwrap_err();
    assert!(matches!(error, SourceError::SizeMismatch { .. }), "{error}");
}
