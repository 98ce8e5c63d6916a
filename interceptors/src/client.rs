//! The client-side counterparts: an outgoing call carries its trace, the remaining deadline, and the
//! credential of the caller on whose behalf it is made.

use crate::{
    Call, contract,
    observe::{Observe, ObserveLayer, Observed, Watch},
};
use http::{HeaderValue, Request};
use std::time::Duration;
use tars_proto::{fault, timeout};
use tars_runtime::trace::{Kind, Scope, Span};
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};
use tower_layer::Layer;

/// Which credential an outgoing call carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// The credential of the caller on whose behalf the call is made, if there is one.
    Forward,
    /// None: the peer's certificate is the principal.
    Own,
}

/// The observer of outgoing calls.
#[derive(Debug, Clone)]
pub struct Outgoing {
    credentials: Credentials,
}

/// A client service whose calls carry trace, deadline and credential.
pub type OutgoingService<S> = Observed<S, Outgoing>;

/// Wraps a client service, most often a channel.
pub fn outgoing<S>(inner: S, credentials: Credentials) -> OutgoingService<S> {
    ObserveLayer(Outgoing { credentials }).layer(inner)
}

impl Observe for Outgoing {
    type Watch = ClientWatch;

    fn begin<B>(&self, request: &mut Request<B>) -> Result<ClientWatch, Status> {
        let call = Call::current();
        match call.as_ref().and_then(|c| c.deadline()) {
            Some(at) => shorten(request, at)?,
            None => bound(request),
        }
        if self.credentials == Credentials::Forward
            && let Some((name, value)) = call.as_ref().and_then(|c| c.credential())
        {
            request.headers_mut().insert(name.clone(), value.clone());
        }
        let span = Scope::current().map(|s| start(&s, request));
        Ok(ClientWatch { span })
    }
}

/// Sets the timeout to what remains of the deadline, or to what the call asks for if that is less.
fn shorten<B>(request: &mut Request<B>, at: Instant) -> Result<(), Status> {
    let left = at.saturating_duration_since(Instant::now());
    if left < Duration::from_millis(1) {
        return Err(timeout::expired());
    }
    let headers = request.headers_mut();
    let asked = headers
        .get(timeout::HEADER)
        .and_then(|v| timeout::parse(v.to_str().ok()?));
    let text = timeout::format(asked.map_or(left, |asked| asked.min(left)));
    let value = HeaderValue::try_from(text).map_err(|_| Status::internal("a timeout is ASCII"))?;
    headers.insert(timeout::HEADER, value);
    Ok(())
}

/// Sets the timeout to what the contract allows, when the call asks for none: a server that does not respond
/// must not hold its caller.
fn bound<B>(request: &mut Request<B>) {
    if request.headers().contains_key(timeout::HEADER) {
        return;
    }
    let method = contract().ok().and_then(|t| t.get(request.uri().path()));
    let Some(most) = method.and_then(|method| method.rule.deadline) else {
        return;
    };
    if let Ok(value) = HeaderValue::try_from(timeout::format(most)) {
        request.headers_mut().insert(timeout::HEADER, value);
    }
}

fn start<B>(scope: &Scope, request: &mut Request<B>) -> Span {
    let method = request.uri().path().trim_start_matches('/').to_owned();
    let mut span = scope.child(method.clone(), Kind::Client);
    if span.is_recording() {
        span.set("rpc.system.name", "grpc");
        span.set("rpc.method", method);
        if let Some(host) = request.uri().host() {
            span.set("server.address", host.to_owned());
        }
    }
    span.inject(request.headers_mut());
    span
}

/// How long to wait for the trailers of a stream whose last message has arrived.
const TRAILERS_TIMEOUT: Duration = Duration::from_secs(1);

/// Reads a stream whose last message has arrived to its trailers, so that the call ends with a status
/// instead of being cancelled.
pub async fn finish<T>(mut items: Streaming<T>) {
    let end = async { while let Ok(Some(_)) = items.message().await {} };
    tokio::time::timeout(TRAILERS_TIMEOUT, end).await.ok();
}

/// Ends the span of an outgoing call.
#[derive(Debug)]
pub struct ClientWatch {
    span: Option<Span>,
}

impl Watch for ClientWatch {
    fn end(self, code: Code) {
        let Some(mut span) = self.span.filter(Span::is_recording) else {
            return;
        };
        let name = fault::code_name(code);
        span.set("rpc.response.status_code", name);
        // A client that stops listening has not failed.
        if !matches!(code, Code::Ok | Code::Cancelled) {
            span.set("error.type", name);
            span.fail(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::ME;
    use std::collections::BTreeSet;
    use tars_proto::table::{outline, outlined};

    fn timeout_of(path: &str, asked: Option<&str>) -> Option<String> {
        let mut request = Request::post(path);
        if let Some(asked) = asked {
            request = request.header(timeout::HEADER, asked);
        }
        let mut request = request.body(()).unwrap();
        let outgoing = Outgoing {
            credentials: Credentials::Own,
        };
        outgoing.begin(&mut request).unwrap();
        let value = request.headers().get(timeout::HEADER)?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn a_call_without_a_timeout_gets_what_the_contract_allows() {
        let most = contract().unwrap().get(ME).unwrap().rule.deadline.unwrap();
        assert_eq!(timeout_of(ME, None), Some(timeout::format(most)));
        assert_eq!(timeout_of(ME, Some("1m")).as_deref(), Some("1m"));
        assert_eq!(timeout_of("/grpc.health.v1.Health/Watch", None), None);
        assert_eq!(timeout_of("/no.Such/Method", None), None);
    }

    #[test]
    fn channels_know_of_a_method_what_the_table_says() {
        let mut positions = BTreeSet::new();
        for method in contract().unwrap().iter() {
            let outline = outline(&method.path).unwrap();
            let known = (outline.idempotent, outline.server_streaming);
            let expected = (method.idempotent, method.server_streaming);
            assert_eq!(known, expected, "{}", method.path);
            assert_eq!(outline.path, method.path);
            let is_its_own = positions.insert(outline.index);
            assert!(is_its_own, "{} shares its position", method.path);
        }
        assert!(positions.into_iter().eq(0..outlined()), "there are gaps");
        assert_eq!(outline("/no.Such/Method"), None);
    }
}
