//! Writing to a registry: blobs first, then the documents that name them.
//!
//! ```text
//! POST uploads/?mount&from ─201→ it is there, mounted from another repository
//!          │202: an address for the upload
//!          ├─ small ─ PUT ?digest, all of it ─────────────────────┬─201→ it is there
//!          └─ large ─ PATCH, from the offset on ─202→ PUT ?digest ┘
//!                       ↑                │ broken
//!                       └── offset ← GET ┴ unknown → POST
//! ```
//!
//! Format: OCI distribution-spec v1.1, "Pushing blobs", "Pushing manifests".

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, TryStreamExt, stream};
use reqwest::header::{self, HeaderMap};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, Url};

use crate::oci::{Descriptor, Digest, Printable};
use crate::source::layout::Layout;
use crate::source::registry::auth::Access;
use crate::source::registry::host::Host;
use crate::source::registry::hosts_file::Capability;
use crate::source::registry::transport::{TRIES, retrying};
use crate::source::registry::{Registry, address};
use crate::source::{SourceError, Unavailability, Violation};

/// The largest blob that is sent as one request, which starts over when it breaks.
const WHOLE_BYTES: u64 = 16 << 20;
/// Most bytes handed over at a time; less than a connection moves while it is waited for.
const PIECE_BYTES: usize = 64 << 10;
/// Breaks of an upload that are mended without the registry having got further between them.
const MAX_BREAKS: u32 = 4;
/// First pause after a break; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// How many times longer than for other answers is waited for the one to the last byte: the
/// registry has all of the blob to put away.
const PUT_AWAY: u32 = 10;

/// How a blob came into its repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Uploaded {
    /// Its bytes were sent.
    Sent,
    /// The registry took it from another repository of its own.
    Mounted,
}

/// What is told of an upload while it goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadEvent {
    /// So many bytes of the blob have been handed over; fewer than before if it had to go back.
    Sent(u64),
    /// The upload broke for this reason, and goes on.
    Broken(String),
}

impl Registry {
    /// Asks for leave to mount from `repositories` of the same registry together with the leave to
    /// write; without effect once that has been asked for.
    pub fn will_mount_from(&self, repositories: Vec<String>) -> Result<(), SourceError> {
        self.host_for_push()?.session.read_too(repositories);
        Ok(())
    }

    /// Tells whether the repository has a blob.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, SourceError> {
        self.host_for_push()?.has_blob(digest).await
    }

    /// Uploads a blob of `content`, or has it mounted from another repository of the registry,
    /// where one is named that should have it.
    ///
    /// An upload that breaks goes on where the registry says that it has got to, and starts over
    /// where it does not say.
    pub async fn upload_blob(
        &self,
        blob: &Descriptor,
        content: &Layout,
        mount_from: Option<&str>,
        tell: impl Fn(UploadEvent) + Send + Sync + 'static,
    ) -> Result<Uploaded, SourceError> {
        let host = self.host_for_push()?;
        let begun = match mount_from {
            Some(other) => match host.begin(Some((&blob.digest, other))).await {
                // The other repository may be closed to us, and mounting be unknown.
                Err(error) if !error.is_retryable() => host.begin(None).await?,
                result => result?,
            },
            None => host.begin(None).await?,
        };
        let Begun::At(url) = begun else {
            return Ok(Uploaded::Mounted);
        };
        let upload = Upload {
            host,
            blob,
            content,
            tell: Arc::new(tell),
            url,
            offset: 0,
        };
        upload.run().await?;
        Ok(Uploaded::Sent)
    }

    /// Uploads an index or manifest under `tag`, or under its digest alone, and returns that.
    pub async fn upload_document(
        &self,
        tag: Option<&str>,
        bytes: &[u8],
        media_type: &str,
    ) -> Result<Digest, SourceError> {
        let host = self.host_for_push()?;
        let digest = Digest::of(bytes);
        let name = tag.map_or_else(|| digest.to_string(), str::to_owned);
        let path = format!("manifests/{name}");
        let body = Bytes::copy_from_slice(bytes);
        let headers = retrying(TRIES, || async {
            let response = host
                .request(Access::Push, Method::PUT, &path, |request| {
                    request
                        .header(header::CONTENT_TYPE, media_type)
                        .body(body.clone())
                })
                .await?;
            host.created(response, &format!("manifest {name}")).await
        })
        .await?;
        let stored = headers.get("docker-content-digest");
        match stored.and_then(|stored| stored.to_str().ok()) {
            Some(stored) if stored != digest.to_string() => {
                let stored = Printable(stored).to_string();
                Err(host.transport.protocol(Violation::OtherDigest(stored)))
            }
            _ => Ok(digest),
        }
    }

    /// The first place that takes what is pushed: containerd means the same by its files.
    fn host_for_push(&self) -> Result<&Host, SourceError> {
        let mut hosts = self.hosts.iter();
        let able = hosts.find(|host| host.may(Capability::Push));
        let able = able.ok_or_else(|| SourceError::NobodyToAsk {
            registry: self.image.registry().to_owned(),
            needed: Capability::Push.as_str(),
        })?;
        Ok(able)
    }
}

