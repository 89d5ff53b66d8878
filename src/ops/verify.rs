//! Whether everything in the store is what it should be, and how it becomes so again.
//!
//! What a reference names is fetched again from where that reference leads; what only an instance
//! needs, from where the instance's image came. A blob whose bytes are right and whose file is not
//! is copied. Nothing that can not be mended is deleted: it is moved to `damaged/`. What was found
//! is looked at again before anything is done to it, and no two processes mend at the same time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::oci::manifest::MAX_DOCUMENT_BYTES;
use crate::oci::{Descriptor, Digest, Document, Reference};
use crate::ops::fetch::{self, Item};
use crate::ops::tree::stored;
use crate::ops::{Context, OpsError, Progress, blocking, unpack, users};
use crate::source::{self, Wanted};
use crate::store::{
    Expected, Finding, Lease, Look, Place, Problem, StoreError, StoredReference, Use, User,
};

/// What was looked at and found.
#[derive(Debug)]
pub struct Verified {
    /// How many blobs were looked at.
    pub checked: usize,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// How long that took.
    pub took: Duration,
    /// What is not as it should be, or was not.
    pub findings: Vec<Found>,
}

/// Something that is not as it should be, or was not.
#[derive(Debug)]
pub struct Found {
    /// What.
    pub finding: Finding,
    /// What became of it.
    pub outcome: Outcome,
    /// Who uses the blob that was replaced or lost: his file has changed under him.
    pub users: Vec<User>,
}

/// What became of something that was not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is as it was found.
    Left,
    /// It is as it should be, or gone if nobody needs it.
    Repaired,
    /// It could not be mended, for this reason.
    Failed(String),
}

/// What to do with what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Tell it.
    Tell,
    /// Mend it.
    Repair,
}

impl Verified {
    /// How many things are not as they should be.
    #[must_use]
    pub fn left(&self) -> usize {
        let findings = self.findings.iter();
        findings
            .filter(|found| found.outcome != Outcome::Repaired)
            .count()
    }
}

/// Looks at the blobs of `images`, or at everything if none are named. Errors if there is no store.
pub async fn verify(
    context: &Context<'_>,
    images: &[Reference],
    then: Then,
) -> Result<Verified, OpsError> {
    let mut verified = Verified {
        checked: 0,
        bytes: 0,
        took: Duration::ZERO,
        findings: Vec::new(),
    };
    if !context.store.is_there()? {
        let root = context.store.root().to_owned();
        return Err(StoreError::None { root }.into());
    }
    let _mending = match then {
        Then::Repair => {
            let store = context.store.clone();
            Some(blocking(move || store.lock_repairs()).await?)
        }
        Then::Tell => None,
    };
    let store = context.store.clone();
    let expected = if images.is_empty() {
        // Records first: what they name is not looked for if they are no good.
        let records = blocking(move || store.look_at_records()).await?;
        for finding in records {
            verified
                .findings
                .push(mend_record(context, finding, then).await?);
        }
        let store = context.store.clone();
        blocking(move || store.expected()).await?
    } else {
        let mut expected = BTreeMap::new();
        for reference in images {
            let stored = context.store.reference(reference)?;
            let stored = stored.ok_or_else(|| StoreError::NoReference {
                reference: reference.clone(),
            })?;
            expected.extend(stored.expected());
        }
        expected
    };
    verified.checked = expected.len();
    let began = Instant::now();
    let (found, bytes) = look(context, expected.clone()).await?;
    verified.bytes = bytes;
    let found = still_so(context, found).await?;
    verified.findings.extend(match then {
        Then::Tell => found.into_iter().map(Found::left).collect(),
        Then::Repair if found.is_empty() => Vec::new(),
        Then::Repair => mend_blobs(context, found).await?,
    });
    // After the blobs that they are made of.
    let store = context.store.clone();
    let derived = blocking(move || store.look_at_derived(&expected)).await?;
    for (source, finding) in derived {
        let found = match then {
            Then::Tell => Found::left(finding),
            Then::Repair => mend_derived(context, source, finding).await?,
        };
        verified.findings.push(found);
    }
    verified.took = began.elapsed();
    Ok(verified)
}

