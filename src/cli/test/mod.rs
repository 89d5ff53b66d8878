//! `test`: images booted for verdicts, several at once, and what comes of the verdicts.

mod baseline;
mod bundle;
mod cases;
mod github;
mod junit;
mod verdict;
mod words;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::thread::available_parallelism;
use std::time::Instant;

use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Semaphore, watch};

use crate::cli::args::TestArgs;
use crate::cli::report::{Kind, Report};
use crate::cli::terminal::Signals;
use crate::cli::{Ended, Output, environment};
use crate::domain::Memory;
use crate::expect::{Failure, Script};
use crate::host;
use crate::oci::Printable;
use crate::ops::test::{self, TestRequest, Tested};
use crate::ops::{Context, Progress};

use baseline::{Baseline, Compared};
use bundle::Shelf;
use cases::Case;

/// What QEMU takes besides its guest's memory, in MiB. Measured: 60 to 110 by translation.
const OVERHEAD_MIB: u64 = 128;

/// A test and its verdict.
#[derive(Debug)]
struct Judged {
    case: Case,
    result: Result<Tested, Report>,
    compared: Compared,
    /// Where it is kept.
    bundle: Option<PathBuf>,
}

/// Why a test has not passed, whether its guest has failed or it could not be tested.
#[derive(Debug)]
struct Why<'a> {
    kind: &'a str,
    message: &'a str,
    causes: &'a [String],
    /// The line of the console that tells.
    line: Option<&'a str>,
    hint: Option<&'a str>,
}

/// A verdict in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Pass,
    Fail,
    /// It could not be tested.
    Error,
}

impl Verdict {
    fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Error => "error",
        }
    }
}

impl Judged {
    fn verdict(&self) -> Verdict {
        match &self.result {
            Err(report) if is_the_images(report.kind) => Verdict::Fail,
            Err(_) => Verdict::Error,
            Ok(tested) if tested.course.failed.is_some() => Verdict::Fail,
            Ok(_) => Verdict::Pass,
        }
    }

    /// Why it has not passed, if it has not.
    fn why(&self) -> Option<Why<'_>> {
        match &self.result {
            Err(report) => Some(Why {
                kind: report.kind.as_str(),
                message: &report.message,
                causes: &report.causes,
                line: None,
                hint: report.hint.as_deref(),
            }),
            Ok(tested) => tested.course.failed.as_ref().map(|reason| Why {
                kind: reason.failure.as_str(),
                message: &reason.message,
                causes: &[],
                line: reason.line.as_deref(),
                hint: Some(reason.failure.hint()),
            }),
        }
    }

    /// The same in one line; empty if it has passed.
    fn headline(&self) -> String {
        self.why().map_or_else(String::new, |why| {
            let line = why.line.map(|line| format!(": {line}"));
            format!("{}: {}{}", why.kind, why.message, line.unwrap_or_default())
        })
    }

    /// The exit status that it asks for.
    fn exit_code(&self) -> u8 {
        match &self.result {
            Err(report) if is_the_images(report.kind) => 1,
            Err(report) => report.kind.exit_code(),
            Ok(tested) => match &tested.course.failed {
                None => 0,
                Some(reason) if reason.failure == Failure::Timeout => Kind::Timeout.exit_code(),
                Some(_) => 1,
            },
        }
    }
}

/// Whether an error says that the image itself is no good, so that it has failed its test.
fn is_the_images(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::InvalidImage | Kind::UnsafeImage | Kind::Unbootable
    )
}

/// What says that a file of results can not be written.
fn unwritable(path: &Path) -> impl FnOnce(io::Error) -> Report {
    let path = path.display().to_string();
    move |error| Report::usage(format!("can not write {path}: {error}"))
}

