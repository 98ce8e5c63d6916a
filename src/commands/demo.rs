//! `tars demo`: the main job on a fresh mesh, through the front door: REST, logins, four eyes.

use super::{
    CommandError, Global, block_on, init_log,
    up::{Addresses, Signals, announce},
};
use crate::{
    app::{Mesh, Ready, StartError},
    rest::Rest,
};
use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use rand::RngExt;
use serde::Serialize;
use serde_json::{Value, json};
use std::{process::ExitCode, time::Duration};
use tars_runtime::{
    config::{Config, Listen},
    trace::{Kind, Tracer},
};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars demo                    run the main job, then keep serving\n  tars demo --quick --exit     the short form, and leave\n  tars demo --exit --json      one JSON object on standard output\n\nExits with 1 when the job did not truly succeed."
)]
pub(crate) struct Demo {
    /// Fewer trials, fewer steps, five seeds: under a minute.
    #[arg(long)]
    quick: bool,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
    /// Leave when done, instead of serving on.
    #[arg(long)]
    exit: bool,
    /// Trials of the search.
    #[arg(long)]
    trials: Option<u32>,
    /// Environment steps of each training run.
    #[arg(long)]
    steps: Option<u64>,
    /// Seed of the search.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    addresses: Addresses,
}

/// How much work the job is.
#[derive(Debug, Clone, Copy)]
struct Size {
    trials: u32,
    steps: u64,
    seeds: u32,
}

#[derive(Debug, Serialize)]
struct Report {
    baseline_return: f64,
    best_return: f64,
    improvement_low: f64,
    improvement_high: f64,
    seeds: usize,
    trials: u64,
    proposal_state: String,
    version_before: u64,
    version_after: u64,
    verified: bool,
    trace_id: String,
    #[serde(skip)]
    changes: Vec<(String, String, String)>,
}

