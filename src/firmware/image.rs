//! Whether the files of a firmware are there, and of sizes that a machine takes.
//!
//! The sizes are QEMU's: `pc_system_flash_map` and `x86_bios_rom_init` for `q35`, the two flash
//! banks of `virt`. Wrong ones end in QEMU's refusal or, worse, in a guest that says nothing.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use crate::domain::{DiskFormat, Machine};
use crate::firmware::{FirmwareFiles, Unfit};

/// Most that `q35` maps below 4 GiB.
const MAX_AMD64_BYTES: u64 = 8 << 20;
/// Each flash bank of `virt`, which an image must fill.
const ARM64_BANK_BYTES: u64 = 64 << 20;

const QCOW2_MAGIC: &[u8; 4] = b"QFI\xfb";

/// Errors unless all files are there, readable and fit each other and `machine`.
pub(super) fn check(files: &FirmwareFiles, machine: Machine) -> Result<(), Unfit> {
    match files {
        FirmwareFiles::Split {
            code,
            vars_template,
            format,
        } => {
            let code_bytes = flash_size(code, *format)?;
            let vars_bytes = flash_size(vars_template, *format)?;
            expect_flash(code, code_bytes, machine)?;
            expect_flash(vars_template, vars_bytes, machine)?;
            expect_code(code, *format)?;
            let sum = code_bytes + vars_bytes;
            // edk2 cuts its image of 1, 2 or 4 MiB in two.
            let is_whole = sum.is_power_of_two() && sum <= MAX_AMD64_BYTES;
            if machine == Machine::Amd64 && !is_whole {
                return Err(Unfit::Pair {
                    code_bytes,
                    vars_bytes,
                });
            }
            Ok(())
        }
        FirmwareFiles::Stateless { code, format } => {
            expect_flash(code, flash_size(code, *format)?, machine)?;
            expect_code(code, *format)
        }
        FirmwareFiles::Combined { template, format } => {
            let size_bytes = flash_size(template, *format)?;
            expect_flash(template, size_bytes, machine)?;
            expect(
                template,
                size_bytes,
                size_bytes.is_power_of_two(),
                "a power of two, as code and variables are together",
            )
        }
        FirmwareFiles::Memory { rom } => {
            let (file, size_bytes) = open(rom)?;
            if starts_as_qcow2(&file) {
                let path = rom.clone();
                return Err(Unfit::Qcow2Rom { path });
            }
            match machine {
                Machine::Amd64 => expect(
                    rom,
                    size_bytes,
                    size_bytes.is_multiple_of(64 << 10) && is_within(size_bytes, MAX_AMD64_BYTES),
                    "a multiple of 64 KiB up to 8 MiB, as a ROM is",
                ),
                Machine::Arm64 => {
                    expect(
                        rom,
                        size_bytes,
                        is_within(size_bytes, ARM64_BANK_BYTES),
                        "up to 64 MiB, as a ROM is",
                    )?;
                    // On amd64 a ROM may begin with variables: its code is at the end.
                    expect_code(rom, DiskFormat::Raw)
                }
            }
        }
    }
}

/// Opens a regular file for reading; its size as well. Never waits for anybody to write to a pipe.
pub(super) fn open(path: &Path) -> Result<(File, u64), Unfit> {
    let path = path.to_owned();
    let unreadable = |error: &io::Error| Unfit::Unreadable {
        path: path.clone(),
        reason: error.to_string(),
    };
    if path.is_relative() {
        return Err(Unfit::Relative { path });
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open(&path)
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Unfit::Missing { path: path.clone() },
            _ => unreadable(&error),
        })?;
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        return Err(Unfit::NotAFile { path });
    }
    Ok((file, metadata.len()))
}

/// The size of a flash image as the machine sees it.
fn flash_size(path: &Path, format: DiskFormat) -> Result<u64, Unfit> {
    let (file, size_bytes) = open(path)?;
    match format {
        DiskFormat::Raw => Ok(size_bytes),
        DiskFormat::Qcow2 => virtual_size(&file).ok_or_else(|| Unfit::NotQcow2 {
            path: path.to_owned(),
        }),
    }
}

/// Errors if an image of code begins with a store of variables: a firmware volume of that type.
///
/// Format: UEFI Platform Initialization 1.7, volume 3, 3.2.1; the type is edk2's
/// `EFI_SYSTEM_NV_DATA_FV_GUID`.
fn expect_code(path: &Path, format: DiskFormat) -> Result<(), Unfit> {
    const NV_DATA: [u8; 16] = [
        0x8d, 0x2b, 0xf1, 0xff, 0x96, 0x76, 0x8b, 0x4c, 0xa9, 0x85, 0x27, 0x47, 0x07, 0x5b, 0x4f,
        0x50,
    ];
    let (file, _) = open(path)?;
    let mut kind = [0; 16];
    let is_read = format == DiskFormat::Raw && file.read_exact_at(&mut kind, 16).is_ok();
    if is_read && kind == NV_DATA {
        let path = path.to_owned();
        return Err(Unfit::NoCode { path });
    }
    Ok(())
}

