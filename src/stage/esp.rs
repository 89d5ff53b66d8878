//! A disk with an EFI system partition that holds one loader, where firmware looks for it.
//!
//! The partition is FAT32 under a GPT, as firmware and other hypervisors want it. `gpt` writes the
//! table and `fatfs` the file system; neither needs a loop device, root, or a tool of the host's.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions};
use gpt::disk::LogicalBlockSize;
use gpt::mbr::ProtectiveMBR;
use gpt::{GptConfig, partition_types};

const SECTOR_BYTES: u64 = 512;
const MIB: u64 = 1 << 20;
/// Where the partition begins, and what is left behind it for the second table.
const MARGIN_BYTES: u64 = MIB;
/// FAT32 has at least 65525 clusters: 32 MiB of the smallest, and some more.
const MIN_PARTITION_BYTES: u64 = 64 * MIB;
/// A partition of so many bytes is FAT32 with clusters of 4 KiB as well.
const LARGE_PARTITION_BYTES: u64 = 320 * MIB;

/// Writes the disk into `file`, which is empty: `loader`, of `loader_bytes`, as
/// `EFI/BOOT/<name>`. What is not written is a hole.
pub(super) fn write(
    file: &mut File,
    loader: &mut dyn Read,
    loader_bytes: u32,
    name: &str,
) -> io::Result<()> {
    let partition_bytes = partition_bytes(loader_bytes);
    let disk_bytes = MARGIN_BYTES + partition_bytes + MARGIN_BYTES;
    file.set_len(disk_bytes)?;
    partition(file, disk_bytes, partition_bytes)?;
    let mut volume = Window {
        file,
        start: MARGIN_BYTES,
        length: partition_bytes,
        position: 0,
    };
    let sectors = u32::try_from(partition_bytes / SECTOR_BYTES)
        .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .total_sectors(sectors)
        .bytes_per_cluster(if partition_bytes < LARGE_PARTITION_BYTES {
            512
        } else {
            4096
        })
        .volume_label(*b"ESP        ");
    fatfs::format_volume(&mut volume, options)?;
    volume.rewind()?;
    let volume = FileSystem::new(&mut volume, FsOptions::new())?;
    let directory = volume.root_dir().create_dir("EFI")?.create_dir("BOOT")?;
    let mut copy = directory.create_file(name)?;
    let loader_bytes = u64::from(loader_bytes);
    let copied = io::copy(&mut loader.take(loader_bytes), &mut copy)?;
    if copied != loader_bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    drop((copy, directory));
    volume.unmount()
}

/// Size of the partition in bytes: room for the loader, for what the file system keeps of it (four
/// bytes a cluster, twice), and for what firmware may write.
#[must_use]
pub fn partition_bytes(loader_bytes: u32) -> u64 {
    let loader_bytes = u64::from(loader_bytes);
    let room = loader_bytes + loader_bytes / 32 + 8 * MIB;
    room.max(MIN_PARTITION_BYTES).next_multiple_of(MIB)
}

fn partition(file: &mut File, disk_bytes: u64, partition_bytes: u64) -> io::Result<()> {
    let sectors = u32::try_from(disk_bytes / SECTOR_BYTES - 1).unwrap_or(u32::MAX);
    ProtectiveMBR::with_lb_size(sectors)
        .overwrite_lba0(file)
        .map_err(io::Error::other)?;
    let mut table = GptConfig::new()
        .writable(true)
        .logical_block_size(LogicalBlockSize::Lb512)
        .create_from_device(file, None)
        .map_err(io::Error::other)?;
    table
        .add_partition_at(
            "ESP",
            1,
            MARGIN_BYTES / SECTOR_BYTES,
            partition_bytes / SECTOR_BYTES,
            partition_types::EFI,
            0,
        )
        .map_err(io::Error::other)?;
    table.write().map_err(io::Error::other)?;
    Ok(())
}

/// A part of a file, as a file of its own.
struct Window<'a> {
    file: &'a mut File,
    start: u64,
    length: u64,
    position: u64,
}

impl Window<'_> {
    /// Goes to the position, and cuts `wanted` to what is left behind it.
    fn seek_to(&mut self, wanted: usize) -> io::Result<usize> {
        self.file
            .seek(SeekFrom::Start(self.start + self.position))?;
        let left = self.length.saturating_sub(self.position);
        Ok(usize::try_from(left).map_or(wanted, |left| wanted.min(left)))
    }
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = self.seek_to(buffer.len())?;
        let count = self.file.read(&mut buffer[..wanted])?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Write for Window<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let wanted = self.seek_to(buffer.len())?;
        let count = self.file.write(&buffer[..wanted])?;
        self.position += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for Window<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (base, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::End(offset) => (self.length, offset),
            SeekFrom::Current(offset) => (self.position, offset),
        };
        self.position = base
            .checked_add_signed(offset)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    fn output(command: &mut Command) -> Vec<u8> {
        let output = command.output().expect("scripts/install-tools installs it");
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        output.stdout
    }

    #[test]
    fn other_tools_find_the_loader_where_firmware_looks_for_it() {
        for size in [1_u32, (16 << 20) + 5, 400 << 20] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("esp.img");
            let mut file = File::create_new(&path).unwrap();
            drop(file);
            file = File::options().read(true).write(true).open(&path).unwrap();
            let loader = [b"MZ", &vec![7; usize::try_from(size).unwrap()][..]].concat();
            let loader = &loader[..usize::try_from(size).unwrap()];
            write(&mut file, &mut &loader[..], size, "BOOTX64.EFI").unwrap();
            file.sync_all().unwrap();

            let table = output(Command::new("/sbin/sfdisk").arg("--json").arg(&path));
            let table: serde_json::Value = serde_json::from_slice(&table).unwrap();
            let partition = &table["partitiontable"]["partitions"][0];
            assert_eq!(partition["type"], "C12A7328-F81F-11D2-BA4B-00A0C93EC93B");
            assert_eq!(partition["start"], 2048);

            let image = format!("{}@@1M", path.display());
            let mut copy = Command::new("mcopy");
            copy.args(["-i", &image, "::/EFI/BOOT/BOOTX64.EFI", "-"]);
            assert_eq!(output(&mut copy), loader);
            let taken = std::fs::metadata(&path).unwrap().blocks() * 512;
            assert!(
                taken < u64::from(size + size / 16) + 4 * MIB,
                "{taken} bytes for {size}"
            );
        }
    }

    #[test]
    fn a_loader_that_ends_early_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("esp.img");
        let mut file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        let error = write(&mut file, &mut &b"MZ"[..], 3, "BOOTX64.EFI").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
