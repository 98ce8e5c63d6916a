//! The main job as a client of the mesh does it: over REST, as two users.

use super::{
    Cast, Demo, Size,
    report::{Distance, Outcome, Report},
};
use crate::{
    app::Ready,
    commands::{
        CommandError,
        advice::{self, Advice},
        events,
        listing::{number, required, word},
        progress::Progress,
        proposals::{Until, follow_until, measured, training_runs},
    },
    rest::Rest,
};
use rand::RngExt;
use serde_json::{Value, json};
use tars_proto::reason;
use tars_runtime::trace::{Kind, Tracer};

/// What to do when the job's own mesh is lost.
const ANEW: &str = "a new `tars demo`";
const AGENTS: &str = "/api/v1/orchestration/agents";
const ADVICE: &[Advice] = &[(
    reason::AGENT_NOT_BUILT,
    "without --agent, one is taken that can act there",
)];
/// The states in which the agents' distance from an equilibrium is measured.
const STATES: u64 = 4;

/// Runs the job on a mesh that is up; all its calls are part of one trace.
pub(super) async fn run(
    demo: &Demo,
    ready: &Ready,
    tracer: &Tracer,
) -> Result<Report, CommandError> {
    let span = tracer.start("demo", Kind::Internal, None);
    let gateway = Rest::new(&ready.gateway).in_trace(&span.context().to_header());
    let (admin, name, developer) = people(&gateway, ready).await?;
    let job = Job {
        admin,
        developer,
        cast: demo.cast(),
        size: demo.size(),
        seed: demo.seed,
        progress: Progress::new(demo.json),
    };
    job.progress.done(&format!(
        "logged in as {} and, as a new developer, {name}",
        ready.admin_user
    ));
    let report = job.run(span.context().trace_id_hex()).await;
    // The developer was created for this job only.
    let path = format!("/admin/users/{name}/disable");
    let disabled = job.admin.post(&path, json!({})).await;
    let report = report?;
    disabled?;
    Ok(report)
}

/// The administrator, and a developer that is created for the job.
async fn people(gateway: &Rest, ready: &Ready) -> Result<(Rest, String, Rest), CommandError> {
    let file = &ready.admin_password_file;
    let password = std::fs::read_to_string(file).map_err(|e| CommandError::file(file, e))?;
    let admin = gateway.login(&ready.admin_user, &password).await?;
    let name = format!("demo-{:08x}", rand::random::<u32>());
    let password = random_password();
    let body = json!({ "username": name, "password": password, "roles": ["developer"] });
    admin.post("/admin/users", body).await?;
    let developer = gateway.login(&name, &password).await?;
    Ok((admin, name, developer))
}

fn random_password() -> String {
    const ALPHABET: &[u8] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    let mut rng = rand::rng();
    (0..32)
        .map(|_| char::from(ALPHABET[rng.random_range(0..ALPHABET.len())]))
        .collect()
}

/// One run of the job: who takes part, how much work it is, and where it is shown.
struct Job {
    admin: Rest,
    developer: Rest,
    cast: Cast,
    size: Size,
    seed: u64,
    progress: Progress,
}

impl Job {
    async fn run(&self, trace_id: String) -> Result<Report, CommandError> {
        let before = self.agent().await?;
        let nash_conv_before = self.nash_conv().await?;
        self.train().await?;
        let space = self.space();
        let study = self.search(space.clone()).await?;
        let update = self.propose(&study).await?;
        self.assess(&update).await?;
        self.approve(&update).await?;
        let applied = self.apply(&update).await?;
        let outcome = Outcome {
            before,
            after: self.agent().await?,
            applied,
            given: given(space.as_ref()),
            nash_conv_before,
            nash_conv_after: self.nash_conv().await?,
            trace_id,
        };
        outcome.report(self.size)
    }

    async fn agent(&self) -> Result<Value, CommandError> {
        let agent = &self.cast.agent;
        let answer = self.developer.get(&format!("{AGENTS}/{agent}")).await;
        Ok(answer.map_err(|e| advice::add(e, ADVICE, agent))?["agent"].take())
    }

