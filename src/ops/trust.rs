//! Whether an image is let in: the policy's files, and the signatures of an image against them.
//!
//! A policy is looked for at each use of an image, and so is what it says of the signatures that are
//! kept: a key that is taken away is of no effect from then on. Where those that are kept will not
//! do, the place that has the image is asked for others.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::files::{self, FileError};
use crate::instance::Record;
use crate::oci::{Descriptor, Digest, Document, Manifest, Reference};
use crate::ops::resolve::fetch_small;
use crate::ops::tree::{self, is_entrys_fault};
use crate::ops::{Context, OpsError};
use crate::signature::{
    self, Distrust, MAX_SIGNATURE_BYTES, MAX_SIGNATURES, Place, Policy, PolicyFile, Signature,
    Verdict, evaluate,
};
use crate::source::Source;

/// Largest policy that is read, in bytes.
const MAX_POLICY_BYTES: u64 = 1 << 20;
/// Largest file with a key, in bytes.
const MAX_KEY_BYTES: u64 = 64 << 10;
/// Bytes of signatures, and of the manifests in lists of them, that are fetched for one image at most.
const MAX_TOTAL_BYTES: u64 = 16 << 20;

/// Where it is said which images are let in.
#[derive(Debug, Clone)]
pub enum PolicyPlace {
    /// In this file.
    Named(PathBuf),
    /// In the first of these that is there; if none is, nothing is asked of images.
    FirstOf(Vec<PathBuf>),
}

/// Why an image is trusted.
#[derive(Debug, Clone)]
pub struct Trust {
    /// How the policy's requirements are met.
    pub verdict: Verdict,
    /// The signatures that count.
    pub signatures: Vec<Signature>,
}

/// What a policy says of an image.
#[derive(Debug)]
pub struct Judgement {
    /// The policy's file.
    pub policy: PathBuf,
    /// Whether it is let in.
    pub verdict: Result<Verdict, Distrust>,
}

/// The policy, and what is known of the signatures of one image.
#[derive(Debug)]
pub(super) struct Judge {
    reference: Reference,
    /// With the file that it is in.
    policy: Option<(PathBuf, Policy)>,
    signatures: Vec<Signature>,
    left_bytes: u64,
}

/// The signatures that are kept with an image: those that count.
pub(super) fn kept(trust: Option<&Trust>) -> &[Signature] {
    trust.map_or(&[][..], |trust| &trust.signatures)
}

/// Judges the image of an instance before it starts, by the signatures that are kept.
pub(super) fn judge_instance(context: &Context<'_>, record: &Record) -> Result<(), OpsError> {
    let image = &record.spec.provenance;
    let reference = image.reference.parse().map_err(|source| {
        let name = record.spec.name.clone();
        OpsError::Provenance { name, source }
    })?;
    let mut judge = Judge::open(context, &reference)?;
    judge.signatures.extend_from_slice(&record.signatures);
    let top = image.index_digest.into_iter();
    let digests: Vec<Digest> = top.chain([image.manifest_digest]).collect();
    judge.by_what_is_here(&digests).map(drop)
}

impl Judge {
    /// Reads the policy, and the signatures that are kept of `reference`.
    pub(super) fn open(context: &Context<'_>, reference: &Reference) -> Result<Self, OpsError> {
        let policy = load(&context.policy)?;
        let stored = match policy {
            Some(_) => context.store.reference(reference)?,
            None => None,
        };
        Ok(Self {
            reference: resolved(reference),
            policy,
            signatures: stored.map_or_else(Vec::new, |stored| stored.signatures),
            left_bytes: MAX_TOTAL_BYTES,
        })
    }

    /// Tells whether anything may be asked of the image.
    pub(super) fn has_policy(&self) -> bool {
        self.policy.is_some()
    }

    /// Says why the image is trusted that any of `digests` is the digest of; none where nobody asks.
    /// Asks `source` for signatures only as long as those that are here will not do.
    pub(super) async fn judge(
        &mut self,
        context: &Context<'_>,
        source: &dyn Source,
        digests: &[Digest],
    ) -> Result<Option<Trust>, OpsError> {
        let mut trust = self.by_what_is_here(digests);
        for digest in digests {
            for place in Place::ALL {
                match &trust {
                    Err(OpsError::Untrusted { source, .. }) if source.may_be_mended() => {}
                    _ => return trust,
                }
                self.fetch(context, source, digest, place).await?;
                trust = self.by_what_is_here(digests);
            }
        }
        trust
    }

