//! The periodic work. What concerns files, the identity or the clock of this process each replica does for
//! itself; what concerns the database is done by the one that has the lease. The intermediate is renewed
//! by whichever replica is first: a compare-and-set decides.

use crate::{Auth, AuthError};
use std::{sync::Arc, time::Duration};
use tars_runtime::lease::Lease;
use tokio::time::{MissedTickBehavior, interval};

/// The name of the lease.
pub(crate) const LEASE: &str = "periodic";
const TICK: Duration = Duration::from_millis(250);

impl Auth {
    /// Runs the periodic work until it is dropped: imports certificates that the authority issued,
    /// moves audit records into the log, and deletes what has ended.
    pub async fn run(self: Arc<Self>) {
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lease = None;
        loop {
            tick.tick().await;
            self.do_own_work().await;
            if let Err(e) = self.do_shared_work(&mut lease).await {
                self.own.sequencing.record_failure(e);
            }
        }
    }

    pub(crate) async fn do_own_work(&self) {
        if let Err(e) = self.import_journal().await {
            tracing::warn!(error = %e, "certificates of the authority could not be imported yet");
        }
        if let Err(e) = self.record_late_steps().await {
            tracing::warn!(error = %e, "a rotation step could not be recorded yet");
        }
        if let Some(shared) = &self.shared
            && let Err(e) = shared.renew_if_due().await
        {
            tracing::warn!(error = %e, "the intermediate of the authority could not be renewed yet");
        }
        if let Err(e) = self.observe_reports().await {
            tracing::warn!(error = %e, "reports to other replicas could not be read yet");
        }
        if let Err(e) = self.report_own_trust().await {
            tracing::warn!(error = %e, "the roots that this replica trusts could not be reported yet");
        }
    }

    /// Does what one replica does for all, if this is the one. Fails when that is not known, or when
    /// audit records could not be moved.
    pub(crate) async fn do_shared_work(&self, lease: &mut Option<Lease>) -> Result<(), AuthError> {
        lease.take_if(|lease| lease.loss().is_some());
        if lease.is_none() {
            *lease = self.leases.acquire(LEASE).await?;
        }
        if let Some(lease) = lease {
            let fence = lease.fence();
            if let Err(e) = self.drop_ended_sessions(&fence).await {
                tracing::warn!(error = %e, "ended sessions could not be deleted yet");
            }
            self.sequence_audit(&fence).await?;
        }
        self.own.sequencing.record_success();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::World;
    use tars_runtime::{
        audit::{self, Record},
        clock::Clock,
        lease::{Leases, Terms},
        seeds::Seeds,
    };

    const LIFE: Duration = Duration::from_secs(3600);

    async fn leases(world: &World, holder: &str) -> (Leases, Clock) {
        let (terms, db) = (
            Terms::Shared {
                holder: holder.to_owned(),
                life: LIFE,
            },
            world.auth.db().clone(),
        );
        let clock = Clock::manual(world.clock.now());
        let leases = Leases::open(db, terms, clock.clone(), Seeds::counted(1));
        (leases.await.unwrap(), clock)
    }

    async fn record(world: &World, kind: &str) {
        let mut tx = world.auth.store.begin("test.record").await.unwrap();
        let record = Record::new(&world.clock, "auth", kind);
        audit::insert(&mut tx, &record).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn is_listed(world: &World, kind: &str) -> bool {
        let filter = crate::audit::Filter {
            event_type: kind.to_owned(),
            ..Default::default()
        };
        let (records, _) = world.auth.list_audit(&filter, "", 10).await.unwrap();
        !records.is_empty()
    }

    #[tokio::test]
    async fn one_replica_moves_audit_records_and_the_next_one_follows_it() {
        let world = World::new().await;
        let (other, _) = leases(&world, "other").await;
        let others = other.acquire(LEASE).await.unwrap().unwrap();
        let mut own = None;
        record(&world, "test.first").await;
        world.auth.do_shared_work(&mut own).await.unwrap();
        assert!(own.is_none() && !is_listed(&world, "test.first").await);
        others.release().await.unwrap();
        world.auth.do_shared_work(&mut own).await.unwrap();
        assert!(own.is_some() && is_listed(&world, "test.first").await);
    }

    #[tokio::test]
    async fn a_replica_that_was_replaced_moves_nothing_until_it_has_the_lease_again() {
        let world = World::new().await;
        let (other, _) = leases(&world, "other").await;
        let stale = other.acquire(LEASE).await.unwrap().unwrap();
        // Another replica has seen no renewal for the life of the lease.
        let (next, clock) = leases(&world, "next").await;
        assert!(next.acquire(LEASE).await.unwrap().is_none());
        clock.advance(LIFE);
        let taken = next.acquire(LEASE).await.unwrap().unwrap();
        taken.release().await.unwrap();
        record(&world, "test.first").await;
        let mut stale = Some(stale);
        let refused = world.auth.do_shared_work(&mut stale).await;
        assert!(
            matches!(refused, Err(AuthError::NotOwned(_))),
            "{refused:?}"
        );
        assert!(!is_listed(&world, "test.first").await);
        world.auth.do_shared_work(&mut stale).await.unwrap();
        assert!(is_listed(&world, "test.first").await, "it has it again");
    }
}
