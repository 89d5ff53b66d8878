//! Domain XML: what [`DomainSpec`] is in libvirt's words.
//!
//! Everything that decides what QEMU opens is said, so that libvirt neither probes formats nor
//! follows what a disk image names, and so that the same spec is the same VM after an upgrade.
//! Format: <https://libvirt.org/formatdomain.html>.

use crate::domain::{
    Accelerator, Boot, DiskFormat, DomainSpec, Firmware, FwCfg, Machine, Provenance,
};
use crate::hypervisor::libvirt::devices::{Labels, devices};
use crate::hypervisor::libvirt::element::{Element, path_text};
use crate::hypervisor::{HypervisorError, Owner};

/// Namespace of what ironboot notes in a domain's metadata.
const METADATA_NAMESPACE: &str = "https://ironcore.dev/ironboot/domain/1";

/// Renders the domain's XML document.
///
/// Errors if a path is relative or has a character that does not arrive at QEMU, if a text has one
/// that XML does not have, and if the spec asks for port forwards.
pub fn render(spec: &DomainSpec, labels: Labels) -> Result<String, HypervisorError> {
    domain(spec, labels)?.to_document()
}

fn domain(spec: &DomainSpec, labels: Labels) -> Result<Element, HypervisorError> {
    let DomainSpec {
        name,
        uuid,
        machine,
        accelerator,
        cpus,
        memory,
        boot,
        // In `devices`.
        disks: _,
        nic: _,
        directory: _,
        fw_cfg,
        provenance,
    } = spec;
    let from_firmware = matches!(boot, Boot::Firmware(_));
    let kind = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "qemu",
    };

    Ok(Element::new("domain").with("type", kind).holding(
        [
            Element::of_text("name", name.as_str()),
            Element::of_text("uuid", uuid.as_str()),
            metadata(provenance),
            Element::of_text("memory", memory.mib().to_string()).with("unit", "MiB"),
            Element::of_text("vcpu", cpus.to_string()),
        ]
        .into_iter()
        .chain(fw_cfg_entries(fw_cfg)?)
        .chain([
            os(*machine, boot)?,
            features(*machine, *accelerator, from_firmware),
            cpu(*machine, *accelerator),
            Element::new("clock").with("offset", "utc"),
            Element::of_text("on_poweroff", "destroy"),
            Element::of_text("on_reboot", "restart"),
            Element::of_text("on_crash", "destroy"),
            devices(spec, labels)?,
        ])
        .chain(domain_label(labels)),
    ))
}

/// libvirt keeps one element of each namespace in a domain's metadata.
fn metadata(provenance: &Provenance) -> Element {
    let Provenance {
        reference,
        index_digest,
        manifest_digest,
        method,
    } = provenance;
    let index_digest = index_digest
        .as_ref()
        .map(|digest| Element::of_text("ironboot:index-digest", digest.to_string()));
    Element::new("metadata").holding([Element::new("ironboot:image")
        .with("xmlns:ironboot", METADATA_NAMESPACE)
        .holding([Element::of_text("ironboot:reference", reference)])
        .holding(index_digest)
        .holding([
            Element::of_text("ironboot:manifest-digest", manifest_digest.to_string()),
            Element::of_text("ironboot:boot-method", method),
        ])])
}

fn os(machine: Machine, boot: &Boot) -> Result<Element, HypervisorError> {
    let board = match machine {
        Machine::Amd64 => "q35",
        Machine::Arm64 => "virt",
    };
    let os = Element::new("os").holding([Element::of_text("type", "hvm")
        .with("arch", machine.isa())
        .with("machine", board)]);
    match boot {
        Boot::Kernel {
            kernel,
            initramfs,
            command_line,
        } => {
            let initramfs = initramfs.as_deref().map(path_text).transpose()?;
            let command_line = Some(command_line.to_string()).filter(|line| !line.is_empty());
            Ok(os
                .holding([Element::of_text("kernel", path_text(kernel)?)])
                .holding(initramfs.map(|path| Element::of_text("initrd", path)))
                .holding(command_line.map(|line| Element::of_text("cmdline", line))))
        }
        Boot::Firmware(firmware) => {
            let os = os.holding(flash(firmware)?);
            Ok(match machine {
                Machine::Amd64 => os,
                // AAVMF waits 5 s for a key unless a boot menu is asked for that waits 0 s.
                Machine::Arm64 => os.holding([Element::new("bootmenu")
                    .with("enable", "yes")
                    .with("timeout", "0")]),
            })
        }
    }
}

