//! An honest registry on loopback that counts what it serves and can be made slow.
//!
//! ```text
//! let shop = Shop::open();
//! let disk = shop.blob("application/…rootfs", Content::noise(1, 4 << 30));   // 4 GiB, no memory
//! let manifest = shop.document("application/…manifest.v1+json", &json!({… "layers": [disk]}));
//! shop.tag("1", &manifest);
//! shop.set(Pace { bytes_per_second: Some(50 << 20), ..Pace::default() });
//! …pull shop.reference("1")…
//! shop.requests(digest_of(&disk)); shop.bytes(digest_of(&disk));
//! ```
//!
//! It speaks HTTP/1.1 with kept connections, `HEAD` and one `Range`, a thread each connection. There
//! is one repository, `os`. A shop ends with its process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Content is made of blocks of so many bytes; all of a block is noise, or all of it is zeros.
const BLOCK: usize = 64 << 10;
/// Blocks of noise that all others are made of.
const NOISE_BLOCKS: usize = 16;
/// Most bytes that are sent at once.
const PIECE: usize = 1 << 20;

/// A registry.
#[derive(Debug)]
pub(crate) struct Shop {
    address: SocketAddr,
    shelf: Arc<Shelf>,
}

/// How a shop serves.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    /// Bytes of a blob that one connection gets in a second; none for as many as it takes.
    pub(crate) bytes_per_second: Option<u64>,
    /// How long each answer is waited with.
    pub(crate) delay: Duration,
    /// Whether `Range` is not understood, so that all of a blob is sent.
    pub(crate) ignores_ranges: bool,
    /// Offset in a blob before which its answers stop until the pace is another one.
    pub(crate) stops_at: Option<u64>,
}

/// The bytes of a blob, or how they are made.
#[derive(Debug, Clone)]
pub(crate) struct Content {
    head: Vec<u8>,
    size: u64,
    seed: u64,
    /// Of so many blocks, one is not zeros.
    one_of: u64,
}

/// A manifest or an index.
#[derive(Debug, Clone)]
struct Document {
    digest: String,
    media_type: String,
    bytes: Vec<u8>,
}

#[derive(Debug, Default)]
struct Shelf {
    /// By digest.
    blobs: Mutex<BTreeMap<String, Arc<Content>>>,
    /// By digest and by tag.
    documents: Mutex<BTreeMap<String, Document>>,
    /// By digest: requests and bytes.
    counts: Mutex<BTreeMap<String, (u64, u64)>>,
    pace: Mutex<Pace>,
    changed: Condvar,
}

impl Content {
    /// These bytes.
    pub(crate) fn bytes(bytes: &[u8]) -> Self {
        Self {
            head: bytes.to_vec(),
            size: bytes.len() as u64,
            seed: 0,
            one_of: 1,
        }
    }

    /// Bytes of which no two blocks are alike; no other seed has any of them.
    pub(crate) fn noise(seed: u64, size: u64) -> Self {
        Self {
            head: Vec::new(),
            size,
            seed,
            one_of: 1,
        }
    }

    /// The same, and only the first of each `one_of` blocks is not zeros.
    pub(crate) fn sparse(self, one_of: u64) -> Self {
        Self { one_of, ..self }
    }

    /// The same beginning with `head`.
    pub(crate) fn with_head(self, head: &[u8]) -> Self {
        let head = head.to_vec();
        Self { head, ..self }
    }

    /// Its size in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` with the bytes from `offset` on; all of them must be within the size.
    pub(crate) fn read(&self, offset: u64, buffer: &mut [u8]) {
        let mut done = 0;
        while done < buffer.len() {
            let at = offset + done as u64;
            let inside = usize::try_from(at % BLOCK as u64).unwrap();
            let count = (BLOCK - inside).min(buffer.len() - done);
            let part = &mut buffer[done..done + count];
            self.read_block(at / BLOCK as u64, inside, part);
            if let Some(head) = usize::try_from(at).ok().and_then(|at| self.head.get(at..)) {
                let count = head.len().min(part.len());
                part[..count].copy_from_slice(&head[..count]);
            }
            done += count;
        }
    }

    fn read_block(&self, number: u64, inside: usize, part: &mut [u8]) {
        if !number.is_multiple_of(self.one_of) {
            part.fill(0);
            return;
        }
        let kind = usize::try_from((number ^ self.seed) % NOISE_BLOCKS as u64).unwrap();
        let from = kind * BLOCK + inside;
        part.copy_from_slice(&noise()[from..from + part.len()]);
        let stamp = [self.seed.to_be_bytes(), number.to_be_bytes()].concat();
        if let Some(stamp) = stamp.get(inside..) {
            let count = stamp.len().min(part.len());
            part[..count].copy_from_slice(&stamp[..count]);
        }
    }

