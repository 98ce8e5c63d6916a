//! Places of the calls in flight and of the open streams of one service.
//!
//! Each kind is bounded in total, by peer and by caller, so that neither a certificate nor a credential
//! takes what others need. A caller or a peer beyond its own share is refused with
//! RESOURCE_EXHAUSTED; when every place is taken, everybody is refused with UNAVAILABLE, at once. So is
//! whom the process has no time for, which all of its services decide together (`overload`).
//!
//! A caller is a person: their keys share one set of places. A call without a credential counts for the
//! peer that its certificate proves. An address, which many may share, counts only where nothing is
//! proven, which is behind the gateway. What workloads do on their own behalf has places of its own:
//! users cannot starve the streams that push credentials.
//!
//! The peer's place is taken before the caller is known, the caller's once it is. Both are released when
//! the call has ended, which for a stream is when its body is dropped. `tars_runtime::shares` counts by
//! key under one lock; every call passes here twice, so a holder is looked up once, in one of many
//! shards, and counted with atomics.

use crate::{
    Call,
    check::Check,
    holders::{Holder, Holders, KINDS, Kind},
    observe::{Observe, Watch},
    overload::Overload,
};
use http::{HeaderMap, Request};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
};
use std::{hash::Hash, sync::Arc, time::Duration};
use tars_certs::PeerClass;
use tars_proto::fault;
use tars_runtime::{config::Config, metrics::Metrics, network::bucket, shares::shrunk};
use tonic::{Code, Status};

const RETRY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    service: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusalLabels {
    service: String,
    kind: &'static str,
    full: &'static str,
}

/// Gauges of places in use and counters of refusals; one per process.
#[derive(Debug, Clone)]
pub struct PlaceMetrics {
    in_use: Family<PoolLabels, Gauge>,
    refused: Family<RefusalLabels, Counter>,
}

impl PlaceMetrics {
    /// Registers the metrics.
    pub fn new(metrics: &Metrics) -> Self {
        Self {
            in_use: metrics.register(
                "rpc_server_places",
                "Places in use, by what they are for",
                Family::default(),
            ),
            refused: metrics.register(
                "rpc_server_places_refused",
                "Calls and streams that found no place, by whose share was full",
                Family::default(),
            ),
        }
    }
}

/// How many places of a kind there are, and how many of them one holder may have.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    all: usize,
    by_workload: usize,
    by_peer: usize,
    by_caller: usize,
}

#[derive(Debug)]
struct Pool {
    bounds: Bounds,
    /// The count itself, so that the metric cannot diverge from it.
    in_use: Gauge,
}

impl Pool {
    /// A share at the current occupancy.
    fn shrunk(&self, share: usize) -> usize {
        let used = usize::try_from(self.in_use.get()).unwrap_or(0);
        let free = self.bounds.all.saturating_sub(used);
        shrunk(self.bounds.all, share, free)
    }

    fn enter(&self) -> bool {
        let all = i64::try_from(self.bounds.all).unwrap_or(i64::MAX);
        let free = self.in_use.inc() < all;
        if !free {
            self.in_use.dec();
        }
        free
    }
}

/// The key by which a holder is found.
#[derive(Debug, Hash)]
enum Key<'a> {
    Peer(&'a str),
    Caller(&'a str),
    Address(u64),
}

impl<'a> Key<'a> {
    fn of_peer(call: &'a Call) -> Self {
        match call.peer.id() {
            Some(id) => Self::Peer(id.as_str()),
            None => Self::Address(bucket(call.peer.addr.ip())),
        }
    }

    /// `None` for a workload that calls on its own behalf: its share is the peer's.
    fn of_caller(call: &'a Call) -> Option<Self> {
        if call.caller().is_some() {
            return Some(Self::Caller(call.owner()));
        }
        match call.peer.class {
            Some(PeerClass::Gateway) => Some(Self::Address(bucket(call.client))),
            Some(class) if class.is_workload() => None,
            _ => Some(Self::of_peer(call)),
        }
    }

    fn subject(&self) -> &'static str {
        match self {
            Self::Peer(_) => "peer",
            Self::Caller(_) => "caller",
            Self::Address(_) => "address",
        }
    }
}

