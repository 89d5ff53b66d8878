use std::sync::Arc;

use ironboot::oci::Descriptor;
use ironboot::source::{
    AddressRefusal, RawDocument, Source, SourceError, SourceOptions, Violation, Wanted,
};

use crate::hostile::{Hostile, Reply, Request};
use crate::{INDEX, login, open, read, told};

const PASSWORD: &str = "hunter2";

/// A registry that wants a bearer token from `realm`; `/token` answers with `token`, and what
/// carries `accepted` is let in.
fn bearer(realm: &str, token: Reply, accepted: &str) -> Hostile {
    let (realm, accepted) = (realm.to_owned(), format!("Bearer {accepted}"));
    Hostile::start(move |request, _| {
        let host = request.header("host").unwrap();
        let realm = realm.replace("SELF", host);
        match request.path.as_str() {
            "/token" => token.clone(),
            _ if request.header("authorization") == Some(&accepted) => content(request),
            _ => Reply::status(401).header(
                "WWW-Authenticate",
                &format!(
                    r#"Bearer realm="{realm}",service="registry & co",scope="repository:other:*""#
                ),
            ),
        }
    })
}

fn content(request: &Request) -> Reply {
    match request.path.as_str() {
        "/v2/os/manifests/1" => Reply::ok(INDEX),
        path if path.starts_with("/v2/os/blobs/") => Reply::ok(b"blob"),
        _ => Reply::status(404),
    }
}

