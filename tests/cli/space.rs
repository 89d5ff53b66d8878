//! What is in the store already, what takes space there, and what there is no space for.

use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use crate::hostile::Reply;
use crate::image::{Image, OCI_MANIFEST, disk, disk_only, entry, initramfs, kernel, manifest};
use crate::registry::{Access, DockerRegistry};
use crate::sandbox::{Output, Sandbox, check};

/// Writes `image` as the only one of the layout directory `name`; returns its reference.
fn written(sandbox: &Sandbox, name: &str, image: &Image) -> String {
    let directory = sandbox.path(name);
    if directory.exists() {
        fs::remove_dir_all(&directory).unwrap();
    }
    image.write_layout(&directory);
    format!("oci:{}", directory.display())
}

fn done(sandbox: &Sandbox, line: &str) {
    let output = sandbox.run(line);
    assert_eq!(output.status, 0, "{line}: {}", output.text());
}

fn blobs(sandbox: &Sandbox) -> usize {
    sandbox.names("blobs/sha256").len()
}

#[test]
fn what_a_moved_tag_led_to_is_freed() {
    let sandbox = Sandbox::new();
    let image = written(&sandbox, "moving", &disk_only(&disk("one")));
    done(&sandbox, &format!("pull -q --arch amd64 {image}"));
    let of_one = blobs(&sandbox);
    written(&sandbox, "moving", &disk_only(&disk("two")));
    done(&sandbox, &format!("pull -q --arch amd64 {image}"));
    assert_eq!(blobs(&sandbox), of_one);
    done(&sandbox, &format!("image rm {image}"));
    assert_eq!(blobs(&sandbox), 0);
}

/// N14.
#[test]
fn what_an_instance_kept_of_a_moved_tag_is_freed_with_it() {
    let sandbox = Sandbox::new();
    let image = written(&sandbox, "moving", &disk_only(&disk("one")));
    done(
        &sandbox,
        &format!("prepare -q --arch amd64 --accel tcg --name vm {image}"),
    );
    let of_one = blobs(&sandbox);
    written(&sandbox, "moving", &disk_only(&disk("two")));
    done(&sandbox, &format!("pull -q --arch amd64 {image}"));
    assert!(blobs(&sandbox) > of_one, "the instance has lost its disk");
    done(&sandbox, &format!("image rm {image}"));
    assert_eq!(
        blobs(&sandbox),
        of_one,
        "what the instance boots with, and no more"
    );
    done(&sandbox, "rm vm");
    assert_eq!(blobs(&sandbox), 0);
}

