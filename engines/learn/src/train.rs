//! A training run: episodes until the steps are used up, progress reports, and a greedy evaluation at
//! the end. The owner may replace the hyperparameters between episodes, and stop the run.

use crate::{
    dqn::{self, Dqn},
    env::{Environment, TimeStep, make_environment},
    hyper::{DqnParams, ParamViolation, Values},
    nn::{Mlp, Scratch},
    replay::Transition,
};
use rand::{SeedableRng, rngs::StdRng};

/// Separates the random stream of the evaluation from that of the training.
const EVALUATION_STREAM: u64 = 0x9e37_79b9_7f4a_7c15;

/// Why a run was refused or came to no outcome.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RunError {
    /// The name is not an algorithm's.
    #[error("there is no algorithm {0:?}")]
    Algorithm(String),
    /// The name is not an environment's.
    #[error("there is no environment {0:?}")]
    Environment(String),
    /// Some hyperparameters are unknown or out of bounds.
    #[error("hyperparameters out of bounds")]
    Hyperparameters(Vec<ParamViolation>),
    /// The initial weights have other shapes than the run's network.
    #[error("the weights belong to a network of another shape")]
    Weights,
    /// The loss became infinite or not a number.
    #[error("learning diverged: the network's values are no longer finite")]
    Diverged,
}

/// What to train, and for how long.
#[derive(Debug, Clone)]
pub struct Run {
    /// The algorithm's name; there is only `dqn`.
    pub algorithm: String,
    /// The environment's name, as [`make_environment`] takes it.
    pub environment: String,
    /// Hyperparameters; missing ones have their defaults.
    pub values: Values,
    /// Determines the initial weights, exploration, minibatches and evaluation episodes.
    pub seed: u64,
    /// Environment steps to train for.
    pub steps: u64,
    /// How many progress reports are spread evenly over the steps, at least one.
    pub reports: u64,
    /// Episodes of the final evaluation, at least one.
    pub eval_episodes: u32,
    /// Weights to continue from; they must have the shape of the run's network.
    pub start: Option<Mlp>,
}

/// A report on a run in progress.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Environment steps so far.
    pub step: u64,
    /// Completed episodes so far.
    pub episode: u64,
    /// The mean undiscounted return of the episodes that ended since the last report; `None` when
    /// none did.
    pub mean_return: Option<f64>,
    /// The mean loss since the last report; `None` before learning begins.
    pub loss: Option<f64>,
    /// The current probability of a random action.
    pub epsilon: f64,
}

/// The undiscounted returns of episodes played greedily.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// One return for each episode.
    pub returns: Vec<f64>,
}

impl Evaluation {
    /// The mean return.
    pub fn mean(&self) -> f64 {
        self.returns.iter().sum::<f64>() / self.returns.len().max(1) as f64
    }

    /// The sample standard deviation of the returns; 0 for fewer than two.
    pub fn std(&self) -> f64 {
        let (mean, n) = (self.mean(), self.returns.len());
        if n < 2 {
            return 0.0;
        }
        (self.returns.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt()
    }
}

/// The result of a run that was not stopped.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Environment steps, as many as the run asked for.
    pub steps: u64,
    /// Completed training episodes.
    pub episodes: u64,
    /// The final evaluation.
    pub evaluation: Evaluation,
    /// The trained network.
    pub weights: Mlp,
}

/// How the owner of a run observes and steers it.
pub trait Control {
    /// Receives a report. A slow receiver slows the run down.
    fn report(&mut self, progress: Progress);

    /// Whether the run should stop. Polled before every step, so it must be cheap.
    fn is_stopped(&self) -> bool;

    /// Hyperparameters that replace the present ones, `None` if they have not changed. Polled after
    /// every episode.
    fn take_reload(&mut self) -> Option<Values> {
        None
    }
}

impl Run {
    /// Trains and evaluates; `None` when it was stopped.
    ///
    /// # Errors
    ///
    /// See [`RunError`]; hyperparameters from [`Control::take_reload`] are checked too.
    pub fn execute(&self, control: &mut impl Control) -> Result<Option<Outcome>, RunError> {
        if self.algorithm != "dqn" {
            return Err(RunError::Algorithm(self.algorithm.clone()));
        }
        let unknown = || RunError::Environment(self.environment.clone());
        let mut env = make_environment(&self.environment).ok_or_else(unknown)?;
        let params = DqnParams::from_values(&self.values).map_err(RunError::Hyperparameters)?;
        let mut rng = StdRng::seed_from_u64(self.seed);
        let (inputs, actions) = (env.observation_names().len(), env.action_names().len());
        let mut agent = Dqn::new(inputs, actions, params, &mut rng);
        if let Some(start) = &self.start {
            agent.start_from(start)?;
        }
        let Some((steps, episodes)) = self.learn(env.as_mut(), &mut agent, &mut rng, control)?
        else {
            return Ok(None);
        };
        let seed = self.seed ^ EVALUATION_STREAM;
        let evaluation = evaluate(env.as_mut(), &agent.online, self.eval_episodes, seed);
        Ok(Some(Outcome {
            steps,
            episodes,
            evaluation,
            weights: agent.online,
        }))
    }

