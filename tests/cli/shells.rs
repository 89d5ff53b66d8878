//! Completion, in real shells: what a press of the key makes of what was typed.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::image::{Image, direct};
use crate::sandbox::{Sandbox, check};

/// Where the shell waits for a line.
const PROMPT: &str = "READY";
/// Printed after what a line has become.
const END: &str = "<end>";

/// A sandbox with an image of a registry, and a VM.
fn stocked() -> (Sandbox, Image, String) {
    let sandbox = Sandbox::new();
    let image = direct();
    let (_server, reference) = sandbox.serve(&image);
    let output = sandbox.run(format!("prepare -q --arch amd64 --name web {reference}"));
    assert_eq!(output.status, 0, "{}", output.text());
    fs::create_dir(sandbox.path("home/images")).unwrap();
    (sandbox, image, reference)
}

/// What is typed, and the words that it becomes.
fn cases(reference: &str) -> Vec<(String, String)> {
    let (host, rest) = reference.split_once(':').unwrap();
    let port = &rest[..2];
    let words = |words: &[&str]| {
        let words = words.iter().map(|word| format!("<{word}>"));
        words.collect::<String>()
    };
    vec![
        ("image ver".to_owned(), words(&["image", "verify"])),
        // `complete`, which the scripts call, is offered to nobody.
        ("compl".to_owned(), words(&["completion"])),
        (format!("plan {}", &host[..5]), words(&["plan", reference])),
        (format!("plan {host}:"), words(&["plan", reference])),
        (
            format!("run -m 1G {host}:{port}"),
            words(&["run", "-m", "1G", reference]),
        ),
        (
            format!("image push {host}:{port}"),
            words(&["image", "push", reference]),
        ),
        (
            "run --boot=dir".to_owned(),
            words(&["run", "--boot=direct"]),
        ),
        (
            "run --boot dir".to_owned(),
            words(&["run", "--boot", "direct"]),
        ),
        (
            "run --tls-verify=f".to_owned(),
            words(&["run", "--tls-verify=false"]),
        ),
        ("plan oci:im".to_owned(), words(&["plan", "oci:images/"])),
        (
            "stop --force w".to_owned(),
            words(&["stop", "--force", "web"]),
        ),
    ]
}

/// `wrapper` with ironboot in its PATH.
fn in_shell(sandbox: &Sandbox, wrapper: &[&str]) -> Command {
    let ironboot = Path::new(env!("CARGO_BIN_EXE_ironboot"));
    let path = ironboot.parent().unwrap().display();
    let mut command = Command::new(wrapper[0]);
    command
        .args(&wrapper[1..])
        .env_clear()
        .env("HOME", sandbox.path("home"))
        .env("IRONBOOT_STORE", sandbox.store())
        .env("PATH", format!("{path}:/usr/local/bin:/usr/bin:/bin"))
        .env("TERM", "xterm")
        .env("ZDOTDIR", sandbox.path("home"))
        .current_dir(sandbox.path("home"));
    command
}

/// Types each line with the key after it, and compares the words that the shell makes of it.
fn check_on_terminal(program: &str, setup: &str, file: &str) {
    let (sandbox, _image, reference) = stocked();
    check_cases(&sandbox, program, setup, file, &cases(&reference));
}

fn check_cases(
    sandbox: &Sandbox,
    program: &str,
    setup: &str,
    file: &str,
    cases: &[(String, String)],
) {
    fs::write(sandbox.path("home").join(file), setup).unwrap();
    // On a terminal of its own; whatever is wrong, it ends.
    let script = ["timeout", "60", "script", "-qfc", program, "/dev/null"];
    let mut shell = in_shell(sandbox, &script)
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = shell.stdin.take().unwrap();
    let mut screen = shell.stdout.take().unwrap();
    let mut until = |end: &str| {
        let mut seen = String::new();
        let mut byte = [0];
        while !seen.ends_with(end) {
            assert_eq!(
                screen.read(&mut byte).unwrap(),
                1,
                "{program} ended: {seen}"
            );
            seen.push(char::from(byte[0]));
        }
        seen
    };
    until(&format!("{PROMPT}>"));
    for (typed, expected) in cases {
        keys.write_all(format!("show {typed}\t\r").as_bytes())
            .unwrap();
        let seen = until(END);
        let shown = seen.trim_end_matches(END).lines().last().unwrap();
        assert_eq!(&shown, expected, "{program}: {typed}");
        until(&format!("{PROMPT}>"));
    }
    keys.write_all(b"exit\r").unwrap();
    drop(keys);
    shell.wait().unwrap();
}

