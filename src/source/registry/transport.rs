//! One HTTP client for one registry: limits, retries, and errors that say what happened.

use std::error::Error;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::iter;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use oci_client::errors::OciEnvelope;
use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{Client, ClientBuilder, RequestBuilder, Response, StatusCode, Url};

use crate::oci::Printable;
use crate::source::registry::address::{self, AddressPolicy, Refused, Resolver};
use crate::source::registry::proxies::Proxies;
use crate::source::registry::trust::Trust;
use crate::source::{AddressRefusal, SourceError, TlsPolicy, Unavailability, Violation};

/// Tries of one request, where there is nobody else to ask.
pub(super) const TRIES: u32 = 4;
/// Wait before the second try; doubled before each further one.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// Longest wait that a registry may ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(10);
/// Most bytes of an error's body that are read.
const MAX_ERROR_BYTES: u64 = 64 << 10;
/// Least bytes a second that are worth waiting for.
const MIN_BYTES_PER_SECOND: u64 = 1024;

/// How long a registry is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands, its TLS handshake included.
    pub connect: Duration,
    /// Between two pieces of an answer; also how long less than 1 KiB/s is borne.
    pub read: Duration,
    /// For a document or a token altogether, however often it is asked for.
    pub document: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            read: Duration::from_secs(30),
            document: Duration::from_secs(60),
        }
    }
}

/// The way to one place.
#[derive(Debug)]
pub(super) struct Transport {
    /// Made when it is needed: certificates are read for it.
    client: OnceLock<Client>,
    /// The same without certificates.
    plain: OnceLock<Client>,
    pub(super) policy: Arc<AddressPolicy>,
    trust: Trust,
    proxies: Proxies,
    /// The reference that all this is for; named in errors.
    pub(super) image: String,
    /// Host and port, as typed or spelled.
    pub(super) registry: String,
    pub(super) timeouts: Timeouts,
    /// For uploads; made when it is needed.
    uploads: OnceLock<Client>,
}

impl Transport {
    pub(super) fn new(
        image: String,
        registry: String,
        policy: AddressPolicy,
        trust: Trust,
        proxies: Proxies,
        timeouts: Timeouts,
    ) -> Self {
        // A proxy has another loopback.
        let proxies = match policy.registry_is_loopback {
            true => Proxies::default(),
            false => proxies,
        };
        Self {
            client: OnceLock::new(),
            plain: OnceLock::new(),
            policy: Arc::new(policy.by_way_of(proxies.hosts())),
            trust,
            proxies,
            image,
            registry,
            timeouts,
            uploads: OnceLock::new(),
        }
    }

    /// The HTTP client. A registry of this machine mostly speaks plain HTTP: its client knows
    /// nobody who could vouch for it, since to read all whom this machine trusts takes longer than
    /// such a registry takes to answer. [`Transport::send`] sees to the others.
    pub(super) fn client(&self) -> Result<&Client, SourceError> {
        if !self.may_be_plain() || self.client.get().is_some() {
            return self.trusting_client();
        }
        self.made(&self.plain, |client| {
            let client = client.tls_certs_only([]);
            client.read_timeout(self.timeouts.read)
        })
    }

    fn trusting_client(&self) -> Result<&Client, SourceError> {
        self.made(&self.client, |client| {
            let client = client.tls_certs_merge(self.trust.authorities.iter().cloned());
            client.read_timeout(self.timeouts.read)
        })
    }

    fn may_be_plain(&self) -> bool {
        self.policy.registry_is_loopback && !self.trust.has_certificates()
    }

    /// The client for requests that take as long as their body does. For the other one, all the
    /// time until an answer begins is time without an answer.
    pub(super) fn client_for_uploads(&self) -> Result<&Client, SourceError> {
        self.made(&self.uploads, |client| {
            client.tls_certs_merge(self.trust.authorities.iter().cloned())
        })
    }

