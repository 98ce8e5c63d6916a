//! Copies of services' rows between engines, for backups: the schemas of a server into SQLite files, and
//! files into schemas.
//!
//! Both engines have the same tables, since they have the same migrations, so that the catalogue of the
//! file says what there is to copy. Rows are streamed, and neither side is ever held in memory. What was
//! written is read back, and must be what was read: as many rows, with the same digest.
//!
//! One transaction covers all schemas of a server. A dump is therefore of one moment in all services, and
//! a server is filled whole or not at all.

mod content;
mod table;

use super::{
    Access, Db, DbError, Fetch, Isolation, Migration, Query, Row, Server,
    connection::Connection,
    migrate::{self, APPLIED},
    pools::{SNAPSHOT, lock},
    session::verify,
    transaction::{Open, Transaction},
};
use crate::page::{Page, Room};
use sqlx::{AssertSqlSafe, PgConnection, SqliteConnection, postgres::PgPoolOptions};
use std::{
    collections::BTreeSet,
    ops::{Deref, DerefMut},
    path::Path,
};
use table::Table;

/// What belongs to running processes (leases), and what a backup has as files (blobs).
const LEFT_OUT: [&str; 4] = ["leases", "blob_parts", "blobs", "blob_chunks"];

/// A schema that other connections do not use as theirs.
const NEUTRAL: &str = "pg_catalog";

/// The schemas of a server, as they are at one moment.
#[derive(Debug)]
pub struct Dump {
    server: Server,
    transaction: Transaction,
}

impl Dump {
    /// Begins a transaction that sees the state of all schemas at this moment.
    ///
    /// # Errors
    ///
    /// [`DbError::Unavailable`] where the server cannot be reached.
    pub async fn begin(server: &Server) -> Result<Self, DbError> {
        Ok(Self {
            server: server.clone(),
            transaction: begin(server, SNAPSHOT).await?,
        })
    }

    /// Copies a service's schema to a SQLite file, which is empty or does not exist; whether there is such
    /// a schema. Queries go to the schema that was copied last.
    ///
    /// # Errors
    ///
    /// [`DbError::Schema`] where the schema is not one of `migrations`, [`DbError::Failed`] where the file
    /// cannot be written, or has not become what the schema is.
    pub fn copy<'a>(
        &'a mut self,
        service: &'a str,
        file: &'a Path,
        migrations: &'a [Migration],
    ) -> Access<'a, bool> {
        Box::pin(async move {
            let schema = self.server.schema(service);
            let session = session(&mut self.transaction)?;
            let tables = table_names(session, &schema).await?;
            if !tables.contains(APPLIED) {
                return Ok(false);
            }
            use_schema(session, &schema).await?;
            let applied = applied(session, migrations).await?;
            let copy = Db::open(file, applied).await?;
            let done = copy_to_file(&mut self.transaction, &schema, tables, &copy).await;
            copy.close().await;
            done.map(|()| true)
        })
    }
}

impl Fetch for Dump {
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

async fn copy_to_file(
    from: &mut Transaction,
    schema: &str,
    tables: BTreeSet<String>,
    copy: &Db,
) -> Result<(), DbError> {
    let mut to = copy.write("db.dump", Isolation::Exclusive).await?;
    let shapes = Table::all(file(&mut to)?).await?;
    ensure_same(&shapes, tables, schema)?;
    copy_all(&shapes, (from, schema), (&mut to, "main")).await?;
    to.commit().await
}

/// The schemas of a server, which are filled from files. Dropped before it is committed, it leaves the
/// server as it was.
#[derive(Debug)]
pub struct Fill {
    server: Server,
    transaction: Transaction,
}

impl Fill {
    /// Begins.
    ///
    /// # Errors
    ///
    /// [`DbError::Unavailable`] where the server cannot be reached.
    pub async fn begin(server: &Server) -> Result<Self, DbError> {
        Ok(Self {
            server: server.clone(),
            transaction: begin(server, "BEGIN").await?,
        })
    }

    /// Makes the schema of a service, and fills it with the rows of a SQLite file, which is brought up to
    /// date itself. Queries go to the schema that was filled last.
    ///
    /// # Errors
    ///
    /// [`DbError::Failed`] where the schema has tables already, or has not become what the file is.
    pub fn copy<'a>(
        &'a mut self,
        service: &'a str,
        file: &'a Path,
        migrations: &'a [Migration],
    ) -> Access<'a, ()> {
        Box::pin(async move {
            let schema = self.server.schema(service);
            let session = session(&mut self.transaction)?;
            // Held until the commit: a process that starts meanwhile waits before it looks.
            let turn =
                sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(lock("migrate", &schema));
            turn.execute(&mut *session).await?;
            if !table_names(session, &schema).await?.is_empty() {
                let text = format!(
                    "the schema {schema} has tables already: use a database in which no mesh has its schemas, \
                 or others by database.schema_prefix"
                );
                return Err(DbError::Failed(text));
            }
            migrate::create_schema(session, self.server.owned(&schema)).await?;
            use_schema(session, &schema).await?;
            migrate::apply(session, &migrate::on_postgres(migrations)).await?;
            let tables = table_names(session, &schema).await?;
            let source = Db::open(file, migrations).await?;
            let done = copy_from_file(&source, &mut self.transaction, &schema, tables).await;
            source.close().await;
            done
        })
    }

    /// Makes all of it durable.
    ///
    /// # Errors
    ///
    /// [`DbError::InDoubt`] where the answer of the server is lost.
    pub fn commit(self) -> Access<'static, ()> {
        Box::pin(async move { self.transaction.commit().await })
    }
}

