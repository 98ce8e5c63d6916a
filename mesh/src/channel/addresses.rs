//! The addresses of a server: those that are listed, and those that listed names have now.
//!
//! A name is looked up when the channel is first used, every 30 seconds, and soon after a connection
//! failed. A lookup that fails, or that finds nothing, leaves the addresses of that name as they were: DNS
//! that is away must not take a service with it. Of very many addresses a client uses a subset of its own.

use super::{
    balance::{Draws, pick},
    connected::Connected,
    ending::Ending,
    endpoint::{Endpoint, MAX_CONNECTIONS},
    error::ChannelError,
    lookups::{self, Lookups, Turn},
    options::Dialer,
    resolve::Resolve,
    slots::StreamSlot,
    subset::Subset,
    trial::{Timing, Trial},
};
use arc_swap::ArcSwap;
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use http::uri::PathAndQuery;
use parking_lot::Mutex;
use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};
use tars_certs::Identity;
use tars_proto::table::{self, Outline};
use tars_runtime::{
    backoff::spread,
    seeds::Seeds,
    targets::{Target, Targets},
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// How often names are looked up while nothing fails.
const LOOKUP_INTERVAL: Duration = Duration::from_secs(30);
/// The minimum time between two lookups.
const LOOKUP_PAUSE: Duration = Duration::from_secs(2);
/// How long a lookup may take.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

type Endpoints = Vec<Arc<Endpoint>>;

/// What an address is chosen for.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) method: PathAndQuery,
    /// What is known of the method; `None` of one that is not in the contract.
    pub(super) outline: Option<&'static Outline>,
    /// The addresses that have failed it.
    pub(super) failed: Vec<Arc<Endpoint>>,
    /// Whether the call can be sent again when the address that it goes to fails it.
    pub(super) spare: bool,
}

impl Wanted {
    pub(super) fn new(method: PathAndQuery) -> Self {
        Self {
            outline: table::outline(method.path()),
            method,
            failed: Vec::new(),
            spare: false,
        }
    }

    /// What the time of the call is compared with.
    fn timing(&self) -> Timing {
        match self.outline {
            Some(method) if method.queued => Timing::Queued,
            Some(method) => Timing::Method(method.index),
            None => Timing::Unknown,
        }
    }

    /// Whether the contract allows to send the call again after it failed.
    pub(super) fn is_repeatable(&self) -> bool {
        self.outline.is_some_and(|method| method.idempotent)
    }

    /// Whether the response is one message, for which its caller waits in any case.
    pub(super) fn is_answered_once(&self) -> bool {
        self.outline.is_some_and(|method| !method.server_streaming)
    }

    fn avoids(&self, endpoint: &Arc<Endpoint>) -> bool {
        let failed = &self.failed;
        failed.iter().any(|failed| Arc::ptr_eq(failed, endpoint))
    }
}

/// A stream of a connection, for one call.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) choice: Choice,
    pub(super) slot: StreamSlot,
}

impl Lease {
    fn new(choice: Choice, slot: StreamSlot) -> Self {
        if choice.connected.slots.is_short() {
            choice.endpoint.prepare();
        }
        Self { choice, slot }
    }
}

/// An address that was chosen for a call.
#[derive(Debug)]
pub(super) struct Choice {
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) connected: Arc<Connected>,
    /// `None` where there is one address, which has nothing to be compared with.
    pub(super) trial: Option<Trial>,
}

