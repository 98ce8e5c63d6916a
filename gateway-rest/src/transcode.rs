//! From an HTTP request to a message, and back to JSON.
//!
//! Path and query are merged into the JSON of the body, which is then read strictly: unknown
//! fields are refused by name. A field that the path binds cannot be changed by the body.

use crate::error::{Refusal, bad_request};
use bytes::Bytes;
use http::HeaderMap;
use prost::Message;
use prost_reflect::{
    DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor, SerializeOptions,
};
use serde_json::{Map, Value};
use tars_proto::{
    fault,
    route::Binding,
    table::{Body, Method, Route},
};
use tonic::{Code, Status};

/// A matched route.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) method: &'static Method,
    pub(crate) route: &'static Route,
}

/// The request message, encoded.
pub(crate) fn request_bytes(
    target: &Target,
    bindings: &[Binding],
    query: &str,
    body: &[u8],
    last_event_id: Option<&str>,
) -> Result<Bytes, Refusal> {
    let descriptor = target.method.input().ok_or(Refusal::NotFound)?;
    let mut json = read_body(target, body)?;
    if target.route.body != Body::Whole {
        merge_query(&descriptor, &mut json, query)?;
    } else if !query.is_empty() {
        return Err(bad_request("", "this path takes no query parameters"));
    }
    for binding in bindings {
        bind(&descriptor, &mut json, binding)?;
    }
    if let Some(id) = last_event_id {
        resume(&descriptor, &mut json, id)?;
    }
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    let message =
        DynamicMessage::deserialize_with_options(descriptor, Value::Object(json), &options)
            .map_err(|e| malformed(&e.to_string()))?;
    Ok(message.encode_to_vec().into())
}

fn malformed(problem: &str) -> Refusal {
    Refusal::Status(fault::status(
        Code::InvalidArgument,
        "MALFORMED_JSON",
        problem,
    ))
}

fn read_body(target: &Target, body: &[u8]) -> Result<Map<String, Value>, Refusal> {
    let parse = || serde_json::from_slice::<Value>(body).map_err(|e| malformed(&e.to_string()));
    match &target.route.body {
        Body::None if body.is_empty() => Ok(Map::new()),
        Body::None => Err(bad_request("", "this method takes no body")),
        Body::Whole if body.is_empty() => Ok(Map::new()),
        Body::Whole => match parse()? {
            Value::Object(object) => Ok(object),
            _ => Err(malformed("the body must be a JSON object")),
        },
        Body::Field(name) => Ok([(name.clone(), parse()?)].into_iter().collect()),
    }
}

fn merge_query(
    descriptor: &MessageDescriptor,
    json: &mut Map<String, Value>,
    query: &str,
) -> Result<(), Refusal> {
    for pair in query.split('&').filter(|p| !p.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name =
            unescape(name).ok_or_else(|| bad_request("", "the query has a broken escape"))?;
        let value = unescape(value).ok_or_else(|| bad_request(&name, "has a broken escape"))?;
        let path: Vec<String> = name.split('.').map(str::to_owned).collect();
        let field = resolve(descriptor, &path)
            .ok_or_else(|| bad_request(&name, "is no parameter of this path"))?;
        put(json, descriptor, &path, &field, &value, false)?;
    }
    Ok(())
}

/// `application/x-www-form-urlencoded`: `+` is a space.
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

fn resolve(descriptor: &MessageDescriptor, path: &[String]) -> Option<FieldDescriptor> {
    let (first, rest) = path.split_first()?;
    let field = descriptor.get_field_by_name(first)?;
    if rest.is_empty() {
        return Some(field).filter(|f| !f.is_map() && is_leaf(f));
    }
    match field.kind() {
        Kind::Message(inner) if !field.is_list() && !field.is_map() => resolve(&inner, rest),
        _ => None,
    }
}

/// A value that fits into a path or a query: scalars, enums, and times.
fn is_leaf(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(m) => {
            let name = m.full_name();
            matches!(
                name,
                "google.protobuf.Timestamp"
                    | "google.protobuf.Duration"
                    | "google.protobuf.FieldMask"
            )
        }
        _ => true,
    }
}

fn leaf(field: &FieldDescriptor, text: &str) -> Result<Value, Refusal> {
    match (field.kind(), text) {
        (Kind::Bool, "true") => Ok(Value::Bool(true)),
        (Kind::Bool, "false") => Ok(Value::Bool(false)),
        (Kind::Bool, _) => Err(bad_request(field.name(), "must be true or false")),
        _ => Ok(Value::String(text.to_owned())),
    }
}

