//! Disks that must be taken, and one that costs as much as any.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{COMPRESSED, SOLE, plain, put};

/// A disk of 8 MiB with a partition table, data here and there, and zeros between.
pub(crate) fn gpt_disk() -> Vec<u8> {
    const EFI_SYSTEM: [u8; 16] = [
        0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11, 0xba, 0x4b, 0x00, 0xa0, 0xc9, 0x3e, 0xc9,
        0x3b,
    ];
    let mut disk = vec![0; 8 << 20];
    put(
        &mut disk,
        &[
            (446, b"\0\0\x02\0\xee\xff\xff\xff\x01\0\0\0\xff\x3f\0\0"),
            (510, b"\x55\xaa"),
            (512, b"EFI PART\0\0\x01\0\x5c\0\0\0"),
            (512 + 24, &1_u64.to_le_bytes()),
            (512 + 72, &2_u64.to_le_bytes()),
            (512 + 80, &128_u32.to_le_bytes()),
            (512 + 84, &128_u32.to_le_bytes()),
            (1024, &EFI_SYSTEM),
            (1024 + 32, &64_u64.to_le_bytes()),
            (1024 + 40, &100_u64.to_le_bytes()),
        ],
    );
    let mut state = 1_u32;
    for start in [1 << 20, 3 << 20, (5 << 20) + 12345, (8 << 20) - 777_777] {
        for (place, byte) in disk[start..].iter_mut().take(600_000).enumerate() {
            // Half of it can be packed.
            if place % 2 == 0 {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                *byte = state.to_be_bytes()[0];
            }
        }
    }
    disk
}

/// Every honest disk, by name, made in `directory`; with the raw disk that each holds.
pub(crate) fn controls(directory: &Path) -> Vec<(String, PathBuf, PathBuf)> {
    let gpt = directory.join("r-ok-gpt.img");
    fs::write(&gpt, gpt_disk()).unwrap();
    let mut disks = vec![("r-ok-gpt".to_owned(), gpt.clone(), gpt.clone())];
    let mut iso = vec![0; 1 << 20];
    put(
        &mut iso,
        &[
            (0, b"\x33\xed"),
            (446, b"\x80\0\0\0\x17\0\0\0\0\0\0\0\xff\0\0\0"),
            (510, b"\x55\xaa"),
            (0x8000, b"\x01CD001\x01"),
            (0x8800, b"\0CD001\x01EL TORITO SPECIFICATION"),
            (0x9000, b"\xffCD001\x01"),
        ],
    );
    let mut text = vec![0; 1 << 20];
    put(
        &mut text,
        &[(0, b"nothing that anybody knows"), (4096, b"QFI\xfb")],
    );
    for (name, content) in [("r-ok-iso-hybrid", iso), ("r-ok-plain", text)] {
        let path = directory.join(format!("{name}.img"));
        fs::write(&path, content).unwrap();
        disks.push((name.to_owned(), path.clone(), path));
    }
    // A hole behind its only data, which fill no piece of what is hashed at once.
    let start = directory.join("start.img");
    fs::write(&start, &gpt_disk()[..2048]).unwrap();
    let file = OpenOptions::new().write(true).open(&start).unwrap();
    file.set_len(8 << 20).unwrap();
    let zeros = directory.join("zeros.img");
    File::create(&zeros).unwrap().set_len(1 << 40).unwrap();
    let convert = "convert -O qcow2";
    for (name, command, from) in [
        ("q-ok-v3", convert, &gpt),
        ("q-ok-512", "convert -O qcow2 -o cluster_size=512", &gpt),
        ("q-ok-4k", "convert -O qcow2 -o cluster_size=4k", &gpt),
        ("q-ok-2m", "convert -O qcow2 -o cluster_size=2M", &gpt),
        ("q-ok-deflate", "convert -c -O qcow2", &gpt),
        (
            "q-ok-deflate-512",
            "convert -c -O qcow2 -o cluster_size=512",
            &gpt,
        ),
        (
            "q-ok-deflate-2m",
            "convert -c -O qcow2 -o cluster_size=2M",
            &gpt,
        ),
        (
            "q-ok-zstd",
            "convert -c -O qcow2 -o compression_type=zstd",
            &gpt,
        ),
        (
            "q-ok-zstd-4k",
            "convert -c -O qcow2 -o compression_type=zstd,cluster_size=4k",
            &gpt,
        ),
        (
            "q-ok-zstd-2m",
            "convert -c -O qcow2 -o compression_type=zstd,cluster_size=2M",
            &gpt,
        ),
        ("q-ok-out-of-order", "convert -W -c -O qcow2", &gpt),
        ("q-ok-rc64", "convert -O qcow2 -o refcount_bits=64", &gpt),
        ("q-ok-rc1", "convert -O qcow2 -o refcount_bits=1", &gpt),
        ("q-ok-lazy", "convert -O qcow2 -o lazy_refcounts=on", &gpt),
        (
            "q-ok-metadata",
            "convert -O qcow2 -o preallocation=metadata",
            &gpt,
        ),
        (
            "q-ok-falloc",
            "convert -O qcow2 -o preallocation=falloc",
            &gpt,
        ),
        (
            "q-ok-hole-behind",
            "convert -O qcow2 -o cluster_size=4k",
            &start,
        ),
        ("q-ok-sparse", convert, &zeros),
    ] {
        let path = directory.join(format!("{name}.img"));
        let output = Command::new("qemu-img")
            .args(command.split(' '))
            .args([from, &path])
            .output()
            .expect("qemu-img is installed (Debian: qemu-utils)");
        assert!(output.status.success(), "{name}: {output:?}");
        disks.push((name.to_owned(), path, from.clone()));
    }
    disks
}

/// Makes an image that takes as much memory and time as one can: as many compressed clusters as
/// there may be, the last of which does not unpack.
pub(crate) fn worst(path: &Path) {
    const CLUSTERS: u64 = 2 << 20;
    const CLUSTER: u64 = 512;
    let l1_entries = CLUSTERS / (CLUSTER / 8);
    let (refcounts, l1) = (CLUSTER, 2 * CLUSTER);
    let tables = (l1 + 8 * l1_entries).next_multiple_of(CLUSTER);
    let data = tables + l1_entries * CLUSTER;
    let mut head = vec![0; usize::try_from(data).unwrap()];
    let header = &plain()[..112];
    put(
        &mut head,
        &[
            (0, header),
            (20, &9_u32.to_be_bytes()),
            (24, &(CLUSTERS * CLUSTER).to_be_bytes()),
            (36, &u32::try_from(l1_entries).unwrap().to_be_bytes()),
            (40, &l1.to_be_bytes()),
            (48, &refcounts.to_be_bytes()),
        ],
    );
    for table in 0..l1_entries {
        let offset = tables + CLUSTER * table;
        put(
            &mut head,
            &[(l1 + 8 * table, &(SOLE | offset).to_be_bytes())],
        );
    }
    for cluster in 0..CLUSTERS {
        // The last is first, so that they have to be sorted.
        let offset = data + CLUSTER * (CLUSTERS - 1 - cluster);
        put(
            &mut head,
            &[(tables + 8 * cluster, &(COMPRESSED | offset).to_be_bytes())],
        );
    }
    let file = File::create(path).unwrap();
    file.write_all_at(&head, 0).unwrap();
    file.set_len(data + CLUSTERS * CLUSTER).unwrap();
}
