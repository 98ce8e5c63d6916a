//! From an HTTP request to a message, and back to JSON.
//!
//! The path sets its fields first. The query and the body may repeat them with equal values, but never
//! contradict the path or give a field twice.

use crate::{
    error::{Refusal, bad_request},
    json::{self, Reader, Source},
};
use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use prost_reflect::{
    DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, ReflectMessage, Value,
};
use tars_proto::{
    fault, reason,
    route::Binding,
    table::{Body, Method, Route},
    validate::Path,
};
use tonic::{Code, Status};

/// A matched route.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) method: &'static Method,
    pub(crate) route: &'static Route,
}

/// Returns the encoded request message.
pub(crate) fn request_bytes(
    target: &Target,
    bindings: &[Binding],
    query: &str,
    body: &[u8],
    last_event_id: Option<&str>,
) -> Result<Bytes, Refusal> {
    let input = target.method.input();
    let descriptor = input.ok_or(Refusal::Broken("a method with a route has no input"))?;
    let mut message = DynamicMessage::new(descriptor);
    let mut reader = Reader::default();
    for binding in bindings {
        let fields = resolve(
            &message.descriptor(),
            binding.field.iter().map(String::as_str),
        );
        let fields = fields.ok_or(Refusal::Broken("a path binds a field that is not there"))?;
        reader.put(&mut message, &fields, &binding.value, Source::Path);
    }
    read_query(&mut reader, &mut message, (target, bindings), query)?;
    read_body(&mut reader, &mut message, target, body)?;
    if let Some(id) = last_event_id {
        resume(&mut message, id)?;
    }
    match reader.finish() {
        Some(status) => Err(status.into()),
        None => Ok(message.encode_to_vec().into()),
    }
}

fn malformed(problem: &str) -> Refusal {
    Refusal::Status(fault::status(
        Code::InvalidArgument,
        reason::MALFORMED_JSON,
        problem,
    ))
}

fn read_body(
    reader: &mut Reader,
    message: &mut DynamicMessage,
    target: &Target,
    body: &[u8],
) -> Result<(), Refusal> {
    let parse = || json::parse(body).map_err(|e| malformed(&format!("the body is not JSON: {e}")));
    match &target.route.body {
        Body::None if body.is_empty() => {}
        Body::None => return Err(bad_request("", "this method takes no body")),
        Body::Whole if body.is_empty() => {}
        Body::Whole => match parse()? {
            object if object.get().starts_with('{') => reader.fill(message, object, &Path::ROOT),
            _ => return Err(malformed("the body must be a JSON object")),
        },
        Body::Field(name) => {
            let field = message.descriptor().get_field_by_name(name);
            let field = field.ok_or(Refusal::Broken("the body fills a field that is not there"))?;
            reader.member(message, &field, parse()?, &Path::ROOT.field(name));
        }
    }
    Ok(())
}

fn read_query(
    reader: &mut Reader,
    message: &mut DynamicMessage,
    (target, bindings): (&Target, &[Binding]),
    query: &str,
) -> Result<(), Refusal> {
    if target.route.body == Body::Whole && !query.is_empty() {
        return Err(bad_request("", "this path takes no query parameters"));
    }
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let Some(name) = unescape(name) else {
            return Err(bad_request("", "the query has a broken escape"));
        };
        let at = Path::ROOT.field(&name);
        let Some(fields) = resolve(&message.descriptor(), name.split('.')) else {
            let descriptor = message.descriptor();
            reader.refuse(&at, NoParameter(&descriptor, bindings));
            continue;
        };
        match unescape(value) {
            Some(value) => reader.put(message, &fields, &value, Source::Query),
            None => reader.refuse(&at, "has a broken escape"),
        }
    }
    Ok(())
}

/// What a path that binds these fields of a request has for parameters. It becomes a text only where it is
/// told: a query can have thousands of others.
struct NoParameter<'a>(&'a MessageDescriptor, &'a [Binding]);