#[test]
fn an_image_pulled_whole_is_pushed_and_read_by_others() {
    let sandbox = Sandbox::new();
    let registry = DockerRegistry::start(Access::Open);
    let mut image = Image::default();
    let config = image.config("config", r#"{"commandLine":"quiet"}"#);
    let mut entries = Vec::new();
    for (name, architecture, variant) in [
        ("metal", "arm64", "metal"),
        ("virtualization", "amd64", "virtualization"),
    ] {
        let layers = [
            image.layer(name, "kernel", &kernel(architecture)),
            image.layer("initramfs", "initramfs", &initramfs()),
        ];
        let manifest = manifest(&config, &layers);
        let descriptor = image.document(&format!("of {name}"), OCI_MANIFEST, &manifest);
        let mut listed = entry(descriptor, architecture);
        listed["annotations"] = json!({"variant": variant});
        entries.push(listed);
    }
    let image = image.index(&entries);
    let there = format!("{}/os", registry.address());
    let layout = written(&sandbox, "whole", &image);
    done(&sandbox, &format!("image push -q {layout} {there}:1"));
    done(&sandbox, &format!("pull -q --arch amd64 --all {there}:1"));
    done(&sandbox, &format!("image push -q {there}:1 {there}:2"));
    let digest = |tag: &str| {
        sandbox
            .run(format!("image inspect --json {there}:{tag}"))
            .json()["digest"]
            .take()
    };
    assert_eq!(digest("1"), digest("2"));
    let store = sandbox.store();
    let output = Command::new("skopeo")
        .args(["copy", "-q", "--all"])
        .arg(format!("oci:{}:{there}:1", store.display()))
        .arg(format!("oci:{}:copy", sandbox.path("copy").display()))
        .output()
        .expect("skopeo is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn what_does_not_fit_is_not_begun() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let mut layer = image.layer("disk", "rootfs", &disk("1"));
    layer["size"] = json!(1_u64 << 60);
    let image = image.top(OCI_MANIFEST, &manifest(&config, &[layer]));
    let (_server, reference) = sandbox.serve(&image);
    let output = sandbox.run(format!("pull -q --json --arch amd64 {reference}"));
    assert_eq!(output.status, 125);
    let error = &output.json()["error"];
    assert_eq!(error["kind"], "no-space");
    let message = error["message"].as_str().unwrap();
    let told = message.strip_prefix("1.00 EiB are needed, and the disk of $TMP/store has ");
    let left: Vec<&str> = told.unwrap().split(' ').collect();
    assert!(
        matches!(left[..], [number, unit, "left"]
            if number.parse::<f64>().is_ok() && unit.ends_with("iB")),
        "{message}"
    );
    assert_eq!(sandbox.names("ingest"), Vec::<String>::new());
}

/// Runs `line` with a store on a file system of so many MiB.
fn run_in(sandbox: &Sandbox, mib: usize, line: &str) -> Output {
    let ironboot = sandbox.command(line);
    let mut command = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let store = sandbox.store();
    fs::create_dir_all(&store).unwrap();
    let script = format!(
        r#"mount -t tmpfs -o size={mib}m tmpfs "$0" && "$@"; status=$?; df --output=used -k "$0" | tail -n 1; exit $status"#
    );
    command
        .args(["--mount", "sh", "-c", &script])
        .arg(&store)
        .arg(ironboot.get_program())
        .args(ironboot.get_args());
    for (name, value) in ironboot.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    sandbox.finish(command)
}

#[test]
fn what_is_mostly_zeros_needs_room_for_the_rest_only() {
    let sandbox = Sandbox::new();
    let mut sparse = disk("sparse");
    sparse.resize(128 << 20, 0);
    let (_server, reference) = sandbox.serve(&disk_only(&sparse));
    let output = run_in(&sandbox, 32, &format!("pull -q --arch amd64 {reference}"));
    assert_eq!(output.status, 0, "{}", output.text());
    let used: usize = output
        .stdout
        .lines()
        .last()
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(used < 1024, "{used} KiB");

    let mut full = sparse;
    full[1 << 20..].fill(7);
    let image = disk_only(&full);
    let (server, reference) = sandbox.serve(&image);
    let line = format!("pull -q --json --arch amd64 {reference}");
    let output = run_in(&sandbox, 32, &line);
    assert_eq!(output.status, 125);
    let object: serde_json::Value =
        serde_json::from_str(output.stdout.lines().next().unwrap()).unwrap();
    assert_eq!(object["error"]["kind"], "no-space");
    // It was looked at in places, and never begun.
    let disk = image.blob_path("disk");
    let whole = |request: &&crate::hostile::Request| {
        request.path == disk && request.header("range").is_none()
    };
    assert!(server.requests().iter().filter(whole).count() <= 1);
    assert_eq!(sandbox.names("ingest"), Vec::<String>::new());
}

#[test]
fn sizes_that_no_number_holds_together_do_not_fit() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let entries = ["amd64", "arm64", "riscv64"].map(|architecture| {
        let mut layer = image.layer("disk", "rootfs", &disk(architecture));
        layer["size"] = json!((1_u64 << 63) - 4096);
        let manifest = manifest(&config, &[layer]);
        entry(
            image.document(architecture, OCI_MANIFEST, &manifest),
            architecture,
        )
    });
    let (_server, reference) = sandbox.serve(&image.index(&entries));
    let output = sandbox.run(format!("pull -q --json --arch amd64 --all {reference}"));
    assert_eq!(output.status, 125, "{}", output.text());
    assert_eq!(output.json()["error"]["kind"], "no-space");
}

#[test]
fn a_disk_larger_than_any_is_refused_while_it_is_typed() {
    let sandbox = Sandbox::new();
    for size in ["8000000T", "17T", "0"] {
        let run = format!("run -q --dry-run --disk-size {size} r.example/os:1");
        check(
            &sandbox.run(run).text(),
            &format!(
                "
        ------- stderr -------
        error: invalid value '{size}' for '--disk-size <SIZE>': size of a disk is not from 1 byte to 16T: {size}

        For more information, try '--help'.
        [exit status: 2]
        "
            ),
        );
    }
}

#[test]
fn what_is_named_by_a_digest_that_is_here_needs_no_registry() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("1"));
    let is_gone = Arc::new(AtomicBool::new(false));
    let gone = Arc::clone(&is_gone);
    let server =
        image.serve_except(move |_, _| gone.load(Ordering::SeqCst).then(|| Reply::status(404)));
    let (_server, reference) = sandbox.at(&image, server);
    let pinned = format!("{reference}@{}", image.digest("top"));
    done(&sandbox, &format!("pull -q --arch amd64 {reference}"));
    is_gone.store(true, Ordering::SeqCst);
    let tag = sandbox.run(format!("plan --arch amd64 {reference}"));
    assert_eq!(tag.status, 125, "{}", tag.text());
    done(&sandbox, &format!("plan -q --arch amd64 {pinned}"));
    done(
        &sandbox,
        &format!("prepare -q --arch amd64 --accel tcg --name vm {pinned}"),
    );
}

#[test]
fn a_descriptor_that_lies_about_a_blob_that_is_here_is_no_damage() {
    let sandbox = Sandbox::new();
    let honest = written(&sandbox, "honest", &disk_only(&disk("1")));
    done(&sandbox, &format!("pull -q --arch amd64 {honest}"));
    let before = blobs(&sandbox);
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let mut layer = image.layer("disk", "rootfs", &disk("1"));
    layer["size"] = json!(disk("1").len() + 512);
    let image = image.top(OCI_MANIFEST, &manifest(&config, &[layer]));
    let lie = written(&sandbox, "lie", &image);
    let output = sandbox.run(format!("pull -q --json --arch amd64 {lie}"));
    assert_eq!(output.json()["error"]["kind"], "integrity");
    assert_eq!(blobs(&sandbox), before);
    done(
        &sandbox,
        &format!("prepare -q --arch amd64 --accel tcg --name vm {honest}"),
    );
}
