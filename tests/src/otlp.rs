//! A collector of traces: takes what it is sent over OTLP and keeps it.

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    resource::v1::Resource,
    trace::v1::Span,
};
use parking_lot::Mutex;
use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

/// A span as it came, with who sent it.
#[derive(Debug, Clone)]
pub struct Received {
    pub span: Span,
    pub resource: BTreeMap<String, String>,
}

impl Received {
    pub fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn service(&self) -> &str {
        self.resource.get("service.name").map_or("", String::as_str)
    }

    pub fn attribute(&self, key: &str) -> Option<String> {
        attributes(&self.span.attributes).remove(key)
    }

    pub fn is_error(&self) -> bool {
        self.span.status.as_ref().is_some_and(|s| s.code == 2)
    }

    pub fn is_client(&self) -> bool {
        self.span.kind == 3
    }

    pub fn is_server(&self) -> bool {
        self.span.kind == 2
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn attributes(list: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &Value| match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(n) => n.to_string(),
        other => format!("{other:?}"),
    };
    list.iter()
        .filter_map(|kv| Some((kv.key.clone(), text(kv.value.as_ref()?.value.as_ref()?))))
        .collect()
}

#[derive(Clone, Default)]
pub struct Receiver(Arc<Mutex<Vec<Received>>>);

#[tonic::async_trait]
impl TraceService for Receiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for batch in request.into_inner().resource_spans {
            let resource: Resource = batch.resource.unwrap_or_default();
            let resource = attributes(&resource.attributes);
            let spans = batch.scope_spans.into_iter().flat_map(|s| s.spans);
            self.0.lock().extend(spans.map(|span| Received {
                span,
                resource: resource.clone(),
            }));
        }
        Ok(Response::new(ExportTraceServiceResponse {
            partial_success: None,
        }))
    }
}

impl Receiver {
    /// Listens on a free port.
    pub async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("an address");
        let receiver = Self::default();
        receiver.serve(listener);
        (receiver, format!("http://{addr}"))
    }

    /// Listens where one was away until now.
    pub async fn start_at(addr: SocketAddr) -> Self {
        let receiver = Self::default();
        receiver.serve(TcpListener::bind(addr).await.expect("the port"));
        receiver
    }

    fn serve(&self, listener: TcpListener) {
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let service = TraceServiceServer::new(self.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming),
        );
    }

    pub fn all(&self) -> Vec<Received> {
        self.0.lock().clone()
    }

    pub fn of(&self, trace_id: &str) -> Vec<Received> {
        let mut all = self.all();
        all.retain(|r| r.trace_id() == trace_id);
        all
    }
}
