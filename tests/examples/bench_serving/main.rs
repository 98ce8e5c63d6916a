//! Steps are served while what they are decided by changes, and while agents train.
//!
//! The first part reloads hyperparameters and promotes versions of the weights under a steady load of steps:
//! how many calls failed, how many steps were decided by a mix of two versions, and how long steps took,
//! against the same load while nothing changes. The second part measures steps while all four agents train,
//! against the same load while none does. Rounds of both conditions alternate, so that both see the same
//! machine. The client runs on it, too.
//!
//! `aim_is_met` says whether p99 is within [`AIM`] times the baseline's. A missed aim is a figure of the machine
//! as well, and does not fail the benchmark; a failed call or a mix of versions does.

mod changes;
mod load;

use changes::Changes;
use load::{Slice, Stepper, during};
use serde_json::{Value, json};
use std::{path::PathBuf, process::Command, time::Duration};
use tars::rest::Rest;
use tars_tests::{governed::FOUR, process::Up};
use tokio::time::{Instant, sleep};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const AGENTS: &str = "/api/v1/orchestration/agents";
const RUNS: &str = "/api/v1/orchestration/training";
/// The aim of the ratio of p99 to its baseline.
const AIM: f64 = 2.0;
/// More steps than a round has time for.
const ENDLESS: &str = "10000000";

/// How much is measured.
struct Plan {
    rounds: usize,
    /// Reloads in a round, and as many promotions.
    changes: usize,
    /// How long each condition of the second part is measured in a round.
    slice: Duration,
}

impl Plan {
    fn new(is_quick: bool) -> Self {
        match is_quick {
            true => Self {
                rounds: 3,
                changes: 20,
                slice: Duration::from_secs(1),
            },
            false => Self {
                rounds: 10,
                changes: 100,
                slice: Duration::from_secs(4),
            },
        }
    }
}

/// Both conditions of one part.
#[derive(Default)]
struct Compared {
    measured: Slice,
    baseline: Slice,
}

impl Compared {
    fn p99_ratio(&self) -> f64 {
        self.measured.micros(0.99) / self.baseline.micros(0.99)
    }

    fn report(&self, baseline: &str) -> Value {
        let (ours, theirs) = (&self.measured, &self.baseline);
        let p99_ratio = self.p99_ratio();
        json!({
            "baseline": baseline,
            "steps": ours.times.len(),
            "baseline_steps": theirs.times.len(),
            "failed_steps": ours.failures.len() + theirs.failures.len(),
            "p50_us": ours.micros(0.5),
            "baseline_p50_us": theirs.micros(0.5),
            "p99_us": ours.micros(0.99),
            "baseline_p99_us": theirs.micros(0.99),
            "p50_ratio": ours.micros(0.5) / theirs.micros(0.5),
            "p99_ratio": p99_ratio,
            "aim": AIM,
            "aim_is_met": p99_ratio <= AIM,
        })
    }

    /// Whether the aim is met, for people.
    fn verdict(&self, part: &str) -> String {
        let ratio = self.p99_ratio();
        let word = if ratio <= AIM { "met" } else { "missed" };
        format!("{part}: p99 is {ratio:.2} × the baseline's, the aim of {AIM} × is {word}")
    }

    fn first_failure(&self) -> Option<&String> {
        let failures = self.measured.failures.iter();
        failures.chain(&self.baseline.failures).next()
    }
}

async fn start_training(
    rest: &Rest,
    agent: &str,
    steps: &str,
    seed: u64,
) -> Result<String, Failure> {
    let body = json!({ "steps": steps, "seed": seed.to_string() });
    let run = rest.post(&format!("{AGENTS}/{agent}/train"), body).await?;
    Ok(run["run"]["run_id"].as_str().ok_or("no run")?.to_owned())
}

/// Trains an agent; returns once its new weights are live.
pub(crate) async fn train(rest: &Rest, agent: &str, steps: &str, seed: u64) -> Result<(), Failure> {
    let run = start_training(rest, agent, steps, seed).await?;
    let mut ended = Value::Null;
    let events = format!("{RUNS}/{run}/events");
    let follow = rest.follow(&events, |item| {
        ended = item["ended"].clone();
        true
    });
    follow.await?;
    match ended["state"] == "TRAINING_STATE_COMPLETED" {
        true => Ok(()),
        false => Err(format!("{agent} was not trained: {ended}").into()),
    }
}

