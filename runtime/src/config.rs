//! Configuration: one structure, filled from a TOML file, then `TARS__SECTION__KEY` variables, then
//! flags. Every mistake is reported, all at once, before a port is bound. The variables that
//! OpenTelemetry defines have the lowest precedence.

pub mod bounds;
mod database;
pub mod docs;
mod identity;
mod otel;
mod peers;
mod places;
mod ranges;
mod redis;
mod server;
mod services;
mod telemetry;

pub use database::{Address, Database, Host};
pub use identity::{Certificates, ClassRule, Credentials, Policy, Trust};
pub use peers::{Connections, Limits, Overload, Ports, Quotas, Timeouts};
pub use places::{Connect, Data, Listen};
pub use redis::{Endpoint, Redis};
pub use services::{Automl, Gateway, Hypersync, Orchestration};
pub use telemetry::{Log, LogFormat, Telemetry};

use crate::{count::counted, network::Networks};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, path::Path};
use toml::{Table, Value};

/// The prefix of the environment variables that set a key, as in `TARS__SECTION__KEY`.
pub const ENV_PREFIX: &str = "TARS__";

/// The whole configuration, one field per section.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The data directory.
    pub data: Data,
    /// The database server.
    pub database: Database,
    /// The event bus between replicas.
    pub redis: Redis,
    /// The trust domain, and the names in it.
    pub trust: Trust,
    /// Addresses to listen on.
    pub listen: Listen,
    /// Addresses of the other services.
    pub connect: Connect,
    /// Limits of mesh listeners.
    pub connections: Connections,
    /// How long peers are waited for.
    pub timeouts: Timeouts,
    /// Limits of the admin and observe ports.
    pub ports: Ports,
    /// Lifetimes of certificates, and how identities are obtained.
    pub certificates: Certificates,
    /// Lifetimes of tokens and sessions, and the key of what Auth stores.
    pub credentials: Credentials,
    /// The peer policy.
    pub policy: Policy,
    /// Rate limits, and shares of calls and streams.
    pub limits: Limits,
    /// When calls are shed.
    pub overload: Overload,
    /// What users may use in a month.
    pub quotas: Quotas,
    /// Logging.
    pub log: Log,
    /// Traces.
    pub telemetry: Telemetry,
    /// The REST gateway.
    pub gateway: Gateway,
    /// The trainer.
    pub orchestration: Orchestration,
    /// Hyperparameter searches.
    pub automl: Automl,
    /// Governed changes.
    pub hypersync: Hypersync,
}

/// Every mistake in a configuration, each a line for the operator.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mistakes = counted(self.0.len() as u64, "mistake");
        write!(f, "the configuration has {mistakes}:")?;
        for mistake in &self.0 {
            write!(f, "\n  - {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Merges the file, the environment variables and the flags, in rising order of precedence.
    ///
    /// # Errors
    ///
    /// Every mistake that was found, not only the first.
    pub fn load(
        file: Option<&Path>,
        env: impl IntoIterator<Item = (String, String)>,
        flags: Table,
    ) -> Result<Self, ConfigErrors> {
        let env: Vec<(String, String)> = env.into_iter().collect();
        let mut mistakes = Vec::new();
        let (mut merged, ignored) = otel::settings(&env);
        match file.map(read_file).transpose() {
            Ok(table) => merge(&mut merged, otel::without_empty(table.unwrap_or_default())),
            Err(mistake) => mistakes.push(mistake),
        }
        let is_file_known = mistakes.is_empty();
        merge(
            &mut merged,
            otel::without_empty(from_env(env, &mut mistakes)),
        );
        merge(&mut merged, flags);
        let invalid = Invalid::take_from(&mut merged);
        mistakes.extend(invalid.mistakes());
        let mut config: Self = Value::Table(merged)
            .try_into()
            .map_err(|e: toml::de::Error| ConfigErrors(vec![e.message().to_owned()]))?;
        config.telemetry.ignored = ignored;
        // Without its file, what a setting is compared with is not known.
        if is_file_known {
            mistakes.extend(config.mistakes(&invalid));
        }
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(ConfigErrors(mistakes))
        }
    }

    /// Returns the mistakes in the values. A setting in `invalid` has its default here, so nothing is
    /// compared with it.
    fn mistakes(&self, invalid: &Invalid) -> Vec<String> {
        let mut out = Vec::new();
        let mut require = |ok: bool, text: &str| {
            if !ok {
                out.push(text.to_owned());
            }
        };
        require(
            self.listen.admin.ip().is_loopback(),
            "listen.admin must be a loopback address",
        );
        require(
            self.listen.gateway.ip().is_loopback(),
            "listen.gateway must be a loopback address: the gateway has no TLS yet",
        );
        require(
            (0.0..=1.0).contains(&self.telemetry.sample_ratio),
            "telemetry.sample_ratio must be between 0 and 1",
        );
        require(
            is_trust_domain(&self.trust.domain),
            "trust.domain must be lower-case letters, digits, '.', '-', '_'",
        );
        require(
            self.trust.workload_path.starts_with('/')
                && self.trust.workload_path.contains("{workload}"),
            "trust.workload_path must be a path with {workload} in it",
        );
        let endpoint = self.telemetry.endpoint();
        require(
            endpoint.is_none_or(|e| e.starts_with("http://")),
            "telemetry.otlp_endpoint must start with http:// (a collector on the same host or pod)",
        );
        out.extend(ranges::mistakes(self, |key| !invalid.has(key)));
        out.extend(self.connect.mistakes());
        if !invalid.has_in("orchestration") {
            out.extend(self.orchestration.mistakes());
        }
        if !invalid.has_in("database") {
            out.extend(self.database.mistakes());
        }
        if !invalid.has_in("redis") {
            out.extend(self.redis.mistakes());
        }
        let proxies = Networks::parse(&self.gateway.trusted_proxies).err();
        let proxies = proxies.into_iter().flatten();
        out.extend(proxies.map(|mistake| format!("gateway.trusted_proxies: {mistake}")));
        out
    }

    /// Returns the effective configuration as TOML. It holds no secrets.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(self).unwrap_or_default()
    }
}

