//! `prepare`, `list`, `rm`: the files of a VM.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::image::{direct, disk, disk_only, kernel_of};
use crate::sandbox::{Output, Sandbox, check, check_json};

/// Runs `verb` for `image`, keeping the machine that runs the tests out of the output.
pub(crate) fn run(sandbox: &Sandbox, verb: &str, image: &str) -> Output {
    sandbox.run(line(verb, image))
}

pub(crate) fn line(verb: &str, image: &str) -> String {
    format!("{verb} --arch amd64 --accel tcg {image}")
}

/// What `qemu-img info` says of a disk, and of what is behind it.
fn disk_information(path: &Path) -> Value {
    let output = Command::new("qemu-img")
        .args(["info", "--output=json"])
        .arg(path)
        .output()
        .unwrap_or_else(|error| {
            panic!("these tests need `qemu-img` (Debian: qemu-utils): {error}")
        });
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Every string in `value` that is an absolute path.
fn paths(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) if text.starts_with('/') => found.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| paths(value, found)),
        Value::Object(values) => values.values().for_each(|value| paths(value, found)),
        _ => {}
    }
}

#[test]
fn prepare_prints_the_paths_of_what_it_made() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    check(
        &run(&sandbox, "prepare --name vm", &image).text(),
        r#"
        instance  vm
        directory  $TMP/store/instances/vm
        kernel  $TMP/store/blobs/sha256/<kernel>
        initramfs  $TMP/store/blobs/sha256/<initramfs>
        command line  console=ttyS0 root=LABEL=ROOT ro
        disk  $TMP/store/instances/vm/disk-0.qcow2 (qcow2)
        disk  $TMP/store/blobs/sha256/<squashfs> (raw, read-only)
        ------- stderr -------
        fetching 73.00 KiB
        "#,
    );
    let image = sandbox.layout(&disk_only(&disk("amd64")));
    check(
        &run(&sandbox, "prepare --name vm2", &image).text(),
        r#"
        instance  vm2
        directory  $TMP/store/instances/vm2
        firmware  $TMP/firmware/code.fd
        variables  $TMP/store/instances/vm2/vars.fd
        disk  $TMP/store/instances/vm2/disk-0.qcow2 (qcow2)
        ------- stderr -------
        fetching 2 B
        "#,
    );
}

#[test]
fn prepare_under_json_prints_absolute_paths_that_are_there() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let prepare = line("prepare --name vm --json", &image);
    let output = sandbox.command(prepare).output().unwrap();
    let raw: Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut found = Vec::new();
    paths(&raw["staged"], &mut found);
    assert_eq!(found.len(), 6, "{found:?}");
    for path in found {
        assert!(Path::new(&path).exists(), "{path}");
    }
    let object = sandbox.masked(&output).json();
    check_json(
        &object["staged"],
        r#"
        {
          "command_line": "console=ttyS0 root=LABEL=ROOT ro",
          "directory": "$TMP/store/instances/vm",
          "disks": [
            {
              "backing_file": "$TMP/store/blobs/sha256/<disk>",
              "backing_format": "raw",
              "boots": false,
              "bus": "virtio",
              "format": "qcow2",
              "path": "$TMP/store/instances/vm/disk-0.qcow2",
              "read_only": false,
              "serial": null,
              "virtual_size_bytes": 65536
            },
            {
              "backing_file": null,
              "backing_format": null,
              "boots": false,
              "bus": "virtio",
              "format": "raw",
              "path": "$TMP/store/blobs/sha256/<squashfs>",
              "read_only": true,
              "serial": "machineboot",
              "virtual_size_bytes": 2048
            }
          ],
          "firmware": null,
          "fw_cfg": [],
          "initramfs": "$TMP/store/blobs/sha256/<initramfs>",
          "instance": "vm",
          "kernel": "$TMP/store/blobs/sha256/<kernel>",
          "smbios": [],
          "uki": null
        }
        "#,
    );
    assert_eq!(object["created"], true);
    // The rest is what `plan` says.
    let plan = sandbox
        .run(format!("plan --arch amd64 --json {image}"))
        .json();
    for field in ["image", "layers", "boot", "alternatives", "schema_version"] {
        assert_eq!(object[field], plan[field], "{field}");
    }
}

