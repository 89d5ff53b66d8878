//! What a guest writes to the port on which it tells that it is ready: lines as sd_notify(3) has
//! them.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::files::FileError;

/// Bytes that all notices of one guest may have.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// Something that a guest told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    /// It is ready.
    Ready,
    /// What it was to run has ended with this status.
    ExitStatus(u8),
}

/// Reads the notices as they come.
#[derive(Debug)]
pub(super) struct Notices {
    path: PathBuf,
    file: Option<File>,
    part: Vec<u8>,
    came_bytes: u64,
}

impl Notices {
    pub(super) fn of(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            part: Vec::new(),
            came_bytes: 0,
        }
    }

    /// What has come since the last time. Nothing comes beyond [`MAX_BYTES`].
    pub(super) fn next(&mut self) -> Result<Vec<Notice>, FileError> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
                file => self.file = Some(file.map_err(FileError::of("open", &self.path))?),
            }
        }
        let left = MAX_BYTES - self.came_bytes;
        if let Some(file) = &mut self.file {
            let read = file.take(left).read_to_end(&mut self.part);
            self.came_bytes += read.map_err(FileError::of("read", &self.path))? as u64;
        }
        let end = self.part.iter().rposition(|byte| *byte == b'\n');
        let whole: Vec<u8> = self.part.drain(..end.map_or(0, |end| end + 1)).collect();
        Ok(String::from_utf8_lossy(&whole)
            .lines()
            .filter_map(notice)
            .collect())
    }
}

fn notice(line: &str) -> Option<Notice> {
    match line.trim_end().split_once('=')? {
        ("READY", "1") => Some(Notice::Ready),
        ("EXIT_STATUS", status) => status.parse().ok().map(Notice::ExitStatus),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::*;

    #[test]
    fn whole_lines_are_read_as_they_come() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("notices");
        let mut notices = Notices::of(path.clone());
        assert_eq!(notices.next().unwrap(), []);
        let mut guest = File::create(&path).unwrap();
        let mut check = |words: &str, expected: &[Notice]| {
            guest.write_all(words.as_bytes()).unwrap();
            assert_eq!(notices.next().unwrap(), expected, "{words}");
        };
        check("STATUS=up\nREADY=", &[]);
        check(
            "1\r\nREADY=0\nEXIT_STATUS=3\n",
            &[Notice::Ready, Notice::ExitStatus(3)],
        );
        check("EXIT_STATUS=256\nEXIT_STATUS=\n\u{fffd}\n\n", &[]);
        // A guest that floods the port is not read any more.
        let flood = vec![b'x'; usize::try_from(MAX_BYTES).unwrap()];
        fs::write(&path, [flood.as_slice(), b"\nREADY=1\n"].concat()).unwrap();
        let mut notices = Notices::of(path);
        assert_eq!(notices.next().unwrap(), []);
        assert_eq!(notices.next().unwrap(), []);
    }
}
