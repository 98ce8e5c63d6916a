//! A training run: episodes until the steps are used up, reports on the way, a greedy evaluation at
//! the end. The caller may change the hyperparameters between episodes, or stop the run.

use crate::{
    dqn::{self, Dqn},
    env::{Environment, make_environment},
    hyper::{DqnParams, ParamViolation, Values},
    nn::{Mlp, Scratch},
    replay::Transition,
};
use rand::{SeedableRng, rngs::StdRng};

/// Evaluation episodes start from states that training never drew.
const EVALUATION_STREAM: u64 = 0x9e37_79b9_7f4a_7c15;

#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RunError {
    #[error("there is no algorithm {0:?}")]
    Algorithm(String),
    #[error("there is no environment {0:?}")]
    Environment(String),
    #[error("hyperparameters out of bounds")]
    Hyperparameters(Vec<ParamViolation>),
    #[error("the weights are for another network")]
    Weights,
    #[error("learning diverged: the network's values are not finite any more")]
    Diverged,
}

#[derive(Debug, Clone)]
pub struct Run {
    pub algorithm: String,
    pub environment: String,
    pub values: Values,
    pub seed: u64,
    pub steps: u64,
    pub reports: u64,
    pub eval_episodes: u32,
    /// Weights to go on from, if they fit.
    pub start: Option<Mlp>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    pub step: u64,
    pub episode: u64,
    /// Of the episodes that ended since the last report.
    pub mean_return: Option<f64>,
    pub loss: Option<f64>,
    pub epsilon: f64,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    pub returns: Vec<f64>,
}

impl Evaluation {
    pub fn mean(&self) -> f64 {
        self.returns.iter().sum::<f64>() / self.returns.len().max(1) as f64
    }

    pub fn std(&self) -> f64 {
        let (mean, n) = (self.mean(), self.returns.len());
        if n < 2 {
            return 0.0;
        }
        (self.returns.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / (n - 1) as f64).sqrt()
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    pub steps: u64,
    pub episodes: u64,
    pub evaluation: Evaluation,
    pub weights: Mlp,
}

/// How the owner of a run steers it.
pub trait Control {
    /// Takes a report.
    fn report(&mut self, progress: Progress);
    /// Asked between steps, often: must be cheap.
    fn is_stopped(&self) -> bool;
    /// New hyperparameters, if they changed; asked between episodes.
    fn take_reload(&mut self) -> Option<Values> {
        None
    }
}

impl Run {
    /// Runs to the end; `None` when stopped.
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

    fn learn(
        &self,
        env: &mut dyn Environment,
        agent: &mut Dqn,
        rng: &mut StdRng,
        control: &mut impl Control,
    ) -> Result<Option<(u64, u64)>, RunError> {
        let width = env.observation_names().len();
        let (mut state, mut next) = (vec![0.0; width], vec![0.0; width]);
        let mut meter = Meter::new((self.steps / self.reports.max(1)).max(1));
        env.reset(rng, &mut state);
        let mut total = 0.0;
        for step in 1..=self.steps {
            if control.is_stopped() {
                return Ok(None);
            }
            let action = agent.act(&state, rng);
            let outcome = env.step(action, rng, &mut next);
            total += f64::from(outcome.reward);
            let terminated = outcome.terminated;
            let transition = Transition {
                state: &state,
                action,
                reward: outcome.reward,
                next: &next,
                terminated,
            };
            if let Some(loss) = agent.observe(transition, rng) {
                if !loss.is_finite() {
                    return Err(RunError::Diverged);
                }
                meter.losses.add(f64::from(loss));
            }
            std::mem::swap(&mut state, &mut next);
            if outcome.is_last() {
                meter.returns.add(total);
                meter.episodes += 1;
                total = 0.0;
                agent.end_episode();
                if let Some(values) = control.take_reload() {
                    agent.reload(
                        DqnParams::from_values(&values).map_err(RunError::Hyperparameters)?,
                    );
                }
                env.reset(rng, &mut state);
            }
            if step.is_multiple_of(meter.every) {
                control.report(meter.take(step, agent.epsilon));
            }
        }
        Ok(Some((self.steps, meter.episodes)))
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

struct Meter {
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

/// Plays episodes without exploring.
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
    fn a_seed_decides_everything() {
        let (mut a, mut b) = (Collect::default(), Collect::default());
        let one = run("cartpole", 2_000, GOOD).execute(&mut a).unwrap();
        let two = run("cartpole", 2_000, GOOD).execute(&mut b).unwrap();
        assert_eq!((one, a.seen), (two, b.seen));
    }

    #[test]
    fn a_run_reports_and_stops() {
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
    fn what_cannot_run_says_why() {
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
