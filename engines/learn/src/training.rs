//! Training in a world: one agent, or several of its agents at the same time, while frozen policies or fixed
//! rules act for the others. The owner receives reports, replaces hyperparameters, takes checkpoints, pauses
//! and stops.
//!
//! A seed determines everything. A training that is resumed from a checkpoint ends as an undisturbed one
//! would have, to the bit.

mod evaluation;
mod lane;
mod player;
mod saved;
mod seats;
mod statistics;

pub use evaluation::{Evaluation, evaluate};
pub use player::{MakeRule, Player};
pub use statistics::Statistics;

use crate::{
    algorithm::{self, NoLearner},
    hyper::{ParamViolation, Values},
    learner::{BadCheckpoint, Stopped, Update, WrongPolicy},
    policy::{Mismatch, Policy},
};
use lane::Lane;
use rand::{Rng, SeedableRng};
use std::{fmt, sync::Arc};
use tars_worlds::{Action, Copies, Generator, Soundness, World};

/// Separates the random stream of evaluations from that of the training.
const EVALUATION_STREAM: u64 = 0x9e37_79b9_7f4a_7c15;

/// Creates a world. Worlds that it creates are alike.
pub type MakeWorld = Arc<dyn Fn() -> Box<dyn World> + Send + Sync>;

/// Why a training was refused or came to no outcome.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TrainingError {
    /// There are not as many members as the world has agents, or none of them learns.
    #[error("the members are not the world's agents, or none of them learns")]
    Members,
    /// The name is not an algorithm's.
    #[error("there is no algorithm {0:?}")]
    Algorithm(String),
    /// An algorithm or a policy cannot act for an agent.
    #[error("agent {agent}: {mismatch}")]
    Mismatch {
        /// The agent's position.
        agent: usize,
        /// Why.
        mismatch: Mismatch,
    },
    /// Some hyperparameters are unknown, out of bounds, or fixed since the start.
    #[error("hyperparameters out of bounds")]
    Hyperparameters(Vec<ParamViolation>),
    /// A learner cannot continue from the policy that it was given.
    #[error(transparent)]
    Start(#[from] WrongPolicy),
    /// The checkpoint is damaged, or of another training.
    #[error(transparent)]
    Checkpoint(#[from] BadCheckpoint),
    /// A loss became infinite or not a number.
    #[error("learning diverged: the values of agent {agent} are no longer finite")]
    Diverged {
        /// The agent's position.
        agent: usize,
    },
    /// The world gave a reward or an observation that is infinite or not a number.
    #[error("the world gave numbers that are not finite")]
    World,
    /// The process that runs the world is gone, and did not come back in time.
    #[error("the process that runs the world is gone")]
    WorldLost,
    /// The world has taken longer than a training may.
    #[error(
        "the process that runs the world was too slow: the training has taken as long as one may"
    )]
    WorldOverdue,
}

/// Who acts for an agent of the world.
#[derive(Clone)]
pub enum Member {
    /// A learner.
    Learns {
        /// The algorithm's name.
        algorithm: String,
        /// Hyperparameters; missing ones have their defaults.
        values: Values,
        /// What to continue from.
        start: Option<Policy>,
    },
    /// A policy or a rule that does not change.
    Plays(Player),
}

/// What to train, and for how long.
#[derive(Clone)]
pub struct Training {
    /// The world.
    pub world: MakeWorld,
    /// Who acts for each of its agents, in their order.
    pub members: Vec<Member>,
    /// Copies of the world that are stepped together, at least one.
    pub copies: usize,
    /// Determines the initial weights, exploration, minibatches, worlds and evaluations.
    pub seed: u64,
    /// Steps of all copies together.
    pub steps: u64,
    /// How many progress reports are spread evenly over the steps, at least one.
    pub reports: u64,
    /// Steps between two evaluations; 0 for one at the end only.
    pub evaluate_every: u64,
    /// Episodes of an evaluation, at least one.
    pub evaluation_episodes: u32,
}

/// How one agent learns.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentProgress {
    /// The agent's position.
    pub agent: usize,
    /// The mean undiscounted return of the episodes that ended since the last report; `None` when none did.
    pub mean_return: Option<f64>,
    /// What the gradient steps since the last report measured.
    pub update: Update,
    /// As of [`Learner::exploration`](crate::Learner::exploration).
    pub exploration: f32,
    /// How it has done so far.
    pub statistics: Statistics,
}

