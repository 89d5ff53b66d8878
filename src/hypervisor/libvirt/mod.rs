//! VMs as domains of libvirt's QEMU driver.

mod devices;
mod element;
pub mod xml;
