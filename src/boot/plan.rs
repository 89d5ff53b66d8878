//! The choice of a boot method, made from the manifest before any layer is fetched.

use thiserror::Error;

use crate::boot::{
    BootMethod, CommandLine, CommandLineError, CommandLineSource, DirectBoot, MethodName,
};
use crate::image::{Image, ImageConfig, LayerRole};
use crate::oci::{Descriptor, Digest};

/// What the caller asks of the boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootOptions {
    /// The method; none leaves the choice to the image.
    pub method: Option<MethodName>,
    /// Replaces the image's command line.
    pub command_line: Option<CommandLine>,
    /// Added to the command line, whatever its source.
    pub append: CommandLine,
}

/// The small blobs that a plan is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// The parsed config blob.
    pub config: ImageConfig,
    /// The content of the command line layer, if the image has one.
    pub command_line_layer: Option<Vec<u8>>,
}

/// What will boot, and why not otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootPlan {
    /// The image.
    pub image: Image,
    /// The method, with what it needs of the image.
    pub method: BootMethod,
    /// Why this method.
    pub reason: String,
    /// The other methods.
    pub alternatives: Vec<Alternative>,
}

/// A method that was not chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternative {
    /// The method.
    pub method: MethodName,
    /// Whether `--boot` could choose it.
    pub possible: bool,
    /// Why it was not chosen.
    pub reason: String,
}

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// No method is possible.
    #[error(
        "image {manifest} can not be booted by any method: {}",
        reasons(alternatives)
    )]
    NoMethod {
        /// Digest of the manifest.
        manifest: Digest,
        /// Every method with its reason.
        alternatives: Vec<Alternative>,
    },
    /// The method that was asked for is not possible.
    #[error("image {manifest} can not be booted by {method}: {reason}")]
    NotPossible {
        /// Digest of the manifest.
        manifest: Digest,
        /// The method.
        method: MethodName,
        /// Why not.
        reason: String,
    },
    /// `--cmdline` or `--append` for a method that has no command line.
    #[error(
        "{method} boot takes its command line from inside the disk: --cmdline and --append have no effect on it"
    )]
    CommandLineIgnored {
        /// The method.
        method: MethodName,
    },
    /// The image's command line can not be given to a kernel.
    #[error("the command line in blob {blob} is not usable")]
    ImageCommandLine {
        /// The config or the command line layer.
        blob: Digest,
        /// What is wrong with it.
        #[source]
        source: CommandLineError,
    },
    /// The words that were added do not fit.
    #[error("the command line with --append is not usable")]
    Append(#[source] CommandLineError),
}

fn reasons(alternatives: &[Alternative]) -> String {
    let reasons: Vec<String> = alternatives
        .iter()
        .map(|alternative| format!("{}: {}", alternative.method, alternative.reason))
        .collect();
    reasons.join("; ")
}

/// Whether a method can be had from an image, judged by its manifest.
enum Offer {
    /// It can, and `auto` may take it.
    Yes(BootMethod),
    /// It can, but `auto` passes it over, for the reason given.
    OnRequest(BootMethod, String),
    /// It can not.
    No(String),
}

/// Chooses the boot method.
///
/// Under `auto` the first possible of direct, UKI, disk, ISO; direct only if the image has a
/// command line for it and is not of the legacy kind whose kernel belongs to a network boot.
pub fn plan(
    image: &Image,
    metadata: &Metadata,
    options: &BootOptions,
) -> Result<BootPlan, PlanError> {
    let needs_no_line = options
        .method
        .is_some_and(|method| method != MethodName::Direct);
    let line = match command_line(image, metadata, options) {
        // Only a method that was asked for by name goes on without what the image got wrong.
        Err(PlanError::ImageCommandLine { .. }) if needs_no_line => {
            (CommandLine::default(), CommandLineSource::Nobody)
        }
        line => line?,
    };
    let mut chosen: Option<(BootMethod, String)> = None;
    let mut alternatives = Vec::new();
    for method in MethodName::ALL {
        let asked = options.method == Some(method);
        let alternative = match (offer(image, method, &line), options.method) {
            (Offer::Yes(found) | Offer::OnRequest(found, _), Some(_)) if asked => {
                chosen = Some((found, format!("--boot {method}")));
                continue;
            }
            (Offer::No(reason), Some(_)) if asked => {
                let manifest = image.manifest_digest;
                return Err(PlanError::NotPossible {
                    manifest,
                    method,
                    reason,
                });
            }
            (Offer::Yes(found), None) if chosen.is_none() => {
                let reason = format!("first possible of {}", order());
                chosen = Some((found, reason));
                continue;
            }
            (Offer::Yes(_), None) => (true, "comes later in the order".to_owned()),
            (Offer::Yes(_), Some(other)) => (true, format!("--boot {other} was given")),
            (Offer::OnRequest(_, reason), _) => (true, reason),
            (Offer::No(reason), _) => (false, reason),
        };
        alternatives.push(Alternative {
            method,
            possible: alternative.0,
            reason: alternative.1,
        });
    }
    let Some((method, reason)) = chosen else {
        return Err(PlanError::NoMethod {
            manifest: image.manifest_digest,
            alternatives,
        });
    };
    let has_words = options.command_line.is_some() || !options.append.as_str().is_empty();
    if has_words && !matches!(method, BootMethod::Direct(_)) {
        let method = method.name();
        return Err(PlanError::CommandLineIgnored { method });
    }
    Ok(BootPlan {
        image: image.clone(),
        method,
        reason,
        alternatives,
    })
}

