//! Page sizes and page tokens of list methods.
//!
//! A page is bounded twice: by the number of its rows, which a caller asks for, and by their bytes, which decide
//! what it costs to read, to send and to hold. Whichever is reached first ends it, and a token leads on.

use std::str::FromStr;

/// The field of a list method's request that takes a page token.
pub const TOKEN_FIELD: &str = "page_token";

/// The text is not a page token of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a page token of this list")]
pub struct BadToken;

const DEFAULT_SIZE: u32 = 100;
const MAX_SIZE: u32 = 500;

/// Maximum bytes of the rows of a page, as they are stored. As a message they come to a few times as much, which
/// stays far below what a receiver takes.
pub const MAX_BYTES: usize = 1 << 20;

/// How many rows a page has at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(u32);

/// Returns the size of a page: the requested one, within 1 to 500; 100 by default.
pub fn size(requested: u32) -> Size {
    Size(if requested == 0 {
        DEFAULT_SIZE
    } else {
        requested.min(MAX_SIZE)
    })
}

impl Size {
    /// Returns what a statement is limited to: one row more, which shows that there is a next page.
    pub fn limit(self) -> i64 {
        i64::from(self.0) + 1
    }

    /// Returns the room of an empty page.
    pub fn room(self) -> Room {
        Room {
            rows: self.0,
            bytes: MAX_BYTES,
            is_empty: true,
        }
    }
}

/// What is left of a page while it is read.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    rows: u32,
    bytes: usize,
    is_empty: bool,
}

impl Room {
    /// Takes the room of a row; `false` where the page ends before it. A page has one row at least, however large
    /// that is, so that its token leads on.
    #[must_use]
    pub fn take(&mut self, bytes: usize) -> bool {
        let left = self.bytes.checked_sub(bytes);
        if self.rows == 0 || (left.is_none() && !self.is_empty) {
            return false;
        }
        self.rows -= 1;
        self.bytes = left.unwrap_or(0);
        self.is_empty = false;
        true
    }
}

/// The rows of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page<T> {
    /// The rows, in the order of the list.
    pub rows: Vec<T>,
    /// Whether rows follow.
    pub more: bool,
}

impl<T> Page<T> {
    /// Returns the rows with the token of the next page, made from the last of them; that of the last page is
    /// empty.
    pub fn cut(self, token: impl Fn(&T) -> String) -> (Vec<T>, String) {
        let last = self.rows.last().filter(|_| self.more);
        let next = last.map(token).unwrap_or_default();
        (self.rows, next)
    }
}

/// Returns the key where a page starts: `first` for the first page, whose token is empty.
///
/// # Errors
///
/// [`BadToken`] where the token is not a key.
pub fn start<T: FromStr>(token: &str, first: T) -> Result<T, BadToken> {
    if token.is_empty() {
        return Ok(first);
    }
    token.parse().map_err(|_| BadToken)
}

/// Returns the time and the id before which a page starts, newest first, from a token `TIME_ID`.
///
/// # Errors
///
/// [`BadToken`] where the token has another form.
pub fn start_before(token: &str) -> Result<(i64, String), BadToken> {
    if token.is_empty() {
        return Ok((i64::MAX, String::new()));
    }
    let (at, id) = token.split_once('_').ok_or(BadToken)?;
    Ok((at.parse().map_err(|_| BadToken)?, id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_starts_at_the_key_in_its_token() {
        assert_eq!(start("", i64::MAX), Ok(i64::MAX));
        assert_eq!(start("7", i64::MAX), Ok(7));
        assert_eq!(start_before(""), Ok((i64::MAX, String::new())));
        assert_eq!(start_before("7_a_b"), Ok((7, "a_b".to_owned())));
        for bad in ["x", "7 ", "7_a"] {
            assert_eq!(start(bad, i64::MAX), Err(BadToken), "{bad:?}");
        }
        for bad in ["7", "x_a", "_a"] {
            assert_eq!(start_before(bad), Err(BadToken), "{bad:?}");
        }
    }

    #[test]
    fn the_last_page_has_no_token() {
        let page = |more| Page {
            rows: vec![1, 2],
            more,
        };
        assert_eq!(page(true).cut(i32::to_string), (vec![1, 2], "2".to_owned()));
        assert_eq!(page(false).cut(i32::to_string), (vec![1, 2], String::new()));
        let limits = [0, 7, 9999].map(|requested| size(requested).limit());
        assert_eq!(limits, [101, 8, 501]);
    }

    #[test]
    fn a_page_ends_with_its_rows_or_its_bytes_and_has_one_row_at_least() {
        let rows = |requested, bytes: &[usize]| {
            let mut room = size(requested).room();
            bytes.iter().take_while(|bytes| room.take(**bytes)).count()
        };
        assert_eq!(rows(2, &[1, 1, 1]), 2);
        assert_eq!(rows(9, &[MAX_BYTES / 2; 3]), 2);
        assert_eq!(rows(9, &[MAX_BYTES + 1, 0]), 2, "nothing takes no room");
        assert_eq!(rows(9, &[MAX_BYTES + 1, 1]), 1);
        assert_eq!(rows(9, &[1, MAX_BYTES]), 1);
        assert_eq!(rows(9, &[0, MAX_BYTES]), 2);
    }
}
