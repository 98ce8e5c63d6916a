//! The schema's migrations, and whether a database is one that this version can work on.
//!
//! A database that a newer version wrote, or whose migrations had another text, is never touched. Two
//! processes that start at once take turns: by a file beside the SQLite database, by an advisory lock
//! on PostgreSQL. Each migration is one transaction with the row that records it.

use super::{
    DbError, Query,
    connection::{Connection, Engine},
    error::SchemaError,
    session,
    transaction::in_time,
};
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection, Postgres, SqlStr, SqlitePool,
    migrate::{self as driver, AppliedMigration, Migrate, MigrateError, MigrationType},
    postgres::PgConnectOptions,
};
use std::{
    fs::{File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// Where the driver records what was applied.
pub(super) const APPLIED: &str = "_sqlx_migrations";

/// How long another process may migrate before this one gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

/// A migration of the schema. The text of one that has shipped never changes.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    version: i64,
    name: &'static str,
    sqlite: &'static str,
    postgres: &'static str,
}

impl Migration {
    /// A migration with one text for every engine. Versions rise.
    pub const fn new(version: i64, name: &'static str, text: &'static str) -> Self {
        Self {
            version,
            name,
            sqlite: text,
            postgres: text,
        }
    }

    /// Gives PostgreSQL a text of its own, where none does for both.
    #[must_use]
    pub const fn on_postgres(mut self, text: &'static str) -> Self {
        self.postgres = text;
        self
    }

    /// The number of the migration.
    pub const fn version(&self) -> i64 {
        self.version
    }

    fn with_text(&self, text: &'static str) -> driver::Migration {
        let text = SqlStr::from_static(text);
        let kind = MigrationType::Simple;
        driver::Migration::new(self.version, self.name.into(), kind, text, false)
    }
}

/// What is done about a schema that is not up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Missing migrations are applied.
    Apply,
    /// It is refused. Nothing is written, so that the role needs no right to create anything.
    Check,
}

/// A service's schema on a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Schema<'a> {
    pub(super) name: &'a str,
    /// The role that has to own it; the one that is logged in, if none is named.
    pub(super) owner: Option<&'a str>,
}

/// Brings a SQLite file up to date. The caller has the turn.
pub(super) async fn sqlite(writer: &SqlitePool, migrations: &[Migration]) -> Result<(), DbError> {
    let migrations = on_sqlite(migrations);
    let mut connection = Connection::acquire(writer).await?;
    apply(&mut *connection, &migrations).await
}

/// Makes a schema on a server and brings it up to date, or only checks whether it is.
pub(super) async fn postgres(
    options: &PgConnectOptions,
    schema: Schema<'_>,
    lock: i64,
    migrations: &[Migration],
    mode: Mode,
) -> Result<(), DbError> {
    // Gives the lock back when it is closed, also by a failure.
    let mut connection = in_time(connect(options, schema.name)).await?;
    let turn = sqlx::query("SELECT pg_advisory_lock($1)").bind(lock);
    match tokio::time::timeout(PATIENCE, turn.execute(&mut connection)).await {
        Ok(taken) => taken?,
        Err(_) => return Err(DbError::Unavailable(OTHERS.to_owned())),
    };
    let migrations = on_postgres(migrations);
    match mode {
        Mode::Apply => {
            create_schema(&mut connection, schema).await?;
            apply(&mut connection, &migrations).await?;
        }
        Mode::Check => check(&mut connection, schema, &migrations).await?,
    }
    Ok(connection.close().await?)
}

const OTHERS: &str = "another process has been migrating the database for a minute";

async fn connect(options: &PgConnectOptions, schema: &str) -> Result<PgConnection, DbError> {
    let mut connection = PgConnection::connect_with(options).await?;
    session::verify(&mut connection, schema).await?;
    Ok(connection)
}

/// Makes a schema where there is none. It is looked for first, since a role that may not create one may
/// use what an operator has made.
pub(super) async fn create_schema(
    connection: &mut PgConnection,
    schema: Schema<'_>,
) -> Result<(), DbError> {
    if find_schema(connection, schema).await? {
        return Ok(());
    }
    let create = AssertSqlSafe(format!("CREATE SCHEMA \"{}\"", schema.name));
    sqlx::query(create).execute(connection).await?;
    Ok(())
}

/// Whether there is a schema. One that is not owned by whom it should be is an error.
async fn find_schema(connection: &mut PgConnection, schema: Schema<'_>) -> Result<bool, DbError> {
    const OWNER: &str = "SELECT CAST(pg_get_userbyid(nspowner) AS TEXT) AS owner, \
                         COALESCE($2, CAST(current_user AS TEXT)) AS expected \
                         FROM pg_namespace WHERE nspname = $1";
    let query = Query::new(OWNER).bind(schema.name).bind(schema.owner);
    let Some(row) = Postgres::row(connection, &query).await? else {
        return Ok(false);
    };
    let (owner, expected) = (row.get("owner")?, row.get("expected")?);
    if owner == expected {
        return Ok(true);
    }
    Err(DbError::Schema(SchemaError::Owner {
        schema: schema.name.to_owned(),
        owner,
        expected,
    }))
}

