//! Limits that replicas count together, in a Redis server.
//!
//! Each exact decision is one script: all limits of a call are charged together or not at all, on the
//! server's clock. Volume is leased. A decision waits for the server for the budget at most; what is not
//! decided by then, each replica decides by its own count, with its share of the limit, so that no limit is
//! ever open. A charge that was late may have counted, and is neither repeated nor owed. So as long as answers are in
//! time no more pass than an exact limit says; while they are late, as many as the server has let pass, and beside them
//! the shares of all replicas: less than twice the limit, and one call more for each replica.
//!
//! While the server is out of reach nobody waits for it. What passes meanwhile is owed, and is added to the
//! server's count before it decides again.

use super::{
    Charge, Charges, Charging, Decision, Each, Limit, Outcome,
    bounded::Bounded,
    breaker::Guarded,
    debts::Debts,
    lease::{self, Ask, Grant, Leases, Take},
    local::Local,
    present::Present,
    script,
};
use arc_swap::ArcSwapOption;
use prometheus_client::metrics::counter::Counter;
use std::{sync::Arc, time::Duration};
use tars_runtime::{
    bus::Server,
    clock::{Clock, Monotonic},
    scripts::ScriptError,
};
use tokio::time::{Instant, timeout_at};

/// What a process counts together with others.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) server: Server,
    /// The connection, while there is one.
    pub(super) connection: ArcSwapOption<Guarded>,
    pub(super) debts: Debts,
    pub(super) clock: Clock,
    pub(super) present: Present,
    pub(super) budget: Duration,
    local: Arc<Local>,
    leases: Arc<Leases>,
    /// Decisions that this process made by itself.
    by_itself: Counter,
    /// Refusals that the server has made, until when they hold.
    refused: Bounded<Refused>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Refused {
    until: Monotonic,
    reset_at: Monotonic,
}

/// One limit of a call, with its keys: of this process's count, of what is known of the limit in this
/// size, and of the server's count.
#[derive(Debug, Clone)]
struct Keyed {
    limit: Limit,
    local: u64,
    sized: u64,
    remote: String,
}

impl Shared {
    pub(super) fn new(
        server: Server,
        local: Arc<Local>,
        clock: Clock,
        present: Present,
        budget: Duration,
        by_itself: Counter,
    ) -> Self {
        Self {
            server,
            connection: ArcSwapOption::empty(),
            debts: Debts::default(),
            clock,
            present,
            budget,
            local,
            leases: Arc::new(Leases::new()),
            by_itself,
            refused: Bounded::new(),
        }
    }

    /// The part of a limit that this process decides by itself.
    fn share(&self, limit: &Limit) -> Limit {
        limit.share(self.present.sharing(limit.name))
    }

    /// Why there is no connection any more, for the operator.
    pub(super) fn why_lost(&self) -> String {
        let connection = self.connection.load();
        let gave_up = connection.as_ref().is_some_and(|c| !c.is_usable());
        let why = match gave_up {
            true => "too many decisions were late or failed",
            false => "the connection was closed",
        };
        format!("{}: {why}", self.server)
    }

    pub(super) fn charge(self: &Arc<Self>, charges: &Charges<'_>, now: Monotonic) -> Charging {
        let connection = self.connection.load();
        let Some(server) = connection.as_ref().filter(|c| c.is_usable()) else {
            return Charging::Ready(self.alone(charges, now));
        };
        let class = &charges.class;
        if class.limit.is_exact() {
            if let Some(refused) = self.known_refusal(charges, now) {
                return Charging::Ready(refused);
            }
            let each = charges.map(|charge| self.keyed(charge));
            let (this, server) = (Arc::clone(self), Arc::clone(server));
            return Charging::Remote(Box::pin(async move { this.exact(&server, each).await }));
        }
        if let Some(refused) = self.known_budget(charges, now) {
            return Charging::Ready(refused);
        }
        self.charge_volume(server, charges, now)
    }

    fn charge_volume(
        self: &Arc<Self>,
        server: &Arc<Guarded>,
        charges: &Charges<'_>,
        now: Monotonic,
    ) -> Charging {
        let class = &charges.class;
        let size = lease::size(&class.limit, self.present.sharing(class.limit.name));
        let volume = match self.leases.take(self.local.sized_key(class), size, now) {
            Take::Refused(decision) => Volume::Decided(decision),
            Take::Passed(decision, more) => {
                if let Some(ask) = more {
                    self.lease_ahead(server, ask, class);
                }
                Volume::Leased(decision)
            }
            Take::Unknown(ask) => Volume::Unknown(ask),
        };
        let budget = match (&volume, &charges.budget) {
            (Volume::Decided(decision), _) | (Volume::Leased(decision), None) => {
                return Charging::Ready(Outcome::of(class.limit, *decision));
            }
            (_, budget) => budget.as_ref().map(|b| self.keyed(b)),
        };
        let (this, server, keyed) = (Arc::clone(self), Arc::clone(server), self.keyed(class));
        Charging::Remote(Box::pin(async move {
            this.volume(&server, keyed, volume, budget).await
        }))
    }

