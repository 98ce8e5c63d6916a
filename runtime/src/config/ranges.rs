//! The range of every number in the configuration.
//!
//! Upper ends are far above any useful value, and far below what a sum of two, a product, or a time
//! from now could not hold.

use super::{Config, bounds, bounds::QUOTA};
use serde_json::Value;

/// Maximum number of connections, calls, or places for them.
const MANY: u64 = 1_000_000;
const RATE: u64 = bounds::RATE as u64;
const EXACT_CALLS: u64 = bounds::EXACT_CALLS as u64;
const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;
const YEAR: u64 = 366 * DAY;
/// A century, in days.
const CENTURY: u64 = 36_600;
const GIB: u64 = 1 << 30;

/// What a number may be.
enum Range {
    /// Between these two, both included.
    Between(u64, u64),
    /// At least one, and no more than any of these numbers, of which it is a share.
    ShareOf(&'static [&'static str]),
}

use Range::{Between, ShareOf};

/// Every number of the configuration by its key.
const RANGES: &[(&str, Range)] = &[
    ("connections.max", Between(1, MANY)),
    ("connections.max_by_address", ShareOf(&["connections.max"])),
    ("connections.max_by_identity", ShareOf(&["connections.max"])),
    ("connections.max_by_workload", ShareOf(&["connections.max"])),
    ("connections.max_handshakes", Between(1, MANY)),
    (
        "connections.max_handshakes_by_address",
        ShareOf(&["connections.max_handshakes"]),
    ),
    ("connections.handshake_timeout_seconds", Between(1, 120)),
    ("connections.max_age_seconds", Between(1, YEAR)),
    ("connections.max_age_grace_seconds", Between(0, DAY)),
    ("connections.max_streams", Between(1, MANY)),
    ("connections.max_message_bytes", Between(1, GIB)),
    ("connections.notice_seconds", Between(0, HOUR)),
    ("connections.drain_streams_seconds", Between(0, DAY)),
    ("connections.drain_seconds", Between(0, DAY)),
    ("connections.max_in_flight", Between(1, MANY)),
    ("connections.max_open_streams", Between(1, MANY)),
    ("connections.open_seconds", Between(1, HOUR)),
    ("connections.stream_stall_seconds", Between(1, HOUR)),
    ("timeouts.head_seconds", Between(1, HOUR)),
    ("timeouts.idle_seconds", Between(1, HOUR)),
    ("timeouts.body_stall_seconds", Between(1, HOUR)),
    ("timeouts.body_bytes_per_second", Between(1, GIB)),
    ("timeouts.write_stall_seconds", Between(1, HOUR)),
    ("timeouts.write_bytes_per_second", Between(1, GIB)),
    ("timeouts.ping_seconds", Between(1, HOUR)),
    ("timeouts.ping_timeout_seconds", Between(1, HOUR)),
    ("ports.max_connections", Between(1, MANY)),
    (
        "ports.max_connections_by_address",
        ShareOf(&["ports.max_connections"]),
    ),
    ("certificates.leaf_life_seconds", Between(3, YEAR)),
    ("certificates.intermediate_life_days", Between(1, CENTURY)),
    ("certificates.root_life_days", Between(1, CENTURY)),
    ("certificates.operator_life_days", Between(1, CENTURY)),
    ("certificates.lineage_life_days", Between(1, CENTURY)),
    ("certificates.departed_after_seconds", Between(3, YEAR)),
    // Services refuse tokens that live longer.
    ("credentials.access_token_seconds", Between(10, DAY)),
    ("credentials.refresh_token_days", Between(1, CENTURY)),
    ("credentials.session_max_days", Between(1, CENTURY)),
    ("credentials.stale_after_seconds", Between(1, DAY)),
    ("limits.auth_per_minute", Between(1, EXACT_CALLS)),
    ("limits.public_per_minute", Between(1, EXACT_CALLS)),
    ("limits.user_per_minute", Between(1, RATE)),
    ("limits.identity_per_minute", Between(1, EXACT_CALLS)),
    ("limits.key_changes_per_minute", Between(1, EXACT_CALLS)),
    ("limits.internal_per_second", Between(1, RATE)),
    ("limits.replicas", Between(1, 1024)),
    ("limits.redis_budget_ms", Between(1, 1000)),
    ("limits.flood_per_second", Between(1, RATE)),
    ("limits.site_prefix", Between(16, 64)),
    ("limits.site_factor", Between(1, RATE)),
    (
        "limits.calls_by_caller",
        ShareOf(&["connections.max_in_flight"]),
    ),
    // The streams of one connection, which all callers behind one gateway share.
    (
        "limits.streams_by_caller",
        ShareOf(&["connections.max_open_streams", "connections.max_streams"]),
    ),
    (
        "limits.calls_by_peer",
        ShareOf(&["connections.max_in_flight"]),
    ),
    (
        "limits.streams_by_peer",
        ShareOf(&["connections.max_open_streams"]),
    ),
    ("overload.floor", ShareOf(&["overload.ceiling"])),
    ("overload.ceiling", Between(1, MANY)),
    ("quotas.calls", Between(0, QUOTA)),
    ("quotas.training_steps", Between(0, QUOTA)),
    ("quotas.solver_seconds", Between(0, QUOTA)),
    ("gateway.max_body_bytes", Between(1, GIB)),
    ("gateway.max_header_bytes", Between(1, GIB / 1024)),
    ("gateway.max_connections", Between(1, MANY)),
    (
        "gateway.max_connections_by_address",
        ShareOf(&["gateway.max_connections"]),
    ),
    (
        "gateway.max_connections_by_proxy",
        ShareOf(&["gateway.max_connections"]),
    ),
    ("gateway.max_unsent_bytes", Between(1, 1024 * GIB)),
    (
        "gateway.max_unsent_bytes_by_address",
        ShareOf(&["gateway.max_unsent_bytes"]),
    ),
    ("gateway.answer_seconds", Between(1, HOUR)),
    ("database.readers", Between(1, 1024)),
    ("database.writers", Between(1, 1024)),
    ("database.lease_seconds", Between(3, HOUR)),
    ("orchestration.learners", Between(1, 4096)),
    ("orchestration.queue", Between(0, MANY)),
    ("orchestration.checkpoints", Between(2, MANY)),
    ("orchestration.calibration_seconds", Between(1, HOUR)),
    ("orchestration.checkpoint_seconds", Between(0, HOUR)),
    ("orchestration.canary_percent", Between(0, 100)),
    ("hypersync.verification_steps", Between(1, MANY)),
    ("hypersync.verification_seconds", Between(1, HOUR)),
    ("automl.parallel_trials", Between(1, 4096)),
    ("automl.max_running_studies", Between(1, MANY)),
    (
        "automl.max_running_studies_by_owner",
        ShareOf(&["automl.max_studies_by_owner"]),
    ),
    ("automl.max_studies_by_owner", Between(1, MANY)),
];

