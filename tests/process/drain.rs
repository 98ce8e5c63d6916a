//! How a process stops: what is in flight finishes, what never ends is told, and the exit is bounded.

#![allow(clippy::unwrap_used)]

#[path = "drain/rolling.rs"]
mod rolling;

use serde_json::{Value, json};
use std::{path::Path, process::Command, time::Duration};
use tars::rest::Rest;
use tars_certs::{IdentityFiles, SpiffeId};
use tars_mesh::{Channel, ChannelOptions};
use tars_proto::{
    fault,
    grpc::health::v1::{
        HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
        health_client::HealthClient,
    },
    orchestration::v1::{WatchTrainingRequest, training_service_client::TrainingServiceClient},
};
use tars_runtime::clock::Clock;
use tars_tests::{
    eventually,
    process::{Running, Up},
    time,
};
use tokio::{task::JoinSet, time::timeout};
use tonic::{Code, Request, Status, Streaming};

/// Longer than the run takes on any machine.
const MOST: Duration = Duration::from_secs(300);
const SERVING: ServingStatus = ServingStatus::Serving;

fn tars() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tars"))
}

fn start(data: &Path, env: &[(&str, &str)]) -> Running {
    let mut up = Up::new(tars(), data).unlimited().replicas(1);
    for (name, value) in env {
        up = up.env(&format!("TARS__CONNECTIONS__{name}"), value);
    }
    // All streams of a test are of one caller.
    up.env("TARS__LIMITS__STREAMS_BY_CALLER", "100").start()
}

/// A channel of the operator's to a service, at these addresses.
fn channel(mesh: &Running, service: &str, targets: &str) -> Channel {
    let operator = mesh.ready.client_cert.parent().unwrap();
    let identity = IdentityFiles::in_dir(operator).load(&time()).unwrap();
    let expected = SpiffeId::new(&mesh.ready.trust_domain, &format!("/{service}")).unwrap();
    let options = ChannelOptions::alone(targets, expected, identity, Clock::system());
    Channel::new(options).unwrap()
}

fn target(url: &str) -> &str {
    url.trim_start_matches("https://")
}

/// A stream that goes on until the mesh ends it.
async fn health(mesh: &Running) -> Streaming<HealthCheckResponse> {
    let channel = channel(mesh, "automl", target(&mesh.ready.automl));
    let watch = HealthClient::new(channel)
        .watch(HealthCheckRequest::default())
        .await;
    let mut items = watch.unwrap().into_inner();
    assert_eq!(items.message().await.unwrap().unwrap().status(), SERVING);
    items
}

/// The health of a service, asked on a connection of its own.
async fn checked(mesh: &Running) -> Result<HealthCheckResponse, Status> {
    let mut client = HealthClient::new(channel(mesh, "automl", target(&mesh.ready.automl)));
    let checked = client.check(HealthCheckRequest::default()).await;
    checked.map(tonic::Response::into_inner)
}

async fn token(mesh: &Running) -> String {
    let password = std::fs::read_to_string(&mesh.ready.admin_password_file).unwrap();
    let login = json!({ "username": mesh.ready.admin_user, "password": password });
    let login = Rest::new(&mesh.ready.gateway)
        .post("/auth/login", login)
        .await;
    login.unwrap()["access_token"].as_str().unwrap().to_owned()
}

/// Follows a run over gRPC; returns whether its last item came.
async fn followed(channel: Channel, token: String, run_id: String) -> Result<bool, Status> {
    let mut request = Request::new(WatchTrainingRequest {
        run_id,
        after_sequence: 0,
        with_state: false,
    });
    let bearer = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", bearer);
    let mut client = TrainingServiceClient::new(channel);
    let watch = client.watch_training(request).await?;
    let (mut items, mut ended) = (watch.into_inner(), false);
    while let Some(item) = items.message().await? {
        ended = item.ended.is_some();
    }
    Ok(ended)
}