impl Found {
    fn left(finding: Finding) -> Self {
        Self {
            finding,
            outcome: Outcome::Left,
            users: Vec::new(),
        }
    }
}

/// Hashes blobs on threads of their own, and tells. Returns what is wrong and how much was hashed.
async fn look(
    context: &Context<'_>,
    expected: BTreeMap<Digest, Expected>,
) -> Result<(Vec<Finding>, u64), OpsError> {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let store = context.store.clone();
    let looking = tokio::task::spawn_blocking(move || {
        store.look_at_blobs(&expected, &|look| {
            // Fails only if nobody waits for the answer any more.
            sender.send(look).unwrap_or_default();
        })
    });
    let mut bytes = 0;
    while let Some(look) = receiver.recv().await {
        (context.report)(match look {
            Look::All(blobs, size_bytes) => Progress::Verifying { blobs, size_bytes },
            Look::Start(blob, size_bytes) => Progress::BlobStart {
                blob,
                label: blob.hex()[..12].to_owned(),
                size_bytes,
                offset_bytes: 0,
            },
            Look::Bytes(blob, count) => {
                bytes += count;
                Progress::BlobBytes { blob, count }
            }
            Look::Done(blob) => Progress::BlobDone { blob },
        });
    }
    Ok((looking.await??, bytes))
}

/// Leaves out what is missing only because an image was removed meanwhile.
async fn still_so(
    context: &Context<'_>,
    mut found: Vec<Finding>,
) -> Result<Vec<Finding>, OpsError> {
    if found.is_empty() {
        return Ok(found);
    }
    let store = context.store.clone();
    let expected = blocking(move || store.expected()).await?;
    found.retain(|finding| {
        let digest = finding.digest.as_ref();
        digest.is_some_and(|digest| expected.contains_key(digest))
    });
    Ok(found)
}

async fn mend_record(
    context: &Context<'_>,
    finding: Finding,
    then: Then,
) -> Result<Found, OpsError> {
    let mut found = Found::left(finding);
    if then == Then::Repair {
        let (store, finding) = (context.store.clone(), found.finding.clone());
        let mended = blocking(move || store.mend_record(&finding)).await;
        found.outcome = match mended {
            Ok(true) => Outcome::Repaired,
            Ok(false) => Outcome::Failed("only its owner knows what it should be".to_owned()),
            Err(error) => Outcome::Failed(words(&error)),
        };
    }
    Ok(found)
}

/// Makes again what was made of the blob `source`.
async fn mend_derived(
    context: &Context<'_>,
    source: Digest,
    finding: Finding,
) -> Result<Found, OpsError> {
    let outcome = match unpack::again(context, source).await {
        Ok(()) => Outcome::Repaired,
        Err(error) => Outcome::Failed(words(&error)),
    };
    let uses = context.store.instance_uses()?;
    let users = uses.into_iter().filter(|one| one.named.contains(&source));
    Ok(Found {
        finding,
        outcome,
        users: users.map(|one| one.user).collect(),
    })
}

/// Mends blobs, each as far as it goes.
async fn mend_blobs(context: &Context<'_>, findings: Vec<Finding>) -> Result<Vec<Found>, OpsError> {
    let references = context.store.references()?;
    let domains = users::domains(context).await?;
    let uses = [context.store.instance_uses()?, domains.uses].concat();
    let mut mended = Vec::new();
    for finding in findings {
        let digest = finding.digest.expect("only blobs are mended here");
        let origins = origins(context, &references, &uses, digest);
        let users: BTreeSet<&User> = uses
            .iter()
            .filter(|one| one.digests().any(|needed| needed == digest))
            .map(|one| &one.user)
            .collect();
        let is_needed = !origins.is_empty()
            || !users.is_empty()
            || domains.is_incomplete
            // By a process, or by a pin of none of these.
            || finding.problem != Problem::Missing
                && !context.store.unneeded([digest])?.contains(&digest);
        let outcome = match mend_blob(context, &finding, &origins, is_needed).await {
            Ok(()) => Outcome::Repaired,
            Err(error) => Outcome::Failed(words(&error)),
        };
        mended.push(Found {
            users: users.into_iter().cloned().collect(),
            finding,
            outcome,
        });
    }
    Ok(mended)
}

