//! The method table: every method with its rule and routes, read from the embedded descriptors.
//!
//! It is built once, at start. All mistakes are reported together, and any of them stops the process: a method
//! without a rule must not be reachable by accident.

mod infrastructure;
mod outline;
mod read;

pub use outline::{Outline, outline, outlined};
pub use read::comment_at;

use crate::route::{Router, Template};
use prost_reflect::{DescriptorPool, MessageDescriptor, MethodDescriptor};
use std::{collections::HashMap, fmt, sync::OnceLock, time::Duration};

/// A permission of the vocabulary with which the table was built.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Permission {
    index: usize,
    name: &'static str,
}

impl Permission {
    /// Returns its position in the vocabulary.
    pub fn index(self) -> usize {
        self.index
    }

    /// Returns its name, such as `studies.read`.
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

/// The principal that a method requires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Principal {
    /// Anybody who may connect.
    Public,
    /// A caller who holds this permission.
    Permission(Permission),
    /// A workload of the mesh, by its certificate.
    Workload,
    /// A peer of any class, by its certificate.
    Peer,
}

/// The rate limit to which a method is charged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RateClass {
    /// Logins: a few per minute and address.
    Auth,
    /// Public documents, by address.
    Public,
    /// Calls of people, by user.
    User,
    /// Calls of workloads, by peer.
    Internal,
}

/// A limit to which a method is charged besides its class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Budget {
    /// What callers ask about themselves and their keys.
    Identity,
    /// New secrets of API keys.
    KeyChanges,
}

/// How a method is audited, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AuditLevel {
    /// Never, except for denials.
    None,
    /// While the queue has room.
    Low,
    /// Always: the call is refused when the queue has no room.
    High,
    /// Always, with the severity CRITICAL.
    Critical,
}

/// The access rule of a method.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The principal that the method requires.
    pub principal: Principal,
    /// The peer classes that may call it.
    pub peers: Vec<String>,
    /// The peer classes whose certificate is sufficient, without the principal's credential.
    pub enough: Vec<String>,
    /// The rate limit to which it is charged.
    pub rate: RateClass,
    /// The further limit to which it is charged; `None` for most.
    pub budget: Option<Budget>,
    /// Whether it is neither counted as usage of its caller nor refused for a quota.
    pub unmetered: bool,
    /// How it is audited.
    pub audit: AuditLevel,
    /// Its maximum duration; `None` for a stream without one.
    pub deadline: Option<Duration>,
    /// What it grants; `None` for a method that cannot grant anything.
    pub grants: Option<Grants>,
    /// What it has to do with the load of its process.
    pub load: Load,
}

impl Rule {
    /// Whether the principal is a caller, who has to present a credential.
    pub fn needs_credential(&self) -> bool {
        matches!(self.principal, Principal::Permission(_))
    }

    /// Whether the certificate of this peer class is enough, without the principal's credential.
    pub fn suffices(&self, class: &str) -> bool {
        self.enough.iter().any(|enough| enough == class)
    }
}

/// What a method has to do with the load of its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Load {
    /// How long it takes tells how busy the process is. It may be shed.
    Measured,
    /// It waits in a queue or for others. It may be shed.
    Queued,
    /// It is answered also while the process sheds calls.
    Vital,
}

/// What a call may grant to somebody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Grants {
    /// Nothing.
    Nothing,
    /// Only what the call itself proves a right to.
    Proven,
    /// At most what the caller holds.
    Capped,
}

/// What the body of a request sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// Nothing: there is no body.
    None,
    /// The whole message.
    Whole,
    /// The field of this name.
    Field(String),
}

/// A REST route of a method.
#[derive(Debug, Clone)]
pub struct Route {
    /// The HTTP method.
    pub method: String,
    /// The path.
    pub template: Template,
    /// What the body sets.
    pub body: Body,
}

/// A method of the contract.
#[derive(Debug, Clone)]
pub struct Method {
    /// Its position in the table. Positions are dense, so that per-method state can be a vector.
    pub index: usize,
    /// The gRPC path, such as `/tars.auth.v1.AuthService/Login`.
    pub path: String,
    /// The full name of the service, such as `tars.auth.v1.AuthService`.
    pub service: String,
    /// The method's name, without its service.
    pub name: String,
    /// The access rule.
    pub rule: Rule,
    /// The REST routes; empty for a method without any.
    pub routes: Vec<Route>,
    /// Whether the response is a stream.
    pub server_streaming: bool,
    /// Whether it changes nothing, and may be served with a stale view of credentials.
    pub read_only: bool,
    /// Whether it may be repeated.
    pub idempotent: bool,
    /// Whether its request or its response holds a secret: a field that is marked with `debug_redact`.
    pub secret: bool,
    /// The comment above the method in the contract.
    pub summary: String,
    /// `None` for health and reflection, which are not part of our descriptors.
    pub descriptor: Option<MethodDescriptor>,
}