impl From<NoParameter<'_>> for String {
    fn from(NoParameter(descriptor, bindings): NoParameter<'_>) -> Self {
        let is_bound = |name: &str| bindings.iter().any(|binding| binding.field == [name]);
        let names: Vec<Self> = descriptor
            .fields()
            .filter(|field| !is_bound(field.name()))
            .filter(|field| resolve(descriptor, std::iter::once(field.name())).is_some())
            .map(|field| field.name().to_owned())
            .collect();
        match names.is_empty() {
            true => "is not a parameter of this path, which has none".to_owned(),
            false => format!(
                "is not a parameter of this path, which has {}",
                names.join(", ")
            ),
        }
    }
}

/// Decodes `application/x-www-form-urlencoded`, in which `+` is a space.
fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'+' => out.push(b' '),
            b'%' => {
                let pair = [bytes.next()?, bytes.next()?];
                let digits = std::str::from_utf8(&pair)
                    .ok()
                    .filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
                out.push(u8::from_str_radix(digits, 16).ok()?);
            }
            _ => out.push(b),
        }
    }
    String::from_utf8(out).ok()
}

/// Resolves a path of names to fields, if it ends at one that a text can set.
fn resolve<'a>(
    descriptor: &MessageDescriptor,
    mut names: impl Iterator<Item = &'a str>,
) -> Option<Vec<FieldDescriptor>> {
    let first = json::named(descriptor, names.next()?)?;
    let (mut fields, mut last) = (Vec::new(), first);
    for name in names {
        let inner = match last.kind() {
            Kind::Message(inner) if !last.is_list() && !last.is_map() => inner,
            _ => return None,
        };
        fields.push(std::mem::replace(&mut last, json::named(&inner, name)?));
    }
    let leaf = json::fits_text(&last);
    fields.push(last);
    leaf.then_some(fields)
}

/// `Last-Event-ID` is the number of the last event that was received. A browser that reconnects sends it with
/// the original URL, so that it overrides `after_sequence`.
fn resume(message: &mut DynamicMessage, id: &str) -> Result<(), Refusal> {
    let number: u64 = id
        .parse()
        .map_err(|_| bad_request("Last-Event-ID", "must be the number of an event"))?;
    if let Some(field) = message.descriptor().get_field_by_name("after_sequence") {
        message.set_field(&field, Value::U64(number));
    }
    Ok(())
}

/// Decodes the response of a service.
pub(crate) fn response(method: &Method, bytes: &[u8]) -> Result<DynamicMessage, Status> {
    let descriptor = method
        .descriptor
        .as_ref()
        .ok_or_else(|| broken("no descriptor"))?;
    DynamicMessage::decode(descriptor.output(), bytes).map_err(|e| broken(&e.to_string()))
}

/// Formats a response as JSON.
pub(crate) fn to_json(message: &DynamicMessage) -> Result<Vec<u8>, Status> {
    json::write(message).map_err(|e| broken(&e.to_string()))
}

fn broken(problem: &str) -> Status {
    tracing::error!(problem, "a service's response cannot be transcoded");
    let message = "the service's response cannot be transcoded";
    fault::status(Code::Internal, reason::INTERNAL, message)
}

/// Checks that the content type of a non-empty body is given once, as JSON in UTF-8.
pub(crate) fn check_content_type(headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    if body.is_empty() {
        return Ok(());
    }
    let coded = headers.get_all(http::header::CONTENT_ENCODING).iter();
    if coded
        .into_iter()
        .any(|v| !v.as_bytes().eq_ignore_ascii_case(b"identity"))
    {
        return Err(Refusal::UnsupportedEncoding);
    }
    let mut kinds = headers.get_all(http::header::CONTENT_TYPE).iter();
    match (kinds.next().and_then(|v| v.to_str().ok()), kinds.next()) {
        (Some(kind), None) if is_json(kind) => Ok(()),
        _ => Err(Refusal::UnsupportedMediaType),
    }
}