    /// Trains until the steps are used up. Returns the steps and the completed episodes; `None`
    /// when it was stopped.
    fn learn(
        &self,
        env: &mut dyn Environment,
        agent: &mut Dqn,
        rng: &mut StdRng,
        control: &mut impl Control,
    ) -> Result<Option<(u64, u64)>, RunError> {
        let mut meter = Meter::new((self.steps / self.reports.max(1)).max(1));
        let mut episode = Episode::new(env.observation_names().len());
        env.reset(rng, &mut episode.state);
        for step in 1..=self.steps {
            if control.is_stopped() {
                return Ok(None);
            }
            let (outcome, loss) = episode.step(env, agent, rng);
            meter.record_loss(loss)?;
            if outcome.is_last() {
                meter.record_episode(episode.finish());
                agent.end_episode();
                if let Some(values) = control.take_reload() {
                    agent.reload(
                        DqnParams::from_values(&values).map_err(RunError::Hyperparameters)?,
                    );
                }
                env.reset(rng, &mut episode.state);
            }
            if step.is_multiple_of(meter.every) {
                control.report(meter.take(step, agent.epsilon));
            }
        }
        Ok(Some((self.steps, meter.episodes)))
    }
}

/// The episode that is being played.
struct Episode {
    state: Vec<f32>,
    next: Vec<f32>,
    total: f64,
}

impl Episode {
    fn new(width: usize) -> Self {
        Self {
            state: vec![0.0; width],
            next: vec![0.0; width],
            total: 0.0,
        }
    }

    /// Acts once and learns from it. Returns the loss where there was a gradient step.
    fn step(
        &mut self,
        env: &mut dyn Environment,
        agent: &mut Dqn,
        rng: &mut StdRng,
    ) -> (TimeStep, Option<f32>) {
        let action = agent.act(&self.state, rng);
        let outcome = env.step(action, rng, &mut self.next);
        self.total += f64::from(outcome.reward);
        let transition = Transition {
            state: &self.state,
            action,
            reward: outcome.reward,
            next: &self.next,
            terminated: outcome.terminated,
        };
        let loss = agent.observe(transition, rng);
        std::mem::swap(&mut self.state, &mut self.next);
        (outcome, loss)
    }

    /// The return of the episode; the next one starts at zero.
    fn finish(&mut self) -> f64 {
        std::mem::take(&mut self.total)
    }
}

impl Dqn {
    fn start_from(&mut self, weights: &Mlp) -> Result<(), RunError> {
        let shape = |net: &Mlp| {
            net.layers
                .iter()
                .map(|l| l.weights.dim())
                .collect::<Vec<_>>()
        };
        if shape(weights) != shape(&self.online) {
            return Err(RunError::Weights);
        }
        self.online = weights.clone();
        Ok(())
    }
}

/// What the next progress report will say.
struct Meter {
    /// Steps between two reports.
    every: u64,
    episodes: u64,
    returns: Mean,
    losses: Mean,
}

impl Meter {
    fn new(every: u64) -> Self {
        Self {
            every,
            episodes: 0,
            returns: Mean::default(),
            losses: Mean::default(),
        }
    }

    fn record_loss(&mut self, loss: Option<f32>) -> Result<(), RunError> {
        let Some(loss) = loss else {
            return Ok(());
        };
        if !loss.is_finite() {
            return Err(RunError::Diverged);
        }
        self.losses.add(f64::from(loss));
        Ok(())
    }

    fn record_episode(&mut self, total: f64) {
        self.returns.add(total);
        self.episodes += 1;
    }

    fn take(&mut self, step: u64, epsilon: f64) -> Progress {
        Progress {
            step,
            episode: self.episodes,
            mean_return: self.returns.take(),
            loss: self.losses.take(),
            epsilon,
        }
    }
}

#[derive(Debug, Default)]
struct Mean {
    sum: f64,
    count: u32,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    fn take(&mut self) -> Option<f64> {
        let Self { sum, count } = std::mem::take(self);
        (count > 0).then(|| sum / f64::from(count))
    }
}

