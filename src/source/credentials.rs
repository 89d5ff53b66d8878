//! Who we are to each registry, as docker's and podman's files have it.
//!
//! Never looks for the files itself: the caller says where they are. Nothing in here prints a
//! secret, not even with `{:?}`.
//!
//! Format: containers-auth.json(5); docker's `config.json` (`auths`, `credHelpers`, `credsStore`).

mod helper;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderValue;
use rustix::fs::Mode;
use serde::Deserialize;

use crate::oci::Printable;
use crate::source::{CredentialsProblem, SourceError};

/// Largest file of credentials that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Docker's hub as references call it, and the key that its login has always had.
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Who we are to each registry.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    files: Vec<AuthFile>,
}

/// A user name and its password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// The user name.
    pub user: String,
    /// The password.
    pub password: Password,
}

/// A password; prints as `****`.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

#[derive(Debug, Clone)]
struct AuthFile {
    path: PathBuf,
    readable_by_others: bool,
    /// By registry, or registry and the beginning of a repository; without scheme.
    logins: BTreeMap<String, Entry>,
    /// Names of helpers by registry.
    helpers: BTreeMap<String, String>,
    /// The helper for all other registries.
    store: Option<String>,
}

#[derive(Debug, Clone)]
enum Entry {
    Login(Login),
    IdentityToken,
}

/// Where a registry's login is to be had.
#[derive(Debug)]
enum Found<'a> {
    Entry(&'a Entry),
    Helper(&'a str),
}

/// What a file of credentials is about.
#[derive(Debug, Clone)]
pub struct Told<'a> {
    /// The file.
    pub path: &'a Path,
    /// Whether others can read it.
    pub readable_by_others: bool,
    /// The registries that it names.
    pub registries: BTreeSet<&'a String>,
    /// The names of the helpers that it asks, whose programs are `docker-credential-NAME`.
    pub helpers: BTreeSet<&'a String>,
}

impl Credentials {
    /// Reads `files`, the most important first. Missing ones are skipped.
    ///
    /// Errors if one cannot be read or understood.
    pub fn load(files: &[PathBuf]) -> Result<Self, SourceError> {
        let files = files.iter().map(|path| AuthFile::load(path));
        let files: Result<Vec<_>, _> = files.filter_map(Result::transpose).collect();
        Ok(Self { files: files? })
    }

    /// The files that anybody on this machine, or anybody of their group, can read.
    pub fn readable_by_others(&self) -> impl Iterator<Item = &Path> {
        let files = self.files.iter().filter(|file| file.readable_by_others);
        files.map(|file| file.path.as_path())
    }

    /// What each file has, without any secret.
    pub fn told(&self) -> impl Iterator<Item = Told<'_>> {
        self.files.iter().map(|file| Told {
            path: &file.path,
            readable_by_others: file.readable_by_others,
            registries: file.logins.keys().chain(file.helpers.keys()).collect(),
            helpers: file.helpers.values().chain(&file.store).collect(),
        })
    }

    /// Finds the login for a repository; none if there is none, which is anonymous access.
    ///
    /// The first file that knows the registry decides. May run a credential helper.
    pub async fn login(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Login>, SourceError> {
        let found = self.files.iter().find_map(|file| {
            let found = file.find(registry, repository)?;
            Some((file, found))
        });
        match found {
            None => Ok(None),
            Some((_, Found::Entry(Entry::Login(login)))) => Ok(Some(login.clone())),
            Some((file, Found::Entry(Entry::IdentityToken))) => {
                Err(file.problem(CredentialsProblem::IdentityToken(registry.to_owned())))
            }
            Some((_, Found::Helper(name))) => {
                let key = match host(registry) {
                    HUB => HUB_KEY,
                    host => host,
                };
                helper::get(name, key).await
            }
        }
    }
}

