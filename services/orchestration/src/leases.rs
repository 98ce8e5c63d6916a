//! The leases of the learners of a run's agents. They are taken together and given up together, so that
//! whoever has them is the only one who trains any of the agents.

use crate::OrchestrationError;
use futures_util::future::select_all;
use tars_runtime::{
    db::Transaction,
    lease::{Fence, Lease, Leases},
};

/// The name of the lease of an agent's learner.
fn name_of(agent: &str) -> String {
    format!("learner/{agent}")
}

/// The leases of the learners of at least one agent.
#[derive(Debug)]
pub(crate) struct LearnerLeases(Vec<Lease>);

/// What the writes of their owner are refused by once one of them is not held any more.
#[derive(Debug, Clone)]
pub(crate) struct Fences(Vec<Fence>);

impl LearnerLeases {
    /// Takes the leases of some agents' learners, all of them or none. They are taken in the order of the
    /// agents' names: of two owners that want some of the same, one gets all that it wants.
    ///
    /// # Errors
    ///
    /// [`OrchestrationError::TrainingRuns`] while another owner has one of them.
    pub(crate) async fn acquire<'a>(
        leases: &Leases,
        agents: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, OrchestrationError> {
        let mut agents: Vec<&str> = agents.into_iter().collect();
        agents.sort_unstable();
        let mut taken = Self(Vec::with_capacity(agents.len()));
        for (at, agent) in agents.iter().enumerate() {
            match leases.acquire(&name_of(agent)).await? {
                Some(lease) => taken.0.push(lease),
                None => {
                    taken.release().await;
                    // A lease whose owner is gone ends one life after it was first seen. All are seen now, so
                    // that those of one owner end together and not one after the other.
                    for other in &agents[at + 1..] {
                        leases.is_free(&name_of(other)).await?;
                    }
                    return Err(OrchestrationError::TrainingRuns((*agent).to_owned()));
                }
            }
        }
        Ok(taken)
    }

    pub(crate) fn fences(&self) -> Fences {
        Fences(self.0.iter().map(Lease::fence).collect())
    }

    /// Runs work until it is done, or one of the leases is lost and the work is dropped: `None`.
    pub(crate) async fn run<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let lost = self.0.iter().map(|lease| lease.lost().cancelled_owned());
        tokio::select! {
            biased;
            _ = select_all(lost.map(Box::pin)) => None,
            done = work => Some(done),
        }
    }

    /// Gives the leases up.
    pub(crate) async fn release(self) {
        for lease in self.0 {
            if let Err(error) = lease.release().await {
                tracing::debug!(%error, "the lease of a learner is given up later");
            }
        }
    }

    /// The leases were given up by a transaction that is committed: see [`Fences::release`].
    pub(crate) fn released(self) {
        self.0.into_iter().for_each(Lease::released);
    }
}

impl Fences {
    /// Locks the rows of the leases until the transaction ends, if all of them are held.
    pub(crate) async fn enforce(&self, tx: &mut Transaction) -> Result<(), OrchestrationError> {
        for fence in &self.0 {
            fence.enforce(tx).await?;
        }
        Ok(())
    }

    /// Gives the leases up together with the transaction. [`LearnerLeases::released`] follows the commit.
    pub(crate) async fn release(&self, tx: &mut Transaction) -> Result<(), OrchestrationError> {
        for fence in &self.0 {
            fence.release(tx).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;
    use std::{path::Path, time::Duration};
    use tars_runtime::{clock::Clock, db::Db, lease::Terms, seeds::Seeds};

    const TEAM: [&str; 3] = ["resource", "policy", "ethical"];
    const LIFE: Duration = Duration::from_secs(3600);

    async fn holder(dir: &Path, holder: &str, clock: &Clock) -> Leases {
        let place = tars_test_db::place(dir, "orchestration");
        let db = Db::open(&place, store::MIGRATIONS).await.unwrap();
        let terms = Terms::Shared {
            holder: holder.to_owned(),
            life: LIFE,
        };
        let leases = Leases::open(db, terms, clock.clone(), Seeds::counted(1));
        leases.await.unwrap()
    }

    #[tokio::test]
    async fn the_leases_of_an_owner_that_is_gone_are_taken_after_one_life() {
        let dir = tempfile::tempdir().unwrap();
        let start = || Clock::manual(Duration::from_secs(1_700_000_000));
        // The clock of the first stands still: it renews nothing.
        let (stands, clock) = (start(), start());
        let gone = holder(dir.path(), "gone", &stands).await;
        let next = holder(dir.path(), "next", &clock).await;
        let _held = LearnerLeases::acquire(&gone, TEAM).await.unwrap();
        let refused = LearnerLeases::acquire(&next, TEAM).await;
        assert!(matches!(refused, Err(OrchestrationError::TrainingRuns(_))));
        clock.advance(LIFE);
        let taken = LearnerLeases::acquire(&next, TEAM).await.unwrap();
        assert_eq!(taken.0.len(), TEAM.len());
    }
}
