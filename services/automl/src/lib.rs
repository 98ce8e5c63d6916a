//! AutoML: studies that consist of trials.
//!
//! A trial of a study that the server runs is a training run in Orchestration, called over the mesh
//! with this workload's identity. No user's token is stored beyond the call that it came with.

#![deny(missing_docs)]

mod api;
mod cancellation;
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
mod views;
mod watch;
mod workload;

use error::AutomlError;

use peers::Peers;
use retries::Pacing;
use std::{io, sync::Arc};
use store::Store;
use tars_interceptors::usage::Usage;
use tars_runtime::{
    bus::{Bus, Topic},
    changes::Changes,
    clock::Clock,
    config,
    db::{Db, Place},
    lease::{InProgress, Leases, Terms},
    metrics::{Metrics, OutcomeNames, Outcomes},
    seeds::Seeds,
    trace::Tracer,
};
use tokio::sync::Semaphore;

/// Studies, on the bus.
const TOPIC: Topic = "automl.studies";

/// The service without its transport.
#[derive(Debug)]
pub struct Automl {
    store: Store,
    leases: Leases,
    in_progress: InProgress,
    peers: Peers,
    settings: config::Automl,
    running: Arc<Semaphore>,
    /// The changes of studies, which their watchers and runs read.
    changes: Changes,
    clock: Clock,
    seeds: Seeds,
    pacing: Pacing,
    tracer: Tracer,
    trials: Outcomes,
    usage: Usage,
}

/// The metrics of trials, by the state in which they end.
const TRIALS: OutcomeNames = OutcomeNames {
    ended: "trials_ended",
    ended_help: "Trials that have ended, by outcome",
    seconds: "trial_duration_seconds",
    seconds_help: "How long trials took, with all their attempts",
};

/// What the service is given, apart from its database.
pub(crate) struct Setup {
    pub(crate) settings: config::Automl,
    pub(crate) peers: Peers,
    pub(crate) clock: Clock,
    pub(crate) seeds: Seeds,
    pub(crate) pacing: Pacing,
    pub(crate) tracer: Tracer,
    pub(crate) bus: Bus,
    pub(crate) metrics: Metrics,
    /// What the callers of the service use.
    pub(crate) usage: Usage,
}

impl Automl {
    pub(crate) async fn open_at(
        database: &Place,
        terms: impl FnOnce(&Db) -> io::Result<Terms>,
        setup: Setup,
    ) -> Result<Arc<Self>, AutomlError> {
        let Setup {
            settings,
            peers,
            clock,
            seeds,
            pacing,
            tracer,
            bus,
            metrics,
            usage,
        } = setup;
        let db = Db::open(database, store::MIGRATIONS).await?;
        // Jitter is drawn apart, so that it takes no seed from a study.
        let jitter = Seeds::system();
        let leases = Leases::open(db.clone(), terms(&db)?, clock.clone(), jitter).await?;
        let changes = Changes::open(&db, bus, TOPIC).await?;
        // A bound on what this process does: other replicas have bounds of their own.
        let running = Arc::new(Semaphore::new(settings.max_running_studies));
        Ok(Arc::new(Self {
            store: Store::new(db),
            leases,
            in_progress: InProgress::default(),
            peers,
            settings,
            running,
            changes,
            clock,
            seeds,
            pacing,
            tracer,
            trials: Outcomes::new(&metrics, TRIALS),
            usage,
        }))
    }
}
