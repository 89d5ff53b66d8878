//! The verb `doctor`: what this host has, judged, with a hint for what can be mended. The exit status
//! tells whether anything can be booted here; programs read the levels.

mod here;
mod libvirt;
mod machine;
mod terminal;

use std::error::Error;

use serde_json::{Value, json};

use crate::cli::doctor::libvirt::Libvirt;
use crate::cli::doctor::machine::Findings;
use crate::cli::{Ended, environment};
use crate::domain::{Accelerator, Machine};
use crate::ops::Context;
use crate::ops::doctor;
use crate::source::SourceError;

/// How bad it is. The words are part of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// As it should be.
    Ok,
    /// It works less well, or not everybody needs it.
    Warn,
    /// It does not work.
    Fail,
}

/// The exit status where nothing can be booted, as of a `run` there.
const CAN_BOOT_NOTHING: u8 = 69;

/// One thing that was looked at.
#[derive(Debug, Clone)]
struct Finding {
    level: Level,
    message: String,
    hint: Option<String>,
}

/// Things that were looked at and that belong together.
#[derive(Debug)]
struct Section {
    /// What programs call it.
    area: String,
    title: String,
    checks: Vec<(String, Finding)>,
    /// What is told besides, below.
    more: String,
}

/// A machine that can be booted, and by what.
#[derive(Debug)]
struct Bootable(Machine, Accelerator);

impl Bootable {
    fn text(&self) -> String {
        format!("{} by {}", self.0.isa(), self.1.as_str())
    }

    fn json(&self) -> Value {
        json!({"architecture": self.0, "accelerator": self.1})
    }
}

/// What the verb is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wish {
    /// Whether firmware is run to see whether it gets going.
    pub boot: bool,
    /// Whether every descriptor of firmware is told.
    pub all: bool,
}

/// Executes the verb. `trouble` is what keeps the settings about registries from being used.
pub(super) async fn execute(
    context: &Context<'_>,
    wish: Wish,
    trouble: Option<&SourceError>,
) -> Ended {
    let search = environment::program_directories();
    let machines = doctor::examine(context).await;
    let findings: Vec<Findings<'_>> = machines
        .iter()
        .map(|facts| Findings::of(facts, &context.firmware_directories))
        .collect();
    let native = findings.iter().find(|found| found.is_native());
    let trials = match native {
        Some(found) if wish.boot => {
            let uefi = found.plain_code();
            doctor::try_out(context, found.machine(), uefi).await
        }
        _ => Vec::new(),
    };
    // After the trials, whose verdict it tells.
    let host = here::host(&doctor::here(context, &search).await, &trials);
    let libvirts = doctor::libvirts(context).await;
    let libvirts: Vec<Libvirt<'_>> = libvirts
        .iter()
        .map(|facts| Libvirt::of(facts, context.store.root()))
        .collect();
    let store = here::store(&doctor::store(context), context.store.root());
    let registries = here::registries(&doctor::registries(context, &search), trouble);

    let objects: Vec<Value> = findings.iter().map(Findings::json).collect();
    let libvirt_objects: Vec<Value> = libvirts.iter().map(Libvirt::json).collect();
    let is_usable = store.worst() != Level::Fail && host.worst() != Level::Fail;
    let bootable = findings.iter().filter(|_| is_usable);
    let bootable: Vec<Bootable> = bootable.filter_map(Findings::boots).collect();
    let machines = findings.iter().map(|found| found.section(wish.all));
    let sections: Vec<Section> = std::iter::once(host)
        .chain(machines)
        .chain(libvirts.iter().map(Libvirt::section))
        .chain([store, registries])
        .collect();

    let texts: Vec<String> = sections.iter().map(Section::text).collect();
    let text = texts.join("\n") + &summary(&sections, &bootable);
    let checks: Vec<Value> = sections.iter().flat_map(Section::json).collect();
    let worst = sections.iter().map(Section::worst).max();
    let count = |level| checks_of(&sections, level);
    let json = json!({
        "level": worst.unwrap_or(Level::Ok).as_str(),
        "host": context.host.architecture.as_str(),
        "bootable": bootable.iter().map(Bootable::json).collect::<Vec<_>>(),
        "summary": {"ok": count(Level::Ok), "warn": count(Level::Warn), "fail": count(Level::Fail)},
        "checks": checks,
        "machines": objects,
        "libvirt": libvirt_objects,
    });
    let mut ended = Ended::with(
        match environment::terminal_width() {
            Some(width) => {
                let colour = environment::may_colour(true);
                terminal::fitted(&text, width, colour)
            }
            None => text,
        },
        json,
    );
    if bootable.is_empty() {
        ended.exit_code = CAN_BOOT_NOTHING;
    }
    ended
}

fn checks_of(sections: &[Section], level: Level) -> usize {
    let findings = sections.iter().flat_map(|section| &section.checks);
    findings
        .filter(|(_, finding)| finding.level == level)
        .count()
}

/// The last line: how much is well, and what that comes to.
fn summary(sections: &[Section], bootable: &[Bootable]) -> String {
    let [well, odd, bad] =
        [Level::Ok, Level::Warn, Level::Fail].map(|level| checks_of(sections, level));
    let comes_to = match bootable {
        [] => "this host can boot nothing".to_owned(),
        some => {
            let some: Vec<String> = some.iter().map(Bootable::text).collect();
            format!("this host boots {}", some.join(" and "))
        }
    };
    format!("\n{well} ok, {odd} warn, {bad} fail: {comes_to}\n")
}

fn ok(message: String) -> Finding {
    Finding {
        level: Level::Ok,
        message,
        hint: None,
    }
}

impl Section {
    fn of(area: impl Into<String>, title: impl Into<String>) -> Self {
        Self {
            area: area.into(),
            title: title.into(),
            checks: Vec::new(),
            more: String::new(),
        }
    }

    fn add(&mut self, name: &str, finding: Finding) {
        self.checks.push((name.to_owned(), finding));
    }

    fn worst(&self) -> Level {
        let levels = self.checks.iter().map(|(_, finding)| finding.level);
        levels.max().unwrap_or(Level::Ok)
    }

    fn text(&self) -> String {
        let lines = self.checks.iter().map(|(name, finding)| finding.text(name));
        let lines: String = lines.collect();
        format!("{}\n{lines}{}", self.title, self.more)
    }

    fn json(&self) -> impl Iterator<Item = Value> {
        self.checks.iter().map(|(name, finding)| {
            json!({
                "name": name,
                "area": self.area,
                "status": finding.level.as_str(),
                "detail": finding.message,
                "mend": finding.hint,
            })
        })
    }
}

impl Level {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }

    /// The level of what is missing for a machine: of those of other hosts not everybody has need.
    fn of_missing(is_native: bool) -> Self {
        if is_native { Self::Fail } else { Self::Warn }
    }
}

/// The line of a hint, if there is one.
fn hint_line(hint: &Option<String>) -> String {
    let line = |hint: &String| format!("        hint: {hint}\n");
    hint.as_ref().map(line).unwrap_or_default()
}

impl Finding {
    fn text(&self, name: &str) -> String {
        let level = self.level.as_str();
        let message = &self.message;
        format!("  {level:<4}  {name:<12}  {message}\n") + &hint_line(&self.hint)
    }

    fn json(&self) -> Value {
        json!({
            "level": self.level.as_str(),
            "message": self.message,
            "hint": self.hint,
        })
    }
}

/// An error and what caused it, in one line.
fn with_source(error: &dyn Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
