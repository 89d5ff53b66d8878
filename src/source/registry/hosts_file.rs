//! What a `hosts.toml` says; pure.
//!
//! Format: containerd's `docs/hosts.md`. Keys that are not read here are passed over, as containerd
//! passes over those that it does not know: the file may be written for both.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};

use crate::oci::Printable;
use crate::source::HostsProblem;

/// Longest time-out that is waited for.
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// Headers that say what is asked for or how it is sent: ours alone.
const OWN_HEADERS: [HeaderName; 7] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::HOST,
    header::RANGE,
    header::TRANSFER_ENCODING,
];

/// The places that have a registry's images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct HostsFile {
    /// What stands for the registry itself; none if that does.
    pub(super) server: Option<Url>,
    /// What holds for it.
    pub(super) of_server: Settings,
    /// Where to ask before, in their order.
    pub(super) mirrors: Vec<(Url, Settings)>,
}

/// How one of them is spoken to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) capabilities: Vec<Capability>,
    /// Files with the certificates of those who may vouch for it.
    pub(super) authorities: Vec<PathBuf>,
    /// Files with our certificate, and with its key if that is not in the same one.
    pub(super) clients: Vec<(PathBuf, Option<PathBuf>)>,
    pub(super) skip_verify: bool,
    /// Sent with each request to it and, as by containerd, to wherever it redirects; marked sensitive.
    pub(super) headers: HeaderMap,
    pub(super) dial_timeout: Option<Duration>,
}

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Capability {
    /// What a digest names.
    Pull,
    /// What a tag leads to.
    Resolve,
    /// To take something.
    Push,
}

impl Capability {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Resolve => "resolve",
            Self::Push => "push",
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            capabilities: vec![Capability::Pull, Capability::Resolve, Capability::Push],
            authorities: Vec::new(),
            clients: Vec::new(),
            skip_verify: false,
            headers: HeaderMap::new(),
            dial_timeout: None,
        }
    }
}

impl HostsFile {
    pub(super) fn parse(text: &[u8]) -> Result<Self, HostsProblem> {
        let syntax = |line, message: &str| HostsProblem::Syntax {
            line,
            message: Printable(message).to_string(),
        };
        let text = std::str::from_utf8(text).map_err(|error| {
            let before = &text[..error.valid_up_to()];
            syntax(line_of(before), "not UTF-8")
        })?;
        let table: Table = text.parse().map_err(|error: toml::de::Error| {
            let at = error.span().map_or(0, |span| span.start);
            syntax(
                line_of(text.as_bytes().get(..at).unwrap_or_default()),
                error.message(),
            )
        })?;
        let root = Section {
            name: String::new(),
            table: &table,
        };
        let mut file = Self {
            server: None,
            of_server: root.settings()?,
            mirrors: Vec::new(),
        };
        if let Some(server) = root.text("server")?.filter(|server| !server.is_empty()) {
            file.server = Some(root.base("server", server)?);
        }
        if let Some(hosts) = root.table("host")? {
            for (address, host) in hosts {
                let name = format!("host.\"{}\"", Printable(address));
                let table = host
                    .as_table()
                    .ok_or_else(|| root.wrong(&name, "a table"))?;
                let section = Section {
                    name: name.clone(),
                    table,
                };
                let base = section.base_at(&name, address)?;
                file.mirrors.push((base, section.settings()?));
            }
        }
        Ok(file)
    }
}

fn line_of(before: &[u8]) -> usize {
    1 + before.iter().filter(|byte| **byte == b'\n').count()
}

/// A table and where it stands.
struct Section<'a> {
    name: String,
    table: &'a Table,
}

impl<'a> Section<'a> {
    fn key(&self, key: &str) -> String {
        match self.name.as_str() {
            "" => key.to_owned(),
            name => format!("{name}.{key}"),
        }
    }

    fn wrong(&self, key: &str, expected: &'static str) -> HostsProblem {
        HostsProblem::Key {
            key: self.key(key),
            expected,
        }
    }

    fn settings(&self) -> Result<Settings, HostsProblem> {
        let words = self.texts("capabilities")?;
        let mut settings = Settings {
            authorities: self.texts("ca")?.iter().map(PathBuf::from).collect(),
            clients: self.clients()?,
            skip_verify: self.flag("skip_verify")?,
            headers: self.headers()?,
            ..Settings::default()
        };
        if !words.is_empty() {
            settings.capabilities = self.capabilities(&words)?;
        }
        if let Some(text) = self.text("dial_timeout")? {
            let timeout = duration(text).filter(|timeout| !timeout.is_zero());
            let timeout = timeout.filter(|timeout| *timeout <= MAX_TIMEOUT);
            let expected = "a time like 3s or 500ms, ten minutes at most";
            settings.dial_timeout =
                Some(timeout.ok_or_else(|| self.wrong("dial_timeout", expected))?);
        }
        Ok(settings)
    }

