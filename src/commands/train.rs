//! `tars train`: an algorithm learns in a built-in environment, in this process and without a mesh. Its
//! subcommands are about the training runs of a mesh.

mod chart;
mod course;
mod curves;
pub(super) mod watch;

use super::{
    CommandError, Global,
    listing::{self, short},
    output,
    progress::Progress,
};
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use course::Course;
use curves::Curves;
use serde::Serialize;
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode, sync::Arc};
use tars_learn::{
    algorithm::{ALGORITHMS, Algorithm, find},
    hyper::{self, Values},
    presets::{self, preset},
    training::{Evaluation, Member, Player, Training, TrainingError},
};
use tars_worlds::{AgentSpace, calibration_of, make_world, world_names};

const NOTHING: &str =
    "give --env, --algo (or --together) and --steps, or a subcommand; see `tars train --help`";

/// How many evaluations are spread evenly over the steps, unless told otherwise.
const EVALUATIONS: u64 = 15;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  tars train --env cartpole --algo ppo --steps 100000 --seeds 5\n  tars train --env pendulum --algo ddpg --steps 30000 --json\n  tars train --env cartpole --algo dqn --steps 150000 --seeds 5 --out curves\n  tars train --env mesh --agent consensus --algo a2c --steps 200000\n  tars train --env mesh --together --steps 200000\n  tars train --env cournot_2 --together --algo ddpg --steps 40000 --json | jq '.agents[0].seeds[0].best_mean_return'\n  tars train watch\n\nHyperparameters that are known to learn an environment are used where there are some; --set replaces them.\nIn an environment with several agents the others take the first of their actions; those of `mesh` follow rules:\naimd, majority_quorum, static_quotas and target_tracking. With --together all agents learn at once.\n\nWith --json one agent that learns is\n  {\"seeds\": [{\"seed\": 1, \"best_mean_return\": 9.5, \"evaluations\": [{\"steps\": 640, \"mean_return\": 9.5}],\n              \"steps_per_cpu_s\": 51200.0}]}\nand all that learn together are, each with what it learned in the same courses,\n  {\"agents\": [{\"agent\": \"policy\", \"algorithm\": \"dqn\", \"seeds\": [...]}, ...]}\n`calibration` comes on top where the environment has one."
)]
pub(crate) struct Train {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    local: Option<Local>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Watch(watch::Watch),
}

/// A training in this process.
#[derive(Debug, Args)]
struct Local {
    /// The environment.
    #[arg(long, value_name = "ENV", value_parser = PossibleValuesParser::new(world_names()))]
    env: String,
    /// The algorithm. With --together, of all agents; when left out then, each has its own of the mesh, and elsewhere
    /// the first that is known to learn there.
    #[arg(long, value_name = "ALGO", required_unless_present = "together", value_parser = PossibleValuesParser::new(ALGORITHMS.iter().map(|a| a.name)))]
    algo: Option<String>,
    /// All agents of the environment learn at the same time, each for itself.
    #[arg(long, conflicts_with = "agent")]
    together: bool,
    /// Environment steps to train for, with each seed.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// How many seeds to train with, one after the other.
    #[arg(long, default_value_t = 1, value_name = "SEEDS", value_parser = clap::value_parser!(u64).range(1..))]
    seeds: u64,
    /// The first seed; the others follow it.
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    first_seed: u64,
    /// The agent that learns; the first one that the algorithm can act for when left out.
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// A hyperparameter: a number, `true` or `false`.
    #[arg(long, value_name = "NAME=VALUE", value_parser = assignment)]
    set: Vec<(String, hyper::Value)>,
    /// Episodes of each evaluation, which are played without exploring.
    #[arg(long, default_value_t = 100, value_name = "EPISODES", value_parser = clap::value_parser!(u32).range(1..))]
    eval_episodes: u32,
    /// A folder for the learning curve: ENV-ALGO.csv with all evaluations and what was measured between
    /// them, and ENV-ALGO.svg, which shows the evaluations; in an environment with several agents,
    /// ENV-AGENT-ALGO. Files of these names are replaced after each seed.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Parses `gamma=0.99`.
fn assignment(text: &str) -> Result<(String, hyper::Value), String> {
    let (name, value) = text.split_once('=').ok_or("NAME=VALUE is expected")?;
    let value = match (value.parse::<bool>(), value.parse::<f64>()) {
        (Ok(flag), _) => hyper::Value::Flag(flag),
        (_, Ok(number)) if number.is_finite() => hyper::Value::Number(number),
        _ => return Err("the value must be a number, true or false".to_owned()),
    };
    Ok((name.to_owned(), value))
}

/// An agent that learns.
#[derive(Debug)]
struct Learner {
    /// Its position in the environment.
    at: usize,
    name: String,
    algorithm: &'static Algorithm,
}

/// Who learned, and how that went with each seed.
#[derive(Debug)]
struct Trained {
    learners: Vec<Learner>,
    courses: Vec<Course>,
}

/// What one agent came to with one seed.
#[derive(Debug, Serialize)]
struct Seed {
    seed: u64,
    best_mean_return: f64,
    evaluations: Vec<Point>,
    steps_per_cpu_s: f64,
}

/// A point of a learning curve.
#[derive(Debug, Serialize)]
struct Point {
    steps: u64,
    mean_return: f64,
}

impl Trained {
    /// What one of the learners came to, with each seed.
    fn seeds(&self, learner: usize) -> Vec<Seed> {
        let at = self.learners[learner].at;
        let point = |evaluation: &Evaluation| Point {
            steps: evaluation.step,
            mean_return: evaluation.mean(at),
        };
        let seed = |course: &Course| Seed {
            seed: course.seed,
            best_mean_return: course.best[learner],
            evaluations: course.evaluations.iter().map(point).collect(),
            steps_per_cpu_s: course.steps_per_cpu_s,
        };
        self.courses.iter().map(seed).collect()
    }

