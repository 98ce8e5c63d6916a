//! Holds whose proposals are lost.
//!
//! A hold that awaits a person is kept by Orchestration and ended by whoever decides about its
//! proposal. When HyperSync's database is lost or restored from before, or a row of it is damaged,
//! nobody can decide, and the agent would be held for ever. HyperSync alone knows which proposals
//! there are, so it lets go, for a person who asks; of a proposal that it knows it does not.

use crate::{HyperSync, HyperSyncError};
use std::sync::Arc;
use tars_proto::orchestration::v1::SettleHyperparametersRequest;
use tars_runtime::{
    audit::{self, Record, Severity},
    tasks::to_the_end,
};
use uuid::Uuid;

/// A hold of which a person says that its proposal is lost.
#[derive(Debug, Clone)]
pub(crate) struct Lost {
    pub(crate) id: Uuid,
    pub(crate) agent_id: String,
    pub(crate) by: String,
    pub(crate) reason: String,
}

impl HyperSync {
    /// Lets go of an agent, unless the proposal that it is held for is here.
    pub(crate) async fn release_lost(self: &Arc<Self>, lost: Lost) -> Result<(), HyperSyncError> {
        self.expect_lost(lost.id).await?;
        self.expect_held(&lost).await?;
        let this = Arc::clone(self);
        to_the_end(async move { this.let_go(lost).await }).await
    }

    /// What cannot be read is lost, what could not be asked for is not.
    async fn expect_lost(&self, id: Uuid) -> Result<(), HyperSyncError> {
        match self.get(id).await {
            Ok(proposal) => Err(HyperSyncError::NotLost(proposal.state)),
            Err(HyperSyncError::NotFound(_) | HyperSyncError::Corrupt(_)) => Ok(()),
            Err(e) => Err(e),
        }
    }

    async fn expect_held(&self, lost: &Lost) -> Result<(), HyperSyncError> {
        let agent = self.peers.for_caller.agent(&lost.agent_id).await?;
        let agent = agent.ok_or(HyperSyncError::Answer("the agent"))?;
        match agent.hold {
            Some(hold) if hold.change_id == lost.id.to_string() => Ok(()),
            _ => Err(HyperSyncError::NotHeld(lost.id)),
        }
    }

    /// Recorded before it is done, so that nothing is let go of without a record.
    async fn let_go(&self, lost: Lost) -> Result<(), HyperSyncError> {
        let record = Record::new(&self.clock, "hypersync", "admin.hypersync.release")
            .severity(Severity::Critical)
            .caller(&lost.by)
            .resource(lost.id.to_string())
            .detail("agent", &lost.agent_id)
            .detail("reason", &lost.reason);
        let mut tx = self.store.begin("proposals.release").await?;
        audit::insert(&mut tx, &record).await?;
        tx.commit().await?;
        tracing::warn!(proposal = %lost.id, agent = lost.agent_id, by = lost.by, "an agent is let go of whose proposal is lost");
        let request = SettleHyperparametersRequest {
            agent_id: lost.agent_id,
            change_id: lost.id.to_string(),
            approved_version: None,
            on_behalf_of: lost.by,
        };
        Ok(self.peers.agents.settle(request).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fake::{Call, Rig, away, reason},
        store::State,
    };
    use tars_runtime::{audit, db::Query};

    fn lost(id: Uuid) -> Lost {
        Lost {
            id,
            agent_id: "policy".into(),
            by: "user:ada".into(),
            reason: "restored".into(),
        }
    }

    /// An agent that is held until a person has decided about a proposal.
    async fn held_for(id: Uuid) -> Rig {
        let rig = Rig::start().await;
        rig.world.kept.lock().hold = Some((id.to_string(), true));
        rig
    }

    async fn records(rig: &Rig) -> Vec<Record> {
        let mut tx = rig.service.store.begin("test.audit").await.unwrap();
        let found = audit::peek(&mut *tx, 100).await.unwrap();
        found.into_iter().flat_map(|(_, records)| records).collect()
    }

    #[tokio::test]
    async fn an_agent_whose_proposal_is_gone_is_let_go_and_that_is_recorded() {
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
    async fn an_agent_whose_proposal_cannot_be_read_is_let_go() {
        let rig = Rig::start().await;
        let id = rig.put(State::NeedsAttention).await.id;
        rig.world.kept.lock().hold = Some((id.to_string(), true));
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
    async fn no_proposal_that_is_here_is_walked_around() {
        for state in State::ALL {
            let rig = Rig::start().await;
            let id = rig.put(state).await.id;
            rig.world.kept.lock().hold = Some((id.to_string(), true));
            let refused = rig.service.release_lost(lost(id)).await;
            assert_eq!(reason(refused), "NOT_LOST", "{state:?}");
            let hold = Some((id.to_string(), true));
            assert_eq!((rig.world.agent().hold, rig.world.calls()), (hold, 0));
        }
    }

    #[tokio::test]
    async fn what_another_change_holds_or_nobody_knows_to_be_lost_stays_held() {
        let holds = Uuid::now_v7();
        let rig = held_for(holds).await;
        let other = rig.service.release_lost(lost(Uuid::now_v7())).await;
        assert_eq!(reason(other), "NOT_HELD");
        rig.world.fails(1, Call::Agent, &away());
        assert!(rig.service.release_lost(lost(holds)).await.is_err());
        rig.service.store.db().close().await;
        let unknown = rig.service.release_lost(lost(holds)).await;
        assert!(matches!(unknown, Err(HyperSyncError::Store(_))));
        assert_eq!(rig.world.agent().hold, Some((holds.to_string(), true)));
        assert_eq!(rig.world.count(Call::Settle), 0);
    }
}
