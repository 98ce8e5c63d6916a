//! Paths and addresses: the data directory, the listeners, and the other services.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf};

/// Persistent state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// The directory for everything that outlives the process: databases, keys, certificates, blobs.
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

/// The addresses to listen on; port 0 picks a free port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Auth, over mutual TLS.
    pub auth: SocketAddr,
    /// Orchestration, over mutual TLS.
    pub orchestration: SocketAddr,
    /// AutoML, over mutual TLS.
    pub automl: SocketAddr,
    /// HyperSync, over mutual TLS.
    pub hypersync: SocketAddr,
    /// The REST gateway; must be a loopback address, as the gateway does not terminate TLS.
    pub gateway: SocketAddr,
    /// The admin port: certificates, policy, connections and configuration of this process. Must be a
    /// loopback address.
    pub admin: SocketAddr,
    /// The observe port: probes and metrics.
    pub observe: SocketAddr,
    /// The bootstrap listener, where a process without a certificate obtains its first one; off
    /// unless it is set.
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
    /// Returns addresses of which each is a free loopback port, for tests.
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

/// Where `tars serve` finds the other services, as `host:port`; not used by `tars up`, which runs
/// all of them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Connect {
    /// Auth's listener.
    pub auth: String,
    /// Orchestration's listener.
    pub orchestration: String,
    /// AutoML's listener.
    pub automl: String,
    /// HyperSync's listener.
    pub hypersync: String,
    /// Auth's bootstrap listener, for a process that joins the mesh.
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