/// The places of one service. Clones share them.
#[derive(Debug, Clone)]
pub struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    service: String,
    pools: [Pool; KINDS.len()],
    peers: Holders,
    callers: Holders,
    refused: Family<RefusalLabels, Counter>,
    overload: Overload,
}

fn bounds(config: &Config, kind: Kind) -> Bounds {
    let (limits, connections) = (&config.limits, &config.connections);
    let (all, by_peer, by_caller) = if kind.is_stream() {
        (
            connections.max_open_streams,
            limits.streams_by_peer,
            limits.streams_by_caller,
        )
    } else {
        (
            connections.max_in_flight,
            limits.calls_by_peer,
            limits.calls_by_caller,
        )
    };
    Bounds {
        all,
        by_workload: (all - all / 4).max(1),
        by_peer: by_peer as usize,
        by_caller: by_caller as usize,
    }
}

impl Places {
    /// Creates the places of `service`, all of them free.
    pub fn new(service: &str, config: &Config, metrics: &PlaceMetrics, overload: Overload) -> Self {
        let pool = |kind: Kind| Pool {
            bounds: bounds(config, kind),
            in_use: (metrics.in_use)
                .get_or_create(&PoolLabels {
                    service: service.to_owned(),
                    kind: kind.label(),
                })
                .clone(),
        };
        Self(Arc::new(Inner {
            service: service.to_owned(),
            pools: KINDS.map(pool),
            peers: Holders::new(overload.hasher().clone()),
            callers: Holders::new(overload.hasher().clone()),
            refused: metrics.refused.clone(),
            overload,
        }))
    }

    fn pool(&self, kind: Kind) -> &Pool {
        &self.0.pools[kind as usize]
    }

    fn enter(&self, call: &Arc<Call>) -> Result<Slot, Status> {
        let overload = &self.0.overload;
        overload.enter(call)?;
        self.take(call).inspect_err(|_| overload.leave(call))
    }

    fn take(&self, call: &Arc<Call>) -> Result<Slot, Status> {
        let (kind, key) = (
            Kind::of(call.is_own(), call.method.server_streaming),
            Key::of_peer(call),
        );
        let pool = self.pool(kind);
        let carries = call.peer.class.is_some_and(PeerClass::is_workload);
        let most = if carries {
            pool.bounds.by_workload
        } else {
            pool.shrunk(pool.bounds.by_peer)
        };
        let peer = self.0.peers.get(&key);
        if !peer.enter(kind, most) {
            return Err(self.share_full(kind, key.subject()));
        }
        if !pool.enter() {
            peer.leave(kind);
            return Err(self.all_full(kind));
        }
        Ok(Slot {
            places: self.clone(),
            kind,
            peer,
            call: Arc::clone(call),
        })
    }

    fn count_refusal(&self, kind: Kind, full: &'static str) {
        let labels = RefusalLabels {
            service: self.0.service.clone(),
            kind: kind.label(),
            full,
        };
        self.0.refused.get_or_create(&labels).inc();
    }

    fn share_full(&self, kind: Kind, subject: &'static str) -> Status {
        self.count_refusal(kind, subject);
        fault::share_full(subject, kind.plural(), RETRY)
    }

    fn all_full(&self, kind: Kind) -> Status {
        self.count_refusal(kind, "all");
        let message = match kind.is_stream() {
            true => "too many streams are open",
            false => "too many calls are in flight",
        };
        fault::overloaded(message, RETRY)
    }
}

impl Observe for Places {
    type Watch = Slot;

    fn begin<B>(&self, request: &mut Request<B>) -> Result<Slot, Status> {
        let call = Call::in_extensions(request.extensions());
        self.enter(call.ok_or_else(|| Status::internal("the call has no record"))?)
    }
}

/// The check of the caller's share, once the caller is known.
impl Check for Places {
    fn check(&self, call: &Arc<Call>, _: &http::HeaderMap) -> Result<(), Status> {
        let Some(key) = Key::of_caller(call) else {
            return Ok(());
        };
        let kind = Kind::of(call.is_own(), call.method.server_streaming);
        let (pool, holder) = (self.pool(kind), self.0.callers.get(&key));
        if !holder.enter(kind, pool.shrunk(pool.bounds.by_caller)) {
            return Err(self.share_full(kind, key.subject()));
        }
        call.set_holder(holder);
        self.0.overload.share(call)
    }
}

