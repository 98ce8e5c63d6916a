//! What the training runs of a measurement cost: an assessment is charged to whoever proposed, a verification to
//! whoever applied.
//!
//! A measurement is a row of training runs. Each is charged for with all of its steps as soon as it has a learner,
//! so that nobody trains for nothing who withdraws in time; runs that are repeated after a failure are not charged
//! for again. What a measurement may take is promised to it before it begins, and refused where it does not fit.

use crate::{
    HyperSync, HyperSyncError,
    change::Change,
    saga::measure::Purpose,
    store::{self, Assessment, Proposal, State},
};
use tars_interceptors::usage::Allowance;
use tars_runtime::{
    db::Transaction,
    lease::Fence,
    usage::{self, Dimension, Item},
};
use uuid::Uuid;

impl Proposal {
    /// The training steps of one of its measurements: each seed trains with the old values and with the new ones.
    pub(crate) fn steps_of_a_measurement(&self) -> u64 {
        match &self.change {
            Change::Tuning(tuning) => {
                let runs = 2 * u64::from(tuning.verification_seeds);
                runs.saturating_mul(tuning.steps)
            }
            Change::Promotion { .. } => 0,
        }
    }

    /// Who is charged for a measurement; nobody for one that began before that was known.
    pub(crate) fn owner_of(&self, purpose: Purpose) -> &str {
        match purpose {
            Purpose::Assessment => &self.proposer_owner,
            Purpose::Verification => &self.applier_owner,
        }
    }

    /// Whether a measurement may go on.
    pub(crate) fn awaits(&self, purpose: Purpose) -> bool {
        match purpose {
            Purpose::Assessment => self.assessed() == Assessment::Pending,
            Purpose::Verification => {
                let is_verified = match &self.change {
                    Change::Tuning(tuning) => tuning.verification.is_some(),
                    Change::Promotion { .. } => true,
                };
                matches!(self.state, State::Applying | State::Verifying) && !is_verified
            }
        }
    }
}

impl HyperSync {
    /// Promises the steps of a measurement that is to begin, unless they do not fit into what its owner has left.
    pub(crate) async fn promise(
        &self,
        tx: &mut Transaction,
        proposal: &Proposal,
        purpose: Purpose,
        allowance: &Allowance,
    ) -> Result<(), HyperSyncError> {
        let steps = proposal.steps_of_a_measurement();
        if steps == 0 {
            return Ok(());
        }
        let promised = store::promised_steps(tx, &allowance.user_id).await?;
        self.usage
            .ensure_steps::<HyperSyncError>(tx, allowance, promised, steps)
            .await?;
        store::open_measurement(tx, proposal, purpose).await
    }

    /// Charges for the first runs of a measurement, of so many steps each.
    pub(crate) async fn charge(
        &self,
        id: Uuid,
        purpose: Purpose,
        (runs, steps_of_a_run): (u64, u64),
        fence: &Fence,
    ) -> Result<(), HyperSyncError> {
        let mut tx = self.store.begin_owned("proposals.charge", fence).await?;
        let proposal = store::get_in(&mut tx, id).await?;
        let owner = proposal.owner_of(purpose);
        // One that has ended meanwhile is being stopped.
        if owner.is_empty() || !proposal.awaits(purpose) {
            return Ok(());
        }
        store::open_measurement(&mut tx, &proposal, purpose).await?;
        let charged = store::charged_steps(&mut tx, id, purpose).await?;
        let begun = runs.saturating_mul(steps_of_a_run);
        if begun <= charged {
            return Ok(());
        }
        let item = Item {
            source: format!("{}:{id}", purpose.as_str()),
            number: i64::try_from(begun).unwrap_or(i64::MAX),
            month: self.usage.month(),
            user_id: owner.to_owned(),
            dimension: Dimension::TrainingSteps,
            amount: begun - charged,
        };
        usage::insert(&mut tx, &item).await?;
        store::put_charged_steps(&mut tx, id, purpose, begun).await?;
        tx.commit().await?;
        self.usage.record_steps(item.amount);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
