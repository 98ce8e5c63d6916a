//! How many decisions there are in a second: in process, from leases, and by round trips to the server.

use crate::{
    Sizes,
    replica::{Replica, charges, limit, server},
};
use governor::{Quota, clock::FakeRelativeClock};
use serde_json::{Value, json};
use std::{hint::black_box, num::NonZeroU32, sync::Arc, time::Duration};
use tars_interceptors::limits::{Charging, Limit, LimitName, RateLimiter};
use tars_runtime::{
    clock::{Clock, Monotonic},
    config::Limits,
    scripts::{ScriptError, Scripts},
};
use tars_search::quantile;
use tars_tests::redis::Redis;

/// What strangers can name: the map is as full as it gets in use.
const CALLERS: u32 = 10_000;

/// The sliding log that services usually keep, on the caller's clock.
const SORTED_SET: &str = "
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', ARGV[1] - ARGV[2])
local count = redis.call('ZCARD', KEYS[1])
if count >= tonumber(ARGV[3]) then return {0, 0} end
redis.call('ZADD', KEYS[1], ARGV[1], ARGV[1])
redis.call('EXPIRE', KEYS[1], math.ceil(ARGV[2] / 1000000))
return {1, ARGV[3] - count - 1}";

fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(t.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(t.tv_nsec).unwrap_or_default())
}

fn median(samples: Vec<f64>) -> f64 {
    quantile::median(samples).expect("there is at least one round")
}

fn rate(count: u32, lasted: Duration) -> f64 {
    f64::from(count) / lasted.as_secs_f64()
}

/// Decisions by CPU second of one thread, without a server.
pub(crate) fn local(sizes: Sizes) -> Value {
    let volume = limit(LimitName::User, 1_000_000_000, 60);
    let exact = limit(LimitName::Auth, 1000, 3600);
    let rounds = |limit| {
        median(
            (0..sizes.rounds)
                .map(|_| local_round(limit, sizes))
                .collect(),
        )
    };
    let governor = median((0..sizes.rounds).map(|_| governor_round(sizes)).collect());
    json!({
        "volume": rounds(volume),
        "exact": rounds(exact),
        "governor": governor,
        "callers": CALLERS,
    })
}

/// The same by `governor`, keyed by the caller. Neither reads a clock.
fn governor_round(sizes: Sizes) -> f64 {
    let quota = Quota::per_second(NonZeroU32::new(1_000_000_000).expect("not zero"));
    let clock = FakeRelativeClock::default();
    let limiter = governor::RateLimiter::hashmap_with_clock(quota, clock);
    let callers = callers();
    let start = cpu_time();
    for who in callers.iter().cycle().take(sizes.decisions as usize) {
        assert!(black_box(limiter.check_key(who)).is_ok());
    }
    rate(sizes.decisions, cpu_time() - start)
}

fn callers() -> Vec<String> {
    (0..CALLERS).map(|n| format!("caller-{n:05}")).collect()
}

fn local_round(limit: Limit, sizes: Sizes) -> f64 {
    let limiter = RateLimiter::new(&Limits::default(), Clock::system());
    let callers = callers();
    let mut now = Monotonic::from_start(Duration::from_secs(1000));
    let start = cpu_time();
    for who in callers.iter().cycle().take(sizes.decisions as usize) {
        now = now + Duration::from_nanos(200);
        match limiter.charge(&charges(limit, who), now) {
            Charging::Ready(outcome) => assert!(black_box(outcome).passed()),
            Charging::Remote(_) => panic!("there is no server"),
        }
    }
    rate(sizes.decisions, cpu_time() - start)
}

