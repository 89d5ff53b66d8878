//! QEMU as a process of its own, without a daemon and without root.
//!
//! ```text
//! <directory>/qemu.log     QEMU's standard error; locked for as long as QEMU lives
//!             console.in   a pipe: QEMU's standard input, hence the keyboard of the serial port
//!             console.log  what the guest printed
//!             qmp.sock     QEMU's monitor, a socket that it inherits
//!             qemu.pid     QEMU's process id
//!             bind-N.…     directories that are shared with the guest ([`virtiofs`])
//! ```
//!
//! Whether a VM runs is told by the lock on `qemu.log`: the descriptor is inherited by QEMU, so the
//! lock ends with it, however it ends, and no process id can be mistaken for another's. A VM lives
//! on when whoever started it ends, unless there is a [`Guard`] on it.

pub mod args;
mod devices;
mod events;
mod forwards;
mod guard;
mod options;
pub mod orphan;
mod qmp;
pub mod trial;
pub mod version;
pub mod virtiofs;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use async_trait::async_trait;
use command_fds::{CommandFdExt, FdMapping};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::domain::{DomainName, DomainSpec};
use crate::files::{self, Lock, Wait};
use crate::hypervisor::qemu::args::MonitorSocket;
use crate::hypervisor::{
    Console, Defined, DomainState, Hypervisor, HypervisorError, IfRunning, Known, RunsAs, Stop,
    Trouble,
};

pub use events::{Event, Events, Happening};
pub use forwards::forwarded_port;
pub use guard::Guard;

/// Name in records and JSON.
pub const NAME: &str = "qemu";

/// How long QEMU may take until its monitor answers.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// How long QEMU may take to end once it was told to.
const QUIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a process or a lock is looked at while it is waited for.
const POLL: Duration = Duration::from_millis(20);

/// Most that is read of what QEMU has said, in bytes.
const MAX_WORDS_BYTES: u64 = 64 << 10;

