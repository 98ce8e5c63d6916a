//! Both replicas of every service are restarted, one after the other, under load.

use super::*;
use parking_lot::Mutex;
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use tars::app::Replica;
use tars_proto::{
    auth::v1::{GetMeRequest, auth_service_client::AuthServiceClient},
    automl::v1::{ListStudiesRequest, study_service_client::StudyServiceClient},
    hypersync::v1::{ListProposalHistoryRequest, sync_service_client::SyncServiceClient},
    orchestration::v1::{
        ListAgentsRequest, orchestration_service_client::OrchestrationServiceClient,
    },
};
use tars_tests::process::terminate;
use tokio::{task::JoinHandle, time::sleep};

/// Long enough for a replica that is restarted to be there again.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the load has seen.
#[derive(Debug, Default)]
struct Seen {
    calls: AtomicU64,
    failures: Mutex<Vec<String>>,
    over: AtomicBool,
}

impl Seen {
    fn record<T>(&self, what: &str, outcome: Result<T, String>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if let Err(failure) = outcome {
            self.failures.lock().push(format!("{what}: {failure}"));
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// The addresses of a service at both replicas.
fn targets(mesh: &Running, service: &str) -> String {
    let replicas = mesh.ready.replicas.iter();
    let each = replicas.map(|replica| target(&replica.urls[service]).to_owned());
    each.collect::<Vec<_>>().join(",")
}

fn with_token<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    request
}

/// Calls one service over and over.
macro_rules! calling {
    ($mesh:expr, $seen:expr, $token:expr, $service:literal, $client:ident, $method:ident, $request:expr) => {{
        let mut client = $client::new(channel($mesh, $service, &targets($mesh, $service)));
        let (seen, token) = (Arc::clone($seen), $token.to_owned());
        tokio::spawn(async move {
            while !seen.is_over() {
                let outcome = client.$method(with_token(&token, $request)).await;
                seen.record($service, outcome.map_err(|e| format!("{e:?}")));
                sleep(Duration::from_millis(5)).await;
            }
        })
    }};
}

fn unary_load(mesh: &Running, seen: &Arc<Seen>, token: &str) -> Vec<JoinHandle<()>> {
    let (me, agents) = (GetMeRequest {}, ListAgentsRequest::default());
    let (studies, proposals) = (
        ListStudiesRequest::default(),
        ListProposalHistoryRequest::default(),
    );
    vec![
        calling!(mesh, seen, token, "auth", AuthServiceClient, get_me, me),
        calling!(
            mesh,
            seen,
            token,
            "automl",
            StudyServiceClient,
            list_studies,
            studies.clone()
        ),
        calling!(
            mesh,
            seen,
            token,
            "hypersync",
            SyncServiceClient,
            list_proposal_history,
            proposals.clone()
        ),
        calling!(
            mesh,
            seen,
            token,
            "orchestration",
            OrchestrationServiceClient,
            list_agents,
            agents
        ),
    ]
}

/// A client behind a load balancer: it calls the gateways that are ready.
fn rest_load(mesh: &Running, seen: &Arc<Seen>, token: &str) -> JoinHandle<()> {
    let gateways: Vec<(Rest, Rest)> = (mesh.ready.replicas.iter())
        .map(|replica| {
            let gateway = Rest::new(&replica.urls["gateway"]).with_token(token);
            (Rest::new(&replica.urls["observe"]), gateway)
        })
        .collect();
    let seen = Arc::clone(seen);
    tokio::spawn(async move {
        let paths = [
            "/auth/me",
            "/api/v1/studies",
            "/api/v1/orchestration/agents/state",
        ];
        for turn in 0.. {
            if seen.is_over() {
                return;
            }
            let (probe, gateway) = &gateways[turn % 2];
            if probe.get("/readyz").await.is_ok() {
                let path = paths[turn % paths.len()];
                let outcome = gateway.get(path).await;
                seen.record(path, outcome.map_err(|e| format!("{e:?}")));
            }
            sleep(Duration::from_millis(5)).await;
        }
    })
}

/// Follows what has no end; a stream that is told to go on elsewhere does, and no other error is met.
fn streaming(mesh: &Running, seen: &Arc<Seen>) -> JoinHandle<u64> {
    let client = HealthClient::new(channel(mesh, "automl", &targets(mesh, "automl")));
    let seen = Arc::clone(seen);
    tokio::spawn(async move {
        let mut resumed = 0;
        while !seen.is_over() {
            let watch = client.clone().watch(HealthCheckRequest::default()).await;
            let ended = match watch {
                Err(status) => Err(status),
                Ok(watch) => to_its_end(watch.into_inner(), &seen).await,
            };
            if let Err(status) = ended {
                resumed += 1;
                let told = (status.code() == Code::Unavailable).then_some(());
                seen.record("a stream", told.ok_or_else(|| format!("{status:?}")));
            }
        }
        resumed
    })
}

async fn to_its_end(mut items: Streaming<HealthCheckResponse>, seen: &Seen) -> Result<(), Status> {
    while !seen.is_over() {
        match tokio::time::timeout(Duration::from_millis(100), items.message()).await {
            Err(_) => {}
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => return Err(Status::internal("it ended without a status")),
            Ok(Err(status)) => return Err(status),
        }
    }
    Ok(())
}

/// Ends a replica as whoever rolls out a new version would, and waits until it serves again.
async fn restarted(mesh: &Running, replica: &Replica) {
    terminate(replica.pid);
    let observe = Rest::new(&replica.urls["observe"]);
    let end = tokio::time::Instant::now() + PATIENCE;
    loop {
        let listed = mesh.current().map(|ready| ready.replicas);
        let now = listed
            .into_iter()
            .flatten()
            .find(|r| r.number == replica.number);
        let is_new = now.is_some_and(|now| now.pid != replica.pid);
        if is_new && observe.get("/readyz").await.is_ok() {
            return;
        }
        assert!(tokio::time::Instant::now() < end, "{}", mesh.logged());
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PostgreSQL and redis-server: cargo xtask test"]
async fn a_rolling_restart_of_every_service_under_load_fails_no_call() {
    let data = tempfile::tempdir().unwrap();
    let up = Up::new(tars(), data.path()).unlimited().replicas(2);
    let up = up.env("TARS__CONNECTIONS__NOTICE_SECONDS", "2");
    let up = up.env("TARS__CONNECTIONS__DRAIN_STREAMS_SECONDS", "1");
    let mesh = up
        .env("TARS__LIMITS__INTERNAL_PER_SECOND", "100000")
        .start();
    let (token, seen) = (token(&mesh).await, Arc::new(Seen::default()));
    let mut load = unary_load(&mesh, &seen, &token);
    load.push(rest_load(&mesh, &seen, &token));
    let streams: Vec<_> = (0..4).map(|_| streaming(&mesh, &seen)).collect();
    eventually("the load runs", || async {
        seen.calls.load(Ordering::Relaxed) > 100
    })
    .await;
    for replica in mesh.ready.replicas.clone() {
        restarted(&mesh, &replica).await;
        let so_far = seen.calls.load(Ordering::Relaxed);
        eventually("the load goes on", || async {
            seen.calls.load(Ordering::Relaxed) > so_far + 200
        })
        .await;
    }
    seen.over.store(true, Ordering::Relaxed);
    for loading in load {
        loading.await.unwrap();
    }
    let mut resumed = 0;
    for stream in streams {
        resumed += stream.await.unwrap();
    }
    let failures = seen.failures.lock();
    assert!(failures.is_empty(), "{failures:#?}\n{}", mesh.logged());
    assert!(
        resumed >= 4,
        "each stream was told at least once: {resumed}"
    );
}
