//! Where a registry's images are to be had, as the operator's directories say.
//!
//! ```text
//! <directory>/registry.example:5000/hosts.toml   containerd's form: mirrors, and how each is spoken to
//! <directory>/registry.example_5000_/hosts.toml  the same, as containerd spells it too
//! <directory>/registry.example:5000/*.crt …      docker's form, where there is no hosts.toml
//! <directory>/_default/…                         for every other registry
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::HeaderMap;

use crate::files;
use crate::source::registry::address::{self, AddressPolicy};
use crate::source::registry::hosts_file::{Capability, HostsFile, Settings};
use crate::source::registry::trust::Trust;
use crate::source::{HostsProblem, SourceError, SourceOptions};

/// Largest `hosts.toml` that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// One of the places that a registry's images are to be had at.
#[derive(Debug)]
pub(super) struct Place {
    /// Host and port: what errors and credentials call it.
    pub(super) name: String,
    /// Its addresses, in the order in which they are tried; each ends in the API's path.
    pub(super) bases: Vec<Url>,
    /// Where it may send us.
    pub(super) policy: AddressPolicy,
    /// The registry that it stands for, where that is another: told with each request.
    pub(super) stands_for: Option<String>,
    pub(super) capabilities: Vec<Capability>,
    pub(super) trust: Trust,
    /// Sent with each request to it and, as by containerd, to wherever it redirects.
    pub(super) headers: HeaderMap,
    /// How long connecting may take, if that is not left to us.
    pub(super) dial_timeout: Option<Duration>,
}

/// The places to ask for what `registry` has, in their order: its mirrors, then itself or what its
/// file has in its stead. `host` is where it is if no file says otherwise.
pub(super) fn places(
    registry: &str,
    host: &str,
    options: &SourceOptions,
) -> Result<Vec<Place>, SourceError> {
    let directory = find(&options.hosts_directories, registry);
    let mut file = HostsFile::default();
    let mut trust = Trust::default();
    if let Some(directory) = &directory {
        match read(&directory.join("hosts.toml"))? {
            Some(found) => file = found,
            None => trust.add_directory(directory)?,
        }
    }
    if let Some(directory) = &options.certificates {
        trust.add_directory(directory)?;
    }
    let directory = directory.unwrap_or_default();
    let spelled = |base: Url| {
        let name = authority(&base);
        let policy = address::spelled(&base, options.tls);
        let policy = policy.map_err(|reason| SourceError::RegistryRefused {
            registry: name.clone(),
            reason,
        })?;
        let is_itself = [registry, host].contains(&name.as_str());
        Ok(Place {
            stands_for: (!is_itself).then(|| registry.to_owned()),
            ..Place::new(name, vec![base], policy)
        })
    };
    let mut places = Vec::new();
    for (base, settings) in file.mirrors {
        let place = spelled(base)?;
        places.push(place.with(settings, Trust::default(), &directory)?);
    }
    let last = match file.server {
        Some(base) => spelled(base)?.with(file.of_server, trust, &directory)?,
        None => {
            let found = address::registry(host, options.tls);
            let (bases, policy) = found.map_err(|reason| SourceError::RegistryRefused {
                registry: registry.to_owned(),
                reason,
            })?;
            let place = Place::new(registry.to_owned(), bases, policy);
            let mut place = place.with(file.of_server, trust, &directory)?;
            if place.trust.has_certificates() {
                // Whoever says how it proves itself wants it proved, on loopback too.
                place.bases.retain(|base| base.scheme() == "https");
            }
            place
        }
    };
    places.push(last);
    Ok(places)
}

/// What the operator's directories say of one registry.
#[derive(Debug)]
pub struct ToldHosts {
    /// The directory that says it.
    pub directory: PathBuf,
    /// The registry; `_default` for all others.
    pub registry: String,
    /// The places that are asked, in their order.
    pub places: Result<Vec<String>, SourceError>,
}

/// What `options` say of each registry that has a directory, the strongest first.
#[must_use]
pub fn told(options: &SourceOptions) -> Vec<ToldHosts> {
    let mut all: Vec<ToldHosts> = Vec::new();
    for directory in &options.hosts_directories {
        // One that we may not look into is somebody else's.
        let names = files::names(directory).unwrap_or_default();
        for name in names {
            let registry = match name
                .strip_suffix('_')
                .and_then(|name| name.rsplit_once('_'))
            {
                Some((host, port)) => format!("{host}:{port}"),
                None => name.clone(),
            };
            let is_known = all.iter().any(|known| known.registry == registry);
            if is_known || !directory.join(&name).is_dir() {
                continue;
            }
            let places = places(&registry, &registry, options);
            let names = |places: Vec<Place>| places.into_iter().map(|place| place.name).collect();
            all.push(ToldHosts {
                directory: directory.join(&name),
                places: places.map(names),
                registry,
            });
        }
    }
    all
}

impl Place {
    fn new(name: String, bases: Vec<Url>, policy: AddressPolicy) -> Self {
        let Settings {
            capabilities,
            headers,
            dial_timeout,
            ..
        } = Settings::default();
        Self {
            name,
            bases,
            policy,
            stands_for: None,
            capabilities,
            trust: Trust::default(),
            headers,
            dial_timeout,
        }
    }

