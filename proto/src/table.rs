//! The method table: every method with its rule and routes, read from the embedded descriptors.
//!
//! Built once at start. All mistakes are reported together, and any one of them stops the process:
//! a method that nobody wrote a rule for must not be reachable by accident.

use crate::route::{Router, Template};
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor, Value};
use std::{collections::HashMap, fmt, sync::OnceLock, time::Duration};

/// A permission that the contract names: one of the vocabulary that the table was built with.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permission {
    index: usize,
    name: &'static str,
}

impl Permission {
    /// Its position in the vocabulary.
    pub fn index(self) -> usize {
        self.index
    }

    pub fn as_str(self) -> &'static str {
        self.name
    }
}

impl fmt::Debug for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.name, f)
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Whose credential a method asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Principal {
    Public,
    Permission(Permission),
    Workload,
    /// The peer's certificate, of whatever class.
    Peer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RateClass {
    Auth,
    Public,
    User,
    Internal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuditLevel {
    None,
    Low,
    High,
    Critical,
}

#[derive(Debug, Clone)]
pub struct Rule {
    pub principal: Principal,
    pub peers: Vec<String>,
    /// Peer classes whose certificate is enough, without the principal's credential.
    pub enough: Vec<String>,
    pub rate: RateClass,
    pub audit: AuditLevel,
    pub deadline: Option<Duration>,
    /// `None` where a method cannot grant anything.
    pub grants: Option<Grants>,
}

/// What a call may leave somebody with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Grants {
    Nothing,
    /// What the call itself proves a right to.
    Proven,
    /// At most what the caller holds.
    Capped,
}

/// What a request's body fills.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    None,
    Whole,
    Field(String),
}

#[derive(Debug, Clone)]
pub struct Route {
    pub method: String,
    pub template: Template,
    pub body: Body,
}

#[derive(Debug, Clone)]
pub struct Method {
    /// Position in the table; dense, so that per-method state can be a vector.
    pub index: usize,
    /// `/tars.auth.v1.AuthService/Login`.
    pub path: String,
    /// `tars.auth.v1.AuthService`.
    pub service: String,
    pub name: String,
    pub rule: Rule,
    pub routes: Vec<Route>,
    pub server_streaming: bool,
    /// Changes nothing: may be served with a stale view of credentials.
    pub read_only: bool,
    pub idempotent: bool,
    pub summary: String,
    /// `None` for health and reflection, which are not in our descriptors.
    pub descriptor: Option<MethodDescriptor>,
}

impl Method {
    /// `auth`, `orchestration`, …: the workload that serves the method.
    pub fn workload(&self) -> Option<&str> {
        self.service.strip_prefix("tars.")?.split('.').next()
    }

    /// Whether the mesh calls it for itself rather than for somebody: what begins with it is not
    /// worth a trace.
    pub fn is_infrastructure(&self) -> bool {
        self.rule.rate == RateClass::Internal || self.workload().is_none()
    }

    pub fn input(&self) -> Option<MessageDescriptor> {
        self.descriptor.as_ref().map(MethodDescriptor::input)
    }
}

#[derive(Debug)]
pub struct MethodTable {
    methods: Vec<Method>,
    by_path: HashMap<String, usize>,
}

/// All that is wrong with the contract.
#[derive(Debug)]
pub struct ContractErrors(pub Vec<String>);

impl fmt::Display for ContractErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the contract has {} mistake(s):", self.0.len())?;
        for mistake in &self.0 {
            writeln!(f, "  - {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ContractErrors {}

/// The words that rules may use.
#[derive(Debug, Clone, Copy)]
pub struct Vocabulary {
    pub peer_classes: &'static [&'static str],
    pub permissions: &'static [&'static str],
}

impl Vocabulary {
    fn permission(self, name: &str) -> Result<Permission, String> {
        let mut known = self.permissions.iter().copied().enumerate();
        known
            .find(|(_, known)| *known == name)
            .map(|(index, name)| Permission { index, name })
            .ok_or_else(|| format!("names the unknown permission {name:?}"))
    }
}

