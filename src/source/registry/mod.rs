//! A registry, read over HTTP within limits; `push` writes to one.
//!
//! `oci-client` knows the reference grammar and the error bodies. The requests are our own:
//! a safe pull needs a cap on every body, a look at Content-Range, retries and a new token in
//! mid-work, and that crate hides what these need.
//!
//! Format: OCI distribution-spec v1.1.

mod address;
mod auth;
mod challenge;
mod push;
mod ranges;
mod transport;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use reqwest::header::{self, HeaderMap};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};

use crate::oci::manifest::{DOCUMENT_TYPES, MAX_DOCUMENT_BYTES};
use crate::oci::{Descriptor, Digest, Printable, RegistryReference};
use crate::source::{
    BlobStream, RawDocument, Source, SourceError, SourceOptions, Unavailability, Violation, Wanted,
};

use auth::{Access, Endpoint, Grant, Session};
pub use transport::Timeouts;
use transport::{Transport, retrying};

/// One repository of a registry, opened for one reference.
///
/// One value asks for one token per kind of access, however many requests it makes.
pub struct Registry {
    image: RegistryReference,
    transport: Arc<Transport>,
    session: Session,
}

impl Registry {
    /// Opens `image`; connects to nothing yet.
    ///
    /// Errors if the registry is at an address that nobody is to go to.
    pub fn open(image: RegistryReference, options: &SourceOptions) -> Result<Self, SourceError> {
        Self::open_with_timeouts(image, options, Timeouts::default())
    }

    /// Opens `image` with another patience than the default.
    pub fn open_with_timeouts(
        image: RegistryReference,
        options: &SourceOptions,
        timeouts: Timeouts,
    ) -> Result<Self, SourceError> {
        let registry = image.registry().to_owned();
        let repository = image.repository().to_owned();
        // Where requests go is not always what is typed: Docker's hub has another name for it.
        let host = oci_client::Reference::with_tag(registry.clone(), repository.clone(), "".into())
            .resolve_registry()
            .to_owned();
        let (bases, policy) = address::registry(&host, options.tls).map_err(|reason| {
            SourceError::RegistryRefused {
                registry: registry.clone(),
                reason,
            }
        })?;
        let transport = Transport::new(image.to_string(), registry.clone(), policy, timeouts)?;
        let credentials = options.credentials.clone();
        Ok(Self {
            image,
            transport: Arc::new(transport),
            session: Session::new(registry, bases, repository, credentials),
        })
    }

