//! Times: microseconds since the Unix epoch in memory, `google.protobuf.Timestamp` on the wire.

use prost_types::Timestamp;

/// Converts microseconds since the Unix epoch.
pub fn timestamp(us: i64) -> Timestamp {
    Timestamp {
        seconds: us.div_euclid(1_000_000),
        nanos: i32::try_from(us.rem_euclid(1_000_000) * 1000).unwrap_or_default(),
    }
}

/// Converts to microseconds since the Unix epoch; what is finer is truncated.
pub fn micros(at: &Timestamp) -> i64 {
    at.seconds
        .saturating_mul(1_000_000)
        .saturating_add(i64::from(at.nanos / 1000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_the_epoch_survive_the_round_trip() {
        for us in [0, 1, -1, 1_800_000_000_123_456, -1_500_000] {
            assert_eq!(micros(&timestamp(us)), us);
        }
    }
}
