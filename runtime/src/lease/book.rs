//! What one holder knows: the leases that it has, those that it gives up, and those of others that it
//! has seen.

use super::{
    Loss, Terms,
    claim::Claim,
    state::{Event, State},
    table::LeaseRow,
};
use crate::{
    backoff::spread,
    clock::{Clock, Monotonic},
    seeds::Seeds,
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// A claim with its state.
#[derive(Debug)]
pub(super) struct Grant {
    claim: Claim,
    state: Mutex<State>,
    lost: CancellationToken,
}

impl Grant {
    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    pub(super) fn lost(&self) -> &CancellationToken {
        &self.lost
    }

    pub(super) fn loss(&self) -> Option<Loss> {
        match *self.state.lock() {
            State::Lost(loss) => Some(loss),
            State::Taking { .. } | State::Held { .. } | State::Released => None,
        }
    }

    fn is_held(&self) -> bool {
        matches!(*self.state.lock(), State::Held { .. })
    }

    fn ends(&self) -> Option<Monotonic> {
        match *self.state.lock() {
            State::Taking { ends } | State::Held { ends } => ends,
            State::Lost(_) | State::Released => None,
        }
    }

    /// Applies an event, and cancels the work when it loses the lease by it.
    fn apply(&self, event: Event) -> Option<Loss> {
        let mut state = self.state.lock();
        let before = *state;
        *state = before.after(event);
        match (before, *state) {
            (State::Taking { .. } | State::Held { .. }, State::Lost(loss)) => {
                self.lost.cancel();
                Some(loss)
            }
            _ => None,
        }
    }
}

/// Another holder's lease, since when it was not renewed, and when it was last looked at.
#[derive(Debug, Clone, Copy)]
struct Seen {
    row: LeaseRow,
    since: Monotonic,
    looked: Monotonic,
}

#[derive(Debug)]
pub(super) struct Book {
    terms: Terms,
    clock: Clock,
    grants: Mutex<HashMap<Claim, Arc<Grant>>>,
    /// Until their rows are removed.
    given_up: Mutex<HashSet<Claim>>,
    seen: Mutex<HashMap<String, Seen>>,
    closed: AtomicBool,
    /// Wakes the keeper: a lease was given up.
    wake: Notify,
    /// A lease is gone.
    gone: Notify,
    lost: AtomicU64,
    refused: AtomicU64,
}

impl Book {
    pub(super) fn new(terms: Terms, clock: Clock) -> Self {
        Self {
            terms,
            clock,
            grants: Mutex::default(),
            given_up: Mutex::default(),
            seen: Mutex::default(),
            closed: AtomicBool::new(false),
            wake: Notify::new(),
            gone: Notify::new(),
            lost: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn holder(&self) -> &str {
        self.terms.holder()
    }

    pub(super) fn life(&self) -> Option<Duration> {
        self.terms.life()
    }

    /// The claims to a lease that this holder gives up.
    pub(super) fn given_up_of(&self, name: &str) -> Vec<Claim> {
        let given_up = self.given_up.lock();
        let own = given_up.iter().filter(|claim| claim.name() == name);
        own.cloned().collect()
    }

    /// Whether a lease found in the table is live. It is not when this holder has given it up, or when it
    /// was not renewed for a whole life while this holder looked. `before` are the claims that were given
    /// up before the table was read: their rows may be gone since.
    pub(super) fn is_live(&self, name: &str, row: &LeaseRow, before: &[Claim]) -> bool {
        let claim = row.claim(name);
        if before.contains(&claim) || self.given_up.lock().contains(&claim) {
            return false;
        }
        let Some(life) = self.life() else {
            return true;
        };
        let now = self.clock.monotonic();
        let mut seen = self.seen.lock();
        seen.retain(|_, s| now.since(s.looked) < life * 4);
        let known = seen.get(name).filter(|s| s.row == *row);
        let since = known.map_or(now, |s| s.since);
        let entry = Seen {
            row: *row,
            since,
            looked: now,
        };
        seen.insert(name.to_owned(), entry);
        now.since(since) < life
    }

    /// How long to wait before looking for leases that have ended: up to half of their life, and not past
    /// the end of one that was seen.
    pub(super) fn until_next_poll(&self, jitter: &Seeds) -> Option<Duration> {
        let pause = spread(self.life()? / 2, jitter);
        let first_end = self.until_first_end();
        Some(first_end.map_or(pause, |end| pause.min(end)))
    }

    /// How long until a lease that was seen has ended, unless it is renewed; zero for any other.
    pub(super) fn until_end(&self, name: &str) -> Duration {
        let (now, seen) = (self.clock.monotonic(), self.seen.lock());
        let ends = seen.get(name).zip(self.life());
        ends.map_or(Duration::ZERO, |(seen, life)| {
            (seen.since + life).since(now)
        })
    }

    /// How long until the first of the leases that were seen has ended, unless it is renewed.
    fn until_first_end(&self) -> Option<Duration> {
        let (life, now) = (self.life()?, self.clock.monotonic());
        let seen = self.seen.lock();
        let left = seen.values().map(|s| (s.since + life).since(now));
        left.filter(|left| !left.is_zero()).min()
    }

    /// Enters a claim whose transaction is not committed yet. `asked` is the time before the database was
    /// asked for it.
    pub(super) fn grant(&self, claim: Claim, asked: Monotonic) -> Arc<Grant> {
        self.seen.lock().remove(claim.name());
        let ends = self.life().map(|life| asked + life);
        let grant = Arc::new(Grant {
            claim: claim.clone(),
            state: Mutex::new(State::Taking { ends }),
            lost: CancellationToken::new(),
        });
        self.grants.lock().insert(claim, Arc::clone(&grant));
        if self.is_closed() {
            self.apply(&grant, Event::Stopping);
        }
        self.wake.notify_one();
        grant
    }

    /// The claim's transaction is committed: the lease is held, and renewed from now on.
    pub(super) fn committed(&self, grant: &Grant) {
        self.apply(grant, Event::Committed);
    }

    /// The lease is given up: the keeper removes its row.
    pub(super) fn give_up(&self, grant: &Grant) {
        // Entered before it is gone, so that whoever waits for that knows.
        self.given_up.lock().insert(grant.claim.clone());
        if self.settle(grant) {
            self.wake.notify_one();
        } else {
            self.given_up.lock().remove(&grant.claim);
        }
    }

    /// The lease's row is removed. False when it was entered as such before.
    pub(super) fn settle(&self, grant: &Grant) -> bool {
        grant.apply(Event::Released);
        let was_known = self.grants.lock().remove(&grant.claim).is_some();
        self.gone.notify_waiters();
        was_known
    }

    pub(super) fn supersede(&self, grant: &Grant) {
        self.apply(grant, Event::Superseded);
    }

    /// Reads the clock for one lease.
    pub(super) fn is_current(&self, grant: &Grant) -> bool {
        self.apply(grant, Event::Read(self.clock.monotonic()));
        grant.is_held()
    }

    /// Reads the clock for all leases.
    pub(super) fn expire(&self) {
        let now = self.clock.monotonic();
        for grant in self.grants() {
            self.apply(&grant, Event::Read(now));
        }
    }

    /// Records a renewal that was asked for at that time.
    pub(super) fn renewed(&self, claim: &Claim, asked: Monotonic) {
        if let (Some(grant), Some(life)) = (self.find(claim), self.life()) {
            let ends = asked + life;
            self.apply(&grant, Event::Renewed { ends });
        }
    }

    pub(super) fn superseded(&self, claim: &Claim) {
        if let Some(grant) = self.find(claim) {
            self.supersede(&grant);
        }
    }

    fn apply(&self, grant: &Grant, event: Event) {
        let Some(loss) = grant.apply(event) else {
            return;
        };
        let name = grant.claim.name();
        if loss == Loss::Stopping {
            tracing::debug!(lease = name, "owned work stops with the process");
            return;
        }
        self.lost.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(lease = name, ?loss, "a lease is lost; its work stops here");
    }

    /// The claims to renew.
    pub(super) fn held_claims(&self) -> Vec<Claim> {
        let mut claims: Vec<Claim> = (self.grants().into_iter())
            .filter(|g| g.is_held())
            .map(|g| g.claim.clone())
            .collect();
        // One order for all holders.
        claims.sort_by(|a, b| a.name().cmp(b.name()));
        claims
    }

    /// The end of the lease that ends first.
    pub(super) fn first_end(&self) -> Option<Monotonic> {
        self.grants().iter().filter_map(|g| g.ends()).min()
    }

    /// The claims whose rows are to be removed.
    pub(super) fn given_up(&self) -> Vec<Claim> {
        self.given_up.lock().iter().cloned().collect()
    }

    /// The rows of these claims are removed.
    pub(super) fn removed(&self, claims: &[Claim]) {
        let mut given_up = self.given_up.lock();
        for claim in claims {
            given_up.remove(claim);
        }
    }

    /// Waits until a lease was taken or given up.
    pub(super) async fn changed(&self) {
        self.wake.notified().await;
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Loses all leases to the end of the process.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
        for grant in self.grants() {
            self.apply(&grant, Event::Stopping);
        }
    }

    /// Waits until no work has a lease.
    pub(super) async fn emptied(&self) {
        self.until(HashMap::is_empty).await;
    }

    /// Waits until no work of this process has the lease.
    pub(super) async fn without(&self, name: &str) {
        self.until(|grants| grants.keys().all(|c| c.name() != name))
            .await;
    }

    async fn until(&self, is_so: impl Fn(&HashMap<Claim, Arc<Grant>>) -> bool) {
        loop {
            let gone = self.gone.notified();
            if is_so(&self.grants.lock()) {
                return;
            }
            gone.await;
        }
    }

    /// Every claim whose row may be there.
    pub(super) fn all_claims(&self) -> Vec<Claim> {
        let mut claims = self.given_up();
        claims.extend(self.grants.lock().keys().cloned());
        claims
    }

    pub(super) fn held(&self) -> usize {
        self.grants().iter().filter(|g| g.is_held()).count()
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub(super) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(super) fn record_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    fn find(&self, claim: &Claim) -> Option<Arc<Grant>> {
        self.grants.lock().get(claim).cloned()
    }

    fn grants(&self) -> Vec<Arc<Grant>> {
        self.grants.lock().values().cloned().collect()
    }
}
