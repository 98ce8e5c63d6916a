//! The timeout of a call, as the header `grpc-timeout` carries it.

use crate::{fault, reason};
use std::time::Duration;
use tonic::{Code, Status};

/// The header that carries the timeout of a call.
pub const HEADER: &str = "grpc-timeout";

/// In the extensions of the response to a call that was refused for the timeout that it asked for: one that has
/// passed when it arrives, or is none.
#[derive(Debug, Clone, Copy)]
pub struct Refused;

/// Parses a `grpc-timeout`: one to eight digits and a unit.
pub fn parse(text: &str) -> Option<Duration> {
    let at = text.len().checked_sub(1)?;
    let (digits, unit) = (text.get(..at)?, text.get(at..)?);
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}

/// Formats a `grpc-timeout`, rounded down, in the finest unit in which it fits eight digits.
pub fn format(timeout: Duration) -> String {
    let units = [
        ("n", 1u128),
        ("u", 1_000),
        ("m", 1_000_000),
        ("S", 1_000_000_000),
    ];
    units
        .iter()
        .map(|(unit, nanos)| (timeout.as_nanos() / nanos, unit))
        .find(|(n, _)| *n < 100_000_000)
        .map_or_else(|| "99999999S".to_owned(), |(n, unit)| format!("{n}{unit}"))
}

/// Creates DEADLINE_EXCEEDED for a call whose deadline has passed.
pub fn expired() -> Status {
    fault::status(
        Code::DeadlineExceeded,
        reason::DEADLINE_EXCEEDED,
        "the deadline of the call has passed",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_parse_strictly() {
        assert_eq!(parse("1S"), Some(Duration::from_secs(1)));
        assert_eq!(parse("99999999m"), Some(Duration::from_millis(99_999_999)));
        for bad in [
            "",
            "S",
            "1",
            "-1S",
            "+1S",
            "1s",
            "1.5S",
            "123456789S",
            " 1S",
            "1SS",
            "é",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_formatted_timeout_parses_back_no_later() {
        for t in [0, 1, 999_999_999, 1_500_000_000, 86_400_000_000_000u64].map(Duration::from_nanos)
        {
            let back = parse(&format(t)).unwrap();
            assert!(
                back <= t && t - back < Duration::from_millis(1) || back == t,
                "{t:?} {back:?}"
            );
        }
    }
}
