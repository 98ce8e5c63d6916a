//! The gRPC handlers of training's metrics.

use super::{Api, agents::param, numbers::unsigned, training::statistics};
use crate::{
    Orchestration, OrchestrationError,
    agents::Agent as Slot,
    metrics::{Point, Reports, Series, count, down_to, values},
    points::{self, Spread, Summary, Trend},
    store::{AgentReport, NashPoint, Points},
};
use tars_learn::hyper::{Kind, Parameter, Values};
use tars_proto::{
    orchestration::v1::{self as pb, *},
    time::timestamp,
};
use tonic::{Request, Response, Status};

/// The points of an answer, unless told otherwise.
const LIMIT: usize = 100;
/// The values of a rolling mean, unless told otherwise.
const WINDOW: usize = 10;
/// The values that a trend needs.
const COMPARED: usize = 20;

/// A number of points; 0 is the default.
fn given(number: u32, default: usize) -> usize {
    match number {
        0 => default,
        given => count(given),
    }
}

fn point(from: Point) -> TrainingPoint {
    TrainingPoint {
        run_id: from.run.to_string(),
        step: from.step,
        episode: from.episode,
        value: from.value,
    }
}

fn series(from: Series) -> TrainingSeries {
    TrainingSeries {
        name: from.name.to_owned(),
        points: from.points.into_iter().map(point).collect(),
    }
}

fn trend(from: Option<Trend>) -> pb::Trend {
    match from {
        None => pb::Trend::Unspecified,
        Some(Trend::Improving) => pb::Trend::Improving,
        Some(Trend::Declining) => pb::Trend::Declining,
        Some(Trend::Stable) => pb::Trend::Stable,
    }
}

fn summary(from: Summary) -> ReturnSummary {
    ReturnSummary {
        count: u32::try_from(from.count).unwrap_or(u32::MAX),
        mean: from.spread.mean,
        std: from.spread.std,
        min: from.min,
        max: from.max,
        improvement_percent: from.improvement_percent,
        stability: from.stability,
    }
}

fn reward(at: Point, spread: Spread) -> RewardPoint {
    RewardPoint {
        run_id: at.run.to_string(),
        step: at.step,
        episode: at.episode,
        reward: at.value,
        rolling_mean: spread.mean,
        rolling_std: spread.std,
    }
}

/// The newest returns with the spread of the window before each.
fn rewards(
    returns: Vec<Point>,
    window: usize,
    limit: usize,
    most: Option<u32>,
) -> Vec<RewardPoint> {
    let rolled = points::rolling(&values(&returns), window);
    let older = returns.len().saturating_sub(limit);
    let rewards: Vec<RewardPoint> = returns
        .into_iter()
        .zip(rolled)
        .skip(older)
        .map(|(at, spread)| reward(at, spread))
        .collect();
    down_to(most, rewards, |point| point.reward)
}

fn distance(from: NashPoint) -> NashDistance {
    let weights = from.origin.weights.into_iter();
    NashDistance {
        at: Some(timestamp(from.at_us)),
        environment: from.environment,
        nash_convergence_distance: from.value,
        low: from.low,
        high: from.high,
        weights_versions: weights.map(|(agent, n)| (agent, unsigned(n))).collect(),
        session_id: from
            .origin
            .session
            .map(|id| id.to_string())
            .unwrap_or_default(),
        seed: from.origin.episode.map(|episode| episode.seed),
        warm_up_steps: from.origin.episode.map(|episode| episode.steps),
        rollouts: u32::try_from(from.origin.rollouts).unwrap_or(u32::MAX),
        run_id: from.origin.run.map(|id| id.to_string()).unwrap_or_default(),
        calibration: from.origin.calibration.unwrap_or_default(),
    }
}

fn hyperparameter(of: &Parameter, live: &Values) -> TrainingHyperparameter {
    let (low, high) = match of.kind {
        Kind::Float { low, high } => (Some(low), Some(high)),
        Kind::Int { low, high } => (Some(low as f64), Some(high as f64)),
        Kind::Flag => (None, None),
    };
    let value = live.get(of.name).copied().unwrap_or(of.default);
    TrainingHyperparameter {
        name: of.name.to_owned(),
        value: Some(param(value).into()),
        default_value: Some(param(of.default).into()),
        low,
        high,
        integer: matches!(of.kind, Kind::Int { .. }),
        reloadable: of.reloadable,
    }
}

impl Orchestration {
    /// The newest reports of an agent with so many returns.
    async fn reports_with_returns(
        &self,
        agent: &Slot,
        wanted: usize,
    ) -> Result<Reports, OrchestrationError> {
        let counts = |report: &AgentReport| report.mean_return.is_some();
        self.reports_of(agent, wanted, counts).await
    }
}

