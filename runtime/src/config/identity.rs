//! Who is who: identities, credentials and the policy on them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Trust {
    /// The SPIFFE trust domain: the first part of every id of this mesh.
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Certificates {
    /// Life of a workload's certificate; it is renewed at two thirds of it.
    pub leaf_life_seconds: u64,
    /// Life of the intermediate that signs leaves.
    pub intermediate_life_days: u64,
    /// Life of a root.
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Credentials {
    /// Life of an access token.
    pub access_token_seconds: u64,
    /// Life of a refresh token; each refresh hands out a new one.
    pub refresh_token_days: u64,
    /// After how many days a session ends, however often it was refreshed.
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

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// A file that narrows who may call what; replaced live.
    pub file: Option<PathBuf>,
}
