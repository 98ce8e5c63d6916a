//! The one change of an agent that is under way.
//!
//! An agent's live state is a copy of its rows. It is brought up to date at the beginning of each
//! change, with what the transaction of that change reads, and after each commit. A commit in doubt is
//! followed by reading the rows again before anybody else gets the turn: the copy is then what is
//! stored, and the change has succeeded if that is what it wrote. Until the database can be read,
//! [`Agent::current`] refuses, so that nobody acts upon a copy that may be behind.

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent, LiveAgent},
};
use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
    time::Duration,
};
use tars_runtime::db::{DbError, Transaction, Write};
use tokio::sync::MutexGuard;

/// The delay before what other replicas made live is read again.
const RETRY: Duration = Duration::from_millis(500);

/// The turn to change an agent, with the transaction that changes its rows. Dropped without a commit it
/// changes nothing.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    service: &'a Orchestration,
    agent: &'a Agent,
    tx: Write,
    guard: MutexGuard<'a, ()>,
}

impl Orchestration {
    /// Waits for the turn to change an agent, and begins a transaction under a name for the trace.
    pub(crate) async fn turn<'a>(
        &'a self,
        agent: &'a Agent,
        name: &'static str,
    ) -> Result<Turn<'a>, OrchestrationError> {
        let guard = agent.changing().lock().await;
        let tx = self.store.begin(name).await?;
        self.turn_in(agent, guard, tx).await
    }

    /// The turn of whoever has the lock of an agent's changes and has begun a transaction under it.
    pub(crate) async fn turn_in<'a>(
        &'a self,
        agent: &'a Agent,
        guard: MutexGuard<'a, ()>,
        mut tx: Write,
    ) -> Result<Turn<'a>, OrchestrationError> {
        self.agents.refresh(&mut tx, agent).await?;
        Ok(Turn {
            service: self,
            agent,
            tx,
            guard,
        })
    }

    /// Makes live what other replicas commit, for the lifetime of the service.
    pub(crate) fn follow_changes(self: &Arc<Self>) {
        let (weak, mut changed) = (Arc::downgrade(self), self.changes.subscribe());
        tokio::spawn(async move {
            let mut is_current = true;
            while !is_current || changed.changed().await.is_ok() {
                let Some(this) = weak.upgrade() else { return };
                let read = this.reread_all().await;
                drop(this);
                is_current = read.is_ok();
                if let Err(error) = read {
                    tracing::warn!(%error, "what other replicas made live cannot be read; retrying");
                    tokio::time::sleep(RETRY).await;
                }
            }
        });
    }

    async fn reread_all(&self) -> Result<(), OrchestrationError> {
        for agent in self.agents.iter() {
            let _turn = agent.changing().lock().await;
            self.reread(agent).await?;
        }
        Ok(())
    }

    /// Reads an agent's rows again, once the database can be asked.
    async fn reread(&self, agent: &Agent) -> Result<(), OrchestrationError> {
        let read = || async {
            let mut tx = self.store.begin("agents.reread").await?;
            self.agents.refresh(&mut tx, agent).await
        };
        let db = self.store.db();
        db.settled(read, OrchestrationError::is_transient).await
    }
}

impl<'a> Turn<'a> {
    /// Commits, and makes `next` live. It goes on until the outcome is known, so it must run on a task
    /// of its own.
    pub(crate) async fn commit(
        self,
        next: LiveAgent,
    ) -> Result<Arc<LiveAgent>, OrchestrationError> {
        let Self {
            service,
            agent,
            mut tx,
            guard: _guard,
        } = self;
        let change = service.changes.take(&mut tx).await?;
        let doubt = match tx.commit().await {
            Ok(()) => {
                service.changes.publish(change);
                return Ok(agent.publish(next));
            }
            Err(doubt @ DbError::InDoubt(_)) => doubt,
            Err(e) => return Err(e.into()),
        };
        agent.doubt();
        service.changes.publish_in_doubt(change);
        if let Err(e) = service.reread(agent).await {
            tracing::error!(agent = agent.id(), error = %e, "an agent cannot be read after a commit in doubt");
            return Err(doubt.into());
        }
        let live = agent.live();
        if live.is_stored_as(&next) {
            return Ok(live);
        }
        Err(doubt.into())
    }

    /// The transaction of a change that leaves the live state as it is, and the guard of its turn.
    pub(crate) fn into_parts(self) -> (Write, MutexGuard<'a, ()>) {
        (self.tx, self.guard)
    }
}

impl Deref for Turn<'_> {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        &self.tx
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut Transaction {
        &mut self.tx
    }
}

#[cfg(test)]
mod tests;
