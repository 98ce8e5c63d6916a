//! The files of rules that the configuration names, looked at before anything starts.

use super::{limits, policy, quotas};
use tars_runtime::config::Config;

/// What is wrong with them; one for each file that cannot be put in force.
pub(crate) fn mistakes(config: &Config) -> Vec<String> {
    let told = |key: &str, read: Result<(), String>| read.err().map(|e| format!("{key}: {e}"));
    let policy = config.policy.file.as_deref();
    let policy = policy.map_or(Ok(()), |path| policy::read(path).map(drop));
    [
        told("policy.file", policy),
        told("limits.file", limits::check(&config.limits)),
        told("quotas.file", quotas::check(&config.quotas)),
    ]
    .into_iter()
    .flatten()
    .collect()
}
