//! The quotas in force, and the file that they come from.

use crate::app::reload::{self, Reload};
use std::path::Path;
use tars_interceptors::usage::{QuotaHandle, Quotas};
use tars_runtime::{config, health::Check, metrics::Metrics};

#[derive(Debug, Clone)]
pub(crate) struct QuotaFile {
    pub(crate) handle: QuotaHandle,
    /// The quotas of the configuration, which the file changes.
    base: Quotas,
    file: Reload,
}

fn read(base: &Quotas, path: &Path) -> Result<Quotas, String> {
    reload::read(path, |text| {
        base.with(text).map_err(|mistakes| mistakes.join("; "))
    })
}

/// The quotas of the configuration, with what the file that it names changes.
pub(crate) fn in_force(quotas: &config::Quotas) -> Result<Quotas, String> {
    let base = Quotas::new(quotas);
    match quotas.file.as_deref() {
        Some(path) => read(&base, path),
        None => Ok(base),
    }
}

impl QuotaFile {
    pub(crate) fn new(quotas: &config::Quotas, in_force: Quotas, metrics: &Metrics) -> Self {
        let handle = QuotaHandle::default();
        handle.replace(in_force);
        Self {
            handle,
            base: Quotas::new(quotas),
            file: Reload::new("quotas", quotas.file.as_deref(), metrics),
        }
    }

    /// Reloads the file whenever it changes, until dropped.
    pub(crate) async fn follow(self) {
        let Self { handle, base, file } = self;
        let replace = |path: &Path| read(&base, path).map(|quotas| handle.replace(quotas));
        file.follow(replace).await;
    }

    /// Degraded while the file differs from the quotas in force.
    pub(crate) fn check(&self) -> Check {
        self.file.check()
    }
}
