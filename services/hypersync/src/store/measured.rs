//! The training steps of measurements that may go on.

use super::Proposal;
use crate::{HyperSyncError, saga::measure::Purpose};
use tars_runtime::db::{Fetch, Query, Transaction};
use uuid::Uuid;

const OPEN: &str = "INSERT INTO measured_steps (proposal_id, purpose, owner_id, steps, taken) \
                    VALUES ($1, $2, $3, $4, 0) ON CONFLICT (proposal_id, purpose) DO NOTHING";
const TAKEN: &str = "SELECT taken FROM measured_steps WHERE proposal_id = $1 AND purpose = $2";
const TAKE: &str = "UPDATE measured_steps SET taken = $1 WHERE proposal_id = $2 AND purpose = $3";
const PROMISED: &str = "SELECT CAST(COALESCE(SUM(steps - taken), 0) AS BIGINT) AS promised \
                        FROM measured_steps WHERE owner_id = $1";
const CLOSE: &str = "DELETE FROM measured_steps WHERE proposal_id = $1 AND purpose = $2";

/// Begins to account for the steps of a measurement, unless that has begun.
pub(crate) async fn open_measurement(
    tx: &mut Transaction,
    proposal: &Proposal,
    purpose: Purpose,
) -> Result<(), HyperSyncError> {
    let steps = i64::try_from(proposal.steps_of_a_measurement()).unwrap_or(i64::MAX);
    let open = Query::new(OPEN)
        .bind(proposal.id)
        .bind(purpose.as_str())
        .bind(proposal.owner_of(purpose))
        .bind(steps);
    tx.execute(open).await?.any();
    Ok(())
}

/// The steps of a measurement that its owner was charged for.
pub(crate) async fn charged_steps(
    tx: &mut Transaction,
    proposal: Uuid,
    purpose: Purpose,
) -> Result<u64, HyperSyncError> {
    let taken = Query::new(TAKEN).bind(proposal).bind(purpose.as_str());
    let taken: i64 = tx.optional_value(taken, "taken").await?.unwrap_or(0);
    Ok(u64::try_from(taken).unwrap_or_default())
}

pub(crate) async fn put_charged_steps(
    tx: &mut Transaction,
    proposal: Uuid,
    purpose: Purpose,
    taken: u64,
) -> Result<(), HyperSyncError> {
    let take = Query::new(TAKE)
        .bind(i64::try_from(taken).unwrap_or(i64::MAX))
        .bind(proposal)
        .bind(purpose.as_str());
    Ok(tx.execute(take).await?.one()?)
}

/// The steps that measurements may still take of a user.
pub(crate) async fn promised_steps(
    db: &mut impl Fetch,
    owner_id: &str,
) -> Result<u64, HyperSyncError> {
    let promised: i64 = db
        .value(Query::new(PROMISED).bind(owner_id), "promised")
        .await?;
    Ok(u64::try_from(promised).unwrap_or_default())
}

/// Ends the accounts of the measurements that a proposal does not wait for any more: what they have not taken
/// is free again.
pub(super) async fn close_measurements(
    tx: &mut Transaction,
    proposal: &Proposal,
) -> Result<(), HyperSyncError> {
    for purpose in Purpose::ALL {
        if !proposal.awaits(purpose) {
            let close = Query::new(CLOSE).bind(proposal.id).bind(purpose.as_str());
            tx.execute(close).await?.any();
        }
    }
    Ok(())
}
