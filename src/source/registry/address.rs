//! Where a request may go: pure decisions, and a resolver that keeps names to the same rules.

use std::net::IpAddr;
use std::sync::Arc;

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::redirect;
use thiserror::Error;

use crate::source::{AddressRefusal, TlsPolicy};

/// Most redirects in a row.
const MAX_REDIRECTS: usize = 5;

/// The addresses of the registry at `host` (with its port), in the order in which they are tried,
/// and the rules for where it may send us.
///
/// Plain HTTP is among them only on this machine, or where certificates do not matter. On this
/// machine it comes first: there is nobody in between whom TLS could keep out, whoever holds the
/// port could refuse TLS as well, and most registries of a loopback are plain.
pub(super) fn registry(
    host: &str,
    tls: TlsPolicy,
) -> Result<(Vec<Url>, AddressPolicy), AddressRefusal> {
    let parse = |scheme: &str| {
        let url = format!("{scheme}://{host}/v2/").parse();
        url.map_err(|_| AddressRefusal::NoAddress)
    };
    let by_tls: Url = parse("https")?;
    if address(&by_tls).is_some_and(is_link_local) {
        return Err(AddressRefusal::LinkLocal);
    }
    let policy = AddressPolicy::of(&by_tls, tls);
    let bases = if policy.registry_is_loopback {
        vec![parse("http")?, by_tls]
    } else if tls == TlsPolicy::Insecure {
        let plain = parse("http")?;
        vec![by_tls, plain]
    } else {
        vec![by_tls]
    };
    Ok((bases, policy))
}

/// The rules for where a host that the operator has spelled out, scheme and all, may send us.
pub(super) fn spelled(base: &Url, tls: TlsPolicy) -> Result<AddressPolicy, AddressRefusal> {
    if address(base).is_some_and(is_link_local) {
        return Err(AddressRefusal::LinkLocal);
    }
    Ok(AddressPolicy {
        is_plain: base.scheme() == "http",
        ..AddressPolicy::of(base, tls)
    })
}

/// The rules for the addresses that a registry may send us to.
#[derive(Debug, Clone)]
pub(super) struct AddressPolicy {
    /// Host of the registry itself, which the user chose.
    host: String,
    /// Whether that is this machine.
    pub(super) registry_is_loopback: bool,
    /// Whether the operator wants plain HTTP spoken with that host.
    is_plain: bool,
    /// Hosts of the user's proxies.
    proxies: Vec<String>,
    /// Whether plain HTTP to other machines was allowed.
    pub(super) tls: TlsPolicy,
}

/// An address that was refused, as it travels through the HTTP client's errors.
#[derive(Debug, Clone, Error)]
#[error("{target}")]
pub(super) struct Refused {
    pub(super) target: String,
    #[source]
    pub(super) reason: AddressRefusal,
}

impl AddressPolicy {
    fn of(registry: &Url, tls: TlsPolicy) -> Self {
        Self {
            host: registry.host_str().unwrap_or_default().to_owned(),
            registry_is_loopback: is_loopback(registry),
            is_plain: false,
            proxies: Vec::new(),
            tls,
        }
    }

    /// The same rules where everything goes through proxies, wherever those are.
    pub(super) fn by_way_of(self, proxies: Vec<String>) -> Self {
        Self { proxies, ..self }
    }

    /// Decides whether to go to `target` when `from` says so.
    pub(super) fn check(&self, from: &Url, target: &Url) -> Result<(), AddressRefusal> {
        if !["https", "http"].contains(&target.scheme()) {
            return Err(AddressRefusal::Scheme);
        }
        if address(target).is_some_and(is_link_local) {
            return Err(AddressRefusal::LinkLocal);
        }
        if is_loopback(target) && !self.registry_is_loopback {
            return Err(AddressRefusal::Loopback);
        }
        if target.scheme() == "http" {
            if from.scheme() == "https" {
                return Err(AddressRefusal::Downgrade);
            }
            let is_itself = self.is_plain && target.host_str() == Some(&self.host);
            if !is_loopback(target) && !is_itself && self.tls == TlsPolicy::Verify {
                return Err(AddressRefusal::PlainHttp);
            }
        }
        Ok(())
    }

