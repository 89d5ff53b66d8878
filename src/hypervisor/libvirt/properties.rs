//! Domain XML of any spec, with whatever texts and paths: what is written is read back, and what is
//! refused is what should be.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use crate::domain::{
    Accelerator, Backing, Boot, Disk, DiskBus, DiskFormat, DomainSpec, Firmware, Forward, FwCfg,
    Machine, Nic, OemString, Provenance, Uefi, UefiImage, Uuid,
};
use crate::hypervisor::libvirt::element::tests::{Flat, read, written};
use crate::hypervisor::libvirt::xml::{domain, render};
use crate::hypervisor::{Owner, RunsAs};
use crate::oci::Digest;

/// What would be markup, an option, another protocol or another file if it were pasted.
const ATTACKS: [&str; 9] = [
    "/x'/><target dev='vdz'/></disk><disk type='block'><source dev='/dev/vda'/>",
    "quiet</cmdline><loader>/etc/passwd</loader><cmdline>",
    "\"/><!--",
    "]]>&amp;&lt;&#10;&#x0;",
    "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>&e;",
    "json:{\"driver\":\"nbd\"}",
    "nbd:127.0.0.1:1",
    "a,file=/etc/passwd",
    "<?xml version='1.0'?>",
];

// Boxed, because a strategy of all their parts would be larger than a thread's stack.

/// Texts: tame ones, attacks, and what has any characters at all.
fn text() -> BoxedStrategy<String> {
    prop_oneof![
        12 => "[a-z0-9/._-]{1,20}",
        8 => (proptest::sample::select(&ATTACKS[..]), "[ -~]{0,8}")
            .prop_map(|(attack, rest)| format!("{attack}{rest}")),
        6 => "[ -~ä\u{10FFFF}]{1,20}",
        1 => "[\u{0}-\u{9f}\u{FFFD}-\u{FFFF}a]{1,6}",
    ]
    .boxed()
}

/// Paths, of which most are absolute.
fn path() -> BoxedStrategy<PathBuf> {
    (prop::bool::weighted(0.99), text())
        .prop_map(|(is_absolute, text)| {
            let slash = if is_absolute { "/" } else { "" };
            format!("{slash}{text}").into()
        })
        .boxed()
}

/// A word of ours, from texts that may be none.
fn word<T: std::str::FromStr + std::fmt::Debug>(
    texts: impl Strategy<Value = String>,
) -> impl Strategy<Value = T> {
    texts.prop_filter_map("no such word", |text| text.parse().ok())
}

fn format() -> impl Strategy<Value = DiskFormat> {
    prop_oneof![Just(DiskFormat::Raw), Just(DiskFormat::Qcow2)]
}

fn uefi() -> BoxedStrategy<Uefi> {
    let image = prop_oneof![
        (path(), path(), path(), format()).prop_map(|(code, vars, vars_template, format)| {
            UefiImage::Split {
                code,
                vars,
                vars_template,
                format,
            }
        }),
        (path(), format()).prop_map(|(code, format)| UefiImage::Stateless { code, format }),
        (path(), path(), format()).prop_map(|(file, template, format)| UefiImage::Combined {
            file,
            template,
            format
        }),
        path().prop_map(|rom| UefiImage::Memory { rom }),
    ];
    (image, any::<bool>(), any::<bool>())
        .prop_map(|(image, secure_boot, smm)| Uefi {
            image,
            secure_boot,
            smm,
        })
        .boxed()
}

fn boot() -> BoxedStrategy<Boot> {
    let line = || word("[ -~\t]{0,40}");
    prop_oneof![
        (path(), option::of(path()), line()).prop_map(|(kernel, initramfs, command_line)| {
            Boot::Kernel {
                kernel,
                initramfs,
                command_line,
            }
        }),
        (uefi(), path(), option::of(line())).prop_map(|(firmware, uki, command_line)| Boot::Uki {
            firmware,
            uki,
            command_line
        }),
        uefi().prop_map(|firmware| Boot::Disk(Firmware::Uefi(firmware))),
        Just(Boot::Disk(Firmware::Bios)),
    ]
    .boxed()
}

