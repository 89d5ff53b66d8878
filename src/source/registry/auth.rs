//! Who we are to a registry: its scheme, its challenge, and the header that answers it.
//!
//! The token request is made here and not by `oci-client`: its `auth` asks the registry for the
//! challenge by itself, so the realm that gets the password would not be the one that was
//! checked, and it reads a token of any size.
//!
//! Format: distribution-spec's "Token Authentication Specification"; RFC 7235 for the challenge.

use std::sync::OnceLock;

use reqwest::header::{self, HeaderMap, HeaderValue};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use tokio::sync::{Mutex, OnceCell};

use crate::oci::Printable;
use crate::source::credentials::Login;
use crate::source::registry::address;
use crate::source::registry::challenge::{Challenge, challenges};
use crate::source::registry::transport::Transport;
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
    /// Host and port, as typed or spelled; credentials are looked up by it.
    registry: String,
    /// Addresses of the registry, in the order in which they are tried.
    bases: Vec<Url>,
    repository: String,
    /// Other repositories that are read while this one is written to.
    neighbours: OnceLock<Vec<String>>,
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

impl Grant {
    /// Of whoever says nothing of themselves.
    pub(super) fn anonymous() -> Self {
        Self {
            authorization: None,
            user: None,
            number: 0,
        }
    }
}

impl Session {
    pub(super) fn new(
        registry: String,
        bases: Vec<Url>,
        repository: String,
        credentials: Credentials,
    ) -> Self {
        Self {
            registry,
            bases,
            repository,
            neighbours: OnceLock::new(),
            credentials,
            endpoint: OnceCell::new(),
            pull: Mutex::new(None),
            push: Mutex::new(None),
        }
    }

    /// Has grants for writing allow to read `neighbours` as well, if none was asked for yet.
    pub(super) fn read_too(&self, neighbours: Vec<String>) {
        self.neighbours.get_or_init(|| neighbours);
    }

    /// The addresses of the registry.
    pub(super) fn bases(&self) -> &[Url] {
        &self.bases
    }

    /// Where the registry is, once a request has found that out.
    pub(super) fn endpoint(&self) -> Option<&Endpoint> {
        self.endpoint.get()
    }

    /// Finds out where the registry is, and what it asks for, by the first request that there is
    /// for it; others wait for its answer. Returns that answer to whoever made the request.
    pub(super) async fn reach(
        &self,
        transport: &Transport,
        build: impl Fn(&Url) -> RequestBuilder,
    ) -> Result<(&Endpoint, Option<Response>), SourceError> {
        let mut answer = None;
        let slot = &mut answer;
        let endpoint = self
            .endpoint
            .get_or_try_init(|| async move {
                let (base, response) = self.find(transport, build).await?;
                // Whoever a redirect led to asks for himself, and gets nothing that is the registry's.
                let is_own = response.url().origin() == base.origin();
                let challenges = match response.status() {
                    StatusCode::UNAUTHORIZED if is_own => challenges(response.headers()),
                    _ => Vec::new(),
                };
                *slot = Some(response);
                Ok(Endpoint { base, challenges })
            })
            .await?;
        Ok((endpoint, answer))
    }

    /// What requests carry now.
    pub(super) async fn grant(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        access: Access,
    ) -> Result<Grant, SourceError> {
        let mut slot = self.slot(access).lock().await;
        if let Some(grant) = &*slot {
            return Ok(grant.clone());
        }
        let challenges = &endpoint.challenges;
        let grant = self.ask(transport, endpoint, access, challenges, 0).await?;
        Ok(slot.insert(grant).clone())
    }

    /// A new grant in the place of `refused`, which was answered with `headers`; none if a new one
    /// would be no different.
    pub(super) async fn renew(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        access: Access,
        refused: &Grant,
        headers: &HeaderMap,
    ) -> Result<Option<Grant>, SourceError> {
        let mut slot = self.slot(access).lock().await;
        if let Some(newer) = slot.as_ref().filter(|now| now.number != refused.number) {
            return Ok(Some(newer.clone()));
        }
        let mut challenges = challenges(headers);
        if challenges.is_empty() {
            challenges.clone_from(&endpoint.challenges);
        }
        let number = refused.number + 1;
        let grant = self
            .ask(transport, endpoint, access, &challenges, number)
            .await?;
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

    /// Sends a request to one address of the registry after the other, until one answers. Where
    /// none does, the fault of whoever speaks TLS is told before that of plain HTTP.
    async fn find(
        &self,
        transport: &Transport,
        build: impl Fn(&Url) -> RequestBuilder,
    ) -> Result<(Url, Response), SourceError> {
        let (mut by_tls, mut plain) = (None, None);
        for base in &self.bases {
            let answer = transport.send(build(base)).await;
            match (base.scheme(), answer) {
                // So says a TLS port of what is not TLS; but it may be meant.
                ("http", Ok(response)) if response.status() == StatusCode::BAD_REQUEST => {
                    plain = Some(Ok((base.clone(), response)));
                }
                (_, Ok(response)) => return Ok((base.clone(), response)),
                (_, Err(error)) if !may_speak_otherwise(&error) => return Err(error),
                ("http", Err(error)) => plain = Some(Err(error)),
                (_, Err(error)) => by_tls = Some(error),
            }
        }
        match (by_tls, plain) {
            (
                Some(
                    fault @ SourceError::Tls {
                        is_spoken: true, ..
                    },
                ),
                _,
            ) => Err(fault),
            (_, Some(plain)) => plain,
            (Some(fault), None) => Err(fault),
            (None, None) => Err(SourceError::RegistryRefused {
                registry: self.registry.clone(),
                reason: AddressRefusal::NoAddress,
            }),
        }
    }

    async fn ask(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        access: Access,
        challenges: &[Challenge],
        number: u64,
    ) -> Result<Grant, SourceError> {
        if challenges.is_empty() {
            return Ok(Grant {
                number,
                ..Grant::anonymous()
            });
        }
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer { realm, service } => Some((realm, service.as_deref())),
            _ => None,
        });
        // Before any credential is even looked up.
        let token_service = match bearer {
            Some((realm, service)) => {
                let from = &endpoint.base;
                Some(self.token_service(transport, from, realm, service, access)?)
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
            (Some(url), login) => {
                let token = self.token(transport, url, login);
                transport.within(token).await?
            }
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
    fn token_service(
        &self,
        transport: &Transport,
        from: &Url,
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
        transport.policy.check(from, &url).map_err(refused)?;
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
        let neighbours = self.neighbours.get().filter(|_| access == Access::Push);
        for neighbour in neighbours.into_iter().flatten() {
            query.append_pair("scope", &format!("repository:{neighbour}:pull"));
        }
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
        let mut request = transport.client()?.get(url);
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

/// Tells whether a registry that fails in this way may be one that speaks the other of TLS and
/// plain HTTP.
fn may_speak_otherwise(error: &SourceError) -> bool {
    match error {
        SourceError::Unavailable { cause, .. } => {
            matches!(
                cause,
                Unavailability::Connection(_) | Unavailability::Timeout
            )
        }
        SourceError::Protocol { violation, .. } => matches!(violation, Violation::Http(_)),
        error => matches!(error, SourceError::Tls { .. }),
    }
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
