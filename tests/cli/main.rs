//! The program from outside: argv in, whole output out.
//!
//! Each test has a [`sandbox::Sandbox`]: an environment of its own, a store of its own, firmware
//! of its own. Images are of tiny payloads with the right magic numbers. No guest is booted here.
//!
//! | file          | what it is about                                                        |
//! |---------------|-------------------------------------------------------------------------|
//! | `plans`       | `plan`, `pull`: what is chosen, what is fetched                          |
//! | `policies`    | `--pull`: when the registry is asked, and for what                       |
//! | `instances`   | `prepare`, `list`, `rm`                                                  |
//! | `dry_runs`    | `run --dry-run`, `define --dry-run`                                      |
//! | `images`      | `image list|inspect|rm|build|push`                                       |
//! | `pushes`      | `image push`: from where, what is sent, what breaks                      |
//! | `credentials` | passwords, auth files, certificates                                      |
//! | `forms`       | the forms of the specification and of today's publishers                 |
//! | `legacy`      | the forms of others, and of times past                                   |
//! | `architectures` | images of which the index does not say what machine they are for       |
//! | `nested`      | indexes within indexes                                                   |
//! | `selections`  | images of which no single or no readable manifest is meant               |
//! | `contents`    | layers that are not what they say                                        |
//! | `disks`       | disks that would harm the host, and what becomes of a qcow2 image        |
//! | `ukis`        | unified kernel images, and methods that are passed over                  |
//! | `registries`  | registries that lack, refuse, lie or break                               |
//! | `bounds`      | registries that would have us read for ever                              |
//! | `odd`         | documents that are odd and yet no error                                  |
//! | `mirrors`     | what an operator says of registries: mirrors, certificates               |
//! | `proxies`     | proxies                                                                  |
//! | `archives`    | images in tar archives                                                   |
//! | `interop`     | what others' tools write, and what they read of the store                |
//! | `signatures`  | who has signed an image: which signatures count                        |
//! | `trust`       | policies of signatures: their files, when they are asked, what is told  |
//! | `space`       | what takes space, gives it back, or does not fit                        |
//! | `usage`       | what was typed wrong, and what the host lacks                            |
//! | `doctor`      | what the host has, and what it lacks                                    |
//! | `manual`      | help texts and manual pages                                              |
//! | `shells`      | completion, in real shells                                               |
//! | `arguments`   | what is typed and becomes no option, file or program                     |
//! | `digests`     | what a digest decides, by either algorithm                               |
//! | `programs`    | kernels, UKIs and command lines that would do harm                       |
//! | `tampering`   | stores that somebody has had hands on                                    |
//! | `service`     | the unit for systemd                                                     |
//! | `together`    | many processes at once, and one that is killed                           |

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

#[path = "../support/hostile.rs"]
#[allow(
    dead_code,
    reason = "shared with the other tests, which use more of it"
)]
mod hostile;
#[path = "../support/corpus.rs"]
#[allow(
    dead_code,
    reason = "shared with the other tests, which use more of it"
)]
mod corpus;
#[path = "../support/registry.rs"]
#[allow(
    dead_code,
    reason = "shared with the other tests, which use more of it"
)]
mod registry;

#[path = "../support/signer.rs"]
mod signer;

mod image;
mod attached;
mod sandbox;
mod refusal;
mod publishers;

mod plans;
mod policies;
mod instances;
mod dry_runs;
mod forms;
mod legacy;
mod architectures;
mod nested;
mod selections;
mod contents;
mod disks;
mod ukis;
mod registries;
mod bounds;
mod odd;
mod mirrors;
mod proxies;
mod archives;
mod interop;
mod room;
mod credentials;
mod damage;
mod images;
mod signatures;
mod trust;
mod pushes;
mod space;
mod usage;
mod doctor;
mod manual;
mod shells;
mod arguments;
mod digests;
mod programs;
mod tampering;
mod service;
mod together;
