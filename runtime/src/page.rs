//! Page sizes and page tokens of list methods.

use std::str::FromStr;

/// The field of a list method's request that takes a page token.
pub const TOKEN_FIELD: &str = "page_token";

/// The text is not a page token of the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a page token of this list")]
pub struct BadToken;

const DEFAULT_SIZE: u32 = 100;
const MAX_SIZE: u32 = 500;

/// Returns the number of rows of a page: the requested one, within 1 to 500; 100 by default.
pub fn size(requested: u32) -> i64 {
    i64::from(if requested == 0 {
        DEFAULT_SIZE
    } else {
        requested.min(MAX_SIZE)
    })
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

/// Truncates rows, read with one more than `size`, to a page, and makes the token of the next page from
/// the last row; the token of the last page is empty.
pub fn cut<T>(mut rows: Vec<T>, size: i64, token: impl Fn(&T) -> String) -> (Vec<T>, String) {
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if rows.len() <= size {
        return (rows, String::new());
    }
    rows.truncate(size);
    let next = rows.last().map(token).unwrap_or_default();
    (rows, next)
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
        assert_eq!(
            cut(vec![1, 2, 3], 2, i32::to_string),
            (vec![1, 2], "2".to_owned())
        );
        assert_eq!(
            cut(vec![1, 2], 2, i32::to_string),
            (vec![1, 2], String::new())
        );
        assert_eq!((size(0), size(7), size(9999)), (100, 7, 500));
    }
}
