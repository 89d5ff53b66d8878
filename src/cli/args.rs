//! What was typed, and nothing looked up. The comments are the help texts.

// In a help text, brackets mean what may be left out.
#![allow(rustdoc::broken_intra_doc_links)]

mod image;
mod itself;
mod test;
mod values;

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::boot::{CommandLine, FirmwareWish, MethodName, UkiStartName};
use crate::domain::{DomainName, Forward, Memory, OemString, parse_disk_size};
use crate::image::Variant;
use crate::oci::{Architecture, Reference};
use crate::ops::resolve::PullPolicy;

use values::{bind, cpus, credential, credential_file, hostname, network, reference, seconds};

pub(super) use image::ImageVerb;
pub(super) use itself::{ItselfVerb, ShellWord};
pub(super) use test::{Axis, PassArgs, TestArgs};
#[cfg(test)]
pub(super) use values::typed;
pub(super) use values::{BindWord, Credential, CredentialFile, NetworkWord, credential_name};

/// Turns an IronCore OCI image into a booted VM
#[derive(Debug, Parser)]
#[command(
    version,
    disable_help_flag = true,
    disable_help_subcommand = false,
    propagate_version = false,
    max_term_width = 80,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub(super) struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(super) struct Global {
    /// Directory of images and instances
    ///
    /// Where none is named it is /var/lib/ironboot for root, else $XDG_DATA_HOME/ironboot, which is
    /// ~/.local/share/ironboot if that is not set.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "IRONBOOT_STORE",
        hide_env_values = true
    )]
    pub store: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long, global = true)]
    pub json: bool,
    /// Print no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Print what is done in more detail
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Form of the progress on standard error
    #[arg(
        long,
        global = true,
        value_enum,
        hide_short_help = true,
        value_name = "FORM",
        default_value_t = ProgressWord::Auto
    )]
    pub progress: ProgressWord,
    /// File with credentials for registries, as podman and docker write it
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "REGISTRY_AUTH_FILE",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub authfile: Option<PathBuf>,
    /// Directory that tells of each registry's mirrors and certificates
    ///
    /// It has a directory for each registry with a hosts.toml, as containerd's has. Where none is
    /// named it is the first of $XDG_CONFIG_HOME/ironboot/certs.d, /etc/ironboot/certs.d and
    /// /etc/containerd/certs.d that has one for the registry.
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "IRONBOOT_HOSTS_DIR",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub hosts_dir: Option<PathBuf>,
    /// Directory with certificates for the registry, as podman takes it
    ///
    /// *.crt are of who may vouch for the registry, *.cert and *.key of who we are.
    #[arg(long, global = true, value_name = "DIR", hide_short_help = true)]
    pub cert_dir: Option<PathBuf>,
    /// Which images are let in: a policy of signatures
    ///
    /// Its form is that of containers-policy.json(5). Where none is named it is the first of
    /// /etc/ironboot/policy.json and /etc/containers/policy.json that is there.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "IRONBOOT_POLICY",
        hide_env_values = true,
        hide_short_help = true
    )]
    pub policy: Option<PathBuf>,
    /// Check certificates and refuse plain HTTP; loopback may always be plain
    #[arg(
        long,
        global = true,
        hide_short_help = true,
        value_name = "BOOL",
        default_value_t = true,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        action = clap::ArgAction::Set
    )]
    pub tls_verify: bool,
    /// Print help: -h in short, --help with examples
    #[arg(short, long, global = true, action = clap::ArgAction::Help)]
    pub help: Option<bool>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show what would boot and why; reads manifests only
    ///
    /// Tells which image of an index is chosen, how it would boot, what would be fetched for that, and
    /// for each other boot method why it was not taken.
    Plan {
        #[command(flatten)]
        image: ImageArgs,
    },
    /// Pull what an image needs to boot into the store
    ///
    /// Prints the digest of each image's manifest. Everything is verified by its digest as it is
    /// written; what a killed pull has left is taken up again. What is here is not fetched again.
    Pull {
        /// Images, as HOST[:PORT]/REPOSITORY[:TAG][@DIGEST], oci:DIR[:NAME] or
        /// oci-archive:FILE[:NAME]
        #[arg(required = true, value_name = "IMAGE", value_parser = reference)]
        images: Vec<Reference>,
        #[command(flatten)]
        choice: ChoiceArgs,
        /// Pull everything: all architectures and variants, with all their layers
        #[arg(long)]
        all: bool,
    },
    /// Make the files of a VM for another program, and print their paths
    ///
    /// The image is pulled first. Whoever calls this runs the VM; its disk is an overlay of its own.
    Prepare {
        #[command(flatten)]
        image: ImageArgs,
        #[command(flatten)]
        machine: MachineArgs,
        /// Name of the VM; the same again changes nothing
        #[arg(short, long)]
        name: DomainName,
    },
    /// Define a persistent libvirt domain
    ///
    /// The image is pulled first; the domain's disk is an overlay of its own. The same again changes
    /// nothing, and something else under the same name is refused without --replace.
    Define {
        #[command(flatten)]
        image: ImageArgs,
        #[command(flatten)]
        machine: MachineArgs,
        /// Name of the domain; the same again changes nothing
        #[arg(short, long)]
        name: DomainName,
        #[command(flatten)]
        connect: ConnectArgs,
        /// Start it
        #[arg(long)]
        start: bool,
        /// Replace a domain of the same name that is different and does not run; its disk is lost
        #[arg(long)]
        replace: bool,
        /// Print the domain's XML and touch nothing
        #[arg(long)]
        dry_run: bool,
    },
    /// Boot an image now, with its console in this terminal
    ///
    /// The image is pulled first. Ctrl-] leaves the console, and the VM goes on until `rm`; otherwise
    /// it ends with this command, and its disk with it, unless --persistent keeps it under a name.
    Run {
        #[command(flatten)]
        image: ImageArgs,
        #[command(flatten)]
        machine: MachineArgs,
        /// Name of the VM [default: run- and some letters]
        #[arg(short, long)]
        name: Option<DomainName>,
        /// Run it in the background, and keep it until `rm`
        #[arg(short, long)]
        detach: bool,
        /// Keep the VM and its disk when it has stopped; needs --name
        #[arg(long, requires = "name")]
        persistent: bool,
        /// Forward a TCP port of this host's loopback to the guest
        #[arg(short, long, value_name = "HOST:GUEST")]
        publish: Vec<Forward>,
        /// Directory that the guest may mount by virtiofs, as TAG [default: its own name]
        #[arg(long, value_name = "HOST[:TAG]", value_parser = bind)]
        bind: Vec<BindWord>,
        /// The same, and the guest may only read
        #[arg(long, value_name = "HOST[:TAG]", value_parser = bind)]
        bind_ro: Vec<BindWord>,
        /// Do without a port and a key for `ironboot ssh`
        #[arg(long)]
        no_ssh: bool,
        /// Print the command that would run it, and touch nothing
        #[arg(long)]
        dry_run: bool,
        /// Print what would be run, in this form, and touch nothing
        #[arg(long, value_enum, value_name = "FORM")]
        print: Option<PrintWord>,
        /// Arguments for QEMU as they are, after ironboot's own; QEMU's sandbox stays, in which
        /// it starts no programs
        #[arg(last = true, value_name = "QEMU-ARGS")]
        qemu_arguments: Vec<String>,
    },
    /// Boot images, and tell whether they come up
    ///
    /// The exit status is 0 if all do and 1 if one does not. A kernel that panics, a shell of systemd's or
    /// of the initramfs, firmware or a loader that finds nothing to boot, a VM that ends or starts over
    /// fail at once, whatever is waited for.
    Test(Box<TestArgs>),
    /// List instances
    #[command(visible_alias = "ls")]
    List,
    /// Start an instance
    Start {
        /// Its name
        name: DomainName,
        /// Attach to its console; leave with Ctrl-], and it goes on
        #[arg(short, long)]
        attach: bool,
    },
    /// Stop an instance by its power button, or with --force by its plug
    Stop {
        /// Its name
        name: DomainName,
        /// Pull its plug instead
        #[arg(short, long)]
        force: bool,
        /// How long the guest may take, in seconds
        #[arg(short, long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
        timeout: Duration,
    },
    /// Remove an instance with its disk
    Rm {
        /// Its name
        name: DomainName,
        /// Stop it first if it runs
        #[arg(short, long)]
        force: bool,
    },
    /// Log in to a running instance over SSH, or execute a command there
    Ssh {
        /// Its name
        name: DomainName,
        /// User in the guest
        #[arg(short = 'l', long, value_name = "USER", default_value = "root")]
        user: String,
        /// How long the guest may take until its SSH server answers, in seconds
        #[arg(short, long, value_name = "SECONDS", default_value = "120", value_parser = seconds)]
        timeout: Duration,
        /// Command, whose words the guest's shell reads [default: a shell]
        #[arg(trailing_var_arg = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Attach to the console of a running instance; leave with Ctrl-]
    Console {
        /// Its name
        name: DomainName,
    },
    /// Print what an instance's console has shown since its last start
    Logs {
        /// Its name
        name: DomainName,
        /// Go on until it stops
        #[arg(short, long)]
        follow: bool,
    },
    /// Show what this host can run, what it lacks, and how to mend it
    ///
    /// Each line is ok, warn or fail, and where it is not ok a command that mends it comes after. The
    /// exit status is 0 if this host can boot something, and 69 if it can not.
    Doctor {
        /// Run firmware to see whether guests get going, and remember how KVM did
        #[arg(long)]
        boot: bool,
    },
    /// Work with images: list, inspect, rm, prune, verify, build, push
    #[command(subcommand)]
    Image(ImageVerb),
    /// What the program tells of itself.
    #[command(flatten)]
    Itself(ItselfVerb),
}

