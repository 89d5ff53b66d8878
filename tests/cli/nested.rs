//! Indexes within indexes: followed so deep, kept in the store, and told.

use serde_json::{Value, json};

use crate::forms::{choice, section};
use crate::image::{Image, OCI_INDEX, OCI_MANIFEST, annotated, disk, entry, manifest};
use crate::publishers::{ARCHITECTURES, kbake_manifest};
use crate::refusal::refused;
use crate::registry::{Access, DockerRegistry};
use crate::sandbox::{Sandbox, check, check_json};

/// Adds an index of `entries` that is not the top.
fn inner_index(image: &mut Image, name: &str, entries: &[Value]) -> Value {
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    image.document(name, OCI_INDEX, &index)
}

/// Adds a manifest with one disk; its descriptor says nothing of it.
fn disk_manifest(image: &mut Image, name: &str) -> Value {
    let config = image.config("config", "{}");
    let layer = image.layer(&format!("{name}-disk"), "rootfs", &disk(name));
    image.document(name, OCI_MANIFEST, &manifest(&config, &[layer]))
}

/// An index for each architecture within an index; only the outer entries say what they are for.
fn by_architecture() -> Image {
    let mut image = Image::default();
    let entries = ARCHITECTURES.map(|architecture| {
        let inner = ["virtualization", "metal"].map(|variant| {
            let manifest = disk_manifest(&mut image, &format!("{variant}-{architecture}"));
            annotated(manifest, &[("variant", variant)])
        });
        let inner = inner_index(&mut image, &format!("index-{architecture}"), &inner);
        annotated(entry(inner, architecture), &[("variant", "metal")])
    });
    image.index(&entries)
}

/// N8.
#[test]
fn entries_of_an_inner_index_inherit_what_the_outer_entry_says() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&by_architecture());
    let plan = sandbox.run(format!("plan --arch arm64 {image}")).stdout;
    let lines: Vec<&str> = plan.lines().take(6).collect();
    check(
        &format!("{}\n", lines.join("\n")),
        r#"
        image  oci:$LAYOUT:1
        inner index  sha256:<index-arm64>
        manifest  sha256:<virtualization-arm64>
        selection  the one of 3 entries for virtualization on linux/arm64
        architecture  arm64 (by platform)
        variant  virtualization (by index-annotation)
        "#,
    );
    check(
        &section(&plan, "other manifests"),
        r#"
        other manifests:
          sha256:<index-amd64> linux/amd64: for amd64, not arm64
          sha256:<metal-arm64> linux/arm64, metal (by index-annotation), disk, in index sha256:<index-arm64>: metal by its index-annotation
        "#,
    );
    let plan = sandbox
        .run(format!("plan --json --arch arm64 {image}"))
        .json();
    check_json(
        &plan["selection"],
        r#"
        {
          "reason": "the one of 3 entries for virtualization on linux/arm64",
          "through": [
            "sha256:<index-arm64>"
          ]
        }
        "#,
    );
    assert_eq!(plan["image"]["index_digest"], "sha256:<top>");
    assert_eq!(plan["passed_over"][0]["within"], Value::Null);
    assert_eq!(plan["passed_over"][1]["within"], "sha256:<index-arm64>");
}

