//! HyperSync with a database of its own and fake peers.

use super::{AgentRecord, Death, Handle, World};
use crate::{
    HyperSync, HyperSyncError, Setup,
    pauses::Pacing,
    peers::Peers,
    saga::Watch,
    store::{
        self, Proposal, State,
        tests::{proposal, trial},
    },
};
use parking_lot::Mutex;
use std::{path::Path, sync::Arc, time::Duration};
use tars_credentials::{Caller, Credential, Permissions};
use tars_interceptors::usage::{QuotaHandle, Usage, UsageMetrics};
use tars_proto::fault;
use tars_runtime::{
    bus::Bus,
    clock::Clock,
    db::{Db, Query},
    lease::{Lease, Terms},
    metrics::Metrics,
    trace::Tracer,
};
use tonic::Status;
use uuid::Uuid;

/// How long the lease of a replica lasts: nothing is renewed while a test runs.
pub(crate) const LIFE: Duration = Duration::from_secs(3600);
const START: Duration = Duration::from_secs(1_000);

/// The service under test.
pub(crate) struct Rig {
    dir: Arc<tempfile::TempDir>,
    pub(crate) world: Arc<World>,
    pub(crate) service: Arc<HyperSync>,
    pub(crate) clock: Clock,
    pub(crate) metrics: Metrics,
    pub(crate) quotas: QuotaHandle,
    /// What the test itself has.
    pub(crate) leases: tokio::sync::Mutex<Vec<Lease>>,
}

impl Rig {
    pub(crate) async fn start() -> Self {
        Self::start_dying(None).await
    }

    /// A service whose delays have this length.
    pub(crate) async fn start_pausing(pause: Duration) -> Self {
        let mut rig = Self::start().await;
        let pacing = Pacing {
            first: pause,
            longest: pause,
            ..PACING
        };
        let (dir, clock) = (rig.dir.path(), rig.clock.clone());
        // What a process registers it registers once.
        let metrics = Metrics::default();
        rig.service = open(dir, &rig.world, clock, pacing, &metrics, &rig.quotas, None).await;
        rig
    }

