//! Growing delays for failed logins, by account and address together: a guesser waits, the real
//! user on another address does not, and nobody is ever locked out for good.

use parking_lot::Mutex;
use std::{collections::HashMap, time::Duration};
use tars_runtime::clock::Monotonic;

const FREE: u32 = 5;
const MAX_DELAY: Duration = Duration::from_secs(60);
const FORGET: Duration = Duration::from_secs(900);
const MAX_KEYS: usize = 50_000;

#[derive(Debug, Default)]
pub(crate) struct Throttle {
    failures: Mutex<HashMap<(String, String), Failures>>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Monotonic,
}

fn delay(count: u32) -> Duration {
    match count.checked_sub(FREE) {
        None => Duration::ZERO,
        Some(more) => Duration::from_secs(1 << more.min(6)).min(MAX_DELAY),
    }
}

impl Throttle {
    /// How long this account must wait at this address; `None` when it may try.
    pub(crate) fn wait(&self, account: &str, address: &str, now: Monotonic) -> Option<Duration> {
        let key = (account.to_owned(), address.to_owned());
        let failures = *self.failures.lock().get(&key)?;
        let until = failures.last + delay(failures.count);
        (until > now).then(|| until.since(now))
    }

    /// Counts a failure, and returns how many there were.
    pub(crate) fn failed(&self, account: &str, address: &str, now: Monotonic) -> u32 {
        let mut map = self.failures.lock();
        if map.len() >= MAX_KEYS {
            map.retain(|_, f| f.last + FORGET > now);
            if map.len() >= MAX_KEYS {
                map.clear();
            }
        }
        let entry = map
            .entry((account.to_owned(), address.to_owned()))
            .or_insert(Failures {
                count: 0,
                last: now,
            });
        if entry.last + FORGET <= now {
            entry.count = 0;
        }
        entry.count += 1;
        entry.last = now;
        entry.count
    }

    pub(crate) fn succeeded(&self, account: &str, address: &str) {
        self.failures
            .lock()
            .remove(&(account.to_owned(), address.to_owned()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_end() {
        let throttle = Throttle::default();
        let mut now = Monotonic::default();
        for _ in 0..FREE - 1 {
            throttle.failed("ada", "a", now);
            assert_eq!(throttle.wait("ada", "a", now), None);
        }
        let mut waits = Vec::new();
        for _ in 0..9 {
            throttle.failed("ada", "a", now);
            let wait = throttle.wait("ada", "a", now).unwrap();
            waits.push(wait.as_secs());
            now = now + wait;
            assert_eq!(throttle.wait("ada", "a", now), None, "never a lockout");
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        assert_eq!(
            throttle.wait("ada", "b", now),
            None,
            "another address is free"
        );
        throttle.succeeded("ada", "a");
        assert_eq!(throttle.failed("ada", "a", now), 1);
    }
}
