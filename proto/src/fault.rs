//! Errors as every client sees them: a `google.rpc.Status` with an `ErrorInfo` whose domain is `tars`, so that
//! programs can branch on the reason and people can read the message.
//!
//! A status travels in trailers, whose size clients limit: grpcio accepts 8 KiB of metadata in total, and
//! reports `RESOURCE_EXHAUSTED` in place of what it refuses. Details that name a caller's input can be as large
//! as that input, so every status with details is built by `bounded`, and by nothing else.

use crate::{reason, unavailable::Unavailable};
use http::HeaderMap;
use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

/// The domain of every `ErrorInfo`.
pub const DOMAIN: &str = "tars";

/// Maximum size of an encoded status with all of its details, in bytes.
pub const MAX_DETAILS: usize = 4096;
/// Maximum size of a message as `grpc-message`, which percent-encodes it, in bytes.
pub const MAX_MESSAGE: usize = 1280;
/// Maximum size of all field violations of a status. With the longest message and the other details of a
/// status they stay below [`MAX_DETAILS`].
const MAX_VIOLATIONS: usize = 2048;
/// Maximum length of a name, a field or a description; longer ones are cut.
const MAX_TEXT: usize = 240;
/// The size of a field violation besides its two texts: tags and lengths.
const VIOLATION_OVERHEAD: usize = 12;

/// Creates UNAVAILABLE that must not be repeated without a look at what has come of it.
pub fn in_doubt(why: Unavailable, message: &str) -> Status {
    bounded(Code::Unavailable, message, info(why.reason()))
}

/// Creates a status with a reason; UNAVAILABLE is created by [`unavailable`], which knows its reasons.
pub fn status(code: Code, reason: &str, message: &str) -> Status {
    bounded(code, message, info(reason))
}

/// Creates a status with a reason, and metadata that belongs to it.
pub fn status_with(code: Code, reason: &str, message: &str, names: &[(&str, &str)]) -> Status {
    let names = names.iter().map(|(k, v)| (cut(k), cut(v)));
    let details =
        ErrorDetails::with_error_info(cut(reason), DOMAIN, names.collect::<HashMap<_, _>>());
    bounded(code, message, details)
}

/// Creates INVALID_ARGUMENT that names the violated fields.
pub fn invalid(violations: Vec<FieldViolation>) -> Status {
    invalid_and_more(violations, 0)
}

/// Creates the same when `more` violations were found than are listed.
pub(crate) fn invalid_and_more(violations: Vec<FieldViolation>, more: usize) -> Status {
    let (mut listed, left) = fit(&violations);
    if left + more > 0 {
        listed.push(FieldViolation::new("", format!("and {} more", left + more)));
    }
    let message = listed.iter().map(sentence).collect::<Vec<_>>().join("; ");
    let mut details = info(reason::INVALID_FIELD);
    details.set_bad_request(listed);
    bounded(Code::InvalidArgument, &message, details)
}

/// Creates INVALID_ARGUMENT that names one violated field.
pub fn invalid_field(field: &str, description: &str) -> Status {
    invalid(vec![FieldViolation::new(field, description)])
}

/// Creates NOT_FOUND for a resource, named by kind and id.
pub fn not_found(kind: &str, name: &str) -> Status {
    let name = cut(name);
    absent(kind, &name, &format!("there is no {kind} {name:?}"))
}

/// Creates NOT_FOUND for a resource, named by kind and id, with a message that says what there is instead.
pub fn absent(kind: &str, name: &str, message: &str) -> Status {
    let mut details = info(reason::NOT_FOUND);
    details.set_resource_info(kind, cut(name), "", "");
    bounded(Code::NotFound, message, details)
}

/// Creates FAILED_PRECONDITION for a state that does not allow the call.
pub fn precondition(reason: &str, subject: &str, message: &str) -> Status {
    let mut details = info(reason);
    details.add_precondition_failure_violation(cut(reason), cut(subject), cut(message));
    bounded(Code::FailedPrecondition, message, details)
}

/// Creates FAILED_PRECONDITION for a state of another resource, which is named.
pub fn held(reason: &str, kind: &str, name: &str, message: &str) -> Status {
    let mut details = info(reason);
    details.add_precondition_failure_violation(cut(reason), cut(name), cut(message));
    details.set_resource_info(kind, cut(name), "", cut(message));
    bounded(Code::FailedPrecondition, message, details)
}

/// Creates ALREADY_EXISTS for a resource, named by kind and id.
pub fn exists(kind: &str, name: &str, message: &str) -> Status {
    let mut details = info(reason::ALREADY_EXISTS);
    details.set_resource_info(kind, cut(name), "", cut(message));
    bounded(Code::AlreadyExists, message, details)
}

