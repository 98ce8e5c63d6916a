//! The HTTP side: routing, limits, the trace's first span, and the answer's headers.

use crate::{
    Backends, Documents,
    error::{self, Refusal},
    listen::Client,
    stream::{self, Format},
    transcode::{self, Target},
};
use axum::{
    Json, Router,
    extract::{Extension, State},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, StatusCode, header, uri::PathAndQuery};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use std::{net::IpAddr, sync::Arc};
use tars_interceptors::{contract, trace::CLIENT_ADDR};
use tars_proto::{
    route::{Binding, Found, Router as Routes},
    table::MethodTable,
};
use tars_runtime::{
    config::Gateway as Settings,
    listen::TooSlow,
    trace::{Entry, Parent, Span, Tracer},
};
use tonic::metadata::MetadataMap;

#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    backends: Backends,
    routes: Routes<Target>,
    table: &'static MethodTable,
    settings: Settings,
    tracer: Tracer,
    documents: Documents,
}

impl Gateway {
    /// The contract has been checked at start, so that every route can be inserted.
    pub fn new(
        backends: Backends,
        settings: Settings,
        tracer: Tracer,
        documents: Documents,
    ) -> Result<Self, String> {
        let table = contract().map_err(ToString::to_string)?;
        let mut routes = Routes::default();
        for method in table.iter() {
            for route in &method.routes {
                routes
                    .insert(
                        &route.method,
                        route.template.clone(),
                        Target { method, route },
                    )
                    .map_err(|taken| format!("{taken} is routed twice"))?;
            }
        }
        Ok(Self(Arc::new(Inner {
            backends,
            routes,
            table,
            settings,
            tracer,
            documents,
        })))
    }

    pub(crate) fn router(self) -> Router {
        self.0
            .documents
            .clone()
            .router(self.0.table)
            .fallback(handle)
            .with_state(self)
    }
}

async fn handle(
    State(gateway): State<Gateway>,
    Extension(Client(client)): Extension<Client>,
    request: Request<axum::body::Body>,
) -> Response {
    let path = request.uri().path().to_owned();
    let inner = &gateway.0;
    let (target, bindings) = match inner.routes.find(request.method().as_str(), &path) {
        Found::Route(target, bindings) => (target.clone(), bindings),
        Found::OtherMethods(allowed) => {
            return secured(Refusal::MethodNotAllowed(allowed).into_response());
        }
        Found::BadPath => {
            return secured(error::bad_request("", "the path has a broken escape").into_response());
        }
        Found::Nothing => return secured(Refusal::NotFound.into_response()),
    };
    let mut span = inner.start_span(&target, request.headers(), &path, client);
    let trace = span.context();
    let work = inner.transcode(&target, &bindings, client, request);
    let mut response = match span.scope().run(work).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    };
    finish_span(&mut span, response.status());
    if let Ok(id) = HeaderValue::try_from(trace.trace_id_hex()) {
        response.headers_mut().insert("x-trace-id", id);
    }
    secured(response.map(|body| stream::spanned(body, span)))
}

fn finish_span(span: &mut Span, status: StatusCode) {
    span.set("http.response.status_code", i64::from(status.as_u16()));
    if status.is_server_error() {
        span.set("error.type", status.as_str().to_owned());
        span.fail(status.as_str());
    }
}

fn secured(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    response
}

impl Inner {
    /// An outside client's trace id is kept; whether the trace is sampled is decided here.
    fn start_span(&self, target: &Target, headers: &HeaderMap, path: &str, client: IpAddr) -> Span {
        let name = format!("{} {}", target.route.method, target.route.template);
        let entry = Entry {
            parent: Parent::read(headers),
            ..Entry::default()
        };
        let mut span = self.tracer.enter(name, entry);
        if span.is_recording() {
            span.set("http.request.method", target.route.method.clone());
            span.set("http.route", target.route.template.to_string());
            span.set("url.path", path.to_owned());
            span.set("client.address", client.to_string());
        }
        span
    }

    async fn transcode(
        &self,
        target: &Target,
        bindings: &[Binding],
        client: IpAddr,
        request: Request<axum::body::Body>,
    ) -> Result<Response, Refusal> {
        let (parts, body) = request.into_parts();
        let body = self.read(body).await?;
        transcode::check_content_type(&parts.headers, &body)?;
        let last = if target.method.server_streaming {
            text(&parts.headers, "last-event-id")
        } else {
            None
        };
        let query = parts.uri.query().unwrap_or_default();
        let message = transcode::request_bytes(target, bindings, query, &body, last)?;
        let mut call = tonic::Request::new(message);
        *call.metadata_mut() = metadata(&parts.headers, client)?;
        let workload = target.method.workload().ok_or(Refusal::NotFound)?;
        let path =
            PathAndQuery::try_from(target.method.path.as_str()).map_err(|_| Refusal::NotFound)?;
        if target.method.server_streaming {
            let response = self.backends.stream(workload, path, call).await?;
            let items = response.into_inner();
            return Ok(stream::respond(
                target.method,
                items,
                Format::asked_by(&parts.headers),
            ));
        }
        let response = self.backends.unary(workload, path, call).await?;
        let limits = response.metadata().clone().into_headers();
        let value = transcode::response_json(target.method, response.get_ref())?;
        let mut response = Json(value).into_response();
        error::copy_limits(limits, response.headers_mut());
        Ok(response)
    }

    async fn read(&self, body: axum::body::Body) -> Result<Bytes, Refusal> {
        let limited = Limited::new(body, self.settings.max_body_bytes);
        match limited.collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(e) if e.is::<LengthLimitError>() => Err(Refusal::TooLarge),
            Err(e) if TooSlow::caused(&*e) => Err(Refusal::TooSlow),
            Err(_) => Err(error::bad_request("", "the body did not arrive whole")),
        }
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// What is passed on: the caller's credential, and where the caller is. Nothing else.
fn metadata(headers: &HeaderMap, client: IpAddr) -> Result<MetadataMap, Refusal> {
    let mut out = HeaderMap::new();
    for name in [header::AUTHORIZATION, HeaderName::from_static("x-api-key")] {
        for value in headers.get_all(&name) {
            out.append(name.clone(), value.clone());
        }
    }
    let address = HeaderValue::try_from(client.to_string()).map_err(|_| Refusal::NotFound)?;
    out.insert(HeaderName::from_static(CLIENT_ADDR), address);
    if let Some(timeout) = text(headers, "x-request-timeout") {
        let seconds = timeout
            .parse::<u32>()
            .map_err(|_| error::bad_request("X-Request-Timeout", "must be seconds"))?;
        out.insert(
            "grpc-timeout",
            HeaderValue::try_from(format!("{seconds}S")).map_err(|_| Refusal::NotFound)?,
        );
    }
    Ok(MetadataMap::from_headers(out))
}