/// The pair is named file by file: libvirt's own choice (`firmware='efi'`) may be a build that
/// boots signed systems only, and would make the variable store outside of the VM's directory.
fn flash(firmware: &Firmware) -> Result<[Element; 2], HypervisorError> {
    let Firmware {
        code,
        format,
        vars,
        // `vars` is a copy of it already, and libvirt makes none of a file that is there.
        vars_template: _,
    } = firmware;
    let mut loader = Element::of_text("loader", path_text(code)?)
        .with("readonly", "yes")
        .with("type", "pflash");
    let mut nvram = Element::of_text("nvram", path_text(vars)?);
    match format {
        // The default, and the only format before libvirt 9.2, which had no word for it.
        DiskFormat::Raw => {}
        DiskFormat::Qcow2 => {
            loader = loader.with("format", format.as_str());
            nvram = nvram.with("format", format.as_str());
        }
    }
    Ok([loader, nvram])
}

fn fw_cfg_entries(fw_cfg: &[FwCfg]) -> Result<Option<Element>, HypervisorError> {
    if fw_cfg.is_empty() {
        return Ok(None);
    }
    let mut sysinfo = Element::new("sysinfo").with("type", "fwcfg");
    for FwCfg { name, file } in fw_cfg {
        let path = path_text(file)?;
        // libvirt 9.0 pastes the path into QEMU's option: it doubles no comma, so that one would
        // start another option, and writes `&amp;` for `&`.
        if path.contains([',', '<', '>', '&', '\'', '"']) {
            return Err(HypervisorError::Path { path: file.clone() });
        }
        sysinfo = sysinfo.holding([Element::new("entry")
            .with("name", name.as_str())
            .with("file", path)]);
    }
    Ok(Some(sysinfo))
}

fn features(machine: Machine, accelerator: Accelerator, from_firmware: bool) -> Element {
    let acpi = Element::new("acpi");
    match machine {
        Machine::Amd64 => Element::new("features").holding([acpi, Element::new("apic")]),
        Machine::Arm64 => {
            // KVM's interrupt controller is the host's; of the emulated ones, version 2 ends at
            // 8 CPUs.
            let gic = match accelerator {
                Accelerator::Kvm => None,
                Accelerator::Tcg => Some(Element::new("gic").with("version", "3")),
            };
            // On Arm libvirt has ACPI with UEFI only.
            Element::new("features")
                .holding(from_firmware.then_some(acpi))
                .holding(gic)
        }
    }
}

/// Without a model libvirt takes QEMU's default: a 32-bit CPU on Arm, and on x86 one that lacks
/// what distributions compile for.
fn cpu(machine: Machine, accelerator: Accelerator) -> Element {
    let cpu = Element::new("cpu");
    match (accelerator, machine) {
        (Accelerator::Kvm, _) => cpu.with("mode", "host-passthrough"),
        (Accelerator::Tcg, Machine::Amd64) => cpu.with("mode", "maximum"),
        // The maximum has pointer authentication, which takes five times as long to emulate.
        (Accelerator::Tcg, Machine::Arm64) => cpu
            .with("mode", "custom")
            .with("match", "exact")
            .with("check", "none")
            .holding([Element::of_text("model", "cortex-a57").with("fallback", "forbid")]),
    }
}

