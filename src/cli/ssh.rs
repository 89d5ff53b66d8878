//! `ssh`: a shell or a command in a guest.

use std::io;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio::time::{Instant, sleep, timeout};

use crate::cli::report::Report;
use crate::cli::terminal::Signals;
use crate::cli::{Ended, Output};
use crate::domain::DomainName;
use crate::hypervisor::{DomainState, HypervisorError};
use crate::ops::ssh::{self, Asks, Login, SshError};
use crate::ops::{Context, OpsError, Progress, instances};

/// How long a guest may take to answer before it is said that it is waited for.
const WORTH_A_WORD: Duration = Duration::from_secs(1);
/// How long `ssh` may take to give the terminal back.
const END_PATIENCE: Duration = Duration::from_secs(2);
/// What `ssh` ends with where it could not log in, or its command did.
const FAILED: u8 = 255;

/// Waits until the guest can be logged in to, and does.
pub(super) async fn execute(
    context: &Context<'_>,
    name: &DomainName,
    user: String,
    timeout: Duration,
    words: &[String],
) -> Result<Ended, Report> {
    let (record, hypervisor) = instances::find(context, name)?;
    let spec = &record.spec;
    if hypervisor.state(spec).await? != DomainState::Running {
        let mut report = Report::from(HypervisorError::NotRunning {
            domain: name.clone(),
        });
        report.hint = Some(format!("start it: `ironboot start {name}`"));
        return Err(report);
    }
    let port = ssh::port(spec).await?;
    let login = Login {
        port: port.ok_or_else(|| SshError::NoPort { name: name.clone() })?,
        user,
        directory: spec.directory.clone(),
        offers: ssh::key::offers(&context.store, spec)?,
        asks: Asks::Somebody,
    };
    let mut signals = Signals::listen();
    let banner = ssh::wait_for_banner(login.port, Instant::now() + timeout);
    tokio::pin!(banner);
    let answer = tokio::select! {
        answer = &mut banner => answer,
        number = signals.next() => return Ok(Ended::by_signal(number)),
        () = sleep(WORTH_A_WORD) => {
            (context.report)(Progress::WaitingForSsh(name.clone()));
            tokio::select! {
                answer = &mut banner => answer,
                number = signals.next() => return Ok(Ended::by_signal(number)),
            }
        }
    };
    answer?;
    let ended = execute_words(&login, words, &mut signals).await?;
    if ended.exit_code == FAILED {
        (context.report)(Progress::SshFailed(login.offers));
    }
    Ok(ended)
}

/// Lets it give the terminal back; kills it if it does not end.
async fn end(child: &mut Child) -> io::Result<()> {
    let id = child.id().and_then(|id| i32::try_from(id).ok());
    if let Some(process) = id.and_then(Pid::from_raw) {
        // It has not been waited for, so the id is nobody else's.
        kill_process(process, Signal::TERM)?;
    }
    match timeout(END_PATIENCE, child.wait()).await {
        Ok(status) => status.map(drop),
        Err(_) => child.kill().await,
    }
}

/// Runs `ssh` in this terminal to its end, and ends as it has.
async fn execute_words(
    login: &Login,
    words: &[String],
    signals: &mut Signals,
) -> Result<Ended, OpsError> {
    let failed = |source: io::Error| SshError::Program {
        program: "ssh",
        source,
    };
    let mut command = tokio::process::Command::from(ssh::command(login, words));
    let mut child = command.kill_on_drop(true).spawn().map_err(failed)?;
    let status = loop {
        tokio::select! {
            status = child.wait() => break status.map_err(failed)?,
            number = signals.next() => {
                // Ctrl-C is for `ssh`, which has it from the terminal as well and knows what to do.
                if number != Signals::INTERRUPT {
                    end(&mut child).await.map_err(failed)?;
                    return Ok(Ended::by_signal(number));
                }
            }
        }
    };
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(Ended {
        output: Output::Nothing,
        exit_code: code.unwrap_or(FAILED),
        reports: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};
    use tokio::process::Command;

    use super::*;

    #[tokio::test]
    async fn what_has_the_terminal_may_give_it_back_before_it_ends() {
        // Each says when it listens; one does not want to end.
        for (on_term, expected) in [("echo given back; exit 0", "given back"), (":", "")] {
            let script = format!("trap '{on_term}' TERM; echo; while :; do sleep 0.05; done");
            let mut command = Command::new("sh");
            command.args(["-c", &script]);
            command.stdout(std::process::Stdio::piped());
            let mut child = command.spawn().unwrap();
            let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert_eq!(lines.next_line().await.unwrap().unwrap(), "");
            end(&mut child).await.unwrap();
            let said = lines.next_line().await.unwrap().unwrap_or_default();
            assert_eq!(said, expected);
        }
    }
}