    /// The same rules, for the client's redirects.
    pub(super) fn redirects(self) -> redirect::Policy {
        redirect::Policy::custom(move |attempt| {
            let hops = attempt.previous().len();
            let verdict = match attempt.previous().last() {
                _ if hops > MAX_REDIRECTS => Err(AddressRefusal::TooMany(hops)),
                Some(from) => self.check(from, attempt.url()),
                None => Err(AddressRefusal::NoAddress),
            };
            match verdict {
                Ok(()) => attempt.follow(),
                Err(reason) => {
                    let target = shown(attempt.url());
                    attempt.error(Refused { target, reason })
                }
            }
        })
    }
}

/// Returns `url` without what may be secret in it: signed URLs carry their signature in the query.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    let has_user = !url.username().is_empty() || url.password().is_some();
    if has_user && url.set_username("").and(url.set_password(None)).is_err() {
        return url.scheme().to_owned();
    }
    crate::oci::Printable(url.as_str()).to_string()
}

fn address(url: &Url) -> Option<IpAddr> {
    let host = url.host_str()?;
    let address: IpAddr = host.trim_matches(['[', ']']).parse().ok()?;
    Some(address.to_canonical())
}

fn is_loopback(url: &Url) -> bool {
    match address(url) {
        Some(address) => is_own(address),
        None => url.host_str().is_some_and(is_localhost),
    }
}

fn is_localhost(host: &str) -> bool {
    let host = host.trim_end_matches('.');
    host == "localhost" || host.ends_with(".localhost")
}

/// The unspecified address is counted in: Linux connects it to this machine.
fn is_own(address: IpAddr) -> bool {
    let address = address.to_canonical();
    address.is_loopback() || address.is_unspecified()
}

