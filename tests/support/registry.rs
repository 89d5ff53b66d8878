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
    /// Anybody, by TLS, with a certificate that `authority.crt` has signed for yesterday.
    Expired,
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
            Access::Signed | Access::Expired | Access::Client => {
                make_certificates(&directory);
                if access == Access::Expired {
                    expire_certificate(&directory);
                }
                let clients = match access {
                    Access::Client => ", clientcas: ['authority.crt']",
                    _ => "",
                };
                tls(&address, &directory, clients)
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
        wait(&mut registry.process, &registry.address);
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
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        end(&mut self.process);
    }
}

/// Waits until `process` listens.
fn wait(process: &mut Child, address: &str) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(address).is_err() {
        if let Some(status) = process.try_wait().unwrap() {
            panic!("the server ended with {status}");
        }
        assert!(Instant::now() < deadline, "the server does not listen");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Ends `process`, which may have ended by itself; nothing is left to do then.
fn end(process: &mut Child) {
    drop(process.kill());
    drop(process.wait());
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

/// Makes `authority`, and `server` and `client` that it has signed.
fn make_certificates(directory: &TempDir) {
    let authority = [
        "-subj",
        "/CN=authority",
        "-addext",
        "basicConstraints=critical,CA:TRUE",
    ];
    make_certificate(directory, "authority", &authority);
    let signed = ["-CA", "authority.crt", "-CAkey", "authority.key"];
    for (name, subject) in [("server", "/CN=127.0.0.1"), ("client", "/CN=client")] {
        make_certificate(
            directory,
            name,
            &[&["-subj", subject], &signed[..]].concat(),
        );
    }
}

/// Signs the server's certificate again, until yesterday.
fn expire_certificate(directory: &TempDir) {
    let status = Command::new("openssl")
        .args([
            "x509",
            "-in",
            "server.crt",
            "-signkey",
            "server.key",
            "-x509toreq",
        ])
        .args(["-out", "server.csr"])
        .current_dir(directory.path())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "openssl made no request");
    let status = Command::new("openssl")
        .args(["x509", "-req", "-in", "server.csr", "-days", "-1"])
        .args([
            "-CA",
            "authority.crt",
            "-CAkey",
            "authority.key",
            "-CAcreateserial",
        ])
        .args(["-out", "server.crt"])
        .current_dir(directory.path())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "openssl signed nothing");
}

/// Answers every manifest of tag 1 of `os` with one text, by TLS; its certificate is signed by an
/// authority of its own. Ended when dropped.
#[derive(Debug)]
pub(crate) struct TlsFiles {
    address: String,
    process: Child,
    directory: TempDir,
}

impl TlsFiles {
    /// Starts a server whose whole answer, head and all, is `answer`.
    pub(crate) fn start(answer: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        make_certificates(&directory);
        let manifests = directory.path().join("v2/os/manifests");
        fs::create_dir_all(&manifests).unwrap();
        fs::write(manifests.join("1"), answer).unwrap();
        let authorities = directory.path().join("authorities");
        fs::create_dir(&authorities).unwrap();
        fs::copy(
            directory.path().join("authority.crt"),
            authorities.join("ca.crt"),
        )
        .unwrap();
        let address = free_address();
        let process = Command::new("openssl")
            .args(["s_server", "-HTTP", "-quiet", "-accept", &address])
            .args(["-cert", "server.crt", "-key", "server.key"])
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut server = Self {
            address,
            process,
            directory,
        };
        wait(&mut server.process, &server.address);
        server
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// A directory with the certificate of who vouches for it.
    pub(crate) fn authorities(&self) -> PathBuf {
        self.directory.path().join("authorities")
    }
}

impl Drop for TlsFiles {
    fn drop(&mut self) {
        end(&mut self.process);
    }
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
