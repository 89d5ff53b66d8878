//! A VM that ends with the program that runs it, however that ends.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::domain::DomainSpec;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::qemu::of_file;

/// The variable in QEMU's environment that has the id of the process that started it.
pub(super) const STARTED_BY: &str = "IRONBOOT_STARTED_BY";

/// Waits for a word on standard input; where that ends without one, kills the QEMU that works in
/// this directory, if it was started by the process that it is told of: somebody may have started the
/// VM again by then. It may just be about to write down who it is, which a busy host delays: 30 s, as its
/// monitor has.
///
/// A signal that the kernel sends for a parent's death could not be called off, as it must be when
/// somebody leaves a console and the VM is to go on.
const SCRIPT: &str = r#"
read -r word && exit
seconds=0
while [ $seconds -lt 30 ]; do
    if read -r pid <qemu.pid && [ "/proc/$pid/cwd" -ef . ] &&
        grep -qz "^$1\$" "/proc/$pid/environ"; then
        kill -KILL "$pid"
        exit
    fi
    sleep 1
    seconds=$((seconds + 1))
done 2>/dev/null
"#;

/// What stands in the environment of each QEMU that this process starts.
fn mark() -> String {
    format!("{STARTED_BY}={}", std::process::id())
}

/// A process that outlives us and ends the VM unless it is told otherwise.
#[derive(Debug)]
pub struct Guard {
    process: Child,
}

impl Guard {
    /// Sets a guard on the VM of `spec`, whether or not it runs already.
    pub fn set(spec: &DomainSpec) -> Result<Self, HypervisorError> {
        let process = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "ironboot-guard", &mark()])
            .current_dir(&spec.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // What the terminal sends is for us.
            .process_group(0)
            .spawn()
            .map_err(of_file(&spec.directory))?;
        Ok(Self { process })
    }

    /// Lets the VM live on, or has no more of it to end.
    pub fn release(mut self) -> io::Result<()> {
        let word = self.process.stdin.take();
        word.map_or(Ok(()), |mut word| word.write_all(b"go on\n"))?;
        self.process.wait().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn a_guard_ends_what_its_run_has_started_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        // In the place of QEMU, and whoever started it.
        let stand_in = |mark: &str| {
            let (name, id) = mark.split_once('=').unwrap();
            let mut command = Command::new("sleep");
            command.arg("600").env(name, id);
            let process = command.current_dir(directory.path()).spawn().unwrap();
            let pid = process.id().to_string() + "\n";
            fs::write(directory.path().join("qemu.pid"), pid).unwrap();
            process
        };
        // It looks once.
        let look = || {
            let script = format!("sleep() {{ exit 7; }}\n{SCRIPT}");
            let mut guard = Command::new("/bin/sh");
            guard.args(["-c", &script, "guard", &mark()]);
            guard.stdin(Stdio::null()).current_dir(directory.path());
            guard.status().unwrap().code()
        };
        assert_eq!(look(), Some(7));
        let mut another = stand_in(&(mark() + "0"));
        assert_eq!(look(), Some(7));
        assert!(another.try_wait().unwrap().is_none());
        another.kill().unwrap();
        another.wait().unwrap();

        let mut own = stand_in(&mark());
        assert_eq!(look(), Some(0));
        assert_eq!(own.wait().unwrap().signal(), Some(9));
    }
}
