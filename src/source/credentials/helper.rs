//! Docker's credential helpers: programs that are asked for a login.
//!
//! Format: docker-credential-helpers, the `get` action: the registry on standard input, JSON with
//! `Username` and `Secret` on standard output.

use std::ffi::OsStr;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::oci::Printable;
use crate::source::credentials::Login;
use crate::source::{HelperProblem, SourceError};

/// How long a helper may take; some ask a person, most ask a keyring.
const PATIENCE: Duration = Duration::from_secs(30);
/// Largest answer of a helper.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// What helpers say when they have nothing for a registry, in docker's own words.
const NOT_FOUND: &str = "credentials not found";

/// Tells whether `name` can be a helper's: it becomes part of a program's name.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty() && name.bytes().all(allowed)
}

/// Asks the helper `name` for the login of `registry`; none if it has none.
pub(super) async fn get(name: &str, registry: &str) -> Result<Option<Login>, SourceError> {
    let program = format!("docker-credential-{name}");
    let asked = ask(OsStr::new(&program), registry);
    let answer = tokio::time::timeout(PATIENCE, asked).await;
    answer
        .unwrap_or(Err(HelperProblem::Timeout))
        .map_err(|problem| SourceError::CredentialHelper {
            helper: name.to_owned(),
            registry: registry.to_owned(),
            problem,
        })
}

async fn ask(program: &OsStr, registry: &str) -> Result<Option<Login>, HelperProblem> {
    let mut child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(HelperProblem::Start)?;
    let mut input = child.stdin.take().expect("standard input is piped above");
    let output = child.stdout.take().expect("standard output is piped above");
    let mut answer = Vec::new();
    let mut output = output.take(MAX_ANSWER_BYTES + 1);
    match input.write_all(registry.as_bytes()).await {
        // It may answer without reading.
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            return Err(HelperProblem::Talk(error));
        }
        _ => drop(input),
    }
    output
        .read_to_end(&mut answer)
        .await
        .map_err(HelperProblem::Talk)?;
    if answer.len() as u64 > MAX_ANSWER_BYTES {
        return Err(HelperProblem::Answer);
    }
    let status = child.wait().await.map_err(HelperProblem::Talk)?;
    parse(status.success(), &answer)
}

fn parse(success: bool, answer: &[u8]) -> Result<Option<Login>, HelperProblem> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "Username")]
        user: String,
        #[serde(rename = "Secret")]
        secret: String,
    }
    if !success {
        let says = String::from_utf8_lossy(answer);
        if says.contains(NOT_FOUND) {
            return Ok(None);
        }
        return Err(HelperProblem::Says(Printable(says.trim()).to_string()));
    }
    let answer: Answer = serde_json::from_slice(answer).map_err(|_| HelperProblem::Answer)?;
    match answer.user.as_str() {
        "<token>" => Err(HelperProblem::IdentityToken),
        "" => Ok(None),
        _ => Ok(Some(Login::new(answer.user, answer.secret))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_name_that_could_be_a_path_is_no_name() {
        assert!(is_name("secretservice") && is_name("ecr-login") && is_name("osxkeychain"));
        for name in ["", "../../bin/sh", "/bin/sh", "a b", "A", "a\0", "a;b", "é"] {
            assert!(!is_name(name), "{name}");
        }
    }

    /// What a helper with this shell script answers.
    async fn answer(script: &str) -> Result<Option<Login>, HelperProblem> {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("docker-credential-test");
        fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
        loop {
            match ask(program.as_os_str(), "reg.example").await {
                // Another test's fork may still hold the script open for writing.
                Err(HelperProblem::Start(error))
                    if error.kind() == std::io::ErrorKind::ExecutableFileBusy =>
                {
                    tokio::task::yield_now().await;
                }
                answer => return answer,
            }
        }
    }

    #[tokio::test]
    async fn a_helper_is_asked_with_the_registry_on_its_input() {
        let script =
            r#"[ "$1" = get ] && printf '{"ServerURL":"x","Username":"%s","Secret":"s"}' "$(cat)""#;
        let login = answer(script).await.unwrap();
        let expected = Login::new("reg.example".to_owned(), "s".to_owned());
        assert_eq!(login, Some(expected));
    }

    #[tokio::test]
    async fn a_helper_that_has_nothing_means_anonymous() {
        let script = "echo credentials not found in native keychain; exit 1";
        assert_eq!(answer(script).await.unwrap(), None);
    }

    #[tokio::test]
    async fn helpers_that_fail_are_errors() {
        use HelperProblem::{Answer, IdentityToken, Says};
        for (script, expected) in [
            ("echo locked; exit 1", Says("locked".to_owned())),
            ("echo not json", Answer),
            ("head -c 70000 /dev/zero", Answer),
            (
                r#"echo '{"Username":"<token>","Secret":"s"}'"#,
                IdentityToken,
            ),
        ] {
            let problem = answer(script).await.unwrap_err();
            assert_eq!(problem.to_string(), expected.to_string());
        }
        let missing = ask(OsStr::new("docker-credential-none-such"), "x").await;
        assert!(matches!(missing, Err(HelperProblem::Start(_))));
    }
}
