//! What can go wrong between us and the place that has an image.

mod problem;

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use indicatif::HumanBytes;
use thiserror::Error;

use crate::oci::{Digest, LayoutForm};

pub use problem::{
    ArchiveProblem, CertificateProblem, CredentialsProblem, HelperProblem, HostsProblem,
};

/// Why a source did not give, or did not take, what was asked of it.
///
/// Words of the other side are cut and made printable; passwords and tokens are never in here.
#[derive(Debug, Error)]
pub enum SourceError {
    /// There is no such tag, digest, repository or layout entry.
    #[error("no such image: {image}")]
    ImageNotFound {
        /// The reference.
        image: String,
    },
    /// A document of the image names a blob or manifest that is not there.
    #[error("{image} has no {digest}")]
    BlobNotFound {
        /// The reference.
        image: String,
        /// What is missing.
        digest: Box<Digest>,
    },
    /// The registry refuses us: wrong credentials, none, or not allowed (status 401 or 403).
    #[error(
        "{registry} refuses {} to {repository}: {words}",
        user.as_deref().map_or("anonymous access".to_owned(), |user| format!("user {user}"))
    )]
    Unauthorized {
        /// Host and port of the registry.
        registry: String,
        /// The repository.
        repository: String,
        /// Who we said that we are.
        user: Option<String>,
        /// What the registry says.
        words: String,
    },
    /// The registry cannot be reached or cannot serve now.
    #[error("{registry} is not available")]
    Unavailable {
        /// Host and port of the registry.
        registry: String,
        /// What happened.
        #[source]
        cause: Unavailability,
    },
    /// The registry does not prove who it is.
    #[error("{registry} cannot be trusted: {reason}")]
    Tls {
        /// Host and port of the registry.
        registry: String,
        /// What is wrong with its certificate or its handshake.
        reason: String,
        /// Whether what it answers is TLS at all.
        is_spoken: bool,
    },
    /// The registry itself is at an address where we do not go.
    #[error("cannot go to registry {registry}")]
    RegistryRefused {
        /// Host and port of the registry.
        registry: String,
        /// Why we do not go there.
        #[source]
        reason: AddressRefusal,
    },
    /// The registry sends us to an address where we do not go.
    #[error("{registry} redirects to {target}")]
    RedirectRefused {
        /// Host and port of the registry.
        registry: String,
        /// Where to, without its query.
        target: String,
        /// Why we do not go there.
        #[source]
        reason: AddressRefusal,
    },
    /// The registry wants our credentials sent to an address where we do not send them.
    #[error("{registry} has its tokens issued by {realm}")]
    RealmRefused {
        /// Host and port of the registry.
        registry: String,
        /// The address.
        realm: String,
        /// Why nothing was sent there.
        #[source]
        reason: AddressRefusal,
    },
    /// The registry's answer is not what the distribution specification allows.
    #[error("{image}: the registry breaks the protocol")]
    Protocol {
        /// The reference.
        image: String,
        /// How.
        #[source]
        violation: Violation,
    },
    /// More bytes than allowed.
    #[error("{what} is larger than {}", HumanBytes(*limit))]
    TooLarge {
        /// What was being read.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The content is not what its digest says.
    #[error("{image}: content has digest {actual}, expected {expected}")]
    DigestMismatch {
        /// The reference.
        image: String,
        /// What was asked for, or announced by the sender.
        expected: Box<Digest>,
        /// What the bytes hash to.
        actual: Box<Digest>,
    },
    /// The content is not as long as its descriptor says.
    #[error("{digest} has {actual} bytes, expected {expected}")]
    SizeMismatch {
        /// The blob.
        digest: Box<Digest>,
        /// Size in bytes that its descriptor says.
        expected: u64,
        /// Size in bytes that the sender has.
        actual: u64,
    },
    /// The registry does not take what we push.
    #[error("{image}: the registry does not take {what} (status {status}): {words}")]
    Rejected {
        /// The reference.
        image: String,
        /// What was pushed.
        what: String,
        /// HTTP status.
        status: u16,
        /// What the registry says.
        words: String,
    },
    /// The directory, or what is in the archive, is not an OCI layout.
    #[error("not an OCI layout: {}", layout.display())]
    NotALayout {
        /// The directory or archive.
        layout: PathBuf,
        /// What is missing or unreadable.
        #[source]
        source: Box<SourceError>,
    },
    /// An archive where a directory was named, or the other way round.
    #[error("{}", other_form(*form, path))]
    OtherForm {
        /// What is there.
        path: PathBuf,
        /// What was named.
        form: LayoutForm,
    },
    /// A layout's `index.json` or `oci-layout` cannot be understood.
    #[error("cannot understand {}", path.display())]
    LayoutJson {
        /// The file.
        path: PathBuf,
        /// Where the parser stopped.
        #[source]
        source: serde_json::Error,
    },
    /// The layout has no entry of that name.
    #[error("layout {} has no entry {name}; it has {}", layout.display(), list(names))]
    LayoutEntryNotFound {
        /// The layout.
        layout: PathBuf,
        /// The name that was asked for.
        name: String,
        /// The names that there are.
        names: Vec<String>,
    },
    /// Several entries could be meant.
    #[error("layout {} has several entries; it has {}", layout.display(), list(names))]
    LayoutAmbiguous {
        /// The layout.
        layout: PathBuf,
        /// The names (or digests) of those that could be meant.
        names: Vec<String>,
    },
    /// A file of the layout is a link, a device, or anything but a file.
    #[error("not a regular file: {}", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// A layout's archive cannot be used.
    #[error("cannot use archive {}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: ArchiveProblem,
    },
    /// A file of credentials cannot be used.
    #[error("credentials in {} cannot be used", path.display())]
    CredentialsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: CredentialsProblem,
    },
    /// A credential helper does not do its work.
    #[error("credential helper {helper} fails for {registry}")]
    CredentialHelper {
        /// Its name, without `docker-credential-`.
        helper: String,
        /// The registry.
        registry: String,
        /// What is wrong with it.
        #[source]
        problem: HelperProblem,
    },
    /// A file that says how a registry is reached cannot be used.
    #[error("cannot understand {}", path.display())]
    HostsFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: HostsProblem,
    },
    /// A file of certificates cannot be used.
    #[error("the certificates in {} cannot be used", path.display())]
    Certificates {
        /// The file, or the directory.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        problem: CertificateProblem,
    },
    /// A proxy is set that cannot be used.
    #[error("the proxy in {variable} is not at an http or https address")]
    Proxy {
        /// The variable that it is set in; its value may have a password.
        variable: &'static str,
    },
    /// No place of a registry may be asked, by what the operator's file says of them.
    #[error("none of the hosts of {registry} has the capability {needed}")]
    NobodyToAsk {
        /// Host and port of the registry.
        registry: String,
        /// The capability.
        needed: &'static str,
    },
    /// A mirror failed while it sent a blob. Somebody else is asked next.
    #[error("mirror {mirror} fails")]
    Mirror {
        /// Host and port of the mirror.
        mirror: String,
        /// How.
        #[source]
        source: Box<SourceError>,
    },
    /// The registry failed, and its mirrors did before.
    #[error(transparent)]
    AfterMirrors(Box<AfterMirrors>),
    /// The HTTP client cannot be set up, for instance without any certificate authority.
    #[error("cannot set up the HTTP client for {registry}")]
    Client {
        /// Host and port of the registry.
        registry: String,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// A file operation failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl SourceError {
    /// Tells whether the same request may succeed later; a broken blob stream can be resumed.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(
            self.itself(),
            Self::Unavailable { .. } | Self::Mirror { .. }
        )
    }

    /// The error without the mirrors that failed before.
    #[must_use]
    pub fn itself(&self) -> &Self {
        match self {
            Self::AfterMirrors(after) => &after.error,
            error => error,
        }
    }

    /// The mirrors that failed before.
    #[must_use]
    pub fn mirrors(&self) -> &[MirrorFailure] {
        match self {
            Self::AfterMirrors(after) => &after.mirrors,
            _ => &[],
        }
    }

    /// The error and its causes, in one line.
    pub(super) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = Error::source(self);
        while let Some(error) = cause {
            text += &format!(": {error}");
            cause = error.source();
        }
        text
    }

    /// Tells whether what was asked for is just not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(
            self.itself(),
            Self::ImageNotFound { .. }
                | Self::BlobNotFound { .. }
                | Self::LayoutEntryNotFound { .. }
        )
    }
}

