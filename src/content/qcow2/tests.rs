use super::*;
use crate::content::samples::{piece_of, qcow2 as image, qcow2_of, sample};

fn check(patches: &[(usize, &[u8])]) -> Result<Map, ContentError> {
    map_of(&image(patches))
}

fn map_of(content: &[u8]) -> Result<Map, ContentError> {
    read(&sample(content), &mut |piece| Ok(piece_of(content, piece)))
}

#[test]
fn plain_images_are_accepted() {
    let feature_names: &[u8] = &[0x68, 0x03, 0xf8, 0x57, 0, 0, 0, 48];
    let cases: [&[(usize, &[u8])]; 4] = [
        &[],
        &[(112, feature_names)],
        &[(100, &104_u32.to_be_bytes())],
        &[(79, &[8]), (104, &[1])],
    ];
    for patches in cases {
        assert_eq!(check(patches).unwrap().size_bytes(), 1 << 20);
    }
}

#[test]
fn headers_that_name_files_or_cannot_be_are_refused() {
    let extension = |kind: u32| -> Vec<u8> { [kind.to_be_bytes(), 8_u32.to_be_bytes()].concat() };
    let (data, backing, crypto, bitmaps, unknown, endless) = (
        extension(0x4441_5441),
        extension(0xE279_2ACA),
        extension(0x0537_BE77),
        extension(0x2385_2875),
        extension(0x1234_5678),
        [0x6803_F857_u32.to_be_bytes(), u32::MAX.to_be_bytes()].concat(),
    );
    let cases: &[&[(usize, &[u8])]] = &[
        &[(8, &1_u64.to_be_bytes())],
        &[(16, &9_u32.to_be_bytes())],
        &[(79, &[1])],
        &[(79, &[2])],
        &[(79, &[4])],
        &[(79, &[8])],
        &[(79, &[16])],
        &[(72, &[0x80])],
        &[(87, &[2])],
        &[(95, &[1])],
        &[(35, &[1])],
        &[(35, &[2])],
        &[(20, &0_u32.to_be_bytes())],
        &[(20, &8_u32.to_be_bytes())],
        &[(20, &22_u32.to_be_bytes())],
        &[(20, &64_u32.to_be_bytes())],
        &[(20, &255_u32.to_be_bytes())],
        &[(24, &0_u64.to_be_bytes())],
        &[(24, &513_u64.to_be_bytes())],
        &[(24, &(1_u64 << 50).to_be_bytes())],
        &[(24, &u64::MAX.to_be_bytes())],
        &[(36, &0_u32.to_be_bytes())],
        &[(36, &u32::MAX.to_be_bytes())],
        &[(40, &0_u64.to_be_bytes())],
        &[(40, &1_u64.to_be_bytes())],
        &[(40, &(u64::MAX << 16).to_be_bytes())],
        &[(48, &0_u64.to_be_bytes())],
        &[(56, &0_u32.to_be_bytes())],
        &[(56, &u32::MAX.to_be_bytes())],
        &[(60, &1_u32.to_be_bytes())],
        &[(64, &1_u64.to_be_bytes())],
        &[(96, &7_u32.to_be_bytes())],
        &[(100, &0_u32.to_be_bytes())],
        &[(100, &103_u32.to_be_bytes())],
        &[(100, &u32::MAX.to_be_bytes())],
        &[(104, &[7])],
        &[(111, &[1])],
        &[(4096, &[1])],
        &[(79, &[8]), (103, &[104])],
        &[(4, &0_u32.to_be_bytes())],
        &[(4, &1_u32.to_be_bytes())],
        &[(4, &2_u32.to_be_bytes())],
        &[(4, &4_u32.to_be_bytes())],
        &[(112, &data)],
        &[(112, &backing)],
        &[(112, &crypto)],
        &[(112, &bitmaps)],
        &[(112, &unknown)],
        &[(112, &endless)],
    ];
    for patches in cases {
        let result = check(patches);
        assert!(
            matches!(result, Err(ContentError::UnsafeQcow2 { .. })),
            "{patches:?}"
        );
    }
}

