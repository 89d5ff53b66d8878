//! What people read on standard output: plans, tables, shell commands.

use std::fmt;
use std::path::Path;

use indicatif::HumanBytes;

use crate::boot::{BootMethod, BootPlan, UkiStart};
use crate::cli::output;
use crate::domain::{Boot, DomainSpec, Firmware, UefiImage};
use crate::firmware::FirmwareChoice;
use crate::image::{LayerRole, Selected, role};
use crate::oci::Printable;
use crate::ops::images::{Inspection, ListedImage};
use crate::ops::list::{Listed, Subject};
use crate::ops::trust::Judgement;
use crate::ops::verify::{Outcome, Verified};
use crate::signature::{self, Met, Signed, Verdict};
use crate::store::{ItemKind, Pruned, Store};

/// Lays out rows in columns, the first row being the heading.
pub(super) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let line: String = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}  "))
            .collect();
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn short(digest: &crate::oci::Digest) -> String {
    digest.hex()[..12].to_owned()
}

/// What somebody said, and who.
fn said(word: Option<(impl fmt::Display, &str)>) -> String {
    word.map_or_else(
        || "not said".to_owned(),
        |(word, by)| format!("{word} (by {by})"),
    )
}

/// The whole reasoning of a plan.
pub(super) fn plan(
    selected: &Selected,
    plan: &BootPlan,
    firmware: Option<&FirmwareChoice>,
    store: &Store,
) -> String {
    let image = &selected.image;
    let mut rows = vec![
        vec!["image".to_owned(), image.reference.to_string()],
        vec!["manifest".to_owned(), image.manifest_digest.to_string()],
        vec!["selection".to_owned(), selected.reason.clone()],
        vec![
            "architecture".to_owned(),
            said(
                image
                    .architecture
                    .as_ref()
                    .map(|(word, by)| (word, by.as_str())),
            ),
        ],
        vec![
            "variant".to_owned(),
            said(image.variant.map(|(word, by)| (word, by.as_str()))),
        ],
        vec![
            "boot".to_owned(),
            format!("{} ({})", plan.method.name(), plan.reason),
        ],
    ];
    let inner = selected.through.iter();
    let inner = inner.map(|index| vec!["inner index".to_owned(), index.to_string()]);
    rows.splice(1..1, inner);
    match &plan.method {
        BootMethod::Direct(direct) => {
            let from = direct.command_line_from.as_str();
            rows.push(vec![
                "command line".to_owned(),
                format!("{} (from {from})", direct.command_line),
            ]);
        }
        BootMethod::Uki(uki) => {
            let how = match uki.start {
                UkiStart::Loader(_) => "handed to UEFI firmware",
                UkiStart::Esp(_) => "on an EFI system partition, for UEFI firmware to find",
                UkiStart::Extract => "taken apart, its kernel booted directly",
            };
            rows.push(row(&["uki", how]));
            let line = match &uki.command_line {
                Some(line) => format!("{line} (from option)"),
                None => "the UKI's own".to_owned(),
            };
            let added = match uki.append.as_str() {
                "" => String::new(),
                words => format!(", with {words}"),
            };
            rows.push(vec!["command line".to_owned(), line + &added]);
        }
        BootMethod::Disk { .. } | BootMethod::Iso { .. } => {}
    }
    if let Some(firmware) = firmware.filter(|_| plan.method.is_started_by_firmware()) {
        let code = firmware.files.code().display();
        rows.push(vec![
            "firmware".to_owned(),
            format!("{code} ({})", firmware.reason),
        ]);
    }
    for note in &plan.notes {
        rows.push(row(&["note", note]));
    }
    let mut text = table(&rows);
    text.push_str("\nlayers:\n");
    let needed = plan.method.blobs();
    let layers: Vec<Vec<String>> = image
        .manifest
        .layers
        .iter()
        .map(|layer| {
            let known = role::of_media_type(&layer.media_type).map(|(role, _)| role);
            let use_of_it = match (image.role_of(layer), known) {
                _ if needed.contains(&layer) && store.seems_to_have(layer) => "in the store",
                _ if needed.contains(&layer) => "to be fetched",
                (Some(LayerRole::CommandLine), _) => "read",
                (Some(_), _) => "not needed",
                (None, Some(_)) => "another form is taken",
                (None, None) => "unknown, not fetched",
            };
            vec![
                format!("  {}", known.map_or("-", LayerRole::as_str)),
                HumanBytes(layer.size).to_string(),
                short(&layer.digest),
                use_of_it.to_owned(),
                crate::oci::Printable(&layer.media_type).to_string(),
            ]
        })
        .collect();
    text.push_str(&table(&layers));
    text.push_str("\nother methods:\n");
    let others: Vec<Vec<String>> = plan
        .alternatives
        .iter()
        .map(|other| {
            let possible = if other.possible {
                "possible"
            } else {
                "not possible"
            };
            vec![
                format!("  {}", other.method),
                possible.to_owned(),
                other.reason.clone(),
            ]
        })
        .collect();
    text.push_str(&table(&others));
    if !selected.dropped.is_empty() {
        text.push_str("\nother manifests:\n");
        for dropped in &selected.dropped {
            text.push_str(&format!("  {dropped}\n"));
        }
    }
    text
}

