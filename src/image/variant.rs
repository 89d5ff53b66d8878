//! IronCore's variants and the signals by which one is told.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::image::{LayerRole, Roles};
use crate::oci::{Architecture, Descriptor, Manifest, Printable};

/// What a manifest was made to boot on. Not OCI's `platform.variant`, which is a CPU variant.
///
/// Source: IronCore OCI image specification, "Artifact Manifest", annotation `variant`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Variant {
    /// A virtual machine.
    Virtualization,
    /// A bare-metal server.
    Metal,
}

/// Who said what variant a manifest is, strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VariantSignal {
    /// The manifest's own annotation `variant`.
    ManifestAnnotation,
    /// The index entry's annotation `variant`.
    IndexAnnotation,
    /// Garden Linux's annotation `cname`.
    Cname,
    /// The manifest has a disk, which only virtual machines use.
    Layers,
    /// The end of the tag, such as `-kvm` or `-metal`.
    Tag,
}

/// A word that is no variant.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("variant is neither virtualization nor metal: {0}")]
pub struct VariantError(String);

impl Variant {
    /// The specification's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Virtualization => "virtualization",
            Self::Metal => "metal",
        }
    }

    /// Reads one manifest's variant from its strongest signal.
    ///
    /// An annotation with a word that is no variant is no signal, and neither is a `cname` of
    /// another flavour; see [`foreign_flavour`] for those.
    #[must_use]
    pub fn of(
        manifest: &Manifest,
        entry: Option<&Descriptor>,
        roles: &Roles,
        tag: Option<&str>,
    ) -> Option<(Self, VariantSignal)> {
        let annotated = |signal| move |variant| (variant, signal);
        of_annotation(&manifest.annotations)
            .map(annotated(VariantSignal::ManifestAnnotation))
            .or_else(|| {
                of_annotation(&entry?.annotations).map(annotated(VariantSignal::IndexAnnotation))
            })
            .or_else(|| {
                let flavour = flavour(cname(Some(manifest), entry)?);
                Some((flavour.parse().ok()?, VariantSignal::Cname))
            })
            .or_else(|| {
                roles
                    .get(LayerRole::Disk)
                    .map(|_| (Self::Virtualization, VariantSignal::Layers))
            })
            .or_else(|| of_tag(tag?).map(|variant| (variant, VariantSignal::Tag)))
    }
}

/// The flavour that a `cname` begins with, if it is for neither variant: Garden Linux lists its
/// images for `aws`, `container` and others beside those for VMs and servers. `manifest` is none
/// where it was not read.
///
/// An annotation `variant` is stronger than the name.
#[must_use]
pub fn foreign_flavour<'a>(
    manifest: Option<&'a Manifest>,
    entry: Option<&'a Descriptor>,
) -> Option<&'a str> {
    let own = manifest.map(|manifest| &manifest.annotations);
    let on_entry = entry.map(|entry| &entry.annotations);
    let mut annotations = own.into_iter().chain(on_entry);
    let flavour = flavour(cname(manifest, entry)?);
    let is_foreign = !flavour.is_empty() && flavour.parse::<Variant>().is_err();
    (is_foreign && annotations.all(|annotations| of_annotation(annotations).is_none()))
        .then_some(flavour)
}

/// Garden Linux's name of a build, such as `kvm-gardener_prod-amd64`: the manifest's own, else its
/// entry's.
#[must_use]
pub fn cname<'a>(manifest: Option<&'a Manifest>, entry: Option<&'a Descriptor>) -> Option<&'a str> {
    manifest
        .and_then(|manifest| manifest.annotations.get("cname"))
        .or_else(|| entry?.annotations.get("cname"))
        .map(String::as_str)
}

/// The first word of a `cname`.
fn flavour(cname: &str) -> &str {
    cname.split(['-', '_']).next().unwrap_or_default()
}

fn of_annotation(annotations: &BTreeMap<String, String>) -> Option<Variant> {
    annotations.get("variant")?.parse().ok()
}

