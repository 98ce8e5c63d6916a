//! The range of every number of the configuration.
//!
//! Upper ends are far beyond what is of use, and far below what a sum of two, a product, or a time
//! from now on could not hold.

use super::Config;
use std::ops::RangeInclusive;

/// Of connections, calls, or places for them.
const MANY: u64 = 1_000_000;
/// Of calls, a minute or a second.
const RATE: u64 = 1_000_000_000;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 366 * DAY;
/// A century, in days.
const CENTURY: u64 = 36_600;
const GIB: u64 = 1 << 30;

struct Number {
    key: &'static str,
    value: u64,
    range: RangeInclusive<u64>,
}

/// A key, its least and its greatest value.
pub(super) type Range = (&'static str, u64, u64);

/// The range of every number; a share's is of what it is a share of.
pub(super) fn all(config: &Config) -> Vec<Range> {
    let numbers = numbers(config).into_iter();
    numbers
        .map(|n| (n.key, *n.range.start(), *n.range.end()))
        .collect()
}

/// One for each number that is out of its range.
pub(super) fn mistakes(config: &Config) -> Vec<String> {
    let wrong = numbers(config)
        .into_iter()
        .filter(|n| !n.range.contains(&n.value));
    wrong.map(|n| n.mistake()).collect()
}

impl Number {
    fn mistake(&self) -> String {
        let (least, most) = (self.range.start(), self.range.end());
        format!("{} must be between {least} and {most}", self.key)
    }
}

/// Something that has a share of `all`.
fn of(all: u64) -> RangeInclusive<u64> {
    1..=all.clamp(1, MANY)
}

/// `section { key: range, ... }` as numbers of the configuration.
macro_rules! numbers {
    ($config:ident, $($section:ident { $($key:ident: $range:expr,)* })*) => {
        vec![$($(Number {
            key: concat!(stringify!($section), ".", stringify!($key)),
            value: wide($config.$section.$key),
            range: $range,
        },)*)*]
    };
}

fn wide(value: impl TryInto<u64>) -> u64 {
    value.try_into().unwrap_or(u64::MAX)
}

fn numbers(config: &Config) -> Vec<Number> {
    let (c, g, p) = (&config.connections, &config.gateway, &config.ports);
    let (max, handshakes) = (wide(c.max), wide(c.max_handshakes));
    let (calls, streams) = (wide(c.max_in_flight), wide(c.max_open_streams));
    // The streams of one connection, which all callers behind one gateway share.
    let carried = streams.min(wide(c.max_streams));
    numbers! { config,
        connections {
            max: 1..=MANY,
            max_by_address: of(max),
            max_by_identity: of(max),
            max_by_workload: of(max),
            max_handshakes: 1..=MANY,
            max_handshakes_by_address: of(handshakes),
            handshake_timeout_seconds: 1..=120,
            max_age_seconds: 1..=YEAR,
            max_age_grace_seconds: 0..=DAY,
            max_streams: 1..=MANY,
            max_message_bytes: 1..=GIB,
            drain_seconds: 0..=DAY,
            max_in_flight: 1..=MANY,
            max_open_streams: 1..=MANY,
            open_seconds: 1..=HOUR,
            stream_stall_seconds: 1..=HOUR,
        }
        timeouts {
            head_seconds: 1..=HOUR,
            idle_seconds: 1..=HOUR,
            body_stall_seconds: 1..=HOUR,
            body_bytes_per_second: 1..=GIB,
            write_stall_seconds: 1..=HOUR,
            write_bytes_per_second: 1..=GIB,
            ping_seconds: 1..=HOUR,
            ping_timeout_seconds: 1..=HOUR,
        }
        ports {
            max_connections: 1..=MANY,
            max_connections_by_address: of(wide(p.max_connections)),
        }
        certificates {
            leaf_life_seconds: 3..=YEAR,
            intermediate_life_days: 1..=CENTURY,
            root_life_days: 1..=CENTURY,
            operator_life_days: 1..=CENTURY,
            lineage_life_days: 1..=CENTURY,
            departed_after_seconds: 3..=YEAR,
        }
        credentials {
            access_token_seconds: 10..=YEAR,
            refresh_token_days: 1..=CENTURY,
            session_max_days: 1..=CENTURY,
            stale_after_seconds: 1..=DAY,
        }
        limits {
            auth_per_minute: 1..=RATE,
            public_per_minute: 1..=RATE,
            user_per_minute: 1..=RATE,
            internal_per_second: 1..=RATE,
            flood_per_second: 1..=RATE,
            calls_by_caller: of(calls),
            streams_by_caller: of(carried),
            calls_by_peer: of(calls),
            streams_by_peer: of(streams),
        }
        gateway {
            max_body_bytes: 1..=GIB,
            max_header_bytes: 1..=GIB / 1024,
            max_connections: 1..=MANY,
            max_connections_by_address: of(wide(g.max_connections)),
            max_connections_by_proxy: of(wide(g.max_connections)),
        }
        orchestration {
            learners: 1..=4096,
            queue: 0..=MANY,
        }
        automl {
            parallel_trials: 1..=4096,
            max_running_studies: 1..=MANY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ConfigErrors, leaf};
    use std::collections::BTreeSet;
    use toml::{Table, Value};

    fn refused(flags: Table) -> Vec<String> {
        let loaded = Config::load(None, Vec::new(), flags);
        loaded.map_or_else(|ConfigErrors(mistakes)| mistakes, |_| Vec::new())
    }

    #[test]
    fn every_number_has_a_range_that_holds_its_default() {
        let config = Config::default();
        assert_eq!(mistakes(&config), Vec::<String>::new());
        let all: Table = config.to_toml().parse().unwrap();
        let mut keys = BTreeSet::new();
        for (section, settings) in &all {
            let numbers = settings.as_table().unwrap().iter();
            let numbers = numbers.filter(|(_, value)| value.is_integer());
            keys.extend(numbers.map(|(key, _)| format!("{section}.{key}")));
        }
        let ranged: BTreeSet<_> = numbers(&config).iter().map(|n| n.key.to_owned()).collect();
        assert_eq!(keys, ranged);
    }

    #[test]
    fn whatever_is_out_of_its_range_is_named_with_it() {
        for number in numbers(&Config::default()) {
            let (section, key) = number.key.split_once('.').unwrap();
            let outside = [
                number.range.start().checked_sub(1),
                Some(number.range.end() + 1),
                Some(u64::from(u32::MAX)),
            ];
            for value in outside.into_iter().flatten() {
                let flags = leaf(section, key, Value::Integer(value.try_into().unwrap()));
                let mistakes = refused(flags);
                assert!(
                    mistakes.contains(&number.mistake()),
                    "{value}: {mistakes:?}"
                );
            }
        }
        let flags = leaf("connections", "max", Value::Integer(i64::MAX));
        assert_eq!(refused(flags).len(), 1);
    }

    #[test]
    fn a_share_is_no_more_than_all() {
        let all = [
            ("max_in_flight", "limits.calls_by_peer"),
            ("max_in_flight", "limits.calls_by_caller"),
            ("max_open_streams", "limits.streams_by_peer"),
            ("max_open_streams", "limits.streams_by_caller"),
            ("max_streams", "limits.streams_by_caller"),
            ("max_handshakes", "connections.max_handshakes_by_address"),
            ("max", "connections.max_by_workload"),
        ];
        for (all, share) in all {
            let mistakes = refused(leaf("connections", all, Value::Integer(9)));
            let expected = format!("{share} must be between 1 and 9");
            assert!(mistakes.contains(&expected), "{all}: {mistakes:?}");
        }
    }
}
