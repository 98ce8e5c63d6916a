//! `tars demo`: the main job on a fresh mesh, through the front door: REST, logins, four eyes.

mod job;
mod report;

use super::{
    CommandError, Global, block_on, init_log,
    up::{Addresses, Signals, announce},
};
use crate::app::{Mesh, Ready, StartError};
use clap::{Args, builder::PossibleValuesParser};
use std::process::ExitCode;
use tars_runtime::config::{Config, Listen};
use tars_worlds::{ActionSpace, make_world, world_names};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  tars demo                    run the main job, then keep serving\n  tars demo --quick --exit     the short form, and leave\n  tars demo --exit --json      one JSON object on standard output\n\nExits with 1 when the job did not truly succeed."
)]
pub(crate) struct Demo {
    /// Fewer trials and fewer steps: under a minute.
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
    /// Environment of the agents. In `mesh` all of them train together.
    #[arg(long, default_value = "mesh", value_name = "ENV", value_parser = PossibleValuesParser::new(world_names()))]
    env: String,
    /// The agent that is searched and changed: `resource`, whose search pays most, in `mesh` and where actions
    /// are continuous, and `policy` elsewhere.
    #[arg(long, value_name = "AGENT", value_parser = ["policy", "consensus", "ethical", "resource"])]
    agent: Option<String>,
    /// Seed of the search.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    addresses: Addresses,
}

/// Who learns, and who is changed.
#[derive(Debug, Clone)]
struct Cast {
    /// Whether all agents of the environment train together.
    together: bool,
    /// The agent that is searched and changed.
    agent: String,
}

/// How much work the job is.
#[derive(Debug, Clone, Copy)]
struct Size {
    trials: u32,
    steps: u64,
    seeds: u32,
}

impl Size {
    fn new(trials: u32, steps: u64) -> Self {
        Self {
            trials,
            steps,
            // Chance decides an interval over fewer too often.
            seeds: 12,
        }
    }
}

impl Demo {
    pub(crate) fn run(self, global: &Global) -> Result<ExitCode, CommandError> {
        // A fresh data directory unless one is named; it is removed when the command ends.
        let fresh = match &global.data_dir {
            Some(_) => None,
            None => Some(tempfile::tempdir().map_err(CommandError::Runtime)?),
        };
        let mut config = global.load(self.addresses.flags())?;
        if let Some(dir) = &fresh {
            config.data.dir = dir.path().to_owned();
        }
        if config.data.dir.join("hypersync").exists() {
            note!(
                "{} holds the data of an earlier mesh: the job begins with the agent that is live there, and a search may find nothing better; without --data-dir it begins afresh",
                config.data.dir.display()
            );
        }
        config.orchestration.environment = self.env.clone();
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

    fn cast(&self) -> Cast {
        let world = make_world(&self.env).expect("the parser lets known names pass");
        // Elsewhere each of the mesh's agents has the first place of a world of its own.
        let together = world.spec().agent("resource").is_some();
        let first = &world.spec().agents[0].action;
        let is_continuous = matches!(first, ActionSpace::Continuous(_));
        let usual = match together || is_continuous {
            true => "resource",
            false => "policy",
        };
        let agent = self.agent.as_deref().unwrap_or(usual).to_owned();
        Cast { together, agent }
    }

    fn size(&self) -> Size {
        let base = match (self.quick, self.cast().together) {
            // In fewer steps not every seed has learned yet, and the interval is wide.
            (true, true) => Size::new(10, 8_000),
            (true, false) => Size::new(14, 8_000),
            (false, _) => Size::new(30, 20_000),
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
        let mesh = tokio::select! {
            started = Mesh::start(config) => started?,
            () = signals.wait() => return Ok(ExitCode::from(130)),
        };
        mesh.ready
            .save(&own)
            .map_err(|e| CommandError::file(&own, e))?;
        let tracer = mesh
            .process()
            .exporting("demo")
            .map_err(StartError::Tracer)?;
        let outcome = tokio::select! {
            outcome = job::run(&self, &mesh.ready, &tracer) => outcome,
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
                report.print(self.json);
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
        let report = outcome?;
        match report.verified {
            true => Ok(ExitCode::SUCCESS),
            false => Err(CommandError::Failed(report.failure())),
        }
    }
}
