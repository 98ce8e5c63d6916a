//! Tables as SQLite's catalogue describes them, and their rows on either engine.

use super::content::Content;
use crate::db::{
    DbError, Value,
    migrate::APPLIED,
    query::{postgres_arguments, sqlite_arguments},
    transaction::{Open, Transaction},
};
use futures_util::TryStreamExt;
use sqlx::{
    AssertSqlSafe, ColumnIndex, Decode, Row, SqliteConnection, Type, postgres::PgRow,
    sqlite::SqliteRow,
};
use std::collections::BTreeSet;
use uuid::Uuid;

/// How many rows one statement inserts. With the columns of the widest table it stays far below the number
/// of parameters that the engines allow.
const BATCH: usize = 50;

/// The type of a column, one of those that both engines have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    BigInt,
    Double,
    Text,
    Bytes,
    Uuid,
}

impl Kind {
    fn parse(declared: &str) -> Option<Self> {
        Some(match declared.to_ascii_uppercase().as_str() {
            "BOOLEAN" => Self::Bool,
            "BIGINT" => Self::BigInt,
            "DOUBLE PRECISION" => Self::Double,
            "TEXT" => Self::Text,
            "BYTEA" => Self::Bytes,
            "UUID" => Self::Uuid,
            _ => return None,
        })
    }

    fn read<'r, R: Row>(self, row: &'r R, column: usize) -> Result<Value<'static>, DbError>
    where
        usize: ColumnIndex<R>,
        bool: Decode<'r, R::Database> + Type<R::Database>,
        i64: Decode<'r, R::Database> + Type<R::Database>,
        f64: Decode<'r, R::Database> + Type<R::Database>,
        String: Decode<'r, R::Database> + Type<R::Database>,
        Vec<u8>: Decode<'r, R::Database> + Type<R::Database>,
        Uuid: Decode<'r, R::Database> + Type<R::Database>,
    {
        Ok(match self {
            Self::Bool => row.try_get::<Option<bool>, _>(column)?.into(),
            Self::BigInt => row.try_get::<Option<i64>, _>(column)?.into(),
            Self::Double => row.try_get::<Option<f64>, _>(column)?.into(),
            Self::Text => row.try_get::<Option<String>, _>(column)?.into(),
            Self::Bytes => row.try_get::<Option<Vec<u8>>, _>(column)?.into(),
            Self::Uuid => row.try_get::<Option<Uuid>, _>(column)?.into(),
        })
    }
}

/// A table with its columns.
#[derive(Debug)]
pub(super) struct Table {
    name: String,
    columns: Vec<(String, Kind)>,
}

/// An identifier of the catalogue.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

impl Table {
    /// The tables of a SQLite file, each after those that it refers to, without the driver's.
    pub(super) async fn all(file: &mut SqliteConnection) -> Result<Vec<Self>, DbError> {
        const NAMES: &str = "SELECT name FROM sqlite_master \
                             WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name";
        const REFERENCES: &str = "SELECT m.name, f.\"table\" FROM sqlite_master m, \
                                  pragma_foreign_key_list(m.name) f WHERE m.type = 'table'";
        let names: Vec<String> = sqlx::query_scalar(NAMES).fetch_all(&mut *file).await?;
        let references: Vec<(String, String)> =
            sqlx::query_as(REFERENCES).fetch_all(&mut *file).await?;
        let mut tables = Vec::new();
        for name in in_order(names, &references)? {
            if name != APPLIED {
                tables.push(Self::of(file, name).await?);
            }
        }
        Ok(tables)
    }

