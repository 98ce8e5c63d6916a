//! `tars train`: an algorithm learns in a built-in environment, in this process and without a mesh. Its
//! subcommands are about the training runs of a mesh.

mod chart;
mod curves;
pub(super) mod watch;

use super::{
    CommandError, Global,
    listing::{self, short},
    output,
    progress::Progress,
};
use clap::{Args, Subcommand, builder::PossibleValuesParser};
use curves::{Curves, Record};
use indicatif::ProgressBar;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::{Value, json};
use std::{path::PathBuf, process::ExitCode, sync::Arc, time::Duration};
use tars_learn::{
    algorithm::{ALGORITHMS, Algorithm, find},
    hyper::{self, Values},
    presets::preset,
    training::{
        Command as Next, Control, Evaluation, Member, Player, Progress as Report, Training,
        TrainingError,
    },
};
use tars_worlds::{AgentSpace, calibration_of, make_world, world_names};

const NOTHING: &str = "give --env, --algo and --steps, or a subcommand; see `tars train --help`";

/// How many evaluations are spread evenly over the steps, unless told otherwise.
const EVALUATIONS: u64 = 15;

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = "Examples:\n  tars train --env cartpole --algo ppo --steps 100000 --seeds 5\n  tars train --env pendulum --algo ddpg --steps 30000 --json\n  tars train --env cartpole --algo dqn --steps 150000 --seeds 5 --out curves\n  tars train --env mesh --agent consensus --algo a2c --steps 200000\n  tars train watch\n\nHyperparameters that are known to learn an environment are used where there are some; --set replaces them.\nIn an environment with several agents the others take the first of their actions; those of `mesh` follow rules:\naimd, majority_quorum, static_quotas and target_tracking."
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
    /// The algorithm.
    #[arg(long, value_name = "ALGO", value_parser = PossibleValuesParser::new(ALGORITHMS.iter().map(|a| a.name)))]
    algo: String,
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

/// What one seed came to.
#[derive(Debug, Serialize)]
struct Seed {
    seed: u64,
    best_mean_return: f64,
    evaluations: Vec<Point>,
    steps_per_cpu_s: f64,
    #[serde(skip)]
    records: Vec<Record>,
}

/// A point of a learning curve.
#[derive(Debug, Serialize)]
struct Point {
    steps: u64,
    mean_return: f64,
}

impl Seed {
    fn measured(&self) -> curves::Seed<'_> {
        curves::Seed {
            seed: self.seed,
            records: &self.records,
        }
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
        let json = self.json;
        let trained = self.train();
        let seeds = trained.map_err(|e| e.in_json_if(json))?;
        if json {
            say!("{:#}", printed(&seeds, calibration_of(&self.env)));
        } else {
            table(&seeds);
            say!("in {}", self.world());
        }
        Ok(ExitCode::SUCCESS)
    }

    fn train(&self) -> Result<Vec<Seed>, CommandError> {
        let known = find(&self.algo).zip(make_world(&self.env));
        let (algorithm, world) = known.expect("the parser lets known names pass");
        let agents = &world.spec().agents;
        let agent = self.agent(algorithm, agents)?;
        let fixed = |space| Member::Plays(Player::baseline(space));
        let mut members: Vec<Member> = agents.iter().map(fixed).collect();
        members[agent] = Member::Learns {
            algorithm: self.algo.clone(),
            values: self.values(),
            start: None,
        };
        let progress = Progress::new(self.json);
        if agents.len() > 1 && self.agent.is_none() {
            let (algo, name, env) = (&self.algo, &agents[agent].name, self.world());
            progress.done(&format!(
                "{algo} learns as {name} in {env}; --agent names another"
            ));
        }
        let curves = self.curves(agent, agents)?;
        let mut trained = Vec::new();
        for seed in (0..self.seeds).map(|n| self.first_seed.wrapping_add(n)) {
            let training = self.training(algorithm, members.clone(), seed);
            trained.push(train_seed(&training, agent, &progress).map_err(|e| failed(&e))?);
            if let Some(curves) = &curves {
                curves.write(&trained.iter().map(Seed::measured).collect::<Vec<_>>())?;
            }
        }
        if let Some(curves) = &curves {
            progress.done(&curves.describe());
        }
        Ok(trained)
    }

    /// The environment, with the calibration that the returns depend on.
    fn world(&self) -> String {
        listing::world(&self.env, calibration_of(&self.env))
    }

    /// The files of the learning curve; the name has the agent in it where there are several.
    fn curves(&self, agent: usize, agents: &[AgentSpace]) -> Result<Option<Curves>, CommandError> {
        let Some(folder) = &self.out else {
            return Ok(None);
        };
        let (env, algo, agent_name) = (&self.env, &self.algo, &agents[agent].name);
        let world = self.world();
        let (name, title) = match agents {
            [_] => (format!("{env}-{algo}"), format!("{algo} in {world}")),
            _ => (
                format!("{env}-{agent_name}-{algo}"),
                format!("{algo} in {world}, as {agent_name}"),
            ),
        };
        Curves::create(folder, &name, title, agent).map(Some)
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
                None => format!("{} can act for no agent of {}", self.algo, self.env),
            };
            let each: Vec<String> = agents.iter().map(fitting).collect();
            let all = each.join("; ");
            return Err(CommandError::Usage(format!("{why}. Who can learn: {all}")));
        };
        algorithm.fits(&agents[at]).map_err(|why| {
            let fitting = fitting(&agents[at]);
            CommandError::Usage(format!(
                "{} does not fit: {why}. Who can learn: {fitting}",
                self.algo
            ))
        })?;
        Ok(at)
    }

    fn values(&self) -> Values {
        let mut values = preset(&self.algo, &self.env);
        values.extend(self.set.iter().cloned());
        values
    }

    fn training(&self, algorithm: &Algorithm, members: Vec<Member>, seed: u64) -> Training {
        let env = self.env.clone();
        Training {
            world: Arc::new(move || make_world(&env).expect("the parser lets known names pass")),
            members,
            copies: algorithm.copies,
            seed,
            steps: self.steps,
            reports: 100,
            evaluate_every: (self.steps / EVALUATIONS).max(1),
            evaluation_episodes: self.eval_episodes,
        }
    }
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

