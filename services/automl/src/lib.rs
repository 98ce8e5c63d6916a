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
mod ownership;
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
use std::{io, path::Path, sync::Arc};
use store::Store;
use tars_runtime::{
    clock::Clock,
    config,
    db::{Db, Place},
    lease::{InProgress, Leases, Terms},
    seeds::Seeds,
};
use tokio::sync::Semaphore;
use watched::AllWatched;

/// The service without its transport.
#[derive(Debug)]
pub struct Automl {
    store: Store,
    leases: Leases,
    in_progress: InProgress,
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
        dir: &Path,
        database: &Place,
        settings: config::Automl,
        peers: Peers,
        clock: Clock,
        seeds: Seeds,
    ) -> Result<Arc<Self>, AutomlError> {
        let (terms, pacing) = (|db: &Db| Terms::of(db, dir), Pacing::default());
        Self::open_paced(database, terms, settings, peers, clock, seeds, pacing).await
    }

    async fn open_paced(
        database: &Place,
        terms: impl FnOnce(&Db) -> io::Result<Terms>,
        settings: config::Automl,
        peers: Peers,
        clock: Clock,
        seeds: Seeds,
        pacing: Pacing,
    ) -> Result<Arc<Self>, AutomlError> {
        let db = Db::open(database, store::MIGRATIONS).await?;
        // Jitter is drawn apart, so that it takes no seed from a study.
        let jitter = Seeds::system();
        let leases = Leases::open(db.clone(), terms(&db)?, clock.clone(), jitter).await?;
        let running = Arc::new(Semaphore::new(settings.max_running_studies));
        Ok(Arc::new(Self {
            store: Store::new(db),
            leases,
            in_progress: InProgress::default(),
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