/// Applies what is missing, each migration in one transaction with the row that records it.
pub(super) async fn apply<C: Migrate>(
    connection: &mut C,
    migrations: &[driver::Migration],
) -> Result<(), DbError> {
    let table = connection.ensure_migrations_table(APPLIED).await;
    table.map_err(failed)?;
    let applied = applied(connection).await?;
    for migration in missing(&applied, migrations)? {
        connection.apply(APPLIED, migration).await.map_err(failed)?;
    }
    Ok(())
}

/// Whether a schema is there and up to date.
async fn check(
    connection: &mut PgConnection,
    schema: Schema<'_>,
    migrations: &[driver::Migration],
) -> Result<(), DbError> {
    const TABLE: &str = "SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename = $2";
    if !find_schema(connection, schema).await? {
        return Err(SchemaError::Absent(schema.name.to_owned()).into());
    }
    let query = Query::new(TABLE).bind(schema.name).bind(APPLIED);
    let applied = match Postgres::row(connection, &query).await? {
        None => Vec::new(),
        Some(_) => applied(connection).await?,
    };
    match missing(&applied, migrations)?.last() {
        None => Ok(()),
        Some(last) => Err(DbError::Schema(SchemaError::Older {
            applied: applied.last().map_or(0, |a| a.version),
            needed: last.version,
        })),
    }
}

/// The migrations that were applied, in the order of their versions.
pub(super) async fn applied<C: Migrate>(
    connection: &mut C,
) -> Result<Vec<AppliedMigration>, DbError> {
    let listed = connection.list_applied_migrations(APPLIED).await;
    listed.map_err(failed)
}

/// The migrations as SQLite has them.
pub(super) fn on_sqlite(migrations: &[Migration]) -> Vec<driver::Migration> {
    migrations.iter().map(|m| m.with_text(m.sqlite)).collect()
}

/// The migrations as PostgreSQL has them.
pub(super) fn on_postgres(migrations: &[Migration]) -> Vec<driver::Migration> {
    migrations.iter().map(|m| m.with_text(m.postgres)).collect()
}

/// The migrations that are not applied yet; an error where something else is.
pub(super) fn missing<'m>(
    applied: &[AppliedMigration],
    migrations: &'m [driver::Migration],
) -> Result<Vec<&'m driver::Migration>, SchemaError> {
    for AppliedMigration { version, checksum } in applied {
        let known = migrations.iter().find(|m| m.version == *version);
        let known = known.ok_or(SchemaError::Newer(*version))?;
        if known.checksum != *checksum {
            return Err(SchemaError::Modified(*version));
        }
    }
    let is_applied = |m: &driver::Migration| applied.iter().any(|a| a.version == m.version);
    Ok(migrations.iter().filter(|m| !is_applied(m)).collect())
}

fn failed(error: MigrateError) -> DbError {
    match error {
        MigrateError::Execute(e) | MigrateError::ExecuteMigration(e, _) => e.into(),
        other => DbError::Failed(other.to_string()),
    }
}

fn lock_file(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}

/// The turn to open and migrate a SQLite file: a lock on a file beside it, until it is dropped.
pub(super) async fn turn(database: &Path) -> Result<File, DbError> {
    let path = lock_file(database);
    let unusable = |e: std::io::Error| DbError::Failed(format!("{}: {e}", path.display()));
    let mut open = File::options();
    let file = open.write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(unusable)?;
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if began.elapsed() < PATIENCE => sleep(LOOK).await,
            Err(TryLockError::WouldBlock) => return Err(DbError::Unavailable(OTHERS.to_owned())),
            Err(TryLockError::Error(e)) => return Err(unusable(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Db;
    use futures_util::future::join_all;

    const FIRST: Migration = Migration::new(1, "first", "CREATE TABLE a (id BIGINT PRIMARY KEY)");
    const SECOND: Migration = Migration::new(2, "second", "CREATE TABLE b (id BIGINT PRIMARY KEY)");

    async fn opened(path: &Path, migrations: &[Migration]) -> Result<(), DbError> {
        let db = Db::open(path, migrations).await?;
        db.close().await;
        Ok(())
    }

    #[tokio::test]
    async fn an_older_database_is_brought_up_to_date_and_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        opened(&path, &[FIRST]).await.unwrap();
        opened(&path, &[FIRST, SECOND]).await.unwrap();
        let newer = opened(&path, &[FIRST]).await.unwrap_err();
        assert_eq!(newer, SchemaError::Newer(2).into());
        let edited = FIRST.on_postgres("only there");
        opened(&path, &[edited, SECOND]).await.unwrap();
        let modified = Migration::new(1, "first", "CREATE TABLE c (id BIGINT PRIMARY KEY)");
        let refused = opened(&path, &[modified, SECOND]).await.unwrap_err();
        assert_eq!(refused, SchemaError::Modified(1).into());
    }

    #[tokio::test]
    async fn processes_that_start_at_once_take_turns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let starts = (0..6).map(|_| opened(&path, &[FIRST, SECOND]));
        for start in join_all(starts).await {
            start.unwrap();
        }
    }

    #[tokio::test]
    async fn a_migration_that_fails_leaves_the_one_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.db");
        let broken = Migration::new(2, "broken", "CREATE TABLE b (id BIGINT); SELECT nothing");
        let refused = opened(&path, &[FIRST, broken]).await.unwrap_err();
        assert!(!refused.is_transient(), "{refused}");
        opened(&path, &[FIRST, SECOND]).await.unwrap();
    }
}
