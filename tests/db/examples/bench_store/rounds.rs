//! Rounds of two kinds of work in turns, by the clock and by the process's CPU time.

use crate::{Failure, Scale};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tars_search::quantile::median;
use tokio::time::Instant;

/// How the two are compared.
#[derive(Clone, Copy)]
pub(crate) struct Pair {
    /// What one operation counts for.
    weight: f64,
}

impl Pair {
    /// Each operation reads or writes so many rows, which are what is counted.
    pub(crate) fn of_rows(rows: usize) -> Self {
        Self {
            weight: rows as f64,
        }
    }
}

/// What a round has come to.
#[derive(Clone, Copy)]
struct Round {
    per_second: f64,
    cpu_us: f64,
}

fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(t.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(t.tv_nsec).unwrap_or_default())
}

/// What is measured. Callers are tasks of their own, as the calls of a service are.
pub(crate) trait Work: Clone + Send + Sync + 'static {
    /// Does it once; `n` counts the operations.
    fn run(&self, n: usize) -> impl Future<Output = Result<(), Failure>> + Send;
}

/// Does some work by several callers until the round is over.
async fn round(
    pair: Pair,
    callers: usize,
    length: Duration,
    work: &impl Work,
) -> Result<Round, Failure> {
    let (began, cpu) = (Instant::now(), cpu_time());
    let done = Arc::new(AtomicUsize::new(0));
    let caller = || {
        let (work, done) = (work.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            while began.elapsed() < length {
                work.run(done.fetch_add(1, Ordering::Relaxed)).await?;
            }
            Ok::<(), Failure>(())
        })
    };
    let callers: Vec<_> = (0..callers).map(|_| caller()).collect();
    for caller in callers {
        caller.await??;
    }
    let amount = done.load(Ordering::Relaxed) as f64 * pair.weight;
    Ok(Round {
        per_second: amount / began.elapsed().as_secs_f64(),
        cpu_us: (cpu_time() - cpu).as_secs_f64() * 1e6 / amount,
    })
}

/// Two kinds of work in turns: the medians of each, and of the ratios of neighbouring rounds.
pub(crate) async fn interleaved(
    pair: Pair,
    callers: usize,
    scale: Scale,
    ours: &impl Work,
    baseline: &impl Work,
) -> Result<Value, Failure> {
    let mut rounds = Vec::new();
    // The first round of each opens connections, and prepares statements.
    for n in 0..=scale.rounds {
        let ours = round(pair, callers, scale.round, ours);
        let baseline = round(pair, callers, scale.round, baseline);
        rounds.push(match n % 2 {
            0 => (ours.await?, baseline.await?),
            _ => {
                let baseline = baseline.await?;
                (ours.await?, baseline)
            }
        });
    }
    let of = |value: fn(&(Round, Round)) -> f64| -> Result<f64, Failure> {
        let values = rounds.iter().skip(1).map(value).collect();
        median(values).ok_or_else(|| "there are no rounds".into())
    };
    Ok(json!({
        "ratio": of(|(ours, baseline)| ours.per_second / baseline.per_second)?,
        "cpu_ratio": of(|(ours, baseline)| baseline.cpu_us / ours.cpu_us)?,
        "per_second": of(|(ours, _)| ours.per_second)?,
        "baseline_per_second": of(|(_, baseline)| baseline.per_second)?,
        "cpu_us": of(|(ours, _)| ours.cpu_us)?,
        "baseline_cpu_us": of(|(_, baseline)| baseline.cpu_us)?,
    }))
}
