//! A guest that is asked by SSH whether it is ready, and to execute a command.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::ops::OpsError;
use crate::ops::ssh::{self, Login, SshError};
use crate::ops::test::Executed;

/// Bytes that are kept of what a command says.
const MAX_OUTPUT_BYTES: u64 = 64 << 10;
/// What `ssh` ends with where it could not log in.
const FAILED: i32 = 255;
/// How often it is tried to log in: a server may answer before the keys are where it looks for them.
const ATTEMPTS: u32 = 5;
/// How long to wait in between.
const PAUSE: Duration = Duration::from_secs(2);

/// What came of it.
#[derive(Debug)]
pub(super) enum Answer {
    /// The server has said what it is, and nothing was to be executed.
    Ready,
    /// The command has ended.
    Executed(Executed),
    /// Nobody was let in; what `ssh` said.
    Refused(String),
    /// The VM has ended.
    Gone,
}

/// Waits for the server, and executes `command` if there is one. May be dropped.
pub(super) async fn ask(
    login: Login,
    command: Option<String>,
    deadline: Instant,
) -> Result<Answer, OpsError> {
    match ssh::wait_for_banner(login.port, deadline).await {
        Ok(_) => {}
        Err(SshError::Closed { .. }) => return Ok(Answer::Gone),
        // Whoever waits for this has the same deadline.
        Err(SshError::Silent { .. }) => return std::future::pending().await,
        Err(error) => return Err(error.into()),
    }
    let Some(command) = command else {
        return Ok(Answer::Ready);
    };
    // The command itself is executed once: what it does may not be for doing twice.
    let mut attempt = 1;
    loop {
        let executed = execute(&login, "true").await?;
        if executed.status != Some(FAILED) {
            break;
        }
        if attempt == ATTEMPTS {
            return Ok(Answer::Refused(executed.output));
        }
        attempt += 1;
        sleep(PAUSE).await;
    }
    Ok(Answer::Executed(execute(&login, &command).await?))
}

async fn execute(login: &Login, command: &str) -> Result<Executed, OpsError> {
    let failed = |source| SshError::Program {
        program: "ssh",
        source,
    };
    let mut child = Command::from(ssh::command(login, &[command.to_owned()]))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (status, output, errors) = tokio::join!(child.wait(), kept(stdout), kept(stderr));
    let mut output = output;
    output.push_str(&errors);
    Ok(Executed {
        status: status.map_err(failed)?.code(),
        output,
    })
}

/// Reads a stream to its end, and keeps its beginning.
async fn kept(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut kept = Vec::new();
    if let Some(mut stream) = stream {
        let mut beginning = (&mut stream).take(MAX_OUTPUT_BYTES);
        // A stream that breaks has ended.
        drop(beginning.read_to_end(&mut kept).await);
        drop(tokio::io::copy(&mut stream, &mut tokio::io::sink()).await);
    }
    String::from_utf8_lossy(&kept).into_owned()
}
