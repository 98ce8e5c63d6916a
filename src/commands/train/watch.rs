//! `tars train watch`: a training run of the mesh, followed to its end.

use crate::{
    commands::{
        CommandError, Global,
        advice::{self, Advice},
        block_on, events,
        listing::{self, id, number, short, text, word},
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

const ADVICE: &[Advice] = &[(
    reason::NOT_FOUND,
    "`tars train watch` without an id follows the newest run",
)];

/// The time over which the steps per second are measured.
const MEASURED: Duration = Duration::from_secs(10);
/// A shorter time says nothing.
const TOO_SHORT: Duration = Duration::from_millis(500);

/// The columns that a report has, and how wide they are. A negative loss of six digits fits.
const COLUMNS: [&str; 9] = [
    "step",
    "return",
    "loss",
    "value loss",
    "entropy",
    "exploration",
    "kl",
    "steps/s",
    "left",
];
const WIDTH: usize = 11;

/// Follow a training run of a mesh until it ends; Ctrl-C stops nothing. Exits with 1 unless it completes.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars train watch\n  tars train watch 019aa0de-8f5e-7c39-a27d-1a1f0b1f2c3d\n  tars train watch --json | jq .progress.mean_return\n\nA lost connection is made again, and the reports go on after the last one."
)]
pub(super) struct Watch {
    /// The run's id, as the request that started it returned; the newest run when left out.
    #[arg(value_parser = id)]
    run_id: Option<Uuid>,
    #[command(flatten)]
    mesh: MeshArg,
    /// Print one JSON object a line.
    #[arg(long)]
    json: bool,
}

impl Watch {
    pub(super) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let mesh = global.mesh(&self.mesh)?;
        let json = self.json;
        let done = block_on(async {
            let mut session = mesh.session().await?;
            let run = self.find(&session.rest()).await?;
            follow(&mut session, run, json).await
        })?;
        done.map_err(|e: CommandError| e.in_json_if(json))
    }

    /// The run as it is now.
    async fn find(&self, rest: &Rest) -> Result<Value, CommandError> {
        if let Some(id) = &self.run_id {
            let answer = rest.get(&format!("{RUNS}/{id}")).await;
            return Ok(answer.map_err(|e| advice::add(e, ADVICE, id))?["run"].take());
        }
        let newest = listing::first(rest, RUNS, "runs", 1).await?;
        let newest = newest.into_iter().next();
        newest.ok_or_else(|| CommandError::Failed("there is no training run yet".to_owned()))
    }
}

