//! A registry, read over HTTP within limits; `push` writes to one.
//!
//! ```text
//! hosts_file, hosts, trust   what the operator says of a registry: its mirrors, its certificates
//!   └ mod, mirrors           one place after the other, until one has what is asked for
//!       └ host, push,       one place: requests, and what of the answers is taken
//!         ranges, attached
//!           └ auth           who we are to it
//!               └ transport  HTTP within limits, to where `address` allows, by `proxies`
//! ```
//!
//! `oci-client` knows the reference grammar and the error bodies. The requests are our own:
//! a safe pull needs a cap on every body, a look at Content-Range, retries and a new token in
//! mid-work, and that crate hides what these need.
//!
//! Format: OCI distribution-spec v1.1.

mod hosts_file;
mod hosts;
mod trust;
mod mirrors;
mod host;
mod push;
mod ranges;
mod attached;
mod auth;
mod challenge;
mod transport;
mod proxies;
mod address;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::oci::manifest::MAX_DOCUMENT_BYTES;
use crate::oci::{Descriptor, Digest, RegistryReference};
use crate::signature::Place;
use crate::source::{BlobStream, RawDocument, Source, SourceError, SourceOptions, Wanted};

use host::Host;
pub use hosts::{ToldHosts, told};
use hosts_file::Capability;
pub use mirrors::Mirrors;
use mirrors::{Givers, Spent, Tour};
pub use proxies::{Proxies, ProxySetting};
pub use push::{UploadEvent, Uploaded};
pub use transport::Timeouts;

/// One repository of a registry, opened for one reference.
///
/// One value asks for one token per kind of access and place, however many requests it makes.
pub struct Registry {
    image: RegistryReference,
    /// The places that may have it, in the order in which they are asked; the last is the registry
    /// itself, or what the operator has in its stead.
    hosts: Vec<Arc<Host>>,
    mirrors: Mirrors,
    givers: Givers,
    spent: Spent,
}

impl Registry {
    /// Opens `image`; connects to nothing yet.
    ///
    /// Errors if the registry is at an address that nobody is to go to, or if a file about it can
    /// not be understood.
    pub fn open(image: RegistryReference, options: &SourceOptions) -> Result<Self, SourceError> {
        Self::open_with_timeouts(image, options, Timeouts::default())
    }

    /// Opens `image` with another patience than the default.
    pub fn open_with_timeouts(
        image: RegistryReference,
        options: &SourceOptions,
        timeouts: Timeouts,
    ) -> Result<Self, SourceError> {
        let (registry, repository) = (image.registry(), image.repository());
        // Where requests go is not always what is typed: Docker's hub has another name for it.
        let typed = oci_client::Reference::with_tag(registry.into(), repository.into(), "".into());
        let places = hosts::places(registry, typed.resolve_registry(), options)?;
        let last = places.len() - 1;
        let hosts = places.into_iter().enumerate().map(|(number, place)| {
            let host = Host::new(&image, place, options, timeouts);
            Arc::new(match number {
                number if number == last => host,
                _ => host.asked_once(),
            })
        });
        Ok(Self {
            hosts: hosts.collect(),
            image,
            mirrors: options.mirrors.clone(),
            givers: Givers::default(),
            spent: Spent::default(),
        })
    }

    async fn by_tag(&self, tag: &str) -> Result<RawDocument, SourceError> {
        let mut tour = Tour::begin(self, Capability::Resolve, None)?;
        loop {
            let answer = tour.host().by_tag(tag).await;
            if let Some(result) = tour.judge(answer) {
                return result;
            }
        }
    }

    async fn ask_tag(&self, tag: &str) -> Result<Option<Digest>, SourceError> {
        let mut tour = Tour::begin(self, Capability::Resolve, None)?;
        loop {
            let answer = tour.host().ask_tag(tag).await;
            if let Some(result) = tour.judge(answer) {
                return result;
            }
        }
    }

    async fn by_digest(
        &self,
        digest: &Digest,
        entry: Option<&Descriptor>,
    ) -> Result<RawDocument, SourceError> {
        let mut tour = Tour::begin(self, Capability::Pull, Some(digest))?;
        loop {
            let answer = tour.host().by_digest(digest, entry).await;
            if let Some(result) = tour.judge(answer) {
                return result;
            }
        }
    }
}

#[async_trait]
impl Source for Registry {
    async fn document(&self, wanted: Wanted<'_>) -> Result<RawDocument, SourceError> {
        match (wanted, self.image.digest(), self.image.tag()) {
            (Wanted::Reference, Some(digest), _) => self.by_digest(digest, None).await,
            (Wanted::Reference, None, tag) => self.by_tag(tag.unwrap_or("latest")).await,
            (Wanted::Entry(entry), ..) if entry.size > MAX_DOCUMENT_BYTES => {
                Err(SourceError::TooLarge {
                    what: format!("{} ({})", self.image, entry.digest),
                    limit: MAX_DOCUMENT_BYTES,
                })
            }
            (Wanted::Entry(entry), ..) => self.by_digest(&entry.digest, Some(entry)).await,
        }
    }

    async fn current(&self) -> Result<Option<Digest>, SourceError> {
        match (self.image.digest(), self.image.tag()) {
            (Some(digest), _) => Ok(Some(*digest)),
            (None, tag) => self.ask_tag(tag.unwrap_or("latest")).await,
        }
    }

    async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream<'_>, SourceError> {
        let mut tour = Tour::begin(self, Capability::Pull, Some(&blob.digest))?;
        loop {
            let (host, is_last) = (tour.host(), tour.is_last());
            let answer = host.patiently_open_blob(blob, offset, None).await;
            let Some(opened) = tour.judge(answer) else {
                continue;
            };
            let (response, offset) = opened?;
            let bytes = Box::pin(ranges::read(host, blob, response, offset));
            if is_last {
                return Ok(BlobStream { offset, bytes });
            }
            self.givers.add(blob.digest, host);
            let bytes = self
                .mirrors
                .watched(bytes, (host, &self.spent), blob, blob.size - offset);
            return Ok(BlobStream {
                offset,
                bytes: Box::pin(bytes),
            });
        }
    }

    async fn attached(
        &self,
        digest: &Digest,
        place: Place,
    ) -> Result<Option<RawDocument>, SourceError> {
        self.find_attached(digest, place).await
    }

    fn distrust(&self, digest: &Digest) -> bool {
        let givers = self.givers.take(digest);
        for host in &givers {
            self.mirrors.lied(host, digest);
            self.spent.add(*digest, host);
        }
        !givers.is_empty()
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.image)
    }
}