/// Tests what was asked for.
pub(super) async fn execute(context: &Context<'_>, asked: TestArgs) -> Result<Ended, Report> {
    let kept = asked.results.reproduce.as_deref();
    let kept = kept
        .map(|directory| bundle::read(directory, &asked))
        .transpose()?;
    let args = kept.as_ref().map_or(&asked, |kept| &kept.args);
    let script = args.pass.script();
    let baseline = args
        .pass
        .baseline
        .as_deref()
        .map(Baseline::read)
        .transpose()?;
    let shelf = args
        .results
        .artifacts
        .as_deref()
        .map(Shelf::at)
        .transpose()?;
    if let Some(path) = &args.results.junit {
        // Whoever waits for minutes is not told in the end that there is no such directory.
        let open = OpenOptions::new().create(true).append(true).open(path);
        drop(open.map_err(unwritable(path))?);
    }
    let mut cases = cases::cases(context, args)?;
    if let (Some(kept), [case]) = (&kept, &mut cases[..]) {
        case.name.clone_from(&kept.name);
    }
    let started = Instant::now();
    let (mut all, signal) = run_all(context, args, &script, shelf.as_ref(), cases).await?;
    for (judged, _) in &mut all {
        compare(judged, baseline.as_ref(), args.pass.max_regression);
    }
    let mut judged = Vec::new();
    let mut objects = Vec::new();
    for (mut one, place) in all {
        let mut object = verdict::object(&one, &script, &context.store);
        if let (Some(shelf), Some(place), true) = (&shelf, place, one.verdict() != Verdict::Pass) {
            let written = bundle::write(context, place.path(), &one, args, &object).await;
            match written.and_then(|()| shelf.keep(place, &one.case.name)) {
                Ok(path) => {
                    object["artifacts"] = json!(path);
                    one.bundle = Some(path);
                }
                Err(report) => {
                    let causes = report.causes.iter().map(|cause| format!(": {cause}"));
                    let reason = report.message.clone() + &causes.collect::<String>();
                    let label = one.case.name.clone();
                    (context.report)(Progress::NotKept { label, reason });
                }
            }
        }
        judged.push(one);
        objects.push(object);
    }
    let seconds = verdict::seconds(started.elapsed());
    let mut ended = ended(&judged, objects, kept.as_ref(), seconds);
    if let Some(number) = signal {
        ended.exit_code = Ended::by_signal(number).exit_code;
    }
    if let Err(report) = publish(&judged, args, seconds) {
        // Beside the verdicts, which were there before it.
        ended.say_as_well(report);
    }
    Ok(ended)
}

/// Writes the verdicts for those who do not read what is printed.
fn publish(judged: &[Judged], args: &TestArgs, seconds: f64) -> Result<(), Report> {
    if let Some(path) = &args.results.junit {
        let written = junit::document(judged, seconds).and_then(|xml| fs::write(path, xml));
        written.map_err(unwritable(path))?;
    }
    if let Some(github) = environment::github() {
        // A runner that has gone reads nothing any more.
        drop(io::stderr().write_all(github::annotations(judged).as_bytes()));
        if let Some(summary) = &github.summary {
            github::summarize(judged, summary).map_err(unwritable(summary))?;
        }
    }
    Ok(())
}

/// What is printed in the end.
fn ended(
    judged: &[Judged],
    objects: Vec<Value>,
    kept: Option<&bundle::Kept>,
    seconds: f64,
) -> Ended {
    let mut text: String = judged.iter().map(verdict::text).collect();
    if judged.len() > 1 {
        text.push_str(&verdict::sum(judged));
    }
    let mut reproduced = Value::Null;
    if let (Some(kept), [object]) = (kept, &objects[..]) {
        let now = bundle::outcome(object);
        let is_same = now == kept.outcome;
        let then = Printable(&kept.outcome);
        let is_tested = judged.iter().all(|one| one.verdict() != Verdict::Error);
        text.push_str(&match (is_same, is_tested) {
            (true, _) => format!("as it was kept: {now}\n"),
            (false, true) => format!("not as it was kept: {then} then\n"),
            (false, false) => format!("not tested again; {then} then\n"),
        });
        if is_same || is_tested {
            reproduced = json!(is_same);
        }
    }
    let count = |verdict| judged.iter().filter(|one| one.verdict() == verdict).count();
    let mut json = json!({
        "passed": count(Verdict::Pass),
        "failed": count(Verdict::Fail),
        "errors": count(Verdict::Error),
        "seconds": seconds,
        "tests": objects,
    });
    if kept.is_some() {
        json["reproduced"] = reproduced;
    }
    Ended {
        output: Output::Both { text, json },
        exit_code: exit_code(judged),
        reports: Vec::new(),
    }
}

/// The exit status of all: a guest that failed counts most, then one that took too long, then a host
/// that can not run it.
fn exit_code(judged: &[Judged]) -> u8 {
    let codes: Vec<u8> = judged.iter().map(Judged::exit_code).collect();
    let by_weight = [1, Kind::Timeout.exit_code(), Kind::Host.exit_code()];
    let weighty = by_weight.into_iter().find(|code| codes.contains(code));
    weighty.unwrap_or_else(|| codes.into_iter().find(|code| *code != 0).unwrap_or(0))
}

/// A test that has ended, and what was kept of it so far.
type Finished = (Judged, Option<TempDir>);

