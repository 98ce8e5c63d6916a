//! Random schedules of holders that take, renew, lose, give up and write, with clocks that disagree, are
//! set and stand still. A checker that knows no clock says what must hold: no two tokens are current at
//! once, tokens grow, and exactly the writes of the current token are taken.

use super::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use std::collections::HashMap;

const HOLDERS: usize = 3;
const NAMES: [&str; 2] = ["a", "b"];
const STEPS: usize = 120;

/// What must be so, from what was answered.
#[derive(Default)]
struct Checker {
    /// By lease the token that is current.
    current: HashMap<&'static str, i64>,
    last_token: i64,
}

impl Checker {
    fn taken(&mut self, name: &'static str, token: i64) {
        assert!(token > self.last_token, "tokens grow");
        self.last_token = token;
        self.current.insert(name, token);
    }

    fn is_current(&self, name: &str, token: i64) -> bool {
        self.current
            .get(name)
            .is_some_and(|current| *current == token)
    }

    fn released(&mut self, name: &'static str, token: i64) {
        if self.is_current(name, token) {
            self.current.remove(name);
        }
    }
}

/// One schedule. Leases are never dropped, so that every token that was ever given is tried.
struct Schedule {
    random: StdRng,
    holders: Vec<Holder>,
    /// Every lease that was ever had, and by whom.
    had: Vec<(usize, &'static str, Option<Lease>, Fence)>,
    /// Processes that were replaced, and go on.
    frozen: Vec<Holder>,
    checker: Checker,
    accepted: usize,
    refused: usize,
}

impl Schedule {
    async fn new(dir: &Path, seed: u64) -> Self {
        let mut holders = Vec::new();
        for n in 0..HOLDERS {
            let clock = Clock::manual(START + HOUR * u32::try_from(n).unwrap() / 3);
            let path = dir.join("x.db");
            holders.push(Holder::start(path, &n.to_string(), clock).await);
        }
        Self {
            random: StdRng::seed_from_u64(seed),
            holders,
            had: Vec::new(),
            frozen: Vec::new(),
            checker: Checker::default(),
            accepted: 0,
            refused: 0,
        }
    }

    async fn step(&mut self) {
        let holder = self.random.random_range(0..HOLDERS);
        let name = NAMES[self.random.random_range(0..NAMES.len())];
        match self.random.random_range(0..16) {
            0..=3 => self.take(holder, name).await,
            4..=5 => self.holders[holder].renew().await,
            6..=9 => self.write().await,
            10 => self.release().await,
            11 => self.restart(holder).await,
            12..=13 => self.holders[holder].clock.advance(HOUR * 2 / 3),
            14 if self.random.random() => self.holders[holder].clock.step_forward(HOUR * 3),
            14 => self.holders[holder].clock.step_back(HOUR * 3),
            _ => self.holders.iter().for_each(|h| h.clock.advance(HOUR / 2)),
        }
    }

    async fn take(&mut self, holder: usize, name: &'static str) {
        let was_free = !self.checker.current.contains_key(name);
        let taken = self.holders[holder].leases.acquire(name).await.unwrap();
        assert!(taken.is_some() || !was_free, "what is free can be had");
        if let Some(lease) = taken {
            self.checker.taken(name, lease.token());
            let fence = lease.fence();
            self.had.push((holder, name, Some(lease), fence));
        }
    }

    fn any(&mut self) -> Option<usize> {
        let had = self.had.len();
        // The latest are of more interest.
        (had > 0).then(|| had - 1 - self.random.random_range(0..had.min(6)))
    }

    async fn write(&mut self) {
        let Some(n) = self.any() else { return };
        let (holder, name, _, fence) = &self.had[n];
        let written = self.holders[*holder].write(name, fence).await;
        let token = fence.grant.claim().token();
        match written {
            Ok(()) => {
                assert!(self.checker.is_current(name, token), "a stale write");
                self.accepted += 1;
            }
            Err(LeaseError::Stale { .. }) => {
                assert!(!self.checker.is_current(name, token), "a current write");
                self.refused += 1;
            }
            Err(LeaseError::Db(e)) => panic!("{e}"),
        }
    }

    async fn release(&mut self) {
        let Some(n) = self.any() else { return };
        let (_, name, lease, _) = &mut self.had[n];
        if let Some(lease) = lease.take() {
            let token = lease.token();
            lease.release().await.unwrap();
            self.checker.released(name, token);
        }
    }

    /// The last process goes on with what it has, as if it were suspended.
    async fn restart(&mut self, holder: usize) {
        let next = self.holders[holder].restart().await;
        self.frozen
            .push(std::mem::replace(&mut self.holders[holder], next));
    }

    /// Of all the tokens that were ever given at most one is current for each name.
    async fn check_all(&self) {
        for name in NAMES {
            let mut current = Vec::new();
            for (holder, _, _, fence) in self.had.iter().filter(|(_, n, ..)| *n == name) {
                let db = &self.holders[*holder].db;
                if begin_fenced(db, "test.check", fence).await.is_ok() {
                    current.push(fence.grant.claim().token());
                }
            }
            let expected = self.checker.current.get(name).copied();
            assert_eq!(current, Vec::from_iter(expected));
        }
    }
}

#[tokio::test]
async fn no_schedule_makes_two_tokens_current_or_takes_a_stale_write() {
    let (mut accepted, mut refused) = (0, 0);
    for seed in 0..8 {
        let dir = tempfile::tempdir().unwrap();
        let mut schedule = Schedule::new(dir.path(), seed).await;
        for _ in 0..STEPS {
            schedule.step().await;
        }
        schedule.check_all().await;
        for name in NAMES {
            let tokens = schedule.holders[0].work(name).await;
            assert!(tokens.is_sorted(), "{tokens:?}");
        }
        accepted += schedule.accepted;
        refused += schedule.refused;
    }
    assert!(accepted > 50 && refused > 50, "{accepted} and {refused}");
}

/// Every holder takes the lease from the others whenever it likes, and writes while it believes to have
/// it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn holders_that_race_write_in_the_order_of_their_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::manual(START);
    let mut tasks = Vec::new();
    for n in 0..4 {
        let path = dir.path().join("x.db");
        let holder = Holder::start(path, &n.to_string(), clock.clone()).await;
        tasks.push(tokio::spawn(async move {
            let (mut written, mut refused) = (0, 0);
            for _ in 0..15 {
                holder.clock.advance(HOUR);
                let Some(lease) = holder.leases.acquire("a").await.unwrap() else {
                    continue;
                };
                for _ in 0..4 {
                    match holder.write("a", &lease.fence()).await {
                        Ok(()) => written += 1,
                        Err(LeaseError::Stale { .. }) => refused += 1,
                        Err(LeaseError::Db(e)) => panic!("{e}"),
                    }
                }
            }
            (written, refused)
        }));
    }
    let (mut written, mut refused) = (0, 0);
    for task in tasks {
        let (w, r) = task.await.unwrap();
        (written, refused) = (written + w, refused + r);
    }
    let path = dir.path().join("x.db");
    let holder = Holder::start(path, "last", clock).await;
    let tokens = holder.work("a").await;
    assert_eq!(tokens.len(), written, "nothing but what was answered");
    assert!(tokens.is_sorted(), "{tokens:?}");
    assert!(written > 0 && refused > 0, "{written} and {refused}");
}