/// The pool of embedded descriptors.
pub fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        DescriptorPool::decode(crate::DESCRIPTOR_SET)
            .expect("build.rs wrote the descriptor set from a compiled pool")
    })
}

impl MethodTable {
    pub fn build(words: Vocabulary) -> Result<Self, ContractErrors> {
        Self::from_pool(pool(), words)
    }

    pub fn from_pool(pool: &DescriptorPool, words: Vocabulary) -> Result<Self, ContractErrors> {
        let mut mistakes = Vec::new();
        let mut methods = Vec::new();
        for service in pool
            .services()
            .filter(|s| s.package_name().starts_with("tars."))
        {
            for method in service.methods() {
                match read_method(pool, &method, words) {
                    Ok(read) => methods.push(read),
                    Err(found) => mistakes.extend(found),
                }
            }
        }
        match infrastructure(words) {
            Ok(ours) => methods.extend(ours),
            Err(mistake) => mistakes.push(mistake),
        }
        for (index, method) in methods.iter_mut().enumerate() {
            method.index = index;
        }
        mistakes.extend(ambiguous_routes(&methods));
        if !mistakes.is_empty() {
            return Err(ContractErrors(mistakes));
        }
        let by_path = methods.iter().map(|m| (m.path.clone(), m.index)).collect();
        Ok(Self { methods, by_path })
    }

    pub fn get(&self, path: &str) -> Option<&Method> {
        self.by_path.get(path).map(|i| &self.methods[*i])
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Method> {
        self.methods.iter()
    }

    pub fn len(&self) -> usize {
        self.methods.len()
    }

    pub fn is_empty(&self) -> bool {
        self.methods.is_empty()
    }
}

/// Health and reflection come from libraries; their rules are written here.
fn infrastructure(words: Vocabulary) -> Result<Vec<Method>, String> {
    let health = Rule {
        principal: Principal::Public,
        peers: [
            "auth",
            "orchestration",
            "automl",
            "hypersync",
            "gateway",
            "operator",
            "client",
            "worker",
        ]
        .map(str::to_owned)
        .into(),
        enough: Vec::new(),
        rate: RateClass::Internal,
        audit: AuditLevel::None,
        deadline: Some(Duration::from_secs(5)),
        grants: None,
    };
    let reflection = Rule {
        principal: Principal::Permission(words.permission("mesh.reflect")?),
        peers: ["operator", "client"].map(str::to_owned).into(),
        // Whoever holds it reads the contract before there is a login to be had.
        enough: vec!["operator".to_owned()],
        rate: RateClass::User,
        audit: AuditLevel::None,
        // Clients keep the stream for as long as they work, and open another when it ends.
        deadline: Some(Duration::from_secs(300)),
        grants: None,
    };
    let entry = |service: &str, name: &str, rule: &Rule, streaming| Method {
        index: 0,
        path: format!("/{service}/{name}"),
        service: service.to_owned(),
        name: name.to_owned(),
        rule: rule.clone(),
        routes: Vec::new(),
        server_streaming: streaming,
        read_only: true,
        idempotent: true,
        summary: String::new(),
        descriptor: None,
    };
    let watch = Rule {
        deadline: None,
        ..health.clone()
    };
    Ok(vec![
        entry("grpc.health.v1.Health", "Check", &health, false),
        entry("grpc.health.v1.Health", "List", &health, false),
        entry("grpc.health.v1.Health", "Watch", &watch, true),
        entry(
            "grpc.reflection.v1.ServerReflection",
            "ServerReflectionInfo",
            &reflection,
            true,
        ),
        entry(
            "grpc.reflection.v1alpha.ServerReflection",
            "ServerReflectionInfo",
            &reflection,
            true,
        ),
    ])
}

fn ambiguous_routes(methods: &[Method]) -> Vec<String> {
    let mut router = Router::default();
    let mut mistakes = Vec::new();
    for method in methods {
        for route in &method.routes {
            if let Err(taken) = router.insert(&route.method, route.template.clone(), ()) {
                mistakes.push(format!(
                    "{}: {} {} takes the same paths as {taken}",
                    method.path, route.method, route.template
                ));
            }
        }
    }
    mistakes
}

fn read_method(
    pool: &DescriptorPool,
    method: &MethodDescriptor,
    words: Vocabulary,
) -> Result<Method, Vec<String>> {
    let service = method.parent_service().full_name().to_owned();
    let path = format!("/{service}/{}", method.name());
    let label = |mistakes: Vec<String>| -> Vec<String> {
        mistakes
            .into_iter()
            .map(|m| format!("{path}: {m}"))
            .collect()
    };
    let mut mistakes = Vec::new();
    let rule = read_rule(pool, method, words)
        .map_err(|e| mistakes.extend(e))
        .ok();
    let routes = read_routes(pool, method)
        .map_err(|e| mistakes.extend(e))
        .ok();
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
        idempotent: matches!(level, Some(READ_ONLY | IDEMPOTENT)),
        summary: comment(method),
        descriptor: Some(method.clone()),
    })
}