/// A report on a training in progress.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Steps so far.
    pub step: u64,
    /// Completed episodes so far.
    pub episodes: u64,
    /// For each agent that learns.
    pub agents: Vec<AgentProgress>,
}

/// What one agent has learned.
#[derive(Debug, Clone, PartialEq)]
pub struct Learned {
    /// The agent's position.
    pub agent: usize,
    /// What it ended with.
    pub policy: Policy,
    /// The policy of the evaluation with the highest mean return.
    pub best: Policy,
    /// That mean return.
    pub best_mean_return: f64,
}

/// The result of a training that was not stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Steps of all copies together.
    pub steps: u64,
    /// Completed episodes.
    pub episodes: u64,
    /// For each agent that learns.
    pub learned: Vec<Learned>,
    /// The evaluations, the last of which is at the end.
    pub evaluations: Vec<Evaluation>,
}

/// What the owner wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Another step.
    Continue,
    /// A checkpoint, and then another step.
    Checkpoint,
    /// The end, without an outcome.
    Stop,
}

/// How the owner of a training observes and steers it.
pub trait Control {
    /// Receives a report. A slow receiver slows the training down.
    fn report(&mut self, progress: Progress);

    /// Polled before every step of the copies, so it must be cheap. The training is paused for as long as it
    /// blocks.
    fn poll(&mut self, step: u64) -> Command {
        let _ = step;
        Command::Continue
    }

    /// Whether the training is to stop even within an update, whose rest is left undone then.
    fn is_stopped(&self) -> bool {
        false
    }

    /// Receives an evaluation, with who acted in it for each agent of the world.
    fn evaluated(&mut self, evaluation: &Evaluation, players: &[Player]) {
        let _ = (evaluation, players);
    }

    /// Receives a checkpoint that it wanted; `None` when the world cannot be saved.
    fn checkpoint(&mut self, checkpoint: Option<Vec<u8>>) {
        let _ = checkpoint;
    }

    /// Hyperparameters that an agent is to take on, `None` when there are no new ones. Polled after every
    /// step at which an episode ended. Those that are fixed when a learner starts keep their values.
    fn take_reload(&mut self, agent: usize) -> Option<Values> {
        let _ = agent;
        None
    }
}

/// Requires a world that more will come of.
fn require(soundness: Soundness) -> Result<(), TrainingError> {
    match soundness {
        Soundness::Sound | Soundness::Interrupted => Ok(()),
        Soundness::Lost => Err(TrainingError::WorldLost),
        Soundness::Overdue => Err(TrainingError::WorldOverdue),
    }
}

/// A training that is under way.
struct Session<'a> {
    training: &'a Training,
    copies: Copies,
    lanes: Vec<Lane>,
    joint: Vec<Action>,
    step: u64,
    episodes: u64,
    evaluations: Vec<Evaluation>,
}

impl fmt::Debug for Training {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Training")
            .field("members", &self.members.len())
            .field("copies", &self.copies)
            .field("seed", &self.seed)
            .field("steps", &self.steps)
            .finish_non_exhaustive()
    }
}

impl Training {
    /// Trains from the start, or from a checkpoint; `None` when it was stopped.
    ///
    /// # Errors
    ///
    /// See [`TrainingError`]; hyperparameters from [`Control::take_reload`] are checked too.
    pub fn execute(
        &self,
        checkpoint: Option<&[u8]>,
        control: &mut dyn Control,
    ) -> Result<Option<Outcome>, TrainingError> {
        let mut session = Session::new(self)?;
        if let Some(bytes) = checkpoint {
            session.restore(bytes)?;
        }
        session.run(control)
    }
}

impl<'a> Session<'a> {
    fn new(training: &'a Training) -> Result<Self, TrainingError> {
        let mut seeds = Generator::seed_from_u64(training.seed);
        let copies = Copies::new(&*training.world, training.copies, seeds.next_u64());
        let agents = &copies.spec().agents;
        let learns = |member: &Member| matches!(member, Member::Learns { .. });
        if agents.len() != training.members.len() || !training.members.iter().any(learns) {
            return Err(TrainingError::Members);
        }
        let mut lanes = Vec::with_capacity(agents.len());
        for (agent, member) in training.members.iter().enumerate() {
            let rng = Generator::seed_from_u64(seeds.next_u64());
            lanes.push(Lane::new(&copies, agent, member, rng)?);
        }
        let first = || copies.spec().agents.iter().map(|a| a.action.first());
        Ok(Self {
            training,
            joint: (0..copies.len()).flat_map(|_| first()).collect(),
            copies,
            lanes,
            step: 0,
            episodes: 0,
            evaluations: Vec::new(),
        })
    }

