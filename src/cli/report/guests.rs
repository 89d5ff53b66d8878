//! What can be done about guests that can not be reached.

use std::io;

use crate::cli::report::{Kind, hint};
use crate::ops::ssh::SshError;

pub(super) fn ssh(error: &SshError) -> (Kind, Option<String>) {
    match error {
        SshError::NoPort { .. } => (
            Kind::Conflict,
            hint(
                "`ironboot run` with --network user, which is the default, and without --no-ssh has \
                 one; a VM on a network of its own is reached by its own address",
            ),
        ),
        SshError::Closed { .. } => (Kind::Conflict, hint("`ironboot list` shows what runs")),
        SshError::Silent { .. } => (
            Kind::Timeout,
            hint(
                "`ironboot logs NAME` shows how far it is; --timeout gives it longer, and an image \
                 without an SSH server never answers",
            ),
        ),
        SshError::Program { source, .. } if source.kind() == io::ErrorKind::NotFound => (
            Kind::Host,
            hint("on Debian: `apt-get install openssh-client`"),
        ),
        SshError::Program { .. } => (Kind::Host, None),
    }
}
