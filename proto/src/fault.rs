//! Errors as every client sees them: a `google.rpc.Status` with an `ErrorInfo` whose domain is
//! `tars`, so that programs can branch on the reason and people can read the message.

use std::{collections::HashMap, time::Duration};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

pub const DOMAIN: &str = "tars";

/// A status with a reason.
pub fn status(code: Code, reason: &str, message: &str) -> Status {
    Status::with_error_details(code, message, info(reason))
}

/// A refusal that names the fields at fault.
pub fn invalid(violations: Vec<FieldViolation>) -> Status {
    let message = violations
        .iter()
        .map(|v| format!("{}: {}", v.field, v.description))
        .collect::<Vec<_>>()
        .join("; ");
    let mut details = info("INVALID_FIELD");
    details.set_bad_request(violations);
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// A refusal that names one field at fault.
pub fn invalid_field(field: &str, description: &str) -> Status {
    invalid(vec![FieldViolation::new(field, description)])
}

/// A missing resource, named by kind and id.
pub fn not_found(kind: &str, name: &str) -> Status {
    let mut details = info("NOT_FOUND");
    details.set_resource_info(kind, name, "", "");
    Status::with_error_details(
        Code::NotFound,
        format!("there is no {kind} {name:?}"),
        details,
    )
}

/// A state that does not allow the call.
pub fn precondition(reason: &str, subject: &str, message: &str) -> Status {
    let mut details = info(reason);
    details.add_precondition_failure_violation(reason, subject, message);
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// A spent rate limit, and when to come back.
pub fn exhausted(reason: &str, subject: &str, retry: Duration) -> Status {
    spent(reason, subject, "rate limit exceeded", retry)
}

/// A spent quota of any kind, what it was, and when to come back.
pub fn spent(reason: &str, subject: &str, what: &str, retry: Duration) -> Status {
    let mut details = info(reason);
    details.set_retry_info(Some(retry));
    details.add_quota_failure_violation(subject, what);
    let seconds = retry.as_secs_f64().ceil().max(1.0);
    let message = format!("{what}; retry after {seconds:.0} seconds");
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// A passing failure, and when to come back.
pub fn unavailable(reason: &str, message: &str, retry: Duration) -> Status {
    let mut details = info(reason);
    details.set_retry_info(Some(retry));
    Status::with_error_details(Code::Unavailable, message, details)
}

/// The reason in a status, when it is one of ours.
pub fn reason(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    (info.domain == DOMAIN).then_some(info.reason)
}

/// The canonical upper-case name of a code.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn info(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}
