//! Verdicts as GitHub Actions shows them: an annotation for each test that does not pass, and a table
//! in the summary of the job.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use super::{Judged, Verdict};

/// The commands that annotate, one a line.
///
/// Source: GitHub's "Workflow commands", which are read from both standard streams.
pub(super) fn annotations(all: &[Judged]) -> String {
    let bad = all
        .iter()
        .filter(|judged| judged.verdict() != Verdict::Pass);
    bad.map(|judged| {
        let title = property(&judged.case.name);
        let message = data(&judged.headline());
        format!("::error title=ironboot test {title}::{message}\n")
    })
    .collect()
}

/// Adds the table to the file of the summary.
pub(super) fn summarize(all: &[Judged], summary: &Path) -> io::Result<()> {
    let mut table =
        "### ironboot test\n\n| test | verdict | seconds | why |\n|---|---|---:|---|\n".to_owned();
    for judged in all {
        let course = judged.result.as_ref().ok().map(|tested| &tested.course);
        let seconds = course.map_or_else(String::new, |course| {
            format!("{:.1}", course.decided.as_secs_f64())
        });
        let why = match judged.verdict() {
            Verdict::Pass => String::new(),
            Verdict::Fail | Verdict::Error => cell(&judged.headline()),
        };
        let name = cell(&judged.case.name);
        let verdict = judged.verdict().as_str();
        table.push_str(&format!("| {name} | {verdict} | {seconds} | {why} |\n"));
    }
    let mut file = OpenOptions::new().append(true).create(true).open(summary)?;
    file.write_all(table.as_bytes())
}

/// A message as a command takes it.
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// A property's value, likewise.
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}

/// A text as one cell of a table, none of it markup.
fn cell(text: &str) -> String {
    let mut cell = String::new();
    for c in text.chars() {
        match c {
            '&' => cell.push_str("&amp;"),
            '<' => cell.push_str("&lt;"),
            '>' => cell.push_str("&gt;"),
            c if c.is_control() => cell.push(' '),
            c if c.is_ascii_punctuation() && !"/:.,-".contains(c) => cell.extend(['\\', c]),
            c => cell.push(c),
        }
    }
    cell
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_prints_is_neither_a_command_nor_markup() {
        assert_eq!(data("a%\n::error::b"), "a%25%0A::error::b");
        assert_eq!(property("reg:5000/a,b"), "reg%3A5000/a%2Cb");
        assert_eq!(cell("a|b`<img>`\n*c*"), "a\\|b\\`&lt;img&gt;\\` \\*c\\*");
    }
}