    /// The digest as descriptors have it.
    pub(crate) fn digest(&self) -> String {
        let mut hasher = Sha256::new();
        self.pieces(0, |piece| {
            hasher.update(piece);
            Ok(())
        })
        .expect("a hasher takes everything");
        format!("sha256:{}", hex::encode(hasher.finalize()))
    }

    /// Hands out what comes from `offset` on, in pieces.
    fn pieces(
        &self,
        mut offset: u64,
        mut take: impl FnMut(&[u8]) -> std::io::Result<()>,
    ) -> std::io::Result<()> {
        let mut buffer = vec![0; PIECE];
        while offset < self.size {
            let count = usize::try_from(self.size - offset).map_or(PIECE, |left| left.min(PIECE));
            self.read(offset, &mut buffer[..count]);
            take(&buffer[..count])?;
            offset += count as u64;
        }
        Ok(())
    }
}

/// What all noise is made of: made once, by a generator that needs no seed.
fn noise() -> &'static [u8] {
    static NOISE: OnceLock<Vec<u8>> = OnceLock::new();
    NOISE.get_or_init(|| {
        let mut number = 0x9e37_79b9_7f4a_7c15_u64;
        let mut bytes = Vec::with_capacity(NOISE_BLOCKS * BLOCK);
        while bytes.len() < NOISE_BLOCKS * BLOCK {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes
    })
}

/// The digest that a descriptor names.
pub(crate) fn digest_of(descriptor: &Value) -> &str {
    descriptor["digest"].as_str().unwrap()
}

impl Shop {
    /// Opens a registry that has nothing.
    pub(crate) fn open() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shelf = Arc::new(Shelf::default());
        let shared = Arc::clone(&shelf);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let shelf = Arc::clone(&shared);
                // A client that hangs up, or is killed, ends its thread.
                thread::spawn(move || drop(serve(&connection, &shelf)));
            }
        });
        Self { address, shelf }
    }

    /// Puts a blob on the shelf and returns its descriptor. It is hashed once, here.
    pub(crate) fn blob(&self, media_type: &str, content: Content) -> Value {
        let (digest, size) = (content.digest(), content.size);
        let mut blobs = self.shelf.blobs.lock().unwrap();
        blobs.insert(digest.clone(), Arc::new(content));
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    /// Puts a manifest or an index on the shelf and returns its descriptor.
    pub(crate) fn document(&self, media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let (digest, size) = (Content::bytes(&bytes).digest(), bytes.len());
        let document = Document {
            digest: digest.clone(),
            media_type: media_type.to_owned(),
            bytes,
        };
        let mut documents = self.shelf.documents.lock().unwrap();
        documents.insert(digest.clone(), document);
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    /// Lets `tag` lead to a document that is on the shelf.
    pub(crate) fn tag(&self, tag: &str, document: &Value) {
        let mut documents = self.shelf.documents.lock().unwrap();
        let entry = documents[digest_of(document)].clone();
        documents.insert(tag.to_owned(), entry);
    }

    /// Host, port, repository and `tag`.
    pub(crate) fn reference(&self, tag: &str) -> String {
        format!("{}/os:{tag}", self.address)
    }

    /// Serves by `pace` from now on; an answer that has stopped goes on by it.
    pub(crate) fn set(&self, pace: Pace) {
        *self.shelf.pace.lock().unwrap() = pace;
        self.shelf.changed.notify_all();
    }

    /// How many requests there were for the content of `digest`.
    pub(crate) fn requests(&self, digest: &str) -> u64 {
        self.count(digest).0
    }

    /// How many bytes of the content of `digest` were handed to the kernel, for all requests
    /// together. The last few MiB for a client that was killed may never have reached it.
    pub(crate) fn bytes(&self, digest: &str) -> u64 {
        self.count(digest).1
    }

    fn count(&self, digest: &str) -> (u64, u64) {
        let counts = self.shelf.counts.lock().unwrap();
        counts.get(digest).copied().unwrap_or_default()
    }

    /// Forgets all counts.
    pub(crate) fn forget(&self) {
        self.shelf.counts.lock().unwrap().clear();
    }
}

impl Shelf {
    fn pace(&self) -> Pace {
        *self.pace.lock().unwrap()
    }

    fn add(&self, digest: &str, requests: u64, bytes: u64) {
        let mut counts = self.counts.lock().unwrap();
        let count = counts.entry(digest.to_owned()).or_default();
        count.0 += requests;
        count.1 += bytes;
    }

    /// Waits while answers stop before `offset`. Returns how far they may go from there.
    fn wait_at(&self, offset: u64) -> u64 {
        let pace = self.pace.lock().unwrap();
        let is_stopped = |pace: &mut Pace| pace.stops_at.is_some_and(|stop| stop <= offset);
        let pace = self.changed.wait_while(pace, is_stopped).unwrap();
        pace.stops_at.unwrap_or(u64::MAX)
    }
}

/// What is read of a request.
#[derive(Debug)]
struct Request {
    method: String,
    path: String,
    range: Option<String>,
}

fn serve(connection: &TcpStream, shelf: &Shelf) -> std::io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection);
    while let Some(request) = read(&mut reader)? {
        thread::sleep(shelf.pace().delay);
        let wants_body = request.method != "HEAD";
        let path = request.path.strip_prefix("/v2/");
        match path.and_then(|path| path.strip_prefix("os/")) {
            None if path == Some("") => answer(connection, 200, &[], b"{}", wants_body)?,
            None => answer(connection, 404, &[], b"", wants_body)?,
            Some(rest) => match rest.split_once('/') {
                Some(("manifests", name)) => {
                    let documents = shelf.documents.lock().unwrap();
                    let document = documents.get(name).cloned();
                    drop(documents);
                    let Some(document) = document else {
                        answer(connection, 404, &[], b"", wants_body)?;
                        continue;
                    };
                    let Document {
                        digest,
                        media_type,
                        bytes,
                    } = document;
                    if wants_body {
                        shelf.add(&digest, 1, bytes.len() as u64);
                    }
                    let headers = [
                        ("Content-Type", media_type.as_str()),
                        ("Docker-Content-Digest", digest.as_str()),
                    ];
                    answer(connection, 200, &headers, &bytes, wants_body)?;
                }
                Some(("blobs", digest)) => {
                    let content = shelf.blobs.lock().unwrap().get(digest).cloned();
                    match content {
                        Some(content) => send(connection, shelf, &request, digest, &content)?,
                        None => answer(connection, 404, &[], b"", wants_body)?,
                    }
                }
                _ => answer(connection, 404, &[], b"", wants_body)?,
            },
        }
    }
    Ok(())
}