impl Method {
    /// Returns the workload that serves the method, such as `auth`; `None` for health and reflection.
    pub fn workload(&self) -> Option<&str> {
        self.service.strip_prefix("tars.")?.split('.').next()
    }

    /// Returns whether the mesh calls the method on its own behalf, for which no trace is recorded.
    pub fn is_infrastructure(&self) -> bool {
        self.rule.rate == RateClass::Internal || self.workload().is_none()
    }

    /// Returns the type of the request message.
    pub fn input(&self) -> Option<MessageDescriptor> {
        self.descriptor.as_ref().map(MethodDescriptor::input)
    }
}

/// The methods of the contract.
#[derive(Debug)]
pub struct MethodTable {
    methods: Vec<Method>,
    by_path: HashMap<String, usize>,
}

/// Every mistake in the contract.
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
    /// The classes of peers.
    pub peer_classes: &'static [&'static str],
    /// The classes that the word `service` in a rule stands for.
    pub services: &'static [&'static str],
    /// The permissions.
    pub permissions: &'static [&'static str],
}

/// The word for the classes of all services except Auth.
const SERVICE: &str = "service";

impl Vocabulary {
    /// Returns the classes that a word in a rule's `peers` stands for.
    fn classes_of(self, word: &str) -> Vec<String> {
        match word {
            SERVICE => self.services.iter().map(|s| (*s).to_owned()).collect(),
            class => vec![class.to_owned()],
        }
    }

    fn permission(self, name: &str) -> Result<Permission, String> {
        let mut known = self.permissions.iter().copied().enumerate();
        known
            .find(|(_, known)| *known == name)
            .map(|(index, name)| Permission { index, name })
            .ok_or_else(|| format!("names the unknown permission {name:?}"))
    }
}

/// Returns the pool of the embedded descriptors.
pub fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        DescriptorPool::decode(crate::DESCRIPTOR_SET)
            .expect("build.rs wrote the descriptor set from a compiled pool")
    })
}

impl MethodTable {
    /// Builds the table of the embedded contract.
    ///
    /// # Errors
    ///
    /// Every mistake in the contract.
    pub fn build(words: Vocabulary) -> Result<Self, ContractErrors> {
        Self::from_pool(pool(), words)
    }

    /// Builds the table of the services in `pool` whose package begins with `tars.`.
    ///
    /// # Errors
    ///
    /// Every mistake in the contract.
    pub(crate) fn from_pool(
        pool: &DescriptorPool,
        words: Vocabulary,
    ) -> Result<Self, ContractErrors> {
        let mut mistakes = Vec::new();
        let mut methods = Vec::new();
        for service in pool
            .services()
            .filter(|s| s.package_name().starts_with("tars."))
        {
            for method in service.methods() {
                match read::method(pool, &method, words) {
                    Ok(read) => methods.push(read),
                    Err(found) => mistakes.extend(found),
                }
            }
        }
        match infrastructure::methods(words) {
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

    /// Returns the method with this gRPC path.
    pub fn get(&self, path: &str) -> Option<&Method> {
        self.by_path.get(path).map(|i| &self.methods[*i])
    }

    /// Iterates over all methods in the order of their positions.
    pub fn iter(&self) -> std::slice::Iter<'_, Method> {
        self.methods.iter()
    }

    /// Returns the number of methods.
    pub fn len(&self) -> usize {
        self.methods.len()
    }

    /// Returns whether there is no method.
    pub fn is_empty(&self) -> bool {
        self.methods.is_empty()
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    const CLASSES: &[&str] = &["gateway"];

    #[test]
    fn unknown_words_are_all_reported() {
        let words = Vocabulary {
            peer_classes: &["gateway"],
            services: &["automl"],
            permissions: &["mesh.reflect"],
        };
        let errors = MethodTable::build(words).unwrap_err();
        let text = errors.to_string();
        for class in ["operator", "automl"] {
            let expected = format!("unknown peer class {class:?}");
            assert!(text.contains(&expected), "{expected}\n{text}");
        }
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
            services: &[],
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
    fn a_method_of_auth_that_changes_something_declares_what_it_grants() {
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
            services: &[],
            permissions: &["mesh.reflect"],
        };
        let pool = compile_in("tars.auth.v9", &methods);
        let ContractErrors(mistakes) = MethodTable::from_pool(&pool, words).unwrap_err();
        assert_eq!(
            mistakes,
            [
                "/tars.auth.v9.S/Silent: changes something in Auth and does not declare what it grants"
            ]
        );
        let elsewhere = MethodTable::from_pool(&compile(&methods), words).unwrap();
        let says = elsewhere.get("/tars.x.v1.S/Says").unwrap();
        assert_eq!(says.rule.grants, Some(Grants::Capped));
    }
}
