//! Plans for images of a few layers, by their media types.

use super::*;
use crate::boot::UkiStart;
use crate::boot::firmware::UefiKind;
use crate::image::Roles;
use crate::oci::{Descriptor, Manifest};
use std::collections::BTreeMap;

fn image(layers: &[&str]) -> Image {
    let manifest = Manifest {
        config: Descriptor::of("c", b"{}"),
        layers: layers
            .iter()
            .map(|kind| {
                let media_type = format!("application/vnd.ironcore.image.{kind}");
                Descriptor::of(&media_type, kind.as_bytes())
            })
            .collect(),
        annotations: BTreeMap::new(),
    };
    let manifest_digest = Digest::of(b"m");
    Image {
        reference: "r.io/a:1".parse().unwrap(),
        index_digest: None,
        manifest_digest,
        roles: Roles::of(&manifest, manifest_digest).unwrap(),
        manifest,
        architecture: None,
        variant: None,
    }
}

fn metadata(layer: Option<&str>, config: Option<&str>) -> Metadata {
    Metadata {
        config: ImageConfig {
            command_line: config.map(str::to_owned),
            architecture: None,
        },
        command_line_layer: layer.map(|text| text.as_bytes().to_vec()),
    }
}

/// A host with UEFI and a BIOS, under no wish.
fn host() -> HostFirmware {
    HostFirmware {
        uefi: Ok(UefiKind::Open),
        bios: Ok(()),
        asked: None,
    }
}

fn host_without_uefi() -> HostFirmware {
    HostFirmware {
        uefi: Err("no UEFI".to_owned()),
        ..host()
    }
}

fn asked(wish: FirmwareWish) -> HostFirmware {
    let no = |which: &str| format!("no {which} with {wish}");
    let (uefi, bios) = match wish {
        FirmwareWish::UefiSecure => (Ok(UefiKind::Secure), Err(no("BIOS"))),
        FirmwareWish::Bios => (Err(no("UEFI")), Ok(())),
        _ => (Ok(UefiKind::Open), Err(no("BIOS"))),
    };
    HostFirmware {
        uefi,
        bios,
        asked: Some(wish),
    }
}

/// Plans with `options` for an image of `layers` and a command line in the config.
fn planned(
    layers: &[&str],
    config: Option<&str>,
    options: &BootOptions,
    firmware: &HostFirmware,
) -> Result<BootPlan, PlanError> {
    plan(
        &image(layers),
        &metadata(None, config),
        options,
        firmware,
        &[],
    )
}

fn by_name(method: MethodName) -> BootOptions {
    BootOptions {
        method: Some(method),
        ..BootOptions::default()
    }
}

fn method(layers: &[&str], config: Option<&str>) -> Result<MethodName, PlanError> {
    let plan = planned(layers, config, &BootOptions::default(), &host())?;
    assert_eq!(plan.alternatives.len(), MethodName::ALL.len() - 1);
    Ok(plan.method.name())
}

const LINE: Option<&str> = Some("console=ttyS0");
const ALL: &[&str] = &["disk.img", "kernel", "initramfs", "squashfs", "uki", "iso"];

#[test]
fn auto_takes_the_first_method_that_the_layers_allow() {
    use MethodName::{Direct, Disk, Iso, Uki};
    let legacy = [
        "rootfs.v1alpha1.rootfs",
        "vmlinuz.v1alpha1.vmlinuz",
        "initramfs.v1alpha1.initramfs",
    ];
    for (layers, line, expected) in [
        (ALL, LINE, Direct),
        (&["kernel", "initramfs"], LINE, Direct),
        (&["kernel", "rootfs"], LINE, Direct),
        (&["rootfs"], LINE, Disk),
        // Without a command line the kernel would find no console and no root.
        (ALL, None, Uki),
        (&["rootfs", "kernel", "initramfs"], None, Disk),
        (&legacy, LINE, Disk),
        (&["uki"], None, Uki),
        (&["iso"], None, Iso),
        (&["iso", "rootfs"], None, Disk),
    ] {
        assert_eq!(method(layers, line).unwrap(), expected, "{layers:?}");
    }
    for none in [&["kernel"][..], &["kernel", "initramfs"], &["squashfs"]] {
        let refused = method(none, None);
        assert!(matches!(refused, Err(PlanError::NoMethod { .. })));
    }
}

