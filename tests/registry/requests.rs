use ironboot::oci::Digest;
use ironboot::source::{Source, SourceError, SourceOptions, TlsPolicy, Wanted};

use crate::hostile::{Hostile, Reply, Request};
use crate::registry::{Access, DockerRegistry};
use crate::{INDEX, open, serve, told};

/// Methods and paths, in the order in which they came.
fn asked(server: &Hostile) -> Vec<String> {
    let requests = server.requests();
    let words = requests.iter();
    words.map(|r| format!("{} {}", r.method, r.path)).collect()
}

fn index(_: &str, _: &Request, _: usize) -> Reply {
    Reply::ok(INDEX).header("Docker-Content-Digest", &Digest::of(INDEX).to_string())
}

#[tokio::test]
async fn what_a_tag_leads_to_takes_one_request() {
    let server = serve(index);
    let source = open(&server.address(), ":1", &SourceOptions::default());
    assert_eq!(source.current().await.unwrap(), Some(Digest::of(INDEX)));
    assert_eq!(asked(&server), ["HEAD /v2/os/manifests/1"]);

    let server = serve(index);
    let source = open(&server.address(), ":1", &SourceOptions::default());
    source.document(Wanted::Reference).await.unwrap();
    assert_eq!(asked(&server), ["GET /v2/os/manifests/1"]);

    let digest = Digest::of(INDEX);
    let server = serve(index);
    let rest = format!("@{digest}");
    let source = open(&server.address(), &rest, &SourceOptions::default());
    assert_eq!(source.current().await.unwrap(), Some(digest));
    assert_eq!(asked(&server), [""; 0]);
}

#[tokio::test]
async fn a_token_takes_two_more() {
    let server = Hostile::start(|request, before| {
        let realm = format!("http://{}/token", request.header("host").unwrap());
        match (request.path.as_str(), request.header("authorization")) {
            ("/token", None) => Reply::ok(br#"{"token":"abc"}"#),
            (_, Some("Bearer abc")) => index("", request, before),
            _ => Reply::status(401)
                .header("WWW-Authenticate", &format!("Bearer realm=\"{realm}\""))
                .bytes(b"{}"),
        }
    });
    let source = open(&server.address(), ":1", &SourceOptions::default());
    assert_eq!(source.current().await.unwrap(), Some(Digest::of(INDEX)));
    source.document(Wanted::Reference).await.unwrap();
    assert_eq!(
        asked(&server),
        [
            "HEAD /v2/os/manifests/1",
            "GET /token",
            "HEAD /v2/os/manifests/1",
            "GET /v2/os/manifests/1",
        ]
    );
}

/// A registry of this machine is spoken to plainly at first; one that knows TLS only is found all
/// the same, and its fault is told and not that of the plain request.
#[tokio::test]
async fn a_registry_of_this_machine_that_speaks_tls_only_is_found() {
    let server = DockerRegistry::start(Access::SelfSigned);
    for (tls, expected) in [
        (
            TlsPolicy::Verify,
            "cannot be trusted: invalid peer certificate: UnknownIssuer",
        ),
        (TlsPolicy::Insecure, "no such image"),
    ] {
        let options = SourceOptions {
            tls,
            ..SourceOptions::default()
        };
        let source = open(server.address(), ":1", &options);
        for error in [
            source.current().await.unwrap_err(),
            source.document(Wanted::Reference).await.unwrap_err(),
        ] {
            assert!(told(&error).contains(expected), "{}", told(&error));
        }
    }
}

#[tokio::test]
async fn a_plain_registry_may_say_400_and_mean_it() {
    let server = serve(|_, _, _| Reply::status(400).bytes(b"no"));
    let source = open(&server.address(), ":1", &SourceOptions::default());
    let error = source.document(Wanted::Reference).await.unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
    assert!(told(&error).ends_with("unexpected status 400: no"));
    assert_eq!(asked(&server), ["GET /v2/os/manifests/1"]);
}
