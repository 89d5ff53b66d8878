//! What IronCore means by an image: variants, layer roles, and which manifest of an index is meant.

pub mod config;
pub mod role;
pub mod architecture;
pub mod variant;
pub mod offer;
pub mod select;

pub use architecture::ArchitectureSignal;
pub use config::ImageConfig;
pub use offer::{Dropped, Offer};
pub use role::{Generation, LayerRole};
pub use select::{Candidate, SelectError, Selected};
pub use variant::{Variant, VariantSignal};

use std::collections::BTreeMap;

use thiserror::Error;

use crate::oci::{Architecture, Descriptor, Digest, Manifest, Printable, Reference};

/// One image: a manifest whose layers have been given their roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The reference as it was asked for.
    pub reference: Reference,
    /// Digest of the index that the reference names, if it names one.
    pub index_digest: Option<Digest>,
    /// Digest of the manifest.
    pub manifest_digest: Digest,
    /// The manifest itself.
    pub manifest: Manifest,
    /// Architecture and who said it, if anything did.
    pub architecture: Option<(Architecture, ArchitectureSignal)>,
    /// IronCore variant and who said it, if anything did.
    pub variant: Option<(Variant, VariantSignal)>,
    /// The layers that have a role.
    pub roles: Roles,
}

/// The layers of one manifest by role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Roles {
    by_role: BTreeMap<LayerRole, (Generation, Descriptor)>,
}

/// What is wrong with a manifest's layers.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ImageError {
    /// Two layers claim one role in one generation of media types.
    #[error("manifest {manifest} has two different {role} layers: {first} and {second}")]
    DuplicateRole {
        /// The manifest.
        manifest: Digest,
        /// The role.
        role: LayerRole,
        /// One of them.
        first: Digest,
        /// The other.
        second: Digest,
    },
    /// A layer that has a role has no content.
    #[error("manifest {manifest} has an empty {role} layer")]
    EmptyLayer {
        /// The manifest.
        manifest: Digest,
        /// The role.
        role: LayerRole,
    },
    /// Nothing in the manifest is known.
    #[error("manifest {manifest} is not an IronCore image; its layers are: {found}")]
    NoKnownLayer {
        /// The manifest.
        manifest: Digest,
        /// The media types that it has.
        found: String,
    },
}

impl Roles {
    /// Gives the layers of `manifest` their roles: the newest generation of media types wins,
    /// unknown layers are left out, and two different layers of one role in the generation that
    /// wins are an error.
    pub fn of(manifest: &Manifest, digest: Digest) -> Result<Self, ImageError> {
        let mut by_role: BTreeMap<LayerRole, (Generation, Descriptor)> = BTreeMap::new();
        let mut rivals: BTreeMap<LayerRole, Digest> = BTreeMap::new();
        for layer in &manifest.layers {
            let Some((role, generation)) = role::of_media_type(&layer.media_type) else {
                continue;
            };
            if layer.size == 0 {
                return Err(ImageError::EmptyLayer {
                    manifest: digest,
                    role,
                });
            }
            match by_role.get(&role) {
                Some((present, _)) if *present < generation => {}
                Some((present, descriptor)) if *present == generation => {
                    if descriptor.digest != layer.digest {
                        rivals.entry(role).or_insert(layer.digest);
                    }
                }
                _ => {
                    rivals.remove(&role);
                    by_role.insert(role, (generation, layer.clone()));
                }
            }
        }
        if let Some((role, second)) = rivals.pop_first() {
            return Err(ImageError::DuplicateRole {
                manifest: digest,
                role,
                first: by_role[&role].1.digest,
                second,
            });
        }
        if by_role.is_empty() {
            let types: Vec<String> = manifest
                .layers
                .iter()
                .map(|layer| Printable(&layer.media_type).to_string())
                .collect();
            return Err(ImageError::NoKnownLayer {
                manifest: digest,
                found: if types.is_empty() {
                    "none".to_owned()
                } else {
                    types.join(", ")
                },
            });
        }
        Ok(Self { by_role })
    }

    /// The layer of `role`.
    #[must_use]
    pub fn get(&self, role: LayerRole) -> Option<&Descriptor> {
        self.by_role.get(&role).map(|(_, descriptor)| descriptor)
    }

    /// The generation of the media type of the layer of `role`, where there is one.
    #[must_use]
    pub fn generation(&self, role: LayerRole) -> Option<Generation> {
        self.by_role.get(&role).map(|(generation, _)| *generation)
    }

    /// Tells whether the image is of the kind that held a VM's disk and, unrelated to it, the
    /// kernel of a network boot: there, a kernel does not mean that the disk is booted by it.
    #[must_use]
    pub fn is_legacy_combined(&self) -> bool {
        matches!(
            (
                self.generation(LayerRole::Disk),
                self.generation(LayerRole::Kernel)
            ),
            (Some(Generation::V1Alpha1), Some(Generation::V1Alpha1))
                | (Some(_), Some(Generation::V1Alpha1Metal))
        )
    }

    /// The roles that the image has, in the specification's order.
    pub fn iter(&self) -> impl Iterator<Item = (LayerRole, &Descriptor)> {
        self.by_role
            .iter()
            .map(|(role, (_, descriptor))| (*role, descriptor))
    }
}

impl Image {
    /// The role of `layer` in this image; none for unknown layers and for those that a newer
    /// generation of the same role replaces.
    #[must_use]
    pub fn role_of(&self, layer: &Descriptor) -> Option<LayerRole> {
        self.roles
            .iter()
            .find(|(_, descriptor)| *descriptor == layer)
            .map(|(role, _)| role)
    }
}