#[derive(Debug, Args)]
pub(super) struct ImageArgs {
    /// The image, as HOST[:PORT]/REPOSITORY[:TAG][@DIGEST], oci:DIR[:NAME] or
    /// oci-archive:FILE[:NAME]
    #[arg(value_name = "IMAGE", value_parser = reference)]
    pub reference: Reference,
    #[command(flatten)]
    pub choice: ChoiceArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Which image, and how it boots")]
pub(super) struct ChoiceArgs {
    /// Architecture [default: this host's]
    #[arg(long, value_name = "ARCH")]
    pub arch: Option<Architecture>,
    /// Variant: virtualization or metal
    #[arg(long, default_value = "virtualization")]
    pub variant: Variant,
    /// Boot method
    #[arg(long, value_enum, default_value_t = BootWord::Auto)]
    pub boot: BootWord,
    /// Kernel command line instead of the image's
    #[arg(long, value_name = "WORDS")]
    pub cmdline: Option<CommandLine>,
    /// Words to add to the kernel command line
    #[arg(long, value_name = "WORDS")]
    pub append: Vec<CommandLine>,
    /// Firmware: auto, uefi, uefi-secure, bios, or a path
    ///
    /// uefi-secure is Secure Boot with enrolled keys; a path is that of a firmware or of a descriptor
    /// file.
    #[arg(
        long,
        default_value = "auto",
        hide_default_value = true,
        value_name = "FIRMWARE"
    )]
    pub firmware: FirmwareWish,
    /// How a unified kernel image is started
    #[arg(long, hide_short_help = true, value_enum, value_name = "HOW")]
    pub uki: Option<UkiWord>,
    /// When the registry is asked for the image
    #[arg(long, value_enum, default_value_t = PullWord::Always, value_name = "WHEN")]
    pub pull: PullWord,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "The machine")]
