//! What belongs to one service.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// The largest request body; a larger one is 413.
    pub max_body_bytes: usize,
    /// All headers of a request together; more are 431.
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
