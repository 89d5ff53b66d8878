//! Boots a small guest for real, on each hypervisor.
//!
//! `IRONBOOT_TEST_GUEST` names the directory that `scripts/make-guest amd64` made; all of it runs
//! under `scripts/with-services`. The guest is emulated (TCG), so no KVM is needed.

mod guest;
#[cfg(feature = "libvirt")]
mod libvirt;
