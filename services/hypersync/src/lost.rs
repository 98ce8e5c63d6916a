//! Holds whose proposals are lost.
//!
//! A hold that awaits a person is stored by Orchestration and ends with a decision about its proposal.
//! When HyperSync's database is lost, restored from an older backup, or damaged, nobody can decide,
//! and the agent would be held for ever. Only HyperSync knows which proposals exist, so it releases
//! such a hold at a person's request, and refuses to while it has the proposal.

use crate::{HyperSync, HyperSyncError};
use std::sync::Arc;
use tars_proto::orchestration::v1::SettleHyperparametersRequest;
use tars_runtime::{
    audit::{self, Record, Severity},
    db::DbError,
    tasks::to_the_end,
};
use uuid::Uuid;

/// A request to release a hold whose proposal is lost.
#[derive(Debug, Clone)]
pub(crate) struct LostHold {
    pub(crate) id: Uuid,
    pub(crate) agent_id: String,
    pub(crate) by: String,
    pub(crate) reason: String,
}

impl HyperSync {
    /// Releases an agent, unless the proposal that it is held for exists.
    pub(crate) async fn release_lost(
        self: &Arc<Self>,
        lost: LostHold,
    ) -> Result<(), HyperSyncError> {
        self.require_lost(lost.id).await?;
        self.require_held(&lost).await?;
        let this = Arc::clone(self);
        to_the_end(async move { this.release_hold(lost).await }).await
    }

    /// A missing or corrupt row is a lost proposal; a failure to read it is not.
    async fn require_lost(&self, id: Uuid) -> Result<(), HyperSyncError> {
        match self.get(id).await {
            Ok(proposal) => Err(HyperSyncError::NotLost(proposal.state)),
            Err(HyperSyncError::NotFound(_) | HyperSyncError::Store(DbError::Corrupt(_))) => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn require_held(&self, lost: &LostHold) -> Result<(), HyperSyncError> {
        let agent = self.peers.for_caller.agent(&lost.agent_id).await?;
        let agent = agent.ok_or(HyperSyncError::IncompleteResponse("the agent"))?;
        match agent.hold {
            Some(hold) if hold.change_id == lost.id.to_string() => Ok(()),
            _ => Err(HyperSyncError::NotHeld(lost.id)),
        }
    }

    /// Recorded before it is done, so that nothing is released without a record.
    async fn release_hold(&self, lost: LostHold) -> Result<(), HyperSyncError> {
        let record = Record::new(&self.clock, "hypersync", "admin.hypersync.release")
            .severity(Severity::Critical)
            .caller(&lost.by)
            .resource(lost.id.to_string())
            .detail("agent", &lost.agent_id)
            .detail("reason", &lost.reason);
        let mut tx = self.store.begin("proposals.release").await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        tracing::warn!(proposal = %lost.id, agent = lost.agent_id, by = lost.by, "releasing an agent whose proposal is lost");
        let request = SettleHyperparametersRequest {
            agent_id: lost.agent_id,
            change_id: lost.id.to_string(),
            approved_version: None,
            on_behalf_of: lost.by,
            // Nobody works on what is lost.
            fencing_token: None,
            void_operation_id: None,
        };
        Ok(self.peers.agents.settle(request).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fake::{Call, Rig, reason, unavailable},
        store::State,
    };
    use tars_runtime::{audit, db::Query};

    fn lost(id: Uuid) -> LostHold {
        LostHold {
            id,
            agent_id: "policy".into(),
            by: "user:ada".into(),
            reason: "restored".into(),
        }
    }

    /// An agent that is held until a person decides about a proposal.
    async fn held_for(id: Uuid) -> Rig {
        let rig = Rig::start().await;
        rig.world.stored.lock().hold = Some((id.to_string(), true));
        rig
    }

    async fn records(rig: &Rig) -> Vec<Record> {
        let mut tx = rig.service.store.begin("test.audit").await.unwrap();
        let found = audit::peek(&mut *tx, 100).await.unwrap();
        found.into_iter().flat_map(|(_, records)| records).collect()
    }

    #[tokio::test]
    async fn an_agent_whose_proposal_is_missing_is_released_and_recorded() {
        let id = Uuid::now_v7();
        let rig = held_for(id).await;
        let before = rig.world.agent();
        rig.service.release_lost(lost(id)).await.unwrap();
        let agent = rig.world.agent();
        assert_eq!(agent.hold, None);
        assert_eq!(
            (agent.live, agent.version, agent.approved),
            (before.live, before.version, before.approved),
            "what is live stays, and is not approved"
        );
        let records = records(&rig).await;
        let [record] = &records[..] else {
            panic!("one record: {records:?}");
        };
        assert_eq!(
            (record.event_type.as_str(), record.severity),
            ("admin.hypersync.release", Severity::Critical)
        );
    }

    #[tokio::test]
    async fn an_agent_whose_proposal_is_corrupt_is_released() {
        let rig = Rig::start().await;
        let id = rig.put(State::NeedsAttention).await.id;
        rig.world.stored.lock().hold = Some((id.to_string(), true));
        let mut tx = rig.service.store.begin("test.spoil").await.unwrap();
        let spoil = Query::new("UPDATE proposals SET document = '{}'");
        tx.execute(spoil).await.unwrap().one().unwrap();
        tx.commit().await.unwrap();
        rig.service.release_lost(lost(id)).await.unwrap();
        assert_eq!(rig.world.agent().hold, None);
        let waiting = rig.service.store.needing_attention().await.unwrap();
        assert!(waiting.is_empty(), "nor is it held again");
    }

    #[tokio::test]
    async fn an_existing_proposal_is_never_bypassed() {
        for state in State::ALL {
            let rig = Rig::start().await;
            let id = rig.put(state).await.id;
            rig.world.stored.lock().hold = Some((id.to_string(), true));
            let refused = rig.service.release_lost(lost(id)).await;
            assert_eq!(reason(refused), "NOT_LOST", "{state:?}");
            let hold = Some((id.to_string(), true));
            assert_eq!((rig.world.agent().hold, rig.world.calls()), (hold, 0));
        }
    }

    #[tokio::test]
    async fn a_hold_of_another_change_or_of_an_unknown_state_is_kept() {
        let holds = Uuid::now_v7();
        let rig = held_for(holds).await;
        let other = rig.service.release_lost(lost(Uuid::now_v7())).await;
        assert_eq!(reason(other), "NOT_HELD");
        rig.world.fail(1, Call::Agent, &unavailable());
        assert!(rig.service.release_lost(lost(holds)).await.is_err());
        rig.service.store.db().close().await;
        let unknown = rig.service.release_lost(lost(holds)).await;
        assert!(matches!(unknown, Err(HyperSyncError::Store(_))));
        assert_eq!(rig.world.agent().hold, Some((holds.to_string(), true)));
        assert_eq!(rig.world.count(Call::Settle), 0);
    }
}
