//! Rows 112 to 123 of the hostile table: kernels, unified kernel images and command lines that
//! would do harm or could not work, each told as what it is and leaving nothing.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::image::{Image, initramfs, kernel, single};
use crate::refusal::assert_empty_store;
use crate::sandbox::Sandbox;
use crate::ukis::uki;

/// Where the parts of [`uki`]'s headers are.
const LFANEW: usize = 0x3c;
const COFF: usize = 0x84;
const OPTIONAL: usize = 0x98;
const TABLE: usize = 0x188;

/// Longer than any of these takes, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(2);

fn of_uki(uki: &[u8]) -> Image {
    single("{}", &[("uki", "uki", uki)])
}

fn of_kernel(kernel: &[u8]) -> Image {
    of_command_line(kernel, b"quiet")
}

fn of_command_line(kernel: &[u8], command_line: &[u8]) -> Image {
    single(
        "{}",
        &[
            ("kernel", "kernel", kernel),
            ("initramfs", "initramfs", &initramfs()),
            ("cmdline", "cmdline", command_line),
        ],
    )
}

/// A good UKI with one thing changed.
fn changed(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut uki = good();
    uki[offset..offset + bytes.len()].copy_from_slice(bytes);
    uki
}

fn good() -> Vec<u8> {
    uki(
        "amd64",
        &[(".linux", &kernel("amd64")), (".cmdline", b"quiet")],
    )
}

/// A kernel whose first bytes are others.
fn beginning(bytes: &[u8]) -> Vec<u8> {
    let mut kernel = kernel("amd64");
    kernel[..bytes.len()].copy_from_slice(bytes);
    kernel
}

/// What `prepare` says of `image`, in a sandbox of its own.
fn prepared(image: &Image) -> (Sandbox, i32, Value) {
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(image);
    let line = format!("prepare -q --json --accel tcg --arch amd64 --name vm {reference}");
    let begun = Instant::now();
    let output = sandbox.run(line);
    assert!(begun.elapsed() < PATIENCE, "{}", output.text());
    let json = output.json();
    (sandbox, output.status, json)
}

#[track_caller]
fn refused(name: &str, image: &Image, expected: &str) {
    let (sandbox, status, json) = prepared(image);
    let error = &json["error"];
    assert_eq!(
        (status, &error["kind"]),
        (125, &"invalid-image".into()),
        "{name}: {json}"
    );
    let message = error["message"].as_str().unwrap();
    let causes = error["causes"].as_array().unwrap().iter();
    let told: Vec<&str> = causes.map(|cause| cause.as_str().unwrap()).collect();
    let told = [&[message], &told[..]].concat().join(": ");
    assert!(told.contains(expected), "{name}: {told}");
    assert_empty_store(&sandbox);
}

/// Rows 112 to 117.
#[test]
fn unified_kernel_images_whose_headers_lie_are_refused() {
    let le = u32::to_le_bytes;
    let mut of_32_bits = changed(OPTIONAL, &0x10b_u16.to_le_bytes());
    of_32_bits[COFF..COFF + 2].copy_from_slice(&0x14c_u16.to_le_bytes());
    let (text, arm) = ([(".text", &b"x"[..])], kernel("arm64"));
    let twice = [(".cmdline", &b"a"[..]), (".cmdline", b"b")];
    let twice = uki("amd64", &[(".linux", &kernel("amd64")), twice[0], twice[1]]);
    for (name, uki, expected) in [
        (
            "pe-lfanew past the end",
            changed(LFANEW, &le(1 << 30)),
            "no PE header",
        ),
        (
            "pe-lfanew unaligned",
            changed(LFANEW, &le(0x81)),
            "no PE header",
        ),
        (
            "pe-lfanew max",
            changed(LFANEW, &le(u32::MAX)),
            "no PE header",
        ),
        (
            "pe-65535-sections",
            changed(COFF + 2, &[0xff; 2]),
            "more than 96 sections",
        ),
        (
            "pe-overlap",
            changed(TABLE + 40 + 20, &le(0x400)),
            "sections that overlap",
        ),
        ("pe-dup-cmdline", twice, "more than one section .cmdline"),
        (
            "pe-rva-overflow",
            changed(TABLE + 12, &le(u32::MAX)),
            "ends beyond 4 GiB",
        ),
        (
            "pe-rawsize",
            changed(TABLE + 16, &le(u32::MAX)),
            "outside of the file",
        ),
        (
            "pe-virtual size",
            changed(TABLE + 8, &le(u32::MAX)),
            "ends beyond 4 GiB",
        ),
        ("pe-32bit", of_32_bits, "32-bit"),
        (
            "pe-wrong-machine",
            uki("arm64", &[(".linux", &arm)]),
            "is for arm64, not amd64",
        ),
        (
            "pe-no-linux",
            uki("amd64", &text),
            "not a unified kernel image",
        ),
        ("pe-cut", good()[..0x90].to_vec(), "cut short"),
    ] {
        refused(name, &of_uki(&uki), expected);
    }
}

