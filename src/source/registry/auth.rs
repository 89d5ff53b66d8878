//! Who we are to a registry: its scheme, its challenge, and the header that answers it.
//!
//! The token request is made here and not by `oci-client`: its `auth` asks the registry for the
//! challenge by itself, so the realm that gets the password would not be the one that was
//! checked, and it reads a token of any size.
//!
//! Format: distribution-spec's "Token Authentication Specification"; RFC 7235 for the challenge.

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use tokio::sync::{Mutex, OnceCell};

use crate::oci::Printable;
use crate::source::credentials::Login;
use crate::source::registry::address;
use crate::source::registry::transport::{Transport, base};
use crate::source::{AddressRefusal, Credentials, SourceError, Unavailability, Violation};

/// Largest answer of a token service.
const MAX_TOKEN_BYTES: u64 = 1 << 20;

/// What is to be done in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Pull,
    Push,
}

/// What is known of the registry and of ourselves; asked for once, by whoever comes first.
#[derive(Debug)]
pub(super) struct Session {
    /// Host and port as typed, and as they are connected to.
    registry: String,
    host: String,
    repository: String,
    credentials: Credentials,
    endpoint: OnceCell<Endpoint>,
    pull: Mutex<Option<Grant>>,
    push: Mutex<Option<Grant>>,
}

/// How the registry is spoken to.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// `https://host/v2/`, or http.
    pub(super) base: Url,
    challenges: Vec<Challenge>,
}

/// What a request carries to be let in.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    /// Marked sensitive, hence not printed.
    pub(super) authorization: Option<HeaderValue>,
    /// Who we said that we are.
    pub(super) user: Option<String>,
    /// Which one this is: a refused grant is renewed by one task, the others use the new one.
    number: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Challenge {
    Bearer {
        realm: String,
        service: Option<String>,
    },
    Basic,
    Other(String),
}

impl Session {
    pub(super) fn new(
        registry: String,
        host: String,
        repository: String,
        credentials: Credentials,
    ) -> Self {
        Self {
            registry,
            host,
            repository,
            credentials,
            endpoint: OnceCell::new(),
            pull: Mutex::new(None),
            push: Mutex::new(None),
        }
    }

    /// Finds the registry's scheme and challenge, once.
    pub(super) async fn endpoint(&self, transport: &Transport) -> Result<&Endpoint, SourceError> {
        self.endpoint
            .get_or_try_init(|| self.probe(transport))
            .await
    }

    /// What requests carry now.
    pub(super) async fn grant(
        &self,
        transport: &Transport,
        access: Access,
    ) -> Result<Grant, SourceError> {
        let endpoint = self.endpoint(transport).await?;
        let mut slot = self.slot(access).lock().await;
        if let Some(grant) = &*slot {
            return Ok(grant.clone());
        }
        let challenges = &endpoint.challenges;
        let grant = self.ask(transport, access, challenges, 0).await?;
        Ok(slot.insert(grant).clone())
    }

    /// A new grant in the place of `refused`, which was answered with 401 and `headers`; none if
    /// a new one would be no different.
    pub(super) async fn renew(
        &self,
        transport: &Transport,
        access: Access,
        refused: &Grant,
        headers: &HeaderMap,
    ) -> Result<Option<Grant>, SourceError> {
        let endpoint = self.endpoint(transport).await?;
        let mut slot = self.slot(access).lock().await;
        if let Some(newer) = slot.as_ref().filter(|now| now.number != refused.number) {
            return Ok(Some(newer.clone()));
        }
        let mut challenges = challenges(headers);
        if challenges.is_empty() {
            challenges.clone_from(&endpoint.challenges);
        }
        let number = refused.number + 1;
        let grant = self.ask(transport, access, &challenges, number).await?;
        if grant.authorization == refused.authorization {
            return Ok(None);
        }
        Ok(Some(slot.insert(grant).clone()))
    }

    /// The error of an answer that does not let us in.
    pub(super) fn refused(&self, user: Option<String>, words: String) -> SourceError {
        SourceError::Unauthorized {
            registry: self.registry.clone(),
            repository: self.repository.clone(),
            user,
            words,
        }
    }