#[test]
fn a_file_that_ends_within_its_header_is_refused() {
    let content = image(&[]);
    for length in [4, 72, 100, 111] {
        assert!(map_of(&content[..length]).is_err(), "{length}");
    }
}

/// What is unpacked of `content`, where nothing is zeros.
fn unpacked(content: &[u8]) -> Result<Vec<u8>, ContentError> {
    let map = map_of(content)?;
    let mut disk = vec![0; usize::try_from(map.size_bytes()).unwrap()];
    let mut end = 0;
    map.unpack(
        0..map.size_bytes(),
        &mut |piece| Ok(piece_of(content, piece)),
        &mut |offset, bytes| {
            let offset = usize::try_from(offset).unwrap();
            assert!(offset >= end, "out of order");
            end = offset + bytes.len();
            disk[offset..end].copy_from_slice(bytes);
            Ok::<_, ContentError>(())
        },
    )?;
    Ok(disk)
}

/// An image of 1 MiB whose first two clusters are of data, and of which a part is other.
fn with(patches: &[(usize, u64)]) -> Vec<u8> {
    let mut content = qcow2_of(&[7; 0x2_0000]);
    for (offset, entry) in patches {
        content[*offset..][..8].copy_from_slice(&entry.to_be_bytes());
    }
    content
}

/// An image of 1 MiB with one compressed cluster of `packed` at the start of its data.
fn packed(packed: &[u8], zstd: bool) -> Vec<u8> {
    let sectors = u64::try_from(packed.len()).unwrap().div_ceil(512) - 1;
    let mut content = with(&[(L2, COMPRESSED | sectors << 54 | 0x5_0000), (L2 + 8, 0)]);
    content[0x5_0000..].fill(0);
    content[0x5_0000..][..packed.len()].copy_from_slice(packed);
    (content[79], content[104]) = (8 * u8::from(zstd), u8::from(zstd));
    content
}

const L1: usize = 0x3_0000;
const L2: usize = 0x4_0000;
const SOLE: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;

#[test]
fn plain_clusters_are_read_and_zeros_are_left_out() {
    let disk = unpacked(&with(&[])).unwrap();
    assert!(disk[..0x2_0000].iter().all(|byte| *byte == 7));
    assert!(disk[0x2_0000..].iter().all(|byte| *byte == 0));
    // Reads as zeros, though it has a place; and a last one that the file cuts off.
    let mut content = with(&[(L2, SOLE | 0x5_0001)]);
    content.truncate(0x6_0200);
    let disk = unpacked(&content).unwrap();
    assert!(disk[..0x1_0000].iter().all(|byte| *byte == 0));
    assert!(disk[0x1_0000..0x1_0200].iter().all(|byte| *byte == 7));
    assert!(disk[0x1_0200..].iter().all(|byte| *byte == 0));
}

#[test]
fn compressed_clusters_are_unpacked_whole_or_refused() {
    let cluster: Vec<u8> = (0..0x1_0000_u32).map(|i| (i / 7 % 251) as u8).collect();
    let deflated = miniz_oxide::deflate::compress_to_vec(&cluster, 6);
    let disk = unpacked(&packed(&deflated, false)).unwrap();
    assert!(disk[..0x1_0000] == cluster && disk[0x1_0000..].iter().all(|byte| *byte == 0));
    let options = ruzstd::encoding::CompressionLevel::Fastest;
    let frame = ruzstd::encoding::compress_to_vec(&cluster[..], options);
    let disk = unpacked(&packed(&frame, true)).unwrap();
    assert!(disk[..0x1_0000] == cluster);
    let half = miniz_oxide::deflate::compress_to_vec(&cluster[..0x8000], 6);
    let endless_window = [&frame[..4], &[0, 0xff], &frame[5..]].concat();
    for content in [
        packed(&half, false),
        packed(&deflated[..deflated.len() / 2], false),
        packed(b"\xff\xff\xff\xff", false),
        packed(&frame, false),
        packed(&deflated, true),
        packed(&frame[..frame.len() / 2], true),
        packed(&endless_window, true),
    ] {
        let error = unpacked(&content).unwrap_err();
        let end = "is a qcow2 image with a compressed cluster at 327680 that does not unpack";
        assert!(
            error.is_unsafe() && error.to_string().ends_with(end),
            "{error}"
        );
    }
}

