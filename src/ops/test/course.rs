//! A boot, watched to its verdict.

use std::mem;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

use crate::domain::DomainSpec;
use crate::expect::{self, Failure, Matcher};
use crate::hypervisor::qemu::{Event, Events, Happening, Qemu, words};
use crate::hypervisor::{Console, DomainState, Hypervisor};
use crate::ops::console::Follower;
use crate::ops::run::Running;
use crate::ops::ssh::{self, Asks, Login, SshError};
use crate::ops::test::login::{self, Answer};
use crate::ops::test::notices::{Notice, Notices};
use crate::ops::test::{Course, Executed, Met, Reached, Ready, Reason, TestRequest};
use crate::ops::{Context, OpsError, Progress};

/// How often the console is looked at.
const POLL: Duration = Duration::from_millis(15);
/// After how long without another letter a line without an end is taken for a prompt.
const QUIET: Duration = Duration::from_millis(200);
/// How often, in looks, the files that a guest may fill are measured.
const LOOKS_PER_MEASURE: u32 = 32;
/// Bytes that a guest may print, on its console or on its firmware's port, before that is a failure.
const MAX_PRINTED_BYTES: u64 = 64 << 20;
/// How often a guest may reset the machine: firmware does it once to take up settings, and systems
/// once at their first boot.
const MAX_RESETS: u32 = 3;
/// Messages of QEMU's that are kept.
const MAX_HEARD: usize = 4096;

/// Something that QEMU told, and when.
#[derive(Debug)]
pub(super) struct Heard {
    /// When, from QEMU's start.
    pub after: Duration,
    /// The message.
    pub message: Value,
}

/// What is known of a boot so far.
pub(super) struct Watch<'a> {
    context: &'a Context<'a>,
    label: String,
    spec: DomainSpec,
    started: Instant,
    limit: Duration,
    max_boot_time: Option<Duration>,
    matcher: Matcher,
    console: Follower,
    printed_bytes: u64,
    /// When something was printed last; none if its rest was judged since.
    printed_at: Option<Instant>,
    keyboard: Option<Console>,
    notices: Notices,
    /// What must still happen.
    awaits_script: bool,
    awaits_notice: bool,
    awaits_ssh: bool,
    command: Option<String>,
    executed: Option<Executed>,
    stages: Vec<Reached>,
    met: Vec<Met>,
    resets: u32,
    /// What QEMU told.
    pub(super) events: Vec<Heard>,
}

impl<'a> Watch<'a> {
    pub(super) fn new(
        context: &'a Context<'a>,
        request: &TestRequest,
        running: &Running,
        limit: Duration,
    ) -> Self {
        let spec = running.spec().clone();
        Self {
            context,
            label: request.label.clone(),
            started: running.started(),
            limit,
            max_boot_time: request.max_boot_time,
            matcher: Matcher::new(request.script.clone()),
            console: Follower::of(spec.console_log()),
            printed_bytes: 0,
            printed_at: None,
            keyboard: None,
            notices: Notices::of(spec.notices()),
            awaits_script: !request.script.steps.is_empty(),
            awaits_notice: request.ready == Some(Ready::Notice),
            awaits_ssh: request.ready == Some(Ready::Ssh) || request.command.is_some(),
            command: request.command.clone(),
            executed: None,
            stages: Vec::new(),
            met: Vec::new(),
            resets: 0,
            events: Vec::new(),
            spec,
        }
    }

    /// Watches until there is a verdict; none if it was interrupted before.
    pub(super) async fn verdict(
        &mut self,
        interrupted: &mut watch::Receiver<bool>,
    ) -> Result<Option<Course>, OpsError> {
        let decided = self.decide(interrupted).await;
        if let Some(keyboard) = self.keyboard.take() {
            keyboard.close().await;
        }
        let Some(failed) = decided? else {
            return Ok(None);
        };
        let decided = self.started.elapsed();
        Ok(Some(Course {
            failed: failed.or_else(|| self.too_slow(decided)),
            decided,
            limit: self.limit,
            stages: mem::take(&mut self.stages),
            met: mem::take(&mut self.met),
            executed: self.executed.take(),
            resets: self.resets,
            tail: self.matcher.lines().map(str::to_owned).collect(),
        }))
    }