/// The comment above the method, on one line.
fn comment(method: &MethodDescriptor) -> String {
    let file = method.parent_file();
    let proto = file.file_descriptor_proto();
    let path = method.path();
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

fn number(message: &DynamicMessage, name: &str) -> i32 {
    field(message, name)
        .and_then(|v| v.as_enum_number())
        .unwrap_or_default()
}

fn read_rule(
    pool: &DescriptorPool,
    method: &MethodDescriptor,
    words: Vocabulary,
) -> Result<Rule, Vec<String>> {
    let Some(option) = extension(pool, method, "tars.policy.v1.rule") else {
        return Err(vec!["has no rule (tars.policy.v1.rule)".into()]);
    };
    let mut mistakes = Vec::new();
    let principal = read_principal(&option, words)
        .map_err(|e| mistakes.push(e))
        .ok();
    let peers = read_peers(&option);
    if peers.is_empty() {
        mistakes.push("lists no peers".into());
    }
    for unknown in peers
        .iter()
        .filter(|p| !words.peer_classes.contains(&p.as_str()))
    {
        mistakes.push(format!("names the unknown peer class {unknown:?}"));
    }
    let rate = match number(&option, "rate") {
        1 => Some(RateClass::Auth),
        2 => Some(RateClass::Public),
        3 => Some(RateClass::User),
        4 => Some(RateClass::Internal),
        _ => None,
    };
    let audit = match number(&option, "audit") {
        1 => Some(AuditLevel::None),
        2 => Some(AuditLevel::Low),
        3 => Some(AuditLevel::High),
        4 => Some(AuditLevel::Critical),
        _ => None,
    };
    if rate.is_none() {
        mistakes.push("has no rate class".into());
    }
    if audit.is_none() {
        mistakes.push("has no audit level".into());
    }
    let deadline = read_deadline(&option);
    if deadline.is_none() && !method.is_server_streaming() {
        mistakes.push("is unary and has no deadline".into());
    }
    let grants = read_grants(&option, method)
        .map_err(|e| mistakes.push(e))
        .ok()
        .flatten();
    match (principal, rate, audit) {
        (Some(principal), Some(rate), Some(audit)) if mistakes.is_empty() => Ok(Rule {
            principal,
            peers,
            enough: Vec::new(),
            rate,
            audit,
            deadline,
            grants,
        }),
        _ => Err(mistakes),
    }
}

fn read_principal(option: &DynamicMessage, words: Vocabulary) -> Result<Principal, String> {
    let public = field(option, "public")
        .and_then(|v| v.as_bool())
        .unwrap_or_default();
    let permission = text(option, "permission");
    match (public, permission, number(option, "caller")) {
        (true, None, 0) => Ok(Principal::Public),
        (false, None, 1) => Ok(Principal::Workload),
        (false, None, 2) => Ok(Principal::Peer),
        (false, Some(name), 0) => words.permission(&name).map(Principal::Permission),
        _ => Err("must have exactly one of public, permission and caller".into()),
    }
}

/// Only Auth keeps credentials. Whoever adds a method there that changes something must have thought
/// about what it gives away.
fn read_grants(
    option: &DynamicMessage,
    method: &MethodDescriptor,
) -> Result<Option<Grants>, String> {
    let service = method.parent_service();
    let keeps_credentials = service.package_name().starts_with("tars.auth.");
    match number(option, "grants") {
        1 => Ok(Some(Grants::Nothing)),
        2 => Ok(Some(Grants::Proven)),
        3 => Ok(Some(Grants::Capped)),
        _ if keeps_credentials && idempotency(method) != Some(READ_ONLY) => {
            Err("changes something in Auth and does not say what it grants".into())
        }
        _ => Ok(None),
    }
}

/// `NO_SIDE_EFFECTS` and `IDEMPOTENT` of descriptor.proto.
const READ_ONLY: i32 = 1;
const IDEMPOTENT: i32 = 2;

fn idempotency(method: &MethodDescriptor) -> Option<i32> {
    let options = method.options();
    let level = options.get_field_by_name("idempotency_level");
    level.and_then(|v| v.as_enum_number())
}

fn read_peers(option: &DynamicMessage) -> Vec<String> {
    let Some(Value::List(peers)) = field(option, "peers") else {
        return Vec::new();
    };
    peers
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

fn read_deadline(option: &DynamicMessage) -> Option<Duration> {
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

fn read_routes(
    pool: &DescriptorPool,
    method: &MethodDescriptor,
) -> Result<Vec<Route>, Vec<String>> {
    let Some(rule) = extension(pool, method, "google.api.http") else {
        return Ok(Vec::new());
    };
    let mut bindings = vec![rule.clone()];
    if let Some(Value::List(more)) = field(&rule, "additional_bindings") {
        bindings.extend(more.iter().filter_map(|v| v.as_message().cloned()));
    }
    let (mut routes, mut mistakes) = (Vec::new(), Vec::new());
    for binding in &bindings {
        match read_route(method, binding) {
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

fn read_route(method: &MethodDescriptor, binding: &DynamicMessage) -> Result<Route, String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: &[&str] = &[
        "auth",
        "orchestration",
        "automl",
        "hypersync",
        "gateway",
        "worker",
        "operator",
        "client",
        "joiner",
    ];

    const PERMISSIONS: &[&str] = &[
        "session.self",
        "users.read",
        "users.write",
        "apikeys.read",
        "apikeys.write",
        "signingkeys.read",
        "audit.read",
        "certificates.read",
        "certificates.issue",
        "certificates.revoke",
        "certificates.roots",
        "agents.read",
        "agents.step",
        "agents.reload",
        "agents.release",
        "games.solve",
        "training.read",
        "training.write",
        "studies.read",
        "studies.write",
        "proposals.read",
        "proposals.write",
        "proposals.approve",
        "proposals.apply",
        "mesh.reflect",
    ];

    #[test]
    fn the_embedded_contract_is_sound() {
        let table = MethodTable::build(Vocabulary {
            peer_classes: CLASSES,
            permissions: PERMISSIONS,
        })
        .unwrap();
        let login = table.get("/tars.auth.v1.AuthService/Login").unwrap();
        assert_eq!(login.rule.principal, Principal::Public);
        assert_eq!(login.routes[0].template.to_string(), "/auth/login");
        assert_eq!(login.workload(), Some("auth"));
        assert!(!login.summary.is_empty());
        assert!(table.get("/tars.auth.v1.AuthService/Nothing").is_none());
    }

    #[test]
    fn unknown_words_are_all_reported() {
        let words = Vocabulary {
            peer_classes: &["gateway"],
            permissions: &["mesh.reflect"],
        };
        let errors = MethodTable::build(words).unwrap_err();
        let text = errors.to_string();
        assert!(text.contains("unknown peer class \"operator\""), "{text}");
        assert!(
            text.contains("unknown permission \"users.write\""),
            "{text}"
        );
    }

    fn compile(methods: &str) -> DescriptorPool {
        compile_in("tars.x.v1", methods)
    }

    fn compile_in(package: &str, methods: &str) -> DescriptorPool {
        let source = format!(
            "syntax = \"proto3\"; package {package}; import \"google/api/annotations.proto\";
             import \"tars/policy/v1/policy.proto\";
             message Q {{ string id = 1; repeated string many = 2; }} message R {{}}
             service S {{ {methods} }}"
        );
        let mut files = protox::file::ChainFileResolver::new();
        files.add(Source(source));
        files.add(protox::file::IncludeFileResolver::new(
            env!("CARGO_MANIFEST_DIR").into(),
        ));
        files.add(protox::file::GoogleFileResolver::new());
        let mut compiler = protox::Compiler::with_file_resolver(files);
        compiler.include_imports(true).open_file("x.proto").unwrap();
        DescriptorPool::decode(compiler.encode_file_descriptor_set().as_slice()).unwrap()
    }

    struct Source(String);

    impl protox::file::FileResolver for Source {
        fn open_file(&self, name: &str) -> Result<protox::file::File, protox::Error> {
            if name == "x.proto" {
                protox::file::File::from_source(name, &self.0)
            } else {
                Err(protox::Error::file_not_found(name))
            }
        }
    }

    #[test]
    fn a_method_without_a_sound_rule_or_route_stops_the_process() {
        let pool = compile(
            "rpc A(Q) returns (R);
             rpc B(Q) returns (R) { option (tars.policy.v1.rule) = { public: true permission: \"p\" peers: [\"gateway\"] rate: RATE_CLASS_USER audit: AUDIT_LEVEL_NONE deadline { seconds: 1 } }; }
             rpc C(Q) returns (R) { option (google.api.http) = { get: \"/x/{nope}\" };
               option (tars.policy.v1.rule) = { public: true peers: [\"gateway\"] rate: RATE_CLASS_USER audit: AUDIT_LEVEL_NONE deadline { seconds: 1 } }; }
             rpc D(Q) returns (R) { option (google.api.http) = { get: \"/y/{id}\" additional_bindings { get: \"/y/*\" } };
               option (tars.policy.v1.rule) = { public: true peers: [\"gateway\"] rate: RATE_CLASS_USER audit: AUDIT_LEVEL_NONE deadline { seconds: 1 } }; }
             rpc E(Q) returns (R) { option (tars.policy.v1.rule) = { public: true }; }",
        );
        let words = Vocabulary {
            peer_classes: CLASSES,
            permissions: &["mesh.reflect"],
        };
        let text = MethodTable::from_pool(&pool, words)
            .unwrap_err()
            .to_string();
        for expected in [
            "/tars.x.v1.S/A: has no rule",
            "/tars.x.v1.S/B: must have exactly one of",
            "/tars.x.v1.S/C: /x/{nope} binds the unknown field nope",
            "/tars.x.v1.S/D: GET /y/* takes the same paths as /y/{id}",
            "/tars.x.v1.S/E: lists no peers",
            "/tars.x.v1.S/E: has no rate class",
            "/tars.x.v1.S/E: is unary and has no deadline",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }

    #[test]
    fn what_changes_something_in_auth_says_what_it_grants() {
        let rule = |grants: &str| {
            format!(
                "option (tars.policy.v1.rule) = {{ public: true peers: [\"gateway\"] rate: RATE_CLASS_USER \
                 audit: AUDIT_LEVEL_NONE {grants} deadline {{ seconds: 1 }} }};"
            )
        };
        let methods = format!(
            "rpc Silent(Q) returns (R) {{ {} }}
             rpc Reads(Q) returns (R) {{ option idempotency_level = NO_SIDE_EFFECTS; {} }}
             rpc Says(Q) returns (R) {{ {} }}",
            rule(""),
            rule(""),
            rule("grants: GRANTS_CAPPED")
        );
        let words = Vocabulary {
            peer_classes: CLASSES,
            permissions: &["mesh.reflect"],
        };
        let pool = compile_in("tars.auth.v9", &methods);
        let ContractErrors(mistakes) = MethodTable::from_pool(&pool, words).unwrap_err();
        assert_eq!(
            mistakes,
            ["/tars.auth.v9.S/Silent: changes something in Auth and does not say what it grants"]
        );
        let elsewhere = MethodTable::from_pool(&compile(&methods), words).unwrap();
        let says = elsewhere.get("/tars.x.v1.S/Says").unwrap();
        assert_eq!(says.rule.grants, Some(Grants::Capped));
    }
}