/// Why there is no stream for a call.
#[derive(Debug, thiserror::Error)]
pub(super) enum LeaseError {
    /// Every stream of every connection is in use.
    #[error("every stream is in use")]
    Full,
    /// There is no connection.
    #[error(transparent)]
    Unreachable(#[from] ChannelError),
}

/// The addresses of one server, and which of them can be used.
#[derive(Debug)]
pub(super) struct Addresses {
    pub(super) dialer: Arc<Dialer>,
    pub(super) targets: Targets,
    pub(super) resolver: Arc<dyn Resolve>,
    endpoints: ArcSwap<Endpoints>,
    draws: Draws,
    /// Wakes the task that looks names up.
    wanted: Arc<Notify>,
    lookups: Mutex<Lookups>,
    subset: Subset,
}

impl Addresses {
    pub(super) fn new(dialer: Dialer, targets: Targets, resolver: Arc<dyn Resolve>) -> Arc<Self> {
        let (dialer, wanted) = (Arc::new(dialer), Arc::new(Notify::new()));
        let literal = targets.iter().filter_map(|t| Some((t, t.addr()?)));
        let endpoints: Endpoints = literal
            .map(|(target, addr)| Arc::new(Endpoint::new(&dialer, target, addr, &wanted)))
            .collect();
        dialer.common.ejections.set_addresses(endpoints.len());
        Arc::new(Self {
            dialer,
            targets,
            resolver,
            endpoints: ArcSwap::from_pointee(endpoints),
            draws: Draws::new(&Seeds::system()),
            wanted,
            lookups: Mutex::new(Lookups::new()),
            subset: Subset::new(&Seeds::system()),
        })
    }

    /// The number of connections that are open, and of addresses that have none.
    pub(super) fn connections(&self) -> usize {
        let endpoints = self.endpoints.load();
        endpoints.iter().map(|e| e.connections().max(1)).sum()
    }

    /// Returns a connection; opens one where there is none.
    pub(super) async fn connection(self: &Arc<Self>) -> Result<Arc<Connected>, ChannelError> {
        let identity = self.dialer.options.identity.current();
        let endpoints = self.endpoints.load_full();
        let open = endpoints.iter().find_map(|e| e.usable(&identity));
        match open {
            Some(connected) => Ok(connected),
            None => self.connect().await,
        }
    }

    /// Takes a stream of a connection; opens one where none has a free stream.
    ///
    /// Those who wait for a connection share it, so that a crowd may have to wait for several.
    pub(super) async fn lease(self: &Arc<Self>, wanted: &Wanted) -> Result<Lease, LeaseError> {
        for _ in 0..=MAX_CONNECTIONS {
            let Some(choice) = self.choose(wanted) else {
                self.connect().await?;
                continue;
            };
            if let Some(slot) = choice.connected.slots.try_take() {
                return Ok(Lease::new(choice, slot));
            }
            if !choice.end_unsent().further().await {
                break;
            }
        }
        self.lease_of_others(wanted).await
    }

    /// Waits a moment for a stream of others to end.
    async fn lease_of_others(&self, wanted: &Wanted) -> Result<Lease, LeaseError> {
        let choice = self.choose(wanted).ok_or(LeaseError::Full)?;
        let patience = self.dialer.traffic.patience();
        match choice.connected.slots.take(patience).await {
            Some(slot) => Ok(Lease::new(choice, slot)),
            None => {
                choice.end_unsent();
                Err(LeaseError::Full)
            }
        }
    }

    fn choose(&self, wanted: &Wanted) -> Option<Choice> {
        let endpoints = self.endpoints.load();
        let identity = self.dialer.options.identity.current();
        match endpoints.as_slice() {
            [only] => Some(Choice {
                endpoint: Arc::clone(only),
                connected: only.usable(&identity)?,
                trial: None,
            }),
            several => {
                let probe = || probe(several, &identity, wanted);
                probe().or_else(|| self.balanced(several, &identity, wanted))
            }
        }
    }

    /// Whether there is an address that has not failed a call.
    pub(super) fn has_other(&self, wanted: &Wanted) -> bool {
        let endpoints = self.endpoints.load();
        let identity = self.dialer.options.identity.current();
        let mut others = endpoints.iter().filter(|e| !wanted.avoids(e));
        others.any(|e| !e.health.is_ejected() && e.usable(&identity).is_some())
    }

