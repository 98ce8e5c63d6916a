//! Page sizes and page tokens of list methods.

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
