//! OpenAPI 3.1, generated from the descriptors that also route the requests.

mod schema;

use prost_reflect::{FieldDescriptor, Kind, MessageDescriptor};
use schema::{Schemas, described};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tars_proto::{
    bounds::Bounds,
    table::{AuditLevel, Body, Method, MethodTable, Principal, RateClass, Route, comment_at},
    validate::MAX_STRUCT_DEPTH,
};

pub(crate) fn document(table: &MethodTable) -> Value {
    let mut schemas = Schemas::new(table);
    let mut paths = Map::new();
    for method in table.iter() {
        for route in &method.routes {
            let path = route.template.to_string();
            let operations = paths.entry(path).or_insert_with(|| json!({}));
            operations[route.method.to_lowercase()] = operation(method, route, &mut schemas);
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "TARS",
            "version": env!("CARGO_PKG_VERSION"),
            "description": description(),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/", "description": "The gateway that serves this document" }],
        "tags": tags(table),
        "paths": paths,
        "components": {
            "schemas": with_status(schemas.done),
            "responses": errors(),
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
                "apiKey": { "type": "apiKey", "in": "header", "name": "x-api-key" },
            },
        },
    })
}

/// The description of what all operations have in common.
fn description() -> String {
    format!(
        "JSON follows the proto3 mapping, with field names as in the protos (lowerCamelCase is accepted \
        as well). Bodies are parsed strictly: a name that is given twice, in whatever spelling, or that \
        the message does not have, is refused on every level; null means absence. The body and the query \
        may repeat what the path gives, with an equal value. Values in a google.protobuf.Struct nest at \
        most {MAX_STRUCT_DEPTH} deep, and integers there must lie within 2^53; what a field cannot hold \
        exactly is refused. HEAD is supported where GET is, and OPTIONS with Allow. Every response has \
        x-trace-id, and every error an ErrorInfo."
    )
}

fn tags(table: &MethodTable) -> Vec<Value> {
    let routed = table.iter().filter(|m| !m.routes.is_empty());
    let services: BTreeMap<&str, String> = routed
        .filter_map(|m| {
            let service = m.descriptor.as_ref()?.parent_service();
            let comment = comment_at(&service.parent_file(), service.path());
            Some((m.service.as_str(), comment))
        })
        .collect();
    let tag = |(name, comment)| json!({ "name": name, "description": comment });
    services.into_iter().map(tag).collect()
}

fn operation(method: &Method, route: &Route, schemas: &mut Schemas) -> Value {
    let Some(descriptor) = &method.descriptor else {
        return json!({});
    };
    let mut operation = json!({
        "operationId": operation_id(method, route),
        "summary": summary(method),
        "description": method.summary,
        "tags": [method.service],
        "parameters": parameters(&descriptor.input(), route, schemas),
        "responses": responses(method, route, schemas.reference(&descriptor.output())),
        "security": security(method),
        "x-tars-rule": rule(method),
    });
    if let Some(schema) = body(&descriptor.input(), route, schemas) {
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": schema } },
        });
    }
    operation
}

/// The first sentence of the method's comment.
fn summary(method: &Method) -> &str {
    let end = method
        .summary
        .find(". ")
        .map_or(method.summary.len(), |at| at + 1);
    &method.summary[..end]
}

/// The same method under a second path has a number behind its name.
fn operation_id(method: &Method, route: &Route) -> String {
    let service = method.service.rsplit('.').next().unwrap_or_default();
    let mut routes = method.routes.iter();
    match routes.position(|r| std::ptr::eq(r, route)) {
        None | Some(0) => format!("{service}_{}", method.name),
        Some(binding) => format!("{service}_{}_{binding}", method.name),
    }
}

/// Empty for methods that need no credential.
fn security(method: &Method) -> Value {
    match method.rule.principal {
        Principal::Public => json!([]),
        _ => json!([{ "bearer": [] }, { "apiKey": [] }]),
    }
}

fn rule(method: &Method) -> Value {
    let permission = match method.rule.principal {
        Principal::Permission(needed) => json!(needed.as_str()),
        _ => Value::Null,
    };
    json!({ "permission": permission, "audited": method.rule.audit > AuditLevel::None })
}

fn body(input: &MessageDescriptor, route: &Route, schemas: &mut Schemas) -> Option<Value> {
    match &route.body {
        Body::None => None,
        Body::Whole => Some(schemas.reference(input)),
        Body::Field(name) => Some(schemas.field(&input.get_field_by_name(name)?)),
    }
}

fn responses(method: &Method, route: &Route, output: Value) -> Value {
    let content = match method.server_streaming {
        true => json!({
            "text/event-stream": { "schema": output },
            "application/x-ndjson": { "schema": output },
        }),
        false => json!({ "application/json": { "schema": output } }),
    };
    let mut responses = json!({ "200": { "description": "OK", "content": content } });
    for (code, name, _) in ERRORS
        .iter()
        .filter(|(code, ..)| can_answer(method, route, *code))
    {
        let reference = json!({ "$ref": format!("#/components/responses/{name}") });
        responses[code.to_string()] = reference;
    }
    responses["default"] = json!({ "$ref": "#/components/responses/Error" });
    responses
}

