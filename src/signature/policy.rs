//! The policy's file: a strict subset of what podman and skopeo read.
//!
//! A file is taken whole or not at all. What is unknown, said twice or not supported here refuses
//! it, because whoever wrote it meant something by it.
//!
//! Format: containers-policy.json(5).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use thiserror::Error;

use crate::oci::Printable;
use crate::oci::object::Object;
use crate::signature::identity::{Identity, Named, with_host};
use crate::signature::key::{KeyError, PublicKey};

/// The transports of containers-transports(5) whose images are not read here. What a file says of
/// them must be well formed, and is not used.
const OTHER_TRANSPORTS: [&str; 8] = [
    "atomic",
    "containers-storage",
    "dir",
    "docker-archive",
    "docker-daemon",
    "ostree",
    "sif",
    "tarball",
];

/// Most requirements of one scope: what meets them is kept with the image.
const MAX_REQUIREMENTS: usize = 8;

/// Requirements by scope; the empty one is for all that are in no other.
pub(super) type Scopes<K = PublicKey> = BTreeMap<String, Vec<Requirement<K>>>;

/// Which images are let in.
#[derive(Debug, Clone)]
pub struct Policy {
    pub(super) default: Vec<Requirement>,
    pub(super) docker: Scopes,
    pub(super) oci: Scopes,
    pub(super) oci_archive: Scopes,
}

/// A policy whose keys may lie in other files.
#[derive(Debug, Clone)]
pub struct PolicyFile {
    default: Vec<Requirement<KeyPlace>>,
    transports: BTreeMap<String, Scopes<KeyPlace>>,
}

/// What is asked of an image.
#[derive(Debug, Clone)]
pub enum Requirement<K = PublicKey> {
    /// Nothing (`insecureAcceptAnything`).
    AcceptAnything,
    /// What no image can have (`reject`).
    Reject,
    /// A signature by one of the keys (`sigstoreSigned`).
    Signed {
        /// The keys.
        keys: Vec<K>,
        /// Which image the signature must be of.
        identity: Identity,
    },
}

/// Where a key is.
#[derive(Debug, Clone)]
pub(super) enum KeyPlace {
    /// In a file.
    File(PathBuf),
    /// In the policy.
    Here(PublicKey),
}

