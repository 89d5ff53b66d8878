//! Whether QEMU's user can open a VM's files, told before the domain is defined: otherwise it shows
//! at the start only, in the hypervisor's words, and names neither the directory nor the cure.

use std::path::{Path, PathBuf};

use crate::domain::{Backing, Boot, Disk, DomainSpec, Firmware, FwCfg, Uefi, UefiImage};
use crate::hypervisor::{Hypervisor, Owner, RunsAs};
use crate::ops::reach::{Lacks, User};
use crate::ops::{Context, OpsError};

/// A file that a VM opens.
struct Opened<'a> {
    path: &'a Path,
    lacks: Lacks,
}

/// Checks that QEMU's user can pass through to the store, as far as that is there already.
pub(super) fn store(context: &Context<'_>, runs_as: RunsAs) -> Result<(), OpsError> {
    let Some(user) = user(runs_as)? else {
        return Ok(());
    };
    let mut closed = Vec::new();
    user.passes(&context.store.instances(), &mut closed)?;
    Ok(user.finds(closed)?)
}

/// Checks that QEMU's user can open every file of the machine, along its whole path.
pub(super) async fn machine(
    spec: &DomainSpec,
    hypervisor: &dyn Hypervisor,
) -> Result<(), OpsError> {
    let runs_as = hypervisor.runs_as().await?;
    let Some(user) = user(runs_as)? else {
        return Ok(());
    };
    let mut closed = Vec::new();
    // What the guest prints is written there, by libvirt's logger.
    user.passes(&spec.directory, &mut closed)?;
    for Opened { path, lacks } in opened(spec) {
        user.passes(path.parent().unwrap_or(path), &mut closed)?;
        // libvirt makes the user the owner of what is the VM's own.
        let is_lent = matches!(runs_as, RunsAs::Lent(_)) && path.starts_with(&spec.directory);
        if !is_lent {
            user.opens(path, lacks, &mut closed)?;
        }
    }
    Ok(user.finds(closed)?)
}

/// The user whose QEMU it is; none if the hypervisor does not tell, or if it is root itself that
/// calls.
fn user(runs_as: RunsAs) -> Result<Option<User>, OpsError> {
    Ok(match (runs_as, runs_as.other_user()) {
        (_, Some(Owner { uid, gid })) => Some(User::of(uid, gid)?),
        (RunsAs::Caller, None) if !rustix::process::geteuid().is_root() => Some(User::caller()?),
        (RunsAs::Caller | RunsAs::Given(_) | RunsAs::Lent(_), None) => None,
    })
}

fn opened(spec: &DomainSpec) -> Vec<Opened<'_>> {
    let DomainSpec {
        name: _,
        uuid: _,
        machine: _,
        accelerator: _,
        cpus: _,
        memory: _,
        boot,
        disks,
        nic: _,
        fw_cfg,
        oem_strings: _,
        is_observed: _,
        directory: _,
        provenance: _,
        // By a daemon that is whoever runs it.
        binds: _,
        // Nobody here knows what they name.
        qemu_arguments: _,
    } = spec;
    let mut opened: Vec<Opened<'_>> = boot.loaded().map(read).collect();
    opened.extend(flash(boot).into_iter().flatten());
    for Disk {
        file,
        format: _,
        backing,
        virtual_size_bytes: _,
        read_only,
        serial: _,
        bus: _,
        boots: _,
    } in disks
    {
        opened.push(if *read_only { read(file) } else { write(file) });
        let backing = backing.as_ref();
        opened.extend(backing.map(|Backing { file, format: _ }| read(file)));
    }
    opened.extend(fw_cfg.iter().map(|FwCfg { name: _, file }| read(file)));
    opened
}

fn flash(boot: &Boot) -> [Option<Opened<'_>>; 2] {
    let image = match boot {
        Boot::Uki { firmware, .. } | Boot::Disk(Firmware::Uefi(firmware)) => {
            let Uefi {
                image,
                secure_boot: _,
                smm: _,
            } = firmware;
            image
        }
        Boot::Kernel { .. } | Boot::Disk(Firmware::Bios) => return [None, None],
    };
    match image {
        UefiImage::Split {
            code,
            vars,
            vars_template: _,
            format: _,
        } => [Some(read(code)), Some(write(vars))],
        UefiImage::Stateless { code, format: _ } => [Some(read(code)), None],
        UefiImage::Combined {
            file,
            template: _,
            format: _,
        } => [Some(write(file)), None],
        UefiImage::Memory { rom } => [Some(read(rom)), None],
    }
}

fn read(path: &(impl AsRef<Path> + ?Sized)) -> Opened<'_> {
    Opened {
        path: path.as_ref(),
        lacks: Lacks::Read,
    }
}

fn write(path: &PathBuf) -> Opened<'_> {
    Opened {
        path,
        lacks: Lacks::Write,
    }
}
