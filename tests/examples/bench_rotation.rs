//! Leaves and roots rotate under load, each service in a process of its own: steady unary calls and
//! long streams that are resumed by sequence number, with retries and hedging off.
//!
//! A stream is *broken* when it ends in any other way than by being told, after GOAWAY and its
//! grace, to go on elsewhere, or when a sequence number is lost or repeated after that.

use bytes::Bytes;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tars::rest::Rest;
use tars_certs::{Authority, IdentityHandle, Revocations, SpiffeId, ca::Lifetimes};
use tars_interceptors::client::{Credentials, OutgoingService, outgoing};
use tars_mesh::{Channel, ChannelMetrics, ChannelOptions, ConnectionTable};
use tars_proto::{
    auth::v1::{GetMeRequest, auth_service_client::AuthServiceClient},
    orchestration::v1::{WatchTrainingRequest, training_service_client::TrainingServiceClient},
};
use tars_runtime::clock::Clock;
use tars_tests::{
    fleet::{Fleet, Source, services, services_over_tls},
    issue_for,
    raw::{RawCall, read_method},
};
use tokio::time::Instant;
use tonic::{Code, Request, Status};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const LEAF_LIFE: u64 = 8;
const GRACE: u64 = 2;
/// Between two calls of a worker: a steady load, not the most there is.
const PAUSE: Duration = Duration::from_millis(4);

#[derive(Default)]
struct Tally {
    calls: AtomicU64,
    failed: AtomicU64,
    resumed: AtomicU64,
    items: AtomicU64,
    broken: AtomicU64,
    stop: AtomicBool,
    first_failure: parking_lot::Mutex<Option<String>>,
}

impl Tally {
    fn going(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn call(&self, what: &str, result: Result<(), Status>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if let Err(status) = result {
            self.failed.fetch_add(1, Ordering::Relaxed);
            self.note(format!("{what}: {status:?}"));
        }
    }

    fn note(&self, what: String) {
        self.first_failure.lock().get_or_insert(what);
    }
}

struct Driver {
    fleet: Fleet,
    own: IdentityHandle,
    token: String,
    tally: Arc<Tally>,
}

fn now() -> Duration {
    Clock::system().now()
}

impl Driver {
    /// A fresh identity of the client's own, under the roots of the day.
    fn renew(&self) -> Result<(), Failure> {
        let dir = self.fleet.authority_dir();
        let authority = Authority::open(&dir, "tars.local", Lifetimes::default(), now())?;
        let life = Duration::from_secs(LEAF_LIFE);
        self.own
            .publish(issue_for(&authority, "/client/load", life));
        Ok(())
    }

    fn client(&self, service: &str) -> Result<OutgoingService<Channel>, Failure> {
        let channel = Channel::new(ChannelOptions {
            target: self.fleet.addr(service).to_string(),
            expected: SpiffeId::new("tars.local", &format!("/{service}"))?,
            identity: self.own.clone(),
            revocations: Revocations::default(),
            clock: Clock::system(),
            table: ConnectionTable::default(),
            metrics: ChannelMetrics::default(),
            service: "load",
            audience: tars_mesh::channel::Audience::Operator,
        })?;
        Ok(outgoing(channel, Credentials::Own))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        with_token(message, &self.token)
    }

