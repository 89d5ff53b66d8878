//! How a host proves who it is by TLS, and how we do.
//!
//! Format: PEM. A directory in docker's, podman's and skopeo's form has the certificates of who may
//! vouch for the host in `*.crt`, and ours in `NAME.cert` with its key in `NAME.key`
//! (containers-certs.d(5)).

use std::path::Path;

use reqwest::{Certificate, Identity};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::files;
use crate::source::{CertificateProblem, SourceError};

/// Largest file of certificates that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// What is believed of a host, and what is shown to it.
#[derive(Debug, Clone, Default)]
pub(super) struct Trust {
    /// Whether it need not prove anything.
    pub(super) skip_verify: bool,
    /// Who may vouch for it, besides those whom this machine trusts.
    pub(super) authorities: Vec<Certificate>,
    /// Our certificate and its key.
    pub(super) client: Option<Identity>,
}

impl Trust {
    /// Tells whether anything was said about certificates.
    pub(super) fn has_certificates(&self) -> bool {
        !self.authorities.is_empty() || self.client.is_some()
    }

    /// Adds the certificates of a directory; none if it is not there.
    pub(super) fn add_directory(&mut self, directory: &Path) -> Result<(), SourceError> {
        let names = files::names(directory);
        let names =
            names.map_err(|error| problem(directory, CertificateProblem::Read(error.source)))?;
        for name in names {
            let path = directory.join(&name);
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => self.add_authorities(&path)?,
                Some("cert") => self.add_client(&path, Some(&path.with_extension("key")))?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds those who may vouch for the host.
    pub(super) fn add_authorities(&mut self, path: &Path) -> Result<(), SourceError> {
        let pem = read(path)?;
        let found = CertificateDer::pem_slice_iter(&pem).map(|certificate| {
            let certificate = certificate.ok()?;
            RootCertStore::empty().add(certificate.clone()).ok()?;
            Certificate::from_der(&certificate).ok()
        });
        match found.collect::<Option<Vec<_>>>() {
            Some(found) if !found.is_empty() => self.authorities.extend(found),
            _ => return Err(problem(path, CertificateProblem::NoAuthority)),
        }
        Ok(())
    }

    /// Adds our certificate, whose key is in `key` or else in the same file.
    pub(super) fn add_client(
        &mut self,
        certificate: &Path,
        key: Option<&Path>,
    ) -> Result<(), SourceError> {
        if self.client.is_some() {
            return Err(problem(certificate, CertificateProblem::SecondClient));
        }
        let mut pem = read(certificate)?;
        if let Some(key) = key {
            pem.push(b'\n');
            pem.extend(read(key)?);
        }
        // Its own words may be of the key.
        let client = Identity::from_pem(&pem);
        let client = client.map_err(|_| problem(certificate, CertificateProblem::NoClient))?;
        self.client = Some(client);
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, SourceError> {
    let content = files::read_small(path, MAX_FILE_BYTES);
    let content = content.map_err(|error| problem(path, CertificateProblem::Read(error.source)))?;
    content.ok_or_else(|| problem(path, CertificateProblem::Missing))
}

fn problem(path: &Path, problem: CertificateProblem) -> SourceError {
    SourceError::Certificates {
        path: path.to_owned(),
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn files_that_hold_no_certificate_are_told() {
        let directory = tempfile::tempdir().unwrap();
        let directory = directory.path();
        let refused = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).unwrap();
            let error = Trust::default().add_directory(directory).unwrap_err();
            fs::remove_file(&path).unwrap();
            let SourceError::Certificates { path, problem } = error else {
                panic!("{error}");
            };
            let name = path.file_name().unwrap().to_str().unwrap();
            format!("{name}: {problem}")
        };
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for text in ["", "hello", garbage] {
            assert_eq!(
                refused("a.crt", text),
                "a.crt: there is no certificate of an authority in it"
            );
        }
        assert_eq!(refused("a.cert", garbage), "a.key: it is not there");
        fs::write(directory.join("b.key"), "secret").unwrap();
        let told = refused("b.cert", garbage);
        assert_eq!(told, "b.cert: there is no certificate with its key in it");
        let mut trust = Trust::default();
        trust.add_directory(&directory.join("none")).unwrap();
        trust.add_directory(directory).unwrap();
        assert!(!trust.has_certificates());
    }
}
