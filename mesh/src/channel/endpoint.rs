//! One address of a server, and the connection to it.
//!
//! There is one attempt to connect at a time, whose result all callers share. It goes on when they go away:
//! the connection is of use to the next one. After failures the address is left alone for a while that
//! doubles, as long as another address of the server can be used. A connection that ended before it
//! carried a response counts as a failure, so that a server that takes connections and drops them is left
//! alone, too.

use super::{
    error::ChannelError,
    options::{CONNECT_TIMEOUT, Dialer, Traffic},
    slots::StreamSlots,
};
use arc_swap::ArcSwapOption;
use http::{
    Uri,
    uri::{Authority, PathAndQuery},
};
use hyper::client::conn::http2::SendRequest;
use parking_lot::Mutex;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tars_certs::{Identity, peer::PeerInfo};
use tars_runtime::{backoff::Backoff, seeds::Seeds, targets::Target};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};
use tonic::body::Body;

/// How long an address is left alone after its first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// How long an address is left alone at most.
const MAX_PAUSE: Duration = Duration::from_secs(5);

type Outcome = Result<Arc<Connected>, ChannelError>;
type Attempt = watch::Receiver<Option<Outcome>>;

/// An open connection.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) sender: SendRequest<Body>,
    /// The identity with which it was opened.
    pub(super) identity: Arc<Identity>,
    pub(super) server: Server,
    pub(super) slots: Arc<StreamSlots>,
    /// The server's address, for errors.
    pub(super) name: Arc<str>,
    pub(super) authority: Authority,
    /// Whether it carried a response.
    pub(super) proven: AtomicBool,
}

/// What is known of a server after the handshake.
#[derive(Debug, Clone)]
pub struct Server {
    /// The server's address and verified certificate.
    pub peer: Arc<PeerInfo>,
    /// The key exchange group, as a metric label.
    pub key_exchange: &'static str,
}

/// What a connection was good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carried {
    Nothing,
    Responses,
}

impl Connected {
    /// Adds scheme and authority, which HTTP/2 requires, to the path that tonic's clients give.
    pub(super) fn absolute(&self, path: PathAndQuery) -> Result<Uri, http::Error> {
        Uri::builder()
            .scheme("https")
            .authority(self.authority.clone())
            .path_and_query(path)
            .build()
    }

    /// Records that the server responds.
    pub(super) fn record_response(&self) {
        // Reading first keeps the cache line shared between threads.
        if !self.proven.load(Ordering::Relaxed) {
            self.proven.store(true, Ordering::Relaxed);
        }
    }

    fn carried(&self) -> Carried {
        match self.proven.load(Ordering::Relaxed) {
            true => Carried::Responses,
            false => Carried::Nothing,
        }
    }
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
    current: ArcSwapOption<Connected>,
    attempts: Mutex<Attempts>,
    /// Notified of failures, after which names are looked up again.
    failed: Arc<Notify>,
}

/// The attempts to connect to one address.
#[derive(Debug)]
struct Attempts {
    running: Option<Attempt>,
    failures: u32,
    backoff: Backoff,
    /// Until when the address is left alone.
    paused_until: Option<Instant>,
}

