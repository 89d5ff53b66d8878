//! Which manifest of an index is meant: platform first, then variant; never 'the first one'.
//!
//! The index alone does not tell (the specification's own example has two entries of one platform
//! and no word about their variants), so whoever fetches reads the manifest of every entry that
//! [`may_fit`], those of indexes within the index too, and gives them all to [`select`].

use thiserror::Error;

use crate::image::offer::{Dropped, Offer, inner};
use crate::image::{
    ArchitectureSignal, Image, ImageError, Roles, Variant, VariantSignal, architecture, variant,
};
use crate::oci::manifest::IndexEntry;
use crate::oci::{Architecture, Digest, Manifest, Printable, Reference};

/// A manifest that was read, before it is known to be the one that is meant.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Digest of the manifest.
    pub digest: Digest,
    /// The index entry that led to it, with what it inherits from the entries above; none if the
    /// reference names the manifest itself.
    pub entry: Option<IndexEntry>,
    /// The indexes on the way to it, the one that the reference names first.
    pub indexes: Vec<Digest>,
    /// The manifest.
    pub manifest: Manifest,
    /// What its config says of its architecture, where no document does and the config was read.
    pub config_architecture: Option<Architecture>,
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
    /// The inner indexes on the way from the image's index to its manifest, the outer one first.
    pub through: Vec<Digest>,
    /// Why this manifest is the one.
    pub reason: String,
    /// What else was considered, each with the reason why it was not taken.
    pub dropped: Vec<Dropped>,
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
pub fn may_fit(entry: &IndexEntry, architecture: &Architecture) -> Result<(), String> {
    match &entry.platform {
        Some(platform) if !platform.is_bootable_os() => return Err("not for linux".to_owned()),
        Some(platform) if platform.architecture != *architecture => {
            return Err(format!("for {}, not {architecture}", platform.architecture));
        }
        _ => {}
    }
    match variant::foreign_flavour(None, Some(&entry.descriptor)) {
        Some(flavour) => Err(made_for(flavour)),
        None => Ok(()),
    }
}

fn made_for(flavour: &str) -> String {
    format!("made for {} by its cname", Printable(flavour))
}