    /// Leases for later, while nobody waits.
    fn lease_ahead(self: &Arc<Self>, server: &Arc<Guarded>, ask: Ask, class: &Charge<'_>) {
        let (this, server, keyed) = (Arc::clone(self), Arc::clone(server), self.keyed(class));
        tokio::spawn(async move {
            let deadline = this.deadline();
            if let Ok(grant) = this.lease(&server, &keyed, &ask, deadline).await {
                this.leases.stored(&ask, grant, this.clock.monotonic());
            }
        });
    }

    /// Decides by this process's count, with its share of each limit; what passes is owed.
    fn alone(&self, charges: &Charges<'_>, now: Monotonic) -> Outcome {
        let share = |charge: &Charge<'_>| (self.share(&charge.limit), self.local.key(charge));
        let outcome = self.by_share(&charges.map(share), now);
        if outcome.passed() {
            for charge in charges.iter() {
                let remote = || script::key(&self.server, charge);
                self.owe(self.local.key(charge), &charge.limit, now, remote);
            }
        }
        outcome
    }

    /// Owes one call of a limit to the server.
    fn owe(&self, key: u64, limit: &Limit, now: Monotonic, remote: impl FnOnce() -> String) {
        let interval = self.share(limit).rate().interval();
        self.debts.add(key, limit, interval, now, remote);
    }

    /// Decides by this process's count. What passes is owed, unless the server may have counted it.
    fn without(&self, each: &Each<Keyed>, missed: Missed, now: Monotonic) -> Outcome {
        let share = |keyed: &Keyed| (self.share(&keyed.limit), keyed.local);
        let outcome = self.by_share(&each.map(share), now);
        if outcome.passed() && missed == Missed::NotRun {
            for keyed in each.iter() {
                self.owe(keyed.local, &keyed.limit, now, || keyed.remote.clone());
            }
        }
        outcome
    }

    fn by_share(&self, each: &Each<(Limit, u64)>, now: Monotonic) -> Outcome {
        self.by_itself.inc();
        self.local.charge_keys(each, now)
    }

    /// Takes back what [`without`](Self::without) charged.
    fn give_back(&self, keyed: &Keyed, missed: Missed, now: Monotonic) {
        self.local
            .give_back(self.share(&keyed.limit), keyed.local, now);
        if missed == Missed::NotRun {
            self.debts.give_back(keyed.local);
        }
    }

    /// Until when a call that waits now waits.
    fn deadline(&self) -> Instant {
        Instant::now() + self.budget
    }

    async fn exact(&self, server: &Guarded, each: Each<Keyed>) -> Outcome {
        let all: Vec<&Keyed> = each.iter().collect();
        let decisions = match self.charge_logs(server, &all, self.deadline()).await {
            Ok(decisions) => decisions,
            Err(missed) => {
                let now = self.clock.monotonic();
                return self.without(&each, missed, now);
            }
        };
        let mut decided = all.iter().map(|keyed| keyed.limit).zip(decisions);
        let (limit, class) = decided.next().expect("a decision for each limit");
        let site = each.site.as_ref().and_then(|_| decided.next());
        let mut outcome = Outcome::of(limit, class).with_site(site);
        outcome.budget = decided.next();
        outcome
    }

    async fn volume(
        &self,
        server: &Guarded,
        class: Keyed,
        volume: Volume,
        budget: Option<Keyed>,
    ) -> Outcome {
        let deadline = self.deadline();
        let whole = class.limit;
        let (mut outcome, charged) = match volume {
            Volume::Decided(decision) => (Outcome::of(whole, decision), Charged::Nowhere),
            Volume::Leased(decision) => (Outcome::of(whole, decision), Charged::Lease),
            Volume::Unknown(ask) => {
                let asked = self.lease(server, &class, &ask, deadline).await;
                let now = self.clock.monotonic();
                match asked {
                    Ok(grant) => {
                        let decision = self.leases.granted(&ask, grant, now);
                        (Outcome::of(whole, decision), Charged::Lease)
                    }
                    Err(missed) => {
                        let alone = self.without(&Each::one(class.clone()), missed, now);
                        (alone, Charged::Here(missed))
                    }
                }
            }
        };
        let Some(budget) = budget.filter(|_| outcome.passed()) else {
            return outcome;
        };
        let asked = self.charge_logs(server, &[&budget], deadline).await;
        let now = self.clock.monotonic();
        let limit = budget.limit;
        let decided = match asked.map(|decisions| decisions[0]) {
            Ok(decided) => (limit, decided),
            Err(missed) => self.without(&Each::one(budget), missed, now).class,
        };
        if !decided.1.passed() {
            match charged {
                Charged::Nowhere => {}
                Charged::Lease => self.leases.give_back(class.sized, now),
                Charged::Here(missed) => self.give_back(&class, missed, now),
            }
            outcome.give_back_class();
        }
        outcome.budget = Some(decided);
        outcome
    }

