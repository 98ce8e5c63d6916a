//! Orchestration: the agents, their decisions and training, their live hyperparameters, and games.

#![deny(missing_docs)]

mod agents;
mod api;
mod calibration;
mod changes;
mod checkpoints;
mod choices;
mod comparisons;
mod conflicts;
mod empirical;
mod error;
mod hosts;
mod ladder;
mod learners;
mod leases;
mod ledger;
mod metrics;
mod objective;
mod ownership;
mod points;
mod promotions;
mod rewards;
mod rules;
mod serving;
mod sessions;
mod shield;
mod size;
mod solvers;
mod stage;
mod steps;
mod store;
mod task;
mod training;
mod trials;
mod turn;
mod versions;
mod workload;

use error::OrchestrationError;

use agents::Agents;
use calibration::Calibrations;
use checkpoints::Checkpoints;
use hosts::{Hosts, Terms as HostTerms};
use learners::Learners;
use ledger::keep_ledger;
use parking_lot::Mutex;
use sessions::LastDistance;
use solvers::Solvers;
use std::{io, path::Path, sync::Arc, time::Duration};
use store::Store;
use tars_interceptors::usage::Usage;
use tars_runtime::{
    blobs::Blobs,
    bus::{Bus, Topic},
    changes::Changes,
    clock::Clock,
    config,
    db::{Db, Place},
    lease::{Leases, Presence, Terms},
    metrics::{Metrics, OutcomeNames, Outcomes, calls::CallRecorder},
    seeds::Seeds,
};
use tokio_util::task::AbortOnDropHandle;
use training::Trainings;

/// Agents, on the bus.
const TOPIC: Topic = "orchestration.agents";
/// Training runs.
const RUNS: Topic = "orchestration.runs";
/// Worlds that callers step.
const SESSIONS: Topic = "orchestration.sessions";
/// Who does a piece of another service's work.
const OWNERS: Topic = "orchestration.owners";

/// The service without its transport.
#[derive(Debug)]
pub struct Orchestration {
    agents: Agents,
    checkpoints: Checkpoints,
    cleaning: Mutex<Option<AbortOnDropHandle<()>>>,
    calibrations: Calibrations,
    calibrating: Mutex<Option<AbortOnDropHandle<()>>>,
    measuring: Mutex<Option<AbortOnDropHandle<()>>>,
    /// Whether a step up to CANARY or ACTIVE takes a proposal.
    governed: bool,
    /// The time between two checkpoints of a training run.
    checkpoint_every: Duration,
    trainings: Trainings,
    learners: Learners,
    hosts: Hosts,
    store: Store,
    leases: Leases,
    presence: Presence,
    /// The changes of agents, which every replica makes live.
    changes: Changes,
    /// The changes of training runs, which their watchers and owners read.
    runs: Changes,
    /// The changes of sessions, which the watchers of their steps read.
    sessions: Changes,
    /// The changes of [work tokens](store::WorkToken), after which evaluations of former owners stop.
    owners: Changes,
    clock: Clock,
    solvers: Solvers,
    usage: Usage,
    /// How far the agents were from an equilibrium when it was last measured here.
    nash: LastDistance,
    seeds: Seeds,
    runs_ended: Outcomes,
}

/// The metrics of training runs, by the state in which they end.
const TRAINING_RUNS: OutcomeNames = OutcomeNames {
    ended: "training_runs_ended",
    ended_help: "Training runs of live agents that have ended, by outcome",
    seconds: "training_run_duration_seconds",
    seconds_help: "How long training runs took, with their time in the queue",
};

/// What the service is given, apart from its directory and database.
pub(crate) struct Setup {
    pub(crate) settings: config::Orchestration,
    pub(crate) clock: Clock,
    /// The bounds of hosts of environments.
    pub(crate) hosts: HostTerms,
    pub(crate) seeds: Seeds,
    pub(crate) bus: Bus,
    pub(crate) metrics: Metrics,
    /// The calls that this process serves as the service.
    pub(crate) calls: CallRecorder,
    /// What the callers of the service use.
    pub(crate) usage: Usage,
    /// How many calls it serves at once.
    pub(crate) places: usize,
}

