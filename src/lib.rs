//! ironboot turns an IronCore OCI image into a booted VM.

#![deny(clippy::unwrap_used)]

pub mod oci;
pub mod image;
pub mod content;
pub mod boot;
pub mod domain;
pub mod files;
pub mod source;
pub mod store;
pub mod host;
pub mod firmware;
pub mod instance;
pub mod stage;
pub mod hypervisor;
pub mod ops;
pub mod cli;
