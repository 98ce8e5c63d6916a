//! Peers that are to come back later: whoever is refused over and over, and asks again at once.
//!
//! A refusal costs a fraction of a call and is nothing to a peer that asks in thousands. So what an
//! identity may be refused is bounded, over all of its connections: a new connection is no new budget.
//! Several people may share an identity, though, so a connection has a small allowance of its own as
//! well, and ends with ENHANCE_YOUR_CALM only when both are spent. Workloads are never told so: they
//! carry others, and those are refused each by itself.

use parking_lot::Mutex;
use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};
use tars_certs::{PeerClass, peer::PeerInfo};
use tars_runtime::{
    clock::{Clock, Monotonic},
    rate::{Cell, Rate},
};
use tokio_util::sync::CancellationToken;

/// Refusals of one identity. A client that is over its limit and asks again every second, on many
/// streams, is well below.
const REFUSALS: Rate = Rate::every(Duration::from_millis(20), 200);
/// Refusals of one connection that never end it, whatever the others of its identity are refused.
const OF_CONNECTION: Rate = Rate::every(Duration::from_millis(200), 20);
const WARNINGS: Rate = Rate::every(Duration::from_secs(1), 5);
/// Identities that are kept at once before those are dropped that were not refused of late.
const KEPT: usize = 4096;

/// What a peer did too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    Refusals,
    ControlFrames,
}

impl Excess {
    /// A metric label.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Refusals => "refusals",
            Self::ControlFrames => "control_frames",
        }
    }

    /// What the peer is told, as the debug data of GOAWAY.
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Refusals => "too many refused calls",
            Self::ControlFrames => "too many control frames",
        }
    }
}

/// Says that a connection is to end, and why.
#[derive(Debug, Clone, Default)]
pub(super) struct Calm(Arc<Told>);

#[derive(Debug, Default)]
struct Told {
    why: OnceLock<Excess>,
    now: CancellationToken,
}

impl Calm {
    pub(super) fn tell(&self, why: Excess) {
        if self.0.why.set(why).is_ok() {
            self.0.now.cancel();
        }
    }

    pub(super) fn why(&self) -> Option<Excess> {
        self.0.why.get().copied()
    }

    /// Returns once the connection is to end.
    pub(super) async fn told(&self) {
        self.0.now.cancelled().await;
    }
}

type Shared = Arc<Mutex<Cell>>;

/// Clones share what they count.
#[derive(Debug, Clone)]
pub(super) struct Refusals {
    by_identity: Arc<Mutex<HashMap<Arc<str>, Shared>>>,
    log: Shared,
    clock: Clock,
}

impl Refusals {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            by_identity: Arc::default(),
            log: Shared::default(),
            clock,
        }
    }

    /// What counts on a connection of `peer`, which is ended through `calm`.
    pub(super) fn of(&self, peer: &PeerInfo, calm: Calm) -> Option<Arc<Counted>> {
        if peer.class.is_some_and(PeerClass::is_workload) {
            return None;
        }
        // Joiners have no identity yet.
        let identity = peer.id().map(|id| self.cell(id.as_str()));
        Some(Arc::new(self.counted(identity.unwrap_or_default(), calm)))
    }

    fn counted(&self, identity: Shared, calm: Calm) -> Counted {
        Counted {
            identity,
            own: Mutex::default(),
            clock: self.clock.clone(),
            calm,
        }
    }

    /// Whether the log has room for another warning.
    pub(super) fn may_log(&self) -> bool {
        let now = self.clock.monotonic();
        self.log.lock().take(&WARNINGS, now).is_ok()
    }

    fn cell(&self, id: &str) -> Shared {
        let mut kept = self.by_identity.lock();
        if kept.len() >= KEPT {
            drop_the_quiet(&mut kept, self.clock.monotonic());
        }
        Arc::clone(kept.entry(Arc::from(id)).or_default())
    }
}

/// A full cell is as good as a new one, unless a connection counts with it.
fn drop_the_quiet(kept: &mut HashMap<Arc<str>, Shared>, now: Monotonic) {
    kept.retain(|_, cell| Arc::strong_count(cell) > 1 || !cell.lock().full_in(now).is_zero());
}

/// Counts the refusals on one connection.
#[derive(Debug)]
pub(super) struct Counted {
    identity: Shared,
    own: Mutex<Cell>,
    clock: Clock,
    calm: Calm,
}

impl Counted {
    pub(super) fn refused(&self) {
        let now = self.clock.monotonic();
        // Both are taken from: whoever asks too much has spent its own when the identity's runs out.
        let own = self.own.lock().take(&OF_CONNECTION, now);
        let identity = self.identity.lock().take(&REFUSALS, now);
        if own.is_err() && identity.is_err() {
            self.calm.tell(Excess::Refusals);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(refusals: &Refusals, id: &str) -> Counted {
        refusals.counted(refusals.cell(id), Calm::default())
    }

    /// How often a new connection is refused before the time that ends it.
    fn refused(refusals: &Refusals, id: &str) -> u32 {
        let counted = connection(refusals, id);
        let mut times = 0;
        while counted.calm.why().is_none() {
            counted.refused();
            times += 1;
        }
        times - 1
    }

    #[test]
    fn an_identity_has_one_budget_over_all_of_its_connections() {
        let clock = Clock::manual(Duration::ZERO);
        let refusals = Refusals::new(clock.clone());
        assert_eq!(refused(&refusals, "spiffe://t/client/a"), REFUSALS.burst());
        let own = OF_CONNECTION.burst();
        assert_eq!(refused(&refusals, "spiffe://t/client/a"), own);
        assert_eq!(refused(&refusals, "spiffe://t/client/b"), REFUSALS.burst());
        clock.advance(Duration::from_secs(1));
        assert_eq!(refused(&refusals, "spiffe://t/client/a"), 50);
    }

    #[test]
    fn a_connection_is_not_ended_for_what_others_of_its_identity_were_refused() {
        let clock = Clock::manual(Duration::ZERO);
        let refusals = Refusals::new(clock.clone());
        let quiet = connection(&refusals, "spiffe://t/client/a");
        for _ in 0..100 {
            refused(&refusals, "spiffe://t/client/a");
            quiet.refused();
            clock.advance(Duration::from_millis(200));
        }
        assert_eq!(quiet.calm.why(), None);
        // The identity has nothing left, so its own allowance is all that it has.
        refused(&refusals, "spiffe://t/client/a");
        for _ in 0..OF_CONNECTION.burst() {
            assert_eq!(quiet.calm.why(), None);
            quiet.refused();
        }
        quiet.refused();
        assert_eq!(quiet.calm.why(), Some(Excess::Refusals));
    }

    #[test]
    fn many_identities_cannot_fill_the_memory_and_no_debt_is_forgotten() {
        let refusals = Refusals::new(Clock::manual(Duration::ZERO));
        refused(&refusals, "spiffe://t/client/debtor");
        for n in 0..3 * KEPT {
            refusals.cell(&format!("spiffe://t/client/{n}"));
        }
        assert!(refusals.by_identity.lock().len() <= KEPT);
        let own = OF_CONNECTION.burst();
        assert_eq!(refused(&refusals, "spiffe://t/client/debtor"), own);
    }
}
