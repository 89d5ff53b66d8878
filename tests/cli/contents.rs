//! Layers that are not what they say: refused after the pull, and nothing of them stays.

use std::process::Command;

use crate::image::{disk, disk_only, initramfs, kernel, single, squashfs};
use crate::refusal::refused;
use crate::sandbox::Sandbox;

/// A qcow2 image of 1 MiB as QEMU makes it.
fn qcow2(sandbox: &Sandbox, options: &[&str]) -> Vec<u8> {
    let path = sandbox.path("home/disk.qcow2");
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .args(options)
        .arg(&path)
        .arg("1M")
        .output()
        .unwrap_or_else(|error| {
            panic!("these tests need `qemu-img` (Debian: qemu-utils): {error}")
        });
    assert!(output.status.success(), "{output:?}");
    std::fs::read(path).unwrap()
}

#[test]
fn a_qcow2_that_names_another_file_is_unsafe() {
    let sandbox = Sandbox::new();
    let backing = qcow2(&sandbox, &["-u", "-b", "/etc/passwd", "-F", "raw"]);
    refused(
        &sandbox,
        &sandbox.layout(&disk_only(&backing)),
        "unsafe-image",
        r#"
        ------- stderr -------
        error: disk sha256:<disk> is a qcow2 image with a backing file
        hint: its publisher makes a safe disk of it by `qemu-img convert -O raw`, or by `-O qcow2` without options
        [exit status: 125]
        "#,
    );
    let data = sandbox.path("home/data").display().to_string();
    let options = format!("data_file={data},data_file_raw=on");
    let external = qcow2(&sandbox, &["-o", &options]);
    refused(
        &sandbox,
        &sandbox.layout(&disk_only(&external)),
        "unsafe-image",
        r#"
        ------- stderr -------
        error: disk sha256:<disk> is a qcow2 image with an external data file
        hint: its publisher makes a safe disk of it by `qemu-img convert -O raw`, or by `-O qcow2` without options
        [exit status: 125]
        "#,
    );
}

/// N15.
#[test]
fn a_disk_in_a_format_that_names_other_files_is_unsafe() {
    let sandbox = Sandbox::new();
    let mut vmdk = b"# Disk DescriptorFile\nversion=1\nRW 2048 FLAT \"/etc/shadow\" 0\n".to_vec();
    vmdk.resize(1024, b'\n');
    refused(
        &sandbox,
        &sandbox.layout(&disk_only(&vmdk)),
        "unsafe-image",
        r#"
        ------- stderr -------
        error: disk sha256:<disk> is in a format that is refused: VMDK
        hint: its publisher makes a safe disk of it by `qemu-img convert -O raw`, or by `-O qcow2` without options
        [exit status: 125]
        "#,
    );
    let mut gzip = disk("gzip");
    gzip[..2].copy_from_slice(b"\x1f\x8b");
    refused(
        &sandbox,
        &sandbox.layout(&disk_only(&gzip)),
        "unsafe-image",
        r#"
        ------- stderr -------
        error: disk sha256:<disk> could be read as gzip and as GPT
        hint: its publisher has to make one that is one thing only, with zeros where nothing is meant to be
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_disk_of_zeros_or_of_half_a_sector_is_no_disk() {
    let sandbox = Sandbox::new();
    let zeros = disk_only(&[0; 1 << 20]);
    refused(
        &sandbox,
        &sandbox.layout(&zeros),
        "invalid-image",
        r#"
        ------- stderr -------
        error: disk sha256:<disk> is all zeros
        [exit status: 125]
        "#,
    );
    let half = disk_only(&disk("half")[..1300]);
    refused(
        &sandbox,
        &sandbox.layout(&half),
        "invalid-image",
        r#"
        ------- stderr -------
        error: disk sha256:<disk> has 1300 bytes, which is not a multiple of 512
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_kernel_that_would_hang_is_refused() {
    let sandbox = Sandbox::new();
    let image = |bytes: &[u8]| {
        sandbox.layout(&single(
            r#"{"commandLine":"quiet"}"#,
            &[
                ("kernel", "kernel", bytes),
                ("initramfs", "initramfs", &initramfs()),
            ],
        ))
    };
    refused(
        &sandbox,
        &image(&[0; 4096]),
        "invalid-image",
        r#"
        ------- stderr -------
        error: kernel sha256:<kernel> is all zeros
        [exit status: 125]
        "#,
    );
    refused(
        &sandbox,
        &image(&kernel("arm64")),
        "invalid-image",
        r#"
        ------- stderr -------
        error: kernel sha256:<kernel> is for arm64, not amd64
        [exit status: 125]
        "#,
    );
    refused(
        &sandbox,
        &image(b"MZ, a unified kernel image"),
        "invalid-image",
        r#"
        ------- stderr -------
        error: kernel sha256:<kernel> is not a Linux kernel that can be loaded directly but an EFI program
        [exit status: 125]
        "#,
    );
    refused(
        &sandbox,
        &image(b"\x7fELF"),
        "invalid-image",
        r#"
        ------- stderr -------
        error: kernel sha256:<kernel> is not a Linux kernel that can be loaded directly but an ELF file
        [exit status: 125]
        "#,
    );
}

#[test]
fn an_initramfs_of_zeros_and_a_squashfs_that_is_none_are_refused() {
    let sandbox = Sandbox::new();
    let image = |initramfs: &[u8], squashfs: &[u8]| {
        sandbox.layout(&single(
            r#"{"commandLine":"quiet"}"#,
            &[
                ("kernel", "kernel", &kernel("amd64")),
                ("initramfs", "initramfs", initramfs),
                ("squashfs", "squashfs", squashfs),
            ],
        ))
    };
    refused(
        &sandbox,
        &image(&[0; 512], &squashfs()),
        "invalid-image",
        r#"
        ------- stderr -------
        error: initramfs sha256:<initramfs> is all zeros
        [exit status: 125]
        "#,
    );
    refused(
        &sandbox,
        &image(&initramfs(), &disk("gpt")),
        "invalid-image",
        r#"
        ------- stderr -------
        error: squashfs sha256:<squashfs> is not a squashfs file system but a GPT disk
        [exit status: 125]
        "#,
    );
}
