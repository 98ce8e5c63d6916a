//! The handlers of sessions, and the conversions of their steps.

use super::{
    Api, Items,
    environments::calibration,
    games::deadline,
    numbers::{given, unsigned},
    wire,
};
use crate::{
    rewards::{self, RewardOptions as Rewarding},
    sessions::{
        Equilibrium as Found, Measurement, Place, SessionView, StepCall, StepEvent, SteppedSession,
        Watcher,
    },
    store::{ActionRecord, AgentRecord, GameRecord, PlayerRecord, SessionRow, StepRecord},
};
use futures_util::{Stream, stream};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tars_credentials::Permissions;
use tars_interceptors::{Call, usage::Allowance};
use tars_proto::{fault, orchestration::v1::*, time::timestamp};
use tonic::{Request, Response, Status};
use uuid::Uuid;

/// How many steps lead to the state whose game is measured, and the rollouts of each joint action.
const WARM_UP: u32 = 60;
const ROLLOUTS: u32 = 8;

fn id(text: &str) -> Result<Uuid, Status> {
    Uuid::try_parse(text).map_err(|_| fault::invalid_field("session_id", "must be a UUID"))
}

/// What a step of a session is asked for.
pub(super) fn step_call(
    call: &Call,
    allowance: Allowance,
    asked: StepRequest,
) -> Result<StepCall, Status> {
    let states = [
        asked.policy_state.is_some(),
        asked.consensus_state.is_some(),
        asked.ethical_state.is_some(),
        asked.resource_state.is_some(),
    ];
    if states.contains(&true) {
        let text = "must not be combined with states: the agents observe the session's world";
        return Err(fault::invalid_field("session_id", text));
    }
    let may_measure = call
        .require_caller()?
        .permissions
        .includes(Permissions::SOLVE_GAMES);
    let constraints = asked.constraints.into_iter().map(wire::constraint);
    let reward = asked.reward.unwrap_or_default();
    Ok(StepCall {
        owner: call.owner().to_owned(),
        allowance,
        session: id(&asked.session_id)?,
        expected: given("expected_steps", asked.expected_steps)?,
        constraints: constraints.collect::<Result<_, _>>()?,
        rule: wire::rule(asked.rule),
        measured: may_measure && asked.game != i32::from(StepGame::ActionValues),
        tolerance: asked.regret_tolerance,
        reward: Rewarding {
            normalise: reward.normalise,
            confidence: reward.confidence,
            causal_impact: reward.causal_impact.unwrap_or(0.0),
        },
        until: deadline(call),
    })
}

/// Refuses what only a session's step can do.
pub(super) fn refuse_without_session(asked: &StepRequest) -> Result<(), Status> {
    let given = [
        ("game", asked.game != 0),
        ("reward", asked.reward.is_some()),
        ("expected_steps", asked.expected_steps.is_some()),
        ("regret_tolerance", asked.regret_tolerance.is_some()),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        Some((field, _)) => Err(fault::invalid_field(field, "needs a session_id")),
        None => Ok(()),
    }
}

/// The response of a step that was just taken, with its resolution.
pub(super) fn stepped(from: SteppedSession) -> StepResponse {
    let SteppedSession { outcome, record } = from;
    StepResponse {
        resolution: Some(wire::resolution(&outcome.dispute, outcome.resolution)),
        ..recorded(record)
    }
}

/// A step as it is stored.
fn recorded(from: StepRecord) -> StepResponse {
    let actions = |of: fn(&AgentRecord) -> &ActionRecord| {
        let all = from.agents.iter();
        all.map(|one| (one.agent.clone(), action(one, of(one))))
            .collect()
    };
    let conflicts = from.conflicts.iter().cloned();
    StepResponse {
        step_id: from.step_id.clone(),
        agent_actions: actions(|one| &one.raw),
        timestamp: Some(timestamp(from.at_us)),
        resolved_actions: actions(|one| &one.taken),
        conflicts_detected: conflicts.map(wire::conflict).collect(),
        resolution_method: from.method.clone(),
        nash_equilibrium_reached: from.is_equilibrium,
        resolution: None,
        global_reward: Some(from.reward.value),
        agent_rewards: (from.agents.iter())
            .map(|one| (one.agent.clone(), f64::from(one.reward)))
            .collect(),
        nash_convergence_distance: from.game.as_ref().map(distance),
        world: Some(world(from)),
    }
}