/// Creates RESOURCE_EXHAUSTED for an exceeded rate limit, with the time to wait.
pub fn exhausted(reason: &str, subject: &str, retry: Duration) -> Status {
    spent(reason, subject, "rate limit exceeded", retry)
}

/// Creates RESOURCE_EXHAUSTED for one of the rate limits, named, with what it allows and the time to wait.
pub fn rate_limited(limit: &str, allowance: &str, retry: Duration) -> Status {
    let mut details = info(reason::RATE_LIMITED);
    details.set_retry_info(Some(retry));
    details.add_quota_failure_violation(cut(limit), cut(allowance));
    let seconds = retry.as_secs_f64().ceil().max(1.0);
    let message = format!("rate limit exceeded: {limit}, {allowance}; retry after {seconds:.0} s");
    bounded(Code::ResourceExhausted, &message, details)
}

/// Creates RESOURCE_EXHAUSTED for a quota of any kind, with the time to wait.
pub fn spent(reason: &str, subject: &str, what: &str, retry: Duration) -> Status {
    let mut details = info(reason);
    details.set_retry_info(Some(retry));
    details.add_quota_failure_violation(cut(subject), cut(what));
    let seconds = retry.as_secs_f64().ceil().max(1.0);
    let message = format!("{what}; retry after {seconds:.0} s");
    bounded(Code::ResourceExhausted, &message, details)
}

/// Creates RESOURCE_EXHAUSTED for a quota of a month: of which dimension, what else programs read, and the time to
/// wait.
pub fn quota_exceeded(
    dimension: &str,
    message: &str,
    facts: &[(&str, String)],
    retry: Duration,
) -> Status {
    let facts = facts.iter().map(|(name, fact)| (cut(name), cut(fact)));
    let facts = facts.chain([("dimension".to_owned(), cut(dimension))]);
    let facts = facts.collect::<HashMap<_, _>>();
    let mut details = ErrorDetails::with_error_info(reason::QUOTA_EXCEEDED, DOMAIN, facts);
    details.set_retry_info(Some(retry));
    details.add_quota_failure_violation(cut(dimension), cut(message));
    bounded(Code::ResourceExhausted, message, details)
}

/// Creates RESOURCE_EXHAUSTED for a full share of the places: whose share, and places of what.
pub fn share_full(subject: &str, of: &str, retry: Duration) -> Status {
    let what = format!("the {subject} has as many {of} open as it may");
    spent(reason::SHARE_FULL, subject, &what, retry)
}

/// The header by which a server says when a call may be sent again, in milliseconds, or never (gRFC A6).
pub const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Creates UNAVAILABLE for a call for which every place is taken.
pub fn overloaded(message: &str, retry: Duration) -> Status {
    unavailable(Unavailable::Overloaded, message, retry)
}

/// Creates INTERNAL for a fault of the service, which is described only in its log.
pub fn internal() -> Status {
    status(
        Code::Internal,
        reason::INTERNAL,
        "the service failed; see its log",
    )
}

/// Creates PERMISSION_DENIED for a caller who lacks `permission`.
pub fn missing_permission(permission: &str) -> Status {
    status_with(
        Code::PermissionDenied,
        reason::PERMISSION_DENIED,
        &format!("this needs the permission {permission}"),
        &[("permission", permission)],
    )
}

/// Creates UNAVAILABLE for a transient failure, with the time to wait.
pub fn unavailable(why: Unavailable, message: &str, retry: Duration) -> Status {
    let mut details = info(why.reason());
    details.set_retry_info(Some(retry));
    bounded(Code::Unavailable, message, details)
}

/// Adds a reason to a status without details that was created elsewhere: the name of its code.
pub fn explained(status: Status) -> Status {
    if status.details().is_empty() {
        let details = info(code_name(status.code()));
        let mut explained = bounded(status.code(), status.message(), details);
        *explained.metadata_mut() = status.metadata().clone();
        return explained;
    }
    status
}

/// Returns the reason of a status, if it is one of ours.
pub fn reason(status: &Status) -> Option<String> {
    let info = status.get_details_error_info()?;
    (info.domain == DOMAIN).then_some(info.reason)
}

/// Whether a status reports a lack of capacity and asks to retry: an exceeded limit or share, a full queue, an
/// overloaded service. Nothing was done, and the same call may succeed later. A quota that is used up is no lack of
/// capacity: nobody waits for the next month.
pub fn is_busy(status: &Status) -> bool {
    let Some(reason) = reason(status) else {
        return false;
    };
    let is_spent = status.code() == Code::ResourceExhausted && reason != reason::QUOTA_EXCEEDED;
    reason == reason::OVERLOADED || (is_spent && status.get_details_retry_info().is_some())
}