/// The paths of an instance's files.
pub(super) fn staged(spec: &DomainSpec) -> String {
    let path = |path: &Path| path.display().to_string();
    let mut rows = vec![
        row(&["instance", spec.name.as_str()]),
        vec!["directory".to_owned(), path(&spec.directory)],
    ];
    match &spec.boot {
        Boot::Kernel {
            kernel,
            initramfs,
            command_line,
        } => {
            rows.push(vec!["kernel".to_owned(), path(kernel)]);
            rows.extend(
                initramfs
                    .iter()
                    .map(|initramfs| vec!["initramfs".to_owned(), path(initramfs)]),
            );
            rows.push(row(&["command line", command_line.as_str()]));
        }
        Boot::Uki {
            uki, command_line, ..
        } => {
            rows.push(vec!["uki".to_owned(), path(uki)]);
            rows.extend(
                command_line
                    .iter()
                    .map(|line| row(&["command line", line.as_str()])),
            );
        }
        Boot::Disk(Firmware::Bios) => rows.push(row(&["firmware", "BIOS"])),
        Boot::Disk(Firmware::Uefi(_)) => {}
    }
    if let Some(uefi) = spec.boot.uefi() {
        let (code, vars) = match &uefi.image {
            UefiImage::Split { code, vars, .. } => (code, Some(vars)),
            UefiImage::Stateless { code, .. }
            | UefiImage::Combined { file: code, .. }
            | UefiImage::Memory { rom: code } => (code, None),
        };
        rows.push(vec!["firmware".to_owned(), path(code)]);
        rows.extend(vars.map(|vars| vec!["variables".to_owned(), path(vars)]));
    }
    for disk in &spec.disks {
        let access = if disk.read_only { ", read-only" } else { "" };
        let (file, format) = (disk.file.display(), disk.format.as_str());
        rows.push(vec![
            "disk".to_owned(),
            format!("{file} ({format}{access})"),
        ]);
    }
    table(&rows)
}

/// The list of instances, with a column for what is wrong if something is.
pub(super) fn instances(listed: &[Listed]) -> String {
    let mut heading = row(&["NAME", "STATE", "HYPERVISOR", "BOOT", "IMAGE"]);
    let has_problems = listed.iter().any(|listed| listed.problem.is_some());
    if has_problems {
        heading.push("PROBLEM".to_owned());
    }
    let mut rows = vec![heading];
    for listed in listed {
        let (hypervisor, boot, image) = match &listed.subject {
            Subject::Instance(record) => (
                record.hypervisor.as_deref(),
                record.spec.provenance.method.as_str(),
                record.spec.provenance.reference.as_str(),
            ),
            Subject::Directory(_) => (None, "", ""),
            Subject::Domain { uri, known } => {
                let notes = known.notes.as_ref();
                (
                    Some(uri.as_str()),
                    notes.map_or("", |notes| notes.method.as_str()),
                    notes.map_or("", |notes| notes.reference.as_str()),
                )
            }
        };
        // What a domain says, somebody may have written into it.
        let cell = |text: &str| match text {
            "" => "-".to_owned(),
            text => Printable(text).to_string(),
        };
        let mut cells = vec![
            cell(listed.subject.name()),
            output::state(listed).to_owned(),
            cell(hypervisor.unwrap_or_default()),
            cell(boot),
            cell(image),
        ];
        if has_problems {
            let problem = listed.problem.as_ref();
            cells.push(problem.map_or_else(|| "-".to_owned(), ToString::to_string));
        }
        rows.push(cells);
    }
    table(&rows)
}

