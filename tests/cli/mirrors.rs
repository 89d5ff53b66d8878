//! What an operator says of registries: mirrors, and certificates.

use std::fs;

use ironboot::oci::Digest;

use crate::hostile::{Hostile, Reply};
use crate::image::{Image, direct, disk, disk_only};
use crate::refusal::refused_with;
use crate::registry::{Access, DockerRegistry};
use crate::sandbox::{Sandbox, check};

/// A server of `image` with a mirror that answers some paths otherwise, and the image's reference.
fn mirrored(
    sandbox: &Sandbox,
    image: &Image,
    other: impl Fn(&str) -> Option<Reply> + Send + Sync + 'static,
) -> (Hostile, Hostile, String) {
    let mirror = image.serve_except(move |request, _| other(&request.path));
    sandbox.mask(&mirror.address(), "$MIRROR");
    let (server, reference) = sandbox.serve(image);
    let text = format!("[host.\"http://{}\"]\n", mirror.address());
    write(sandbox, &server.address(), &text);
    (server, mirror, reference)
}

/// Writes `text` where the program looks for what is about the registry at `address`.
fn write(sandbox: &Sandbox, address: &str, text: &str) {
    let directory = sandbox.path("config/ironboot/certs.d").join(address);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("hosts.toml"), text).unwrap();
}

fn asked(server: &Hostile) -> usize {
    server.requests().len()
}

#[test]
fn an_image_comes_from_a_mirror_and_is_the_registrys() {
    let sandbox = Sandbox::new();
    let (server, mirror, reference) = mirrored(&sandbox, &direct(), |_| None);
    let pulled = sandbox.run(format!("pull -q --arch amd64 {reference}"));
    check(&pulled.text(), "sha256:<manifest>");
    assert_eq!(asked(&server), 0);
    assert!(asked(&mirror) > 0);
    let listed = sandbox.run("image list");
    assert!(
        listed.stdout.contains("$REGISTRY/os:1"),
        "{}",
        listed.text()
    );
    assert!(!listed.stdout.contains("$MIRROR"), "{}", listed.text());
}

#[test]
fn a_mirror_that_lies_costs_its_lie_and_nothing_else() {
    // Of every kind of thing once: a manifest, the config, a small and a large layer.
    for what in ["manifest", "config", "kernel", "disk"] {
        let sandbox = Sandbox::new();
        let image = direct();
        let digest = image.digest(what).to_owned();
        let wrong = vec![b'!'; image.size(what)];
        let (server, mirror, reference) = mirrored(&sandbox, &image, move |path| {
            path.ends_with(&digest).then(|| Reply::ok(&wrong))
        });
        let pulled = sandbox.run(format!("pull -v --arch amd64 {reference}"));
        assert_eq!(pulled.stdout, "sha256:<manifest>\n", "{}", pulled.text());
        assert_eq!(pulled.status, 0);
        let told = pulled.stderr.lines();
        let told: Vec<_> = told.filter(|line| line.contains("passing over")).collect();
        let expected = match what {
            "manifest" => {
                "passing over mirror $MIRROR: $REGISTRY/os:1: \
                 content has digest sha256:$OTHER, expected sha256:<manifest>"
            }
            other => &format!("passing over mirror $MIRROR: what it sent is not sha256:<{other}>"),
        };
        assert_eq!(told, [expected]);
        assert!(asked(&server) > 0 && asked(&mirror) > 0);
        for name in sandbox.names("blobs/sha256") {
            let bytes = fs::read(sandbox.store().join("blobs/sha256").join(&name)).unwrap();
            assert_eq!(Digest::of(&bytes).to_string(), format!("sha256:{name}"));
        }
    }
}

#[test]
fn without_being_asked_nobody_tells_of_a_mirror() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let (_server, mirror, reference) = mirrored(&sandbox, &image, |_| Some(Reply::status(500)));
    let pulled = sandbox.run(format!("pull --arch amd64 {reference}"));
    assert!(!pulled.stderr.contains("$MIRROR"), "{}", pulled.text());
    assert_eq!(pulled.status, 0);
    assert_eq!(asked(&mirror), 1);
}

#[test]
fn a_mirror_that_breaks_off_in_a_layer_is_gone_on_from_the_registry() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let path = image.blob_path("disk");
    let (server, mirror, reference) = mirrored(&sandbox, &image, move |asked| {
        let cut = || Reply::status(200).cut(&disk("amd64")[..10_000], 64 << 10);
        (asked == path).then(cut)
    });
    let pulled = sandbox.run(format!("pull -q --arch amd64 {reference}"));
    check(&pulled.text(), "sha256:<manifest>");
    let path = image.blob_path("disk");
    assert_eq!((mirror.count(&path), server.count(&path)), (1, 1));
    let requests = server.requests();
    let request = requests.iter().find(|request| request.path == path);
    assert_eq!(request.unwrap().header("range"), Some("bytes=10000-"));
}

