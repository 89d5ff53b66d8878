//! Who says what architecture a manifest is for.

use std::collections::BTreeMap;

use crate::image::variant::cname;
use crate::oci::manifest::IndexEntry;
use crate::oci::{Architecture, Manifest, Reference};

/// Who said what architecture a manifest is for, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ArchitectureSignal {
    /// The platform of its index entry.
    Platform,
    /// The manifest's own annotation.
    ManifestAnnotation,
    /// The index entry's annotation.
    IndexAnnotation,
    /// Its config blob.
    Config,
    /// Garden Linux's annotation `cname`.
    Cname,
    /// The end of the tag, such as `-amd64`.
    Tag,
    /// The end of the repository's name.
    Repository,
}

impl ArchitectureSignal {
    /// The word in JSON and in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Platform => "platform",
            Self::ManifestAnnotation => "annotation",
            Self::IndexAnnotation => "index-annotation",
            Self::Config => "config",
            Self::Cname => "cname",
            Self::Tag => "tag",
            Self::Repository => "repository",
        }
    }
}

/// Reads a manifest's architecture from the documents alone: platform, then annotations.
#[must_use]
pub fn of_documents(
    manifest: &Manifest,
    entry: Option<&IndexEntry>,
) -> Option<(Architecture, ArchitectureSignal)> {
    use ArchitectureSignal::{IndexAnnotation, ManifestAnnotation, Platform};
    let platform = entry.and_then(|entry| entry.platform.as_ref());
    platform
        .map(|platform| (platform.architecture.clone(), Platform))
        .or_else(|| Some((annotated(&manifest.annotations)?, ManifestAnnotation)))
        .or_else(|| Some((annotated(&entry?.descriptor.annotations)?, IndexAnnotation)))
}

/// Reads a manifest's architecture from everything that belongs to it; `config` is what its config
/// blob says.
#[must_use]
pub fn of_manifest(
    manifest: &Manifest,
    entry: Option<&IndexEntry>,
    config: Option<&Architecture>,
) -> Option<(Architecture, ArchitectureSignal)> {
    let of_config = || Some((config?.clone(), ArchitectureSignal::Config));
    let of_cname = || {
        // The architecture is its last word, or stands before version and commit.
        let mut words = cname(Some(manifest), entry.map(|entry| &entry.descriptor))?.split('-');
        Some((words.find_map(known)?, ArchitectureSignal::Cname))
    };
    of_documents(manifest, entry)
        .or_else(of_config)
        .or_else(of_cname)
}

/// Reads an architecture from the end of the tag, else of the repository's name. They tell
/// something of a manifest only where the reference leads to no other one.
#[must_use]
pub fn of_name(reference: &Reference) -> Option<(Architecture, ArchitectureSignal)> {
    let last = |name: &str| known(name.rsplit(['-', '_', '/']).next()?);
    let of_tag = || Some((last(reference.tag()?)?, ArchitectureSignal::Tag));
    let of_repository = || {
        let architecture = last(&reference.repository())?;
        Some((architecture, ArchitectureSignal::Repository))
    };
    of_tag().or_else(of_repository)
}

/// The architecture that a manifest's or an entry's annotations say.
#[must_use]
pub fn annotated(annotations: &BTreeMap<String, String>) -> Option<Architecture> {
    ["architecture", "org.opencontainers.image.architecture"]
        .into_iter()
        .find_map(|key| annotations.get(key))
        .filter(|word| !word.is_empty())
        .cloned()
        .map(Architecture::from)
}

/// The architecture that `word` is, if it is one that boots here.
fn known(word: &str) -> Option<Architecture> {
    match Architecture::from(word.to_owned()) {
        Architecture::Other(_) => None,
        known => Some(known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::annotations;
    use crate::oci::{Descriptor, Platform};

    /// The answer for a manifest with `own` annotations and an entry with others and a platform.
    fn of(
        platform: Option<&str>,
        own: &[(&str, &str)],
        on_entry: &[(&str, &str)],
        config: Option<Architecture>,
    ) -> Option<(Architecture, ArchitectureSignal)> {
        let manifest = Manifest {
            config: Descriptor::of("c", b"{}"),
            layers: Vec::new(),
            annotations: annotations(own),
        };
        let mut descriptor = Descriptor::of("m", b"m");
        descriptor.annotations = annotations(on_entry);
        let platform = platform.map(|word| Platform {
            os: "linux".to_owned(),
            architecture: word.to_owned().into(),
        });
        let entry = IndexEntry {
            descriptor,
            platform,
        };
        of_manifest(&manifest, Some(&entry), config.as_ref())
    }

    #[test]
    fn the_strongest_signal_decides() {
        use Architecture::{Amd64, Arm64};
        use ArchitectureSignal::{Cname, Config, IndexAnnotation, ManifestAnnotation, Platform};
        let arm = [("architecture", "aarch64")];
        let amd = [("org.opencontainers.image.architecture", "x86_64")];
        let amd_cname = [("cname", "kvm-gardener_prod-amd64-1592.3-8bb2da7d")];
        let arm_cname = [("cname", "metal-arm64")];
        for (platform, own, on_entry, config, expected) in [
            (
                Some("amd64"),
                &arm[..],
                &arm[..],
                Some(Arm64),
                Some((Amd64, Platform)),
            ),
            (
                None,
                &amd,
                &arm,
                Some(Arm64),
                Some((Amd64, ManifestAnnotation)),
            ),
            (None, &[], &arm, Some(Amd64), Some((Arm64, IndexAnnotation))),
            (None, &arm_cname, &[], Some(Amd64), Some((Amd64, Config))),
            (None, &arm_cname, &amd_cname, None, Some((Arm64, Cname))),
            (None, &[], &amd_cname, None, Some((Amd64, Cname))),
            (
                None,
                &[("architecture", "")],
                &[("cname", "kvm")],
                None,
                None,
            ),
        ] {
            assert_eq!(of(platform, own, on_entry, config), expected);
        }
    }

    #[test]
    fn a_name_tells_by_its_last_word() {
        use Architecture::{Amd64, Arm64};
        use ArchitectureSignal::{Repository, Tag};
        for (name, expected) in [
            ("r.io/a:1-kvm-amd64", Some((Amd64, Tag))),
            ("r.io/os-arm64:1-amd64", Some((Amd64, Tag))),
            ("r.io/gardenlinux-arm64:1", Some((Arm64, Repository))),
            ("r.io/amd64/os:1", None),
            ("r.io/os:amd64-1", None),
        ] {
            assert_eq!(of_name(&name.parse().unwrap()), expected, "{name}");
        }
    }
}