/// Row 115: 1,066 bytes that name a megabyte of sections' worth of symbols and relocations cost
/// nothing but their own reading. The whole program stays below the row's 64 MiB.
#[test]
fn a_small_program_that_announces_much_costs_little_memory() {
    let mut small = changed(COFF + 2, &96_u16.to_le_bytes());
    small[COFF + 4..COFF + 12].copy_from_slice(&[0xff; 8]);
    small[OPTIONAL + 108..OPTIONAL + 112].fill(0xff);
    small.truncate(1066);
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(&of_uki(&small));
    let program = sandbox.command(format!("pull -q --arch amd64 {reference}"));
    // Less than this, and the program itself does not start: its libraries are mapped whole.
    let mut limit = Command::new("prlimit");
    limit.args(["--data=67108864", "--"]);
    let output = sandbox.finish(sandbox.under(limit, &program));
    assert_eq!(output.status, 125, "{}", output.text());
    assert!(
        output.stderr.contains("EFI program sha256:<uki> has"),
        "{}",
        output.text()
    );
    assert_empty_store(&sandbox);
}

/// Rows 118 and 119.
#[test]
fn what_a_hypervisor_would_take_for_another_kind_of_kernel_is_refused() {
    // QEMU looks for it only where Linux's own header is not.
    let mut multiboot = vec![b'k'; 4096];
    multiboot[0x300..0x304].copy_from_slice(&0x1bad_b002_u32.to_le_bytes());
    let mut multiboot2 = vec![b'k'; 4096];
    multiboot2[0x400..0x404].copy_from_slice(&0xe852_50d6_u32.to_le_bytes());
    for (name, kernel, expected) in [
        ("k-multiboot", multiboot, "a multiboot kernel"),
        ("k-multiboot2", multiboot2, "a multiboot kernel"),
        ("k-elf", beginning(b"\x7fELF"), "an ELF file"),
        ("k-script", beginning(b"#!/bin/sh\n"), "a script"),
        ("k-bzimage-arch", kernel("arm64"), "is for arm64, not amd64"),
    ] {
        refused(name, &of_kernel(&kernel), expected);
    }
}

/// Rows 120, 121 and 72.
#[test]
fn command_lines_that_no_kernel_reads_are_refused() {
    let kernel = kernel("amd64");
    for (name, command_line, expected) in [
        ("c-newline", &b"quiet\nro"[..], "byte 0x0a"),
        ("c-nul", b"quiet\0ro", "byte 0x00"),
        ("c-ctl", b"\x1b[2Jquiet", "byte 0x1b"),
        ("c-utf8-bidi", "a\u{202e}b".as_bytes(), "byte 0xe2"),
        ("c-2048", &[b'x'; 2048], "2048 bytes"),
        ("c-200KB", &[b'x'; 200 << 10], "200.00 KiB"),
    ] {
        refused(name, &of_command_line(&kernel, command_line), expected);
    }
}

/// Rows 122 and 123.
#[test]
fn a_command_line_is_one_argument_and_one_text_whatever_is_in_it() {
    let kernel = kernel("amd64");
    for command_line in [
        "console=ttyS0,115200 a=\"b c\" -drive file=/etc/passwd",
        "console=ttyS0 quiet</cmdline><loader>/etc/passwd</loader><cmdline>",
        "console=ttyS0 ${IFS} $(id) `id` 'a' \\ %n {json:{}}",
    ] {
        let sandbox = Sandbox::new();
        let reference = sandbox.layout(&of_command_line(&kernel, command_line.as_bytes()));
        let options = format!("--accel tcg --arch amd64 --name vm --dry-run {reference}");
        let argv = sandbox.run(format!("run -q --json {options}")).json();
        let argv = argv["argv"].as_array().unwrap();
        let of = |word: &str| argv.iter().filter(|argument| *argument == word).count();
        assert_eq!(
            (of(command_line), of("-append"), of("-bios")),
            (1, 1, 0),
            "{argv:?}"
        );
        assert!(
            !argv.iter().any(|argument| argument == "/etc/passwd"),
            "{argv:?}"
        );
    }
}
