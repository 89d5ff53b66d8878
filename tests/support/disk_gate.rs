//! What `scripts/bench disk-gate` measures: files are made in one process and judged in another, so
//! that the memory of the one is not taken for that of the other. Prints JSON, a line each.
//!
//! ```text
//! disk-gate make DIRECTORY         the files of rows 76 to 110, and one as bad as can be
//! disk-gate judge FILE...          what the gate says, how long it takes, and the most memory
//! disk-gate unpack STORE IMAGE     puts the image into a store, and unpacks it there
//! ```

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a tool of the tests"
)]

use std::fs;
use std::path::Path;
use std::time::Instant;

use ironboot::oci::Descriptor;
use ironboot::stage;
use ironboot::store::{Claim, MakeRaw, Store};
use serde_json::json;

#[path = "corpus.rs"]
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
mod corpus;

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["make", directory] => make(Path::new(directory)),
        ["judge", files @ ..] => judge(files),
        ["unpack", store, image] => unpack(Path::new(store), Path::new(image)),
        _ => panic!("disk-gate make DIRECTORY | judge FILE... | unpack STORE IMAGE"),
    }
}

fn make(directory: &Path) {
    for disk in corpus::hostile() {
        let path = directory.join(format!("{}.img", disk.name));
        fs::write(&path, disk.content).unwrap();
        println!(
            "{}",
            json!({"path": path, "hostile": true, "row": disk.row, "words": disk.words})
        );
    }
    for (_, path, _) in corpus::honest::controls(directory) {
        println!("{}", json!({"path": path, "hostile": false, "row": 110}));
    }
    let path = directory.join("worst.img");
    corpus::honest::worst(&path);
    println!("{}", json!({"path": path, "worst": true}));
}

fn judge(files: &[&str]) {
    for file in files {
        let began = Instant::now();
        let judged = corpus::look(Path::new(file));
        let looked = began.elapsed().as_secs_f64();
        let judged = judged.and_then(|content| corpus::unpack_all(Path::new(file), content));
        let words = judged.err().map(|error| error.to_string());
        let seconds = began.elapsed().as_secs_f64();
        println!(
            "{}",
            json!({"path": file, "words": words, "look_seconds": looked, "seconds": seconds})
        );
    }
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = peak
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    println!("{}", json!({"peak_bytes": kib << 10}));
}

fn unpack(store: &Path, image: &Path) {
    let bytes = fs::read(image).unwrap();
    let disk = Descriptor::of("application/octet-stream", &bytes);
    let store = Store::at(store.to_owned());
    let lease = store.lease([disk.digest]).unwrap();
    if let Claim::Missing(mut ingest) = lease.claim(&disk).unwrap() {
        ingest.write(&bytes).unwrap();
        ingest.commit().unwrap();
    }
    drop(bytes);
    let began = Instant::now();
    let content = stage::disk(&disk, &|blob| lease.blob(blob)).unwrap();
    stage::unpack(
        &disk,
        &content.qcow2.unwrap(),
        &lease,
        MakeRaw::IfMissing,
        &mut |_| (),
    )
    .unwrap();
    let seconds = began.elapsed().as_secs_f64();
    let raw = store.raw_path(&disk.digest);
    println!("{}", json!({"raw": raw, "seconds": seconds}));
}
