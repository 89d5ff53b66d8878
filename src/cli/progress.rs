//! Progress on standard error: bars on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::oci::{Digest, Printable};
use crate::ops::Progress;

/// How often a plain line is written for a blob that takes long.
const PLAIN_INTERVAL: Duration = Duration::from_secs(5);

/// A blob of so many bytes gets a line when it is done.
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

/// Draws what a use case tells.
#[derive(Debug)]
pub(super) struct Drawing {
    amount: Amount,
    bars: Option<MultiProgress>,
    blobs: Mutex<BTreeMap<Digest, Blob>>,
}

#[derive(Debug)]
struct Blob {
    label: String,
    size_bytes: u64,
    done_bytes: u64,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Drawing {
    /// Chooses bars if standard error is a terminal.
    pub(super) fn new(amount: Amount) -> Self {
        let bars = (amount != Amount::Quiet && io::stderr().is_terminal()).then(MultiProgress::new);
        Self {
            amount,
            bars,
            blobs: Mutex::new(BTreeMap::new()),
        }
    }

    /// Shows one event.
    pub(super) fn show(&self, event: Progress) {
        if self.amount == Amount::Quiet {
            return;
        }
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Progress::Resolving(reference) if self.amount == Amount::Verbose => {
                self.line(&format!("reading the manifests of {reference}"));
            }
            Progress::Resolving(_) => {}
            Progress::ConfigSkipped { config } => {
                self.warn(&format!(
                    "what comes after the JSON of config {config} is not read"
                ));
            }
            Progress::Fetching { missing_bytes: 0 } => {
                if self.amount == Amount::Verbose {
                    self.line("everything is in the store");
                }
            }
            Progress::Fetching { missing_bytes } => {
                self.line(&format!("fetching {}", HumanBytes(missing_bytes)));
            }
            Progress::BlobStart {
                blob,
                label,
                size_bytes,
                offset_bytes,
            } => {
                let is_worth_it =
                    size_bytes >= WORTH_A_LINE_BYTES || self.amount == Amount::Verbose;
                let bar = self.bars.as_ref().filter(|_| is_worth_it).map(|bars| {
                    let bar = bars.add(ProgressBar::new(size_bytes).with_style(style()));
                    bar.set_message(label.clone());
                    bar.set_position(offset_bytes);
                    bar
                });
                if offset_bytes >= WORTH_A_LINE_BYTES {
                    let offset = HumanBytes(offset_bytes);
                    self.line(&format!("{label}: resuming after {offset}"));
                }
                let now = Instant::now();
                blobs.insert(
                    blob,
                    Blob {
                        label,
                        size_bytes,
                        done_bytes: offset_bytes,
                        started: now,
                        told: now,
                        bar,
                    },
                );
            }
            Progress::BlobBytes { blob, count } => {
                if let Some(blob) = blobs.get_mut(&blob) {
                    blob.done_bytes += count;
                    match &blob.bar {
                        Some(bar) => bar.set_position(blob.done_bytes),
                        None => self.tell_now_and_then(blob),
                    }
                }
            }
            Progress::BlobRetry { blob, reason } => {
                let label = blobs.get(&blob).map_or("blob", |blob| &blob.label);
                self.line(&format!("{label}: {reason}; trying again"));
            }
            Progress::BlobDone { blob } => {
                if let Some(blob) = blobs.remove(&blob) {
                    if let Some(bar) = &blob.bar {
                        bar.finish_and_clear();
                    }
                    if blob.size_bytes >= WORTH_A_LINE_BYTES || self.amount == Amount::Verbose {
                        let seconds = blob.started.elapsed().as_secs_f64();
                        let size = HumanBytes(blob.size_bytes);
                        self.line(&format!("{}: {size} in {seconds:.1} s", blob.label));
                    }
                }
            }
            Progress::MethodRejected { method, reason } => {
                self.line(&format!("passing over {method} boot: {reason}"));
            }
            Progress::WordsLeftOut { words } => {
                self.line(&format!(
                    "nothing can be added to the UKI's command line as it is started; \
                     left out {words}"
                ));
            }
            Progress::ConsoleAdded { parameter } => {
                self.line(&format!(
                    "the image's command line names no console; added {parameter}"
                ));
            }
            Progress::Accelerator(choice) => {
                let (name, reason) = (choice.accelerator.as_str(), choice.reason);
                if self.amount == Amount::Verbose || name == "tcg" && reason != "asked for" {
                    self.line(&format!("accelerator {name}: {reason}"));
                }
            }
            Progress::VerdictLost { reason } => {
                self.warn(&format!("how KVM did is not remembered: {reason}"));
            }
            Progress::HypervisorSaid(words) => self.line(&format!("QEMU: {}", Printable(&words))),
            Progress::Started(name) => {
                if self.amount == Amount::Verbose {
                    self.line(&format!("started {name}"));
                }
            }
        }
    }

    /// Shows something that the user should know, unless they asked for quiet.
    pub(super) fn warn(&self, text: &str) {
        if self.amount != Amount::Quiet {
            self.line(&format!("warning: {text}"));
        }
    }

    fn tell_now_and_then(&self, blob: &mut Blob) {
        if blob.told.elapsed() < PLAIN_INTERVAL {
            return;
        }
        blob.told = Instant::now();
        let elapsed = blob.started.elapsed().as_millis().max(1);
        let rate = u64::try_from(u128::from(blob.done_bytes) * 1000 / elapsed).unwrap_or(u64::MAX);
        let left = (blob.size_bytes - blob.done_bytes) / rate.max(1);
        self.line(&format!(
            "{}: {} of {}, {}/s, {left} s left",
            blob.label,
            HumanBytes(blob.done_bytes),
            HumanBytes(blob.size_bytes),
            HumanBytes(rate)
        ));
    }

    fn line(&self, text: &str) {
        // Nobody is there to be told that nobody is there.
        match &self.bars {
            Some(bars) => drop(bars.println(text)),
            None => drop(writeln!(io::stderr(), "{text}")),
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(
        "{msg:>10} {bar:25} {bytes:>11}/{total_bytes:<11} {bytes_per_sec:>12} {eta:>4} left",
    )
    .expect("the template above is well-formed")
}
