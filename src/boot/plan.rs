//! The choice of a boot method, made from the manifest before any layer is fetched.

use thiserror::Error;

use crate::boot::offer::{self, Offer, Question};
use crate::boot::{
    BootMethod, CommandLine, CommandLineError, CommandLineSource, FirmwareWish, HostFirmware,
    MethodName, uki::UkiStartName,
};
use crate::image::{Image, ImageConfig, LayerRole};
use crate::oci::Digest;

/// What the caller asks of the boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootOptions {
    /// The method; none leaves the choice to the image.
    pub method: Option<MethodName>,
    /// Replaces the image's command line.
    pub command_line: Option<CommandLine>,
    /// Added to the command line, whatever its source.
    pub append: CommandLine,
    /// Added to it where there is one that words can be added to.
    pub append_if_possible: CommandLine,
    /// What the guest may know of the terminal that shows its console: added where the hypervisor loads
    /// the kernel, and as far as there is room.
    pub terminal: CommandLine,
    /// Added likewise, if the command line has no `console=` otherwise.
    pub console: Option<CommandLine>,
    /// The firmware.
    pub firmware: FirmwareWish,
    /// How a UKI is started; none leaves the choice to what the host has.
    pub uki: Option<UkiStartName>,
}

/// A method whose content turned out not to be what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejected {
    /// The method.
    pub method: MethodName,
    /// What is wrong.
    pub reason: String,
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
    /// What else is worth knowing of it.
    pub notes: Vec<String>,
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
    /// What the image offers needs firmware that the host has not.
    #[error("image {manifest} can not be booted here: {reason}")]
    NoFirmware {
        /// Digest of the manifest.
        manifest: Digest,
        /// What there is not.
        reason: String,
    },
    /// `--cmdline` or `--append` for a method that has no command line.
    #[error(
        "{method} boot takes its command line from inside the {method}: --cmdline and --append have no effect on it"
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

/// Chooses the boot method.
///
/// Under `auto` the first possible of direct, UKI, disk, ISO; direct only if the image has a
/// command line for it and is not of the legacy kind whose kernel belongs to a network boot.
/// `rejected` are passed over.
pub fn plan(
    image: &Image,
    metadata: &Metadata,
    options: &BootOptions,
    firmware: &HostFirmware,
    rejected: &[Rejected],
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
    let question = Question {
        image,
        options,
        firmware,
        line: &line,
    };
    let mut chosen: Option<(BootMethod, String)> = None;
    let mut lacking: Option<String> = None;
    let mut alternatives = Vec::new();
    for method in MethodName::ALL {
        let asked = options.method == Some(method);
        let offer = match rejected.iter().find(|rejected| rejected.method == method) {
            Some(rejected) => Offer::No(rejected.reason.clone()),
            None => question.offer(method),
        };
        let alternative = match (offer, options.method) {
            (Offer::Yes(found) | Offer::OnRequest(found, _), Some(_)) if asked => {
                chosen = Some((found, format!("--boot {method}")));
                continue;
            }
            (Offer::NoFirmware(reason), Some(_)) if asked => {
                let manifest = image.manifest_digest;
                return Err(PlanError::NoFirmware { manifest, reason });
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
            (Offer::NoFirmware(reason), _) => {
                lacking.get_or_insert_with(|| reason.clone());
                (false, reason)
            }
        };
        alternatives.push(Alternative {
            method,
            possible: alternative.0,
            reason: alternative.1,
        });
    }
    let Some((method, reason)) = chosen else {
        let manifest = image.manifest_digest;
        return Err(match lacking {
            Some(reason) => PlanError::NoFirmware { manifest, reason },
            None => PlanError::NoMethod {
                manifest,
                alternatives,
            },
        });
    };
    let has_words = options.command_line.is_some() || !options.append.as_str().is_empty();
    if has_words && matches!(method, BootMethod::Disk { .. } | BootMethod::Iso { .. }) {
        let method = method.name();
        return Err(PlanError::CommandLineIgnored { method });
    }
    Ok(BootPlan {
        image: image.clone(),
        notes: offer::notes(&question, &method),
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
    let line = line
        .append(&options.append_if_possible)
        .map_err(PlanError::Append)?;
    // Nobody has asked for these, so they must not be what makes a line too long.
    let line = line.append(&options.terminal).unwrap_or(line);
    Ok((line, source))
}

#[cfg(test)]
mod tests;
