//! One address of a server, and the connections to it.
//!
//! There is one attempt to connect at a time, whose result all callers share. It goes on when they go away:
//! the connection is of use to the next one. After failures the address is left alone for a while, as long
//! as another address of the server can be used.
//!
//! A server limits the streams of one connection, so a further one is opened when few of them are left. A
//! caller that comes when none is left waits for that connection, and never for a stream of others to end,
//! up to a bound on the connections.

use super::{
    attempts::{Attempt, Attempts, Outcome},
    connected::{Carried, Connected},
    error::ChannelError,
    health::Health,
    options::{CONNECT_TIMEOUT, Dialer, Traffic},
    slots::StreamSlots,
    slowness,
};
use arc_swap::ArcSwap;
use http::uri::Authority;
use parking_lot::Mutex;
use std::{net::SocketAddr, sync::Arc};
use tars_certs::Identity;
use tars_runtime::targets::Target;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

/// Maximum number of connections to one address, each with as many streams as the server allows.
pub(super) const MAX_CONNECTIONS: usize = 8;

/// What a connection is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// There is none.
    First,
    /// Those that are open have few free streams.
    Further,
}

/// Whether a further connection is opened.
enum Growth {
    /// One that is open is enough.
    Enough,
    /// An attempt is running.
    Begun(Attempt),
    /// There are as many as there may be, or the last attempt failed just now.
    None,
}

/// An address of a server.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) dialer: Arc<Dialer>,
    pub(super) target: Target,
    pub(super) addr: SocketAddr,
    /// The address as errors name it, with the name that it was found by.
    pub(super) name: Arc<str>,
    pub(super) authority: Authority,
    pub(super) health: Arc<Health>,
    /// The open connections, the oldest first.
    open: ArcSwap<Vec<Arc<Connected>>>,
    /// The attempts to open one where there is none.
    attempts: Mutex<Attempts>,
    /// The attempts to open one beside those that are open.
    growth: Mutex<Attempts>,
    /// Notified of failures, after which names are looked up again.
    failed: Arc<Notify>,
}

impl Endpoint {
    pub(super) fn new(
        dialer: &Arc<Dialer>,
        target: &Target,
        addr: SocketAddr,
        failed: &Arc<Notify>,
    ) -> Self {
        let text = target.to_string();
        let name = match target.addr() {
            Some(_) => text.clone(),
            None => format!("{text} ({addr})"),
        };
        let authority = Authority::try_from(text);
        let name = Arc::from(name);
        Self {
            dialer: Arc::clone(dialer),
            target: target.clone(),
            addr,
            health: Health::new(&name, &dialer.common),
            name,
            authority: authority.expect("a host and port is an authority"),
            open: ArcSwap::default(),
            attempts: Mutex::new(Attempts::new()),
            growth: Mutex::new(Attempts::new()),
            failed: Arc::clone(failed),
        }
    }

    /// Returns a connection that was opened with `identity`: the first with a free stream, or else the
    /// first. Filling them in their order leaves those empty that are not needed, until the server ends
    /// them for their age.
    pub(super) fn usable(&self, identity: &Arc<Identity>) -> Option<Arc<Connected>> {
        let open = self.open.load();
        let mut usable = open.iter().filter(|open| open.is_usable(identity));
        let first = usable.next()?;
        if first.slots.has_room() {
            return Some(Arc::clone(first));
        }
        let next = usable.find(|open| open.slots.has_room());
        Some(Arc::clone(next.unwrap_or(first)))
    }

    /// The number of connections.
    pub(super) fn connections(&self) -> usize {
        self.open.load().len()
    }

    /// What one more call would cost here: the streams that are then in use, each of which counts the more, the
    /// slower the address is.
    pub(super) fn load(&self, now: Instant) -> f64 {
        let open = self.open.load();
        let taken = open.iter().map(|open| open.slots.taken()).sum::<usize>();
        let streams = u32::try_from(taken).unwrap_or(u32::MAX);
        (f64::from(streams) + 1.0) * slowness::weight(self.health.slowness(now))
    }

    /// Returns a connection, or the result of an attempt to open one, whether it is due or not.
    pub(super) async fn connection(self: &Arc<Self>) -> Outcome {
        let attempt = match self.joined() {
            Ok(connected) => return Ok(connected),
            Err(attempt) => attempt,
        };
        let abandoned = || ChannelError::Abandoned {
            target: self.name(),
        };
        outcome_of(attempt).await.ok_or_else(abandoned)?
    }

    /// Joins the attempt that is running, or starts one.
    fn joined(self: &Arc<Self>) -> Result<Arc<Connected>, Attempt> {
        let mut attempts = self.attempts.lock();
        if let Some(running) = attempts.running() {
            return Err(running.clone());
        }
        // It may have ended just now.
        let identity = self.dialer.options.identity.current();
        match self.usable(&identity) {
            Some(connected) => Ok(connected),
            None => Err(self.start(&mut attempts, Purpose::First)),
        }
    }

    /// Connects in the background, if it is time to try again.
    pub(super) fn revive(self: &Arc<Self>) {
        // Whoever holds the lock is about to start an attempt, or to record the end of one.
        let Some(mut attempts) = self.attempts.try_lock() else {
            return;
        };
        if attempts.is_due(Instant::now()) {
            drop(self.start(&mut attempts, Purpose::First));
        }
    }

