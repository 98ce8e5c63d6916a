//! What the real processes say of themselves: traces, metrics, readiness and the log agree with what
//! a client sees.

#![allow(clippy::unwrap_used)]

use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};
use tars::rest::Rest;
use tars_tests::{
    eventually,
    fleet::{Fleet, Source},
    otlp::{Received, Receiver},
    reason, refusal,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

fn binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_tars"))
}

/// An address where nobody listens now.
fn nobody() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

async fn change(rest: &Rest) -> (u16, String) {
    let body = json!({ "hyperparameters": { "gamma": 0.97 } });
    let path = "/api/v1/orchestration/agents/policy/reload";
    match rest.post(path, body).await {
        Ok(_) => (200, String::new()),
        refused => {
            let (status, body) = refusal::<Value>(refused);
            (status, reason(&body))
        }
    }
}

/// What the readiness report says of one check.
async fn state(fleet: &Fleet, process: &str, check: &str) -> (bool, String, String) {
    let report = fleet.readiness(process).await.unwrap_or_default();
    let found = &report["checks"][check];
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    (report["ready"] == true, text("state"), text("detail"))
}

async fn until(fleet: &Fleet, process: &str, check: &str, wanted: &str) {
    eventually(&format!("{check} is {wanted}"), || async {
        let (ready, state, _) = state(fleet, process, check).await;
        ready && state == wanted
    })
    .await;
}

/// The value of one sample.
async fn sample(fleet: &Fleet, process: &str, name: &str) -> f64 {
    let text = fleet.metrics(process).await.unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(name));
    line.map_or(0.0, |value| value.trim().parse().unwrap())
}

/// Lines of a process's log about one check.
fn said(fleet: &Fleet, process: &str, check: &str, what: &str) -> usize {
    let log = std::fs::read_to_string(fleet.log(process)).unwrap();
    let of = |line: &&str| line.contains(&format!(" {what} check={check} "));
    log.lines().filter(of).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_is_shown_counted_and_said_once() {
    let collector = nobody();
    let endpoint = format!("http://{collector}");
    let env = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_BSP_SCHEDULE_DELAY", "200"),
        (
            "OTEL_RESOURCE_ATTRIBUTES",
            "deployment.environment.name=test",
        ),
        ("TARS__LOG__LEVEL", "info"),
    ];
    let mut fleet = Fleet::start(binary(), Source::Join, &env).await;
    let rest = fleet.admin().await;
    assert_eq!(
        change(&rest).await.0,
        200,
        "a collector that is away harms nobody"
    );
    until(&fleet, "orchestration", "telemetry", "degraded").await;
    let dropped = "trace_spans_dropped_total{service=\"orchestration\",reason=\"export_failed\"}";
    assert!(sample(&fleet, "orchestration", dropped).await > 0.0);
    let level = "health_check_state{check=\"telemetry\"}";
    eventually("the watcher has seen it", || async {
        sample(&fleet, "orchestration", level).await == 1.0
    })
    .await;
    let receiver = Receiver::start_at(collector).await;
    eventually("the collector hears of every service", || async {
        rest.get("/api/v1/orchestration/agents/state").await.ok();
        let names: BTreeSet<String> = receiver.all().iter().map(|r| r.service().into()).collect();
        names.contains("tars-gateway") && names.contains("tars-orchestration")
    })
    .await;
    until(&fleet, "orchestration", "telemetry", "ok").await;
    let spans = receiver.all();
    assert!(
        spans
            .iter()
            .all(|r| r.resource["deployment.environment.name"] == "test")
    );

    fleet.kill("auth");
    for process in fleet.processes_of("orchestration") {
        let check = "orchestration.credentials";
        until(&fleet, &process, check, "degraded").await;
    }
    let (_, _, detail) = state(&fleet, "orchestration", "orchestration.credentials").await;
    assert!(detail.starts_with("stale for 1"), "{detail}");
    assert!(
        detail.ends_with("; calls that change something are refused"),
        "{detail}"
    );
    for _ in 0..20 {
        assert_eq!(change(&rest).await, (503, "STALE_CREDENTIALS".to_owned()));
    }
    let refused = "rpc_server_calls_refused_total{reason=\"STALE_CREDENTIALS\"}";
    let mut count = 0.0;
    for process in fleet.processes_of("orchestration") {
        count += sample(&fleet, &process, refused).await;
    }
    assert!(count >= 20.0, "{count}");
    let age = "credentials_age_seconds{service=\"orchestration\"}";
    assert!(sample(&fleet, "orchestration", age).await > 10.0);
    // Its stream ended at another moment.
    eventually("the gateway says it of itself", || async {
        let shown = fleet.rest().get("/ready").await.unwrap();
        shown["checks"]["gateway.credentials"]["state"] == "degraded"
    })
    .await;
    fleet.spawn("auth");
    until(&fleet, "orchestration", "orchestration.credentials", "ok").await;
    eventually("changes are taken again", || async {
        change(&rest).await.0 == 200
    })
    .await;
    let level = "health_check_state{check=\"orchestration.credentials\"}";
    eventually("the watcher has seen it", || async {
        sample(&fleet, "orchestration", level).await == 0.0
    })
    .await;
    for check in ["telemetry", "orchestration.credentials"] {
        assert_eq!(
            said(&fleet, "orchestration", check, "degraded"),
            1,
            "{check}"
        );
        let over = said(&fleet, "orchestration", check, "recovered");
        assert!(over >= 1, "{check}");
    }
}

