//! Trainings, checkpoints, reloads, promotions, kills and restarts, for hours, in two meshes at once. One is
//! killed in the middle of each cycle: what it acknowledged has to be there when it runs again, and its
//! trainings have to end. The other is never killed, so that its memory shows what is not given back. Ends at
//! the first thing that is wrong.

mod agents;
mod ledger;
mod memory;

use agents::{Client, Tally};
use ledger::Ledger;
use memory::Memory;
use serde_json::{Value, json};
use std::{path::Path, path::PathBuf, process::Command, time::Duration};
use tars_runtime::seeds::Seeds;
use tars_tests::process::{Running, Up};
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
}

impl Soak {
    /// Cycles in the mesh that is not killed, and its memory after each.
    async fn steady(&self, data: &Path) -> Result<(Tally, Memory), Failure> {
        let mesh = start(&self.binary, data);
        let client = Client::new(mesh.admin().await);
        let (mut ledger, mut tally) = (Ledger::default(), Tally::default());
        let mut memory = Memory::of(mesh.process.id());
        while Instant::now() < self.ends {
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
        while Instant::now() < self.ends {
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
            client.ended(&runs).await?;
            ledger.check(&client.rest, &mut tally).await?;
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
    };
    let (one, two) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let both = tokio::try_join!(soak.steady(one.path()), soak.killed(two.path()));
    let ((steady, memory), killed) = both?;
    let report = report(hours, &steady, &killed, &memory);
    match json {
        true => println!("{report}"),
        false => println!("{report:#}"),
    }
    Ok(())
}
