//! What a policy's file may say, and for which images it says it.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::oci::{Digest, Reference};
use crate::signature::identity::{Identity, Named};
use crate::signature::key::{KeyError, PublicKey};
use crate::signature::signer::{Signer, pem};
use crate::signature::{Policy, PolicyError, PolicyFile};

fn digest() -> Digest {
    Digest::of(b"an index")
}

fn reference(text: &str) -> Reference {
    text.parse().unwrap()
}

pub(in crate::signature) fn parse(text: &str) -> Result<Policy, String> {
    let told = |error: PolicyError| {
        let source = std::error::Error::source(&error);
        source.map_or(error.to_string(), |source| format!("{error}: {source}"))
    };
    let file = PolicyFile::parse(text.as_bytes()).map_err(told)?;
    file.with_keys(&BTreeMap::new()).map_err(told)
}

#[test]
fn keys_of_other_kinds_are_refused_by_name() {
    let kind = |name| Err(KeyError::Kind(name));
    let p256 = Signer::p256().pem();
    let rsa = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00";
    let p521 = b"\x30\x10\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x05\x2b\x81\x04\x00\x23";
    for (text, expected) in [
        (pem(rsa), kind("RSA")),
        (pem(p521), kind("P-521")),
        (pem(b"\x30\x00"), Err(KeyError::Unknown)),
        (pem(b""), Err(KeyError::Unknown)),
        (p256.clone() + &p256, Err(KeyError::NotPem)),
        (p256.replace("PUBLIC", "PRIVATE"), Err(KeyError::NotPem)),
        (p256.replace("MFk", "M=k"), Err(KeyError::NotPem)),
        (String::new(), Err(KeyError::NotPem)),
    ] {
        let parsed = PublicKey::parse(text.as_bytes()).map(|key| key.id());
        assert_eq!(parsed, expected, "{text}");
    }
    assert_eq!(
        PublicKey::parse(b"\xff").map(|key| key.id()),
        Err(KeyError::NotPem)
    );
}