#[test]
fn an_inner_index_is_kept_as_long_as_what_it_leads_to() {
    let sandbox = Sandbox::new();
    let image = by_architecture();
    let mut moved = Image::default();
    let other = disk_manifest(&mut moved, "other");
    let moved = moved.index(&[entry(other, "amd64")]);
    let directory = sandbox.path("os");
    sandbox.name_digests(&image);
    image.write_layout(&directory);
    let reference = format!("oci:{}:1", directory.display());
    let prepare = format!("prepare -q --name vm --arch amd64 --accel tcg {reference}");
    assert_eq!(sandbox.run(prepare).status, 0);
    let has = |name: &str| {
        let hex = image.digest(name).strip_prefix("sha256:").unwrap();
        sandbox.names("blobs/sha256").contains(&hex.to_owned())
    };
    let kept = ["top", "index-amd64", "virtualization-amd64"];
    assert!(kept.iter().all(|name| has(name)));
    assert!(!has("index-arm64"));
    let inspected = sandbox.run(format!("image inspect {reference}")).text();
    check(
        &inspected,
        r#"
        oci:$TMP/os:1
        sha256:<top> (read from the store)
        not verified: $TMP/policy.json asks for no signature of everything (its default)

        sha256:<index-arm64> linux/arm64: not here

        sha256:<virtualization-amd64> linux/amd64, virtualization (by index-annotation), in index sha256:<index-amd64>
          disk  64.00 KiB  sha256:<virtualization-amd64-disk>  application/vnd.ironcore.image.rootfs  in the store

        sha256:<metal-amd64> linux/amd64, in index sha256:<index-amd64>: not here
        "#,
    );
    // The tag leads elsewhere, and only the instance needs the rest.
    moved.write_layout(&directory);
    assert_eq!(
        sandbox
            .run(format!("pull -q --arch amd64 {reference}"))
            .status,
        0
    );
    assert!(kept.iter().all(|name| has(name)));
    assert_eq!(sandbox.run("rm vm").status, 0);
    assert!(!kept.iter().any(|name| has(name)));
    assert_eq!(sandbox.run(format!("image rm {reference}")).status, 0);
    assert_eq!(sandbox.names("blobs/sha256"), Vec::<String>::new());
}

#[test]
fn an_inner_index_that_is_here_is_read_by_its_digest_without_a_registry() {
    let sandbox = Sandbox::new();
    let image = by_architecture();
    let (server, reference) = sandbox.serve(&image);
    assert_eq!(
        sandbox
            .run(format!("pull -q --all --arch amd64 {reference}"))
            .status,
        0
    );
    let before = server.requests().len();
    let name = reference.strip_suffix(":1").unwrap();
    let inner = format!("{name}@{}", image.digest("index-arm64"));
    // Its own entries say nothing of the architecture.
    check(
        &choice(&sandbox, "--arch arm64", &inner),
        r#"
        <virtualization-arm64> - by -, virtualization by index-annotation: disk (- by -) of <virtualization-arm64-disk>
        "#,
    );
    assert_eq!(server.requests().len(), before);
}

#[test]
fn an_image_with_inner_indexes_is_pulled_whole_and_pushed_as_it_was() {
    let sandbox = Sandbox::new();
    let image = by_architecture();
    let (_server, reference) = sandbox.serve(&image);
    let registry = DockerRegistry::start(Access::Open);
    sandbox.mask(registry.address(), "$OTHER_REGISTRY");
    let there = format!("{}/copy:1", registry.address());
    let push = format!("image push -q {reference} {there}");
    assert_eq!(
        sandbox
            .run(format!("pull -q --arch amd64 {reference}"))
            .status,
        0
    );
    check(
        &sandbox.run(&push).text(),
        r#"
        ------- stderr -------
        error: image $REGISTRY/os:1 is not whole here: sha256:<index-arm64> is missing
        hint: pull it with --all first
        [exit status: 125]
        "#,
    );
    assert_eq!(
        sandbox
            .run(format!("pull -q --all --arch amd64 {reference}"))
            .status,
        0
    );
    check(&sandbox.run(&push).text(), "sha256:<top>");
    let inspect = |reference: &str| {
        let mut inspected = sandbox
            .run(format!("image inspect --json {reference}"))
            .json();
        for manifest in inspected["manifests"].as_array_mut().unwrap() {
            for layer in manifest["layers"].as_array_mut().unwrap() {
                assert_eq!(layer["stored"], true);
            }
        }
        inspected["manifests"].take()
    };
    assert_eq!(inspect(&there), inspect(&reference));
    check(
        &sandbox.run("image list").text(),
        r#"
        IMAGE  DIGEST  SIZE  FOR
        $REGISTRY/os:1  <top>  259.02 KiB  amd64 virtualization, amd64 metal, arm64 virtualization, arm64 metal
        "#,
    );
}