impl Demo {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        // A fresh data directory, unless told otherwise; it goes when the command ends.
        let fresh = match &global.data_dir {
            Some(_) => None,
            None => Some(tempfile::tempdir().map_err(CommandError::Runtime)?),
        };
        let mut config = global.load(self.addresses.flags())?;
        if let Some(dir) = &fresh {
            config.data.dir = dir.path().to_owned();
        }
        if self.addresses.is_empty() {
            config.listen = Listen::free();
        }
        if global.log_level.is_none() {
            config.log.level = "warn".to_owned();
        }
        init_log(&config)?;
        let code = block_on(self.serve(config))?;
        if let Some(dir) = fresh {
            dir.close().map_err(CommandError::Runtime)?;
        }
        code
    }

    fn size(&self) -> Size {
        let base = if self.quick {
            Size {
                trials: 14,
                steps: 8_000,
                seeds: 5,
            }
        } else {
            Size {
                trials: 30,
                steps: 20_000,
                seeds: 8,
            }
        };
        Size {
            trials: self.trials.unwrap_or(base.trials),
            steps: self.steps.unwrap_or(base.steps),
            ..base
        }
    }

    async fn serve(self, config: Config) -> Result<ExitCode, CommandError> {
        let mut signals = Signals::new()?;
        let own = Ready::default_path(&config.data.dir);
        let mesh = Mesh::start(config).await?;
        mesh.ready
            .save(&own)
            .map_err(|e| CommandError::file(&own, e))?;
        let tracer = mesh
            .process()
            .exporting("demo")
            .map_err(StartError::Tracer)?;
        let outcome = tokio::select! {
            outcome = self.job(&mesh.ready, &tracer) => outcome,
            () = signals.wait() => Err(CommandError::Failed("stopped".to_owned())),
        };
        if tokio::task::spawn_blocking(move || tracer.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("the tracer's shutdown failed");
        }
        let good = match &outcome {
            Ok(report) => {
                self.print(report);
                report.verified
            }
            Err(_) => false,
        };
        if good && !self.exit {
            announce(&mesh.ready);
            note!("Serving on; Ctrl-C ends it.");
            signals.wait().await;
        }
        mesh.stop().await;
        outcome?;
        Ok(if good {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    async fn job(&self, ready: &Ready, tracer: &Tracer) -> Result<Report, CommandError> {
        let size = self.size();
        // All calls are under one span, which ends with the job.
        let span = tracer.start("demo", Kind::Internal, None);
        let trace_id = span.context().trace_id_hex();
        let gateway = Rest::new(&ready.gateway).in_trace(&span.context().to_header());
        let steps = Steps::new(self.json);

        let password = std::fs::read_to_string(&ready.admin_password_file)
            .map_err(|e| CommandError::file(&ready.admin_password_file, e))?;
        let admin = gateway.login(&ready.admin_user, &password).await?;
        let name = format!("demo-{:08x}", rand::random::<u32>());
        let developer_password = random_password();
        let body =
            json!({ "username": name, "password": developer_password, "roles": ["developer"] });
        admin.post("/admin/users", body).await?;
        let developer = gateway.login(&name, &developer_password).await?;
        steps.done(&format!(
            "logged in as {} and, as a new developer, {name}",
            ready.admin_user
        ));

        let job = self
            .govern(&admin, &developer, size, &steps, trace_id)
            .await;
        // The developer was made for this job only.
        let disabled = admin
            .post(&format!("/admin/users/{name}/disable"), json!({}))
            .await;
        let report = job?;
        disabled?;
        Ok(report)
    }

    async fn govern(
        &self,
        admin: &Rest,
        developer: &Rest,
        size: Size,
        steps: &Steps,
        trace_id: String,
    ) -> Result<Report, CommandError> {
        let agent = "/api/v1/orchestration/agents/policy";
        let before = developer.get(agent).await?["agent"].clone();
        let trained = train(developer, size, self.seed, steps).await?;
        steps.done(&format!(
            "trained the live agent as it is: return {trained:.1}"
        ));

        let body = json!({
            "agent_id": "policy", "n_trials": size.trials, "steps": size.steps.to_string(), "seed": self.seed.to_string(),
        });
        let study = text(
            &developer.post("/api/v1/optimize", body).await?,
            "optimization_id",
        )?;
        let best = search(developer, &study, size, steps).await?;
        steps.done(&format!(
            "searched {} trials: best return {best:.1}",
            size.trials
        ));

        let body = json!({ "study_id": study, "verification_seeds": size.seeds, "note": "demo" });
        let proposal = developer.post("/api/v1/sync/propose", body).await?["proposal"].clone();
        let update = text(&proposal, "update_id")?;
        steps.done(&format!("proposed {update}"));
        let assessed = assessment(admin, &update, steps).await?;
        steps.done(&format!("assessed on seeds of its own: {assessed}"));
        let own = developer
            .post("/api/v1/sync/approve", json!({ "update_id": update }))
            .await;
        if own.is_ok() {
            return Err(CommandError::Failed(
                "a developer could approve its own proposal".to_owned(),
            ));
        }
        let body = json!({ "update_id": update, "reason": "measured improvement" });
        admin.post("/api/v1/sync/approve", body).await?;
        steps.done("approved as admin; the developer's own attempt was refused");

        admin
            .post(&format!("/api/v1/sync/apply/{update}"), json!({}))
            .await?;
        let applied = apply(admin, &update, steps).await?;
        let after = admin.get(agent).await?["agent"].clone();
        report(&before, &after, &applied, size, trace_id)
    }

    fn print(&self, report: &Report) {
        if self.json {
            say!("{}", serde_json::to_string(report).unwrap_or_default());
            return;
        }
        say!("");
        say!("{:<16} {:>12} {:>12}", "HYPERPARAMETER", "BEFORE", "AFTER");
        for (name, old, new) in &report.changes {
            say!("{name:<16} {old:>12} {new:>12}");
        }
        say!("");
        say!(
            "baseline return     {:.1}  (mean of {} seeds)",
            report.baseline_return,
            report.seeds
        );
        say!("approved return     {:.1}", report.best_return);
        say!(
            "improvement, 95 %   {:.1} to {:.1}",
            report.improvement_low,
            report.improvement_high
        );
        say!("proposal            {}", report.proposal_state);
        say!(
            "agent version       {} -> {}",
            report.version_before,
            report.version_after
        );
        say!("verified            {}", report.verified);
        say!("trace               {}", report.trace_id);
    }
}

async fn train(rest: &Rest, size: Size, seed: u64, steps: &Steps) -> Result<f64, CommandError> {
    let body = json!({ "steps": size.steps.to_string(), "seed": seed.to_string() });
    let run = rest
        .post("/api/v1/orchestration/agents/policy/train", body)
        .await?["run"]
        .clone();
    let path = format!(
        "/api/v1/orchestration/training/{}/events",
        text(&run, "run_id")?
    );
    let bar = steps.bar("training", size.steps);
    let mut ended = None;
    rest.follow(&path, |item| {
        if let Some(step) = number(&item["progress"]["step"]) {
            bar.set_position(step as u64);
        }
        ended = item.get("ended").filter(|e| e.is_object()).cloned();
        ended.is_none()
    })
    .await?;
    bar.finish_and_clear();
    let ended = ended.ok_or_else(|| CommandError::Failed("training did not end".to_owned()))?;
    number(&ended["final_return"]).ok_or_else(|| {
        CommandError::Failed(format!(
            "training ended as {}: {}",
            ended["state"], ended["error"]
        ))
    })
}

async fn search(rest: &Rest, study: &str, size: Size, steps: &Steps) -> Result<f64, CommandError> {
    let bar = steps.bar("searching", u64::from(size.trials));
    let mut ended = None;
    rest.follow(&format!("/api/v1/studies/{study}/events"), |item| {
        let state = item["trial"]["state"].as_str().unwrap_or_default();
        if matches!(
            state,
            "TRIAL_STATE_COMPLETE" | "TRIAL_STATE_PRUNED" | "TRIAL_STATE_FAILED"
        ) {
            bar.inc(1);
        }
        ended = item.get("ended").filter(|e| e.is_object()).cloned();
        ended.is_none()
    })
    .await?;
    bar.finish_and_clear();
    let ended = ended.ok_or_else(|| CommandError::Failed("the search did not end".to_owned()))?;
    number(&ended["best_trial"]["score"]).ok_or_else(|| {
        CommandError::Failed(format!(
            "the search ended as {}: {}",
            ended["state"], ended["error"]
        ))
    })
}

/// What whoever approves is shown, in one line.
async fn assessment(rest: &Rest, update: &str, steps: &Steps) -> Result<String, CommandError> {
    let bar = steps.spinner("assessing");
    let mut last = Value::Null;
    rest.follow(&format!("/api/v1/sync/proposals/{update}/events"), |item| {
        last = item["proposal"].clone();
        let failed = last["assessment_error"].as_str();
        last["assessment"].is_null() && failed.is_none_or(str::is_empty)
    })
    .await?;
    bar.finish_and_clear();
    let measured = &last["assessment"];
    let of = |name: &str| measured[name].as_f64();
    let values = [
        "baseline_return",
        "candidate_return",
        "improvement_low",
        "improvement_high",
    ];
    match values.map(of) {
        [Some(old), Some(new), Some(low), Some(high)] => Ok(format!(
            "{old:.1} -> {new:.1}, improvement {low:.1} to {high:.1}"
        )),
        _ => Err(CommandError::Failed(format!(
            "the proposal was not assessed: {}",
            last["assessment_error"]
        ))),
    }
}

async fn apply(rest: &Rest, update: &str, steps: &Steps) -> Result<Value, CommandError> {
    let bar = steps.spinner("applying");
    let mut last = Value::Null;
    rest.follow(&format!("/api/v1/sync/proposals/{update}/events"), |item| {
        last = item["proposal"].clone();
        let state = last["state"]
            .as_str()
            .unwrap_or_default()
            .trim_start_matches("PROPOSAL_STATE_")
            .to_lowercase();
        bar.set_message(state);
        last["state"] != "PROPOSAL_STATE_NEEDS_ATTENTION"
    })
    .await?;
    bar.finish_and_clear();
    steps.done(&format!(
        "applied by hot reload: {}",
        last["state"].as_str().unwrap_or_default()
    ));
    Ok(last)
}

fn report(
    before: &Value,
    after: &Value,
    applied: &Value,
    size: Size,
    trace_id: String,
) -> Result<Report, CommandError> {
    let v = &applied["verification"];
    let missing = |what: &str| {
        CommandError::Failed(format!(
            "the proposal has no {what}: {}",
            applied["error_message"]
        ))
    };
    let mean = |name: &str| -> Option<f64> {
        let all: Vec<f64> = v[name]
            .as_array()?
            .iter()
            .filter_map(Value::as_f64)
            .collect();
        (!all.is_empty()).then(|| all.iter().sum::<f64>() / all.len() as f64)
    };
    let state = text(applied, "state")?;
    let live = &after["hyperparameters"];
    let wanted = applied["new_params"]
        .as_object()
        .ok_or_else(|| missing("parameters"))?;
    let is_live = wanted
        .iter()
        .all(|(name, value)| live.get(name) == Some(value));
    let (version_before, version_after) = (version(before), version(after));
    let changes = wanted
        .iter()
        .filter(|(name, value)| before["hyperparameters"].get(name.as_str()) != Some(value))
        .map(|(name, value)| {
            (
                name.clone(),
                short(&before["hyperparameters"][name.as_str()]),
                short(value),
            )
        })
        .collect();
    Ok(Report {
        baseline_return: mean("baseline_returns").ok_or_else(|| missing("verification"))?,
        best_return: mean("candidate_returns").ok_or_else(|| missing("verification"))?,
        improvement_low: v["improvement_low"]
            .as_f64()
            .ok_or_else(|| missing("interval"))?,
        improvement_high: v["improvement_high"]
            .as_f64()
            .ok_or_else(|| missing("interval"))?,
        seeds: v["seeds"].as_array().map_or(0, Vec::len),
        trials: u64::from(size.trials),
        verified: state == "PROPOSAL_STATE_COMPLETED"
            && is_live
            && version_after == version_before + 1,
        proposal_state: state,
        version_before,
        version_after,
        trace_id,
        changes,
    })
}

fn version(agent: &Value) -> u64 {
    number(&agent["version"]).unwrap_or_default() as u64
}

fn short(value: &Value) -> String {
    match value.as_f64() {
        Some(n) if n != 0.0 && (n.abs() < 1e-3 || n.abs() >= 1e6) => format!("{n:.2e}"),
        Some(n) => format!("{}", (n * 1e5).round() / 1e5),
        None => value.to_string(),
    }
}

/// Numbers of 64 bits are texts in JSON.
fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn text(value: &Value, name: &str) -> Result<String, CommandError> {
    let found = value[name].as_str().map(str::to_owned);
    found.ok_or_else(|| CommandError::Failed(format!("the answer has no {name}: {value}")))
}

fn random_password() -> String {
    const ALPHABET: &[u8] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let mut rng = rand::rng();
    (0..32)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

/// Progress on standard error; the result is what goes to standard output.
struct Steps {
    quiet: bool,
}

impl Steps {
    fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    fn done(&self, text: &str) {
        if !self.quiet {
            note!("✓ {text}");
        }
    }

    fn target(&self) -> ProgressDrawTarget {
        if self.quiet {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        }
    }

    fn bar(&self, what: &'static str, length: u64) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(Some(length), self.target());
        if let Ok(style) = ProgressStyle::with_template("  {prefix:<10} [{bar:40}] {pos}/{len}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.with_prefix(what)
    }

    fn spinner(&self, what: &'static str) -> ProgressBar {
        let bar = ProgressBar::with_draw_target(None, self.target());
        if let Ok(style) = ProgressStyle::with_template("  {prefix:<10} {spinner} {msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        bar.with_prefix(what)
    }
}
