//! From a plan and its blobs to files that a VM can open.
//!
//! [`inspect()`] looks at the blobs, [`describe()`] says which files the VM will have (and touches
//! nothing), [`create`] makes those of them that are the VM's own:
//!
//! ```text
//! disk-0.qcow2          overlay of the image's disk
//! esp.img               EFI system partition with the UKI
//! kernel, initramfs     taken out of the UKI, or copies; so uki.efi
//! vars.fd, firmware.fd  copies of what firmware writes to
//! fw_cfg-<hash>         what the guest is given
//! ```

mod describe;
mod esp;
mod inspect;
mod overlay;
mod unpack;

pub use describe::{Loaded, Parts, describe};
pub use esp::partition_bytes as esp_bytes;
pub use inspect::{Find, Inspected, InspectedUki, Starter, disk, inspect, presume};
pub use unpack::unpack;

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use indicatif::HumanBytes;
use thiserror::Error;

use crate::boot::uki::WordsError;
use crate::boot::{CommandLine, CommandLineError};
use crate::content::ContentError;
use crate::content::Piece;
use crate::domain::{Backing, Boot, Disk, FwCfg, FwCfgName, OemString};
use crate::files::{self, FileError};
use crate::oci::Digest;
use crate::store::StoreError;

/// Why a VM's files could not be made.
#[derive(Debug, Error)]
pub enum StageError {
    /// A blob is not what its layer says.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file could not be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A blob that the plan needs is not in the store.
    #[error("blob is not in the store: {blob}")]
    Missing {
        /// The blob.
        blob: Digest,
    },
    /// The firmware would not start it.
    #[error("uki {blob} is not signed, and firmware with Secure Boot on starts nothing else")]
    Unsigned {
        /// The blob.
        blob: Digest,
    },
    /// The kernel in it is an EFI program that unpacks itself.
    #[error("uki {blob} can not be booted without firmware: its kernel is packed for UEFI (zboot)")]
    NotDirect {
        /// The blob.
        blob: Digest,
    },
    /// Nothing that this host has, or that was asked for, starts the disk.
    #[error("disk {blob} has {loaders}, and {reason}")]
    NoStarter {
        /// The blob.
        blob: Digest,
        /// What it can be started by.
        loaders: &'static str,
        /// Why that is not to be had.
        reason: String,
        /// Whether other firmware was asked for, where the host may have what it takes.
        is_ruled_out: bool,
    },
    /// The command line in a UKI is none that a kernel takes.
    #[error("the command line in uki {blob} is not usable")]
    UkiCommandLine {
        /// The blob.
        blob: Digest,
        /// What is wrong with it.
        #[source]
        source: CommandLineError,
    },
    /// Words that can not reach the kernel in a UKI.
    #[error("uki {blob} can not be given a command line with --append")]
    UkiWords {
        /// The blob.
        blob: Digest,
        /// Why not.
        #[source]
        source: WordsError,
    },
    /// FAT has no files of this size.
    #[error(
        "uki {blob} has {}, more than a file on an EFI system partition",
        HumanBytes(*size_bytes)
    )]
    UkiTooLarge {
        /// The blob.
        blob: Digest,
        /// Its size.
        size_bytes: u64,
    },
    /// A disk can not be made smaller than the image's.
    #[error(
        "--disk-size is {}, smaller than the image's disk of {}",
        HumanBytes(*asked_bytes), HumanBytes(*image_bytes)
    )]
    DiskSize {
        /// What was asked for.
        asked_bytes: u64,
        /// What the image has.
        image_bytes: u64,
    },
    /// `--disk-size` for an image without a disk.
    #[error("--disk-size was given, but the image boots without a disk of its own")]
    NoDisk,
    /// SMBIOS strings for a guest that would not see them.
    #[error("a kernel that is booted directly on arm64 reads no SMBIOS tables")]
    NoSmbios,
    /// The plan boots by UEFI firmware, and there is none.
    #[error("this boot needs UEFI firmware")]
    NoFirmware,
    /// An overlay that the format can not express.
    #[error("can not make overlay {path} of {} on {base}", HumanBytes(*size_bytes))]
    Overlay {
        /// The overlay.
        path: PathBuf,
        /// Its base.
        base: PathBuf,
        /// Its size.
        size_bytes: u64,
    },
}

