//! Sheds calls that a process is too busy for, before they cost anything.
//!
//! When more arrives than a process can do, calls wait for each other, and all of them are late. So the number
//! of calls in flight has a limit that follows how slow they are (`overload/gradient.rs`), between a floor and
//! a ceiling of the configuration. Beyond it a call is answered with UNAVAILABLE and when to come back; one that is too
//! many of its caller alone, with RESOURCE_EXHAUSTED: to others the process is neither slow nor unavailable, and channels
//! spend no retries on it.
//!
//! A call is counted where it enters the mesh. What services ask of each other belongs to calls that were let
//! in, and is shed only well beyond the limit: shedding it would waste what was done for them. What the
//! contract calls vital (health, and what withdraws a credential or a session) is not shed at all, nor is what a
//! workload asks for itself; places bound both. Work that waits in a queue or for others is neither counted nor measured, or a few games that are
//! being solved would look like overload.
//!
//! What waits for its client is no load, or whoever sends headers and nothing else would hold the limit at no
//! cost: a call is counted from the last byte of its request to the first one of its response, and measured
//! between the same. While more of a request is awaited its call holds places only, which are bounded for each
//! caller. Once the request is there it is let in again, or shed before its handler has seen it.
//!
//! Nobody's calls keep all others out. A caller has at most three times as many calls in flight as there is
//! room left: the dynamic thresholds of Choudhury and Hahne (IEEE/ACM Transactions on Networking 6:2, 1998),
//! which need no list of who else asks. One that has just come always finds room. As long as a quarter of the
//! limit is not reached nobody can have too many, and nobody's are counted; so a caller alone has up to thirteen
//! sixteenths of the limit. Nor does one caller decide how slow the process is (`overload/meters.rs`).

mod gradient;
mod meters;

use crate::{Call, contract, holders::Holders};
use gradient::{Gradient, Window};
use http::HeaderMap;
use meters::{Learning, Meters};
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::{
    hash::RandomState,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};
use tars_certs::PeerClass;
use tars_proto::{
    fault,
    table::{Load, MethodTable},
};
use tars_runtime::{config, metrics::Metrics, shares::shrunk, stream::Stream};
use tokio::time::Instant;
use tonic::{Code, Status, metadata::MetadataValue};

/// How long a window is at least.
const WINDOW: Duration = Duration::from_millis(100);
/// Minimum number of calls in a window.
const CALLS: u64 = 32;
/// One of so many parts of the limit is for whoever comes: until it is reached nobody can have too many calls in
/// flight, and nobody's are counted. Callers share the other parts.
const OTHERS: u32 = 4;
/// When a call that was shed may come back: after this, and up to as long again, so that all those that were
/// shed at once do not come back at once.
const COME_BACK: Duration = Duration::from_millis(100);

/// What happens to a call when its process is overloaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    /// Never shed.
    Vital,
    /// Shed at half as much again as the limit.
    Hop,
    /// Shed at the limit.
    Entry,
}

impl Tier {
    /// What a workload asks for itself, such as its credentials, keeps it alive: it has places of its own.
    fn of(call: &Call) -> Self {
        match call.peer.class {
            _ if call.method.rule.load == Load::Vital || call.is_own() => Self::Vital,
            // A stranger: places and the flood guard bound those.
            Some(PeerClass::Joiner) => Self::Vital,
            _ if call.enters_the_mesh() => Self::Entry,
            _ => Self::Hop,
        }
    }

