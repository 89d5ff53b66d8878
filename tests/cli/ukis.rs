//! Unified kernel images: how they are started, what is taken out of them, and what is refused;
//! and methods that are passed over because a blob is not what its layer says.

use std::fs;

use serde_json::json;

use crate::image::{
    Image, OCI_MANIFEST, disk, entry, initramfs, kernel, manifest, single, squashfs,
};
use crate::refusal::{refused, refused_with};
use crate::sandbox::{Sandbox, check, mask_firmware};

/// What systemd's stub of a version says of itself.
fn stub(version: u32) -> Vec<u8> {
    format!("#### LoaderInfo: systemd-stub {version}.1 ####\0").into_bytes()
}

/// Sections by name and content.
pub(crate) type Sections<'a> = &'a [(&'a str, &'a [u8])];

/// A program for UEFI of `sections`, as the UKIs of `architecture` are: COFF header at 0x80, 240
/// bytes of optional header, the sections' content from 0x400 on.
pub(crate) fn uki(architecture: &str, sections: Sections<'_>) -> Vec<u8> {
    let machine: u16 = if architecture == "amd64" {
        0x8664
    } else {
        0xaa64
    };
    let mut bytes = vec![0; 0x400];
    let put = |bytes: &mut Vec<u8>, offset: usize, content: &[u8]| {
        bytes[offset..offset + content.len()].copy_from_slice(content);
    };
    put(&mut bytes, 0, b"MZ");
    put(&mut bytes, 0x3c, &0x80_u32.to_le_bytes());
    put(&mut bytes, 0x80, b"PE\0\0");
    put(&mut bytes, 0x84, &machine.to_le_bytes());
    put(
        &mut bytes,
        0x86,
        &u16::try_from(sections.len()).unwrap().to_le_bytes(),
    );
    put(&mut bytes, 0x94, &240_u16.to_le_bytes());
    put(&mut bytes, 0x98, &0x20b_u16.to_le_bytes());
    put(&mut bytes, 0x98 + 68, &10_u16.to_le_bytes());
    put(&mut bytes, 0x98 + 108, &16_u32.to_le_bytes());
    for (index, (name, content)) in sections.iter().enumerate() {
        let (offset, address) = (bytes.len(), 0x10_0000 * (index + 1));
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(0x200), 0);
        let header = 0x188 + 40 * index;
        put(&mut bytes, header, name.as_bytes());
        let numbers = [content.len(), address, bytes.len() - offset, offset];
        for (place, number) in numbers.into_iter().enumerate() {
            let number = u32::try_from(number).unwrap().to_le_bytes();
            put(&mut bytes, header + 8 + 4 * place, &number);
        }
    }
    bytes
}

/// A UKI whose stub is of `version`.
fn of_stub(version: u32) -> Vec<u8> {
    uki(
        "amd64",
        &[
            (".sdmagic", &stub(version)),
            (".osrel", b"PRETTY_NAME=\"An OS\"\n"),
            (".cmdline", b"own=1 console=ttyS0\n\0"),
            (".uname", b"6.1"),
            (".linux", &kernel("amd64")),
            (".initrd", &initramfs()),
        ],
    )
}