    fn spawn_unary(&self, workers: &mut tokio::task::JoinSet<()>) -> Result<(), Failure> {
        for service in services_over_tls().flat_map(|s| [s, s]) {
            let client = self.client(service)?;
            let (tally, token) = (Arc::clone(&self.tally), format!("Bearer {}", self.token));
            workers.spawn(async move {
                while tally.going() {
                    let call = RawCall {
                        method: read_method(service),
                        header: Some(("authorization", &token)),
                        message: Bytes::new(),
                        timeout: Duration::from_secs(30),
                    };
                    tally.call(service, call.send(client.clone()).await);
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        // Through the bridge: two hops of the mesh.
        let rest = self.fleet.rest().with_token(&self.token);
        let tally = Arc::clone(&self.tally);
        workers.spawn(async move {
            while tally.going() {
                for path in ["/auth/me", "/api/v1/studies", "/api/v1/sync/pending"] {
                    let result = rest.get(path).await.map(drop);
                    tally.call(path, result.map_err(|e| Status::unknown(e.to_string())));
                    tokio::time::sleep(PAUSE).await;
                }
            }
        });
        Ok(())
    }

    fn spawn_streams(
        &self,
        run: &str,
        workers: &mut tokio::task::JoinSet<()>,
    ) -> Result<(), Failure> {
        for _ in 0..4 {
            let client = TrainingServiceClient::new(self.client("orchestration")?);
            let (tally, token, run) = (Arc::clone(&self.tally), self.token.clone(), run.to_owned());
            workers.spawn(async move { watch(client, &tally, &token, &run).await });
        }
        Ok(())
    }

    /// Renewals of each process since it started.
    async fn renewals(&self) -> BTreeMap<&'static str, u64> {
        let mut all = BTreeMap::new();
        for name in services() {
            let text = self.fleet.metrics(name).await.unwrap_or_default();
            let line =
                format!("certificate_renewals_total{{service=\"{name}\",result=\"renewed\"}} ");
            let count = text
                .lines()
                .find_map(|l| l.strip_prefix(&line)?.parse().ok());
            all.insert(name, count.unwrap_or(0));
        }
        all
    }
}

fn with_token<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    if let Ok(value) = format!("Bearer {token}").parse() {
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// Follows a training run through every connection that its stream is moved to.
async fn watch(
    mut client: TrainingServiceClient<OutgoingService<Channel>>,
    tally: &Tally,
    token: &str,
    run: &str,
) {
    let mut after = 0;
    while tally.going() {
        let message = WatchTrainingRequest {
            run_id: run.to_owned(),
            after_sequence: after,
            with_state: false,
        };
        let ended = match client.watch_training(with_token(message, token)).await {
            Err(status) => status,
            Ok(response) => {
                let mut items = response.into_inner();
                loop {
                    let next = tokio::time::timeout(Duration::from_secs(1), items.message()).await;
                    match next {
                        Err(_) if !tally.going() => return,
                        Err(_) => {}
                        Ok(Ok(Some(item))) => {
                            tally.items.fetch_add(1, Ordering::Relaxed);
                            if item.sequence != after + 1 {
                                tally.broken.fetch_add(1, Ordering::Relaxed);
                                tally.note(format!("sequence {} after {after}", item.sequence));
                            }
                            after = item.sequence;
                        }
                        Ok(Ok(None)) => break Status::ok("ended"),
                        Ok(Err(status)) => break status,
                    }
                }
            }
        };
        let told = ended.code() == Code::Unavailable
            && ended.message().contains("the connection is closing");
        if told {
            tally.resumed.fetch_add(1, Ordering::Relaxed);
        } else {
            tally.broken.fetch_add(1, Ordering::Relaxed);
            tally.note(format!("stream: {ended:?}"));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// All four steps, each when everybody is ready; the client renews in between like everybody.
async fn rotate_roots(driver: &Driver, admin: &Rest) -> Result<(), Failure> {
    for _ in 0..4 {
        let started = Instant::now();
        let step = loop {
            let status = admin.get("/admin/roots").await?;
            if status["waiting_for"].as_array().is_some_and(Vec::is_empty) {
                break status["next"].clone();
            }
            if started.elapsed() > Duration::from_secs(60) {
                return Err(format!("never ready: {status}").into());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        driver.renew()?;
        admin
            .post(
                "/admin/roots/step",
                json!({ "step": step, "cut_off": true }),
            )
            .await?;
        driver.renew()?;
        // Long enough for streams that began under the old root to be moved.
        tokio::time::sleep(Duration::from_secs(LEAF_LIFE)).await;
    }
    Ok(())
}

async fn session(fleet: &Fleet) -> Result<(Rest, String), Failure> {
    let admin = fleet.admin().await;
    let password = std::fs::read_to_string(fleet.data().join("admin-password"))?;
    let body = json!({ "username": "admin", "password": password });
    let login: Value = fleet.rest().post("/auth/login", body).await?;
    let token = login["access_token"].as_str().ok_or("no token")?.to_owned();
    Ok((admin, token))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let has = |flag: &str| std::env::args().any(|a| a == flag);
    let wanted: u64 = if has("--quick") { 5 } else { 50 };
    let binary = PathBuf::from(std::env::var_os("TARS_BINARY").ok_or("TARS_BINARY is not set")?);
    let (life, grace) = (LEAF_LIFE.to_string(), GRACE.to_string());
    let env = [
        ("TARS__CERTIFICATES__LEAF_LIFE_SECONDS", life.as_str()),
        ("TARS__CONNECTIONS__MAX_AGE_GRACE_SECONDS", grace.as_str()),
        ("TARS__CREDENTIALS__ACCESS_TOKEN_SECONDS", "7200"),
        ("TARS__ORCHESTRATION__LEARNERS", "1"),
    ];
    let fleet = Fleet::start(&binary, Source::Join, &env).await;
    let (admin, token) = session(&fleet).await?;
    let authority = Authority::open(
        &fleet.authority_dir(),
        "tars.local",
        Lifetimes::default(),
        now(),
    )?;
    let first = issue_for(&authority, "/client/load", Duration::from_secs(LEAF_LIFE));
    let driver = Driver {
        fleet,
        own: IdentityHandle::new(first),
        token,
        tally: Arc::default(),
    };
    let run = json!({ "steps": "10000000", "seed": "1" });
    let run = admin
        .post("/api/v1/orchestration/agents/policy/train", run)
        .await?;
    let run = run["run"]["run_id"].as_str().ok_or("no run")?.to_owned();

    let before = driver.renewals().await;
    let started = Instant::now();
    let mut workers = tokio::task::JoinSet::new();
    driver.spawn_unary(&mut workers)?;
    driver.spawn_streams(&run, &mut workers)?;
    // A third of the leaves first, then the roots, then the rest.
    let rotating = async {
        let mut rotated_roots = false;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let renewals = driver.renewals().await;
            let least = renewals
                .iter()
                .map(|(n, c)| c - before[n])
                .min()
                .unwrap_or(0);
            if least >= wanted / 3 && !rotated_roots {
                rotate_roots(&driver, &admin).await?;
                rotated_roots = true;
            }
            if least >= wanted && rotated_roots {
                return Ok::<_, Failure>(renewals);
            }
        }
    };
    let own = AtomicU64::new(0);
    // The client's own leaf is renewed in time like everybody's.
    let renewing = async {
        loop {
            tokio::time::sleep(Duration::from_secs(LEAF_LIFE / 2)).await;
            if let Err(e) = driver.renew() {
                return e;
            }
            own.fetch_add(1, Ordering::Relaxed);
        }
    };
    let renewals = tokio::select! {
        renewals = rotating => renewals?,
        failure = renewing => return Err(failure),
    };
    driver.tally.stop.store(true, Ordering::Relaxed);
    while let Some(done) = workers.join_next().await {
        done?;
    }
    let each: BTreeMap<_, _> = renewals.iter().map(|(n, c)| (*n, c - before[n])).collect();
    let me = driver.request(GetMeRequest {});
    AuthServiceClient::new(driver.client("auth")?)
        .get_me(me)
        .await?;
    let tally = &driver.tally;
    let roots = admin.get("/admin/roots").await?;
    let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
    let report = json!({
        "bench": "rotation",
        "calls": read(&tally.calls),
        "failed": read(&tally.failed),
        "streams": 4,
        "stream_items": read(&tally.items),
        "streams_moved": read(&tally.resumed),
        "streams_broken": read(&tally.broken),
        "leaf_rotations": each.values().min(),
        "leaf_rotations_by_process": each,
        "client_rotations": read(&own),
        "root_rotations": u64::from(roots["version"] == "5"),
        "leaf_life_s": LEAF_LIFE,
        "grace_s": GRACE,
        "seconds": started.elapsed().as_secs_f64(),
        "first_failure": *tally.first_failure.lock(),
        "note": "leaf_rotations is that of the process with the fewest; a request that never left, or that the server says it did not look at (GOAWAY, RFC 9113 6.8), is sent on the next connection; nothing else is sent twice",
    });
    if has("--json") {
        println!("{report}");
    } else {
        println!("{report:#}");
    }
    Ok(())
}
