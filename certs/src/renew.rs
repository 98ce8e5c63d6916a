//! Keeps an identity fresh, whichever source it comes from, as a state machine:
//!
//! ```text
//!            due, or the source changed
//!   ┌── Valid ────────────> fetch ── ok ──> Valid
//!   │     ^                   │
//!   │     └─ backoff, change ─ Failing <── error
//!   │
//!   └─ revoked, in any state ──> Revoked ── another identity that is not revoked ──> Valid
//! ```
//!
//! There is one task per identity, so no renewal runs twice. After a failure the old identity stays
//! in use, and the next attempt follows after the delay that [`Renewal::delay`] returns. The wait
//! for the next renewal can take days. It is split into short sleeps with a check of the wall clock
//! in between: after a suspend the monotonic clock does not account for the time that passed.
//!
//! A revoked identity is not renewed, which would undo the revocation. Only an operator ends that
//! state, by replacing the files or restarting the process.

mod source;

pub use source::{AuthoritySource, FileSource};

use crate::{Identity, IdentityError, IdentityHandle, Revocations};
use rustls::time_provider::TimeProvider;
use std::{fmt, sync::Arc, time::Duration};

/// The maximum time between two checks of the wall clock.
const CLOCK_CHECK: Duration = Duration::from_secs(5);
/// A source that takes longer than this has failed.
const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a source provided no identity.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// What the source provided is not usable.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The issuer refused the request, or its answer makes no sense.
    #[error("{0}")]
    Refused(String),
    /// The issuer is unreachable; a retry may succeed.
    #[error("{0}")]
    Unreachable(String),
    /// The source did not answer in time.
    #[error("no answer in {FETCH_TIMEOUT:?}")]
    Timeout,
}

impl SourceError {
    /// Whether the current identity is revoked, as far as the source knows.
    fn is_revocation(&self) -> bool {
        matches!(self, Self::Identity(e) if e.is_revocation())
    }
}

/// A source of identities: the authority, files, or Auth.
pub trait IdentitySource: Send + Sync + 'static {
    /// The name of the source in logs and metrics.
    fn name(&self) -> &'static str;

    /// Fetches the next identity. Constructing an [`Identity`] verifies it, so nothing is published
    /// that peers would reject.
    fn fetch(
        &self,
        current: &Identity,
    ) -> impl Future<Output = Result<Identity, SourceError>> + Send;

    /// Completes when there may be a new identity before renewal is due.
    fn changed(&self) -> impl Future<Output = ()> + Send;

    /// Whether fetching yields a new certificate each time. It does not for files, which somebody
    /// else renews.
    fn issues(&self) -> bool;

    /// What an operator has to do when the identity is revoked, for the log.
    fn remedy(&self) -> &'static str;

    /// Called once when the identity is revoked, before anything else learns of it.
    fn on_revoked(&self) {}
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// The identity is good, and was obtained at this moment.
    Valid(Duration),
    /// The last attempt failed; the next one follows after `backoff`.
    Failing { since: Duration, backoff: Duration },
    /// The identity is revoked, and nothing is fetched from an issuer.
    Revoked,
}

/// A change in the state of an identity.
#[derive(Debug)]
pub enum Event {
    /// Another identity is in use.
    Renewed,
    /// An attempt to fetch one failed.
    Failed,
    /// The identity is revoked.
    Revoked,
}

type Listener = Arc<dyn Fn(&Event, &Identity) + Send + Sync>;

/// The delay after a number of consecutive failures. The second argument is the lifetime that the
/// certificate had left when it was obtained; a short one must not end within the delay.
pub type Delay = Arc<dyn Fn(u32, Duration) -> Duration + Send + Sync>;

/// The renewal of one identity, apart from its source.
#[derive(Clone)]
pub struct Renewal {
    /// Where new identities are published.
    pub handle: IdentityHandle,
    /// The deny-list that tells whether the identity is revoked.
    pub revocations: Revocations,
    /// The wall clock.
    pub time: Arc<dyn TimeProvider>,
    /// Called on each event with the identity in use after it.
    pub on_event: Listener,
    /// Called after each failure for the delay before the next attempt.
    pub delay: Delay,
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Renewal({})", self.handle.current().id())
    }
}

/// When to renew: after two thirds of the lifetime that was left when the identity was obtained at
/// `got`, shifted by `jitter` in -1..=1 times a twentieth of it. The certificate's own start is not
/// used because it is backdated. The result is at least a second after `got`, so that an issuer of
/// expired certificates is not flooded.
pub fn renew_at(got: Duration, not_after: Duration, jitter: f64) -> Duration {
    let left = not_after.saturating_sub(got);
    let offset = left.as_secs_f64() * (2.0 / 3.0 + jitter.clamp(-1.0, 1.0) / 20.0);
    got + Duration::from_secs_f64(offset).max(Duration::from_secs(1))
}

