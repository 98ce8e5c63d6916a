//! Limits that replicas count together, over a Redis server that is killed, frozen and emptied.

#![allow(clippy::unwrap_used)]

use futures_util::future::join_all;
use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    sync::Arc,
    time::Duration,
};
use tars_interceptors::limits::{
    Charge, Charges, Limit, LimitName, Outcome, Over, RateLimiter, Subject,
};
use tars_runtime::{
    bus::Server, clock::Clock, config::Limits, health::Condition, metrics::Metrics, seeds::Seeds,
};
use tars_tests::{TestMesh, config, eventually, fleet::free_addr, redis::Redis, refusal};
use tokio_util::task::AbortOnDropHandle;

const HOUR: Duration = Duration::from_secs(3600);
const AUTH: Limit = Limit::new(LimitName::Auth, 20, HOUR);
const BUDGET: Limit = Limit::new(LimitName::KeyChanges, 7, HOUR);
const USER: Limit = Limit::new(LimitName::User, 400, HOUR);

#[path = "limits/answers.rs"]
mod answers;

/// A replica's limiter, and its work.
struct Replica {
    limiter: RateLimiter,
    clock: Clock,
    up: Condition,
    _work: AbortOnDropHandle<()>,
}

impl Replica {
    fn new(redis: &Redis, budget_ms: u64) -> Self {
        Self::of(redis, "test", budget_ms)
    }

    /// Of the replicas that are called `group`.
    fn of(redis: &Redis, group: &str, budget_ms: u64) -> Self {
        Self::with(&redis.settings(), group, budget_ms)
    }

    fn with(settings: &tars_runtime::config::Redis, group: &str, budget_ms: u64) -> Self {
        let clock = Clock::system();
        let up = Condition::new(clock.clone());
        up.record_failure("not yet connected");
        let server = Server::of(settings, None).unwrap().unwrap();
        let (limiter, work) = RateLimiter::over(Over {
            limits: &Limits {
                redis_budget_ms: budget_ms,
                ..Limits::default()
            },
            clock: clock.clone(),
            server,
            group: group.to_owned(),
            groups: 1,
            condition: up.clone(),
            metrics: &Metrics::default(),
            seeds: Seeds::system(),
        });
        Self {
            limiter,
            clock,
            up,
            _work: AbortOnDropHandle::new(tokio::spawn(work)),
        }
    }

    async fn connected(&self) {
        eventually("the limiter is connected", || async {
            self.up.outage().is_none()
        })
        .await;
    }

    async fn try_once(&self, charges: &Charges<'_>) -> Outcome {
        let charging = self.limiter.charge(charges, self.clock.monotonic());
        charging.outcome().await
    }

    /// How many of `tries` pass.
    async fn passed(&self, charges: &Charges<'_>, tries: usize) -> usize {
        let mut passed = 0;
        for _ in 0..tries {
            passed += usize::from(self.try_once(charges).await.passed());
        }
        passed
    }
}

/// Replicas that know of each other.
async fn replicas(redis: &Redis, count: usize) -> Vec<Replica> {
    replicas_within(redis, count, 1000).await
}

/// The same; a decision is late after so many milliseconds.
async fn replicas_within(redis: &Redis, count: usize, budget_ms: u64) -> Vec<Replica> {
    let all: Vec<Replica> = (0..count).map(|_| Replica::new(redis, budget_ms)).collect();
    for replica in &all {
        replica.connected().await;
    }
    eventually("the replicas know of each other", || async {
        all.iter().all(|r| r.limiter.replicas() == count as u32)
    })
    .await;
    all
}

fn alone(limit: Limit, who: &str) -> Charges<'_> {
    Charges {
        class: Charge {
            limit,
            subject: Subject::Name(who),
        },
        site: None,
        budget: None,
    }
}

fn both(class: Limit, who: &str) -> Charges<'_> {
    Charges {
        budget: Some(Charge {
            limit: BUDGET,
            subject: Subject::Name(who),
        }),
        ..alone(class, who)
    }
}