fn action(of: &AgentRecord, from: &ActionRecord) -> AgentAction {
    AgentAction {
        action: from
            .at
            .map_or(0, |at| u32::try_from(at).unwrap_or(u32::MAX)),
        action_name: match from.at {
            Some(_) => from.name.clone(),
            None => String::new(),
        },
        action_values: numbers(&of.values),
        weights_version: unsigned(of.weights_version),
        continuous_action: numbers(&from.numbers),
        rule: of.rule.clone().unwrap_or_default(),
        stage: AgentStage::Active.into(),
        shielded: from.shielded.clone().unwrap_or_default(),
    }
}

fn numbers(from: &[f32]) -> Vec<f64> {
    from.iter().copied().map(f64::from).collect()
}

fn world(from: StepRecord) -> WorldStep {
    let is_over = from
        .agents
        .iter()
        .all(|one| one.terminated || one.truncated);
    let terminated = is_over && from.agents.iter().any(|one| one.terminated);
    let outcome = |one: AgentRecord| AgentOutcome {
        reward: f64::from(one.reward),
        terminated: one.terminated,
        truncated: one.truncated,
        observation: numbers(&one.observation),
    };
    WorldStep {
        session_id: from.session.to_string(),
        step: unsigned(from.step),
        episode: unsigned(from.episode),
        episode_step: unsigned(from.episode_step),
        terminated,
        truncated: is_over && !terminated,
        agents: (from.agents.into_iter())
            .map(|one| (one.agent.clone(), outcome(one)))
            .collect(),
        global_reward: Some(global_reward(from.reward)),
        game: from.game.map(game),
    }
}

fn global_reward(from: rewards::GlobalReward) -> GlobalReward {
    GlobalReward {
        cooperation_bonus: from.cooperation_bonus(),
        value: from.value,
        rewards: from.rewards,
        contributions: from.contributions,
        weighted_sum: from.weighted_sum,
        conflict_penalty: from.conflict_penalty,
        cooperation_multiplier: from.cooperation_multiplier,
        causal_modifier: from.causal_modifier,
        normalised: from.normalised,
    }
}

fn distance(from: &GameRecord) -> Interval {
    Interval {
        value: from.distance,
        low: from.low,
        high: from.high,
    }
}

fn game(from: GameRecord) -> MeasuredGame {
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    MeasuredGame {
        nash_convergence_distance: Some(distance(&from)),
        joint_actions: from.joint_actions as u64,
        calibration: from.calibration.unwrap_or_default(),
        rollouts: count(from.rollouts),
        rollout_steps: count(from.rollout_steps),
        repeated_steps: count(from.repeated_steps),
        duration: Duration::from_micros(from.micros).try_into().ok(),
        players: from.players.into_iter().map(player).collect(),
    }
}

fn player(from: PlayerRecord) -> MeasuredPlayer {
    let named = |at: usize| from.actions.get(at).cloned().unwrap_or_default();
    MeasuredPlayer {
        own_action: named(from.own),
        hold_action: named(from.hold),
        agent: from.agent,
        payoff: from.payoff,
        regret: from.regret,
        weights_version: unsigned(from.weights_version),
        rule: from.rule.unwrap_or_default(),
        actions: from.actions,
    }
}

fn session(row: SessionRow, seen: BTreeMap<String, Vec<f32>>) -> Session {
    let seen = seen.into_iter().map(|(agent, seen)| {
        let values = numbers(&seen);
        (agent, AgentObservation { values })
    });
    Session {
        session_id: row.id.to_string(),
        calibration: calibration(&row.environment),
        environment: row.environment,
        seed: row.seed as u64,
        steps: unsigned(row.steps),
        episode: unsigned(row.episode),
        episode_steps: unsigned(row.episode_steps),
        created_at: Some(timestamp(row.created_us)),
        used_at: Some(timestamp(row.used_us)),
        closed_at: row.closed_us.map(timestamp),
        observations: seen.collect(),
    }
}

fn viewed(view: SessionView) -> Session {
    session(view.row, view.observations)
}

/// The steps of a session as a stream.
fn events(watcher: Watcher) -> impl Stream<Item = Result<WatchStepsResponse, Status>> {
    stream::try_unfold(watcher, |mut watcher| async move {
        let Some((number, event)) = watcher.next().await? else {
            return Ok(None);
        };
        let (step, ended) = match event {
            StepEvent::Taken(step) => (Some(recorded(*step)), None),
            StepEvent::Ended(row) => (None, Some(session(*row, BTreeMap::new()))),
        };
        let item = WatchStepsResponse {
            sequence: unsigned(number),
            step,
            ended,
        };
        Ok(Some((item, watcher)))
    })
}

