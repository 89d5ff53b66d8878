//! Directories that are shared with a guest: a `virtiofsd` for each, which lives as long as QEMU.
//!
//! ```text
//! <directory>/bind-N.sock    the socket of the daemon of directory N, which inherits it
//!             bind-N.log     what that daemon has said since the VM's start
//! ```
//!
//! A daemon serves one connection and ends with it. That one is made before the daemon is started, and
//! QEMU inherits it: so the daemon ends with QEMU, or with us where we end before QEMU has it, however
//! that comes. There are two programs of the name: QEMU's, until 7.2, takes its options as a file system does, and the one
//! that came after as programs do. Each shuts itself up in the directory before it serves anything.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::domain::{Bind, DomainSpec};
use crate::hypervisor::HypervisorError;
use crate::hypervisor::qemu::options::text;
use crate::hypervisor::qemu::{args, of_file, qmp};

/// Name of the program.
pub const PROGRAM: &str = "virtiofsd";
/// The directories where it is if not on the search path: Fedora's, Debian's and Arch's.
pub const PLACES: [&str; 3] = ["/usr/libexec", "/usr/lib/qemu", "/usr/lib"];
/// The descriptor of the socket in a daemon: the first that no process has for itself.
const SOCKET_DESCRIPTOR: i32 = 3;
/// The descriptor of the connection to the first daemon in QEMU, where the others follow.
const FIRST_CONNECTION: i32 = args::MONITOR_DESCRIPTOR + 1;
/// How long the program may take to tell its options.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a daemon may take to end after its connection.
const END_PATIENCE: Duration = Duration::from_millis(500);
/// Most that is read of what a daemon has said, in bytes.
const MAX_WORDS_BYTES: u64 = 64 << 10;
/// Shows a directory to a program in a mount namespace of its own, where nobody can write to it, other
/// file systems in it not at all.
const READ_ONLY: &str = r#"mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@""#;

/// A `virtiofsd` of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Program {
    path: String,
    /// Whether it is the one that came after QEMU's.
    is_later: bool,
    /// Whether it can keep the guest from writing.
    has_read_only: bool,
}

/// Where a daemon has its socket from.
#[derive(Debug, Clone, Copy)]
enum Socket<'a> {
    /// It makes it, in a command that somebody types.
    Named(&'a str),
    /// It is there already.
    Inherited,
}

/// The daemons of a VM that is being started.
#[derive(Debug)]
pub(super) struct Daemons<'spec> {
    spec: &'spec DomainSpec,
    children: Vec<Child>,
    /// The only one of each, for QEMU.
    connections: Vec<UnixStream>,
}

/// Name of the socket of directory `number`, in the VM's own.
pub(super) fn socket(number: usize) -> String {
    format!("bind-{number}.sock")
}

/// The descriptor that QEMU inherits as the connection to the daemon of directory `number`.
pub(super) fn connection(number: usize) -> String {
    (FIRST_CONNECTION.unsigned_abs() as usize + number).to_string()
}

fn log(number: usize) -> String {
    format!("bind-{number}.log")
}

/// The commands of a VM's daemons, as somebody types them in the VM's directory, each with the name of
/// the socket that it makes. Errors if the host has no such program.
pub async fn commands(spec: &DomainSpec) -> Result<Vec<(Vec<OsString>, String)>, HypervisorError> {
    if spec.binds.is_empty() {
        return Ok(Vec::new());
    }
    let program = find().await?;
    let commands = spec.binds.iter().enumerate().map(|(number, bind)| {
        let name = socket(number);
        Ok((program.command(spec, bind, Socket::Named(&name))?, name))
    });
    commands.collect()
}

/// Starts the daemons. Those of another start have ended with its QEMU.
pub(super) async fn share(spec: &DomainSpec) -> Result<Daemons<'_>, HypervisorError> {
    let mut daemons = Daemons {
        spec,
        children: Vec::new(),
        connections: Vec::new(),
    };
    if spec.binds.is_empty() {
        return Ok(daemons);
    }
    let program = find().await?;
    for (number, bind) in spec.binds.iter().enumerate() {
        match program.spawn(spec, number, bind) {
            Ok((connection, child)) => {
                daemons.connections.push(connection);
                daemons.children.push(child);
            }
            Err(error) => return Err(daemons.end(error).await),
        }
    }
    Ok(daemons)
}

/// The first that is there.
async fn find() -> Result<Program, HypervisorError> {
    let elsewhere = PLACES.map(|place| format!("{place}/{PROGRAM}"));
    for path in std::iter::once(PROGRAM.to_owned()).chain(elsewhere) {
        let mut command = Command::new(&path);
        command.arg("--help").stdin(Stdio::null());
        let told = timeout(PATIENCE, command.kill_on_drop(true).output()).await;
        let Ok(Ok(output)) = told else {
            continue;
        };
        let help = [output.stdout, output.stderr].concat();
        let help = String::from_utf8_lossy(&help);
        if help.contains("--socket-path") {
            return Ok(Program {
                path,
                is_later: help.contains("--shared-dir"),
                has_read_only: help.contains("--readonly"),
            });
        }
    }
    Err(HypervisorError::NoProgram {
        program: PROGRAM.to_owned(),
    })
}

