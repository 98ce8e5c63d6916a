//! The policy file, and the peer policy in force.

use crate::app::reload::{self, Reload};
use serde_json::{Value, json};
use std::path::Path;
use tars_interceptors::{Policy, PolicyHandle, contract};
use tars_runtime::{health::Check, metrics::Metrics};

/// The policy in force, and its file.
#[derive(Debug, Clone)]
pub(crate) struct PolicyFile {
    pub(crate) handle: PolicyHandle,
    file: Reload,
}

/// Reads a policy file, as `tars policy check` does.
pub(crate) fn read(path: &Path) -> Result<Policy, String> {
    let table = contract().map_err(ToString::to_string)?;
    reload::read(path, |text| Policy::parse(text, table))
}

impl PolicyFile {
    /// `in_force` is what the file says.
    pub(crate) fn new(path: Option<&Path>, in_force: Option<Policy>, metrics: &Metrics) -> Self {
        Self {
            handle: in_force.map_or_else(PolicyHandle::default, PolicyHandle::new),
            file: Reload::new("policy", path, metrics),
        }
    }

    /// Reloads the file whenever it changes, until dropped.
    pub(crate) async fn follow(self) {
        let handle = self.handle;
        let replace = |path: &Path| read(path).map(|policy| handle.replace(policy));
        self.file.follow(replace).await;
    }

    /// Degraded while the file differs from the policy in force.
    pub(crate) fn check(&self) -> Check {
        self.file.check()
    }

    /// The admin port's page.
    pub(crate) fn report(&self) -> Value {
        let policy = self.handle.current();
        let methods = contract().into_iter().flat_map(|t| t.iter());
        let rows: Vec<Value> = methods
            .map(|m| {
                let (peers, rules) = policy.describe(m);
                json!({ "method": m.path, "peers": peers, "rules": rules, "principal": format!("{:?}", m.rule.principal) })
            })
            .collect();
        json!({
            "file": self.file.path(),
            "rules": policy.rules(),
            "error": self.file.error(),
            "methods": rows,
        })
    }
}
