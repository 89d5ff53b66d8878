//! Images in tar archives: `oci-archive:FILE[:NAME]`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::image::{Image, direct, disk, disk_only};
use crate::refusal::refused;
use crate::sandbox::{Sandbox, check};

/// The layout in `directory` as an archive at `path`, and what else is to be in it.
pub(crate) fn archive(directory: &Path, path: &Path, more: &[(&str, &[u8])]) {
    let mut archive = tar::Builder::new(File::create(path).unwrap());
    for (name, content) in more {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.append_dir_all(".", directory).unwrap();
    archive.finish().unwrap();
}

/// `image` as the archive `os.tar` in the sandbox's home, under the name 1.
pub(crate) fn archived(sandbox: &Sandbox, image: &Image) -> PathBuf {
    sandbox.name_digests(image);
    let directory = sandbox.path("layout");
    image.write_layout(&directory);
    let path = sandbox.path("home/os.tar");
    archive(&directory, &path, &[]);
    fs::remove_dir_all(directory).unwrap();
    path
}

#[test]
fn a_layout_that_is_named_as_the_other_form_is_told_apart() {
    let sandbox = Sandbox::new();
    archived(&sandbox, &direct());
    fs::create_dir(sandbox.path("home/os")).unwrap();
    let told = |image: &str| sandbox.run(format!("plan {image}")).text();
    check(
        &told("oci:os.tar"),
        r#"
        ------- stderr -------
        error: `oci:` names a directory, and this is a file: $TMP/home/os.tar
        hint: `oci-archive:$TMP/home/os.tar` names an image in it
        [exit status: 125]
        "#,
    );
    check(
        &told("oci-archive:os"),
        r#"
        ------- stderr -------
        error: `oci-archive:` names a file, and this is a directory: $TMP/home/os
        hint: `oci:$TMP/home/os` names an image in it
        [exit status: 125]
        "#,
    );
}

#[test]
fn an_archive_is_an_image_wherever_an_image_is_read() {
    let sandbox = Sandbox::new();
    let path = archived(&sandbox, &direct());
    let digest = direct().digest("manifest").to_owned();
    for image in ["oci-archive:os.tar", "oci-archive:os.tar:1"] {
        let plan = sandbox.run(format!("plan --json --arch amd64 {image}"));
        assert_eq!(plan.json()["boot"]["method"], "direct", "{}", plan.text());
    }
    let plan = sandbox.run(format!(
        "plan --json --arch amd64 oci-archive:os.tar@{digest}"
    ));
    assert_eq!(
        plan.json()["image"]["manifest_digest"],
        "sha256:<manifest>",
        "{}",
        plan.text()
    );
    check(
        &sandbox
            .run("image inspect oci-archive:os.tar:1")
            .text()
            .replace(&path.display().to_string(), "os.tar"),
        r#"
        oci-archive:$TMP/home/os.tar:1
        sha256:<top> (read from its source)
        not verified: $TMP/policy.json asks for no signature of everything (its default)

        sha256:<manifest> linux/amd64, virtualization (by layers)
          disk  64.00 KiB  sha256:<disk>  application/vnd.ironcore.image.rootfs
          kernel  4.00 KiB  sha256:<kernel>  application/vnd.ironcore.image.kernel
          initramfs  3.00 KiB  sha256:<initramfs>  application/vnd.ironcore.image.initramfs
          squashfs  2.00 KiB  sha256:<squashfs>  application/vnd.ironcore.image.squashfs
        "#,
    );
    let prepare = "prepare --json --accel tcg --arch amd64 --name vm oci-archive:os.tar:1";
    let prepared = sandbox.run(prepare).json();
    assert_eq!(
        prepared["staged"]["kernel"],
        "$TMP/store/blobs/sha256/<kernel>"
    );
    check(
        &sandbox.run("image list").text(),
        r#"
        IMAGE  DIGEST  SIZE  FOR
        oci-archive:$TMP/home/os.tar:1  <top>  74.16 KiB  amd64 virtualization
        "#,
    );
    // From elsewhere it is the same image.
    let again = format!(
        "prepare --json --accel tcg --arch amd64 --name vm oci-archive:{}:1",
        path.display()
    );
    let mut command = sandbox.command(again);
    command.current_dir("/");
    let again = sandbox.finish(command).json();
    assert_eq!(again["created"], false);
    assert_eq!(again["staged"], prepared["staged"]);
    sandbox.run("rm vm");
    assert_eq!(sandbox.run("image rm oci-archive:os.tar:1").status, 0);
    assert_eq!(sandbox.names("blobs/sha256"), Vec::<String>::new());
}

/// As `docker save` writes them: its own form beside a layout whose entries are named by tag.
#[test]
fn what_docker_saves_is_read() {
    let sandbox = Sandbox::new();
    let image = direct();
    let directory = sandbox.path("layout");
    image.write_layout(&directory);
    let index = json!({
        "schemaVersion": 2,
        "mediaType": crate::image::OCI_INDEX,
        "manifests": [{
            "mediaType": crate::image::OCI_INDEX,
            "digest": image.digest("top"),
            "size": image.size("top"),
            "annotations": {
                "io.containerd.image.name": "reg.example/os:1",
                "org.opencontainers.image.ref.name": "1",
            },
        }],
    });
    fs::write(directory.join("index.json"), index.to_string()).unwrap();
    let manifest = br#"[{"Config":"blobs/sha256/x","RepoTags":["reg.example/os:1"],"Layers":[]}]"#;
    let path = sandbox.path("home/saved.tar");
    archive(
        &directory,
        &path,
        &[("manifest.json", manifest), ("repositories", b"{}")],
    );
    for name in ["", ":1"] {
        let pull = format!("pull -q --arch amd64 oci-archive:saved.tar{name}");
        assert_eq!(sandbox.run(&pull).status, 0, "{pull}");
    }
}

#[test]
fn an_archive_that_is_compressed_is_refused_with_what_unpacks_it() {
    let sandbox = Sandbox::new();
    let mut file = File::create(sandbox.path("home/os.tar.gz")).unwrap();
    file.write_all(b"\x1f\x8b\x08rest").unwrap();
    refused(
        &sandbox,
        "oci-archive:os.tar.gz:1",
        "invalid-image",
        r#"
        ------- stderr -------
        error: cannot use archive $TMP/home/os.tar.gz
          caused by: it is compressed by gzip
        hint: unpack it first: `gzip --decompress --keep $TMP/home/os.tar.gz`
        [exit status: 125]
        "#,
    );
}

#[test]
fn an_archive_that_is_cut_is_refused() {
    let sandbox = Sandbox::new();
    let path = archived(&sandbox, &disk_only(&disk("amd64")));
    let file = File::options().write(true).open(&path).unwrap();
    // The disk is by far the largest of what is in it.
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    refused(
        &sandbox,
        "oci-archive:os.tar",
        "invalid-image",
        r#"
        ------- stderr -------
        error: cannot use archive $TMP/home/os.tar
          caused by: it ends within blobs/sha256/<disk>
        hint: see whether it is whole: `tar --list --file $TMP/home/os.tar`
        [exit status: 125]
        "#,
    );
}

#[test]
fn an_archive_that_holds_no_layout_or_not_the_name_is_told() {
    let sandbox = Sandbox::new();
    let path = sandbox.path("home/old.tar");
    let empty = sandbox.path("empty");
    fs::create_dir(&empty).unwrap();
    archive(&empty, &path, &[("manifest.json", b"[]")]);
    refused(
        &sandbox,
        "oci-archive:old.tar",
        "not-found",
        r#"
        ------- stderr -------
        error: not an OCI layout: $TMP/home/old.tar
          caused by: cannot open $TMP/home/old.tar/oci-layout
          caused by: No such file or directory (os error 2)
        hint: name a directory or tar archive that holds an `oci-layout` file
        [exit status: 125]
        "#,
    );
    archived(&sandbox, &disk_only(&disk("amd64")));
    refused(
        &sandbox,
        "oci-archive:os.tar:2",
        "not-found",
        r#"
        ------- stderr -------
        error: layout $TMP/home/os.tar has no entry 2; it has 1
        [exit status: 125]
        "#,
    );
    refused(
        &sandbox,
        "oci-archive:none.tar",
        "not-found",
        r#"
        ------- stderr -------
        error: cannot open $TMP/home/none.tar
          caused by: No such file or directory (os error 2)
        hint: check the path
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_blob_that_the_archive_has_otherwise_or_not_at_all_is_refused() {
    let sandbox = Sandbox::new();
    let image = disk_only(&disk("amd64"));
    sandbox.name_digests(&image);
    let directory = sandbox.path("layout");
    image.write_layout(&directory);
    let blob = directory
        .join("blobs")
        .join(image.digest("disk").replace(':', "/"));
    fs::write(&blob, disk("arm64")).unwrap();
    archive(&directory, &sandbox.path("home/os.tar"), &[]);
    refused(
        &sandbox,
        "oci-archive:os.tar",
        "integrity",
        r#"
        ------- stderr -------
        error: can not fetch the disk of oci-archive:$TMP/home/os.tar
          caused by: blob sha256:<disk> has other content: sha256:$OTHER
        [exit status: 125]
        "#,
    );
    fs::remove_file(&blob).unwrap();
    archive(&directory, &sandbox.path("home/os.tar"), &[]);
    refused(
        &sandbox,
        "oci-archive:os.tar",
        "not-found",
        r#"
        ------- stderr -------
        error: can not fetch the disk of oci-archive:$TMP/home/os.tar
          caused by: oci-archive:$TMP/home/os.tar has no sha256:<disk>
        [exit status: 125]
        "#,
    );
    std::os::unix::fs::symlink("/etc/passwd", &blob).unwrap();
    let mut links = tar::Builder::new(File::create(sandbox.path("home/os.tar")).unwrap());
    links.follow_symlinks(false);
    links.append_dir_all("", &directory).unwrap();
    links.finish().unwrap();
    refused(
        &sandbox,
        "oci-archive:os.tar",
        "invalid-image",
        r#"
        ------- stderr -------
        error: can not fetch the disk of oci-archive:$TMP/home/os.tar
          caused by: not a regular file: $TMP/home/os.tar/blobs/sha256/<disk>
        [exit status: 125]
        "#,
    );
}
