//! Keeps an identity fresh, from whichever source it comes, as a state machine:
//!
//! ```text
//!            due, or the source has news
//!   ┌── Valid ──────────────> fetch ── good ──> Valid
//!   │     ^                     │
//!   │     └── pause, news ── Failing <── error
//!   │
//!   └─ revoked, in any state ──> Revoked ── another identity that is not revoked ──> Valid
//! ```
//!
//! One task an identity, so that no renewal runs twice. A failure keeps the old identity, and the
//! next attempt waits for the delay that [`Renewal::delay`] returns. The wait for the next renewal can be days: it is cut into short ones, and the wall
//! clock is looked at in between, since after a machine's sleep the monotonic clock knows nothing of
//! the hours that passed.
//!
//! A revoked identity asks for nothing any more: a renewal would undo the revocation. Only what an
//! operator does ends that state: other files, or a new start.

mod source;

pub use source::{AuthoritySource, FileSource};

use crate::{Identity, IdentityError, IdentityHandle, Revocations};
use rustls::time_provider::TimeProvider;
use std::{fmt, sync::Arc, time::Duration};

/// The longest time between two looks at the wall clock.
const LOOK: Duration = Duration::from_secs(5);
/// A source that hangs is one that fails.
const FETCH_LIMIT: Duration = Duration::from_secs(15);

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Who issues said no.
    #[error("{0}")]
    Refused(String),
    /// Who issues cannot be asked now.
    #[error("{0}")]
    Unreachable(String),
    #[error("no answer in {FETCH_LIMIT:?}")]
    Timeout,
}

impl SourceError {
    /// Whether the current identity is revoked, as far as the source knows.
    fn is_revocation(&self) -> bool {
        matches!(self, Self::Identity(e) if e.is_revocation())
    }
}

/// Where identities come from.
pub trait IdentitySource: Send + Sync + 'static {
    /// For logs and metrics.
    fn name(&self) -> &'static str;

    /// The next identity. Nothing is published that peers would refuse: making an [`Identity`]
    /// checks it.
    fn fetch(
        &self,
        current: &Identity,
    ) -> impl Future<Output = Result<Identity, SourceError>> + Send;

    /// Returns when there may be something new before the time of renewal has come.
    fn changed(&self) -> impl Future<Output = ()> + Send;

    /// Whether asking gives a new certificate. Files change when somebody else changes them.
    fn issues(&self) -> bool;

    /// What an operator does about a revoked identity, for the log.
    fn remedy(&self) -> &'static str;

    /// Called once when the identity is revoked.
    fn on_revoked(&self) {}
}

/// Where an identity stands.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// Good since this moment.
    Valid(Duration),
    /// The last attempt failed; the next comes after the pause.
    Failing { since: Duration, pause: Duration },
    /// Cut off.
    Revoked,
}

/// What happened to an identity.
#[derive(Debug)]
pub enum Event {
    Renewed,
    Failed,
    Revoked,
}

type Listener = Arc<dyn Fn(&Event, &Identity) + Send + Sync>;

/// The delay after a number of failures in a row. The second argument is the life that the
/// certificate had left when it was obtained: a short one must not pass within the delay.
pub type Delay = Arc<dyn Fn(u32, Duration) -> Duration + Send + Sync>;

/// What the loop needs besides its source.
#[derive(Clone)]
pub struct Renewal {
    pub handle: IdentityHandle,
    pub revocations: Revocations,
    pub time: Arc<dyn TimeProvider>,
    pub on_event: Listener,
    /// Called after each failure for the delay before the next attempt.
    pub delay: Delay,
}

impl fmt::Debug for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Renewal({})", self.handle.current().id())
    }
}

/// When to renew: two thirds into the life that was left when the identity was `got`, moved by
/// `jitter` in -1..=1 times a twentieth of it. Certificates are backdated: the begin that they name
/// says nothing. Never at once: whoever issues lives that are over already must not be flooded.
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
            // Looked at first: whoever is revoked renews nothing.
            biased;
            () = self.cut_off(&current) => self.revoked(&current, source),
            next = self.renewed(&current, (state, since), source) => next,
        }
    }

    /// Waits until it is time, and fetches.
    async fn renewed(
        &self,
        current: &Identity,
        (state, since): (State, Duration),
        source: &impl IdentitySource,
    ) -> State {
        let due = async {
            match state {
                State::Failing { pause, .. } => tokio::time::sleep(pause).await,
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
        let fetched = tokio::time::timeout(FETCH_LIMIT, source.fetch(current)).await;
        let identity = fetched.unwrap_or(Err(SourceError::Timeout))?;
        if self.revocations.denies(identity.verified()) {
            let serial = &identity.leaf().serial;
            return Err(SourceError::Refused(format!(
                "the next certificate (serial {serial}) is revoked already"
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
        let failures = self.handle.failed(&error.to_string());
        tracing::warn!(id = %current.id(), source = source.name(), error = %error, failures, "certificate not renewed; the old one stays");
        (self.on_event)(&Event::Failed, current);
        // The begin that a certificate names is backdated: only what was left counts.
        let life = current.leaf().not_after.saturating_sub(since);
        State::Failing {
            since,
            pause: (self.delay)(failures, life),
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
            // A wall that was set back to before the begin: peers would refuse it until then.
            if left.is_zero() || now < current.leaf().not_before {
                return;
            }
            tokio::time::sleep(left.min(LOOK)).await;
        }
    }

    /// Returns once the identity is revoked, whoever says so.
    async fn cut_off(&self, current: &Identity) {
        tokio::select! {
            () = self.revocations.until_denied(current.verified()) => {}
            () = self.handle.until_reported(&current.leaf().serial) => {}
        }
    }

    fn revoked(&self, current: &Identity, source: &impl IdentitySource) -> State {
        // First what lasts: a process that dies after it has told anybody must come back revoked.
        source.on_revoked();
        self.handle.revoked();
        let leaf = current.leaf();
        tracing::error!(
            id = %leaf.id,
            serial = %leaf.serial,
            remedy = source.remedy(),
            "the own certificate is revoked; peers refuse it, and it is not renewed"
        );
        (self.on_event)(&Event::Revoked, current);
        State::Revoked
    }

    /// Waits for another identity that an operator puts in the place of the revoked one.
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
                    tracing::warn!(id = %current.id(), error = %e, "no other identity yet; the own certificate is revoked");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
