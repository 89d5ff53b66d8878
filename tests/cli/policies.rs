//! When the registry is asked, and for what: `--pull`, tags that move, digests that do not; and what
//! is told meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::hostile::Hostile;
use crate::image::{Image, direct, disk, disk_only};
use crate::sandbox::{Sandbox, check};

/// What the registry is asked by `line`: method and the last two parts of the path.
fn asked(sandbox: &Sandbox, server: &Hostile, line: &str) -> Vec<String> {
    let before = server.requests().len();
    let output = sandbox.run(line);
    assert_eq!(output.status, 0, "{line}: {}", output.text());
    let requests = server.requests().into_iter().skip(before);
    requests
        .map(|request| {
            let path = request.path.trim_start_matches("/v2/os/");
            sandbox.shown(&format!("{} {path}", request.method))
        })
        .collect()
}

#[test]
fn what_is_here_costs_one_question_and_by_digest_none() {
    let sandbox = Sandbox::new();
    let image = direct();
    let (server, reference) = sandbox.serve(&image);
    let digest = format!(
        "{}@{}",
        reference.trim_end_matches(":1"),
        image.digest("top")
    );
    let mut first = asked(&sandbox, &server, &format!("pull -q {reference}"));
    assert!(first.len() > 3);
    // Nor is anything asked for twice, what the plan is made with neither.
    first.sort();
    let all = first.len();
    first.dedup();
    assert_eq!(first.len(), all);
    let head = ["HEAD manifests/1"];
    for line in [
        format!("pull -q {reference}"),
        format!("pull -q --pull always {reference}"),
        format!("plan {reference}"),
        format!("prepare -q --name vm {reference}"),
        format!("run --dry-run {reference}"),
    ] {
        assert_eq!(asked(&sandbox, &server, &line), head, "{line}");
    }
    let nothing: [&str; 0] = [];
    for line in [
        format!("pull -q --pull missing {reference}"),
        format!("pull -q --pull never {reference}"),
        format!("prepare -q --pull never --name vm {reference}"),
        format!("plan --pull missing {reference}"),
        format!("plan {digest}"),
        format!("pull -q {digest}"),
        format!("run --dry-run {digest}"),
    ] {
        assert_eq!(asked(&sandbox, &server, &line), nothing, "{line}");
    }
}

#[test]
fn a_tag_that_moved_costs_what_is_new() {
    let sandbox = Sandbox::new();
    let (old, new) = (disk_only(&disk("old")), disk_only(&disk("new")));
    let moved = Arc::new(AtomicUsize::new(0));
    let (first, second, now) = (old.clone(), new.clone(), Arc::clone(&moved));
    let server = old.serve_except(move |request, _| {
        let image: &Image = if now.load(Ordering::SeqCst) == 0 {
            &first
        } else {
            &second
        };
        Some(image.answer(request))
    });
    let (server, reference) = sandbox.at(&old, server);
    sandbox.name_digests(&new);
    asked(&sandbox, &server, &format!("pull -q {reference}"));
    moved.store(1, Ordering::SeqCst);
    let nothing: [&str; 0] = [];
    let missing = format!("pull -q --pull missing {reference}");
    assert_eq!(asked(&sandbox, &server, &missing), nothing);
    let asked = asked(&sandbox, &server, &format!("pull -q {reference}"));
    let layers = asked.iter().filter(|line| line.contains("blobs/"));
    assert_eq!(asked[0], "HEAD manifests/1");
    assert_eq!(asked[1], "GET manifests/1");
    assert_eq!(layers.count(), 1, "{asked:?}");
}

#[test]
fn what_is_not_here_is_not_asked_for_against_the_users_word() {
    let sandbox = Sandbox::new();
    let image = direct();
    let (server, reference) = sandbox.serve(&image);
    check(
        &sandbox.run(format!("plan --pull never {reference}")).text(),
        r#"
        ------- stderr -------
        error: image is not in the store: $REGISTRY/os:1
        hint: `ironboot image list` shows what there is
        [exit status: 125]
        "#,
    );
    assert_eq!(server.requests(), []);
    sandbox.run(format!("pull -q --boot direct {reference}"));
    std::fs::remove_file(
        sandbox
            .store()
            .join("blobs/sha256")
            .join(image.digest("kernel").trim_start_matches("sha256:")),
    )
    .unwrap();
    let before = server.requests().len();
    let output = sandbox.run(format!("pull -q --pull never {reference}"));
    check(
        &output.text(),
        r#"
        ------- stderr -------
        error: can not fetch the kernel of $REGISTRY/os:1
          caused by: oci:$TMP/store@sha256:<top> has no sha256:<kernel>
        [exit status: 125]
        "#,
    );
    assert_eq!(server.requests().len(), before);
}

