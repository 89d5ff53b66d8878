//! References: where an image is to be had.

mod grammar;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use thiserror::Error;

use crate::oci::{Digest, DigestError, Printable};

/// Where an image is to be had.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// `host[:port]/repository[:tag][@digest]`, with or without `docker://` in front.
    Registry(RegistryReference),
    /// `oci:DIRECTORY` or `oci-archive:FILE`, then nothing, `:name` or `@digest`.
    Layout(LayoutReference),
}

/// An image in a registry; the registry is always spelled out, there is no default one.
///
/// Format: OCI distribution-spec v1.1, "Pulling manifests".
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegistryReference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// An image in an OCI layout.
///
/// The first `:` or `@` ends the path, so a path has neither: that is how skopeo reads these
/// references too, except that it has no `@`. A name may have both.
///
/// Format: OCI image-spec v1.1, image-layout.md; `name` is compared with the annotation
/// `org.opencontainers.image.ref.name` of the entries of `index.json`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayoutReference {
    /// How the layout lies on the disk.
    pub form: LayoutForm,
    /// The directory that holds `oci-layout`, or the archive.
    pub path: PathBuf,
    /// Which of its entries.
    pub entry: LayoutEntry,
}

/// How a layout lies on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LayoutForm {
    /// As a directory.
    Directory,
    /// As a tar archive of one.
    Archive,
}

/// Which entry of a layout's `index.json` is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum LayoutEntry {
    /// The only one.
    Only,
    /// The one of this name.
    Name(String),
    /// The one of this digest.
    Digest(Digest),
}

/// What is wrong with a string that should be a reference.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing there, or something that cannot be typed.
    #[error("image reference has characters that no reference has: {0}")]
    Characters(String),
    /// It names no registry, and there is no default one.
    #[error("image reference names no registry: {0}")]
    NoRegistry(String),
    /// It does not follow the grammar.
    #[error("image reference is not HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]: {0}")]
    Grammar(String),
    /// It is longer than any registry takes.
    #[error("image reference has a repository name of more than 255 characters: {0}")]
    TooLong(String),
    /// The part after `@` is not a digest.
    #[error("image reference has a bad digest")]
    Digest(#[source] DigestError),
    /// `oci:` or `oci-archive:` without a path.
    #[error("layout reference names no path: {0}")]
    NoPath(String),
    /// A transport that ironboot does not read.
    #[error("image reference has a transport other than docker://, oci and oci-archive: {0}")]
    Transport(String),
}

impl RegistryReference {
    /// Host and port of the registry, as typed.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// Repository within the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was typed; `latest` if neither a tag nor a digest was.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was typed; then it decides, and the tag is only a label.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }
}

impl LayoutReference {
    /// The document `digest` in the layout directory `path`.
    #[must_use]
    pub fn document(path: PathBuf, digest: Digest) -> Self {
        Self {
            form: LayoutForm::Directory,
            path,
            entry: LayoutEntry::Digest(digest),
        }
    }
}

impl Reference {
    /// The tag or layout name, where there is one; a weak hint of the variant.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Registry(reference) => reference.tag(),
            Self::Layout(LayoutReference {
                entry: LayoutEntry::Name(name),
                ..
            }) => Some(tag_of_name(name).unwrap_or(name)),
            Self::Layout(_) => None,
        }
    }

    /// The repository's name, or the layout's path; a weak hint of the architecture.
    #[must_use]
    pub fn repository(&self) -> String {
        match self {
            Self::Registry(reference) => reference.repository.clone(),
            Self::Layout(reference) => reference.path.display().to_string(),
        }
    }

    /// The same image, whatever becomes of its tag or name: the document `digest` in the same place.
    #[must_use]
    pub fn pinned(&self, digest: Digest) -> Self {
        match self {
            Self::Registry(reference) => Self::Registry(RegistryReference {
                digest: Some(digest),
                ..reference.clone()
            }),
            Self::Layout(reference) => Self::Layout(LayoutReference {
                entry: LayoutEntry::Digest(digest),
                ..reference.clone()
            }),
        }
    }

    /// The digest that was asked for, if one was.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Registry(reference) => reference.digest(),
            Self::Layout(LayoutReference {
                entry: LayoutEntry::Digest(digest),
                ..
            }) => Some(digest),
            Self::Layout(_) => None,
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let shown = || Printable(text).to_string();
        if text.is_empty() || text.chars().any(char::is_control) {
            return Err(ReferenceError::Characters(shown()));
        }
        if let Some(rest) = text.strip_prefix("docker://") {
            return parse_registry(rest).map(Self::Registry);
        }
        for form in [LayoutForm::Directory, LayoutForm::Archive] {
            if let Some(rest) = text.strip_prefix(form.prefix()) {
                return parse_layout(form, rest).map(Self::Layout);
            }
        }
        let transport = text.split_once(':').map_or("", |(transport, _)| transport);
        if text.contains("://")
            || ["docker-archive", "dir", "containers-storage"].contains(&transport)
        {
            return Err(ReferenceError::Transport(shown()));
        }
        parse_registry(text).map(Self::Registry)
    }
}

