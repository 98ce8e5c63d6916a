//! A world in one state with the living agents in it: what each of them would do, and what that is worth beside
//! what else they could do.
//!
//! An agent that has nothing live yet, neither weights nor a rule, plays its [baseline](tars_worlds::baseline).

mod player;

use crate::{
    OrchestrationError,
    agents::{Action, Agent, Agents},
    choices::{Choices, Measured},
    rules::Rule,
    solvers::Watch,
    store::{GameRecord, PlayerRecord},
};
use player::Player;
use std::sync::Arc;
use tars_games::{Control, Game};
use tars_runtime::clock::Clock;
use tars_worlds::{
    Action as Act, AgentSpace, Observations, World, WorldSpec,
    egta::{self, NoGame, Plan},
    make_world,
};

/// The resamples of an interval, and its level.
const RESAMPLES: usize = 200;
const LEVEL: f64 = 0.95;

/// A world in one state, and who acts in it: an agent for each of the world's, in its order. All that the agents do
/// in a scene they do by what was live of them when it was made.
pub(crate) struct Scene {
    pub(crate) world: Box<dyn World>,
    pub(crate) seen: Observations,
    players: Vec<Player>,
}

/// The empirical game of a scene.
#[derive(Debug)]
pub(crate) struct Empirical {
    pub(crate) game: Game,
    pub(crate) choices: Vec<Choices>,
    /// What each agent gets when all hold.
    pub(crate) holding: Vec<f64>,
    pub(crate) record: GameRecord,
}

/// The agents that act in an environment: those that live in it.
fn seats(agents: &Agents, spec: &WorldSpec) -> Result<Vec<Arc<Agent>>, OrchestrationError> {
    let mut living = agents
        .iter()
        .filter(|agent| agent.definition.environment == spec.name);
    // The only agent of a world may have another name there.
    if let [_] = spec.agents.as_slice() {
        let only = living.next().map(|agent| vec![Arc::clone(agent)]);
        return only.ok_or_else(|| not_theirs(agents, spec));
    }
    let living: Vec<&Arc<Agent>> = living.collect();
    let seat = |space: &AgentSpace| living.iter().find(|agent| agent.id() == space.name);
    let seats = spec
        .agents
        .iter()
        .map(|space| seat(space).copied().cloned());
    let seats: Option<Vec<Arc<Agent>>> = seats.collect();
    seats.ok_or_else(|| not_theirs(agents, spec))
}

fn not_theirs(agents: &Agents, spec: &WorldSpec) -> OrchestrationError {
    OrchestrationError::NotInhabited {
        environment: spec.name.to_string(),
        inhabited: environment(agents).to_owned(),
    }
}

/// The environment in which the agents live.
pub(crate) fn environment(agents: &Agents) -> &str {
    let first = agents.iter().next();
    first.map_or("", |agent| agent.definition.environment.as_str())
}

impl Scene {
    /// The world of a built-in environment with the agents that live in it. It has to be reset or restored.
    pub(crate) fn new(agents: &Agents, environment: &str) -> Result<Self, OrchestrationError> {
        let world = make_world(environment)
            .ok_or_else(|| OrchestrationError::Environment(environment.to_owned()))?;
        let seats = seats(agents, world.spec())?.into_iter();
        let spaces = world.spec().agents.iter().zip(seats);
        Ok(Self {
            players: spaces
                .map(|(space, seat)| Player::new(seat, space))
                .collect(),
            seen: Observations::new(world.spec()),
            world,
        })
    }

    /// Goes on from a snapshot.
    pub(crate) fn restore(&mut self, snapshot: &[u8]) -> Result<(), OrchestrationError> {
        let restored = self.world.restore(snapshot);
        restored.map_err(|_| OrchestrationError::SessionUnusable)?;
        self.world.observe(&mut self.seen);
        Ok(())
    }

    /// The state of the world.
    pub(crate) fn snapshot(&self) -> Result<Vec<u8>, OrchestrationError> {
        let snapshot = self.world.snapshot();
        snapshot.ok_or(OrchestrationError::NoGame(NoGame::NoCopy))
    }

    /// The agents with what they observe.
    pub(crate) fn observations(&self) -> impl Iterator<Item = (&'static str, &[f32])> {
        let players = self.players.iter().enumerate();
        players.map(|(at, player)| (player.agent.id(), self.seen.of(at)))
    }

    /// What each agent would do now.
    pub(crate) fn act(&self) -> Result<Vec<Action>, OrchestrationError> {
        let players = self.players.iter().enumerate();
        players
            .map(|(at, player)| player.act(self.seen.of(at)))
            .collect()
    }

    /// All choices of the agents, by their own values of them.
    pub(crate) fn choices(&self, acted: &[Action]) -> Vec<Choices> {
        let players = self.players.iter().zip(acted);
        players
            .map(|(player, acted)| player.agent.choices(acted))
            .collect()
    }

