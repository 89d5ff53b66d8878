//! The same bytes as others read.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use qcow2_rs::dev::Qcow2DevParams;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::utils::qcow2_setup_dev_sync;

use crate::corpus::honest::controls;
use crate::corpus::{judge, read_at};

/// Unpacks the image `from` into `to`.
fn unpack(from: &Path, to: &Path) {
    let content = judge(from).unwrap();
    let map = content.qcow2.unwrap();
    let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
    let mut read = |piece| read_at(&from, piece);
    map.unpack(0..map.size_bytes(), &mut read, &mut |offset, bytes| {
        to.write_all_at(bytes, offset).unwrap();
        Ok(())
    })
    .unwrap();
    to.set_len(map.size_bytes()).unwrap();
}

#[test]
fn what_is_unpacked_is_what_qemu_reads() {
    let directory = tempfile::tempdir().unwrap();
    let ours = directory.path().join("ours");
    for (name, path, raw) in controls(directory.path()) {
        if path == raw {
            continue;
        }
        unpack(&path, &ours);
        let output = Command::new("qemu-img")
            .args(["compare", "-s", "-f", "raw", "-F", "qcow2"])
            .args([&ours, &path])
            .output()
            .unwrap();
        // Strict: the sizes are the same as well. Which parts are holes is told apart, and is 1.
        let words = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.code() < Some(2), "{name}: {words}");
        assert!(!words.contains("Content mismatch"), "{name}: {words}");
        if name != "q-ok-sparse" {
            assert!(
                fs::read(&ours).unwrap() == fs::read(&raw).unwrap(),
                "{name}"
            );
        }
    }
}

/// A second reader of the tables, that of `qcow2-rs`. It knows no zstd, and clusters of 512 bytes
/// make it panic.
#[tokio::test]
async fn what_is_unpacked_is_what_qcow2_rs_reads() {
    const PIECE_BYTES: usize = 1 << 20;
    let directory = tempfile::tempdir().unwrap();
    let ours = directory.path().join("ours");
    for (name, path, raw) in controls(directory.path()) {
        if path == raw || name.contains("zstd") || name.contains("512") || name == "q-ok-sparse" {
            continue;
        }
        unpack(&path, &ours);
        let params = Qcow2DevParams::new(9, None, None, true, false);
        let image = qcow2_setup_dev_sync(&path, &params).unwrap();
        image.qcow2_prep_io().await.unwrap();
        let ours = fs::read(&ours).unwrap();
        for (piece, offset) in ours.chunks(PIECE_BYTES).zip((0_u64..).step_by(PIECE_BYTES)) {
            let mut bytes = Qcow2IoBuf::<u8>::new(PIECE_BYTES);
            let count = image.read_at(&mut bytes, offset).await.unwrap();
            assert_eq!(count, piece.len(), "{name} at {offset}");
            assert!(bytes[..count] == *piece, "{name} at {offset}");
        }
    }
}