const BASH: &str = "bash --noprofile --rcfile bashrc -i";

fn bashrc() -> String {
    format!(
        "PS1='{PROMPT}>'\n\
         eval \"$(ironboot completion bash)\"\n\
         complete -F _ironboot show\n\
         show() {{ printf '<%s>' \"$@\"; printf '{END}'; }}\n\
         bind 'set enable-bracketed-paste off'\n"
    )
}

#[test]
fn bash_completes_what_it_splits_at_colons_as_well() {
    check_on_terminal(BASH, &bashrc(), "bashrc");
}

#[test]
fn bash_executes_nothing_of_what_a_file_is_called() {
    let sandbox = Sandbox::new();
    let mut cases = Vec::new();
    for (number, name) in [
        "$(touch ran)",
        "`touch ran`",
        "a\"$(touch ran)\"",
        "\\$(touch ran)",
        "a'$(touch ran)'",
    ]
    .iter()
    .enumerate()
    {
        // The shell closes the quote itself.
        let directory = sandbox.path("home").join(format!("odd{number}"));
        fs::create_dir_all(directory.join(name)).unwrap();
        for quote in ["\"", "'", ""] {
            let typed = format!("plan {quote}oci:odd{number}/");
            cases.push((typed, format!("<plan><oci:odd{number}/{name}/>")));
        }
    }
    check_cases(&sandbox, BASH, &bashrc(), "bashrc", &cases);
    assert!(!sandbox.path("home/ran").exists());
}

#[test]
fn zsh_completes_the_same() {
    let setup = format!(
        "PS1='{PROMPT}>'\n\
         autoload -U compinit; compinit -u -D\n\
         source <(ironboot completion zsh)\n\
         compdef _ironboot show\n\
         show() {{ printf '<%s>' \"$@\"; printf '{END}' }}\n\
         unsetopt prompt_sp\n"
    );
    check_on_terminal("zsh -d -i", &setup, ".zshrc");
}

#[test]
fn fish_completes_the_same() {
    let (sandbox, _image, reference) = stocked();
    for (typed, expected) in cases(&reference) {
        let script = "ironboot completion fish | source; complete --do-complete \"ironboot $argv\"";
        let fish = ["fish", "--no-config", "--command", script, &typed];
        let mut command = in_shell(&sandbox, &fish);
        let output = command.output().unwrap();
        let last = expected.trim_end_matches('>').rsplit('<').next().unwrap();
        let offered = String::from_utf8(output.stdout).unwrap();
        let offered: Vec<&str> = offered
            .lines()
            .map(|line| line.split('\t').next().unwrap())
            .collect();
        assert_eq!(offered, [last], "{typed}");
    }
}

#[test]
fn what_is_wrong_with_a_store_is_no_business_of_a_shells() {
    let sandbox = Sandbox::new();
    let ask = |words: &[&str]| {
        let mut command = sandbox.command("complete --");
        command.args(words);
        sandbox.finish(command)
    };
    // There is none, and none is made.
    let output = ask(&["ironboot", "stop", ""]);
    assert_eq!((output.status, output.stderr.as_str()), (0, ""));
    let offered = output.stdout.lines().next();
    assert_eq!(offered, Some("--force\tPull its plug instead"));
    assert!(!sandbox.store().exists());
    // A record that can not be read hides no other.
    fs::create_dir_all(sandbox.store().join("refs")).unwrap();
    fs::write(sandbox.store().join("refs/a.json"), "{").unwrap();
    fs::write(
        sandbox.store().join("refs/b.json"),
        r#"{"reference": "r.example/os:1"}"#,
    )
    .unwrap();
    fs::write(
        sandbox.store().join("refs/c.json"),
        "{\"reference\": \"r.example/\\u001b[31m\"}",
    )
    .unwrap();
    check(&ask(&["ironboot", "plan", "r"]).text(), "r.example/os:1\n");
    // The store that is typed is the one that is meant, and no credentials are read.
    let other = sandbox.path("other").display().to_string();
    check(
        &ask(&["ironboot", "--store", &other, "plan", "r"]).text(),
        "",
    );
    let broken = sandbox.path("auth.json");
    fs::write(&broken, "{").unwrap();
    let broken = broken.display().to_string();
    check(
        &ask(&["ironboot", "--authfile", &broken, "plan", "r"]).text(),
        "r.example/os:1\n",
    );
    check(&ask(&[]).text(), "");
}
