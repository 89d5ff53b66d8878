//! File systems of a test's own, in a mount namespace that ends with the test however it ends.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A shell in a mount namespace of its own. What is mounted there is seen from outside below
/// [`Mounts::path`].
#[derive(Debug)]
pub(crate) struct Mounts {
    shell: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Mounts {
    pub(crate) fn new() -> Self {
        assert!(
            rustix::process::geteuid().is_root(),
            "this test mounts file systems, which only root may: run it as root"
        );
        let mut shell = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("these tests need `unshare`");
        let input = shell.stdin.take().unwrap();
        let output = BufReader::new(shell.stdout.take().unwrap());
        Self {
            shell,
            input,
            output,
        }
    }

    /// Runs a command there. Errors with what it said if it fails.
    pub(crate) fn attempt(&mut self, command: &str) -> Result<(), String> {
        writeln!(self.input, "({command}) </dev/null 2>&1; echo \"= $?\"").unwrap();
        let mut said = String::new();
        loop {
            let mut line = String::new();
            self.output.read_line(&mut line).unwrap();
            match line.trim_end().strip_prefix("= ") {
                Some("0") => return Ok(()),
                Some(status) => return Err(format!("{command}: exit status {status}: {said}")),
                None => assert_ne!(line, "", "{command}: the shell has ended"),
            }
            said += &line;
        }
    }

    /// Runs a command there, which must succeed.
    #[track_caller]
    pub(crate) fn run(&mut self, command: &str) {
        if let Err(said) = self.attempt(command) {
            panic!("{said}");
        }
    }

    /// What `path` is there, for processes that are not.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.shell.id()));
        root.join(path.strip_prefix("/").unwrap())
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        // With its last process, a namespace ends, and all that is mounted only there.
        drop(self.shell.kill());
        drop(self.shell.wait());
    }
}
