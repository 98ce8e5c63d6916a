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
    /// The span as it was exported.
    pub span: Span,
    /// The attributes of the process that exported it.
    pub resource: BTreeMap<String, String>,
}

impl Received {
    /// The trace that it is part of, in hexadecimal.
    pub fn trace_id(&self) -> String {
        hex(&self.span.trace_id)
    }

    /// The `service.name` of its resource; empty without one.
    pub fn service(&self) -> &str {
        self.resource.get("service.name").map_or("", String::as_str)
    }

    /// One of its own attributes, as text.
    pub fn attribute(&self, key: &str) -> Option<String> {
        attributes(&self.span.attributes).remove(key)
    }

    /// Whether its status is an error.
    pub fn is_error(&self) -> bool {
        self.span.status.as_ref().is_some_and(|s| s.code == 2)
    }

    /// Whether it is of an outgoing call.
    pub fn is_client(&self) -> bool {
        self.span.kind == 3
    }

    /// Whether it is of an incoming call.
    pub fn is_server(&self) -> bool {
        self.span.kind == 2
    }
}

/// Bytes in small hexadecimal digits, as trace ids are written.
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

/// A collector that keeps every span that it receives. Clones share the spans.
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

    /// Every span so far, in the order of arrival.
    pub fn all(&self) -> Vec<Received> {
        self.0.lock().clone()
    }

    /// The spans of one trace so far.
    pub fn of(&self, trace_id: &str) -> Vec<Received> {
        let mut all = self.all();
        all.retain(|r| r.trace_id() == trace_id);
        all
    }
}
