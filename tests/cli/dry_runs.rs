//! `run --dry-run` and `define --dry-run`: what would be done, and nothing is.

use std::process::Command;

use serde_json::Value;

use crate::image::{direct, disk, disk_only};
use crate::instances::{line, run};
use crate::sandbox::{Sandbox, check, has_libvirt};

fn owned((left, right): (&str, &str)) -> (String, String) {
    (left.to_owned(), right.to_owned())
}

/// The script of a dry run, a line for each option; it must be one that a shell reads.
fn script(sandbox: &Sandbox, image: &str) -> String {
    let verb = "run --dry-run --name vm --publish 2222:22 --memory 1G";
    let output = sandbox.command(line(verb, image)).output().unwrap();
    let mut shell = Command::new("sh");
    shell
        .arg("-nc")
        .arg(String::from_utf8(output.stdout.clone()).unwrap());
    assert!(shell.status().unwrap().success());
    assert!(!sandbox.store().exists());
    sandbox.masked(&output).text().replace(" -", "\n  -")
}

#[test]
fn a_dry_run_prints_a_script_that_a_shell_reads_and_touches_nothing() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    check(
        &script(&sandbox, &image),
        r#"
        mkdir
          -p
          -m 700 $TMP/store/instances/vm &&
        cd $TMP/store/instances/vm &&
        qemu-img create
          -q
          -f qcow2
          -F raw
          -b $TMP/store/blobs/sha256/<disk> $TMP/store/instances/vm/disk-0.qcow2 65536 &&
        qemu-system-x86_64
          -name guest=vm
          -uuid $UUID
          -no-user-config
          -nodefaults
          -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
          -display none
          -machine q35
          -accel tcg,thread=multi
          -cpu max
          -smp 2
          -m 1024M
          -pidfile qemu.pid
          -chardev socket,id=monitor,path=qmp.sock,server=on,wait=off
          -mon chardev=monitor,mode=control
          -chardev stdio,id=console,signal=off,logfile=$TMP/store/instances/vm/console.log
          -serial chardev:console
          -object '{"filename":"/dev/urandom","id":"rng","qom-type":"rng-random"}'
          -device '{"driver":"virtio-rng-pci","rng":"rng"}'
          -kernel $TMP/store/blobs/sha256/<kernel>
          -initrd $TMP/store/blobs/sha256/<initramfs>
          -append 'console=ttyS0 root=LABEL=ROOT ro'
          -blockdev '{"backing":{"driver":"raw","file":{"driver":"file","filename":"$TMP/store/blobs/sha256/<disk>","locking":"off"},"read-only":true},"discard":"unmap","driver":"qcow2","file":{"driver":"file","filename":"$TMP/store/instances/vm/disk-0.qcow2","locking":"auto"},"node-name":"disk-0","read-only":false}'
          -device '{"drive":"disk-0","driver":"virtio-blk-pci"}'
          -blockdev '{"discard":"unmap","driver":"raw","file":{"driver":"file","filename":"$TMP/store/blobs/sha256/<squashfs>","locking":"off"},"node-name":"disk-1","read-only":true}'
          -device '{"drive":"disk-1","driver":"virtio-blk-pci","serial":"machineboot"}'
          -netdev user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22
          -device '{"driver":"virtio-net-pci","mac":"$MAC","netdev":"net0","romfile":""}'
        "#,
    );
    let image = sandbox.layout(&disk_only(&disk("amd64")));
    check(
        &script(&sandbox, &image),
        r#"
        mkdir
          -p
          -m 700 $TMP/store/instances/vm &&
        cd $TMP/store/instances/vm &&
        qemu-img create
          -q
          -f qcow2
          -F raw
          -b $TMP/store/blobs/sha256/<disk> $TMP/store/instances/vm/disk-0.qcow2 65536 &&
        cp
          --no-preserve=mode $TMP/firmware/vars.fd $TMP/store/instances/vm/vars.fd &&
        qemu-system-x86_64
          -name guest=vm
          -uuid $UUID
          -no-user-config
          -nodefaults
          -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
          -display none
          -machine q35,pflash0=firmware-code,pflash1=firmware-vars
          -accel tcg,thread=multi
          -cpu max
          -smp 2
          -m 1024M
          -pidfile qemu.pid
          -chardev socket,id=monitor,path=qmp.sock,server=on,wait=off
          -mon chardev=monitor,mode=control
          -chardev stdio,id=console,signal=off,logfile=$TMP/store/instances/vm/console.log
          -serial chardev:console
          -object '{"filename":"/dev/urandom","id":"rng","qom-type":"rng-random"}'
          -device '{"driver":"virtio-rng-pci","rng":"rng"}'
          -blockdev '{"driver":"raw","file":{"driver":"file","filename":"$TMP/firmware/code.fd"},"node-name":"firmware-code","read-only":true}'
          -blockdev '{"driver":"raw","file":{"driver":"file","filename":"$TMP/store/instances/vm/vars.fd"},"node-name":"firmware-vars","read-only":false}'
          -boot menu=on,splash-time=0
          -blockdev '{"backing":{"driver":"raw","file":{"driver":"file","filename":"$TMP/store/blobs/sha256/<disk>","locking":"off"},"read-only":true},"discard":"unmap","driver":"qcow2","file":{"driver":"file","filename":"$TMP/store/instances/vm/disk-0.qcow2","locking":"auto"},"node-name":"disk-0","read-only":false}'
          -device '{"bootindex":1,"drive":"disk-0","driver":"virtio-blk-pci"}'
          -netdev user,id=net0,hostfwd=tcp:127.0.0.1:2222-:22
          -device '{"driver":"virtio-net-pci","mac":"$MAC","netdev":"net0","romfile":""}'
        "#,
    );
}

