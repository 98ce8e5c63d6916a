//! Growing delays after failed logins, per account and network: a guesser waits, the user elsewhere
//! does not, and nobody is ever locked out.
//!
//! Strangers choose the keys of the table, so it is small, and the keys are hashed with a secret of
//! the process. When it is full, the entries with the fewest failures are removed: a stranger who
//! invents accounts to fill the table evicts those, not the account under attack.
//!
//! Each replica counts for itself, so that a guess costs no write to the database: with N replicas a
//! guesser has N times the tries. That is still no more than N a minute for an account and a network once
//! the delay has grown, and each is paid for with a slow hash. Records are limited in the same way, to
//! N times as many a minute.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    time::Duration,
};
use tars_runtime::{backoff::Backoff, clock::Monotonic};

const FREE: u32 = 5;
const DELAYS: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
const FORGET: Duration = Duration::from_secs(900);
const MAX_KEYS: usize = 16_384;

/// Failures recorded per minute at most; the others are counted in the next record.
const RECORDS: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(crate) struct Throttle {
    failures: Mutex<HashMap<u64, Failures>>,
    hasher: RandomState,
    records: Mutex<Records>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Monotonic,
}

#[derive(Debug, Default)]
struct Records {
    minute: Monotonic,
    written: u32,
    unwritten: u64,
}

/// A failure to be recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Failed {
    /// Consecutive failures of this account from this network.
    pub(crate) in_a_row: u32,
    /// Failures, of any account, that have not been recorded.
    pub(crate) unwritten: u64,
}

fn delay(count: u32) -> Duration {
    DELAYS.after((count + 1).saturating_sub(FREE))
}

impl Throttle {
    fn key(&self, account: &str, network: u64) -> u64 {
        self.hasher.hash_one((account, network))
    }

    /// How long this account must wait on this network; `None` when it may try now.
    pub(crate) fn wait(&self, account: &str, network: u64, now: Monotonic) -> Option<Duration> {
        let key = self.key(account, network);
        let failures = *self.failures.lock().get(&key)?;
        let until = failures.last + delay(failures.count);
        (until > now).then(|| until.since(now))
    }

    /// Counts a failure. It is recorded if it is the first or a power of two, within the limit per
    /// minute: a guesser cannot flood the audit log, and no failure goes uncounted.
    pub(crate) fn failed(&self, account: &str, network: u64, now: Monotonic) -> Option<Failed> {
        let in_a_row = self.count(account, network, now);
        let mut records = self.records.lock();
        if now.since(records.minute) >= MINUTE {
            records.minute = now;
            records.written = 0;
        }
        if !in_a_row.is_power_of_two() || records.written >= RECORDS {
            records.unwritten += 1;
            return None;
        }
        records.written += 1;
        Some(Failed {
            in_a_row,
            unwritten: std::mem::take(&mut records.unwritten),
        })
    }

    fn count(&self, account: &str, network: u64, now: Monotonic) -> u32 {
        let key = self.key(account, network);
        let mut map = self.failures.lock();
        if map.len() >= MAX_KEYS && !map.contains_key(&key) {
            make_room(&mut map, now);
        }
        let fresh = Failures {
            count: 0,
            last: now,
        };
        let entry = map.entry(key).or_insert(fresh);
        if entry.last + FORGET <= now {
            entry.count = 0;
        }
        entry.count += 1;
        entry.last = now;
        entry.count
    }

    pub(crate) fn succeeded(&self, account: &str, network: u64) {
        let key = self.key(account, network);
        self.failures.lock().remove(&key);
    }
}

/// Removes expired entries, or else the half with the fewest failures, oldest first.
fn make_room(map: &mut HashMap<u64, Failures>, now: Monotonic) {
    map.retain(|_, f| f.last + FORGET > now);
    if map.len() < MAX_KEYS {
        return;
    }
    let mut ranks: Vec<(u32, Monotonic, u64)> =
        map.iter().map(|(key, f)| (f.count, f.last, *key)).collect();
    let middle = ranks.len() / 2;
    let (least, _, _) = ranks.select_nth_unstable(middle);
    for (_, _, key) in least {
        map.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: u64 = 1;
    const B: u64 = 2;
    const NOW: Monotonic = Monotonic::from_start(Duration::from_secs(1000));

    #[test]
    fn delays_grow_and_are_forgotten() {
        let throttle = Throttle::default();
        let mut now = NOW;
        for _ in 0..FREE - 1 {
            throttle.failed("ada", A, now);
            assert_eq!(throttle.wait("ada", A, now), None);
        }
        let mut waits = Vec::new();
        for _ in 0..9 {
            throttle.failed("ada", A, now);
            let wait = throttle.wait("ada", A, now).unwrap();
            waits.push(wait.as_secs());
            now = now + wait;
            assert_eq!(throttle.wait("ada", A, now), None, "never a lockout");
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(
            throttle.wait("ada", B, now),
            None,
            "another address is free"
        );
        throttle.succeeded("ada", A);
        assert_eq!(throttle.failed("ada", A, now).unwrap().in_a_row, 1);
    }

    #[test]
    fn strangers_cannot_fill_the_table_or_the_audit_log() {
        let throttle = Throttle::default();
        for _ in 0..FREE + 3 {
            throttle.failed("ada", A, NOW);
        }
        let mut written = 0;
        for n in 0..100_000u32 {
            written += u32::from(throttle.failed(&format!("invented-{n}"), A, NOW).is_some());
        }
        assert!(throttle.failures.lock().len() <= MAX_KEYS);
        assert!(
            throttle.wait("ada", A, NOW).is_some(),
            "the account that was guessed at still waits"
        );
        assert!(written < RECORDS, "{written}");
        let next = throttle.failed("next", A, NOW + MINUTE).unwrap();
        assert_eq!(u64::from(written) + next.unwritten, 100_000, "none is lost");
    }
}