/// Runs the tests, as many at once as there is room for, and gives those that came to an end, in their
/// order; and the number of a signal, if one came before the others did.
async fn run_all(
    context: &Context<'_>,
    args: &TestArgs,
    script: &Script,
    shelf: Option<&Shelf>,
    cases: Vec<Case>,
) -> Result<(Vec<Finished>, Option<u8>), Report> {
    let mut signals = Signals::listen();
    let (tell, told) = watch::channel(false);
    let room = Room::new(args);
    let is_one_of_many = cases.len() > 1;
    let tests = cases.into_iter().enumerate().map(|(number, case)| {
        let (room, told) = (&room, told.clone());
        async move {
            let place = shelf.map(Shelf::place).transpose()?;
            let evidence = place.as_ref().map(TempDir::path);
            let _room = room.take(case.machine.memory).await;
            let result = run_one(context, args, script, &case, evidence, told).await;
            let Some(result) = result.transpose() else {
                return Ok(None);
            };
            let judged = Judged {
                case,
                result,
                compared: Compared::Not,
                bundle: None,
            };
            if is_one_of_many {
                let (label, verdict) = (judged.case.name.clone(), judged.verdict().as_str());
                (context.report)(Progress::Tested { label, verdict });
            }
            Ok::<_, Report>(Some((number, (judged, place))))
        }
    });
    let tests = stream::iter(tests).buffer_unordered(jobs(args));
    let mut all = pin!(tests.collect::<Vec<_>>());
    let mut signal = None;
    let all = loop {
        tokio::select! {
            all = &mut all => break all,
            number = signals.next(), if signal.is_none() => {
                signal = Some(number);
                tell.send_replace(true);
            }
        }
    };
    let all: Result<Vec<_>, Report> = all.into_iter().collect();
    let mut all: Vec<_> = all?.into_iter().flatten().collect();
    all.sort_by_key(|(number, _)| *number);
    Ok((
        all.into_iter().map(|(_, finished)| finished).collect(),
        signal,
    ))
}

async fn run_one(
    context: &Context<'_>,
    args: &TestArgs,
    script: &Script,
    case: &Case,
    evidence: Option<&Path>,
    told: watch::Receiver<bool>,
) -> Result<Option<Tested>, Report> {
    let request = TestRequest {
        label: case.name.clone(),
        instance: case.request(context, &args.pass)?,
        script: script.clone(),
        ready: args.pass.ready(),
        command: args.pass.exec.clone(),
        timeout: args.pass.timeout,
        max_boot_time: args.pass.max_boot_time,
        evidence: evidence.map(Path::to_owned),
    };
    Ok(test::test(context, request, told).await?)
}

/// Compares a test that has passed with the baseline; it fails if it takes longer than it may.
fn compare(judged: &mut Judged, baseline: Option<&Baseline>, max_regression_percent: u32) {
    let (Some(baseline), Ok(tested)) = (baseline, &mut judged.result) else {
        return;
    };
    if tested.course.failed.is_some() {
        return;
    }
    judged.compared = baseline.compare(&judged.case.name, tested);
    if let Compared::With(comparison) = judged.compared {
        tested.course.failed = comparison.judge(tested.course.decided, max_regression_percent);
    }
}

/// How many tests run at once: so many that each guest's CPUs have one of the host's.
fn jobs(args: &TestArgs) -> usize {
    if let Some(jobs) = args.jobs {
        return usize::from(jobs);
    }
    let host = available_parallelism().map_or(1, NonZeroUsize::get);
    let guest = usize::try_from(args.machine.cpus.get()).unwrap_or(host);
    (host / guest).max(1)
}

/// The memory that all guests have together.
struct Room {
    mib: Semaphore,
    total_mib: u32,
}

impl Room {
    fn new(args: &TestArgs) -> Self {
        let available = || host::available_mib().map_or(u64::MAX, |mib| mib / 5 * 4);
        let mib = args.memory_budget.map_or_else(available, Memory::mib);
        let most = u32::try_from(Semaphore::MAX_PERMITS).unwrap_or(u32::MAX);
        let total_mib = u32::try_from(mib).unwrap_or(most).min(most).max(1);
        Self {
            mib: Semaphore::new(total_mib as usize),
            total_mib,
        }
    }

    /// Waits until there is room for a guest; one that is larger than all has it alone.
    async fn take(&self, memory: Memory) -> Option<tokio::sync::SemaphorePermit<'_>> {
        let mib = u32::try_from(memory.mib() + OVERHEAD_MIB).unwrap_or(u32::MAX);
        // It is never closed.
        self.mib.acquire_many(mib.min(self.total_mib)).await.ok()
    }
}
