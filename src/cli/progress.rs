//! Progress on standard error: bars on a terminal, plain lines elsewhere, JSON for programs.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanDuration, MultiProgress, ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::script::quoted;
use crate::oci::{Digest, Printable};
use crate::ops::Progress;
use crate::ops::ssh::key::Offer;
use crate::source::MirrorFailure;

/// How often a plain line is written while something takes long.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);
/// How often a program is told of a blob.
const JSON_INTERVAL: Duration = Duration::from_millis(500);
/// A blob of so many bytes gets a bar, and a line when it is done.
const WORTH_A_LINE_BYTES: u64 = 1 << 20;

/// How much is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Amount {
    /// Nothing.
    Quiet,
    /// What takes time, and what was decided for the user.
    Normal,
    /// Everything.
    Verbose,
}

/// In what form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// Bars if standard error is a terminal, else lines.
    Auto,
    /// Lines.
    Plain,
    /// One JSON object a line.
    Json,
}

/// Draws what a use case tells.
#[derive(Debug)]
pub(super) struct Drawing {
    amount: Amount,
    pen: Pen,
    state: Mutex<State>,
}

/// What is drawn with.
#[derive(Debug)]
enum Pen {
    Lines,
    Bars(MultiProgress),
    Json,
}

#[derive(Debug, Default)]
struct State {
    blobs: BTreeMap<Digest, Blob>,
    total: Option<Tally>,
}

/// How far something is.
#[derive(Debug)]
struct Tally {
    size_bytes: u64,
    done_bytes: u64,
    /// What came since it started; some was there before.
    new_bytes: u64,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

#[derive(Debug)]
struct Blob {
    label: String,
    tally: Tally,
}

impl Tally {
    fn new(size_bytes: u64, done_bytes: u64, bar: Option<ProgressBar>) -> Self {
        let now = Instant::now();
        if let Some(bar) = &bar {
            bar.set_position(done_bytes);
            // What was there did not come this fast.
            bar.reset_eta();
        }
        Self {
            size_bytes,
            done_bytes,
            new_bytes: 0,
            started: now,
            told: now,
            bar,
        }
    }

    fn add(&mut self, count: u64) {
        self.done_bytes += count;
        self.new_bytes += count;
        if let Some(bar) = &self.bar {
            bar.set_position(self.done_bytes);
        }
    }

    fn bytes_per_second(&self) -> u64 {
        let elapsed = self.started.elapsed().as_millis().max(1);
        u64::try_from(u128::from(self.new_bytes) * 1000 / elapsed).unwrap_or(u64::MAX)
    }

    /// Whether it is time to tell of it again.
    fn is_due(&mut self, interval: Duration) -> bool {
        let is_due = self.told.elapsed() >= interval;
        if is_due {
            self.told = Instant::now();
        }
        is_due
    }

    fn words(&self) -> String {
        let rate = self.bytes_per_second();
        let left = self.size_bytes.saturating_sub(self.done_bytes) / rate.max(1);
        format!(
            "{} of {}, {}/s, {} left",
            HumanBytes(self.done_bytes),
            HumanBytes(self.size_bytes),
            HumanBytes(rate),
            HumanDuration(Duration::from_secs(left))
        )
    }

