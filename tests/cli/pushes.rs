//! `image push`: from where, what is sent, and what happens on the way.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use serde_json::json;

use crate::archives::archived;
use crate::hostile::{Hostile, Reply, Request};
use crate::image::{direct, disk, disk_only};
use crate::registry::{Access, DockerRegistry};
use crate::sandbox::{Sandbox, check};

/// A registry that has nothing and takes everything, except where `other` has an answer.
fn taking(other: impl Fn(&Request, usize) -> Option<Reply> + Send + Sync + 'static) -> Hostile {
    Hostile::start(move |request, before| {
        other(request, before).unwrap_or_else(|| match request.method.as_str() {
            "GET" => Reply::ok(b"{}"),
            "HEAD" => Reply::status(404),
            "POST" => Reply::status(202).header("Location", "here"),
            _ => Reply::status(201),
        })
    })
}

#[test]
fn an_archive_is_pushed_without_being_unpacked() {
    let sandbox = Sandbox::new();
    let registry = DockerRegistry::start(Access::Open);
    sandbox.mask(registry.address(), "$REGISTRY");
    archived(&sandbox, &direct());
    let there = format!("{}/os:1", registry.address());
    let push = format!("image push -q oci-archive:os.tar:1 {there}");
    check(&sandbox.run(push).text(), "sha256:<top>");
    check(
        &sandbox
            .run(format!("image inspect {there}"))
            .text()
            .replace(" (read from its source)", ""),
        r#"
        $REGISTRY/os:1
        sha256:<top>
        not verified: $TMP/policy.json asks for no signature of everything (its default)

        sha256:<manifest> linux/amd64, virtualization (by layers)
          disk  64.00 KiB  sha256:<disk>  application/vnd.ironcore.image.rootfs
          kernel  4.00 KiB  sha256:<kernel>  application/vnd.ironcore.image.kernel
          initramfs  3.00 KiB  sha256:<initramfs>  application/vnd.ironcore.image.initramfs
          squashfs  2.00 KiB  sha256:<squashfs>  application/vnd.ironcore.image.squashfs
        "#,
    );
    assert_eq!(
        sandbox
            .run(format!("pull -q --arch amd64 --all {there}"))
            .status,
        0
    );
}

#[test]
fn what_another_repository_of_the_registry_has_is_not_sent() {
    let sandbox = Sandbox::new();
    let registry = DockerRegistry::start(Access::Open);
    let image = direct();
    let layout = sandbox.layout(&image);
    let there = |name: &str| format!("{}/{name}:1", registry.address());
    let pushed = |from: &str, to: &str| {
        let pushed = sandbox
            .run(format!("image push -q --json {from} {to}"))
            .json();
        (
            pushed["sent_bytes"].clone(),
            pushed["present_bytes"].clone(),
        )
    };
    let all = image.size("disk")
        + image.size("kernel")
        + image.size("initramfs")
        + image.size("squashfs")
        + image.size("config");
    let sent = (json!(all), json!(0));
    let mounted = (json!(0), json!(all));
    assert_eq!(pushed(&layout, &there("team/base")), sent);
    // Nothing says yet that it is there.
    assert_eq!(pushed(&layout, &there("team/unknown")), sent);
    let pull = format!("pull -q --arch amd64 --all {}", there("team/base"));
    assert_eq!(sandbox.run(pull).status, 0);
    assert_eq!(pushed(&there("team/base"), &there("os")), mounted);
    assert_eq!(pushed(&layout, &there("other")), mounted);
    // Another registry has nothing to mount it from.
    let elsewhere = DockerRegistry::start(Access::Open);
    let elsewhere = format!("{}/os:1", elsewhere.address());
    assert_eq!(pushed(&there("team/base"), &elsewhere), sent);
    for copy in [there("os"), there("other")] {
        let pull = format!("pull -q --arch amd64 --all {copy}");
        check(&sandbox.run(pull).text(), "sha256:<manifest>");
    }
}