/// An image that lies within `depth` indexes, and one beside it that lies in the top only, for
/// another architecture.
fn deep(depth: usize) -> Image {
    let mut image = Image::default();
    let mut descriptor = disk_manifest(&mut image, &format!("in-{depth}"));
    for level in (2..=depth).rev() {
        descriptor = inner_index(&mut image, &format!("level-{level}"), &[descriptor]);
    }
    let flat = disk_manifest(&mut image, "flat");
    image.index(&[entry(descriptor, "amd64"), entry(flat, "arm64")])
}

/// N8.
#[test]
fn four_indexes_within_each_other_are_followed_and_no_more() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&deep(4));
    check(
        &choice(&sandbox, "--arch amd64", &image),
        r#"
        <in-4> amd64 by platform, virtualization by layers: disk (- by -) of <in-4-disk>
        "#,
    );
    let image = sandbox.layout(&deep(5));
    refused(
        &sandbox,
        &image,
        "invalid-image",
        r#"
        ------- stderr -------
        error: index sha256:<level-5> lies within 4 others, more than 3: sha256:<top> > sha256:<level-2> > sha256:<level-3> > sha256:<level-4>
        [exit status: 125]
        "#,
    );
    // What is wrong with one entry is its own matter.
    check(
        &choice(&sandbox, "--arch arm64", &image),
        r#"
        <flat> arm64 by platform, virtualization by layers: disk (- by -) of <flat-disk>
        "#,
    );
    let inspected = sandbox.run(format!("image inspect {image}")).stdout;
    let too_deep = inspected
        .lines()
        .find(|line| line.contains(" lies within "));
    check(
        &format!("{}\n", too_deep.unwrap()),
        r#"
        sha256:<level-5> linux/amd64, in index sha256:<level-4>: index sha256:<level-5> lies within 4 others, more than 3: sha256:<top> > sha256:<level-2> > sha256:<level-3> > sha256:<level-4>
        "#,
    );
}

/// N8.
#[test]
fn an_index_that_leads_to_more_than_any_image_has_is_left() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let manifest = disk_manifest(&mut image, "one");
    let many = inner_index(&mut image, "many", &vec![manifest; 200]);
    let (server, reference) = sandbox.serve(&image.index(&vec![many; 3]));
    refused(
        &sandbox,
        &reference,
        "invalid-image",
        r#"
        ------- stderr -------
        error: index sha256:<top> leads to more than 512 documents, or to too large ones
        [exit status: 125]
        "#,
    );
    // Pulled and prepared: four documents each.
    assert!(server.requests().len() <= 8, "{:?}", server.requests());
}

#[test]
fn kernels_within_an_index_yield_to_an_image_beside_them() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let kernels = ARCHITECTURES.map(|architecture| kbake_manifest(&mut image, architecture));
    let kernels = inner_index(&mut image, "kernels", &kernels);
    let os = disk_manifest(&mut image, "os");
    let both = image.clone().index(&[kernels.clone(), entry(os, "arm64")]);
    check(
        &choice(&sandbox, "--arch arm64", &sandbox.layout(&both)),
        r#"
        <os> arm64 by platform, virtualization by layers: disk (- by -) of <os-disk>
        "#,
    );
    let kernels = image.index(&[kernels]);
    let plan = sandbox.run(format!("plan --arch arm64 {}", sandbox.layout(&kernels)));
    check(
        &plan.text(),
        r#"
        ------- stderr -------
        error: image sha256:<kbake-arm64> can not be booted by any method: direct: the kernel has neither an initramfs nor a disk to find its root on; uki: the image has no uki layer; disk: the image has no disk layer; iso: the image has no iso layer
        hint: `ironboot image inspect IMAGE` shows what its layers are
        [exit status: 125]
        "#,
    );
}