fn domain_label(labels: Labels) -> Option<Element> {
    match labels {
        Labels::Static(Owner { uid, gid }) => Some(
            Element::new("seclabel")
                .with("type", "static")
                .with("model", "dac")
                .with("relabel", "no")
                .holding([Element::of_text("label", format!("+{uid}:+{gid}"))]),
        ),
        Labels::Dynamic | Labels::None => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::*;
    use crate::domain::{Forward, Nic};
    use crate::hypervisor::libvirt::element::tests::{read, written};
    use crate::hypervisor::samples::{self, direct, firmware};

    const QEMU: Labels = Labels::Static(Owner {
        uid: 64055,
        gid: 64055,
    });

    #[test]
    fn documents_are_as_in_the_fixtures() {
        for (name, spec, labels) in cases() {
            let document = render(&spec, labels).unwrap();
            let fixture = fixture(name);
            if std::env::var_os("IRONBOOT_BLESS").is_some() {
                fs::write(&fixture, &document).unwrap();
            }
            let expected = fs::read_to_string(&fixture).unwrap_or_default();
            assert_eq!(
                document, expected,
                "{name}.xml; IRONBOOT_BLESS=1 rewrites it"
            );
        }
    }

    #[test]
    fn documents_read_back_as_what_was_written() {
        for (name, spec, labels) in cases() {
            let element = domain(&spec, labels).unwrap();
            let document = element.to_document().unwrap();
            assert_eq!(read(&document), written(&element), "{name}");
        }
    }

    #[test]
    fn documents_are_valid_in_libvirts_schema() {
        for (name, _, _) in cases() {
            let output = Command::new("virt-xml-validate")
                .arg(fixture(name))
                .arg("domain")
                .output()
                .expect("virt-xml-validate is installed, of libvirt-clients");
            assert!(
                output.status.success(),
                "{name}.xml, if not for a missing xmllint of libxml2-utils: {output:?}"
            );
        }
    }

    #[test]
    fn no_disk_is_without_format_and_end_of_chain_and_none_shared_is_given_away() {
        for (name, spec, labels) in cases() {
            let document = render(&spec, labels).unwrap();
            let count = |text: &str| document.matches(text).count();
            let backed = spec.disks.iter().filter(|disk| disk.backing.is_some());
            let backed = backed.count();
            let read_only = spec.disks.iter().filter(|disk| disk.read_only).count();
            assert_eq!(count("<driver name=\"qemu\" type=\""), spec.disks.len());
            assert_eq!(count("<format type=\""), backed);
            assert_eq!(count("<backingStore/>"), spec.disks.len(), "{name}");
            let shared = match labels {
                Labels::Dynamic => backed + read_only,
                Labels::Static(_) | Labels::None => 0,
            };
            assert_eq!(count("<seclabel model=\"dac\" relabel=\"no\"/>"), shared);
        }
    }

    #[test]
    fn what_can_not_be_said_in_xml_is_refused() {
        let check = |change: fn(&mut DomainSpec)| {
            let mut spec = direct(Machine::Amd64);
            change(&mut spec);
            render(&spec, QEMU).map_err(|error| error.to_string())
        };
        let path_error =
            |path: &str| Err(format!("path is not text that a hypervisor takes: {path}"));
        assert_eq!(
            check(|spec| spec.disks[0].file = "nbd:127.0.0.1:1".into()),
            path_error("nbd:127.0.0.1:1")
        );
        assert_eq!(
            check(|spec| spec.disks[0].backing.as_mut().unwrap().file = "json:{}".into()),
            path_error("json:{}")
        );
        for path in ["/a,string=b", "/a&b", "/a'b", "/a\"b", "/a<b>"] {
            let mut spec = direct(Machine::Amd64);
            spec.fw_cfg = vec![FwCfg {
                name: "opt/a".parse().unwrap(),
                file: path.into(),
            }];
            let error = render(&spec, QEMU).map_err(|error| error.to_string());
            assert_eq!(error, path_error(path));
        }
        assert_eq!(
            check(|spec| spec.directory = "vm".into()),
            path_error("vm/console.log")
        );
        assert_eq!(
            check(|spec| spec.provenance.reference = "a\u{1b}[2J".into()),
            Err("ironboot:reference has a character that XML has not: a\\u{1b}[2J".into())
        );
        assert_eq!(
            check(|spec| spec.nic = Some(Nic {
                forwards: vec!["2222:22".parse::<Forward>().unwrap()]
            })),
            Err("libvirt can not give web forwarded ports".into())
        );
    }

    #[test]
    fn flash_that_is_not_raw_is_told_so() {
        // Not a fixture: the schema of libvirt 9.0 has no such attribute.
        let mut spec = firmware(Machine::Amd64);
        let Boot::Firmware(firmware) = &mut spec.boot else {
            unreachable!("firmware() made it")
        };
        firmware.format = DiskFormat::Qcow2;
        let document = render(&spec, QEMU).unwrap();
        assert_eq!(document.matches(" format=\"qcow2\">").count(), 2);
    }

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/xml/{name}.xml"))
    }

    /// Every sample, under the labels of one or the other hypervisor.
    fn cases() -> Vec<(&'static str, DomainSpec, Labels)> {
        let labels = |name: &str| match name {
            "direct-arm64" | "disk-arm64" => Labels::Dynamic,
            "direct-amd64-without-disk" | "direct-arm64-kvm" => Labels::None,
            _ => QEMU,
        };
        samples::all()
            .into_iter()
            .map(|(name, spec)| (name, spec, labels(name)))
            .collect()
    }
}
