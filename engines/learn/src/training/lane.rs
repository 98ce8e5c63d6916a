//! One agent of the world during a training: who acts for it, on what, and what it got.

use super::{
    AgentProgress, Learned, Member, Player, TrainingError, evaluation::mask_width, find, refuse,
    seats::Seats, statistics::Recent,
};
use crate::{
    learner::{Learner, Step, Stopped, Update},
    policy::Policy,
};
use serde::{Deserialize, Serialize};
use tars_worlds::{Action, Copies, Generator};

/// Who acts.
enum Driver {
    Learner(Box<dyn Learner>),
    Player(Player, Seats),
}

/// One agent in all copies.
pub(super) struct Lane {
    driver: Driver,
    rng: Generator,
    actions: Vec<Action>,
    seen: Vec<f32>,
    masks: Vec<bool>,
    next_masks: Vec<bool>,
    meter: Meter,
    best: Option<(f64, Policy)>,
}

/// What the next report will say.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Meter {
    /// What each copy's episode has brought so far.
    totals: Vec<f64>,
    /// How many steps it has had so far.
    lengths: Vec<u64>,
    sum: f64,
    count: u32,
    update: Update,
    recent: Recent,
}

/// What is saved of an agent.
#[derive(Serialize, Deserialize)]
pub(super) struct SavedLane {
    learner: Option<Vec<u8>>,
    /// What rules remember, by copy.
    rules: Vec<Vec<u8>>,
    rng: Generator,
    meter: Meter,
    best: Option<(f64, Vec<u8>)>,
}

impl Meter {
    /// Adds rewards. Returns how many episodes ended.
    fn record(&mut self, step: &Step<'_>) -> u64 {
        let mut ended = 0;
        for copy in 0..step.copies() {
            self.totals[copy] += f64::from(step.rewards[copy]);
            self.lengths[copy] += 1;
            if step.is_last(copy) {
                let brought = std::mem::take(&mut self.totals[copy]);
                let steps = std::mem::take(&mut self.lengths[copy]);
                self.recent.episode(brought, steps);
                self.sum += brought;
                self.count += 1;
                ended += 1;
            }
        }
        ended
    }
}

fn is_finite(numbers: &[f32]) -> bool {
    numbers.iter().all(|n| n.is_finite())
}

/// Overwrites an action by another of the same form, without allocating.
fn assign(to: &mut Action, from: &Action) {
    match (to, from) {
        (Action::Continuous(to), Action::Continuous(from)) => to.copy_from_slice(from),
        (to, from) => to.clone_from(from),
    }
}

impl Lane {
    pub(super) fn new(
        copies: &Copies,
        agent: usize,
        member: &Member,
        mut rng: Generator,
    ) -> Result<Self, TrainingError> {
        let space = &copies.spec().agents[agent];
        let driver = match member {
            Member::Learns {
                algorithm,
                values,
                start,
            } => {
                let created = find(algorithm)?.create(space, values, copies.len(), &mut rng);
                let mut learner = created.map_err(|error| refuse(agent, error))?;
                if let Some(policy) = start {
                    learner.start_from(policy)?;
                }
                Driver::Learner(learner)
            }
            Member::Plays(player) => {
                if let Player::Policy(policy) = player {
                    let mismatch = |mismatch| TrainingError::Mismatch { agent, mismatch };
                    policy.fits(space).map_err(mismatch)?;
                }
                Driver::Player(player.clone(), Seats::new(player, copies.len()))
            }
        };
        let mut lane = Self {
            driver,
            rng,
            actions: vec![space.action.first(); copies.len()],
            seen: vec![0.0; copies.len() * space.observation.len()],
            masks: vec![true; copies.len() * mask_width(&space.action)],
            next_masks: vec![true; copies.len() * mask_width(&space.action)],
            meter: Meter {
                totals: vec![0.0; copies.len()],
                lengths: vec![0; copies.len()],
                ..Meter::default()
            },
            best: None,
        };
        lane.write_masks(copies, agent);
        Ok(lane)
    }

    fn write_masks(&mut self, copies: &Copies, agent: usize) {
        if !self.next_masks.is_empty() {
            copies.write_masks(agent, &mut self.next_masks);
        }
    }

    pub(super) fn learner(&mut self) -> Option<&mut dyn Learner> {
        match &mut self.driver {
            Driver::Learner(learner) => Some(learner.as_mut()),
            Driver::Player(..) => None,
        }
    }

    /// Chooses an action for each copy.
    pub(super) fn act(&mut self, observations: &[f32]) {
        self.seen.copy_from_slice(observations);
        std::mem::swap(&mut self.masks, &mut self.next_masks);
        let copies = self.actions.len();
        match &mut self.driver {
            Driver::Learner(learner) => {
                learner.act(&self.seen, &self.masks, &mut self.rng, &mut self.actions);
            }
            Driver::Player(_, seats) => {
                let (width, actions) = (self.seen.len() / copies, self.masks.len() / copies);
                for (copy, action) in self.actions.iter_mut().enumerate() {
                    let seen = &self.seen[copy * width..][..width];
                    let mask = &self.masks[copy * actions..][..actions];
                    seats.act(copy, seen, mask, action);
                }
            }
        }
    }