async fn open_streams(mesh: &Running) -> u64 {
    let text = Rest::new(&mesh.ready.observe).text("/metrics").await;
    let line = "rpc_server_places{service=\"orchestration\",kind=\"streams\"} ";
    let text = text.unwrap();
    let value = text.lines().find_map(|l| l.strip_prefix(line));
    value.map_or(0, |n| n.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_streams_in_flight_finish_after_sigterm_and_then_the_process_ends() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = start(data.path(), &[("DRAIN_STREAMS_SECONDS", "300")]);
    let (admin, token) = (mesh.admin().await, token(&mesh).await);
    let train = "/api/v1/orchestration/agents/policy/train";
    let run = json!({ "steps": "40000", "seed": "1" });
    let run = admin.post(train, run).await.unwrap();
    let run = run["run"]["run_id"].as_str().unwrap().to_owned();
    let orchestration = channel(&mesh, "orchestration", target(&mesh.ready.orchestration));
    let mut streams = JoinSet::new();
    for _ in 0..25 {
        let over_grpc = followed(orchestration.clone(), token.clone(), run.clone());
        streams.spawn(async move { over_grpc.await.map_err(|e| e.to_string()) });
        let (admin, run) = (admin.clone(), run.clone());
        streams.spawn(async move {
            let (path, mut ended) = (
                format!("/api/v1/orchestration/training/{run}/events"),
                false,
            );
            let each = |item: &Value| {
                ended = item["ended"].is_object();
                true
            };
            let followed = admin.follow(&path, each).await;
            followed.map(|()| ended).map_err(|e| e.to_string())
        });
    }
    eventually("all streams are open", || async {
        open_streams(&mesh).await == 50
    })
    .await;
    mesh.process.terminate();
    let ended = timeout(MOST, streams.join_all()).await.unwrap();
    let complete = ended.iter().filter(|ended| **ended == Ok(true)).count();
    assert_eq!(complete, 50, "{ended:?}");
    assert_eq!(mesh.process.exit_code(), Some(0), "{}", mesh.logged());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_an_end_is_told_and_one_that_hangs_does_not_hold_the_exit() {
    let data = tempfile::tempdir().unwrap();
    let env = [("DRAIN_STREAMS_SECONDS", "1"), ("DRAIN_SECONDS", "2")];
    let mut mesh = start(data.path(), &env);
    let mut told = health(&mesh).await;
    // Nobody reads this one, and its connection stays open.
    let hung = health(&mesh).await;
    mesh.process.terminate();
    let first = told.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::NotServing, "before it ends");
    let status = told.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(fault::reason(&status).as_deref(), Some("STOPPING"));
    let exited = tokio::task::spawn_blocking(move || {
        let code = mesh.process.exit_code();
        (code, mesh.logged())
    });
    let (code, log) = exited.await.unwrap();
    assert_eq!(code, Some(0), "{log}");
    drop(hung);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_stops_is_unready_at_once_and_serves_until_others_have_noticed() {
    let data = tempfile::tempdir().unwrap();
    let mut mesh = start(data.path(), &[("NOTICE_SECONDS", "3000")]);
    let admin = mesh.admin().await;
    let mut statuses = health(&mesh).await;
    mesh.process.terminate();
    let status = statuses.message().await.unwrap().unwrap();
    assert_eq!(status.status(), ServingStatus::NotServing);
    let observe = Rest::new(&mesh.ready.observe);
    let report = observe.text("/readyz").await.unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["ready"], false);
    assert_eq!(report["checks"]["stop"]["state"], "failed", "{report}");
    let (http, _) = tars_tests::refusal(observe.get("/readyz").await);
    assert_eq!(http, 503);
    // New connections of those who have not noticed yet, at the edge and behind it.
    for _ in 0..20 {
        admin.get("/auth/me").await.expect("it still serves");
    }
    let checked = checked(&mesh).await.unwrap();
    assert_eq!(checked.status(), ServingStatus::NotServing);
    // A second signal does not wait.
    mesh.process.terminate();
    assert_eq!(mesh.process.exit_code(), Some(130), "{}", mesh.logged());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_a_process_that_still_drains() {
    let data = tempfile::tempdir().unwrap();
    let env = [("DRAIN_STREAMS_SECONDS", "3000"), ("DRAIN_SECONDS", "3000")];
    let mut mesh = start(data.path(), &env);
    let _hung = health(&mesh).await;
    mesh.process.terminate();
    eventually("it takes no more calls", || async {
        checked(&mesh).await.is_err()
    })
    .await;
    let live = Rest::new(&mesh.ready.observe).text("/livez").await;
    live.expect("probes are answered until the end");
    mesh.process.terminate();
    assert_eq!(mesh.process.exit_code(), Some(130), "{}", mesh.logged());
    let log = mesh.logged();
    for part in ["another signal stops at once", "stopped at once"] {
        assert!(log.contains(part), "{part}: {log}");
    }
}