impl Host {
    async fn has_blob(&self, digest: &Digest) -> Result<bool, SourceError> {
        let path = format!("blobs/{digest}");
        retrying(TRIES, || async {
            let response = self
                .request(Access::Push, Method::HEAD, &path, |request| request)
                .await?;
            match response.status() {
                StatusCode::OK => Ok(true),
                StatusCode::NOT_FOUND => Ok(false),
                _ => Err(self.transport.unexpected(response).await),
            }
        })
        .await
    }

    /// Begins an upload, unless `mount` names a blob and a repository from which it is mounted.
    async fn begin(&self, mount: Option<(&Digest, &str)>) -> Result<Begun, SourceError> {
        let query =
            mount.map(|(digest, from)| [("mount", digest.to_string()), ("from", from.into())]);
        retrying(TRIES, || async {
            let response = self
                .request(Access::Push, Method::POST, "blobs/uploads/", |request| {
                    let request = request.header(header::CONTENT_LENGTH, 0);
                    match &query {
                        Some(query) => request.query(query),
                        None => request,
                    }
                })
                .await?;
            match response.status() {
                StatusCode::CREATED if mount.is_some() => Ok(Begun::Mounted),
                StatusCode::ACCEPTED => self.upload_address(&response).map(Begun::At),
                StatusCode::NOT_FOUND => Err(self.image_not_found()),
                _ => Err(self.rejected(response, "an upload").await),
            }
        })
        .await
    }

    /// Where the registry wants the upload, if that is an address that we go to.
    fn upload_address(&self, answer: &Response) -> Result<Url, SourceError> {
        let location = answer.headers().get(header::LOCATION);
        let location = location.and_then(|location| location.to_str().ok());
        let url = location.and_then(|location| answer.url().join(location).ok());
        let url = url.ok_or_else(|| self.transport.protocol(Violation::NoLocation))?;
        let verdict = self.transport.policy.check(answer.url(), &url);
        verdict.map_err(|reason| SourceError::RedirectRefused {
            registry: self.transport.registry.clone(),
            target: address::shown(&url),
            reason,
        })?;
        Ok(url)
    }

    /// Sends a request to an address that carries its own permission, unless it is the registry's.
    async fn at_upload(
        &self,
        url: &Url,
        build: impl Fn() -> RequestBuilder,
    ) -> Result<Response, SourceError> {
        match self.session.endpoint() {
            Some(endpoint) if url.origin() == endpoint.base.origin() => {
                let build = || build().headers(self.headers.clone());
                self.authorized(Access::Push, endpoint, None, build).await
            }
            _ => self.transport.send(build()).await,
        }
    }

