//! A service's database: SQLite, one file a service, one writer and a few readers.
//!
//! `synchronous=FULL`, so that an acknowledged commit survives a power cut. The writer always
//! begins with `BEGIN IMMEDIATE`: a deferred transaction that reads first fails at once when
//! somebody else committed in between. Every access is named, and shows in the trace by that name.

use crate::trace::{self, Kind, Span};
use sqlx::{
    SqlStr, Sqlite, SqliteConnection, SqlitePool, Transaction,
    migrate::{Migration, MigrationType, Migrator},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{
    ops::{Deref, DerefMut},
    path::Path,
    time::Duration,
};

const READERS: u32 = 2;

#[derive(Debug, Clone)]
pub struct Db {
    reader: SqlitePool,
    writer: SqlitePool,
}

/// A migration: its number, its name, its text. Texts that have shipped never change.
pub type Step = (i64, &'static str, &'static str);

pub use sqlx::Error;

impl Db {
    pub async fn open(path: &Path, steps: &[Step]) -> Result<Self, Error> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(5))
            .foreign_keys(true);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await?;
        migrator(steps).run(&writer).await?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_lazy_with(options.read_only(true));
        Ok(Self { reader, writer })
    }

    /// A place to read from, named for the trace.
    pub fn read(&self, name: &'static str) -> Read<'_> {
        Read {
            pool: &self.reader,
            _span: span(name),
        }
    }

    /// A transaction that may write, named for the trace. Dropped without a commit it changes
    /// nothing.
    pub async fn write(&self, name: &'static str) -> Result<Write, Error> {
        let span = span(name);
        let transaction = self.writer.begin_with("BEGIN IMMEDIATE").await?;
        Ok(Write {
            transaction,
            _span: span,
        })
    }

    /// Whether the database answers.
    pub async fn check(&self) -> Result<(), Error> {
        sqlx::query("SELECT 1")
            .execute(&self.reader)
            .await
            .map(drop)
    }

    pub async fn close(&self) {
        self.reader.close().await;
        self.writer.close().await;
    }
}

fn span(name: &'static str) -> Option<Span> {
    let mut span = trace::child(name, Kind::Client)?;
    span.set("db.system.name", "sqlite");
    span.set("db.operation.name", name);
    Some(span)
}

fn migrator(steps: &[Step]) -> Migrator {
    Migrator::with_migrations(
        steps
            .iter()
            .map(|(version, name, sql)| {
                let kind = MigrationType::Simple;
                Migration::new(
                    *version,
                    (*name).into(),
                    kind,
                    SqlStr::from_static(sql),
                    false,
                )
            })
            .collect(),
    )
}

#[derive(Debug)]
pub struct Read<'a> {
    pool: &'a SqlitePool,
    _span: Option<Span>,
}

impl Deref for Read<'_> {
    type Target = SqlitePool;

    fn deref(&self) -> &SqlitePool {
        self.pool
    }
}

#[derive(Debug)]
pub struct Write {
    transaction: Transaction<'static, Sqlite>,
    _span: Option<Span>,
}

impl Write {
    pub async fn commit(self) -> Result<(), Error> {
        self.transaction.commit().await
    }
}

impl Deref for Write {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        &self.transaction
    }
}

impl DerefMut for Write {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        &mut self.transaction
    }
}

/// Whether a failure may pass by itself: the database is busy, full or away, and the same call may go
/// well later. Everything else is a mistake of ours.
pub fn is_passing(error: &Error) -> bool {
    /// SQLite's BUSY, LOCKED, IOERR, FULL and CANTOPEN.
    const PASSING: [u32; 5] = [5, 6, 10, 13, 14];
    match error {
        Error::Io(_) | Error::PoolTimedOut | Error::PoolClosed | Error::WorkerCrashed => true,
        Error::Database(e) => {
            // The low byte is the primary code; what is above says more.
            let code = e.code().and_then(|c| c.parse::<u32>().ok());
            code.is_some_and(|c| PASSING.contains(&(c & 0xff)))
        }
        _ => false,
    }
}

/// A row that cannot be read: its content is not what this version writes. Never guessed at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {row} of {table}: {problem}")]
pub struct Corrupt {
    pub table: &'static str,
    pub row: String,
    pub problem: String,
}

impl Corrupt {
    pub fn new(table: &'static str, row: impl ToString, problem: impl ToString) -> Self {
        Self {
            table,
            row: row.to_string(),
            problem: problem.to_string(),
        }
    }
}

/// Whether an error says that a unique value is taken.
pub fn is_taken(error: &Error) -> bool {
    matches!(error, Error::Database(e) if e.is_unique_violation())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: &[Step] = &[(
        1,
        "first",
        "CREATE TABLE item (id BIGINT PRIMARY KEY, text TEXT NOT NULL)",
    )];

    #[tokio::test]
    async fn commits_survive_and_drops_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let db = Db::open(&path, STEPS).await.unwrap();
        let mut kept = db.write("test.keep").await.unwrap();
        sqlx::query("INSERT INTO item VALUES (1, 'kept')")
            .execute(&mut *kept)
            .await
            .unwrap();
        kept.commit().await.unwrap();
        let mut dropped = db.write("test.drop").await.unwrap();
        sqlx::query("INSERT INTO item VALUES (2, 'dropped')")
            .execute(&mut *dropped)
            .await
            .unwrap();
        drop(dropped);
        db.close().await;

        let db = Db::open(&path, STEPS).await.unwrap();
        let rows: Vec<(i64, String)> = sqlx::query_as("SELECT id, text FROM item")
            .fetch_all(&*db.read("test.all"))
            .await
            .unwrap();
        assert_eq!(rows, [(1, "kept".to_owned())]);
    }

    #[tokio::test]
    async fn a_busy_database_passes_and_a_broken_rule_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let db = Db::open(&path, STEPS).await.unwrap();
        let held = db.write("test.hold").await.unwrap();
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .busy_timeout(Duration::ZERO);
        let other = SqlitePoolOptions::new().connect_lazy_with(options);
        let busy = other.begin_with("BEGIN IMMEDIATE").await.unwrap_err();
        assert!(is_passing(&busy), "{busy}");
        let wrong = sqlx::query("SELECT nothing FROM item")
            .execute(&other)
            .await;
        assert!(!is_passing(&wrong.unwrap_err()));
        // Closing waits for whoever has a connection.
        drop(held);
        db.close().await;
        let closed = db.check().await.unwrap_err();
        assert!(is_passing(&closed), "{closed}");
    }

    #[tokio::test]
    async fn a_taken_key_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("x.db"), STEPS).await.unwrap();
        let mut tx = db.write("test.twice").await.unwrap();
        let insert = "INSERT INTO item VALUES (1, 'x')";
        sqlx::query(insert).execute(&mut *tx).await.unwrap();
        assert!(is_taken(
            &sqlx::query(insert).execute(&mut *tx).await.unwrap_err()
        ));
    }
}