fn bind(
    descriptor: &MessageDescriptor,
    json: &mut Map<String, Value>,
    binding: &Binding,
) -> Result<(), Refusal> {
    let field = resolve(descriptor, &binding.field).ok_or(Refusal::NotFound)?;
    put(
        json,
        descriptor,
        &binding.field,
        &field,
        &binding.value,
        true,
    )
}

/// Puts a value at a path of fields. `fixed` values come from the path: whatever else gives the
/// field must give the same.
fn put(
    json: &mut Map<String, Value>,
    descriptor: &MessageDescriptor,
    path: &[String],
    field: &FieldDescriptor,
    text: &str,
    fixed: bool,
) -> Result<(), Refusal> {
    let (first, rest) = path.split_first().ok_or(Refusal::NotFound)?;
    let here = descriptor
        .get_field_by_name(first)
        .ok_or(Refusal::NotFound)?;
    let name = here.name().to_owned();
    if here.json_name() != name
        && let Some(given) = json.remove(here.json_name())
    {
        json.entry(name.clone()).or_insert(given);
    }
    if !rest.is_empty() {
        let Kind::Message(inner) = here.kind() else {
            return Err(Refusal::NotFound);
        };
        let entry = json
            .entry(name.clone())
            .or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(object) = entry else {
            return Err(bad_request(&name, "must be an object"));
        };
        return put(object, &inner, rest, field, text, fixed);
    }
    let value = leaf(field, text)?;
    match json.get_mut(&name) {
        None if field.is_list() => drop(json.insert(name, Value::Array(vec![value]))),
        Some(Value::Array(list)) if field.is_list() && !fixed => list.push(value),
        None => drop(json.insert(name, value)),
        Some(given) if same(given, &value) => {}
        Some(_) => return Err(bad_request(&name, "is given twice")),
    }
    Ok(())
}

fn same(given: &Value, value: &Value) -> bool {
    given == value || value.as_str().is_some_and(|text| *given == text)
}

/// `Last-Event-ID` is the number of the last event seen.
fn resume(
    descriptor: &MessageDescriptor,
    json: &mut Map<String, Value>,
    id: &str,
) -> Result<(), Refusal> {
    let known = descriptor.get_field_by_name("after_sequence").is_some();
    let number: u64 = id
        .parse()
        .map_err(|_| bad_request("Last-Event-ID", "must be the number of an event"))?;
    if known {
        json.insert(
            "after_sequence".to_owned(),
            Value::String(number.to_string()),
        );
    }
    Ok(())
}

/// A response message as JSON, with field names as in the protos.
pub(crate) fn response_json(method: &Method, bytes: &[u8]) -> Result<Value, Status> {
    let descriptor = method
        .descriptor
        .as_ref()
        .map(prost_reflect::MethodDescriptor::output);
    let descriptor = descriptor.ok_or_else(|| Status::internal("the method has no descriptor"))?;
    let message = DynamicMessage::decode(descriptor, bytes)
        .map_err(|e| Status::internal(format!("the service answered with something else: {e}")))?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .skip_default_fields(false);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|e| Status::internal(format!("the answer has no JSON form: {e}")))
}

/// Whether a body that is there says that it is JSON.
pub(crate) fn check_content_type(headers: &HeaderMap, body: &[u8]) -> Result<(), Refusal> {
    if body.is_empty() {
        return Ok(());
    }
    let kind = headers
        .get(http::header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Ok(())
    } else {
        Err(Refusal::UnsupportedMediaType)
    }
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

    fn decode(target: &Target, bytes: &Bytes) -> Value {
        let message =
            DynamicMessage::decode(target.method.input().unwrap(), bytes.clone()).unwrap();
        let options = SerializeOptions::new().use_proto_field_name(true);
        message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .unwrap()
    }

    const RELOAD: &str = "/tars.orchestration.v1.OrchestrationService/ReloadAgent";
    const AUDIT: &str = "/tars.auth.v1.AuditService/ListAuditEvents";

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
    fn what_does_not_fit_is_refused() {
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

    #[test]
    fn a_field_bound_by_the_path_may_be_repeated_the_same() {
        let t = target(RELOAD);
        let path = [binding("agent_id", "policy")];
        assert!(request_bytes(&t, &path, "", br#"{"agent_id":"policy"}"#, None).is_ok());
    }

    #[test]
    fn bodies_must_say_that_they_are_json() {
        let with = |kind: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(http::header::CONTENT_TYPE, kind.parse().unwrap());
            check_content_type(&headers, b"{}")
        };
        assert!(
            with("application/json").is_ok() && with("Application/JSON; charset=utf-8").is_ok()
        );
        assert!(with("text/plain").is_err() && with("application/x-www-form-urlencoded").is_err());
        assert!(check_content_type(&HeaderMap::new(), b"{}").is_err());
    }
}
