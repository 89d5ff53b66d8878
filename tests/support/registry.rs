//! A real registry: Debian's `docker-registry`, on loopback, with its storage in a temporary
//! directory.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The user of a registry with [`Access::Password`], and the password.
pub(crate) const USER: &str = "horse";
/// See [`USER`].
pub(crate) const PASSWORD: &str = "correct horse";
/// bcrypt of [`PASSWORD`]; the only hash that this registry takes.
const HASH: &str = "$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2";

/// Who may use the registry, and how it is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody, by plain HTTP.
    Open,
    /// [`USER`], by plain HTTP.
    Password,
    /// Anybody, by TLS, with a certificate that nobody has signed.
    SelfSigned,
    /// Anybody, by TLS, with a certificate that `authority.crt` has signed.
    Signed,
    /// By the same TLS, whoever has a certificate that `authority.crt` has signed.
    Client,
}

/// A running registry; stopped and removed when dropped.
#[derive(Debug)]
pub(crate) struct DockerRegistry {
    address: String,
    process: Child,
    directory: TempDir,
}

impl DockerRegistry {
    /// Starts a registry and waits until it listens.
    pub(crate) fn start(access: Access) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let address = free_address();
        let config = directory.path().join("config.yml");
        let root = directory.path().display();
        let mut text = format!(
            "version: 0.1\n\
             log: {{level: error, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: '{root}/storage'}}}}\n"
        );
        text += &match access {
            Access::Open => format!("http: {{addr: '{address}'}}\n"),
            Access::Password => {
                let passwords = directory.path().join("htpasswd");
                fs::write(&passwords, format!("{USER}:{HASH}\n")).unwrap();
                format!(
                    "http: {{addr: '{address}'}}\n\
                     auth: {{htpasswd: {{realm: test, path: '{}'}}}}\n",
                    passwords.display()
                )
            }
            Access::SelfSigned => {
                make_certificate(&directory, "server", &["-subj", "/CN=127.0.0.1"]);
                tls(&address, &directory, "")
            }
            Access::Signed | Access::Client => {
                let is_authority = ["-addext", "basicConstraints=critical,CA:TRUE"];
                make_certificate(
                    &directory,
                    "authority",
                    &[&["-subj", "/CN=authority"], &is_authority[..]].concat(),
                );
                let signed = ["-CA", "authority.crt", "-CAkey", "authority.key"];
                for (name, subject) in [("server", "/CN=127.0.0.1"), ("client", "/CN=client")] {
                    let options = [&["-subj", subject], &signed[..]].concat();
                    make_certificate(&directory, name, &options);
                }
                tls(
                    &address,
                    &directory,
                    match access {
                        Access::Client => ", clientcas: ['authority.crt']",
                        _ => "",
                    },
                )
            }
        };
        fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| {
                panic!("these tests need `docker-registry` (Debian: docker-registry): {error}")
            });
        let mut registry = Self {
            address,
            process,
            directory,
        };
        registry.wait();
        registry
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A file that belongs to it: `authority.crt`, `client.crt`, `client.key`.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(&self.address).is_err() {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("docker-registry ended with {status}");
            }
            assert!(Instant::now() < deadline, "docker-registry does not listen");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // It may have ended by itself; nothing is left to do then.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// An address that nobody listened on a moment ago.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn tls(address: &str, directory: &TempDir, more: &str) -> String {
    let root = directory.path().display();
    format!(
        "http: {{addr: '{address}', \
         tls: {{certificate: '{root}/server.crt', key: '{root}/server.key'{more}}}}}\n"
    )
}

/// Makes `NAME.crt` and `NAME.key` for 127.0.0.1; signed by itself unless `options` say otherwise.
fn make_certificate(directory: &TempDir, name: &str, options: &[&str]) {
    let mut command = Command::new("openssl");
    command
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "1"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1"])
        .args(options);
    if name != "authority" {
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    }
    let output = command
        .arg("-keyout")
        .arg(format!("{name}.key"))
        .arg("-out")
        .arg(format!("{name}.crt"))
        .current_dir(directory.path())
        .output()
        .unwrap_or_else(|error| panic!("these tests need `openssl`: {error}"));
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "openssl made no certificate: {words}"
    );
}