/// The HTTP status codes of errors, with a name and a meaning.
const ERRORS: [(u16, &str, &str); 11] = [
    (
        400,
        "BadRequest",
        "A field, or the current state, does not allow the call",
    ),
    (401, "Unauthenticated", "The call needs a valid credential"),
    (
        403,
        "PermissionDenied",
        "The caller does not hold the permission that is named",
    ),
    (404, "NotFound", "There is no resource of that name"),
    (
        409,
        "Conflict",
        "The resource already exists, or was changed concurrently",
    ),
    (413, "TooLarge", "The body exceeds the maximum size"),
    (
        415,
        "UnsupportedMediaType",
        "The body is not application/json",
    ),
    (
        429,
        "TooManyRequests",
        "A rate limit or a share is used up; Retry-After tells for how long",
    ),
    (
        500,
        "Internal",
        "A fault of the mesh; its log has more under the trace id",
    ),
    (
        503,
        "Unavailable",
        "A service is unreachable or full; Retry-After tells when to try again",
    ),
    (
        504,
        "DeadlineExceeded",
        "The response was not there in time",
    ),
];

fn can_answer(method: &Method, route: &Route, code: u16) -> bool {
    let public = method.rule.principal == Principal::Public;
    match code {
        // A login without a credential may still be refused for a wrong password.
        401 => !public || method.rule.rate == RateClass::Auth,
        403 => !public,
        404 => route.template.variables().next().is_some(),
        409 => !method.read_only,
        413 | 415 => route.body != Body::None,
        _ => true,
    }
}

fn errors() -> Value {
    let schema = json!({ "$ref": "#/components/schemas/google.rpc.Status" });
    let error = |meaning: &str| {
        json!({
            "description": meaning,
            "content": { "application/json": { "schema": schema } },
        })
    };
    let mut all: Map<String, Value> = ERRORS
        .iter()
        .map(|(_, name, meaning)| ((*name).to_owned(), error(meaning)))
        .collect();
    all.insert("Error".to_owned(), error("Any other error"));
    Value::Object(all)
}

fn with_status(mut schemas: Map<String, Value>) -> Map<String, Value> {
    let status = json!({
        "type": "object",
        "description": "What went wrong. The detail with a `reason` is the one to branch on.",
        "required": ["code", "message", "details"],
        "properties": {
            "code": { "type": "integer", "description": "A code of google.rpc.Code." },
            "message": { "type": "string", "description": "For people." },
            "details": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["@type"],
                    "properties": {
                        "@type": { "type": "string" },
                        "reason": { "type": "string" },
                        "domain": { "type": "string" },
                    },
                },
            },
        },
    });
    schemas.insert("google.rpc.Status".to_owned(), status);
    schemas
}

fn parameters(input: &MessageDescriptor, route: &Route, schemas: &mut Schemas) -> Vec<Value> {
    let bound: BTreeSet<&str> = route
        .template
        .variables()
        .filter_map(|v| v.first().map(String::as_str))
        .collect();
    let in_query = |f: &FieldDescriptor| route.body == Body::None && !f.is_map() && is_parameter(f);
    input
        .fields()
        .filter_map(|field| {
            let place = if bound.contains(field.name()) {
                "path"
            } else if in_query(&field) {
                "query"
            } else {
                return None;
            };
            let schema = described(&field, schemas.field(&field));
            let required = place == "path" || Bounds::of(&field).required;
            Some(json!({ "name": field.name(), "in": place, "required": required, "schema": schema }))
        })
        .collect()
}

fn is_parameter(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(m) => m.full_name() == "google.protobuf.Timestamp",
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_route_is_described_and_every_reference_resolves() {
        let table = tars_interceptors::contract().unwrap();
        let document = document(table);
        for method in table.iter() {
            for route in &method.routes {
                let operation =
                    &document["paths"][route.template.to_string()][route.method.to_lowercase()];
                assert!(
                    operation["operationId"].is_string(),
                    "{} {}",
                    route.method,
                    route.template
                );
            }
        }
        let text = document.to_string();
        for part in text.split("\"#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(
                document["components"]["schemas"][name].is_object(),
                "{name}"
            );
        }
    }

    fn documented() -> Value {
        document(tars_interceptors::contract().unwrap())
    }

    #[test]
    fn fields_have_their_constraints() {
        let document = documented();
        let schemas = &document["components"]["schemas"];
        let login = &schemas["tars.auth.v1.LoginRequest"];
        assert_eq!(login["required"], json!(["username", "password"]));
        assert_eq!(login["properties"]["username"]["minLength"], 1);
        assert_eq!(login["additionalProperties"], false);
        let optimize = &schemas["tars.automl.v1.OptimizeRequest"]["properties"];
        assert!(optimize["n_trials"]["maximum"].is_number(), "{optimize}");
        let answer = &schemas["tars.auth.v1.LoginResponse"];
        assert!(answer["additionalProperties"].is_null(), "it may grow");
    }

    #[test]
    fn a_field_in_the_path_is_not_required_in_the_body() {
        let document = documented();
        let reload = "tars.orchestration.v1.ReloadAgentRequest";
        let required = document["components"]["schemas"][reload]["required"].to_string();
        assert!(!required.contains("agent_id"), "{required}");
    }

    #[test]
    fn operations_have_their_security_and_errors() {
        let document = documented();
        let codes = |path: &str, method: &str| -> Vec<String> {
            let responses = document["paths"][path][method]["responses"].as_object();
            responses.unwrap().keys().cloned().collect()
        };
        let login = &document["paths"]["/auth/login"]["post"];
        assert_eq!(login["security"], json!([]));
        let has = |codes: &[String], code: &str| codes.iter().any(|c| c == code);
        let login = codes("/auth/login", "post");
        assert!(has(&login, "401") && has(&login, "415") && !has(&login, "403"));
        let read = codes("/api/v1/studies/{study_id}", "get");
        assert!(has(&read, "404") && has(&read, "403") && !has(&read, "409") && !has(&read, "413"));
        for tag in document["tags"].as_array().unwrap() {
            assert_ne!(tag["description"], "", "{tag}");
        }
    }
}