/// Whether a call that ended with a status was not charged to its caller: what refused it comes before all that counts
/// calls, or gives back what was counted.
pub fn is_uncharged(status: &Status) -> bool {
    let uncharged = [
        reason::OVERLOADED,
        reason::AUDIT_FULL,
        reason::STALE_CREDENTIALS,
        reason::USAGE_UNKNOWN,
    ];
    reason(status).is_some_and(|reason| uncharged.contains(&reason.as_str()))
}

/// Returns how long a status asks to wait before the call is repeated.
pub fn retry_after(status: &Status) -> Option<Duration> {
    status.get_details_retry_info()?.retry_delay
}

/// Returns the code with which a call ended, if these headers or trailers have one.
pub fn code_in(headers: &HeaderMap) -> Option<Code> {
    let code = headers.get("grpc-status")?;
    Some(Code::from_bytes(code.as_bytes()))
}

/// Returns the canonical upper-case name of a code.
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
    ErrorDetails::with_error_info(cut(reason), DOMAIN, HashMap::new())
}

/// Builds a status with details. Its callers have cut what they list; should that still be too much, the
/// details are dropped except for the reason.
#[expect(clippy::disallowed_methods, reason = "this is where the bound is kept")]
fn bounded(code: Code, message: &str, details: ErrorDetails) -> Status {
    let message = cut_message(message);
    let status = Status::with_error_details(code, &message, details);
    if status.details().len() < MAX_DETAILS {
        return status;
    }
    let reason = reason(&status).unwrap_or_else(|| code_name(code).to_owned());
    Status::with_error_details(code, &message, info(&reason))
}

/// Returns each violation once, shortened, as many as fit, and how many did not.
fn fit(violations: &[FieldViolation]) -> (Vec<FieldViolation>, usize) {
    let mut seen = HashSet::new();
    let (mut listed, mut room, mut left) = (Vec::new(), MAX_VIOLATIONS, 0);
    for violation in violations {
        if !seen.insert((violation.field.as_str(), violation.description.as_str())) {
            continue;
        }
        let short = FieldViolation::new(cut(&violation.field), cut(&violation.description));
        let size = short.field.len() + short.description.len() + VIOLATION_OVERHEAD;
        match room.checked_sub(size) {
            Some(rest) if left == 0 => {
                room = rest;
                listed.push(short);
            }
            _ => left += 1,
        }
    }
    (listed, left)
}

fn sentence(violation: &FieldViolation) -> String {
    if violation.field.is_empty() {
        return violation.description.clone();
    }
    format!("{}: {}", violation.field, violation.description)
}

/// Cuts a text at a character boundary.
fn cut(text: &str) -> String {
    if text.len() <= MAX_TEXT {
        return text.to_owned();
    }
    format!("{}…", &text[..text.floor_char_boundary(MAX_TEXT)])
}

/// Cuts a message so that its percent-encoded form is no longer than [`MAX_MESSAGE`].
fn cut_message(message: &str) -> String {
    let encoded = |c: char| if is_plain(c) { 1 } else { 3 * c.len_utf8() };
    let (mut length, mut end) = (0, 0);
    for (at, c) in message.char_indices() {
        length += encoded(c);
        if length <= MAX_MESSAGE - encoded('…') {
            end = at + c.len_utf8();
        } else if length > MAX_MESSAGE {
            return format!("{}…", &message[..end]);
        }
    }
    message.to_owned()
}