async fn mend_blob(
    context: &Context<'_>,
    finding: &Finding,
    origins: &[Origin],
    is_needed: bool,
) -> Result<(), OpsError> {
    let digest = finding.digest.expect("only blobs are mended here");
    let store = context.store.clone();
    let lease = Arc::new(blocking(move || store.lease([digest])).await?);
    let (store, held) = (context.store.clone(), Arc::clone(&lease));
    let moved = match blocking(move || store.mend_file(&held, digest)).await? {
        Place::Right => return Ok(()),
        Place::Empty(moved) => moved,
    };
    let mut result = if is_needed {
        Err(OpsError::NoOrigin { blob: digest })
    } else {
        Ok(())
    };
    for origin in origins {
        result = fetch_from(context, origin, &lease).await;
        if result.is_ok() {
            break;
        }
    }
    if result.is_ok() {
        let store = context.store.clone();
        blocking(move || store.settle(digest, moved)).await?;
    }
    result
}

/// Where a blob is to be had.
struct Origin {
    reference: Reference,
    descriptor: Descriptor,
    is_document: bool,
}

/// Where the references, and the instances' records, say that a blob came from.
fn origins(
    context: &Context<'_>,
    references: &[StoredReference],
    uses: &[Use],
    digest: Digest,
) -> Vec<Origin> {
    let mut origins = Vec::new();
    for stored in references {
        let Ok(reference) = stored.reference.parse::<Reference>() else {
            continue;
        };
        let documents = stored.documents().map(|document| (document, true));
        let blobs = stored.images.iter().flat_map(|image| &image.blobs);
        let named = documents.chain(blobs.map(|blob| (blob, false)));
        if let Some((descriptor, is_document)) = named
            .into_iter()
            .find(|(descriptor, _)| descriptor.digest == digest)
        {
            origins.push(Origin {
                reference,
                descriptor: descriptor.clone(),
                is_document,
            });
        }
    }
    for one in uses.iter().filter(|one| one.named.contains(&digest)) {
        if let User::Instance(name) = &one.user {
            origins.extend(origin_of_instance(context, name, digest));
        }
    }
    origins
}

/// Where the image of an instance came from, if `digest` is a blob of its manifest.
fn origin_of_instance(context: &Context<'_>, name: &str, digest: Digest) -> Option<Origin> {
    let record = context.instances.find(&name.parse().ok()?).ok()??;
    let provenance = &record.spec.provenance;
    let manifest = provenance.manifest_digest;
    let path = context.store.blob_path(&manifest);
    let descriptor = Descriptor {
        digest: manifest,
        size: std::fs::metadata(path).ok()?.len(),
        ..Descriptor::of("", b"")
    };
    let bytes = stored(&context.store, &descriptor, MAX_DOCUMENT_BYTES).ok()??;
    let Document::Manifest(manifest) = Document::parse(&bytes, manifest, None).ok()? else {
        return None;
    };
    let mut blobs = manifest.blobs().into_iter();
    let descriptor = blobs.find(|blob| blob.digest == digest)?.clone();
    Some(Origin {
        reference: provenance.reference.parse().ok()?,
        descriptor,
        is_document: false,
    })
}

async fn fetch_from(
    context: &Context<'_>,
    origin: &Origin,
    lease: &Arc<Lease>,
) -> Result<(), OpsError> {
    let source = source::open(&origin.reference, &context.sources)?;
    let descriptor = origin.descriptor.clone();
    if origin.is_document {
        let raw = source.document(Wanted::Entry(&descriptor)).await?;
        let lease = Arc::clone(lease);
        blocking(move || lease.put(&descriptor, &raw.bytes)).await?;
        return Ok(());
    }
    let item = Item {
        label: descriptor.digest.hex()[..12].to_owned(),
        descriptor,
    };
    fetch::fetch(context, &origin.reference, &*source, lease, vec![item]).await?;
    Ok(())
}

/// An error with all that caused it, on one line.
fn words(error: &OpsError) -> String {
    let mut words = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        words.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    words
}
