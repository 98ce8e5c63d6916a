//! Reads the rule and the routes of a method from its descriptor. All mistakes of a method are reported
//! together.

mod secret;

use super::{
    AuditLevel, Body, Budget, Grants, Load, Method, Principal, RateClass, Route, Rule, Vocabulary,
};
use crate::route::Template;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FileDescriptor, MessageDescriptor, MethodDescriptor, Value,
};
use std::time::Duration;

pub(super) fn method(
    pool: &DescriptorPool,
    method: &MethodDescriptor,
    words: Vocabulary,
) -> Result<Method, Vec<String>> {
    let service = method.parent_service().full_name().to_owned();
    let path = path(method);
    let label = |mistakes: Vec<String>| -> Vec<String> {
        mistakes
            .into_iter()
            .map(|m| format!("{path}: {m}"))
            .collect()
    };
    let mut mistakes = Vec::new();
    let rule = rule(pool, method, words)
        .map_err(|e| mistakes.extend(e))
        .ok();
    let routes = routes(pool, method).map_err(|e| mistakes.extend(e)).ok();
    let (Some(rule), Some(routes)) = (rule, routes) else {
        return Err(label(mistakes));
    };
    let level = idempotency(method);
    Ok(Method {
        index: 0,
        path: path.clone(),
        service,
        name: method.name().to_owned(),
        rule,
        routes,
        server_streaming: method.is_server_streaming(),
        read_only: level == Some(READ_ONLY),
        idempotent: is_idempotent(method),
        secret: secret::is_held(method),
        summary: comment(method),
        descriptor: Some(method.clone()),
    })
}

/// Returns the comment above the method, on one line.
fn comment(method: &MethodDescriptor) -> String {
    comment_at(&method.parent_file(), method.path())
}

/// Returns the comment above the element with this path in a file, on one line; empty when there is none.
pub fn comment_at(file: &FileDescriptor, path: &[i32]) -> String {
    let proto = file.file_descriptor_proto();
    proto
        .source_code_info
        .iter()
        .flat_map(|info| &info.location)
        .find(|l| l.path == path)
        .and_then(|l| l.leading_comments.as_deref())
        .map(|c| c.split_whitespace().collect::<Vec<_>>().join(" "))
        .unwrap_or_default()
}

fn extension(
    pool: &DescriptorPool,
    method: &MethodDescriptor,
    name: &str,
) -> Option<DynamicMessage> {
    let extension = pool.get_extension_by_name(name)?;
    let options = method.options();
    options
        .has_extension(&extension)
        .then(|| options.get_extension(&extension).as_message().cloned())
        .flatten()
}

fn field(message: &DynamicMessage, name: &str) -> Option<Value> {
    message
        .has_field_by_name(name)
        .then(|| message.get_field_by_name(name).map(|v| v.into_owned()))
        .flatten()
}

fn text(message: &DynamicMessage, name: &str) -> Option<String> {
    field(message, name)?.as_str().map(str::to_owned)
}

fn flag(message: &DynamicMessage, name: &str) -> bool {
    field(message, name)
        .and_then(|v| v.as_bool())
        .unwrap_or_default()
}

fn number(message: &DynamicMessage, name: &str) -> i32 {
    field(message, name)
        .and_then(|v| v.as_enum_number())
        .unwrap_or_default()
}

/// The mistakes of a rule, which are reported together.
#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn add(&mut self, mistake: impl Into<String>) {
        self.0.push(mistake.into());
    }

    fn keep<T>(&mut self, read: Result<T, String>) -> Option<T> {
        read.map_err(|mistake| self.0.push(mistake)).ok()
    }
}

