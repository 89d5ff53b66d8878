//! An image booted by QEMU for a verdict: does it come up?
//!
//! The VM is one of [`run`]'s, and ephemeral. While it boots, four things are listened to: its console
//! ([`crate::expect`] makes sense of it), QEMU itself, the port on which a guest may say that it is
//! ready, and its SSH server where that was asked for. The first that decides ends it:
//!
//! ```text
//! console  ──▶ expectations met ─┐
//! notices  ──▶ READY=1 ──────────┼─▶ all that was asked for: passed
//! SSH      ──▶ banner, command ──┘
//! console  ──▶ panic, emergency shell, … ─┐
//! QEMU     ──▶ off, trouble, resets ──────┼─▶ failed, and why
//! clock    ──▶ its time is over ──────────┘
//! ```

mod course;
mod evidence;
mod login;
mod notices;

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;

use crate::domain::Accelerator;
use crate::expect::{Failure, Script, Stage};
use crate::ops::prepare::{InstanceRequest, Prepared};
use crate::ops::run::{self, Booted};
use crate::ops::{Context, OpsError, Progress, blocking};

use course::Watch;

/// How many times as long a boot may take by QEMU's translator.
///
/// Measured: a Linux guest of one CPU takes three to five times as long to userspace as by KVM.
pub const TCG_FACTOR: u32 = 5;

/// What is to be tested, and what it takes to pass.
#[derive(Debug)]
pub struct TestRequest {
    /// What it is called when its progress is told.
    pub label: String,
    /// The VM; ephemeral.
    pub instance: InstanceRequest,
    /// What its console must show, and must not.
    pub script: Script,
    /// What besides must tell that it is ready.
    pub ready: Option<Ready>,
    /// What must be executed in it by SSH, with an exit status of 0.
    pub command: Option<String>,
    /// How long it may take under KVM; by QEMU's translator it has [`TCG_FACTOR`] times as long.
    pub timeout: Duration,
    /// How long it may take to pass, whatever the accelerator.
    pub max_boot_time: Option<Duration>,
    /// The directory that gets what is left of the VM, if it is wanted.
    pub evidence: Option<PathBuf>,
}

/// What tells that a guest is ready, besides its console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ready {
    /// `READY=1` on the port [`crate::domain::NOTICE_PORT`].
    Notice,
    /// The first words of its SSH server.
    Ssh,
}

/// A VM that was tested, and is gone.
#[derive(Debug)]
pub struct Tested {
    /// What it was.
    pub prepared: Prepared,
    /// What became of it.
    pub course: Course,
}

/// What was seen of a boot. All times are from the start of QEMU.
#[derive(Debug)]
pub struct Course {
    /// Why it failed; none if it passed.
    pub failed: Option<Reason>,
    /// When that was decided.
    pub decided: Duration,
    /// How long it might have taken.
    pub limit: Duration,
    /// The stages that it reached, in order; those of an earlier try are not among them.
    pub stages: Vec<Reached>,
    /// The expectations that were met, in order.
    pub met: Vec<Met>,
    /// What came of the command that was executed in it.
    pub executed: Option<Executed>,
    /// How often the guest has reset the machine.
    pub resets: u32,
    /// The first lines of its console that may tell why it failed.
    pub clues: Vec<String>,
    /// The last lines of its console.
    pub tail: Vec<String>,
}

/// A command that was executed in a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit status; none if a signal ended it.
    pub status: Option<i32>,
    /// What it said, the beginning of it.
    pub output: String,
}

/// Why a test failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What kind of failure it is.
    pub failure: Failure,
    /// What happened, in words.
    pub message: String,
    /// The line of the console that tells.
    pub line: Option<String>,
}

/// A stage of a boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Which.
    pub stage: Stage,
    /// When.
    pub after: Duration,
    /// The line that told.
    pub line: String,
}

/// An expectation that was met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Met {
    /// Its place in the script.
    pub step: usize,
    /// When.
    pub after: Duration,
    /// The line that met it.
    pub line: String,
}

/// Boots the image and watches it to its verdict; the VM is gone when this returns. None if
/// `interrupted` became true before there was a verdict.
///
/// Runs to its end, as [`run::boot`] does: what interrupts it is `interrupted` alone.
pub async fn test(
    context: &Context<'_>,
    request: TestRequest,
    mut interrupted: watch::Receiver<bool>,
) -> Result<Option<Tested>, OpsError> {
    let mut told_to_end = interrupted.clone();
    let end = told(&mut told_to_end);
    let running = match run::boot(context, &request.instance, end).await? {
        Booted::Running(running) => *running,
        Booted::Ended(()) => return Ok(None),
    };
    let factor = match running.spec().accelerator {
        Accelerator::Kvm => 1,
        Accelerator::Tcg => TCG_FACTOR,
    };
    let limit = request.timeout.saturating_mul(factor);
    let mut watch = Watch::new(context, &request, &running, limit);
    let watched = watch.verdict(&mut interrupted).await;
    let events = watch.events;
    if let Some(directory) = request.evidence {
        let spec = running.spec().clone();
        let kept = blocking(move || evidence::keep(&spec, &events, &directory)).await;
        if let Err(error) = kept {
            // The verdict is worth more than what it was made from.
            let (label, reason) = (request.label, with_source(&error));
            (context.report)(Progress::NotKept { label, reason });
        }
    }
    let prepared = run::finish(context, running).await?;
    Ok(watched?.map(|course| Tested { prepared, course }))
}

/// Waits until it is interrupted; for ever, if whoever could interrupt it is gone.
async fn told(interrupted: &mut watch::Receiver<bool>) {
    if interrupted.wait_for(|told| *told).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// An error and what caused it.
fn with_source(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