    fn slot(&self, access: Access) -> &Mutex<Option<Grant>> {
        match access {
            Access::Pull => &self.pull,
            Access::Push => &self.push,
        }
    }

    async fn probe(&self, transport: &Transport) -> Result<Endpoint, SourceError> {
        let by_tls = match self.ping(transport, "https").await {
            Err(error) if transport.policy.plain_registry() && may_be_plain(&error) => error,
            result => return result,
        };
        match self.ping(transport, "http").await {
            // Whoever answers TLS, and plain HTTP with an error, has its fault in the former.
            Err(_) if matches!(by_tls, SourceError::Tls { .. }) => Err(by_tls),
            result => result,
        }
    }

    async fn ping(&self, transport: &Transport, scheme: &str) -> Result<Endpoint, SourceError> {
        let base = base(scheme, &self.host).ok_or_else(|| SourceError::RedirectRefused {
            registry: self.registry.clone(),
            target: self.host.clone(),
            reason: AddressRefusal::LinkLocal,
        })?;
        let response = transport.send(transport.client.get(base.clone())).await?;
        match response.status() {
            StatusCode::UNAUTHORIZED => Ok(Endpoint {
                base,
                challenges: challenges(response.headers()),
            }),
            // Some registries forbid or lack this page and serve all others; the rest of the
            // work will tell. A TLS port that got plain HTTP says 400.
            status if status != StatusCode::BAD_REQUEST => Ok(Endpoint {
                base,
                challenges: Vec::new(),
            }),
            _ => Err(transport.unexpected(response).await),
        }
    }

    async fn ask(
        &self,
        transport: &Transport,
        access: Access,
        challenges: &[Challenge],
        number: u64,
    ) -> Result<Grant, SourceError> {
        if challenges.is_empty() {
            return Ok(Grant {
                authorization: None,
                user: None,
                number,
            });
        }
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service } => Some((realm, service.as_deref())),
            _ => None,
        });
        // Before any credential is even looked up.
        let token_service = match bearer {
            Some((realm, service)) => {
                let url = self.token_service(transport, realm, service, access);
                Some(url.await?)
            }
            None if challenges.contains(&Challenge::Basic) => None,
            None => {
                let names: Vec<_> = challenges.iter().map(Challenge::name).collect();
                return Err(transport.protocol(Violation::Challenge(names.join(", "))));
            }
        };
        let login = self
            .credentials
            .login(&self.registry, &self.repository)
            .await?;
        let user = login.as_ref().map(|login| login.user.clone());
        let authorization = match (token_service, login) {
            (Some(url), login) => self.token(transport, url, login).await?,
            (None, Some(login)) => login.basic(),
            (None, None) => {
                return Err(self.refused(None, "it wants a user name and a password".to_owned()));
            }
        };
        Ok(Grant {
            authorization: Some(authorization),
            user,
            number,
        })
    }

    /// The address to ask for a token, if credentials may be sent there.
    async fn token_service(
        &self,
        transport: &Transport,
        realm: &str,
        service: Option<&str>,
        access: Access,
    ) -> Result<Url, SourceError> {
        let refused = |reason| SourceError::RealmRefused {
            registry: self.registry.clone(),
            realm: Printable(realm).to_string(),
            reason,
        };
        let mut url: Url = realm
            .parse()
            .map_err(|_| refused(AddressRefusal::NoAddress))?;
        transport
            .policy
            .check(&self.endpoint(transport).await?.base, &url)
            .map_err(refused)?;
        // The scope is ours, whatever the challenge says: nobody gets a wider token out of us.
        let actions = match access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
        };
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        query.append_pair(
            "scope",
            &format!("repository:{}:{actions}", self.repository),
        );
        drop(query);
        Ok(url)
    }

    async fn token(
        &self,
        transport: &Transport,
        url: Url,
        login: Option<Login>,
    ) -> Result<HeaderValue, SourceError> {
        let what = format!("token from {}", address::shown(&url));
        let mut request = transport.client.get(url);
        if let Some(login) = &login {
            request = request.header(header::AUTHORIZATION, login.basic());
        }
        let response = transport.send(request).await?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let words = transport.words(response).await;
                return Err(self.refused(login.map(|login| login.user), words));
            }
            _ => return Err(transport.unexpected(response).await),
        }
        let body = transport.read(response, MAX_TOKEN_BYTES, &what).await?;
        bearer(&body).map_err(|problem| transport.protocol(Violation::Token(problem)))
    }
}