fn rule(
    pool: &DescriptorPool,
    method: &MethodDescriptor,
    words: Vocabulary,
) -> Result<Rule, Vec<String>> {
    let Some(option) = extension(pool, method, "tars.policy.v1.rule") else {
        return Err(vec!["has no rule (tars.policy.v1.rule)".into()]);
    };
    let mut mistakes = Mistakes::default();
    let principal = mistakes.keep(principal(&option, words));
    let peers = peers(&option, words, &mut mistakes);
    let rate = mistakes.keep(rate(&option));
    let budget = mistakes.keep(budget(&option)).flatten();
    let audit = mistakes.keep(audit(&option));
    let deadline = deadline(&option);
    if deadline.is_none() && !method.is_server_streaming() {
        mistakes.add("is unary and has no deadline");
    }
    let grants = mistakes.keep(grants(&option, method)).flatten();
    let load = mistakes.keep(load(&option));
    match (principal, rate, audit, load) {
        (Some(principal), Some(rate), Some(audit), Some(load)) if mistakes.0.is_empty() => {
            Ok(Rule {
                principal,
                peers,
                enough: Vec::new(),
                rate,
                budget,
                unmetered: flag(&option, "unmetered"),
                audit,
                deadline,
                grants,
                load,
            })
        }
        _ => Err(mistakes.0),
    }
}

fn budget(option: &DynamicMessage) -> Result<Option<Budget>, String> {
    match number(option, "budget") {
        0 => Ok(None),
        1 => Ok(Some(Budget::Identity)),
        2 => Ok(Some(Budget::KeyChanges)),
        _ => Err("has an unknown budget".into()),
    }
}

fn load(option: &DynamicMessage) -> Result<Load, String> {
    match number(option, "load") {
        0 => Ok(Load::Measured),
        1 => Ok(Load::Vital),
        2 => Ok(Load::Queued),
        _ => Err("has an unknown load".into()),
    }
}

fn rate(option: &DynamicMessage) -> Result<RateClass, String> {
    match number(option, "rate") {
        1 => Ok(RateClass::Auth),
        2 => Ok(RateClass::Public),
        3 => Ok(RateClass::User),
        4 => Ok(RateClass::Internal),
        _ => Err("has no rate class".into()),
    }
}

fn audit(option: &DynamicMessage) -> Result<AuditLevel, String> {
    match number(option, "audit") {
        1 => Ok(AuditLevel::None),
        2 => Ok(AuditLevel::Low),
        3 => Ok(AuditLevel::High),
        4 => Ok(AuditLevel::Critical),
        _ => Err("has no audit level".into()),
    }
}

fn principal(option: &DynamicMessage, words: Vocabulary) -> Result<Principal, String> {
    let public = flag(option, "public");
    let permission = text(option, "permission");
    match (public, permission, number(option, "caller")) {
        (true, None, 0) => Ok(Principal::Public),
        (false, None, 1) => Ok(Principal::Workload),
        (false, None, 2) => Ok(Principal::Peer),
        (false, Some(name), 0) => words.permission(&name).map(Principal::Permission),
        _ => Err("must have exactly one of public, permission and caller".into()),
    }
}

/// Only Auth manages credentials: a new method there that changes something must declare what it grants.
fn grants(option: &DynamicMessage, method: &MethodDescriptor) -> Result<Option<Grants>, String> {
    let service = method.parent_service();
    let keeps_credentials = service.package_name().starts_with("tars.auth.");
    match number(option, "grants") {
        1 => Ok(Some(Grants::Nothing)),
        2 => Ok(Some(Grants::Proven)),
        3 => Ok(Some(Grants::Capped)),
        _ if keeps_credentials && idempotency(method) != Some(READ_ONLY) => {
            Err("changes something in Auth and does not declare what it grants".into())
        }
        _ => Ok(None),
    }
}

/// `NO_SIDE_EFFECTS` and `IDEMPOTENT` of descriptor.proto.
const READ_ONLY: i32 = 1;
const IDEMPOTENT: i32 = 2;

/// Returns the gRPC path of a method.
pub(super) fn path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// Whether a method is declared to have no more effect when it is repeated.
pub(super) fn is_idempotent(method: &MethodDescriptor) -> bool {
    matches!(idempotency(method), Some(READ_ONLY | IDEMPOTENT))
}

