//! The event bus over a real Redis server, and without one that works.

#![allow(clippy::unwrap_used)]

use parking_lot::Mutex;
use rcgen::ExtendedKeyUsagePurpose;
use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};
use tars_certs::secret;
use tars_runtime::{
    bus::{Bus, Follower, Server, Topic, Wake},
    clock::Clock,
    config,
    health::Condition,
    seeds::Seeds,
};
use tars_tests::{
    TestMesh, eventually,
    fleet::free_addr,
    redis::{Redis, write_leaf, write_root},
    test_ca::TestCa,
};
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

const TOPIC: &str = "test.changes";

/// One replica's end of the bus.
struct Replica {
    bus: Bus,
    condition: Condition,
    _link: AbortOnDropHandle<()>,
}

impl Replica {
    fn of(settings: &config::Redis) -> Self {
        Self::with_password(settings, None)
    }

    fn with_password(settings: &config::Redis, password: Option<&str>) -> Self {
        let server = Server::of(settings, password.map(str::to_owned)).unwrap();
        let condition = Condition::new(Clock::system());
        let (bus, link) = Bus::over(server.unwrap(), condition.clone(), Seeds::system());
        Self {
            bus,
            condition,
            _link: AbortOnDropHandle::new(tokio::spawn(link)),
        }
    }

    fn problem(&self) -> String {
        self.condition
            .outage()
            .map(|t| t.detail)
            .unwrap_or_default()
    }

    async fn has_problem(&self, part: &str) {
        let found = async {
            while !self.problem().contains(part) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        if timeout(Duration::from_secs(60), found).await.is_err() {
            panic!("{part:?} is not in {:?}", self.problem());
        }
    }
}

/// The table of changes that the replicas share, of which only the length matters.
#[derive(Debug, Clone, Default)]
struct Table(Arc<Mutex<u64>>);

impl Table {
    fn commit(&self) -> u64 {
        let mut last = self.0.lock();
        *last += 1;
        *last
    }