pub(super) struct MachineArgs {
    /// Number of virtual CPUs
    #[arg(long, visible_alias = "vcpus", value_name = "N", default_value = "2", value_parser = cpus)]
    pub cpus: NonZeroU32,
    /// Memory, as in 512M or 4G; a bare number is MiB
    #[arg(short, long, value_name = "SIZE", default_value = "2G")]
    pub memory: Memory,
    /// Size of the disk, if larger than the image's, as in 20G
    #[arg(long, value_name = "SIZE", value_parser = parse_disk_size)]
    pub disk_size: Option<u64>,
    /// Ignition config for the guest
    #[arg(long, value_name = "FILE")]
    pub ignition: Option<PathBuf>,
    /// Credential for the guest's systemd
    #[arg(long, value_name = "ID:VALUE", value_parser = credential)]
    pub set_credential: Vec<Credential>,
    /// Credential for the guest's systemd, from a file
    #[arg(
        long,
        hide_short_help = true,
        value_name = "ID:FILE",
        value_parser = credential_file
    )]
    pub load_credential: Vec<CredentialFile>,
    /// String for the guest's SMBIOS tables (type 11)
    #[arg(long, hide_short_help = true, value_name = "STRING")]
    pub smbios: Vec<OemString>,
    /// The guest's host name, for systemd
    #[arg(long, value_name = "NAME", value_parser = hostname)]
    pub hostname: Option<String>,
    /// What runs the guest's instructions
    #[arg(long, value_enum, default_value_t = AccelWord::Auto)]
    pub accel: AccelWord,
    /// Network card: user, none, bridge=NAME or network=NAME
    ///
    /// user is QEMU's own network, behind this host's; a bridge is this host's, a network libvirt's.
    #[arg(long, default_value = "user", value_name = "NETWORK", value_parser = network)]
    pub network: NetworkWord,
}