    fn json(&self) -> Value {
        json!({
            "done_bytes": self.done_bytes,
            "size_bytes": self.size_bytes,
            "bytes_per_second": self.bytes_per_second(),
        })
    }

    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Drawing {
    pub(super) fn new(amount: Amount, form: Form) -> Self {
        let pen = match form {
            Form::Json => Pen::Json,
            Form::Auto if amount != Amount::Quiet && io::stderr().is_terminal() => {
                Pen::Bars(MultiProgress::new())
            }
            Form::Auto | Form::Plain => Pen::Lines,
        };
        Self {
            amount,
            pen,
            state: Mutex::new(State::default()),
        }
    }

    /// Shows one event.
    pub(super) fn show(&self, event: Progress) {
        if self.amount == Amount::Quiet {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Progress::Fetching {
                missing_bytes,
                blobs,
            } => self.start_all(&mut state, missing_bytes, blobs),
            Progress::BlobStart {
                blob,
                label,
                size_bytes,
                offset_bytes,
            } => self.start(&mut state, blob, label, size_bytes, offset_bytes),
            // On top of what was to be fetched.
            Progress::Unpacking { size_bytes } => {
                if let Some(total) = &mut state.total {
                    total.size_bytes += size_bytes;
                    if let Some(bar) = &total.bar {
                        bar.set_length(total.size_bytes);
                    }
                }
            }
            Progress::Verifying { blobs, size_bytes } => {
                let bar = self.bar(size_bytes, blobs > 1, "total");
                state.total = Some(Tally::new(size_bytes, 0, bar));
            }
            Progress::BlobBytes { blob, count } => self.add(&mut state, blob, count),
            Progress::BlobRetry { blob, reason } => {
                let label = state.blobs.get(&blob).map_or("blob", |blob| &blob.label);
                self.line(&format!("{label}: {reason}; trying again"));
            }
            Progress::BlobDone { blob } => self.finish(&mut state, blob),
            other => {
                if let Some(words) = words(other, self.amount) {
                    self.line(&words);
                }
            }
        }
    }

    fn start_all(&self, state: &mut State, missing_bytes: u64, blobs: usize) {
        if matches!(self.pen, Pen::Json) {
            self.object(json!({"event": "fetching", "missing_bytes": missing_bytes}));
        } else if missing_bytes > 0 {
            self.line(&format!("fetching {}", HumanBytes(missing_bytes)));
        } else if self.amount == Amount::Verbose {
            self.line("everything is in the store");
        }
        match &mut state.total {
            // Several images at once come to one sum.
            Some(total) => {
                total.size_bytes += missing_bytes;
                if let Some(bar) = &total.bar {
                    bar.set_length(total.size_bytes);
                }
            }
            total @ None if missing_bytes > 0 => {
                let bar = self.bar(missing_bytes, blobs > 1, "total");
                *total = Some(Tally::new(missing_bytes, 0, bar));
            }
            None => {}
        }
    }

    fn start(&self, state: &mut State, digest: Digest, label: String, size: u64, offset: u64) {
        let is_worth_it = size >= WORTH_A_LINE_BYTES || self.amount == Amount::Verbose;
        let tally = Tally::new(size, offset, self.bar(size, is_worth_it, &label));
        if offset >= WORTH_A_LINE_BYTES {
            self.line(&format!("{label}: resuming after {}", HumanBytes(offset)));
        }
        let again = state.blobs.insert(digest, Blob { label, tally });
        if let Some(total) = &mut state.total {
            total.done_bytes += offset;
            if let Some(again) = &again {
                total.done_bytes = total.done_bytes.saturating_sub(again.tally.done_bytes);
            }
        }
        if let Some(again) = again {
            again.tally.finish();
        }
        self.tell_program(state, digest, "start");
    }

    fn add(&self, state: &mut State, digest: Digest, count: u64) {
        let Some(blob) = state.blobs.get_mut(&digest) else {
            return;
        };
        blob.tally.add(count);
        if let Some(total) = &mut state.total {
            total.add(count);
        }
        match self.pen {
            Pen::Bars(_) => {}
            Pen::Lines => {
                if blob.tally.is_due(PLAIN_INTERVAL) {
                    self.line(&format!("{}: {}", blob.label, blob.tally.words()));
                }
                if let Some(total) = &mut state.total
                    && total.size_bytes > blob.tally.size_bytes
                    && total.is_due(PLAIN_INTERVAL)
                {
                    self.line(&format!("total: {}", total.words()));
                }
            }
            Pen::Json if blob.tally.is_due(JSON_INTERVAL) => {
                self.tell_program(state, digest, "bytes");
            }
            Pen::Json => {}
        }
    }

    fn finish(&self, state: &mut State, digest: Digest) {
        self.tell_program(state, digest, "done");
        let Some(Blob { label, tally }) = state.blobs.remove(&digest) else {
            return;
        };
        tally.finish();
        if let Some(total) = &state.total
            && total.done_bytes >= total.size_bytes
        {
            total.finish();
        }
        let is_worth_it = tally.size_bytes >= WORTH_A_LINE_BYTES || self.amount == Amount::Verbose;
        if is_worth_it && !matches!(self.pen, Pen::Json) {
            let seconds = tally.started.elapsed().as_secs_f64();
            let size = HumanBytes(tally.size_bytes);
            self.line(&format!("{label}: {size} in {seconds:.1} s"));
        }
    }

    fn bar(&self, size_bytes: u64, is_worth_it: bool, label: &str) -> Option<ProgressBar> {
        match &self.pen {
            Pen::Bars(bars) if is_worth_it => {
                let bar = ProgressBar::new(size_bytes).with_style(style());
                // The sum stays below its parts.
                let bar = match label {
                    "total" => bars.add(bar),
                    _ => bars.insert(0, bar),
                };
                bar.set_message(label.to_owned());
                Some(bar)
            }
            _ => None,
        }
    }

    /// Tells a program how far a blob, and everything, is.
    fn tell_program(&self, state: &State, digest: Digest, what: &str) {
        if let (Pen::Json, Some(blob)) = (&self.pen, state.blobs.get(&digest)) {
            let mut object = blob.tally.json();
            object["event"] = json!("blob");
            object["state"] = json!(what);
            object["digest"] = json!(digest);
            object["role"] = json!(blob.label);
            object["total"] = json!(state.total.as_ref().map(Tally::json));
            self.object(object);
        }
    }

    /// Shows why somebody else is asked than the operator wished for.
    pub(super) fn mirror_failed(&self, failure: &MirrorFailure) {
        if self.amount == Amount::Verbose {
            self.line(&format!("passing over {failure}"));
        }
    }

    /// Shows something that the user should know, unless they asked for quiet.
    pub(super) fn warn(&self, text: &str) {
        if self.amount != Amount::Quiet {
            self.line(&format!("warning: {text}"));
        }
    }

    fn line(&self, text: &str) {
        // Nobody is there to be told that nobody is there.
        match &self.pen {
            Pen::Bars(bars) => drop(bars.println(text)),
            Pen::Lines => drop(writeln!(io::stderr(), "{text}")),
            Pen::Json => self.object(json!({"event": "note", "text": text})),
        }
    }

    fn object(&self, object: Value) {
        drop(writeln!(io::stderr(), "{object}"));
    }
}

/// What is said of an event that is no blob's; none where that is not worth a line.
fn words(event: Progress, amount: Amount) -> Option<String> {
    let verbose = amount == Amount::Verbose;
    match event {
        Progress::Resolving(reference) => {
            verbose.then(|| format!("reading the manifests of {reference}"))
        }
        Progress::ConfigSkipped { config } => Some(format!(
            "warning: what comes after the JSON of config {config} is not read"
        )),
        Progress::MethodRejected { method, reason } => {
            Some(format!("passing over {method} boot: {reason}"))
        }
        Progress::WordsLeftOut { words } => Some(format!(
            "nothing can be added to the UKI's command line as it is started; left out {words}"
        )),
        Progress::ConsoleAdded { parameter } => Some(format!(
            "the image's command line names no console; added {parameter}"
        )),
        Progress::Accelerator(choice) => {
            let (name, reason) = (choice.accelerator.as_str(), choice.reason);
            let is_worth_it = verbose || name == "tcg" && reason != "asked for";
            is_worth_it.then(|| format!("accelerator {name}: {reason}"))
        }
        Progress::VerdictLost { reason } => {
            Some(format!("warning: how KVM did is not remembered: {reason}"))
        }
        Progress::DomainsUnknown(reason) => Some(format!(
            "warning: no blob is removed, a domain may need it: {reason}"
        )),
        Progress::StatesUnknown(reason) => {
            Some(format!("warning: what some VMs do is not known: {reason}"))
        }
        Progress::DefinedAlready(name) => {
            Some(format!("{name} is defined already; nothing is changed"))
        }
        Progress::NotRemoved { reason } => Some(format!(
            "warning: what is no longer needed is not removed: {reason}"
        )),
        Progress::HypervisorSaid(words) => Some(format!("QEMU: {}", Printable(&words))),
        Progress::Tested { label, verdict } => Some(format!("{}: {verdict}", Printable(&label))),
        Progress::NotKept { label, reason } => Some(format!(
            "warning: not all of {} is kept: {reason}",
            Printable(&label)
        )),
        Progress::StageReached {
            label,
            stage,
            after,
        } => {
            let (stage, seconds) = (stage.as_str(), after.as_secs_f64());
            Some(format!(
                "{}: {stage} after {seconds:.1} s",
                Printable(&label)
            ))
        }
        Progress::Started(name) => verbose.then(|| format!("started {name}")),
        Progress::Shared(tag) => Some(format!(
            "a directory is shared; in the guest: mount -t virtiofs {tag} /mnt"
        )),
        Progress::Attached => Some("Ctrl-] leaves the console, and the VM goes on".to_owned()),
        Progress::NoSshKey { reason } => {
            verbose.then(|| format!("no key for `ironboot ssh`: {reason}"))
        }
        Progress::BrokenSshKey(directory) => {
            let shown = directory.join("id_ed25519.pub");
            Some(format!(
                "no key for `ironboot ssh`: {} is not there or no key of Ed25519; \
                 `rm -r {}`, and the next VM has a new one",
                Printable(&shown.display().to_string()),
                Printable(&quoted(&directory))
            ))
        }
        Progress::WaitingForSsh(name) => Some(format!("waiting for the SSH server of {name}")),
        Progress::SshFailed(offers) => Some(ssh_failed(&offers)),
        Progress::Waiting { label } => Some(format!(
            "{label}: waiting for another ironboot, or reading what an earlier one left"
        )),
        Progress::Fetching { .. }
        | Progress::Unpacking { .. }
        | Progress::Verifying { .. }
        | Progress::BlobStart { .. }
        | Progress::BlobBytes { .. }
        | Progress::BlobRetry { .. }
        | Progress::BlobDone { .. } => None,
    }
}

/// What is to be known where `ssh` could not log in, which it does not tell from a command that failed.
fn ssh_failed(offers: &[Offer]) -> String {
    if offers.is_empty() {
        return "if ssh could not log in: this guest was not offered the store's key; \
                `ironboot run` does that where there is `ssh-keygen`, without --no-ssh and a \
                credential or config of your own in its place"
            .to_owned();
    }
    let offers: Vec<&str> = offers.iter().map(|offer| offer.as_str()).collect();
    format!(
        "if ssh could not log in: the guest was offered the store's key as {}, and may not have \
         taken it; systemd does from version 252 on, for root",
        offers.join(" and ")
    )
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{msg:>10} {bar:25} {bytes:>11}/{total_bytes:<11} {bytes_per_sec:>12} {eta:>4} left",
    )
    .expect("the template above is well-formed")
}