/// The list of images.
pub(super) fn images(listed: &[ListedImage]) -> String {
    let mut rows = vec![row(&["IMAGE", "DIGEST", "SIZE", "FOR"])];
    for listed in listed {
        let manifests: Vec<String> = listed
            .stored
            .images
            .iter()
            .map(|image| {
                let architecture = image.architecture.as_ref().map(ToString::to_string);
                let words = [architecture, image.variant.clone()];
                let words: Vec<String> = words.into_iter().flatten().collect();
                words.join(" ")
            })
            .collect();
        rows.push(vec![
            listed.stored.reference.clone(),
            short(&listed.stored.top.digest),
            HumanBytes(listed.size_bytes).to_string(),
            manifests.join(", "),
        ]);
    }
    table(&rows)
}

/// What was removed to make room.
pub(super) fn pruned(pruned: &Pruned) -> String {
    let mut rows = vec![row(&["REMOVED", "FREED", "NAME"])];
    rows.extend(pruned.removed.iter().map(|item| {
        let freed = match item.kind {
            // Its blobs are rows of their own.
            ItemKind::Image => "-".to_owned(),
            _ => HumanBytes(item.freed_bytes).to_string(),
        };
        let name = crate::oci::Printable(&item.name).to_string();
        vec![item.kind.as_str().to_owned(), freed, name]
    }));
    let table = if pruned.removed.is_empty() {
        String::new()
    } else {
        table(&rows)
    };
    let (freed, left) = (pruned.freed_bytes(), pruned.left_bytes);
    format!(
        "{table}{} freed, {} of blobs left\n",
        HumanBytes(freed),
        HumanBytes(left)
    )
}

/// What in the store is not as it should be.
pub(super) fn verified(verified: &Verified) -> String {
    let mut rows = vec![row(&["BLOB", "PROBLEM", "REPAIRED", "PATH"])];
    let mut below = String::new();
    for found in &verified.findings {
        let finding = &found.finding;
        let path = crate::oci::Printable(&finding.path.display().to_string()).to_string();
        let repaired = match &found.outcome {
            Outcome::Repaired => "yes",
            Outcome::Left | Outcome::Failed(_) => "no",
        };
        let name = finding.digest.as_ref().map_or("-".to_owned(), short);
        if let Outcome::Failed(reason) = &found.outcome {
            let reason = crate::oci::Printable(reason);
            below.push_str(&format!("not repaired: {path}: {reason}\n"));
        }
        for user in &found.users {
            below.push_str(&format!(
                "{user} uses blob {name}, which has changed under it: start it anew\n"
            ));
        }
        let problem = finding.problem.to_string();
        rows.push(vec![
            name,
            crate::oci::Printable(&problem).to_string(),
            repaired.to_owned(),
            path,
        ]);
    }
    let (count, size) = (verified.checked, HumanBytes(verified.bytes));
    let seconds = verified.took.as_secs_f64();
    let per_second = u128::from(verified.bytes) * 1000 / verified.took.as_millis().max(1);
    let rate = HumanBytes(u64::try_from(per_second).unwrap_or(u64::MAX));
    let summary = match verified.findings.len() {
        0 => "all is as it should be".to_owned(),
        found => format!(
            "{found} not as it should be, {} repaired",
            found - verified.left()
        ),
    };
    let table = if verified.findings.is_empty() {
        String::new()
    } else {
        table(&rows)
    };
    format!("{table}{below}{summary}: {count} blobs, {size} at {rate}/s in {seconds:.1} s\n")
}