#[test]
fn tables_that_lead_where_no_data_is_are_refused() {
    const L1_IN_USE: &str = "an L2 table in a cluster that has another use";
    const DATA_IN_USE: &str = "a cluster of data in a cluster that has another use";
    let packed = |offset: u64| COMPRESSED | offset;
    for (patches, expected) in [
        (vec![(L1, SOLE | 0x4_0001)], "reserved bits in its L1 table"),
        (vec![(L1, SOLE)], "reserved bits in its L1 table"),
        (
            vec![(L1, SOLE | 0x4_0200)],
            "an L2 table in a cluster that is not at the start of one",
        ),
        (
            vec![(L1, SOLE | 0x8_0000)],
            "an L2 table beyond the end of the file",
        ),
        (
            vec![(L1, SOLE | 0xff_ffff_ffff_0000)],
            "an L2 table beyond the end of the file",
        ),
        (vec![(L1, SOLE | 0x3_0000)], L1_IN_USE),
        (vec![(L1, SOLE | 0x1_0000)], L1_IN_USE),
        (vec![(L2, SOLE | 0x5_0002)], "reserved bits in an L2 table"),
        (vec![(L2, SOLE)], "reserved bits in an L2 table"),
        (
            vec![(L2, SOLE | 0x5_0200)],
            "a cluster of data in a cluster that is not at the start of one",
        ),
        (
            vec![(L2, SOLE | 0x8_0000)],
            "a cluster of data in a cluster beyond the end of the file",
        ),
        (vec![(L2, SOLE | 0x6_0000)], DATA_IN_USE),
        (vec![(L2, SOLE | 0x4_0000)], DATA_IN_USE),
        (vec![(L2, SOLE | 0x3_0000)], DATA_IN_USE),
        (vec![(L2, SOLE | 0x1_0000)], DATA_IN_USE),
        // One behind the end of the disk is judged as well.
        (vec![(L2 + 8 * 100, SOLE | 0x6_0000)], DATA_IN_USE),
        (vec![(0x1_0000, 0x5_0000)], DATA_IN_USE),
        (
            vec![(0x1_0000, 0x5_0001)],
            "reserved bits in its refcount table",
        ),
        (
            vec![(0x1_0000, 0x8_0000)],
            "a refcount block beyond the end of the file",
        ),
        (
            vec![(L2, packed(0x5_0000)), (L2 + 8, packed(0x5_0000))],
            "two compressed clusters in one place",
        ),
        (
            vec![(L2, packed(0x6_0000))],
            "a compressed cluster in a place that has another use",
        ),
        (
            vec![(L2, packed(0))],
            "a compressed cluster in a place that has another use",
        ),
        (
            vec![(L2, packed(0x8_0000))],
            "a compressed cluster beyond the end of the file",
        ),
        (
            vec![(L2, SOLE | packed(0x5_0000))],
            "reserved bits in an L2 table",
        ),
    ] {
        let error = map_of(&with(&patches)).unwrap_err().to_string();
        assert!(
            error.ends_with(&format!("is a qcow2 image with {expected}")),
            "{error}"
        );
    }
}

#[test]
fn compressed_clusters_may_share_the_sector_between_them() {
    let first = COMPRESSED | 1 << 54 | 0x5_0000;
    let next = COMPRESSED | 0x5_0201;
    assert!(map_of(&with(&[(L2, first), (L2 + 8, next)])).is_ok());
    let within = COMPRESSED | 0x5_0200;
    assert!(map_of(&with(&[(L2, first), (L2 + 8, within)])).is_err());
}
