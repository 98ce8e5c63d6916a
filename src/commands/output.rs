//! The one place where commands print: to people and to pipes.
//!
//! A reader such as `head` closes the pipe early; that ends a command quietly, where `println!` would
//! panic.

use std::{
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
    let Err(e) = out.write_fmt(text).and_then(|()| out.flush()) else {
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
    let _closed = io::stderr().lock().write_fmt(text);
}

/// Prints columns as wide as their widest cell.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) {
    let mut widths: Vec<usize> = header.iter().map(|h| h.chars().count()).collect();
    for row in rows {
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
