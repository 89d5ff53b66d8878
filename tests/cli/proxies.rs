//! Proxies: for other machines, and without a word of their passwords.

use crate::hostile::{Hostile, Reply};
use crate::image::{Image, disk, disk_only};
use crate::sandbox::{Output, Sandbox, check};

/// A name that nobody resolves.
const REGISTRY: &str = "registry.invalid";

/// A proxy that answers for the registry what `image` has, and lets nobody through to a port.
fn proxy(sandbox: &Sandbox, image: &Image) -> Hostile {
    sandbox.name_digests(image);
    let answering = image.clone();
    let server = Hostile::start(move |request, _| {
        let prefix = format!("http://{REGISTRY}");
        match request.path.strip_prefix(&prefix) {
            Some(path) if request.method != "CONNECT" => answering.answer_to(path, request),
            _ => Reply::status(502),
        }
    });
    sandbox.mask(&server.address(), "$PROXY");
    server
}

fn with(sandbox: &Sandbox, line: &str, variables: &[(&str, &str)]) -> Output {
    let mut command = sandbox.command(line);
    command.envs(variables.iter().copied());
    sandbox.finish(command)
}

fn pull(options: &str) -> String {
    format!("pull {options} --arch amd64 {REGISTRY}/os:1")
}

#[test]
fn another_machine_is_reached_by_way_of_the_proxy() {
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let sandbox = Sandbox::new();
        let server = proxy(&sandbox, &disk_only(&disk("amd64")));
        let address = format!("http://me:hunter2@{}", server.address());
        let pulled = with(
            &sandbox,
            &pull("-q --tls-verify=false"),
            &[(variable, &address)],
        );
        check(&pulled.text(), "sha256:<manifest>");
        let mut requests = server.requests();
        requests.retain(|request| request.method != "CONNECT");
        assert!(!requests.is_empty());
        for request in requests {
            let carried = request.header("proxy-authorization");
            assert_eq!(carried, Some("Basic bWU6aHVudGVyMg=="));
        }
    }
}

#[test]
fn tls_goes_through_the_proxy_to_the_port() {
    let sandbox = Sandbox::new();
    let server = proxy(&sandbox, &disk_only(&disk("amd64")));
    let address = format!("me:hunter2@{}", server.address());
    let pulled = with(&sandbox, &pull("-q"), &[("HTTPS_PROXY", &address)]);
    check(
        &pulled.text(),
        r#"
        ------- stderr -------
        error: registry.invalid is not available
          caused by: connection failed: tunnel error: unsuccessful (a proxy is set: 127.0.0.1)
        hint: check the registry's name and your network, then try again
        [exit status: 125]
        "#,
    );
    let requests = server.requests();
    assert!(!requests.is_empty());
    for request in &requests {
        assert_eq!(
            (request.method.as_str(), request.path.as_str()),
            ("CONNECT", "registry.invalid:443")
        );
    }
}

#[test]
fn some_are_reached_without() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let server = proxy(&sandbox, &image);
    let address = format!("http://{}", server.address());
    let both = [("HTTP_PROXY", address.as_str()), ("HTTPS_PROXY", &address)];
    for list in ["registry.invalid", "a.example, invalid", "*"] {
        let variables = [&both[..], &[("NO_PROXY", list)]].concat();
        let pulled = with(&sandbox, &pull("-q --tls-verify=false"), &variables);
        assert_eq!(pulled.status, 125, "{}", pulled.text());
    }
    // This machine's loopback is not the proxy's.
    let (_registry, reference) = sandbox.serve(&image);
    let pulled = with(
        &sandbox,
        &format!("pull -q --arch amd64 {reference}"),
        &both,
    );
    check(&pulled.text(), "sha256:<manifest>");
    assert_eq!(server.requests(), []);
}

#[test]
fn a_proxy_that_is_none_is_told_without_its_password() {
    let sandbox = Sandbox::new();
    for address in ["socks5://me:hunter2@127.0.0.1:1080", "http://me:hunter2@"] {
        let pulled = with(&sandbox, &pull("-v"), &[("HTTPS_PROXY", address)]);
        check(
            &pulled.text(),
            r#"
            ------- stderr -------
            error: the proxy in HTTPS_PROXY is not at an http or https address
            [exit status: 2]
            "#,
        );
    }
    // One that is not there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://me:hunter2@{}", listener.local_addr().unwrap());
    drop(listener);
    let pulled = with(&sandbox, &pull("-q"), &[("HTTPS_PROXY", &address)]);
    check(
        &pulled.text(),
        r#"
        ------- stderr -------
        error: registry.invalid is not available
          caused by: connection failed: Connection refused (os error 111) (a proxy is set: 127.0.0.1)
        hint: check the registry's name and your network, then try again
        [exit status: 125]
        "#,
    );
}
