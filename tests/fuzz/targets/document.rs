//! Indexes and manifests, up to the choice of one of them and of what its layers are.

#![no_main]

use ironboot::image::Variant;
use ironboot::image::select::{Candidate, Wanted, may_fit, select};
use ironboot::oci::{Architecture, Digest, Document, Reference};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let digest = Digest::of(bytes);
    let Ok(document) = Document::parse(bytes, digest, None) else {
        return;
    };
    let architecture = Architecture::Amd64;
    match document {
        Document::Index(index) => {
            assert!(index.entries.len() <= 256);
            for entry in &index.entries {
                // The reason is made of what the entry says.
                may_fit(entry, &architecture).unwrap_or_default();
            }
        }
        Document::Manifest(manifest) => {
            let total = manifest
                .layers
                .iter()
                .try_fold(0_u64, |sum, layer| sum.checked_add(layer.size));
            assert!(total.is_some_and(|total| i64::try_from(total).is_ok()));
            let reference: Reference = "reg.example/os:1".parse().expect("it is a reference");
            let candidate = Candidate {
                digest,
                entry: None,
                indexes: Vec::new(),
                manifest,
                config_architecture: None,
            };
            let variant = Variant::Virtualization;
            let wanted = Wanted {
                architecture,
                variant,
            };
            if let Err(error) = select(&reference, vec![candidate], Vec::new(), &wanted) {
                assert!(!error.to_string().contains(char::is_control));
            }
        }
    }
});
