//! The JSON of the contract: what was planned, pulled, staged, listed.

use serde_json::{Map, Value, json};

use crate::boot::plan::Alternative;
use crate::boot::{BootMethod, BootPlan, CommandLine, CommandLineSource};
use crate::domain::{Boot, DomainSpec, Firmware, Uefi, UefiImage};
use crate::firmware::FirmwareChoice;
use crate::hypervisor::Known;
use crate::image::{Dropped, Image, LayerRole, Selected};
use crate::instance::Record;
use crate::oci::Descriptor;
use crate::ops::images::{Inspection, ListedImage};
use crate::ops::list::{Listed, Problem, Subject};
use crate::ops::trust::Judgement;
use crate::ops::verify::{Outcome, Verified};
use crate::signature::{self, Met, Verdict};
use crate::stage::Inspected;
use crate::store::{Act, Pruned, Store};

/// Adds what every object begins with.
pub(super) fn object(fields: Value) -> Value {
    let mut object = Map::new();
    object.insert("schema_version".to_owned(), json!(1));
    if let Value::Object(fields) = fields {
        object.extend(fields);
    }
    Value::Object(object)
}

/// How an image boots, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Planned<'a> {
    pub(super) plan: &'a BootPlan,
    /// The UEFI firmware that a boot by firmware has.
    pub(super) firmware: Option<&'a FirmwareChoice>,
    /// What the blobs are; none before they were fetched.
    pub(super) inspected: Option<&'a Inspected>,
}

/// The plan of an image: `image`, `layers`, `boot`, `alternatives`, `selection`, `passed_over`,
/// `download`.
pub(super) fn plan(
    selected: &Selected,
    planned: Option<Planned<'_>>,
    store: &Store,
    fetched_bytes: Option<u64>,
) -> Value {
    let image = &selected.image;
    let boot = planned.map(boot);
    let plan = planned.map(|planned| planned.plan);
    let needed: Vec<&Descriptor> = plan.map_or_else(Vec::new, |plan| plan.method.blobs());
    let layers: Vec<Value> = image
        .manifest
        .layers
        .iter()
        .map(|layer| {
            json!({
                "role": image.role_of(layer).map(LayerRole::as_str),
                "media_type": layer.media_type,
                "digest": layer.digest,
                "size": layer.size,
                "needed": needed.contains(&layer) || is_command_line(image, layer),
            })
        })
        .collect();
    let missing_bytes: u64 = needed
        .iter()
        .filter(|blob| !store.seems_to_have(blob))
        .map(|blob| blob.size)
        .sum();
    let total_bytes: u64 = needed.iter().map(|blob| blob.size).sum();
    let mut download = json!({"total_bytes": total_bytes, "missing_bytes": missing_bytes});
    if let Some(bytes) = fetched_bytes {
        download["fetched_bytes"] = json!(bytes);
    }
    let alternatives: Vec<Value> = plan
        .map(|plan| plan.alternatives.iter().map(alternative).collect())
        .unwrap_or_default();
    json!({
        "image": image_object(image),
        "layers": layers,
        "boot": boot,
        "alternatives": alternatives,
        "selection": {"reason": selected.reason, "through": selected.through},
        "passed_over": selected.dropped.iter().map(dropped).collect::<Vec<_>>(),
        "download": download,
    })
}

fn is_command_line(image: &Image, layer: &Descriptor) -> bool {
    image.role_of(layer) == Some(LayerRole::CommandLine)
}

fn image_object(image: &Image) -> Value {
    json!({
        "reference": image.reference.to_string(),
        "index_digest": image.index_digest,
        "manifest_digest": image.manifest_digest,
        "os": "linux",
        "architecture": image.architecture.as_ref().map(|(word, _)| word),
        "architecture_from": image.architecture.as_ref().map(|(_, signal)| signal.as_str()),
        "variant": image.variant.map(|(variant, _)| variant.as_str()),
        "variant_from": image.variant.map(|(_, signal)| signal.as_str()),
    })
}