fn order() -> String {
    MethodName::ALL.map(MethodName::as_str).join(", ")
}

/// The command line that direct boot would have, and where it comes from.
fn command_line(
    image: &Image,
    metadata: &Metadata,
    options: &BootOptions,
) -> Result<(CommandLine, CommandLineSource), PlanError> {
    let of_image = |bytes: &[u8], blob| {
        CommandLine::parse(bytes).map_err(|source| PlanError::ImageCommandLine { blob, source })
    };
    let layer = image.roles.get(LayerRole::CommandLine);
    let (line, source) = match (
        &options.command_line,
        layer.zip(metadata.command_line_layer.as_deref()),
        metadata.config.command_line.as_deref(),
    ) {
        (Some(line), ..) => (line.clone(), CommandLineSource::Option),
        (None, Some((layer, bytes)), _) => {
            (of_image(bytes, layer.digest)?, CommandLineSource::Layer)
        }
        (None, None, Some(text)) if !text.trim().is_empty() => {
            let config = image.manifest.config.digest;
            (
                of_image(text.as_bytes(), config)?,
                CommandLineSource::Config,
            )
        }
        _ => (CommandLine::default(), CommandLineSource::Nobody),
    };
    let line = line.append(&options.append).map_err(PlanError::Append)?;
    Ok((line, source))
}

fn offer(image: &Image, method: MethodName, line: &(CommandLine, CommandLineSource)) -> Offer {
    let layer = |role| image.roles.get(role);
    let lacks = |role: LayerRole| Offer::No(format!("the image has no {role} layer"));
    let later = |role: LayerRole| match layer(role) {
        Some(_) => Offer::No(format!("this version does not boot {role} layers yet")),
        None => lacks(role),
    };
    match method {
        MethodName::Direct => match layer(LayerRole::Kernel) {
            Some(kernel) => direct(image, kernel, line),
            None => lacks(LayerRole::Kernel),
        },
        MethodName::Disk => match layer(LayerRole::Disk) {
            Some(disk) => Offer::Yes(BootMethod::Disk { disk: disk.clone() }),
            None => lacks(LayerRole::Disk),
        },
        MethodName::Uki => later(LayerRole::Uki),
        MethodName::Iso => later(LayerRole::Iso),
    }
}