fn jitter() -> f64 {
    rand::random::<f64>() * 2.0 - 1.0
}

impl Renewal {
    fn now(&self) -> Duration {
        let now = self.time.current_time();
        now.map_or(Duration::ZERO, |t| Duration::from_secs(t.as_secs()))
    }

    /// Runs until it is dropped.
    pub async fn run(self, source: impl IdentitySource) {
        let mut state = State::Valid(self.now());
        loop {
            state = self.next(state, &source).await;
        }
    }

    async fn next(&self, state: State, source: &impl IdentitySource) -> State {
        let current = self.handle.current();
        let since = match state {
            State::Valid(since) | State::Failing { since, .. } => since,
            State::Revoked => return self.reinstated(&current, source).await,
        };
        tokio::select! {
            // Revocation takes precedence over a renewal that is due.
            biased;
            () = self.until_revoked(&current) => self.revoked(&current, source),
            next = self.renewed(&current, (state, since), source) => next,
        }
    }

    /// Waits until a renewal is due, and fetches.
    async fn renewed(
        &self,
        current: &Identity,
        (state, since): (State, Duration),
        source: &impl IdentitySource,
    ) -> State {
        let due = async {
            match state {
                State::Failing { backoff, .. } => tokio::time::sleep(backoff).await,
                _ if source.issues() => self.scheduled(current, since).await,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = source.changed() => {}
        }
        match self.fetch(current, source).await {
            Ok(identity) => self.publish(identity, source),
            Err(e) if e.is_revocation() => self.revoked(current, source),
            Err(e) => self.failed(current, &e, since, source),
        }
    }

    async fn fetch(
        &self,
        current: &Identity,
        source: &impl IdentitySource,
    ) -> Result<Identity, SourceError> {
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, source.fetch(current)).await;
        let identity = fetched.unwrap_or(Err(SourceError::Timeout))?;
        if self.revocations.denies(identity.verified()) {
            let serial = &identity.leaf().serial;
            return Err(SourceError::Refused(format!(
                "the new certificate (serial {serial}) is already revoked"
            )));
        }
        Ok(identity)
    }

    fn failed(
        &self,
        current: &Identity,
        error: &SourceError,
        since: Duration,
        source: &impl IdentitySource,
    ) -> State {
        let failures = self.handle.record_failure(&error.to_string());
        tracing::warn!(id = %current.id(), source = source.name(), error = %error, failures, "certificate not renewed; the old one stays in use");
        (self.on_event)(&Event::Failed, current);
        // The certificate's own start is backdated, so only the time that was left counts.
        let life = current.leaf().not_after.saturating_sub(since);
        State::Failing {
            since,
            backoff: (self.delay)(failures, life),
        }
    }

    fn publish(&self, identity: Identity, source: &impl IdentitySource) -> State {
        let leaf = identity.leaf();
        tracing::debug!(id = %leaf.id, serial = %leaf.serial, source = source.name(), "identity renewed");
        self.handle.publish(identity);
        (self.on_event)(&Event::Renewed, &self.handle.current());
        State::Valid(self.now())
    }

    async fn scheduled(&self, current: &Identity, got: Duration) {
        let due = renew_at(got, current.leaf().not_after, jitter());
        loop {
            let now = self.now();
            let left = due.saturating_sub(now);
            // The wall clock was set back to before the start: peers would reject the certificate
            // until then.
            if left.is_zero() || now < current.leaf().not_before {
                return;
            }
            tokio::time::sleep(left.min(CLOCK_CHECK)).await;
        }
    }

    /// Completes once the deny-list or a peer says that the identity is revoked.
    async fn until_revoked(&self, current: &Identity) {
        tokio::select! {
            () = self.revocations.until_denied(current.verified()) => {}
            () = self.handle.until_reported(&current.leaf().serial) => {}
        }
    }

    fn revoked(&self, current: &Identity, source: &impl IdentitySource) -> State {
        // Persistent state first: a process that exits after anything observed the revocation must
        // come back revoked.
        source.on_revoked();
        self.handle.mark_revoked();
        let leaf = current.leaf();
        tracing::error!(
            id = %leaf.id,
            serial = %leaf.serial,
            remedy = source.remedy(),
            "this process's certificate is revoked; peers reject it, and it is not renewed"
        );
        (self.on_event)(&Event::Revoked, current);
        State::Revoked
    }

    /// Waits for an operator to replace the revoked identity.
    async fn reinstated(&self, current: &Identity, source: &impl IdentitySource) -> State {
        if source.issues() {
            return std::future::pending().await;
        }
        loop {
            source.changed().await;
            match self.fetch(current, source).await {
                Ok(next) if next.leaf().serial != current.leaf().serial => {
                    return self.publish(next, source);
                }
                Ok(_) => {}
                Err(e) => {
                    tracing::warn!(id = %current.id(), error = %e, "this process's certificate is revoked, and there is no other identity yet");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