fn disk() -> BoxedStrategy<Disk> {
    let backing = (path(), format()).prop_map(|(file, format)| Backing { file, format });
    let bus = prop_oneof![
        6 => Just(DiskBus::Virtio),
        3 => Just(DiskBus::Cdrom),
        1 => Just(DiskBus::Nvme),
    ];
    (
        (path(), format(), option::of(backing), any::<bool>()),
        (option::of(word("[a-zA-Z0-9_-]{1,20}")), bus, any::<bool>()),
    )
        .prop_map(
            |((file, format, backing, read_only), (serial, bus, boots))| Disk {
                file,
                format,
                backing,
                virtual_size_bytes: 1 << 30,
                read_only,
                serial,
                bus,
                boots,
            },
        )
        .boxed()
}

fn nic() -> BoxedStrategy<Nic> {
    let name = || word("[a-zA-Z0-9][a-zA-Z0-9._-]{0,14}");
    let forward: Forward = "2222:22".parse().unwrap();
    prop_oneof![
        prop::bool::weighted(0.2).prop_map(move |forwards| Nic::User {
            forwards: if forwards { vec![forward] } else { Vec::new() },
        }),
        name().prop_map(Nic::Network),
        name().prop_map(Nic::Bridge),
    ]
    .boxed()
}

fn spec() -> BoxedStrategy<DomainSpec> {
    let machine = prop_oneof![Just(Machine::Amd64), Just(Machine::Arm64)];
    let accelerator = prop_oneof![Just(Accelerator::Tcg), Just(Accelerator::Kvm)];
    let file = prop_oneof![4 => "/[ -%(-+.-;=?-~]{1,20}".prop_map(PathBuf::from), 1 => path()];
    let fw_cfg = (word("opt/[a-z0-9./_-]{1,20}"), file);
    let fw_cfg = fw_cfg.prop_map(|(name, file)| FwCfg { name, file });
    let provenance = (text(), text(), any::<bool>());
    (
        (
            word("[a-zA-Z0-9][a-zA-Z0-9._-]{0,20}"),
            machine,
            accelerator,
        ),
        (1_u32..=255, 64_u64..=1 << 20),
        (boot(), vec(disk(), 0..4), option::of(nic())),
        (vec(fw_cfg, 0..3), vec(word(text()), 0..3)),
        (path(), provenance, any::<bool>()),
    )
        .prop_map(
            |(
                (name, machine, accelerator),
                (cpus, memory),
                (mut boot, disks, nic),
                (fw_cfg, oem_strings),
                (directory, (reference, method, has_index), has_own),
            )| {
                if has_own {
                    own_what_is_loaded(&mut boot, &directory);
                }
                DomainSpec {
                    uuid: Uuid::of(&reference),
                    name,
                    machine,
                    accelerator,
                    cpus: NonZeroU32::new(cpus).unwrap(),
                    memory: memory.try_into().unwrap(),
                    boot,
                    disks,
                    nic,
                    fw_cfg,
                    oem_strings,
                    is_observed: false,
                    directory,
                    provenance: Provenance {
                        index_digest: has_index.then(|| Digest::of(method.as_bytes())),
                        manifest_digest: Digest::of(reference.as_bytes()),
                        reference,
                        method,
                    },
                    binds: Vec::new(),
                    qemu_arguments: Vec::new(),
                }
            },
        )
        .boxed()
}

/// Makes all that the hypervisor loads the VM's own.
fn own_what_is_loaded(boot: &mut Boot, directory: &Path) {
    let own = |file: &mut PathBuf| {
        let mut path = directory.as_os_str().to_owned();
        path.push("/");
        path.push(&*file);
        *file = path.into();
    };
    match boot {
        Boot::Kernel {
            kernel, initramfs, ..
        } => {
            own(kernel);
            initramfs.as_mut().map(own);
        }
        Boot::Uki { uki, .. } => own(uki),
        Boot::Disk(_) => {}
    }
}

fn runs_as() -> impl Strategy<Value = RunsAs> {
    let owner = (any::<u32>(), any::<u32>()).prop_map(|(uid, gid)| Owner { uid, gid });
    prop_oneof![
        Just(RunsAs::Caller),
        owner.clone().prop_map(RunsAs::Given),
        option::of(owner).prop_map(RunsAs::Lent),
    ]
}

