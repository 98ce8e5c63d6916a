//! AutoML: studies of trials. A trial of a study that the server runs is a real training run, done
//! by Orchestration over the mesh, as this workload; no user's token outlives the call that it
//! came with.

mod api;
mod error;
mod runner;
mod store;
mod studies;
mod tries;
mod watched;

pub use api::routes;
pub use error::AutomlError;

use std::{path::Path, sync::Arc};
use store::Store;
use tars_interceptors::client::OutgoingService;
use tars_mesh::Channel;
use tars_proto::orchestration::v1::{
    orchestration_service_client::OrchestrationServiceClient,
    training_service_client::TrainingServiceClient,
};
use tars_runtime::{clock::Clock, config, db::Db, seeds::Seeds};
use tokio::sync::Semaphore;
use watched::AllWatched;

/// Calls to Orchestration as this workload.
#[derive(Debug, Clone)]
pub struct Trainers {
    pub agents: OrchestrationServiceClient<OutgoingService<Channel>>,
    pub training: TrainingServiceClient<OutgoingService<Channel>>,
}

#[derive(Debug)]
pub struct Automl {
    store: Store,
    trainers: Trainers,
    settings: config::Automl,
    running: Arc<Semaphore>,
    watched: AllWatched,
    clock: Clock,
    seeds: Seeds,
}

impl Automl {
    pub async fn open(
        dir: &Path,
        settings: config::Automl,
        trainers: Trainers,
        clock: Clock,
        seeds: Seeds,
    ) -> Result<Arc<Self>, AutomlError> {
        tars_certs::secret::create_dir(dir)?;
        let store = Store::new(Db::open(&dir.join("automl.db"), store::STEPS).await?);
        let running = Arc::new(Semaphore::new(settings.max_running_studies));
        Ok(Arc::new(Self {
            store,
            trainers,
            settings,
            running,
            watched: AllWatched::default(),
            clock,
            seeds,
        }))
    }

    pub async fn check(&self) -> Result<(), AutomlError> {
        Ok(self.store.db().check().await?)
    }

    pub fn db(&self) -> &Db {
        self.store.db()
    }
}
