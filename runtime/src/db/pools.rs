//! The connections of each engine, and how a transaction begins on them.

use super::{
    DbError, Isolation, Migration, Query, Row, Server,
    connection::{Connection, Engine},
    migrate,
    transaction::{Open, Transaction, in_time},
};
use crate::{
    backoff::Backoff,
    page::{Page, Room},
};
use sha2::{Digest, Sha256};
use sqlx::{
    AssertSqlSafe, Executor, PgPool, Postgres, SqlSafeStr, Sqlite, SqlitePool,
    migrate::AppliedMigration,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use std::{path::Path, sync::Arc, time::Duration};
use tars_certs::secret;
use tokio::time::{Instant, sleep};

/// How many connections read a SQLite file at once.
const READERS: u32 = 2;
/// How many rows of a result SQLite reads ahead of whoever takes them.
const READ_AHEAD: usize = 16;
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
    Postgres {
        reader: PgPool,
        writer: PgPool,
        /// The advisory lock of exclusive transactions.
        lock: i64,
        login: Arc<Login>,
    },
}

/// What new connections to a server are made with.
#[derive(Debug)]
pub(super) struct Login {
    server: Server,
    schema: String,
}

fn sqlite_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(BUSY)
        .row_buffer_size(READ_AHEAD)
        .foreign_keys(true)
}

fn unusable(path: &Path, error: &std::io::Error) -> DbError {
    DbError::Failed(format!("{}: {error}", path.display()))
}

/// Begins a transaction on a connection once there is one. A caller that goes away while it waits for
/// the connection gives up its place. From then on the work is a task of its own, so that a caller that
/// goes away costs no connection. A transaction that nobody waits for any more is dropped by the task.
async fn begun<D, F>(
    pool: &sqlx::Pool<D>,
    begin: impl FnOnce(Connection<D>) -> F + Send,
) -> Result<Transaction, DbError>
where
    D: Engine,
    F: Future<Output = Result<Transaction, DbError>> + Send + 'static,
{
    in_time(async {
        let connection = Connection::acquire(pool).await?;
        let ended = |e: tokio::task::JoinError| DbError::Unavailable(e.to_string());
        tokio::spawn(begin(connection)).await.map_err(ended)?
    })
    .await
}

async fn begin_sqlite(
    mut connection: Connection<Sqlite>,
    statement: &'static str,
) -> Result<Transaction, DbError> {
    connection.begin(statement).await?;
    Ok(Transaction(Open::Sqlite(connection)))
}

/// Begins with an advisory lock, if there is one to take.
async fn begin_postgres(
    mut connection: Connection<Postgres>,
    statement: &'static str,
    lock: Option<i64>,
) -> Result<Transaction, DbError> {
    connection.begin(statement).await?;
    if let Some(lock) = lock {
        let turn = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(lock);
        turn.execute(&mut *connection).await?;
    }
    Ok(Transaction(Open::Postgres(connection)))
}

/// A transaction that sees one state throughout, on PostgreSQL.
pub(super) const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";

/// The number of an advisory lock: the same in every process, whatever else uses the database.
pub(super) fn lock(purpose: &str, schema: &str) -> i64 {
    let digest = Sha256::digest(format!("tars/{purpose}/{schema}"));
    let (first, _) = digest.split_first_chunk().expect("a digest has 32 bytes");
    i64::from_be_bytes(*first)
}

impl Pools {
    pub(super) async fn sqlite(path: &Path, migrations: &[Migration]) -> Result<Self, DbError> {
        if let Some(dir) = path.parent() {
            secret::create_dir(dir).map_err(|e| unusable(dir, &e))?;
        }
        let turn = migrate::turn(path).await?;
        let pools = Self::connect_sqlite(sqlite_options(path).create_if_missing(true)).await?;
        if let Self::Sqlite { writer, .. } = &pools {
            migrate::sqlite(writer, migrations).await?;
        }
        drop(turn);
        Ok(pools)
    }

    pub(super) async fn attach_sqlite(path: &Path) -> Result<Self, DbError> {
        Self::connect_sqlite(sqlite_options(path)).await
    }

    /// Connections within the process are not lost, so that none is tested before it is used.
    async fn connect_sqlite(options: SqliteConnectOptions) -> Result<Self, DbError> {
        let writer = SqlitePoolOptions::new()
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            .connect_with(options.clone())
            .await?;
        let reader = SqlitePoolOptions::new()
            .max_connections(READERS)
            .test_before_acquire(false)
            .connect_lazy_with(options.create_if_missing(false).read_only(true));
        Ok(Self::Sqlite { reader, writer })
    }

    pub(super) async fn postgres(
        server: &Server,
        service: &str,
        migrations: &[Migration],
    ) -> Result<Self, DbError> {
        let schema = server.schema(service);
        let turn = lock("migrate", &schema);
        let options = server.unbounded(&schema)?;
        migrate::postgres(
            &options,
            server.owned(&schema),
            turn,
            migrations,
            server.mode(),
        )
        .await
        .map_err(|e| e.at(server))?;
        Self::attach_postgres(server, service)
    }

    pub(super) fn attach_postgres(server: &Server, service: &str) -> Result<Self, DbError> {
        let schema = server.schema(service);
        Ok(Self::Postgres {
            reader: server.reader(&schema)?,
            writer: server.writer(&schema)?,
            lock: lock("write", &schema),
            login: Arc::new(Login {
                server: server.clone(),
                schema,
            }),
        })
    }