    /// Charges one call to every log, or to none.
    async fn charge_logs(
        &self,
        server: &Guarded,
        all: &[&Keyed],
        deadline: Instant,
    ) -> Result<Vec<Decision>, Missed> {
        let keys: Vec<&str> = all.iter().map(|keyed| keyed.remote.as_str()).collect();
        let sizes = all.iter().map(|keyed| script::log_size(&keyed.limit));
        let sizes: Vec<f64> = sizes.flatten().collect();
        let reply = self.ask(server, script::CHARGE, &keys, &sizes, deadline);
        let reply = reply.await?;
        let limits: Vec<&Limit> = all.iter().map(|keyed| &keyed.limit).collect();
        let decisions = script::decisions(&reply, &limits).ok_or(Missed::MayHaveRun)?;
        let now = self.clock.monotonic();
        for (keyed, decision) in all.iter().zip(&decisions) {
            if decision.passed() {
                continue;
            }
            let refused = Refused {
                until: now + decision.retry,
                reset_at: now + decision.reset,
            };
            self.refused.with(keyed.sized, now, |r| *r = refused);
        }
        if decisions.iter().all(Decision::passed) {
            for keyed in all {
                self.local.record(&keyed.limit, keyed.local, now);
            }
        }
        Ok(decisions)
    }

    async fn lease(
        &self,
        server: &Guarded,
        keyed: &Keyed,
        ask: &Ask,
        deadline: Instant,
    ) -> Result<Grant, Missed> {
        let [interval, burst] = script::cell_size(&keyed.limit);
        let sizes = [interval, burst, f64::from(ask.wanted)];
        let keys = [keyed.remote.as_str()];
        let reply = self.ask(server, script::LEASE, &keys, &sizes, deadline);
        let reply = reply.await?;
        script::grant(&reply, &keyed.limit, ask.wanted).ok_or(Missed::MayHaveRun)
    }

    /// Runs a script by the deadline. After it, nothing is asked any more.
    async fn ask(
        &self,
        server: &Guarded,
        script: usize,
        keys: &[&str],
        sizes: &[f64],
        deadline: Instant,
    ) -> Result<Vec<i64>, Missed> {
        if Instant::now() >= deadline {
            return Err(Missed::NotRun);
        }
        let reply = server.scripts.run(script, keys, sizes);
        let error = match timeout_at(deadline, reply).await {
            Ok(Ok(reply)) => return Ok(reply),
            Ok(Err(error)) => Some(error),
            Err(_) => None,
        };
        server.record_failure(error.as_ref(), self.clock.monotonic());
        match error {
            Some(ScriptError::NotRun(_)) => Err(Missed::NotRun),
            _ => Err(Missed::MayHaveRun),
        }
    }

    /// A refusal that the server has made, and that no call can have ended since.
    fn known_refusal(&self, charges: &Charges<'_>, now: Monotonic) -> Option<Outcome> {
        let mut by_client = std::iter::once(&charges.class).chain(&charges.site);
        by_client.find_map(|charge| Some(Outcome::of(charge.limit, self.refused(charge, now)?)))
    }

    /// The same of the budget of a call whose class is volume: of that nothing is taken.
    fn known_budget(&self, charges: &Charges<'_>, now: Monotonic) -> Option<Outcome> {
        let (class, budget) = (&charges.class, charges.budget.as_ref()?);
        let refused = self.refused(budget, now)?;
        let whole = Decision {
            remaining: class.limit.at_once().0,
            reset: Duration::ZERO,
            retry: Duration::ZERO,
        };
        let known = self.leases.known(self.local.sized_key(class), now);
        let mut outcome = Outcome::of(class.limit, known.unwrap_or(whole));
        outcome.budget = Some((budget.limit, refused));
        Some(outcome)
    }

    fn refused(&self, charge: &Charge<'_>, now: Monotonic) -> Option<Decision> {
        let key = self.local.sized_key(charge);
        let refused = self.refused.peek(key, |refused| *refused)?;
        (now < refused.until).then(|| Decision {
            remaining: 0,
            reset: refused.reset_at.since(now),
            retry: refused.until.since(now),
        })
    }

    fn keyed(&self, charge: &Charge<'_>) -> Keyed {
        Keyed {
            limit: charge.limit,
            local: self.local.key(charge),
            sized: self.local.sized_key(charge),
            remote: script::key(&self.server, charge),
        }
    }
}

/// Why the server has not decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Missed {
    /// It was late, or has failed: it may have counted the call.
    MayHaveRun,
    /// It was not asked, or has not counted the call.
    NotRun,
}

/// Where a call that passed its class was charged.
#[derive(Debug, Clone, Copy)]
enum Charged {
    Nowhere,
    /// To what was leased.
    Lease,
    /// To the count of this process.
    Here(Missed),
}

/// A call of a volume class.
#[derive(Debug)]
enum Volume {
    /// What is known here decides, and charges nothing.
    Decided(Decision),
    /// A leased call was spent.
    Leased(Decision),
    /// The server is to be asked.
    Unknown(Ask),
}
