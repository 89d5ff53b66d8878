//! Domain XML: what [`DomainSpec`] is in libvirt's words.
//!
//! Everything that decides what QEMU opens is said, so that libvirt neither probes formats nor
//! follows what a disk image names, and so that the same spec is the same VM after an upgrade.
//! Format: <https://libvirt.org/formatdomain.html>.

use crate::domain::{Accelerator, Boot, DomainSpec, FwCfg, Machine, Provenance, UefiImage};
use crate::hypervisor::libvirt::devices::devices;
use crate::hypervisor::libvirt::element::{Element, path_text};
use crate::hypervisor::libvirt::os::{oem_strings, os};
use crate::hypervisor::{HypervisorError, Owner, RunsAs, without_network_boot};
use crate::oci::Digest;

/// Namespace of what ironboot notes in a domain's metadata.
pub(super) const METADATA_NAMESPACE: &str = "https://ironcore.dev/ironboot/domain/1";

/// Renders the domain's XML document.
///
/// Errors if a path is relative or has a character that does not arrive at QEMU, if a text has one
/// that XML does not have, and if the spec asks for what libvirt has not.
pub fn render(spec: &DomainSpec, runs_as: RunsAs) -> Result<String, HypervisorError> {
    domain(spec, runs_as)?.to_document()
}

pub(super) fn domain(spec: &DomainSpec, runs_as: RunsAs) -> Result<Element, HypervisorError> {
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
        // In `fw_cfg`.
        fw_cfg: _,
        oem_strings: strings,
        is_observed,
        provenance,
        binds,
        qemu_arguments,
    } = spec;
    if !binds.is_empty() {
        let what = "directories of this host";
        return Err(HypervisorError::unsupported("libvirt", spec, what));
    }
    if *is_observed {
        let what = "ports that are observed";
        return Err(HypervisorError::unsupported("libvirt", spec, what));
    }
    if !qemu_arguments.is_empty() {
        let what = "arguments of QEMU's own";
        return Err(HypervisorError::unsupported("libvirt", spec, what));
    }
    let kind = match accelerator {
        Accelerator::Kvm => "kvm",
        Accelerator::Tcg => "qemu",
    };

    Ok(Element::new("domain").with("type", kind).holding(
        [
            Element::of_text("name", name.as_str()),
            Element::of_text("uuid", uuid.as_str()),
            metadata(provenance, &plan_digest(spec)?),
            Element::of_text("memory", memory.mib().to_string()).with("unit", "MiB"),
            Element::of_text("vcpu", cpus.to_string()),
        ]
        .into_iter()
        .chain(oem_strings(strings))
        .chain(fw_cfg(spec)?)
        .chain([
            os(spec, runs_as)?,
            features(*machine, *accelerator, boot),
            cpu(*machine, *accelerator),
            Element::new("clock").with("offset", "utc"),
            Element::of_text("on_poweroff", "destroy"),
            Element::of_text("on_reboot", "restart"),
            Element::of_text("on_crash", "destroy"),
        ])
        .chain(sleep(*machine, boot))
        .chain([devices(spec, runs_as)?])
        .chain(domain_label(runs_as)),
    ))
}

/// libvirt keeps one element of each namespace in a domain's metadata.
///
/// The names of these are what `known` reads.
fn metadata(provenance: &Provenance, plan_digest: &Digest) -> Element {
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
            Element::of_text("ironboot:plan-digest", plan_digest.to_string()),
            Element::of_text("ironboot:boot-method", method),
        ])])
}

pub(super) fn plan_digest(spec: &DomainSpec) -> Result<Digest, HypervisorError> {
    // Only a path can fail, and all that may be no text are below the VM's directory or beside it.
    let path = || spec.directory.clone();
    spec.plan_digest()
        .map_err(|_| HypervisorError::Path { path: path() })
}

fn fw_cfg(spec: &DomainSpec) -> Result<Option<Element>, HypervisorError> {
    let mut entries = Vec::new();
    for FwCfg { name, file } in &spec.fw_cfg {
        let path = path_text(file)?;
        // libvirt 9.0 pastes the path into QEMU's option: it doubles no comma, so that one would
        // start another option, and writes `&amp;` for `&`.
        if path.contains([',', '<', '>', '&', '\'', '"']) {
            return Err(HypervisorError::Path { path: file.clone() });
        }
        entries.push(
            Element::new("entry")
                .with("name", name.as_str())
                .with("file", path),
        );
    }
    entries.extend(
        without_network_boot(spec).map(|name| Element::of_text("entry", "n").with("name", name)),
    );
    Ok((!entries.is_empty()).then(|| {
        Element::new("sysinfo")
            .with("type", "fwcfg")
            .holding(entries)
    }))
}

fn features(machine: Machine, accelerator: Accelerator, boot: &Boot) -> Element {
    let acpi = Element::new("acpi");
    match machine {
        Machine::Amd64 => {
            let smm = needs_smm(machine, boot).then(|| Element::new("smm").with("state", "on"));
            Element::new("features")
                .holding([acpi, Element::new("apic")])
                .holding(smm)
        }
        Machine::Arm64 => {
            // KVM's interrupt controller is the host's; of the emulated ones, version 2 ends at
            // 8 CPUs.
            let gic = match accelerator {
                Accelerator::Kvm => None,
                Accelerator::Tcg => Some(Element::new("gic").with("version", "3")),
            };
            // On Arm libvirt has ACPI with UEFI only, and takes only what is in flash for UEFI:
            // from an image in memory the guest gets a device tree.
            let in_flash = boot
                .uefi()
                .is_some_and(|firmware| !matches!(firmware.image, UefiImage::Memory { .. }));
            Element::new("features")
                .holding(in_flash.then_some(acpi))
                .holding(gic)
        }
    }
}

