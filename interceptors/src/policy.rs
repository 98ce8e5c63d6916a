//! The peer policy: which peers may make which calls. The contract's rules are the maximum, which a
//! file can narrow but never widen. A file with a mistake is not applied: the previous policy stays.
//!
//! ```toml
//! [[rule]]
//! name = "only the bot starts studies"
//! methods = ["tars.automl.v1.StudyService/CreateStudy"]
//! peers = ["gateway", "client"]       # classes; default: those of the contract
//! ids = ["/gateway", "/client/bot"]   # SPIFFE paths, `*` matches one segment; default: any
//! ```
//!
//! A call must satisfy the contract and every rule that names its method. `deny = true` denies a
//! method to everybody.

use crate::contract;
use arc_swap::ArcSwap;
use serde::Deserialize;
use std::{collections::HashMap, fmt, sync::Arc};
use tars_certs::{
    PeerClass, SpiffeId,
    class::{PathPattern, PatternError},
};
use tars_proto::table::{Method, MethodTable};

/// Maximum size of a policy file in bytes.
pub const MAX_BYTES: usize = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "rule")]
    rules: Vec<FileRule>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRule {
    name: String,
    methods: Vec<String>,
    peers: Option<Vec<String>>,
    ids: Option<Vec<String>>,
    #[serde(default)]
    deny: bool,
}

/// Every mistake in a policy file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyErrors(pub Vec<String>);

impl fmt::Display for PolicyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the policy has {} mistake(s):", self.0.len())?;
        for mistake in &self.0 {
            write!(f, "\n  - {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for PolicyErrors {}

/// A rule of a policy file: which peers of the contract it leaves.
#[derive(Debug)]
struct Narrowing {
    name: String,
    classes: u16,
    ids: Option<Vec<PathPattern>>,
}

impl Narrowing {
    fn refuses(&self, class: PeerClass, id: Option<&SpiffeId>) -> bool {
        let known = self
            .ids
            .as_ref()
            .is_none_or(|ids| id.is_some_and(|id| ids.iter().any(|pattern| pattern.matches(id))));
        self.classes & class.bit() == 0 || !known
    }
}

#[derive(Debug, Default)]
struct Entry {
    contract: u16,
    rules: Vec<Arc<Narrowing>>,
}

/// The contract as narrowed by a policy file.
#[derive(Debug)]
pub struct Policy {
    /// By method index.
    entries: Vec<Entry>,
    rules: usize,
}

/// Why a peer may not make a call. For the log and for operators; a peer is never told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// No class pattern matches the peer's id.
    UnknownClass,
    /// The contract does not list the peer's class.
    Contract,
    /// The rule with this name excludes the peer.
    Rule(String),
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownClass => f.write_str("no class pattern matches the peer's id"),
            Self::Contract => f.write_str("the contract does not list the peer's class"),
            Self::Rule(name) => write!(f, "the policy rule {name:?} excludes the peer"),
        }
    }
}

fn bits(classes: impl IntoIterator<Item = PeerClass>) -> u16 {
    classes.into_iter().fold(0, |all, c| all | c.bit())
}

impl Policy {
    /// Returns the policy of the contract alone.
    pub fn contract(table: &MethodTable) -> Self {
        let classes = |m: &Method| bits(m.rule.peers.iter().filter_map(|p| PeerClass::parse(p)));
        let entries = table.iter().map(|m| Entry {
            contract: classes(m),
            rules: Vec::new(),
        });
        Self {
            entries: entries.collect(),
            rules: 0,
        }
    }

    /// Parses a policy file that narrows the contract.
    ///
    /// # Errors
    ///
    /// Every mistake in the file, not only the first.
    pub fn parse(text: &str, table: &MethodTable) -> Result<Self, PolicyErrors> {
        if text.len() > MAX_BYTES {
            return Err(PolicyErrors(vec![format!(
                "is larger than {MAX_BYTES} bytes"
            )]));
        }
        let file: File =
            toml::from_str(text).map_err(|e| PolicyErrors(vec![e.message().to_owned()]))?;
        if file.rules.is_empty() {
            // An editor that truncates the file before it writes must not lift every restriction.
            let mistake = "has no rule; leave policy.file out to run by the contract alone";
            return Err(PolicyErrors(vec![mistake.to_owned()]));
        }
        let mut policy = Self::contract(table);
        policy.rules = file.rules.len();
        let (mut mistakes, mut names) = (Vec::new(), HashMap::new());
        for (at, rule) in file.rules.into_iter().enumerate() {
            let what = format!("rule {} ({:?})", at + 1, rule.name);
            if let Some(first) = names.insert(rule.name.clone(), at + 1) {
                mistakes.push(format!("{what}: has the name of rule {first}"));
            }
            for mistake in policy.narrow(rule, table) {
                mistakes.push(format!("{what}: {mistake}"));
            }
        }
        if mistakes.is_empty() {
            Ok(policy)
        } else {
            Err(PolicyErrors(mistakes))
        }
    }

