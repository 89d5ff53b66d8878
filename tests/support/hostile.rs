//! A loopback HTTP server that answers as a script says, however wrong, and records what it got.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A server; ends with the process.
#[derive(Debug)]
pub(crate) struct Hostile {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: Vec<(String, String)>,
    /// As much of it as was taken.
    pub(crate) body: Vec<u8>,
}

/// What is answered.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    take: Take,
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
}

/// How a request's body is read.
#[derive(Debug, Clone, Copy)]
enum Take {
    All,
    /// So many bytes; then the connection breaks.
    Only(usize),
    /// All, at most so many bytes a second.
    Slowly(usize),
}

#[derive(Debug, Clone)]
enum Body {
    /// With its Content-Length.
    Whole(Vec<u8>),
    /// Chunked, hence of no announced length.
    Chunked(Vec<u8>),
    /// Announced as longer than it is.
    Cut(Vec<u8>, usize),
    /// Announced as longer than it is, and the connection is kept.
    Stalled(Vec<u8>, usize),
    /// With its Content-Length, at most so many bytes a second.
    Slow(Vec<u8>, usize),
    /// A byte at a time, with a pause after each.
    Dripped(Vec<u8>, Duration),
    /// Chunks without end.
    Endless,
    /// Instead of headers, ten megabytes of them.
    HeaderFlood,
}

impl Hostile {
    /// Starts a server whose `script` gets each request and the number of those before it to
    /// the same path.
    pub(crate) fn start(script: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (script, record) = (Arc::new(script), Arc::clone(&requests));
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let (script, record) = (Arc::clone(&script), Arc::clone(&record));
                thread::spawn(move || serve(connection, &*script, &record));
            }
        });
        Self { address, requests }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// What has come so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// How often `path` has been asked for.
    pub(crate) fn count(&self, path: &str) -> usize {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|r| r.path == path).count()
    }
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let (_, value) = headers.find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(value)
    }
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self {
            take: Take::All,
            status,
            headers: Vec::new(),
            body: Body::Whole(Vec::new()),
        }
    }

    /// No answer: the connection breaks when so many bytes of the request's body have come.
    pub(crate) fn broken_after(bytes: usize) -> Self {
        Self {
            take: Take::Only(bytes),
            ..Self::status(500)
        }
    }

    /// Takes at most so many bytes of the request's body a second.
    pub(crate) fn taking_slowly(mut self, bytes_per_second: usize) -> Self {
        self.take = Take::Slowly(bytes_per_second);
        self
    }

    pub(crate) fn ok(bytes: &[u8]) -> Self {
        Self::status(200).bytes(bytes)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.body = Body::Whole(bytes.to_vec());
        self
    }

    pub(crate) fn chunked(mut self, bytes: &[u8]) -> Self {
        self.body = Body::Chunked(bytes.to_vec());
        self
    }

    pub(crate) fn cut(mut self, bytes: &[u8], announced: usize) -> Self {
        self.body = Body::Cut(bytes.to_vec(), announced);
        self
    }

    pub(crate) fn stalled(mut self, bytes: &[u8], announced: usize) -> Self {
        self.body = Body::Stalled(bytes.to_vec(), announced);
        self
    }

    pub(crate) fn slow(mut self, bytes: &[u8], bytes_per_second: usize) -> Self {
        self.body = Body::Slow(bytes.to_vec(), bytes_per_second);
        self
    }

    pub(crate) fn dripped(mut self, bytes: &[u8], pause: Duration) -> Self {
        self.body = Body::Dripped(bytes.to_vec(), pause);
        self
    }

    pub(crate) fn endless(mut self) -> Self {
        self.body = Body::Endless;
        self
    }

    pub(crate) fn header_flood(mut self) -> Self {
        self.body = Body::HeaderFlood;
        self
    }
}

fn serve(
    mut connection: TcpStream,
    script: &dyn Fn(&Request, usize) -> Reply,
    record: &Mutex<Vec<Request>>,
) {
    let mut reader = BufReader::new(connection.try_clone().unwrap());
    let Some(request) = read(&connection, &mut reader) else {
        return;
    };
    let (place, before) = {
        let mut requests = record.lock().unwrap();
        let before = requests.iter().filter(|r| r.path == request.path).count();
        requests.push(request.clone());
        (requests.len() - 1, before)
    };
    let reply = script(&request, before);
    let Some(body) = take(&request, &mut reader, reply.take) else {
        return;
    };
    record.lock().unwrap()[place].body = body;
    if let Take::Only(_) = reply.take {
        return;
    }
    // A client that hangs up on us is what most scripts want to see.
    drop(write(&mut connection, &request, reply));
}