/// JSON has no charset other than UTF-8, which may be named.
fn is_json(kind: &str) -> bool {
    let mut parts = kind.split(';').map(str::trim);
    let essence = parts.next().unwrap_or_default();
    let charset = |part: &str| {
        let (name, value) = part.split_once('=')?;
        let value = value.trim().trim_matches('"');
        name.trim()
            .eq_ignore_ascii_case("charset")
            .then(|| value.to_owned())
    };
    essence.eq_ignore_ascii_case("application/json")
        && parts
            .filter_map(charset)
            .all(|c| c.eq_ignore_ascii_case("utf-8"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_interceptors::contract;

    fn target(path: &str) -> Target {
        let method = contract().unwrap().get(path).unwrap();
        Target {
            method,
            route: &method.routes[0],
        }
    }

    fn binding(field: &str, value: &str) -> Binding {
        Binding {
            field: vec![field.to_owned()],
            value: value.to_owned(),
        }
    }

    fn decode(target: &Target, bytes: &Bytes) -> serde_json::Value {
        let message =
            DynamicMessage::decode(target.method.input().unwrap(), bytes.clone()).unwrap();
        let options = prost_reflect::SerializeOptions::new().use_proto_field_name(true);
        message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .unwrap()
    }

    const RELOAD: &str = "/tars.orchestration.v1.OrchestrationService/ReloadAgent";
    const GET: &str = "/tars.orchestration.v1.OrchestrationService/GetAgent";
    const AUDIT: &str = "/tars.auth.v1.AuditService/ListAuditEvents";

    #[test]
    fn an_unknown_parameter_is_answered_with_those_that_there_are() {
        let problem = |method: &str, bindings: &[Binding]| {
            let input = target(method).method.input().unwrap();
            String::from(NoParameter(&input, bindings))
        };
        let of_audit = problem(AUDIT, &[]);
        assert!(of_audit.contains("page_size, page_token"), "{of_audit}");
        let bound = problem(GET, &[binding("agent_id", "policy")]);
        assert_eq!(bound, "is not a parameter of this path, which has none");
    }

    #[test]
    fn path_and_body_make_one_message() {
        let t = target(RELOAD);
        let body = br#"{"hyperparameters":{"gamma":0.9,"double":true},"expected_version":"3"}"#;
        let bytes = request_bytes(&t, &[binding("agent_id", "policy")], "", body, None).unwrap();
        assert_eq!(
            decode(&t, &bytes),
            serde_json::json!({
                "agent_id": "policy", "hyperparameters": {"gamma": 0.9, "double": true}, "expected_version": "3"
            })
        );
    }

    #[test]
    fn query_parameters_fill_fields() {
        let t = target(AUDIT);
        let query = "event_type=auth.login.success&page_size=5&start_time=2026-01-02T03:04:05Z&caller=a%2Bb+c";
        let bytes = request_bytes(&t, &[], query, b"", None).unwrap();
        assert_eq!(
            decode(&t, &bytes),
            serde_json::json!({
                "event_type": "auth.login.success", "page_size": 5, "start_time": "2026-01-02T03:04:05Z",
                "caller": "a+b c"
            })
        );
    }

    #[test]
    fn a_body_that_does_not_fit_the_message_is_refused() {
        let path = [binding("agent_id", "policy")];
        for body in [
            &br#"{"unknown":1}"#[..],
            br#"{"agent_id":"other"}"#,
            br#"{"agentId":"other"}"#,
            b"[]",
            b"{",
            b"null",
            br#"{"expected_version":-1}"#,
            br#"{"expected_version":1.5}"#,
            br#"{"reason":7}"#,
            br#"{"hyperparameters":[]}"#,
            br#"{"reason":"a"}{"#,
            b"\xff",
        ] {
            let refused = request_bytes(&target(RELOAD), &path, "", body, None);
            assert!(
                matches!(refused, Err(Refusal::Status(_))),
                "{}",
                String::from_utf8_lossy(body)
            );
        }
        for query in [
            "nope=1",
            "page_size=-1",
            "page_size=x",
            "event_type=%zz",
            "page_size=1&page_size=2",
            "start_time=yesterday",
        ] {
            assert!(
                request_bytes(&target(AUDIT), &[], query, b"", None).is_err(),
                "{query}"
            );
        }
        assert!(
            request_bytes(&target(AUDIT), &[], "", b"{}", None).is_err(),
            "a body on GET"
        );
        assert!(
            request_bytes(&target(RELOAD), &path, "reason=x", b"{}", None).is_err(),
            "a query beside a whole body"
        );
    }

    const TELL: &str = "/tars.automl.v1.StudyService/TellTrial";

    #[test]
    fn the_body_may_repeat_a_field_of_the_path() {
        let study = "018f0000-0000-7000-8000-000000000000";
        let path = [binding("study_id", study), binding("number", "0")];
        for same in ["0", "0.0", "\"0\"", "0e3", "-0", "null"] {
            let body = format!(r#"{{"number":{same},"state":"TRIAL_STATE_FAILED"}}"#);
            let read = request_bytes(&target(TELL), &path, "", body.as_bytes(), None);
            assert!(read.is_ok(), "{same}: {read:?}");
        }
        for other in ["1", "\"1\"", "-1", "\"\"", "false", "[]", "0.5"] {
            let body = format!(r#"{{"number":{other},"state":"TRIAL_STATE_FAILED"}}"#);
            let fields = fields_at_fault(request_bytes(
                &target(TELL),
                &path,
                "",
                body.as_bytes(),
                None,
            ));
            assert_eq!(fields, ["number"], "{other}");
        }
        let five = [binding("study_id", study), binding("number", "5")];
        let body = br#"{"number":0,"state":4}"#;
        let fields = fields_at_fault(request_bytes(&target(TELL), &five, "", body, None));
        assert_eq!(
            fields,
            ["number"],
            "the default is a value when it is given"
        );
    }

    #[test]
    fn the_query_may_repeat_the_path_and_nothing_else() {
        const EVENTS: &str = "/tars.automl.v1.StudyService/WatchStudy";
        let study = "018f0000-0000-7000-8000-000000000000";
        let path = [binding("study_id", study)];
        for good in [
            "after_sequence=3",
            "afterSequence=3",
            &format!("study_id={study}"),
            "after_sequence=18446744073709551615",
        ] {
            let read = request_bytes(&target(EVENTS), &path, good, b"", None);
            assert!(read.is_ok(), "{good}: {read:?}");
        }
        for bad in [
            "after_sequence=3&after_sequence=3",
            "after_sequence=3&afterSequence=4",
            "study_id=018f0000-0000-7000-8000-000000000001",
            "studyId=018f0000-0000-7000-8000-000000000001",
            "after_sequence=+3",
            "after_sequence=",
            "after_sequence=18446744073709551616",
            "study_id.x=1",
        ] {
            let read = request_bytes(&target(EVENTS), &path, bad, b"", None);
            assert!(read.is_err(), "{bad}");
        }
    }

    fn fields_at_fault(read: Result<Bytes, Refusal>) -> Vec<String> {
        use tonic_types::StatusExt;
        let Err(Refusal::Status(status)) = read else {
            panic!("not refused: {read:?}");
        };
        let details = status.get_details_bad_request().expect("fields");
        details
            .field_violations
            .into_iter()
            .map(|v| v.field)
            .collect()
    }

    #[test]
    fn a_body_must_have_a_json_content_type() {
        let with = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::CONTENT_TYPE, kind.parse().unwrap());
            check_content_type(&headers, b"{}")
        };
        assert!(
            with("application/json").is_ok() && with("Application/JSON; charset=utf-8").is_ok()
        );
        assert!(with("application/json;charset=\"UTF-8\"").is_ok());
        for bad in [
            "text/plain",
            "application/x-www-form-urlencoded",
            "application/json; charset=utf-16",
            "application/jsonp",
            "",
        ] {
            assert!(with(bad).is_err(), "{bad}");
        }
        assert!(check_content_type(&HeaderMap::new(), b"{}").is_err());
        let mut two = HeaderMap::new();
        for kind in ["application/json", "text/plain"] {
            two.append(http::header::CONTENT_TYPE, kind.parse().unwrap());
        }
        assert!(check_content_type(&two, b"{}").is_err());
        let mut packed = HeaderMap::new();
        packed.insert(
            http::header::CONTENT_TYPE,
            "application/json".parse().unwrap(),
        );
        packed.insert(http::header::CONTENT_ENCODING, "gzip".parse().unwrap());
        let refused = check_content_type(&packed, b"{}");
        assert!(matches!(refused, Err(Refusal::UnsupportedEncoding)));
    }
}