fn needs_smm(machine: Machine, boot: &Boot) -> bool {
    machine == Machine::Amd64 && boot.uefi().is_some_and(|firmware| firmware.smm)
}

/// Firmware in system management mode does not come back from suspend.
fn sleep(machine: Machine, boot: &Boot) -> Option<Element> {
    needs_smm(machine, boot)
        .then(|| Element::new("pm").holding([Element::new("suspend-to-mem").with("enabled", "no")]))
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

fn domain_label(runs_as: RunsAs) -> Option<Element> {
    match runs_as {
        RunsAs::Given(Owner { uid, gid }) => Some(
            Element::new("seclabel")
                .with("type", "static")
                .with("model", "dac")
                .with("relabel", "no")
                .holding([Element::of_text("label", format!("+{uid}:+{gid}"))]),
        ),
        RunsAs::Lent(_) | RunsAs::Caller => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use super::*;
    use crate::domain::{DiskFormat, Firmware, Nic, Uefi};
    use crate::hypervisor::libvirt::element::tests::{read, written};
    use crate::hypervisor::samples::{self, direct};

    const QEMU: RunsAs = RunsAs::Given(Owner {
        uid: 64055,
        gid: 64055,
    });

    #[test]
    fn documents_are_as_in_the_fixtures() {
        for (name, spec, runs_as) in cases() {
            let document = render(&spec, runs_as).unwrap();
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
        for (name, spec, runs_as) in cases() {
            let element = domain(&spec, runs_as).unwrap();
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
        for (name, spec, runs_as) in cases() {
            let document = render(&spec, runs_as).unwrap();
            let count = |text: &str| document.matches(text).count();
            let backed = spec.disks.iter().filter(|disk| disk.backing.is_some());
            let backed = backed.count();
            let read_only = spec.disks.iter().filter(|disk| disk.read_only).count();
            assert_eq!(count("<driver name=\"qemu\" type=\""), spec.disks.len());
            assert_eq!(count("<format type=\""), backed);
            assert_eq!(count("<backingStore/>"), spec.disks.len(), "{name}");
            let shared = match runs_as {
                RunsAs::Lent(_) => backed + read_only,
                RunsAs::Given(_) | RunsAs::Caller => 0,
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
    }

    #[test]
    fn what_libvirt_has_not_is_refused() {
        let check = |name: &str, change: fn(&mut DomainSpec), runs_as, expected: &str| {
            let mut spec = sample(name);
            change(&mut spec);
            let error = render(&spec, runs_as).unwrap_err().to_string();
            assert_eq!(error, format!("libvirt can not give web {expected}"));
        };
        check("nvme", |_| {}, QEMU, "an NVMe disk");
        check("observed-amd64", |_| {}, QEMU, "ports that are observed");
        check("bind", |_| {}, QEMU, "directories of this host");
        let own = |spec: &mut DomainSpec| spec.qemu_arguments = vec!["-S".to_owned()];
        check("direct-amd64", own, QEMU, "arguments of QEMU's own");
        check(
            "disk-arm64",
            |spec| spec.boot = Boot::Disk(Firmware::Bios),
            QEMU,
            "a BIOS on Arm",
        );
        check(
            "combined-amd64",
            |_| {},
            RunsAs::Lent(None),
            "firmware that is one writable file, unless root asks",
        );
        check(
            "uki-amd64",
            |_| {},
            RunsAs::Lent(None),
            "a kernel or initramfs that is not its own, unless root asks",
        );
        check(
            "direct-amd64",
            |spec| {
                if let Boot::Kernel { kernel, .. } = &mut spec.boot {
                    *kernel = spec.directory.join("kernel");
                }
            },
            RunsAs::Lent(None),
            "a kernel or initramfs that is not its own, unless root asks",
        );
        check(
            "direct-amd64",
            |spec| {
                let forwards = vec!["2222:22".parse().unwrap()];
                spec.nic = Some(Nic::User { forwards });
            },
            QEMU,
            "forwarded ports",
        );
    }

    #[test]
    fn flash_that_is_not_raw_is_told_so() {
        // Not a fixture: the schema of libvirt 9.0 has no such attribute.
        for (name, files) in [
            ("disk-amd64", 2),
            ("stateless-amd64", 1),
            ("combined-amd64", 1),
        ] {
            let mut spec = sample(name);
            let Boot::Disk(Firmware::Uefi(Uefi {
                image:
                    UefiImage::Split { format, .. }
                    | UefiImage::Stateless { format, .. }
                    | UefiImage::Combined { format, .. },
                ..
            })) = &mut spec.boot
            else {
                unreachable!("all of them are in flash")
            };
            *format = DiskFormat::Qcow2;
            let document = render(&spec, QEMU).unwrap();
            assert_eq!(
                document.matches(" format=\"qcow2\"").count(),
                files,
                "{name}"
            );
        }
    }

    fn fixture(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixtures/xml/{name}.xml"))
    }

    fn sample(name: &str) -> DomainSpec {
        let mut samples = samples::all().into_iter();
        samples.find(|sample| sample.0 == name).unwrap().1
    }

    /// Every sample, under one or the other hypervisor.
    fn cases() -> Vec<(&'static str, DomainSpec, RunsAs)> {
        let runs_as = |name: &str| match name {
            "cdrom" | "disk-arm64" => RunsAs::Lent(None),
            "direct-amd64-without-disk" | "direct-arm64-kvm" => RunsAs::Caller,
            _ => QEMU,
        };
        samples::all()
            .into_iter()
            // The one that libvirt has not.
            .filter(|(name, _)| !["nvme", "bind"].contains(name) && !name.starts_with("observed"))
            .map(|(name, spec)| (name, spec, runs_as(name)))
            .collect()
    }
}
