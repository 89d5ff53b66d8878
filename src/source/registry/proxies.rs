//! Ways around: proxies for everything that is not this machine.

use std::fmt;

use reqwest::{ClientBuilder, NoProxy, Proxy, Url};

use crate::source::SourceError;

/// Which proxies requests to other machines go through. Prints as their hosts: an address may have
/// a password in it.
#[derive(Clone, Default)]
pub struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    not_for: String,
}

/// A setting for a proxy, and what it is called.
#[derive(Clone)]
pub struct ProxySetting {
    /// The variable that it is from.
    pub variable: &'static str,
    /// Its value: an address, `http://` if it has no scheme.
    pub address: String,
}

impl Proxies {
    /// Understands the settings for plain HTTP and for TLS, and the list of hosts that are reached
    /// without: names (which stand for all below them), addresses, networks, or `*`.
    ///
    /// Errors if one is not an http or https address.
    pub fn new(
        http: Option<ProxySetting>,
        https: Option<ProxySetting>,
        not_for: &str,
    ) -> Result<Self, SourceError> {
        Ok(Self {
            http: http.map(parse).transpose()?,
            https: https.map(parse).transpose()?,
            not_for: not_for.to_owned(),
        })
    }

    /// The hosts of the proxies, which are where the user wants them.
    #[must_use]
    pub fn hosts(&self) -> Vec<String> {
        let proxies = [&self.http, &self.https].into_iter().flatten();
        let hosts = proxies.filter_map(|proxy| proxy.host_str().map(str::to_owned));
        let mut hosts: Vec<_> = hosts.collect();
        hosts.dedup();
        hosts
    }

    /// Has all requests go through them.
    pub(super) fn apply(&self, builder: ClientBuilder) -> reqwest::Result<ClientBuilder> {
        // Nothing is looked up in the environment behind the caller's back.
        let mut builder = builder.no_proxy();
        let not_for = || NoProxy::from_string(&self.not_for);
        if let Some(proxy) = &self.http {
            builder = builder.proxy(Proxy::http(proxy.clone())?.no_proxy(not_for()));
        }
        if let Some(proxy) = &self.https {
            builder = builder.proxy(Proxy::https(proxy.clone())?.no_proxy(not_for()));
        }
        Ok(builder)
    }
}

/// The value is not quoted in the error: it may have a password in it.
fn parse(setting: ProxySetting) -> Result<Url, SourceError> {
    let whole = match setting.address.contains("://") {
        true => setting.address,
        false => format!("http://{}", setting.address),
    };
    let url: Option<Url> = whole.parse().ok();
    url.filter(|url| ["http", "https"].contains(&url.scheme()))
        .ok_or(SourceError::Proxy {
            variable: setting.variable,
        })
}

impl fmt::Debug for ProxySetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.variable)
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.hosts()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_proxy_is_http_and_never_shown_whole() {
        let of = |address: &str| {
            let setting = ProxySetting {
                variable: "HTTPS_PROXY",
                address: address.to_owned(),
            };
            assert_eq!(format!("{setting:?}"), "HTTPS_PROXY");
            Proxies::new(None, Some(setting), "")
        };
        for (address, host) in [
            ("proxy.example:3128", "proxy.example"),
            ("http://me:hunter2@proxy.example:3128/", "proxy.example"),
            ("me:hunter2@proxy.example", "proxy.example"),
            ("https://[::1]:8080", "[::1]"),
        ] {
            let proxies = of(address).unwrap();
            assert_eq!(proxies.hosts(), [host]);
            assert_eq!(format!("{proxies:?}"), format!("[{host:?}]"));
        }
        for address in [
            "socks5://me:hunter2@proxy.example",
            "http://",
            "://",
            "http://me:hunter2@",
        ] {
            let error = of(address).unwrap_err();
            let expected = "the proxy in HTTPS_PROXY is not at an http or https address";
            assert_eq!(error.to_string(), expected);
            assert!(!format!("{error:?}").contains("hunter2"));
        }
    }
}
