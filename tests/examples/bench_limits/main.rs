//! The limiter, in process and over a Redis server of its own: whether it is exact, how fast it decides, and
//! what a server that hangs costs. The baselines are Redis' own PING on the same kind of connection, and
//! the sliding log that services usually keep in a sorted set.

mod exact;
mod hung;
mod replica;
mod speed;

use serde_json::json;
use tars_tests::redis::Redis;

/// What a run is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    /// Rounds of which a median is taken, ours and the baseline in turn.
    pub(crate) rounds: usize,
    /// Decisions of a round in process.
    pub(crate) decisions: u32,
    /// Round trips of a round.
    pub(crate) trips: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    let sizes = match has("--quick") {
        true => Sizes {
            rounds: 3,
            decisions: 200_000,
            trips: 2_000,
        },
        false => Sizes {
            rounds: 15,
            decisions: 2_000_000,
            trips: 10_000,
        },
    };
    let redis = Redis::start();
    let exact = exact::run(&redis).await;
    let volume = exact::volume(&redis).await;
    let local = speed::local(sizes);
    let leased = speed::leased(&redis, sizes).await?;
    let trips = speed::round_trips(&redis, sizes).await?;
    let hung = hung::run(&redis, sizes).await;
    let report = json!({
        "bench": "limits",
        "baseline": "PING on the same kind of connection, and a sliding log in a sorted set",
        "limits": "as printed here; those of the configuration are not used",
        "rounds": sizes.rounds,
        "exact": exact,
        "volume": volume,
        "local_per_s": local,
        "leased_per_s": leased,
        "redis": trips,
        "redis_ratio": trips["one"]["ratio"],
        "redis_ratio_64": trips["sixty_four"]["ratio"],
        "hung": hung,
    });
    if has("--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}
