//! Backups: everything that outlives the processes of a mesh, in one file, and back.
//!
//! A backup is a plain tar archive: first `manifest.json`, with what is in it, how many rows each table
//! has, and the SHA-256 of each file; then the files; last the digest of the manifest. So a file that was
//! cut off, damaged or made by something else is recognised before anything is written in place.
//!
//! The format is the same for every engine: a SQLite file for each service's database, and its blobs as
//! files. So a backup of one engine is restored into the other, which is how a mesh moves to a server.
//!
//! A mesh may run while it is backed up. SQLite databases are copied each in one transaction, between two
//! looks at the files beside them, which must be the same: otherwise both are copied again. All schemas of
//! a server are copied in one transaction, and are of one moment.

mod archive;
mod databases;
mod files;
mod restore;
mod server;
mod staging;
mod stop;
mod take;
mod target;

pub(crate) use restore::restore;
pub(crate) use staging::is_of_restore;
pub(crate) use stop::Stop;
pub(crate) use take::take;

use crate::app::{Service, StartError};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};
use tars_runtime::{blobs::BlobError, clock::Clock, db::DbError};

/// What makes a file a backup of ours.
const FORMAT: &str = "tars backup";
/// Rises when an older version could not read what a newer one writes.
const VERSION: u32 = 2;

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    format: String,
    version: u32,
    /// The version of the binary that made the backup.
    pub(crate) made_by: String,
    /// When, in seconds since the Unix epoch.
    pub(crate) made_at_s: u64,
    /// Where the databases were. Format 1 had SQLite alone.
    #[serde(default)]
    pub(crate) engine: Engine,
    pub(crate) services: Vec<ServicePart>,
    pub(crate) files: Vec<FilePart>,
}

/// The engine that the databases of a backup were on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Engine {
    /// All of the data directory is in the backup.
    #[default]
    Sqlite,
    /// The secrets in Auth's tables are sealed by a key that is not in the backup.
    Postgresql,
}

/// The database of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ServicePart {
    pub(crate) name: String,
    /// The last migration of its schema.
    pub(crate) schema: i64,
    /// How many rows each table has.
    pub(crate) tables: BTreeMap<String, i64>,
}

/// A file of the data directory, by its path there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FilePart {
    pub(crate) path: String,
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
    pub(crate) mode: u32,
}

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BackupError {
    #[error("interrupted")]
    Interrupted,
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{service}: {source}")]
    Db { service: String, source: DbError },
    #[error("there is no database in {0}: name the mesh with --data-dir")]
    Nothing(PathBuf),
    #[error("{0} exists: name another file, a backup is never overwritten")]
    Exists(PathBuf),
    #[error("{0} is in the data directory, and would become a part of itself: name another place")]
    Within(PathBuf),
    #[error(
        "{0} changed during every attempt to copy it: try again, or move what is no part of the mesh"
    )]
    Restless(PathBuf),
    #[error(transparent)]
    Server(DbError),
    #[error("blob {name} of {service}: {source}")]
    Blob {
        service: String,
        name: String,
        source: BlobError,
    },
    #[error("there are no schemas of a mesh in {0}: see database.url and database.schema_prefix")]
    NoSchemas(String),
    #[error("{0} is not empty: a backup is restored into a new directory only")]
    NotEmpty(PathBuf),
    #[error(transparent)]
    InUse(Box<StartError>),
    #[error("{path} is not a backup of tars: {why}")]
    Foreign { path: PathBuf, why: String },
    #[error("{path} is damaged: {why}")]
    Damaged { path: PathBuf, why: String },
    #[error("{path} has format {found}, and this version reads up to {VERSION}: use a newer one")]
    Newer { path: PathBuf, found: u32 },
    #[error("the backup has a service {0:?}, which this version does not know")]
    UnknownService(String),
}

impl BackupError {
    fn file(path: &Path) -> impl Fn(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::File {
            path: path.clone(),
            source,
        }
    }

    /// Whether a file is not there.
    fn is_absence(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }

    fn blob(service: Service, name: &str) -> impl Fn(BlobError) -> Self + use<> {
        let (service, name) = (service.as_str().to_owned(), name.to_owned());
        move |source| Self::Blob {
            service: service.clone(),
            name: name.clone(),
            source,
        }
    }

    fn db(service: &str) -> impl Fn(DbError) -> Self + use<> {
        let service = service.to_owned();
        move |source| Self::Db {
            service: service.clone(),
            source,
        }
    }
}

impl Manifest {
    fn new(engine: Engine, services: Vec<ServicePart>, files: Vec<FilePart>) -> Self {
        Self {
            format: FORMAT.to_owned(),
            version: VERSION,
            made_by: env!("CARGO_PKG_VERSION").to_owned(),
            made_at_s: Clock::system().now_s(),
            engine,
            services,
            files,
        }
    }
}

/// Where the blobs of a service are, below a data directory.
fn blob_folder(service: Service) -> PathBuf {
    Path::new(service.as_str()).join(files::BLOBS)
}

/// Where the database of a service is, below a data directory.
fn database_file(service: Service) -> PathBuf {
    let name = service.as_str();
    Path::new(name).join(format!("{name}.db"))
}

#[cfg(test)]
mod tests;
