//! The outermost layer: reads the W3C trace context, starts the server span, and creates the record of
//! the call.
//!
//! Only workloads of the mesh decide whether a trace is sampled. The trace id of an outside client is
//! kept, so that it can find its call. Calls that the mesh makes for itself start no sampled trace.

use crate::{
    Call, contract,
    observe::{Observe, Watch},
};
use http::{HeaderMap, HeaderName, Request};
use std::{net::IpAddr, sync::Arc};
use tars_certs::{PeerClass, peer::PeerInfo};
use tars_proto::{fault, reason, table::Method};
use tars_runtime::{
    clock::Clock,
    trace::{Entry, Parent, Scope, Span, TRACE_ID, Tracer, id_header},
};
use tonic::{Code, Status, metadata::MetadataValue};

/// The header in which the gateway passes on its client's address. Ignored from any other peer.
pub const CLIENT_ADDR: &str = "x-tars-client-addr";

const TRACE_ID_HEADER: HeaderName = HeaderName::from_static(TRACE_ID);

/// The observer that traces calls.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The tracer of the service.
    pub tracer: Tracer,
    /// The clock by which calls arrive.
    pub clock: Clock,
}

impl Observe for Trace {
    type Watch = TraceWatch;

    fn begin<B>(&self, request: &mut Request<B>) -> Result<TraceWatch, Status> {
        let peer = request
            .extensions()
            .get::<Arc<PeerInfo>>()
            .cloned()
            .ok_or_else(|| Status::internal("the connection has no peer"))?;
        let table = contract().map_err(|_| Status::internal("the contract is broken"))?;
        let method = table.get(request.uri().path());
        let entry = Entry {
            parent: Parent::read(request.headers()),
            trusted: peer.class.is_some_and(PeerClass::is_workload),
            infrastructure: method.is_some_and(Method::is_infrastructure),
        };
        let Some(method) = method else {
            return Err(unknown(&self.tracer.enter("unknown method", entry)));
        };
        let mut span = self.tracer.enter(&method.path[1..], entry);
        describe(&mut span, &method.path[1..], &peer);
        let client = client_addr(request.headers(), &peer);
        let arrived = self.clock.monotonic();
        let call = Call::new(method, peer, client, span.context(), arrived);
        let call = Arc::new(call.attempted(request.headers()));
        request.extensions_mut().insert(Arc::clone(&call));
        Ok(TraceWatch {
            id: span.context().trace_id,
            scope: Some(span.scope()),
            span,
            call: Some(call),
        })
    }
}

fn unknown(span: &Span) -> Status {
    let message = "the contract has no such method";
    let mut status = fault::status(Code::Unimplemented, reason::UNKNOWN_METHOD, message);
    let id = MetadataValue::try_from(span.context().trace_id_hex());
    if let Ok(id) = id {
        status.metadata_mut().insert(TRACE_ID, id);
    }
    status
}

fn describe(span: &mut Span, method: &str, peer: &PeerInfo) {
    if span.is_recording() {
        span.set("rpc.system.name", "grpc");
        span.set("rpc.method", method.to_owned());
        span.set("network.peer.address", peer.addr.ip().to_string());
        span.set("tars.peer.id", peer.name().to_owned());
    }
}

fn client_addr(headers: &http::HeaderMap, peer: &PeerInfo) -> IpAddr {
    let forwarded = (peer.class == Some(PeerClass::Gateway))
        .then(|| headers.get(CLIENT_ADDR)?.to_str().ok()?.parse().ok())
        .flatten();
    forwarded.unwrap_or_else(|| peer.addr.ip())
}

/// Traces one call.
#[derive(Debug)]
pub struct TraceWatch {
    id: u128,
    span: Span,
    /// Both are present except while the call is being polled.
    scope: Option<Scope>,
    call: Option<Arc<Call>>,
}

impl Watch for TraceWatch {
    fn enter<T>(&mut self, work: impl FnOnce() -> T) -> T {
        Scope::enter(&mut self.scope, || Call::enter(&mut self.call, work))
    }

    fn answer(&self, headers: &mut HeaderMap) {
        headers.insert(TRACE_ID_HEADER, id_header(self.id));
    }

    fn end(mut self, code: Code) {
        if !self.span.is_recording() {
            return;
        }
        let name = fault::code_name(code);
        self.span.set("rpc.response.status_code", name);
        if let Some(caller) = self.call.as_ref().and_then(|call| call.caller()) {
            self.span.set("tars.caller", caller.label.clone());
        }
        if is_server_fault(code) {
            self.span.set("error.type", name);
            self.span.fail(name);
        }
    }
}

/// Whether a code is the server's fault, by the RPC semantic conventions.
fn is_server_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}