fn train_seed(
    training: &Training,
    agent: usize,
    progress: &Progress,
) -> Result<Seed, TrainingError> {
    let mut watched = Watched {
        bar: progress.bar("training", training.steps),
        watch: CpuWatch::default(),
        records: Vec::new(),
    };
    let outcome = training.execute(None, &mut watched)?;
    let outcome = outcome.expect("nobody stops it");
    watched.bar.finish_and_clear();
    let evaluations = outcome.evaluations.iter().map(|e| Point {
        steps: e.step,
        mean_return: e.mean(agent),
    });
    Ok(Seed {
        seed: training.seed,
        best_mean_return: outcome.learned[0].best_mean_return,
        evaluations: evaluations.collect(),
        steps_per_cpu_s: watched.watch.rate(),
        records: watched.records,
    })
}

/// Moves the bar, measures the CPU time of learning, and keeps what is reported.
struct Watched {
    bar: ProgressBar,
    watch: CpuWatch,
    records: Vec<Record>,
}

impl Control for Watched {
    fn report(&mut self, report: Report) {
        self.bar.set_position(report.step);
        self.records.push(Record::Training(report));
    }

    fn poll(&mut self, step: u64) -> Next {
        self.watch.step(step, cpu_time());
        Next::Continue
    }

    fn evaluated(&mut self, evaluation: &Evaluation) {
        self.watch.interrupt();
        self.records.push(Record::Evaluation(evaluation.clone()));
    }
}

/// The CPU time between steps, without that of evaluations.
#[derive(Debug, Default)]
struct CpuWatch {
    last: Option<(u64, Duration)>,
    steps: u64,
    spent: Duration,
}

impl CpuWatch {
    fn step(&mut self, step: u64, now: Duration) {
        if let Some((before, then)) = self.last {
            self.steps += step - before;
            self.spent += now.saturating_sub(then);
        }
        self.last = Some((step, now));
    }

    /// What lies between the last step and the next one does not count.
    fn interrupt(&mut self) {
        self.last = None;
    }

    /// Steps a second; 0 where nothing was measured.
    fn rate(&self) -> f64 {
        match self.spent.as_secs_f64() {
            0.0 => 0.0,
            seconds => self.steps as f64 / seconds,
        }
    }
}

/// The CPU time of this thread.
fn cpu_time() -> Duration {
    let at = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(at.tv_sec).unwrap_or(0),
        u32::try_from(at.tv_nsec).unwrap_or(0),
    )
}

/// What is printed as JSON: the seeds, and the calibration that their returns depend on, where there is one.
fn printed(seeds: &[Seed], calibration: Option<&str>) -> Value {
    let mut printed = json!({ "seeds": seeds });
    if let Some(name) = calibration {
        printed["calibration"] = json!(name);
    }
    printed
}