    fn made<'a>(
        &self,
        slot: &'a OnceLock<Client>,
        finish: impl FnOnce(ClientBuilder) -> ClientBuilder,
    ) -> Result<&'a Client, SourceError> {
        if let Some(client) = slot.get() {
            return Ok(client);
        }
        let made = self.builder().and_then(|builder| finish(builder).build());
        let made = made.map_err(|source| SourceError::Client {
            registry: self.registry.clone(),
            source,
        })?;
        Ok(slot.get_or_init(|| made))
    }

    fn builder(&self) -> reqwest::Result<ClientBuilder> {
        // ring takes its randomness from the kernel; the other provider first spends longer on
        // gathering some of its own than a whole look at a tag takes. Whoever uses the library may
        // have chosen one before.
        drop(rustls::crypto::ring::default_provider().install_default());
        let (policy, trust) = (&self.policy, &self.trust);
        let mut headers = HeaderMap::new();
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        let is_insecure = policy.tls == TlsPolicy::Insecure || trust.skip_verify;
        let mut builder = Client::builder()
            .user_agent(concat!("ironboot/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            .connect_timeout(self.timeouts.connect)
            .referer(false)
            .redirect(AddressPolicy::clone(policy).redirects())
            .dns_resolver(Resolver(Arc::clone(policy)))
            .tls_danger_accept_invalid_certs(is_insecure);
        if let Some(client) = &trust.client {
            builder = builder.identity(client.clone());
        }
        self.proxies.apply(builder)
    }

    /// Sends a request once. What a later try may mend is [`SourceError::Unavailable`]; other
    /// statuses are the caller's to judge.
    pub(super) async fn send(&self, request: RequestBuilder) -> Result<Response, SourceError> {
        let again = request.try_clone().filter(|_| self.may_be_plain());
        let response = match (request.send().await, again) {
            (Err(error), Some(again)) if tls_fault(&error).is_some() => {
                let (_, request) = again.build_split();
                let request = request.map_err(|error| self.failure(error))?;
                self.trusting_client()?.execute(request).await
            }
            (result, _) => result,
        };
        let response = response.map_err(|error| self.failure(error))?;
        let status = response.status();
        if status.is_redirection() {
            // One that the client could not even follow, such as to a file.
            let location = response.headers().get(header::LOCATION);
            let target = location.map_or("nowhere".into(), |to| {
                String::from_utf8_lossy(to.as_bytes())
            });
            let address = response.url().join(&target).ok();
            let reason = match address.as_ref().map(Url::scheme) {
                None => AddressRefusal::NoAddress,
                Some("https" | "http") => AddressRefusal::NotFollowed,
                Some(_) => AddressRefusal::Scheme,
            };
            let target = address.map_or_else(|| target.to_string(), |url| address::shown(&url));
            return Err(SourceError::RedirectRefused {
                registry: self.registry.clone(),
                target: Printable(&target).to_string(),
                reason,
            });
        }
        if is_passing(status) {
            let retry_after = retry_after(response.headers(), SystemTime::now());
            let words = self.words(response).await;
            return Err(self.not_available(Unavailability::Status {
                status: status.as_u16(),
                words,
                retry_after,
            }));
        }
        let encoding = response.headers().get(header::CONTENT_ENCODING);
        if let Some(encoding) = encoding.filter(|encoding| *encoding != "identity") {
            let encoding = String::from_utf8_lossy(encoding.as_bytes());
            return Err(self.protocol(Violation::Encoded(Printable(&encoding).to_string())));
        }
        Ok(response)
    }

    /// Reads a body of at most `limit` bytes; `what` names it if it is longer.
    pub(super) async fn read(
        &self,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, SourceError> {
        let too_large = || SourceError::TooLarge {
            what: what.to_owned(),
            limit,
        };
        let length = response.content_length();
        if length.is_some_and(|size| size > limit) {
            return Err(too_large());
        }
        let capacity = usize::try_from(length.unwrap_or(0)).unwrap_or(0);
        let mut bytes = Vec::with_capacity(capacity);
        let mut pace = self.pace();
        while let Some(chunk) = self.chunk(&mut response, &mut pace).await? {
            if (bytes.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    /// Reads the next piece of a body.
    pub(super) async fn chunk(
        &self,
        response: &mut Response,
        pace: &mut Pace,
    ) -> Result<Option<bytes::Bytes>, SourceError> {
        let began = Instant::now();
        let chunk = response
            .chunk()
            .await
            .map_err(|error| self.failure(error))?;
        let Some(chunk) = chunk else {
            return Ok(None);
        };
        if pace.is_too_slow(began.elapsed(), chunk.len() as u64) {
            return Err(self.not_available(Unavailability::Slow {
                minimum: MIN_BYTES_PER_SECOND,
            }));
        }
        Ok(Some(chunk))
    }

    /// What `work` comes to, unless it takes longer than a document may.
    pub(super) async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, SourceError>>,
    ) -> Result<T, SourceError> {
        let limit = self.timeouts.document;
        let done = tokio::time::timeout(limit, work).await;
        done.unwrap_or_else(|_| Err(self.not_available(Unavailability::TooLong { limit })))
    }

    pub(super) fn pace(&self) -> Pace {
        Pace::new(self.timeouts.read)
    }

    /// What the registry says in an error's body, fit to print.
    ///
    /// Format: OCI distribution-spec v1.1, "Error Codes"; anything else is shown as it is.
    pub(super) async fn words(&self, mut response: Response) -> String {
        let status = response.status();
        let mut bytes = Vec::new();
        let mut pace = self.pace();
        // An error body that breaks or never ends still is the error it announced.
        while let Ok(Some(chunk)) = self.chunk(&mut response, &mut pace).await {
            bytes.extend_from_slice(&chunk);
            if bytes.len() as u64 > MAX_ERROR_BYTES {
                break;
            }
        }
        let said = match serde_json::from_slice::<OciEnvelope>(&bytes) {
            Ok(envelope) => envelope
                .errors
                .iter()
                .map(|error| match error.message.as_str() {
                    "" => serde_json::to_string(&error.code).unwrap_or_default(),
                    message => message.to_owned(),
                })
                .collect::<Vec<_>>()
                .join("; "),
            Err(_) => String::from_utf8_lossy(&bytes).trim().to_owned(),
        };
        if said.is_empty() {
            return status.canonical_reason().unwrap_or("no words").to_owned();
        }
        Printable(&said).to_string()
    }

    pub(super) fn protocol(&self, violation: Violation) -> SourceError {
        SourceError::Protocol {
            image: self.image.clone(),
            violation,
        }
    }

    /// The error of a response that has a status that nothing was prepared for.
    pub(super) async fn unexpected(&self, response: Response) -> SourceError {
        let status = response.status().as_u16();
        let words = self.words(response).await;
        self.protocol(Violation::Status { status, words })
    }

    pub(super) fn not_available(&self, cause: Unavailability) -> SourceError {
        SourceError::Unavailable {
            registry: self.registry.clone(),
            cause,
        }
    }

    /// Sorts an error of the HTTP client. Its own text is not used: it quotes whole URLs.
    fn failure(&self, error: reqwest::Error) -> SourceError {
        let registry = self.registry.clone();
        let error = error.without_url();
        let root = || {
            let root = chain(&error).last().map(ToString::to_string);
            Printable(&root.unwrap_or_default()).to_string()
        };
        if let Some(refused) = find::<Refused>(&error) {
            return SourceError::RedirectRefused {
                registry,
                target: refused.target.clone(),
                reason: refused.reason.clone(),
            };
        }
        if find::<hyper::Error>(&error).is_some_and(hyper::Error::is_parse) {
            return self.protocol(Violation::Http(root()));
        }
        if let Some(fault) = tls_fault(&error) {
            return SourceError::Tls {
                registry,
                reason: root(),
                is_spoken: !matches!(fault, rustls::Error::InvalidMessage(_)),
            };
        }
        let proxies = self.proxies.hosts();
        self.not_available(if error.is_timeout() {
            Unavailability::Timeout
        } else if error.is_connect() && !proxies.is_empty() {
            let proxies = proxies.join(", ");
            Unavailability::Connection(format!("{} (a proxy is set: {proxies})", root()))
        } else {
            Unavailability::Connection(root())
        })
    }
}

/// An error and its causes.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    iter::successors(Some(error), |&error| error.source())
}

/// The first of an error's causes that is a `T`.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    chain(error).find_map(|cause| cause.downcast_ref())
}

/// The TLS library's error that an error of the HTTP client comes from.
fn tls_fault(error: &reqwest::Error) -> Option<&rustls::Error> {
    find::<io::Error>(error).and_then(handshake)
}

/// The TLS library's error in an io error, where it travels wrapped into others that do not name
/// it as their source.
fn handshake(error: &io::Error) -> Option<&rustls::Error> {
    let inner = error.get_ref()?;
    match inner.downcast_ref() {
        Some(inner) => handshake(inner),
        None => inner.downcast_ref(),
    }
}

/// Does `attempt` until it succeeds, fails for good, or has been tried `tries` times.
pub(super) async fn retrying<T, F>(tries: u32, attempt: impl Fn() -> F) -> Result<T, SourceError>
where
    F: Future<Output = Result<T, SourceError>>,
{
    let mut tried = 0;
    loop {
        tried += 1;
        let error = match attempt().await {
            Err(error) if tried < tries => error,
            last => return last,
        };
        match wait(&error, tried) {
            Some(wait) => tokio::time::sleep(wait).await,
            None => return Err(error),
        }
    }
}

/// How long to wait before trying again; none if that is pointless.
fn wait(error: &SourceError, tried: u32) -> Option<Duration> {
    let SourceError::Unavailable { cause, .. } = error else {
        return None;
    };
    let asked = match cause {
        Unavailability::Slow { .. } | Unavailability::TooLong { .. } => return None,
        Unavailability::Status { retry_after, .. } => retry_after.unwrap_or_default(),
        Unavailability::Connection(_) | Unavailability::Timeout => Duration::ZERO,
    };
    if asked > MAX_RETRY_AFTER {
        return None;
    }
    // Many hosts that lost the same registry must not come back in step. A fresh hasher's keys
    // are random, which is all the randomness that this needs.
    let random = RandomState::new().hash_one(tried) % 1000;
    let backoff = FIRST_WAIT * 2_u32.pow(tried - 1);
    let jittered = backoff / 2 + backoff * u32::try_from(random).unwrap_or(0) / 1000;
    Some(asked.max(jittered))
}

/// How long a Retry-After header asks to wait, in seconds or until a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

fn is_passing(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS
    ) || status.is_server_error()
}

/// Finds senders that keep a connection alive without ever getting anywhere.
#[derive(Debug)]
pub(super) struct Pace {
    window: Duration,
    waited: Duration,
    bytes: u64,
}

impl Pace {
    fn new(window: Duration) -> Self {
        Self {
            window,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Counts a piece. Only waiting for the sender counts, not what we do in between.
    fn is_too_slow(&mut self, waited: Duration, bytes: u64) -> bool {
        self.waited += waited;
        self.bytes += bytes;
        if self.waited < self.window {
            return false;
        }
        let enough = u128::from(self.bytes) * 1000
            >= u128::from(MIN_BYTES_PER_SECOND) * self.waited.as_millis();
        *self = Self::new(self.window);
        !enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(cause: Unavailability) -> SourceError {
        SourceError::Unavailable {
            registry: "registry.example".to_owned(),
            cause,
        }
    }

    fn status(retry_after: Option<Duration>) -> SourceError {
        failed(Unavailability::Status {
            status: 503,
            words: String::new(),
            retry_after,
        })
    }

    #[test]
    fn waits_grow_and_are_never_in_step() {
        for tried in 1..TRIES {
            let base = FIRST_WAIT * 2_u32.pow(tried - 1);
            let wait = wait(&failed(Unavailability::Timeout), tried).unwrap();
            assert!(
                wait >= base / 2 && wait <= base * 3 / 2,
                "{tried}: {wait:?}"
            );
        }
        let waits: std::collections::BTreeSet<_> = (0..8).map(|_| wait(&status(None), 3)).collect();
        assert!(waits.len() > 1);
    }

    #[test]
    fn a_registry_may_ask_for_a_short_wait_only() {
        let seconds = Duration::from_secs;
        assert_eq!(wait(&status(Some(seconds(10))), 1), Some(seconds(10)));
        assert_eq!(wait(&status(Some(seconds(11))), 1), None);
        assert_eq!(wait(&status(Some(seconds(1_000_000_000))), 1), None);
    }

    #[test]
    fn a_wait_may_be_asked_for_until_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_770);
        for (text, seconds) in [
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(7)),
            ("Sunday, 06-Nov-94 08:49:37 GMT", Some(7)),
            ("Sat, 05 Nov 1994 08:49:37 GMT", Some(0)),
            ("-7", None),
            ("soon", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().unwrap());
            let expected = seconds.map(Duration::from_secs);
            assert_eq!(retry_after(&headers, now), expected, "{text}");
        }
    }

    #[test]
    fn an_answer_of_drops_is_too_slow() {
        let mut pace = Pace::new(Duration::from_secs(30));
        let drops = (0..6).map(|_| pace.is_too_slow(Duration::from_secs(5), 1));
        assert_eq!(drops.filter(|slow| *slow).count(), 1);
        let mut pace = Pace::new(Duration::from_secs(30));
        assert!(!(0..60).any(|_| pace.is_too_slow(Duration::from_secs(1), 1024)));
    }
}
