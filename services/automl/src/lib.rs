//! AutoML: studies of trials. A trial of a study that the server runs is a real training run, done
//! by Orchestration over the mesh, as this workload; no user's token outlives the call that it
//! came with.

mod api;
mod error;
#[cfg(test)]
mod fake;
mod hyper;
mod peers;
mod runner;
mod store;
mod studies;
mod tries;
mod watched;
mod workload;

pub use error::AutomlError;

use peers::Peers;
use std::{path::Path, sync::Arc};
use store::Store;
use tars_runtime::{clock::Clock, config, db::Db, seeds::Seeds};
use tokio::sync::Semaphore;
use tries::Pacing;
use watched::AllWatched;

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
        dir: &Path,
        settings: config::Automl,
        peers: Peers,
        clock: Clock,
        seeds: Seeds,
    ) -> Result<Arc<Self>, AutomlError> {
        Self::open_paced(dir, settings, peers, clock, seeds, Pacing::default()).await
    }

    async fn open_paced(
        dir: &Path,
        settings: config::Automl,
        peers: Peers,
        clock: Clock,
        seeds: Seeds,
        pacing: Pacing,
    ) -> Result<Arc<Self>, AutomlError> {
        tars_certs::secret::create_dir(dir)?;
        let store = Store::new(Db::open(&dir.join("automl.db"), store::STEPS).await?);
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