#[test]
fn where_all_fail_the_registrys_error_is_told_with_the_mirrors() {
    let sandbox = Sandbox::new();
    let mirror = Hostile::start(|_, _| Reply::status(403).bytes(b"not \x1b[31mfor you"));
    let server = Hostile::start(|_, _| Reply::status(404));
    sandbox.mask(&mirror.address(), "$MIRROR");
    sandbox.mask(&server.address(), "$REGISTRY");
    let text = format!("[host.\"http://{}\"]\n", mirror.address());
    write(&sandbox, &server.address(), &text);
    refused_with(
        &sandbox,
        "--arch amd64",
        &format!("{}/os:1", server.address()),
        "not-found",
        r#"
        ------- stderr -------
        error: no such image: $REGISTRY/os:1
          caused by: mirror $MIRROR: $MIRROR refuses anonymous access to os: not \u{1b}[31mfor you
        hint: check the name and the tag
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_file_that_is_none_is_told_with_its_key() {
    let sandbox = Sandbox::new();
    for (text, cause) in [
        ("server = 1", "`server` is not a string"),
        (
            "[host.\"https://m.example\"]\ncapabilities = [\"fly\"]",
            "`host.\"https://m.example\".capabilities` is not of pull, resolve and push",
        ),
    ] {
        write(&sandbox, "r.example", text);
        check(
            &sandbox.run("plan r.example/os:1").text(),
            &format!(
                "------- stderr -------\n\
                 error: cannot understand $TMP/config/ironboot/certs.d/r.example/hosts.toml\n  \
                 caused by: {cause}\n\
                 hint: mend the file, or pass --hosts-dir for another directory\n\
                 [exit status: 2]\n"
            ),
        );
    }
}

#[test]
fn a_directory_is_named_by_option_or_by_variable_and_must_be_one() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let (server, mirror, reference) = mirrored(&sandbox, &image, |_| None);
    let plan = format!("plan --json --arch amd64 {reference}");
    fs::rename(
        sandbox.path("config/ironboot/certs.d"),
        sandbox.path("hosts"),
    )
    .unwrap();
    assert_eq!(sandbox.run(&plan).status, 0);
    assert_eq!(asked(&mirror), 0);
    let before = asked(&server);
    let hosts = sandbox.path("hosts");
    let option = format!("{plan} --hosts-dir {}", hosts.display());
    assert_eq!(sandbox.run(option).status, 0);
    let mut command = sandbox.command(&plan);
    command.env("IRONBOOT_HOSTS_DIR", &hosts);
    assert_eq!(sandbox.finish(command).status, 0);
    assert_eq!(asked(&server), before);
    for option in ["--hosts-dir", "--cert-dir"] {
        check(
            &sandbox
                .run(format!("plan {option} /nowhere {reference}"))
                .text(),
            r#"
            ------- stderr -------
            error: no such directory: /nowhere
            [exit status: 2]
            "#,
        );
    }
}

#[test]
fn a_registry_that_an_authority_vouches_for_is_used_with_its_certificate() {
    let sandbox = Sandbox::new();
    let registry = DockerRegistry::start(Access::Client);
    sandbox.mask(registry.address(), "$REGISTRY");
    let directory = sandbox.path("certificates");
    fs::create_dir_all(&directory).unwrap();
    for (from, to) in [
        ("authority.crt", "ca.crt"),
        ("client.crt", "me.cert"),
        ("client.key", "me.key"),
    ] {
        fs::copy(registry.file(from), directory.join(to)).unwrap();
    }
    let layout = sandbox.layout(&disk_only(&disk("amd64")));
    let reference = format!("{}/os:1", registry.address());
    let option = format!("--cert-dir {}", directory.display());
    let pushed = sandbox.run(format!("image push -q {option} {layout} {reference}"));
    check(&pushed.text(), "sha256:<top>");
    let pulled = sandbox.run(format!("pull -q {option} --arch amd64 {reference}"));
    check(&pulled.text(), "sha256:<manifest>");
    fs::write(directory.join("ca.crt"), "hello").unwrap();
    check(
        &sandbox.run(format!("plan {option} {reference}")).text(),
        r#"
        ------- stderr -------
        error: the certificates in $TMP/certificates/ca.crt cannot be used
          caused by: there is no certificate of an authority in it
        [exit status: 2]
        "#,
    );
}
