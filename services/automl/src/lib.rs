//! AutoML: studies that consist of trials.
//!
//! A trial of a study that the server runs is a training run in Orchestration, called over the mesh
//! with this workload's identity. No user's token is stored beyond the call that it came with.

#![deny(missing_docs)]

mod api;
mod error;
#[cfg(test)]
mod fake;
mod hyper;
mod peers;
mod retries;
mod runner;
mod store;
mod studies;
mod watched;
mod workload;

use error::AutomlError;

use peers::Peers;
use retries::Pacing;
use std::sync::Arc;
use store::Store;
use tars_runtime::{
    clock::Clock,
    config,
    db::{Db, Place},
    seeds::Seeds,
};
use tokio::sync::Semaphore;
use watched::AllWatched;

/// The service without its transport.
#[derive(Debug)]
pub struct Automl {
    store: Store,
    peers: Peers,
    settings: config::Automl,
    running: Arc<Semaphore>,
    watched: AllWatched,
    clock: Clock,
    seeds: Seeds,
    pacing: Pacing,
}

impl Automl {
    pub(crate) async fn open(
        database: &Place,
        settings: config::Automl,
        peers: Peers,
        clock: Clock,
        seeds: Seeds,
    ) -> Result<Arc<Self>, AutomlError> {
        Self::open_paced(database, settings, peers, clock, seeds, Pacing::default()).await
    }

    async fn open_paced(
        database: &Place,
        settings: config::Automl,
        peers: Peers,
        clock: Clock,
        seeds: Seeds,
        pacing: Pacing,
    ) -> Result<Arc<Self>, AutomlError> {
        let store = Store::new(Db::open(database, store::MIGRATIONS).await?);
        let running = Arc::new(Semaphore::new(settings.max_running_studies));
        Ok(Arc::new(Self {
            store,
            peers,
            settings,
            running,
            watched: AllWatched::default(),
            clock,
            seeds,
            pacing,
        }))
    }
}
