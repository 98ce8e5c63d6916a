//! The files of rules that the configuration names, read before anything starts.

use super::{limits, policy, quotas};
use tars_interceptors::{Policy, limits::Plan, usage::Quotas};
use tars_runtime::config::{Config, ConfigErrors};

/// What is in force by the configuration and its files.
#[derive(Debug)]
pub(crate) struct RuleFiles {
    /// Absent where no file is named.
    pub(crate) policy: Option<Policy>,
    pub(crate) limits: Plan,
    pub(crate) quotas: Quotas,
}

impl RuleFiles {
    /// Reads them. What is wrong with each that cannot be put in force is told at once.
    pub(crate) fn read(config: &Config) -> Result<Self, ConfigErrors> {
        let mut mistakes = Vec::new();
        let policy = config.policy.file.as_deref().map(policy::read).transpose();
        let policy = or_note("policy.file", policy, &mut mistakes);
        let classes = config.certificates.class_table();
        let classes = classes.map_err(|why| why.to_string());
        let limits = or_note("certificates.classes", classes, &mut mistakes)
            .map(|classes| limits::in_force(&config.limits, &classes));
        let limits = limits.and_then(|read| or_note("limits.file", read, &mut mistakes));
        let quotas = quotas::in_force(&config.quotas);
        let quotas = or_note("quotas.file", quotas, &mut mistakes);
        match (policy, limits, quotas) {
            (Some(policy), Some(limits), Some(quotas)) => Ok(Self {
                policy,
                limits,
                quotas,
            }),
            _ => Err(ConfigErrors(mistakes)),
        }
    }
}

fn or_note<T>(key: &str, read: Result<T, String>, mistakes: &mut Vec<String>) -> Option<T> {
    let note = |why| mistakes.push(format!("{key}: {why}"));
    read.map_err(note).ok()
}
