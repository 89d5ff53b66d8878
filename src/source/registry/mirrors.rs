//! From one place to the next: whom to ask, who has failed, and what a mirror may get away with,
//! which is nothing.
//!
//! A mirror may be anybody. What it says of a digest is verified, what it says of a tag is asked
//! for only where the operator says so, and whatever goes wrong with it is no reason to fail as
//! long as there is another place. It is left alone then for a while.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};

use crate::oci::{Descriptor, Digest};
use crate::source::registry::Registry;
use crate::source::registry::host::Host;
use crate::source::registry::hosts_file::Capability;
use crate::source::{AfterMirrors, MirrorFailure, SourceError};

/// How long a mirror that failed is not asked again.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// Hears of each mirror that fails.
type Hear = dyn Fn(&MirrorFailure) + Send + Sync;

/// What is known of mirrors that failed; clones know the same.
#[derive(Clone, Default)]
pub struct Mirrors {
    /// By address, and by address and repository where only that failed.
    failed: Arc<Mutex<BTreeMap<String, (Instant, String)>>>,
    hear: Option<Arc<Hear>>,
}

impl Mirrors {
    /// Has `hear` told of each that fails.
    #[must_use]
    pub fn heard_by(hear: impl Fn(&MirrorFailure) + Send + Sync + 'static) -> Self {
        Self {
            failed: Arc::default(),
            hear: Some(Arc::new(hear)),
        }
    }

    /// Why `host` is not to be asked just now, if it is not.
    fn recall(&self, host: &Host) -> Option<MirrorFailure> {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = [host.address(), host.address_of_repository()];
        let mut known = keys.iter().filter_map(|key| failed.get(key));
        let (_, reason) = known.find(|(since, _)| since.elapsed() < LEFT_ALONE)?;
        Some(MirrorFailure {
            mirror: host.name().to_owned(),
            reason: reason.clone(),
        })
    }

    /// Leaves `host` alone for a while, after it failed.
    pub(super) fn failed(&self, host: &Host, error: &SourceError) -> MirrorFailure {
        let key = match error {
            SourceError::Unavailable { .. } | SourceError::Tls { .. } => host.address(),
            _ => host.address_of_repository(),
        };
        self.leave(host, key, error.with_causes())
    }

    /// Leaves `host` alone for a while, after it sent something else than what it was asked for.
    pub(super) fn lied(&self, host: &Host, digest: &Digest) {
        let reason = format!("what it sent is not {digest}");
        self.leave(host, host.address_of_repository(), reason);
    }

    fn leave(&self, host: &Host, key: String, reason: String) -> MirrorFailure {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.insert(key, (Instant::now(), reason.clone()));
        drop(failed);
        let mirror = host.name().to_owned();
        let failure = MirrorFailure { mirror, reason };
        if let Some(hear) = &self.hear {
            hear(&failure);
        }
        failure
    }

    /// The bytes of a blob from a mirror. What goes wrong with them is the mirror's fault, and
    /// whoever reads them may ask again, as somebody else is asked then.
    pub(super) fn watched<'a>(
        &'a self,
        stream: impl Stream<Item = Result<Bytes, SourceError>> + Send + Unpin + 'a,
        (host, spent): (&'a Host, &'a Spent),
        blob: &Descriptor,
        left: u64,
    ) -> impl Stream<Item = Result<Bytes, SourceError>> + Send + 'a {
        let (digest, size) = (blob.digest, blob.size);
        stream::unfold(Some((stream, left)), move |state| async move {
            let (mut stream, left) = state?;
            let error = match stream.next().await {
                Some(Ok(bytes)) => {
                    let left = left.saturating_sub(bytes.len() as u64);
                    return Some((Ok(bytes), Some((stream, left))));
                }
                None if left == 0 => return None,
                None => SourceError::SizeMismatch {
                    digest: Box::new(digest),
                    expected: size,
                    actual: size - left,
                },
                Some(Err(error)) => error,
            };
            let mirror = self.failed(host, &error).mirror;
            spent.add(digest, host);
            let source = Box::new(error);
            Some((Err(SourceError::Mirror { mirror, source }), None))
        })
    }
}

