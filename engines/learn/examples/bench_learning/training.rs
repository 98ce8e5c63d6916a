//! The joint training of the four.

use crate::options::Options;
use rand::SeedableRng;
use std::sync::Arc;
use tars_learn::{
    Policy, algorithm,
    hyper::Values,
    presets::preset,
    training::{Control, Evaluation, Member, Player, Progress, Training, TrainingError},
};
use tars_worlds::{Generator, MeshEnv, World, make_world};

/// The algorithm of each agent: policy, consensus, ethical, resource.
pub(crate) const ALGORITHMS: [&str; 4] = ["dqn", "a2c", "ppo", "ddpg"];
/// Copies of the mesh that are stepped together.
const COPIES: usize = 8;

/// What the four acted by before and after.
pub(crate) struct Trained {
    /// Networks as they were initialised.
    pub(crate) before: Vec<Policy>,
    pub(crate) after: Vec<Policy>,
    pub(crate) steps: u64,
    pub(crate) cpu_seconds: f64,
}

/// Prints the progress on standard error.
struct Print;

impl Control for Print {
    fn report(&mut self, progress: Progress) {
        let agents = progress.agents.iter();
        let each = agents.map(|a| (a.mean_return.unwrap_or(f64::NAN), a.exploration));
        eprintln!("{:>9} {:.2?}", progress.step, each.collect::<Vec<_>>());
    }

    fn evaluated(&mut self, evaluation: &Evaluation, _: &[Player]) {
        let means = [0, 1, 2, 3].map(|agent| evaluation.mean(agent));
        eprintln!("{:>9} evaluated {means:.2?}", evaluation.step);
    }
}

fn values(options: &Options, algorithm: &str) -> Values {
    let mut values = preset(algorithm, "mesh");
    values.extend(options.values.get(algorithm).cloned().unwrap_or_default());
    values
}

pub(crate) fn train(options: &Options, seed: u64) -> Result<Trained, TrainingError> {
    let member = |algorithm: &str| Member::Learns {
        algorithm: algorithm.to_owned(),
        values: values(options, algorithm),
        start: None,
    };
    let training = Training {
        world: Arc::new(|| make_world("mesh").expect("a built-in world")),
        members: ALGORITHMS.map(member).to_vec(),
        copies: COPIES,
        seed,
        steps: options.steps,
        reports: 10,
        evaluate_every: 0,
        evaluation_episodes: 20,
    };
    let started = cpu_seconds();
    let outcome = training.execute(None, &mut Print)?;
    let learned = outcome.expect("nobody stops it").learned;
    Ok(Trained {
        before: untrained(options, seed),
        after: learned.into_iter().map(|one| one.policy).collect(),
        steps: options.steps,
        cpu_seconds: cpu_seconds() - started,
    })
}

/// Policies of networks that have learned nothing.
fn untrained(options: &Options, seed: u64) -> Vec<Policy> {
    let mesh = MeshEnv::shipped();
    let agents = ALGORITHMS.iter().zip(&mesh.spec().agents);
    let mut rng = Generator::seed_from_u64(seed);
    let create = |(name, space): (&&str, _)| {
        let algorithm = algorithm::find(name).expect("a built-in algorithm");
        let learner = algorithm.create(space, &values(options, name), 1, &mut rng);
        learner.expect("it learned with these").policy()
    };
    agents.map(create).collect()
}

/// The CPU time of this process's only thread, in seconds.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let nanoseconds = stat.split(' ').next().and_then(|n| n.parse::<f64>().ok());
    nanoseconds.unwrap_or(0.0) / 1e9
}
