//! A blob whose connection is slow is fetched in parts over several, in its order.

use ironboot::oci::Descriptor;

use crate::{Hostile, Reply, Request, image, read, serve};

/// So slow that one connection is not enough, and so large that several are worth it.
const BYTES_PER_SECOND: usize = 8 << 20;
const BYTES: usize = 48 << 20;
const WORDS: u32 = 12 << 20;

fn content() -> Vec<u8> {
    (0..WORDS).flat_map(u32::to_le_bytes).collect()
}

/// The range that a request asks for, its end excluded.
fn range(request: &Request) -> Option<(usize, Option<usize>)> {
    let (first, last) = request
        .header("range")?
        .strip_prefix("bytes=")?
        .split_once('-')?;
    let end = (!last.is_empty()).then(|| last.parse::<usize>().unwrap() + 1);
    Some((first.parse().unwrap(), end))
}

/// An honest answer, slow.
fn answer(request: &Request, content: &[u8]) -> Reply {
    let Some((start, end)) = range(request) else {
        return Reply::status(200).slow(content, BYTES_PER_SECOND);
    };
    let end = end.unwrap_or(content.len());
    Reply::status(206)
        .header(
            "Content-Range",
            &format!("bytes {start}-{}/{}", end - 1, content.len()),
        )
        .slow(&content[start..end], BYTES_PER_SECOND)
}

/// How many parts were asked for, each of them bounded.
fn parts(server: &Hostile) -> usize {
    let requests = server.requests();
    let ranges = requests.iter().filter_map(range);
    ranges
        .filter(|(start, end)| end.is_some_and(|end| end - start <= 4 << 20))
        .count()
}

#[tokio::test]
async fn a_slow_blob_comes_in_parts() {
    let content = content();
    let copy = content.clone();
    let server = serve(move |_, request, _| answer(request, &copy));
    let blob = Descriptor::of("x", &content);
    let (offset, bytes, result) = read(&image(&server), &blob, 0).await;
    result.unwrap();
    assert!(offset == 0 && bytes == content);
    assert!(parts(&server) >= 4, "{}", parts(&server));
    // Nothing is asked for twice.
    let mut ranges: Vec<_> = server.requests().iter().filter_map(range).collect();
    ranges.sort_unstable();
    let starts: std::collections::BTreeSet<_> = ranges.iter().map(|(start, _)| start).collect();
    assert_eq!(starts.len(), ranges.len());
}

#[tokio::test]
async fn who_has_no_parts_is_read_to_the_end() {
    let content = content();
    let copy = content.clone();
    let server = serve(move |_, _, _| Reply::status(200).slow(&copy, BYTES_PER_SECOND));
    let blob = Descriptor::of("x", &content);
    let (_, bytes, result) = read(&image(&server), &blob, 0).await;
    result.unwrap();
    assert!(bytes == content);
    // The open answer had everything all the time; nobody began anew.
    assert_eq!(
        server
            .requests()
            .iter()
            .filter(|r| range(r).is_none())
            .count(),
        1
    );
}

#[tokio::test]
async fn a_part_that_fails_ends_the_stream_where_it_can_be_resumed() {
    let content = content();
    let copy = content.clone();
    let server = serve(move |_, request, _| match range(request) {
        // Asked for when the first answer has been left.
        Some((start, Some(_))) if start >= 40 << 20 => Reply::status(404),
        _ => answer(request, &copy),
    });
    let blob = Descriptor::of("x", &content);
    let (_, mut bytes, result) = read(&image(&server), &blob, 0).await;
    result.unwrap_err();
    assert!(!bytes.is_empty() && bytes.len() < BYTES && bytes.len() >= 16 << 20);
    let (offset, rest, result) = read(&image(&server), &blob, bytes.len() as u64).await;
    drop(result);
    assert_eq!(offset, bytes.len() as u64);
    bytes.extend(rest);
    assert!(content.starts_with(&bytes));
}