impl Deref for Fill {
    type Target = Transaction;

    fn deref(&self) -> &Transaction {
        &self.transaction
    }
}

impl DerefMut for Fill {
    fn deref_mut(&mut self) -> &mut Transaction {
        &mut self.transaction
    }
}

async fn copy_from_file(
    source: &Db,
    to: &mut Transaction,
    schema: &str,
    tables: BTreeSet<String>,
) -> Result<(), DbError> {
    let mut from = source.write("db.fill", Isolation::Exclusive).await?;
    let shapes = Table::all(file(&mut from)?).await?;
    ensure_same(&shapes, tables, schema)?;
    copy_all(&shapes, (&mut from, "main"), (to, schema)).await?;
    // Without statistics, the first queries would not use the indexes.
    for shape in &shapes {
        let analyze = AssertSqlSafe(format!("ANALYZE {}", shape.at(schema)));
        sqlx::query(analyze).execute(&mut *session(to)?).await?;
    }
    Ok(())
}

/// Begins a transaction on a connection of its own, whose statements may take long.
async fn begin(server: &Server, statement: &'static str) -> Result<Transaction, DbError> {
    let pool = PgPoolOptions::new().max_connections(1);
    let pool = pool.connect_lazy_with(server.unbounded(NEUTRAL)?);
    let mut connection = Connection::acquire(&pool).await?;
    verify(&mut connection, NEUTRAL).await?;
    // Migrations are transactions within this one.
    connection.begin_nesting(statement).await?;
    Ok(Transaction(Open::Postgres(connection)))
}

/// The session of a transaction on a server.
fn session(transaction: &mut Transaction) -> Result<&mut PgConnection, DbError> {
    match &mut transaction.0 {
        Open::Postgres(tx) => Ok(&mut *tx),
        Open::Sqlite(_) => Err(DbError::Failed("not a server".to_owned())),
    }
}

/// The connection of a transaction on a file.
fn file(transaction: &mut Transaction) -> Result<&mut SqliteConnection, DbError> {
    match &mut transaction.0 {
        Open::Sqlite(tx) => Ok(&mut *tx),
        Open::Postgres(_) => Err(DbError::Failed("not a file".to_owned())),
    }
}

/// Until the end of the transaction.
async fn use_schema(session: &mut PgConnection, schema: &str) -> Result<(), DbError> {
    let text = AssertSqlSafe(format!(
        "SET LOCAL search_path TO {}",
        table::quoted(schema)
    ));
    sqlx::query(text).execute(session).await?;
    Ok(())
}

async fn table_names(
    session: &mut PgConnection,
    schema: &str,
) -> Result<BTreeSet<String>, DbError> {
    const TABLES: &str = "SELECT CAST(tablename AS TEXT) FROM pg_tables WHERE schemaname = $1";
    let names: Vec<String> = sqlx::query_scalar(TABLES)
        .bind(schema)
        .fetch_all(session)
        .await?;
    Ok(names.into_iter().collect())
}

/// The migrations that were applied to the schema that the session uses.
async fn applied<'m>(
    session: &mut PgConnection,
    migrations: &'m [Migration],
) -> Result<&'m [Migration], DbError> {
    let applied = migrate::applied(session).await?;
    migrate::missing(&applied, &migrate::on_postgres(migrations))?;
    let last = applied.iter().map(|a| a.version).max().unwrap_or(0);
    let until = migrations.partition_point(|m| m.version() <= last);
    Ok(migrations.get(..until).unwrap_or_default())
}

/// Both sides have the same tables, or rows would be lost unnoticed.
fn ensure_same(
    shapes: &[Table],
    mut tables: BTreeSet<String>,
    schema: &str,
) -> Result<(), DbError> {
    tables.remove(APPLIED);
    let known: BTreeSet<String> = shapes.iter().map(|t| t.name().to_owned()).collect();
    match known.symmetric_difference(&tables).next() {
        None => Ok(()),
        Some(table) => Err(DbError::Failed(format!(
            "the table {table} of the schema {schema} is not one of both engines"
        ))),
    }
}

/// Copies every row; what migrations have put into the empty tables is replaced.
async fn copy_all(
    tables: &[Table],
    (from, from_schema): (&mut Transaction, &str),
    (to, to_schema): (&mut Transaction, &str),
) -> Result<(), DbError> {
    for table in tables.iter().rev() {
        table.clear(to, to_schema).await?;
    }
    let kept = |table: &&Table| !LEFT_OUT.contains(&table.name());
    for table in tables.iter().filter(kept) {
        let copied = table.copy((from, from_schema), (to, to_schema)).await?;
        let written = table.content(to, to_schema).await?;
        if written != copied {
            return Err(DbError::Failed(format!(
                "{} was copied with another content: {copied}, and then {written}",
                table.name()
            )));
        }
    }
    Ok(())
}