/// Sends one command as the server's own client would, and returns the reply.
fn command(redis: &Redis, line: &str) -> String {
    let url = redis.settings().url.unwrap();
    let mut stream = UnixStream::connect(url.strip_prefix("unix://").unwrap()).unwrap();
    write!(stream, "{line}\r\nQUIT\r\n").unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    reply
}

fn keys(redis: &Redis) -> Vec<String> {
    let reply = command(redis, "KEYS *");
    let keys = reply.lines().filter(|line| line.starts_with("tars:"));
    keys.map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn parallel_tries_over_four_replicas_pass_exactly_as_often_as_the_limit_says() {
    let redis = Redis::start();
    let replicas = Arc::new(replicas(&redis, 4).await);
    for (who, tries) in [("few", 64), ("many", 2048)] {
        let one = |n: usize| {
            let replicas = Arc::clone(&replicas);
            tokio::spawn(async move { replicas[n % 4].passed(&alone(AUTH, who), 1).await })
        };
        let passed = join_all((0..tries).map(one)).await;
        let passed: usize = passed.into_iter().map(Result::unwrap).sum();
        assert_eq!(passed, 20, "of {tries}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_call_that_one_limit_refuses_is_charged_to_none() {
    let redis = Redis::start();
    let replicas = replicas(&redis, 2).await;
    for class in [AUTH, USER] {
        let who = class.name.as_str();
        let mut passed = 0;
        for n in 0..40 {
            passed += replicas[n % 2].passed(&both(class, who), 1).await;
        }
        assert_eq!(passed, 7, "{who}: the budget's");
        let left = replicas[0].passed(&alone(class, who), 300).await
            + replicas[1].passed(&alone(class, who), 300).await;
        match class.is_exact() {
            true => assert_eq!(left, 20 - 7, "nothing for what was refused"),
            // What a replica has leased and not spent is lost.
            false => assert!((93 - 20..=93).contains(&left), "{left}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn volume_stays_within_its_stated_bound() {
    let redis = Redis::start();
    let replicas = replicas(&redis, 4).await;
    let limit = Limit::new(LimitName::User, 4000, HOUR);
    let charges = alone(limit, "ada");
    let tries = replicas
        .iter()
        .map(|replica| replica.passed(&charges, 2000));
    let passed: usize = join_all(tries).await.into_iter().sum();
    // A quarter at once, what an hour's limit gives within a minute, and what four replicas hold.
    assert!((800..=1000 + 67 + 200).contains(&passed), "{passed}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn processes_of_different_services_share_what_all_of_them_count() {
    let mut redis = Redis::start();
    let services = ["auth", "orchestration", "automl", "hypersync"];
    let all = services.map(|group| Replica::of(&redis, group, 1000));
    eventually("the processes know of each other", || async {
        let known = |r: &Replica| (r.limiter.replicas(), r.limiter.processes());
        all.iter().all(|r| known(r) == (1, 4))
    })
    .await;
    redis.kill();
    let (mut volume, mut exact) = (0, 0);
    for process in &all {
        eventually("it knows that the server is gone", || async {
            process.up.outage().is_some()
        })
        .await;
        volume += process.passed(&alone(USER, "ada"), 200).await;
    }
    exact += all[0].passed(&alone(AUTH, "ada"), 50).await;
    // A quarter at once, and what an hour's limit gives within a minute.
    assert!((100..=100 + 7).contains(&volume), "{volume}");
    assert_eq!(exact, 20, "no other process counts it");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_server_that_comes_and_goes_makes_no_share_larger() {
    let mut redis = Redis::start();
    let replicas = replicas(&redis, 2).await;
    let mut passed = 0;
    for round in 0..3 {
        redis.kill();
        for replica in &replicas {
            eventually("it knows that the server is gone", || async {
                replica.up.outage().is_some()
            })
            .await;
            assert_eq!(replica.limiter.replicas(), 2, "round {round}");
            passed += replica.passed(&alone(AUTH, "ada"), 50).await;
        }
        // Empty: whoever comes first finds nobody else.
        redis.start_again();
        eventually("one of them is back", || async {
            replicas.iter().any(|r| r.up.outage().is_none())
        })
        .await;
    }
    assert_eq!(passed, 20);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_server_that_hangs_opens_no_limit_and_learns_what_was_spent() {
    let redis = Redis::start();
    let replicas = replicas_within(&redis, 2, 50).await;
    assert_eq!(replicas[0].passed(&alone(AUTH, "ada"), 4).await, 4);
    redis.freeze();
    // Five of these are late, and may have counted.
    let by_share = replicas[0].passed(&alone(AUTH, "ada"), 100).await;
    assert_eq!(by_share, 10 - 4, "its share, less what it has spent");
    assert_eq!(replicas[1].passed(&alone(AUTH, "ada"), 100).await, 10);
    assert_eq!(replicas[0].passed(&alone(AUTH, "bob"), 100).await, 10);
    assert_eq!(replicas[0].passed(&alone(USER, "bob"), 200).await, 50);
    assert!(replicas[0].up.outage().is_some());
    redis.thaw();
    for replica in &replicas {
        replica.connected().await;
    }
    let mut passed = 0;
    for n in 0..200 {
        passed += replicas[n % 2].passed(&alone(AUTH, "ada"), 1).await;
    }
    assert_eq!(passed, 0, "4, 6 and 10 are all that the limit has");
    let mut passed = 0;
    for n in 0..200 {
        passed += replicas[n % 2].passed(&alone(AUTH, "bob"), 1).await;
    }
    assert_eq!(passed, 10, "the other half");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_server_that_is_killed_opens_no_limit_and_learns_what_was_spent() {
    let mut redis = Redis::start();
    let replicas = replicas(&redis, 2).await;
    redis.kill();
    eventually("both know", || async {
        replicas.iter().all(|r| r.up.outage().is_some())
    })
    .await;
    for replica in &replicas {
        assert_eq!(
            replica.passed(&alone(BUDGET, "ada"), 100).await,
            4,
            "7 / 2, rounded up"
        );
        assert_eq!(replica.passed(&alone(AUTH, "bob"), 5).await, 5);
    }
    redis.start_again();
    for replica in &replicas {
        replica.connected().await;
    }
    let mut passed = [0, 0];
    for n in 0..100 {
        passed[0] += replicas[n % 2].passed(&alone(BUDGET, "ada"), 1).await;
        passed[1] += replicas[n % 2].passed(&alone(AUTH, "bob"), 1).await;
    }
    assert_eq!(passed, [0, 10], "an empty server is told what was spent");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_server_that_has_forgotten_its_scripts_is_asked_again() {
    let redis = Redis::start();
    let replicas = replicas(&redis, 1).await;
    assert_eq!(replicas[0].passed(&alone(BUDGET, "ada"), 5).await, 5);
    command(&redis, "SCRIPT FLUSH");
    assert_eq!(replicas[0].passed(&alone(BUDGET, "ada"), 50).await, 2);
    replicas[0].connected().await;
    assert_eq!(replicas[0].passed(&alone(BUDGET, "ada"), 50).await, 0);
    eventually("its keys are there again or still", || async {
        !keys(&redis).is_empty()
    })
    .await;
}

/// Puts a list where the one count of the server is.
fn replace_the_count(redis: &Redis) {
    let key = keys(redis);
    let key = key.iter().find(|key| key.contains(":limit:")).unwrap();
    command(redis, &format!("DEL {key}\r\nLPUSH {key} x"));
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_key_that_is_something_else_is_no_error() {
    for forgets_scripts in [false, true] {
        let redis = Redis::start();
        let replicas = replicas(&redis, 1).await;
        assert_eq!(replicas[0].passed(&alone(BUDGET, "ada"), 1).await, 1);
        replace_the_count(&redis);
        if forgets_scripts {
            command(&redis, "SCRIPT FLUSH");
        }
        let passed = replicas[0].passed(&alone(BUDGET, "ada"), 50).await;
        assert_eq!(passed, 7 - 1, "limited by the replica itself");
    }
}

/// The keys of counts that are there now and were not `before`.
fn new_counts(redis: &Redis, before: &[String]) -> Vec<String> {
    let mut all = keys(redis);
    all.retain(|key| key.contains(":limit:") && !before.contains(key));
    all
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_key_that_is_something_else_leaves_other_callers_to_the_server() {
    let redis = Redis::start();
    let replicas = replicas(&redis, 2).await;
    assert_eq!(replicas[0].passed(&alone(BUDGET, "ada"), 1).await, 1);
    replace_the_count(&redis);
    replicas[0].passed(&alone(BUDGET, "ada"), 50).await;
    let bob = replicas[0].passed(&alone(BUDGET, "bob"), 50).await;
    assert_eq!(bob, 7, "not the share of a replica");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_call_that_its_budget_refuses_is_not_charged_by_the_process_either() {
    let mut redis = Redis::start();
    let replicas = replicas(&redis, 1).await;
    let replica = &replicas[0];
    assert_eq!(replica.passed(&alone(BUDGET, "ada"), 50).await, 7);
    let before = keys(&redis);
    assert_eq!(replica.passed(&alone(USER, "bob"), 1).await, 1);
    let cell = new_counts(&redis, &before).remove(0);
    command(&redis, &format!("DEL {cell}\r\nLPUSH {cell} x"));
    let charges = |who| Charges {
        budget: both(USER, "ada").budget,
        ..alone(USER, who)
    };
    assert_eq!(replica.passed(&charges("bob"), 3).await, 0);
    // Now the server does not decide about the class at all, which is owed.
    let before = keys(&redis);
    command(&redis, "SCRIPT FLUSH");
    assert_eq!(replica.passed(&charges("eve"), 1).await, 0);
    eventually("the connection is lost", || async {
        replica.up.outage().is_some()
    })
    .await;
    replica.connected().await;
    assert_eq!(
        new_counts(&redis, &before),
        [] as [String; 0],
        "nothing is owed"
    );
    redis.kill();
    eventually("the server is gone", || async {
        replica.up.outage().is_some()
    })
    .await;
    let left = replica.passed(&alone(USER, "bob"), 200).await;
    assert!((100..=107).contains(&left), "{left}: the whole burst");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_clock_that_is_set_back_moves_what_the_server_has_counted() {
    let redis = Redis::start();
    let replicas = replicas(&redis, 1).await;
    let charges = alone(BUDGET, "ada");
    assert_eq!(replicas[0].passed(&charges, 1).await, 1);
    let key = new_counts(&redis, &[]).remove(0);
    // As many calls as the limit has, twenty minutes apart, the last of them in two hours.
    let now = time::OffsetDateTime::now_utc().unix_timestamp() as f64;
    let log: String = (0..7)
        .map(|n| (now + 7200.0 - f64::from(6 - n) * 1200.0) * 1e6)
        .flat_map(f64::to_be_bytes)
        .map(|byte| format!("\\x{byte:02x}"))
        .collect();
    assert!(command(&redis, &format!("SET {key} \"{log}\"")).contains("+OK"));
    let passed = replicas[0].passed(&charges, 50).await;
    assert_eq!(passed, 7 - 3, "three of them are of the last hour");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_node_of_a_cluster_is_refused_by_name() {
    let [port, of_nodes] = [free_addr(), free_addr()].map(|addr| addr.port().to_string());
    let redis = Redis::with(&[
        "--cluster-enabled",
        "yes",
        "--bind",
        "127.0.0.1",
        "--port",
        &port,
        "--cluster-port",
        &of_nodes,
    ]);
    let replica = Replica::new(&redis, 1000);
    eventually("it says why", || async {
        let why = replica.up.outage().map(|outage| format!("{outage:?}"));
        why.is_some_and(|why| why.contains("a node of a Redis Cluster, which is not supported"))
    })
    .await;
    assert_eq!(replica.passed(&alone(AUTH, "ada"), 50).await, 20);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_server_that_has_forgotten_everything_gives_one_more_limit_at_most() {
    let redis = Redis::start();
    let replicas = replicas(&redis, 2).await;
    let charges = alone(BUDGET, "ada");
    assert_eq!(replicas[0].passed(&charges, 5).await, 5);
    command(&redis, "FLUSHALL\r\nSCRIPT FLUSH");
    let mut passed = 0;
    for n in 0..100 {
        passed += replicas[n % 2].passed(&charges, 1).await;
    }
    assert!(passed <= 7, "{passed}");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_server_that_refuses_to_write_opens_no_limit() {
    for (fault, cure) in [
        ("REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE"),
        ("CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0"),
    ] {
        let redis = Redis::start();
        let replicas = replicas(&redis, 2).await;
        let charges = alone(BUDGET, "ada");
        assert_eq!(replicas[0].passed(&charges, 3).await, 3);
        assert!(command(&redis, fault).contains("+OK"), "{fault}");
        let first = replicas[0].passed(&charges, 50).await;
        let second = replicas[1].passed(&charges, 50).await;
        assert_eq!((first, second), (4 - 3, 4), "{fault}: their shares");
        assert!(command(&redis, cure).contains("+OK"), "{cure}");
        for replica in &replicas {
            replica.connected().await;
        }
        let mut after = 0;
        for n in 0..100 {
            after += replicas[n % 2].passed(&charges, 1).await;
        }
        // The shares of 7 are 4 each: that one is all that the limit is exceeded by.
        assert_eq!(after, 0, "{cure}: what was spent is known");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn the_addresses_of_a_site_share_a_limit_over_replicas() {
    let redis = Redis::start();
    let replicas = replicas(&redis, 2).await;
    let limit = Limit::new(LimitName::Public, 2, HOUR);
    let site = Limit { calls: 20, ..limit };
    let by_address = |address| Charges {
        class: Charge {
            limit,
            subject: Subject::Address(address),
        },
        site: Some(Charge {
            limit: site,
            subject: Subject::Site(7),
        }),
        budget: None,
    };
    let mut passed = 0;
    for address in 0..30 {
        let charges = by_address(address);
        passed += replicas[address as usize % 2].passed(&charges, 3).await;
    }
    assert_eq!(passed, 20);
    let elsewhere = Charges {
        site: None,
        ..by_address(99)
    };
    assert_eq!(replicas[0].passed(&elsewhere, 3).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn callers_have_no_part_in_the_names_of_keys_and_every_key_expires() {
    let redis = Redis::start();
    let replicas = replicas(&redis, 1).await;
    let long = "x".repeat(1 << 20);
    for who in ["{}", "a:b", "a\r\nFLUSHALL\r\n", "\u{1f980}", "", &long] {
        assert_eq!(
            replicas[0].passed(&alone(BUDGET, who), 30).await,
            7,
            "{}",
            who.len()
        );
        replicas[0].passed(&alone(USER, who), 3).await;
    }
    let keys = keys(&redis);
    assert_eq!(keys.len(), 6 * 2 + 2, "{keys:?}");
    for key in keys {
        let reply = command(&redis, &format!("PTTL {key}"));
        let left: i64 = reply.lines().next().unwrap()[1..].parse().unwrap();
        assert!(left > 0, "{key}: {reply}");
        let name = key.strip_prefix("tars:").unwrap();
        let digest = name.strip_prefix("limit:").unwrap_or("0123456789abcdef");
        assert!(digest.bytes().all(|b| b.is_ascii_hexdigit()), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_mesh_counts_in_the_server_and_goes_on_without_it() {
    let mut redis = Redis::start();
    let mut settings = config();
    settings.redis = redis.settings();
    settings.limits.redis_budget_ms = 1000;
    settings.limits.auth_per_minute = 5;
    let mesh = TestMesh::alone(settings, Clock::system()).await;
    let statuses = async |tries: usize| {
        let mut all = Vec::new();
        for _ in 0..tries {
            all.push(refusal(mesh.rest().login("nobody", "guess").await.map(drop)).0);
        }
        all
    };
    assert_eq!(statuses(8).await, [401, 401, 401, 401, 401, 429, 429, 429]);
    eventually("the count is in the server", || async {
        keys(&redis).iter().any(|key| key.contains(":limit:"))
    })
    .await;
    redis.kill();
    assert_eq!(statuses(3).await, [429; 3], "what it spent is known");
    redis.start_again();
    eventually("the empty server is told", || async {
        !keys(&redis).is_empty()
    })
    .await;
    mesh.mesh.stop().await;
}
