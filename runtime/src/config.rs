//! Configuration: one structure, filled from a TOML file, then `TARS__SECTION__KEY` variables,
//! then flags; whatever is wrong is reported all at once, before a port is bound. What OpenTelemetry
//! names in variables of its own stands below all of these.

mod otel;
mod ranges;

use crate::{listen::Pace, network::Networks};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use toml::{Table, Value};

pub const ENV_PREFIX: &str = "TARS__";

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
pub struct Config {
    pub data: Data,
    pub trust: Trust,
    pub listen: Listen,
    pub connect: Connect,
    pub connections: Connections,
    pub timeouts: Timeouts,
    pub ports: Ports,
    pub certificates: Certificates,
    pub credentials: Credentials,
    pub policy: Policy,
    pub limits: Limits,
    pub log: Log,
    pub telemetry: Telemetry,
    pub gateway: Gateway,
    pub orchestration: Orchestration,
    pub automl: Automl,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Where everything that lasts is kept.
    pub dir: PathBuf,
}

impl Default for Data {
    fn default() -> Self {
        let home = std::env::var_os("HOME").map_or_else(|| PathBuf::from("."), PathBuf::from);
        let base = std::env::var_os("XDG_DATA_HOME")
            .map_or_else(|| home.join(".local/share"), PathBuf::from);
        Self {
            dir: base.join("tars"),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trust {
    pub domain: String,
    /// The SPIFFE path of a workload, `{workload}` standing for its name: `/ns/prod/sa/{workload}`
    /// where a cluster's accounts are the identities.
    pub workload_path: String,
}

impl Trust {
    pub fn path_of(&self, workload: &str) -> String {
        self.workload_path.replace("{workload}", workload)
    }
}

impl Default for Trust {
    fn default() -> Self {
        Self {
            domain: "tars.local".to_owned(),
            workload_path: "/{workload}".to_owned(),
        }
    }
}

/// Where to listen; port 0 takes any free port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    pub auth: SocketAddr,
    pub orchestration: SocketAddr,
    pub automl: SocketAddr,
    pub hypersync: SocketAddr,
    pub gateway: SocketAddr,
    pub admin: SocketAddr,
    pub observe: SocketAddr,
    /// Where a process without a certificate gets its first; off unless it is set.
    pub bootstrap: Option<SocketAddr>,
}

impl Default for Listen {
    fn default() -> Self {
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            auth: local(8093),
            orchestration: local(8094),
            automl: local(8097),
            hypersync: local(8098),
            gateway: local(3001),
            admin: local(9900),
            observe: local(9901),
            bootstrap: None,
        }
    }
}

impl Listen {
    /// Any free loopback port for each.
    pub fn free() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            auth: any,
            orchestration: any,
            automl: any,
            hypersync: any,
            gateway: any,
            admin: any,
            observe: any,
            bootstrap: None,
        }
    }
}

/// Where `tars serve` finds the other services, as `host:port`; `tars up` knows by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Connect {
    pub auth: String,
    pub orchestration: String,
    pub automl: String,
    pub hypersync: String,
    /// Auth's bootstrap listener, for a process that joins.
    pub bootstrap: String,
}

impl Default for Connect {
    fn default() -> Self {
        Self {
            auth: "127.0.0.1:8093".to_owned(),
            orchestration: "127.0.0.1:8094".to_owned(),
            automl: "127.0.0.1:8097".to_owned(),
            hypersync: "127.0.0.1:8098".to_owned(),
            bootstrap: "127.0.0.1:8092".to_owned(),
        }
    }
}

