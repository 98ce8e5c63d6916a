//! Trainings, checkpoints, reloads, promotions, kills and restarts, for hours, in two meshes at once. One is
//! killed in the middle of each cycle: what it acknowledged has to be there when it runs again, and its
//! trainings have to end. The other is never killed, so that its memory shows what is not given back: after
//! the warm-up it may not grow by more than [`BOUND_MIB_PER_HOUR`]. Both end once something is lost; what was
//! found until then is printed in any case.

mod agents;
mod ledger;

use agents::{Client, Tally};
use ledger::Ledger;
use serde_json::{Value, json};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tars_runtime::seeds::Seeds;
use tars_tests::{
    memory::{BOUND_MIB_PER_HOUR, Growth, Memory},
    process::{Running, Up},
};
use tokio::time::{Instant, sleep};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const HOURS: f64 = 2.0;
/// A kill comes after this much of a cycle, and at most as much again later.
const KILLED_AFTER: Duration = Duration::from_millis(500);
const KILLED_WITHIN: u64 = 3_000;

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

fn start(binary: &Path, data: &Path) -> Running {
    let up = Up::new(Command::new(binary), data).unlimited();
    let up = up.env("TARS__ORCHESTRATION__ENVIRONMENT", "mesh");
    let up = up.env("TARS__ORCHESTRATION__CHECKPOINT_SECONDS", "1");
    let up = up.env("TARS__CREDENTIALS__ACCESS_TOKEN_SECONDS", "86400");
    let up = up.env("TARS__LIMITS__FLOOD_PER_SECOND", "1000000");
    up.start()
}

/// What both meshes have in common.
struct Soak {
    binary: PathBuf,
    ends: Instant,
    /// Something was lost.
    is_over: AtomicBool,
}

impl Soak {
    /// Whether another cycle begins after those of a mesh.
    fn goes_on(&self, tally: &Tally) -> bool {
        if !tally.lost.is_empty() {
            self.is_over.store(true, Ordering::Relaxed);
        }
        Instant::now() < self.ends && !self.is_over.load(Ordering::Relaxed)
    }

    /// Cycles in the mesh that is not killed, and its memory after each.
    async fn steady(&self, data: &Path) -> Result<(Tally, Memory), Failure> {
        let mesh = start(&self.binary, data);
        let client = Client::new(mesh.admin().await);
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        let mut memory = Memory::of(mesh.process.id());
        while self.goes_on(&tally) {
            let runs = client.train(&mut ledger, &mut tally).await?;
            let changes = client.change_until(&mut ledger, &mut tally, client.ended(&runs));
            changes.await??;
            if let Some(failure) = tally.failures.first() {
                return Err(format!("a call of a mesh that runs failed: {failure}").into());
            }
            ledger.check(&client.rest, &mut tally).await?;
            memory.sample()?;
            tally.cycles += 1;
            eprintln!("steady: cycle {}, {}", tally.cycles, memory.describe());
        }
        Ok((tally, memory))
    }

    /// Cycles in the mesh that is killed in the middle of each.
    async fn killed(&self, data: &Path) -> Result<Tally, Failure> {
        let seeds = Seeds::system();
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        let mut mesh = start(&self.binary, data);
        while self.goes_on(&tally) {
            let client = Client::new(mesh.admin().await);
            let runs = client.train(&mut ledger, &mut tally).await?;
            let wait = KILLED_AFTER + Duration::from_millis(seeds.draw() % KILLED_WITHIN);
            let kill = async {
                sleep(wait).await;
                mesh.process.kill();
            };
            client.change_until(&mut ledger, &mut tally, kill).await?;
            drop(mesh);
            mesh = start(&self.binary, data);
            let client = Client::new(mesh.admin().await);
            ledger.check(&client.rest, &mut tally).await?;
            if tally.lost.is_empty() {
                client.ended(&runs).await?;
                ledger.check(&client.rest, &mut tally).await?;
            }
            tally.cycles += 1;
            eprintln!(
                "killed: cycle {}, after {:.1} s",
                tally.cycles,
                wait.as_secs_f64()
            );
        }
        Ok(tally)
    }
}

fn report(hours: f64, steady: &Tally, killed: &Tally, memory: &Memory) -> Value {
    json!({
        "soak": "agents",
        "hours": hours,
        "steady": steady.report(),
        "killed": killed.report(),
        "memory": memory.report(),
    })
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let json = std::env::args().any(|argument| argument == "--json");
    let hours = argument("--hours").map_or(Ok(HOURS), |text| text.parse())?;
    let soak = Soak {
        binary: PathBuf::from(std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?),
        ends: Instant::now() + Duration::try_from_secs_f64(hours * 3600.0)?,
        is_over: AtomicBool::new(false),
    };
    let (one, two) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let both = tokio::try_join!(soak.steady(one.path()), soak.killed(two.path()));
    let ((steady, memory), killed) = both?;
    let report = report(hours, &steady, &killed, &memory);
    match json {
        true => println!("{report}"),
        false => println!("{report:#}"),
    }
    judge(&steady, &killed, memory.growth())
}

/// # Errors
///
/// The first thing that was lost, or memory that grows.
fn judge(steady: &Tally, killed: &Tally, growth: Growth) -> Result<(), Failure> {
    if let Some(lost) = steady.lost.iter().chain(&killed.lost).next() {
        return Err(format!("lost: {lost}").into());
    }
    match growth {
        Growth::Grows(slope) => Err(format!(
            "memory grows by {slope:.1} MiB an hour, and may by {BOUND_MIB_PER_HOUR}"
        )
        .into()),
        Growth::Flat | Growth::Unknown => Ok(()),
    }
}
