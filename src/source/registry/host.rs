//! One place that has the images of a registry: what is asked of it, and what of its answers is
//! taken.

use std::fmt;

use reqwest::header::{self, HeaderMap};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use crate::oci::manifest::{DOCUMENT_TYPES, MAX_DOCUMENT_BYTES};
use crate::oci::{Descriptor, Digest, Printable, RegistryReference};
use crate::source::registry::auth::{Access, Endpoint, Grant, Session};
use crate::source::registry::hosts::Place;
use crate::source::registry::hosts_file::Capability;
use crate::source::registry::transport::{TRIES, Timeouts, Transport, retrying};
use crate::source::{RawDocument, SourceError, SourceOptions, Unavailability, Violation};

/// One repository at one place.
pub(super) struct Host {
    pub(super) image: RegistryReference,
    pub(super) transport: Transport,
    pub(super) session: Session,
    capabilities: Vec<Capability>,
    /// The registry that it stands for, where that is another.
    stands_for: Option<String>,
    pub(super) headers: HeaderMap,
    /// How often it is asked for one thing.
    pub(super) tries: u32,
}

impl Host {
    pub(super) fn new(
        image: &RegistryReference,
        place: Place,
        options: &SourceOptions,
        timeouts: Timeouts,
    ) -> Self {
        let Place {
            name,
            bases,
            policy,
            stands_for,
            capabilities,
            trust,
            headers,
            dial_timeout,
        } = place;
        let timeouts = Timeouts {
            connect: dial_timeout.unwrap_or(timeouts.connect),
            ..timeouts
        };
        let repository = image.repository().to_owned();
        let credentials = options.credentials.clone();
        let proxies = options.proxies.clone();
        Self {
            image: image.clone(),
            session: Session::new(name.clone(), bases, repository, credentials),
            transport: Transport::new(image.to_string(), name, policy, trust, proxies, timeouts),
            capabilities,
            stands_for,
            headers,
            tries: TRIES,
        }
    }

    /// The same as one of several: it is asked once, and then another.
    pub(super) fn asked_once(self) -> Self {
        Self { tries: 1, ..self }
    }

    /// Host and port.
    pub(super) fn name(&self) -> &str {
        &self.transport.registry
    }

    /// Where its API is.
    pub(super) fn address(&self) -> String {
        let mut bases = self.session.bases().iter();
        bases.next().map(Url::to_string).unwrap_or_default()
    }

    /// Where the repository is.
    pub(super) fn address_of_repository(&self) -> String {
        self.address() + self.image.repository()
    }

    /// Tells whether it may be asked for what takes `needed`.
    pub(super) fn may(&self, needed: Capability) -> bool {
        self.capabilities.contains(&needed)
    }

