//! What a database holds, for the commands of an operator: its schema, tables and size.

use super::{
    Access, Db, DbError, Fetch, Migration, Query,
    connection::Connection,
    migrate::{self, APPLIED},
    pools::Pools,
};
use std::path::Path;

/// How a database's schema compares with the migrations of this version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schema {
    /// The last migration that was applied; zero when none is.
    pub applied: i64,
    /// The last migration that this version has.
    pub known: i64,
    /// The migrations of this version that are not applied yet.
    pub pending: Vec<i64>,
}

/// A table of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// How many rows it has.
    pub rows: i64,
}

impl Db {
    /// The engine's name, as OpenTelemetry has it: `sqlite` or `postgresql`.
    pub fn engine(&self) -> &'static str {
        self.pools.engine()
    }

    /// Compares the schema with the migrations of this version, and changes nothing.
    ///
    /// # Errors
    ///
    /// [`DbError::Schema`] where a newer version, or one with other texts, wrote the database.
    pub fn schema<'a>(&'a self, migrations: &'a [Migration]) -> Access<'a, Schema> {
        Box::pin(async move {
            let names = self.table_names().await?;
            let applied = match names.iter().any(|name| name == APPLIED) {
                true => self.pools.applied().await?,
                false => Vec::new(),
            };
            let migrations = match &self.pools {
                Pools::Sqlite { .. } => migrate::on_sqlite(migrations),
                Pools::Postgres { .. } => migrate::on_postgres(migrations),
            };
            let pending = migrate::missing(&applied, &migrations)?;
            Ok(Schema {
                applied: applied.iter().map(|a| a.version).max().unwrap_or(0),
                known: migrations.last().map_or(0, |m| m.version),
                pending: pending.iter().map(|m| m.version).collect(),
            })
        })
    }

    /// The service's tables with their rows, by name.
    ///
    /// # Errors
    ///
    /// [`DbError`] where the database does not answer.
    pub fn tables(&self) -> Access<'_, Vec<Table>> {
        Box::pin(async move {
            let mut tables = Vec::new();
            for name in self.table_names().await? {
                if name != APPLIED {
                    let rows = self.pools.count(&name).await?;
                    tables.push(Table { name, rows });
                }
            }
            Ok(tables)
        })
    }

    /// The size of the service's data in bytes, indexes included, write-ahead logs not.
    ///
    /// # Errors
    ///
    /// [`DbError`] where the database does not answer.
    pub async fn bytes(&self) -> Result<i64, DbError> {
        const SQLITE: &str =
            "SELECT page_count * page_size AS bytes FROM pragma_page_count, pragma_page_size";
        const POSTGRES: &str = "SELECT CAST(COALESCE(SUM(pg_total_relation_size(c.oid)), 0) AS BIGINT) \
                                AS bytes FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                                WHERE n.nspname = current_schema() AND c.relkind = 'r'";
        let query = Query::new(self.pools.text(SQLITE, POSTGRES));
        self.read("db.bytes").value(query, "bytes").await
    }

    /// The names of the tables, sorted, those of the driver included.
    async fn table_names(&self) -> Result<Vec<String>, DbError> {
        const SQLITE: &str = "SELECT name FROM sqlite_master \
                              WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name";
        const POSTGRES: &str = "SELECT CAST(tablename AS TEXT) AS name FROM pg_tables \
                                WHERE schemaname = current_schema() ORDER BY tablename";
        let query = Query::new(self.pools.text(SQLITE, POSTGRES));
        let rows = self.read("db.tables").rows(query).await?;
        rows.iter().map(|row| row.get("name")).collect()
    }

    /// Writes a consistent copy of a SQLite database to a file that does not exist yet, while others
    /// read and write it.
    ///
    /// # Errors
    ///
    /// [`DbError::Failed`] on another engine, or where the file cannot be written.
    pub fn copy_to<'a>(&'a self, file: &'a Path) -> Access<'a, ()> {
        Box::pin(async move {
            match &self.pools {
                Pools::Sqlite { reader, .. } => {
                    let name = file.to_str().ok_or_else(|| {
                        DbError::Failed(format!("{}: not a name in UTF-8", file.display()))
                    })?;
                    let mut connection = Connection::acquire(reader).await?;
                    let copy = sqlx::query("VACUUM INTO $1").bind(name);
                    copy.execute(&mut *connection).await?;
                    Ok(())
                }
                Pools::Postgres { .. } => {
                    let text = "a PostgreSQL database is not copied into a file";
                    Err(DbError::Failed(text.to_owned()))
                }
            }
        })
    }

    /// Whether a SQLite file is sound: its pages, indexes and constraints.
    ///
    /// # Errors
    ///
    /// [`DbError::Failed`] with what is wrong.
    pub fn check_integrity(&self) -> Access<'_, ()> {
        Box::pin(async move {
            let Pools::Sqlite { reader, .. } = &self.pools else {
                // PostgreSQL looks after its own files.
                return Ok(());
            };
            let mut connection = Connection::acquire(reader).await?;
            let check = sqlx::query_scalar("PRAGMA integrity_check(1)");
            let problem: String = check.fetch_one(&mut *connection).await?;
            match problem.as_str() {
                "ok" => Ok(()),
                problem => Err(DbError::Failed(format!("the file is damaged: {problem}"))),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::{Isolation, SchemaError};

    const FIRST: Migration =
        Migration::new(1, "first", "CREATE TABLE \"a b\" (id BIGINT PRIMARY KEY)");
    const SECOND: Migration = Migration::new(2, "second", "CREATE TABLE c (id BIGINT PRIMARY KEY)");

    async fn db(path: &Path, migrations: &[Migration]) -> Db {
        let db = Db::open(path, migrations).await.unwrap();
        let mut tx = db.write("test", Isolation::Exclusive).await.unwrap();
        let insert = Query::new("INSERT INTO \"a b\" (id) VALUES (1), (2)");
        tx.execute(insert).await.unwrap().any();
        tx.commit().await.unwrap();
        db
    }

    #[tokio::test]
    async fn a_schema_is_compared_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let db = db(&dir.path().join("x.db"), &[FIRST]).await;
        for _ in 0..2 {
            let schema = db.schema(&[FIRST, SECOND]).await.unwrap();
            assert_eq!((schema.applied, schema.known), (1, 2));
            assert_eq!(schema.pending, [2]);
        }
        let newer = db.schema(&[]).await.unwrap_err();
        assert_eq!(newer, SchemaError::Newer(1).into());
        let other = Migration::new(1, "first", "CREATE TABLE d (id BIGINT)");
        let edited = db.schema(&[other]).await.unwrap_err();
        assert_eq!(edited, SchemaError::Modified(1).into());
    }

    #[tokio::test]
    async fn tables_are_counted_without_those_of_the_driver() {
        let dir = tempfile::tempdir().unwrap();
        let db = db(&dir.path().join("x.db"), &[FIRST, SECOND]).await;
        let tables = db.tables().await.unwrap();
        let tables: Vec<_> = tables.iter().map(|t| (t.name.as_str(), t.rows)).collect();
        assert_eq!(tables, [("a b", 2), ("c", 0)]);
        assert!(db.bytes().await.unwrap() > 0);
    }

    #[tokio::test]
    async fn a_copy_has_what_was_committed_and_replaces_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let db = db(&dir.path().join("x.db"), &[FIRST]).await;
        let open = db.write("test", Isolation::Exclusive).await.unwrap();
        let file = dir.path().join("copy.db");
        db.copy_to(&file).await.unwrap();
        drop(open);
        let copy = Db::attach(&file).await.unwrap();
        copy.check_integrity().await.unwrap();
        assert_eq!(copy.tables().await.unwrap(), db.tables().await.unwrap());
        assert!(db.copy_to(&file).await.is_err());
    }
}
