//! The games' gRPC handlers. Games are solved on solver threads, and answers carry certificates.

use super::{
    Api, Items,
    wire::{self, Named},
};
use crate::{
    OrchestrationError,
    conflicts::{Dispute, EXACT},
    solvers::{Solve, Watch},
};
use futures_util::stream;
use std::time::Duration;
use tars_games::{
    Algorithm, Concept, Control, Equilibria, Objective, Options, Point, Preference, Selection,
    Solution, UnsuitableAlgorithm,
};
use tars_interceptors::{Call, call::in_current_trace, usage::Usage};
use tars_proto::{fault, orchestration::v1::*};
use tokio::{sync::mpsc, time::Instant};
use tonic::{Request, Response, Status};

/// The part of a call's deadline that is reserved for the response, at most.
const WAY_BACK: Duration = Duration::from_millis(50);
/// The capacity of the channel of improvements to a watcher.
const POINTS: usize = 64;

/// A solve, and its options.
struct Asked {
    options: Options,
    preference: Preference,
    solve: Solve,
}

impl Asked {
    fn new(call: &Call, usage: &Usage, from: Option<SolveOptions>) -> Result<Self, Status> {
        let from = from.unwrap_or_default();
        let (algorithm, preference) = (
            wire::algorithm(from.algorithm),
            wire::preference(from.preference),
        );
        if algorithm != Algorithm::Automatic && preference != Preference::Any {
            return Err(fault::invalid_field(
                "options.preference",
                "requires the automatic algorithm",
            ));
        }
        let usual = Options::default();
        let now = Instant::now();
        let limit =
            match from.time_limit {
                Some(limit) => Some(Duration::try_from(limit).map_err(|_| {
                    fault::invalid_field("options.time_limit", "must not be negative")
                })?),
                None => None,
            };
        let most = deadline(call).map(|at| at - now);
        let solving = usage.begin_solve(&usage.allowance_of(call), limit, most);
        let solving = solving.map_err(OrchestrationError::from)?;
        let until = limit.and_then(|l| now.checked_add(l));
        let until = until.into_iter().chain(deadline(call)).min();
        Ok(Self {
            options: Options {
                tolerance: from.tolerance,
                seed: from.seed,
                algorithm,
                rounds: from.rounds.unwrap_or(usual.rounds),
            },
            preference,
            solve: Solve::new(call.owner(), until, solving),
        })
    }
}

/// When a computation has to end, so that the response arrives before the call's deadline.
pub(super) fn deadline(call: &Call) -> Option<Instant> {
    call.deadline().map(|at| {
        let left = at.saturating_duration_since(Instant::now());
        at - WAY_BACK.min(left / 5)
    })
}

/// The preferred equilibrium, and the ones it was chosen from.
fn choose(
    game: &tars_games::Game,
    preference: Preference,
    options: &Options,
    control: &dyn Control,
) -> Result<(Solution, Option<Equilibria>), UnsuitableAlgorithm> {
    if preference == Preference::Any {
        return Ok((game.solve(options, control)?, None));
    }
    let (solution, from) = game.select(preference, options, control);
    Ok((solution, Some(from)))
}

impl Api {
    fn asked(&self, call: &Call, from: Option<SolveOptions>) -> Result<Asked, Status> {
        Asked::new(call, &self.0.usage, from)
    }

    pub(super) async fn nash(
        &self,
        request: Request<ComputeNashRequest>,
    ) -> Result<ComputeNashResponse, Status> {
        let call = Call::of(&request)?;
        let ComputeNashRequest {
            players,
            outcomes,
            default_payoff,
            options,
            agent_payoffs,
            candidate_actions,
        } = request.into_inner();
        let mut asked = self.asked(&call, options)?;
        let Named { players, game, .. } = if agent_payoffs.is_empty() {
            let game = Game {
                players,
                outcomes,
                default_payoff,
            };
            wire::game("", Some(game))?
        } else if players.is_empty() {
            if asked.preference == Preference::Any
                && asked.options.algorithm == Algorithm::Automatic
            {
                asked.preference = Preference::Welfare;
            }
            wire::candidates(agent_payoffs, candidate_actions)?
        } else {
            let text = "must not be combined with players";
            return Err(fault::invalid_field("agent_payoffs", text));
        };
        let Asked {
            options,
            preference,
            solve,
        } = asked;
        let work = move |watch: &Watch| choose(&game, preference, &options, watch);
        let solved = self.0.solvers.run(solve, work).await?;
        let (solution, from) = solved.map_err(OrchestrationError::from)?;
        Ok(nash(&players, solution, from))
    }
}