/// Tells whether a reader gets the text as it was written.
fn is_plain(text: &str) -> bool {
    let odd = |c| matches!(c, '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{FFFE}' | '\u{FFFF}');
    !text.contains(odd)
}

fn is_plain_path(path: &Path) -> bool {
    path.is_absolute() && path.to_str().is_some_and(is_plain)
}

/// Every path that gets into the document.
fn paths(spec: &DomainSpec) -> Vec<&Path> {
    let mut paths: Vec<&Path> = spec.boot.loaded().collect();
    match spec.boot.uefi().map(|uefi| &uefi.image) {
        Some(UefiImage::Split { code, vars, .. }) => paths.extend([&**code, &**vars]),
        Some(
            UefiImage::Stateless { code: file, .. }
            | UefiImage::Combined { file, .. }
            | UefiImage::Memory { rom: file },
        ) => paths.push(file),
        None => {}
    }
    for disk in &spec.disks {
        paths.push(&disk.file);
        paths.extend(disk.backing.iter().map(|backing| &*backing.file));
    }
    paths.extend(spec.fw_cfg.iter().map(|entry| &*entry.file));
    paths.push(&spec.directory);
    paths
}

/// Tells whether libvirt has all that is asked for.
fn is_supported(spec: &DomainSpec, runs_as: RunsAs) -> bool {
    let uefi = spec.boot.uefi().map(|uefi| &uefi.image);
    let is_lent = matches!(runs_as, RunsAs::Lent(_));
    let shares = |file: &Path| !file.starts_with(&spec.directory);
    let forwards = |nic: &Nic| matches!(nic, Nic::User { forwards } if !forwards.is_empty());
    !(is_lent
        && (spec.boot.loaded().any(shares) || matches!(uefi, Some(UefiImage::Combined { .. })))
        || spec.disks.iter().any(|disk| disk.bus == DiskBus::Nvme)
        || spec.machine == Machine::Arm64 && matches!(spec.boot, Boot::Disk(Firmware::Bios))
        || spec.nic.as_ref().is_some_and(forwards))
}

fn named<'a>(elements: &'a [Flat], name: &'a str) -> impl Iterator<Item = &'a Flat> {
    elements.iter().filter(move |element| element.name == name)
}

fn attribute<'a>(element: &'a Flat, name: &str) -> Option<&'a str> {
    let attributes = element.attributes.iter();
    let mut values = attributes.filter(|(key, _)| key == name);
    values.next().map(|(_, value)| value.as_str())
}