fn equilibrium(place: Place, from: Found) -> MeasureEquilibriumResponse {
    let players: Vec<String> = (from.game.players.iter())
        .map(|player| player.agent.clone())
        .collect();
    let mut response = MeasureEquilibriumResponse {
        measured_at: Some(timestamp(from.at_us)),
        calibration: from.game.calibration.clone().unwrap_or_default(),
        environment: from.environment,
        game: Some(game(from.game)),
        equilibrium: Some(wire::equilibrium(&players, from.solution, 0)),
        ..MeasureEquilibriumResponse::default()
    };
    match place {
        Place::Session(id) => response.session_id = id.to_string(),
        Place::Episode { seed, steps } => {
            response.seed = Some(seed);
            response.warm_up_steps = Some(steps);
        }
    }
    response
}

#[tonic::async_trait]
impl session_service_server::SessionService for Api {
    async fn create_session(
        &self,
        request: Request<CreateSessionRequest>,
    ) -> Result<Response<CreateSessionResponse>, Status> {
        let owner = Call::of(&request)?.owner().to_owned();
        let CreateSessionRequest { environment, seed } = request.into_inner();
        let view = self.0.create_session(owner, environment, seed).await?;
        Ok(Response::new(CreateSessionResponse {
            session: Some(viewed(view)),
        }))
    }

    async fn get_session(
        &self,
        request: Request<GetSessionRequest>,
    ) -> Result<Response<GetSessionResponse>, Status> {
        let call = Call::of(&request)?;
        let id = id(&request.get_ref().session_id)?;
        let view = self.0.session(id, call.owner()).await?;
        Ok(Response::new(GetSessionResponse {
            session: Some(viewed(view)),
        }))
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        let call = Call::of(&request)?;
        let asked = request.into_inner();
        let page = self
            .0
            .list_sessions(call.owner(), &asked.page_token, asked.page_size);
        let (rows, next_page_token) = page.await?;
        let sessions = rows.into_iter().map(|row| session(row, BTreeMap::new()));
        Ok(Response::new(ListSessionsResponse {
            sessions: sessions.collect(),
            next_page_token,
        }))
    }

    async fn close_session(
        &self,
        request: Request<CloseSessionRequest>,
    ) -> Result<Response<CloseSessionResponse>, Status> {
        let owner = Call::of(&request)?.owner().to_owned();
        let id = id(&request.get_ref().session_id)?;
        let row = self.0.close_session(id, owner).await?;
        Ok(Response::new(CloseSessionResponse {
            session: Some(session(row, BTreeMap::new())),
        }))
    }

    async fn list_steps(
        &self,
        request: Request<ListStepsRequest>,
    ) -> Result<Response<ListStepsResponse>, Status> {
        let call = Call::of(&request)?;
        let asked = request.into_inner();
        let id = id(&asked.session_id)?;
        let page = self
            .0
            .list_steps(id, call.owner(), &asked.page_token, asked.page_size);
        let (steps, next_page_token) = page.await?;
        Ok(Response::new(ListStepsResponse {
            steps: steps.into_iter().map(recorded).collect(),
            next_page_token,
        }))
    }

    type WatchStepsStream = Items<WatchStepsResponse>;

    async fn watch_steps(
        &self,
        request: Request<WatchStepsRequest>,
    ) -> Result<Response<Items<WatchStepsResponse>>, Status> {
        let owner = Call::of(&request)?.owner().to_owned();
        let asked = request.into_inner();
        let id = id(&asked.session_id)?;
        let watcher = self.0.watch_steps(id, owner, asked.after_sequence).await?;
        Ok(Response::new(Box::pin(events(watcher))))
    }

    async fn measure_equilibrium(
        &self,
        request: Request<MeasureEquilibriumRequest>,
    ) -> Result<Response<MeasureEquilibriumResponse>, Status> {
        let call = Call::of(&request)?;
        let asked = request.into_inner();
        let place = match asked.session_id.as_str() {
            "" => Place::Episode {
                seed: asked.seed.unwrap_or_else(|| self.0.seeds.draw()),
                steps: asked.warm_up_steps.unwrap_or(WARM_UP),
            },
            text if asked.seed.is_none() && asked.warm_up_steps.is_none() => {
                Place::Session(id(text)?)
            }
            _ => {
                let text = "must not be combined with seed or warm_up_steps";
                return Err(fault::invalid_field("session_id", text));
            }
        };
        let measurement = Measurement {
            owner: call.owner().to_owned(),
            allowance: self.0.usage.allowance_of(&call),
            place,
            rollouts: asked.rollouts.unwrap_or(ROLLOUTS) as usize,
            run: None,
            until: deadline(&call),
        };
        let service = Arc::clone(&self.0);
        let found = service.measure_equilibrium(measurement).await?;
        Ok(Response::new(equilibrium(place, found)))
    }
}
