//! The proposals that have ended, until Orchestration was told what came of them.

use super::{Proposal, Store, readable};
use crate::HyperSyncError;
use tars_runtime::db::{Fetch, Isolation, Query, Transaction};
use uuid::Uuid;

const NOTE: &str = "INSERT INTO unrecorded_decisions (proposal_id) VALUES ($1) \
                    ON CONFLICT (proposal_id) DO NOTHING";
const UNRECORDED: &str = "SELECT proposals.id AS id, proposals.document AS document FROM unrecorded_decisions \
                          JOIN proposals ON proposals.id = unrecorded_decisions.proposal_id \
                          ORDER BY unrecorded_decisions.proposal_id LIMIT $1";
const RECORDED: &str = "DELETE FROM unrecorded_decisions WHERE proposal_id = $1";

/// Notes that a proposal has ended, where it has.
pub(super) async fn note(tx: &mut Transaction, proposal: &Proposal) -> Result<(), HyperSyncError> {
    if proposal.state.is_final() {
        tx.execute(Query::new(NOTE).bind(proposal.id)).await?.any();
    }
    Ok(())
}

impl Store {
    /// Some proposals that have ended and are not recorded, the oldest first. A damaged row does not keep the others
    /// from being told.
    pub(crate) async fn unrecorded(&self, limit: i64) -> Result<Vec<Proposal>, HyperSyncError> {
        let query = Query::new(UNRECORDED).bind(limit);
        let rows = self.db.read("decisions.unrecorded").all(query).await?;
        Ok(readable(rows).collect())
    }

    /// Forgets those that are recorded. Another process may have done so.
    pub(crate) async fn forget_recorded(&self, ids: &[Uuid]) -> Result<(), HyperSyncError> {
        let mut tx = self
            .db
            .write("decisions.recorded", Isolation::Committed)
            .await?;
        for id in ids {
            tx.execute(Query::new(RECORDED).bind(*id)).await?.any();
        }
        Ok(tx.commit().await?)
    }
}