    async fn of(file: &mut SqliteConnection, name: String) -> Result<Self, DbError> {
        const COLUMNS: &str = "SELECT name, type FROM pragma_table_info($1) ORDER BY cid";
        let found: Vec<(String, String)> =
            sqlx::query_as(COLUMNS).bind(&name).fetch_all(file).await?;
        let mut columns = Vec::new();
        for (column, declared) in found {
            let unknown = || DbError::Failed(format!("{name}.{column} has the type {declared}"));
            let kind = Kind::parse(&declared).ok_or_else(unknown)?;
            columns.push((column, kind));
        }
        Ok(Self { name, columns })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The table in a schema. The one of a SQLite file is `main`.
    pub(super) fn at(&self, schema: &str) -> String {
        format!("{}.{}", quoted(schema), quoted(&self.name))
    }

    fn columns(&self) -> String {
        let names: Vec<_> = self.columns.iter().map(|(name, _)| quoted(name)).collect();
        names.join(", ")
    }

    fn insert(&self, schema: &str, rows: usize) -> String {
        let width = self.columns.len();
        let row = |n: usize| {
            let values: Vec<_> = (1..=width).map(|c| format!("${}", n * width + c)).collect();
            format!("({})", values.join(", "))
        };
        let rows: Vec<_> = (0..rows).map(row).collect();
        let (table, columns) = (self.at(schema), self.columns());
        format!("INSERT INTO {table} ({columns}) VALUES {}", rows.join(", "))
    }

    /// Deletes all rows.
    pub(super) async fn clear(&self, on: &mut Transaction, schema: &str) -> Result<(), DbError> {
        run(on, format!("DELETE FROM {}", self.at(schema)), &[]).await
    }

    /// Copies all rows to the same table elsewhere, and returns what was copied.
    pub(super) async fn copy(
        &self,
        (from, from_schema): (&mut Transaction, &str),
        (to, to_schema): (&mut Transaction, &str),
    ) -> Result<Content, DbError> {
        let mut target = Target {
            table: self,
            schema: to_schema,
            on: to,
            waiting: Vec::new(),
            content: Content::default(),
        };
        let select = self.select(from_schema);
        match &mut from.0 {
            Open::Sqlite(tx) => {
                let mut rows = sqlx::query(select).fetch(&mut **tx);
                while let Some(row) = rows.try_next().await? {
                    target.put(self.of_sqlite(&row)?).await?;
                }
            }
            Open::Postgres(tx) => {
                let mut rows = sqlx::query(select).fetch(&mut **tx);
                while let Some(row) = rows.try_next().await? {
                    target.put(self.of_postgres(&row)?).await?;
                }
            }
        }
        target.finish().await
    }

    /// What the table holds.
    pub(super) async fn content(
        &self,
        on: &mut Transaction,
        schema: &str,
    ) -> Result<Content, DbError> {
        let (select, mut content) = (self.select(schema), Content::default());
        match &mut on.0 {
            Open::Sqlite(tx) => {
                let mut rows = sqlx::query(select).fetch(&mut **tx);
                while let Some(row) = rows.try_next().await? {
                    content.add(&self.of_sqlite(&row)?);
                }
            }
            Open::Postgres(tx) => {
                let mut rows = sqlx::query(select).fetch(&mut **tx);
                while let Some(row) = rows.try_next().await? {
                    content.add(&self.of_postgres(&row)?);
                }
            }
        }
        Ok(content)
    }

    fn select(&self, schema: &str) -> AssertSqlSafe<String> {
        AssertSqlSafe(format!(
            "SELECT {} FROM {}",
            self.columns(),
            self.at(schema)
        ))
    }

    fn of_sqlite(&self, row: &SqliteRow) -> Result<Vec<Value<'static>>, DbError> {
        let columns = self.columns.iter().enumerate();
        columns.map(|(n, (_, kind))| kind.read(row, n)).collect()
    }

    fn of_postgres(&self, row: &PgRow) -> Result<Vec<Value<'static>>, DbError> {
        let columns = self.columns.iter().enumerate();
        columns.map(|(n, (_, kind))| kind.read(row, n)).collect()
    }
}

/// Where rows are copied to, several with one statement.
struct Target<'a> {
    table: &'a Table,
    schema: &'a str,
    on: &'a mut Transaction,
    /// The values of the rows that are not inserted yet.
    waiting: Vec<Value<'static>>,
    content: Content,
}

impl Target<'_> {
    async fn put(&mut self, row: Vec<Value<'static>>) -> Result<(), DbError> {
        self.content.add(&row);
        self.waiting.extend(row);
        match self.waiting.len() >= BATCH * self.table.columns.len() {
            true => self.insert().await,
            false => Ok(()),
        }
    }

    async fn insert(&mut self) -> Result<(), DbError> {
        let values = std::mem::take(&mut self.waiting);
        let rows = values.len() / self.table.columns.len().max(1);
        run(self.on, self.table.insert(self.schema, rows), &values).await
    }

    async fn finish(mut self) -> Result<Content, DbError> {
        if !self.waiting.is_empty() {
            self.insert().await?;
        }
        Ok(self.content)
    }
}

/// Runs a statement that is made of the catalogue's names.
async fn run(on: &mut Transaction, text: String, values: &[Value<'_>]) -> Result<(), DbError> {
    let text = AssertSqlSafe(text);
    match &mut on.0 {
        Open::Sqlite(tx) => {
            let statement = sqlx::query_with(text, sqlite_arguments(values)?);
            statement.execute(&mut **tx).await?;
        }
        Open::Postgres(tx) => {
            let statement = sqlx::query_with(text, postgres_arguments(values)?);
            statement.execute(&mut **tx).await?;
        }
    }
    Ok(())
}

/// Sorts tables so that each comes after those that it refers to.
fn in_order(names: Vec<String>, references: &[(String, String)]) -> Result<Vec<String>, DbError> {
    let mut left: BTreeSet<String> = names.into_iter().collect();
    let mut ordered = Vec::new();
    while !left.is_empty() {
        let waits = |name: &str| {
            let mut others = references
                .iter()
                .filter(|(from, to)| from == name && to != name);
            others.any(|(_, to)| left.contains(to))
        };
        let next = left.iter().find(|name| !waits(name)).cloned();
        let next = next.ok_or_else(|| DbError::Failed("tables refer to each other".to_owned()))?;
        left.remove(&next);
        ordered.push(next);
    }
    Ok(ordered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_comes_after_those_that_it_refers_to() {
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        let names = ["a", "b", "c"].map(str::to_owned).to_vec();
        let references = vec![pair("a", "c"), pair("c", "b"), pair("b", "b")];
        assert_eq!(
            in_order(names.clone(), &references).unwrap(),
            ["b", "c", "a"]
        );
        let circle = vec![pair("a", "c"), pair("c", "a")];
        assert!(in_order(names, &circle).is_err());
    }

    #[test]
    fn identifiers_are_quoted_and_rows_numbered_through() {
        let table = Table {
            name: "a \"b\"".to_owned(),
            columns: vec![("x".to_owned(), Kind::Text), ("y".to_owned(), Kind::Bool)],
        };
        assert_eq!(
            table.insert("s", 2),
            "INSERT INTO \"s\".\"a \"\"b\"\"\" (\"x\", \"y\") VALUES ($1, $2), ($3, $4)"
        );
    }
}
