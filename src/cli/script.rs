//! What a `run` would do, as a shell script.

use std::ffi::OsString;
use std::path::Path;

use base64::prelude::{BASE64_STANDARD, Engine};

use crate::domain::DomainSpec;
use crate::stage::{OwnContent, OwnFile, esp_bytes};

/// What a `run` would do, as shell commands that can be run by hand.
///
/// What the guest is given stands in it as well, secrets not excepted.
/// `daemons` serve the VM on the sockets that they make.
pub(super) fn script(
    spec: &DomainSpec,
    own: &[OwnFile],
    daemons: &[(Vec<OsString>, String)],
    command: &[OsString],
) -> String {
    let directory = quoted(&spec.directory);
    let mut steps = vec![
        format!("mkdir -p -m 700 {directory}"),
        format!("cd {directory}"),
    ];
    steps.extend(own.iter().map(making));
    for (daemon, socket) in daemons {
        steps.push(format!("rm -f {socket}"));
        steps.push(format!("{{ {} & }}", quoted_words(daemon)));
        steps.push(format!("until test -S {socket}; do sleep 0.1; done"));
    }
    steps.push(quoted_words(command));
    steps.join(" &&\n") + "\n"
}

fn quoted_words(command: &[OsString]) -> String {
    let words = command.iter().map(|word| quote(&word.to_string_lossy()));
    words.collect::<Vec<_>>().join(" ")
}

/// The shell commands that make a file.
fn making(own: &OwnFile) -> String {
    let file = quoted(&own.path);
    match &own.content {
        OwnContent::Overlay {
            size_bytes,
            backing,
        } => format!(
            "qemu-img create -q -f qcow2 -F {} -b {} {file} {size_bytes}",
            backing.format.as_str(),
            quoted(&backing.file),
        ),
        OwnContent::Copy { of } => format!("cp --no-preserve=mode {} {file}", quoted(of)),
        OwnContent::Pieces { of, pieces } => {
            let of = quoted(of);
            let pieces = pieces.iter().map(|piece| {
                let (start, length) = (piece.offset + 1, piece.size_bytes);
                format!("tail -c +{start} {of} | head -c {length}")
            });
            let pieces: Vec<String> = pieces.collect();
            format!("{{ {}; }} >{file}", pieces.join("; "))
        }
        OwnContent::Esp {
            loader,
            loader_bytes,
            name,
        } => {
            // As ironboot makes it, by the tools of util-linux, dosfstools and mtools.
            let kib = esp_bytes(*loader_bytes) >> 10;
            let size = kib + 2048;
            let loader = quoted(loader);
            [
                format!("truncate -s {size}K {file}"),
                format!(
                    "echo start=2048, size={}, type=uefi, name=ESP | sfdisk -q --label gpt {file}",
                    2 * kib
                ),
                format!("mkfs.vfat -F 32 -n ESP --offset 2048 {file} {kib} >/dev/null"),
                format!("mmd -i {file}@@1M ::EFI ::EFI/BOOT"),
                format!("mcopy -i {file}@@1M {loader} ::EFI/BOOT/{name}"),
            ]
            .join(" &&\n")
        }
        OwnContent::Bytes(content) => {
            let content = BASE64_STANDARD.encode(content);
            format!("(umask 077 && echo {content} | base64 -d >{file})")
        }
    }
}

pub(super) fn quoted(path: &Path) -> String {
    quote(&path.display().to_string())
}

/// A word as a POSIX shell reads it back.
pub(super) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_are_one_word_to_a_shell() {
        let words = [
            "plain-1.2/x",
            "",
            "two words",
            "it's",
            "$(id)`id`\"\\",
            "a\nb",
            "é",
        ];
        let script: Vec<String> = words.iter().map(|word| quote(word)).collect();
        let output = std::process::Command::new("sh")
            .arg("-c")
            .arg(format!("printf '%s\\0' {}", script.join(" ")))
            .output()
            .unwrap();
        let expected: String = words.iter().map(|word| format!("{word}\0")).collect();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
}
