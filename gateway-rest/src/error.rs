//! Errors as HTTP: one table of codes, and a `google.rpc.Status` as JSON in the body.

use crate::{
    challenge::{Sent, challenge},
    client::Carrier,
};
use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::{Value, json};
use tars_proto::{fault, reason, table};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Why the gateway answers in place of a service.
#[derive(Debug)]
pub(crate) enum Refusal {
    Status(Status),
    NotFound,
    /// With the methods that the path supports.
    MethodNotAllowed(HeaderValue),
    UnsupportedMediaType,
    UnsupportedEncoding,
    BodyTooLarge,
    TooSlow,
    PathTooLong,
    HeadersTooLarge,
    /// A violated invariant, which is described for the log.
    Broken(&'static str),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl Refusal {
    /// Returns the response for a client that sent this kind of credential.
    pub(crate) fn answer(self, sent: Sent, carrier: Carrier) -> Response {
        if let Self::Broken(what) = &self {
            tracing::error!(what, "an invariant of the gateway is violated");
        }
        let (http, status) = self.status();
        let mut response = respond(http, &to_json(&status));
        let headers = response.headers_mut();
        if self.ends_connection(carrier) {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        self.add_headers(headers);
        challenge(sent, &status, headers);
        if let Some(delay) = status.get_details_retry_info().and_then(|r| r.retry_delay) {
            let seconds = delay.as_secs_f64().ceil().max(1.0) as u64;
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        copy_limits(&status.metadata().clone().into_headers(), headers);
        response
    }

    /// The HTTP status and the gRPC status of the refusal.
    pub(crate) fn status(&self) -> (StatusCode, Status) {
        use StatusCode as Http;
        // The one table of the gateway's own refusals, with a row on each line.
        #[rustfmt::skip]
        let (http, code, reason, message) = match self {
            Self::Status(status) => {
                let status = fault::explained(status.clone());
                return (http_status(&status), status);
            }
            Self::NotFound => (Http::NOT_FOUND, Code::NotFound, reason::NO_SUCH_PATH, "there is no such path"),
            Self::MethodNotAllowed(_) => (Http::METHOD_NOT_ALLOWED, Code::Unimplemented, reason::METHOD_NOT_ALLOWED, "the path has no such method"),
            Self::UnsupportedMediaType => (Http::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, reason::UNSUPPORTED_MEDIA_TYPE, "the content type must be given once, as application/json in UTF-8"),
            Self::UnsupportedEncoding => (Http::UNSUPPORTED_MEDIA_TYPE, Code::InvalidArgument, reason::UNSUPPORTED_ENCODING, "the body must not be compressed"),
            Self::BodyTooLarge => (Http::PAYLOAD_TOO_LARGE, Code::ResourceExhausted, reason::BODY_TOO_LARGE, "the body is too large"),
            Self::TooSlow => (Http::REQUEST_TIMEOUT, Code::DeadlineExceeded, reason::REQUEST_TOO_SLOW, "the body did not arrive in time"),
            Self::PathTooLong => (Http::URI_TOO_LONG, Code::InvalidArgument, reason::PATH_TOO_LONG, "the path and its query are too long"),
            Self::HeadersTooLarge => (Http::REQUEST_HEADER_FIELDS_TOO_LARGE, Code::ResourceExhausted, reason::HEADERS_TOO_LARGE, "the headers are too large"),
            Self::Broken(_) => (Http::INTERNAL_SERVER_ERROR, Code::Internal, reason::INTERNAL, "the gateway failed"),
        };
        (http, fault::status(code, reason, message))
    }

    /// Whether the connection is closed after the response.
    fn ends_connection(&self, carrier: Carrier) -> bool {
        match self {
            // The rest of the body would be parsed as the next request.
            Self::BodyTooLarge | Self::TooSlow => true,
            // A client that floods may have pipelined a thousand more requests, so each refusal costs it
            // a connection. A proxy would lose the requests of its other clients.
            Self::Status(status) => {
                carrier == Carrier::Client
                    && fault::reason(status).as_deref() == Some(reason::FLOOD)
            }
            _ => false,
        }
    }

    fn add_headers(self, headers: &mut HeaderMap) {
        let (name, value) = match self {
            Self::MethodNotAllowed(methods) => (header::ALLOW, methods),
            Self::UnsupportedMediaType => {
                (header::ACCEPT, HeaderValue::from_static("application/json"))
            }
            Self::UnsupportedEncoding => (
                header::ACCEPT_ENCODING,
                HeaderValue::from_static("identity"),
            ),
            _ => return,
        };
        headers.insert(name, value);
    }
}

/// Formats `Allow`: `HEAD` wherever `GET` is supported, and `OPTIONS` everywhere.
pub(crate) fn allow(methods: &[String]) -> HeaderValue {
    let mut all: Vec<&str> = methods.iter().map(String::as_str).collect();
    if let Some(get) = all.iter().position(|m| *m == "GET") {
        all.insert(get + 1, "HEAD");
    }
    all.push("OPTIONS");
    HeaderValue::try_from(all.join(", ")).expect("methods are tokens")
}

fn respond(http: StatusCode, body: &Value) -> Response {
    let kind = HeaderValue::from_static("application/json");
    (
        http,
        [(header::CONTENT_TYPE, kind)],
        Body::from(body.to_string()),
    )
        .into_response()
}

/// Maps codes as `google.rpc.Code` documents them, with one exception: a message over its limit is 413, since
/// waiting does not make it smaller.
fn http_status(status: &Status) -> StatusCode {
    match status.code() {
        Code::ResourceExhausted
            if fault::reason(status).as_deref() == Some(reason::MESSAGE_TOO_LARGE) =>
        {
            StatusCode::PAYLOAD_TOO_LARGE
        }
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// Copies the rate limit headers, which services send to the gateway only.
pub(crate) fn copy_limits(from: &HeaderMap, to: &mut HeaderMap) {
    for name in [
        "ratelimit-policy",
        "ratelimit",
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ] {
        if let Some(value) = from.get(name) {
            to.insert(HeaderName::from_static(name), value.clone());
        }
    }
}

/// Formats the status with all of its details, each with its type.
pub(crate) fn to_json(status: &Status) -> Value {
    let status = &fault::explained(status.clone());
    details(status).unwrap_or_else(
        || json!({ "code": status.code() as i32, "message": status.message(), "details": [] }),
    )
}

fn details(status: &Status) -> Option<Value> {
    if status.details().is_empty() {
        return None;
    }
    let descriptor = table::pool().get_message_by_name("google.rpc.Status")?;
    let message = DynamicMessage::decode(descriptor, status.details()).ok()?;
    let options = SerializeOptions::new().use_proto_field_name(true);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .ok()
}

pub(crate) fn bad_request(field: &str, problem: &str) -> Refusal {
    Refusal::Status(fault::invalid_field(field, problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_a_reason() {
        for refusal in [
            Refusal::Status(Status::unknown("x")),
            Refusal::NotFound,
            Refusal::MethodNotAllowed(allow(&[])),
            Refusal::UnsupportedMediaType,
            Refusal::UnsupportedEncoding,
            Refusal::BodyTooLarge,
            Refusal::TooSlow,
            Refusal::PathTooLong,
            Refusal::HeadersTooLarge,
            Refusal::Broken("x"),
        ] {
            let (http, status) = refusal.status();
            assert!(http.is_client_error() || http.is_server_error());
            let body = to_json(&status);
            let reason = body["details"][0]["reason"].as_str();
            assert!(reason.is_some_and(|r| !r.is_empty()), "{body}");
        }
    }

    #[test]
    fn a_flood_closes_the_connection_of_a_client_and_not_of_a_proxy() {
        let closes = |refusal: Refusal, carrier| {
            let headers = refusal
                .answer(Sent::Nothing, carrier)
                .into_parts()
                .0
                .headers;
            headers
                .get(header::CONNECTION)
                .is_some_and(|v| v == "close")
        };
        let exhausted =
            |reason| Refusal::Status(fault::status(Code::ResourceExhausted, reason, "x"));
        assert!(closes(exhausted(reason::FLOOD), Carrier::Client));
        assert!(!closes(exhausted(reason::FLOOD), Carrier::Proxy));
        for carrier in [Carrier::Client, Carrier::Proxy] {
            assert!(closes(Refusal::BodyTooLarge, carrier));
            assert!(closes(Refusal::TooSlow, carrier));
            assert!(!closes(exhausted("RATE_LIMITED"), carrier));
            assert!(!closes(Refusal::NotFound, carrier));
        }
    }

    #[test]
    fn a_violated_invariant_is_an_internal_error() {
        let (http, status) = Refusal::Broken("x").status();
        assert_eq!(http, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(fault::reason(&status).as_deref(), Some("INTERNAL"));
    }

    #[test]
    fn a_message_over_its_limit_is_not_a_rate_limit() {
        let of = |reason| http_status(&fault::status(Code::ResourceExhausted, reason, "x"));
        assert_eq!(of(reason::MESSAGE_TOO_LARGE), StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(of("RATE_LIMITED"), StatusCode::TOO_MANY_REQUESTS);
    }

    #[test]
    fn head_is_allowed_where_get_is() {
        let methods =
            |all: &[&str]| allow(&all.iter().map(|m| (*m).to_owned()).collect::<Vec<_>>());
        assert_eq!(methods(&["GET", "PUT"]), "GET, HEAD, PUT, OPTIONS");
        assert_eq!(methods(&["POST"]), "POST, OPTIONS");
    }
}
