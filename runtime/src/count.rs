//! Counted nouns in messages.

/// Formats `1 mistake` or `2 mistakes`, for nouns with a regular plural.
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
    fn only_one_takes_the_singular() {
        assert_eq!(counted(0, "day"), "0 days");
        assert_eq!(counted(1, "day"), "1 day");
        assert_eq!(counted(2, "day"), "2 days");
    }
}