    /// The same of several images that are known each by its digests, and what speaks against any of
    /// them is no error.
    pub(super) async fn explain(
        mut self,
        context: &Context<'_>,
        source: &dyn Source,
        images: &[Vec<Digest>],
    ) -> Result<Option<Judgement>, OpsError> {
        let mut whole: Option<Verdict> = None;
        let mut refused = None;
        for digests in images {
            match self.judge(context, source, digests).await {
                Ok(Some(Trust { verdict, .. })) => match &mut whole {
                    Some(whole) => {
                        let others = verdict.met.into_iter();
                        let others: Vec<_> =
                            others.filter(|met| !whole.met.contains(met)).collect();
                        whole.met.extend(others);
                    }
                    None => whole = Some(verdict),
                },
                Ok(None) => {}
                Err(OpsError::Untrusted { source, .. }) => {
                    refused = Some(source);
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let verdict = refused.map_or_else(|| whole.map(Ok), |refused| Some(Err(refused)));
        let judgement = |(policy, _), verdict| Judgement { policy, verdict };
        Ok(self
            .policy
            .zip(verdict)
            .map(|(policy, verdict)| judgement(policy, verdict)))
    }

    /// Errors if what counted is not of one of `digests`, which is known only by now.
    pub(super) fn confirm(
        &self,
        trust: Option<&Trust>,
        digests: &[Digest],
    ) -> Result<(), OpsError> {
        match trust {
            Some(trust) => self.by(digests, &trust.signatures).map(drop),
            None => Ok(()),
        }
    }

    fn by_what_is_here(&self, digests: &[Digest]) -> Result<Option<Trust>, OpsError> {
        self.by(digests, &self.signatures)
    }

    fn by(&self, digests: &[Digest], signatures: &[Signature]) -> Result<Option<Trust>, OpsError> {
        let Some((path, policy)) = &self.policy else {
            return Ok(None);
        };
        let rules = policy.rules_for(&self.reference);
        let verdict = evaluate(&rules, &self.reference, digests, signatures);
        let verdict = verdict.map_err(|source| OpsError::Untrusted {
            reference: Box::new(self.reference.clone()),
            policy: path.clone(),
            source,
        })?;
        let mut counted: Vec<Signature> = Vec::new();
        for place in verdict.signatures() {
            if !counted.contains(&signatures[place]) {
                counted.push(signatures[place].clone());
            }
        }
        let signatures = counted;
        Ok(Some(Trust {
            verdict,
            signatures,
        }))
    }

    /// Fetches the signatures of `digest` that are at `place`. One that can not be read is none, and
    /// neither it nor one that is too large hides those after it; what is beyond the most that are
    /// looked at is not seen.
    async fn fetch(
        &mut self,
        context: &Context<'_>,
        source: &dyn Source,
        digest: &Digest,
        place: Place,
    ) -> Result<(), OpsError> {
        let found = match source.attached(digest, place).await.map_err(OpsError::from) {
            Err(error) if is_entrys_fault(&error) => None,
            found => found?,
        };
        let Some(raw) = found else {
            return Ok(());
        };
        let mut left = MAX_SIGNATURES;
        match place {
            Place::Tag => {
                let says = raw.media_type.as_deref();
                if let Ok(Document::Manifest(manifest)) =
                    Document::parse(&raw.bytes, raw.digest, says)
                {
                    self.read(context, source, &manifest, &mut left).await?;
                }
            }
            Place::Referrers | Place::ReferrersTag => {
                for entry in signature::referrers(&raw.bytes).unwrap_or_default() {
                    if left == 0 {
                        break;
                    }
                    if !self.spend(entry.size) {
                        continue;
                    }
                    match tree::read(context, source, &entry).await {
                        Ok((_, Document::Manifest(manifest))) => {
                            self.read(context, source, &manifest, &mut left).await?;
                        }
                        Ok((_, Document::Index(_))) => {}
                        Err(error) if is_entrys_fault(&error) => {}
                        Err(error) => return Err(error),
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads the signatures of a manifest of them.
    async fn read(
        &mut self,
        context: &Context<'_>,
        source: &dyn Source,
        manifest: &Manifest,
        left: &mut usize,
    ) -> Result<(), OpsError> {
        let layers: Vec<&Descriptor> = signature::layers(manifest).take(*left).collect();
        for layer in layers {
            if !self.spend(layer.size) {
                continue;
            }
            *left -= 1;
            let limit = MAX_SIGNATURE_BYTES;
            match fetch_small(context, source, layer, limit, "signature").await {
                Ok(content) => self.signatures.extend(Signature::of_layer(layer, content)),
                Err(error) if is_entrys_fault(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Takes so many bytes of those that may be fetched; false if there are not as many.
    fn spend(&mut self, size_bytes: u64) -> bool {
        let left = self.left_bytes.checked_sub(size_bytes);
        self.left_bytes = left.unwrap_or(self.left_bytes);
        left.is_some()
    }
}

/// The reference as scopes are written: of what is there, whatever links lead to it.
fn resolved(reference: &Reference) -> Reference {
    let mut resolved = reference.clone();
    if let Reference::Layout(layout) = &mut resolved
        // What is kept of it is of the path by which it was named, if that is gone.
        && let Ok(path) = layout.path.canonicalize()
    {
        layout.path = path;
    }
    resolved
}

/// Reads the policy and its keys; none where no file is.
pub(super) fn load(place: &PolicyPlace) -> Result<Option<(PathBuf, Policy)>, OpsError> {
    let read = |path: &Path, limit| files::read_trusted(path, limit).map_err(OpsError::PolicyFile);
    let needed = |path: &Path, content: Option<Vec<u8>>| {
        content.ok_or_else(|| {
            let error = std::io::Error::from(std::io::ErrorKind::NotFound);
            OpsError::PolicyFile(FileError::of("trust", path)(error))
        })
    };
    let found = match place {
        PolicyPlace::Named(path) => {
            let content = needed(path, read(path, MAX_POLICY_BYTES)?)?;
            Some((path, content))
        }
        PolicyPlace::FirstOf(paths) => {
            let mut found = None;
            for path in paths {
                if let Some(content) = read(path, MAX_POLICY_BYTES)? {
                    found = Some((path, content));
                    break;
                }
            }
            found
        }
    };
    let Some((path, content)) = found else {
        return Ok(None);
    };
    let refused = |source| OpsError::Policy {
        path: path.clone(),
        source,
    };
    let file = PolicyFile::parse(&content).map_err(refused)?;
    let mut keys = BTreeMap::new();
    for key in file.key_files() {
        let content = needed(&key, read(&key, MAX_KEY_BYTES)?)?;
        keys.insert(key, content);
    }
    let policy = file.with_keys(&keys).map_err(refused)?;
    Ok(Some((path.clone(), policy)))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_first_policy_that_is_there_decides_even_if_it_can_not_be_used() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let load = || load(&PolicyPlace::FirstOf(vec![path("own"), path("others")]));
        assert!(load().unwrap().is_none());
        let anything = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
        fs::write(path("others"), anything).unwrap();
        assert_eq!(load().unwrap().unwrap().0, path("others"));
        fs::write(path("own"), "{}").unwrap();
        assert!(matches!(load(), Err(OpsError::Policy { path, .. }) if path.ends_with("own")));
        fs::write(path("own"), anything).unwrap();
        assert_eq!(load().unwrap().unwrap().0, path("own"));
        fs::write(path("own"), "[".repeat(1 + (1 << 20))).unwrap();
        assert!(matches!(load(), Err(OpsError::PolicyFile(_))));
        fs::remove_file(path("own")).unwrap();
        std::os::unix::fs::symlink(path("nowhere"), path("own")).unwrap();
        assert!(matches!(load(), Err(OpsError::PolicyFile(_))));
        // Nor does the next decide where its directory is not what it was.
        let within = |name: &str| {
            let places = vec![path(name).join("policy.json"), path("others")];
            super::load(&PolicyPlace::FirstOf(places))
        };
        assert_eq!(within("none").unwrap().unwrap().0, path("others"));
        for name in ["own", "others"] {
            assert!(
                matches!(within(name), Err(OpsError::PolicyFile(_))),
                "{name}"
            );
        }
        // What is named must be there.
        assert!(matches!(
            super::load(&PolicyPlace::Named(path("none"))),
            Err(OpsError::PolicyFile(_))
        ));
    }
}
