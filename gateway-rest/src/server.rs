//! The HTTP side: routing, limits, the first span of the trace, and the headers of the response.

use crate::{
    Backends, Documents,
    challenge::Sent,
    client::{Carrier, Client},
    documents::{self, Document, Flood},
    error::{self, Refusal, allow},
    openapi,
    stream::{self, Format},
    transcode::{self, Target},
    unsent::Unsent,
};
use axum::{
    Router,
    body::{Body, HttpBody},
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Version, header,
    request::Parts, uri::PathAndQuery,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::{net::IpAddr, sync::Arc};
use tars_interceptors::{contract, trace::CLIENT_ADDR};
use tars_proto::{
    route::{Binding, Found, Router as Routes, Template},
    table::Load,
};
use tars_runtime::{
    config::Gateway as Settings,
    listen::TooSlow,
    trace::{Entry, Parent, Span, TRACE_ID, TraceContext, Tracer, id_header},
};
use tonic::{Status, metadata::MetadataMap};

/// Maximum length of a path with its query, ten times that of our longest parameters together.
pub(crate) const MAX_PATH: usize = 8 << 10;

/// The gateway's request handler. Clones share everything.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    backends: Backends,
    routes: Routes<Endpoint>,
    documents: Documents,
    openapi: Bytes,
    unsent: Unsent,
    settings: Settings,
    tracer: Tracer,
    flood: Flood,
}

/// What a route leads to.
#[derive(Debug, Clone)]
enum Endpoint {
    Call(Target),
    Document(Document),
}

/// What a request is for.
enum Destination {
    Call(Target, Vec<Binding>),
    Document(Document),
    Methods(HeaderValue),
}

impl Gateway {
    /// Creates the handler for every route of the contract.
    ///
    /// # Errors
    ///
    /// When the contract has a mistake, or a path is routed twice.
    pub fn new(
        backends: Backends,
        settings: Settings,
        tracer: Tracer,
        documents: Documents,
        flood: Flood,
    ) -> Result<Self, String> {
        let table = contract().map_err(ToString::to_string)?;
        let mut routes = Routes::default();
        let mut add = |method: &str, template: Template, endpoint| {
            let added = routes.insert(method, template, endpoint);
            added.map_err(|taken| format!("{taken} is routed twice"))
        };
        for document in Document::ALL {
            let template = Template::parse(document.path()).map_err(|e| e.to_string())?;
            add("GET", template, Endpoint::Document(document))?;
        }
        for method in table.iter() {
            for route in &method.routes {
                let target = Endpoint::Call(Target { method, route });
                add(&route.method, route.template.clone(), target)?;
            }
        }
        Ok(Self(Arc::new(Inner {
            backends,
            routes,
            documents,
            openapi: openapi::document(table).to_string().into(),
            unsent: Unsent::new(&settings),
            settings,
            tracer,
            flood,
        })))
    }

    pub(crate) fn router(self) -> Router {
        Router::new().fallback(handle).with_state(self)
    }
}

async fn handle(
    State(gateway): State<Gateway>,
    Extension(Client(client)): Extension<Client>,
    Extension(carrier): Extension<Carrier>,
    request: Request<Body>,
) -> Response {
    let inner = &gateway.0;
    let (parts, body) = request.into_parts();
    let (sent, head) = (Sent::of(&parts.headers), parts.method == Method::HEAD);
    let destination = inner.find(&parts);
    let mut span = inner.start_span(&destination, &parts, client);
    let trace = span.context();
    let work = inner.answer(destination, client, parts, body);
    let answer = span.scope().run(work).await;
    let response = answer.unwrap_or_else(|refusal| refusal.answer(sent, carrier));
    finish_span(&mut span, response.status());
    let mut response = with_headers(response, trace);
    if head {
        response = without_body(response);
    }
    response.map(|body| stream::spanned(body, span))
}

fn finish_span(span: &mut Span, status: StatusCode) {
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.set("error.type", status.as_str().to_owned());
        span.fail(status.as_str());
    }
}