    fn measured(&self) -> Vec<curves::Seed<'_>> {
        let courses = self.courses.iter();
        let seeds = courses.map(|course| curves::Seed {
            seed: course.seed,
            records: &course.records,
        });
        seeds.collect()
    }
}

impl Train {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        match (self.command, self.local) {
            (Some(Command::Watch(watch)), _) => watch.run(global),
            (None, Some(local)) => local.run(),
            (None, None) => Err(CommandError::Usage(NOTHING.to_owned())),
        }
    }
}

impl Local {
    fn run(self) -> Result<ExitCode, CommandError> {
        let trained = self.train();
        let trained = trained.map_err(|e| e.in_json_if(self.json))?;
        if self.json {
            say!("{:#}", self.printed(&trained));
        } else {
            table(&trained);
            say!("in {}", self.world());
        }
        Ok(ExitCode::SUCCESS)
    }

    fn train(&self) -> Result<Trained, CommandError> {
        let world = make_world(&self.env).expect("the parser lets known names pass");
        let agents = &world.spec().agents;
        let learners = self.learners(agents)?;
        let progress = Progress::new(self.json);
        if agents.len() > 1 && self.agent.is_none() {
            progress.done(&self.cast(&learners));
        }
        let curves = learners.iter().map(|one| self.curves(one, agents.len()));
        let curves: Vec<Option<Curves>> = curves.collect::<Result<_, _>>()?;
        let mut trained = Trained {
            learners,
            courses: Vec::new(),
        };
        for seed in (0..self.seeds).map(|n| self.first_seed.wrapping_add(n)) {
            let training = self.training(&trained.learners, agents, seed);
            let course = Course::run(&training, &progress).map_err(|e| failed(&e))?;
            trained.courses.push(course);
            for curves in curves.iter().flatten() {
                curves.write(&trained.measured())?;
            }
        }
        for curves in curves.iter().flatten() {
            progress.done(&curves.describe());
        }
        Ok(trained)
    }

    /// Who learns, and by what.
    fn learners(&self, agents: &[AgentSpace]) -> Result<Vec<Learner>, CommandError> {
        let given = self.algo.as_deref().and_then(find);
        let learner = |at: usize, algorithm| Learner {
            at,
            name: agents[at].name.to_string(),
            algorithm,
        };
        if !self.together {
            let algorithm = given.expect("the parser lets known names pass");
            return Ok(vec![learner(self.agent(algorithm, agents)?, algorithm)]);
        }
        let each = agents.iter().enumerate().map(|(at, space)| {
            let usual = || presets::usual(&self.env, space);
            let algorithm = given.or_else(usual).ok_or_else(|| unfit(space))?;
            check(algorithm, space)?;
            Ok(learner(at, algorithm))
        });
        each.collect()
    }

    /// Who learns what, for people: `dqn learns as policy in cartpole`.
    fn cast(&self, learners: &[Learner]) -> String {
        let world = self.world();
        let each = learners.iter();
        let each = each.map(|one| format!("{} learns as {}", one.algorithm.name, one.name));
        let all = each.collect::<Vec<_>>().join(", ");
        match self.together {
            true => format!("{all}, together in {world}"),
            false => format!("{all} in {world}; --agent names another"),
        }
    }

    /// What is printed as JSON, with the calibration that the returns depend on, where there is one.
    fn printed(&self, trained: &Trained) -> Value {
        let agent = |(at, learner): (usize, &Learner)| json!({ "agent": learner.name, "algorithm": learner.algorithm.name, "seeds": trained.seeds(at) });
        let each = trained.learners.iter().enumerate();
        let mut printed = match self.together {
            true => json!({ "agents": each.map(agent).collect::<Vec<_>>() }),
            false => json!({ "seeds": trained.seeds(0) }),
        };
        if let Some(name) = calibration_of(&self.env) {
            printed["calibration"] = json!(name);
        }
        printed
    }

    /// The environment, with the calibration that the returns depend on.
    fn world(&self) -> String {
        listing::world(&self.env, calibration_of(&self.env))
    }

