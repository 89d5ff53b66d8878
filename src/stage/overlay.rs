//! Copy-on-write overlays: an empty qcow2 image that reads from a base.
//!
//! `qcow2-rs` lays out the empty image, but it can not write a reference to a backing file (as of
//! 0.1.6 there is no call for it, and the header type is private). That reference is two header
//! fields, one header extension and the path itself, and is added here. `qemu-img check` and
//! `qemu-img info --backing-chain` agree with the result, which the tests show.
//!
//! Format: QEMU's docs/interop/qcow2.txt.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use qcow2_rs::meta::Qcow2Header;

use crate::domain::{Backing, MAX_DISK_BYTES};
use crate::files::FileError;
use crate::stage::StageError;

const CLUSTER_BITS: usize = 16;
const CLUSTER_BYTES: usize = 1 << CLUSTER_BITS;
const REFCOUNT_ORDER: u8 = 4;
const BLOCK_BYTES: usize = 512;

/// Length of the header that `qcow2-rs` writes, behind which extensions start.
const HEADER_BYTES: usize = 112;
/// Header extension with the format of the backing file.
const BACKING_FORMAT: u32 = 0xE279_2ACA;
/// Longest name of a backing file that the format allows, in bytes.
const MAX_BACKING_NAME_BYTES: usize = 1023;

/// Creates the overlay `path` of `size_bytes` on `backing`, with mode 0600.
pub(super) fn create(path: &Path, size_bytes: u64, backing: &Backing) -> Result<(), StageError> {
    let image = layout(size_bytes, backing).ok_or_else(|| StageError::Overlay {
        path: path.to_owned(),
        base: backing.file.clone(),
        size_bytes,
    })?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(&image).and_then(|()| file.sync_all()))
        .map_err(FileError::of("write", path))?;
    Ok(())
}