    /// Sends a request below `/v2/<repository>/`, with whatever lets us in.
    ///
    /// Nobody is asked what they want beforehand: the first request goes as it is, and a 401 is
    /// answered with a grant. A later one is answered with a new grant, once.
    pub(super) async fn request(
        &self,
        access: Access,
        method: Method,
        path: &str,
        prepare: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, SourceError> {
        let client = self.transport.client()?;
        let build = |base: &Url| {
            let mut url = base.clone();
            url.set_path(&format!(
                "{}{}/{path}",
                base.path(),
                self.image.repository()
            ));
            if let Some(registry) = &self.stands_for {
                // As containerd tells it, for a cache of several registries.
                url.query_pairs_mut().append_pair("ns", registry);
            }
            let request = client.request(method.clone(), url);
            prepare(request.headers(self.headers.clone()))
        };
        let (endpoint, first) = self.session.reach(&self.transport, build).await?;
        self.authorized(access, endpoint, first, || build(&endpoint.base))
            .await
    }

    /// Sends what `build` makes until it is answered otherwise than with 401; `first` is what it
    /// was answered without a grant.
    pub(super) async fn authorized(
        &self,
        access: Access,
        endpoint: &Endpoint,
        first: Option<Response>,
        build: impl Fn() -> RequestBuilder,
    ) -> Result<Response, SourceError> {
        let (transport, session) = (&self.transport, &self.session);
        let mut answer = first;
        let mut grant = Grant::anonymous();
        if answer.as_ref().is_none_or(is_unauthorized) {
            grant = session.grant(transport, endpoint, access).await?;
            if grant.authorization.is_some()
                && let Some(refused) = answer.take()
            {
                // Read to its end, it leaves its connection to the next.
                drop(transport.words(refused).await);
            }
        }
        let mut renewed = false;
        loop {
            let response = match answer.take() {
                Some(first) => first,
                None => {
                    let mut headers = HeaderMap::new();
                    if let Some(authorization) = &grant.authorization {
                        headers.insert(header::AUTHORIZATION, authorization.clone());
                    }
                    transport.send(build().headers(headers)).await?
                }
            };
            let status = response.status();
            if ![StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) {
                return Ok(response);
            }
            let headers = response.headers().clone();
            // What somebody asks for to whom a redirect led is not the registry's question.
            let is_own = response.url().origin() == endpoint.base.origin();
            let words = transport.words(response).await;
            let is_first = !std::mem::replace(&mut renewed, true) && is_own;
            if is_first && (status == StatusCode::UNAUTHORIZED || may_have_expired(&grant, &words))
            {
                let newer = session.renew(transport, endpoint, access, &grant, &headers);
                if let Some(newer) = newer.await? {
                    grant = newer;
                    continue;
                }
            }
            return Err(session.refused(grant.user, words));
        }
    }

    /// Fetches a document of at most `limit` bytes; none if there is none at that path.
    pub(super) async fn fetch(
        &self,
        path: &str,
        limit: u64,
    ) -> Result<Option<Fetched>, SourceError> {
        let accept = DOCUMENT_TYPES.join(", ");
        let response = self
            .request(Access::Pull, Method::GET, path, |request| {
                request.header(header::ACCEPT, &accept)
            })
            .await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            StatusCode::PARTIAL_CONTENT => {
                return Err(self.transport.protocol(Violation::UnaskedPart));
            }
            _ => return Err(self.transport.unexpected(response).await),
        }
        let media_type = media_type(response.headers());
        let claimed = claimed_digest(response.headers());
        let what = format!("{} ({path})", self.image);
        let bytes = self.transport.read(response, limit, &what).await?;
        if let Some(claimed) = claimed {
            self.verify(&claimed, &bytes)?;
        }
        Ok(Some(Fetched { bytes, media_type }))
    }

    pub(super) async fn by_tag(&self, tag: &str) -> Result<RawDocument, SourceError> {
        let path = format!("manifests/{tag}");
        let fetched = retrying(self.tries, || self.fetch(&path, MAX_DOCUMENT_BYTES));
        let fetched = self.transport.within(fetched).await?;
        let fetched = fetched.ok_or_else(|| self.image_not_found())?;
        Ok(RawDocument {
            digest: Digest::of(&fetched.bytes),
            bytes: fetched.bytes,
            media_type: fetched.media_type,
        })
    }

    /// The digest of the document that a tag leads to, if the registry tells it.
    pub(super) async fn ask_tag(&self, tag: &str) -> Result<Option<Digest>, SourceError> {
        let asked = retrying(self.tries, || self.ask_tag_once(tag));
        self.transport.within(asked).await
    }

    async fn ask_tag_once(&self, tag: &str) -> Result<Option<Digest>, SourceError> {
        let accept = DOCUMENT_TYPES.join(", ");
        let path = format!("manifests/{tag}");
        let response = self
            .request(Access::Pull, Method::HEAD, &path, |request| {
                request.header(header::ACCEPT, &accept)
            })
            .await?;
        match response.status() {
            StatusCode::OK => Ok(claimed_digest(response.headers())),
            StatusCode::NOT_FOUND => Err(self.image_not_found()),
            // Whoever does not answer this may answer the whole question.
            _ => Ok(None),
        }
    }