/// The variant at the end of a tag, before the architecture if that is there: `1.2-kvm-amd64`.
fn of_tag(tag: &str) -> Option<Variant> {
    let (rest, last) = tag.rsplit_once('-')?;
    let word = match Architecture::from(last.to_owned()) {
        Architecture::Other(word) => word,
        _ => rest.rsplit_once('-')?.1.to_owned(),
    };
    word.parse().ok()
}

impl VariantSignal {
    /// The word in JSON and in messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ManifestAnnotation => "annotation",
            Self::IndexAnnotation => "index-annotation",
            Self::Cname => "cname",
            Self::Layers => "layers",
            Self::Tag => "tag",
        }
    }
}

impl FromStr for Variant {
    type Err = VariantError;

    fn from_str(word: &str) -> Result<Self, VariantError> {
        match word {
            "virtualization" | "kvm" | "vm" | "virt" | "qemu" => Ok(Self::Virtualization),
            "metal" | "baremetal" => Ok(Self::Metal),
            other => Err(VariantError(Printable(other).to_string())),
        }
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::annotations;
    use crate::oci::Digest;

    fn check(
        own: &[(&str, &str)],
        on_entry: &[(&str, &str)],
        layer: &str,
        tag: &str,
        expected: Option<(Variant, VariantSignal)>,
    ) {
        let layer_type = format!("application/vnd.ironcore.image.{layer}");
        let manifest = Manifest {
            config: Descriptor::of("c", b"{}"),
            layers: vec![Descriptor::of(&layer_type, b"x")],
            annotations: annotations(own),
        };
        let roles = Roles::of(&manifest, Digest::of(b"m")).unwrap();
        let mut entry = Descriptor::of("m", b"m");
        entry.annotations = annotations(on_entry);
        assert_eq!(
            Variant::of(&manifest, Some(&entry), &roles, Some(tag)),
            expected
        );
    }

    #[test]
    fn the_strongest_signal_decides() {
        use Variant::{Metal, Virtualization};
        use VariantSignal::{Cname, IndexAnnotation, Layers, ManifestAnnotation, Tag};
        let metal = [("variant", "metal")];
        let kvm = [("variant", "kvm")];
        let odd = [("variant", "v8")];
        let cname = [("cname", "metal-gardener_prod-amd64-1.2")];
        check(
            &metal,
            &kvm,
            "rootfs",
            "1-kvm",
            Some((Metal, ManifestAnnotation)),
        );
        check(
            &odd,
            &kvm,
            "kernel",
            "1-metal",
            Some((Virtualization, IndexAnnotation)),
        );
        check(&[], &cname, "rootfs", "1-kvm", Some((Metal, Cname)));
        check(
            &[],
            &[],
            "disk.img",
            "1-metal",
            Some((Virtualization, Layers)),
        );
        check(&[], &[], "kernel", "1-metal", Some((Metal, Tag)));
        check(&[], &[], "kernel", "1-metal-amd64", Some((Metal, Tag)));
        check(&[], &[], "kernel", "metal-works", None);
        check(&[], &[], "kernel", "1", None);
    }

    #[test]
    fn flavours_for_other_machines_are_told() {
        let check = |own: &[(&str, &str)], on_entry: &[(&str, &str)], expected: Option<&str>| {
            let manifest = Manifest {
                config: Descriptor::of("c", b"{}"),
                layers: Vec::new(),
                annotations: annotations(own),
            };
            let mut entry = Descriptor::of("m", b"m");
            entry.annotations = annotations(on_entry);
            assert_eq!(foreign_flavour(Some(&manifest), Some(&entry)), expected);
        };
        let named = |cname| [("cname", cname)];
        check(&[], &named("aws-gardener_prod-amd64"), Some("aws"));
        check(&named("container_sysext"), &named("kvm"), Some("container"));
        for ours in ["kvm_dev-amd64", "metal-capi", "baremetal_pxe-arm64", ""] {
            check(&[], &named(ours), None);
        }
        check(&[("variant", "kvm")], &named("aws-amd64"), None);
        check(&[], &[("variant", "metal"), ("cname", "aws-amd64")], None);
        check(&[], &[], None);
    }
}
