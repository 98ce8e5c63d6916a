//! A service's database, behind one port: SQLite, one file a service, or PostgreSQL, one schema a
//! service.
//!
//! The services know no driver. They state a [`Query`], one text for every engine, read [`Row`]s by
//! name, and act on a [`DbError`]. What the engines do differently is in here: how a transaction
//! begins, what is a lost connection, when something is tried again. Every access is named, and
//! shows in the trace by that name.
//!
//! On SQLite a commit survives a power cut (`synchronous=FULL`), one writer begins with
//! `BEGIN IMMEDIATE` (a deferred transaction that reads first fails at once when another committed
//! in between), and a few connections read.

mod connection;
mod copy;
mod doubt;
mod error;
mod faults;
mod inspect;
mod migrate;
mod plan;
mod pools;
mod query;
mod row;
mod server;
mod session;
mod transaction;
mod usage;

pub use copy::{Dump, Fill};
pub use error::{Corrupt, DbError, SchemaError};
pub use faults::LostCommit;
pub use inspect::{Schema, Table};
pub use migrate::Migration;
pub use query::{Query, Value, json};
pub use row::{Column, FromRow, NamedRow, Row};
pub use server::Server;
pub use transaction::{Access, Affected, Fetch, Isolation, Swap, Transaction, Write};

use crate::{
    config::Database,
    page::{Page, Room},
    trace::{self, Kind, Span},
};
use faults::Faults;
use futures_util::future::BoxFuture;
use pools::Pools;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Where a service's database is.
#[derive(Debug, Clone)]
pub enum Place {
    /// In a SQLite file.
    File(PathBuf),
    /// On a PostgreSQL server, in the schema of a service.
    Server {
        /// The server.
        server: Server,
        /// The service's name.
        service: String,
    },
}

impl Place {
    /// Returns where the settings put the database of a service: on the server that they name, or in `file`.
    ///
    /// # Errors
    ///
    /// What the settings say of the server cannot be used.
    pub fn of(
        settings: &Database,
        service: &str,
        file: impl Into<PathBuf>,
    ) -> Result<Self, DbError> {
        Ok(match Server::of(settings)? {
            Some(server) => Self::Server {
                server,
                service: service.to_owned(),
            },
            None => Self::File(file.into()),
        })
    }

    /// Whether it is a file that is not there. A schema on a server is made when it is opened.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::File(file) if !file.is_file())
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self::File(path.to_owned())
    }
}

impl From<&PathBuf> for Place {
    fn from(path: &PathBuf) -> Self {
        Self::File(path.clone())
    }
}

impl From<&Self> for Place {
    fn from(place: &Self) -> Self {
        place.clone()
    }
}

/// The connections to a service's database. Clones share them.
#[derive(Debug, Clone)]
pub struct Db {
    pools: Pools,
    faults: Faults,
}