#[tonic::async_trait]
impl game_service_server::GameService for Api {
    type WatchNashStream = Items<WatchNashResponse>;

    async fn watch_nash(
        &self,
        request: Request<WatchNashRequest>,
    ) -> Result<Response<Items<WatchNashResponse>>, Status> {
        let call = Call::of(&request)?;
        let WatchNashRequest {
            game,
            options,
            after_sequence,
        } = request.into_inner();
        let asked = self.asked(&call, options)?;
        let Named { players, game, .. } = wire::game("game.", game)?;
        let (sender, points) = mpsc::channel(POINTS);
        let service = self.0.clone();
        let Asked {
            options,
            preference,
            solve,
        } = asked;
        let solving = tokio::spawn(in_current_trace(async move {
            let work = move |watch: &Watch| choose(&game, preference, &options, watch);
            let solvers = &service.solvers;
            solvers.run_watched(solve, Some(sender), work).await
        }));
        let ended = async move {
            let solved = solving
                .await
                .map_err(|_| OrchestrationError::Worker("the solve stopped"))?;
            let (solution, _) = solved?.map_err(OrchestrationError::from)?;
            Ok(wire::equilibrium(&players, solution, 0))
        };
        Ok(Response::new(Box::pin(watched(
            points,
            ended,
            after_sequence,
        ))))
    }

    async fn find_equilibria(
        &self,
        request: Request<FindEquilibriaRequest>,
    ) -> Result<Response<FindEquilibriaResponse>, Status> {
        let call = Call::of(&request)?;
        let FindEquilibriaRequest { game, options } = request.into_inner();
        let asked = self.asked(&call, options)?;
        let Named { players, game, .. } = wire::game("game.", game)?;
        let work = move |watch: &Watch| game.equilibria(&asked.options, watch);
        let all = self.0.solvers.run(asked.solve, work).await?;
        let found = all.found.into_iter().zip(all.components);
        Ok(Response::new(FindEquilibriaResponse {
            equilibria: found
                .map(|(solution, component)| wire::equilibrium(&players, solution, component))
                .collect(),
            complete: all.complete,
        }))
    }

    async fn compute_correlated(
        &self,
        request: Request<ComputeCorrelatedRequest>,
    ) -> Result<Response<ComputeCorrelatedResponse>, Status> {
        let call = Call::of(&request)?;
        let asked_for = request.into_inner();
        let asked = self.asked(&call, asked_for.options)?;
        let named = wire::game("game.", asked_for.game)?;
        let concept = match CorrelatedConcept::try_from(asked_for.concept).unwrap_or_default() {
            CorrelatedConcept::Unspecified => Concept::Correlated,
            CorrelatedConcept::Coarse => Concept::Coarse,
        };
        let weights = wire::numbers("weights", &named.players, asked_for.weights)?;
        let objective = match CorrelatedObjective::try_from(asked_for.objective).unwrap_or_default()
        {
            CorrelatedObjective::Unspecified => Objective::Welfare,
            CorrelatedObjective::Fairness => Objective::Fairness,
            CorrelatedObjective::Weighted => Objective::Weighted(weights.ok_or_else(|| {
                fault::invalid_field("weights", "are required by the weighted objective")
            })?),
        };
        let work = move |watch: &Watch| {
            let found = named
                .game
                .correlated(concept, &objective, &asked.options, watch)?;
            Ok::<_, OrchestrationError>(wire::correlated(&named, found))
        };
        Ok(Response::new(self.0.solvers.run(asked.solve, work).await??))
    }

    async fn verify_profile(
        &self,
        request: Request<VerifyProfileRequest>,
    ) -> Result<Response<VerifyProfileResponse>, Status> {
        let call = Call::of(&request)?;
        let VerifyProfileRequest {
            game,
            mut strategy_profile,
            tolerance,
        } = request.into_inner();
        let named = wire::game("game.", game)?;
        let given = wire::each("strategy_profile", &named.players, &mut strategy_profile)?;
        let strategies: Vec<Vec<f64>> = given.into_iter().map(|s| s.probabilities).collect();
        let asked = self.asked(&call, None)?;
        let work = move |_: &Watch| {
            let tolerance = tolerance.unwrap_or_else(|| named.game.default_tolerance());
            let verified = named.game.verify(&strategies, tolerance)?;
            Ok::<_, OrchestrationError>(wire::equilibrium(&named.players, verified, 0))
        };
        let verified = self.0.solvers.run(asked.solve, work).await??;
        Ok(Response::new(VerifyProfileResponse {
            equilibrium: Some(verified),
        }))
    }

