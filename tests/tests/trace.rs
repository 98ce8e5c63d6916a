//! One trace from the REST call to the SQL, caught by an OTLP receiver in this process.

#![allow(clippy::unwrap_used)]

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use parking_lot::Mutex;
use serde_json::json;
use std::sync::Arc;
use tars_tests::{TestMesh, config};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request
            .into_inner()
            .resource_spans
            .into_iter()
            .flat_map(|r| r.scope_spans);
        self.0.lock().extend(spans.flat_map(|s| s.spans));
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success: None,
        }))
    }
}

impl Receiver {
    async fn start() -> (Self, String) {
        let receiver = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let service = TraceServiceServer::new(receiver.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
        (receiver, endpoint)
    }

    fn of(&self, trace_id: &str) -> Vec<Span> {
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        self.0
            .lock()
            .iter()
            .filter(|s| hex(&s.trace_id) == trace_id)
            .cloned()
            .collect()
    }
}

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

    let spans = receiver.of(trace_id);
    let parent_of = |span: &Span| spans.iter().find(|s| s.span_id == span.parent_span_id);
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
            let mut at = Some(leaf);
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
}
