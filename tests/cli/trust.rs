//! Policies: their files, when they are asked, and what is told of them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ironboot::oci::Digest;
use serde_json::json;

use crate::attached::{Attached, SIGNED, demand, demand_of_repository, policy, signed, untrusted};
use crate::image::{Image, OCI_MANIFEST, direct, disk, entry, manifest};
use crate::sandbox::{Sandbox, check, check_json};
use crate::signer::{Signer, statement};

#[test]
fn a_policy_that_is_not_understood_lets_nothing_in() {
    let anything = r#"[{"type":"insecureAcceptAnything"}]"#;
    for (text, expected) in [
        ("", "EOF while parsing a value at line 1 column 0"),
        (
            &format!(r#"{{"default":{anything},"default":{anything}}}"#),
            "duplicate field `default` at line 1 column 56",
        ),
        (
            r#"{"default":[{"type":"sigstoreSigned","fulcio":{}}]}"#,
            "unknown field `fulcio`, expected one of `type`, `keyPath`, `keyPaths`, `keyData`, \
             `keyDatas`, `signedIdentity` at line 1 column 45",
        ),
        (
            r#"{"default":[{"type":"signedBy"}]}"#,
            "default[0]: requirement signedBy is not supported",
        ),
        (
            &format!(r#"{{"default":{anything},"transports":{{"docker":{{"a.b":[]}}}}}}"#),
            "transports.docker[\"a.b\"]: it has no requirement",
        ),
    ] {
        let sandbox = Sandbox::new();
        let image = direct();
        policy(&sandbox, text);
        let server = image.serve();
        let told = untrusted(&sandbox, &server, &image);
        assert!(told.contains(&format!("caused by: {expected}\n")), "{told}");
        assert!(
            told.contains("error: policy $TMP/policy.json can not be used\n"),
            "{told}"
        );
    }
}

#[test]
fn a_policy_or_a_key_that_others_may_write_is_refused() {
    let image = direct();
    let sandbox = Sandbox::new();
    let signer = Signer::p256();
    let (policy_file, key) = (sandbox.path("policy.json"), sandbox.path("key.pub"));
    fs::write(&key, signer.pem()).unwrap();
    let requirement = json!({
        "type": "sigstoreSigned",
        "keyPaths": [key],
        "signedIdentity": {"type": "matchRepository"},
    });
    let text = json!({ "default": [requirement] }).to_string();
    policy(&sandbox, &text);
    let top = image.digest("top");
    let bundle = signer.bundle(&statement(top));
    let server = Attached::default()
        .bundles(("referrers", top), &[bundle])
        .serve(&image);
    let told = |expected: &str| {
        let told = untrusted(&sandbox, &server, &image);
        assert!(told.contains(expected), "{told}");
    };
    for file in [&policy_file, &key] {
        let shown = file.file_name().unwrap().to_str().unwrap();
        for mode in [0o666, 0o620, 0o602] {
            fs::set_permissions(file, PermissionsExt::from_mode(mode)).unwrap();
            told(&format!("can not trust $TMP/{shown}\n"));
            told("caused by: others than its owner may write to it\n");
        }
        fs::set_permissions(file, PermissionsExt::from_mode(0o644)).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(file, Some(1234), None).unwrap();
            told("it belongs to user 1234, neither to root nor to user 0\n");
            chown(file, Some(0), None).unwrap();
        }
        let aside = sandbox.path("aside");
        fs::rename(file, &aside).unwrap();
        told(&format!("can not trust $TMP/{shown}\n"));
        told("hint: there is no such file; see to its path");
        symlink(sandbox.path("nowhere"), file).unwrap();
        told(&format!("can not trust $TMP/{shown}\n"));
        fs::remove_file(file).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            file,
            rustix::fs::FileType::Fifo,
            0o600.into(),
            0,
        )
        .unwrap();
        told("caused by: it is a pipe\n");
        fs::remove_file(file).unwrap();
        fs::create_dir(file).unwrap();
        told("caused by: it is a directory\n");
        fs::remove_dir(file).unwrap();
        // A link to one that may be trusted is one.
        symlink(&aside, file).unwrap();
        let pull = sandbox.run(format!("pull -q --arch amd64 {}/os:1", server.address()));
        assert_eq!(pull.status, 0, "{}", pull.text());
        fs::remove_dir_all(sandbox.store()).unwrap();
        // But not if everybody may put another in the place of what it leads to.
        let open = sandbox.path("open");
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, PermissionsExt::from_mode(0o777)).unwrap();
        fs::rename(&aside, open.join("aside")).unwrap();
        fs::remove_file(file).unwrap();
        symlink(open.join("aside"), file).unwrap();
        told(&format!("can not trust $TMP/{shown}\n"));
        told("caused by: everybody may write to $TMP/open\n");
        fs::remove_file(file).unwrap();
        fs::rename(open.join("aside"), file).unwrap();
        fs::remove_dir(&open).unwrap();
    }
}