fn token(token: &str) -> Reply {
    Reply::ok(format!(r#"{{"token":"{token}","expires_in":60}}"#).as_bytes())
}

async fn document(server: &Hostile, options: &SourceOptions) -> Result<RawDocument, SourceError> {
    let source = open(&server.address(), ":1", options);
    source.document(Wanted::Reference).await
}

fn me(server: &Hostile) -> SourceOptions {
    login(&server.address(), "me", PASSWORD)
}

/// Requests that carried a credential.
fn authorized(server: &Hostile) -> Vec<Request> {
    let mut requests = server.requests();
    requests.retain(|request| request.header("authorization").is_some());
    requests
}

#[tokio::test]
async fn a_token_is_asked_for_once_with_a_scope_of_our_own() {
    let server = bearer("http://SELF/token", token("abc"), "abc");
    let source = Arc::new(open(&server.address(), ":1", &me(&server)));
    let blob = Descriptor::of("x/y", b"blob");
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let (source, blob) = (Arc::clone(&source), blob.clone());
            tokio::spawn(async move { read(&*source, &blob, 0).await.2 })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap().unwrap();
    }
    // One goes ahead and is told what to ask for, however many there are.
    assert_eq!(server.count("/token"), 1);
    assert_eq!(server.requests().len(), 1 + 1 + 8);
    let requests = server.requests();
    let request = requests.iter().find(|r| r.path == "/token").unwrap();
    assert_eq!(
        request.query,
        "service=registry+%26+co&scope=repository%3Aos%3Apull"
    );
    assert_eq!(
        request.header("authorization"),
        Some("Basic bWU6aHVudGVyMg==")
    );
    // The registry itself never sees the password.
    let seen = authorized(&server).into_iter();
    let mut seen = seen.filter(|request| request.path != "/token");
    assert!(seen.all(|request| request.header("authorization") == Some("Bearer abc")));
}

#[tokio::test]
async fn whoever_a_redirect_leads_to_asks_for_a_password_in_vain() {
    for status in [401, 403] {
        let thief = Hostile::start(move |request, _| {
            let realm = format!("http://{}/steal", request.header("host").unwrap());
            match request.path.as_str() {
                "/steal" => token("abc"),
                _ => Reply::status(status)
                    .header("WWW-Authenticate", &format!(r#"Bearer realm="{realm}""#))
                    .header("WWW-Authenticate", r#"Basic realm="x""#),
            }
        });
        let target = format!("http://{}/blob", thief.address());
        let server = crate::serve(move |_, _, _| Reply::status(307).header("Location", &target));
        let source = open(&server.address(), ":1", &me(&server));
        let error = source
            .blob(&Descriptor::of("x/y", b"blob"), 0)
            .await
            .unwrap_err();
        assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
        assert_eq!(authorized(&thief), [], "{status}");
        assert_eq!(thief.count("/steal"), 0, "{status}");
    }
}

#[tokio::test]
async fn who_writes_asks_for_leave_to_mount_as_well() {
    let server = bearer("http://SELF/token", token("abc"), "abc");
    let registry = open(&server.address(), ":1", &me(&server));
    let neighbours = vec!["team/base".to_owned(), "other".to_owned()];
    registry.will_mount_from(neighbours).unwrap();
    registry
        .has_blob(&Descriptor::of("x/y", b"blob").digest)
        .await
        .unwrap();
    let requests = server.requests();
    let request = requests.iter().find(|r| r.path == "/token").unwrap();
    let scopes: Vec<_> = request
        .query
        .split('&')
        .filter(|part| part.starts_with("scope"))
        .collect();
    assert_eq!(
        scopes,
        [
            "scope=repository%3Aos%3Apull%2Cpush",
            "scope=repository%3Ateam%2Fbase%3Apull",
            "scope=repository%3Aother%3Apull",
        ]
    );
}

#[tokio::test]
async fn without_credentials_a_token_is_asked_for_anonymously() {
    let server = bearer("http://SELF/token", token("abc"), "abc");
    let options = SourceOptions::default();
    assert!(document(&server, &options).await.is_ok());
    let requests = server.requests();
    let request = requests.iter().find(|r| r.path == "/token").unwrap();
    assert_eq!(request.header("authorization"), None);
}

#[tokio::test]
async fn a_realm_that_must_not_get_a_password_gets_nothing() {
    for (realm, expected) in [
        ("http://auth.example/token", AddressRefusal::PlainHttp),
        ("http://169.254.169.254/token", AddressRefusal::LinkLocal),
        ("https://[fe80::1]/token", AddressRefusal::LinkLocal),
        ("file:///etc/passwd", AddressRefusal::Scheme),
        ("/token", AddressRefusal::NoAddress),
    ] {
        let server = bearer(realm, token("abc"), "abc");
        let error = document(&server, &me(&server)).await.unwrap_err();
        assert!(
            matches!(&error, SourceError::RealmRefused { realm: r, reason, .. }
                if r == realm && *reason == expected),
            "{realm}: {}",
            told(&error)
        );
        assert_eq!(authorized(&server), []);
        assert_eq!(server.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_realm_that_changes_is_checked_each_time() {
    // Harmless when it is first asked, hostile when the token has run out.
    let evil = Hostile::start(|_, _| token("stolen"));
    let server = Hostile::start(|request, before| match (request.path.as_str(), before) {
        ("/token", _) => token("abc"),
        (_, 0) => Reply::status(401).header(
            "WWW-Authenticate",
            &format!(
                r#"Bearer realm="http://{}/token""#,
                request.header("host").unwrap()
            ),
        ),
        _ => Reply::status(401).header(
            "WWW-Authenticate",
            r#"Bearer realm="http://auth.example/token""#,
        ),
    });
    let error = document(&server, &me(&server)).await.unwrap_err();
    assert!(
        matches!(error, SourceError::RealmRefused { .. }),
        "{}",
        told(&error)
    );
    assert_eq!(evil.requests(), []);
}

#[tokio::test]
async fn a_token_that_has_run_out_is_renewed_once() {
    let server = Hostile::start(|request, before| {
        let challenge = format!(
            r#"Bearer realm="http://{}/token""#,
            request.header("host").unwrap()
        );
        let refused = Reply::status(401).header("WWW-Authenticate", &challenge);
        match (request.path.as_str(), request.header("authorization")) {
            ("/token", _) => token(&format!("number{before}")),
            (_, Some("Bearer number1")) => content(request),
            _ => refused,
        }
    });
    let source = open(&server.address(), ":1", &SourceOptions::default());
    assert!(source.document(Wanted::Reference).await.is_ok());
    assert!(source.document(Wanted::Reference).await.is_ok());
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn a_401_for_ever_ends_after_two() {
    let server = Hostile::start(|request, before| match request.path.as_str() {
        "/token" => token(&format!("number{before}")),
        _ => Reply::status(401).header(
            "WWW-Authenticate",
            &format!(
                r#"Bearer realm="http://{}/token""#,
                request.header("host").unwrap()
            ),
        ),
    });
    let error = document(&server, &me(&server)).await.unwrap_err();
    let expected = format!("{} refuses user me to os: Unauthorized", server.address());
    assert_eq!(error.to_string(), expected);
    assert!(!error.is_retryable());
    // Once without a token, and with two.
    assert_eq!(server.count("/v2/os/manifests/1"), 3);
    assert_eq!(server.count("/token"), 2);
}

#[tokio::test]
async fn a_registry_that_asks_only_for_what_is_private_is_answered_too() {
    let server = Hostile::start(|request, _| {
        let host = request.header("host").unwrap();
        match (request.path.as_str(), request.header("authorization")) {
            ("/v2/os/manifests/1", None) => Reply::ok(INDEX),
            ("/token", _) => token("abc"),
            (_, Some("Bearer abc")) => content(request),
            _ => Reply::status(401).header(
                "WWW-Authenticate",
                &format!(r#"Bearer realm="http://{host}/token""#),
            ),
        }
    });
    let source = open(&server.address(), ":1", &me(&server));
    assert!(source.document(Wanted::Reference).await.is_ok());
    let (_, bytes, result) = read(&source, &Descriptor::of("x/y", b"blob"), 0).await;
    result.unwrap();
    assert_eq!(bytes, b"blob");
}

#[tokio::test]
async fn what_cannot_be_a_token_is_none() {
    for (reply, expected) in [
        (token("a\\u0000b"), "it has characters that no token has"),
        (
            token("a\\r\\nX-Injected: 1"),
            "it has characters that no token has",
        ),
        (Reply::ok(b"{}"), "there is none"),
        (Reply::ok(b"<html>"), "the answer is not JSON"),
    ] {
        let server = bearer("http://SELF/token", reply, "abc");
        let error = document(&server, &me(&server)).await.unwrap_err();
        assert!(
            matches!(&error, SourceError::Protocol { violation: Violation::Token(problem), .. }
                if *problem == expected),
            "{}",
            told(&error)
        );
        assert_eq!(server.count("/v2/os/manifests/1"), 1);
    }
    let server = bearer("http://SELF/token", Reply::status(200).endless(), "abc");
    let error = document(&server, &me(&server)).await.unwrap_err();
    assert!(
        matches!(
            error,
            SourceError::TooLarge {
                limit: 1_048_576,
                ..
            }
        ),
        "{}",
        told(&error)
    );
}

#[tokio::test]
async fn wrong_credentials_are_refused_without_being_told() {
    let words =
        br#"{"errors":[{"code":"UNAUTHORIZED","message":"incorrect username or password"}]}"#;
    let server = bearer("http://SELF/token", Reply::status(401).bytes(words), "abc");
    let error = document(&server, &me(&server)).await.unwrap_err();
    let expected = format!(
        "{} refuses user me to os: incorrect username or password",
        server.address()
    );
    assert_eq!(told(&error), expected);
    for secret in [PASSWORD, "bWU6aHVudGVyMg"] {
        assert!(!format!("{error:?} {}", told(&error)).contains(secret));
    }
    let source = open(&server.address(), ":1", &me(&server));
    assert!(!format!("{source:?} {:?}", me(&server)).contains(PASSWORD));
}

#[tokio::test]
async fn forbidden_is_refused_too() {
    let server = crate::serve(|_, _, _| Reply::status(403).bytes(b"not for you"));
    let error = document(&server, &SourceOptions::default())
        .await
        .unwrap_err();
    let expected = format!(
        "{} refuses anonymous access to os: not for you",
        server.address()
    );
    assert_eq!(error.to_string(), expected);
}

#[tokio::test]
async fn an_unknown_challenge_is_named() {
    let server = Hostile::start(|_, _| {
        Reply::status(401).header("WWW-Authenticate", r#"Negotiate, Digest realm="x""#)
    });
    let error = document(&server, &me(&server)).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::Protocol { violation: Violation::Challenge(names), .. }
            if names == "Negotiate, Digest"),
        "{}",
        told(&error)
    );
    assert_eq!(authorized(&server), []);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_somebody_else() {
    let storage = Hostile::start(|_, _| Reply::ok(b"blob"));
    let to = format!("http://{}/storage", storage.address());
    let server = Hostile::start(move |request, _| {
        match (request.path.as_str(), request.header("authorization")) {
            (_, None) => Reply::status(401).header("WWW-Authenticate", "Basic realm=x"),
            _ => Reply::status(307).header("Location", &to),
        }
    });
    let blob = Descriptor::of("x/y", b"blob");
    let source = open(&server.address(), ":1", &me(&server));
    let (_, bytes, result) = read(&source, &blob, 0).await;
    result.unwrap();
    assert_eq!(bytes, b"blob");
    assert_eq!(authorized(&server).len(), 1);
    assert_eq!(storage.requests().len(), 1);
    assert_eq!(authorized(&storage), []);
}

#[tokio::test]
async fn a_redirect_of_the_token_service_gets_no_password() {
    let evil = Hostile::start(|_, _| token("stolen"));
    let redirect = Reply::status(307).header("Location", &format!("http://{}/", evil.address()));
    let server = bearer("http://SELF/token", redirect, "abc");
    assert!(document(&server, &me(&server)).await.is_err());
    assert!(!evil.requests().is_empty());
    assert_eq!(authorized(&evil), []);
}

#[tokio::test]
async fn credentials_of_one_registry_are_not_offered_to_another() {
    let server = bearer("http://SELF/token", token("abc"), "abc");
    let options = login("other.example", "me", PASSWORD);
    assert!(document(&server, &options).await.is_ok());
    let requests = server.requests();
    let request = requests.iter().find(|r| r.path == "/token").unwrap();
    assert_eq!(request.header("authorization"), None);
}

/// A registry that lets in the bearer of `accepted` and tells others `words`, with 403.
fn forbidding(accepted: &'static str, words: &'static [u8]) -> Hostile {
    Hostile::start(move |request, before| {
        let realm = format!("http://{}/token", request.header("host").unwrap());
        match (request.path.as_str(), request.header("authorization")) {
            ("/token", _) => token(&format!("number{before}")),
            (_, None) => {
                Reply::status(401).header("WWW-Authenticate", &format!(r#"Bearer realm="{realm}""#))
            }
            (_, Some(carried)) if carried == accepted => content(request),
            _ => Reply::status(403).bytes(words),
        }
    })
}

/// ECR has no other status for it.
#[tokio::test]
async fn a_403_of_a_token_that_has_expired_is_answered_with_a_new_one_once() {
    let expired = br#"{"errors":[{"code":"DENIED","message":"Your authorization token has expired. Reauthenticate and try again."}]}"#;
    let server = forbidding("Bearer number1", expired);
    assert!(document(&server, &me(&server)).await.is_ok());
    assert_eq!(server.count("/token"), 2);
    // Asked for the head alone, it can not even say so.
    let server = forbidding("Bearer number1", expired);
    let source = open(&server.address(), ":1", &me(&server));
    assert!(source.current().await.is_ok());
    assert_eq!(server.count("/token"), 2);

    for (words, tokens) in [(&expired[..], 2), (b"not for you", 1)] {
        let server = forbidding("nobody", words);
        let error = document(&server, &me(&server)).await.unwrap_err();
        assert!(matches!(error, SourceError::Unauthorized { .. }), "{error}");
        assert_eq!(server.count("/token"), tokens);
    }
}

/// A pull may last longer than a token.
#[tokio::test]
async fn a_token_that_runs_out_between_two_parts_of_a_blob_is_renewed() {
    let server = Hostile::start(|request, before| {
        let realm = format!("http://{}/token", request.header("host").unwrap());
        match (request.path.as_str(), request.header("authorization")) {
            ("/token", _) => token(&format!("number{before}")),
            (_, Some("Bearer number0")) if before < 2 => Reply::status(200).cut(&b"blob"[..2], 4),
            (_, Some("Bearer number1")) => {
                assert_eq!(request.header("range"), Some("bytes=2-"));
                Reply::status(206)
                    .header("Content-Range", "bytes 2-3/4")
                    .bytes(&b"blob"[2..])
            }
            _ => {
                Reply::status(401).header("WWW-Authenticate", &format!(r#"Bearer realm="{realm}""#))
            }
        }
    });
    let source = open(&server.address(), ":1", &me(&server));
    let blob = Descriptor::of("x/y", b"blob");
    let (_, bytes, result) = read(&source, &blob, 0).await;
    assert!(result.unwrap_err().is_retryable());
    assert_eq!(bytes, b"bl");
    let (offset, bytes, result) = read(&source, &blob, 2).await;
    result.unwrap();
    assert_eq!((offset, bytes.as_slice()), (2, &b"ob"[..]));
    assert_eq!(server.count("/token"), 2);
}