/// The sum of one sample over the processes of a service.
async fn total(fleet: &Fleet, service: &str, name: &str) -> f64 {
    let mut sum = 0.0;
    for process in fleet.processes_of(service) {
        sum += sample(fleet, &process, name).await;
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_shows_its_calls_and_connections_to_others() {
    let mut fleet = Fleet::start(binary(), Source::Join, &[]).await;
    let rest = fleet.admin().await;
    let auth = "peer=\"spiffe://tars.local/auth\"";
    let calls = |method: &str, code: &str| {
        format!(
            "rpc_client_calls_total{{{auth},method=\"tars.auth.v1.AuthService/{method}\",code=\"{code}\"}} "
        )
    };
    let logins = total(&fleet, "gateway", &calls("Login", "OK")).await;
    assert!(logins >= 1.0, "{logins}");
    let open = format!("mesh_client_connections{{{auth}}} ");
    assert!(total(&fleet, "gateway", &open).await >= 1.0);

    fleet.kill("auth");
    let failed = format!("mesh_client_connections_failed_total{{{auth},reason=\"unreachable\"}} ");
    eventually("what fails is counted", || async {
        rest.get("/auth/me").await.unwrap_err();
        total(&fleet, "gateway", &failed).await > 0.0
            && total(&fleet, "gateway", &calls("GetMe", "UNAVAILABLE")).await > 0.0
    })
    .await;
    eventually("no connection is open", || async {
        total(&fleet, "gateway", &open).await == 0.0
    })
    .await;
}

async fn metrics(addr: &str, accept: &str) -> String {
    let mut tcp = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nhost: x\r\n{accept}connection: close\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    answer.to_lowercase()
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_come_in_the_format_that_was_asked_for() {
    let mesh = tars_tests::TestMesh::start().await;
    mesh.admin().await;
    let observe = mesh.mesh.ready.observe.replace("http://", "");
    let plain = metrics(&observe, "accept: */*\r\n").await;
    assert!(
        plain.contains("content-type: text/plain; version=0.0.4"),
        "{plain}"
    );
    assert!(plain.contains("# type rpc_server_calls_total counter\n"));
    assert!(!plain.contains("# eof"));
    let open = "accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2\r\n";
    let open = metrics(&observe, open).await;
    assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(open.contains("# type rpc_server_calls counter\n") && open.contains("# eof\n"));
    let families = |text: &str| text.lines().filter(|l| l.starts_with("# type ")).count();
    assert_eq!(families(&plain), families(&open));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_span_that_the_demo_names_as_parent_is_there() {
    let (receiver, endpoint) = Receiver::start().await;
    let dir = tempfile::tempdir().unwrap();
    let args = [
        "demo", "--quick", "--trials", "1", "--steps", "2000", "--exit", "--json",
    ];
    let mut demo = Command::new(binary());
    demo.args(args).arg("--data-dir").arg(dir.path());
    demo.env("TARS__TELEMETRY__OTLP_ENDPOINT", &endpoint);
    demo.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = demo.spawn().unwrap();
    tokio::task::spawn_blocking(move || child.wait().unwrap())
        .await
        .unwrap();

    let all = receiver.all();
    let root = all.iter().find(|r| r.service() == "tars-demo").unwrap();
    assert_eq!(root.span.name, "demo");
    assert!(root.span.parent_span_id.is_empty());
    let ids: BTreeSet<&[u8]> = all.iter().map(|r| r.span.span_id.as_slice()).collect();
    let named = |r: &&Received| !r.span.parent_span_id.is_empty();
    for span in all.iter().filter(named) {
        let parent = span.span.parent_span_id.as_slice();
        assert!(
            ids.contains(parent),
            "{} of {}",
            span.span.name,
            span.service()
        );
    }
    let traces: BTreeSet<String> = all.iter().map(Received::trace_id).collect();
    assert_eq!(
        traces.len(),
        1,
        "the job, and nothing the mesh does for itself"
    );
}
