//! `tars train watch`: a training run of the mesh, followed to its end.

use crate::{
    commands::{
        CommandError, Global,
        advice::{self, Advice},
        events,
        listing::{self, id, number, text, word},
        mesh::MeshArg,
        progress::Progress,
        session::Session,
    },
    rest::Rest,
};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::Value;
use std::{collections::VecDeque, process::ExitCode, time::Duration};
use tars_proto::reason;
use tokio::time::Instant;
use uuid::Uuid;

const RUNS: &str = "/api/v1/orchestration/training";
const STATE: &str = "/api/v1/orchestration/agents/state";
const HISTORY: &str = "/api/v1/orchestration/metrics/training/nash/visualization";

/// What `tars train watch` and `tars training watch` have below their options.
pub(in crate::commands) const HELP: &str = "Examples:\n  tars train watch\n  tars train watch 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d\n  tars train watch --json | jq .progress.agents[].mean_return\n\nA lost connection is made again, and the reports go on after the last one. EXPLORATION is the chance of a random\naction (dqn) or the deviation of the noise (ddpg); a2c and ppo explore by their entropy.";

const NO_RUN: &str = "there is no training run yet; `tars training start` starts one";

const ADVICE: &[Advice] = &[(
    reason::NOT_FOUND,
    "`tars train watch` without an id follows the newest run",
)];

/// The time over which the steps per second are measured.
const MEASURED: Duration = Duration::from_secs(10);
/// A shorter time says nothing.
const TOO_SHORT: Duration = Duration::from_millis(500);

/// The columns that a report has, and how wide they are; together they fit on 100 characters.
const COLUMNS: [(&str, usize); 10] = [
    ("agent", 10),
    ("step", 8),
    ("return", 9),
    ("loss", 9),
    ("value loss", 10),
    ("entropy", 9),
    ("exploration", 11),
    ("kl", 9),
    ("steps/s", 7),
    ("left", 7),
];
/// The share of a run that a row stands for, unless told otherwise.
const ROWS: f64 = 20.0;
/// How many of the newest measurements of the distance from an equilibrium are looked through for the run's.
const MEASURED_GAMES: usize = 20;

/// Follow a training run of a mesh until it ends; Ctrl-C stops nothing. Exits with 1 unless it completes.
#[derive(Debug, Args)]
#[command(after_help = HELP)]
pub(super) struct Watch {
    #[command(flatten)]
    watched: Watched,
    #[command(flatten)]
    mesh: MeshArg,
}

/// The run that is followed, and how it is shown.
#[derive(Debug, Args)]
pub(in crate::commands) struct Watched {
    /// The run's id, as the request that started it returned; the newest run when left out.
    #[arg(value_parser = id)]
    run_id: Option<Uuid>,
    /// Steps between two rows [default: a twentieth of the run's]; 1 shows every report.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    every: Option<u64>,
    /// Print one JSON object a line, for every report.
    #[arg(long)]
    pub(in crate::commands) json: bool,
}

impl Watch {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let json = self.watched.json;
        global.in_session(&self.mesh, json, async |session| {
            self.watched.follow(session).await
        })
    }
}

impl Watched {
    /// Follows the run to its end.
    pub(in crate::commands) async fn follow(
        self,
        session: &mut Session,
    ) -> Result<ExitCode, CommandError> {
        let run = self.find(&session.rest()).await?;
        follow(session, run, &self).await
    }

    /// The run as it is now.
    async fn find(&self, rest: &Rest) -> Result<Value, CommandError> {
        if let Some(id) = &self.run_id {
            let answer = rest.get(&format!("{RUNS}/{id}")).await;
            return Ok(answer.map_err(|e| advice::add(e, ADVICE, id))?["run"].take());
        }
        let newest = listing::first(rest, RUNS, "runs", 1).await?;
        let newest = newest.into_iter().next();
        newest.ok_or_else(|| CommandError::Failed(NO_RUN.to_owned()))
    }
}

async fn follow(
    session: &mut Session,
    run: Value,
    how: &Watched,
) -> Result<ExitCode, CommandError> {
    let id = listing::required(&run, "run_id")?;
    let goes_on = format!("`tars train watch {id}`");
    let before = match how.json || run["ended_at"].is_string() {
        true => Vec::new(),
        false => returns(&session.rest()).await?,
    };
    let mut shown = Shown::new(&run, how);
    let mut ended = run;
    let path = format!("{RUNS}/{id}/events");
    let followed = events::follow(session, &path, &goes_on, |item| {
        match how.json {
            true => say!("{item}"),
            false => shown.item(item),
        }
        if item["ended"].is_object() {
            ended = item["ended"].clone();
            return false;
        }
        true
    });
    followed.await?;
    shown.bar.finish_and_clear();
    if !how.json {
        say!("{}", describe(&ended));
        let live = live_weights(&session.rest()).await?;
        results(&ended, &before, &live)
            .iter()
            .for_each(|line| say!("{line}"));
        if let Some(line) = distance(&session.rest(), &id).await? {
            say!("{line}");
        }
    }
    Ok(ExitCode::from(u8::from(state(&ended) != "completed")))
}

