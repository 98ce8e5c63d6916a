//! The services that HyperSync calls, in memory: one agent as Orchestration stores it, a trainer, and a
//! finished study. A script determines which call fails, loses its response, or kills the process.

mod ladder;
mod rig;

pub(crate) use ladder::{FELL, step};
pub(crate) use rig::{LIFE, Rig, WATCH, caller, reason};

use ladder::LadderRecord;

use crate::peers::{ChangeAgents, ReadForCaller};
use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use std::{
    collections::{BTreeMap, VecDeque},
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};
use tars_peers::{Evaluation, PeerError, Run, Trainer, Update};
use tars_proto::{
    automl::v1::{Study, Trial},
    fault,
    orchestration::v1::{
        Agent, ApplyHyperparametersRequest, DecidedProposal, Hold, HoldAgentRequest,
        ReadHyperparametersResponse, RecordDecisionsRequest, SettleHyperparametersRequest,
    },
    params::{self, Param, Params},
    reason,
};
use tokio::sync::Notify;
use tonic::{Code, Status, async_trait};

pub(crate) fn gamma(value: f64) -> Params {
    Params::from([("gamma".to_owned(), Param::Number(value))])
}

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Study,
    Agent,
    Read,
    Apply,
    Settle,
    Hold,
    Record,
    Evaluate,
    Standing,
    Check,
    Compare,
    StepUp,
    StepBack,
    SettleStep,
}

/// A fault of one call.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The call fails without an effect.
    Fail(Status),
    /// The call takes effect, and its response is lost.
    LoseResponse,
    /// Somebody makes this value live just before the call.
    Overtake(f64),
    /// The version on the ladder falls just before the call.
    Fall,
    /// The call never returns.
    Hang,
    /// The last attempt to apply is carried out just before the call, whatever became of it then.
    Arrive,
}

/// Where the process is killed: before or after the effect of a call, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Death {
    Before(usize),
    After(usize),
}

/// The number of an operation that is never to take effect.
const VOID: u64 = u64::MAX;

/// The agent as Orchestration stores it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct AgentRecord {
    pub(crate) live: Params,
    pub(crate) version: u64,
    /// The change that holds the agent, and whether it awaits a person.
    pub(crate) hold: Option<(String, bool)>,
    pub(crate) approved: u64,
    pub(crate) ladder: LadderRecord,
    operations: BTreeMap<String, u64>,
    /// The largest fencing token of each change.
    tokens: BTreeMap<String, u64>,
}

impl AgentRecord {
    /// An agent that was never changed.
    fn fresh() -> Self {
        Self {
            live: gamma(0.95),
            version: 1,
            hold: None,
            approved: 1,
            ladder: LadderRecord::fresh(),
            operations: BTreeMap::new(),
            tokens: BTreeMap::new(),
        }
    }

    /// Whether a late attempt of a change's first operation changes nothing.
    pub(crate) fn is_void(&self, operation: &str) -> bool {
        self.operations.get(operation) == Some(&VOID) || self.ladder.is_void(operation)
    }

    fn set(&mut self, values: Params) -> u64 {
        self.live.extend(values);
        self.version += 1;
        self.version
    }

    fn not_held(&self, change: &str) -> Result<(), Status> {
        match &self.hold {
            Some((other, _)) if other != change => Err(fault::held(
                reason::CHANGE_IN_PROGRESS,
                "proposal",
                other,
                "held by another change",
            )),
            _ => Ok(()),
        }
    }

    /// Refuses a process whose work another one has taken over.
    fn admit(&mut self, change: &str, token: u64) -> Result<(), Status> {
        let largest = self.tokens.entry(change.to_owned()).or_default();
        if token < *largest {
            let text = format!("{change} has been taken over");
            return Err(fault::status(Code::Aborted, "SUPERSEDED", &text));
        }
        *largest = token;
        Ok(())
    }

    fn apply(&mut self, request: ApplyHyperparametersRequest) -> Result<u64, Status> {
        self.admit(&request.change_id, request.fencing_token)?;
        self.not_held(&request.change_id)?;
        let done = self.operations.get(&request.operation_id).copied();
        let version = match done {
            Some(VOID) => return Err(fault::status(Code::Aborted, "SUPERSEDED", "given up")),
            Some(version) if self.hold.is_some() || version != self.version => return Ok(version),
            Some(version) => version,
            None if request.expected_version != self.version => {
                let text = format!("version {} is live", self.version);
                return Err(fault::status(Code::Aborted, reason::VERSION_CHANGED, &text));
            }
            None => {
                let values = request.hyperparameters.unwrap_or_default();
                self.set(params::from_struct(values).unwrap())
            }
        };
        self.operations.insert(request.operation_id, version);
        self.hold = Some((request.change_id, false));
        Ok(version)
    }