/// Everything that an image says of itself.
pub(super) fn inspection(reference: &str, inspection: &Inspection, store: &Store) -> String {
    let from = if inspection.from_store {
        "the store"
    } else {
        "its source"
    };
    let mut text = format!(
        "{reference}\n{} (read from {from})\n",
        inspection.top.digest
    );
    text.push_str(&trust(inspection.trust.as_ref()));
    for manifest in &inspection.manifests {
        let entry = &manifest.entry;
        let content = manifest.content.as_ref();
        let architecture = content
            .ok()
            .and_then(|content| content.architecture.as_ref());
        let platform = match (&entry.platform, architecture) {
            (Some(platform), _) => platform.to_string(),
            (None, None) => "no platform".to_owned(),
            (None, Some((word, signal))) => format!("{word} (by {})", signal.as_str()),
        };
        text.push_str(&format!("\n{} {platform}", entry.descriptor.digest));
        if let Ok(Some((variant, signal))) = content.map(|content| content.variant) {
            text.push_str(&format!(", {variant} (by {})", signal.as_str()));
        }
        if let Some(index) = &manifest.within {
            text.push_str(&format!(", in index {index}"));
        }
        match content {
            Err(reason) => text.push_str(&format!(": {reason}\n")),
            Ok(content) => {
                text.push('\n');
                let layers: Vec<Vec<String>> = content
                    .manifest
                    .layers
                    .iter()
                    .map(|layer| {
                        let role = role::of_media_type(&layer.media_type);
                        let stored = if store.seems_to_have(layer) {
                            "in the store"
                        } else {
                            ""
                        };
                        vec![
                            format!("  {}", role.map_or("-", |(role, _)| role.as_str())),
                            HumanBytes(layer.size).to_string(),
                            layer.digest.to_string(),
                            crate::oci::Printable(&layer.media_type).to_string(),
                            stored.to_owned(),
                        ]
                    })
                    .collect();
                text.push_str(&table(&layers));
                for (key, value) in &content.manifest.annotations {
                    let (key, value) = (crate::oci::Printable(key), crate::oci::Printable(value));
                    text.push_str(&format!("  {key}={value}\n"));
                }
                if let Err(error) = &content.roles {
                    text.push_str(&format!("  {error}\n"));
                }
            }
        }
    }
    text
}

/// Whether an image is let in, by what, and what nobody has looked at.
fn trust(judgement: Option<&Judgement>) -> String {
    let Some(Judgement { policy, verdict }) = judgement else {
        return "not verified: there is no policy of signatures\n".to_owned();
    };
    let policy = policy.display();
    let met = match verdict {
        Ok(Verdict { scope, met }) if !met.iter().any(|met| matches!(met, Met::Signed(_))) => {
            return format!("not verified: {policy} asks for no signature of {scope}\n");
        }
        Ok(Verdict { met, .. }) => met,
        Err(distrust) => {
            let refusals = distrust.refusals().iter();
            let refusals: String = refusals
                .map(|refusal| format!("  a signature: {refusal}\n"))
                .collect();
            return format!("not let in by {policy}: {distrust}\n{refusals}");
        }
    };
    let mut text = format!("verified by {policy}\n");
    for met in met {
        let Met::Signed(signed) = met else { continue };
        let identity = match &signed.identity {
            Some(identity) => format!("as {}", crate::oci::Printable(identity)),
            None => "without a name".to_owned(),
        };
        let Signed {
            key,
            covers,
            form,
            asked,
            ..
        } = signed;
        text.push_str(&format!(
            "  {form} by key {key}\n    of {covers} {identity} ({asked})\n"
        ));
    }
    let unseen = signature::NOT_CHECKED.join(", ");
    text.push_str(&format!("  not checked: {unseen}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_blanks_at_their_end() {
        let rows = [
            row(&["NAME", "STATE"]),
            row(&["a-long-name", "x"]),
            row(&["b", ""]),
        ];
        assert_eq!(table(&rows), "NAME         STATE\na-long-name  x\nb\n");
        assert_eq!(table(&[]), "");
    }
}