#[test]
fn an_accelerator_that_is_asked_for_later_is_kept_from_then_on() {
    // No host has KVM for the machines of others, so that this one gets none unasked.
    let foreign = if cfg!(target_arch = "x86_64") {
        "arm64"
    } else {
        "amd64"
    };
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&kernel_of(foreign));
    let path = sandbox.store().join("instances/vm/record.json");
    for (options, asked) in [("", false), (" --accel tcg", true), ("", true)] {
        let prepare = format!("prepare -q --name vm --arch {foreign}{options} {image}");
        assert_eq!(sandbox.run(prepare).status, 0);
        let record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(record["accelerator_asked"], asked, "{options}");
        let reason = record["accelerator_reason"].as_str().unwrap();
        assert_eq!(reason == "asked for", asked, "{reason}");
    }
}

#[test]
fn prepare_again_changes_nothing_and_another_plan_is_a_conflict() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let prepare = |options: &str| run(&sandbox, &format!("prepare -q --name vm{options}"), &image);
    let first = prepare("");
    let tree = sandbox.tree();
    let again = prepare(" --json").json();
    assert_eq!(again["created"], false);
    assert_eq!(again["download"]["fetched_bytes"], 0);
    assert_eq!(prepare("").text(), first.text());
    check(
        &prepare(" --memory 4G").text(),
        r#"
        ------- stderr -------
        error: there is an instance vm already, and it is different: it has another amount of memory
        hint: choose another name, or remove it: `ironboot rm vm`
        [exit status: 125]
        "#,
    );
    check(
        &prepare(" --append quiet").text(),
        r#"
        ------- stderr -------
        error: there is an instance vm already, and it is different: it boots otherwise
        hint: choose another name, or remove it: `ironboot rm vm`
        [exit status: 125]
        "#,
    );
    check(
        &prepare(" --disk-size 1G").text(),
        r#"
        ------- stderr -------
        error: there is an instance vm already, and it is different: it has other disks
        hint: choose another name, or remove it: `ironboot rm vm`
        [exit status: 125]
        "#,
    );
    assert_eq!(sandbox.tree(), tree);
    let other = sandbox.layout(&disk_only(&disk("other")));
    check(
        &run(&sandbox, "prepare -q --name vm --json", &other).text(),
        r#"
        {"error":{"causes":[],"hint":"choose another name, or remove it: `ironboot rm vm`","kind":"conflict","message":"there is an instance vm already, and it is different: it was made from another image","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
    // The other image was pulled, but the instance is as it was.
    let now = sandbox.tree();
    for (path, content) in tree {
        if path.starts_with("instances") || path.starts_with("pins") {
            assert_eq!(now.get(&path), Some(&content), "{path}");
        }
    }
}

#[test]
fn the_overlay_is_as_large_as_asked_and_names_its_base_by_format() {
    let sandbox = Sandbox::new();
    let image = direct();
    let reference = sandbox.layout(&image);
    for (name, option, expected) in [("vm", "", 65536), ("vm2", " --disk-size 1G", 1 << 30)] {
        let prepared = run(
            &sandbox,
            &format!("prepare -q --name {name}{option}"),
            &reference,
        );
        assert_eq!(prepared.status, 0, "{}", prepared.text());
        let directory = sandbox.store().join("instances").join(name);
        let information = disk_information(&directory.join("disk-0.qcow2"));
        let base = sandbox
            .store()
            .join("blobs")
            .join(image.digest("disk").replace(':', "/"));
        assert_eq!(information["virtual-size"], expected);
        assert_eq!(information["format"], "qcow2");
        assert_eq!(information["backing-filename-format"], "raw");
        assert_eq!(information["full-backing-filename"], base.to_str().unwrap());
    }
    let small = run(&sandbox, "prepare --name vm3 --disk-size 512", &reference);
    check(
        &small.text(),
        r#"
        ------- stderr -------
        error: --disk-size is 512 B, smaller than the image's disk of 64.00 KiB
        [exit status: 2]
        "#,
    );
}

#[test]
fn what_the_guest_is_given_is_in_private_files_and_not_in_the_output() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    fs::write(sandbox.path("home/config.ign"), r#"{"ignition":{}}"#).unwrap();
    let options = "--ignition config.ign --set-credential password:hunter2";
    let prepared = run(
        &sandbox,
        &format!("prepare --name vm --json {options}"),
        &image,
    );
    assert!(!prepared.text().contains("hunter2"));
    check_json(
        &prepared.json()["staged"]["fw_cfg"],
        r#"
        [
          {
            "name": "opt/com.coreos/config",
            "path": "$TMP/store/instances/vm/fw_cfg-9a3863e04fb520e6"
          },
          {
            "name": "opt/io.systemd.credentials/password",
            "path": "$TMP/store/instances/vm/fw_cfg-f52fbd32b2b3b86f"
          }
        ]
        "#,
    );
    let modes: Vec<String> = sandbox
        .tree()
        .into_iter()
        .filter(|(path, _)| path.contains("/fw_cfg-"))
        .map(|(_, content)| content[..6].to_owned())
        .collect();
    assert_eq!(modes, ["100600", "100600"]);
}

#[test]
fn instances_are_listed_and_removed_with_their_files_and_pins() {
    let sandbox = Sandbox::new();
    check(
        &sandbox.run("list").text(),
        r#"
        NAME  STATE  HYPERVISOR  BOOT  IMAGE
        "#,
    );
    let image = sandbox.layout(&disk_only(&disk("amd64")));
    for name in ["b", "a"] {
        run(&sandbox, &format!("prepare -q --name {name}"), &image);
    }
    check(
        &sandbox.run("list").text(),
        r#"
        NAME  STATE  HYPERVISOR  BOOT  IMAGE
        a  prepared  -  disk  oci:$LAYOUT:1
        b  prepared  -  disk  oci:$LAYOUT:1
        "#,
    );
    let mut first = sandbox.run("list --json").json()["instances"][0].take();
    // It is of paths that are others at every test.
    let plan_digest = first
        .as_object_mut()
        .unwrap()
        .remove("plan_digest")
        .unwrap();
    assert!(plan_digest.as_str().unwrap().starts_with("sha256:"));
    check_json(
        &first,
        r#"
        {
          "accelerator": "tcg",
          "accelerator_reason": "asked for",
          "architecture": "amd64",
          "boot": "disk",
          "console_log": "$TMP/store/instances/a/console.log",
          "cpus": 2,
          "ephemeral": false,
          "error": null,
          "hypervisor": null,
          "image": "oci:$LAYOUT:1",
          "manifest_digest": "sha256:<manifest>",
          "memory_mib": 2048,
          "name": "a",
          "problem": null,
          "state": "prepared"
        }
        "#,
    );
    // Nobody can start what another program runs.
    check(
        &sandbox.run("start a").text(),
        r#"
        ------- stderr -------
        error: instance a was prepared for another program, which runs it
        [exit status: 125]
        "#,
    );
    check(
        &sandbox.run("console a").text(),
        r#"
        ------- stderr -------
        error: instance a was prepared for another program, which runs it
        [exit status: 125]
        "#,
    );
    check(
        &sandbox.run("rm a").text(),
        r#"
        a
        "#,
    );
    check(
        &sandbox.run("rm b --json").text(),
        r#"
        {"removed":"b","schema_version":1}
        "#,
    );
    assert_eq!(sandbox.names("instances"), Vec::<String>::new());
    assert_eq!(sandbox.names("pins"), Vec::<String>::new());
    check(
        &sandbox.run("rm a").text(),
        r#"
        ------- stderr -------
        error: there is no instance: a
        hint: `ironboot list` shows what there is
        [exit status: 125]
        "#,
    );
    check(
        &sandbox.run("logs a --json").text(),
        r#"
        {"error":{"causes":[],"hint":"`ironboot list` shows what there is","kind":"not-found","message":"there is no instance: a","retryable":false},"schema_version":1}
        [exit status: 125]
        "#,
    );
}

#[test]
fn a_name_that_is_nearly_an_instances_is_told_the_instance() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&disk_only(&disk("amd64")));
    for name in ["debian", "alpine"] {
        run(&sandbox, &format!("prepare -q --name {name}"), &image);
    }
    for verb in ["start", "stop", "ssh", "console", "logs", "rm"] {
        check(
            &sandbox.run(format!("{verb} debain")).text(),
            r#"
            ------- stderr -------
            error: there is no instance: debain
            hint: there is `debian`; `ironboot list` shows what there is
            [exit status: 125]
            "#,
        );
    }
    let far = sandbox.run("logs fedora --json").json();
    assert_eq!(far["error"]["hint"], "`ironboot list` shows what there is");
}

