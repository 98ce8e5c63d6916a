//! The task that does what the steps of bound agents [led to](crate::trials).

use crate::{
    Orchestration, OrchestrationError,
    agents::Agent,
    stage::{Attempt, Counts},
    store,
    trials::{Due, Entries},
};
use std::sync::{Arc, Weak};

/// Does what steps led to, as long as the service lives.
pub(crate) async fn keep_ledger(service: Weak<Orchestration>, mut entries: Entries) {
    while let Some((id, due)) = entries.recv().await {
        let Some(service) = service.upgrade() else {
            return;
        };
        if let Err(error) = settle(&service, id, &due).await {
            tracing::warn!(agent = id, %error, ?due, "what the steps of an agent led to is not done yet");
            if let Ok(agent) = service.agents.get(id) {
                agent.undone(due);
            }
        }
    }
}

async fn settle(
    service: &Arc<Orchestration>,
    id: &str,
    due: &Due,
) -> Result<(), OrchestrationError> {
    let agent = service.agents.get(id)?;
    match due {
        Due::Store(attempt, counts) => service.store_counts(agent, *attempt, *counts).await,
        Due::Fall(fall) => service.fall_back(agent, fall).await,
    }
}

impl Orchestration {
    async fn store_counts(
        &self,
        agent: &Agent,
        attempt: Attempt,
        counts: Counts,
    ) -> Result<(), OrchestrationError> {
        let mut tx = self.store.begin("trials.add").await?;
        store::add_counts(&mut tx, agent.id(), attempt, counts).await?;
        Ok(tx.commit().await?)
    }
}
