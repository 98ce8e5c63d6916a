//! A step of a session: the living agents act in its world, their dispute is resolved, and the world takes what
//! was resolved.

use crate::{
    Orchestration, OrchestrationError,
    agents::Action,
    choices::Choices,
    conflicts::{Constraint, ResolutionRule},
    empirical::Scene,
    rewards::{self, GlobalReward, RECENT, RewardOptions, Rewarded},
    solvers::{Solve, Watch},
    steps::{self, Stakes, StepOutcome},
    store::{self, ActionRecord, AgentRecord, GameRecord, SessionRow, StepRecord},
};
use std::sync::Arc;
use tars_interceptors::usage::{Allowance, QuotaRefusal, Solving};
use tars_runtime::{clock::Clock, tasks::to_the_end};
use tars_worlds::{TimeStep, egta::Plan};
use tokio::time::Instant;
use uuid::Uuid;

/// The regret up to which agents are content in a measured game, as a share of the range of their payoffs.
const TOLERANCE: f64 = 0.1;

/// What a caller asks of a step.
#[derive(Debug)]
pub(crate) struct StepCall {
    pub(crate) owner: String,
    /// What that owner may use.
    pub(crate) allowance: Allowance,
    pub(crate) session: Uuid,
    /// The steps that the session has taken, as far as the caller knows.
    pub(crate) expected: Option<i64>,
    pub(crate) constraints: Vec<Constraint>,
    pub(crate) rule: ResolutionRule,
    /// Whether payoffs are measured, rather than the agents' own values.
    pub(crate) measured: bool,
    pub(crate) tolerance: Option<f64>,
    pub(crate) reward: RewardOptions,
    /// When the measurement has to end.
    pub(crate) until: Option<Instant>,
}

/// A step that was taken.
#[derive(Debug)]
pub(crate) struct SteppedSession {
    pub(crate) outcome: StepOutcome,
    pub(crate) record: StepRecord,
}

impl Orchestration {
    /// Takes a step of a session. Of two at the same time one is refused.
    pub(crate) async fn step_session(
        self: &Arc<Self>,
        call: StepCall,
    ) -> Result<SteppedSession, OrchestrationError> {
        let row = self.open_session(call.session, &call.owner).await?;
        if let Some(expected) = call.expected.filter(|expected| *expected != row.steps) {
            let taken = row.steps;
            return Err(OrchestrationError::SessionSteps { taken, expected });
        }
        let tenure = self.tenure()?;
        let scene = self.scene_of(&row)?;
        call.reward
            .check(scene.observations().map(|(agent, _)| agent))?;
        let acted = scene.act()?;
        Self::confirm(&tenure)?;
        let solving = self.begin_step(&call)?;
        let solve = Solve::new(&call.owner, call.until, solving);
        let turn = Turn {
            row,
            scene,
            acted,
            call,
            clock: self.clock.clone(),
        };
        let work = move |watch: &Watch| turn.take(watch);
        let (row, stepped) = self.solvers.run(solve, work).await??;
        let this = Arc::clone(self);
        to_the_end(async move {
            this.store_step(&row, &stepped).await?;
            Ok(stepped)
        })
        .await
    }

    /// A step takes solver time of its caller when a game is measured for it.
    fn begin_step(&self, call: &StepCall) -> Result<Solving, QuotaRefusal> {
        let free = Allowance::default();
        let allowance = match call.measured {
            true => &call.allowance,
            false => &free,
        };
        let most = call.until.map(|until| until - Instant::now());
        self.usage.begin_solve(allowance, None, most)
    }

    async fn store_step(
        &self,
        row: &SessionRow,
        stepped: &SteppedSession,
    ) -> Result<(), OrchestrationError> {
        let mut tx = self.store.begin("sessions.step").await?;
        if !store::step_session(&mut tx, row).await?.is_done() {
            return Err(match store::session(&mut tx, row.id, &row.owner).await? {
                None => super::no_session(row.id),
                Some(now) if now.closed_us.is_some() => OrchestrationError::SessionClosed,
                Some(_) => OrchestrationError::SessionStepped,
            });
        }
        store::insert_step(&mut tx, &row.owner, &stepped.record).await?;
        Ok(self.sessions.commit(tx).await?)
    }
}

/// A step that is being taken, on a thread of its own.
struct Turn {
    row: SessionRow,
    scene: Scene,
    acted: Vec<Action>,
    call: StepCall,
    clock: Clock,
}

/// What the agents may choose and what that is worth to them, with the game if it was measured.
struct Offer {
    choices: Vec<Choices>,
    stakes: Stakes,
    game: Option<GameRecord>,
}

