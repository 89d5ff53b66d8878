//! What is of the host itself and of no one machine: CPU, KVM, programs, the store's disk.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::domain::Machine;
use crate::files::{self, Way};
use crate::hypervisor::qemu::virtiofs;
use crate::ops::Context;
use crate::ops::accelerator::{self, Verdict};

/// Programs that some verbs call besides QEMU, and the directories where they are if not in PATH.
const PROGRAMS: [(&str, &[&str]); 3] = [
    ("ssh", &[]),
    ("ssh-keygen", &[]),
    (virtiofs::PROGRAM, &virtiofs::PLACES),
];

/// What this host is.
#[derive(Debug)]
pub struct HereFacts {
    /// The flag by which the CPU says that it runs guests, or the vendor of an x86 CPU that has none;
    /// nothing of other CPUs, which do not say.
    pub cpu: Option<Result<&'static str, String>>,
    /// Whether `/dev/kvm` opens.
    pub kvm: Result<(), io::Error>,
    /// The group that `/dev/kvm` belongs to.
    pub kvm_group: Option<String>,
    /// What a boot under KVM has told, of this state of the host.
    pub verdict: Option<Verdict>,
    /// Programs, and where they are.
    pub programs: Vec<(&'static str, Option<PathBuf>)>,
}

/// Where the store is, and on what.
#[derive(Debug)]
pub struct StoreFacts {
    /// The directory that is the store or, where there is none yet, in which it would be made.
    pub nearest: PathBuf,
    /// Who owns that.
    pub owner: Option<u32>,
    /// Whether we may write there.
    pub is_writable: bool,
    /// Whether somebody could put another in its place.
    pub way: io::Result<Way>,
    /// Bytes and files that we may still make there; no number of files where it has no limit.
    pub free: io::Result<(u64, Option<u64>)>,
    /// What the file system is called.
    pub file_system: Option<String>,
}

/// Looks at the host. `search` is where programs are looked for.
pub async fn here(context: &Context<'_>, search: &[PathBuf]) -> HereFacts {
    let native = Machine::try_from(&context.host.architecture).ok();
    let verdict = match native {
        Some(machine) => accelerator::verdict(context, machine).await,
        None => None,
    };
    HereFacts {
        cpu: (native == Some(Machine::Amd64)).then(cpu),
        kvm: opens("/dev/kvm"),
        kvm_group: group_of(Path::new("/dev/kvm")),
        verdict,
        programs: PROGRAMS
            .iter()
            .map(|(name, elsewhere)| (*name, find(name, search, elsewhere)))
            .collect(),
    }
}

/// Whether we may use a device.
pub(super) fn opens(path: &str) -> Result<(), io::Error> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.map(drop)
}

/// Where a program is, if it is in one of `search` or `elsewhere`.
pub fn find(name: &str, search: &[PathBuf], elsewhere: &[&str]) -> Option<PathBuf> {
    let elsewhere = elsewhere.iter().map(PathBuf::from);
    let mut places = search.iter().cloned().chain(elsewhere);
    places.find_map(|place| {
        let path = place.join(name);
        let is_program = fs::metadata(&path)
            .is_ok_and(|metadata| metadata.is_file() && metadata.mode() & 0o111 != 0);
        is_program.then_some(path)
    })
}

fn cpu() -> Result<&'static str, String> {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    flag(&text).ok_or_else(|| vendor(&text).to_owned())
}

/// The flag by which an x86 CPU says that it runs guests.
fn flag(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    let mut flags = flags.split_ascii_whitespace();
    flags.find_map(|flag| ["vmx", "svm"].into_iter().find(|known| *known == flag))
}

fn vendor(cpuinfo: &str) -> &str {
    let vendor = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("vendor_id"));
    vendor.map_or("unknown", |vendor| vendor.trim_matches([' ', '\t', ':']))
}

fn group_of(path: &Path) -> Option<String> {
    let gid = fs::metadata(path).ok()?.gid().to_string();
    let groups = fs::read_to_string("/etc/group").ok()?;
    let group = groups
        .lines()
        .find(|line| line.split(':').nth(2) == Some(&gid));
    group?.split(':').next().map(str::to_owned)
}

/// Looks at where the store is.
pub fn store(context: &Context<'_>) -> StoreFacts {
    let root = context.store.root();
    let mut above = root.ancestors();
    let nearest = above.find(|directory| directory.exists());
    let nearest = nearest.unwrap_or(Path::new("/"));
    StoreFacts {
        nearest: nearest.to_owned(),
        owner: fs::metadata(nearest).ok().map(|metadata| metadata.uid()),
        is_writable: rustix::fs::access(nearest, rustix::fs::Access::WRITE_OK).is_ok(),
        way: files::way_to(root),
        free: free(nearest),
        file_system: file_system(nearest),
    }
}

fn free(directory: &Path) -> io::Result<(u64, Option<u64>)> {
    let status = rustix::fs::statvfs(directory)?;
    let bytes = status.f_bavail.saturating_mul(status.f_frsize);
    Ok((bytes, (status.f_files > 0).then_some(status.f_favail)))
}

fn file_system(directory: &Path) -> Option<String> {
    let directory = directory.canonicalize().ok()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    file_system_of(&mounts, &directory)
}

/// The last of the longest mount points on the way is the one that is seen (proc_pid_mountinfo(5)).
fn file_system_of(mounts: &str, directory: &Path) -> Option<String> {
    let mounts = mounts.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let place = before.split(' ').nth(4)?.replace("\\040", " ");
        let kind = after.split(' ').next()?;
        directory
            .starts_with(&place)
            .then(|| (place.len(), kind.to_owned()))
    });
    let seen = mounts.max_by_key(|(length, _)| *length);
    seen.map(|(_, kind)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_that_is_seen_is_the_last_of_the_longest() {
        let mounts = "\
1 0 8:1 / / rw - ext4 /dev/sda1 rw
2 1 0:5 / /var rw shared:1 - btrfs /dev/sdb rw
3 1 0:6 / /var rw - xfs /dev/sdc rw
4 1 0:7 / /var/lib/a\\040b rw - tmpfs tmpfs rw
";
        for (directory, expected) in [
            ("/home", "ext4"),
            ("/var/lib", "xfs"),
            ("/variety", "ext4"),
            ("/var/lib/a b/c", "tmpfs"),
        ] {
            let found = file_system_of(mounts, Path::new(directory));
            assert_eq!(found.as_deref(), Some(expected), "{directory}");
        }
        assert_eq!(file_system_of("", Path::new("/")), None);
    }

    #[test]
    fn a_cpu_says_that_it_runs_guests_by_a_flag() {
        assert_eq!(
            flag("vendor_id\t: X\nflags\t\t: fpu vmx sse\n"),
            Some("vmx")
        );
        assert_eq!(flag("flags\t\t: svm\n"), Some("svm"));
        assert_eq!(flag("flags\t\t: vmxx\nbugs: vmx\n"), None);
        assert_eq!(vendor("vendor_id\t: GenuineIntel\n"), "GenuineIntel");
    }
}
