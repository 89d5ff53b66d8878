//! What the targets have in common.

use ironboot::content::{HEAD_BYTES, Sample, TAIL_BYTES};
use ironboot::oci::Digest;

/// What the probes would be shown of a blob with this content.
#[must_use]
pub fn sample(content: &[u8]) -> Sample {
    let at_most = |bytes: u64| {
        content
            .len()
            .min(usize::try_from(bytes).unwrap_or(usize::MAX))
    };
    Sample {
        digest: Digest::of(b"a blob"),
        head: content[..at_most(HEAD_BYTES)].to_vec(),
        tail: content[content.len() - at_most(TAIL_BYTES)..].to_vec(),
        size_bytes: content.len() as u64,
    }
}
