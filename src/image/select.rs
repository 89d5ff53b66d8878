//! Which manifest of an index is meant: platform first, then variant; never 'the first one'.
//!
//! The index alone does not tell (the specification's own example has two entries of one platform
//! and no word about their variants), so whoever fetches reads the manifest of every entry that
//! [`may_fit`] and gives them all to [`select`].

use std::fmt;

use thiserror::Error;

use crate::image::{Image, ImageError, Roles, Variant, VariantSignal};
use crate::oci::manifest::IndexEntry;
use crate::oci::{Architecture, Digest, Manifest, Printable, Reference};

/// A manifest that was read, before it is known to be the one that is meant.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Digest of the manifest.
    pub digest: Digest,
    /// The index entry that led to it; none if the reference names the manifest itself.
    pub entry: Option<IndexEntry>,
    /// The manifest.
    pub manifest: Manifest,
}

/// What to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The architecture that the VM will have.
    pub architecture: Architecture,
    /// The variant.
    pub variant: Variant,
}

/// The image that is meant, and what was passed over for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selected {
    /// The image.
    pub image: Image,
    /// What else was considered, each with the reason why it was not taken.
    pub dropped: Vec<Dropped>,
}

/// An index entry or manifest that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Digest of the manifest.
    pub digest: Digest,
    /// What it offers.
    pub offer: Offer,
    /// Why it was not taken.
    pub reason: String,
}

/// What a manifest offers, as far as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Operating system and architecture as the index says them.
    pub platform: String,
    /// Its variant and who says so; none where nothing does, or where it was not read.
    pub variant: Option<(Variant, VariantSignal)>,
    /// The roles of its layers, joined by commas; empty where it was not read.
    pub roles: String,
}

