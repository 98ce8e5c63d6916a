//! Which replicas serve an agent's live state.
//!
//! The live state is the database's. Every replica serves a copy, and is allowed to while it is
//! [present](Presence): it has reported under a current lease up to which change its copy goes. A change
//! of what is live returns when every other replica that is present has reported it. A replica that was
//! suspended, or cannot reach the database for as long as a lease lasts, refuses whatever depends on the
//! live state until it has caught up. One process on a SQLite file is always present, and writes and
//! waits for nothing.

use crate::{Orchestration, OrchestrationError, agents::LiveAgent};
use std::{
    sync::{Arc, Weak},
    time::Duration,
};
use tars_runtime::{
    backoff::Backoff,
    changes::Position,
    db::DbError,
    lease::{Lease, Tenure},
};
use tokio::{sync::watch, time::Instant};

/// How long a change waits for other replicas. Shorter than the deadline of every call that waits, and
/// than the life of a lease, after which a replica that is gone is not waited for any more.
const SERVED_WITHIN: Duration = Duration::from_secs(5);
/// The delays between two looks at what other replicas have reported.
const FIRST_LOOK: Duration = Duration::from_millis(5);
const LONGEST_LOOK: Duration = Duration::from_millis(100);
/// The delay before what other replicas made live is read again.
const RETRY: Duration = Duration::from_millis(500);

/// A change of an agent that is committed.
#[derive(Debug, Clone)]
pub(crate) struct Made {
    pub(crate) live: Arc<LiveAgent>,
    /// The number of the change, or of one that came after it.
    pub(crate) position: u64,
}

/// What is known of the replicas after a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Rollout {
    /// Every replica that is present serves the change.
    Everywhere,
    /// These have not reported in time that they do.
    Pending(Vec<String>),
}

impl Orchestration {
    /// The time in which this replica serves live state.
    pub(crate) fn tenure(&self) -> Result<Tenure, OrchestrationError> {
        self.presence.tenure().ok_or(OrchestrationError::Behind)
    }

    /// Refuses when a tenure has ended meanwhile: what was computed since may be of an old state.
    pub(crate) fn confirm(tenure: &Tenure) -> Result<(), OrchestrationError> {
        match tenure.lasts() {
            true => Ok(()),
            false => Err(OrchestrationError::Behind),
        }
    }

    /// Waits for a bounded time until every replica that is present has reported a change.
    pub(crate) async fn rollout(&self, position: u64) -> Result<Rollout, OrchestrationError> {
        let (until, mut looks) = (
            Instant::now() + SERVED_WITHIN,
            Backoff::new(FIRST_LOOK, LONGEST_LOOK),
        );
        loop {
            let is_late = Instant::now() >= until;
            match self.presence.behind(position).await {
                Ok(behind) if behind.is_empty() => return Ok(Rollout::Everywhere),
                Ok(behind) if is_late => return Ok(Rollout::Pending(behind)),
                // The change is made, so that what follows from a failure to look is not its failure.
                Err(e) if is_late => return Err(DbError::InDoubt(e.to_string()).into()),
                Ok(_) | Err(_) => tokio::time::sleep(looks.next_delay()).await,
            }
        }
    }

    /// Waits as [`rollout`](Self::rollout), for a change that can be asked for again: until it is served
    /// everywhere, its caller has to.
    pub(crate) async fn served_everywhere(&self, position: u64) -> Result<(), OrchestrationError> {
        match self.rollout(position).await? {
            Rollout::Everywhere => Ok(()),
            Rollout::Pending(replicas) => Err(OrchestrationError::RolloutPending(replicas)),
        }
    }

    /// Serves from now on, and makes live what other replicas commit, as long as the service exists.
    pub(crate) async fn begin_serving(self: &Arc<Self>) -> Result<(), OrchestrationError> {
        if !self.presence.is_shared() {
            return Ok(());
        }
        let mut replica = Replica {
            service: Arc::downgrade(self),
            changed: self.changes.subscribe(),
            lease: None,
            is_current: true,
            next_look: next_look(self),
        };
        replica.changed.borrow_and_update();
        self.presence.observe().await?;
        self.catch_up(&mut replica.lease).await?;
        tokio::spawn(replica.follow());
        Ok(())
    }

    /// Makes live what is stored, and reports it; returns to presence before where it was lost.
    async fn catch_up(&self, lease: &mut Option<Lease>) -> Result<(), OrchestrationError> {
        lease.take_if(|lease| lease.loss().is_some());
        if lease.is_none() {
            *lease = self.presence.acquire().await?;
        }
        let position = self.changes.last(self.store.db()).await?;
        self.reread_all().await?;
        let lease = lease.as_ref().ok_or(OrchestrationError::Behind)?;
        Ok(self.presence.report(lease, position).await?)
    }
}

/// This replica's part in serving: its lease, and what it follows.
struct Replica {
    service: Weak<Orchestration>,
    changed: watch::Receiver<Position>,
    lease: Option<Lease>,
    /// Whether the last attempt to catch up succeeded.
    is_current: bool,
    next_look: Instant,
}

/// Why a replica that follows is woken.
enum Reason {
    /// There is a change, or the lease was lost.
    CatchUp,
    /// It is time to look at the other replicas.
    Look,
    /// The service is gone.
    Over,
}

impl Replica {
    async fn follow(mut self) {
        loop {
            let reason = match self.is_current {
                true => self.reason().await,
                false => Reason::CatchUp,
            };
            let Some(service) = self.service.upgrade() else {
                return;
            };
            match reason {
                Reason::CatchUp => self.catch_up(service).await,
                Reason::Look => self.look(&service).await,
                Reason::Over => return,
            }
        }
    }

    async fn catch_up(&mut self, service: Arc<Orchestration>) {
        self.changed.borrow_and_update();
        let caught_up = service.catch_up(&mut self.lease).await;
        drop(service);
        let was_current = std::mem::replace(&mut self.is_current, caught_up.is_ok());
        if let Err(error) = caught_up {
            if was_current {
                tracing::warn!(%error, "what other replicas made live cannot be served yet; retrying");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn look(&mut self, service: &Orchestration) {
        if let Err(error) = service.presence.observe().await {
            tracing::warn!(%error, "the other replicas could not be looked at");
        }
        self.next_look = next_look(service);
    }

    async fn reason(&mut self) -> Reason {
        let lost = self.lease.as_ref().map(Lease::lost);
        let lost = async {
            match lost {
                Some(lost) => lost.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = lost => Reason::CatchUp,
            changed = self.changed.changed() => match changed {
                Ok(()) => Reason::CatchUp,
                Err(_) => Reason::Over,
            },
            () = tokio::time::sleep_until(self.next_look) => Reason::Look,
        }
    }
}

fn next_look(service: &Orchestration) -> Instant {
    let pause = service.presence.until_next_poll();
    Instant::now() + pause.unwrap_or(RETRY).max(RETRY)
}

#[cfg(test)]
mod tests;