/// The virtual size in the header of a qcow2 image without a backing file.
///
/// Format: QEMU's docs/interop/qcow2.txt; all numbers are big endian.
fn virtual_size(file: &File) -> Option<u64> {
    let mut header = [0; 32];
    file.read_exact_at(&mut header, 0).ok()?;
    let number = |at: usize| Some(u64::from_be_bytes(header.get(at..at + 8)?.try_into().ok()?));
    let backing_file_offset = number(8)?;
    let is_whole = header.starts_with(QCOW2_MAGIC) && backing_file_offset == 0;
    number(24).filter(|_| is_whole)
}

fn starts_as_qcow2(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0).is_ok() && magic == *QCOW2_MAGIC
}

fn expect_flash(path: &Path, size_bytes: u64, machine: Machine) -> Result<(), Unfit> {
    match machine {
        Machine::Amd64 => expect(
            path,
            size_bytes,
            size_bytes.is_multiple_of(4096) && is_within(size_bytes, MAX_AMD64_BYTES),
            "a multiple of 4096 up to 8 MiB, as flash of x86_64 is",
        ),
        Machine::Arm64 => expect(
            path,
            size_bytes,
            size_bytes == ARM64_BANK_BYTES,
            "67108864, as flash of aarch64 is",
        ),
    }
}

fn is_within(size_bytes: u64, limit_bytes: u64) -> bool {
    (1..=limit_bytes).contains(&size_bytes)
}

