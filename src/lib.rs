//! ironboot turns an **IronCore OCI image** into a booted VM. This page is the architecture.
//!
//! # The pipeline
//!
//! ```text
//! "reg.example/os:1"                                                          a guest's console
//!     │ parse                                                                          ▲
//! Reference ─document→ Index|Manifest ─select→ Selected ─plan→ BootPlan                │
//!            source                    image           boot       │ lease, fetch       │
//!                                                               blobs under a Lease    │
//!                                                                 │ inspect (content)  │
//!                                                               Inspected              │
//!     Instance ←make─ DomainSpec ←specify─ StagedBoot ←describe───┘                    │
//!         │ instance   domain       ops     stage                                      │
//!         └──start→ libvirt domain XML | QEMU command line ────────────────────────────┘
//!                                 hypervisor
//! ```
//!
//! Each noun is a type that only the arrow before it makes, and no arrow points back. Everything up
//! to the plan is decided from manifests (and the two small blobs that they are made with, config
//! and command line) and from the firmware that the host has, before the first layer is fetched.
//! Whether the policy lets the image in ([`signature`]) is decided between the manifests and those two
//! blobs. Where `inspect` finds that a blob is not what its layer says, `plan` is asked again without that
//! method, unless it was asked for by name.
//!
//! # The rooms, in reading order
//!
//! | room | what it knows | what it never does |
//! |---|---|---|
//! | [`oci`] | digest, reference, descriptor, index, manifest, platform | I/O |
//! | [`image`] | variants, layer roles and the one table of media types, selection | I/O |
//! | [`boot`] | boot methods, what image and host offer for each, the plan, command lines | I/O |
//! | [`domain`] | the complete description of a VM, in file paths | I/O |
//! | [`expect`] | what a console says: stages, failures, a script and its matcher | I/O, ask what time it is |
//! | [`content`] | what a blob really is: disks, kernels, UKIs, ISOs, file systems | I/O, more than 128 KiB, a UKI's texts and a qcow2's tables |
//! | [`signature`] | the policy of who must have signed what, keys, signatures | I/O |
//! | [`files`] | durable replacement, directory sync, locks | decide anything |
//! | [`source`] | registries and their mirrors, OCI layouts as directory or archive, credentials | write to the store |
//! | [`store`] | the content-addressed directory: ingest, lease, reference, pin | know where bytes come from |
//! | [`host`] | facts of this machine, passed on as values | choose for a VM |
//! | [`firmware`] | every firmware descriptor, and which is taken for what is asked | ask what an image needs |
//! | [`instance`] | the directory and the record of one VM | start anything |
//! | [`stage`] | plan and blobs to files that a VM opens | touch the image's own files |
//! | [`hypervisor`] | libvirt and QEMU behind one trait; two pure renderers | know of images or stores |
//! | [`ops`] | the use cases: they join the rooms above | print, read the environment |
//! | [`cli`] | argv, environment, streams, exit codes | be imported |
//!
//! `tests/tidy.rs` has the table of who may import whom, and fails when an import breaks it.
//!
//! # What holds everywhere
//!
//! * **Nothing from outside is trusted.** A reference, a digest, a size, a media type, a disk header
//!   becomes a type of our own or an error that names the object; no path, option or XML is made
//!   from unchecked text.
//! * **A blob under its digest is that digest.** The bytes are hashed as they are written, synced
//!   and only then renamed; see [`store`].
//! * **A kill at any instant loses nothing.** References, pins, records and instances appear by one
//!   rename; locks are file locks, which end with their process.
//! * **Formats are told, never probed,** and the image's disk is never written: each VM has an
//!   overlay, on raw bytes; a qcow2 image is judged and unpacked here once.
//! * **Network and processes are `async`; hashing and the blobs' files are blocking threads.** A few
//!   small reads and the making of an instance are neither: whoever is told to end must not leave
//!   one half made. There are no twins of one function in two colours.
//! * **The library prints nothing.** It tells [`ops::Progress`] and returns typed errors; the program
//!   makes words of them in [`cli`] alone.

#![deny(clippy::unwrap_used)]

pub mod oci;
pub mod image;
pub mod boot;
pub mod domain;
pub mod expect;
pub mod content;
pub mod signature;
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