/// A number with its range, after shares have been resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Number {
    pub(super) key: &'static str,
    value: u64,
    pub(super) least: u64,
    pub(super) most: u64,
}

impl Number {
    fn fits(&self) -> bool {
        (self.least..=self.most).contains(&self.value)
    }

    fn mistake(&self) -> String {
        let Self {
            key, least, most, ..
        } = self;
        format!("{key} must be between {least} and {most}")
    }
}

/// Returns every number of the configuration.
pub(super) fn numbers(config: &Config) -> Vec<Number> {
    let values = serde_json::to_value(config).unwrap_or_default();
    RANGES
        .iter()
        .map(|(key, range)| {
            let (least, most) = range.ends(&values);
            Number {
                key,
                value: value(&values, key),
                least,
                most,
            }
        })
        .collect()
}

/// Returns a mistake for each number that is out of its range, where both are known.
pub(super) fn mistakes(config: &Config, is_known: impl Fn(&str) -> bool) -> Vec<String> {
    let numbers = RANGES.iter().zip(numbers(config));
    let judged = numbers.filter(|((key, range), _)| {
        is_known(key) && range.totals().iter().all(|total| is_known(total))
    });
    let invalid = judged.filter(|(_, number)| !number.fits());
    invalid.map(|(_, number)| number.mistake()).collect()
}

impl Range {
    /// The numbers of which it is a share.
    fn totals(&self) -> &'static [&'static str] {
        match self {
            Between(..) => &[],
            ShareOf(totals) => totals,
        }
    }

    fn ends(&self, values: &Value) -> (u64, u64) {
        match self {
            Between(least, most) => (*least, *most),
            ShareOf(totals) => {
                let totals = totals.iter().map(|key| value(values, key));
                // A total beyond its own range is the mistake, and not what is a share of it.
                (1, totals.min().unwrap_or(MANY).max(1))
            }
        }
    }
}

/// The value of a key; one that is missing is out of every range.
fn value(values: &Value, key: &str) -> u64 {
    let found = key
        .split_once('.')
        .map(|(section, key)| &values[section][key]);
    found.and_then(Value::as_u64).unwrap_or(u64::MAX)
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
        assert_eq!(mistakes(&config, |_| true), Vec::<String>::new());
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
    fn a_number_out_of_its_range_is_named_with_the_range() {
        for number in numbers(&Config::default()) {
            let (section, key) = number.key.split_once('.').unwrap();
            let outside = [
                number.least.checked_sub(1),
                Some(number.most + 1),
                Some(u64::from(u32::MAX)),
            ];
            let is_outside = |value: &u64| *value < number.least || *value > number.most;
            for value in outside.into_iter().flatten().filter(is_outside) {
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
    fn a_share_is_no_more_than_its_total() {
        let shares = RANGES.iter().filter_map(|(key, range)| match range {
            ShareOf(totals) => Some((key, *totals)),
            Between(..) => None,
        });
        let shares: Vec<_> = shares.collect();
        assert!(shares.len() >= 10, "{}", shares.len());
        for (share, total) in shares
            .iter()
            .flat_map(|(s, all)| all.iter().map(move |t| (s, t)))
        {
            let (section, key) = total.split_once('.').unwrap();
            let mistakes = refused(leaf(section, key, Value::Integer(9)));
            let expected = format!("{share} must be between 1 and 9");
            assert!(mistakes.contains(&expected), "{total}: {mistakes:?}");
        }
    }
}
