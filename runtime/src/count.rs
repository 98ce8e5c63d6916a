//! Numbers of things in messages.

/// `1 mistake`, `2 mistakes`: for words that take an s.
pub fn counted(n: u64, one: &str) -> String {
    match n {
        1 => format!("1 {one}"),
        _ => format!("{n} {one}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_is_no_plural() {
        assert_eq!(counted(0, "day"), "0 days");
        assert_eq!(counted(1, "day"), "1 day");
        assert_eq!(counted(2, "day"), "2 days");
    }
}
