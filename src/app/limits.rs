//! The file of limits, and the rate limiter of the process.

use crate::app::{StartError, reload::Reload};
use std::{fs, path::Path};
use tars_interceptors::limits::{Plan, RateLimiter};
use tars_runtime::{clock::Clock, config::Limits, health::Check, metrics::Metrics};

/// The limiter, and the file that its limits come from.
#[derive(Debug, Clone)]
pub(crate) struct LimitsFile {
    pub(crate) limiter: RateLimiter,
    /// The limits of the configuration, which the file changes.
    base: Plan,
    file: Reload,
}

fn read(base: &Plan, path: &Path) -> Result<Plan, String> {
    let named = |e: String| format!("{}: {e}", path.display());
    let text = fs::read_to_string(path).map_err(|e| named(e.to_string()))?;
    base.with(&text)
        .map_err(|mistakes| named(mistakes.join("; ")))
}

impl LimitsFile {
    pub(crate) fn open(
        limits: &Limits,
        clock: &Clock,
        metrics: &Metrics,
    ) -> Result<Self, StartError> {
        let (base, path) = (Plan::new(limits), limits.file.as_deref());
        let limiter = RateLimiter::new(limits, clock.clone());
        if let Some(path) = path {
            limiter.replace(read(&base, path).map_err(StartError::Limits)?);
        }
        let file = Reload::new("limits", path, metrics);
        Ok(Self {
            limiter,
            base,
            file,
        })
    }

    /// Reloads the file whenever it changes, until dropped. What was counted is kept.
    pub(crate) async fn follow(self) {
        let Self {
            limiter,
            base,
            file,
        } = self;
        let replace = |path: &Path| read(&base, path).map(|plan| limiter.replace(plan));
        file.follow(replace).await;
    }

    /// Degraded while the file differs from the limits in force.
    pub(crate) fn check(&self) -> Check {
        self.file.check()
    }
}