fn boot(planned: Planned<'_>) -> Value {
    let Planned {
        plan,
        firmware,
        inspected,
    } = planned;
    let mut object = json!({
        "method": plan.method.name().as_str(),
        "command_line": null,
        "command_line_from": null,
        "reason": plan.reason,
        "notes": plan.notes,
        "firmware": firmware.filter(|_| plan.method.is_started_by_firmware()).map(|firmware| json!({
            "code": firmware.files.code(),
            "descriptor": firmware.descriptor,
            "secure_boot": firmware.secure_boot,
            "reason": firmware.reason,
        })),
    });
    match &plan.method {
        BootMethod::Direct(direct) => {
            object["command_line"] = json!(direct.command_line.as_str());
            object["command_line_from"] = json!(direct.command_line_from.as_str());
        }
        BootMethod::Uki(uki) => {
            object["uki"] = json!(uki.start.name().as_str());
            let found = inspected.and_then(|inspected| inspected.uki.as_ref());
            object["uki_content"] =
                json!(found.and_then(|uki| uki.content.as_ref()).map(|content| {
                    json!({
                        "os": content.os_name,
                        "kernel_release": content.kernel_release,
                        "command_line": found.map(|uki| uki.command_line.as_str()),
                        "stub_version": content.stub_version,
                        "signed": content.is_signed,
                    })
                }));
            if let Some(line) = &uki.command_line {
                object["command_line"] = json!(line.as_str());
                object["command_line_from"] = json!(CommandLineSource::Option.as_str());
            }
            object["append"] = json!(uki.append.as_str());
        }
        BootMethod::Disk { .. } | BootMethod::Iso { .. } => {}
    }
    object
}

fn alternative(alternative: &Alternative) -> Value {
    json!({
        "method": alternative.method.as_str(),
        "possible": alternative.possible,
        "reason": alternative.reason,
    })
}

fn dropped(dropped: &Dropped) -> Value {
    let Dropped {
        digest,
        within,
        offer,
        reason,
    } = dropped;
    let roles: Vec<&str> = offer.roles.iter().map(|role| role.as_str()).collect();
    json!({
        "digest": digest,
        "within": within,
        "platform": offer.platform,
        "architecture": offer.architecture.as_ref().map(|(word, _)| word),
        "architecture_from": offer.architecture.as_ref().map(|(_, signal)| signal.as_str()),
        "variant": offer.variant.map(|(variant, _)| variant.as_str()),
        "variant_from": offer.variant.map(|(_, signal)| signal.as_str()),
        "roles": roles,
        "cname": offer.cname,
        "reason": reason,
    })
}

/// The files of an instance, with absolute paths.
pub(super) fn staged(spec: &DomainSpec) -> Value {
    let (kernel, initramfs, uki, command_line) = match &spec.boot {
        Boot::Kernel {
            kernel,
            initramfs,
            command_line,
        } => (
            Some(kernel),
            initramfs.as_ref(),
            None,
            Some(command_line.as_str()),
        ),
        Boot::Uki {
            uki, command_line, ..
        } => (
            None,
            None,
            Some(uki),
            command_line.as_ref().map(CommandLine::as_str),
        ),
        Boot::Disk(_) => (None, None, None, None),
    };
    let firmware = match &spec.boot {
        Boot::Disk(Firmware::Bios) => Some(json!({"mode": "bios"})),
        boot => boot.uefi().map(firmware),
    };
    let disks: Vec<Value> = spec
        .disks
        .iter()
        .map(|disk| {
            let backing = disk.backing.as_ref();
            json!({
                "path": disk.file,
                "format": disk.format,
                "backing_file": backing.map(|backing| &backing.file),
                "backing_format": backing.map(|backing| backing.format),
                "virtual_size_bytes": disk.virtual_size_bytes,
                "read_only": disk.read_only,
                "serial": disk.serial,
                "bus": disk.bus,
                "boots": disk.boots,
            })
        })
        .collect();
    let fw_cfg: Vec<Value> = spec
        .fw_cfg
        .iter()
        .map(|entry| json!({"name": entry.name, "path": entry.file}))
        .collect();
    json!({
        "instance": spec.name,
        "directory": spec.directory,
        "kernel": kernel,
        "initramfs": initramfs,
        "uki": uki,
        "command_line": command_line,
        "firmware": firmware,
        "disks": disks,
        "fw_cfg": fw_cfg,
        "smbios": spec.oem_strings,
    })
}