    /// Fetches the document of a digest, which `entry` of an index names or else the reference.
    pub(super) async fn by_digest(
        &self,
        digest: &Digest,
        entry: Option<&Descriptor>,
    ) -> Result<RawDocument, SourceError> {
        let limit = entry.map_or(MAX_DOCUMENT_BYTES, |entry| entry.size);
        let fetched = retrying(self.tries, || self.fetch_anywhere(digest, limit, entry));
        let fetched = self.transport.within(fetched).await?;
        let fetched = fetched.ok_or_else(|| match entry {
            Some(_) => self.blob_not_found(digest),
            None => self.image_not_found(),
        })?;
        let actual = fetched.bytes.len() as u64;
        if let Some(entry) = entry.filter(|entry| entry.size != actual) {
            return Err(SourceError::SizeMismatch {
                digest: Box::new(*digest),
                expected: entry.size,
                actual,
            });
        }
        self.verify(digest, &fetched.bytes)?;
        Ok(RawDocument {
            bytes: fetched.bytes,
            digest: *digest,
            media_type: fetched.media_type,
        })
    }

    /// Looks among the manifests, then among the blobs: common registries take a manifest of the
    /// IronCore specification's own type only as a blob, and answer 404 or, for one that they
    /// hold in this way, 500 when asked for it as a manifest.
    async fn fetch_anywhere(
        &self,
        digest: &Digest,
        limit: u64,
        entry: Option<&Descriptor>,
    ) -> Result<Option<Fetched>, SourceError> {
        let as_manifest = match self.fetch(&format!("manifests/{digest}"), limit).await {
            Ok(None) => Ok(None),
            Err(error) if is_internal(&error) => Err(error),
            result => return result,
        };
        match self.fetch(&format!("blobs/{digest}"), limit).await? {
            None => as_manifest,
            Some(blob) => Ok(Some(Fetched {
                bytes: blob.bytes,
                // A blob's Content-Type says nothing about what is in it.
                media_type: entry.map(|entry| entry.media_type.clone()),
            })),
        }
    }

    fn verify(&self, expected: &Digest, bytes: &[u8]) -> Result<(), SourceError> {
        let mut hasher = expected.hasher();
        hasher.update(bytes);
        let actual = hasher.finish();
        if actual == *expected {
            return Ok(());
        }
        Err(SourceError::DigestMismatch {
            image: self.image.to_string(),
            expected: Box::new(*expected),
            actual: Box::new(actual),
        })
    }

    pub(super) fn image_not_found(&self) -> SourceError {
        SourceError::ImageNotFound {
            image: self.image.to_string(),
        }
    }

    fn blob_not_found(&self, digest: &Digest) -> SourceError {
        SourceError::BlobNotFound {
            image: self.image.to_string(),
            digest: Box::new(*digest),
        }
    }

    /// Opens a blob as [`Host::open_blob`] does, as often as it takes.
    pub(super) async fn patiently_open_blob(
        &self,
        blob: &Descriptor,
        offset: u64,
        end: Option<u64>,
    ) -> Result<(Response, u64), SourceError> {
        retrying(self.tries, || self.open_blob(blob, offset, end)).await
    }

    /// Opens a blob, once, and returns the answer with the offset that it starts at. Asks for all
    /// that follows, or for the bytes up to `end`, which the answer then need not stop at.
    pub(super) async fn open_blob(
        &self,
        blob: &Descriptor,
        offset: u64,
        end: Option<u64>,
    ) -> Result<(Response, u64), SourceError> {
        let path = format!("blobs/{}", blob.digest);
        let response = self
            .request(Access::Pull, Method::GET, &path, |request| {
                match (offset, end) {
                    (0, None) => request,
                    (_, None) => request.header(header::RANGE, format!("bytes={offset}-")),
                    (_, Some(end)) => {
                        let last = end.saturating_sub(1);
                        request.header(header::RANGE, format!("bytes={offset}-{last}"))
                    }
                }
            })
            .await?;
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT if offset == 0 && end.is_none() => {
                return Err(self.transport.protocol(Violation::UnaskedPart));
            }
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(header::CONTENT_RANGE);
                let range = range.and_then(|range| range.to_str().ok()).unwrap_or("");
                if !is_rest(range, offset, blob.size) {
                    return Err(self.transport.protocol(Violation::WrongPart {
                        offset,
                        size: blob.size,
                        got: Printable(range).to_string(),
                    }));
                }
                offset
            }
            StatusCode::NOT_FOUND => return Err(self.blob_not_found(&blob.digest)),
            _ => return Err(self.transport.unexpected(response).await),
        };
        let announced = response
            .content_length()
            .map(|length| start.saturating_add(length));
        match announced {
            Some(actual) if actual > blob.size || (start == 0 && actual != blob.size) => {
                Err(SourceError::SizeMismatch {
                    digest: Box::new(blob.digest),
                    expected: blob.size,
                    actual,
                })
            }
            _ => Ok((response, start)),
        }
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.address_of_repository())
    }
}

