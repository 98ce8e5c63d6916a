//! The one change of an agent that is under way.
//!
//! An agent's live state is a copy of its rows. It is brought up to date at the beginning of each
//! change, with what the transaction of that change reads, and after each commit. A commit in doubt is
//! followed by reading the rows again before anybody else gets the turn: the copy is then what is
//! stored, and the change has succeeded if that is what it wrote. Until the database can be read,
//! [`Agent::current`] refuses, so that nobody acts upon a copy that may be behind.

mod joint;

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent, LiveAgent},
    serving::Made,
};
pub(crate) use joint::{Guards, JointTurn};
use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};
use tars_runtime::db::{DbError, Transaction, Write};
use tokio::sync::MutexGuard;

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
        let mut tx = self.store.begin(name).await?;
        self.agents.refresh(&mut tx, agent).await?;
        Ok(Turn {
            service: self,
            agent,
            tx,
            guard,
        })
    }

    /// Makes live what is stored of every agent.
    pub(crate) async fn reread_all(&self) -> Result<(), OrchestrationError> {
        for agent in self.agents.iter() {
            let _turn = agent.changing().lock().await;
            self.reread(agent).await?;
        }
        Ok(())
    }

    async fn reread(&self, agent: &Agent) -> Result<(), OrchestrationError> {
        let mut tx = self.store.begin("agents.reread").await?;
        self.agents.refresh(&mut tx, agent).await
    }

    /// Commits, and makes the next states of some agents live. Returns them, and the number of the change.
    async fn commit_live(
        &self,
        mut tx: Write,
        next: &[(&Agent, LiveAgent)],
    ) -> Result<(Vec<Arc<LiveAgent>>, u64), OrchestrationError> {
        let change = self.changes.take(&mut tx).await?;
        let position = change.number();
        let doubt = match tx.commit().await {
            Ok(()) => {
                self.changes.publish(change);
                let published = next.iter();
                let live = published.map(|(agent, next)| agent.publish(next.clone()));
                return Ok((live.collect(), position));
            }
            Err(doubt @ DbError::InDoubt(_)) => doubt,
            Err(e) => return Err(e.into()),
        };
        next.iter().for_each(|(agent, _)| agent.doubt());
        self.changes.publish_in_doubt(change);
        for (agent, _) in next {
            if let Err(e) = self.settle_doubt(agent).await {
                tracing::error!(agent = agent.id(), error = %e, "an agent cannot be read after a commit in doubt");
                return Err(doubt.into());
            }
        }
        let is_made = |(agent, next): &(&Agent, LiveAgent)| agent.live().is_stored_as(next);
        match next.iter().all(is_made) {
            true => Ok((
                next.iter().map(|(agent, _)| agent.live()).collect(),
                position,
            )),
            false => Err(doubt.into()),
        }
    }

    /// Reads an agent's rows again, once the database can be asked.
    async fn settle_doubt(&self, agent: &Agent) -> Result<(), OrchestrationError> {
        let db = self.store.db();
        let read = || self.reread(agent);
        db.settled(read, OrchestrationError::is_transient).await
    }
}

impl<'a> Turn<'a> {
    /// Commits, and makes `next` live. It goes on until the outcome is known, so it must run on a task
    /// of its own.
    pub(crate) async fn commit(self, next: LiveAgent) -> Result<Made, OrchestrationError> {
        let Self {
            service,
            agent,
            tx,
            guard: _guard,
        } = self;
        let (live, position) = service.commit_live(tx, &[(agent, next)]).await?;
        let live = live.into_iter().next().expect("one agent is changed");
        Ok(Made { live, position })
    }

    /// Commits a change that finds its effect there already, and may still write what does not show in
    /// the live state.
    pub(crate) async fn commit_unchanged(mut self) -> Result<Made, OrchestrationError> {
        let position = self.service.changes.last_in(&mut self.tx).await?;
        let live = self.agent.live();
        self.tx.commit().await?;
        Ok(Made { live, position })
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
