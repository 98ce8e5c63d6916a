//! The policy file: read at start, where a mistake stops the process, and followed from then on,
//! where a mistake keeps the policy before it and says so.

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

/// Open streams are looked at four times a second; the file as often.
const LOOK: Duration = Duration::from_millis(250);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// The policy in force, and how reading its file last went.
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

    /// Follows the file until it is dropped.
    pub(crate) async fn follow(self) {
        let Some(path) = self.path.clone() else {
            return;
        };
        let look = || {
            let m = fs::metadata(&path).ok()?;
            Some((m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
        };
        let mut seen = look();
        loop {
            tokio::time::sleep(LOOK).await;
            let now = look();
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
                    "the policy file is not usable; the policy before it stays"
                );
                *self.error.lock() = Some(e);
                "refused"
            }
        };
        self.reloads.get_or_create(&Outcome { result }).inc();
    }

    /// Degraded while the file is not what is in force.
    pub(crate) fn check(&self) -> Check {
        let error = Arc::clone(&self.error);
        check(move || match &*error.lock() {
            Some(why) => State::Degraded(format!("the policy before the file stays: {why}")),
            None => State::Ok,
        })
    }

    /// For the admin port.
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