#[test]
fn a_method_asked_for_by_name_is_taken_or_refused() {
    let ask = |layers: &[&str], method| {
        planned(layers, None, &by_name(method), &host()).map(|plan| plan.method.name())
    };
    for method in MethodName::ALL {
        assert_eq!(ask(ALL, method).unwrap(), method);
    }
    for (layers, method) in [
        (&["rootfs"][..], MethodName::Direct),
        (&["kernel"], MethodName::Direct),
        (&["kernel", "initramfs"], MethodName::Disk),
        (&["kernel", "initramfs"], MethodName::Uki),
        (&["uki"], MethodName::Iso),
    ] {
        let refused = ask(layers, method);
        assert!(matches!(refused, Err(PlanError::NotPossible { .. })));
    }
}

#[test]
fn a_rejected_method_is_passed_over_for_the_next_with_its_reason() {
    let rejected = [MethodName::Direct, MethodName::Uki].map(|method| Rejected {
        method,
        reason: format!("{method} is broken"),
    });
    let reject = |count: usize| {
        plan(
            &image(&["rootfs", "kernel", "initramfs", "uki"]),
            &metadata(None, LINE),
            &BootOptions::default(),
            &host(),
            &rejected[..count],
        )
    };
    for (count, expected) in [
        (0, MethodName::Direct),
        (1, MethodName::Uki),
        (2, MethodName::Disk),
    ] {
        let plan = reject(count).unwrap();
        assert_eq!(plan.method.name(), expected);
        for rejected in &rejected[..count] {
            assert!(plan.alternatives.contains(&Alternative {
                method: rejected.method,
                possible: false,
                reason: rejected.reason.clone(),
            }));
        }
    }
}

#[test]
fn a_uki_is_started_as_the_host_and_the_caller_will() {
    use UefiKind::{Open, Secure};
    use UkiStartName as Name;
    let start = |name: Option<Name>, firmware: &HostFirmware, line: Option<&str>| {
        let options = BootOptions {
            uki: name,
            command_line: line.map(|line| line.parse().unwrap()),
            ..by_name(MethodName::Uki)
        };
        match planned(&["uki"], None, &options, firmware).ok()?.method {
            BootMethod::Uki(uki) => Some(uki.start),
            other => panic!("{other:?}"),
        }
    };
    let (open, without) = (host(), host_without_uefi());
    let (secure, bios) = (asked(FirmwareWish::UefiSecure), asked(FirmwareWish::Bios));
    for (name, firmware, line, expected) in [
        (None, &open, None, Some(UkiStart::Loader(Open))),
        (None, &open, Some("x"), Some(UkiStart::Loader(Open))),
        (None, &secure, None, Some(UkiStart::Esp(Secure))),
        (None, &secure, Some("x"), None),
        (None, &without, None, Some(UkiStart::Extract)),
        (None, &bios, None, None),
        (Some(Name::Esp), &open, None, Some(UkiStart::Esp(Open))),
        (Some(Name::Esp), &open, Some("x"), None),
        (Some(Name::Esp), &without, None, None),
        (
            Some(Name::Loader),
            &secure,
            None,
            Some(UkiStart::Loader(Secure)),
        ),
        (Some(Name::Loader), &without, None, None),
        (
            Some(Name::Extract),
            &open,
            Some("x"),
            Some(UkiStart::Extract),
        ),
        (Some(Name::Extract), &secure, None, None),
    ] {
        assert_eq!(
            start(name, firmware, line),
            expected,
            "{name:?} {firmware:?}"
        );
    }
    let plan = planned(&["uki"], None, &BootOptions::default(), &without).unwrap();
    assert_eq!(
        plan.notes,
        ["no UEFI: the kernel in the UKI is booted directly, without firmware"]
    );
}

