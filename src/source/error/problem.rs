//! What is wrong with an archive, or with a file or a program of this host that sources are reached with.

use std::io;

use thiserror::Error;

/// What is wrong with a `hosts.toml`.
#[derive(Debug, Error)]
pub enum HostsProblem {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// It is not TOML.
    #[error("line {line}: {message}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// What the parser says.
        message: String,
    },
    /// A key has a value that it cannot have.
    #[error("`{key}` is not {expected}")]
    Key {
        /// Where it stands.
        key: String,
        /// What it should be.
        expected: &'static str,
    },
}

/// What is wrong with a file of certificates.
#[derive(Debug, Error)]
pub enum CertificateProblem {
    /// It cannot be read.
    #[error("it cannot be read")]
    Read(#[source] io::Error),
    /// There is no such file, and another one needs it.
    #[error("it is not there")]
    Missing,
    /// It has no certificate that could vouch for another.
    #[error("there is no certificate of an authority in it")]
    NoAuthority,
    /// It has no certificate of ours, or not its key.
    #[error("there is no certificate with its key in it")]
    NoClient,
    /// There is one already.
    #[error("it is the second certificate of ours for one host")]
    SecondClient,
}

/// What is wrong with a layout's archive.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ArchiveProblem {
    /// It would have to be unpacked, while a blob is to be read from any place of it.
    #[error("it is compressed by {0}")]
    Compressed(&'static str),
    /// It is no tar archive, or a damaged one.
    #[error("it is not a readable tar archive: {0}")]
    Unreadable(String),
    /// An entry goes on after the archive's end.
    #[error("it ends within {0}")]
    Cut(String),
    /// Readers would differ in which of them they take.
    #[error("it has {0} twice")]
    Twice(String),
    /// A file of which only the parts that are not zero are in the archive.
    #[error("it has {0} as a sparse file")]
    Sparse(String),
}

/// What is wrong with a file of credentials.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CredentialsProblem {
    /// Not JSON, or a field of the wrong type. The parser's words are left out: they may quote.
    #[error("not readable as JSON at line {line}, column {column}")]
    Json {
        /// Line, from 1.
        line: usize,
        /// Column.
        column: usize,
    },
    /// `auth` is not base64 of `user:password`.
    #[error("`auth` is not base64 of user:password, for {0}")]
    Auth(String),
    /// An identity token, which needs a flow that ironboot does not have.
    #[error("it has an identity token instead of a password, which is not supported, for {0}")]
    IdentityToken(String),
    /// A helper's name that could be a path.
    #[error("not a name of a credential helper: {0}")]
    HelperName(String),
    /// Larger than any such file is.
    #[error("larger than {}", indicatif::HumanBytes(*.0))]
    TooLarge(u64),
}

/// What is wrong with a credential helper.
#[derive(Debug, Error)]
pub enum HelperProblem {
    /// It cannot be started.
    #[error("cannot start it")]
    Start(#[source] io::Error),
    /// It cannot be talked to.
    #[error("cannot talk to it")]
    Talk(#[source] io::Error),
    /// It says nothing for too long.
    #[error("it does not answer in time")]
    Timeout,
    /// It says too much, or not what helpers say.
    #[error("its answer is not a user name and a secret")]
    Answer,
    /// It says that something is wrong.
    #[error("it says: {0}")]
    Says(String),
    /// An identity token, which needs a flow that ironboot does not have.
    #[error("it gives an identity token instead of a password, which is not supported")]
    IdentityToken,
}
