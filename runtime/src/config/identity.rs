//! Identities, credentials, and the policy on them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use tars_certs::{ClassTable, PeerClass, class::ClassError};

/// The trust domain, and the names in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Trust {
    /// The SPIFFE trust domain, which every id of this mesh begins with.
    pub domain: String,
    /// The SPIFFE path of a workload, where `{workload}` stands for its name; for example
    /// `/ns/prod/sa/{workload}` where Kubernetes service accounts are the identities.
    pub workload_path: String,
}

impl Trust {
    /// Returns the SPIFFE path of the workload with this name.
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

/// Lifetimes of certificates, and how identities are obtained and classified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Certificates {
    /// Life of a workload's certificate in seconds; it is renewed after two thirds of it.
    pub leaf_life_seconds: u64,
    /// Life of the intermediate that signs leaves, in days.
    pub intermediate_life_days: u64,
    /// Life of a root, in days.
    pub root_life_days: u64,
    /// Life of the certificates of people and outside clients, in days.
    pub operator_life_days: u64,
    /// Number of days for which an identity can be renewed, counted from its first certificate.
    pub lineage_life_days: u64,
    /// Number of seconds without a report after which a process counts as departed, so that a
    /// rotation of the roots names it and does not wait for it [default: 90]. Processes report three
    /// times in this period.
    pub departed_after_seconds: u64,
    /// DNS suffixes of workloads: `.tars.svc` adds the name `auth.tars.svc` to Auth's certificate.
    pub dns_suffixes: Vec<String>,
    /// The file from which `tars serve` reads its first join token; it keeps its identity in the data
    /// directory.
    pub join_token_file: Option<PathBuf>,
    /// Which class a peer belongs to, by the pattern that its SPIFFE path matches.
    pub classes: Vec<ClassRule>,
}

/// One pattern of SPIFFE paths with its class.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ClassRule {
    /// A SPIFFE path, in which `*` matches one segment.
    pub pattern: String,
    /// The class of peers whose path matches, such as `operator`.
    pub class: String,
}

impl Default for Certificates {
    fn default() -> Self {
        let rule = |pattern: &str, class: &str| ClassRule {
            pattern: pattern.to_owned(),
            class: class.to_owned(),
        };
        let mut classes = Vec::new();
        let workloads = PeerClass::ALL.into_iter().filter(|c| c.is_workload());
        for workload in workloads.map(PeerClass::as_str) {
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

impl Certificates {
    /// Which class each peer belongs to.
    ///
    /// # Errors
    ///
    /// The first rule that is none.
    pub fn class_table(&self) -> Result<ClassTable, ClassError> {
        let rules = self.classes.iter();
        ClassTable::new(rules.map(|rule| (rule.pattern.as_str(), rule.class.as_str())))
    }
}

/// Lifetimes of tokens and sessions, and the key of what Auth stores.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Credentials {
    /// Life of an access token in seconds, at most a day: services refuse tokens that live longer.
    pub access_token_seconds: u64,
    /// Life of a refresh token in days; each refresh issues a new one.
    pub refresh_token_days: u64,
    /// Maximum life of a session in days, however often it is refreshed.
    pub session_max_days: u64,
    /// Maximum age in seconds of a service's view of credentials; with an older one, calls that
    /// change something are refused.
    pub stale_after_seconds: u64,
    /// A private file with the key that seals secrets in Auth's database; without it,
    /// `auth/seal.key` in the data directory. It is made at the first start. Every replica of Auth
    /// needs the same key.
    pub seal_key_file: Option<PathBuf>,
}

impl Default for Credentials {
    fn default() -> Self {
        Self {
            access_token_seconds: 900,
            refresh_token_days: 7,
            session_max_days: 30,
            stale_after_seconds: 10,
            seal_key_file: None,
        }
    }
}

/// The peer policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Default)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// A file that narrows which peers may call which methods; it is reloaded when it changes.
    pub file: Option<PathBuf>,
}
