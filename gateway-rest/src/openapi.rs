//! OpenAPI 3.1, generated from the descriptors that also route the calls.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use tars_proto::{
    table::{AuditLevel, Body, Method, MethodTable, Principal, Route},
    validate::MAX_STRUCT_DEPTH,
};

pub(crate) fn document(table: &MethodTable) -> Value {
    let mut schemas = Schemas::default();
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
        },
        "paths": paths,
        "components": {
            "schemas": schemas.done,
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
                "apiKey": { "type": "apiKey", "in": "header", "name": "x-api-key" },
            },
        },
    })
}

/// What holds for every operation.
fn description() -> String {
    format!(
        "JSON follows the proto3 mapping, with field names as in the protos (lowerCamelCase is read \
         as well). Bodies are read strictly: a name that is given twice, in whatever spelling, or \
         that the message does not have, is refused on every level; null is absence. What a path \
         gives, the body and the query may repeat with an equal value. Values in a \
         google.protobuf.Struct nest at most {MAX_STRUCT_DEPTH} deep, and integers there must lie \
         within 2^53; what a field cannot hold exactly is refused. HEAD is answered where GET is, \
         and OPTIONS with Allow. Every answer has x-trace-id, and every error an ErrorInfo."
    )
}

fn operation(method: &Method, route: &Route, schemas: &mut Schemas) -> Value {
    let Some(descriptor) = &method.descriptor else {
        return json!({});
    };
    let binding = method
        .routes
        .iter()
        .position(|r| std::ptr::eq(r, route))
        .unwrap_or(0);
    let suffix = if binding == 0 {
        String::new()
    } else {
        format!("_{binding}")
    };
    let output = schemas.reference(&descriptor.output());
    let kind = if method.server_streaming {
        "text/event-stream"
    } else {
        "application/json"
    };
    let error = json!({ "$ref": "#/components/schemas/google.rpc.Status" });
    schemas.add_status();
    let mut operation = json!({
        "operationId": format!("{}_{}{suffix}", method.service.rsplit('.').next().unwrap_or_default(), method.name),
        "summary": method.summary,
        "tags": [method.service],
        "parameters": parameters(&descriptor.input(), route),
        "responses": {
            "200": { "description": "OK", "content": { kind: { "schema": output } } },
            "default": { "description": "An error", "content": { "application/json": { "schema": error } } },
        },
        "x-tars-rule": rule(method),
    });
    if !matches!(method.rule.principal, Principal::Public) {
        operation["security"] = json!([{ "bearer": [] }, { "apiKey": [] }]);
    }
    if route.body != Body::None {
        let schema = schemas.reference(&descriptor.input());
        operation["requestBody"] =
            json!({ "content": { "application/json": { "schema": schema } } });
    }
    operation
}

fn rule(method: &Method) -> Value {
    let permission = match method.rule.principal {
        Principal::Permission(needed) => json!(needed.as_str()),
        _ => Value::Null,
    };
    json!({ "permission": permission, "audited": method.rule.audit > AuditLevel::None })
}

fn parameters(input: &MessageDescriptor, route: &Route) -> Vec<Value> {
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
            let schema = field_schema(&field, &mut Schemas::default());
            Some(json!({ "name": field.name(), "in": place, "required": place == "path", "schema": schema }))
        })
        .collect()
}

fn is_parameter(field: &FieldDescriptor) -> bool {
    match field.kind() {
        Kind::Message(m) => m.full_name() == "google.protobuf.Timestamp",
        _ => true,
    }
}

#[derive(Default)]
struct Schemas {
    done: Map<String, Value>,
}

impl Schemas {
    fn reference(&mut self, message: &MessageDescriptor) -> Value {
        if let Some(known) = well_known(message.full_name()) {
            return known;
        }
        let name = message.full_name().to_owned();
        if !self.done.contains_key(&name) {
            self.done.insert(name.clone(), Value::Null);
            let schema = self.object(message);
            self.done.insert(name.clone(), schema);
        }
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    fn object(&mut self, message: &MessageDescriptor) -> Value {
        let properties: Map<String, Value> = message
            .fields()
            .map(|f| (f.name().to_owned(), field_schema(&f, self)))
            .collect();
        json!({ "type": "object", "properties": properties, "additionalProperties": false })
    }

    fn add_status(&mut self) {
        self.done.entry("google.rpc.Status").or_insert_with(|| {
            json!({
                "type": "object",
                "properties": {
                    "code": { "type": "integer" },
                    "message": { "type": "string" },
                    "details": { "type": "array", "items": { "type": "object" } },
                },
            })
        });
    }
}

fn well_known(name: &str) -> Option<Value> {
    match name {
        "google.protobuf.Timestamp" => Some(json!({ "type": "string", "format": "date-time" })),
        "google.protobuf.Duration" => Some(json!({ "type": "string" })),
        "google.protobuf.Struct" => Some(json!({ "type": "object" })),
        "google.protobuf.Value" => Some(json!({})),
        _ => None,
    }
}

fn field_schema(field: &FieldDescriptor, schemas: &mut Schemas) -> Value {
    if field.is_map()
        && let Kind::Message(entry) = field.kind()
    {
        let value = field_schema(&entry.map_entry_value_field(), schemas);
        return json!({ "type": "object", "additionalProperties": value });
    }
    let one = kind_schema(&field.kind(), schemas);
    if field.is_list() {
        json!({ "type": "array", "items": one })
    } else {
        one
    }
}

fn kind_schema(kind: &Kind, schemas: &mut Schemas) -> Value {
    match kind {
        Kind::Double | Kind::Float => json!({ "type": "number" }),
        Kind::Bool => json!({ "type": "boolean" }),
        Kind::String => json!({ "type": "string" }),
        Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64" }),
        Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => {
            json!({ "type": ["string", "integer"], "pattern": "^-?[0-9]+$" })
        }
        Kind::Message(message) => schemas.reference(message),
        Kind::Enum(values) => enum_schema(values),
        _ => json!({ "type": "integer" }),
    }
}

fn enum_schema(values: &EnumDescriptor) -> Value {
    let names: Vec<String> = values.values().map(|v| v.name().to_owned()).collect();
    json!({ "type": "string", "enum": names })
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
}