fn is_trust_domain(text: &str) -> bool {
    let plain =
        |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
    (1..=255).contains(&text.len()) && text.bytes().all(plain)
}

fn read_file(path: &Path) -> Result<Table, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    text.parse::<Table>()
        .map_err(|e| format!("{}: {}", path.display(), e.message()))
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn from_env(env: impl IntoIterator<Item = (String, String)>, mistakes: &mut Vec<String>) -> Table {
    let mut table = Table::new();
    for (name, text) in env {
        let Some(path) = name.strip_prefix(ENV_PREFIX) else {
            continue;
        };
        let parts: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        let [section, key] = parts.as_slice() else {
            mistakes.push(format!("{name}: must be {ENV_PREFIX}SECTION__KEY"));
            continue;
        };
        merge(
            &mut table,
            leaf(section, key, env_value(section, key, &text)),
        );
    }
    table
}

/// Returns a table that holds a single setting.
pub fn leaf(section: &str, key: &str, value: Value) -> Table {
    let mut inner = Table::new();
    inner.insert(key.to_owned(), value);
    let mut table = Table::new();
    table.insert(section.to_owned(), Value::Table(inner));
    table
}

/// Reads a variable as text where the structure takes text, and as TOML otherwise.
fn env_value(section: &str, key: &str, text: &str) -> Value {
    let as_text = Value::String(text.to_owned());
    let fits = Config::deserialize(Value::Table(leaf(section, key, as_text.clone()))).is_ok();
    let parsed = format!("x = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut t| t.remove("x"));
    match parsed {
        Some(value) if !fits => value,
        _ => as_text,
    }
}

/// The settings that have an unknown name or a value of the wrong type, each with its problem.
#[derive(Debug, Default)]
struct Invalid(BTreeMap<(String, Option<String>), String>);

impl Invalid {
    /// Deserializes each setting by itself, so that one mistake does not hide the next, and removes
    /// those for which that fails.
    fn take_from(table: &mut Table) -> Self {
        let mut all = Self::default();
        table.retain(|section, value| {
            let Value::Table(settings) = value else {
                all.add(section, None, "must be a section");
                return false;
            };
            settings.retain(|key, value| {
                all.is_valid(section, Some(key), leaf(section, key, value.clone()))
            });
            let empty = (section.to_owned(), Value::Table(Table::new()));
            all.is_valid(section, None, Table::from_iter([empty]))
        });
        all
    }

    fn is_valid(&mut self, section: &str, key: Option<&str>, alone: Table) -> bool {
        match Config::deserialize(Value::Table(alone)) {
            Ok(_) => true,
            Err(e) => {
                self.add(section, key, e.message().lines().next().unwrap_or_default());
                false
            }
        }
    }

    /// An unknown section is reported with its settings, and by itself only when it has none.
    fn add(&mut self, section: &str, key: Option<&str>, problem: &str) {
        if key.is_some() || !self.has_in(section) {
            let key = (section.to_owned(), key.map(str::to_owned));
            self.0.insert(key, problem.to_owned());
        }
    }

    fn mistakes(&self) -> impl Iterator<Item = String> {
        self.0.iter().map(|((section, key), problem)| match key {
            Some(key) => format!("{section}.{key}: {problem}"),
            None => format!("{section}: {problem}"),
        })
    }

    /// Whether a setting, as `section.key`, is among them.
    fn has(&self, path: &str) -> bool {
        let mut all = self.0.keys();
        path.split_once('.').is_some_and(|(section, key)| {
            all.any(|(s, k)| s == section && k.as_ref().is_none_or(|k| k == key))
        })
    }

    /// Whether any setting of a section is among them.
    fn has_in(&self, section: &str) -> bool {
        self.0.keys().any(|(s, _)| s == section)
    }
}

#[cfg(test)]
mod tests;
