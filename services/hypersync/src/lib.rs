//! HyperSync: the governed way from a search's result to live hyperparameters.
//!
//! A proposal is a state machine in the database: each step is a compare-and-set, so that of two
//! racing approvers one wins, and a restart goes on where the last step was committed.

mod api;
mod assess;
mod attention;
mod error;
mod proposals;
mod saga;
mod store;

pub use api::routes;
pub use error::HyperSyncError;

use std::{path::Path, sync::Arc};
use store::Store;
use tars_interceptors::client::OutgoingService;
use tars_mesh::Channel;
use tars_proto::{
    automl::v1::study_service_client::StudyServiceClient,
    orchestration::v1::{
        orchestration_service_client::OrchestrationServiceClient,
        training_service_client::TrainingServiceClient,
    },
};
use tars_runtime::{clock::Clock, db::Db};
use tokio::sync::{Semaphore, watch};

/// Calls to other services: some for the caller, with the caller's credential; some as this
/// workload.
#[derive(Debug, Clone)]
pub struct Peers {
    pub studies_for_caller: StudyServiceClient<OutgoingService<Channel>>,
    pub agents_for_caller: OrchestrationServiceClient<OutgoingService<Channel>>,
    pub agents: OrchestrationServiceClient<OutgoingService<Channel>>,
    pub training: TrainingServiceClient<OutgoingService<Channel>>,
}

#[derive(Debug)]
pub struct HyperSync {
    store: Store,
    peers: Peers,
    clock: Clock,
    /// Moves whenever a proposal does; watchers then look.
    changed: watch::Sender<u64>,
    assessing: Semaphore,
    held: attention::Held,
}

impl HyperSync {
    pub async fn open(dir: &Path, peers: Peers, clock: Clock) -> Result<Arc<Self>, HyperSyncError> {
        tars_certs::secret::create_dir(dir)?;
        let db = Db::open(&dir.join("hypersync.db"), store::STEPS).await?;
        let store = Store::open(db).await?;
        Ok(Arc::new(Self {
            store,
            peers,
            clock,
            changed: watch::Sender::new(0),
            assessing: Semaphore::new(assess::AT_ONCE),
            held: attention::Held::default(),
        }))
    }

    pub async fn check(&self) -> Result<(), HyperSyncError> {
        Ok(self.store.db().check().await?)
    }

    pub fn db(&self) -> &Db {
        self.store.db()
    }
}
