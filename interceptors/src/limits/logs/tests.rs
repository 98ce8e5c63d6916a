use super::*;
use crate::limits::{Decision, bounded::Keys};

const T: Monotonic = Monotonic::from_start(Duration::from_secs(1000));
const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// Callers by number.
struct Callers {
    keys: Keys,
    logs: Logs,
    most: u32,
}

impl Callers {
    fn new(most: u32) -> Self {
        Self {
            keys: Keys::default(),
            logs: Logs::new(),
            most,
        }
    }

    fn take(&self, caller: u32, now: Monotonic) -> Decision {
        let key = self.keys.key(caller);
        self.logs
            .with(key, MINUTE, now, |log| log.take(self.most, now))
    }

    fn passes(&self, caller: u32, now: Monotonic) -> bool {
        self.take(caller, now).passed()
    }

    /// One call of each of these callers, within a second.
    fn crowd(&self, callers: u32, now: Monotonic) -> usize {
        let step = SECOND / callers;
        let calls = (0..callers).filter(|n| self.passes(1000 + n, now + step * *n));
        calls.count()
    }
}

/// Far more than there is room for.
const MANY: u32 = 4 * MAX_KEYS as u32;

#[test]
fn a_stranger_who_makes_keys_opens_nobodys_limit() {
    let all = Callers::new(10);
    assert!((0..10).all(|_| all.passes(0, T)));
    for second in 1..=4 {
        all.crowd(MANY, T + SECOND * second);
        assert!(
            !all.passes(0, T + SECOND * second),
            "what it spent is known"
        );
    }
    assert!(all.logs.keys() <= MAX_KEYS);
    assert!(all.logs.runs() <= MAX_RUNS);
    assert!(all.passes(0, T + MINUTE), "and forgotten when it has to be");
}

#[test]
fn who_has_no_room_of_their_own_has_what_those_have_left_who_share_with_them() {
    let all = Callers::new(10);
    let passed = all.crowd(MANY, T);
    // Those with a log of their own, and what the logs of the others admit in all.
    let most = MAX_KEYS + SHARDS * CROWD * 10;
    assert!((MAX_KEYS..=most).contains(&passed), "{passed}");
    let late = (0..50).filter(|_| all.passes(7, T + 2 * SECOND)).count();
    assert_eq!(late, 0, "who comes last shares a log that is spent");
    // A minute later there is room, and who had none has not spent anything.
    let later = T + MINUTE + 2 * SECOND;
    assert_eq!((0..50).filter(|_| all.passes(7, later)).count(), 10);
}

#[test]
fn what_was_spent_in_a_shared_log_is_known_when_there_is_room() {
    let all = Callers::new(10);
    // Fills every shard, and leaves the shared logs alone.
    for n in 0..MANY {
        if n % 1000 == 0 && all.logs.keys() == MAX_KEYS {
            break;
        }
        let key = all.keys.key(1000 + n);
        let shard = &all.logs.shards[(key >> 32) as usize % SHARDS];
        if shard.lock().own.len() < MAX_KEYS / SHARDS {
            assert!(all.passes(1000 + n, T));
        }
    }
    let spent = T + MINUTE / 2;
    assert_eq!((0..50).filter(|_| all.passes(7, spent)).count(), 10);
    assert_eq!(all.logs.keys(), MAX_KEYS, "it has no log of its own");
    // Those who came at first count no more, so that it has.
    let room = T + MINUTE + SECOND;
    let refused = all.take(7, room);
    assert_eq!(refused.retry, (spent + MINUTE).since(room));
    assert!(all.logs.keys() < MAX_KEYS);
    assert_eq!(
        (0..50).filter(|_| all.passes(7, spent + MINUTE)).count(),
        10
    );
}

#[test]
fn long_logs_are_made_coarser_when_the_room_is_used_up_and_short_ones_are_not() {
    let all = Callers::new(600);
    let (callers, honest) = (2000, 1);
    let first = Duration::from_millis(300);
    assert!((0..599).all(|_| all.passes(honest, T)));
    assert!(all.passes(honest, T + first));
    let mut passed = vec![0; callers as usize];
    for round in 0..600u32 {
        for caller in 0..callers {
            let now =
                T + Duration::from_millis(50) * round + Duration::from_micros(u64::from(caller));
            passed[caller as usize] += u32::from(all.passes(1000 + caller, now));
        }
        if round % 50 == 0 {
            assert!(all.logs.runs() <= MAX_RUNS + SHARDS, "round {round}");
        }
    }
    assert!(passed.iter().all(|n| *n == 600));
    let end = T + SECOND * 31;
    assert_eq!(all.crowd(callers, end), 0, "nobody has more than the limit");
    let (before, after) = (T + MINUTE + first / 2, T + MINUTE + first);
    assert_eq!(all.take(honest, before).remaining, 598, "to the moment");
    assert_eq!(all.take(honest, after).remaining, 598);
    assert_eq!(all.crowd(callers, T + 2 * MINUTE), callers as usize);
}