#[test]
fn a_dry_run_under_json_prints_the_words_of_the_command() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let object = run(&sandbox, "run --dry-run --name vm --json", &image).json();
    let words: Vec<&str> = object["argv"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    check(
        &format!("{}\n", words.join(" ").replace(" -", "\n-")),
        r#"
        qemu-system-x86_64
        -name guest=vm
        -uuid $UUID
        -no-user-config
        -nodefaults
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
        -display none
        -machine q35
        -accel tcg,thread=multi
        -cpu max
        -smp 2
        -m 2048M
        -pidfile qemu.pid
        -chardev socket,id=monitor,path=qmp.sock,server=on,wait=off
        -mon chardev=monitor,mode=control
        -chardev stdio,id=console,signal=off,logfile=$TMP/store/instances/vm/console.log
        -serial chardev:console
        -object {"filename":"/dev/urandom","id":"rng","qom-type":"rng-random"}
        -device {"driver":"virtio-rng-pci","rng":"rng"}
        -kernel $TMP/store/blobs/sha256/<kernel>
        -initrd $TMP/store/blobs/sha256/<initramfs>
        -append console=ttyS0 root=LABEL=ROOT ro
        -blockdev {"backing":{"driver":"raw","file":{"driver":"file","filename":"$TMP/store/blobs/sha256/<disk>","locking":"off"},"read-only":true},"discard":"unmap","driver":"qcow2","file":{"driver":"file","filename":"$TMP/store/instances/vm/disk-0.qcow2","locking":"auto"},"node-name":"disk-0","read-only":false}
        -device {"drive":"disk-0","driver":"virtio-blk-pci"}
        -blockdev {"discard":"unmap","driver":"raw","file":{"driver":"file","filename":"$TMP/store/blobs/sha256/<squashfs>","locking":"off"},"node-name":"disk-1","read-only":true}
        -device {"drive":"disk-1","driver":"virtio-blk-pci","serial":"machineboot"}
        -netdev user,id=net0,hostfwd=tcp:127.0.0.1:0-:22
        -device {"driver":"virtio-net-pci","mac":"$MAC","netdev":"net0","romfile":""}
        "#,
    );
    assert_eq!(object["missing_bytes"], 74752);
    assert_eq!(object["staged"]["instance"], "vm");
}