    async fn rank_joint_actions(
        &self,
        request: Request<RankJointActionsRequest>,
    ) -> Result<Response<RankJointActionsResponse>, Status> {
        let call = Call::of(&request)?;
        let RankJointActionsRequest {
            game,
            intensity,
            population,
        } = request.into_inner();
        let asked = self.asked(&call, None)?;
        let named = wire::game("game.", game)?;
        let usual = Selection::default();
        let selection = Selection {
            intensity: intensity.unwrap_or(usual.intensity),
            population: population.unwrap_or(usual.population),
        };
        let work = move |watch: &Watch| {
            let mass = named.game.alpha_rank(selection, &|| watch.is_stopped())?;
            let mut ranking: Vec<JointProbability> = (mass.iter().enumerate())
                .map(|(cell, share)| wire::joint(&named, cell, *share))
                .collect();
            ranking.sort_by(|a, b| b.probability.total_cmp(&a.probability));
            Ok::<_, OrchestrationError>(RankJointActionsResponse { ranking })
        };
        Ok(Response::new(self.0.solvers.run(asked.solve, work).await??))
    }

    async fn resolve_conflict(
        &self,
        request: Request<ResolveConflictRequest>,
    ) -> Result<Response<ResolveConflictResponse>, Status> {
        let call = Call::of(&request)?;
        let asked_for = request.into_inner();
        let asked = self.asked(&call, None)?;
        let named = wire::game("game.", asked_for.game)?;
        let parties = wire::parties(&named, asked_for.actions)?;
        let constraints = asked_for.constraints.into_iter().map(wire::constraint);
        let constraints = constraints.collect::<Result<Vec<_>, _>>()?;
        for constraint in &constraints {
            let stranger = |c: &&crate::conflicts::Condition| !named.players.contains(&c.party);
            if let Some(condition) = constraint.conditions.iter().find(stranger) {
                let text = format!("{:?} is not a player", condition.party);
                return Err(fault::invalid_field("constraints.conditions.player", &text));
            }
        }
        let dispute = Dispute {
            constraints,
            rule: wire::rule(asked_for.rule),
            tolerance: EXACT,
            disagreement: wire::numbers("disagreement", &named.players, asked_for.disagreement)?,
            weights: wire::numbers("weights", &named.players, asked_for.weights)?,
            parties,
            game: named.game,
        };
        let work = move |_: &Watch| {
            let resolution = dispute.resolve()?;
            Ok::<_, OrchestrationError>(wire::resolution(&dispute, resolution))
        };
        let resolved = self.0.solvers.run(asked.solve, work).await??;
        Ok(Response::new(ResolveConflictResponse {
            resolution: Some(resolved),
        }))
    }
}

fn nash(players: &[String], solution: Solution, from: Option<Equilibria>) -> ComputeNashResponse {
    let considered = from.as_ref().map_or(1, |all| all.found.len());
    let Equilibrium {
        converged,
        strategy_profile,
        expected_payoffs,
        regret,
        nash_conv,
        tolerance,
        iterations,
        method,
        is_pure,
        relative_regret,
        history,
        component: _,
    } = wire::equilibrium(players, solution, 0);
    ComputeNashResponse {
        converged,
        strategy_profile,
        expected_payoffs,
        regret,
        nash_conv,
        tolerance,
        iterations,
        method,
        is_pure,
        relative_regret,
        history,
        considered: u32::try_from(considered).unwrap_or(u32::MAX),
        considered_all: from.is_some_and(|all| all.complete),
    }
}

/// The improvements of a solve, then its result.
fn watched(
    points: mpsc::Receiver<Point>,
    ended: impl Future<Output = Result<Equilibrium, Status>> + Send + 'static,
    after: u64,
) -> impl stream::Stream<Item = Result<WatchNashResponse, Status>> + Send {
    let start = Some((points, Box::pin(ended)));
    stream::try_unfold((start, 0), move |(state, mut sequence)| async move {
        let Some((mut points, ended)) = state else {
            return Ok(None);
        };
        while let Some(point) = points.recv().await {
            sequence += 1;
            if sequence > after {
                let item = WatchNashResponse {
                    sequence,
                    progress: Some(wire::point(&point)),
                    equilibrium: None,
                };
                return Ok(Some((item, (Some((points, ended)), sequence))));
            }
        }
        let item = WatchNashResponse {
            sequence: sequence + 1,
            progress: None,
            equilibrium: Some(ended.await?),
        };
        Ok(Some((item, (None, sequence + 1))))
    })
}
