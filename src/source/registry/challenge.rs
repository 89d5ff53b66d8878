//! What a registry asks for before it lets anybody in.
//!
//! Format: RFC 7235, `WWW-Authenticate`.

use reqwest::header::{self, HeaderMap};

use crate::oci::Printable;

/// One way in that a registry offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A token, from the service at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
    },
    /// User name and password with each request.
    Basic,
    /// Its scheme, or what could not be read, made printable.
    Other(String),
}

/// The challenges of a 401, in their order. What cannot be parsed is none.
pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
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

impl Challenge {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Bearer { .. } => "Bearer",
            Self::Basic => "Basic",
            Self::Other(name) => name,
        }
    }
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
}