    /// The number of calls in flight at which it is shed.
    fn bound(self, limit: u32) -> u32 {
        match self {
            Self::Vital => u32::MAX,
            Self::Hop => limit.saturating_add(limit / 2),
            Self::Entry => limit,
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Vital => "vital",
            Self::Hop => "hop",
            Self::Entry => "entry",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ShedLabels {
    tier: &'static str,
    full: &'static str,
}

/// What had no room for a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Full {
    /// The process.
    Limit,
    /// The caller's part of it.
    Share,
}

impl Full {
    /// The value of the metric label, as places have it.
    fn label(self) -> &'static str {
        match self {
            Self::Limit => "all",
            Self::Share => "caller",
        }
    }
}

/// The calls in flight of one process. Clones share them.
#[derive(Debug, Clone)]
pub struct Overload(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    limit: AtomicU32,
    /// The count itself, so that the metric cannot diverge from it.
    in_flight: Gauge,
    /// The callers' parts of it, of all services.
    shares: Holders,
    hasher: RandomState,
    /// The most in flight in this window.
    most: AtomicU32,
    /// The calls that were measured in this window.
    measured: AtomicU64,
    meters: Meters,
    window: Mutex<Current>,
    limit_shown: Gauge,
    shed: Family<ShedLabels, Counter>,
}

#[derive(Debug)]
struct Current {
    gradient: Gradient,
    learning: Learning,
    since: Instant,
}

impl Overload {
    /// Creates the limit of a process, and registers its metrics.
    pub fn new(settings: &config::Overload, metrics: &Metrics) -> Self {
        let gradient = Gradient::new(settings.floor, settings.ceiling);
        let limit_shown = metrics.register(
            "overload_limit",
            "Calls in flight at which further ones are shed",
            Gauge::default(),
        );
        let shed = metrics.register(
            "overload_shed",
            "Calls that were shed because the process was overloaded, by what was full",
            Family::default(),
        );
        let methods = contract().map_or(0, MethodTable::len);
        let (meters, learning) = meters::of(methods);
        let hasher = RandomState::new();
        limit_shown.set(gradient.limit().into());
        Self(Arc::new(Inner {
            limit: AtomicU32::new(gradient.limit()),
            in_flight: metrics.register(
                "overload_in_flight",
                "Calls in flight that count towards the limit",
                Gauge::default(),
            ),
            shares: Holders::new(hasher.clone()),
            hasher,
            most: AtomicU32::new(0),
            measured: AtomicU64::new(0),
            meters,
            window: Mutex::new(Current {
                gradient,
                learning,
                since: Instant::now(),
            }),
            limit_shown,
            shed,
        }))
    }

    /// How the callers are hashed whose keys decide about shares and are measured.
    pub(crate) fn hasher(&self) -> &RandomState {
        &self.0.hasher
    }

    fn in_flight(&self) -> u32 {
        u32::try_from(self.0.in_flight.get()).unwrap_or(0)
    }

    fn bound(&self, tier: Tier) -> u32 {
        tier.bound(self.0.limit.load(Ordering::Relaxed))
    }

    /// Counts a call in, unless the process is too busy for it.
    pub(crate) fn enter(&self, call: &Call) -> Result<(), Status> {
        let tier = Tier::of(call);
        let entered = match is_measured(call) {
            true => self.count(call, tier),
            false if self.in_flight() < self.bound(tier) => Ok(()),
            false => Err(Full::Limit),
        };
        entered.map_err(|full| self.shed(tier, full, call))
    }