fn direct(image: &Image, kernel: &Descriptor, line: &(CommandLine, CommandLineSource)) -> Offer {
    let layer = |role| image.roles.get(role).cloned();
    let (command_line, command_line_from) = line.clone();
    let parts = DirectBoot {
        kernel: kernel.clone(),
        initramfs: layer(LayerRole::Initramfs),
        command_line,
        command_line_from,
        disk: layer(LayerRole::Disk),
        squashfs: layer(LayerRole::Squashfs),
    };
    if parts.initramfs.is_none() && parts.disk.is_none() {
        let reason = "the kernel has neither an initramfs nor a disk to find its root on";
        return Offer::No(reason.to_owned());
    }
    let method = BootMethod::Direct(parts);
    if image.roles.is_legacy_combined() {
        let reason = "the kernel of a legacy combined image is for network boot, not for its disk";
        return Offer::OnRequest(method, reason.to_owned());
    }
    if command_line_from == CommandLineSource::Nobody {
        let reason = "the image has no command line for its kernel";
        return Offer::OnRequest(method, reason.to_owned());
    }
    Offer::Yes(method)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Roles;
    use crate::oci::Manifest;
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

    fn method(layers: &[&str], config: Option<&str>) -> Result<MethodName, PlanError> {
        let plan = plan(
            &image(layers),
            &metadata(None, config),
            &BootOptions::default(),
        )?;
        assert_eq!(plan.alternatives.len(), MethodName::ALL.len() - 1);
        Ok(plan.method.name())
    }

    #[test]
    fn auto_takes_the_first_method_that_the_layers_allow() {
        let line = Some("console=ttyS0");
        let all = ["disk.img", "kernel", "initramfs", "squashfs", "uki", "iso"];
        assert_eq!(method(&all, line).unwrap(), MethodName::Direct);
        assert_eq!(
            method(&["kernel", "initramfs"], line).unwrap(),
            MethodName::Direct
        );
        assert_eq!(
            method(&["kernel", "rootfs"], line).unwrap(),
            MethodName::Direct
        );
        assert_eq!(method(&["rootfs"], line).unwrap(), MethodName::Disk);
        // Without a command line the kernel would find no console and no root.
        assert_eq!(method(&all, None).unwrap(), MethodName::Disk);
        let legacy = [
            "rootfs.v1alpha1.rootfs",
            "vmlinuz.v1alpha1.vmlinuz",
            "initramfs.v1alpha1.initramfs",
        ];
        assert_eq!(method(&legacy, line).unwrap(), MethodName::Disk);
        for none in [
            &["kernel"][..],
            &["kernel", "initramfs"],
            &["uki"],
            &["squashfs"],
        ] {
            assert!(matches!(
                method(none, None),
                Err(PlanError::NoMethod { .. })
            ));
        }
    }

    #[test]
    fn a_method_asked_for_by_name_is_taken_or_refused() {
        let ask = |layers: &[&str], method| {
            let options = BootOptions {
                method: Some(method),
                ..BootOptions::default()
            };
            plan(&image(layers), &Metadata::default(), &options).map(|plan| plan.method.name())
        };
        let direct = ask(&["kernel", "initramfs"], MethodName::Direct);
        assert_eq!(direct.unwrap(), MethodName::Direct);
        for (layers, method) in [
            (&["rootfs"][..], MethodName::Direct),
            (&["kernel"], MethodName::Direct),
            (&["kernel", "initramfs"], MethodName::Disk),
            (&["uki"], MethodName::Uki),
        ] {
            let refused = ask(layers, method);
            assert!(matches!(refused, Err(PlanError::NotPossible { .. })));
        }
    }

    #[test]
    fn the_command_line_has_one_source_and_what_is_appended() {
        let check = |option: Option<&str>, layer, config, expected: (&str, CommandLineSource)| {
            let options = BootOptions {
                method: Some(MethodName::Direct),
                command_line: option.map(|line| line.parse().unwrap()),
                append: "x".parse().unwrap(),
            };
            let image = image(&["kernel", "initramfs", "cmdline"]);
            let plan = plan(&image, &metadata(layer, config), &options).unwrap();
            let BootMethod::Direct(direct) = plan.method else {
                panic!("direct boot was asked for");
            };
            assert_eq!(
                (direct.command_line.as_str(), direct.command_line_from),
                expected
            );
        };
        let (layer, config) = (Some("l\n"), Some("c\n"));
        check(Some("o"), layer, config, ("o x", CommandLineSource::Option));
        check(None, layer, config, ("l x", CommandLineSource::Layer));
        check(None, None, config, ("c x", CommandLineSource::Config));
        check(None, None, None, ("x", CommandLineSource::Nobody));
    }

    #[test]
    fn a_command_line_that_no_kernel_reads_names_its_blob() {
        for bad in ["a\nb", "a\0b", &"x".repeat(5000)] {
            let image = image(&["kernel", "initramfs"]);
            let error = plan(&image, &metadata(None, Some(bad)), &BootOptions::default());
            let Err(PlanError::ImageCommandLine { blob, .. }) = error else {
                panic!("accepted {bad:?}");
            };
            assert_eq!(blob, image.manifest.config.digest);
        }
    }

    #[test]
    fn a_disk_asked_for_by_name_boots_whatever_the_command_line_is() {
        let image = image(&["rootfs"]);
        let bad = metadata(None, Some("a\nb"));
        assert!(plan(&image, &bad, &BootOptions::default()).is_err());
        let disk = BootOptions {
            method: Some(MethodName::Disk),
            ..BootOptions::default()
        };
        assert!(plan(&image, &bad, &disk).is_ok());
    }

    #[test]
    fn words_for_the_kernel_are_refused_where_no_kernel_would_see_them() {
        let options = BootOptions {
            append: "quiet".parse().unwrap(),
            ..BootOptions::default()
        };
        let error = plan(&image(&["rootfs"]), &Metadata::default(), &options).unwrap_err();
        assert!(matches!(error, PlanError::CommandLineIgnored { .. }));
    }
}
