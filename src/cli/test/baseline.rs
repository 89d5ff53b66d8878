//! An earlier verdict, and how much later the same passes now.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::cli::report::Report;
use crate::expect::Failure;
use crate::files;
use crate::ops::test::{Reason, Tested};

use super::verdict;

/// Largest file of verdicts that is read, in bytes.
const MAX_BYTES: u64 = 64 << 20;

/// The verdicts of an earlier call.
#[derive(Debug)]
pub(super) struct Baseline(Vec<Value>);

/// What came of a look at the baseline.
#[derive(Debug, Clone, Copy)]
pub(super) enum Compared {
    /// There is no baseline, or the test has not passed.
    Not,
    /// It has nothing that the test can be compared with.
    WithNothing,
    /// It has the same boot of an earlier time.
    With(Comparison),
}

/// A boot beside the same boot of an earlier time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Comparison {
    /// How long it took then, in seconds.
    pub baseline_seconds: f64,
    /// How many times as long it takes now.
    pub ratio: f64,
}

impl Baseline {
    pub(super) fn read(path: &Path) -> Result<Self, Report> {
        let shown = path.display();
        let json = files::read_small(path, MAX_BYTES)?
            .ok_or_else(|| Report::usage(format!("no such file: {shown}")))?;
        let no_verdicts = || Report::usage(format!("not what `test --json` writes: {shown}"));
        let mut object: Value = serde_json::from_slice(&json).map_err(|_| no_verdicts())?;
        match object["tests"].take() {
            Value::Array(tests) => Ok(Self(tests)),
            _ => Err(no_verdicts()),
        }
    }

    /// Compares a test that has passed with the same of then.
    pub(super) fn compare(&self, name: &str, tested: &Tested) -> Compared {
        self.find(name, tested)
            .map_or(Compared::WithNothing, Compared::With)
    }

    fn find(&self, name: &str, tested: &Tested) -> Option<Comparison> {
        let machine = verdict::machine(tested);
        let then = self.0.iter().find(|then| {
            then["name"] == name && then["verdict"] == "pass" && then["machine"] == machine
        })?;
        let baseline_seconds = then["boot_seconds"].as_f64().filter(|then| *then > 0.0)?;
        let ratio = tested.course.decided.as_secs_f64() / baseline_seconds;
        Some(Comparison {
            baseline_seconds,
            ratio,
        })
    }
}

impl Comparison {
    /// Why it fails, if it takes longer than it may.
    pub(super) fn judge(self, took: Duration, max_regression_percent: u32) -> Option<Reason> {
        let most = 1.0 + f64::from(max_regression_percent) / 100.0;
        (self.ratio > most).then(|| Reason {
            failure: Failure::Slower,
            message: format!(
                "it took {:.1} s and {:.1} s before, {:.2} times as long, more than {most:.2}",
                took.as_secs_f64(),
                self.baseline_seconds,
                self.ratio,
            ),
            line: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_longer_than_it_may_is_slower() {
        let then = Comparison {
            baseline_seconds: 10.0,
            ratio: 1.25,
        };
        let took = Duration::from_millis(12_500);
        assert_eq!(then.judge(took, 25), None);
        let reason = then.judge(took, 20).unwrap();
        assert_eq!(reason.failure, Failure::Slower);
        assert_eq!(
            reason.message,
            "it took 12.5 s and 10.0 s before, 1.25 times as long, more than 1.20"
        );
    }
}
