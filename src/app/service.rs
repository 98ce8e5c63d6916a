//! The services that there are.

use std::net::SocketAddr;
use tars_runtime::config::Listen;

/// A service of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Service {
    Auth,
    Orchestration,
    Automl,
    Hypersync,
    Gateway,
}

impl Service {
    pub(crate) const ALL: &[Self] = &[
        Self::Auth,
        Self::Orchestration,
        Self::Automl,
        Self::Hypersync,
        Self::Gateway,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Orchestration => "orchestration",
            Self::Automl => "automl",
            Self::Hypersync => "hypersync",
            Self::Gateway => "gateway",
        }
    }

    pub(crate) fn listen(self, listen: &Listen) -> SocketAddr {
        match self {
            Self::Auth => listen.auth,
            Self::Orchestration => listen.orchestration,
            Self::Automl => listen.automl,
            Self::Hypersync => listen.hypersync,
            Self::Gateway => listen.gateway,
        }
    }
}
