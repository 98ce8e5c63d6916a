//! Generates `impl Validate` blocks from `tars.policy.v1.field` options.

use prost_reflect::{
    Cardinality, DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor,
    OneofDescriptor, Value,
};
use std::{
    error::Error,
    fmt::{self, Write},
};

/// The field option; zero means the default.
#[derive(Default)]
struct Limits {
    required: bool,
    format: i32,
    min_len: u32,
    max_len: u32,
    gte: Option<f64>,
    lte: Option<f64>,
    max_items: u32,
}

impl Limits {
    fn with_required(&self, required: bool) -> Self {
        Self { required, ..*self }
    }
}

pub(crate) fn generate(pool: &DescriptorPool) -> Result<String, Box<dyn Error>> {
    let mut code = String::new();
    for message in pool.all_messages() {
        let package = message.package_name();
        let tars = package.starts_with("tars.") && package != "tars.policy.v1";
        let ours = tars || package == "grpc.health.v1";
        if ours && !message.is_map_entry() {
            write_message(&mut code, pool, &message)?;
        }
    }
    Ok(code)
}

fn write_message(
    code: &mut String,
    pool: &DescriptorPool,
    message: &MessageDescriptor,
) -> Result<(), Box<dyn Error>> {
    let mut body = String::new();
    for field in message.fields() {
        let limits = limits(pool, &field)?;
        match field.containing_oneof().filter(|o| !o.is_synthetic()) {
            Some(oneof) => write_choice(&mut body, message, &oneof, &field, &limits)?,
            None => write_field(&mut body, &field, &limits)?,
        }
    }
    let (at, out) = if body.is_empty() {
        ("_at", "_out")
    } else {
        ("at", "out")
    };
    writeln!(
        code,
        "impl Validate for {} {{\n    fn validate(&self, {at}: &Path<'_>, {out}: &mut Violations) {{\n{body}    }}\n}}",
        rust_type(message.package_name(), message.full_name())
    )?;
    Ok(())
}

/// Writes the statements that check one field.
fn write_field(
    body: &mut String,
    field: &FieldDescriptor,
    l: &Limits,
) -> Result<(), Box<dyn Error>> {
    let names = Names::of(field);
    if field.is_map() {
        write_map(body, field, &names, l)
    } else if field.cardinality() == Cardinality::Repeated {
        write_repeated(body, field, &names, l)
    } else if let Kind::Message(message) = field.kind() {
        write_nested(body, &message, &names, l)
    } else if field.supports_presence() {
        write_optional(body, field, &names, l)
    } else {
        let value = check(&names.path, &format!("&self.{}", names.ident), field, l)?;
        if !value.is_empty() {
            writeln!(body, "        {value}")?;
        }
        Ok(())
    }
}

/// Writes the statements that check one of the fields of which a message has at most one.
fn write_choice(
    body: &mut String,
    message: &MessageDescriptor,
    oneof: &OneofDescriptor,
    field: &FieldDescriptor,
    l: &Limits,
) -> Result<(), Box<dyn Error>> {
    let value = check(&Names::of(field).path, "v", field, l)?;
    if !value.is_empty() {
        let module = rust_type(message.package_name(), message.full_name());
        let (parents, name) = module.rsplit_once("::").ok_or("a message of no package")?;
        let module = format!("{parents}::{}", snake_case(name));
        let (choice, variant) = (camel_case(oneof.name()), camel_case(field.name()));
        writeln!(
            body,
            "        if let Some({module}::{choice}::{variant}(v)) = &self.{} {{\n            {value}\n        }}",
            rust_ident(oneof.name())
        )?;
    }
    Ok(())
}

/// How generated code refers to a field.
struct Names {
    /// In the struct.
    ident: String,
    /// The expression for its segment of a path.
    segment: String,
    /// The expression for its path.
    path: String,
}

impl Names {
    fn of(field: &FieldDescriptor) -> Self {
        let segment = format!("at.field({:?})", field.name());
        Self {
            ident: rust_ident(field.name()),
            path: format!("&{segment}"),
            segment,
        }
    }
}

fn write_count(body: &mut String, names: &Names, l: &Limits) -> fmt::Result {
    let Names { ident, path, .. } = names;
    writeln!(
        body,
        "        check::count({path}, self.{ident}.len(), {}, {}, out);",
        l.required, l.max_items
    )
}

fn write_map(
    body: &mut String,
    field: &FieldDescriptor,
    names: &Names,
    l: &Limits,
) -> Result<(), Box<dyn Error>> {
    let Kind::Message(entry) = field.kind() else {
        return Err("a map without an entry".into());
    };
    let value = check("&here", "v", &entry.map_entry_value_field(), l)?;
    write_count(body, names, l)?;
    // Other contracts may give the empty key a meaning.
    let ours = field.parent_message().package_name().starts_with("tars.");
    let key = if ours {
        "check::text(&here, k, &TextRule::KEY, out);"
    } else {
        ""
    };
    let items = match value.is_empty() {
        true => format!("k in self.{}.keys()", names.ident),
        false => format!("(k, v) in &self.{}", names.ident),
    };
    let Names { segment, .. } = names;
    writeln!(
        body,
        "        for {items} {{\n            let field = {segment};\n            let here = field.key(k);\n            {key}\n            {value}\n        }}"
    )?;
    Ok(())
}