#[derive(Debug, Args)]
pub(super) struct ConnectArgs {
    /// libvirt to connect to [default: qemu:///system for root, else qemu:///session]
    #[arg(
        short,
        long,
        value_name = "URI",
        env = "LIBVIRT_DEFAULT_URI",
        hide_env_values = true
    )]
    pub connect: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum BootWord {
    /// The first that the image and its layers allow
    Auto,
    /// Kernel, initramfs and command line, loaded by the hypervisor
    Direct,
    /// A unified kernel image, loaded by firmware
    Uki,
    /// The disk, booted by firmware
    Disk,
    /// The ISO, booted by firmware
    Iso,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PrintWord {
    /// The commands that a shell runs, as --dry-run prints them
    Argv,
    /// The domain that `define` would make of the same
    Xml,
    /// The VM and QEMU's arguments, as --dry-run --json prints them
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum UkiWord {
    /// Handed to UEFI firmware by the hypervisor
    Loader,
    /// Found by UEFI firmware on a small EFI system partition
    Esp,
    /// Taken apart, its kernel booted directly without firmware
    Extract,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum ProgressWord {
    /// Bars on a terminal, lines elsewhere
    Auto,
    /// Lines
    Plain,
    /// One JSON object a line, for programs
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PullWord {
    /// Each time: where a tag leads by now, and for what is not here of that
    Always,
    /// Only for what is not here; a tag leads to where it led before
    Missing,
    /// Not at all: everything must be here
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum AccelWord {
    /// KVM where it seems of use; QEMU's translator if no guest gets going under it
    Auto,
    /// The same, but KVM even where it seems of no use
    #[value(name = "kvm:tcg")]
    KvmTcg,
    /// The host's CPU, or nothing
    Kvm,
    /// QEMU's translator: runs everywhere, slowly
    Tcg,
}

impl UkiWord {
    pub(super) fn name(self) -> UkiStartName {
        match self {
            Self::Loader => UkiStartName::Loader,
            Self::Esp => UkiStartName::Esp,
            Self::Extract => UkiStartName::Extract,
        }
    }
}

impl PullWord {
    pub(super) fn policy(self) -> PullPolicy {
        match self {
            Self::Always => PullPolicy::Always,
            Self::Missing => PullPolicy::Missing,
            Self::Never => PullPolicy::Never,
        }
    }
}

impl BootWord {
    pub(super) fn method(self) -> Option<MethodName> {
        match self {
            Self::Auto => None,
            Self::Direct => Some(MethodName::Direct),
            Self::Uki => Some(MethodName::Uki),
            Self::Disk => Some(MethodName::Disk),
            Self::Iso => Some(MethodName::Iso),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }
}