/// QEMU as a process of its own.
#[derive(Debug, Clone, Copy, Default)]
pub struct Qemu;

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    async fn runs_as(&self) -> Result<RunsAs, HypervisorError> {
        Ok(RunsAs::Caller)
    }

    /// Its VMs are those of the instances' records.
    async fn known(&self) -> Result<Vec<Known>, HypervisorError> {
        Ok(Vec::new())
    }

    /// QEMU keeps no list of VMs: the instance's record is all there is.
    async fn define(&self, spec: &DomainSpec) -> Result<Defined, HypervisorError> {
        args::command(spec, MonitorSocket::Named).map(|_| Defined::Already)
    }

    async fn start(&self, spec: &DomainSpec) -> Result<(), HypervisorError> {
        let directory = &spec.directory;
        let log_path = directory.join("qemu.log");
        let log = lock(&log_path, &spec.name).await?;
        log.file().set_len(0).map_err(of_file(&log_path))?;
        let mut daemons = virtiofs::share(spec).await?;
        let connections = daemons.take_connections();
        match spawn_and_wait(spec, log, connections).await {
            Ok(()) => Ok(()),
            Err(error) => Err(daemons.end(error).await),
        }
    }

    async fn state(&self, spec: &DomainSpec) -> Result<DomainState, HypervisorError> {
        Ok(if is_running(&spec.directory)? {
            DomainState::Running
        } else {
            DomainState::Stopped
        })
    }

    async fn trouble(&self, spec: &DomainSpec) -> Result<Option<Trouble>, HypervisorError> {
        let running = || is_running(&spec.directory);
        if !running()? {
            return Ok(None);
        }
        match qmp::execute(spec, "query-status").await {
            Ok(answer) => Ok(trouble(&answer, &words(spec))),
            // It has ended meanwhile.
            Err(_) if !running()? => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn stop(&self, spec: &DomainSpec, how: Stop) -> Result<(), HypervisorError> {
        if !is_running(&spec.directory)? {
            return Ok(());
        }
        match how {
            Stop::Graceful(timeout) => {
                qmp::execute(spec, "system_powerdown").await?;
                if !ends_within(&spec.directory, timeout).await? {
                    return Err(HypervisorError::StopTimeout {
                        domain: spec.name.clone(),
                        seconds: timeout.as_secs(),
                    });
                }
            }
            Stop::Force => {
                let quit = qmp::execute(spec, "quit").await;
                if !ends_within(&spec.directory, QUIT_TIMEOUT).await? {
                    kill(&spec.directory)?;
                    if !ends_within(&spec.directory, QUIT_TIMEOUT).await? {
                        quit?;
                        return Err(HypervisorError::StopTimeout {
                            domain: spec.name.clone(),
                            seconds: QUIT_TIMEOUT.as_secs(),
                        });
                    }
                }
            }
        }
        Ok(())
    }

    async fn undefine(&self, _spec: &DomainSpec) -> Result<(), HypervisorError> {
        Ok(())
    }

    /// It knows none to forget; what runs without a record is in [`orphan`].
    async fn evict(
        &self,
        _name: &DomainName,
        _uuid: &str,
        _if_running: IfRunning,
    ) -> Result<(), HypervisorError> {
        Ok(())
    }

    async fn console(&self, spec: &DomainSpec) -> Result<Console, HypervisorError> {
        if !is_running(&spec.directory)? {
            return Err(HypervisorError::NotRunning {
                domain: spec.name.clone(),
            });
        }
        let path = input(&spec.directory);
        let mut pipe = tokio::net::unix::pipe::OpenOptions::new()
            .open_sender(&path)
            .map_err(of_file(&path))?;
        let (input, mut receiver) = mpsc::channel::<Vec<u8>>(16);
        tokio::spawn(async move {
            while let Some(bytes) = receiver.recv().await {
                // QEMU has ended: so does the console.
                if pipe.write_all(&bytes).await.is_err() {
                    break;
                }
            }
        });
        Ok(Console::of(input))
    }
}

/// Judges the answer to `query-status` of a QEMU that has said `log`.
///
/// Source: QEMU's qapi/run-state.json, `RunState`.
fn trouble(answer: &Value, log: &str) -> Option<Trouble> {
    let status = answer["status"].as_str().unwrap_or_default();
    // Of what KVM does not cope with QEMU tells on its standard error, before all registers.
    let of_kvm = ["KVM internal error", "KVM: entry failed", "kvm run failed"];
    let mut lines = log.lines();
    match status {
        "internal-error" => {
            let of_kvm = lines.find(|line| of_kvm.iter().any(|words| line.contains(words)));
            let words = of_kvm.unwrap_or("QEMU has stopped it after an error of its own");
            Some(Trouble::Internal(words.trim().to_owned()))
        }
        "io-error" => Some(Trouble::OfTheVm(
            "QEMU has stopped it after an error of its disk",
        )),
        "guest-panicked" => Some(Trouble::OfTheVm("its system has crashed")),
        _ => None,
    }
}

/// What QEMU itself has said last since the VM's start: errors and warnings, of some of which a
/// guest may cause as many as it likes.
#[must_use]
pub fn words(spec: &DomainSpec) -> String {
    let end = || -> io::Result<Vec<u8>> {
        let mut log = File::open(spec.directory.join("qemu.log"))?;
        let length = log.metadata()?.len();
        log.seek(SeekFrom::Start(length.saturating_sub(MAX_WORDS_BYTES)))?;
        let mut bytes = Vec::new();
        log.take(MAX_WORDS_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    String::from_utf8_lossy(&end().unwrap_or_default()).into_owned()
}

fn input(directory: &Path) -> PathBuf {
    directory.join("console.in")
}

fn of_file(path: &Path) -> impl FnOnce(io::Error) -> HypervisorError {
    let path = path.to_owned();
    move |source| HypervisorError::Io { path, source }
}

fn file_error(error: files::FileError) -> HypervisorError {
    HypervisorError::Io {
        path: error.path,
        source: error.source,
    }
}

/// Takes the lock that says that QEMU runs.
async fn lock(path: &Path, name: &DomainName) -> Result<Lock, HypervisorError> {
    // Whoever looks whether it runs holds the lock for an instant.
    for _ in 0..10 {
        if let Some(lock) = Lock::exclusive(path, Wait::No).map_err(file_error)? {
            return Ok(lock);
        }
        sleep(POLL).await;
    }
    Err(HypervisorError::Running {
        domain: name.clone(),
    })
}

fn is_running(directory: &Path) -> Result<bool, HypervisorError> {
    let path = directory.join("qemu.log");
    if !path.exists() {
        return Ok(false);
    }
    Ok(Lock::shared(&path, Wait::No).map_err(file_error)?.is_none())
}

async fn ends_within(directory: &Path, timeout: Duration) -> Result<bool, HypervisorError> {
    let deadline = Instant::now() + timeout;
    while is_running(directory)? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        sleep(POLL).await;
    }
    Ok(true)
}

/// Starts QEMU and waits until it runs; it does not if this fails.
async fn spawn_and_wait(
    spec: &DomainSpec,
    log: Lock,
    connections: Vec<FdMapping>,
) -> Result<(), HypervisorError> {
    let mut child = spawn(spec, &log, connections)?;
    // From here on the lock is the child's: it keeps the descriptor as its standard error.
    drop(log);
    match wait_for_monitor(spec, &mut child).await {
        Ok(()) => Ok(()),
        Err(error) => {
            child.kill().await.map_err(of_file(&spec.directory))?;
            Err(error)
        }
    }
}

/// Starts QEMU, whose standard error is the locked log; it inherits `connections` as well.
fn spawn(
    spec: &DomainSpec,
    log: &Lock,
    connections: Vec<FdMapping>,
) -> Result<Child, HypervisorError> {
    let command = args::command(spec, MonitorSocket::Inherited)?;
    let directory = &spec.directory;
    for name in [args::MONITOR, args::PID_FILE, "console.log"] {
        files::remove(&directory.join(name)).map_err(file_error)?;
    }
    // QEMU would make it readable by everybody.
    let console = spec.console_log();
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&console)
        .map_err(of_file(&console))?;
    let input = input(directory);
    match mknodat(CWD, &input, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(of_file(&input)(error.into())),
    }
    // Open for both, so that QEMU never sees the end of it when a console is closed.
    let keyboard = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(&input)
        .map_err(of_file(&input))?;
    let errors = log.file().try_clone().map_err(of_file(directory))?;
    let monitor = FdMapping {
        parent_fd: qmp::listen(directory)?.into(),
        child_fd: args::MONITOR_DESCRIPTOR,
    };
    let (program, arguments) = command.split_first().expect("a command has a program");
    let mut command = Command::new(program);
    let mut inherited = connections;
    inherited.push(monitor);
    let inherits = command.as_std_mut().fd_mappings(inherited);
    inherits.expect("each has a descriptor of its own");
    command
        .args(arguments)
        .current_dir(directory)
        .env(guard::STARTED_BY, std::process::id().to_string())
        .stdin(Stdio::from(keyboard))
        .stdout(Stdio::null())
        .stderr(Stdio::from(errors))
        // Ctrl-C in the terminal is for us; we tell QEMU.
        .process_group(0)
        .spawn()
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => HypervisorError::NoProgram {
                program: program.to_string_lossy().into_owned(),
            },
            _ => of_file(Path::new(program))(source),
        })
}

