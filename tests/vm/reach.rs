//! That what is foretold of QEMU's user is what the kernel then does.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use ironboot::ops::reach::{Lacks, User};
use rustix::fs::{XattrFlags, setxattr};

/// User and group of nobody on this machine.
const USER: u32 = 61234;
const GROUP: u32 = 61235;

/// An access list as Linux takes it: tag, bits, id.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut list = vec![2, 0, 0, 0];
    for (tag, bits, id) in entries {
        list.extend(tag.to_le_bytes());
        list.extend(bits.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    list
}

#[test]
fn the_kernel_opens_to_a_user_what_is_foretold_and_nothing_else() {
    assert!(rustix::process::geteuid().is_root(), "files are given away");
    let root = tempfile::tempdir().unwrap();
    let root = root.path().canonicalize().unwrap();
    fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
    let nobody = u32::MAX;
    let lists = [
        None,
        Some(list(&[
            (1, 7, nobody),
            (2, 5, USER),
            (4, 0, nobody),
            (16, 5, nobody),
            (32, 0, nobody),
        ])),
        Some(list(&[
            (1, 7, nobody),
            (2, 5, USER),
            (4, 5, nobody),
            (16, 0, nobody),
            (32, 5, nobody),
        ])),
        Some(list(&[
            (1, 7, nobody),
            (4, 0, nobody),
            (8, 5, GROUP),
            (16, 5, nobody),
            (32, 0, nobody),
        ])),
        Some(list(&[
            (1, 7, nobody),
            (4, 5, nobody),
            (8, 0, GROUP),
            (16, 7, nobody),
            (32, 7, nobody),
        ])),
    ];
    // Each case is a directory with a file in it, of which one is the case's.
    let mut cases = Vec::new();
    for (owner, group) in [(0, 0), (0, GROUP), (USER, 0)] {
        for (place, list) in lists.iter().enumerate() {
            for mode in [0o000, 0o700, 0o750, 0o705, 0o055, 0o770, 0o707] {
                for is_directory in [true, false] {
                    cases.push((owner, group, place, list, mode, is_directory));
                }
            }
        }
    }
    let user = User::of(USER, GROUP).unwrap();
    let mut foretold = BTreeSet::new();
    let mut script = String::new();
    for (number, (owner, group, place, list, mode, is_directory)) in cases.iter().enumerate() {
        let directory = root.join(format!("{number}-{owner}-{group}-{place}-{mode:o}"));
        let file = directory.join("file");
        fs::create_dir(&directory).unwrap();
        fs::write(&file, b"x").unwrap();
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        let subject = if *is_directory { &directory } else { &file };
        chown(subject, Some(*owner), Some(*group)).unwrap();
        fs::set_permissions(subject, fs::Permissions::from_mode(*mode)).unwrap();
        if let Some(list) = list {
            let name = "system.posix_acl_access";
            setxattr(subject, name, list, XattrFlags::empty()).unwrap();
        }
        for (lacks, open) in [(Lacks::Read, "<"), (Lacks::Write, "<>")] {
            let mut closed = Vec::new();
            user.passes(&directory, &mut closed).unwrap();
            user.opens(&file, lacks, &mut closed).unwrap();
            // Above the test's own directory all is open to everybody.
            let answer = format!("{open} {}", file.display());
            if closed.is_empty() {
                foretold.insert(answer.clone());
            }
            let file = file.display();
            script += &format!("(exec 3{open}'{file}') 2>/dev/null && echo '{answer}'\n");
        }
    }
    script += "true\n";
    let (user, group) = (USER.to_string(), GROUP.to_string());
    let output = Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &group, "--clear-groups"])
        .args(["sh", "-c", &script])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let output = String::from_utf8(output.stdout).unwrap();
    let opened: BTreeSet<String> = output.lines().map(str::to_owned).collect();
    assert!(!opened.is_empty() && opened.len() < cases.len() * 2);
    let wrong: Vec<&String> = opened.symmetric_difference(&foretold).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
