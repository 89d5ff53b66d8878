//! Signatures of images, and the policy that says which are asked for.
//!
//! ```text
//! policy file ─parse→ PolicyFile ─with_keys→ Policy ─rules_for(reference)→ Rules ─┐
//! what is attached to an image ─attached→ Signature… ───────────────────────evaluate→ Verdict
//! ```
//!
//! Pure: the files and the signatures are read by others. What is verified is a signature by one of
//! the policy's own keys, over a text that names the image's digest. Certificates, transparency logs
//! and expiry are not looked at, and whoever asks for them in a policy is refused, not ignored.
//!
//! Formats: containers-policy.json(5); cosign's SIGNATURE_SPEC.md and BUNDLE_SPEC.md; DSSE v1.

mod attached;
mod claim;
mod identity;
mod key;
mod policy;
mod scope;

use std::fmt;

use thiserror::Error;

use crate::oci::{Digest, Reference};

pub use attached::{Place, Signature, layers, referrers};
pub use claim::{Form, Refusal};
pub use identity::Identity;
pub use key::{KeyError, PublicKey};
pub use policy::{Policy, PolicyError, PolicyFile, Requirement};
pub use scope::Rules;

/// Most signatures that are looked at of one document at one [`Place`].
pub const MAX_SIGNATURES: usize = 50;
/// Largest signature that is read, in bytes: its payload, or its bundle, and the manifest that lists
/// it. What counts is kept with the image, so that it is no more than can be kept.
pub const MAX_SIGNATURE_BYTES: u64 = 64 << 10;

/// What no verification here looks at, in words for people.
pub const NOT_CHECKED: [&str; 3] = ["transparency log", "certificate", "expiry"];

/// An image that the policy lets in, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// The scope of the policy that decided.
    pub scope: String,
    /// How each of its requirements is met.
    pub met: Vec<Met>,
}

/// How a requirement is met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Met {
    /// It asks for nothing.
    Anything,
    /// By a signature.
    Signed(Signed),
}

/// A signature that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// Digest of the key, in the form SubjectPublicKeyInfo.
    pub key: Digest,
    /// The form that the signature has.
    pub form: Form,
    /// The document that it is of.
    pub covers: Digest,
    /// Which image it says that this is; none where its form has no place for that.
    pub identity: Option<String>,
    /// What the policy asks of that.
    pub asked: &'static str,
    /// Which of the signatures it is.
    pub place: usize,
}

/// Why the policy does not let an image in.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Distrust {
    /// The policy wants none of these.
    #[error("the policy for {scope} rejects it")]
    Rejected {
        /// The scope that decided.
        scope: String,
    },
    /// There is no signature to look at.
    #[error("the policy for {scope} asks for a signature, and it has none")]
    Unsigned {
        /// The scope that decided.
        scope: String,
    },
    /// None of its signatures is what is asked for.
    #[error("the policy for {scope} asks for another signature than it has")]
    NotBy {
        /// The scope that decided.
        scope: String,
        /// Why not, for each signature.
        refusals: Vec<Refusal>,
    },
}

/// Judges the image of `reference`, known by any of `digests`, by its `signatures`.
pub fn evaluate(
    rules: &Rules<'_>,
    reference: &Reference,
    digests: &[Digest],
    signatures: &[Signature],
) -> Result<Verdict, Distrust> {
    let scope = || rules.scope.clone();
    let mut met = Vec::new();
    for requirement in rules.requirements {
        met.push(match requirement {
            Requirement::Reject => return Err(Distrust::Rejected { scope: scope() }),
            Requirement::AcceptAnything => Met::Anything,
            Requirement::Signed { keys, identity } => {
                let mut refusals = Vec::new();
                let judge = |(place, signature): (usize, &Signature)| {
                    let signed = judge(signature, keys, identity, reference, digests);
                    signed.map(|signed| Signed { place, ..signed })
                };
                let mut judged = signatures.iter().enumerate().map(judge);
                let signed = judged.find_map(|judged| judged.map_err(|e| refusals.push(e)).ok());
                match signed {
                    Some(signed) => Met::Signed(signed),
                    None if refusals.is_empty() => {
                        return Err(Distrust::Unsigned { scope: scope() });
                    }
                    None => {
                        let scope = scope();
                        return Err(Distrust::NotBy { scope, refusals });
                    }
                }
            }
        });
    }
    let scope = scope();
    Ok(Verdict { scope, met })
}

/// Judges one signature by one requirement.
fn judge(
    signature: &Signature,
    keys: &[PublicKey],
    identity: &Identity,
    reference: &Reference,
    digests: &[Digest],
) -> Result<Signed, Refusal> {
    let claim = claim::verify(signature, keys)?;
    let mut covered = digests
        .iter()
        .filter(|digest| claim.covers.contains(digest));
    let covers = covered.next().ok_or_else(|| Refusal::OtherImage {
        covers: claim.covers.clone(),
    })?;
    let is_accepted = match &claim.identity {
        Some(claimed) => identity.accepts(reference, claimed),
        None => identity.accepts_unnamed(),
    };
    if !is_accepted {
        let asked = identity.name();
        return Err(match claim.identity {
            Some(claimed) => Refusal::OtherIdentity { claimed, asked },
            None => Refusal::NoIdentity { asked },
        });
    }
    Ok(Signed {
        key: claim.key,
        form: claim.form,
        covers: *covers,
        identity: claim.identity,
        asked: identity.name(),
        place: 0,
    })
}

impl Verdict {
    /// Which of the signatures counted, by their places.
    pub fn signatures(&self) -> impl Iterator<Item = usize> {
        self.met.iter().filter_map(|met| match met {
            Met::Anything => None,
            Met::Signed(signed) => Some(signed.place),
        })
    }
}

impl Distrust {
    /// Why each of the signatures does not count.
    #[must_use]
    pub fn refusals(&self) -> &[Refusal] {
        match self {
            Self::NotBy { refusals, .. } => refusals,
            Self::Rejected { .. } | Self::Unsigned { .. } => &[],
        }
    }

    /// Tells whether more signatures could change it.
    #[must_use]
    pub fn may_be_mended(&self) -> bool {
        !matches!(self, Self::Rejected { .. })
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SimpleSigning => "simple-signing",
            Self::Bundle => "bundle",
        })
    }
}

#[cfg(test)]
#[path = "../../tests/support/signer.rs"]
#[allow(dead_code, reason = "shared with other tests, which use more of it")]
mod signer;
#[cfg(test)]
mod tests;
