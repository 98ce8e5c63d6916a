//! The one place where commands print: to people and to pipes.
//!
//! A reader such as `head` closes the pipe early; that ends a command quietly, where `println!` would
//! panic.
//!
//! What is printed may hold text that somebody else wrote: a note, a reason, an error. No such text
//! may move the cursor, hide what follows, or look like a line of the command's own. Characters that
//! control a terminal are printed as escapes here; [`inline`] does the same for the ends of lines, and
//! is for every text that comes from a server.

use std::{
    borrow::Cow,
    fmt::Arguments,
    io::{self, ErrorKind, Write},
};

/// The exit code that a shell reports for a program ended by SIGPIPE.
const CLOSED: i32 = 141;

/// A line of standard output, as `println!`.
macro_rules! say {
    ($($what:tt)*) => {
        $crate::commands::output::print(format_args!("{}\n", format_args!($($what)*)))
    };
}

/// A line of standard error, as `eprintln!`; dropped when standard error is closed.
macro_rules! note {
    ($($what:tt)*) => {
        $crate::commands::output::remark(format_args!("{}\n", format_args!($($what)*)))
    };
}

/// Standard output, without a line's end.
pub(crate) fn print(text: Arguments<'_>) {
    let mut out = io::stdout().lock();
    let text = text.to_string();
    let text = escaped(&text, is_harmful);
    let Err(e) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) else {
        return;
    };
    if e.kind() == ErrorKind::BrokenPipe {
        std::process::exit(CLOSED);
    }
    remark(format_args!("tars: standard output: {e}\n"));
    std::process::exit(1);
}

/// Standard error, without a line's end. Errors are ignored: there is nowhere to report them.
pub(crate) fn remark(text: Arguments<'_>) {
    let text = text.to_string();
    let text = escaped(&text, is_harmful);
    let _closed = io::stderr().lock().write_all(text.as_bytes());
}

/// A text from elsewhere on one line, without anything that controls a terminal.
pub(crate) fn inline(text: &str) -> Cow<'_, str> {
    escaped(text, |c| c == '\n' || c == '\t' || is_harmful(c))
}

/// Whether a character controls a terminal or the direction of what follows. Ends of lines and
/// tabs do not.
fn is_harmful(c: char) -> bool {
    /// What separates lines, isolates, embeds or overrides a direction, or is not seen at all.
    const INVISIBLE: [std::ops::RangeInclusive<char>; 5] = [
        '\u{61c}'..='\u{61c}',
        '\u{200b}'..='\u{200f}',
        '\u{2028}'..='\u{202e}',
        '\u{2060}'..='\u{2069}',
        '\u{feff}'..='\u{feff}',
    ];
    let controls = c.is_control() && c != '\n' && c != '\t';
    controls || INVISIBLE.iter().any(|range| range.contains(&c))
}

/// Replaces characters by escapes that JSON has, too, so that a document stays one.
fn escaped(text: &str, is_replaced: impl Fn(char) -> bool) -> Cow<'_, str> {
    if !text.contains(&is_replaced) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if !is_replaced(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            c => out.push_str(&format!("\\u{:04x}", u32::from(c))),
        }
    }
    Cow::Owned(out)
}

/// Prints columns as wide as their widest cell, and each row on one line.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    let cells = |row: &Vec<String>| row.iter().map(|cell| inline(cell).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: &[String]| {
        let padded = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        say!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(&header.iter().map(|h| h.to_uppercase()).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_elsewhere_stays_on_its_line_and_moves_nothing() {
        for (text, shown) in [
            ("routine", "routine"),
            ("größer → 7", "größer → 7"),
            (
                "a\nassessment   improvement +41.2",
                "a\\nassessment   improvement +41.2",
            ),
            ("a\r\x1b[2K\x1b[8m", "a\\u000d\\u001b[2K\\u001b[8m"),
            ("\u{9b}8m\u{7f}", "\\u009b8m\\u007f"),
            (
                "\u{202e}gnp.exe\u{2066}\u{200b}",
                "\\u202egnp.exe\\u2066\\u200b",
            ),
            ("a\u{2028}b\tc", "a\\u2028b\\tc"),
        ] {
            assert_eq!(inline(text), shown);
        }
    }

    #[test]
    fn a_document_stays_one() {
        let document = serde_json::json!({ "note": "\u{9b}8m\u{202e}\u{feff}\n" });
        let printed = format!("{document:#}\n");
        let printed = escaped(&printed, is_harmful);
        assert!(!printed.contains(is_harmful));
        let read: serde_json::Value = serde_json::from_str(&printed).unwrap();
        assert_eq!(read, document);
    }
}
