//! Orchestration's errors, and the one table that maps them to gRPC statuses.

use crate::stage::{Refusal, Stage};
use std::{io, time::Duration};
use tars_games::{GameError, ProfileError, ProgramTooLarge, RankError, UnsuitableAlgorithm};
use tars_interceptors::{store, usage::QuotaRefusal};
use tars_learn::{Mismatch, hyper::ParamViolation, policy::BadPolicy, training::TrainingError};
use tars_proto::{fault, params::NotScalar, reason, unavailable::Unavailable};
use tars_runtime::{
    blobs::BlobError,
    db::DbError,
    events::Trimmed,
    lease::LeaseError,
    page::{BadToken, TOKEN_FIELD},
    tasks::Lost,
};
use tars_worlds::egta::NoGame;
use tonic::{Code, Status};
use tonic_types::FieldViolation;

/// When a client should retry while the learners, or the solvers, are busy.
const LEARNER_SOON: Duration = Duration::from_secs(5);
const SOLVER_SOON: Duration = Duration::from_secs(1);
/// When a client should retry while a replica catches up.
const REPLICA_SOON: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub(crate) enum OrchestrationError {
    #[error("there is no {0} {1:?}")]
    NotFound(&'static str, String),
    #[error(
        "there is no agent {0:?} here: its algorithm, {1}, cannot act in the environment of this mesh"
    )]
    NotBuilt(&'static str, &'static str),
    #[error("the agent has no weights yet: train it first, or promote one of its rules")]
    Untrained,
    #[error("no version of the agent is live; name one that is retained, or train the agent first")]
    NoneLive,
    #[error("the state has {given} values; {agent} observes {needed}")]
    Observation {
        agent: String,
        given: usize,
        needed: usize,
    },
    #[error("the state of {0} has a number that is infinite or not a number")]
    NotFinite(&'static str),
    #[error(
        "{component} of the state of {agent} is {value}; {low}..={high} is what a live mesh can be in"
    )]
    OutsideSpace {
        agent: &'static str,
        component: String,
        value: f32,
        low: f32,
        high: f32,
    },
    #[error("at least one agent's state is required")]
    NoState,
    #[error("the observation is for an agent of another type")]
    AgentType,
    #[error("hyperparameters out of bounds")]
    Hyperparameters(Vec<ParamViolation>),
    #[error(transparent)]
    NotScalar(#[from] NotScalar),
    #[error("the live version is {live}, not {expected}")]
    Version { live: i64, expected: i64 },
    #[error(
        "version {version} is live, which the operation {operation} made: it can be taken back, but is not void"
    )]
    StillLive { version: i64, operation: String },
    #[error("the live version of the weights is {live}, not {expected}")]
    WeightsVersion { live: i64, expected: i64 },
    #[error(
        "the weights of {agent} have no version {version}; retained are {}",
        listed(retained)
    )]
    NotRetained {
        agent: String,
        version: i64,
        /// The newest first.
        retained: Vec<i64>,
    },
    #[error("{agent} has no rule {rule:?}: {}", rules_of(known))]
    UnknownRule {
        agent: &'static str,
        rule: String,
        known: Vec<&'static str>,
    },
    #[error(
        "{agent} is in orchestration.bound_agents, and lives in {environment}: only agents of the mesh can be bound to one"
    )]
    BoundElsewhere {
        agent: &'static str,
        environment: String,
    },
    #[error(
        "{0} is in orchestration.bound_agents, and the action shield does not know what it acts on"
    )]
    Unguarded(&'static str),
    #[error("version {version} of {agent} stays in {stage}: {why}")]
    Ladder {
        agent: &'static str,
        version: i64,
        stage: Stage,
        why: Refusal,
    },
    #[error("version {version} of {agent} does not stand in {stage} any more")]
    Moved {
        agent: &'static str,
        version: i64,
        stage: Stage,
    },
    #[error("{agent}: {why}")]
    NoStage { agent: &'static str, why: Refusal },
    #[error(
        "version {0} earns rewards that are not finite, so that nothing can be compared with it"
    )]
    NotComparable(i64),
    #[error(
        "{0} has no rules that its versions could be compared with: only agents of the mesh have"
    )]
    NothingToCompare(&'static str),
    #[error("there is no such stage")]
    UnknownStage,
    #[error("exactly one is required: a version, or a rule")]
    OneTarget,
    #[error("{0} is larger than any that this service gives")]
    TooLarge(&'static str),
    #[error(
        "there is no version to go back to: none that was live before is retained and did not fall"
    )]
    NoEarlierVersion,
    #[error("version {version} of the weights cannot be served by {agent}: {why}")]
    UnusableVersion {
        agent: &'static str,
        version: i64,
        why: String,
    },
    #[error("the change {change} of {agent} is in progress for {on_behalf_of}; {}", end_of(*awaits_person))]
    ChangeInProgress {
        agent: String,
        change: String,
        on_behalf_of: String,
        awaits_person: bool,
    },
    #[error(
        "the change {0} needs attention: ResolveProposal ends it and releases the agent, or ReleaseLostHold if the proposal is lost"
    )]
    AwaitsPerson(String),
    #[error("the change {0:?} does not hold the agent")]
    NotHeld(String),
    #[error("{0} has been taken over by another process of its service")]
    Superseded(String),
    #[error("this replica does not know yet what is live; retry")]
    Behind,
    #[error("the change is made, and not served yet by the replicas {}; repeat the call to wait", .0.join(", "))]
    RolloutPending(Vec<String>),
    #[error("the agent {0} is already being trained")]
    TrainingRuns(String),
    #[error("the agent {0} is named twice")]
    NamedTwice(String),
    #[error("{0} and {1} live in different environments, and cannot be trained together")]
    Apart(&'static str, &'static str),
    #[error("{0} and {1} have the same place in {2}, and cannot be trained together")]
    SamePlace(&'static str, &'static str, String),
    #[error("the run is {0}, and cannot be {1}")]
    WrongState(&'static str, &'static str),
    #[error("{0} runs are paused, and no more may be")]
    TooManyPaused(usize),
    #[error("{0} runs of one caller are paused, and no more may be")]
    TooManyPausedOfCaller(usize),
    #[error("there are no agents in the environment of this mesh")]
    NoAgents,
    #[error("too many runs are waiting for a learner")]
    QueueFull,
    #[error("there is no algorithm {0:?}")]
    Algorithm(String),
    #[error("{}", no_environment(.0))]
    Environment(String),
    #[error("the algorithm does not fit the environment: {0}")]
    Mismatch(#[from] Mismatch),
    #[error(transparent)]
    Training(#[from] TrainingError),
    #[error(transparent)]
    Game(#[from] GameError),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(transparent)]
    UnsuitableAlgorithm(#[from] UnsuitableAlgorithm),
    #[error(transparent)]
    Rank(#[from] RankError),
    #[error(transparent)]
    ProgramTooLarge(#[from] ProgramTooLarge),
    #[error("there are {0} joint actions; conflicts are resolved among up to {1}")]
    DisputeTooLarge(usize, usize),
    #[error("the constraints forbid all of {0} joint actions")]
    NothingAllowed(usize),
    #[error("the host of {0} has no copies left for a training")]
    HostFull(String),
    /// What is learned there would fit nothing here.
    #[error(
        "{agent} has {there} in {environment}, and {here} where it lives: what it learned there could not answer here"
    )]
    OtherSpaces {
        agent: &'static str,
        environment: String,
        there: String,
        here: String,
    },
    #[error(
        "{0} is lent, and cannot be saved: a run there is not paused, and ends with its process"
    )]
    NotSaved(String),
    #[error("too many games are being solved")]
    SolversBusy,
    #[error(transparent)]
    Quota(#[from] QuotaRefusal),
    #[error("{environment} is not where the agents of this mesh live: that is {inhabited}")]
    NotInhabited {
        environment: String,
        inhabited: String,
    },
    #[error("the session is closed")]
    SessionClosed,
    #[error("{0} sessions are open already: close one")]
    SessionsFull(i64),
    #[error("the session was stored by a version with another world: create a new one")]
    SessionUnusable,
    #[error("another step of the session was taken at the same time; this one changed nothing")]
    SessionStepped,
    #[error("the session has taken {taken} steps, not {expected}")]
    SessionSteps { taken: i64, expected: i64 },
    #[error("{0:?} is not an agent of the world, or the confidence in it is not within 0 and 1")]
    Confidence(String),
    #[error("the game cannot be measured: {0}")]
    NoGame(NoGame),
    #[error("there was no time left to measure the game")]
    TimeLimit,
    #[error(transparent)]
    PageToken(#[from] BadToken),
    #[error("weights: {0}")]
    Weights(#[from] BadPolicy),
    #[error(transparent)]
    Trimmed(#[from] Trimmed),
    #[error(transparent)]
    NotOwned(LeaseError),
    #[error(transparent)]
    Store(#[from] DbError),
    #[error(transparent)]
    Blob(BlobError),
    #[error("file: {0}")]
    Io(#[from] io::Error),
    #[error("a worker stopped: {0}")]
    Worker(&'static str),
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl OrchestrationError {
    /// The reason that a training run shows which has ended with this error.
    pub(crate) fn end_reason(&self) -> &'static str {
        match self {
            Self::Training(TrainingError::WorldLost) => reason::HOST_GONE,
            Self::Training(TrainingError::WorldOverdue) => reason::HOST_LATE,
            Self::Training(TrainingError::Diverged { .. }) => reason::DIVERGED,
            Self::NotSaved(_) => reason::NOT_SAVED,
            _ => reason::INTERNAL,
        }
    }

    /// Whether the database was unavailable, so that the same access may succeed later.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Store(e) if e.is_transient())
    }
}

impl From<LeaseError> for OrchestrationError {
    fn from(error: LeaseError) -> Self {
        match error {
            LeaseError::Db(error) => error.into(),
            stale @ LeaseError::Stale { .. } => Self::NotOwned(stale),
        }
    }
}

impl From<BlobError> for OrchestrationError {
    fn from(error: BlobError) -> Self {
        match error {
            BlobError::Db(error) => error.into(),
            other => Self::Blob(other),
        }
    }
}

impl From<OrchestrationError> for Status {
    fn from(error: OrchestrationError) -> Self {
        use OrchestrationError as E;
        let text = error.to_string();
        match error {
            E::NotFound(kind, name) => fault::not_found(kind, &name),
            E::NotBuilt(..) => fault::status(Code::Unimplemented, reason::AGENT_NOT_BUILT, &text),
            E::Untrained | E::NoneLive => fault::precondition(reason::UNTRAINED, "agent", &text),
            E::Observation { .. } | E::NotFinite(_) | E::OutsideSpace { .. } => {
                fault::invalid_field("state_vector", &text)
            }
            E::NoState => fault::invalid_field("policy_state", &text),
            E::AgentType => fault::invalid_field("agent_type", &text),
            E::Hyperparameters(wrong) => out_of_bounds(wrong),
            E::NotScalar(_) => fault::invalid_field("hyperparameters", &text),
            E::Version { .. }
            | E::StillLive { .. }
            | E::WeightsVersion { .. }
            | E::Moved { .. } => fault::status(Code::Aborted, reason::VERSION_CHANGED, &text),
            E::NotRetained { version, .. } => fault::absent("version", &version.to_string(), &text),
            E::UnknownRule { rule, .. } => fault::absent("rule", &rule, &text),
            E::Ladder { why, .. } | E::NoStage { why, .. } => refused(&why, &text),
            E::NotComparable(_) => unusable(&text),
            E::NothingToCompare(_) => fault::precondition(reason::NO_RULES, "agent", &text),
            E::UnknownStage => fault::invalid_field("stage", &text),
            E::OneTarget => fault::invalid_field("version", &text),
            E::TooLarge(field) => fault::invalid_field(field, &text),
            E::NoEarlierVersion => fault::precondition(reason::NO_EARLIER_VERSION, "agent", &text),
            E::UnusableVersion { .. } => unusable(&text),
            E::ChangeInProgress { change, .. } => {
                fault::held(reason::CHANGE_IN_PROGRESS, "proposal", &change, &text)
            }
            E::AwaitsPerson(change) => {
                fault::held(reason::NEEDS_ATTENTION, "proposal", &change, &text)
            }
            E::NotHeld(_) => fault::precondition(reason::NOT_HELD, "agent", &text),
            E::Superseded(_) => fault::status(Code::Aborted, reason::SUPERSEDED, &text),
            E::Behind => fault::unavailable(Unavailable::ReplicaBehind, &text, REPLICA_SOON),
            E::RolloutPending(_) => {
                fault::unavailable(Unavailable::RolloutPending, &text, REPLICA_SOON)
            }
            E::NamedTwice(_) => fault::invalid_field("agents", &text),
            E::Apart(..) | E::SamePlace(..) | E::NoAgents => {
                fault::precondition(reason::NOT_TOGETHER, "agents", &text)
            }
            E::WrongState(..) => fault::precondition(reason::WRONG_STATE, "run", &text),
            E::TooManyPaused(_) | E::TooManyPausedOfCaller(_) => {
                fault::precondition(reason::TOO_MANY_PAUSED, "runs", &text)
            }
            E::TrainingRuns(_) => fault::precondition(reason::TRAINING_RUNS, "agent", &text),
            E::QueueFull => fault::spent(reason::LEARNERS_BUSY, "learners", &text, LEARNER_SOON),
            E::HostFull(_) => fault::spent(reason::HOSTS_BUSY, "copies", &text, LEARNER_SOON),
            E::Quota(refusal) => refusal.status(),
            E::SolversBusy => fault::spent(reason::SOLVERS_BUSY, "solvers", &text, SOLVER_SOON),
            E::Algorithm(_) => fault::invalid_field("agent_type", &text),
            E::Environment(_) | E::Mismatch(_) | E::NotInhabited { .. } | E::OtherSpaces { .. } => {
                fault::invalid_field("environment", &text)
            }
            E::NotSaved(_) => fault::precondition(reason::NOT_SAVED, "run", &text),
            E::SessionClosed => fault::precondition(reason::SESSION_CLOSED, "session", &text),
            E::SessionUnusable => fault::precondition(reason::SESSION_UNUSABLE, "session", &text),
            E::SessionsFull(_) => {
                fault::status(Code::ResourceExhausted, reason::SESSIONS_FULL, &text)
            }
            E::SessionStepped | E::SessionSteps { .. } => {
                fault::status(Code::Aborted, reason::CONFLICT, &text)
            }
            E::Confidence(_) => fault::invalid_field("reward.confidence", &text),
            E::TimeLimit => fault::status(Code::DeadlineExceeded, reason::TIME_LIMIT, &text),
            E::Training(error) => of_training(error, &text),
            E::Game(_) => fault::invalid_field("game", &text),
            E::Profile(_) => fault::invalid_field("strategy_profile", &text),
            E::UnsuitableAlgorithm(_) => fault::invalid_field("options.algorithm", &text),
            E::Rank(error) => of_rank(&error, &text),
            E::ProgramTooLarge(_) | E::DisputeTooLarge(..) => {
                fault::invalid_field("game.players", &text)
            }
            E::NothingAllowed(_) => {
                fault::precondition(reason::NOTHING_ALLOWED, "constraints", &text)
            }
            E::PageToken(_) => fault::invalid_field(TOKEN_FIELD, &text),
            E::Trimmed(_) => fault::status(Code::OutOfRange, reason::TRIMMED, &text),
            E::NotOwned(_) => fault::status(Code::Aborted, reason::CONFLICT, &text),
            E::Store(e) => store::failed(&e),
            E::BoundElsewhere { .. } | E::Unguarded(_) => internal(&text),
            E::Weights(_) | E::Blob(_) | E::Io(_) | E::Worker(_) | E::Lost(_) | E::NoGame(_) => {
                internal(&text)
            }
        }
    }
}

/// A version does not climb.
fn refused(why: &Refusal, text: &str) -> Status {
    use Refusal as R;
    let reason = match why {
        R::NoTarget(_) => return fault::invalid_field("stage", text),
        R::NotBound => reason::NOT_BOUND,
        R::Skips { .. } | R::ActiveStays | R::RuleIsActive | R::NotUp { .. } => reason::STAGE_ORDER,
        R::Governed(_) => reason::GOVERNED,
        R::NotMeasured | R::Uncalibrated(_) | R::Outdated { .. } | R::NothingOfAgent { .. } => {
            reason::UNCALIBRATED
        }
        R::NotCompared(_) | R::FewSeeds(_) => reason::NOT_COMPARED,
        R::NotAsGood { .. } | R::Worse { .. } => reason::NOT_BETTER,
        R::TooFewSteps(_) | R::Blocked { .. } => reason::CANARY_UNPROVEN,
    };
    fault::precondition(reason, "version", text)
}

fn of_training(error: TrainingError, text: &str) -> Status {
    use TrainingError as E;
    match error {
        E::Hyperparameters(wrong) => out_of_bounds(wrong),
        E::Algorithm(_) => fault::invalid_field("agent_type", text),
        E::Mismatch { .. } => fault::invalid_field("environment", text),
        E::Diverged { .. } => fault::status(Code::Aborted, reason::DIVERGED, text),
        E::WorldLost => fault::status(Code::Aborted, reason::HOST_GONE, text),
        E::WorldOverdue => fault::status(Code::DeadlineExceeded, reason::HOST_LATE, text),
        E::Members | E::Start(_) | E::Checkpoint(_) | E::World => internal(text),
    }
}

fn of_rank(error: &RankError, text: &str) -> Status {
    match error {
        RankError::Stopped => fault::status(Code::DeadlineExceeded, reason::TIME_LIMIT, text),
        RankError::TooLarge(_) => fault::invalid_field("game.players", text),
        RankError::Selection => fault::invalid_field("intensity", text),
    }
}

fn out_of_bounds(wrong: Vec<ParamViolation>) -> Status {
    fault::invalid(wrong.into_iter().map(violation).collect())
}

/// The client gets no details of an internal failure; the log has them.
fn internal(text: &str) -> Status {
    tracing::error!(error = text, "orchestration failed");
    fault::internal()
}

/// The weights of a retained version have been damaged, or are of another environment.
fn unusable(text: &str) -> Status {
    tracing::error!(error = text, "a version of an agent's weights is unusable");
    fault::precondition(reason::UNUSABLE_VERSION, "version", text)
}

fn listed(versions: &[i64]) -> String {
    if versions.is_empty() {
        return "none".to_owned();
    }
    let versions: Vec<String> = versions.iter().map(ToString::to_string).collect();
    versions.join(", ")
}

fn no_environment(named: &str) -> String {
    let built_in: Vec<&str> = tars_worlds::world_names().collect();
    format!(
        "there is no environment {named:?}: built in are {}; what you lend is external/NAME, in lower case, while its host is connected",
        built_in.join(", ")
    )
}

fn rules_of(known: &[&str]) -> String {
    match known {
        [] => "only agents of the mesh have rules".to_owned(),
        known => format!("it has {}", known.join(", ")),
    }
}

/// How a change in progress ends.
fn end_of(awaits_person: bool) -> &'static str {
    if awaits_person {
        "it waits for a person's decision, by ResolveProposal"
    } else {
        "wait for its end, or release the agent"
    }
}

fn violation(wrong: ParamViolation) -> FieldViolation {
    FieldViolation::new(format!("hyperparameters[{}]", wrong.name), wrong.problem)
}
