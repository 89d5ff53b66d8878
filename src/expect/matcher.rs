//! The matcher: bytes in, what happened out.

use std::collections::VecDeque;

use crate::expect::lines::Lines;
use crate::expect::markers;
use crate::expect::rows::Sign;
use crate::expect::{Failure, Pattern, Script, Stage, Step};

/// How many of the last lines are kept for reports.
const TAIL_LINES: usize = 40;

/// How many lines that may tell the cause are kept, the first ones.
const CLUES: usize = 5;

/// What stands in lines that may tell why a boot fails, well before it is seen to have failed; none of
/// it is a failure by itself.
const CLUE_WORDS: [&str; 11] = [
    "Initramfs unpacking failed",
    "[FAILED]",
    "[DEPEND]",
    "[ TIME ]",
    "Timed out waiting for device",
    "VFS: Cannot open root device",
    "No working init found",
    "EXT4-fs error",
    "I/O error",
    "Failed to mount ",
    "segfault at ",
];

/// What happened on a console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The boot has come further. Stages that said nothing are left out.
    Reached {
        /// How far.
        stage: Stage,
        /// The line that says so.
        line: String,
    },
    /// What was waited for came.
    Matched {
        /// Its index in [`Script::steps`].
        step: usize,
        /// The line that has it.
        line: String,
    },
    /// These bytes are to be typed now.
    Send(Vec<u8>),
    /// The boot has failed; nothing follows.
    Failed {
        /// Why.
        failure: Failure,
        /// The line that says so.
        line: String,
        /// For [`Failure::FailOn`], which of [`Script::fail_on`].
        pattern: Option<usize>,
    },
    /// All steps are done; stages and a failure may follow.
    Passed {
        /// The line that was waited for last.
        line: String,
    },
}

/// Follows a console by a script.
#[derive(Debug)]
pub struct Matcher {
    script: Script,
    lines: Lines,
    /// The step that comes next.
    step: usize,
    /// Where in the unfinished line the next `Expect` begins.
    from: usize,
    stage: Option<Stage>,
    /// An initramfs with a systemd of its own is at work: it greets as the root's does.
    in_systemd_initramfs: bool,
    is_over: bool,
    /// The last line that was looked at, with the white space around it.
    line: String,
    /// Whether that is the unfinished one, as far as it had come then.
    is_unfinished: bool,
    tail: VecDeque<String>,
    clues: Vec<String>,
}

impl Matcher {
    /// Begins at the script's first step.
    #[must_use]
    pub fn new(script: Script) -> Self {
        Self {
            script,
            lines: Lines::default(),
            step: 0,
            from: 0,
            stage: None,
            in_systemd_initramfs: false,
            is_over: false,
            line: String::new(),
            is_unfinished: false,
            tail: VecDeque::new(),
            clues: Vec::new(),
        }
    }

    /// Takes what the guest printed, in any pieces, and judges each line that is finished.
    ///
    /// Behind [`Event::Failed`] nothing comes any more, but lines are still kept. Behind [`Event::Passed`]
    /// a boot may still fail, for those who wait for more than the console.
    pub fn read(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        if !self.is_over && matches!(self.script.steps[self.step..], [Step::Send(_), ..]) {
            self.send("", &mut events);
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (count, is_line) = self.lines.take(rest);
            rest = &rest[count..];
            if is_line {
                self.judge(&mut events);
                self.next_line();
            }
        }
        events
    }

    /// Judges the line that is not finished, such as a prompt: for the caller to say once nothing has
    /// come for a while, about 100 ms. To say it twice, or in the middle of a line, does no harm, except that
    /// `$` in a pattern then means the place where the guest paused.
    pub fn quiet(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.judge(&mut events);
        events
    }

    /// The machine was reset: stages begin anew, the script goes on.
    pub fn restarted(&mut self) {
        self.take_line();
        self.next_line();
        self.lines = Lines::default();
        self.stage = None;
        self.clues.clear();
        self.in_systemd_initramfs = false;
    }

    /// How far the boot has come.
    #[must_use]
    pub fn stage(&self) -> Option<Stage> {
        self.stage
    }

    /// The last line that has come, finished or found when the guest was quiet.
    #[must_use]
    pub fn last_line(&self) -> &str {
        self.line.trim()
    }

    /// What is waited for, unless all steps are done.
    #[must_use]
    pub fn awaited(&self) -> Option<&Pattern> {
        self.script.steps[self.step..]
            .iter()
            .find_map(|step| match step {
                Step::Expect(pattern) => Some(pattern),
                Step::Send(_) => None,
            })
    }

    /// The first lines of this boot that may tell why it fails, such as an initramfs that could not be
    /// unpacked; a boot that goes well may have some, too.
    pub fn clues(&self) -> impl Iterator<Item = &str> {
        self.clues.iter().map(String::as_str)
    }