fn other_form(form: LayoutForm, path: &Path) -> String {
    let path = path.display();
    match form {
        LayoutForm::Directory => format!("`oci:` names a directory, and this is a file: {path}"),
        LayoutForm::Archive => {
            format!("`oci-archive:` names a file, and this is a directory: {path}")
        }
    }
}

/// What a registry failed with after its mirrors did; shown as the registry's own error.
#[derive(Debug)]
pub struct AfterMirrors {
    /// Of the registry itself.
    pub error: SourceError,
    /// Those before, in their order.
    pub mirrors: Vec<MirrorFailure>,
}

impl AfterMirrors {
    /// Adds the mirrors that failed before, if there are any.
    pub(super) fn wrap(error: SourceError, mirrors: Vec<MirrorFailure>) -> SourceError {
        if mirrors.is_empty() {
            return error;
        }
        SourceError::AfterMirrors(Box::new(Self { error, mirrors }))
    }
}

impl fmt::Display for AfterMirrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl Error for AfterMirrors {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error.source()
    }
}

/// A mirror that was passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorFailure {
    /// Host and port.
    pub mirror: String,
    /// Why.
    pub reason: String,
}

impl fmt::Display for MirrorFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mirror {}: {}", self.mirror, self.reason)
    }
}

/// Why a registry is not available.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Unavailability {
    /// The connection failed or broke.
    #[error("connection failed: {0}")]
    Connection(String),
    /// Nothing came for too long.
    #[error("it does not answer in time")]
    Timeout,
    /// Something came, but so little that it would never end.
    #[error("it sends less than {minimum} bytes a second")]
    Slow {
        /// Least bytes a second that are waited for.
        minimum: u64,
    },
    /// It came too slowly to be worth it, or it had to be asked too often.
    #[error("it takes longer than {} s over a document", limit.as_secs_f32())]
    TooLong {
        /// How long it may take.
        limit: Duration,
    },
    /// It says that it cannot serve: too many requests, or an error of its own.
    #[error("it answers with status {status}: {words}")]
    Status {
        /// HTTP status.
        status: u16,
        /// What it says.
        words: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
}