fn parse_registry(text: &str) -> Result<RegistryReference, ReferenceError> {
    let shown = || Printable(text).to_string();
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse().map_err(ReferenceError::Digest)?)),
        None => (text, None),
    };
    let (host, rest) = name
        .split_once('/')
        .filter(|(host, _)| host.contains(['.', ':']) || *host == "localhost")
        .ok_or_else(|| ReferenceError::NoRegistry(shown()))?;
    let (repository, tag) = match rest.split_once(':') {
        Some((repository, tag)) => (repository, Some(tag)),
        None => (rest, None),
    };
    let is_one = grammar::is_host(host)
        && grammar::is_repository(repository)
        && tag.is_none_or(grammar::is_tag);
    if !is_one {
        return Err(ReferenceError::Grammar(shown()));
    }
    if repository.len() > 255 {
        return Err(ReferenceError::TooLong(shown()));
    }
    let tag = tag.or(digest.is_none().then_some("latest"));
    Ok(RegistryReference {
        registry: host.to_owned(),
        repository: repository.to_owned(),
        tag: tag.map(str::to_owned),
        digest,
    })
}

fn parse_layout(form: LayoutForm, text: &str) -> Result<LayoutReference, ReferenceError> {
    let end = text.find([':', '@']).unwrap_or(text.len());
    let (path, rest) = text.split_at(end);
    let entry = if let Some(digest) = rest.strip_prefix('@') {
        LayoutEntry::Digest(digest.parse().map_err(ReferenceError::Digest)?)
    } else if let Some(name) = rest.strip_prefix(':') {
        LayoutEntry::Name(name.to_owned())
    } else {
        LayoutEntry::Only
    };
    if path.is_empty() || entry == LayoutEntry::Name(String::new()) {
        return Err(ReferenceError::NoPath(Printable(text).to_string()));
    }
    Ok(LayoutReference {
        form,
        path: PathBuf::from(path),
        entry,
    })
}

/// The tag of a layout's name that is a reference, with or without a digest; none of a plain name.
pub(crate) fn tag_of_name(name: &str) -> Option<&str> {
    let name = name.split('@').next().unwrap_or(name);
    let (_, tag) = name.rsplit_once(':')?;
    (!tag.contains('/')).then_some(tag)
}

impl LayoutForm {
    fn prefix(self) -> &'static str {
        match self {
            Self::Directory => "oci:",
            Self::Archive => "oci-archive:",
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => write!(f, "{reference}"),
            Self::Layout(reference) => write!(f, "{reference}"),
        }
    }
}