/// Why no single manifest is meant.
#[derive(Debug, Error)]
pub enum SelectError {
    /// Nothing fits.
    #[error("image {reference} has no {} manifest for linux/{}", wanted.variant, wanted.architecture)]
    NoMatch {
        /// The image.
        reference: Reference,
        /// What was looked for.
        wanted: Wanted,
        /// What there is.
        offers: Vec<Dropped>,
    },
    /// Several fit, and nothing tells them apart.
    #[error("image {reference} has {} {} manifests for linux/{}", offers.len(), wanted.variant, wanted.architecture)]
    Ambiguous {
        /// The image.
        reference: Reference,
        /// What was looked for.
        wanted: Wanted,
        /// The ones that fit.
        offers: Vec<Dropped>,
    },
    /// The only one that fits is broken.
    #[error(transparent)]
    Image(#[from] ImageError),
}

/// Tells whether `entry` could be for `architecture`, so that its manifest is worth reading.
///
/// Errors with the reason if it can not be.
pub fn may_fit(entry: &IndexEntry, architecture: &Architecture) -> Result<(), Dropped> {
    let reason = match &entry.platform {
        None => return Ok(()),
        Some(platform) if !platform.is_bootable_os() => "not for linux".to_owned(),
        Some(platform) if platform.architecture != *architecture => {
            format!("for {}, not {architecture}", platform.architecture)
        }
        Some(_) => return Ok(()),
    };
    Err(Dropped::unread(entry, reason))
}

impl Dropped {
    /// An index entry whose manifest was not, or could not be, read.
    #[must_use]
    pub fn unread(entry: &IndexEntry, reason: String) -> Self {
        Self {
            digest: entry.descriptor.digest,
            offer: Offer {
                platform: platform_word(Some(entry)),
                variant: None,
                roles: String::new(),
            },
            reason,
        }
    }
}

fn platform_word(entry: Option<&IndexEntry>) -> String {
    entry
        .and_then(|entry| entry.platform.as_ref())
        .map_or_else(|| "no platform".to_owned(), ToString::to_string)
}

/// Chooses the one manifest that is meant.
///
/// `candidates` are the manifests of all entries that [`may_fit`]; `passed` are the others.
/// Source: IronCore OCI image specification, with the field's signals (see [`Variant::of`]).
pub fn select(
    reference: &Reference,
    index_digest: Option<Digest>,
    candidates: Vec<Candidate>,
    passed: Vec<Dropped>,
    wanted: &Wanted,
) -> Result<Selected, SelectError> {
    let mut dropped = passed;
    let mut fitting: Vec<Image> = Vec::new();
    let mut broken: Option<ImageError> = None;
    // The tag names one variant; it says nothing of the entries of an index that has several.
    let tag = reference.tag().filter(|_| candidates.len() == 1);
    for candidate in candidates {
        if fitting
            .iter()
            .any(|image| image.manifest_digest == candidate.digest)
        {
            continue;
        }
        let platform = platform_word(candidate.entry.as_ref());
        let digest = candidate.digest;
        match read(reference, index_digest, tag, candidate) {
            Err(error) => {
                dropped.push(Dropped {
                    digest,
                    offer: Offer {
                        platform,
                        variant: None,
                        roles: String::new(),
                    },
                    reason: error.to_string(),
                });
                broken = broken.or(Some(error));
            }
            Ok(image) => match misfit(&image, wanted) {
                Some(reason) => dropped.push(drop_image(&image, platform, reason)),
                None => fitting.push(image),
            },
        }
    }
    // Who says nothing about its variant qualifies, but yields to one that says the right thing.
    if fitting.iter().any(|image| image.variant.is_some()) {
        let (said, silent): (Vec<_>, Vec<_>) = fitting
            .into_iter()
            .partition(|image| image.variant.is_some());
        fitting = said;
        for image in &silent {
            let reason = "says no variant where another one does".to_owned();
            dropped.push(drop_image(image, image_platform(image), reason));
        }
    }
    let mut fitting = fitting.into_iter();
    match (fitting.next(), fitting.next()) {
        (Some(image), None) => Ok(Selected { image, dropped }),
        (Some(first), Some(second)) => Err(SelectError::Ambiguous {
            reference: reference.clone(),
            wanted: wanted.clone(),
            offers: [first, second]
                .into_iter()
                .chain(fitting)
                .map(|image| drop_image(&image, image_platform(&image), "fits".to_owned()))
                .collect(),
        }),
        (None, _) => match (broken, dropped.len()) {
            (Some(error), 1) => Err(error.into()),
            _ => Err(SelectError::NoMatch {
                reference: reference.clone(),
                wanted: wanted.clone(),
                offers: dropped,
            }),
        },
    }
}

/// Reads what a candidate says of itself.
fn read(
    reference: &Reference,
    index_digest: Option<Digest>,
    tag: Option<&str>,
    candidate: Candidate,
) -> Result<Image, ImageError> {
    let roles = Roles::of(&candidate.manifest, candidate.digest)?;
    let entry = candidate.entry.as_ref();
    let entry = entry.map(|entry| &entry.descriptor);
    let variant = Variant::of(&candidate.manifest, entry, &roles, tag);
    Ok(Image {
        reference: reference.clone(),
        index_digest,
        manifest_digest: candidate.digest,
        architecture: architecture(reference, &candidate),
        manifest: candidate.manifest,
        variant,
        roles,
    })
}

/// The architecture by the strongest word there is: platform, annotations, then the names.
fn architecture(reference: &Reference, candidate: &Candidate) -> Option<Architecture> {
    let entry = candidate.entry.as_ref();
    let annotation = |annotations: &std::collections::BTreeMap<String, String>| {
        annotations
            .get("architecture")
            .or_else(|| annotations.get("org.opencontainers.image.architecture"))
            .cloned()
            .map(Architecture::from)
    };
    entry
        .and_then(|entry| entry.platform.as_ref())
        .map(|platform| platform.architecture.clone())
        .or_else(|| annotation(&candidate.manifest.annotations))
        .or_else(|| annotation(&entry?.descriptor.annotations))
        .or_else(|| match entry {
            Some(_) => None,
            None => of_name(reference.tag()?).or_else(|| of_name(&reference.repository())),
        })
}

/// The architecture at the end of a tag or repository name.
fn of_name(name: &str) -> Option<Architecture> {
    let word = name.rsplit(['-', '_', '/']).next()?;
    match Architecture::from(word.to_owned()) {
        Architecture::Other(_) => None,
        known => Some(known),
    }
}

/// Says why `image` is not what is wanted.
fn misfit(image: &Image, wanted: &Wanted) -> Option<String> {
    let annotated = image.manifest.annotations.get("architecture");
    if let Some(word) = annotated
        && image.architecture != Some(Architecture::from(word.clone()))
    {
        return Some(format!(
            "its annotation says architecture {}, its index entry another",
            Printable(word)
        ));
    }
    match (&image.architecture, image.variant) {
        (Some(architecture), _) if *architecture != wanted.architecture => {
            Some(format!("for {architecture}, not {}", wanted.architecture))
        }
        (_, Some((variant, signal))) if variant != wanted.variant => {
            Some(format!("{variant} by its {}", signal.as_str()))
        }
        _ => None,
    }
}

fn image_platform(image: &Image) -> String {
    image
        .architecture
        .as_ref()
        .map_or_else(|| "no platform".to_owned(), |a| format!("linux/{a}"))
}

fn drop_image(image: &Image, platform: String, reason: String) -> Dropped {
    let roles: Vec<&str> = image.roles.iter().map(|(role, _)| role.as_str()).collect();
    Dropped {
        digest: image.manifest_digest,
        offer: Offer {
            platform,
            variant: image.variant,
            roles: roles.join(","),
        },
        reason,
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.digest, self.offer.platform)?;
        if let Some((variant, signal)) = self.offer.variant {
            write!(f, ", {variant} (by {})", signal.as_str())?;
        }
        if !self.offer.roles.is_empty() {
            write!(f, ", {}", self.offer.roles)?;
        }
        write!(f, ": {}", self.reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, Platform};
    use std::collections::BTreeMap;

    /// One candidate: a name that makes its digest, platform, `variant` annotation, layer types.
    fn candidate(name: &str, arch: Option<&str>, variant: &str, layers: &[&str]) -> Candidate {
        let mut annotations = BTreeMap::new();
        if !variant.is_empty() {
            annotations.insert("variant".to_owned(), variant.to_owned());
        }
        Candidate {
            digest: Digest::of(name.as_bytes()),
            entry: Some(IndexEntry {
                descriptor: Descriptor::of("m", name.as_bytes()),
                platform: arch.map(|arch| Platform {
                    os: "linux".to_owned(),
                    architecture: arch.to_owned().into(),
                }),
            }),
            manifest: Manifest {
                config: Descriptor::of("c", b"{}"),
                layers: layers
                    .iter()
                    .map(|kind| {
                        let media_type = format!("application/vnd.ironcore.image.{kind}");
                        Descriptor::of(&media_type, format!("{name}{kind}").as_bytes())
                    })
                    .collect(),
                annotations,
            },
        }
    }

    fn chosen(reference: &str, candidates: Vec<Candidate>) -> Result<Digest, SelectError> {
        let wanted = Wanted {
            architecture: Architecture::Amd64,
            variant: Variant::Virtualization,
        };
        let reference = reference.parse().unwrap();
        select(&reference, None, candidates, Vec::new(), &wanted)
            .map(|selected| selected.image.manifest_digest)
    }

    const DISK: &[&str] = &["disk.img", "kernel", "initramfs"];
    const NO_DISK: &[&str] = &["kernel", "initramfs", "squashfs"];

    #[test]
    fn the_virtualization_manifest_is_chosen_wherever_it_stands() {
        let virt = || candidate("virt", Some("amd64"), "virtualization", DISK);
        let metal = || candidate("metal", Some("amd64"), "metal", NO_DISK);
        for list in [vec![metal(), virt()], vec![virt(), metal()]] {
            assert_eq!(chosen("r.io/a:1", list).unwrap(), Digest::of(b"virt"));
        }
    }

    #[test]
    fn a_disk_tells_the_variant_where_no_annotation_does() {
        let list = vec![
            candidate("m", Some("amd64"), "", NO_DISK),
            candidate("v", Some("amd64"), "", DISK),
        ];
        assert_eq!(chosen("r.io/a:1", list).unwrap(), Digest::of(b"v"));
    }

    #[test]
    fn a_manifest_without_any_signal_qualifies_unless_its_tag_says_metal() {
        let list = || vec![candidate("m", Some("amd64"), "", NO_DISK)];
        assert!(chosen("r.io/a:1", list()).is_ok());
        assert!(matches!(
            chosen("r.io/a:1-metal", list()),
            Err(SelectError::NoMatch { .. })
        ));
    }

    #[test]
    fn two_that_fit_are_an_error_that_names_both() {
        let list = vec![
            candidate("a", Some("amd64"), "virtualization", DISK),
            candidate("b", Some("amd64"), "kvm", DISK),
        ];
        let Err(SelectError::Ambiguous { offers, .. }) = chosen("r.io/a:1", list) else {
            panic!("two manifests fit, and one of them was taken");
        };
        let digests: Vec<_> = offers.iter().map(|offer| offer.digest).collect();
        assert_eq!(digests, [Digest::of(b"a"), Digest::of(b"b")]);
    }

    #[test]
    fn an_annotation_that_contradicts_the_platform_is_no_match() {
        let mut lie = candidate("a", Some("amd64"), "virtualization", DISK);
        let annotations = &mut lie.manifest.annotations;
        annotations.insert("architecture".to_owned(), "arm64".to_owned());
        assert!(matches!(
            chosen("r.io/a:1", vec![lie]),
            Err(SelectError::NoMatch { .. })
        ));
    }

    #[test]
    fn a_plain_manifest_is_checked_against_the_architecture_in_its_name() {
        let plain = || Candidate {
            entry: None,
            ..candidate("a", None, "", DISK)
        };
        assert!(chosen("r.io/a:1-kvm-amd64", vec![plain()]).is_ok());
        assert!(chosen("r.io/a:1", vec![plain()]).is_ok());
        for other in ["r.io/a:1-kvm-arm64", "r.io/gardenlinux-arm64:1"] {
            let error = chosen(other, vec![plain()]);
            assert!(matches!(error, Err(SelectError::NoMatch { .. })), "{other}");
        }
    }

    #[test]
    fn a_container_image_beside_the_vm_image_is_passed_over() {
        let list = vec![
            candidate("container", Some("amd64"), "", &["tar+gzip"]),
            candidate("vm", Some("amd64"), "", DISK),
        ];
        assert_eq!(chosen("r.io/a:1", list).unwrap(), Digest::of(b"vm"));
        let alone = vec![candidate("container", Some("amd64"), "", &["tar+gzip"])];
        assert!(matches!(
            chosen("r.io/a:1", alone),
            Err(SelectError::Image(_))
        ));
    }
}
