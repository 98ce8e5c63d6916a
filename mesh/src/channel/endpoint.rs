//! One address of a server, and the connection to it.
//!
//! There is one attempt to connect at a time, whose result all callers share. It goes on when they go away:
//! the connection is of use to the next one. After failures the address is left alone for a while, as long
//! as another address of the server can be used.

use super::{
    attempts::{Attempt, Attempts, Outcome},
    connected::{Carried, Connected},
    error::ChannelError,
    options::{CONNECT_TIMEOUT, Dialer, Traffic},
};
use arc_swap::ArcSwapOption;
use http::uri::Authority;
use parking_lot::Mutex;
use std::{net::SocketAddr, sync::Arc};
use tars_certs::Identity;
use tars_runtime::targets::Target;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

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