#[test]
fn what_is_left_of_instances_is_listed_beside_the_others_and_removed_by_name() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&disk_only(&disk("amd64")));
    for name in ["cut", "lost", "whole"] {
        run(&sandbox, &format!("prepare -q --name {name}"), &image);
    }
    let instances = sandbox.store().join("instances");
    let record = fs::read(instances.join("cut/record.json")).unwrap();
    let cut = record.iter().position(|byte| *byte == b',').unwrap();
    fs::write(instances.join("cut/record.json"), &record[..cut]).unwrap();
    fs::remove_file(instances.join("lost/record.json")).unwrap();
    fs::write(instances.join("stray"), "").unwrap();
    check(
        &sandbox.run("list").text(),
        r#"
        NAME  STATE  HYPERVISOR  BOOT  IMAGE  PROBLEM
        cut  stopped  -  -  -  record is damaged: $TMP/store/instances/cut/record.json
        lost  stopped  -  -  -  it has no record
        stray  stopped  -  -  -  it has no record
        whole  prepared  -  disk  oci:$LAYOUT:1  -
        "#,
    );
    let listed = sandbox.run("list --json").json();
    let problems: Vec<&Value> = listed["instances"]
        .as_array()
        .unwrap()
        .iter()
        .map(|instance| &instance["problem"])
        .collect();
    assert_eq!(
        problems,
        [
            &Value::from("damaged-record"),
            &Value::from("no-record"),
            &Value::from("no-record"),
            &Value::Null
        ]
    );
    let fields = listed["instances"].as_array().unwrap().iter();
    let mut fields = fields.map(|row| {
        let fields = row.as_object().unwrap().keys();
        fields.cloned().collect::<Vec<String>>()
    });
    let first = fields.next().unwrap();
    assert!(fields.all(|fields| fields == first));

    check(
        &sandbox.run("start cut").text(),
        r#"
        ------- stderr -------
        error: record is damaged: $TMP/store/instances/cut/record.json
          caused by: EOF while parsing an object at line 2 column 21
        hint: remove what is left of it: `ironboot rm cut`
        [exit status: 125]
        "#,
    );
    check(
        &run(&sandbox, "prepare -q --name lost", &image).text(),
        r#"
        ------- stderr -------
        error: instance lost has a directory already, without a record
        hint: choose another name, or remove it: `ironboot rm lost`
        [exit status: 125]
        "#,
    );
    for name in ["cut", "lost", "stray"] {
        assert_eq!(sandbox.run(format!("rm {name}")).status, 0, "{name}");
    }
    assert_eq!(sandbox.names("instances"), [".whole.lock", "whole"]);
    assert_eq!(sandbox.names("pins"), ["whole.json"]);
}

#[test]
fn a_name_that_no_instance_has_leaves_nothing_behind() {
    let sandbox = Sandbox::new();
    for line in ["start vm", "rm vm", "prepare --name vm oci:none"] {
        assert_eq!(sandbox.run(line).status, 125);
        assert_eq!(sandbox.names("instances"), Vec::<String>::new(), "{line}");
    }
}