/// Why a policy can not be used.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// It is not JSON, or has a field that is unknown, not supported, there twice, or missing.
    #[error("it is not a policy that is supported")]
    Json(#[source] serde_json::Error),
    /// A part of it is not supported, or makes no sense.
    #[error("{place}: {problem}")]
    Part {
        /// Which part.
        place: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A key in it can not be used.
    #[error("{place}: the key can not be used")]
    Key {
        /// Which part.
        place: String,
        /// What is wrong with it.
        #[source]
        source: KeyError,
    },
}

impl PolicyFile {
    /// Parses the content of a policy file.
    pub fn parse(bytes: &[u8]) -> Result<Self, PolicyError> {
        let wire: Object<WirePolicy> = serde_json::from_slice(bytes).map_err(PolicyError::Json)?;
        let Object(WirePolicy {
            default,
            transports,
        }) = wire;
        let default = requirements("default", default)?;
        let mut known = BTreeMap::new();
        for (transport, scopes) in transports.map_or_else(BTreeMap::new, |Unique(map)| map) {
            let is_ours = ["docker", "oci", "oci-archive"].contains(&transport.as_str());
            let shown = format!("transports.{}", Printable(&transport));
            if !is_ours && !OTHER_TRANSPORTS.contains(&transport.as_str()) {
                return Err(part(&shown, "there is no such transport"));
            }
            let mut checked = Scopes::new();
            for (scope, list) in scopes.0 {
                let place = format!("{shown}[\"{}\"]", Printable(&scope));
                let list = requirements(&place, list)?;
                let scope = match transport.as_str() {
                    "docker" => docker_scope(&place, &scope)?,
                    "oci" | "oci-archive" => path_scope(&place, &scope)?,
                    _ => scope,
                };
                if checked.insert(scope, list).is_some() {
                    return Err(part(&place, "the scope is there twice"));
                }
            }
            known.insert(transport, checked);
        }
        Ok(Self {
            default,
            transports: known,
        })
    }

    /// The files that its keys are in.
    #[must_use]
    pub fn key_files(&self) -> BTreeSet<PathBuf> {
        let ours = |(transport, scopes): (&String, _)| {
            (!OTHER_TRANSPORTS.contains(&transport.as_str())).then_some(scopes)
        };
        let scopes = self.transports.iter().filter_map(ours);
        let lists = scopes.flat_map(Scopes::values).chain([&self.default]);
        let mut files = BTreeSet::new();
        for requirement in lists.flatten() {
            if let Requirement::Signed { keys, .. } = requirement {
                files.extend(keys.iter().filter_map(|key| match key {
                    KeyPlace::File(path) => Some(path.clone()),
                    KeyPlace::Here(_) => None,
                }));
            }
        }
        files
    }

    /// Completes it by the content of [`Self::key_files`]; errors if one of them is no key.
    pub fn with_keys(mut self, files: &BTreeMap<PathBuf, Vec<u8>>) -> Result<Policy, PolicyError> {
        let mut keys = BTreeMap::new();
        for (path, content) in files {
            let key = PublicKey::parse(content).map_err(|source| {
                let place = path.display().to_string();
                PolicyError::Key { place, source }
            })?;
            keys.insert(path.clone(), key);
        }
        let mut take = |transport: &str| -> Result<Scopes, PolicyError> {
            let scopes = self.transports.remove(transport).unwrap_or_default();
            let complete = |(scope, list)| Ok((scope, with_keys(list, &keys)?));
            scopes.into_iter().map(complete).collect()
        };
        Ok(Policy {
            docker: take("docker")?,
            oci: take("oci")?,
            oci_archive: take("oci-archive")?,
            default: with_keys(self.default, &keys)?,
        })
    }
}

fn with_keys(
    list: Vec<Requirement<KeyPlace>>,
    files: &BTreeMap<PathBuf, PublicKey>,
) -> Result<Vec<Requirement>, PolicyError> {
    let find = |place: KeyPlace| match place {
        KeyPlace::Here(key) => Ok(key),
        KeyPlace::File(path) => {
            let none = || part(&path.display().to_string(), "the key was not read");
            files.get(&path).cloned().ok_or_else(none)
        }
    };
    let complete = |requirement| match requirement {
        Requirement::AcceptAnything => Ok(Requirement::AcceptAnything),
        Requirement::Reject => Ok(Requirement::Reject),
        Requirement::Signed { keys, identity } => {
            let keys = keys.into_iter().map(find).collect::<Result<_, _>>()?;
            Ok(Requirement::Signed { keys, identity })
        }
    };
    list.into_iter().map(complete).collect()
}

fn part(place: &str, problem: impl Into<String>) -> PolicyError {
    PolicyError::Part {
        place: place.to_owned(),
        problem: problem.into(),
    }
}

/// A scope of images in registries. One that no image could be in would let in what it was written
/// against.
fn docker_scope(place: &str, scope: &str) -> Result<String, PolicyError> {
    let is_name = |text: &str| Named::parse(text).is_some_and(|named| !named.is_exact());
    let is_scope = match (scope, scope.strip_prefix("*.")) {
        ("", _) => true,
        (_, Some(domain)) => {
            !domain.contains(['/', ':', '@'])
                && domain.split('.').all(|label| !label.is_empty())
                && is_name(&format!("x.{domain}/x"))
        }
        _ if !scope.contains('/') => is_name(&format!("{scope}/x/x")),
        _ if is_name(scope) => true,
        // Of one image: its name in full, and a tag or a digest.
        _ => Named::parse(scope).is_some_and(|named| named.is_written(&with_host(scope))),
    };
    if !is_scope {
        return Err(part(
            place,
            "it is neither a part of a reference nor *.DOMAIN",
        ));
    }
    Ok(with_host(scope))
}

/// A scope of images in files.
fn path_scope(place: &str, scope: &str) -> Result<String, PolicyError> {
    let mut parts = scope.split('/').skip(1);
    let is_plain = scope.starts_with('/') && parts.all(|part| !["", ".", ".."].contains(&part));
    if !scope.is_empty() && !is_plain {
        return Err(part(
            place,
            "it is not the absolute path of a file or directory",
        ));
    }
    Ok(scope.to_owned())
}

fn requirements(
    place: &str,
    list: Vec<Object<WireRequirement>>,
) -> Result<Vec<Requirement<KeyPlace>>, PolicyError> {
    if list.is_empty() {
        return Err(part(place, "it has no requirement"));
    }
    if list.len() > MAX_REQUIREMENTS {
        let problem = format!("it has more than {MAX_REQUIREMENTS} requirements");
        return Err(part(place, problem));
    }
    let list = list.into_iter().enumerate();
    list.map(|(number, Object(wire))| wire.check(&format!("{place}[{number}]")))
        .collect()
}

/// A JSON object of keys that are each there once, which serde's maps do not ask for.
#[derive(Debug)]
struct Unique<V>(BTreeMap<String, V>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Unique<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OfMap<V>(PhantomData<V>);

        impl<'de, V: Deserialize<'de>> Visitor<'de> for OfMap<V> {
            type Value = BTreeMap<String, V>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut unique = BTreeMap::new();
                while let Some((key, value)) = map.next_entry::<String, V>()? {
                    let shown = Printable(&key).to_string();
                    if unique.insert(key, value).is_some() {
                        return Err(A::Error::custom(format!("duplicate field `{shown}`")));
                    }
                }
                Ok(unique)
            }
        }

        deserializer.deserialize_map(OfMap(PhantomData)).map(Self)
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePolicy {
    default: Vec<Object<WireRequirement>>,
    transports: Option<Unique<Unique<Vec<Object<WireRequirement>>>>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WireRequirement {
    r#type: String,
    key_path: Option<String>,
    key_paths: Option<Vec<String>>,
    key_data: Option<String>,
    key_datas: Option<Vec<String>>,
    signed_identity: Option<Object<WireIdentity>>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WireIdentity {
    r#type: String,
    docker_reference: Option<String>,
    docker_repository: Option<String>,
    prefix: Option<String>,
    signed_prefix: Option<String>,
}

impl WireRequirement {
    fn check(self, place: &str) -> Result<Requirement<KeyPlace>, PolicyError> {
        let Self {
            r#type,
            key_path,
            key_paths,
            key_data,
            key_datas,
            signed_identity,
        } = self;
        let files = key_path.map(|path| vec![path]).into_iter().chain(key_paths);
        let texts = key_data.map(|data| vec![data]).into_iter().chain(key_datas);
        let (files, texts): (Vec<_>, Vec<_>) = (files.collect(), texts.collect());
        match r#type.as_str() {
            "insecureAcceptAnything" | "reject" => {
                if !files.is_empty() || !texts.is_empty() || signed_identity.is_some() {
                    return Err(part(place, format!("{type} takes nothing else")));
                }
                return Ok(match r#type.as_str() {
                    "reject" => Requirement::Reject,
                    _ => Requirement::AcceptAnything,
                });
            }
            "sigstoreSigned" => {}
            other => {
                let problem = format!("requirement {} is not supported", Printable(other));
                return Err(part(place, problem));
            }
        }
        if files.len() + texts.len() != 1 {
            return Err(part(
                place,
                "it has not exactly one of keyPath, keyPaths, keyData and keyDatas",
            ));
        }
        let mut keys = Vec::new();
        for file in files.into_iter().flatten() {
            let file = PathBuf::from(file);
            if !file.is_absolute() {
                return Err(part(place, "the path of a key is not absolute"));
            }
            keys.push(KeyPlace::File(file));
        }
        for text in texts.into_iter().flatten() {
            let pem = STANDARD.decode(&text);
            let pem = pem.map_err(|_| part(place, "the data of a key are not base64"))?;
            let key = PublicKey::parse(&pem).map_err(|source| {
                let place = place.to_owned();
                PolicyError::Key { place, source }
            })?;
            keys.push(KeyPlace::Here(key));
        }
        if keys.is_empty() {
            return Err(part(place, "it has no key"));
        }
        let identity = match signed_identity {
            Some(Object(wire)) => wire.check(&format!("{place}.signedIdentity"))?,
            None => Identity::MatchRepoDigestOrExact,
        };
        Ok(Requirement::Signed { keys, identity })
    }
}