/// A document as it came.
pub(super) struct Fetched {
    pub(super) bytes: Vec<u8>,
    pub(super) media_type: Option<String>,
}

/// The Content-Type without parameters; none where it says only that there are bytes or JSON.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let media_type = value.split(';').next().unwrap_or(value).trim();
    match media_type {
        "" | "application/json" | "application/octet-stream" => None,
        media_type => Some(media_type.to_ascii_lowercase()),
    }
}

/// The digest that the registry says it sends; none if it uses an algorithm that we do not have.
fn claimed_digest(headers: &HeaderMap) -> Option<Digest> {
    let value = headers.get("docker-content-digest")?.to_str().ok()?;
    value.parse().ok()
}

/// Tells whether a 403 may mean that our grant has expired, for which some registries have no
/// other status: they say so in words, or, asked for the head alone, nothing.
fn may_have_expired(grant: &Grant, words: &str) -> bool {
    let says_nothing = StatusCode::FORBIDDEN.canonical_reason() == Some(words);
    grant.authorization.is_some()
        && (says_nothing || words.to_ascii_lowercase().contains("expired"))
}

fn is_unauthorized(response: &Response) -> bool {
    response.status() == StatusCode::UNAUTHORIZED
}

/// Tells whether a Content-Range is of bytes from `offset` on, within a blob of `size` bytes.
fn is_rest(range: &str, offset: u64, size: u64) -> bool {
    let parse = || {
        let (part, total) = range.strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = part.split_once('-')?;
        let total = match total {
            "*" => size,
            total => total.parse().ok()?,
        };
        Some((first.parse().ok()?, last.parse::<u64>().ok()?, total))
    };
    parse().is_some_and(|(first, last, total): (u64, u64, u64)| {
        first == offset && total == size && (offset..size).contains(&last)
    })
}

fn is_internal(error: &SourceError) -> bool {
    matches!(
        error,
        SourceError::Unavailable {
            cause: Unavailability::Status { status: 500, .. },
            ..
        }
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_rest_from_the_offset_on_is_taken_for_it() {
        assert!(is_rest("bytes 5000-9999/10000", 5000, 10000));
        assert!(is_rest("bytes 5000-9999/*", 5000, 10000));
        assert!(is_rest("bytes 5000-6999/10000", 5000, 10000));
        for range in [
            "",
            "bytes 0-9999/10000",
            "bytes 5001-9999/10000",
            "bytes 5000-10000/10000",
            "bytes 5000-4999/10000",
            "bytes 5000-9999/20000",
            "bytes 5000-/10000",
            "bytes */10000",
            "items 5000-9999/10000",
            "5000-9999/10000",
            "bytes 5000-99999999999999999999/10000",
        ] {
            assert!(!is_rest(range, 5000, 10000), "{range}");
        }
    }

    #[test]
    fn a_content_type_that_says_nothing_is_none() {
        for (value, expected) in [
            ("application/json", None),
            ("application/json; charset=utf-8", None),
            ("application/octet-stream", None),
            ("text/html; charset=utf-8", Some("text/html")),
            (
                "application/vnd.oci.image.index.v1+json",
                Some("application/vnd.oci.image.index.v1+json"),
            ),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, value.parse().unwrap());
            assert_eq!(media_type(&headers).as_deref(), expected);
        }
        assert_eq!(media_type(&HeaderMap::new()), None);
    }
}