impl Challenge {
    fn name(&self) -> &str {
        match self {
            Self::Bearer { .. } => "Bearer",
            Self::Basic => "Basic",
            Self::Other(name) => name,
        }
    }
}

/// Tells whether a failed TLS ping leaves room for a registry that speaks plain HTTP.
fn may_be_plain(error: &SourceError) -> bool {
    match error {
        SourceError::Unavailable { cause, .. } => {
            matches!(
                cause,
                Unavailability::Connection(_) | Unavailability::Timeout
            )
        }
        error => matches!(error, SourceError::Tls { .. }),
    }
}

/// The challenges of a 401, in their order. What cannot be parsed is none.
fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let values = headers.get_all(header::WWW_AUTHENTICATE).iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(parse_challenges).collect()
}

fn parse_challenges(text: &str) -> Vec<Challenge> {
    let Ok(parsed) = http_auth::parse_challenges(text) else {
        return vec![Challenge::Other(Printable(text).to_string())];
    };
    let challenges = parsed.iter().map(|challenge| {
        let parameter = |name: &str| {
            let mut found = challenge.params.iter();
            let (_, value) = found.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
            Some(value.to_unescaped())
        };
        match (challenge.scheme, parameter("realm")) {
            (scheme, Some(realm)) if scheme.eq_ignore_ascii_case("bearer") => Challenge::Bearer {
                realm,
                service: parameter("service"),
            },
            (scheme, _) if scheme.eq_ignore_ascii_case("basic") => Challenge::Basic,
            (scheme, _) => Challenge::Other(Printable(scheme).to_string()),
        }
    });
    challenges.collect()
}

/// Makes the header of a token service's answer.
fn bearer(body: &[u8]) -> Result<HeaderValue, &'static str> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
    }
    let answer: Answer = serde_json::from_slice(body).map_err(|_| "the answer is not JSON")?;
    let token = answer.token.filter(|token| !token.is_empty());
    let token = token.or(answer.access_token).ok_or("there is none")?;
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("it has characters that no token has");
    }
    let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| "it has characters that no token has")?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_in_their_usual_spellings() {
        let bearer = |service: Option<&str>| Challenge::Bearer {
            realm: "https://auth.example/token".to_owned(),
            service: service.map(str::to_owned),
        };
        for (text, expected) in [
            (
                r#"Bearer realm="https://auth.example/token",service="registry""#,
                vec![bearer(Some("registry"))],
            ),
            (
                r#"bearer Service="a \"b\"", Realm="https://auth.example/token", scope="x""#,
                vec![bearer(Some("a \"b\""))],
            ),
            (
                r#"Basic realm="r", Bearer realm="https://auth.example/token""#,
                vec![Challenge::Basic, bearer(None)],
            ),
            ("Bearer", vec![Challenge::Other("Bearer".to_owned())]),
            (
                r#"Negotiate abc="d""#,
                vec![Challenge::Other("Negotiate".to_owned())],
            ),
            ("=,\"", vec![Challenge::Other("=,\"".to_owned())]),
        ] {
            assert_eq!(parse_challenges(text), expected, "{text}");
        }
    }

    #[test]
    fn a_token_is_a_token_or_nothing() {
        let header = bearer(br#"{"token":"abc.def","expires_in":60}"#).unwrap();
        assert_eq!(header, "Bearer abc.def");
        assert!(!format!("{header:?}").contains("abc"));
        assert_eq!(
            bearer(br#"{"access_token":"x"}"#),
            Ok("Bearer x".parse().unwrap())
        );
        for body in [
            "",
            "[]",
            "{}",
            r#"{"token":""}"#,
            r#"{"token":7}"#,
            r#"{"token":"a\u0000b"}"#,
            r#"{"token":"a\r\nX-Injected: 1"}"#,
            r#"{"token":"a b"}"#,
        ] {
            assert!(bearer(body.as_bytes()).is_err(), "{body}");
        }
    }
}
