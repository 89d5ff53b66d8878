//! Findings as a terminal shows them: coloured, and no wider than it is.

/// Where the words of a finding begin.
const FINDING_INDENT: usize = 22;
/// Where the words of a hint begin.
const HINT_INDENT: usize = 14;

/// `text` in `width` columns, with its levels coloured. What is between backquotes is to be typed,
/// and stays on one line.
pub(super) fn fitted(text: &str, width: usize, colour: bool) -> String {
    let mut all = String::new();
    for line in text.lines() {
        let indent = match line.trim_start().starts_with("hint: ") {
            true => HINT_INDENT,
            false => FINDING_INDENT,
        };
        let mut lines = wrapped(line, width, indent);
        if colour {
            lines = coloured(&lines);
        }
        all += &lines;
        all.push('\n');
    }
    all
}

fn coloured(line: &str) -> String {
    for (level, code) in [("ok", "32"), ("warn", "33"), ("fail", "31")] {
        let begun = format!("  {level:<4}  ");
        if let Some(rest) = line.strip_prefix(&begun) {
            return format!("  \x1b[{code}m{level:<4}\x1b[0m  {rest}");
        }
    }
    line.to_owned()
}

fn wrapped(line: &str, width: usize, indent: usize) -> String {
    if line.chars().count() <= width {
        return line.to_owned();
    }
    let start = line.len() - line.trim_start().len();
    let (blank, rest) = line.split_at(start);
    let mut text = blank.to_owned();
    let mut column = start;
    let mut is_command = false;
    for word in rest.split_inclusive(' ') {
        let length = word.trim_end().chars().count();
        let is_first = column <= indent.min(start);
        if !is_command && !is_first && column + length > width {
            text.truncate(text.trim_end().len());
            text.push('\n');
            text += &" ".repeat(indent);
            column = indent;
        }
        text += word;
        column += word.chars().count();
        if word.matches('`').count() % 2 == 1 {
            is_command = !is_command;
        }
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_wrap_and_what_is_to_be_typed_does_not() {
        let text = "\
this host
  warn  CPU           one two three four five six seven
        hint: `sudo a b c d e f g h i j k l m n`, then this and that
";
        assert_eq!(
            fitted(text, 40, false),
            "\
this host
  warn  CPU           one two three four
                      five six seven
        hint: `sudo a b c d e f g h i j k l m n`,
              then this and that
"
        );
    }

    #[test]
    fn only_levels_are_coloured() {
        let text =
            "the store\n  ok    space         fail\n  fail  x             ok\n        hint: warn\n";
        assert_eq!(
            fitted(text, 80, true),
            "the store\n  \x1b[32mok  \x1b[0m  space         fail\n  \x1b[31mfail\x1b[0m  x             ok\n        hint: warn\n"
        );
    }
}