/// A test fails as well if four of five cases are none to it.
fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn what_is_written_is_read_back_and_only_what_can_not_be_said_is_refused(
        spec in spec(),
        runs_as in runs_as(),
    ) {
        let texts = spec.oem_strings.iter().map(OemString::as_str);
        let texts = texts.chain([&*spec.provenance.reference, &*spec.provenance.method]);
        let pasted = |entry: &FwCfg| {
            entry.file.to_string_lossy().contains([',', '<', '>', '&', '\'', '"'])
        };
        let can_be_said = paths(&spec).into_iter().all(is_plain_path)
            // A tab is kept in a text, and is none of a path's.
            && texts.into_iter().all(|text| is_plain(&text.replace('\t', "")))
            && !spec.fw_cfg.iter().any(pasted);
        match render(&spec, runs_as) {
            Ok(document) => {
                prop_assert!(can_be_said && is_supported(&spec, runs_as), "{document}");
                let element = domain(&spec, runs_as).unwrap();
                prop_assert_eq!(read(&document), written(&element));
            }
            Err(error) => prop_assert!(!can_be_said || !is_supported(&spec, runs_as), "{error}"),
        }
    }

    #[test]
    fn nothing_is_left_to_libvirt_that_it_would_choose_wrongly(
        spec in spec(),
        runs_as in runs_as(),
    ) {
        let document = render(&spec, runs_as);
        prop_assume!(document.is_ok());
        let document = document.unwrap();
        let elements = read(&document);
        let count = |name| named(&elements, name).count();

        // It would choose firmware that starts signed programs only.
        let os = named(&elements, "os").next().unwrap();
        prop_assert_eq!(&os.attributes, &[]);
        prop_assert_eq!(count("loader"), usize::from(spec.boot.uefi().is_some()));
        // QEMU ends at a command line without a kernel, and hangs at a UKI without firmware.
        prop_assert!(count("cmdline") <= count("kernel"));
        prop_assert_eq!(count("kernel"), usize::from(!matches!(spec.boot, Boot::Disk(_))));
        if matches!(spec.boot, Boot::Uki { .. }) {
            prop_assert_eq!((count("loader"), count("initrd")), (1, 0));
        }
        for line in named(&elements, "cmdline") {
            prop_assert!(!line.text.contains('\n'));
        }
        // It refuses UEFI in flash without ACPI.
        let in_flash = named(&elements, "loader")
            .any(|loader| attribute(loader, "type") == Some("pflash"));
        prop_assert!(!in_flash || count("acpi") == 1);
        // An old network card; a serial port that is found late.
        prop_assert_eq!(count("interface"), usize::from(spec.nic.is_some()));
        let models = named(&elements, "model").filter(|model| model.depth == 3);
        for model in models {
            prop_assert_eq!(attribute(model, "type"), Some("virtio"));
        }
        for (element, kind) in [("serial", "pty"), ("console", "pty")] {
            let ports = named(&elements, element).filter(|element| element.depth == 2);
            let kinds: Vec<_> = ports.map(|port| attribute(port, "type")).collect();
            prop_assert_eq!(kinds, [Some(kind)]);
        }
    }

    #[test]
    fn every_disk_has_its_format_its_chain_and_the_end_of_it(
        spec in spec(),
        runs_as in runs_as(),
    ) {
        let document = render(&spec, runs_as);
        prop_assume!(document.is_ok());
        let document = document.unwrap();
        let elements = read(&document);
        let mut disks: Vec<Vec<&Flat>> = Vec::new();
        let mut is_inside = false;
        for element in &elements {
            if element.depth == 2 {
                is_inside = element.name == "disk";
                disks.extend(is_inside.then(Vec::new));
            } else if is_inside && element.depth > 2 {
                disks.last_mut().unwrap().push(element);
            } else {
                is_inside = false;
            }
        }
        prop_assert_eq!(disks.len(), spec.disks.len());
        for (disk, inside) in spec.disks.iter().zip(disks) {
            // Where, what, by which attribute: the whole of what QEMU opens.
            let told: Vec<(usize, &str, Option<&str>)> = inside
                .iter()
                .filter_map(|element| {
                    let key = match element.name.as_str() {
                        "driver" | "format" => "type",
                        "source" => "file",
                        "backingStore" => "type",
                        "seclabel" => "relabel",
                        _ => return None,
                    };
                    Some((element.depth, element.name.as_str(), attribute(element, key)))
                })
                .collect();
            let is_lent = matches!(runs_as, RunsAs::Lent(_));
            let kept = |depth, is_shared: bool| {
                (is_lent && is_shared).then_some((depth, "seclabel", Some("no")))
            };
            let mut expected = vec![
                (3, "driver", Some(disk.format.as_str())),
                (3, "source", disk.file.to_str()),
            ];
            expected.extend(kept(4, disk.read_only));
            match &disk.backing {
                None => expected.push((3, "backingStore", None)),
                Some(backing) => {
                    expected.push((3, "backingStore", Some("file")));
                    expected.push((4, "format", Some(backing.format.as_str())));
                    expected.push((4, "source", backing.file.to_str()));
                    expected.extend(kept(5, true));
                    expected.push((4, "backingStore", None));
                }
            }
            prop_assert_eq!(told, expected);
        }
        // Under a static label nothing changes hands; a whole domain has one, or none.
        let whole = named(&elements, "seclabel").filter(|label| label.depth == 1);
        let whole: Vec<_> = whole
            .map(|label| (attribute(label, "type"), attribute(label, "relabel")))
            .collect();
        let expected = match runs_as {
            RunsAs::Given(_) => vec![(Some("static"), Some("no"))],
            RunsAs::Caller | RunsAs::Lent(_) => Vec::new(),
        };
        prop_assert_eq!(whole, expected);
    }
}