impl fmt::Display for RegistryReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for LayoutReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.form.prefix(), self.path.display())?;
        match &self.entry {
            LayoutEntry::Only => Ok(()),
            LayoutEntry::Name(name) => write!(f, ":{name}"),
            LayoutEntry::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    /// What a reference displays as once parsed.
    fn check(text: &str, expected: &str) {
        let reference: Reference = text.parse().unwrap();
        assert_eq!(reference.to_string(), expected);
        assert_eq!(
            expected.parse(),
            Ok(reference),
            "{expected} does not round-trip"
        );
    }

    #[test]
    fn references_display_as_they_are_understood() {
        check("reg.io/a", "reg.io/a:latest");
        check("docker://reg.io/a/b:1.2-kvm", "reg.io/a/b:1.2-kvm");
        check("127.0.0.1:5000/os:1", "127.0.0.1:5000/os:1");
        check("localhost/os", "localhost/os:latest");
        check(&format!("reg.io/a@{DIGEST}"), &format!("reg.io/a@{DIGEST}"));
        check(
            &format!("reg.io/a:1@{DIGEST}"),
            &format!("reg.io/a:1@{DIGEST}"),
        );
        check("oci:images", "oci:images");
        check("oci:/srv/images:os:1", "oci:/srv/images:os:1");
        check(&format!("oci:i@{DIGEST}"), &format!("oci:i@{DIGEST}"));
        check("oci-archive:x.tar", "oci-archive:x.tar");
        check("oci-archive:/srv/x.tar:os:1", "oci-archive:/srv/x.tar:os:1");
        let by_digest = format!("oci-archive:x.tar@{DIGEST}");
        check(&by_digest, &by_digest);
    }

    #[test]
    fn the_first_colon_or_at_sign_ends_the_path_of_a_layout() {
        let layout = |text: &str| {
            let Reference::Layout(layout) = text.parse().unwrap() else {
                panic!("{text} is no layout");
            };
            (layout.form, layout.path, layout.entry)
        };
        let name = format!("reg.io:5000/os:1@{DIGEST}");
        for (prefix, form) in [
            ("oci:", LayoutForm::Directory),
            ("oci-archive:", LayoutForm::Archive),
        ] {
            assert_eq!(
                layout(&format!("{prefix}a.tar:{name}")),
                (form, "a.tar".into(), LayoutEntry::Name(name.clone()))
            );
            assert_eq!(
                layout(&format!("{prefix}a.tar@{DIGEST}")),
                (
                    form,
                    "a.tar".into(),
                    LayoutEntry::Digest(DIGEST.parse().unwrap())
                )
            );
        }
    }

    #[test]
    fn the_tag_of_a_layouts_entry_is_that_of_its_name() {
        let by_digest = format!("oci:d:reg.io:5000/os@{DIGEST}");
        let both = format!("oci:d:reg.io:5000/os:1@{DIGEST}");
        for (text, expected) in [
            ("oci:d", None),
            ("oci:d:1-kvm", Some("1-kvm")),
            ("oci-archive:d.tar:os:1", Some("1")),
            (both.as_str(), Some("1")),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.tag(), expected, "{text}");
        }
        assert_eq!(tag_of_name(&by_digest["oci:d:".len()..]), None);
    }

    #[test]
    fn strings_that_are_no_reference_are_refused() {
        let long_tag = format!("reg.io/a:{}", "t".repeat(129));
        let long_name = format!("reg.io/{}", "n".repeat(256));
        let wrong_length = format!("reg.io/a@sha512:{}", "a".repeat(64));
        let upper_digest = format!("reg.io/a@sha256:{}", "A".repeat(64));
        for text in [
            "",
            "alpine",
            "library/alpine:3",
            "reg.io/../../etc:1",
            "reg.io/Foo:1",
            "reg.io/a@sha256:abcd",
            "reg.io/a@sha1:da39a3ee5e6b4b0d3255bfef95601890afd80709",
            "reg.io/a\n/b",
            "reg.io/a\0",
            "user:pw@reg.io/a",
            "reg.io/\u{430}:1",
            "reg.io\u{ff0f}a:1",
            "reg.io/a\u{1b}[2J",
            wrong_length.as_str(),
            "--policy=/x",
            "reg.io/a:",
            "reg.io/",
            "reg.io/a b",
            "reg.io/a?x=1",
            "https://reg.io/a",
            "docker-archive:/tmp/x.tar",
            "oci-archive:",
            "oci-archive:x.tar:",
            "oci-archive::name",
            "oci-archive:x.tar@sha256:abcd",
            "oci:",
            "oci:dir:",
            "oci::name",
            long_tag.as_str(),
            long_name.as_str(),
            upper_digest.as_str(),
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text:?}");
        }
    }
}
