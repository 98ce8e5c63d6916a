//! Passwords: from a private file, from a pipe, or typed by somebody whose screen others may see.

use super::{CommandError, output};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};
use std::{
    io::{self, BufRead, IsTerminal, Read},
    path::PathBuf,
};
use tars_certs::secret;
use zeroize::Zeroizing;

type Password = Zeroizing<String>;

/// Reads the password of an existing user, once: a mistyped one is refused and does no harm.
pub(crate) fn read(file: Option<PathBuf>) -> Result<Password, CommandError> {
    match file {
        Some(path) => in_file(path),
        None if io::stdin().is_terminal() => typed("password: "),
        None => piped(),
    }
}

/// Reads a new password; at a terminal it is typed twice.
pub(crate) fn choose(file: Option<PathBuf>) -> Result<Password, CommandError> {
    if file.is_some() || !io::stdin().is_terminal() {
        return read(file);
    }
    let password = typed("new password: ")?;
    if typed("once more: ")? != password {
        return Err(CommandError::Failed(
            "the two passwords differ, and nothing was changed".to_owned(),
        ));
    }
    Ok(password)
}

fn in_file(path: PathBuf) -> Result<Password, CommandError> {
    let text = secret::read(&path).map_err(|e| CommandError::file(&path, e))?;
    Ok(line(&text))
}

fn piped() -> Result<Password, CommandError> {
    let mut text = Zeroizing::new(String::new());
    io::stdin()
        .lock()
        .read_line(&mut text)
        .map_err(|e| CommandError::Failed(e.to_string()))?;
    Ok(line(&text))
}

fn line(text: &str) -> Password {
    Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn typed(prompt: &str) -> Result<Password, CommandError> {
    let failed = |e: io::Error| CommandError::Failed(format!("the terminal: {e}"));
    let quiet = Quiet::new().map_err(failed)?;
    output::remark(format_args!("{prompt}"));
    let keys = edit(io::stdin().lock().bytes());
    drop(quiet);
    output::remark(format_args!("\n"));
    keys.map_err(failed)?.ok_or(CommandError::Interrupted)
}

/// A terminal that shows nothing and hands over each key as it is, ^C included, so that nothing ends the
/// command before the terminal is again what it was. Dropping it restores that.
struct Quiet(Termios);

impl Quiet {
    fn new() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut quiet = before.clone();
        quiet.local_modes &=
            !(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG | LocalModes::IEXTEN);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(io::stdin(), OptionalActions::Now, &quiet)?;
        Ok(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if let Err(e) = tcsetattr(io::stdin(), OptionalActions::Now, &self.0) {
            output::remark(format_args!("the terminal is not as it was: {e}\n"));
        }
    }
}

const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const BACKSPACE: u8 = 0x08;
const KILL: u8 = 0x15;
const DELETE: u8 = 0x7f;

/// A line as it is typed and corrected; none when it was interrupted.
fn edit(keys: impl Iterator<Item = io::Result<u8>>) -> io::Result<Option<Password>> {
    // Large enough that nothing of it is left behind by growing.
    let mut typed = Zeroizing::new(Vec::with_capacity(4096));
    for key in keys {
        match key? {
            INTERRUPT => return Ok(None),
            b'\r' | b'\n' | END => break,
            BACKSPACE | DELETE => remove_last(&mut typed),
            KILL => typed.clear(),
            key => typed.push(key),
        }
    }
    let text = std::str::from_utf8(&typed).map_err(|e| io::Error::other(e.to_string()))?;
    Ok(Some(Zeroizing::new(text.to_owned())))
}

/// Takes back a character, which may be several bytes.
fn remove_last(typed: &mut Vec<u8>) {
    let is_inner = |byte: u8| byte & 0b1100_0000 == 0b1000_0000;
    while typed.pop().is_some_and(is_inner) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(bytes: &[u8]) -> io::Result<Option<Password>> {
        edit(bytes.iter().map(|b| Ok(*b)))
    }

    #[test]
    fn a_line_is_what_was_meant() {
        for (typed, meant) in [
            (&b"secret\nrest"[..], "secret"),
            (b"secret\r", "secret"),
            (b"secret", "secret"),
            (b"secret\x04rest", "secret"),
            (b"secrex\x7ft\n", "secret"),
            (b"secrex\x08t\n", "secret"),
            (b"wrong\x15secret\n", "secret"),
            (b"\x7f\x7fa\n", "a"),
            ("s\u{fc}\x7f\u{fc}\n".as_bytes(), "s\u{fc}"),
            ("a\u{1f600}\x7fb\n".as_bytes(), "ab"),
            (b"\n", ""),
        ] {
            let line = keys(typed).unwrap().unwrap();
            assert_eq!(line.as_str(), meant, "{typed:?}");
        }
    }

    #[test]
    fn an_interrupted_line_is_none_and_what_is_no_text_is_refused() {
        assert!(keys(b"secr\x03et\n").unwrap().is_none());
        assert!(keys(b"\xff\xfe\n").is_err());
        let broken = [Ok(b'a'), Err(io::Error::other("gone"))];
        assert!(edit(broken.into_iter()).is_err());
    }
}
