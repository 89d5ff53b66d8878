//! What a test of the program works with: the images, and a store of its own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::guest::{Permit, Sealed, files, sealed_in};
use crate::session::{Ended, Session};

/// The machine of all tests: the smallest in which the guest boots, and emulated.
pub(crate) const MACHINE: [&str; 6] = ["--accel", "tcg", "--cpus", "1", "--memory", "256M"];
/// The command line of the image in the form of today's `ironcore-image`.
pub(crate) const COMPAT_COMMAND_LINE: &str =
    "console=ttyS0 panic=-1 ironboot.disks=1 ironboot.form=compat";

/// An OCI layout directory with the images of all tests. Its last user removes it, so that nothing
/// is left behind by a process whose statics nobody drops; to build it again takes a second.
pub(crate) struct Images {
    directory: TempDir,
}

/// A store, and whatever runs on it.
pub(crate) struct Bench {
    root: TempDir,
    images: Arc<Images>,
    _permit: Arc<Permit>,
}

impl Images {
    /// Those that another test of this process uses, or new ones.
    fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Images>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let images = Arc::new(Self::build());
            *shared = Arc::downgrade(&images);
            images
        })
    }

    fn build() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let images = Self { directory };
        let roles = [
            ("kernel", "vmlinuz"),
            ("initramfs", "initramfs"),
            ("disk", "disk.img"),
            ("squashfs", "root.squashfs"),
            ("cmdline", "cmdline"),
        ];
        let manifest = |architecture: &str| {
            let layers = roles.map(|(role, file)| {
                let file = files(architecture).join(file);
                format!(",{role}={}", file.display())
            });
            format!("arch={architecture}{}", layers.concat())
        };
        let name = |name: &str| format!("oci:{}:{name}", images.directory.path().display());
        let build = |arguments: &[&str]| {
            let mut command = program();
            command.args(["image", "build"]).args(arguments);
            Session::start(command).ends().with_code(0);
        };
        let [amd64, arm64] = ["amd64", "arm64"].map(manifest);
        build(&["-o", &name("guest"), "-m", &amd64, "-m", &arm64]);

        let own = images.directory.path().join("compat-cmdline");
        fs::write(&own, COMPAT_COMMAND_LINE).unwrap();
        let compat = ["vmlinuz", "initramfs", "disk.img"].map(|file| files("amd64").join(file));
        let [kernel, initramfs, disk] = compat.map(|file| file.display().to_string());
        let own = own.display();
        let compat =
            format!("arch=amd64,kernel={kernel},initramfs={initramfs},disk={disk},cmdline={own}");
        build(&["--compat", "-o", &name("compat"), "-m", &compat]);
        images.build_methods(&build);
        images
    }

    /// Images of one boot method each, for both architectures.
    fn build_methods(&self, build: &dyn Fn(&[&str])) {
        let directory = self.directory.path();
        fs::write(directory.join("zeros"), vec![0; 1 << 20]).unwrap();
        for (image, layers) in METHODS {
            let mut arguments = vec![
                "-o".to_owned(),
                format!("oci:{}:{image}", directory.display()),
            ];
            for (architecture, console) in [("amd64", "ttyS0"), ("arm64", "ttyAMA0")] {
                // Only one of them has a BIOS.
                if *image == "bios" && architecture != "amd64" {
                    continue;
                }
                let mut manifest = format!("arch={architecture}");
                for (role, value) in *layers {
                    let file = match *role {
                        "cmdline" => {
                            let file = directory.join(format!("{image}-{architecture}"));
                            fs::write(&file, format!("console={console} panic=-1 {value}"))
                                .unwrap();
                            file
                        }
                        _ if *value == "zeros" => directory.join("zeros"),
                        _ if *value == "disk.qcow2" => {
                            let disk = files(architecture).join("disk.img");
                            let file = directory.join(format!("{architecture}.qcow2"));
                            let mut convert = Command::new("qemu-img");
                            convert.args(["convert", "-f", "raw", "-O", "qcow2"]);
                            let status = convert.args([&disk, &file]).status().unwrap();
                            assert!(status.success(), "{status}");
                            file
                        }
                        _ => files(architecture).join(value),
                    };
                    manifest.push_str(&format!(",{role}={}", file.display()));
                }
                arguments.extend(["-m".to_owned(), manifest]);
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            build(&arguments);
        }
    }
}

/// The images of [`Images::build_methods`]: roles with the guest's files, or a command line's rest.
const METHODS: &[(&str, &[(&str, &str)])] = &[
    ("uki", &[("uki", "uki.efi"), ("disk", "disk.img")]),
    ("silent", &[("uki", "uki-silent.efi")]),
    ("lineless", &[("uki", "uki-bare.efi")]),
    ("signed", &[("uki", "uki-signed.efi")]),
    (
        "zeros",
        &[
            ("kernel", "zeros"),
            ("initramfs", "initramfs"),
            ("cmdline", ""),
            ("uki", "uki.efi"),
        ],
    ),
    (
        "live",
        &[
            ("kernel", "vmlinuz"),
            ("initramfs", "initramfs"),
            ("squashfs", "root.squashfs"),
            (
                "cmdline",
                "gl.url=/dev/disk/by-id/virtio-machineboot gl.live=1",
            ),
        ],
    ),
    (
        "root",
        &[
            ("kernel", "vmlinuz"),
            ("initramfs", "initramfs"),
            ("disk", "root.ext4"),
            ("cmdline", "ironboot.root=/dev/vda"),
        ],
    ),
    (
        "bare",
        &[
            ("kernel", "vmlinuz"),
            ("disk", "root.ext4"),
            ("cmdline", "root=/dev/nvme0n1 rootfstype=ext4 ro"),
        ],
    ),
    (
        "more",
        &[
            ("kernel", "vmlinuz"),
            ("initramfs", "initramfs-more"),
            ("cmdline", "ironboot.end=ssh"),
        ],
    ),
    ("iso", &[("iso", "boot.iso")]),
    ("bios", &[("disk", "bios.img")]),
    ("qcow2", &[("disk", "disk.qcow2")]),
];

