//! Both renderers make the same machine of the same spec: what libvirt would tell QEMU for a golden
//! document is compared with the golden command line, in all that decides what boots.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use quick_xml::escape::unescape;
use quick_xml::events::Event;
use quick_xml::{Reader, XmlVersion};
use serde_json::Value;

use crate::libvirt::virsh;

/// A command line by its options.
struct Arguments {
    program: String,
    options: Vec<(String, String)>,
}

impl Arguments {
    /// Reads a program with its arguments, in which no value but an option begins with `-`.
    fn of(words: &[String]) -> Self {
        let (program, rest) = words.split_first().unwrap();
        let mut options: Vec<(String, String)> = Vec::new();
        for word in rest {
            match options.last_mut() {
                _ if word.starts_with('-') => options.push((word.clone(), String::new())),
                Some((_, value)) => value.clone_from(word),
                None => panic!("{word} belongs to no option"),
            }
        }
        let program = program.rsplit('/').next().unwrap().to_owned();
        Self { program, options }
    }

    fn values(&self, option: &str) -> impl Iterator<Item = &str> {
        let named = self.options.iter().filter(move |(name, _)| name == option);
        named.map(|(_, value)| value.as_str())
    }

    fn json(&self, option: &str) -> Vec<Value> {
        let objects = self.values(option);
        objects
            .filter_map(|value| serde_json::from_str(value).ok())
            .collect()
    }

    /// What decides what boots, sorted, in words of this test's own.
    fn machine(&self) -> Vec<String> {
        let mut facts = vec![self.program.clone()];
        for option in [
            "-kernel", "-initrd", "-append", "-bios", "-fw_cfg", "-global", "-cpu",
        ] {
            // An empty command line is none.
            let values = self.values(option).filter(|value| !value.is_empty());
            facts.extend(values.map(|value| format!("{option} {value}")));
        }
        for string in self.values("-smbios").flat_map(split) {
            facts.push(format!("-smbios {string}"));
        }
        let told = ["menu=", "splash-time=", "smm=", "gic-version="];
        for part in self
            .values("-machine")
            .chain(self.values("-boot"))
            .flat_map(split)
        {
            if told.iter().any(|key| part.starts_with(key)) {
                facts.push(part);
            } else if let Some((unit, node)) = part.split_once('=')
                && unit.starts_with("pflash")
            {
                facts.push(format!("{unit}: {}", self.chain(&Value::from(node))));
            }
        }
        // libvirt has a first disk to boot for a kernel, too, which nobody asks for.
        let from_disk = self.values("-kernel").next().is_none();
        for device in self.json("-device") {
            let driver = device["driver"].as_str().unwrap();
            let keys = ["serial", "mac", "bootindex"].into_iter();
            let keys: String = keys
                .filter(|key| from_disk || *key != "bootindex")
                .filter_map(|key| Some(format!(" {key}={}", device.get(key)?)))
                .collect();
            match device.get("drive") {
                Some(drive) => facts.push(format!("{driver}{keys}: {}", self.chain(drive))),
                None if driver.starts_with("virtio-") => facts.push(format!("{driver}{keys}")),
                // Bridges and USB of libvirt's own.
                None => {}
            }
        }
        facts.sort();
        // Told once for all strings, or once for each.
        facts.dedup_by(|a, b| a == "-smbios type=11" && a == b);
        facts
    }

    /// A block node, which is an object or another's name, with all that it opens.
    fn chain(&self, node: &Value) -> String {
        let nodes = self.json("-blockdev");
        let resolved = |node: &Value| {
            let name = node.as_str();
            let named = name.and_then(|name| nodes.iter().find(|node| node["node-name"] == name));
            named.unwrap_or(node).clone()
        };
        let node = resolved(node);
        let file = resolved(&node["file"]);
        let end = match node.get("backing") {
            None => String::new(),
            Some(Value::Null) => " on nothing".to_owned(),
            Some(backing) => format!(" on {}", self.chain(backing)),
        };
        let (driver, read_only) = (&node["driver"], &node["read-only"]);
        format!("{driver} read-only={read_only} {}{end}", file["filename"])
    }
}

/// The parts of an option, with doubled commas for those in values.
fn split(option: &str) -> Vec<String> {
    let parts = option.replace(",,", "\0");
    let parts = parts.split(',').map(|part| part.replace('\0', ",,"));
    parts.collect()
}

fn fixtures(directory: &str, extension: &str) -> BTreeMap<String, PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let paths = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension() == Some(extension.as_ref()))
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), path))
        .collect()
}

/// libvirt's command line for a document, without the environment before it.
fn native(document: &Path) -> Vec<String> {
    let line = virsh(&["domxml-to-native", "qemu-argv", document.to_str().unwrap()]);
    let line = line.unwrap_or_else(|| panic!("libvirt refuses {}", document.display()));
    // It is quoted for a shell.
    let output = Command::new("sh")
        .args(["-c", &format!("printf '%s\\n' {line}")])
        .output()
        .unwrap();
    let words = String::from_utf8(output.stdout).unwrap();
    let words = words.lines().map(str::to_owned);
    words
        .skip_while(|word| !word.contains("/qemu-system-"))
        .collect()
}

