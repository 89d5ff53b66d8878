//! libvirt that goes away in the middle of a call: a proxy in the place of its socket, which is cut.

use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};

use tempfile::TempDir;

use crate::bench::Bench;
use crate::define::Defined;
use crate::libvirt::virsh;
use crate::session::{Ended, Session};

/// Where libvirt's daemon is reached.
const SOCKETS: &str = "/run/libvirt";

/// What the proxy does, and has done.
#[derive(Default)]
struct Wire {
    /// Calls that were made so far.
    calls: AtomicU32,
    /// The call at which it is cut.
    cut_at: AtomicU32,
    /// Whether that call still arrives, so that only its answer is lost.
    arrives: AtomicBool,
    ends: AtomicBool,
}

struct Proxy {
    wire: Arc<Wire>,
    directory: TempDir,
    thread: Option<JoinHandle<()>>,
    silent: Option<UnixListener>,
}

impl Proxy {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("libvirt-sock")).unwrap();
        let wire = Arc::new(Wire::default());
        let serving = Arc::clone(&wire);
        let thread = thread::spawn(move || serve(&listener, &serving));
        Self {
            wire,
            directory,
            thread: Some(thread),
            silent: None,
        }
    }

    /// From now on takes connections, and says nothing on them.
    fn falls_silent(&mut self) {
        self.ends();
        let socket = self.directory.path().join("libvirt-sock");
        fs::remove_file(&socket).unwrap();
        self.silent = Some(UnixListener::bind(&socket).unwrap());
    }

    fn ends(&mut self) {
        self.wire.ends.store(true, Ordering::SeqCst);
        drop(UnixStream::connect(
            self.directory.path().join("libvirt-sock"),
        ));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }

    /// Has the next program's connections cut at its call number `cut_at`.
    fn cuts(&self, cut_at: u32, arrives: bool) {
        self.wire.calls.store(0, Ordering::SeqCst);
        self.wire.cut_at.store(cut_at, Ordering::SeqCst);
        self.wire.arrives.store(arrives, Ordering::SeqCst);
    }

    /// Executes `command` where libvirt's sockets are this proxy's.
    fn executes(&self, command: &Command) -> Ended {
        let mut within = Command::new("unshare");
        let script = format!("mount --bind \"$0\" {SOCKETS} && exec \"$@\"");
        within.args(["--mount", "sh", "-c", &script]);
        within.arg(self.directory.path());
        within.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => within.env(name, value),
                None => within.env_remove(name),
            };
        }
        Session::start(within).ends()
    }

    /// The same, cut in the middle of its calls; it must say so. Gives nothing if it got through all
    /// the same, as the last call says only that no more come.
    #[track_caller]
    fn cuts_off(&self, command: &Command, cut_at: u32, arrives: bool) -> bool {
        self.cuts(cut_at, arrives);
        let ended = self.executes(command);
        if ended.code() == 0 {
            return false;
        }
        let error = ended.with_code(125).json()["error"].take();
        assert_eq!(error["kind"], "unavailable", "call {cut_at}: {error}");
        assert_eq!(error["retryable"], true, "call {cut_at}: {error}");
        true
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ends();
    }
}

fn serve(listener: &UnixListener, wire: &Arc<Wire>) {
    let mut threads = Vec::new();
    while let Ok((client, _)) = listener.accept() {
        if wire.ends.load(Ordering::SeqCst) {
            break;
        }
        // One that is gone is gone for all.
        if wire.calls.load(Ordering::SeqCst) >= wire.cut_at.load(Ordering::SeqCst) {
            continue;
        }
        let server = UnixStream::connect(format!("{SOCKETS}/libvirt-sock")).unwrap();
        let (mut answers, mut to_client) =
            (server.try_clone().unwrap(), client.try_clone().unwrap());
        threads.push(thread::spawn(move || {
            drop(io::copy(&mut answers, &mut to_client));
            drop(to_client.shutdown(Shutdown::Both));
        }));
        let wire = Arc::clone(wire);
        threads.push(thread::spawn(move || {
            drop(pass_calls(&client, &server, &wire));
            drop(client.shutdown(Shutdown::Both));
            drop(server.shutdown(Shutdown::Both));
        }));
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Passes calls on, of which each has its length before it, until one is cut.
fn pass_calls(mut client: &UnixStream, mut server: &UnixStream, wire: &Wire) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        client.read_exact(&mut length)?;
        let rest = u32::from_be_bytes(length).saturating_sub(4);
        let mut call = length.to_vec();
        client.take(rest.into()).read_to_end(&mut call)?;
        let number = wire.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let is_last = number >= wire.cut_at.load(Ordering::SeqCst);
        if is_last {
            client.shutdown(Shutdown::Both)?;
        }
        if !is_last || wire.arrives.load(Ordering::SeqCst) {
            server.write_all(&call)?;
        }
        if is_last {
            return Ok(());
        }
    }
}