/// Chooses the one manifest that is meant.
///
/// `candidates` are the manifests of all entries that [`may_fit`]; `passed` are the others.
/// Source: IronCore OCI image specification, with the field's signals (see [`Variant::of`] and
/// [`architecture::of_manifest`]).
pub fn select(
    reference: &Reference,
    candidates: Vec<Candidate>,
    passed: Vec<Dropped>,
    wanted: &Wanted,
) -> Result<Selected, SelectError> {
    let mut dropped = passed;
    let mut broken: Option<ImageError> = None;
    let mut fitting: Vec<Read> = Vec::new();
    for candidate in candidates {
        let digest = candidate.digest;
        if fitting.iter().any(|read| read.candidate.digest == digest) {
            continue;
        }
        match Roles::of(&candidate.manifest, digest) {
            Ok(roles) => {
                let read = Read::of(candidate, roles);
                match read.misfit(wanted) {
                    Some(reason) => dropped.push(read.not_taken(reason)),
                    None => fitting.push(read),
                }
            }
            Err(error) => {
                let read = Read::of(candidate, Roles::default());
                dropped.push(read.not_taken(error.to_string()));
                broken = broken.or(Some(error));
            }
        }
    }
    // A name tells something of one manifest, and nothing where there are several.
    if let [only] = fitting.as_mut_slice() {
        only.ask_name(reference);
        if let Some(reason) = only.misfit(wanted) {
            dropped.extend(fitting.pop().map(|read| read.not_taken(reason)));
        }
    }
    // Who says nothing qualifies, but yields to one that says the right thing.
    let said: Vec<(bool, bool)> = fitting.iter().map(Read::says).collect();
    let (fitting, yielding): (Vec<_>, Vec<_>) = fitting
        .into_iter()
        .partition(|read| !said.iter().any(|other| read.says_less_than(*other)));
    for read in yielding {
        let reason = match read.says() {
            (false, false) => "says no architecture and no variant where another one does",
            (false, true) => "says no architecture where another one does",
            _ => "says no variant where another one does",
        };
        dropped.push(read.not_taken(reason.to_owned()));
    }
    let mut fitting = fitting.into_iter();
    match (fitting.next(), fitting.next()) {
        (Some(read), None) => Ok(read.selected(reference, wanted, dropped)),
        (Some(first), Some(second)) => Err(SelectError::Ambiguous {
            reference: reference.clone(),
            wanted: wanted.clone(),
            offers: [first, second]
                .into_iter()
                .chain(fitting)
                .map(|read| read.not_taken("fits".to_owned()))
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

/// A candidate and what it says of itself.
struct Read {
    candidate: Candidate,
    roles: Roles,
    architecture: Option<(Architecture, ArchitectureSignal)>,
    variant: Option<(Variant, VariantSignal)>,
}

impl Read {
    fn of(candidate: Candidate, roles: Roles) -> Self {
        let entry = candidate.entry.as_ref();
        let architecture = architecture::of_manifest(
            &candidate.manifest,
            entry,
            candidate.config_architecture.as_ref(),
        );
        let descriptor = entry.map(|entry| &entry.descriptor);
        let variant = Variant::of(&candidate.manifest, descriptor, &roles, None);
        Self {
            candidate,
            roles,
            architecture,
            variant,
        }
    }

    /// Takes from the reference's name what nothing else has said.
    fn ask_name(&mut self, reference: &Reference) {
        if self.architecture.is_none() {
            self.architecture = architecture::of_name(reference);
        }
        let entry = self.candidate.entry.as_ref();
        let descriptor = entry.map(|entry| &entry.descriptor);
        let manifest = &self.candidate.manifest;
        self.variant = Variant::of(manifest, descriptor, &self.roles, reference.tag());
    }

    /// Whether it says its architecture, and its variant.
    fn says(&self) -> (bool, bool) {
        (self.architecture.is_some(), self.variant.is_some())
    }

    fn says_less_than(&self, other: (bool, bool)) -> bool {
        let (architecture, variant) = self.says();
        (architecture, variant) != other && architecture <= other.0 && variant <= other.1
    }

    /// Says why it is not what is wanted.
    fn misfit(&self, wanted: &Wanted) -> Option<String> {
        let Candidate {
            entry, manifest, ..
        } = &self.candidate;
        if let Some(entry) = entry
            && let Some(flavour) = variant::foreign_flavour(Some(manifest), Some(&entry.descriptor))
        {
            return Some(made_for(flavour));
        }
        if let Some(says) = architecture::annotated(&manifest.annotations)
            && let Some((decided, _)) = &self.architecture
            && says != *decided
        {
            return Some(format!(
                "for {says} by its annotation, for {decided} by its platform"
            ));
        }
        match (&self.architecture, self.variant) {
            (Some((architecture, signal)), _) if *architecture != wanted.architecture => {
                let by = match signal {
                    ArchitectureSignal::Platform => String::new(),
                    signal => format!(" by its {}", signal.as_str()),
                };
                Some(format!(
                    "for {architecture}{by}, not {}",
                    wanted.architecture
                ))
            }
            (_, Some((variant, signal))) if variant != wanted.variant => {
                Some(format!("{variant} by its {}", signal.as_str()))
            }
            _ => None,
        }
    }

    fn not_taken(self, reason: String) -> Dropped {
        let entry = self.candidate.entry.as_ref();
        let platform = entry.and_then(|entry| entry.platform.as_ref());
        let descriptor = entry.map(|entry| &entry.descriptor);
        let cname = variant::cname(Some(&self.candidate.manifest), descriptor);
        Dropped {
            digest: self.candidate.digest,
            within: inner(&self.candidate.indexes),
            offer: Offer {
                platform: platform.map(ToString::to_string),
                architecture: self.architecture,
                variant: self.variant,
                roles: self.roles.iter().map(|(role, _)| role).collect(),
                cname: cname.map(str::to_owned),
            },
            reason,
        }
    }

    fn selected(self, reference: &Reference, wanted: &Wanted, dropped: Vec<Dropped>) -> Selected {
        let Candidate {
            digest,
            entry,
            indexes,
            manifest,
            config_architecture: _,
        } = self.candidate;
        let reason = match (entry, dropped.len()) {
            (None, _) => "the reference names it".to_owned(),
            (Some(_), 0) => "the only entry of its index".to_owned(),
            (Some(_), others) => format!(
                "the one of {} entries for {} on linux/{}",
                others + 1,
                wanted.variant,
                wanted.architecture
            ),
        };
        Selected {
            through: indexes.get(1..).unwrap_or_default().to_vec(),
            reason,
            dropped,
            image: Image {
                reference: reference.clone(),
                index_digest: indexes.first().copied(),
                manifest_digest: digest,
                architecture: self.architecture,
                variant: self.variant,
                manifest,
                roles: self.roles,
            },
        }
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
            indexes: vec![Digest::of(b"index")],
            config_architecture: None,
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
        select(&reference, candidates, Vec::new(), &wanted)
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
    fn who_says_less_yields_to_who_says_more_and_not_to_who_says_another_thing() {
        let list = |names: &[(&str, Option<&str>, &str)]| {
            names
                .iter()
                .map(|(name, arch, variant)| candidate(name, *arch, variant, NO_DISK))
                .collect()
        };
        let both = ("both", Some("amd64"), "kvm");
        let (platform, variant) = (("platform", Some("amd64"), ""), ("variant", None, "kvm"));
        let nothing = ("nothing", None, "");
        for (says_less, says_more) in [
            (nothing, platform),
            (nothing, variant),
            (platform, both),
            (variant, both),
        ] {
            let more = Digest::of(says_more.0.as_bytes());
            assert_eq!(
                chosen("r.io/a:1", list(&[says_less, says_more])).unwrap(),
                more
            );
            assert_eq!(
                chosen("r.io/a:1", list(&[says_more, says_less])).unwrap(),
                more
            );
        }
        assert!(matches!(
            chosen("r.io/a:1", list(&[platform, nothing, variant])),
            Err(SelectError::Ambiguous { offers, .. }) if offers.len() == 2
        ));
    }

    #[test]
    fn a_name_says_nothing_of_two_manifests() {
        let two = || {
            vec![
                candidate("a", None, "", NO_DISK),
                candidate("b", None, "", NO_DISK),
            ]
        };
        for reference in ["r.io/a:1", "r.io/a:1-metal-arm64", "r.io/a-arm64:1"] {
            assert!(matches!(
                chosen(reference, two()),
                Err(SelectError::Ambiguous { .. })
            ));
        }
        // Of two of which one is for another machine, it is the other one's name.
        let list = vec![
            candidate("a", Some("arm64"), "", NO_DISK),
            candidate("b", None, "", NO_DISK),
        ];
        assert!(chosen("r.io/a:1-amd64", list.clone()).is_ok());
        assert!(matches!(
            chosen("r.io/a:1-metal", list),
            Err(SelectError::NoMatch { .. })
        ));
    }

    #[test]
    fn a_flavour_for_other_machines_is_taken_only_where_it_is_named_itself() {
        let aws = |entry: bool| {
            let mut aws = candidate("aws", Some("amd64"), "", DISK);
            let annotations = &mut aws.manifest.annotations;
            annotations.insert("cname".to_owned(), "aws-gardener_prod-amd64".to_owned());
            aws.entry = aws.entry.filter(|_| entry);
            vec![aws]
        };
        let Err(SelectError::NoMatch { offers, .. }) = chosen("r.io/a:1", aws(true)) else {
            panic!("an image for aws was taken from an index");
        };
        assert_eq!(offers[0].reason, "made for aws by its cname");
        assert!(chosen("r.io/a:1-aws-amd64", aws(false)).is_ok());
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
