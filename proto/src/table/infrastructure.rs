//! Health and reflection: their protos are not ours, so their rules are written here.

use super::{AuditLevel, Load, Method, Principal, RateClass, Rule, Vocabulary};
use std::time::Duration;

const HEALTH: &str = "grpc.health.v1.Health";
const REFLECTION: [&str; 2] = [
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

/// Clients keep a reflection stream for as long as they work, and open another one when it ends.
const REFLECTING: Duration = Duration::from_secs(300);

pub(super) fn methods(words: Vocabulary) -> Result<Vec<Method>, String> {
    let (check, reflect) = (health(words), reflection(words)?);
    let watch = Rule {
        deadline: None,
        ..check.clone()
    };
    let mut methods = vec![
        method(HEALTH, "Check", &check, false),
        method(HEALTH, "List", &check, false),
        method(HEALTH, "Watch", &watch, true),
    ];
    let reflections = REFLECTION.map(|s| method(s, "ServerReflectionInfo", &reflect, true));
    methods.extend(reflections);
    Ok(methods)
}

/// The gRPC paths of all of them, and whether their responses are streams; each may be repeated.
pub(super) fn paths() -> impl Iterator<Item = (String, bool)> {
    let health = [("Check", false), ("List", false), ("Watch", true)];
    let health = health.map(|(name, streams)| (format!("/{HEALTH}/{name}"), streams));
    let reflection = REFLECTION.map(|service| (format!("/{service}/ServerReflectionInfo"), true));
    health.into_iter().chain(reflection)
}

/// Every peer with a certificate may call it; a joiner has none.
fn health(words: Vocabulary) -> Rule {
    let known = words.peer_classes.iter().filter(|c| **c != "joiner");
    Rule {
        principal: Principal::Public,
        peers: known.map(|c| (*c).to_owned()).collect(),
        enough: Vec::new(),
        rate: RateClass::Internal,
        budget: None,
        unmetered: true,
        audit: AuditLevel::None,
        deadline: Some(Duration::from_secs(5)),
        grants: None,
        load: Load::Vital,
    }
}

fn reflection(words: Vocabulary) -> Result<Rule, String> {
    Ok(Rule {
        principal: Principal::Permission(words.permission("mesh.reflect")?),
        peers: ["operator", "client"].map(str::to_owned).into(),
        // An operator needs the contract before there is a session to log in with.
        enough: vec!["operator".to_owned()],
        rate: RateClass::User,
        budget: None,
        unmetered: true,
        audit: AuditLevel::None,
        deadline: Some(REFLECTING),
        grants: None,
        load: Load::Measured,
    })
}

fn method(service: &str, name: &str, rule: &Rule, streams: bool) -> Method {
    Method {
        index: 0,
        path: format!("/{service}/{name}"),
        service: service.to_owned(),
        name: name.to_owned(),
        rule: rule.clone(),
        routes: Vec::new(),
        server_streaming: streams,
        read_only: true,
        idempotent: true,
        secret: false,
        summary: String::new(),
        descriptor: None,
    }
}