impl WireIdentity {
    fn check(self, place: &str) -> Result<Identity, PolicyError> {
        let Self {
            r#type,
            docker_reference,
            docker_repository,
            prefix,
            signed_prefix,
        } = self;
        let named = |text: String| {
            let problem = || format!("{} is no reference in full", Printable(&text));
            Named::parse(&text).ok_or_else(|| part(place, problem()))
        };
        let fields = (docker_reference, docker_repository, prefix, signed_prefix);
        match (r#type.as_str(), fields) {
            ("matchExact", (None, None, None, None)) => Ok(Identity::MatchExact),
            ("matchRepoDigestOrExact", (None, None, None, None)) => {
                Ok(Identity::MatchRepoDigestOrExact)
            }
            ("matchRepository", (None, None, None, None)) => Ok(Identity::MatchRepository),
            ("exactReference", (Some(text), None, None, None)) => match named(text)? {
                exact if exact.is_exact() => Ok(Identity::ExactReference(exact)),
                _ => Err(part(place, "dockerReference has neither tag nor digest")),
            },
            ("exactRepository", (None, Some(text), None, None)) => match named(text)? {
                name if !name.is_exact() => Ok(Identity::ExactRepository(name)),
                _ => Err(part(place, "dockerRepository has a tag or a digest")),
            },
            ("remapIdentity", (None, None, Some(prefix), Some(signed_prefix))) => {
                for prefix in [&prefix, &signed_prefix] {
                    let below = Named::parse(&format!("{prefix}/x"));
                    if below.is_none_or(|named| named.is_exact()) {
                        return Err(part(place, "a prefix is no part of a repository's name"));
                    }
                }
                Ok(Identity::RemapIdentity {
                    prefix: with_host(&prefix),
                    signed_prefix: with_host(&signed_prefix),
                })
            }
            (other, _) => {
                let other = Printable(other);
                let problem =
                    format!("identity {other} is not supported, or not with these fields");
                Err(part(place, problem))
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