    /// The place as the file at `directory` wants it.
    fn with(
        self,
        settings: Settings,
        mut trust: Trust,
        directory: &Path,
    ) -> Result<Self, SourceError> {
        let Settings {
            capabilities,
            authorities,
            clients,
            skip_verify,
            headers,
            dial_timeout,
        } = settings;
        trust.skip_verify |= skip_verify;
        for file in authorities {
            trust.add_authorities(&directory.join(file))?;
        }
        for (certificate, key) in clients {
            let key = key.map(|key| directory.join(key));
            trust.add_client(&directory.join(certificate), key.as_deref())?;
        }
        Ok(Self {
            capabilities,
            trust,
            headers,
            dial_timeout,
            ..self
        })
    }
}

/// The first directory that is for `registry`.
fn find(directories: &[PathBuf], registry: &str) -> Option<PathBuf> {
    let with_port = registry.rsplit_once(':');
    let escaped = with_port.map(|(host, port)| format!("{host}_{port}_"));
    let names = [Some(registry.to_owned()), escaped, Some("_default".into())];
    let mut candidates = directories.iter().flat_map(|directory| {
        let names = names.iter().flatten();
        names.map(|name| directory.join(name))
    });
    // One that we may not look into is somebody else's.
    candidates.find(|directory| directory.is_dir())
}

fn read(path: &Path) -> Result<Option<HostsFile>, SourceError> {
    let problem = |problem| SourceError::HostsFile {
        path: path.to_owned(),
        problem,
    };
    match files::read_small(path, MAX_FILE_BYTES) {
        Ok(None) => Ok(None),
        Ok(Some(text)) => HostsFile::parse(&text).map(Some).map_err(problem),
        Err(error) => Err(problem(HostsProblem::Read(error.source))),
    }
}

/// Host and port, the port only if it is not the scheme's own.
fn authority(base: &Url) -> String {
    let host = base.host_str().unwrap_or_default();
    match base.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn write(directory: &Path, path: &str, text: &str) {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Name, first address, and whom it stands for, of each place of `registry`.
    fn told(directories: &[&Path], registry: &str) -> Vec<String> {
        let options = SourceOptions {
            hosts_directories: directories.iter().map(|path| (*path).to_owned()).collect(),
            ..SourceOptions::default()
        };
        let host = match registry {
            "docker.io" => "index.docker.io",
            other => other,
        };
        let places = places(registry, host, &options).unwrap();
        let lines = places.iter().map(|place| {
            let stands_for = place.stands_for.as_deref().unwrap_or("-");
            format!("{} {} {stands_for}", place.name, place.bases[0])
        });
        lines.collect()
    }

    #[test]
    fn mirrors_come_in_their_order_and_what_they_stand_for_last() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        write(
            directory,
            "docker.io/hosts.toml",
            "[host.\"https://z.example\"]\n[host.\"http://10.0.0.1:5000\"]\n",
        );
        write(
            directory,
            "stand.example/hosts.toml",
            "server = \"https://in.example:443/x\"\n[host.\"https://stand.example\"]\n",
        );
        assert_eq!(
            told(&[directory], "docker.io"),
            [
                "z.example https://z.example/v2/ docker.io",
                "10.0.0.1:5000 http://10.0.0.1:5000/v2/ docker.io",
                "docker.io https://index.docker.io/v2/ -",
            ]
        );
        assert_eq!(
            told(&[directory], "stand.example"),
            [
                "stand.example https://stand.example/v2/ -",
                "in.example https://in.example/x/v2/ stand.example",
            ]
        );
        let itself = ["other.example https://other.example/v2/ -"];
        assert_eq!(told(&[directory], "other.example"), itself);
        assert_eq!(told(&[], "other.example"), itself);
    }

    #[test]
    fn the_first_directory_that_has_one_wins() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (first, second) = (first.path(), second.path());
        let mirror = |name: &str| format!("[host.\"https://{name}\"]");
        write(first, "a.example_5000_/hosts.toml", &mirror("one"));
        write(second, "a.example:5000/hosts.toml", &mirror("two"));
        write(second, "b.example/hosts.toml", &mirror("three"));
        write(second, "_default/hosts.toml", &mirror("four"));
        let both = [Path::new("/nowhere"), first, second];
        for (registry, expected) in [
            ("a.example:5000", "one"),
            ("b.example", "three"),
            ("c.example", "four"),
            ("a.example", "four"),
        ] {
            let told = told(&both, registry);
            assert_eq!(told.len(), 2);
            assert!(told[0].starts_with(expected), "{registry}: {told:?}");
        }
    }

    #[test]
    fn a_file_that_is_none_is_told_with_its_path() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        write(directory, "a.example/hosts.toml", "server = 1");
        write(directory, "b.example/hosts.toml", &" ".repeat(1 << 21));
        write(
            directory,
            "c.example/hosts.toml",
            "[host.\"http://169.254.169.254\"]",
        );
        fs::create_dir_all(directory.join("d.example/hosts.toml")).unwrap();
        let options = SourceOptions {
            hosts_directories: vec![directory.to_owned()],
            ..SourceOptions::default()
        };
        for (registry, expected) in [
            ("a.example", "a.example/hosts.toml"),
            ("b.example", "b.example/hosts.toml"),
            ("c.example", "cannot go to registry 169.254.169.254"),
            ("d.example", "d.example/hosts.toml"),
        ] {
            let error = places(registry, registry, &options).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