impl fmt::Debug for Mirrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        f.debug_set().entries(failed.keys()).finish()
    }
}

/// A way through the places that may be asked for something.
pub(super) struct Tour<'a> {
    registry: &'a Registry,
    /// Who is asked now.
    now: &'a Arc<Host>,
    /// Those after it; the last of them answers for all.
    hosts: std::vec::IntoIter<&'a Arc<Host>>,
    failures: Vec<MirrorFailure>,
}

impl<'a> Tour<'a> {
    /// Begins where `needed` may be asked for and has not failed just now.
    ///
    /// Nobody is asked twice for a `digest` that he failed with, however long ago; but the last.
    pub(super) fn begin(
        registry: &'a Registry,
        needed: Capability,
        digest: Option<&Digest>,
    ) -> Result<Self, SourceError> {
        let able = registry.hosts.iter().filter(|host| host.may(needed));
        let mut able: Vec<_> = able.collect();
        let Some(last) = able.pop() else {
            return Err(SourceError::NobodyToAsk {
                registry: registry.image.registry().to_owned(),
                needed: needed.as_str(),
            });
        };
        let mut failures = Vec::new();
        let mut hosts = Vec::new();
        for host in able {
            match registry.mirrors.recall(host) {
                Some(failure) => failures.push(failure),
                None if digest.is_some_and(|digest| registry.spent.has(digest, host)) => {}
                None => hosts.push(host),
            }
        }
        hosts.push(last);
        let mut hosts = hosts.into_iter();
        let now = hosts.next().expect("the last was pushed above");
        Ok(Self {
            registry,
            hosts,
            now,
            failures,
        })
    }

    /// Whom to ask.
    pub(super) fn host(&self) -> &'a Arc<Host> {
        self.now
    }

    /// Tells whether there is nobody else to ask.
    pub(super) fn is_last(&self) -> bool {
        self.hosts.as_slice().is_empty()
    }

    /// Goes on to the next, who may have what this one has not; that is no failure of a mirror's.
    /// Tells whether there is one.
    pub(super) fn pass(&mut self) -> bool {
        let next = self.hosts.next();
        if let Some(next) = next {
            self.now = next;
        }
        next.is_some()
    }

    /// What came of it, unless somebody else is to be asked, who is the next then.
    pub(super) fn judge<T>(
        &mut self,
        answer: Result<T, SourceError>,
    ) -> Option<Result<T, SourceError>> {
        let error = match answer {
            Ok(answer) => return Some(Ok(answer)),
            Err(error) => error,
        };
        match self.hosts.next() {
            Some(next) => {
                let failure = self.registry.mirrors.failed(self.now, &error);
                self.failures.push(failure);
                self.now = next;
                None
            }
            None => Some(Err(AfterMirrors::wrap(
                error,
                std::mem::take(&mut self.failures),
            ))),
        }
    }
}

/// Which mirrors failed with which digests, for as long as the registry is open.
#[derive(Debug, Default)]
pub(super) struct Spent(Mutex<BTreeSet<(Digest, String)>>);

impl Spent {
    pub(super) fn add(&self, digest: Digest, host: &Host) {
        let mut spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spent.insert((digest, host.address()));
    }

    fn has(&self, digest: &Digest, host: &Host) -> bool {
        let spent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        spent.contains(&(*digest, host.address()))
    }
}

/// Which mirrors a blob's bytes are from, until it is known whether they are right.
#[derive(Debug, Default)]
pub(super) struct Givers(Mutex<BTreeMap<Digest, Vec<Arc<Host>>>>);

impl Givers {
    pub(super) fn add(&self, digest: Digest, host: &Arc<Host>) {
        let mut givers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let givers = givers.entry(digest).or_default();
        if !givers.iter().any(|known| Arc::ptr_eq(known, host)) {
            givers.push(Arc::clone(host));
        }
    }

    pub(super) fn take(&self, digest: &Digest) -> Vec<Arc<Host>> {
        let mut givers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        givers.remove(digest).unwrap_or_default()
    }
}