    fn narrow(&mut self, rule: FileRule, table: &MethodTable) -> Vec<String> {
        let mut mistakes = Vec::new();
        let mut methods = Vec::new();
        for pattern in &rule.methods {
            let found: Vec<&Method> = table.iter().filter(|m| names(pattern, m)).collect();
            if found.is_empty() {
                mistakes.push(format!("no method is called {pattern:?}"));
            }
            methods.extend(found);
        }
        if rule.methods.is_empty() {
            mistakes.push("names no methods".to_owned());
        }
        if rule.deny == (rule.peers.is_some() || rule.ids.is_some()) {
            mistakes.push("must have either deny, or peers or ids".to_owned());
        }
        let most = methods
            .iter()
            .fold(0, |all, m| all | self.entries[m.index].contract);
        let classes = classes(rule.peers.as_deref(), most, &mut mistakes);
        let ids = rule.ids.map(|ids| patterns(&ids, &mut mistakes));
        let narrowing = Arc::new(Narrowing {
            name: rule.name,
            classes: if rule.deny { 0 } else { classes },
            ids,
        });
        for method in methods {
            self.entries[method.index]
                .rules
                .push(Arc::clone(&narrowing));
        }
        mistakes
    }

    /// Returns the number of rules in the policy file; zero for the contract alone.
    pub fn rules(&self) -> usize {
        self.rules
    }

    /// Decides whether a peer of this class and id may call `method`.
    ///
    /// # Errors
    ///
    /// Why it may not.
    pub fn decide(
        &self,
        method: &Method,
        class: Option<PeerClass>,
        id: Option<&SpiffeId>,
    ) -> Result<(), Denial> {
        let class = class.ok_or(Denial::UnknownClass)?;
        let entry = self.entries.get(method.index).ok_or(Denial::Contract)?;
        if entry.contract & class.bit() == 0 {
            return Err(Denial::Contract);
        }
        match entry.rules.iter().find(|r| r.refuses(class, id)) {
            Some(rule) => Err(Denial::Rule(rule.name.clone())),
            None => Ok(()),
        }
    }

    /// Returns the classes that may call a method, and the names of the rules that narrow it further.
    pub fn describe(&self, method: &Method) -> (Vec<&'static str>, Vec<&str>) {
        let Some(entry) = self.entries.get(method.index) else {
            return (Vec::new(), Vec::new());
        };
        let left = entry
            .rules
            .iter()
            .fold(entry.contract, |all, r| all & r.classes);
        let classes = PeerClass::ALL.into_iter().filter(|c| left & c.bit() != 0);
        let rules = entry.rules.iter().map(|r| r.name.as_str());
        (classes.map(PeerClass::as_str).collect(), rules.collect())
    }
}

/// `package.Service/Method`, or `package.Service/*`.
fn names(pattern: &str, method: &Method) -> bool {
    match pattern.strip_suffix("/*") {
        Some(service) => method.service == service,
        None => method.path.strip_prefix('/') == Some(pattern),
    }
}

/// A class that no method of the rule admits would have no effect, which is a mistake.
fn classes(names: Option<&[String]>, most: u16, mistakes: &mut Vec<String>) -> u16 {
    let Some(names) = names else {
        return u16::MAX;
    };
    let mut all = 0;
    for name in names {
        match PeerClass::parse(name) {
            None => mistakes.push(format!("there is no peer class {name:?}")),
            Some(class) if most & class.bit() == 0 => mistakes.push(format!(
                "the contract does not let {name:?} in, and a policy can only narrow it"
            )),
            Some(class) => all |= class.bit(),
        }
    }
    all
}

fn patterns(texts: &[String], mistakes: &mut Vec<String>) -> Vec<PathPattern> {
    let parsed = texts.iter().map(|t| t.parse());
    let split: (Vec<_>, Vec<_>) = parsed.partition(Result::is_ok);
    mistakes.extend(
        split
            .1
            .into_iter()
            .filter_map(|e: Result<PathPattern, PatternError>| Some(e.err()?.to_string())),
    );
    split.0.into_iter().filter_map(Result::ok).collect()
}

/// The policy in force, which is replaced as a whole. Clones share it.
#[derive(Debug, Clone)]
pub struct PolicyHandle(Arc<ArcSwap<Policy>>);

impl PolicyHandle {
    /// Creates a handle to a policy.
    pub fn new(policy: Policy) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(policy)))
    }

    /// Returns the policy in force.
    pub fn current(&self) -> Arc<Policy> {
        self.0.load_full()
    }

    /// Replaces the policy for new calls and for open streams.
    pub fn replace(&self, policy: Policy) {
        self.0.store(Arc::new(policy));
    }

    /// Decides whether the peer of a call may make it.
    pub(crate) fn admits(&self, call: &crate::Call) -> Result<(), Denial> {
        self.0
            .load()
            .decide(call.method, call.peer.class, call.peer.id())
    }
}

