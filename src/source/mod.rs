//! Where images come from: registries and OCI layouts. Never knows the store.
//!
//! A [`Source`] is opened for one reference and hands out raw documents and byte streams. What it
//! hands out is bounded and, for documents, verified; the content of a blob is verified by
//! whoever writes it down (`store::Ingest`), so that hash and size are checked at one place.

mod error;
pub mod credentials;
pub mod layout;
pub mod registry;

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;

use async_trait::async_trait;
use futures_util::Stream;

use crate::oci::{Descriptor, Digest, Reference};
use crate::signature::Place;

pub use credentials::Credentials;
pub use error::{
    AddressRefusal, AfterMirrors, ArchiveProblem, CertificateProblem, CredentialsProblem,
    HelperProblem, HostsProblem, MirrorFailure, SourceError, Unavailability, Violation,
};
pub use registry::{Mirrors, Proxies, ProxySetting, ToldHosts};

/// How sources are reached.
#[derive(Debug, Clone, Default)]
pub struct SourceOptions {
    /// Whether certificates are checked and plain HTTP is refused. Registries on loopback may
    /// always be reached by plain HTTP.
    pub tls: TlsPolicy,
    /// Who we are to each registry.
    pub credentials: Credentials,
    /// Directories that have a directory about each registry, as containerd and docker make them;
    /// the first that has one for a registry decides.
    pub hosts_directories: Vec<PathBuf>,
    /// A directory of certificates for the registry itself, as podman makes them.
    pub certificates: Option<PathBuf>,
    /// Proxies for registries of other machines.
    pub proxies: Proxies,
    /// What is known of mirrors.
    pub mirrors: Mirrors,
}

/// Whether a registry must prove who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TlsPolicy {
    /// It must.
    #[default]
    Verify,
    /// Any certificate will do, and plain HTTP too (`--tls-verify=false`).
    Insecure,
}

/// Which document of a source is wanted.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// The one that the source's reference names.
    Reference,
    /// The one that a descriptor of an index names.
    Entry(&'a Descriptor),
}

/// An index or manifest as it came, verified against the digest that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDocument {
    /// The bytes, at most [`crate::oci::manifest::MAX_DOCUMENT_BYTES`].
    pub bytes: Vec<u8>,
    /// Their digest.
    pub digest: Digest,
    /// What the sender or the descriptor called it; none if it says only that it is JSON.
    pub media_type: Option<String>,
}

/// The bytes of a blob from some offset on, not yet verified.
pub struct BlobStream<'a> {
    /// Offset of the first byte of `bytes`: the one that was asked for, or 0 where the sender
    /// can only start at the beginning.
    pub offset: u64,
    /// The bytes; never more than the descriptor's size less `offset`.
    pub bytes: Pin<Box<dyn Stream<Item = Result<bytes::Bytes, SourceError>> + Send + 'a>>,
}

impl fmt::Debug for BlobStream<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobStream from {}", self.offset)
    }
}

/// A place that has images.
#[async_trait]
pub trait Source: fmt::Debug + Send + Sync {
    /// Fetches an index or manifest.
    ///
    /// Errors if there is none, if it is larger than the limit, or if its digest is not the one
    /// that was asked for.
    async fn document(&self, wanted: Wanted<'_>) -> Result<RawDocument, SourceError>;

    /// Asks which document the reference names now, without having it sent; none where the place
    /// does not tell. The answer is a hint: only [`Source::document`] is verified.
    async fn current(&self) -> Result<Option<Digest>, SourceError>;

    /// Opens a blob at `offset`, which is less than its size or, for an empty blob, 0.
    ///
    /// The stream yields an error if the sender has more bytes than the descriptor says; fewer
    /// bytes just end it.
    async fn blob(&self, blob: &Descriptor, offset: u64) -> Result<BlobStream<'_>, SourceError>;

    /// Fetches what is attached to the document `digest` at `place`, where signatures are: a
    /// manifest, or an index of what refers to the document; none if there is none.
    ///
    /// Whoever has the document says what is attached to it, and that is not verified.
    async fn attached(
        &self,
        _digest: &Digest,
        _place: Place,
    ) -> Result<Option<RawDocument>, SourceError> {
        Ok(None)
    }

    /// Says that what came of a blob is not what its digest says. Tells whether it is worth asking
    /// for it anew: whoever can have sent it is not asked again, and there is somebody else.
    fn distrust(&self, _digest: &Digest) -> bool {
        false
    }
}

/// Opens the source of `reference`; connects to nothing yet.
pub fn open(
    reference: &Reference,
    options: &SourceOptions,
) -> Result<Box<dyn Source>, SourceError> {
    Ok(match reference {
        Reference::Registry(reference) => {
            Box::new(registry::Registry::open(reference.clone(), options)?)
        }
        Reference::Layout(reference) => Box::new(layout::Layout::open(reference.clone())),
    })
}
