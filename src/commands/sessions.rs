//! `tars sessions`: worlds that the living agents step, and how far they are from an equilibrium there.

mod show;

use super::{
    CommandError, Global,
    advice::{self, Advice},
    events,
    listing::{self, id, short, text},
    mesh::MeshArg,
    session::Session,
};
use crate::rest::Rest;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::process::ExitCode;
use tars_proto::reason;
use uuid::Uuid;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars sessions create --seed 7\n  tars sessions step 0198f1c2-7d3a-7e54-9b1c-2f6d8a4b1c90\n  tars sessions nash\n\nA session is a world of its own: what the agents do in it changes nothing of the mesh. One that is not used for a\nday is deleted."
)]
pub(crate) struct Sessions {
    #[command(flatten)]
    mesh: MeshArg,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a world in which the agents of the mesh live.
    #[command(
        after_help = "Examples:\n  tars sessions create\n  id=$(tars sessions create --seed 7 --json | jq -r .session_id)"
    )]
    Create {
        /// A built-in environment where the agents live; by default theirs.
        #[arg(long, value_name = "ENV")]
        env: Option<String>,
        /// Determines everything that is random in the world; drawn when left out.
        #[arg(long, value_name = "NUMBER")]
        seed: Option<u64>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List your sessions, the newest first.
    #[command(
        after_help = "Examples:\n  tars sessions list\n  tars sessions list --json | jq -r '.[].session_id'"
    )]
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Let the agents act once, or several times, and show what they did and got.
    #[command(
        after_help = "Examples:\n  tars sessions step 0198f1c2-7d3a-7e54-9b1c-2f6d8a4b1c90\n  tars sessions step --count 100 --quick 0198f1c2-7d3a-7e54-9b1c-2f6d8a4b1c90\n\nWith --json each step is one line."
    )]
    Step(Step),
    /// Follow the steps of a session until it is closed.
    #[command(after_help = "Example:\n  tars sessions watch 0198f1c2-7d3a-7e54-9b1c-2f6d8a4b1c90")]
    Watch {
        /// The session, as `tars sessions list` shows it.
        #[arg(value_name = "SESSION", value_parser = id)]
        id: Uuid,
        /// Print JSON, one line a step.
        #[arg(long)]
        json: bool,
    },
    /// Close a session, or all of yours: it is stepped no more.
    #[command(
        after_help = "Examples:\n  tars sessions close 0198f1c2-7d3a-7e54-9b1c-2f6d8a4b1c90\n  tars sessions close --all"
    )]
    Close {
        /// The session, as `tars sessions list` shows it.
        #[arg(value_name = "SESSION", value_parser = id, required_unless_present = "all", conflicts_with = "all")]
        id: Option<Uuid>,
        /// All sessions of yours that are open.
        #[arg(long)]
        all: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Measure how far the agents are from an equilibrium, and find one.
    #[command(
        after_help = "Examples:\n  tars sessions nash\n  tars sessions nash 0198f1c2-7d3a-7e54-9b1c-2f6d8a4b1c90\n  tars sessions nash --seed 3 --json | jq .game.nash_convergence_distance"
    )]
    Nash(Nash),
}

