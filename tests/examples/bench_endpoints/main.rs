//! What callers notice of an endpoint that is dead, hung, slow or flapping: the 99th percentile of small calls over three
//! endpoints of which one has a fault, against three healthy ones, and how many calls fail once the channel has
//! noticed. The last cast has one of each fault beside a healthy one. Slices of load alternate in one process,
//! so that all of them see the same machine; what is wrong stays wrong between the slices.

mod cast;
mod replica;

use cast::{Cast, Slice};
use replica::{FLAP, Fault, LITTLE_SLOWER, SLOWER, WORK};
use serde_json::{Map, Value, json};
use std::time::Duration;
use tars_search::quantile;

pub(crate) type Failure = Box<dyn std::error::Error>;

/// The casts, the healthy one first.
const CASTS: [(&str, &[Fault]); 7] = [
    ("healthy", &[Fault::None; 3]),
    ("dead", &[Fault::None, Fault::None, Fault::Dead]),
    ("hung", &[Fault::None, Fault::None, Fault::Hung]),
    ("slow", &[Fault::None, Fault::None, Fault::Slow]),
    (
        "little_slow",
        &[Fault::None, Fault::None, Fault::LittleSlow],
    ),
    ("flapping", &[Fault::None, Fault::None, Fault::Flapping]),
    (
        "together",
        &[Fault::None, Fault::Dead, Fault::Slow, Fault::Flapping],
    ),
];

/// What the slices of one cast came to.
struct Seen {
    cast: Cast,
    errors_before: u64,
    errors: u64,
    calls: usize,
    p50: Vec<f64>,
    p99: Vec<f64>,
}

impl Seen {
    fn record(&mut self, mut slice: Slice) -> Result<(), Failure> {
        slice.times.sort_by(f64::total_cmp);
        let at = |share| quantile::quantile(&slice.times, share);
        self.p50.push(at(0.5).ok_or("no call came back")?);
        self.p99.push(at(0.99).ok_or("no call came back")?);
        self.calls += slice.times.len();
        self.errors += slice.errors;
        Ok(())
    }

    /// The ratios of its percentiles to those of the healthy cast in the same round.
    fn ratios(&self, healthy: &Self) -> Vec<f64> {
        let both = self.p99.iter().zip(&healthy.p99);
        both.map(|(own, of_healthy)| own / of_healthy).collect()
    }

    fn report(&self, healthy: &Self) -> Result<Value, Failure> {
        let mut ratios = self.ratios(healthy);
        ratios.sort_by(f64::total_cmp);
        Ok(json!({
            "p50_us": median(self.p50.clone()).round(),
            "p99_us": median(self.p99.clone()).round(),
            "p99_ratio": median(ratios.clone()),
            "p99_spread": [ratios.first(), ratios.last()],
            "calls": self.calls,
            "errors_before_ejection": self.errors_before,
            "errors_after_ejection": self.errors,
            "ejections": self.cast.ejections()?,
            "retries": self.cast.retries()?,
            "faulty_share": self.cast.drawn(),
        }))
    }
}

fn median(values: Vec<f64>) -> f64 {
    quantile::median(values).expect("there is at least one round")
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    let (rounds, length) = match has("--quick") {
        true => (5, Duration::from_secs(1)),
        false => (15, Duration::from_secs(3)),
    };
    let mut all = Vec::new();
    for (name, faults) in CASTS {
        let cast = Cast::start(name, faults).await?;
        let errors_before = cast.warm(length).await?;
        all.push(Seen {
            cast,
            errors_before,
            errors: 0,
            calls: 0,
            p50: Vec::new(),
            p99: Vec::new(),
        });
    }
    for round in 0..rounds {
        // Who goes first alternates.
        let count = all.len();
        for at in 0..count {
            let seen = &mut all[(at + round) % count];
            let slice = seen.cast.load(length).await?;
            seen.record(slice)?;
        }
    }
    let report = report(&all, rounds)?;
    if has("--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}

fn report(all: &[Seen], rounds: usize) -> Result<Value, Failure> {
    let (healthy, faulty) = all.split_first().ok_or("no casts")?;
    let worst = faulty.iter().max_by(|a, b| {
        let ratio = |seen: &Seen| median(seen.ratios(healthy));
        ratio(a).total_cmp(&ratio(b))
    });
    let worst = worst.ok_or("no faults")?;
    let casts: Result<Map<String, Value>, Failure> = all
        .iter()
        .map(|seen| Ok((seen.cast.name.to_owned(), seen.report(healthy)?)))
        .collect();
    let mut ratios = worst.ratios(healthy);
    ratios.sort_by(f64::total_cmp);
    Ok(json!({
        "bench": "endpoints",
        "baseline": "three healthy endpoints, slices of the same rounds",
        "rounds": rounds,
        "work_us": WORK.as_micros(),
        "slow_factor": SLOWER,
        "little_slow_factor": LITTLE_SLOWER,
        "flap_ms": FLAP.as_millis(),
        "worst": worst.cast.name,
        "healthy_p99_us": median(healthy.p99.clone()).round(),
        "faulty_p99_us": median(worst.p99.clone()).round(),
        "p99_ratio": median(ratios.clone()),
        "p99_spread": [ratios.first(), ratios.last()],
        "errors_after_ejection": faulty.iter().map(|seen| seen.errors).sum::<u64>(),
        "casts": casts?,
    }))
}
