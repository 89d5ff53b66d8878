//! Which part of a policy is for an image: the most specific, and that alone.
//!
//! Format: containers-policy.json(5), "Supported transports and their scopes".

use std::path::{Component, Path, PathBuf};

use crate::oci::{LayoutForm, Printable, Reference, RegistryReference};
use crate::signature::identity::name_of;
use crate::signature::policy::{Policy, Requirement, Scopes};

/// What a policy asks of one image.
#[derive(Debug, Clone)]
pub struct Rules<'a> {
    /// The scope that it is from, in words for people.
    pub scope: String,
    /// All of them must be met.
    pub requirements: &'a [Requirement],
}

impl Policy {
    /// Returns what is asked of the image of `reference`.
    #[must_use]
    pub fn rules_for(&self, reference: &Reference) -> Rules<'_> {
        let (transport, scopes, names) = match reference {
            Reference::Registry(reference) => ("docker", &self.docker, of_registry(reference)),
            Reference::Layout(layout) => match layout.form {
                LayoutForm::Directory => ("oci", &self.oci, of_path(&layout.path)),
                LayoutForm::Archive => ("oci-archive", &self.oci_archive, of_path(&layout.path)),
            },
        };
        let find = |name: &String| find(scopes, transport, name);
        let found = names.iter().find_map(find);
        found
            .or_else(|| find(&String::new()))
            .unwrap_or_else(|| Rules {
                scope: "everything (its default)".to_owned(),
                requirements: &self.default,
            })
    }
}

fn find<'a>(scopes: &'a Scopes, transport: &str, name: &str) -> Option<Rules<'a>> {
    let requirements = scopes.get(name)?;
    let scope = match name {
        "" => format!("every {transport}: image"),
        name => format!("{transport}:{}", Printable(name)),
    };
    Some(Rules {
        scope,
        requirements,
    })
}

/// The scopes that an image of a registry is in, the most specific first.
fn of_registry(reference: &RegistryReference) -> Vec<String> {
    let name = name_of(reference);
    let digest = reference.digest().map(|digest| format!("{name}@{digest}"));
    let tag = reference.tag().map(|tag| format!("{name}:{tag}"));
    let mut scopes: Vec<String> = digest.into_iter().chain(tag).collect();
    let mut part = name.as_str();
    scopes.push(part.to_owned());
    while let Some((outer, _)) = part.rsplit_once('/') {
        part = outer;
        scopes.push(part.to_owned());
    }
    if part.starts_with('[') {
        return scopes;
    }
    // A host without its port, and the domains that it is in.
    let mut domain = part.split(':').next().unwrap_or(part);
    while let Some((_, outer)) = domain.split_once('.') {
        domain = outer;
        scopes.push(format!("*.{domain}"));
    }
    scopes
}

/// The scopes that a path is in, the most specific first; the root is none.
fn of_path(path: &Path) -> Vec<String> {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            // No way out of a scope that is only written.
            Component::ParentDir => {
                plain.pop();
            }
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    let parts = plain.ancestors().filter(|part| part.parent().is_some());
    parts.map(|part| part.display().to_string()).collect()
}
