//! What an honest client notices while a stranger attacks: each attack runs against the real binary
//! from an address of its own, while an honest client on another one calls the mesh, the gateway
//! and the process's own port. An attack is measured between two quiet slices of the same run, which
//! are the baseline.
//!
//! For each attack: `good_share`, the part of the honest calls that were answered well (the least of
//! the surfaces); `p99_ratio`, their p99 against the quiet one (the greatest of the surfaces); and
//! `rss_mb`, by how much the resident memory has grown once the attack is over.

mod attacks;
mod honest;
mod target;

use attacks::{ATTACKS, Attack, Ground};
use honest::{Honest, Samples, Surface};
use serde_json::{Map, Value, json};
use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};
use target::Target;
use tokio::time::sleep;

pub(crate) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How long each part of a run takes.
struct Times {
    attack: Duration,
    quiet: Duration,
    /// From the end of an attack until memory is looked at.
    settle: Duration,
}

struct Measured {
    attack: &'static Attack,
    tried: u64,
    most_held: u64,
    samples: Samples,
    rss_mb: f64,
}

async fn measure(
    attack: &'static Attack,
    target: &Target,
    honest: &Honest,
    times: &Times,
    quiet: &mut Samples,
) -> Result<Measured, Failure> {
    quiet.add(honest.call_for(times.quiet).await);
    let before = target.resident_mb()?;
    let ground = Arc::new(Ground::new(target, times.attack)?);
    let attacking = tokio::spawn((attack.run)(Arc::clone(&ground)));
    // Measured once the attack stands.
    sleep(times.attack / 5).await;
    let samples = honest.call_for(times.attack * 3 / 5).await;
    attacking.await?;
    sleep(times.settle).await;
    quiet.add(honest.call_for(times.quiet).await);
    Ok(Measured {
        attack,
        tried: ground.tried.load(Ordering::Relaxed),
        most_held: ground.most_held.load(Ordering::Relaxed),
        samples,
        rss_mb: target.resident_mb()? - before,
    })
}

fn surface_report(samples: &Samples, quiet: &Samples, surface: Surface) -> Value {
    json!({
        "good_share": samples.good_share(surface),
        "calls": samples.calls(surface),
        "first_bad": samples.complaint(surface),
        "p99_ms": samples.p99(surface),
        "p99_ratio": samples.p99(surface) / quiet.p99(surface),
    })
}

fn report(measured: &Measured, quiet: &Samples) -> Value {
    let surfaces: Map<String, Value> = Surface::ALL
        .into_iter()
        .map(|s| {
            (
                s.name().to_owned(),
                surface_report(&measured.samples, quiet, s),
            )
        })
        .collect();
    let of = |key: &'static str| surfaces.values().filter_map(move |s| s[key].as_f64());
    json!({
        "what": measured.attack.what,
        "good_share": of("good_share").fold(1.0, f64::min),
        "p99_ratio": of("p99_ratio").fold(0.0, f64::max),
        "rss_mb": measured.rss_mb,
        "tried": measured.tried,
        "most_held": measured.most_held,
        "surfaces": surfaces,
    })
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let has = |flag: &str| arguments.iter().any(|a| a == flag);
    let times = if has("--quick") {
        Times {
            attack: Duration::from_millis(2000),
            quiet: Duration::from_millis(400),
            settle: Duration::from_millis(500),
        }
    } else {
        Times {
            attack: Duration::from_secs(10),
            quiet: Duration::from_millis(2500),
            settle: Duration::from_secs(3),
        }
    };
    let only = arguments.iter().find(|a| !a.starts_with("--"));
    attacks::raise_descriptor_limit()?;
    let binary = PathBuf::from(std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?);
    let target = Target::start(&binary).await?;
    let honest = Honest::new(&target).await?;
    // Lazily made things are made, and the pools are as large as they get.
    honest.call_for(times.quiet * 2).await;

    let mut quiet = Samples::default();
    let mut all = Vec::new();
    for attack in ATTACKS {
        if only.is_some_and(|name| name != attack.name) {
            continue;
        }
        eprintln!("{}: {}", attack.name, attack.what);
        all.push(measure(attack, &target, &honest, &times, &mut quiet).await?);
    }
    let attacks: Map<String, Value> = all
        .iter()
        .map(|m| (m.attack.name.to_owned(), report(m, &quiet)))
        .collect();
    let quiet: Map<String, Value> = Surface::ALL
        .into_iter()
        .map(|s| {
            let report = json!({ "p99_ms": quiet.p99(s), "calls": quiet.calls(s), "good_share": quiet.good_share(s) });
            (s.name().to_owned(), report)
        })
        .collect();
    let report = json!({
        "bench": "abuse",
        "baseline": "the same honest calls in quiet slices between the attacks",
        "attack_seconds": times.attack.as_secs_f64(),
        "limits": target::LIMITS,
        "quiet": quiet,
        "attacks": attacks,
    });
    if has("--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}
