//! The verbs below `image`.

use std::time::Duration;

use clap::Subcommand;

use crate::cli::args::values::{age, reference, size};
use crate::oci::Reference;
use crate::ops::build::ManifestRequest;

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum ImageVerb {
    /// List the images in the store
    #[command(visible_alias = "ls")]
    List,
    /// Show everything that an image says of itself
    Inspect {
        /// The image
        #[arg(value_parser = reference)]
        image: Reference,
    },
    /// Remove images from the store
    Rm {
        /// The images
        #[arg(required = true, value_name = "IMAGE", value_parser = reference)]
        images: Vec<Reference>,
    },
    /// Remove what nobody needs
    ///
    /// That is blobs that no image, no instance and no domain of libvirt's names, and what killed
    /// processes have left; a partial that a pull could resume stays for a day.
    Prune {
        /// Forget images that were not used for so long, as in 30d or 12h
        ///
        /// Those that an instance or a domain of libvirt's needs stay.
        #[arg(long, value_name = "AGE", value_parser = age)]
        older_than: Option<Duration>,
        /// Forget images until the blobs take no more of the disk, as in 20G
        ///
        /// The least recently used go first. Those that an instance or a domain of libvirt's needs
        /// stay.
        #[arg(long, value_name = "SIZE", value_parser = size)]
        keep_bytes: Option<u64>,
        /// Print what would go, and touch nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Hash everything in the store again, and tell what is wrong
    ///
    /// Looks at owners, modes, links and records, too. That something is wrong is an error.
    Verify {
        /// Images to look at [default: everything in the store]
        #[arg(value_name = "IMAGE", value_parser = reference)]
        images: Vec<Reference>,
        /// Mend it: fetch or copy blobs, and write records anew
        #[arg(long)]
        repair: bool,
    },
    /// Make an image from files, in an OCI layout directory
    Build {
        /// Where to write it, as oci:DIR:NAME
        #[arg(short, long, value_name = "LAYOUT", value_parser = reference)]
        output: Reference,
        /// One manifest, as arch=amd64,disk=FILE; repeat for each
        ///
        /// Its keys are arch and variant and, with a file each, disk, kernel, initramfs, squashfs,
        /// cmdline, uki and iso.
        #[arg(short, long = "manifest", required = true, value_name = "MANIFEST")]
        manifests: Vec<ManifestRequest>,
        /// Write the form that ironcore-image reads
        ///
        /// The disk is called rootfs then, and the command line is in the config.
        #[arg(long)]
        compat: bool,
    },
    /// Copy an image to a registry, from the store or an OCI layout
    Push {
        /// The image, whole: oci:DIR[:NAME], oci-archive:FILE[:NAME], or what `pull --all` has pulled
        #[arg(value_parser = reference)]
        image: Reference,
        /// Where to, as HOST[:PORT]/REPOSITORY[:TAG]
        #[arg(value_parser = reference)]
        destination: Reference,
    },
}
