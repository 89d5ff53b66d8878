//! Which image a signature says that it is of, against the one that was asked for.
//!
//! Format: containers-policy.json(5), `signedIdentity`.

use crate::oci::{Digest, Reference, RegistryReference};

/// What a policy asks of the identity in a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// The very reference, with its tag or digest.
    MatchExact,
    /// The very reference if it has a tag, its repository if it has a digest alone; what is meant
    /// where a policy says nothing.
    MatchRepoDigestOrExact,
    /// The repository.
    MatchRepository,
    /// This reference, whatever was asked for.
    ExactReference(Named),
    /// This repository, whatever was asked for.
    ExactRepository(Named),
    /// As [`Self::MatchRepoDigestOrExact`], when the one prefix of the name is changed for the other.
    RemapIdentity {
        /// What the names of images begin with.
        prefix: String,
        /// What it is in signatures.
        signed_prefix: String,
    },
}

/// A name in a registry, as both sides of a comparison have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    name: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Identity {
    /// The policy's word for it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::MatchExact => "matchExact",
            Self::MatchRepoDigestOrExact => "matchRepoDigestOrExact",
            Self::MatchRepository => "matchRepository",
            Self::ExactReference(_) => "exactReference",
            Self::ExactRepository(_) => "exactRepository",
            Self::RemapIdentity { .. } => "remapIdentity",
        }
    }

    /// Tells whether a signature that claims to be of `claimed` will do for the image of `asked`.
    pub(super) fn accepts(&self, asked: &Reference, claimed: &str) -> bool {
        let Some(claimed) = Named::parse(claimed) else {
            return false;
        };
        match (self, Named::of(asked)) {
            (Self::ExactReference(exact), _) => claimed.is_exact() && claimed == *exact,
            (Self::ExactRepository(exact), _) => claimed.name == exact.name,
            (_, None) => false,
            (Self::MatchExact, Some(asked)) => claimed.is_exact() && claimed == asked,
            (Self::MatchRepository, Some(asked)) => claimed.name == asked.name,
            (Self::MatchRepoDigestOrExact, Some(asked)) => asked.is_repo_digest_or_exact(&claimed),
            (
                Self::RemapIdentity {
                    prefix,
                    signed_prefix,
                },
                Some(mut asked),
            ) => {
                if let Some(rest) = below(&asked.name, prefix) {
                    asked.name = format!("{signed_prefix}{rest}");
                }
                asked.is_repo_digest_or_exact(&claimed)
            }
        }
    }

    /// Tells whether a signature that claims nothing will do: it was found in the repository, and
    /// that only the registry says.
    pub(super) fn accepts_unnamed(&self) -> bool {
        matches!(self, Self::MatchRepository)
    }
}

impl Named {
    /// Parses a reference or the name of a repository.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let Ok(Reference::Registry(reference)) = format!("docker://{text}").parse() else {
            return None;
        };
        let mut named = Self::of_registry(&reference);
        // A tag that nobody wrote is none here.
        let last = text.split('@').next().unwrap_or(text).rsplit('/').next();
        if !last.is_some_and(|last| last.contains(':')) {
            named.tag = None;
        }
        Some(named)
    }

    fn of(reference: &Reference) -> Option<Self> {
        match reference {
            Reference::Registry(reference) => Some(Self::of_registry(reference)),
            Reference::Layout(_) => None,
        }
    }

    fn of_registry(reference: &RegistryReference) -> Self {
        Self {
            name: name_of(reference),
            tag: reference.tag().map(str::to_owned),
            digest: reference.digest().copied(),
        }
    }

    /// Tells whether it is more than a name.
    pub(super) fn is_exact(&self) -> bool {
        self.tag.is_some() || self.digest.is_some()
    }

    /// Tells whether `text` is how a scope of this one image is written: by a tag or by a digest.
    pub(super) fn is_written(&self, text: &str) -> bool {
        let Self { name, tag, digest } = self;
        match (tag, digest) {
            (Some(tag), None) => text == format!("{name}:{tag}"),
            (None, Some(digest)) => text == format!("{name}@{digest}"),
            _ => false,
        }
    }

    /// Tells whether `claimed` is this reference, or in its repository where this has no tag.
    fn is_repo_digest_or_exact(&self, claimed: &Self) -> bool {
        claimed.is_exact()
            && match self.tag {
                Some(_) => claimed == self,
                None => claimed.name == self.name,
            }
    }
}

/// Host and repository, as policies and signatures write them.
pub(super) fn name_of(reference: &RegistryReference) -> String {
    let (registry, repository) = (host(reference.registry()), reference.repository());
    match registry.as_str() {
        // Docker's hub says it in full, whatever was typed.
        "docker.io" if !repository.contains('/') => format!("docker.io/library/{repository}"),
        _ => format!("{registry}/{repository}"),
    }
}

/// A host as it is compared: hosts have no case, and Docker's hub has two names.
fn host(typed: &str) -> String {
    match typed.to_ascii_lowercase().as_str() {
        "index.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

/// A scope or prefix, its host as it is compared.
pub(super) fn with_host(text: &str) -> String {
    match text.split_once('/') {
        Some((first, rest)) => format!("{}/{rest}", host(first)),
        None => host(text),
    }
}

/// What of `name` follows `prefix`, if that is a whole part of it.
fn below<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(rest)
}
