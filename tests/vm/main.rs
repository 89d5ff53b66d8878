//! Boots small guests for real: through the program, and through each hypervisor's trait.
//!
//! `IRONBOOT_TEST_GUEST` names a directory that holds `amd64` and `arm64`, each made by
//! `scripts/make-guest`, and `debian`, by `scripts/make-debian`; all of it runs under
//! `scripts/with-services`, as root where libvirt is concerned. Guests are emulated (TCG), so no KVM is needed.
//!
//! | file        | what it is about                                                        |
//! |-------------|-------------------------------------------------------------------------|
//! | `boots`     | `run`: methods, architectures, forms, and what the guest is given       |
//! | `methods`   | every boot method × architecture × hypervisor                            |
//! | `accelerator` | KVM that is tried, watched and given up                               |
//! | `instances` | VMs with a name: console, logs, start, stop, what stays on their disks  |
//! | `ssh`       | guests that let their user in, and those that do not                    |
//! | `binds`     | directories of the host that a guest mounts                             |
//! | `kills`     | signals and kills at any moment, and what is left of a `run` after them |
//! | `failures`  | QEMUs that do not start                                                 |
//! | `health`    | VMs that were started and do not run                                    |
//! | `verdicts`  | `test`: guests that come up and guests that do not                    |
//! | `debian`    | a real Debian, whole and broken, by `test`                              |
//! | `define`    | libvirt through the program                                             |
//! | `consoles`  | libvirt's consoles in a terminal, and logs that are moved aside         |
//! | `orphans`   | what only the store or only libvirt knows of, and kills in between      |
//! | `lost`      | libvirt that goes away in the middle of a call                          |
//! | `libvirt`   | libvirt through the trait                                               |
//! | `reach`     | that QEMU's user can open what it is foretold to                        |
//! | `owners`    | what libvirt does to the files that VMs share: nothing                  |
//! | `member`    | the system's libvirt as a member of its group, who is not root          |
//! | `native`    | that both hypervisors are told the same                                 |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod guest;
mod bench;
mod session;

mod boots;
mod methods;
mod accelerator;
mod instances;
mod kills;
mod ssh;
mod binds;
mod failures;
mod health;
mod verdicts;
mod debian;
#[cfg(feature = "libvirt")]
mod define;
#[cfg(feature = "libvirt")]
mod consoles;
#[cfg(feature = "libvirt")]
mod orphans;
#[cfg(feature = "libvirt")]
mod lost;
#[cfg(feature = "libvirt")]
mod libvirt;
mod reach;
#[cfg(feature = "libvirt")]
mod owners;
#[cfg(feature = "libvirt")]
mod member;
#[cfg(feature = "libvirt")]
mod native;