    fn count(&self, call: &Call, tier: Tier) -> Result<(), Full> {
        let before = u32::try_from(self.0.in_flight.inc()).unwrap_or(0);
        if before >= self.bound(tier) {
            self.0.in_flight.dec();
            return Err(Full::Limit);
        }
        call.flight().begin();
        // Most often there were more before, and the cache line stays shared.
        if before >= self.0.most.load(Ordering::Relaxed) {
            self.0.most.fetch_max(before + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Counts a call in its caller's part, once the caller is known.
    pub(crate) fn share(&self, call: &Call) -> Result<(), Status> {
        let tier = Tier::of(call);
        self.count_share(call, tier)
            .map_err(|full| self.shed(tier, full, call))
    }

    fn count_share(&self, call: &Call, tier: Tier) -> Result<(), Full> {
        let (bound, used) = (self.bound(tier), self.in_flight());
        let others = bound / OTHERS;
        let Some(caller) = call.holder().filter(|_| call.flight().is_counted()) else {
            return Ok(());
        };
        if used < others {
            return Ok(());
        }
        let [bound, others, used] = [bound, others, used].map(|n| n as usize);
        let most = shrunk(bound, bound - others, bound.saturating_sub(used));
        let share = || self.0.shares.with_key(caller.key());
        match call.flight().enter(share, most) {
            true => Ok(()),
            false => Err(Full::Share),
        }
    }

    /// Called after a call was polled: while it waits for its client it is not counted.
    pub(crate) fn polled(&self, call: &Arc<Call>) {
        if !call.flight().is_counted() || !Stream::is_request_awaited() {
            return;
        }
        self.leave(call);
        let (overload, call) = (self.clone(), Arc::clone(call));
        Stream::set_gate(Box::new(move || Ok(overload.resume(&call)?)));
    }

    /// Counts a call in again whose request has arrived.
    fn resume(&self, call: &Call) -> Result<(), Status> {
        let tier = Tier::of(call);
        let counted = self
            .count(call, tier)
            .and_then(|()| self.count_share(call, tier));
        counted.map_err(|full| {
            let status = self.shed(tier, full, call);
            call.set_refusal(&status);
            call.flight().shed();
            status
        })
    }

    /// Counts a call out, if it is counted.
    pub(crate) fn leave(&self, call: &Call) {
        if call.flight().end() {
            self.0.in_flight.dec();
        }
    }

    /// Measures a call whose response begins, by the headers of that, and counts it out. `caller` is the key
    /// of its caller.
    pub(crate) fn answered(&self, call: &Call, headers: &HeaderMap, caller: u64) {
        if call.flight().is_counted() {
            let code = fault::code_in(headers).unwrap_or(Code::Ok);
            self.record(call, code, caller);
            self.leave(call);
        }
    }

    fn shed(&self, tier: Tier, full: Full, call: &Call) -> Status {
        self.leave(call);
        let labels = ShedLabels {
            tier: tier.label(),
            full: full.label(),
        };
        self.0.shed.get_or_create(&labels).inc();
        let pause = come_back(call);
        let message = "the service has more to do than it can; try again soon";
        let mut status = match full {
            Full::Limit => fault::overloaded(message, pause),
            Full::Share => fault::share_full("caller", "calls", pause),
        };
        let millis = MetadataValue::from(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        status.metadata_mut().insert(fault::PUSHBACK, millis);
        status
    }

    fn record(&self, call: &Call, outcome: Code, caller: u64) {
        let now = Instant::now();
        let arrived = Stream::request_arrived_at().unwrap_or(call.started);
        let took = now.saturating_duration_since(arrived.max(call.started));
        let meter = self.0.meters.of(call.method.index, caller);
        match outcome {
            Code::Ok => meter.record(took),
            Code::DeadlineExceeded => meter.record_late(took),
            // How fast something is refused says nothing about how fast it is done.
            _ => return,
        }
        if self.0.measured.fetch_add(1, Ordering::Relaxed) + 1 >= CALLS {
            self.close_window(now);
        }
    }

    fn close_window(&self, now: Instant) {
        // One of those who come at the same time does it.
        let Some(mut current) = self.0.window.try_lock() else {
            return;
        };
        let length = now.saturating_duration_since(current.since);
        if length < WINDOW {
            return;
        }
        current.since = now;
        self.0.measured.store(0, Ordering::Relaxed);
        let most = self.0.most.swap(self.in_flight(), Ordering::Relaxed).max(1);
        let is_busy = current.gradient.is_used(most);
        let slowness = current.learning.close(&self.0.meters, length, is_busy);
        let Some(slowness) = slowness else {
            return;
        };
        current.gradient.adapt(Window { slowness, most });
        let limit = current.gradient.limit();
        self.0.limit.store(limit, Ordering::Relaxed);
        self.0.limit_shown.set(limit.into());
    }
}

/// A stranger without a certificate is not: whoever can connect could fill the count.
fn is_measured(call: &Call) -> bool {
    let method = call.method;
    let is_stranger = call.peer.class == Some(PeerClass::Joiner);
    method.rule.load == Load::Measured && !method.server_streaming && !is_stranger
}

/// When a call that was shed may come back. The id of its trace is as good as a draw.
fn come_back(call: &Call) -> Duration {
    let [.., last] = call.trace.trace_id.to_be_bytes();
    COME_BACK + COME_BACK * u32::from(last) / 256
}

#[cfg(test)]
mod tests;
