//! `tars train watch`: a training run of the mesh, followed to its end.

use crate::{
    commands::{
        CommandError, Global,
        advice::{self, Advice},
        causes, events,
        listing::{self, id, number, text, word},
        mesh::MeshArg,
        plain,
        progress::Progress,
        session::Session,
    },
    rest::Rest,
};
use clap::Args;
use indicatif::ProgressBar;
use serde_json::Value;
use std::{process::ExitCode, time::Duration};
use tars_proto::reason;
use tokio::{
    signal::ctrl_c,
    time::{Instant, sleep},
};
use uuid::Uuid;

const RUNS: &str = "/api/v1/orchestration/training";
const STATE: &str = "/api/v1/orchestration/agents/state";
const HISTORY: &str = "/api/v1/orchestration/metrics/training/nash/visualization";

/// What `tars train watch` and `tars training watch` have below their options.
pub(in crate::commands) const HELP: &str = "Examples:\n  tars train watch\n  tars train watch 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d\n  tars train watch --json | jq .progress.agents[].mean_return\n\nA lost connection is made again, and the reports go on after the last one. EXPLORATION is the chance of a random\naction or the deviation of the noise, of an agent that does not explore by its ENTROPY. The last report waits a few\nseconds for how far the agents are from an equilibrium then; with --json it has that as `nash_distance`.";

const NO_RUN: &str = "there is no training run yet; `tars training start` starts one";

const ADVICE: &[Advice] = &[(
    reason::NOT_FOUND,
    "`tars train watch` without an id follows the newest run",
)];

