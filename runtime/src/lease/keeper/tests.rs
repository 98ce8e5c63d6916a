//! The keeper on a paused clock, with rows that do as they are told.

use super::*;
use crate::{
    clock::Clock,
    lease::{Loss, Terms, book::Grant},
};
use parking_lot::Mutex;
use std::{collections::BTreeSet, future::pending};
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

const LIFE: Duration = Duration::from_secs(12);
const STEP: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Takes,
    Fails,
    Hangs,
}

#[derive(Debug, Default)]
struct Kept {
    answer: Option<Answer>,
    rows: BTreeSet<i64>,
    renewals: usize,
    removed: Vec<i64>,
}

#[derive(Debug, Clone, Default)]
struct Scripted(Arc<Mutex<Kept>>);

impl Scripted {
    async fn answer(&self) -> Result<(), DbError> {
        let answer = self.0.lock().answer.unwrap_or(Answer::Takes);
        match answer {
            Answer::Takes => Ok(()),
            Answer::Fails => Err(DbError::Unavailable("away".to_owned())),
            Answer::Hangs => pending().await,
        }
    }
}

impl Rows for Scripted {
    async fn renew(&self, claims: &[Claim]) -> Result<Vec<Swap>, DbError> {
        self.answer().await?;
        let mut kept = self.0.lock();
        kept.renewals += 1;
        let is_there = |c: &Claim| match kept.rows.contains(&c.token()) {
            true => Swap::Done,
            false => Swap::Lost,
        };
        Ok(claims.iter().map(is_there).collect())
    }

    async fn remove(&self, claims: &[Claim]) -> Result<(), DbError> {
        self.answer().await?;
        let mut kept = self.0.lock();
        kept.removed.extend(claims.iter().map(Claim::token));
        Ok(())
    }
}

struct Rig {
    clock: Clock,
    book: Arc<Book>,
    rows: Scripted,
    _keeper: AbortOnDropHandle<()>,
}

impl Rig {
    fn start(terms: Terms) -> Self {
        let clock = Clock::manual(Duration::from_secs(1_000));
        let book = Arc::new(Book::new(terms, clock.clone()));
        let rows = Scripted::default();
        let keeper = Keeper::new(Arc::clone(&book), rows.clone(), Seeds::counted(0));
        Self {
            clock,
            book,
            rows,
            _keeper: AbortOnDropHandle::new(tokio::spawn(keeper.run())),
        }
    }

    fn shared() -> Self {
        let holder = "one".to_owned();
        Self::start(Terms::Shared { holder, life: LIFE })
    }

    /// Enters a claim whose row the keeper cannot see yet.
    fn begin_taking(&self, token: i64) -> Arc<Grant> {
        let claim = Claim::new(&format!("work/{token}"), token, Uuid::now_v7());
        self.book.grant(claim, self.clock.monotonic())
    }

    fn commit(&self, grant: &Grant) {
        self.rows.0.lock().rows.insert(grant.claim().token());
        self.book.committed(grant);
    }

    fn take(&self, token: i64) -> Arc<Grant> {
        let grant = self.begin_taking(token);
        self.commit(&grant);
        grant
    }

    fn answers(&self, answer: Answer) {
        self.rows.0.lock().answer = Some(answer);
    }

    /// Lets time pass, on both clocks.
    async fn pass(&self, time: Duration) {
        for _ in 0..time.as_millis() / STEP.as_millis() {
            self.clock.advance(STEP);
            tokio::time::advance(STEP).await;
            tokio::task::yield_now().await;
        }
    }