/// Why an address is not gone to.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AddressRefusal {
    /// It is not an absolute URL.
    #[error("that is no address")]
    NoAddress,
    /// Neither https nor http.
    #[error("only https and http are followed")]
    Scheme,
    /// From encrypted to plain.
    #[error("that would leave TLS")]
    Downgrade,
    /// Plain HTTP to another machine.
    #[error("plain HTTP is spoken on loopback only")]
    PlainHttp,
    /// A link-local address: a cloud's metadata service.
    #[error("it is a link-local address")]
    LinkLocal,
    /// This machine, though the registry is another one.
    #[error("it is this machine's own address")]
    Loopback,
    /// A request with a body, or no request that the client repeats elsewhere.
    #[error("such a redirect is not followed")]
    NotFollowed,
    /// Too many in a row.
    #[error("it is redirect number {0}")]
    TooMany(usize),
}

/// How a registry breaks the protocol.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Violation {
    /// The answer is not HTTP, or its head is too large.
    #[error("the answer is not HTTP: {0}")]
    Http(String),
    /// A status that the request does not have.
    #[error("unexpected status {status}: {words}")]
    Status {
        /// HTTP status.
        status: u16,
        /// What the registry says.
        words: String,
    },
    /// A part where the whole was asked for.
    #[error("it sends a part where the whole was asked for")]
    UnaskedPart,
    /// Another part than the one that was asked for.
    #[error("it sends `{got}` where bytes from {offset} on of {size} were asked for")]
    WrongPart {
        /// First byte that was asked for.
        offset: u64,
        /// Size of the blob.
        size: u64,
        /// Its Content-Range.
        got: String,
    },
    /// A body that would have to be unpacked.
    #[error("the body is encoded: {0}")]
    Encoded(String),
    /// It asks for an authentication that we do not have.
    #[error("it asks for an unknown authentication: {0}")]
    Challenge(String),
    /// Its token cannot be a token.
    #[error("its token cannot be used: {0}")]
    Token(&'static str),
    /// It does not say where to upload to.
    #[error("it does not say where to upload to")]
    NoLocation,
    /// It stored something else than what was pushed.
    #[error("it stored the document under another digest: {0}")]
    OtherDigest(String),
}

fn list(names: &[String]) -> String {
    match names {
        [] => "none that has a name".to_owned(),
        names => names.join(", "),
    }
}
