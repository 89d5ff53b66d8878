//! `test`: guests that come up and guests that do not, and what is told of them.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use serde_json::Value;

use crate::bench::{Bench, MACHINE};
use crate::guest::files;
use crate::session::{Ended, Session, wait_until};

/// What every guest prints.
const UP: &str = "--expect=^IRONBOOT-OK";

fn read(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The one test of a call.
fn verdict(ended: &Ended) -> Value {
    let json = ended.json();
    assert_eq!(json["tests"].as_array().unwrap().len(), 1, "{json:#}");
    json["tests"][0].clone()
}

fn stages(test: &Value) -> Vec<&str> {
    let stages = test["stages"].as_array().unwrap().iter();
    stages
        .map(|stage| stage["stage"].as_str().unwrap())
        .collect()
}

/// The directory that a call has kept, which is the only one.
fn kept(artifacts: &Path) -> PathBuf {
    let mut kept = fs::read_dir(artifacts).unwrap();
    let path = kept.next().unwrap().unwrap().path();
    assert!(kept.next().is_none());
    path
}

#[test]
fn a_dialogue_passes_and_leaves_nothing() {
    let bench = Bench::new();
    let artifacts = bench.root().join("artifacts");
    let dialogue = [
        "--json",
        "--append=ironboot.end=shell",
        "--expect=guest# $",
        "--send=echo $((6 * 7))",
        "--expect=^42$",
        "--send=ls /nowhere\\n\\c",
        "--expect=nowhere: No such",
        "--artifacts",
        artifacts.to_str().unwrap(),
    ];
    let test = verdict(&bench.start("test", &dialogue).ends().with_code(0));
    assert_eq!(test["verdict"], "pass");
    assert_eq!(test["reason"], Value::Null);
    assert_eq!(stages(&test), ["kernel", "initramfs"]);
    assert_eq!(test["machine"]["accelerator"], "tcg");
    assert_eq!(test["timeout_seconds"], 600.0);
    assert_eq!(test["boot"]["method"], "direct");
    let expectations = test["expectations"].as_array().unwrap();
    let line = |place: usize| expectations[place]["line"].as_str().unwrap();
    assert_eq!((expectations.len(), line(1)), (3, "42"));
    let at = |value: &Value| value.as_f64().unwrap();
    assert!(at(&test["stages"][0]["at_seconds"]) > 0.0);
    assert!(at(&expectations[0]["at_seconds"]) <= at(&expectations[2]["at_seconds"]));
    assert!(at(&expectations[2]["at_seconds"]) <= at(&test["boot_seconds"]));
    assert_eq!(fs::read_dir(&artifacts).unwrap().count(), 0);
    bench.is_clean();
}

#[test]
fn a_panic_fails_at_once_and_is_kept_and_reproduced() {
    let bench = Bench::new();
    let artifacts = bench.root().join("artifacts");
    let junit = bench.root().join("junit.xml");
    let options = [
        "--json",
        "--append=ironboot.end=panic",
        "--expect=login:",
        "--set-credential=app.secret:hush-hush",
        "--artifacts",
        artifacts.to_str().unwrap(),
        "--junit",
        junit.to_str().unwrap(),
    ];
    let test = verdict(&bench.start("test", &options).ends().with_code(1));
    assert_eq!(test["verdict"], "fail");
    assert_eq!(test["reason"]["kind"], "kernel-panic");
    let line = test["reason"]["line"].as_str().unwrap();
    assert!(
        line.contains("Kernel panic - not syncing: Attempted to kill init"),
        "{line}"
    );
    assert_eq!(test["boot_seconds"], Value::Null);
    assert!(test["decided_at_seconds"].as_f64() < test["timeout_seconds"].as_f64());
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(xml.contains("failures=\"1\" errors=\"0\""), "{xml}");
    assert!(xml.contains("<failure type=\"kernel-panic\""), "{xml}");

    let bundle = kept(&artifacts);
    assert_eq!(test["artifacts"], bundle.to_str().unwrap());
    let text = |name: &str| fs::read_to_string(bundle.join(name)).unwrap();
    assert!(text("console.log").contains("Kernel panic"));
    assert!(text("command.sh").starts_with("qemu-system-x86_64 "));
    assert_eq!(read(&bundle.join("verdict.json"))["reason"], test["reason"]);
    assert_eq!(read(&bundle.join("domain.json"))["memory"], 256);
    assert!(read(&bundle.join("versions.json"))["qemu"].is_string());
    for file in fs::read_dir(&bundle).unwrap() {
        let content = fs::read(file.unwrap().path()).unwrap();
        assert!(!String::from_utf8_lossy(&content).contains("hush-hush"));
    }

    let bundle = bundle.to_str().unwrap();
    let again = ["test", "--json", "--reproduce", bundle];
    bench
        .tries(&[&again[..], &["--timeout=1h"]].concat())
        .with_code(2);
    let (kind, message) = bench.tries(&again).with_code(2).error();
    assert_eq!(kind, "usage");
    let asked = "credential app.secret was not kept; pass --set-credential app.secret:VALUE";
    assert_eq!(message, asked);
    let again = [&again[..], &["--set-credential", "app.secret:other"]].concat();
    let again = bench.tries(&again).with_code(1).json();
    assert_eq!(again["reproduced"], true);
    assert_eq!(again["tests"][0]["name"], test["name"]);
    assert_eq!(again["tests"][0]["reason"]["kind"], "kernel-panic");
    bench.is_clean();
}

#[test]
fn what_never_comes_is_told_with_what_came_instead() {
    let bench = Bench::new();
    let hangs = ["--json", "--append=ironboot.end=hang"];
    let check = |options: &[&str], code: i32| {
        let ended = bench.start("test", &[&hangs[..], options].concat()).ends();
        let test = verdict(&ended.with_code(code));
        bench.is_clean();
        test
    };
    // Five times as much by translation.
    let test = check(&["--expect=never", "--timeout=3"], 124);
    assert_eq!(test["reason"]["kind"], "timeout");
    let message = test["reason"]["message"].as_str().unwrap();
    assert_eq!(
        message,
        "`never` did not come within 15 s; it had come to the initramfs"
    );
    assert_eq!(test["reason"]["line"], "IRONBOOT-HANG");

    let test = check(&["--expect=never", "--fail-on=IRONBOOT-[HG]ANG"], 1);
    assert_eq!(test["reason"]["kind"], "fail-on");
    assert_eq!(test["reason"]["line"], "IRONBOOT-HANG");

    let test = check(&[UP, "--max-boot-time=0.5s"], 1);
    assert_eq!(test["reason"]["kind"], "too-slow");
}

#[test]
fn a_guest_that_ends_or_starts_over_has_not_passed() {
    let bench = Bench::new();
    let options = ["--json", "--expect=never"];
    let test = verdict(&bench.start("test", &options).ends().with_code(1));
    assert_eq!(test["reason"]["kind"], "guest-exit");
    assert_eq!(
        test["reason"]["message"],
        "the VM ended before `never` came"
    );

    let artifacts = bench.root().join("artifacts");
    let options = [
        "--json",
        "--expect=never",
        "--append=ironboot.end=reboot",
        "--artifacts",
        artifacts.to_str().unwrap(),
    ];
    let test = verdict(&bench.start("test", &options).ends().with_code(1));
    assert_eq!(test["reason"]["kind"], "reboot-loop");
    assert_eq!(test["resets"], 4);
    let events = fs::read_to_string(kept(&artifacts).join("events.jsonl")).unwrap();
    assert_eq!(events.matches("\"RESET\"").count(), 4, "{events}");
    bench.is_clean();
}

#[test]
fn a_guest_tells_by_itself_that_it_is_ready() {
    let bench = Bench::new();
    let image = bench.image_named("more");
    let check = |words: &str, arch: &str, options: &[&str], code: i32| {
        let words = format!("--append=ironboot.notify={words}");
        let command = ["test", &image, "--json", &words, "--arch", arch];
        let command = [&command[..], &MACHINE, options].concat();
        verdict(&bench.tries(&command).with_code(code))
    };
    let test = check("STATUS=here,READY=1", "amd64", &["--ready=notify"], 0);
    assert_eq!(test["expectations"], Value::Array(Vec::new()));
    check("READY=1", "arm64", &["--ready=notify", UP], 0);
    let test = check("EXIT_STATUS=7", "amd64", &["--expect=never"], 1);
    assert_eq!(test["reason"]["kind"], "command-failed");
    assert_eq!(
        test["reason"]["message"],
        "the guest told of an exit status of 7"
    );
    let test = check(
        "STATUS=here",
        "amd64",
        &["--ready=notify", "--timeout=2"],
        124,
    );
    let message = test["reason"]["message"].as_str().unwrap();
    assert!(
        message.starts_with("word that it is ready did not come within 10 s"),
        "{message}"
    );
    bench.is_clean();
}

#[test]
fn a_command_in_the_guest_decides_by_its_exit_status() {
    let bench = Bench::new();
    let image = bench.image_named("more");
    let check = |options: &[&str], code: i32| {
        let command = ["test", &image, "--json"];
        let command = [&command[..], &MACHINE, options].concat();
        verdict(&bench.tries(&command).with_code(code))
    };
    let test = check(&["--exec=echo here && uname -s >&2"], 0);
    assert_eq!(test["command"]["exit_status"], 0);
    assert_eq!(test["command"]["output"], "here\nLinux\n");
    let test = check(&["--ready=ssh", "--exec=echo broken; exit 3"], 1);
    assert_eq!(test["reason"]["kind"], "command-failed");
    let message = test["reason"]["message"].as_str().unwrap();
    assert_eq!(message, "the command's exit status is 3; it said: broken");
    check(&["--ready=ssh"], 0);
    // Its end is its own, and no refused login.
    let test = check(&["--exec=exit 255"], 1);
    assert_eq!(test["command"]["exit_status"], 255);
    // What the console shows counts, though it has shown what was expected.
    let panics = "--exec=echo c >/proc/sysrq-trigger; sleep 600";
    let test = check(&["--expect=IRONBOOT-SSH", panics], 1);
    assert_eq!(test["reason"]["kind"], "kernel-panic");

    // What a guest says is nothing that a terminal or a runner obeys.
    let says = r"--exec=printf 'a\033]0;x\007\r::add-mask::b ##[stop-commands]c\n'; exit 1";
    let command = [&["test", &image, says][..], &MACHINE].concat();
    let ended = bench.tries(&command).with_code(1);
    assert!(ended.stdout.contains("command-failed"), "{}", ended.stdout);
    let obeyed = |line: &str| line.contains("##[") || line.contains(['\x1b', '\r', '\x07']);
    assert!(!ended.stdout.lines().any(obeyed), "{:?}", ended.stdout);

    let command = ["test", &image, "--json", "--network=none", "--exec=true"];
    assert_eq!(
        bench.tries(&command).with_code(2).json()["tests"][0]["error"]["kind"],
        "usage"
    );
    bench.is_clean();
}

#[test]
fn each_architecture_and_method_of_a_matrix_is_tested_and_reported() {
    let bench = Bench::new();
    let junit = bench.root().join("junit.xml");
    let summary = bench.root().join("summary.md");
    let missing = bench.image_named("nowhere");
    let options = [
        UP,
        "--matrix=arch=amd64,arm64",
        "--matrix=boot=direct,disk",
        "--jobs=2",
        "--memory-budget=1G",
        "--junit",
        junit.to_str().unwrap(),
        &missing,
    ];
    let mut command = bench.command_of("test", &options);
    command
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_STEP_SUMMARY", &summary);
    // The image that is not there counts less than a guest that fails.
    let ended = Session::start(command).ends().with_code(125);
    let image = bench.image();
    for way in ["amd64 direct", "amd64 disk", "arm64 direct", "arm64 disk"] {
        let passed = format!("PASS  {image} {way}: ");
        assert!(ended.stdout.contains(&passed), "{}", ended.stdout);
        let failed = format!("ERROR {missing} {way}\n      error: ");
        assert!(ended.stdout.contains(&failed), "{}", ended.stdout);
    }
    assert!(
        ended
            .stdout
            .ends_with("4 passed, 0 failed, 4 could not be tested\n")
    );
    assert!(ended.stderr.contains("firmware after "), "{}", ended.stderr);
    let annotations = ended
        .stderr
        .lines()
        .filter(|line| line.starts_with("::error title="));
    assert_eq!(annotations.count(), 4, "{}", ended.stderr);
    let rows = fs::read_to_string(&summary).unwrap();
    assert_eq!(rows.matches("| pass |").count(), 4, "{rows}");
    assert_eq!(rows.matches("| error |").count(), 4, "{rows}");
    let xml = fs::read_to_string(&junit).unwrap();
    assert!(
        xml.contains("tests=\"8\" failures=\"0\" errors=\"4\""),
        "{xml}"
    );
    bench.is_clean();
}

#[test]
fn a_boot_is_compared_with_the_same_of_an_earlier_verdict() {
    let bench = Bench::new();
    let baseline = bench.root().join("baseline.json");
    let ended = bench.start("test", &["--json", UP]).ends().with_code(0);
    fs::write(&baseline, &ended.stdout).unwrap();
    let options = ["--json", UP, "--max-regression=1000%", "--baseline"];
    let options = [&options[..], &[baseline.to_str().unwrap()]].concat();
    let test = verdict(&bench.start("test", &options).ends().with_code(0));
    assert!(test["comparison"]["ratio"].as_f64().unwrap() > 0.0);

    // As if it had been a hundred times as fast then.
    let mut then = ended.json();
    let seconds = then["tests"][0]["boot_seconds"].as_f64().unwrap();
    then["tests"][0]["boot_seconds"] = (seconds / 100.0).into();
    fs::write(&baseline, then.to_string()).unwrap();
    let test = verdict(&bench.start("test", &options).ends().with_code(1));
    assert_eq!(test["reason"]["kind"], "slower");

    // Another machine is not compared.
    then["tests"][0]["machine"]["cpus"] = 64.into();
    fs::write(&baseline, then.to_string()).unwrap();
    let test = verdict(&bench.start("test", &options).ends().with_code(0));
    assert_eq!(test["comparison"], Value::Null);
    bench.is_clean();
}

#[test]
fn a_signal_ends_all_tests_and_leaves_nothing() {
    let bench = Bench::new();
    let image = bench.image_named("compat");
    let options = [
        "--expect=never",
        "--append=ironboot.end=hang",
        "--jobs=2",
        &image,
    ];
    let test = bench.start("test", &options);
    wait_until("both run", || {
        let states = bench.states();
        states
            .iter()
            .filter(|(_, state)| state == "running")
            .count()
            == 2
    });
    test.signal(Signal::TERM);
    let ended = test.ends().with_code(143);
    assert_eq!(ended.stdout, "");
    bench.is_clean();
}

#[test]
fn what_firmware_can_not_boot_is_told_by_its_console() {
    let bench = Bench::new();
    // The loader has another name than the firmware looks for.
    let mut disk = fs::read(files("amd64").join("disk.img")).unwrap();
    let name = b"BOOTX64 EFI";
    let places: Vec<usize> = disk
        .windows(name.len())
        .enumerate()
        .filter_map(|(place, bytes)| (bytes == name).then_some(place))
        .collect();
    assert!(!places.is_empty());
    for place in places {
        disk[place] = b'N';
    }
    fs::write(bench.root().join("disk.img"), disk).unwrap();
    let root = bench.root().display();
    let (image, manifest) = (
        format!("oci:{root}/layout:os"),
        format!("arch=amd64,disk={root}/disk.img"),
    );
    bench.does(&[
        "image",
        "build",
        "--output",
        &image,
        "--manifest",
        &manifest,
    ]);
    let command = ["test", &image, "--json", "--timeout=60"];
    let test = verdict(&bench.tries(&[&command[..], &MACHINE].concat()).with_code(1));
    let kind = test["reason"]["kind"].as_str().unwrap();
    assert!(
        ["efi-shell", "no-bootable-device"].contains(&kind),
        "{kind}"
    );
    assert!(stages(&test).contains(&"firmware"), "{test:#}");
    bench.is_clean();
}