/// Whether `grpc-message` carries the character unencoded; a subset of what the specification allows.
fn is_plain(c: char) -> bool {
    c.is_ascii_graphic() && !matches!(c, '"' | '#' | '%' | '<' | '>' | '`' | '?' | '{' | '}')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn violations(status: &Status) -> Vec<FieldViolation> {
        let details = status.get_details_bad_request().expect("a bad request");
        details.field_violations
    }

    fn assert_small(status: &Status) {
        assert!(
            status.details().len() < MAX_DETAILS,
            "{}",
            status.details().len()
        );
        let headers = status.clone().into_http::<()>().into_parts().0.headers;
        let size: usize = headers
            .iter()
            .map(|(n, v)| n.as_str().len() + v.len() + 32)
            .sum();
        assert!(size < 7 << 10, "{size}");
    }

    #[test]
    fn all_fields_at_fault_stay_under_four_kibibytes() {
        let many = |n: usize, name: &str, text: &str| {
            (0..n)
                .map(|i| FieldViolation::new(format!("{name}[{i}]"), text))
                .collect::<Vec<_>>()
        };
        for (n, name, text) in [
            (
                40,
                "roles",
                "must be a name: a-z, 0-9, '-', '_', '.', at most 64",
            ),
            (20, &*"ä".repeat(130), "must have at most 128 characters"),
            (1, &*"€".repeat(100_000), &*"%".repeat(100_000)),
            (100_000, "x", "y"),
        ] {
            let status = invalid(many(n, name, text));
            assert_small(&status);
            let listed = violations(&status);
            let shown = listed.iter().filter(|v| !v.field.is_empty()).count();
            assert!(shown > 0);
            if shown < n {
                let last = &listed.last().unwrap().description;
                assert_eq!(*last, format!("and {} more", n - shown));
            }
        }
    }

    #[test]
    fn a_repeated_violation_is_listed_once() {
        let twice = vec![FieldViolation::new("a", "is required"); 3];
        let status = invalid(twice);
        assert_eq!(violations(&status).len(), 1);
        assert_eq!(status.message(), "a: is required");
    }

    #[test]
    fn other_details_are_bounded_as_well() {
        let long = "\u{1F600}\"\n".repeat(10_000);
        for status in [
            not_found("agent", &long),
            precondition("R", &long, &long),
            precondition(&long, &long, &long),
            exhausted("R", &long, Duration::from_secs(1)),
            unavailable(Unavailable::Store, &long, Duration::from_secs(1)),
            status_with(Code::Aborted, "R", &long, &[("a", &long), ("b", &long)]),
            explained(Status::internal(long.clone())),
        ] {
            assert_small(&status);
            assert!(reason(&status).is_some());
        }
    }

    #[test]
    fn a_code_is_read_where_there_is_one_and_what_is_none_is_unknown() {
        let read = |status: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.extend(status.map(|code| {
                let name = http::HeaderName::from_static("grpc-status");
                (name, http::HeaderValue::from_static(code))
            }));
            code_in(&headers)
        };
        assert_eq!(read(None), None);
        assert_eq!(read(Some("0")), Some(Code::Ok));
        assert_eq!(read(Some("14")), Some(Code::Unavailable));
        for odd in ["", "17", "-1", "OK", "014"] {
            assert_eq!(read(Some(odd)), Some(Code::Unknown), "{odd:?}");
        }
    }

    #[test]
    fn what_is_unavailable_tells_why_and_when_to_come_back() {
        let soon = Duration::from_secs(1);
        for why in Unavailable::ALL {
            let status = unavailable(*why, "no", soon);
            assert_eq!(status.code(), Code::Unavailable);
            assert_eq!(reason(&status).as_deref(), Some(why.reason()));
            let retry = status.get_details_retry_info().unwrap();
            assert_eq!(retry.retry_delay, Some(soon));
        }
    }

    #[test]
    fn a_busy_status_asks_for_a_retry() {
        let soon = Duration::from_secs(1);
        for busy in [
            spent("LEARNERS_BUSY", "learners", "too many runs wait", soon),
            exhausted("RATE_LIMITED", "caller", soon),
            share_full("peer", "calls", soon),
            overloaded("too many calls are in flight", soon),
        ] {
            assert!(is_busy(&busy), "{busy:?}");
        }
        for other in [
            super::status(Code::ResourceExhausted, reason::MESSAGE_TOO_LARGE, "x"),
            unavailable(Unavailable::Store, "x", soon),
            quota_exceeded("calls", "x", &[], soon),
            internal(),
            Status::resource_exhausted("of somebody else"),
            Status::unavailable("no route"),
        ] {
            assert!(!is_busy(&other), "{other:?}");
        }
    }

    #[test]
    fn texts_are_cut_at_a_character_boundary() {
        for unit in ["a", "ä", "€", "\u{1F600}"] {
            let text = unit.repeat(10_000);
            assert!(cut(&text).ends_with('…') && cut(&text).starts_with(unit));
            let message = cut_message(&text);
            assert!(message.ends_with('…') && message.starts_with(unit));
        }
        assert_eq!(cut_message("as it is"), "as it is");
    }

    #[test]
    fn a_status_of_others_gets_the_name_of_its_code_as_reason() {
        let status = explained(Status::unavailable("no route"));
        assert_eq!(reason(&status).as_deref(), Some("UNAVAILABLE"));
        let ours = explained(super::status(Code::Aborted, "LOST", "x"));
        assert_eq!(reason(&ours).as_deref(), Some("LOST"));
    }
}