    fn capabilities(&self, words: &[&str]) -> Result<Vec<Capability>, HostsProblem> {
        let mut capabilities = Vec::new();
        for word in words {
            capabilities.push(match *word {
                "pull" => Capability::Pull,
                "resolve" => Capability::Resolve,
                "push" => Capability::Push,
                // Nothing here asks for those.
                "referrers" => continue,
                _ => return Err(self.wrong("capabilities", "of pull, resolve and push")),
            });
        }
        Ok(capabilities)
    }

    fn table(&self, key: &str) -> Result<Option<&'a Table>, HostsProblem> {
        let value = self.table.get(key);
        let table = value.map(|value| value.as_table().ok_or_else(|| self.wrong(key, "a table")));
        table.transpose()
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, HostsProblem> {
        let value = self.table.get(key);
        let text = value.map(|value| value.as_str().ok_or_else(|| self.wrong(key, "a string")));
        text.transpose()
    }

    fn flag(&self, key: &str) -> Result<bool, HostsProblem> {
        let value = self.table.get(key);
        value.map_or(Ok(false), |value| {
            let flag = value.as_bool();
            flag.ok_or_else(|| self.wrong(key, "true or false"))
        })
    }

    /// A string, or a list of strings.
    fn texts(&self, key: &str) -> Result<Vec<&'a str>, HostsProblem> {
        let value = self.table.get(key);
        let texts = value.map_or(Some(Vec::new()), texts);
        texts.ok_or_else(|| self.wrong(key, "a string or a list of strings"))
    }

    /// A string, a list of strings, or a list of pairs.
    fn clients(&self) -> Result<Vec<(PathBuf, Option<PathBuf>)>, HostsProblem> {
        let client = |value: &Value| {
            let words = texts(value)?;
            match (value, words.as_slice()) {
                (Value::String(_), [both]) => Some((PathBuf::from(both), None)),
                (Value::Array(_), [certificate, key]) => {
                    let key = (!key.is_empty()).then(|| PathBuf::from(key));
                    Some((PathBuf::from(certificate), key))
                }
                _ => None,
            }
        };
        let clients = match self.table.get("client") {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(client).collect(),
            Some(one) => client(one).map(|client| vec![client]),
        };
        let expected = "a file, a list of files, or a list of pairs of certificate and key";
        clients.ok_or_else(|| self.wrong("client", expected))
    }

    fn headers(&self) -> Result<HeaderMap, HostsProblem> {
        let mut headers = HeaderMap::new();
        let Some(table) = self.table("header")? else {
            return Ok(headers);
        };
        let section = Section {
            name: self.key("header"),
            table,
        };
        for key in table.keys() {
            let name: Option<HeaderName> = key.parse().ok();
            let name = name.filter(|name| !OWN_HEADERS.contains(name));
            let shown = Printable(key).to_string();
            let name = name.ok_or_else(|| section.wrong(&shown, "a header to be set here"))?;
            for text in section.texts(key)? {
                let mut value = HeaderValue::from_str(text)
                    .map_err(|_| section.wrong(&shown, "the value of a header"))?;
                value.set_sensitive(true);
                headers.append(name.clone(), value);
            }
        }
        Ok(headers)
    }

    fn base(&self, key: &str, address: &str) -> Result<Url, HostsProblem> {
        self.base_at(&self.key(key), address)
    }

    /// Makes the address that paths are added to; without a scheme it is https.
    fn base_at(&self, key: &str, address: &str) -> Result<Url, HostsProblem> {
        let wrong = || HostsProblem::Key {
            key: key.to_owned(),
            expected: "an http or https address without user and query",
        };
        let whole = match address.contains("://") {
            true => address.to_owned(),
            false => format!("https://{address}"),
        };
        let mut url: Url = whole.parse().map_err(|_| wrong())?;
        let is_plain_address = url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none();
        if !["https", "http"].contains(&url.scheme()) || !is_plain_address {
            return Err(wrong());
        }
        let mut path = url.path().trim_end_matches('/').to_owned();
        if !self.flag("override_path")? && !path.ends_with("/v2") {
            path += "/v2";
        }
        url.set_path(&(path + "/"));
        Ok(url)
    }
}