/// Plays episodes with the best known actions, at least one. The seed determines their starts.
pub fn evaluate(env: &mut dyn Environment, net: &Mlp, episodes: u32, seed: u64) -> Evaluation {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut state = vec![0.0; env.observation_names().len()];
    let mut scratch = Scratch::default();
    let play = |_| {
        env.reset(&mut rng, &mut state);
        let mut total = 0.0;
        loop {
            let action = dqn::argmax(&net.forward_one(&state, &mut scratch));
            let step = env.step(action, &mut rng, &mut state);
            total += f64::from(step.reward);
            if step.is_last() {
                return total;
            }
        }
    };
    Evaluation {
        returns: (0..episodes.max(1)).map(play).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{env::GridWorld, hyper::Value};

    #[derive(Default)]
    struct Collect {
        seen: Vec<Progress>,
        stop_after: Option<usize>,
        reload: Option<Values>,
    }

    impl Control for Collect {
        fn report(&mut self, progress: Progress) {
            self.seen.push(progress);
        }

        fn is_stopped(&self) -> bool {
            self.stop_after.is_some_and(|n| self.seen.len() >= n)
        }

        fn take_reload(&mut self) -> Option<Values> {
            self.reload.take()
        }
    }

    fn values(pairs: &[(&str, f64)]) -> Values {
        pairs
            .iter()
            .map(|(n, v)| ((*n).to_owned(), Value::Number(*v)))
            .collect()
    }

    fn run(environment: &str, steps: u64, pairs: &[(&str, f64)]) -> Run {
        Run {
            algorithm: "dqn".into(),
            environment: environment.into(),
            values: values(pairs),
            seed: 3,
            steps,
            reports: 10,
            eval_episodes: 20,
            start: None,
        }
    }

    const GOOD: &[(&str, f64)] = &[
        ("learning_rate", 1e-3),
        ("gamma", 0.99),
        ("epsilon_decay", 0.97),
        ("tau", 1.0),
        ("target_update", 5.0),
    ];

    #[test]
    fn the_grid_is_solved_to_its_exact_optimum() {
        let outcome = run("gridworld", 8_000, GOOD)
            .execute(&mut Collect::default())
            .unwrap()
            .unwrap();
        let best = f64::from(GridWorld::BEST_RETURN);
        assert!(
            (outcome.evaluation.mean() - best).abs() < 0.01 * best,
            "{}",
            outcome.evaluation.mean()
        );
    }

    #[test]
    fn the_pole_is_balanced_far_longer_than_by_chance() {
        let outcome = run("cartpole", 15_000, GOOD)
            .execute(&mut Collect::default())
            .unwrap()
            .unwrap();
        assert!(
            outcome.evaluation.mean() > 150.0,
            "{}",
            outcome.evaluation.mean()
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_outcome_and_reports() {
        let (mut a, mut b) = (Collect::default(), Collect::default());
        let one = run("cartpole", 2_000, GOOD).execute(&mut a).unwrap();
        let two = run("cartpole", 2_000, GOOD).execute(&mut b).unwrap();
        assert_eq!((one, a.seen), (two, b.seen));
    }

    #[test]
    fn a_stopped_run_has_no_outcome_and_reports_at_even_steps() {
        let mut control = Collect {
            stop_after: Some(3),
            ..Collect::default()
        };
        assert_eq!(
            run("cartpole", 5_000, GOOD).execute(&mut control).unwrap(),
            None
        );
        let steps: Vec<u64> = control.seen.iter().map(|p| p.step).collect();
        assert_eq!(steps, [500, 1000, 1500]);
    }

    #[test]
    fn a_reload_takes_effect_in_a_running_learner() {
        let mut changed = values(GOOD);
        changed.extend(values(&[("epsilon_decay", 0.9), ("batch_size", 16.0)]));
        let mut control = Collect {
            reload: Some(changed),
            ..Collect::default()
        };
        run("cartpole", 2_000, GOOD).execute(&mut control).unwrap();
        let mut plain = Collect::default();
        run("cartpole", 2_000, GOOD).execute(&mut plain).unwrap();
        assert!(control.seen[9].epsilon < plain.seen[9].epsilon);
    }

    #[test]
    fn unknown_names_and_values_out_of_bounds_are_refused() {
        let mut control = Collect::default();
        let error = |r: Run, c: &mut Collect| r.execute(c).unwrap_err();
        assert!(matches!(
            error(run("nowhere", 10, GOOD), &mut control),
            RunError::Environment(_)
        ));
        let wrong = run("cartpole", 10, &[("gamma", 7.0)]);
        assert!(matches!(
            error(wrong, &mut control),
            RunError::Hyperparameters(_)
        ));
        let other = Run {
            algorithm: "a2c".into(),
            ..run("cartpole", 10, GOOD)
        };
        assert!(matches!(error(other, &mut control), RunError::Algorithm(_)));
    }
}