    fn settle(&mut self, request: &SettleHyperparametersRequest) -> Result<(), Status> {
        if let Some(token) = request.fencing_token {
            self.admit(&request.change_id, token)?;
        }
        if let Some(operation) = &request.void_operation_id {
            let version = *self.operations.entry(operation.clone()).or_insert(VOID);
            if version == self.version {
                let text = format!("version {version} is live");
                return Err(fault::status(Code::Aborted, reason::VERSION_CHANGED, &text));
            }
        }
        self.not_held(&request.change_id)?;
        self.hold = None;
        self.approved = request.approved_version.unwrap_or(self.approved);
        Ok(())
    }
}

/// The peers as one process sees them. The next process sees the same agent.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) stored: Arc<Mutex<AgentRecord>>,
    pub(crate) study: Mutex<Option<Study>>,
    /// How much higher the return of the proposed value is.
    pub(crate) improvement: Mutex<f64>,
    /// The proposals that were recorded.
    pub(crate) recorded: Mutex<Vec<DecidedProposal>>,
    faults: Mutex<VecDeque<(Call, Fault)>>,
    attempted: Mutex<Option<ApplyHyperparametersRequest>>,
    calls: Mutex<Vec<Call>>,
    death: Option<Death>,
    number: AtomicUsize,
    dead: AtomicBool,
    died: Notify,
}

impl World {
    fn new(stored: Arc<Mutex<AgentRecord>>, death: Option<Death>, improvement: f64) -> Arc<Self> {
        Arc::new(Self {
            stored,
            study: Mutex::new(Some(study())),
            improvement: Mutex::new(improvement),
            recorded: Mutex::default(),
            faults: Mutex::default(),
            attempted: Mutex::default(),
            calls: Mutex::default(),
            death,
            number: AtomicUsize::new(0),
            dead: AtomicBool::new(false),
            died: Notify::new(),
        })
    }

    /// The peers as the next process sees them. The present process is dead from now on.
    fn next(&self) -> Arc<Self> {
        self.dead.store(true, Ordering::Relaxed);
        Self::new(Arc::clone(&self.stored), None, *self.improvement.lock())
    }

    /// Injects a fault into the next call of this kind that has none yet.
    pub(crate) fn inject(&self, call: Call, fault: Fault) {
        self.faults.lock().push_back((call, fault));
    }

    /// Lets the next `times` calls of this kind fail.
    pub(crate) fn fail(&self, times: usize, call: Call, status: &Status) {
        for _ in 0..times {
            self.inject(call, Fault::Fail(status.clone()));
        }
    }

    /// The number of calls of this kind.
    pub(crate) fn count(&self, call: Call) -> usize {
        self.calls.lock().iter().filter(|c| **c == call).count()
    }

    pub(crate) fn calls(&self) -> usize {
        self.number.load(Ordering::Relaxed)
    }

    pub(crate) fn agent(&self) -> AgentRecord {
        self.stored.lock().clone()
    }

    /// Waits until the process is killed.
    pub(crate) async fn died(&self) {
        self.died.notified().await;
    }

    async fn die<T>(&self) -> T {
        self.dead.store(true, Ordering::Relaxed);
        self.died.notify_one();
        pending().await
    }

    fn take_fault(&self, call: Call) -> Option<Fault> {
        let mut faults = self.faults.lock();
        let at = faults.iter().position(|(c, _)| *c == call)?;
        faults.remove(at).map(|(_, fault)| fault)
    }