/// Steps while versions and hyperparameters change, and while they do not.
async fn under_changes(
    rest: &Rest,
    stepper: &Stepper,
    plan: &Plan,
) -> Result<(Compared, Changes), Failure> {
    let mut changes = Changes::prepare(rest, stepper).await?;
    let mut all = Compared::default();
    for round in 1..=plan.rounds {
        let began = Instant::now();
        let (made, changing) = during(stepper, changes.make(rest, plan.changes)).await;
        made?;
        let (_, quiet) = during(stepper, sleep(began.elapsed())).await;
        all.measured.merge(changing);
        all.baseline.merge(quiet);
        eprintln!("changes: round {round} of {}", plan.rounds);
    }
    Ok((all, changes))
}

async fn wait_for(rest: &Rest, run: &str, states: &[&str]) -> Result<Value, Failure> {
    let began = Instant::now();
    loop {
        let state = rest.get(&format!("{RUNS}/{run}")).await?["run"]["state"].take();
        if states.iter().any(|wanted| state == *wanted) {
            return Ok(state);
        }
        if began.elapsed() > Duration::from_secs(60) {
            return Err(format!("run {run} is {state}, and not one of {states:?}").into());
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Starts a training of every agent; returns the runs once as many are running as there are learners for.
async fn start_all(rest: &Rest, learners: usize) -> Result<Vec<String>, Failure> {
    let mut runs = Vec::new();
    for (agent, _) in FOUR {
        runs.push(start_training(rest, agent, ENDLESS, 1).await?);
    }
    for run in runs.iter().take(learners) {
        wait_for(rest, run, &["TRAINING_STATE_RUNNING"]).await?;
    }
    Ok(runs)
}

/// Cancels those that wait first, so that none of them begins.
async fn stop_all(rest: &Rest, runs: &[String]) -> Result<(), Failure> {
    for run in runs.iter().rev() {
        rest.post(&format!("{RUNS}/{run}/cancel"), json!({}))
            .await?;
    }
    for run in runs {
        wait_for(rest, run, &["TRAINING_STATE_CANCELLED"]).await?;
    }
    Ok(())
}

/// Steps while the agents train, and while they do not; which comes first alternates.
async fn under_training(
    rest: &Rest,
    stepper: &Stepper,
    plan: &Plan,
    learners: usize,
) -> Result<Compared, Failure> {
    let mut all = Compared::default();
    for round in 1..=plan.rounds {
        let idle_first = round % 2 == 0;
        if idle_first {
            all.baseline
                .merge(during(stepper, sleep(plan.slice)).await.1);
        }
        let runs = start_all(rest, learners).await?;
        all.measured
            .merge(during(stepper, sleep(plan.slice)).await.1);
        stop_all(rest, &runs).await?;
        if !idle_first {
            all.baseline
                .merge(during(stepper, sleep(plan.slice)).await.1);
        }
        eprintln!("training: round {round} of {}", plan.rounds);
    }
    Ok(all)
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    let plan = Plan::new(has("--quick"));
    let binary = PathBuf::from(std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?);
    let data = tempfile::tempdir()?;
    let learners = std::thread::available_parallelism()?.get();
    let mesh = Up::new(Command::new(binary), data.path())
        .unlimited()
        .env("TARS__ORCHESTRATION__ENVIRONMENT", "mesh")
        .env("TARS__ORCHESTRATION__LEARNERS", &learners.to_string())
        .env("TARS__CREDENTIALS__ACCESS_TOKEN_SECONDS", "86400")
        .env("TARS__LIMITS__FLOOD_PER_SECOND", "1000000")
        .start();
    let rest = mesh.admin().await;
    let stepper = Stepper::connect(&mesh).await?;
    let (changing, changes) = under_changes(&rest, &stepper, &plan).await?;
    let mixed = changes.mixed(&changing.measured) + changes.mixed(&changing.baseline);
    let training = under_training(&rest, &stepper, &plan, learners).await?;
    let mut report = json!({
        "bench": "serving",
        "rounds": plan.rounds,
        "changes": changing.report("the same steps while nothing changes"),
        "training": training.report("the same steps while no agent trains"),
    });
    report["changes"]["reloads"] = changes.reloads.into();
    report["changes"]["promotions"] = changes.promotions.into();
    report["changes"]["failed"] = changes.failures.len().into();
    report["changes"]["mixed_steps"] = mixed.into();
    report["training"]["learners"] = learners.into();
    match has("--json") {
        true => println!("{report}"),
        false => println!("{report:#}"),
    }
    let parts = [("changes", &changing), ("training", &training)];
    for (part, compared) in parts {
        eprintln!("{}", compared.verdict(part));
    }
    let failures = [
        changing.first_failure(),
        training.first_failure(),
        changes.failures.first(),
    ];
    match failures.into_iter().flatten().next() {
        Some(failure) => Err(format!("a call failed: {failure}").into()),
        None if mixed > 0 => Err("steps were decided by a mix of versions".into()),
        None => Ok(()),
    }
}