    /// The verdict: none within if it has passed, none at all if it was interrupted.
    async fn decide(
        &mut self,
        interrupted: &mut watch::Receiver<bool>,
    ) -> Result<Option<Option<Reason>>, OpsError> {
        let deadline = self.started + self.limit;
        // QEMU is asked for the port, and can not be while it is listened to.
        let mut ssh = match self.awaits_ssh {
            true => {
                let login = self.login().await?;
                Some(Box::pin(login::ask(login, self.command.clone(), deadline)))
            }
            false => None,
        };
        let mut monitor = Events::open(&self.spec).await?;
        for look in 0_u32.. {
            // Asked before the console is read to its end, so that nothing is missed.
            let has_ended =
                monitor.is_none() && Qemu.state(&self.spec).await? != DomainState::Running;
            if let Some(verdict) = self.read().await? {
                return Ok(Some(verdict));
            }
            if (has_ended || self.is_quiet())
                && let Some(verdict) = self.judge_rest().await?
            {
                return Ok(Some(verdict));
            }
            if has_ended {
                return Ok(Some(Some(self.guest_exit())));
            }
            if Instant::now() >= deadline {
                return Ok(Some(Some(self.timeout())));
            }
            if look % LOOKS_PER_MEASURE == 0 && self.floods() {
                return Ok(Some(Some(self.flood())));
            }
            let event = async {
                match &mut monitor {
                    Some(monitor) => monitor.next().await,
                    None => std::future::pending().await,
                }
            };
            let answer = async {
                match &mut ssh {
                    Some(ssh) => ssh.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                answer = answer => {
                    ssh = None;
                    if let Some(reason) = self.answered(answer?) {
                        return Ok(Some(Some(reason)));
                    }
                },
                event = event => match event {
                    Some(event) => if let Some(reason) = self.hear(event) {
                        return Ok(Some(Some(reason)));
                    },
                    None => monitor = None,
                },
                told = interrupted.wait_for(|told| *told) => if told.is_ok() {
                    return Ok(None);
                },
                () = sleep(POLL) => {}
            }
        }
        unreachable!("it has a deadline")
    }

    /// Reads what the guest has said; a verdict, if that decides.
    async fn read(&mut self) -> Result<Option<Option<Reason>>, OpsError> {
        loop {
            let mut printed = Vec::new();
            let mut sink = |bytes: &[u8]| {
                printed.extend_from_slice(bytes);
                Ok(())
            };
            if !self.console.next(&mut sink)? {
                break;
            }
            self.printed_bytes += printed.len() as u64;
            self.printed_at = Some(Instant::now());
            for event in self.matcher.read(&printed) {
                if let Some(verdict) = self.see(event).await? {
                    return Ok(Some(verdict));
                }
            }
            if self.printed_bytes > MAX_PRINTED_BYTES {
                return Ok(Some(Some(self.flood())));
            }
        }
        for notice in self.notices.next()? {
            match notice {
                Notice::Ready | Notice::ExitStatus(0) => self.awaits_notice = false,
                Notice::ExitStatus(status) => {
                    let message = format!("the guest told of an exit status of {status}");
                    return Ok(Some(Some(self.reason(Failure::CommandFailed, message))));
                }
            }
        }
        Ok(self.passes().then_some(None))
    }

    fn is_quiet(&self) -> bool {
        self.printed_at.is_some_and(|at| at.elapsed() >= QUIET)
    }

    /// Judges a line that has no end: it may be a prompt.
    async fn judge_rest(&mut self) -> Result<Option<Option<Reason>>, OpsError> {
        self.printed_at = None;
        for event in self.matcher.quiet() {
            if let Some(verdict) = self.see(event).await? {
                return Ok(Some(verdict));
            }
        }
        Ok(None)
    }

    fn passes(&self) -> bool {
        !self.awaits_script && !self.awaits_notice && !self.awaits_ssh
    }

    /// Takes in what the console has shown; a verdict, if that decides.
    async fn see(&mut self, event: expect::Event) -> Result<Option<Option<Reason>>, OpsError> {
        let after = self.started.elapsed();
        match event {
            expect::Event::Reached { stage, line } => {
                let label = self.label.clone();
                (self.context.report)(Progress::StageReached {
                    label,
                    stage,
                    after,
                });
                self.stages.push(Reached { stage, after, line });
            }
            expect::Event::Matched { step, line } => {
                self.met.push(Met { step, after, line });
            }
            expect::Event::Send(bytes) => self.send(bytes).await?,
            expect::Event::Failed { failure, line, .. } => {
                let message = failure.meaning().to_owned();
                let line = Some(line);
                return Ok(Some(Some(Reason {
                    failure,
                    message,
                    line,
                })));
            }
            expect::Event::Passed { .. } => {
                self.awaits_script = false;
                return Ok(self.passes().then_some(None));
            }
        }
        Ok(None)
    }

    /// Types on the guest's keyboard, for as long as there is time.
    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), OpsError> {
        if self.keyboard.is_none() {
            match Qemu.console(&self.spec).await {
                Ok(keyboard) => self.keyboard = Some(keyboard),
                // It has ended, which is seen at the next look.
                Err(_) if Qemu.state(&self.spec).await? != DomainState::Running => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        if let Some(keyboard) = &self.keyboard {
            // What is not taken in time, or by a VM that has ended, is told by the next look.
            drop(timeout_at(self.started + self.limit, keyboard.input.send(bytes)).await);
        }
        Ok(())
    }

    async fn login(&self) -> Result<Login, OpsError> {
        let port = ssh::port(&self.spec).await?;
        let name = || self.spec.name.clone();
        Ok(Login {
            port: port.ok_or_else(|| SshError::NoPort { name: name() })?,
            user: "root".to_owned(),
            directory: self.spec.directory.clone(),
            offers: ssh::key::offers(&self.context.store, &self.spec)?,
            asks: Asks::Nobody,
        })
    }

    /// Takes in what SSH has told; why it failed, if that decides.
    fn answered(&mut self, answer: Answer) -> Option<Reason> {
        let last = |output: &str| output.lines().next_back().unwrap_or_default().to_owned();
        match answer {
            Answer::Ready => self.awaits_ssh = false,
            // Which is seen at the next look.
            Answer::Gone => {}
            Answer::Refused(said) => {
                let message = format!("its SSH server lets nobody in: {}", last(&said));
                return Some(self.reason(Failure::NotReady, message));
            }
            Answer::Executed(executed) => {
                self.awaits_ssh = false;
                let status = executed.status;
                let said = last(&executed.output);
                self.executed = Some(executed);
                if status != Some(0) {
                    let status = status.map_or_else(|| "none".to_owned(), |code| code.to_string());
                    let message = format!("the command's exit status is {status}; it said: {said}");
                    return Some(self.reason(Failure::CommandFailed, message));
                }
            }
        }
        None
    }

    /// Takes in what QEMU tells; why it failed, if that decides.
    fn hear(&mut self, event: Event) -> Option<Reason> {
        let Event { happening, message } = event;
        let after = self.started.elapsed();
        if self.events.len() < MAX_HEARD {
            self.events.push(Heard { after, message });
        }
        match happening {
            Happening::Reset => {
                self.resets += 1;
                self.stages.clear();
                self.matcher.restarted();
                (self.resets > MAX_RESETS).then(|| {
                    let count = self.resets;
                    let message = format!("the machine was reset {count} times");
                    self.reason(Failure::RebootLoop, message)
                })
            }
            Happening::Trouble(trouble) => {
                Some(self.reason(Failure::HypervisorError, trouble.to_string()))
            }
            Happening::Off | Happening::Other => None,
        }
    }

    fn reason(&self, failure: Failure, message: String) -> Reason {
        let line = Some(self.matcher.last_line().to_owned()).filter(|line| !line.is_empty());
        Reason {
            failure,
            message,
            line,
        }
    }

    fn guest_exit(&self) -> Reason {
        let said = words(&self.spec);
        let said = said.lines().rev().find(|line| !line.trim().is_empty());
        let said = said.map_or_else(String::new, |said| format!("; QEMU said: {}", said.trim()));
        let message = format!("the VM ended before {} came{said}", self.awaited());
        self.reason(Failure::GuestExit, message)
    }

    fn timeout(&self) -> Reason {
        let limit = self.limit.as_secs_f64();
        let stage = self.matcher.stage().map_or_else(
            || "nothing was seen of any stage".to_owned(),
            |stage| format!("it had come to the {}", stage.as_str()),
        );
        let message = format!(
            "{} did not come within {limit:.0} s; {stage}",
            self.awaited()
        );
        self.reason(Failure::Timeout, message)
    }

    /// What it waits for, in words.
    fn awaited(&self) -> String {
        match self.matcher.awaited() {
            Some(pattern) if self.awaits_script => match pattern.meaning() {
                Some(meaning) => meaning.to_owned(),
                None => format!("`{pattern}`"),
            },
            _ if self.awaits_notice => "word that it is ready".to_owned(),
            _ if self.command.is_some() => "the end of the command".to_owned(),
            _ => "an answer of its SSH server".to_owned(),
        }
    }

    fn floods(&self) -> bool {
        let logs = [self.spec.firmware_log(), self.spec.notices()];
        let size = |path| std::fs::metadata(path).map_or(0, |file| file.len());
        logs.iter().any(|log| size(log) > MAX_PRINTED_BYTES)
    }

    fn flood(&self) -> Reason {
        let message = format!("it printed more than {} MiB", MAX_PRINTED_BYTES >> 20);
        self.reason(Failure::ConsoleFlood, message)
    }

    fn too_slow(&self, took: Duration) -> Option<Reason> {
        let most = self.max_boot_time?;
        (took > most).then(|| {
            let (took, most) = (took.as_secs_f64(), most.as_secs_f64());
            let message = format!("it took {took:.1} s, more than {most:.1} s");
            self.reason(Failure::TooSlow, message)
        })
    }
}
