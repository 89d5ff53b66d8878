//! A boot, watched to its verdict.

use std::collections::VecDeque;
use std::mem;
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::domain::DomainSpec;
use crate::expect::{self, Failure, Matcher};
use crate::hypervisor::qemu::{Event, Events, Happening, Qemu, words};
use crate::hypervisor::{Console, DomainState, Hypervisor};
use crate::ops::console::Follower;
use crate::ops::run::Running;
use crate::ops::ssh::{self, Asks, Login, SshError};
use crate::ops::test::login::{self, Answer};
use crate::ops::test::notices::{Notice, Notices};
use crate::ops::test::{Course, Executed, Met, Reached, Ready, Reason, TestRequest, told};
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

/// How a watch ends.
#[derive(Debug)]
enum Decision {
    Passed,
    Failed(Reason),
    Interrupted,
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
    /// What was not taken from us yet.
    typed: VecDeque<Vec<u8>>,
    fail_on: Vec<String>,
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
            typed: VecDeque::new(),
            fail_on: request
                .script
                .fail_on
                .iter()
                .map(ToString::to_string)
                .collect(),
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
        let decision = decided?;
        let decided = self.started.elapsed();
        let failed = match decision {
            Decision::Interrupted => return Ok(None),
            Decision::Passed => self.too_slow(decided),
            Decision::Failed(reason) => Some(reason),
        };
        Ok(Some(Course {
            failed,
            decided,
            limit: self.limit,
            stages: mem::take(&mut self.stages),
            met: mem::take(&mut self.met),
            executed: self.executed.take(),
            resets: self.resets,
            clues: self.matcher.clues().map(str::to_owned).collect(),
            tail: self.matcher.lines().map(str::to_owned).collect(),
        }))
    }

    async fn decide(
        &mut self,
        interrupted: &mut watch::Receiver<bool>,
    ) -> Result<Decision, OpsError> {
        let deadline = self.started + self.limit;
        // QEMU is asked for the port, and can not be while it is listened to.
        let mut ssh = match self.awaits_ssh {
            true => self.login().await?.map(|login| {
                let ask = login::ask(login, self.command.clone(), deadline);
                Box::pin(ask)
            }),
            false => None,
        };
        let mut monitor = Events::open(&self.spec).await?;
        for look in 0_u32.. {
            // Asked before the console is read to its end, so that nothing is missed.
            let has_ended =
                monitor.is_none() && Qemu.state(&self.spec).await? != DomainState::Running;
            if let Some(decision) = self.read().await? {
                return Ok(decision);
            }
            if (has_ended || self.is_quiet())
                && let Some(decision) = self.judge_rest().await?
            {
                return Ok(decision);
            }
            if has_ended {
                return Ok(Decision::Failed(self.guest_exit()));
            }
            if Instant::now() >= deadline {
                return Ok(Decision::Failed(self.timeout()));
            }
            if look % LOOKS_PER_MEASURE == 0 && self.floods() {
                return Ok(Decision::Failed(self.flood()));
            }
            self.type_on();
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
                        return Ok(Decision::Failed(reason));
                    }
                },
                event = event => match event {
                    Some(event) => {
                        // What was printed before it is of the boot that it ends.
                        if event.happening == Happening::Reset
                            && let Some(decision) = self.read().await?
                        {
                            return Ok(decision);
                        }
                        if let Some(reason) = self.hear(event) {
                            return Ok(Decision::Failed(reason));
                        }
                    }
                    None => monitor = None,
                },
                () = told(interrupted) => return Ok(Decision::Interrupted),
                () = sleep(POLL) => {}
            }
        }
        unreachable!("it has a deadline")
    }

    /// Reads what the guest has said; the decision, if there is one.
    async fn read(&mut self) -> Result<Option<Decision>, OpsError> {
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
                if let Some(decision) = self.see(event).await? {
                    return Ok(Some(decision));
                }
            }
            if self.printed_bytes > MAX_PRINTED_BYTES {
                return Ok(Some(Decision::Failed(self.flood())));
            }
        }
        for notice in self.notices.next()? {
            match notice {
                Notice::Ready | Notice::ExitStatus(0) => self.awaits_notice = false,
                Notice::ExitStatus(status) => {
                    let message = format!("the guest told of an exit status of {status}");
                    let reason = self.reason(Failure::CommandFailed, message);
                    return Ok(Some(Decision::Failed(reason)));
                }
            }
        }
        Ok(self.passes().then_some(Decision::Passed))
    }

    fn is_quiet(&self) -> bool {
        self.printed_at.is_some_and(|at| at.elapsed() >= QUIET)
    }

    /// Judges a line that has no end: it may be a prompt.
    async fn judge_rest(&mut self) -> Result<Option<Decision>, OpsError> {
        self.printed_at = None;
        for event in self.matcher.quiet() {
            if let Some(decision) = self.see(event).await? {
                return Ok(Some(decision));
            }
        }
        Ok(None)
    }

    fn passes(&self) -> bool {
        !self.awaits_script && !self.awaits_notice && !self.awaits_ssh
    }

    /// Takes in what the console has shown; the decision, if there is one.
    async fn see(&mut self, event: expect::Event) -> Result<Option<Decision>, OpsError> {
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
            expect::Event::Failed {
                failure,
                line,
                pattern,
            } => {
                let pattern = pattern.and_then(|place| self.fail_on.get(place));
                let pattern = pattern.map(|pattern| format!(": `{pattern}`"));
                return Ok(Some(Decision::Failed(Reason {
                    failure,
                    message: failure.meaning().to_owned() + &pattern.unwrap_or_default(),
                    line: Some(line),
                })));
            }
            expect::Event::Passed { .. } => {
                self.awaits_script = false;
                return Ok(self.passes().then_some(Decision::Passed));
            }
        }
        Ok(None)
    }

    /// Types on the guest's keyboard, as fast as it is read.
    async fn send(&mut self, bytes: Vec<u8>) -> Result<(), OpsError> {
        if self.keyboard.is_none() {
            match Qemu.console(&self.spec).await {
                Ok(keyboard) => self.keyboard = Some(keyboard),
                // It has ended, which is seen at the next look.
                Err(_) if Qemu.state(&self.spec).await? != DomainState::Running => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        self.typed.push_back(bytes);
        self.type_on();
        Ok(())
    }

    /// Gives what is typed to the guest, as far as it is taken.
    fn type_on(&mut self) {
        let Some(keyboard) = &self.keyboard else {
            return;
        };
        while let Some(bytes) = self.typed.pop_front() {
            match keyboard.input.try_send(bytes) {
                Ok(()) => {}
                Err(TrySendError::Full(bytes)) => return self.typed.push_front(bytes),
                // It has ended, which is seen at the next look.
                Err(TrySendError::Closed(_)) => return,
            }
        }
    }

    /// How to log in to the guest; none if it has ended.
    async fn login(&self) -> Result<Option<Login>, OpsError> {
        let port = match ssh::port(&self.spec).await {
            Err(_) if Qemu.state(&self.spec).await? != DomainState::Running => return Ok(None),
            port => port?,
        };
        let name = || self.spec.name.clone();
        Ok(Some(Login {
            port: port.ok_or_else(|| SshError::NoPort { name: name() })?,
            user: "root".to_owned(),
            directory: self.spec.directory.clone(),
            offers: ssh::key::offers(&self.context.store, &self.spec)?,
            asks: Asks::Nobody,
        }))
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
                    let printed = self.printed();
                    let message = format!("the machine was reset {count} times{printed}");
                    self.reason(Failure::RebootLoop, message)
                })
            }
            Happening::Trouble(trouble) => {
                Some(self.reason(Failure::HypervisorError, trouble.to_string()))
            }
            Happening::Other => None,
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

    /// What is worth saying of a console that has shown nothing.
    fn printed(&self) -> &'static str {
        match self.printed_bytes {
            0 => ", and nothing was printed",
            _ => "",
        }
    }

    fn guest_exit(&self) -> Reason {
        let said = words(&self.spec);
        let said = said.lines().rev().find(|line| !line.trim().is_empty());
        let said = said.map_or_else(String::new, |said| format!("; QEMU said: {}", said.trim()));
        let message = format!(
            "the VM ended before {} came{}{said}",
            self.awaited(),
            self.printed()
        );
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
        // A guest may make QEMU warn as often as it likes.
        let qemu = self.spec.directory.join("qemu.log");
        let logs = [self.spec.firmware_log(), self.spec.notices(), qemu];
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