fn is_link_local(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Resolves names, without the addresses that the policy refuses: a redirect to a name must not
/// reach what a redirect to its address would not.
#[derive(Debug)]
pub(super) struct Resolver(pub(super) Arc<AddressPolicy>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.0);
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let mut chosen = policy.proxies.iter().chain([&policy.host]);
            let chosen_by_user = chosen.any(|host| name.as_str().eq_ignore_ascii_case(host));
            let own_allowed = policy.registry_is_loopback || chosen_by_user;
            let mut refusal = None;
            let allowed: Vec<_> = found
                .filter(|socket| {
                    let reason = match socket.ip() {
                        ip if is_link_local(ip) => AddressRefusal::LinkLocal,
                        ip if is_own(ip) && !own_allowed => AddressRefusal::Loopback,
                        // It is taken for this machine by its name alone, and so spoken to plainly.
                        ip if is_localhost(name.as_str()) && !is_own(ip) => {
                            AddressRefusal::PlainHttp
                        }
                        _ => return true,
                    };
                    refusal = Some(reason);
                    false
                })
                .collect();
            match refusal {
                Some(reason) if allowed.is_empty() => {
                    let target = name.as_str().to_owned();
                    Err(Box::new(Refused { target, reason }).into())
                }
                _ => Ok(Box::new(allowed.into_iter()) as Addrs),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the registry at `from` may send us to `target`.
    fn check(from: &str, tls: TlsPolicy, target: &str) -> Result<(), AddressRefusal> {
        let (_, host) = from.split_once("://").unwrap();
        let (_, policy) = registry(host, tls).unwrap();
        policy.check(&from.parse().unwrap(), &target.parse().unwrap())
    }

    #[test]
    fn plain_http_is_tried_on_this_machine_or_where_it_was_allowed() {
        let bases = |host: &str, tls| {
            let bases = registry(host, tls).map(|(bases, _)| bases);
            bases.map(|bases| bases.iter().map(Url::to_string).collect::<Vec<_>>())
        };
        let both = |host: &str, schemes: [&str; 2]| {
            Ok(schemes
                .map(|scheme| format!("{scheme}://{host}/v2/"))
                .into())
        };
        for host in ["127.0.0.1:5000", "127.1.2.3", "localhost", "[::1]:5000"] {
            for tls in [TlsPolicy::Verify, TlsPolicy::Insecure] {
                assert_eq!(bases(host, tls), both(host, ["http", "https"]));
            }
        }
        for host in ["10.0.0.1:5000", "registry.example", "localhost.example"] {
            let by_tls = Ok(vec![format!("https://{host}/v2/")]);
            assert_eq!(bases(host, TlsPolicy::Verify), by_tls);
            assert_eq!(
                bases(host, TlsPolicy::Insecure),
                both(host, ["https", "http"])
            );
        }
        for host in ["169.254.169.254", "[fe80::1]:5000"] {
            let refused = Err(AddressRefusal::LinkLocal);
            assert_eq!(bases(host, TlsPolicy::Insecure), refused);
        }
    }

    #[test]
    fn a_registry_may_send_us_to_other_machines_by_tls_only() {
        use AddressRefusal::{Downgrade, LinkLocal, Loopback, Scheme};
        for (target, expected) in [
            ("https://storage.example/blob?signature=x", Ok(())),
            ("https://10.1.2.3/blob", Ok(())),
            ("http://storage.example/blob", Err(Downgrade)),
            ("ftp://storage.example/blob", Err(Scheme)),
            ("file:///etc/passwd", Err(Scheme)),
            ("https://169.254.169.254/latest/meta-data", Err(LinkLocal)),
            ("http://169.254.169.254/latest/meta-data", Err(LinkLocal)),
            ("https://2852039166/", Err(LinkLocal)),
            ("https://[fe80::1]/", Err(LinkLocal)),
            ("https://[::ffff:169.254.169.254]/", Err(LinkLocal)),
            ("https://127.0.0.1/", Err(Loopback)),
            ("https://127.1/", Err(Loopback)),
            ("https://0.0.0.0/", Err(Loopback)),
            ("https://[::1]/", Err(Loopback)),
            ("https://[::ffff:127.0.0.1]/", Err(Loopback)),
            ("https://localhost:8080/", Err(Loopback)),
            ("https://x.localhost./", Err(Loopback)),
        ] {
            let verdict = check("https://registry.example", TlsPolicy::Verify, target);
            assert_eq!(verdict, expected, "{target}");
            // Whoever does not check certificates still does not leave TLS on the way.
            let verdict = check("https://registry.example", TlsPolicy::Insecure, target);
            assert_eq!(verdict, expected, "{target}");
        }
    }

    #[test]
    fn a_registry_of_this_machine_may_send_us_around_this_machine() {
        let from = "http://127.0.0.1:5000";
        for (tls, target, expected) in [
            (TlsPolicy::Verify, "http://127.0.0.1:9000/", Ok(())),
            (TlsPolicy::Verify, "https://storage.example/", Ok(())),
            (
                TlsPolicy::Verify,
                "http://storage.example/",
                Err(AddressRefusal::PlainHttp),
            ),
            (TlsPolicy::Insecure, "http://storage.example/", Ok(())),
            (
                TlsPolicy::Insecure,
                "http://169.254.169.254/",
                Err(AddressRefusal::LinkLocal),
            ),
        ] {
            assert_eq!(check(from, tls, target), expected, "{target}");
        }
    }

    #[test]
    fn a_host_that_is_spelled_as_plain_may_send_us_around_itself_only() {
        let base: Url = "http://mirror.example:5000/v2/".parse().unwrap();
        let policy = spelled(&base, TlsPolicy::Verify).unwrap();
        for (target, expected) in [
            ("http://mirror.example:5000/token", Ok(())),
            ("http://mirror.example/blob", Ok(())),
            ("https://storage.example/blob", Ok(())),
            ("http://storage.example/", Err(AddressRefusal::PlainHttp)),
            ("http://127.0.0.1/", Err(AddressRefusal::Loopback)),
            ("http://169.254.169.254/", Err(AddressRefusal::LinkLocal)),
        ] {
            let verdict = policy.check(&base, &target.parse().unwrap());
            assert_eq!(verdict, expected, "{target}");
        }
        let metadata = "http://169.254.169.254/v2/".parse().unwrap();
        let refused = spelled(&metadata, TlsPolicy::Insecure).unwrap_err();
        assert_eq!(refused, AddressRefusal::LinkLocal);
    }

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        let url: Url = "https://user:pw@storage.example/blob?signature=x#y"
            .parse()
            .unwrap();
        assert_eq!(shown(&url), "https://storage.example/blob");
        let url: Url = "file:///etc/passwd".parse().unwrap();
        assert_eq!(shown(&url), "file:///etc/passwd");
    }
}