    async fn created(&self, response: Response, what: &str) -> Result<HeaderMap, SourceError> {
        match response.status() {
            StatusCode::CREATED => Ok(response.headers().clone()),
            _ => Err(self.rejected(response, what).await),
        }
    }

    async fn rejected(&self, response: Response, what: &str) -> SourceError {
        SourceError::Rejected {
            image: self.transport.image.clone(),
            what: what.to_owned(),
            status: response.status().as_u16(),
            words: self.transport.words(response).await,
        }
    }
}

/// What the registry made of the wish to upload.
enum Begun {
    Mounted,
    At(Url),
}

/// A blob on its way.
struct Upload<'a> {
    host: &'a Host,
    blob: &'a Descriptor,
    content: &'a Layout,
    tell: Arc<dyn Fn(UploadEvent) + Send + Sync>,
    /// Where the registry wants what is missing.
    url: Url,
    /// Bytes that the registry has.
    offset: u64,
}

impl Upload<'_> {
    async fn run(mut self) -> Result<(), SourceError> {
        let (mut breaks, mut furthest) = (0, 0);
        loop {
            let error = match self.send_rest().await {
                Err(error) if may_go_on(&error) => error,
                result => return result,
            };
            breaks += 1;
            if breaks >= MAX_BREAKS {
                return Err(error);
            }
            (self.tell)(UploadEvent::Broken(error.to_string()));
            tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(breaks - 1)).await;
            // It may be only the answer that did not come.
            if self.host.has_blob(&self.blob.digest).await? {
                return Ok(());
            }
            self.find_offset().await?;
            if self.offset > furthest {
                furthest = self.offset;
                breaks = 0;
            }
        }
    }

    async fn send_rest(&mut self) -> Result<(), SourceError> {
        let what = format!("blob {}", self.blob.digest);
        let size = self.blob.size;
        let mut from = self.offset;
        if size > WHOLE_BYTES && from < size {
            let response = self.send(Method::PATCH, &self.url, from).await?;
            if response.status() != StatusCode::ACCEPTED {
                return Err(self.host.rejected(response, &what).await);
            }
            self.url = self.host.upload_address(&response)?;
            from = size;
        }
        let mut url = self.url.clone();
        url.query_pairs_mut()
            .append_pair("digest", &self.blob.digest.to_string());
        let response = self.send(Method::PUT, &url, from).await?;
        self.host.created(response, &what).await.map(drop)
    }

    /// Sends the bytes from `from` on, if there are any. Waits as long as they go out.
    async fn send(&self, method: Method, url: &Url, from: u64) -> Result<Response, SourceError> {
        let transport = &self.host.transport;
        let client = transport.client_for_uploads()?;
        let size = self.blob.size;
        let body = Arc::new(Handed {
            tell: Arc::clone(&self.tell),
            bytes: AtomicU64::new(from),
            fault: Mutex::new(None),
        });
        let sending = self.host.at_upload(url, || {
            let mut request = client
                .request(method.clone(), url.clone())
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_LENGTH, size - from);
            if method == Method::PATCH {
                request = request.header(header::CONTENT_RANGE, format!("{from}-{}", size - 1));
            }
            if from == size {
                return request;
            }
            let content = self.content.clone();
            let pieces = pieces(content, self.blob.clone(), from, Arc::clone(&body));
            request.body(Body::wrap_stream(pieces))
        });
        tokio::pin!(sending);
        loop {
            let before = body.bytes.load(Ordering::Relaxed);
            let patience = match before == size {
                true => transport.timeouts.read * PUT_AWAY,
                false => transport.timeouts.read,
            };
            match tokio::time::timeout(patience, &mut sending).await {
                Ok(result) => return result.map_err(|error| body.take_fault().unwrap_or(error)),
                Err(_) if body.bytes.load(Ordering::Relaxed) == before => {
                    return Err(transport.not_available(Unavailability::Timeout));
                }
                Err(_) => {}
            }
        }
    }

    /// Asks how far the upload has got; begins another one where that is not known.
    async fn find_offset(&mut self) -> Result<(), SourceError> {
        if self.blob.size > WHOLE_BYTES
            && let Some((url, offset)) = self.ask_offset().await?
        {
            (self.url, self.offset) = (url, offset);
            return Ok(());
        }
        if let Begun::At(url) = self.host.begin(None).await? {
            self.url = url;
        }
        self.offset = 0;
        Ok(())
    }

    async fn ask_offset(&self) -> Result<Option<(Url, u64)>, SourceError> {
        let client = self.host.transport.client()?;
        let asked = retrying(TRIES, || {
            let build = || client.get(self.url.clone());
            self.host.at_upload(&self.url, build)
        });
        let response = asked.await?;
        if !response.status().is_success() {
            return Ok(None);
        }
        let range = response.headers().get(header::RANGE);
        let offset = range.and_then(|range| offset(range.to_str().ok()?, self.blob.size));
        let Some(offset) = offset else {
            return Ok(None);
        };
        let url = match response.headers().contains_key(header::LOCATION) {
            true => self.host.upload_address(&response)?,
            false => self.url.clone(),
        };
        Ok(Some((url, offset)))
    }
}

