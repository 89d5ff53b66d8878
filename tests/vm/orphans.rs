//! What only one side knows of, the instances' directory or libvirt, and definitions that are not
//! what the record says.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::bench::Bench;
use crate::define::Defined;
use crate::libvirt::virsh;

/// Instance, state, hypervisor and problem of each row of `list`.
fn rows(bench: &Bench) -> Vec<[String; 4]> {
    let listed = bench.does(&["list", "--json"]).json();
    let text = |row: &Value, field: &str| row[field].as_str().unwrap_or("-").to_owned();
    let rows = listed["instances"].as_array().unwrap().iter();
    rows.map(|row| ["name", "state", "hypervisor", "problem"].map(|field| text(row, field)))
        .collect()
}

fn row(vm: &Defined, state: &str, hypervisor: &str, problem: &str) -> Vec<[String; 4]> {
    let row = [vm.name.as_str(), state, hypervisor, problem];
    vec![row.map(str::to_owned)]
}

/// Defines the domain of `vm` as `change` makes it of what it is.
#[track_caller]
fn redefine(vm: &Defined, change: impl FnOnce(String) -> String) {
    let document = virsh(&["dumpxml", "--inactive", &vm.name]).unwrap();
    let changed = change(document.clone());
    assert_ne!(document, changed);
    let file = vm.bench.root().join("changed.xml");
    fs::write(&file, changed).unwrap();
    virsh(&["define", file.to_str().unwrap()]).unwrap();
}

#[test]
fn a_domain_without_an_instance_is_listed_and_removed() {
    let vm = Defined::new("orphan");
    let bench = &vm.bench;
    vm.defines(&["--append", "ironboot.end=hang", "--start"]);
    let directory = bench.instance(&vm.name);
    let forget = || fs::remove_dir_all(&directory).unwrap();

    forget();
    assert_eq!(
        rows(bench),
        row(&vm, "running", "qemu:///system", "no-record")
    );
    let listed = bench.does(&["list"]).stdout;
    assert!(listed.contains("it has no record"), "{listed}");
    let listed = bench.does(&["list", "--json"]).json();
    assert_eq!(listed["instances"][0]["image"], bench.image());
    assert_eq!(listed["instances"][0]["boot"], "direct");
    let refused = bench.tries(&["rm", "--json", &vm.name]).with_code(125);
    assert_eq!(refused.error().0, "conflict");
    vm.is_removed(&["--force"]);

    // One that does not run, and has a file of somebody else's for its variables.
    let others = bench.root().join("others.fd");
    vm.defines(&["--boot", "disk"]);
    fs::write(&others, "").unwrap();
    let own = format!("{}/vars.fd", directory.display());
    redefine(&vm, |document| {
        document.replace(&own, others.to_str().unwrap())
    });
    forget();
    vm.is_removed(&[]);
    assert!(others.exists());
}

#[test]
fn a_directory_without_a_record_is_listed_with_its_domain_and_both_are_removed() {
    let vm = Defined::new("recordless");
    let bench = &vm.bench;
    let record = bench.instance(&vm.name).join("record.json");
    for (damage, problem) in [
        (
            (|record| fs::remove_file(record)) as fn(&PathBuf) -> _,
            "no-record",
        ),
        (|record| fs::write(record, "{"), "damaged-record"),
    ] {
        vm.defines(&["--append", "ironboot.end=hang", "--start"]);
        damage(&record).unwrap();
        assert_eq!(rows(bench), row(&vm, "running", "-", problem));
        let refused = bench.tries(&["rm", "--json", &vm.name]).with_code(125);
        assert_eq!(refused.error().0, "conflict");
        assert_eq!(rows(bench), row(&vm, "running", "-", problem));
        vm.is_removed(&["--force"]);
    }
}

#[test]
fn a_qemu_in_a_directory_without_a_record_is_listed_and_ended_by_force_only() {
    let bench = Bench::new();
    let name = "recordless";
    let options = ["--name", name, "--append", "ironboot.end=hang", "--detach"];
    bench.start("run", &options).ends().with_code(0);
    fs::remove_file(bench.instance(name).join("record.json")).unwrap();
    let expected = vec![[name, "running", "-", "no-record"].map(str::to_owned)];
    assert_eq!(rows(&bench), expected);
    let refused = bench.tries(&["rm", "--json", name]).with_code(125);
    assert_eq!(refused.error().0, "conflict");
    assert_eq!(bench.processes().len(), 1);
    bench.does(&["rm", "--force", name]);
    bench.is_clean();
}

#[test]
fn an_instance_without_a_domain_is_listed_so() {
    let vm = Defined::new("domainless");
    vm.defines(&[]);
    assert_eq!(vm.bench.does(&["list"]).stderr, "");
    virsh(&["undefine", &vm.name]).unwrap();
    let expected = row(&vm, "unknown", "qemu:///system", "no-domain");
    assert_eq!(rows(&vm.bench), expected);
    vm.is_removed(&[]);
}

