//! Which versions of the agents' weights are retained: the newest of each agent
//! (`orchestration.checkpoints`), among them the live one and the one before, as many of the newest that
//! were trained, and all of an agent while a governed change holds it. Blobs that nothing refers to any more are removed in the background.

use crate::{
    OrchestrationError,
    store::{self, Store},
};
use std::time::Duration;
use tars_runtime::{
    blobs::Blobs,
    lease::{Fence, Lease, Leases},
};
use tokio::time::{MissedTickBehavior, interval};

/// The lease of the replica that does this for all.
const LEASE: &str = "checkpoints";
const INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Clone)]
pub(crate) struct Checkpoints {
    store: Store,
    blobs: Blobs,
    /// How many versions of each agent are retained.
    retained: u32,
}

impl Checkpoints {
    pub(crate) fn new(store: Store, blobs: Blobs, retained: u32) -> Self {
        Self {
            store,
            blobs,
            retained,
        }
    }

    /// Where weights and checkpoints are.
    pub(crate) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// Removes what is not retained, from now on, as long as this replica has the lease of it.
    pub(crate) async fn keep_clean(self, leases: Leases) {
        let mut tick = interval(INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lease = None;
        loop {
            tick.tick().await;
            if let Err(e) = self.clean_as_owner(&leases, &mut lease).await {
                tracing::warn!(error = %e, "old checkpoints could not be deleted yet");
            }
        }
    }

    async fn clean_as_owner(
        &self,
        leases: &Leases,
        lease: &mut Option<Lease>,
    ) -> Result<(), OrchestrationError> {
        lease.take_if(|lease| lease.loss().is_some());
        if lease.is_none() {
            *lease = leases.acquire(LEASE).await?;
        }
        match lease {
            Some(lease) => self.clean(&lease.fence()).await,
            None => Ok(()),
        }
    }

    /// Forgets old versions, then removes their blobs. The first is committed before, so that no row
    /// refers to a file that is gone.
    async fn clean(&self, fence: &Fence) -> Result<(), OrchestrationError> {
        let mut tx = self.store.begin_owned("checkpoints.drop", fence).await?;
        store::drop_old_checkpoints(&mut tx, self.retained).await?;
        tx.commit().await?;
        let mut tx = self.store.begin_owned("checkpoints.collect", fence).await?;
        let referenced = store::referenced_blobs(&mut tx).await?;
        let removed = self.blobs.collect(&mut tx, referenced).await?;
        tx.commit().await?;
        if removed > 0 {
            tracing::debug!(removed, "blobs of old checkpoints are deleted");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{AgentRow, HoldRow, MIGRATIONS, VersionRow};
    use std::collections::BTreeSet;
    use tars_learn::hyper::Values;
    use tars_runtime::{
        blobs::BlobError,
        clock::Clock,
        db::{Db, Place, Query},
        lease::Terms,
        page,
        seeds::Seeds,
    };
    use tempfile::TempDir;

    const LIFE: Duration = Duration::from_secs(3600);

    struct Rig {
        checkpoints: Checkpoints,
        row: AgentRow,
        stored: Vec<String>,
        _dir: TempDir,
    }

    impl Rig {
        async fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let place = tars_test_db::place(dir.path(), "orchestration");
            let store = Store::new(Db::open(&place, MIGRATIONS).await.unwrap());
            let blobs = match place {
                Place::File(_) => Blobs::in_folder(dir.path().join("blobs")).unwrap(),
                Place::Server { .. } => Blobs::in_database(store.db().clone()),
            };
            let row = AgentRow {
                id: "policy".to_owned(),
                algorithm: "dqn".to_owned(),
                environment: "cartpole".to_owned(),
                hyperparameters: Values::new(),
                version: 1,
                weights: None,
                rule: None,
                weights_version: 0,
                shadow: None,
                canary: None,
                last_return: None,
                total_steps: 0,
                total_episodes: 0,
                updated_us: 1,
            };
            let mut tx = store.begin("test.agent").await.unwrap();
            store::insert_agent(&mut tx, &row).await.unwrap();
            tx.commit().await.unwrap();
            Self {
                checkpoints: Checkpoints::new(store, blobs, 2),
                row,
                stored: Vec::new(),
                _dir: dir,
            }
        }

        /// Makes weights live; commits, or goes away before.
        async fn install(&mut self, weights: &[u8], commits: bool) -> String {
            let Checkpoints { store, blobs, .. } = &self.checkpoints;
            let mut tx = store.begin("test.install").await.unwrap();
            let blob = blobs.put(&mut tx, weights.to_vec()).await.unwrap();
            if commits {
                self.row.weights_version += 1;
                (self.row.weights, self.row.rule) = (Some(blob.clone()), None);
                store::update_weights(&mut tx, &self.row).await.unwrap();
                let inserted = store::insert_version(&mut tx, "policy", &self.version(&blob)).await;
                inserted.unwrap();
                tx.commit().await.unwrap();
            }
            self.stored.push(blob.clone());
            blob
        }

        fn version(&self, blob: &str) -> VersionRow {
            VersionRow {
                version: self.row.weights_version,
                blob: Some(blob.to_owned()),
                rule: None,
                at_us: 1,
                algorithm: "dqn".to_owned(),
                run_id: None,
                mean_return: None,
                restored_from: None,
                served: true,
                climbed: false,
                fell: false,
            }
        }

        /// Takes down what is live, and lets a rule answer.
        async fn take_down(&mut self) {
            let Checkpoints { store, .. } = &self.checkpoints;
            let mut tx = store.begin("test.take_down").await.unwrap();
            let taken = self.row.weights_version;
            store::take_down(&mut tx, "policy", taken).await.unwrap();
            self.row.weights_version += 1;
            (self.row.weights, self.row.rule) = (None, Some("hold".to_owned()));
            store::update_weights(&mut tx, &self.row).await.unwrap();
            let rule = VersionRow {
                version: self.row.weights_version,
                ..VersionRow::of_rule("hold")
            };
            let inserted = store::insert_version(&mut tx, "policy", &rule).await;
            inserted.unwrap();
            tx.commit().await.unwrap();
        }

        /// Makes the weights of a version live again.
        async fn restore(&mut self, version: i64) {
            let Checkpoints { store, .. } = &self.checkpoints;
            let mut tx = store.begin("test.restore").await.unwrap();
            let from = store::version(&mut tx, "policy", version).await.unwrap();
            let from = from.unwrap();
            self.row.weights_version += 1;
            self.row.weights = from.blob.clone();
            store::update_weights(&mut tx, &self.row).await.unwrap();
            let restored = VersionRow {
                version: self.row.weights_version,
                restored_from: Some(version),
                ..from
            };
            let inserted = store::insert_version(&mut tx, "policy", &restored).await;
            inserted.unwrap();
            tx.commit().await.unwrap();
        }

        /// The versions that are retained.
        async fn retained(&self) -> Vec<i64> {
            let listed = self
                .checkpoints
                .store
                .versions("policy", i64::MAX, page::size(100));
            let listed = listed.await.unwrap();
            listed
                .rows
                .iter()
                .map(|listed| listed.row.version)
                .collect()
        }

        /// The leases of a replica.
        async fn leases(&self, holder: &str) -> (Leases, Clock) {
            let terms = Terms::Shared {
                holder: holder.to_owned(),
                life: LIFE,
            };
            let clock = Clock::manual(Duration::from_secs(1_800_000_000));
            let db = self.checkpoints.store.db().clone();
            let leases = Leases::open(db, terms, clock.clone(), Seeds::counted(1));
            (leases.await.unwrap(), clock)
        }

        async fn clean(&self) {
            let (leases, _) = self.leases("this").await;
            let cleaned = self.checkpoints.clean_as_owner(&leases, &mut None).await;
            cleaned.unwrap();
            leases.close().await;
        }

        /// Which of the stored blobs are still there.
        async fn left(&self) -> Vec<usize> {
            let mut left = Vec::new();
            for (n, name) in self.stored.iter().enumerate() {
                match self.checkpoints.blobs.get(name).await {
                    Ok(_) => left.push(n),
                    Err(BlobError::Absent(_)) => {}
                    Err(e) => panic!("{e}"),
                }
            }
            left
        }

        async fn hold(&self, held: bool) {
            let hold = HoldRow {
                change_id: "a".to_owned(),
                on_behalf_of: "user:admin".to_owned(),
                since_us: 1,
                awaits_person: false,
            };
            let begun = self.checkpoints.store.begin("test.hold").await;
            let mut tx = begun.unwrap();
            match held {
                true => store::put_hold(&mut tx, "policy", &hold).await.unwrap(),
                false => {
                    let deleted = store::delete_hold(&mut tx, "policy", "a").await;
                    assert!(deleted.unwrap().is_done());
                }
            }
            tx.commit().await.unwrap();
        }
    }

    #[tokio::test]
    async fn the_newest_versions_are_retained_and_the_blobs_of_older_ones_removed() {
        let mut rig = Rig::new().await;
        for weights in [b"0", b"1", b"2", b"3"] {
            rig.install(weights, true).await;
        }
        rig.clean().await;
        assert_eq!(rig.left().await, [2, 3]);
        // Content that an older version had is live again, and stays.
        rig.install(b"2", true).await;
        rig.install(b"4", true).await;
        rig.clean().await;
        assert_eq!(rig.left().await, [2, 4, 5]);
    }

    #[tokio::test]
    async fn versions_that_are_live_again_displace_none_that_were_trained() {
        let mut rig = Rig::new().await;
        for weights in [b"0", b"1", b"2"] {
            rig.install(weights, true).await;
        }
        for version in [2, 3, 2, 3] {
            rig.restore(version).await;
        }
        rig.clean().await;
        assert_eq!(rig.retained().await, [7, 6, 3, 2]);
        assert_eq!(rig.left().await, [1, 2]);
        // A version that was trained takes the place of the oldest one.
        rig.install(b"3", true).await;
        rig.clean().await;
        assert_eq!(rig.retained().await, [8, 7, 3]);
        assert_eq!(rig.left().await, [2, 3]);
    }

    #[tokio::test]
    async fn what_one_goes_back_to_is_retained_and_not_what_fell() {
        let mut rig = Rig::new().await;
        rig.install(b"good", true).await;
        for weights in [b"0", b"1", b"2"] {
            rig.install(weights, true).await;
            rig.take_down().await;
        }
        rig.clean().await;
        // The newest two, the newest two that were trained, and the one that did not fall and is not what answers.
        assert_eq!(rig.retained().await, [7, 6, 4, 1]);
        let listed = rig
            .checkpoints
            .store
            .versions("policy", i64::MAX, page::size(100));
        let fell = listed
            .await
            .unwrap()
            .rows
            .into_iter()
            .filter(|v| v.row.fell);
        let fell: Vec<i64> = fell.map(|v| v.row.version).collect();
        assert_eq!(fell, [6, 4]);
    }

    #[tokio::test]
    async fn nothing_of_an_agent_that_a_change_holds_is_deleted() {
        let mut rig = Rig::new().await;
        for weights in [b"0", b"1", b"2", b"3"] {
            rig.install(weights, true).await;
        }
        rig.hold(true).await;
        rig.clean().await;
        assert_eq!(rig.left().await, [0, 1, 2, 3]);
        rig.hold(false).await;
        rig.clean().await;
        assert_eq!(rig.left().await, [2, 3]);
    }

    #[tokio::test]
    async fn weights_whose_transaction_was_not_committed_are_removed() {
        let mut rig = Rig::new().await;
        rig.install(b"0", true).await;
        rig.install(b"lost", false).await;
        rig.clean().await;
        assert_eq!(rig.left().await, [0]);
    }

    #[tokio::test]
    async fn one_replica_deletes_and_one_that_was_replaced_deletes_nothing() {
        let mut rig = Rig::new().await;
        for weights in [b"0", b"1", b"2"] {
            rig.install(weights, true).await;
        }
        let ((own, _), (other, _)) = (rig.leases("this").await, rig.leases("other").await);
        let held = other.acquire(LEASE).await.unwrap().unwrap();
        let mut lease = None;
        let cleaned = rig.checkpoints.clean_as_owner(&own, &mut lease).await;
        cleaned.unwrap();
        assert_eq!(rig.left().await.len(), 3, "the other replica has the lease");
        // Another replica has seen no renewal for the life of the lease.
        let (next, clock) = rig.leases("next").await;
        assert!(next.acquire(LEASE).await.unwrap().is_none());
        clock.advance(LIFE);
        let taken = next.acquire(LEASE).await.unwrap().unwrap();
        taken.release().await.unwrap();
        let refused = rig.checkpoints.clean(&held.fence()).await;
        assert!(
            matches!(refused, Err(OrchestrationError::NotOwned(_))),
            "{refused:?}"
        );
        assert_eq!(rig.left().await.len(), 3);
        let cleaned = rig.checkpoints.clean_as_owner(&own, &mut lease).await;
        cleaned.unwrap();
        assert_eq!((lease.is_some(), rig.left().await), (true, vec![1, 2]));
    }

    #[tokio::test]
    async fn weights_from_before_there_were_checkpoints_are_one() {
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let before = Db::open(&place, &MIGRATIONS[..5]).await.unwrap();
        let store = Store::new(before);
        let insert = "INSERT INTO agents (id, hyperparameters, version, weights, weights_version, last_return, \
                      total_steps, total_episodes, updated_us) VALUES ('policy', '{}', 1, $1, 7, 21.5, 0, 0, 1)";
        let mut tx = store.begin("test.agent").await.unwrap();
        let insert = Query::new(insert).bind("0".repeat(64));
        tx.execute(insert).await.unwrap().one().unwrap();
        tx.commit().await.unwrap();
        store.db().close().await;
        let store = Store::new(Db::open(&place, MIGRATIONS).await.unwrap());
        let mut tx = store.begin("test.read").await.unwrap();
        let referenced = store::referenced_blobs(&mut tx).await.unwrap();
        assert_eq!(referenced, BTreeSet::from(["0".repeat(64)]));
        store::drop_old_checkpoints(&mut tx, 2).await.unwrap();
        let referenced = store::referenced_blobs(&mut tx).await.unwrap();
        assert_eq!(referenced.len(), 1);
        let row = store::agent(&mut tx, "policy").await.unwrap().unwrap();
        let kind = (row.algorithm.as_str(), row.environment.as_str());
        assert_eq!(kind, ("dqn", "cartpole"), "all agents were of that kind");
        let version = store::version(&mut tx, "policy", 7).await.unwrap().unwrap();
        assert_eq!(
            (version.algorithm.as_str(), version.mean_return),
            ("dqn", Some(21.5))
        );
        assert_eq!((version.run_id, version.restored_from), (None, None));
    }
}