#[test]
fn several_images_are_pulled_at_once_and_told_in_their_order() {
    let sandbox = Sandbox::new();
    let names = ["first", "second", "third", "fourth", "fifth"];
    let images = names.map(|name| disk_only(&disk(name)));
    for (image, name) in images.iter().zip(names) {
        sandbox.mask(image.digest("manifest"), name);
    }
    let served: Vec<_> = images.iter().map(Image::serve).collect();
    let references: Vec<String> = served
        .iter()
        .map(|server| format!("{}/os:1", server.address()))
        .collect();
    let line = format!("pull -q --arch amd64 {}", references.join(" "));
    let output = sandbox.run(&line);
    let expected: String = names.iter().map(|name| format!("{name}\n")).collect();
    assert_eq!((output.status, output.stdout), (0, expected));
}

#[test]
fn an_image_that_can_not_be_pulled_takes_nothing_from_the_others() {
    let sandbox = Sandbox::new();
    let [one, two] = ["one", "two"].map(|name| {
        let image = disk_only(&disk(name));
        sandbox.mask(image.digest("manifest"), name);
        let directory = sandbox.path(name);
        image.write_layout(&directory);
        format!("oci:{}:1", directory.display())
    });
    let pull = |words: &str| sandbox.run(format!("pull -q --arch amd64 {words}"));
    let output = pull(&format!("{one} oci:none {two} oci-archive:no.tar"));
    check(
        &output.text(),
        r#"
        one
        two
        ------- stderr -------
        error: cannot open $TMP/home/none
          caused by: No such file or directory (os error 2)
        hint: check the path
        error: cannot open $TMP/home/no.tar
          caused by: No such file or directory (os error 2)
        hint: check the path
        [exit status: 125]
        "#,
    );
    assert_eq!(sandbox.names("refs").len(), 2);
    // Of several that were asked for, one that worked is a list of one.
    let json = pull(&format!("--json {one} oci:none")).json();
    let images = json["images"].as_array().unwrap();
    let digests = images.iter().map(|one| &one["image"]["manifest_digest"]);
    assert!(digests.eq(["one"]), "{json}");
    assert_eq!(json["error"]["kind"], "not-found");
    assert_eq!(json["errors"], serde_json::json!([json["error"]]));
    let json = pull("--json oci:none oci-archive:no.tar").json();
    assert_eq!(json["images"], serde_json::json!([]));
    let errors = json["errors"].as_array().unwrap().iter();
    let messages: Vec<_> = errors.map(|error| error["message"].clone()).collect();
    assert_eq!(
        messages,
        ["cannot open $TMP/home/none", "cannot open $TMP/home/no.tar"]
    );
}

#[test]
fn a_program_is_told_how_far_everything_is() {
    let sandbox = Sandbox::new();
    let image = direct();
    let (_server, reference) = sandbox.serve(&image);
    let output = sandbox.run(format!("pull --progress json --arch amd64 {reference}"));
    assert_eq!(output.status, 0, "{}", output.text());
    let events: Vec<serde_json::Value> = output
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let is = |event: &&serde_json::Value, state: &str| event["state"] == state;
    let missing = &events[0]["missing_bytes"];
    assert_eq!(events[0]["event"], "fetching");
    let started = events.iter().filter(|event| is(event, "start")).count();
    let done: Vec<_> = events.iter().filter(|event| is(event, "done")).collect();
    assert!(started > 2 && done.len() == started);
    for blob in &done {
        assert_eq!(blob["done_bytes"], blob["size_bytes"]);
    }
    let total = &done.last().unwrap()["total"];
    assert_eq!(
        (&total["done_bytes"], &total["size_bytes"]),
        (missing, missing)
    );
    let roles: Vec<_> = done
        .iter()
        .map(|blob| blob["role"].as_str().unwrap())
        .collect();
    assert!(
        roles.contains(&"kernel") && roles.contains(&"initramfs"),
        "{roles:?}"
    );
}