/// Adds the headers that every response carries.
fn with_headers(mut response: Response, trace: TraceContext) -> Response {
    let headers = response.headers_mut();
    headers.insert(TRACE_ID, id_header(trace.trace_id));
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Makes the response to `HEAD`: that of `GET` without its body.
fn without_body(response: Response) -> Response {
    let (mut parts, body) = response.into_parts();
    if let Some(length) = body.size_hint().exact() {
        parts.headers.insert(header::CONTENT_LENGTH, length.into());
    }
    Response::from_parts(parts, Body::empty())
}

impl Inner {
    fn find(&self, parts: &Parts) -> Result<Destination, Refusal> {
        check_size(parts, self.settings.max_header_bytes)?;
        check_host(parts)?;
        let options = parts.method == Method::OPTIONS;
        if options && parts.uri.path() == "*" {
            let all = ["GET", "POST", "PUT", "DELETE"].map(str::to_owned);
            return Ok(Destination::Methods(allow(&all)));
        }
        let method = match &parts.method {
            head if head == Method::HEAD => "GET",
            other => other.as_str(),
        };
        match self.routes.find(method, parts.uri.path()) {
            Found::Route(Endpoint::Call(target), bindings) => {
                Ok(Destination::Call(target.clone(), bindings))
            }
            Found::Route(Endpoint::Document(document), _) => Ok(Destination::Document(*document)),
            Found::OtherMethods(methods) if options => Ok(Destination::Methods(allow(&methods))),
            Found::OtherMethods(methods) => Err(Refusal::MethodNotAllowed(allow(&methods))),
            Found::BadPath => Err(error::bad_request("", "the path has a broken escape")),
            Found::Nothing => Err(Refusal::NotFound),
        }
    }

    /// Keeps an outside client's trace id, and decides here whether the trace is sampled.
    fn start_span(
        &self,
        destination: &Result<Destination, Refusal>,
        parts: &Parts,
        client: IpAddr,
    ) -> Span {
        let target = match destination {
            Ok(Destination::Call(target, _)) => Some(target),
            _ => None,
        };
        let entry = Entry {
            parent: Parent::read(&parts.headers),
            // A request that is not a call of the contract has a trace id, but is not worth recording.
            infrastructure: target.is_none(),
            ..Entry::default()
        };
        let name = target.map_or_else(
            || "HTTP".to_owned(),
            |t| format!("{} {}", t.route.method, t.route.template),
        );
        let mut span = self.tracer.enter(name, entry);
        if let (true, Some(target)) = (span.is_recording(), target) {
            span.set("http.request.method", parts.method.to_string());
            span.set("http.route", target.route.template.to_string());
            span.set("url.path", parts.uri.path().to_owned());
            span.set("client.address", client.to_string());
        }
        span
    }

    async fn answer(
        &self,
        destination: Result<Destination, Refusal>,
        client: IpAddr,
        parts: Parts,
        body: Body,
    ) -> Result<Response, Refusal> {
        if !matches!(destination, Ok(Destination::Document(_))) {
            // Before the body is read: what is wrong with it, or with the rest of the request, no service counts.
            self.flood.admit(client)?;
        }
        match destination? {
            Destination::Call(target, bindings) => {
                self.transcode(&target, &bindings, client, parts, body)
                    .await
            }
            Destination::Document(document) => {
                let shown = self.documents.show(document, Client(client), &self.openapi);
                Ok(shown.await?)
            }
            Destination::Methods(allowed) => {
                Ok((StatusCode::NO_CONTENT, [(header::ALLOW, allowed)]).into_response())
            }
        }
    }

    async fn transcode(
        &self,
        target: &Target,
        bindings: &[Binding],
        client: IpAddr,
        parts: Parts,
        body: Body,
    ) -> Result<Response, Refusal> {
        let method = target.method;
        // What withdraws a credential is answered in any case, and shortly.
        if method.rule.load != Load::Vital {
            self.unsent.ensure_room(client).map_err(Status::from)?;
        }
        let body = self.read(body).await?;
        transcode::check_content_type(&parts.headers, &body)?;
        let last = match single(&parts.headers, "last-event-id")? {
            Some(id) if method.server_streaming => Some(id),
            _ => None,
        };
        let query = parts.uri.query().unwrap_or_default();
        let message = transcode::request_bytes(target, bindings, query, &body, last)?;
        let mut call = tonic::Request::new(message);
        *call.metadata_mut() = metadata(&parts.headers, client)?;
        let workload = method.workload();
        let workload = workload.ok_or(Refusal::Broken("a method with a route has no service"))?;
        let path = PathAndQuery::try_from(method.path.as_str())
            .map_err(|_| Refusal::Broken("a method's name is not a path"))?;
        if method.server_streaming {
            let items = self.backends.stream(workload, path, call).await?;
            let format = Format::asked_by(&parts.headers);
            let limits = items.metadata().clone().into_headers();
            let mut response = stream::respond(method, items.into_inner(), format);
            error::copy_limits(&limits, response.headers_mut());
            return Ok(response);
        }
        let answer = self.backends.unary(workload, path, call).await?;
        let message = transcode::response(method, answer.get_ref())?;
        let json = transcode::to_json(&message)?;
        let body = match method.read_only {
            true => self
                .unsent
                .try_hold(client, json.into())
                .map_err(Status::from)?,
            false => self.unsent.hold(client, json.into()),
        };
        let mut response = documents::json(StatusCode::OK, Body::new(body));
        let limits = answer.metadata().clone().into_headers();
        error::copy_limits(&limits, response.headers_mut());
        Ok(response)
    }

    async fn read(&self, body: Body) -> Result<Bytes, Refusal> {
        let limited = Limited::new(body, self.settings.max_body_bytes);
        match limited.collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(e) if e.is::<LengthLimitError>() => Err(Refusal::BodyTooLarge),
            Err(e) if TooSlow::caused(&*e) => Err(Refusal::TooSlow),
            Err(_) => Err(error::bad_request("", "the body is incomplete")),
        }
    }
}