    fn run(&mut self, control: &mut dyn Control) -> Result<Option<Outcome>, TrainingError> {
        let steps = self.training.steps;
        let report_every = (steps / self.training.reports.max(1)).max(1);
        while self.step < steps {
            match control.poll(self.step) {
                Command::Continue => {}
                Command::Checkpoint => control.checkpoint(self.save()),
                Command::Stop => return Ok(None),
            }
            let before = self.step;
            let ended = self.advance(&|| control.is_stopped())?;
            if control.is_stopped() {
                return Ok(None);
            }
            if ended {
                self.reload(control)?;
            }
            let after = self.step;
            let crossed = |every: u64| every > 0 && before / every < after / every;
            if crossed(report_every) {
                control.report(self.progress());
            }
            if crossed(self.training.evaluate_every) || self.step >= steps {
                self.evaluate(control)?;
            }
        }
        Ok(Some(self.outcome()))
    }

    /// Steps all copies once and learns from it. Returns whether an episode ended.
    fn advance(&mut self, stopped: Stopped<'_>) -> Result<bool, TrainingError> {
        let agents = self.lanes.len();
        for (agent, lane) in self.lanes.iter_mut().enumerate() {
            lane.act(&self.copies.agent(agent).observations);
            lane.write_actions(self.joint.iter_mut().skip(agent).step_by(agents));
        }
        self.copies.step(&self.joint);
        require(self.copies.soundness())?;
        let mut ended = 0;
        for (agent, lane) in self.lanes.iter_mut().enumerate() {
            ended = lane.learn(&self.copies, agent, stopped)?;
        }
        self.step += self.copies.len() as u64;
        self.episodes += ended;
        Ok(ended > 0)
    }

    fn reload(&mut self, control: &mut dyn Control) -> Result<(), TrainingError> {
        for (agent, lane) in self.lanes.iter_mut().enumerate() {
            let Some(learner) = lane.learner() else {
                continue;
            };
            if let Some(mut values) = control.take_reload(agent) {
                if let Member::Learns { algorithm, .. } = &self.training.members[agent] {
                    find(algorithm)?.spec.retain_reloadable(&mut values);
                }
                learner
                    .reload(&values)
                    .map_err(TrainingError::Hyperparameters)?;
            }
        }
        Ok(())
    }

    fn progress(&mut self) -> Progress {
        let lanes = self.lanes.iter_mut().enumerate();
        Progress {
            step: self.step,
            episodes: self.episodes,
            agents: lanes
                .filter_map(|(agent, lane)| lane.take_progress(agent))
                .collect(),
        }
    }

    /// Evaluates what has been learned and keeps the best of it.
    fn evaluate(&mut self, control: &mut dyn Control) -> Result<(), TrainingError> {
        let players: Vec<Player> = self.lanes.iter().map(Lane::player).collect();
        let mut world = (self.training.world)();
        let seed = self.training.seed ^ EVALUATION_STREAM;
        let episodes = self.training.evaluation_episodes;
        let evaluation = evaluate(world.as_mut(), &players, episodes, seed, self.step);
        require(world.soundness())?;
        for (agent, lane) in self.lanes.iter_mut().enumerate() {
            lane.keep_best(evaluation.mean(agent));
        }
        control.evaluated(&evaluation, &players);
        self.evaluations.push(evaluation);
        Ok(())
    }

    fn outcome(&mut self) -> Outcome {
        let lanes = self.lanes.iter().enumerate();
        Outcome {
            steps: self.step,
            episodes: self.episodes,
            learned: lanes
                .filter_map(|(agent, lane)| lane.learned(agent))
                .collect(),
            evaluations: std::mem::take(&mut self.evaluations),
        }
    }
}

/// The algorithm with this name.
fn find(name: &str) -> Result<&'static algorithm::Algorithm, TrainingError> {
    algorithm::find(name).ok_or_else(|| TrainingError::Algorithm(name.to_owned()))
}

fn refuse(agent: usize, error: NoLearner) -> TrainingError {
    match error {
        NoLearner::Mismatch(mismatch) => TrainingError::Mismatch { agent, mismatch },
        NoLearner::Hyperparameters(violations) => TrainingError::Hyperparameters(violations),
        NoLearner::Checkpoint(bad) => TrainingError::Checkpoint(bad),
    }
}

#[cfg(test)]
mod tests;