/// Bounds of what a stranger can hold open on a listener of the mesh. A share is the most that one
/// may hold while there is room; as places run out all shares shrink with what is free, so that a
/// newcomer finds a place even when several have taken what they could.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Connections {
    /// Open connections.
    pub max: usize,
    /// Connections from one IPv4 address or IPv6 /64. Workloads of the mesh are not counted here,
    /// so that people and services behind one NAT, as all of `tars up` on one host, cannot keep the
    /// services from each other; it bounds all clients behind one NAT together.
    pub max_by_address: usize,
    /// Connections that show one SPIFFE id. A client needs one or two.
    pub max_by_identity: usize,
    /// Connections that show one workload's SPIFFE id: all its replicas, twice while identities are
    /// renewed.
    pub max_by_workload: usize,
    /// Handshakes under way, silent peers among them: enough that a crowd of those keeps nobody out.
    pub max_handshakes: usize,
    /// Handshakes under way from one address; past these, one of them makes way: the one that has
    /// waited longest, or when none has for half a second, one at random.
    pub max_handshakes_by_address: usize,
    /// From the connection to the HTTP/2 preface, TLS included.
    pub handshake_timeout_seconds: u64,
    pub max_age_seconds: u64,
    pub max_age_grace_seconds: u64,
    pub max_streams: u32,
    pub max_message_bytes: usize,
    /// How long calls in flight may go on after a request to stop.
    pub drain_seconds: u64,
    /// Calls in flight at once in one service; more are shed. Those that workloads make for
    /// themselves have as many places of their own.
    pub max_in_flight: usize,
    /// Server streams open at once in one service; more are shed. Those that workloads open for
    /// themselves have as many places of their own.
    pub max_open_streams: usize,
    /// Seconds until a stream without a deadline of its own must have answered, the receiving of
    /// its request included.
    pub open_seconds: u64,
    /// Seconds that a peer may take nothing of an answer, or less than 16 KiB of a long one, before
    /// its stream is reset.
    pub stream_stall_seconds: u64,
}

impl Default for Connections {
    fn default() -> Self {
        Self {
            max: 4096,
            max_by_address: 512,
            max_by_identity: 256,
            max_by_workload: 1024,
            max_handshakes: 2048,
            max_handshakes_by_address: 64,
            handshake_timeout_seconds: 5,
            max_age_seconds: 1800,
            max_age_grace_seconds: 300,
            max_streams: 200,
            max_message_bytes: 1 << 20,
            drain_seconds: 10,
            max_in_flight: 4096,
            max_open_streams: 4096,
            open_seconds: 10,
            stream_stall_seconds: 30,
        }
    }
}

impl Connections {
    pub fn handshake_timeout(&self) -> Duration {
        Duration::from_secs(self.handshake_timeout_seconds)
    }
}

/// How long a peer is waited for, on every listener. What a peer sends or reads must go on at a
/// least rate: the stall is the longest time with nothing, and a slower peer uses it up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// From a connection, or from the first byte of a later request, to the end of its head; HTTP/1.
    pub head_seconds: u64,
    /// Between an answer and the next request of a kept connection; HTTP/1.
    pub idle_seconds: u64,
    /// The stall of a request's body; HTTP/1.
    pub body_stall_seconds: u64,
    /// The least rate of a request's body.
    pub body_bytes_per_second: u32,
    /// The stall of a peer that does not read what is written to it.
    pub write_stall_seconds: u64,
    /// The least rate of reading.
    pub write_bytes_per_second: u32,
    /// Silence on an HTTP/2 connection before the peer is asked whether it lives; a connection may
    /// be idle for as long as it answers.
    pub ping_seconds: u64,
    /// How long the answer to that may take.
    pub ping_timeout_seconds: u64,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            head_seconds: 5,
            idle_seconds: 20,
            body_stall_seconds: 5,
            body_bytes_per_second: 2048,
            write_stall_seconds: 15,
            write_bytes_per_second: 1024,
            ping_seconds: 20,
            ping_timeout_seconds: 10,
        }
    }
}

impl Timeouts {
    pub fn head(&self) -> Duration {
        Duration::from_secs(self.head_seconds)
    }

    pub fn idle(&self) -> Duration {
        Duration::from_secs(self.idle_seconds)
    }

    pub fn body_pace(&self) -> Pace {
        Pace {
            grace: Duration::from_secs(self.body_stall_seconds),
            rate: self.body_bytes_per_second,
        }
    }

    pub fn write_pace(&self) -> Pace {
        Pace {
            grace: Duration::from_secs(self.write_stall_seconds),
            rate: self.write_bytes_per_second,
        }
    }

    /// None of them longer than `most` seconds; for listeners whose answers are short.
    #[must_use]
    pub fn at_most(&self, most: u64) -> Self {
        Self {
            head_seconds: self.head_seconds.min(most),
            idle_seconds: self.idle_seconds.min(most),
            body_stall_seconds: self.body_stall_seconds.min(most),
            write_stall_seconds: self.write_stall_seconds.min(most),
            ping_seconds: self.ping_seconds.min(most),
            ping_timeout_seconds: self.ping_timeout_seconds.min(most),
            ..self.clone()
        }
    }
}