/// As after a push that was killed between two blobs.
#[test]
fn blobs_that_are_whole_in_the_registry_are_not_sent_again() {
    let sandbox = Sandbox::new();
    let registry = DockerRegistry::start(Access::Open);
    let there = format!("{}/os:1", registry.address());
    let (part, whole) = (disk_only(&disk("amd64")), direct());
    let (part, layout) = (sandbox.layout(&part), sandbox.layout(&whole));
    sandbox.run(format!("image push -q {part} {there}"));
    let pushed = sandbox.run(format!("image push -q --json {layout} {there}"));
    let pushed = pushed.json();
    assert_eq!(pushed["present_bytes"], whole.size("disk"));
    let others = ["kernel", "initramfs", "squashfs", "config"];
    let others: usize = others.iter().map(|name| whole.size(name)).sum();
    assert_eq!(pushed["sent_bytes"], others);
}

#[test]
fn several_blobs_are_under_way_at_the_same_time_but_not_all() {
    let sandbox = Sandbox::new();
    let layout = sandbox.layout(&direct());
    // How many are under way, and how many were at most.
    let state = Arc::new((Mutex::new((0, 0)), Condvar::new()));
    let shared = Arc::clone(&state);
    let server = taking(move |request, _| {
        if request.method != "PUT" || !request.path.contains("/blobs/") {
            return None;
        }
        let (counts, changed) = &*shared;
        let mut counts = counts.lock().unwrap();
        counts.0 += 1;
        counts.1 = counts.1.max(counts.0);
        changed.notify_all();
        let several = |counts: &mut (u32, u32)| counts.1 < 3;
        let limit = Duration::from_secs(20);
        let (mut counts, _) = changed.wait_timeout_while(counts, limit, several).unwrap();
        counts.0 -= 1;
        Some(Reply::status(201))
    });
    let push = format!("image push -q {layout} {}/os:1", server.address());
    check(&sandbox.run(push).text(), "sha256:<top>");
    assert_eq!(*state.0.lock().unwrap(), (0, 3));
}

/// Whoever reads meanwhile must not meet a name without its content.
#[test]
fn documents_come_after_all_blobs_and_the_tag_last() {
    let sandbox = Sandbox::new();
    let image = direct();
    let layout = sandbox.layout(&image);
    let server = taking(|_, _| None);
    let push = format!("image push -q {layout} {}/os:1", server.address());
    check(&sandbox.run(push).text(), "sha256:<top>");
    let requests = server.requests();
    let puts = requests.iter().filter(|request| request.method == "PUT");
    let puts: Vec<&str> = puts.map(|request| request.path.as_str()).collect();
    assert_eq!(puts.len(), 7);
    assert!(puts[..5].iter().all(|path| path.contains("/blobs/")));
    let manifest = format!("/v2/os/manifests/{}", image.digest("manifest"));
    assert_eq!(puts[5..], [manifest.as_str(), "/v2/os/manifests/1"]);
}

#[test]
fn an_upload_that_breaks_is_told_and_mended() {
    let sandbox = Sandbox::new();
    let layout = sandbox.layout(&disk_only(&disk("amd64")));
    let server = taking(|request, before| {
        let is_first = request.method == "PUT" && request.path.contains("/blobs/") && before == 0;
        is_first.then(|| Reply::broken_after(0))
    });
    sandbox.mask(&server.address(), "$REGISTRY");
    let push = format!("image push {layout} {}/os:1", server.address());
    check(
        &sandbox.run(push).text(),
        r#"
        sha256:<top>
        ------- stderr -------
        blob: $REGISTRY is not available; trying again
        "#,
    );
}

#[test]
fn an_archive_of_which_a_part_is_missing_is_not_pushed_at_all() {
    let sandbox = Sandbox::new();
    let image = direct();
    sandbox.name_digests(&image);
    let directory = sandbox.path("layout");
    image.write_layout(&directory);
    let blob = image.digest("squashfs").replace(':', "/");
    std::fs::remove_file(directory.join("blobs").join(blob)).unwrap();
    crate::archives::archive(&directory, &sandbox.path("home/os.tar"), &[]);
    let server = taking(|_, _| None);
    let push = format!("image push oci-archive:os.tar {}/os:1", server.address());
    check(
        &sandbox.run(push).text(),
        r#"
        ------- stderr -------
        error: image oci-archive:$TMP/home/os.tar is not whole here: sha256:<squashfs> is missing
        [exit status: 125]
        "#,
    );
    assert_eq!(server.requests(), []);
}