#[cfg(test)]
impl Setup {
    /// One learner, a clock that the test moves, and a bus that ends at the process.
    pub(crate) fn for_tests(seeds: Seeds) -> Self {
        let settings = config::Orchestration {
            learners: 1,
            queue: 8,
            environment: "cartpole".to_owned(),
            // What the ladder does is tested by direct promotions; that they can be closed by tests of their own.
            governed_promotion: false,
            ..config::Orchestration::default()
        };
        let clock = Clock::manual(Duration::from_secs(1_700_000_000));
        Self {
            settings,
            hosts: HostTerms::default(),
            seeds,
            bus: Bus::local(),
            metrics: Metrics::default(),
            calls: CallRecorder::default(),
            usage: Usage::detached(clock.clone()),
            clock,
            places: 64,
        }
    }
}

impl Orchestration {
    pub(crate) async fn open_at(
        dir: &Path,
        database: &Place,
        terms: impl FnOnce(&Db) -> io::Result<Terms>,
        setup: Setup,
    ) -> Result<Arc<Self>, OrchestrationError> {
        let Setup {
            settings,
            clock,
            hosts,
            seeds,
            bus,
            metrics,
            calls,
            usage,
            places,
        } = setup;
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
        let changes = Changes::open(store.db(), bus.clone(), TOPIC).await?;
        let runs = Changes::open(store.db(), bus.clone(), RUNS).await?;
        let sessions = Changes::open(store.db(), bus.clone(), SESSIONS).await?;
        let owners = Changes::open(store.db(), bus, OWNERS).await?;
        let agents = Agents::open(&store, blobs.clone(), clock.clone(), &settings, &metrics);
        let (agents, entries) = agents.await?;
        let solvers = settings.learners.max(1);
        let window = Duration::from_secs(settings.calibration_seconds);
        let service = Arc::new(Self {
            checkpoints: Checkpoints::new(store.clone(), blobs, settings.checkpoints),
            cleaning: Mutex::default(),
            calibrations: Calibrations::new(store.clone(), calls, clock.clone(), window, places),
            calibrating: Mutex::default(),
            measuring: Mutex::default(),
            governed: settings.governed_promotion,
            checkpoint_every: Duration::from_secs(settings.checkpoint_seconds),
            agents,
            trainings: Trainings::default(),
            learners: Learners::new(settings.learners, settings.queue),
            hosts: Hosts::new(hosts, clock.clone()),
            store,
            presence: Presence::new(leases.clone()),
            leases,
            changes,
            runs,
            sessions,
            owners,
            clock,
            solvers: Solvers::new(solvers),
            usage,
            nash: LastDistance::register(&metrics),
            seeds,
            runs_ended: Outcomes::new(&metrics, TRAINING_RUNS),
        });
        service.load_ladder().await?;
        tokio::spawn(keep_ledger(Arc::downgrade(&service), entries));
        service.begin_serving().await?;
        service.resume_left_runs().await?;
        Ok(service)
    }

    /// Deletes old checkpoints in the background, as long as the service lives.
    pub(crate) fn start_cleaning(&self) {
        let clean = self.checkpoints.clone().keep_clean(self.leases.clone());
        let clean = AbortOnDropHandle::new(tokio::spawn(clean));
        *self.cleaning.lock() = Some(clean);
    }

    /// Calibrates the mesh's model in the background, as long as the service lives.
    pub(crate) fn start_calibrating(&self) {
        let calibrate = self
            .calibrations
            .clone()
            .keep_calibrated(self.leases.clone());
        let calibrate = AbortOnDropHandle::new(tokio::spawn(calibrate));
        *self.calibrating.lock() = Some(calibrate);
    }
}
