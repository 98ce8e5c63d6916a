//! Errors as HTTP: one table of codes, and a `google.rpc.Status` as JSON in the body.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use prost_reflect::{DynamicMessage, SerializeOptions};
use serde_json::{Value, json};
use tars_proto::{fault, table};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What the transcoder answers in a service's place.
#[derive(Debug)]
pub(crate) enum Refusal {
    Status(Status),
    NotFound,
    MethodNotAllowed(Vec<String>),
    UnsupportedMediaType,
    TooLarge,
    TooSlow,
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        match self {
            Self::Status(status) => from_status(&status),
            Self::NotFound => plain(
                StatusCode::NOT_FOUND,
                Code::NotFound,
                "there is no such path",
            ),
            Self::UnsupportedMediaType => plain(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                Code::InvalidArgument,
                "the body must be application/json",
            ),
            Self::TooLarge => plain(
                StatusCode::PAYLOAD_TOO_LARGE,
                Code::InvalidArgument,
                "the body is too large",
            ),
            Self::TooSlow => {
                let mut response = with_reason(
                    StatusCode::REQUEST_TIMEOUT,
                    Code::DeadlineExceeded,
                    "REQUEST_TOO_SLOW",
                    "the body did not arrive in time",
                );
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
                response
            }
            Self::MethodNotAllowed(allowed) => {
                let mut response = plain(
                    StatusCode::METHOD_NOT_ALLOWED,
                    Code::Unimplemented,
                    "the path has no such method",
                );
                if let Ok(value) = HeaderValue::try_from(allowed.join(", ")) {
                    response.headers_mut().insert(header::ALLOW, value);
                }
                response
            }
        }
    }
}

fn plain(http: StatusCode, code: Code, message: &str) -> Response {
    respond(
        http,
        &json!({ "code": code as i32, "message": message, "details": [] }),
    )
}

fn with_reason(http: StatusCode, code: Code, reason: &str, message: &str) -> Response {
    respond(http, &to_json(&fault::status(code, reason, message)))
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

/// The table of `google.rpc.Code`.
pub(crate) fn http_status(code: Code) -> StatusCode {
    match code {
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

pub(crate) fn from_status(status: &Status) -> Response {
    let mut response = respond(http_status(status.code()), &to_json(status));
    let headers = response.headers_mut();
    if status.code() == Code::Unauthenticated {
        let challenge = HeaderValue::from_static("Bearer error=\"invalid_token\"");
        headers.insert(header::WWW_AUTHENTICATE, challenge);
    }
    if let Some(delay) = status.get_details_retry_info().and_then(|r| r.retry_delay) {
        let seconds = delay.as_secs_f64().ceil().max(1.0) as u64;
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    copy_limits(status.metadata().clone().into_headers(), headers);
    response
}

/// The services' limit headers, which they send to the gateway only.
pub(crate) fn copy_limits(from: HeaderMap, to: &mut HeaderMap) {
    for name in [
        "x-ratelimit-limit",
        "x-ratelimit-remaining",
        "x-ratelimit-reset",
    ] {
        if let Some(value) = from.get(name) {
            to.insert(HeaderName::from_static(name), value.clone());
        }
    }
}

/// The whole status with its details, each with its type.
pub(crate) fn to_json(status: &Status) -> Value {
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