/// Reads a request up to its body; none of a TLS handshake.
fn read(connection: &TcpStream, reader: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut first = [0];
    connection.peek(&mut first).ok()?;
    if !first[0].is_ascii_uppercase() {
        return None;
    }
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split(' ');
    let (method, target) = (words.next()?.to_owned(), words.next()?);
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers: Vec::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        let header = (name.to_owned(), value.trim().to_owned());
        request.headers.push(header);
    }
    Some(request)
}

/// Reads the body of a request, or as much of it as is to be taken.
fn take(request: &Request, reader: &mut BufReader<TcpStream>, take: Take) -> Option<Vec<u8>> {
    let length = request.header("content-length");
    let mut length: usize = length.map_or(0, |length| length.parse().unwrap());
    let mut piece_bytes = length;
    match take {
        Take::All => {}
        Take::Only(bytes) => length = length.min(bytes),
        Take::Slowly(bytes_per_second) => piece_bytes = (bytes_per_second / 20).max(1),
    }
    let mut body = vec![0; length];
    for piece in body.chunks_mut(piece_bytes.max(1)) {
        reader.read_exact(piece).ok()?;
        if let Take::Slowly(_) = take {
            thread::sleep(Duration::from_millis(50));
        }
    }
    Some(body)
}

fn write(connection: &mut TcpStream, request: &Request, reply: Reply) -> std::io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {} Scripted\r\nConnection: close\r\n",
        reply.status
    );
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let (bytes, announced) = match reply.body {
        Body::Whole(bytes) => {
            let length = bytes.len();
            (bytes, Some(length))
        }
        Body::Cut(bytes, announced) => (bytes, Some(announced)),
        Body::Stalled(bytes, announced) => {
            write!(connection, "{head}Content-Length: {announced}\r\n\r\n")?;
            connection.write_all(&bytes)?;
            // Until the client has had enough.
            connection.read(&mut [0]).map(drop)?;
            return Ok(());
        }
        Body::Slow(bytes, bytes_per_second) => {
            write!(connection, "{head}Content-Length: {}\r\n\r\n", bytes.len())?;
            let began = Instant::now();
            let mut sent = 0;
            for piece in bytes.chunks(64 << 10) {
                connection.write_all(piece)?;
                sent += piece.len();
                let due = Duration::from_secs_f64(sent as f64 / bytes_per_second as f64);
                thread::sleep(due.saturating_sub(began.elapsed()));
            }
            return Ok(());
        }
        Body::Chunked(bytes) => {
            write!(connection, "{head}Transfer-Encoding: chunked\r\n\r\n")?;
            for chunk in bytes.chunks(50_000) {
                write!(connection, "{:x}\r\n", chunk.len())?;
                connection.write_all(chunk)?;
                connection.write_all(b"\r\n")?;
            }
            return connection.write_all(b"0\r\n\r\n");
        }
        Body::Dripped(bytes, pause) => {
            let length = bytes.len();
            write!(connection, "{head}Content-Length: {length}\r\n\r\n")?;
            for byte in bytes {
                connection.write_all(&[byte])?;
                // The pause is what is tested.
                thread::sleep(pause);
            }
            return Ok(());
        }
        Body::Endless => {
            write!(connection, "{head}Transfer-Encoding: chunked\r\n\r\n")?;
            let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
            // 2 GiB: far beyond every limit, should nobody hang up.
            for _ in 0..65536 {
                connection.write_all(chunk.as_bytes())?;
            }
            return Ok(());
        }
        Body::HeaderFlood => {
            connection.write_all(head.as_bytes())?;
            for number in 0..10_240 {
                write!(connection, "X-{number}: {}\r\n", "x".repeat(1000))?;
            }
            return connection.write_all(b"\r\n");
        }
    };
    if let Some(announced) = announced {
        head += &format!("Content-Length: {announced}\r\n");
    }
    connection.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method != "HEAD" {
        connection.write_all(&bytes)?;
    }
    Ok(())
}
