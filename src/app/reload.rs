//! A file of rules that is read again when it changes. At start a mistake in it stops the process; from
//! then on a mistake keeps what was in force, and degrades readiness.

use parking_lot::Mutex;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use std::{
    fmt::Display,
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
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

/// Reads a file. What is wrong with it is said with its name.
pub(crate) fn read<T, E: Display>(
    path: &Path,
    parse: impl FnOnce(&str) -> Result<T, E>,
) -> Result<T, String> {
    let named = |e: &dyn Display| format!("{}: {e}", path.display());
    let text = fs::read_to_string(path).map_err(|e| named(&e))?;
    parse(&text).map_err(|e| named(&e))
}

/// A file that is followed, and the last error of it. Clones share the error.
#[derive(Debug, Clone)]
pub(crate) struct Reload {
    /// What the file holds, for the log.
    what: &'static str,
    path: Option<PathBuf>,
    error: Arc<Mutex<Option<String>>>,
    reloads: Family<Outcome, Counter>,
}

impl Reload {
    /// `what` is also the name of the counter of reloads, before `_reloads`.
    pub(crate) fn new(what: &'static str, path: Option<&Path>, metrics: &Metrics) -> Self {
        Self {
            what,
            path: path.map(Path::to_owned),
            error: Arc::default(),
            reloads: metrics.register(
                &format!("{what}_reloads"),
                &format!("Reloads of the {what} file by result"),
                Family::default(),
            ),
        }
    }

    pub(crate) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    pub(crate) fn error(&self) -> Option<String> {
        self.error.lock().clone()
    }

    /// Reloads the file whenever it changes, until dropped. `apply` puts it in force, or says what is wrong.
    pub(crate) async fn follow(self, apply: impl Fn(&Path) -> Result<(), String>) {
        let Some(path) = self.path.clone() else {
            return;
        };
        let mut seen = version(&path);
        loop {
            tokio::time::sleep(POLL).await;
            let now = version(&path);
            if now != seen {
                seen = now;
                self.record(&path, apply(&path));
            }
        }
    }

    fn record(&self, path: &Path, applied: Result<(), String>) {
        let (what, file) = (self.what, path.display());
        let result = match &applied {
            Ok(()) => {
                tracing::info!(%file, "{what} replaced");
                "replaced"
            }
            Err(error) => {
                tracing::error!(
                    error,
                    "the {what} file is not usable; what was in force stays so"
                );
                "refused"
            }
        };
        *self.error.lock() = applied.err();
        self.reloads.get_or_create(&Outcome { result }).inc();
    }

    /// Degraded while the file differs from what is in force. What is wrong with it can name users, and is not
    /// for everybody who asks for readiness.
    pub(crate) fn check(&self) -> Check {
        let (error, what) = (Arc::clone(&self.error), self.what);
        check(move || match &*error.lock() {
            Some(_) => State::Degraded(format!(
                "the {what} file is not usable, and what was in force stays so: the log says why"
            )),
            None => State::Ok,
        })
    }
}

/// What differs when the file was written or replaced.
fn version(path: &Path) -> Option<(u64, u64, i64, i64, u64)> {
    let m = fs::metadata(path).ok()?;
    Some((m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size()))
}