impl StageError {
    /// Tells whether only this boot method is out of the question, so that another one may be
    /// tried: the content is not what its layer says, and could not have done harm. What is not
    /// signed is another matter: whoever asks for Secure Boot wants to know.
    #[must_use]
    pub fn rules_out_the_method(&self) -> bool {
        match self {
            Self::Content(error) => !error.is_unsafe(),
            Self::NotDirect { .. } | Self::NoStarter { .. } | Self::UkiCommandLine { .. } => true,
            _ => false,
        }
    }
}

/// What the guest is given through `fw_cfg`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestFile {
    /// Its name there.
    pub name: FwCfgName,
    /// Its content.
    pub content: Vec<u8>,
}

/// The files of a VM, as a spec names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedBoot {
    /// What the machine boots.
    pub boot: Boot,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// What the guest is given.
    pub fw_cfg: Vec<FwCfg>,
    /// What the guest reads in its SMBIOS tables.
    pub oem_strings: Vec<OemString>,
    /// The files among these that are the VM's own, and what makes them.
    pub own: Vec<OwnFile>,
    /// Whether the kernel's command line was given a console.
    pub console_added: bool,
    /// What was to be added to it where that can be done, and can not.
    pub left_out: Option<CommandLine>,
}

/// A file that is the VM's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnFile {
    /// Where it will be.
    pub path: PathBuf,
    /// What is in it.
    pub content: OwnContent,
}

/// What is in a file that is the VM's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnContent {
    /// Nothing yet: what the guest writes, over a base.
    Overlay {
        /// Size as the guest sees it, in bytes.
        size_bytes: u64,
        /// The base.
        backing: Backing,
    },
    /// What is in another file.
    Copy {
        /// The other file.
        of: PathBuf,
    },
    /// Pieces of another file, one after the other.
    Pieces {
        /// The other file.
        of: PathBuf,
        /// Its pieces.
        pieces: Vec<Piece>,
    },
    /// A disk with an EFI system partition.
    Esp {
        /// What firmware starts from it.
        loader: PathBuf,
        /// Its size in bytes; FAT has no larger files.
        loader_bytes: u32,
        /// Its name in `EFI/BOOT`.
        name: &'static str,
    },
    /// These bytes.
    Bytes(Vec<u8>),
}

/// Makes the VM's own files in `draft`, which will be renamed to the spec's directory.
///
/// Returns where they are, for the hypervisor's user to be given.
pub fn create(own: &[OwnFile], draft: &Path) -> Result<Vec<PathBuf>, StageError> {
    let mut made = Vec::new();
    for OwnFile { path, content } in own {
        let path = draft.join(path.file_name().unwrap_or_default());
        match content {
            OwnContent::Overlay {
                size_bytes,
                backing,
            } => overlay::create(&path, *size_bytes, backing)?,
            OwnContent::Copy { of } => {
                let mut source = File::open(of).map_err(FileError::of("read", of))?;
                write_private(&path, |file| io::copy(&mut source, file).map(drop))?;
            }
            OwnContent::Pieces { of, pieces } => copy_pieces(of, pieces, &path)?,
            OwnContent::Esp {
                loader,
                loader_bytes,
                name,
            } => {
                // In the store, where nobody may have put a link for us to follow.
                let mut source = files::open_plain(loader)?;
                write_private(&path, |file| {
                    esp::write(file, &mut source, *loader_bytes, name)
                })?;
            }
            OwnContent::Bytes(content) => write_private(&path, |file| file.write_all(content))?,
        }
        made.push(path);
    }
    files::sync_dir(draft)?;
    Ok(made)
}

fn copy_pieces(of: &Path, pieces: &[Piece], path: &Path) -> Result<(), StageError> {
    let mut source = files::open_plain(of)?;
    write_private(path, |file| {
        for piece in pieces {
            source.seek(SeekFrom::Start(piece.offset))?;
            let copied = io::copy(&mut (&source).take(piece.size_bytes), file)?;
            if copied != piece.size_bytes {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    })
}

/// Writes a file that nobody else may read.
fn write_private(
    path: &Path,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), StageError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| write(&mut file).and_then(|()| file.sync_all()))
        .map_err(FileError::of("write", path))?;
    Ok(())
}