/// The agents with the returns of the weights that are live.
async fn returns(rest: &Rest) -> Result<Vec<(String, f64)>, CommandError> {
    let agents = rest.get(STATE).await?["agents"].take();
    let agents = agents.as_array().into_iter().flatten();
    let known = |agent: &Value| Some((text(&agent["agent_id"]), number(&agent["last_return"])?));
    // What a bound agent learns is not live when a run ends.
    let unbound = agents.filter(|agent| agent["bound"] != true);
    Ok(unbound.filter_map(known).collect())
}

/// The agents with the versions of the weights that are live.
async fn live_weights(rest: &Rest) -> Result<Vec<(String, Value)>, CommandError> {
    let agents = rest.get(STATE).await?["agents"].take();
    let agents = agents.as_array().into_iter().flatten();
    let live = |agent: &Value| (text(&agent["agent_id"]), agent["weights_version"].clone());
    Ok(agents.map(live).collect())
}

/// How far the agents are from an equilibrium with what the run made, where it was measured.
async fn distance(rest: &Rest, run: &str) -> Result<Option<String>, CommandError> {
    let path = format!("{HISTORY}?limit={MEASURED_GAMES}");
    let history = rest.get(&path).await?["convergence_history"].take();
    let mut measured = history.as_array().into_iter().flatten().rev();
    let found = measured.find(|one| one["run_id"] == run);
    Ok(found.map(|one| {
        let of = |name: &str| number(&one[name]).unwrap_or(f64::NAN);
        format!(
            "  {:<10} {:.4} (95 %: {:.4} to {:.4}), where 0 is an equilibrium",
            "NashConv",
            of("nash_convergence_distance"),
            of("low"),
            of("high")
        )
    }))
}

fn state(run: &Value) -> String {
    word(&run["state"], "TRAINING_STATE_")
}

/// How a run ended.
fn describe(run: &Value) -> String {
    let mut line = format!(
        "{}: {} of {} steps, {} episodes in {}",
        state(run),
        text(&run["steps_done"]),
        text(&run["steps"]),
        text(&run["episodes_done"]),
        listing::world_of(run),
    );
    let error = text(&run["error"]);
    if !error.is_empty() {
        line += &format!("; {error}");
    }
    line
}

/// The mean return of each agent that the run trained: after that of the weights that were live before, where
/// those that the run made are live now, and with what to do about them.
fn results(run: &Value, before: &[(String, f64)], live: &[(String, Value)]) -> Vec<String> {
    let line = |member: &Value| {
        let after = number(&member["final_return"])?;
        let agent = text(&member["agent_id"]);
        let is_live = live.contains(&(agent.clone(), member["weights_version"].clone()));
        let known = before.iter().find(|(id, _)| *id == agent);
        let version = text(&member["weights_version"]);
        Some(match known {
            _ if !is_live => format!(
                "  {agent:<10} mean return {after:.2}; version {version} answers nobody: `tars agents versions {agent}`"
            ),
            Some((_, before)) if after < *before => format!(
                "  {agent:<10} mean return {before:.2} -> {after:.2}; `tars agents rollback {agent}` undoes it"
            ),
            Some((_, before)) => format!("  {agent:<10} mean return {before:.2} -> {after:.2}"),
            None => format!("  {agent:<10} mean return {after:.2}"),
        })
    };
    members(run).filter_map(line).collect()
}

fn members(run: &Value) -> impl Iterator<Item = &Value> {
    run["members"].as_array().into_iter().flatten()
}

/// What a person sees of a run: rows for some of the reports, and on a terminal a bar below them.
struct Shown {
    bar: ProgressBar,
    rate: Rate,
    /// The agents that the run trains, with what they learn by.
    learners: Vec<(String, String)>,
    steps: f64,
    every: f64,
    /// The step from which a report has rows.
    next: f64,
    headed: bool,
}

impl Shown {
    fn new(run: &Value, how: &Watched) -> Self {
        let steps = number(&run["steps"]).unwrap_or(0.0);
        let seen = number(&run["steps_done"]).unwrap_or(0.0);
        let learner = |member: &Value| (text(&member["agent_id"]), text(&member["algorithm"]));
        Self {
            bar: Progress::new(how.json).bar("training", steps as u64),
            rate: Rate::after(seen),
            learners: members(run).map(learner).collect(),
            steps,
            every: how.every.map_or(steps / ROWS, |every| every as f64),
            next: 0.0,
            headed: false,
        }
    }

