//! Facts of this host, read once and passed on as values.

use std::fs::{self, OpenOptions};
use std::io;

use crate::domain::{Accelerator, Machine};
use crate::oci::Architecture;

/// What this host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Its CPU architecture.
    pub architecture: Architecture,
    /// Whether the kernel's KVM seems of use; the reason if it does not.
    pub kvm: Result<(), String>,
    /// What decides that: kernel, CPU, KVM's modules. Whoever remembers how KVM did remembers this.
    pub kvm_state: String,
}

/// An accelerator and why it was taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceleratorChoice {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// Why.
    pub reason: String,
}

impl Host {
    /// Reads the facts.
    #[must_use]
    pub fn probe() -> Self {
        let architecture = Architecture::from(std::env::consts::ARCH.to_owned());
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            kvm: probe_kvm(&architecture, &cpuinfo, || {
                OpenOptions::new()
                    .read(true)
                    .write(true)
                    .open("/dev/kvm")
                    .map(drop)
            }),
            kvm_state: kvm_state(&cpuinfo),
            architecture,
        }
    }

    /// Tells whether the host's CPU is of the machine's architecture.
    #[must_use]
    pub fn is_native(&self, machine: Machine) -> bool {
        Machine::try_from(&self.architecture) == Ok(machine)
    }

    /// Chooses the accelerator for `machine`: KVM where it is of use, if `asked` does not say
    /// otherwise. Errors with the reason if KVM is asked for and is of no use.
    pub fn accelerator(
        &self,
        machine: Machine,
        asked: Option<Accelerator>,
    ) -> Result<AcceleratorChoice, String> {
        let kvm = if self.is_native(machine) {
            self.kvm.clone()
        } else {
            let (guest, host) = (machine.isa(), &self.architecture);
            Err(format!("the guest is {guest}, the host is {host}"))
        };
        let (accelerator, reason) = match (asked, kvm) {
            (Some(Accelerator::Kvm), Err(reason)) => return Err(reason),
            (Some(accelerator), _) => (accelerator, "asked for".to_owned()),
            (None, Ok(())) => (Accelerator::Kvm, "/dev/kvm seems usable".to_owned()),
            (None, Err(reason)) => (Accelerator::Tcg, reason),
        };
        Ok(AcceleratorChoice {
            accelerator,
            reason,
        })
    }
}

/// Memory that could be given to new programs, in MiB, as the kernel estimates it (proc(5),
/// `MemAvailable`); none where it does not tell.
#[must_use]
pub fn available_mib() -> Option<u64> {
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let line = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib >> 10)
}

/// The kernel's release, the CPU's model, and the modules that KVM consists of.
fn kvm_state(cpuinfo: &str) -> String {
    let release = rustix::system::uname();
    let release = release.release().to_string_lossy().into_owned();
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown CPU", |(_, model)| model.trim());
    let mut modules: Vec<String> = fs::read_dir("/sys/module")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name == "kvm" || name.starts_with("kvm_"))
        .collect();
    modules.sort();
    format!("Linux {release}; {model}; {}", modules.join(" "))
}

/// Tells whether KVM seems of use. That the device opens is not enough: there are modules under
/// which it opens, creates a VM, and no guest ever gets past its boot loader; on x86 those show
/// in the CPU's flags.
fn probe_kvm(
    architecture: &Architecture,
    cpuinfo: &str,
    open: impl FnOnce() -> io::Result<()>,
) -> Result<(), String> {
    open().map_err(|error| format!("/dev/kvm can not be opened: {error}"))?;
    let has_flag = cpuinfo
        .lines()
        .filter(|line| line.starts_with("flags"))
        .any(|line| {
            line.split_ascii_whitespace()
                .any(|flag| flag == "vmx" || flag == "svm")
        });
    if *architecture == Architecture::Amd64 && !has_flag {
        return Err("/dev/kvm opens, but the CPU has neither vmx nor svm".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(kvm: Result<(), String>) -> Host {
        Host {
            architecture: Architecture::Amd64,
            kvm,
            kvm_state: String::new(),
        }
    }

    #[test]
    fn a_device_that_opens_is_not_enough_on_x86() {
        let check = |cpuinfo: &str| probe_kvm(&Architecture::Amd64, cpuinfo, || Ok(()));
        assert!(check("flags\t\t: fpu vmx sse\n").is_ok());
        assert!(check("flags\t\t: fpu svm sse\n").is_ok());
        assert!(check("flags\t\t: fpu sse\nbugs: vmx\n").is_err());
        let arm = probe_kvm(&Architecture::Arm64, "", || Ok(()));
        assert!(arm.is_ok());
        let missing = probe_kvm(&Architecture::Arm64, "", || {
            Err(io::Error::from(io::ErrorKind::NotFound))
        });
        assert!(missing.is_err());
    }

    #[test]
    fn kvm_is_taken_only_where_it_is_of_use() {
        let kvm = |host: Host, machine, asked| {
            host.accelerator(machine, asked)
                .map(|choice| choice.accelerator)
        };
        let broken = || Err("broken".to_owned());
        assert_eq!(
            kvm(host(Ok(())), Machine::Amd64, None),
            Ok(Accelerator::Kvm)
        );
        assert_eq!(
            kvm(host(broken()), Machine::Amd64, None),
            Ok(Accelerator::Tcg)
        );
        assert_eq!(
            kvm(host(Ok(())), Machine::Arm64, None),
            Ok(Accelerator::Tcg)
        );
        let asked = Some(Accelerator::Kvm);
        assert!(kvm(host(broken()), Machine::Amd64, asked).is_err());
        assert!(kvm(host(Ok(())), Machine::Arm64, asked).is_err());
        let tcg = Some(Accelerator::Tcg);
        assert_eq!(kvm(host(Ok(())), Machine::Amd64, tcg), Ok(Accelerator::Tcg));
    }
}
