//! The quotas in force, and the file that they come from.

use crate::app::{StartError, reload::Reload};
use std::{fs, path::Path};
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
    let named = |e: String| format!("{}: {e}", path.display());
    let text = fs::read_to_string(path).map_err(|e| named(e.to_string()))?;
    base.with(&text)
        .map_err(|mistakes| named(mistakes.join("; ")))
}

/// What is wrong with the file that the configuration names.
pub(crate) fn check(quotas: &config::Quotas) -> Result<(), String> {
    let path = quotas.file.as_deref();
    path.map_or(Ok(()), |path| read(&Quotas::new(quotas), path).map(drop))
}

impl QuotaFile {
    pub(crate) fn open(quotas: &config::Quotas, metrics: &Metrics) -> Result<Self, StartError> {
        let (base, path) = (Quotas::new(quotas), quotas.file.as_deref());
        let in_force = match path {
            Some(path) => read(&base, path).map_err(StartError::Quotas)?,
            None => base.clone(),
        };
        let handle = QuotaHandle::default();
        handle.replace(in_force);
        Ok(Self {
            handle,
            base,
            file: Reload::new("quotas", path, metrics),
        })
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