impl AuthFile {
    fn load(path: &Path) -> Result<Option<Self>, SourceError> {
        let io = |source| SourceError::Io {
            doing: "read credentials from",
            path: path.to_owned(),
            source,
        };
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(error)),
        };
        let mode = Mode::from_raw_mode(rustix::fs::fstat(&file).map_err(|e| io(e.into()))?.st_mode);
        let mut text = Vec::new();
        file.take(MAX_FILE_BYTES + 1)
            .read_to_end(&mut text)
            .map_err(io)?;
        let parsed = Self::parse(path, &text).map_err(|problem| SourceError::CredentialsFile {
            path: path.to_owned(),
            problem,
        })?;
        Ok(Some(Self {
            readable_by_others: mode.intersects(Mode::RGRP | Mode::ROTH),
            ..parsed
        }))
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, CredentialsProblem> {
        if text.len() as u64 > MAX_FILE_BYTES {
            return Err(CredentialsProblem::TooLarge(MAX_FILE_BYTES));
        }
        let wire: WireFile =
            serde_json::from_slice(text).map_err(|error| CredentialsProblem::Json {
                line: error.line(),
                column: error.column(),
            })?;
        let mut logins = BTreeMap::new();
        for (key, wire) in wire.auths {
            if let Some(entry) = wire.entry(&key)? {
                logins.insert(normal(&key), entry);
            }
        }
        let store = wire.store.filter(|name| !name.is_empty());
        for name in wire.helpers.values().chain(&store) {
            if !helper::is_name(name) {
                let name = Printable(name).to_string();
                return Err(CredentialsProblem::HelperName(name));
            }
        }
        let helpers = wire.helpers.into_iter();
        Ok(Self {
            path: path.to_owned(),
            readable_by_others: false,
            logins,
            helpers: helpers.map(|(key, name)| (normal(&key), name)).collect(),
            store,
        })
    }

    /// Looks for `registry/a/b`, then `registry/a`, then `registry`.
    fn find(&self, registry: &str, repository: &str) -> Option<Found<'_>> {
        let full = format!("{}/{repository}", host(registry));
        let keys = std::iter::successors(Some(full.as_str()), |key| {
            key.rsplit_once('/').map(|(shorter, _)| shorter)
        });
        keys.clone()
            .find_map(|key| self.helpers.get(key))
            .map(|name| Found::Helper(name))
            .or_else(|| {
                let mut keys = keys.clone();
                keys.find_map(|key| self.logins.get(key)).map(Found::Entry)
            })
            .or_else(|| self.store.as_deref().map(Found::Helper))
    }

    fn problem(&self, problem: CredentialsProblem) -> SourceError {
        SourceError::CredentialsFile {
            path: self.path.clone(),
            problem,
        }
    }
}

/// The key of an entry without scheme, path of an API, or other names of Docker's hub.
fn normal(key: &str) -> String {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let key = match bare {
        // A URL is of a whole registry, whatever its path says (`/v1/`, `/v2/`).
        Some(bare) => bare.split('/').next().unwrap_or(bare),
        None => key.trim_end_matches('/'),
    };
    match key.split_once('/') {
        Some((registry, rest)) => format!("{}/{rest}", host(registry)),
        None => host(key).to_owned(),
    }
}

fn host(registry: &str) -> &str {
    match registry {
        "index.docker.io" | "registry-1.docker.io" => HUB,
        registry => registry,
    }
}

#[derive(Deserialize)]
struct WireFile {
    #[serde(default)]
    auths: BTreeMap<String, WireEntry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize)]
struct WireEntry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

impl WireEntry {
    /// Docker leaves empty entries behind for registries whose login is in the store.
    fn entry(self, key: &str) -> Result<Option<Entry>, CredentialsProblem> {
        if !self.identitytoken.is_empty() {
            return Ok(Some(Entry::IdentityToken));
        }
        if self.auth.is_empty() {
            let login = Login::new(self.username, self.password);
            return Ok((!login.user.is_empty()).then_some(Entry::Login(login)));
        }
        let decoded = STANDARD.decode(self.auth.trim()).ok();
        let decoded = decoded.and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((user, password)) if !user.is_empty() => {
                // Docker pads the decoded text with NUL bytes.
                let password = password.trim_end_matches('\0');
                let login = Login::new(user.to_owned(), password.to_owned());
                Ok(Some(Entry::Login(login)))
            }
            _ => Err(CredentialsProblem::Auth(Printable(key).to_string())),
        }
    }
}

impl Login {
    /// Makes a login.
    #[must_use]
    pub fn new(user: String, password: String) -> Self {
        Self {
            user,
            password: Password(password),
        }
    }

    /// The header of HTTP's Basic scheme; marked sensitive, so that it is not printed either.
    pub(super) fn basic(&self) -> HeaderValue {
        let text = STANDARD.encode(format!("{}:{}", self.user, self.password.0));
        let mut value = HeaderValue::from_str(&format!("Basic {text}"))
            .expect("base64 has only characters that headers may have");
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "****")
    }
}