    /// Writes the actions that were chosen.
    pub(super) fn write_actions<'a>(&self, to: impl Iterator<Item = &'a mut Action>) {
        to.zip(&self.actions)
            .for_each(|(to, from)| assign(to, from));
    }

    /// Takes in what came of the actions. Returns how many episodes ended.
    pub(super) fn learn(
        &mut self,
        copies: &Copies,
        agent: usize,
        stopped: Stopped<'_>,
    ) -> Result<u64, TrainingError> {
        self.write_masks(copies, agent);
        let batch = copies.agent(agent);
        if !is_finite(&batch.rewards) || !is_finite(&batch.observations) {
            return Err(TrainingError::World);
        }
        let step = Step {
            observations: &self.seen,
            actions: &self.actions,
            rewards: &batch.rewards,
            next_observations: &batch.observations,
            next_masks: &self.next_masks,
            final_observations: &batch.final_observations,
            terminated: &batch.terminated,
            truncated: &batch.truncated,
        };
        let ended = self.meter.record(&step);
        if ended > 0 && !is_finite(&batch.final_observations) {
            return Err(TrainingError::World);
        }
        match &mut self.driver {
            Driver::Player(_, seats) => {
                let ended = |copy: &usize| step.is_last(*copy);
                (0..step.copies())
                    .filter(ended)
                    .for_each(|copy| seats.reset(copy));
            }
            Driver::Learner(learner) => {
                learner.observe(&step, &mut self.rng);
                if let Some(update) = learner.update(&mut self.rng, stopped) {
                    if !update.is_finite() {
                        return Err(TrainingError::Diverged { agent });
                    }
                    self.meter.update.merge(&update);
                    self.meter.recent.update(&update);
                }
            }
        }
        Ok(ended)
    }

    /// The report on a learner; the next one begins anew.
    pub(super) fn take_progress(&mut self, agent: usize) -> Option<AgentProgress> {
        let learner = self.learner()?;
        let (exploration, buffered) = (learner.exploration(), learner.buffered());
        let meter = &mut self.meter;
        let (sum, count) = (
            std::mem::take(&mut meter.sum),
            std::mem::take(&mut meter.count),
        );
        Some(AgentProgress {
            agent,
            mean_return: (count > 0).then(|| sum / f64::from(count)),
            update: std::mem::take(&mut meter.update),
            exploration,
            statistics: meter.recent.statistics(buffered),
        })
    }

    /// Who plays in an evaluation.
    pub(super) fn player(&self) -> Player {
        match &self.driver {
            Driver::Learner(learner) => Player::Policy(learner.policy()),
            Driver::Player(player, _) => player.clone(),
        }
    }

    /// Keeps the present policy when it is the best so far.
    pub(super) fn keep_best(&mut self, mean: f64) {
        let Driver::Learner(learner) = &self.driver else {
            return;
        };
        if self.best.as_ref().is_none_or(|(best, _)| mean > *best) {
            self.best = Some((mean, learner.policy()));
        }
    }

    pub(super) fn learned(&self, agent: usize) -> Option<Learned> {
        let Driver::Learner(learner) = &self.driver else {
            return None;
        };
        let policy = learner.policy();
        let (best_mean_return, best) = self.best.clone()?;
        Some(Learned {
            agent,
            policy,
            best,
            best_mean_return,
        })
    }

    pub(super) fn save(&self) -> SavedLane {
        let bytes = |(mean, policy): &(f64, Policy)| (*mean, policy.to_bytes());
        let (learner, rules) = match &self.driver {
            Driver::Learner(learner) => (Some(learner.checkpoint()), Vec::new()),
            Driver::Player(_, seats) => (None, seats.save()),
        };
        SavedLane {
            learner,
            rules,
            rng: self.rng.clone(),
            meter: self.meter.clone(),
            best: self.best.as_ref().map(bytes),
        }
    }

    /// Goes on from what was saved; `None` when it is of another agent.
    pub(super) fn restore(
        &mut self,
        copies: &Copies,
        agent: usize,
        member: &Member,
        saved: SavedLane,
    ) -> Option<()> {
        let meter = &saved.meter;
        if [meter.totals.len(), meter.lengths.len()] != [copies.len(); 2] {
            return None;
        }
        match (member, &mut self.driver, &saved.learner) {
            (Member::Learns { algorithm, .. }, _, Some(bytes)) => {
                let space = &copies.spec().agents[agent];
                let learner = find(algorithm).ok()?.restore(space, copies.len(), bytes);
                self.driver = Driver::Learner(learner.ok()?);
            }
            (Member::Plays(_), Driver::Player(_, seats), None) => seats.restore(&saved.rules)?,
            _ => return None,
        }
        self.best = match saved.best {
            Some((mean, bytes)) => Some((mean, Policy::from_bytes(&bytes).ok()?)),
            None => None,
        };
        self.rng = saved.rng;
        self.meter = saved.meter;
        self.write_masks(copies, agent);
        Some(())
    }
}
