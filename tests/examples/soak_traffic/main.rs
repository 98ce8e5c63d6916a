//! Half an hour of steady traffic of every kind on the real binary: unary calls over the mesh and through the gateway,
//! streams that are opened and given up, connections that come and go. No call may fail, and memory, file descriptors
//! and tasks may not grow. Before that, h2spec, where there is one, tries the HTTP/2 of a mesh port.

mod conformance;
mod traffic;

use serde_json::{Value, json};
use std::{path::PathBuf, process::Command, time::Duration};
use tars::rest::Rest;
use tars_tests::{
    memory::{BOUND_MIB_PER_HOUR, Growth, Memory},
    process::{Running, Up},
};
use tokio::time::{Instant, sleep};
use traffic::Traffic;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const HOURS: f64 = 0.5;
const SAMPLE: Duration = Duration::from_secs(5);
/// What the mean of the last quarter may exceed that of the second by: descriptors and tasks of the connections and
/// calls that happen to be open, and the MiB of an allocator's fragments.
const MORE: f64 = 0.1;
/// How much of the second half the samples have to cover: the first is taken late, and the last early.
const MOSTLY: f64 = 0.9;

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

/// What is held at one moment.
#[derive(Debug, Clone, Copy)]
struct Held {
    memory_mib: f64,
    descriptors: f64,
    tasks: f64,
}

/// A reading of what is held.
type Reading = fn(&Held) -> f64;

const READINGS: [(&str, Reading); 3] = [
    ("memory_mib", |held| held.memory_mib),
    ("descriptors", |held| held.descriptors),
    ("tasks", |held| held.tasks),
];

async fn held(mesh: &Running, memory: &mut Memory) -> Result<Held, Failure> {
    memory.sample()?;
    let id = mesh.process.id();
    let text = Rest::new(&mesh.ready.observe).text("/metrics").await?;
    let tasks = text.lines().find(|line| line.starts_with("runtime_tasks{"));
    let tasks = tasks.and_then(|line| line.rsplit(' ').next());
    Ok(Held {
        memory_mib: memory.last_mib().ok_or("no memory was read")?,
        descriptors: std::fs::read_dir(format!("/proc/{id}/fd"))?.count() as f64,
        tasks: tasks.ok_or("there is no runtime_tasks")?.parse()?,
    })
}

/// The means of the second and of the last quarter.
fn quarters(all: &[Held], of: Reading) -> Option<(f64, f64)> {
    let quarter = all.len() / 4;
    let mean = |part: &[Held]| part.iter().map(of).sum::<f64>() / part.len() as f64;
    let (second, last) = (all.get(quarter..2 * quarter)?, all.get(3 * quarter..)?);
    (quarter > 0).then(|| (mean(second), mean(last)))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let is_json = std::env::args().any(|argument| argument == "--json");
    let hours = argument("--hours").map_or(Ok(HOURS), |text| text.parse())?;
    let data = tempfile::tempdir()?;
    let binary = PathBuf::from(std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?);
    let up = Up::new(Command::new(binary), data.path()).unlimited();
    let up = up.env("TARS__CREDENTIALS__ACCESS_TOKEN_SECONDS", "86400");
    let mesh = up.env("TARS__LIMITS__FLOOD_PER_SECOND", "1000000").start();
    let spec = conformance::run(&mesh).await?;
    let ends = Instant::now() + Duration::from_secs_f64(hours * 3600.0);
    let traffic = Traffic::start(&mesh, ends).await?;
    let (mut all, mut memory) = (Vec::new(), Memory::of(mesh.process.id()));
    while Instant::now() < ends {
        sleep(SAMPLE).await;
        let now = held(&mesh, &mut memory).await?;
        all.push(now);
        eprintln!(
            "{}; {} descriptors, {} tasks; {}",
            memory.describe(),
            now.descriptors,
            now.tasks,
            traffic.describe()
        );
    }
    let calls = traffic.end().await;
    let growth: serde_json::Map<String, Value> = READINGS
        .iter()
        .map(|(name, of)| ((*name).to_owned(), judged(&all, *of)))
        .collect();
    let report = json!({
        "soak": "traffic",
        "hours": hours,
        "h2spec": spec,
        "traffic": calls,
        "held": growth,
        "slope_mib_per_hour": memory.report()["slope_mib_per_hour"],
        "bound_mib_per_hour": BOUND_MIB_PER_HOUR,
    });
    match is_json {
        true => println!("{report}"),
        false => println!("{report:#}"),
    }
    let failed =
        calls["failed"] != 0 || spec["unexpected"].as_array().is_some_and(|u| !u.is_empty());
    if failed {
        return Err("a call or a case of h2spec failed".into());
    }
    let is_full = hours >= HOURS;
    let flat = growth.values().map(|one| one["is_flat"].as_bool());
    judge(flat, memory.growth_over(hours / 2.0 * MOSTLY), is_full).map_err(Into::into)
}

/// # Errors
///
/// What grew or, in a run of full length, what could not be judged.
fn judge(
    mut flat: impl Iterator<Item = Option<bool>> + Clone,
    memory: Growth,
    is_full: bool,
) -> Result<(), String> {
    if let Growth::Grows(slope) = memory {
        return Err(format!(
            "memory grows by {slope:.1} MiB an hour, and may by {BOUND_MIB_PER_HOUR}"
        ));
    }
    if flat.clone().any(|one| one == Some(false)) {
        return Err("something grew".to_owned());
    }
    let is_unknown = memory == Growth::Unknown || flat.any(|one| one.is_none());
    match is_full && is_unknown {
        true => Err("the samples are too few to tell whether something grew".to_owned()),
        false => Ok(()),
    }
}

/// Whether a reading grew. `is_flat` is null where there are too few samples.
fn judged(all: &[Held], of: Reading) -> Value {
    let means = quarters(all, of);
    json!({
        "second_quarter": means.map(|m| m.0),
        "last_quarter": means.map(|m| m.1),
        "is_flat": means.map(|(second, last)| last <= second * (1.0 + MORE)),
    })
}
