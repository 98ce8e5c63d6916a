//! Half an hour of steady traffic of every kind on the real binary: unary calls over the mesh and through the gateway,
//! streams that are opened and given up, connections that come and go. No call may fail, and memory, file descriptors
//! and tasks may not grow. Before that, h2spec, where there is one, tries the HTTP/2 of a mesh port.

mod conformance;
mod traffic;

use serde_json::{Value, json};
use std::{path::PathBuf, process::Command, time::Duration};
use tars::rest::Rest;
use tars_tests::{
    memory::{BOUND_MIB_PER_HOUR, Memory},
    process::{Running, Up},
    steady::{Course, Held, Run},
};
use tokio::time::{Instant, sleep};
use traffic::Traffic;

type Failure = Box<dyn std::error::Error + Send + Sync>;

const HOURS: f64 = 0.5;
const SAMPLE: Duration = Duration::from_secs(5);
/// How much of the second half the samples have to cover: the first is taken late, and the last early.
const MOSTLY: f64 = 0.9;

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

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

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let is_json = std::env::args().any(|argument| argument == "--json");
    let hours = argument("--hours").map_or(Ok(HOURS), |text| text.parse())?;
    let data = tempfile::tempdir()?;
    let binary = PathBuf::from(std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?);
    let up = Up::new(Command::new(binary), data.path()).unlimited();
    let up = up.env("TARS__CREDENTIALS__ACCESS_TOKEN_SECONDS", "86400");
    let mesh = up.env("TARS__LIMITS__FLOOD_PER_SECOND", "1000000").start();
    let conformance = conformance::run(&mesh).await?;
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
    let courses = Course::of(&all);
    let held = courses
        .iter()
        .map(|one| (one.name.to_owned(), one.report()));
    let report = json!({
        "soak": "traffic",
        "hours": hours,
        "h2spec": conformance.report(),
        "traffic": calls,
        "held": held.collect::<serde_json::Map<String, Value>>(),
        "slope_mib_per_hour": memory.report()["slope_mib_per_hour"],
        "bound_mib_per_hour": BOUND_MIB_PER_HOUR,
    });
    match is_json {
        true => println!("{report}"),
        false => println!("{report:#}"),
    }
    let run = Run {
        failed: calls["failed"].as_u64().ok_or("no count of failed calls")?,
        conformance,
        courses,
        memory: memory.growth_over(hours / 2.0 * MOSTLY),
        is_full: hours >= HOURS,
    };
    run.judge().map_err(|faults| {
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        faults.join("; ").into()
    })
}