    /// The last lines, at most 40, oldest first; an unfinished one is among them since [`Matcher::quiet`].
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        let unfinished = self.is_unfinished.then(|| self.last_line());
        let skipped = (self.tail.len() + unfinished.iter().len()).saturating_sub(TAIL_LINES);
        let finished = self.tail.iter().map(String::as_str);
        finished.chain(unfinished).skip(skipped)
    }

    /// Takes the line as far as it has come, unless there is nothing to see.
    fn take_line(&mut self) {
        let line = String::from_utf8_lossy(self.lines.line());
        self.is_unfinished = !line.trim().is_empty();
        if self.is_unfinished {
            self.line.clear();
            self.line.push_str(&line);
        }
    }

    /// Looks at the line as far as it has come.
    fn judge(&mut self, events: &mut Vec<Event>) {
        self.take_line();
        if self.is_unfinished && !self.is_over {
            let line = std::mem::take(&mut self.line);
            self.follow(&line, events);
            self.line = line;
        }
    }

    /// Does what the line says: moves the stage on, fails, or goes on in the script.
    fn follow(&mut self, line: &str, events: &mut Vec<Event>) {
        let failure = self.signs(line, events).map(|failure| (failure, None));
        let fail_on = || {
            let mut patterns = self.script.fail_on.iter();
            let index = patterns.position(|pattern| pattern.end_of_match(line, 0).is_some());
            index.map(|index| (Failure::FailOn, Some(index)))
        };
        let Some((failure, pattern)) = failure.or_else(fail_on) else {
            self.expect(line, events);
            return;
        };
        self.is_over = true;
        let line = line.trim().to_owned();
        events.push(Event::Failed {
            failure,
            line,
            pattern,
        });
    }

    /// Moves the stage on by what the line says, and gives the failure that it tells.
    fn signs(&mut self, line: &str, events: &mut Vec<Event>) -> Option<Failure> {
        for sign in markers::signs(line, self.stage) {
            let sign = match sign {
                Sign::Failure(Failure::EmergencyMode) if self.in_systemd_initramfs => {
                    Sign::Failure(Failure::InitramfsShell)
                }
                other => other,
            };
            match sign {
                Sign::SystemdInitramfs => {
                    self.in_systemd_initramfs = true;
                    self.reach(Stage::Initramfs, line, events);
                }
                Sign::Systemd => self.in_systemd_initramfs = false,
                Sign::Greeting if self.in_systemd_initramfs => {}
                Sign::Greeting => self.reach(Stage::Userspace, line, events),
                Sign::Stage(stage) => self.reach(stage, line, events),
                Sign::Nothing => {}
                Sign::Failure(failure) => {
                    if let Some(stage) = markers::stage_of(failure) {
                        self.reach(stage, line, events);
                    }
                    if !self.script.tolerated.contains(&failure) {
                        return Some(failure);
                    }
                }
            }
        }
        None
    }

    fn reach(&mut self, stage: Stage, line: &str, events: &mut Vec<Event>) {
        if self.stage < Some(stage) {
            self.stage = Some(stage);
            let line = line.trim().to_owned();
            events.push(Event::Reached { stage, line });
        }
    }

    /// Does the steps that the line allows.
    fn expect(&mut self, line: &str, events: &mut Vec<Event>) {
        while let Some(Step::Expect(pattern)) = self.script.steps.get(self.step) {
            // A line that was taken back by backspaces is shorter than what was matched in it.
            let mut from = self.from.min(line.len());
            while !line.is_char_boundary(from) {
                from -= 1;
            }
            let Some(end) = pattern.end_of_match(line, from) else {
                return;
            };
            self.from = end;
            events.push(Event::Matched {
                step: self.step,
                line: line.trim().to_owned(),
            });
            self.step += 1;
            self.send(line, events);
        }
    }

    /// Sends what comes next, and passes behind the last step.
    fn send(&mut self, line: &str, events: &mut Vec<Event>) {
        while let Some(Step::Send(bytes)) = self.script.steps.get(self.step) {
            events.push(Event::Send(bytes.clone()));
            self.step += 1;
        }
        if self.step == self.script.steps.len() {
            let line = line.trim().to_owned();
            events.push(Event::Passed { line });
        }
    }

    /// Keeps the line that was taken, and begins the next one.
    fn next_line(&mut self) {
        if self.is_unfinished {
            // The oldest one's memory is used again.
            let mut kept = match self.tail.len() {
                TAIL_LINES => self.tail.pop_front().unwrap_or_default(),
                _ => String::new(),
            };
            kept.clear();
            kept.push_str(self.line.trim());
            let is_clue = |line: &str| CLUE_WORDS.iter().any(|words| line.contains(words));
            if self.clues.len() < CLUES && is_clue(&kept) {
                self.clues.push(kept.clone());
            }
            self.tail.push_back(kept);
        }
        self.is_unfinished = false;
        self.lines.clear();
        self.from = 0;
    }
}

#[cfg(test)]
mod tests;
