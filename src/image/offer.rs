//! What the manifests of an index offer, and why they were not taken.

use std::fmt;

use crate::image::{ArchitectureSignal, LayerRole, Variant, VariantSignal, variant};
use crate::oci::manifest::IndexEntry;
use crate::oci::{Architecture, Digest, Printable};

/// An index entry or manifest that was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// Digest of the manifest, or of the index that was not followed.
    pub digest: Digest,
    /// The inner index that lists it; none where it stands in the image's own index.
    pub within: Option<Digest>,
    /// What it offers.
    pub offer: Offer,
    /// Why it was not taken.
    pub reason: String,
}

/// What a manifest offers, as far as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Operating system and architecture as the index says them.
    pub platform: Option<String>,
    /// Its architecture and who says so.
    pub architecture: Option<(Architecture, ArchitectureSignal)>,
    /// Its variant and who says so; none where nothing does, or where it was not read.
    pub variant: Option<(Variant, VariantSignal)>,
    /// The roles of its layers; empty where it was not read.
    pub roles: Vec<LayerRole>,
    /// Garden Linux's name of the build.
    pub cname: Option<String>,
}

impl Dropped {
    /// An index entry whose document was not, or could not be, read.
    #[must_use]
    pub fn unread(entry: &IndexEntry, indexes: &[Digest], reason: String) -> Self {
        let platform = entry.platform.as_ref();
        Self {
            digest: entry.descriptor.digest,
            within: inner(indexes),
            offer: Offer {
                platform: platform.map(ToString::to_string),
                architecture: platform
                    .map(|platform| (platform.architecture.clone(), ArchitectureSignal::Platform)),
                variant: None,
                roles: Vec::new(),
                cname: variant::cname(None, Some(&entry.descriptor)).map(str::to_owned),
            },
            reason,
        }
    }
}

impl fmt::Display for Dropped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Offer {
            platform,
            architecture,
            variant,
            roles,
            cname,
        } = &self.offer;
        write!(f, "{}", self.digest)?;
        match (platform, architecture) {
            (Some(platform), _) => write!(f, " {platform}")?,
            (None, None) => write!(f, " no platform")?,
            (None, Some((architecture, signal))) => {
                write!(f, " {architecture} (by {})", signal.as_str())?;
            }
        }
        if let Some((variant, signal)) = variant {
            write!(f, ", {variant} (by {})", signal.as_str())?;
        }
        for (place, role) in roles.iter().enumerate() {
            let before = if place == 0 { ", " } else { "," };
            write!(f, "{before}{role}")?;
        }
        if let Some(cname) = cname {
            write!(f, ", cname {}", Printable(cname))?;
        }
        if let Some(index) = &self.within {
            write!(f, ", in index {index}")?;
        }
        write!(f, ": {}", self.reason)
    }
}

/// The last of `indexes`, unless it is the image's own.
pub(super) fn inner(indexes: &[Digest]) -> Option<Digest> {
    indexes.get(1..)?.last().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_passed_over_is_told_in_one_line() {
        let digest = Digest::of(b"m");
        let mut dropped = Dropped {
            digest,
            within: None,
            offer: Offer {
                platform: None,
                architecture: None,
                variant: None,
                roles: Vec::new(),
                cname: None,
            },
            reason: "broken".to_owned(),
        };
        assert_eq!(dropped.to_string(), format!("{digest} no platform: broken"));
        let index = Digest::of(b"i");
        dropped.within = Some(index);
        dropped.offer = Offer {
            platform: None,
            architecture: Some((Architecture::Arm64, ArchitectureSignal::Config)),
            variant: Some((Variant::Metal, VariantSignal::Tag)),
            roles: vec![LayerRole::Kernel, LayerRole::Uki],
            cname: Some("metal\n".to_owned()),
        };
        assert_eq!(
            dropped.to_string(),
            format!(
                "{digest} arm64 (by config), metal (by tag), kernel,uki, cname metal\\u{{a}}, \
                 in index {index}: broken"
            )
        );
        dropped.offer.platform = Some("linux/arm64".to_owned());
        let told = dropped.to_string();
        assert!(told.starts_with(&format!("{digest} linux/arm64, metal (by tag)")));
    }
}
