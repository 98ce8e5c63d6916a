//! Rows, read by the names of their columns.

use super::{Corrupt, DbError};
use serde::de::DeserializeOwned;
use sqlx::{Decode, Row as _, Sqlite, TypeInfo, ValueRef, postgres::PgRow, sqlite::SqliteRow};
use uuid::Uuid;

/// A row of a result.
#[derive(Debug)]
pub struct Row(pub(super) Inner);

pub(super) enum Inner {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // What a row holds is not for the log.
        f.write_str(match self {
            Self::Sqlite(_) => "SqliteRow",
            Self::Postgres(_) => "PgRow",
        })
    }
}

impl Row {
    /// The value of a column.
    ///
    /// # Errors
    ///
    /// [`DbError::Failed`] where there is no such column, or it holds another type.
    pub fn get<T: Column>(&self, column: &'static str) -> Result<T, DbError> {
        T::read(self, column)
    }

    /// How many bytes its texts and blobs have, and its other values about.
    pub(super) fn bytes(&self) -> usize {
        match &self.0 {
            Inner::Sqlite(row) => (0..row.len()).map(|at| sqlite_bytes(row, at)).sum(),
            Inner::Postgres(row) => (0..row.len()).map(|at| postgres_bytes(row, at)).sum(),
        }
    }

    /// The row under the name that an error gives it: its table and its key.
    pub fn named(&self, table: &'static str, key: impl ToString) -> NamedRow<'_> {
        NamedRow {
            row: self,
            table,
            key: key.to_string(),
        }
    }
}

/// The size of a value that is neither a text nor a blob.
const SCALAR: usize = 8;

fn sqlite_bytes(row: &SqliteRow, at: usize) -> usize {
    let value = row.try_get_raw(at).ok();
    // Reading a number as bytes would make a text of it.
    let long = value.filter(|value| matches!(value.type_info().name(), "TEXT" | "BLOB"));
    let bytes = long.and_then(|value| <&[u8] as Decode<Sqlite>>::decode(value).ok());
    bytes.map_or(SCALAR, <[u8]>::len)
}

fn postgres_bytes(row: &PgRow, at: usize) -> usize {
    let bytes = row.try_get_raw(at).ok().and_then(|v| v.as_bytes().ok());
    bytes.map_or(SCALAR, <[u8]>::len)
}

/// A row whose content is checked while it is read. What it cannot hold is a [`Corrupt`] error
/// that names it.
#[derive(Debug)]
pub struct NamedRow<'r> {
    row: &'r Row,
    table: &'static str,
    key: String,
}

impl NamedRow<'_> {
    /// The value of a column; see [`Row::get`].
    ///
    /// # Errors
    ///
    /// As [`Row::get`].
    pub fn get<T: Column>(&self, column: &'static str) -> Result<T, DbError> {
        self.row.get(column)
    }

    /// The document in a TEXT column.
    ///
    /// # Errors
    ///
    /// [`DbError::Corrupt`] where it does not parse.
    pub fn json<T: DeserializeOwned>(&self, column: &'static str) -> Result<T, DbError> {
        let text: String = self.get(column)?;
        serde_json::from_str(&text).map_err(|e| self.corrupt(e))
    }

    /// The number in a BIGINT column, within the bounds of `T`.
    ///
    /// # Errors
    ///
    /// [`DbError::Corrupt`] where it is outside of them.
    pub fn number<T: TryFrom<i64>>(&self, column: &'static str) -> Result<T, DbError> {
        let n: i64 = self.get(column)?;
        T::try_from(n).map_err(|_| self.corrupt(format!("{column}: {n} is out of bounds")))
    }

    /// The word in a TEXT column, as `parse` reads it.
    ///
    /// # Errors
    ///
    /// [`DbError::Corrupt`] where `parse` does not know it.
    pub fn word<T>(
        &self,
        column: &'static str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, DbError> {
        let text: String = self.get(column)?;
        parse(&text).ok_or_else(|| self.corrupt(format!("there is no {column} {text:?}")))
    }

    fn corrupt(&self, problem: impl ToString) -> DbError {
        Corrupt::new(self.table, &self.key, problem).into()
    }
}

/// What a row is read into.
pub trait FromRow: Sized {
    /// Reads each column by its name.
    ///
    /// # Errors
    ///
    /// [`DbError::Corrupt`] where the content is not what this version writes, and
    /// [`DbError::Failed`] where the columns are not the expected ones.
    fn from_row(row: &Row) -> Result<Self, DbError>;
}

/// Reads each row by itself: one that cannot be read is no reason to leave out the others.
impl<T: FromRow> FromRow for Result<T, DbError> {
    fn from_row(row: &Row) -> Result<Self, DbError> {
        Ok(T::from_row(row))
    }
}

/// A type that a column may have.
pub trait Column: Sized {
    /// Reads the value of a column.
    ///
    /// # Errors
    ///
    /// As [`Row::get`].
    fn read(row: &Row, column: &'static str) -> Result<Self, DbError>;
}

macro_rules! columns {
    ($($type:ty),* $(,)?) => {$(
        impl Column for $type {
            fn read(row: &Row, column: &'static str) -> Result<Self, DbError> {
                Ok(match &row.0 {
                    Inner::Sqlite(row) => row.try_get(column)?,
                    Inner::Postgres(row) => row.try_get(column)?,
                })
            }
        }

        impl Column for Option<$type> {
            fn read(row: &Row, column: &'static str) -> Result<Self, DbError> {
                Ok(match &row.0 {
                    Inner::Sqlite(row) => row.try_get(column)?,
                    Inner::Postgres(row) => row.try_get(column)?,
                })
            }
        }
    )*};
}

columns!(bool, i64, f64, String, Vec<u8>, Uuid);