/// The places of one call, released when it is dropped.
#[derive(Debug)]
pub struct Slot {
    places: Places,
    kind: Kind,
    peer: Arc<Holder>,
    call: Arc<Call>,
}

impl Watch for Slot {
    fn enter<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let done = work();
        self.places.0.overload.polled(&self.call);
        done
    }

    fn answer(&self, headers: &mut HeaderMap) {
        let caller = self.call.holder().unwrap_or(&self.peer).key();
        self.places.0.overload.answered(&self.call, headers, caller);
    }

    fn end(self, _: Code) {
        drop(self);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.places.0.overload.leave(&self.call);
        if let Some(caller) = self.call.holder() {
            caller.leave(self.kind);
        }
        self.peer.leave(self.kind);
        self.places.pool(self.kind).in_use.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{ME, by_credential, call};

    const WATCH: &str = "/grpc.health.v1.Health/Watch";
    const LOGIN: &str = "/tars.auth.v1.AuthService/Login";
    const EVENTS: &str = "/tars.automl.v1.StudyService/WatchStudy";
    const CREDENTIALS: &str = "/tars.auth.v1.CredentialService/WatchCredentials";

    fn places() -> (Places, Metrics) {
        let (mut config, metrics) = (Config::default(), Metrics::default());
        config.connections.max_in_flight = 8;
        config.connections.max_open_streams = 8;
        config.limits.calls_by_caller = 2;
        config.limits.streams_by_caller = 2;
        config.limits.calls_by_peer = 4;
        config.limits.streams_by_peer = 4;
        let overload = Overload::new(&config.overload, &metrics);
        let places = Places::new("test", &config, &PlaceMetrics::new(&metrics), overload);
        (places, metrics)
    }

    fn by_user(method: &str, peer: &str, user: &str) -> Arc<Call> {
        by_credential(method, peer, user, &format!("user:{user}"))
    }

    /// Takes the peer's place, then the caller's; the error is whose share is full.
    fn take(places: &Places, call: &Arc<Call>) -> Result<Slot, String> {
        let subject = |status: Status| {
            let details = tonic_types::StatusExt::get_details_quota_failure(&status);
            let subject = details.map(|d| d.violations[0].subject.clone());
            let full = matches!(
                (status.code(), &subject),
                (Code::ResourceExhausted, Some(_)) | (Code::Unavailable, None)
            );
            assert!(full, "{status:?}");
            subject.unwrap_or_else(|| "all".to_owned())
        };
        let slot = places.enter(call).map_err(subject)?;
        places
            .check(call, &http::HeaderMap::new())
            .map_err(subject)?;
        Ok(slot)
    }

    fn in_use(metrics: &Metrics, kind: &str) -> String {
        let line = format!("rpc_server_places{{service=\"test\",kind=\"{kind}\"}} ");
        let (_, text) = metrics.render("").unwrap();
        let found = text.lines().find_map(|l| l.strip_prefix(line.as_str()));
        found.unwrap().to_owned()
    }

    #[test]
    fn a_caller_beyond_its_share_is_refused_and_others_are_not() {
        let (places, metrics) = places();
        let held = [0, 1].map(|_| take(&places, &by_user(ME, "/gateway", "ada")).unwrap());
        let refused = take(&places, &by_user(ME, "/gateway", "ada"));
        assert_eq!(refused.unwrap_err(), "caller");
        let other = take(&places, &by_user(ME, "/gateway", "bob")).unwrap();
        assert_eq!(in_use(&metrics, "calls"), "3");
        drop(held);
        assert!(take(&places, &by_user(ME, "/gateway", "ada")).is_ok());
        drop(other);
        assert_eq!(in_use(&metrics, "calls"), "0");
    }

    #[test]
    fn streams_and_calls_are_counted_apart() {
        let (places, metrics) = places();
        let _streams = [0, 1].map(|_| take(&places, &by_user(EVENTS, "/gateway", "ada")).unwrap());
        let refused = take(&places, &by_user(EVENTS, "/gateway", "ada"));
        assert_eq!(refused.unwrap_err(), "caller");
        let _calls = [0, 1].map(|_| take(&places, &by_user(ME, "/gateway", "ada")).unwrap());
        assert_eq!(
            (in_use(&metrics, "streams"), in_use(&metrics, "calls")),
            ("2".to_owned(), "2".to_owned())
        );
    }

    #[test]
    fn keys_share_the_places_of_their_owner() {
        let (places, _) = places();
        let ada = |label: &str| by_credential(EVENTS, "/gateway", "ada", label);
        let _held = ["key:1", "key:2"].map(|key| take(&places, &ada(key)).unwrap());
        for other in ["key:3", "user:ada"] {
            assert_eq!(take(&places, &ada(other)).unwrap_err(), "caller");
        }
        assert!(take(&places, &by_user(EVENTS, "/gateway", "bob")).is_ok());
    }

    #[test]
    fn a_call_without_a_credential_counts_by_what_is_proven() {
        let (places, _) = places();
        let from = |path, n| call(WATCH, PeerClass::Client, path, [10, 0, 0, n]);
        let _held = [1, 2].map(|n| take(&places, &from("/client/x", n)).unwrap());
        assert_eq!(take(&places, &from("/client/x", 3)).unwrap_err(), "peer");
        assert!(
            take(&places, &from("/client/y", 1)).is_ok(),
            "another certificate on the same address has its own share"
        );
        let login = |n| call(LOGIN, PeerClass::Gateway, "/gateway", [10, 0, 0, n]);
        let _logins = [0, 1].map(|_| take(&places, &login(1)).unwrap());
        assert_eq!(take(&places, &login(1)).unwrap_err(), "address");
        assert!(take(&places, &login(2)).is_ok());
    }

    #[test]
    fn calls_of_workloads_on_their_own_behalf_have_places_of_their_own() {
        let (places, metrics) = places();
        let gateway = (0..6).map(|n| by_user(EVENTS, "/gateway", &format!("u{n}")));
        let mut held: Vec<Slot> = gateway.map(|c| take(&places, &c).unwrap()).collect();
        // A workload may have three quarters of all, however many callers it carries.
        let refused = take(&places, &by_user(EVENTS, "/gateway", "late"));
        assert_eq!(refused.unwrap_err(), "peer");
        let client = |n| {
            call(
                EVENTS,
                PeerClass::Client,
                &format!("/client/{n}"),
                [1, 1, 1, n],
            )
        };
        held.extend([1, 2].map(|n| take(&places, &client(n)).unwrap()));
        assert_eq!(take(&places, &client(3)).unwrap_err(), "all");
        for class in [PeerClass::Gateway, PeerClass::Automl] {
            let own = call(CREDENTIALS, class, "/some", [127, 0, 0, 1]);
            held.push(take(&places, &own).unwrap());
        }
        assert_eq!(in_use(&metrics, "own_streams"), "2");
        drop(held);
        assert_eq!(
            (in_use(&metrics, "streams"), in_use(&metrics, "own_streams")),
            ("0".to_owned(), "0".to_owned())
        );
    }

    #[test]
    fn greedy_peers_leave_places_for_a_newcomer() {
        let mut config = Config::default();
        config.connections.max_open_streams = 256;
        config.limits.streams_by_peer = 64;
        config.limits.streams_by_caller = 64;
        let metrics = Metrics::default();
        let overload = Overload::new(&config.overload, &metrics);
        let places = Places::new("test", &config, &PlaceMetrics::new(&metrics), overload);
        let greedy = |n: u8| {
            let path = format!("/client/{n}");
            let open = || call(WATCH, PeerClass::Client, &path, [10, 0, 0, n]);
            std::iter::from_fn(|| take(&places, &open()).ok()).collect::<Vec<_>>()
        };
        let held: Vec<Vec<Slot>> = (0..8).map(greedy).collect();
        assert_eq!(held[0].len(), 64, "one alone has its whole share");
        assert!(!greedy(99).is_empty(), "a newcomer finds a place");
    }

    #[test]
    fn a_refusal_holds_no_place_and_is_counted() {
        let (places, metrics) = places();
        let refuse = by_user(ME, "/gateway", "ada");
        let held = [0, 1].map(|_| take(&places, &by_user(ME, "/gateway", "ada")).unwrap());
        for _ in 0..20 {
            assert!(take(&places, &refuse).is_err());
        }
        drop(held);
        assert_eq!(in_use(&metrics, "calls"), "0");
        let line =
            "rpc_server_places_refused_total{service=\"test\",kind=\"calls\",full=\"caller\"} 20";
        assert!(metrics.render("").unwrap().1.contains(line));
    }
}
