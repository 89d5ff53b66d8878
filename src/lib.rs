//! ironboot turns an IronCore OCI image into a booted VM.

pub mod oci;
pub mod image;
pub mod boot;
pub mod domain;
pub mod hypervisor;
