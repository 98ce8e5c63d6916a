//! JSON schemas of messages, with the constraints that the contract declares for each field.

use prost_reflect::{EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use tars_proto::{
    bounds::{Bounds, Format},
    table::{Body, Method, MethodTable, comment_at},
};

const UUID: &str = "[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}";
const NAME: &str = "[a-z0-9][a-z0-9._-]{0,63}";
/// Maximum length of the key of a map.
const MAX_KEY: u32 = 128;

/// The schemas that operations refer to.
pub(super) struct Schemas {
    pub(super) done: Map<String, Value>,
    /// Messages that clients send, which are parsed strictly. Others may get more fields.
    sent: BTreeSet<String>,
    /// Fields of a message that its path gives, so that they are optional in the body.
    in_path: BTreeMap<String, BTreeSet<String>>,
}

impl Schemas {
    pub(super) fn new(table: &MethodTable) -> Self {
        let (mut sent, mut in_path) = (BTreeSet::new(), BTreeMap::new());
        for method in table.iter().filter(|m| !m.routes.is_empty()) {
            if let Some(input) = method.input() {
                let bound: &mut BTreeSet<String> =
                    in_path.entry(input.full_name().to_owned()).or_default();
                bound.extend(bound_by_path(method));
                reach(&input, &mut sent);
            }
        }
        Self {
            done: Map::new(),
            sent,
            in_path,
        }
    }

    pub(super) fn reference(&mut self, message: &MessageDescriptor) -> Value {
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
            .map(|f| (f.name().to_owned(), described(&f, self.field(&f))))
            .collect();
        let mut object = json!({ "type": "object", "properties": properties });
        if self.sent.contains(message.full_name()) {
            object["additionalProperties"] = json!(false);
        }
        let required = self.required(message);
        if !required.is_empty() {
            object["required"] = json!(required);
        }
        object
    }

    fn required(&self, message: &MessageDescriptor) -> Vec<String> {
        let in_path = self.in_path.get(message.full_name());
        let given = |name: &str| in_path.is_some_and(|bound| bound.contains(name));
        let fields = message.fields();
        let required = fields.filter(|f| Bounds::of(f).required && !given(f.name()));
        required.map(|f| f.name().to_owned()).collect()
    }

    pub(super) fn field(&mut self, field: &FieldDescriptor) -> Value {
        let bounds = Bounds::of(field);
        if field.is_map()
            && let Kind::Message(entry) = field.kind()
        {
            let value = self.field(&entry.map_entry_value_field());
            return json!({
                "type": "object",
                "additionalProperties": value,
                "propertyNames": { "minLength": 1, "maxLength": MAX_KEY },
                "maxProperties": bounds.max_items,
            });
        }
        if field.is_list() {
            return self.list(field, &bounds);
        }
        let given_is_not_empty = field.supports_presence() && bounds.min_len > 0;
        self.one(field, &bounds, !(bounds.required || given_is_not_empty))
    }

    fn list(&mut self, field: &FieldDescriptor, bounds: &Bounds) -> Value {
        let item = self.one(field, bounds, !bounds.required);
        let mut list = json!({ "type": "array", "items": item, "maxItems": bounds.max_items });
        if bounds.required {
            list["minItems"] = json!(1);
        }
        list
    }

    fn one(&mut self, field: &FieldDescriptor, bounds: &Bounds, may_be_empty: bool) -> Value {
        match field.kind() {
            Kind::Double | Kind::Float => number(json!({ "type": "number" }), bounds),
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::String => text(bounds, may_be_empty),
            Kind::Bytes => bytes(bounds),
            Kind::Int64 | Kind::Sint64 | Kind::Sfixed64 => {
                let wide = json!({ "type": ["string", "integer"], "pattern": "^-?[0-9]+$" });
                number(wide, bounds)
            }
            Kind::Uint64 | Kind::Fixed64 => {
                let wide =
                    json!({ "type": ["string", "integer"], "pattern": "^[0-9]+$", "minimum": 0 });
                number(wide, bounds)
            }
            Kind::Uint32 | Kind::Fixed32 => number(
                json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
                bounds,
            ),
            Kind::Int32 | Kind::Sint32 | Kind::Sfixed32 => {
                number(json!({ "type": "integer", "format": "int32" }), bounds)
            }
            Kind::Enum(values) => enumeration(&values, bounds),
            Kind::Message(message) => self.reference(&message),
        }
    }
}

/// Returns the fields that a route of the method has in its path, where it has a body as well.
fn bound_by_path(method: &Method) -> Vec<String> {
    let with_body = method.routes.iter().filter(|r| r.body != Body::None);
    with_body
        .flat_map(|r| r.template.variables())
        .filter_map(|v| v.first().cloned())
        .collect()
}

fn reach(message: &MessageDescriptor, sent: &mut BTreeSet<String>) {
    if !sent.insert(message.full_name().to_owned()) {
        return;
    }
    for field in message.fields() {
        if let Kind::Message(inner) = field.kind() {
            reach(&inner, sent);
        }
    }
}

/// Adds the comment above the field in the contract.
pub(super) fn described(field: &FieldDescriptor, mut schema: Value) -> Value {
    let comment = comment_at(&field.parent_message().parent_file(), field.path());
    if !comment.is_empty() {
        schema["description"] = json!(comment);
    }
    schema
}

fn well_known(name: &str) -> Option<Value> {
    match name {
        "google.protobuf.Timestamp" => Some(json!({ "type": "string", "format": "date-time" })),
        "google.protobuf.Duration" => {
            Some(json!({ "type": "string", "pattern": "^-?[0-9]+(\\.[0-9]{1,9})?s$" }))
        }
        "google.protobuf.Struct" => Some(json!({ "type": "object" })),
        "google.protobuf.Value" => Some(json!({})),
        _ => None,
    }
}

fn text(bounds: &Bounds, may_be_empty: bool) -> Value {
    let mut schema = json!({ "type": "string", "maxLength": bounds.max_len });
    if !may_be_empty {
        schema["minLength"] = json!(bounds.min_len.max(1));
    }
    let shape = match bounds.format {
        Some(Format::Uuid) => UUID,
        Some(Format::Name) => NAME,
        None => return schema,
    };
    schema["pattern"] = match may_be_empty {
        true => json!(format!("^({shape})?$")),
        false => json!(format!("^{shape}$")),
    };
    schema
}

/// Converts a bound in bytes to base64 characters.
fn bytes(bounds: &Bounds) -> Value {
    let letters = u64::from(bounds.max_len).div_ceil(3) * 4;
    let mut schema = json!({ "type": "string", "contentEncoding": "base64", "maxLength": letters });
    if bounds.required {
        schema["minLength"] = json!(1);
    }
    schema
}

fn number(mut schema: Value, bounds: &Bounds) -> Value {
    if let Some(least) = bounds.least {
        schema["minimum"] = plain(least);
    }
    if let Some(most) = bounds.most {
        schema["maximum"] = plain(most);
    }
    if bounds.required {
        schema["not"] = json!({ "const": 0 });
    }
    schema
}

/// Formats a whole number without a fraction.
fn plain(number: f64) -> Value {
    let whole = number as i64;
    if whole as f64 == number {
        json!(whole)
    } else {
        json!(number)
    }
}

fn enumeration(values: &EnumDescriptor, bounds: &Bounds) -> Value {
    let names: Vec<String> = values
        .values()
        .filter(|v| !bounds.required || v.number() != 0)
        .map(|v| v.name().to_owned())
        .collect();
    json!({ "type": "string", "enum": names })
}