    async fn meet<T>(
        &self,
        call: Call,
        effect: impl FnOnce(&mut AgentRecord) -> Result<T, Status> + Send,
    ) -> Result<T, PeerError> {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        if self.dead.load(Ordering::Relaxed) || self.death == Some(Death::Before(number)) {
            return self.die().await;
        }
        self.calls.lock().push(call);
        let fault = self.take_fault(call);
        match &fault {
            Some(Fault::Fail(_)) if self.death == Some(Death::After(number)) => {
                return self.die().await;
            }
            Some(Fault::Fail(status)) => return Err(status.clone().into()),
            Some(Fault::Hang) => return pending().await,
            Some(Fault::Overtake(value)) => drop(self.stored.lock().set(gamma(*value))),
            Some(Fault::Fall) => self.stored.lock().ladder.fall(),
            Some(Fault::Arrive) => {
                let late = self.attempted.lock().take().expect("it was attempted");
                self.stored.lock().apply(late).unwrap();
            }
            Some(Fault::LoseResponse) | None => {}
        }
        let done = effect(&mut self.stored.lock());
        if self.death == Some(Death::After(number)) {
            return self.die().await;
        }
        match fault {
            Some(Fault::LoseResponse) => Err(unavailable().into()),
            _ => Ok(done?),
        }
    }

    async fn mean_return(&self, evaluation: Evaluation) -> Result<f64, PeerError> {
        let proposed = evaluation.hyperparameters == gamma(0.99);
        let gain = if proposed {
            *self.improvement.lock()
        } else {
            0.0
        };
        let base = (evaluation.seed % 7) as f64;
        self.meet(Call::Evaluate, |_| Ok(base + gain)).await
    }
}

fn study() -> Study {
    Study {
        study_id: "study".into(),
        agent_id: "policy".into(),
        agent_type: "dqn".into(),
        environment: "cartpole".into(),
        steps: Some(100),
        best_trial: Some(Trial {
            number: 3,
            score: Some(100.0),
            parameters: Some(params::to_struct(&gamma(0.99))),
            ..Trial::default()
        }),
        ..Study::default()
    }
}

#[derive(Debug)]
struct Handle(Arc<World>);

#[async_trait]
impl ReadForCaller for Handle {
    async fn study(&self, _: &str) -> Result<Option<Study>, PeerError> {
        let study = self.0.study.lock().clone();
        self.0.meet(Call::Study, |_| Ok(study)).await
    }

    async fn agent(&self, agent_id: &str) -> Result<Option<Agent>, PeerError> {
        let agent = |stored: &mut AgentRecord| {
            let hold = stored.hold.clone().map(|(change_id, awaits_person)| Hold {
                change_id,
                awaits_person,
                ..Hold::default()
            });
            Ok(Some(Agent {
                agent_id: agent_id.to_owned(),
                agent_type: "dqn".into(),
                environment: "cartpole".into(),
                hyperparameters: Some(params::to_struct(&stored.live)),
                version: stored.version,
                hold,
                ..Agent::default()
            }))
        };
        self.0.meet(Call::Agent, agent).await
    }
}

#[async_trait]
impl ChangeAgents for Handle {
    async fn read(&self, _: &str) -> Result<ReadHyperparametersResponse, PeerError> {
        let answer = |stored: &mut AgentRecord| {
            Ok(ReadHyperparametersResponse {
                hyperparameters: Some(params::to_struct(&stored.live)),
                version: stored.version,
                ..ReadHyperparametersResponse::default()
            })
        };
        self.0.meet(Call::Read, answer).await
    }

    async fn apply(&self, request: ApplyHyperparametersRequest) -> Result<u64, PeerError> {
        *self.0.attempted.lock() = Some(request.clone());
        self.0
            .meet(Call::Apply, |stored| stored.apply(request))
            .await
    }

    async fn settle(&self, request: SettleHyperparametersRequest) -> Result<(), PeerError> {
        self.0
            .meet(Call::Settle, |stored| stored.settle(&request))
            .await
    }

    async fn hold(&self, request: HoldAgentRequest) -> Result<(), PeerError> {
        let hold = |stored: &mut AgentRecord| {
            stored.admit(&request.change_id, request.fencing_token)?;
            stored.not_held(&request.change_id)?;
            stored.hold = Some((request.change_id, true));
            Ok(())
        };
        self.0.meet(Call::Hold, hold).await
    }

    async fn record(&self, request: RecordDecisionsRequest) -> Result<(), PeerError> {
        let record = |_: &mut AgentRecord| {
            self.0.recorded.lock().extend(request.proposals);
            Ok(())
        };
        self.0.meet(Call::Record, record).await
    }
}

impl Trainer for Handle {
    fn evaluate(&self, evaluation: Evaluation) -> Run {
        let world = Arc::clone(&self.0);
        let run = async move { world.mean_return(evaluation).await.map(Update::Ended) };
        Run::new(stream::iter([Ok(Update::Began)]).chain(stream::once(run)))
    }
}