fn table(seeds: &[Seed]) {
    let row = |seed: &Seed| {
        let last = seed.evaluations.last().map_or(f64::NAN, |e| e.mean_return);
        let number = |n: f64| short(&Value::from((n * 10.0).round() / 10.0));
        vec![
            seed.seed.to_string(),
            number(seed.best_mean_return),
            number(last),
            format!("{:.0}", seed.steps_per_cpu_s),
        ]
    };
    let rows: Vec<Vec<String>> = seeds.iter().map(row).collect();
    output::table(
        &["seed", "best return", "last return", "steps per CPU second"],
        &rows,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        train: Train,
    }

    fn train(args: &str) -> Result<Vec<Seed>, CommandError> {
        let line = format!("train --eval-episodes 2 {args}");
        let line = Line::parse_from(line.split(' '));
        line.train.local.expect("it has no subcommand").train()
    }

    #[test]
    fn each_algorithm_trains_with_several_seeds_that_replay() {
        for algorithm in ALGORITHMS {
            let env = match algorithm.name {
                "ddpg" => "pendulum",
                _ => "cartpole",
            };
            let args = format!(
                "--env {env} --algo {} --steps 600 --seeds 2",
                algorithm.name
            );
            let (one, two) = (train(&args).unwrap(), train(&args).unwrap());
            assert_eq!((one.len(), one[1].seed), (2, 2));
            assert!(one[0].evaluations.len() >= 2 && one[0].steps_per_cpu_s > 0.0);
            for (a, b) in one.iter().zip(&two) {
                assert_eq!(a.best_mean_return, b.best_mean_return);
            }
        }
    }

    #[test]
    fn the_learning_curve_is_written_with_every_evaluation_of_every_seed() {
        let folder = tempfile::tempdir().unwrap();
        let (inner, path) = (folder.path().join("new"), folder.path().display());
        let args = format!("--steps 600 --seeds 2 --out {path}/new");
        let seeds = train(&format!("--env cartpole --algo a2c {args}")).unwrap();
        let csv = std::fs::read_to_string(inner.join("cartpole-a2c.csv")).unwrap();
        for (seed, point) in seeds
            .iter()
            .flat_map(|s| s.evaluations.iter().map(|e| (s.seed, e)))
        {
            let row = format!(
                "\n{seed},{},evaluation,2,{},",
                point.steps, point.mean_return
            );
            assert!(csv.contains(&row), "{row}");
        }
        assert!(csv.contains(",training,"));
        let svg = std::fs::read_to_string(inner.join("cartpole-a2c.svg")).unwrap();
        let dots = svg.matches("<circle").count();
        assert_eq!(dots, seeds[0].evaluations.len());
        train(&format!(
            "--env mesh --algo ppo --agent ethical --steps 64 --out {path}"
        ))
        .unwrap();
        assert!(folder.path().join("mesh-ethical-ppo.svg").exists());
        train("--env mesh --algo ppo --agent ethical --steps 64 --out /dev/null/x").unwrap_err();
    }

    #[test]
    fn an_agent_of_several_is_found_by_its_name_or_by_what_it_does() {
        let one = |args: &str| train(&format!("--env mesh --steps 64 {args}"));
        assert!(one("--algo ddpg").is_ok(), "there is one continuous agent");
        assert!(one("--algo a2c --agent consensus").is_ok());
        let nobody = one("--algo a2c --agent nobody").unwrap_err().to_string();
        assert!(nobody.contains("consensus"), "{nobody}");
        let wrong = |args: &str| match train(args).unwrap_err() {
            CommandError::Usage(text) => text,
            other => panic!("it is a mistake of the caller: {other}"),
        };
        let discrete = wrong("--env cartpole --algo ddpg --steps 10");
        let fitting = discrete.split_once("agent by ").expect(&discrete).1;
        let names = fitting.split([',', ' ']).filter(|word| !word.is_empty());
        let mut names: Vec<&str> = names.filter(|word| *word != "or").collect();
        names.sort_unstable();
        assert_eq!(names, ["a2c", "dqn", "ppo"]);
        let unfit = wrong("--env mesh --algo dqn --agent resource --steps 10");
        assert!(unfit.ends_with("resource by a2c, ddpg or ppo"), "{unfit}");
    }

    #[test]
    fn what_is_printed_names_the_calibration_of_a_world_that_has_one() {
        assert_eq!(printed(&[], None), json!({ "seeds": [] }));
        let of_mesh = json!({ "seeds": [], "calibration": "shipped" });
        assert_eq!(printed(&[], calibration_of("mesh")), of_mesh);
    }

    #[test]
    fn hyperparameters_are_replaced_or_refused_by_name() {
        let base = "--env cartpole --algo dqn --steps 64";
        assert!(train(&format!("{base} --set gamma=0.9 --set double_dqn=false")).is_ok());
        let refused = train(&format!("{base} --set gamma=7 --set nothing=1")).unwrap_err();
        let text = refused.to_string();
        assert!(text.contains("gamma") && text.contains("nothing"), "{text}");
        for wrong in ["gamma", "gamma=", "gamma=x", "gamma=nan"] {
            assert!(assignment(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn evaluations_do_not_count_as_learning() {
        let at = Duration::from_secs;
        let mut watch = CpuWatch::default();
        assert_eq!(watch.rate(), 0.0);
        for (step, now) in [(0, 10), (8, 12), (16, 14)] {
            watch.step(step, at(now));
        }
        watch.interrupt();
        for (step, now) in [(24, 100), (32, 102)] {
            watch.step(step, at(now));
        }
        assert_eq!((watch.steps, watch.spent), (24, at(6)));
    }
}
