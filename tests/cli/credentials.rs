//! Who may read an image: passwords, auth files, and certificates that nobody signed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use base64::Engine;
use serde_json::json;

use crate::hostile::{Hostile, Reply};
use crate::image::{disk, disk_only};
use crate::refusal::{refused, refused_with};
use crate::registry::{Access, DockerRegistry, PASSWORD, USER};
use crate::sandbox::{Sandbox, check};

/// Writes what `podman login` would.
fn login(sandbox: &Sandbox, file: &str, registry: &str, password: &str) -> PathBuf {
    let path = sandbox.path(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{password}"));
    let file = json!({"auths": {registry: {"auth": auth}}});
    fs::write(&path, file.to_string()).unwrap();
    path
}

/// A registry that asks for a password, with an image in it.
fn closed(sandbox: &Sandbox) -> (DockerRegistry, String) {
    let registry = DockerRegistry::start(Access::Password);
    sandbox.mask(registry.address(), "$REGISTRY");
    let layout = sandbox.layout(&disk_only(&disk("amd64")));
    let reference = format!("{}/os:1", registry.address());
    let file = login(sandbox, "push.json", registry.address(), PASSWORD);
    let push = format!(
        "image push -q --authfile {} {layout} {reference}",
        file.display()
    );
    check(&sandbox.run(push).text(), "sha256:<top>");
    (registry, reference)
}

#[test]
fn without_a_password_or_with_a_wrong_one_nothing_is_read_or_stored() {
    let sandbox = Sandbox::new();
    let (registry, reference) = closed(&sandbox);
    refused(
        &sandbox,
        &reference,
        "unauthorized",
        r#"
        ------- stderr -------
        error: $REGISTRY refuses anonymous access to os: it wants a user name and a password
        hint: log in, with `podman login` for one, or pass --authfile
        [exit status: 125]
        "#,
    );
    let wrong = login(&sandbox, "wrong.json", registry.address(), "wrong horse");
    let options = format!("--arch amd64 --authfile {}", wrong.display());
    refused_with(
        &sandbox,
        &options,
        &reference,
        "unauthorized",
        r#"
        ------- stderr -------
        error: $REGISTRY refuses user horse to os: authentication required
        hint: check the credentials that you logged in with, or pass --authfile
        [exit status: 125]
        "#,
    );
    let other = login(&sandbox, "other.json", "other.example", PASSWORD);
    let options = format!("--arch amd64 --authfile {}", other.display());
    refused_with(
        &sandbox,
        &options,
        &reference,
        "unauthorized",
        r#"
        ------- stderr -------
        error: $REGISTRY refuses anonymous access to os: it wants a user name and a password
        hint: log in, with `podman login` for one, or pass --authfile
        [exit status: 125]
        "#,
    );
}

#[test]
fn an_auth_file_is_found_by_option_by_variable_and_in_its_usual_places() {
    let sandbox = Sandbox::new();
    let (registry, reference) = closed(&sandbox);
    let plan = format!("plan --json --arch amd64 {reference}");
    let right = login(&sandbox, "right.json", registry.address(), PASSWORD);
    let wrong = login(&sandbox, "wrong.json", registry.address(), "wrong horse");
    let option = format!("{plan} --authfile {}", right.display());
    assert_eq!(sandbox.run(&option).status, 0);
    let with = |line: &str, variable: &str, value: &PathBuf| {
        let mut command = sandbox.command(line);
        command.env(variable, value);
        sandbox.finish(command).status
    };
    assert_eq!(with(&plan, "REGISTRY_AUTH_FILE", &right), 0);
    // The option is stronger than the variable, and that than the usual places.
    assert_eq!(with(&option, "REGISTRY_AUTH_FILE", &wrong), 0);
    login(&sandbox, "docker/config.json", registry.address(), PASSWORD);
    assert_eq!(with(&plan, "DOCKER_CONFIG", &sandbox.path("docker")), 0);
    login(
        &sandbox,
        "config/containers/auth.json",
        registry.address(),
        PASSWORD,
    );
    assert_eq!(sandbox.run(&plan).status, 0);
    assert_eq!(with(&plan, "REGISTRY_AUTH_FILE", &wrong), 125);
}

#[test]
fn an_auth_file_that_is_none_is_told_without_what_is_in_it() {
    let sandbox = Sandbox::new();
    let file = sandbox.path("broken.json");
    fs::write(&file, r#"{"auths": {"r.example": {"auth": "hunter2"}"#).unwrap();
    let plan = format!("plan --authfile {} r.example/os:1", file.display());
    check(
        &sandbox.run(plan).text(),
        r#"
        ------- stderr -------
        error: credentials in $TMP/broken.json cannot be used
          caused by: not readable as JSON at line 1, column 43
        hint: check the credentials that you logged in with, or pass --authfile
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_certificate_that_nobody_signed_is_taken_only_where_it_is_not_to_be_verified() {
    let sandbox = Sandbox::new();
    let registry = DockerRegistry::start(Access::SelfSigned);
    sandbox.mask(registry.address(), "$REGISTRY");
    let layout = sandbox.layout(&disk_only(&disk("amd64")));
    let reference = format!("{}/os:1", registry.address());
    let push = format!("image push -q --tls-verify=false {layout} {reference}");
    check(&sandbox.run(push).text(), "sha256:<top>");
    let pull = format!("pull -q --tls-verify=false --arch amd64 {reference}");
    check(&sandbox.run(pull).text(), "sha256:<manifest>");
    fs::remove_dir_all(sandbox.store()).unwrap();
    let pull = format!("pull --json --tls-verify=true --arch amd64 {reference}");
    check(
        &sandbox.run(pull).text(),
        r#"
        {"error":{"causes":[],"hint":"pass --cert-dir for the certificate of who signed its own, or --tls-verify=false if you trust the network to it","kind":"unavailable","message":"$REGISTRY cannot be trusted: invalid peer certificate: UnknownIssuer","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
    assert!(!sandbox.store().exists());
}

#[test]
fn a_helper_that_could_be_a_path_is_not_run() {
    let sandbox = Sandbox::new();
    let file = sandbox.path("auth.json");
    for content in [
        json!({"credHelpers": {"r.example": "../../bin/sh"}}),
        json!({"credsStore": "../../bin/sh"}),
    ] {
        fs::write(&file, content.to_string()).unwrap();
        let plan = format!("plan --authfile {} r.example/os:1", file.display());
        check(
            &sandbox.run(plan).text(),
            r#"
            ------- stderr -------
            error: credentials in $TMP/auth.json cannot be used
              caused by: not a name of a credential helper: ../../bin/sh
            hint: check the credentials that you logged in with, or pass --authfile
            [exit status: 125]
            "#,
        );
    }
}

#[test]
fn credentials_that_everybody_may_read_are_used_with_a_warning() {
    let sandbox = Sandbox::new();
    let (registry, reference) = closed(&sandbox);
    let file = login(&sandbox, "open.json", registry.address(), PASSWORD);
    let open = ["warning: everybody may read the credentials in $TMP/open.json"];
    for (mode, expected) in [(0o600, &[][..]), (0o644, &open), (0o640, &open)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let pull = format!(
            "pull --arch amd64 --authfile {} {reference}",
            file.display()
        );
        let pulled = sandbox.run(pull);
        assert_eq!(pulled.status, 0, "{}", pulled.text());
        let lines = pulled.stderr.lines();
        let told: Vec<_> = lines.filter(|line| line.contains("warning")).collect();
        assert_eq!(told, expected);
    }
}

/// Wherever the program speaks or writes, on success, with a wrong password, and with a broken
/// token service.
#[test]
fn a_password_and_a_token_are_found_nowhere() {
    let sandbox = Sandbox::new();
    let (registry, reference) = closed(&sandbox);
    let file = login(&sandbox, "right.json", registry.address(), PASSWORD);
    let wrong = login(&sandbox, "wrong.json", registry.address(), "wrong horse");
    let realm = Hostile::start(|request, _| match request.path.as_str() {
        "/token" => Reply::ok(br#"{"token":"t0k3n-secret"}"#),
        _ if request.header("authorization").is_some() => {
            Reply::status(500).bytes(b"something else")
        }
        _ => {
            let realm = format!("http://{}/token", request.header("host").unwrap());
            Reply::status(401).header("WWW-Authenticate", &format!("Bearer realm=\"{realm}\""))
        }
    });
    let by_token = login(&sandbox, "token.json", &realm.address(), PASSWORD);
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let secrets = [
        PASSWORD.to_owned(),
        "wrong horse".to_owned(),
        base64(&format!("{USER}:{PASSWORD}")),
        base64(&format!("{USER}:wrong horse")),
        "t0k3n-secret".to_owned(),
    ];
    for (file, reference, status) in [
        (&file, reference.clone(), 0),
        (&wrong, reference, 125),
        (&by_token, format!("{}/os:1", realm.address()), 125),
    ] {
        for options in ["-v", "--json -v"] {
            let options = format!("{options} --arch amd64 --authfile {}", file.display());
            let name = format!("vm{}", options.len());
            let prepare = format!("prepare {options} --accel tcg --name {name} {reference}");
            let output = sandbox.run(prepare);
            assert_eq!(output.status, status, "{}", output.text());
            for secret in &secrets {
                assert!(!output.text().contains(secret), "{}", output.text());
            }
        }
    }
    let mut todo = vec![sandbox.store()];
    while let Some(path) = todo.pop() {
        if path.is_dir() {
            todo.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
            continue;
        }
        let content = fs::read(&path).unwrap();
        for secret in &secrets {
            let mut windows = content.windows(secret.len());
            assert!(
                !windows.any(|window| window == secret.as_bytes()),
                "{path:?}"
            );
        }
    }
}

/// As with ECR, whose passwords last for hours and whose helper knows the next.
#[test]
fn a_password_that_has_expired_is_asked_of_its_helper_again() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let [one, two] = ["AWS:one", "AWS:two"].map(|login| format!("Basic {}", base64(login)));
    let server = image.serve_except(move |request, _| {
        let carried = request.header("authorization");
        let is_blob = request.path.contains("/blobs/");
        match carried {
            None => Some(Reply::status(401).header("WWW-Authenticate", "Basic realm=x")),
            Some(carried) if carried == two || carried == one && !is_blob => None,
            Some(_) => Some(Reply::status(403).bytes(b"Your authorization token has expired.")),
        }
    });
    let (server, reference) = sandbox.at(&image, server);
    // Its first answer is one, all others are two.
    let directory = sandbox.path("helpers");
    fs::create_dir_all(&directory).unwrap();
    let helper = directory.join("docker-credential-turns");
    let asked = sandbox.path("asked");
    let script = format!(
        "#!/bin/sh\nsecret=two\n[ -e {0} ] || secret=one\necho x >>{0}\n\
         echo '{{\"Username\":\"AWS\",\"Secret\":\"'$secret'\"}}'\n",
        asked.display()
    );
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let file = sandbox.path("auth.json");
    let helpers = json!({"credHelpers": {server.address(): "turns"}});
    fs::write(&file, helpers.to_string()).unwrap();
    let pull = format!(
        "pull -q --arch amd64 --authfile {} {reference}",
        file.display()
    );
    let mut command = sandbox.command(pull);
    command.env("PATH", &directory);
    check(&sandbox.finish(command).text(), "sha256:<manifest>");
    assert_eq!(fs::read_to_string(&asked).unwrap().lines().count(), 2);
}

/// A registry of this machine is first asked without anybody's certificate in mind.
#[test]
fn whom_the_machine_trusts_vouches_for_a_registry_of_its_own_and_for_its_storage() {
    let sandbox = Sandbox::new();
    let storage = DockerRegistry::start(Access::Signed);
    let stranger = DockerRegistry::start(Access::Signed);
    sandbox.mask(storage.address(), "$STORAGE");
    let image = disk_only(&disk("amd64"));
    let layout = sandbox.layout(&image);
    let there = format!("{}/os:1", storage.address());
    sandbox.run(format!("image push -q --tls-verify=false {layout} {there}"));
    let (path, elsewhere) = (image.blob_path("disk"), storage.address().to_owned());
    let plain = image.serve_except(move |request, _| {
        let location = format!("https://{elsewhere}{path}");
        (request.path == path).then(|| Reply::status(307).header("Location", &location))
    });
    let (_plain, redirecting) = sandbox.at(&image, plain);
    for reference in [there, redirecting] {
        let line = format!("pull -q --arch amd64 {reference}");
        let mut command = sandbox.command(&line);
        command.env("SSL_CERT_FILE", stranger.file("authority.crt"));
        let output = sandbox.finish(command);
        assert_eq!(output.status, 125, "{}", output.text());
        let told = "invalid peer certificate";
        assert!(output.stderr.contains(told), "{}", output.text());
        let mut command = sandbox.command(&line);
        command.env("SSL_CERT_FILE", storage.file("authority.crt"));
        let output = sandbox.finish(command);
        check(&output.text(), "sha256:<manifest>");
        sandbox.run(format!("image rm {reference}"));
    }
}