    /// Opens a further connection in the background, when few streams of those that are open are free.
    pub(super) fn prepare(self: &Arc<Self>) {
        drop(self.grow(|slots| !slots.is_short()));
    }

    /// Waits for a further connection, where there may be one. Returns whether there is now a connection
    /// with a free stream.
    pub(super) async fn further(self: &Arc<Self>) -> bool {
        match self.grow(StreamSlots::has_room) {
            Growth::Enough => true,
            Growth::Begun(attempt) => outcome_of(attempt).await.is_some_and(|o| o.is_ok()),
            Growth::None => false,
        }
    }

    /// Joins or starts an attempt to open a further connection, unless one that is open is `enough`.
    fn grow(self: &Arc<Self>, enough: impl Fn(&StreamSlots) -> bool) -> Growth {
        let mut growth = self.growth.lock();
        if let Some(running) = growth.running() {
            return Growth::Begun(running.clone());
        }
        let identity = self.dialer.options.identity.current();
        let open = self.open.load();
        let usable = || open.iter().filter(|open| open.is_usable(&identity));
        if usable().any(|open| enough(&open.slots)) {
            return Growth::Enough;
        }
        match usable().count() < MAX_CONNECTIONS && growth.is_due(Instant::now()) {
            true => Growth::Begun(self.start(&mut growth, Purpose::Further)),
            false => Growth::None,
        }
    }

    fn start(self: &Arc<Self>, attempts: &mut Attempts, purpose: Purpose) -> Attempt {
        let (report, attempt) = watch::channel(None);
        attempts.running = Some(attempt.clone());
        tokio::spawn(Arc::clone(self).attempt(purpose, report));
        attempt
    }

    async fn attempt(self: Arc<Self>, purpose: Purpose, report: watch::Sender<Option<Outcome>>) {
        let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let outcome = match connected {
            Ok(connected) => connected.map(Arc::new),
            Err(_) => Err(ChannelError::Timeout {
                target: self.name(),
            }),
        };
        let metrics = &self.dialer.metrics;
        match &outcome {
            Ok(connected) => {
                metrics.opened.inc();
                self.add(connected, purpose);
            }
            Err(error) => {
                metrics.fail(error.label());
                self.record_failure(error, purpose);
            }
        }
        report.send_replace(Some(outcome));
    }

    fn attempts(&self, purpose: Purpose) -> &Mutex<Attempts> {
        match purpose {
            Purpose::First => &self.attempts,
            Purpose::Further => &self.growth,
        }
    }

    /// Adds a connection, in place of those that can no longer be used.
    fn add(&self, connected: &Arc<Connected>, purpose: Purpose) {
        let (workload, address) = (self.dialer.options.workload(), &*self.name);
        let mut attempts = self.attempts(purpose).lock();
        attempts.running = None;
        let identity = self.dialer.options.identity.current();
        self.open.rcu(|open| {
            let usable = open.iter().filter(|open| open.is_usable(&identity));
            let all: Vec<_> = usable.chain([connected]).cloned().collect();
            all
        });
        tracing::debug!(workload, address, "connected");
    }

    fn record_failure(&self, error: &ChannelError, purpose: Purpose) {
        let (workload, address) = (self.dialer.options.workload(), &*self.name);
        let mut attempts = self.attempts(purpose).lock();
        attempts.running = None;
        let carried = match purpose {
            Purpose::First => best(&self.open.swap(Arc::default())),
            // The connections that are open work.
            Purpose::Further => Carried::Nothing,
        };
        attempts.record_failure(carried, Instant::now());
        let failures = attempts.failures;
        tracing::debug!(workload, address, failures, %error, "cannot connect");
        if purpose == Purpose::First {
            self.failed.notify_one();
        }
    }

    /// Drops a connection. The address counts as failed when it was the last one, and carried nothing.
    pub(super) fn forget(&self, gone: &Arc<Connected>) {
        let is_gone = |open: &Arc<Connected>| Arc::ptr_eq(open, gone);
        let before = self.open.rcu(|open| {
            let left: Vec<_> = open.iter().filter(|o| !is_gone(o)).cloned().collect();
            left
        });
        if before.len() == 1 && before.iter().any(is_gone) {
            let mut attempts = self.attempts.lock();
            attempts.record_end(gone.carried(), Instant::now());
        }
    }

    pub(super) fn name(&self) -> String {
        self.name.as_ref().to_owned()
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.dialer.traffic
    }
}

/// Waits for the outcome of an attempt; `None` when it was dropped.
async fn outcome_of(mut attempt: Attempt) -> Option<Outcome> {
    let outcome = attempt.wait_for(Option::is_some).await;
    outcome.ok().and_then(|outcome| outcome.clone())
}

/// The most that one of these connections was good for.
fn best(connections: &[Arc<Connected>]) -> Carried {
    match connections
        .iter()
        .any(|c| c.carried() == Carried::Responses)
    {
        true => Carried::Responses,
        false => Carried::Nothing,
    }
}