    async fn train(&self) -> Result<(), CommandError> {
        let Size { steps, .. } = self.size;
        let body = json!({ "steps": steps.to_string(), "seed": self.seed.to_string() });
        let path = match self.cast.together {
            true => "/api/v1/orchestration/training".to_owned(),
            false => format!("{AGENTS}/{}/train", self.cast.agent),
        };
        let run = self.developer.post(&path, body).await?;
        let run = required(&run["run"], "run_id")?;
        let path = format!("/api/v1/orchestration/training/{run}/events");
        let bar = self.progress.bar("training", steps);
        let mut ended = Value::Null;
        let followed = events::follow_with(&self.developer, &path, ANEW, |item| {
            if let Some(step) = number(&item["progress"]["step"]) {
                bar.set_position(step as u64);
            }
            ended = item["ended"].clone();
            ended.is_null()
        });
        followed.await?;
        bar.finish_and_clear();
        let trained = trained(&ended).ok_or_else(|| failed("training", &ended))?;
        self.progress.done(&trained);
        Ok(())
    }

    /// How far the agents are from an equilibrium among them, as the mean over some states of their
    /// environment; `None` where each agent has one of its own.
    async fn nash_conv(&self) -> Result<Option<Distance>, CommandError> {
        if !self.cast.together {
            return Ok(None);
        }
        let mut distances = Vec::new();
        for seed in 1..=STATES {
            let body = json!({ "seed": seed.to_string() });
            let path = "/api/v1/orchestration/nash/agents";
            let measured = self.developer.post(path, body).await?;
            let distance = Distance::of(&measured["game"]["nash_convergence_distance"]);
            let missing = || CommandError::Failed("an equilibrium was not measured".to_owned());
            distances.push(distance.ok_or_else(missing)?);
        }
        Ok(Some(Distance::mean(&distances)))
    }

    /// What is searched; `None` for all that the mesh searches by itself.
    fn space(&self) -> Option<Value> {
        (self.cast.together && self.cast.agent == "resource").then(exploration)
    }

    /// Returns the study's id.
    async fn search(&self, space: Option<Value>) -> Result<String, CommandError> {
        let Size { trials, steps, .. } = self.size;
        let mut body = json!({ "agent_id": self.cast.agent, "n_trials": trials, "steps": steps.to_string(),
                               "seed": self.seed.to_string() });
        if let Some(space) = space {
            body["search_space"] = space;
        }
        let started = self.developer.post("/api/v1/optimize", body).await?;
        let study = required(&started, "optimization_id")?;
        let bar = self.progress.bar("searching", u64::from(trials));
        let mut ended = Value::Null;
        let path = format!("/api/v1/studies/{study}/events");
        let followed = events::follow_with(&self.developer, &path, ANEW, |item| {
            let state = word(&item["trial"]["state"], "TRIAL_STATE_");
            if ["complete", "pruned", "failed"].contains(&state.as_str()) {
                bar.inc(1);
            }
            ended = item["ended"].clone();
            ended.is_null()
        });
        followed.await?;
        bar.finish_and_clear();
        let best = number(&ended["best_trial"]["score"]);
        let best = best.ok_or_else(|| failed("the search", &ended))?;
        let agent = &self.cast.agent;
        self.progress.done(&format!(
            "searched {trials} trials for {agent}: best mean return {best:.1}"
        ));
        Ok(study)
    }

    /// Returns the proposal's id.
    async fn propose(&self, study: &str) -> Result<String, CommandError> {
        let seeds = self.size.seeds;
        let body = json!({ "study_id": study, "verification_seeds": seeds, "note": "demo" });
        let answer = self.developer.post("/api/v1/sync/propose", body).await?;
        let update = required(&answer["proposal"], "update_id")?;
        self.progress.done(&format!("proposed {update}"));
        Ok(update)
    }