/// Reads a request without a body; none if the client is done.
fn read(reader: &mut BufReader<&TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        range: None,
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            return Ok(Some(request));
        };
        if name.eq_ignore_ascii_case("range") {
            request.range = Some(value.trim().to_owned());
        }
    }
}

fn answer(
    mut connection: &TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
    with_body: bool,
) -> std::io::Result<()> {
    let length = body.len();
    let mut text = format!("HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    let mut bytes = format!("{text}\r\n").into_bytes();
    if with_body {
        bytes.extend_from_slice(body);
    }
    connection.write_all(&bytes)
}

/// Sends a blob, or the part of it that is asked for.
fn send(
    mut connection: &TcpStream,
    shelf: &Shelf,
    request: &Request,
    digest: &str,
    content: &Content,
) -> std::io::Result<()> {
    let size = content.size;
    let asked = request
        .range
        .as_ref()
        .filter(|_| !shelf.pace().ignores_ranges);
    let (first, end, status) = match asked {
        None => (0, size, 200),
        Some(range) => {
            let range = range.strip_prefix("bytes=").unwrap_or_default();
            let (first, last) = range.split_once('-').unwrap_or_default();
            let first = first.parse().unwrap_or(size);
            let end = last.parse().map_or(size, |last: u64| size.min(last + 1));
            if first >= end {
                let range = format!("bytes */{size}");
                return answer(connection, 416, &[("Content-Range", &range)], b"", true);
            }
            (first, end, 206)
        }
    };
    let length = end - first;
    let mut head = format!(
        "HTTP/1.1 {status} Said\r\nContent-Type: application/octet-stream\r\n\
         Docker-Content-Digest: {digest}\r\nAccept-Ranges: bytes\r\nContent-Length: {length}\r\n"
    );
    if status == 206 {
        head += &format!("Content-Range: bytes {first}-{}/{size}\r\n", end - 1);
    }
    connection.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method == "HEAD" {
        return Ok(());
    }
    shelf.add(digest, 1, 0);
    let mut buffer = vec![0; PIECE.min(usize::try_from(length).unwrap_or(PIECE))];
    let mut offset = first;
    let (began, mut sent) = (Instant::now(), 0_u64);
    while offset < end {
        let mut count = (end - offset).min(PIECE as u64);
        count = count.min(shelf.wait_at(offset) - offset);
        if let Some(rate) = shelf.pace().bytes_per_second {
            // A piece each 10 ms.
            count = count.min((rate / 100).max(1));
            let due = Duration::from_micros(sent * 1_000_000 / rate);
            thread::sleep(due.saturating_sub(began.elapsed()));
        }
        let piece = &mut buffer[..usize::try_from(count).expect("it is at most a piece")];
        content.read(offset, piece);
        connection.write_all(piece)?;
        shelf.add(digest, 0, count);
        offset += count;
        sent += count;
    }
    Ok(())
}