    /// The files of an agent's learning curve; the name has the agent in it where there are several.
    fn curves(&self, learner: &Learner, agents: usize) -> Result<Option<Curves>, CommandError> {
        let Some(folder) = &self.out else {
            return Ok(None);
        };
        let Learner { at, name, .. } = learner;
        let (env, algo, world) = (&self.env, learner.algorithm.name, self.world());
        let (file, title) = match agents {
            1 => (format!("{env}-{algo}"), format!("{algo} in {world}")),
            _ => (
                format!("{env}-{name}-{algo}"),
                format!("{algo} in {world}, as {name}"),
            ),
        };
        Curves::create(folder, &file, title, *at).map(Some)
    }

    /// The position of the agent that learns.
    fn agent(&self, algorithm: &Algorithm, agents: &[AgentSpace]) -> Result<usize, CommandError> {
        let found = match &self.agent {
            Some(name) => agents.iter().position(|agent| agent.name == *name),
            None => agents
                .iter()
                .position(|agent| algorithm.fits(agent).is_ok()),
        };
        let Some(at) = found else {
            let why = match &self.agent {
                Some(name) => format!("{} has no agent {name:?}", self.env),
                None => format!("{} can act for no agent of {}", algorithm.name, self.env),
            };
            let each: Vec<String> = agents.iter().map(fitting).collect();
            let all = each.join("; ");
            return Err(CommandError::Usage(format!("{why}. Who can learn: {all}")));
        };
        check(algorithm, &agents[at])?;
        Ok(at)
    }

    fn values(&self, algorithm: &Algorithm) -> Values {
        let mut values = preset(algorithm.name, &self.env);
        values.extend(self.set.iter().cloned());
        values
    }

    fn training(&self, learners: &[Learner], agents: &[AgentSpace], seed: u64) -> Training {
        let env = self.env.clone();
        let fixed = |space| Member::Plays(Player::baseline(space));
        let mut members: Vec<Member> = agents.iter().map(fixed).collect();
        for learner in learners {
            members[learner.at] = Member::Learns {
                algorithm: learner.algorithm.name.to_owned(),
                values: self.values(learner.algorithm),
                start: None,
            };
        }
        // What the most demanding one is meant to learn from.
        let copies = learners.iter().map(|learner| learner.algorithm.copies);
        Training {
            world: Arc::new(move || make_world(&env).expect("the parser lets known names pass")),
            members,
            copies: copies.max().unwrap_or(1),
            seed,
            steps: self.steps,
            reports: 100,
            evaluate_every: (self.steps / EVALUATIONS).max(1),
            evaluation_episodes: self.eval_episodes,
        }
    }
}

/// Refuses an algorithm that cannot act for an agent.
fn check(algorithm: &Algorithm, space: &AgentSpace) -> Result<(), CommandError> {
    algorithm.fits(space).map_err(|why| {
        let (algo, fitting) = (algorithm.name, fitting(space));
        CommandError::Usage(format!(
            "{algo} does not fit: {why}. Who can learn: {fitting}"
        ))
    })
}

fn unfit(space: &AgentSpace) -> CommandError {
    CommandError::Usage(format!("no algorithm can act for {}", space.name))
}

/// An agent with the algorithms that can act for it: `policy by dqn, a2c or ppo`.
fn fitting(agent: &AgentSpace) -> String {
    let fit = ALGORITHMS.iter().filter(|a| a.fits(agent).is_ok());
    let names: Vec<&str> = fit.map(|a| a.name).collect();
    let names = match names.split_last() {
        Some((last, [])) => (*last).to_owned(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => "nothing".to_owned(),
    };
    format!("{} by {names}", agent.name)
}

/// A refusal with every hyperparameter at fault.
fn failed(error: &TrainingError) -> CommandError {
    match error {
        TrainingError::Hyperparameters(violations) => {
            let all = violations
                .iter()
                .map(|v| format!("{} {}", v.name, v.problem));
            CommandError::Usage(all.collect::<Vec<_>>().join("; "))
        }
        other => CommandError::Failed(other.to_string()),
    }
}

fn table(trained: &Trained) {
    let number = |n: f64| short(&Value::from((n * 10.0).round() / 10.0));
    let row = |learner: &Learner, seed: Seed| {
        let last = seed.evaluations.last().map_or(f64::NAN, |e| e.mean_return);
        vec![
            learner.name.clone(),
            learner.algorithm.name.to_owned(),
            seed.seed.to_string(),
            number(seed.best_mean_return),
            number(last),
            format!("{:.0}", seed.steps_per_cpu_s),
        ]
    };
    let each = trained.learners.iter().enumerate();
    let rows = each.flat_map(|(at, learner)| {
        let seeds = trained.seeds(at).into_iter();
        seeds.map(move |seed| row(learner, seed))
    });
    let head = [
        "agent",
        "algorithm",
        "seed",
        "best mean return",
        "last mean return",
        "steps per CPU second",
    ];
    output::table(&head, &rows.collect::<Vec<_>>());
}

#[cfg(test)]
mod tests;
