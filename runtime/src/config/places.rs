//! Where things are: data, listeners, other services.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{net::SocketAddr, path::PathBuf};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

/// Where to listen; port 0 takes any free port.
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
    /// The REST gateway; a loopback address, as it has no TLS yet.
    pub gateway: SocketAddr,
    /// Certificates, policy, connections and configuration of this process; a loopback address.
    pub admin: SocketAddr,
    /// Health and metrics.
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