    /// Prefers addresses that have not failed the call, with a free stream, and takes an ejected one when
    /// there is no other. Addresses without a connection are revived as they are come across.
    fn balanced(
        &self,
        all: &[Arc<Endpoint>],
        identity: &Arc<Identity>,
        wanted: &Wanted,
    ) -> Option<Choice> {
        let ready = |at: usize| {
            let endpoint = all.get(at)?;
            let connected = endpoint.usable(identity);
            if connected.is_none() {
                endpoint.revive();
            }
            Some((endpoint, connected?))
        };
        let admitted = |at| ready(at).filter(|(endpoint, _)| !endpoint.health.is_ejected());
        let best = |at| {
            let found = admitted(at);
            found.filter(|(endpoint, open)| open.slots.has_room() && !wanted.avoids(endpoint))
        };
        let (draw, now) = (self.draws.next(), Instant::now());
        let load = |(endpoint, _): &(&Arc<Endpoint>, _)| endpoint.load(now);
        let picked = pick(all.len(), draw, best, load)
            .or_else(|| pick(all.len(), draw, admitted, load))
            .or_else(|| pick(all.len(), draw, ready, load));
        picked.map(|(endpoint, connected)| Choice {
            trial: Some(Trial::call(&endpoint.health, wanted.timing(), now)),
            endpoint: Arc::clone(endpoint),
            connected,
        })
    }

    /// Connects to all addresses, and returns the first connection that is open.
    async fn connect(self: &Arc<Self>) -> Result<Arc<Connected>, ChannelError> {
        let endpoints = self.known().await?;
        let mut attempts: FuturesUnordered<_> = endpoints
            .iter()
            .map(|endpoint| endpoint.connection())
            .collect();
        let mut failures = Vec::new();
        while let Some(outcome) = attempts.next().await {
            match outcome {
                Ok(connected) => return Ok(connected),
                Err(error) => failures.push(error),
            }
        }
        Err(ChannelError::of_all(failures))
    }

    /// Returns the addresses, after a first lookup of the names among them.
    async fn known(self: &Arc<Self>) -> Result<Arc<Endpoints>, ChannelError> {
        if self.targets.iter().any(|target| target.addr().is_none()) {
            self.looked_up().await?;
        }
        Ok(self.endpoints.load_full())
    }

    /// Waits until the names have been looked up.
    async fn looked_up(self: &Arc<Self>) -> Result<(), ChannelError> {
        let turn = self.lookups.lock().turn(Instant::now());
        let mut attempt = match turn {
            Turn::Take(outcome) => return outcome,
            Turn::Wait(attempt) => attempt,
            Turn::Start(report, attempt) => {
                tokio::spawn(Arc::clone(self).look_up_first(report));
                attempt
            }
        };
        let outcome = attempt.wait_for(Option::is_some).await;
        let outcome = outcome.ok().and_then(|outcome| outcome.clone());
        let target = || self.dialer.options.target.clone();
        outcome.unwrap_or_else(|| Err(ChannelError::Abandoned { target: target() }))
    }

    async fn look_up_first(self: Arc<Self>, report: watch::Sender<Option<lookups::Outcome>>) {
        let outcome = self.look_up().await;
        match &outcome {
            Ok(()) => {
                let again = look_up_again(Arc::downgrade(&self), Arc::clone(&self.wanted));
                let again = AbortOnDropHandle::new(tokio::spawn(again));
                self.lookups.lock().succeed(again);
            }
            Err(error) => self.lookups.lock().fail(error.clone(), Instant::now()),
        }
        report.send_replace(Some(outcome));
    }

