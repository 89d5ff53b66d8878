//! What is said of registries: who we are there, where else to ask, whom to trust, the way there.
//! Nobody is asked.

use std::path::PathBuf;

use crate::ops::doctor::find;
use crate::ops::{Context, OpsError, trust};
use crate::source::ToldHosts;
use crate::source::registry::told;

/// What is said of registries.
#[derive(Debug)]
pub struct RegistryFacts {
    /// Files of credentials.
    pub credentials: Vec<CredentialFacts>,
    /// Mirrors and certificates.
    pub hosts: Vec<ToldHosts>,
    /// The policy's file; none if every image is let in.
    pub policy: Result<Option<PathBuf>, OpsError>,
    /// The hosts of proxies.
    pub proxies: Vec<String>,
}

/// A file of credentials.
#[derive(Debug)]
pub struct CredentialFacts {
    /// The file.
    pub path: PathBuf,
    /// Whether others can read it.
    pub readable_by_others: bool,
    /// The registries that it names.
    pub registries: Vec<String>,
    /// The programs that it asks, and whether they are there.
    pub helpers: Vec<(String, bool)>,
}

/// Looks at what is said of registries. `search` is where helpers are looked for.
pub fn registries(context: &Context<'_>, search: &[PathBuf]) -> RegistryFacts {
    let credentials = context.sources.credentials.told().map(|file| {
        let helpers = file.helpers.iter();
        CredentialFacts {
            path: file.path.to_owned(),
            readable_by_others: file.readable_by_others,
            registries: file.registries.iter().map(ToString::to_string).collect(),
            helpers: helpers
                .map(|name| {
                    let program = format!("docker-credential-{name}");
                    let is_there = find(&program, search, &[]).is_some();
                    (program, is_there)
                })
                .collect(),
        }
    });
    RegistryFacts {
        credentials: credentials.collect(),
        hosts: told(&context.sources),
        policy: trust::load(&context.policy).map(|found| found.map(|(path, _)| path)),
        proxies: context.sources.proxies.hosts(),
    }
}
