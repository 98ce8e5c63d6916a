//! What callers get of a server that answers late, or that holds what is no count.

use super::*;
use std::path::{Path, PathBuf};
use tars_interceptors::limits::Charging;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream as Stream, unix},
};

/// How many scripts the server has run.
fn scripts_run(redis: &Redis) -> u64 {
    let stats = command(redis, "INFO commandstats");
    let line = stats
        .lines()
        .find_map(|l| l.strip_prefix("cmdstat_evalsha:calls="));
    let calls = line.and_then(|l| l.split(',').next()).unwrap();
    calls.parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_text_that_is_no_count_leaves_other_callers_to_the_server() {
    for (limit, text, shared) in [
        (BUDGET, "x", 7),
        (BUDGET, "123456789012345", 7),
        (BUDGET, "\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff", 7),
        (USER, "abc", 80),
        (USER, "nan", 80),
    ] {
        let redis = Redis::start();
        let replicas = replicas(&redis, 2).await;
        assert_eq!(replicas[0].passed(&alone(limit, "ada"), 1).await, 1);
        let count = new_counts(&redis, &[]).remove(0);
        command(&redis, &format!("SET {count} \"{text}\""));
        assert!(replicas[1].passed(&alone(limit, "ada"), 50).await > 0);
        assert!(replicas[1].up.outage().is_none(), "{text}: it is asked");
        let bob = replicas[1].passed(&alone(limit, "bob"), 150).await;
        assert!(bob >= shared, "{text}: {bob}, not the share of a replica");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn what_a_replica_decides_while_it_is_connected_is_settled_as_well() {
    let redis = Redis::start();
    let replicas = replicas_within(&redis, 2, 50).await;
    redis.freeze();
    // The answer about the class is late, and then there is no time to ask about the budget.
    let outcome = replicas[0].try_once(&both(USER, "ada")).await;
    redis.thaw();
    assert!(outcome.passed());
    let (class, budget) = (outcome.class, outcome.budget.unwrap());
    assert_eq!((class.0.calls, budget.0.calls), (200, 4), "its shares");
    assert!(class.1.remaining <= 50 && budget.1.remaining <= 4);
    eventually("the server has counted both", || async {
        new_counts(&redis, &[]).len() == 2
    })
    .await;
    assert_eq!(replicas[1].passed(&alone(BUDGET, "ada"), 50).await, 7 - 1);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_spent_budget_is_not_asked_for_again() {
    let redis = Redis::start();
    let replicas = replicas(&redis, 1).await;
    let spends = both(USER, "ada");
    assert_eq!(replicas[0].passed(&spends, 8).await, 7);
    let before = scripts_run(&redis);
    assert_eq!(replicas[0].passed(&spends, 100).await, 0);
    // It says every second that it is present.
    let asked = scripts_run(&redis) - before;
    assert!(asked < 50, "{asked} for 100 calls");
    let refused = replicas[0].try_once(&spends).await;
    assert!(refused.class.1.passed() && refused.class.1.remaining >= 80);
    assert_eq!(refused.budget.unwrap().1.remaining, 0);
    assert!(replicas[0].passed(&alone(USER, "ada"), 100).await >= 80);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn late_answers_let_less_than_twice_the_limit_pass() {
    let redis = Redis::start();
    let replicas = replicas_within(&redis, 2, 50).await;
    let charges = alone(AUTH, "ada");
    let mut passed = 0;
    for _ in 0..8 {
        redis.freeze();
        for replica in &replicas {
            passed += replica.passed(&charges, 1).await;
        }
        redis.thaw();
        for replica in &replicas {
            replica.connected().await;
            passed += replica.passed(&charges, 2).await;
        }
    }
    for replica in &replicas {
        passed += replica.passed(&charges, 100).await;
    }
    assert!((20..40 + 2).contains(&passed), "{passed}");
    for replica in &replicas {
        assert_eq!(replica.passed(&charges, 10).await, 0);
    }
}

/// A socket behind which a server answers late.
struct Slow {
    path: PathBuf,
    _dir: tempfile::TempDir,
    _work: AbortOnDropHandle<()>,
}

impl Slow {
    fn new(redis: &Redis, by: Duration) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("slow");
        let listener = UnixListener::bind(&path).unwrap();
        let url = redis.settings().url.unwrap();
        let server = PathBuf::from(url.strip_prefix("unix://").unwrap());
        Self {
            path,
            _dir: dir,
            _work: AbortOnDropHandle::new(tokio::spawn(async move {
                while let Ok((client, _)) = listener.accept().await {
                    tokio::spawn(delay(client, server.clone(), by));
                }
            })),
        }
    }
}

async fn delay(client: Stream, server: impl AsRef<Path>, by: Duration) {
    let server = Stream::connect(server).await.unwrap();
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    tokio::join!(
        carry(from_client, to_server, Duration::ZERO),
        carry(from_server, to_client, by)
    );
}

async fn carry(mut from: unix::OwnedReadHalf, mut to: unix::OwnedWriteHalf, by: Duration) {
    let mut piece = vec![0; 1 << 16];
    while let Ok(n @ 1..) = from.read(&mut piece).await {
        tokio::time::sleep(by).await;
        if to.write_all(&piece[..n]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn nobody_waits_for_a_server_that_is_always_late_and_no_limit_is_open() {
    let redis = Redis::start();
    let slow = Slow::new(&redis, Duration::from_millis(100));
    let mut settings = redis.settings();
    settings.url = Some(format!("unix://{}", slow.path.display()));
    let replica = Replica::with(&settings, "test", 20);
    replica.connected().await;
    assert_eq!(replica.passed(&alone(AUTH, "ada"), 200).await, 20);
    // After five that were late nobody is let wait, until the server has shown that it is there.
    let is_ready = |who: &str| {
        let charging = replica
            .limiter
            .charge(&alone(AUTH, who), replica.clock.monotonic());
        matches!(charging, Charging::Ready(_))
    };
    eventually("the connection is given up", || async {
        replica.passed(&alone(AUTH, "bob"), 1).await;
        (0..100).all(|n| is_ready(&format!("caller {n}")))
    })
    .await;
}