#[test]
fn a_key_that_is_taken_away_is_of_no_effect_from_then_on() {
    let sandbox = Sandbox::new();
    let (old, new) = (Signer::p256(), Signer::ed25519());
    let image = direct();
    let top = image.digest("top");
    let both = [old.bundle(&statement(top)), new.bundle(&statement(top))];
    let server = Attached::default()
        .bundles(("referrers", top), &both)
        .serve(&image);
    let reference = format!("{}/os:1", server.address());
    demand(&sandbox, &[&old], "matchRepository");
    let prepare = format!("prepare -q --accel tcg --arch amd64 --name vm {reference}");
    assert_eq!(sandbox.run(&prepare).status, 0);
    let offline = [
        format!("{prepare} --pull never"),
        format!("pull -q --arch amd64 --pull never {reference}"),
        format!("run --dry-run --accel tcg --arch amd64 --pull never {reference}"),
    ];
    demand(&sandbox, &[&new], "matchRepository");
    for line in &offline {
        let output = sandbox.run(format!("--json {line}"));
        assert_eq!(output.json()["error"]["kind"], "untrusted", "{line}");
    }
    // What is here will not do any more, and somebody may be asked.
    let again = sandbox.run(format!("{prepare} --pull missing"));
    assert_eq!(again.status, 0, "{}", again.text());
    for line in &offline {
        let output = sandbox.run(line);
        assert_eq!(output.status, 0, "{line}: {}", output.text());
    }
    policy(&sandbox, r#"{"default":[{"type":"reject"}]}"#);
    for line in &offline {
        let output = sandbox.run(line);
        assert_eq!(output.status, 125, "{line}");
        let hint =
            "that scope of the file decides; an image that is to be let in takes one of its own";
        assert!(output.text().contains(hint), "{line}: {}", output.text());
    }
}

#[test]
fn an_image_in_a_layout_is_of_the_transport_that_it_is_named_by() {
    let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
    let sandbox = Sandbox::new();
    let image = direct();
    let reference = sandbox.layout(&image);
    let path = &reference["oci:".len()..reference.len() - ":1".len()];
    let signed = json!([{
        "type": "sigstoreSigned",
        "keyData": STANDARD.encode(Signer::p256().pem()),
    }])
    .to_string();
    let plan = format!("plan --json --arch amd64 {reference}");
    for (default, oci, status) in [
        (accept, String::new(), 0),
        (r#"[{"type":"reject"}]"#, String::new(), 125),
        (&signed, String::new(), 125),
        (&signed, format!(r#""":{accept}"#), 0),
        (&signed, format!(r#""{path}":{accept}"#), 0),
        (
            &signed,
            format!(r#""{}":{accept}"#, sandbox.path("").display()),
            125,
        ),
        (
            accept,
            format!(r#""{path}":[{{"type":"reject"}}],"":{accept}"#),
            125,
        ),
    ] {
        let text = format!(r#"{{"default":{default},"transports":{{"oci":{{{oci}}}}}}}"#);
        policy(&sandbox, &text);
        let output = sandbox.run(&plan);
        // With a slash at its end, a path is none.
        assert_eq!(output.status, status, "{text}: {}", output.text());
    }
}

#[test]
fn inspect_tells_what_was_verified_and_what_was_not() {
    let sandbox = Sandbox::new();
    let signer = Signer::p256();
    let image = direct();
    let (top, manifest) = (image.digest("top"), image.digest("manifest"));
    let server = Attached::default()
        .bundles(("referrers", top), &[signer.bundle(&statement(top))])
        .simple(manifest, &[signed(&signer, manifest, SIGNED)])
        .serve(&image);
    let (_server, reference) = sandbox.at(&image, server);
    let key = Digest::of(&STANDARD.decode(body(&signer.pem())).unwrap()).to_string();
    sandbox.mask(&key, "<key>");
    let told = || {
        let output = sandbox.run(format!("image inspect {reference}"));
        assert_eq!(output.status, 0, "{}", output.text());
        let lines = output.stdout.lines().skip(2);
        let lines = lines.take_while(|line| !line.is_empty());
        lines.map(|line| format!("{line}\n")).collect::<String>()
    };
    let from_registry = || told();
    demand(&sandbox, &[&signer], "matchRepository");
    let by_bundle = r#"
        verified by $TMP/policy.json
          bundle by key <key>
            of sha256:<top> without a name (matchRepository)
          not checked: transparency log, certificate, expiry
        "#;
    check(&from_registry(), by_bundle);
    assert_eq!(
        sandbox
            .run(format!("pull -q --arch amd64 {reference}"))
            .status,
        0
    );
    check(&told(), by_bundle);
    check_json(
        &sandbox
            .run(format!("image inspect --json {reference}"))
            .json()["trust"],
        r#"
        {
          "accepted": true,
          "not_checked": [
            "transparency log",
            "certificate",
            "expiry"
          ],
          "policy": "$TMP/policy.json",
          "requirements": [
            {
              "asked_identity": "matchRepository",
              "covers": "sha256:<top>",
              "form": "bundle",
              "key": "<key>",
              "signed_identity": null,
              "type": "sigstoreSigned"
            }
          ],
          "scope": "everything (its default)"
        }
        "#,
    );
    demand_of_repository(&sandbox, &signer);
    check(
        &told(),
        r#"
        not let in by $TMP/policy.json: the policy for everything (its default) asks for another signature than it has
          a signature: it names no repository, which exactRepository asks for
        "#,
    );
    let refused = sandbox
        .run(format!("image inspect --json {reference}"))
        .json();
    assert_eq!(refused["trust"]["accepted"], false);
    // Whoever uses it has the other signature fetched.
    assert_eq!(
        sandbox
            .run(format!("pull -q --arch amd64 {reference}"))
            .status,
        0
    );
    check(
        &told(),
        r#"
        verified by $TMP/policy.json
          simple-signing by key <key>
            of sha256:<manifest> as reg.example/os (exactRepository)
          not checked: transparency log, certificate, expiry
        "#,
    );
    policy(
        &sandbox,
        r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
    );
    check(
        &told(),
        "not verified: $TMP/policy.json asks for no signature of everything (its default)\n",
    );
}

#[test]
fn inspect_calls_an_image_verified_only_if_all_of_it_that_is_here_is() {
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64"] {
        let layers = [image.layer(
            &format!("disk-{architecture}"),
            "rootfs",
            &disk(architecture),
        )];
        let text = manifest(&config, &layers);
        let document = image.document(architecture, OCI_MANIFEST, &text);
        entries.push(entry(document, architecture));
    }
    let image = image.index(&entries);
    let signer = Signer::p256();
    let (amd64, arm64) = (image.digest("amd64"), image.digest("arm64"));
    let one = statement(arm64);
    let mut both = one.clone();
    both["subject"] = json!([statement(amd64)["subject"][0], one["subject"][0]]);
    for (statement, is_accepted, met) in [(one, false, 0), (both, true, 2)] {
        let attached = Attached::default();
        let attached = attached.bundles(("referrers", arm64), &[signer.bundle(&statement)]);
        let sandbox = Sandbox::new();
        let server = attached.serve(&image);
        let reference = format!("{}/os:1", server.address());
        policy(
            &sandbox,
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        );
        assert_eq!(
            sandbox
                .run(format!("pull -q --all --arch amd64 {reference}"))
                .status,
            0
        );
        demand(&sandbox, &[&signer], "matchRepository");
        // By now, the store keeps the signature of the one.
        assert_eq!(
            sandbox
                .run(format!("pull -q --arch arm64 {reference}"))
                .status,
            0
        );
        let inspected = sandbox
            .run(format!("image inspect --json {reference}"))
            .json();
        let trust = &inspected["trust"];
        assert_eq!(trust["accepted"], is_accepted, "{trust}");
        let told = trust["requirements"].as_array().map_or(0, Vec::len);
        assert_eq!(told, met, "{trust}");
        let used = sandbox.run(format!("pull -q --arch amd64 {reference}"));
        assert_eq!(used.status == 0, is_accepted, "{}", used.text());
    }
}

#[test]
fn a_link_leads_into_no_other_scope() {
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(&direct());
    let path = &reference["oci:".len()..reference.len() - ":1".len()];
    let (accept, reject) = (
        r#"[{"type":"insecureAcceptAnything"}]"#,
        r#"[{"type":"reject"}]"#,
    );
    policy(
        &sandbox,
        &format!(r#"{{"default":{accept},"transports":{{"oci":{{"{path}":{reject}}}}}}}"#),
    );
    symlink(path, sandbox.path("link")).unwrap();
    for path in [path, sandbox.path("link").to_str().unwrap()] {
        let output = sandbox.run(format!("pull --json --arch amd64 oci:{path}:1"));
        assert_eq!(output.json()["error"]["kind"], "untrusted", "{path}");
    }
}

#[test]
fn what_counts_is_kept_however_long_it_is() {
    let signer = Signer::p256();
    let image = direct();
    let top = image.digest("top");
    for (padding, is_accepted) in [(40_000, true), (70_000, false)] {
        let sandbox = Sandbox::new();
        demand(&sandbox, &[&signer], "matchRepository");
        let mut bundle = signer.bundle(&statement(top));
        bundle["verificationMaterial"]["padding"] = json!("\u{1}".repeat(padding / 6));
        let attached = Attached::default().bundles(("referrers", top), &[bundle]);
        let server = attached.serve(&image);
        let pull = format!("pull -q --arch amd64 {}/os:1", server.address());
        for line in [pull.clone(), format!("{pull} --pull never")] {
            let output = sandbox.run(&line);
            assert_eq!(output.status == 0, is_accepted, "{line}: {}", output.text());
        }
    }
}

/// What is between the lines of a PEM.
fn body(pem: &str) -> String {
    pem.lines().filter(|line| !line.starts_with('-')).collect()
}