/// The columns that a report has, and how wide they are; together they fit on 100 characters.
const COLUMNS: [(&str, usize); 10] = [
    ("agent", 10),
    ("step", 8),
    ("mean return", 11),
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
/// How long it is waited for, and how often it is looked for: it is measured after the weights have become live.
const WAIT: Duration = Duration::from_secs(8);
const LOOK: Duration = Duration::from_millis(500);

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
    let (mut last, mut ended) = (Value::Null, run);
    // Each line of JSON is a report.
    let path = format!("{RUNS}/{id}/events?with_state={}", !how.json);
    let followed = events::follow(session, &path, &goes_on, |item| {
        if item["ended"].is_object() {
            (last, ended) = (item.clone(), item["ended"].clone());
            return false;
        }
        match how.json {
            true => say!("{item}"),
            false if item["run"].is_object() => shown.state(&item["run"]),
            false => shown.item(item),
        }
        true
    });
    followed.await?;
    shown.bar.finish_and_clear();
    let rest = session.rest();
    let live = live_weights(&rest).await?;
    match how.json {
        true => {
            last["nash_distance"] = measured(&rest, &ended, &live).await?.unwrap_or_default();
            say!("{last}");
        }
        false => {
            say!("{}", describe(&ended));
            results(&ended, &before, &live)
                .iter()
                .for_each(|line| say!("{line}"));
            if let Some(found) = measured(&rest, &ended, &live).await? {
                say!("{}", distance(&found));
            }
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

/// How far the agents are from an equilibrium with what the run made; `None` where it is not measured. It is waited for
/// where the run has changed what is live.
async fn measured(
    rest: &Rest,
    run: &Value,
    live: &[(String, Value)],
) -> Result<Option<Value>, CommandError> {
    let id = listing::required(run, "run_id")?;
    let look = async || point(rest, &id).await;
    let found = look().await?;
    if found.is_some() || !members(run).any(|member| is_live(member, live)) {
        return Ok(found);
    }
    let seconds = WAIT.as_secs();
    note!("waiting up to {seconds} s for the distance from an equilibrium, measured after a run");
    let found = tokio::select! {
        found = wait_for(look) => found?,
        interrupted = ctrl_c() => {
            interrupted.map_err(CommandError::Runtime)?;
            None
        }
    };
    if found.is_none() {
        note!(
            "not measured yet: that is done once a minute at most; `tars sessions nash` measures it now"
        );
    }
    Ok(found)
}

/// Looks for something until it is there, or the time is over.
async fn wait_for<E>(
    mut look: impl AsyncFnMut() -> Result<Option<Value>, E>,
) -> Result<Option<Value>, E> {
    let until = Instant::now() + WAIT;
    while Instant::now() < until {
        sleep(LOOK).await;
        if let Some(found) = look().await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// The measurement after a run, if there is one.
async fn point(rest: &Rest, run: &str) -> Result<Option<Value>, CommandError> {
    let path = format!("{HISTORY}?limit={MEASURED_GAMES}");
    let mut history = rest.get(&path).await?["convergence_history"].take();
    let points = history.as_array_mut().into_iter().flatten().rev();
    let found = points.into_iter().find(|one| one["run_id"] == run);
    Ok(found.map(Value::take))
}

/// A measured distance on a line.
fn distance(measured: &Value) -> String {
    let of = |name: &str| number(&measured[name]).unwrap_or(f64::NAN);
    format!(
        "  {:<10} {:.4} (95 %: {:.4} to {:.4}), where 0 is an equilibrium",
        "NashConv",
        of("nash_convergence_distance"),
        of("low"),
        of("high")
    )
}

fn state(run: &Value) -> String {
    word(&run["state"], "TRAINING_STATE_")
}

/// What is to be told of a run in which no reports come, or come again after it has rested.
fn standstill(run: &Value, rested: bool) -> Option<String> {
    let id = text(&run["run_id"]);
    match state(run).as_str() {
        "paused" => Some(format!(
            "the run is paused after {} of {} steps: `tars training resume {id}` goes on, `tars training cancel {id}` ends it",
            text(&run["steps_done"]),
            text(&run["steps"]),
        )),
        "queued" => Some(match number(&run["queue_position"]) {
            Some(at) => {
                format!("the run waits for a learner, as number {at} of those that wait here")
            }
            None => "the run waits for a learner".to_owned(),
        }),
        "running" if rested => Some("the run goes on".to_owned()),
        _ => None,
    }
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
        line += &format!("; {}", plain::text(&error));
    }
    if let Some((_, helps)) = causes::of(run) {
        line += &format!("; {helps}");
    }
    line
}

/// The mean return of each agent that the run trained: after that of the weights that were live before, where
/// those that the run made are live now, and with what to do about them.
fn results(run: &Value, before: &[(String, f64)], live: &[(String, Value)]) -> Vec<String> {
    let line = |member: &Value| {
        let after = number(&member["final_return"])?;
        let agent = text(&member["agent_id"]);
        let is_live = is_live(member, live);
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

/// Whether what a run made of an agent is live.
fn is_live(member: &Value, live: &[(String, Value)]) -> bool {
    let made = &member["weights_version"];
    !made.is_null() && live.contains(&(text(&member["agent_id"]), made.clone()))
}

fn members(run: &Value) -> impl Iterator<Item = &Value> {
    run["members"].as_array().into_iter().flatten()
}

/// What a person sees of a run: rows for some of the reports, and on a terminal a bar below them.
struct Shown {
    bar: ProgressBar,
    /// The agents that the run trains.
    learners: Vec<String>,
    steps: f64,
    every: f64,
    /// The step from which a report has rows.
    next: f64,
    headed: bool,
    /// Whether the last state that was told is one in which no reports come.
    rests: bool,
}

impl Shown {
    fn new(run: &Value, how: &Watched) -> Self {
        let steps = number(&run["steps"]).unwrap_or(0.0);
        let learner = |member: &Value| text(&member["agent_id"]);
        Self {
            bar: Progress::new(how.json).bar("training", steps as u64),
            learners: members(run).map(learner).collect(),
            steps,
            every: how.every.map_or(steps / ROWS, |every| every as f64),
            next: 0.0,
            headed: false,
            rests: false,
        }
    }

    /// Tells why no reports come, and when they come again.
    fn state(&mut self, run: &Value) {
        let rested = self.rests;
        // Who is resumed waits for a learner first.
        self.rests = match state(run).as_str() {
            "pausing" | "paused" => true,
            "queued" => rested,
            _ => false,
        };
        if let Some(told) = standstill(run, rested) {
            self.bar.suspend(|| note!("{told}"));
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
            let listed = id.is_empty().then(|| self.learners.get(at).cloned());
            self.row(listed.flatten().unwrap_or(id), progress, agent)
        };
        agents
            .enumerate()
            .map(|numbered| line(row(numbered)))
            .collect()
    }

    /// The cells of one agent. What was not measured is left empty, and so is the exploration of an agent that
    /// explores by its entropy, which has a column.
    fn row(&self, name: String, progress: &Value, of: &Value) -> [String; 10] {
        let step = number(&progress["step"]).unwrap_or(0.0);
        let rate = number(&progress["rate"]).filter(|rate| *rate > 0.0);
        let left = rate.map(|rate| duration((self.steps - step).max(0.0) / rate));
        let rate = rate.map(|rate| format!("{rate:.0}"));
        let exploration = match of["entropy"].is_null() {
            true => cell(&of["exploration"]),
            false => String::new(),
        };
        [
            name,
            text(&progress["step"]),
            cell(&of["mean_return"]),
            cell(&of["loss"]),
            cell(&of["value_loss"]),
            cell(&of["entropy"]),
            exploration,
            cell(&of["kl"]),
            rate.unwrap_or_default(),
            left.unwrap_or_default(),
        ]
    }
}

/// A number of nine characters at most; empty for nothing.
fn cell(value: &Value) -> String {
    let Some(number) = number(value) else {
        return String::new();
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

#[cfg(test)]
mod tests;