#[test]
fn what_a_run_would_do_is_printed_in_the_form_that_is_asked_for() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let printed = |line: &str| {
        let line = line.replace("IMAGE", &image);
        let output = sandbox.command(line).output().unwrap();
        sandbox.masked(&output)
    };
    let argv = printed("run --print argv --name vm IMAGE");
    assert_eq!(argv.status, 0, "{}", argv.text());
    assert_eq!(argv.stdout, printed("run --dry-run --name vm IMAGE").stdout);
    // Arguments of the user's own come last, whatever they are.
    let own = printed("run --print argv --name vm IMAGE -- -device usb-ehci,id=a -S");
    let expected = argv.stdout.trim_end().to_owned() + " -device usb-ehci,id=a -S\n";
    assert_eq!(own.stdout, expected);

    let json = printed("run --print json --name vm IMAGE -- -S");
    assert_eq!(
        json.stdout,
        printed("run --dry-run --json --name vm IMAGE -- -S").stdout
    );
    let vm = &json.json()["vm"];
    assert_eq!(vm["name"], "vm");
    assert_eq!(vm["qemu_arguments"], serde_json::json!(["-S"]));

    let xml = printed("run --print xml --name vm IMAGE");
    assert_eq!(
        xml.text(),
        printed("define --dry-run --name vm IMAGE").text()
    );
    if has_libvirt() {
        check(
            &printed("run --quiet --print xml --name vm IMAGE -- -S").text(),
            r#"
            ------- stderr -------
            error: libvirt can not give vm arguments of QEMU's own
            hint: QEMU may have it: `ironboot run`
            [exit status: 125]
            "#,
        );
    }
    assert!(!sandbox.store().exists());
}

#[test]
fn a_console_is_added_where_the_command_line_has_none() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let output = run(
        &sandbox,
        "run --dry-run --name vm --json --cmdline ro",
        &image,
    );
    check(
        &output.stderr,
        r#"
        the image's command line names no console; added console=ttyS0
        "#,
    );
    let staged = &output.json()["staged"];
    assert_eq!(staged["command_line"], "ro console=ttyS0");
}