/// The bytes of the overlay; none if the size or the backing file's name is out of range.
fn layout(size_bytes: u64, backing: &Backing) -> Option<Vec<u8>> {
    // Beyond this, `qcow2-rs` panics.
    if size_bytes > MAX_DISK_BYTES {
        return None;
    }
    let (table, block, l1) =
        Qcow2Header::calculate_meta_params(size_bytes, CLUSTER_BITS, REFCOUNT_ORDER, BLOCK_BYTES);
    let clusters = 1 + usize::try_from(table.1 + block.1 + l1.1).ok()?;
    let mut image = vec![0; clusters * CLUSTER_BYTES];
    Qcow2Header::format_qcow2(
        &mut image,
        size_bytes,
        CLUSTER_BITS,
        REFCOUNT_ORDER,
        BLOCK_BYTES,
    )
    .ok()?;
    let name = backing.file.as_os_str().as_bytes();
    if name.is_empty() || name.len() > MAX_BACKING_NAME_BYTES {
        return None;
    }
    let format = backing.format.as_str().as_bytes();
    let mut extensions = Vec::new();
    extensions.extend(BACKING_FORMAT.to_be_bytes());
    extensions.extend(u32::try_from(format.len()).ok()?.to_be_bytes());
    extensions.extend(format);
    extensions.resize(extensions.len().next_multiple_of(8), 0);
    // The end of the extensions: type 0, length 0.
    extensions.extend([0; 8]);
    let name_offset = HEADER_BYTES + extensions.len();
    image[HEADER_BYTES..name_offset].copy_from_slice(&extensions);
    image[name_offset..name_offset + name.len()].copy_from_slice(name);
    image[8..16].copy_from_slice(&u64::try_from(name_offset).ok()?.to_be_bytes());
    image[16..20].copy_from_slice(&u32::try_from(name.len()).ok()?.to_be_bytes());
    Some(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::DiskFormat;
    use crate::oci::Descriptor;
    use crate::store::Store;
    use std::process::Command;

    fn qemu_img(arguments: &[&str], path: &Path) -> serde_json::Value {
        let output = Command::new("qemu-img")
            .args(arguments)
            .arg("--output=json")
            .arg(path)
            .output()
            .expect("qemu-img is installed (package qemu-utils)");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{error}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[test]
    fn qemu_agrees_with_every_overlay() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("a base, with \"odd\" name");
        std::fs::write(&base, vec![0; 1 << 20]).unwrap();
        let backing = Backing {
            file: base.clone(),
            format: DiskFormat::Raw,
        };
        for (number, size) in [1_u64 << 20, 512 << 20, (5 << 30) + 512, 2 << 40, 16 << 40]
            .into_iter()
            .enumerate()
        {
            let path = directory.path().join(format!("overlay-{number}.qcow2"));
            create(&path, size, &backing).unwrap();
            let check = qemu_img(&["check", "-f", "qcow2"], &path);
            assert_eq!(check["check-errors"], 0, "{check}");
            assert!(check.get("leaks").is_none() && check.get("corruptions").is_none());
            let chain = qemu_img(&["info", "--backing-chain", "-f", "qcow2"], &path);
            assert_eq!(chain[0]["virtual-size"], size);
            assert_eq!(chain[0]["backing-filename-format"], "raw");
            assert_eq!(chain[0]["full-backing-filename"], base.to_str().unwrap());
            assert_eq!(chain[1]["format"], "raw");
            let created = std::fs::metadata(&path).unwrap().len();
            assert!(
                created < 8 << 20,
                "{created} bytes for an empty overlay of {size}"
            );
        }
    }

    /// Through the store, as a VM gets it: what was unpacked is the base, and what is read through
    /// the overlay is the image's disk.
    #[test]
    fn qemu_agrees_with_an_overlay_on_what_was_unpacked() {
        let directory = tempfile::tempdir().unwrap();
        let image = directory.path().join("image.qcow2");
        let raw = directory.path().join("raw");
        let content: Vec<u8> = (0..3_u32 << 20).map(|i| (i / 4096 % 3) as u8).collect();
        std::fs::write(&raw, content).unwrap();
        let status = Command::new("qemu-img")
            .args(["convert", "-c", "-O", "qcow2"])
            .args([&raw, &image])
            .status()
            .unwrap();
        assert!(status.success());
        let bytes = std::fs::read(&image).unwrap();
        let disk = Descriptor::of("x", &bytes);
        let store = Store::at(directory.path().join("store"));
        let lease = store.lease([disk.digest]).unwrap();
        lease.put(&disk, &bytes).unwrap();
        let found = crate::stage::disk(&disk, &|blob| lease.blob(blob)).unwrap();
        let map = found.qcow2.unwrap();
        crate::stage::unpack(
            &disk,
            &map,
            &lease,
            crate::store::MakeRaw::IfMissing,
            &mut |_| (),
        )
        .unwrap();
        let backing = Backing {
            file: store.raw_path(&disk.digest),
            format: DiskFormat::Raw,
        };
        let overlay = directory.path().join("overlay.qcow2");
        create(&overlay, found.virtual_size_bytes, &backing).unwrap();
        let check = qemu_img(&["check", "-f", "qcow2"], &overlay);
        assert_eq!(check["check-errors"], 0, "{check}");
        assert!(check.get("leaks").is_none() && check.get("corruptions").is_none());
        let chain = qemu_img(&["info", "--backing-chain", "-f", "qcow2"], &overlay);
        assert_eq!(chain.as_array().unwrap().len(), 2);
        assert_eq!(chain[1]["format"], "raw");
        let compared = Command::new("qemu-img")
            .args(["compare", "-q", "-f", "qcow2", "-F", "raw"])
            .args([&overlay, &raw])
            .status()
            .unwrap();
        assert!(compared.success());
    }

    #[test]
    fn what_the_format_can_not_say_is_an_error() {
        let file = Path::new("/").join("d".repeat(1023));
        let format = DiskFormat::Raw;
        assert!(layout(1 << 20, &Backing { file, format }).is_none());
        let file = "/base".into();
        assert!(layout(u64::MAX - 511, &Backing { file, format }).is_none());
    }
}