/// UEFI firmware, with absolute paths.
fn firmware(uefi: &Uefi) -> Value {
    let (mode, code, vars, format) = match &uefi.image {
        UefiImage::Split {
            code, vars, format, ..
        } => ("split", code, Some(vars), Some(format)),
        UefiImage::Stateless { code, format } => ("stateless", code, None, Some(format)),
        UefiImage::Combined { file, format, .. } => ("combined", file, None, Some(format)),
        UefiImage::Memory { rom } => ("memory", rom, None, None),
    };
    json!({
        "mode": mode,
        "code": code,
        "vars": vars,
        "format": format,
        "secure_boot": uefi.secure_boot,
    })
}

/// An instance and what it does.
pub(super) fn instance(record: &Record, state: Option<&str>) -> Value {
    let spec = &record.spec;
    json!({
        "name": spec.name,
        "state": state,
        "hypervisor": record.hypervisor,
        "ephemeral": record.ephemeral,
        "image": spec.provenance.reference,
        "manifest_digest": spec.provenance.manifest_digest,
        "boot": spec.provenance.method,
        "architecture": spec.machine,
        "accelerator": spec.accelerator,
        "accelerator_reason": record.accelerator_reason,
        "cpus": spec.cpus,
        "memory_mib": spec.memory,
        "console_log": spec.console_log(),
        // A record has only paths that are text.
        "plan_digest": spec.plan_digest().ok(),
    })
}

/// The word for what a VM does.
pub(super) fn state(listed: &Listed) -> &'static str {
    match &listed.subject {
        Subject::Instance(record) if record.hypervisor.is_none() => "prepared",
        _ => listed.state.as_str(),
    }
}

/// The list of instances. All rows have the same fields.
pub(super) fn instances(listed: &[Listed]) -> Value {
    let instances: Vec<Value> = listed
        .iter()
        .map(|listed| {
            let mut object = match &listed.subject {
                Subject::Instance(record) => instance(record, Some(state(listed))),
                Subject::Directory(_) => orphan(listed, None),
                Subject::Domain { uri, known } => orphan(listed, Some((uri, known))),
            };
            let problem = listed.problem.as_ref();
            object["problem"] = json!(problem.map(Problem::as_str));
            object["error"] = json!(problem.map(ToString::to_string));
            object
        })
        .collect();
    json!({"instances": instances})
}

/// A VM that has no record that can be read: what is not known of it is null.
fn orphan(listed: &Listed, domain: Option<(&String, &Known)>) -> Value {
    let notes = domain.and_then(|(_, known)| known.notes.as_ref());
    json!({
        "name": listed.subject.name(),
        "state": state(listed),
        "hypervisor": domain.map(|(uri, _)| uri),
        "ephemeral": null,
        "image": notes.map(|notes| &notes.reference),
        "manifest_digest": notes.and_then(|notes| notes.documents.last()),
        "boot": notes.map(|notes| &notes.method),
        "architecture": null,
        "accelerator": null,
        "accelerator_reason": null,
        "cpus": null,
        "memory_mib": null,
        "console_log": null,
        "plan_digest": notes.and_then(|notes| notes.plan_digest),
    })
}

/// The list of images.
pub(super) fn images(listed: &[ListedImage]) -> Value {
    let images: Vec<Value> = listed
        .iter()
        .map(|listed| {
            let manifests: Vec<Value> = listed
                .stored
                .images
                .iter()
                .map(|image| {
                    json!({
                        "manifest_digest": image.manifest.digest,
                        "architecture": image.architecture,
                        "variant": image.variant,
                    })
                })
                .collect();
            json!({
                "reference": listed.stored.reference,
                "digest": listed.stored.top.digest,
                "pulled_at": listed.stored.resolved_at,
                "used_at": listed.used_at,
                "size_bytes": listed.size_bytes,
                "manifests": manifests,
            })
        })
        .collect();
    json!({"images": images})
}

/// What was removed to make room.
pub(super) fn pruned(pruned: &Pruned, act: Act) -> Value {
    let removed: Vec<Value> = pruned
        .removed
        .iter()
        .map(|item| {
            json!({
                "kind": item.kind.as_str(),
                "name": item.name,
                "freed_bytes": item.freed_bytes,
            })
        })
        .collect();
    json!({
        "removed": removed,
        "freed_bytes": pruned.freed_bytes(),
        "left_bytes": pruned.left_bytes,
        "dry_run": act == Act::Look,
    })
}