#[tonic::async_trait]
impl training_metrics_service_server::TrainingMetricsService for Api {
    async fn list_training_metrics(
        &self,
        request: Request<ListTrainingMetricsRequest>,
    ) -> Result<Response<ListTrainingMetricsResponse>, Status> {
        let asked = request.into_inner();
        let limit = given(asked.limit, LIMIT);
        let runs = self.0.reported_runs().await?;
        let mut agents = Vec::new();
        for slot in self.0.agents.iter() {
            let reports = self.0.reports_in(&runs, slot, limit, |_| true).await?;
            let algorithm = slot.definition.algorithm;
            let all = reports.all(algorithm).into_iter();
            agents.push(AgentTrainingMetrics {
                agent_id: slot.id().to_owned(),
                agent_type: algorithm.name.to_owned(),
                series: all.map(|s| series(s.down_to(asked.max_points))).collect(),
            });
        }
        Ok(Response::new(ListTrainingMetricsResponse { agents }))
    }

    async fn get_training_rewards(
        &self,
        request: Request<GetTrainingRewardsRequest>,
    ) -> Result<Response<GetTrainingRewardsResponse>, Status> {
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let (window, limit) = (given(asked.window, WINDOW), given(asked.limit, LIMIT));
        // The first windows reach back beyond the limit.
        let wanted = (limit + window - 1).max(COMPARED);
        let reports = self.0.reports_with_returns(slot, wanted).await?;
        let returns = reports.returns();
        Ok(Response::new(GetTrainingRewardsResponse {
            trend: trend(points::trend(&values(&returns))).into(),
            rewards: rewards(returns, window, limit, asked.max_points),
            agent_id: asked.agent_id,
        }))
    }

    async fn get_training_losses(
        &self,
        request: Request<GetTrainingLossesRequest>,
    ) -> Result<Response<GetTrainingLossesResponse>, Status> {
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let algorithm = slot.definition.algorithm;
        let reports = self
            .0
            .reports_of(slot, given(asked.limit, LIMIT), |report| {
                let mut losses = algorithm.losses.iter();
                losses.any(|loss| (loss.of)(&report.update).is_some())
            })
            .await?;
        let losses = reports.losses(algorithm).into_iter();
        Ok(Response::new(GetTrainingLossesResponse {
            agent_id: asked.agent_id,
            agent_type: algorithm.name.to_owned(),
            losses: losses
                .map(|s| series(s.down_to(asked.max_points)))
                .collect(),
        }))
    }

    async fn get_training_exploration(
        &self,
        request: Request<GetTrainingExplorationRequest>,
    ) -> Result<Response<GetTrainingExplorationResponse>, Status> {
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let limit = given(asked.limit, LIMIT);
        let reports = self.0.reports_of(slot, limit, |_| true).await?;
        let algorithm = slot.definition.algorithm;
        let exploration = reports.exploration(algorithm).down_to(asked.max_points);
        Ok(Response::new(GetTrainingExplorationResponse {
            agent_id: asked.agent_id,
            agent_type: algorithm.name.to_owned(),
            exploration: Some(series(exploration)),
        }))
    }

    async fn get_nash_history(
        &self,
        request: Request<GetNashHistoryRequest>,
    ) -> Result<Response<GetNashHistoryResponse>, Status> {
        let asked = request.into_inner();
        let limit = i64::try_from(given(asked.limit, LIMIT)).unwrap_or(i64::MAX);
        let which = match asked.all {
            true => Points::All,
            false => Points::Regular,
        };
        let newest = self.0.store.nash_points(which, limit).await?;
        let oldest_first = newest.into_iter().rev().map(distance).collect();
        let history = down_to(asked.max_points, oldest_first, |point| {
            point.nash_convergence_distance
        });
        Ok(Response::new(GetNashHistoryResponse {
            convergence_history: history,
        }))
    }

    async fn get_training_hyperparameters(
        &self,
        request: Request<GetTrainingHyperparametersRequest>,
    ) -> Result<Response<GetTrainingHyperparametersResponse>, Status> {
        let agent_id = request.into_inner().agent_id;
        let slot = self.0.agents.get(&agent_id)?;
        let tenure = self.0.tenure()?;
        let row = &slot.current()?.row;
        Orchestration::confirm(&tenure)?;
        let algorithm = slot.definition.algorithm;
        let parameters = algorithm.spec.parameters.iter();
        Ok(Response::new(GetTrainingHyperparametersResponse {
            agent_id,
            agent_type: algorithm.name.to_owned(),
            version: unsigned(row.version),
            hyperparameters: parameters
                .map(|of| hyperparameter(of, &row.hyperparameters))
                .collect(),
        }))
    }

