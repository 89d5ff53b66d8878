//! Verdicts as JSON, and as people read them.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::output::{self, Planned};
use crate::expect::{Pattern, Script, Step};
use crate::oci::Printable;
use crate::ops::test::{Course, Reason, Tested};
use crate::store::Store;

use super::baseline::{Compared, Comparison};
use super::{Judged, Verdict};

/// Characters that are shown of one line.
const MAX_SHOWN_CHARS: usize = 240;
/// Lines of a console that are shown of what has failed.
const SHOWN_LINES: usize = 12;

/// Everything of one test.
pub(super) fn object(judged: &Judged, script: &Script, store: &Store) -> Value {
    let mut object = json!({
        "name": judged.case.name,
        "verdict": judged.verdict().as_str(),
        "reason": null,
        "artifacts": judged.bundle,
    });
    if judged.verdict() == Verdict::Fail {
        object["reason"] = json!(judged.why().map(|why| json!({
            "kind": why.kind,
            "message": why.message,
            "line": why.line,
            "hint": why.hint,
        })));
    }
    match &judged.result {
        Err(report) => object["error"] = report.to_json()["error"].take(),
        Ok(tested) => {
            let fields = [plan(tested, store), course(&tested.course, script)];
            for fields in fields {
                if let (Value::Object(object), Value::Object(fields)) = (&mut object, fields) {
                    object.extend(fields);
                }
            }
            object["machine"] = machine(tested);
            object["accelerator_reason"] = json!(tested.prepared.record.accelerator_reason);
            object["comparison"] = match judged.compared {
                Compared::With(Comparison {
                    baseline_seconds,
                    ratio,
                }) => json!({"baseline_seconds": baseline_seconds, "ratio": ratio}),
                Compared::Not | Compared::WithNothing => Value::Null,
            };
        }
    }
    object
}

/// What decides how fast a guest is, as far as we know it.
pub(super) fn machine(tested: &Tested) -> Value {
    let spec = &tested.prepared.record.spec;
    json!({
        "accelerator": spec.accelerator.as_str(),
        "cpus": spec.cpus,
        "memory_mib": spec.memory.mib(),
    })
}

/// The plan of the image that was tested.
fn plan(tested: &Tested, store: &Store) -> Value {
    let prepared = &tested.prepared;
    let planned = Planned {
        plan: &prepared.plan,
        firmware: prepared.firmware.as_ref(),
        inspected: Some(&prepared.inspected),
    };
    let fetched = Some(prepared.fetched_bytes);
    output::plan(&prepared.selected, Some(planned), store, fetched)
}

fn course(course: &Course, script: &Script) -> Value {
    let stages = course.stages.iter().map(|reached| {
        json!({
            "stage": reached.stage.as_str(),
            "at_seconds": seconds(reached.after),
            "line": reached.line,
        })
    });
    let expected = script.steps.iter().enumerate().filter_map(|(place, step)| {
        let Step::Expect(pattern) = step else {
            return None;
        };
        Some((place, pattern))
    });
    let expectations = expected.map(|(place, pattern): (usize, &Pattern)| {
        let met = course.met.iter().find(|met| met.step == place);
        json!({
            "pattern": pattern.meaning().unwrap_or_else(|| pattern.as_str()),
            "at_seconds": met.map(|met| seconds(met.after)),
            "line": met.map(|met| &met.line),
        })
    });
    json!({
        "boot_seconds": course.failed.is_none().then(|| seconds(course.decided)),
        "decided_at_seconds": seconds(course.decided),
        "timeout_seconds": seconds(course.limit),
        "stages": stages.collect::<Vec<_>>(),
        "expectations": expectations.collect::<Vec<_>>(),
        "command": course.executed.as_ref().map(|executed| json!({
            "exit_status": executed.status,
            "output": executed.output,
        })),
        "resets": course.resets,
        "clues": course.clues,
        "console_tail": course.tail,
    })
}

/// To the millisecond.
pub(super) fn seconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// What people read of one test.
pub(super) fn text(judged: &Judged) -> String {
    let name = Printable(&judged.case.name);
    let tested = match &judged.result {
        Err(report) => {
            let words = report.to_text();
            let words: String = words
                .lines()
                .map(|line| format!("      {line}\n"))
                .collect();
            let word = match judged.verdict() {
                Verdict::Error => "ERROR",
                Verdict::Fail | Verdict::Pass => "FAIL ",
            };
            return format!("{word} {name}\n{words}{}", kept(judged));
        }
        Ok(tested) => tested,
    };
    let course = &tested.course;
    let at = course.decided.as_secs_f64();
    let accelerator = tested.prepared.record.spec.accelerator.as_str();
    let method = tested.prepared.plan.method.name();
    let Some(Reason {
        failure,
        message,
        line,
    }) = &course.failed
    else {
        let compared = match judged.compared {
            Compared::Not => String::new(),
            Compared::WithNothing => ", nothing in the baseline to compare it with".to_owned(),
            Compared::With(comparison) => format!(", {:.2} times the baseline", comparison.ratio),
        };
        return format!("PASS  {name}: {method} boot by {accelerator}, {at:.1} s{compared}\n");
    };
    let kind = failure.as_str();
    let mut text = format!(
        "FAIL  {name}: {kind} after {at:.1} s, {method} boot by {accelerator}\n      {}\n",
        shown(message)
    );
    if let Some(line) = line {
        text.push_str(&format!("      line: {}\n", shown(line)));
    }
    for clue in course
        .clues
        .iter()
        .filter(|clue| Some(*clue) != line.as_ref())
    {
        text.push_str(&format!("      before: {}\n", shown(clue)));
    }
    text.push_str(&format!("      hint: {}\n", failure.hint()));
    let shown_lines = telling(&course.tail, line.as_deref());
    if !shown_lines.is_empty() {
        text.push_str("      the console's lines:\n");
    }
    for line in shown_lines {
        text.push_str(&format!("        | {}\n", shown(line)));
    }
    text.push_str(&kept(judged));
    text
}

/// The lines that tell most: those before and a few behind the line that decided, or the last ones.
fn telling<'a>(tail: &'a [String], line: Option<&str>) -> &'a [String] {
    let decided = tail.iter().position(|one| Some(one.as_str()) == line);
    let end = decided.map_or(tail.len(), |place| (place + 3).min(tail.len()));
    &tail[end.saturating_sub(SHOWN_LINES)..end]
}

/// What a guest has said, harmless: a terminal obeys control characters, and GitHub's runner obeys
/// `##[…]` wherever it stands in a line.
fn shown(said: &str) -> String {
    let mut text = Printable(said).to_string().replace("##[", "## [");
    if let Some((end, _)) = text.char_indices().nth(MAX_SHOWN_CHARS) {
        text.truncate(end);
        text.push('…');
    }
    text
}

fn kept(judged: &Judged) -> String {
    judged.bundle.as_ref().map_or_else(String::new, |bundle| {
        format!("      kept in {}\n", bundle.display())
    })
}

/// What people read at the end of several tests.
pub(super) fn sum(all: &[Judged]) -> String {
    let count = |verdict| {
        all.iter()
            .filter(|judged| judged.verdict() == verdict)
            .count()
    };
    let (passed, failed) = (count(Verdict::Pass), count(Verdict::Fail));
    let mut text = format!("{passed} passed, {failed} failed");
    match count(Verdict::Error) {
        0 => {}
        errors => text.push_str(&format!(", {errors} could not be tested")),
    }
    text + "\n"
}