#[test]
fn libvirt_and_we_tell_qemu_the_same() {
    let mut command_lines = fixtures("fixtures/argv", "txt");
    let mut compared = 0;
    for (name, document) in fixtures("fixtures/xml", "xml") {
        let text = fs::read_to_string(&document).unwrap();
        // What one of them has not; and KVM, which libvirt must find on this machine.
        let Some(command_line) = command_lines
            .remove(&name)
            .filter(|_| !text.contains("\"kvm\""))
        else {
            continue;
        };
        let words = fs::read_to_string(command_line).unwrap();
        let words: Vec<_> = words.lines().map(str::to_owned).collect();
        let (ours, theirs) = (Arguments::of(&words), Arguments::of(&native(&document)));
        assert_eq!(ours.machine(), theirs.machine(), "{name}");
        compared += 1;
    }
    assert!(compared > 10, "{compared}");
}

/// Every path in a document that QEMU is to open: attributes `file`, and the texts of `<os>`.
fn named_in(document: &str) -> BTreeSet<String> {
    let mut reader = Reader::from_str(document);
    let (mut named, mut element) = (BTreeSet::new(), String::new());
    let mut text = String::new();
    loop {
        let event = reader.read_event().unwrap();
        match &event {
            Event::Start(start) | Event::Empty(start) => {
                element = start.name().as_ref().to_owned();
                text.clear();
                for attribute in start.attributes() {
                    let attribute = attribute.unwrap();
                    if attribute.key.as_ref() == "file" {
                        let value = attribute.normalized_value(XmlVersion::Implicit1_0).unwrap();
                        named.insert(value.into_owned());
                    }
                }
            }
            Event::Text(part) => text += &part.xml10_content(),
            Event::GeneralRef(reference) => {
                text += &unescape(&format!("&{};", &**reference)).unwrap();
            }
            Event::End(_) => {
                if ["kernel", "initrd", "loader", "nvram"].contains(&element.as_str()) {
                    named.insert(text.clone());
                }
                element.clear();
            }
            Event::Eof => return named,
            _ => {}
        }
    }
}

/// Every path that a command line of libvirt's opens, without those that are libvirt's own.
fn opened_by(arguments: &Arguments) -> BTreeSet<String> {
    let whole = ["-kernel", "-initrd", "-bios"].into_iter();
    let whole = whole.flat_map(|option| arguments.values(option).map(str::to_owned));
    let files = arguments.json("-blockdev").into_iter();
    let files = files.filter_map(|node| node["filename"].as_str().map(str::to_owned));
    let parts = ["-fw_cfg", "-chardev", "-smbios", "-netdev", "-machine"].into_iter();
    let parts = parts.flat_map(|option| arguments.values(option).flat_map(split));
    let parts = parts.filter_map(|part| {
        let (key, value) = part.split_once('=')?;
        let is_path = ["file", "path", "logfile", "filename", "script"].contains(&key);
        is_path.then(|| value.replace(",,", ","))
    });
    let opened = whole.chain(files).chain(parts);
    opened
        .filter(|path| !path.starts_with("/var/lib/libvirt/qemu/"))
        .collect()
}

#[test]
fn what_libvirt_tells_qemu_to_open_is_what_the_document_names_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let documents = fixtures("fixtures/xml", "xml");
    assert!(documents.len() > 20);
    for (name, document) in documents {
        // KVM is not on every machine, and no matter here.
        let text = fs::read_to_string(&document).unwrap();
        let text = text.replace("type=\"kvm\"", "type=\"qemu\"");
        let text = match text.contains("arch=\"aarch64\"") {
            true => text.replace("<cpu mode=\"host-passthrough\"/>", ""),
            false => text.replace("host-passthrough", "maximum"),
        };
        let document = directory.path().join(&name);
        fs::write(&document, &text).unwrap();
        let arguments = Arguments::of(&native(&document));
        assert_eq!(opened_by(&arguments), named_in(&text), "{name}");

        // Texts of the document's are no option's.
        let has = |option: &str| arguments.values(option).next().is_some();
        assert_eq!(has("-bios"), name.starts_with("memory"), "{name}");
        assert!(!has("-drive") && !has("-hda") && !has("-cdrom"), "{name}");
        for node in arguments.json("-blockdev") {
            let driver = node["driver"].as_str().unwrap();
            assert!(["file", "raw", "qcow2"].contains(&driver), "{name}: {node}");
            // A qcow2 image's own word for what lies below it is not heeded.
            assert!(
                driver != "qcow2" || node.get("backing").is_some(),
                "{name}: {node}"
            );
        }
        let blocks = |option: &str| {
            let devices = arguments.json(option).into_iter();
            let disks = devices.filter(|device| device.get("drive").is_some());
            disks.count()
        };
        assert_eq!(blocks("-device"), text.matches("<disk ").count(), "{name}");
    }
}