/// Annotations for the tests of this module and of those below it.
#[cfg(test)]
fn annotations(pairs: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PREFIX: &str = "application/vnd.ironcore.image";

    fn roles(types: &[(&str, &str)]) -> Result<Vec<(LayerRole, Digest)>, ImageError> {
        let manifest = Manifest {
            config: Descriptor::of("c", b"{}"),
            layers: types
                .iter()
                .map(|(suffix, content)| {
                    Descriptor::of(&format!("{PREFIX}.{suffix}"), content.as_bytes())
                })
                .collect(),
            annotations: BTreeMap::new(),
        };
        let roles = Roles::of(&manifest, Digest::of(b"m"))?;
        Ok(roles.iter().map(|(role, d)| (role, d.digest)).collect())
    }

    #[test]
    fn the_current_layer_beats_the_legacy_one_in_any_order() {
        let expected = Ok(vec![(LayerRole::Disk, Digest::of(b"new"))]);
        let new = ("rootfs", "new");
        let old = ("rootfs.v1alpha1.rootfs", "old");
        assert_eq!(roles(&[new, old]), expected);
        assert_eq!(roles(&[old, new]), expected);
    }

    #[test]
    fn a_second_form_of_one_publisher_yields_to_its_first() {
        let of = |types: &[&str]| {
            let manifest = Manifest {
                config: Descriptor::of("c", b"{}"),
                layers: types
                    .iter()
                    .map(|media_type| Descriptor::of(media_type, media_type.as_bytes()))
                    .collect(),
                annotations: BTreeMap::new(),
            };
            Roles::of(&manifest, Digest::of(b"m")).unwrap()
        };
        let types = [
            "application/io.gardenlinux.image.format.qcow2",
            "application/io.gardenlinux.image.archive.format.raw",
            "application/vnd.onmetal.image.rootfs.v1alpha1.rootfs",
            "application/vnd.ironcore.image.rootfs.v1alpha1.rootfs",
            "application/vnd.ironcore.image.rootfs",
        ];
        // Each beats those before it.
        for count in 1..=types.len() {
            let mut layers = types[..count].to_vec();
            for _ in ["oldest first", "newest first"] {
                let disk = of(&layers).get(LayerRole::Disk).cloned().unwrap();
                assert_eq!(disk.media_type, types[count - 1]);
                layers.reverse();
            }
        }
        let uki = of(&[
            "application/io.gardenlinux.efi",
            "application/io.gardenlinux.uki",
        ]);
        assert_eq!(
            uki.generation(LayerRole::Uki),
            Some(Generation::GardenLinux)
        );
        assert_eq!(uki.generation(LayerRole::Kernel), None);
    }

    #[test]
    fn a_kernel_beside_a_disk_is_of_network_boot_in_v1alpha1_only() {
        let disk = "application/vnd.ironcore.image.rootfs.v1alpha1.rootfs";
        for (disk, kernel, expected) in [
            (disk, "vnd.ironcore.image.vmlinuz.v1alpha1.vmlinuz", true),
            (
                disk,
                "vnd.ironcore.image.metal.vmlinuz.v1alpha1.vmlinuz",
                true,
            ),
            (disk, "vnd.ironcore.image.kernel", false),
            (
                "application/vnd.onmetal.image.rootfs.v1alpha1.rootfs",
                "vnd.onmetal.image.vmlinuz.v1alpha1.vmlinuz",
                false,
            ),
            (
                "application/io.gardenlinux.image.archive.format.raw",
                "io.gardenlinux.kernel",
                false,
            ),
        ] {
            let manifest = Manifest {
                config: Descriptor::of("c", b"{}"),
                layers: vec![
                    Descriptor::of(disk, b"d"),
                    Descriptor::of(&format!("application/{kernel}"), b"k"),
                ],
                annotations: BTreeMap::new(),
            };
            let roles = Roles::of(&manifest, Digest::of(b"m")).unwrap();
            assert_eq!(roles.is_legacy_combined(), expected, "{disk} {kernel}");
        }
    }

    #[test]
    fn a_squashfs_never_takes_the_place_of_the_disk() {
        let expected = vec![
            (LayerRole::Disk, Digest::of(b"d")),
            (LayerRole::Squashfs, Digest::of(b"s")),
        ];
        assert_eq!(roles(&[("rootfs", "d"), ("squashfs", "s")]), Ok(expected));
    }

    #[test]
    fn two_layers_of_one_role_are_an_error_unless_they_are_the_same() {
        for second in ["rootfs", "disk.img"] {
            let error = roles(&[("rootfs", "a"), (second, "b")]).unwrap_err();
            assert!(matches!(error, ImageError::DuplicateRole { .. }));
            assert!(roles(&[("rootfs", "a"), (second, "a")]).is_ok());
        }
        // Those that yield may be as many as they like, in any order.
        let old = "rootfs.v1alpha1.rootfs";
        let expected = Ok(vec![(LayerRole::Disk, Digest::of(b"new"))]);
        for place in 0..3 {
            let mut layers = vec![(old, "a"), (old, "b")];
            layers.insert(place, ("rootfs", "new"));
            assert_eq!(roles(&layers), expected);
        }
    }

    #[test]
    fn images_without_a_usable_layer_are_refused() {
        assert!(matches!(
            roles(&[("kernel", "")]),
            Err(ImageError::EmptyLayer { .. })
        ));
        for types in [&[][..], &[("tar+gzip", "x")][..]] {
            assert!(matches!(roles(types), Err(ImageError::NoKnownLayer { .. })));
        }
    }
}
