//! HyperSync: the governed path from a search's result to live hyperparameters.
//!
//! A proposal is a state machine in the database. Each transition is a compare-and-set, so that one
//! of two racing approvers wins, and a restarted process continues from the last committed state.

#![deny(missing_docs)]

mod api;
mod assess;
mod attention;
mod error;
#[cfg(test)]
mod fake;
mod lost;
mod pauses;
mod peers;
mod proposals;
mod propose;
mod saga;
mod store;
mod workload;

use error::HyperSyncError;

use pauses::Pacing;
use peers::Peers;
use std::sync::Arc;
use store::Store;
use tars_runtime::{
    clock::Clock,
    db::{Db, Place},
};
use tokio::sync::{Semaphore, watch};

/// The service without its transport.
#[derive(Debug)]
pub struct HyperSync {
    store: Store,
    peers: Peers,
    clock: Clock,
    pacing: Pacing,
    /// Changes whenever a proposal does, so that watchers read it again.
    changed: watch::Sender<u64>,
    assessing: Semaphore,
    held: attention::HeldAgents,
}

impl HyperSync {
    pub(crate) async fn open(
        database: &Place,
        peers: Peers,
        clock: Clock,
    ) -> Result<Arc<Self>, HyperSyncError> {
        Self::open_paced(database, peers, clock, Pacing::default()).await
    }

    async fn open_paced(
        database: &Place,
        peers: Peers,
        clock: Clock,
        pacing: Pacing,
    ) -> Result<Arc<Self>, HyperSyncError> {
        let db = Db::open(database, store::MIGRATIONS).await?;
        let store = Store::open(db).await?;
        Ok(Arc::new(Self {
            store,
            peers,
            clock,
            pacing,
            changed: watch::Sender::new(0),
            assessing: Semaphore::new(assess::AT_ONCE),
            held: attention::HeldAgents::default(),
        }))
    }
}
