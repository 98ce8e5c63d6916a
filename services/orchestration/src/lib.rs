//! Orchestration: the agents, their decisions and training, their live hyperparameters, and games.

#![deny(missing_docs)]

mod agents;
mod api;
mod changes;
mod checkpoints;
mod conflicts;
mod error;
mod learners;
mod ownership;
mod solvers;
mod steps;
mod store;
mod training;
mod turn;
mod workload;

use error::OrchestrationError;

use agents::Agents;
use checkpoints::Checkpoints;
use learners::Learners;
use parking_lot::Mutex;
use solvers::Solvers;
use std::{io, path::Path, sync::Arc};
use store::Store;
use tars_runtime::{
    blobs::Blobs,
    bus::{Bus, Topic},
    changes::Changes,
    clock::Clock,
    config,
    db::{Db, Place},
    lease::{Leases, Terms},
    seeds::Seeds,
};
use tokio_util::task::AbortOnDropHandle;
use training::Trainings;

/// Agents, on the bus.
const TOPIC: Topic = "orchestration.agents";

/// The service without its transport.
#[derive(Debug)]
pub struct Orchestration {
    agents: Agents,
    checkpoints: Checkpoints,
    cleaning: Mutex<Option<AbortOnDropHandle<()>>>,
    trainings: Trainings,
    learners: Learners,
    store: Store,
    leases: Leases,
    /// The changes of agents, which every replica makes live.
    changes: Changes,
    clock: Clock,
    solvers: Solvers,
    seeds: Seeds,
}

impl Orchestration {
    pub(crate) async fn open(
        dir: &Path,
        database: &Place,
        settings: config::Orchestration,
        clock: Clock,
        seeds: Seeds,
        bus: Bus,
    ) -> Result<Arc<Self>, OrchestrationError> {
        let terms = |db: &Db| Terms::of(db, dir);
        Self::open_as(dir, database, terms, settings, clock, seeds, bus).await
    }

    async fn open_as(
        dir: &Path,
        database: &Place,
        terms: impl FnOnce(&Db) -> io::Result<Terms>,
        settings: config::Orchestration,
        clock: Clock,
        seeds: Seeds,
        bus: Bus,
    ) -> Result<Arc<Self>, OrchestrationError> {
        tars_certs::secret::create_dir(dir)?;
        let db = Db::open(database, store::MIGRATIONS).await?;
        // Jitter is drawn apart, so that it takes no seed from a run.
        let jitter = Seeds::system();
        let leases = Leases::open(db.clone(), terms(&db)?, clock.clone(), jitter).await?;
        let store = Store::new(db);
        let blobs = match database {
            Place::File(_) => Blobs::in_folder(dir.join("blobs"))?,
            Place::Server { .. } => Blobs::in_database(store.db().clone()),
        };
        let changes = Changes::open(store.db(), bus, TOPIC).await?;
        let agents = Agents::open(&store, blobs.clone(), clock.clone()).await?;
        let solvers = settings.learners.max(1);
        let service = Arc::new(Self {
            checkpoints: Checkpoints::new(store.clone(), blobs, settings.checkpoints),
            cleaning: Mutex::default(),
            agents,
            trainings: Trainings::default(),
            learners: Learners::new(settings.learners, settings.queue),
            store,
            leases,
            changes,
            clock,
            solvers: Solvers::new(solvers),
            seeds,
        });
        service.interrupt_left_runs().await?;
        service.follow_changes();
        Ok(service)
    }

    /// Deletes old checkpoints in the background, as long as the service lives.
    pub(crate) fn start_cleaning(&self) {
        let clean = self.checkpoints.clone().keep_clean(self.leases.clone());
        let clean = AbortOnDropHandle::new(tokio::spawn(clean));
        *self.cleaning.lock() = Some(clean);
    }
}