async fn follow(session: &mut Session, run: Value, json: bool) -> Result<ExitCode, CommandError> {
    let id = listing::required(&run, "run_id")?;
    let goes_on = format!("`tars train watch {id}`");
    let mut shown = Shown::new(&run, json);
    let mut ended = run;
    let path = format!("{RUNS}/{id}/events");
    let followed = events::follow(session, &path, &goes_on, |item| {
        match json {
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
    if !json {
        say!("{}", describe(&ended));
    }
    Ok(ExitCode::from(u8::from(state(&ended) != "completed")))
}

fn state(run: &Value) -> String {
    word(&run["state"], "TRAINING_STATE_")
}

/// How a run ended, in one line.
fn describe(run: &Value) -> String {
    let mut line = format!(
        "{}: {} of {} steps, {} episodes",
        state(run),
        text(&run["steps_done"]),
        text(&run["steps"]),
        text(&run["episodes_done"]),
    );
    line += &returns(run);
    let error = text(&run["error"]);
    if !error.is_empty() {
        line += &format!("; {error}");
    }
    line
}

/// The mean return of the run's agent, or of each under its name.
fn returns(run: &Value) -> String {
    let members = run["members"].as_array().map_or(&[][..], Vec::as_slice);
    if run["final_return"].is_null() {
        return String::new();
    }
    if members.len() < 2 {
        return format!(", mean return {}", short(&run["final_return"]));
    }
    let of = |member: &Value| {
        let (agent, mean) = (text(&member["agent_id"]), short(&member["final_return"]));
        format!("{agent} {mean}")
    };
    let all: Vec<String> = members.iter().map(of).collect();
    format!(", mean returns: {}", all.join(", "))
}

/// What a person sees of a run: a row for each report, and on a terminal a bar below them.
struct Shown {
    bar: ProgressBar,
    rate: Rate,
    steps: f64,
    headed: bool,
}

impl Shown {
    fn new(run: &Value, quiet: bool) -> Self {
        let steps = number(&run["steps"]).unwrap_or(0.0);
        let seen = number(&run["steps_done"]).unwrap_or(0.0);
        Self {
            bar: Progress::new(quiet).bar("training", steps as u64),
            rate: Rate::after(seen),
            steps,
            headed: false,
        }
    }

    fn item(&mut self, item: &Value) {
        let progress = &item["progress"];
        if !progress.is_object() {
            return;
        }
        let step = number(&progress["step"]).unwrap_or(0.0);
        self.rate.reached(step, Instant::now());
        self.bar.set_position(step as u64);
        let head = !std::mem::replace(&mut self.headed, true);
        let rows = rows(progress, self.steps, self.rate.per_second());
        self.bar.suspend(|| {
            if head {
                say!("{}", line(COLUMNS.map(str::to_uppercase)));
            }
            rows.iter().for_each(|row| say!("{row}"));
        });
    }
}

/// A row; of a run that trains several agents one for each, with its name at the end.
fn rows(progress: &Value, steps: f64, rate: Option<f64>) -> Vec<String> {
    let agents = progress["agents"].as_array();
    let Some(agents) = agents.filter(|agents| !agents.is_empty()) else {
        return vec![line(row(&progress["step"], progress, steps, rate))];
    };
    let named = agents.iter().map(|agent| {
        let cells = row(&progress["step"], agent, steps, rate);
        format!("{}  {}", line(cells), text(&agent["agent_id"]))
    });
    named.collect()
}

/// The cells of one agent.
fn row(reached: &Value, progress: &Value, steps: f64, rate: Option<f64>) -> [String; 9] {
    let step = number(reached).unwrap_or(0.0);
    let left = rate.map(|rate| duration((steps - step).max(0.0) / rate));
    let rate = rate.map(|rate| format!("{rate:.0}"));
    let unknown = || "-".to_owned();
    [
        text(reached),
        short(&progress["mean_return"]),
        short(&progress["loss"]),
        short(&progress["value_loss"]),
        short(&progress["entropy"]),
        short(&progress["epsilon"]),
        short(&progress["kl"]),
        rate.unwrap_or_else(unknown),
        left.unwrap_or_else(unknown),
    ]
}

fn line(cells: [String; 9]) -> String {
    let cells = cells.map(|cell| format!("{cell:>WIDTH$}"));
    cells.join(" ")
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
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_report_is_a_row_under_its_columns() {
        let progress = json!({
            "step": "5000", "mean_return": 21.5, "loss": 0.25, "value_loss": null, "epsilon": 0.5,
        });
        let reached = &progress["step"];
        let cells = row(reached, &progress, 20_000.0, Some(100.0));
        let expected = ["5000", "21.5", "0.25", "-", "-", "0.5", "-", "100", "2m30s"];
        assert_eq!(cells, expected);
        let cells = row(reached, &progress, 20_000.0, None);
        assert_eq!(cells[7..], ["-", "-"], "nothing is made up");
        let lines = [line(COLUMNS.map(str::to_uppercase)), line(cells)];
        assert_eq!(lines[0].len(), lines[1].len());
    }

    #[test]
    fn each_agent_of_a_joint_run_has_a_row_of_its_own() {
        let agent = |name: &str, mean: f64| json!({ "agent_id": name, "mean_return": mean });
        let agents = [agent("policy", 1.5), agent("resource", -2.5)];
        let progress = json!({ "step": "500", "mean_return": 1.5, "agents": agents });
        let rows = rows(&progress, 1000.0, None);
        assert!(rows[0].contains(" 1.5 ") && rows[0].ends_with("  policy"));
        assert!(rows[1].contains(" -2.5 ") && rows[1].ends_with("  resource"));
        assert!(rows.len() == 2 && rows.iter().all(|row| row.trim().starts_with("500 ")));
    }

    #[test]
    fn the_end_of_a_run_is_one_line() {
        let run = |state: &str| {
            json!({
                "state": format!("TRAINING_STATE_{state}"), "steps": "200", "steps_done": "120",
                "episodes_done": "7", "error": "",
            })
        };
        let mut completed = run("COMPLETED");
        completed["final_return"] = json!(12.25);
        let line = "completed: 120 of 200 steps, 7 episodes, mean return 12.25";
        assert_eq!(describe(&completed), line);
        completed["members"] = json!([
            { "agent_id": "policy", "final_return": 12.25 },
            { "agent_id": "resource", "final_return": -3.5 },
        ]);
        let line =
            "completed: 120 of 200 steps, 7 episodes, mean returns: policy 12.25, resource -3.5";
        assert_eq!(describe(&completed), line);
        let mut failed = run("FAILED");
        failed["error"] = json!("it\ndiverged");
        let line = "failed: 120 of 200 steps, 7 episodes; it\\ndiverged";
        assert_eq!(describe(&failed), line);
    }

    #[test]
    fn times_are_in_the_units_that_are_read() {
        for (seconds, shown) in [
            (0.4, "0s"),
            (59.4, "59s"),
            (60.0, "1m00s"),
            (245.0, "4m05s"),
            (7380.0, "2h03m"),
        ] {
            assert_eq!(duration(seconds), shown);
        }
    }

    #[test]
    fn only_steps_of_the_time_that_is_watched_count() {
        let begun = Instant::now();
        let at = |seconds: f64| begun + Duration::from_secs_f64(seconds);
        let mut rate = Rate::after(1000.0);
        for step in [100.0, 500.0, 900.0] {
            rate.reached(step, at(0.0));
        }
        assert_eq!(rate.per_second(), None, "they came all at once");
        rate.reached(1000.0, at(0.0));
        rate.reached(1100.0, at(0.1));
        assert_eq!(rate.per_second(), None, "too short a time");
        rate.reached(1400.0, at(2.0));
        assert_eq!(rate.per_second(), Some(200.0));
        rate.reached(3400.0, at(12.0));
        rate.reached(4400.0, at(22.0));
        assert_eq!(rate.per_second(), Some(100.0), "over the newest time");
        rate.reached(4400.0, at(60.0));
        rate.reached(4400.0, at(80.0));
        assert_eq!(rate.per_second(), None, "it stands still");
    }
}
