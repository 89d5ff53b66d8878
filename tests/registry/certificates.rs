use std::fs;
use std::path::Path;

use ironboot::source::{AddressRefusal, Source, SourceError, SourceOptions, Wanted};

use crate::hostile::{Hostile, Reply};
use crate::real::round_trip;
use crate::registry::{Access, DockerRegistry, TlsFiles};
use crate::{INDEX, open, told};

/// Pushes to `server` and reads back.
async fn try_with(server: &DockerRegistry, options: &SourceOptions) -> Result<(), SourceError> {
    round_trip(&open(server.address(), ":1", options)).await
}

fn copy(server: &DockerRegistry, file: &str, directory: &Path, name: &str) {
    fs::create_dir_all(directory).unwrap();
    fs::copy(server.file(file), directory.join(name)).unwrap();
}

/// Podman's form, and docker's in a directory of the registry's name.
#[tokio::test]
async fn a_directory_says_who_may_vouch_for_a_registry() {
    let server = DockerRegistry::start(Access::Signed);
    let error = try_with(&server, &SourceOptions::default()).await;
    let expected = format!(
        "{} cannot be trusted: invalid peer certificate: UnknownIssuer",
        server.address()
    );
    assert_eq!(told(&error.unwrap_err()), expected);

    let podmans = tempfile::tempdir().unwrap();
    copy(&server, "authority.crt", podmans.path(), "any.crt");
    let options = SourceOptions {
        certificates: Some(podmans.path().to_owned()),
        ..SourceOptions::default()
    };
    try_with(&server, &options).await.unwrap();

    let dockers = tempfile::tempdir().unwrap();
    let directory = dockers.path().join(server.address());
    copy(&server, "authority.crt", &directory, "ca.crt");
    let options = SourceOptions {
        hosts_directories: vec![dockers.path().to_owned()],
        ..SourceOptions::default()
    };
    try_with(&server, &options).await.unwrap();
}

#[tokio::test]
async fn a_directory_says_who_we_are_by_certificate() {
    let server = DockerRegistry::start(Access::Client);
    let directory = tempfile::tempdir().unwrap();
    let options = SourceOptions {
        certificates: Some(directory.path().to_owned()),
        ..SourceOptions::default()
    };
    copy(&server, "authority.crt", directory.path(), "ca.crt");
    let error = try_with(&server, &options).await.unwrap_err();
    assert!(told(&error).contains("ertificate"), "{}", told(&error));
    copy(&server, "client.crt", directory.path(), "client.cert");
    copy(&server, "client.key", directory.path(), "client.key");
    try_with(&server, &options).await.unwrap();
}

#[tokio::test]
async fn a_hosts_file_says_both() {
    let server = DockerRegistry::start(Access::Client);
    let directory = tempfile::tempdir().unwrap();
    let options = SourceOptions {
        hosts_directories: vec![directory.path().to_owned()],
        ..SourceOptions::default()
    };
    let own = directory.path().join(server.address());
    for name in ["authority.crt", "client.crt", "client.key"] {
        copy(&server, name, &own, name);
    }
    let both = [server.file("client.crt"), server.file("client.key")];
    let both = both.map(|path| fs::read_to_string(path).unwrap()).concat();
    fs::write(own.join("both.pem"), both).unwrap();
    let authority = server.file("authority.crt").display().to_string();
    for text in [
        "ca = \"authority.crt\"\nclient = [[\"client.crt\", \"client.key\"]]".to_owned(),
        format!("ca = [{authority:?}]\nclient = \"both.pem\""),
        "skip_verify = true\nclient = [[\"both.pem\", \"\"]]".to_owned(),
        format!(
            "server = \"https://{}\"\nca = {authority:?}\nclient = [\"both.pem\"]",
            server.address()
        ),
    ] {
        fs::write(own.join("hosts.toml"), &text).unwrap();
        let result = try_with(&server, &options).await;
        result.unwrap_or_else(|error| panic!("{text}: {}", told(&error)));
    }
    fs::write(
        own.join("hosts.toml"),
        "client = [\"both.pem\", \"both.pem\"]",
    )
    .unwrap();
    let error = ironboot::source::registry::Registry::open(
        match format!("{}/os:1", server.address()).parse().unwrap() {
            ironboot::oci::Reference::Registry(image) => image,
            other => panic!("{other}"),
        },
        &options,
    )
    .unwrap_err();
    assert!(
        told(&error).ends_with("it is the second certificate of ours for one host"),
        "{}",
        told(&error)
    );
}

/// A certificate for another host, or none at all where TLS is spoken, is no way around either.
#[tokio::test]
async fn certificates_are_for_tls_even_on_loopback() {
    let server = DockerRegistry::start(Access::Open);
    let signed = DockerRegistry::start(Access::Signed);
    let directory = tempfile::tempdir().unwrap();
    copy(&signed, "authority.crt", directory.path(), "ca.crt");
    let options = SourceOptions {
        certificates: Some(directory.path().to_owned()),
        ..SourceOptions::default()
    };
    let error = try_with(&server, &options).await.unwrap_err();
    assert!(
        matches!(
            error,
            SourceError::Tls {
                is_spoken: false,
                ..
            }
        ),
        "{}",
        told(&error)
    );
    // Signed by the right authority, for another name.
    let port = signed.address().rsplit_once(':').unwrap().1;
    let error = try_at(&format!("localhost:{port}"), &options).await;
    assert!(
        matches!(
            error,
            SourceError::Tls {
                is_spoken: true,
                ..
            }
        ),
        "{}",
        told(&error)
    );
}

/// What has run out is not trusted, whoever signed it.
#[tokio::test]
async fn a_certificate_that_has_expired_is_not_taken() {
    let server = DockerRegistry::start(Access::Expired);
    let directory = tempfile::tempdir().unwrap();
    copy(&server, "authority.crt", directory.path(), "ca.crt");
    let options = SourceOptions {
        certificates: Some(directory.path().to_owned()),
        ..SourceOptions::default()
    };
    let error = try_with(&server, &options).await.unwrap_err();
    let expected = format!(
        "{} cannot be trusted: invalid peer certificate: ",
        server.address()
    );
    assert!(told(&error).starts_with(&expected), "{}", told(&error));
    assert!(!told(&error).contains("Issuer"), "{}", told(&error));
}

/// Over real TLS, to a listener that would be glad of it.
#[tokio::test]
async fn a_redirect_out_of_tls_is_not_followed() {
    let plain = Hostile::start(|_, _| Reply::ok(INDEX));
    let to = format!("http://{}/", plain.address());
    let server = TlsFiles::start(&format!(
        "HTTP/1.1 307 Elsewhere\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"
    ));
    let options = SourceOptions {
        certificates: Some(server.authorities()),
        ..SourceOptions::default()
    };
    let source = open(server.address(), ":1", &options);
    let error = source.document(Wanted::Reference).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::RedirectRefused { target, reason: AddressRefusal::Downgrade, .. }
            if *target == to),
        "{}",
        told(&error)
    );
    assert_eq!(plain.requests(), []);
}

async fn try_at(address: &str, options: &SourceOptions) -> SourceError {
    round_trip(&open(address, ":1", options)).await.unwrap_err()
}