    async fn get_training_summary(
        &self,
        request: Request<GetTrainingSummaryRequest>,
    ) -> Result<Response<GetTrainingSummaryResponse>, Status> {
        let asked = request.into_inner();
        let slot = self.0.agents.get(&asked.agent_id)?;
        let window = given(asked.window, LIMIT);
        let reports = self.0.reports_with_returns(slot, window).await?;
        let newest = reports.newest();
        let live = slot.current()?;
        let algorithm = slot.definition.algorithm;
        Ok(Response::new(GetTrainingSummaryResponse {
            agent_id: asked.agent_id,
            agent_type: algorithm.name.to_owned(),
            returns: points::summary(&values(&reports.returns())).map(summary),
            means: reports.means(algorithm),
            total_steps: unsigned(live.row.total_steps),
            total_episodes: unsigned(live.row.total_episodes),
            last_return: live.row.last_return,
            statistics: newest.and_then(|of| of.statistics).map(statistics),
            exploration: newest.map(|of| of.exploration),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Setup,
        store::{Episode, NashOrigin},
    };
    use tars_runtime::{db::Db, lease::Terms, seeds::Seeds};
    use training_metrics_service_server::TrainingMetricsService;
    use uuid::Uuid;

    fn returns(values: &[f64]) -> Vec<Point> {
        let steps = 1..;
        let point = |(step, value): (u64, &f64)| Point {
            run: Uuid::nil(),
            step,
            episode: step,
            value: *value,
        };
        steps.zip(values).map(point).collect()
    }

    #[test]
    fn the_first_windows_reach_back_beyond_the_limit() {
        let all = rewards(returns(&[1.0, 3.0, 5.0]), 2, 2, None);
        let seen: Vec<_> = all.iter().map(|p| (p.step, p.rolling_mean)).collect();
        assert_eq!(seen, [(2, 2.0), (3, 4.0)]);
        assert!(rewards(Vec::new(), 2, 2, Some(2)).is_empty());
    }

    #[test]
    fn down_sampled_rewards_keep_the_spread_of_all() {
        let few = rewards(returns(&[1.0, 1.0, 9.0, 1.0]), 4, 4, Some(3));
        let seen: Vec<_> = few.iter().map(|p| (p.reward, p.rolling_mean)).collect();
        assert_eq!(seen, [(1.0, 1.0), (9.0, 11.0 / 3.0), (1.0, 3.0)]);
    }

    async fn history(api: &Api, limit: u32, max_points: Option<u32>) -> Vec<NashDistance> {
        history_of(api, limit, max_points, false).await
    }

    async fn history_of(
        api: &Api,
        limit: u32,
        max_points: Option<u32>,
        all: bool,
    ) -> Vec<NashDistance> {
        let asked = GetNashHistoryRequest {
            limit,
            max_points,
            all,
        };
        let answer = api.get_nash_history(Request::new(asked)).await.unwrap();
        answer.into_inner().convergence_history
    }

    #[tokio::test]
    async fn distances_from_an_equilibrium_are_listed_oldest_first() {
        let dir = tempfile::tempdir().unwrap();
        let place = tars_test_db::place(dir.path(), "orchestration");
        let setup = Setup::for_tests(Seeds::counted(7));
        let terms = |_: &Db| Ok(Terms::Sole);
        let service = Orchestration::open_at(dir.path(), &place, terms, setup);
        let api = Api(service.await.unwrap());
        assert!(history(&api, 0, None).await.is_empty());
        let run = Uuid::now_v7();
        for (at_us, value) in [(1, 0.5), (2, 0.5), (3, 0.125), (4, 0.5)] {
            let origin = NashOrigin {
                weights: [("policy".to_owned(), 3)].into(),
                session: None,
                episode: Some(Episode { seed: 1, steps: 60 }),
                rollouts: 8,
                run: Some(run),
                calibration: Some("shipped".to_owned()),
            };
            let point = NashPoint {
                at_us,
                environment: "mesh".to_owned(),
                value,
                low: value / 2.0,
                high: value * 2.0,
                regular: true,
                origin,
            };
            api.0
                .store
                .insert_nash_point("service", &point)
                .await
                .unwrap();
            // One that a caller measured elsewhere.
            let other = NashPoint {
                value: 7.0,
                regular: false,
                ..point
            };
            api.0.store.insert_nash_point("ada", &other).await.unwrap();
        }
        let newest = history(&api, 2, None).await;
        let seen: Vec<_> = newest.iter().map(|d| d.nash_convergence_distance).collect();
        assert_eq!(seen, [0.125, 0.5]);
        assert_eq!((newest[0].low, newest[0].high), (0.0625, 0.25));
        assert_eq!(newest[0].weights_versions["policy"], 3);
        assert_eq!(
            (&*newest[0].run_id, &*newest[0].session_id),
            (&*run.to_string(), "")
        );
        let place = (newest[0].seed, newest[0].warm_up_steps, newest[0].rollouts);
        assert_eq!(place, (Some(1), Some(60), 8));
        assert_eq!(newest[0].calibration, "shipped");
        let all = history_of(&api, 2, None, true).await;
        let seen: Vec<_> = all.iter().map(|d| d.nash_convergence_distance).collect();
        assert_eq!(seen, [0.5, 7.0]);
        let few = history(&api, 0, Some(3)).await;
        let seen: Vec<_> = few.iter().map(|d| d.nash_convergence_distance).collect();
        assert_eq!(seen, [0.5, 0.125, 0.5], "what stands out stays");
    }

    #[test]
    fn every_default_of_every_algorithm_is_within_its_bounds() {
        for algorithm in tars_learn::ALGORITHMS {
            for parameter in algorithm.spec.parameters {
                let shown = hyperparameter(parameter, &Values::new());
                assert_eq!(shown.value, shown.default_value, "nothing is live");
                assert_eq!(shown.low.is_some(), parameter.kind != Kind::Flag);
                assert!(shown.low <= shown.high);
            }
        }
    }
}
