//! One trace from the REST call to the SQL, caught by an OTLP receiver in this process.

#![allow(clippy::unwrap_used)]

use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use std::{collections::BTreeSet, net::SocketAddr};
use tars_interceptors::client::{Credentials, outgoing};
use tars_tests::{
    TestMesh, config, eventually, governed,
    otlp::{Received, Receiver, hex},
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn one_trace_from_rest_to_sql_through_every_service() {
    let (receiver, endpoint) = Receiver::start().await;
    let mut settings = config();
    settings.telemetry.otlp_endpoint = Some(endpoint);
    let mesh = TestMesh::with(settings).await;
    let trace_id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let traceparent = format!("00-{trace_id}-00f067aa0ba902b7-01");
    let developer = mesh.user("dev", "developer").await.in_trace(&traceparent);
    let admin = mesh.admin().await.in_trace(&traceparent);

    let body = json!({ "n_trials": 1, "steps": "2000", "sampler_type": "random" });
    let study = developer.post("/api/v1/optimize", body).await.unwrap()["optimization_id"]
        .as_str()
        .unwrap()
        .to_owned();
    developer
        .follow(&format!("/api/v1/studies/{study}/events"), |i| {
            i["ended"].is_null()
        })
        .await
        .unwrap();
    let body = json!({ "study_id": study, "verification_seeds": 2 });
    let proposal = developer.post("/api/v1/sync/propose", body).await.unwrap();
    let id = proposal["proposal"]["update_id"].as_str().unwrap();
    // An assessment that a decision cuts short is a stream that was cancelled.
    eventually("it is assessed", || async {
        governed::proposal(&admin, id).await["assessment"].is_object()
    })
    .await;
    admin
        .post("/api/v1/sync/approve", json!({ "update_id": id }))
        .await
        .unwrap();
    admin
        .post(&format!("/api/v1/sync/apply/{id}"), json!({}))
        .await
        .unwrap();
    admin
        .follow(&format!("/api/v1/sync/proposals/{id}/events"), |_| true)
        .await
        .unwrap();
    // Stopping flushes what is queued.
    mesh.mesh.stop().await;

    let received = receiver.of(trace_id);
    let spans: Vec<&Span> = received.iter().map(|r| &r.span).collect();
    let parent_of = |span: &Span| {
        spans
            .iter()
            .find(|s| s.span_id == span.parent_span_id)
            .copied()
    };
    // Each name, with the names of its ancestors that the trace must show.
    let chains: &[&[&str]] = &[
        &[
            "studies.create",
            "tars.automl.v1.StudyService/Optimize",
            "tars.automl.v1.StudyService/Optimize",
            "POST /api/v1/optimize",
        ],
        &[
            "tars.orchestration.v1.OrchestrationService/ReadHyperparameters",
            "tars.orchestration.v1.OrchestrationService/ReadHyperparameters",
            "tars.automl.v1.StudyService/Optimize",
        ],
        &[
            "tars.orchestration.v1.TrainingService/EvaluateHyperparameters",
            "tars.orchestration.v1.TrainingService/EvaluateHyperparameters",
            "automl.study",
        ],
        &["trials.tell", "automl.study"],
        &[
            "proposals.propose",
            "tars.hypersync.v1.SyncService/ProposeUpdate",
            "tars.hypersync.v1.SyncService/ProposeUpdate",
            "POST /api/v1/sync/propose",
        ],
        &[
            "tars.automl.v1.StudyService/GetStudy",
            "tars.automl.v1.StudyService/GetStudy",
            "tars.hypersync.v1.SyncService/ProposeUpdate",
        ],
        &[
            "proposals.decide",
            "tars.hypersync.v1.SyncService/ApproveProposal",
            "tars.hypersync.v1.SyncService/ApproveProposal",
            "POST /api/v1/sync/approve",
        ],
        &[
            "agents.reload",
            "tars.orchestration.v1.OrchestrationService/ApplyHyperparameters",
            "tars.orchestration.v1.OrchestrationService/ApplyHyperparameters",
            "hypersync.apply",
        ],
        &["proposals.advance", "hypersync.apply"],
    ];
    for chain in chains {
        let found = spans.iter().filter(|s| s.name == chain[0]).any(|leaf| {
            let mut at = Some(*leaf);
            chain.iter().all(|name| {
                let good = at.is_some_and(|s| s.name == *name);
                at = at.and_then(parent_of);
                good
            })
        });
        let names: Vec<&str> = spans.iter().map(|s| s.name.as_str()).collect();
        assert!(found, "no chain {chain:?} in {names:?}");
    }
    let server = spans
        .iter()
        .find(|s| s.name == "tars.hypersync.v1.SyncService/ApproveProposal" && s.kind == 2)
        .unwrap();
    let has = |key: &str| server.attributes.iter().any(|a| a.key == key);
    for key in [
        "rpc.system.name",
        "rpc.method",
        "rpc.response.status_code",
        "tars.peer.id",
        "tars.caller",
    ] {
        assert!(has(key), "{key} in {:?}", server.attributes);
    }
    for span in &spans {
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
    }
    services_name_themselves(&receiver.all());
    streams_that_went_well_are_no_errors(&received);
    background_work_says_what_it_is(&received, &study, id);
    let infrastructure = receiver.all();
    let infrastructure = infrastructure.iter().filter(|r| is_infrastructure(r));
    assert_eq!(infrastructure.count(), 0, "nobody asked for these");
}

fn services_name_themselves(received: &[Received]) {
    let names: BTreeSet<&str> = received.iter().map(Received::service).collect();
    let expected = [
        "tars-auth",
        "tars-automl",
        "tars-gateway",
        "tars-hypersync",
        "tars-orchestration",
    ];
    assert_eq!(names, BTreeSet::from(expected));
    let instances: BTreeSet<&str> = received
        .iter()
        .map(|r| r.resource["service.instance.id"].as_str())
        .collect();
    assert_eq!(instances.len(), expected.len());
    assert!(
        received
            .iter()
            .all(|r| r.resource["service.version"] == env!("CARGO_PKG_VERSION"))
    );
}

fn streams_that_went_well_are_no_errors(received: &[Received]) {
    let clients = received.iter().filter(|r| r.is_client());
    let calls: Vec<_> = clients
        .filter(|r| r.attribute("rpc.method").is_some())
        .collect();
    for call in &calls {
        assert!(!call.is_error(), "{call:?}");
        let status = call.attribute("rpc.response.status_code");
        assert_eq!(status.as_deref(), Some("OK"), "{call:?}");
    }
    let streams = ["EvaluateHyperparameters", "WatchStudy", "WatchProposal"];
    for stream in streams {
        let found = calls.iter().any(|c| c.span.name.ends_with(stream));
        assert!(found, "{stream}");
    }
    // The span of a streamed answer lasts as long as what it waits for.
    for rest in received.iter().filter(|r| r.span.name.ends_with("/events")) {
        let below = received
            .iter()
            .filter(|r| r.span.parent_span_id == rest.span.span_id);
        for child in below {
            assert!(child.span.end_time_unix_nano <= rest.span.end_time_unix_nano);
        }
    }
}

fn background_work_says_what_it_is(received: &[Received], study: &str, proposal: &str) {
    let named = |name: &str| received.iter().find(|r| r.span.name == name).unwrap();
    let searched = named("automl.study");
    assert_eq!(searched.attribute("tars.study.id").as_deref(), Some(study));
    let applied = named("hypersync.apply");
    let shown = applied.attribute("tars.proposal.id");
    assert_eq!(shown.as_deref(), Some(proposal));
    for work in [searched, applied] {
        assert_eq!(work.attribute("tars.agent.id").as_deref(), Some("policy"));
    }
}

fn is_infrastructure(received: &Received) -> bool {
    let own = ["ReportTrust", "WatchCredentials", "AppendAuditEvents"];
    let name = &received.span.name;
    own.iter().any(|m| name.ends_with(m)) || name.starts_with("grpc.")
}

/// A call with headers of one's own, whatever its answer.
async fn raw(gateway: &str, headers: &str) {
    let addr: SocketAddr = gateway.trim_start_matches("http://").parse().unwrap();
    let mut tcp = tokio::net::TcpStream::connect(addr).await.unwrap();
    let body = r#"{"username":"nobody","password":"wrong"}"#;
    let request = format!(
        "POST /auth/login HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    tcp.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_state_of_other_tracing_systems_is_passed_on_or_dropped_whole() {
    let (receiver, endpoint) = Receiver::start().await;
    let mut settings = config();
    settings.telemetry.otlp_endpoint = Some(endpoint);
    settings.telemetry.sample_infrastructure = true;
    let mesh = TestMesh::with(settings).await;
    let (good, bad) = ("1".repeat(32), "2".repeat(32));
    let headers =
        |id: &str, state: &str| format!("traceparent: 00-{id}-00f067aa0ba902b7-00\r\n{state}");
    let gateway = &mesh.mesh.ready.gateway;
    let state = "tracestate: vendor=a b,t@sys=1\r\ntracestate: last=x\r\n";
    raw(gateway, &headers(&good, state)).await;
    raw(gateway, &headers(&bad, "tracestate: vendor=a,Bad=1\r\n")).await;
    let health = outgoing(mesh.channel("auth", "/user/ada"), Credentials::Own);
    let mut health = tars_proto::grpc::health::v1::health_client::HealthClient::new(health);
    let whole = tars_proto::grpc::health::v1::HealthCheckRequest::default();
    health.check(whole).await.unwrap();
    mesh.mesh.stop().await;

    // From the gateway's side of the bridge to the service behind it.
    let states = |trace_id: &str| -> Vec<(String, String)> {
        let of = receiver.of(trace_id).into_iter();
        of.map(|r| (r.service().to_owned(), r.span.trace_state))
            .collect()
    };
    let passed = states(&good);
    for service in ["tars-gateway", "tars-auth"] {
        assert!(passed.iter().any(|(s, _)| s == service), "{passed:?}");
    }
    for (service, state) in passed {
        assert_eq!(state, "vendor=a b,t@sys=1,last=x", "{service}");
    }
    let dropped = states(&bad);
    assert!(!dropped.is_empty() && dropped.iter().all(|(_, state)| state.is_empty()));
    let seen = receiver.all();
    assert!(seen.iter().any(is_infrastructure), "asked for");
    assert!(seen.iter().any(|r| r.span.name.starts_with("grpc.health")));
    for span in seen
        .iter()
        .filter(|r| r.is_server() && !r.span.parent_span_id.is_empty())
    {
        assert_ne!(hex(&span.span.span_id), hex(&span.span.parent_span_id));
    }
}