    /// As OpenTelemetry names it.
    pub(super) fn engine(&self) -> &'static str {
        match self {
            Self::Sqlite { .. } => "sqlite",
            Self::Postgres { .. } => "postgresql",
        }
    }

    pub(super) fn lease_life(&self) -> Option<Duration> {
        match self {
            Self::Sqlite { .. } => None,
            Self::Postgres { login, .. } => Some(login.server.lease_life()),
        }
    }

    /// The rows of a query that stands alone.
    pub(super) async fn rows(&self, query: &Query<'_>) -> Result<Vec<Row>, DbError> {
        self.repeat(|| in_time(self.fetch(query))).await
    }

    /// The first row of a query that stands alone.
    pub(super) async fn row(&self, query: &Query<'_>) -> Result<Option<Row>, DbError> {
        self.repeat(|| in_time(self.fetch_first(query))).await
    }

    /// The first rows of a query that stands alone.
    pub(super) async fn page(&self, query: &Query<'_>, room: Room) -> Result<Page<Row>, DbError> {
        self.repeat(|| in_time(self.fetch_page(query, room))).await
    }

    async fn fetch_page(&self, query: &Query<'_>, room: Room) -> Result<Page<Row>, DbError> {
        match self {
            Self::Sqlite { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                Sqlite::page(&mut connection, query, room).await
            }
            Self::Postgres { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                Postgres::page(&mut connection, query, room).await
            }
        }
    }

    async fn fetch_first(&self, query: &Query<'_>) -> Result<Option<Row>, DbError> {
        match self {
            Self::Sqlite { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                Sqlite::row(&mut connection, query).await
            }
            Self::Postgres { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                Postgres::row(&mut connection, query).await
            }
        }
    }

    async fn fetch(&self, query: &Query<'_>) -> Result<Vec<Row>, DbError> {
        match self {
            Self::Sqlite { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                Sqlite::rows(&mut connection, query).await
            }
            Self::Postgres { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                Postgres::rows(&mut connection, query).await
            }
        }
    }

    pub(super) async fn begin(&self, isolation: Isolation) -> Result<Transaction, DbError> {
        self.repeat(|| self.start(isolation)).await
    }

    async fn start(&self, isolation: Isolation) -> Result<Transaction, DbError> {
        match self {
            Self::Sqlite { writer, .. } => {
                begun(writer, |c| begin_sqlite(c, "BEGIN IMMEDIATE")).await
            }
            Self::Postgres { writer, lock, .. } => {
                let turn = (isolation == Isolation::Exclusive).then_some(*lock);
                begun(writer, |c| begin_postgres(c, "BEGIN", turn)).await
            }
        }
    }

    pub(super) async fn snapshot(&self) -> Result<Transaction, DbError> {
        self.repeat(|| self.start_snapshot()).await
    }

    async fn start_snapshot(&self) -> Result<Transaction, DbError> {
        match self {
            Self::Sqlite { reader, .. } => begun(reader, |c| begin_sqlite(c, "BEGIN")).await,
            Self::Postgres { reader, .. } => {
                begun(reader, |c| begin_postgres(c, SNAPSHOT, None)).await
            }
        }
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
                    self.read_password_again();
                }
                done => return done,
            }
            sleep(backoff.next_delay()).await;
        }
    }

    /// The failure may have been a password that was replaced.
    fn read_password_again(&self) {
        if let Self::Postgres {
            reader,
            writer,
            login,
            ..
        } = self
        {
            for pool in [reader, writer] {
                login.server.read_password_again(pool, &login.schema);
            }
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        match self {
            Self::Sqlite { writer, .. } => writer.is_closed(),
            Self::Postgres { writer, .. } => writer.is_closed(),
        }
    }

    pub(super) async fn prepare(&self, text: String) -> Result<(), DbError> {
        let text = AssertSqlSafe(text).into_sql_str();
        match self {
            Self::Sqlite { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                connection.prepare(text).await.map(drop)?;
            }
            Self::Postgres { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                connection.prepare(text).await.map(drop)?;
            }
        }
        Ok(())
    }

    /// The text of this engine.
    pub(super) fn text(&self, sqlite: &'static str, postgres: &'static str) -> &'static str {
        match self {
            Self::Sqlite { .. } => sqlite,
            Self::Postgres { .. } => postgres,
        }
    }

    /// The migrations that were applied.
    pub(super) async fn applied(&self) -> Result<Vec<AppliedMigration>, DbError> {
        match self {
            Self::Sqlite { reader, .. } => {
                migrate::applied(&mut *Connection::acquire(reader).await?).await
            }
            Self::Postgres { reader, .. } => {
                migrate::applied(&mut *Connection::acquire(reader).await?).await
            }
        }
    }

    /// How many rows a table has, which the catalogue of the database names.
    pub(super) async fn count(&self, table: &str) -> Result<i64, DbError> {
        let table = table.replace('"', "\"\"");
        let text = AssertSqlSafe(format!("SELECT COUNT(*) FROM \"{table}\""));
        Ok(match self {
            Self::Sqlite { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                sqlx::query_scalar(text).fetch_one(&mut *connection).await?
            }
            Self::Postgres { reader, .. } => {
                let mut connection = Connection::acquire(reader).await?;
                sqlx::query_scalar(text).fetch_one(&mut *connection).await?
            }
        })
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