impl Db {
    /// Opens a database and brings its schema up to date. A file or a schema that is not there is
    /// made.
    ///
    /// # Errors
    ///
    /// [`DbError::Unavailable`] where the server cannot be reached, [`DbError::Schema`] where the
    /// schema is not one of `migrations`, [`DbError::Failed`] where the file cannot be used.
    pub fn open(place: impl Into<Place>, migrations: &[Migration]) -> Access<'_, Self> {
        Self::open_at(place.into(), migrations)
    }

    fn open_at(place: Place, migrations: &[Migration]) -> Access<'_, Self> {
        Box::pin(async move {
            let pools = match place {
                Place::File(path) => Pools::sqlite(&path, migrations).await?,
                Place::Server { server, service } => {
                    Pools::postgres(&server, &service, migrations).await?
                }
            };
            Ok(Self::over(pools))
        })
    }

    /// Opens a database as it is, whatever its schema: for tools and tests, which look at what a
    /// service has written.
    ///
    /// # Errors
    ///
    /// [`DbError`] where there is none.
    pub fn attach(place: impl Into<Place>) -> Access<'static, Self> {
        Self::attach_at(place.into())
    }

    fn attach_at(place: Place) -> Access<'static, Self> {
        Box::pin(async move {
            let pools = match place {
                Place::File(path) => Pools::attach_sqlite(&path).await?,
                Place::Server { server, service } => Pools::attach_postgres(&server, &service)?,
            };
            Ok(Self::over(pools))
        })
    }

    fn over(pools: Pools) -> Self {
        Self {
            pools,
            faults: Faults::default(),
        }
    }

    /// Whether other processes may use the database too. A SQLite file belongs to the process that
    /// has locked its data directory.
    pub fn is_shared(&self) -> bool {
        self.lease_life().is_some()
    }

    /// How long leases last without renewal; `None` in a database that is not shared.
    pub fn lease_life(&self) -> Option<Duration> {
        self.pools.lease_life()
    }

    /// The connections for reading, under a name for the trace. Each query stands alone: two of
    /// them may see different states.
    pub fn read(&self, name: &'static str) -> Read<'_> {
        Read {
            pools: &self.pools,
            faults: &self.faults,
            _span: self.span(name),
        }
    }

    /// Begins a transaction that only reads, and sees one state throughout.
    ///
    /// # Errors
    ///
    /// [`DbError`] where no connection is to be had.
    pub fn snapshot(&self, name: &'static str) -> Access<'_, Snapshot> {
        Box::pin(async move {
            let span = self.span(name);
            self.faults.check_reachable()?;
            Ok(Snapshot {
                transaction: self.pools.snapshot().await?,
                _span: span,
            })
        })
    }

    /// Begins a transaction that may write. Dropped without a commit it changes nothing.
    ///
    /// # Errors
    ///
    /// [`DbError`] where no connection is to be had, or other writers keep the lock for too long.
    pub fn write(&self, name: &'static str, isolation: Isolation) -> Access<'_, Write> {
        Box::pin(async move {
            self.faults.check_reachable()?;
            let span = self.span(name);
            let transaction = self.pools.begin(isolation).await?;
            Ok(Write {
                transaction,
                db: self.clone(),
                name,
                span,
            })
        })
    }

    /// Whether the database answers.
    ///
    /// # Errors
    ///
    /// [`DbError`] where it does not.
    pub fn check(&self) -> Access<'_, ()> {
        Box::pin(async move {
            let query = Query::new("SELECT COUNT(*) AS applied FROM _sqlx_migrations");
            let applied: i64 = self.read("db.check").value(query, "applied").await?;
            match applied {
                0 => Err(DbError::Failed("the database has no schema".to_owned())),
                _ => Ok(()),
            }
        })
    }

    /// Prepares a statement without running it: whether the engine understands it.
    ///
    /// # Errors
    ///
    /// [`DbError::Failed`] where it does not.
    pub fn prepare<'a>(&'a self, text: &'a str) -> Access<'a, ()> {
        Box::pin(async move { self.pools.prepare(text.to_owned()).await })
    }

    /// Closes the connections; waits for those in use.
    pub fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.pools.close().await;
        })
    }

    fn span(&self, name: &'static str) -> Option<Span> {
        let mut span = trace::child(name, Kind::Client)?;
        span.set("db.system.name", self.pools.engine());
        span.set("db.operation.name", name);
        Some(span)
    }
}

/// The connections for reading.
#[derive(Debug)]
pub struct Read<'a> {
    pools: &'a Pools,
    faults: &'a Faults,
    _span: Option<Span>,
}

impl Fetch for Read<'_> {
    fn rows_within<'a>(&'a mut self, query: Query<'a>, room: Room) -> Access<'a, Page<Row>> {
        Box::pin(async move {
            self.faults.check_reachable()?;
            self.pools.page(&query, room).await
        })
    }

    fn rows<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Vec<Row>> {
        Box::pin(async move {
            self.faults.check_reachable()?;
            self.pools.rows(&query).await
        })
    }

    fn row<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Option<Row>> {
        Box::pin(async move {
            self.faults.check_reachable()?;
            self.pools.row(&query).await
        })
    }
}

/// A transaction that only reads, and sees one state throughout.
#[derive(Debug)]
pub struct Snapshot {
    transaction: Transaction,
    _span: Option<Span>,
}

impl Fetch for Snapshot {
    fn rows_within<'a>(&'a mut self, query: Query<'a>, room: Room) -> Access<'a, Page<Row>> {
        self.transaction.rows_within(query, room)
    }

    fn rows<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Vec<Row>> {
        self.transaction.rows(query)
    }

    fn row<'a>(&'a mut self, query: Query<'a>) -> Access<'a, Option<Row>> {
        self.transaction.row(query)
    }
}

#[cfg(test)]
mod tests;