    /// Sends a request below `/v2/<repository>/`, with whatever lets us in.
    ///
    /// Nobody is asked what they want beforehand: the first request goes as it is, and a 401 is
    /// answered with a grant. A later one is answered with a new grant, once.
    async fn request(
        &self,
        access: Access,
        method: Method,
        path: &str,
        prepare: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, SourceError> {
        let path = format!("{}/{path}", self.image.repository());
        let build = |base: &Url| {
            let url = format!("{base}{path}");
            prepare(self.transport.client.request(method.clone(), url))
        };
        let (endpoint, first) = self.session.reach(&self.transport, build).await?;
        self.authorized(access, endpoint, first, || build(&endpoint.base))
            .await
    }

    /// Sends what `build` makes until it is answered otherwise than with 401; `first` is what it
    /// was answered without a grant.
    async fn authorized(
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
                    let mut request = build();
                    if let Some(authorization) = &grant.authorization {
                        request = request.header(header::AUTHORIZATION, authorization);
                    }
                    transport.send(request).await?
                }
            };
            if is_unauthorized(&response) && !renewed {
                renewed = true;
                let headers = response.headers();
                let newer = session.renew(transport, endpoint, access, &grant, headers);
                if let Some(newer) = newer.await? {
                    grant = newer;
                    continue;
                }
            }
            if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&response.status()) {
                let words = transport.words(response).await;
                return Err(session.refused(grant.user, words));
            }
            return Ok(response);
        }
    }

    /// Fetches a document of at most `limit` bytes; none if there is none at that path.
    async fn fetch(&self, path: &str, limit: u64) -> Result<Option<Fetched>, SourceError> {
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

    async fn by_tag(&self, tag: &str) -> Result<RawDocument, SourceError> {
        let path = format!("manifests/{tag}");
        let fetched = retrying(|| self.fetch(&path, MAX_DOCUMENT_BYTES)).await?;
        let fetched = fetched.ok_or_else(|| self.image_not_found())?;
        Ok(RawDocument {
            digest: Digest::of(&fetched.bytes),
            bytes: fetched.bytes,
            media_type: fetched.media_type,
        })
    }

    /// The digest of the document that a tag leads to, if the registry tells it.
    async fn ask_tag(&self, tag: &str) -> Result<Option<Digest>, SourceError> {
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

    /// Fetches the document of a digest; none if there is none.
    async fn by_digest(
        &self,
        digest: &Digest,
        entry: Option<&Descriptor>,
    ) -> Result<Option<RawDocument>, SourceError> {
        let limit = entry.map_or(MAX_DOCUMENT_BYTES, |entry| entry.size);
        let Some(fetched) = retrying(|| self.fetch_anywhere(digest, limit, entry)).await? else {
            return Ok(None);
        };
        let actual = fetched.bytes.len() as u64;
        if let Some(entry) = entry.filter(|entry| entry.size != actual) {
            return Err(SourceError::SizeMismatch {
                digest: Box::new(*digest),
                expected: entry.size,
                actual,
            });
        }
        self.verify(digest, &fetched.bytes)?;
        Ok(Some(RawDocument {
            bytes: fetched.bytes,
            digest: *digest,
            media_type: fetched.media_type,
        }))
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

    fn image_not_found(&self) -> SourceError {
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

    /// Opens a blob, once, and returns the answer with the offset that it starts at. Asks for all
    /// that follows, or for the bytes up to `end`, which the answer then need not stop at.
    async fn open_blob(
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
        let announced = response.content_length().map(|length| start + length);
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

#[async_trait]
impl Source for Registry {
    async fn document(&self, wanted: Wanted<'_>) -> Result<RawDocument, SourceError> {
        match (wanted, self.image.digest(), self.image.tag()) {
            (Wanted::Reference, Some(digest), _) => {
                let document = self.by_digest(digest, None).await?;
                document.ok_or_else(|| self.image_not_found())
            }
            (Wanted::Reference, None, tag) => self.by_tag(tag.unwrap_or("latest")).await,
            (Wanted::Entry(entry), ..) if entry.size > MAX_DOCUMENT_BYTES => {
                Err(SourceError::TooLarge {
                    what: format!("{} ({})", self.image, entry.digest),
                    limit: MAX_DOCUMENT_BYTES,
                })
            }
            (Wanted::Entry(entry), ..) => {
                let document = self.by_digest(&entry.digest, Some(entry)).await?;
                document.ok_or_else(|| self.blob_not_found(&entry.digest))
            }
        }
    }

    async fn current(&self) -> Result<Option<Digest>, SourceError> {
        match (self.image.digest(), self.image.tag()) {
            (Some(digest), _) => Ok(Some(*digest)),
            (None, tag) => retrying(|| self.ask_tag(tag.unwrap_or("latest"))).await,
        }
    }

    async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream<'_>, SourceError> {
        let (response, offset) = retrying(|| self.open_blob(blob, offset, None)).await?;
        Ok(BlobStream {
            offset,
            bytes: Box::pin(ranges::read(self, blob, response, offset)),
        })
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registry({})", self.image)
    }
}

/// A document as it came.
struct Fetched {
    bytes: Vec<u8>,
    media_type: Option<String>,
}

/// The Content-Type without parameters; none where it says only that there are bytes or JSON.
fn media_type(headers: &HeaderMap) -> Option<String> {
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
