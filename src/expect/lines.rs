//! Bytes of a terminal to lines: what a person would read, without how it was drawn.

/// Longest line; a longer one is cut into pieces.
pub(super) const MAX_LINE_BYTES: usize = 16 << 10;
/// Longest text of a terminal command (a window's title and the like) that is skipped. What never ends is
/// taken for text behind it.
const MAX_STRING_BYTES: usize = 4 << 10;

/// Puts lines together.
///
/// A line ends where a terminal's cursor leaves it: at a line feed, at a carriage return that other text
/// follows, at a jump to another row, where the screen is cleared. What moves the cursor within
/// its row becomes a space, a backspace takes a character back, all other control sequences go.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    state: State,
    /// Where the cursor is, if a command has said so.
    row: Option<u32>,
    /// A carriage return came, and nothing since.
    returned: bool,
}

/// Where in a control sequence the next byte is.
#[derive(Debug, Default)]
enum State {
    #[default]
    Text,
    /// Behind ESC.
    Escape,
    /// Behind ESC and an intermediate byte; one more ends it.
    Charset,
    /// Behind ESC [.
    Control(Parameters),
    /// In a text that BEL or ESC \ ends.
    String(usize),
}

/// The first two numbers of a control sequence.
#[derive(Debug, Default)]
struct Parameters {
    numbers: [Option<u32>; 2],
    index: usize,
    /// `?`, `=`, `>` or an intermediate byte: not one of the sequences that are understood here.
    is_private: bool,
}

impl Lines {
    /// Takes bytes up to the end of a line: how many they were, and whether there is a line.
    ///
    /// The line is [`Lines::line`]; [`Lines::clear`] comes before the next call then.
    pub(super) fn take(&mut self, bytes: &[u8]) -> (usize, bool) {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            let is_text = matches!(self.state, State::Text) && !byte.is_ascii_control();
            if is_text && self.returned && !self.line.is_empty() {
                // The byte begins the next line.
                self.returned = false;
                return (at, true);
            }
            if is_text {
                self.returned = false;
                let room = MAX_LINE_BYTES - self.line.len();
                let run = bytes[at..]
                    .iter()
                    .take(room)
                    .take_while(|byte| !byte.is_ascii_control())
                    .count();
                self.line.extend_from_slice(&bytes[at..at + run]);
                at += run;
                if self.line.len() == MAX_LINE_BYTES {
                    return (at, true);
                }
                continue;
            }
            at += 1;
            if self.control(byte) && !self.line.is_empty() {
                return (at, true);
            }
        }
        (at, false)
    }

    /// What has come of the line.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// Begins the next line.
    pub(super) fn clear(&mut self) {
        self.line.clear();
    }

    /// Takes a byte that is no text; whether the line ends.
    fn control(&mut self, byte: u8) -> bool {
        // These mean the same wherever they stand.
        match byte {
            0x1b => {
                self.state = State::Escape;
                return false;
            }
            b'\n' | 0x0b | 0x0c => {
                self.state = State::Text;
                self.returned = false;
                self.row = self.row.map(|row| row.saturating_add(1));
                return true;
            }
            // Cancel and substitute break a sequence off.
            0x18 | 0x1a => {
                self.state = State::Text;
                return false;
            }
            _ => {}
        }
        let (next, ends) = match std::mem::take(&mut self.state) {
            State::Text => (State::Text, self.in_text(byte)),
            State::Escape => self.behind_escape(byte),
            State::Charset if (0x20..0x30).contains(&byte) => (State::Charset, false),
            State::Charset => (State::Text, false),
            State::Control(parameters) => self.in_control(parameters, byte),
            State::String(_) if byte == 0x07 => (State::Text, false),
            State::String(MAX_STRING_BYTES) => (State::Text, false),
            State::String(length) => (State::String(length + 1), false),
        };
        self.state = next;
        ends
    }

    fn in_text(&mut self, byte: u8) -> bool {
        match byte {
            b'\r' => self.returned = true,
            b'\t' => self.space(b'\t'),
            0x08 => while self.line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {},
            _ => {}
        }
        false
    }

    fn behind_escape(&mut self, byte: u8) -> (State, bool) {
        match byte {
            b'[' => (State::Control(Parameters::default()), false),
            // OSC, DCS, SOS, PM, APC.
            b']' | b'P' | b'X' | b'^' | b'_' => (State::String(0), false),
            0x20..0x30 => (State::Charset, false),
            // Index, next line, reverse index, reset.
            b'D' | b'E' | b'M' | b'c' => {
                self.row = None;
                (State::Text, true)
            }
            _ => (State::Text, false),
        }
    }

    fn in_control(&mut self, mut parameters: Parameters, byte: u8) -> (State, bool) {
        match byte {
            b'0'..=b'9' => {
                if let Some(number) = parameters.numbers.get_mut(parameters.index) {
                    let digit = u32::from(byte - b'0');
                    let so_far = number.unwrap_or(0).saturating_mul(10);
                    *number = Some(so_far.saturating_add(digit));
                }
            }
            b';' | b':' => parameters.index = parameters.index.saturating_add(1),
            0x20..=0x3f => parameters.is_private = true,
            0x40..=0x7e if parameters.is_private => return (State::Text, false),
            0x40..=0x7e => return (State::Text, self.command(&parameters, byte)),
            // A control character within a sequence has no part in it.
            _ => {}
        }
        (State::Control(parameters), false)
    }

    /// Does what a control sequence says; whether the line ends.
    fn command(&mut self, parameters: &Parameters, command: u8) -> bool {
        let first = parameters.numbers[0].unwrap_or(1).max(1);
        match command {
            // To a row and column, to a row.
            b'H' | b'f' | b'd' => {
                let column = parameters.numbers[1].unwrap_or(1);
                let same_row = self.row.replace(first) == Some(first);
                if !same_row || command != b'd' && column <= 1 {
                    return true;
                }
                self.space(b' ');
            }
            // Up, down, to the begin of the line below or above.
            b'A' | b'B' | b'E' | b'F' => {
                self.row = None;
                return true;
            }
            // To a column.
            b'G' | b'`' if first == 1 => self.returned = true,
            b'C' | b'G' | b'`' => self.space(b' '),
            // Clears the screen, though not only what is below the cursor.
            b'J' => return matches!(parameters.numbers[0], Some(2 | 3)),
            _ => {}
        }
        false
    }

    /// Adds white space where there is none.
    fn space(&mut self, space: u8) {
        let has_room = self.line.len() < MAX_LINE_BYTES - 1;
        if has_room && self.line.last().is_some_and(|last| *last != b' ') {
            self.line.push(space);
        }
    }
}
