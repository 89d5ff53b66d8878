//! Writing to a registry: blobs first, then the documents that name them.
//!
//! Format: OCI distribution-spec v1.1, "Pushing blobs", "Pushing manifests".

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, stream};
use reqwest::header::{self, HeaderMap};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode, Url};

use crate::oci::{Descriptor, Digest, Printable};
use crate::source::registry::auth::Access;
use crate::source::registry::host::Host;
use crate::source::registry::hosts_file::Capability;
use crate::source::registry::transport::{TRIES, retrying};
use crate::source::registry::{Registry, address};
use crate::source::{SourceError, Violation};

/// Bytes read from a file at a time.
const PIECE_BYTES: u64 = 1 << 20;

impl Registry {
    /// Tells whether the repository has a blob.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, SourceError> {
        let host = self.host_for_push()?;
        let path = format!("blobs/{digest}");
        retrying(TRIES, || async {
            let response = host
                .request(Access::Push, Method::HEAD, &path, |request| request)
                .await?;
            match response.status() {
                StatusCode::OK => Ok(true),
                StatusCode::NOT_FOUND => Ok(false),
                _ => Err(host.transport.unexpected(response).await),
            }
        })
        .await
    }

    /// Uploads the blob that `content` holds from its beginning, whatever its cursor says.
    ///
    /// `progress` is told the number of bytes that have been handed over so far. Not retried:
    /// half an upload cannot be told from a whole one by its error.
    pub async fn upload_blob(
        &self,
        blob: &Descriptor,
        content: File,
        progress: impl Fn(u64) + Send + Sync + 'static,
    ) -> Result<(), SourceError> {
        let host = self.host_for_push()?;
        let started = retrying(TRIES, || host.start_upload()).await?;
        let mut url = host.upload_address(&started)?;
        url.query_pairs_mut()
            .append_pair("digest", &blob.digest.to_string());
        let content = Arc::new(content);
        let progress = Arc::new(progress);
        let size = blob.size;
        let response = host
            .upload(url, |request| {
                let pieces = pieces(Arc::clone(&content), size, Arc::clone(&progress));
                request
                    .header(header::CONTENT_TYPE, "application/octet-stream")
                    .header(header::CONTENT_LENGTH, size)
                    .body(Body::wrap_stream(pieces))
            })
            .await?;
        host.created(response, &format!("blob {}", blob.digest))
            .await
            .map(drop)
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
    async fn start_upload(&self) -> Result<Response, SourceError> {
        let response = self
            .request(Access::Push, Method::POST, "blobs/uploads/", |request| {
                request.header(header::CONTENT_LENGTH, 0)
            })
            .await?;
        match response.status() {
            StatusCode::ACCEPTED => Ok(response),
            StatusCode::NOT_FOUND => Err(self.image_not_found()),
            _ => Err(self.rejected(response, "an upload").await),
        }
    }

    /// Where the registry wants the upload, if that is an address that we go to.
    fn upload_address(&self, started: &Response) -> Result<Url, SourceError> {
        let location = started.headers().get(header::LOCATION);
        let location = location.and_then(|location| location.to_str().ok());
        let url = location.and_then(|location| started.url().join(location).ok());
        let url = url.ok_or_else(|| self.transport.protocol(Violation::NoLocation))?;
        let verdict = self.transport.policy.check(started.url(), &url);
        verdict.map_err(|reason| SourceError::RedirectRefused {
            registry: self.transport.registry.clone(),
            target: address::shown(&url),
            reason,
        })?;
        Ok(url)
    }

    /// Uploads to an address that carries its own permission, unless it is the registry's own.
    async fn upload(
        &self,
        url: Url,
        prepare: impl Fn(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, SourceError> {
        let transport = &self.transport;
        let client = transport.client()?;
        let build = || prepare(client.put(url.clone()));
        match self.session.endpoint() {
            Some(endpoint) if url.origin() == endpoint.base.origin() => {
                self.authorized(Access::Push, endpoint, None, build).await
            }
            _ => transport.send(build()).await,
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

/// The first `size` bytes of a file, read on blocking threads, without moving its cursor.
fn pieces(
    file: Arc<File>,
    size: u64,
    progress: Arc<impl Fn(u64) + Send + Sync + 'static>,
) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::try_unfold((file, 0), move |(file, offset)| {
        let progress = Arc::clone(&progress);
        async move {
            let length = (size - offset).min(PIECE_BYTES);
            if length == 0 {
                return Ok(None);
            }
            let reader = Arc::clone(&file);
            let piece = tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; usize::try_from(length).map_err(io::Error::other)?];
                reader.read_exact_at(&mut piece, offset)?;
                io::Result::Ok(piece)
            })
            .await
            .map_err(io::Error::other)??;
            let offset = offset + length;
            progress(offset);
            Ok(Some((Bytes::from(piece), (file, offset))))
        }
    })
}