/// The listener accepts slightly more than this, so that the refusal has a reason.
fn check_size(parts: &Parts, max_headers: usize) -> Result<(), Refusal> {
    let path = parts.uri.path_and_query().map_or(0, |p| p.as_str().len());
    // Each field is written with ": " and a line ending.
    let field = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    if path > MAX_PATH {
        Err(Refusal::PathTooLong)
    } else if parts.headers.iter().map(field).sum::<usize>() > max_headers {
        Err(Refusal::HeadersTooLarge)
    } else {
        Ok(())
    }
}

/// RFC 9112, section 3.2: an HTTP/1.1 request names exactly one host.
fn check_host(parts: &Parts) -> Result<(), Refusal> {
    let named = single(&parts.headers, "host")?.is_some();
    if named || parts.version < Version::HTTP_11 {
        Ok(())
    } else {
        Err(error::bad_request("host", "is missing"))
    }
}

/// Returns a header that may be given once: given twice, it could be read in two ways.
fn single<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Refusal> {
    let mut values = headers.get_all(name).iter();
    let first = values.next();
    if values.next().is_some() {
        return Err(error::bad_request(name, "is given twice"));
    }
    let text = first.map(|v| {
        v.to_str()
            .map_err(|_| error::bad_request(name, "must be ASCII"))
    });
    text.transpose()
}

/// Returns what is passed on: the caller's credential and the client's address, and nothing else.
fn metadata(headers: &HeaderMap, client: IpAddr) -> Result<MetadataMap, Refusal> {
    let mut out = HeaderMap::new();
    for name in [header::AUTHORIZATION, HeaderName::from_static("x-api-key")] {
        for value in headers.get_all(&name) {
            out.append(name.clone(), value.clone());
        }
    }
    let address = HeaderValue::try_from(client.to_string());
    let address = address.map_err(|_| Refusal::Broken("an address is not a header value"))?;
    out.insert(HeaderName::from_static(CLIENT_ADDR), address);
    if let Some(timeout) = single(headers, "x-request-timeout")? {
        let digits = timeout.bytes().all(|b| b.is_ascii_digit());
        let seconds = timeout.parse::<u32>().ok().filter(|_| digits);
        let seconds =
            seconds.ok_or_else(|| error::bad_request("x-request-timeout", "must be seconds"))?;
        // `grpc-timeout` has eight digits at most.
        let value = format!("{}S", seconds.min(99_999_999));
        let value = HeaderValue::try_from(value);
        let value = value.map_err(|_| Refusal::Broken("a timeout is not a header value"))?;
        out.insert("grpc-timeout", value);
    }
    Ok(MetadataMap::from_headers(out))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(version: Version, hosts: &[&str]) -> Parts {
        let mut request = Request::builder().version(version).uri("/health");
        for host in hosts {
            request = request.header("host", *host);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_request_names_one_host() {
        assert!(check_host(&parts(Version::HTTP_11, &["a"])).is_ok());
        assert!(check_host(&parts(Version::HTTP_10, &[])).is_ok());
        for (version, hosts) in [
            (Version::HTTP_11, &[][..]),
            (Version::HTTP_11, &["a", "b"]),
            (Version::HTTP_11, &["a", "a"]),
            (Version::HTTP_10, &["a", "b"]),
        ] {
            assert!(check_host(&parts(version, hosts)).is_err(), "{hosts:?}");
        }
    }
}