    /// Looks all names up, and replaces the addresses.
    async fn look_up(&self) -> Result<(), ChannelError> {
        let found = join_all(self.targets.iter().map(|target| self.addresses_of(target))).await;
        let before = self.endpoints.load_full();
        let (mut all, mut failure) = (Vec::new(), None);
        for (target, found) in self.targets.iter().zip(found) {
            let addrs = found.unwrap_or_else(|source| {
                failure = Some(self.not_found(target, source));
                let of_target = before.iter().filter(|e| e.target == *target);
                of_target.map(|e| e.addr).collect()
            });
            add(&mut all, target, addrs);
        }
        let workload = self.dialer.options.workload();
        self.subset.cut(workload, &mut all, |(_, addr)| *addr);
        let endpoint = |(target, addr)| self.endpoint(&before, target, addr);
        let endpoints: Endpoints = all.into_iter().map(endpoint).collect();
        if failure.is_some() {
            self.wanted.notify_one();
        }
        match failure {
            Some(failure) if endpoints.is_empty() => return Err(failure),
            _ => {
                let ejections = &self.dialer.common.ejections;
                ejections.set_addresses(endpoints.len());
                self.endpoints.store(Arc::new(endpoints));
            }
        }
        Ok(())
    }

    async fn addresses_of(&self, target: &Target) -> io::Result<Vec<SocketAddr>> {
        if let Some(addr) = target.addr() {
            return Ok(vec![addr]);
        }
        let found = timeout(LOOKUP_LIMIT, self.resolver.resolve(target)).await;
        let mut addrs = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        // Resolvers shuffle; what is the same should look the same.
        addrs.sort_unstable();
        match addrs.is_empty() {
            true => Err(io::Error::other(
                "failed to lookup address information: the name has no address",
            )),
            false => Ok(addrs),
        }
    }

    /// An address, with the connections that there were to it.
    fn endpoint(&self, before: &Endpoints, target: &Target, addr: SocketAddr) -> Arc<Endpoint> {
        let mut same = before
            .iter()
            .filter(|e| e.addr == addr && e.target == *target);
        let new = || Arc::new(Endpoint::new(&self.dialer, target, addr, &self.wanted));
        same.next().map_or_else(new, Arc::clone)
    }

    fn not_found(&self, target: &Target, source: io::Error) -> ChannelError {
        let (workload, target) = (self.dialer.options.workload(), target.to_string());
        tracing::debug!(workload, name = target, error = %source, "cannot look up a name");
        ChannelError::connect(target, source)
    }
}

impl Choice {
    /// Drops the choice: the call was not sent there.
    fn end_unsent(self) -> Arc<Endpoint> {
        if let Some(trial) = self.trial {
            trial.end(Ending::Other);
        }
        self.endpoint
    }
}

/// Adds the addresses of a target that no other one has.
fn add<'t>(all: &mut Vec<(&'t Target, SocketAddr)>, target: &'t Target, addrs: Vec<SocketAddr>) {
    for addr in addrs {
        if all.iter().all(|(_, known)| *known != addr) {
            all.push((target, addr));
        }
    }
}

/// Chooses an ejected address, when it is time to see whether it works again.
fn probe(all: &[Arc<Endpoint>], identity: &Arc<Identity>, wanted: &Wanted) -> Option<Choice> {
    let mut ejected = all
        .iter()
        .filter(|e| e.health.is_ejected() && !wanted.avoids(e));
    ejected.find_map(|endpoint| {
        let Some(connected) = endpoint.usable(identity) else {
            endpoint.revive();
            return None;
        };
        let (health, now) = (&endpoint.health, Instant::now());
        let trial = Trial::try_probe(health, wanted.timing(), wanted.spare, now)?;
        Some(Choice {
            endpoint: Arc::clone(endpoint),
            connected,
            trial: Some(trial),
        })
    })
}

/// Looks the names up again and again, until the channel is dropped.
async fn look_up_again(addresses: Weak<Addresses>, wanted: Arc<Notify>) {
    let seeds = Seeds::system();
    loop {
        sleep(LOOKUP_PAUSE).await;
        tokio::select! {
            () = sleep(spread(LOOKUP_INTERVAL, &seeds)) => {}
            () = wanted.notified() => {}
        }
        let Some(addresses) = addresses.upgrade() else {
            return;
        };
        // Failures are logged, and leave the addresses as they were.
        addresses.look_up().await.ok();
    }
}