#[test]
fn a_file_that_is_not_understood_to_its_last_word_is_refused() {
    let key = STANDARD.encode(Signer::p256().pem());
    let anything = r#"[{"type":"insecureAcceptAnything"}]"#;
    let default = |list: &str| format!(r#"{{"default":{list}}}"#);
    let signed = |rest: &str| default(&format!(r#"[{{"type":"sigstoreSigned",{rest}}}]"#));
    let with = |rest: &str| signed(&format!(r#""keyData":"{key}",{rest}"#));
    let scopes = |scopes: &str| format!(r#"{{"default":{anything},"transports":{scopes}}}"#);
    let rsa = STANDARD.encode(pem(b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01"));
    for (text, expected) in [
        ("{}".to_owned(), "missing field `default`"),
        ("[]".to_owned(), "an object"),
        (String::new(), "EOF"),
        (format!("{} x", default(anything)), "trailing characters"),
        (default("[]"), "default: it has no requirement"),
        (default("[[]]"), "an object"),
        (default("[{}]"), "missing field `type`"),
        (
            format!(r#"{{"default":{anything},"default":{anything}}}"#),
            "duplicate field `default`",
        ),
        (
            format!(r#"{{"default":{anything},"more":1}}"#),
            "unknown field `more`",
        ),
        (
            default(r#"[{"type":"reject","type":"reject"}]"#),
            "duplicate field `type`",
        ),
        (
            default(r#"[{"type":"signedBy"}]"#),
            "default[0]: requirement signedBy is not supported",
        ),
        (
            default(r#"[{"type":"reject","keyPath":"/k"}]"#),
            "default[0]: reject takes nothing else",
        ),
        (
            default(r#"[{"type":"signedBy","keyType":"GPGKeys","keyPath":"/k"}]"#),
            "unknown field `keyType`",
        ),
        (with(r#""fulcio":{}"#), "unknown field `fulcio`"),
        (with(r#""pki":{}"#), "unknown field `pki`"),
        (
            with(r#""rekorPublicKeyPath":"/r""#),
            "unknown field `rekorPublicKeyPath`",
        ),
        (with(r#""keyPath":"/k""#), "not exactly one of keyPath"),
        (with(r#""keyDatas":[]"#), "not exactly one of keyPath"),
        (
            signed(r#""signedIdentity":{"type":"matchExact"}"#),
            "not exactly one of keyPath",
        ),
        (signed(r#""keyPaths":[]"#), "default[0]: it has no key"),
        (
            signed(r#""keyPath":"key.pub""#),
            "default[0]: the path of a key is not absolute",
        ),
        (signed(r#""keyPath":"/k""#), "/k: the key was not read"),
        (signed(r#""keyData":"!""#), "not base64"),
        (
            signed(&format!(r#""keyData":"{rsa}""#)),
            "default[0]: the key can not be used: it is of the kind RSA",
        ),
        (
            with(r#""signedIdentity":{"type":"matchAll"}"#),
            "default[0].signedIdentity: identity matchAll is not supported",
        ),
        (
            with(r#""signedIdentity":{"type":"matchExact","prefix":"a.b"}"#),
            "identity matchExact is not supported, or not with these fields",
        ),
        (
            with(r#""signedIdentity":{"type":"exactReference","dockerReference":"a.b/c"}"#),
            "dockerReference has neither tag nor digest",
        ),
        (
            with(r#""signedIdentity":{"type":"exactRepository","dockerRepository":"a.b/c:1"}"#),
            "dockerRepository has a tag or a digest",
        ),
        (
            with(
                r#""signedIdentity":{"type":"remapIdentity","prefix":"a.b:1:2","signedPrefix":"c.d"}"#,
            ),
            "a prefix is no part of a repository's name",
        ),
        (
            scopes(r#"{"dokcer":{}}"#),
            "transports.dokcer: there is no such transport",
        ),
        (
            scopes(&format!(
                r#"{{"docker":{{"a.b":{anything},"a.b":{anything}}}}}"#
            )),
            "duplicate field `a.b`",
        ),
        (
            scopes(&format!(
                r#"{{"docker":{{"a.b":{anything},"A.b":{anything}}}}}"#
            )),
            "transports.docker[\"a.b\"]: the scope is there twice",
        ),
        (
            scopes(&format!(r#"{{"docker":{{"a*.b":{anything}}}}}"#)),
            "it is neither a part of a reference nor *.DOMAIN",
        ),
        (
            scopes(&format!(r#"{{"docker":{{"https://a.b":{anything}}}}}"#)),
            "it is neither a part of a reference nor *.DOMAIN",
        ),
        (
            default(&format!("[{}]", [r#"{"type":"reject"}"#; 9].join(","))),
            "default: it has more than 8 requirements",
        ),
        (
            scopes(&format!(r#"{{"oci":{{"/srv/../etc":{anything}}}}}"#)),
            "it is not the absolute path of a file or directory",
        ),
        // Of what is not read here, the form counts all the same.
        (
            scopes(r#"{"docker-daemon":{"":[{"type":"signedBy"}]}}"#),
            "transports.docker-daemon[\"\"][0]: requirement signedBy is not supported",
        ),
        (
            format!("{}1{}", "[".repeat(9999), "]".repeat(9999)),
            "an object",
        ),
    ] {
        let told = parse(&text).unwrap_err();
        assert!(told.contains(expected), "{text}\n{told}\n{expected}");
    }
}

#[test]
fn a_scope_that_no_image_can_be_in_is_refused() {
    let of = |scope: &str| {
        let list = r#"[{"type":"insecureAcceptAnything"}]"#;
        format!(r#"{{"default":{list},"transports":{{"docker":{{"{scope}":{list}}}}}}}"#)
    };
    let digest = digest();
    for scope in [
        "busybox",
        "docker.io/busybox:1",
        "index.docker.io/busybox:1",
        "reg.example/",
        "reg.example/NS",
        "reg.example//ns",
        "reg.example/ns os",
        "reg.example/ns/os:",
        "reg.example/ns/os@sha256:aa",
        &format!("reg.example/ns/os:1@{digest}"),
        "*",
        "*.",
        "*..example",
        "*.example.",
        "*.example/ns",
        "*.example:5000",
    ] {
        let told = parse(&of(scope)).unwrap_err();
        let expected = "it is neither a part of a reference nor *.DOMAIN";
        assert_eq!(told, format!("transports.docker[\"{scope}\"]: {expected}"));
    }
    for scope in [
        "",
        "docker.io",
        "docker.io/openshift",
        "docker.io/library/busybox:1",
        "REG.example:5000/ns",
        "localhost",
        "[::1]:5000",
        "*.example",
        "reg.example/os:1",
        &format!("reg.example/ns/os@{digest}"),
    ] {
        assert!(parse(&of(scope)).is_ok(), "{scope}");
    }
}

#[test]
fn the_most_specific_scope_decides_alone() {
    let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
    let table = |scopes: &[&str]| {
        let scopes = scopes.iter().map(|scope| format!(r#""{scope}":{accept}"#));
        scopes.collect::<Vec<_>>().join(",")
    };
    let docker = table(&[
        "",
        "reg.example",
        "reg.example/ns",
        "reg.example/ns/os",
        "reg.example/ns/os:1",
        "*.example",
        "*.deep.example",
        "reg.port:5000",
        "*.port",
        "docker.io/library/os",
    ]);
    let oci = table(&["", "/srv/images", "/srv/images/os"]);
    // As Debian's own file has it.
    let others = table(&[""]);
    let text = format!(
        r#"{{"default":[{{"type":"reject"}}],"transports":{{"docker":{{{docker}}},
        "oci":{{{oci}}},"docker-daemon":{{{others}}}}}}}"#
    );
    let policy = parse(&text).unwrap();
    let digest = digest();
    let by_digest = format!("reg.example/ns/os@{digest}");
    let by_both = format!("reg.example/ns/os:1@{digest}");
    for (image, scope) in [
        ("reg.example/ns/os:1", "docker:reg.example/ns/os:1"),
        (&by_both, "docker:reg.example/ns/os:1"),
        ("reg.example/ns/os:2", "docker:reg.example/ns/os"),
        (&by_digest, "docker:reg.example/ns/os"),
        ("reg.example/ns/oss", "docker:reg.example/ns"),
        ("reg.example/ns/os/x", "docker:reg.example/ns/os"),
        ("reg.example/nsx/os", "docker:reg.example"),
        ("REG.example/ns/os:2", "docker:reg.example/ns/os"),
        ("reg.example:443/ns/os", "docker:*.example"),
        ("a.b.deep.example/os", "docker:*.deep.example"),
        ("deep.example/os", "docker:*.example"),
        ("reg.port:5000/os", "docker:reg.port:5000"),
        ("reg.port:5001/os", "docker:*.port"),
        ("port:5000/os", "every docker: image"),
        ("[::1]:5000/os", "every docker: image"),
        ("index.docker.io/os", "docker:docker.io/library/os"),
        ("index.docker.io/library/os", "docker:docker.io/library/os"),
        ("oci:/srv/images/os:1", "oci:/srv/images/os"),
        ("oci:/srv/images/other", "oci:/srv/images"),
        ("oci:/srv/images/../other", "every oci: image"),
        ("oci:/srv/imagesx", "every oci: image"),
        ("oci-archive:/srv/images/os.tar", "everything (its default)"),
    ] {
        assert_eq!(policy.rules_for(&reference(image)).scope, scope, "{image}");
    }
}

#[test]
fn an_identity_is_what_the_policy_asks_of_it() {
    let named = |text: &str| Named::parse(text).unwrap();
    let digest = digest();
    let by_digest = format!("reg.example/os@{digest}");
    let by_both = format!("reg.example/os:1@{digest}");
    let remap = || Identity::RemapIdentity {
        prefix: "mirror.local/cache".to_owned(),
        signed_prefix: "reg.example".to_owned(),
    };
    let (os, os_1) = ("reg.example/os", "reg.example/os:1");
    for (identity, asked, claimed, expected) in [
        (Identity::MatchExact, os_1, os_1, true),
        (Identity::MatchExact, os_1, "reg.example/os:2", false),
        (Identity::MatchExact, os_1, os, false),
        (Identity::MatchExact, &by_digest, &by_digest, true),
        (Identity::MatchExact, &by_digest, os_1, false),
        (Identity::MatchRepoDigestOrExact, os_1, os_1, true),
        (Identity::MatchRepoDigestOrExact, os_1, os, false),
        (
            Identity::MatchRepoDigestOrExact,
            os_1,
            "reg.example/os:2",
            false,
        ),
        (
            Identity::MatchRepoDigestOrExact,
            &by_digest,
            "reg.example/os:2",
            true,
        ),
        (Identity::MatchRepoDigestOrExact, &by_digest, os, false),
        (Identity::MatchRepoDigestOrExact, &by_both, os_1, false),
        (Identity::MatchRepository, os_1, os, true),
        (Identity::MatchRepository, os_1, "reg.example/os:2", true),
        (Identity::MatchRepository, os_1, "Reg.Example/os", true),
        (Identity::MatchRepository, os_1, "reg.example/os/x", false),
        (Identity::MatchRepository, os_1, "reg.example:443/os", false),
        (Identity::MatchRepository, os_1, "os", false),
        (Identity::MatchRepository, os_1, "", false),
        (
            Identity::MatchRepository,
            "docker.io/library/os",
            "index.docker.io/library/os",
            true,
        ),
        (Identity::MatchRepository, "oci:/srv/os", os, false),
        (
            Identity::ExactReference(named(os_1)),
            "other.example/x",
            os_1,
            true,
        ),
        (
            Identity::ExactReference(named(os_1)),
            "oci:/srv/os",
            os_1,
            true,
        ),
        (Identity::ExactReference(named(os_1)), os_1, os, false),
        (
            Identity::ExactRepository(named(os)),
            "other.example/x",
            os_1,
            true,
        ),
        (
            Identity::ExactRepository(named(os)),
            os_1,
            "reg.example/x",
            false,
        ),
        (remap(), "mirror.local/cache/os:1", os_1, true),
        (
            remap(),
            "mirror.local/cache/os:1",
            "mirror.local/cache/os:1",
            false,
        ),
        (
            remap(),
            "mirror.local/cachex/os:1",
            "mirror.local/cachex/os:1",
            true,
        ),
        (remap(), "mirror.local/cache/os:1", os, false),
    ] {
        let accepts = identity.accepts(&reference(asked), claimed);
        assert_eq!(accepts, expected, "{identity:?} {asked} {claimed}");
    }
}
