//! The rate limiter of the process, the file that its limits come from, and the server that it shares.

use crate::app::reload::Reload;
use futures_util::future::BoxFuture;
use std::{fs, path::Path, sync::Arc, time::Duration};
use tars_certs::ClassTable;
use tars_interceptors::limits::{FileError, Over, Plan, RateLimiter};
use tars_runtime::{
    bus::Server,
    clock::Clock,
    config::Limits,
    health::{Check, Condition},
    metrics::Metrics,
    seeds::Seeds,
};

/// A limiter, with what keeps it up to date.
pub(crate) struct Limiting {
    pub(crate) limiter: RateLimiter,
    /// The limits of the configuration, which the file changes.
    base: Plan,
    /// Which peers there can be.
    classes: Arc<ClassTable>,
    file: Reload,
    /// What is wrong with the server, and the work that keeps the limiter connected to it.
    link: Option<(Condition, BoxFuture<'static, ()>)>,
}

fn read(base: &Plan, classes: &ClassTable, path: &Path) -> Result<Plan, String> {
    let named = |e: String| format!("{}: {e}", path.display());
    let text = fs::read_to_string(path).map_err(|e| named(e.to_string()))?;
    base.with(&text, classes).map_err(|mistakes| {
        let mistakes: Vec<_> = mistakes.iter().map(FileError::to_string).collect();
        named(mistakes.join("; "))
    })
}

/// The limits of the configuration, with what the file that it names changes.
pub(crate) fn in_force(limits: &Limits, classes: &ClassTable) -> Result<Plan, String> {
    let base = Plan::new(limits);
    match limits.file.as_deref() {
        Some(path) => read(&base, classes, path),
        None => Ok(base),
    }
}

impl Limiting {
    /// `group` names the services of the process; those that have the same are its replicas. A mesh has so many
    /// `groups` at most.
    pub(crate) fn new(
        limits: &Limits,
        in_force: Plan,
        classes: Arc<ClassTable>,
        server: Option<Server>,
        (group, groups): (String, u32),
        clock: &Clock,
        metrics: &Metrics,
    ) -> Self {
        let (limiter, link) = match server {
            None => (RateLimiter::new(limits, clock.clone()), None),
            Some(server) => {
                let condition = Condition::new(clock.clone());
                let (limiter, work) = RateLimiter::over(Over {
                    limits,
                    clock: clock.clone(),
                    server,
                    group,
                    groups,
                    condition: condition.clone(),
                    metrics,
                    seeds: Seeds::system(),
                });
                (
                    limiter,
                    Some((condition, Box::pin(work) as BoxFuture<'_, ()>)),
                )
            }
        };
        limiter.replace(in_force);
        Self {
            limiter,
            base: Plan::new(limits),
            classes,
            file: Reload::new("limits", limits.file.as_deref(), metrics),
            link,
        }
    }

    /// What shows how the limiter is, and what keeps it up to date for the lifetime of a process. Neither a
    /// mistake in the file nor a server that is out of reach makes the process unready.
    pub(crate) fn parts(self) -> (Vec<(&'static str, Check)>, Vec<BoxFuture<'static, ()>>) {
        let Self {
            limiter,
            base,
            classes,
            file,
            link,
        } = self;
        let mut checks = vec![("limits", file.check())];
        let follow = async move {
            let replace =
                |path: &Path| read(&base, &classes, path).map(|plan| limiter.replace(plan));
            file.follow(replace).await;
        };
        let mut work = vec![Box::pin(follow) as BoxFuture<'_, ()>];
        if let Some((condition, connect)) = link {
            let what = "each replica counts its share of the limits, as Redis is out of reach";
            checks.push(("limits.redis", condition.check(what, Duration::ZERO)));
            work.push(connect);
        }
        (checks, work)
    }
}