/// Decisions of one task about one busy caller, most of them from leases.
pub(crate) async fn leased(redis: &Redis, sizes: Sizes) -> Result<Value, ScriptError> {
    let replica = Replica::connected(redis, "leased", 100).await;
    let limit = limit(LimitName::User, 1_000_000_000, 10);
    let mut rates = Vec::new();
    let mut remote = 0u32;
    for _ in 0..sizes.rounds {
        let start = replica.clock.monotonic();
        for _ in 0..sizes.decisions {
            let now = replica.clock.monotonic();
            match replica.limiter.charge(&charges(limit, "busy"), now) {
                Charging::Ready(outcome) => assert!(outcome.passed()),
                Charging::Remote(outcome) => {
                    remote += 1;
                    assert!(outcome.await.passed());
                }
            }
        }
        rates.push(rate(
            sizes.decisions,
            replica.clock.monotonic().since(start),
        ));
    }
    let all = f64::from(sizes.decisions) * sizes.rounds as f64;
    Ok(json!({
        "median": median(rates),
        "waited_for_the_server": f64::from(remote) / all,
    }))
}

/// Exact decisions over the server, against its PING and the usual script, each on one connection.
pub(crate) async fn round_trips(redis: &Redis, sizes: Sizes) -> Result<Value, ScriptError> {
    let trips = Arc::new(Trips {
        replica: Replica::connected(redis, "trips", 100).await,
        scripts: Scripts::open(&server(redis), &[SORTED_SET]).await?,
    });
    Ok(json!({
        "one": in_flight(&trips, 1, sizes).await?,
        "sixty_four": in_flight(&trips, 64, sizes).await?,
    }))
}

struct Trips {
    replica: Replica,
    scripts: Scripts,
}

#[derive(Debug, Clone, Copy)]
enum Trip {
    Ping,
    Decision,
    SortedSet,
}

async fn in_flight(trips: &Arc<Trips>, width: u32, sizes: Sizes) -> Result<Value, ScriptError> {
    let (mut pings, mut decisions, mut usual, mut ratios) = (vec![], vec![], vec![], vec![]);
    for round in 0..sizes.rounds {
        let run = |trip| round_of(trips, trip, round, width, sizes.trips);
        let (ping, decision) = (run(Trip::Ping).await?, run(Trip::Decision).await?);
        usual.push(run(Trip::SortedSet).await?);
        pings.push(ping);
        decisions.push(decision);
        ratios.push(decision / ping);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(json!({
        "ratio": median(ratios.clone()),
        "ratio_least": ratios.first(),
        "ratio_most": ratios.last(),
        "decisions_per_s": median(decisions),
        "ping_per_s": median(pings),
        "sorted_set_per_s": median(usual),
    }))
}

/// So many round trips, `width` of them in flight, each a second's.
async fn round_of(
    trips: &Arc<Trips>,
    trip: Trip,
    round: usize,
    width: u32,
    count: u32,
) -> Result<f64, ScriptError> {
    let start = trips.replica.clock.monotonic();
    let tasks: Vec<_> = (0..width)
        .map(|task| {
            let (trips, each) = (Arc::clone(trips), count / width);
            tokio::spawn(async move {
                for n in 0..each {
                    trips
                        .one(trip, &format!("{round}-{width}-{task}-{}", n / 8))
                        .await?;
                }
                Ok::<_, ScriptError>(())
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("a round trip does not panic")?;
    }
    Ok(rate(count, trips.replica.clock.monotonic().since(start)))
}

impl Trips {
    /// One round trip for a caller who comes eight times, ten being allowed.
    async fn one(&self, trip: Trip, who: &str) -> Result<(), ScriptError> {
        match trip {
            Trip::Ping => self.scripts.ping().await,
            Trip::Decision => {
                let limit = limit(LimitName::Auth, 10, 3600);
                assert!(self.replica.decide(limit, who).await.passed());
                Ok(())
            }
            Trip::SortedSet => {
                let now = self.replica.clock.monotonic().since(Monotonic::default());
                let arguments = [now.as_micros() as f64, 3.6e9, 10.0];
                let key = format!("usual:{who}");
                self.scripts.run(0, &[&key], &arguments).await.map(drop)
            }
        }
    }
}