#[derive(Debug, Args)]
struct Step {
    /// The session, as `tars sessions list` shows it.
    #[arg(value_name = "SESSION", value_parser = id)]
    id: Uuid,
    /// How many steps are taken.
    #[arg(long, default_value_t = 1, value_name = "STEPS", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    count: u32,
    /// Measure no game: the agents' payoffs are their own values of their actions.
    #[arg(long)]
    quick: bool,
    /// Aggregate the rewards as z-scores among the last 100 of each agent.
    #[arg(long)]
    normalise: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Nash {
    /// A session, whose present state is measured; without it, a state that the agents reach in an episode.
    #[arg(value_name = "SESSION", value_parser = id, conflicts_with_all = ["seed", "warm_up"])]
    id: Option<Uuid>,
    /// The seed of the episode; drawn when left out.
    #[arg(long, value_name = "NUMBER")]
    seed: Option<u64>,
    /// How many steps lead to the state.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u32).range(..=1000))]
    warm_up: Option<u32>,
    /// Rollouts of each joint action.
    #[arg(long, value_name = "ROLLOUTS", value_parser = clap::value_parser!(u32).range(2..=64))]
    rollouts: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

const PATH: &str = "/api/v1/orchestration/sessions";

const ADVICE: &[Advice] = &[
    (reason::NOT_FOUND, "`tars sessions list` shows yours"),
    (
        reason::SESSIONS_FULL,
        "`tars sessions list` shows yours, and `tars sessions close` closes one, or with --all all of them",
    ),
    (
        reason::SESSION_CLOSED,
        "`tars sessions create` makes another one",
    ),
    (
        reason::SESSION_UNUSABLE,
        "`tars sessions create` makes another one",
    ),
    (reason::CONFLICT, "somebody else steps the session, too"),
];

fn path(id: Uuid) -> String {
    format!("{PATH}/{id}")
}

impl Sessions {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        let json = self.command.is_in_json();
        global.in_session(&self.mesh, json, async |session| {
            let rest = session.rest();
            match self.command {
                Command::Create { env, seed, json } => create(&rest, env, seed, json).await,
                Command::List { json } => list(&rest, json).await,
                Command::Step(step) => step.run(&rest).await,
                Command::Watch { id, json } => watch(session, id, json).await,
                Command::Close {
                    id: Some(id), json, ..
                } => close(&rest, id, json).await,
                Command::Close { json, .. } => close_all(&rest, json).await,
                Command::Nash(nash) => nash.run(&rest).await,
            }
        })
    }
}

impl Command {
    fn is_in_json(&self) -> bool {
        match self {
            Self::Create { json, .. }
            | Self::List { json }
            | Self::Watch { json, .. }
            | Self::Close { json, .. } => *json,
            Self::Step(step) => step.json,
            Self::Nash(nash) => nash.json,
        }
    }
}

async fn create(
    rest: &Rest,
    env: Option<String>,
    seed: Option<u64>,
    json: bool,
) -> Result<ExitCode, CommandError> {
    let mut body = json!({});
    if let Some(env) = env {
        body["environment"] = json!(env);
    }
    if let Some(seed) = seed {
        body["seed"] = json!(seed.to_string());
    }
    let created = rest.post(PATH, body).await;
    let session = created.map_err(|e| advice::add(e, ADVICE, &""))?["session"].take();
    if json {
        say!("{session:#}");
        return Ok(ExitCode::SUCCESS);
    }
    let id = text(&session["session_id"]);
    say!("{id}");
    let (environment, seed) = (listing::world_of(&session), short(&session["seed"]));
    note!("a world of {environment} with the seed {seed}; `tars sessions step {id}` steps it");
    Ok(ExitCode::SUCCESS)
}

async fn list(rest: &Rest, json: bool) -> Result<ExitCode, CommandError> {
    let sessions = listing::all(rest, PATH, "sessions").await?;
    if json {
        say!("{:#}", Value::Array(sessions));
        return Ok(ExitCode::SUCCESS);
    }
    let head = [
        "session",
        "environment",
        "seed",
        "steps",
        "episode",
        "used",
        "state",
    ];
    listing::table(&head, &sessions, |session| {
        let state = if session["closed_at"].is_null() {
            "open"
        } else {
            "closed"
        };
        vec![
            text(&session["session_id"]),
            listing::world_of(session),
            short(&session["seed"]),
            short(&session["steps"]),
            short(&session["episode"]),
            text(&session["used_at"]),
            state.to_owned(),
        ]
    });
    Ok(ExitCode::SUCCESS)
}

async fn watch(session: &mut Session, id: Uuid, json: bool) -> Result<ExitCode, CommandError> {
    let goes_on = format!("`tars sessions watch {id}`");
    let mut is_first = true;
    events::follow(session, &format!("{}/events", path(id)), &goes_on, |item| {
        let step = &item["step"];
        match (json, step.is_object()) {
            (true, _) => say!("{item}"),
            (false, true) => show::line(step, std::mem::take(&mut is_first)),
            (false, false) => {}
        }
        !item["ended"].is_object()
    })
    .await?;
    Ok(ExitCode::SUCCESS)
}

async fn close_all(rest: &Rest, json: bool) -> Result<ExitCode, CommandError> {
    let sessions = listing::all(rest, PATH, "sessions").await?;
    let open = sessions.iter().filter(|s| s["closed_at"].is_null());
    let mut closed = Vec::new();
    for session in open {
        let id = text(&session["session_id"]);
        let answer = rest.post(&format!("{PATH}/{id}/close"), json!({})).await;
        closed.push(answer.map_err(|e| advice::add(e, ADVICE, &id))?["session"].take());
    }
    match json {
        true => say!("{:#}", Value::Array(closed)),
        false => say!("sessions closed: {}", closed.len()),
    }
    Ok(ExitCode::SUCCESS)
}

async fn close(rest: &Rest, id: Uuid, json: bool) -> Result<ExitCode, CommandError> {
    let closed = rest.post(&format!("{}/close", path(id)), json!({})).await;
    let session = closed.map_err(|e| advice::add(e, ADVICE, &id))?["session"].take();
    match json {
        true => say!("{session:#}"),
        false => say!("closed after {} steps", short(&session["steps"])),
    }
    Ok(ExitCode::SUCCESS)
}

impl Step {
    async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        for number in 0..self.count {
            let stepped = rest.post("/api/v1/orchestration/step", self.body()).await;
            let stepped = stepped.map_err(|e| advice::add(e, ADVICE, &self.id))?;
            match (self.json, self.count) {
                (true, _) => say!("{stepped}"),
                (false, 1) => show::step(&stepped),
                (false, _) => show::line(&stepped, number == 0),
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn body(&self) -> Value {
        let mut body = json!({ "session_id": self.id });
        if self.quick {
            body["game"] = json!("STEP_GAME_ACTION_VALUES");
        }
        if self.normalise {
            body["reward"] = json!({ "normalise": true });
        }
        body
    }
}

impl Nash {
    async fn run(self, rest: &Rest) -> Result<ExitCode, CommandError> {
        let measured = rest.post("/api/v1/orchestration/nash/agents", self.body());
        let measured = measured.await;
        let id = self.id.unwrap_or_default();
        let measured = measured.map_err(|e| advice::add(e, ADVICE, &id))?;
        match self.json {
            true => say!("{measured:#}"),
            false => show::equilibrium(&measured),
        }
        Ok(ExitCode::SUCCESS)
    }

    fn body(&self) -> Value {
        let mut body = json!({});
        if let Some(id) = self.id {
            body["session_id"] = json!(id);
        }
        if let Some(seed) = self.seed {
            body["seed"] = json!(seed.to_string());
        }
        if let Some(steps) = self.warm_up {
            body["warm_up_steps"] = json!(steps);
        }
        if let Some(rollouts) = self.rollouts {
            body["rollouts"] = json!(rollouts);
        }
        body
    }
}
