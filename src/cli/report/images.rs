//! What can be done about images: where they come from, and whether they are trusted.

use std::path::Path;

use crate::cli::report::{Kind, hint};
use crate::content::ContentError;
use crate::image::offer::Dropped;
use crate::image::select::Wanted;
use crate::oci::{Architecture, LayoutForm};
use crate::signature::{Distrust, Refusal};
use crate::source::{ArchiveProblem, SourceError};

/// What helps an image that is not let in.
pub(super) fn untrusted(distrust: &Distrust) -> Option<String> {
    let is_named = |refusal: &Refusal| {
        matches!(
            refusal,
            Refusal::OtherIdentity { asked, .. } | Refusal::NoIdentity { asked }
                if *asked == "matchRepoDigestOrExact"
        )
    };
    match distrust {
        Distrust::Rejected { .. } => hint(
            "that scope of the file decides; an image that is to be let in takes one of its own, and \
             `ironboot image inspect IMAGE` shows which decides then",
        ),
        Distrust::Unsigned { .. } => hint(
            "have it signed, as by `cosign sign --key`; an image that is here gets its signatures \
             when it is asked for again",
        ),
        Distrust::NotBy { refusals, .. } if refusals.iter().any(is_named) => hint(
            "cosign signs no tag: the signedIdentity {\"type\": \"matchRepository\"} asks for none",
        ),
        Distrust::NotBy { .. } => hint(
            "see whether that scope of the file names the right key and identity; `ironboot image \
             inspect IMAGE` shows what decides",
        ),
    }
}

/// What helps with content that could do harm: only its publisher can make it otherwise.
pub(super) fn unsafe_content(error: &ContentError) -> Option<String> {
    match error {
        ContentError::TwoFormats { .. } => hint(
            "its publisher has to make one that is one thing only, with zeros where nothing is meant \
             to be",
        ),
        ContentError::ForeignFormat {
            format: format @ ("gzip" | "xz" | "zstd"),
            ..
        } => Some(format!(
            "its publisher has to unpack it first: `{format} -d`"
        )),
        ContentError::ForeignFormat { role: "iso", .. } => None,
        _ => hint(
            "its publisher makes a safe disk of it by `qemu-img convert -O raw`, or by `-O qcow2` \
             without options",
        ),
    }
}

/// What an index offers instead of what was looked for, as options.
pub(super) fn no_match(wanted: &Wanted, offers: &[Dropped]) -> Option<String> {
    let mut choices: Vec<String> = Vec::new();
    for Dropped { offer, .. } in offers {
        let mut options = Vec::new();
        match &offer.architecture {
            Some((Architecture::Other(_), _)) => continue,
            Some((word, _)) if *word != wanted.architecture => {
                options.push(format!("--arch {word}"));
            }
            _ => {}
        }
        match offer.variant {
            Some((word, _)) if word != wanted.variant => options.push(format!("--variant {word}")),
            _ => {}
        }
        let options = format!("`{}`", options.join(" "));
        if options != "``" && !choices.contains(&options) {
            choices.push(options);
        }
    }
    if choices.is_empty() {
        return hint("`ironboot image inspect IMAGE` shows all that it has");
    }
    Some(format!(
        "pass {} for what it has; `ironboot image inspect IMAGE` shows all",
        choices.join(" or ")
    ))
}

pub(super) fn source(error: &SourceError) -> (Kind, Option<String>) {
    use SourceError as Error;
    match error.itself() {
        Error::ImageNotFound { .. } => (Kind::NotFound, hint("check the name and the tag")),
        Error::BlobNotFound { .. } => (Kind::NotFound, None),
        Error::LayoutEntryNotFound { .. } => (Kind::NotFound, None),
        Error::NotALayout { .. } => (
            Kind::NotFound,
            hint("name a directory or tar archive that holds an `oci-layout` file"),
        ),
        Error::OtherForm { path, form } => {
            let other = match form {
                LayoutForm::Directory => "oci-archive",
                LayoutForm::Archive => "oci",
            };
            let path = path.display();
            (
                Kind::NotFound,
                Some(format!("`{other}:{path}` names an image in it")),
            )
        }
        Error::Unauthorized { user: None, .. } => (
            Kind::Unauthorized,
            hint("log in, with `podman login` for one, or pass --authfile"),
        ),
        Error::Unauthorized { .. }
        | Error::RealmRefused { .. }
        | Error::CredentialHelper { .. }
        | Error::CredentialsFile { .. } => (
            Kind::Unauthorized,
            hint("check the credentials that you logged in with, or pass --authfile"),
        ),
        Error::Unavailable { .. } => (
            Kind::Unavailable,
            hint("check the registry's name and your network, then try again"),
        ),
        Error::Tls { .. } => (
            Kind::Unavailable,
            hint(
                "pass --cert-dir for the certificate of who signed its own, or --tls-verify=false \
                 if you trust the network to it",
            ),
        ),
        Error::HostsFile { .. } | Error::NobodyToAsk { .. } => (
            Kind::Usage,
            hint("mend the file, or pass --hosts-dir for another directory"),
        ),
        Error::Certificates { .. } | Error::Proxy { .. } => (Kind::Usage, None),
        Error::Mirror { source: error, .. } => source(error),
        Error::AfterMirrors(after) => source(&after.error),
        Error::RegistryRefused { .. }
        | Error::RedirectRefused { .. }
        | Error::Protocol { .. }
        | Error::Rejected { .. } => (Kind::Unavailable, None),
        Error::TooLarge { .. } | Error::LayoutJson { .. } | Error::NotAFile { .. } => {
            (Kind::InvalidImage, None)
        }
        Error::Archive { path, problem } => (Kind::InvalidImage, archive(path, problem)),
        Error::DigestMismatch { .. } | Error::SizeMismatch { .. } => (Kind::Integrity, None),
        Error::LayoutAmbiguous { .. } => (
            Kind::Ambiguous,
            hint("name one of them, with :NAME or @sha256:… at the end"),
        ),
        Error::Client { .. } => (
            Kind::Host,
            hint("on Debian: `apt-get install ca-certificates`"),
        ),
        // What was named is not there; the host could run it.
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            (Kind::NotFound, hint("check the path"))
        }
        Error::Io { .. } => (Kind::Host, None),
    }
}

/// What helps with an archive that cannot be used as it is.
fn archive(path: &Path, problem: &ArchiveProblem) -> Option<String> {
    match problem {
        ArchiveProblem::Compressed(program) => Some(format!(
            "unpack it first: `{program} --decompress --keep {}`",
            path.display()
        )),
        ArchiveProblem::Sparse(_) => hint("make the archive without tar's --sparse"),
        ArchiveProblem::Cut(_) | ArchiveProblem::Unreadable(_) => Some(format!(
            "see whether it is whole: `tar --list --file {}`",
            path.display()
        )),
        ArchiveProblem::Twice(_) => None,
    }
}