impl Default for PolicyHandle {
    /// The contract alone; nobody is admitted when the contract is broken, which stops a process anyway.
    fn default() -> Self {
        let policy = contract().map_or_else(
            |_| Policy {
                entries: Vec::new(),
                rules: 0,
            },
            Policy::contract,
        );
        Self::new(policy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> &'static MethodTable {
        contract().unwrap()
    }

    fn decide(
        policy: &Policy,
        method: &str,
        class: Option<PeerClass>,
        path: &str,
    ) -> Result<(), Denial> {
        let id = SpiffeId::new("tars.local", path).unwrap();
        policy.decide(table().get(method).unwrap(), class, Some(&id))
    }

    const LOGIN: &str = "/tars.auth.v1.AuthService/Login";
    const STEP: &str = "/tars.auth.v1.CertificateService/StepRoots";

    fn mistakes(text: &str) -> String {
        Policy::parse(text, table()).unwrap_err().to_string()
    }

    #[test]
    fn without_a_file_the_contract_decides() {
        let policy = Policy::contract(table());
        assert_eq!(
            decide(&policy, LOGIN, Some(PeerClass::Client), "/client/x"),
            Ok(())
        );
        assert_eq!(
            decide(&policy, LOGIN, Some(PeerClass::Automl), "/automl"),
            Err(Denial::Contract)
        );
        assert_eq!(
            decide(&policy, LOGIN, None, "/x"),
            Err(Denial::UnknownClass)
        );
    }

    #[test]
    fn a_file_without_rules_is_a_mistake() {
        for empty in ["", "\n\n", "# all rules are gone\n", "rule = []"] {
            assert!(mistakes(empty).contains("has no rule"), "{empty:?}");
        }
    }

    #[test]
    fn a_call_must_satisfy_every_rule() {
        let policy = Policy::parse(
            r#"
            [[rule]]
            name = "few"
            methods = ["tars.auth.v1.AuthService/*", "tars.auth.v1.CertificateService/StepRoots"]
            peers = ["gateway", "operator"]
            [[rule]]
            name = "ada"
            methods = ["tars.auth.v1.CertificateService/StepRoots"]
            ids = ["/user/ada", "/ns/*/sa/gateway"]
            [[rule]]
            name = "closed"
            methods = ["tars.auth.v1.UserService/*"]
            deny = true
            "#,
            table(),
        )
        .unwrap();
        let rule = |name: &str| Err(Denial::Rule(name.to_owned()));
        assert_eq!(
            decide(&policy, LOGIN, Some(PeerClass::Client), "/client/x"),
            rule("few")
        );
        assert_eq!(
            decide(&policy, LOGIN, Some(PeerClass::Operator), "/user/bob"),
            Ok(())
        );
        assert_eq!(
            decide(&policy, STEP, Some(PeerClass::Operator), "/user/bob"),
            rule("ada")
        );
        assert_eq!(
            decide(&policy, STEP, Some(PeerClass::Operator), "/user/ada"),
            Ok(())
        );
        assert_eq!(
            decide(&policy, STEP, Some(PeerClass::Gateway), "/ns/a/sa/gateway"),
            Ok(())
        );
        let users = "/tars.auth.v1.UserService/ListUsers";
        assert_eq!(
            decide(&policy, users, Some(PeerClass::Gateway), "/gateway"),
            rule("closed")
        );
        let (classes, rules) = policy.describe(table().get(STEP).unwrap());
        assert_eq!(
            (classes, rules),
            (vec!["gateway", "operator"], vec!["few", "ada"])
        );
    }

    #[test]
    fn a_policy_cannot_widen() {
        let text = r#"
            [[rule]]
            name = "wide"
            methods = ["tars.auth.v1.AuthService/Login"]
            peers = ["automl"]"#;
        assert!(
            mistakes(text).contains("can only narrow"),
            "{}",
            mistakes(text)
        );
        // Of two methods with different classes, each keeps its own bound.
        let text = r#"
            [[rule]]
            name = "mixed"
            methods = ["tars.auth.v1.AuthService/Login", "tars.auth.v1.CertificateService/RenewCertificate"]
            peers = ["automl", "client"]"#;
        let policy = Policy::parse(text, table()).unwrap();
        assert_eq!(
            decide(&policy, LOGIN, Some(PeerClass::Automl), "/automl"),
            Err(Denial::Contract)
        );
    }

    #[test]
    fn every_mistake_is_reported() {
        let text = r#"
            [[rule]]
            name = "a"
            methods = ["tars.auth.v1.AuthService/Logn", "*"]
            peers = ["king"]
            ids = ["user/ada", "//"]
            [[rule]]
            name = "a"
            methods = []
            deny = true
            [[rule]]
            name = "b"
            methods = ["tars.auth.v1.AuthService/Login"]
            deny = true
            peers = []"#;
        let all = mistakes(text);
        for part in [
            "Logn",
            "\"*\"",
            "king",
            "user/ada",
            "//",
            "the name of rule 1",
            "names no methods",
            "either deny",
        ] {
            assert!(all.contains(part), "{part} in {all}");
        }
        assert!(mistakes("rule = 3").contains("mistake"));
        assert!(mistakes("[[rule]]\nname='x'\nmethods=[]\ncolour=1").contains("colour"));
        assert!(mistakes(&"#".repeat(MAX_BYTES + 1)).contains("larger"));
    }
}
