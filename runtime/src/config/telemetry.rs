//! Logs and traces.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Text for people.
    #[default]
    Human,
    /// One JSON object per line.
    Json,
}

/// Logging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `human` for text, `json` for one JSON object per line.
    pub format: LogFormat,
    /// The filter of log events, such as `info` or `info,tars_mesh=debug`.
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

/// Traces.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Telemetry {
    /// An OTLP collector over gRPC, as `http://host:4317`. Traces are exported only when it is set; an
    /// empty value is unset. Falls back to `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, then to
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub otlp_endpoint: Option<String>,
    /// The fraction of new traces that are recorded, from 0 to 1. Falls back to `OTEL_TRACES_SAMPLER`
    /// and `OTEL_TRACES_SAMPLER_ARG`, then to 1.
    pub sample_ratio: f64,
    /// Whether a peer's sampling decision is followed. False only for values of `OTEL_TRACES_SAMPLER`
    /// that are not parent-based.
    pub follow_parent: bool,
    /// Whether calls that the mesh makes for itself are recorded, too: trust reports, audit records,
    /// health checks.
    pub sample_infrastructure: bool,
    /// The name of every service of this process in traces. Falls back to `OTEL_SERVICE_NAME`, then to
    /// `tars-auth`, `tars-gateway` and so on.
    pub service_name: Option<String>,
    /// Further attributes of this process, on every span. Falls back to `OTEL_RESOURCE_ATTRIBUTES`.
    pub resource_attributes: BTreeMap<String, String>,
    /// Disables export, even where an endpoint is set. Falls back to `OTEL_SDK_DISABLED`.
    pub disabled: bool,
    /// Warnings about `OTEL_` variables whose values were ignored, for the log.
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
    /// Returns the collector's endpoint, or `None` when traces are not exported.
    pub fn endpoint(&self) -> Option<&str> {
        let endpoint = self.otlp_endpoint.as_deref();
        endpoint.filter(|e| !e.is_empty() && !self.disabled)
    }
}
