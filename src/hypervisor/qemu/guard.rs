//! A VM that ends with the program that runs it, however that ends.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use crate::domain::DomainSpec;
use crate::hypervisor::HypervisorError;
use crate::hypervisor::qemu::of_file;

/// Waits for a word on standard input; where that ends without one, kills the QEMU that works in
/// this directory. It may just be about to write down who it is, which a busy host delays: 30 s, as its
/// monitor has.
///
/// A signal that the kernel sends for a parent's death could not be called off, as it must be when
/// somebody leaves a console and the VM is to go on.
const SCRIPT: &str = r#"
read -r word && exit
seconds=0
while [ $seconds -lt 30 ]; do
    if read -r pid <qemu.pid && [ "/proc/$pid/cwd" -ef . ]; then
        kill -KILL "$pid"
        exit
    fi
    sleep 1
    seconds=$((seconds + 1))
done 2>/dev/null
"#;

/// A process that outlives us and ends the VM unless it is told otherwise.
#[derive(Debug)]
pub struct Guard {
    process: Child,
}

impl Guard {
    /// Sets a guard on the VM of `spec`, whether or not it runs already.
    pub fn set(spec: &DomainSpec) -> Result<Self, HypervisorError> {
        let process = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "ironboot-guard"])
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
