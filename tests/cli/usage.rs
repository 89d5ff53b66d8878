//! What was typed wrong, and what the host lacks.

use std::fs;

use crate::image::{direct, disk, disk_of, disk_only};
use crate::instances::run;
use crate::refusal::as_json;
use crate::sandbox::{Sandbox, check, mask_firmware};

/// Runs `line` and `word` as they are and under `--json`; neither may make a store.
#[track_caller]
fn refused(line: &str, word: &str, expected: &str) {
    let sandbox = Sandbox::new();
    let output = sandbox.run_with(line, word);
    check(&output.text(), expected);
    assert!(!sandbox.store().exists());
    let json = sandbox.run_with(format!("--json {line}"), word);
    assert_eq!((json.status, json.stderr.as_str()), (2, ""));
    assert_eq!(json.json()["error"]["kind"], "usage");
    // The same words on one line, without clap's advice.
    let lines = output.stderr.lines().take_while(|line| !line.is_empty());
    let words: Vec<&str> = lines.flat_map(str::split_whitespace).collect();
    let message = json.json()["error"]["message"].take();
    assert_eq!(
        format!("error: {}", message.as_str().unwrap()),
        words.join(" ")
    );
}

#[test]
fn names_that_are_no_names_are_refused_before_anything_else() {
    let long = "n".repeat(64);
    for (name, expected) in [
        (
            "--name=../x",
            r#"
                ------- stderr -------
                error: invalid value '../x' for '--name <NAME>': name is not 1 to 63 letters, digits, `-`, `_` and `.` after a letter or digit: ../x

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "--name=-x",
            r#"
                    ------- stderr -------
                    error: invalid value '-x' for '--name <NAME>': name is not 1 to 63 letters, digits, `-`, `_` and `.` after a letter or digit: -x

                    For more information, try '--help'.
                    [exit status: 2]
                    "#,
        ),
        (
            "--name=a,b",
            r#"
                ------- stderr -------
                error: invalid value 'a,b' for '--name <NAME>': name is not 1 to 63 letters, digits, `-`, `_` and `.` after a letter or digit: a,b

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
    ] {
        refused("prepare oci:none", name, expected);
        refused("run --dry-run oci:none", name, expected);
        refused("define oci:none", name, expected);
    }
    refused(
        "prepare oci:none",
        &format!("--name={long}"),
        r#"
        ------- stderr -------
        error: invalid value 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn' for '--name <NAME>': name is not 1 to 63 letters, digits, `-`, `_` and `.` after a letter or digit: nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn

        For more information, try '--help'.
        [exit status: 2]
        "#,
    );
    refused(
        "rm",
        "../x",
        r#"
        ------- stderr -------
        error: invalid value '../x' for '<NAME>': name is not 1 to 63 letters, digits, `-`, `_` and `.` after a letter or digit: ../x

        For more information, try '--help'.
        [exit status: 2]
        "#,
    );
}

#[test]
fn references_that_are_none_are_refused() {
    for (reference, expected) in [
        (
            "ubuntu",
            r#"
                ------- stderr -------
                error: invalid value 'ubuntu' for '<IMAGE>': image reference names no registry: ubuntu

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "",
            r#"
                ------- stderr -------
                error: invalid value '' for '<IMAGE>': image reference has characters that no reference has: 

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "r.example/UPPER:1",
            r#"
                ------- stderr -------
                error: invalid value 'r.example/UPPER:1' for '<IMAGE>': image reference is not HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]: r.example/UPPER:1

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "r.example/os@sha256:../../x",
            r#"
                ------- stderr -------
                error: invalid value 'r.example/os@sha256:../../x' for '<IMAGE>': image reference has a bad digest: digest is not 64 lower-case hex digits: sha256:../../x

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "r.example/os:1\nx",
            r#"
                ------- stderr -------
                error: invalid value 'r.example/os:1
                x' for '<IMAGE>': image reference has characters that no reference has: r.example/os:1\u{a}x

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "docker-archive:x.tar",
            r#"
                ------- stderr -------
                error: invalid value 'docker-archive:x.tar' for '<IMAGE>': image reference has a transport other than docker://, oci and oci-archive: docker-archive:x.tar

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "https://r.example/os:1",
            r#"
                ------- stderr -------
                error: invalid value 'https://r.example/os:1' for '<IMAGE>': image reference has a transport other than docker://, oci and oci-archive: https://r.example/os:1

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "oci:",
            r#"
                ------- stderr -------
                error: invalid value 'oci:' for '<IMAGE>': layout reference names no path: 

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
    ] {
        refused("plan", reference, expected);
    }
}

#[test]
fn options_with_values_that_mean_nothing_are_refused() {
    for (option, expected) in [
        (
            "--variant=v8",
            r#"
                ------- stderr -------
                error: invalid value 'v8' for '--variant <VARIANT>': variant is neither virtualization nor metal: v8

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "--boot=pxe",
            r#"
                ------- stderr -------
                error: invalid value 'pxe' for '--boot <BOOT>'
                  [possible values: auto, direct, uki, disk, iso]

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "--memory=12",
            r#"
                ------- stderr -------
                error: invalid value '12' for '--memory <SIZE>': memory is not 64M to 16T, as in 512M or 4G: 12

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "--cpus=0",
            r#"
                ------- stderr -------
                error: invalid value '0' for '--cpus <N>': not a number from 1 to 255

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "--disk-size=big",
            r#"
                ------- stderr -------
                error: invalid value 'big' for '--disk-size <SIZE>': size is not a number of bytes, as in 512M or 10G: big

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "--cmdline=a\nb",
            r#"
                ------- stderr -------
                error: invalid value 'a
                b' for '--cmdline <WORDS>': command line has byte 0x0a at position 1

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "--set-credential=secret",
            r#"
                ------- stderr -------
                error: invalid value 'secret' for '--set-credential <ID:VALUE>': not ID:VALUE

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "--tls-verify=perhaps",
            r#"
                ------- stderr -------
                error: invalid value 'perhaps' for '--tls-verify[=<BOOL>]'
                  [possible values: true, false]

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
        (
            "--no-such-option",
            r#"
                ------- stderr -------
                error: unexpected argument '--no-such-option' found

                  tip: to pass '--no-such-option' as a value, use '-- --no-such-option'

                Usage: ironboot prepare --name <NAME> <IMAGE>

                For more information, try '--help'.
                [exit status: 2]
                "#,
        ),
    ] {
        refused("prepare oci:none --name vm", option, expected);
    }
}

#[test]
fn verbs_that_lack_something_are_refused() {
    refused(
        "run oci:none",
        "--persistent",
        r#"
        ------- stderr -------
        error: the following required arguments were not provided:
          --name <NAME>

        Usage: ironboot run --name <NAME> --persistent --store <DIR> --policy <FILE> <IMAGE> [-- <QEMU-ARGS>...]

        For more information, try '--help'.
        [exit status: 2]
        "#,
    );
    refused(
        "prepare",
        "oci:none",
        r#"
        ------- stderr -------
        error: the following required arguments were not provided:
          --name <NAME>

        Usage: ironboot prepare --name <NAME> --store <DIR> --policy <FILE> <IMAGE>

        For more information, try '--help'.
        [exit status: 2]
        "#,
    );
    refused(
        "image push r.example/os:1",
        "oci:out",
        r#"
        ------- stderr -------
        error: the destination is not in a registry
        [exit status: 2]
        "#,
    );
    for (words, expected) in [
        ("/none:x", "no such directory: /none"),
        ("/", "say what the guest is to call it: /:TAG"),
        ("/tmp --bind-ro /usr:tmp", "two directories are called tmp"),
    ] {
        let sandbox = Sandbox::new();
        let line = format!("run oci:none --dry-run --bind {words}");
        let error = sandbox.run(line).text().to_owned();
        assert!(error.contains(&format!("error: {expected}\n")), "{error}");
        assert!(error.contains("[exit status: 2]"), "{error}");
    }
    refused(
        "run oci:none --dry-run --network none --publish",
        "1:2",
        r#"
        ------- stderr -------
        error: --publish needs --network user
        [exit status: 2]
        "#,
    );
    let sandbox = Sandbox::new();
    check(
        &sandbox.run("frobnicate").text(),
        r#"
        ------- stderr -------
        error: unrecognized subcommand 'frobnicate'

        Usage: ironboot [OPTIONS] <COMMAND>

        For more information, try '--help'.
        [exit status: 2]
        "#,
    );
}

#[test]
fn an_architecture_without_a_machine_is_refused() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let prepared = sandbox.run(format!("prepare --name vm --arch s390x {image}"));
    check(
        &prepared.text(),
        r#"
        ------- stderr -------
        error: no machine is known for architecture: s390x
        [exit status: 2]
        "#,
    );
    let json = sandbox.run(format!("prepare --name vm --json --arch s390x {image}"));
    assert_eq!(json.json(), as_json("usage", &prepared.stderr));
}

#[test]
fn help_and_version_are_no_errors() {
    let sandbox = Sandbox::new();
    let version = format!("ironboot {}\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(sandbox.run("--version").text(), version);
    for line in ["--help", "run --help", "image build --help"] {
        let help = sandbox.run(line);
        assert_eq!((help.status, help.stderr.as_str()), (0, ""), "{line}");
        assert!(help.stdout.contains("Usage: ironboot"), "{line}");
    }
}

#[test]
fn without_qemu_a_run_is_what_the_host_can_not_do() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    fs::create_dir(sandbox.path("empty")).unwrap();
    let run = |json: &str| {
        let line = format!("run -q{json} --name vm --arch amd64 --accel tcg {image}");
        let mut command = sandbox.command(line);
        command.env("PATH", sandbox.path("empty"));
        sandbox.finish(command)
    };
    let output = run("");
    check(
        &output.text(),
        r#"
        ------- stderr -------
        error: program is not installed: qemu-system-x86_64
        hint: on Debian: `apt-get install qemu-system-x86`
        [exit status: 69]
        "#,
    );
    assert_eq!(run(" --json").json(), as_json("host", &output.stderr));
    // The image was pulled, but no instance is left of it.
    assert_eq!(sandbox.names("instances"), Vec::<String>::new());
    assert_eq!(sandbox.names("pins"), Vec::<String>::new());
}

#[test]
fn without_firmware_a_disk_is_not_booted_but_a_kernel_is() {
    let sandbox = Sandbox::new();
    let own = sandbox.path("config/qemu/firmware");
    fs::remove_dir_all(&own).unwrap();
    fs::create_dir_all(&own).unwrap();
    mask_firmware(&sandbox);
    let image = sandbox.layout(&disk_only(&disk("amd64")));
    let refused = run(&sandbox, "prepare -q --name vm", &image);
    check(
        &refused.text(),
        "
        ------- stderr -------
        error: disk sha256:<disk> has an EFI system partition, and no UEFI firmware for x86_64 is installed
        hint: install UEFI firmware: on Debian `apt-get install ovmf qemu-efi-aarch64`
        [exit status: 69]
        ",
    );
    // Arm has nothing else to boot a disk by, so not even the pull is begun.
    let arm = sandbox.layout(&disk_of("arm64"));
    let arm = sandbox.run(format!("prepare -q --arch arm64 --name vm {arm}"));
    check(
        &arm.text(),
        "
        ------- stderr -------
        error: image sha256:<manifest> can not be booted here: no UEFI firmware for aarch64 is installed
        hint: install UEFI firmware: on Debian `apt-get install ovmf qemu-efi-aarch64`
        [exit status: 69]
        ",
    );
    let asked = run(&sandbox, "prepare -q --firmware uefi --name vm", &image);
    assert_eq!(asked.status, 69, "{}", asked.text());
    let json = run(&sandbox, "prepare -q --json --name vm", &image);
    assert_eq!(json.json(), as_json("host", &refused.stderr));
    assert_eq!(sandbox.names("instances"), Vec::<String>::new());
    let image = sandbox.layout(&direct());
    assert_eq!(run(&sandbox, "prepare -q --name vm", &image).status, 0);
}

#[test]
fn kvm_of_another_architecture_is_what_the_host_can_not_do() {
    let sandbox = Sandbox::new();
    let foreign = match std::env::consts::ARCH {
        "aarch64" => "amd64",
        _ => "arm64",
    };
    let image = sandbox.layout(&crate::image::kernel_of(foreign));
    let line = format!("prepare -q --name vm --accel kvm --arch {foreign} {image}");
    let output = sandbox.run(line);
    assert_eq!(output.status, 69, "{}", output.text());
    assert_eq!(sandbox.names("instances"), Vec::<String>::new());
}

#[test]
fn a_store_that_can_not_be_made_is_told_with_its_path() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&disk_only(&disk("amd64")));
    fs::write(sandbox.path("file"), b"").unwrap();
    let store = sandbox.path("file/store");
    let pull = format!("pull -q --arch amd64 --store {} {image}", store.display());
    check(
        &sandbox.run(pull).text(),
        r#"
        ------- stderr -------
        error: can not create $TMP/file
          caused by: File exists (os error 17)
        [exit status: 125]
        "#,
    );
}