/// Waits until QEMU's monitor answers, or until QEMU has already ended well.
async fn wait_for_monitor(spec: &DomainSpec, child: &mut Child) -> Result<(), HypervisorError> {
    tokio::select! {
        // What has ended does not answer; why it has is the better word.
        biased;
        status = child.wait() => started(spec, status.map_err(of_file(&spec.directory))?),
        answer = qmp::execute_within(spec, "query-status", START_TIMEOUT) => match answer {
            Ok(_) => Ok(()),
            // Its end may be seen here first.
            Err(error) => match timeout(QUIT_TIMEOUT, child.wait()).await {
                Ok(status) => started(spec, status.map_err(of_file(&spec.directory))?),
                Err(_) => Err(error),
            },
        },
    }
}

/// Judges a QEMU that has already ended: a guest may have powered off at once.
fn started(spec: &DomainSpec, status: ExitStatus) -> Result<(), HypervisorError> {
    if status.success() {
        return Ok(());
    }
    let log = words(spec);
    let said = log.lines().rev().find(|line| !line.trim().is_empty());
    Err(HypervisorError::QemuStart {
        domain: spec.name.clone(),
        message: said.map_or_else(|| status.to_string(), str::to_owned),
    })
}

/// Kills a QEMU that does not obey. The process is ours only if it works in the VM's directory.
fn kill(directory: &Path) -> Result<(), HypervisorError> {
    let path = directory.join(args::PID_FILE);
    let text = fs::read_to_string(&path).map_err(of_file(&path))?;
    let process = text.trim().parse().ok().and_then(Pid::from_raw);
    // Not by path: the kernel tells it without the symbolic links of ours.
    let identity =
        |directory: &Path| fs::metadata(directory).map(|metadata| (metadata.dev(), metadata.ino()));
    let own = identity(directory).map_err(of_file(directory))?;
    let is_ours = |pid: Pid| {
        let working = format!("/proc/{}/cwd", pid.as_raw_nonzero());
        identity(Path::new(&working)).is_ok_and(|directory| directory == own)
    };
    match process.filter(|pid| is_ours(*pid)) {
        Some(pid) => kill_process(pid, Signal::KILL).map_err(|error| of_file(&path)(error.into())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::net::UnixListener;

    use super::*;
    use crate::domain::Machine;
    use crate::hypervisor::samples;

    /// Answers one client of a monitor as QEMU does, `query-status` with `status`.
    async fn answer(monitor: UnixListener, status: &str) {
        let (reader, mut writer) = monitor.accept().await.unwrap().0.into_split();
        let mut say = async |message: Value| {
            let line = message.to_string() + "\n";
            writer.write_all(line.as_bytes()).await.unwrap();
        };
        say(json!({"QMP": {"version": {}, "capabilities": []}})).await;
        let mut lines = BufReader::new(reader).lines();
        while let Some(line) = lines.next_line().await.unwrap() {
            let request: Value = serde_json::from_str(&line).unwrap();
            say(json!({"event": "RESUME", "data": {}})).await;
            match request["execute"].as_str().unwrap() {
                "qmp_capabilities" => say(json!({"return": {}})).await,
                "query-status" => say(json!({"return": {"status": status}})).await,
                other => {
                    let description = format!("no such command: {other}");
                    say(json!({"error": {"class": "CommandNotFound", "desc": description}})).await;
                }
            }
        }
    }

    #[tokio::test]
    async fn a_running_qemu_is_asked_for_its_trouble() {
        let directory = tempfile::tempdir().unwrap();
        let spec = DomainSpec {
            directory: directory.path().to_owned(),
            ..samples::direct(Machine::Amd64)
        };
        let log = directory.path().join("qemu.log");
        fs::write(&log, "KVM internal error. Suberror: 1\n").unwrap();
        // It does not run, whatever it has said.
        assert_eq!(Qemu.trouble(&spec).await.unwrap(), None);

        let lock = Lock::exclusive(&log, Wait::No).unwrap();
        for (status, expected) in [
            ("running", None),
            (
                "internal-error",
                Some(Trouble::Internal(
                    "KVM internal error. Suberror: 1".to_owned(),
                )),
            ),
        ] {
            let socket = directory.path().join(args::MONITOR);
            let monitor = UnixListener::bind(&socket).unwrap();
            let (told, ()) = tokio::join!(Qemu.trouble(&spec), answer(monitor, status));
            assert_eq!(told.unwrap(), expected);
            fs::remove_file(&socket).unwrap();
        }
        // Nobody answers.
        let error = Qemu.trouble(&spec).await.unwrap_err();
        assert!(matches!(error, HypervisorError::Monitor { .. }), "{error}");
        drop(lock);
        assert_eq!(Qemu.trouble(&spec).await.unwrap(), None);
    }

    #[test]
    fn a_vm_is_in_trouble_that_does_not_go_on_by_itself() {
        let check = |status: &str, log: &str, expected: Option<Trouble>| {
            let answer = json!({"status": status, "running": false});
            assert_eq!(trouble(&answer, log), expected, "{status} {log}");
        };
        let inside = |words: &str| Some(Trouble::Internal(words.to_owned()));
        let internal = "KVM internal error. Suberror: 1\nemulation failure\nEAX=00000000 EBX=1\n";
        for status in ["running", "prelaunch", "paused", "suspended", "shutdown"] {
            check(status, internal, None);
        }
        check(
            "internal-error",
            internal,
            inside("KVM internal error. Suberror: 1"),
        );
        let failed = "qemu: warning: x\nerror: kvm run failed Invalid argument\r\nEAX=0";
        check(
            "internal-error",
            failed,
            inside("error: kvm run failed Invalid argument"),
        );
        check(
            "internal-error",
            "",
            inside("QEMU has stopped it after an error of its own"),
        );
        for (status, expected) in [
            ("io-error", "QEMU has stopped it after an error of its disk"),
            ("guest-panicked", "its system has crashed"),
        ] {
            check(status, internal, Some(Trouble::OfTheVm(expected)));
        }
        assert_eq!(trouble(&json!(null), ""), None);
    }
}