fn texts(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(vec![text]),
        Value::Array(list) => list.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// Reads a duration as Go writes it, such as `1m30s` or `1.5s`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(number);
        let unit = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(unit.unwrap_or(after.len()));
        let seconds = match unit {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let count: f64 = number.parse().ok()?;
        sum = sum.checked_add(Duration::try_from_secs_f64(count * seconds).ok()?)?;
        rest = after;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Capability::{Pull, Push, Resolve};

    fn parse(text: &str) -> Result<HostsFile, HostsProblem> {
        HostsFile::parse(text.as_bytes())
    }

    #[test]
    fn all_that_containerds_page_shows_is_read() {
        let file = parse(
            r#"
            server = "https://registry.example"
            ca = "own.pem"

            [host."https://zebra.example"]
              capabilities = ["pull"]
              ca = ["/etc/a.pem", "b.pem"]
              client = [["c.cert", "c.key"], ["both.pem", ""]]
              skip_verify = true
              dial_timeout = "1m1.5s"
              rewrite = "unknown to us"
              [host."https://zebra.example".header]
                x-one = "1"
                x-more = ["a", "b"]

            [host."http://apple.example:5000/prefix/"]
              client = "pair.pem"
              capabilities = ["pull", "resolve", "referrers"]

            [host."https://mango.example/own/api"]
              override_path = true
              client = ["one.pem", "two.pem"]
            "#,
        )
        .unwrap();
        let url = |text: &str| text.parse::<Url>().unwrap();
        assert_eq!(file.server, Some(url("https://registry.example/v2/")));
        assert_eq!(file.of_server.authorities, [PathBuf::from("own.pem")]);
        assert_eq!(file.of_server.capabilities, [Pull, Resolve, Push]);
        let addresses: Vec<_> = file.mirrors.iter().map(|(base, _)| base.as_str()).collect();
        assert_eq!(
            addresses,
            [
                "https://zebra.example/v2/",
                "http://apple.example:5000/prefix/v2/",
                "https://mango.example/own/api/",
            ]
        );
        let [(_, zebra), (_, apple), (_, mango)] = file.mirrors.as_slice() else {
            panic!("{file:?}");
        };
        let mut headers = HeaderMap::new();
        headers.append("x-one", HeaderValue::from_static("1"));
        headers.append("x-more", HeaderValue::from_static("a"));
        headers.append("x-more", HeaderValue::from_static("b"));
        let expected = Settings {
            capabilities: vec![Pull],
            authorities: vec!["/etc/a.pem".into(), "b.pem".into()],
            clients: vec![
                ("c.cert".into(), Some("c.key".into())),
                ("both.pem".into(), None),
            ],
            skip_verify: true,
            headers,
            dial_timeout: Some(Duration::from_millis(61_500)),
        };
        assert_eq!(zebra, &expected);
        assert!(!format!("{zebra:?}").contains("\"1\""));
        assert_eq!(apple.capabilities, [Pull, Resolve]);
        assert_eq!(apple.clients, [("pair.pem".into(), None)]);
        let each = [("one.pem".into(), None), ("two.pem".into(), None)];
        assert_eq!(mango.clients, each);
        assert_eq!(parse("").unwrap(), HostsFile::default());
    }

    #[test]
    fn an_address_is_https_unless_it_says_otherwise_and_ends_in_the_apis_path() {
        for (address, expected) in [
            ("mirror.example", "https://mirror.example/v2/"),
            ("mirror.example:5000/", "https://mirror.example:5000/v2/"),
            ("http://mirror.example/v2", "http://mirror.example/v2/"),
            ("http://httpd.example/a/", "http://httpd.example/a/v2/"),
            ("https://[::1]:5000", "https://[::1]:5000/v2/"),
        ] {
            let file = parse(&format!("server = \"{address}\"")).unwrap();
            let server = file.server.map(|server| server.to_string());
            assert_eq!(server.as_deref(), Some(expected));
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_key() {
        for (text, expected) in [
            ("server = 1", "`server` is not a string"),
            (
                "server = \"ftp://x\"",
                "`server` is not an http or https address without user and query",
            ),
            (
                "server = \"https://user:secret@x\"",
                "`server` is not an http or https address without user and query",
            ),
            ("host = 1", "`host` is not a table"),
            ("[host]\na = 1", "`host.\"a\"` is not a table"),
            (
                "[host.\"https://a?b\"]",
                "`host.\"https://a?b\"` is not an http or https address without user and query",
            ),
            (
                "[host.a]\nskip_verify = \"yes\"",
                "`host.\"a\".skip_verify` is not true or false",
            ),
            (
                "[host.a]\ncapabilities = [\"fly\"]",
                "`host.\"a\".capabilities` is not of pull, resolve and push",
            ),
            ("ca = [1]", "`ca` is not a string or a list of strings"),
            (
                "client = [[\"a\"]]",
                "`client` is not a file, a list of files, or a list of pairs of certificate and key",
            ),
            (
                "dial_timeout = \"3 years\"",
                "`dial_timeout` is not a time like 3s or 500ms, ten minutes at most",
            ),
            (
                "dial_timeout = \"99999999999999999999h\"",
                "`dial_timeout` is not a time like 3s or 500ms, ten minutes at most",
            ),
            (
                "[header]\nhost = \"x\"",
                "`header.host` is not a header to be set here",
            ),
            (
                "[header]\nx = \"a\\nb\"",
                "`header.x` is not the value of a header",
            ),
        ] {
            let problem = parse(text).unwrap_err();
            assert_eq!(problem.to_string(), expected, "{text}");
        }
        for (text, line) in [("\nserver = ", 2), ("a = 1\na = 2", 2), ("[", 1)] {
            let problem = parse(text).unwrap_err();
            assert!(
                matches!(&problem, HostsProblem::Syntax { line: l, .. } if *l == line),
                "{text}: {problem:?}"
            );
        }
        let deep = format!("a = {}", "[".repeat(100_000));
        assert!(parse(&deep).is_err());
        assert!(HostsFile::parse(b"a = \"\xff\"").is_err());
    }
}
