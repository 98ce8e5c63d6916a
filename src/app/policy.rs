//! The policy file. At start a mistake in it stops the process. From then on it is reloaded when it
//! changes, and a mistake keeps the previous policy and degrades readiness.

use crate::app::StartError;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tars_interceptors::{Policy, PolicyHandle, contract};
use tars_runtime::{
    health::{Check, State, check},
    metrics::Metrics,
};

/// How often the file is checked for a change; as often as open streams are authorised anew.
const POLL: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// The policy in force, and the last error of its file.
#[derive(Debug, Clone)]
pub(crate) struct PolicyFile {
    pub(crate) handle: PolicyHandle,
    path: Option<PathBuf>,
    error: Arc<Mutex<Option<String>>>,
    reloads: Family<Outcome, Counter>,
}

/// Reads a policy file, as `tars policy check` does.
pub(crate) fn read(path: &Path) -> Result<Policy, String> {
    let table = contract().map_err(ToString::to_string)?;
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Policy::parse(&text, table).map_err(|e| format!("{}: {e}", path.display()))
}

impl PolicyFile {
    pub(crate) fn open(path: Option<&Path>, metrics: &Metrics) -> Result<Self, StartError> {
        let handle = match path {
            Some(path) => PolicyHandle::new(read(path).map_err(StartError::Policy)?),
            None => PolicyHandle::default(),
        };
        Ok(Self {
            handle,
            path: path.map(Path::to_owned),
            error: Arc::default(),
            reloads: metrics.register(
                "policy_reloads",
                "Reloads of the policy file by result",
                Family::default(),
            ),
        })
    }

    /// Reloads the file whenever it changes, until dropped.
    pub(crate) async fn follow(self) {
        let Some(path) = self.path.clone() else {
            return;
        };
        let version = || {
            let m = fs::metadata(&path).ok()?;
            Some((m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
        };
        let mut seen = version();
        loop {
            tokio::time::sleep(POLL).await;
            let now = version();
            if now != seen {
                seen = now;
                self.reload(&path);
            }
        }
    }

    fn reload(&self, path: &Path) {
        let result = match read(path) {
            Ok(policy) => {
                tracing::info!(file = %path.display(), rules = policy.rules(), "policy replaced");
                self.handle.replace(policy);
                *self.error.lock() = None;
                "replaced"
            }
            Err(e) => {
                tracing::error!(
                    error = e,
                    "the policy file is not usable; the previous policy stays in force"
                );
                *self.error.lock() = Some(e);
                "refused"
            }
        };
        self.reloads.get_or_create(&Outcome { result }).inc();
    }

    /// Degraded while the file differs from the policy in force.
    pub(crate) fn check(&self) -> Check {
        let error = Arc::clone(&self.error);
        check(move || match &*error.lock() {
            Some(why) => State::Degraded(format!("the previous policy stays in force: {why}")),
            None => State::Ok,
        })
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
            "file": self.path,
            "rules": policy.rules(),
            "error": *self.error.lock(),
            "methods": rows,
        })
    }
}
