//! The whole path of a small call and of a stream, against what people would take in its place: bare tonic over
//! plaintext and over its own mutual TLS, tonic with the usual interceptor, grpc-go with one, and two nginx as sidecars
//! of a server that speaks plaintext. Each server is a process of its own, so that its CPU time is known apart from the
//! client's; slices of load take turns, so that all see the same machine. A peer whose program the machine lacks
//! is left out, with `null` for its figures.
//!
//! All that is Rust has the allocator of `tars`.
//!
//! For a profiler, `--only=NAME` loads one variant and nothing else.

mod collector;
mod credentials;
mod echo;
mod load;
mod outside;
mod processes;
mod report;
mod servers;
mod sidecars;
mod variants;

use credentials::Credentials;
use echo::Echo;
use report::Rounds;
use servers::Kind;
use std::{path::PathBuf, time::Duration};
use variants::Variant;

type Failure = Box<dyn std::error::Error>;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// For a profiler: this variant alone is loaded for as long.
const PROFILED: Duration = Duration::from_secs(20);

/// What every call is answered with.
const ANSWER: &str =
    "a text of the size that the answer of a small call has, about eighty bytes in all";

/// The numbers of callers of closed loops; figures without a number are those of the first.
const CALLERS: [usize; 4] = [64, 1, 8, 256];
/// Readers of streams, and openers of connections.
const FEW: usize = 8;
/// The share of the least capacity that open loops ask for.
const LOADED: f64 = 0.3;

/// How long a run takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Slices of each variant in the main comparison.
    rounds: usize,
    /// Slices of each variant in the others.
    fewer: usize,
    length: Duration,
    /// Of a slice of an outside client, which takes a while to start.
    outside: Duration,
    idle: usize,
}

impl Sizes {
    fn new(quick: bool) -> Self {
        match quick {
            true => Self {
                rounds: 3,
                fewer: 1,
                length: Duration::from_millis(300),
                outside: Duration::from_secs(1),
                idle: 100,
            },
            false => Self {
                rounds: 15,
                fewer: 5,
                length: Duration::from_secs(1),
                outside: Duration::from_secs(3),
                idle: 500,
            },
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [serve, kind, folder, text] = &arguments[..]
        && serve == "serve"
    {
        let credentials = Credentials(PathBuf::from(folder));
        return servers::serve(Kind::parse(kind)?, credentials, Echo::new(text)).await;
    }
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let folder = tempfile::tempdir()?;
    let credentials = Credentials::issue(folder.path())?;
    let all = variants::start(&credentials, &Echo::new(ANSWER)).await?;
    let only = arguments.iter().find_map(|a| a.strip_prefix("--only="));
    if let Some(only) = only {
        return profiled(&all, only).await;
    }
    let rounds = measure(&all, &credentials, Sizes::new(has("--quick"))).await?;
    match has("--json") {
        true => println!("{}", rounds.json()),
        false => print!("{}", rounds.table()),
    }
    Ok(())
}

/// Loads one variant alone.
async fn profiled(all: &[Variant], name: &str) -> Result<(), Failure> {
    let variant = all.iter().find(|v| v.name == name);
    let variant = variant.ok_or_else(|| format!("there is no variant {name}"))?;
    let measured = variant
        .measure(variant.target.closed(CALLERS[0], PROFILED))
        .await?;
    println!(
        "{name}: {} calls, {:.2} us of CPU each, {:.2} of the server",
        measured.slice.done,
        measured.total_us(),
        measured.server_us()
    );
    Ok(())
}

/// All slices, in turns.
async fn measure(
    all: &[Variant],
    credentials: &Credentials,
    sizes: Sizes,
) -> Result<Rounds, Failure> {
    let mut rounds = Rounds::new(all.iter().map(|v| v.name).collect());
    // Before there is memory that earlier connections have given back.
    for variant in all.iter().filter(|v| v.encrypted) {
        rounds.idle(variant.name, idle(variant, sizes.idle).await?);
    }
    for callers in CALLERS {
        let count = if callers == CALLERS[0] {
            sizes.rounds
        } else {
            sizes.fewer
        };
        for round in 0..count {
            for variant in in_turn(all, round) {
                let load = variant.target.closed(callers, sizes.length);
                let measured = variant.measure(load).await?;
                rounds.closed(variant.name, callers, measured);
            }
        }
        eprintln!("closed loop, {callers} callers: done");
    }
    let rate = LOADED * rounds.least_rate(CALLERS[0]);
    rounds.open_rate = rate;
    for round in 0..sizes.rounds {
        for variant in in_turn(all, round) {
            let load = variant.target.open(rate, 2 * sizes.length, round as u64);
            rounds.open(variant.name, variant.measure(load).await?);
        }
    }
    eprintln!("open loop, {rate:.0} calls a second: done");
    for round in 0..sizes.fewer {
        for variant in in_turn(all, round) {
            let load = variant.target.streams(FEW, sizes.length);
            rounds.streams(variant.name, variant.measure(load).await?);
            if variant.encrypted {
                let load = variant.target.handshakes(FEW, sizes.length);
                rounds.handshakes(variant.name, variant.measure(load).await?);
            }
        }
    }
    eprintln!("streams, handshakes: done");
    from_outside(&mut rounds, all, credentials, sizes).await?;
    Ok(rounds)
}

/// Who goes first alternates.
fn in_turn(all: &[Variant], round: usize) -> impl Iterator<Item = &Variant> {
    let first = round % all.len();
    all[first..].iter().chain(&all[..first])
}

/// Memory of the server for each of some connections that have made one call, in bytes.
async fn idle(variant: &Variant, count: usize) -> Result<f64, Failure> {
    let before = variant.resident()?;
    let mut open = Vec::new();
    for _ in 0..count {
        let channel = variant.target.connect().await?;
        variant.target.call(&channel).await?;
        open.push(channel);
    }
    let after = variant.resident()?;
    drop(open);
    Ok(after.saturating_sub(before) as f64 / count as f64)
}

/// Clients that others wrote, against the servers that verify a token.
async fn from_outside(
    rounds: &mut Rounds,
    all: &[Variant],
    credentials: &Credentials,
    sizes: Sizes,
) -> Result<(), Failure> {
    type Client = fn(&str, &str, &Credentials, Duration) -> Result<outside::Done, Failure>;
    let clients: [(&'static str, &str, Client); 2] = [
        ("ghz", outside::GHZ, outside::ghz),
        ("k6", outside::K6, outside::k6),
    ];
    for (name, variable, client) in clients {
        let Ok(program) = std::env::var(variable) else {
            continue;
        };
        for round in 0..sizes.fewer {
            for variant in in_turn(all, round) {
                if !["mtls", "full_1pct", "grpc_go"].contains(&variant.name) {
                    continue;
                }
                let before = variant.cpu()?;
                let done = tokio::task::block_in_place(|| {
                    client(&program, &variant.address, credentials, sizes.outside)
                })?;
                let used = variant.cpu()?.saturating_sub(before);
                rounds.outside(name, variant.name, (done, used));
            }
        }
        eprintln!("{name}: done");
    }
    Ok(())
}
