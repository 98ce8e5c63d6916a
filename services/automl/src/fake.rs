//! Orchestration in memory: the outcomes of training runs are planned by trial number.

use crate::{
    Automl, Setup,
    peers::{AgentKind, DescribeAgents, Elsewhere, Most, Peers},
    retries::Pacing,
    store::{StudyRow, StudyState, TrialRow, TrialState},
    studies::NewStudy,
};
use futures_util::{
    StreamExt,
    stream::{self, BoxStream},
};
use parking_lot::Mutex;
use std::{
    collections::{HashMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tars_interceptors::usage::{Allowance, Usage};
use tars_peers::{Evaluation, PeerError, Run, Trainer, Update, seeds};
use tars_proto::{fault, reason};
use tars_runtime::{
    bus::Bus,
    clock::Clock,
    config,
    db::{Db, Query},
    lease::Terms,
    metrics::Metrics,
    seeds::Seeds,
    trace::Tracer,
};
use tars_search::{Parameter, Range, Space};
use tokio::sync::{Notify, Semaphore};
use tonic::{Code, Status, async_trait};
use uuid::Uuid;

const SEED: u64 = 7;
/// The limit of concurrently running studies.
pub(crate) const STUDIES: usize = 2;
/// How many studies an owner may have that have not ended; in all, one more.
pub(crate) const OWN_STUDIES: u64 = 1_000;
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_micros(100);
/// How long the lease of a replica lasts: nothing is renewed while a test runs.
pub(crate) const LIFE: Duration = Duration::from_secs(3600);

pub(crate) fn unavailable() -> Status {
    Status::unavailable("no route")
}

pub(crate) fn busy() -> Status {
    let soon = Duration::from_secs(1);
    fault::spent(
        reason::LEARNERS_BUSY,
        "learners",
        "too many runs wait",
        soon,
    )
}

pub(crate) fn refused(code: Code) -> Status {
    fault::status(code, "TEST", "refused by a test")
}

/// A study with this many trials, on the seed that plans refer to.
pub(crate) fn seeded(n_trials: u32) -> NewStudy {
    let range = Range::Float {
        low: 0.9,
        high: 0.99,
        log: false,
    };
    let gamma = Parameter {
        name: "gamma".into(),
        range,
    };
    NewStudy {
        agent_id: "policy".into(),
        agent_type: "dqn".into(),
        environment: "cartpole".into(),
        server_run: true,
        sampler: Some("random".into()),
        pruner: None,
        n_trials: Some(n_trials),
        space: Space::new(vec![gamma]).unwrap(),
        seed: Some(SEED),
        steps: Some(100),
        owner: "user:dev".into(),
        owner_id: "dev".into(),
        allowance: Allowance::default(),
    }
}

/// How a run ends.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    Fails(Status),
    /// It reports these values, and fails.
    FailsAfter(Vec<(u64, f64)>, Status),
    Reports(Vec<(u64, f64)>, f64),
    /// Its stream ends without a result.
    Lost,
    /// It waits for a learner until it is stopped.
    Queued,
    /// It ends with 1 once it gets one of these permits.
    Permitted(Arc<Semaphore>),
    /// It reports these values, then runs until it is stopped.
    HangsAfter(Vec<(u64, f64)>),
    /// It waits until it is notified, reports these values, and ends with this score.
    Waits(Arc<Notify>, Vec<(u64, f64)>, f64),
}

impl Outcome {
    fn updates(self) -> BoxStream<'static, Result<Update, PeerError>> {
        match self {
            Self::Fails(status) => stream::iter([Err(status.into())]).boxed(),
            Self::FailsAfter(reports, status) => {
                let end = stream::iter([Err(status.into())]);
                progress(reports).chain(end).boxed()
            }
            Self::Reports(reports, score) => {
                let end = stream::iter([Ok(Update::Ended(score))]);
                progress(reports).chain(end).boxed()
            }
            Self::Lost => stream::empty().boxed(),
            Self::Queued => stream::pending().boxed(),
            Self::Permitted(releases) => stream::once(async move {
                let permit = releases.acquire_owned().await;
                permit.expect("never closed").forget();
                Ok(Update::Ended(1.0))
            })
            .boxed(),
            Self::HangsAfter(reports) => progress(reports).chain(stream::pending()).boxed(),
            Self::Waits(notify, reports, score) => {
                let rest = Self::Reports(reports, score).updates();
                let notified = async move {
                    notify.notified().await;
                    rest
                };
                stream::once(notified).flatten().boxed()
            }
        }
    }
}