    pub(crate) async fn start_dying(death: Option<Death>) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let world = World::new(Arc::new(Mutex::new(AgentRecord::fresh())), death, 1.0);
        Self::open(dir, world, Clock::manual(START), None).await
    }

    /// The next process on the same files and the same agent. Whatever the last one was doing never
    /// continues.
    pub(crate) async fn restart(self) -> Self {
        Self::open(self.dir, self.world.next(), self.clock, None).await
    }

    /// A replica with a database of its own, which others may join.
    pub(crate) async fn replica(holder: &str) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let world = World::new(Arc::new(Mutex::new(AgentRecord::fresh())), None, 1.0);
        Self::open(dir, world, Clock::manual(START), Some(holder)).await
    }

    /// Another replica on the same database, with the same peers and a clock of its own.
    pub(crate) async fn beside(&self, holder: &str) -> Self {
        let (dir, world) = (Arc::clone(&self.dir), Arc::clone(&self.world));
        Self::open(dir, world, Clock::manual(START), Some(holder)).await
    }

    async fn open(
        dir: Arc<tempfile::TempDir>,
        world: Arc<World>,
        clock: Clock,
        replica: Option<&str>,
    ) -> Self {
        let metrics = Metrics::default();
        let quotas = QuotaHandle::default();
        let opened = open(
            dir.path(),
            &world,
            clock.clone(),
            PACING,
            &metrics,
            &quotas,
            replica,
        );
        let service = opened.await;
        Self {
            quotas,
            dir,
            world,
            service,
            clock,
            metrics,
            leases: tokio::sync::Mutex::default(),
        }
    }

    pub(crate) async fn take(&self, name: &str) -> Lease {
        let taken = self.service.leases.acquire(name).await.unwrap();
        taken.expect("the lease is free")
    }

    /// Inserts a proposal of the study's trial in this state.
    pub(crate) async fn put(&self, state: State) -> Proposal {
        self.insert(Proposal {
            id: Uuid::now_v7(),
            change: trial(3),
            applied_by: "user:ada".into(),
            applier_owner: "ada".into(),
            ..proposal(state)
        })
        .await
    }

    pub(crate) async fn insert(&self, proposal: Proposal) -> Proposal {
        let mut tx = self.service.store.begin("test.insert").await.unwrap();
        store::insert(&mut tx, &proposal).await.unwrap();
        tx.commit().await.unwrap();
        proposal
    }

    /// Lets every write of a proposal's next state fail, as on a full disk.
    pub(crate) async fn refuse_writes(&self) {
        for text in tars_test_db::refuse_updates("proposals") {
            self.execute(text).await;
        }
    }

    pub(crate) async fn accept_writes(&self) {
        for text in tars_test_db::accept_updates("proposals") {
            self.execute(text).await;
        }
    }

    async fn execute(&self, sql: &'static str) {
        let mut tx = self.service.store.begin("test.execute").await.unwrap();
        tx.execute(Query::new(sql)).await.unwrap().any();
        tx.commit().await.unwrap();
    }

    pub(crate) async fn state(&self, id: Uuid) -> State {
        self.service.get(id).await.unwrap().state
    }

    /// Resumes as at the start of a process.
    pub(crate) async fn resume(&self) -> usize {
        self.service.resume_proposals().await.unwrap()
    }

    /// Waits until a proposal satisfies a condition.
    pub(crate) async fn until(&self, id: Uuid, wanted: impl Fn(&Proposal) -> bool) -> Proposal {
        let mut changed = self.service.subscribe();
        let seen = async {
            loop {
                changed.borrow_and_update();
                let proposal = self.service.get(id).await.unwrap();
                if wanted(&proposal) {
                    return proposal;
                }
                changed.changed().await.unwrap();
            }
        };
        let seen = tokio::time::timeout(Duration::from_secs(20), seen).await;
        seen.expect("the proposal gets there")
    }

    pub(crate) async fn until_state(&self, id: Uuid, state: State) -> Proposal {
        self.until(id, |p| p.state == state).await
    }

    /// Waits until the agent is held for this proposal, or not held.
    pub(crate) async fn until_held(&self, hold: Option<(Uuid, bool)>) {
        let hold = hold.map(|(id, awaits_person)| (id.to_string(), awaits_person));
        let held = async {
            while self.world.agent().hold != hold {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let held = tokio::time::timeout(Duration::from_secs(20), held).await;
        held.expect("the agent is held as wanted");
    }
}

/// Failures are retried about three times.
const PACING: Pacing = Pacing {
    first: Duration::from_micros(100),
    longest: Duration::from_micros(200),
    patience: Duration::from_micros(500),
    busy: Duration::from_micros(100),
    look: Duration::from_micros(100),
};

/// A promoted version is watched for ten steps or a minute.
pub(crate) const WATCH: Watch = Watch {
    steps: 10,
    longest: Duration::from_secs(60),
};

async fn open(
    dir: &Path,
    world: &Arc<World>,
    clock: Clock,
    pacing: Pacing,
    metrics: &Metrics,
    quotas: &QuotaHandle,
    replica: Option<&str>,
) -> Arc<HyperSync> {
    let handle = Arc::new(Handle(Arc::clone(world)));
    let peers = Peers {
        for_caller: handle.clone(),
        agents: handle.clone(),
        trainer: handle.clone(),
        ladder: handle,
    };
    let terms = |_: &Db| match replica {
        None => Ok(Terms::Sole),
        Some(holder) => Ok(Terms::Shared {
            holder: holder.to_owned(),
            life: LIFE,
        }),
    };
    let place = tars_test_db::place(dir, "hypersync");
    let usage = Usage::for_tests(clock.clone(), quotas.clone(), UsageMetrics::new(metrics));
    let setup = Setup {
        peers,
        clock,
        pacing,
        watch: WATCH,
        bus: Bus::local(),
        tracer: Tracer::disabled(),
        metrics: metrics.clone(),
        usage,
    };
    HyperSync::open_at(&place, terms, setup).await.unwrap()
}

pub(crate) fn caller(name: &str, permissions: &[&str]) -> Caller {
    Caller {
        owner_id: name.to_owned(),
        username: name.to_owned(),
        roles: vec![],
        permissions: Permissions::of(permissions.iter().copied()),
        credential: Credential::Session {
            id: "session".into(),
        },
        label: format!("user:{name}"),
        version: 1,
        expires_s: u64::MAX,
    }
}

/// The reason of a refusal.
pub(crate) fn reason<T: std::fmt::Debug>(refused: Result<T, HyperSyncError>) -> String {
    let status = Status::from(refused.unwrap_err());
    fault::reason(&status).unwrap_or_else(|| status.to_string())
}