/// Whether a method is declared to wait in a queue or for others.
pub(super) fn is_queued(pool: &DescriptorPool, method: &MethodDescriptor) -> bool {
    let rule = extension(pool, method, "tars.policy.v1.rule");
    rule.is_some_and(|rule| load(&rule) == Ok(Load::Queued))
}

fn idempotency(method: &MethodDescriptor) -> Option<i32> {
    let options = method.options();
    let level = options.get_field_by_name("idempotency_level");
    level.and_then(|v| v.as_enum_number())
}

fn peers(option: &DynamicMessage, words: Vocabulary, mistakes: &mut Mistakes) -> Vec<String> {
    let peers = match field(option, "peers") {
        Some(Value::List(peers)) => peers,
        _ => Vec::new(),
    };
    let peers: Vec<String> = peers
        .iter()
        .filter_map(Value::as_str)
        .flat_map(|p| words.classes_of(p))
        .collect();
    if peers.is_empty() {
        mistakes.add("lists no peers");
    }
    let known = |peer: &&String| words.peer_classes.contains(&peer.as_str());
    for unknown in peers.iter().filter(|p| !known(p)) {
        mistakes.add(format!("names the unknown peer class {unknown:?}"));
    }
    peers
}

fn deadline(option: &DynamicMessage) -> Option<Duration> {
    let value = field(option, "deadline")?;
    let message = value.as_message()?;
    let seconds = field(message, "seconds")
        .and_then(|v| v.as_i64())
        .unwrap_or_default();
    let nanos = field(message, "nanos")
        .and_then(|v| v.as_i32())
        .unwrap_or_default();
    Some(Duration::new(
        u64::try_from(seconds).ok()?,
        u32::try_from(nanos).ok()?,
    ))
}

fn routes(pool: &DescriptorPool, method: &MethodDescriptor) -> Result<Vec<Route>, Vec<String>> {
    let Some(rule) = extension(pool, method, "google.api.http") else {
        return Ok(Vec::new());
    };
    let mut bindings = vec![rule.clone()];
    if let Some(Value::List(more)) = field(&rule, "additional_bindings") {
        bindings.extend(more.iter().filter_map(|v| v.as_message().cloned()));
    }
    let (mut routes, mut mistakes) = (Vec::new(), Vec::new());
    for binding in &bindings {
        match route(method, binding) {
            Ok(route) => routes.push(route),
            Err(mistake) => mistakes.push(mistake),
        }
    }
    if mistakes.is_empty() {
        Ok(routes)
    } else {
        Err(mistakes)
    }
}

fn route(method: &MethodDescriptor, binding: &DynamicMessage) -> Result<Route, String> {
    let (verb, path) = ["get", "put", "post", "delete", "patch"]
        .iter()
        .find_map(|v| text(binding, v).map(|path| (v.to_uppercase(), path)))
        .ok_or("has a binding without a path")?;
    let template = Template::parse(&path).map_err(|e| e.to_string())?;
    for variable in template.variables() {
        if !resolves(method.input(), variable) {
            return Err(format!(
                "{path} binds the unknown field {}",
                variable.join(".")
            ));
        }
    }
    let body = match text(binding, "body").as_deref() {
        None | Some("") => Body::None,
        Some("*") => Body::Whole,
        Some(name) if method.input().get_field_by_name(name).is_some() => {
            Body::Field(name.to_owned())
        }
        Some(name) => {
            return Err(format!(
                "{path} takes its body into the unknown field {name}"
            ));
        }
    };
    Ok(Route {
        method: verb,
        template,
        body,
    })
}

fn resolves(mut message: MessageDescriptor, path: &[String]) -> bool {
    for (i, name) in path.iter().enumerate() {
        let Some(field) = message.get_field_by_name(name) else {
            return false;
        };
        let last = i + 1 == path.len();
        match field.kind() {
            prost_reflect::Kind::Message(inner) if !last => message = inner,
            prost_reflect::Kind::Message(_) => return false,
            _ if !last || field.is_list() => return false,
            _ => {}
        }
    }
    true
}