#[test]
fn firmware_that_was_asked_for_rules_out_what_starts_without_it() {
    use MethodName::{Disk, Uki};
    for (wish, expected) in [
        (FirmwareWish::Uefi, Uki),
        (FirmwareWish::UefiSecure, Uki),
        (FirmwareWish::Bios, Disk),
        (FirmwareWish::File("/x".into()), Uki),
    ] {
        let firmware = asked(wish);
        let plan = planned(ALL, LINE, &BootOptions::default(), &firmware).unwrap();
        assert_eq!(plan.method.name(), expected);
        let direct = planned(ALL, LINE, &by_name(MethodName::Direct), &firmware);
        assert!(matches!(direct, Err(PlanError::NotPossible { .. })));
    }
    let nothing = HostFirmware {
        bios: Err("no BIOS".to_owned()),
        ..host_without_uefi()
    };
    for method in [Disk, MethodName::Iso] {
        let refused = planned(ALL, LINE, &by_name(method), &nothing).unwrap_err();
        assert!(matches!(refused, PlanError::NoFirmware { .. }));
        assert!(refused.to_string().ends_with("no UEFI"), "{refused}");
    }
}

#[test]
fn the_command_line_has_one_source_and_what_is_appended() {
    let check = |option: Option<&str>, layer, config, expected: (&str, CommandLineSource)| {
        let options = BootOptions {
            command_line: option.map(|line| line.parse().unwrap()),
            append: "x".parse().unwrap(),
            append_if_possible: "y".parse().unwrap(),
            ..by_name(MethodName::Direct)
        };
        let image = image(&["kernel", "initramfs", "cmdline"]);
        let plan = plan(&image, &metadata(layer, config), &options, &host(), &[]).unwrap();
        let BootMethod::Direct(direct) = plan.method else {
            panic!("direct boot was asked for");
        };
        assert_eq!(
            (direct.command_line.as_str(), direct.command_line_from),
            expected
        );
    };
    let (layer, config) = (Some("l\n"), Some("c\n"));
    check(
        Some("o"),
        layer,
        config,
        ("o x y", CommandLineSource::Option),
    );
    check(None, layer, config, ("l x y", CommandLineSource::Layer));
    check(None, None, config, ("c x y", CommandLineSource::Config));
    check(None, None, None, ("x y", CommandLineSource::Nobody));
}

#[test]
fn a_command_line_that_no_kernel_reads_names_its_blob() {
    for bad in ["a\nb", "a\0b", &"x".repeat(5000)] {
        let layers = ["kernel", "initramfs"];
        let error = planned(&layers, Some(bad), &BootOptions::default(), &host());
        let Err(PlanError::ImageCommandLine { blob, .. }) = error else {
            panic!("accepted {bad:?}");
        };
        assert_eq!(blob, image(&layers).manifest.config.digest);
    }
}

#[test]
fn a_disk_asked_for_by_name_boots_whatever_the_command_line_is() {
    let bad = Some("a\nb");
    let auto = BootOptions::default();
    assert!(planned(&["rootfs"], bad, &auto, &host()).is_err());
    assert!(planned(&["rootfs"], bad, &by_name(MethodName::Disk), &host()).is_ok());
}

#[test]
fn words_for_the_kernel_are_refused_where_no_kernel_would_see_them() {
    let options = BootOptions {
        append: "quiet".parse().unwrap(),
        ..BootOptions::default()
    };
    for layer in ["rootfs", "iso"] {
        let error = planned(&[layer], None, &options, &host()).unwrap_err();
        assert!(matches!(error, PlanError::CommandLineIgnored { .. }));
    }
    assert!(planned(&["uki"], None, &options, &host()).is_ok());
}