fn expect(path: &Path, size_bytes: u64, fits: bool, expected: &'static str) -> Result<(), Unfit> {
    if fits {
        return Ok(());
    }
    Err(Unfit::Size {
        path: path.to_owned(),
        size_bytes,
        expected,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, symlink};

    use super::*;
    use crate::firmware::samples::{BANK, CODE_2M, CODE_4M, Host, MIB, VARS_2M, VARS_4M};

    #[test]
    fn variables_in_the_place_of_code_are_refused() {
        let host = Host::new();
        host.image("v4", VARS_4M);
        let path = host.path("images/v4");
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        let code = FirmwareFiles::Stateless {
            code: path.clone(),
            format: DiskFormat::Raw,
        };
        assert_eq!(check(&code, Machine::Amd64), Ok(()));
        let kind = b"\x8d\x2b\xf1\xff\x96\x76\x8b\x4c\xa9\x85\x27\x47\x07\x5b\x4f\x50";
        file.write_all_at(kind, 16).unwrap();
        let refused = Err(Unfit::NoCode { path: path.clone() });
        assert_eq!(check(&code, Machine::Amd64), refused);
        let rom = FirmwareFiles::Memory { rom: path };
        assert_eq!(check(&rom, Machine::Arm64), refused);
    }

    #[test]
    fn images_of_sizes_that_a_machine_does_not_take_are_refused() {
        let host = Host::new();
        host.qcow2("c4.qcow2", CODE_4M, 0);
        host.qcow2("v4.qcow2", VARS_4M, 0);
        host.qcow2("bank.qcow2", BANK, 0);
        host.qcow2("endless.qcow2", u64::MAX, 0);
        host.qcow2("overlay.qcow2", CODE_4M, 104);
        host.image("short.qcow2", 31);
        host.image("raw.qcow2", CODE_4M);
        for (name, size_bytes) in [
            ("c2", CODE_2M),
            ("v2", VARS_2M),
            ("c4", CODE_4M),
            ("v4", VARS_4M),
            ("4m", 4 * MIB),
            ("8m", 8 * MIB),
            ("16m", 16 * MIB),
            ("bank", BANK),
            ("larger", BANK + 4096),
            ("odd", CODE_4M + 1),
            ("page", 4096),
            ("none", 0),
        ] {
            host.image(name, size_bytes);
        }
        symlink("/dev/zero", host.path("images/zero")).unwrap();
        let raw = |code, vars| host.split(code, vars);
        let qcow2 = |code, vars| host.flash("split", "qcow2", code, Some(vars));
        let stateless = |code| host.flash("stateless", "raw", code, None);
        let combined = |code| host.flash("combined", "raw", code, None);
        let rom = |rom| host.memory(rom);
        let pair = |code: u64, vars: u64| {
            format!(
                "code of {code} and variables of {vars} bytes are not of one build, \
                 for their sum is no power of two up to 8 MiB"
            )
        };
        let size = |name: &str, bytes: u64, expected: &str| {
            format!("image has {bytes} bytes, not {expected}: images/{name}")
        };
        let (pages, bank) = (
            "a multiple of 4096 up to 8 MiB, as flash of x86_64 is",
            "67108864, as flash of aarch64 is",
        );
        let (whole, rom_size) = (
            "a power of two, as code and variables are together",
            "a multiple of 64 KiB up to 8 MiB, as a ROM is",
        );
        let fits = String::new;
        let cases = [
            (raw("c4", "v4"), fits(), size("c4", CODE_4M, bank)),
            (raw("c2", "v2"), fits(), size("c2", CODE_2M, bank)),
            (
                raw("c4", "v2"),
                pair(CODE_4M, VARS_2M),
                size("c4", CODE_4M, bank),
            ),
            (
                raw("c2", "v4"),
                pair(CODE_2M, VARS_4M),
                size("c2", CODE_2M, bank),
            ),
            (
                raw("8m", "8m"),
                pair(8 * MIB, 8 * MIB),
                size("8m", 8 * MIB, bank),
            ),
            (
                raw("odd", "v4"),
                size("odd", CODE_4M + 1, pages),
                size("odd", CODE_4M + 1, bank),
            ),
            (
                raw("c4", "none"),
                size("none", 0, pages),
                size("c4", CODE_4M, bank),
            ),
            (raw("bank", "bank"), size("bank", BANK, pages), fits()),
            (
                raw("bank", "larger"),
                size("bank", BANK, pages),
                size("larger", BANK + 4096, bank),
            ),
            (
                raw("c4", "gone"),
                "no such file: images/gone".to_owned(),
                "no such file: images/gone".to_owned(),
            ),
            (
                raw("zero", "v4"),
                "not a regular file: images/zero".to_owned(),
                "not a regular file: images/zero".to_owned(),
            ),
            (
                qcow2("c4.qcow2", "v4.qcow2"),
                fits(),
                size("c4.qcow2", CODE_4M, bank),
            ),
            (
                qcow2("bank.qcow2", "bank.qcow2"),
                size("bank.qcow2", BANK, pages),
                fits(),
            ),
            (
                qcow2("c4.qcow2", "endless.qcow2"),
                size("endless.qcow2", u64::MAX, pages),
                size("c4.qcow2", CODE_4M, bank),
            ),
            (stateless("c4"), fits(), size("c4", CODE_4M, bank)),
            (stateless("bank"), size("bank", BANK, pages), fits()),
            (combined("4m"), fits(), size("4m", 4 * MIB, bank)),
            (
                combined("c4"),
                size("c4", CODE_4M, whole),
                size("c4", CODE_4M, bank),
            ),
            (combined("bank"), size("bank", BANK, pages), fits()),
            (rom("4m"), fits(), fits()),
            (rom("c2"), fits(), fits()),
            (rom("c4"), size("c4", CODE_4M, rom_size), fits()),
            (rom("16m"), size("16m", 16 * MIB, rom_size), fits()),
            (
                rom("none"),
                size("none", 0, rom_size),
                size("none", 0, "up to 64 MiB, as a ROM is"),
            ),
            (
                rom("larger"),
                size("larger", BANK + 4096, rom_size),
                size("larger", BANK + 4096, "up to 64 MiB, as a ROM is"),
            ),
        ];
        for (mapping, amd64, arm64) in cases {
            host.describe("usr/50.json", &mapping, "");
            for (machine, expected) in [(Machine::Amd64, amd64), (Machine::Arm64, arm64)] {
                let verdict = host.survey(machine).considered.remove(0).verdict;
                let actual = verdict.err().map(|unfit| host.short(&unfit.to_string()));
                assert_eq!(
                    actual.unwrap_or_default(),
                    expected,
                    "{mapping} {machine:?}"
                );
            }
        }
        for (code, vars) in [
            ("overlay.qcow2", "v4.qcow2"),
            ("short.qcow2", "v4.qcow2"),
            ("raw.qcow2", "v4.qcow2"),
        ] {
            host.describe("usr/50.json", &qcow2(code, vars), "");
            let path = host.path("images").join(code);
            let verdict = host.survey(Machine::Amd64).considered.remove(0).verdict;
            assert_eq!(verdict, Err(Unfit::NotQcow2 { path }));
        }
        host.describe("usr/50.json", &rom("c4.qcow2"), "");
        let path = host.path("images/c4.qcow2");
        let verdict = host.survey(Machine::Amd64).considered.remove(0).verdict;
        assert_eq!(verdict, Err(Unfit::Qcow2Rom { path }));
    }
}