    /// Measures the game of the present state, which stays as it is. After a joint action the agents go on as they
    /// act.
    pub(crate) fn measure(
        &mut self,
        acted: &[Action],
        plan: &Plan,
        clock: &Clock,
        watch: &Watch,
    ) -> Result<Empirical, OrchestrationError> {
        let begun = clock.monotonic();
        let measured = self.choices_to_measure(acted);
        let actions: Vec<Vec<Act>> = measured.iter().map(actions).collect();
        let (world, players) = (self.world.as_mut(), &mut self.players);
        let mut then = |seen: &Observations, joint: &mut [Act]| {
            for (at, (player, action)) in players.iter_mut().zip(joint).enumerate() {
                player.go_on(seen.of(at), action);
            }
        };
        let is_stopped = || watch.is_stopped();
        let found = egta::measure_until(world, &actions, &mut then, plan, &is_stopped)?;
        let profile = pure(&measured);
        let distance = found.nash_conv_interval(&profile, RESAMPLES, LEVEL, plan.seed);
        let game = Game::new(found.shape().to_vec(), found.payoffs())?;
        let certified = game.verify(&profile, game.default_tolerance())?;
        let players = measured.iter().zip(acted).enumerate();
        let record = GameRecord {
            players: players
                .map(|(at, (measured, acted))| PlayerRecord {
                    payoff: certified.payoffs[at],
                    regret: certified.regret[at],
                    ..player(measured, acted)
                })
                .collect(),
            joint_actions: game.cells(),
            rollouts: plan.rollouts,
            rollout_steps: plan.steps,
            repeated_steps: plan.repeat,
            distance: distance.value,
            low: distance.low,
            high: distance.high,
            micros: micros(clock.monotonic().since(begun)),
            calibration: (self.world.spec().calibration.as_deref()).map(str::to_owned),
        };
        Ok(Empirical {
            holding: holding(&game, &measured),
            choices: measured.into_iter().map(|one| one.choices).collect(),
            game,
            record,
        })
    }

    /// The actions, and what agents that are bound to the live mesh do instead of those that the shield blocks.
    pub(crate) fn allowed(&self, resolved: Vec<Action>) -> Vec<Action> {
        let players = self.players.iter().zip(resolved).enumerate();
        players
            .map(|(at, (player, action))| player.agent.allowed(self.seen.of(at), action))
            .collect()
    }

    fn choices_to_measure(&self, acted: &[Action]) -> Vec<Measured> {
        let spaces = self.world.spec().agents.iter().zip(acted).enumerate();
        spaces
            .map(|(at, (space, acted))| self.measured(at, space, acted))
            .collect()
    }

    fn measured(&self, at: usize, space: &AgentSpace, acted: &Action) -> Measured {
        let hold = hold(space, self.seen.of(at));
        let mut allowed = match acted.action {
            Act::Discrete(_) => vec![true; space.action.len()],
            Act::Continuous(_) => Vec::new(),
        };
        self.world.write_mask(at, &mut allowed);
        let Action { action, values, .. } = acted;
        Measured::of(&space.action, action, values, &hold, &allowed)
    }
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn actions(measured: &Measured) -> Vec<Act> {
    let all = measured.choices.all.iter();
    all.map(|choice| choice.action.clone()).collect()
}

/// The profile in which each agent does what it would do.
fn pure(measured: &[Measured]) -> Vec<Vec<f64>> {
    let mix = |one: &Measured| {
        let mut mix = vec![0.0; one.choices.all.len()];
        mix[one.choices.own] = 1.0;
        mix
    };
    measured.iter().map(mix).collect()
}

/// What each agent gets when all hold.
fn holding(game: &Game, measured: &[Measured]) -> Vec<f64> {
    let holds: Vec<usize> = measured.iter().map(|one| one.hold).collect();
    let cell = game.cell(&holds);
    let players = 0..game.players();
    players.map(|player| game.payoffs(player)[cell]).collect()
}

/// An agent as a player whose payoffs are not known yet.
fn player(measured: &Measured, acted: &Action) -> PlayerRecord {
    let names = measured
        .choices
        .all
        .iter()
        .map(|choice| choice.name.clone());
    PlayerRecord {
        agent: acted.agent.to_owned(),
        actions: names.collect(),
        own: measured.choices.own,
        hold: measured.hold,
        payoff: 0.0,
        regret: 0.0,
        weights_version: acted.weights_version,
        rule: acted.rule.map(str::to_owned),
    }
}

/// The action that changes nothing: the rule `hold` where an agent has it, else the first one of its space.
fn hold(space: &AgentSpace, seen: &[f32]) -> Act {
    let rule = Rule::find(space, "hold");
    let action = rule.map(|rule| rule.decide(seen).action);
    let is_sound = |action: &Act| space.action.check(action).is_ok();
    action
        .filter(is_sound)
        .unwrap_or_else(|| space.action.first())
}

impl From<NoGame> for OrchestrationError {
    fn from(error: NoGame) -> Self {
        match error {
            NoGame::Stopped => Self::TimeLimit,
            other => Self::NoGame(other),
        }
    }
}

#[cfg(test)]
mod tests;
