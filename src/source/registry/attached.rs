//! What is attached to a document of an image: under a tag of its digest, or among what refers to it.
//!
//! Format: OCI distribution-spec v1.1, "Listing Referrers" and "Referrers Tag Schema".

use reqwest::{Method, StatusCode, header};

use crate::oci::Digest;
use crate::oci::manifest::{MAX_DOCUMENT_BYTES, OCI_INDEX};
use crate::signature::Place;
use crate::source::registry::Registry;
use crate::source::registry::auth::Access;
use crate::source::registry::host::{Fetched, Host, media_type};
use crate::source::registry::hosts_file::Capability;
use crate::source::registry::mirrors::Tour;
use crate::source::registry::transport::retrying;
use crate::source::{RawDocument, SourceError, Unavailability};

impl Registry {
    /// Looks for what is attached to `digest`, wherever it is: a mirror need not have what the
    /// registry has.
    pub(super) async fn find_attached(
        &self,
        digest: &Digest,
        place: Place,
    ) -> Result<Option<RawDocument>, SourceError> {
        let tag = place.tag(digest);
        if tag.is_none() && place != Place::Referrers {
            return Ok(None);
        }
        let mut tour = Tour::begin(self, Capability::Resolve, None)?;
        loop {
            let answer = tour.host().find_attached(digest, tag.as_deref()).await;
            if matches!(answer, Ok(None)) && tour.pass() {
                continue;
            }
            if let Some(result) = tour.judge(answer) {
                return result;
            }
        }
    }
}

impl Host {
    /// Asks for the document of `tag`, or for what refers to `digest`.
    async fn find_attached(
        &self,
        digest: &Digest,
        tag: Option<&str>,
    ) -> Result<Option<RawDocument>, SourceError> {
        let asked = retrying(self.tries, || async move {
            match tag {
                Some(tag) => {
                    self.fetch(&format!("manifests/{tag}"), MAX_DOCUMENT_BYTES)
                        .await
                }
                None => self.referrers(digest).await,
            }
        });
        let found = self.transport.within(asked).await?;
        Ok(found.map(|Fetched { bytes, media_type }| RawDocument {
            digest: Digest::of(&bytes),
            bytes,
            media_type,
        }))
    }

    /// The index of what refers to `digest`; none where that can not be listed, for which there are
    /// many words. Whoever may not list it may not read the tag either, and is told there.
    async fn referrers(&self, digest: &Digest) -> Result<Option<Fetched>, SourceError> {
        let path = format!("referrers/{digest}");
        let asked = self.request(Access::Pull, Method::GET, &path, |request| {
            let artifact_type = [("artifactType", Place::ARTIFACT_TYPE)];
            let request = request.query(&artifact_type);
            request.header(header::ACCEPT, OCI_INDEX)
        });
        let response = match asked.await {
            Err(
                SourceError::Unauthorized { .. }
                | SourceError::Unavailable {
                    cause: Unavailability::Status { status: 501, .. },
                    ..
                },
            ) => return Ok(None),
            response => response?,
        };
        match response.status() {
            StatusCode::OK => {}
            StatusCode::TOO_MANY_REQUESTS => {
                return Err(self.transport.unexpected(response).await);
            }
            status if status.is_client_error() => return Ok(None),
            _ => return Err(self.transport.unexpected(response).await),
        }
        let media_type = media_type(response.headers());
        if media_type.as_ref().is_some_and(|says| says != OCI_INDEX) {
            return Ok(None);
        }
        let what = format!("{} ({path})", self.image);
        let bytes = self
            .transport
            .read(response, MAX_DOCUMENT_BYTES, &what)
            .await?;
        Ok(Some(Fetched { bytes, media_type }))
    }
}
