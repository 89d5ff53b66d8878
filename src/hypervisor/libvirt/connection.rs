//! Connections to libvirt, and what their errors are called.

use std::fmt::Display;
use std::io;
use std::sync::Once;

use virt::connect::Connect;
use virt::domain::Domain;
use virt::error::{Error as VirtError, ErrorNumber};

use crate::domain::DomainName;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::libvirt::known::Failure;

/// Where a connection leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Uri {
    /// The daemon of the host, which runs QEMU as a user of its own.
    System,
    /// The daemon of the user who calls.
    Session,
}

/// A connection, and where it leads.
pub(super) struct Connection {
    uri: Uri,
    pub(super) handle: Connect,
}

impl Connection {
    pub(super) fn open(uri: Uri) -> Result<Self, HypervisorError> {
        static SILENCE: Once = Once::new();
        // libvirt prints each error to stderr unless it has a callback to tell it to.
        SILENCE.call_once(virt::error::clear_error_callback);
        match Connect::open(Some(uri.as_str())) {
            Ok(handle) => Ok(Self { uri, handle }),
            Err(error) => Err(uri.unreachable(&error)),
        }
    }

    /// For what is asked of libvirt itself and not of a domain.
    pub(super) fn lost(&self, error: &VirtError) -> HypervisorError {
        self.uri.unreachable(error)
    }

    /// For a list of its domains that is not whole.
    pub(super) fn unlisted(&self, error: &VirtError) -> HypervisorError {
        HypervisorError::Listing {
            uri: self.uri.as_str().to_owned(),
            message: error.message().to_owned(),
            is_lost: self.is_lost(),
        }
    }

    /// For one of its domains that is described in no way that is known.
    pub(super) fn unreadable(&self, error: &dyn Display) -> HypervisorError {
        HypervisorError::Listing {
            uri: self.uri.as_str().to_owned(),
            message: error.to_string(),
            is_lost: false,
        }
    }

    /// The code of an error does not tell whether it was us who lost libvirt, or libvirt who did not
    /// reach a daemon of its own.
    fn is_lost(&self) -> bool {
        self.handle.is_alive() != Ok(true)
    }
}

/// Something that is being done to a domain, to be named if it fails.
pub(super) struct Attempt {
    pub(super) connection: Connection,
    /// Reads on from "libvirt could not".
    pub(super) action: &'static str,
    pub(super) name: DomainName,
}

impl Attempt {
    pub(super) fn done<T>(&self, result: Result<T, VirtError>) -> Result<T, HypervisorError> {
        result.map_err(|error| self.failed(&error))
    }

    /// The same, for a domain that may be unknown.
    pub(super) fn known<T>(
        &self,
        result: Result<T, VirtError>,
    ) -> Result<Option<T>, HypervisorError> {
        match result {
            Err(error) if error.code().is(ErrorNumber::NoDomain) => Ok(None),
            result => self.done(result).map(Some),
        }
    }

    /// The same, for what was read of a domain.
    pub(super) fn described<T>(
        &self,
        result: Result<Option<T>, Failure>,
    ) -> Result<Option<T>, HypervisorError> {
        match result {
            Ok(described) => Ok(described),
            Err(Failure::Libvirt(error)) => self.known(Err(error)).map(Option::flatten),
            Err(Failure::Document(error)) => Err(self.refused(error.to_string())),
        }
    }

    pub(super) fn required(&self, domain: Option<Domain>) -> Result<Domain, HypervisorError> {
        domain.ok_or_else(|| self.refused("it is not defined".to_owned()))
    }

    pub(super) fn failed(&self, error: &VirtError) -> HypervisorError {
        if self.connection.is_lost() {
            return self.connection.lost(error);
        }
        self.refused(error.message().to_owned())
    }

    pub(super) fn refused(&self, message: String) -> HypervisorError {
        HypervisorError::Libvirt {
            action: self.action,
            domain: self.name.clone(),
            message,
        }
    }
}

impl Uri {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::System => "qemu:///system",
            Self::Session => "qemu:///session",
        }
    }

    /// For want of a thread.
    pub(super) fn lacking(self, error: &io::Error) -> HypervisorError {
        HypervisorError::Connect {
            uri: self.as_str().to_owned(),
            message: error.to_string(),
        }
    }

    fn unreachable(self, error: &VirtError) -> HypervisorError {
        HypervisorError::Connect {
            uri: self.as_str().to_owned(),
            message: error.message().to_owned(),
        }
    }
}
