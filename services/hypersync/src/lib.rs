//! HyperSync: the governed path from a search's result to live hyperparameters.
//!
//! A proposal is a state machine in the database. Each transition is a compare-and-set, so that one
//! of two racing approvers wins, and a restarted process continues from the last committed state.

#![deny(missing_docs)]

mod api;
mod assess;
mod attention;
mod change;
mod charges;
mod decisions;
mod error;
#[cfg(test)]
mod fake;
mod lost;
mod ownership;
mod pauses;
mod peers;
mod progress;
mod proposals;
mod propose;
mod saga;
mod store;
mod views;
mod workload;

use error::HyperSyncError;

use pauses::Pacing;
use peers::Peers;
use progress::Measurements;
use saga::Watch;
use std::{io, sync::Arc};
use store::Store;
use tars_interceptors::usage::Usage;
use tars_runtime::{
    bus::{Bus, Topic},
    changes::Changes,
    clock::Clock,
    db::{Db, Place},
    lease::{InProgress, Leases, Terms},
    metrics::{Metrics, OutcomeNames, Outcomes},
    seeds::Seeds,
    trace::Tracer,
};
use tokio::sync::Semaphore;

/// Proposals, on the bus.
const TOPIC: Topic = "hypersync.proposals";

/// The service without its transport.
#[derive(Debug)]
pub struct HyperSync {
    store: Store,
    leases: Leases,
    in_progress: InProgress,
    peers: Peers,
    clock: Clock,
    pacing: Pacing,
    watch: Watch,
    /// The changes of proposals, after which watchers read them again.
    changes: Changes,
    assessing: Semaphore,
    held: attention::HeldAgents,
    tracer: Tracer,
    ended: Outcomes,
    measurements: Measurements,
    usage: Usage,
}

/// The metrics of proposals, by the state in which they end.
const PROPOSALS: OutcomeNames = OutcomeNames {
    ended: "proposals_ended",
    ended_help: "Proposals that have ended, by outcome",
    seconds: "proposal_duration_seconds",
    seconds_help: "How long proposals took to their end, with the time in which they waited for a person",
};

/// What the service is given, apart from its database.
pub(crate) struct Setup {
    pub(crate) peers: Peers,
    pub(crate) clock: Clock,
    pub(crate) pacing: Pacing,
    pub(crate) watch: Watch,
    pub(crate) bus: Bus,
    pub(crate) tracer: Tracer,
    pub(crate) metrics: Metrics,
    pub(crate) usage: Usage,
}

impl HyperSync {
    pub(crate) async fn open_at(
        database: &Place,
        terms: impl FnOnce(&Db) -> io::Result<Terms>,
        setup: Setup,
    ) -> Result<Arc<Self>, HyperSyncError> {
        let Setup {
            peers,
            clock,
            pacing,
            watch,
            bus,
            tracer,
            metrics,
            usage,
        } = setup;
        let db = Db::open(database, store::MIGRATIONS).await?;
        let jitter = Seeds::system();
        let leases = Leases::open(db.clone(), terms(&db)?, clock.clone(), jitter).await?;
        let changes = Changes::open(&db, bus, TOPIC).await?;
        let store = Store::open(db).await?;
        Ok(Arc::new(Self {
            store,
            leases,
            in_progress: InProgress::default(),
            peers,
            clock,
            pacing,
            watch,
            changes,
            assessing: Semaphore::new(assess::AT_ONCE),
            held: attention::HeldAgents::default(),
            tracer,
            ended: Outcomes::new(&metrics, PROPOSALS),
            measurements: Measurements::default(),
            usage,
        }))
    }
}
