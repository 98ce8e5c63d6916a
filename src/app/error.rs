//! Why a process does not start.

mod data_dir;

pub use data_dir::DataDirError;

use std::{
    error::Error,
    io,
    path::{Path, PathBuf},
};
use tars_certs::{CaError, IdentityError, SpiffeError, SpiffeId, class::ClassError};
use tars_mesh::channel::ChannelError;
use tars_runtime::{config::ConfigErrors, db::DbError, trace::ExporterError};
use tars_workload::OpenError;

/// Why a process does not start. Nothing serves after it.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The embedded contract contradicts itself.
    #[error("{0}")]
    Contract(String),
    /// Another process uses the data directory.
    #[error(
        "the data directory {dir} is used by another process: {why}, or name another with --data-dir"
    )]
    Locked {
        /// The data directory.
        dir: PathBuf,
        /// What can be done instead.
        why: &'static str,
    },
    /// A data directory whose state the configuration would not find.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// A service was asked for that this process has no identity for.
    #[error("this process has no identity for {0}")]
    NoIdentity(&'static str),
    /// A channel was asked for to a service that no service calls.
    #[error("the configuration does not say where {0} is")]
    NoTarget(&'static str),
    /// A certificate was asked for in a process without the authority.
    #[error("this process has no certificate authority to issue {0} with")]
    NoAuthority(SpiffeId),
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system reports.
        source: io::Error,
    },
    /// The certificate authority.
    #[error("certificates: {0}")]
    Ca(#[from] CaError),
    /// An identity that cannot be used.
    #[error("identity: {0}")]
    Identity(#[from] IdentityError),
    /// A name that is no SPIFFE id.
    #[error("trust domain: {0}")]
    TrustDomain(SpiffeError),
    /// The rules that make peer classes.
    #[error("certificates.classes: {0}")]
    Classes(#[from] ClassError),
    /// The exporter of traces.
    #[error("traces: {0}")]
    Tracer(#[from] ExporterError),
    /// Addresses that could not be bound, one line each.
    #[error(
        "cannot listen:\n  - {}\nanother address is named by a flag, as in --gateway-addr 127.0.0.1:0, or under [listen] in the configuration; port 0 takes any free port",
        .0.join("\n  - ")
    )]
    Bind(Vec<String>),
    /// The database server that the configuration names.
    #[error(transparent)]
    Database(#[from] DbError),
    /// The Redis server that the configuration names.
    #[error(transparent)]
    Redis(#[from] tars_runtime::bus::ServerError),
    /// Auth could not open.
    #[error("auth: {0}")]
    Auth(#[from] tars_auth::AuthError),
    /// Another service could not open.
    #[error("{service}: {}", cause(.source.as_ref()))]
    Service {
        /// Its name.
        service: &'static str,
        /// Why it could not open.
        source: OpenError,
    },
    /// The REST gateway could not be put together.
    #[error("gateway: {0}")]
    Gateway(String),
    /// A channel to another service.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// The files of rules that the configuration names.
    #[error(transparent)]
    Files(#[from] ConfigErrors),
    /// No identity in exchange for the join token.
    #[error("cannot join the mesh: {0}")]
    Join(String),
    /// The reflection service.
    #[error("reflection: {0}")]
    Reflection(String),
    /// The process of a replica could not be started.
    #[error("replica {number} cannot be started: {source}")]
    NotSpawned {
        /// Its number.
        number: u32,
        /// What the system reports.
        source: io::Error,
    },
    /// A replica ended before it served.
    #[error("replica {number} ended before it was ready ({status}); what it logged has the reason")]
    Replica {
        /// Its number.
        number: u32,
        /// How its process ended.
        status: String,
    },
    /// Not everything was ready in time.
    #[error("not ready in time: {0}")]
    NotReady(String),
}

/// What a service's error says. It keeps the words of its database from callers; whoever starts the
/// service needs them.
fn cause(error: &(dyn Error + Send + Sync + 'static)) -> String {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(link) = next {
        if let Some(error) = link.downcast_ref::<DbError>() {
            return error.to_string();
        }
        next = link.source();
    }
    error.to_string()
}

impl StartError {
    pub(crate) fn file(path: &Path, source: io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tars_runtime::db::SchemaError;

    #[derive(Debug, thiserror::Error)]
    #[error("the database failed")]
    struct Reserved(#[source] DbError);

    fn starting(source: impl Into<OpenError>) -> String {
        let source = source.into();
        let error = StartError::Service {
            service: "automl",
            source,
        };
        error.to_string()
    }

    #[test]
    fn a_service_that_cannot_use_its_database_says_why() {
        let newer = DbError::from(SchemaError::Newer(99));
        let text = starting(Reserved(newer.clone()));
        assert_eq!(text, format!("automl: {newer}"));
        assert!(text.contains("newer version"), "{text}");
        assert_eq!(starting("no trainer"), "automl: no trainer");
    }
}