#[test]
fn a_domain_that_is_not_this_stores_is_neither_listed_nor_removed() {
    let vm = Defined::new("theirs");
    let other = Bench::beside(&vm.bench);
    vm.defines(&[]);
    let untouched = |bench: &Bench| {
        let before = virsh(&["dumpxml", &vm.name]).unwrap();
        assert_eq!(rows(bench), Vec::<[String; 4]>::new());
        let refused = bench.tries(&["rm", "--json", "--force", &vm.name]);
        assert_eq!(refused.with_code(125).error().0, "not-found");
        assert_eq!(virsh(&["dumpxml", &vm.name]).unwrap(), before);
    };
    // Of ironboot, of another store.
    untouched(&other);
    // Of this store, of somebody else.
    redefine(&vm, |document| {
        document.replace("https://ironcore.dev/ironboot", "https://other.example/")
    });
    fs::remove_dir_all(vm.bench.instance(&vm.name)).unwrap();
    fs::remove_file(vm.bench.store().join(format!("pins/{}.json", vm.name))).unwrap();
    untouched(&vm.bench);
}

#[test]
fn the_same_plan_writes_nothing_and_another_is_defined_again_once_it_is_stopped() {
    let vm = Defined::new("again");
    let options = ["--append", "ironboot.end=hang"];
    assert_eq!(vm.defines(&options)["changed"], true);
    let record = vm.bench.instance(&vm.name).join("record.json");
    let domain = format!("/etc/libvirt/qemu/{}.xml", vm.name);
    let written = || {
        [&record, Path::new(&domain)].map(|file| {
            let metadata = fs::metadata(file).unwrap();
            (metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
        })
    };
    let before = written();
    assert_eq!(vm.defines(&options)["changed"], false);
    assert_eq!(written(), before);
    let again = vm
        .bench
        .command_of("define", &[&["--name", &vm.name][..], &options].concat());
    let again = crate::session::Session::start(again).ends().with_code(0);
    let said = format!("{} is defined already; nothing is changed", vm.name);
    assert!(again.stderr.contains(&said), "{again}");

    let different = vm.define(&["--append", "ironboot.end=shell"]).ends();
    let different = different.with_code(125).json();
    assert_eq!(different["error"]["kind"], "conflict");
    let hint = different["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("--replace"), "{hint}");

    // Defined by somebody as another VM.
    let listed = vm.bench.does(&["list", "--json"]).json();
    let digest = listed["instances"][0]["plan_digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let document = virsh(&["dumpxml", "--inactive", &vm.name]).unwrap();
    assert!(document.contains(&digest), "{document}");
    let memory = |document: String| {
        let other = format!("sha256:{}", "0".repeat(64));
        document
            .replace(&digest, &other)
            .replace(">262144<", ">131072<")
    };
    redefine(&vm, memory);
    assert_eq!(vm.defines(&options)["changed"], true);
    assert_eq!(
        virsh(&["dumpxml", "--inactive", &vm.name]).unwrap(),
        document
    );
    redefine(&vm, memory);
    virsh(&["start", &vm.name]).unwrap();
    let refused = vm.define(&options).ends().with_code(125).json();
    assert_eq!(refused["error"]["kind"], "conflict");
    let hint = format!("stop it first: `ironboot stop {}`", vm.name);
    assert_eq!(refused["error"]["hint"], hint);
    vm.does("stop", &["--force"]);
    // So does a start.
    vm.does("start", &[]);
    assert_eq!(
        virsh(&["dumpxml", "--inactive", &vm.name]).unwrap(),
        document
    );
    vm.is_removed(&["--force"]);
}

#[test]
fn a_start_that_was_killed_at_any_moment_is_completed_by_the_next() {
    let vm = Defined::new("restarted");
    vm.defines(&["--append", "ironboot.end=hang"]);
    let stopped = || {
        vm.does("stop", &["--force"]);
    };
    vm.at_any_moment("start", &[], &stopped, &|moment| {
        vm.does("start", &[]);
        assert_eq!(vm.bench.state(&vm.name).unwrap(), "running", "{moment}");
    });
    vm.is_removed(&["--force"]);
}

#[test]
fn an_rm_that_was_killed_at_any_moment_is_completed_by_the_next() {
    let vm = Defined::new("rekilled");
    let defined = || {
        vm.defines(&["--append", "ironboot.end=hang", "--start"]);
    };
    defined();
    vm.at_any_moment("rm", &["--force"], &defined, &|moment| {
        // It may have come to its end.
        let again = vm.bench.tries(&["rm", "--json", "--force", &vm.name]);
        if again.code() != 0 {
            assert_eq!(again.error().0, "not-found", "{moment}");
        }
        vm.is_gone();
    });
    vm.is_removed(&["--force"]);
}