fn write_repeated(
    body: &mut String,
    field: &FieldDescriptor,
    names: &Names,
    l: &Limits,
) -> Result<(), Box<dyn Error>> {
    let required = l.required && field.kind() == Kind::String;
    let item = check("&here", "v", field, &l.with_required(required))?;
    write_count(body, names, l)?;
    let Names { ident, segment, .. } = names;
    if !item.is_empty() {
        writeln!(
            body,
            "        for (i, v) in self.{ident}.iter().enumerate() {{\n            let field = {segment};\n            let here = field.index(i);\n            {item}\n        }}"
        )?;
    }
    Ok(())
}

fn write_nested(
    body: &mut String,
    message: &MessageDescriptor,
    names: &Names,
    l: &Limits,
) -> Result<(), Box<dyn Error>> {
    let Names { ident, path, .. } = names;
    writeln!(
        body,
        "        check::message({path}, self.{ident}.as_ref(), {}, out);",
        l.required
    )?;
    if l.max_items > 0 && message.full_name() == "google.protobuf.Struct" {
        writeln!(
            body,
            "        if let Some(v) = &self.{ident} {{ check::count({path}, v.fields.len(), false, {}, out); }}",
            l.max_items
        )?;
    }
    Ok(())
}

fn write_optional(
    body: &mut String,
    field: &FieldDescriptor,
    names: &Names,
    l: &Limits,
) -> Result<(), Box<dyn Error>> {
    // An empty string that was given differs from an absent one.
    let required = l.required || (field.kind() == Kind::String && l.min_len > 0);
    let value = check(&names.path, "v", field, &l.with_required(required))?;
    if !value.is_empty() {
        writeln!(
            body,
            "        if let Some(v) = &self.{} {{\n            {value}\n        }}",
            names.ident
        )?;
    }
    Ok(())
}

/// Returns the statement that checks one value, given an expression for a reference to it.
fn check(
    path: &str,
    v: &str,
    field: &FieldDescriptor,
    l: &Limits,
) -> Result<String, Box<dyn Error>> {
    Ok(match field.kind() {
        Kind::String => format!(
            "check::text({path}, {v}, &TextRule {{ required: {}, format: {}, min_len: {}, max_len: {} }}, out);",
            l.required, l.format, l.min_len, l.max_len
        ),
        Kind::Bytes => format!(
            "check::bytes({path}, {v}, {}, {}, out);",
            l.required, l.max_len
        ),
        Kind::Enum(e) => format!(
            "check::enumeration({path}, i32::clone({v}), {}, {}::try_from(i32::clone({v})).is_ok(), out);",
            l.required,
            rust_type(e.package_name(), e.full_name())
        ),
        Kind::Message(_) => format!("{v}.validate({path}, out);"),
        Kind::Bool => String::new(),
        Kind::Double | Kind::Float => number(path, &format!("f64::from(*({v}))"), l),
        _ if l.required || l.gte.is_some() || l.lte.is_some() => {
            number(path, &format!("*({v}) as f64"), l)
        }
        _ => String::new(),
    })
}

fn number(path: &str, v: &str, l: &Limits) -> String {
    format!(
        "check::number({path}, {v}, {}, {:?}, {:?}, out);",
        l.required, l.gte, l.lte
    )
}

fn limits(pool: &DescriptorPool, field: &FieldDescriptor) -> Result<Limits, Box<dyn Error>> {
    let extension = pool
        .get_extension_by_name("tars.policy.v1.field")
        .ok_or("tars.policy.v1.field is not declared")?;
    let options = field.options();
    if !options.has_extension(&extension) {
        return Ok(Limits::default());
    }
    let value = options.get_extension(&extension);
    let rule = value.as_message().ok_or("the field option is a message")?;
    Ok(Limits {
        required: get(rule, "required").as_bool().unwrap_or_default(),
        format: get(rule, "format").as_enum_number().unwrap_or_default(),
        min_len: get(rule, "min_len").as_u32().unwrap_or_default(),
        max_len: get(rule, "max_len").as_u32().unwrap_or_default(),
        gte: bound(rule, "gte"),
        lte: bound(rule, "lte"),
        max_items: get(rule, "max_items").as_u32().unwrap_or_default(),
    })
}

fn get(rule: &DynamicMessage, name: &str) -> Value {
    rule.get_field_by_name(name)
        .map_or(Value::Bool(false), |v| v.into_owned())
}

fn bound(rule: &DynamicMessage, name: &str) -> Option<f64> {
    rule.has_field_by_name(name)
        .then(|| get(rule, name).as_f64())
        .flatten()
}

/// `tars.auth.v1.User` becomes `crate::auth::v1::User`; a nested message is in its parent's module.
fn rust_type(package: &str, full_name: &str) -> String {
    let module = package.trim_start_matches("tars.").replace('.', "::");
    let mut path: Vec<String> = full_name[package.len() + 1..]
        .split('.')
        .map(str::to_owned)
        .collect();
    let parents = path.len() - 1;
    for parent in &mut path[..parents] {
        *parent = snake_case(parent);
    }
    format!("crate::{module}::{}", path.join("::"))
}

fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for (at, c) in name.chars().enumerate() {
        if c.is_uppercase() && at > 0 {
            out.push('_');
        }
        out.extend(c.to_lowercase());
    }
    out
}

fn camel_case(name: &str) -> String {
    let words = name.split('_').map(|word| {
        let (first, rest) = word.split_at(word.len().min(1));
        first.to_uppercase() + rest
    });
    words.collect()
}

fn rust_ident(name: &str) -> String {
    match name {
        "use" | "type" | "ref" | "match" | "move" => format!("r#{name}"),
        _ => name.to_owned(),
    }
}
