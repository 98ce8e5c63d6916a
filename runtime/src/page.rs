//! Page sizes and tokens of list methods.

const DEFAULT_SIZE: u32 = 100;
const MAX_SIZE: u32 = 500;

/// How many rows a page has: what was asked for, within bounds.
pub fn size(asked: u32) -> i64 {
    i64::from(if asked == 0 {
        DEFAULT_SIZE
    } else {
        asked.min(MAX_SIZE)
    })
}

/// Cuts rows read with one too many to a page, and makes the token of the next.
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
