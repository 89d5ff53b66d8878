//! The guest, and a VM of it: its files, and what it prints. All guests of this process together
//! are held to as many as two CPUs can boot in time.

use std::fs;
use std::num::NonZeroU32;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use ironboot::domain::{
    Accelerator, Backing, Boot, Disk, DiskBus, DiskFormat, DomainSpec, Machine, Provenance, Uuid,
};
use ironboot::hypervisor::{ConsoleInput, Owner};
use ironboot::oci::Digest;
use rustix::fs::{getxattr, listxattr};
use tempfile::TempDir;

/// Long enough for an emulated guest on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How many guests may still be started.
static FREE: Mutex<u32> = Mutex::new(2);
static FREED: Condvar = Condvar::new();

/// The right to run one guest, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit(());

impl Permit {
    /// Waits until a guest may be started. Nobody takes two, so all get theirs.
    pub(crate) fn take() -> Self {
        // A test that panics does so without the lock, which is held for an instant only.
        let free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        let mut free = FREED.wait_while(free, |free| *free == 0).unwrap();
        *free -= 1;
        Self(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *FREE.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        FREED.notify_one();
    }
}

/// The directory with the files of the guest of `architecture`.
pub(crate) fn files(architecture: &str) -> PathBuf {
    let guests = std::env::var_os("IRONBOOT_TEST_GUEST")
        .expect("IRONBOOT_TEST_GUEST is set: see the first lines of tests/vm/main.rs");
    PathBuf::from(guests).join(architecture)
}

/// A VM's files below a directory that every user may pass through, and its spec.
pub(crate) struct Vm {
    pub(crate) spec: DomainSpec,
    root: TempDir,
    _permit: Permit,
}

/// What must stay as it is of a file that VMs share.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sealed {
    name: PathBuf,
    owner: (u32, u32),
    mode: u32,
    /// By name; libvirt keeps what it remembers of an owner in such (`trusted.libvirt.…`).
    attributes: Vec<(String, Vec<u8>)>,
    content: Digest,
}

impl Vm {
    /// Lays out a VM: shared files (mode 0444) in `store`, its own in `vm`. The guest ends as
    /// `end` says; see `fixtures/guest/init`.
    pub(crate) fn of_guest(name: &str, end: &str, owner: Option<Owner>) -> Self {
        let permit = Permit::take();
        let guest = files("amd64");
        let root = tempfile::tempdir().unwrap();
        let [store, directory] = ["store", "vm"].map(|name| root.path().join(name));
        for path in [&store, &directory] {
            fs::create_dir(path).unwrap();
        }
        for path in [root.path(), &store, &directory] {
            fs::set_permissions(path, fs::Permissions::from_mode(0o711)).unwrap();
        }
        for file in ["vmlinuz", "initramfs", "disk.img", "root.squashfs"] {
            fs::copy(guest.join(file), store.join(file)).unwrap();
            fs::set_permissions(store.join(file), fs::Permissions::from_mode(0o444)).unwrap();
        }
        let overlay = directory.join("disk.qcow2");
        create_overlay(&store.join("disk.img"), &overlay);
        if let Some(Owner { uid, gid }) = owner {
            chown(&overlay, Some(uid), Some(gid)).unwrap();
        }

        let command_line = fs::read_to_string(guest.join("cmdline")).unwrap();
        let command_line = format!(
            "{} ironboot.disks=2 ironboot.end={end}",
            command_line.trim()
        );
        let size = |file: &str| fs::metadata(store.join(file)).unwrap().len();
        let spec = DomainSpec {
            name: name.parse().unwrap(),
            uuid: Uuid::of(root.path().to_str().unwrap()),
            machine: Machine::Amd64,
            accelerator: Accelerator::Tcg,
            cpus: NonZeroU32::MIN,
            memory: "256M".parse().unwrap(),
            boot: Boot::Kernel {
                kernel: store.join("vmlinuz"),
                initramfs: Some(store.join("initramfs")),
                command_line: command_line.parse().unwrap(),
            },
            disks: vec![
                Disk {
                    file: overlay,
                    format: DiskFormat::Qcow2,
                    backing: Some(Backing {
                        file: store.join("disk.img"),
                        format: DiskFormat::Raw,
                    }),
                    virtual_size_bytes: size("disk.img"),
                    read_only: false,
                    serial: None,
                    bus: DiskBus::Virtio,
                    boots: false,
                },
                Disk {
                    file: store.join("root.squashfs"),
                    format: DiskFormat::Raw,
                    backing: None,
                    virtual_size_bytes: size("root.squashfs"),
                    read_only: true,
                    serial: Some("machineboot".parse().unwrap()),
                    bus: DiskBus::Virtio,
                    boots: false,
                },
            ],
            nic: None,
            fw_cfg: Vec::new(),
            oem_strings: Vec::new(),
            is_observed: false,
            directory,
            provenance: Provenance {
                reference: "registry.example/test/guest:1".into(),
                index_digest: None,
                manifest_digest: Digest::of(b"guest"),
                method: "direct".into(),
            },
            binds: Vec::new(),
            qemu_arguments: Vec::new(),
        };
        Self {
            spec,
            root,
            _permit: permit,
        }
    }

    /// What the VM has printed since its last start.
    pub(crate) fn printed(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.spec.console_log()).unwrap()).into_owned()
    }

    /// Waits until the VM has printed `text`.
    pub(crate) async fn prints(&self, text: &str) {
        let name = &self.spec.name;
        let seen = tokio::time::timeout(PATIENCE, async {
            while !self.printed().contains(text) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        if seen.await.is_err() {
            panic!("{name} did not print {text:?}, but:\n{}", self.printed());
        }
    }

    /// The state of all shared files.
    pub(crate) fn sealed(&self) -> Vec<Sealed> {
        sealed_in(&self.root.path().join("store"))
    }
}

/// The state of the files in `directory`, sorted by name.
pub(crate) fn sealed_in(directory: &Path) -> Vec<Sealed> {
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| sealed(&path))
        .collect();
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

/// Types a line.
pub(crate) async fn type_line(console: &ConsoleInput, line: &str) {
    console
        .send(format!("{line}\n").into_bytes())
        .await
        .unwrap();
}

fn sealed(file: &Path) -> Sealed {
    let metadata = fs::metadata(file).unwrap();
    Sealed {
        name: file.to_owned(),
        owner: (metadata.uid(), metadata.gid()),
        mode: metadata.mode(),
        attributes: attributes(file),
        content: Digest::of(&fs::read(file).unwrap()),
    }
}

/// The extended attributes of a file; to root, those are all.
fn attributes(file: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 64 << 10];
    let length = listxattr(file, &mut names).unwrap();
    let names = String::from_utf8(names[..length].to_vec()).unwrap();
    let names = names.split_terminator('\0').map(|name| {
        let mut value = vec![0; 64 << 10];
        let length = getxattr(file, name, &mut value).unwrap();
        value.truncate(length);
        (name.to_owned(), value)
    });
    let mut attributes: Vec<_> = names.collect();
    attributes.sort();
    attributes
}

fn create_overlay(base: &Path, overlay: &Path) {
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"])
        .args([base, overlay])
        .status()
        .expect("qemu-img is installed, of qemu-utils");
    assert!(status.success(), "{status}");
}