/// Tells whether the upload may still succeed: it broke, or the registry does not know it any
/// more, or it has got to somewhere else than we thought.
fn may_go_on(error: &SourceError) -> bool {
    error.is_retryable()
        || matches!(
            error,
            SourceError::Rejected {
                status: 404 | 416,
                ..
            }
        )
}

/// How many bytes a Range header says that there are of `size`. It cannot say none: that is told
/// as one byte, which is then sent again.
fn offset(range: &str, size: u64) -> Option<u64> {
    let range = range.strip_prefix("bytes=").unwrap_or(range);
    let last: u64 = range.strip_prefix("0-")?.parse().ok()?;
    match last {
        0 => Some(0),
        last if last < size => Some(last + 1),
        _ => None,
    }
}

/// What the connection has taken of a blob.
struct Handed {
    tell: Arc<dyn Fn(UploadEvent) + Send + Sync>,
    bytes: AtomicU64,
    /// Why there were no more: the HTTP client would tell it as a break of the connection.
    fault: Mutex<Option<SourceError>>,
}

impl Handed {
    fn take_fault(&self) -> Option<SourceError> {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        fault.take()
    }

    fn broken(&self, error: SourceError) -> io::Error {
        let mut fault = self.fault.lock().unwrap_or_else(PoisonError::into_inner);
        *fault = Some(error);
        io::Error::other("the content cannot be read")
    }
}

/// The bytes of a blob from `from` on, in pieces; each is told when it is taken.
fn pieces(
    content: Layout,
    blob: Descriptor,
    from: u64,
    handed: Arc<Handed>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    handed.bytes.store(from, Ordering::Relaxed);
    let opened = async move { content.pieces(&blob, from).await };
    let large = stream::once(opened).try_flatten();
    let small = large.map_ok(|mut large| {
        stream::iter(std::iter::from_fn(move || {
            let length = large.len().min(PIECE_BYTES);
            (length > 0).then(|| Ok(large.split_to(length)))
        }))
    });
    let telling = Arc::clone(&handed);
    small
        .try_flatten()
        .inspect_ok(move |piece| {
            let before = telling
                .bytes
                .fetch_add(piece.len() as u64, Ordering::Relaxed);
            (telling.tell)(UploadEvent::Sent(before + piece.len() as u64));
        })
        .map_err(move |error| handed.broken(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_taken_for_an_offset_only_if_it_can_be_one() {
        for (range, expected) in [
            ("0-0", Some(0)),
            ("0-98", Some(99)),
            ("0-99", Some(100)),
            ("bytes=0-49", Some(50)),
            ("0-100", None),
            ("1-50", None),
            ("0-", None),
            ("-50", None),
            ("", None),
            ("0-99999999999999999999", None),
        ] {
            assert_eq!(offset(range, 100), expected, "{range}");
        }
    }
}