/// The admin and the observe port, each. Their file descriptors are set aside before those of all
/// other listeners.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Ports {
    /// Open connections.
    pub max_connections: usize,
    /// Connections from one address: a probe, a scraper and a person with a browser fit easily.
    pub max_connections_by_address: usize,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            max_connections: 64,
            max_connections_by_address: 32,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Certificates {
    pub leaf_life_seconds: u64,
    pub intermediate_life_days: u64,
    pub root_life_days: u64,
    /// Life of the certificates of people and outside clients.
    pub operator_life_days: u64,
    /// How long a first certificate can be renewed.
    pub lineage_life_days: u64,
    /// After how many quiet seconds a process counts as gone, so that a rotation of the roots names it
    /// and does not wait for it [default: 90]. Processes report three times in this.
    pub departed_after_seconds: u64,
    /// `.tars.svc` makes a workload's certificate say `auth.tars.svc`, too.
    pub dns_suffixes: Vec<String>,
    /// Where `tars serve` finds its first join token; it keeps its identity in the data directory.
    pub join_token_file: Option<PathBuf>,
    /// What a SPIFFE path may call itself: pattern to class.
    pub classes: Vec<ClassRule>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassRule {
    /// A path; `*` stands for one segment.
    pub pattern: String,
    pub class: String,
}

impl Default for Certificates {
    fn default() -> Self {
        let rule = |pattern: &str, class: &str| ClassRule {
            pattern: pattern.to_owned(),
            class: class.to_owned(),
        };
        let mut classes = Vec::new();
        for workload in [
            "auth",
            "orchestration",
            "automl",
            "hypersync",
            "gateway",
            "worker",
        ] {
            classes.push(rule(&format!("/{workload}"), workload));
            classes.push(rule(&format!("/ns/*/sa/{workload}"), workload));
        }
        classes.push(rule("/user/*", "operator"));
        classes.push(rule("/client/*", "client"));
        Self {
            leaf_life_seconds: 3600,
            intermediate_life_days: 30,
            root_life_days: 3650,
            operator_life_days: 30,
            lineage_life_days: 90,
            departed_after_seconds: 90,
            dns_suffixes: Vec::new(),
            join_token_file: None,
            classes,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Credentials {
    pub access_token_seconds: u64,
    pub refresh_token_days: u64,
    pub session_max_days: u64,
    /// Past this, calls that change something are refused.
    pub stale_after_seconds: u64,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            access_token_seconds: 900,
            refresh_token_days: 7,
            session_max_days: 30,
            stale_after_seconds: 10,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    pub auth_per_minute: u32,
    pub public_per_minute: u32,
    pub user_per_minute: u32,
    pub internal_per_second: u32,
    pub flood_per_second: u32,
    /// Calls that one caller may have in flight at once in one service. A caller is a user, with all
    /// their keys; whoever shows no credential counts by SPIFFE id, behind the gateway by address.
    pub calls_by_caller: u32,
    /// Server streams that one caller may have open at once in one service. Well below
    /// `connections.max_streams`, which all callers behind one gateway share.
    pub streams_by_caller: u32,
    /// Calls that one peer, by its SPIFFE id, may have in flight at once in one service. Workloads
    /// of the mesh carry others, and may have three quarters of all.
    pub calls_by_peer: u32,
    /// Server streams that one peer may have open at once in one service; the same holds for
    /// workloads.
    pub streams_by_peer: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            auth_per_minute: 10,
            public_per_minute: 30,
            user_per_minute: 600,
            internal_per_second: 1000,
            flood_per_second: 100,
            calls_by_caller: 256,
            streams_by_caller: 32,
            calls_by_peer: 1024,
            streams_by_peer: 256,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            format: LogFormat::Human,
            level: "info".to_owned(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// An OTLP collector (gRPC), as `http://host:4317`. Traces are exported only when it is set;
    /// empty is unset. Else `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub otlp_endpoint: Option<String>,
    /// The share of new traces that is recorded, 0 to 1. Else `OTEL_TRACES_SAMPLER` and its `_ARG`;
    /// 1 by default.
    pub sample_ratio: f64,
    /// Whether what a peer decided on a trace is followed. False only for those of
    /// `OTEL_TRACES_SAMPLER` that are not parent-based.
    pub follow_parent: bool,
    /// Records what the mesh does for itself, too: reports of trust, audit records, health.
    pub sample_infrastructure: bool,
    /// What every service of this process is called in traces. Else `OTEL_SERVICE_NAME`;
    /// `tars-auth`, `tars-gateway`, … by default.
    pub service_name: Option<String>,
    /// More about this process, on every span. Else `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource_attributes: BTreeMap<String, String>,
    /// Exports nothing, whatever the endpoint. Else `OTEL_SDK_DISABLED`.
    pub disabled: bool,
    /// Values of `OTEL_` variables that were of no use, for the log.
    #[serde(skip)]
    pub ignored: Vec<String>,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            otlp_endpoint: None,
            sample_ratio: 1.0,
            follow_parent: true,
            sample_infrastructure: false,
            service_name: None,
            resource_attributes: BTreeMap::new(),
            disabled: false,
            ignored: Vec::new(),
        }
    }
}

impl Telemetry {
    /// Where traces go, if anywhere.
    pub fn endpoint(&self) -> Option<&str> {
        let endpoint = self.otlp_endpoint.as_deref();
        endpoint.filter(|e| !e.is_empty() && !self.disabled)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    pub max_body_bytes: usize,
    pub max_header_bytes: usize,
    /// Open connections.
    pub max_connections: usize,
    /// Connections from one IPv4 address or IPv6 /64; a browser opens six. Like all shares, this
    /// shrinks as places run out.
    pub max_connections_by_address: usize,
    /// Connections from one address in `trusted_proxies`, behind which many people are.
    pub max_connections_by_proxy: usize,
    /// Networks (`10.0.0.0/8`) and addresses of the proxies in front of the gateway. Their
    /// `Forwarded` and `X-Forwarded-For` say who the client is, for limits, audit and traces: read
    /// from right to left, the first address that is not in this list. From anybody else, and when
    /// what is read is broken, the client is the peer itself; so it is, too, when both headers are
    /// there and name different clients, since a proxy that sets one of them may let a client's own
    /// other one through.
    pub trusted_proxies: Vec<String>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            max_body_bytes: 1 << 20,
            max_header_bytes: 16 << 10,
            max_connections: 1024,
            max_connections_by_address: 128,
            max_connections_by_proxy: 768,
            trusted_proxies: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Orchestration {
    /// Threads that train at once. A class of work (trainings, searches, verifications) of which
    /// none runs has one more.
    pub learners: usize,
    /// Runs of each class that may wait for a thread; a quarter of them of one caller.
    pub queue: usize,
}

impl Default for Orchestration {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            learners: cores,
            queue: 64,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Automl {
    /// Trials that one study runs at once.
    pub parallel_trials: usize,
    /// Studies that the server runs at once.
    pub max_running_studies: usize,
}

impl Default for Automl {
    fn default() -> Self {
        Self {
            parallel_trials: 2,
            max_running_studies: 8,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// A file that narrows who may call what; replaced live.
    pub file: Option<PathBuf>,
}

/// All that is wrong with the configuration.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<String>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the configuration has {} mistake(s):", self.0.len())?;
        for mistake in &self.0 {
            write!(f, "\n  - {mistake}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads file, variables and flags, in rising order of authority.
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
        merge(
            &mut merged,
            otel::without_empty(from_env(env, &mut mistakes)),
        );
        merge(&mut merged, flags);
        mistakes.extend(wrong_leaves(&merged));
        if !mistakes.is_empty() {
            return Err(ConfigErrors(mistakes));
        }
        let mut config: Self = Value::Table(merged)
            .try_into()
            .map_err(|e: toml::de::Error| ConfigErrors(vec![e.message().to_owned()]))?;
        config.telemetry.ignored = ignored;
        let mistakes = config.mistakes();
        if mistakes.is_empty() {
            Ok(config)
        } else {
            Err(ConfigErrors(mistakes))
        }
    }

    fn mistakes(&self) -> Vec<String> {
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
        out.extend(ranges::mistakes(self));
        let proxies = Networks::parse(&self.gateway.trusted_proxies).err();
        let proxies = proxies.into_iter().flatten();
        out.extend(proxies.map(|mistake| format!("gateway.trusted_proxies: {mistake}")));
        out
    }

    /// The effective configuration as TOML; it holds no secrets.
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

/// One setting as a table.
pub fn leaf(section: &str, key: &str, value: Value) -> Table {
    let mut inner = Table::new();
    inner.insert(key.to_owned(), value);
    let mut table = Table::new();
    table.insert(section.to_owned(), Value::Table(inner));
    table
}

/// A variable is text; what is no text in the structure is read as TOML.
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

/// Tries each setting alone, so that one mistake does not hide the next.
fn wrong_leaves(table: &Table) -> Vec<String> {
    let mut mistakes = Vec::new();
    for (section, value) in table {
        let Value::Table(settings) = value else {
            mistakes.push(format!("{section} must be a section"));
            continue;
        };
        for (key, value) in settings {
            let alone = Value::Table(leaf(section, key, value.clone()));
            if let Err(e) = Config::deserialize(alone) {
                mistakes.push(format!(
                    "{section}.{key}: {}",
                    e.message().lines().next().unwrap_or_default()
                ));
            }
        }
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect()
    }

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(
            Config::load(None, env(&[]), Table::new()).unwrap(),
            Config::default()
        );
    }

    #[test]
    fn flags_win_over_variables_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("tars.toml");
        std::fs::write(
            &file,
            "[limits]\nauth_per_minute = 1\npublic_per_minute = 1\nuser_per_minute = 1\n",
        )
        .unwrap();
        let vars = env(&[
            ("TARS__LIMITS__PUBLIC_PER_MINUTE", "2"),
            ("TARS__LIMITS__USER_PER_MINUTE", "2"),
            ("HOME", "x"),
        ]);
        let flags = leaf("limits", "user_per_minute", Value::Integer(3));
        let config = Config::load(Some(&file), vars, flags).unwrap();
        let limits = config.limits;
        assert_eq!(
            (
                limits.auth_per_minute,
                limits.public_per_minute,
                limits.user_per_minute
            ),
            (1, 2, 3)
        );
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let vars = env(&[
            ("TARS__LIMITS__AUTH_PER_MINUTE", "many"),
            ("TARS__LISTEN__AUTH", "nowhere"),
            ("TARS__NOSUCH__KEY", "1"),
            ("TARS__LOG__NOSUCH", "1"),
            ("TARS__ALONE", "1"),
        ]);
        let text = Config::load(Some(Path::new("/nonexistent.toml")), vars, Table::new())
            .unwrap_err()
            .to_string();
        for expected in [
            "limits.auth_per_minute",
            "listen.auth",
            "nosuch",
            "log.nosuch",
            "TARS__ALONE",
            "/nonexistent.toml",
        ] {
            assert!(text.contains(expected), "{expected} in {text}");
        }
    }

    #[test]
    fn values_that_cannot_work_are_refused_together() {
        let vars = env(&[
            ("TARS__LISTEN__ADMIN", "0.0.0.0:1"),
            ("TARS__LISTEN__GATEWAY", "0.0.0.0:1"),
            ("TARS__TELEMETRY__SAMPLE_RATIO", "2.0"),
        ]);
        let ConfigErrors(mistakes) = Config::load(None, vars, Table::new()).unwrap_err();
        assert_eq!(mistakes.len(), 3, "{mistakes:?}");
    }

    #[test]
    fn every_mistake_about_listeners_is_reported() {
        let vars = env(&[
            (
                "TARS__GATEWAY__TRUSTED_PROXIES",
                r#"["10.0.0.0/8", "10.0.0.1/8", "proxy", "0.0.0.0/0"]"#,
            ),
            ("TARS__GATEWAY__MAX_CONNECTIONS_BY_ADDRESS", "5000"),
            ("TARS__CONNECTIONS__MAX_BY_IDENTITY", "0"),
            ("TARS__TIMEOUTS__HEAD_SECONDS", "0"),
            ("TARS__TIMEOUTS__BODY_BYTES_PER_SECOND", "0"),
            ("TARS__CONNECTIONS__HANDSHAKE_TIMEOUT_SECONDS", "9999"),
        ]);
        let ConfigErrors(mistakes) = Config::load(None, vars, Table::new()).unwrap_err();
        assert_eq!(mistakes.len(), 8, "{mistakes:#?}");
        let vars = env(&[("TARS__GATEWAY__TRUSTED_PROXIES", r#"["10.0.0.0/8", "::1"]"#)]);
        let config = Config::load(None, vars, Table::new()).unwrap();
        assert_eq!(config.gateway.trusted_proxies.len(), 2);
    }

    #[test]
    fn the_printed_configuration_reads_back() {
        let config = Config::default();
        let table: Table = config.to_toml().parse().unwrap();
        assert_eq!(Config::load(None, env(&[]), table).unwrap(), config);
    }
}
