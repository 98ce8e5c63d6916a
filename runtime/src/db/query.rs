//! A statement with its values, free of any driver.

use super::DbError;
use serde::Serialize;
use sqlx::{Arguments, postgres::PgArguments, sqlite::SqliteArguments};
use std::borrow::Cow;
use uuid::Uuid;

/// One SQL text, the same for every engine, and the values of its parameters `$1`, `$2`, ….
#[derive(Debug, Clone)]
pub struct Query<'q> {
    text: &'static str,
    values: Vec<Value<'q>>,
}

impl<'q> Query<'q> {
    /// A statement whose values follow.
    pub fn new(text: &'static str) -> Self {
        Self {
            text,
            values: Vec::new(),
        }
    }

    /// Gives the next parameter its value.
    #[must_use]
    pub fn bind(mut self, value: impl Into<Value<'q>>) -> Self {
        self.values.push(value.into());
        self
    }

    pub(super) fn text(&self) -> &'static str {
        self.text
    }

    pub(super) fn for_sqlite(&self) -> Result<SqliteArguments, DbError> {
        sqlite_arguments(&self.values)
    }

    pub(super) fn for_postgres(&self) -> Result<PgArguments, DbError> {
        postgres_arguments(&self.values)
    }
}

macro_rules! arguments {
    ($($name:ident -> $arguments:ty),* $(,)?) => {$(
        pub(super) fn $name(values: &[Value<'_>]) -> Result<$arguments, DbError> {
            let mut arguments = <$arguments>::default();
            for value in values {
                match value {
                    Value::Bool(v) => arguments.add(v),
                    Value::BigInt(v) => arguments.add(v),
                    Value::Double(v) => arguments.add(v),
                    Value::Text(v) => arguments.add(v.as_deref()),
                    Value::Bytes(v) => arguments.add(v.as_deref()),
                    Value::Uuid(v) => arguments.add(v),
                }
                .map_err(|e| DbError::Failed(format!("a value cannot be bound: {e}")))?;
            }
            Ok(arguments)
        }
    )*};
}

arguments!(sqlite_arguments -> SqliteArguments, postgres_arguments -> PgArguments);

/// The value of a parameter; `None` is NULL.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'q> {
    /// A BOOLEAN.
    Bool(Option<bool>),
    /// A BIGINT.
    BigInt(Option<i64>),
    /// A DOUBLE PRECISION.
    Double(Option<f64>),
    /// A TEXT.
    Text(Option<Cow<'q, str>>),
    /// A BYTEA.
    Bytes(Option<Cow<'q, [u8]>>),
    /// A UUID.
    Uuid(Option<Uuid>),
}

macro_rules! values {
    ($($type:ty => $variant:ident),* $(,)?) => {$(
        impl<'q> From<$type> for Value<'q> {
            fn from(value: $type) -> Self {
                Self::$variant(Some(value.into()))
            }
        }

        impl<'q> From<Option<$type>> for Value<'q> {
            fn from(value: Option<$type>) -> Self {
                Self::$variant(value.map(Into::into))
            }
        }
    )*};
}

values! {
    bool => Bool,
    i64 => BigInt,
    u32 => BigInt,
    f64 => Double,
    String => Text,
    &'q str => Text,
    &'q String => Text,
    Vec<u8> => Bytes,
    &'q [u8] => Bytes,
    &'q Vec<u8> => Bytes,
    Uuid => Uuid,
}

impl<'q> From<&'q Option<String>> for Value<'q> {
    fn from(value: &'q Option<String>) -> Self {
        Self::Text(value.as_deref().map(Cow::Borrowed))
    }
}

/// A document for a TEXT column.
///
/// # Errors
///
/// [`DbError::Failed`] where a value has no JSON form (a map with keys that are no strings).
pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<String, DbError> {
    serde_json::to_string(value).map_err(|e| DbError::Failed(format!("no JSON: {e}")))
}
