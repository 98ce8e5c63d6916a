//! What a process says of itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `human` for people, `json` for machines: one object a line.
    pub format: LogFormat,
    /// What is logged, as in `info` or `info,tars_mesh=debug`.
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

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
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