#[test]
fn libvirt_that_goes_away_is_unavailable_and_the_next_call_completes_the_rest() {
    const MOMENTS: u32 = 12;
    let vm = Defined::new("lost");
    let proxy = Proxy::new();
    vm.bench.does(&["pull", &vm.bench.image()]);
    let options = ["--append", "ironboot.end=hang", "--start"];
    let mut all = vec!["--json", "--name", &vm.name];
    all.extend(options);
    let define = vm.bench.command_of("define", &all);
    let remove = vm.bench.command(&["rm", "--json", "--force", &vm.name]);

    let calls = |command: &Command| {
        proxy.cuts(u32::MAX, true);
        proxy.executes(command).with_code(0);
        proxy.wire.calls.load(Ordering::SeqCst)
    };
    let to_define = calls(&define);
    let to_remove = calls(&remove);
    assert!(to_define > 20 && to_remove > 10, "{to_define} {to_remove}");
    let mut cut_off = 0;
    for moment in 0..MOMENTS {
        let arrives = moment % 2 == 0;
        let at = |calls: u32| 1 + (calls - 1) * moment / MOMENTS;
        cut_off += u32::from(proxy.cuts_off(&define, at(to_define), arrives));
        assert_eq!(vm.defines(&options)["domain"]["state"], "running");
        cut_off += u32::from(proxy.cuts_off(&remove, at(to_remove), arrives));
        let again = vm.bench.tries(&["rm", "--json", "--force", &vm.name]);
        if again.code() != 0 {
            assert_eq!(again.error().0, "not-found");
        }
        vm.is_gone();
    }
    assert!(cut_off >= 2 * MOMENTS * 3 / 4, "{cut_off}");
}

#[test]
fn libvirt_that_hangs_holds_up_no_list_for_ever() {
    let bench = Bench::new();
    let mut proxy = Proxy::new();
    proxy.falls_silent();
    let listed = proxy.executes(&bench.command(&["list"])).with_code(0);
    assert!(listed.stderr.contains("does not answer"), "{listed}");
}

#[test]
fn libvirt_that_is_gone_is_an_unknown_state_in_the_list_and_an_error_of_the_rest() {
    let vm = Defined::new("gone");
    let proxy = Proxy::new();
    vm.defines(&["--append", "ironboot.end=hang", "--start"]);
    let own = [
        "--detach",
        "--persistent",
        "--name",
        "own",
        "--append",
        "ironboot.end=hang",
    ];
    vm.bench.start("run", &own).ends().with_code(0);

    proxy.cuts(0, false);
    let listed = proxy.executes(&vm.bench.command(&["list", "--json"]));
    let listed = listed.with_code(0);
    assert!(listed.stderr.contains("qemu:///system"), "{listed}");
    let rows = listed.json()["instances"].take();
    assert_eq!(rows[0]["state"], "unknown");
    assert_eq!(rows[0]["problem"], "unavailable");
    assert!(
        rows[0]["error"]
            .as_str()
            .unwrap()
            .contains("qemu:///system")
    );
    assert_eq!(
        (&rows[1]["state"], &rows[1]["problem"]),
        (&"running".into(), &().into())
    );
    let verbs: [&[&str]; 5] = [
        &["start"],
        &["stop", "--force"],
        &["console"],
        &["logs", "--follow"],
        &["rm", "--force"],
    ];
    for verb in verbs {
        let all = [verb, &["--json", &vm.name]].concat();
        assert!(
            proxy.cuts_off(&vm.bench.command(&all), 0, false),
            "{verb:?}"
        );
    }
    assert_eq!(vm.bench.state(&vm.name).unwrap(), "running");
    assert_eq!(virsh(&["domstate", &vm.name]).unwrap().trim(), "running");

    // It goes away while it is followed.
    proxy.cuts(100, false);
    let followed = proxy.executes(&vm.bench.command(&["logs", "--json", "--follow", &vm.name]));
    let last = followed.with_code(125).stdout;
    let last = last.lines().last().unwrap();
    assert!(last.contains("\"unavailable\""), "{last}");
    vm.bench.does(&["rm", "--force", "own"]);
    vm.is_removed(&["--force"]);
}