/// What in the store is not as it should be.
pub(super) fn verified(verified: &Verified) -> Value {
    let findings: Vec<Value> = verified
        .findings
        .iter()
        .map(|found| {
            let users: Vec<String> = found.users.iter().map(ToString::to_string).collect();
            let failure = match &found.outcome {
                Outcome::Failed(reason) => Some(reason),
                Outcome::Left | Outcome::Repaired => None,
            };
            json!({
                "digest": found.finding.digest,
                "path": found.finding.path,
                "problem": found.finding.problem.to_string(),
                "repaired": found.outcome == Outcome::Repaired,
                "failure": failure,
                "users": users,
            })
        })
        .collect();
    json!({
        "checked": verified.checked,
        "bytes": verified.bytes,
        "seconds": verified.took.as_secs_f64(),
        "findings": findings,
    })
}

/// Everything that an image says of itself.
pub(super) fn inspection(reference: &str, inspection: &Inspection, store: &Store) -> Value {
    let manifests: Vec<Value> = inspection
        .manifests
        .iter()
        .map(|manifest| {
            let entry = &manifest.entry;
            let mut object = json!({
                "digest": entry.descriptor.digest,
                "within": manifest.within,
                "media_type": entry.descriptor.media_type,
                "platform": entry.platform.as_ref().map(|platform| json!({
                    "os": platform.os,
                    "architecture": platform.architecture,
                })),
                "index_annotations": entry.descriptor.annotations,
            });
            match &manifest.content {
                Err(reason) => object["error"] = json!(reason),
                Ok(content) => {
                    let layers: Vec<Value> = content
                        .manifest
                        .layers
                        .iter()
                        .map(|layer| {
                            json!({
                                "role": crate::image::role::of_media_type(&layer.media_type)
                                    .map(|(role, _)| role.as_str()),
                                "media_type": layer.media_type,
                                "digest": layer.digest,
                                "size": layer.size,
                                "stored": store.seems_to_have(layer),
                            })
                        })
                        .collect();
                    let architecture = content.architecture.as_ref();
                    object["architecture"] = json!(architecture.map(|(word, _)| word));
                    object["architecture_from"] =
                        json!(architecture.map(|(_, signal)| signal.as_str()));
                    object["variant"] = json!(content.variant.map(|(variant, _)| variant.as_str()));
                    object["variant_from"] =
                        json!(content.variant.map(|(_, signal)| signal.as_str()));
                    object["annotations"] = json!(content.manifest.annotations);
                    object["config"] = json!(content.manifest.config);
                    object["layers"] = json!(layers);
                    object["error"] = json!(content.roles.as_ref().err().map(ToString::to_string));
                }
            }
            object
        })
        .collect();
    json!({
        "reference": reference,
        "digest": inspection.top.digest,
        "media_type": inspection.top.media_type,
        "from": if inspection.from_store { "store" } else { "source" },
        "trust": trust(inspection.trust.as_ref()),
        "manifests": manifests,
    })
}

/// Whether an image is let in, by what, and what nobody has looked at.
fn trust(judgement: Option<&Judgement>) -> Value {
    let Some(Judgement { policy, verdict }) = judgement else {
        return Value::Null;
    };
    let policy = policy.display().to_string();
    let not_checked = signature::NOT_CHECKED;
    match verdict {
        Ok(Verdict { scope, met }) => {
            let requirements: Vec<Value> = met
                .iter()
                .map(|met| match met {
                    Met::Anything => json!({"type": "insecureAcceptAnything"}),
                    Met::Signed(signed) => json!({
                        "type": "sigstoreSigned",
                        "form": signed.form.to_string(),
                        "key": signed.key,
                        "covers": signed.covers,
                        "signed_identity": signed.identity,
                        "asked_identity": signed.asked,
                    }),
                })
                .collect();
            json!({
                "policy": policy,
                "accepted": true,
                "scope": scope,
                "requirements": requirements,
                "not_checked": not_checked,
            })
        }
        Err(distrust) => {
            let refusals = distrust.refusals().iter().map(ToString::to_string);
            json!({
                "policy": policy,
                "accepted": false,
                "reason": distrust.to_string(),
                "refusals": refusals.collect::<Vec<_>>(),
                "not_checked": not_checked,
            })
        }
    }
}
