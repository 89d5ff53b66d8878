//! Blocks to the disk on a thread of their own, past the page cache, while the next are hashed.
//!
//! A large blob goes to the disk as it comes (`O_DIRECT`): the sync at its end has nothing left to
//! do, the memory of running guests stays cached, and a copy by the kernel is saved. Where the file
//! system does not do that, and for what is smaller than a block, the page cache is used.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::{Errno, pwrite};

/// Bytes of a block.
pub(in crate::store) const BLOCK_BYTES: usize = 1 << 20;
/// Blocks that a blob has: one is filled, the others are written or wait for it.
const BLOCKS: usize = 5;
/// A run of zeros of this many bytes becomes a hole.
const HOLE_BYTES: usize = 64 << 10;
/// What memory and offsets of direct I/O are multiples of, on every common disk.
const ALIGNMENT: usize = 4096;
/// Through the page cache, the disk is kept busy by a sync after so many bytes.
const SYNC_BYTES: u64 = 32 << 20;

static ZEROS: [u8; HOLE_BYTES] = [0; HOLE_BYTES];

/// Memory for the bytes of one block, aligned for direct I/O.
pub(in crate::store) struct Block {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Block {
    pub(in crate::store) fn new() -> Self {
        let memory = vec![0; BLOCK_BYTES + ALIGNMENT];
        let start = memory.as_ptr().align_offset(ALIGNMENT);
        Self {
            memory,
            start,
            length: 0,
        }
    }

    /// No memory at all, in the place of a block that is elsewhere.
    pub(in crate::store) fn empty() -> Self {
        Self {
            memory: Vec::new(),
            start: 0,
            length: 0,
        }
    }

    /// Takes as much of `bytes` as there is room for, and returns the rest.
    pub(in crate::store) fn fill<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.length));
        let place = self.start + self.length;
        self.memory[place..place + now.len()].copy_from_slice(now);
        self.length += now.len();
        later
    }

    pub(in crate::store) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    pub(in crate::store) fn len(&self) -> usize {
        self.length
    }

    pub(in crate::store) fn is_full(&self) -> bool {
        self.length == BLOCK_BYTES
    }

    pub(in crate::store) fn clear(&mut self) {
        self.length = 0;
    }
}

/// Writes full blocks, one after the other.
pub(in crate::store) struct Writer {
    file: Arc<File>,
    /// Where the next block belongs.
    offset: u64,
    thread: Option<WriterThread>,
    /// Blocks that were made.
    blocks: usize,
}

struct WriterThread {
    blocks: SyncSender<(Block, u64)>,
    free: Receiver<Block>,
    handle: JoinHandle<io::Result<()>>,
}

impl Writer {
    /// Writes to `file` from `offset` on, a multiple of [`BLOCK_BYTES`].
    pub(in crate::store) fn new(file: Arc<File>, offset: u64) -> Self {
        Self {
            file,
            offset,
            thread: None,
            blocks: 1,
        }
    }

    /// Hands a full block over and returns an empty one. An error may be that of an earlier block.
    pub(in crate::store) fn write(&mut self, block: Block) -> io::Result<Block> {
        let thread = match &self.thread {
            Some(thread) => thread,
            None => self.thread.insert(start(Arc::clone(&self.file))?),
        };
        let offset = self.offset;
        self.offset += block.len() as u64;
        let handed_over = thread.blocks.send((block, offset)).is_ok();
        if handed_over && self.blocks < BLOCKS {
            self.blocks += 1;
            return Ok(Block::new());
        }
        match thread.free.recv() {
            Ok(block) if handed_over => Ok(block),
            _ => Err(self
                .wait()
                .err()
                .unwrap_or_else(|| io::Error::other("the thread that writes has ended"))),
        }
    }

    /// Leaves out `bytes`, a multiple of [`BLOCK_BYTES`], which are zeros.
    pub(in crate::store) fn skip(&mut self, bytes: u64) {
        self.offset += bytes;
    }

    /// Waits until everything is written.
    pub(in crate::store) fn wait(&mut self) -> io::Result<()> {
        let Some(WriterThread {
            blocks,
            free,
            handle,
        }) = self.thread.take()
        else {
            return Ok(());
        };
        drop(blocks);
        drop(free);
        self.blocks = 1;
        match handle.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Waits until everything is written, then writes what is no full block.
    pub(in crate::store) fn finish(&mut self, rest: &[u8]) -> io::Result<()> {
        self.wait()?;
        let flags = fcntl_getfl(&self.file)?;
        if flags.contains(OFlags::DIRECT) {
            fcntl_setfl(&self.file, flags.difference(OFlags::DIRECT))?;
        }
        write_sparse(&self.file, rest, self.offset)?;
        self.offset += rest.len() as u64;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Whoever drops it is told of no error; the file may be short, and is resumed as such.
        drop(self.wait());
    }
}

fn start(file: Arc<File>) -> io::Result<WriterThread> {
    let (blocks, to_write) = sync_channel::<(Block, u64)>(BLOCKS);
    let (give_back, free) = sync_channel(BLOCKS);
    let handle = thread::Builder::new()
        .name("writer".to_owned())
        .spawn(move || {
            let mut direct = set_direct(&file);
            let mut unsynced_bytes = 0;
            for (mut block, offset) in to_write {
                match write_sparse(&file, block.bytes(), offset) {
                    // Not every file system says so when it is asked for direct I/O.
                    Err(error) if direct && error.raw_os_error() == INVALID => {
                        let flags = fcntl_getfl(&file)?;
                        fcntl_setfl(&file, flags.difference(OFlags::DIRECT))?;
                        direct = false;
                        write_sparse(&file, block.bytes(), offset)?;
                    }
                    result => result?,
                }
                unsynced_bytes += block.len() as u64;
                if !direct && unsynced_bytes >= SYNC_BYTES {
                    file.sync_data()?;
                    unsynced_bytes = 0;
                }
                block.clear();
                // Nobody waits for the blocks when everything is handed over.
                drop(give_back.send(block));
            }
            Ok(())
        })?;
    Ok(WriterThread {
        blocks,
        free,
        handle,
    })
}

const INVALID: Option<i32> = Some(Errno::INVAL.raw_os_error());

/// Asks for direct I/O; tells whether the file system grants it.
fn set_direct(file: &File) -> bool {
    fcntl_getfl(file).is_ok_and(|flags| fcntl_setfl(file, flags | OFlags::DIRECT).is_ok())
}

/// Writes `bytes` at `offset` without their runs of zeros, which are holes: the file has nothing
/// there yet.
fn write_sparse(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let mut run = 0..0;
    for start in (0..bytes.len()).step_by(HOLE_BYTES) {
        let end = bytes.len().min(start + HOLE_BYTES);
        if bytes[start..end] == ZEROS[..end - start] {
            write_all(file, &bytes[run.clone()], offset + run.start as u64)?;
            run = end..end;
        } else {
            run.end = end;
        }
    }
    write_all(file, &bytes[run.clone()], offset + run.start as u64)
}

fn write_all(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        match pwrite(file.as_fd(), bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                bytes = &bytes[count..];
                offset += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
