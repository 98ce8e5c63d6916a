//! The connections of each engine, and how a transaction begins on them.

use super::{
    DbError, Isolation, Query, Row, Step, migrate,
    row::Inner,
    transaction::{Open, Transaction, in_time},
};
use crate::backoff::Backoff;
use sqlx::{
    AssertSqlSafe, Executor, PgPool, SqlSafeStr, SqlStr, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{path::Path, time::Duration};
use tokio::time::{Instant, sleep};

/// How many connections read a SQLite file at once.
const READERS: u32 = 2;
/// How long a transaction waits for those that write before it.
const BUSY: Duration = Duration::from_secs(5);
/// How long work that has changed nothing yet is tried again: long enough for a database to restart,
/// short enough for a caller.
const PATIENCE: Duration = Duration::from_secs(2);
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub(super) enum Pools {
    Sqlite {
        reader: SqlitePool,
        writer: SqlitePool,
    },
    #[expect(dead_code, reason = "opened once the configuration names a server")]
    Postgres {
        reader: PgPool,
        writer: PgPool,
        /// Begins an exclusive transaction: names the schema's lock.
        exclusive: SqlStr,
    },
}

impl Pools {
    pub(super) async fn sqlite(path: &Path, steps: &[Step]) -> Result<Self, DbError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY)
            .foreign_keys(true);
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(options.clone())
            .await?;
        migrate::migrator(steps)
            .run(&writer)
            .await
            .map_err(migrate::failed)?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .connect_lazy_with(options.read_only(true));
        Ok(Self::Sqlite { reader, writer })
    }

    /// As OpenTelemetry names it.
    pub(super) fn engine(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres { .. } => "postgresql",
        }
    }

    /// The rows of a query that stands alone.
    pub(super) async fn rows(&self, query: &Query<'_>) -> Result<Vec<Row>, DbError> {
        self.repeat(|| in_time(Box::pin(self.fetch(query)))).await
    }

    async fn fetch(&self, query: &Query<'_>) -> Result<Vec<Row>, DbError> {
        Ok(match self {
            Self::Sqlite { reader, .. } => sqlx::query_with(query.text(), query.for_sqlite()?)
                .fetch_all(reader)
                .await?
                .into_iter()
                .map(|row| Row(Inner::Sqlite(row)))
                .collect(),
            Self::Postgres { reader, .. } => sqlx::query_with(query.text(), query.for_postgres()?)
                .fetch_all(reader)
                .await?
                .into_iter()
                .map(|row| Row(Inner::Postgres(row)))
                .collect(),
        })
    }

    pub(super) async fn begin(&self, isolation: Isolation) -> Result<Transaction, DbError> {
        let begin = || async {
            Ok(Transaction(match self {
                Self::Sqlite { writer, .. } => {
                    Open::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?)
                }
                Self::Postgres {
                    writer, exclusive, ..
                } => Open::Postgres(match isolation {
                    Isolation::Exclusive => writer.begin_with(exclusive.clone()).await?,
                    Isolation::Committed => writer.begin().await?,
                }),
            }))
        };
        self.repeat(|| in_time(Box::pin(begin()))).await
    }

    pub(super) async fn snapshot(&self) -> Result<Transaction, DbError> {
        const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let begin = || async {
            Ok(Transaction(match self {
                Self::Sqlite { reader, .. } => Open::Sqlite(reader.begin().await?),
                Self::Postgres { reader, .. } => Open::Postgres(reader.begin_with(SNAPSHOT).await?),
            }))
        };
        self.repeat(|| in_time(Box::pin(begin()))).await
    }

    /// Tries again what found its connection lost. A pool may hold as many dead connections as it
    /// has places, so that time bounds the tries and not their number.
    async fn repeat<T, F>(&self, mut work: impl FnMut() -> F) -> Result<T, DbError>
    where
        F: Future<Output = Result<T, DbError>>,
    {
        let began = Instant::now();
        let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            match work().await {
                Err(DbError::Unavailable(_)) if began.elapsed() < PATIENCE && !self.is_closed() => {
                }
                done => return done,
            }
            sleep(backoff.next_delay()).await;
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Sqlite { writer, .. } => writer.is_closed(),
            Self::Postgres { writer, .. } => writer.is_closed(),
        }
    }

    pub(super) async fn prepare(&self, text: String) -> Result<(), DbError> {
        let text = AssertSqlSafe(text).into_sql_str();
        match self {
            Self::Sqlite { reader, .. } => reader.acquire().await?.prepare(text).await.map(drop)?,
            Self::Postgres { reader, .. } => {
                reader.acquire().await?.prepare(text).await.map(drop)?;
            }
        }
        Ok(())
    }

    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite { reader, writer } => {
                reader.close().await;
                writer.close().await;
            }
            Self::Postgres { reader, writer, .. } => {
                reader.close().await;
                writer.close().await;
            }
        }
    }
}