impl Turn {
    /// Takes the step; returns what is stored of the session, and the step.
    fn take(mut self, watch: &Watch) -> Result<(SessionRow, SteppedSession), OrchestrationError> {
        let offer = self.offer(watch)?;
        let raw = std::mem::take(&mut self.acted);
        let constraints = std::mem::take(&mut self.call.constraints);
        let rule = self.call.rule;
        let dispute = steps::dispute(&raw, &offer.choices, offer.stakes, constraints, rule);
        let resolution = dispute.resolve()?;
        let outcome = StepOutcome {
            step_id: Uuid::now_v7().to_string(),
            at_us: self.clock.now_us(),
            resolved: self
                .scene
                .allowed(steps::resolved(&raw, &offer.choices, &resolution)),
            raw,
            dispute,
            resolution,
        };
        let got = self.apply(&outcome.resolved);
        let record = self.record(&outcome, &got, offer.game);
        if got.iter().all(TimeStep::is_last) {
            self.begin_episode();
        }
        self.row.world = self.scene.snapshot()?;
        Ok((self.row, SteppedSession { outcome, record }))
    }

    fn offer(&mut self, watch: &Watch) -> Result<Offer, OrchestrationError> {
        if !self.call.measured {
            let choices = self.scene.choices(&self.acted);
            return Ok(Offer {
                stakes: Stakes::own_values(&choices)?,
                choices,
                game: None,
            });
        }
        let plan = Plan {
            seed: measuring_seed(&self.row),
            ..Plan::default()
        };
        let (scene, clock) = (&mut self.scene, &self.clock);
        let measured = scene.measure(&self.acted, &plan, clock, watch)?;
        Ok(Offer {
            choices: measured.choices,
            stakes: Stakes {
                game: measured.game,
                disagreement: measured.holding,
                tolerance: self.call.tolerance.unwrap_or(TOLERANCE),
            },
            game: Some(measured.record),
        })
    }

    /// Lets the world take the resolved actions; returns what each agent got.
    fn apply(&mut self, resolved: &[Action]) -> Vec<TimeStep> {
        let joint: Vec<_> = resolved.iter().map(|one| one.action.clone()).collect();
        let mut got = vec![TimeStep::default(); joint.len()];
        let Scene { world, seen, .. } = &mut self.scene;
        world.step(&joint, &mut self.row.body.rng, seen, &mut got);
        self.row.steps += 1;
        self.row.episode_steps += 1;
        self.row.used_us = self.clock.now_us();
        got
    }

    fn record(
        &mut self,
        outcome: &StepOutcome,
        got: &[TimeStep],
        game: Option<GameRecord>,
    ) -> StepRecord {
        let row = &self.row;
        let actions = outcome.raw.iter().zip(&outcome.resolved);
        let agents = actions.zip(got).enumerate();
        let agents = agents.map(|(at, ((raw, taken), got))| AgentRecord {
            agent: raw.agent.to_owned(),
            raw: ActionRecord::new(raw),
            taken: ActionRecord::new(taken),
            values: raw.values.clone(),
            weights_version: raw.weights_version,
            rule: raw.rule.map(str::to_owned),
            reward: got.reward,
            terminated: got.terminated,
            truncated: got.truncated,
            observation: self.scene.seen.of(at).to_vec(),
        });
        let mut record = StepRecord {
            session: row.id,
            step: row.steps,
            step_id: outcome.step_id.clone(),
            at_us: outcome.at_us,
            episode: row.episode,
            episode_step: row.episode_steps,
            agents: agents.collect(),
            conflicts: outcome.resolution.conflicts.clone(),
            method: outcome.resolution.method().to_owned(),
            is_equilibrium: outcome.resolution.is_equilibrium,
            reward: GlobalReward::default(),
            game,
        };
        record.reward = self.aggregate(&record.agents);
        record
    }

    /// Remembers what the agents got, and aggregates it.
    fn aggregate(&mut self, agents: &[AgentRecord]) -> GlobalReward {
        let recent = &mut self.row.body.recent;
        for one in agents {
            let rewards = recent.entry(one.agent.clone()).or_default();
            rewards.push(one.reward);
            let oldest = rewards.len().saturating_sub(RECENT);
            rewards.drain(..oldest);
        }
        let rewarded = agents.iter().map(|one| Rewarded {
            agent: &one.agent,
            recent: &recent[&one.agent],
        });
        rewards::aggregate(&rewarded.collect::<Vec<_>>(), &self.call.reward)
    }

    fn begin_episode(&mut self) {
        let Scene { world, seen, .. } = &mut self.scene;
        world.reset(&mut self.row.body.rng, seen);
        self.row.episode += 1;
        self.row.episode_steps = 0;
    }
}

/// The seed of a measurement: another one at each step, and the same when the session is played again.
pub(super) fn measuring_seed(row: &SessionRow) -> u64 {
    /// The golden ratio's fraction in 64 bits.
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let steps = u64::try_from(row.steps).unwrap_or_default();
    (row.seed as u64) ^ (steps + 1).wrapping_mul(GOLDEN)
}