    fn last(&self) -> u64 {
        *self.0.lock()
    }
}

/// Follows the table, and keeps count of what it read.
fn following(replica: &Replica, table: &Table) -> (Table, AbortOnDropHandle<()>) {
    let (table, read) = (table.clone(), Table::default());
    let (mut follower, there) = (replica.bus.follow(TOPIC), read.clone());
    let task = tokio::spawn(async move {
        loop {
            let last = table.last();
            *there.0.lock() = last;
            follower.wait(last).await;
        }
    });
    (read, AbortOnDropHandle::new(task))
}

/// Publishes until a hint arrives: on a slow machine a connection can be lost, and its hints with it.
async fn hinted(publisher: &Replica, follower: &mut Follower, topic: Topic, sequence: u64) {
    let hint = async {
        loop {
            publisher.bus.publish(topic, sequence);
            if follower.wait(sequence - 1).await == Wake::Hint {
                return;
            }
        }
    };
    let hint = timeout(Duration::from_secs(60), hint).await;
    hint.expect("a hint arrives");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_hint_of_one_replica_wakes_the_followers_of_another() {
    let redis = Redis::start();
    let [one, other] = [(); 2].map(|()| Replica::of(&redis.settings()));
    let another_mesh = config::Redis {
        channel_prefix: "another_mesh".to_owned(),
        ..redis.settings()
    };
    let elsewhere = Replica::of(&another_mesh);
    let mut follower = other.bus.follow(TOPIC);
    let mut unrelated = elsewhere.bus.follow(TOPIC);
    let neighbour = Replica::of(&another_mesh);
    hinted(&neighbour, &mut unrelated, TOPIC, 1).await;
    for sequence in 1..=100 {
        hinted(&one, &mut follower, TOPIC, sequence).await;
    }
    assert_ne!(unrelated.wait(1).await, Wake::Hint, "another mesh's");
    let mut late = one.bus.follow(TOPIC);
    hinted(&other, &mut late, TOPIC, 101).await;
    assert_eq!(one.problem() + &other.problem(), "");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn every_change_arrives_while_redis_is_killed_frozen_and_flushed() {
    let mut redis = Redis::start();
    let [one, other] = [(); 2].map(|()| Replica::of(&redis.settings()));
    let table = Table::default();
    let (read, _following) = following(&other, &table);
    reached(&one, &other).await;
    let changing = async || {
        for _ in 0..20 {
            one.bus.publish(TOPIC, table.commit());
            sleep(Duration::from_millis(5)).await;
        }
        let last = table.last();
        eventually("every change arrives", || async { read.last() == last }).await;
    };
    changing().await;

    redis.kill();
    for replica in [&one, &other] {
        replica.has_problem("redis.sock").await;
    }
    changing().await;
    redis.start_again();
    recovered(&one, &other).await;

    redis.freeze();
    changing().await;
    for replica in [&one, &other] {
        replica.has_problem("no ").await;
    }
    changing().await;
    redis.thaw();
    recovered(&one, &other).await;

    redis.flush();
    changing().await;
    recovered(&one, &other).await;
    changing().await;
}

/// Waits until hints arrive again.
async fn recovered(one: &Replica, other: &Replica) {
    eventually("there is no problem", || async {
        one.problem().is_empty() && other.problem().is_empty()
    })
    .await;
    reached(one, other).await;
}

/// Waits until a hint of one replica arrives at another.
async fn reached(one: &Replica, other: &Replica) {
    let mut follower = other.bus.follow("test.reached");
    hinted(one, &mut follower, "test.reached", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_password_is_needed_and_a_wrong_one_is_reported() {
    let redis = Redis::with(&["--requirepass", "right"]);
    let settings = redis.settings();
    let none = Replica::of(&settings);
    none.has_problem("a password is needed").await;
    let wrong = Replica::with_password(&settings, Some("wrong"));
    wrong.has_problem("refused the login").await;
    assert!(
        wrong.problem().contains("redis.sock"),
        "{}",
        wrong.problem()
    );
    assert!(!wrong.problem().contains("wrong"), "{}", wrong.problem());
    let right = Replica::with_password(&settings, Some("right"));
    reached(&right, &Replica::with_password(&settings, Some("right"))).await;

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    secret::write(&file, b"old\n").unwrap();
    let by_file = config::Redis {
        password_file: Some(file.clone()),
        ..settings
    };
    let replica = Replica::of(&by_file);
    replica.has_problem("refused the login").await;
    secret::write(
        &file, b"right
",
    )
    .unwrap();
    reached(&right, &replica).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn a_user_who_may_only_use_the_channels_of_the_mesh_is_enough() {
    let user = "--user tars on >right resetchannels &tars:* -@all +hello +ping +publish +subscribe";
    let redis = Redis::with(&user.split(' ').collect::<Vec<_>>());
    let plain = redis.settings();
    let as_user = config::Redis {
        url: plain.url.map(|url| url.replace("unix://", "unix://tars@")),
        ..config::Redis::default()
    };
    let replica = Replica::with_password(&as_user, Some("right"));
    let other = Replica::with_password(&as_user, Some("right"));
    reached(&other, &replica).await;
    let other_mesh = config::Redis {
        channel_prefix: "another_mesh".to_owned(),
        ..as_user
    };
    let refused = Replica::with_password(&other_mesh, Some("right"));
    let _follower = refused.bus.follow(TOPIC);
    refused.has_problem("no permissions").await;
}

/// Settings for TLS at an address, with a client certificate of `ca`.
fn over_tls(addr: SocketAddr, dir: &Path, ca: &TestCa, root: &TestCa) -> config::Redis {
    let leaf = ca.leaf(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    let (certificate, key) = write_leaf(dir, "client", &leaf);
    config::Redis {
        url: Some(format!("rediss://{addr}")),
        root_certificate: Some(write_root(dir, "trusted.crt", root)),
        client_certificate: Some(certificate),
        client_key: Some(key),
        ..config::Redis::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn both_sides_of_a_tls_connection_are_verified() {
    let (dir, own) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [ca, other_ca] = ["one", "other"].map(TestCa::root);
    let (_redis, addr) = Redis::with_tls(&ca, dir.path());
    let right = over_tls(addr, own.path(), &ca, &ca);
    let replica = Replica::of(&right);
    reached(&Replica::of(&right), &replica).await;
    let no_certificate = config::Redis {
        client_certificate: None,
        client_key: None,
        ..right.clone()
    };
    Replica::of(&no_certificate)
        .has_problem("CertificateRequired")
        .await;
    let other_name = config::Redis {
        url: Some(format!("rediss://localhost:{}", addr.port())),
        ..right
    };
    Replica::of(&other_name)
        .has_problem("certificate not valid for name")
        .await;
    let own = tempfile::tempdir().unwrap();
    let other_root = over_tls(addr, own.path(), &ca, &other_ca);
    Replica::of(&other_root).has_problem("UnknownIssuer").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_away_or_silent_is_reported() {
    let settings = |addr: SocketAddr| config::Redis {
        url: Some(format!("redis://{addr}")),
        ..config::Redis::default()
    };
    let nobody = free_addr();
    let replica = Replica::of(&settings(nobody));
    replica.has_problem(&nobody.to_string()).await;
    assert!(
        replica.problem().contains("refused"),
        "{}",
        replica.problem()
    );
    // The kernel accepts, and nobody responds.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let replica = Replica::of(&settings(silent.local_addr().unwrap()));
    replica.has_problem("no connection within").await;
    // Publishing is possible all the same.
    let mut follower = replica.bus.follow(TOPIC);
    replica.bus.publish(TOPIC, 1);
    assert_eq!(follower.wait(0).await, Wake::Hint);
}

/// The readiness report's entry of the bus, if the process is ready.
async fn shown(mesh: &TestMesh) -> (bool, String, String) {
    let report = mesh.rest().get("/ready").await.unwrap_or_default();
    let found = &report["checks"]["redis"];
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (report["ready"] == true, text("state"), text("detail"))
}

async fn until_shown(mesh: &TestMesh, state: &str) {
    eventually(&format!("redis is {state}"), || async {
        let (ready, shown, _) = shown(mesh).await;
        assert!(ready, "Redis does not make a process unready");
        shown == state
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mesh_starts_and_is_ready_without_its_redis() {
    let mut config = tars_tests::config();
    config.redis.url = Some(format!("redis://{}", free_addr()));
    let mesh = TestMesh::with(config).await;
    until_shown(&mesh, "degraded").await;
    let (_, _, detail) = shown(&mesh).await;
    assert!(detail.starts_with("changes are polled"), "{detail}");
    mesh.admin().await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs redis-server: cargo xtask test"]
async fn readiness_shows_redis_and_stays() {
    let mut redis = Redis::start();
    let mut config = tars_tests::config();
    config.redis = redis.settings();
    let mesh = TestMesh::with(config).await;
    until_shown(&mesh, "ok").await;
    redis.kill();
    until_shown(&mesh, "degraded").await;
    mesh.admin().await;
    redis.start_again();
    until_shown(&mesh, "ok").await;
    redis.freeze();
    until_shown(&mesh, "degraded").await;
    mesh.admin().await;
    redis.thaw();
    until_shown(&mesh, "ok").await;
}
