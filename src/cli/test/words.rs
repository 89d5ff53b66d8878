//! A test as the words of a command line that asks for the same again.

use std::fmt::Display;

use crate::cli::args::{
    ChoiceArgs, Credential, CredentialFile, MachineArgs, NetworkWord, PassArgs, TestArgs,
};
use crate::domain::FwCfgName;
use crate::expect::Step;

use super::Judged;
use super::cases::{Case, value_name};

/// A test in words.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// The words behind `test`.
    pub words: Vec<String>,
    /// The ids of credentials, which are not among them: a bundle is shown to others, and whoever gets one
    /// from others would give its image a file of his own.
    pub withheld: Vec<String>,
    /// Whether there was an Ignition config, likewise.
    pub withholds_ignition: bool,
}

impl Words {
    fn option(&mut self, name: &str, value: impl Display) {
        self.words.push(format!("--{name}={value}"));
    }

    fn options<T: Display>(&mut self, name: &str, values: impl IntoIterator<Item = T>) {
        for value in values {
            self.option(name, value);
        }
    }
}

/// The words of a test: of its image as it was, whatever becomes of the tag. What says what comes of
/// the results is left out.
pub(super) fn of(judged: &Judged, args: &TestArgs) -> Words {
    let Case {
        name: _,
        image,
        choice,
        machine,
    } = &judged.case;
    let mut words = Words::default();
    add_choice(&mut words, choice);
    add_machine(&mut words, machine);
    add_pass(&mut words, &args.pass);
    let image = match &judged.result {
        Ok(tested) => {
            let image = &tested.prepared.plan.image;
            image
                .reference
                .pinned(image.index_digest.unwrap_or(image.manifest_digest))
        }
        Err(_) => image.clone(),
    };
    words.words.extend(["--".to_owned(), image.to_string()]);
    words
}

fn add_choice(words: &mut Words, choice: &ChoiceArgs) {
    let ChoiceArgs {
        arch,
        variant,
        boot,
        cmdline,
        append,
        firmware,
        uki,
        pull,
    } = choice;
    words.options("arch", arch);
    words.option("variant", variant);
    words.option("boot", value_name(*boot));
    words.options("cmdline", cmdline);
    words.options("append", append);
    words.option("firmware", firmware);
    words.options("uki", uki.map(value_name));
    words.option("pull", value_name(*pull));
}

fn add_machine(words: &mut Words, machine: &MachineArgs) {
    let MachineArgs {
        cpus,
        memory,
        disk_size,
        ignition,
        set_credential,
        load_credential,
        smbios,
        hostname,
        accel,
        network,
    } = machine;
    words.option("cpus", cpus);
    words.option("memory", format!("{}M", memory.mib()));
    words.options("disk-size", disk_size);
    words.withholds_ignition = ignition.is_some();
    for Credential { name, value: _ } in set_credential {
        words.withheld.push(credential_id(name).to_owned());
    }
    for CredentialFile { name, path: _ } in load_credential {
        words.withheld.push(credential_id(name).to_owned());
    }
    words.options("smbios", smbios);
    words.options("hostname", hostname);
    words.option("accel", value_name(*accel));
    words.option(
        "network",
        match network {
            NetworkWord::None => "none".to_owned(),
            NetworkWord::User => "user".to_owned(),
            NetworkWord::Libvirt(name) => format!("network={name}"),
            NetworkWord::Bridge(name) => format!("bridge={name}"),
        },
    );
}

fn add_pass(words: &mut Words, pass: &PassArgs) {
    let PassArgs {
        dialogue,
        fail_on,
        tolerate,
        ready,
        exec,
        timeout,
        max_boot_time,
        // Another host has other times.
        baseline: _,
        max_regression: _,
    } = pass;
    for step in &dialogue.0 {
        match step {
            Step::Expect(pattern) => words.option("expect", pattern),
            Step::Send(bytes) => words.option("send", typed(bytes)),
        }
    }
    words.options("fail-on", fail_on);
    words.options("tolerate", tolerate.iter().map(|failure| failure.as_str()));
    words.options("ready", ready.map(value_name));
    words.options("exec", exec);
    words.option("timeout", format!("{}s", timeout.as_secs_f64()));
    words.options(
        "max-boot-time",
        max_boot_time.map(|time| format!("{}s", time.as_secs_f64())),
    );
}

/// The id of a credential, without what makes a file's name of it.
pub(super) fn credential_id(name: &FwCfgName) -> &str {
    let name = name.as_str();
    name.rsplit_once('/').map_or(name, |(_, id)| id)
}

/// What is typed, as `--send` takes it.
fn typed(bytes: &[u8]) -> String {
    let (bytes, end) = match bytes {
        [bytes @ .., b'\r'] => (bytes, ""),
        bytes => (bytes, "\\c"),
    };
    let mut text = String::new();
    for byte in bytes {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(*byte)),
            byte => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text + end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args;

    #[test]
    fn what_is_typed_reads_back() {
        for bytes in [
            &b"root\r"[..],
            b"\r",
            b"",
            b"a\\n\x1b[B",
            "é\r\r".as_bytes(),
            b"\\",
        ] {
            assert_eq!(args::typed(&typed(bytes)).unwrap(), bytes);
        }
    }
}