    /// Waits for the assessment that the approver is shown.
    async fn assess(&self, update: &str) -> Result<(), CommandError> {
        let Size { steps, seeds, .. } = self.size;
        let bar = self.progress.spinner("assessing");
        let what = format!(
            "training the live and the proposed values, {steps} steps on each of {seeds} seeds"
        );
        bar.set_message(what.clone());
        let followed = follow_until(&self.admin, update, Until::Assessed, |item| {
            if let Some(runs) = training_runs(item) {
                bar.set_message(format!("{what}: {runs}"));
            }
        });
        let last = followed.await?;
        bar.finish_and_clear();
        if !last["assessment"].is_object() {
            let why = &last["assessment_error"];
            let text = format!("the proposal was not assessed: {why}");
            return Err(CommandError::Failed(text));
        }
        let measured = measured(&last["assessment"]);
        self.progress
            .done(&format!("assessed on seeds of its own: {measured}"));
        Ok(())
    }

    async fn approve(&self, update: &str) -> Result<(), CommandError> {
        let path = "/api/v1/sync/approve";
        let body = json!({ "update_id": update });
        if self.developer.post(path, body).await.is_ok() {
            let text = "a developer could approve its own proposal".to_owned();
            return Err(CommandError::Failed(text));
        }
        let body = json!({ "update_id": update, "reason": "measured improvement" });
        self.admin.post(path, body).await?;
        self.progress
            .done("approved as admin; the developer's own attempt was refused");
        Ok(())
    }

    /// Returns the proposal in its last state.
    async fn apply(&self, update: &str) -> Result<Value, CommandError> {
        let path = format!("/api/v1/sync/apply/{update}");
        self.admin.post(&path, json!({})).await?;
        let bar = self.progress.spinner("applying");
        let followed = follow_until(&self.admin, update, Until::Ended, |item| {
            let state = word(&item["proposal"]["state"], "PROPOSAL_STATE_");
            bar.set_message(match training_runs(item) {
                Some(runs) => format!("{state}: {runs}"),
                None => state,
            });
        });
        let last = followed.await?;
        bar.finish_and_clear();
        let state = last["state"].as_str().unwrap_or_default();
        self.progress
            .done(&format!("applied by hot reload: {state}"));
        Ok(last)
    }
}

/// What decides how well the resource agent learns in the mesh: it explores by steps that depend on each other,
/// with a deviation of a fifth of its range, unless something smaller is found. The few trials of a demonstration
/// are too few for all that could be searched.
fn exploration() -> Value {
    json!([
        { "name": "noise_kind", "categorical": { "values": [2] } },
        { "name": "noise_sigma", "float": { "low": 0.03, "high": 0.12, "log": true } },
        { "name": "actor_learning_rate", "float": { "low": 1e-4, "high": 5e-4, "log": true } },
        { "name": "gamma", "float": { "low": 0.93, "high": 0.99 } },
        { "name": "critic_weight_decay", "categorical": { "values": [0] } },
    ])
}

/// The hyperparameters that a search space gives one value each, so that they are not searched.
fn given(space: Option<&Value>) -> Vec<String> {
    let dimensions = space.and_then(Value::as_array).into_iter().flatten();
    let has_one = |dimension: &&Value| {
        let values = dimension["categorical"]["values"].as_array();
        values.is_some_and(|values| values.len() == 1)
    };
    let names = dimensions.filter(has_one).map(|d| &d["name"]);
    names.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// What a training came to, or `None` if it did not come to its end.
fn trained(ended: &Value) -> Option<String> {
    let members = ended["members"].as_array().filter(|all| all.len() > 1);
    let Some(members) = members else {
        let trained = number(&ended["final_return"])?;
        return Some(format!(
            "trained the live agent as it is: mean return {trained:.1}"
        ));
    };
    let of = |member: &Value| {
        let name = member["agent_id"].as_str()?;
        let trained = number(&member["final_return"])?;
        Some(format!("{name} {trained:.1}"))
    };
    let all: Vec<String> = members.iter().map(of).collect::<Option<_>>()?;
    Some(format!(
        "trained the live agents together: mean returns {}",
        all.join(", ")
    ))
}

fn failed(what: &str, ended: &Value) -> CommandError {
    if ended.is_null() {
        return CommandError::Failed(format!("{what} did not end"));
    }
    let (state, error) = (&ended["state"], &ended["error"]);
    CommandError::Failed(format!("{what} ended as {state}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_without_an_alternative_is_given_and_not_searched() {
        let given = given(Some(&exploration()));
        assert_eq!(given, ["noise_kind", "critic_weight_decay"]);
        assert!(super::given(None).is_empty());
    }
}