impl Program {
    fn command(
        &self,
        spec: &DomainSpec,
        bind: &Bind,
        socket: Socket<'_>,
    ) -> Result<Vec<OsString>, HypervisorError> {
        let Bind {
            directory,
            // QEMU tells the guest.
            tag: _,
            read_only,
        } = bind;
        let shared = text(directory)?;
        let mut words: Vec<String> = Vec::new();
        if *read_only && !self.has_read_only {
            if !rustix::process::geteuid().is_root() {
                return Err(HypervisorError::Share {
                    domain: spec.name.clone(),
                    directory: directory.clone(),
                    message: format!(
                        "{} has no --readonly, and only root can do without",
                        self.path
                    ),
                });
            }
            words.extend(["unshare", "--mount", "sh", "-c", READ_ONLY, &shared].map(str::to_owned));
        }
        words.push(self.path.clone());
        words.push(match socket {
            Socket::Named(name) => format!("--socket-path={name}"),
            Socket::Inherited => format!("--fd={SOCKET_DESCRIPTOR}"),
        });
        if self.is_later {
            words.push(format!("--shared-dir={shared}"));
            if *read_only && self.has_read_only {
                words.push("--readonly".to_owned());
            }
        } else if shared.contains([',', '\\']) {
            // It would be the end of the path there.
            return Err(HypervisorError::Path {
                path: directory.clone(),
            });
        } else {
            words.push("-f".to_owned());
            words.extend(["-o".to_owned(), format!("source={shared}")]);
        }
        Ok(words.into_iter().map(OsString::from).collect())
    }

    fn spawn(
        &self,
        spec: &DomainSpec,
        number: usize,
        bind: &Bind,
    ) -> Result<(UnixStream, Child), HypervisorError> {
        let words = self.command(spec, bind, Socket::Inherited)?;
        let log = spec.directory.join(log(number));
        let errors = std::fs::File::create(&log).map_err(of_file(&log))?;
        crate::files::remove(&spec.directory.join(socket(number))).map_err(super::file_error)?;
        let listener = FdMapping {
            parent_fd: qmp::listen_at(&spec.directory, &socket(number))?.into(),
            child_fd: SOCKET_DESCRIPTOR,
        };
        let connection = qmp::connect_at(&spec.directory, &socket(number))?;
        let (program, arguments) = words.split_first().expect("a command has a program");
        let mut command = Command::new(program);
        let inherits = command.as_std_mut().fd_mappings(vec![listener]);
        inherits.expect("one descriptor is no two");
        let child = command
            .args(arguments)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::from(errors))
            // Ctrl-C in the terminal is for us.
            .process_group(0)
            .spawn()
            .map_err(of_file(Path::new(program)))?;
        Ok((connection, child))
    }
}

impl Daemons<'_> {
    /// What QEMU inherits: the connection to each, as [`connection`] numbers them.
    pub(super) fn take_connections(&mut self) -> Vec<FdMapping> {
        let connections = self.connections.drain(..).zip(FIRST_CONNECTION..);
        let inherited = connections.map(|(connection, child_fd)| FdMapping {
            parent_fd: connection.into(),
            child_fd,
        });
        inherited.collect()
    }

    /// Ends them with a start that failed by `error`; returns the better reason, if one of them has it.
    pub(super) async fn end(self, error: HypervisorError) -> HypervisorError {
        let mut reason = error;
        drop(self.connections);
        for (number, mut child) in self.children.into_iter().enumerate() {
            // One that serves ends with its connection, and well; one that could not has before it.
            let ended = timeout(END_PATIENCE, child.wait()).await;
            let failed = matches!(&ended, Ok(Ok(status)) if !status.success());
            if ended.is_err() {
                child.kill().await.unwrap_or_default();
            }
            let log = self.spec.directory.join(log(number));
            let words = crate::files::read_small(&log, MAX_WORDS_BYTES)
                .ok()
                .flatten();
            let words = String::from_utf8_lossy(&words.unwrap_or_default()).into_owned();
            let last = words.lines().rev().find(|line| !line.trim().is_empty());
            if let (true, Some(last)) = (failed, last) {
                reason = HypervisorError::Share {
                    domain: self.spec.name.clone(),
                    directory: self.spec.binds[number].directory.clone(),
                    message: crate::oci::Printable(last.trim()).to_string(),
                };
            }
        }
        reason
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Machine;
    use crate::hypervisor::samples;

    #[test]
    fn each_program_is_told_in_its_own_way() {
        let spec = samples::direct(Machine::Amd64);
        let check = |program: (bool, bool), directory: &str, read_only: bool, expected: &str| {
            let program = Program {
                path: PROGRAM.to_owned(),
                is_later: program.0,
                has_read_only: program.1,
            };
            let bind = Bind {
                directory: directory.into(),
                tag: "t".parse().unwrap(),
                read_only,
            };
            let words = program.command(&spec, &bind, Socket::Named("s"));
            let words = words.map(|words| words.join(" ".as_ref()).into_string().unwrap());
            let words = words.unwrap_or_else(|error| error.to_string());
            assert_eq!(words, expected);
        };
        let (of_qemu, early, late) = ((false, false), (true, false), (true, true));
        check(
            of_qemu,
            "/a b",
            false,
            "virtiofsd --socket-path=s -f -o source=/a b",
        );
        check(
            early,
            "/a,b",
            false,
            "virtiofsd --socket-path=s --shared-dir=/a,b",
        );
        let read_only = "virtiofsd --socket-path=s --shared-dir=/a --readonly";
        check(late, "/a", true, read_only);
        let refused = "path is not text that a hypervisor takes: /a,sandbox=chroot";
        check(of_qemu, "/a,sandbox=chroot", false, refused);
    }
}