/// The program, without what the caller's environment may say to it.
fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ironboot"));
    for variable in [
        "IRONBOOT_STORE",
        "LIBVIRT_DEFAULT_URI",
        "REGISTRY_AUTH_FILE",
    ] {
        command.env_remove(variable);
    }
    command
}

impl Bench {
    /// An empty store, with the right to run one guest.
    pub(crate) fn new() -> Self {
        let permit = Permit::take();
        let root = tempfile::tempdir().unwrap();
        // libvirt's QEMU is another user, who must get through to the blobs.
        fs::set_permissions(root.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Self {
            root,
            images: Images::shared(),
            _permit: Arc::new(permit),
        }
    }

    /// Another store of the same test, for what runs no guest.
    pub(crate) fn beside(other: &Self) -> Self {
        Self {
            root: tempfile::tempdir().unwrap(),
            images: Arc::clone(&other.images),
            _permit: Arc::clone(&other._permit),
        }
    }

    /// The image for both architectures, in the specification's form.
    pub(crate) fn image(&self) -> String {
        self.image_named("guest")
    }

    /// Another image of the layout directory.
    pub(crate) fn image_named(&self, name: &str) -> String {
        format!("oci:{}:{name}", self.images.directory.path().display())
    }

    /// A directory for a test's own files.
    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.root.path().join("store")
    }

    pub(crate) fn instance(&self, name: &str) -> PathBuf {
        self.store().join("instances").join(name)
    }

    /// The program on this store.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = program();
        command.arg("--store").arg(self.store()).args(arguments);
        command
    }

    /// `verb` of the image and the tests' machine.
    pub(crate) fn command_of(&self, verb: &str, arguments: &[&str]) -> Command {
        let mut command = self.command(&[verb, &self.image()]);
        command.args(MACHINE).args(arguments);
        command
    }

    /// Starts [`Self::command_of`].
    pub(crate) fn start(&self, verb: &str, arguments: &[&str]) -> Session {
        Session::start(self.command_of(verb, arguments))
    }

    /// Executes [`Self::command`], which must succeed.
    #[track_caller]
    pub(crate) fn does(&self, arguments: &[&str]) -> Ended {
        self.tries(arguments).with_code(0)
    }

    /// Executes the program, which must succeed, without a word about the store.
    #[track_caller]
    pub(crate) fn does_alone(&self, arguments: &[&str]) -> Ended {
        let mut command = program();
        command.args(arguments);
        Session::start(command).ends().with_code(0)
    }

    /// Executes [`Self::command`].
    pub(crate) fn tries(&self, arguments: &[&str]) -> Ended {
        Session::start(self.command(arguments)).ends()
    }

    /// Name and state of every instance.
    #[track_caller]
    pub(crate) fn states(&self) -> Vec<(String, String)> {
        let listed = self.does(&["list", "--json"]).json();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        listed["instances"]
            .as_array()
            .unwrap()
            .iter()
            .map(|instance| (text(&instance["name"]), text(&instance["state"])))
            .collect()
    }

    /// The state of `name`, if there is such an instance.
    #[track_caller]
    pub(crate) fn state(&self, name: &str) -> Option<String> {
        let mut states = self.states().into_iter();
        states
            .find(|(listed, _)| listed == name)
            .map(|(_, state)| state)
    }

    /// Owner, mode, attributes and bytes of every blob, and of what was made of one.
    pub(crate) fn blobs(&self) -> Vec<Sealed> {
        let mut sealed = sealed_in(&self.store().join("blobs/sha256"));
        for made in fs::read_dir(self.store().join("derived"))
            .into_iter()
            .flatten()
        {
            sealed.extend(sealed_in(&made.unwrap().path()));
        }
        sealed
    }

    /// The processes that work below this store: its QEMUs.
    pub(crate) fn processes(&self) -> Vec<Pid> {
        let store = self.store();
        let is_ours = |process: &Path| {
            fs::read_link(process.join("cwd")).is_ok_and(|directory| directory.starts_with(&store))
        };
        fs::read_dir("/proc")
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|process| is_ours(process))
            .filter_map(|process| process.file_name()?.to_str()?.parse().ok())
            .filter_map(Pid::from_raw)
            .collect()
    }

    /// Fails unless nothing is left of any instance: no process, no directory, no pin.
    #[track_caller]
    pub(crate) fn is_clean(&self) {
        assert_eq!(self.states(), []);
        assert_eq!(self.processes(), []);
        for directory in ["instances", "pins"] {
            let directory = self.store().join(directory);
            let left: Vec<_> = fs::read_dir(&directory)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                // One that was told to end may leave the lock of its name for the next to clear.
                .filter(|path| path.extension() != Some("lock".as_ref()))
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // There are none unless the test has failed; they may end meanwhile.
        for process in self.processes() {
            kill_process(process, Signal::KILL).ok();
        }
    }
}