impl Attempts {
    fn new() -> Self {
        Self {
            running: None,
            failures: 0,
            backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE).with_jitter(Seeds::system()),
            paused_until: None,
        }
    }

    fn running(&self) -> Option<&Attempt> {
        // A runtime that is shut down drops attempts.
        self.running
            .as_ref()
            .filter(|attempt| attempt.has_changed().is_ok())
    }

    fn is_due(&self, now: Instant) -> bool {
        self.running().is_none() && self.paused_until.is_none_or(|until| now >= until)
    }

    /// Records an attempt that failed, after a connection that carried this.
    fn record_failure(&mut self, last: Carried, now: Instant) {
        if last == Carried::Responses {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        self.paused_until = Some(now + self.backoff.after(self.failures));
    }

    /// Records the end of a connection.
    fn record_end(&mut self, last: Carried, now: Instant) {
        match last {
            Carried::Responses => (self.failures, self.paused_until) = (0, None),
            Carried::Nothing => self.record_failure(last, now),
        }
    }
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
        Self {
            dialer: Arc::clone(dialer),
            target: target.clone(),
            addr,
            name: name.into(),
            authority: authority.expect("a host and port is an authority"),
            current: ArcSwapOption::empty(),
            attempts: Mutex::new(Attempts::new()),
            failed: Arc::clone(failed),
        }
    }

    /// Returns the connection, unless it has ended, or was opened with another identity than `identity`.
    pub(super) fn usable(&self, identity: &Arc<Identity>) -> Option<Arc<Connected>> {
        let connected = self.current.load_full()?;
        let current = Arc::ptr_eq(&connected.identity, identity);
        (current && !connected.sender.is_closed()).then_some(connected)
    }

    /// Returns the connection, or the result of an attempt to open one, whether it is due or not.
    pub(super) async fn connection(self: &Arc<Self>) -> Outcome {
        let mut attempt = match self.joined() {
            Ok(connected) => return Ok(connected),
            Err(attempt) => attempt,
        };
        let outcome = match attempt.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        outcome.unwrap_or_else(|| {
            Err(ChannelError::Abandoned {
                target: self.name(),
            })
        })
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
            None => Err(self.start(&mut attempts)),
        }
    }

    /// Connects in the background, if it is time to try again.
    pub(super) fn revive(self: &Arc<Self>) {
        // Whoever holds the lock is about to start an attempt, or to record the end of one.
        let Some(mut attempts) = self.attempts.try_lock() else {
            return;
        };
        if attempts.is_due(Instant::now()) {
            drop(self.start(&mut attempts));
        }
    }

    fn start(self: &Arc<Self>, attempts: &mut Attempts) -> Attempt {
        let (report, attempt) = watch::channel(None);
        attempts.running = Some(attempt.clone());
        tokio::spawn(Arc::clone(self).attempt(report));
        attempt
    }

    async fn attempt(self: Arc<Self>, report: watch::Sender<Option<Outcome>>) {
        let connected = timeout(CONNECT_TIMEOUT, self.connect()).await;
        let outcome = match connected {
            Ok(connected) => connected.map(Arc::new),
            Err(_) => Err(ChannelError::Timeout {
                target: self.name(),
            }),
        };
        self.record(&outcome);
        report.send_replace(Some(outcome));
    }

    fn record(&self, outcome: &Outcome) {
        let (workload, address) = (self.dialer.options.workload(), &*self.name);
        let mut attempts = self.attempts.lock();
        attempts.running = None;
        match outcome {
            Ok(connected) => {
                self.current.store(Some(Arc::clone(connected)));
                tracing::debug!(workload, address, "connected");
            }
            Err(error) => {
                let last = self.current.swap(None);
                let carried = last.map_or(Carried::Nothing, |last| last.carried());
                attempts.record_failure(carried, Instant::now());
                let failures = attempts.failures;
                tracing::debug!(workload, address, failures, %error, "cannot connect");
                self.failed.notify_one();
            }
        }
    }

    /// Drops a connection, unless it has been replaced. Returns whether it was this address's.
    pub(super) fn forget(&self, gone: &Arc<Connected>) -> bool {
        let current = self.current.load();
        let Some(connected) = current.as_ref().filter(|own| Arc::ptr_eq(own, gone)) else {
            return false;
        };
        let before = self.current.compare_and_swap(&current, None);
        if before
            .as_ref()
            .is_some_and(|before| Arc::ptr_eq(before, gone))
        {
            let carried = connected.carried();
            self.attempts.lock().record_end(carried, Instant::now());
        }
        true
    }

    pub(super) fn name(&self) -> String {
        self.name.as_ref().to_owned()
    }

    pub(super) fn traffic(&self) -> Traffic {
        self.dialer.traffic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long the address is left alone from now on.
    fn pause(attempts: &Attempts) -> Duration {
        let until = attempts.paused_until;
        until.map_or(Duration::ZERO, |until| until - Instant::now())
    }

    /// Whether a pause is the one after so many failures, or up to a half shorter.
    fn is_after(attempts: &Attempts, failures: u32) -> bool {
        let whole = Backoff::new(FIRST_PAUSE, MAX_PAUSE).after(failures);
        (whole / 2..=whole).contains(&pause(attempts))
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_fails_again_and_again_is_left_alone_for_longer() {
        let (mut attempts, now) = (Attempts::new(), Instant::now());
        assert!(attempts.is_due(now));
        for failures in 1..=20 {
            // Connections that end before they carry a response are failures, too.
            match failures % 2 {
                0 => attempts.record_failure(Carried::Nothing, now),
                _ => attempts.record_end(Carried::Nothing, now),
            }
            assert!(is_after(&attempts, failures), "{failures}");
            assert!(!attempts.is_due(now));
            assert!(attempts.is_due(now + MAX_PAUSE));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_carried_responses_may_be_replaced_at_once() {
        let (mut attempts, now) = (Attempts::new(), Instant::now());
        for _ in 0..5 {
            attempts.record_failure(Carried::Nothing, now);
        }
        attempts.record_end(Carried::Responses, now);
        assert!(attempts.is_due(now));
        attempts.record_failure(Carried::Nothing, now);
        assert!(is_after(&attempts, 1), "what was before is forgotten");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_failure_after_a_connection_that_worked_is_the_first() {
        let (mut attempts, now) = (Attempts::new(), Instant::now());
        for _ in 0..5 {
            attempts.record_failure(Carried::Nothing, now);
        }
        attempts.record_failure(Carried::Responses, now);
        assert!(is_after(&attempts, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn no_attempt_is_due_beside_one_that_runs() {
        let (mut attempts, now) = (Attempts::new(), Instant::now());
        let (report, running) = watch::channel(None);
        attempts.running = Some(running);
        assert!(!attempts.is_due(now));
        drop(report);
        assert!(attempts.is_due(now), "its runtime was shut down");
    }
}