    fn renewals(&self) -> usize {
        self.rows.0.lock().renewals
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_before_a_third_of_its_life_is_over() {
    let rig = Rig::shared();
    let grant = rig.take(1);
    for _ in 0..20 {
        let before = rig.renewals();
        rig.pass(LIFE / RENEWALS + STEP * 2).await;
        assert!(rig.renewals() > before);
    }
    assert!(rig.renewals() < 60, "{}", rig.renewals());
    assert!(!grant.lost().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_not_renewed_before_it_is_committed() {
    let rig = Rig::shared();
    // The keeper had nothing to renew for so long that a renewal is due at once.
    rig.pass(LIFE).await;
    let grant = rig.begin_taking(1);
    rig.pass(LIFE / 2).await;
    assert!(!grant.lost().is_cancelled(), "its row was looked for");
    assert_eq!(rig.renewals(), 0);
    rig.commit(&grant);
    rig.pass(LIFE * 2).await;
    assert!(rig.renewals() > 0 && !grant.lost().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn holders_that_start_together_do_not_renew_together() {
    let keepers = (0..20).map(|n| {
        let terms = Terms::Shared {
            holder: "one".to_owned(),
            life: LIFE,
        };
        let book = Arc::new(Book::new(terms, Clock::manual(LIFE)));
        let seeds = Seeds::counted(n << 48);
        Keeper::new(book, Scripted::default(), seeds).until_renewal()
    });
    let pauses: BTreeSet<Duration> = keepers.collect();
    assert_eq!(pauses.len(), 20);
    let third = LIFE / RENEWALS;
    assert!(pauses.iter().all(|p| (third / 2..=third).contains(p)));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_another_holder_took_is_lost_at_the_next_renewal() {
    let rig = Rig::shared();
    let (taken, other) = (rig.take(1), rig.take(2));
    rig.rows.0.lock().rows.remove(&1);
    rig.pass(LIFE / RENEWALS + STEP).await;
    assert_eq!(taken.loss(), Some(Loss::Superseded));
    assert!(taken.lost().is_cancelled() && !other.lost().is_cancelled());
    assert_eq!((rig.book.held(), rig.book.lost()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_renewed_is_lost_at_its_end_and_not_before() {
    for answer in [Answer::Fails, Answer::Hangs] {
        let rig = Rig::shared();
        let grant = rig.take(1);
        rig.answers(answer);
        rig.pass(LIFE - STEP * 3).await;
        assert!(!grant.lost().is_cancelled(), "{answer:?}");
        rig.pass(STEP * 3 + READ_INTERVAL).await;
        assert_eq!(grant.loss(), Some(Loss::Expired), "{answer:?}");
    }
}

/// Whether a lease outlasts half of a life in which the database answers so.
async fn outlasts(answer: Answer) -> bool {
    let rig = Rig::shared();
    let grant = rig.take(1);
    rig.answers(answer);
    rig.pass(LIFE / 2).await;
    let before = rig.renewals();
    rig.answers(Answer::Takes);
    rig.pass(LIFE).await;
    assert!(rig.renewals() > before);
    !grant.lost().is_cancelled()
}

#[tokio::test(start_paused = true)]
async fn a_database_that_fails_for_half_of_a_life_costs_no_lease() {
    assert!(outlasts(Answer::Fails).await);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_hangs_is_tried_again_before_the_lease_ends() {
    assert!(outlasts(Answer::Hangs).await);
}

#[tokio::test(start_paused = true)]
async fn a_lease_ends_by_the_monotonic_clock_while_timers_stand_still() {
    let rig = Rig::shared();
    let grant = rig.take(1);
    // The machine is suspended: its monotonic clock goes on, its timers do not.
    rig.clock.advance(LIFE * 100);
    assert!(
        !rig.book.is_current(&grant),
        "known at once where it matters"
    );
    tokio::time::advance(READ_INTERVAL).await;
    tokio::task::yield_now().await;
    assert_eq!(grant.loss(), Some(Loss::Expired));
    assert_eq!(rig.renewals(), 0, "what is lost is not renewed");
}

#[tokio::test(start_paused = true)]
async fn a_step_of_the_wall_clock_ends_no_own_lease() {
    let rig = Rig::shared();
    let grant = rig.take(1);
    rig.clock.step_forward(LIFE * 100);
    rig.pass(LIFE * 2).await;
    rig.clock.step_back(LIFE * 200);
    rig.pass(LIFE * 2).await;
    assert!(!grant.lost().is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn a_sole_holder_neither_renews_nor_loses_its_leases() {
    let rig = Rig::start(Terms::Sole);
    let grant = rig.take(1);
    rig.answers(Answer::Fails);
    rig.clock.advance(LIFE * 1_000_000);
    rig.pass(Duration::from_secs(120)).await;
    assert!(!grant.lost().is_cancelled());
    assert_eq!(rig.renewals(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_released_lease_is_removed_once_the_database_is_reachable() {
    let rig = Rig::shared();
    let grant = rig.take(1);
    rig.answers(Answer::Fails);
    rig.book.give_up(&grant);
    rig.pass(LIFE).await;
    assert!(rig.rows.0.lock().removed.is_empty());
    rig.answers(Answer::Takes);
    rig.pass(LONGEST_PAUSE).await;
    assert_eq!(rig.rows.0.lock().removed, [1]);
    assert_eq!(grant.loss(), None, "it was not lost");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_stops_loses_its_leases_without_counting_them_as_lost() {
    let rig = Rig::shared();
    let grant = rig.take(1);
    rig.book.close();
    assert_eq!(grant.loss(), Some(Loss::Stopping));
    let late = rig.take(2);
    assert_eq!(late.loss(), Some(Loss::Stopping), "taken meanwhile");
    assert_eq!((rig.book.held(), rig.book.lost()), (0, 0));
    let emptied = rig.book.emptied();
    let drop_both = async {
        rig.book.give_up(&grant);
        rig.book.give_up(&late);
    };
    tokio::join!(emptied, drop_both);
}
