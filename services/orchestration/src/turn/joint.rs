//! The turn to change several agents at once.

use crate::{
    Orchestration, OrchestrationError,
    agents::{Agent, LiveAgent},
};
use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};
use tars_runtime::db::{Transaction, Write};
use tokio::sync::MutexGuard;

/// The locks of several agents' changes. Everybody who locks more than one does so in the order of their
/// names.
#[derive(Debug)]
pub(crate) struct Guards<'a> {
    _held: Vec<MutexGuard<'a, ()>>,
}

/// The turn to change several agents, as [`Turn`](super::Turn) is for one.
#[derive(Debug)]
pub(crate) struct JointTurn<'a> {
    service: &'a Orchestration,
    tx: Write,
    guards: Guards<'a>,
}

impl<'a> Guards<'a> {
    /// Waits for the turn to change each of some agents, none of which is named twice.
    pub(crate) async fn lock(agents: &'a [Arc<Agent>]) -> Self {
        let mut in_order: Vec<&Arc<Agent>> = agents.iter().collect();
        in_order.sort_by_key(|agent| agent.id());
        let mut guards = Vec::with_capacity(in_order.len());
        for agent in in_order {
            guards.push(agent.changing().lock().await);
        }
        Self { _held: guards }
    }
}

impl Orchestration {
    /// The turn of whoever has the locks of some agents' changes and has begun a transaction under them.
    pub(crate) async fn joint_turn<'a>(
        &'a self,
        agents: &[Arc<Agent>],
        guards: Guards<'a>,
        mut tx: Write,
    ) -> Result<JointTurn<'a>, OrchestrationError> {
        for agent in agents {
            self.agents.refresh(&mut tx, agent).await?;
        }
        Ok(JointTurn {
            service: self,
            tx,
            guards,
        })
    }
}

impl<'a> JointTurn<'a> {
    /// Commits, and makes the next states live, of all the agents or of none. Returns the number of the
    /// change. It goes on until the outcome is known, so it must run on a task of its own.
    pub(crate) async fn commit(
        self,
        next: &[(&Agent, LiveAgent)],
    ) -> Result<u64, OrchestrationError> {
        let Self {
            service,
            tx,
            guards: _guards,
        } = self;
        let (_, position) = service.commit_live(tx, next).await?;
        Ok(position)
    }

    /// The transaction of a change that leaves the live states as they are, and the guards of its turn.
    pub(crate) fn into_parts(self) -> (Write, Guards<'a>) {
        (self.tx, self.guards)
    }
}

impl Deref for JointTurn<'_> {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        &self.tx
    }
}

impl DerefMut for JointTurn<'_> {
    fn deref_mut(&mut self) -> &mut Transaction {
        &mut self.tx
    }
}