impl fmt::Display for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "****")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Credentials, CredentialsProblem> {
        let file = AuthFile::parse(Path::new("auth.json"), json.as_bytes())?;
        Ok(Credentials { files: vec![file] })
    }

    fn auth(user: &str, password: &str) -> String {
        let auth = STANDARD.encode(format!("{user}:{password}"));
        format!(r#"{{"auth":"{auth}"}}"#)
    }

    #[tokio::test]
    async fn the_most_specific_entry_is_the_one() {
        let json = format!(
            r#"{{"auths":{{"reg.example":{},"reg.example/team":{},"reg.example/team/os":{},
                "https://plain.example/v2/":{},"{HUB_KEY}":{},"empty.example":{{}}}}}}"#,
            auth("host", "p:w"),
            auth("team", "pw"),
            auth("os", "pw"),
            auth("url", "pw"),
            auth("hub", "pw"),
        );
        let credentials = parse(&json).unwrap();
        for (registry, repository, expected) in [
            ("reg.example", "team/os", Some("os")),
            ("reg.example", "team/os/deep", Some("os")),
            ("reg.example", "team/other", Some("team")),
            ("reg.example", "teams/os", Some("host")),
            ("reg.example:5000", "team/os", None),
            ("other.example", "team/os", None),
            ("plain.example", "x", Some("url")),
            ("docker.io", "library/x", Some("hub")),
            ("index.docker.io", "library/x", Some("hub")),
            ("empty.example", "x", None),
        ] {
            let login = credentials.login(registry, repository).await.unwrap();
            let user = login.map(|login| login.user);
            assert_eq!(user.as_deref(), expected, "{registry}/{repository}");
        }
        let login = credentials.login("reg.example", "x").await.unwrap();
        assert_eq!(login, Some(Login::new("host".to_owned(), "p:w".to_owned())));
    }

    #[tokio::test]
    async fn an_identity_token_is_refused_by_name_and_only_when_it_is_needed() {
        let json = format!(
            r#"{{"auths":{{"a.example":{{"identitytoken":"secret"}},"b.example":{}}}}}"#,
            auth("b", "pw")
        );
        let credentials = parse(&json).unwrap();
        assert!(credentials.login("b.example", "x").await.unwrap().is_some());
        let error = credentials.login("a.example", "x").await.unwrap_err();
        assert!(matches!(
            error,
            SourceError::CredentialsFile { problem: CredentialsProblem::IdentityToken(registry), .. }
            if registry == "a.example"
        ));
    }

    #[test]
    fn helpers_are_found_before_entries_and_the_store_after_them() {
        let json = format!(
            r#"{{"auths":{{"a.example":{},"b.example":{}}},
                "credHelpers":{{"a.example":"one"}},"credsStore":"all"}}"#,
            auth("a", "pw"),
            auth("b", "pw"),
        );
        let credentials = parse(&json).unwrap();
        let find = |registry| credentials.files[0].find(registry, "x");
        assert!(matches!(find("a.example"), Some(Found::Helper("one"))));
        assert!(matches!(find("b.example"), Some(Found::Entry(_))));
        assert!(matches!(find("c.example"), Some(Found::Helper("all"))));
    }

    #[test]
    fn broken_files_are_refused_without_quoting_them() {
        for (json, expected) in [
            ("", CredentialsProblem::Json { line: 1, column: 0 }),
            (
                r#"{"auths":"secret"}"#,
                CredentialsProblem::Json {
                    line: 1,
                    column: 17,
                },
            ),
            (
                r#"{"auths":{"a.example":{"auth":"secret"}}}"#,
                CredentialsProblem::Auth("a.example".to_owned()),
            ),
            (
                r#"{"credsStore":"../../bin/sh"}"#,
                CredentialsProblem::HelperName("../../bin/sh".to_owned()),
            ),
            (
                r#"{"credHelpers":{"a.example":"/bin/sh"}}"#,
                CredentialsProblem::HelperName("/bin/sh".to_owned()),
            ),
        ] {
            let problem = parse(json).unwrap_err();
            assert_eq!(problem, expected);
            assert!(!problem.to_string().contains("secret"));
        }
        let huge = " ".repeat(1 << 20) + "{}";
        assert!(matches!(parse(&huge), Err(CredentialsProblem::TooLarge(_))));
    }

    #[test]
    fn secrets_are_never_shown() {
        let json = format!(r#"{{"auths":{{"a.example":{}}}}}"#, auth("me", "hunter2"));
        let credentials = parse(&json).unwrap();
        let shown = format!("{credentials:?}");
        assert!(shown.contains("me") && shown.contains("****"), "{shown}");
        assert!(!shown.contains("hunter2"));
        let login = Login::new("me".to_owned(), "hunter2".to_owned());
        assert!(!format!("{:?} {}", login.basic(), login.password).contains("hunter2"));
        assert!(!format!("{:?}", login.basic()).contains("Basic"));
    }

    #[test]
    fn missing_files_are_skipped_and_open_ones_are_told() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let paths: Vec<_> = ["none", "open", "closed"]
            .map(|name| directory.path().join(name))
            .into();
        for (path, mode) in [(&paths[1], 0o644), (&paths[2], 0o600)] {
            std::fs::write(path, "{}").unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let credentials = Credentials::load(&paths).unwrap();
        assert_eq!(credentials.files.len(), 2);
        let open: Vec<_> = credentials.readable_by_others().collect();
        assert_eq!(open, [&paths[1]]);
        std::fs::write(&paths[2], "{").unwrap();
        let error = Credentials::load(&paths).unwrap_err();
        assert!(error.to_string().contains("closed"), "{error}");
    }
}
