//! Settings that belong to one service.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The REST gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Gateway {
    /// Maximum size of a request body in bytes; a larger one is refused with 413.
    pub max_body_bytes: usize,
    /// Maximum size of a request's headers in bytes, all together; larger ones are refused with 431.
    pub max_header_bytes: usize,
    /// Maximum number of open connections.
    pub max_connections: usize,
    /// Maximum number of connections from one IPv4 address or IPv6 /64; a browser opens six. Like
    /// every share, it shrinks as connections run out.
    pub max_connections_by_address: usize,
    /// Maximum number of connections from one address in `trusted_proxies`, which many clients share.
    pub max_connections_by_proxy: usize,
    /// Maximum bytes of answers that their clients have not read yet; further calls are refused with 503.
    pub max_unsent_bytes: usize,
    /// Maximum bytes of these of the clients at one IPv4 address or IPv6 /64; further calls are refused with 429. It
    /// shrinks as the total runs out. One answer of any size may be unread.
    pub max_unsent_bytes_by_address: usize,
    /// Maximum time in seconds that a client takes to read an answer; then its connection ends.
    pub answer_seconds: u64,
    /// Networks (`10.0.0.0/8`) and addresses of the proxies in front of the gateway. Their
    /// `Forwarded` and `X-Forwarded-For` headers name the client, for limits, audit records and
    /// traces: it is the first address from the right that is not in this list. The client is the
    /// peer itself where the peer is not in this list, where the headers cannot be parsed, and where
    /// both are present and disagree, since a proxy that sets one of them may pass on the other as a
    /// client sent it.
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
            max_unsent_bytes: 256 << 20,
            max_unsent_bytes_by_address: 32 << 20,
            answer_seconds: 120,
            trusted_proxies: Vec::new(),
        }
    }
}

/// The trainer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Orchestration {
    /// Number of threads of each replica that train. A class of work (trainings, searches, verifications) of which
    /// nothing is running may use one more.
    pub learners: usize,
    /// Maximum number of runs of each class that wait for a thread of a replica; one caller may have a
    /// quarter of them.
    pub queue: usize,
    /// Number of versions of each agent's weights that are retained: of those that training made, and of all,
    /// the live one and the one before among them. While a governed change holds an agent, none of its versions is deleted.
    pub checkpoints: u32,
    /// Seconds between two checkpoints of a training run; 0 for as often as possible. A run whose process ends
    /// is resumed from the newest one.
    pub checkpoint_seconds: u64,
    /// The environment of the agents that are created when the service is first started. Agents whose algorithm
    /// cannot act in it are not created. Those that exist stay where they are.
    pub environment: String,
    /// Length in seconds of the windows in which the calls that are served are measured, to calibrate the
    /// model of the mesh.
    pub calibration_seconds: u64,
    /// The agents that are bound to the live mesh: `policy`, `consensus`, `ethical`, `resource`. What training makes
    /// of them answers nothing until it has climbed from SIM to ACTIVE. Weights of other agents answer at once.
    pub bound_agents: Vec<String>,
    /// The share of callers, in percent, whose steps a version in CANARY answers. A caller is always answered by
    /// the same version.
    pub canary_percent: u64,
    /// Whether a version of an agent that is bound to the live mesh enters CANARY and ACTIVE by a proposal that
    /// another person approves, and not by one person's promotion. Going down, rules and SHADOW are not governed.
    pub governed_promotion: bool,
}

/// The agents of a mesh.
const AGENTS: [&str; 4] = ["policy", "consensus", "ethical", "resource"];

impl Orchestration {
    pub(super) fn mistakes(&self) -> Vec<String> {
        let known = |name: &&String| !AGENTS.contains(&name.as_str());
        let unknown = self.bound_agents.iter().filter(known);
        let mistake = |name| {
            let agents = AGENTS.join(", ");
            format!(
                "orchestration.bound_agents: there is no agent {name:?}; the agents are {agents}"
            )
        };
        unknown.map(mistake).collect()
    }
}

impl Default for Orchestration {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            learners: cores,
            queue: 64,
            checkpoints: 10,
            checkpoint_seconds: 10,
            environment: "mesh".to_owned(),
            calibration_seconds: 60,
            bound_agents: Vec::new(),
            canary_percent: 10,
            governed_promotion: true,
        }
    }
}

/// Governed changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Hypersync {
    /// Steps that a promoted version has to answer in CANARY or ACTIVE, without falling, until its promotion counts
    /// as verified. Steps are stored 20 at a time by each replica.
    pub verification_steps: u64,
    /// Seconds after which it counts as verified with fewer steps, if it has not fallen until then. The agent is held
    /// meanwhile.
    pub verification_seconds: u64,
}

impl Default for Hypersync {
    fn default() -> Self {
        Self {
            // Whether a version falls is decided on its last 50 steps.
            verification_steps: 60,
            verification_seconds: 300,
        }
    }
}

/// Hyperparameter searches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Automl {
    /// Number of trials that one study runs at once.
    pub parallel_trials: usize,
    /// Maximum number of studies that one replica runs at once.
    pub max_running_studies: usize,
    /// Maximum number of studies of one user or API key's owner that have not ended, whoever runs their trials.
    pub max_running_studies_by_owner: u64,
    /// Maximum number of studies of one of these, with those that have ended.
    pub max_studies_by_owner: u64,
}

impl Default for Automl {
    fn default() -> Self {
        Self {
            parallel_trials: 2,
            max_running_studies: 8,
            max_running_studies_by_owner: 64,
            max_studies_by_owner: 10_000,
        }
    }
}