#[test]
fn a_dry_define_prints_the_xml_and_touches_nothing() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let define = "define --dry-run --name vm --connect qemu:///system";
    let output = run(&sandbox, define, &image);
    if output.status != 0 {
        assert!(!has_libvirt(), "{}", output.text());
        let error = run(&sandbox, &format!("{define} --json"), &image).json()["error"].take();
        assert_eq!(error["kind"], "unavailable");
        // libvirt's own words follow, which name its socket.
        let message = error["message"].as_str().unwrap();
        let expected = "can not connect to libvirt at qemu:///system: ";
        assert!(message.starts_with(expected), "{message}");
    } else {
        // The user that QEMU runs as has another number on each machine.
        let (xml, rest) = output.text().split_once("<label>").map(owned).unwrap();
        let (_, rest) = rest.split_once("</label>").unwrap();
        // So has the plan, which is of this test's own paths.
        let (xml, plan) = xml.split_once("<ironboot:plan-digest>").unwrap();
        let (_, plan) = plan.split_once("</ironboot:plan-digest>").unwrap();
        let xml = format!("{xml}<ironboot:plan-digest>$PLAN</ironboot:plan-digest>{plan}");
        check(
            &format!("{xml}<label>$USER</label>{rest}"),
            r#"
            <domain type="qemu">
              <name>vm</name>
              <uuid>$UUID</uuid>
              <metadata>
                <ironboot:image xmlns:ironboot="https://ironcore.dev/ironboot/domain/1">
                  <ironboot:reference>oci:$LAYOUT:1</ironboot:reference>
                  <ironboot:index-digest>sha256:<top></ironboot:index-digest>
                  <ironboot:manifest-digest>sha256:<manifest></ironboot:manifest-digest>
                  <ironboot:plan-digest>$PLAN</ironboot:plan-digest>
                  <ironboot:boot-method>direct</ironboot:boot-method>
                </ironboot:image>
              </metadata>
              <memory unit="MiB">2048</memory>
              <vcpu>2</vcpu>
              <os>
                <type arch="x86_64" machine="q35">hvm</type>
                <kernel>$TMP/store/blobs/sha256/<kernel></kernel>
                <initrd>$TMP/store/blobs/sha256/<initramfs></initrd>
                <cmdline>console=ttyS0 root=LABEL=ROOT ro</cmdline>
              </os>
              <features>
                <acpi/>
                <apic/>
              </features>
              <cpu mode="maximum"/>
              <clock offset="utc"/>
              <on_poweroff>destroy</on_poweroff>
              <on_reboot>restart</on_reboot>
              <on_crash>destroy</on_crash>
              <devices>
                <disk type="file" device="disk">
                  <driver name="qemu" type="qcow2"/>
                  <source file="$TMP/store/instances/vm/disk-0.qcow2"/>
                  <backingStore type="file">
                    <format type="raw"/>
                    <source file="$TMP/store/blobs/sha256/<disk>"/>
                    <backingStore/>
                  </backingStore>
                  <target dev="vda" bus="virtio"/>
                </disk>
                <disk type="file" device="disk">
                  <driver name="qemu" type="raw"/>
                  <source file="$TMP/store/blobs/sha256/<squashfs>"/>
                  <backingStore/>
                  <target dev="vdb" bus="virtio"/>
                  <readonly/>
                  <serial>machineboot</serial>
                </disk>
                <interface type="user">
                  <mac address="$MAC"/>
                  <model type="virtio"/>
                  <rom enabled="no"/>
                </interface>
                <serial type="pty">
                  <log file="$TMP/store/instances/vm/console.log" append="on"/>
                  <target port="0"/>
                </serial>
                <console type="pty">
                  <target type="serial" port="0"/>
                </console>
                <rng model="virtio">
                  <backend model="random">/dev/urandom</backend>
                </rng>
                <memballoon model="none"/>
              </devices>
              <seclabel type="static" model="dac" relabel="no">
                <label>$USER</label>
              </seclabel>
            </domain>
            "#,
        );
    }
    assert!(!sandbox.store().exists());
}

#[test]
fn a_libvirt_of_another_hypervisor_or_host_is_refused_before_anything_is_fetched() {
    let sandbox = Sandbox::new();
    let image = sandbox.layout(&direct());
    let define = "define --name vm --connect test:///default";
    check(
        &run(&sandbox, define, &image).text(),
        r#"
        ------- stderr -------
        error: only qemu:///system and qemu:///session are supported, not: test:///default
        hint: pass --connect for one of them, or set LIBVIRT_DEFAULT_URI; for the VMs of another host, run ironboot there
        [exit status: 2]
        "#,
    );
    // No image is asked for: there is none.
    let image = format!("oci:{}", sandbox.path("none").display());
    for uri in [
        "qemu+ssh://host/system",
        "qemu+tcp://host/system",
        "qemu+ext:///system?command=/bin/sh",
        "xen:///",
        "test:///default",
        "qemu:///system?socket=/tmp/x",
        "qemu:///system#",
        "QEMU:///system",
        "",
    ] {
        let refused = |command: &mut Command| {
            command.arg(&image);
            let output = command.output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let error = serde_json::from_str::<Value>(&text).unwrap()["error"].take();
            assert_eq!(output.status.code(), Some(2), "{uri}: {error}");
            assert_eq!(error["kind"], "usage");
            let expected =
                format!("only qemu:///system and qemu:///session are supported, not: {uri}");
            assert_eq!(error["message"], expected);
        };
        for line in [
            "define --name vm --json",
            "define --name vm --json --dry-run",
        ] {
            let line = format!("{line} --connect {uri}");
            refused(&mut sandbox.command(&line));
            if !uri.is_empty() {
                let line = line.replace(&format!(" --connect {uri}"), "");
                refused(sandbox.command(&line).env("LIBVIRT_DEFAULT_URI", uri));
            }
        }
    }
    assert!(!sandbox.store().exists());
}