/// An image of that UKI, with `others` beside it.
fn image(version: u32, others: &[(&str, &str, &[u8])]) -> Image {
    let uki = of_stub(version);
    let layers: Vec<_> = others
        .iter()
        .copied()
        .chain([("uki", "uki", &uki[..])])
        .collect();
    single(r#"{"commandLine":"console=ttyS0"}"#, &layers)
}

/// What `prepare` says of the boot, its files and its SMBIOS strings.
fn staged(sandbox: &Sandbox, name: &str, options: &str, reference: &str) -> serde_json::Value {
    let line = format!("prepare -q --json --arch amd64 --name {name} {options} {reference}");
    let output = sandbox.run(line.replace("  ", " "));
    assert_eq!(output.status, 0, "{}", output.text());
    let json = output.json();
    json!({
        "method": json["boot"]["method"],
        "notes": json["boot"]["notes"],
        "kernel": json["staged"]["kernel"],
        "uki": json["staged"]["uki"],
        "command_line": json["staged"]["command_line"],
        "smbios": json["staged"]["smbios"],
        "firmware": json["staged"]["firmware"]["mode"],
        "disks": json["staged"]["disks"].as_array().unwrap().len(),
    })
}

#[test]
fn words_reach_the_kernel_in_a_uki_as_its_stub_reads_them() {
    let sandbox = Sandbox::new();
    let (old, new) = (
        sandbox.layout(&image(252, &[])),
        sandbox.layout(&image(254, &[])),
    );
    let says = |name: &str, options: &str, reference: &str, line: Option<&str>, smbios: &[&str]| {
        let staged = staged(&sandbox, name, options, reference);
        assert_eq!(staged["command_line"], json!(line), "{options}");
        assert_eq!(staged["smbios"], json!(smbios), "{options}");
        assert_eq!(staged["firmware"], "split", "{options}");
    };
    let words = "io.systemd.stub.kernel-cmdline-extra=x=2";
    says("a", "", &old, None, &[]);
    says(
        "b",
        "--append x=2",
        &old,
        Some("own=1 console=ttyS0 x=2"),
        &[],
    );
    says("c", "--append x=2", &new, None, &[words]);
    says("d", "--cmdline y --append x=2", &new, Some("y x=2"), &[]);
    says(
        "e",
        "--uki esp --append x=2 --smbios z",
        &new,
        None,
        &["z", words],
    );
    let sandbox = Sandbox::new();
    let old = sandbox.layout(&image(252, &[]));
    // Nobody passes a line to what firmware finds on a partition, and the old stub reads no other.
    refused_with(
        &sandbox,
        "--arch amd64 --uki esp --append x=2",
        &old,
        "unbootable",
        r#"
        ------- stderr -------
        error: uki sha256:<uki> can not be given a command line with --append
          caused by: words can be added to this UKI by stubs of systemd 254 and later only, and its stub is of 252
        hint: leave out --append; without Secure Boot, --uki loader takes it
        [exit status: 125]
        "#,
    );
    refused_with(
        &sandbox,
        "--arch amd64 --uki esp --cmdline y",
        &old,
        "unbootable",
        r#"
        ------- stderr -------
        error: image sha256:<manifest> can not be booted by uki: on an EFI system partition nobody replaces the command line in a UKI; --uki loader can
        hint: `ironboot plan IMAGE` shows what is possible
        [exit status: 125]
        "#,
    );
    let both = sandbox.run(format!("plan --arch amd64 --boot disk --uki esp {old}"));
    check(
        &both.text(),
        r#"
        ------- stderr -------
        error: --uki says how to start a UKI, and --boot disk was given
        [exit status: 2]
        "#,
    );
}

#[test]
fn a_uki_larger_than_a_file_on_an_esp_is_refused_before_there_is_one() {
    let sandbox = Sandbox::new();
    for (size, shown) in [(1_u64 << 32, "4.00 GiB"), ((1 << 63) - 4096, "8.00 EiB")] {
        let mut image = Image::default();
        let config = image.config("config", "{}");
        let mut layer = image.layer("uki", "uki", &of_stub(254));
        layer["size"] = json!(size);
        let image = image.top(OCI_MANIFEST, &manifest(&config, &[layer]));
        let reference = sandbox.layout(&image);
        let run = format!("run --dry-run --accel tcg --arch amd64 --uki esp {reference}");
        let expected = format!(
            "------- stderr -------\n\
             error: uki sha256:<uki> has {shown}, more than a file on an EFI system partition\n\
             hint: start it with --uki loader or --uki extract\n[exit status: 125]\n"
        );
        check(&sandbox.run(run).text(), &expected);
    }
}

/// N12.
#[test]
fn without_firmware_what_is_in_a_uki_is_booted_directly_and_said() {
    let sandbox = Sandbox::new();
    mask_firmware(&sandbox);
    for isa in ["x86_64", "aarch64"] {
        let own = sandbox.path(&format!("config/qemu/firmware/00-{isa}.json"));
        fs::remove_file(own).unwrap();
    }
    let beside = [
        ("kernel", "kernel", &kernel("amd64")[..]),
        ("initramfs", "initramfs", &initramfs()[..]),
    ];
    let reference = sandbox.layout(&image(252, &beside));
    // Where the kernel stands beside it, nothing is to be said.
    assert_eq!(staged(&sandbox, "a", "", &reference)["method"], "direct");

    let extracted = staged(&sandbox, "b", "--boot uki --append x", &reference);
    assert_eq!(
        extracted,
        json!({
            "method": "uki",
            "notes": ["no UEFI firmware for x86_64 is installed: the kernel in the UKI is booted \
                       directly, without firmware"],
            "kernel": "$TMP/store/instances/b/kernel",
            "uki": null,
            "command_line": "own=1 console=ttyS0 x",
            "smbios": [],
            "firmware": null,
            "disks": 0,
        })
    );
    let file = |name: &str| fs::read(sandbox.store().join("instances/b").join(name)).unwrap();
    assert_eq!(file("kernel"), kernel("amd64"));
    assert_eq!(file("initramfs"), initramfs());

    let refused = sandbox.run(format!("pull -q --arch amd64 --uki esp {reference}"));
    check(
        &refused.text(),
        r#"
        ------- stderr -------
        error: image sha256:<manifest> can not be booted here: no UEFI firmware for x86_64 is installed
        hint: install UEFI firmware: on Debian `apt-get install ovmf qemu-efi-aarch64`
        [exit status: 69]
        "#,
    );
}

/// N6.
#[test]
fn a_uki_of_another_machine_is_refused() {
    let sandbox = Sandbox::new();
    let mut image = Image::default();
    let config = image.config("config", "{}");
    let layers = [image.layer("uki", "uki", &of_stub(252))];
    let manifest = image.document("manifest", OCI_MANIFEST, &manifest(&config, &layers));
    let reference = sandbox.layout(&image.index(&[entry(manifest, "arm64")]));
    refused_with(
        &sandbox,
        "--arch arm64",
        &reference,
        "invalid-image",
        r#"
        ------- stderr -------
        error: uki sha256:<uki> is for amd64, not arm64
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_uki_that_is_not_signed_is_not_handed_to_firmware_that_wants_signatures() {
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(&image(254, &[("disk", "rootfs", &disk("amd64"))]));
    refused_with(
        &sandbox,
        "--arch amd64 --firmware uefi-secure",
        &reference,
        "unbootable",
        r#"
        ------- stderr -------
        error: uki sha256:<uki> is not signed, and firmware with Secure Boot on starts nothing else
        hint: without Secure Boot it boots unverified: --firmware uefi
        [exit status: 125]
        "#,
    );
    refused_with(
        &sandbox,
        "--arch amd64 --firmware uefi-secure --uki extract",
        &reference,
        "unbootable",
        r#"
        ------- stderr -------
        error: image sha256:<manifest> can not be booted by uki: --uki extract starts it without firmware, and --firmware uefi-secure was given
        hint: `ironboot plan IMAGE` shows what is possible
        [exit status: 125]
        "#,
    );
}

#[test]
fn programs_that_are_no_uki_are_refused() {
    let linux = kernel("amd64");
    let cases: [(Sections<'_>, &str); 4] = [
        (
            &[(".text", b"x")],
            "uki sha256:<uki> is not a unified kernel image but an EFI program",
        ),
        (
            &[(".linux", &linux), (".cmdline", b"a"), (".cmdline", b"b")],
            "uki sha256:<uki> has more than one section .cmdline",
        ),
        (
            &[(".linux", &[0; 4096])],
            "kernel in uki sha256:<uki> is all zeros",
        ),
        (
            &[(".linux", &linux), (".cmdline", b"a\nb")],
            "the command line in uki sha256:<uki> is not usable\n  caused by: command line has byte 0x0a at position 1\nhint: pass --cmdline for another one",
        ),
    ];
    for (sections, expected) in cases {
        let sandbox = Sandbox::new();
        let uki = uki("amd64", sections);
        let reference = sandbox.layout(&single("{}", &[("uki", "uki", &uki)]));
        let expected = format!("------- stderr -------\nerror: {expected}\n[exit status: 125]\n");
        refused(&sandbox, &reference, "invalid-image", &expected);
    }
}

#[test]
fn what_is_not_what_its_layer_says_is_passed_over_and_told() {
    let sandbox = Sandbox::new();
    let beside = [
        ("kernel", "kernel", &[0; 4096][..]),
        ("initramfs", "initramfs", &initramfs()[..]),
    ];
    let reference = sandbox.layout(&image(254, &beside));
    let pulled = sandbox.run(format!("pull --json --arch amd64 {reference}"));
    check(
        &pulled.stderr,
        "
        fetching 7.00 KiB
        passing over direct boot: kernel sha256:<kernel> is all zeros
        fetching 10.00 KiB
        ",
    );
    let json = pulled.json();
    assert_eq!(json["boot"]["method"], "uki");
    assert_eq!(
        json["alternatives"][0],
        json!({
            "method": "direct",
            "possible": false,
            "reason": "kernel sha256:<kernel> is all zeros",
        })
    );
    assert_eq!(
        json["boot"]["uki_content"],
        json!({
            "os": "An OS",
            "kernel_release": "6.1",
            "command_line": "own=1 console=ttyS0",
            "stub_version": 254,
            "signed": false,
        })
    );
    // What only the other method would have needed is gone again.
    let blobs = sandbox.names("blobs/sha256");
    assert_eq!(blobs.len(), 4, "{blobs:?}");
    fs::remove_dir_all(sandbox.store()).unwrap();

    refused_with(
        &sandbox,
        "--arch amd64 --boot direct",
        &reference,
        "invalid-image",
        r#"
        ------- stderr -------
        error: kernel sha256:<kernel> is all zeros
        [exit status: 125]
        "#,
    );

    // Where no method is left, all reasons are.
    let broken = uki("arm64", &[(".linux", &kernel("arm64"))]);
    let layers = [beside[0], beside[1], ("uki", "uki", &broken[..])];
    let reference = sandbox.layout(&single(r#"{"commandLine":"x"}"#, &layers));
    refused(
        &sandbox,
        &reference,
        "unbootable",
        r#"
        ------- stderr -------
        error: image sha256:<manifest> can not be booted by any method: direct: kernel sha256:<kernel> is all zeros; uki: uki sha256:<uki> is for arm64, not amd64; disk: the image has no disk layer; iso: the image has no iso layer
        hint: `ironboot image inspect IMAGE` shows what its layers are
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_disk_that_is_published_as_a_squashfs_is_booted_as_what_it_is() {
    let feos = |content: &[u8]| {
        let mut image = Image::default();
        let config = image.blob("config", "application/vnd.unknown.config.v1+json", b"{}");
        let layers = [image.blob("disk", "application/io.gardenlinux.squashfs", content)];
        let manifest = image.document("manifest", OCI_MANIFEST, &manifest(&config, &layers));
        image.index(&[entry(manifest, "amd64")])
    };
    let sandbox = Sandbox::new();
    let reference = sandbox.layout(&feos(&disk("amd64")));
    let staged = staged(&sandbox, "vm", "", &reference);
    assert_eq!(staged["method"], "disk");
    assert_eq!(staged["firmware"], "split");
    assert_eq!(
        staged["notes"],
        json!([
            "the image has no disk layer; its squashfs layer sha256:<disk> is taken for one, \
                since disks are published under that media type too"
        ])
    );
    fs::remove_dir_all(sandbox.store()).unwrap();
    let reference = sandbox.layout(&feos(&squashfs()));
    refused(
        &sandbox,
        &reference,
        "invalid-image",
        r#"
        ------- stderr -------
        error: disk sha256:<disk> is a squashfs file system without a partition table, which firmware does not boot
        [exit status: 125]
        "#,
    );
}