    /// Whether a report has rows: the first one, the last one, and one of each part of the run.
    fn is_due(&mut self, step: f64) -> bool {
        if step < self.next && step < self.steps {
            return false;
        }
        self.next = step + self.every;
        true
    }

    fn item(&mut self, item: &Value) {
        let progress = &item["progress"];
        if !progress.is_object() {
            return;
        }
        let step = number(&progress["step"]).unwrap_or(0.0);
        self.rate.reached(step, Instant::now());
        self.bar.set_position(step as u64);
        if !self.is_due(step) {
            return;
        }
        let head = !std::mem::replace(&mut self.headed, true);
        let rows = self.rows(progress);
        self.bar.suspend(|| {
            if head {
                say!("{}", line(COLUMNS.map(|(name, _)| name.to_uppercase())));
            }
            rows.iter().for_each(|row| say!("{row}"));
        });
    }
}

impl Shown {
    /// A row for each agent that learns.
    fn rows(&self, progress: &Value) -> Vec<String> {
        let agents = progress["agents"].as_array().into_iter().flatten();
        let row = |(at, agent): (usize, &Value)| {
            let id = text(&agent["agent_id"]);
            let named = self.learners.iter().find(|(known, _)| *known == id);
            let (name, algorithm) = match named.or_else(|| self.learners.get(at)) {
                Some((name, algorithm)) => (name.clone(), algorithm.as_str()),
                None => (id, ""),
            };
            self.row(name, algorithm, &progress["step"], agent)
        };
        agents
            .enumerate()
            .map(|numbered| line(row(numbered)))
            .collect()
    }

    /// The cells of one agent. What an algorithm does not have is left empty: one that learns a distribution
    /// explores by its entropy, and a2c learns from each step once, so that nothing diverges.
    fn row(&self, name: String, algorithm: &str, reached: &Value, of: &Value) -> [String; 10] {
        let step = number(reached).unwrap_or(0.0);
        let rate = self.rate.per_second();
        let left = rate.map(|rate| duration((self.steps - step).max(0.0) / rate));
        let rate = rate.map(|rate| format!("{rate:.0}"));
        let unknown = || "-".to_owned();
        let unless = |absent: bool, value: &Value| match absent {
            true => String::new(),
            false => cell(value),
        };
        [
            name,
            text(reached),
            cell(&of["mean_return"]),
            cell(&of["loss"]),
            cell(&of["value_loss"]),
            unless(["dqn", "ddpg"].contains(&algorithm), &of["entropy"]),
            unless(["a2c", "ppo"].contains(&algorithm), &of["exploration"]),
            unless(["a2c", "dqn", "ddpg"].contains(&algorithm), &of["kl"]),
            rate.unwrap_or_else(unknown),
            left.unwrap_or_else(unknown),
        ]
    }
}

/// A number of nine characters at most; `-` for nothing.
fn cell(value: &Value) -> String {
    let Some(number) = number(value) else {
        return "-".to_owned();
    };
    match number.abs() {
        0.0 => "0".to_owned(),
        small if small < 1e-3 => format!("{number:.1e}"),
        small if small < 1e3 => format!("{number:.3}"),
        large if large < 1e6 => format!("{number:.1}"),
        _ => format!("{number:.2e}"),
    }
}

/// A row: the agent to the left, numbers to the right.
fn line(cells: [String; 10]) -> String {
    let sized = cells.iter().zip(COLUMNS).enumerate();
    let padded = sized.map(|(at, (cell, (_, width)))| match at {
        0 => format!("{cell:<width$}"),
        _ => format!("{cell:>width$}"),
    });
    padded.collect::<Vec<_>>().join(" ")
}

/// Seconds as `59s`, `4m05s`, `2h03m`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.round() as u64;
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

/// The steps per second of a run. Reports from before the watching come all at once, and do not count.
struct Rate {
    after: f64,
    reached: VecDeque<(Instant, f64)>,
}

impl Rate {
    fn after(step: f64) -> Self {
        Self {
            after: step,
            reached: VecDeque::new(),
        }
    }

    fn reached(&mut self, step: f64, at: Instant) {
        if step < self.after {
            return;
        }
        let is_old = |(then, _): &(Instant, f64)| at.duration_since(*then) >= MEASURED;
        // The last old one is where the time begins.
        while self.reached.get(1).is_some_and(is_old) {
            self.reached.pop_front();
        }
        self.reached.push_back((at, step));
    }

    /// `None` until some time has passed.
    fn per_second(&self) -> Option<f64> {
        let ((then, before), (now, reached)) = (self.reached.front()?, self.reached.back()?);
        let passed = now.duration_since(*then);
        let rate = (reached - before) / passed.as_secs_f64();
        (passed >= TOO_SHORT && rate > 0.0).then_some(rate)
    }
}

#[cfg(test)]
mod tests;
