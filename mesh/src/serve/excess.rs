//! ENHANCE_YOUR_CALM for peers that are refused over and over, and try again at once.
//!
//! A refusal costs a fraction of a call, but a peer may cause thousands. So the refusals of an identity are
//! budgeted over all of its connections: a new connection is not a new budget. But several people may share an
//! identity, so that a connection has a small budget of its own as well, and ends with ENHANCE_YOUR_CALM only
//! when both are spent. Workloads are exempt: they carry the calls of others, each of whom is refused
//! individually.

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

/// Refusals of one identity. A client over its limit that tries again every second, on many streams, stays
/// well below.
const PER_IDENTITY: Rate = Rate::every(Duration::from_millis(20), 200);
/// Refusals of one connection that never end it, whatever else its identity is refused.
const PER_CONNECTION: Rate = Rate::every(Duration::from_millis(200), 20);
const WARNINGS: Rate = Rate::every(Duration::from_secs(1), 5);
/// The number of identities at which those without recent refusals are dropped.
const MAX_IDENTITIES: usize = 4096;

/// What a peer did too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Excess {
    Refusals,
    ControlFrames,
}

impl Excess {
    /// The value of the metric label.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Refusals => "refusals",
            Self::ControlFrames => "control_frames",
        }
    }

    /// The debug data of GOAWAY.
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Refusals => "too many refused calls",
            Self::ControlFrames => "too many control frames",
        }
    }
}

/// Signals that a connection must end, and why.
#[derive(Debug, Clone, Default)]
pub(super) struct ExcessSignal(Arc<Signal>);

#[derive(Debug, Default)]
struct Signal {
    why: OnceLock<Excess>,
    raised: CancellationToken,
}

impl ExcessSignal {
    pub(super) fn raise(&self, why: Excess) {
        if self.0.why.set(why).is_ok() {
            self.0.raised.cancel();
        }
    }

    pub(super) fn why(&self) -> Option<Excess> {
        self.0.why.get().copied()
    }

    /// Returns once the connection must end.
    pub(super) async fn raised(&self) {
        self.0.raised.cancelled().await;
    }
}

type Shared = Arc<Mutex<Cell>>;

/// The refusals of a listener's peers. Clones share the budgets.
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

    /// Returns the budget of a connection of `peer`, which is ended through `signal`; `None` for workloads.
    pub(super) fn budget(
        &self,
        peer: &PeerInfo,
        signal: ExcessSignal,
    ) -> Option<Arc<RefusalBudget>> {
        if peer.class.is_some_and(PeerClass::is_workload) {
            return None;
        }
        // Joiners have no identity yet.
        let identity = peer.id().map(|id| self.cell(id.as_str()));
        Some(Arc::new(
            self.budget_of(identity.unwrap_or_default(), signal),
        ))
    }

    fn budget_of(&self, identity: Shared, signal: ExcessSignal) -> RefusalBudget {
        RefusalBudget {
            identity,
            own: Mutex::default(),
            clock: self.clock.clone(),
            signal,
        }
    }

    /// Whether another warning may be logged.
    pub(super) fn may_warn(&self) -> bool {
        let now = self.clock.monotonic();
        self.log.lock().take(&WARNINGS, now).is_ok()
    }

    fn cell(&self, id: &str) -> Shared {
        let mut cells = self.by_identity.lock();
        if cells.len() >= MAX_IDENTITIES {
            drop_idle(&mut cells, self.clock.monotonic());
        }
        Arc::clone(cells.entry(Arc::from(id)).or_default())
    }
}

/// A full cell is equivalent to a new one, unless a connection uses it.
fn drop_idle(cells: &mut HashMap<Arc<str>, Shared>, now: Monotonic) {
    cells.retain(|_, cell| Arc::strong_count(cell) > 1 || !cell.lock().full_in(now).is_zero());
}

/// The budget for refusals of one connection.
#[derive(Debug)]
pub(super) struct RefusalBudget {
    identity: Shared,
    own: Mutex<Cell>,
    clock: Clock,
    signal: ExcessSignal,
}

impl RefusalBudget {
    pub(super) fn charge(&self) {
        let now = self.clock.monotonic();
        // Both are charged: a peer that asks too often has spent its own when its identity's runs out.
        let own = self.own.lock().take(&PER_CONNECTION, now);
        let identity = self.identity.lock().take(&PER_IDENTITY, now);
        if own.is_err() && identity.is_err() {
            self.signal.raise(Excess::Refusals);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(refusals: &Refusals, id: &str) -> RefusalBudget {
        refusals.budget_of(refusals.cell(id), ExcessSignal::default())
    }

    /// Returns how many refusals a new connection survives.
    fn refused(refusals: &Refusals, id: &str) -> u32 {
        let counted = connection(refusals, id);
        let mut times = 0;
        while counted.signal.why().is_none() {
            counted.charge();
            times += 1;
        }
        times - 1
    }

    #[test]
    fn an_identity_has_one_budget_over_all_of_its_connections() {
        let clock = Clock::manual(Duration::ZERO);
        let refusals = Refusals::new(clock.clone());
        assert_eq!(
            refused(&refusals, "spiffe://t/client/a"),
            PER_IDENTITY.burst()
        );
        let own = PER_CONNECTION.burst();
        assert_eq!(refused(&refusals, "spiffe://t/client/a"), own);
        assert_eq!(
            refused(&refusals, "spiffe://t/client/b"),
            PER_IDENTITY.burst()
        );
        clock.advance(Duration::from_secs(1));
        assert_eq!(refused(&refusals, "spiffe://t/client/a"), 50);
    }

    #[test]
    fn a_connection_survives_the_refusals_of_others_with_its_identity() {
        let clock = Clock::manual(Duration::ZERO);
        let refusals = Refusals::new(clock.clone());
        let quiet = connection(&refusals, "spiffe://t/client/a");
        for _ in 0..100 {
            refused(&refusals, "spiffe://t/client/a");
            quiet.charge();
            clock.advance(Duration::from_millis(200));
        }
        assert_eq!(quiet.signal.why(), None);
        // The identity has nothing left, so the connection has only its own budget.
        refused(&refusals, "spiffe://t/client/a");
        for _ in 0..PER_CONNECTION.burst() {
            assert_eq!(quiet.signal.why(), None);
            quiet.charge();
        }
        quiet.charge();
        assert_eq!(quiet.signal.why(), Some(Excess::Refusals));
    }

    #[test]
    fn many_identities_cannot_fill_the_memory_and_no_debt_is_forgotten() {
        let refusals = Refusals::new(Clock::manual(Duration::ZERO));
        refused(&refusals, "spiffe://t/client/debtor");
        for n in 0..3 * MAX_IDENTITIES {
            refusals.cell(&format!("spiffe://t/client/{n}"));
        }
        assert!(refusals.by_identity.lock().len() <= MAX_IDENTITIES);
        let own = PER_CONNECTION.burst();
        assert_eq!(refused(&refusals, "spiffe://t/client/debtor"), own);
    }
}