fn progress(reports: Vec<(u64, f64)>) -> BoxStream<'static, Result<Update, PeerError>> {
    let update = |(step, mean_return)| {
        Ok(Update::Progress {
            step,
            mean_return: Some(mean_return),
        })
    };
    let began = stream::iter([Ok(Update::Began)]);
    began
        .chain(stream::iter(reports.into_iter().map(update)))
        .boxed()
}

#[derive(Debug, Default)]
pub(crate) struct World {
    plans: Mutex<HashMap<u64, VecDeque<Outcome>>>,
    asked: Mutex<Vec<Evaluation>>,
    running: AtomicUsize,
    most: AtomicUsize,
}

/// A run that counts as running until it is dropped.
struct Counted(Arc<World>);

impl Counted {
    fn new(world: Arc<World>) -> Self {
        let now = world.running.fetch_add(1, Ordering::Relaxed) + 1;
        world.most.fetch_max(now, Ordering::Relaxed);
        Self(world)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

impl World {
    /// Plans the outcome of the next unplanned run of a trial. An unplanned run returns 1.
    pub(crate) fn plan(&self, number: u32, outcome: Outcome) {
        let seed = seeds::for_trial(SEED, number);
        self.plans
            .lock()
            .entry(seed)
            .or_default()
            .push_back(outcome);
    }

    /// The runs that were requested.
    pub(crate) fn asked(&self) -> Vec<Evaluation> {
        self.asked.lock().clone()
    }

    pub(crate) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    pub(crate) fn most_running(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Handle(Arc<World>);

impl Trainer for Handle {
    fn evaluate(&self, evaluation: Evaluation) -> Run {
        let mut plans = self.0.plans.lock();
        let planned = plans
            .get_mut(&evaluation.seed)
            .and_then(VecDeque::pop_front);
        let outcome = planned.unwrap_or(Outcome::Reports(vec![], 1.0));
        self.0.asked.lock().push(evaluation);
        let counted = Counted::new(Arc::clone(&self.0));
        Run::new(outcome.updates().map(move |update| {
            let _ = &counted;
            update
        }))
    }
}

#[async_trait]
impl DescribeAgents for Handle {
    async fn kind(&self, _: &str, elsewhere: Elsewhere) -> Result<AgentKind, PeerError> {
        let environment = match elsewhere.environment.as_str() {
            "" => "cartpole".into(),
            _ => elsewhere.environment,
        };
        Ok(AgentKind {
            agent_type: "dqn".into(),
            environment,
        })
    }

    async fn ensure_storable(&self, _: &str, _: Elsewhere, _: Most) -> Result<(), PeerError> {
        Ok(())
    }
}

/// AutoML with a database of its own and a fake Orchestration.
pub(crate) struct Rig {
    dir: Arc<tempfile::TempDir>,
    parallel: usize,
    pub(crate) world: Arc<World>,
    pub(crate) automl: Arc<Automl>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_with(2).await
    }

    /// With this many concurrent trials of a study.
    pub(crate) async fn start_with(parallel: usize) -> Self {
        Self::open(
            Arc::new(tempfile::tempdir().unwrap()),
            parallel,
            PAUSE,
            None,
        )
        .await
    }

    /// With this delay between the attempts of a trial.
    pub(crate) async fn start_pausing(pause: Duration) -> Self {
        Self::open(Arc::new(tempfile::tempdir().unwrap()), 2, pause, None).await
    }

    /// The next process on the same files. Whatever the last one was doing never continues.
    pub(crate) async fn restart(self) -> Self {
        self.automl.leases.close().await;
        self.until_idle().await;
        Self::open(self.dir, self.parallel, PAUSE, None).await
    }

    /// A replica with a database of its own, which others may join.
    pub(crate) async fn replica(holder: &str) -> Self {
        Self::open(
            Arc::new(tempfile::tempdir().unwrap()),
            1,
            PAUSE,
            Some(holder),
        )
        .await
    }

    /// Another replica on the same database, with a clock and a trainer of its own.
    pub(crate) async fn beside(&self, holder: &str) -> Self {
        Self::open(Arc::clone(&self.dir), 1, PAUSE, Some(holder)).await
    }

    async fn open(
        dir: Arc<tempfile::TempDir>,
        parallel: usize,
        pause: Duration,
        replica: Option<&str>,
    ) -> Self {
        let (world, clock) = (Arc::new(World::default()), Clock::manual(PATIENCE));
        let handle = Arc::new(Handle(Arc::clone(&world)));
        let peers = Peers {
            agents: handle.clone(),
            trainer: handle,
        };
        let settings = config::Automl {
            parallel_trials: parallel,
            max_running_studies: STUDIES,
            max_running_studies_by_owner: OWN_STUDIES,
            max_studies_by_owner: OWN_STUDIES + 1,
        };
        let pacing = Pacing {
            trial: pause,
            longest: pause,
            ..Pacing::default()
        };
        let metrics = Metrics::default();
        let place = tars_test_db::place(dir.path(), "automl");
        let terms = |_: &Db| match replica {
            None => Ok(Terms::Sole),
            Some(holder) => Ok(Terms::Shared {
                holder: holder.to_owned(),
                life: LIFE,
            }),
        };
        let setup = Setup {
            settings,
            peers,
            clock: clock.clone(),
            seeds: Seeds::counted(1),
            pacing,
            tracer: Tracer::disabled(),
            // Of its own, as when hints are lost.
            bus: Bus::local(),
            metrics: metrics.clone(),
            usage: Usage::detached(clock.clone()),
        };
        let automl = Automl::open_at(&place, terms, setup);
        Self {
            automl: automl.await.unwrap(),
            dir,
            parallel,
            world,
            clock,
            metrics,
        }
    }

    /// Starts a study that the server runs.
    pub(crate) async fn begin(&self, new: NewStudy) -> Uuid {
        let started = self.automl.start_study(new).await;
        started.unwrap().id
    }

    /// Resumes as at the start of a process.
    pub(crate) async fn resume(&self) -> usize {
        self.automl.resume_studies().await.unwrap()
    }

    pub(crate) async fn row(&self, id: Uuid) -> StudyRow {
        self.automl.store.study(id).await.unwrap()
    }

    pub(crate) async fn trials(&self, id: Uuid) -> Vec<TrialRow> {
        self.automl.store.all_trials(id).await.unwrap()
    }

    pub(crate) async fn execute(&self, sql: &'static str) {
        let mut tx = self.automl.store.begin("test.execute").await.unwrap();
        tx.execute(Query::new(sql)).await.unwrap().any();
        tx.commit().await.unwrap();
    }

    /// The study once its end was announced.
    pub(crate) async fn ended(&self, id: Uuid) -> StudyRow {
        let mut changed = self.automl.changes.subscribe();
        let end = async {
            while self.row(id).await.state == StudyState::Running {
                changed.changed().await.unwrap();
            }
        };
        let end = tokio::time::timeout(PATIENCE, end).await;
        end.expect("the study ends");
        self.row(id).await
    }

    /// The trials once none of them runs.
    pub(crate) async fn settled_trials(&self, id: Uuid) -> Vec<TrialRow> {
        let settled = |trials: &[TrialRow]| trials.iter().all(|t| t.state != TrialState::Running);
        self.trials_once(id, settled).await
    }

    /// Waits until a study's first trial has reported so often.
    pub(crate) async fn until_reported(&self, id: Uuid, reports: usize) {
        let reported = |trials: &[TrialRow]| {
            let first = trials.first();
            first.is_some_and(|t| t.intermediate.len() == reports)
        };
        self.trials_once(id, reported).await;
    }

    async fn trials_once(&self, id: Uuid, is_so: impl Fn(&[TrialRow]) -> bool) -> Vec<TrialRow> {
        let seen = async {
            loop {
                let trials = self.trials(id).await;
                if is_so(&trials) {
                    return trials;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let seen = tokio::time::timeout(PATIENCE, seen).await;
        seen.expect("the trials get there")
    }

    /// Waits until no study is running.
    pub(crate) async fn until_idle(&self) {
        let turns = &self.automl.running;
        self.until("idle", || turns.available_permits() == STUDIES)
            .await;
    }

    /// Waits until a condition holds.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn() -> bool) {
        let so = async {
            while !is_so() {
                tokio::time::sleep(PAUSE).await;
            }
        };
        let so = tokio::time::timeout(PATIENCE, so).await;
        so.unwrap_or_else(|_| panic!("{what}"));
    }
}
