//! A mesh for a test: its own data directory, free ports, wide limits unless the test narrows them.

#![deny(missing_docs)]

pub mod faults;
pub mod fleet;
pub mod fuzz;
pub mod governed;
pub mod h2spec;
pub mod ladder;
pub mod memory;
pub mod otlp;
pub mod postgres;
pub mod process;
pub mod races;
pub mod raw;
pub mod redis;
pub mod steady;
pub mod test_ca;
pub mod test_listener;

use redis::Redis;
use serde_json::{Value, json};
use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tars::{
    app::{Mesh, Ready, Service},
    rest::{Rest, RestError},
};
use tars_certs::{
    Authority, Identity, SpiffeId,
    ca::{Lifetimes, Request},
};
use tars_interceptors::client::{Credentials, OutgoingService, outgoing};
use tars_mesh::{Channel, ChannelOptions};
use tars_runtime::{
    clock::Clock,
    config::{Config, Connect, Limits, Listen},
};
use tempfile::TempDir;

/// All services in this process, on free ports and on a data directory of their own; where
/// [`REPLICAS`] says so, several replicas of all of them.
pub struct TestMesh {
    /// The running mesh; with replicas, the first.
    pub mesh: Mesh,
    /// The other replicas.
    pub others: Vec<Mesh>,
    /// Its data directory, removed when this is dropped.
    pub dir: TempDir,
    /// What it was started with, and is restarted with.
    pub config: Config,
    /// How many clients have been made, each for the next replica.
    clients: AtomicUsize,
    redis: Option<Redis>,
}

/// Wide enough that no test meets a limit by accident.
pub fn config() -> Config {
    let mut config = Config {
        listen: Listen::free(),
        ..Config::default()
    };
    config.limits = Limits {
        auth_per_minute: 100_000,
        public_per_minute: 100_000,
        user_per_minute: 1_000_000,
        identity_per_minute: 100_000,
        key_changes_per_minute: 100_000,
        internal_per_second: 100_000,
        flood_per_second: 100_000,
        ..Limits::default()
    };
    config.connections.drain_seconds = 5;
    config.connections.drain_streams_seconds = 0;
    // A pole is balanced after a fraction of the steps that the default environment takes.
    config.orchestration.environment = "cartpole".to_owned();
    config
}

impl TestMesh {
    /// Starts a mesh with [`config`].
    pub async fn start() -> Self {
        Self::with(config()).await
    }

    /// Starts a mesh with another configuration; its data directory is replaced by a fresh one.
    pub async fn with(config: Config) -> Self {
        Self::by_clock(config, Clock::system()).await
    }

    /// A mesh that goes by a clock of the test's.
    pub async fn by_clock(config: Config, clock: Clock) -> Self {
        Self::of(replicas(), config, clock).await
    }

    /// A mesh of one replica, whatever [`REPLICAS`] says: for what each replica counts for itself.
    pub async fn alone(config: Config, clock: Clock) -> Self {
        Self::of(1, config, clock).await
    }

    async fn of(count: usize, mut config: Config, clock: Clock) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        config.data.dir = dir.path().to_owned();
        config.database = tars_test_db::settings(dir.path());
        let mut redis = None;
        if count > 1 {
            config = replica_1(config);
        }
        if count > 1 && config.redis.url.is_none() {
            redis = Redis::available();
        }
        if let Some(redis) = &redis {
            config.redis = redis.settings();
        }
        let (mesh, others) = start(count, &config, &clock).await;
        Self {
            mesh,
            others,
            dir,
            config,
            clients: AtomicUsize::new(0),
            redis,
        }
    }

    /// Stops it and starts it again on the same data.
    pub async fn restart(self) -> Self {
        let Self {
            mesh,
            others,
            dir,
            config,
            redis,
            ..
        } = self;
        let count = 1 + others.len();
        for mesh in others.into_iter().chain([mesh]) {
            mesh.stop().await;
        }
        let (mesh, others) = start(count, &config, &Clock::system()).await;
        Self {
            mesh,
            others,
            dir,
            config,
            clients: AtomicUsize::new(0),
            redis,
        }
    }

    /// Where the next client connects: to each replica in turn.
    fn next(&self) -> &Ready {
        let all: Vec<_> = std::iter::once(&self.mesh).chain(&self.others).collect();
        let next = self.clients.fetch_add(1, Ordering::Relaxed);
        &all[next % all.len()].ready
    }

    /// A client of its gateway, without a credential.
    pub fn rest(&self) -> Rest {
        Rest::new(&self.next().gateway)
    }

    /// The metrics of every replica.
    ///
    /// # Panics
    ///
    /// If one does not respond.
    pub async fn metrics(&self) -> Vec<String> {
        let mut texts = Vec::new();
        for mesh in std::iter::once(&self.mesh).chain(&self.others) {
            let text = Rest::new(&mesh.ready.observe).text("/metrics").await;
            texts.push(text.expect("the observe port responds"));
        }
        texts
    }

    /// A client that is logged in as the first administrator.
    pub async fn admin(&self) -> Rest {
        let ready = &self.mesh.ready;
        let password =
            std::fs::read_to_string(&ready.admin_password_file).expect("the password file");
        self.rest()
            .login(&ready.admin_user, &password)
            .await
            .expect("the administrator logs in")
    }

    /// A new user with a role, logged in.
    pub async fn user(&self, name: &str, role: &str) -> Rest {
        let body = json!({ "username": name, "password": PASSWORD, "roles": [role] });
        self.admin()
            .await
            .post("/admin/users", body)
            .await
            .expect("the user is created");
        self.login(name).await
    }

    /// A user that was made before, logged in.
    pub async fn login(&self, name: &str) -> Rest {
        self.rest()
            .login(name, PASSWORD)
            .await
            .expect("the user logs in")
    }

    /// The mesh's certificate authority, opened from its files.
    pub fn authority(&self) -> Authority {
        let clock = Clock::system();
        let dir = self.dir.path().join("ca");
        Authority::open(
            &dir,
            &self.config.trust.domain,
            Lifetimes::default(),
            clock.now(),
        )
        .expect("the authority opens")
    }

    /// An identity of this mesh.
    pub fn identity(&self, path: &str) -> Identity {
        issue(&self.authority(), path)
    }

    /// A channel to one service as some peer.
    pub fn channel(&self, service: &str, peer: &str) -> Channel {
        self.channel_as(service, self.identity(peer))
    }

    /// A channel to one service with an identity that the caller has made.
    pub fn channel_as(&self, service: &str, identity: Identity) -> Channel {
        let expected =
            SpiffeId::new(&self.config.trust.domain, &format!("/{service}")).expect("an id");
        let options =
            ChannelOptions::alone(&self.target(service), expected, identity, Clock::system());
        Channel::new(options).expect("a channel")
    }

    /// The same for generated clients.
    pub fn client(&self, service: &str, peer: &str) -> OutgoingService<Channel> {
        outgoing(self.channel(service, peer), Credentials::Own)
    }

    /// `host:port` of a service.
    pub fn target(&self, service: &str) -> String {
        let known = Service::over_tls().find(|s| s.as_str() == service);
        let known = known.unwrap_or_else(|| panic!("no service {service}"));
        let url = self.next().url(known);
        url.trim_start_matches("https://").to_owned()
    }
}

/// Gives a configuration addresses that replicas can find each other by, and what they share.
fn replica_1(mut config: Config) -> Config {
    config.listen = config.listen.map(|_, addr| match addr.port() {
        0 => fleet::free_addr(),
        _ => addr,
    });
    let key = config.data.dir.join("auth").join("seal.key");
    config.credentials.seal_key_file.get_or_insert(key);
    config
}

/// Starts every replica, the first one alone.
async fn start(count: usize, config: &Config, clock: &Clock) -> (Mesh, Vec<Mesh>) {
    if count == 1 {
        let mesh = Mesh::start_with(config.clone(), clock.clone()).await;
        return (mesh.expect("the mesh starts"), Vec::new());
    }
    let mut listens = vec![config.listen.clone()];
    listens.resize_with(count, || config.listen.map(|_, _| fleet::free_addr()));
    let connect = Connect::from_fn(|service| {
        let addrs = listens.iter().map(|listen| listen.of(service).to_string());
        Ok::<_, Infallible>(addrs.collect::<Vec<_>>().join(","))
    });
    let mut meshes = Vec::new();
    for (at, listen) in listens.into_iter().enumerate() {
        let mut config = Config {
            listen,
            connect: connect.clone().expect("it cannot fail"),
            ..config.clone()
        };
        if at > 0 {
            config.data.dir.push(format!("replica-{}", at + 1));
        }
        let mesh = Mesh::start_replica(config, clock.clone()).await;
        meshes.push(mesh.expect("the replica starts"));
    }
    let others = meshes.split_off(1);
    (meshes.remove(0), others)
}

/// The environment variable that says how many replicas of everything a mesh of the tests has.
pub const REPLICAS: &str = "TARS_TEST_REPLICAS";

/// How many replicas a mesh of the tests has: one, unless [`REPLICAS`] says otherwise.
///
/// # Panics
///
/// If the variable is not a number.
pub fn replicas() -> usize {
    let count = std::env::var(REPLICAS).ok().filter(|text| !text.is_empty());
    count.map_or(1, |text| text.parse().expect("a number of replicas"))
}

/// The machine's clock, for certificates.
pub fn time() -> Arc<dyn rustls::time_provider::TimeProvider> {
    Arc::new(Clock::system())
}

/// The password of every user that a test creates.
pub const PASSWORD: &str = "a password of tests";

/// An identity for a SPIFFE path that is valid for an hour.
pub fn issue(authority: &Authority, path: &str) -> Identity {
    issue_for(authority, path, Duration::from_secs(3600))
}

/// An identity for a SPIFFE path that is valid for `life`.
pub fn issue_for(authority: &Authority, path: &str, life: Duration) -> Identity {
    let id = SpiffeId::new(authority.trust_domain(), path).expect("an id");
    let clock = Clock::system();
    let issued = authority
        .issue(&Request::new(id, life), clock.now())
        .expect("a certificate");
    Identity::new(issued.into_parts(authority.roots()), &time()).expect("an identity")
}

/// The HTTP status and body of a refusal.
pub fn refusal<T: std::fmt::Debug>(result: Result<T, RestError>) -> (u16, Value) {
    match result {
        Err(RestError::Refused { status, body, .. }) => (status.as_u16(), body),
        other => panic!("not refused: {other:?}"),
    }
}

/// The reason in an error body.
pub fn reason(body: &Value) -> String {
    let details = body["details"].as_array().into_iter().flatten();
    let mut reasons = details.filter_map(|d| d["reason"].as_str());
    reasons.next().unwrap_or_default().to_owned()
}

/// Looks until something holds, for a bounded time.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut look: impl FnMut() -> F) {
    let end = tokio::time::Instant::now() + Duration::from_secs(60);
    // A look that is never answered ends as well.
    while !tokio::time::timeout_at(end, look()).await.unwrap_or(false) {
        assert!(tokio::time::Instant::now() < end, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
